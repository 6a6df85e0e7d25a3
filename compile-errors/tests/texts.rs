//! Each file of `mistakes` has one mistake. Beside it is the compiler's text, read by eye: it names the cure.
//!
//! After a change, or with another compiler, `TRYBUILD=overwrite cargo test -p tower-jobs-compile-errors`
//! writes the texts anew. Read the difference.

use std::fs;

#[test]
fn mistakes_have_texts_that_name_the_cure() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/mistakes/*.rs");
}

/// The compiler also lists what it finds in the crate, and must find no private type there.
#[test]
fn texts_name_no_private_type() {
    let rooms = ["util", "rules", "job", "report", "run", "scheduler", "http", "shutdown"];
    let mut count = 0;
    for entry in fs::read_dir("tests/mistakes").expect("the folder of the texts") {
        let path = entry.expect("a file").path();
        if path.extension().is_none_or(|extension| extension != "stderr") {
            continue;
        }
        let text = fs::read_to_string(&path).expect("a text");
        for room in rooms {
            let private = format!("tower_jobs::{room}::");
            assert!(!text.contains(&private), "{private} in {}:\n{text}", path.display());
        }
        assert!(!text.contains("Refusal>"), "{}:\n{text}", path.display());
        count += 1;
    }
    assert!(count >= 15, "{count} texts");
}

#[test]
fn cures_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("cures/cures.rs");
}
