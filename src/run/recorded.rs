//! Waiting for jobs that a recorder of the module `testing` holds back.
//!
//! Such a wait would never end, so it panics instead, and the test that waits fails with a text.

use std::{fmt, sync::Arc};

use crate::{
    job::{group::Group, record::Record},
    rules::state::JobState,
    run::core::{Core, JobQueue, Mode},
};

impl Core {
    /// Panics if a recorder holds the job back.
    #[inline]
    pub(crate) fn check_awaited(&self, record: &Record) {
        if self.mode == Mode::Record {
            self.refuse_held_back(record);
        }
    }

    #[cold]
    fn refuse_held_back(&self, record: &Record) {
        if is_held_back(self.state(record)) {
            refuse(&self.info(record));
        }
    }

    /// Resolves when no job runs or waits. Panics if a recorder holds one back.
    pub(crate) async fn wait_idle_checked(&self) {
        if self.mode != Mode::Record {
            return self.wait_idle().await;
        }
        self.wait_until(|queue| queue.is_idle() || holds_back(queue)).await;
        self.refuse_any_held_back(|_| true);
    }

    /// Panics if a recorder holds back a job of the group.
    pub(crate) fn check_group(&self, group: &Group) {
        if self.mode == Mode::Record {
            self.refuse_any_held_back(|record| record.is_in_group(group));
        }
    }

    /// Panics if any of these jobs is held back, with the first.
    #[cold]
    fn refuse_any_held_back(&self, is_awaited: impl Fn(&Record) -> bool) {
        let mut first: Option<Arc<Record>> = None;
        self.for_each_job(|(record, stamp)| {
            let is_first = first.as_ref().is_none_or(|other| record.id() < other.id());
            if is_first && is_held_back(stamp.state()) && is_awaited(&record) {
                first = Some(record);
            }
        });
        if let Some(record) = first {
            refuse(&self.info(&record));
        }
    }

    /// Panics on a recorder, which starts nothing that a permit could wait for.
    pub(crate) fn check_reserved(&self) {
        assert!(
            self.mode != Mode::Record,
            "a testing::Recorder grants no permits, so this would wait for ever: use a plain Scheduler"
        );
    }
}

/// Whether a job in this state waits for `run_all`.
fn is_held_back(state: JobState) -> bool {
    matches!(state, JobState::Deferred | JobState::Pending)
}

/// Whether a recorder's queue holds jobs back.
fn holds_back(queue: &JobQueue) -> bool {
    queue.pending_count() + queue.deferred_count() > 0
}

fn refuse(job: &dyn fmt::Display) -> ! {
    panic!(
        "this waits for {job}, which a testing::Recorder does not run before run_all: test code that \
         waits for its jobs with testing::inline()"
    );
}
