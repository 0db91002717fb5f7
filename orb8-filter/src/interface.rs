//! Globs over interface names, with a bounded memory of what they said: a glob costs more than all
//! other tests of a filter, and a node has few names and many flows.

use globset::{GlobBuilder, GlobMatcher};

use crate::error::FilterError;

/// Names that are remembered, a power of two.
const REMEMBERED: usize = 256;
/// The kernel's IFNAMSIZ without the terminating zero; longer names are not remembered.
const NAME_BYTES: usize = 15;

/// A name, zeros behind it, and what the globs said.
type Memory = Option<([u8; NAME_BYTES], bool)>;

/// Globs, one of which must match.
#[derive(Clone, Debug)]
pub(crate) struct Globs {
    globs: Vec<GlobMatcher>,
    /// Direct-mapped: the newest of the names that share a place is kept.
    memory: Box<[Memory]>,
}

impl Globs {
    pub(crate) fn new(globs: Vec<GlobMatcher>) -> Self {
        Self { globs, memory: vec![None; REMEMBERED].into() }
    }

    /// True if a glob matches the whole name; no glob matches an empty one.
    pub(crate) fn matches(&mut self, name: &str) -> bool {
        if name.is_empty() {
            return false;
        }
        let mut key = [0; NAME_BYTES];
        let Some(start) = key.get_mut(..name.len()) else { return self.ask(name) };
        start.copy_from_slice(name.as_bytes());
        let place = place(&key);
        match self.memory[place] {
            Some((known, answer)) if known == key => answer,
            _ => {
                let answer = self.ask(name);
                self.memory[place] = Some((key, answer));
                answer
            }
        }
    }

    fn ask(&self, name: &str) -> bool {
        self.globs.iter().any(|glob| glob.is_match(name))
    }
}

/// FNV-1a: spreads names that differ only in their last characters, as names of links do.
fn place(key: &[u8; NAME_BYTES]) -> usize {
    let hash = key
        .iter()
        .fold(0x811c_9dc5_u32, |hash, byte| (hash ^ u32::from(*byte)).wrapping_mul(0x0100_0193));
    (hash ^ (hash >> 16)) as usize % REMEMBERED
}

/// Reads a glob. As on Linux on every system: a backslash quotes, and case matters.
pub(crate) fn glob(text: &str) -> Result<GlobMatcher, FilterError> {
    let bad = |error: globset::Error| FilterError::Glob(text.to_owned(), error.kind().to_string());
    let glob = GlobBuilder::new(text).backslash_escape(true).build().map_err(bad)?;
    Ok(glob.compile_matcher())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(24))]

        #[test]
        fn the_memory_never_changes_an_answer(
            names in proptest::collection::vec("(eth|ens|veth)[0-9a-f]{0,14}", 0..600),
        ) {
            let globs = vec![glob("*[02468]").unwrap(), glob("ens*").unwrap()];
            let mut remembering = Globs::new(globs);
            for name in names.iter().chain(&names) {
                let plain = remembering.ask(name);
                prop_assert_eq!(remembering.matches(name), plain, "{}", name);
            }
        }
    }

    #[test]
    fn names_of_links_spread_over_the_memory() {
        let mut globs = Globs::new(vec![glob("*").unwrap()]);
        for link in 0..REMEMBERED {
            assert!(globs.matches(&format!("veth{link:08x}")));
        }
        let used = globs.memory.iter().flatten().count();
        assert!(used > REMEMBERED / 2, "{used} places hold {REMEMBERED} names");
    }
}
