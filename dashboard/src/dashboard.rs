//! The builder.

use std::{fmt, sync::Arc, time::Duration};

use axum::Router;
use tokio::sync::Notify;
use tower_jobs::Scheduler;

use crate::{
    clock::{Clock, seconds},
    hub::{Hub, Parts},
    json::Process,
    routes,
    tab::Tab,
    view::Stuck,
    watched::Watched,
};

/// Maximum number of schedulers on one page.
const MAX_SCHEDULERS: usize = 16;

/// Sets up the page of one scheduler, or of several.
///
/// It observes each scheduler from [`new`](Self::new) and [`and`](Self::and) on, so make it before the first job.
/// It does not keep a scheduler open.
///
/// See the [crate's documentation](crate) for its guarantees.
#[must_use = "a dashboard shows nothing until its `router` is served"]
pub struct Dashboard {
    clock: Arc<Clock>,
    changed: Arc<Notify>,
    watched: Vec<Arc<Watched>>,
    tabs: Vec<Arc<dyn Tab>>,
    app: Option<String>,
    host: Option<String>,
    stuck: Stuck,
    max_streams: usize,
    live_drain: bool,
    allows_actions: bool,
}

impl Dashboard {
    /// Begins to observe a scheduler, for a page.
    pub fn new(scheduler: &Scheduler) -> Self {
        let dashboard = Self {
            clock: Arc::new(Clock::start()),
            changed: Arc::new(Notify::new()),
            watched: Vec::new(),
            tabs: Vec::new(),
            app: None,
            host: None,
            stuck: Stuck { least: Duration::from_secs(60), factor: 5 },
            max_streams: 16,
            live_drain: false,
            allows_actions: false,
        };
        dashboard.and(scheduler)
    }

    /// Adds another scheduler to the page.
    ///
    /// A scheduler is shown by its [name](tower_jobs::SchedulerBuilder::name), else as `jobs`. A number tells equal
    /// names apart.
    ///
    /// # Panics
    ///
    /// If the page has 16 schedulers already.
    #[track_caller]
    pub fn and(mut self, scheduler: &Scheduler) -> Self {
        assert!(self.watched.len() < MAX_SCHEDULERS, "a page shows at most 16 schedulers");
        let name = scheduler.name().unwrap_or("jobs");
        let is_free = |name: &str| self.watched.iter().all(|watched| watched.name != name);
        let numbered = (2..).map(|number| format!("{name} {number}"));
        let name = std::iter::once(name.to_owned()).chain(numbered).find(|name| is_free(name));
        let name = name.unwrap_or_default();
        self.watched.push(Watched::new(scheduler, name, &self.clock, &self.changed));
        self
    }

    /// Sets the application's name, for the page's header. Defaults to none.
    pub fn app(mut self, name: impl Into<String>) -> Self {
        self.app = Some(name.into());
        self
    }

    /// Sets the host's name, for the page's header. Defaults to none.
    pub fn host(mut self, name: impl Into<String>) -> Self {
        self.host = Some(name.into());
        self
    }

    /// Sets when a running job counts as stuck. Defaults to 60 s and 5.
    ///
    /// It has run for longer than `least`, and for longer than `factor` times the 95th percentile of its name's run
    /// times. The percentile counts once the name has had 5 ends in the last 15 minutes.
    pub fn stuck_after(mut self, least: Duration, factor: u32) -> Self {
        self.stuck = Stuck { least, factor };
        self
    }

    /// Maximum number of event streams, one for each open page. Defaults to 16; 0 = none.
    ///
    /// A page beyond it asks for the overview every 5 s.
    ///
    /// # Panics
    ///
    /// If it exceeds 10 000.
    #[track_caller]
    pub fn max_streams(mut self, streams: usize) -> Self {
        assert!(streams <= 10_000, "max_streams must be at most 10 000");
        self.max_streams = streams;
        self
    }

    /// Keeps event streams open during a drain, until all schedulers are closed.
    ///
    /// It is for a listener of its own outside `Shutdown`. A stream on the application's server would hold up
    /// its end.
    pub fn live_drain(mut self) -> Self {
        self.live_drain = true;
        self
    }

    /// Adds routes and buttons that pause and resume a scheduler, and cancel a running job.
    ///
    /// They are refused unless the page itself sends them: by `Sec-Fetch-Site: same-origin`, else by an `Origin` that
    /// is the host. That keeps other sites from using your browser's session. It does not decide which users may: that
    /// is your own layer's task.
    pub fn allow_actions(mut self) -> Self {
        self.allows_actions = true;
        self
    }

    /// Adds a page of another crate.
    ///
    /// # Panics
    ///
    /// If its id has other characters than letters, digits and hyphens, or is that of another tab.
    #[track_caller]
    pub fn tab(mut self, tab: impl Tab) -> Self {
        let is_plain = |char: char| char.is_ascii_alphanumeric() || char == '-';
        let id = tab.id();
        assert!(
            !id.is_empty() && id.chars().all(is_plain),
            "a tab's id has letters, digits, hyphens"
        );
        assert!(self.tabs.iter().all(|other| other.id() != id), "two tabs have the id {id}");
        self.tabs.push(Arc::new(tab));
        self
    }

    /// Makes the router, to nest behind your own authentication.
    ///
    /// It may be nested at any path. Call it inside the runtime: it then starts a task that samples the counts
    /// every second. Outside of one, the first request starts that task.
    pub fn router(self) -> Router {
        let process = Process {
            app: self.app,
            host: self.host,
            pid: std::process::id(),
            started_at: self.clock.started_at(),
            crate_version: env!("CARGO_PKG_VERSION"),
            actions: self.allows_actions,
            stuck_after_s: seconds(self.stuck.least),
        };
        let hub = Hub::new(Parts {
            clock: self.clock,
            process,
            watched: self.watched,
            changed: self.changed,
            stuck: self.stuck,
            live_drain: self.live_drain,
            max_streams: self.max_streams,
        });
        hub.ensure_ticks();
        routes::router(hub, self.tabs)
    }
}

impl fmt::Debug for Dashboard {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names: Vec<_> = self.watched.iter().map(|watched| &watched.name).collect();
        f.debug_struct("Dashboard")
            .field("schedulers", &names)
            .field("app", &self.app)
            .field("live_drain", &self.live_drain)
            .field("allows_actions", &self.allows_actions)
            .finish_non_exhaustive()
    }
}
