//! Ends that rows share: most flows are between few parties, so each set of ends is kept once.
//!
//! Equal means the very same objects, so that a name that comes late reaches all rows, and whoever
//! is replaced is somebody else. What no row holds any more goes with the row that held it last, or,
//! if somebody else held it just then, with a later sweep.

use std::hash::BuildHasher as _;
use std::sync::Arc;

use hashbrown::HashTable;

use crate::event::{End, Ends, How};
use crate::host::OwnHasher;

/// Fewer are not swept.
const FEW: usize = 1024;

/// All ends that rows hold.
#[derive(Debug)]
pub(super) struct Interned {
    known: HashTable<Arc<Ends>>,
    hasher: OwnHasher,
    sweep_at: usize,
}

/// Which objects an end is made of.
type OfEnd = (u8, How, usize);
/// Which objects ends are made of.
type Identity = (OfEnd, OfEnd, Option<(usize, u16, u8, u8)>);

impl Interned {
    pub(super) fn new() -> Self {
        Self { known: HashTable::new(), hasher: OwnHasher::default(), sweep_at: FEW }
    }

    /// Puts these ends where others were.
    pub(super) fn put(&mut self, held: &mut Arc<Ends>, ends: Ends) {
        let identity = identity_of(&ends);
        if identity == identity_of(held) {
            return;
        }
        let hash = self.hasher.hash_one(identity);
        let known = self.known.find(hash, |known| identity_of(known) == identity);
        let ends = known.cloned().unwrap_or_else(|| self.add(hash, ends));
        let old = std::mem::replace(held, ends);
        self.release(old);
    }

    /// Leaves nobody where ends were.
    pub(super) fn clear(&mut self, held: &mut Arc<Ends>) {
        let old = std::mem::replace(held, Ends::nobody());
        self.release(old);
    }

    fn add(&mut self, hash: u64, ends: Ends) -> Arc<Ends> {
        if self.known.len() >= self.sweep_at {
            self.known.retain(|known| Arc::strong_count(known) > 1);
            self.sweep_at = FEW.max(2 * self.known.len());
        }
        let (ends, hasher) = (Arc::new(ends), &self.hasher);
        let hash_of = |known: &Arc<Ends>| hasher.hash_one(identity_of(known));
        self.known.insert_unique(hash, Arc::clone(&ends), hash_of);
        ends
    }

    fn release(&mut self, ends: Arc<Ends>) {
        // One is here, and one is in the table, unless these are nobody's.
        if Arc::strong_count(&ends) == 2 {
            let hash = self.hasher.hash_one(identity_of(&ends));
            if let Ok(found) = self.known.find_entry(hash, |known| Arc::ptr_eq(known, &ends)) {
                found.remove();
            }
        }
    }

    #[cfg(test)]
    pub(super) fn len(&self) -> usize {
        self.known.len()
    }
}

fn identity_of(ends: &Ends) -> Identity {
    let asked = ends.asked.as_ref().map(|asked| {
        (Arc::as_ptr(&asked.service) as usize, asked.port, asked.kind as u8, asked.verdict as u8)
    });
    (of_end(&ends.owner), of_end(&ends.peer), asked)
}

fn of_end(end: &End) -> OfEnd {
    match end {
        End::Unknown(how) => (0, *how, 0),
        End::External(how) => (1, *how, 0),
        End::Process(how) => (2, *how, 0),
        End::Node(how, node) => (3, *how, Arc::as_ptr(node) as usize),
        End::Pod(how, pod) => (4, *how, Arc::as_ptr(pod) as usize),
        End::Service(how, service) => (5, *how, Arc::as_ptr(service) as usize),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event::{Attribution, Reason};
    use crate::k8s::model::Pod;

    fn to(pod: &Arc<Pod>) -> Ends {
        let owner = End::Process(How::by(Attribution::Cgroup));
        Ends { owner, peer: End::Pod(How::by(Attribution::Address), Arc::clone(pod)), asked: None }
    }

    #[test]
    fn rows_share_the_same_ends_and_no_others() {
        let mut interned = Interned::new();
        let pods = [Arc::new(Pod::unnamed("a")), Arc::new(Pod::unnamed("a"))];
        let mut rows = [Ends::nobody(), Ends::nobody(), Ends::nobody()];
        for (row, pod) in rows.iter_mut().zip([&pods[0], &pods[0], &pods[1]]) {
            interned.put(row, to(pod));
        }
        assert!(Arc::ptr_eq(&rows[0], &rows[1]) && !Arc::ptr_eq(&rows[1], &rows[2]));
        let unknown = Ends { owner: End::unknown(Reason::PodUnknown), ..to(&pods[0]) };
        interned.put(&mut rows[0], unknown);
        assert_eq!(interned.len(), 3);
    }

    #[test]
    fn ends_go_with_the_last_row_that_holds_them_and_so_does_their_pod() {
        let mut interned = Interned::new();
        let pod = Arc::new(Pod::unnamed("a"));
        let mut rows = [Ends::nobody(), Ends::nobody()];
        rows.iter_mut().for_each(|row| interned.put(row, to(&pod)));
        interned.clear(&mut rows[0]);
        assert_eq!((interned.len(), Arc::strong_count(&pod)), (1, 2));
        interned.clear(&mut rows[1]);
        assert_eq!((interned.len(), Arc::strong_count(&pod)), (0, 1));
    }

    #[test]
    fn ends_that_were_told_when_their_row_went_are_swept() {
        let mut interned = Interned::new();
        let pods: Vec<_> = (0..2 * FEW).map(|n| Arc::new(Pod::unnamed(&n.to_string()))).collect();
        for pod in &pods {
            let mut row = Ends::nobody();
            interned.put(&mut row, to(pod));
            let told = Arc::clone(&row);
            interned.clear(&mut row);
            drop(told);
            assert!(interned.len() <= FEW);
        }
    }
}
