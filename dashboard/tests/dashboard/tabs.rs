//! Tabs of other crates.

use axum::{
    Router,
    routing::{get, post},
};
use tower_jobs::Scheduler;
use tower_jobs_dashboard::{Dashboard, Fragment, Tab, TabContext, escape};

use crate::client::serve;

struct Letters;

impl Tab for Letters {
    fn id(&self) -> &str {
        "letters"
    }

    fn title(&self) -> &str {
        "Dead <letters>"
    }

    fn fragment(&self, context: TabContext) -> Fragment<'_> {
        Box::pin(async move {
            let button = if context.allows_actions { "<button>Retry</button>" } else { "" };
            format!("<p>{} {{{{main}}}} {{{{app}}}}</p>{button}", escape(&context.base))
        })
    }

    fn routes(&self) -> Router {
        Router::new()
            .route("/list", get(|| async { "three" }))
            .route("/retry", post(|| async { "retried" }))
    }
}

#[tokio::test]
async fn tab_has_page_and_routes() {
    let scheduler = Scheduler::new();
    let site = serve(Dashboard::new(&scheduler).app("shop").tab(Letters).router()).await;
    let page = site.get("/jobs/tabs/letters").await;
    assert_eq!(page.status, 200);
    assert!(page.body.contains("<p>/jobs/tabs/letters {{main}} {{app}}</p>"), "{}", page.body);
    assert!(page.body.contains("<h2>Dead &lt;letters&gt;</h2>") && !page.body.contains("<button>"));
    assert!(page.body.contains("href=\"/jobs/assets/page.css\""));
    assert!(page.header("content-security-policy").is_some());
    assert_eq!(site.get("/jobs/tabs/letters/list").await.body, "three");
    let link = "<a class=\"tab\" href=\"/jobs/tabs/letters\">Dead &lt;letters&gt;</a>";
    assert!(site.get("/jobs").await.body.contains(link));
    assert_eq!(site.get("/jobs/tabs/none").await.status, 404);
}

#[tokio::test]
async fn tab_changes_nothing_unless_allowed() {
    let scheduler = Scheduler::new();
    let own = "Sec-Fetch-Site: same-origin\r\n";
    let site = serve(Dashboard::new(&scheduler).tab(Letters).router()).await;
    assert_eq!(site.request("POST", "/jobs/tabs/letters/retry", own).await.status, 404);

    let site = serve(Dashboard::new(&scheduler).tab(Letters).allow_actions().router()).await;
    assert_eq!(site.request("POST", "/jobs/tabs/letters/retry", own).await.body, "retried");
    let other = "Sec-Fetch-Site: cross-site\r\n";
    assert_eq!(site.request("POST", "/jobs/tabs/letters/retry", other).await.status, 403);
    assert!(site.get("/jobs/tabs/letters").await.body.contains("<button>Retry</button>"));
}

#[test]
#[should_panic(expected = "two tabs have the id letters")]
fn tabs_with_one_id_are_refused() {
    drop(Dashboard::new(&Scheduler::new()).tab(Letters).tab(Letters));
}
