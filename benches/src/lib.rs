//! Shared parts of the benchmarks: who competes, on what load, and how it is timed and told.
//!
//! The machine's own speed comes and goes, so no time here means anything by itself. All
//! contenders take turns on the same load in the same run, each round in another order, and what
//! counts is the median of the ratios within the rounds.
//!
//! - `timing`: loads, turns and medians; `contenders`: who takes part, on top of that.
//! - `table`, `chart`, `document`, `machine`: text in, text out.
//! - `report`: puts these together, and prints or writes what comes of it; `summary`: the figures of the page
//!   for readers, from all tables.

#![allow(clippy::missing_panics_doc, reason = "a benchmark that fails ends there")]
#![allow(clippy::print_stdout, reason = "the tables are the benchmark's output")]

pub mod apalis;
mod arguments;
mod arrival;
mod chart;
mod contenders;
mod document;
pub mod generator;
mod machine;
pub mod orchestra;
mod others;
mod recorder;
mod report;
mod summary;
mod table;
mod timing;

pub use self::{
    arguments::is_brief,
    chart::Chart,
    contenders::{
        Awaited, Detached, PermitBefore, PermitInside, Reserved, Sets, Tasks, Tracked, Work,
        entrants, names, noop, optional_parts, scheduler, two_yields,
    },
    machine::ran_and_waited,
    others::others,
    report::{Goals, Report, write_summary},
    table::Table,
    timing::{
        BoxedFuture, Contender, Entrant, Flavour, Load, Times, in_turns, median, per_job,
        percentile, run,
    },
};
