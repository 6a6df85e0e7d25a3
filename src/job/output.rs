//! The types that a job may return.

use std::{
    borrow::Cow,
    cmp::Ordering,
    collections::{BTreeMap, BTreeSet, BinaryHeap, HashMap, HashSet, VecDeque},
    convert::Infallible,
    error::Error,
    ffi::OsString,
    fmt::Display,
    future::Future,
    net::{IpAddr, SocketAddr},
    path::PathBuf,
    pin::Pin,
    process::{ExitCode, ExitStatus, Output},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, SystemTime},
};

use bytes::{Bytes, BytesMut};
use pin_project_lite::pin_project;
use tokio::time::Instant;

use crate::job::error::BoxError;

#[expect(clippy::disallowed_types, reason = "a job may return it")]
type StdInstant = std::time::Instant;

/// Distinguishes failures from values among the outputs of jobs.
///
/// The `Err` of a `Result<T, E>` is a failure. `E` is any type that converts into a boxed error, such as
/// `anyhow::Error` and `eyre::Report`; for an error that can only be displayed there is [`display_error`].
/// All other outputs are plain values. The implementations cover `()`, `!` and the usual types of the standard
/// library. A future that returns any other type is wrapped in [`value`]. Or implement the trait, for a type
/// of your own:
///
/// ```
/// use tower_jobs::{BoxError, JobOutput};
///
/// struct Receipt(u64);
///
/// impl JobOutput for Receipt {
///     type Value = Self;
///     fn into_result(self) -> Result<Self, BoxError> {
///         Ok(self)
///     }
///     fn is_failure(&self) -> bool {
///         false
///     }
/// }
/// ```
///
/// If a result contains a result, only the outer one counts. For example, a job of
/// `tokio::time::timeout(after, send())` whose `send` fails in time returns `Ok(Err(..))`. That job has
/// completed, and no failure is reported. Use [`timeout`](crate::JobBuilder::timeout) instead, or end
/// the job with `?`.
#[diagnostic::on_unimplemented(
    message = "a job cannot return `{Self}`",
    label = "this is what the job returns",
    note = "a job returns `()`, a plain value, or a `Result` whose error converts into \
            `Box<dyn Error + Send + Sync>`: for an error that can only be displayed, write \
            `.map_err(tower_jobs::display_error)`",
    note = "for any other value, spawn `tower_jobs::value(future)`, or end the job with `;` if nobody needs it"
)]
pub trait JobOutput {
    /// The value that the job's handle returns.
    type Value: Send + 'static;

    /// Converts the output into a value or a failure.
    ///
    /// # Errors
    ///
    /// Returns an error if the job counts as failed.
    fn into_result(self) -> Result<Self::Value, Box<dyn Error + Send + Sync>>;

    /// Returns whether [`into_result`](Self::into_result) would return an error.
    fn is_failure(&self) -> bool;
}

#[diagnostic::do_not_recommend]
impl<T: Send + 'static, E: Into<BoxError>> JobOutput for Result<T, E> {
    type Value = T;

    fn into_result(self) -> Result<T, BoxError> {
        self.map_err(Into::into)
    }

    fn is_failure(&self) -> bool {
        self.is_err()
    }
}

/// Implements [`JobOutput`] for types that are never failures.
macro_rules! plain_values {
    ($(<$($generic:ident),*> $type:ty;)*) => {$(
        impl<$($generic: Send + 'static),*> $crate::JobOutput for $type
        where
            $type: Send + 'static,
        {
            type Value = Self;

            #[allow(unreachable_code, reason = "there is no value of type `!`")]
            fn into_result(self) -> Result<Self, $crate::BoxError> {
                Ok(self)
            }

            fn is_failure(&self) -> bool {
                false
            }
        }
    )*};
}

pub(crate) use plain_values;

plain_values! {
    <> (); <> bool; <> char; <> &'static str; <> String; <> PathBuf; <> OsString;
    <> u8; <> u16; <> u32; <> u64; <> u128; <> usize; <> f32;
    <> i8; <> i16; <> i32; <> i64; <> i128; <> isize; <> f64;
    <> Duration; <> Instant; <> StdInstant; <> SystemTime;
    <> Bytes; <> BytesMut; <> Cow<'static, str>; <> Cow<'static, [u8]>;
    <> IpAddr; <> SocketAddr; <> Ordering; <> ExitCode; <> ExitStatus; <> Output;
    <> Infallible; <> Returned<fn() -> !>;
    <T> Option<T>; <T> Vec<T>; <T> VecDeque<T>; <T> BinaryHeap<T>; <T> Box<T>; <T> Box<[T]>; <> Box<str>;
    <T> BTreeSet<T>; <T, S> HashSet<T, S>; <K, V> BTreeMap<K, V>; <K, V, S> HashMap<K, V, S>;
    <A, B> (A, B); <A, B, C> (A, B, C); <A, B, C, D> (A, B, C, D);
}

impl<T: ?Sized> JobOutput for Arc<T>
where
    Arc<T>: Send + 'static,
{
    type Value = Self;

    fn into_result(self) -> Result<Self, BoxError> {
        Ok(self)
    }

    fn is_failure(&self) -> bool {
        false
    }
}

impl<T: Send + 'static, const N: usize> JobOutput for [T; N] {
    type Value = Self;

    fn into_result(self) -> Result<Self, BoxError> {
        Ok(self)
    }

    fn is_failure(&self) -> bool {
        false
    }
}

/// Names the type `!` in stable Rust, for jobs that loop until they are cancelled.
///
/// The alias uses `FnOnce`, whose implementations are final for other crates. A trait of this crate could
/// gain implementations later, so an implementation of `JobOutput` in another crate would conflict with
/// the one for `!`.
#[allow(type_alias_bounds, reason = "the bound makes the name `Output` known")]
type Returned<F: FnOnce()> = F::Output;

/// Makes a job of a future that returns any type: its output is a plain value, and never a failure.
///
/// ```
/// # #[tokio::main(flavor = "current_thread")] async fn main() {
/// use tower_jobs::{Scheduler, value};
///
/// struct Receipt(u64); // of another crate, perhaps
///
/// let scheduler = Scheduler::new();
/// let job = scheduler.spawn(value(async { Receipt(7) })).await.unwrap();
/// assert_eq!(job.await.unwrap().0, 7);
/// # }
/// ```
///
/// A `Result` in it is a value too: its `Err` is reported nowhere.
pub fn value<F: Future<Output: Send + 'static>>(future: F) -> ValueFuture<F> {
    ValueFuture { future }
}

pin_project! {
    /// The future of [`value`].
    #[derive(Debug)]
    #[must_use = "futures do nothing unless they are spawned or awaited"]
    pub struct ValueFuture<F> {
        #[pin]
        future: F,
    }
}

impl<F: Future<Output: Send + 'static>> Future for ValueFuture<F> {
    type Output = PlainValue<F::Output>;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Self::Output> {
        Poll::Ready(PlainValue(ready!(self.project().future.poll(cx))))
    }
}

/// The output of a [`value`] job. Its handle returns the value itself.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub struct PlainValue<T>(pub T);

impl<T: Send + 'static> JobOutput for PlainValue<T> {
    type Value = T;

    fn into_result(self) -> Result<T, BoxError> {
        Ok(self.0)
    }

    fn is_failure(&self) -> bool {
        false
    }
}

/// Makes an error of anything that can be displayed, for jobs whose errors are no `Error`s.
///
/// The error has the text, and no source. `E` itself is dropped.
///
/// ```
/// use tower_jobs::display_error;
///
/// # #[derive(Debug)] struct Code(u16);
/// # impl std::fmt::Display for Code {
/// #     fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result { write!(f, "code {}", self.0) }
/// # }
/// # fn send() -> Result<(), Code> { Err(Code(7)) }
/// let job = async { send().map_err(display_error) };
/// # tower_jobs::Scheduler::new().shield(job);
/// ```
pub fn display_error<E: Display>(error: E) -> BoxError {
    error.to_string().into()
}
