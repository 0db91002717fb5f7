//! Who asked for what, how often.

use std::collections::BTreeMap;
use std::sync::{Mutex, PoisonError};

/// Requests for one resource by one client.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    /// Lists begun; further pages are not counted here.
    pub lists: u64,
    /// Pages of lists, the first ones too.
    pub pages: u64,
    /// Watches begun.
    pub watches: u64,
    /// Watches that are open now.
    pub open: u64,
    /// Single objects.
    pub gets: u64,
    /// Requests that were refused or failed.
    pub refused: u64,
}

impl std::ops::Add for Requests {
    type Output = Self;

    fn add(self, other: Self) -> Self {
        Self {
            lists: self.lists + other.lists,
            pages: self.pages + other.pages,
            watches: self.watches + other.watches,
            open: self.open + other.open,
            gets: self.gets + other.gets,
            refused: self.refused + other.refused,
        }
    }
}

/// All requests since the start.
#[derive(Debug, Default)]
pub struct Counts(Mutex<BTreeMap<(String, &'static str), Requests>>);

impl Counts {
    /// Notes something about a client and a resource.
    pub fn note(&self, client: &str, plural: &'static str, note: impl FnOnce(&mut Requests)) {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        note(all.entry((client.to_owned(), plural)).or_default());
    }

    /// What a client asked for a resource; an empty name stands for all clients or resources.
    #[must_use]
    pub fn of(&self, client: &str, plural: &str) -> Requests {
        let all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        all.iter()
            .filter(|((of, what), _)| {
                (client.is_empty() || of == client) && (plural.is_empty() || *what == plural)
            })
            .fold(Requests::default(), |sum, (_, &requests)| sum + requests)
    }
}
