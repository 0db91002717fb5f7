//! What the values of settings may be, and what is said of those that may not.

use std::fmt;
use std::path::PathBuf;

use globset::Glob;

use super::Interfaces;
use crate::telemetry;

const KIB: u32 = 1 << 10;
const MIB: u32 = 1 << 20;
pub(super) const RING_BUFFER: std::ops::RangeInclusive<u32> = 64 * KIB..=32 * MIB;

/// A part of a whole, in millionths.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share(u32);

impl Share {
    /// 0 to 1.
    #[must_use]
    pub fn part(self) -> f64 {
        f64::from(self.0) / 1e6
    }
}

impl fmt::Display for Share {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}%", f64::from(self.0) / 1e4)
    }
}

/// Percent, from a number of millionths on; none if it is not one, or more than the whole.
fn share(text: &str, least: u32) -> Option<Share> {
    let percent: f64 = text.strip_suffix('%').unwrap_or(text).trim_end().parse().ok()?;
    let millionths = (percent * 1e4).round();
    if !(f64::from(least)..=1e6).contains(&millionths) {
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a million at most")]
    Some(Share(millionths as u32))
}

pub(super) fn cpu_budget(text: &str) -> Result<Share, String> {
    share(text, 100).ok_or_else(|| "give 0.01% to 100%".to_owned())
}

pub(super) fn sampling_threshold(text: &str) -> Result<Share, String> {
    share(text, 10_000).ok_or_else(|| "give 1% to 100%".to_owned())
}

/// A number of bytes, also with a unit; `None` if it is none, or above 4 GiB.
fn size(text: &str) -> Option<u32> {
    let digits = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let unit = match &text[digits.len()..] {
        "" => Some(1),
        "KiB" | "K" | "k" => Some(KIB),
        "MiB" | "M" | "m" => Some(MIB),
        _ => None,
    };
    digits.parse::<u32>().ok().zip(unit).and_then(|(count, unit)| count.checked_mul(unit))
}

pub(super) fn memory_budget(text: &str) -> Result<u32, String> {
    match size(text) {
        Some(bytes) if bytes >= 32 * MIB => Ok(bytes),
        Some(_) | None => Err("give 32MiB to 4095MiB".to_owned()),
    }
}

pub(super) fn ring_buffer_size(text: &str) -> Result<u32, String> {
    match size(text) {
        Some(bytes) if RING_BUFFER.contains(&bytes) && bytes.is_power_of_two() => Ok(bytes),
        Some(bytes) if RING_BUFFER.contains(&bytes) => {
            let below = 1 << bytes.ilog2();
            Err(format!("{bytes} bytes are no power of two, use {below} or {}", below << 1))
        }
        Some(_) | None => Err("give 64KiB to 32MiB, a power of two".to_owned()),
    }
}

pub(super) fn interfaces(text: &str) -> Result<Interfaces, String> {
    if text == "auto" {
        return Ok(Interfaces::Auto);
    }
    let globs: Vec<_> = text.split(',').map(|glob| glob.trim().to_owned()).collect();
    for glob in &globs {
        if glob.is_empty() {
            return Err(
                "a name between commas is empty, give auto or globs such as eth0,wg*".to_owned()
            );
        }
        if let Err(error) = Glob::new(glob) {
            return Err(format!(
                "{glob:?} is no glob ({}), give one such as eth0 or wg*",
                error.kind()
            ));
        }
    }
    Ok(Interfaces::Globs(globs))
}

pub(super) fn directory(text: &str) -> Result<PathBuf, String> {
    let path = PathBuf::from(text);
    if path.is_dir() { Ok(path) } else { Err("there is no such directory".to_owned()) }
}

pub(super) fn node_name(text: &str) -> Result<String, String> {
    let printable = text.chars().all(|c| c.is_ascii_graphic());
    if text.is_empty() || text.len() > 253 || !printable {
        return Err("give 1 to 253 printable characters without spaces".to_owned());
    }
    Ok(text.to_owned())
}

pub(super) fn log_filter(text: &str) -> Result<String, String> {
    telemetry::filter(text).map(|_valid| text.to_owned()).map_err(|error| error.to_string())
}

pub(super) fn host_name() -> String {
    let name = rustix::system::uname().nodename().to_string_lossy().into_owned();
    if node_name(&name).is_ok() { name } else { "unknown".to_owned() }
}
