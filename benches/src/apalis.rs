//! `apalis` with its memory backend: tasks are pushed into a storage, from which a worker takes
//! them.
//!
//! Tasks are sent into the storage's channel, with an id as its [`MemorySink`] gives them, but past
//! that: `apalis-core` 1.0.0 has it panic when the worker, on another thread, holds its lock. That
//! all tasks have ended is not told, so each carries a token of a `TaskTracker`, as far as what the
//! worker tells of its end: work left over would be timed as another contender's.

use std::{
    fmt::{Debug, Formatter},
    future::ready,
    sync::{Arc, OnceLock},
};

use apalis::{
    layers::limit::ConcurrencyLimitLayer,
    prelude::{
        MemorySink, MemoryStorage, MemoryStorageError, ParallelizeExt, RandomId, Task, TaskBuilder,
        TaskId, WorkerBuilder, WorkerBuilderExt,
    },
};
use futures_channel::mpsc::{UnboundedSender, unbounded};
use futures_util::{SinkExt, StreamExt, lock::Mutex};
use tokio_util::task::{TaskTracker, task_tracker::TaskTrackerToken};

use crate::{contenders::Work, timing::Contender};

/// A worker whose tasks are spawned, as `apalis` shows it.
pub struct Storage<W> {
    limit: Option<usize>,
    work: W,
    tracker: TaskTracker,
    /// Made where it is first needed: its worker wants a runtime.
    tasks: OnceLock<UnboundedSender<Task<TaskTrackerToken>>>,
}

impl<W> Debug for Storage<W> {
    fn fmt(&self, f: &mut Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Storage").field("limit", &self.limit).finish_non_exhaustive()
    }
}

impl<W: Work> Storage<W> {
    /// A storage and its worker.
    pub fn new(limit: Option<usize>, work: W) -> Self {
        Self { limit, work, tracker: TaskTracker::new(), tasks: OnceLock::new() }
    }

    fn start(&self) -> UnboundedSender<Task<TaskTrackerToken>> {
        let (tasks, receiver) = unbounded();
        let sink = Box::new(tasks.clone().sink_map_err(MemoryStorageError::from));
        let sink = MemorySink::new(Arc::new(Mutex::new(sink)));
        let storage = MemoryStorage::new_with(sink, Box::pin(receiver));
        let work = self.work;
        let worker = WorkerBuilder::new("benchmark")
            .backend(storage)
            .option_layer(self.limit.map(ConcurrencyLimitLayer::new))
            .parallelize(tokio::spawn)
            .build(move |token: TaskTrackerToken| async move {
                work.job().await;
                Some(token)
            });
        // What `run` does; but that the future of `run` is `Send` is more than the compiler can see.
        let run = worker.stream().for_each(|event| {
            event.expect("a worker without a failure");
            ready(())
        });
        drop(tokio::spawn(run));
        tasks
    }
}

impl<W: Work> Contender for Storage<W> {
    async fn spawn(&self, jobs: usize) {
        let tasks = self.tasks.get_or_init(|| self.start());
        for _ in 0..jobs {
            let id = TaskId::from_string(RandomId::default());
            let task = TaskBuilder::new(self.tracker.token()).task_id(id).build();
            tasks.unbounded_send(task).expect("open");
        }
    }

    async fn wait(&self) {
        crate::contenders::all_ended(&self.tracker).await;
    }
}
