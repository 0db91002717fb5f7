//! The events of several agents as one stream, in the order in which they arrive.
//!
//! Holds no queue of its own: a reader that is slow slows the connection, and the agent then counts
//! and tells what this subscriber lost. The end of one agent's stream is an item, never silent.

use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use futures_util::stream::{self, BoxStream, SelectAll, Stream, StreamExt};
use orb8_proto::v1::Event;
use orb8_util::net::HostPort;
use tonic::Streaming;

use crate::error::AgentError;

/// What happens on a stream.
#[derive(Clone, Debug, PartialEq)]
pub enum StreamItem {
    /// An agent tells something.
    Event(Box<Event>),
    /// An agent's stream is over; the others go on.
    Ended(AgentError),
}

/// Events of all agents that could be subscribed to. Ends when every agent's stream has ended.
#[derive(Default)]
pub struct EventStream {
    agents: SelectAll<BoxStream<'static, StreamItem>>,
}

impl EventStream {
    /// True if no agent is subscribed to (any more).
    #[must_use]
    pub fn is_empty(&self) -> bool {
        self.agents.is_empty()
    }

    pub(crate) fn push(&mut self, address: HostPort, timeout: Duration, events: Streaming<Event>) {
        let items = stream::unfold(Some((address, events)), move |open| async move {
            let (address, mut events) = open?;
            Some(match events.next().await {
                Some(Ok(event)) => (StreamItem::Event(Box::new(event)), Some((address, events))),
                Some(Err(status)) => {
                    (StreamItem::Ended(AgentError::stream_status(&address, timeout, &status)), None)
                }
                None => (StreamItem::Ended(AgentError::ended(&address)), None),
            })
        });
        self.agents.push(items.boxed());
    }
}

impl std::fmt::Debug for EventStream {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("EventStream").field("agents", &self.agents.len()).finish()
    }
}

impl Stream for EventStream {
    type Item = StreamItem;

    fn poll_next(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Option<StreamItem>> {
        self.agents.poll_next_unpin(cx)
    }
}
