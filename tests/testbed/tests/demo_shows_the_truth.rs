//! `make demo` as a person would see it: it ends well, and it leaves nothing when interrupted.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use orb8_testbed::agent::Captured;
use orb8_testbed::cluster::NEEDS;
use orb8_testbed::need::Need;
use orb8_testbed::wait::{wait_for, wait_until};
use orb8_testbed::{need, need::binary};

const PROGRAMS: &[Need] = &[Need::Binary("orb8"), Need::Binary("orb8-agent")];
const DEADLINE: Duration = Duration::from_secs(120);

fn demo() -> Command {
    let agent = binary("orb8-agent").expect("a need of the test");
    let mut command = Command::new(env!("CARGO_BIN_EXE_demo"));
    command.arg("--bin-dir").arg(agent.parent().expect("a file is in a folder"));
    command
}

#[test]
fn demo_ends_well_and_says_that_the_counts_are_right() {
    need!(@check NEEDS);
    need!(@check PROGRAMS);
    let output = demo().output().expect("the demo starts");
    let (stdout, stderr) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success(), "{stdout}\n{stderr}");
    for text in [
        "exactly what was sent",
        "one line with both directions",
        "a trace told the same",
        "all accounted for",
        "nothing of them is left",
    ] {
        assert!(stdout.contains(text), "{text}:\n{stdout}");
    }
}

#[test]
fn interrupted_demo_takes_its_agent_with_it() {
    need!(@check NEEDS);
    need!(@check PROGRAMS);
    for signal in [rustix::process::Signal::INT, rustix::process::Signal::TERM] {
        let mut child =
            demo().stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the demo starts");
        let stdout = Captured::follow(child.stdout.take().expect("piped"));
        let mut stderr = Captured::follow(child.stderr.take().expect("piped"));
        wait_until(DEADLINE, "the live trace", || stdout.contains("trace network"));
        let children = children_of(child.id());
        assert!(children.len() > 2, "agents and pods are children of the demo");
        let pid = rustix::process::Pid::from_child(&child);
        rustix::process::kill_process(pid, signal).expect("our own child");
        let status = wait_for(DEADLINE, "the demo to end", || child.try_wait().expect("a child"));
        assert_eq!(status.code(), Some(128 + signal.as_raw()));
        assert!(stderr.finish().contains("Stopped. Agents, pods and nodes are gone."));
        wait_until(DEADLINE, "its processes to end", || {
            !children.iter().any(|pid| is_running(*pid))
        });
    }
}

#[test]
fn demo_names_the_program_that_is_not_built() {
    need!(@check NEEDS);
    let output = Command::new(env!("CARGO_BIN_EXE_demo"))
        .args(["--bin-dir", "/nonexistent"])
        .output()
        .expect("the demo starts");
    assert_eq!(output.status.code(), Some(1));
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(
        stderr.contains("/nonexistent/orb8-agent does not exist: run `make build`"),
        "{stderr}"
    );
}

#[test]
fn demo_refuses_an_unknown_argument() {
    let output = Command::new(env!("CARGO_BIN_EXE_demo")).arg("--fast").output().expect("starts");
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("unknown argument --fast"));
}

fn children_of(pid: u32) -> Vec<u32> {
    let path = format!("/proc/{pid}/task/{pid}/children");
    let text = std::fs::read_to_string(path).expect("a running process");
    text.split_whitespace().map(|pid| pid.parse().expect("a number")).collect()
}

/// False also for a process that has ended and only waits to be collected.
fn is_running(pid: u32) -> bool {
    let stat = std::fs::read_to_string(Path::new("/proc").join(pid.to_string()).join("stat"));
    stat.is_ok_and(|stat| !stat.rsplit(')').next().is_some_and(|rest| rest.starts_with(" Z")))
}
