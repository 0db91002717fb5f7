//! Figures in, sentences about what is wrong out. Everything that a soak promises is one check here.

use super::figures::{Account, Answers, Cost, EventAccount, Figures, MIB, Memory, Pace, Recovery};
use crate::flow::Total;

/// What is wrong, a sentence each; empty if all promises were kept.
#[must_use]
pub fn judge(figures: &Figures) -> Vec<String> {
    let mut wrong = Vec::new();
    packets(figures.offered.total, &figures.account, &mut wrong);
    events(&figures.events, &mut wrong);
    for (number, one) in figures.subscribers.iter().enumerate() {
        let sum = one.delivered + one.filtered + one.lost + one.queued;
        if one.offered != sum {
            wrong.push(format!(
                "subscriber {}: {} events offered, {sum} delivered, filtered, lost or queued",
                number + 1,
                one.offered
            ));
        }
    }
    memory(&figures.memory, &mut wrong);
    answers(&figures.answers, &mut wrong);
    recovery(figures.recovery, &mut wrong);
    cost(&figures.cost, &mut wrong);
    if let Some(pace) = &figures.pace {
        slower(pace, &mut wrong);
    }
    wrong.extend(figures.faults.iter().cloned());
    wrong
}

fn packets(offered: Total, account: &Account, wrong: &mut Vec<String>) {
    if offered.packets == 0 {
        wrong.push("nothing was sent, so nothing was shown".to_owned());
    }
    if offered != account.seen {
        wrong.push(format!("the kernel carried {offered}, the programs saw {}", account.seen));
    }
    let accounted = account.accounted();
    if accounted != account.seen {
        wrong.push(format!("of {} seen, {accounted} are accounted for", account.seen));
    }
    if account.in_flight != Total::default() {
        wrong.push(format!("{} are in flight at rest", account.in_flight));
    }
    if account.state != "balanced" {
        wrong.push(format!("the agent calls its packet ledger {:?}", account.state));
    }
    if let Some(moved) = &account.moved {
        wrong.push(format!("the packet ledger changed at rest: {moved}"));
    }
}

fn events(events: &EventAccount, wrong: &mut Vec<String>) {
    let sum = events.processed + events.rejected + events.lost;
    if sum != events.produced {
        wrong.push(format!("of {} events produced, {sum} are accounted for", events.produced));
    }
    if events.state != "balanced" {
        wrong.push(format!("the agent calls its event ledger {:?}", events.state));
    }
}

fn memory(memory: &Memory, wrong: &mut Vec<String>) {
    let mib = |bytes: u64| bytes as f64 / MIB as f64;
    if memory.max == 0 {
        wrong.push("memory was never read".to_owned());
    }
    if memory.max > memory.limit {
        let (max, limit) = (mib(memory.max), mib(memory.limit));
        wrong.push(format!("memory reached {max:.1} MiB of {limit:.1} MiB"));
    }
    if let Some(limit) = memory.growth_limit
        && memory.growth() > limit.cast_signed()
    {
        let (early, late) = (mib(memory.early), mib(memory.late));
        let limit = mib(limit);
        wrong.push(format!(
            "memory is not flat: {early:.1} MiB early, {late:.1} MiB late, {limit:.1} MiB more at most"
        ));
    }
}

fn answers(answers: &Answers, wrong: &mut Vec<String>) {
    if answers.asked == 0 {
        wrong.push("the agent was never asked".to_owned());
    }
    if answers.max_ms > answers.limit_ms {
        wrong.push(format!(
            "an answer took {:.0} ms, {:.0} ms at most",
            answers.max_ms, answers.limit_ms
        ));
    }
    if let Some(first) = answers.failed.first() {
        let (failed, asked) = (answers.failed.len(), answers.asked);
        wrong.push(format!("{failed} of {asked} questions had no answer, the first: {first}"));
    }
}

fn recovery(recovery: Recovery, wrong: &mut Vec<String>) {
    match recovery.seconds {
        None => wrong.push("it did not recover by itself".to_owned()),
        Some(seconds) if seconds > recovery.limit => wrong
            .push(format!("it took {seconds:.1} s to recover, {:.1} s at most", recovery.limit)),
        Some(_) => {}
    }
}

fn cost(cost: &Cost, wrong: &mut Vec<String>) {
    let Some(limit) = cost.limit_ns() else { return };
    if cost.looks == 0 {
        wrong.push("what the programs cost was never measured".to_owned());
    }
    if cost.surely_ns > limit {
        wrong.push(format!(
            "the programs take {:.0} ns for a packet, {limit:.0} ns at most",
            cost.surely_ns
        ));
    }
}

fn slower(pace: &Pace, wrong: &mut Vec<String>) {
    if pace.pairs == 0 {
        wrong.push("the traffic's pace was never measured".to_owned());
    }
    if let Some(limit) = pace.limit_ns
        && pace.surely_more_ns > limit
    {
        wrong.push(format!(
            "a packet takes {:.0} ns more than where packets are only counted, {limit:.0} ns at most",
            pace.surely_more_ns
        ));
    }
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::soak::figures::{Lost, Offered, SubscriberAccount};

    fn total(packets: u64) -> Total {
        Total { packets, bytes: packets * 46 }
    }

    fn account() -> Account {
        let lost = |stage: &str, reason: &str, packets| Lost {
            stage: stage.to_owned(),
            reason: reason.to_owned(),
            total: total(packets),
        };
        Account {
            seen: total(1_000_000),
            reported: total(400_000),
            filtered: total(1_000),
            rejected: total(9_000),
            lost: vec![
                lost("flow_table", "evicted", 90_000),
                lost("hook", "flow_table_full", 500_000),
                lost("unattached", "before_attach", 7),
            ],
            in_flight: Total::default(),
            state: "balanced".to_owned(),
            moved: None,
        }
    }

    /// Figures in which everything is as promised.
    pub(in crate::soak) fn kept() -> Figures {
        Figures {
            name: "unique_flows".to_owned(),
            seconds: 66.0,
            offered: Offered { total: total(1_000_000), flows: Some(1_000_000), connections: None },
            account: account(),
            events: EventAccount {
                produced: 500_000,
                processed: 499_000,
                rejected: 0,
                lost: 1_000,
                state: "balanced".to_owned(),
            },
            subscribers: vec![SubscriberAccount {
                offered: 10,
                delivered: 4,
                filtered: 3,
                lost: 2,
                queued: 1,
            }],
            memory: Memory {
                max: 70 * MIB,
                limit: 96 * MIB,
                early: 69 * MIB,
                late: 70 * MIB,
                growth_limit: Some(2 * MIB),
            },
            answers: Answers {
                asked: 1_200,
                max_ms: 310.4,
                p99_ms: 41.26,
                limit_ms: 1_000.0,
                failed: Vec::new(),
            },
            recovery: Recovery { seconds: Some(3.2), limit: 15.0 },
            cost: Cost {
                looks: 300,
                median_ns: 34.4,
                surely_ns: 31.6,
                empty_ns: 60.0,
                limit: Some(1.5),
            },
            pace: Some(Pace {
                pairs: 200,
                watched_ns: 1_020.0,
                alone_ns: 1_000.0,
                surely_more_ns: 12.0,
                limit_ns: Some(110.0),
            }),
            faults: Vec::new(),
        }
    }

    #[test]
    fn promises_that_are_kept_are_not_called_broken() {
        assert_eq!(judge(&kept()), [""; 0]);
    }

    #[test]
    fn what_has_no_limit_is_not_held_to_one() {
        let mut figures = kept();
        figures.memory.growth_limit = None;
        figures.memory.late = 90 * MIB;
        (figures.cost.limit, figures.cost.surely_ns) = (None, 5_000.0);
        let pace = figures.pace.as_mut().expect("a pace");
        (pace.limit_ns, pace.surely_more_ns) = (None, 5_000.0);
        assert_eq!(judge(&figures), [""; 0]);
    }

    #[test]
    fn memory_that_shrinks_is_flat() {
        let mut figures = kept();
        (figures.memory.early, figures.memory.late) = (70 * MIB, 40 * MIB);
        assert_eq!(judge(&figures), [""; 0]);
    }

    /// What a break makes of figures that are as promised, and the word for it.
    type Break = (fn(&mut Figures), &'static str);

    const BREAKS: [Break; 27] = [
        (|f| f.account.reported.packets -= 1, "of 1000000 packets 46000000 bytes seen, 999999"),
        (|f| f.account.reported.bytes += 1, "seen, 1000000 packets 46000001 bytes are accounted"),
        (|f| f.account.lost[0].total.packets = 0, "of 1000000 packets 46000000 bytes seen, 910000"),
        (|f| drop(f.account.lost.remove(1)), "seen, 500000 packets"),
        (|f| f.account.lost[2].stage = "hook".to_owned(), "seen, 1000007 packets"),
        (|f| f.offered.total.packets += 1, "the kernel carried 1000001 packets"),
        (
            |f| f.offered.total.bytes -= 1,
            "carried 1000000 packets 45999999 bytes, the programs saw",
        ),
        (|f| f.account.in_flight.packets = 1, "1 packets 0 bytes are in flight at rest"),
        (|f| f.account.state = "unbalanced".to_owned(), "its packet ledger \"unbalanced\""),
        (|f| f.account.moved = Some("2 more".to_owned()), "ledger changed at rest: 2 more"),
        (|f| f.events.processed -= 1, "of 500000 events produced, 499999 are accounted for"),
        (|f| f.events.lost += 1, "of 500000 events produced, 500001 are accounted for"),
        (|f| f.events.state = "unbalanced".to_owned(), "its event ledger \"unbalanced\""),
        (|f| f.subscribers[0].delivered = 5, "subscriber 1: 10 events offered, 11 delivered"),
        (|f| f.memory.max = 97 * MIB, "memory reached 97.0 MiB of 96.0 MiB"),
        (|f| f.memory.max = 0, "memory was never read"),
        (|f| f.memory.late = 72 * MIB, "not flat: 69.0 MiB early, 72.0 MiB late, 2.0 MiB more"),
        (|f| f.answers.max_ms = 1_000.6, "an answer took 1001 ms, 1000 ms at most"),
        (|f| f.answers.asked = 0, "the agent was never asked"),
        (|f| f.answers.failed.push("gone".to_owned()), "1 of 1200 questions had no answer, the"),
        (|f| f.recovery.seconds = None, "it did not recover by itself"),
        (|f| f.recovery.seconds = Some(15.06), "it took 15.1 s to recover, 15.0 s at most"),
        (
            |f| f.pace.as_mut().expect("a pace").surely_more_ns = 111.0,
            "a packet takes 111 ns more than where packets are only counted, 110 ns at most",
        ),
        (|f| f.pace.as_mut().expect("a pace").pairs = 0, "the traffic's pace was never measured"),
        (|f| f.cost.looks = 0, "what the programs cost was never measured"),
        (|f| f.cost.surely_ns = 90.6, "the programs take 91 ns for a packet, 90 ns at most"),
        (|f| f.faults.push("a wrong name".to_owned()), "a wrong name"),
    ];

    #[test]
    fn every_promise_that_is_broken_is_named_and_no_other() {
        for (broken, word) in BREAKS {
            let mut figures = kept();
            broken(&mut figures);
            let wrong = judge(&figures);
            assert_eq!(wrong.len(), 1, "{word}: {wrong:?}");
            assert!(wrong[0].contains(word), "{word}: {wrong:?}");
        }
    }

    #[test]
    fn figures_of_nothing_break_every_promise_that_can_be_asked() {
        let wrong = judge(&Figures::default()).join("\n");
        for word in ["nothing was sent", "never read", "never asked", "did not recover"] {
            assert!(wrong.contains(word), "{word}: {wrong}");
        }
    }
}
