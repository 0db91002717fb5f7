//! `orb8 bench` with real agents: it measures, they count what it sends, and none of them outlives it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orb8_testbed::agent::Captured;
use orb8_testbed::cgroup::Tree;
use orb8_testbed::link::{Veth, VethOptions};
use orb8_testbed::need;
use orb8_testbed::need::Need;
use orb8_testbed::netns::Netns;
use orb8_testbed::wait::{wait_for, wait_until};
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const NEEDS: &[Need] =
    &[Need::Root, Need::Bpf, Need::Tool("ip"), Need::Binary("orb8"), Need::Cgroup2];
/// With every core busy with other tests.
const DEADLINE: Duration = Duration::from_secs(120);

/// `orb8 bench` in a namespace and in a cgroup of its own, which tells who of it is left.
struct Bench {
    child: Child,
    stdout: Captured,
    stderr: Captured,
}

#[derive(Debug)]
struct Done {
    stdout: String,
    stderr: String,
    code: Option<i32>,
}

impl Bench {
    fn start(netns: &Netns, tree: &Tree, cgroup: &Path, words: &str) -> Self {
        let mut command: Command = netns.command("sh");
        // Also where the tests themselves were started with nohup, if there is an `env` that can.
        let join = r#"echo 0 > "$0/cgroup.procs" || exit
            if env --default-signal=HUP true 2>/dev/null; then exec env --default-signal=HUP "$@"; fi
            exec "$@""#;
        command.args(["-c", join]).arg(cgroup).arg(need::binary("orb8").expect("orb8 is built"));
        command.args(["bench", "--agent-binary", env!("CARGO_BIN_EXE_orb8-agent"), "-o", "json"]);
        command.args(words.split_whitespace()).env("ORB8_CGROUP_ROOT", tree.root());
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("the CLI starts");
        let stdout = Captured::follow(child.stdout.take().expect("piped"));
        let stderr = Captured::follow(child.stderr.take().expect("piped"));
        Self { child, stdout, stderr }
    }

    fn wait_until(&mut self, what: &str, condition: impl Fn(&Self) -> bool) {
        wait_until(DEADLINE, what, || {
            if let Some(status) = self.child.try_wait().expect("a child") {
                panic!("bench ended with {status} before {what}:\n{}", self.stderr.finish());
            }
            condition(self)
        });
    }

    fn tell(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    fn finish(mut self) -> Done {
        let status = wait_for(DEADLINE, "bench to end", || self.child.try_wait().expect("a child"));
        Done { stdout: self.stdout.finish(), stderr: self.stderr.finish(), code: status.code() }
    }
}

impl Done {
    #[track_caller]
    fn document(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }
}

/// How many processes are in a cgroup.
fn living(cgroup: &Path) -> usize {
    let file = cgroup.join("cgroup.procs");
    std::fs::read_to_string(file).expect("a cgroup").lines().count()
}

#[test]
fn every_row_is_measured_and_the_agent_counts_each_datagram_at_both_its_ends() {
    need!(@check NEEDS);
    let (netns, tree) = (Netns::new("bench"), Tree::new("bench"));
    let cgroup = tree.make("host");
    let words = "--capture socket --pairs 1 --duration 100ms";
    let done = Bench::start(&netns, &tree, &cgroup, words).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(living(&cgroup), 0, "its agents are gone");
    let document = done.document();
    let rows = document["rows"].as_array().expect("rows");
    assert_eq!(rows.len(), 6, "{document:#}");
    for row in rows {
        for figure in ["baseline", "traced", "ratio"] {
            assert!(row[figure].as_f64() > Some(0.0), "{row:#}");
        }
        assert_eq!(row["verdict"], "undecided", "one round shows no difference: {row:#}");
    }
    let agent = &document["agent"];
    let datagrams = agent["datagrams"].as_u64().expect("a number");
    // Nothing else is on this loopback, so that none was lost: each was sent and received.
    assert!(datagrams > 0 && datagrams.is_multiple_of(64), "{agent:#}");
    assert_eq!(agent["datagrams_counted"], datagrams, "{agent:#}");
    let lost = [&agent["lost_packets"], &agent["lost_events"]];
    assert_eq!((lost, &agent["capture"]), ([&0.into(); 2], &"socket".into()), "{agent:#}");
    assert_eq!(agent["ledger"], "balanced");
    for figure in ["cpu_percent", "resident_bytes", "map_bytes"] {
        assert!(agent[figure].as_f64() > Some(0.0), "{figure}: {agent:#}");
    }
}

#[test]
fn ctrl_c_ends_the_agent_too_and_prints_the_rounds_that_there_are() {
    check_end(Signal::INT);
}

#[test]
fn a_terminal_that_is_closed_ends_the_agent_too() {
    check_end(Signal::HUP);
}

fn check_end(signal: Signal) {
    need!(@check NEEDS);
    let (netns, tree) = (Netns::new("bench"), Tree::new("bench"));
    let cgroup = tree.make("host");
    let words = "--capture socket --pairs 1000 --duration 50ms";
    let mut bench = Bench::start(&netns, &tree, &cgroup, words);
    bench.wait_until("a round to end", |bench| bench.stderr.contains("round 1 of 1000"));
    bench.wait_until("an agent to run", |_| living(&cgroup) == 2);
    bench.tell(signal);
    let done = bench.finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    assert_eq!(living(&cgroup), 0, "its agent is gone");
    let document = done.document();
    assert_eq!(document["rounds_asked"], 1000);
    let rounds = document["rounds"].as_u64().expect("a number");
    assert!((1..1000).contains(&rounds), "{document:#}");
}

#[test]
fn an_agent_that_does_not_see_the_load_is_no_comparison() {
    need!(@check NEEDS);
    let (netns, tree) = (Netns::new("bench"), Tree::new("bench"));
    let cgroup = tree.make("host");
    let _link = Veth::cable(&netns, VethOptions::default());
    let words = "--capture tc --pairs 1 --duration 50ms";
    let done = Bench::start(&netns, &tree, &cgroup, words).finish();
    assert_eq!((done.code, done.stdout.as_str()), (Some(2), ""), "{done:?}");
    assert!(done.stderr.contains("use --capture socket"), "{done:?}");
    assert_eq!(living(&cgroup), 0, "its agent is gone");
}

#[test]
fn over_a_link_each_datagram_is_counted_there_and_back() {
    need!(@check NEEDS);
    let (link, tree) = (Veth::addressed(VethOptions::default()), Tree::new("bench"));
    let [near, far] = ["near", "far"].map(|name| tree.make(name));
    let listen = format!("--listen {}:0", link.far.v4);
    let mut listener = Bench::start(&link.far.netns, &tree, &far, &listen);
    listener.wait_until("the far end to listen", |far| far.stderr.contains("Ctrl-C ends it"));
    let said = listener.stderr.text();
    let address = said.split_whitespace().find_map(|word| {
        let word = word.trim_end_matches(';');
        word.starts_with(&link.far.v4.to_string()).then(|| word.to_owned())
    });
    let words = "--capture tc --pairs 1 --duration 50ms --target";
    let words = format!("{words} {}", address.expect("the far end says where it is"));
    let done = Bench::start(&link.near.netns, &tree, &near, &words).finish();
    assert_eq!(done.code, Some(0), "{done:?}");
    let agent = &done.document()["agent"];
    assert!(agent["datagrams"].as_u64() > Some(0), "{agent:#}");
    assert_eq!(agent["datagrams_counted"], agent["datagrams"], "{agent:#}");
    assert_eq!(agent["capture"], "tc");
    listener.tell(Signal::INT);
    assert_eq!(listener.finish().code, Some(0));
    assert_eq!((living(&near), living(&far)), (0, 0));
}
