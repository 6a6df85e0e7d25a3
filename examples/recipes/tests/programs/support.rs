//! The helpers that the tests of tower-jobs use too.
#![allow(dead_code, reason = "not all of them are used here")]

use std::{future::Future, path::Path, time::Duration};

use tokio::process::Command;

use self::process::{Ended, Process};

#[path = "../../../../tests/support/http.rs"]
pub(crate) mod http;
#[path = "../../../../tests/support/mail.rs"]
pub(crate) mod mail;
#[path = "../../../../tests/support/process.rs"]
pub(crate) mod process;

/// The real time after which a test fails. Only a future that hangs takes as long.
const PLENTY: Duration = Duration::from_secs(60);

/// The output of `future`, or a failed test after [`PLENTY`].
pub(crate) async fn within<F: Future>(what: &str, future: F) -> F::Output {
    match tokio::time::timeout(PLENTY, future).await {
        Ok(output) => output,
        Err(_) => panic!("waited {PLENTY:?} in vain for {what}"),
    }
}

/// A command that runs the program of that name, in an empty folder.
macro_rules! recipe {
    ($name:literal) => {
        $crate::support::recipe!($name, in $name)
    };
    ($name:literal, in $folder:literal) => {
        $crate::support::command(env!(concat!("CARGO_BIN_EXE_", $name)), $folder)
    };
}
pub(crate) use recipe;

pub(crate) fn command(program: &str, folder: &str) -> Command {
    let mut command = Command::new(program);
    process::with_pipes(command.env("ADDR", "127.0.0.1:0"), &process::empty_folder(folder));
    command
}

/// Runs a program to its end.
pub(crate) async fn run(mut command: Command) -> Ended {
    Process::start(&mut command).ended().await
}

/// The chapter that shows these programs.
pub(crate) fn chapter() -> String {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../src/docs/recipes.md");
    std::fs::read_to_string(path).expect("the chapter is there")
}
