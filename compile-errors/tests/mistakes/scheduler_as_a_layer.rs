use axum::Router;
use tower_jobs::Scheduler;

fn main() {
    let _app: Router = Router::new().layer(Scheduler::new());
}
