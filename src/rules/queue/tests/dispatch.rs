//! Invariant 12, the lists of the table, and the runners: see [`dispatch`](crate::rules::dispatch).

use proptest::{
    prelude::*,
    test_runner::{TestCaseResult, TestRunner},
};

use super::*;

const NOW: Moment = Moment::from_nanos(0);

/// A queue whose runners arrive when the test says so.
struct Crew {
    queue: Queue<Job, Task>,
    threads: u32,
    jobs: Vec<Job>,
    requested: Vec<Stealable>,
    /// The job of each runner, and whether the runner is rolling.
    runners: Vec<(usize, bool)>,
    /// Jobs in the order in which runners took them.
    order: Vec<usize>,
}

impl Crew {
    fn new(limit: impl Into<Option<usize>>, threads: u32) -> Self {
        let mut queue = Queue::new(limit.into(), None, None, None);
        queue.set_threads(threads);
        let (jobs, requested) = (Vec::new(), Vec::new());
        Self { queue, threads, jobs, requested, runners: Vec::new(), order: Vec::new() }
    }

    fn wake(&mut self, wake: Wake) -> Wake {
        match wake {
            Wake::None | Wake::IdleWaiters => {}
            Wake::One => self.requested.push(Stealable::Unknown),
            Wake::OneStealable => self.requested.push(Stealable::Yes),
            Wake::Two => self.requested.extend([Stealable::Yes, Stealable::Unknown]),
        }
        wake
    }

    fn take(&mut self, task: Task, is_rolling: bool) {
        let number = task.take();
        self.runners.push((number, is_rolling));
        self.order.push(number);
    }

    fn offer(&mut self) -> Wake {
        self.offer_as(Admit::Limited)
    }

    fn offer_as(&mut self, how: Admit) -> Wake {
        let job = Job::new(how, NO_NAMES);
        let task = Task::new(self.jobs.len());
        let admitted = self.queue.admit(how, job.clone(), || task, NOW);
        let Ok(Effects { wake, .. }) = admitted else { panic!("there is room") };
        self.jobs.push(job);
        self.wake(wake)
    }

    fn offer_many(&mut self, jobs: usize) {
        for _ in 0..jobs {
            self.offer();
        }
    }

    /// A requested runner arrives.
    fn arrive(&mut self, at: usize) -> Wake {
        let stealable = self.requested.remove(at);
        let (task, wake) = self.queue.runner_arrived(stealable);
        task.into_iter().for_each(|task| self.take(task, false));
        self.wake(wake)
    }

    /// The job of a runner ends. Returns whether the runner rolls on.
    fn advance(&mut self, at: usize) -> bool {
        let (number, was_rolling) = self.runners.remove(at);
        let job = self.jobs[number].place();
        let step = self.queue.advance(job, Outcome::Completed, was_rolling, NOW);
        let rolls_on = step.next.is_some();
        step.next.into_iter().for_each(|task| self.take(task, true));
        self.wake(step.wake);
        rolls_on
    }

    /// The job of a runner waits. Only a rolling runner says so.
    fn wait(&mut self, at: usize) {
        if std::mem::take(&mut self.runners[at].1) {
            let wake = self.queue.rolling_runner_waits();
            self.wake(wake);
        }
    }

    fn rolling(&self) -> usize {
        self.runners.iter().filter(|(_, is_rolling)| *is_rolling).count()
    }

    fn ready(&self) -> u32 {
        self.queue.hot.dispatch.ready()
    }

    /// Runs the remaining jobs, one runner after the other.
    fn run_all(&mut self) {
        while !(self.requested.is_empty() && self.runners.is_empty()) {
            if self.runners.is_empty() {
                self.arrive(0);
            } else {
                self.advance(0);
            }
            self.check();
        }
    }

    fn check(&self) {
        check_line(&self.queue);
        let ready = self.ready();
        let is_covered = self.requested.contains(&Stealable::Yes)
            || self.rolling() >= self.threads as usize
            || (ready == 1 && !self.requested.is_empty());
        assert!(ready == 0 || is_covered, "{ready} jobs are stuck");
        assert!(self.rolling() <= self.threads as usize);
    }
}

impl Drop for Crew {
    /// Takes back the work that is still in the table.
    fn drop(&mut self) {
        self.queue.close();
        for task in self.queue.drain_unstarted(usize::MAX).1 {
            task.take();
        }
        while let Some(task) = self.queue.pop_ready() {
            task.take();
        }
    }
}

/// The active jobs come before the pending ones, the ready jobs are the last active ones, and the links
/// agree in both directions.
fn check_line(queue: &Queue<Job, Task>) {
    let Hot { table, line, dispatch, .. } = &queue.hot;
    let (mut active, mut pending, mut ready) = (0, 0, 0);
    let (mut first_pending, mut first_ready) = (NONE, NONE);
    let (mut index, mut previous) = (line.list.first, NONE);
    while index != NONE {
        let row = &table[index];
        assert_eq!(row.links.previous, previous);
        if row.state() == JobState::Active {
            assert_eq!(pending, 0, "an active job is behind a pending one");
            active += 1;
            if row.work.is_some() {
                ready += 1;
                if ready == 1 {
                    first_ready = index;
                }
            }
            assert!(ready == 0 || row.work.is_some(), "a taken job is behind a ready one");
        } else {
            pending += 1;
            if pending == 1 {
                first_pending = index;
            }
        }
        (previous, index) = (index, row.links.next);
    }
    assert_eq!((line.list.last, line.border), (previous, first_pending));
    assert_eq!((line.active, line.pending, dispatch.ready()), (active, pending, ready));
    assert!(ready == 0 || dispatch.first_ready() == Some(first_ready));
}

/// The hot fields that each job changes share two cache lines with the lock, which is one word.
#[test]
fn hot_fields_are_in_two_cache_lines() {
    let completed = std::mem::offset_of!(Totals, outcomes) + Outcome::Completed as usize * 8;
    let totals = std::mem::offset_of!(Hot<Job, Task>, totals);
    let end = std::mem::offset_of!(Queue<Job, Task>, hot) + totals + completed + 8;
    assert!(8 + end <= 128, "{end}");
}

#[test]
fn one_runner_is_requested_for_one_job_and_two_for_many() {
    let mut crew = Crew::new(None, 4);
    assert_eq!([(); 4].map(|()| crew.offer()), [Wake::One, Wake::Two, Wake::None, Wake::None]);
}

#[test]
fn on_one_thread_one_runner_is_requested() {
    let mut crew = Crew::new(None, 1);
    let one = Wake::OneStealable;
    assert_eq!([(); 3].map(|()| crew.offer()), [one, Wake::None, Wake::None]);
    assert_eq!(crew.arrive(0), one, "its job may wait");
    assert_eq!(crew.arrive(0), one);
    assert_eq!(crew.arrive(0), Wake::None);
}

/// Dispatch 1: an unstealable runner may be stuck with the thread that requested it.
#[test]
fn unstealable_runner_of_another_thread_does_not_count() {
    let mut crew = Crew::new(None, 4);
    crew.offer();
    crew.arrive(0);
    crew.offer();
    assert!(crew.advance(0));
    assert_eq!(crew.requested, [Stealable::Unknown]);
    assert_eq!(crew.offer(), Wake::One, "by its own thread");
    assert_eq!(crew.offer(), Wake::Two);
}

/// Dispatch 1: a runner may be stuck in the job that it takes.
#[test]
fn arriving_runner_requests_two_while_jobs_are_ready() {
    let mut crew = Crew::new(None, 4);
    crew.offer_many(4);
    assert_eq!(crew.requested, [Stealable::Unknown, Stealable::Yes, Stealable::Unknown]);
    assert_eq!(crew.arrive(0), Wake::None, "one is on its way");
    assert_eq!(crew.arrive(0), Wake::Two);
}

/// Invariant 12.
#[test]
fn jobs_are_taken_in_the_order_they_started() {
    let mut crew = Crew::new(3, 1);
    crew.offer_many(6);
    crew.run_all();
    assert_eq!(crew.order, [0, 1, 2, 3, 4, 5]);
}

#[test]
fn runner_rolls_on_while_jobs_are_ready() {
    let mut crew = Crew::new(1, 4);
    crew.offer_many(4);
    crew.arrive(0);
    assert_eq!([(); 4].map(|()| crew.advance(0)), [true, true, true, false]);
    assert!(crew.requested.is_empty(), "no other runner is needed");
}

/// Dispatch 2: without this rule each job that waited would leave a runner behind.
#[test]
fn at_most_as_many_runners_roll_as_there_are_threads() {
    let mut crew = Crew::new(None, 2);
    crew.offer_many(10);
    while !crew.requested.is_empty() {
        crew.arrive(0);
    }
    assert_eq!(crew.runners.len(), 10, "each of them with a runner of its own");
    crew.offer_many(40);
    let rolled_on = (0..10).filter(|_| crew.advance(0)).count();
    assert_eq!((rolled_on, crew.rolling()), (2, 2));
    crew.check();
}

/// Dispatch 1: while enough runners roll, none is requested for a backlog.
#[test]
fn backlog_of_short_jobs_requests_no_more_runners() {
    let mut crew = Crew::new(None, 2);
    crew.offer_many(100);
    while crew.rolling() < 2 || !crew.requested.is_empty() {
        if !crew.requested.is_empty() {
            crew.arrive(0);
        }
        crew.advance(0);
    }
    while crew.ready() > 0 {
        crew.advance(0);
        assert!(crew.requested.is_empty());
    }
}

/// Dispatch 1: a rolling runner whose job waits is replaced.
#[test]
fn waiting_job_of_a_rolling_runner_requests_another() {
    let mut crew = Crew::new(None, 1);
    crew.offer_many(4);
    crew.arrive(0);
    assert!(crew.advance(0));
    while !crew.requested.is_empty() {
        crew.arrive(0);
    }
    crew.offer_many(2);
    assert!(crew.requested.is_empty(), "the rolling runner comes to them");
    let rolling = crew.runners.iter().position(|(_, is_rolling)| *is_rolling);
    crew.wait(rolling.expect("one rolls"));
    assert_eq!(crew.requested, [Stealable::Yes]);
}

/// Invariant 12: its neighbours stay in order.
#[test]
fn ready_job_that_ends_without_a_runner_returns_its_work() {
    let mut crew = Crew::new(None, 4);
    crew.offer_many(3);
    for number in [1, 0] {
        let job = crew.jobs[number].place();
        let (.., task) = crew.queue.finish(job, Outcome::Abandoned, NOW);
        assert_eq!(task.map(Task::take), Some(number));
    }
    crew.arrive(0);
    assert_eq!(crew.order, [2]);
    assert_eq!(crew.queue.active_count(), 1);
}

type Steps = Vec<(u8, usize)>;

fn run_histories(test: impl Fn((u32, Option<usize>, Steps)) -> TestCaseResult) {
    let steps = prop::collection::vec((0..8_u8, any::<usize>()), 1..80);
    let history = (1..4_u32, prop::option::of(1..5_usize), steps);
    let config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if let Err(error) = TestRunner::new(config).run(&history, test) {
        panic!("{error}");
    }
}

/// One step of runners and spawners.
fn take_step(crew: &mut Crew, step: u8, at: usize) {
    match step {
        0 | 1 => crew.offer_many(1),
        2 if !crew.requested.is_empty() => {
            crew.arrive(at % crew.requested.len());
        }
        3 if !crew.runners.is_empty() => {
            crew.advance(at % crew.runners.len());
        }
        4 if !crew.runners.is_empty() => crew.wait(at % crew.runners.len()),
        _ => {}
    }
}

/// Invariant 12, and dispatch 1 and 2. If the requested runners arrive, all jobs run.
#[test]
fn ready_jobs_are_covered_after_every_step() {
    run_histories(|(threads, limit, steps)| {
        let mut crew = Crew::new(limit, threads);
        for (step, at) in steps {
            take_step(&mut crew, step, at);
            crew.check();
        }
        crew.run_all();
        assert!(crew.queue.is_idle());
        assert_eq!(crew.order, Vec::from_iter(0..crew.jobs.len()));
        Ok(())
    });
}

/// Jobs leave from anywhere: shielded work comes and goes, pending jobs are removed, ready jobs end
/// without a runner.
#[test]
fn line_stays_in_order_whichever_job_leaves() {
    run_histories(|(threads, limit, steps)| {
        let mut crew = Crew::new(limit, threads);
        for (step, at) in steps {
            let number = at % crew.jobs.len().max(1);
            let job = crew.jobs.get(number).map(Job::place);
            match (step, job) {
                (5, _) => {
                    crew.offer_as(Admit::Outside);
                }
                (6, Some(job)) => {
                    let removed = crew.queue.remove(job, Outcome::Cancelled, NOW);
                    if let Some((task, effects)) = removed {
                        task.take();
                        crew.wake(effects.wake);
                    }
                }
                (7, Some(job)) if crew.runners.iter().all(|(taken, _)| *taken != number) => {
                    let (effects, _, task) = crew.queue.finish(job, Outcome::Abandoned, NOW);
                    task.map(Task::take);
                    crew.wake(effects.wake);
                }
                _ => take_step(&mut crew, step, at),
            }
            crew.check();
        }
        crew.queue.close();
        loop {
            let (jobs, tasks) = crew.queue.drain_unstarted(2);
            tasks.into_iter().for_each(|task| assert!(task.take() < crew.jobs.len()));
            check_line(&crew.queue);
            if jobs.is_empty() {
                return Ok(());
            }
        }
    });
}
