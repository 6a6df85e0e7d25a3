//! What the command line asks for.

/// Whether to run all of it only briefly, to prove that it works: with `--test`, and when cargo
/// runs a benchmark as a test (that is, without `--bench`).
pub fn is_brief() -> bool {
    has("--test") || !has("--bench")
}

/// Whether the figures go into `benches/RESULTS.md`, and from there into `BENCHMARKS.md`.
pub(crate) fn is_write() -> bool {
    has("--write")
}

fn has(name: &str) -> bool {
    std::env::args().any(|argument| argument == name)
}
