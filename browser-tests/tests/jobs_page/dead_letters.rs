//! The tab of `tower-jobs-durable`.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};
use tower_jobs_browser_tests::{Browser, Page};
use tower_jobs_dashboard::Dashboard;
use tower_jobs_durable::{DeadLetters, Durable, DurableContext, DurableJob, Sqlite};

use crate::served::{serve, shows};

const ERROR: &str = "<img src=x onerror=hacked=1>";
const SECRET: &str = "hunter2";

#[derive(Serialize, Deserialize)]
struct Invoice {
    password: String,
}

impl DurableJob for Invoice {
    const KIND: &str = "invoice";
    const MAX_ATTEMPTS: u32 = 1;
}

/// Invoices that fail until they are repaired. Two are dead letters.
struct Shop {
    durable: Durable,
    is_repaired: Arc<AtomicBool>,
    _folder: tempfile::TempDir,
}

impl Shop {
    async fn new() -> Self {
        let folder = tempfile::tempdir().expect("a temporary folder");
        let engine = Sqlite::open(folder.path().join("jobs.db")).await.expect("a file");
        let is_repaired = Arc::new(AtomicBool::new(false));
        let repaired = is_repaired.clone();
        let durable = Durable::builder(engine)
            .register(move |_: Invoice, _: DurableContext| {
                let is_repaired = repaired.load(Ordering::Relaxed);
                async move { if is_repaired { Ok(()) } else { Err(ERROR) } }
            })
            .start();
        for _ in 0..2 {
            let job = Invoice { password: SECRET.into() };
            durable.outbox().push(job).await.expect("it is stored");
        }
        let shop = Self { durable, is_repaired, _folder: folder };
        shop.dead(2).await;
        shop
    }

    /// Waits until so many are dead, and the others are done.
    async fn dead(&self, count: u64) {
        let admin = self.durable.admin().expect("it has figures");
        let reached = async {
            loop {
                let depth = admin.depth().await.expect("the file answers");
                if (depth.dead, depth.ready + depth.later + depth.running) == (count, 0) {
                    return;
                }
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        };
        tokio::time::timeout(Duration::from_secs(30), reached).await.expect("the dead letters");
    }

    fn dashboard(&self) -> Dashboard {
        Dashboard::new(self.durable.scheduler()).tab(DeadLetters::new(&self.durable))
    }
}

/// Opens the page, and goes to the tab as a user does.
async fn open_tab(page: &Page, dashboard: Dashboard) {
    page.open(&serve(dashboard).await).await;
    page.click("a.tab[href$='/tabs/durable']").await;
    shows(page, "main h2", "Durable").await;
}

#[tokio::test]
async fn dead_letters_are_retried_and_discarded() {
    let Some(browser) = Browser::start().await else { return };
    let shop = Shop::new().await;
    let page = browser.page().await;
    open_tab(&page, shop.dashboard().allow_actions()).await;
    shows(&page, "main p", "0 ready; 0 later; 0 running; 2 dead.").await;
    shows(&page, "main td", ERROR).await;
    assert_eq!(page.eval("document.querySelectorAll('main img').length").await, 0);
    assert_eq!(page.eval("typeof hacked").await, "undefined");
    let shown = format!("document.documentElement.outerHTML.includes('{SECRET}')");
    assert_eq!(page.eval(&shown).await, false);
    page.assert_accessible().await;
    page.screenshot("dead-letters").await;
    let wide = "[...document.querySelectorAll('main td')].filter(cell => cell.scrollWidth > cell.clientWidth).length";
    assert_eq!(page.eval(wide).await, 0);
    page.phone().await;
    page.screenshot("dead-letters-phone").await;
    assert_eq!(page.eval(wide).await, 0);
    assert_eq!(page.eval("document.documentElement.scrollWidth > innerWidth").await, false);
    let full = "[...document.querySelectorAll('main td')].every(cell => cell.offsetWidth > innerWidth / 2)";
    assert_eq!(page.eval(full).await, true, "cells are below each other");
    page.desktop().await;
    shop.is_repaired.store(true, Ordering::Relaxed);
    page.click("[aria-label^='Retry job']").await;
    shop.dead(1).await;
    page.reload().await;
    shows(&page, "main p", "1 dead.").await;
    page.click("[aria-label^='Discard job']").await;
    shows(&page, "main p", "No dead letters.").await;
    shop.dead(0).await;
    page.assert_no_console_errors().await;
    browser.end().await;
}

#[tokio::test]
async fn dead_letters_stay_unless_actions_are_allowed() {
    let Some(browser) = Browser::start().await else { return };
    let shop = Shop::new().await;
    let page = browser.page().await;
    open_tab(&page, shop.dashboard()).await;
    shows(&page, "main p", "2 dead.").await;
    assert_eq!(page.eval("document.querySelectorAll('main form, main button').length").await, 0);
    let admin = shop.durable.admin().expect("it has figures");
    let letters = admin.dead_letters(10).await.expect("the file answers");
    for action in ["retry", "discard"] {
        let id = &letters[0].id;
        let post = format!(
            "fetch(location.pathname + '/{action}/{id}', {{ method: 'POST' }}).then(a => a.status)"
        );
        assert_eq!(page.eval(&post).await, 404);
    }
    shop.dead(2).await;
    browser.end().await;
}
