//! The build of now against its budget, and the comparison over figures made by hand.

use super::*;

/// Fails with every violation on a line of its own.
#[track_caller]
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

#[track_caller]
fn assert_found(violations: &[String], expected: &[&str]) {
    let found = violations.len() == expected.len()
        && violations.iter().zip(expected).all(|(violation, part)| violation.contains(part));
    assert!(found, "expected {expected:?} in:\n{}\n", violations.join("\n"));
}

fn figures(instructions: u32, stack: u32, chain: u32, helpers: &[&str]) -> Figures {
    let helpers = helpers.iter().map(|helper| (*helper).to_owned()).collect();
    Figures { instructions, stack, chain, helpers }
}

fn one(figures: Figures) -> BTreeMap<String, Figures> {
    BTreeMap::from([("orb8_in_eth".to_owned(), figures)])
}

#[test]
fn programs_that_run_for_each_packet_are_within_their_budget() {
    let root = crate::root();
    let built = built(&root).unwrap_or_else(|failed| panic!("{failed:#}"));
    assert!(built.measured.len() > 10, "too few to be true: {}", built.measured.len());
    assert_none(&built.refused);
    assert_none(&check(&root, &built).unwrap_or_else(|failed| panic!("{failed:#}")));
}

#[test]
fn what_is_written_is_read_alike_and_fits_what_was_measured() {
    let measured = one(figures(589, 184, 480, &["jiffies64", "map_lookup_elem"]));
    let budget = Budget::of(22, &measured);
    let expected = figures(678, 216, 512, &["jiffies64", "map_lookup_elem"]);
    assert_eq!(budget.programs, one(expected));
    assert_eq!(Budget::parse(&budget.print()).expect("as written"), budget);
    assert_none(&budget.violations(22, &measured));
}

#[test]
fn what_is_above_its_budget_is_told_with_value_budget_and_way_out() {
    let budget = Budget::of(22, &one(figures(100, 64, 96, &["jiffies64"])));
    let heavier = one(figures(116, 81, 160, &["jiffies64", "skb_cgroup_id"]));
    for llvm in [22, 23] {
        assert_found(
            &budget.violations(llvm, &heavier),
            &[
                "orb8_in_eth: 116 instructions, more than its budget of 115",
                "orb8_in_eth: 81 bytes of stack, more than its budget of 80",
                "orb8_in_eth: 160 bytes of stack along a chain of calls, more than its budget of 128",
                "orb8_in_eth: calls skb_cgroup_id, which its budget does not name",
            ],
        );
    }
    let all = budget.violations(22, &heavier);
    assert!(all.iter().all(|violation| violation.contains(ANEW)), "{all:?}");
}

#[test]
fn what_is_far_below_its_budget_asks_for_a_lower_one_of_the_same_llvm_only() {
    let budget = Budget::of(22, &one(figures(1000, 64, 96, &["jiffies64"])));
    let lighter = |instructions| one(figures(instructions, 64, 96, &["jiffies64"]));
    assert_none(&budget.violations(22, &lighter(900)));
    assert_found(
        &budget.violations(22, &lighter(899)),
        &["orb8_in_eth: 899 instructions, far below its budget of 1150: lower it to 1034"],
    );
    assert_none(&budget.violations(23, &lighter(899)));
}

#[test]
fn programs_without_budget_and_budgets_without_program_are_found() {
    let budget = Budget::of(22, &one(figures(100, 64, 96, &["jiffies64"])));
    let other = BTreeMap::from([("orb8_out_eth".to_owned(), figures(100, 64, 96, &[]))]);
    assert_found(
        &budget.violations(22, &other),
        &[
            "orb8_out_eth: has no budget",
            "orb8_in_eth: orb8-probes/budget.txt has it, the object has not",
        ],
    );
    assert_found(
        &budget.violations(22, &one(figures(100, 64, 96, &[]))),
        &["orb8_in_eth: its budget names jiffies64, which it does not call"],
    );
}

#[test]
fn a_file_that_says_something_else_is_refused_by_its_line() {
    for (text, expected) in [
        ("# nothing\n", "its first line is not `llvm` and a number"),
        ("llvm new\n", "its first line is not `llvm` and a number"),
        ("llvm 22\norb8_in_eth 1 2\n", "line 2 is not a name, three numbers and helpers"),
        ("llvm 22\na 1 2 3\n\na 1 2 3\n", "line 4 is a second one for a"),
    ] {
        let error = Budget::parse(text).expect_err(expected);
        assert!(error.to_string().contains(expected), "{error}");
    }
}
