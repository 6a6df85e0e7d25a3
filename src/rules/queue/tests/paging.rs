//! Listing jobs in pages.

use super::*;

#[test]
fn paging_lists_every_job() {
    let mut bench = Bench::new(3, None);
    bench.offer_all::<7>();
    bench.finish(1, Outcome::Completed);
    let expected = [0, 2, 3, 4, 5, 6].map(|number: usize| bench.jobs[number].id());
    for most in [2, 3, 6, 9] {
        let mut listed = Vec::new();
        let mut from = Some(0);
        while let Some(key) = from {
            let (page, next) = bench.queue.page(key, most);
            listed.extend(page.iter().map(|(job, _)| job.id()));
            from = next;
        }
        assert_eq!(listed, expected, "{most} at a time");
    }
}

#[test]
fn remaining_active_jobs_are_one_page() {
    let mut bench = Bench::new(4, None);
    bench.offer_all::<300>();
    bench.queue.close();
    bench.take_unstarted(usize::MAX);
    bench.finish(1, Outcome::Cancelled);
    let page = |most| {
        let (page, next) = bench.queue.page(0, most);
        let ids = page.iter().map(|(job, state)| (job.id(), *state)).collect::<Vec<_>>();
        (ids, next)
    };
    let left = [0, 2, 3].map(|number: usize| (bench.jobs[number].id(), JobState::Active));
    assert_eq!(page(3), (left.to_vec(), None));
    assert_eq!(page(2), (left[..1].to_vec(), Some(2)), "not more than asked for");
}

/// Steps of a clear end, however many jobs become pending meanwhile.
#[test]
fn clear_leaves_jobs_that_became_pending_after_it_began() {
    let mut bench = Bench::new(1, None);
    bench.offer_all::<4>();
    let by = bench.queue.last_turn();
    for expected in [vec![1, 2], vec![3], vec![]] {
        assert_eq!(bench.offer(), Taken);
        let (_, work) = bench.queue.clear_pending(by, 2);
        assert_eq!(work.into_iter().map(Task::take).collect::<Vec<_>>(), expected);
    }
    assert_eq!(bench.queue.pending_count(), 3);
    assert_eq!(bench.clear(), [4, 5, 6]);
}
