//! Rule: what is generated and checked in is what its source makes today.

use std::path::Path;

use super::{assert_found, assert_none};

/// Names of files that differ between two folders, or are in one only.
fn violations(fresh: &Path, checked_in: &Path) -> Vec<String> {
    let names = |folder: &Path| -> Vec<String> {
        std::fs::read_dir(folder)
            .expect("read a folder")
            .filter_map(Result::ok)
            .map(|entry| entry.file_name().to_string_lossy().into_owned())
            .collect()
    };
    let mut all = [names(fresh), names(checked_in)].concat();
    all.sort();
    all.dedup();
    all.into_iter()
        .filter(|name| {
            std::fs::read(fresh.join(name)).ok() != std::fs::read(checked_in.join(name)).ok()
        })
        .map(|name| format!("{name} is not what its source makes: run `make generate`"))
        .collect()
}

/// A folder of this process and name, empty.
fn scratch(name: &str) -> std::path::PathBuf {
    let folder = std::env::temp_dir().join(format!("orb8-xtask-{}-{name}", std::process::id()));
    std::fs::create_dir_all(&folder).expect("make a folder");
    folder
}

#[test]
fn generated_types_are_fresh() {
    let fresh = scratch("proto");
    crate::proto::generate(&fresh).expect("generate");
    let found = violations(&fresh, &crate::root().join("orb8-proto/src/generated"));
    std::fs::remove_dir_all(&fresh).expect("remove the folder");
    assert_none(&found);
}

#[test]
fn stale_and_missing_files_are_found() {
    let (fresh, old) = (scratch("fresh"), scratch("old"));
    let write = |folder: &Path, name: &str, text: &str| {
        std::fs::write(folder.join(name), text).expect("write a file");
    };
    write(&fresh, "same", "1");
    write(&old, "same", "1");
    write(&fresh, "changed", "1");
    write(&old, "changed", "2");
    write(&fresh, "new", "1");
    let found = violations(&fresh, &old);
    for folder in [fresh, old] {
        std::fs::remove_dir_all(folder).expect("remove the folder");
    }
    assert_found(&found, &["changed", "new"]);
}
