//! Writes the summary in `BENCHMARKS.md` from the tables in `benches/RESULTS.md`, without a benchmark:
//!
//! ```sh
//! cargo run -p tower-jobs-benches --example summary
//! ```

fn main() {
    tower_jobs_benches::write_summary();
}
