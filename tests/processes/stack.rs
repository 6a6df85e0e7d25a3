//! The stack that a large future passed by value costs, per verb, beside `tokio::spawn`.
//!
//! Each measurement is a process of its own, since a stack overflow ends the process. The tests run this
//! test program again, with the verb and the size in the environment.

use std::{
    convert::Infallible,
    env,
    future::{Future, ready},
    hint::black_box,
    pin::Pin,
    process::{Command, Stdio},
    thread,
    time::Duration,
};

use http::{Request, Response};
use tokio::runtime;
use tower::{Layer, ServiceExt, service_fn};
use tower_jobs::{Jobs, JobsLayer, Scheduler};

const CASE: &str = "TOWER_JOBS_STACK_CASE";
const KIB: usize = 1024;
/// The size of the thread's stack, as that of tokio's workers.
const STACK: usize = 2 * KIB * KIB;

const MINUTE: Duration = Duration::from_secs(60);

/// A future of `N` bytes.
fn large<const N: usize>() -> impl Future<Output = ()> + Send + 'static {
    let bytes = [0_u8; N];
    async move {
        black_box(&bytes);
        tokio::task::yield_now().await;
        black_box(&bytes);
    }
}

async fn jobs(scheduler: &Scheduler) -> Jobs {
    let (tell, mut told) = tokio::sync::mpsc::unbounded_channel();
    let inner = service_fn(move |request: Request<()>| {
        tell.send(request.extensions().get::<Jobs>().unwrap().clone()).unwrap();
        ready(Ok::<_, Infallible>(Response::new("".to_owned())))
    });
    let layer = JobsLayer::new(scheduler.clone());
    drop(layer.layer(inner).oneshot(Request::new(())).await.unwrap());
    told.recv().await.unwrap()
}

/// The code of each verb in a function of its own, so that their stack frames do not add up.
macro_rules! verbs {
    ($($name:literal: |$scheduler:ident, $jobs:ident| $code:block)*) => {
        const VERBS: &[&str] = &[$($name),*];

        fn pass<const N: usize>(verb: &str, scheduler: Scheduler, jobs: Jobs) -> Passed {
            match verb {
                $($name => {
                    #[inline(never)]
                    async fn pass<const N: usize>($scheduler: Scheduler, $jobs: Jobs) {
                        $code
                    }
                    Box::pin(pass::<N>(scheduler, jobs))
                })*
                other => panic!("no such verb: {other}"),
            }
        }
    };
}

type Passed = Pin<Box<dyn Future<Output = ()>>>;

verbs! {
    "tokio::spawn": |_scheduler, _jobs| { tokio::spawn(large::<N>()).await.unwrap() }
    "spawn": |scheduler, _jobs| { drop(scheduler.spawn(large::<N>()).await.unwrap()) }
    "try_spawn": |scheduler, _jobs| { drop(scheduler.try_spawn(large::<N>()).unwrap()) }
    "spawn_within": |scheduler, _jobs| {
        drop(scheduler.spawn_within(MINUTE, large::<N>()).await.unwrap());
    }
    "spawn_with": |scheduler, _jobs| {
        drop(scheduler.spawn_with(|_| large::<N>()).await.unwrap());
    }
    "spawn_with, a large closure": |scheduler, _jobs| {
        let bytes = [0_u8; N];
        drop(scheduler.spawn_with(move |_| {
            use_it(&bytes);
            ready(())
        }).await.unwrap());
    }
    "spawn_blocking": |scheduler, _jobs| {
        let bytes = [0_u8; N];
        drop(scheduler.spawn_blocking(move || use_it(&bytes)).await.unwrap());
    }
    "shield": |scheduler, _jobs| { scheduler.shield(large::<N>()).await.unwrap() }
    "Permit::spawn": |scheduler, _jobs| {
        drop(scheduler.reserve().await.unwrap().spawn(large::<N>()).unwrap());
    }
    "job().spawn": |scheduler, _jobs| {
        drop(scheduler.job("large").spawn(large::<N>()).await.unwrap());
    }
    "job().try_spawn": |scheduler, _jobs| {
        drop(scheduler.job("large").try_spawn(large::<N>()).unwrap());
    }
    "Jobs::spawn": |_scheduler, jobs| { drop(jobs.spawn(large::<N>()).await.unwrap()) }
    "Jobs::try_spawn": |_scheduler, jobs| { drop(jobs.try_spawn(large::<N>()).unwrap()) }
    "Jobs::spawn_with": |_scheduler, jobs| {
        drop(jobs.spawn_with(|_| large::<N>()).await.unwrap());
    }
    "Jobs::shield": |_scheduler, jobs| { jobs.shield(large::<N>()).await.unwrap() }
    "after_response": |_scheduler, jobs| { drop(jobs.after_response(large::<N>()).unwrap()) }
    "Jobs::job().after_response": |_scheduler, jobs| {
        drop(jobs.job("large").after_response(large::<N>()).unwrap());
    }
    "after_success": |_scheduler, jobs| { drop(jobs.after_success(large::<N>()).unwrap()) }
    "after_response_with": |_scheduler, jobs| {
        drop(jobs.after_response_with(|_| large::<N>()).unwrap());
    }
    "after_response_with, a large closure": |_scheduler, jobs| {
        let bytes = [0_u8; N];
        drop(jobs.after_response_with(move |_| {
            use_it(&bytes);
            ready(())
        }).unwrap());
    }
}

fn use_it(bytes: &[u8]) {
    black_box(bytes);
}

fn run<const N: usize>(verb: &str) {
    let verb = verb.to_owned();
    let run = move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build().unwrap();
        let scheduler = Scheduler::new();
        let jobs = runtime.block_on(jobs(&scheduler));
        runtime.block_on(pass::<N>(&verb, scheduler.clone(), jobs));
        runtime.block_on(scheduler.wait_idle());
    };
    thread::Builder::new().stack_size(STACK).spawn(run).unwrap().join().unwrap();
}

/// Not a test by itself: the process that one measurement starts.
#[test]
fn one_measurement() {
    let Ok(case) = env::var(CASE) else { return };
    let (kib, verb) = case.split_once(' ').unwrap();
    match kib {
        "32" => run::<{ 32 * KIB }>(verb),
        "64" => run::<{ 64 * KIB }>(verb),
        "128" => run::<{ 128 * KIB }>(verb),
        "256" => run::<{ 256 * KIB }>(verb),
        "512" => run::<{ 512 * KIB }>(verb),
        "1024" => run::<{ 1024 * KIB }>(verb),
        other => panic!("no such size: {other}"),
    }
}

/// Whether a future of so many KiB can be passed.
fn fits(verb: &str, kib: usize) -> bool {
    let program = env::current_exe().unwrap();
    let mut child = Command::new(program);
    child.args(["--exact", "stack::one_measurement", "--test-threads=1"]);
    child.env(CASE, format!("{kib} {verb}")).env("RUST_BACKTRACE", "0");
    child.stdout(Stdio::null()).stderr(Stdio::null()).status().unwrap().success()
}

fn largest(verb: &str) -> usize {
    let sizes = [1024, 512, 256, 128, 64, 32];
    sizes.into_iter().find(|kib| fits(verb, *kib)).unwrap_or(0)
}

/// Case A8. Half as large a future as `tokio::spawn` takes is the bound.
#[test]
fn verbs_cost_at_most_twice_the_stack_of_tokio_spawn() {
    let tokio = largest("tokio::spawn");
    assert!(tokio >= 64, "{tokio} KiB by tokio::spawn");
    println!("largest future by value on a stack of 2 MiB: tokio::spawn {tokio} KiB or more");
    let sizes: Vec<_> = VERBS.iter().map(|verb| (verb, largest(verb))).collect();
    for (verb, kib) in &sizes {
        println!("{verb}: {kib} KiB");
    }
    let small: Vec<_> = sizes.into_iter().filter(|(_, kib)| kib * 2 < tokio).collect();
    assert!(small.is_empty(), "{small:?} beside {tokio} KiB");
}
