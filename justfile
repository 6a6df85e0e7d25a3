# Recipes of plain shell lines: `.ci/run` can also run those that it uses without `just`.

# Format, lints and unit tests: run it before each commit.
check: fmt clippy
    cargo test --package tower-jobs --all-features --lib

fmt:
    cargo fmt --all --check

clippy:
    cargo clippy --workspace --all-targets --all-features -- -D warnings

# All tests, and the examples in the documentation.
test:
    cargo test --all-features

# Tests of the benchmarks' library, the compiler's texts for frequent mistakes, and programs with crates of their own.
test-members:
    cargo test --package tower-jobs-benches --package tower-jobs-compile-errors --package tower-jobs-dashboard --package tower-jobs-otel-example --package tower-jobs-prometheus-example --package tower-jobs-readme --package tower-jobs-recipes

# Durable jobs, on real PostgreSQL (Debian's postgresql) and on files; processes that are killed; a producer in Node (npm).
test-durable:
    mkdir -p target/producers
    cp durable/producers/package.json durable/producers/package-lock.json durable/producers/enqueue.mjs target/producers
    npm ci --prefix target/producers --no-audit --no-fund --loglevel error
    cargo test --package tower-jobs-durable --all-features
    cargo test --package tower-jobs-durable-reliability -- --test-threads 3

# Pages in headless Chromium. Needs Debian's chromium and chromium-driver, and npm.
test-browser:
    mkdir -p target/browser
    cp browser-tests/package.json browser-tests/package-lock.json target/browser
    npm ci --prefix target/browser --no-audit --no-fund --loglevel error
    cargo test --package tower-jobs-browser-tests

# Both with all features and with the default ones, since links depend on them.
docs:
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --all-features --package tower-jobs --package tower-jobs-dashboard --package tower-jobs-durable
    RUSTDOCFLAGS='-D warnings' cargo doc --no-deps --package tower-jobs

# All interleavings of the types without a lock around them.
loom:
    RUSTFLAGS='--cfg tower_jobs_loom' CARGO_TARGET_DIR=target/ci/loom cargo test --package tower-jobs --lib --locked all_orders

# Random histories of the queue against its oracle: optimized, so 50 times as many as in `.ci/run`'s tests.
histories:
    PROPTEST_CASES=500000 cargo test --release --package tower-jobs --lib every_invariant_holds

# Everything that a change must pass. Needs Debian and root.
ci:
    .ci/run
