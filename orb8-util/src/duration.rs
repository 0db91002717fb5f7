//! Durations as people type and read them: `30s`, `5m`, `1h30m`, `1.5s`.
//!
//! Works on exact nanoseconds, never on floats.

use std::time::Duration;

/// Units, longest first, with their nanoseconds.
const UNITS: [(&str, u128); 8] = [
    ("w", 7 * 24 * 3600 * 1_000_000_000),
    ("d", 24 * 3600 * 1_000_000_000),
    ("h", 3600 * 1_000_000_000),
    ("m", 60 * 1_000_000_000),
    ("s", 1_000_000_000),
    ("ms", 1_000_000),
    ("us", 1000),
    ("ns", 1),
];

/// A text is not a duration.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DurationError {
    /// The text is empty.
    #[error("a duration is empty, give one such as 30s, 5m or 1h30m")]
    Empty,
    /// A number without a unit.
    #[error("duration {0:?} lacks a unit, add one of ns us ms s m h d w, such as 30s, 5m or 1h30m")]
    NoUnit(String),
    /// A unit that is not known.
    #[error("duration {text:?} has the unknown unit {unit:?}, use ns us ms s m h d w")]
    UnknownUnit {
        /// The whole text.
        text: String,
        /// The part that is not a unit.
        unit: String,
    },
    /// Something else than numbers and units, or units that do not go from long to short.
    #[error(
        "{0:?} is not a duration, give numbers with units from long to short, such as 30s, 5m or 1h30m"
    )]
    Malformed(String),
    /// More than 2^64 seconds.
    #[error("duration {0:?} is too long, give a shorter one")]
    TooLong(String),
}

/// Reads `30s`, `1h30m`, `1.5s`, `2d`. Units go from long to short, each at most once; digits
/// below a nanosecond are cut off.
///
/// # Errors
/// What is wrong with `text` and which forms are accepted.
pub fn parse(text: &str) -> Result<Duration, DurationError> {
    let text = text.trim();
    if text.is_empty() {
        return Err(DurationError::Empty);
    }
    let malformed = || DurationError::Malformed(text.to_owned());
    let too_long = || DurationError::TooLong(text.to_owned());
    let mut rest = text;
    let mut next_unit = 0;
    let mut total: u128 = 0;
    while !rest.is_empty() {
        let (number, after) = take_while(rest, |c| c.is_ascii_digit() || c == '.');
        let (unit, after) = take_while(after, |c| !(c.is_ascii_digit() || c == '.'));
        if number.is_empty() {
            return Err(malformed());
        }
        if unit.is_empty() {
            return Err(DurationError::NoUnit(text.to_owned()));
        }
        let index = UNITS.iter().position(|(name, _)| *name == unit).ok_or_else(|| {
            DurationError::UnknownUnit { text: text.to_owned(), unit: unit.to_owned() }
        })?;
        if index < next_unit {
            return Err(malformed());
        }
        next_unit = index + 1;
        let nanos = decimal(number, UNITS[index].1).ok_or_else(malformed)?.ok_or_else(too_long)?;
        total = total.checked_add(nanos).ok_or_else(too_long)?;
        rest = after;
    }
    from_nanos(total).ok_or_else(too_long)
}

fn take_while(text: &str, accept: impl Fn(char) -> bool) -> (&str, &str) {
    text.split_at(text.find(|c| !accept(c)).unwrap_or(text.len()))
}

fn from_nanos(total: u128) -> Option<Duration> {
    let seconds = u64::try_from(total / 1_000_000_000).ok()?;
    let nanos = u32::try_from(total % 1_000_000_000).ok()?;
    Some(Duration::new(seconds, nanos))
}

/// `None` if it is no decimal number, `Some(None)` if it does not fit.
fn decimal(number: &str, unit: u128) -> Option<Option<u128>> {
    let (whole, fraction) = match number.split_once('.') {
        Some((whole, fraction)) if fraction.bytes().all(|b| b.is_ascii_digit()) => {
            (whole, fraction)
        }
        Some(_) => return None,
        None => (number, ""),
    };
    if whole.is_empty() || number.ends_with('.') {
        return None;
    }
    let mut nanos = whole.parse::<u128>().ok().and_then(|whole| whole.checked_mul(unit));
    let mut place = unit;
    for digit in fraction.bytes() {
        place /= 10;
        nanos = nanos.and_then(|sum| sum.checked_add(place * u128::from(digit - b'0')));
    }
    Some(nanos)
}

/// Writes a duration exactly, so that [`parse`] gives it back: `1h30m`, `1s500ms`, `0s`.
#[must_use]
pub fn exact(duration: Duration) -> String {
    units_of(duration, usize::MAX)
}

/// Writes at most the two longest units, cutting off the rest: `2h30m`, `3d4h`, `45s`, `850ms`.
#[must_use]
pub fn short(duration: Duration) -> String {
    units_of(duration, 2)
}

fn units_of(duration: Duration, most: usize) -> String {
    let mut rest = duration.as_nanos();
    let mut text = String::new();
    let mut first = None;
    // Weeks are read but not written: days are easier to compare.
    for (index, (name, nanos)) in UNITS.iter().enumerate().skip(1) {
        let count = rest / nanos;
        rest %= nanos;
        if count == 0 {
            continue;
        }
        // `3d` and then minutes would read as more precise than it is.
        if index - *first.get_or_insert(index) >= most {
            break;
        }
        text.push_str(&format!("{count}{name}"));
        // Below a minute one unit says enough for a glance.
        if most == 2 && index >= 4 {
            break;
        }
    }
    if text.is_empty() { "0s".to_owned() } else { text }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn durations_are_read_with_units_from_long_to_short() {
        for (text, expected) in [
            ("30s", Duration::from_secs(30)),
            ("5m", Duration::from_secs(300)),
            ("1h30m", Duration::from_secs(5400)),
            ("2d", Duration::from_secs(172_800)),
            ("1w", Duration::from_secs(604_800)),
            ("250ms", Duration::from_millis(250)),
            ("1.5s", Duration::from_millis(1500)),
            ("0.000000001s", Duration::from_nanos(1)),
            ("1m0.5s", Duration::from_millis(60_500)),
            ("7us8ns", Duration::from_nanos(7008)),
            ("0s", Duration::ZERO),
            (" 30s ", Duration::from_secs(30)),
        ] {
            assert_eq!(parse(text), Ok(expected), "{text}");
        }
    }

    #[test]
    fn what_is_no_duration_is_refused_with_the_reason() {
        for (text, message) in [
            ("", "a duration is empty, give one such as 30s, 5m or 1h30m"),
            (
                "30",
                "duration \"30\" lacks a unit, add one of ns us ms s m h d w, such as 30s, 5m or 1h30m",
            ),
            ("5 m", "duration \"5 m\" has the unknown unit \" m\", use ns us ms s m h d w"),
            ("5min", "duration \"5min\" has the unknown unit \"min\", use ns us ms s m h d w"),
            (
                "-5m",
                "\"-5m\" is not a duration, give numbers with units from long to short, such as 30s, 5m or 1h30m",
            ),
            (
                "30m1h",
                "\"30m1h\" is not a duration, give numbers with units from long to short, such as 30s, 5m or 1h30m",
            ),
            (
                "1m1m",
                "\"1m1m\" is not a duration, give numbers with units from long to short, such as 30s, 5m or 1h30m",
            ),
            (
                "1.2.3s",
                "\"1.2.3s\" is not a duration, give numbers with units from long to short, such as 30s, 5m or 1h30m",
            ),
            (
                ".5s",
                "\".5s\" is not a duration, give numbers with units from long to short, such as 30s, 5m or 1h30m",
            ),
            (
                "99999999999999999999999w",
                "duration \"99999999999999999999999w\" is too long, give a shorter one",
            ),
        ] {
            assert_eq!(parse(text).unwrap_err().to_string(), message, "{text}");
        }
    }

    #[test]
    fn short_keeps_two_neighbouring_units() {
        for (duration, text) in [
            (Duration::ZERO, "0s"),
            (Duration::from_nanos(7), "7ns"),
            (Duration::from_millis(850), "850ms"),
            (Duration::from_millis(1850), "1s"),
            (Duration::from_secs(45), "45s"),
            (Duration::from_secs(61), "1m1s"),
            (Duration::from_secs(3600), "1h"),
            (Duration::from_secs(3601), "1h"),
            (Duration::from_secs(9000), "2h30m"),
            (Duration::from_secs(3 * 86_400 + 4 * 3600 + 59), "3d4h"),
            (Duration::from_secs(15 * 86_400), "15d"),
        ] {
            assert_eq!(short(duration), text, "{duration:?}");
        }
    }

    proptest! {
        #[test]
        fn exact_text_reads_back_as_the_same_duration(
            seconds: u64, nanos in 0u32..1_000_000_000, shift in 0u32..64,
        ) {
            let duration = Duration::new(seconds >> shift, nanos);
            prop_assert_eq!(parse(&exact(duration)), Ok(duration));
        }

        #[test]
        fn short_text_is_a_duration_that_is_not_longer(seconds: u64, nanos in 0u32..1_000_000_000) {
            let duration = Duration::new(seconds, nanos);
            prop_assert!(parse(&short(duration)).unwrap() <= duration);
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", numbers in "[0-9.]{0,50}[a-z]{0,3}") {
            drop(parse(&text));
            drop(parse(&numbers));
        }
    }
}
