//! The values and errors that a job may return.

use std::{
    collections::{BTreeMap, HashMap},
    convert::Infallible,
    error::Error,
    io,
    path::PathBuf,
    sync::Arc,
};

use tower_jobs::{
    BoxError, JobContext, JobError, JobOutput, Lookup, Scheduler, display_error, value,
};

use crate::support::{SECOND, turn};

/// Runs a job that returns `value`.
async fn returned<T: JobOutput + Send + 'static>(value: T) -> Result<T::Value, JobError> {
    let scheduler = Scheduler::new();
    let job = scheduler.spawn(async { value }).await.expect("there is a place");
    job.await
}

#[tokio::test]
async fn job_returns_nothing_or_any_plain_value() {
    returned(()).await.unwrap();
    assert!(returned(true).await.unwrap());
    assert_eq!(returned(7_u64).await.unwrap(), 7);
    assert_eq!(returned(String::from("seven")).await.unwrap(), "seven");
    assert_eq!(returned("seven").await.unwrap(), "seven");
    assert_eq!(returned(None::<u8>).await.unwrap(), None);
    assert_eq!(returned(vec![7]).await.unwrap(), [7]);
    assert_eq!(returned((1, "a", 'b')).await.unwrap(), (1, "a", 'b'));
    assert_eq!(returned([1, 2]).await.unwrap(), [1, 2]);
    assert_eq!(returned(Arc::<str>::from("a")).await.unwrap(), "a".into());
    assert_eq!(returned(SECOND).await.unwrap(), SECOND);
    assert_eq!(returned(PathBuf::from("a")).await.unwrap(), PathBuf::from("a"));
    assert_eq!(returned(HashMap::from([(1, 2)])).await.unwrap()[&1], 2);
    assert_eq!(returned(BTreeMap::from([(1, 2)])).await.unwrap()[&1], 2);
    assert_eq!(returned(http::StatusCode::ACCEPTED).await.unwrap().as_u16(), 202);
}

#[tokio::test]
async fn job_fails_with_any_error_that_can_be_boxed() {
    async fn source<T: Send + 'static, E>(error: E) -> BoxError
    where
        Result<T, E>: JobOutput<Value = T> + Send + 'static,
    {
        returned(Err::<T, E>(error)).await.err().expect("a failure").into_source().unwrap()
    }
    let error = source::<(), _>(io::Error::from(io::ErrorKind::NotFound)).await;
    assert_eq!(error.downcast_ref::<io::Error>().unwrap().kind(), io::ErrorKind::NotFound);
    assert_eq!(source::<u8, _>(String::from("no")).await.to_string(), "no");
    assert_eq!(source::<Vec<u8>, _>("no").await.to_string(), "no");
    let boxed: Box<dyn Error + Send + Sync> = "no".into();
    assert_eq!(source::<(), _>(boxed).await.to_string(), "no");
    assert_eq!(returned(Ok::<_, io::Error>(7)).await.unwrap(), 7);
    assert_eq!(returned(Ok::<_, Infallible>("seven")).await.unwrap(), "seven");

    let error = returned(Err::<(), _>(io::Error::other("no disk"))).await.unwrap_err();
    assert_eq!(
        (error.to_string(), error.source().unwrap().to_string()),
        ("the job failed".to_owned(), "no disk".to_owned())
    );
}

#[tokio::test]
async fn alternate_form_of_an_error_has_its_causes() {
    let failed = async || returned(Err::<(), _>(io::Error::other("no\ndisk"))).await.unwrap_err();
    let text = r"the job failed: no\ndisk";
    assert_eq!(format!("{:#}", failed().await), text);
    let error = tower_jobs::Error::from(failed().await);
    assert_eq!(format!("{error:#}"), text);
    // The job of a job has the same text, which is there once.
    let error = returned(Err::<(), _>(error)).await.unwrap_err();
    assert_eq!(format!("{error:#}"), text);
}

#[tokio::test]
async fn blocking_job_fails_with_its_error_too() {
    let scheduler = Scheduler::new();
    let job = scheduler.spawn_blocking(|| Err::<(), _>("no disk")).await.unwrap();
    assert_eq!(job.await.unwrap_err().into_source().unwrap().to_string(), "no disk");
    assert_eq!(scheduler.stats().failed, 1);
}

#[tokio::test]
async fn type_of_ones_own_may_be_returned() {
    #[derive(Debug, PartialEq)]
    struct Receipt(u64);
    impl JobOutput for Receipt {
        type Value = Self;
        fn into_result(self) -> Result<Self, BoxError> {
            if self.0 == 0 { Err("an empty receipt".into()) } else { Ok(self) }
        }
        fn is_failure(&self) -> bool {
            self.0 == 0
        }
    }
    assert_eq!(returned(Receipt(7)).await.unwrap(), Receipt(7));
    assert!(returned(Receipt(0)).await.unwrap_err().is_failed());
    let scheduler = Scheduler::new();
    assert_eq!(scheduler.shield(async { Receipt(0) }).await.unwrap(), Receipt(0));
    assert_eq!((scheduler.stats().failed, scheduler.stats().completed), (1, 0));
}

#[tokio::test]
async fn value_is_any_type_and_never_a_failure() {
    struct Receipt(u64);
    let scheduler = Scheduler::new();
    let job = scheduler.spawn(value(async { Receipt(7) })).await.unwrap();
    assert_eq!(job.await.unwrap().0, 7);
    let job = scheduler.spawn(value(async { Err::<(), _>("no disk") })).await.unwrap();
    assert_eq!(job.await.unwrap(), Err("no disk"));
    assert_eq!((scheduler.stats().completed, scheduler.stats().failed), (2, 0));
}

#[tokio::test]
async fn displayed_error_fails_with_its_text() {
    struct Code(u16);
    impl std::fmt::Display for Code {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            write!(f, "code {}", self.0)
        }
    }
    let failed = returned(Err::<(), _>(display_error(Code(7)))).await.unwrap_err();
    assert_eq!(failed.into_source().unwrap().to_string(), "code 7");
}

#[tokio::test]
async fn job_says_its_progress() {
    let scheduler = Scheduler::builder().remember(1).build();
    let (told, mut tell) = tokio::sync::mpsc::unbounded_channel();
    let work = |context: JobContext| async move {
        while let Some(part) = tell.recv().await {
            context.progress(part);
        }
    };
    let job = scheduler.spawn_with(work).await.unwrap();
    assert_eq!(job.info().progress, None);
    for (said, shown) in
        [(0.25, 0.25), (f32::NAN, 0.25), (7.0, 1.0), (-7.0, 0.0), (f32::INFINITY, 1.0), (0.5, 0.5)]
    {
        told.send(said).unwrap();
        turn().await;
        assert_eq!(job.info().progress, Some(shown), "after {said}");
    }
    drop(told);
    let id = job.id();
    job.await.unwrap();
    let Lookup::Ended(ended) = scheduler.get(id) else { panic!("it has ended") };
    assert_eq!(ended.job.progress, Some(0.5));
}
