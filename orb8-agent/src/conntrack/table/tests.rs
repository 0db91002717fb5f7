//! Tests of lookups by form and by time.

use super::*;

fn tuple(src: &str, dst: &str) -> Tuple {
    Tuple { protocol: 6, src: src.parse().unwrap(), dst: dst.parse().unwrap() }
}

/// A client of a Service, answered by a backend.
fn served(client: &str, backend: &str, from_ns: u64) -> Translation {
    Translation::new(tuple(client, "10.96.0.1:80"), tuple(backend, client), from_ns)
}

fn end(one: &Translation, until_ns: u64) {
    one.until_ns.store(until_ns, Ordering::Relaxed);
}

#[test]
fn each_form_of_a_packet_leads_to_its_connection() {
    let table = Translations::empty(8);
    // A hairpin: the pod asks the Service, is its backend, and is masqueraded on top.
    let original = tuple("10.244.0.5:4000", "10.96.0.1:80");
    let reply = tuple("10.244.0.5:8080", "10.244.0.1:4000");
    let held = table.insert(Translation::new(original, reply, 1));
    assert!(held.rewrites_source() && held.rewrites_destination());
    for form in [original, original.reversed(), reply, reply.reversed()] {
        assert!(Arc::ptr_eq(&table.find(&form).unwrap(), &held), "{form:?}");
        assert!(Arc::ptr_eq(&table.find_at(&form, 5).unwrap(), &held), "{form:?}");
    }
    for other in [
        tuple("10.244.0.5:4001", "10.96.0.1:80"),
        tuple("10.244.0.5:4000", "10.244.0.5:8080"),
        Tuple { protocol: 17, ..original },
    ] {
        assert!(table.find(&other).is_none(), "{other:?}");
    }
    assert_eq!(table.status().entries, 1);
    table.take(&held);
    assert!(table.find(&original).is_none() && table.find(&reply).is_none());
    assert_eq!(table.status().entries, 0);
}

#[test]
fn over_a_time_one_counts_that_nobody_else_was_beside() {
    const S: u64 = 1_000_000_000;
    let table = Translations::empty(8);
    assert!(table.is_empty());
    let asked = tuple("10.244.0.5:4000", "10.96.0.1:80");
    let first = table.insert(served("10.244.0.5:4000", "10.244.0.6:8080", 10 * S));
    end(&first, 20 * S);
    let second = table.insert(served("10.244.0.5:4000", "10.244.0.7:8080", 30 * S));
    assert!(!table.is_empty());
    let over = |since_ns, until_ns| {
        let found = table.find_over(&asked, since_ns, until_ns, None).into_one();
        found.map(|found| found.reply.src.to_string())
    };
    let (one, two) = (Some("10.244.0.6:8080".to_owned()), Some("10.244.0.7:8080".to_owned()));
    assert_eq!(over(11 * S, 20 * S), one);
    assert_eq!(over(11 * S, 30 * S), None, "some are the first's");
    assert_eq!(over(20 * S, 30 * S), None, "one may be");
    assert_eq!(over(20 * S + 1, 30 * S), two, "the first had ended by then");
    assert_eq!(over(2 * S, 30 * S), None, "the first was there in between");
    assert_eq!(over(2 * S, 15 * S), one, "it was told after the first packet");
    assert_eq!(over(11 * S, 22 * S), None, "nobody held it at the end");
    table.take(&first);
    table.take(&second);
    assert!(table.is_empty() && over(11 * S, 20 * S).is_none());
}

#[test]
fn a_reused_tuple_leads_to_the_connection_of_that_time() {
    const S: u64 = 1_000_000_000;
    let table = Translations::empty(8);
    let asked = tuple("10.244.0.5:4000", "10.96.0.1:80");
    let first = table.insert(served("10.244.0.5:4000", "10.244.0.6:8080", 10 * S));
    end(&first, 20 * S);
    let second = table.insert(served("10.244.0.5:4000", "10.244.0.7:8080", 21 * S));
    let at = |at_ns: u64| table.find_at(&asked, at_ns).map(|found| found.reply.src.to_string());
    let (one, two) = (Some("10.244.0.6:8080".to_owned()), Some("10.244.0.7:8080".to_owned()));
    assert_eq!(at(8 * S), None, "before anything was told");
    assert_eq!(at(9 * S), one, "told after its first packet");
    assert_eq!(at(20 * S - 1), one);
    assert_eq!(at(20 * S + 1), two, "told after its first packet");
    assert_eq!(at(90 * S), two);
    assert!(Arc::ptr_eq(&table.find(&asked).unwrap(), &second), "what goes on");
    end(&second, 30 * S);
    assert!(Arc::ptr_eq(&table.find(&asked).unwrap(), &second), "what was last");
    assert_eq!(at(31 * S), None);
}

#[test]
fn of_two_that_follow_closely_either_may_have_sent_what_came_before_both_were_told() {
    const S: u64 = 1_000_000_000;
    const MS: u64 = 1_000_000;
    let table = Translations::empty(8);
    let asked = tuple("10.244.0.5:4000", "10.96.0.1:80");
    let old = table.insert(served("10.244.0.5:4000", "10.244.0.6:8080", 2 * S));
    // The kernel ends the first for the packet that begins the second, and tells both after it.
    end(&old, 10 * S + MS);
    let new = table.insert(served("10.244.0.5:4000", "10.244.0.7:8080", 10 * S + 2 * MS));
    let word = |found: Match| match found {
        Match::One(found) if Arc::ptr_eq(&found, &old) => "old",
        Match::One(found) if Arc::ptr_eq(&found, &new) => "new",
        Match::One(_) => "another",
        Match::Several => "several",
        Match::None => "none",
    };
    let over = |since_ns, until_ns| word(table.find_over(&asked, since_ns, until_ns, None));
    assert!(table.find_at(&asked, 10 * S).is_none());
    for (since_ns, until_ns, expected) in [
        (10 * S, 10 * S, "several"),
        (10 * S - 500 * MS, 10 * S, "several"),
        (5 * S, 5 * S, "old"),
        (5 * S, 10 * S, "old"),
        (10 * S, 12 * S, "several"),
        (10 * S + MS + 1, 10 * S + MS + 1, "new"),
        (10 * S + MS + 1, 12 * S, "new"),
        (5 * S, 12 * S, "several"),
        (S / 2, S / 2, "none"),
    ] {
        assert_eq!(over(since_ns, until_ns), expected, "{since_ns} {until_ns}");
    }
    // The first packet opened the connection, so it is not the one before it.
    let opened = |at_ns, until_ns| word(table.find_over(&asked, at_ns, until_ns, Some(at_ns)));
    for (at_ns, until_ns, expected) in [
        (10 * S, 10 * S, "new"),
        (10 * S, 12 * S, "new"),
        // It may have begun when the first one did.
        (2 * S, 12 * S, "several"),
        (3 * S, 3 * S, "old"),
        // What follows was not told.
        (10 * S, 9 * S, "old"),
    ] {
        assert_eq!(opened(at_ns, until_ns), expected, "{at_ns} {until_ns}");
    }
    // One that is translated alike makes no doubt, whichever port a mask picked.
    table.take(&new);
    let mut alike = served("10.244.0.5:4000", "10.244.0.6:8080", 10 * S + 2 * MS);
    alike.reply.dst.set_port(4_001);
    table.insert(alike);
    assert!(table.find_at(&asked, 10 * S).is_some());
    assert!(table.find_over(&asked, 5 * S, 12 * S, None).into_one().is_some());
}

#[test]
fn where_two_could_be_meant_there_is_no_answer() {
    let table = Translations::empty(8);
    let ping = |src: &str, dst: &str| Tuple { protocol: 1, ..tuple(src, dst) };
    let masked = |client: &str| {
        Translation::new(ping(client, "8.8.8.8:0"), ping("8.8.8.8:0", "172.30.0.11:0"), 1)
    };
    table.insert(masked("10.244.0.5:0"));
    let outside = ping("8.8.8.8:0", "172.30.0.11:0");
    assert!(table.find(&outside).is_some());
    table.insert(masked("10.244.0.6:0"));
    assert!(table.find(&outside).is_none() && table.find_at(&outside, 5).is_none());
    assert!(table.find(&ping("10.244.0.6:0", "8.8.8.8:0")).is_some(), "inside there is no doubt");
    // The same pod's second ping is no other translation.
    table.insert(masked("10.244.0.6:0"));
    assert!(table.find(&ping("10.244.0.6:0", "8.8.8.8:0")).is_some());
}

#[test]
fn the_generation_moves_with_each_change() {
    let table = Translations::empty(8);
    let mut last = table.generation();
    let mut moved = |what: &str| {
        let now = table.generation();
        assert_ne!(std::mem::replace(&mut last, now), now, "{what}");
    };
    let held = table.insert(served("10.244.0.5:4000", "10.244.0.6:8080", 1));
    moved("in");
    table.take(&held);
    moved("out");
}
