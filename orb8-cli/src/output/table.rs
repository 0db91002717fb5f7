//! Tables for people: aligned columns, two blanks apart, colours where wanted.
//!
//! Widths grow with what is written and never shrink, so the same table serves a finished answer and
//! a stream. Text from elsewhere is made printable here, for every cell.

use std::io::{self, Write};

use anstyle::Style;
use orb8_util::text::printable;
use unicode_width::UnicodeWidthStr;

/// What a column is called and how it is aligned.
#[derive(Clone, Debug)]
pub struct Heading {
    /// In the header line.
    pub title: String,
    /// Numbers are aligned to the right.
    pub right: bool,
}

/// One cell.
#[derive(Clone, Debug, PartialEq)]
pub struct Cell {
    text: String,
    style: Style,
}

impl Cell {
    /// A cell; an empty text is shown as `-`.
    #[must_use]
    pub fn new(text: impl AsRef<str>) -> Self {
        let text = printable(text.as_ref()).into_owned();
        Self { text: if text.is_empty() { "-".to_owned() } else { text }, style: Style::new() }
    }

    /// The same in another style.
    #[must_use]
    pub fn style(self, style: Style) -> Self {
        Self { style, ..self }
    }
}

/// A table that is being written.
#[derive(Clone, Debug)]
pub struct Table {
    headings: Vec<Heading>,
    widths: Vec<usize>,
    color: bool,
    indent: &'static str,
}

impl Table {
    /// A table with these columns.
    #[must_use]
    pub fn new(headings: Vec<Heading>, color: bool) -> Self {
        let widths = headings.iter().map(|heading| heading.title.width()).collect();
        Self { headings, widths, color, indent: "" }
    }

    /// The same, each line indented.
    #[must_use]
    pub fn indented(self, indent: &'static str) -> Self {
        Self { indent, ..self }
    }

    /// Makes a column at least this wide, for streams whose first rows are short.
    pub fn reserve(&mut self, widths: &[usize]) {
        for (width, least) in self.widths.iter_mut().zip(widths) {
            *width = (*width).max(*least);
        }
    }

    /// Widens the columns for these rows.
    fn fit(&mut self, rows: &[Vec<Cell>]) {
        for row in rows {
            for (width, cell) in self.widths.iter_mut().zip(row) {
                *width = (*width).max(cell.text.width());
            }
        }
    }

    /// Writes all rows, with columns as wide as the widest of them, below the header if it is wanted.
    ///
    /// # Errors
    /// If the stream cannot be written to.
    pub fn write(
        &mut self,
        out: &mut dyn Write,
        rows: &[Vec<Cell>],
        header: bool,
    ) -> io::Result<()> {
        self.fit(rows);
        if header {
            self.header(out)?;
        }
        rows.iter().try_for_each(|row| self.row(out, row))
    }

    /// Writes the header line.
    ///
    /// # Errors
    /// If the stream cannot be written to.
    pub fn header(&self, out: &mut dyn Write) -> io::Result<()> {
        let cells: Vec<Cell> = self
            .headings
            .iter()
            .map(|heading| Cell { text: heading.title.clone(), style: Style::new().bold() })
            .collect();
        self.line(out, &cells)
    }

    /// Writes one row, widening the columns for it.
    ///
    /// # Errors
    /// If the stream cannot be written to.
    pub fn row(&mut self, out: &mut dyn Write, row: &[Cell]) -> io::Result<()> {
        for (width, cell) in self.widths.iter_mut().zip(row) {
            *width = (*width).max(cell.text.width());
        }
        self.line(out, row)
    }

    fn line(&self, out: &mut dyn Write, row: &[Cell]) -> io::Result<()> {
        let mut line = self.indent.to_owned();
        let last = row.len().saturating_sub(1);
        for (index, (cell, (width, heading))) in
            row.iter().zip(self.widths.iter().zip(&self.headings)).enumerate()
        {
            let pad = " ".repeat(width - cell.text.width().min(*width));
            let style = if self.color { cell.style } else { Style::new() };
            let text = format!("{style}{}{style:#}", cell.text);
            match (heading.right, index == last) {
                (true, _) => line.extend([pad.as_str(), &text]),
                // No blanks at the end of a line.
                (false, true) => line.push_str(&text),
                (false, false) => line.extend([text.as_str(), &pad]),
            }
            if index != last {
                line.push_str("  ");
            }
        }
        line.push('\n');
        out.write_all(line.as_bytes())
    }
}
