//! An engine without a database.

use std::{
    any::Any,
    sync::{Arc, Mutex},
    time::Duration,
};

use futures_util::{
    StreamExt,
    future::{BoxFuture, LocalBoxFuture},
    stream::FuturesUnordered,
};
use tokio::sync::{Notify, watch};
use tower_jobs::BoxError;
use tower_jobs_durable::{
    Admin, Claimed, DeadLetter, Depth, Door, DurableId, Engine, NewRow, PushError, Verdict,
};

/// Rows in memory, and the verdicts on them.
#[derive(Clone, Default)]
pub(crate) struct Memory(Arc<Shared>);

#[derive(Default)]
struct Shared {
    rows: Mutex<Rows>,
    pushed: Notify,
    /// Counts verdicts, for those that wait.
    settled: watch::Sender<usize>,
}

#[derive(Default)]
struct Rows {
    next: u64,
    ready: Vec<Claimed>,
    settled: Vec<(String, Verdict)>,
    is_away: bool,
}

impl Memory {
    pub(crate) fn with(&self, row: Claimed) {
        self.0.rows.lock().unwrap().ready.push(row);
        self.0.pushed.notify_one();
    }

    /// Answers no push.
    pub(crate) fn go_away(&self) {
        self.0.rows.lock().unwrap().is_away = true;
    }

    pub(crate) fn stored(&self) -> Vec<Claimed> {
        self.0.rows.lock().unwrap().ready.clone()
    }

    /// Waits for so many verdicts, and returns all, with their rows' ids.
    pub(crate) async fn verdicts(&self, count: usize) -> Vec<(String, Verdict)> {
        let mut settled = self.0.settled.subscribe();
        super::soon("a verdict", settled.wait_for(|seen| *seen >= count)).await.unwrap();
        self.0.rows.lock().unwrap().settled.clone()
    }
}

impl Engine for Memory {
    fn push(&self, row: NewRow) -> BoxFuture<'_, Result<DurableId, PushError>> {
        Box::pin(async move {
            let mut rows = self.0.rows.lock().unwrap();
            if rows.is_away {
                return Err(PushError::Unavailable("no route to host".into()));
            }
            if row.unique_key.as_deref() == Some("taken") {
                return Err(PushError::Duplicate(DurableId::new("1")));
            }
            rows.next += 1;
            let id = DurableId::new(rows.next.to_string());
            let (kind, payload) = (row.kind.to_owned(), row.payload);
            rows.ready.push(Claimed {
                id: id.clone(),
                kind,
                payload,
                starts: 1,
                ready_since: None,
            });
            drop(rows);
            self.0.pushed.notify_one();
            Ok(id)
        })
    }

    fn push_in<'a>(
        &'a self,
        _: &'a mut (dyn Any + Send),
        _: NewRow,
    ) -> BoxFuture<'a, Result<DurableId, PushError>> {
        Box::pin(async { Err(PushError::WrongDatabase("it has no transactions".into())) })
    }

    fn admin(&self) -> Option<&dyn Admin> {
        Some(self)
    }

    fn run(self: Arc<Self>, door: Door) -> LocalBoxFuture<'static, ()> {
        Box::pin(async move {
            let mut running = FuturesUnordered::new();
            loop {
                tokio::select! {
                    room = door.room() => {
                        let Some(mut room) = room else { break };
                        let kinds = room.kinds();
                        let mut rows = self.0.rows.lock().unwrap();
                        let ready = rows.ready.iter().position(|row| kinds.iter().any(|(kind, _)| *kind == row.kind));
                        if let Some(row) = ready.map(|place| rows.ready.remove(place)) {
                            let verdict = room.start(&row);
                            running.push(async move { (row, verdict.await) });
                            continue;
                        }
                    }
                    Some(settled) = running.next() => {
                        self.settle(settled);
                        continue;
                    }
                }
                tokio::select! {
                    () = self.0.pushed.notified() => {}
                    () = door.stopping() => break,
                    () = tokio::time::sleep(Duration::from_millis(20)) => {}
                    Some(settled) = running.next() => self.settle(settled),
                }
            }
            while let Some(settled) = running.next().await {
                self.settle(settled);
            }
        })
    }
}

impl Memory {
    fn settle(&self, (row, verdict): (Claimed, Verdict)) {
        self.0.rows.lock().unwrap().settled.push((row.id.to_string(), verdict));
        self.0.settled.send_modify(|count| *count += 1);
    }
}

impl Admin for Memory {
    fn depth(&self) -> BoxFuture<'_, Result<Depth, BoxError>> {
        let mut depth = Depth::default();
        depth.ready = self.stored().len() as u64;
        depth.dead = 3;
        Box::pin(async move { Ok(depth) })
    }

    fn dead_letters(&self, _: usize) -> BoxFuture<'_, Result<Vec<DeadLetter>, BoxError>> {
        Box::pin(async { Ok(Vec::new()) })
    }

    fn retry<'a>(&'a self, _: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async { Ok(false) })
    }

    fn discard<'a>(&'a self, _: &'a DurableId) -> BoxFuture<'a, Result<bool, BoxError>> {
        Box::pin(async { Ok(false) })
    }
}
