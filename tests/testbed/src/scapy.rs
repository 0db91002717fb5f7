//! Frames made by scapy: an independent maker of optioned, fragmented, truncated and malformed
//! packets, which also says, from its own fields, what each one is and how many IP bytes it has.

use std::net::IpAddr;
use std::path::PathBuf;
use std::process::{Command, Stdio};

use crate::flow::{Flow, L4};
use crate::python;

/// The catalogue; it stays readable by somebody who knows only scapy.
const CATALOGUE: &str = include_str!("../scapy/frames.py");

/// One frame of the catalogue.
#[derive(Clone, Debug)]
pub struct Case {
    /// What is special about it.
    pub name: String,
    /// The whole frame.
    pub frame: Vec<u8>,
    /// What it has to count as.
    pub expect: Expect,
}

/// What a frame has to count as.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Expect {
    /// One packet of this many IP bytes.
    Counted(Flow, u64),
    /// Rejected for this reason.
    Rejected(String),
}

/// The Python interpreter that has scapy.
///
/// # Errors
/// A sentence that names what is missing and the next step.
pub fn python() -> Result<PathBuf, String> {
    python::interpreter(&["scapy.all"])
}

/// All frames of the catalogue.
///
/// # Panics
/// If scapy is missing or the catalogue has a mistake.
#[must_use]
pub fn catalogue() -> Vec<Case> {
    let python = python().unwrap_or_else(|why| panic!("{why}"));
    let output = Command::new(python)
        .args(["-c", CATALOGUE])
        .stdin(Stdio::null())
        .output()
        .expect("the interpreter was just run");
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "the scapy catalogue failed:\n{stderr}");
    String::from_utf8_lossy(&output.stdout).lines().map(case).collect()
}

fn case(line: &str) -> Case {
    let value: serde_json::Value = serde_json::from_str(line).expect("a JSON object a line");
    let text = |key: &str| value[key].as_str().map(str::to_owned);
    let number = |key: &str| value[key].as_u64();
    let name = text("name").expect("every case has a name");
    let byte = |key: &str| u8::try_from(number(key).expect(key)).expect(key);
    let port = |key: &str| u16::try_from(number(key).expect(key)).expect(key);
    let address = |key: &str| -> IpAddr { text(key).expect(key).parse().expect(key) };
    let expect = if let Some(reason) = text("reject") {
        Expect::Rejected(reason)
    } else {
        let l4 = match text("l4").as_deref() {
            Some("ports") => L4::Ports { src: port("sport"), dst: port("dport") },
            Some("icmp") => L4::Icmp { kind: byte("type"), code: byte("code") },
            Some("fragment") => L4::Fragment,
            Some("plain") => L4::Plain,
            other => panic!("{name}: what is {other:?}?"),
        };
        let flow =
            Flow { src: address("src"), dst: address("dst"), protocol: byte("protocol"), l4 };
        Expect::Counted(flow, number("bytes").expect("bytes"))
    };
    let hex = text("frame").expect("every case has a frame");
    let frame = (0..hex.len())
        .step_by(2)
        .map(|at| u8::from_str_radix(&hex[at..at + 2], 16).expect("hex digits"))
        .collect();
    Case { name, frame, expect }
}
