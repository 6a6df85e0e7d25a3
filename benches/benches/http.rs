//! What jobs cost a server, over real HTTP: axum on the loopback, and a load generator in a second
//! process (which says how it measures: `tower_jobs_benches::generator`).
//!
//! First, how many requests it answers with no job, one, or five to a request, beside handlers
//! that call `tokio::spawn`. All servers live in the same runtime and take turns, many short ones,
//! on new connections each time. The server without a layer is there twice: what its two turns
//! differ by is what the machine, not the layer, does to a figure. Another has a layer that does
//! nothing: any layer costs axum something. The kernel and the generator take most of the time, and
//! theirs varies more than what is looked for here; so the processor time of the server's process
//! alone is told beside (on Linux).
//!
//! Then, how soon a route answers while a million jobs wait in the same runtime. Each job spawns
//! the next before it ends, so there are as many from the begin of the window to its end. Requests
//! come at a fixed rate, well below what the server can do.
//!
//! On two cores, two workers that are never idle leave the generator none. How late it is to send, and
//! to read where the kernel keeps the time, is not in its figures; but whenever it is given a core, a
//! worker has to do without. Beside one worker, or a current-thread runtime, it has one to itself.

use std::{
    future::Future,
    pin::Pin,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering::Relaxed},
        mpsc,
    },
    task::{Context, Poll, Waker},
    thread,
    time::{Duration, Instant},
};

use axum::{Router, routing::get};
use tokio::{
    runtime::{self, Handle},
    sync::{Semaphore, oneshot},
};
use tokio_util::task::TaskTracker;
use tower::layer::util::Identity;
use tower_jobs::{Jobs, JobsLayer, Scheduler};
use tower_jobs_benches::{
    Chart, Flavour, Report, Table,
    generator::{self, Ask, BODY, Generator, Told},
    in_turns, is_brief, median, ran_and_waited, scheduler,
};

const PATIENCE: Duration = Duration::from_secs(60);

fn main() {
    if generator::run_if_asked() {
        return;
    }
    let mut generator = Generator::start();
    let mut report = Report::new("http");
    for flavour in Flavour::ALL {
        requests(flavour, &mut generator, &mut report);
    }
    let [several, one] = Flavour::ALL;
    let mut one_worker = several.builder();
    one_worker.worker_threads(1);
    backlogs(several.name(), several.builder(), &mut generator, &mut report);
    backlogs("multi-thread with one worker", one_worker, &mut generator, &mut report);
    backlogs(one.name(), one.builder(), &mut generator, &mut report);
    report.finish();
}

/// A runtime with servers, on a thread of its own. It has workers, or that one thread.
struct Host {
    handle: Handle,
    // Both taken by `drop` alone.
    stop: Option<oneshot::Sender<()>>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Host {
    fn new(mut builder: runtime::Builder) -> Self {
        let (send, receive) = mpsc::channel();
        let (stop, stopped) = oneshot::channel();
        let thread = thread::spawn(move || {
            let runtime = builder.enable_all().build().expect("a runtime");
            send.send(runtime.handle().clone()).expect("the main thread waits");
            drop(runtime.block_on(stopped));
        });
        let handle = receive.recv().expect("a runtime");
        Self { handle, stop: Some(stop), thread: Some(thread) }
    }

    fn serve(&self, router: Router) -> std::net::SocketAddr {
        let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a port");
        let address = listener.local_addr().expect("an address");
        listener.set_nonblocking(true).expect("a socket");
        self.handle.spawn(async {
            let listener = tokio::net::TcpListener::from_std(listener).expect("a socket");
            axum::serve(listener, router).await.expect("a server without end");
        });
        address
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.stop.take());
        if let Some(thread) = self.thread.take() {
            thread.join().expect("a runtime without a panic");
        }
    }
}

/// Waits, seldom enough to cost nothing.
fn wait_until(what: &str, done: impl Fn() -> bool) {
    let begun = Instant::now();
    while !done() {
        assert!(begun.elapsed() < PATIENCE, "not in {PATIENCE:?}: {what}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// One turn of one contender.
struct Turn {
    told: Told,
    /// Microseconds of processor time for each request.
    computed: f64,
    /// Jobs in each second of the window.
    jobs: f64,
}

/// The rounds of a comparison: in each, a turn of everybody.
struct Rounds {
    names: Vec<&'static str>,
    rounds: Vec<Vec<Turn>>,
}

type Figure = fn(&Turn) -> f64;

const PER_SECOND: Figure = |turn| turn.told.per_second;
const TIME: Figure = |turn| 1e6 / turn.told.per_second;
const COMPUTED: Figure = |turn| turn.computed;
const P50: Figure = |turn| turn.told.p50;
const P99: Figure = |turn| turn.told.p99;
const P999: Figure = |turn| turn.told.p999;

impl Rounds {
    fn take(names: Vec<&'static str>, rounds: usize, turn: impl FnMut(usize) -> Turn) -> Self {
        let rounds = in_turns(names.len(), rounds, turn);
        Self { names, rounds }
    }

    fn median(&self, who: usize, figure: Figure) -> f64 {
        median(self.rounds.iter().map(|turns| figure(&turns[who])).collect())
    }

    /// All contenders and the medians of some figures.
    fn medians<const FIGURES: usize>(
        &self,
        figures: [Figure; FIGURES],
    ) -> impl Iterator<Item = (&'static str, [f64; FIGURES])> {
        let medians = move |who| figures.map(|figure| self.median(who, figure));
        self.names.iter().enumerate().map(move |(who, name)| (*name, medians(who)))
    }

    fn ratios(&self, figure: Figure, who: usize, to: usize) -> Vec<f64> {
        self.rounds.iter().map(|turns| figure(&turns[who]) / figure(&turns[to])).collect()
    }

    fn ratio(&self, figure: Figure, who: usize, to: usize) -> f64 {
        median(self.ratios(figure, who, to))
    }

    /// The ratio, and the quartiles it lies between.
    fn spread(&self, figure: Figure, who: usize, to: usize) -> String {
        let mut ratios = self.ratios(figure, who, to);
        ratios.sort_by(f64::total_cmp);
        let at = |quarter: usize| ratios[(ratios.len() - 1) * quarter / 4];
        format!("{:.3} ({:.3} to {:.3})", median(ratios.clone()), at(1), at(3))
    }
}

/// A figure that there may not be: no connection was ever free in time, or this is not Linux.
fn shown(figure: f64, digits: usize) -> String {
    if figure.is_nan() { "none".to_owned() } else { format!("{figure:.digits$}") }
}

/// Every job of a handler counts itself.
static RAN: AtomicU64 = AtomicU64::new(0);

async fn job() {
    RAN.fetch_add(1, Relaxed);
}

/// A server, and how many jobs each of its requests is to run.
struct Server {
    name: &'static str,
    jobs: u64,
    router: Router,
    scheduler: Option<Scheduler>,
}

impl Server {
    fn bare(name: &'static str, jobs: u64, router: Router) -> Self {
        Self { name, jobs, router, scheduler: None }
    }

    fn layered(name: &'static str, jobs: u64, router: Router) -> Self {
        let scheduler = scheduler(None);
        let router = router.layer(JobsLayer::new(scheduler.clone()));
        Self { name, jobs, router, scheduler: Some(scheduler) }
    }
}

fn hello() -> Router {
    Router::new().route("/", get(async || BODY))
}

/// What `requests` compares, by its place there.
const BARE: usize = 0;
const AGAIN: usize = 1;
const IDENTITY: usize = 2;
const UNUSED: usize = 3;
const SPAWN: usize = 4;
const JOB: usize = 5;
const SPAWN_5: usize = 6;
const JOBS_5: usize = 7;
const AFTER: usize = 8;

fn servers() -> [Server; 9] {
    fn tasks(jobs: u64) -> Router {
        let handler = move || async move {
            for _ in 0..jobs {
                drop(tokio::spawn(job()));
            }
            BODY
        };
        Router::new().route("/", get(handler))
    }
    fn jobs(count: u64) -> Router {
        let handler = move |jobs: Jobs| async move {
            for _ in 0..count {
                drop(jobs.try_spawn(job()).expect("no limit"));
            }
            BODY
        };
        Router::new().route("/", get(handler))
    }
    let after = Router::new().route(
        "/",
        get(async |jobs: Jobs| {
            drop(jobs.after_response(job()).expect("no limit"));
            BODY
        }),
    );
    [
        Server::bare("no layer", 0, hello()),
        Server::bare("no layer, again: the noise", 0, hello()),
        // What any layer costs axum.
        Server::bare("a layer that does nothing", 0, hello().layer(Identity::new())),
        Server::layered("**the layer**, unused", 0, hello()),
        Server::bare("no layer, `tokio::spawn` in the handler", 1, tasks(1)),
        Server::layered("**the layer**, a job in the handler", 1, jobs(1)),
        Server::bare("no layer, 5 times `tokio::spawn`", 5, tasks(5)),
        Server::layered("**the layer**, 5 jobs", 5, jobs(5)),
        Server::layered("**the layer**, a job after the response", 1, after),
    ]
}

fn requests(flavour: Flavour, generator: &mut Generator, report: &mut Report) {
    let (rounds, window) = if is_brief() { (1, 40) } else { (41, 200) };
    let connections = 16;
    let host = Host::new(flavour.builder());
    let servers = servers();
    let addresses = servers.each_ref().map(|server| host.serve(server.router.clone()));
    let mut asked = [0; 9];
    let rounds = Rounds::take(servers.iter().map(|server| server.name).collect(), rounds, |who| {
        let server = &servers[who];
        let (ran, before) = (RAN.load(Relaxed), ran_and_waited());
        let window = Duration::from_millis(window);
        let told = generator.load(Ask { address: addresses[who], connections, window, rate: None });
        let jobs = told.requests * server.jobs;
        asked[who] += jobs;
        wait_until("the jobs of all requests have run", || RAN.load(Relaxed) == ran + jobs);
        if let Some(scheduler) = &server.scheduler {
            wait_until("the scheduler has counted them", || {
                let stats = scheduler.stats();
                stats.accepted == asked[who] && stats.completed == asked[who]
            });
        }
        let computed = ran_and_waited().zip(before);
        let computed = computed.map_or(f64::NAN, |((after, _), (before, _))| after - before);
        Turn {
            told,
            computed: computed / 1e3 / told.requests as f64,
            jobs: told.per_second * server.jobs as f64,
        }
    });

    let name = flavour.name();
    report.heading(&format!("Requests, {connections} connections, {name}"));
    report.text(&format!("Medians of {} rounds.", rounds.rounds.len()));
    let columns = ["", "requests/s", "µs of processor", "p50 µs", "p99 µs", "p99.9 µs"];
    let mut table = Table::new(columns);
    for (name, figures) in rounds.medians([PER_SECOND, COMPUTED, P50, P99, P999]) {
        let [per_second, computed, p50, p99, p999] = figures;
        let [per_second, p50, p99, p999] = [per_second, p50, p99, p999].map(|it| shown(it, 0));
        table.row([name.to_owned(), per_second, shown(computed, 1), p50, p99, p999]);
    }
    report.table(&table);
    let bars = rounds.medians([PER_SECOND]).map(|(name, [figure])| (name, figure));
    let chart = Chart::bars(
        format!("HTTP requests per second, {name}"),
        "requests/s, median; more is better",
        bars,
    );
    report.chart(&format!("requests-{name}"), &chart);
    let rows = rounds.medians([P50, P99, P999]).map(|(name, figures)| (name, figures.to_vec()));
    let chart = Chart::groups(
        format!("HTTP requests at full load, {name}"),
        "µs, median; less is better",
        &["p50", "p99", "p99.9"],
        rows,
    );
    report.chart(&format!("latency-{name}"), &chart);
    report.text("Ratios, and the quartiles of the rounds':");
    let mut table = Table::new(["", "of", "time of a request", "processor time", "p99.9"]);
    let pairs = [
        (AGAIN, BARE),
        (IDENTITY, BARE),
        (UNUSED, BARE),
        (UNUSED, IDENTITY),
        (JOB, SPAWN),
        (JOBS_5, SPAWN_5),
        (AFTER, SPAWN),
    ];
    for (who, to) in pairs {
        let [time, computed, p999] =
            [TIME, COMPUTED, P999].map(|figure| rounds.spread(figure, who, to));
        let names = &rounds.names;
        table.row([names[who].to_owned(), names[to].to_owned(), time, computed, p999]);
    }
    report.table(&table);

    let mut goal = |who: usize, to: usize, goal, far| {
        let [who_name, to_name] = [who, to].map(|at| rounds.names[at]);
        let title = format!("requests/s, {name}, {who_name}, of {to_name}");
        report.goals.at_least(title, Some(rounds.ratio(PER_SECOND, who, to)), goal, far);
    };
    goal(JOB, SPAWN, 0.98, 1.02);
    goal(UNUSED, BARE, 0.99, 1.00);
}

/// How a backlog is worked off.
enum Way {
    Jobs(Scheduler),
    PermitInside(TaskTracker, Arc<Semaphore>),
    Tasks,
}

/// Jobs that wait until all are there; from then on each spawns the next before it ends, so that
/// there are as many until it is told to end.
struct Backlog {
    way: Way,
    yields: u8,
    begun: AtomicBool,
    waiting: Mutex<Vec<Waker>>,
    ending: AtomicBool,
    spawned: AtomicU64,
    ran: AtomicU64,
}

impl Backlog {
    fn new(way: Way, yields: u8) -> Arc<Self> {
        let ((begun, waiting, ending), (spawned, ran)) = Default::default();
        Arc::new(Self { way, yields, begun, waiting, ending, spawned, ran })
    }

    fn begin(&self) {
        let mut waiting = self.waiting.lock().expect("no panic");
        self.begun.store(true, Relaxed);
        let wakers = std::mem::take(&mut *waiting);
        drop(waiting);
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether it has begun; if not, the job is woken when it does.
    fn has_begun(&self, cx: &Context<'_>) -> bool {
        if self.begun.load(Relaxed) {
            return true;
        }
        let mut waiting = self.waiting.lock().expect("no panic");
        let begun = self.begun.load(Relaxed);
        if !begun {
            waiting.push(cx.waker().clone());
        }
        begun
    }

    fn spawn(self: &Arc<Self>) {
        self.spawned.fetch_add(1, Relaxed);
        let link = Link { backlog: self.clone(), yields: self.yields };
        match &self.way {
            Way::Jobs(scheduler) => drop(scheduler.try_spawn(link).expect("no limit")),
            Way::PermitInside(tracker, permits) => {
                let permits = permits.clone();
                drop(tracker.spawn(async move {
                    let _permit = permits.acquire().await.expect("open");
                    link.await;
                }));
            }
            Way::Tasks => drop(tokio::spawn(link)),
        }
    }

    fn left(&self) -> u64 {
        // In this order, as a job spawns the next before it ends.
        let ran = self.ran.load(Relaxed);
        self.spawned.load(Relaxed) - ran
    }
}

/// A job of a backlog. By hand, as an async block cannot spawn its own kind.
struct Link {
    backlog: Arc<Backlog>,
    yields: u8,
}

impl Future for Link {
    type Output = ();

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<()> {
        if !self.backlog.has_begun(cx) {
            return Poll::Pending;
        }
        if self.yields > 0 {
            self.yields -= 1;
            cx.waker().wake_by_ref();
            return Poll::Pending;
        }
        if !self.backlog.ending.load(Relaxed) {
            self.backlog.spawn();
        }
        self.backlog.ran.fetch_add(1, Relaxed);
        Poll::Ready(())
    }
}

/// How much longer than the window the backlog lasts. Without an end to it, some of the requests
/// that were due in the window would never be answered by those who fare worst.
const MARGIN: Duration = Duration::from_millis(50);
const LIMIT: usize = 100;
const BARE_TASKS: &str = "`tokio::spawn`, no-op";
const LATE: &str = "generator late, p99.9 µs";
/// What `backlogs` compares everybody to.
const IDLE: usize = 0;

fn backlogs(name: &str, builder: runtime::Builder, generator: &mut Generator, report: &mut Report) {
    let (rounds, window, size) = if is_brief() { (1, 100, 20_000) } else { (11, 800, 1_000_000) };
    // So many that the rate can be kept even when every response takes 10 ms.
    let (connections, rate) = (64, 4000);
    let host = Host::new(builder);
    let scheduler = scheduler(Some(LIMIT));
    let address = host.serve(hello().layer(JobsLayer::new(scheduler.clone())));

    type Make = Box<dyn Fn() -> Way>;
    let jobs = || -> Make {
        let scheduler = scheduler.clone();
        Box::new(move || Way::Jobs(scheduler.clone()))
    };
    let inside = || -> Make {
        Box::new(|| Way::PermitInside(TaskTracker::new(), Arc::new(Semaphore::new(LIMIT))))
    };
    let entrants: [(&str, Option<(Make, u8)>); 7] = [
        ("idle", None),
        ("idle, again: the noise", None),
        ("**tower-jobs**, no-op", Some((jobs(), 0))),
        ("**tower-jobs**, a yield", Some((jobs(), 1))),
        ("`TaskTracker` + `Semaphore`, no-op", Some((inside(), 0))),
        ("`TaskTracker` + `Semaphore`, a yield", Some((inside(), 1))),
        (BARE_TASKS, Some((Box::new(|| Way::Tasks), 0))),
    ];
    let ask = Ask { address, connections, window: Duration::from_millis(window), rate: Some(rate) };
    let mut completed = 0;
    let names = entrants.iter().map(|(name, _)| *name).collect();
    let rounds = Rounds::take(names, rounds, |who| {
        let Some((make, yields)) = &entrants[who].1 else {
            let told = generator.load(ask);
            return Turn { told, computed: f64::NAN, jobs: 0.0 };
        };
        let backlog = Backlog::new(make(), *yields);
        let entered = host.handle.enter();
        for _ in 0..size {
            backlog.spawn();
        }
        drop(entered);
        wait_until("every task waits", || host.handle.metrics().global_queue_depth() == 0);
        backlog.begin();

        let (begun, before) = (Instant::now(), backlog.ran.load(Relaxed));
        generator.ask(ask);
        thread::sleep(ask.warm_up() + ask.window + MARGIN);
        let ran = backlog.ran.load(Relaxed) - before;
        let jobs = ran as f64 / begun.elapsed().as_secs_f64();
        assert!(ran > 0, "no job of the backlog ran");
        assert!(backlog.left() >= size, "the backlog shrank: {}", backlog.left());
        backlog.ending.store(true, Relaxed);
        let told = generator.told();

        wait_until("the backlog is worked off", || backlog.left() == 0);
        if let Way::Jobs(scheduler) = &backlog.way {
            completed += backlog.spawned.load(Relaxed);
            wait_until("the scheduler has counted its jobs", || {
                let stats = scheduler.stats();
                stats.accepted == completed && stats.completed == completed
            });
        }
        Turn { told, computed: f64::NAN, jobs }
    });

    report.heading(&format!("A route beside 1 M jobs, {rate} requests/s, {name}"));
    report.text(&format!("Medians of {} rounds.", rounds.rounds.len()));
    let columns = ["backlog", "jobs/s", "p50 µs", "p99 µs", "p99.9 µs", "p99.9 of idle", LATE];
    let mut table = Table::new(columns);
    let figures: [Figure; 5] = [|turn| turn.jobs, P50, P99, P999, |turn| turn.told.late];
    for (who, (name, figures)) in rounds.medians(figures).enumerate() {
        let [jobs, p50, p99, p999, late] = figures.map(|figure| shown(figure, 0));
        table.row([name.to_owned(), jobs, p50, p99, p999, rounds.spread(P999, who, IDLE), late]);
    }
    report.table(&table);
    // Beside that one, all the others would be too short to be seen.
    let others = rounds.medians([P999]).filter(|(name, _)| *name != BARE_TASKS);
    let chart = Chart::bars(
        format!("p99.9 of a route beside 1 M jobs, {name}"),
        format!("µs, median; less is better; {BARE_TASKS}, is in the table alone"),
        others.map(|(name, [figure])| (name, figure)),
    );
    report.chart(&format!("beside-{}", name.replace(' ', "-")), &chart);
    for who in [2, 3] {
        let title = format!("p99.9 of a route beside {}, {name}, of idle", rounds.names[who]);
        report.goals.at_most(title, Some(rounds.ratio(P999, who, IDLE)), 1.5, 1.1);
    }
}
