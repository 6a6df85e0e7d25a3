//! A table whose rows stay where they are. It grows by a chunk at a time, so that no step copies
//! rows, however many there are; only where the chunks are is copied at times, 31 KB for a million.

use std::iter::repeat_with;

/// Rows in one chunk: 10 KB of the queue's, which a scheduler takes with its first job.
const CHUNK: usize = 256;
/// How many chunks an empty table may keep.
const KEPT: usize = 64;

/// The number of a row; `NONE` is no row.
pub(crate) type Key = u32;
pub(crate) const NONE: Key = Key::MAX;

/// A row, which is free by default.
pub(crate) trait Row: Default {
    fn is_free(&self) -> bool;

    /// Where a free row has the number of the next.
    fn next_free(&mut self) -> &mut Key;
}

/// Rows that came free are used again in that order: the one that has just been left is in the cache
/// of who left it, along with its neighbours, and mostly that is another processor. Once nothing is
/// left, all begins again with the first row, so that a table for few does not wander through memory
/// (one that is never empty goes through as many rows as it had jobs at a time since it was).
pub(crate) struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    /// Rows from here on have not been used since the table was last empty.
    end: Key,
    /// Of those before, the free one that is used next, and the last.
    free: Key,
    last_free: Key,
    len: Key,
}

/// Rows that a table gave up, for the caller to drop. So many by its type: whoever looks for a row
/// need not ask.
pub(crate) struct Chunk<T>(Box<[T; CHUNK]>);

impl<T: Row> Chunk<T> {
    fn new() -> Self {
        let rows: Box<[T]> = repeat_with(T::default).take(CHUNK).collect();
        Self(rows.try_into().unwrap_or_else(|_| unreachable!("as many as were taken")))
    }
}

impl<T: Row> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), end: 0, free: NONE, last_free: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len as usize
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Rows from here on are free.
    pub(crate) fn end(&self) -> usize {
        self.end as usize
    }

    /// Takes a free row into use. It is filled in where it is, which is less work than to move all
    /// of it there, and must be before the table is asked for anything else.
    ///
    /// # Panics
    ///
    /// With 2^32 - 256 rows in use.
    #[inline(always)]
    pub(crate) fn claim(&mut self) -> (Key, &mut T) {
        self.len += 1;
        let free = self.free;
        let key = if free == NONE {
            if self.end as usize == self.chunks.len() * CHUNK {
                self.grow();
            }
            self.end += 1;
            self.end - 1
        } else {
            free
        };
        let row = &mut self.chunks[key as usize / CHUNK].0[key as usize % CHUNK];
        if free != NONE {
            self.free = *row.next_free();
        }
        (key, row)
    }

    #[cold]
    fn grow(&mut self) {
        assert!(self.chunks.len() < NONE as usize / CHUNK, "fewer than 2^32 jobs at a time");
        self.chunks.push(Chunk::new());
    }

    /// Frees a row, which has been emptied.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub(crate) fn release(&mut self, key: Key) {
        let row = self.row_mut(key).expect("a row of this table");
        debug_assert!(row.is_free(), "row {key} is not empty");
        *row.next_free() = NONE;
        self.len -= 1;
        if self.len == 0 {
            (self.end, self.free) = (0, NONE);
            return;
        }
        if self.free == NONE {
            self.free = key;
        } else {
            let last = self.last_free;
            *self.row_mut(last).expect("the last free row").next_free() = key;
        }
        self.last_free = key;
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        let Chunk(rows) = self.chunks.get(key as usize / CHUNK)?;
        Some(&rows[key as usize % CHUNK]).filter(|row| !row.is_free())
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        self.row_mut(key).filter(|row| !row.is_free())
    }

    /// A row, free or not; there is none of the number `NONE`.
    pub(crate) fn row_mut(&mut self, key: Key) -> Option<&mut T> {
        let Chunk(rows) = self.chunks.get_mut(key as usize / CHUNK)?;
        Some(&mut rows[key as usize % CHUNK])
    }

    /// If the table is empty and was much larger: its rows.
    pub(crate) fn surplus(&mut self) -> Vec<Chunk<T>> {
        if self.len > 0 || self.chunks.len() <= KEPT {
            return Vec::new();
        }
        std::mem::replace(self, Self::new()).chunks
    }
}

impl<T: Row> std::ops::Index<Key> for Slots<T> {
    type Output = T;

    fn index(&self, key: Key) -> &T {
        self.get(key).expect("a row that is taken")
    }
}

impl<T: Row> std::ops::IndexMut<Key> for Slots<T> {
    fn index_mut(&mut self, key: Key) -> &mut T {
        self.get_mut(key).expect("a row that is taken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    struct Name {
        name: Option<usize>,
        next: Key,
    }

    impl Default for Name {
        fn default() -> Self {
            Self { name: None, next: NONE }
        }
    }

    impl Row for Name {
        fn is_free(&self) -> bool {
            self.name.is_none()
        }

        fn next_free(&mut self) -> &mut Key {
            &mut self.next
        }
    }

    impl Slots<Name> {
        fn insert(&mut self, name: usize) -> Key {
            let (key, row) = self.claim();
            assert!(row.is_free());
            row.name = Some(name);
            key
        }

        fn remove(&mut self, key: Key) -> Option<usize> {
            let name = self[key].name.take();
            self.release(key);
            name
        }
    }

    #[test]
    fn a_row_is_found_by_its_key_until_it_is_released() {
        let mut slots = Slots::new();
        let keys: Vec<Key> = (0..3 * CHUNK).map(|n| slots.insert(n)).collect();
        assert_eq!((slots.len(), slots.end()), (3 * CHUNK, 3 * CHUNK));
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(slots[*key].name, Some(n));
        }
        assert_eq!(slots.remove(keys[CHUNK + 7]), Some(CHUNK + 7));
        assert!(slots.get(keys[CHUNK + 7]).is_none());
        assert!(slots.get(NONE).is_none());
        assert_eq!(slots.len(), 3 * CHUNK - 1);
    }

    #[test]
    fn rows_that_came_free_are_used_before_a_new_one_and_in_that_order() {
        let mut slots = Slots::new();
        let [first, second, third, _] = [1, 2, 3, 4].map(|name| slots.insert(name));
        for (key, name) in [(second, 2), (third, 3), (first, 1)] {
            assert_eq!(slots.remove(key), Some(name));
        }
        assert_eq!([5, 6].map(|name| slots.insert(name)), [second, third]);
        assert_eq!(slots.remove(second), Some(5));
        assert_eq!([7, 8, 9].map(|name| slots.insert(name)), [first, second, 4]);
        assert_eq!((slots.len(), slots.end()), (5, 5));
    }

    #[test]
    fn a_table_that_was_empty_begins_with_its_first_row() {
        let mut slots = Slots::new();
        let keys = [1, 2, 3].map(|name| slots.insert(name));
        for key in [keys[1], keys[0], keys[2]] {
            slots.remove(key);
        }
        assert_eq!(slots.end(), 0);
        assert_eq!([4, 5, 6, 7].map(|name| slots.insert(name)), [0, 1, 2, 3]);
        assert_eq!(slots.remove(2), Some(6));
        assert_eq!(slots.insert(8), 2);
        assert_eq!((slots.len(), slots.end()), (4, 4));
    }

    #[test]
    fn an_empty_table_that_was_large_gives_its_rows_up() {
        let mut slots = Slots::new();
        let keys: Vec<Key> = (0..KEPT * CHUNK + 1).map(|n| slots.insert(n)).collect();
        assert!(slots.surplus().is_empty(), "it is not empty");
        for key in keys {
            slots.remove(key);
        }
        assert_eq!(slots.surplus().len(), KEPT + 1);
        assert_eq!((slots.end(), slots.insert(1)), (0, 0));
        slots.remove(0);
        assert!(slots.surplus().is_empty(), "it is small");
    }
}
