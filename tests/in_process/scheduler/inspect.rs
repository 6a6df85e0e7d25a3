//! Reading a scheduler: the parts of a `JobInfo`, the longest in a state, and the phase.

use std::{future::pending, time::Duration};

use tokio::time::{Instant, advance};
use tower_jobs::{Job, JobInfo, JobKind, JobState, Lookup, Phase, Scheduler};

use crate::support::{
    HOUR, SECOND, limited,
    oneshot::{Open, respond},
    turn,
};
use JobState::{Active, Deferred, Finished, Pending};

fn running(scheduler: &Scheduler) -> Job<()> {
    scheduler.try_spawn(pending::<()>()).unwrap()
}

fn ids(jobs: &[JobInfo]) -> Vec<tower_jobs::JobId> {
    jobs.iter().map(|job| job.id).collect()
}

fn only(jobs: Vec<JobInfo>) -> JobInfo {
    assert_eq!(jobs.len(), 1, "{jobs:?}");
    jobs.into_iter().next().unwrap()
}

// The parts of a `JobInfo`.

#[tokio::test(start_paused = true)]
async fn info_has_the_times_of_each_state() {
    let scheduler = limited(1, 10);
    let first = running(&scheduler);
    advance(SECOND).await;
    let second = running(&scheduler);
    advance(2 * SECOND).await;
    let info = second.info();
    assert_eq!((info.state, info.age, info.state_for), (Pending, 2 * SECOND, 2 * SECOND));
    assert_eq!(info.queued, None);
    first.abort();
    turn().await;
    advance(3 * SECOND).await;
    let info = second.info();
    assert_eq!((info.state, info.age, info.state_for), (Active, 5 * SECOND, 3 * SECOND));
    assert_eq!(info.queued, Some(2 * SECOND));
    let times = |job: &JobInfo| (job.state_for, job.queued);
    assert_eq!(times(&only(scheduler.jobs())), times(&info));
    assert_eq!(times(&only(scheduler.jobs_page(None, None, 9))), times(&info));
    let Lookup::Live(found) = scheduler.get(second.id()) else { panic!("it runs") };
    assert_eq!(times(&found), times(&info));
    second.abort();
    turn().await;
    let info = second.info();
    assert_eq!((info.state, info.state_for, info.queued), (Finished, Duration::ZERO, None));
}

#[tokio::test(start_paused = true)]
async fn info_of_a_deferred_job_counts_from_its_response() {
    struct Nothing;
    impl tower_jobs::Observer for Nothing {}
    for (builder, queued) in
        [(Scheduler::builder(), 3 * SECOND), (Scheduler::builder().observer(Nothing), 2 * SECOND)]
    {
        let scheduler = builder.limit(1).build();
        let first = running(&scheduler);
        let Open { jobs, response } = respond(&scheduler).await;
        let job = jobs.after_response(pending::<()>()).unwrap();
        advance(SECOND).await;
        let info = only(jobs.jobs());
        assert_eq!((info.state, info.state_for, info.queued), (Deferred, SECOND, None));
        drop(response);
        advance(2 * SECOND).await;
        assert_eq!((job.info().state, job.info().state_for), (Pending, 2 * SECOND));
        first.abort();
        turn().await;
        assert_eq!((job.info().state, job.info().queued), (Active, Some(queued)));
        scheduler.close().await;
    }
}

/// The age of a job in its state is never above its age.
#[tokio::test(start_paused = true)]
async fn replacing_job_waits_since_it_was_accepted() {
    let scheduler = limited(1, 10);
    let _first = running(&scheduler);
    let job = || scheduler.job("export").unique_key_or_replace("x").try_spawn(pending::<()>());
    let _replaced = job().unwrap();
    advance(SECOND).await;
    let job = job().unwrap();
    advance(SECOND).await;
    assert_eq!((job.info().age, job.info().state_for), (SECOND, SECOND));
}

#[tokio::test]
async fn info_has_kind_and_timeout() {
    let scheduler = Scheduler::builder().job_timeout(HOUR).close_timeout(Duration::ZERO).build();
    let plain = running(&scheduler).info();
    assert_eq!((plain.kind, plain.timeout), (JobKind::Plain, Some(HOUR)));
    let own = scheduler.job("own").timeout(SECOND).try_spawn(pending::<()>()).unwrap();
    assert_eq!(own.info().timeout, Some(SECOND));
    let polite = scheduler.spawn_with(|_| pending::<()>()).await.unwrap().info();
    assert_eq!((polite.kind, polite.timeout), (JobKind::Cooperative, Some(HOUR)));
    let blocking = scheduler.spawn_blocking(|| ()).await.unwrap().info();
    assert_eq!((blocking.kind, blocking.timeout), (JobKind::Blocking, Some(HOUR)));
    let shielded = tokio::spawn(scheduler.job("shielded").shield(pending::<()>()));
    turn().await;
    let info = |name| scheduler.jobs().into_iter().find(|job| job.name == name).unwrap();
    let info = info("shielded");
    assert_eq!((info.kind, info.timeout), (JobKind::Shielded, None));
    let report = scheduler.close().await;
    let timeouts: Vec<_> = report.cancelled.iter().map(|job| job.timeout).collect();
    assert!(timeouts.contains(&Some(SECOND)) && timeouts.contains(&Some(HOUR)), "{timeouts:?}");
    assert!(shielded.await.unwrap().is_err());
    let without = running(&Scheduler::new()).info();
    assert_eq!(without.timeout, None);
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn durations_serialize_as_seconds() {
    let scheduler = limited(1, 10);
    let jobs = [(); 2].map(|()| scheduler.job("mail").timeout(HOUR).try_spawn(pending::<()>()));
    advance(Duration::from_millis(1500)).await;
    let active = serde_json::to_value(jobs[0].as_ref().unwrap().info()).unwrap();
    let pending = serde_json::to_value(jobs[1].as_ref().unwrap().info()).unwrap();
    for (field, value) in [("age", 1.5), ("state_for", 1.5), ("queued", 0.0), ("timeout", 3600.0)] {
        assert_eq!(active[field], value, "{field} of {active}");
    }
    assert_eq!((&active["kind"], &pending["queued"]), (&"plain".into(), &serde_json::Value::Null));
    let stats = serde_json::to_value(scheduler.stats()).unwrap();
    assert_eq!((&stats["oldest_active"], &stats["oldest_pending"]), (&1.5.into(), &1.5.into()));
    assert!(stats["oldest_deferred"].is_null(), "{stats}");
}

// The longest in a state.

#[tokio::test(start_paused = true)]
async fn longest_running_jobs_are_listed_in_order() {
    let scheduler = limited(300, 1000);
    let mut jobs = Vec::new();
    for _ in 0..400 {
        jobs.push(running(&scheduler));
        advance(Duration::from_millis(1)).await;
    }
    jobs.remove(7).abort();
    turn().await;
    let running: Vec<_> = jobs[..300].iter().map(Job::id).collect();
    let waiting: Vec<_> = jobs[300..].iter().map(Job::id).collect();
    for limit in [0, 1, 50, 128, 129, 299, 300, 500] {
        let longest = ids(&scheduler.longest(Active, limit));
        assert_eq!(longest, running[..limit.min(300)], "{limit}");
    }
    let longest = scheduler.longest(Active, 500);
    assert!(longest.is_sorted_by(|a, b| a.state_for >= b.state_for));
    assert_eq!(ids(&scheduler.longest(Pending, 1)), waiting[..1]);
    assert_eq!(ids(&scheduler.longest(Pending, 500)), waiting);
    assert!(scheduler.longest(Finished, 500).is_empty());
    assert!(scheduler.longest(Deferred, 500).is_empty());
}

/// No job that stays is missing or listed twice, however many leave meanwhile.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn longest_lists_jobs_that_stay_while_others_leave() {
    let scheduler = limited(1000, 1000);
    let staying: Vec<_> = (0..200).map(|_| running(&scheduler)).collect();
    let churn = (0..2).map(|_| {
        let scheduler = scheduler.clone();
        tokio::spawn(async move {
            for _ in 0..3000 {
                scheduler.spawn(async {}).await.unwrap().await.unwrap();
            }
        })
    });
    let churn: Vec<_> = churn.collect();
    let wanted: Vec<_> = staying.iter().map(Job::id).collect();
    while !churn.iter().all(|task| task.is_finished()) {
        let longest = ids(&scheduler.longest(Active, 200));
        assert_eq!(longest, wanted);
        tokio::task::yield_now().await;
    }
}

// The phase.

#[tokio::test(start_paused = true)]
async fn phase_and_moment_tell_how_far_the_shutdown_is() {
    let scheduler = Scheduler::builder().name("mail").build();
    assert_eq!(scheduler.name(), Some("mail"));
    let job = running(&scheduler);
    assert_eq!((scheduler.phase(), scheduler.draining_since()), (Phase::Open, None));
    advance(SECOND).await;
    let began = Instant::now();
    scheduler.start_draining();
    assert_eq!((scheduler.phase(), scheduler.draining_since()), (Phase::Announced, Some(began)));
    assert_eq!(scheduler.deadline(), None);
    advance(SECOND).await;
    let closing = scheduler.wait_and_close_within(10 * SECOND);
    let mut closing = tokio_test::task::spawn(closing);
    tokio_test::assert_pending!(closing.poll());
    assert_eq!((scheduler.phase(), scheduler.draining_since()), (Phase::Draining, Some(began)));
    assert_eq!(scheduler.deadline(), Some(began + 11 * SECOND));
    job.abort();
    closing.await;
    assert_eq!((scheduler.phase(), scheduler.draining_since()), (Phase::Closed, Some(began)));
    assert!(Phase::Open < Phase::Announced && Phase::Draining < Phase::Closed);
}
