//! Comma-separated values as RFC 4180 has them, with plain numbers; lists are joined by `|`.

use std::io::Write;

use orb8_util::text::printable;
use serde::Serialize;
use serde_json::Value;

use super::fields;
use crate::error::CliError;

/// Writes the header line.
///
/// # Errors
/// If the stream cannot be written to.
pub fn header(out: &mut dyn Write, columns: &[String]) -> Result<(), CliError> {
    record(out, columns.iter().map(String::as_str))
}

/// Writes one record: the values at the paths that `columns` name.
///
/// # Errors
/// If the stream cannot be written to.
pub fn row(out: &mut dyn Write, columns: &[String], value: &Value) -> Result<(), CliError> {
    let cells: Vec<String> = columns.iter().map(|path| plain(fields::at(value, path))).collect();
    record(out, cells.iter().map(String::as_str))
}

/// Writes all of what has the same keys: a line of these unless `no_headers`, and a record each. The keys
/// are those of `like`, if there may be no row.
///
/// # Errors
/// If a row cannot be encoded, or the stream cannot be written to.
pub fn rows<T: Serialize>(
    out: &mut dyn Write,
    no_headers: bool,
    like: Option<&T>,
    rows: &[T],
) -> Result<(), CliError> {
    let value = |row: &T| {
        serde_json::to_value(row)
            .map_err(|error| CliError::Encode { format: "csv", cause: error.to_string() })
    };
    let like = like.or(rows.first()).map(value).transpose()?.unwrap_or_default();
    let columns: Vec<String> =
        like.as_object().into_iter().flatten().map(|(key, _)| key.clone()).collect();
    if !no_headers {
        header(out, &columns)?;
    }
    rows.iter().try_for_each(|one| row(out, &columns, &value(one)?))
}

/// One cell: text without control characters, plain numbers, nothing for what is not known.
#[must_use]
pub fn plain(value: &Value) -> String {
    match value {
        Value::Null => String::new(),
        Value::String(text) => printable(text).into_owned(),
        Value::Array(items) => items.iter().map(plain).collect::<Vec<_>>().join("|"),
        Value::Bool(_) | Value::Number(_) => value.to_string(),
        Value::Object(_) => printable(&value.to_string()).into_owned(),
    }
}

fn record<'a>(out: &mut dyn Write, cells: impl Iterator<Item = &'a str>) -> Result<(), CliError> {
    let mut line = csv::WriterBuilder::new().from_writer(Vec::new());
    let failed = |cause: String| CliError::Encode { format: "csv", cause };
    line.write_record(cells).map_err(|error| failed(error.to_string()))?;
    let bytes = line.into_inner().map_err(|error| failed(error.to_string()))?;
    Ok(out.write_all(&bytes)?)
}
