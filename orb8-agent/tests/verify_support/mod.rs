//! `orb8 verify` as a process whose window a test ends, and what it printed.
#![allow(dead_code, unreachable_pub, reason = "each test binary uses another part")]

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use orb8_testbed::agent::{Captured, Cli};
use orb8_testbed::need;
use orb8_testbed::netns::Netns;
use orb8_testbed::wait::wait_until;
use rustix::process::{Pid, Signal, kill_process};
use serde_json::Value;

const DEADLINE: Duration = Duration::from_secs(60);

/// A window that is open.
pub struct Verify {
    child: Child,
    stdout: Captured,
    stderr: Captured,
}

fn line(options: &str) -> String {
    format!("verify --duration 10m -o json --timeout 30s {options}")
}

impl Verify {
    /// Opens a window in a namespace with more options; what passes from now on is compared.
    pub fn start(netns: &Netns, options: &str) -> Self {
        Self::of(Cli::new(netns).command(&line(options)))
    }

    /// The same in a cgroup.
    pub fn start_in(cgroup: &Path, netns: &Netns, options: &str) -> Self {
        let mut command = netns.command("sh");
        let join = r#"echo 0 > "$0/cgroup.procs" && exec "$@""#;
        let program = need::binary("orb8").expect("orb8 is built");
        command.args(["-c", join]).arg(cgroup).arg(program);
        command.args(line(options).split_whitespace()).stdin(Stdio::null());
        Self::of(command)
    }

    fn of(mut command: Command) -> Self {
        let mut child =
            command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().expect("the CLI starts");
        let stdout = Captured::follow(child.stdout.take().expect("piped"));
        let stderr = Captured::follow(child.stderr.take().expect("piped"));
        let mut verify = Self { child, stdout, stderr };
        wait_until(DEADLINE, "the window to open", || {
            if let Some(status) = verify.child.try_wait().expect("a child") {
                let told = verify.stderr.finish();
                panic!("verify ended with {status} before its window:\n{told}");
            }
            verify.stderr.contains("counting for")
        });
        verify
    }

    /// Closes the window and gives what was printed.
    pub fn finish(mut self) -> Done {
        kill_process(Pid::from_child(&self.child), Signal::INT).expect("our own child");
        let status = self.child.wait().expect("it ends");
        Done { stdout: self.stdout.finish(), stderr: self.stderr.finish(), code: status.code() }
    }
}

/// What a run printed.
#[derive(Debug)]
pub struct Done {
    pub stdout: String,
    pub stderr: String,
    pub code: Option<i32>,
}

impl Done {
    #[track_caller]
    pub fn document(&self) -> Value {
        serde_json::from_str(&self.stdout)
            .unwrap_or_else(|error| panic!("not JSON ({error}): {self:?}"))
    }

    /// The only row of a scope and direction, of all protocols.
    #[track_caller]
    pub fn row(&self, kind: &str, scope: &str, direction: &str) -> Row {
        self.row_of(kind, scope, direction, &Value::Null)
    }

    /// The only row of a scope, direction and protocol.
    #[track_caller]
    pub fn row_of(&self, kind: &str, scope: &str, direction: &str, protocol: &Value) -> Row {
        let document = self.document();
        let rows = document["rows"].as_array().expect("rows");
        let is_meant = |row: &&Value| {
            let place = row["kind"] == kind && row["scope"] == scope;
            place && row["direction"] == direction && row["protocol"] == *protocol
        };
        let found: Vec<&Value> = rows.iter().filter(is_meant).collect();
        match found[..] {
            [row] => Row(row.clone()),
            _ => panic!("{} rows of {kind} {scope} {direction}: {document:#}", found.len()),
        }
    }
}

/// A row.
#[derive(Debug)]
pub struct Row(Value);

impl Row {
    #[track_caller]
    pub fn verdict(&self) -> String {
        self.text("verdict")
    }

    #[track_caller]
    pub fn number(&self, key: &str) -> u64 {
        self.0[key].as_u64().unwrap_or_else(|| panic!("no {key}: {self:?}"))
    }

    #[track_caller]
    pub fn text(&self, key: &str) -> String {
        self.0[key].as_str().unwrap_or_else(|| panic!("no {key}: {self:?}")).to_owned()
    }

    #[track_caller]
    pub fn signed(&self, key: &str) -> i64 {
        self.0[key].as_i64().unwrap_or_else(|| panic!("no {key}: {self:?}"))
    }

    /// Both sides counted exactly this, and nothing was left open.
    #[track_caller]
    pub fn assert_equal(&self, packets: u64, bytes: u64) {
        let found = |keys: [&str; 2]| keys.map(|key| self.number(key));
        let all = [["orb8_packets", "kernel_packets"], ["orb8_bytes", "kernel_bytes"]].map(found);
        assert_eq!(all, [[packets; 2], [bytes; 2]], "{:#}", self.0);
        assert_eq!(found(["uncertain_packets", "uncertain_bytes"]), [0, 0], "{:#}", self.0);
        assert_eq!(self.verdict(), "ok");
    }
}
