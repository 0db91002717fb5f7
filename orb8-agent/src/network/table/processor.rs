//! The stage that keeps the table.

use std::sync::Arc;

use orb8_common::network::PacketEvent;

use super::name::question;
use super::{FlowTable, SharedTable, blank};
use crate::event::{Event, FlowRecord, PacketRecord, Scope, Told, tcp_bit};
use crate::k8s::identity::{Batch, Resolver, Span};
use crate::network::decode::tcp_seen;
use crate::network::keys;
use crate::pipeline::enricher::EnrichedEvent;
use crate::pipeline::processor::{EventProcessor, Output};

/// Rows that are named before changes of the registry have their turn. Events come in smaller batches.
const PER_LOCK: usize = 2048;

/// The stage that keeps the table.
#[derive(Debug)]
pub struct FlowProcessor {
    pub(super) table: SharedTable,
    resolver: Resolver,
}

impl FlowProcessor {
    /// A processor that keeps this table and names its flows.
    #[must_use]
    pub const fn new(table: SharedTable, resolver: Resolver) -> Self {
        Self { table, resolver }
    }
}

impl EventProcessor for FlowProcessor {
    fn spare(&self, events: &mut [EnrichedEvent]) {
        let table = self.table.read();
        for enriched in events {
            if let Event::Count(count) = &enriched.event {
                enriched.wanted = !table.has_all_of(count);
            }
        }
    }

    fn process(&mut self, events: &[EnrichedEvent], output: &mut Output) {
        let table = SharedTable::clone(&self.table);
        let mut table = table.write();
        self.process_all(&mut table, events, output);
        table.tell_held(false, output);
    }

    fn finish(&mut self, time_ns: u64, output: &mut Output) {
        let mut table = self.table.write();
        table.end_all(time_ns, output);
    }
}

impl FlowProcessor {
    fn process_all(
        &mut self,
        table: &mut FlowTable,
        events: &[EnrichedEvent],
        output: &mut Output,
    ) {
        let mut batch = self.resolver.batch();
        table.note_knowledge(&batch);
        for enriched in events {
            match &enriched.event {
                Event::Flow(signal) => table.signal(signal, enriched, &mut batch, output),
                Event::Count(count) => table.count(count, enriched, &mut batch, output),
                Event::Released(id) => table.released(id, output),
                Event::Drained(report) => {
                    let mut left = table.begin_close(report.time_ns);
                    while !left.is_done() {
                        table.sweep(&mut left, PER_LOCK, &mut batch);
                        drop(batch);
                        batch = self.resolver.batch();
                        table.note_knowledge(&batch);
                    }
                    table.close_drain(report.time_ns, output);
                }
                Event::Packet(packet) => {
                    let flow = packet_flow(table, packet, enriched, &mut batch);
                    let record = PacketRecord { packet: *packet, flow };
                    output.told.push(Told::Packet(Box::new(record)));
                }
                Event::Notice(_) => {}
            }
        }
    }
}

/// The flow of a packet. It may have no row: its start comes by another ring, perhaps later, and
/// what sockets count has rows of theirs; then it is named for itself.
fn packet_flow(
    table: &FlowTable,
    packet: &PacketEvent,
    enriched: &EnrichedEvent,
    batch: &mut Batch<'_>,
) -> FlowRecord {
    let id = keys::packet_id(packet);
    if let Some(slot) = table.find(&id) {
        return table.record(slot);
    }
    let seen = tcp_seen(packet.tcp_flags);
    let opens = seen & (tcp_bit::SYN | tcp_bit::SYN_ACK) != 0;
    let flow = FlowRecord {
        interface: enriched.interface.clone(),
        membership: enriched.membership.clone(),
        scope: keys::scope_of(&id.key, packet.scope, enriched.local),
        first_seen_ns: packet.time_ns,
        last_seen_ns: packet.time_ns,
        tcp_seen: seen | if opens { tcp_bit::OPENS } else { 0 },
        ..blank(id)
    };
    let span = Span { since_ns: packet.time_ns, until_ns: packet.time_ns };
    let answer = batch.resolve(&question(&flow, table.began_with(&flow, packet.cgroup_id)), span);
    let scope = if answer.forwarded { Scope::Forwarded } else { flow.scope };
    FlowRecord { ends: Arc::new(answer.ends), translation: answer.translation, scope, ..flow }
}
