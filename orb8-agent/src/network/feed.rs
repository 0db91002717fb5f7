//! What subscribers of `StreamEvents` get of network flows: which, and as which messages.

use std::sync::Arc;

use orb8_filter::Filter;
use orb8_proto::v1::event::Payload;
use orb8_proto::v1::flow_event::Type;
use orb8_proto::v1::{self, StreamEventsRequest};

use crate::clock::Clock;
use crate::event::Told;
use crate::export::feed::{BadRequest, Cursor, Feed, PacketAsk, Selected, View, Wants};
use crate::export::wire as shared_wire;
use crate::k8s::identity::Knowledge;
use crate::k8s::model::Node;
use crate::network::table::{SharedTable, read};
use crate::network::view::{Seen, packet_filter};
use crate::network::wire::Shown;

/// Packets a second if the request does not say.
const DEFAULT_PACKET_RATE: u32 = 1000;
/// The most packets a second that a subscriber may ask for.
const MAX_PACKET_RATE: u32 = 100_000;
/// Rows looked at under one lock while updates are gathered.
const ROWS_PER_LOOK: usize = 8192;
/// Updates gathered before they are sent.
const UPDATES_PER_LOOK: usize = 256;

/// The feed of network flows.
#[derive(Debug)]
pub struct NetworkFeed {
    /// Where updates are read.
    pub table: SharedTable,
    /// For the times shown.
    pub clock: Arc<dyn Clock>,
    /// Who is who.
    pub known: Knowledge,
}

impl Feed for NetworkFeed {
    fn select(&self, request: &StreamEventsRequest) -> Result<Selected, BadRequest> {
        let bad = |message: String| BadRequest(message);
        let filter =
            Filter::compile(request.filter.as_ref(), &request.namespaces, &request.pod_names)
                .map_err(|error| bad(error.to_string()))?;
        let rate = match request.packet_rate_limit {
            0 => DEFAULT_PACKET_RATE,
            rate if rate > MAX_PACKET_RATE => {
                return Err(bad(format!(
                    "packet_rate_limit {rate} is above the maximum of {MAX_PACKET_RATE}, ask for fewer packets a second"
                )));
            }
            rate => rate,
        };
        let packets =
            request.packets.then(|| PacketAsk { filter: packet_filter(&filter.required()), rate });
        let node = self.known.registry.own_node();
        let view = Updates {
            filter: filter.clone(),
            table: Arc::clone(&self.table),
            clock: Arc::clone(&self.clock),
            node: Arc::clone(&node),
            known: self.known.clone(),
            labels: request.labels,
        };
        let wants = FlowWants { filter, node };
        Ok(Selected { wants: Box::new(wants), view: Box::new(view), packets })
    }
}

struct FlowWants {
    filter: Filter,
    node: Arc<Node>,
}

impl Wants for FlowWants {
    fn wants(&mut self, told: &Told) -> bool {
        let node = &self.node;
        match told {
            Told::FlowStart(flow) | Told::FlowEnd(flow) => {
                self.filter.matches(&Seen { flow, node })
            }
            Told::Packet(packet) => self.filter.matches(&Seen { flow: &packet.flow, node }),
            Told::Notice(_) | Told::Loss(_) | Told::Drained(_) => true,
        }
    }
}

struct Updates {
    filter: Filter,
    table: SharedTable,
    clock: Arc<dyn Clock>,
    node: Arc<Node>,
    known: Knowledge,
    labels: bool,
}

impl Updates {
    fn shown(&self) -> Shown {
        Shown {
            node: Arc::clone(&self.node),
            known: self.known.clone(),
            labels: self.labels,
            unix_offset_ns: self.clock.unix_offset_ns(),
        }
    }
}

impl View for Updates {
    fn event(&self, told: &Told) -> Option<v1::Event> {
        let shown = self.shown();
        let now_ns = self.clock.monotonic_ns();
        Some(match told {
            Told::FlowStart(flow) => shown.flow_event(Type::Start, flow, flow.first_seen_ns),
            Told::FlowEnd(flow) => shown.flow_event(Type::End, flow, now_ns),
            Told::Packet(packet) => shown.packet(packet),
            Told::Notice(notice) => {
                shown.event(now_ns, Payload::Notice(shared_wire::notice(notice)))
            }
            Told::Loss(loss) => shown.event(now_ns, Payload::Loss(shared_wire::loss(loss))),
            Told::Drained(_) => return None,
        })
    }

    fn updates(&mut self, cursor: &mut Cursor, out: &mut Vec<v1::Event>) {
        let mut changed = Vec::new();
        {
            let table = read(&self.table);
            let snapshot = table.snapshot();
            let end = table.used_rows().min(cursor.row + ROWS_PER_LOOK);
            while cursor.row < end && changed.len() < UPDATES_PER_LOOK {
                let flow = table.changed(cursor.row, cursor.since, cursor.until);
                if flow.is_some_and(|flow| self.filter.matches(&Seen { flow, node: &self.node })) {
                    changed.extend(snapshot.record(&table, cursor.row));
                }
                cursor.row += 1;
            }
            cursor.done = cursor.row >= table.used_rows();
        }
        let shown = self.shown();
        out.extend(changed.iter().map(|flow| shown.flow_event(Type::Update, flow, cursor.time_ns)));
    }
}
