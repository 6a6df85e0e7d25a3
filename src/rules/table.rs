//! A table whose rows never move. It grows by one chunk at a time, so no step copies rows. Only the
//! vector of chunk pointers is copied as it grows: 31 KB for a million rows.

use std::{
    iter::repeat_with,
    mem,
    ops::{Index, IndexMut},
};

/// Rows in one chunk: 10 KB of the queue's rows. A scheduler allocates the first with its first job.
const CHUNK_ROWS: usize = 256;
/// Chunks that an empty table may keep.
const MAX_IDLE_CHUNKS: usize = 64;

/// Index of a row; [`NONE`] is no row.
pub(crate) type RowIndex = u32;
pub(crate) const NONE: RowIndex = RowIndex::MAX;

/// A row. Its default is free.
pub(crate) trait TableRow: Default {
    fn is_free(&self) -> bool;

    /// Where a free row keeps the index of the next free row.
    fn next_free(&mut self) -> &mut RowIndex;
}

/// A table of rows, with a first-in, first-out list of the free ones.
///
/// Free rows are reused in the order in which they came free. The last freed row is in the cache of
/// the processor that freed it, and mostly that is another one. An empty table starts again at row 0,
/// so a table of few rows does not wander through memory.
pub(crate) struct Table<T> {
    chunks: Vec<Chunk<T>>,
    /// Rows from here on are unused since the table was last empty.
    end: RowIndex,
    first_free: RowIndex,
    last_free: RowIndex,
    len: RowIndex,
}

/// A chunk of rows. An array, not a slice, so that a lookup needs no second bounds check.
pub(crate) struct Chunk<T>(Box<[T; CHUNK_ROWS]>);

impl<T: TableRow> Chunk<T> {
    fn new() -> Self {
        let rows: Box<[T]> = repeat_with(T::default).take(CHUNK_ROWS).collect();
        Self(rows.try_into().unwrap_or_else(|_| unreachable!("the slice has CHUNK_ROWS rows")))
    }
}

impl<T: TableRow> Table<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), end: 0, first_free: NONE, last_free: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Rows from this index on are free.
    pub(crate) fn end(&self) -> usize {
        self.end as usize
    }

    /// Claims a free row. The caller fills it in before any other call: filling in place is cheaper
    /// than moving a whole row.
    ///
    /// # Panics
    ///
    /// With 2^32 - 256 rows in use.
    #[inline(always)]
    pub(crate) fn claim(&mut self) -> (RowIndex, &mut T) {
        self.len += 1;
        let free = self.first_free;
        let index = if free == NONE {
            if self.end as usize == self.chunks.len() * CHUNK_ROWS {
                self.grow();
            }
            self.end += 1;
            self.end - 1
        } else {
            free
        };
        let row = &mut self.chunks[index as usize / CHUNK_ROWS].0[index as usize % CHUNK_ROWS];
        if free != NONE {
            self.first_free = *row.next_free();
        }
        (index, row)
    }

    #[cold]
    fn grow(&mut self) {
        assert!(self.chunks.len() < NONE as usize / CHUNK_ROWS, "fewer than 2^32 jobs at a time");
        self.chunks.push(Chunk::new());
    }

    /// Frees a row. The caller has emptied it.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub(crate) fn release(&mut self, index: RowIndex) {
        let row = self.row_mut(index).expect("a row of this table");
        debug_assert!(row.is_free(), "row {index} is not empty");
        *row.next_free() = NONE;
        self.len -= 1;
        if self.len == 0 {
            (self.end, self.first_free) = (0, NONE);
            return;
        }
        if self.first_free == NONE {
            self.first_free = index;
        } else {
            let last = self.last_free;
            *self.row_mut(last).expect("the last free row").next_free() = index;
        }
        self.last_free = index;
    }

    pub(crate) fn get(&self, index: RowIndex) -> Option<&T> {
        let Chunk(rows) = self.chunks.get(index as usize / CHUNK_ROWS)?;
        Some(&rows[index as usize % CHUNK_ROWS]).filter(|row| !row.is_free())
    }

    pub(crate) fn get_mut(&mut self, index: RowIndex) -> Option<&mut T> {
        self.row_mut(index).filter(|row| !row.is_free())
    }

    /// The row at `index`, free or not; `None` for [`NONE`].
    pub(crate) fn row_mut(&mut self, index: RowIndex) -> Option<&mut T> {
        let Chunk(rows) = self.chunks.get_mut(index as usize / CHUNK_ROWS)?;
        Some(&mut rows[index as usize % CHUNK_ROWS])
    }

    /// Gives up the chunks of an empty table that was large, for the caller to drop after unlocking.
    pub(crate) fn surplus(&mut self) -> Vec<Chunk<T>> {
        if self.len > 0 || self.chunks.len() <= MAX_IDLE_CHUNKS {
            return Vec::new();
        }
        mem::replace(self, Self::new()).chunks
    }
}

impl<T: TableRow> Index<RowIndex> for Table<T> {
    type Output = T;

    fn index(&self, index: RowIndex) -> &T {
        self.get(index).expect("a row in use")
    }
}

impl<T: TableRow> IndexMut<RowIndex> for Table<T> {
    fn index_mut(&mut self, index: RowIndex) -> &mut T {
        self.get_mut(index).expect("a row in use")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name {
        name: Option<usize>,
        next: RowIndex,
    }

    impl Default for Name {
        fn default() -> Self {
            Self { name: None, next: NONE }
        }
    }

    impl TableRow for Name {
        fn is_free(&self) -> bool {
            self.name.is_none()
        }

        fn next_free(&mut self) -> &mut RowIndex {
            &mut self.next
        }
    }

    impl Table<Name> {
        fn insert(&mut self, name: usize) -> RowIndex {
            let (key, row) = self.claim();
            assert!(row.is_free());
            row.name = Some(name);
            key
        }

        fn remove(&mut self, key: RowIndex) -> Option<usize> {
            let name = self[key].name.take();
            self.release(key);
            name
        }
    }

    #[test]
    fn row_is_found_until_it_is_released() {
        let mut table = Table::new();
        let keys: Vec<RowIndex> = (0..3 * CHUNK_ROWS).map(|n| table.insert(n)).collect();
        assert_eq!((table.len(), table.end()), (3 * CHUNK_ROWS, 3 * CHUNK_ROWS));
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(table[*key].name, Some(n));
        }
        assert_eq!(table.remove(keys[CHUNK_ROWS + 7]), Some(CHUNK_ROWS + 7));
        assert!(table.get(keys[CHUNK_ROWS + 7]).is_none());
        assert!(table.get(NONE).is_none());
        assert_eq!(table.len(), 3 * CHUNK_ROWS - 1);
    }

    #[test]
    fn free_rows_are_reused_first_and_in_order() {
        let mut table = Table::new();
        let [first, second, third, _] = [1, 2, 3, 4].map(|name| table.insert(name));
        for (key, name) in [(second, 2), (third, 3), (first, 1)] {
            assert_eq!(table.remove(key), Some(name));
        }
        assert_eq!([5, 6].map(|name| table.insert(name)), [second, third]);
        assert_eq!(table.remove(second), Some(5));
        assert_eq!([7, 8, 9].map(|name| table.insert(name)), [first, second, 4]);
        assert_eq!((table.len(), table.end()), (5, 5));
    }

    #[test]
    fn emptied_table_starts_again_at_row_zero() {
        let mut table = Table::new();
        let keys = [1, 2, 3].map(|name| table.insert(name));
        for key in [keys[1], keys[0], keys[2]] {
            table.remove(key);
        }
        assert_eq!(table.end(), 0);
        assert_eq!([4, 5, 6, 7].map(|name| table.insert(name)), [0, 1, 2, 3]);
        assert_eq!(table.remove(2), Some(6));
        assert_eq!(table.insert(8), 2);
        assert_eq!((table.len(), table.end()), (4, 4));
    }

    #[test]
    fn emptied_large_table_gives_up_its_chunks() {
        let mut table = Table::new();
        let keys: Vec<RowIndex> =
            (0..MAX_IDLE_CHUNKS * CHUNK_ROWS + 1).map(|n| table.insert(n)).collect();
        assert!(table.surplus().is_empty(), "it is not empty");
        for key in keys {
            table.remove(key);
        }
        assert_eq!(table.surplus().len(), MAX_IDLE_CHUNKS + 1);
        assert_eq!((table.end(), table.insert(1)), (0, 0));
        table.remove(0);
        assert!(table.surplus().is_empty(), "it is small");
    }
}
