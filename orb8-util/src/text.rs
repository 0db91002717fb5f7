//! Makes text from elsewhere safe to print: process names and messages may carry anything.

use std::borrow::Cow;
use std::fmt::Write as _;

/// Escapes what could move the cursor, change colours, break a line or reorder text on a terminal:
/// control characters, line separators and direction overrides. Everything else stays as it is.
#[must_use]
pub fn printable(text: &str) -> Cow<'_, str> {
    if is_printable(text) {
        return Cow::Borrowed(text);
    }
    let mut out = String::with_capacity(text.len() + 8);
    for c in text.chars() {
        match c {
            '\n' => out.push_str("\\n"),
            '\r' => out.push_str("\\r"),
            '\t' => out.push_str("\\t"),
            c if is_dangerous(c) && u32::from(c) < 0x100 => {
                write!(out, "\\x{:02x}", u32::from(c)).expect("writing to a String cannot fail");
            }
            c if is_dangerous(c) => {
                write!(out, "\\u{{{:x}}}", u32::from(c)).expect("writing to a String cannot fail");
            }
            c => out.push(c),
        }
    }
    Cow::Owned(out)
}

/// True if [`printable`] would change nothing.
#[must_use]
pub fn is_printable(text: &str) -> bool {
    !text.chars().any(is_dangerous)
}

fn is_dangerous(c: char) -> bool {
    c.is_control()
        || matches!(
            c,
            '\u{200b}'..='\u{200f}' | '\u{2028}'..='\u{202e}' | '\u{2060}'..='\u{206f}' | '\u{feff}'
        )
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn control_characters_are_escaped_and_the_rest_stays() {
        for (text, expected) in [
            ("curl", "curl"),
            ("näme 名", "näme 名"),
            ("\u{1b}[31mred", "\\x1b[31mred"),
            ("a\nb\tc\r", "a\\nb\\tc\\r"),
            ("\u{9b}2J", "\\x9b2J"),
            ("\u{202e}txt.exe", "\\u{202e}txt.exe"),
            ("\u{7f}", "\\x7f"),
        ] {
            assert_eq!(printable(text), expected, "{text:?}");
        }
    }

    proptest! {
        #[test]
        fn nothing_dangerous_remains(chars: Vec<char>) {
            let text = String::from_iter(chars);
            prop_assert!(is_printable(&printable(&text)));
        }
    }
}
