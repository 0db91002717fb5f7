//! Our place among the programs of a hook: who runs before and after us, and when to move.
//!
//! A program ahead of ours may end the chain, and we then miss what it ended. We move back to the
//! front, but rarely, and not for ever: two programs that both insist on being first would
//! otherwise move for as long as both live.

use std::time::{Duration, Instant};

use super::hook::{Purpose, Side, program};
use super::load::Programs;
use super::netlink::Device;
use super::sys;
use crate::datapath::AttachRoute;
use crate::event::{Notice, Severity};

/// When to look and when to move.
#[derive(Clone, Copy, Debug)]
pub struct ChainPolicy {
    /// Time between two looks at each chain.
    pub look_every: Duration,
    /// Time between two moves on one interface.
    pub move_every: Duration,
    /// Moves on one interface after which we stay where we are put.
    pub max_moves: u32,
}

impl Default for ChainPolicy {
    fn default() -> Self {
        Self {
            look_every: Duration::from_secs(10),
            move_every: Duration::from_secs(60),
            max_moves: 3,
        }
    }
}

/// Programs before and after ours, `ingress NAME` or `egress NAME`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Neighbours {
    /// They see packets before us.
    pub before: Vec<String>,
    /// They see packets after us.
    pub after: Vec<String>,
}

/// What is known of the chains of one interface.
#[derive(Debug, Default)]
pub struct Chain {
    neighbours: Neighbours,
    behind: [bool; 2],
    moves: u32,
    last_move: Option<Instant>,
}

impl Chain {
    /// Reads both chains; a notice if somebody is newly ahead of us. Only tcx tells its order.
    pub fn look(&mut self, device: &Device, programs: &Programs, route: AttachRoute) -> Option<Notice> {
        if route == AttachRoute::Clsact {
            return None;
        }
        let mut neighbours = Neighbours::default();
        let mut behind = [false; 2];
        for (at, side) in Side::BOTH.into_iter().enumerate() {
            let ours = programs.id(program(Purpose::Flows, side, device.link));
            // An interface that has gone is forgotten elsewhere.
            let Ok(chain) = sys::tcx_chain(device.ifindex, side.tcx()) else { continue };
            let Some(place) = chain.iter().position(|id| Some(*id) == ours) else { continue };
            let name = |id: &u32| format!("{} {}", side.name(), name_of(*id));
            let foreign = |id: &&u32| !programs.is_ours(**id);
            neighbours.before.extend(chain[..place].iter().filter(foreign).map(name));
            neighbours.after.extend(chain[place + 1..].iter().filter(foreign).map(name));
            behind[at] = chain[..place].iter().any(|id| !programs.is_ours(*id));
        }
        let news = behind.contains(&true) && neighbours.before != self.neighbours.before;
        self.neighbours = neighbours;
        self.behind = behind;
        news.then(|| Notice {
            severity: Severity::Warning,
            code: "displaced",
            message: format!(
                "on {} others run before us and may end the chain: {}",
                device.name,
                self.neighbours.before.join(", ")
            ),
        })
    }

    /// Who is before and after us.
    #[must_use]
    pub const fn neighbours(&self) -> &Neighbours {
        &self.neighbours
    }

    /// Whether somebody runs before us on a side.
    #[must_use]
    pub const fn is_behind(&self, side: Side) -> bool {
        match side {
            Side::Ingress => self.behind[0],
            Side::Egress => self.behind[1],
        }
    }

    /// Whether we should move to the front now.
    #[must_use]
    pub fn should_move(&self, now: Instant, policy: &ChainPolicy) -> bool {
        let rested = self.last_move.is_none_or(|at| now.duration_since(at) >= policy.move_every);
        self.behind.contains(&true) && rested && self.moves < policy.max_moves
    }

    /// Notes a move.
    pub const fn moved(&mut self, now: Instant) {
        self.moves += 1;
        self.last_move = Some(now);
    }

    /// What a person should know of our place, empty if all is well.
    #[must_use]
    pub fn reason(&self, policy: &ChainPolicy) -> String {
        if !self.behind.contains(&true) {
            return String::new();
        }
        let who = self.neighbours.before.join(", ");
        if self.moves >= policy.max_moves {
            format!("behind {who}, after moving to the front {} times", self.moves)
        } else {
            format!("behind {who}, will move to the front")
        }
    }
}

/// The program's name, or its id where the name needs CAP_SYS_ADMIN.
fn name_of(id: u32) -> String {
    match sys::program_name(id) {
        Ok(name) if !name.is_empty() => format!("{name} (id {id})"),
        _ => format!("program id {id}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn displaced() -> Chain {
        Chain { behind: [true, false], ..Chain::default() }
    }

    #[test]
    fn we_move_at_once_and_then_at_most_once_a_minute() {
        let policy = ChainPolicy::default();
        let start = Instant::now();
        let mut chain = displaced();
        assert!(chain.should_move(start, &policy));
        chain.moved(start);
        assert!(!chain.should_move(start + Duration::from_secs(59), &policy));
        assert!(chain.should_move(start + Duration::from_secs(60), &policy));
    }

    #[test]
    fn we_give_up_after_three_moves_and_say_so() {
        let policy = ChainPolicy::default();
        let start = Instant::now();
        let mut chain = displaced();
        for minute in 0..3 {
            let now = start + Duration::from_secs(60 * minute);
            assert!(chain.should_move(now, &policy));
            chain.moved(now);
        }
        assert!(!chain.should_move(start + Duration::from_secs(6000), &policy));
        assert!(chain.reason(&policy).contains("after moving to the front 3 times"));
    }

    #[test]
    fn in_front_there_is_nothing_to_move_for() {
        let chain = Chain::default();
        assert!(!chain.should_move(Instant::now(), &ChainPolicy::default()));
        assert_eq!(chain.reason(&ChainPolicy::default()), "");
    }
}
