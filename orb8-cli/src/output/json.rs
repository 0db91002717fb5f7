//! JSON: one indented document, or one object a line.

use std::io::Write;

use serde::Serialize;

use crate::error::CliError;

/// Writes one indented document and ends its line.
///
/// # Errors
/// If the stream cannot be written to.
pub fn document(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CliError> {
    serde_json::to_writer_pretty(&mut *out, value).map_err(failed)?;
    Ok(out.write_all(b"\n")?)
}

/// Writes one object on a line of its own.
///
/// # Errors
/// If the stream cannot be written to.
pub fn line(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CliError> {
    serde_json::to_writer(&mut *out, value).map_err(failed)?;
    Ok(out.write_all(b"\n")?)
}

fn failed(error: serde_json::Error) -> CliError {
    if error.is_io() {
        return CliError::Output(error.into());
    }
    CliError::Encode { format: "json", cause: error.to_string() }
}
