//! What the gRPC service needs from features: answers, and what a subscriber is told.

use std::fmt;

use orb8_common::network::PacketFilter;
use orb8_proto::v1::{
    AgentStatus, Event, GetTotalsRequest, QueryFlowsRequest, QueryFlowsResponse,
    StreamEventsRequest, Totals,
};

use crate::event::Told;

/// A request cannot be answered as it is; the text names the value and what is allowed.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct BadRequest(pub String);

/// Answers queries. Takes milliseconds and a lock, so never called on the async executor.
pub trait Queries: Send + Sync {
    /// The answer.
    ///
    /// # Errors
    /// A value of the request cannot be used.
    fn query(&self, request: &QueryFlowsRequest) -> Result<QueryFlowsResponse, BadRequest>;
}

/// Describes the agent. Reads files, so never called on the async executor.
pub trait StatusPage: Send + Sync {
    /// The status of this moment.
    fn status(&self) -> AgentStatus;
}

/// The kernel side was not read in time; the text says so.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct TotalsLate(pub String);

/// Tells running totals. Waits for the kernel side to be read, so never called on the async executor.
pub trait TotalsPage: Send + Sync {
    /// The totals of this moment; of session 0, and none, if nothing is counted at all.
    ///
    /// # Errors
    /// See [`TotalsLate`].
    fn totals(&self, request: &GetTotalsRequest) -> Result<Totals, TotalsLate>;
}

/// Says what a subscriber is told.
pub trait Feed: Send + Sync {
    /// Prepares a subscription.
    ///
    /// # Errors
    /// A value of the request cannot be used.
    fn select(&self, request: &StreamEventsRequest) -> Result<Selected, BadRequest>;
}

/// A prepared subscription.
pub struct Selected {
    /// Asked on the pipeline's thread.
    pub wants: Box<dyn Wants>,
    /// Used on the subscriber's side.
    pub view: Box<dyn View>,
    /// Set if packets are asked for.
    pub packets: Option<PacketAsk>,
}

impl fmt::Debug for Selected {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.debug_struct("Selected").field("packets", &self.packets).finish_non_exhaustive()
    }
}

/// Which packets are asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct PacketAsk {
    /// What the kernel can check of the filter.
    pub filter: PacketFilter,
    /// Packets a second at most.
    pub rate: u32,
}

/// Decides on the pipeline's thread what goes into a subscriber's queue.
pub trait Wants: Send {
    /// Whether the subscriber asked for this.
    fn wants(&mut self, told: &Told) -> bool;
}

/// Makes messages for one subscriber.
pub trait View: Send {
    /// The message for what was told; none for what is not told in messages.
    fn event(&self, told: &Told) -> Option<Event>;

    /// Appends a part of the updates that the cursor asks for and moves it on. Takes a lock.
    fn updates(&mut self, cursor: &mut Cursor, out: &mut Vec<Event>);
}

/// Where the gathering of updates stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Cursor {
    /// The next row to look at.
    pub row: usize,
    /// Changes after this drain are wanted.
    pub since: u32,
    /// Flows told not after this drain are wanted: later ones stand behind it in the queue.
    pub until: u32,
    /// CLOCK_MONOTONIC nanoseconds of that drain.
    pub time_ns: u64,
    /// All rows were looked at.
    pub done: bool,
}
