//! Who is who: what the Kubernetes API tells, and the one place that says who an endpoint is.

mod addresses;
pub mod client;
mod connector;
pub mod identity;
pub mod model;
mod owners;
pub mod registry;
pub mod services;
pub mod status;
pub mod watch;

use clap::ValueEnum;

/// Whether the Kubernetes API is asked.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Mode {
    /// If there is a kubeconfig, or this is a pod with a service account.
    Auto,
    /// Always; a missing configuration is an error.
    On,
    /// Never.
    Off,
}

impl Mode {
    /// The word in the settings.
    #[must_use]
    pub const fn word(self) -> &'static str {
        match self {
            Self::Auto => "auto",
            Self::On => "on",
            Self::Off => "off",
        }
    }
}

/// Where the Kubernetes API is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KubernetesSettings {
    /// Whether it is asked.
    pub mode: Mode,
    /// Paths of kubeconfigs with colons between; empty: the pod's own service account.
    pub kubeconfig: String,
}
