//! How rows and documents are written: the only place that knows formats, widths and colours.
//!
//! Knows nothing of flows or agents; features hand over cells and serializable records.

pub mod csv;
pub mod fields;
pub mod json;
pub mod table;
pub mod yaml;

use clap::ValueEnum;

/// The output formats.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns for people, human units
    Table,
    /// As table, with more columns
    Wide,
    /// One document; streams one object a line
    Json,
    /// One object a line; `flows --file` reads it back
    Jsonl,
    /// As json; streams one document an event
    Yaml,
    /// Comma-separated, plain numbers
    Csv,
}

impl Format {
    /// True for the formats that people read.
    #[must_use]
    pub fn is_table(self) -> bool {
        matches!(self, Self::Table | Self::Wide)
    }
}
