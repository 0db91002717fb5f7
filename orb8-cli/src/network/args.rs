//! The words for network flows: filters, bounds, order. Turns them into the request's messages.
//!
//! Every value is checked here, so that a wrong one is a usage error before anybody is asked.

use std::time::Duration;

use clap::Args;
use orb8_proto::v1::sort::Field as SortField;
use orb8_proto::v1::{QueryFlowsRequest, Sort, StreamEventsRequest};
use orb8_util::time::{self, TimeError, When};

use crate::args::{AgentArgs, positive_duration};
use crate::error::CliError;

use super::filter_args::FilterArgs;

/// Examples of `orb8 flows`.
pub const FLOWS_EXAMPLES: &str = "\
Examples:
  orb8 flows                                     most bytes first
  orb8 flows --last 20                           the 20 latest, newest first
  orb8 flows --ip 10.0.0.0/8 --not --port 443    within 10.0.0.0/8, but not port 443
  orb8 flows --from-ip fd00::1 --protocol tcp,udp --sort rate
  orb8 flows --since 5m --until 1m -o json | jq '.flows[].src_ip'
  orb8 flows -n shop --service cart --conversations
  orb8 flows --from-pod shop/web --not --to-namespace shop -o wide
  orb8 flows -l app=web,tier!=db --kind external
  orb8 flows -f --interface 'eth*' --duration 30s
  orb8 flows -o jsonl > saved.jsonl; orb8 flows --file saved.jsonl --port 53

Repeating a filter means any of its values; different filters must all hold; --not turns the
filter that follows it around. Rates are those of the latest interval. -n and --pod choose by the
owner of the flow; all namespaces unless -n is given. What passes a node (scopes forwarded and
tunnel) is shown with --all-scopes or --scope only.";

/// Examples of `orb8 trace network`.
pub const TRACE_EXAMPLES: &str = "\
Examples:
  orb8 trace network                             until Ctrl-C
  orb8 trace network --port 80 --duration 30s
  orb8 trace network --packets --rate-limit 100 --protocol icmp,icmpv6
  orb8 trace network -o json | jq -r '[.type, .src_ip, .dst_ip] | @tsv'

Lines are flow_start, flow_update and flow_end. Notices and losses go to stderr, in json and yaml
also to stdout. Exits with 3 if anything was lost or an agent cannot see everything.";

/// `orb8 flows`.
#[derive(Debug, Args)]
pub struct FlowsArgs {
    /// Filters.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Show at most this many flows [default: the agent's]
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    pub limit: Option<u32>,
    /// Show the N flows seen latest, newest first
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u32).range(1..))]
    #[arg(conflicts_with = "limit")]
    pub last: Option<u32>,
    /// Order: bytes, packets, rate, packet-rate, first-seen, last-seen or duration; most, latest or
    /// longest first, with a leading + the other way round [default: bytes]
    #[arg(long, value_name = "FIELD", allow_hyphen_values = true, value_parser = sort)]
    pub sort: Option<Sort>,
    /// Only flows seen at or after this time: RFC 3339, or 5m for five minutes ago
    #[arg(long, value_name = "TIME", value_parser = when)]
    pub since: Option<When>,
    /// Only flows that began at or before this time: RFC 3339, or 5m for five minutes ago
    #[arg(long, value_name = "TIME", value_parser = when)]
    pub until: Option<When>,
    /// One line for both directions and both ends of a conversation, on all nodes that saw it; the
    /// limits are those of the flows that are folded
    #[arg(long, conflicts_with = "follow")]
    pub conversations: bool,
    /// Go on with events as they happen, after the flows that --last or --since ask for
    #[arg(short, long, conflicts_with_all = ["limit", "sort", "until"])]
    pub follow: bool,
    /// Stop following after this time
    #[arg(long, value_name = "DURATION", value_parser = positive_duration, requires = "follow")]
    pub duration: Option<Duration>,
    /// Time between updates of a flow while following [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = milliseconds, requires = "follow")]
    pub interval: Option<u32>,
    /// Also the labels of pods, in json, yaml and csv
    #[arg(long)]
    pub labels: bool,
    #[command(flatten)]
    agents: AgentArgs,
}

/// `orb8 trace network`.
#[derive(Debug, Args)]
pub struct TraceArgs {
    /// Filters.
    #[command(flatten)]
    pub filter: FilterArgs,
    /// Stop after this time
    #[arg(long, value_name = "DURATION", value_parser = positive_duration)]
    pub duration: Option<Duration>,
    /// Time between updates of a flow [default: 1s]
    #[arg(long, value_name = "DURATION", value_parser = milliseconds)]
    pub interval: Option<u32>,
    /// Also every packet that matches, as far as the rate limit allows
    #[arg(long)]
    pub packets: bool,
    /// Packets a second with --packets [default: 1000]
    #[arg(long, value_name = "N", requires = "packets")]
    #[arg(value_parser = clap::value_parser!(u32).range(1..))]
    pub rate_limit: Option<u32>,
    /// Also the labels of pods, in json, yaml and csv
    #[arg(long)]
    pub labels: bool,
    #[command(flatten)]
    agents: AgentArgs,
}

impl FlowsArgs {
    /// The request, with relative times counted back from `now_ns`.
    ///
    /// # Errors
    /// A usage error if the bounds of time exclude each other.
    pub fn request(&self, now_ns: i64) -> Result<QueryFlowsRequest, CliError> {
        let bound = |when: Option<When>| match when.map(|when| when.resolve(now_ns)) {
            // 0 means no bound on the wire.
            Some(0) => 1,
            Some(time_ns) => time_ns,
            None => 0,
        };
        let (start_time_ns, end_time_ns) = (bound(self.since), bound(self.until));
        if start_time_ns != 0 && end_time_ns != 0 && end_time_ns < start_time_ns {
            return Err(CliError::Usage(
                "--until lies before --since, so no flow can match; exchange them".to_owned(),
            ));
        }
        // What is followed comes in the order of time, and a limit must cut at its old end.
        let latest = self.last.is_some() || self.follow;
        let sort = if latest { Some(LATEST) } else { self.sort };
        Ok(QueryFlowsRequest {
            limit: self.last.or(self.limit).unwrap_or(0),
            start_time_ns,
            end_time_ns,
            namespaces: self.filter.namespaces(),
            pod_names: self.filter.pod_names(),
            filter: self.filter.filter(),
            sort,
            labels: self.labels,
        })
    }

    /// The subscription that follows.
    #[must_use]
    pub fn subscription(&self) -> StreamEventsRequest {
        StreamEventsRequest {
            namespaces: self.filter.namespaces(),
            pod_names: self.filter.pod_names(),
            filter: self.filter.filter(),
            labels: self.labels,
            update_interval_ms: self.interval.unwrap_or(0),
            ..StreamEventsRequest::default()
        }
    }
}

impl TraceArgs {
    /// The subscription.
    #[must_use]
    pub fn subscription(&self) -> StreamEventsRequest {
        StreamEventsRequest {
            namespaces: self.filter.namespaces(),
            pod_names: self.filter.pod_names(),
            filter: self.filter.filter(),
            labels: self.labels,
            update_interval_ms: self.interval.unwrap_or(0),
            packets: self.packets,
            packet_rate_limit: self.rate_limit.unwrap_or(0),
        }
    }
}

/// Newest first.
pub const LATEST: Sort = Sort { field: SortField::LastSeen as i32, ascending: false };

fn sort(text: &str) -> Result<Sort, String> {
    let (ascending, name) = match text.strip_prefix('+') {
        Some(name) => (true, name),
        None => (false, text.strip_prefix('-').unwrap_or(text)),
    };
    let field = match name {
        "bytes" => SortField::Bytes,
        "packets" => SortField::Packets,
        "rate" => SortField::BytesPerSecond,
        "packet-rate" => SortField::PacketsPerSecond,
        "first-seen" => SortField::FirstSeen,
        "last-seen" => SortField::LastSeen,
        "duration" => SortField::Duration,
        _ => {
            return Err("use bytes, packets, rate, packet-rate, first-seen, last-seen or duration"
                .to_owned());
        }
    };
    Ok(Sort { field: field.into(), ascending })
}

fn when(text: &str) -> Result<When, TimeError> {
    time::parse(text)
}

fn milliseconds(text: &str) -> Result<u32, String> {
    let millis = positive_duration(text)?.as_millis();
    match u32::try_from(millis) {
        Ok(0) => Err("it must be at least 1ms".to_owned()),
        Ok(millis) => Ok(millis),
        Err(_) => Err("it must be at most 49d".to_owned()),
    }
}
