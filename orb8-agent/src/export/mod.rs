//! Where records go: gRPC and the log. Receives features as trait objects and knows none.

pub mod feed;
pub mod grpc;
pub mod hub;
pub mod log;
pub mod wire;
