//! The oracle: a model that states the rules as plainly as possible. It looks through lists until
//! nothing more can happen. Random histories run against the queue and the model, and after each step
//! both must agree.

use std::{
    collections::{BTreeMap, BTreeSet},
    env,
    hash::{BuildHasher, RandomState},
};

use proptest::{
    prelude::*,
    test_runner::{RngSeed, TestRunner},
};

use super::*;

#[derive(Clone, Debug)]
enum Step {
    Offer(Names),
    OfferOrWait(Names),
    OfferDeferred(Names),
    OfferOutside(Names),
    Begin(usize),
    Ask(usize),
    Leave(usize),
    Finish(usize, Outcome),
    Remove(usize, Outcome),
    Announce,
    Drain,
    Close,
    TakeWaiters(usize),
    TakeUnstarted(usize),
    TakeEnded,
    Reserve,
    TryReserve,
    TakeReserved(usize),
    CancelReserve(usize),
    GiveBack(usize),
    UsePermit(usize, Names),
    SetLimit(Option<usize>),
    SetPendingLimit(Option<usize>),
    SetLimitPerKey(Option<usize>),
    Pause,
    Resume,
    Clear,
}

fn outcome() -> impl Strategy<Value = Outcome> {
    prop::sample::select(vec![
        Outcome::Completed,
        Outcome::Failed,
        Outcome::TimedOut,
        Outcome::Skipped,
        Outcome::Abandoned,
    ])
}

fn names() -> impl Strategy<Value = Names> {
    let keys = prop::sample::select(vec!["a", "b", "c"]);
    let uniques = (prop::sample::select(vec!["one", "two"]), any::<bool>());
    (prop::option::weighted(0.7, keys), prop::option::weighted(0.2, uniques))
        .prop_map(|(key, unique)| Names { key, unique })
}

fn limit() -> impl Strategy<Value = Option<usize>> {
    prop::option::weighted(0.8, 1..4_usize)
}

fn step() -> impl Strategy<Value = Step> {
    let any = any::<u8>().prop_map(usize::from);
    prop_oneof![
        8 => names().prop_map(Step::Offer),
        10 => names().prop_map(Step::OfferOrWait),
        4 => names().prop_map(Step::OfferDeferred),
        2 => names().prop_map(Step::OfferOutside),
        4 => any.clone().prop_map(Step::Begin),
        8 => any.clone().prop_map(Step::Ask),
        3 => any.clone().prop_map(Step::Leave),
        12 => (any.clone(), outcome()).prop_map(|(number, outcome)| Step::Finish(number, outcome)),
        3 => (any.clone(), outcome()).prop_map(|(number, outcome)| Step::Remove(number, outcome)),
        1 => Just(Step::Announce),
        1 => Just(Step::Drain),
        1 => Just(Step::Close),
        2 => (0..3_usize).prop_map(Step::TakeWaiters),
        2 => (0..3_usize).prop_map(Step::TakeUnstarted),
        1 => Just(Step::TakeEnded),
        4 => Just(Step::Reserve),
        1 => Just(Step::TryReserve),
        4 => any.clone().prop_map(Step::TakeReserved),
        1 => any.clone().prop_map(Step::CancelReserve),
        1 => any.clone().prop_map(Step::GiveBack),
        3 => (any.clone(), names()).prop_map(|(at, names)| Step::UsePermit(at, names)),
        2 => limit().prop_map(Step::SetLimit),
        1 => prop::option::of(0..4_usize).prop_map(Step::SetPendingLimit),
        2 => limit().prop_map(Step::SetLimitPerKey),
        1 => Just(Step::Pause),
        2 => Just(Step::Resume),
        1 => Just(Step::Clear),
    ]
}

/// A reservation, by its number.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Reservation(usize);

/// The rules, over lists of job numbers.
struct Model {
    is_paused: bool,
    /// The turns of all jobs that have been pending.
    turns: BTreeMap<usize, usize>,
    next_turn: usize,
    reservations: usize,
    /// With their turns.
    reserving: Vec<(Reservation, usize)>,
    /// Granted, and not yet taken.
    reserved: Vec<Reservation>,
    permits: Vec<Reservation>,
    limit: usize,
    pending_limit: usize,
    deferred_limit: usize,
    limit_per_key: usize,
    phase: Phase,
    names: Vec<Names>,
    deferred: Vec<usize>,
    pending: Vec<usize>,
    active: Vec<usize>,
    outside: Vec<usize>,
    /// Spawners, by the number of their job, in the order they came.
    waiting: Vec<usize>,
    granted: Vec<usize>,
    /// The pending jobs and granted spawners that count against the limit of their key.
    admitted: Vec<usize>,
    started: Vec<usize>,
    replaced: Vec<usize>,
    /// Jobs that took over the turn of another, with that one.
    inherited: Vec<(usize, usize)>,
    accepted: u64,
    outcomes: Vec<Outcome>,
    ended: Vec<(usize, Outcome)>,
}

impl Model {
    fn running(&self) -> Vec<usize> {
        let inside = |number: &&usize| !self.outside.contains(number);
        self.active.iter().filter(inside).copied().collect()
    }

    /// Pending jobs, and spawners that may become pending.
    fn waiting_for_a_permit(&self) -> usize {
        self.pending.len() + self.granted.len()
    }

    fn may_wait(&self) -> bool {
        self.waiting_for_a_permit() < self.pending_limit // 2
    }

    /// Permits that are held.
    fn held(&self) -> usize {
        self.running().len() + self.reserved.len() + self.permits.len()
    }

    fn free(&self) -> usize {
        let limit = if self.is_paused { 0 } else { self.limit };
        limit.saturating_sub(self.held())
    }

    /// A permit is free, or the job may wait for one.
    fn may_run_or_wait(&self) -> bool {
        let places = self.free().saturating_add(self.pending_limit);
        self.granted.len() < self.free() || self.waiting_for_a_permit() < places
    }

    fn running_of_key(&self, key: &str) -> usize {
        let granted = self.granted.iter().filter(|number| self.admitted.contains(number));
        let all = self.running().into_iter().chain(granted.copied());
        all.filter(|number| self.names[*number].key == Some(key)).count()
    }

    /// The answer to a reservation, if a permit that is free but granted will do or not.
    fn reserve(&mut self, takes_granted: bool) -> Result<Reservation, Refusal> {
        let spoken_for = if takes_granted { 0 } else { self.granted.len() };
        match self.phase {
            Phase::Closed => Err(Refusal::Closed),
            _ if spoken_for >= self.free() => Err(Refusal::Full),
            _ => {
                self.reservations += 1;
                Ok(Reservation(self.reservations))
            }
        }
    }

    fn take_turn(&mut self) -> usize {
        self.next_turn += 1;
        self.next_turn
    }

    /// A job becomes pending, at the end of the line.
    fn pend(&mut self, number: usize) {
        let turn = self.take_turn();
        self.turns.insert(number, turn);
        self.pending.push(number);
    }

    /// The answer to a job with a permit, which it takes over.
    fn use_permit(&mut self, number: usize, permit: Reservation) -> Answer {
        let names = self.names[number];
        match self.rival(names) {
            _ if self.phase == Phase::Closed => Closed,
            Some((rival, false)) => Duplicate(rival),
            _ if !self.key_has_room(names) => Full,
            rival => {
                self.accepted += 1;
                if let Some((rival, _)) = rival {
                    self.end(rival, Outcome::Cancelled);
                    self.replaced.push(rival);
                }
                self.permits.retain(|other| *other != permit);
                if self.is_paused {
                    self.pend(number);
                } else {
                    self.active.push(number);
                    self.started.push(number);
                }
                Taken
            }
        }
    }

    fn of_key(&self, key: &str) -> usize {
        let all = self.running().into_iter().chain(self.admitted.iter().copied());
        all.filter(|number| self.names[*number].key == Some(key)).count()
    }

    fn key_has_room(&self, names: Names) -> bool {
        names.key.is_none_or(|key| self.of_key(key) < self.limit_per_key)
    }

    fn has_room(&self, names: Names) -> bool {
        if self.key_has_room(names) { self.may_run_or_wait() } else { self.may_wait() }
    }

    /// The job of the same unique key, and whether it may be replaced.
    fn rival(&self, names: Names) -> Option<(usize, bool)> {
        let (unique, replace) = names.unique?;
        let mut all = self.deferred.iter().chain(&self.pending).chain(&self.active);
        let same =
            |number: &&usize| self.names[**number].unique.is_some_and(|(other, _)| other == unique);
        let rival = *all.find(same)?;
        Some((rival, replace && !self.active.contains(&rival)))
    }

    /// The answer to an offered job.
    fn offer(&mut self, number: usize, how: Admit) -> Answer {
        let names = self.names[number];
        let rival = self.rival(names).map(|(rival, _)| rival);
        let replaces_pending = rival.is_some_and(|rival| self.pending.contains(&rival));
        let replaces_deferred = rival.is_some_and(|rival| self.deferred.contains(&rival));
        let overflow = self.pending.len().saturating_sub(self.pending_limit);
        let deferred = self.deferred.len() + overflow - usize::from(replaces_deferred);
        match self.rival(names) {
            _ if self.phase == Phase::Closed => Closed,
            Some((rival, false)) => Duplicate(rival),
            _ if how == Admit::Outside => self.accept(number, how),
            _ if !replaces_pending && !self.has_room(names) => Full,
            _ if how == Admit::Deferred && deferred >= self.deferred_limit => DeferredFull, // 10
            _ => self.accept(number, how),
        }
    }

    fn accept(&mut self, number: usize, how: Admit) -> Answer {
        self.accepted += 1;
        let turn = match self.rival(self.names[number]) {
            Some((rival, true)) => self.replace(rival, number, how),
            _ => None,
        };
        match how {
            Admit::Limited => match turn {
                Some(at) => self.pending.insert(at, number),
                None => self.pend(number),
            },
            Admit::Deferred => self.deferred.push(number),
            Admit::Outside => {
                self.outside.push(number);
                self.active.push(number);
                self.started.push(number);
            }
        }
        Taken
    }

    /// Ends the rival. Returns the turn of a pending one that the job takes over, with its admission if
    /// both have the same key.
    fn replace(&mut self, rival: usize, number: usize, how: Admit) -> Option<usize> {
        let turn = self.pending.iter().position(|other| *other == rival);
        let turn = turn.filter(|_| how == Admit::Limited);
        let same_key = self.names[rival].key == self.names[number].key;
        if turn.is_some() && same_key && self.admitted.contains(&rival) {
            self.admitted.retain(|other| *other != number);
            self.admitted.push(number);
        }
        if turn.is_some() {
            self.inherited.push((number, rival));
            self.turns.insert(number, self.turns[&rival]);
        }
        self.end(rival, Outcome::Cancelled);
        self.replaced.push(rival);
        turn
    }

    /// A spawner leaves the line, granted or not.
    fn leave(&mut self, number: usize) {
        self.waiting.retain(|other| *other != number);
        self.granted.retain(|other| *other != number);
        if !self.pending.contains(&number) {
            self.admitted.retain(|other| *other != number);
        }
    }

    fn idle(&self) -> bool {
        let spawners = self.waiting.len() + self.granted.len();
        self.deferred.is_empty()
            && self.pending.is_empty()
            && self.active.is_empty()
            && (spawners == 0 || self.phase == Phase::Closed)
    }

    fn end(&mut self, number: usize, outcome: Outcome) {
        self.active.retain(|other| *other != number);
        self.pending.retain(|other| *other != number);
        self.deferred.retain(|other| *other != number);
        self.admitted.retain(|other| *other != number);
        self.outcomes.push(outcome);
        let well = [Outcome::Completed, Outcome::Skipped].contains(&outcome);
        if self.phase != Phase::Open && !well {
            self.ended.push((number, outcome));
        }
    }

    fn settle(&mut self) {
        while self.phase != Phase::Closed && self.settle_one() {}
    }

    /// Does the first thing that can be done, if there is one.
    fn settle_one(&mut self) -> bool {
        let opens = |number: &&usize| self.key_has_room(self.names[**number]);
        let held = self.pending.iter().filter(|number| !self.admitted.contains(number));
        let ready = self.pending.iter().find(|number| self.admitted.contains(number)).copied();
        let ready = ready.filter(|_| self.free() > 0);
        let reserving = self.reserving.first().copied().filter(|_| self.free() > 0);
        let is_reserved = reserving
            .is_some_and(|(_, turn)| ready.is_none_or(|number| turn < self.turns[&number]));
        let may_start = |number: usize| {
            let key = self.names[number].key;
            key.is_none_or(|key| self.running_of_key(key) < self.limit_per_key)
        };
        let call = match self.may_run_or_wait() {
            true if self.may_wait() => self.waiting.first(),
            true => self.waiting.iter().find(opens),
            false => None,
        };
        if let Some(number) = held.copied().find(|number| opens(&number)) {
            self.admitted.push(number);
        } else if let Some((reservation, _)) = reserving.filter(|_| is_reserved) {
            self.reserving.remove(0);
            self.reserved.push(reservation);
        } else if let Some(number) = ready.filter(|number| !may_start(*number)) {
            // `limit_per_key` was lowered.
            self.admitted.retain(|other| *other != number);
        } else if let Some(number) = ready {
            self.pending.retain(|other| *other != number);
            self.admitted.retain(|other| *other != number);
            self.active.push(number);
            self.started.push(number);
        } else if let Some(&number) = call {
            if opens(&&number) {
                self.admitted.push(number);
            }
            self.waiting.retain(|other| *other != number);
            self.granted.push(number);
        } else if self.phase == Phase::Draining
            && (self.idle() || (self.is_paused && self.active.is_empty()))
        {
            self.phase = Phase::Closed;
        } else {
            return false;
        }
        true
    }

    /// The keys of which the queue must know something.
    fn lanes(&self) -> BTreeSet<&'static str> {
        let running = self.running();
        let all = [&running, &self.pending, &self.admitted, &self.waiting].into_iter().flatten();
        all.filter_map(|number| self.names[*number].key).collect()
    }

    /// In the order in which a closed queue gives them up.
    fn unstarted(&self) -> Vec<usize> {
        [self.pending.clone(), self.deferred.clone()].concat()
    }
}

fn pick<T: Copy>(from: &[T], at: usize) -> Option<T> {
    (!from.is_empty()).then(|| from[at % from.len()])
}

fn check(limits: [Option<usize>; 4], steps: Vec<Step>) {
    let mut bench = Bench::with_all(limits);
    let [limit, pending_limit, deferred_limit, limit_per_key] = limits;
    let mut model = Model {
        is_paused: false,
        turns: BTreeMap::new(),
        next_turn: 0,
        reservations: 0,
        reserving: Vec::new(),
        reserved: Vec::new(),
        permits: Vec::new(),
        limit: limit.unwrap_or(usize::MAX),
        pending_limit: pending_limit.unwrap_or(usize::MAX),
        deferred_limit: deferred_limit.unwrap_or(usize::MAX),
        limit_per_key: limit_per_key.unwrap_or(usize::MAX),
        phase: Phase::Open,
        names: Vec::new(),
        deferred: Vec::new(),
        pending: Vec::new(),
        active: Vec::new(),
        outside: Vec::new(),
        waiting: Vec::new(),
        granted: Vec::new(),
        admitted: Vec::new(),
        started: Vec::new(),
        replaced: Vec::new(),
        inherited: Vec::new(),
        accepted: 0,
        outcomes: Vec::new(),
        ended: Vec::new(),
    };
    // Spawners that have joined the line and not left it, and the time of each job's last move.
    let mut spawners: Vec<(usize, Ticket, Arc<Bell>)> = Vec::new();
    let mut reservers: Vec<(Reservation, Moment, Arc<Bell>)> = Vec::new();
    let mut since: Vec<(JobState, Moment)> = Vec::new();
    let (mut last_overflow, mut last_held) = (0, 0);
    for step in steps {
        bench.now = Moment::from_nanos(bench.now.as_nanos() + 1);
        let may_overflow = matches!(
            step,
            Step::Begin(_) | Step::Ask(_) | Step::SetPendingLimit(_) | Step::UsePermit(..)
        );
        match step {
            Step::Offer(names)
            | Step::OfferOrWait(names)
            | Step::OfferDeferred(names)
            | Step::OfferOutside(names) => {
                let (number, bell) = (bench.jobs.len(), Arc::new(Bell::default()));
                let how = match step {
                    Step::OfferDeferred(_) => Admit::Deferred,
                    Step::OfferOutside(_) => Admit::Outside,
                    _ => Admit::Limited,
                };
                model.names.push(names);
                let expected = model.offer(number, how);
                if !matches!(step, Step::OfferOrWait(_)) {
                    assert_eq!(bench.offer_as(how, names), expected);
                } else if let Waits(ticket) = bench.offer_or_wait(names, &bell) {
                    assert_eq!(expected, Full);
                    assert!(spawners.iter().all(|(_, earlier, _)| *earlier < ticket));
                    spawners.push((number, ticket, bell));
                    model.waiting.push(number);
                } else {
                    let job = bench.jobs.last().expect("just offered");
                    assert_eq!(expected == Taken, job.row() != NONE);
                }
            }
            Step::Begin(at) => {
                let Some(number) = pick(&Vec::from_iter(0..bench.jobs.len()), at) else {
                    continue;
                };
                bench.begin(number);
                if model.phase != Phase::Closed && model.deferred.contains(&number) {
                    model.deferred.retain(|other| *other != number);
                    model.pend(number);
                }
            }
            Step::Ask(at) => {
                let Some(at) = pick(&Vec::from_iter(0..spawners.len()), at) else { continue };
                let (number, ticket, _) = spawners[at];
                let bell = Arc::new(Bell::default());
                let answer = bench.ask(number, ticket, &bell);
                let rival = model.rival(model.names[number]);
                match rival {
                    _ if model.phase == Phase::Closed => assert_eq!(answer, Closed),
                    _ if !model.granted.contains(&number) => {
                        assert_eq!(answer, Waits(ticket));
                        spawners[at].2 = bell;
                        continue;
                    }
                    Some((rival, false)) => assert_eq!(answer, Duplicate(rival)),
                    _ => assert_eq!(answer, model.accept(number, Admit::Limited)),
                }
                if answer != Taken {
                    spawners[at].2 = bell;
                    bench.leave(ticket);
                }
                spawners.remove(at);
                model.leave(number);
            }
            Step::Leave(at) => {
                let Some(at) = pick(&Vec::from_iter(0..spawners.len()), at) else { continue };
                let (number, ticket, _) = spawners.remove(at);
                bench.leave(ticket);
                model.leave(number);
            }
            Step::Finish(at, outcome) => {
                // Any job, also one that is past it: then nothing happens.
                let Some(number) = pick(&Vec::from_iter(0..bench.jobs.len()), at) else {
                    continue;
                };
                bench.finish(number, outcome);
                if model.active.contains(&number) {
                    model.end(number, outcome);
                }
            }
            Step::Remove(at, outcome) => {
                let Some(number) = pick(&Vec::from_iter(0..bench.jobs.len()), at) else {
                    continue;
                };
                let unstarted = model.pending.contains(&number) || model.deferred.contains(&number);
                assert_eq!(bench.remove(number, outcome), unstarted);
                if unstarted {
                    model.end(number, outcome);
                }
            }
            Step::Announce => {
                bench.queue.announce();
                model.phase = model.phase.max(Phase::Announced);
            }
            Step::Drain => {
                bench.queue.drain();
                model.phase = model.phase.max(Phase::Draining);
            }
            Step::Close => {
                bench.queue.close();
                model.phase = Phase::Closed;
            }
            Step::TakeWaiters(most) if model.phase == Phase::Closed => {
                let taken = bench.queue.drain_waiting(most);
                let waiting = model.waiting.len() + model.reserving.len();
                assert_eq!(taken.len(), most.min(waiting));
                taken.into_iter().for_each(Waker::wake);
                let reserving = most.saturating_sub(model.waiting.len());
                model.reserving.drain(..reserving.min(model.reserving.len()));
                for number in model.waiting.drain(..most.min(model.waiting.len())) {
                    let spawner = spawners.iter().find(|spawner| spawner.0 == number);
                    assert!(spawner.is_some_and(|(_, _, bell)| granted(bell)), "in turn");
                }
            }
            Step::TakeUnstarted(most) if model.phase == Phase::Closed => {
                let mut expected = model.unstarted();
                expected.truncate(most);
                assert_eq!(bench.take_unstarted(most), expected);
                expected.iter().for_each(|number| model.end(*number, Outcome::NeverStarted));
            }
            Step::TakeWaiters(_) | Step::TakeUnstarted(_) => continue,
            Step::Reserve => {
                let expected = model.reserve(true);
                let bell = Arc::new(Bell::default());
                match bench.queue.reserve(&mut bell.clone().into(), bench.now) {
                    Ok(Reserve::Held) => model.permits.extend(expected),
                    Ok(Reserve::Waits(turn)) => {
                        assert_eq!(expected, Err(Refusal::Full));
                        model.reservations += 1;
                        let (reservation, place) =
                            (Reservation(model.reservations), model.take_turn());
                        model.reserving.push((reservation, place));
                        reservers.push((reservation, turn, bell));
                    }
                    Err(refusal) => assert_eq!(expected, Err(refusal)),
                }
            }
            Step::TryReserve => {
                let expected = model.reserve(false);
                assert_eq!(bench.queue.try_reserve(), expected.map(|_| ()));
                model.permits.extend(expected);
            }
            Step::TakeReserved(at) => {
                let Some(at) = pick(&Vec::from_iter(0..reservers.len()), at) else { continue };
                let (reservation, turn, _) = reservers[at];
                let bell = Arc::new(Bell::default());
                let taken = bench.queue.take_reserved(turn, &mut bell.clone().into());
                let is_granted = model.reserved.contains(&reservation);
                match taken {
                    None => {
                        assert!(!is_granted && model.phase != Phase::Closed);
                        reservers[at].2 = bell;
                        continue;
                    }
                    Some(taken) => {
                        let expected = if is_granted { Ok(()) } else { Err(Refusal::Closed) };
                        assert_eq!(taken, expected);
                        model.reserved.retain(|other| *other != reservation);
                        model.permits.extend(taken.map(|()| reservation));
                        if taken.is_err() {
                            assert_eq!(model.phase, Phase::Closed);
                            let (effects, _) = bench.queue.cancel_reserve(turn, bench.now);
                            bench.apply(effects);
                            model.reserving.retain(|(other, _)| *other != reservation);
                        }
                        reservers.remove(at);
                    }
                }
            }
            Step::CancelReserve(at) => {
                let Some(at) = pick(&Vec::from_iter(0..reservers.len()), at) else { continue };
                let (reservation, turn, _) = reservers.remove(at);
                let (effects, _) = bench.queue.cancel_reserve(turn, bench.now);
                bench.apply(effects);
                model.reserving.retain(|(other, _)| *other != reservation);
                model.reserved.retain(|other| *other != reservation);
            }
            Step::GiveBack(at) => {
                let Some(permit) = pick(&model.permits, at) else { continue };
                let effects = bench.queue.give_back_permit(bench.now);
                bench.apply(effects);
                model.permits.retain(|other| *other != permit);
            }
            Step::UsePermit(at, names) => {
                let Some(permit) = pick(&model.permits, at) else { continue };
                let number = bench.jobs.len();
                model.names.push(names);
                let expected = model.use_permit(number, permit);
                assert_eq!(bench.use_permit(names), expected);
                if expected != Taken {
                    let effects = bench.queue.give_back_permit(bench.now);
                    bench.apply(effects);
                    model.permits.retain(|other| *other != permit);
                }
            }
            Step::SetLimit(limit) => {
                model.limit = limit.unwrap_or(usize::MAX);
                let effects = bench.queue.set_limit(limit, bench.now);
                bench.apply(effects);
            }
            Step::SetPendingLimit(limit) => {
                model.pending_limit = limit.unwrap_or(usize::MAX);
                let effects = bench.queue.set_pending_limit(limit, bench.now);
                bench.apply(effects);
            }
            Step::SetLimitPerKey(limit) => {
                model.limit_per_key = limit.unwrap_or(usize::MAX);
                let effects = bench.queue.set_limit_per_key(limit, bench.now);
                bench.apply(effects);
            }
            Step::Pause => {
                model.is_paused = true;
                let effects = bench.queue.pause(bench.now);
                bench.apply(effects);
            }
            Step::Resume => {
                model.is_paused = false;
                let effects = bench.queue.resume(bench.now);
                bench.apply(effects);
            }
            Step::Clear => {
                for number in model.pending.clone() {
                    model.end(number, Outcome::Cancelled);
                }
                bench.clear();
            }
            Step::TakeEnded => {
                let id = |(number, outcome): (usize, Outcome)| (bench.jobs[number].id(), outcome);
                let mut expected: Vec<_> = model.ended.drain(..).map(id).collect();
                // Those that never started are kept by themselves.
                expected.sort_by_key(|(_, outcome)| *outcome != Outcome::NeverStarted);
                assert_eq!(bench.take_ended(), expected); // 9
            }
        }
        model.settle();
        let queue = &bench.queue;
        assert_eq!(bench.started, model.started); // 3, 5, 6: when, in which order
        assert_eq!(bench.replaced, model.replaced); // 11
        // After a limit was lowered, nothing has started that does not fit: the model says when.
        assert!(model.held() <= model.limit.max(last_held)); // 1
        last_held = model.held();
        assert_eq!(
            queue.cold.keys.lane_count(),
            model.lanes().len(),
            "those of quiet keys are forgotten"
        );
        assert_eq!(bench.counts(), (model.active.len(), model.pending.len()));
        assert_eq!(queue.deferred_count(), model.deferred.len());
        assert!(queue.deferred_count() <= model.deferred_limit); // 10
        let overflow = queue.pending_count().saturating_sub(model.pending_limit);
        assert!(overflow <= last_overflow || may_overflow); // 2
        last_overflow = overflow;
        assert_eq!(queue.waiting_count(), model.waiting.len() + model.reserving.len()); // 4
        assert_eq!(queue.reserved_count(), model.reserved.len() + model.permits.len());
        assert_eq!(queue.granted_count(), model.granted.len() + model.reserved.len());
        assert_eq!(queue.outside_limit_count(), model.active.len() - model.running().len());
        assert_eq!((queue.phase(), queue.is_idle()), (model.phase, model.idle())); // 8
        assert_eq!(queue.totals().accepted, model.accepted);
        let ended: u64 = queue.totals().outcomes.iter().sum();
        assert_eq!(model.accepted, queue.len() as u64 + ended); // 7
        for outcome in [Outcome::Completed, Outcome::TimedOut, Outcome::NeverStarted] {
            let expected = model.outcomes.iter().filter(|other| **other == outcome).count();
            assert_eq!(queue.totals().of(outcome), expected as u64);
        }
        if model.phase != Phase::Closed {
            for (reservation, _, bell) in &reservers {
                assert_eq!(granted(bell), model.reserved.contains(reservation));
            }
            for (number, _, bell) in &spawners {
                assert_eq!(granted(bell), model.granted.contains(number), "woken once granted");
                assert!(bell.rings() <= 1);
            }
        }
        let inherited: Vec<_> = model.inherited.drain(..).collect();
        let turns = inherited.into_iter().map(|(number, rival)| (number, since[rival].1));
        let turns: Vec<_> = turns.collect();
        for number in 0..bench.jobs.len() {
            let expected = match () {
                () if model.active.contains(&number) => JobState::Active,
                () if model.pending.contains(&number) => JobState::Pending,
                () if model.deferred.contains(&number) => JobState::Deferred,
                // Or not taken in.
                () => JobState::Finished,
            };
            assert_eq!(bench.state(number), expected, "job {number}");
            since.resize(bench.jobs.len(), (JobState::Deferred, bench.now));
            if since[number].0 != expected {
                since[number] = (expected, bench.now);
            }
        }
        for (number, turn) in turns {
            if since[number].0 == JobState::Pending {
                since[number].1 = turn; // 5
            }
        }
        let oldest = |jobs: &[usize]| jobs.iter().map(|number| since[*number].1).min();
        let jobs = [&model.deferred, &model.pending, &model.active];
        assert_eq!(queue.oldest(), jobs.map(|jobs| oldest(jobs)));
    }
}

#[test]
fn every_invariant_holds_after_every_step() {
    let limits = (
        prop_oneof![4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![1 => Just(Some(0)), 4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
        prop_oneof![4 => (1..4_usize).prop_map(Some), 1 => Just(None)],
    );
    let limits = limits.prop_map(|(limit, pending, deferred, key)| [limit, pending, deferred, key]);
    let history = (limits, prop::collection::vec(step(), 1..80));
    let mut config = ProptestConfig { failure_persistence: None, ..ProptestConfig::default() };
    if env::var_os("PROPTEST_CASES").is_none() {
        config.cases = 2_000;
    }
    if config.rng_seed == RngSeed::Random {
        config.rng_seed = RngSeed::Fixed(RandomState::new().hash_one(()));
    }
    let seed = config.rng_seed;
    let checked = TestRunner::new(config).run(&history, |(limits, steps)| {
        check(limits, steps);
        Ok(())
    });
    if let Err(error) = checked {
        panic!("{error}\nto see it again: PROPTEST_RNG_SEED={seed}");
    }
}
