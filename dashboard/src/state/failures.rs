//! The last failures, equal ones as one group.
//!
//! Invariants:
//! 1. At most [`MAX_GROUPS`] groups and [`MAX_TEXT`] bytes of text; the group whose last failure is oldest
//!    goes first.
//! 2. At most [`TEXTS_A_SECOND`] error texts are formatted a second, outside all locks; further failures are
//!    counted in one group for each name, without a text.

use std::{
    hash::{BuildHasher, RandomState},
    time::Duration,
};

use serde::Serialize;
use tower_jobs::Outcome;

use crate::{
    clock::{as_moment, as_seconds},
    text::Search,
};

pub(crate) const MAX_GROUPS: usize = 200;
/// Maximum size of all texts together, in bytes.
pub(crate) const MAX_TEXT: usize = 400_000;
pub(crate) const TEXTS_A_SECOND: u32 = 1_000;

#[derive(Debug, Default)]
pub(crate) struct Failures {
    groups: Vec<Group>,
    text: usize,
    hasher: RandomState,
    next_id: u64,
    dropped: u64,
    budget: (u64, u32),
    changes: u64,
}

/// Failures of one name and outcome, with the same text apart from its digits.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct Group {
    id: u64,
    count: u64,
    outcome: Outcome,
    name: Box<str>,
    /// The text of the latest failure.
    error: Box<str>,
    #[serde(serialize_with = "as_moment")]
    first_at: Duration,
    #[serde(serialize_with = "as_moment")]
    last_at: Duration,
    last: LastJob,
    #[serde(skip)]
    hash: u64,
    /// Number of the change that was the last to touch the group.
    #[serde(skip)]
    pub(crate) changed: u64,
}

/// The latest job of a group.
#[derive(Clone, Debug, Serialize)]
pub(crate) struct LastJob {
    pub(crate) id: Box<str>,
    pub(crate) key: Option<Box<str>>,
    pub(crate) request: Option<Box<str>>,
    pub(crate) location: Box<str>,
    #[serde(serialize_with = "as_seconds", rename = "queued_s")]
    pub(crate) queued: Duration,
    #[serde(serialize_with = "as_seconds", rename = "ran_s")]
    pub(crate) ran: Duration,
}

/// The failure of one job. All texts are cut already.
#[derive(Clone, Debug)]
pub(crate) struct Failure {
    pub(crate) name: Box<str>,
    pub(crate) outcome: Outcome,
    pub(crate) error: Box<str>,
    pub(crate) job: LastJob,
}

impl Group {
    fn text_len(&self) -> usize {
        let last = &self.last;
        let optional = |text: &Option<Box<str>>| text.as_ref().map_or(0, |text| text.len());
        self.name.len()
            + self.error.len()
            + last.id.len()
            + last.location.len()
            + optional(&last.key)
            + optional(&last.request)
    }

    /// Whether a text is part of the name, the error, or the latest job's key, request or location.
    pub(crate) fn matches(&self, search: &Search) -> bool {
        let last = &self.last;
        search.finds(&self.name)
            || search.finds(&self.error)
            || search.finds(&last.location)
            || last.key.as_ref().is_some_and(|key| search.finds(key))
            || last.request.as_ref().is_some_and(|request| search.finds(request))
    }
}

impl Failures {
    /// Returns whether one more text may be formatted in this second.
    pub(crate) fn may_format(&mut self, second: u64) -> bool {
        if self.budget.0 != second {
            self.budget = (second, TEXTS_A_SECOND);
        }
        let may = self.budget.1 > 0;
        self.budget.1 = self.budget.1.saturating_sub(1);
        may
    }

    /// Digits in an error's text differ from job to job, so they do not count.
    fn hash_of(&self, failure: &Failure) -> u64 {
        let digits_apart: String = failure
            .error
            .chars()
            .map(|char| if char.is_ascii_digit() { '#' } else { char })
            .collect();
        self.hasher.hash_one((&failure.name, failure.outcome, digits_apart))
    }

    pub(crate) fn add(&mut self, failure: Failure, at: Duration) {
        let hash = self.hash_of(&failure);
        let Failure { name, outcome, error, job: last } = failure;
        self.changes += 1;
        let known = self.groups.iter().position(|group| group.hash == hash);
        let (id, count, first_at) = match known.map(|at| self.groups.swap_remove(at)) {
            Some(known) => {
                self.text -= known.text_len();
                (known.id, known.count + 1, known.first_at)
            }
            None => {
                self.next_id += 1;
                (self.next_id, 1, at)
            }
        };
        let changed = self.changes;
        let group =
            Group { id, count, outcome, name, error, first_at, last_at: at, last, hash, changed };
        self.text += group.text_len();
        self.groups.push(group);
        while self.groups.len() > MAX_GROUPS || self.text > MAX_TEXT {
            self.drop_oldest();
        }
    }

    fn drop_oldest(&mut self) {
        let oldest = self.groups.iter().enumerate().min_by_key(|(_, group)| group.changed);
        if let Some((at, _)) = oldest {
            self.text -= self.groups.swap_remove(at).text_len();
            self.dropped += 1;
        }
    }

    /// The groups, that of the latest failure first.
    pub(crate) fn latest_first(&self) -> Vec<&Group> {
        let mut groups: Vec<_> = self.groups.iter().collect();
        groups.sort_unstable_by_key(|group| std::cmp::Reverse(group.changed));
        groups
    }

    /// Number of groups that were pushed out.
    pub(crate) fn dropped_groups(&self) -> u64 {
        self.dropped
    }

    /// Number of failures so far, to find the groups that changed since.
    pub(crate) fn changes(&self) -> u64 {
        self.changes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn failure(name: &str, error: &str) -> Failure {
        Failure {
            name: name.into(),
            outcome: Outcome::Failed,
            error: error.into(),
            job: LastJob {
                id: "1-00000".into(),
                key: None,
                request: None,
                location: "src/main.rs:1:1".into(),
                queued: Duration::ZERO,
                ran: Duration::ZERO,
            },
        }
    }

    const fn at(second: u64) -> Duration {
        Duration::from_secs(second)
    }

    #[test]
    fn texts_that_differ_in_digits_are_one_group() {
        let mut failures = Failures::default();
        failures.add(failure("mail", "451 from mx1"), at(1));
        failures.add(failure("sync", "451 from mx1"), at(2));
        failures.add(failure("mail", "452 from mx2"), at(3));
        let groups = failures.latest_first();
        let shown = |group: &Group| (group.name.clone(), group.count, group.error.clone());
        assert_eq!(shown(groups[0]), ("mail".into(), 2, "452 from mx2".into()));
        assert_eq!((groups[0].first_at, groups[0].last_at), (at(1), at(3)));
        assert_eq!(shown(groups[1]), ("sync".into(), 1, "451 from mx1".into()));
    }

    #[test]
    fn outcomes_are_groups_of_their_own() {
        let mut failures = Failures::default();
        failures.add(failure("mail", "late"), at(1));
        failures.add(Failure { outcome: Outcome::TimedOut, ..failure("mail", "late") }, at(1));
        assert_eq!(failures.latest_first().len(), 2);
    }

    #[test]
    fn oldest_groups_make_room() {
        let mut failures = Failures::default();
        for number in 0..MAX_GROUPS + 5 {
            failures.add(failure(&format!("name {number}"), "no"), at(1));
            failures.add(failure("name 0", "no"), at(1));
        }
        let groups = failures.latest_first();
        assert_eq!((groups.len(), failures.dropped_groups()), (MAX_GROUPS, 5));
        assert!(groups.iter().any(|group| &*group.name == "name 0"));
        assert!(!groups.iter().any(|group| &*group.name == "name 1"));
    }

    #[test]
    fn all_texts_together_are_bounded() {
        let mut failures = Failures::default();
        let long = "x".repeat(crate::text::ERROR);
        for number in 0..2 * MAX_GROUPS {
            let mut failure = failure(&format!("name {number}"), &long);
            failure.job.key = Some("k".repeat(200).into());
            failures.add(failure, at(1));
        }
        let text: usize = failures.groups.iter().map(|group| group.text_len()).sum();
        assert_eq!(text, failures.text);
        assert!(text <= MAX_TEXT && text > MAX_TEXT - 3_000, "{text}");
    }

    #[test]
    fn texts_a_second_are_bounded() {
        let mut failures = Failures::default();
        let may = |failures: &mut Failures, second| {
            (0..5_000).filter(|_| failures.may_format(second)).count()
        };
        assert_eq!(may(&mut failures, 1), TEXTS_A_SECOND as usize);
        assert_eq!(may(&mut failures, 2), TEXTS_A_SECOND as usize);
    }
}
