//! What a benchmark tells: printed, and with `--write` put into `BENCHMARKS.md`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    arguments::{is_brief, is_write},
    chart::Chart,
    document::{self, GOALS},
    machine,
    table::Table,
};

#[derive(Clone, Copy, Debug)]
enum Sense {
    AtMost,
    AtLeast,
}

#[derive(Debug)]
struct Goal {
    title: String,
    sense: Sense,
    figure: Option<f64>,
    goal: f64,
    far: f64,
}

impl Goal {
    fn verdict(&self) -> &'static str {
        let Some(figure) = self.figure.filter(|figure| !figure.is_nan()) else {
            return "not measured";
        };
        // As it is shown: nobody should have to wonder why 2.00 is not at most 2.00.
        let figure = (figure * 100.0).round() / 100.0;
        let meets = |goal: f64| match self.sense {
            Sense::AtMost => figure <= goal,
            Sense::AtLeast => figure >= goal,
        };
        match () {
            () if meets(self.far) => "far goal met",
            () if meets(self.goal) => "met",
            () => "missed",
        }
    }

    fn cells(&self) -> [String; 5] {
        let sign = match self.sense {
            Sense::AtMost => '≤',
            Sense::AtLeast => '≥',
        };
        let bound = |bound: f64| format!("{sign} {bound:.2}");
        let here = self.figure.map_or_else(|| "–".to_owned(), |figure| format!("{figure:.2}"));
        let verdict = self.verdict().to_owned();
        [self.title.clone(), here, bound(self.goal), bound(self.far), verdict]
    }
}

/// What the figures come to, beside what they should.
#[derive(Debug, Default)]
pub struct Goals(Vec<Goal>);

impl Goals {
    /// Adds a figure, with its goal and its far goal. Less is better.
    pub fn at_most(&mut self, title: impl Into<String>, figure: Option<f64>, goal: f64, far: f64) {
        self.0.push(Goal { title: title.into(), sense: Sense::AtMost, figure, goal, far });
    }

    /// Adds a figure, with its goal and its far goal. More is better.
    pub fn at_least(&mut self, title: impl Into<String>, figure: Option<f64>, goal: f64, far: f64) {
        self.0.push(Goal { title: title.into(), sense: Sense::AtLeast, figure, goal, far });
    }

    fn table(&self) -> Table {
        let mut table = Table::new(["", "here", "goal", "far goal", "verdict"]);
        self.0.iter().for_each(|goal| table.row(goal.cells()));
        table
    }
}

/// What one benchmark has to tell. It is printed as it comes; [`finish`](Self::finish) puts it into
/// `BENCHMARKS.md` as well, and its charts below `benches/charts/`, if `--write` says so.
#[derive(Debug)]
pub struct Report {
    /// The goals, which come last.
    pub goals: Goals,
    bench: &'static str,
    markdown: String,
    charts: Vec<(String, String)>,
}

impl Report {
    /// A report of the benchmark of this name, which is that of its part in `BENCHMARKS.md`.
    /// Panics early if it could not be written at the end.
    pub fn new(bench: &'static str) -> Self {
        let is_refused = is_write() && is_brief();
        assert!(!is_refused, "a brief run is not written: leave out --write, or --test");
        let document = read();
        for part in [bench, GOALS] {
            document::get(&document, part).unwrap_or_else(|problem| fail(&problem));
        }
        println!("\n## {bench}");
        let (goals, markdown, charts) = Default::default();
        let mut report = Self { goals, bench, markdown, charts };
        report.text(&format!("Machine: {}.", machine::line(&workspace())));
        report
    }

    /// Adds a heading.
    pub fn heading(&mut self, title: &str) {
        self.text(&format!("### {title}"));
    }

    /// Adds a paragraph.
    pub fn text(&mut self, paragraph: &str) {
        let paragraph = format!("\n{}\n", paragraph.trim_end());
        print!("{paragraph}");
        self.markdown += &paragraph;
    }

    /// Adds a table.
    pub fn table(&mut self, table: &Table) {
        self.text(&table.to_string());
    }

    /// Adds a chart. The key names its file.
    pub fn chart(&mut self, key: &str, chart: &Chart) {
        let path = format!("{}/{key}.svg", charts(self.bench));
        self.text(&format!("![{}]({path})", chart.title()));
        self.charts.push((path, chart.svg()));
    }

    /// Tells the goals, and writes all of it if `--write` says so.
    pub fn finish(self) {
        let goals = self.goals.table().to_string();
        if !self.goals.0.is_empty() {
            println!("\n### Goals\n\n{goals}");
        }
        if is_write() {
            let document = self.document(&read(), &goals).unwrap_or_else(|problem| fail(&problem));
            self.write(&document).unwrap_or_else(|error| {
                panic!("cannot write {} and its charts: {error}", path().display())
            });
            println!("\nwritten to {}", path().display());
        }
    }

    /// Says what is not in the report, since it cannot be had here. With `--write` that is an error,
    /// as it is of [`skip`](Self::skip).
    pub fn leave_out(&mut self, what: &str, cause: &str) {
        assert!(!is_write(), "{}: cannot be written without {what}: {cause}", self.bench);
        self.text(&format!("Skipped {what}: {cause}"));
    }

    /// Ends a report that cannot be made here. With `--write` that is an error, so that old figures
    /// do not pass for new ones.
    pub fn skip(self, cause: &str) {
        assert!(!is_write(), "{}: cannot be written: {cause}", self.bench);
        println!("\nskipped: {cause}");
    }

    fn document(&self, old: &str, goals: &str) -> Result<String, String> {
        let goals = document::replace_goals(document::get(old, GOALS)?, self.bench, goals);
        let document = document::replace(old, GOALS, &format!("\n{goals}\n"))?;
        document::replace(&document, self.bench, &format!("{}\n", self.markdown))
    }

    fn write(&self, document: &str) -> io::Result<()> {
        let directory = workspace().join(charts(self.bench));
        // Charts that are no more go away.
        match fs::remove_dir_all(&directory) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
            _ => fs::create_dir_all(&directory)?,
        }
        for (path, svg) in &self.charts {
            fs::write(workspace().join(path), svg)?;
        }
        fs::write(path(), document)
    }
}

/// Where a benchmark's charts are, in the workspace.
fn charts(bench: &str) -> String {
    format!("benches/charts/{bench}")
}

fn workspace() -> PathBuf {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    benches.parent().expect("a member of a workspace").to_owned()
}

fn path() -> PathBuf {
    workspace().join("BENCHMARKS.md")
}

fn read() -> String {
    let path = path();
    fs::read_to_string(&path)
        .unwrap_or_else(|error| panic!("cannot read {}: {error}", path.display()))
}

fn fail(problem: &str) -> ! {
    panic!("{} {problem}", path().display())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn verdicts(figure: Option<f64>) -> [&'static str; 2] {
        let mut goals = Goals::default();
        goals.at_most("", figure, 2.0, 1.0);
        goals.at_least("", figure, 2.0, 3.0);
        [goals.0[0].verdict(), goals.0[1].verdict()]
    }

    #[test]
    fn verdicts_know_both_senses() {
        assert_eq!(verdicts(Some(1.0)), ["far goal met", "missed"]);
        assert_eq!(verdicts(Some(2.0)), ["met", "met"]);
        assert_eq!(verdicts(Some(3.0)), ["missed", "far goal met"]);
        assert_eq!(verdicts(Some(1.004)), ["far goal met", "missed"]);
        assert_eq!(verdicts(Some(2.006)), ["missed", "met"]);
        assert_eq!(verdicts(Some(f64::NAN)), ["not measured"; 2]);
        assert_eq!(verdicts(None), ["not measured"; 2]);
    }
}
