//! The routes of the JSON API.

use std::{future::pending, time::Duration};

use axum::Router;
use serde_json::{Value, json};
use tower_jobs::{JobContext, Scheduler};
use tower_jobs_dashboard::Dashboard;

use crate::client::{serve, serve_app};

const HOSTILE: &str = "</script><img src=x onerror=alert(1)>\u{202e}\"\n";

fn quiet(name: &str) -> tower_jobs::SchedulerBuilder {
    Scheduler::builder().name(name).on_failure(|_| {})
}

async fn fail(scheduler: &Scheduler, name: &'static str, error: &'static str) {
    let job = scheduler.job(name).spawn(async move { Err::<(), _>(error) }).await.expect("open");
    job.await.expect_err("a failure");
}

#[tokio::test]
async fn overview_counts_as_the_scheduler_does() {
    let scheduler = quiet("mail").limit(2).pending_limit(10).limit_per_key(3).build();
    let site = serve(Dashboard::new(&scheduler).app("shop").host("h1").router()).await;
    for _ in 0..3 {
        scheduler.job("slow").spawn(pending::<()>()).await.expect("open");
    }
    fail(&quiet("other").build(), "x", "not of this scheduler").await;
    let overview = site.api("overview").await;
    assert_eq!(overview["v"], 1);
    assert_eq!(overview["process"]["app"], "shop");
    assert_eq!(overview["process"]["host"], "h1");
    assert_eq!(overview["process"]["pid"], std::process::id());
    let mail = &overview["schedulers"][0];
    assert_eq!((&mail["name"], &mail["state"]), (&json!("mail"), &json!("open")));
    let settings = json!({
        "limit": 2, "pending_limit": 10, "deferred_limit": 10_000, "limit_per_key": 3,
        "wait_timeout_s": 60.0, "close_timeout_s": 0.1, "paused": false
    });
    assert_eq!(mail["settings"], settings);
    let gauges = json!({
        "running": 2, "outside_limit": 0, "pending": 1, "deferred": 0, "waiting_callers": 0
    });
    assert_eq!(mail["gauges"], gauges);
    assert_eq!((&mail["oldest_pending"]["name"], &mail["drain"]), (&json!("slow"), &Value::Null));
    assert_eq!((&mail["totals"]["accepted"], &mail["failed_15m"]), (&json!(3), &json!(0)));
}

#[tokio::test]
async fn limits_that_are_not_set_are_null() {
    let scheduler = quiet("free").limit(None).pending_limit(None).deferred_limit(None).build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    let overview = site.api("overview").await;
    let settings = &overview["schedulers"][0]["settings"];
    for limit in ["limit", "pending_limit", "deferred_limit", "limit_per_key"] {
        assert_eq!(settings[limit], Value::Null, "{limit}");
    }
}

#[tokio::test]
async fn jobs_are_listed_longest_first_in_pages() {
    let scheduler = quiet("mail").limit(3).build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    let minute = Duration::from_secs(60);
    scheduler
        .job("first")
        .timeout(minute)
        .concurrency_key("t-1")
        .spawn(pending::<()>())
        .await
        .unwrap();
    let with = |context: JobContext| async move { context.cancelled().await };
    scheduler.job("second").spawn_with(with).await.unwrap();
    scheduler.job("third").spawn(pending::<()>()).await.unwrap();
    scheduler.job("waits").spawn(pending::<()>()).await.unwrap();

    let page = site.api("jobs?limit=2").await;
    let names = |page: &Value| -> Vec<String> {
        let jobs = page["jobs"].as_array().expect("jobs").iter();
        jobs.map(|job| job["name"].as_str().expect("a name").to_owned()).collect()
    };
    assert_eq!((names(&page), &page["total"]), (vec!["first".into(), "second".into()], &json!(3)));
    let first = &page["jobs"][0];
    assert_eq!((&first["kind"], &first["state"]), (&json!("plain"), &json!("active")));
    assert_eq!((&first["key"], &first["timeout_s"]), (&json!("t-1"), &json!(60.0)));
    assert!(first["left_s"].as_f64().is_some_and(|left| left <= 60.0 && left > 0.0));
    assert!(first["queued_s"].is_number() && !first["stuck"].as_bool().expect("a flag"));
    assert!(first["location"].as_str().is_some_and(|at| at.contains("api.rs:")));
    assert_eq!(page["jobs"][1]["kind"], "cooperative");

    let next = page["next"].as_str().expect("a next page");
    let page = site.api(&format!("jobs?limit=2&after={next}")).await;
    assert_eq!((names(&page), &page["next"]), (vec!["third".into()], &Value::Null));
    let page = site.api("jobs?state=pending").await;
    assert_eq!((names(&page), &page["jobs"][0]["queued_s"]), (vec!["waits".into()], &Value::Null));
    assert_eq!(names(&site.api("jobs?q=T-1").await), ["first"]);
    assert_eq!(names(&site.api("jobs?q=nothing").await), [""; 0]);
}

#[tokio::test]
async fn long_running_job_is_stuck() {
    let scheduler = quiet("mail").build();
    let dashboard = Dashboard::new(&scheduler).stuck_after(Duration::ZERO, 5);
    let site = serve(dashboard.router()).await;
    scheduler.job("slow").spawn(pending::<()>()).await.unwrap();
    let overview = site.api("overview").await;
    let mail = &overview["schedulers"][0];
    assert_eq!((&mail["stuck"], &mail["longest_running"]["stuck"]), (&json!(1), &json!(true)));
    assert_eq!(site.api("jobs").await["jobs"][0]["stuck"], true);
}

#[tokio::test]
async fn failures_are_grouped_with_their_whole_text() {
    let scheduler = quiet("mail").build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    fail(&scheduler, "send", "451 from mx1").await;
    fail(&scheduler, "send", "452 from mx2").await;
    fail(&scheduler, HOSTILE, HOSTILE).await;
    let panics = scheduler.job("bad").spawn(async { panic!("no user") }).await.unwrap();
    panics.await.expect_err("a panic");
    let late = scheduler.job("late").timeout(Duration::from_millis(1)).spawn(pending::<()>()).await;
    late.unwrap().await.expect_err("a timeout");

    let failures = site.api("failures").await;
    let groups = failures["groups"].as_array().expect("groups");
    let shown: Vec<_> = groups.iter().map(|group| (&group["outcome"], &group["error"])).collect();
    assert_eq!(failures["kept"], 4);
    assert_eq!(shown[0].0, "timed_out");
    assert_eq!(shown[1], (&json!("panicked"), &json!("no user")));
    assert_eq!(shown[2], (&json!("failed"), &json!(HOSTILE)));
    assert_eq!(shown[3], (&json!("failed"), &json!("452 from mx2")));
    assert_eq!((&groups[3]["count"], &groups[3]["name"]), (&json!(2), &json!("send")));
    assert!(groups[3]["last"]["ran_s"].is_number());
    let found = site.api("failures?q=mx2&limit=1").await;
    assert_eq!(found["groups"].as_array().map(Vec::len), Some(1));
    let raw = site.get("/jobs/api/v1/failures").await;
    assert_eq!(raw.header("content-type"), Some("application/json"));
}

#[tokio::test]
async fn names_have_counts_and_quantiles() {
    let scheduler = quiet("mail").build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    for _ in 0..4 {
        let job = scheduler.job("send").spawn(async {}).await.unwrap();
        job.await.unwrap();
    }
    fail(&scheduler, "send", "no").await;
    scheduler.job("send").spawn(pending::<()>()).await.unwrap();
    let names = site.api("names").await;
    let send = &names["names"][0];
    let counts = ["running", "pending", "ended", "failed"].map(|count| send[count].clone());
    assert_eq!((&send["name"], counts), (&json!("send"), [1, 0, 5, 1].map(|count| json!(count))));
    assert!(send["run_s"]["p95"].is_number() && send["queue_s"]["p50"].is_number());
    let sum = |key: &str| -> u64 {
        send[key].as_array().expect("minutes").iter().filter_map(Value::as_u64).sum()
    };
    assert_eq!((sum("per_min"), sum("failed_per_min")), (5, 1));
}

#[tokio::test]
async fn series_has_fifteen_minutes_of_steps() {
    let scheduler = quiet("mail").build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    for (step, points) in [(1, 900), (5, 180)] {
        let series = site.api(&format!("series?step={step}")).await;
        for column in ["started", "ended", "failed", "refused", "running", "oldest_pending_s"] {
            let column = series[column].as_array().expect("a column");
            assert_eq!((column.len(), &column[0]), (points, &Value::Null));
        }
        assert_eq!(
            (&series["step_s"], &series["marks"][0]["kind"]),
            (&json!(step), &json!("start"))
        );
        assert_eq!(series["from_at"].as_u64().expect("a moment") % step, 0);
    }
}

#[tokio::test]
async fn scheduler_is_chosen_by_name() {
    let (web, mail) = (quiet("jobs").build(), quiet("jobs").build());
    let site = serve(Dashboard::new(&web).and(&mail).router()).await;
    fail(&mail, "send", "no").await;
    assert_eq!(site.api("failures").await["kept"], 0);
    let failures = site.api("failures?scheduler=jobs%202").await;
    assert_eq!((&failures["kept"], &failures["scheduler"]), (&json!(1), &json!("jobs 2")));
    let unknown = site.get("/jobs/api/v1/names?scheduler=none").await;
    assert_eq!((unknown.status, &unknown.json()["v"]), (404, &json!(1)));
    for bad in ["jobs?state=finished", "jobs?limit=x", "series?step=2", "jobs?order=id"] {
        assert_eq!(site.get(&format!("/jobs/api/v1/{bad}")).await.status, 400, "{bad}");
    }
}

#[tokio::test]
async fn links_lead_to_the_mount_point() {
    let scheduler = quiet("mail").build();
    let deep = Router::new().nest("/jobs", Dashboard::new(&scheduler).router());
    let app = Router::new().nest("/{tenant}/admin", deep);
    let site = serve_app(app).await;
    let page = site.get("/t1/admin/jobs").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("src=\"/t1/admin/jobs/assets/main.js\""), "{}", page.body);
    assert_eq!(site.get("/t1/admin/jobs/assets/main.js").await.status, 200);
    assert_eq!(site.get("/t1/admin/jobs/api/v1/overview").await.status, 200);
}

#[tokio::test]
async fn refusals_count_but_duplicates() {
    let scheduler = quiet("mail").limit(1).pending_limit(0).build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    scheduler.job("one").unique_key("k").spawn(pending::<()>()).await.unwrap();
    scheduler.try_spawn(pending::<()>()).expect_err("full");
    scheduler.job("one").unique_key("k").try_spawn(pending::<()>()).expect_err("a duplicate");
    let overview = site.api("overview").await;
    let mail = &overview["schedulers"][0];
    assert_eq!((&mail["refused_15m"], &mail["refused"]["duplicate"]), (&json!(1), &json!(1)));
    assert_eq!(mail["refused"]["pending_full"], 1);
}

#[tokio::test]
async fn closed_scheduler_shows_its_report() {
    let scheduler = quiet("mail").limit(1).close_timeout(Duration::ZERO).build();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    for name in ["runs", "waits"] {
        scheduler.job(name).spawn(pending::<()>()).await.unwrap();
    }
    scheduler.close().await;
    drop(scheduler);
    let overview = loop {
        let overview = site.api("overview").await;
        if !overview["schedulers"][0]["report"].is_null() {
            break overview;
        }
        tokio::task::yield_now().await;
    };
    let mail = &overview["schedulers"][0];
    let report = &mail["report"];
    assert_eq!((&mail["state"], &report["never_started"]), (&json!("closed"), &json!(1)));
    assert_eq!(
        (&report["cancelled"], report["lost"].as_array().map(Vec::len)),
        (&json!(1), Some(2))
    );
    assert_eq!(report["lost"][1]["name"], "waits");
    let names = site.api("names").await;
    assert_eq!(
        (&names["names"][0]["running"], &names["names"][1]["pending"]),
        (&json!(0), &json!(0))
    );
}
