//! The event streams.

use std::{future::pending, time::Duration};

use serde_json::{Value, json};
use tower_jobs::Scheduler;
use tower_jobs_dashboard::Dashboard;

use crate::client::serve;

fn mail() -> tower_jobs::SchedulerBuilder {
    Scheduler::builder().name("mail").on_failure(|_| {})
}

async fn fail(scheduler: &Scheduler, error: &'static str) {
    let job = scheduler.job("send").spawn(async move { Err::<(), _>(error) }).await.expect("open");
    job.await.expect_err("a failure");
}

#[tokio::test]
async fn stream_begins_with_all_figures_and_ticks() {
    let scheduler = mail().build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    fail(&scheduler, "before").await;
    scheduler.job("slow").spawn(pending::<()>()).await.unwrap();
    let mut events = site.events().await;
    let (name, hello) = events.next().await.expect("hello");
    assert_eq!(name, "hello");
    let part = &hello["schedulers"][0];
    assert_eq!(part["failures"]["groups"][0]["error"], "before");
    assert_eq!(part["jobs"]["jobs"][0]["name"], "slow");
    assert_eq!(part["series"]["started"].as_array().map(Vec::len), Some(180));
    assert!(part["names"]["names"].as_array().is_some_and(|names| names.len() == 2));
    assert_eq!(hello["overview"]["schedulers"][0]["totals"]["accepted"], 2);

    fail(&scheduler, "after").await;
    let shows = |failures: &Value| {
        let groups = failures["schedulers"][0]["failures"]["groups"].as_array().expect("groups");
        groups.iter().any(|group| group["error"] == "after")
    };
    while !shows(&events.named("failures").await) {}
    let tick = events.named("tick").await;
    assert_eq!(tick["overview"]["schedulers"][0]["gauges"]["running"], 1);
    assert_eq!(tick["schedulers"][0]["jobs"]["total"], 1);
}

#[tokio::test]
async fn seconds_of_all_ticks_add_up() {
    let scheduler = mail().build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    let mut events = site.events().await;
    events.named("hello").await;
    for _ in 0..7 {
        fail(&scheduler, "no").await;
    }
    let mut failed = 0;
    let mut last = 0;
    while failed < 7 {
        let tick = events.named("tick").await;
        for point in tick["schedulers"][0]["points"].as_array().into_iter().flatten() {
            let at = point["from_at"].as_u64().expect("a moment");
            assert!(at > last, "{at} after {last}");
            last = at;
            failed += point["failed"].as_u64().expect("a count");
        }
    }
    assert_eq!(failed, 7);
}

#[tokio::test]
async fn stream_ends_when_shutdown_begins() {
    let scheduler = mail().build();
    let other = Scheduler::builder().name("other").build();
    let site = serve(Dashboard::new(&scheduler).and(&other).router()).await;
    scheduler.job("slow").spawn(pending::<()>()).await.unwrap();
    let mut events = site.events().await;
    events.named("hello").await;
    scheduler.start_draining();
    let drain = events.named("drain").await;
    assert_eq!(drain["schedulers"][0]["name"], "mail");
    assert!(drain["schedulers"][0]["jobs"]["jobs"][0]["forecast"].is_object());
    assert!(events.next().await.is_none());

    // Whoever comes now sees all figures once.
    let mut events = site.events().await;
    let hello = events.named("hello").await;
    assert_eq!(hello["overview"]["schedulers"][0]["state"], "announced");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn live_drain_shows_deadline_and_report() {
    let scheduler = mail().close_timeout(Duration::ZERO).build();
    let site = serve(Dashboard::new(&scheduler).live_drain().router()).await;
    let job = scheduler.job("slow").spawn(pending::<()>()).await.unwrap();
    let mut events = site.events().await;
    events.named("hello").await;
    let closing = scheduler.wait_and_close_within(Duration::from_secs(600));
    let watching = async {
        let drain = events.named("drain").await;
        let drain = &drain["schedulers"][0]["drain"];
        let left = drain["left_s"].as_f64().expect("time left");
        assert!(left > 500.0 && left <= 600.0, "{left}");
        let tick = events.named("tick").await;
        assert_eq!(tick["overview"]["schedulers"][0]["state"], "draining");
        job.abort();
        let closed = events.named("closed").await;
        assert_eq!(closed["schedulers"][0]["report"]["cancelled"], 1);
        assert!(events.next().await.is_none());
    };
    tokio::join!(closing, watching);
    // All is over, so a new stream has nothing to wait for.
    let mut events = site.events().await;
    let hello = events.named("hello").await;
    assert_eq!(hello["overview"]["schedulers"][0]["state"], "closed");
    assert!(events.next().await.is_none());
}

#[tokio::test]
async fn too_many_streams_are_refused() {
    let scheduler = mail().build();
    let site = serve(Dashboard::new(&scheduler).max_streams(1).router()).await;
    let mut first = site.events().await;
    first.named("hello").await;
    let refused = site.get("/jobs/api/v1/events").await;
    assert_eq!((refused.status, refused.header("retry-after")), (503, Some("5")));
    drop(first);
    // The server notices at its next event.
    while site.request("HEAD", "/jobs/api/v1/events", "").await.status == 503 {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}

#[tokio::test]
async fn dashboard_keeps_no_scheduler_open() {
    let scheduler = mail().build();
    let weak = scheduler.downgrade();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    let mut events = site.events().await;
    events.named("hello").await;
    drop(scheduler);
    while weak.upgrade().is_some() {
        tokio::task::yield_now().await;
    }
    assert_eq!(site.api("overview").await["schedulers"][0]["oldest_pending"], Value::Null);
    assert_eq!(site.api("jobs").await["jobs"], json!([]));
}
