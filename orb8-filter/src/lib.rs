//! Which flows a `FlowFilter` means: the one evaluator, compiled once, used by agents over their rows
//! and by clients over saved flows. Does no input or output, knows no table and no terminal, and
//! allocates nothing while it evaluates. Held to `tests/fixtures/filters.txt`.
//!
//! The rules:
//! - All conditions must hold; no conditions hold for every flow.
//! - A condition holds if the field's value is among the listed ones. `negate` is plain logic: the
//!   condition holds exactly where it would not. So a field whose value is not known never holds a
//!   condition and always holds a negated one.
//! - A condition without a field, without values or with a value that cannot be read is an error,
//!   never ignored: a newer client may ask for what this side does not know.
//! - Conditions on an end hold at the side asked for; side `either` needs one of the ends, hence
//!   negated neither. `process` and `cgroup` are always of either end.
//! - `ip`: an address or prefix; IPv4 and IPv6 never match each other, also not as `::ffff:a.b.c.d`.
//!   `port`: only flows of TCP, UDP and SCTP have ports, and later fragments do not, so that neither
//!   matches any range, not even one from 0.
//! - Words (`direction`, `scope`, `state`, `plane`, `attribution`, `kind`, `verdict`) in any case; a
//!   protocol also by number.
//! - `interface`: shell globs (`*`, `?`, `[ab]`, `{eth,ens}*`) over the whole name, in its case.
//! - `process`: the whole name (comm) of a process, in its case; the kernel keeps 15 bytes of a name,
//!   so only those of a longer value are compared.
//! - `cgroup`: a prefix, by character, of a cgroup's path; a leading `/` is optional.
//! - Names of Kubernetes (`namespace`, `workload`, `service`, `node`, `zone`, `container`) are whole
//!   and in their case; `pod` is a prefix. `workload` with one slash may be `namespace/name` or
//!   `kind/name`, and means both.
//! - `selector`: as `kubectl -l` reads it; holds for no end whose labels are not known.
//! - `ip_version`: 4 or 6, that of the source address.
#![forbid(unsafe_code)]

mod compile;
mod error;
mod filter;
mod interface;
mod message;
mod names;
mod selector;
mod view;

pub use error::FilterError;
pub use filter::{Filter, Required};
pub use message::has_ports;
pub use selector::Selector;
pub use view::{End, EndView, FlowView, LabelView, Unlabelled};

/// The values of `direction`.
pub const DIRECTIONS: [&str; 2] = ["ingress", "egress"];
/// The values of `scope`.
pub const SCOPES: [&str; 4] = ["local", "unclaimed", "forwarded", "tunnel"];
/// The values of `state`.
pub const STATES: [&str; 2] = ["active", "ended"];
/// The values of `plane`.
pub const PLANES: [&str; 2] = ["socket", "tc"];
/// The values of `kind`.
pub const KINDS: [&str; 6] = ["pod", "service", "node", "process", "external", "unknown"];
/// The values of `attribution`.
pub const ATTRIBUTIONS: [&str; 6] =
    ["cgroup", "interface", "address", "address_reused", "masqueraded", "none"];
/// The values of `verdict`.
pub const VERDICTS: [&str; 3] = ["ok", "no_endpoints", "unknown"];
