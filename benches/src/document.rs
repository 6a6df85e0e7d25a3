//! Parts of a document, between lines such as `<!-- speed -->` and `<!-- /speed -->`.

use std::ops::Range;

/// The name of the part that holds the goals of all benchmarks.
pub(crate) const GOALS: &str = "goals";

/// Where the part of this name is, without its markers.
fn part(document: &str, name: &str) -> Result<Range<usize>, String> {
    let (begin, end) = (format!("<!-- {name} -->"), format!("<!-- /{name} -->"));
    let mut offset = 0;
    let mut from = None;
    for line in document.split_inclusive('\n') {
        let next = offset + line.len();
        match from {
            None if line.trim_end() == begin => from = Some(next),
            Some(from) if line.trim_end() == end => return Ok(from..offset),
            _ => {}
        }
        offset = next;
    }
    let missing = if from.is_none() { &begin } else { &end };
    Err(format!("has no line `{missing}`: put `{begin}` and, below, `{end}` where it should go"))
}

/// The part of this name.
pub(crate) fn get<'a>(document: &'a str, name: &str) -> Result<&'a str, String> {
    part(document, name).map(|range| &document[range])
}

/// The document with another part of this name.
pub(crate) fn replace(document: &str, name: &str, text: &str) -> Result<String, String> {
    let Range { start, end } = part(document, name)?;
    Ok([&document[..start], text, &document[end..]].concat())
}

/// The table of all goals, with these for this benchmark where its old ones were.
pub(crate) fn replace_goals(all: &str, bench: &str, goals: &str) -> String {
    let own = format!("| [{bench}](#{bench}): ");
    let is_other = |row: &String| !row.starts_with(&own);
    let mut rows = all.lines().filter(|line| line.starts_with("| [")).map(str::to_owned);
    let before: Vec<_> = rows.by_ref().take_while(is_other).collect();
    let after: Vec<_> = rows.filter(is_other).collect();
    let mut new = goals.lines();
    let head: Vec<_> = new.by_ref().take(2).map(str::to_owned).collect();
    let new: Vec<_> =
        new.filter_map(|row| row.strip_prefix("| ")).map(|row| own.clone() + row).collect();
    [head, before, new, after].concat().join("\n") + "\n"
}

#[cfg(test)]
mod tests {
    use super::*;

    const DOCUMENT: &str = "As `<!-- speed -->` says\n<!-- speed -->\nold\n<!-- /speed -->\nmore\n";

    #[test]
    fn only_what_is_between_the_markers_is_replaced() {
        assert_eq!(get(DOCUMENT, "speed"), Ok("old\n"));
        let new = replace(DOCUMENT, "speed", "\nnew\n\n").expect("markers");
        let expected = "As `<!-- speed -->` says\n<!-- speed -->\n\nnew\n\n<!-- /speed -->\nmore\n";
        assert_eq!(new, expected);
        assert_eq!(replace(&new, "speed", "old\n"), Ok(DOCUMENT.to_owned()));
    }

    #[test]
    fn a_missing_marker_is_named() {
        let no_part = get(DOCUMENT, "memory").expect_err("no such part");
        assert!(no_part.contains("no line `<!-- memory -->`"), "{no_part}");
        let no_end = get("<!-- /speed -->\n<!-- speed -->\n", "speed").expect_err("no end below");
        assert!(no_end.contains("no line `<!-- /speed -->`"), "{no_end}");
    }

    #[test]
    fn goals_of_others_stay_where_they_are() {
        let head = "| |\n|---|\n";
        let goals =
            |all: &str, bench, rows: &str| replace_goals(all, bench, &[head, rows].concat());
        let all = goals("", "speed", "| 1 |\n| 2 |\n");
        let all = goals(&all, "memory", "| 3 |\n");
        let all = goals(&all, "speed", "| 4 |\n");
        let rows = "| [speed](#speed): 4 |\n| [memory](#memory): 3 |\n";
        assert_eq!(all, [head, rows].concat());
        assert_eq!(goals(&all, "memory", "| 3 |\n"), all);
    }
}
