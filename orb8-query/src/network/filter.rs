//! Which saved flows a request means: its filter, as `orb8-filter` evaluates it, and its bounds of
//! time. What filters mean is defined there and nowhere else.

use orb8_proto::v1::{NetworkFlow, QueryFlowsRequest};

pub use orb8_filter::{
    ATTRIBUTIONS, DIRECTIONS, Filter, FilterError, KINDS, PLANES, SCOPES, STATES, VERDICTS,
    has_ports,
};

/// A whole request that selects flows: owners and time bounds besides the filter.
#[derive(Clone, Debug)]
pub struct Selector {
    filter: Filter,
    start_time_ns: i64,
    end_time_ns: i64,
}

impl Selector {
    /// Checks and prepares what `request` selects; its sort and limit are not looked at.
    ///
    /// # Errors
    /// As [`Filter::compile`].
    pub fn new(request: &QueryFlowsRequest) -> Result<Self, FilterError> {
        Ok(Self {
            filter: Filter::compile(
                request.filter.as_ref(),
                &request.namespaces,
                &request.pod_names,
            )?,
            start_time_ns: request.start_time_ns,
            end_time_ns: request.end_time_ns,
        })
    }

    /// True if the request means this flow.
    pub fn matches(&mut self, flow: &NetworkFlow) -> bool {
        (self.start_time_ns == 0 || flow.last_seen_ns >= self.start_time_ns)
            && (self.end_time_ns == 0 || flow.first_seen_ns <= self.end_time_ns)
            && self.filter.matches(flow)
    }
}
