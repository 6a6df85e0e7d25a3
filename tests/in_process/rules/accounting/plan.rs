//! The parts of a history, and the visible states of a job.

use proptest::prelude::*;

#[derive(Clone, Copy, Debug)]
pub(super) struct Setup {
    pub(super) limit: Option<usize>,
    pub(super) pending_limit: Option<usize>,
    pub(super) close_timeout: u64,
}

pub(super) fn setup() -> impl Strategy<Value = Setup> {
    (
        prop_oneof![5 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![1 => Just(Some(0)), 4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop::sample::select(CLOSE_TIMEOUTS.to_vec()),
    )
        .prop_map(|(limit, pending_limit, close_timeout)| Setup {
            limit,
            pending_limit,
            close_timeout,
        })
}

/// How a job ends by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum End {
    Value,
    Error,
    Panic,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verb {
    Spawn,
    SpawnWith,
    SpawnTimeout(u64),
    TrySpawn,
    Shield,
}

/// The behaviour of one job.
#[derive(Clone, Copy, Debug)]
pub(super) struct Plan {
    pub(super) verb: Verb,
    /// In seconds, as all times of a history.
    pub(super) run_timeout: Option<u64>,
    /// Ends in its first poll.
    pub(super) at_once: Option<End>,
    /// How a job of `spawn_with` ends at its cancellation. `None`: it ignores it.
    pub(super) when_cancelled: Option<End>,
    pub(super) drop_panics: bool,
}

/// A number picks the job or the drain, among those to which the step can be done.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Offer(Plan),
    /// A running job ends by itself.
    End(usize, End),
    /// A running job tries to spawn another and ends.
    SpawnAndEnd(usize, Plan),
    /// The holder of a job is polled.
    Poll(usize),
    /// The holder of a job is dropped.
    Drop(usize),
    Abort(usize),
    CloseJob(usize),
    Drain(u64),
    Close,
    PollDrain(usize),
    DropDrain(usize),
    Announce,
    Advance(u64),
}

pub(super) fn end() -> impl Strategy<Value = End> {
    prop::sample::select(vec![End::Value, End::Error, End::Panic])
}

pub(super) fn plan() -> impl Strategy<Value = Plan> {
    let verb = prop_oneof![
        4 => Just(Verb::Spawn),
        3 => Just(Verb::SpawnWith),
        1 => (0..3_u64).prop_map(Verb::SpawnTimeout),
        3 => Just(Verb::TrySpawn),
        1 => Just(Verb::Shield),
    ];
    let one_in = |n| prop_oneof![n => Just(None), 1 => end().prop_map(Some)];
    let run_timeout = prop_oneof![4 => Just(None), 1 => (0..4_u64).prop_map(Some)];
    (verb, run_timeout, one_in(4), prop::option::of(end()), prop::bool::weighted(0.1)).prop_map(
        |(verb, run_timeout, at_once, when_cancelled, drop_panics)| Plan {
            verb,
            run_timeout,
            at_once,
            when_cancelled: when_cancelled.filter(|_| verb == Verb::SpawnWith),
            drop_panics,
        },
    )
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let at = any::<u8>().prop_map(usize::from);
    prop_oneof![
        80 => plan().prop_map(Step::Offer),
        30 => (at.clone(), end()).prop_map(|(at, end)| Step::End(at, end)),
        6 => (at.clone(), plan()).prop_map(|(at, plan)| Step::SpawnAndEnd(at, plan)),
        40 => at.clone().prop_map(Step::Poll),
        16 => at.clone().prop_map(Step::Drop),
        8 => at.clone().prop_map(Step::Abort),
        12 => at.clone().prop_map(Step::CloseJob),
        2 => (0..4_u64).prop_map(Step::Drain),
        1 => Just(Step::Close),
        8 => at.clone().prop_map(Step::PollDrain),
        2 => at.prop_map(Step::DropDrain),
        1 => Just(Step::Announce),
        12 => (1..4_u64).prop_map(Step::Advance),
    ]
}

/// In milliseconds. Steps happen at whole seconds. Each kind of deadline has its own fraction of a
/// second, so that deadlines of different kinds never coincide.
pub(super) fn run_timeout(seconds: u64) -> u64 {
    seconds * 1000 + 1
}

pub(super) fn drain_timeout(seconds: u64) -> u64 {
    seconds * 1000 + 200
}

pub(super) fn spawn_within(seconds: u64) -> u64 {
    if seconds == 0 { 0 } else { seconds * 1000 + 600 }
}

pub(super) const CLOSE_TIMEOUTS: [u64; 3] = [0, 400, 1400];
/// The time after its deadline that a close keeps for the drop of aborted futures. Here it always
/// suffices.
pub(super) const LANDING: u64 = 20;

/// The result of a poll, or a failure as it was reported.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Seen {
    Waiting,
    Accepted,
    Closed,
    Full,
    TimedOut,
    Value,
    Failed,
    Panicked,
    RanTooLong,
    /// The job outlived its close timeout, as its own failure.
    Overdue,
    Cancelled,
    /// The result was given before.
    Taken,
    JobClosed,
    /// The job outlived its close timeout, as the answer to the closer.
    DidNotClose,
}
