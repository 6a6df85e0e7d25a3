//! One task runs many jobs, one a poll. Panics, aborts, spans and drops stay with their jobs, and neither
//! jobs nor other tasks starve.

use std::{
    collections::HashSet,
    convert::Infallible,
    future::{Future, pending, poll_fn},
    io::Write,
    pin::Pin,
    sync::{
        Arc, Barrier, Mutex,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    task::Poll,
    time::Duration,
};

use futures_util::FutureExt;
use tokio::{
    io::AsyncReadExt,
    sync::{Semaphore, mpsc, oneshot},
    task::{coop, yield_now},
};
use tower_jobs::{Job, Scheduler, SpanLink};

use crate::support::{
    PLENTY, give_way_once,
    http::listen,
    logs::{Logs, span_names},
    oneshot::{Open, respond},
    turn,
};

fn one_at_a_time() -> Scheduler {
    Scheduler::builder().limit(1).pending_limit(None).on_failure(drop).build()
}

/// Holds the only place until the sender sends, so that jobs pile up behind it.
async fn hold(scheduler: &Scheduler) -> oneshot::Sender<()> {
    let (open, opened) = oneshot::channel();
    let (begun, begins) = oneshot::channel();
    let holding = async {
        begun.send(()).expect("heard");
        drop(opened.await);
    };
    scheduler.spawn(holding).await.expect("there is a place");
    begins.await.expect("it begins");
    open
}

/// The task that is running. It is the same for all jobs of one task.
fn this_task() -> tokio::task::Id {
    tokio::task::id()
}

#[tokio::test]
async fn task_runs_the_next_job_whatever_became_of_the_last() {
    let scheduler = one_at_a_time();
    let open = hold(&scheduler).await;
    let (tell, mut heard) = mpsc::unbounded_channel();
    let mut jobs: Vec<Job<()>> = Vec::new();
    for n in 0..6 {
        let tell = tell.clone();
        let job = async move {
            tell.send(this_task()).expect("heard");
            match n {
                0 => panic!("no"),
                1 => Err("no"),
                2 => pending().await,
                _ => Ok(()),
            }
        };
        jobs.push(scheduler.spawn(job).await.unwrap());
    }
    drop(tell);
    open.send(()).unwrap();
    let mut tasks = HashSet::new();
    for _ in 0..3 {
        tasks.insert(heard.recv().await.unwrap());
    }
    assert!(jobs[0].is_finished() && jobs[1].is_finished() && jobs[2].is_active());
    assert!(jobs[3].is_pending());
    jobs[2].abort();
    while let Some(task) = heard.recv().await {
        tasks.insert(task);
    }
    assert_eq!(tasks.len(), 1, "one task runs them all");
    let mut ends = Vec::new();
    for job in jobs {
        ends.push(job.await.map_err(|error| error.to_string()));
    }
    let error = |text: &str| Err(text.to_owned());
    assert_eq!(
        ends,
        [
            error("the job panicked: no"),
            error("the job failed"),
            error("the job was cancelled"),
            Ok(()),
            Ok(()),
            Ok(())
        ]
    );
}

#[tokio::test]
async fn short_jobs_share_a_task() {
    let scheduler = Scheduler::builder().limit(None).build();
    let (tell, mut heard) = mpsc::unbounded_channel();
    for _ in 0..200 {
        let tell = tell.clone();
        drop(scheduler.try_spawn(async move { tell.send(this_task()).expect("heard") }));
    }
    drop(tell);
    let mut tasks = HashSet::new();
    while let Some(task) = heard.recv().await {
        tasks.insert(task);
    }
    assert!(tasks.len() <= 3, "{} tasks", tasks.len());
}

#[tokio::test]
async fn jobs_that_come_one_after_the_other_share_a_task() {
    let scheduler = Scheduler::new();
    let mut tasks = HashSet::new();
    for _ in 0..10 {
        let job = async { Ok::<_, Infallible>(this_task()) };
        tasks.insert(scheduler.spawn(job).await.expect("open").await.expect("no failure"));
    }
    assert_eq!(tasks.len(), 1);
}

/// The number of tasks of the runtime, after all have done what they can.
async fn alive_tasks() -> usize {
    turn().await;
    tokio::runtime::Handle::current().metrics().num_alive_tasks()
}

/// A scheduler that has had a hundred jobs at the same time.
async fn idle_scheduler() -> Scheduler {
    let scheduler = Scheduler::builder().limit(None).build();
    for _ in 0..100 {
        drop(scheduler.try_spawn(yield_now()).expect("no limit"));
    }
    scheduler.wait_idle().await;
    scheduler
}

#[tokio::test]
async fn idle_scheduler_keeps_a_task_for_each_thread() {
    let scheduler = idle_scheduler().await;
    assert_eq!(alive_tasks().await, 1);
    scheduler.spawn(async {}).await.expect("open").await.expect("no failure");
    assert_eq!(alive_tasks().await, 1);
}

#[tokio::test]
async fn no_task_is_left_once_the_last_handle_has_gone() {
    let scheduler = idle_scheduler().await;
    drop(scheduler.clone());
    assert_eq!(alive_tasks().await, 1);
    let (open, opened) = oneshot::channel::<()>();
    let job = scheduler.spawn(opened).await.expect("open");
    drop(scheduler);
    assert_eq!(alive_tasks().await, 1, "its job runs on");
    open.send(()).expect("the job waits");
    job.await.expect("no failure");
    assert_eq!(alive_tasks().await, 0);

    drop(idle_scheduler().await);
    assert_eq!(alive_tasks().await, 0);
}

#[tokio::test]
async fn closed_scheduler_has_no_tasks() {
    let closed = idle_scheduler().await;
    assert!(closed.close().await.is_clean());
    assert_eq!(alive_tasks().await, 0);
    let drained = idle_scheduler().await;
    drop(drained.spawn(yield_now()).await.expect("open"));
    assert!(drained.wait_and_close().await.is_clean());
    assert_eq!(alive_tasks().await, 0);
    // With its drain dropped, the scheduler closes by itself.
    let left = idle_scheduler().await;
    let (open, opened) = oneshot::channel::<()>();
    let job = left.spawn(opened).await.expect("open");
    let mut draining = tokio_test::task::spawn(left.wait_and_close());
    tokio_test::assert_pending!(draining.poll());
    drop(draining);
    open.send(()).expect("the job waits");
    job.await.expect("no failure");
    assert_eq!(alive_tasks().await, 0);
    assert!(left.is_closed());
}

/// All of it at once would hold up the thread for milliseconds.
#[tokio::test]
async fn memory_of_a_backlog_is_given_back_piece_by_piece() {
    let scheduler = Scheduler::builder().pending_limit(None).build();
    for _ in 0..200_000 {
        drop(scheduler.try_spawn(async {}).expect("no limit"));
    }
    scheduler.wait_idle().await;
    assert_eq!(alive_tasks().await, 2, "one waits for jobs, another gives it back");
    while alive_tasks().await > 1 {}
}

/// Jobs that block their threads still run on as many threads as there are.
#[test]
fn job_that_blocks_its_thread_keeps_no_other_from_a_free_one() {
    const THREADS: usize = 4;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(THREADS)
        .enable_time()
        .build()
        .expect("a runtime");
    let rounds = async {
        let scheduler = Scheduler::builder().limit(None).build();
        for round in 0..200 {
            // All of them must run at the same time for any to end.
            let barrier = Arc::new(Barrier::new(THREADS - 1));
            // Spawned between others by a thread of the runtime, as by a handler.
            let (barrier, spawns) = (barrier.clone(), scheduler.clone());
            let spawner = tokio::spawn(async move {
                for n in 0..3 * THREADS {
                    let barrier = barrier.clone();
                    let blocks = n % 3 == round % 3 && n / 3 < THREADS - 1;
                    let job = async move {
                        if blocks {
                            barrier.wait();
                        }
                    };
                    drop(spawns.try_spawn(job).expect("no limit"));
                }
            });
            spawner.await.expect("no panic");
            scheduler.wait_idle().await;
        }
    };
    // In tokio 1.54 at most half of the threads look for tasks. Another thread may sleep while there is
    // a task for it. The next event wakes it. In a server that is a request, here it is this interval.
    let events = async {
        let mut interval = tokio::time::interval(Duration::from_millis(20));
        loop {
            interval.tick().await;
            drop(tokio::spawn(async {}));
        }
    };
    let rounds = async {
        tokio::select! {
            () = rounds => {}
            () = events => {}
        }
    };
    let ended = runtime.block_on(async { tokio::time::timeout(PLENTY, rounds).await });
    runtime.shutdown_background();
    assert!(ended.is_ok(), "jobs are stuck behind one that blocks its thread");
}

/// `block_in_place` moves the work of the only worker to another thread.
#[test]
fn job_that_gives_its_worker_away_may_wait_for_another() {
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(1)
        .enable_time()
        .build()
        .expect("a runtime");
    let scheduler = Scheduler::new();
    let spawns = scheduler.clone();
    let waits = async move {
        tokio::task::block_in_place(|| {
            let other = async { spawns.spawn(async { 5 }).await.expect("open").await };
            tokio::runtime::Handle::current().block_on(other)
        })
    };
    let ended = runtime.block_on(async {
        let job = scheduler.spawn(waits).await.expect("open");
        tokio::time::timeout(PLENTY, job).await
    });
    runtime.shutdown_background();
    let waited = ended.expect("jobs are stuck behind one that has given its worker away");
    assert_eq!(waited.expect("no failure"), 5);
}

#[tokio::test]
async fn abort_at_the_end_of_a_job_leaves_the_next_alone() {
    for pended_before in [true, false] {
        let scheduler = one_at_a_time();
        let (give, given) = oneshot::channel::<Arc<Job<()>>>();
        // The job aborts itself in its last poll, so its task is woken for a job that has ended.
        let first = async move {
            if pended_before {
                yield_now().await;
            }
            given.await.expect("given").abort();
        };
        let first = Arc::new(scheduler.spawn(first).await.unwrap());
        let second = scheduler
            .spawn(async {
                yield_now().await;
                7
            })
            .await
            .unwrap();
        give.send(first.clone()).unwrap();
        assert_eq!(second.await.unwrap(), 7);
        assert!(first.is_finished());
        first.abort();
        scheduler.wait_idle().await;
        assert_eq!((scheduler.stats().completed, scheduler.stats().cancelled), (2, 0));
    }
}

#[tokio::test]
async fn job_waits_for_its_own_wakeups_only() {
    let scheduler = one_at_a_time();
    let open = hold(&scheduler).await;
    let left_behind = Arc::new(Mutex::new(None));
    let polls = Arc::new(AtomicUsize::new(0));
    let leaves = left_behind.clone();
    let leaving = poll_fn(move |cx| {
        *leaves.lock().expect("no panic") = Some(cx.waker().clone());
        Poll::Ready(())
    });
    scheduler.spawn(leaving).await.unwrap();
    let counts = polls.clone();
    let next = scheduler
        .spawn(poll_fn(move |_| {
            counts.fetch_add(1, Ordering::SeqCst);
            Poll::<()>::Pending
        }))
        .await
        .unwrap();
    open.send(()).unwrap();
    while polls.load(Ordering::SeqCst) == 0 {
        yield_now().await;
    }
    // The waker of the last job wakes the next one spuriously.
    left_behind.lock().unwrap().take().expect("left").wake();
    yield_now().await;
    assert!(next.is_active() && polls.load(Ordering::SeqCst) <= 2);
    next.abort();
    assert!(next.await.unwrap_err().is_cancelled());
}

#[tokio::test]
async fn job_is_dropped_before_the_next_one_starts() {
    struct Busy(Arc<AtomicBool>);
    impl Drop for Busy {
        fn drop(&mut self) {
            assert!(self.0.swap(false, Ordering::SeqCst));
        }
    }
    let scheduler = one_at_a_time();
    let open = hold(&scheduler).await;
    let busy = Arc::new(AtomicBool::new(false));
    let made = |n: u32| {
        let busy = busy.clone();
        let mut held = None;
        // The future itself holds it, so only its drop frees it.
        poll_fn(move |_| {
            assert!(held.is_some() || !busy.swap(true, Ordering::SeqCst), "two at once");
            held.get_or_insert_with(|| Busy(busy.clone()));
            assert_ne!(n % 3, 2, "one that panics");
            Poll::Ready(())
        })
    };
    for n in 0..9 {
        drop(scheduler.spawn(made(n)).await.unwrap());
    }
    open.send(()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!((scheduler.stats().completed, scheduler.stats().panicked), (7, 3));
}

/// A job that logs its poll and its drop.
struct Logging(&'static str);

impl Future for Logging {
    type Output = ();

    fn poll(self: Pin<&mut Self>, _: &mut std::task::Context<'_>) -> Poll<()> {
        tracing::info!(job_in_test = self.0, "polled");
        Poll::Ready(())
    }
}

impl Drop for Logging {
    fn drop(&mut self) {
        tracing::info!(job_in_test = self.0, "dropped");
    }
}

#[tokio::test]
async fn job_is_polled_and_dropped_in_its_own_span() {
    let (logs, _guard) = Logs::start();
    let scheduler = Scheduler::builder().limit(1).span(SpanLink::None).build();
    let open = hold(&scheduler).await;
    for name in ["span of one", "span of two"] {
        scheduler.job(name).spawn(Logging(name)).await.unwrap();
    }
    scheduler.job("span of three").spawn(Logging("span of three")).await.unwrap().abort();
    let (tell, heard) = oneshot::channel();
    scheduler.spawn(async { tell.send(span_names()).expect("heard") }).await.unwrap();
    open.send(()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!(heard.await.unwrap(), ["job"], "and in no other span");

    let events: Vec<_> = logs
        .iter()
        .filter(|event| event.field("job_in_test").starts_with("span of"))
        .map(|event| {
            let field = |name| event.field(name).to_owned();
            let span = field("span.name");
            assert!(span.is_empty() || span == field("job_in_test"), "{event:?}");
            (field("job_in_test"), field("message"), field("spans"))
        })
        .collect();
    let expected = [
        // It never started.
        ("span of three", "dropped", ""),
        ("span of one", "polled", "job"),
        ("span of one", "dropped", "job"),
        ("span of two", "polled", "job"),
        ("span of two", "dropped", "job"),
    ];
    let expected =
        expected.map(|(job, what, spans)| (job.to_owned(), what.to_owned(), spans.to_owned()));
    assert_eq!(events, expected);
}

/// The most jobs of a backlog that run between two polls of another task.
///
/// Before the backlog there are `waiting` jobs, each with a task of its own. After their end, each of
/// these tasks may take one job.
async fn jobs_between_two_polls(limit: impl Into<Option<usize>>, waiting: usize) -> usize {
    const BACKLOG: usize = 10_000;
    let scheduler = Scheduler::builder().limit(limit).pending_limit(None).build();
    let gate = Arc::new(Semaphore::new(0));
    for _ in 0..waiting {
        let gate = gate.clone();
        let job = async move { drop(gate.acquire().await.expect("open")) };
        drop(scheduler.try_spawn(job).expect("there is a place"));
    }
    yield_now().await;
    let done = Arc::new(AtomicUsize::new(0));
    for _ in 0..BACKLOG {
        let done = done.clone();
        let job = async move {
            done.fetch_add(1, Ordering::SeqCst);
        };
        drop(scheduler.try_spawn(job).expect("there is a place"));
    }
    let counts = done.clone();
    let ticker = tokio::spawn(async move {
        let (mut last, mut longest) = (0, 0);
        loop {
            let now = counts.load(Ordering::SeqCst);
            if last > 2 * waiting {
                longest = longest.max(now - last);
            }
            last = now;
            if now == BACKLOG {
                return longest;
            }
            give_way_once().await;
        }
    });
    gate.add_permits(waiting);
    ticker.await.expect("no panic")
}

#[tokio::test]
async fn other_tasks_are_polled_after_each_job_of_a_backlog() {
    assert_eq!(jobs_between_two_polls(1, 0).await, 1);
    // Still one task runs jobs, since there is one thread. One more was requested before the first began.
    for limit in [Some(4), None] {
        let longest = jobs_between_two_polls(limit, 0).await;
        assert!(longest <= 2, "{longest} jobs in a row");
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 1)]
async fn other_tasks_are_polled_after_each_job_on_a_worker() {
    let longest = tokio::spawn(jobs_between_two_polls(1, 0)).await.expect("no panic");
    assert_eq!(longest, 1);
}

#[tokio::test]
async fn jobs_that_have_waited_leave_no_crowd_of_tasks_behind() {
    assert_eq!(jobs_between_two_polls(None, 50).await, 1);
}

#[tokio::test]
async fn job_using_up_its_budget_starves_neither_jobs_nor_tasks() {
    let scheduler = Scheduler::builder().limit(2).build();
    let rounds = Arc::new(AtomicUsize::new(0));
    let counts = rounds.clone();
    // Limited only by the cooperative budget of the runtime.
    let greedy = async move {
        loop {
            coop::consume_budget().await;
            counts.fetch_add(1, Ordering::SeqCst);
        }
    };
    let greedy = scheduler.spawn(greedy).await.unwrap();
    for n in 0..100 {
        assert_eq!(scheduler.spawn(async move { n }).await.unwrap().await.unwrap(), n);
    }
    tokio::spawn(async {}).await.unwrap();
    assert!(rounds.load(Ordering::SeqCst) > 0);
    greedy.abort();
    assert!(greedy.await.unwrap_err().is_cancelled());
}

/// Uses up the cooperative budget, and gives its size.
fn rest_of_the_budget() -> impl Future<Output = u32> + Send + 'static {
    poll_fn(|cx| {
        let mut taken = 0;
        while let Poll::Ready(progress) = coop::poll_proceed(cx) {
            progress.made_progress();
            taken += 1;
        }
        Poll::Ready(taken)
    })
}

#[tokio::test]
async fn job_after_one_that_used_up_its_budget_has_a_whole_one() {
    let scheduler = one_at_a_time();
    let whole = tokio::spawn(rest_of_the_budget()).await.unwrap();
    let open = hold(&scheduler).await;
    let mut jobs = Vec::new();
    for _ in 0..5 {
        jobs.push(scheduler.spawn(rest_of_the_budget()).await.unwrap());
    }
    open.send(()).unwrap();
    for job in jobs.drain(1..) {
        assert_eq!(job.await.unwrap(), whole);
    }
}

/// Each job reads a full channel without waiting, as a batch consumer does.
#[tokio::test]
async fn job_reads_all_of_a_full_channel_whatever_ran_before() {
    const ITEMS: usize = 50;
    const JOBS: u64 = 2000;
    let scheduler = one_at_a_time();
    let early = Arc::new(AtomicUsize::new(0));
    let open = hold(&scheduler).await;
    for _ in 0..JOBS {
        let (sender, mut items) = mpsc::channel(ITEMS);
        for item in 0..ITEMS {
            sender.try_send(item).expect("there is room");
        }
        let early = early.clone();
        let reads = async move {
            for _ in 0..ITEMS {
                if items.recv().now_or_never().is_none() {
                    early.fetch_add(1, Ordering::SeqCst);
                    break;
                }
            }
            drop(sender);
        };
        drop(scheduler.try_spawn(reads).expect("no limit"));
    }
    open.send(()).expect("heard");
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, JOBS + 1);
    assert_eq!(early.load(Ordering::SeqCst), 0, "jobs found their channel empty too early");
}

/// Spawns a quick job that answers, and then one that blocks. Returns whether the answer came only
/// after the block.
async fn answer_waits_for_the_block(spawn: impl Fn(BoxedJob)) -> bool {
    const BLOCK: Duration = Duration::from_millis(30);
    let (tell, answer) = oneshot::channel();
    let (ended, has_ended) = oneshot::channel();
    let is_over = Arc::new(AtomicBool::new(false));
    let blocked = is_over.clone();
    spawn(Box::pin(async move { tell.send(()).expect("heard") }));
    spawn(Box::pin(async move {
        std::thread::sleep(BLOCK);
        blocked.store(true, Ordering::SeqCst);
        ended.send(()).expect("heard");
    }));
    answer.await.expect("an answer");
    let waited = is_over.load(Ordering::SeqCst);
    has_ended.await.expect("it ends");
    waited
}

type BoxedJob = Pin<Box<dyn Future<Output = ()> + Send>>;

/// Compared with tasks of their own in the same rounds, so that a busy machine delays both.
#[test]
fn answer_of_a_job_waits_for_no_other_job() {
    const ROUNDS: usize = 40;
    for workers in [2, 4, 8] {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(workers)
            .enable_all()
            .build()
            .expect("a runtime");
        let rounds = async {
            let scheduler = Scheduler::new();
            let (mut with_jobs, mut with_tasks) = (0, 0);
            for _ in 0..ROUNDS {
                let jobs = scheduler.clone();
                let round = answer_waits_for_the_block(move |job| {
                    drop(jobs.try_spawn(job).expect("there is a place"));
                });
                with_jobs += usize::from(tokio::spawn(round).await.expect("no panic"));
                let round = answer_waits_for_the_block(|job| drop(tokio::spawn(job)));
                with_tasks += usize::from(tokio::spawn(round).await.expect("no panic"));
            }
            (with_jobs, with_tasks)
        };
        let (with_jobs, with_tasks) = runtime.block_on(rounds);
        assert!(
            with_jobs <= with_tasks + ROUNDS / 4,
            "{workers} workers: {with_jobs} of {ROUNDS} answers waited, {with_tasks} of tasks"
        );
    }
}

#[tokio::test]
async fn job_short_of_budget_goes_on_in_its_next_poll() {
    let scheduler = one_at_a_time();
    let open = hold(&scheduler).await;
    for _ in 0..5 {
        let job = async {
            for _ in 0..100 {
                coop::consume_budget().await;
            }
        };
        scheduler.spawn(job).await.unwrap();
    }
    open.send(()).unwrap();
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, 6);
}

/// In tokio 1.54 one thread looks for I/O after every 61 polls, each of which runs one of these jobs.
#[tokio::test]
async fn on_one_thread_a_backlog_leaves_io_its_turn() {
    for deferred in [false, true] {
        let mut waited = Vec::new();
        for _ in 0..5 {
            waited.push(jobs_until_a_byte_is_read(deferred).await);
        }
        let all = waited.iter().all(|jobs| *jobs <= 64);
        assert!(all, "{waited:?} jobs ran before a byte was read (deferred: {deferred})");
    }
}

/// How many jobs of a backlog run after one has sent a byte, until a task has read it.
async fn jobs_until_a_byte_is_read(deferred: bool) -> usize {
    const BEFORE: usize = 50;
    let (listener, address) = listen().await;
    let mut client = std::net::TcpStream::connect(address).expect("a connection");
    let (mut server, _) = listener.accept().await.expect("a connection");
    let ran = Arc::new(AtomicUsize::new(0));
    let in_reader = ran.clone();
    let reader = tokio::spawn(async move {
        server.read_u8().await.expect("a byte");
        in_reader.load(Ordering::Relaxed)
    });

    let scheduler = one_at_a_time();
    let open = hold(&scheduler).await;
    let Open { jobs, response } = respond(&scheduler).await;
    let spawn = |job: Pin<Box<dyn Future<Output = ()> + Send>>| {
        let spawned = if deferred { jobs.after_response(job) } else { jobs.try_spawn(job) };
        drop(spawned.expect("there is a place"));
    };
    let spawn_jobs = |jobs| {
        for _ in 0..jobs {
            let ran = ran.clone();
            spawn(Box::pin(async move {
                let begun = tokio::time::Instant::now();
                while begun.elapsed() < Duration::from_micros(30) {}
                ran.fetch_add(1, Ordering::Relaxed);
            }));
        }
    };
    spawn_jobs(BEFORE);
    spawn(Box::pin(async move { client.write_all(b"!").expect("a connection") }));
    spawn_jobs(100);
    drop(response);
    open.send(()).expect("heard");
    let ran_until_read = reader.await.expect("no panic");
    scheduler.wait_idle().await;
    ran_until_read - BEFORE
}
