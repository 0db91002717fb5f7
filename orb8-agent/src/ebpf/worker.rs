//! The attach thread: looks which interfaces there are, attaches, forgets, keeps our place.
//!
//! Invariant: an interface is in `attached` if and only if our programs are on both its hooks.

use std::collections::{BTreeMap, HashMap};
use std::io;
use std::net::IpAddr;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::attach::{AttachOptions, Request, Shared};
use super::attached::{Attached, Failed};
use super::chain::{self, Chain, Entry};
use super::clsact::{self, Instance};
use super::hook::{self, Hook, Place, Purpose, Side};
use super::load::Programs;
use super::netlink::{Carried, Device, Netlink};
use super::select;
use crate::datapath::{AttachRoute, ChosenBy};
use crate::event::{Notice, Severity};

/// Devices whose counters are remembered.
const MAX_KNOWN: usize = 16_384;
/// Changes are let gather for so long before interfaces are listed anew.
const GATHER: Duration = Duration::from_millis(20);

pub(super) struct Worker {
    netlink: Netlink,
    programs: Programs,
    options: AttachOptions,
    instance: Instance,
    shared: Shared,
    attached: BTreeMap<u32, Attached>,
    failed: BTreeMap<u32, Failed>,
    /// What each device had carried when it was last seen unattached; `None` before the first look.
    known: Option<HashMap<u32, Carried>>,
    watching_packets: bool,
}

impl Worker {
    pub(super) fn new(
        netlink: Netlink,
        programs: Programs,
        options: AttachOptions,
        instance: Instance,
        shared: Shared,
    ) -> Self {
        Self {
            netlink,
            programs,
            options,
            instance,
            shared,
            attached: BTreeMap::new(),
            failed: BTreeMap::new(),
            known: None,
            watching_packets: false,
        }
    }

    pub(super) fn run(&mut self, queue: &Receiver<Request>) {
        if self.options.route == AttachRoute::Clsact {
            self.remove_dead();
        }
        let mut next_look = Instant::now() + self.options.chain.look_every;
        while !self.is_stopping() {
            if self.shared.changed.swap(false, Ordering::AcqRel) {
                self.refresh();
            }
            // However often interfaces change, the chains are looked at.
            if Instant::now() >= next_look {
                self.look_around();
                next_look = Instant::now() + self.options.chain.look_every;
            }
            let wait = next_look.saturating_duration_since(Instant::now());
            match queue.recv_timeout(wait) {
                // Changes come in swarms.
                Ok(Request::Wake) => std::thread::sleep(GATHER),
                Ok(Request::Packets(on, waiting)) => {
                    self.watch_packets(on);
                    answer(waiting);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
        }
        self.detach_all();
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// What is done every few seconds: our place, our presence, and what could not be attached.
    fn look_around(&mut self) {
        self.look_at_chains();
        if !self.failed.is_empty() {
            self.refresh();
        }
    }

    fn remove_dead(&self) {
        match clsact::remove_dead(&self.netlink) {
            Ok(removed) if removed.filters > 0 => self.notice(
                Severity::Info,
                "dead_filters_removed",
                format!("removed {} filters of an agent that was killed", removed.filters),
            ),
            Ok(_) => {}
            Err(error) => self.notice(Severity::Warning, "cleanup_failed", error.to_string()),
        }
    }

    /// Lists everything anew and attaches or forgets accordingly.
    fn refresh(&mut self) {
        let listed = self.netlink.devices().and_then(|devices| {
            Ok((devices, self.netlink.addresses()?, self.netlink.default_route_devices()?))
        });
        let (devices, addresses, routes) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                // Tried again at the next look.
                self.shared.changed.store(true, Ordering::Release);
                return self.notice(Severity::Warning, "netlink_failed", error.to_string());
            }
        };
        let chosen = select::choose(&devices, &addresses, &routes, &self.options.configured);
        self.remember(&devices, &addresses);
        self.forget_others(&devices, &chosen);
        for (device, why) in chosen {
            if self.is_stopping() {
                return;
            }
            if let Some(attached) = self.attached.get_mut(&device.ifindex) {
                attached.device.name = device.name;
                attached.why = why;
            } else {
                self.attach(device, why);
            }
        }
        self.know(devices);
        self.publish();
    }

    fn remember(&self, devices: &[Device], addresses: &[(u32, IpAddr, bool)]) {
        let gone = |ifindex: &u32| !devices.iter().any(|d| d.ifindex == *ifindex);
        let gone: Vec<u32> =
            self.known.iter().flat_map(HashMap::keys).copied().filter(gone).collect();
        self.shared.facts.update(|facts| {
            facts.set_addresses(addresses.iter().map(|(_, ip, _)| *ip));
            for ifindex in gone {
                facts.remove_interface(ifindex);
            }
            for device in devices {
                facts.set_interface(device.ifindex, &device.name);
            }
        });
    }

    /// Keeps what devices have carried, also of those that have gone and may come back.
    fn know(&mut self, devices: Vec<Device>) {
        let known = self.known.get_or_insert_default();
        if known.len() > MAX_KNOWN {
            known.clear();
        }
        known.extend(devices.into_iter().map(|d| (d.ifindex, d.carried)));
    }

    /// Detaches what is no longer chosen; what has gone has taken its programs with it.
    fn forget_others(&mut self, devices: &[Device], chosen: &[(Device, ChosenBy)]) {
        let is_chosen = |ifindex: u32| chosen.iter().any(|(d, _)| d.ifindex == ifindex);
        self.failed.retain(|ifindex, _| is_chosen(*ifindex));
        let gone: Vec<u32> =
            self.attached.keys().copied().filter(|ifindex| !is_chosen(*ifindex)).collect();
        for ifindex in gone {
            let exists = devices.iter().any(|d| d.ifindex == ifindex);
            if let Some(attached) = self.attached.remove(&ifindex) {
                let name = attached.device.name.clone();
                self.detach(attached, exists);
                let message = if exists {
                    format!("detached from {name}: it is no longer an uplink")
                } else {
                    format!("{name} has gone")
                };
                self.notice(Severity::Info, "interface_detached", message);
            }
        }
    }

    fn attach(&mut self, device: Device, why: ChosenBy) {
        let before = self.carried_before(&device);
        match self.try_attach(&device) {
            Ok((hooks, made_qdisc)) => self.attached(device, why, hooks, made_qdisc, before),
            Err(error) if self.is_gone(&error, &device) => {
                self.failed.remove(&device.ifindex);
            }
            Err(error) => {
                // What passes while it cannot be attached is lost, and told as it passes.
                let carried = self.count_unattached(&device, before).unwrap_or(before);
                let message = format!("attach to {}: {error}", device.name);
                let failed = Failed { device, why, reason: error.to_string(), carried };
                if self.failed.insert(failed.device.ifindex, failed).is_none() {
                    self.notice(Severity::Error, "attach_failed", message);
                }
            }
        }
    }

    fn attached(
        &mut self,
        device: Device,
        why: ChosenBy,
        hooks: [Hook; 2],
        made_qdisc: bool,
        before: Carried,
    ) {
        self.failed.remove(&device.ifindex);
        let carried = self.count_unattached(&device, before).unwrap_or(before);
        let message = format!("attached to {} ({})", device.name, chosen_word(why));
        self.notice(Severity::Info, "interface_attached", message);
        let chain = Chain::default();
        let mut attached =
            Attached { device, why, hooks, packets: Vec::new(), made_qdisc, chain, carried };
        if self.watching_packets {
            self.attach_packets(&mut attached);
        }
        if let Some(notice) = self.look(&mut attached) {
            self.shared.side.notify(notice);
        }
        self.attached.insert(attached.device.ifindex, attached);
    }

    /// What a device had carried when its loss began to count: when an attach first failed; for a
    /// device that was there before us or was no uplink until now, as of the listing that chose
    /// it; for one that came back, when it left; for a new one, nothing.
    fn carried_before(&self, device: &Device) -> Carried {
        if let Some(failed) = self.failed.get(&device.ifindex) {
            return failed.carried;
        }
        let Some(known) = &self.known else { return device.carried };
        if known.contains_key(&device.ifindex) || device.hardware {
            return device.carried;
        }
        Carried::default()
    }

    /// Counts what passed between the last look and now. Packets in the moment between attaching
    /// and reading the device's counters are in both numbers, so this says at most how many.
    fn count_unattached(&self, device: &Device, before: Carried) -> Option<Carried> {
        let now = self.netlink.carried(device.ifindex)?;
        let packets = now.rx_packets.saturating_sub(before.rx_packets)
            + now.tx_packets.saturating_sub(before.tx_packets);
        let bytes = now.rx_bytes.saturating_sub(before.rx_bytes)
            + now.tx_bytes.saturating_sub(before.tx_bytes);
        self.shared.side.add_unattached(packets, bytes);
        Some(now)
    }

    fn try_attach(&mut self, device: &Device) -> io::Result<([Hook; 2], bool)> {
        let made_qdisc = match self.options.route {
            AttachRoute::Tcx => false,
            AttachRoute::Clsact => {
                hook::ensure_clsact(&self.netlink, device.ifindex, &device.name)?
            }
        };
        let ingress = self.hook(device, Side::Ingress, Purpose::Flows, made_qdisc)?;
        match self.hook(device, Side::Egress, Purpose::Flows, made_qdisc) {
            Ok(egress) => Ok(([ingress, egress], made_qdisc)),
            Err(error) => {
                hook::detach(&mut self.programs, ingress);
                Err(error)
            }
        }
    }

    fn hook(
        &mut self,
        device: &Device,
        side: Side,
        purpose: Purpose,
        made_qdisc: bool,
    ) -> io::Result<Hook> {
        let place =
            Place { ifindex: device.ifindex, name: &device.name, link: device.link, side, purpose };
        match self.options.route {
            AttachRoute::Tcx => hook::attach_tcx(&mut self.programs, &place),
            AttachRoute::Clsact => {
                let handle = self.instance.handle(made_qdisc);
                hook::attach_clsact(&mut self.programs, &place, handle)
            }
        }
    }

    fn watch_packets(&mut self, on: bool) {
        self.watching_packets = on;
        let mut all = std::mem::take(&mut self.attached);
        for attached in all.values_mut() {
            for hook in attached.packets.drain(..) {
                hook::detach(&mut self.programs, hook);
            }
            if on {
                self.attach_packets(attached);
            }
        }
        self.attached = all;
    }

    fn attach_packets(&mut self, attached: &mut Attached) {
        for side in Side::BOTH {
            match self.hook(&attached.device, side, Purpose::Packets, attached.made_qdisc) {
                Ok(hook) => attached.packets.push(hook),
                Err(error) => self.notice(
                    Severity::Warning,
                    "packet_view_failed",
                    format!("show packets of {}: {error}", attached.device.name),
                ),
            }
        }
    }

    /// Looks whether we are still on the hooks and whether somebody has been put ahead of us;
    /// attaches again, or moves back to the front where the policy allows it.
    fn look_at_chains(&mut self) {
        let now = Instant::now();
        // One listing for all, before the chains: a later one would hide what was missed.
        let devices = self.netlink.devices().unwrap_or_default();
        let carried: HashMap<u32, Carried> =
            devices.into_iter().map(|device| (device.ifindex, device.carried)).collect();
        let mut removed = Vec::new();
        let mut all = std::mem::take(&mut self.attached);
        for attached in all.values_mut() {
            if let Some(notice) = self.look(attached) {
                self.shared.side.notify(notice);
            }
            if attached.chain.is_absent() {
                removed.push(attached.device.ifindex);
                continue;
            }
            if attached.chain.should_move(now, &self.options.chain) {
                self.move_to_front(attached, now);
            }
            // What cannot be read now keeps its last value.
            if let Some(now) = carried.get(&attached.device.ifindex) {
                attached.carried = *now;
            }
        }
        self.attached = all;
        for ifindex in removed {
            self.attach_again(ifindex);
        }
        self.publish();
    }

    /// Somebody has taken our programs off an interface.
    fn attach_again(&mut self, ifindex: u32) {
        let Some(attached) = self.attached.remove(&ifindex) else { return };
        let (device, why, carried) = (attached.device.clone(), attached.why, attached.carried);
        let message = format!("our programs were taken off {}", device.name);
        self.notice(Severity::Warning, "programs_removed", message);
        self.detach(attached, true);
        // What has passed since the last look may have been missed: at most so much is lost.
        let reason = "our programs were taken off".to_owned();
        self.failed.insert(ifindex, Failed { device: device.clone(), why, reason, carried });
        self.attach(device, why);
    }

    fn move_to_front(&mut self, attached: &mut Attached, now: Instant) {
        let before = self.netlink.carried(attached.device.ifindex);
        let mut moved = true;
        for (at, side) in Side::BOTH.into_iter().enumerate() {
            if !attached.chain.is_behind(side) {
                continue;
            }
            // The kernel holds a program once a chain, so there is a gap, counted as unattached.
            if let Err(error) = self.again(attached, at, side) {
                // The next look finds it absent and attaches anew.
                moved = false;
                let message = format!("move to the front of {}: {error}", attached.device.name);
                self.notice(Severity::Error, "move_failed", message);
            }
        }
        if let Some(before) = before {
            self.count_unattached(&attached.device, before);
        }
        attached.chain.moved(now);
        if moved {
            let message = format!("moved back to the front on {}", attached.device.name);
            self.notice(Severity::Info, "moved_to_front", message);
        }
        self.look(attached);
    }

    fn again(&mut self, attached: &mut Attached, at: usize, side: Side) -> io::Result<()> {
        // Closing a descriptor detaches; the slot must hold something meanwhile.
        let nothing = Hook::Tcx(std::fs::File::open("/dev/null")?.into());
        hook::detach(&mut self.programs, std::mem::replace(&mut attached.hooks[at], nothing));
        let made_qdisc = attached.made_qdisc;
        attached.hooks[at] = self.hook(&attached.device, side, Purpose::Flows, made_qdisc)?;
        Ok(())
    }

    /// Reads who is on the hooks of an interface; an interface that cannot be read is forgotten
    /// elsewhere.
    fn look(&self, attached: &mut Attached) -> Option<Notice> {
        let hooks = match self.entries(attached) {
            Ok(hooks) => hooks,
            Err(error) => {
                tracing::debug!(%error, name = attached.device.name, "a chain cannot be read");
                return None;
            }
        };
        attached.chain.look(&attached.device.name, hooks)
    }

    fn entries(&self, attached: &Attached) -> io::Result<[Vec<Entry>; 2]> {
        let ifindex = attached.device.ifindex;
        let tcx = |side| chain::tcx_entries(ifindex, side, &self.programs);
        if self.options.route == AttachRoute::Tcx {
            return Ok([tcx(Side::Ingress)?, tcx(Side::Egress)?]);
        }
        let filters = self.netlink.filters(ifindex).map_err(io::Error::other)?;
        let ours = self.instance.handle(attached.made_qdisc);
        Ok(Side::BOTH.map(|side| {
            // Where the kernel has tcx, its programs run before all filters.
            let mut entries = tcx(side).unwrap_or_default();
            entries.extend(chain::clsact_entries(&filters, side, ours));
            entries
        }))
    }

    fn detach(&mut self, attached: Attached, exists: bool) {
        for hook in attached.packets.into_iter().chain(attached.hooks) {
            hook::detach(&mut self.programs, hook);
        }
        if attached.made_qdisc && exists {
            self.remove_qdisc_if_unused(attached.device.ifindex);
        }
    }

    fn remove_qdisc_if_unused(&self, ifindex: u32) {
        if self.netlink.filters(ifindex).is_ok_and(|filters| filters.is_empty())
            && let Err(error) = self.netlink.delete_clsact(ifindex)
        {
            tracing::debug!(%error, ifindex, "clsact was already gone");
        }
    }

    /// Whether an attach failed because the interface has gone.
    fn is_gone(&self, error: &io::Error, device: &Device) -> bool {
        matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO))
            || self.netlink.carried(device.ifindex).is_none()
    }

    fn detach_all(&mut self) {
        for (_, attached) in std::mem::take(&mut self.attached) {
            self.detach(attached, true);
        }
        self.publish();
    }

    fn notice(&self, severity: Severity, code: &'static str, message: String) {
        self.shared.side.notify(Notice { severity, code, message });
    }

    fn publish(&self) {
        let (route, policy) = (self.options.route, &self.options.chain);
        let attached = self.attached.values().map(|a| a.status(route, policy));
        let failed = self.failed.values().map(|f| f.status(route));
        let mut interfaces: Vec<_> = attached.chain(failed).collect();
        interfaces.sort_by_key(|i| i.ifindex);
        lock(&self.shared.state).interfaces = interfaces;
    }
}

/// For notices.
const fn chosen_word(why: ChosenBy) -> &'static str {
    match why {
        ChosenBy::DefaultRoute => "it has a default route",
        ChosenBy::GlobalAddress => "it has a global address",
        ChosenBy::Configured => "the settings name it",
        ChosenBy::PodLink => "it leads to a pod",
    }
}

/// Whoever asked may have given up waiting.
fn answer(waiting: Option<SyncSender<()>>) {
    if let Some(waiting) = waiting {
        let _gone = waiting.try_send(());
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
}
