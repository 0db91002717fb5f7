//! The rules of the house as ordinary tests: `cargo test -p xtask`.
//!
//! Each file holds one rule: a `violations` function over data, a test that the repository has
//! none, and a test that a bad input has some, so that a rule that cannot fail is noticed.

mod documents;
mod edges;
mod files;
mod generated;
mod imports;
mod places;
mod platform;
mod safety;
mod source;
mod supply;
mod wire;

use source::Source;

/// Fails with every violation on a line of its own.
fn assert_none(violations: &[String]) {
    assert!(violations.is_empty(), "\n{}\n", violations.join("\n"));
}

/// Fails unless exactly the named things were found, in this order.
fn assert_found(violations: &[String], expected: &[&str]) {
    let found = violations.len() == expected.len()
        && violations.iter().zip(expected).all(|(violation, part)| violation.contains(part));
    assert!(found, "expected {expected:?} in:\n{}\n", violations.join("\n"));
}
