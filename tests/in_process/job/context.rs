//! A context of the spawner is around all code of its job: polls, closures, drops and the failure's hook.

use std::{
    cell::Cell,
    future::{Future, pending},
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicUsize, Ordering::SeqCst},
        mpsc as threads,
    },
    task::{Context, Poll},
    thread,
};

use http::Response;
use tokio::task::yield_now;
use tower_jobs::{Job, JobOutput, Scheduler, SchedulerBuilder};

use crate::support::{
    Grenade, OnDrop, PLENTY, SECOND,
    logs::Logs,
    oneshot::{respond, respond_with},
    turn, within,
};

thread_local! {
    static CURRENT: Cell<&'static str> = const { Cell::new("none") };
}

/// Runs `code` in the context of this name.
fn inside<T>(name: &'static str, code: impl FnOnce() -> T) -> T {
    let previous = CURRENT.replace(name);
    let _restored = OnDrop(move || CURRENT.set(previous));
    code()
}

fn carrying(builder: SchedulerBuilder) -> SchedulerBuilder {
    builder.context(|| CURRENT.get(), |name, code| inside(name, code))
}

fn carried() -> Scheduler {
    carrying(Scheduler::builder()).build()
}

/// What has happened, and the context in which it did.
#[derive(Clone, Default)]
struct Seen(Arc<Mutex<Vec<String>>>);

impl Seen {
    fn note(&self, event: &str) {
        self.0.lock().expect("no panic").push(format!("{event} in {}", CURRENT.get()));
    }

    /// Notes its own drop.
    fn on_drop(&self) -> OnDrop<impl FnMut() + Send + use<>> {
        let seen = self.clone();
        OnDrop(move || seen.note("drop"))
    }

    /// A future that is polled three times, and notes its polls and its drop.
    fn probe(&self) -> Probe {
        Probe(self.clone(), 3)
    }

    /// A future that never ends, and notes its drop.
    fn endless(&self) -> impl Future<Output = ()> + Send + use<> {
        let held = self.on_drop();
        async move {
            let _held = held;
            pending::<()>().await;
        }
    }

    /// The events since the last call.
    fn take(&self) -> Vec<String> {
        std::mem::take(&mut *self.0.lock().expect("no panic"))
    }
}

struct Probe(Seen, usize);

impl Future for Probe {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        self.0.note("poll");
        self.1 -= 1;
        cx.waker().wake_by_ref();
        if self.1 == 0 { Poll::Ready(()) } else { Poll::Pending }
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.0.note("drop");
    }
}

const PROBED: [&str; 4] =
    ["poll in request", "poll in request", "poll in request", "drop in request"];

async fn end_well<T: JobOutput<Value = T> + Send + 'static>(job: Job<T>) -> T {
    within("the job", job).await.expect("no failure")
}

/// The context at the call counts, not that at the first poll of a spawn future.
macro_rules! in_request {
    ($($spawn:tt)*) => {
        inside("request", || $($spawn)*)
    };
}

#[tokio::test]
async fn all_verbs_carry_the_context() {
    let (s, seen) = (carried(), Seen::default());
    let probe = || seen.probe();
    end_well(in_request!(s.spawn(probe())).await.unwrap()).await;
    assert_eq!(seen.take(), PROBED);
    end_well(in_request!(s.try_spawn(probe())).unwrap()).await;
    assert_eq!(seen.take(), PROBED);
    end_well(in_request!(s.spawn_within(SECOND, probe())).await.unwrap()).await;
    assert_eq!(seen.take(), PROBED);
    end_well(in_request!(s.job("named").timeout(PLENTY).spawn(probe())).await.unwrap()).await;
    assert_eq!(seen.take(), PROBED);
    let permit = s.reserve().await.unwrap();
    end_well(in_request!(permit.spawn(probe())).unwrap()).await;
    assert_eq!(seen.take(), PROBED);
    in_request!(s.shield(probe())).await.unwrap();
    assert_eq!(seen.take(), PROBED);

    let (made, future) = (seen.clone(), probe());
    let make = move |_| {
        made.note("make");
        future
    };
    end_well(in_request!(s.spawn_with(make)).await.unwrap()).await;
    assert_eq!(seen.take(), [&["make in request"][..], &PROBED[..]].concat());

    let (closure, held) = (seen.clone(), seen.on_drop());
    let closure = move || {
        closure.note("closure");
        drop(held);
        CURRENT.get()
    };
    assert_eq!(end_well(in_request!(s.spawn_blocking(closure)).await.unwrap()).await, "request");
    assert_eq!(seen.take(), ["closure in request", "drop in request"]);
    assert_eq!(CURRENT.get(), "none");
}

#[tokio::test]
async fn deferred_jobs_carry_the_context() {
    let (scheduler, seen) = (carried(), Seen::default());
    let open = respond(&scheduler).await;
    let jobs = &open.jobs;
    let plain = in_request!(jobs.after_response(seen.probe())).unwrap();
    drop(open.response);
    end_well(plain).await;
    assert_eq!(seen.take(), PROBED);

    let open = respond(&scheduler).await;
    let jobs = &open.jobs;
    let (made, blocking) = (seen.clone(), seen.clone());
    let make = move |_| {
        made.note("make");
        async {}
    };
    let closure = move |_| blocking.note("closure");
    let with = in_request!(jobs.after_response_with(make)).unwrap();
    let blocking = in_request!(jobs.after_response_blocking_with(closure)).unwrap();
    inside("the end of the response", || drop(open.response));
    end_well(with).await;
    end_well(blocking).await;
    let mut events = seen.take();
    events.sort();
    assert_eq!(events, ["closure in request", "make in request"]);
}

/// Ends a job in one way, before it has started.
#[derive(Clone, Copy, Debug)]
enum Ends {
    DeferredAborted,
    DeferredSkipped,
    PendingAborted,
    PendingReplaced,
    PendingCleared,
    PendingWhenClosed,
    DeferredWhenClosed,
}

#[tokio::test]
async fn unstarted_job_is_dropped_in_its_context() {
    use Ends::*;
    for ends in [
        DeferredAborted,
        DeferredSkipped,
        PendingAborted,
        PendingReplaced,
        PendingCleared,
        PendingWhenClosed,
        DeferredWhenClosed,
    ] {
        for blocking in [false, true] {
            let scheduler = carrying(Scheduler::builder().limit(1)).build();
            let seen = Seen::default();
            let (future, held) = (seen.endless(), seen.on_drop());
            let closure = move || drop(held);
            let running = scheduler.try_spawn(pending::<()>()).unwrap();
            // Dropped unread, it is no success.
            let open = respond_with(&scheduler, Response::new("hello".to_owned())).await;
            let job = || open.jobs.job("unstarted").unique_key("one");
            let unstarted = match (ends, blocking) {
                (DeferredSkipped, false) => in_request!(job().after_success(future)).unwrap(),
                (DeferredSkipped, true) => {
                    in_request!(job().after_success_blocking(closure)).unwrap()
                }
                (DeferredAborted | DeferredWhenClosed, false) => {
                    in_request!(job().after_response(future)).unwrap()
                }
                (DeferredAborted | DeferredWhenClosed, true) => {
                    in_request!(job().after_response_blocking(closure)).unwrap()
                }
                (_, false) => in_request!(job().try_spawn(future)).unwrap(),
                (_, true) => in_request!(job().spawn_blocking(closure)).await.unwrap(),
            };
            assert!(unstarted.is_deferred() || unstarted.is_pending());
            // The other of both is dropped here.
            seen.take();
            inside("elsewhere", || match ends {
                DeferredAborted | PendingAborted => unstarted.abort(),
                DeferredSkipped => drop(open.response),
                PendingReplaced => {
                    let other = open.jobs.job("other").unique_key_or_replace("one");
                    drop(other.try_spawn(async {}).unwrap());
                }
                PendingCleared => drop(scheduler.clear()),
                PendingWhenClosed | DeferredWhenClosed => {}
            });
            if matches!(ends, PendingWhenClosed | DeferredWhenClosed) {
                drop(scheduler.close().await);
            }
            assert!(within("its end", unstarted).await.unwrap_err().is_cancelled());
            // Other threads drop the jobs that a close has left.
            let events = within("its drop", async {
                loop {
                    match seen.take() {
                        events if events.is_empty() => yield_now().await,
                        events => break events,
                    }
                }
            });
            assert_eq!(events.await, ["drop in request"], "{ends:?}, blocking: {blocking}");
            running.abort();
        }
    }
}

#[tokio::test(start_paused = true)]
async fn active_job_cut_short_is_dropped_in_its_context() {
    let (scheduler, seen) = (carried(), Seen::default());
    let aborted = in_request!(scheduler.try_spawn(seen.endless())).unwrap();
    turn().await;
    aborted.abort();
    assert!(aborted.await.unwrap_err().is_cancelled());
    assert_eq!(seen.take(), ["drop in request"]);

    let job = scheduler.job("late").timeout(SECOND);
    let late = in_request!(job.try_spawn(seen.endless())).unwrap();
    assert!(late.await.unwrap_err().is_timeout());
    assert_eq!(seen.take(), ["drop in request"]);

    let held = seen.on_drop();
    let panics = async move {
        let _held = held;
        yield_now().await;
        panic!("boom")
    };
    let panicked = in_request!(scheduler.try_spawn::<_>(async move {
        panics.await;
    }))
    .unwrap();
    assert!(panicked.await.unwrap_err().is_panic());
    assert_eq!(seen.take(), ["drop in request"]);

    let endless = seen.endless();
    let closed = in_request!(scheduler.spawn_with(|_| endless)).await.unwrap();
    turn().await;
    drop(scheduler.close().await);
    assert!(closed.await.unwrap_err().is_close_timeout());
    assert_eq!(seen.take(), ["drop in request"]);
}

#[test]
fn job_whose_runtime_ends_is_dropped_in_its_context() {
    let (scheduler, seen) = (carried(), Seen::default());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(async {
        drop(in_request!(scheduler.try_spawn(seen.endless())).unwrap());
        turn().await;
        // Ready, and not begun.
        drop(in_request!(scheduler.try_spawn(seen.endless())).unwrap());
    });
    drop(runtime);
    assert_eq!(seen.take(), ["drop in request"; 2]);
}

/// A blocking job that is aborted before a thread has begun it.
#[test]
fn closure_without_a_thread_is_dropped_in_its_context() {
    let runtime =
        tokio::runtime::Builder::new_current_thread().max_blocking_threads(1).build().unwrap();
    let (scheduler, seen) = (carried(), Seen::default());
    let (release, released) = threads::channel::<()>();
    runtime.block_on(async {
        let busy = scheduler.spawn_blocking(move || released.recv().is_err()).await.unwrap();
        let held = seen.on_drop();
        let never = in_request!(scheduler.spawn_blocking(move || drop(held))).await.unwrap();
        turn().await;
        never.abort();
        assert!(never.await.unwrap_err().is_cancelled());
        drop(release);
        assert!(busy.await.unwrap());
    });
    drop(runtime);
    assert_eq!(seen.take(), ["drop in request"]);
}

#[tokio::test]
async fn job_of_a_job_carries_its_context() {
    let scheduler = carried();
    let inner = scheduler.clone();
    let outer = async move {
        yield_now().await;
        let job = inner.try_spawn(async { CURRENT.get() }).unwrap();
        Ok::<_, std::convert::Infallible>((CURRENT.get(), job.await.unwrap()))
    };
    let first = in_request!(scheduler.try_spawn(outer)).unwrap();
    let other = inside("other", || scheduler.try_spawn(async { CURRENT.get() })).unwrap();
    let none = scheduler.try_spawn(async { CURRENT.get() }).unwrap();
    assert_eq!(none.await.unwrap(), "none");
    assert_eq!(other.await.unwrap(), "other");
    assert_eq!(first.await.unwrap(), ("request", "request"));
}

// The failure's hook.

#[tokio::test]
async fn failure_hook_is_called_in_the_jobs_context() {
    let seen = Seen::default();
    let hook = seen.clone();
    let builder = Scheduler::builder().on_failure(move |failure| hook.note(&failure.job.name));
    let scheduler = carrying(builder).build();
    let detach = |name: &'static str| scheduler.job(name);
    drop(in_request!(detach("failing").try_spawn(async { Err::<(), _>("no") })).unwrap());
    let failing = || Err::<(), _>("no");
    drop(in_request!(detach("blocking").spawn_blocking(failing)).await.unwrap());
    scheduler.wait_idle().await;
    let mut events = seen.take();
    events.sort();
    assert_eq!(events, ["blocking in request", "failing in request"]);

    // A plain thread calls it while the scheduler closes.
    let held = Grenade;
    let closing = async move {
        let _held = held;
        pending::<()>().await;
    };
    drop(in_request!(detach("closing").try_spawn(closing)).unwrap());
    turn().await;
    drop(scheduler.close().await);
    assert_eq!(seen.take(), ["closing in request"]);
}

// Several hooks, and hooks that misbehave.

#[tokio::test]
async fn contexts_nest_the_first_outermost() {
    let seen = Seen::default();
    let (first, second) = (seen.clone(), seen.clone());
    let scheduler = Scheduler::builder()
        .context(
            || 1,
            move |number, code| {
                first.note(&format!("{number} begins"));
                inside("first", code);
                first.note(&format!("{number} ends"));
            },
        )
        .context(
            || "two".to_owned(),
            move |text, code| {
                second.note(&format!("{text} begins"));
                inside("second", code);
            },
        )
        .build();
    let in_job = seen.clone();
    scheduler.try_spawn(async move { in_job.note("job") }).unwrap().await.unwrap();
    let expected = ["1 begins in none", "two begins in first", "job in second", "1 ends in none"];
    assert_eq!(seen.take(), expected);
}

#[tokio::test]
async fn panic_of_a_job_does_not_reach_its_context() {
    let left = Arc::new(AtomicUsize::new(0));
    let leaves = left.clone();
    let scheduler = Scheduler::builder()
        .context(
            || (),
            move |(), code| {
                code();
                leaves.fetch_add(1, SeqCst);
            },
        )
        .build();
    let future = scheduler.try_spawn(async { panic!("boom") as () }).unwrap();
    assert!(future.await.unwrap_err().is_panic());
    assert_eq!(left.load(SeqCst), 1);
    let closure = scheduler.spawn_blocking(|| panic!("boom") as ()).await.unwrap();
    let error = closure.await.unwrap_err();
    assert_eq!(error.to_string(), "the job panicked: boom");
    // Around the closure, and around each poll that waits for it.
    assert!(left.load(SeqCst) >= 3);
}

#[tokio::test]
async fn job_runs_once_whatever_its_hook_does() {
    type Enter = fn(&u8, &mut dyn FnMut());
    let hooks: [(&str, Enter, bool); 4] = [
        ("does not call", |_, _| (), false),
        (
            "calls twice",
            |_, code| {
                code();
                code();
            },
            false,
        ),
        ("panics before", |_, _| panic!("a hook"), true),
        (
            "panics after",
            |_, code| {
                code();
                panic!("a hook")
            },
            true,
        ),
    ];
    for (name, enter, panics) in hooks {
        let (logs, _guard) = Logs::start();
        let builder = Scheduler::builder().context(|| 7, enter);
        let scheduler = carrying(builder).build();
        let (seen, runs) = (Seen::default(), Arc::new(AtomicUsize::new(0)));
        let counted = runs.clone();
        let closure = move || counted.fetch_add(1, SeqCst);
        end_well(in_request!(scheduler.try_spawn(seen.probe())).unwrap()).await;
        assert_eq!(seen.take(), PROBED, "{name}: the other context is there");
        end_well(in_request!(scheduler.spawn_blocking(closure)).await.unwrap()).await;
        assert_eq!(runs.load(SeqCst), 1, "{name}");
        let stats = scheduler.stats();
        assert_eq!((stats.completed, stats.accepted), (2, 2), "{name}");
        let logged = logs.iter().any(|event| event.field("message").contains("context hook"));
        assert_eq!(logged, panics, "{name}");
    }
}

#[tokio::test]
async fn panic_of_a_capture_leaves_the_job_without_context() {
    let (logs, _guard) = Logs::start();
    let builder = Scheduler::builder().context(|| panic!("a hook"), |(), _| unreachable!());
    let scheduler = carrying(builder).build();
    let seen = Seen::default();
    end_well(in_request!(scheduler.try_spawn(seen.probe())).unwrap()).await;
    assert_eq!(seen.take(), PROBED, "the other context is there");
    assert!(logs.iter().any(|event| event.field("message").contains("context hook")));

    // So does one whose context panics as it is dropped.
    let scheduler = Scheduler::builder().context(|| Grenade, |_, code| code()).build();
    end_well(scheduler.try_spawn(async {}).unwrap()).await;
    end_well(scheduler.spawn_blocking(|| ()).await.unwrap()).await;
    scheduler.wait_idle().await;
    assert_eq!((scheduler.stats().completed, scheduler.is_closed()), (2, false));
}

/// A lock held during the hooks would block the thread for ever.
#[test]
fn hooks_may_use_the_scheduler() {
    let (says, said) = threads::channel();
    thread::spawn(move || {
        let scheduler = Arc::new(Mutex::new(None::<Scheduler>));
        let (captures, enters) = (scheduler.clone(), scheduler.clone());
        let look = |scheduler: &Mutex<Option<Scheduler>>| {
            let scheduler = scheduler.lock().expect("no panic").clone().expect("it is built");
            (scheduler.stats().accepted, scheduler.jobs().len())
        };
        let built = one_at_a_time(
            move || look(&captures),
            move |_, code| {
                look(&enters);
                code();
            },
        );
        *scheduler.lock().expect("no panic") = Some(built.clone());
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let running = built.try_spawn(pending::<()>()).unwrap();
            let replaced = built.job("r").unique_key("r").try_spawn(pending::<()>()).unwrap();
            let replacing = built.job("r").unique_key_or_replace("r").try_spawn(async {}).unwrap();
            running.abort();
            replacing.await.unwrap();
            assert!(replaced.await.unwrap_err().is_cancelled());
            drop(built.spawn(pending::<()>()).await.unwrap());
            drop(built.close().await);
        });
        says.send(built.stats().accepted).expect("heard");
    });
    assert_eq!(said.recv_timeout(PLENTY), Ok(4));
}

fn one_at_a_time<C: Send + Sync + 'static>(
    capture: impl Fn() -> C + Send + Sync + 'static,
    enter: impl Fn(&C, &mut dyn FnMut()) + Send + Sync + 'static,
) -> Scheduler {
    Scheduler::builder().limit(1).context(capture, enter).build()
}
