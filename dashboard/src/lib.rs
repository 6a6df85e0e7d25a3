//! A live page for [`tower_jobs`]: failures, running jobs, queues, times of each name, and drains.
//!
//! [`Dashboard::router`] is an [`axum::Router`] to nest behind your own authentication. It shows, in the order of
//! their use: failures with error and time; running jobs, stuck ones first; the queue; a table of the names; charts
//! of the last 15 minutes; and a drain with its countdown.
//!
//! ```no_run
//! use axum::Router;
//! use tower_jobs::Scheduler;
//! use tower_jobs_dashboard::Dashboard;
//!
//! # #[tokio::main(flavor = "current_thread")] async fn main() -> std::io::Result<()> {
//! let scheduler = Scheduler::builder().name("web").build();
//! let mail = Scheduler::builder().name("mail").limit(4).build();
//! let jobs = Dashboard::new(&scheduler).and(&mail).app("shop").router();
//! let admin = Router::new().nest("/jobs", jobs); // .layer(your authentication)
//! let listener = tokio::net::TcpListener::bind("127.0.0.1:9000").await?;
//! axum::serve(listener, admin).await
//! # }
//! ```
//!
//! # Guarantees
//!
//! - It changes nothing: all routes are `GET`, unless [`Dashboard::allow_actions`] is called.
//! - Everything is embedded. The `Content-Security-Policy` allows no inline script and nothing external.
//! - Its memory is bounded: below 1 MB a scheduler, with any number of jobs, names and failures.
//! - It holds no lock of the scheduler while it formats, and it formats at most 1 000 error texts a second.
//! - Its event streams end when a shutdown begins, so they do not hold up the server's end.
//!
//! # What it does not do
//!
//! - **It has no authentication.** Names, keys, request labels and error texts may hold tenants' names and
//!   ids. Put your own layer around it, or serve it on an address that only you reach.
//! - It stores nothing. Figures are of this process, since its start.
//!
//! # A live drain
//!
//! The page on the application's own server loses its stream at the shutdown: it then counts down by itself. To see
//! the drain to its end, serve the page on a listener of its own, outside `Shutdown`, with
//! [`Dashboard::live_drain`]. The example `observed` does both.
//!
//! # The JSON API
//!
//! The page is made of six routes below `api/v1`, which serve any other client too: see `API.md` beside this
//! crate's source.

mod clock;
mod dashboard;
mod hub;
mod json;
mod page;
mod routes;
mod same_origin;
mod state;
mod tab;
mod text;
mod view;
mod watched;

pub use dashboard::Dashboard;
pub use tab::{Fragment, Tab, TabContext, escape};
