//! Takes the first program out of the README. Only the address is another, so that tests can run side by side:
//! a program listens on that of the variable `ADDR`.
#![allow(clippy::unwrap_used, reason = "a build may panic")]

use std::{env, fs, path::Path};

fn main() {
    println!("cargo::rerun-if-changed=../README.md");
    let readme = fs::read_to_string("../README.md").unwrap();
    let program = first_program(&readme);
    let program =
        replace(program, "\"127.0.0.1:3000\"", "std::env::var(\"ADDR\").expect(\"ADDR\")");
    let welcomes = "println!(\"Welcome, {email}!\");";
    let fails = "return Err(std::io::Error::other(format!(\"no mail to {email}\")));";
    let sticks = "std::future::pending::<()>().await; drop(email);";
    write("as_printed.rs", &program);
    write("failing.rs", &replace(&program, welcomes, fails));
    write("stuck.rs", &replace(&program, welcomes, sticks));
}

fn first_program(readme: &str) -> &str {
    let (_, rest) = readme.split_once("```rust").expect("the README has a program");
    let (_, program) = rest.split_once('\n').unwrap();
    let (program, _) = program.split_once("\n```").unwrap();
    assert!(program.contains("fn main()"), "the README's first program has a `main`");
    program
}

fn replace(program: &str, from: &str, to: &str) -> String {
    assert_eq!(program.matches(from).count(), 1, "the README's first program has {from}");
    program.replace(from, to)
}

fn write(name: &str, program: &str) {
    fs::write(Path::new(&env::var("OUT_DIR").unwrap()).join(name), program).unwrap();
}
