//! What was counted since the start, by how its owner was identified.
//!
//! Exact: what is counted on a row is counted on the row's share, and moves with it when the owner
//! becomes known later.

use orb8_common::network::flag;

use crate::event::{Attribution, FlowRecord, How, Reason, Scope, Volume};

const SCOPES: [Scope; 5] =
    [Scope::Unknown, Scope::Local, Scope::Unclaimed, Scope::Forwarded, Scope::Tunnel];
const REASONS: usize = Reason::ALL.len();
const HOWS: usize = Attribution::ALL.len() * REASONS;
const COUNT: usize = 4 * SCOPES.len() * HOWS;

const _: () = assert!(COUNT <= u16::MAX as usize, "a row names its share with 16 bits");

/// A share with something in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Share {
    /// Counted at sockets, else at interfaces.
    pub socket_plane: bool,
    /// Counted beside the totals of the socket plane.
    pub supplement: bool,
    /// Whose traffic it is.
    pub scope: Scope,
    /// How the owner was identified.
    pub how: How,
    /// How much.
    pub volume: Volume,
}

/// Volumes by share.
#[derive(Debug)]
pub(super) struct Shares(Box<[Volume]>);

impl Shares {
    pub(super) fn new() -> Self {
        Self(vec![Volume::default(); COUNT].into())
    }

    pub(super) fn add(&mut self, share: u16, volume: Volume) {
        self.0[usize::from(share)].add(volume);
    }

    pub(super) fn shift(&mut self, from: u16, to: u16, volume: Volume) {
        let held = &mut self.0[usize::from(from)];
        *held = held.beyond(volume);
        self.add(to, volume);
    }

    /// Those that are not empty.
    pub(super) fn iter(&self) -> impl Iterator<Item = Share> {
        let filled = self.0.iter().enumerate().filter(|(_, volume)| !volume.is_empty());
        filled.map(|(at, volume)| Share {
            socket_plane: (at / HOWS / SCOPES.len()) & 1 != 0,
            supplement: (at / HOWS / SCOPES.len()) & 2 != 0,
            scope: SCOPES[at / HOWS % SCOPES.len()],
            how: How {
                attribution: Attribution::ALL[at % HOWS / REASONS],
                reason: Reason::ALL[at % REASONS],
            },
            volume: *volume,
        })
    }
}

/// The share that a flow counts for.
pub(super) fn share_of(flow: &FlowRecord) -> u16 {
    let bit = |wanted: u8| usize::from(flow.id.key.flags & wanted != 0);
    let place = bit(flag::SOCKET_PLANE) + 2 * bit(flag::SUPPLEMENT);
    let how = flow.ends.owner.how();
    let how = how.attribution as usize * REASONS + how.reason as usize;
    let share = (place * SCOPES.len() + flow.scope as usize) * HOWS + how;
    u16::try_from(share).unwrap_or(0)
}

/// Whether a share is that of owners who are identified.
pub(super) const fn is_identified(share: u16) -> bool {
    share as usize % HOWS / REASONS != Attribution::None as usize
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;
    use crate::event::{End, FlowId};
    use crate::network::table::blank;
    use orb8_common::network::FlowKey;

    #[test]
    fn a_share_is_read_back_as_it_was_written() {
        for flags in [0, flag::SOCKET_PLANE, flag::SUPPLEMENT] {
            for scope in SCOPES {
                for attribution in Attribution::ALL {
                    for reason in Reason::ALL {
                        let how = How { attribution, reason };
                        let id = FlowId { key: FlowKey { flags, ..FlowKey::EMPTY }, owner: 1 };
                        let mut flow = FlowRecord { scope, ..blank(id) };
                        Arc::make_mut(&mut flow.ends).owner = End::Process(how);
                        let volume = Volume { packets: 1, bytes: 60 };
                        let mut shares = Shares::new();
                        shares.add(share_of(&flow), volume);
                        let expected = Share {
                            socket_plane: flags & flag::SOCKET_PLANE != 0,
                            supplement: flags & flag::SUPPLEMENT != 0,
                            scope,
                            how,
                            volume,
                        };
                        assert_eq!(shares.iter().collect::<Vec<_>>(), [expected]);
                    }
                }
            }
        }
    }
}
