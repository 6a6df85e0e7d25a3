//! The links of all Markdown files in the repository: each leads to a file, a folder or a heading.
//!
//! Links to the web are not followed. Links to items are checked by rustdoc.

use std::{
    fs,
    path::{Path, PathBuf},
};

#[derive(Debug, PartialEq)]
struct Link {
    line: usize,
    target: String,
}

/// The lines that are not in a fenced block, without code, and their numbers.
fn prose(markdown: &str) -> impl Iterator<Item = (usize, String)> {
    let mut fenced = false;
    markdown.lines().enumerate().filter_map(move |(number, line)| {
        if line.trim_start().starts_with("```") {
            fenced = !fenced;
            return None;
        }
        let code = |part: usize| part % 2 == 1;
        let parts = line.split('`').enumerate().filter(|(part, _)| !code(*part));
        (!fenced).then(|| (number + 1, parts.map(|(_, text)| text).collect()))
    })
}

fn links(markdown: &str) -> Vec<Link> {
    let mut links = Vec::new();
    for (line, text) in prose(markdown) {
        let mut add = |rest: &str, end: &[char]| {
            let target = rest.split(end).next().unwrap_or_default().trim_matches(['<', '>']);
            links.push(Link { line, target: target.to_owned() });
        };
        if let Some((_, rest)) = text.split_once("]: ").filter(|_| text.starts_with('[')) {
            add(rest, &[' ']);
        }
        for (at, _) in text.match_indices("](") {
            add(&text[at + 2..], &[')', ' ']);
        }
        for attribute in ["src=\"", "srcset=\"", "href=\""] {
            for (at, _) in text.match_indices(attribute) {
                add(&text[at + attribute.len()..], &['"', ' ']);
            }
        }
    }
    links
}

/// The anchors that GitHub and rustdoc make of the headings.
fn anchors(markdown: &str) -> Vec<String> {
    let mut fenced = false;
    let lines = markdown.lines().filter(|line| {
        let fence = line.trim_start().starts_with("```");
        fenced ^= fence;
        !fenced && !fence
    });
    let headings = lines.filter_map(|line| {
        line.trim_start_matches('#').strip_prefix(' ').filter(|_| line.starts_with('#'))
    });
    headings.map(anchor).collect()
}

fn anchor(heading: &str) -> String {
    let kept = |c: &char| c.is_alphanumeric() || " -_".contains(*c);
    heading.trim().chars().filter(kept).collect::<String>().to_lowercase().replace(' ', "-")
}

/// The fault of a link in a document, if it has one.
fn fault(root: &Path, document: &Path, markdown: &str, target: &str) -> Option<String> {
    let is_item = target.contains("::") && !target.contains('/');
    if target.contains("://") || target.starts_with("mailto:") || is_item {
        return None;
    }
    let (path, heading) = target.split_once('#').unwrap_or((target, ""));
    let file = document.parent().expect("a folder").join(path);
    let other = match path {
        "" => Some(markdown.to_owned()),
        _ => match file.canonicalize() {
            Ok(file) if !file.starts_with(root) => {
                return Some("is outside the repository".to_owned());
            }
            Ok(file) => fs::read_to_string(file).ok(),
            Err(error) => return Some(error.to_string()),
        },
    };
    let is_there = heading.is_empty()
        || other.is_some_and(|other| anchors(&other).iter().any(|anchor| anchor == heading));
    (!is_there).then(|| "has no such heading".to_owned())
}

fn documents(folder: &Path, found: &mut Vec<PathBuf>) {
    for entry in fs::read_dir(folder).expect("a folder") {
        let path = entry.expect("an entry").path();
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let is_ours = !name.starts_with('.') && name != "target" && name != "node_modules";
        if path.is_dir() && is_ours {
            documents(&path, found);
        } else if path.extension().is_some_and(|extension| extension == "md") {
            found.push(path);
        }
    }
}

#[test]
fn links_of_all_documents_lead_to_files_and_headings() {
    let root = Path::new(env!("CARGO_MANIFEST_DIR")).canonicalize().expect("the repository");
    let mut all = Vec::new();
    documents(&root, &mut all);
    assert!(all.contains(&root.join("README.md")), "{all:?}");
    let mut faults = Vec::new();
    for document in all {
        let markdown = fs::read_to_string(&document).expect("text");
        for Link { line, target } in links(&markdown) {
            if let Some(fault) = fault(&root, &document, &markdown, &target) {
                faults.push(format!("{}:{line}: {target}: {fault}", document.display()));
            }
        }
    }
    assert!(faults.is_empty(), "dead links:\n{}", faults.join("\n"));
}

/// rustdoc renders these pages elsewhere, so a path would be dead there. A definition in `mod.rs`, before
/// the page, replaces it.
#[test]
fn pages_of_rustdoc_link_to_files_by_definitions_alone() {
    let docs = Path::new(env!("CARGO_MANIFEST_DIR")).join("src/docs");
    let definitions = fs::read_to_string(docs.join("mod.rs")).expect("source");
    let mut all = Vec::new();
    documents(&docs, &mut all);
    for page in all {
        let markdown = fs::read_to_string(&page).expect("text");
        let lines: Vec<&str> = markdown.lines().collect();
        for Link { line, target } in links(&markdown) {
            let is_path = !target.contains(':') && !target.starts_with('#');
            let label = lines[line - 1].split_once("]: ").map_or("", |(label, _)| label);
            let is_replaced = !label.is_empty() && definitions.contains(&format!("\"{label}]: "));
            assert!(!is_path || is_replaced, "{}:{line}: {target}", page.display());
        }
    }
}

#[test]
fn links_are_found_in_all_forms_but_not_in_code() {
    let markdown = "[`a`](b.md) and ![c](d.svg \"title\")\n[e f]: g.md#h\n<img src=\"i.svg\">\n\
        <source srcset=\"j.svg 2x\">\n`[k](l.md)`\n```\n[m](n.md)\n```\n[o][e f]\n";
    let found = links(markdown).into_iter().map(|link| (link.line, link.target));
    let expected = [(1, "b.md"), (1, "d.svg"), (2, "g.md#h"), (3, "i.svg"), (4, "j.svg")];
    assert!(found.eq(expected.map(|(line, target)| (line, target.to_owned()))));
}

#[test]
fn anchors_are_those_of_headings_outside_code() {
    let markdown =
        "# Retry, with backoff\n```sh\n# a comment\n```\n## `Job` and other_names\n#no heading\n";
    assert_eq!(anchors(markdown), ["retry-with-backoff", "job-and-other_names"]);
}
