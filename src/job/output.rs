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

/// What a job may return, so that a failure is told from a value.
///
/// `Result<T, E>` fails with its `Err`, for every `E` that converts into a boxed error (so
/// `anyhow::Error` and `eyre::Report` do). Everything else is a plain value: the implementations
/// cover `()`, `!` and the usual types of the standard library; for one of your own write
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
/// Of a result in a result only the outer one counts. A job of `tokio::time::timeout(after, send())`
/// whose `send` fails in time has completed, with `Ok(Err(..))`, and nobody is told. Give it
/// [`timeout`](crate::JobBuilder::timeout) instead, or end it with `?`.
#[diagnostic::on_unimplemented(
    message = "a job cannot return `{Self}`",
    note = "a job returns `()`, a plain value, or a `Result` whose error converts into \
            `Box<dyn Error + Send + Sync>`",
    note = "implement `tower_jobs::JobOutput` for a type of your own, or end the job with `;`"
)]
pub trait JobOutput {
    /// What awaiting the job gives.
    type Value: Send + 'static;

    /// The value, or why there is none.
    ///
    /// # Errors
    ///
    /// The error that makes this job a failed one.
    fn into_result(self) -> Result<Self::Value, Box<dyn Error + Send + Sync>>;

    /// Whether [`into_result`](Self::into_result) would give an error.
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

/// Names the type `!` in stable Rust, for jobs that loop until they are cancelled. (A trait of our
/// own would do here, but to other crates its impls are not final: theirs of `JobOutput` would
/// conflict with that for `!`. Those of `FnOnce` are.)
#[allow(type_alias_bounds, reason = "what the bound is for is the name `Output`")]
type Returned<F: FnOnce()> = F::Output;
