//! Work on the rows of a database: claim, settle, beat, sweep.
//!
//! Invariants:
//!
//! 1. A row is claimed only when a permit to run it is held.
//! 2. A row that is held here is running here, or is being settled. A claim whose answer was lost is found
//!    again before the next claim.
//! 3. Beats wait for no claim and for no settlement.
//! 4. A verdict is written until the database takes it, or the time to settle is over.
//! 5. Rows of another worker are freed only by one that has itself beaten for the whole dead limit without
//!    a gap. So an outage of the database, which stops all beats, frees no row of a process that lives.

use std::{
    cell::{Cell, RefCell},
    collections::HashSet,
    future::Future,
    pin::pin,
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{Either, join, select},
    stream::FuturesUnordered,
};
use tokio::{
    sync::Notify,
    time::{Instant, sleep, timeout},
};
use tower_jobs::BoxError;

use crate::{
    door::{Door, Room, Running},
    engine::{Claimed, Verdict},
    job::DurableId,
};

/// First pause after a statement that failed; it doubles up to `LONGEST_PAUSE`.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(1);
/// Most rows that run here or are being settled: a database that is slow to settle is asked for no more.
const MAX_HELD: usize = 1_000;
/// Time for one statement. A connection that has gone silent is given up then.
const STATEMENT: Duration = Duration::from_secs(5);

/// The rows of a database, for one worker. All are called on one thread.
pub(crate) trait Rows {
    /// Tells the database that this worker lives. The first call registers it.
    fn beat(&self) -> impl Future<Output = Result<(), BoxError>>;

    /// Frees the rows of workers whose last beat is older than the dead limit, each with one crash more.
    /// Returns how many. Also removes rows without a use, such as old finished ones.
    fn sweep(&self) -> impl Future<Output = Result<u64, BoxError>>;

    /// Claims rows: of each kind at most its number, and at most `most` in all, by priority and age.
    fn claim(
        &self,
        kinds: &[(&'static str, usize)],
        most: usize,
    ) -> impl Future<Output = Result<Vec<Claimed>, BoxError>>;

    /// Lists the rows that this worker holds.
    fn held(&self) -> impl Future<Output = Result<Vec<Claimed>, BoxError>>;

    /// Writes the verdict of a row that this worker holds. It changes nothing if the worker no longer holds it.
    fn settle(
        &self,
        row: &Claimed,
        verdict: &Verdict,
    ) -> impl Future<Output = Result<(), BoxError>>;

    /// Resolves when a row may have become ready.
    fn pushed(&self) -> impl Future<Output = ()>;

    /// Removes this worker, which holds no row.
    fn leave(&self) -> impl Future<Output = Result<(), BoxError>>;
}

/// Runs rows through the door until it is stopping and everything is settled.
pub(crate) async fn run(rows: &impl Rows, door: &Door) {
    let work = Work {
        rows,
        door,
        held: RefCell::default(),
        started: RefCell::default(),
        has_started: Notify::new(),
        has_settled: Notify::new(),
        claims: Cell::new(true),
        claim_is_lost: Cell::new(false),
    };
    // A row that is held by a worker that is not registered would belong to no worker.
    if !work.register().await {
        return;
    }
    let worked = join(work.claim(), work.settle());
    // The beats go on until the last row is settled.
    select(pin!(worked), pin!(work.beat())).await;
    if work.claim_is_lost.get() || !work.held.borrow().is_empty() {
        // The worker ages out, and the sweep of another frees its rows.
        return;
    }
    if let Err(error) = limited(rows.leave()).await {
        tracing::warn!(%error, "the durable worker could not be removed; it ages out");
    }
}

struct Work<'a, R> {
    rows: &'a R,
    door: &'a Door,
    /// Rows that run here, are being settled, or are left behind.
    held: RefCell<HashSet<DurableId>>,
    /// Started, and not yet seen by `settle`.
    started: RefCell<Vec<(Running, Claimed)>>,
    has_started: Notify,
    has_settled: Notify,
    /// Whether rows may still be claimed.
    claims: Cell<bool>,
    /// An answer to a claim was lost.
    claim_is_lost: Cell<bool>,
}

impl<R: Rows> Work<'_, R> {
    /// Returns false if the door is stopping before the first beat was taken.
    async fn register(&self) -> bool {
        let mut pause = FIRST_PAUSE;
        while !self.door.is_stopping() {
            match self.unless_stopping(limited(self.rows.beat())).await {
                Some(Ok(())) => return true,
                Some(Err(error)) => {
                    tracing::warn!(%error, "the durable worker could not be registered");
                }
                None => {}
            }
            self.unless_stopping(sleep(pause)).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        false
    }

    async fn beat(&self) {
        let dead_after = self.door.dead_after();
        let interval = dead_after / 6;
        let mut unbroken_since: Option<Instant> = None;
        let mut last_beat = Instant::now();
        let mut last_sweep = Instant::now();
        loop {
            match limited(self.rows.beat()).await {
                Ok(()) => {
                    // Invariant 5: a beat that came late is a gap too.
                    if last_beat.elapsed() > dead_after / 2 {
                        unbroken_since = None;
                    }
                    last_beat = Instant::now();
                    let since = *unbroken_since.get_or_insert(last_beat);
                    if since.elapsed() >= dead_after && last_sweep.elapsed() >= interval {
                        last_sweep = Instant::now();
                        self.sweep().await;
                    }
                }
                Err(error) => {
                    unbroken_since = None;
                    tracing::warn!(%error, "the store of the durable jobs took no heartbeat");
                }
            }
            sleep(interval).await;
        }
    }

    async fn sweep(&self) {
        match limited(self.rows.sweep()).await {
            Ok(0) => {}
            Ok(freed) => tracing::warn!(freed, "durable jobs of dead processes are free again"),
            Err(error) => {
                tracing::warn!(%error, "durable jobs of dead processes were not looked for");
            }
        }
    }

    /// Ends when the door is stopping.
    async fn claim(&self) {
        let mut pause = FIRST_PAUSE;
        while let Some(mut room) = self.door.room().await {
            let wanted = room.len();
            match self.claim_once(&room.kinds(), wanted).await {
                Ok(found) => {
                    pause = FIRST_PAUSE;
                    let is_last = found.len() < wanted;
                    found.into_iter().for_each(|row| self.start(&mut room, row));
                    // Without a permit in hand, for other work of the scheduler.
                    drop(room);
                    if is_last {
                        let freed = pin!(self.door.limited_kind_ended());
                        self.unless_stopping(select(pin!(self.rows.pushed()), freed)).await;
                    }
                }
                Err(error) => {
                    tracing::warn!(%error, "no durable job could be claimed");
                    self.claim_is_lost.set(true);
                    drop(room);
                    self.unless_stopping(sleep(pause)).await;
                    pause = (pause * 2).min(LONGEST_PAUSE);
                }
            }
            while self.held.borrow().len() >= MAX_HELD && !self.door.is_stopping() {
                self.unless_stopping(self.has_settled.notified()).await;
            }
        }
        self.claims.set(false);
        self.has_started.notify_one();
    }

    fn start(&self, room: &mut Room<'_>, row: Claimed) {
        self.held.borrow_mut().insert(row.id.clone());
        let running = room.start(&row);
        self.started.borrow_mut().push((running, row));
        self.has_started.notify_one();
    }

    /// `None` if the door is stopping first.
    async fn unless_stopping<T>(&self, waited: impl Future<Output = T>) -> Option<T> {
        match select(pin!(waited), pin!(self.door.stopping())).await {
            Either::Left((seen, _)) => Some(seen),
            Either::Right(_) => None,
        }
    }

    async fn claim_once(
        &self,
        kinds: &[(&'static str, usize)],
        most: usize,
    ) -> Result<Vec<Claimed>, BoxError> {
        if self.claim_is_lost.get() {
            // Invariant 2.
            let mut lost = limited(self.rows.held()).await?;
            lost.retain(|row| !self.held.borrow().contains(&row.id));
            if lost.len() <= most {
                self.claim_is_lost.set(false);
            }
            lost.truncate(most);
            if !lost.is_empty() {
                return Ok(lost);
            }
        }
        // Until the very end: a row may be held from the moment when the statement is sent.
        match select(pin!(limited(self.rows.claim(kinds, most))), pin!(self.door.over())).await {
            Either::Left((found, _)) => found,
            Either::Right(_) => Err("the time is over".into()),
        }
    }

    /// Ends when nothing more is claimed, and all that has been started is settled.
    async fn settle(&self) {
        let mut running = FuturesUnordered::new();
        loop {
            for (verdict, row) in self.started.take() {
                running.push(self.settle_one(verdict, row));
            }
            if running.is_empty() && !self.claims.get() {
                return;
            }
            tokio::select! {
                () = self.has_started.notified() => {}
                Some(()) = running.next() => {}
            }
        }
    }

    async fn settle_one(&self, running: Running, row: Claimed) {
        let verdict = running.await;
        if matches!(verdict, Verdict::Leave) {
            return;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            match limited(self.rows.settle(&row, &verdict)).await {
                Ok(()) => break,
                Err(error) if self.door.is_over() => {
                    // The row stays held, as that of a process that died does.
                    tracing::error!(id = %row.id, kind = row.kind, %error, "a durable job's end was not stored");
                    self.door.not_stored(&verdict);
                    return;
                }
                // Once a row, since an outage may last, and hold many.
                Err(error) if pause == FIRST_PAUSE => {
                    tracing::warn!(id = %row.id, kind = row.kind, %error, "a durable job's end is not stored yet");
                }
                Err(error) => {
                    tracing::debug!(id = %row.id, kind = row.kind, %error, "a durable job's end is not stored yet");
                }
            }
            select(pin!(sleep(pause)), pin!(self.door.over())).await;
            pause = (pause * 2).min(LONGEST_PAUSE);
        }
        self.held.borrow_mut().remove(&row.id);
        self.has_settled.notify_one();
    }
}

/// An answer within `STATEMENT`, or an error.
async fn limited<T>(answer: impl Future<Output = Result<T, BoxError>>) -> Result<T, BoxError> {
    match timeout(STATEMENT, answer).await {
        Ok(answer) => answer,
        Err(_) => Err(format!("no answer within {STATEMENT:?}").into()),
    }
}
