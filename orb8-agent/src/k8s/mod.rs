//! Who is who: what the Kubernetes API tells, and the one place that says who an endpoint is.

pub mod model;
