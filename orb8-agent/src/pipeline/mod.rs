//! The stages between a source and an exporter.
pub mod source;
