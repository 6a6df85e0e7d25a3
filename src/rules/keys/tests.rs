use super::*;

const A: &str = "a";
const B: &str = "b";

/// Keys, and a counter of turns.
struct Bench {
    keys: Keys,
    turn: i64,
}

impl Bench {
    fn new(limit: usize) -> Self {
        Self { keys: Keys::new(Some(limit)), turn: 0 }
    }

    /// A job arrives while permits are free: it runs or becomes pending. Its turn is also its row.
    fn arrive(&mut self, key: &str) -> bool {
        let starts = self.keys.start_if_room(&key.into());
        if !starts {
            self.pend(key);
        }
        starts
    }

    /// A job arrives while no permit is free.
    fn pend(&mut self, key: &str) {
        self.turn += 1;
        let row = RowIndex::try_from(self.turn).expect("few");
        self.keys.push(&key.into(), Moment::from_nanos(self.turn), row, false);
    }

    fn release(&mut self, key: &str) {
        self.keys.release(&key.into());
    }

    fn remove(&mut self, key: &str, turn: i64) {
        self.keys.remove(&key.into(), Moment::from_nanos(turn));
    }

    fn join(&mut self, key: Option<&str>) -> Ticket {
        self.keys.join(key.map(Arc::from).as_ref(), Waker::noop().clone())
    }

    fn call(&mut self, may_wait: bool) -> Option<(Ticket, bool)> {
        self.keys.call_next(may_wait).map(|called| (called.ticket, called.key_admitted))
    }

    fn first_admitted(&self) -> Option<i64> {
        self.keys.first_admitted().map(|(turn, _)| turn.as_nanos())
    }

    /// Starts the pending jobs that may start. Returns their turns, in order.
    fn start_all(&mut self, keys: &[&str]) -> Vec<i64> {
        let mut started = Vec::new();
        while let Some(turn) = self.first_admitted() {
            let moment = Moment::from_nanos(turn);
            let of = keys.iter().find(|key| {
                self.keys.lanes.get(**key).is_some_and(|lane| lane.admitted.contains(&moment))
            });
            if self.keys.start(&(*of.expect("a lane has it")).into(), moment) {
                started.push(turn);
            }
        }
        started
    }

    fn has_room(&self, key: &str) -> bool {
        self.keys.has_room(Some(&key.into()))
    }
}

/// Invariant 1.
#[test]
fn no_more_than_the_limit_are_admitted() {
    let mut bench = Bench::new(2);
    assert_eq!([(); 3].map(|()| bench.arrive(A)), [true, true, false]);
    assert!(!bench.has_room(A));
    assert!(bench.arrive(B) && bench.has_room(B));
    assert!(bench.keys.has_room(None));
    bench.release(A);
    assert!(!bench.has_room(A), "the blocked one is admitted");
    bench.release(A);
    assert!(bench.has_room(A));
}

/// Invariant 1: a called spawner is admitted if it could start.
#[test]
fn called_spawner_that_could_start_is_admitted() {
    let mut bench = Bench::new(1);
    let [first, second] = [(); 2].map(|()| bench.join(Some(A)));
    assert_eq!(bench.call(false), Some((first, true)));
    assert!(!bench.has_room(A));
    assert_eq!(bench.call(false), None);
    assert_eq!(bench.call(true), Some((second, false)), "it can wait for its key");
    assert!(!bench.keys.has_waiting());
    bench.release(A);
    assert_eq!(bench.keys.lane_count(), 0);
}

/// Invariant 2.
#[test]
fn blocked_jobs_are_admitted_in_turn() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive(A) && bench.arrive(B));
    for key in [A, B, A, A, B] {
        assert!(!bench.arrive(key));
    }
    assert_eq!(bench.keys.len(), 5);
    assert!(bench.start_all(&[A, B]).is_empty());
    bench.release(B);
    assert_eq!(bench.start_all(&[A, B]), [2]);
    assert_eq!(bench.keys.first().map(|(_, row)| row), Some(1));
    bench.remove(A, 1);
    bench.release(A);
    bench.release(B);
    assert_eq!(bench.start_all(&[A, B]), [3, 5], "the longest pending first");
    assert_eq!(bench.keys.len(), 1);
}

/// Invariant 2: a leaving job passes its admission on.
#[test]
fn leaving_pending_job_admits_the_next() {
    let mut bench = Bench::new(1);
    bench.pend(A);
    bench.pend(A);
    assert_eq!(bench.first_admitted(), Some(1));
    bench.remove(A, 1);
    assert_eq!(bench.first_admitted(), Some(2));
    bench.remove(A, 2);
    assert_eq!((bench.first_admitted(), bench.keys.lane_count()), (None, 0));
}

/// Invariant 3.
#[test]
fn eligible_spawners_are_called_past_the_others() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive(A));
    let [a, next_a, b, next_b, plain] =
        [Some(A), Some(A), Some(B), Some(B), None].map(|key| bench.join(key));
    assert_eq!(bench.call(false), Some((b, true)));
    assert_eq!(bench.call(false), Some((plain, false)), "without a key nothing is counted");
    assert_eq!(bench.call(false), None);
    bench.release(A);
    assert_eq!(bench.call(false), Some((a, true)));
    bench.release(B);
    bench.release(A);
    assert_eq!(bench.call(false), Some((next_a, true)));
    assert_eq!(bench.call(false), Some((next_b, true)));
}

/// Invariant 3: the second of an open lane takes its turn.
#[test]
fn leaving_spawner_makes_room_for_the_next_of_its_lane() {
    let mut bench = Bench::new(1);
    let [first, second, third] = [(); 3].map(|()| bench.join(Some(A)));
    assert!(bench.keys.cancel_wait(second).is_some());
    assert!(bench.keys.cancel_wait(first).is_some());
    assert!(bench.keys.cancel_wait(first).is_none());
    assert_eq!(bench.call(false), Some((third, true)));

    // Of a lane at its limit no job could start, first or not.
    let [fourth, fifth] = [(); 2].map(|()| bench.join(Some(A)));
    assert!(bench.keys.cancel_wait(fourth).is_some());
    assert_eq!(bench.call(false), None);
    bench.release(A);
    assert_eq!(bench.call(false), Some((fifth, true)));
}

#[test]
fn empty_lane_is_forgotten() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive(A) && !bench.arrive(A));
    let waiting = bench.join(Some(A));
    let alone = bench.join(Some(B));
    assert_eq!(bench.keys.lane_count(), 2);
    bench.keys.cancel_wait(alone);
    assert_eq!(bench.keys.lane_count(), 1);
    bench.remove(A, 1);
    bench.release(A);
    assert_eq!(bench.keys.lane_count(), 1, "a spawner waits");
    bench.keys.cancel_wait(waiting);
    assert_eq!(bench.keys.lane_count(), 0);

    for key in [A, B] {
        bench.join(Some(key));
    }
    assert_eq!(bench.keys.drain_waiting(9).len(), 2);
    assert_eq!(bench.keys.lane_count(), 0);
}

/// Invariant 1: admitted jobs become blocked as they would start.
#[test]
fn lowered_limit_starts_nothing_until_it_fits() {
    let mut bench = Bench::new(3);
    assert!(bench.arrive(A) && bench.arrive(A));
    bench.pend(A);
    bench.pend(B);
    bench.keys.set_limit(Some(1));
    assert!(!bench.has_room(A) && !bench.has_room(B));
    assert_eq!(bench.start_all(&[A, B]), [2]);
    bench.release(A);
    assert_eq!(bench.start_all(&[A, B]), [0; 0]);
    bench.release(A);
    assert_eq!(bench.start_all(&[A, B]), [1]);
}

/// Invariant 2: a raise goes on where it stopped.
#[test]
fn raised_limit_admits_blocked_jobs_in_steps() {
    let mut bench = Bench::new(1);
    for key in [A, B] {
        (0..5).for_each(|_| bench.pend(key));
    }
    let waiting = bench.join(Some(A));
    bench.keys.set_limit(None);
    let mut steps = 0;
    while bench.keys.is_raising() {
        bench.keys.go_on_raising(3);
        steps += 1;
    }
    assert_eq!(bench.start_all(&[A, B]), Vec::from_iter(1..=10));
    assert!((3..9).contains(&steps), "{steps} steps");
    assert_eq!(bench.call(false), Some((waiting, true)));
}

#[test]
fn eligible_spawner_of_a_lowered_limit_is_passed_over() {
    let mut bench = Bench::new(2);
    assert!(bench.arrive(A));
    let [of_key, plain] = [Some(A), None].map(|key| bench.join(key));
    bench.keys.set_limit(Some(1));
    assert_eq!(bench.call(false), Some((plain, false)));
    assert_eq!(bench.call(false), None);
    bench.release(A);
    assert_eq!(bench.call(false), Some((of_key, true)));
}

#[test]
fn nothing_is_left_of_a_hot_key_among_a_million() {
    let mut bench = Bench::new(1);
    assert!(bench.arrive("hot"));
    for n in 0..1_000_000 {
        let cold = format!("cold {n}");
        assert!(bench.arrive(&cold));
        if n % 100 == 0 {
            assert!(!bench.arrive("hot"));
            assert_eq!(bench.keys.lane_count(), 2);
        }
        bench.release(&cold);
    }
    assert_eq!(bench.keys.lane_count(), 1);
    for turn in 1..=10_000 {
        bench.release("hot");
        assert_eq!(bench.start_all(&["hot"]), [turn]);
    }
    bench.release("hot");
    let Keys { lanes, admitted, blocked, waiting, eligible, .. } = &bench.keys;
    assert!(lanes.is_empty() && admitted.is_empty() && blocked.is_empty());
    assert!(waiting.is_empty() && eligible.is_empty());
}
