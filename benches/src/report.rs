//! What a benchmark tells: printed, and with `--write` put into `benches/RESULTS.md`, whose most telling
//! figures are repeated in `BENCHMARKS.md`.

use std::{
    fs, io,
    path::{Path, PathBuf},
};

use crate::{
    arguments::{is_brief, is_write},
    chart::{Chart, Theme},
    document::{self, GOALS},
    machine,
    summary::{SUMMARY, Summary},
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
/// `benches/RESULTS.md` as well, and its charts below `benches/charts/`, if `--write` says so.
#[derive(Debug)]
pub struct Report {
    /// The goals, which come last.
    pub goals: Goals,
    bench: &'static str,
    markdown: String,
    charts: Vec<(String, String)>,
}

impl Report {
    /// A report of the benchmark of this name, which is that of its part in `benches/RESULTS.md`.
    /// Panics early if it could not be written at the end.
    pub fn new(bench: &'static str) -> Self {
        let is_refused = is_write() && is_brief();
        assert!(!is_refused, "a brief run is not written: leave out --write, or --test");
        for (path, part) in [(results(), bench), (results(), GOALS), (page(), SUMMARY)] {
            document::get(&read(&path), part).unwrap_or_else(|problem| fail(&path, &problem));
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
        self.text(&format!("![{}](charts/{}/{key}.svg)", chart.title(), self.bench));
        self.charts.push((format!("{key}.svg"), chart.svg(Theme::LIGHT)));
    }

    /// Tells the goals, and writes all of it if `--write` says so.
    pub fn finish(self) {
        let goals = self.goals.table().to_string();
        if !self.goals.0.is_empty() {
            println!("\n### Goals\n\n{goals}");
        }
        if is_write() {
            let path = results();
            let document = self.document(&read(&path), &goals);
            let document = document.unwrap_or_else(|problem| fail(&path, &problem));
            write_charts(self.bench, &self.charts);
            write(&path, &document);
            println!("\nwritten to {}", path.display());
            write_summary();
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
}

/// Writes the summary in `BENCHMARKS.md`, and its charts, from the tables in `benches/RESULTS.md`.
pub fn write_summary() {
    let summary = Summary::of(&read(&results())).unwrap_or_else(|fault| fail(&results(), &fault));
    let page_then = document::replace(&read(&page()), SUMMARY, &summary.markdown);
    let page_then = page_then.unwrap_or_else(|problem| fail(&page(), &problem));
    write_charts(SUMMARY, &summary_charts(&summary));
    write(&page(), &page_then);
    println!("written to {}", page().display());
}

/// The files of the summary's charts: for a light page, and for a dark one.
fn summary_charts(summary: &Summary) -> Vec<(String, String)> {
    let themes = [("", Theme::LIGHT), ("-dark", Theme::DARK)];
    let files = summary.charts.iter().flat_map(|(key, chart)| {
        themes.map(|(suffix, theme)| (format!("{key}{suffix}.svg"), chart.svg(theme)))
    });
    files.collect()
}

/// Replaces the charts of a benchmark, or of the summary. Those that are no more go away.
fn write_charts(name: &str, charts: &[(String, String)]) {
    let directory = chart_folder(name);
    match fs::remove_dir_all(&directory) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            cannot("remove", &directory, &error)
        }
        _ => fs::create_dir_all(&directory)
            .unwrap_or_else(|error| cannot("make", &directory, &error)),
    }
    for (file, svg) in charts {
        write(&directory.join(file), svg);
    }
}

fn chart_folder(name: &str) -> PathBuf {
    workspace().join("benches/charts").join(name)
}

fn workspace() -> PathBuf {
    let benches = Path::new(env!("CARGO_MANIFEST_DIR"));
    benches.parent().expect("a member of a workspace").to_owned()
}

/// All tables.
fn results() -> PathBuf {
    workspace().join("benches/RESULTS.md")
}

/// The page for readers.
fn page() -> PathBuf {
    workspace().join("BENCHMARKS.md")
}

fn read(path: &Path) -> String {
    fs::read_to_string(path).unwrap_or_else(|error| cannot("read", path, &error))
}

fn write(path: &Path, text: &str) {
    fs::write(path, text).unwrap_or_else(|error| cannot("write", path, &error));
}

fn cannot(act: &str, path: &Path, error: &io::Error) -> ! {
    panic!("cannot {act} {}: {error}", path.display())
}

fn fail(path: &Path, problem: &str) -> ! {
    panic!("{} {problem}", path.display())
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

    /// The remedy is `cargo run -p tower-jobs-benches --example summary`.
    #[test]
    fn page_has_the_six_rows_and_charts_of_the_results() {
        let summary = Summary::of(&read(&results())).expect("all figures");
        let page = read(&page());
        assert_eq!(document::get(&page, SUMMARY), Ok(summary.markdown.as_str()));
        assert_eq!(page.lines().filter(|line| line.starts_with("| [")).count(), 6);
        let charts = summary_charts(&summary);
        assert_eq!(charts.len(), 4, "two charts, light and dark");
        for (file, svg) in charts {
            assert_eq!(read(&chart_folder(SUMMARY).join(&file)), svg, "{file}");
        }
    }
}
