//! Counts and times of each job name.
//!
//! Invariants:
//! 1. There are at most [`MAX_NAMES`] rows, and one for all other names.
//! 2. A row counts ends in generations of five minutes and in minutes; both are cleared when they are first
//!    used again, so a tick visits no row.
//! 3. Running and pending counts are signed, since `started` and `ended` may be seen before `accepted`.

use std::{
    collections::HashMap,
    hash::{BuildHasherDefault, Hasher},
    time::Duration,
};

use crate::{
    state::histogram::{Histogram, Quantiles},
    text,
};

/// Number of names that have a row of their own: the first that are seen.
pub(crate) const MAX_NAMES: usize = 100;
const GENERATION: u64 = 300;
const GENERATIONS: usize = 3;
/// Number of minutes of the sparkline.
pub(crate) const MINUTES: usize = 15;
/// The name of the row for all other names.
pub(crate) const OTHER: &str = "other";

/// Hashes eight bytes a step. Names that collide on purpose gain nothing: there are [`MAX_NAMES`] at most.
#[derive(Debug, Default)]
struct NameHasher(u64);

impl NameHasher {
    #[inline]
    fn add(&mut self, word: u64) {
        self.0 = (self.0.rotate_left(5) ^ word).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    }
}

impl Hasher for NameHasher {
    #[inline]
    fn write(&mut self, bytes: &[u8]) {
        let mut words = bytes.chunks_exact(8);
        for word in &mut words {
            self.add(word.try_into().map_or(0, u64::from_le_bytes));
        }
        let rest = words.remainder().iter().fold(0, |rest, byte| rest << 8 | u64::from(*byte));
        self.add(rest);
    }

    #[inline]
    fn write_u8(&mut self, byte: u8) {
        self.add(byte.into());
    }

    #[inline]
    fn finish(&self) -> u64 {
        // The table of the map looks at the highest bits and at the lowest.
        self.0 ^ self.0 >> 32
    }
}

#[derive(Debug, Default)]
pub(crate) struct Names {
    rows: Vec<Row>,
    index: HashMap<Box<str>, usize, BuildHasherDefault<NameHasher>>,
    other: Option<usize>,
    /// The row that was looked up last: events of one name often follow each other.
    last: usize,
}

#[derive(Debug)]
struct Row {
    name: Box<str>,
    running: i64,
    pending: i64,
    generations: [Generation; GENERATIONS],
    minutes: [Minute; MINUTES],
}

#[derive(Clone, Debug, Default)]
struct Generation {
    number: u64,
    ended: u64,
    failed: u64,
    queue: Histogram,
    run: Histogram,
}

#[derive(Clone, Copy, Debug, Default)]
struct Minute {
    number: u64,
    ended: u32,
    failed: u32,
}

/// One name, as it is shown.
#[derive(Debug)]
pub(crate) struct NameView<'a> {
    pub(crate) name: &'a str,
    pub(crate) is_other: bool,
    pub(crate) running: u64,
    pub(crate) pending: u64,
    pub(crate) ended: u64,
    pub(crate) failed: u64,
    pub(crate) queue: Option<Quantiles>,
    pub(crate) run: Option<Quantiles>,
    pub(crate) per_minute: [u32; MINUTES],
    pub(crate) failed_per_minute: [u32; MINUTES],
}

/// The end of a job, as its name counts it.
#[derive(Clone, Copy, Debug)]
pub(crate) struct End {
    pub(crate) has_started: bool,
    pub(crate) is_failure: bool,
    pub(crate) ran: Duration,
}

impl Row {
    fn new(name: &str) -> Self {
        Self {
            name: name.into(),
            running: 0,
            pending: 0,
            generations: Default::default(),
            minutes: Default::default(),
        }
    }

    fn generation(&mut self, second: u64) -> &mut Generation {
        let number = second / GENERATION;
        let generation = &mut self.generations[slot(number, GENERATIONS)];
        if generation.number != number {
            *generation = Generation { number, ..Generation::default() };
        }
        generation
    }

    fn minute(&mut self, second: u64) -> &mut Minute {
        let number = second / 60;
        let minute = &mut self.minutes[slot(number, MINUTES)];
        if minute.number != number {
            *minute = Minute { number, ended: 0, failed: 0 };
        }
        minute
    }

    fn live(&self, second: u64) -> impl Iterator<Item = &Generation> {
        let now = second / GENERATION;
        self.generations.iter().filter(move |generation| {
            generation.number <= now && generation.number + GENERATIONS as u64 > now
        })
    }

    fn run_quantiles(&self, second: u64) -> Option<Quantiles> {
        let mut run = Histogram::default();
        self.live(second).for_each(|generation| run.merge(&generation.run));
        run.quantiles()
    }
}

fn slot(number: u64, slots: usize) -> usize {
    usize::try_from(number % slots as u64).unwrap_or(0)
}

impl Names {
    fn row(&mut self, name: &str) -> &mut Row {
        let is_last = self.rows.get(self.last).is_some_and(|row| *row.name == *name);
        if !is_last || self.other == Some(self.last) {
            self.last = self.place(name);
        }
        &mut self.rows[self.last]
    }

    fn place(&mut self, name: &str) -> usize {
        let name = text::cut(name, text::NAME);
        match self.index.get(&*name) {
            Some(at) => *at,
            None if self.index.len() < MAX_NAMES => {
                // Room for one: a vector would else make room for twice as many.
                self.rows.reserve_exact(1);
                self.rows.push(Row::new(&name));
                self.index.insert(name.into(), self.rows.len() - 1);
                self.rows.len() - 1
            }
            None => *self.other.get_or_insert_with(|| {
                self.rows.reserve_exact(1);
                self.rows.push(Row::new(OTHER));
                self.rows.len() - 1
            }),
        }
    }

    pub(crate) fn accepted(&mut self, name: &str) {
        self.row(name).pending += 1;
    }

    pub(crate) fn started(&mut self, name: &str, second: u64, queued: Duration) {
        let row = self.row(name);
        row.pending -= 1;
        row.running += 1;
        row.generation(second).queue.add(queued);
    }

    pub(crate) fn ended(&mut self, name: &str, second: u64, end: End) {
        let row = self.row(name);
        let left = if end.has_started { &mut row.running } else { &mut row.pending };
        *left -= 1;
        let failed = u32::from(end.is_failure);
        let minute = row.minute(second);
        minute.ended += 1;
        minute.failed += failed;
        let generation = row.generation(second);
        generation.ended += 1;
        generation.failed += u64::from(failed);
        if end.has_started {
            generation.run.add(end.ran);
        }
    }

    /// The 95th percentile of a name's run times, and the number of its ends, in the window.
    pub(crate) fn run_p95(&self, name: &str, second: u64) -> Option<(Duration, u64)> {
        let at = self.index.get(&*text::cut(name, text::NAME)).copied().or(self.other)?;
        let row = &self.rows[at];
        let ended = row.live(second).map(|generation| generation.ended).sum();
        Some((row.run_quantiles(second)?.p95, ended))
    }

    /// Length of the window in seconds: the last two generations, and the present one.
    pub(crate) fn window(second: u64, first_second: u64) -> u64 {
        let window = (GENERATIONS as u64 - 1) * GENERATION + second % GENERATION;
        window.min(second.saturating_sub(first_second))
    }

    pub(crate) fn view(&self, second: u64) -> impl Iterator<Item = NameView<'_>> {
        self.rows.iter().enumerate().map(move |(at, row)| {
            let mut queue = Histogram::default();
            let (mut ended, mut failed) = (0, 0);
            for generation in row.live(second) {
                queue.merge(&generation.queue);
                ended += generation.ended;
                failed += generation.failed;
            }
            let minute = |back: usize| {
                let number = (second / 60).saturating_sub((MINUTES - 1 - back) as u64);
                let minute = row.minutes[slot(number, MINUTES)];
                if minute.number == number { (minute.ended, minute.failed) } else { (0, 0) }
            };
            NameView {
                name: &row.name,
                is_other: self.other == Some(at),
                running: row.running.try_into().unwrap_or(0),
                pending: row.pending.try_into().unwrap_or(0),
                ended,
                failed,
                queue: queue.quantiles(),
                run: row.run_quantiles(second),
                per_minute: std::array::from_fn(|back| minute(back).0),
                failed_per_minute: std::array::from_fn(|back| minute(back).1),
            }
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MINUTE: u64 = 60;
    const END: End = End { has_started: true, is_failure: false, ran: Duration::from_millis(20) };

    fn run(names: &mut Names, name: &str, second: u64, end: End) {
        names.accepted(name);
        names.started(name, second, Duration::from_millis(2));
        names.ended(name, second, end);
    }

    #[test]
    fn ten_thousand_names_take_a_hundred_and_one_rows() {
        let mut names = Names::default();
        for number in 0..10_000 {
            run(&mut names, &format!("name {number}"), 0, END);
        }
        let rows: Vec<_> = names.view(0).collect();
        assert_eq!(rows.len(), MAX_NAMES + 1);
        assert_eq!(rows[7].name, "name 7");
        let other = rows.last().expect("rows");
        assert_eq!((other.name, other.is_other, other.ended), (OTHER, true, 9_900));
        assert!(size_of::<Row>() <= 4096);
    }

    #[test]
    fn job_called_other_is_not_counted_with_the_other_names() {
        let mut names = Names::default();
        run(&mut names, OTHER, 0, END);
        for number in 0..MAX_NAMES {
            run(&mut names, &format!("name {number}"), 0, END);
        }
        run(&mut names, OTHER, 0, END);
        let ended = |is_other| {
            let of = |row: &NameView<'_>| row.name == OTHER && row.is_other == is_other;
            names.view(0).find(of).map(|row| row.ended)
        };
        assert_eq!((ended(false), ended(true)), (Some(2), Some(1)));
    }

    #[test]
    fn ends_leave_the_window_after_fifteen_minutes() {
        let mut names = Names::default();
        run(&mut names, "a", 1_000 * MINUTE, END);
        run(&mut names, "a", 1_004 * MINUTE, End { is_failure: true, ..END });
        let at = |minute: u64| {
            let row = names.view(minute * MINUTE).next().expect("a row");
            (row.ended, row.failed, row.per_minute)
        };
        assert_eq!((at(1_005).0, at(1_005).1), (2, 1));
        assert_eq!(at(1_005).2[9..], [1, 0, 0, 0, 1, 0]);
        assert_eq!((at(1_014).0, at(1_014).2[0], at(1_014).2[4]), (2, 1, 1));
        assert_eq!((at(1_015).0, at(1_015).1), (0, 0));
        assert_eq!(at(1_020).2, [0; MINUTES]);
        assert_eq!(names.run_p95("a", 1_014 * MINUTE).map(|(_, ended)| ended), Some(2));
        assert_eq!(names.run_p95("a", 1_015 * MINUTE), None);
    }

    #[test]
    fn counts_follow_events_in_any_order() {
        let mut names = Names::default();
        names.started("a", 0, Duration::ZERO);
        let counts = |names: &Names| names.view(0).map(|row| (row.running, row.pending)).next();
        assert_eq!(counts(&names), Some((1, 0)));
        names.accepted("a");
        names.accepted("a");
        assert_eq!(counts(&names), Some((1, 1)));
        names.ended("a", 0, End { has_started: false, ..END });
        names.ended("a", 0, END);
        assert_eq!(counts(&names), Some((0, 0)));
    }

    #[test]
    fn window_grows_to_fifteen_minutes() {
        assert_eq!(Names::window(3_000, 2_990), 10);
        assert_eq!(Names::window(3_000, 0), 600);
        assert_eq!(Names::window(3_299, 0), 899);
    }

    #[test]
    fn job_that_never_started_has_no_run_time() {
        let mut names = Names::default();
        names.accepted("a");
        names.ended("a", 0, End { has_started: false, ..END });
        let row = names.view(0).next().expect("a row");
        assert_eq!((row.ended, row.run, row.queue), (1, None, None));
    }
}
