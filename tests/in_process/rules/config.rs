//! Settings: their limits, and with the feature `serde` their form in files, and that of snapshots.

use std::time::Duration;

use tower_jobs::{Scheduler, SchedulerConfig};

use crate::support::{YEAR, panic_text};

const TOO_LONG: [Duration; 2] = [Duration::MAX, Duration::from_secs(366 * 24 * 60 * 60)];

/// Asserts that `code` panics with a text that has all `parts`.
#[track_caller]
fn assert_refused<T>(code: impl FnOnce() -> T, parts: &[&str]) {
    let text = panic_text(code);
    for part in parts {
        assert!(text.contains(part), "{part:?} in {text:?}");
    }
}

#[test]
fn limit_of_zero_is_refused() {
    let parts = ["limit is 0", "at least 1", "for no limit"];
    assert_refused(|| Scheduler::builder().limit(0), &parts);
    assert_refused(|| Scheduler::builder().limit(Some(0)), &parts);
    let mut config = SchedulerConfig::default();
    config.limit = Some(0);
    assert!(config.validate().unwrap_err().to_string().contains(parts[0]));
    assert_refused(|| Scheduler::builder().config(config), &parts);
}

#[test]
fn timeouts_beyond_a_year_are_refused() {
    for long in TOO_LONG {
        let value = format!("{long:?}");
        let longest = "the longest is 365 days";
        let parts = |field: &'static str| [field, &*value, longest, "set it to"];
        assert_refused(|| Scheduler::builder().close_timeout(long), &parts("close_timeout is"));
        assert_refused(|| Scheduler::builder().wait_timeout(long), &parts("wait_timeout is"));
        let scheduler = Scheduler::new();
        let cure = [
            "the job's timeout is",
            &*value,
            longest,
            "set how long it may run",
            "leave the timeout out",
        ];
        assert_refused(|| drop(scheduler.job("x").timeout(long)), &cure);
        let mut config = SchedulerConfig::default();
        config.wait_timeout = long;
        assert_refused(|| Scheduler::builder().config(config), &parts("wait_timeout is"));
    }
}

#[test]
fn run_timeout_out_of_range_is_refused_with_its_own_cure() {
    let scheduler = Scheduler::new();
    let refused = |timeout, parts: &[&str]| {
        assert_refused(|| drop(scheduler.job("x").timeout(timeout)), parts);
    };
    refused(Duration::ZERO, &["the job's timeout is 0", "leave the timeout out"]);
    for long in TOO_LONG {
        let value = format!("the job's timeout is {long:?}");
        refused(long, &[&value, "the longest is 365 days", "set how long it may run"]);
    }
}

#[test]
fn deferred_limit_of_zero_is_refused() {
    let parts = ["deferred_limit is 0", "at least 1", "for no limit"];
    assert_refused(|| Scheduler::builder().deferred_limit(0), &parts);
    let mut config = SchedulerConfig::default();
    config.deferred_limit = Some(0);
    assert_refused(|| Scheduler::builder().config(config), &parts);
}

#[test]
fn deferred_timeout_out_of_range_is_refused() {
    let refused = |timeout, parts: &[&str]| {
        assert_refused(|| Scheduler::builder().deferred_timeout(timeout), parts);
        let mut config = SchedulerConfig::default();
        config.deferred_timeout = Some(timeout);
        assert_refused(|| Scheduler::builder().config(config), parts);
    };
    refused(Duration::ZERO, &["deferred_timeout is 0", "leave it out"]);
    for long in TOO_LONG {
        let value = format!("deferred_timeout is {long:?}");
        refused(long, &[&value, "the longest is 365 days", "leave it out"]);
    }
}

#[test]
fn settings_at_the_edge_of_sense_are_taken() {
    let scheduler = Scheduler::builder()
        .limit(1)
        .pending_limit(0)
        .deferred_limit(1)
        .deferred_timeout(YEAR)
        .close_timeout(Duration::ZERO)
        .wait_timeout(YEAR)
        .build();
    assert_eq!((scheduler.limit(), scheduler.pending_limit()), (Some(1), Some(0)));
    assert_eq!((scheduler.deferred_limit(), scheduler.deferred_timeout()), (Some(1), Some(YEAR)));
    assert_eq!((scheduler.close_timeout(), scheduler.wait_timeout()), (Duration::ZERO, YEAR));
    let scheduler = Scheduler::builder().deferred_limit(None).deferred_timeout(None).build();
    assert_eq!((scheduler.deferred_limit(), scheduler.deferred_timeout()), (None, None));
    let scheduler = Scheduler::builder().limit(usize::MAX).pending_limit(usize::MAX).build();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async { scheduler.spawn(async {}).await.unwrap().await }).unwrap();
    drop(scheduler.job("x").timeout(YEAR));
}

#[cfg(feature = "serde")]
mod with_serde {
    use std::future::pending;

    use serde_json::{Value, from_str, from_value, json, to_value};
    use tower_jobs::{JobInfo, JobState, Outcome};

    use super::*;

    /// The error of a refused configuration.
    #[track_caller]
    fn refusal(config: Value) -> String {
        from_value::<SchedulerConfig>(config).expect_err("it was taken").to_string()
    }

    #[test]
    fn empty_configuration_is_the_default_one() {
        assert_eq!(from_str::<SchedulerConfig>("{}").unwrap(), SchedulerConfig::default());
        let one = from_value::<SchedulerConfig>(json!({ "limit": 7 })).unwrap();
        assert_eq!((one.limit, one.pending_limit), (Some(7), Some(10_000)));
    }

    #[test]
    fn settings_are_written_as_people_write_them() {
        let config: SchedulerConfig = from_value(json!({
            "limit": "unlimited",
            "pending_limit": 0,
            "deferred_limit": 7,
            "deferred_timeout": "10m",
            "close_timeout": "1500ms",
            "wait_timeout": "1m 30s",
        }))
        .unwrap();
        let scheduler = Scheduler::builder().config(config).build();
        assert_eq!((scheduler.limit(), scheduler.pending_limit()), (None, Some(0)));
        assert_eq!(scheduler.deferred_limit(), Some(7));
        assert_eq!(scheduler.deferred_timeout(), Some(Duration::from_secs(600)));
        assert_eq!(scheduler.close_timeout(), Duration::from_millis(1500));
        assert_eq!(scheduler.wait_timeout(), Duration::from_secs(90));
        for none in [json!("unlimited"), json!(null)] {
            let config: SchedulerConfig = from_value(json!({ "pending_limit": none })).unwrap();
            assert_eq!(config.pending_limit, None);
        }
        let config: SchedulerConfig = from_value(json!({ "deferred_timeout": null })).unwrap();
        assert_eq!(config.deferred_timeout, None);
    }

    #[test]
    fn nonsense_is_an_error_that_names_the_field() {
        for (config, parts) in [
            (json!({ "limt": 7 }), ["unknown field `limt`", "`pending_limit`"]),
            (json!({ "limit": 0 }), ["limit is 0", "at least 1"]),
            (json!({ "wait_timeout": "400 days" }), ["wait_timeout is", "365 days"]),
            (json!({ "close_timeout": "2y" }), ["close_timeout is", "365 days"]),
            (json!({ "limit": -1 }), ["limit: ", "a whole number, or \"unlimited\""]),
            (json!({ "limit": 1.5 }), ["limit: ", "a whole number, or \"unlimited\""]),
            (json!({ "limit": "many" }), ["limit: ", "a whole number, or \"unlimited\""]),
            (json!({ "limit": true }), ["limit: ", "a whole number, or \"unlimited\""]),
            (json!({ "pending_limit": [] }), ["pending_limit: ", "a whole number, or"]),
            (json!({ "deferred_limit": 0 }), ["deferred_limit is 0", "at least 1"]),
            (json!({ "deferred_timeout": "0s" }), ["deferred_timeout is 0", "leave it out"]),
            (json!({ "deferred_timeout": 5 }), ["deferred_timeout: ", "\"100ms\""]),
            (json!({ "close_timeout": "soon" }), ["close_timeout: ", "\"100ms\""]),
            (json!({ "close_timeout": "-1s" }), ["close_timeout: ", "\"100ms\""]),
            (json!({ "wait_timeout": 100 }), ["wait_timeout: ", "\"100ms\""]),
            (json!({ "wait_timeout": null }), ["wait_timeout: ", "\"100ms\""]),
            (json!({ "wait_timeout": "" }), ["wait_timeout: ", "\"100ms\""]),
        ] {
            let text = refusal(config.clone());
            for part in parts {
                assert!(text.contains(part), "{config}: {part:?} in {text:?}");
            }
        }
        assert!(from_str::<SchedulerConfig>(r#"{"limit":1,"limit":2}"#).is_err());
    }

    #[test]
    fn configuration_survives_being_written_and_read() {
        let mut config = SchedulerConfig::default();
        let written = to_value(&config).unwrap();
        assert_eq!(
            written,
            json!({
                "limit": 100, "pending_limit": 10_000, "deferred_limit": 10_000,
                "deferred_timeout": null, "job_timeout": null, "limit_per_key": "unlimited", "close_timeout": "100ms",
                "wait_timeout": "1m",
            })
        );
        for (limit, timeout) in
            [(None, Duration::ZERO), (Some(1), YEAR), (Some(usize::MAX), Duration::from_nanos(1))]
        {
            (config.limit, config.pending_limit) = (limit, limit);
            (config.deferred_limit, config.limit_per_key) = (limit, limit);
            config.deferred_timeout = (!timeout.is_zero()).then_some(timeout);
            (config.close_timeout, config.wait_timeout) = (timeout, timeout);
            let written = to_value(&config).unwrap();
            assert_eq!(from_value::<SchedulerConfig>(written).unwrap(), config);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn snapshots_are_written() {
        let scheduler = Scheduler::builder().limit(1).build();
        let job = scheduler.job("mail").spawn(pending::<()>()).await.unwrap();
        let waiting = scheduler.spawn(pending::<()>()).await.unwrap();
        tokio::time::advance(Duration::from_millis(1500)).await;

        let stats = to_value(scheduler.stats()).unwrap();
        assert_eq!(
            (&stats["accepted"], &stats["active"], &stats["pending"]),
            (&json!(2), &json!(1), &json!(1))
        );
        assert_eq!(stats["oldest_active"], 1.5, "{stats}");
        assert_eq!(
            to_value(job.info()).unwrap(),
            json!({
                "id": job.id().to_string(),
                "name": "mail",
                "kind": "plain",
                "state": "active",
                "request": null,
                "key": null,
                "location": job.info().location.to_string(),
                "age": 1.5,
                "state_for": 1.5,
                "queued": 0.0,
                "timeout": null,
                "progress": null,
            })
        );
        assert_eq!(to_value(JobState::Finished).unwrap(), "finished");
        assert_eq!(to_value(Outcome::NeverStarted).unwrap(), "never_started");

        let (info, waiting) = (job.info(), waiting.info());
        let report = scheduler.close().await;
        let ended = |info: &JobInfo, name: &str| {
            json!([{
                "id": info.id.to_string(),
                "name": name,
                "kind": "plain",
                "state": "finished",
                "request": null,
                "key": null,
                "location": info.location.to_string(),
                "age": 1.5,
                "state_for": 0.0,
                "queued": null,
                "timeout": null,
                "progress": null,
            }])
        };
        assert_eq!(
            to_value(&report).unwrap(),
            json!({
                "scheduler": null,
                "completed": 0,
                "skipped": 0,
                "failed": [],
                "panicked": [],
                "timed_out": [],
                "cancelled": ended(&info, "mail"),
                "never_started": ended(&waiting, &waiting.location.to_string()),
                "abandoned": [],
                "elapsed": 0.0,
            })
        );
    }
}
