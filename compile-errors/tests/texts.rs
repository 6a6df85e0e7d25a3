//! Each file of `mistakes` has one mistake. Beside it is the compiler's text, read by eye: it names the cure.
//!
//! After a change, or with another compiler, `TRYBUILD=overwrite cargo test -p tower-jobs-compile-errors`
//! writes the texts anew. Read the difference.

#[test]
fn mistakes_have_texts_that_name_the_cure() {
    let cases = trybuild::TestCases::new();
    cases.compile_fail("tests/mistakes/*.rs");
}

#[test]
fn cures_compile() {
    let cases = trybuild::TestCases::new();
    cases.pass("cures/cures.rs");
}
