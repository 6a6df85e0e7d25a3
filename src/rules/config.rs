//! The settings of a scheduler, their defaults and their validation.

use std::{error::Error, fmt, time::Duration};

/// Holds the settings of a [`Scheduler`](crate::Scheduler), as plain data.
///
/// Give it to [`SchedulerBuilder::config`](crate::SchedulerBuilder::config). In code, the setters of the
/// builder do the same.
///
/// With the feature `serde`, it can be read from configuration files:
///
/// - A duration is written as `"100ms"` or `"1m 30s"`.
/// - A number without a limit is written as `"unlimited"` (or null).
/// - A missing field has its default.
/// - An unknown field, or an invalid value, is an error that names the field.
///
/// ```
/// # #[cfg(feature = "serde")] {
/// let config: tower_jobs::SchedulerConfig =
///     serde_json::from_str(r#"{ "limit": 20, "wait_timeout": "25s" }"#).unwrap();
/// let scheduler = tower_jobs::Scheduler::builder().config(config).build();
/// assert_eq!(scheduler.limit(), Some(20));
/// # }
/// ```
#[derive(Clone, Debug, PartialEq, Eq)]
#[cfg_attr(feature = "serde", derive(serde::Serialize, serde::Deserialize))]
#[cfg_attr(feature = "serde", serde(try_from = "fields::Fields"))]
#[non_exhaustive]
pub struct SchedulerConfig {
    /// Maximum number of jobs that run at once.
    ///
    /// `None` is unlimited, and 0 is invalid. Defaults to 100.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub limit: Option<usize>,
    /// Maximum number of jobs that wait in the queue for a permit.
    ///
    /// While the queue is full, spawners wait. `None` is unlimited. With 0 there is no queue: once `limit`
    /// is reached, `spawn` returns [`SpawnError::Full`](crate::SpawnError::Full). Defaults to 10 000.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub pending_limit: Option<usize>,
    /// Maximum number of deferred jobs, which wait for the end of their response.
    ///
    /// `None` is unlimited, and 0 is invalid. Defaults to 10 000.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub deferred_limit: Option<usize>,
    /// Maximum time that a job is deferred.
    ///
    /// After it the job starts although its response is not over. `None` is no maximum, and zero is
    /// invalid. Defaults to `None`; at most 365 days.
    #[cfg_attr(feature = "serde", serde(with = "fields::optional_duration"))]
    pub deferred_timeout: Option<Duration>,
    /// Maximum number of jobs of one key that run at once.
    ///
    /// `None` is unlimited, and 0 is invalid. Defaults to `None`.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub limit_per_key: Option<usize>,
    /// Run timeout of jobs that have none of their own.
    ///
    /// `None` is no timeout, and zero is invalid. Defaults to `None`; at most 365 days.
    #[cfg_attr(feature = "serde", serde(with = "fields::optional_duration"))]
    pub job_timeout: Option<Duration>,
    /// Maximum time for a job to end after it is asked to.
    ///
    /// At most 365 days. Defaults to 100 ms.
    #[cfg_attr(feature = "serde", serde(with = "fields::duration"))]
    pub close_timeout: Duration,
    /// Maximum time that `wait_and_close` waits for jobs to finish.
    ///
    /// At most 365 days. Defaults to 60 s.
    #[cfg_attr(feature = "serde", serde(with = "fields::duration"))]
    pub wait_timeout: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            limit: Some(100),
            pending_limit: Some(10_000),
            deferred_limit: Some(10_000),
            deferred_timeout: None,
            limit_per_key: None,
            job_timeout: None,
            close_timeout: Duration::from_millis(100),
            wait_timeout: Duration::from_secs(60),
        }
    }
}

/// The longest valid duration. It is longer than any deploy, and short enough that adding it to the
/// clock does not overflow.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl SchedulerConfig {
    /// Checks that all values are valid.
    ///
    /// The setters of the builder panic by the same rules.
    ///
    /// # Errors
    ///
    /// Returns an error for the first invalid field. Its text has the field, the value, and how to correct
    /// it.
    pub fn validate(&self) -> Result<(), ConfigError> {
        limit("limit", self.limit)?;
        deferred_limit(self.deferred_limit)?;
        if let Some(after) = self.deferred_timeout {
            deferred_timeout(after)?;
        }
        limit("limit_per_key", self.limit_per_key)?;
        if let Some(timeout) = self.job_timeout {
            job_timeout(timeout)?;
        }
        timeout("close_timeout", self.close_timeout)?;
        timeout("wait_timeout", self.wait_timeout)
    }
}

/// Checks a number of jobs, which must not be 0.
pub(crate) fn limit(field: &str, limit: Option<usize>) -> Result<(), ConfigError> {
    match limit {
        Some(0) => Err(ConfigError(format!(
            "{field} is 0, so no job would ever run: set it to at least 1, or to none \
             (\"unlimited\") for no limit"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn deferred_limit(limit: Option<usize>) -> Result<(), ConfigError> {
    match limit {
        Some(0) => Err(ConfigError(
            "deferred_limit is 0, so every job of after_response would be refused: set it to at \
             least 1, or to none (\"unlimited\") for no limit"
                .into(),
        )),
        _ => Ok(()),
    }
}

pub(crate) fn deferred_timeout(value: Duration) -> Result<(), ConfigError> {
    match value {
        Duration::ZERO => Err(ConfigError(
            "deferred_timeout is 0, so no job would wait for its response: set how long a job may \
             wait, or leave it out"
                .into(),
        )),
        value if value > MAX_TIMEOUT => Err(ConfigError(format!(
            "deferred_timeout is {value:?}, and the longest is 365 days: set how long a job may \
             wait for its response, or leave it out"
        ))),
        _ => Ok(()),
    }
}

/// Checks a duration, which must not exceed [`MAX_TIMEOUT`].
pub(crate) fn timeout(field: &str, value: Duration) -> Result<(), ConfigError> {
    if value <= MAX_TIMEOUT {
        return Ok(());
    }
    Err(ConfigError(format!(
        "{field} is {value:?}, and the longest is 365 days: set it to the time that a shutdown may \
         take"
    )))
}

/// Checks a job's run timeout, which must not be 0 or exceed [`MAX_TIMEOUT`].
pub(crate) fn run_timeout(value: Duration) -> Result<(), ConfigError> {
    timeout_of_jobs("the job's timeout", value)
}

/// Checks the run timeout of jobs that have none of their own.
pub(crate) fn job_timeout(value: Duration) -> Result<(), ConfigError> {
    timeout_of_jobs("job_timeout", value)
}

fn timeout_of_jobs(setting: &str, value: Duration) -> Result<(), ConfigError> {
    if value.is_zero() {
        return Err(ConfigError(format!(
            "{setting} is 0, so the job would fail before it ran: set a longer timeout, or leave the \
             timeout out"
        )));
    }
    if value > MAX_TIMEOUT {
        return Err(ConfigError(format!(
            "{setting} is {value:?}, and the longest is 365 days: set how long it may run, or leave \
             the timeout out"
        )));
    }
    Ok(())
}

/// Reports an invalid setting.
///
/// The text has the setting, its value, and how to correct it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ConfigError(String);

impl fmt::Display for ConfigError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Error for ConfigError {}

#[cfg(feature = "serde")]
mod fields {
    use std::time::Duration;

    use serde::{Deserialize, Deserializer, de::Error as _};

    use super::{ConfigError, SchedulerConfig};

    /// The contents of a file, before validation.
    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Fields {
        #[serde(deserialize_with = "limit")]
        limit: Option<usize>,
        #[serde(deserialize_with = "pending_limit")]
        pending_limit: Option<usize>,
        #[serde(deserialize_with = "deferred_limit")]
        deferred_limit: Option<usize>,
        #[serde(deserialize_with = "deferred_timeout")]
        deferred_timeout: Option<Duration>,
        #[serde(deserialize_with = "limit_per_key")]
        limit_per_key: Option<usize>,
        #[serde(deserialize_with = "job_timeout")]
        job_timeout: Option<Duration>,
        #[serde(deserialize_with = "close_timeout")]
        close_timeout: Duration,
        #[serde(deserialize_with = "wait_timeout")]
        wait_timeout: Duration,
    }

    // Adds the field's name to its errors, since not every format does.
    macro_rules! named {
        ($($field:ident: $type:ty = $kind:ident;)*) => {$(
            fn $field<'de, D: Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
                $kind::deserialize(deserializer).map_err(|error| {
                    D::Error::custom(format_args!(concat!(stringify!($field), ": {}"), error))
                })
            }
        )*};
    }

    named! {
        limit: Option<usize> = count;
        pending_limit: Option<usize> = count;
        deferred_limit: Option<usize> = count;
        deferred_timeout: Option<Duration> = optional_duration;
        limit_per_key: Option<usize> = count;
        job_timeout: Option<Duration> = optional_duration;
        close_timeout: Duration = duration;
        wait_timeout: Duration = duration;
    }

    impl Default for Fields {
        fn default() -> Self {
            let SchedulerConfig {
                limit,
                pending_limit,
                deferred_limit,
                deferred_timeout,
                limit_per_key,
                job_timeout,
                close_timeout,
                wait_timeout,
            } = SchedulerConfig::default();
            Self {
                limit,
                pending_limit,
                deferred_limit,
                deferred_timeout,
                limit_per_key,
                job_timeout,
                close_timeout,
                wait_timeout,
            }
        }
    }

    impl TryFrom<Fields> for SchedulerConfig {
        type Error = ConfigError;

        fn try_from(fields: Fields) -> Result<Self, ConfigError> {
            let Fields {
                limit,
                pending_limit,
                deferred_limit,
                deferred_timeout,
                limit_per_key,
                job_timeout,
                close_timeout,
                wait_timeout,
            } = fields;
            let config = Self {
                limit,
                pending_limit,
                deferred_limit,
                deferred_timeout,
                limit_per_key,
                job_timeout,
                close_timeout,
                wait_timeout,
            };
            config.validate().map(|()| config)
        }
    }

    pub(super) mod count {
        use std::fmt;

        use serde::{Deserializer, Serializer, de};

        #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
        pub(crate) fn serialize<S: Serializer>(
            value: &Option<usize>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(count) => serializer.serialize_u64(*count as u64),
                None => serializer.serialize_str("unlimited"),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<usize>, D::Error> {
            deserializer.deserialize_any(Count)
        }

        struct Count;

        impl de::Visitor<'_> for Count {
            type Value = Option<usize>;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number, or \"unlimited\"")
            }

            fn visit_u64<E: de::Error>(self, value: u64) -> Result<Self::Value, E> {
                usize::try_from(value).map(Some).map_err(E::custom)
            }

            fn visit_i64<E: de::Error>(self, value: i64) -> Result<Self::Value, E> {
                usize::try_from(value)
                    .map(Some)
                    .map_err(|_| E::invalid_value(de::Unexpected::Signed(value), &self))
            }

            fn visit_str<E: de::Error>(self, value: &str) -> Result<Self::Value, E> {
                match value {
                    "unlimited" => Ok(None),
                    _ => Err(E::invalid_value(de::Unexpected::Str(value), &self)),
                }
            }

            fn visit_unit<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }

            fn visit_none<E: de::Error>(self) -> Result<Self::Value, E> {
                Ok(None)
            }
        }
    }

    pub(super) mod duration {
        use std::{fmt, time::Duration};

        use serde::{Deserializer, Serializer, de};

        #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
        pub(crate) fn serialize<S: Serializer>(
            value: &Duration,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            serializer.collect_str(&humantime::format_duration(*value))
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Duration, D::Error> {
            deserializer.deserialize_str(Text)
        }

        struct Text;

        impl de::Visitor<'_> for Text {
            type Value = Duration;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a duration like \"100ms\" or \"1m 30s\"")
            }

            fn visit_str<E: de::Error>(self, text: &str) -> Result<Duration, E> {
                humantime::parse_duration(text).map_err(|error| {
                    E::custom(format!(
                        "{text:?} is not a duration: {error}; write it like \"100ms\" or \"1m 30s\""
                    ))
                })
            }
        }
    }

    pub(super) mod optional_duration {
        use std::time::Duration;

        use serde::{Deserialize, Deserializer, Serializer};

        #[derive(Deserialize)]
        #[serde(transparent)]
        struct Text(#[serde(deserialize_with = "super::duration::deserialize")] Duration);

        #[allow(clippy::trivially_copy_pass_by_ref, reason = "the signature is serde's")]
        pub(crate) fn serialize<S: Serializer>(
            value: &Option<Duration>,
            serializer: S,
        ) -> Result<S::Ok, S::Error> {
            match value {
                Some(value) => super::duration::serialize(value, serializer),
                None => serializer.serialize_none(),
            }
        }

        pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
            deserializer: D,
        ) -> Result<Option<Duration>, D::Error> {
            Ok(Option::<Text>::deserialize(deserializer)?.map(|Text(duration)| duration))
        }
    }
}
