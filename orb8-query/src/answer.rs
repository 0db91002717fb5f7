//! Many answers made into one: sorted and limited again, every node told, losses added up.
//!
//! Pure and free of order: the same answers in any order give the same whole.

use std::collections::BTreeMap;

use orb8_proto::v1::{
    AgentStatus, AnswerContext, Loss, NetworkFlow, NodeStatus, QueryFlowsRequest,
    QueryFlowsResponse,
};
use orb8_util::net::HostPort;
use prost::Message;

use crate::error::AgentError;
use crate::network::sort;

/// What an agent said, or why it did not.
pub type Part<T> = (HostPort, Result<T, AgentError>);

/// Flows of all nodes that answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FlowAnswer {
    /// Sorted and limited as requested.
    pub flows: Vec<NetworkFlow>,
    /// Every node that was asked, by name; an agent that did not answer goes by its address.
    pub nodes: Vec<NodeStatus>,
    /// Losses within the scope of the answer, one entry per stage and reason.
    pub loss: Vec<Loss>,
    /// Flows that matched, before the limit.
    pub matched: u64,
    /// What each answer was drawn from, by node name (or address, if one answers for many nodes).
    pub contexts: Vec<(String, AnswerContext)>,
    /// The agents that did not answer.
    pub errors: Vec<AgentError>,
}

impl FlowAnswer {
    /// Merges answers; `request` gives sort and limit.
    #[must_use]
    pub fn merge(parts: Vec<Part<QueryFlowsResponse>>, request: &QueryFlowsRequest) -> Self {
        let mut answer = Self::default();
        let mut losses = Vec::new();
        for (address, result) in parts {
            match result {
                Ok(response) => {
                    let mut nodes = response.nodes;
                    if nodes.is_empty() {
                        nodes.push(answered(address.to_string(), response.loss.is_empty()));
                    }
                    let label = match nodes.as_slice() {
                        [node] => node.node_name.clone(),
                        _ => address.to_string(),
                    };
                    answer.nodes.append(&mut nodes);
                    answer.contexts.extend(response.context.map(|context| (label, context)));
                    answer.flows.extend(response.flows);
                    losses.extend(response.loss);
                    answer.matched = answer.matched.saturating_add(response.matched);
                }
                Err(error) => {
                    answer.nodes.push(missing(&error));
                    answer.errors.push(error);
                }
            }
        }
        sort::sort_and_limit(&mut answer.flows, request.sort.unwrap_or_default(), request.limit);
        answer.nodes.sort_by(|a, b| node_order(a).cmp(&node_order(b)));
        // Two contexts of one name are told apart by all that they say.
        answer
            .contexts
            .sort_by_cached_key(|(node, context)| (node.clone(), context.encode_to_vec()));
        answer.errors.sort_by(|a, b| a.address.cmp(&b.address));
        answer.loss = add_up(losses);
        answer
    }

    /// True if every node answered and nothing was lost within the scope of the answer.
    #[must_use]
    pub fn is_complete(&self) -> bool {
        self.loss.is_empty()
            && self.errors.is_empty()
            && self.nodes.iter().all(|node| node.state == "ok" && node.complete)
    }
}

/// The statuses of all agents that answered.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct StatusAnswer {
    /// By node name.
    pub agents: Vec<AgentStatus>,
    /// Every agent that was asked.
    pub nodes: Vec<NodeStatus>,
    /// The agents that did not answer.
    pub errors: Vec<AgentError>,
}

impl StatusAnswer {
    /// Merges statuses.
    #[must_use]
    pub fn merge(parts: Vec<Part<AgentStatus>>) -> Self {
        let mut answer = Self::default();
        for (_, result) in parts {
            match result {
                Ok(status) => {
                    answer.nodes.push(answered(status.node_name.clone(), true));
                    answer.agents.push(status);
                }
                Err(error) => {
                    answer.nodes.push(missing(&error));
                    answer.errors.push(error);
                }
            }
        }
        answer
            .agents
            .sort_by(|a, b| (&a.node_name, a.started_at_ns).cmp(&(&b.node_name, b.started_at_ns)));
        answer.nodes.sort_by(|a, b| node_order(a).cmp(&node_order(b)));
        answer.errors.sort_by(|a, b| a.address.cmp(&b.address));
        answer
    }
}

/// The state of an agent that did not answer; it goes by its address.
#[must_use]
pub fn missing(error: &AgentError) -> NodeStatus {
    NodeStatus {
        node_name: error.address.to_string(),
        state: error.state().to_owned(),
        complete: false,
        message: error.to_string(),
    }
}

fn answered(node_name: String, complete: bool) -> NodeStatus {
    NodeStatus { node_name, state: "ok".to_owned(), complete, message: String::new() }
}

fn node_order(node: &NodeStatus) -> (&str, &str, bool, &str) {
    (&node.node_name, &node.state, node.complete, &node.message)
}

/// One entry per stage and reason, in the order of the words; entries of nothing fall away.
#[must_use]
pub fn add_up(losses: impl IntoIterator<Item = Loss>) -> Vec<Loss> {
    let mut sums: BTreeMap<(String, String), Loss> = BTreeMap::new();
    for loss in losses {
        if loss.packets == 0 && loss.bytes == 0 && loss.events == 0 {
            continue;
        }
        let key = (loss.stage.clone(), loss.reason.clone());
        let sum = sums.entry(key).or_insert_with(|| Loss {
            stage: loss.stage.clone(),
            reason: loss.reason.clone(),
            ..Loss::default()
        });
        sum.packets = sum.packets.saturating_add(loss.packets);
        sum.bytes = sum.bytes.saturating_add(loss.bytes);
        sum.events = sum.events.saturating_add(loss.events);
    }
    sums.into_values().collect()
}
