//! A Kubernetes API server that holds what a test puts into it, and speaks what watchers need:
//! HTTPS, bearer tokens, lists in pages, watches with bookmarks, 410 Gone and every way to fail.
//!
//! | module | content |
//! |---|---|
//! | [`store`] | objects and their history by resource version |
//! | [`object`] | builders of pods, nodes, Services and their kin |
//! | [`pod`] | a pod at each stage of its life |
//! | [`request`] | paths and queries of the API |
//! | [`answer`] | what a request gets: lists, objects, errors |
//! | [`stream`] | watches |
//! | [`fault`] | switches that make it slow, silent, forbidden or gone |
//! | [`count`] | who asked for what, how often |
//!
//! Answers follow recordings of a Kubernetes 1.36 API server. It runs on a thread of its own and
//! ends with its handle; its only file, a kubeconfig, is removed with it, or by the next start.

pub mod answer;
pub mod count;
pub mod fault;
pub mod object;
pub mod pod;
pub mod request;
mod serve;
mod server;
pub mod store;
pub mod stream;
mod tls;
mod token;

pub use server::ApiServer;
