//! The state of one request: its label, the end of its response, and the group of its jobs.

use std::{
    cmp,
    iter::successors,
    ptr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU16, Ordering},
    },
};

use http::{Extensions, Method, StatusCode, Uri, Version, uri::PathAndQuery};

use crate::{
    http::{outcome::ResponseOutcome, response_end::ResponseEnd},
    job::{
        group::{Group, GroupOwner},
        record::Record,
    },
    rules::step::JobKey,
    run::core::Core,
};

/// The source of a label. The label is formatted on first use.
#[derive(Debug)]
pub(crate) enum Origin {
    /// A path may hold tokens and addresses, so it is never part of the default.
    Method(Method),
    /// The method and the path of the URI. The path is `None` if the URI is a host only, as for
    /// `CONNECT`.
    Path(Method, Option<PathAndQuery>),
    #[cfg(feature = "axum")]
    MatchedPath(Method, axum::extract::MatchedPath),
    /// A label of [`JobsLayer::label`](crate::JobsLayer::label).
    Label(Arc<str>),
}

impl Origin {
    #[cfg_attr(not(feature = "axum"), allow(unused_variables))]
    pub(crate) fn new(method: &Method, extensions: &Extensions) -> Self {
        #[cfg(feature = "axum")]
        if let Some(path) = extensions.get::<axum::extract::MatchedPath>() {
            return Self::MatchedPath(method.clone(), path.clone());
        }
        Self::Method(method.clone())
    }

    pub(crate) fn by_path(method: &Method, uri: &Uri) -> Self {
        Self::Path(method.clone(), uri.path_and_query().cloned())
    }

    fn label(&self) -> Arc<str> {
        match self {
            Self::Method(method) => method.as_str().into(),
            Self::Path(method, path) => {
                format!("{method} {}", path.as_ref().map_or("", PathAndQuery::path)).into()
            }
            #[cfg(feature = "axum")]
            Self::MatchedPath(method, path) => format!("{method} {}", path.as_str()).into(),
            Self::Label(label) => label.clone(),
        }
    }
}

/// A job that waits for the end of the response.
#[derive(Clone, Copy)]
struct Deferred {
    job: JobKey,
    /// Whether the job starts after this outcome, or is skipped.
    starts_after: fn(ResponseOutcome) -> bool,
}

impl Ord for Deferred {
    /// Orders by id, which is the order in which the jobs were made.
    fn cmp(&self, other: &Self) -> cmp::Ordering {
        self.job.id.cmp(&other.job.id)
    }
}

impl PartialOrd for Deferred {
    fn partial_cmp(&self, other: &Self) -> Option<cmp::Ordering> {
        Some(self.cmp(other))
    }
}

impl PartialEq for Deferred {
    fn eq(&self, other: &Self) -> bool {
        self.job.id == other.job.id
    }
}

impl Eq for Deferred {}

/// The state of one request, shared by its [`Jobs`](crate::Jobs), its jobs and its response.
///
/// Every request has one, so the state is small: parts that few requests need are allocated on first
/// use.
pub(crate) struct RequestState {
    core: Arc<Core>,
    origin: Origin,
    label: OnceLock<Arc<str>>,
    response: ResponseEnd<Deferred>,
    /// The status of the response's head; 0 before that.
    status: AtomicU16,
    is_multiplexed: bool,
    group: Group,
    /// The state that the next layer further out has made for the same request.
    outer: Option<Arc<RequestState>>,
}

impl RequestState {
    pub(crate) fn new(
        core: Arc<Core>,
        origin: Origin,
        version: Version,
        outer: Option<Arc<RequestState>>,
    ) -> Self {
        Self {
            core,
            origin,
            label: OnceLock::new(),
            response: ResponseEnd::new(),
            status: AtomicU16::new(0),
            is_multiplexed: version > Version::HTTP_11,
            group: Group::default(),
            outer,
        }
    }

    /// Returns whether the connection serves several requests at a time, as HTTP/2 and later do. The
    /// server then drops the response's body in one task, and writes to the socket in another.
    pub(crate) fn is_multiplexed(&self) -> bool {
        self.is_multiplexed
    }

    /// Returns whether both were made for the same request, by layers one inside the other.
    pub(crate) fn is_same_request(&self, other: &Self) -> bool {
        ptr::eq(self.outermost(), other.outermost())
    }

    fn outermost(&self) -> &Self {
        successors(Some(self), |state| state.outer.as_deref()).last().unwrap_or(self)
    }

    /// Makes a deferred job wait for the response. If that has ended, or is given up, the job starts or
    /// is skipped now.
    pub(crate) fn defer(&self, record: &Record, starts_after: fn(ResponseOutcome) -> bool) {
        let deferred = Deferred { job: record.key(), starts_after };
        match self.response.wait(deferred) {
            Some((deferred, outcome)) => self.start(deferred, outcome),
            None if self.core.gives_up_responses() => self.core.give_up(record),
            None => self.core.watch_deferred(),
        }
    }

    /// Stores the status of the response's head.
    pub(crate) fn set_status(&self, status: StatusCode) {
        self.status.store(status.as_u16(), Ordering::Release);
    }

    /// Ends the response. The jobs that wait for it start or are skipped.
    pub(crate) fn end_response(&self, outcome: ResponseOutcome) {
        if let Some(waiting) = self.response.end(outcome) {
            waiting.for_each(|deferred| self.start(deferred, outcome));
        }
    }

    fn start(&self, deferred: Deferred, outcome: ResponseOutcome) {
        if (deferred.starts_after)(outcome) {
            self.core.undefer(deferred.job);
        } else {
            self.core.skip(deferred.job);
        }
    }

    /// Returns the outcome of the response, if it has ended.
    pub(crate) fn outcome(&self) -> Option<ResponseOutcome> {
        self.response.outcome()
    }

    /// Returns the outcome of the response, as it is now.
    pub(crate) fn outcome_now(&self) -> ResponseOutcome {
        let status = || StatusCode::from_u16(self.status.load(Ordering::Acquire)).ok();
        self.outcome().unwrap_or_else(|| ResponseOutcome::Unfinished(status()))
    }
}

impl GroupOwner for RequestState {
    fn label(&self) -> &Arc<str> {
        self.label.get_or_init(|| self.origin.label())
    }

    fn group(&self) -> &Group {
        &self.group
    }

    fn forget_deferred(&self, job: JobKey) {
        self.response.forget(&Deferred { job, starts_after: |_| false });
    }
}

#[cfg(test)]
mod tests {
    use std::{future::pending, time::Duration};

    use super::*;
    use crate::{Jobs, Scheduler, Stats};

    /// A request that has had no response yet.
    fn request(scheduler: &Scheduler) -> (Jobs, Arc<RequestState>) {
        let origin = Origin::Label("GET /".into());
        let state = RequestState::new(scheduler.core().clone(), origin, Version::HTTP_11, None);
        let state = Arc::new(state);
        (Jobs::new(scheduler.clone(), state.clone()), state)
    }

    fn counts(stats: &Stats) -> [u64; 5] {
        [stats.deferred, stats.active, stats.completed, stats.cancelled, stats.skipped]
    }

    #[tokio::test]
    async fn request_forgets_a_deferred_job_that_is_removed() {
        let scheduler = Scheduler::new();
        let (jobs, request) = request(&scheduler);
        let deferred = |name| jobs.job(name).unique_key_or_replace(name);
        for _ in 0..3 {
            deferred("replaced").after_response(pending::<()>()).expect("there is room");
        }
        assert_eq!(request.response.waiting_count(), 1);
        let aborted = jobs.after_response(pending::<()>()).expect("there is room");
        let mut closed = jobs.after_success(pending::<()>()).expect("there is room");
        assert_eq!(request.response.waiting_count(), 3);
        aborted.abort();
        assert_eq!(request.response.waiting_count(), 2);
        closed.close().await.expect("it has not failed");
        assert_eq!(request.response.waiting_count(), 1);
        assert!(jobs.close().await.is_empty());
        assert_eq!(request.response.waiting_count(), 0);
        assert_eq!(counts(&scheduler.stats()), [0, 0, 0, 5, 0]);
        request.end_response(ResponseOutcome::NoResponse);
        assert_eq!(counts(&scheduler.stats()), [0, 0, 0, 5, 0]);
    }

    #[tokio::test(start_paused = true)]
    async fn request_forgets_a_job_deferred_too_long() {
        let scheduler = Scheduler::builder().deferred_timeout(Duration::from_secs(1)).build();
        let (jobs, request) = request(&scheduler);
        let started = jobs.after_response(async {}).expect("there is room");
        let skipped = jobs.after_success(async {}).expect("there is room");
        tokio::time::sleep(Duration::from_secs(2)).await;
        assert!(started.is_finished() && skipped.is_finished());
        started.await.expect("no failure");
        assert!(skipped.await.is_err_and(|error| error.is_skipped()));
        assert_eq!(request.response.waiting_count(), 0);
        request.end_response(ResponseOutcome::NoResponse);
        scheduler.wait_idle().await;
        assert_eq!(counts(&scheduler.stats()), [0, 0, 1, 0, 1]);
    }

    /// As a shutdown does with connections that do not end.
    #[tokio::test]
    async fn deferred_jobs_of_responses_given_up_start_as_unfinished() {
        let scheduler = Scheduler::new();
        let (first, first_request) = request(&scheduler);
        let (second, second_request) = request(&scheduler);
        let tell = |outcome| async move { outcome };
        let job = first.after_response_with(tell).expect("there is room");
        let skipped = second.after_success(async {}).expect("there is room");
        second_request.set_status(StatusCode::OK);
        let other = second.after_response_with(tell).expect("there is room");
        assert_eq!(counts(&scheduler.stats()), [3, 0, 0, 0, 0]);

        scheduler.core().give_up_responses();
        assert_eq!(counts(&scheduler.stats()), [0, 2, 0, 0, 1]);
        assert_eq!(job.await.expect("no failure"), ResponseOutcome::Unfinished(None));
        let unfinished = ResponseOutcome::Unfinished(Some(StatusCode::OK));
        assert_eq!(other.await.expect("no failure"), unfinished);
        assert!(skipped.await.is_err_and(|error| error.is_skipped()));
        for request in [&first_request, &second_request] {
            assert_eq!((request.response.waiting_count(), request.outcome()), (0, None));
        }

        // Jobs deferred later start at once, or are skipped.
        let late = second.after_response_with(tell).expect("there is room");
        assert!(late.is_active());
        assert_eq!(late.await.expect("no failure"), unfinished);
        let skipped = second.after_success(async {}).expect("there is room");
        assert!(skipped.is_finished());
        assert!(skipped.await.is_err_and(|error| error.is_skipped()));
        assert_eq!(second_request.response.waiting_count(), 0);

        // The end of the responses starts nothing more.
        first_request.end_response(ResponseOutcome::NoResponse);
        second_request.end_response(ResponseOutcome::Complete(StatusCode::OK));
        scheduler.wait_idle().await;
        assert_eq!(counts(&scheduler.stats()), [0, 0, 3, 0, 2]);
    }

    #[test]
    fn request_state_is_small() {
        const MAX_SIZE: usize = 176;
        const ARC_COUNTS: usize = 2 * size_of::<usize>();
        let size = size_of::<RequestState>() + ARC_COUNTS;
        assert!(size <= MAX_SIZE, "{size}");
    }

    #[test]
    fn label_by_path_has_no_query() {
        let of =
            |method, uri: &'static str| Origin::by_path(&method, &Uri::from_static(uri)).label();
        assert_eq!(&*of(Method::GET, "/users/7?full=yes"), "GET /users/7");
        assert_eq!(&*of(Method::POST, "https://example.com"), "POST /");
        assert_eq!(&*of(Method::OPTIONS, "*"), "OPTIONS *");
        assert_eq!(&*of(Method::CONNECT, "example.com:443"), "CONNECT ");
        let odd = Method::from_bytes(b"A-METHOD-OF-ONES-OWN").expect("a valid method");
        assert_eq!(&*Origin::new(&odd, &Extensions::new()).label(), odd.as_str());
        assert_eq!(&*of(odd, "/"), "A-METHOD-OF-ONES-OWN /");
    }
}
