//! Strings that many objects share, each kept once.

use std::collections::HashSet;
use std::sync::Arc;

use crate::k8s::model::Labels;

/// Namespaces, kinds, container names, keys and values of labels, and whole sets of labels, which
/// all pods of one workload share. What nobody holds any more goes with [`Names::expire`].
#[derive(Debug, Default)]
pub(crate) struct Names {
    words: HashSet<Arc<str>>,
    labels: HashSet<Labels>,
}

impl Names {
    /// The shared one.
    pub(crate) fn get(&mut self, word: &str) -> Arc<str> {
        if let Some(held) = self.words.get(word) {
            return Arc::clone(held);
        }
        let made: Arc<str> = word.into();
        self.words.insert(Arc::clone(&made));
        made
    }

    /// The shared set of labels, sorted by key.
    pub(crate) fn labels<'a>(
        &mut self,
        labels: impl Iterator<Item = (&'a String, &'a String)>,
    ) -> Labels {
        let mut pairs: Vec<_> =
            labels.map(|(key, value)| (self.get(key), self.get(value))).collect();
        pairs.sort_unstable();
        let made: Labels = pairs.into();
        if let Some(held) = self.labels.get(&made) {
            return Arc::clone(held);
        }
        self.labels.insert(Arc::clone(&made));
        made
    }

    /// Drops what nobody else holds.
    pub(crate) fn expire(&mut self) {
        self.labels.retain(|labels| Arc::strong_count(labels) > 1);
        self.words.retain(|word| Arc::strong_count(word) > 1);
    }
}
