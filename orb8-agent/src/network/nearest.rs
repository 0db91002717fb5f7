//! Names that come near to one that nobody bears, for a person who mistyped.
//!
//! Pure: who has names gathers them before, so that nothing waits for this.

use std::collections::BTreeSet;

/// The most that are offered.
const OFFERED: usize = 3;
/// A longer value is no name of Kubernetes, and compared with nothing.
const LONGEST: usize = 253;
/// Of so many letters, one may be wrong.
const LETTERS_TO_AN_ERROR: usize = 3;

/// The nearest names, the nearest first; none if none comes near. `by_prefix`: the value is the
/// beginning of a name, so that only as much of a name is compared.
#[must_use]
pub fn nearest(value: &str, names: &BTreeSet<String>, by_prefix: bool) -> Vec<String> {
    let length = value.chars().count();
    if length == 0 || length > LONGEST {
        return Vec::new();
    }
    let most = (length / LETTERS_TO_AN_ERROR).max(1);
    let distance = |name: &str| {
        let name_length = name.chars().count();
        let whole =
            (name_length.abs_diff(length) <= most).then(|| strsim::osa_distance(value, name));
        let begins = (by_prefix && name_length > length).then(|| {
            let beginning: String = name.chars().take(length).collect();
            strsim::osa_distance(value, &beginning)
        });
        // A part of a name is as far away as may be, and nearer than nothing.
        let part = (length >= LETTERS_TO_AN_ERROR && name.contains(value)).then_some(most);
        [whole, begins, part].into_iter().flatten().filter(|distance| *distance <= most).min()
    };
    let mut near: Vec<(usize, &String)> =
        names.iter().filter_map(|name| Some((distance(name)?, name))).collect();
    near.sort_unstable();
    near.into_iter().take(OFFERED).map(|(_, name)| name.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(value: &str, by_prefix: bool, expected: &[&str]) {
        let names = ["shop", "shop-test", "stop", "kube-system", "web", "db", "checkout-backend"];
        let names = names.iter().map(ToString::to_string).collect();
        assert_eq!(nearest(value, &names, by_prefix), expected, "{value}");
    }

    #[test]
    fn the_nearest_names_are_offered_first_and_the_far_ones_never() {
        check("shp", false, &["shop"]);
        check("shpo", false, &["shop"]);
        check("slop", false, &["shop", "stop"]);
        check("kube-sytsem", false, &["kube-system"]);
        check("backend", false, &["checkout-backend"]);
        check("d", false, &["db"]);
        check("monitoring", false, &[]);
        check("", false, &[]);
        check(&"x".repeat(300), false, &[]);
    }

    #[test]
    fn a_prefix_is_compared_with_as_much_of_a_name() {
        check("chekout", false, &[]);
        check("chekout", true, &["checkout-backend"]);
        check("wbe", true, &["web"]);
        check("shop-tset", true, &["shop-test"]);
    }
}
