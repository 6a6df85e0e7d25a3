//! The counts of this crate as they were when last recorded, so that a change that adds to them
//! does not go unseen.

use std::{collections::BTreeMap, fmt, fs, process::Command};

use crate::{
    LOADS,
    machine::{Counts, Machine},
    ours, pick,
};

const FILE: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/instructions.txt");
const HOW: &str = "cargo bench --package tower-jobs-benches --bench counts -- --record";
/// In percent. Here the counts are always the same; other compilers and versions of tokio make a few
/// percent.
const MARGIN: f64 = 5.0;

/// The counts per job of this crate, by load and contender.
pub(crate) struct Record {
    rustc: String,
    counts: BTreeMap<(String, String), Counts>,
}

impl Record {
    /// Counts all.
    pub(crate) fn of(machine: &mut Machine) -> Self {
        let rustc = Command::new("rustc").arg("--version").output().expect("rustc runs");
        let mut counts = BTreeMap::new();
        for (load, ..) in LOADS {
            for (contender, _) in ours().filter(|(key, _)| pick(load, key, 0).is_some()) {
                let key = (load.to_owned(), (*contender).to_owned());
                counts.insert(key, machine.per_job(load, contender));
            }
        }
        Self { rustc: String::from_utf8_lossy(&rustc.stdout).trim().to_owned(), counts }
    }

    pub(crate) fn write(&self) {
        fs::write(FILE, self.to_string()).unwrap_or_else(|error| panic!("{FILE}: {error}"));
        println!("\n{self}\nrecorded in benches/instructions.txt");
    }

    fn read() -> Self {
        let cure = |wrong: &dyn fmt::Display| -> ! { panic!("{FILE}: {wrong}; record it: {HOW}") };
        let text = fs::read_to_string(FILE).unwrap_or_else(|error| cure(&error));
        let mut record = Self { rustc: String::new(), counts: BTreeMap::new() };
        for line in text.lines().filter(|line| !line.starts_with('#')) {
            match line.split_whitespace().collect::<Vec<_>>()[..] {
                ["rustc", ..] => line.clone_into(&mut record.rustc),
                [load, contender, instructions, atomics] => {
                    let number =
                        |text: &str| text.parse().unwrap_or_else(|_| cure(&format!("`{line}`")));
                    let counts =
                        Counts { instructions: number(instructions), atomics: number(atomics) };
                    record.counts.insert((load.to_owned(), contender.to_owned()), counts);
                }
                _ => cure(&format!("`{line}`")),
            }
        }
        record
    }

    /// Says where the counts differ from the file by more than the margin. Whether they are good
    /// enough.
    pub(crate) fn check(&self) -> bool {
        let recorded = Self::read();
        println!("\n{self}");
        if !self.counts.keys().eq(recorded.counts.keys()) {
            println!("other loads or contenders were recorded; record these: {HOW}");
            return false;
        }
        let (mut worse, mut better) = (false, false);
        for (((load, contender), is), was) in self.counts.iter().zip(recorded.counts.values()) {
            let pairs = [
                ("instructions", was.instructions, is.instructions),
                ("atomics", was.atomics, is.atomics),
            ];
            for (what, was, is) in pairs {
                let more = (is / was - 1.0) * 100.0;
                if more.abs() > MARGIN {
                    println!(
                        "{load}, {contender}: {what} were {was:.1}, are {is:.1}: {more:+.0} %"
                    );
                    worse |= more > 0.0;
                    better |= more < 0.0;
                }
            }
        }
        if (worse || better) && self.rustc != recorded.rustc {
            println!("recorded with {}, now {}", recorded.rustc, self.rustc);
        }
        match (worse, better) {
            (true, _) => println!("a job costs more than was recorded; if it must: {HOW}"),
            (false, true) => println!("a job costs less than was recorded; record it: {HOW}"),
            (false, false) => println!("all within {MARGIN} % of what was recorded"),
        }
        !worse
    }
}

impl fmt::Display for Record {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f, "# Written by: {HOW}")?;
        writeln!(f, "{}", self.rustc)?;
        writeln!(f, "# load     contender  instructions  atomics per job")?;
        for ((load, contender), Counts { instructions, atomics }) in &self.counts {
            writeln!(f, "{load:10} {contender:10} {instructions:12.0} {atomics:8.1}")?;
        }
        Ok(())
    }
}
