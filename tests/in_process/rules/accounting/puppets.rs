//! The real scheduler and its jobs, which follow the orders of a history.

use std::{
    error::Error,
    fmt,
    future::{Future, poll_fn},
    mem,
    panic::{AssertUnwindSafe, catch_unwind, resume_unwind},
    pin::{Pin, pin},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::time::{Instant, sleep_until};
use tokio_test::task;
use tower_jobs::{DrainReport, Job, JobContext, JobError, Scheduler, SpawnError, TrySpawnError};

use super::plan::*;
use crate::support::{PLENTY, number};

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // A future must be dropped even if an assertion has poisoned its mutex.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[derive(Debug)]
pub(super) struct Oops;

impl fmt::Display for Oops {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("oops")
    }
}

impl Error for Oops {}

/// A panic that the panic hook does not print.
pub(super) fn panic_quietly() -> ! {
    resume_unwind(Box::new("scripted"))
}

pub(super) enum Order {
    End(End),
    SpawnAndEnd(Box<dyn FnOnce() + Send>),
}

/// The state that a test and its job share.
#[derive(Default)]
pub(super) struct Strings {
    pub(super) order: Option<Order>,
    pub(super) waker: Option<Waker>,
    pub(super) started: bool,
    pub(super) drops: u32,
    /// Whether dropping it panics.
    pub(super) drop_panics: bool,
}

/// The future of one job.
pub(super) struct Puppet {
    pub(super) number: usize,
    pub(super) strings: Arc<Mutex<Strings>>,
    pub(super) starts: Arc<Mutex<Vec<usize>>>,
    pub(super) done: bool,
}

pub(super) type Output = Result<usize, Oops>;

impl Puppet {
    pub(super) fn end(&mut self, end: End) -> Output {
        self.done = true;
        match end {
            End::Value => Ok(self.number),
            End::Error => Err(Oops),
            End::Panic => panic_quietly(),
        }
    }

    pub(super) async fn cancellable(
        mut self,
        context: JobContext,
        when_cancelled: Option<End>,
    ) -> Output {
        let Some(end) = when_cancelled else { return self.await };
        let mut cancelled = pin!(context.cancelled());
        poll_fn(|cx| match Pin::new(&mut self).poll(cx) {
            Poll::Pending => cancelled.as_mut().poll(cx).map(|()| self.end(end)),
            ready => ready,
        })
        .await
    }
}

impl Future for Puppet {
    type Output = Output;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Output> {
        assert!(!self.done, "polled after its end");
        let mut strings = lock(&self.strings);
        if !mem::replace(&mut strings.started, true) {
            lock(&self.starts).push(self.number);
        }
        strings.waker = Some(cx.waker().clone());
        let order = strings.order.take();
        drop(strings);
        match order {
            None => Poll::Pending,
            Some(Order::End(end)) => Poll::Ready(self.end(end)),
            Some(Order::SpawnAndEnd(spawn)) => {
                spawn();
                Poll::Ready(self.end(End::Value))
            }
        }
    }
}

impl Drop for Puppet {
    fn drop(&mut self) {
        let mut strings = lock(&self.strings);
        strings.drops += 1;
        let panics = strings.drop_panics;
        drop(strings);
        if panics && !std::thread::panicking() {
            panic_quietly();
        }
    }
}

pub(super) type Boxed<T> = task::Spawn<Pin<Box<dyn Future<Output = T>>>>;

pub(super) fn boxed<T>(future: impl Future<Output = T> + 'static) -> Boxed<T> {
    task::spawn(Box::pin(future))
}

/// The real holder of a job.
pub(super) enum Held {
    Gone,
    Spawner(Boxed<Result<Job<usize>, SpawnError>>),
    Handle(task::Spawn<Job<usize>>),
    Closer(Boxed<(Job<usize>, Result<(), JobError>)>),
    Shield(Boxed<Result<Output, JobError>>),
}

impl Held {
    /// Moves the holder into another task, so that another waker must be woken.
    pub(super) fn moved(self) -> Self {
        match self {
            Held::Gone => Held::Gone,
            Held::Spawner(spawner) => Held::Spawner(task::spawn(spawner.into_inner())),
            Held::Handle(job) => Held::Handle(task::spawn(job.into_inner())),
            Held::Closer(closer) => Held::Closer(task::spawn(closer.into_inner())),
            Held::Shield(shield) => Held::Shield(task::spawn(shield.into_inner())),
        }
    }

    pub(super) fn is_woken(&self) -> bool {
        match self {
            Held::Gone => false,
            Held::Spawner(spawner) => spawner.is_woken(),
            Held::Handle(job) => job.is_woken(),
            Held::Closer(closer) => closer.is_woken(),
            Held::Shield(shield) => shield.is_woken(),
        }
    }
}

pub(super) fn seen_error(error: &JobError) -> Seen {
    match error {
        error if error.is_failed() => Seen::Failed,
        error if error.is_panic() => Seen::Panicked,
        error if error.is_close_timeout() => Seen::Overdue,
        error if error.is_timeout() => Seen::RanTooLong,
        error if error.is_cancelled() => Seen::Cancelled,
        _ => Seen::Taken,
    }
}

pub(super) fn seen_refusal(error: SpawnError) -> Seen {
    match error {
        SpawnError::Closed => Seen::Closed,
        SpawnError::Full => Seen::Full,
        SpawnError::TimedOut => Seen::TimedOut,
        error => panic!("{error}"),
    }
}

pub(super) struct Real {
    pub(super) scheduler: Scheduler,
    pub(super) began: Instant,
    pub(super) strings: Vec<Arc<Mutex<Strings>>>,
    pub(super) held: Vec<Held>,
    pub(super) starts: Arc<Mutex<Vec<usize>>>,
    /// The calls of `on_failure`, by job.
    pub(super) reported: Arc<Mutex<Vec<(usize, Seen)>>>,
    /// How often the holder of each job got its failure.
    pub(super) answered: Vec<u32>,
    pub(super) drains: Vec<Option<Boxed<DrainReport>>>,
}

impl Real {
    pub(super) fn new(setup: &Setup) -> Self {
        let reported = Arc::new(Mutex::new(Vec::new()));
        let heard = reported.clone();
        let scheduler = Scheduler::builder()
            .limit(setup.limit)
            .pending_limit(setup.pending_limit)
            .close_timeout(Duration::from_millis(setup.close_timeout))
            .on_failure(move |failure| {
                let reported = (number(&failure.job.name), seen_error(&failure.error));
                lock(&heard).push(reported);
            })
            .build();
        Self {
            scheduler,
            began: Instant::now(),
            strings: Vec::new(),
            held: Vec::new(),
            starts: Arc::default(),
            reported,
            answered: Vec::new(),
            drains: Vec::new(),
        }
    }

    pub(super) fn puppet(&mut self, plan: Plan) -> Puppet {
        let order = plan.at_once.map(Order::End);
        let strings = Arc::new(Mutex::new(Strings { order, ..Strings::default() }));
        self.strings.push(strings.clone());
        self.held.push(Held::Gone);
        self.answered.push(0);
        let number = self.strings.len() - 1;
        Puppet { number, strings, starts: self.starts.clone(), done: false }
    }

    pub(super) fn offer(&mut self, plan: Plan) -> Seen {
        let puppet = self.puppet(plan);
        let number = puppet.number;
        let job = self.scheduler.job(number.to_string());
        let job = match plan.run_timeout {
            Some(seconds) => job.timeout(Duration::from_millis(run_timeout(seconds))),
            None => job,
        };
        self.held[number] = match plan.verb {
            Verb::Spawn => Held::Spawner(boxed(job.spawn(puppet))),
            Verb::SpawnWith => Held::Spawner(boxed(
                job.spawn_with(move |context| puppet.cancellable(context, plan.when_cancelled)),
            )),
            Verb::SpawnTimeout(seconds) => {
                let timeout = Duration::from_millis(spawn_within(seconds));
                Held::Spawner(boxed(job.spawn_within(timeout, puppet)))
            }
            Verb::Shield => Held::Shield(boxed(job.shield(puppet))),
            Verb::TrySpawn => return self.have(number, plan, job.try_spawn(puppet)),
        };
        let seen = self.poll(number, plan);
        if plan.verb == Verb::Shield && seen == Seen::Waiting {
            lock(&self.strings[number]).drop_panics = plan.drop_panics;
        }
        seen
    }

    /// Takes the answer of `try_spawn`.
    pub(super) fn have(
        &mut self,
        number: usize,
        plan: Plan,
        answer: Result<Job<usize>, TrySpawnError<Puppet>>,
    ) -> Seen {
        match answer {
            Ok(job) => {
                self.accepted(number, plan, job);
                Seen::Accepted
            }
            Err(refused) => {
                let seen = if refused.is_closed() { Seen::Closed } else { Seen::Full };
                assert_eq!(refused.into_future().number, number, "the future comes back");
                seen
            }
        }
    }

    pub(super) fn accepted(&mut self, number: usize, plan: Plan, job: Job<usize>) {
        lock(&self.strings[number]).drop_panics = plan.drop_panics;
        self.held[number] = Held::Handle(task::spawn(job));
    }

    pub(super) fn poll(&mut self, number: usize, plan: Plan) -> Seen {
        let mut held = mem::replace(&mut self.held[number], Held::Gone).moved();
        let seen = match &mut held {
            Held::Gone => unreachable!("a holder polls"),
            Held::Spawner(spawner) => match spawner.poll() {
                Poll::Pending => Seen::Waiting,
                Poll::Ready(Ok(job)) => {
                    self.accepted(number, plan, job);
                    return Seen::Accepted;
                }
                Poll::Ready(Err(error)) => return seen_refusal(error),
            },
            Held::Handle(job) => match job.poll() {
                Poll::Pending => Seen::Waiting,
                Poll::Ready(Ok(value)) => {
                    assert_eq!(value, number);
                    Seen::Value
                }
                Poll::Ready(Err(error)) => self.answer(number, seen_error(&error)),
            },
            Held::Shield(shield) => {
                // A shield that has given its answer is dropped.
                return match catch_unwind(AssertUnwindSafe(|| shield.poll())) {
                    Ok(Poll::Pending) => {
                        self.held[number] = held;
                        Seen::Waiting
                    }
                    Ok(Poll::Ready(Ok(Ok(_)))) => Seen::Value,
                    Ok(Poll::Ready(Ok(Err(Oops)))) => self.answer(number, Seen::Failed),
                    Ok(Poll::Ready(Err(error))) => self.answer(number, seen_error(&error)),
                    Err(_) => self.answer(number, Seen::Panicked),
                };
            }
            Held::Closer(closer) => match closer.poll() {
                Poll::Pending => Seen::Waiting,
                Poll::Ready((job, result)) => {
                    self.held[number] = Held::Handle(task::spawn(job));
                    return match result {
                        Ok(()) => Seen::JobClosed,
                        Err(error) if error.is_close_timeout() && self.is_running(number) => {
                            Seen::DidNotClose
                        }
                        Err(error) => self.answer(number, seen_error(&error)),
                    };
                }
            },
        };
        self.held[number] = held;
        seen
    }

    pub(super) fn is_running(&self, number: usize) -> bool {
        lock(&self.strings[number]).drops == 0
    }

    pub(super) fn answer(&mut self, number: usize, seen: Seen) -> Seen {
        self.answered[number] += u32::from(!matches!(seen, Seen::Cancelled | Seen::Taken));
        seen
    }

    pub(super) fn order(&self, number: usize, order: Order) {
        let mut strings = lock(&self.strings[number]);
        strings.order = Some(order);
        if let Some(waker) = strings.waker.take() {
            waker.wake();
        }
    }

    pub(super) fn drop_holder(&mut self, number: usize) {
        self.held[number] = Held::Gone;
    }

    pub(super) fn abort(&self, number: usize) {
        let Held::Handle(job) = &self.held[number] else { unreachable!("aborted by its handle") };
        job.abort();
    }

    pub(super) fn close_job(&mut self, number: usize, plan: Plan) -> Seen {
        let held = mem::replace(&mut self.held[number], Held::Gone);
        let Held::Handle(job) = held else { unreachable!("closed by its handle") };
        let mut job = job.into_inner();
        self.held[number] = Held::Closer(boxed(async move {
            let result = job.close().await;
            (job, result)
        }));
        self.poll(number, plan)
    }

    pub(super) fn drain(&mut self, timeout: Option<u64>) {
        let scheduler = self.scheduler.clone();
        self.drains.push(Some(boxed(async move {
            match timeout {
                Some(timeout) => {
                    scheduler.wait_and_close_within(Duration::from_millis(timeout)).await
                }
                None => scheduler.close().await,
            }
        })));
    }

    /// Polls until it is over if `is_over`: it may have to wait for the threads of hooks.
    pub(super) async fn poll_drain(&mut self, at: usize, is_over: bool) -> Option<DrainReport> {
        let drain = self.drains[at].take().expect("a drain that is there");
        let mut drain = task::spawn(drain.into_inner());
        let began = std::time::Instant::now();
        loop {
            match drain.poll() {
                Poll::Ready(report) => return Some(report),
                Poll::Pending if is_over && began.elapsed() < PLENTY => {
                    tokio::task::yield_now().await;
                }
                Poll::Pending => break,
            }
        }
        self.drains[at] = Some(drain);
        None
    }

    pub(super) async fn advance(&self, to: u64) {
        sleep_until(self.began + Duration::from_millis(to)).await;
    }

    /// Lets all tasks do what they can, without moving the clock.
    pub(super) async fn settle(&self) {
        for _ in 0..16 {
            tokio::task::yield_now().await;
        }
    }
}
