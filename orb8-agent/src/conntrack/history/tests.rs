//! Tests of what is kept, against what was true at each time.

use std::net::SocketAddr;

use proptest::prelude::*;

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
    assert_eq!(backend(&table, &silent, 6 * S), Some(1));
    assert_eq!(backend(&table, &silent, 8 * S), None);
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

/// One thing that happens to the connection of one client port.
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
}

fn step() -> impl Strategy<Value = Step> {
    let client = 0..4_u16;
    prop_oneof![
        6 => (client.clone(), proptest::option::weighted(0.8, 0..3_u16))
            .prop_map(|(client, backend)| Step::Begin { client, backend }),
        4 => client.prop_map(|client| Step::End { client }),
        1 => Just(Step::Lose),
        2 => Just(Step::Dump),
    ]
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

    fn at(&self, client: u16, at_ns: u64) -> Option<Connection> {
        let live = self.live.iter().map(|(from_ns, one)| (*from_ns, u64::MAX, *one));
        let mut all = self.past.iter().copied().chain(live);
        all.find(|(from_ns, until_ns, one)| {
            one.original.src.port() == client && (*from_ns..*until_ns).contains(&at_ns)
        })
        .map(|(_, _, one)| one)
    }
}

/// Runs the steps, ten seconds apart; returns the truth, the table and what was not told.
fn play(steps: &[Step]) -> (Truth, Translations, Vec<(u64, u64)>) {
    let (mut history, table) = history(1_024);
    history.begin_dump();
    history.end_dump(1);
    let mut truth = Truth::default();
    let (mut lost_since, mut untold) = (None, Vec::new());
    let mut now_ns = 0;
    for (id, step) in (1..).zip(steps) {
        now_ns += 10 * S;
        match *step {
            Step::Begin { client, backend } => {
                let over = truth.end(client, now_ns);
                let one = connection(client, backend, id);
                truth.live.push((now_ns, one));
                if lost_since.is_none() {
                    over.inspect(|it| history.end(it, now_ns));
                    history.begin(&one, now_ns);
                }
            }
            Step::End { client } => {
                let over = truth.end(client, now_ns);
                over.filter(|_| lost_since.is_none()).inspect(|it| history.end(it, now_ns));
            }
            Step::Lose => lost_since = lost_since.or(Some(now_ns - 10 * S)),
            Step::Dump => {
                history.begin_dump();
                truth.live.iter().for_each(|(_, one)| history.exists(one, now_ns));
                history.end_dump(now_ns);
                untold.extend(lost_since.take().map(|since_ns| (since_ns, now_ns)));
            }
        }
        if lost_since.is_none() {
            history.heard(now_ns);
        }
    }
    untold.extend(lost_since.map(|since_ns| (since_ns, u64::MAX)));
    (truth, table, untold)
}

proptest! {
    #[test]
    fn no_packet_is_given_to_a_connection_of_another_time(
        steps in proptest::collection::vec(step(), 1..60)
    ) {
        let (truth, table, untold) = play(&steps);
        for tick in 1..=steps.len() as u64 + 1 {
            let at_ns = tick * 10 * S + 5 * S;
            let lost = untold.iter().find(|(from, to)| (*from..*to).contains(&at_ns));
            for client in 0..4 {
                let asked = connection(client, None, 0).original;
                let found = table.find_at(&asked, at_ns).map(|it| it.reply);
                let real = truth.at(client, at_ns).filter(Connection::is_translated);
                let real = real.map(|it| it.reply);
                match lost {
                    None => prop_assert_eq!(found, real, "at {} s", at_ns / S),
                    // Nobody has looked since: what was there is still believed to be.
                    Some((_, u64::MAX)) => {}
                    Some(_) => prop_assert!(found.is_none() || found == real, "at {} s", at_ns / S),
                }
            }
        }
    }
}
