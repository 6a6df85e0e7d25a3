//! Permits that are reserved before there is a job.

use std::{
    fmt,
    future::{Future, poll_fn},
    sync::Arc,
};

use crate::{
    job::{
        boxed::box_large,
        error::{SpawnError, TrySpawnError},
        options::Options,
        output::JobOutput,
    },
    run::core::Core,
    scheduler::{
        Scheduler,
        handle::Job,
        spawn::{JobBuilder, Value},
    },
    util::clock::Moment,
};

/// Holds a permit to run one job, which is spawned later.
///
/// It is for a consumer that fetches work only when it can run: reserve first, then fetch, then spawn.
/// Dropped, it gives the permit back.
///
/// - It counts against [`limit`](Scheduler::limit), and is shown in
///   [`Stats::reserved`](crate::Stats::reserved).
/// - Unused, it holds up neither [`wait_idle`](Scheduler::wait_idle) nor a drain.
///
/// The idea is that of tokio's [`mpsc::Sender::reserve`](tokio::sync::mpsc::Sender::reserve).
///
/// ```
/// # async fn fetch() -> Option<u32> { None }
/// # async fn process(_: u32) {}
/// # async fn consume(scheduler: tower_jobs::Scheduler) -> Result<(), tower_jobs::SpawnError> {
/// loop {
///     let permit = scheduler.reserve().await?;
///     let Some(message) = fetch().await else { break };
///     permit.spawn(process(message))?;
/// }
/// # Ok(()) }
/// ```
#[must_use = "a permit that is dropped is given back"]
pub struct Permit {
    core: Arc<Core>,
    /// False once a job has taken the permit over.
    is_held: bool,
}

impl Permit {
    /// Spawns a job, which starts now.
    ///
    /// On a [paused](Scheduler::pause) scheduler the job becomes pending instead, and the permit is given
    /// back.
    ///
    /// # Errors
    ///
    /// [`TrySpawnError::Closed`] if the scheduler is closed. The other errors give the future back, and the
    /// permit goes.
    #[track_caller]
    pub fn spawn<F>(self, future: F) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        let core = self.core.clone();
        self.spawn_as(JobBuilder::new(&core, Options::default(), ()), future)
    }

    /// Spawns a job with the options of a builder of the same scheduler.
    ///
    /// # Errors
    ///
    /// Like [`spawn`](Self::spawn); and [`TrySpawnError::Full`] if the job's
    /// [key](JobBuilder::concurrency_key) is at its limit, [`TrySpawnError::Duplicate`] if its
    /// [unique key](JobBuilder::unique_key) is taken.
    ///
    /// # Panics
    ///
    /// If the builder is of another scheduler.
    #[track_caller]
    pub fn spawn_as<F, S: 'static>(
        mut self,
        builder: JobBuilder<'_, S>,
        future: F,
    ) -> Result<Job<Value<F>>, TrySpawnError<F>>
    where
        F: Future<Output: JobOutput> + Send + 'static,
    {
        assert!(
            Arc::ptr_eq(&self.core, builder.core),
            "a permit is for jobs of the scheduler that gave it: make the builder with that one"
        );
        let spawned = box_large!(future: F => builder.try_spawn_as(None, future));
        self.is_held = spawned.is_err();
        spawned
    }
}

impl Drop for Permit {
    fn drop(&mut self) {
        if self.is_held {
            self.core.give_back_permit();
        }
    }
}

impl fmt::Debug for Permit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Permit").finish_non_exhaustive()
    }
}

/// A reservation that waits, or was granted and not taken.
struct Reservation<'a> {
    core: &'a Arc<Core>,
    turn: Option<Moment>,
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if let Some(turn) = self.turn {
            self.core.cancel_reserve(turn);
        }
    }
}

/// Reserving.
impl Scheduler {
    /// Waits for a permit to run a job, in line with the pending jobs.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Closed`] if the scheduler is closed, or closes while this waits;
    /// [`SpawnError::NoRuntime`] if it has no runtime yet and this is polled outside one.
    ///
    /// # Cancel safety
    ///
    /// Dropped, it leaves the line, and a permit that it was granted goes to the next.
    pub async fn reserve(&self) -> Result<Permit, SpawnError> {
        self.core().check_reserved();
        let mut reservation = Reservation { core: self.core(), turn: None };
        let taken = poll_fn(|cx| reservation.core.poll_reserve(&mut reservation.turn, cx)).await;
        taken.map(|()| Permit { core: self.core().clone(), is_held: true })
    }

    /// Takes a permit to run a job, if one is free now.
    ///
    /// # Errors
    ///
    /// [`SpawnError::Full`] if none is free; [`SpawnError::Closed`] if the scheduler is closed;
    /// [`SpawnError::NoRuntime`] if it has no runtime yet and this is called outside one.
    pub fn try_reserve(&self) -> Result<Permit, SpawnError> {
        self.core().try_reserve()?;
        Ok(Permit { core: self.core().clone(), is_held: true })
    }
}
