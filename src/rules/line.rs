//! The table's rows, and the lists that run through them.

use std::mem;

use crate::{
    rules::{
        state::JobState,
        table::{NONE, RowIndex, Table, TableRow},
    },
    util::clock::Moment,
};

/// One job's row: 40 bytes, as there may be a million.
pub(crate) struct Row<R, W> {
    pub(super) meta: Option<R>,
    /// Present until a runner takes the job.
    pub(super) work: Option<W>,
    pub(super) stamp: Stamp,
    pub(super) links: Links,
}

/// The neighbours of a row in its list. A pending job with a key is in no list.
#[derive(Clone, Copy)]
pub(super) struct Links {
    pub(super) previous: RowIndex,
    pub(super) next: RowIndex,
}

impl<R, W> Default for Row<R, W> {
    fn default() -> Self {
        let links = Links { previous: NONE, next: NONE };
        Self { meta: None, work: None, stamp: Stamp(0), links }
    }
}

impl<R, W> TableRow for Row<R, W> {
    fn is_free(&self) -> bool {
        self.meta.is_none()
    }

    fn next_free(&mut self) -> &mut RowIndex {
        &mut self.links.next
    }
}

impl<R, W> Row<R, W> {
    pub(super) fn meta(&self) -> &R {
        self.meta.as_ref().expect("a row in use")
    }

    pub(super) fn state(&self) -> JobState {
        self.stamp.state()
    }
}

/// A job's state, and since when it is in that state, in one word. The range is 73 years. Of a pending
/// job, the moment is its turn: no two jobs have the same.
#[derive(Clone, Copy)]
pub(crate) struct Stamp(i64);

impl Stamp {
    pub(crate) fn new(state: JobState, since: Moment) -> Self {
        Self(since.as_nanos() << 2 | state as i64)
    }

    pub(crate) fn state(self) -> JobState {
        match self.0 & 3 {
            0 => JobState::Deferred,
            1 => JobState::Pending,
            _ => JobState::Active,
        }
    }

    pub(crate) fn since(self) -> Moment {
        Moment::from_nanos(self.0 >> 2)
    }
}

/// A doubly linked list through the rows of a table. Any row leaves in constant time.
pub(super) struct List {
    pub(super) first: RowIndex,
    pub(super) last: RowIndex,
}

impl List {
    pub(super) fn new() -> Self {
        Self { first: NONE, last: NONE }
    }

    /// Inserts the row before `next`, or at the end if that is [`NONE`].
    #[inline(always)]
    pub(super) fn insert<'t, R, W>(
        &mut self,
        table: &'t mut Table<Row<R, W>>,
        index: RowIndex,
        next: RowIndex,
    ) -> &'t mut Row<R, W> {
        let last = match table.row_mut(next) {
            Some(next) => &mut next.links.previous,
            None => &mut self.last,
        };
        let previous = mem::replace(last, index);
        match table.row_mut(previous) {
            Some(previous) => previous.links.next = index,
            None => self.first = index,
        }
        let row = &mut table[index];
        row.links = Links { previous, next };
        row
    }

    /// Unlinks the rows between these two.
    pub(super) fn unlink<R, W>(&mut self, table: &mut Table<Row<R, W>>, links: Links) {
        let Links { previous, next } = links;
        match table.row_mut(previous) {
            Some(previous) => previous.links.next = next,
            None => self.first = next,
        }
        match table.row_mut(next) {
            Some(next) => next.links.previous = previous,
            None => self.last = previous,
        }
    }
}

/// The active jobs in the order in which they started, and behind them the pending jobs in the order
/// in which they came. It is one list, so that a job starts where it is.
pub(super) struct Line {
    pub(super) list: List,
    /// The first pending job, or [`NONE`].
    pub(super) border: RowIndex,
    pub(super) active: u32,
    pub(super) pending: u32,
}

impl Line {
    pub(super) fn new() -> Self {
        Self { list: List::new(), border: NONE, active: 0, pending: 0 }
    }

    pub(super) fn first_active(&self) -> Option<RowIndex> {
        (self.active > 0).then_some(self.list.first)
    }

    pub(super) fn first_pending(&self) -> Option<RowIndex> {
        (self.pending > 0).then_some(self.border)
    }

    /// Adds a pending job at the end.
    #[inline(always)]
    pub(super) fn push_pending<'t, R, W>(
        &mut self,
        table: &'t mut Table<Row<R, W>>,
        index: RowIndex,
    ) -> &'t mut Row<R, W> {
        self.insert_pending(table, index, NONE)
    }

    /// Adds a pending job before the pending job `next`, or at the end if that is [`NONE`].
    #[inline(always)]
    pub(super) fn insert_pending<'t, R, W>(
        &mut self,
        table: &'t mut Table<Row<R, W>>,
        index: RowIndex,
        next: RowIndex,
    ) -> &'t mut Row<R, W> {
        if self.border == next {
            self.border = index;
        }
        self.pending += 1;
        self.list.insert(table, index, next)
    }

    /// Adds a job that starts without having been pending here.
    pub(super) fn push_active<'t, R, W>(
        &mut self,
        table: &'t mut Table<Row<R, W>>,
        index: RowIndex,
    ) -> &'t mut Row<R, W> {
        self.active += 1;
        self.list.insert(table, index, self.border)
    }

    /// Makes the first pending job active.
    pub(super) fn start_first<'t, R, W>(
        &mut self,
        table: &'t mut Table<Row<R, W>>,
    ) -> Option<(RowIndex, &'t mut Row<R, W>)> {
        let index = self.first_pending()?;
        let row = &mut table[index];
        self.border = row.links.next;
        self.pending -= 1;
        self.active += 1;
        Some((index, row))
    }

    /// Removes an active job, which had these links.
    pub(super) fn remove_active<R, W>(&mut self, table: &mut Table<Row<R, W>>, links: Links) {
        self.active -= 1;
        self.list.unlink(table, links);
    }

    /// Removes a pending job, which had these links.
    pub(super) fn remove_pending<R, W>(
        &mut self,
        table: &mut Table<Row<R, W>>,
        index: RowIndex,
        links: Links,
    ) {
        if self.border == index {
            self.border = links.next;
        }
        self.pending -= 1;
        self.list.unlink(table, links);
    }

    /// Removes up to `most` pending jobs from the table, first to last, and unlinks them all at once.
    pub(super) fn drain_pending<R, W>(
        &mut self,
        table: &mut Table<Row<R, W>>,
        most: usize,
        mut each: impl FnMut(R, W),
    ) {
        let Some(first) = self.first_pending() else { return };
        let previous = table[first].links.previous;
        let count = self.pending.min(u32::try_from(most).unwrap_or(u32::MAX));
        for _ in 0..count {
            let index = self.border;
            let row = &mut table[index];
            self.border = row.links.next;
            let job = row.meta.take().zip(row.work.take());
            table.release(index);
            if let Some((meta, work)) = job {
                each(meta, work);
            }
        }
        self.pending -= count;
        self.list.unlink(table, Links { previous, next: self.border });
    }
}
