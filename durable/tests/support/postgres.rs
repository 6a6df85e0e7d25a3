//! A real PostgreSQL server for tests, from the installed binaries.
//!
//! It listens on a free loopback port, and keeps its files in a temporary directory. As root, it runs as the
//! user `postgres`, because the server refuses root.

#![allow(
    dead_code,
    unreachable_pub,
    reason = "not every test uses all of it, and a library shows it"
)]
#![allow(
    clippy::print_stderr,
    clippy::unwrap_used,
    reason = "a test may panic, and says why it skips"
)]

use std::{
    fs,
    io::{Read, Write},
    net::{Ipv4Addr, TcpListener},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{
        OnceLock,
        atomic::{AtomicU32, Ordering},
    },
};

use sqlx::{Connection, Executor, PgConnection};

/// Attempts to find a port that stays free until the server listens on it.
const PORTS: usize = 5;

/// A running server. It is stopped, and its files are removed, when it is dropped or the process ends.
pub struct Server {
    bin: PathBuf,
    dir: PathBuf,
    port: u16,
    syncs: bool,
    databases: AtomicU32,
    /// Waits for the end of its standard input, so it also cleans up after a process that was killed.
    cleaner: Child,
}

/// Returns the server of this test binary. `None` where PostgreSQL is not installed.
pub fn server() -> Option<&'static Server> {
    static SERVER: OnceLock<Option<Server>> = OnceLock::new();
    SERVER.get_or_init(Server::start).as_ref()
}

impl Server {
    /// Starts a server of its own, for a test that stops it. It does not wait for the disk.
    pub fn start() -> Option<Self> {
        Self::start_with(false)
    }

    /// Starts a server that waits for the disk at each commit, as in production.
    pub fn start_synced() -> Option<Self> {
        Self::start_with(true)
    }

    fn start_with(syncs: bool) -> Option<Self> {
        let Some(bin) = binaries() else {
            eprintln!("skipped: no PostgreSQL binaries (initdb, pg_ctl) are installed");
            return None;
        };
        let dir = tempfile::Builder::new().prefix("tower-jobs-pg-").tempdir().unwrap().keep();
        if is_root() {
            run(Command::new("chown").arg("postgres:postgres").arg(&dir));
        }
        let data = dir.join("data");
        run(as_postgres(&bin.join("initdb"))
            .args(["--auth=trust", "--username=postgres", "--encoding=UTF8", "--no-sync", "-D"])
            .arg(&data));
        let mut cleaner = as_postgres(Path::new("/bin/sh"));
        cleaner
            .args(["-c", r#"trap '' INT TERM; read -r _; "$1" -D "$2/data" -m immediate -w stop; rm -rf "$2""#, "sh"])
            .arg(bin.join("pg_ctl"))
            .arg(&dir)
            .stdin(Stdio::piped())
            .stdout(Stdio::null())
            .stderr(Stdio::null());
        let mut server = Self {
            cleaner: cleaner.spawn().unwrap(),
            bin,
            dir,
            port: 0,
            syncs,
            databases: AtomicU32::new(0),
        };
        for _ in 0..PORTS {
            server.port = free_port();
            if server.try_restart() {
                return Some(server);
            }
        }
        panic!("PostgreSQL does not start: {}", server.log());
    }

    /// Returns a connection URL of a new, empty database.
    pub async fn database(&self) -> String {
        let name = format!("test_{}", self.databases.fetch_add(1, Ordering::Relaxed));
        let mut admin = PgConnection::connect(&self.url("postgres")).await.unwrap();
        let create = format!("create database {name}");
        admin.execute(sqlx::AssertSqlSafe(create)).await.unwrap();
        admin.close().await.unwrap();
        self.url(&name)
    }

    /// Returns the connection URL of a database.
    pub fn url(&self, database: &str) -> String {
        format!("postgres://postgres@127.0.0.1:{}/{database}?sslmode=disable", self.port)
    }

    /// Kills the server, as a crash does.
    pub fn stop(&self) {
        run(self.pg_ctl().args(["-m", "immediate", "-w", "stop"]));
    }

    /// Starts the server again, with the data and on the port that it had.
    pub fn restart(&self) {
        assert!(self.try_restart(), "PostgreSQL does not start again: {}", self.log());
    }

    fn try_restart(&self) -> bool {
        let options = format!(
            "-c listen_addresses=127.0.0.1 -c port={} -c unix_socket_directories= -c fsync={} \
             -c max_connections=200 -c shared_buffers=32MB",
            self.port, self.syncs
        );
        let mut start = self.pg_ctl();
        start
            .arg("-l")
            .arg(self.dir.join("log"))
            .args(["-w", "-t", "120", "-o", &options, "start"]);
        // The server inherits them, and a test runner waits until its own are closed.
        start.stdout(Stdio::null()).stderr(Stdio::null());
        start.status().unwrap().success()
    }

    fn pg_ctl(&self) -> Command {
        let mut command = as_postgres(&self.bin.join("pg_ctl"));
        command.arg("-D").arg(self.dir.join("data"));
        command
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.join("log")).unwrap_or_default()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        drop(self.cleaner.stdin.take());
        if let Err(error) = self.cleaner.wait() {
            eprintln!("PostgreSQL is not removed: {error}");
        }
    }
}

/// The directory of `initdb` and `pg_ctl`: that of `PATH`, or Debian's newest.
fn binaries() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let mut found: Vec<PathBuf> = std::env::split_paths(&path).collect();
    if let Ok(versions) = fs::read_dir("/usr/lib/postgresql") {
        let mut versions: Vec<PathBuf> =
            versions.flatten().map(|version| version.path().join("bin")).collect();
        versions.sort();
        found.extend(versions.into_iter().rev());
    }
    found.into_iter().find(|dir| dir.join("initdb").exists() && dir.join("pg_ctl").exists())
}

fn is_root() -> bool {
    let mut id = Command::new("id").arg("-u").stdout(Stdio::piped()).spawn().unwrap();
    let mut user = String::new();
    id.stdout.take().unwrap().read_to_string(&mut user).unwrap();
    id.wait().unwrap();
    user.trim() == "0"
}

fn as_postgres(program: &Path) -> Command {
    let mut command;
    if is_root() {
        command = Command::new("setpriv");
        command.args(["--reuid=postgres", "--regid=postgres", "--clear-groups"]).arg(program);
    } else {
        command = Command::new(program);
    }
    // Not the caller's, which the user may not enter.
    command.current_dir("/").env("LC_ALL", "C");
    command
}

fn run(command: &mut Command) {
    let output = command.stdin(Stdio::null()).output().unwrap();
    if !output.status.success() {
        std::io::stderr().write_all(&output.stderr).unwrap();
        panic!("{command:?}: {}", output.status);
    }
}

fn free_port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap().local_addr().unwrap().port()
}
