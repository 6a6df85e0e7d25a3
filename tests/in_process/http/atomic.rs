//! `AtomicLayer` and `shield`: work that neither a leaving client nor a timeout cuts in half.

use std::{
    convert::Infallible,
    future::Ready,
    io, mem,
    net::SocketAddr,
    sync::Arc,
    task::{Context, Poll},
};

use axum::{
    Extension, Router,
    body::{Body, to_bytes},
    extract::Request,
    http::{Response, StatusCode, header::RETRY_AFTER},
    middleware::{self, Next},
    routing::post,
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    sync::{Semaphore, mpsc},
    time::sleep,
};
use tokio_test::{assert_pending, assert_ready, assert_ready_err, task};
use tower::{Layer, Service, ServiceBuilder, ServiceExt, limit::ConcurrencyLimitLayer, service_fn};
use tower_http::{catch_panic::CatchPanicLayer, timeout::TimeoutLayer};
use tower_jobs::{AtomicLayer, Jobs, JobsLayer, ResponseOutcome, Scheduler};
use tracing::Instrument;
use tracing_subscriber::layer::Identity;

use crate::support::{
    SECOND, all,
    http::{connect, listen},
    logs,
    oneshot::text,
    received, turn, watched, within,
};

#[derive(Debug, PartialEq, Eq)]
enum Event {
    /// The handler has begun.
    Entered,
    /// The handler has run to its end.
    Ended,
    /// The handler was dropped before its end.
    Cut,
    /// The response future was dropped before it was ready, outside of all layers.
    Left,
}
use Event::{Cut, Ended, Entered, Left};

/// A handler that begins, waits for a permit, and ends. It sends its events.
#[derive(Clone)]
struct Handler {
    events: mpsc::UnboundedSender<Event>,
    go: Arc<Semaphore>,
}

struct Events(mpsc::UnboundedReceiver<Event>);

fn handler() -> (Handler, Events) {
    let (events, receiver) = mpsc::unbounded_channel();
    (Handler { events, go: Arc::new(Semaphore::new(0)) }, Events(receiver))
}

impl Handler {
    async fn serve(self) -> &'static str {
        let unless_it_ends = SendOnDrop(Some((self.events.clone(), Cut)));
        self.events.send(Entered).unwrap();
        self.go.acquire().await.unwrap().forget();
        unless_it_ends.forget();
        self.events.send(Ended).unwrap();
        "done"
    }

    fn go_on(&self) {
        self.go.add_permits(1);
    }

    /// `POST /pay`, with [`Left`] seen outside of everything that `layers` adds.
    fn app(&self, layers: impl FnOnce(Router) -> Router) -> Router {
        let (handler, events) = (self.clone(), self.events.clone());
        let app = Router::new().route("/pay", post(move || handler.clone().serve()));
        layers(app).layer(middleware::from_fn(move |request: Request, next: Next| {
            let unless_it_ends = SendOnDrop(Some((events.clone(), Left)));
            async move {
                let response = next.run(request).await;
                unless_it_ends.forget();
                response
            }
        }))
    }
}

impl Events {
    async fn next(&mut self) -> Event {
        within("the handler", self.0.recv()).await.expect("the handler lives")
    }

    fn so_far(&mut self) -> Vec<Event> {
        received(&mut self.0)
    }
}

/// Sends its event when it is dropped, unless it was forgotten.
struct SendOnDrop(Option<(mpsc::UnboundedSender<Event>, Event)>);

impl SendOnDrop {
    fn forget(mut self) {
        self.0 = None;
    }
}

impl Drop for SendOnDrop {
    fn drop(&mut self) {
        if let Some((events, event)) = self.0.take() {
            events.send(event).ok();
        }
    }
}

fn atomic(scheduler: &Scheduler) -> impl FnOnce(Router) -> Router + use<> {
    let scheduler = scheduler.clone();
    |app| app.layer(AtomicLayer::new(scheduler.clone())).layer(JobsLayer::new(scheduler))
}

fn pay() -> Request {
    Request::post("/pay").body(Body::empty()).unwrap()
}

/// The service, once it is ready.
async fn ready<S: Service<Request>>(service: &mut S) -> Result<&mut S, S::Error> {
    service.ready().await
}

fn assert_all_are_zero(scheduler: &Scheduler) {
    let stats = scheduler.stats();
    let counts = [stats.deferred, stats.pending, stats.active, scheduler.len() as u64];
    assert_eq!(counts, [0; 4], "{stats:?}");
}

// Real clients.

async fn serve(app: Router) -> SocketAddr {
    let (listener, address) = listen().await;
    tokio::spawn(axum::serve(listener, app).into_future());
    address
}

const PAY: &str = "POST /pay HTTP/1.1\r\nhost: test\r\ncontent-length: 0\r\n\r\n";

#[derive(Clone, Copy, Debug)]
enum Leaves {
    Closing,
    HalfClosing,
    Resetting,
}

impl Leaves {
    const WAYS: [Self; 3] = [Self::Closing, Self::HalfClosing, Self::Resetting];

    /// Leaves. Gives the connection if its read side stays open.
    async fn leave(self, mut client: TcpStream) -> Option<TcpStream> {
        match self {
            Self::Closing => drop(client),
            Self::HalfClosing => {
                client.shutdown().await.unwrap();
                return Some(client);
            }
            Self::Resetting => client.set_zero_linger().unwrap(),
        }
        None
    }
}

#[tokio::test]
async fn client_that_leaves_cuts_a_plain_handler_in_half() {
    for leaves in Leaves::WAYS {
        let (handler, mut events) = handler();
        let address = serve(handler.app(|app| app)).await;
        let client = connect(address, PAY).await;
        assert_eq!(events.next().await, Entered);
        let _rest = leaves.leave(client).await;
        assert_eq!(events.next().await, Cut, "{leaves:?}");
        handler.go_on();
        assert_eq!(events.next().await, Left, "{leaves:?}");
        assert_eq!(events.so_far(), []);
    }
}

#[tokio::test]
async fn client_that_leaves_does_not_cut_an_atomic_handler() {
    for leaves in Leaves::WAYS {
        for per_route in [true, false] {
            let (handler, mut events) = handler();
            let (scheduler, mut failures) = watched(Scheduler::builder());
            let address = serve(if per_route {
                let (inner, layer) = (handler.clone(), AtomicLayer::new(scheduler.clone()));
                let route = post(move || inner.clone().serve()).layer(layer);
                handler.app(|_| Router::new().route("/pay", route))
            } else {
                handler.app(atomic(&scheduler))
            });
            let client = connect(address.await, PAY).await;
            assert_eq!(events.next().await, Entered);
            let _rest = leaves.leave(client).await;
            assert_eq!(events.next().await, Left, "{leaves:?}");
            assert_eq!(scheduler.active_count(), 1);
            handler.go_on();
            assert_eq!(events.next().await, Ended, "{leaves:?}");
            within("the end of the job", scheduler.wait_idle()).await;
            assert_eq!(scheduler.stats().completed, 1);
            assert_eq!(all(&mut failures), [""; 0], "to leave is no failure");
            assert_all_are_zero(&scheduler);
        }
    }
}

#[tokio::test]
async fn client_that_stays_has_the_response_of_its_atomic_handler() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    let address = serve(handler.app(atomic(&scheduler))).await;
    let request = PAY.replace("\r\n\r\n", "\r\nconnection: close\r\n\r\n");
    let mut client = connect(address, &request).await;
    assert_eq!(events.next().await, Entered);
    handler.go_on();
    let mut response = String::new();
    within("the response", client.read_to_string(&mut response)).await.unwrap();
    assert!(response.starts_with("HTTP/1.1 200 OK") && response.ends_with("done"), "{response}");
    assert_all_are_zero(&scheduler);
}

#[tokio::test]
async fn atomic_panic_without_catch_panic_ends_the_connection() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let app =
        Router::new().route("/pay", post(no_money).layer(AtomicLayer::new(scheduler.clone())));
    let mut client = connect(serve(app).await, PAY).await;
    let mut response = Vec::new();
    within("the end of the connection", client.read_to_end(&mut response)).await.ok();
    assert_eq!(response, b"");
    assert_eq!(scheduler.stats().panicked, 1);
    assert_eq!(all(&mut failures), [""; 0], "the outer stack got it");
}

#[tokio::test]
async fn body_left_unread_fails_once_the_client_has_gone() {
    let (handler, mut events) = handler();
    let (read, mut reads) = mpsc::unbounded_channel();
    let inner = handler.clone();
    let upload = move |body: Body| {
        let (inner, read) = (inner.clone(), read.clone());
        async move {
            inner.serve().await;
            read.send(to_bytes(body, usize::MAX).await).unwrap();
        }
    };
    let scheduler = Scheduler::new();
    let app = Router::new().route("/upload", post(upload)).layer(AtomicLayer::new(scheduler));
    let half = "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 10\r\n\r\nhello";
    let client = connect(serve(app).await, half).await;
    assert_eq!(events.next().await, Entered);
    drop(client);
    handler.go_on();
    within("the body", reads.recv()).await.unwrap().unwrap_err();
}

#[tokio::test]
async fn extracted_body_outlives_the_client() {
    let (handler, mut events) = handler();
    let (read, mut reads) = mpsc::unbounded_channel();
    let inner = handler.clone();
    let upload = move |body: String| {
        let (inner, read) = (inner.clone(), read.clone());
        async move {
            inner.serve().await;
            read.send(body).unwrap();
        }
    };
    let layer = AtomicLayer::new(Scheduler::new());
    let app = handler.app(|_| Router::new().route("/upload", post(upload)).layer(layer));
    let whole = "POST /upload HTTP/1.1\r\nhost: test\r\ncontent-length: 5\r\n\r\nhello";
    let client = connect(serve(app).await, whole).await;
    assert_eq!(events.next().await, Entered);
    drop(client);
    assert_eq!(events.next().await, Left);
    handler.go_on();
    assert_eq!(within("the body", reads.recv()).await.unwrap(), "hello");
}

// Timeouts and closing.

#[tokio::test(start_paused = true)]
async fn a_timeout_further_out_answers_408_while_the_job_goes_on() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND);
    let app = handler.app(|app| atomic(&scheduler)(app).layer(timeout));
    let response = app.oneshot(pay()).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(events.so_far(), [Entered]);
    handler.go_on();
    assert_eq!(events.next().await, Ended);
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().completed, 1);
}

#[tokio::test(start_paused = true)]
async fn a_timeout_further_in_cuts_an_atomic_handler() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    let timeout = TimeoutLayer::with_status_code(StatusCode::REQUEST_TIMEOUT, SECOND);
    let app = handler.app(|app| atomic(&scheduler)(app.layer(timeout)));
    let response = app.oneshot(pay()).await.unwrap();
    assert_eq!(response.status(), StatusCode::REQUEST_TIMEOUT);
    assert_eq!(events.so_far(), [Entered, Cut]);
    assert_all_are_zero(&scheduler);
}

#[tokio::test(start_paused = true)]
async fn atomic_handler_is_listed_with_request_and_layer_location() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    let mut call = task::spawn(handler.app(atomic(&scheduler)).oneshot(pay()));
    assert_pending!(call.poll());
    assert_eq!(events.next().await, Entered);
    let [job] = &scheduler.jobs()[..] else { panic!("one job") };
    assert_eq!((&*job.name, job.request.as_deref()), ("atomic", Some("POST /pay")));
    assert_eq!(job.location.file(), file!());
}

#[tokio::test(start_paused = true)]
async fn drain_awaits_a_handler_without_client_and_serves_others() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    let app = handler.app(atomic(&scheduler));
    let mut call = task::spawn(app.clone().oneshot(pay()));
    assert_pending!(call.poll());
    assert_eq!(events.next().await, Entered);
    drop(call);
    assert_eq!(events.next().await, Left);
    let mut drain = task::spawn(scheduler.wait_and_close());
    assert_pending!(drain.poll());

    let mut late = task::spawn(app.oneshot(pay()));
    assert_pending!(late.poll());
    assert_eq!(events.next().await, Entered);
    assert_pending!(drain.poll());
    handler.go_on();
    handler.go_on();
    let report = drain.await;
    assert_eq!(report.completed, 2);
    assert!(report.is_clean(), "{report}");
    assert_eq!(late.await.unwrap().status(), StatusCode::OK);
    assert_eq!(events.so_far(), [Ended, Ended]);
}

#[tokio::test(start_paused = true)]
async fn closed_scheduler_answers_503_without_running_the_handler() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    scheduler.close().await;
    let response = handler.app(atomic(&scheduler)).oneshot(pay());
    assert_refused(within("a response", response).await.unwrap()).await;
    assert_eq!(events.so_far(), []);
    assert_eq!(scheduler.stats().accepted, 0);
}

#[tokio::test(start_paused = true)]
async fn closing_cuts_the_handler_names_it_and_answers_503() {
    let (handler, mut events) = handler();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let call = tokio::spawn(handler.app(atomic(&scheduler)).oneshot(pay()));
    assert_eq!(events.next().await, Entered);
    let report = scheduler.close().await;
    assert_eq!(events.next().await, Cut);
    assert_refused(call.await.unwrap().unwrap()).await;
    let [job] = &report.cancelled[..] else { panic!("{report}") };
    assert_eq!((&*job.name, job.request.as_deref()), ("atomic", Some("POST /pay")));
    assert_eq!(all(&mut failures), [""; 0]);
    assert_all_are_zero(&scheduler);
}

async fn assert_refused(response: Response<Body>) {
    assert_eq!(response.status(), StatusCode::SERVICE_UNAVAILABLE);
    assert_eq!(response.headers()[RETRY_AFTER], "1");
    assert_eq!(text(response).await, "");
}

// Panics and errors.

async fn no_money() -> StatusCode {
    panic!("no money")
}

#[tokio::test(start_paused = true)]
async fn outer_catch_panic_catches_the_panic_of_an_atomic_handler() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let catch = CatchPanicLayer::custom(|payload: Box<dyn std::any::Any + Send>| {
        let text = *payload.downcast_ref::<&str>().expect("what panic! was given");
        Response::builder().status(500).body(Body::from(text)).unwrap()
    });
    let app = atomic(&scheduler)(Router::new().route("/pay", post(no_money))).layer(catch);
    let response = app.oneshot(pay()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(text(response).await, "no money");
    assert_eq!(scheduler.stats().panicked, 1);
    assert_eq!(all(&mut failures), [""; 0], "the outer stack got it");
    assert_all_are_zero(&scheduler);
}

#[tokio::test(start_paused = true)]
async fn catch_panic_further_in_leaves_no_panic_to_the_job() {
    let scheduler = Scheduler::new();
    let app = Router::new().route("/pay", post(no_money)).layer(CatchPanicLayer::new());
    let response = atomic(&scheduler)(app).oneshot(pay()).await.unwrap();
    assert_eq!(response.status(), StatusCode::INTERNAL_SERVER_ERROR);
    assert_eq!(scheduler.stats().completed, 1);
}

/// A service that runs the handler, and then fails or panics.
fn bankrupt(
    handler: &Handler,
    panics: bool,
) -> impl FnMut(Request) -> BankruptFuture + Clone + use<> {
    let handler = handler.clone();
    move |_| {
        let handler = handler.clone();
        Box::pin(async move {
            handler.serve().await;
            assert!(!panics, "no money");
            Err(io::Error::other("no money"))
        })
    }
}

type BankruptFuture =
    std::pin::Pin<Box<dyn Future<Output = Result<Response<Body>, io::Error>> + Send>>;

#[tokio::test(start_paused = true)]
async fn error_of_the_service_is_its_callers() {
    let (handler, _events) = handler();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let service = AtomicLayer::new(scheduler.clone()).layer(service_fn(bankrupt(&handler, false)));
    handler.go_on();
    assert_eq!(service.oneshot(pay()).await.unwrap_err().to_string(), "no money");
    assert_eq!(scheduler.stats().failed, 1);
    assert_eq!(all(&mut failures), [""; 0]);
    assert_all_are_zero(&scheduler);
}

#[tokio::test(start_paused = true)]
async fn failure_that_the_client_did_not_wait_for_is_reported_once() {
    for panics in [false, true] {
        for the_client_leaves_first in [false, true] {
            let (handler, mut events) = handler();
            let (scheduler, mut failures) = watched(Scheduler::builder());
            let service = ServiceBuilder::new()
                .layer(JobsLayer::new(scheduler.clone()))
                .layer(AtomicLayer::new(scheduler.clone()))
                .service(service_fn(bankrupt(&handler, panics)));
            let mut call = task::spawn(service.oneshot(pay()));
            assert_pending!(call.poll());
            assert_eq!(events.next().await, Entered);
            if the_client_leaves_first {
                drop(call);
                handler.go_on();
                scheduler.wait_idle().await;
            } else {
                handler.go_on();
                scheduler.wait_idle().await;
                assert_eq!(all(&mut failures), [""; 0], "the caller can still get it");
                drop(call);
            }
            let failures = all(&mut failures);
            let [failure] = &failures[..] else { panic!("{failures:?}") };
            assert!(failure.contains("\"atomic\" of POST ("), "{failure}");
            let how = if panics { "panicked: no money" } else { "failed: no money" };
            assert!(failure.ends_with(how), "{failure}");
            assert_eq!(scheduler.stats().panicked, u64::from(panics));
            assert_eq!(scheduler.stats().failed, u64::from(!panics));
            assert_all_are_zero(&scheduler);
        }
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn failure_is_reported_once_whenever_the_client_leaves() {
    let (handler, _events) = handler();
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let service = AtomicLayer::new(scheduler.clone()).layer(service_fn(bankrupt(&handler, false)));
    handler.go.add_permits(2_000);
    let mut awaited = 0;
    for n in 0..2_000 {
        let mut call = task::spawn(service.clone().oneshot(pay()));
        let mut polled = call.poll();
        for _ in 0..n % 50 {
            if polled.is_pending() {
                polled = call.poll();
            }
        }
        awaited += usize::from(polled.is_ready());
    }
    within("the jobs", scheduler.wait_idle()).await;
    let stats = scheduler.stats();
    assert_eq!(stats.failed, stats.accepted);
    assert_eq!(
        (awaited + all(&mut failures).len()) as u64,
        stats.failed,
        "the callers got {awaited}"
    );
}

// The limit, the request and the service.

#[tokio::test(start_paused = true)]
async fn atomic_handlers_awaiting_jobs_take_no_places_from_them() {
    for pending_limit in [10_000, 0] {
        let builder = Scheduler::builder().limit(1).pending_limit(pending_limit);
        let scheduler = builder.build();
        let handler = |jobs: Jobs| async move {
            let job = loop {
                match jobs.spawn(async { sleep(SECOND).await }).await {
                    Err(_) => sleep(SECOND).await, // no queue to wait in
                    Ok(job) => break job,
                }
            };
            job.await.unwrap();
        };
        let app = atomic(&scheduler)(Router::new().route("/pay", post(handler)));
        let calls: Vec<_> = (0..5).map(|_| tokio::spawn(app.clone().oneshot(pay()))).collect();
        for call in calls {
            let response = within("a handler", call).await.unwrap().unwrap();
            assert_eq!(response.status(), StatusCode::OK);
        }
        assert_eq!(scheduler.stats().completed, 10);
        assert_all_are_zero(&scheduler);
    }
}

#[tokio::test(start_paused = true)]
async fn atomic_handler_is_not_among_the_jobs_of_its_request() {
    let scheduler = Scheduler::new();
    let handler = |jobs: Jobs| async move {
        jobs.spawn(async { sleep(SECOND).await }).await.unwrap();
        let (own, listed, all) = (jobs.len(), jobs.jobs().len(), jobs.scheduler().len());
        jobs.wait_idle().await;
        let late = jobs.close().await.len();
        format!("{own} ({listed}) of {all}, then {}, {late} late", jobs.len())
    };
    let app = atomic(&scheduler)(Router::new().route("/pay", post(handler)));
    let response = within("the handler", app.oneshot(pay())).await.unwrap();
    assert_eq!(text(response).await, "1 (1) of 2, then 0, 0 late");
}

#[tokio::test(start_paused = true)]
async fn after_response_job_starts_when_the_client_leaves() {
    let (handler, mut events) = handler();
    let (outcome, mut outcomes) = mpsc::unbounded_channel();
    let scheduler = Scheduler::new();
    let inner = handler.clone();
    let route = post(move |jobs: Jobs| async move {
        let tell = move |how| async move { outcome.send(how).unwrap() };
        jobs.after_response_with(tell.clone()).unwrap();
        inner.serve().await;
        jobs.after_response_with(tell).unwrap();
    });
    let app = atomic(&scheduler)(Router::new().route("/pay", route));
    let mut call = task::spawn(app.oneshot(pay()));
    assert_pending!(call.poll());
    assert_eq!(events.next().await, Entered);
    drop(call);
    assert_eq!(outcomes.recv().await, Some(ResponseOutcome::NoResponse));
    assert_eq!(events.so_far(), []);
    handler.go_on();
    assert_eq!(outcomes.recv().await, Some(ResponseOutcome::NoResponse));
    scheduler.wait_idle().await;
    assert_eq!(events.so_far(), [Ended]);
}

#[tokio::test(start_paused = true)]
async fn extensions_and_the_span_of_the_request_go_along() {
    let _guard = logs::subscribe(Identity::new());
    let handler = |Extension(customer): Extension<u64>| async move {
        let span = tracing::Span::current();
        format!("customer {customer} in {}", span.metadata().unwrap().name())
    };
    let app = atomic(&Scheduler::new())(Router::new().route("/pay", post(handler)));
    let call = app.layer(Extension(7_u64)).oneshot(pay());
    let response = call.instrument(tracing::info_span!("the request")).await.unwrap();
    assert_eq!(text(response).await, "customer 7 in the request");
}

#[tokio::test(start_paused = true)]
async fn response_that_is_never_polled_starts_no_job() {
    let (handler, mut events) = handler();
    let scheduler = Scheduler::new();
    let mut service = AtomicLayer::new(scheduler.clone()).layer(handler.app(|app| app));
    drop(ready(&mut service).await.unwrap().call(pay()));
    scheduler.wait_idle().await;
    assert_eq!(scheduler.stats().accepted, 0);
    assert_eq!(events.so_far(), []);
}

/// A service that must be polled ready before each call. So must its clones.
struct Strict {
    is_ready: bool,
}

impl Clone for Strict {
    fn clone(&self) -> Self {
        Self { is_ready: false }
    }
}

impl Service<Request> for Strict {
    type Response = Response<Body>;
    type Error = Infallible;
    type Future = Ready<Result<Response<Body>, Infallible>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Infallible>> {
        self.is_ready = true;
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, _: Request) -> Self::Future {
        assert!(mem::take(&mut self.is_ready), "called before it was ready");
        std::future::ready(Ok(Response::default()))
    }
}

#[tokio::test(start_paused = true)]
async fn service_that_was_polled_ready_is_the_one_that_is_called() {
    let mut service = AtomicLayer::new(Scheduler::new()).layer(Strict { is_ready: false });
    let first = ready(&mut service).await.unwrap().call(pay());
    let second = ready(&mut service).await.unwrap().call(pay());
    second.await.unwrap();
    first.await.unwrap();
}

#[tokio::test(start_paused = true)]
async fn service_that_will_never_be_ready_says_so() {
    #[derive(Clone)]
    struct Broken;

    impl Service<Request> for Broken {
        type Response = Response<Body>;
        type Error = io::Error;
        type Future = Ready<Result<Response<Body>, io::Error>>;

        fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), io::Error>> {
            Poll::Ready(Err(io::Error::other("out of order")))
        }

        fn call(&mut self, _: Request) -> Self::Future {
            unreachable!("it is never ready")
        }
    }

    let mut service = AtomicLayer::new(Scheduler::new()).layer(Broken);
    let error = assert_ready_err!(task::spawn(ready(&mut service)).poll().map_ok(|_| ()));
    assert_eq!(error.to_string(), "out of order");
}

#[tokio::test(start_paused = true)]
async fn inner_concurrency_limit_counts_handlers_that_run_on() {
    let (handler, mut events) = handler();
    let limit = ConcurrencyLimitLayer::new(1);
    let inner = limit.layer(handler.app(|app| app));
    let mut service = AtomicLayer::new(Scheduler::new()).layer(inner);
    let mut call = task::spawn(ready(&mut service).await.unwrap().call(pay()));
    assert_pending!(call.poll());
    assert_eq!(events.next().await, Entered);
    drop(call);
    let mut next = task::spawn(ready(&mut service));
    assert_pending!(next.poll().map_ok(|_| ()));
    handler.go_on();
    assert_eq!(events.next().await, Ended);
    turn().await;
    assert!(next.is_woken());
    assert!(assert_ready!(next.poll()).is_ok());
}

// Shielding a part of a handler.

/// The response of a handler that gets its `Jobs`.
fn with_jobs<F, H>(
    scheduler: &Scheduler,
    mut serve: H,
) -> impl Future<Output = Response<Body>> + use<F, H>
where
    H: FnMut(Jobs) -> F + Clone + Send + 'static,
    F: Future<Output = String> + Send,
{
    let service = service_fn(move |request: Request| {
        let text = serve(request.extensions().get::<Jobs>().unwrap().clone());
        async move { Ok::<_, Infallible>(Response::new(Body::from(text.await))) }
    });
    let service = JobsLayer::new(scheduler.clone()).layer(service);
    async { service.oneshot(pay()).await.unwrap().map(Body::new) }
}

#[tokio::test(start_paused = true)]
async fn shield_passes_values_and_errors_through() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let response = with_jobs(&scheduler, |jobs| async move {
        let ok = jobs.shield(async { Ok::<_, io::Error>(7) }).await.unwrap();
        let error = jobs.shield(async { Err::<u8, _>(io::Error::other("no money")) }).await;
        let plain = jobs.shield(async { "plain" }).await.unwrap();
        format!("{ok:?}, {}, {plain}", error.unwrap().unwrap_err())
    });
    assert_eq!(text(response.await).await, "Ok(7), no money, plain");
    let stats = scheduler.stats();
    assert_eq!((stats.completed, stats.failed), (2, 1));
    assert_eq!(all(&mut failures), [""; 0], "the caller got it");
}

#[tokio::test(start_paused = true)]
async fn shield_without_caller_goes_on_as_a_job_of_its_request() {
    let (handler, mut events) = handler();
    let (scheduler, mut failures) = watched(Scheduler::builder().limit(1));
    let (give, mut given) = mpsc::unbounded_channel();
    let inner = handler.clone();
    let mut call = task::spawn(with_jobs(&scheduler, move |jobs| {
        let (inner, give) = (inner.clone(), give.clone());
        async move {
            jobs.spawn(std::future::pending::<()>()).await.unwrap();
            give.send(jobs.clone()).unwrap();
            let debit = async move {
                inner.serve().await;
                Err::<(), _>("no money")
            };
            jobs.shield(debit).await.unwrap().unwrap_err().to_owned()
        }
    }));
    assert_pending!(call.poll());
    let jobs = given.recv().await.unwrap();
    while call.is_woken() {
        assert_pending!(call.poll());
    }
    assert_eq!(events.next().await, Entered);
    assert_eq!((jobs.len(), scheduler.active_count()), (2, 2), "outside the limit of 1");
    drop(call);
    let mut drain = task::spawn(scheduler.wait_and_close_within(SECOND));
    assert_pending!(drain.poll());
    handler.go_on();
    assert_eq!(events.next().await, Ended);
    let report = drain.await;
    assert_eq!(report.failed.len(), 1, "{report}");
    let failures = all(&mut failures);
    assert!(failures.len() == 1 && failures[0].contains("of POST ("), "{failures:?}");
    assert!(failures[0].ends_with("failed: no money"), "{failures:?}");
}

#[tokio::test(start_paused = true)]
async fn shielded_work_that_panics_panics_in_its_caller() {
    let (scheduler, mut failures) = watched(Scheduler::builder());
    let call =
        with_jobs(
            &scheduler,
            |jobs| async move { jobs.shield(no_money()).await.unwrap().to_string() },
        );
    let payload = tokio::spawn(call).await.unwrap_err().into_panic();
    assert_eq!(payload.downcast_ref(), Some(&"no money"));
    assert_eq!(scheduler.stats().panicked, 1);
    assert_eq!(all(&mut failures), [""; 0], "the caller got it");
}

#[tokio::test(start_paused = true)]
async fn shielded_work_of_a_closed_scheduler_is_refused_unrun() {
    let scheduler = Scheduler::new();
    scheduler.close().await;
    let response = with_jobs(&scheduler, |jobs| async move {
        let error = jobs.shield(no_money()).await.unwrap_err();
        format!("{} {error}: {}", error.is_cancelled(), std::error::Error::source(&error).unwrap())
    });
    let text = text(response.await).await;
    assert!(text.starts_with("true the job was not accepted: the scheduler is closed"), "{text}");
}
