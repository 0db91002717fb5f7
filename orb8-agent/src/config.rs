//! The one reader of flags and environment: every setting with its default, bounds and check.
//!
//! Everything else receives typed values. `--print-config` and the generated reference are made
//! from the same list.

use std::ffi::OsString;
use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use clap::builder::BoolishValueParser;
use clap::parser::ValueSource;
use clap::{Arg, CommandFactory, FromArgMatches, Parser, ValueEnum};

use crate::capture::Planes;
use crate::datapath::{AttachMode, DatapathSettings};
use crate::governor::{self, Budgets};
use crate::k8s::{KubernetesSettings, Mode};

mod values;

pub use values::Share;
use values::{
    cpu_budget, directory, host_name, interfaces, log_filter, memory_budget, node_name,
    ring_buffer_size, sampling_threshold,
};

/// The orb8 node agent: counts this host's network flows in the kernel and answers queries.
///
/// Each setting is a flag and an environment variable; the flag wins.
#[derive(Parser, Clone, Debug, PartialEq, Eq)]
#[command(name = "orb8-agent", version, max_term_width = 100)]
pub struct Settings {
    /// Flows held, active and ended together; what does not fit is counted as lost.
    #[arg(long, env = "ORB8_MAX_FLOWS", default_value_t = 100_000, value_name = "FLOWS",
        value_parser = clap::value_parser!(u32).range(16..=4_000_000))]
    pub max_flows: u32,

    /// Seconds without a packet after which a flow ends.
    #[arg(long, env = "ORB8_FLOW_TIMEOUT_SECS", default_value_t = 30, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=86_400))]
    pub flow_timeout_secs: u32,

    /// Seconds for which ended flows are kept.
    #[arg(long, env = "ORB8_FLOW_HISTORY_SECS", default_value_t = 300, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(0..=86_400))]
    pub flow_history_secs: u32,

    /// Seconds between reads of the kernel's counters, and so between updates and expiry.
    #[arg(long, env = "ORB8_EXPIRATION_INTERVAL_SECS", default_value_t = 1, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=60))]
    pub expiration_interval_secs: u32,

    /// The most flows in one answer.
    #[arg(long, env = "ORB8_MAX_QUERY_LIMIT", default_value_t = 10_000, value_name = "FLOWS",
        value_parser = clap::value_parser!(u32).range(1..=1_000_000))]
    pub max_query_limit: u32,

    /// Events that wait for one subscriber; what does not fit is that subscriber's own loss. Of more
    /// than 16 subscribers each has less room.
    #[arg(long, env = "ORB8_BROADCAST_CHANNEL_SIZE", default_value_t = 8192, value_name = "EVENTS",
        value_parser = clap::value_parser!(u32).range(16..=1_048_576))]
    pub broadcast_channel_size: u32,

    /// Bytes of the kernel's event ring: a power of two, also written as 512KiB or 1MiB. They count three
    /// times in the memory budget.
    #[arg(long, env = "ORB8_RING_BUFFER_SIZE", default_value = "1MiB", value_name = "BYTES",
        value_parser = ring_buffer_size)]
    pub ring_buffer_size: u32,

    /// Bytes meant for the agent and its maps: 32MiB to 4095MiB. The lines of the CPUs take at most a
    /// sixth, and no more flows are held than it has room for besides the event ring, or in half of its
    /// room if the ring takes more; above it, ended flows are kept for less time.
    #[arg(long, env = "ORB8_MEMORY_BUDGET", default_value = "96MiB", value_name = "BYTES",
        value_parser = memory_budget)]
    pub memory_budget: u32,

    /// Part of the node's CPU time, all CPUs together, meant for the agent and its programs, such as
    /// 0.5%. Above it the agent reads counters less often and tells less; it never counts less.
    #[arg(long, env = "ORB8_CPU_BUDGET", default_value = "1%", value_name = "PERCENT",
        value_parser = cpu_budget)]
    pub cpu_budget: Share,

    /// Part of a ring of events that may be full; above it packets of the packet view are sampled, and
    /// starts of flows that no SYN opens are told by the next read of the counters. With 100% neither is
    /// done for a ring.
    #[arg(long, env = "ORB8_SAMPLING_THRESHOLD", default_value = "80%", value_name = "PERCENT",
        value_parser = sampling_threshold)]
    pub sampling_threshold: Share,

    /// How often the budgets are looked at, in milliseconds. For tests.
    #[arg(long, default_value_t = 5000, hide = true, value_name = "MILLISECONDS",
        value_parser = clap::value_parser!(u32).range(50..=60_000))]
    pub governor_interval_ms: u32,

    /// Where packets are counted: at sockets, at interfaces (tc), or what suits this node.
    #[arg(long, env = "ORB8_CAPTURE", default_value = "auto", value_name = "PLANE", value_enum)]
    pub capture: Capture,

    /// How programs are attached: tcx (from kernel 6.6 on), clsact, or what the kernel has.
    #[arg(long, env = "ORB8_TC_ATTACH", default_value = "auto", value_name = "ROUTE", value_enum)]
    pub tc_attach: TcAttach,

    /// Interfaces besides the uplinks, as globs with commas between: eth0,wg*; auto: none.
    #[arg(long, env = "ORB8_INTERFACES", default_value = "auto", value_name = "GLOBS",
        value_parser = interfaces)]
    pub interfaces: Interfaces,

    /// Port of the gRPC service; 0 lets the kernel choose.
    #[arg(long, env = "ORB8_GRPC_PORT", default_value_t = 9090, value_name = "PORT")]
    pub grpc_port: u16,

    /// Address of the gRPC service.
    #[arg(long, env = "ORB8_GRPC_LISTEN", default_value = "127.0.0.1", value_name = "ADDRESS")]
    pub grpc_listen: IpAddr,

    /// Where the host's proc is mounted.
    #[arg(long, env = "ORB8_PROC_ROOT", default_value = "/proc", value_name = "DIRECTORY",
        value_parser = directory)]
    pub proc_root: PathBuf,

    /// Where the host's cgroup2 is mounted; unset: looked up among the mounts.
    #[arg(long, env = "ORB8_CGROUP_ROOT", value_name = "DIRECTORY", value_parser = directory)]
    pub cgroup_root: Option<PathBuf>,

    /// Whether the Kubernetes API is asked who is who; auto: if there is a way to it; on: without one
    /// the agent ends with exit code 2.
    #[arg(long, env = "ORB8_KUBERNETES", default_value = "auto", value_name = "WHEN", value_enum)]
    pub kubernetes: Mode,

    /// Kubeconfigs with colons between; unset: the pod's own service account.
    #[arg(
        long,
        env = "KUBECONFIG",
        value_name = "FILES",
        default_value = "",
        hide_default_value = true
    )]
    pub kubeconfig: String,

    /// Pods of the cluster that are kept, this node's first; what does not fit is counted.
    #[arg(long, env = "ORB8_MAX_POD_CACHE", default_value_t = 10_000, value_name = "PODS",
        value_parser = clap::value_parser!(u32).range(16..=1_000_000))]
    pub max_pod_cache: u32,

    /// Seconds in which everything queued is handed over at the end.
    #[arg(long, env = "ORB8_SHUTDOWN_TIMEOUT_SECS", default_value_t = 10, value_name = "SECONDS",
        value_parser = clap::value_parser!(u32).range(1..=300))]
    pub shutdown_timeout_secs: u32,

    /// Name of this node in every record, in a cluster that of its Kubernetes node; unset: the host's
    /// name.
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = node_name,
        default_value_t = host_name(), hide_default_value = true)]
    pub node_name: String,

    /// What is logged: error, warn, info, debug, or a filter such as orb8_agent=debug.
    #[arg(long, env = "RUST_LOG", default_value = "info", value_name = "FILTER",
        value_parser = log_filter)]
    pub rust_log: String,

    /// End with exit code 4 if something that is needed is missing, instead of staying up unready.
    #[arg(long, env = "ORB8_STRICT", value_parser = BoolishValueParser::new())]
    pub strict: bool,

    /// Print every setting with where it comes from, and end.
    #[arg(long)]
    pub print_config: bool,

    /// Remove what agents that are dead left attached (clsact filters), and end.
    #[arg(long)]
    pub cleanup: bool,
}

/// Where packets are counted.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Capture {
    /// What suits this node, decided at start.
    Auto,
    /// At sockets alone.
    Socket,
    /// At interfaces alone.
    Tc,
}

/// How programs are attached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum TcAttach {
    /// tcx where the kernel has it, else clsact.
    Auto,
    /// tcx only.
    Tcx,
    /// clsact only.
    Clsact,
}

/// Interfaces to attach to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Interfaces {
    /// The uplinks alone.
    Auto,
    /// These globs too.
    Globs(Vec<String>),
}

/// Settings with where each comes from.
#[derive(Clone, Debug)]
pub struct Config {
    /// The settings.
    pub settings: Settings,
    sources: Vec<(&'static str, &'static str)>,
}

/// Reads flags and environment.
///
/// # Errors
/// A value that cannot be used, named with what is allowed; also `--help` and `--version`, whose
/// text the error carries.
pub fn parse<I, T>(arguments: I) -> Result<Config, clap::Error>
where
    I: IntoIterator<Item = T>,
    T: Into<OsString> + Clone,
{
    let matches = Settings::command().try_get_matches_from(arguments)?;
    let sources = SETTINGS
        .iter()
        .map(|setting| {
            let source = match matches.value_source(setting.id) {
                Some(ValueSource::CommandLine) => "flag",
                Some(ValueSource::EnvVariable) => "env",
                Some(_) | None => "default",
            };
            (setting.id, source)
        })
        .collect();
    let settings = Settings::from_arg_matches(&matches)?;
    Ok(Config { settings, sources })
}

/// A setting as the reference lists it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Setting {
    /// The flag, with its dashes.
    pub flag: String,
    /// The environment variable.
    pub env: String,
    /// The default, as it would be written.
    pub default: String,
    /// What is allowed.
    pub range: &'static str,
    /// One sentence.
    pub doc: String,
}

struct Known {
    id: &'static str,
    range: &'static str,
    show: fn(&Settings) -> String,
}

/// Every setting, in the order in which they are shown.
const SETTINGS: [Known; 24] = [
    Known { id: "max_flows", range: "16 to 4000000", show: |s| s.max_flows.to_string() },
    Known {
        id: "flow_timeout_secs",
        range: "1 to 86400",
        show: |s| s.flow_timeout_secs.to_string(),
    },
    Known {
        id: "flow_history_secs",
        range: "0 to 86400",
        show: |s| s.flow_history_secs.to_string(),
    },
    Known {
        id: "expiration_interval_secs",
        range: "1 to 60",
        show: |s| s.expiration_interval_secs.to_string(),
    },
    Known { id: "max_query_limit", range: "1 to 1000000", show: |s| s.max_query_limit.to_string() },
    Known {
        id: "broadcast_channel_size",
        range: "16 to 1048576",
        show: |s| s.broadcast_channel_size.to_string(),
    },
    Known {
        id: "ring_buffer_size",
        range: "64KiB to 32MiB, a power of two",
        show: |s| s.ring_buffer_size.to_string(),
    },
    Known { id: "memory_budget", range: "32MiB to 4095MiB", show: |s| s.memory_budget.to_string() },
    Known { id: "cpu_budget", range: "0.01% to 100%", show: |s| s.cpu_budget.to_string() },
    Known {
        id: "sampling_threshold",
        range: "1% to 100%",
        show: |s| s.sampling_threshold.to_string(),
    },
    Known {
        id: "capture",
        range: "auto, socket, tc",
        show: |s| match s.capture {
            Capture::Auto => "auto".to_owned(),
            Capture::Socket => "socket".to_owned(),
            Capture::Tc => "tc".to_owned(),
        },
    },
    Known {
        id: "tc_attach",
        range: "auto, tcx, clsact",
        show: |s| match s.tc_attach {
            TcAttach::Auto => "auto".to_owned(),
            TcAttach::Tcx => "tcx".to_owned(),
            TcAttach::Clsact => "clsact".to_owned(),
        },
    },
    Known {
        id: "interfaces",
        range: "auto, or globs with commas between",
        show: |s| match &s.interfaces {
            Interfaces::Auto => "auto".to_owned(),
            Interfaces::Globs(globs) => globs.join(","),
        },
    },
    Known { id: "grpc_port", range: "0 to 65535", show: |s| s.grpc_port.to_string() },
    Known { id: "grpc_listen", range: "an IP address", show: |s| s.grpc_listen.to_string() },
    Known { id: "proc_root", range: "a directory", show: |s| s.proc_root.display().to_string() },
    Known {
        id: "cgroup_root",
        range: "a directory",
        show: |s| s.cgroup_root.as_ref().map_or(String::new(), |path| path.display().to_string()),
    },
    Known { id: "kubernetes", range: "auto, on, off", show: |s| s.kubernetes.word().to_owned() },
    Known { id: "kubeconfig", range: "files", show: |s| s.kubeconfig.clone() },
    Known { id: "max_pod_cache", range: "16 to 1000000", show: |s| s.max_pod_cache.to_string() },
    Known {
        id: "shutdown_timeout_secs",
        range: "1 to 300",
        show: |s| s.shutdown_timeout_secs.to_string(),
    },
    Known {
        id: "node_name",
        range: "1 to 253 printable characters",
        show: |s| s.node_name.clone(),
    },
    Known { id: "rust_log", range: "a filter of tracing", show: |s| s.rust_log.clone() },
    Known { id: "strict", range: "true, false", show: |s| s.strict.to_string() },
];

/// Every setting with its default, for the generated reference.
#[must_use]
pub fn reference() -> Vec<Setting> {
    let command = Settings::command();
    let find = |id: &str| command.get_arguments().find(|argument| argument.get_id() == id);
    let describe = |known: &Known| {
        let argument = find(known.id)?;
        Some(Setting {
            flag: format!("--{}", argument.get_long()?),
            env: env_of(argument)?,
            default: default_of(known.id, argument),
            range: known.range,
            doc: argument.get_help()?.to_string(),
        })
    };
    SETTINGS.iter().filter_map(describe).collect()
}

fn env_of(argument: &Arg) -> Option<String> {
    Some(argument.get_env()?.to_string_lossy().into_owned())
}

fn default_of(id: &str, argument: &Arg) -> String {
    match id {
        "node_name" => "the host's name".to_owned(),
        "cgroup_root" => "looked up among the mounts".to_owned(),
        "kubeconfig" => "the pod's service account".to_owned(),
        "strict" => "false".to_owned(),
        _ => {
            let values: Vec<_> =
                argument.get_default_values().iter().map(|v| v.to_string_lossy()).collect();
            values.join(",")
        }
    }
}

impl Config {
    /// Every setting as a line `VARIABLE=value  # source`, in a fixed order.
    #[must_use]
    pub fn print(&self) -> String {
        let command = Settings::command();
        let mut text = String::new();
        for (known, (_, source)) in SETTINGS.iter().zip(&self.sources) {
            let argument = command.get_arguments().find(|argument| argument.get_id() == known.id);
            let env = argument.and_then(env_of).unwrap_or_default();
            text.push_str(&format!("{env}={}  # {source}\n", (known.show)(&self.settings)));
        }
        text
    }
}

impl Settings {
    /// Where the gRPC service listens.
    #[must_use]
    pub const fn grpc_address(&self) -> SocketAddr {
        SocketAddr::new(self.grpc_listen, self.grpc_port)
    }

    /// Time between drains.
    #[must_use]
    pub fn drain_interval(&self) -> Duration {
        Duration::from_secs(self.expiration_interval_secs.into())
    }

    /// The most flows that are held: as set, as far as the memory budget has room for them.
    #[must_use]
    pub fn max_flows_held(&self) -> u32 {
        let budget = self.memory_budget.into();
        governor::flows_within(self.max_flows, budget, self.ring_buffer_size)
    }

    /// What the agent may use.
    #[must_use]
    pub fn budgets(&self) -> Budgets {
        Budgets {
            cpu: self.cpu_budget.part(),
            memory_bytes: self.memory_budget.into(),
            ring: self.sampling_threshold.part(),
        }
    }

    /// How often the budgets are looked at.
    #[must_use]
    pub fn governor_interval(&self) -> Duration {
        Duration::from_millis(self.governor_interval_ms.into())
    }

    /// Where the Kubernetes API is, and whether it is asked.
    #[must_use]
    pub fn kubernetes(&self) -> KubernetesSettings {
        KubernetesSettings { mode: self.kubernetes, kubeconfig: self.kubeconfig.clone() }
    }

    /// What the kernel side is started with, counting at these planes.
    #[must_use]
    pub fn datapath(&self, planes: Planes) -> DatapathSettings {
        DatapathSettings {
            planes,
            max_flows: self.max_flows_held(),
            ring_buffer_bytes: self.ring_buffer_size,
            memory_budget: self.memory_budget.into(),
            attach: match self.tc_attach {
                TcAttach::Auto => AttachMode::Auto,
                TcAttach::Tcx => AttachMode::Tcx,
                TcAttach::Clsact => AttachMode::Clsact,
            },
            interfaces: match &self.interfaces {
                Interfaces::Auto => Vec::new(),
                Interfaces::Globs(globs) => globs.clone(),
            },
            flow_timeout: Duration::from_secs(self.flow_timeout_secs.into()),
            drain_interval: self.drain_interval(),
        }
    }
}

#[cfg(test)]
mod tests;
