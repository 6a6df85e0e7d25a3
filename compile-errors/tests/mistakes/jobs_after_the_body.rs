use axum::{Router, routing::post};
use tower_jobs::Jobs;

async fn signup(body: String, jobs: Jobs) {
    jobs.try_spawn(async move { println!("{body}") }).ok();
}

fn main() {
    let _app: Router = Router::new().route("/", post(signup));
}
