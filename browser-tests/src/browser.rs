//! chromedriver, and the browsers that it starts.

use std::{
    fs,
    net::SocketAddr,
    path::{Path, PathBuf},
    process::Stdio,
    sync::{
        Mutex, PoisonError,
        atomic::{AtomicUsize, Ordering::Relaxed},
    },
};

use serde_json::json;
use tokio::{process::Command, sync::MutexGuard};

use crate::{Page, driver::Driver, page, program::Process, skip, target};

/// Browsers are heavy: the tests of one process take turns.
static TURN: tokio::sync::Mutex<()> = tokio::sync::Mutex::const_new(());

/// Runs chromedriver, and kills the process group when standard input ends: also if the test was killed.
const GROUP: &str = "chromedriver --port=0 </dev/null & cat >/dev/null; kill -KILL 0";

/// A chromedriver of its own, on a free port. Dropping it ends its browsers too.
#[derive(Debug)]
pub struct Browser {
    driver: Driver,
    sessions: Mutex<Vec<Driver>>,
    folder: PathBuf,
    process: Process,
    _turn: MutexGuard<'static, ()>,
}

impl Browser {
    /// Starts chromedriver, when no other test of this process has one.
    ///
    /// Without Chromium or chromedriver it prints a line and gives `None`. In CI that is a failure.
    pub async fn start() -> Option<Self> {
        for binary in ["chromium", "chromedriver"] {
            if !is_installed(binary).await {
                skip(&format!("no {binary}: install Debian's chromium and chromium-driver"));
                return None;
            }
        }
        let turn = TURN.lock().await;
        let folder = own_folder();
        let mut command = Command::new("sh");
        command.args(["-c", GROUP]).env("TMPDIR", &folder).process_group(0).stdin(Stdio::piped());
        let process = Process::start(&mut command);
        let line = process.line_with("started successfully on port ").await;
        let port = line.rsplit(' ').next().and_then(|port| port.trim_end_matches('.').parse().ok());
        let driver = Driver::new(SocketAddr::from(([127, 0, 0, 1], port.expect("a port"))));
        Some(Self { driver, sessions: Mutex::default(), folder, process, _turn: turn })
    }

    /// Opens a browser with a profile of its own: its cookies and storage are shared with no other page.
    ///
    /// The window shows 1280 x 900 pixels, in light colours.
    pub async fn page(&self) -> Page {
        let arguments = [
            "--headless=new",
            "--no-sandbox",
            "--disable-gpu",
            "--disable-dev-shm-usage",
            "--disable-quic",
            "--disable-background-networking",
            "--disable-component-update",
            "--disable-sync",
            "--disable-extensions",
            "--no-first-run",
            "--hide-scrollbars",
            "--force-color-profile=srgb",
            "--window-size=1280,900",
        ];
        let capabilities = json!({
            "goog:chromeOptions": { "args": arguments },
            "goog:loggingPrefs": { "browser": "ALL" },
            "timeouts": { "script": 30_000, "pageLoad": 30_000, "implicit": 0 },
        });
        let session = self.driver.session(&capabilities).await;
        self.sessions.lock().unwrap_or_else(PoisonError::into_inner).push(session.clone());
        page::opened(session).await
    }

    /// Closes all pages and ends chromedriver.
    pub async fn end(self) {
        let sessions: Vec<_> =
            self.sessions.lock().unwrap_or_else(PoisonError::into_inner).drain(..).collect();
        for session in sessions {
            session.delete("").await;
        }
    }
}

impl Drop for Browser {
    /// A failed test has not closed its pages, so the whole process group is killed.
    fn drop(&mut self) {
        self.process.kill_group();
        // Fails only if something else still writes there, and then is cleaned with `target`.
        drop(fs::remove_dir_all(&self.folder));
    }
}

async fn is_installed(binary: &str) -> bool {
    let mut command = Command::new(binary);
    command.arg("--version").stdout(Stdio::null()).stderr(Stdio::null());
    command.status().await.is_ok_and(|status| status.success())
}

/// A folder for the profiles of one browser.
fn own_folder() -> PathBuf {
    static NEXT: AtomicUsize = AtomicUsize::new(0);
    let name = format!("{}-{}", std::process::id(), NEXT.fetch_add(1, Relaxed));
    let folder = target().join("browser").join("profiles").join(name);
    fs::create_dir_all(&folder).expect("a folder can be made in the target directory");
    Path::new(&folder).to_owned()
}
