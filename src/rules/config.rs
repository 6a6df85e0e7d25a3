//! The settings of a scheduler, and their validation.

use std::{error::Error, fmt, time::Duration};

/// The settings of a [`Scheduler`](crate::Scheduler), as plain data.
///
/// Builds a scheduler through
/// [`SchedulerBuilder::config`](crate::SchedulerBuilder::config), or from code through the
/// builder's own setters. With the feature `serde` it is read from configuration files:
/// durations are written `"100ms"` or `"1m 30s"`, an unlimited number `"unlimited"` (or null),
/// every field has its default, an unknown field is an error, and so is a value that makes no
/// sense; the error names the field.
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
    /// How many jobs run at once; `None` = any number. Defaults to 100.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub limit: Option<usize>,
    /// How many jobs wait for a running place before spawners must wait themselves; 0 = no
    /// queue, `None` = any number. Defaults to 10 000.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub pending_limit: Option<usize>,
    /// How many jobs of one key run at once; `None` = any number. Defaults to `None`.
    #[cfg_attr(feature = "serde", serde(with = "fields::count"))]
    pub limit_per_key: Option<usize>,
    /// How long a job that is told to end may take. Defaults to 100 ms.
    #[cfg_attr(feature = "serde", serde(with = "fields::duration"))]
    pub close_timeout: Duration,
    /// How long `wait_and_close` lets jobs finish. Defaults to 60 s.
    #[cfg_attr(feature = "serde", serde(with = "fields::duration"))]
    pub wait_timeout: Duration,
}

impl Default for SchedulerConfig {
    fn default() -> Self {
        Self {
            limit: Some(100),
            pending_limit: Some(10_000),
            limit_per_key: None,
            close_timeout: Duration::from_millis(100),
            wait_timeout: Duration::from_secs(60),
        }
    }
}

/// Longer than any deploy, and far from where adding to the clock overflows.
pub(crate) const MAX_TIMEOUT: Duration = Duration::from_secs(365 * 24 * 60 * 60);

impl SchedulerConfig {
    /// Checks what the types cannot: the rules that the builder's setters enforce by panicking.
    ///
    /// # Errors
    ///
    /// Names the first field whose value makes no sense, the value, and what to write instead.
    pub fn validate(&self) -> Result<(), ConfigError> {
        limit("limit", self.limit)?;
        limit("limit_per_key", self.limit_per_key)?;
        timeout("close_timeout", self.close_timeout)?;
        timeout("wait_timeout", self.wait_timeout)
    }
}

pub(crate) fn limit(field: &str, limit: Option<usize>) -> Result<(), ConfigError> {
    match limit {
        Some(0) => Err(ConfigError(format!(
            "{field} is 0, so no job would ever run: set it to at least 1, or to none \
             (\"unlimited\") for no limit"
        ))),
        _ => Ok(()),
    }
}

pub(crate) fn timeout(field: &str, value: Duration) -> Result<(), ConfigError> {
    if value <= MAX_TIMEOUT {
        return Ok(());
    }
    Err(ConfigError(format!(
        "{field} is {value:?}, and the longest is 365 days: set it to how long a shutdown may \
         really take"
    )))
}

pub(crate) fn run_timeout(value: Duration) -> Result<(), ConfigError> {
    if value.is_zero() {
        return Err(ConfigError(
            "the job's timeout is 0, so it would fail before it ran: set how long it may run, or \
             leave the timeout out"
                .into(),
        ));
    }
    if value > MAX_TIMEOUT {
        return Err(ConfigError(format!(
            "the job's timeout is {value:?}, and the longest is 365 days: set it to how long the job \
             may run, or leave the timeout out for none"
        )));
    }
    Ok(())
}

/// A setting that makes no sense. The text names the setting, its value and the cure.
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

    /// What a file may say, before it is checked.
    #[derive(Deserialize)]
    #[serde(default, deny_unknown_fields)]
    pub(super) struct Fields {
        #[serde(deserialize_with = "limit")]
        limit: Option<usize>,
        #[serde(deserialize_with = "pending_limit")]
        pending_limit: Option<usize>,
        #[serde(deserialize_with = "limit_per_key")]
        limit_per_key: Option<usize>,
        #[serde(deserialize_with = "close_timeout")]
        close_timeout: Duration,
        #[serde(deserialize_with = "wait_timeout")]
        wait_timeout: Duration,
    }

    // Not every format says at which field an error came up.
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
        limit_per_key: Option<usize> = count;
        close_timeout: Duration = duration;
        wait_timeout: Duration = duration;
    }

    impl Default for Fields {
        fn default() -> Self {
            let SchedulerConfig {
                limit,
                pending_limit,
                limit_per_key,
                close_timeout,
                wait_timeout,
            } = SchedulerConfig::default();
            Self { limit, pending_limit, limit_per_key, close_timeout, wait_timeout }
        }
    }

    impl TryFrom<Fields> for SchedulerConfig {
        type Error = ConfigError;

        fn try_from(fields: Fields) -> Result<Self, ConfigError> {
            let Fields { limit, pending_limit, limit_per_key, close_timeout, wait_timeout } =
                fields;
            let config = Self { limit, pending_limit, limit_per_key, close_timeout, wait_timeout };
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
}
