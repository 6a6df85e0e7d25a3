//! How an application tests what its handlers leave behind: without sleeping, and without running
//! what it does not want to run.
//!
//! ```sh
//! cargo test --example testing --features testing
//! ```

use axum::{Router, http::StatusCode, routing::post};
use tower_jobs::{Jobs, JobsLayer, Scheduler, SpawnError};

fn app(scheduler: Scheduler) -> Router {
    Router::new()
        .route("/signup", post(signup))
        .route("/invoices", post(invoice))
        .layer(JobsLayer::new(scheduler))
}

async fn signup(jobs: Jobs, email: String) -> Result<StatusCode, SpawnError> {
    if !email.contains('@') {
        return Ok(StatusCode::UNPROCESSABLE_ENTITY);
    }
    jobs.job("welcome e-mail").spawn(welcome(email)).await?;
    jobs.job("audit row").after_success(audit())?;
    Ok(StatusCode::ACCEPTED)
}

async fn invoice(jobs: Jobs) -> Result<String, tower_jobs::Error> {
    let number = jobs.job("invoice").spawn(async { 7_u32 }).await?.await?; // the response needs it
    Ok(format!("invoice {number}"))
}

async fn welcome(email: String) -> Result<(), String> {
    if email.ends_with("@example.org") { Ok(()) } else { Err(format!("{email} is not known here")) }
}

async fn audit() {}

#[tokio::main]
async fn main() -> std::io::Result<()> {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:3000").await?;
    axum::serve(listener, app(Scheduler::new())).await
}

#[cfg(test)]
mod tests {
    use axum::{body::Body, http::Request, response::Response};
    use tower::ServiceExt;
    use tower_jobs::testing::{LeakCheck, Recorder, inline};

    use super::*;

    async fn sign_up(scheduler: Scheduler, email: &'static str) -> Response {
        post_to(scheduler, "/signup", email).await
    }

    async fn post_to(scheduler: Scheduler, path: &str, body: &'static str) -> Response {
        let request = Request::post(path).body(Body::from(body)).unwrap();
        app(scheduler).oneshot(request).await.unwrap()
    }

    #[tokio::test]
    async fn a_sign_up_leaves_an_e_mail_and_an_audit_row() {
        let recorder = Recorder::new();
        let response = sign_up(recorder.scheduler(), "ada@example.org").await;
        assert_eq!(response.status(), StatusCode::ACCEPTED);
        assert_eq!(recorder.names(), ["welcome e-mail", "audit row"]);
        assert_eq!(recorder.labels(), ["POST /signup", "POST /signup"]);
        assert!(recorder.run_all().await.is_empty());
    }

    #[tokio::test]
    async fn a_refused_sign_up_leaves_nothing() {
        let recorder = Recorder::new();
        sign_up(recorder.scheduler(), "ada").await;
        recorder.assert_not_spawned("welcome e-mail");
        assert!(recorder.is_empty());
    }

    #[tokio::test]
    async fn a_handler_that_awaits_its_job_is_tested_inline() {
        let response = post_to(inline(), "/invoices", "").await;
        let body = axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        assert_eq!(body, "invoice 7");
    }

    #[tokio::test]
    #[should_panic(expected = "which a testing::Recorder does not run before run_all")]
    async fn under_a_recorder_it_fails_instead_of_waiting_for_ever() {
        drop(post_to(Recorder::new().scheduler(), "/invoices", "").await);
    }

    #[tokio::test]
    async fn an_e_mail_that_cannot_be_sent_is_a_failure_of_its_job() {
        let recorder = Recorder::new();
        drop(sign_up(recorder.scheduler(), "ada@elsewhere.example").await);
        let failures = recorder.run_all().await;
        assert_eq!(failures[0].job.name, "welcome e-mail");
    }

    #[tokio::test]
    async fn inline_the_e_mail_is_out_when_the_response_is_there() {
        let scheduler = inline();
        sign_up(scheduler.clone(), "ada@example.org").await;
        assert_eq!(scheduler.stats().failed, 0);
        assert!(scheduler.stats().completed >= 1);
    }

    #[tokio::test]
    async fn one_requests_jobs_are_drained_by_its_response() {
        let scheduler = Scheduler::new();
        let _leaks = LeakCheck::new(&scheduler);
        let response = sign_up(scheduler, "ada@example.org").await;
        let jobs = response.extensions().get::<Jobs>().unwrap().clone();
        axum::body::to_bytes(response.into_body(), usize::MAX).await.unwrap();
        jobs.wait_idle().await;
    }
}
