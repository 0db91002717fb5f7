//! Tests of what is read from `mountinfo`.

use proptest::prelude::*;

use super::*;

const V1: &str = "31 25 0:28 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
const NAMED: &str = "32 25 0:29 / /sys/fs/cgroup/systemd rw - cgroup cgroup rw,name=systemd\n";
const V2: &str = "30 25 0:27 / /sys/fs/cgroup/unified rw shared:9 - cgroup2 cgroup2 rw\n";
const OTHER: &str = "35 25 0:30 / /proc rw - proc proc rw\n";

#[test]
fn hosts_are_told_apart_by_the_hierarchies_that_have_controllers() {
    for (lines, set, expected) in [
        (vec![V2, OTHER], false, Mode::Unified),
        (vec![V2, NAMED], false, Mode::Unified),
        (vec![V1, V2, NAMED], false, Mode::Hybrid),
        (vec![V1, NAMED], false, Mode::V1),
        (vec![NAMED, OTHER], false, Mode::None),
        (vec![], false, Mode::None),
        (vec![], true, Mode::Unified),
        (vec![V1], true, Mode::Hybrid),
    ] {
        assert_eq!(Mounts::parse(&lines.concat()).mode(set), expected, "{lines:?}, set: {set}");
    }
}

#[test]
fn the_outermost_cgroup2_mount_is_found() {
    let check = |text: &str, expected: Option<&str>| {
        assert_eq!(Mounts::parse(text).outermost(), expected.map(PathBuf::from), "{text}");
    };
    check(
        "9 1 0:5 / /nowhere/a/b/cgroup rw - cgroup2 cgroup2 rw\n\
         8 1 0:5 / /with\\040space rw - cgroup2 none rw",
        Some("/with space"),
    );
    check(V1, None);
    check("", None);
    check("garbage - cgroup2", None);
}

#[test]
fn mounts_are_read_with_what_is_mounted() {
    let text = "33 25 0:27 /a/b /mnt/with\\040space rw shared:3 - cgroup2 none rw\n\
         34 25 0:27 /../.. /host/cgroup rw - cgroup2 none rw\n";
    let mount = |of: &str, at: &str| Mount { of: of.to_owned(), at: at.into() };
    let expected = [mount("/a/b", "/mnt/with space"), mount("/../..", "/host/cgroup")];
    assert_eq!(Mounts::parse(text).cgroup2, expected);
}

#[test]
fn escapes_are_undone_and_what_is_none_is_left() {
    for (field, expected) in [
        ("plain", "plain"),
        ("a\\040b\\134c", "a b\\c"),
        ("\\04", "\\04"),
        ("\\999", "\\999"),
        ("\\0e9", "\\0e9"),
        ("\\", "\\"),
    ] {
        assert_eq!(unescape(field), expected);
    }
}

proptest! {
    #[test]
    fn any_text_is_taken(text in "\\PC*") {
        let _mounts = Mounts::parse(&text);
        let _plain = unescape(&text);
    }

    #[test]
    fn what_the_kernel_escapes_is_read_as_it_was(path in "[a-z \\\\\\t\\n]{0,20}") {
        let escape = |c: char| match c {
            ' ' | '\t' | '\n' | '\\' => format!("\\{:03o}", u32::from(c)),
            c => c.to_string(),
        };
        prop_assert_eq!(unescape(&path.chars().map(escape).collect::<String>()), path);
    }
}
