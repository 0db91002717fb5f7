//! Our place among the programs of a hook: who runs before and after us, and when to move.
//!
//! A program ahead of ours may end the chain, and we then miss what it ended. We move back to the
//! front, but rarely, and not for ever: two programs that both insist on being first would
//! otherwise move for as long as both live.

use std::io;
use std::time::{Duration, Instant};

use super::hook::Side;
use super::load::Programs;
use super::netlink::Filter;
use super::sys;
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

/// Moves longer ago than this were no fight.
const FORGIVE: Duration = Duration::from_secs(3600);

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
    /// Our program is not on the hook any more.
    absent: bool,
    moves: u32,
    last_move: Option<Instant>,
}

/// A program on a hook, in the order in which they run.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// What a person knows it by.
    pub name: String,
    /// Ours or a foreign one.
    pub ours: bool,
}

impl Chain {
    /// Takes the programs of both hooks, ingress first; a notice if somebody is newly ahead of us.
    pub fn look(&mut self, interface: &str, hooks: [Vec<Entry>; 2]) -> Option<Notice> {
        let mut neighbours = Neighbours::default();
        let mut behind = [false; 2];
        self.absent = false;
        for (at, (side, chain)) in Side::BOTH.into_iter().zip(hooks).enumerate() {
            let Some(place) = chain.iter().position(|entry| entry.ours) else {
                self.absent = true;
                continue;
            };
            let foreign = |entries: &[Entry]| -> Vec<String> {
                let foreign = entries.iter().filter(|entry| !entry.ours);
                foreign.map(|entry| format!("{} {}", side.name(), entry.name)).collect()
            };
            let before = foreign(&chain[..place]);
            behind[at] = !before.is_empty();
            neighbours.before.extend(before);
            neighbours.after.extend(foreign(&chain[place..]));
        }
        let news = behind.contains(&true) && neighbours.before != self.neighbours.before;
        self.neighbours = neighbours;
        self.behind = behind;
        news.then(|| Notice {
            severity: Severity::Warning,
            code: "displaced",
            message: format!(
                "on {interface} others run before us and may end the chain: {}",
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

    /// Whether somebody has taken our program off a hook.
    #[must_use]
    pub const fn is_absent(&self) -> bool {
        self.absent
    }

    /// Whether we should move to the front now.
    #[must_use]
    pub fn should_move(&self, now: Instant, policy: &ChainPolicy) -> bool {
        let rested = self.last_move.is_none_or(|at| now.duration_since(at) >= policy.move_every);
        let forgiven = self.last_move.is_some_and(|at| now.duration_since(at) >= FORGIVE);
        self.behind.contains(&true) && rested && (forgiven || self.moves < policy.max_moves)
    }

    /// Notes a move.
    pub fn moved(&mut self, now: Instant) {
        if self.last_move.is_some_and(|at| now.duration_since(at) >= FORGIVE) {
            self.moves = 0;
        }
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

/// The programs of a tcx hook.
///
/// # Errors
/// ENODEV if the interface has gone, EINVAL before kernel 6.6.
pub fn tcx_entries(ifindex: u32, side: Side, programs: &Programs) -> io::Result<Vec<Entry>> {
    let chain = sys::tcx_chain(ifindex, side.tcx())?;
    let entry = |id: u32| match programs.is_ours(id) {
        true => Entry { name: String::new(), ours: true },
        false => Entry { name: name_of(id), ours: false },
    };
    Ok(chain.into_iter().map(entry).collect())
}

/// The filters of a clsact hook, `ours` being the handle of our own.
#[must_use]
pub fn clsact_entries(filters: &[Filter], side: Side, ours: u32) -> Vec<Entry> {
    let mut here: Vec<&Filter> =
        filters.iter().filter(|f| f.ingress == (side == Side::Ingress)).collect();
    here.sort_by_key(|f| f.priority);
    let entry = |f: &&Filter| Entry {
        name: match &f.name {
            Some(name) => format!("{name} (priority {})", f.priority),
            None => format!("filter of priority {}", f.priority),
        },
        ours: f.handle == ours,
    };
    here.iter().map(entry).collect()
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
        assert!(!chain.should_move(start + Duration::from_secs(600), &policy));
        assert!(chain.should_move(start + Duration::from_secs(6000), &policy), "forgiven");
        assert!(chain.reason(&policy).contains("after moving to the front 3 times"));
    }

    #[test]
    fn in_front_there_is_nothing_to_move_for() {
        let chain = Chain::default();
        assert!(!chain.should_move(Instant::now(), &ChainPolicy::default()));
        assert_eq!(chain.reason(&ChainPolicy::default()), "");
    }

    fn entries(names: &[&str]) -> Vec<Entry> {
        names.iter().map(|n| Entry { name: (*n).to_owned(), ours: n.is_empty() }).collect()
    }

    #[test]
    fn who_runs_before_us_is_told_once_and_named() {
        let mut chain = Chain::default();
        assert_eq!(chain.look("eth0", [entries(&["", "a"]), entries(&[""])]), None);
        assert_eq!(chain.neighbours().after, ["ingress a"]);
        let told = chain.look("eth0", [entries(&["b", "", "a"]), entries(&[""])]);
        let message = told.map(|n| n.message).unwrap_or_default();
        assert_eq!(message, "on eth0 others run before us and may end the chain: ingress b");
        assert!(chain.is_behind(Side::Ingress) && !chain.is_behind(Side::Egress));
        assert_eq!(chain.look("eth0", [entries(&["b", "", "a"]), entries(&[""])]), None);
    }

    #[test]
    fn a_program_that_was_taken_off_its_hook_is_missed() {
        let mut chain = Chain::default();
        chain.look("eth0", [entries(&[""]), entries(&[""])]);
        assert!(!chain.is_absent());
        chain.look("eth0", [entries(&["a"]), entries(&[""])]);
        assert!(chain.is_absent());
        chain.look("eth0", [entries(&["", "a"]), entries(&[""])]);
        assert!(!chain.is_absent());
    }

    #[test]
    fn our_own_packet_view_is_no_neighbour() {
        let mut chain = Chain::default();
        chain.look("eth0", [entries(&["", "", "a"]), entries(&["", ""])]);
        assert_eq!(chain.neighbours().before, [""; 0]);
        assert_eq!(chain.neighbours().after, ["ingress a"]);
    }

    #[test]
    fn filters_run_in_the_order_of_their_priorities() {
        let filter = |priority, handle, name: &str| Filter {
            ingress: true,
            priority,
            protocol: 3,
            handle,
            name: Some(name.to_owned()),
        };
        let filters = [filter(50, 9, "late"), filter(2, 4, "orb8_in_eth"), filter(1, 3, "early")];
        let entries = clsact_entries(&filters, Side::Ingress, 4);
        let names: Vec<_> = entries.iter().map(|e| (e.name.as_str(), e.ours)).collect();
        let expected = [
            ("early (priority 1)", false),
            ("orb8_in_eth (priority 2)", true),
            ("late (priority 50)", false),
        ];
        assert_eq!(names, expected);
        assert_eq!(clsact_entries(&filters, Side::Egress, 4), []);
    }
}
