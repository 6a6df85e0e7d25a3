//! In this binary because it sets the panic hook of the process.

use std::{
    panic::{self, AssertUnwindSafe},
    sync::Mutex,
    time::Duration,
};

use tower_jobs::Scheduler;

#[track_caller]
fn assert_refused(code: impl FnOnce()) {
    assert!(panic::catch_unwind(AssertUnwindSafe(code)).is_err(), "it is taken");
}

#[test]
fn refusal_points_to_the_line_that_asked() {
    static PLACES: Mutex<Vec<(String, u32)>> = Mutex::new(Vec::new());
    let previous = panic::take_hook();
    panic::set_hook(Box::new(move |info| {
        let place = info.location().expect("a place");
        PLACES.lock().expect("no panic").push((place.file().to_owned(), place.line()));
        previous(info);
    }));
    let scheduler = Scheduler::new();
    let line = line!();
    assert_refused(|| drop(Scheduler::builder().limit(0)));
    assert_refused(|| drop(Scheduler::builder().close_timeout(Duration::MAX)));
    assert_refused(|| drop(Scheduler::builder().wait_timeout(Duration::MAX)));
    assert_refused(|| drop(scheduler.job("x").timeout(Duration::ZERO)));
    let places = PLACES.lock().unwrap();
    for line in line + 1..=line + 4 {
        assert!(places.contains(&(file!().to_owned(), line)), "{line} in {places:?}");
    }
}
