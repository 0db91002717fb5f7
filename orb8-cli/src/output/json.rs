//! JSON: one indented document, or one object a line.
//!
//! What a terminal would act upon is escaped inside strings, beyond what JSON asks for; the value of
//! a string stays the same.

use std::io::{self, Write};

use orb8_util::text::is_printable;
use serde::Serialize;
use serde_json::Serializer;
use serde_json::ser::{CharEscape, CompactFormatter, Formatter, PrettyFormatter};

use crate::error::CliError;

/// Writes one indented document and ends its line.
///
/// # Errors
/// If the stream cannot be written to.
pub fn document(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CliError> {
    write(out, value, Printable(PrettyFormatter::new()))
}

/// Writes one object on a line of its own.
///
/// # Errors
/// If the stream cannot be written to.
pub fn line(out: &mut dyn Write, value: &impl Serialize) -> Result<(), CliError> {
    write(out, value, Printable(CompactFormatter))
}

fn write(
    out: &mut dyn Write,
    value: &impl Serialize,
    formatter: impl Formatter,
) -> Result<(), CliError> {
    value.serialize(&mut Serializer::with_formatter(&mut *out, formatter)).map_err(failed)?;
    Ok(out.write_all(b"\n")?)
}

fn failed(error: serde_json::Error) -> CliError {
    if error.is_io() {
        return CliError::Output(error.into());
    }
    CliError::Encode { format: "json", cause: error.to_string() }
}

/// Another formatter, with control characters and direction overrides escaped.
struct Printable<F>(F);

impl<F: Formatter> Formatter for Printable<F> {
    fn write_string_fragment<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        fragment: &str,
    ) -> io::Result<()> {
        if is_printable(fragment) {
            return out.write_all(fragment.as_bytes());
        }
        for c in fragment.chars() {
            let mut buffer = [0; 4];
            let text = c.encode_utf8(&mut buffer);
            if is_printable(text) {
                out.write_all(text.as_bytes())?;
            } else {
                let mut units = [0; 2];
                for unit in c.encode_utf16(&mut units) {
                    write!(out, "\\u{unit:04x}")?;
                }
            }
        }
        Ok(())
    }

    fn write_char_escape<W: ?Sized + Write>(
        &mut self,
        out: &mut W,
        escape: CharEscape,
    ) -> io::Result<()> {
        self.0.write_char_escape(out, escape)
    }

    fn begin_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_array(out)
    }

    fn end_array<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array(out)
    }

    fn begin_array_value<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_array_value(out, first)
    }

    fn end_array_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_array_value(out)
    }

    fn begin_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object(out)
    }

    fn end_object<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object(out)
    }

    fn begin_object_key<W: ?Sized + Write>(&mut self, out: &mut W, first: bool) -> io::Result<()> {
        self.0.begin_object_key(out, first)
    }

    fn begin_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.begin_object_value(out)
    }

    fn end_object_value<W: ?Sized + Write>(&mut self, out: &mut W) -> io::Result<()> {
        self.0.end_object_value(out)
    }
}
