//! The jobs of one outcome in a report.

use std::{
    fmt,
    ops::Deref,
    slice,
    sync::{Arc, OnceLock},
    time::Duration,
    vec,
};

use crate::{
    job::{info::JobInfo, record::Record},
    rules::{
        ledger::{Ended, Totals},
        state::Outcome,
    },
    util::clock::Moment,
};

/// The source of all reports of one scheduler.
pub(crate) struct Drained {
    /// The scheduler's name.
    pub(crate) scheduler: Option<Arc<str>>,
    /// Counts of the time that the reports cover.
    pub(crate) totals: Totals,
    /// The jobs that were neither completed nor skipped.
    pub(crate) ended: Ended<Arc<Record>>,
    pub(crate) elapsed: Duration,
    /// The scheduler's run timeout of jobs without one.
    pub(crate) job_timeout: Option<Duration>,
    /// The end of the report, at which the infos are taken.
    pub(crate) at: Moment,
}

impl Drained {
    /// Makes the infos of one outcome. Their number equals that of `totals`, since one step of the queue
    /// counts a job and keeps it.
    fn jobs(&self, outcome: Outcome) -> impl Iterator<Item = JobInfo> {
        let Ended { never_started, others } = &self.ended;
        let pages = if outcome == Outcome::NeverStarted { &never_started[..] } else { &[] };
        let others = others.iter().flatten().filter(move |(_, other)| *other == outcome);
        let never_started = pages.iter().flat_map(|page| page.iter());
        never_started
            .chain(others.map(|(record, _)| record))
            .map(|record| record.info(None, self.at, self.job_timeout))
    }
}

/// Lists the jobs of one outcome in a [`DrainReport`](crate::DrainReport).
///
/// The jobs are in the order in which they ended. The list dereferences to a slice of [`JobInfo`], each
/// a snapshot at the end of the report.
///
/// # Memory
///
/// A list makes its infos on first access, and keeps them. An info takes about 100 bytes.
/// [`len`](Self::len) and [`is_empty`](Self::is_empty) need no infos. `Debug`, and the `Display` and
/// `Serialize` of a report, make one info at a time, and keep none.
///
/// Clones share their data, and are cheap. The records of all jobs that the report lists stay in memory
/// until the last clone and the scheduler are dropped. A record takes about 100 bytes, and keeps the
/// method and the path of its request.
///
/// ```
/// # use tower_jobs::Scheduler;
/// # #[tokio::main(flavor = "current_thread")]
/// # async fn main() {
/// let scheduler = Scheduler::new();
/// let report = scheduler.close().await;
/// println!("{} jobs never started", report.never_started.len());
/// for job in &report.never_started {
///     println!("{job}");
/// }
/// # }
/// ```
#[derive(Clone, Default)]
pub struct JobList {
    /// The parts of one report, or of several schedulers'.
    parts: Vec<(Arc<Drained>, Outcome)>,
    len: usize,
    infos: OnceLock<Arc<Vec<JobInfo>>>,
}

impl JobList {
    pub(crate) fn new(drained: &Arc<Drained>, outcome: Outcome) -> Self {
        match usize::try_from(drained.totals.of(outcome)).unwrap_or(usize::MAX) {
            0 => Self::default(),
            len => Self { parts: vec![(drained.clone(), outcome)], len, infos: OnceLock::new() },
        }
    }

    /// All jobs of these lists.
    #[cfg(feature = "shutdown")]
    pub(crate) fn merge<'a>(lists: impl Iterator<Item = &'a Self>) -> Self {
        let mut merged = Self::default();
        for list in lists {
            merged.parts.extend(list.parts.iter().cloned());
            merged.len += list.len;
        }
        merged
    }

    /// Returns the number of jobs.
    pub fn len(&self) -> usize {
        self.len
    }

    /// Returns whether the list has no jobs.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Returns the first `n` jobs, or all if there are fewer.
    ///
    /// It makes their infos and no others, and the list keeps none. Use it for a page of a list that may have
    /// a million jobs.
    pub fn first_infos(&self, n: usize) -> Vec<JobInfo> {
        self.infos().take(n).collect()
    }

    /// Makes the infos one at a time, and keeps none.
    pub(crate) fn infos(&self) -> impl Iterator<Item = JobInfo> {
        self.parts.iter().flat_map(|(drained, outcome)| drained.jobs(*outcome))
    }

    fn collect(&self) -> Vec<JobInfo> {
        let mut infos = Vec::with_capacity(self.len);
        infos.extend(self.infos());
        infos
    }
}

impl Deref for JobList {
    type Target = [JobInfo];

    fn deref(&self) -> &[JobInfo] {
        self.infos.get_or_init(|| Arc::new(self.collect()))
    }
}

impl<'a> IntoIterator for &'a JobList {
    type Item = &'a JobInfo;
    type IntoIter = slice::Iter<'a, JobInfo>;

    fn into_iter(self) -> Self::IntoIter {
        self.iter()
    }
}

impl IntoIterator for JobList {
    type Item = JobInfo;
    type IntoIter = vec::IntoIter<JobInfo>;

    fn into_iter(mut self) -> Self::IntoIter {
        let infos = self.infos.take().map(Arc::unwrap_or_clone);
        infos.unwrap_or_else(|| self.collect()).into_iter()
    }
}

impl From<JobList> for Vec<JobInfo> {
    fn from(jobs: JobList) -> Self {
        jobs.into_iter().collect()
    }
}

impl fmt::Debug for JobList {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.infos()).finish()
    }
}

#[cfg(feature = "serde")]
impl serde::Serialize for JobList {
    /// Serializes as a sequence of [`JobInfo`]s.
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        use serde::ser::SerializeSeq;
        let mut jobs = serializer.serialize_seq(Some(self.len))?;
        self.infos().try_for_each(|job| jobs.serialize_element(&job))?;
        jobs.end()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Scheduler;

    #[tokio::test]
    async fn infos_are_made_on_first_access_and_then_shared() {
        let scheduler = Scheduler::builder().limit(1).build();
        for _ in 0..3 {
            scheduler.spawn(std::future::pending::<()>()).await.expect("the scheduler is open");
        }
        let report = scheduler.close().await;
        let jobs = &report.never_started;
        let is_made = |jobs: &JobList| jobs.infos.get().is_some();
        assert!(!report.is_clean() && jobs.len() == 2 && !jobs.is_empty());
        assert!(!format!("{report} {report:?}").is_empty());
        #[cfg(feature = "serde")]
        assert!(serde_json::to_value(&report).is_ok());
        let first = jobs.first_infos(1);
        assert_eq!((first.len(), jobs.first_infos(9).len()), (1, 2));
        assert!(!is_made(jobs) && !is_made(&report.clone().never_started));
        assert_eq!(first[0].id, jobs[0].id);
        assert!(jobs[0].id < jobs[1].id);
        assert!(is_made(jobs) && std::ptr::eq(&jobs[0], &report.clone().never_started[0]));
        assert!(!is_made(&report.cancelled) && !is_made(&scheduler.close().await.never_started));
    }
}
