//! What events do to the table: signals, counts, released lines, the end of a drain.

use super::name::Sweep;
use super::rows::{NONE, mark};
use super::{FlowTable, SECOND_NS};
use crate::clock;
use crate::event::{
    EndReason, FlowCount, FlowFacts, FlowSignal, Scope, SignalKind, Volume, tcp_bit,
};
use crate::k8s::identity::{Batch, Span};
use crate::network::keys;
use crate::pipeline::enricher::EnrichedEvent;
use crate::pipeline::losses;
use crate::pipeline::processor::Output;

impl FlowTable {
    pub(super) fn signal(
        &mut self,
        signal: &FlowSignal,
        added: &EnrichedEvent,
        batch: &mut Batch<'_>,
        output: &mut Output,
    ) {
        self.now_ns = self.now_ns.max(signal.time_ns);
        let found = self.find(&signal.id);
        let Some(slot) = found.or_else(|| self.insert(signal.id, signal.time_ns, output)) else {
            // The flow's counts will be counted as lost; there is nothing else to lose.
            return;
        };
        let tcp = if signal.id.key.protocol == keys::TCP { tcp_bits(signal.tcp_flags) } else { 0 };
        self.merge(slot, &signal.facts, added);
        let row = &mut self.rows[slot as usize];
        row.flow.tcp_seen |= tcp;
        if signal.kind == SignalKind::Start && !row.is(mark::CONTINUES) {
            row.begin(signal.time_ns, tcp & (tcp_bit::SYN | tcp_bit::SYN_ACK) != 0);
        }
        if row.flow.packets == 0 {
            // Later the count of this packet says when it was, and what came with it.
            row.flow.last_seen_ns = row.flow.last_seen_ns.max(signal.time_ns);
        }
        self.touch(slot);
        if found.is_none() {
            self.name_first(slot, batch);
            self.tell_start(slot, output);
        }
    }

    pub(super) fn count(
        &mut self,
        count: &FlowCount,
        added: &EnrichedEvent,
        batch: &mut Batch<'_>,
        output: &mut Output,
    ) {
        self.note_drain_begins();
        self.now_ns = self.now_ns.max(count.last_seen_ns);
        let volume = Volume { packets: count.packets, bytes: count.bytes };
        let found = self.find_at_line(count.line, &count.id);
        let Some(slot) = found.or_else(|| self.insert(count.id, count.first_seen_ns, output))
        else {
            output.tally.lose(losses::of_packets("flow_table", "no_room", volume));
            return;
        };
        self.merge(slot, &count.facts, added);
        let row = &mut self.rows[slot as usize];
        if !row.is(mark::CONTINUES) {
            row.flow.first_seen_ns = row.flow.first_seen_ns.min(count.first_seen_ns);
        }
        let named = if found.is_none() {
            row.flow.last_seen_ns = count.last_seen_ns;
            self.name_first(slot, batch);
            Some((slot, true))
        } else {
            self.name_counted(slot, count.last_seen_ns, batch, output)
        };
        let Some((slot, is_new)) = named else {
            output.tally.lose(losses::of_packets("flow_table", "no_room", volume));
            return;
        };
        self.note_line(count.line, slot);
        let flow = &self.rows[slot as usize].flow;
        if found.is_some() && (is_new || flow.scope == Scope::Unknown) {
            // What the count tells was merged with what the name has taken back.
            self.merge(slot, &count.facts, added);
            self.account(slot);
        }
        self.add(slot, count, volume);
        self.note_answer(slot);
        self.touch(slot);
        if is_new {
            self.tell_start(slot, output);
        }
    }

    /// Whether a count's row has all that may be added to the count.
    pub(super) fn has_all_of(&self, count: &FlowCount) -> bool {
        // The flow that a new line is for may have ended just before.
        let slot = self.slot_of_line(count.line, &count.id).filter(|_| !count.new_line);
        let Some(slot) = slot else { return false };
        let flow = &self.rows[slot as usize].flow;
        let has_cgroup = match &flow.membership {
            Some(held) => !held.may_tell_more(flow.first_seen_ns, self.now_ns),
            None => keys::cgroup_id(&count.id, count.facts.cgroup_id) == 0,
        };
        has_cgroup
            && flow.scope != Scope::Unknown
            && (flow.interface.is_some() || keys::ifindex(&flow.id).is_none())
    }

    fn add(&mut self, slot: u32, count: &FlowCount, volume: Volume) {
        let current = self.epoch.wrapping_add(1);
        let row = &mut self.rows[slot as usize];
        if count.new_line {
            row.lines_or_end_s += 1;
        }
        row.add(current, volume);
        row.flow.last_seen_ns = row.flow.last_seen_ns.max(count.last_seen_ns);
        self.shares.add(row.share, volume);
    }

    pub(super) fn released(&mut self, id: &crate::event::FlowId, output: &mut Output) {
        let Some(slot) = self.find(id) else { return };
        let row = &mut self.rows[slot as usize];
        // Another CPU, or a packet after the release began, may have opened a second line.
        row.lines_or_end_s = row.lines_or_end_s.saturating_sub(1);
        if row.lines_or_end_s > 0 {
            return;
        }
        let reason = if row.flow.tcp_seen & tcp_bit::RST != 0 {
            EndReason::Rst
        } else if row.flow.tcp_seen & tcp_bit::FIN != 0 {
            EndReason::Fin
        } else {
            EndReason::Idle
        };
        self.end(slot, reason, output);
    }

    /// All counts of a drain came; gives the rows to look at before it is closed.
    pub(super) fn begin_close(&mut self, time_ns: u64) -> Sweep {
        self.note_drain_begins();
        self.drain_begun = false;
        self.now_ns = self.now_ns.max(time_ns);
        self.begin_sweep()
    }

    pub(super) fn close_drain(&mut self, time_ns: u64, output: &mut Output) {
        self.tell_held(true, output);
        self.note_drained(time_ns);
        self.epoch = self.epoch.wrapping_add(1);
        self.interval_ns = time_ns.saturating_sub(self.drained_ns).max(1);
        self.drained_ns = time_ns;
        self.watched_ns = self.watched_ns.min(time_ns);
        let idle_since = self.now_ns.saturating_sub(clock::nanos(self.limits.idle));
        while let Some(row) = self.rows.get(self.active.head as usize)
            && row.flow.last_seen_ns < idle_since
        {
            self.end(self.active.head, EndReason::Idle, output);
        }
        let kept_s = (self.now_ns / SECOND_NS).saturating_sub(self.limits.history.as_secs());
        while let Some(row) = self.rows.get(self.ended.head as usize)
            && u64::from(row.lines_or_end_s) < kept_s
        {
            self.forget(self.ended.head);
        }
    }

    /// Notes the time before which every line was read that this drain's counts are differences to:
    /// what it counts passed after the drain before it had begun.
    fn note_drain_begins(&mut self) {
        if !self.drain_begun {
            self.drain_begun = true;
            self.counted_after_ns = self.begun_ns;
            self.begun_ns = self.now_ns;
        }
    }

    /// Ends all active flows because the agent stops.
    pub(super) fn end_all(&mut self, time_ns: u64, output: &mut Output) {
        self.now_ns = self.now_ns.max(time_ns);
        while self.active.head != NONE {
            self.end(self.active.head, EndReason::Shutdown, output);
        }
    }

    fn merge(&mut self, slot: u32, facts: &FlowFacts, added: &EnrichedEvent) {
        let row = &mut self.rows[slot as usize];
        let flow = &mut row.flow;
        if flow.cookie == 0 {
            flow.cookie = facts.cookie;
        }
        if flow.membership.is_none() && added.membership.is_some() {
            flow.membership.clone_from(&added.membership);
            row.generation = 0;
        }
        if flow.interface.is_none() {
            flow.interface.clone_from(&added.interface);
        }
        // What nobody was asked about is not told here. The next drain asks.
        if flow.scope == Scope::Unknown && added.wanted {
            let scope = keys::scope_of(&flow.id.key, facts.scope, added.local);
            if scope != flow.scope {
                flow.scope = scope;
                row.generation = 0;
            }
        }
        flow.tcp_seen |= facts.tcp_seen;
    }

    /// Notes that a TCP connection was answered: SYN and SYN+ACK were seen in the two directions,
    /// and the one that began has gone on.
    fn note_answer(&mut self, slot: u32) {
        let flow = &self.rows[slot as usize].flow;
        let opened = flow.tcp_seen & (tcp_bit::SYN | tcp_bit::SYN_ACK);
        if flow.established || opened == 0 || flow.id.key.protocol != keys::TCP {
            return;
        }
        let Some(other) = self.find(&keys::reverse(&flow.id)) else { return };
        let answer = &self.rows[other as usize].flow;
        let (opener, answerer) =
            if opened & tcp_bit::SYN_ACK == 0 { (flow, answer) } else { (answer, flow) };
        if answerer.tcp_seen & tcp_bit::SYN_ACK != 0 && opener.packets > 1 {
            self.rows[slot as usize].flow.established = true;
            self.rows[other as usize].flow.established = true;
        }
    }

    /// All packets of a flow were counted between these two times.
    pub(super) fn span(&self, slot: u32) -> Span {
        let flow = &self.rows[slot as usize].flow;
        Span { since_ns: flow.first_seen_ns, until_ns: flow.last_seen_ns.max(flow.first_seen_ns) }
    }
}

/// [`tcp_bit`]s of the TCP flags byte of one packet (RFC 9293, section 3.1).
fn tcp_bits(flags: u8) -> u8 {
    const FIN: u8 = 1;
    const SYN: u8 = 2;
    const RST: u8 = 4;
    const ACK: u8 = 16;
    let opening = match (flags & SYN != 0, flags & ACK != 0) {
        (true, true) => tcp_bit::SYN_ACK,
        (true, false) => tcp_bit::SYN,
        (false, _) => 0,
    };
    let fin = if flags & FIN == 0 { 0 } else { tcp_bit::FIN };
    let rst = if flags & RST == 0 { 0 } else { tcp_bit::RST };
    opening | fin | rst
}
