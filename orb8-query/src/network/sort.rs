//! The order of flows. Total and stable: flows that are equal in the field asked for are ordered by
//! everything else they carry, so that a merge never depends on who answered first.

use std::cmp::Ordering;

use orb8_proto::v1::sort::Field;
use orb8_proto::v1::{NetworkFlow, Sort};

use super::canonical;

/// Sorts as asked (most, latest or longest first unless ascending) and keeps the first `limit`;
/// 0 keeps all.
pub fn sort_and_limit(flows: &mut Vec<NetworkFlow>, sort: Sort, limit: u32) {
    flows.sort_by(|a, b| compare(a, b, sort));
    if limit > 0 {
        flows.truncate(usize::try_from(limit).unwrap_or(usize::MAX));
    }
}

/// Compares two flows in the order that `sort` asks for. A field that is not known to this version
/// counts as bytes. Equal only if the flows are equal in everything.
#[must_use]
pub fn compare(a: &NetworkFlow, b: &NetworkFlow, sort: Sort) -> Ordering {
    let ascending = match sort.field() {
        Field::Bytes => a.bytes.cmp(&b.bytes),
        Field::Packets => a.packets.cmp(&b.packets),
        Field::BytesPerSecond => a.bytes_per_second.total_cmp(&b.bytes_per_second),
        Field::PacketsPerSecond => a.packets_per_second.total_cmp(&b.packets_per_second),
        Field::FirstSeen => a.first_seen_ns.cmp(&b.first_seen_ns),
        Field::LastSeen => a.last_seen_ns.cmp(&b.last_seen_ns),
        Field::Duration => duration_ns(a).cmp(&duration_ns(b)),
    };
    let wanted = if sort.ascending { ascending } else { ascending.reverse() };
    wanted.then_with(|| identity(a).cmp(&identity(b))).then_with(|| {
        // Two flows of one identity are two states of one flow; their encodings tell them apart.
        canonical::flow(a).cmp(&canonical::flow(b))
    })
}

/// Nanoseconds from the first to the last packet.
#[must_use]
pub fn duration_ns(flow: &NetworkFlow) -> i64 {
    flow.last_seen_ns.saturating_sub(flow.first_seen_ns)
}

type Identity<'a> = (&'a str, &'a str, u32, &'a str, u32, &'a str, &'a str, &'a str, u64);

fn identity(flow: &NetworkFlow) -> Identity<'_> {
    (
        &flow.node_name,
        &flow.src_ip,
        flow.src_port,
        &flow.dst_ip,
        flow.dst_port,
        &flow.protocol,
        &flow.direction,
        &flow.interface,
        flow.flow_id,
    )
}
