//! Answers `QueryFlows`: filter, sort and limit over the table in one pass.
//!
//! Keeps the best N in a heap, so the pass allocates nothing per row; rows are copied out under
//! the lock, converted after it. The pass takes the table a piece at a time, so that a drain beside
//! it waits for one piece at most, and sees the totals of one drain all the same. An answer is charged with the losses of its own interval and no
//! others, so that what was lost long ago does not make every later answer partial.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::sync::Arc;

use orb8_filter::{Filter, FilterError};
use orb8_proto::v1::condition;
use orb8_proto::v1::sort::Field;
use orb8_proto::v1::{
    AnswerContext, Condition, FlowFilter, NodeStatus, QueryFlowsRequest, QueryFlowsResponse,
};

use crate::clock::{self, Clock};
use crate::datapath::AttachState;
use crate::event::{FlowRecord, LossRecord, Volume};
use crate::export::feed::{BadRequest, Queries};
use crate::export::wire as shared_wire;
use crate::k8s::identity::Knowledge;
use crate::k8s::model::Node;
use crate::network::table::{FlowTable, SharedTable, Snapshot, read};
use crate::network::unmatched;
use crate::network::view::Seen;
use crate::network::wire::Shown;
use crate::pipeline::ledger::Balance;
use crate::pipeline::losses;
use crate::pipeline::runner::{SharedLedger, lock};
use crate::status::Status;

/// Flows in an answer if the request does not say how many.
pub const DEFAULT_LIMIT: u32 = 1000;

/// A query cannot be answered.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum QueryError {
    /// A condition cannot be evaluated.
    #[error(transparent)]
    Filter(#[from] FilterError),
    /// More flows than the agent gives in one answer.
    #[error(
        "limit {limit} is above this agent's maximum of {maximum}, ask for fewer or raise ORB8_MAX_QUERY_LIMIT"
    )]
    Limit {
        /// What was asked for.
        limit: u32,
        /// What is allowed.
        maximum: u32,
    },
    /// A time before 1970.
    #[error("{field} {value} is before 1970, give Unix nanoseconds")]
    Time {
        /// The field.
        field: &'static str,
        /// What was asked for.
        value: i64,
    },
    /// The interval ends before it begins.
    #[error("end_time_ns {end} is before start_time_ns {start}, swap them")]
    Interval {
        /// Its beginning.
        start: i64,
        /// Its end.
        end: i64,
    },
    /// The field is newer than this version.
    #[error("unknown sort field {0}, upgrade the agent")]
    Sort(i32),
}

/// A request, checked and ready to run.
#[derive(Debug)]
pub struct FlowQuery {
    filter: Filter,
    /// The same without what it says of scopes, if it says anything.
    any_scope: Option<Filter>,
    /// `None`: as far back as flows are held.
    from_ns: Option<u64>,
    to_ns: u64,
    field: Field,
    ascending: bool,
    limit: usize,
}

/// What a query found.
#[derive(Debug)]
pub struct Found {
    /// The best, in order.
    pub flows: Vec<FlowRecord>,
    /// All that matched.
    pub matched: u64,
    /// Those that would have matched, were it not for their scope.
    pub of_other_scopes: u64,
    /// CLOCK_MONOTONIC nanoseconds from which on the answer claims to be complete, and from which
    /// on a loss belongs to it.
    pub covers_from_ns: u64,
    /// Flows in the table.
    pub held: u64,
    /// All flows last seen after this time (CLOCK_MONOTONIC nanoseconds) were held.
    pub held_since_ns: u64,
}

/// Higher is better; then the older flow; then its row.
type Candidate = Reverse<(u64, Reverse<u64>, usize)>;

/// Rows that are looked at, or copied, before the pipeline may have its turn: less than a
/// millisecond.
const ROWS_PER_LOOK: usize = 8192;
/// Passes by pieces, after which one takes the table for all of its time: a drain may have been
/// completed and another begun beside each, or a flow found be forgotten.
const PASSES: usize = 3;

/// Where a pass stands.
struct Pass {
    snapshot: Snapshot,
    best: BinaryHeap<Candidate>,
    next: usize,
    matched: u64,
    of_other_scopes: u64,
    oldest_ns: u64,
}

/// The table is no longer that of the snapshot.
struct Overtaken;

impl FlowQuery {
    /// Checks a request.
    ///
    /// # Errors
    /// The first value that cannot be used.
    pub fn compile(
        request: &QueryFlowsRequest,
        max_limit: u32,
        unix_offset_ns: i64,
    ) -> Result<Self, QueryError> {
        let compile = |filter: Option<&FlowFilter>| {
            Filter::compile(filter, &request.namespaces, &request.pod_names)
        };
        let filter = compile(request.filter.as_ref())?;
        let any_scope = without_scopes(request.filter.as_ref());
        let any_scope = any_scope.map(|filter| compile(Some(&filter))).transpose()?;
        if request.limit > max_limit {
            return Err(QueryError::Limit { limit: request.limit, maximum: max_limit });
        }
        let limit = if request.limit == 0 { DEFAULT_LIMIT.min(max_limit) } else { request.limit };
        let (start, end) = (request.start_time_ns, request.end_time_ns);
        for (field, value) in [("start_time_ns", start), ("end_time_ns", end)] {
            if value < 0 {
                return Err(QueryError::Time { field, value });
            }
        }
        if end != 0 && end < start {
            return Err(QueryError::Interval { start, end });
        }
        let sort = request.sort.unwrap_or_default();
        let field = Field::try_from(sort.field).map_err(|_unknown| QueryError::Sort(sort.field))?;
        Ok(Self {
            filter,
            any_scope,
            from_ns: (start != 0).then(|| clock::from_unix(start, unix_offset_ns)),
            to_ns: if end == 0 { u64::MAX } else { clock::from_unix(end, unix_offset_ns) },
            field,
            ascending: sort.ascending,
            limit: limit as usize,
        })
    }

    /// Runs over a table, beside the pipeline.
    pub fn run(&mut self, table: &SharedTable, node: &Arc<Node>) -> Found {
        for _ in 0..PASSES {
            let mut pass = self.begin(&read(table));
            if let Ok(found) = self.by_pieces(&mut pass, table, node) {
                return found;
            }
        }
        let table = read(table);
        let mut pass = self.begin(&table);
        // Nothing overtakes it.
        self.look(&mut pass, &table, node, usize::MAX).ok();
        let best = std::mem::take(&mut pass.best).into_sorted_vec();
        let flows = best.iter().filter_map(|candidate| pass.copy(candidate, &table).ok());
        let flows = flows.collect();
        self.found(&pass, flows, &table)
    }

    fn begin(&self, table: &FlowTable) -> Pass {
        Pass {
            snapshot: table.snapshot(),
            best: BinaryHeap::with_capacity(self.limit.min(table.used_rows()) + 1),
            next: 0,
            matched: 0,
            of_other_scopes: 0,
            oldest_ns: u64::MAX,
        }
    }

    fn by_pieces(
        &mut self,
        pass: &mut Pass,
        table: &SharedTable,
        node: &Arc<Node>,
    ) -> Result<Found, Overtaken> {
        while !self.look(pass, &read(table), node, ROWS_PER_LOOK)? {}
        let best = std::mem::take(&mut pass.best).into_sorted_vec();
        let mut flows = Vec::with_capacity(best.len());
        for some in best.chunks(ROWS_PER_LOOK) {
            let table = read(table);
            for candidate in some {
                flows.push(pass.copy(candidate, &table)?);
            }
        }
        Ok(self.found(pass, flows, &read(table)))
    }

    fn found(&self, pass: &Pass, flows: Vec<FlowRecord>, table: &FlowTable) -> Found {
        // What was forgotten since the pass began is not promised either. Before that time everything
        // may have been forgotten, and no flow here counted anything.
        let oldest_ns = pass.oldest_ns.min(table.held_since_ns());
        Found {
            flows,
            matched: pass.matched,
            of_other_scopes: pass.of_other_scopes,
            covers_from_ns: self.from_ns.unwrap_or(oldest_ns),
            held: u64::from(table.active_flows()) + u64::from(table.ended_flows()),
            held_since_ns: table.held_since_ns(),
        }
    }

    /// Looks at the next rows; true when it has seen all.
    fn look(
        &mut self,
        pass: &mut Pass,
        table: &FlowTable,
        node: &Arc<Node>,
        most: usize,
    ) -> Result<bool, Overtaken> {
        let from_ns = self.from_ns.unwrap_or(0);
        let end = table.used_rows().min(pass.next.saturating_add(most));
        for slot in pass.next..end {
            let Some(flow) = table.row(slot) else { continue };
            if flow.last_seen_ns < from_ns || flow.first_seen_ns > self.to_ns {
                continue;
            }
            let seen = Seen { flow, node };
            if !self.filter.matches(&seen) {
                let is_hidden = self.any_scope.as_mut().is_some_and(|any| any.matches(&seen));
                pass.of_other_scopes += u64::from(is_hidden);
                continue;
            }
            let volume = pass.snapshot.volume(table, slot).ok_or(Overtaken)?;
            pass.matched += 1;
            pass.oldest_ns = pass.oldest_ns.min(flow.first_seen_ns);
            let rank = self.rank(flow, volume, || pass.snapshot.rates(table, slot));
            let candidate = Reverse((rank, Reverse(flow.flow_id), slot));
            if pass.best.len() < self.limit {
                pass.best.push(candidate);
            } else if let Some(mut worst) = pass.best.peek_mut()
                && candidate < *worst
            {
                *worst = candidate;
            }
        }
        pass.next = end;
        Ok(end == table.used_rows())
    }

    /// Higher is better.
    fn rank(&self, flow: &FlowRecord, volume: Volume, rates: impl FnOnce() -> (f32, f32)) -> u64 {
        // The bits of floats that are not negative are in the order of their values.
        let bits = |rate: f32| u64::from(rate.max(0.0).to_bits());
        let value = match self.field {
            Field::Bytes => volume.bytes,
            Field::Packets => volume.packets,
            Field::BytesPerSecond => bits(rates().0),
            Field::PacketsPerSecond => bits(rates().1),
            Field::FirstSeen => flow.first_seen_ns,
            Field::LastSeen => flow.last_seen_ns,
            Field::Duration => flow.last_seen_ns.saturating_sub(flow.first_seen_ns),
        };
        if self.ascending { !value } else { value }
    }
}

impl Pass {
    /// The flow of a candidate, unless it is forgotten by now.
    fn copy(&self, candidate: &Candidate, table: &FlowTable) -> Result<FlowRecord, Overtaken> {
        let Reverse((_, Reverse(flow_id), slot)) = *candidate;
        let flow = self.snapshot.record(table, slot);
        flow.filter(|flow| flow.flow_id == flow_id).ok_or(Overtaken)
    }
}

/// A filter without its conditions on scopes; none if it has none.
fn without_scopes(filter: Option<&FlowFilter>) -> Option<FlowFilter> {
    let on_scope =
        |condition: &Condition| matches!(condition.field, Some(condition::Field::Scope(_)));
    let (scopes, all): (Vec<_>, Vec<_>) = filter?.all.iter().cloned().partition(on_scope);
    (!scopes.is_empty()).then_some(FlowFilter { all })
}

/// Why an answer is not complete; empty if it is.
fn why_partial(balance: Balance, health: &str, loss: &[LossRecord]) -> String {
    let mut reasons = Vec::new();
    match balance {
        Balance::Unbalanced { count, .. } => reasons
            .push(format!("the packet ledger does not add up: {count} packets are unexplained")),
        Balance::Balanced if !health.is_empty() => reasons.push(health.to_owned()),
        Balance::Balanced => {}
    }
    reasons.extend(loss.iter().map(losses::describe));
    reasons.join("; ")
}

/// Answers queries over the agent's table.
#[derive(Debug)]
pub struct NetworkQueries {
    /// The flows.
    pub table: SharedTable,
    /// What was lost.
    pub ledger: SharedLedger,
    /// Whether anything can be seen.
    pub status: Arc<Status>,
    /// Who is who.
    pub known: Knowledge,
    /// For the times shown.
    pub clock: Arc<dyn Clock>,
    /// ORB8_MAX_QUERY_LIMIT.
    pub max_limit: u32,
}

impl Queries for NetworkQueries {
    fn query(&self, request: &QueryFlowsRequest) -> Result<QueryFlowsResponse, BadRequest> {
        let unix_offset_ns = self.clock.unix_offset_ns();
        let mut query = FlowQuery::compile(request, self.max_limit, unix_offset_ns)
            .map_err(|error| BadRequest(error.to_string()))?;
        let node = self.known.registry.own_node();
        let found = query.run(&self.table, &node);
        let (loss, seen, balance) = {
            let ledger = lock(&self.ledger);
            let lost = ledger.lost_between(found.covers_from_ns, query.to_ns);
            (lost, ledger.seen(), ledger.packets().balance)
        };
        let known = self.known.clone();
        let shown = Shown { node, known, unix_offset_ns, labels: request.labels };
        let health = self.status.health_message();
        let message = why_partial(balance, &health, &loss);
        let complete = message.is_empty();
        Ok(QueryFlowsResponse {
            flows: found.flows.iter().map(|flow| shown.flow(flow)).collect(),
            nodes: vec![NodeStatus {
                node_name: self.status.node_name().to_string(),
                state: if complete { "ok" } else { "partial" }.to_owned(),
                complete,
                message,
            }],
            loss: loss.iter().map(shared_wire::loss).collect(),
            matched: found.matched,
            context: Some(AnswerContext {
                flows_held: found.held,
                packets_seen: seen.packets,
                interfaces_attached: self.status.interfaces_in(AttachState::Attached),
                interfaces_attaching: self.status.interfaces_in(AttachState::Attaching),
                socket_plane: self
                    .status
                    .socket_plane()
                    .map_or("", |plane| shared_wire::attach_state(plane.state))
                    .to_owned(),
                of_other_scopes: found.of_other_scopes,
                held_since_ns: clock::to_unix(found.held_since_ns, unix_offset_ns),
                health_message: health,
                unmatched: unmatched::of(request, &self.known.registry),
                kubernetes: self.known.registry.status().state.word().to_owned(),
            }),
        })
    }
}

#[cfg(test)]
mod tests;
