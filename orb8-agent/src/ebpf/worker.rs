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
use super::chain::{self, Chain};
use super::clsact::{self, Instance};
use super::hook::{self, Hook, Place, Purpose, Side};
use super::load::Programs;
use super::netlink::{Carried, Device, Netlink};
use super::select;
use crate::datapath::{AttachRoute, AttachState, ChosenBy, InterfaceStatus};
use crate::event::{Notice, Severity};

/// Changes are let gather for so long before interfaces are listed anew.
const GATHER: Duration = Duration::from_millis(20);

/// One attached interface.
struct Attached {
    device: Device,
    why: ChosenBy,
    hooks: [Hook; 2],
    packets: Vec<Hook>,
    made_qdisc: bool,
    chain: Chain,
}

pub(super) struct Worker {
    netlink: Netlink,
    programs: Programs,
    options: AttachOptions,
    instance: Instance,
    shared: Shared,
    attached: BTreeMap<u32, Attached>,
    failed: BTreeMap<u32, (Device, ChosenBy, String)>,
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
        let asked_to_stop = loop {
            if self.shared.changed.swap(false, Ordering::AcqRel) {
                self.refresh();
            }
            match queue.recv_timeout(self.options.chain.look_every) {
                // Changes come in swarms.
                Ok(Request::Wake) => std::thread::sleep(GATHER),
                Ok(Request::Packets(on, waiting)) => {
                    self.watch_packets(on);
                    answer(waiting);
                }
                Err(RecvTimeoutError::Timeout) => {
                    self.look_at_chains();
                    if !self.failed.is_empty() {
                        self.refresh();
                    }
                }
                Ok(Request::Stop(waiting)) => break Some(waiting),
                Err(RecvTimeoutError::Disconnected) => break None,
            }
        };
        self.detach_all();
        answer(asked_to_stop);
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
            if let Some(attached) = self.attached.get_mut(&device.ifindex) {
                attached.device.name = device.name;
                attached.why = why;
            } else {
                self.attach(device, why);
            }
        }
        let carried = devices.into_iter().map(|d| (d.ifindex, d.carried)).collect();
        self.known = Some(carried);
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
            Ok((hooks, made_qdisc)) => {
                self.failed.remove(&device.ifindex);
                self.count_unattached(&device, before);
                let message = format!("attached to {} ({})", device.name, chosen_word(why));
                self.notice(Severity::Info, "interface_attached", message);
                let mut attached = Attached {
                    device,
                    why,
                    hooks,
                    packets: Vec::new(),
                    made_qdisc,
                    chain: Chain::default(),
                };
                if self.watching_packets {
                    self.attach_packets(&mut attached);
                }
                if let Some(notice) = self.look(&mut attached) {
                    self.shared.side.notify(notice);
                }
                self.attached.insert(attached.device.ifindex, attached);
            }
            Err(error) if is_gone(&error, &device) => {}
            Err(error) => {
                let message = format!("attach to {}: {error}", device.name);
                if !self.failed.contains_key(&device.ifindex) {
                    self.notice(Severity::Error, "attach_failed", message);
                }
                self.failed.insert(device.ifindex, (device, why, error.to_string()));
            }
        }
    }

    /// What passed a device before it could be attached does not count if it was there before us.
    fn carried_before(&self, device: &Device) -> Carried {
        match &self.known {
            None => device.carried,
            Some(known) => known.get(&device.ifindex).copied().unwrap_or_default(),
        }
    }

    /// Counts what passed between the last look and now. Packets in the moment between attaching
    /// and reading the device's counters are in both numbers, so this says at most how many.
    fn count_unattached(&self, device: &Device, before: Carried) {
        let Some(now) = self.netlink.carried(device.ifindex) else { return };
        let packets = now.rx_packets.saturating_sub(before.rx_packets)
            + now.tx_packets.saturating_sub(before.tx_packets);
        let bytes = now.rx_bytes.saturating_sub(before.rx_bytes)
            + now.tx_bytes.saturating_sub(before.tx_bytes);
        self.shared.side.add_unattached(packets, bytes);
    }

    fn try_attach(&mut self, device: &Device) -> io::Result<([Hook; 2], bool)> {
        let made_qdisc = match self.options.route {
            AttachRoute::Tcx => false,
            AttachRoute::Clsact => hook::ensure_clsact(&device.name)?,
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

    /// Looks whether somebody has been put ahead of us, and moves back to the front where the
    /// policy allows it.
    fn look_at_chains(&mut self) {
        let now = Instant::now();
        let mut all = std::mem::take(&mut self.attached);
        for attached in all.values_mut() {
            if let Some(notice) = self.look(attached) {
                self.shared.side.notify(notice);
            }
            // A filter cannot move ahead of priority 1, and need not: it is tried first.
            let can_move = self.options.route == AttachRoute::Tcx;
            if can_move && attached.chain.should_move(now, &self.options.chain) {
                self.move_to_front(attached, now);
            }
        }
        self.attached = all;
        self.publish();
    }

    fn move_to_front(&mut self, attached: &mut Attached, now: Instant) {
        let before = self.netlink.carried(attached.device.ifindex);
        for (at, side) in Side::BOTH.into_iter().enumerate() {
            if !attached.chain.is_behind(side) {
                continue;
            }
            // The kernel holds a program once a chain, so there is a gap, counted as unattached.
            let Hook::Tcx(_) = &attached.hooks[at] else { continue };
            let Err(error) = self.again(attached, at, side) else { continue };
            let message = format!("move to the front of {}: {error}", attached.device.name);
            self.notice(Severity::Error, "move_failed", message);
        }
        if let Some(before) = before {
            self.count_unattached(&attached.device, before);
        }
        attached.chain.moved(now);
        let message = format!("moved back to the front on {}", attached.device.name);
        self.notice(Severity::Info, "moved_to_front", message);
        self.look(attached);
    }

    /// Reads who is on the hooks of an interface.
    fn look(&self, attached: &mut Attached) -> Option<Notice> {
        let ifindex = attached.device.ifindex;
        let hooks = match self.options.route {
            AttachRoute::Tcx => {
                Side::BOTH.map(|side| chain::tcx_entries(ifindex, side, &self.programs))
            }
            AttachRoute::Clsact => {
                let filters = self.netlink.filters(ifindex).unwrap_or_default();
                let ours = self.instance.handle(attached.made_qdisc);
                Side::BOTH.map(|side| chain::clsact_entries(&filters, side, ours))
            }
        };
        attached.chain.look(&attached.device.name, hooks)
    }

    fn again(&mut self, attached: &mut Attached, at: usize, side: Side) -> io::Result<()> {
        // Closing a descriptor detaches; the slot must hold something meanwhile.
        let nothing = Hook::Tcx(std::fs::File::open("/dev/null")?.into());
        hook::detach(&mut self.programs, std::mem::replace(&mut attached.hooks[at], nothing));
        attached.hooks[at] = self.hook(&attached.device, side, Purpose::Flows, false)?;
        Ok(())
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
        let attached = self.attached.values().map(|a| InterfaceStatus {
            reason: a.chain.reason(&self.options.chain),
            before: a.chain.neighbours().before.clone(),
            after: a.chain.neighbours().after.clone(),
            ..self.status(&a.device, a.why, AttachState::Attached)
        });
        let failed = self.failed.values().map(|(device, why, reason)| InterfaceStatus {
            reason: reason.clone(),
            ..self.status(device, *why, AttachState::Failed)
        });
        let mut interfaces: Vec<_> = attached.chain(failed).collect();
        interfaces.sort_by_key(|i| i.ifindex);
        lock(&self.shared.state).interfaces = interfaces;
    }

    fn status(&self, device: &Device, why: ChosenBy, state: AttachState) -> InterfaceStatus {
        InterfaceStatus {
            name: device.name.clone(),
            ifindex: device.ifindex,
            state,
            route: Some(self.options.route),
            reason: String::new(),
            before: Vec::new(),
            after: Vec::new(),
            link: device.link,
            chosen_by: why,
        }
    }
}

/// For notices.
const fn chosen_word(why: ChosenBy) -> &'static str {
    match why {
        ChosenBy::DefaultRoute => "it has a default route",
        ChosenBy::GlobalAddress => "it has a global address",
        ChosenBy::Configured => "the settings name it",
    }
}

/// Whether an attach failed because the interface has gone, by its number or by its name.
fn is_gone(error: &io::Error, device: &Device) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENODEV | libc::ENXIO)) || !exists(device.ifindex)
}

fn exists(ifindex: u32) -> bool {
    let mut name = [0; libc::IF_NAMESIZE];
    // SAFETY: the buffer has the size that the function asks for.
    !unsafe { libc::if_indextoname(ifindex, name.as_mut_ptr()) }.is_null()
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
