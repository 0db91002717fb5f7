//! YAML: the same records as JSON, one document or a stream of documents.

use std::io::Write;

use serde::Serialize;

use crate::error::CliError;

/// Writes one document; in a stream, `---` sets it off from what precedes.
///
/// # Errors
/// If the stream cannot be written to.
pub fn document(
    out: &mut dyn Write,
    value: &impl Serialize,
    in_stream: bool,
) -> Result<(), CliError> {
    let mut text = serde_saphyr::to_string(value)
        .map_err(|error| CliError::Encode { format: "yaml", cause: error.to_string() })?;
    if !text.ends_with('\n') {
        text.push('\n');
    }
    if in_stream {
        out.write_all(b"---\n")?;
    }
    Ok(out.write_all(text.as_bytes())?)
}
