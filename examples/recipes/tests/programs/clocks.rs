//! The programs whose clock is paused. The order and the times of their events are always the same.

use crate::support::{process::Ended, recipe, run};

/// Asserts that the program succeeded, with these lines and then a report with `totals`.
#[track_caller]
fn assert_printed(ended: &Ended, lines: &[&str], totals: &str) {
    assert_eq!(ended.code, Some(0), "{ended:#?}");
    assert_eq!(ended.stderr, "", "{ended:#?}");
    let printed: Vec<_> = ended.stdout.lines().collect();
    let (report, printed) = printed.split_last().expect("the report is its last line");
    assert_eq!(printed, lines, "{ended:#?}");
    assert!(report.ends_with(totals), "no {totals:?} in {report}");
}

/// Asserts that the report names these schedulers.
#[track_caller]
fn assert_named(ended: &Ended, schedulers: &[&str]) {
    for scheduler in schedulers {
        assert!(ended.stdout.contains(&format!("{scheduler:?} drained in ")), "{ended:#?}");
    }
}

/// At a limit of 1, order 2 is delivered in the first pause of order 1. The shutdown comes after 20 s.
#[tokio::test]
async fn retry_holds_no_permit_in_its_pauses() {
    let ended = run(recipe!("retry")).await;
    let given_up = |line, order, status| {
        let printed = ended.stdout.lines().nth(line).unwrap_or_default();
        assert!(printed.starts_with("given up: job "), "{ended:#?}");
        assert!(printed.contains(order) && printed.ends_with(status), "{ended:#?}");
        printed
    };
    let lines = [
        " 0 s: order 1: 503",
        " 0 s: order 2: 200",
        " 0 s: order 3: 404",
        given_up(3, "\"order 3\"", "status 404"),
        " 0 s: order 4: 500",
        " 1 s: order 4: 500",
        " 1 s: order 1: 503",
        " 4 s: order 4: 500",
        " 4 s: order 1: 503",
        " 9 s: order 1: 200",
        "12 s: order 4: 500",
        "20 s: order 4: 500",
        given_up(12, "\"order 4\"", "status 500"),
    ];
    assert_printed(&ended, &lines, "in all: 4 completed, 11 failed");
    assert_named(&ended, &["waiting"]);
}

#[tokio::test]
async fn delayed_job_runs_in_time_or_at_the_shutdown() {
    let ended = run(recipe!("delay")).await;
    let lines = [
        " 5 min: is the invoice of Grace paid?",
        "10 min: is the invoice of Ada paid?",
        "20 min: is the invoice of Mary paid?", // the shutdown ends the delay
    ];
    assert_printed(&ended, &lines, "in all: 6 completed, 1 cancelled");
    assert_named(&ended, &["waiting"]);
}

#[tokio::test]
async fn periodic_job_skips_a_tick_while_it_runs_and_is_drained() {
    let ended = run(recipe!("periodic")).await;
    let skipped = ended.stdout.lines().nth(5).expect("a tick is skipped");
    assert!(skipped.starts_with("15 min: vacuum skipped, 3-"), "{skipped}");
    let lines = [
        " 0 min: vacuum begins",
        " 0 min: vacuum ends",
        " 5 min: vacuum begins",
        " 5 min: vacuum ends",
        "10 min: vacuum begins",
        skipped,
        "17 min: vacuum ends",
        "20 min: vacuum begins",
        "20 min: vacuum ends",
        "25 min: vacuum begins",
        "25 min: vacuum ends", // 10 s after the shutdown began
    ];
    assert_printed(&ended, &lines, "in all: 5 completed");
}

#[tokio::test]
async fn rate_limit_starts_calls_in_order_at_its_rate() {
    let ended = run(recipe!("rate_limit")).await;
    let lines = [
        "0.0 s: call 1 begins",
        "0.0 s: call 2 begins",
        "0.5 s: call 3 begins",
        "0.7 s: call 1 ends",
        "0.7 s: call 2 ends",
        "1.0 s: call 4 begins", // the shutdown begins
        "1.2 s: call 3 ends",
        "1.5 s: call 5 begins",
        "1.7 s: call 4 ends",
        "2.0 s: call 6 begins",
        "2.2 s: call 5 ends",
        "2.7 s: call 6 ends",
    ];
    assert_printed(&ended, &lines, "in all: 12 completed");
    assert_named(&ended, &["gate", "calls"]);
}

#[tokio::test]
async fn backlog_of_one_tenant_does_not_delay_another() {
    let ended = run(recipe!("tenants")).await;
    let lines = [
        "acme has 5 imports: try again later",
        " 0 s: acme 1",
        " 0 s: acme 2",
        " 0 s: beta 1",
        "10 s: acme 3",
        "10 s: acme 4",
        "20 s: acme 5",
    ];
    assert_printed(&ended, &lines, "in all: 6 completed");
}
