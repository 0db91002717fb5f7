//! Names in a filter that nobody has, and what Kubernetes has to do with it.
//!
//! An agent tells the names that it knows no object of; a name counts as nobody's if every agent that
//! was asked says so.

use orb8_proto::v1::{AnswerContext, Unmatched};

/// The most that are offered instead of a name, however many agents offer some.
const OFFERED: usize = 3;

/// The names that no agent knows and, where names are `asked_for`, the nodes that cannot know all, as
/// sentences.
#[must_use]
pub fn lacks(contexts: &[(String, AnswerContext)], asked_for: bool) -> Vec<String> {
    let asked = contexts.iter().filter(|_| asked_for);
    let ignorant = asked.filter_map(|(node, context)| why_unknown(node, context));
    of_nobody(contexts).into_iter().chain(ignorant).collect()
}

/// The names that no agent knows.
fn of_nobody(contexts: &[(String, AnswerContext)]) -> Vec<String> {
    let Some(((_, first), others)) = contexts.split_first() else { return Vec::new() };
    let state = state(contexts.iter().map(|(_, context)| context.kubernetes.as_str()));
    let by_all = |name: &Unmatched| {
        let of_others: Option<Vec<_>> =
            others.iter().map(|(_, context)| find(context, name)).collect();
        let near = near(std::iter::once(name).chain(of_others?));
        Some(sentence(name, state) + &near)
    };
    first.unmatched.iter().filter_map(by_all).collect()
}

/// The same value in what another agent told.
fn find<'a>(context: &'a AnswerContext, name: &Unmatched) -> Option<&'a Unmatched> {
    let is_same = |other: &&Unmatched| (&other.field, &other.value) == (&name.field, &name.value);
    context.unmatched.iter().find(is_same)
}

/// What may have been meant, as a question; empty if nobody knows of anything.
fn near<'a>(told: impl Iterator<Item = &'a Unmatched>) -> String {
    let mut names: Vec<&str> = Vec::new();
    for name in told.flat_map(|name| &name.suggestions) {
        if names.len() < OFFERED && !names.contains(&name.as_str()) {
            names.push(name);
        }
    }
    match names.as_slice() {
        [] => String::new(),
        [only] => format!("; did you mean {only}?"),
        [first @ .., last] => format!("; did you mean {} or {last}?", first.join(", ")),
    }
}

/// Why a node cannot know names, if so: none if Kubernetes is synced, or the agent does not say.
fn why_unknown(node: &str, context: &AnswerContext) -> Option<String> {
    let state = context.kubernetes.as_str();
    match state {
        "" | "synced" => None,
        "off" => Some(format!(
            "{node} knows no names: Kubernetes is off there; `orb8 status` has the reason"
        )),
        _ => Some(format!(
            "{node} may not know all names: its Kubernetes API is {state}; `orb8 status` has the reason"
        )),
    }
}

/// The state of all, if they agree.
fn state<'a>(mut states: impl Iterator<Item = &'a str>) -> &'a str {
    let first = states.next().unwrap_or_default();
    if states.all(|state| state == first) { first } else { "" }
}

fn sentence(name: &Unmatched, state: &str) -> String {
    let Unmatched { field, value, .. } = name;
    let known = match state {
        "" => "is known".to_owned(),
        state => format!("is known (Kubernetes API {state})"),
    };
    let (namespace, name) = match value.split_once('/') {
        Some((namespace, name)) => (Some(namespace), name),
        None => (None, value.as_str()),
    };
    let within = namespace.map(|name| format!(" in namespace {name}")).unwrap_or_default();
    match field.as_str() {
        "pod" => format!("no pod named {name}*{within} {known}"),
        "service" => format!("no service named {name}{within} {known}"),
        "selector" => format!("no pod with labels {value} {known}"),
        // What stands before the slash may be a namespace or a kind.
        field => format!("no {field} named {value} {known}"),
    }
}
