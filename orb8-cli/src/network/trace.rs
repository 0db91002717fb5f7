//! `orb8 trace network` and `orb8 flows --follow`: prints events as they arrive and sums up at the
//! end.
//!
//! Holds nothing back: what has arrived is written before waiting for more.

use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use futures_util::{FutureExt, StreamExt};
use orb8_proto::v1::{
    AnswerContext, Event, FlowEvent, Loss, NetworkFlow, Notice, QueryFlowsRequest,
    StreamEventsRequest, event, flow_event,
};
use orb8_query::rows::EventRecord;
use orb8_query::stream::{EventStream, StreamItem};
use orb8_query::{AgentError, Client, ErrorKind, FlowAnswer, answer};
use serde_json::Value;

use super::args::{FlowsArgs, TraceArgs};
use super::columns::{self, COMPOSED, LEAVES};
use super::explain::{self, Blind, counted};
use super::filter_args::FilterArgs;
use super::flows::{csv_columns, table_columns, warn_missing};
use super::legend::Legend;
use super::rows::{self, Line, Look};
use crate::args::GlobalArgs;
use crate::error::{CliError, Exit, next_step};
use crate::output::table::Table;
use crate::output::{Format, csv, fields, json, yaml};
use crate::terminal::Terminal;

/// Keys that events have besides those of flows.
const EVENT_LEAVES: [&str; 4] = ["type", "time_ns", "tcp_flags", "sample_weight"];
/// Columns that only tables of events have.
const EVENT_COLUMNS: [&str; 2] = ["time", "event"];

/// Runs `trace network`.
///
/// # Errors
/// If no agent can be watched or the events cannot be printed.
pub async fn run(
    global: &GlobalArgs,
    args: &TraceArgs,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    check_fields(global)?;
    let mut printer = Printer::new(global, terminal.out_color);
    let watched = Watched {
        subscription: args.subscription(),
        duration: args.duration,
        filter: &args.filter,
        first: None,
    };
    watch(global, &watched, &mut printer, terminal).await
}

/// Runs `flows --follow`: the flows that were asked for first, then events.
///
/// # Errors
/// If no agent can be watched or the events cannot be printed.
pub async fn follow(
    global: &GlobalArgs,
    args: &FlowsArgs,
    request: &QueryFlowsRequest,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    check_fields(global)?;
    let mut printer = Printer::new(global, terminal.out_color);
    let watched = Watched {
        subscription: args.subscription(),
        duration: args.duration,
        filter: &args.filter,
        first: (args.last.is_some() || args.since.is_some()).then_some((args, request)),
    };
    watch(global, &watched, &mut printer, terminal).await
}

/// What is watched.
struct Watched<'a> {
    subscription: StreamEventsRequest,
    duration: Option<Duration>,
    filter: &'a FilterArgs,
    /// The flows that are held already and wanted first.
    first: Option<(&'a FlowsArgs, &'a QueryFlowsRequest)>,
}

impl Watched<'_> {
    /// What the agents are asked before and after: whether they can see what is to be watched.
    fn probe(&self) -> QueryFlowsRequest {
        QueryFlowsRequest {
            limit: 1,
            filter: self.subscription.filter.clone(),
            namespaces: self.subscription.namespaces.clone(),
            pod_names: self.subscription.pod_names.clone(),
            ..QueryFlowsRequest::default()
        }
    }
}

fn check_fields(global: &GlobalArgs) -> Result<(), CliError> {
    let in_tables = [&COMPOSED[..], &EVENT_COLUMNS].concat();
    let mut extra = EVENT_LEAVES.to_vec();
    if global.output.is_table() {
        extra.extend(&in_tables);
    }
    fields::check(&global.fields, &LEAVES, &extra, &in_tables)
}

async fn watch(
    global: &GlobalArgs,
    watched: &Watched<'_>,
    printer: &mut Printer<'_>,
    terminal: &mut Terminal<'_>,
) -> Result<Exit, CliError> {
    let client = Client::new(&global.agents, global.timeout);
    // Subscribed before the query, so that nothing falls between the two.
    let (stream, errors) = client.stream(&watched.subscription).await;
    if errors.len() == client.agents().len() {
        return Err(CliError::NoAgent(errors));
    }
    warn_missing(&errors, terminal);
    let mut tally = Tally { missing: !errors.is_empty(), gone: errors, ..Tally::default() };
    printer.start(terminal)?;
    for error in &tally.gone {
        tell_gone(error, printer, terminal)?;
    }
    let before = open(&client, watched, &mut tally, printer, terminal).await?;
    let deadline = async {
        match watched.duration {
            Some(limit) => tokio::time::sleep(limit).await,
            None => std::future::pending().await,
        }
    };
    pump(stream, deadline, &mut tally, printer, terminal).await?;
    terminal.out.flush()?;
    let quiet = quiet(&client, watched, &before, &mut tally, terminal).await;
    printer.legend.tell(terminal);
    tally.sum_up(terminal);
    quiet.into_iter().for_each(|why| terminal.note(why));
    Ok(if tally.is_complete() || global.allow_partial { Exit::Done } else { Exit::Partial })
}

/// Asks who can see and prints the flows that are wanted first; gives what the agents said.
async fn open(
    client: &Client,
    watched: &Watched<'_>,
    tally: &mut Tally,
    printer: &mut Printer<'_>,
    terminal: &mut Terminal<'_>,
) -> Result<Vec<(String, AnswerContext)>, CliError> {
    let client = client.without(&tally.gone);
    let probe = watched.probe();
    let request = watched.first.map_or(&probe, |(_, request)| request);
    let answer = client.query_flows(request).await;
    let contexts = answer.contexts.clone();
    let blind = explain::blind(&answer);
    tally.missing |= !blind.is_empty() || !answer.errors.is_empty();
    for node in &blind {
        tell_blind(node, printer, terminal)?;
    }
    for error in &answer.errors {
        tell_gone(error, printer, terminal)?;
    }
    let Some((args, request)) = watched.first else {
        // What was lost before is no loss of what is watched from now on.
        warn_missing(&answer.errors, terminal);
        explain::names(&contexts, watched.filter, terminal);
        return Ok(contexts);
    };
    tally.missing |= !answer.is_complete();
    if printer.tells_notices() {
        for loss in &answer.loss {
            let payload = Some(event::Payload::Loss(loss.clone()));
            let time_ns = (terminal.clock)();
            printer.event(&Event { time_ns, payload, ..Event::default() }, terminal)?;
        }
    }
    explain::contexts(&answer, args, request, &blind, terminal);
    explain::cut_short(&answer, args, terminal);
    explain::missing(&answer, &blind, terminal);
    for event in held(answer) {
        printer.event(&event, terminal)?;
    }
    Ok(contexts)
}

/// Tells those who read the stream and not stderr about an agent that is not watched, or no longer.
fn tell_gone(
    error: &AgentError,
    printer: &mut Printer<'_>,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    if !printer.tells_notices() {
        return Ok(());
    }
    printer.event(&gone(error, (terminal.clock)()), terminal)
}

fn tell_blind(
    blind: &Blind,
    printer: &mut Printer<'_>,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let Blind { node, why } = blind;
    terminal.warn(format!("{node}: {why}"));
    if printer.tells_notices() {
        let notice = error_notice(node.clone(), "node_blind", why.clone(), (terminal.clock)());
        printer.event(&notice, terminal)?;
    }
    Ok(())
}

/// Why nothing went by, if nothing did.
async fn quiet(
    client: &Client,
    watched: &Watched<'_>,
    before: &[(String, AnswerContext)],
    tally: &mut Tally,
    terminal: &mut Terminal<'_>,
) -> Vec<String> {
    let client = client.without(&tally.gone);
    if !tally.is_quiet() || client.agents().is_empty() {
        return Vec::new();
    }
    let answer = client.query_flows(&watched.probe()).await;
    warn_missing(&answer.errors, terminal);
    tally.missing |= !answer.errors.is_empty() || !explain::blind(&answer).is_empty();
    explain::quiet(before, &answer.contexts, watched.filter)
}

/// Flows that were held already, as updates or ends, oldest first.
fn held(answer: FlowAnswer) -> impl Iterator<Item = Event> {
    answer.flows.into_iter().rev().map(rows::held)
}

async fn pump(
    mut stream: EventStream,
    deadline: impl Future<Output = ()>,
    tally: &mut Tally,
    printer: &mut Printer<'_>,
    terminal: &mut Terminal<'_>,
) -> Result<(), CliError> {
    let interrupt = std::mem::replace(&mut terminal.interrupt, Box::pin(std::future::pending()));
    let unread = std::mem::replace(&mut terminal.unread, Box::pin(std::future::pending()));
    let mut stop = pin!(async {
        tokio::select! {
            () = interrupt => Ok(()),
            () = deadline => Ok(()),
            () = unread => Err(CliError::Output(io::ErrorKind::BrokenPipe.into())),
        }
    });
    loop {
        // Asked for before each item: a stream that never pauses must not outlive its end, and the
        // interrupt is waited for before anything is printed.
        if let Some(stopped) = (&mut stop).now_or_never() {
            return stopped;
        }
        let item = match stream.next().now_or_never() {
            Some(item) => item,
            None => {
                terminal.out.flush()?;
                tokio::select! {
                    biased;
                    stopped = &mut stop => return stopped,
                    item = stream.next() => item,
                }
            }
        };
        match item {
            None => return Ok(()),
            Some(StreamItem::Ended(error)) => {
                tally.missing = true;
                terminal.warn(format!("{error}; {}", next_step(&error)));
                tell_gone(&error, printer, terminal)?;
                tally.gone.push(error);
            }
            Some(StreamItem::Event(event)) => {
                tally.count(&event);
                printer.event(&event, terminal)?;
            }
        }
    }
}

fn gone(error: &AgentError, now_ns: i64) -> Event {
    let code = match error.kind {
        ErrorKind::Ended => "stream_ended",
        ErrorKind::Unreachable | ErrorKind::Broken | ErrorKind::Lost | ErrorKind::Timeout => {
            "node_unreachable"
        }
        ErrorKind::NotOrb8 | ErrorKind::BadRequest | ErrorKind::Failed => "node_failed",
    };
    error_notice(answer::missing(error).node_name, code, error.to_string(), now_ns)
}

fn error_notice(node_name: String, code: &str, message: String, time_ns: i64) -> Event {
    let (severity, code) = ("error".to_owned(), code.to_owned());
    let notice = Notice { severity, code, message };
    Event { node_name, time_ns, payload: Some(event::Payload::Notice(notice)) }
}

/// What went by.
#[derive(Debug, Default)]
struct Tally {
    started: u64,
    updates: u64,
    ended: u64,
    packets: u64,
    /// What the packets stand for, themselves included.
    offered: u64,
    losses: Vec<Loss>,
    missing: bool,
    /// The agents that are not watched, or no longer.
    gone: Vec<AgentError>,
}

impl Tally {
    fn count(&mut self, event: &Event) {
        match &event.payload {
            Some(event::Payload::Flow(flow)) => match flow.r#type() {
                flow_event::Type::Start => self.started += 1,
                flow_event::Type::Update => self.updates += 1,
                flow_event::Type::End => self.ended += 1,
                flow_event::Type::Unspecified => {}
            },
            Some(event::Payload::Packet(packet)) => {
                self.packets += 1;
                self.offered += u64::from(packet.sample_weight.max(1));
            }
            Some(event::Payload::Loss(loss)) => {
                self.losses.push(loss.clone());
                // Bounded by the number of stages and reasons, however long the stream.
                self.losses = answer::add_up(self.losses.drain(..));
            }
            Some(event::Payload::Notice(_)) | None => {}
        }
    }

    fn is_quiet(&self) -> bool {
        let Self { started, updates, ended, packets, .. } = self;
        [started, updates, ended, packets].into_iter().all(|count| *count == 0)
    }

    fn is_complete(&self) -> bool {
        self.losses.is_empty() && !self.missing
    }

    fn sum_up(&self, terminal: &mut Terminal<'_>) {
        let Self { started, updates, ended, packets, offered, losses, .. } = self;
        let mut sum = format!(
            "{} started, {} ended, {}",
            counted(*started, "flow"),
            ended,
            counted(*updates, "update")
        );
        if *packets > 0 {
            sum += &format!(", {}", counted(*packets, "packet"));
            if offered > packets {
                sum += &format!(" that stand for about {offered}");
            }
        }
        if self.is_complete() {
            sum += "; nothing lost";
        }
        terminal.note(sum);
        for loss in losses {
            terminal.warn(format!("lost while watching: {}", explain::loss(loss)));
        }
    }
}

/// Writes events in one format.
#[derive(Debug)]
struct Printer<'a> {
    global: &'a GlobalArgs,
    columns: Vec<&'a str>,
    csv: Vec<String>,
    table: Table,
    with_type: Vec<String>,
    legend: Legend,
}

impl<'a> Printer<'a> {
    fn new(global: &'a GlobalArgs, color: bool) -> Self {
        let mut columns = table_columns(global, global.agents.len() > 1);
        let mut csv = csv_columns(global);
        if global.fields.is_empty() {
            columns.retain(|column| !matches!(*column, "age" | "last"));
            columns.splice(0..0, EVENT_COLUMNS);
            csv.splice(0..0, EVENT_LEAVES[..2].iter().map(ToString::to_string));
            csv.extend(EVENT_LEAVES[2..].iter().map(ToString::to_string));
        }
        let mut table = Table::new(columns::headings(&columns), color);
        table.reserve(
            &columns.iter().map(|column| columns::usual_width(column)).collect::<Vec<_>>(),
        );
        // A line without its type could be anything.
        let mut with_type = global.fields.clone();
        if !with_type.iter().any(|field| field == "type") {
            with_type.insert(0, "type".to_owned());
        }
        Self { global, columns, csv, table, with_type, legend: Legend::default() }
    }

    /// True if notices are part of the data.
    fn tells_notices(&self) -> bool {
        matches!(self.global.output, Format::Json | Format::Jsonl | Format::Yaml)
    }

    fn start(&mut self, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
        if self.global.no_headers {
            return Ok(());
        }
        match self.global.output {
            Format::Table | Format::Wide => self.table.header(&mut terminal.out)?,
            Format::Csv => csv::header(&mut terminal.out, &self.csv)?,
            Format::Json | Format::Jsonl | Format::Yaml => {}
        }
        Ok(terminal.out.flush()?)
    }

    fn event(&mut self, event: &Event, terminal: &mut Terminal<'_>) -> Result<(), CliError> {
        let Some(record) = EventRecord::new(event) else { return Ok(()) };
        let out = &mut *terminal.out;
        match self.global.output {
            Format::Table | Format::Wide | Format::Csv => self.row(event, &record, terminal),
            Format::Json | Format::Jsonl if self.global.fields.is_empty() => {
                json::line(out, &record)
            }
            Format::Json | Format::Jsonl => json::line(out, &self.picked(&record)),
            Format::Yaml if self.global.fields.is_empty() => yaml::document(out, &record, true),
            Format::Yaml => yaml::document(out, &self.picked(&record), true),
        }
    }

    /// `--fields` picks from flows and packets; losses and notices stay whole.
    fn picked(&self, record: &EventRecord) -> Value {
        let whole = serde_json::to_value(record).unwrap_or(Value::Null);
        match record.kind {
            "loss" | "notice" => whole,
            _ => fields::project(&whole, &self.with_type),
        }
    }

    fn row(
        &mut self,
        event: &Event,
        record: &EventRecord,
        terminal: &mut Terminal<'_>,
    ) -> Result<(), CliError> {
        let packet;
        let flow: &NetworkFlow = match &event.payload {
            Some(event::Payload::Flow(FlowEvent { flow: Some(flow), .. })) => flow,
            Some(event::Payload::Packet(told)) => {
                packet = rows::packet(told);
                &packet
            }
            Some(event::Payload::Loss(loss)) => {
                terminal.warn(format!("{}: lost {}", event.node_name, explain::loss(loss)));
                return Ok(());
            }
            Some(event::Payload::Notice(notice)) => {
                tell(&event.node_name, notice, terminal);
                return Ok(());
            }
            _ => return Ok(()),
        };
        let line = Line::event(flow, record);
        if self.global.output == Format::Csv {
            return csv::row(&mut terminal.out, &self.csv, line.json());
        }
        self.legend.add(line.marks(&self.columns));
        let look = Look { now_ns: (terminal.clock)(), zone: terminal.zone.clone() };
        Ok(self.table.row(&mut terminal.out, &line.cells(&self.columns, &look))?)
    }
}

fn tell(node: &str, notice: &Notice, terminal: &mut Terminal<'_>) {
    let message = format!("{node}: {}", notice.message);
    match notice.severity.as_str() {
        "error" => terminal.error(message),
        "warning" => terminal.warn(message),
        _ => terminal.note(message),
    }
}
