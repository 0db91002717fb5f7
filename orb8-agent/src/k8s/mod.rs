//! Who is who: what the Kubernetes API tells, and the one place that says who an endpoint is.

mod addresses;
pub mod model;
mod owners;
pub mod registry;
pub mod services;
pub mod status;
