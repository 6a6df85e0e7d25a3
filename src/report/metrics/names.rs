//! A bounded table of names, which is read without a lock.
//!
//! 1. An entry is never removed, and a name has at most one.
//! 2. There are at most [`MAX_NAMES`] entries. Further names share one, [`OTHER`].
//! 3. The entry of a name is in the first slot from its hash on that was free when the name came. So a
//!    reader that meets a free slot knows that the name is not in the table yet.
//! 4. Values are made outside the lock. If two threads make one at once, the second one is dropped.

use std::sync::{
    OnceLock,
    atomic::{AtomicBool, Ordering},
};

use crate::util::sync::{Mutex, lock};

/// Maximum number of names.
pub(super) const MAX_NAMES: usize = 100;

/// The name that stands for all further ones.
const OTHER: &str = "other";

/// A power of two, large enough that most names are in the slot of their hash.
const SLOTS: usize = 256;

pub(super) struct Names<T> {
    slots: Box<[OnceLock<Box<Entry<T>>>]>,
    len: Mutex<usize>,
    is_full: AtomicBool,
    other: Entry<T>,
}

struct Entry<T> {
    name: Box<str>,
    value: OnceLock<T>,
}

impl<T> Names<T> {
    pub(super) fn new() -> Self {
        Self {
            slots: (0..SLOTS).map(|_| OnceLock::new()).collect(),
            len: Mutex::new(0),
            is_full: AtomicBool::new(false),
            other: Entry::new(OTHER),
        }
    }

    /// Returns the value of a name, or the one that all names beyond [`MAX_NAMES`] share. The first of these
    /// calls `overflows`.
    #[inline]
    pub(super) fn of(
        &self,
        name: &str,
        make: impl FnOnce(&str) -> T,
        overflows: impl FnOnce(),
    ) -> &T {
        match self.find(name) {
            Ok(entry) => entry.value(make),
            Err(_) => self.add(name, overflows).value(make),
        }
    }

    /// Finds the entry, or else the slot for it.
    #[inline]
    fn find(&self, name: &str) -> Result<&Entry<T>, &OnceLock<Box<Entry<T>>>> {
        let mut at = hash(name);
        loop {
            let slot = &self.slots[at % SLOTS];
            match slot.get() {
                Some(entry) if *entry.name == *name => return Ok(entry),
                Some(_) => at += 1,
                None => return Err(slot),
            }
        }
    }

    #[cold]
    fn add(&self, name: &str, overflows: impl FnOnce()) -> &Entry<T> {
        if self.is_full.load(Ordering::Relaxed) {
            return &self.other;
        }
        let mut len = lock(&self.len);
        let slot = match self.find(name) {
            Ok(entry) => return entry,
            Err(slot) => slot,
        };
        if *len < MAX_NAMES {
            *len += 1;
            return slot.get_or_init(|| Box::new(Entry::new(name)));
        }
        drop(len);
        if !self.is_full.swap(true, Ordering::Relaxed) {
            overflows();
        }
        &self.other
    }
}

impl<T> Entry<T> {
    fn new(name: &str) -> Self {
        Self { name: name.into(), value: OnceLock::new() }
    }

    #[inline]
    fn value(&self, make: impl FnOnce(&str) -> T) -> &T {
        if let Some(value) = self.value.get() {
            return value;
        }
        let made = make(&self.name);
        self.value.get_or_init(|| made)
    }
}

/// FNV-1a. The table is small, and a bad hash makes it slow at worst.
#[inline]
fn hash(name: &str) -> usize {
    let mut hash: u32 = 0x811c_9dc5;
    for byte in name.bytes() {
        hash = (hash ^ u32::from(byte)).wrapping_mul(0x0100_0193);
    }
    (hash ^ (hash >> 16)) as usize % SLOTS
}

#[cfg(test)]
mod tests {
    use std::{
        collections::HashMap,
        sync::atomic::{AtomicUsize, Ordering::SeqCst},
        thread,
    };

    use super::*;

    #[test]
    fn each_name_has_one_value_up_to_the_bound() {
        let names = Names::new();
        let overflows = AtomicUsize::new(0);
        let made = Mutex::new(Vec::new());
        let seen = Mutex::new(HashMap::<String, Vec<usize>>::new());
        let of = |name: &str| {
            let make = |name: &str| {
                lock(&made).push(name.to_owned());
                AtomicUsize::new(0)
            };
            let overflow = || {
                overflows.fetch_add(1, SeqCst);
            };
            let value = names.of(name, make, overflow);
            value.fetch_add(1, SeqCst);
            let address = std::ptr::from_ref(value).addr();
            lock(&seen).entry(name.to_owned()).or_default().push(address);
        };
        thread::scope(|scope| {
            for shift in 0..4 {
                scope.spawn(move || {
                    for n in 0..150 {
                        of(&format!("name {}", (n + shift * 40) % 150));
                    }
                });
            }
        });
        let seen = lock(&seen);
        let addresses: Vec<_> = seen.values().flatten().collect();
        assert_eq!(addresses.len(), 600);
        let shared = |name: &str| seen[name].iter().any(|address| *address == other(&names));
        let alone = seen.keys().filter(|name| !shared(name)).count();
        assert_eq!((seen.len(), alone), (150, MAX_NAMES));
        for (name, addresses) in &*seen {
            let first = addresses[0];
            assert!(addresses.iter().all(|address| *address == first), "{name}");
        }
        let total: usize =
            names.entries().map(|entry| entry.value.get().unwrap().load(SeqCst)).sum();
        assert_eq!(total + names.other.value.get().unwrap().load(SeqCst), 600);
        assert_eq!(overflows.load(SeqCst), 1);
        // Threads that are first with a name at once may each make its value.
        let mut made = lock(&made).clone();
        made.sort();
        made.dedup();
        assert_eq!(made.len(), MAX_NAMES + 1);
    }

    fn other(names: &Names<AtomicUsize>) -> usize {
        std::ptr::from_ref(names.other.value.get().unwrap()).addr()
    }

    impl<T> Names<T> {
        fn entries(&self) -> impl Iterator<Item = &Entry<T>> {
            self.slots.iter().filter_map(|slot| slot.get().map(|entry| &**entry))
        }
    }
}
