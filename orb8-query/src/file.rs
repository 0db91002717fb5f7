//! Flows from a saved file instead of an agent, under the same selection, order and limit.
//!
//! Reads what `orb8` prints: one flow per line (`-o jsonl`), with lines of what an answer lacks after
//! them, a recorded stream, whose flows count in
//! their latest state, or the document of `-o json`. Knows nothing of where the bytes come from.

use std::collections::HashMap;
use std::io::Read;

use orb8_proto::v1::{Loss, NetworkFlow, NodeStatus, QueryFlowsRequest};
use serde_json::{Deserializer, Value};

use crate::answer::add_up;
use crate::network::filter::{FilterError, Selector};
use crate::network::sort;
use crate::rows::{FlowRecord, LossRecord, NodeRecord};

/// Codes of the notices with which a recorded stream says that it lacks a node, wholly or in part.
pub const INCOMPLETE_CODES: [&str; 4] =
    ["stream_ended", "node_unreachable", "node_failed", "node_blind"];

/// What a file holds, selected.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct FileAnswer {
    /// Sorted and limited as requested.
    pub flows: Vec<NetworkFlow>,
    /// The nodes that a saved document names, or lines of what an answer lacks; empty where the file
    /// does not say.
    pub nodes: Vec<NodeStatus>,
    /// The losses that the file tells.
    pub loss: Vec<Loss>,
    /// Flows that matched, before the limit.
    pub matched: u64,
    /// Flows in the file.
    pub held: u64,
    /// The line in which the file breaks off in the middle of an object, if it does.
    pub cut_off_at_line: Option<usize>,
}

/// A file cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum FileError {
    /// The bytes could not be had.
    #[error("cannot read: {0}")]
    Read(#[source] std::io::Error),
    /// Not JSON.
    #[error("line {line} is not JSON: {cause}; save flows with -o jsonl")]
    Syntax {
        /// Counted from 1.
        line: usize,
        /// What is wrong.
        cause: String,
    },
    /// JSON, but not a flow.
    #[error("object {number} is not a flow: {cause}; save flows with -o jsonl")]
    NotAFlow {
        /// Counted from 1.
        number: usize,
        /// What is wrong.
        cause: String,
    },
    /// The request cannot be evaluated.
    #[error(transparent)]
    Filter(#[from] FilterError),
}

/// Reads all of `input` and selects, sorts and limits its flows as an agent would.
///
/// # Errors
/// What cannot be read and where. A file that ends in the middle of an object is not an error: what
/// precedes is answered, and [`FileAnswer::cut_off_at_line`] tells.
pub fn query(input: impl Read, request: &QueryFlowsRequest) -> Result<FileAnswer, FileError> {
    let mut selector = Selector::new(request)?;
    let mut reader = Reader::default();
    let mut answer = FileAnswer::default();
    let input = std::io::BufReader::new(input);
    for (index, value) in Deserializer::from_reader(input).into_iter::<Value>().enumerate() {
        match value {
            Ok(value) => reader
                .take(value)
                .map_err(|cause| FileError::NotAFlow { number: index + 1, cause })?,
            Err(error) if error.is_eof() => answer.cut_off_at_line = Some(error.line()),
            Err(error) if error.is_io() => return Err(FileError::Read(error.into())),
            Err(error) => {
                return Err(FileError::Syntax { line: error.line(), cause: error.to_string() });
            }
        }
    }
    answer.held = u64::try_from(reader.flows.len()).unwrap_or(u64::MAX);
    answer.flows = reader.flows;
    answer.flows.retain(|flow| selector.matches(flow));
    answer.matched = u64::try_from(answer.flows.len()).unwrap_or(u64::MAX);
    sort::sort_and_limit(&mut answer.flows, request.sort.unwrap_or_default(), request.limit);
    answer.nodes = reader.nodes;
    answer.loss = add_up(reader.losses);
    Ok(answer)
}

#[derive(Default)]
struct Reader {
    flows: Vec<NetworkFlow>,
    /// Where the latest state of a streamed flow is, by node and flow id.
    streamed: HashMap<(String, u64), usize>,
    nodes: Vec<NodeStatus>,
    losses: Vec<Loss>,
}

impl Reader {
    fn take(&mut self, value: Value) -> Result<(), String> {
        let Value::Object(object) = &value else {
            return Err(format!("it is {}, not an object", kind_of(&value)));
        };
        if let Some(flows) = object.get("flows") {
            return self.document(flows, object.get("nodes"), object.get("loss"));
        }
        match object.get("type").and_then(Value::as_str) {
            None => {
                let flow = flow(&value)?;
                self.flows.push(flow);
            }
            Some("flow_start" | "flow_update" | "flow_end") => {
                let flow = flow(&value)?;
                self.streamed_state(flow);
            }
            Some("node") => self.nodes.push(read::<NodeRecord>(&value)?.into()),
            Some("notice") => self.nodes.extend(missing_node(&value)),
            Some("loss") => self.losses.push(read::<LossRecord>(&value)?.into()),
            // Packets and what a later version adds are no flows.
            Some(_) => {}
        }
        Ok(())
    }

    fn document(
        &mut self,
        flows: &Value,
        nodes: Option<&Value>,
        losses: Option<&Value>,
    ) -> Result<(), String> {
        for value in flows.as_array().ok_or("its `flows` is not a list")? {
            self.flows.push(flow(value)?);
        }
        for value in nodes.and_then(Value::as_array).into_iter().flatten() {
            self.nodes.push(read::<NodeRecord>(value)?.into());
        }
        for value in losses.and_then(Value::as_array).into_iter().flatten() {
            self.losses.push(read::<LossRecord>(value)?.into());
        }
        Ok(())
    }

    fn streamed_state(&mut self, flow: NetworkFlow) {
        if flow.flow_id == 0 {
            self.flows.push(flow);
            return;
        }
        let key = (flow.node_name.clone(), flow.flow_id);
        match self.streamed.get(&key) {
            Some(index) => self.flows[*index] = flow,
            None => {
                self.streamed.insert(key, self.flows.len());
                self.flows.push(flow);
            }
        }
    }
}

/// The node that a recorded stream lacks, if this notice tells of one.
fn missing_node(notice: &Value) -> Option<NodeStatus> {
    let text = |key: &str| notice.get(key).and_then(Value::as_str).unwrap_or_default();
    INCOMPLETE_CODES.contains(&text("code")).then(|| NodeStatus {
        node_name: text("node_name").to_owned(),
        state: "partial".to_owned(),
        complete: false,
        message: text("message").to_owned(),
    })
}

fn flow(value: &Value) -> Result<NetworkFlow, String> {
    let has = |key: &str| value.get(key).is_some();
    if !has("src_ip") || !has("dst_ip") {
        return Err("it has no src_ip and dst_ip".to_owned());
    }
    read::<FlowRecord>(value).map(NetworkFlow::from)
}

fn read<'a, T: serde::Deserialize<'a>>(value: &'a Value) -> Result<T, String> {
    T::deserialize(value).map_err(|error| error.to_string())
}

fn kind_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "a boolean",
        Value::Number(_) => "a number",
        Value::String(_) => "a string",
        Value::Array(_) => "a list",
        Value::Object(_) => "an object",
    }
}
