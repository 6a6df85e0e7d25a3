//! The chapter and the programs belong together.

use std::{collections::BTreeSet, fs, path::Path};

use crate::support::chapter;

fn program(name: &str) -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin").join(name);
    fs::read_to_string(&path).unwrap_or_else(|error| panic!("{}: {error}", path.display()))
}

/// The name of the program in a line of the chapter.
fn named(line: &str) -> Option<&str> {
    let (_, rest) = line.split_once("examples/recipes/src/bin/")?;
    Some(rest.split_once(".rs").expect("a file of Rust").0)
}

/// A section names its program before it quotes it.
#[test]
fn quoted_lines_are_in_the_program_in_order() {
    let (chapter, mut source, mut in_code, mut quoted) = (chapter(), String::new(), false, 0);
    let mut rest = String::new();
    for line in chapter.lines() {
        if let Some(name) = named(line) {
            source = program(&format!("{name}.rs"));
        }
        if line.starts_with("```") {
            in_code = line == "```rust,ignore";
            rest.clone_from(&source);
            continue;
        }
        let line = line.trim();
        if in_code && !line.is_empty() && line != ".." {
            quoted += 1;
            let found = rest.split_once(line);
            let (_, after) = found.unwrap_or_else(|| panic!("{line:?} is not in the program"));
            rest = after.to_owned();
        }
    }
    assert!(quoted > 20, "{quoted} lines");
}

#[test]
fn each_program_has_its_section() {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/bin");
    let programs: BTreeSet<_> = fs::read_dir(folder)
        .expect("the programs are there")
        .map(|file| file.expect("an entry").path().file_stem().expect("a name").to_owned())
        .collect();
    let chapter = chapter();
    let sections: BTreeSet<_> = chapter.lines().filter_map(named).map(Into::into).collect();
    assert_eq!(programs, sections);
}

/// A reader takes a program in at one sitting.
#[test]
fn each_program_has_at_most_110_lines() {
    let chapter = chapter();
    for name in chapter.lines().filter_map(named) {
        let lines = program(&format!("{name}.rs")).lines().count();
        assert!(lines <= 110, "{name}: {lines} lines");
    }
}
