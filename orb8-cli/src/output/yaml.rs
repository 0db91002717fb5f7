//! YAML: the same records as JSON, one document or a stream of documents.
//!
//! As in JSON, what a terminal would act upon is escaped inside strings.

use std::fmt::Write as _;
use std::io::Write;

use orb8_util::text::is_printable;
use serde::{Serialize, Serializer};
use serde_json::Value;
use serde_saphyr::DoubleQuoted;

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
    let failed = |cause: String| CliError::Encode { format: "yaml", cause };
    let value = serde_json::to_value(value).map_err(|error| failed(error.to_string()))?;
    let text =
        serde_saphyr::to_string(&Quoted(&value)).map_err(|error| failed(error.to_string()))?;
    if in_stream {
        out.write_all(b"---\n")?;
    }
    out.write_all(escaped(&text).as_bytes())?;
    if !text.ends_with('\n') {
        out.write_all(b"\n")?;
    }
    Ok(())
}

/// A value whose strings are quoted where they hold what must be escaped: only between double
/// quotes does YAML know escapes.
struct Quoted<'a>(&'a Value);

impl Serialize for Quoted<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        match self.0 {
            Value::String(text) => QuotedText(text).serialize(serializer),
            Value::Array(items) => serializer.collect_seq(items.iter().map(Quoted)),
            Value::Object(object) => {
                let entries = object.iter();
                serializer.collect_map(entries.map(|(key, value)| (QuotedText(key), Quoted(value))))
            }
            other => other.serialize(serializer),
        }
    }
}

struct QuotedText<'a>(&'a str);

impl Serialize for QuotedText<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        if is_printable(self.0) {
            self.0.serialize(serializer)
        } else {
            DoubleQuoted(self.0).serialize(serializer)
        }
    }
}

/// Escapes what the serializer, which knows of control characters only, leaves in quoted strings.
fn escaped(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for c in text.chars() {
        if c == '\n' || is_printable(c.encode_utf8(&mut [0; 4])) {
            out.push(c);
        } else {
            write!(out, "\\u{:04X}", u32::from(c)).expect("writing to a String cannot fail");
        }
    }
    out
}
