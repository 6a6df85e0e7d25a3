//! Jobs by id: live, remembered, forgotten and unknown.

use std::{
    future::pending,
    panic::resume_unwind,
    sync::{Arc, Mutex, OnceLock},
    time::Duration,
};

use tokio::time::sleep;
use tower_jobs::{
    JobEnd, JobId, JobSeen, JobState, Lookup, Observer, Outcome, Scheduler, WeakScheduler,
};

use crate::support::{SECOND, oneshot::respond, turn, within};

fn remembering(jobs: usize) -> Scheduler {
    Scheduler::builder().limit(1).remember(jobs).build()
}

#[track_caller]
fn live(scheduler: &Scheduler, id: JobId) -> JobState {
    match scheduler.get(id) {
        Lookup::Live(job) => {
            assert_eq!(job.id, id);
            job.state
        }
        other => panic!("{other:?}"),
    }
}

#[track_caller]
fn ended(scheduler: &Scheduler, id: JobId) -> tower_jobs::EndedJob {
    match scheduler.get(id) {
        Lookup::Ended(ended) => {
            assert_eq!((ended.job.id, ended.job.state), (id, JobState::Finished));
            ended
        }
        other => panic!("{other:?}"),
    }
}

/// The id with this number, of this process or, with a 1, of another.
fn id(number: u64, other_process: u64, like: JobId) -> JobId {
    let text = like.to_string();
    let (_, process) = text.split_once('-').unwrap();
    let process = u64::from_str_radix(process, 16).unwrap() ^ other_process;
    format!("{number}-{process:05x}").parse().unwrap()
}

#[tokio::test]
async fn live_job_is_found_in_each_state() {
    for remember in [0, 3] {
        let scheduler = remembering(remember);
        let open = respond(&scheduler).await;
        let deferred = open.jobs.job("mail").after_response(async {}).unwrap();
        let active = scheduler.try_spawn(pending::<()>()).unwrap();
        let waiting = scheduler.try_spawn(pending::<()>()).unwrap();
        assert_eq!(live(&scheduler, deferred.id()), JobState::Deferred);
        assert_eq!(live(&scheduler, active.id()), JobState::Active);
        assert_eq!(live(&scheduler, waiting.id()), JobState::Pending);
        let Lookup::Live(job) = scheduler.get(deferred.id()) else { panic!("it is live") };
        assert!(job.name == "mail" && job.request.is_some());
    }
}

#[tokio::test(start_paused = true)]
async fn ended_job_is_remembered_with_outcome_error_and_times() {
    let scheduler = remembering(10);
    let first = scheduler.job("first").spawn(sleep(2 * SECOND)).await.unwrap().id();
    let failing = async {
        sleep(SECOND).await;
        Err::<(), _>(std::io::Error::other("no mail\ntoday".to_string()))
    };
    let second = scheduler.job("second").concurrency_key("key").spawn(failing).await.unwrap();
    let third = scheduler.spawn(pending::<()>()).await.unwrap();
    sleep(4 * SECOND).await;
    third.abort();
    turn().await;
    let never = scheduler.spawn(async {}).await.unwrap();
    sleep(SECOND).await;
    assert!(never.is_finished());

    let job = ended(&scheduler, first);
    assert_eq!((job.outcome, job.error), (Outcome::Completed, None));
    assert_eq!((job.queued, job.ran, job.ago), (Duration::ZERO, 2 * SECOND, 3 * SECOND));
    assert_eq!(job.job.name, "first");

    let job = ended(&scheduler, second.id());
    assert_eq!((job.outcome, job.job.name.as_ref()), (Outcome::Failed, "second"));
    assert_eq!((job.queued, job.ran, job.ago), (2 * SECOND, SECOND, 2 * SECOND));
    assert_eq!(job.job.key.as_deref(), Some("key"));
    let text = job.error.unwrap();
    assert!(text.contains("no mail") && !text.contains('\n'), "{text:?}");
    let error = second.await.unwrap_err();
    assert!(error.is_failed(), "the handle has its error still: {error}");

    let job = ended(&scheduler, third.id());
    assert_eq!((job.outcome, job.queued, job.ran), (Outcome::Cancelled, 3 * SECOND, SECOND));
    assert_eq!(job.error, None);
}

#[tokio::test]
async fn each_outcome_is_remembered() {
    let scheduler = remembering(10);
    let panics = async {
        resume_unwind(Box::new("boom"));
    };
    let panicked = scheduler.try_spawn(panics).unwrap();
    let open = respond(&scheduler).await;
    let skipped = open.jobs.after_success(async {}).unwrap();
    turn().await;
    assert_eq!(ended(&scheduler, panicked.id()).outcome, Outcome::Panicked);
    assert!(ended(&scheduler, panicked.id()).error.unwrap().contains("boom"));
    let blocker = scheduler.try_spawn(pending::<()>()).unwrap();
    let cancelled = scheduler.try_spawn(async {}).unwrap();
    cancelled.abort();
    assert_eq!(ended(&scheduler, cancelled.id()).outcome, Outcome::Cancelled);
    let unstarted = scheduler.try_spawn(async {}).unwrap();
    within("the close", scheduler.close()).await;
    assert_eq!(ended(&scheduler, blocker.id()).outcome, Outcome::Cancelled);
    assert_eq!(ended(&scheduler, unstarted.id()).outcome, Outcome::NeverStarted);
    assert_eq!(ended(&scheduler, skipped.id()).outcome, Outcome::NeverStarted);
}

#[tokio::test]
async fn job_is_forgotten_after_that_many_others() {
    let scheduler = remembering(3);
    let mut ids = Vec::new();
    for _ in 0..5 {
        let job = scheduler.spawn(async {}).await.unwrap();
        ids.push(job.id());
        job.await.unwrap();
    }
    for id in &ids[..2] {
        assert!(matches!(scheduler.get(*id), Lookup::Forgotten));
    }
    for id in &ids[2..] {
        ended(&scheduler, *id);
    }
}

#[tokio::test]
async fn ended_job_is_forgotten_without_a_memory() {
    let scheduler = Scheduler::new();
    let job = scheduler.spawn(async {}).await.unwrap();
    let id = job.id();
    assert_eq!(live(&scheduler, id), JobState::Active);
    job.await.unwrap();
    assert!(matches!(scheduler.get(id), Lookup::Forgotten));
    assert!(matches!(Scheduler::new().get(id), Lookup::Forgotten), "of another scheduler");
}

#[tokio::test]
async fn ids_that_were_never_given_are_unknown() {
    for remember in [0, 3] {
        let scheduler = remembering(remember);
        let job = scheduler.try_spawn(pending::<()>()).unwrap();
        for unknown in [id(1 << 43, 0, job.id()), id(job.id().get(), 1, job.id())] {
            assert!(matches!(scheduler.get(unknown), Lookup::Unknown), "{unknown}");
        }
        assert!(matches!(scheduler.get(id(job.id().get(), 0, job.id())), Lookup::Live(_)));
    }
}

#[tokio::test]
async fn id_is_read_as_it_was_written_and_nothing_else() {
    let scheduler = Scheduler::new();
    let id = scheduler.spawn(async {}).await.unwrap().id();
    let text = id.to_string();
    assert_eq!(text.parse(), Ok(id));
    let (number, process) = text.split_once('-').unwrap();
    assert_eq!(number.parse(), Ok(id.get()));
    assert_eq!(process.len(), 5);
    let mut wrong: Vec<String> =
        ["", "-", "7", "7-", "-0f3a9", "0-0f3a9", "+7-0f3a9", "7-+f3a9", "7-g0000", "7-0f3a9-1"]
            .map(str::to_owned)
            .into();
    wrong.extend([format!(" {text}"), format!("{text} "), format!("{text}0"), number.to_owned()]);
    wrong.push(format!("{}-0f3a9", 1_u64 << 44));
    wrong.push(format!("{}-0f3a9", u128::MAX));
    for wrong in wrong {
        let error = wrong.parse::<JobId>().unwrap_err();
        assert!(error.to_string().contains("7-0f3a9"), "{wrong:?}: {error}");
    }
}

#[cfg(feature = "serde")]
#[tokio::test(start_paused = true)]
async fn lookups_serialize_for_a_status_page() {
    let scheduler = remembering(1);
    let failing = async {
        sleep(SECOND).await;
        Err::<(), _>("no mail today")
    };
    let job = scheduler.job("mail").spawn(failing).await.unwrap();
    let id = job.id();
    assert_eq!(serde_json::to_value(id).unwrap(), id.to_string());
    let read = |text: &str| serde_json::from_value::<JobId>(text.into());
    assert_eq!(read(&id.to_string()).unwrap(), id);
    assert!(read("7").unwrap_err().to_string().contains("7-0f3a9"));
    let shown = serde_json::to_value(scheduler.get(id)).unwrap();
    assert_eq!(shown["live"]["id"], id.to_string());
    assert_eq!(shown["live"]["state"], "active");
    job.await.unwrap_err();
    let shown = serde_json::to_value(scheduler.get(id)).unwrap();
    let ended = &shown["ended"];
    assert_eq!(ended["outcome"], "failed");
    assert_eq!(ended["error"], "the job failed: no mail today");
    assert_eq!((ended["queued"].as_f64(), ended["ran"].as_f64()), (Some(0.0), Some(1.0)));
    let other = serde_json::to_value(Scheduler::new().get(id)).unwrap();
    assert_eq!(other, "forgotten");
}

/// The memory holds neither records nor futures of jobs that it has forgotten.
#[tokio::test]
async fn memory_is_bounded_by_its_size() {
    const JOBS: u64 = 100_000;
    let scheduler = Scheduler::builder().limit(10).pending_limit(None).remember(100).build();
    let first = scheduler.try_spawn(async {}).unwrap().id();
    for _ in 1..JOBS {
        scheduler.try_spawn(async {}).unwrap();
    }
    within("the jobs", scheduler.wait_idle()).await;
    assert_eq!(scheduler.stats().completed, JOBS);
    let known = (first.get()..first.get() + JOBS).map(|number| id(number, 0, first));
    // Other tests make jobs of this process too, so the numbers of these have gaps.
    let last = scheduler.try_spawn(async {}).unwrap().id().get();
    within("the last", scheduler.wait_idle()).await;
    let all = known.chain((first.get() + JOBS..=last).map(|number| id(number, 0, first)));
    let remembered = all.filter(|id| matches!(scheduler.get(*id), Lookup::Ended(_))).count();
    assert_eq!(remembered, 100);
}

/// The order of `accepted` and `ended` is that of threads.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn no_job_stays_in_the_index_after_its_end() {
    let scheduler = Scheduler::builder().limit(8).pending_limit(None).remember(5).build();
    let spawners: Vec<_> = (0..4)
        .map(|_| {
            let scheduler = scheduler.clone();
            tokio::spawn(async move {
                let mut ids = Vec::new();
                for _ in 0..2000 {
                    let job = scheduler.spawn(async {}).await.unwrap();
                    ids.push(job.id());
                    job.await.unwrap();
                    assert!(!matches!(scheduler.get(*ids.last().unwrap()), Lookup::Live(_)));
                }
                ids
            })
        })
        .collect();
    let mut ids = Vec::new();
    for spawner in spawners {
        ids.extend(spawner.await.unwrap());
    }
    scheduler.wait_and_close().await;
    let remembered = ids.iter().filter(|id| matches!(scheduler.get(**id), Lookup::Ended(_)));
    assert_eq!(remembered.count(), 5);
    let live = ids.iter().filter(|id| matches!(scheduler.get(**id), Lookup::Live(_)));
    assert_eq!(live.count(), 0);
}

/// Observers come before the memory.
#[tokio::test]
async fn job_is_not_forgotten_while_its_end_is_recorded() {
    #[derive(Clone, Default)]
    struct Asks(Arc<OnceLock<WeakScheduler>>, Arc<Mutex<Vec<JobState>>>);
    impl Observer for Asks {
        fn ended(&self, job: &JobSeen<'_>, _: &JobEnd<'_>) {
            let scheduler = self.0.get().unwrap().upgrade().unwrap();
            assert!(!scheduler.abort(job.id()) && !scheduler.close_job(job.id()), "it is over");
            self.1.lock().unwrap().push(live(&scheduler, job.id()));
        }
    }
    let asks = Asks::default();
    let scheduler = Scheduler::builder().remember(5).observer(asks.clone()).build();
    asks.0.set(scheduler.downgrade()).unwrap();
    let job = scheduler.spawn(async {}).await.unwrap();
    let id = job.id();
    job.await.unwrap();
    scheduler.close().await;
    assert_eq!(*asks.1.lock().unwrap(), [JobState::Finished]);
    assert_eq!(ended(&scheduler, id).outcome, Outcome::Completed);
}
