//! The options of a job: its traits, and the names that few jobs have.

use std::{borrow::Cow, fmt, panic::Location, sync::Arc, time::Duration};

use crate::{job::group::GroupOwner, rules::step::UniqueKey};

/// How a job runs, and how it ends when it is closed.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(feature = "serde", derive(serde::Serialize))]
#[cfg_attr(feature = "serde", serde(rename_all = "snake_case"))]
#[non_exhaustive]
pub enum JobKind {
    /// A future, which is dropped when the job is closed.
    Plain,
    /// A future of `spawn_with`, which is cancelled, and dropped if it does not end in time.
    Cooperative,
    /// A closure of `spawn_blocking`, which cannot be stopped once a thread has begun it.
    Blocking,
    /// Shielded or atomic work, outside all limits.
    Shielded,
}

/// Flags of a job.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct JobFlags(u8);

impl JobFlags {
    /// The job's first poll comes after the tasks that are ready now.
    pub(crate) const YIELDS_FIRST: Self = Self(1);
    /// The job has its group's label, and is not counted, awaited or closed with the group.
    pub(crate) const OUTSIDE_GROUP: Self = Self(2);
    /// The deferred job is skipped, not started, if its owner gives up waiting.
    pub(crate) const SKIP_IF_GIVEN_UP: Self = Self(4);

    pub(crate) fn with(self, flag: Self) -> Self {
        Self(self.0 | flag.0)
    }

    pub(crate) fn has(self, flag: Self) -> bool {
        self.0 & flag.0 != 0
    }
}

/// The options of a job that is about to be made.
#[derive(Clone, Default)]
pub(crate) struct Options {
    pub(crate) group: Option<Arc<dyn GroupOwner>>,
    pub(crate) flags: JobFlags,
    /// The spawn location; `None` is the caller.
    pub(crate) location: Option<&'static Location<'static>>,
    pub(crate) extras: Option<Box<Extras>>,
}

/// Options that most jobs do not have.
#[derive(Clone, Default)]
pub(crate) struct Extras {
    pub(super) name: Option<Cow<'static, str>>,
    /// In place of the group's label.
    pub(super) label: Option<Arc<str>>,
    pub(super) key: Option<Arc<str>>,
    pub(super) unique: Option<UniqueKey>,
    pub(super) timeout: Option<Duration>,
}

impl Options {
    pub(crate) fn set_name(&mut self, name: Cow<'static, str>) {
        self.extras().name = Some(name);
    }

    pub(crate) fn set_label(&mut self, label: Arc<str>) {
        self.extras().label = Some(label);
    }

    pub(crate) fn set_key(&mut self, key: Arc<str>) {
        self.extras().key = Some(key);
    }

    pub(crate) fn set_unique(&mut self, unique: UniqueKey) {
        self.extras().unique = Some(unique);
    }

    pub(crate) fn set_timeout(&mut self, timeout: Duration) {
        self.extras().timeout = Some(timeout);
    }

    /// The job's own run timeout.
    #[inline(always)]
    pub(crate) fn timeout(&self) -> Option<Duration> {
        self.extras.as_ref()?.timeout
    }

    fn extras(&mut self) -> &mut Extras {
        self.extras.get_or_insert_default()
    }
}

impl fmt::Debug for Options {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.extras.as_ref().and_then(|extras| extras.name.as_ref());
        f.debug_struct("JobBuilder")
            .field("name", &name)
            .field("timeout", &self.timeout())
            .finish_non_exhaustive()
    }
}
