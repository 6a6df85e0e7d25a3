//! The rooms of `src`: each imports only from the rooms before it in [`ROOMS`].

use std::{
    fs,
    path::{Path, PathBuf},
};

/// From the bottom to the top.
const ROOMS: [&str; 9] =
    ["util", "rules", "job", "report", "run", "scheduler", "http", "shutdown", "testing"];

/// The modules that the code reaches through `crate::` or `super::`, as seen from the module `path`.
fn reached(code: &str, path: &[String]) -> Vec<String> {
    let mut reached = Vec::new();
    for (at, _) in code.match_indices("crate::") {
        if !code[..at].ends_with('$') {
            first_segments(&code[at + "crate::".len()..], &mut reached);
        }
    }
    for (at, _) in code.match_indices("super::") {
        if code[..at].ends_with("super::") {
            continue;
        }
        let rest = code[at..].trim_start_matches("super::");
        let supers = (code[at..].len() - rest.len()) / "super::".len();
        if supers >= path.len() {
            first_segments(rest, &mut reached);
        }
    }
    reached
}

/// The first segment of a path, or of each path in a group.
fn first_segments(code: &str, segments: &mut Vec<String>) {
    let Some(group) = code.strip_prefix('{') else {
        let end = code.find(|c: char| !(c.is_alphanumeric() || c == '_')).unwrap_or(code.len());
        segments.push(code[..end].to_owned());
        return;
    };
    let mut depth = 0;
    let mut start = 0;
    for (at, c) in group.char_indices() {
        match c {
            '{' => depth += 1,
            '}' | ',' if depth == 0 => {
                let path = group[start..at].trim();
                if !path.is_empty() {
                    first_segments(path, segments);
                }
                start = at + 1;
                if c == '}' {
                    return;
                }
            }
            '}' => depth -= 1,
            _ => {}
        }
    }
}

/// The code of a file without comments and unit tests.
fn code_of(file: &Path) -> String {
    let text = fs::read_to_string(file).expect("a source file");
    let code = text.split("#[cfg(test)]\nmod ").next().unwrap_or_default();
    let code = code.split("#[cfg(all(test, ").next().unwrap_or_default();
    let lines = code.lines().map(|line| line.split("//").next().unwrap_or_default());
    lines.collect::<Vec<_>>().join("\n")
}

fn files(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        if path.is_dir() && !path.ends_with("tests") {
            files(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.push(path);
        }
    }
}

fn uphill(room: &str, path: &[String], code: &str) -> Vec<String> {
    let height = |room: &str| ROOMS.iter().position(|other| *other == room);
    let own = height(room).expect("a room");
    let is_uphill = |other: &String| height(other).is_none_or(|other| other > own);
    reached(code, path).into_iter().filter(is_uphill).collect()
}

#[test]
fn each_room_imports_only_from_rooms_below() {
    let src = Path::new(env!("CARGO_MANIFEST_DIR")).join("src");
    let mut all = Vec::new();
    files(&src, &mut all);
    let mut faults = Vec::new();
    for file in all {
        let relative = file.strip_prefix(&src).expect("below src").with_extension("");
        let mut path: Vec<String> =
            relative.iter().map(|part| part.to_string_lossy().into_owned()).collect();
        if path.last().is_some_and(|last| last == "mod") {
            path.pop();
        }
        let room = path[0].clone();
        if room == "lib" || room == "docs" || file.ends_with("tests.rs") {
            continue;
        }
        for module in uphill(&room, &path, &code_of(&file)) {
            faults.push(format!("{} imports from `{module}`", file.display()));
        }
    }
    assert!(faults.is_empty(), "these point uphill:\n{}", faults.join("\n"));
}

#[test]
fn uphill_imports_are_found_in_all_forms() {
    let path = ["run".to_owned(), "core".to_owned()];
    let uphill = |code: &str| uphill("run", &path, code);
    assert!(uphill("use crate::job::record::Record; use super::close::Close;").is_empty());
    assert!(uphill("use crate::{job::{a, b::{c, d}}, util::sync};").is_empty());
    assert_eq!(uphill("use crate::{job::{a, b::{c}}, http::{x, y}, util::z};"), ["http"]);
    assert_eq!(uphill("let x = crate::scheduler::Scheduler::new();"), ["scheduler"]);
    assert_eq!(uphill("use super::super::shutdown::Shutdown;"), ["shutdown"]);
    assert_eq!(uphill("use crate::{Scheduler, job::a};"), ["Scheduler"]);
    assert!(uphill("macro_rules! m { () => { $crate::Scheduler } }").is_empty());
}
