use super::*;

const A: &str = "a";
const B: &str = "b";

/// Lanes, and whom they have called.
struct Bench {
    lanes: Lanes,
    turn: u64,
}

impl Bench {
    fn new(limit: usize) -> Self {
        Self { lanes: Lanes::new(Some(limit)), turn: 0 }
    }

    /// A job comes: it is let in, or becomes pending. Its turn is also its slot.
    fn arrive(&mut self, key: &str) -> bool {
        let key = Arc::from(key);
        let let_in = self.lanes.let_in(Some(&key));
        if !let_in {
            self.pend(&key, false);
        }
        let_in
    }

    fn pend(&mut self, key: &Key, let_in: bool) {
        self.turn += 1;
        let slot = Row::try_from(self.turn).expect("few");
        self.lanes.push(Some(key), self.turn, slot, let_in);
    }

    fn out(&mut self, key: &str) {
        self.lanes.let_out(Some(&key.into()));
    }

    fn join(&mut self, key: Option<&str>) -> Ticket {
        self.lanes.join(key.map(Arc::from).as_ref(), Waker::noop().clone())
    }

    fn call(&mut self, may_wait: bool) -> Option<(Ticket, bool)> {
        self.lanes.call_next(may_wait).map(|(ticket, _, let_in, _)| (ticket, let_in))
    }

    /// The turns of the pending jobs that may start, in order.
    fn start_all(&mut self) -> Vec<u64> {
        let mut started = Vec::new();
        while let Some((turn, _)) = self.lanes.first_let_in() {
            self.lanes.start(turn);
            started.push(turn);
        }
        started
    }

    fn is_open(&self, key: &str) -> bool {
        self.lanes.is_open(Some(&key.into()))
    }
}

/// Invariant 1.
#[test]
fn no_more_than_the_limit_are_let_in() {
    let mut bench = Bench::new(2);
    assert_eq!([(); 3].map(|()| bench.arrive(A)), [true, true, false]);
    assert!(!bench.is_open(A));
    assert!(bench.arrive(B) && bench.is_open(B));
    assert!(bench.lanes.let_in(None) && bench.lanes.is_open(None));
    bench.out(A);
    assert!(!bench.is_open(A), "the one that was held is in");
    bench.out(A);
    assert!(bench.is_open(A));
}

/// Invariant 1: a spawner that is called is let in, if it could start.
#[test]
fn a_spawner_that_could_start_is_let_in_when_it_is_called() {
    let mut bench = Bench::new(1);
    let [first, second] = [(); 2].map(|()| bench.join(Some(A)));
    assert_eq!(bench.call(false), Some((first, true)));
    assert!(!bench.is_open(A));
    assert_eq!(bench.call(false), None);
    assert_eq!(bench.call(true), Some((second, false)), "it can wait for its key");
    assert!(bench.lanes.nobody_waits());
    bench.out(A);
    assert_eq!(bench.lanes.count(), 0);
}

/// Invariant 2.
#[test]
fn those_held_back_are_let_in_in_turn() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive(A) && bench.arrive(B));
    for key in [A, B, A, A, B] {
        assert!(!bench.arrive(key));
    }
    assert_eq!(bench.lanes.len(), 5);
    assert!(bench.start_all().is_empty());
    bench.out(B);
    assert_eq!(bench.start_all(), [2]);
    assert_eq!(bench.lanes.first(), Some(1));
    bench.lanes.remove(Some(&A.into()), 1);
    bench.out(A);
    bench.out(B);
    assert_eq!(bench.start_all(), [3, 5], "the longest pending first");
    assert_eq!(bench.lanes.len(), 1);
}

/// Invariant 2: whoever was let in and leaves gives that on.
#[test]
fn a_pending_job_that_leaves_lets_the_next_in() {
    let mut bench = Bench::new(1);
    assert!(bench.lanes.let_in(Some(&A.into())));
    bench.pend(&A.into(), true);
    assert!(!bench.arrive(A));
    assert_eq!(bench.lanes.first_let_in(), Some((1, 1)));
    bench.lanes.remove(Some(&A.into()), 1);
    assert_eq!(bench.lanes.first_let_in(), Some((2, 2)));
    bench.lanes.remove(Some(&A.into()), 2);
    assert_eq!((bench.lanes.first_let_in(), bench.lanes.count()), (None, 0));
}

/// Invariant 3.
#[test]
fn those_that_could_start_are_called_in_turn_past_the_others() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive(A));
    let [a, next_a, b, next_b, plain] =
        [Some(A), Some(A), Some(B), Some(B), None].map(|key| bench.join(key));
    assert_eq!(bench.call(false), Some((b, true)));
    assert_eq!(bench.call(false), Some((plain, false)), "without a key there is no let-in");
    assert_eq!(bench.call(false), None);
    bench.out(A);
    assert_eq!(bench.call(false), Some((a, true)));
    bench.out(B);
    bench.out(A);
    assert_eq!(bench.call(false), Some((next_a, true)));
    assert_eq!(bench.call(false), Some((next_b, true)));
}

/// Invariant 3: the one behind the first of an open lane takes its turn.
#[test]
fn a_spawner_that_leaves_makes_room_for_the_next_of_its_lane() {
    let mut bench = Bench::new(1);
    let [first, second, third] = [(); 3].map(|()| bench.join(Some(A)));
    assert!(bench.lanes.leave(second).is_some());
    assert!(bench.lanes.leave(first).is_some());
    assert!(bench.lanes.leave(first).is_none());
    assert_eq!(bench.call(false), Some((third, true)));

    // Of a lane at its limit nobody could start, first or not.
    let [fourth, fifth] = [(); 2].map(|()| bench.join(Some(A)));
    assert!(bench.lanes.leave(fourth).is_some());
    assert_eq!(bench.call(false), None);
    bench.out(A);
    assert_eq!(bench.call(false), Some((fifth, true)));
}

#[test]
fn a_lane_that_goes_quiet_is_forgotten_however_it_does() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive(A) && !bench.arrive(A));
    let waiting = bench.join(Some(A));
    let alone = bench.join(Some(B));
    assert_eq!(bench.lanes.count(), 2);
    bench.lanes.leave(alone);
    assert_eq!(bench.lanes.count(), 1);
    bench.lanes.remove(Some(&A.into()), 1);
    bench.out(A);
    assert_eq!(bench.lanes.count(), 1, "a spawner waits");
    bench.lanes.leave(waiting);
    assert_eq!(bench.lanes.count(), 0);

    for key in [A, B] {
        bench.join(Some(key));
    }
    assert_eq!(bench.lanes.take_waiters(9).len(), 2);
    assert_eq!(bench.lanes.count(), 0);
}

#[test]
fn without_a_limit_there_are_no_lanes() {
    let mut lanes = Lanes::new(None);
    let key = Some(&Key::from(A));
    assert!(!lanes.are_limited() && lanes.let_in(key) && lanes.is_open(key));
    lanes.join(key, Waker::noop().clone());
    assert_eq!(lanes.count(), 0);
    assert!(matches!(lanes.call_next(false), Some((_, None, false, _))));
    lanes.let_out(key);
}

#[test]
fn nothing_is_left_of_one_hot_key_among_a_million_cold_ones() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive("hot"));
    for n in 0..1_000_000 {
        let cold = format!("cold {n}");
        assert!(bench.arrive(&cold));
        if n % 100 == 0 {
            assert!(!bench.arrive("hot"));
            assert_eq!(bench.lanes.count(), 2);
        }
        bench.out(&cold);
    }
    assert_eq!(bench.lanes.count(), 1);
    for turn in 1..=10_000 {
        bench.out("hot");
        assert_eq!(bench.start_all(), [turn]);
    }
    bench.out("hot");
    let Lanes { lanes, let_in, held, waiting, open, .. } = &bench.lanes;
    assert!(lanes.is_empty() && let_in.is_empty() && held.is_empty());
    assert!(waiting.is_empty() && open.is_empty());
}
