//! Looking at the queue: counts, states, ages and pages of jobs.

use std::iter::successors;

use crate::{
    rules::{
        ledger::Totals,
        line::{Row, Stamp},
        queue::{Hot, Queue},
        state::{JobState, Phase},
        step::{JobKey, JobMeta},
        table::{NONE, RowIndex},
    },
    util::clock::Moment,
};

impl<R: JobMeta, W> Queue<R, W> {
    pub(crate) fn limit(&self) -> usize {
        self.cold.paused_limit.unwrap_or(self.hot.limit)
    }

    pub(crate) fn pending_limit(&self) -> usize {
        self.cold.pending_limit
    }

    pub(crate) fn limit_per_key(&self) -> usize {
        self.cold.keys.limit()
    }

    pub(crate) fn phase(&self) -> Phase {
        self.cold.phase
    }

    pub(crate) fn state(&self, job: JobKey) -> JobState {
        self.row(job).map_or(JobState::Finished, Row::state)
    }

    /// The job's state and since when it is in that; `None` for one that has ended.
    pub(crate) fn stamp(&self, job: JobKey) -> Option<Stamp> {
        self.row(job).map(|row| row.stamp)
    }

    fn row(&self, job: JobKey) -> Option<&Row<R, W>> {
        self.hot.table.get(job.row).filter(|row| row.meta().id() == job.id)
    }

    /// Whether nothing runs or waits, and no spawner is between its grant and its admission. A closed
    /// queue does not wait for spawners, since it refuses them.
    pub(crate) fn is_idle(&self) -> bool {
        let no_spawners = self.cold.grants.is_empty() && !self.cold.keys.has_waiting();
        self.hot.table.is_empty() && (no_spawners || self.cold.phase == Phase::Closed)
    }

    /// The row of the job that has been pending longest.
    pub(super) fn first_pending(&self) -> Option<RowIndex> {
        let in_line = self.hot.line.first_pending();
        let in_line = in_line.map(|row| (self.hot.table[row].stamp.since(), row));
        [in_line, self.cold.keys.first()].into_iter().flatten().min().map(|(_, row)| row)
    }

    /// Whether a draining queue has nothing to wait for: it is idle, or paused with no job active.
    pub(super) fn is_drained(&self) -> bool {
        self.is_idle() || (self.is_paused() && self.active_count() == 0)
    }

    /// Permits that are held by reservations.
    pub(crate) fn reserved_count(&self) -> usize {
        self.cold.reservations.held()
    }

    /// Grants that are not used yet, of spawners and reservations.
    pub(crate) fn granted_count(&self) -> usize {
        self.cold.grants.len() + self.cold.reservations.granted_count()
    }

    /// Active jobs that hold no permit.
    pub(crate) fn outside_limit_count(&self) -> usize {
        self.active_count() - (self.running() - self.reserved_count())
    }

    pub(crate) fn len(&self) -> usize {
        self.hot.table.len()
    }

    pub(crate) fn deferred_count(&self) -> usize {
        self.cold.deferred_len
    }

    /// Up to `most` jobs that were deferred by the moment `by`, longest deferred first.
    pub(crate) fn deferred_by(&self, by: Moment, most: usize) -> Vec<R> {
        let table = &self.hot.table;
        let row = |index: RowIndex| table.get(index).map(|row| (index, row));
        let next = |(_, deferred): &(RowIndex, &Row<R, W>)| row(deferred.links.next);
        let rows = successors(row(self.cold.deferred.first), next);
        let until = rows.take_while(|(_, row)| row.stamp.since() <= by);
        until.take(most).map(|(_, row)| row.meta().clone()).collect()
    }

    pub(crate) fn pending_count(&self) -> usize {
        self.hot.line.pending as usize + self.cold.keys.len()
    }

    pub(crate) fn active_count(&self) -> usize {
        self.hot.line.active as usize
    }

    pub(crate) fn waiting_count(&self) -> usize {
        self.cold.keys.waiting_count() + self.cold.reservations.waiting_count()
    }

    pub(crate) fn totals(&self) -> Totals {
        self.hot.totals
    }

    pub(crate) fn totals_at_drain(&self) -> Totals {
        self.cold.ledger.at_drain
    }

    /// Since when the longest deferred job has been deferred, the first pending one pending, and the
    /// longest active one active.
    pub(crate) fn oldest(&self) -> [Option<Moment>; 3] {
        let Hot { table, line, .. } = &self.hot;
        let deferred = Some(self.cold.deferred.first).filter(|first| *first != NONE);
        let since = |row: Option<RowIndex>| row.map(|row| table[row].stamp.since());
        [deferred, self.first_pending(), line.first_active()].map(since)
    }

    /// Up to `most` jobs in this state, longest in it first.
    ///
    /// With `after` the list goes on behind those jobs, of which the last has the stamp `last`. If none of
    /// them is in the state any more, it begins anew.
    pub(crate) fn longest(
        &self,
        state: JobState,
        after: &[JobKey],
        last: Option<Stamp>,
        most: usize,
    ) -> Vec<(R, Stamp)> {
        let Hot { table, line, .. } = &self.hot;
        let first = match state {
            JobState::Deferred => Some(self.cold.deferred.first),
            JobState::Pending => line.first_pending(),
            JobState::Active => line.first_active(),
            JobState::Finished => None,
        };
        let keys = &self.cold.keys;
        // A pending job with a key is in no list.
        let is_listed = |row: &&Row<R, W>| row.state() == state && !keys.has(row.stamp.since());
        let row = |index: RowIndex| table.get(index).filter(is_listed);
        let listed = after.iter().rev().find_map(|job| self.row(*job).filter(is_listed));
        let first = listed.map_or(first, |row| Some(row.links.next));
        let rows = successors(first.and_then(row), |last| row(last.links.next)).take(most);
        let mut rows: Vec<&Row<R, W>> = rows.collect();
        if state == JobState::Pending {
            let behind = last.map_or(Moment::NEVER, Stamp::since);
            rows.retain(|row| row.stamp.since() > behind);
            rows.extend(keys.behind(behind, most).map(|row| &table[row]));
            rows.sort_unstable_by_key(|row| row.stamp.since());
            rows.truncate(most);
        }
        rows.into_iter().map(|row| (row.meta().clone(), row.stamp)).collect()
    }

    /// The jobs in up to `most` rows from `from` on, and the row to go on from.
    pub(crate) fn page(&self, from: usize, most: usize) -> (Vec<(R, Stamp)>, Option<usize>) {
        let Hot { table, line, .. } = &self.hot;
        let active = self.active_count();
        if from == 0 && active <= most && active == table.len() {
            // All other rows are free, and there may be a million of them.
            let next = |row: &RowIndex| Some(table[*row].links.next).filter(|next| *next != NONE);
            let active = successors(line.first_active(), next);
            let job = |row| (table[row].meta().clone(), table[row].stamp);
            return (active.map(job).collect(), None);
        }
        let to = from.saturating_add(most).min(table.end());
        let rows = (from..to).filter_map(|row| table.get(RowIndex::try_from(row).ok()?));
        let jobs = rows.map(|row| (row.meta().clone(), row.stamp));
        (jobs.collect(), (to < table.end()).then_some(to))
    }
}
