//! The `orb8` command as a process of its own: help, exit codes, pipes, signals, environment.
#![cfg(unix)]

#[allow(dead_code, reason = "shared with tests that use more of it")]
#[path = "../../orb8-query/tests/support/fake_agent.rs"]
mod fake_agent;
#[allow(dead_code, reason = "shared with tests that use more of it")]
#[path = "../../orb8-cli/tests/support/sample.rs"]
mod sample;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc::sync_channel;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use fake_agent::{FakeAgent, Script};
use insta::assert_snapshot;
use orb8_proto::v1::{QueryFlowsResponse, Totals};
use rustix::process::{Pid, Signal, kill_process};
use tonic::Status;

/// 2026-01-31T12:00:00Z, for formats that do not show ages.
const THEN: i64 = 1_769_860_800_000_000_000;

/// Far more than any of these needs.
const DEADLINE: Duration = Duration::from_secs(60);

fn command(words: &[&str]) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_orb8"));
    command.args(words).env_clear().env("TZ", "UTC").stdin(Stdio::null());
    command
}

/// Waits for the end of a process, but not forever.
fn finish(mut child: Child) -> Output {
    let pid = Pid::from_child(&child);
    let (done, finished) = sync_channel(1);
    drop(child.stdin.take());
    let waiter = std::thread::spawn(move || done.send(child.wait_with_output()));
    let Ok(output) = finished.recv_timeout(DEADLINE) else {
        kill_process(pid, Signal::KILL).expect("kill a process that hangs");
        panic!("orb8 did not end");
    };
    waiter.join().expect("the waiter ends").expect("its receiver waits");
    output.expect("the output of orb8")
}

fn spawn(command: &mut Command) -> Child {
    let command = command.stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("start orb8")
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).expect("output is UTF-8")
}

/// stdout, stderr and exit code as one text.
fn page(output: &Output) -> String {
    let (out, err) = (text(&output.stdout), text(&output.stderr));
    let code = output.status.code().expect("orb8 ends by itself");
    let err = if err.is_empty() { err } else { format!("--- stderr ---\n{err}") };
    format!("{out}{err}--- exit {code} ---")
}

fn run(words: &[&str]) -> Output {
    finish(spawn(&mut command(words)))
}

/// Runs with one agent, whose address reads AGENT in the page.
fn ask(agent: &FakeAgent, words: &[&str]) -> (String, Option<i32>) {
    let address = agent.address();
    let output = run(&[&["--agent", &address], words].concat());
    (page(&output).replace(&address, "AGENT"), output.status.code())
}

fn well(now_ns: i64) -> Script {
    Script {
        flows: Ok(sample::response(now_ns)),
        status: Ok(sample::status(now_ns)),
        events: sample::events(now_ns),
        ..Script::default()
    }
}

fn agent() -> FakeAgent {
    FakeAgent::start(well(THEN))
}

#[allow(clippy::disallowed_methods, reason = "ages are shown against the clock of the process")]
fn now_ns() -> i64 {
    let now = SystemTime::now().duration_since(UNIX_EPOCH).expect("a clock after 1970");
    i64::try_from(now.as_nanos()).expect("a clock before 2262")
}

#[test]
fn help_of_every_verb() {
    for (name, line) in [
        ("orb8", "--help"),
        ("status", "status --help"),
        ("flows", "flows --help"),
        ("trace", "trace --help"),
        ("trace_network", "trace network --help"),
        ("verify", "verify --help"),
        ("bench", "bench --help"),
        ("completions", "completions --help"),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let output = run(&words);
        assert!(output.status.success());
        assert_snapshot!(format!("help_{name}"), page(&output));
    }
}

#[test]
fn no_words_print_the_help_and_are_a_usage_error() {
    let output = run(&[]);
    assert_eq!(output.status.code(), Some(2));
    assert_eq!(text(&output.stdout), "");
    assert_eq!(text(&output.stderr), text(&run(&["--help"]).stdout));
}

#[test]
fn version_is_that_of_the_package() {
    assert_eq!(text(&run(&["--version"]).stdout), format!("orb8 {}\n", env!("CARGO_PKG_VERSION")));
}

#[test]
fn every_format_of_flows() {
    let agent = agent();
    for format in ["json", "jsonl", "yaml", "csv"] {
        let (page, code) = ask(&agent, &["flows", "-o", format, "--limit", "2"]);
        assert_eq!(code, Some(0));
        assert_snapshot!(format!("flows_{format}"), page);
    }
    // Ages are counted from the present.
    let agent = FakeAgent::start(well(now_ns()));
    assert_snapshot!("flows_table", ask(&agent, &["flows"]).0);
    let (wide, _) = ask(&agent, &["flows", "-o", "wide", "--no-headers", "--limit", "1"]);
    assert!(wide.contains("local"), "{wide}");
}

#[test]
fn every_format_of_status() {
    let agent = agent();
    for format in ["table", "wide", "json", "jsonl", "yaml", "csv"] {
        let (page, code) = ask(&agent, &["status", "-o", format]);
        assert_eq!(code, Some(0));
        assert_snapshot!(format!("status_{format}"), page);
    }
}

#[test]
fn exit_0_if_done_1_if_failed_2_if_misused_3_if_partial() {
    let code = |script: Script, words: &[&str]| ask(&FakeAgent::start(script), words).1;
    let failing = |status: Status| Script { flows: Err(status), ..Script::default() };
    let lossy = || {
        let mut script = well(THEN);
        script.flows.as_mut().expect("a response").loss = vec![sample::loss()];
        script
    };
    assert_eq!(code(well(THEN), &["flows"]), Some(0));
    assert_eq!(code(failing(Status::internal("broken")), &["flows"]), Some(1));
    assert_eq!(code(failing(Status::invalid_argument("limit")), &["flows"]), Some(2));
    assert_eq!(code(well(THEN), &["flows", "--port", "x"]), Some(2));
    assert_eq!(code(lossy(), &["flows"]), Some(3));
    assert_eq!(code(lossy(), &["flows", "--allow-partial"]), Some(0));
}

#[test]
fn exit_4_if_no_agent_can_be_reached_with_the_next_step() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    for words in [&["status"][..], &["flows"], &["flows", "-f"], &["trace", "network"], &["verify"]]
    {
        let output = run(&[&["--agent", &address], words].concat());
        assert_eq!(
            page(&output).replace(&address, "AGENT"),
            "--- stderr ---\nerror: cannot reach the agent at AGENT: connection refused; is \
             orb8-agent running there? Name another with --agent HOST:PORT\n--- exit 4 ---"
        );
    }
}

#[test]
fn verify_says_when_nothing_can_be_compared() {
    let nothing = Totals { health_message: "no interface".to_owned(), ..Totals::default() };
    let blind = FakeAgent::start(Script { totals: Ok(nothing.clone()), ..Script::default() });
    let (page, code) = ask(&blind, &["verify"]);
    assert_eq!(
        (&*page, code),
        ("--- stderr ---\nwarning: nothing is counted: no interface\n--- exit 3 ---", Some(3))
    );
    assert_eq!(ask(&blind, &["verify", "--allow-partial"]).1, Some(0));
    let elsewhere = Totals { boot_id: "another".to_owned(), node_name: "n7".to_owned(), ..nothing };
    let elsewhere = FakeAgent::start(Script { totals: Ok(elsewhere), ..Script::default() });
    let (page, code) = ask(&elsewhere, &["verify"]);
    assert_eq!(code, Some(2));
    assert!(page.contains("the agent of n7 is on another machine"), "{page}");
    let (page, code) = ask(&blind, &["--agent", "127.0.0.1:1", "verify"]);
    assert_eq!(code, Some(2));
    assert!(page.contains("verify compares one agent with its own node"), "{page}");
    for wrong in [&["verify", "--tolerance", "-1"][..], &["verify", "--fields", "kind"]] {
        assert_eq!(ask(&blind, wrong).1, Some(2), "{wrong:?}");
    }
}

#[test]
fn agents_come_from_the_environment_unless_named() {
    let (a, b) = (agent(), agent());
    let listed = format!("{},{}", a.address(), b.address());
    let words = ["status", "-o", "jsonl", "--fields", "node_name"];
    let output = finish(spawn(command(&words).env("ORB8_AGENT", listed)));
    assert_eq!(text(&output.stdout).lines().count(), 2, "{output:?}");
    let named = ["--agent", &a.address(), "status", "-o", "jsonl"];
    let output = finish(spawn(command(&named).env("ORB8_AGENT", "127.0.0.1:1")));
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    let empty = finish(spawn(command(&["--agent", &a.address(), "status"]).env("ORB8_AGENT", "")));
    assert_eq!(empty.status.code(), Some(0), "{empty:?}");
}

#[test]
fn a_wrong_environment_is_told_by_its_name_and_only_where_it_is_used() {
    let wrong = |words: &[&str]| finish(spawn(command(words).env("ORB8_AGENT", "http://nowhere")));
    let agent = agent();
    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("environment.jsonl");
    std::fs::write(&path, run(&["--agent", &agent.address(), "flows", "-o", "jsonl"]).stdout)
        .unwrap();
    for words in [
        &["completions", "bash"][..],
        &["flows", "--file", path.to_str().unwrap()],
        &["status", "--agent", &agent.address()],
        &["--agent", &agent.address(), "flows"],
        &["status", "--help"],
    ] {
        let output = wrong(words);
        assert_eq!(output.status.code(), Some(0), "{words:?} {output:?}");
    }
    assert_snapshot!(page(&wrong(&["flows"])));
    use std::os::unix::ffi::OsStrExt as _;
    let bytes = std::ffi::OsStr::from_bytes(b"\xff:1");
    let script = finish(spawn(command(&["completions", "bash"]).env("ORB8_AGENT", bytes)));
    assert_eq!(script.status.code(), Some(0), "{script:?}");
    let status = finish(spawn(command(&["status"]).env("ORB8_AGENT", bytes)));
    assert_eq!(status.status.code(), Some(2), "{status:?}");
}

#[test]
fn agents_before_and_after_the_verb_add_up() {
    let (a, b) = (agent(), agent());
    let (first, second) = (a.address(), b.address());
    let words = ["--agent", &first, "status", "--agent", &second, "-o", "jsonl"];
    assert_eq!(text(&run(&words).stdout).lines().count(), 2);
    let once = ["--agent", &first, "status", "--agent", &first, "-o", "jsonl"];
    assert_eq!(text(&run(&once).stdout).lines().count(), 1);
}

#[test]
fn saved_flows_come_from_a_file_or_stdin_whatever_the_environment_says() {
    let saved = run(&["--agent", &agent().address(), "flows", "-o", "jsonl"]).stdout;
    let words = ["flows", "--file", "-", "-o", "jsonl"];
    let mut child = spawn(command(&words).stdin(Stdio::piped()).env("ORB8_AGENT", "127.0.0.1:1"));
    child.stdin.take().unwrap().write_all(&saved).unwrap();
    assert_eq!(text(&finish(child).stdout), text(&saved));

    let path = std::path::Path::new(env!("CARGO_TARGET_TMPDIR")).join("saved.jsonl");
    std::fs::write(&path, &saved).unwrap();
    let words = ["flows", "--port", "443", "-o", "csv", "--fields", "dst_port", "--file"];
    let output = run(&[&words[..], &[path.to_str().unwrap()]].concat());
    assert_eq!(page(&output), "dst_port\n443\n--- exit 0 ---");
}

/// An answer that no pipe holds.
fn large() -> Script {
    let one = sample::response(THEN);
    let flows = one.flows.iter().cycle().take(5000).cloned().collect();
    Script { flows: Ok(QueryFlowsResponse { flows, matched: 5000, ..one }), ..Script::default() }
}

/// Reads one line of stdout and closes it; gives the line and the end of the process.
fn head(mut child: Child) -> (String, Output) {
    let mut line = String::new();
    let stdout = child.stdout.take().expect("a pipe");
    BufReader::new(stdout).read_line(&mut line).expect("a line");
    (line, finish(child))
}

#[test]
fn a_closed_pipe_ends_it_silently() {
    let agent = FakeAgent::start(large());
    for format in ["table", "json", "jsonl", "yaml", "csv"] {
        let words = ["--agent", &agent.address(), "flows", "-o", format];
        let (line, output) = head(spawn(&mut command(&words)));
        assert!(!line.is_empty());
        assert_eq!(page(&output), "--- exit 0 ---", "{format}");
    }
}

#[test]
fn a_closed_pipe_ends_a_trace_that_has_nothing_more_to_say() {
    let agent = agent();
    let words = ["--agent", &agent.address(), "trace", "network", "-o", "json"];
    let (line, output) = head(spawn(&mut command(&words)));
    assert!(line.contains("flow_start"), "{line}");
    assert_eq!(page(&output), "--- exit 0 ---");
}

#[cfg(target_os = "linux")]
#[test]
fn a_full_disk_is_a_failure_that_is_told() {
    let agent = FakeAgent::start(large());
    for words in [&["flows"][..], &["flows", "-o", "json"], &["--help"], &["trace", "network"]] {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let address = agent.address();
        let words = [&["--agent", &address], words].concat();
        let child = command(&words).stdout(full).stderr(Stdio::piped()).spawn().unwrap();
        let output = finish(child);
        assert_eq!(output.status.code(), Some(1), "{words:?} {output:?}");
        assert_eq!(
            text(&output.stderr),
            "error: cannot write the output: No space left on device (os error 28)\n"
        );
    }
}

#[test]
fn ctrl_c_and_sigterm_end_a_trace_with_a_summary() {
    let agent = agent();
    for (signal, verb) in
        [(Signal::INT, &["trace", "network"][..]), (Signal::TERM, &["flows", "--follow"])]
    {
        let address = agent.address();
        let words = [&["--agent", &address, "-o", "csv", "--fields", "type"], verb].concat();
        let mut child = spawn(&mut command(&words));
        let mut stdout = BufReader::new(child.stdout.take().unwrap());
        let mut lines = String::new();
        while !lines.ends_with("flow_end\n") {
            assert_ne!(stdout.read_line(&mut lines).unwrap(), 0, "{lines}");
        }
        kill_process(Pid::from_child(&child), signal).unwrap();
        let output = finish(child);
        assert_eq!(lines, "type\nflow_start\npacket\npacket\nflow_update\nflow_end\n");
        assert_eq!(
            page(&output),
            "--- stderr ---\nwarning: node-a: no longer first on eth0\n\
             note: 1 flow started, 1 ended, 1 update, 2 packets that stand for about 9; nothing lost\n--- exit 0 ---"
        );
    }
}

#[test]
fn a_watch_of_a_name_that_nobody_has_says_so_at_once_and_goes_on() {
    let mut response = sample::response(THEN);
    let mut context = sample::knowing(THEN, "synced", &[("pod", "shop/wbe")]);
    context.unmatched[0].suggestions = vec!["shop/web".to_owned()];
    response.context = Some(context);
    let agent = FakeAgent::start(Script { flows: Ok(response), ..Script::default() });
    for verb in [&["trace", "network"][..], &["flows", "-f"]] {
        let address = agent.address();
        let words = [&["--agent", &address], verb, &["--pod", "shop/wbe"]].concat();
        let mut child = spawn(&mut command(&words));
        let mut stderr = BufReader::new(child.stderr.take().unwrap());
        let mut first = String::new();
        stderr.read_line(&mut first).unwrap();
        let why = "note: no pod named wbe* in namespace shop is known (Kubernetes API synced); did \
                   you mean shop/web?\n";
        assert_eq!(first, why);
        assert!(child.try_wait().unwrap().is_none(), "the pod may come, so it is waited for");
        // Nothing else ends it: no event comes, and no duration was given.
        drop(child.stdout.take());
        let mut rest = String::new();
        stderr.read_to_string(&mut rest).unwrap();
        assert_eq!(rest, "");
        assert_eq!(finish(child).status.code(), Some(0));
    }
}

#[test]
fn an_agent_that_is_killed_while_watched_is_told_with_the_next_step() {
    let agent = agent();
    let address = agent.address();
    let words = ["--agent", &address, "trace", "network", "-o", "csv", "--fields", "type"];
    let mut child = spawn(&mut command(&words));
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    let mut lines = String::new();
    while !lines.ends_with("flow_end\n") {
        assert_ne!(stdout.read_line(&mut lines).unwrap(), 0, "{lines}");
    }
    drop(agent);
    let output = finish(child);
    assert_eq!(output.status.code(), Some(3));
    let err = text(&output.stderr).replace(&address, "AGENT");
    assert!(err.contains("warning: the connection to the agent at AGENT broke: "), "{err}");
    assert!(err.contains("is the agent still running? See its log, then watch again"), "{err}");
}

#[test]
fn ctrl_c_after_a_loss_exits_with_3() {
    let lost = sample::event(THEN, orb8_proto::v1::event::Payload::Loss(sample::loss()));
    let agent = FakeAgent::start(Script { events: vec![lost], ..Script::default() });
    let words = ["--agent", &agent.address(), "trace", "network", "-o", "json"];
    let mut child = spawn(&mut command(&words));
    let mut line = String::new();
    let mut stdout = BufReader::new(child.stdout.take().unwrap());
    stdout.read_line(&mut line).unwrap();
    assert!(line.contains(r#""type":"loss""#), "{line}");
    kill_process(Pid::from_child(&child), Signal::INT).unwrap();
    assert_eq!(
        page(&finish(child)),
        "--- stderr ---\nnote: 0 flows started, 0 ended, 0 updates\nwarning: lost while watching: \
         12 packets and 1.5KiB at flow_table (flow_table_full)\n--- exit 3 ---"
    );
}

/// What it writes to a terminal.
fn on_terminal(words: &[&str], environment: &[(&str, &str)]) -> String {
    use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
    let terminal = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a terminal");
    grantpt(&terminal).expect("grantpt");
    unlockpt(&terminal).expect("unlockpt");
    let name = ptsname(&terminal, Vec::new()).expect("its name");
    let slave = File::options()
        .read(true)
        .write(true)
        .open(name.to_str().expect("UTF-8"))
        .expect("its other end");
    let child = command(words)
        .env("TERM", "xterm-256color")
        .envs(environment.iter().copied())
        .stdout(slave)
        .stderr(Stdio::piped())
        .spawn()
        .expect("start orb8");
    let reader = std::thread::spawn(move || {
        let mut seen = Vec::new();
        // The end of the last writer is an error on a terminal, not the end of a file.
        File::from(terminal).read_to_end(&mut seen).ok();
        seen
    });
    assert!(finish(child).status.success());
    text(&reader.join().expect("the reader ends"))
}

#[test]
fn colours_are_for_terminals_unless_told_otherwise() {
    let agent = agent();
    let address = agent.address();
    let words = ["--agent", &address, "flows"];
    let coloured = |text: &str| text.contains('\u{1b}');
    assert!(coloured(&on_terminal(&words, &[])));
    assert!(!coloured(&on_terminal(&words, &[("NO_COLOR", "1")])));
    assert!(!coloured(&on_terminal(&words, &[("TERM", "dumb")])));
    let never = [&words[..], &["--color", "never"]].concat();
    assert!(!coloured(&on_terminal(&never, &[])));
    let always = [&words[..], &["--color", "always"]].concat();
    assert!(coloured(&on_terminal(&always, &[("NO_COLOR", "1")])));
    assert!(!coloured(&text(&run(&words).stdout)));
    assert!(coloured(&text(&run(&always).stdout)));
}

#[test]
fn completions_know_the_verbs_and_their_words() {
    for shell in ["bash", "elvish", "fish", "powershell", "zsh"] {
        let output = run(&["completions", shell]);
        assert!(output.status.success());
        let script = text(&output.stdout);
        for word in ["status", "flows", "trace", "network", "from-ip", "allow-partial"] {
            assert!(script.contains(word), "{shell} does not complete {word}");
        }
    }
}
