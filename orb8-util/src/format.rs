//! Numbers for people: bytes in IEC units, packets and rates in decimal steps.
//!
//! Never used where a program reads: JSON and CSV carry the plain numbers.

const IEC: [&str; 7] = ["B", "KiB", "MiB", "GiB", "TiB", "PiB", "EiB"];
const SI: [&str; 7] = ["", "k", "M", "G", "T", "P", "E"];

/// Bytes in IEC units with one decimal: `512B`, `1.5KiB`, `16.0EiB`.
#[must_use]
pub fn bytes(count: u64) -> String {
    scaled(count, 1024, &IEC)
}

/// A count in steps of a thousand with one decimal: `999`, `12.3k`, `4.0M`.
#[must_use]
pub fn count(count: u64) -> String {
    scaled(count, 1000, &SI)
}

/// Bytes per second: `1.5KiB/s`. What is not a number or negative reads as zero.
#[must_use]
pub fn byte_rate(bytes_per_second: f64) -> String {
    bytes(whole(bytes_per_second)) + "/s"
}

/// Packets per second: `12.3k/s`, below ten with one decimal (`0.3/s`). What is not a number or
/// negative reads as zero.
#[must_use]
pub fn packet_rate(packets_per_second: f64) -> String {
    if packets_per_second > 0.0 && packets_per_second < 9.95 {
        return format!("{packets_per_second:.1}/s");
    }
    count(whole(packets_per_second)) + "/s"
}

#[allow(
    clippy::cast_possible_truncation,
    clippy::cast_sign_loss,
    reason = "a float-to-integer cast saturates and takes NaN to zero, which is what is promised"
)]
fn whole(rate: f64) -> u64 {
    rate.round() as u64
}

/// Integer arithmetic, so that the largest `u64` keeps its digits; rounds half up.
fn scaled(count: u64, step: u128, units: &[&str; 7]) -> String {
    let count = u128::from(count);
    if count < step {
        return format!("{count}{}", units[0]);
    }
    let mut size = step;
    let mut unit = 1;
    loop {
        let tenths = (count * 10 + size / 2) / size;
        // 1023.96 KiB rounds to 1024.0 KiB, which is 1.0 MiB.
        if tenths < step * 10 || unit + 1 == units.len() {
            return format!("{}.{}{}", tenths / 10, tenths % 10, units[unit]);
        }
        size *= step;
        unit += 1;
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn bytes_are_written_in_iec_units() {
        for (count, text) in [
            (0, "0B"),
            (1, "1B"),
            (1023, "1023B"),
            (1024, "1.0KiB"),
            (1536, "1.5KiB"),
            (1_048_524, "1023.9KiB"),
            (1_048_525, "1.0MiB"),
            (1_048_576, "1.0MiB"),
            (u64::MAX, "16.0EiB"),
        ] {
            assert_eq!(bytes(count), text, "{count}");
        }
    }

    #[test]
    fn counts_are_written_in_decimal_steps() {
        for (number, text) in [
            (0, "0"),
            (999, "999"),
            (1000, "1.0k"),
            (12_345, "12.3k"),
            (999_949, "999.9k"),
            (999_950, "1.0M"),
            (u64::MAX, "18.4E"),
        ] {
            assert_eq!(count(number), text, "{number}");
        }
    }

    #[test]
    fn rates_carry_their_unit_and_survive_odd_floats() {
        assert_eq!(byte_rate(0.0), "0B/s");
        assert_eq!(byte_rate(1536.0), "1.5KiB/s");
        assert_eq!(byte_rate(f64::NAN), "0B/s");
        assert_eq!(byte_rate(-1.0), "0B/s");
        assert_eq!(byte_rate(f64::INFINITY), "16.0EiB/s");
        assert_eq!(packet_rate(0.26), "0.3/s");
        assert_eq!(packet_rate(9.96), "10/s");
        assert_eq!(packet_rate(12_345.0), "12.3k/s");
        assert_eq!(packet_rate(f64::NAN), "0/s");
    }

    /// The number that a text of `scaled` stands for.
    fn value(text: &str, step: f64, units: &[&str; 7]) -> f64 {
        let split = text.find(|c: char| c.is_ascii_alphabetic()).unwrap_or(text.len());
        let (number, unit) = text.split_at(split);
        let power = units.iter().position(|known| *known == unit).unwrap();
        number.parse::<f64>().unwrap() * step.powi(i32::try_from(power).unwrap())
    }

    proptest! {
        #[test]
        fn the_text_is_within_five_percent_of_the_number(number: u64, shift in 0u32..64) {
            let number = number >> shift;
            #[allow(clippy::cast_precision_loss, reason = "compared within five percent")]
            let exact = number as f64;
            for shown in [value(&bytes(number), 1024.0, &IEC), value(&count(number), 1000.0, &SI)] {
                prop_assert!((shown - exact).abs() <= exact * 0.05, "{number} shown as {shown}");
            }
        }

        #[test]
        fn a_larger_number_never_reads_smaller(a: u64, b: u64, shift in 0u32..64) {
            let (a, b) = (a >> shift, b >> shift);
            let (low, high) = (a.min(b), a.max(b));
            prop_assert!(
                value(&bytes(low), 1024.0, &IEC) <= value(&bytes(high), 1024.0, &IEC)
            );
        }

        #[test]
        fn no_float_panics(rate: f64) {
            prop_assert!(byte_rate(rate).ends_with("/s"));
            prop_assert!(packet_rate(rate).ends_with("/s"));
        }
    }
}
