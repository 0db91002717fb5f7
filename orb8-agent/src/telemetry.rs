//! The log: to stderr, filtered by RUST_LOG, in colour only at a terminal.

use std::io::{IsTerminal, stderr};

use tracing_subscriber::EnvFilter;
use tracing_subscriber::filter::ParseError;

/// The filter cannot be understood.
#[derive(Debug, thiserror::Error)]
pub enum FilterError {
    /// Its syntax is wrong.
    #[error(
        "RUST_LOG {filter:?} is no log filter, give one such as info or orb8_agent=debug: {source}"
    )]
    Syntax {
        /// What was given.
        filter: String,
        /// What is wrong.
        source: ParseError,
    },
    /// It has letters that no module name has.
    #[error("RUST_LOG {0:?} is no log filter, give one such as info or orb8_agent=debug")]
    NotAscii(String),
}

/// The module of the Kubernetes client.
const KUBE: &str = "kube_client";

/// Checks a filter.
///
/// # Errors
/// See [`FilterError`].
pub fn filter(text: &str) -> Result<EnvFilter, FilterError> {
    // tracing-subscriber 0.3.23 panics on some texts that are not ASCII (` a\u{1a60}=`).
    if !text.is_ascii() {
        return Err(FilterError::NotAscii(text.to_owned()));
    }
    let bad = |source| FilterError::Syntax { filter: text.to_owned(), source };
    let filter = EnvFilter::builder().parse(text).map_err(bad)?;
    // It logs each failed request as an error; the watchers tell the same, once.
    let quiet = (!text.contains(KUBE)).then(|| format!("{KUBE}=off").parse()).transpose();
    Ok(quiet.map_err(bad)?.into_iter().fold(filter, EnvFilter::add_directive))
}

/// Starts logging; a second call changes nothing.
pub fn init(filter: EnvFilter) {
    tracing_subscriber::fmt()
        .compact()
        .with_env_filter(filter)
        .with_writer(stderr)
        .with_ansi(stderr().is_terminal())
        .try_init()
        .ok();
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn filters_are_checked() {
        for good in ["info", "orb8_agent=debug,warn", ""] {
            assert!(filter(good).is_ok(), "{good}");
        }
        assert!(filter(" a\u{1a60}=").is_err());
        assert!(filter("info").unwrap().to_string().contains("kube_client=off"));
        assert!(!filter("kube_client=debug").unwrap().to_string().contains("off"));
        let error = filter("orb8=loud").unwrap_err().to_string();
        assert!(error.starts_with("RUST_LOG \"orb8=loud\" is no log filter"), "{error}");
    }
}
