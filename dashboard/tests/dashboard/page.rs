//! The page and its files.

use std::process::Command;

use tower_jobs::Scheduler;
use tower_jobs_dashboard::Dashboard;

use crate::client::serve;

#[tokio::test]
async fn every_answer_has_strict_headers() {
    let scheduler = Scheduler::new();
    let site = serve(Dashboard::new(&scheduler).router()).await;
    for path in ["", "/assets/page.css", "/api/v1/overview", "/nothing"] {
        let answer = site.get(&format!("/jobs{path}")).await;
        let policy = answer.header("content-security-policy").expect("a policy");
        let parts: Vec<_> = policy.split("; ").collect();
        for part in [
            "default-src 'none'",
            "script-src 'self'",
            "style-src 'self'",
            "frame-ancestors 'none'",
        ] {
            assert!(parts.contains(&part), "{path}: {policy}");
        }
        assert!(!policy.contains("unsafe"));
        let fixed = ["cache-control", "x-content-type-options", "referrer-policy"];
        let values = fixed.map(|name| answer.header(name).expect("a header"));
        assert_eq!(values, ["no-store", "nosniff", "no-referrer"], "{path}");
    }
    assert_eq!(site.get("/jobs/assets/../page.css").await.status, 404);
}

#[tokio::test]
async fn page_needs_nothing_inline_and_nothing_external() {
    let scheduler = Scheduler::new();
    let app = "<script>alert(1)</script>";
    let site = serve(Dashboard::new(&scheduler).app(app).router()).await;
    let page = site.get("/jobs").await;
    assert_eq!(page.header("content-type"), Some("text/html; charset=utf-8"));
    assert!(
        page.body.contains("&lt;script&gt;alert(1)&lt;/script&gt;") && !page.body.contains(app)
    );
    assert!(!page.body.contains("{{"), "a place is not filled");
    for tag in page.body.split('<').filter(|tag| tag.starts_with("script")) {
        assert!(tag.starts_with("script type=\"module\" src=\"/jobs/assets/"), "{tag}");
    }
    let scripts = ["main.js", "model.js", "lists.js", "chart.js", "dom.js"];
    let mut texts = vec![page.body];
    for file in scripts.into_iter().chain(["page.css"]) {
        let answer = site.get(&format!("/jobs/assets/{file}")).await;
        assert_eq!(answer.status, 200, "{file}");
        let is_script = answer.header("content-type") == Some("text/javascript; charset=utf-8");
        assert_eq!(is_script, file.ends_with(".js"), "{file}");
        texts.push(answer.body);
    }
    for text in texts {
        let external = text.replace("http://www.w3.org/2000/svg", "");
        for forbidden in
            ["http://", "https://", " style=\"", " onclick=\"", "innerHTML", "eval(", "<style"]
        {
            assert!(!external.contains(forbidden), "{forbidden}");
        }
    }
}

#[test]
fn page_model_passes_its_own_tests() {
    let tests = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/page/model.test.mjs");
    match Command::new("node").args(["--test", tests]).output() {
        Ok(run) => assert!(run.status.success(), "{}", String::from_utf8_lossy(&run.stdout)),
        Err(_) => println!("skipped: there is no node"),
    }
}
