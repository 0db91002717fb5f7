//! Tests of what is kept, against what was true at each time.

use std::net::SocketAddr;

use proptest::prelude::*;

use super::super::TOLD_LATE_NS;
use super::super::table::Match;
use super::*;

const S: u64 = 1_000_000_000;

fn address(text: &str) -> SocketAddr {
    text.parse().unwrap()
}

fn tuple(protocol: u8, src: SocketAddr, dst: SocketAddr) -> Tuple {
    Tuple { protocol, src, dst }
}

/// A client's TCP connection to a Service, answered by the n-th backend; without: untranslated.
fn connection(client: u16, backend: Option<u16>, id: u32) -> Connection {
    let client = SocketAddr::new([10, 244, 0, 5].into(), client);
    let service = address("10.96.0.1:80");
    let answers = backend.map_or(service, |n| SocketAddr::new([10, 244, 1, 1].into(), 8_000 + n));
    let (original, reply) = (tuple(6, client, service), tuple(6, answers, client));
    Connection { original, reply, id, zone: 0 }
}

fn history(max_entries: usize) -> (History, Translations) {
    let table = Translations::empty(max_entries);
    (History::new(table.clone()), table)
}

fn backend(table: &Translations, of: &Connection, at_ns: u64) -> Option<u16> {
    table.find_at(&of.original, at_ns).map(|found| found.reply.src.port() - 8_000)
}

#[test]
fn an_ended_connection_stays_for_half_a_minute() {
    let (mut history, table) = history(8);
    let one = connection(4_000, Some(1), 7);
    history.begin(&one, 10 * S);
    history.end(&one, 20 * S);
    assert_eq!(history.forget_at(), Some(50 * S));
    history.forget(50 * S - 1);
    assert_eq!(backend(&table, &one, 15 * S), Some(1));
    assert_eq!(backend(&table, &one, 21 * S), None, "over by then");
    history.forget(50 * S);
    assert_eq!(table.status().entries, 0);
    assert_eq!(history.forget_at(), None, "nothing wakes the listener any more");
}

#[test]
fn untranslated_connections_are_not_kept_but_end_those_that_held_their_tuples() {
    let (mut history, table) = history(8);
    let silent = connection(4_000, Some(1), 7);
    history.begin_dump();
    history.exists(&silent, 5 * S);
    history.end_dump(5 * S);
    assert_eq!(backend(&table, &silent, S), Some(1), "it was there before");
    history.begin(&connection(4_001, None, 8), 6 * S);
    assert_eq!(table.status().entries, 1);
    // Of what was there before anybody listened no end is told.
    history.begin(&connection(4_000, None, 9), 7 * S);
    assert_eq!(backend(&table, &silent, 6 * S - 1), Some(1));
    assert_eq!(backend(&table, &silent, 7 * S), None, "the last of it, or the first of the next");
    assert_eq!(backend(&table, &silent, 8 * S), None);
}

#[test]
fn what_is_first_found_after_the_kernel_was_silent_may_have_begun_since() {
    let (mut history, table) = history(8);
    history.silenced(0);
    let one = connection(4_000, Some(1), 7);
    history.begin_dump();
    history.exists(&one, 3_600 * S);
    history.end_dump(3_600 * S);
    assert_eq!(backend(&table, &one, 3_599 * S), None, "that may have been another");
    assert_eq!(backend(&table, &one, 3_600 * S), Some(1));
}

#[test]
fn zones_do_not_displace_each_other() {
    let (mut history, table) = history(8);
    let one = connection(4_000, Some(1), 7);
    let other = Connection { zone: 5, ..connection(4_001, Some(1), 8) };
    history.begin(&one, S);
    history.begin(&other, S);
    history.begin(&Connection { zone: 5, ..connection(4_000, None, 9) }, 2 * S);
    assert_eq!(backend(&table, &one, 3 * S), Some(1));
    assert_eq!(backend(&table, &other, 3 * S), Some(1));
}

#[test]
fn the_table_is_bounded_and_what_ended_goes_first_then_the_oldest() {
    let (mut history, table) = history(4);
    let all: Vec<_> = (0_u16..6).map(|n| connection(4_000 + n, Some(n), u32::from(n))).collect();
    for one in &all[..4] {
        history.begin(one, S);
    }
    history.end(&all[2], 2 * S);
    history.begin(&all[4], 3 * S);
    history.begin(&all[5], 4 * S);
    let held: Vec<_> = all.iter().map(|one| table.find(&one.original).is_some()).collect();
    assert_eq!(held, [false, true, false, true, true, true]);
    let status = table.status();
    assert_eq!((status.entries, status.max_entries, status.evicted), (4, 4, 2));
}

#[test]
fn memory_does_not_grow_with_what_has_passed() {
    let (mut history, table) = history(64);
    for n in 0..50_000_u32 {
        let one = connection(u16::try_from(n % 30_000).unwrap(), Some(1), n);
        history.begin(&one, u64::from(n) * S);
        history.end(&one, u64::from(n) * S + 1);
        history.forget(u64::from(n) * S + 2);
    }
    assert!(table.status().entries <= 64);
    assert!(history.order.len() <= 2 * 64 + 1024, "{}", history.order.len());
    assert!(history.ended.len() <= 64, "{}", history.ended.len());
}

#[test]
fn after_lost_messages_only_what_is_certain_is_answered() {
    let (mut history, table) = history(8);
    history.begin_dump();
    history.end_dump(1);
    let [stays, ends, reused] = [1, 2, 3].map(|n| connection(4_000 + n, Some(n), u32::from(n)));
    for one in [stays, ends, reused] {
        history.begin(&one, 10 * S);
    }
    history.heard(15 * S);
    // Lost: the second ended, the third ended and its tuple was given to the next.
    let next = Connection { id: 4, ..connection(4_003, Some(9), 4) };
    history.begin_dump();
    history.exists(&stays, 30 * S);
    history.exists(&next, 30 * S);
    history.end_dump(30 * S);
    for (at, first, second, third) in
        [(12, Some(1), Some(2), Some(3)), (20, Some(1), None, None), (35, Some(1), None, Some(9))]
    {
        assert_eq!(backend(&table, &stays, at * S), first, "{at}");
        assert_eq!(backend(&table, &ends, at * S), second, "{at}");
        assert_eq!(backend(&table, &reused, at * S), third, "{at}");
    }
}

#[test]
fn events_that_are_read_after_the_dump_that_knew_better_change_nothing_in_the_end() {
    let (mut history, table) = history(8);
    let (old, new) = (connection(4_000, Some(1), 1), connection(4_000, Some(2), 2));
    history.begin_dump();
    history.exists(&new, 10 * S);
    history.end_dump(10 * S);
    history.begin(&old, 11 * S);
    history.end(&old, 11 * S);
    history.begin(&new, 11 * S);
    assert_eq!(backend(&table, &new, 12 * S), Some(2));
    assert_eq!(table.find(&new.original).map(|it| it.reply), Some(new.reply));
}

#[test]
fn a_handover_during_a_dump_is_of_the_time_that_is_told_of_it() {
    let (mut history, table) = history(8);
    let [old, new] = [1, 2].map(|n| connection(4_000, Some(n), u32::from(n)));
    let other = connection(4_001, Some(3), 3);
    history.begin_dump();
    history.end_dump(1);
    history.begin(&old, 10 * S);
    history.begin(&other, 10 * S);
    history.heard(20 * S);
    // While the table is read the first gives way to the second, and the third ends.
    history.begin_dump();
    history.exists(&new, 30 * S);
    history.end_dump(30 * S);
    assert_eq!(backend(&table, &old, 25 * S), None, "nothing was told of it");
    for over in [&old, &other] {
        history.end(over, 31 * S);
    }
    history.begin(&new, 31 * S);
    for (at_ns, first, third) in [
        (25 * S, Some(1), Some(3)),
        (30 * S + 1, None, Some(3)),
        (31 * S, None, Some(3)),
        (31 * S + 1, Some(2), None),
    ] {
        assert_eq!(backend(&table, &old, at_ns), first, "{at_ns}");
        assert_eq!(backend(&table, &other, at_ns), third, "{at_ns}");
    }
}

#[test]
fn what_is_held_is_certain_only_until_the_kernel_fell_silent() {
    let (mut history, table) = history(8);
    history.begin_dump();
    history.end_dump(1);
    let one = connection(4_000, Some(1), 7);
    history.begin(&one, 10 * S);
    history.heard(80 * S);
    history.silenced(20 * S);
    assert_eq!(backend(&table, &one, 20 * S), Some(1));
    assert_eq!(backend(&table, &one, 21 * S), None, "it may be over, nobody would tell");
    // The kernel tells again, and it is still there.
    history.begin_dump();
    history.exists(&one, 90 * S);
    history.end_dump(90 * S);
    assert_eq!(backend(&table, &one, 50 * S), None);
    assert_eq!(backend(&table, &one, 91 * S), Some(1));
}

/// One thing that happens, most of it to the connection of one client port.
#[derive(Debug, Clone, Copy)]
enum Step {
    Begin {
        client: u16,
        backend: Option<u16>,
    },
    End {
        client: u16,
    },
    /// What happens from here to the next dump is not told.
    Lose,
    Dump,
    /// Nothing is told from here to the next dump, and that is noticed.
    Silence,
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..3_u16;
    prop_oneof![
        12 => (client.clone(), proptest::option::weighted(0.8, 0..3_u16))
            .prop_map(|(client, backend)| Step::Begin { client, backend }),
        6 => client.prop_map(|client| Step::End { client }),
        1 => Just(Step::Lose),
        3 => Just(Step::Dump),
        1 => Just(Step::Silence),
    ]
}

/// A step, how long after the one before it happens, and how much later that is read: nanoseconds.
fn timed_step() -> impl Strategy<Value = (u64, u64, Step)> {
    let gap = prop_oneof![1..20 * MS, 20 * MS..3 * S, Just(10 * S)];
    let lag = prop_oneof![1..5 * MS, 0..S];
    (gap, lag, step())
}

/// What was true: connections with begin and end.
#[derive(Debug, Default)]
struct Truth {
    past: Vec<(u64, u64, Connection)>,
    live: Vec<(u64, Connection)>,
}

impl Truth {
    fn end(&mut self, client: u16, now_ns: u64) -> Option<Connection> {
        let at = self.live.iter().position(|(_, it)| it.original.src.port() == client)?;
        let (from_ns, one) = self.live.swap_remove(at);
        self.past.push((from_ns, now_ns, one));
        Some(one)
    }

    fn of(&self, client: u16) -> impl Iterator<Item = (u64, u64, Connection)> {
        let live = self.live.iter().map(|(from_ns, one)| (*from_ns, u64::MAX, *one));
        let all = self.past.iter().copied().chain(live);
        all.filter(move |(_, _, one)| one.original.src.port() == client)
    }

    fn at(&self, client: u16, at_ns: u64) -> Option<Connection> {
        let mut all = self.of(client);
        let found = all.find(|(from_ns, until_ns, _)| (*from_ns..*until_ns).contains(&at_ns));
        found.map(|(_, _, one)| one)
    }

    /// Whether a connection with these answers begins within a second.
    fn begins_soon(&self, client: u16, at_ns: u64, reply: Option<Tuple>) -> bool {
        self.of(client).any(|(from_ns, _, one)| {
            (at_ns..=at_ns + TOLD_LATE_NS).contains(&from_ns) && Some(one.reply) == reply
        })
    }

    /// Whether nothing began or ended so shortly before or after that it may have been told late.
    fn is_quiet(&self, client: u16, at_ns: u64) -> bool {
        self.of(client)
            .flat_map(|(from_ns, until_ns, _)| [from_ns, until_ns])
            .all(|changed_ns| changed_ns.abs_diff(at_ns) > TOLD_LATE_NS)
    }
}

const MS: u64 = 1_000_000;

/// What happened and is not read yet: when it happened, when it is read, what begins or ends.
type Unread = VecDeque<(u64, u64, Connection, bool)>;

/// A run of steps.
struct Play {
    history: History,
    truth: Truth,
    unread: Unread,
    read_ns: u64,
    /// Since when nothing is told.
    lost_since: Option<u64>,
    untold: Vec<(u64, u64)>,
}

impl Play {
    fn new(table: &Translations) -> Self {
        let mut history = History::new(table.clone());
        history.begin_dump();
        history.end_dump(0);
        let (truth, unread) = (Truth::default(), VecDeque::new());
        Self { history, truth, unread, read_ns: 0, lost_since: None, untold: Vec::new() }
    }

    fn happens(&mut self, at_ns: u64, lag_ns: u64, one: Connection, begins: bool) {
        if self.lost_since.is_none() {
            // It is read in order.
            self.read_ns = self.read_ns.max(at_ns + lag_ns);
            self.unread.push_back((at_ns, self.read_ns, one, begins));
        }
    }

    /// Reads what is read by then; `at_ns` later is a reader that has just slept.
    fn read(&mut self, by_ns: u64) {
        while let Some((_, read_ns, one, begins)) = self.unread.front().copied()
            && read_ns <= by_ns
        {
            self.unread.pop_front();
            if begins {
                self.history.begin(&one, read_ns);
            } else {
                self.history.end(&one, read_ns);
            }
            let rest = self.unread.front().is_some_and(|(at_ns, ..)| *at_ns <= read_ns);
            if self.lost_since.is_none() && !rest {
                self.history.heard(read_ns);
            }
        }
    }

    /// Reads all that happened before now.
    fn catch_up(&mut self, now_ns: u64) {
        self.unread.iter_mut().for_each(|(_, read_ns, ..)| *read_ns = now_ns.min(*read_ns));
        self.read_ns = self.read_ns.min(now_ns);
        self.read(now_ns);
        if self.lost_since.is_none() {
            self.history.heard(now_ns);
        }
    }

    fn step(&mut self, now_ns: u64, lag_ns: u64, id: u32, step: Step) {
        match step {
            Step::Begin { client, backend } => {
                if let Some(over) = self.truth.end(client, now_ns) {
                    self.happens(now_ns, lag_ns, over, false);
                }
                let one = connection(client, backend, id);
                self.truth.live.push((now_ns, one));
                self.happens(now_ns, lag_ns, one, true);
            }
            Step::End { client } => {
                if let Some(over) = self.truth.end(client, now_ns) {
                    self.happens(now_ns, lag_ns, over, false);
                }
            }
            Step::Lose => {
                self.lost_since.get_or_insert(self.history.heard_ns);
            }
            Step::Silence => {
                self.catch_up(now_ns);
                self.lost_since.get_or_insert(now_ns);
                self.history.silenced(u64::MAX);
            }
            Step::Dump => {
                self.catch_up(now_ns);
                self.history.begin_dump();
                self.truth.live.iter().for_each(|(_, one)| self.history.exists(one, now_ns));
                self.history.end_dump(now_ns);
                self.untold.extend(self.lost_since.take().map(|since_ns| (since_ns, now_ns)));
            }
        }
    }

    /// Whether this, or what it is told by, is of a time of which not everything was told.
    fn is_untold(&self, at_ns: u64) -> bool {
        self.untold.iter().any(|(from_ns, to_ns)| {
            (from_ns.saturating_sub(TOLD_LATE_NS)..=*to_ns).contains(&at_ns)
        })
    }
}

proptest! {
    #[test]
    fn no_packet_is_given_to_a_connection_of_another_time(
        steps in proptest::collection::vec(timed_step(), 1..60)
    ) {
        let table = Translations::empty(1_024);
        let mut play = Play::new(&table);
        let mut now_ns = 10 * S;
        let mut asked: Vec<u64> = vec![now_ns];
        for (id, (gap_ns, lag_ns, step)) in (1..).zip(steps) {
            now_ns += gap_ns;
            play.read(now_ns - 1);
            play.step(now_ns, lag_ns, id, step);
            // A packet that begins a connection is stamped before it; others come any time after.
            asked.extend([now_ns - gap_ns / 2, now_ns - 1, now_ns, now_ns + lag_ns, play.read_ns]);
        }
        now_ns += 10 * S;
        play.step(now_ns, 0, 0, Step::Silence);
        play.untold.extend(play.lost_since.map(|since_ns| (since_ns, u64::MAX)));
        for at_ns in asked.into_iter().filter(|at_ns| *at_ns < now_ns) {
            for client in 0..3 {
                let tuple = connection(client, None, 0).original;
                let found = table.find_at(&tuple, at_ns).map(|it| it.reply);
                let found = found.filter(|reply| reply.src != tuple.dst);
                let real = play.truth.at(client, at_ns).filter(Connection::is_translated);
                let real = real.map(|it| it.reply);
                if play.truth.is_quiet(client, at_ns) && !play.is_untold(at_ns) {
                    prop_assert_eq!(found, real, "{} at {} ms", client, at_ns / MS);
                }
                // What nobody sends belongs to no one; the packet that begins is of what follows.
                let sent = [at_ns, at_ns + 1].map(|at_ns| play.truth.at(client, at_ns));
                if sent.iter().all(Option::is_some) {
                    let real = sent.map(|one| one.filter(Connection::is_translated));
                    let real = real.map(|one| one.map(|it| it.reply));
                    // Untranslated ones are not kept: their last packets may be taken for the next's.
                    let next = real.contains(&None) && play.truth.begins_soon(client, at_ns, found);
                    prop_assert!(
                        found.is_none() || real.contains(&found) || next,
                        "{} at {} ms: {:?}, not {:?}", client, at_ns / MS, found, real
                    );
                }
            }
        }
        for client in 0..3 {
            let tuple = connection(client, None, 0).original;
            for (from_ns, until_ns, one) in play.truth.of(client) {
                // The packet that opens a connection is stamped before it; others come until its end.
                for last_ns in [from_ns, from_ns + 5 * MS, from_ns + S] {
                    let asks = one.is_translated() && last_ns <= until_ns.min(now_ns);
                    if !asks || play.is_untold(from_ns) || play.is_untold(last_ns) {
                        continue;
                    }
                    let found = table.find_over(&tuple, from_ns, last_ns, Some(from_ns));
                    let is_other = matches!(&found, Match::One(other) if other.reply != one.reply);
                    prop_assert!(!is_other, "{} from {}: {:?}", client, from_ns / MS, found);
                    let is_alone = !play.truth.of(client).any(|(other_ns, over_ns, _)| {
                        other_ns != from_ns
                            && (other_ns + 2 * TOLD_LATE_NS >= from_ns || over_ns > from_ns)
                            && other_ns <= last_ns + TOLD_LATE_NS
                    });
                    // Of what a dump found, the beginning is not told.
                    let is_told = play.untold.iter().all(|(_, to_ns)| {
                        *to_ns > now_ns || to_ns + 2 * TOLD_LATE_NS < from_ns
                    });
                    let is_certain = is_alone && is_told;
                    prop_assert!(!is_certain || matches!(found, Match::One(_)), "{:?}", found);
                }
            }
        }
    }
}
