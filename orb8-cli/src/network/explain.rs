//! Says, on stderr, what an answer is worth: why it is empty, from when it holds, what is missing.
//!
//! Changes nothing in the answer.

use orb8_proto::v1::{AnswerContext, Loss, NodeStatus, QueryFlowsRequest};
use orb8_query::FlowAnswer;
use orb8_util::{format, time};

use super::args::FlowsArgs;
use super::filter_args::FilterArgs;
use super::flows::warn_missing;
use super::names;
use crate::terminal::Terminal;

/// Explains an empty answer of agents, and one that reaches back further than they remember. Does
/// not repeat why the `blind` nodes have nothing to say.
pub fn contexts(
    answer: &FlowAnswer,
    args: &FlowsArgs,
    request: &QueryFlowsRequest,
    blind: &[Blind],
    terminal: &mut Terminal<'_>,
) {
    names(&answer.contexts, &args.filter, terminal);
    for (node, context) in &answer.contexts {
        if answer.flows.is_empty() && !is_told(blind, node) {
            let why = why_empty(context, args, request, terminal);
            terminal.note(format!("no flows on {node}: {why}"));
        }
        let asked_from = if request.start_time_ns != 0 {
            request.start_time_ns
        } else {
            // Without --since only an --until can reach into the forgotten.
            request.end_time_ns
        };
        if asked_from != 0 && context.held_since_ns != 0 && asked_from < context.held_since_ns {
            let from = time::rfc3339(context.held_since_ns, &terminal.zone);
            terminal.note(format!(
                "the answer of {node} holds from {from} on; what ended before may be forgotten"
            ));
        }
    }
    if answer.flows.is_empty() && answer.contexts.is_empty() {
        terminal.note("no flows: the agent does not say why");
    }
}

/// Says which names nobody has, and, where names are asked for, which nodes know none.
pub fn names(
    contexts: &[(String, AnswerContext)],
    filter: &FilterArgs,
    terminal: &mut Terminal<'_>,
) {
    names::lacks(contexts, filter.asks_names()).into_iter().for_each(|why| terminal.note(why));
}

/// A node that cannot see what it is asked for.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blind {
    /// Its name.
    pub node: String,
    /// Why, with the next step.
    pub why: String,
}

/// The nodes of an answer that cannot see all that they should.
#[must_use]
pub fn blind(answer: &FlowAnswer) -> Vec<Blind> {
    let blind = |(node, context): &(String, AnswerContext)| {
        Some(Blind { node: node.clone(), why: not_attached(context).or_else(|| ill(context))? })
    };
    answer.contexts.iter().filter_map(blind).collect()
}

fn is_told(blind: &[Blind], node: &str) -> bool {
    blind.iter().any(|told| told.node == node)
}

fn not_attached(context: &AnswerContext) -> Option<String> {
    let AnswerContext { socket_plane, interfaces_attached, interfaces_attaching, .. } = context;
    if *interfaces_attached > 0 || socket_plane == "attached" {
        return None;
    }
    if *interfaces_attaching > 0 || socket_plane == "attaching" {
        return Some("the agent is still attaching; ask again in a moment".to_owned());
    }
    let health = context.health_message.trim();
    let cause = if health.is_empty() { "" } else { ": " };
    let what = if socket_plane.is_empty() { "" } else { "to sockets or " };
    Some(format!(
        "the agent is not attached {what}to any interface{cause}{health}; `orb8 status` has the remedy"
    ))
}

/// Where the agent looks: `at sockets and on 2 interfaces`.
fn places(context: &AnswerContext) -> String {
    let sockets = (context.socket_plane == "attached").then(|| "at sockets".to_owned());
    let interfaces = (context.interfaces_attached > 0)
        .then(|| format!("on {}", counted(u64::from(context.interfaces_attached), "interface")));
    sockets.into_iter().chain(interfaces).collect::<Vec<_>>().join(" and ")
}

fn ill(context: &AnswerContext) -> Option<String> {
    let health = context.health_message.trim();
    (!health.is_empty())
        .then(|| format!("the agent is not healthy: {health}; `orb8 status` has the remedy"))
}

/// Why no event went by while watching: what the agents say now beside what they said `before`. What
/// was told at the start is not repeated: who could see nothing, and which names nobody has.
#[must_use]
pub fn quiet(
    before: &[(String, AnswerContext)],
    now: &[(String, AnswerContext)],
    filter: &FilterArgs,
) -> Vec<String> {
    let why = |(node, context): &(String, AnswerContext)| {
        let began = before.iter().find(|(name, _)| name == node);
        if began.and_then(|(_, context)| not_attached(context)).is_some() {
            return None;
        }
        let seen = context
            .packets_seen
            .saturating_sub(began.map_or(0, |(_, context)| context.packets_seen));
        let why = not_attached(context).unwrap_or_else(|| {
            if seen == 0 {
                return format!("no packets seen {} meanwhile", places(context));
            }
            let packets = counted(seen, "packet");
            let words = filter.describe();
            if words.is_empty() {
                format!("{packets} seen meanwhile, but no flow told yet; watch for longer")
            } else {
                format!("{packets} seen meanwhile, none told matches {words}")
            }
        });
        Some(format!("nothing went by on {node}: {why}"))
    };
    let asks_names = filter.asks_names();
    let told = names::lacks(before, asks_names);
    let lacks = names::lacks(now, asks_names).into_iter().filter(|why| !told.contains(why));
    now.iter().filter_map(why).chain(lacks).collect()
}

fn why_empty(
    context: &AnswerContext,
    args: &FlowsArgs,
    request: &QueryFlowsRequest,
    terminal: &Terminal<'_>,
) -> String {
    let AnswerContext { flows_held, packets_seen, .. } = context;
    let health = context.health_message.trim();
    if let Some(why) = not_attached(context) {
        return why;
    }
    if *packets_seen == 0 {
        let ill = if health.is_empty() { String::new() } else { format!(" ({health})") };
        return format!("no packets seen yet {}{ill}; send some and ask again", places(context));
    }
    if *flows_held == 0 {
        let packets = counted(*packets_seen, "packet");
        let since = time::rfc3339(context.held_since_ns, &terminal.zone);
        return format!("{packets} seen, but no flow is held since {since}; watch with --follow");
    }
    none_match(*flows_held, context.of_other_scopes, args, request, terminal)
}

/// Explains an empty answer of a file that holds `held` flows.
pub fn file(
    name: &str,
    held: u64,
    args: &FlowsArgs,
    request: &QueryFlowsRequest,
    terminal: &mut Terminal<'_>,
) {
    let why = if held == 0 {
        "the file has none".to_owned()
    } else {
        none_match(held, 0, args, request, terminal)
    };
    terminal.note(format!("no flows in {name}: {why}"));
}

/// The node entry that makes a file that breaks off an answer that is not whole.
#[must_use]
pub fn cut_off_node(path: &str, line: usize) -> NodeStatus {
    NodeStatus {
        node_name: path.to_owned(),
        state: "partial".to_owned(),
        complete: false,
        message: format!("the file breaks off in line {line}, this is what precedes it"),
    }
}

fn none_match(
    held: u64,
    passing: u64,
    args: &FlowsArgs,
    request: &QueryFlowsRequest,
    terminal: &Terminal<'_>,
) -> String {
    let held = counted(held, "flow");
    let mut words = Vec::new();
    words.extend(Some(args.filter.describe()).filter(|words| !words.is_empty()));
    for (flag, time_ns) in [("--since", request.start_time_ns), ("--until", request.end_time_ns)] {
        if time_ns != 0 {
            words.push(format!("{flag} {}", time::rfc3339(time_ns, &terminal.zone)));
        }
    }
    let hidden = hidden(passing, args).map_or_else(String::new, |text| format!("; {text}"));
    if words.is_empty() && hidden.is_empty() {
        format!("{held} held, but none given out; see `orb8 status`")
    } else if words.is_empty() {
        format!("{held} held, none to be shown{hidden}")
    } else {
        format!("{held} held, none matches {}{hidden}", words.join(" "))
    }
}

/// How many flows are left out for their scope alone, unless that was asked for; none if there are
/// none.
fn hidden(count: u64, args: &FlowsArgs) -> Option<String> {
    let passes = if count == 1 { "that passes the node is" } else { "that pass the node are" };
    (args.filter.hides_scopes() && count > 0).then(|| {
        format!("{} {passes} hidden; show what passes with --all-scopes", counted(count, "flow"))
    })
}

/// Says how many flows of an answer are not shown because they only pass the node.
pub fn passing(answer: &FlowAnswer, args: &FlowsArgs, terminal: &mut Terminal<'_>) {
    let count = answer.contexts.iter().map(|(_, context)| context.of_other_scopes).sum();
    // What is said of an empty answer says it, node by node.
    let told = hidden(count, args).filter(|_| !answer.flows.is_empty());
    told.into_iter().for_each(|text| terminal.note(text));
}

/// Says that more flows match than are shown.
pub fn cut_short(answer: &FlowAnswer, args: &FlowsArgs, terminal: &mut Terminal<'_>) {
    let shown = u64::try_from(answer.flows.len()).unwrap_or(u64::MAX);
    if answer.matched > shown && shown > 0 {
        let what = if args.conversations { "folded" } else { "shown" };
        terminal.note(format!(
            "{shown} of {} matching flows {what}; ask for more with {}",
            answer.matched,
            // The two exclude each other, and what is followed has no --limit.
            if args.follow || args.last.is_some() { "--last" } else { "--limit" }
        ));
    }
}

/// Names the nodes that are missing or incomplete, and the losses. Does not repeat what is wrong
/// with the `blind` nodes.
pub fn missing(answer: &FlowAnswer, blind: &[Blind], terminal: &mut Terminal<'_>) {
    warn_missing(&answer.errors, terminal);
    let untold = |node: &&NodeStatus| {
        !is_told(blind, &node.node_name)
            && !answer.errors.iter().any(|error| error.address.to_string() == node.node_name)
    };
    for node in answer.nodes.iter().filter(untold) {
        let NodeStatus { node_name, state, complete, message } = node;
        let separator = if message.is_empty() { "" } else { ": " };
        if state != "ok" {
            terminal.warn(format!("node {node_name} is {state}{separator}{message}"));
        } else if !complete && answer.loss.is_empty() {
            terminal.warn(format!("the answer of {node_name} is not complete{separator}{message}"));
        }
    }
    for entry in &answer.loss {
        terminal.warn(format!("lost within this answer: {}", loss(entry)));
    }
}

/// A loss in words: `12 packets and 1.5KiB at flow_table (flow_table_full)`.
#[must_use]
pub fn loss(loss: &Loss) -> String {
    let mut amounts = Vec::new();
    if loss.packets > 0 {
        amounts.push(counted(loss.packets, "packet"));
    }
    if loss.bytes > 0 {
        amounts.push(format::bytes(loss.bytes));
    }
    if loss.events > 0 {
        amounts.push(counted(loss.events, "event"));
    }
    if amounts.is_empty() {
        amounts.push("an unknown amount".to_owned());
    }
    format!("{} at {} ({})", amounts.join(" and "), loss.stage, loss.reason)
}

/// `1 packet`, `2 packets`.
#[must_use]
pub fn counted(count: u64, thing: &str) -> String {
    let plural = if count == 1 { "" } else { "s" };
    format!("{count} {thing}{plural}")
}
