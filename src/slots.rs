//! A table whose rows stay where they are. It grows by a chunk at a time, so that no step copies
//! more than one of them, however long it is.

/// Rows in one chunk.
const CHUNK: usize = 1024;
/// How many chunks an empty table may keep.
const KEPT: usize = 16;

/// The number of a row; `NONE` is no row.
pub(crate) type Key = u32;
pub(crate) const NONE: Key = Key::MAX;

enum Row<T> {
    Taken(T),
    /// The next free row.
    Free(Key),
}

pub(crate) struct Slots<T> {
    chunks: Vec<Chunk<T>>,
    free: Key,
    len: usize,
}

/// Rows that a table gave up, for the caller to drop.
pub(crate) struct Chunk<T>(Vec<Row<T>>);

impl<T> Slots<T> {
    pub(crate) fn new() -> Self {
        Self { chunks: Vec::new(), free: NONE, len: 0 }
    }

    pub(crate) fn len(&self) -> usize {
        self.len
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Rows beyond this have never been used.
    pub(crate) fn end(&self) -> usize {
        match self.chunks.split_last() {
            Some((last, full)) => full.len() * CHUNK + last.0.len(),
            None => 0,
        }
    }

    /// # Panics
    ///
    /// With 2^32 - 1 rows in it.
    #[inline(always)] // so that the value is made in its place
    pub(crate) fn insert(&mut self, value: T) -> Key {
        self.len += 1;
        let key = self.free;
        if let Some(row) = self.row_mut(key) {
            let Row::Free(next) = *row else { unreachable!("row {key} is taken") };
            *row = Row::Taken(value);
            self.free = next;
            return key;
        }
        let key = self.grow();
        *self.row_mut(key).expect("a new row") = Row::Taken(value);
        key
    }

    /// Adds a row.
    #[cold]
    fn grow(&mut self) -> Key {
        let key = Key::try_from(self.end()).ok().filter(|key| *key != NONE);
        let key = key.expect("fewer than 2^32 jobs at a time");
        match self.chunks.last_mut() {
            Some(last) if last.0.len() < CHUNK => last.0.push(Row::Free(NONE)),
            // The first grows as it needs to: most tables stay small.
            None => self.chunks.push(Chunk(vec![Row::Free(NONE)])),
            Some(_) => {
                let mut rows = Vec::with_capacity(CHUNK);
                rows.push(Row::Free(NONE));
                self.chunks.push(Chunk(rows));
            }
        }
        key
    }

    /// # Panics
    ///
    /// If there is nothing there.
    pub(crate) fn remove(&mut self, key: Key) -> T {
        let free = self.free;
        let row = self.row_mut(key).expect("a row that is taken");
        match std::mem::replace(row, Row::Free(free)) {
            Row::Taken(value) => {
                self.free = key;
                self.len -= 1;
                value
            }
            Row::Free(_) => unreachable!("row {key} is free"),
        }
    }

    /// Like `remove`, and drops what is there.
    ///
    /// # Panics
    ///
    /// If there is no such row.
    pub(crate) fn free(&mut self, key: Key) {
        let free = self.free;
        let row = self.row_mut(key).expect("a row that is taken");
        debug_assert!(matches!(row, Row::Taken(_)), "row {key} is free");
        *row = Row::Free(free);
        self.free = key;
        self.len -= 1;
    }

    pub(crate) fn get(&self, key: Key) -> Option<&T> {
        match self.chunks.get(key as usize / CHUNK)?.0.get(key as usize % CHUNK)? {
            Row::Taken(value) => Some(value),
            Row::Free(_) => None,
        }
    }

    pub(crate) fn get_mut(&mut self, key: Key) -> Option<&mut T> {
        match self.row_mut(key)? {
            Row::Taken(value) => Some(value),
            Row::Free(_) => None,
        }
    }

    fn row_mut(&mut self, key: Key) -> Option<&mut Row<T>> {
        self.chunks.get_mut(key as usize / CHUNK)?.0.get_mut(key as usize % CHUNK)
    }

    /// If the table is empty and was much larger: its rows.
    pub(crate) fn surplus(&mut self) -> Vec<Chunk<T>> {
        if self.len > 0 || self.chunks.len() <= KEPT {
            return Vec::new();
        }
        std::mem::replace(self, Self::new()).chunks
    }
}

impl<T> std::ops::Index<Key> for Slots<T> {
    type Output = T;

    fn index(&self, key: Key) -> &T {
        self.get(key).expect("a row that is taken")
    }
}

impl<T> std::ops::IndexMut<Key> for Slots<T> {
    fn index_mut(&mut self, key: Key) -> &mut T {
        self.get_mut(key).expect("a row that is taken")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_row_is_found_by_its_key_until_it_is_removed() {
        let mut slots = Slots::new();
        let keys: Vec<Key> = (0..3 * CHUNK).map(|n| slots.insert(n)).collect();
        assert_eq!((slots.len(), slots.end()), (3 * CHUNK, 3 * CHUNK));
        for (n, key) in keys.iter().enumerate() {
            assert_eq!(slots.get(*key), Some(&n));
        }
        assert_eq!(slots.remove(keys[CHUNK + 7]), CHUNK + 7);
        assert_eq!(slots.get(keys[CHUNK + 7]), None);
        assert_eq!(slots.get(NONE), None);
        assert_eq!(slots.len(), 3 * CHUNK - 1);
    }

    #[test]
    fn a_row_that_came_free_is_used_before_a_new_one() {
        let mut slots = Slots::new();
        let [first, second, _] = ["a", "b", "c"].map(|name| slots.insert(name));
        assert_eq!(slots.remove(first), "a");
        slots.free(second);
        assert_eq!([slots.insert("d"), slots.insert("e")], [second, first]);
        assert_eq!(slots.end(), 3);
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
