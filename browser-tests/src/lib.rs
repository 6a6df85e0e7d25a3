//! Pages in a real browser: headless Chromium, driven over WebDriver.
//!
//! ```no_run
//! use tower_jobs_browser_tests::{Browser, Scheme};
//!
//! # async fn example() {
//! let Some(browser) = Browser::start().await else { return };
//! let page = browser.page().await;
//! page.scheme(Scheme::Dark).await;
//! page.open("http://127.0.0.1:3000/").await;
//! page.wait_until("the end", "document.querySelector('#state').textContent === 'Done'").await;
//! page.screenshot("status-dark").await;
//! page.assert_accessible().await;
//! page.assert_no_console_errors().await;
//! browser.end().await;
//! # }
//! ```
//!
//! Debian's packages `chromium` and `chromium-driver` are needed. Without them a test prints a line and is
//! skipped; in CI it fails. Screenshots are written to `target/screenshots`.
#![allow(
    clippy::missing_panics_doc,
    reason = "whatever goes wrong here fails the test that called it"
)]
#![allow(
    clippy::disallowed_methods,
    clippy::disallowed_types,
    reason = "a test may start tasks, and read the real clock"
)]

mod axe;
mod browser;
mod driver;
mod line;
mod page;
mod program;

pub use browser::Browser;
pub use line::Line;
pub use page::{Page, Scheme};
pub use program::{Program, example};

use std::{
    env,
    io::{self, Write},
    path::PathBuf,
    time::Duration,
};

/// The real time after which a wait fails its test. Only a page that hangs takes as long.
pub const PLENTY: Duration = Duration::from_secs(60);

/// The folder that Cargo builds into.
fn target() -> PathBuf {
    // Cargo puts tests into target/PROFILE/deps.
    let test = env::current_exe().expect("a test knows its own path");
    test.ancestors().nth(3).expect("a test lies in target/PROFILE/deps").to_owned()
}

/// Says that something is missing. In CI that is a failure.
fn skip(missing: &str) {
    assert!(env::var_os("CI").is_none(), "{missing}");
    // A passing test does not show the output of `eprintln!`.
    let line = format!("skipped: {missing}\n");
    io::stderr().write_all(line.as_bytes()).expect("standard error is open");
}
