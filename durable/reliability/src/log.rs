//! A file to which all processes append their jobs' starts and ends.

use std::{
    collections::BTreeMap,
    fs::{self, OpenOptions},
    io::{self, Write},
    path::{Path, PathBuf},
};

/// The file. One write per line, so that lines of processes do not mix.
#[derive(Clone, Debug)]
pub struct Log(PathBuf);

impl Log {
    /// Names the file.
    pub fn new(path: impl AsRef<Path>) -> Self {
        Self(path.as_ref().to_owned())
    }

    /// Returns the file's path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Appends a line.
    ///
    /// # Panics
    ///
    /// If the file cannot be written.
    pub fn line(&self, what: &str, n: u64) {
        let line = format!("{what} {n} {}\n", std::process::id());
        let append = || -> io::Result<()> {
            OpenOptions::new().create(true).append(true).open(&self.0)?.write_all(line.as_bytes())
        };
        append().expect("the log can be written");
    }

    /// Counts the lines with this word, by number.
    pub fn counts(&self, what: &str) -> BTreeMap<u64, usize> {
        let mut counts = BTreeMap::new();
        for (seen, n, _) in self.lines() {
            if seen == what {
                *counts.entry(n).or_default() += 1;
            }
        }
        counts
    }

    /// Returns all lines: word, number, process.
    ///
    /// # Panics
    ///
    /// If a line is not one of ours.
    pub fn lines(&self) -> Vec<(String, u64, u32)> {
        let text = fs::read_to_string(&self.0).unwrap_or_default();
        let parse = |line: &str| {
            let mut words = line.split(' ');
            Some((
                words.next()?.to_owned(),
                words.next()?.parse().ok()?,
                words.next()?.parse().ok()?,
            ))
        };
        text.lines().map(|line| parse(line).expect("a line of ours")).collect()
    }
}
