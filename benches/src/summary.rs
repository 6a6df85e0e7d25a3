//! The figures of the page `BENCHMARKS.md`, all taken from the tables of `benches/RESULTS.md`.

use crate::{
    chart::{Chart, grouped},
    document,
    table::Table,
};

/// The name of the page's part, and of the folder of its charts.
pub(crate) const SUMMARY: &str = "summary";

/// A column of a table of the results.
#[derive(Clone, Copy)]
struct Column {
    part: &'static str,
    heading: &'static str,
    name: &'static str,
}

/// A row of the page, and where its cells are in a column of the results.
struct Row {
    title: &'static str,
    from: Column,
    contenders: [Option<&'static str>; 3],
}

const CONTENDERS: [&str; 3] = ["tower-jobs", "`TaskTracker` + `Semaphore`", "`tokio::spawn`"];

const ROUTE: Column = Column {
    part: "http",
    heading: "A route beside 1 M jobs, 4000 requests/s, multi-thread",
    name: "p99 µs",
};
const IDLE: &str = "idle";
const BESIDE: [Option<&str>; 3] = [
    Some("**tower-jobs**, no-op"),
    Some("`TaskTracker` + `Semaphore`, no-op"),
    Some("`tokio::spawn`, no-op"),
];

const MILLION: Column = Column {
    part: "speed",
    heading: "No-op, backlog of 1 M behind limit 100, multi-thread",
    name: "ns per job",
};
const SPAWNED: [Option<&str>; 3] = [
    Some("**tower-jobs**, detached"),
    Some("`TaskTracker` + `Semaphore`, acquired inside"),
    Some("`tokio::spawn` + await"),
];

const ROWS: [Row; 6] = [
    Row {
        title: "p99 of a route beside a backlog of 1 M jobs, µs",
        from: ROUTE,
        contenders: BESIDE,
    },
    Row {
        title: "first turn of a task beside 25 000 jobs that compute for 20 µs each, µs",
        from: Column {
            part: "fairness",
            heading: "Beside 25 000 jobs that compute for 20 µs, a task that yields, multi-thread",
            name: "first wait, µs",
        },
        contenders: [SPAWNED[0], SPAWNED[1], Some("`tokio::spawn`")],
    },
    Row { title: "time per job, backlog of 1 M, ns", from: MILLION, contenders: SPAWNED },
    Row {
        title: "time per job, fewer jobs than the limit, ns",
        from: Column {
            part: "speed",
            heading: "No-op, below the limit: 50 at a time, limit 100, multi-thread",
            name: "ns per job",
        },
        contenders: SPAWNED,
    },
    Row {
        title: "memory per waiting job, bytes",
        from: Column {
            part: "memory",
            heading: "100000 waiting no-op jobs",
            name: "bytes per waiting job",
        },
        contenders: SPAWNED,
    },
    Row {
        title: "requests/s at full load, each with a job; more is better",
        from: Column {
            part: "http",
            heading: "Requests, 16 connections, multi-thread",
            name: "requests/s",
        },
        contenders: [
            Some("**the layer**, a job in the handler"),
            None,
            Some("no layer, `tokio::spawn` in the handler"),
        ],
    },
];

/// What the generator puts into the page, and the charts for it.
pub(crate) struct Summary {
    pub(crate) markdown: String,
    pub(crate) charts: [(&'static str, Chart); 2],
}

impl Summary {
    pub(crate) fn of(results: &str) -> Result<Self, String> {
        let mut table = Table::new([""].into_iter().chain(CONTENDERS));
        for row in &ROWS {
            table.row(row.cells(results)?);
        }
        let charts = [("route", route(results)?), ("million", million(results)?)];
        let mut markdown = format!("\n{}\n\n{table}\n", headline(results)?);
        for machine in machines(results)? {
            markdown += &format!("{machine}\n");
        }
        for (key, chart) in &charts {
            markdown += &picture(key, chart.title());
        }
        Ok(Self { markdown: markdown + "\n", charts })
    }
}

impl Row {
    fn cells(&self, results: &str) -> Result<Vec<String>, String> {
        let mut cells = vec![format!("[{}](benches/RESULTS.md#{})", self.title, self.from.part)];
        for contender in self.contenders {
            cells.push(match contender {
                Some(row) => grouped(self.from.cell(results, row)?),
                None => "–".to_owned(),
            });
        }
        Ok(cells)
    }
}

impl Column {
    /// The text of the cell in this row.
    fn cell<'a>(self, results: &'a str, row: &str) -> Result<&'a str, String> {
        let Self { part, heading, name } = self;
        let title = format!("### {heading}");
        let missing = |thing: &str| Err(format!("has no {thing} in part `{part}`"));
        let mut lines = document::get(results, part)?.lines().skip_while(|line| *line != title);
        if lines.next().is_none() {
            return missing(&format!("line `{title}`"));
        }
        let lines = lines.take_while(|line| !line.starts_with('#'));
        let lines = lines.skip_while(|line| !line.starts_with('|'));
        let mut rows = lines.take_while(|line| line.starts_with('|')).map(cells);
        let head = rows.next().unwrap_or_default();
        let Some(at) = head.iter().position(|column| *column == name) else {
            return missing(&format!("column `{name}` below `{title}`"));
        };
        match rows.find(|cells| cells[0] == row) {
            Some(cells) => Ok(cells[at]),
            None => missing(&format!("row `{row}` below `{title}`")),
        }
    }

    fn figure(self, results: &str, row: &str) -> Result<f64, String> {
        let cell = self.cell(results, row)?;
        cell.parse().map_err(|_| format!("has no figure of `{row}`, but `{cell}`"))
    }

    /// A chart of these rows.
    fn chart(
        self,
        results: &str,
        title: &str,
        unit: String,
        rows: &[&'static str],
    ) -> Result<Chart, String> {
        let bar = |row: &&'static str| Ok((*row, self.figure(results, row)?));
        let bars: Vec<_> = rows.iter().map(bar).collect::<Result<_, String>>()?;
        Ok(Chart::bars(title, unit, bars))
    }
}

fn cells(row: &str) -> Vec<&str> {
    row.trim_start_matches('|').trim_end_matches('|').split(" | ").map(str::trim).collect()
}

fn headline(results: &str) -> Result<String, String> {
    let p99 = |row| ROUTE.figure(results, row).map(spoken);
    let [ours, permits, tasks] = BESIDE.map(Option::unwrap_or_default);
    Ok(format!(
        "**While a million jobs wait, 99 of 100 requests to another route are answered within {} with \
         tower-jobs,\nwithin {} with `TaskTracker` + `Semaphore`, and within {} with `tokio::spawn`.** \
         Without any job it is {}.",
        p99(ours)?,
        p99(permits)?,
        p99(tasks)?,
        p99(IDLE)?
    ))
}

/// Microseconds in words, to two digits.
fn spoken(micros: f64) -> String {
    let (value, unit) = if micros < 1e6 { (micros / 1e3, "ms") } else { (micros / 1e6, "s") };
    let decimals = match value {
        value if value < 1.0 => 2,
        value if value < 10.0 => 1,
        _ => 0,
    };
    format!("{value:.decimals$} {unit}")
}

fn route(results: &str) -> Result<Chart, String> {
    let [ours, permits, tasks] = BESIDE.map(Option::unwrap_or_default);
    let left_out = grouped(ROUTE.cell(results, tasks)?);
    let title = "p99 of a route beside 1 M jobs, two workers";
    let unit = format!("µs, less is better; tokio::spawn, {left_out} µs, is in the table alone");
    ROUTE.chart(results, title, unit, &[IDLE, ours, permits])
}

fn million(results: &str) -> Result<Chart, String> {
    let [ours, permits, tasks] = SPAWNED.map(Option::unwrap_or_default);
    let title = "Time per job, backlog of 1 M, two workers";
    let unit = "ns per job, less is better".to_owned();
    MILLION.chart(results, title, unit, &[ours, permits, tasks, "`JoinSet`", "`TaskTracker`"])
}

/// The machines that the figures come from, each once.
fn machines(results: &str) -> Result<Vec<&str>, String> {
    let mut machines = Vec::new();
    for row in &ROWS {
        let part = document::get(results, row.from.part)?;
        let machine = part.lines().find(|line| line.starts_with("Machine: "));
        if let Some(machine) = machine.filter(|machine| !machines.contains(machine)) {
            machines.push(machine);
        }
    }
    Ok(machines)
}

fn picture(key: &str, title: &str) -> String {
    let path = format!("benches/charts/{SUMMARY}/{key}");
    format!(
        "\n<picture>\n  <source media=\"(prefers-color-scheme: dark)\" srcset=\"{path}-dark.svg\">\n  \
         <img alt=\"{title}\" src=\"{path}.svg\">\n</picture>\n"
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    const RESULTS: &str = "<!-- speed -->\n\n### First\n\nText.\n\n|  | ns | of it |\n|---|---:|---:|\n\
        | **ours** | 12 | 1.00 |\n\n### Second\n\n|  | ns |\n|---|---:|\n| theirs | 34 |\n<!-- /speed -->\n";

    fn cell(heading: &'static str, name: &'static str, row: &str) -> Result<String, String> {
        Column { part: "speed", heading, name }.cell(RESULTS, row).map(str::to_owned)
    }

    #[test]
    fn cell_is_found_by_heading_column_and_row() {
        assert_eq!(cell("First", "ns", "**ours**"), Ok("12".to_owned()));
        assert_eq!(cell("First", "of it", "**ours**"), Ok("1.00".to_owned()));
        assert_eq!(cell("Second", "ns", "theirs"), Ok("34".to_owned()));
    }

    #[test]
    fn missing_cell_is_named_and_none_of_another_table() {
        let fault = |heading, name, row| cell(heading, name, row).expect_err("no such cell");
        assert!(fault("Third", "ns", "theirs").contains("no line `### Third`"));
        assert!(fault("Second", "of it", "theirs").contains("no column `of it`"));
        assert!(fault("First", "ns", "theirs").contains("no row `theirs`"));
    }

    #[test]
    fn durations_have_two_digits() {
        let spoken = [102.0, 7534.0, 32_811.0, 1_327_003.0].map(spoken);
        assert_eq!(spoken, ["0.10 ms", "7.5 ms", "33 ms", "1.3 s"]);
    }
}
