//! Routes that change something.

use std::future::pending;

use serde_json::json;
use tower_jobs::Scheduler;
use tower_jobs_dashboard::Dashboard;

use crate::client::serve;

const OWN: &str = "Sec-Fetch-Site: same-origin\r\n";

#[tokio::test]
async fn actions_do_not_exist_unless_allowed() {
    let scheduler = Scheduler::new();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    let job = scheduler.spawn(pending::<()>()).await.unwrap();
    let cancel = format!("jobs/{}/cancel", job.id());
    for action in ["pause", "resume", &cancel] {
        let answer = site.request("POST", &format!("/jobs/api/v1/{action}"), OWN).await;
        assert_eq!(answer.status, 404, "{action}");
    }
    assert!(!scheduler.is_paused() && job.is_active());
    assert_eq!(site.api("overview").await["process"]["actions"], false);
    assert!(site.get("/jobs").await.body.contains("read-only"));
}

#[tokio::test]
async fn page_itself_pauses_and_resumes() {
    let scheduler = Scheduler::new();
    let site = serve(Dashboard::new(&scheduler).allow_actions().router()).await;
    let answer = site.request("POST", "/jobs/api/v1/pause", OWN).await;
    assert_eq!((answer.status, &answer.json()["paused"]), (200, &json!(true)));
    assert!(scheduler.is_paused());
    assert_eq!(site.api("overview").await["schedulers"][0]["settings"]["paused"], true);
    let origin = format!("Origin: http://{}\r\n", site.address);
    assert_eq!(site.request("POST", "/jobs/api/v1/resume", &origin).await.status, 200);
    assert!(!scheduler.is_paused());
    let unknown = site.request("POST", "/jobs/api/v1/pause?scheduler=none", OWN).await;
    assert_eq!(unknown.status, 404);
}

#[tokio::test]
async fn other_sites_are_refused() {
    let scheduler = Scheduler::new();
    let site = serve(Dashboard::new(&scheduler).allow_actions().router()).await;
    let own = format!("http://{}", site.address);
    for headers in [
        String::new(),
        "Origin: https://evil.example\r\n".to_owned(),
        "Sec-Fetch-Site: same-site\r\n".to_owned(),
        format!("Sec-Fetch-Site: cross-site\r\nOrigin: {own}\r\n"),
    ] {
        let answer = site.request("POST", "/jobs/api/v1/pause", &headers).await;
        assert_eq!(answer.status, 403, "{headers}");
    }
    assert_eq!(site.request("GET", "/jobs/api/v1/pause", OWN).await.status, 405);
    assert!(!scheduler.is_paused());
}

#[tokio::test]
async fn job_is_cancelled_by_its_id() {
    let scheduler = Scheduler::new();
    let site = serve(Dashboard::new(&scheduler).allow_actions().router()).await;
    let job = scheduler.spawn(pending::<()>()).await.unwrap();
    let path = format!("/jobs/api/v1/jobs/{}/cancel", job.id());
    let answer = site.request("POST", &path, OWN).await;
    assert_eq!((answer.status, &answer.json()["id"]), (202, &json!(job.id().to_string())));
    assert!(job.await.expect_err("cancelled").is_cancelled());
    for none in [path.as_str(), "/jobs/api/v1/jobs/nonsense/cancel"] {
        assert_eq!(site.request("POST", none, OWN).await.status, 404);
    }
}
