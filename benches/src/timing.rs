//! What a contender is, the loads it goes through, and how all of them are timed in turn.

use std::{
    future::Future,
    pin::Pin,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    runtime::{Builder, Runtime},
    task::JoinSet,
};

use crate::table::Table;

/// The flavour of a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Flavour {
    /// Two workers.
    MultiThread,
    /// The thread that asks.
    CurrentThread,
}

impl Flavour {
    /// Both.
    pub const ALL: [Self; 2] = [Self::MultiThread, Self::CurrentThread];

    /// Its name in tables.
    pub fn name(self) -> &'static str {
        match self {
            Self::MultiThread => "multi-thread",
            Self::CurrentThread => "current-thread",
        }
    }

    /// A runtime to be, which has neither a clock nor sockets yet.
    pub fn builder(self) -> Builder {
        let mut builder = match self {
            Self::MultiThread => Builder::new_multi_thread(),
            Self::CurrentThread => Builder::new_current_thread(),
        };
        builder.worker_threads(2);
        builder
    }

    /// A new runtime.
    pub fn runtime(self) -> Runtime {
        self.builder().enable_time().build().expect("a runtime")
    }
}

/// How jobs come.
#[derive(Clone, Copy, Debug)]
pub struct Load {
    /// How many tasks spawn jobs, at the same time.
    pub producers: usize,
    /// How often they do so. All jobs of one wave end before the next begins.
    pub waves: usize,
    /// How many jobs each producer spawns in one wave, without a pause.
    pub jobs: usize,
}

impl Load {
    /// All at once, from one producer.
    pub fn backlog(jobs: usize) -> Self {
        Self { producers: 1, waves: 1, jobs }
    }

    /// How many jobs there are in all.
    pub fn total(self) -> usize {
        self.producers * self.waves * self.jobs
    }
}

/// One way to have jobs done in the background. Lives as long as a server would.
pub trait Contender: Send + Sync + 'static {
    /// Spawns so many jobs; ends the jobs as well if that is how this contender learns of it.
    fn spawn(&self, jobs: usize) -> impl Future<Output = ()> + Send;

    /// Resolves when all jobs have ended.
    fn wait(&self) -> impl Future<Output = ()> + Send {
        async {}
    }
}

/// Puts a contender through a load.
pub async fn run<C: Contender>(contender: Arc<C>, load: Load) {
    for _ in 0..load.waves {
        if load.producers == 1 {
            contender.spawn(load.jobs).await;
        } else {
            let mut producers = JoinSet::new();
            for _ in 0..load.producers {
                let contender = contender.clone();
                producers.spawn(async move { contender.spawn(load.jobs).await });
            }
            producers.join_all().await;
        }
        contender.wait().await;
    }
}

/// What a benchmark can keep many of, whatever they do.
pub type BoxedFuture = Pin<Box<dyn Future<Output = ()> + Send>>;

/// A contender by its name, ready to go through a load.
pub struct Entrant {
    /// Its name in tables.
    pub name: &'static str,
    run: Box<dyn Fn(Load) -> BoxedFuture>,
}

impl std::fmt::Debug for Entrant {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Entrant").field("name", &self.name).finish_non_exhaustive()
    }
}

impl Entrant {
    /// Enters a contender.
    pub fn new<C: Contender>(name: &'static str, contender: C) -> Self {
        let contender = Arc::new(contender);
        Self { name, run: Box::new(move |load| Box::pin(run(contender.clone(), load))) }
    }

    /// How long it takes. The producer is a task among the others, as a handler is.
    pub fn time(&self, runtime: &Runtime, load: Load) -> Duration {
        let run = (self.run)(load);
        let begin = Instant::now();
        runtime.block_on(async { tokio::spawn(run).await.expect("a run without a panic") });
        let elapsed = begin.elapsed();
        if load.total() > LARGE {
            runtime.block_on(settle());
        }
        elapsed
    }
}

/// More jobs than this may leave something behind.
const LARGE: usize = 100_000;

/// Has the tasks of a run end that only give memory back, or nobody else's time would be its own.
async fn settle() {
    let (begin, patience) = (Instant::now(), Duration::from_millis(50));
    while begin.elapsed() < patience {
        tokio::task::yield_now().await;
    }
}

/// So many rounds after one to warm up, in each of which everybody has a turn, in another order
/// each time. `turn` takes the number of a contender.
pub fn in_turns<T>(count: usize, rounds: usize, mut turn: impl FnMut(usize) -> T) -> Vec<Vec<T>> {
    let mut round = |round: usize| {
        let mut turns: Vec<_> = (0..count)
            .map(|at| {
                let at = if round.is_multiple_of(2) { at } else { count - at };
                let contender = (round + at) % count;
                (contender, turn(contender))
            })
            .collect();
        turns.sort_by_key(|(contender, _)| *contender);
        turns.into_iter().map(|(_, told)| told).collect()
    };
    round(0);
    (1..=rounds).map(round).collect()
}

/// The times of several contenders, in nanoseconds per job: one of each contender in each round.
#[derive(Debug)]
pub struct Times {
    names: Vec<&'static str>,
    rounds: Vec<Vec<f64>>,
}

impl Times {
    /// Times contenders [in turns](in_turns). `time` takes the number of a contender, and gives its
    /// nanoseconds per job.
    pub fn take(names: &[&'static str], rounds: usize, time: impl FnMut(usize) -> f64) -> Self {
        Self { names: names.to_vec(), rounds: in_turns(names.len(), rounds, time) }
    }

    /// What is the same in every round, such as a count.
    pub fn counted(counts: &[(&'static str, f64)]) -> Self {
        let (names, counts) = counts.iter().copied().unzip();
        Self { names, rounds: vec![counts] }
    }

    /// Times everybody on one load.
    pub fn of(entrants: &[Entrant], runtime: &Runtime, load: Load, rounds: usize) -> Self {
        let names: Vec<_> = entrants.iter().map(|entrant| entrant.name).collect();
        Self::take(&names, rounds, |contender| {
            per_job(entrants[contender].time(runtime, load), load.total())
        })
    }

    fn column(&self, name: &str) -> Option<usize> {
        self.names.iter().position(|known| *known == name)
    }

    /// The median of one contender's times.
    pub fn median(&self, name: &str) -> Option<f64> {
        let column = self.column(name)?;
        Some(median(self.rounds.iter().map(|times| times[column]).collect()))
    }

    /// The median of the differences between two contenders.
    pub fn more(&self, name: &str, than: &str) -> Option<f64> {
        let (column, than) = (self.column(name)?, self.column(than)?);
        Some(median(self.rounds.iter().map(|times| times[column] - times[than]).collect()))
    }

    /// The median of the ratios between two contenders.
    pub fn ratio(&self, name: &str, to: &str) -> Option<f64> {
        let (column, to) = (self.column(name)?, self.column(to)?);
        Some(median(self.rounds.iter().map(|times| times[column] / times[to]).collect()))
    }

    /// All contenders and their medians.
    pub fn medians(&self) -> impl Iterator<Item = (&'static str, f64)> {
        self.names.iter().map(|name| (*name, self.median(name).unwrap_or(f64::NAN)))
    }

    /// A table with one contender a line, and its ratios to those named, if they take part.
    pub fn table(&self, unit: &str, to: &[&str]) -> Table {
        let to: Vec<_> = to.iter().filter(|name| self.column(name).is_some()).collect();
        let columns = [String::new(), unit.to_owned()].into_iter();
        let mut table = Table::new(columns.chain(to.iter().map(|name| format!("of {name}"))));
        for (name, median) in self.medians() {
            let ratios = to.iter().map(|to| self.ratio(name, to).unwrap_or(f64::NAN));
            let cells = [name.to_owned(), format!("{median:.0}")].into_iter();
            table.row(cells.chain(ratios.map(|ratio| format!("{ratio:.2}"))));
        }
        table
    }
}

/// Nanoseconds per job.
pub fn per_job(time: Duration, jobs: usize) -> f64 {
    time.as_nanos() as f64 / jobs as f64
}

/// The middle one; of an even number, the upper.
pub fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values.get(values.len() / 2).copied().unwrap_or(f64::NAN)
}

/// What so many in 1000 of the values, which are sorted, do not exceed.
pub fn percentile(sorted: &[f64], permille: usize) -> f64 {
    let rank = (sorted.len() * permille).div_ceil(1000);
    sorted.get(rank.saturating_sub(1)).copied().unwrap_or(f64::NAN)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_median_is_in_the_middle() {
        assert_eq!(median(vec![3.0, 1.0, 2.0]), 2.0);
        assert_eq!(median(vec![4.0, 1.0, 3.0, 2.0]), 3.0);
        assert!(median(Vec::new()).is_nan());
    }

    #[test]
    fn a_percentile_is_one_of_the_values() {
        let values: Vec<_> = (1..=2000).map(f64::from).collect();
        let percentiles = [0, 500, 990, 999, 1000].map(|permille| percentile(&values, permille));
        assert_eq!(percentiles, [1.0, 1000.0, 1980.0, 1998.0, 2000.0]);
        assert_eq!(percentile(&values[..3], 999), 3.0);
        assert!(percentile(&[], 500).is_nan());
    }

    #[test]
    fn ratios_are_within_rounds() {
        // As if the machine had got slower and slower.
        let mut machine = 0.0;
        let times = Times::take(&["one", "two"], 5, |contender| {
            machine += 100.0;
            machine * [1.0, 2.0][contender]
        });
        assert_eq!(times.rounds.len(), 5);
        let ratio = times.ratio("two", "one").expect("both took part");
        assert!((1.5..=3.0).contains(&ratio), "{ratio}");
        assert_eq!(times.ratio("two", "three"), None);
        assert_eq!(times.more("one", "one"), Some(0.0));
    }

    #[test]
    fn everybody_has_a_turn_in_each_round() {
        let mut turns = Vec::new();
        let told = in_turns(3, 3, |contender| {
            turns.push(contender);
            contender
        });
        assert_eq!(told, [[0, 1, 2]; 3]);
        for round in turns.chunks_mut(3) {
            round.sort_unstable();
            assert_eq!(round, [0, 1, 2]);
        }
        assert_eq!(turns.len(), 12);
    }

    #[test]
    fn a_table_has_the_ratios_to_those_who_take_part() {
        let table = Times::counted(&[("a", 10.0), ("b", 25.0)]).table("ns", &["c", "a"]);
        let expected = "|  | ns | of a |\n|---|---:|---:|\n| a | 10 | 1.00 |\n| b | 25 | 2.50 |\n";
        assert_eq!(table.to_string(), expected);
    }
}
