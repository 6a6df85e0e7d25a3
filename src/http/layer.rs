//! The layer that puts a [`Jobs`] into every request.

use std::{
    fmt,
    marker::PhantomData,
    sync::Arc,
    task::{Context, Poll},
};

use http::{Extensions, Method, Request, Response, Uri};
use http_body::Body;
use tower_layer::Layer;
use tower_service::Service;

use crate::{
    http::{
        body::{BodyRule, ResponseBody, ResponseFuture, ResponseGuard},
        jobs::Jobs,
        request::{Origin, RequestState},
    },
    scheduler::Scheduler,
};

#[derive(Clone)]
enum Label {
    Default,
    Path,
    Own(Arc<LabelFn>),
}

type LabelFn = dyn Fn(&Method, &Uri, &Extensions) -> Option<String> + Send + Sync;

/// Puts a [`Jobs`] into the extensions of every request.
///
/// ```
/// # #[cfg(feature = "axum")] {
/// use axum::{Router, routing::post};
/// use tower_jobs::{Jobs, JobsLayer, Scheduler};
///
/// # async fn signup(jobs: Jobs) {}
/// let scheduler = Scheduler::new();
/// let app: Router = Router::new()
///     .route("/signup", post(signup))
///     .layer(JobsLayer::new(scheduler.clone()));
/// # }
/// ```
///
/// In axum a route sees only the layers that are added *after* it. So add this layer after the routes
/// that need it, and add the layers that belong outside it later still. See
/// [Middleware order](crate::docs::middleware_order) for the side on which other middleware belongs.
///
/// Of nested layers the innermost wins. A nested router can therefore have its own scheduler. Without a
/// layer of its own, it has its parent's.
///
/// # Two schedulers on one route
///
/// Give one of them a marker, which may be any type. With the marker `Mail`, the layer is
/// `JobsLayer::<Mail>::with_marker(..)`, and the extractor is `Jobs<Mail>`, beside the plain `Jobs`.
/// `Shutdown::and_scheduler` shuts down both.
///
/// # Without axum
///
/// The layer works in any tower HTTP stack:
///
/// ```
/// # use std::convert::Infallible;
/// # use http::{Request, Response};
/// use tower::{ServiceBuilder, service_fn};
/// use tower_jobs::{Jobs, JobsLayer, Scheduler};
///
/// # let scheduler = Scheduler::new();
/// let service = ServiceBuilder::new()
///     .layer(JobsLayer::new(scheduler))
///     .service(service_fn(|request: Request<String>| async move {
///         let jobs: &Jobs = request.extensions().get().expect("the layer is there");
///         jobs.try_spawn(async { /* .. */ }).ok();
///         Ok::<_, Infallible>(Response::new(String::new()))
///     }));
/// # fn check(_: impl tower::Service<Request<String>>) {}
/// # check(service);
/// ```
pub struct JobsLayer<M = ()> {
    scheduler: Scheduler,
    label: Label,
    marker: PhantomData<fn() -> M>,
}

impl JobsLayer {
    /// Makes a layer whose requests have `scheduler` in their [`Jobs`].
    pub fn new(scheduler: Scheduler) -> Self {
        Self::with_marker(scheduler)
    }
}

impl<M> JobsLayer<M> {
    /// Makes a layer whose requests have `scheduler` in their `Jobs<M>`.
    ///
    /// This is not a generic `new`: defaults of type parameters do not guide inference, so
    /// `JobsLayer::new(..)` would then need an annotation.
    #[doc(alias = "marked")]
    pub fn with_marker(scheduler: Scheduler) -> Self {
        Self { scheduler, label: Label::Default, marker: PhantomData }
    }

    /// Sets the function that makes the label of a request's jobs.
    ///
    /// The function is called once for each request. If it returns `None`, the request has the default
    /// label: the method and axum's matched path, or the method alone if there is none. The matched path
    /// needs the feature `axum`.
    ///
    /// Labels are in log lines, listings and reports: keep secrets and personal data out of them.
    #[must_use]
    pub fn label(
        mut self,
        label: impl Fn(&Method, &Uri, &Extensions) -> Option<String> + Send + Sync + 'static,
    ) -> Self {
        self.label = Label::Own(Arc::new(label));
        self
    }

    /// Labels a request's jobs with the method and the path of the URI, without its query.
    ///
    /// For gRPC, whose paths name a service and a method: `POST /shop.Orders/Place`. Paths of other services
    /// may hold tokens and personal data, which would then be in log lines, listings and reports. A nested
    /// router of axum removes its prefix from the URI, so a layer inside it sees only the rest.
    ///
    /// ```
    /// # let scheduler = tower_jobs::Scheduler::new();
    /// let layer = tower_jobs::JobsLayer::new(scheduler).label_by_path();
    /// ```
    #[must_use]
    pub fn label_by_path(mut self) -> Self {
        self.label = Label::Path;
        self
    }
}

impl<M> JobsLayer<M> {
    fn origin<B>(&self, request: &Request<B>) -> Origin {
        let (method, uri, extensions) = (request.method(), request.uri(), request.extensions());
        let own = match &self.label {
            Label::Own(label) => label(method, uri, extensions),
            Label::Path => return Origin::by_path(method, uri),
            Label::Default => None,
        };
        own.map_or_else(|| Origin::new(method, extensions), |label| Origin::Label(label.into()))
    }
}

impl<S, M> Layer<S> for JobsLayer<M> {
    type Service = JobsService<S, M>;

    fn layer(&self, inner: S) -> Self::Service {
        JobsService { inner, layer: self.clone() }
    }
}

impl<M> Clone for JobsLayer<M> {
    fn clone(&self) -> Self {
        Self { scheduler: self.scheduler.clone(), label: self.label.clone(), marker: PhantomData }
    }
}

impl<M> fmt::Debug for JobsLayer<M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobsLayer").field("scheduler", &self.scheduler).finish_non_exhaustive()
    }
}

/// Puts a [`Jobs`] into each request: the service of [`JobsLayer`].
pub struct JobsService<S, M = ()> {
    inner: S,
    layer: JobsLayer<M>,
}

impl<S: fmt::Debug, M> fmt::Debug for JobsService<S, M> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("JobsService")
            .field("inner", &self.inner)
            .field("layer", &self.layer)
            .finish()
    }
}

impl<S: Clone, M> Clone for JobsService<S, M> {
    fn clone(&self) -> Self {
        Self { inner: self.inner.clone(), layer: self.layer.clone() }
    }
}

impl<S, M, ReqBody, ResBody> Service<Request<ReqBody>> for JobsService<S, M>
where
    S: Service<Request<ReqBody>, Response = Response<ResBody>>,
    ResBody: Body,
    M: 'static,
{
    type Response = Response<ResponseBody<ResBody>>;
    type Error = S::Error;
    type Future = ResponseFuture<S::Future, M>;

    fn poll_ready(&mut self, cx: &mut Context<'_>) -> Poll<Result<(), S::Error>> {
        self.inner.poll_ready(cx)
    }

    fn call(&mut self, mut request: Request<ReqBody>) -> Self::Future {
        let body_rule = BodyRule::from(request.method());
        let origin = self.layer.origin(&request);
        let outer = request.extensions().get::<Jobs<M>>().map(|jobs| jobs.request().clone());
        let core = self.layer.scheduler.core().clone();
        let state = Arc::new(RequestState::new(core, origin, request.version(), outer));
        // The guard ends the response, even if the inner service panics in `call`.
        let guard = ResponseGuard::new(state.clone());
        let jobs = Jobs::<M>::new(self.layer.scheduler.clone(), state);
        request.extensions_mut().insert(jobs.clone());
        ResponseFuture::new(self.inner.call(request), jobs, guard, body_rule)
    }
}
