//! A consumer that fetches from a broker only what it can run.
//!
//! ```sh
//! cargo run --example consumer
//! ```
//!
//! A broker, such as RabbitMQ, SQS or NATS, gives each message to one consumer. A consumer that fetches
//! more than it can run keeps messages from other consumers, and gives them back late if it is stopped.
//! So this one reserves a permit first, then fetches a message, then spawns the job with the permit.
//!
//! The broker here is a stand-in in memory; the consumer is a real one. Two jobs run at once, and each takes
//! its time. One message cannot be processed: its job fails, and the broker gets the message back. After
//! five messages the program shuts down: the consumer stops fetching, the running jobs end, and all other
//! messages are still with the broker. The program prints
//!
//! ```text
//! fetched 5 of 8 messages, at most 2 at once
//! done:         invoice 1, invoice 2, invoice 4, invoice 5
//! given back:   invoice 3
//! not fetched:  invoice 6, invoice 7, invoice 8
//! refused jobs: 0
//! ```
#![expect(clippy::print_stdout, reason = "the accounts are the program's output")]

use std::{
    collections::{BTreeSet, VecDeque},
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use tokio::sync::Notify;
use tower_jobs::{Scheduler, SpawnError};

/// Jobs that run at once.
const LIMIT: usize = 2;
/// After this number of messages the program shuts down.
const SHUTDOWN_AFTER: usize = 5;

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<(), SpawnError> {
    let broker = Broker::with((1..=8).map(|number| format!("invoice {number}")));
    // No queue: a message waits at the broker, where another consumer can fetch it.
    let scheduler = Scheduler::builder()
        .limit(LIMIT)
        .pending_limit(0)
        // The broker gets the messages of failed jobs back, so there is nothing else to do.
        .on_failure(|failure| tracing::warn!("{failure}"))
        .build();

    consume(&scheduler, &broker).await?;
    let report = scheduler.wait_and_close().await;
    assert!(report.never_started.is_empty(), "a job of a permit starts at once");

    let State { waiting, done, given_back, fetched, most, .. } = &*broker.state();
    println!("fetched {fetched} of 8 messages, at most {most} at once");
    println!("done:         {}", list(done));
    println!("given back:   {}", list(given_back));
    println!("not fetched:  {}", list(waiting));
    println!("refused jobs: {}", scheduler.stats().refused.total());
    Ok(())
}

fn list<'a>(messages: impl IntoIterator<Item = &'a String>) -> String {
    messages.into_iter().map(String::as_str).collect::<Vec<_>>().join(", ")
}

/// Fetches while there are permits, until the shutdown begins.
async fn consume(scheduler: &Scheduler, broker: &Broker) -> Result<(), SpawnError> {
    loop {
        // Waits while `LIMIT` jobs run. Until then no message is in hand.
        let permit = scheduler.reserve().await?;
        // If the shutdown begins now, the permit is dropped and so given back: it holds up no drain.
        let message = tokio::select! {
            biased;
            () = scheduler.shutting_down() => return Ok(()),
            message = broker.fetch() => message,
        };
        let job = scheduler.job("invoice").timeout(Duration::from_secs(10));
        // The permit is for this job, so it starts now. It is refused only if the scheduler closed
        // meanwhile; then the message is dropped, and with it goes back to the broker.
        if permit.spawn_as(job, process(message)).is_err() {
            return Ok(());
        }
        if broker.state().fetched == SHUTDOWN_AFTER {
            // In a server this is done by `Shutdown`, at the signal.
            scheduler.start_draining();
        }
    }
}

/// The work of one job.
async fn process(message: Message) -> Result<(), String> {
    tokio::time::sleep(Duration::from_millis(20)).await;
    if message.text == "invoice 3" {
        // The message is not acknowledged, and is given back as it is dropped.
        return Err(format!("{} has no amount", message.text));
    }
    message.acknowledge();
    Ok(())
}

// The stand-in for a broker.

#[derive(Clone, Default)]
struct Broker(Arc<Shared>);

#[derive(Default)]
struct Shared {
    state: Mutex<State>,
    arrived: Notify,
}

#[derive(Default)]
struct State {
    waiting: VecDeque<String>,
    done: BTreeSet<String>,
    given_back: BTreeSet<String>,
    fetched: usize,
    in_hand: usize,
    most: usize,
}

/// A fetched message. Dropped without an acknowledgement, it goes back to the broker.
struct Message {
    text: String,
    broker: Broker,
    is_done: bool,
}

impl Broker {
    fn with(messages: impl IntoIterator<Item = String>) -> Self {
        let broker = Self::default();
        broker.state().waiting.extend(messages);
        broker
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits for a message.
    async fn fetch(&self) -> Message {
        loop {
            let arrived = self.0.arrived.notified();
            if let Some(message) = self.try_fetch() {
                return message;
            }
            arrived.await;
        }
    }

    fn try_fetch(&self) -> Option<Message> {
        let mut state = self.state();
        let text = state.waiting.pop_front()?;
        state.fetched += 1;
        state.in_hand += 1;
        state.most = state.most.max(state.in_hand);
        Some(Message { text, broker: self.clone(), is_done: false })
    }
}

impl Message {
    fn acknowledge(mut self) {
        self.is_done = true;
    }
}

impl Drop for Message {
    fn drop(&mut self) {
        let mut state = self.broker.state();
        state.in_hand -= 1;
        let text = self.text.clone();
        // A real broker gives it to a consumer again, or puts it aside after some attempts.
        let to = if self.is_done { &mut state.done } else { &mut state.given_back };
        to.insert(text);
    }
}
