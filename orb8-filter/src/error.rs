//! Why a filter cannot be evaluated: the value and the next step, for whoever wrote it.

use orb8_util::net::PrefixError;
use orb8_util::protocol::ProtocolError;

/// A filter cannot be evaluated.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FilterError {
    /// The field is unset, or newer than this version.
    #[error("a filter condition has no field that this version knows, upgrade orb8")]
    UnknownField,
    /// The side is newer than this version.
    #[error("filter condition has the unknown side {0}, upgrade orb8")]
    UnknownSide(i32),
    /// No values are listed.
    #[error("filter condition on {0} lists no values, give at least one")]
    Empty(&'static str),
    /// Not an address or prefix.
    #[error(transparent)]
    Prefix(#[from] PrefixError),
    /// Not a protocol.
    #[error(transparent)]
    Protocol(#[from] ProtocolError),
    /// Not a range of ports.
    #[error("ports {0} to {1} are no range, give a first that is not above the last, to 65535")]
    Ports(u32, u32),
    /// Not a glob.
    #[error("{0:?} is not an interface glob, give one such as eth0, ens* or wlp[0-9]s0: {1}")]
    Glob(String, String),
    /// A word that the field does not have.
    #[error("unknown {field} {value:?}, use {allowed}")]
    Word {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// The words that it has.
        allowed: String,
    },
    /// Neither 4 nor 6.
    #[error("unknown IP version {0}, use 4 or 6")]
    IpVersion(u32),
    /// A name that nothing can have.
    #[error("{value:?} is not a {field}, give {form}")]
    Name {
        /// The field.
        field: &'static str,
        /// What was given.
        value: String,
        /// What it takes.
        form: &'static str,
    },
    /// Not a label selector.
    #[error(
        "{value:?} is not a label selector, give one such as app=web, tier!=db, env in (a,b), app or !app: {reason}"
    )]
    Selector {
        /// What was given.
        value: String,
        /// What is wrong with it.
        reason: String,
    },
}
