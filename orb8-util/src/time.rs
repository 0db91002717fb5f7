//! Points in time as people type and read them: RFC 3339, or how long ago.
//!
//! The present is always passed in; nothing here asks a clock.

use std::time::Duration;

use jiff::Timestamp;
use jiff::tz::TimeZone;

use crate::duration::{self, DurationError};

/// A point in time, absolute or relative to the present.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum When {
    /// Unix nanoseconds.
    At(i64),
    /// This long before the present.
    Ago(Duration),
}

/// A text is not a time.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimeError {
    /// Neither a time nor a duration.
    #[error(
        "{0:?} is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m for five minutes ago"
    )]
    Malformed(String),
    /// Looks like a duration but is none.
    #[error(transparent)]
    Duration(#[from] DurationError),
    /// Outside the years 1677 to 2262, which Unix nanoseconds can express.
    #[error("time {0:?} is outside the years 1678 to 2261, give one within")]
    OutOfRange(String),
}

impl When {
    /// Unix nanoseconds, given the present in Unix nanoseconds. Saturates at the ends of `i64`.
    #[must_use]
    pub fn resolve(self, now_ns: i64) -> i64 {
        match self {
            Self::At(time_ns) => time_ns,
            Self::Ago(duration) => {
                now_ns.saturating_sub(i64::try_from(duration.as_nanos()).unwrap_or(i64::MAX))
            }
        }
    }
}

/// Reads an RFC 3339 time with its offset (`2026-01-31T12:00:00Z`) or a duration, which means that
/// long ago (`5m`, `1h30m`).
///
/// # Errors
/// What is wrong with `text` and which forms are accepted.
pub fn parse(text: &str) -> Result<When, TimeError> {
    let text = text.trim();
    if let Ok(time) = text.parse::<Timestamp>() {
        return i64::try_from(time.as_nanosecond())
            .map(When::At)
            .map_err(|_range| TimeError::OutOfRange(text.to_owned()));
    }
    let duration_like = text.starts_with(|c: char| c.is_ascii_digit())
        && text.chars().all(|c| c.is_ascii_alphanumeric() || c == '.');
    match duration::parse(text) {
        Ok(duration) => Ok(When::Ago(duration)),
        Err(error) if duration_like => Err(error.into()),
        Err(_) => Err(TimeError::Malformed(text.to_owned())),
    }
}

/// RFC 3339 with milliseconds and the zone's offset: `2026-01-31T13:00:00.250+01:00`, in UTC with
/// `Z`. Cuts off what is below a millisecond.
#[must_use]
pub fn rfc3339(time_ns: i64, zone: &TimeZone) -> String {
    let Ok(time) = Timestamp::from_nanosecond(i128::from(time_ns)) else {
        return time_ns.to_string();
    };
    let zoned = time.to_zoned(zone.clone());
    let offset = if zoned.offset().is_zero() {
        "Z".to_owned()
    } else {
        format!("{}", zoned.strftime("%:z"))
    };
    format!("{}{offset}", zoned.strftime("%Y-%m-%dT%H:%M:%S%.3f"))
}

/// Time of day with milliseconds: `13:00:00.250`.
#[must_use]
pub fn clock(time_ns: i64, zone: &TimeZone) -> String {
    let Ok(time) = Timestamp::from_nanosecond(i128::from(time_ns)) else {
        return time_ns.to_string();
    };
    time.to_zoned(zone.clone()).strftime("%H:%M:%S%.3f").to_string()
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn times_are_absolute_or_relative() {
        for (text, expected) in [
            ("1970-01-01T00:00:01Z", When::At(1_000_000_000)),
            ("1970-01-01T01:00:00.5+01:00", When::At(500_000_000)),
            ("5m", When::Ago(Duration::from_secs(300))),
            (" 1h30m ", When::Ago(Duration::from_secs(5400))),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_time_is_refused_with_the_reason() {
        for (text, message) in [
            (
                "yesterday",
                "\"yesterday\" is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m for five minutes ago",
            ),
            (
                "2026-01-31T12:00:00",
                "\"2026-01-31T12:00:00\" is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m for five minutes ago",
            ),
            (
                "",
                "\"\" is neither a time such as 2026-01-31T12:00:00Z nor a duration such as 5m for five minutes ago",
            ),
            (
                "5",
                "duration \"5\" lacks a unit, add one of ns us ms s m h d w, such as 30s, 5m or 1h30m",
            ),
            (
                "3000-01-01T00:00:00Z",
                "time \"3000-01-01T00:00:00Z\" is outside the years 1678 to 2261, give one within",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn relative_times_count_back_from_the_present() {
        assert_eq!(When::Ago(Duration::from_nanos(5)).resolve(12), 7);
        assert_eq!(When::Ago(Duration::MAX).resolve(0), -i64::MAX);
        assert_eq!(When::At(3).resolve(12), 3);
    }

    #[test]
    fn times_are_written_in_the_given_zone() {
        let berlin = TimeZone::fixed(jiff::tz::offset(1));
        assert_eq!(rfc3339(250_000_000, &TimeZone::UTC), "1970-01-01T00:00:00.250Z");
        assert_eq!(rfc3339(250_999_999, &berlin), "1970-01-01T01:00:00.250+01:00");
        assert_eq!(clock(250_000_000, &berlin), "01:00:00.250");
    }

    proptest! {
        #[test]
        fn written_times_read_back_to_the_millisecond(time_ns: i64, hours in -12i8..13) {
            let text = rfc3339(time_ns, &TimeZone::fixed(jiff::tz::offset(hours)));
            let When::At(read) = parse(&text).unwrap() else { panic!("{text} is relative") };
            prop_assert_eq!(read.div_euclid(1_000_000), time_ns.div_euclid(1_000_000));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", now: i64) {
            if let Ok(when) = parse(&text) {
                prop_assert!(when.resolve(now) <= now || matches!(when, When::At(_)));
            }
        }

        #[test]
        fn no_time_panics(time_ns: i64) {
            prop_assert_eq!(clock(time_ns, &TimeZone::UTC).len(), 12);
        }
    }
}
