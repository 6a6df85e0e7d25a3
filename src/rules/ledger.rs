//! Counts of all jobs, the owners of unique keys, and the jobs that the drain report will name.

use std::{collections::BTreeMap, sync::Arc};

use crate::rules::{
    state::{Outcome, Phase},
    step::JobMeta,
    table::RowIndex,
};

/// Counts at one moment: the jobs accepted so far, and the jobs ended so far by outcome.
#[derive(Clone, Copy, Debug, Default)]
#[repr(C)]
pub(crate) struct Totals {
    pub(crate) accepted: u64,
    pub(super) outcomes: [u64; Outcome::COUNT],
}

impl Totals {
    pub(crate) fn of(&self, outcome: Outcome) -> u64 {
        self.outcomes[outcome as usize]
    }

    pub(crate) fn since(mut self, before: &Self) -> Self {
        self.accepted -= before.accepted;
        for (now, before) in self.outcomes.iter_mut().zip(before.outcomes) {
            *now -= before;
        }
        self
    }

    pub(super) fn count(&mut self, outcome: Outcome) {
        self.outcomes[outcome as usize] += 1;
    }
}

/// The jobs that ended otherwise than completed or skipped. In pieces, so that no step copies them.
pub(crate) struct Ended<R> {
    /// Pages, which are shared with the code that publishes these jobs.
    pub(crate) never_started: Vec<Arc<Vec<R>>>,
    pub(crate) others: Vec<Vec<(R, Outcome)>>,
}

/// Jobs in one piece of [`Ended::others`].
const ENDED_CHUNK: usize = 1024;
/// Capacity of the first piece; most drains have few such jobs.
const FIRST_ENDED_CHUNK: usize = 4;

impl<R> Default for Ended<R> {
    fn default() -> Self {
        Self { never_started: Vec::new(), others: Vec::new() }
    }
}

impl<R> Ended<R> {
    fn push(&mut self, meta: R, outcome: Outcome) {
        match self.others.last_mut().filter(|last| last.len() < ENDED_CHUNK) {
            Some(last) => last.push((meta, outcome)),
            None => {
                let room = if self.others.is_empty() { FIRST_ENDED_CHUNK } else { ENDED_CHUNK };
                let mut piece = Vec::with_capacity(room);
                piece.push((meta, outcome));
                self.others.push(piece);
            }
        }
    }
}

pub(super) struct Ledger<R> {
    /// The row of the job that has a unique key.
    pub(super) uniques: BTreeMap<Arc<str>, RowIndex>,
    pub(super) ended: Ended<R>,
    /// The counts at the moment the shutdown was announced.
    pub(super) at_drain: Totals,
}

impl<R: JobMeta> Ledger<R> {
    pub(super) fn new() -> Self {
        let (uniques, ended) = (BTreeMap::new(), Ended::default());
        Self { uniques, ended, at_drain: Totals::default() }
    }

    /// Records the end of a job.
    #[inline(always)]
    pub(super) fn job_ended(&mut self, meta: &R, outcome: Outcome, phase: Phase) {
        self.forget_unique(meta);
        if phase > Phase::Open && !matches!(outcome, Outcome::Completed | Outcome::Skipped) {
            self.ended.push(meta.clone(), outcome);
        }
    }

    pub(super) fn forget_unique(&mut self, meta: &R) {
        if let Some(unique) = meta.unique() {
            self.uniques.remove(&unique.key);
        }
    }
}
