//! Replays the fuzzer's seeds, so that what it once found stays right without a fuzzer.

#[path = "../../fuzz/check.rs"]
mod check;

use std::path::Path;

#[test]
fn seeds_of_the_parser_hold() {
    let seeds = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz/seeds/parse");
    let mut count = 0;
    for seed in std::fs::read_dir(seeds).expect("read the folder of seeds") {
        let bytes = std::fs::read(seed.expect("read an entry").path()).expect("read a seed");
        assert!(bytes.len() > check::PREFIX, "an empty seed says nothing");
        // Every shorter version too: a packet may be cut off anywhere.
        for end in 0..=bytes.len() {
            check::check(&bytes[..end]);
        }
        count += 1;
    }
    assert!(count >= 10, "only {count} seeds");
}
