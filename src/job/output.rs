//! The types that a job may return.

use std::{
    collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque},
    convert::Infallible,
    error::Error,
    ffi::OsString,
    path::PathBuf,
    sync::Arc,
    time::Duration,
};

use tokio::time::Instant;

use crate::job::error::BoxError;

/// Distinguishes failures from values among the outputs of jobs.
///
/// The `Err` of a `Result<T, E>` is a failure. `E` is any type that converts into a boxed error, such as
/// `anyhow::Error` and `eyre::Report`. All other outputs are plain values. The implementations cover
/// `()`, `!` and the usual types of the standard library. For a type of your own, write:
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
    note = "a job returns `()`, a plain value, or a `Result` whose error converts into \
            `Box<dyn Error + Send + Sync>`",
    note = "implement `tower_jobs::JobOutput` for a type of your own, or end the job with `;`"
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
    <> Duration; <> Instant;
    <> Infallible; <> Returned<fn() -> !>;
    <T> Option<T>; <T> Vec<T>; <T> VecDeque<T>; <T> Box<[T]>;
    <T> BTreeSet<T>; <T, S> HashSet<T, S>; <K, V> BTreeMap<K, V>; <K, V, S> HashMap<K, V, S>;
    <A> (A,); <A, B> (A, B); <A, B, C> (A, B, C); <A, B, C, D> (A, B, C, D);
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
