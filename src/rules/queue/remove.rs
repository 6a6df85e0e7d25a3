//! Removing jobs that have not started.

use crate::{
    rules::{
        queue::{Queue, Turn},
        state::{JobState, Outcome},
        step::{Effects, JobKey, JobMeta},
        table::RowIndex,
    },
    util::clock::Moment,
};

impl<R: JobMeta, W> Queue<R, W> {
    /// Ends a job that has not started. Returns its work.
    pub(crate) fn remove(
        &mut self,
        job: JobKey,
        outcome: Outcome,
        now: Moment,
    ) -> Option<(W, Effects<R, W>)> {
        self.hot.table.get(job.row).filter(|row| row.meta().id() == job.id)?;
        let (meta, work) = self.remove_unstarted(job.row)?;
        self.record_end(&meta, outcome);
        Some((work, self.effects(now)))
    }

    /// Ends an unstarted job that another job of its unique key replaces. With `keeps_turn` the turn of
    /// a pending one is returned.
    pub(super) fn replace(
        &mut self,
        index: RowIndex,
        keeps_turn: bool,
    ) -> Option<((R, W), Option<Turn>)> {
        let row = self.hot.table.get(index)?;
        let turn = if keeps_turn && row.state() == JobState::Pending {
            Some(self.take_turn(index))
        } else {
            None
        };
        let (meta, work) = match turn {
            Some(_) => self.release_unstarted(index)?,
            None => self.remove_unstarted(index)?,
        };
        self.record_end(&meta, Outcome::Cancelled);
        Some(((meta, work), turn))
    }

    /// Takes a pending job out of its list, and admits no other job of its key yet.
    pub(super) fn take_turn(&mut self, index: RowIndex) -> Turn {
        let (hot, keys) = (&mut self.hot, &mut self.cold.keys);
        let row = &hot.table[index];
        let (links, stamp, key) = (row.links, row.stamp, row.meta().key().cloned());
        let mut turn = Turn { stamp, key, key_admitted: false, line_next: None };
        match &turn.key {
            Some(key) => turn.key_admitted = keys.take(key, stamp.since()),
            None if keys.take_keyless(stamp.since()) => {}
            None => {
                hot.line.remove_pending(&mut hot.table, index, links);
                turn.line_next = Some(links.next);
            }
        }
        turn
    }

    /// Admits the next job of the replaced job's key.
    pub(super) fn release_replaced(&mut self, turn: &Turn) {
        if let Some(key) = turn.key.as_ref().filter(|_| turn.key_admitted) {
            self.cold.keys.admit_next(key);
        }
    }

    /// Removes an unstarted job from the table. The caller records its end.
    pub(super) fn remove_unstarted(&mut self, index: RowIndex) -> Option<(R, W)> {
        let (hot, cold) = (&mut self.hot, &mut self.cold);
        let row = hot.table.get(index)?;
        let links = row.links;
        match row.state() {
            JobState::Deferred => {
                cold.deferred.unlink(&mut hot.table, links);
                cold.deferred_len -= 1;
            }
            JobState::Pending => {
                let turn = row.stamp.since();
                match row.meta().key().cloned() {
                    Some(key) => cold.keys.remove(&key, turn),
                    None if cold.keys.take_keyless(turn) => {}
                    None => hot.line.remove_pending(&mut hot.table, index, links),
                }
            }
            JobState::Active | JobState::Finished => return None,
        }
        self.release_unstarted(index)
    }

    /// Frees the row of an unstarted job that is in no list.
    fn release_unstarted(&mut self, index: RowIndex) -> Option<(R, W)> {
        let row = &mut self.hot.table[index];
        let removed = row.meta.take().zip(row.work.take());
        self.hot.table.release(index);
        let (meta, work) = removed?;
        meta.ended();
        Some((meta, work))
    }
}
