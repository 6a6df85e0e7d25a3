//! The bounded state of one scheduler's page: plain synchronous types.

pub(crate) mod failures;
pub(crate) mod histogram;
pub(crate) mod names;
pub(crate) mod series;

use std::time::Duration;

use serde::Serialize;

use crate::{
    clock::moment,
    state::{failures::Failures, names::Names, series::Series},
};

/// All that the page keeps of one scheduler: below 1 MB.
#[derive(Debug)]
pub(crate) struct State {
    pub(crate) names: Names,
    pub(crate) failures: Failures,
    pub(crate) series: Series,
    pub(crate) marks: Vec<Mark>,
    pub(crate) first_second: u64,
}

/// A moment that the charts mark.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub(crate) struct Mark {
    pub(crate) at: f64,
    pub(crate) kind: &'static str,
}

impl State {
    pub(crate) fn new(now: Duration) -> Self {
        let mut state = Self {
            names: Names::default(),
            failures: Failures::default(),
            series: Series::new(now.as_secs()),
            marks: Vec::new(),
            first_second: now.as_secs(),
        };
        state.mark("start", now);
        state
    }

    /// Marks a moment; the first one of a kind counts.
    pub(crate) fn mark(&mut self, kind: &'static str, now: Duration) {
        if !self.marks.iter().any(|mark| mark.kind == kind) {
            self.marks.push(Mark { at: moment(now), kind });
        }
    }
}
