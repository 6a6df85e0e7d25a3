//! The comparison of the log, the report and the exit code with the orders of the clients.

use std::{collections::BTreeSet, fs, path::Path};

use serde_json::Value;

use super::clients::Orders;
use crate::support::process::Ended;

/// The log of the program, by job id.
#[derive(Debug, Default)]
pub(super) struct Log {
    started: BTreeSet<String>,
    ended: BTreeSet<String>,
    unstarted: BTreeSet<String>,
    twice: Vec<String>,
}

impl Log {
    pub(super) fn read(path: &Path) -> Self {
        let mut log = Self::default();
        let text = fs::read_to_string(path).unwrap_or_default();
        // The last line of a program that still runs may not be whole.
        let whole = text.rfind('\n').map_or("", |end| &text[..end]);
        for line in whole.lines() {
            let (event, id) = line.split_once(' ').unwrap();
            let ids = match event {
                "start" => &mut log.started,
                "end" => &mut log.ended,
                "unstarted" => &mut log.unstarted,
                _ => panic!("{line:?} in the log"),
            };
            if !ids.insert(id.to_owned()) {
                log.twice.push(format!("{line:?} twice in the log"));
            }
        }
        log
    }

    /// Whether a job that had started here has not ended in the `later` log.
    pub(super) fn runs_until(&self, later: &Self) -> bool {
        self.started.iter().any(|id| !later.ended.contains(id))
    }
}

/// The contradictions of a round.
#[derive(Debug, Default)]
pub(super) struct Findings {
    pub(super) lost: Vec<String>,
    pub(super) twice: Vec<String>,
    pub(super) misnamed: Vec<String>,
}

impl Findings {
    pub(super) fn is_empty(&self) -> bool {
        self.lost.is_empty() && self.twice.is_empty() && self.misnamed.is_empty()
    }
}

fn unless(is_so: bool, findings: &mut Vec<String>, text: impl FnOnce() -> String) {
    if !is_so {
        findings.push(text());
    }
}

/// The last line of the output.
pub(super) fn printed(ended: &Ended) -> Value {
    let line = ended.stdout.lines().last().expect("it prints a report");
    serde_json::from_str(line).unwrap_or_else(|error| panic!("{error}: {ended:#?}"))
}

fn has_failed(report: &Value) -> bool {
    let jobs = report["jobs"].as_object().unwrap();
    jobs.values().any(|value| value.as_array().is_some_and(|jobs| !jobs.is_empty()))
        || !(report["server"] == "finished" || report["server"] == "not started")
}

const OUTCOMES: [&str; 6] =
    ["failed", "panicked", "timed_out", "cancelled", "never_started", "abandoned"];

pub(super) fn check(ended: &Ended, log: Log, orders: &Orders) -> Findings {
    let printed = printed(ended);
    let (report, stats) = (&printed["report"], &printed["stats"]);
    let Findings { mut lost, mut twice, mut misnamed } = Findings::default();
    twice.extend(log.twice);
    let mut bad = BTreeSet::new();
    let [failed, panicked, timed_out, cancelled, never_started, abandoned] =
        OUTCOMES.map(|outcome| -> BTreeSet<String> {
            let jobs = report["jobs"][outcome].as_array().unwrap();
            let names = jobs.iter().map(|job| job["name"].as_str().unwrap().to_owned());
            for name in names.clone() {
                unless(bad.insert(name.clone()), &mut twice, || {
                    format!("{name} twice in the report")
                });
            }
            names.collect()
        });
    let count = |name: &str| usize::try_from(stats[name].as_u64().unwrap()).unwrap();
    let kind = |id: &String| {
        let is_child = id.ends_with("/child");
        orders.kinds.get(id).copied().unwrap_or(if is_child { "work" } else { "not ordered" })
    };

    // Not one acknowledged job is lost.
    for id in &orders.acknowledged {
        let has_ended = log.ended.contains(id) || kind(id) == "overdue";
        let has_run = log.started.contains(id) && has_ended;
        unless(has_run || bad.contains(id), &mut lost, || format!("{id} is lost"));
    }
    // No job is left, and every accepted one is in the log or in the report.
    for gauge in ["deferred", "pending", "active", "skipped"] {
        unless(count(gauge) == 0, &mut lost, || format!("{gauge}: {}", stats[gauge]));
    }
    let known: BTreeSet<_> = log.started.union(&bad).collect();
    let (accepted, named) = (count("accepted"), known.len());
    unless(accepted <= named, &mut lost, || format!("{accepted} accepted, {named} named"));
    unless(accepted >= named, &mut twice, || format!("{accepted} accepted, {named} named"));
    let total = OUTCOMES.map(count).iter().sum::<usize>() + count("completed");
    unless(total == named, &mut misnamed, || format!("{total} outcomes of {named} jobs"));
    for id in known {
        unless(kind(id) != "not ordered", &mut misnamed, || format!("{id} was not ordered"));
    }

    // The report agrees with the log, name by name.
    let is_cut_short = report["unfinished_hooks"]["on_unstarted"] == true;
    let is_told =
        never_started == log.unstarted || is_cut_short && log.unstarted.is_subset(&never_started);
    unless(is_told, &mut misnamed, || {
        format!("on_unstarted got {:?}, the report has {never_started:?}", log.unstarted)
    });
    for id in &log.started {
        let has_ended = log.ended.contains(id);
        let is_right = if never_started.contains(id) {
            false
        } else if abandoned.contains(id) {
            // It may have ended later.
            true
        } else if timed_out.contains(id) && kind(id) == "overdue" {
            // It may have returned too late, which is a timeout too.
            true
        } else if cancelled.contains(id) || timed_out.contains(id) {
            !has_ended
        } else {
            // A run timeout before the signal is not in the report.
            has_ended || kind(id) == "overdue" || failed.contains(id) && kind(id) == "spawning"
        };
        unless(is_right, &mut misnamed, || {
            let outcome = OUTCOMES.into_iter().find(|outcome| {
                let jobs = report["jobs"][outcome].as_array().unwrap();
                jobs.iter().any(|job| job["name"] == **id)
            });
            format!("{id} has started, has ended: {has_ended}, is {outcome:?} in the report")
        });
    }
    for (outcome, jobs, kinds) in [
        ("failed", &failed, &["failing", "late_failing"][..]),
        ("panicked", &panicked, &["panicking"][..]),
    ] {
        let refused = jobs.iter().filter(|id| kind(id) == "spawning").count();
        for id in jobs {
            let fits = kinds.contains(&kind(id)) || outcome == "failed" && kind(id) == "spawning";
            unless(fits, &mut misnamed, || format!("{id} is {}, and {outcome}", kind(id)));
        }
        let is_such = |id: &&String| kinds.contains(&kind(id)) && !abandoned.contains(*id);
        let expected = log.ended.iter().filter(is_such).count() + refused;
        let counted = count(outcome);
        unless(counted == expected, &mut misnamed, || {
            format!("{outcome}: {counted} counted, {expected} expected")
        });
    }
    let (code, expected) = (ended.code, i32::from(has_failed(report)));
    unless(code == Some(expected), &mut misnamed, || format!("exit code {code:?}: {report}"));
    Findings { lost, twice, misnamed }
}

pub(super) fn summary(printed: &Value) -> String {
    let mut words = vec![format!("server {}", printed["report"]["server"])];
    for (name, value) in printed["report"]["jobs"].as_object().unwrap() {
        match value {
            Value::Array(jobs) if !jobs.is_empty() => words.push(format!("{name} {}", jobs.len())),
            Value::Number(number) => words.push(format!("{name} {number}")),
            _ => {}
        }
    }
    words.join(", ")
}
