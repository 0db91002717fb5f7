//! Tests of the judge: steps, calm, what is given up.

use proptest::prelude::*;

use super::*;

const CALM_FOR: Duration = Duration::from_secs(10);

/// A second on one CPU, with so much of it used.
fn second(cpu: f64) -> Measured {
    Measured {
        interval: Duration::from_secs(1),
        cpus: 1,
        user: Duration::from_secs_f64(cpu / 2.0),
        programs: Duration::from_secs_f64(cpu / 2.0),
        exact: true,
        memory_bytes: 0,
        drained: true,
    }
}

#[test]
fn a_rate_that_a_drain_tells_is_that_of_all_the_time_since_the_one_before() {
    let before = Measured { exact: false, drained: false, ..second(0.8) };
    let after = Measured { exact: false, ..second(0.2) };
    let whole = after.with(&before).with(&before);
    assert_eq!((whole.interval.as_secs(), whole.programs.as_millis()), (3, 300));
    assert_eq!(second(0.2).with(&second(0.8)).programs.as_millis(), 500);
}

fn governor() -> Governor {
    of(1, 300)
}

/// One with so many seconds between drains, and of history.
fn of(drain_interval: u64, history: u64) -> Governor {
    let [drain_interval, history] = [drain_interval, history].map(Duration::from_secs);
    Governor::new(Budgets::default(), CALM_FOR, drain_interval, history)
}

fn judge(governor: &mut Governor, measured: &Measured) -> Vec<Change> {
    governor.judge_load(measured).collect()
}

fn rings(governor: &mut Governor, events: f64, packets: f64, seconds: u64) -> Vec<Change> {
    governor.judge_rings(RingFill { events, packets }, Duration::from_secs(seconds)).collect()
}

const fn further(cause: Cause) -> Change {
    Change { cause, back: false, felt: true }
}

const fn back(cause: Cause) -> Change {
    Change { cause, back: true, felt: true }
}

#[test]
fn each_budget_that_is_exceeded_takes_a_step_of_its_own() {
    let mut governor = governor();
    assert_eq!(judge(&mut governor, &second(0.02)), [further(Cause::Cpu)]);
    assert_eq!(governor.given(), Given { intervals: 2, ..Given::NOTHING });
    let heavy = Measured { memory_bytes: 97 << 20, ..second(0.008) };
    assert_eq!(judge(&mut governor, &heavy), [further(Cause::Memory)]);
    assert_eq!(governor.given(), Given { intervals: 2, history_part: 2, ..Given::NOTHING });
    assert_eq!(rings(&mut governor, 0.9, 0.9, 0).len(), 2);
    let all = Given { intervals: 2, fewer_events: true, sampling: 2, history_part: 2 };
    assert_eq!(governor.given(), all);
    assert_eq!(governor.level(), 4);
}

#[test]
fn cpu_time_is_judged_once_for_each_drain_and_over_all_the_time_since_the_last() {
    let mut governor = governor();
    let undrained = |cpu| Measured { drained: false, ..second(cpu) };
    for _ in 0..11 {
        assert_eq!(judge(&mut governor, &undrained(0.02)), [], "nothing new is known");
    }
    assert_eq!(judge(&mut governor, &second(0.02)), [further(Cause::Cpu)]);
    assert!((governor.judged_cpu() - 0.02).abs() < 1e-9);
    judge(&mut governor, &undrained(0.012));
    assert_eq!(judge(&mut governor, &second(0.004)), [], "0.8 % over both seconds");
    assert!((governor.judged_cpu() - 0.008).abs() < 1e-9);
    for _ in 0..9 {
        assert_eq!(judge(&mut governor, &undrained(0.001)), []);
    }
    assert_eq!(judge(&mut governor, &second(0.001)), [back(Cause::Cpu)], "ten seconds of calm");
}

#[test]
fn steps_that_change_nothing_are_not_taken() {
    let steps = |mut governor: Governor| {
        let over = Measured { memory_bytes: 97 << 20, ..second(0.02) };
        let mut all = vec![governor.given()];
        for grown in 0..12 {
            judge(&mut governor, &Measured { memory_bytes: over.memory_bytes << grown, ..over });
            all.push(governor.given());
        }
        all.dedup();
        let effect = |given: &Given, interval, history| {
            (Drains::stretched_by(interval, given.intervals), given.history(history))
        };
        (all, effect)
    };
    for (drain_interval, history, cpu_steps, memory_steps) in
        [(1, 300, 8, 3), (10, 300, 7, 3), (60, 300, 6, 3), (60, 0, 6, 0)]
    {
        let (all, effect) = steps(of(drain_interval, history));
        let last = of(drain_interval, history);
        assert_eq!(
            (last.cpu_steps.len(), last.history_parts.len()),
            (cpu_steps + 1, memory_steps + 1)
        );
        let [interval, history] = [drain_interval, history].map(Duration::from_secs);
        for pair in all.windows(2) {
            let same = |given: &Given| {
                (effect(given, interval, history), given.fewer_events, given.sampling)
            };
            assert_ne!(same(&pair[0]), same(&pair[1]));
        }
    }
}

#[test]
fn the_budget_of_cpu_time_is_the_nodes() {
    let of_two_cpus = Measured { cpus: 2, ..second(0.015) };
    assert_eq!(judge(&mut governor(), &of_two_cpus), []);
}

#[test]
fn what_was_given_up_comes_back_after_calm_and_not_after_a_lull() {
    let mut governor = governor();
    judge(&mut governor, &second(0.02));
    for _ in 0..9 {
        assert_eq!(judge(&mut governor, &second(0.001)), []);
    }
    assert_eq!(judge(&mut governor, &second(0.008)), [], "within the budget and not calm");
    for _ in 0..9 {
        assert_eq!(judge(&mut governor, &second(0.001)), []);
    }
    assert_eq!(judge(&mut governor, &second(0.001)), [back(Cause::Cpu)]);
    assert_eq!(governor.given(), Given::NOTHING);
}

#[test]
fn memory_takes_another_step_only_while_it_grows() {
    let mut governor = governor();
    let taking = |mib: u64| Measured { memory_bytes: mib << 20, ..second(0.0) };
    assert_eq!(judge(&mut governor, &taking(97)), [further(Cause::Memory)]);
    assert_eq!(judge(&mut governor, &taking(98)), []);
    assert_eq!(judge(&mut governor, &taking(99)), [further(Cause::Memory)]);
    assert_eq!(judge(&mut governor, &taking(101)), [further(Cause::Memory)]);
    assert_eq!(governor.given().history(Duration::from_secs(300)), Duration::ZERO);
    for _ in 0..10 {
        assert_eq!(judge(&mut governor, &taking(90)), [], "not calm");
    }
    for _ in 0..9 {
        judge(&mut governor, &taking(80));
    }
    assert_eq!(judge(&mut governor, &taking(80)), [back(Cause::Memory)]);
    assert_eq!(governor.given().history(Duration::from_secs(300)), Duration::from_secs(75));
}

#[test]
fn memory_that_grows_again_after_a_step_back_is_over_its_budget_again() {
    let mut governor = governor();
    let taking = |mib: u64| Measured { memory_bytes: mib << 20, ..second(0.0) };
    assert_eq!(judge(&mut governor, &taking(97)), [further(Cause::Memory)]);
    assert_eq!(judge(&mut governor, &taking(200)), [further(Cause::Memory)]);
    let steps: Vec<_> = (0..10).flat_map(|_| judge(&mut governor, &taking(80))).collect();
    assert_eq!(steps, [back(Cause::Memory)]);
    assert_eq!(judge(&mut governor, &taking(150)), [further(Cause::Memory)]);
}

#[test]
fn what_had_to_be_given_up_again_at_once_comes_back_after_twice_the_calm() {
    let mut governor = governor();
    let mut calm_until_back = || {
        assert_eq!(rings(&mut governor, 1.0, 0.0, 1), [further(Cause::EventRing)]);
        (1..).find(|_| !rings(&mut governor, 0.0, 0.0, 1).is_empty()).unwrap()
    };
    let waits = [(); 8].map(|()| calm_until_back());
    assert_eq!(waits, [10, 20, 40, 80, 160, 300, 300, 300]);
    for _ in 0..=300 {
        assert_eq!(rings(&mut governor, 0.7, 0.0, 1), []);
    }
    assert_eq!(rings(&mut governor, 1.0, 0.0, 1), [further(Cause::EventRing)]);
    assert_eq!(rings(&mut governor, 0.0, 0.0, 10), [back(Cause::EventRing)], "it had held");
}

#[test]
fn a_ring_over_the_threshold_doubles_the_sampling_up_to_an_end() {
    let mut governor = governor();
    for doublings in 1..=10 {
        assert!(governor.is_pressed(RingFill { events: 0.0, packets: 0.9 }));
        assert_eq!(rings(&mut governor, 0.0, 0.9, 0), [further(Cause::PacketRing)]);
        assert_eq!(governor.given().sampling, 1 << doublings);
    }
    assert!(!governor.is_pressed(RingFill { events: 0.0, packets: 0.9 }));
    assert_eq!(rings(&mut governor, 0.0, 0.9, 0), []);
    assert!(!governor.given().fewer_events, "the other ring has room");
    assert_eq!(rings(&mut governor, 0.0, 0.1, 10), [back(Cause::PacketRing)]);
}

#[test]
fn steps_for_cpu_time_only_ever_give_up_more() {
    assert_eq!(CPU_STEPS.map(|(intervals, ..)| intervals).into_iter().max(), Some(MOST_INTERVALS));
    for pair in CPU_STEPS.windows(2) {
        let [(intervals, fewer, sampling), (more_intervals, fewer_yet, sparser)] =
            [pair[0], pair[1]];
        assert!(more_intervals >= intervals && more_intervals <= 2 * intervals);
        assert!(fewer_yet || !fewer);
        assert!(sparser >= sampling && sparser <= 2 * sampling);
    }
}

proptest! {
    /// A load that stays as it is, of which steps may save all: every time that a step is taken back
    /// in vain, more calm is waited for the next time.
    #[test]
    fn a_steady_load_changes_ever_less_whatever_steps_save(
        cost in 0.0_f64..0.1,
        saved in prop::array::uniform8(0.0_f64..=1.0),
    ) {
        let mut governor = governor();
        let mut changes = 0;
        for _ in 0..3000 {
            let cost = saved[..governor.level()].iter().fold(cost, |cost, part| cost * (1.0 - part));
            changes += judge(&mut governor, &second(cost)).len();
        }
        // After 10, 20, 40, 80, 160 seconds of calm, and then 9 times after 300.
        prop_assert!(changes <= CPU_STEPS.len() + 2 * (5 + 9), "{changes} changes");
    }

    /// A load that stays as it is: whatever part of the cost, up to half, a step saves, the level
    /// is found and then kept.
    #[test]
    fn a_steady_load_finds_its_level_and_stays(
        cost in 0.0_f64..0.1,
        saved in prop::array::uniform8(0.0_f64..=0.5),
    ) {
        let mut governor = governor();
        let cost_at = |level: usize| saved[..level].iter().fold(cost, |cost, part| cost * (1.0 - part));
        for _ in 0..CPU_STEPS.len() {
            let cost = cost_at(governor.level());
            judge(&mut governor, &second(cost));
        }
        let found = governor.level();
        for _ in 0..100 {
            let cost = cost_at(governor.level());
            prop_assert_eq!(judge(&mut governor, &second(cost)), []);
        }
        prop_assert!(cost_at(found) <= 0.01 || found + 1 == CPU_STEPS.len());
    }

    /// Whatever is measured, changes are of one step, and what is given up is one of the lists.
    #[test]
    fn steps_are_single(
        measured in prop::collection::vec(
            (0.0_f64..0.03, 0_u64..128, 0.0_f64..=1.0, 0.0_f64..=1.0, 0_u64..20), 0..200),
    ) {
        let mut governor = governor();
        for (cpu, mib, events, packets, seconds) in measured {
            let before = governor.level();
            let interval = Duration::from_secs(seconds);
            let measured = Measured { interval, memory_bytes: mib << 20, ..second(cpu * seconds as f64) };
            let mut changes = judge(&mut governor, &measured);
            changes.extend(rings(&mut governor, events, packets, seconds));
            let back = changes.iter().filter(|change| change.back).count();
            prop_assert_eq!(before + changes.len() - 2 * back, governor.level());
            prop_assert!(changes.len() <= 4);
            prop_assert!(governor.given().sampling <= 1024);
        }
    }
}
