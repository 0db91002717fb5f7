//! Tests of the path parser: a table of forms, recorded paths, and paths made at random.

use proptest::prelude::*;

use super::*;

const RECORDED_PATHS: &str = include_str!("../../../tests/fixtures/cgroups/recorded-paths.txt");
const RECORDED_PODS: &str = include_str!("../../../tests/fixtures/cgroups/recorded-pods.txt");
const FORMS: &str = include_str!("../../../tests/fixtures/cgroups/forms.txt");

fn lines(text: &str) -> impl Iterator<Item = &str> {
    text.lines().filter(|line| !line.is_empty() && !line.starts_with('#'))
}

fn word(value: Option<&str>) -> &str {
    value.filter(|text| !text.is_empty()).unwrap_or("-")
}

/// The columns of `forms.txt`.
fn columns(found: Option<&Placement>) -> String {
    let Some(found) = found else { return "nothing".to_owned() };
    let container = found.container.as_ref();
    [
        word(found.pod.as_deref()),
        word(container.map(|container| &*container.id)),
        word(container.and_then(|it| it.runtime).map(Runtime::as_str)),
        word(found.driver.map(Driver::as_str)),
        word(found.unit.as_deref()),
        word(Some(&found.nested)),
    ]
    .join(" ")
}

/// `<id>` stands for 64 digits, `<uid>` for a uid, `<uid_>` for the same with underscores, and
/// `<hash>` for a config hash.
fn filled(text: &str) -> String {
    let uid = "0f1e2d3c-4b5a-6978-8796-a5b4c3d2e1f0";
    text.replace("<id>", &"0123456789abcdef".repeat(4))
        .replace("<uid>", uid)
        .replace("<uid_>", &uid.replace('-', "_"))
        .replace("<hash>", "c3b40216dfca0180a2dba246afe9c6e9")
}

#[test]
fn every_form_of_path_is_read() {
    let mut checked = 0;
    for pair in lines(FORMS).collect::<Vec<_>>().chunks(2) {
        let [path, expected] = pair else { panic!("a path without its columns: {pair:?}") };
        let expected: Vec<&str> = expected.split_whitespace().collect();
        let found = columns(Placement::parse(&filled(path)).as_ref());
        assert_eq!(found, filled(&expected.join(" ")), "{path}");
        checked += 1;
    }
    assert!(checked >= 50, "{checked} forms");
}

#[test]
fn recorded_paths_lead_to_the_pods_and_containers_that_the_api_told() {
    let placements: Vec<Placement> = lines(RECORDED_PATHS).filter_map(Placement::parse).collect();
    let mut containers = 0;
    for line in lines(RECORDED_PODS) {
        let mut words = line.split(' ');
        let (name, uid) = (words.next().unwrap(), words.next().unwrap());
        for id in words {
            let of_id = |it: &&Placement| it.container.as_ref().is_some_and(|it| &*it.id == id);
            let found: Vec<_> = placements.iter().filter(of_id).collect();
            assert_eq!(found.len(), 1, "{name}: {id}");
            assert_eq!(found[0].pod.as_deref(), Some(uid), "{name}");
            assert_eq!(found[0].driver, Some(Driver::Cgroupfs), "{name}");
            containers += 1;
        }
    }
    assert!(containers > 15, "{containers} containers");
    let told = |uid: &str| lines(RECORDED_PODS).any(|line| line.contains(uid));
    for placement in &placements {
        let uid = placement.pod.as_deref().expect("nothing but pods was recorded");
        assert!(told(uid) || placement.container.is_some() || placement.nested.is_empty());
    }
}

/// The same pod as each driver and runtime writes it, and what must be read from it.
fn arbitrary() -> impl Strategy<Value = (String, Placement)> {
    let root = prop_oneof![Just(""), Just("n2"), Just("kubelet"), Just("a-b")];
    let uid = "[0-9a-f]{8}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{4}-[0-9a-f]{12}|[0-9a-f]{32}";
    let class = prop_oneof![Just(""), Just("burstable"), Just("besteffort")];
    let nested = "(/[a-z][a-z0-9.-]{0,8}){0,3}";
    (root, uid, class, "[0-9a-f]{64}", 0..4_usize, any::<bool>(), nested).prop_map(
        |(root, uid, class, id, runtime, systemd, nested)| {
            let (prefix, runtime) = PREFIXES[runtime];
            let path = if systemd {
                let join = |parts: &[&str]| {
                    let parts: Vec<_> = parts.iter().filter(|it| !it.is_empty()).copied().collect();
                    parts.join("-")
                };
                // A slice's own dashes would be levels; a kubelet escapes them in its root.
                let root = root.replace('-', "_");
                let (top, middle) = (join(&[&root, "kubepods"]), join(&[&root, "kubepods", class]));
                let pod = format!("{middle}-pod{}", uid.replace('-', "_"));
                let middle =
                    if class.is_empty() { String::new() } else { format!("/{middle}.slice") };
                format!("/{top}.slice{middle}/{pod}.slice/{prefix}{id}.scope{nested}")
            } else {
                let slash =
                    |part: &str| if part.is_empty() { String::new() } else { format!("/{part}") };
                format!("{}/kubepods{}/pod{uid}/{prefix}{id}{nested}", slash(root), slash(class))
            };
            let placement = Placement {
                pod: Some(uid.into()),
                container: Some(Container { id: id.into(), runtime }),
                driver: Some(if systemd { Driver::Systemd } else { Driver::Cgroupfs }),
                unit: None,
                nested: nested.trim_start_matches('/').into(),
            };
            (path, placement)
        },
    )
}

proptest! {
    #[test]
    fn a_path_says_what_it_was_made_of((path, placement) in arbitrary(), up in 0..4_usize) {
        prop_assert_eq!(Placement::parse(&path), Some(placement.clone()), "{}", path);
        // As a process in another cgroup namespace is told it.
        let relative = format!("{}{path}", "/..".repeat(up));
        prop_assert_eq!(Placement::parse(&relative), Some(placement), "{}", relative);
    }

    #[test]
    fn any_text_is_taken(path in "\\PC*") {
        let _found = Placement::parse(&path);
    }

    #[test]
    fn any_parts_are_taken(parts in proptest::collection::vec(
        prop_oneof![
            Just("kubepods".to_owned()), Just("pod".to_owned()), Just("..".to_owned()),
            Just("kubepods-pod.slice".to_owned()), Just("crio-.scope".to_owned()),
            Just("-pod_.slice:cri-containerd:".to_owned()), Just(".service".to_owned()),
            "[-_.:a-z0-9]{0,70}",
        ], 0..8))
    {
        let path = parts.join("/");
        if let Some(found) = Placement::parse(&path) {
            let said = found.pod.is_some() || found.container.is_some() || found.unit.is_some();
            prop_assert!(said);
            // Empty parts are none.
            let plain = parts.join("/").split('/').filter(|part| !part.is_empty()).collect::<Vec<_>>().join("/");
            prop_assert!(plain.ends_with(&*found.nested), "{}", path);
            prop_assert_ne!(found.pod.as_deref(), Some(""));
        }
    }
}
