//! The agent as a process: settings from the environment, `--help`, exit codes.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

use std::process::{Command, Output, Stdio};

/// Runs the agent with nothing in its environment but these variables.
fn agent(environment: &[(&str, &str)], flags: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_orb8-agent"))
        .args(flags)
        .env_clear()
        .envs(environment.iter().copied())
        .stdin(Stdio::null())
        .output()
        .unwrap()
}

fn text(bytes: &[u8]) -> String {
    String::from_utf8(bytes.to_vec()).unwrap()
}

#[test]
fn print_config_names_where_each_value_comes_from() {
    let environment = [
        ("ORB8_MAX_FLOWS", "5000"),
        ("ORB8_RING_BUFFER_SIZE", "256KiB"),
        ("ORB8_INTERFACES", "eth0, wg*"),
        ("ORB8_STRICT", "yes"),
        ("NODE_NAME", "node-7"),
        ("RUST_LOG", "debug"),
    ];
    let output = agent(&environment, &["--print-config", "--max-flows", "600"]);
    assert_eq!(output.status.code(), Some(0), "{output:?}");
    insta::assert_snapshot!(text(&output.stdout));
}

#[test]
fn help_lists_every_setting() {
    let output = agent(&[("NODE_NAME", "n1")], &["--help"]);
    assert_eq!(output.status.code(), Some(0));
    insta::assert_snapshot!(text(&output.stdout));
}

#[test]
fn a_bad_setting_ends_with_2_wherever_it_comes_from() {
    for (environment, flags) in [
        (&[("ORB8_MAX_FLOWS", "none")][..], &[][..]),
        (&[("ORB8_CAPTURE", "sockets")], &[]),
        (&[("ORB8_STRICT", "perhaps")], &[]),
        (&[], &["--ring-buffer-size", "65537"]),
        (&[], &["--no-such-flag"]),
    ] {
        let output = agent(environment, flags);
        assert_eq!(output.status.code(), Some(2), "{environment:?} {flags:?}: {output:?}");
        assert!(output.stdout.is_empty());
        assert!(text(&output.stderr).starts_with("error: "), "{output:?}");
    }
}

#[test]
fn a_taken_port_ends_with_2_and_is_named() {
    let other = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let output = agent(&[("ORB8_GRPC_PORT", &port)], &[]);
    assert_eq!(output.status.code(), Some(2), "{output:?}");
    let expected = format!("port {port} at 127.0.0.1 is taken");
    assert!(text(&output.stderr).contains(&expected), "{output:?}");
}

#[test]
fn kubernetes_that_is_asked_for_and_not_there_ends_with_2_and_the_next_step() {
    for (variables, named) in [
        (&[][..], "no KUBECONFIG is set and this is no pod with a service account"),
        (&[("KUBECONFIG", "/nowhere/config")], "kubeconfig /nowhere/config cannot be used"),
    ] {
        let on = [("ORB8_KUBERNETES", "on"), ("ORB8_GRPC_PORT", "0")];
        let environment = [&on, variables].concat();
        let output = agent(&environment, &[]);
        assert_eq!(output.status.code(), Some(2), "{output:?}");
        let told = text(&output.stderr);
        assert!(told.contains(named), "{told}");
        assert!(told.contains("or set --kubernetes (ORB8_KUBERNETES) to auto or off"), "{told}");
    }
}
