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
        let ids = page.iter().map(|(job, stamp)| (job.id(), stamp.state())).collect::<Vec<_>>();
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

impl Bench {
    /// All jobs in this state, read `most` at a time.
    fn longest(&self, state: JobState, most: usize) -> Vec<JobId> {
        let (mut listed, mut after, mut last) = (Vec::new(), Vec::new(), None);
        loop {
            let page = self.queue.longest(state, &after, last, most);
            assert!(page.len() <= most && page.iter().all(|(_, stamp)| stamp.state() == state));
            let Some((_, stamp)) = page.last() else { return listed };
            last = Some(*stamp);
            after = page.iter().map(|(job, _)| job.place()).collect();
            listed.extend(page.iter().map(|(job, _)| job.id()));
        }
    }

    fn ids<const N: usize>(&self, numbers: [usize; N]) -> Vec<JobId> {
        numbers.map(|number| self.jobs[number].id()).to_vec()
    }
}

#[test]
fn longest_lists_each_state_in_its_order() {
    let mut bench = Bench::with_keys(3, None, Some(1));
    bench.offer_all::<3>();
    for names in [NO_NAMES, key("a"), NO_NAMES, key("a"), unique("x"), key("b")] {
        assert_eq!(bench.offer_as(Admit::Limited, names), Taken);
    }
    for _ in 0..2 {
        assert_eq!(bench.offer_as(Admit::Deferred, NO_NAMES), Taken);
    }
    // Job 3 starts last, and the others move up.
    bench.finish(1, Outcome::Completed);
    // A job with a key takes the turn of one without, and the other way round.
    let keyed = Names { key: Some("a"), ..replacing("x") };
    assert_eq!(bench.offer_as(Admit::Limited, keyed), Taken);
    assert_eq!(bench.offer_as(Admit::Limited, replacing("x")), Taken);
    for most in [1, 2, 3, 20] {
        assert_eq!(bench.longest(JobState::Active, most), bench.ids([0, 2, 3]), "{most}");
        let pending = bench.ids([4, 5, 6, 12, 8]);
        assert_eq!(bench.longest(JobState::Pending, most), pending, "{most}");
        assert_eq!(bench.longest(JobState::Deferred, most), bench.ids([9, 10]), "{most}");
        assert_eq!(bench.longest(JobState::Finished, most), [], "{most}");
    }
}

#[test]
fn longest_goes_on_behind_jobs_that_have_left() {
    let mut bench = Bench::new(6, None);
    bench.offer_all::<6>();
    let page = bench.queue.longest(JobState::Active, &[], None, 3);
    let after: Vec<_> = page.iter().map(|(job, _)| job.place()).collect();
    let next = |bench: &Bench| {
        let page = bench.queue.longest(JobState::Active, &after, Some(page[2].1), 2);
        page.iter().map(|(job, _)| job.id()).collect::<Vec<_>>()
    };
    bench.finish(2, Outcome::Completed);
    assert_eq!(next(&bench), bench.ids([3, 4]));
    // The row of an ended job may have another job.
    assert_eq!(bench.offer(), Taken);
    bench.finish(1, Outcome::Completed);
    assert_eq!(next(&bench), bench.ids([3, 4]));
    bench.finish(0, Outcome::Completed);
    assert_eq!(next(&bench), bench.ids([3, 4]), "anew, as all have left");
}
