//! Who the ends of the rows are: asked when something is counted and knowledge has moved, asked
//! again for a while for what is young, and never guessed. Where an end changed, the row is split.

use std::sync::Arc;

use orb8_common::network::flag;

use super::ends::Known;
use super::rows::{Row, mark};
use super::shares::share_of;
use super::{FlowTable, SECOND_NS};
use crate::conntrack::{Match, Translation};
use crate::event::{
    Asked, End, EndReason, Ends, FlowId, FlowRecord, FlowState, Reason, Scope, Told, Volume,
    tcp_bit,
};
use crate::k8s::identity::{Answer, Batch, Began, Question, Span};
use crate::k8s::services::Verdict;
use crate::network::keys;
use crate::pipeline::processor::Output;

/// A flow is young for this long: what is not known of it may still be told.
const YOUNG_NS: u64 = 10 * SECOND_NS;
/// Young rows that are asked about at each drain.
pub(super) const MAX_YOUNG: usize = 8192;
/// Starts that wait for a name.
pub(super) const MAX_HELD: usize = 1024;
/// A start waits no longer, though the next drain may be further away. It is looked at whenever anything
/// comes of any flow.
const MOST_HELD_NS: u64 = SECOND_NS;
/// Rows, whatever their age, that are looked at in each drain.
const ROWS_PER_DRAIN: usize = 4096;

/// A row as long as the same flow is in it.
#[derive(Clone, Copy, Debug)]
pub(super) struct Place {
    slot: u32,
    flow_id: u64,
}

/// Rows that are still to be looked at before a drain is closed.
#[derive(Debug)]
pub(super) struct Sweep {
    young: usize,
    rows: usize,
}

impl Sweep {
    pub(super) const fn is_done(&self) -> bool {
        self.young == 0 && self.rows == 0
    }
}

impl FlowTable {
    /// Names a row in which nothing is counted yet.
    pub(super) fn name_first(&mut self, slot: u32, batch: &mut Batch<'_>) {
        let span = self.span(slot);
        let answer = self.ask(slot, span, batch);
        self.adopt(slot, answer, span, batch);
        self.keep_young(slot);
    }

    fn keep_young(&mut self, slot: u32) {
        if self.young.len() < MAX_YOUNG {
            let flow_id = self.rows[slot as usize].flow.flow_id;
            self.young.push_back(Place { slot, flow_id });
        }
    }

    /// Names a row on which something is to be counted that was last seen at `until_ns`; gives the
    /// row to count on, and whether it is a new one. None if there is no room for a new one.
    pub(super) fn name_counted(
        &mut self,
        slot: u32,
        until_ns: u64,
        batch: &mut Batch<'_>,
        output: &mut Output,
    ) -> Option<(u32, bool)> {
        if self.holds_on(slot, until_ns, batch) {
            return Some((slot, false));
        }
        let row = &self.rows[slot as usize];
        let asked = question(&row.flow, Began::Unknown);
        let in_doubt = row.is(mark::DOUBTFUL);
        // What the row counted so far stays with it, this may be another connection's.
        let had_one = in_doubt || asked.translation.is_some();
        let doubtful = had_one && batch.is_doubtful_at(&asked, until_ns);
        let was = self.span(slot);
        let whole = Span { since_ns: was.since_ns, until_ns: was.until_ns.max(until_ns) };
        let answer = self.ask(slot, whole, batch);
        let flow = &self.rows[slot as usize].flow;
        let is_certain = !in_doubt && !doubtful && !answer.doubtful;
        if flow.packets == 0 || (is_certain && Known::of(flow).is_refined_by(Known::told(&answer)))
        {
            self.adopt(slot, answer, whole, batch);
            return Some((slot, false));
        }
        let before = self.ask_again(slot, was, batch);
        let ends = Ends { asked: self.asked(slot, &before), ..before.ends };
        let before = Answer { ends, ..before };
        let counted_ns = if doubtful { until_ns } else { self.counted_after_ns };
        let since_ns = counted_ns.max(was.since_ns).min(whole.until_ns);
        let since = Span { since_ns, ..whole };
        let now = self.ask(slot, since, batch);
        let was_told_late =
            !answer.doubtful || before.translation.is_some() == now.translation.is_some();
        let doubtful = before.doubtful;
        let is_same = Known::told(&before).is_same(Known::told(&now));
        if doubtful == now.doubtful && was_told_late && is_same {
            let Answer { ends, translation, .. } = before;
            self.adopt(slot, Answer { ends, translation, doubtful, ..answer }, whole, batch);
            return Some((slot, false));
        }
        self.split(slot, before, now, since, batch, output).map(|slot| (slot, true))
    }

    /// Whether the ends of a row are beyond doubt for what is counted on it now.
    fn holds_on(&self, slot: u32, until_ns: u64, batch: &Batch<'_>) -> bool {
        let row = &self.rows[slot as usize];
        // What has no translation needs no question.
        row.is(mark::LASTING)
            && !row.is(mark::DOUBTFUL)
            && (row.flow.translation.is_none()
                || batch.holds_at(&question(&row.flow, Began::Unknown), until_ns))
            && self.is_current(slot, batch)
    }

    /// Whether nothing is known that was not known when the row was named.
    fn is_current(&self, slot: u32, batch: &Batch<'_>) -> bool {
        let row = &self.rows[slot as usize];
        row.generation == batch.generation() && !self.may_be_translated(slot, batch)
    }

    /// Whether the kernel has told of a translation that the row lacks. It is told soon or never.
    fn may_be_translated(&self, slot: u32, batch: &Batch<'_>) -> bool {
        let flow = &self.rows[slot as usize].flow;
        flow.translation.is_none()
            && batch.has_translations()
            && self.is_young(flow)
            && !matches!(
                batch.translation(&question(flow, Began::Unknown), self.span(slot)),
                Match::None
            )
    }

    fn ask(&self, slot: u32, span: Span, batch: &mut Batch<'_>) -> Answer {
        let flow = &self.rows[slot as usize].flow;
        batch.resolve(&question(flow, self.began(flow)), span)
    }

    /// Asks for a time that a row has counted. What is forgotten by now stays as it was known, and a
    /// doubt stays one: of those who made it, the last to be forgotten would get the name.
    fn ask_again(&self, slot: u32, span: Span, batch: &mut Batch<'_>) -> Answer {
        let row = &self.rows[slot as usize];
        let asked = question(&row.flow, self.began(&row.flow));
        let answer = if row.is(mark::DOUBTFUL) {
            batch.resolve_in_doubt(&asked, span)
        } else {
            batch.resolve(&asked, span)
        };
        answer.or_kept(&row.flow)
    }

    /// Takes an answer for a time over; true if anything that is shown changed.
    fn adopt(&mut self, slot: u32, answer: Answer, span: Span, batch: &Batch<'_>) -> bool {
        let lasting = span.until_ns >= self.moved_ns;
        let row = &mut self.rows[slot as usize];
        row.generation = if answer.pending { 0 } else { batch.generation() };
        row.set(mark::LASTING, lasting);
        row.set(mark::DOUBTFUL, answer.doubtful);
        let share = row.share;
        let asked = self.asked(slot, &answer);
        let answer = Answer { ends: Ends { asked, ..answer.ends }, ..answer };
        let flow = &self.rows[slot as usize].flow;
        let changed = !Known::told(&answer).looks_like(Known::of(flow));
        let is_taken_back = takes_scope_back(flow, &answer, batch);
        self.set_known(slot, answer.ends, answer.translation);
        let row = &mut self.rows[slot as usize];
        if answer.forwarded {
            row.flow.scope = Scope::Forwarded;
        } else if is_taken_back {
            row.take_scope_back(row.flow.state == FlowState::Active);
        }
        self.account(slot);
        changed || self.rows[slot as usize].share != share
    }

    /// Notes what is known of a row.
    fn set_known(&mut self, slot: u32, ends: Ends, translation: Option<Arc<Translation>>) {
        let flow = &mut self.rows[slot as usize].flow;
        flow.translation = translation;
        self.interned.put(&mut flow.ends, ends);
    }

    /// The Service of a row, given what is answered for it now. What is told of Services is that of
    /// now: it says who is ready for young rows alone, and whom an old one asked only where the
    /// address says so too.
    fn asked(&self, slot: u32, now: &Answer) -> Option<Asked> {
        let flow = &self.rows[slot as usize].flow;
        let is_young = self.is_young(flow);
        let Some(known) = &flow.ends.asked else {
            let is_told =
                is_young || now.translation.is_some() || matches!(now.ends.peer, End::Service(..));
            return now.ends.asked.clone().filter(|_| is_told);
        };
        let Some(asked) = &now.ends.asked else { return Some(known.clone()) };
        let is_same = known.service.namespace == asked.service.namespace
            && known.service.name == asked.service.name
            && known.port == asked.port;
        let proven = now.translation.is_some() && is_same;
        let first = is_same && is_young && known.verdict == Verdict::Unknown;
        Some(if proven || first { asked } else { known }.clone())
    }

    fn is_young(&self, flow: &FlowRecord) -> bool {
        self.now_ns.saturating_sub(flow.first_seen_ns) < YOUNG_NS
    }

    /// Moves what was counted on a row to the share that it belongs to now.
    pub(super) fn account(&mut self, slot: u32) {
        let row = &mut self.rows[slot as usize];
        let share = share_of(&row.flow);
        if share != row.share {
            let volume = Volume { packets: row.flow.packets, bytes: row.flow.bytes };
            self.shares.shift(row.share, share, volume);
            row.share = share;
        }
    }

    /// Ends a row whose other end is somebody else by now, and goes on in a new one.
    fn split(
        &mut self,
        slot: u32,
        before: Answer,
        now: Answer,
        since: Span,
        batch: &Batch<'_>,
        output: &mut Output,
    ) -> Option<u32> {
        let row = &mut self.rows[slot as usize];
        let was_forwarded = row.flow.scope == Scope::Forwarded;
        if takes_scope_back(&row.flow, &before, batch) {
            row.take_scope_back(false);
        }
        row.set(mark::DOUBTFUL, before.doubtful);
        let lines = row.lines_or_end_s;
        self.set_known(slot, before.ends, before.translation);
        self.account(slot);
        let old = self.rows[slot as usize].flow.clone();
        self.end(slot, EndReason::PeerChanged, output);
        let slot = self.insert(old.id, since.since_ns, output)?;
        // A scope that a translation told ends with it; what is counted next tells it anew.
        let was_told = was_forwarded && !now.forwarded;
        let row = &mut self.rows[slot as usize];
        row.lines_or_end_s = lines;
        row.set(mark::CONTINUES, true);
        row.flow = FlowRecord {
            flow_id: row.flow.flow_id,
            first_seen_ns: since.since_ns,
            last_seen_ns: since.since_ns,
            packets: 0,
            bytes: 0,
            byte_rate: 0.0,
            packet_rate: 0.0,
            changed_epoch: 0,
            ends: Ends::nobody(),
            translation: None,
            tcp_seen: old.tcp_seen & !tcp_bit::OPENS,
            scope: if was_told { Scope::Unknown } else { old.scope },
            ..old
        };
        self.keep_young(slot);
        self.adopt(slot, now, since, batch);
        Some(slot)
    }

    /// What there is to look at after a drain: young rows, and some of all others.
    pub(super) fn begin_sweep(&self) -> Sweep {
        Sweep { young: self.young.len(), rows: self.rows.len().min(ROWS_PER_DRAIN) }
    }

    /// Names so many rows anew on which nothing was counted since.
    pub(super) fn sweep(&mut self, left: &mut Sweep, most: usize, batch: &mut Batch<'_>) {
        for _ in 0..most {
            if left.young > 0 {
                left.young -= 1;
                self.sweep_young(batch);
            } else if left.rows > 0 {
                left.rows -= 1;
                self.sweep_next(batch);
            } else {
                return;
            }
        }
    }

    fn sweep_young(&mut self, batch: &mut Batch<'_>) {
        let Some(place) = self.young.pop_front() else { return };
        let flow = &self.rows[place.slot as usize].flow;
        if flow.flow_id == place.flow_id && self.is_young(flow) {
            self.rename(place.slot, batch);
            self.young.push_back(place);
        }
    }

    fn sweep_next(&mut self, batch: &mut Batch<'_>) {
        self.swept = if self.swept + 1 < self.rows.len() { self.swept + 1 } else { 0 };
        let Ok(slot) = u32::try_from(self.swept) else { return };
        if self.rows[self.swept].flow.flow_id != 0 {
            self.rename(slot, batch);
        }
    }

    /// Names a row for the time that it has counted so far.
    fn rename(&mut self, slot: u32, batch: &mut Batch<'_>) {
        let span = self.span(slot);
        let flow = &self.rows[slot as usize].flow;
        let held = flow.translation.is_none()
            || batch.holds_at(&question(flow, Began::Unknown), span.until_ns);
        if held && self.is_current(slot, batch) {
            return;
        }
        let answer = self.ask_again(slot, span, batch);
        let current = self.epoch.wrapping_add(1);
        let before = self.rows[slot as usize].identified();
        if self.adopt(slot, answer, span, batch) {
            let row = &mut self.rows[slot as usize];
            if row.flow.state != FlowState::Active {
                // Its end was told. Only who was not known then is news.
                if row.identified() <= before {
                    return;
                }
                row.set(mark::NAMED_LATE, true);
            }
            row.change_in(current);
        }
    }

    /// Notes whether knowledge has moved. When it did is not told, only that it was before now; and
    /// an answer for an earlier time does not hold for later ones.
    pub(super) fn note_knowledge(&mut self, batch: &Batch<'_>) {
        if self.generation != batch.generation() {
            self.generation = batch.generation();
            self.drains_since = 0;
            self.moved_ns = u64::MAX;
        }
    }

    /// Notes the end of a drain. The second since knowledge was seen to have moved ended after that.
    pub(super) fn note_drained(&mut self, time_ns: u64) {
        self.drains_since = self.drains_since.saturating_add(1);
        if self.drains_since == 2 {
            self.moved_ns = time_ns;
        }
    }

    /// Tells the start of a row, unless its owner may get a name in a moment.
    pub(super) fn tell_start(&mut self, slot: u32, output: &mut Output) {
        let row = &mut self.rows[slot as usize];
        if awaits_name(row) && self.held.len() < MAX_HELD {
            row.set(mark::HELD, true);
            let flow_id = row.flow.flow_id;
            self.held.push_back(Place { slot, flow_id });
            return;
        }
        self.tell_now(slot, output);
    }

    /// Tells held starts that have a name by now or have waited long enough, or all.
    pub(super) fn tell_held(&mut self, all: bool, output: &mut Output) {
        let waited = self.now_ns.saturating_sub(MOST_HELD_NS);
        for _ in 0..self.held.len() {
            let Some(place) = self.held.pop_front() else { return };
            let row = &self.rows[place.slot as usize];
            if row.flow.flow_id != place.flow_id || !row.is(mark::HELD) {
                continue;
            }
            if all || row.flow.first_seen_ns < waited || !awaits_name(row) {
                self.tell_now(place.slot, output);
            } else {
                self.held.push_back(place);
            }
        }
    }

    /// Tells the start of a row.
    pub(super) fn tell_now(&mut self, slot: u32, output: &mut Output) {
        let epoch = self.epoch.wrapping_add(1);
        let row = &mut self.rows[slot as usize];
        row.set(mark::HELD, false);
        row.start_epoch = epoch;
        output.told.push(Told::FlowStart(self.record(slot)));
    }

    /// Who sent first, as far as one packet without a row tells: its flags, or the row that the
    /// sockets of its cgroup (0: not known) have for it.
    pub(super) fn began_with(&self, flow: &FlowRecord, cgroup: u64) -> Began {
        let mut key = flow.id.key;
        key.flags = key.flags & !flag::SUPPLEMENT | flag::SOCKET_PLANE;
        let counted = self.find(&FlowId { key, owner: cgroup }).filter(|_| cgroup != 0);
        match counted {
            Some(slot) => self.began(&self.rows[slot as usize].flow),
            // That no row is there says nothing of who was first.
            None if keys::opening(&key) == keys::Opening::ByTime => Began::Unknown,
            None => self.began(flow),
        }
    }

    /// Who sent first, as far as the packets themselves tell.
    fn began(&self, flow: &FlowRecord) -> Began {
        let egress = keys::is_egress(&flow.id.key);
        let by_sender = |sender| if sender == egress { Began::Owner } else { Began::Peer };
        match keys::opening(&flow.id.key) {
            keys::Opening::ByFlags if flow.tcp_seen & tcp_bit::SYN_ACK != 0 => by_sender(false),
            keys::Opening::ByFlags if flow.tcp_seen & tcp_bit::SYN != 0 => by_sender(true),
            keys::Opening::ByFlags | keys::Opening::Untold => Began::Unknown,
            keys::Opening::Asks => by_sender(true),
            keys::Opening::Answers => by_sender(false),
            keys::Opening::ByTime if flow.first_seen_ns < self.watched_ns => Began::Unknown,
            keys::Opening::ByTime => {
                let other = self.find(&keys::reverse(&flow.id));
                let other = other.map(|slot| self.rows[slot as usize].flow.first_seen_ns);
                by_sender(other.is_none_or(|other_ns| flow.first_seen_ns <= other_ns))
            }
        }
    }
}

/// Whether a row's owner is a pod that has no name yet, or its cgroup is being looked for, or it has
/// the host's address where the kernel may be about to tell that a pod is behind it.
fn awaits_name(row: &Row) -> bool {
    let owner = &row.flow.ends.owner;
    let is_asked = |reason| reason == Reason::CgroupUnknown && row.generation == 0;
    match owner {
        End::Pod(..) => owner.how().reason == Reason::PodUnknown,
        End::Unknown(how) => is_asked(how.reason),
        // What has no socket here may be a pod's that is translated.
        End::Node(..) => {
            row.flow.scope == Scope::Unclaimed
                && row.flow.translation.is_none()
                && keys::ifindex(&row.flow.id).is_some()
        }
        End::External(_) | End::Process(_) | End::Service(..) => false,
    }
}

/// Whether a flow has lost the translation that told its scope. What bears no address of this host
/// is forwarded without one.
fn takes_scope_back(known: &FlowRecord, now: &Answer, batch: &Batch<'_>) -> bool {
    known.translation.is_some()
        && now.translation.is_none()
        && !batch.is_elsewhere(keys::owner(&known.id.key))
}

/// What there is to ask of a flow.
pub(super) fn question(flow: &FlowRecord, began: Began) -> Question<'_> {
    let key = &flow.id.key;
    let egress = keys::is_egress(key);
    let turn = |(src, dst)| if egress { (src, dst) } else { (dst, src) };
    let opens = flow.tcp_seen & tcp_bit::OPENS != 0;
    Question {
        ifindex: keys::ifindex(&flow.id),
        egress,
        protocol: key.protocol,
        owner: keys::owner(key),
        peer: keys::peer(key),
        ports: keys::ports(key).map(turn),
        membership: flow.membership.as_ref(),
        scope: flow.scope,
        began,
        translation: flow.translation.as_ref(),
        opened_ns: opens.then_some(flow.first_seen_ns),
    }
}
