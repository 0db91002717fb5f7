//! What the marks in a table mean, told on stderr for those that occurred.

use super::ends::Mark;
use crate::terminal::Terminal;

/// The marks that occurred.
#[derive(Clone, Debug, Default)]
pub struct Legend {
    seen: [bool; Mark::ALL.len()],
}

impl Legend {
    /// Remembers marks.
    pub fn add(&mut self, marks: impl IntoIterator<Item = Mark>) {
        for mark in marks {
            for (seen, known) in self.seen.iter_mut().zip(Mark::ALL) {
                *seen |= known == mark;
            }
        }
    }

    /// Says what they mean, if there were any.
    pub fn tell(&self, terminal: &mut Terminal<'_>) {
        let seen = Mark::ALL.iter().zip(self.seen).filter(|(_, seen)| *seen);
        let meanings: Vec<String> =
            seen.map(|(mark, _)| format!("{} {}", mark.sign(), mark.meaning())).collect();
        if !meanings.is_empty() {
            terminal.note(format!("marks: {}", meanings.join("; ")));
        }
    }
}
