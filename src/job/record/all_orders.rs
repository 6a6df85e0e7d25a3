//! All interleavings of a job's runner and its handle.

use std::{future::poll_fn, task::Poll};

use loom::future::block_on;

use super::*;
use crate::util::sync::{beside, in_all_orders};

fn record() -> Arc<Record> {
    Record::new(Location::caller(), None, None, JobKind::Plain, JobFlags::default())
}

/// Ends the job as its runner does. Returns whether the runner reports a failure.
fn end(record: &Record, result: Result<(), BoxError>) -> bool {
    record.end_with(result);
    let tells = record.result().take_unobserved().is_some();
    record.publish();
    tells
}

/// Drops the handle. Returns whether that reports a failure.
fn drop_handle(record: &Record) -> bool {
    !record.result().detach() && matches!(record.result().take_remaining(), (Some(Err(_)), _))
}

#[test]
fn failure_is_reported_once_when_the_handle_goes_meanwhile() {
    in_all_orders(|| {
        let record = record();
        let runner = beside(&record, |record| end(record, Err("no mail today".into())));
        let handle_tells = drop_handle(&record);
        assert_ne!(runner.join().expect("no panic"), handle_tells);
        assert!(record.result().take_unobserved().is_none());
    });
}

#[test]
fn observed_failure_is_seen_and_reported_once() {
    in_all_orders(|| {
        let record = record();
        record.result().mark_observed();
        let runner = beside(&record, |record| {
            record.end_with::<()>(Err("no mail today".into()));
            let lent = record.result().lend_failure();
            record.result().put_back(lent.expect("the handle has left it"));
            let tells = record.result().take_unobserved().is_some();
            record.publish();
            tells || record.result().take_unobserved().is_some()
        });
        let handle_tells = drop_handle(&record);
        assert_ne!(runner.join().expect("no panic"), handle_tells);
        assert!(record.result().take_unobserved().is_none());
    });
}

#[test]
fn awaited_failure_goes_to_the_awaiter() {
    in_all_orders(|| {
        let record = record();
        let runner = beside(&record, |record| end(record, Err("no mail today".into())));
        block_on(poll_fn(|cx| record.result().poll_published(cx)));
        let error = record.result().take().expect_err("it failed");
        assert_eq!(error.to_string(), JobError::failed("no mail today".into()).to_string());
        assert!(!drop_handle(&record) && !runner.join().expect("no panic"));
    });
}

#[test]
fn awaiter_of_a_unit_job_is_woken() {
    in_all_orders(|| {
        let record = record();
        let runner = beside(&record, |record| end(record, Ok(())));
        block_on(poll_fn(|cx| record.result().poll_published(cx)));
        assert!(matches!(record.result().take(), Ok(None)));
        assert!(!drop_handle(&record) && !runner.join().expect("no panic"));
    });
}

#[test]
fn parking_runner_sees_a_concurrent_stop() {
    in_all_orders(|| {
        let record = record();
        let stop = beside(&record, |record| record.stop(false));
        block_on(poll_fn(|cx| {
            if record.must_stop() || record.store_runner(cx.waker().clone()) {
                return Poll::Ready(());
            }
            Poll::Pending
        }));
        stop.join().expect("no panic");
    });
}
