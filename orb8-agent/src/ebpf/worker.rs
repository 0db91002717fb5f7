//! The attach thread: looks which interfaces there are, attaches, forgets, keeps our place.
//!
//! Invariant: an interface is in `attached` if and only if our programs are on both its hooks.

use std::collections::{BTreeMap, HashMap, HashSet, VecDeque};
use std::io;
use std::sync::atomic::Ordering;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender};
use std::sync::{Mutex, MutexGuard};
use std::time::{Duration, Instant};

use super::attach::{AttachOptions, LinkMaps, Request, Shared};
use super::attached::{Attached, Failed, Pending};
use super::chain::Chain;
use super::clsact::{self, Instance};
use super::hook::{self, Hook, Place, Purpose, Shape, Side};
use super::load::Programs;
use super::netlink::{Carried, Device, Netlink};
use super::select;
use super::socket_plane::SocketPlane;
use crate::datapath::{AttachRoute, ChosenBy};
use crate::event::{Notice, Severity};

mod chains;
mod facts;
mod unattached;

pub(super) use unattached::Beginning;

/// Devices whose counters are remembered.
const MAX_KNOWN: usize = 16_384;
/// Interfaces that are attached until others hear of it.
const PUBLISH_EVERY: usize = 16;
/// Changes are let gather for so long before interfaces are listed anew.
const GATHER: Duration = Duration::from_millis(20);

pub(super) struct Worker {
    netlink: Netlink,
    programs: Programs,
    options: AttachOptions,
    instance: Instance,
    shared: Shared,
    maps: LinkMaps,
    socket: Option<SocketPlane>,
    /// Chosen and not tried yet, in the order in which they will be.
    pending: VecDeque<Pending>,
    attached: BTreeMap<u32, Attached>,
    failed: BTreeMap<u32, Failed>,
    /// What each device had carried when it was last seen unattached; `None` before the first look.
    known: Option<HashMap<u32, Carried>>,
    behind: facts::Known,
    watching_packets: bool,
    /// Until the agent promises to see everything.
    beginning: Option<Beginning>,
}

impl Worker {
    pub(super) fn new(
        netlink: Netlink,
        programs: Programs,
        maps: LinkMaps,
        options: AttachOptions,
        instance: Instance,
        shared: Shared,
        beginning: Beginning,
    ) -> Self {
        let socket = options.socket_root.clone().map(SocketPlane::new);
        Self {
            netlink,
            programs,
            options,
            instance,
            shared,
            maps,
            socket,
            pending: VecDeque::new(),
            attached: BTreeMap::new(),
            failed: BTreeMap::new(),
            known: None,
            behind: facts::Known::new(),
            watching_packets: false,
            beginning: Some(beginning),
        }
    }

    pub(super) fn run(&mut self, queue: &Receiver<Request>) {
        if self.options.route == AttachRoute::Clsact {
            self.remove_dead();
        }
        // Before the interfaces: the totals come from there.
        self.attach_socket_plane();
        let mut next_look = Instant::now() + self.options.chain.look_every;
        while !self.is_stopping() {
            if self.shared.changed.swap(false, Ordering::AcqRel) {
                self.refresh();
            }
            self.attach_next();
            self.begin_if_ready();
            // However often interfaces change, the chains are looked at.
            if Instant::now() >= next_look {
                self.look_around();
                next_look = Instant::now() + self.options.chain.look_every;
            }
            let wait = next_look.saturating_duration_since(Instant::now());
            match self.next_request(queue, self.until_begun(self.until_neighbours(wait))) {
                // Changes come in swarms.
                Ok(Request::Wake) => std::thread::sleep(GATHER),
                Ok(Request::Packets(on, waiting)) => {
                    self.watch_packets(on);
                    answer(waiting);
                }
                Err(RecvTimeoutError::Timeout) => {}
                Err(RecvTimeoutError::Disconnected) => break,
            }
            self.refresh_pod_links();
        }
        self.detach_all();
    }

    /// Waits for a request, unless there is something to attach.
    fn next_request(
        &self,
        queue: &Receiver<Request>,
        wait: Duration,
    ) -> Result<Request, RecvTimeoutError> {
        let wait = if self.pending.is_empty() { wait } else { Duration::ZERO };
        queue.recv_timeout(wait)
    }

    /// Attaches to the next interface that waits for it: one at a time, so that requests are heard
    /// in between.
    fn attach_next(&mut self) {
        let Some(next) = self.pending.pop_front() else { return };
        self.attach(next);
        // A listing for each of many would cost more than it tells.
        if self.pending.len().is_multiple_of(PUBLISH_EVERY) {
            self.publish();
        }
    }

    fn is_stopping(&self) -> bool {
        self.shared.stopping.load(Ordering::Acquire)
    }

    /// What is done every few seconds: our place, our presence, and what could not be attached.
    fn look_around(&mut self) {
        self.shared.neighbours.store(true, Ordering::Release);
        self.attach_socket_plane();
        self.look_at_chains();
        if !self.failed.is_empty() {
            self.refresh();
        }
    }

    /// Attaches the socket plane, also again if somebody has taken it off.
    fn attach_socket_plane(&mut self) {
        let Some(socket) = &mut self.socket else { return };
        let switch = &mut self.maps.socket_switch;
        if let Some(notice) = socket.keep_attached(&self.programs, switch) {
            self.shared.side.notify(notice);
        }
        self.publish();
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

    /// Lists everything anew, forgets what is no longer chosen, and puts the rest in line.
    fn refresh(&mut self) {
        let listed = self
            .netlink
            .devices()
            .and_then(|devices| Ok((devices, self.netlink.addresses()?, self.netlink.routes()?)));
        let (devices, addresses, routes) = match listed {
            Ok(listed) => listed,
            Err(error) => {
                // Tried again at the next look.
                self.shared.changed.store(true, Ordering::Release);
                return self.notice(Severity::Warning, "netlink_failed", error.to_string());
            }
        };
        let defaults = &routes.default_devices;
        let mut chosen = select::choose(&devices, &addresses, defaults, &self.options.configured);
        self.remember(&devices, &addresses);
        self.learn_pod_links(&chosen, &routes);
        self.tell_tunnels(&devices);
        if !self.options.interfaces {
            chosen.clear();
        }
        self.forget_others(&devices, &chosen);
        self.line_up(chosen);
        self.know(devices);
        self.publish();
    }

    /// Puts into the line what is chosen and not attached yet.
    fn line_up(&mut self, mut chosen: Vec<(Device, ChosenBy)>) {
        let mut waiting: HashMap<u32, Carried> =
            self.pending.drain(..).map(|one| (one.device.ifindex, one.before)).collect();
        // The agent begins when the uplinks are attached; links to pods come by the hundred.
        chosen.sort_by_key(|(_, why)| *why == ChosenBy::PodLink);
        for (device, why) in chosen {
            if let Some(attached) = self.attached.get_mut(&device.ifindex)
                && attached.shape() == shape(&device, why)
                && !select::is_another(&attached.device, &device)
            {
                attached.device = Device { carried: attached.device.carried, ..device };
                attached.why = why;
                continue;
            }
            if let Some(attached) = self.attached.remove(&device.ifindex) {
                // Another one, or seen with other eyes now: its programs are the wrong ones.
                self.detach(attached, true);
            }
            let before = waiting.remove(&device.ifindex);
            let before = before.unwrap_or_else(|| self.carried_before(&device));
            self.pending.push_back(Pending { device, why, before });
        }
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
        let there: HashSet<u32> = devices.iter().map(|device| device.ifindex).collect();
        let chosen: HashSet<u32> = chosen.iter().map(|(device, _)| device.ifindex).collect();
        let is_chosen = |ifindex: u32| chosen.contains(&ifindex);
        self.failed.retain(|ifindex, _| is_chosen(*ifindex));
        let gone: Vec<u32> =
            self.attached.keys().copied().filter(|ifindex| !is_chosen(*ifindex)).collect();
        for ifindex in gone {
            let exists = there.contains(&ifindex);
            if let Some(attached) = self.attached.remove(&ifindex) {
                let name = attached.device.name.clone();
                self.detach(attached, exists);
                let message = if exists {
                    format!("detached from {name}: it is no longer chosen")
                } else {
                    format!("{name} has gone")
                };
                self.notice(Severity::Info, "interface_detached", message);
            }
        }
    }

    fn attach(&mut self, Pending { device, why, before }: Pending) {
        let shape = shape(&device, why);
        match self.try_attach(&device, shape) {
            Ok((hooks, made_qdisc)) => self.attached(device, why, hooks, made_qdisc, before),
            Err(error) if self.is_gone(&error, &device) => {
                self.forget_pod_link(device.ifindex, shape);
                self.failed.remove(&device.ifindex);
            }
            Err(error) => {
                self.forget_pod_link(device.ifindex, shape);
                // What passes while it cannot be attached is lost, and told as it passes.
                let carried = self.count_unattached(&device, why, before).unwrap_or(before);
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
        let carried = self.count_unattached(&device, why, before).unwrap_or(before);
        let message = format!("attached to {} ({})", device.name, chosen_word(why));
        if why == ChosenBy::PodLink {
            // They come and go with pods, by the hundred.
            tracing::debug!("{message}");
        } else {
            self.notice(Severity::Info, "interface_attached", message);
        }
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

    fn try_attach(&mut self, device: &Device, shape: Shape) -> io::Result<([Hook; 2], bool)> {
        // First, because the programs ask for it.
        if let (Shape::PodLink, Some(netns)) = (shape, device.peer_netns) {
            self.maps.pod_links.insert(device.ifindex, netns, 0).map_err(io::Error::other)?;
        }
        let made_qdisc = match self.options.route {
            AttachRoute::Tcx => false,
            AttachRoute::Clsact => {
                hook::ensure_clsact(&self.netlink, device.ifindex, &device.name)?
            }
        };
        let flows = Purpose::Flows(self.options.mode);
        let ingress = self.hook(device, shape, Side::Ingress, flows, made_qdisc)?;
        match self.hook(device, shape, Side::Egress, flows, made_qdisc) {
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
        shape: Shape,
        side: Side,
        purpose: Purpose,
        made_qdisc: bool,
    ) -> io::Result<Hook> {
        let mode = self.options.mode;
        let place =
            Place { ifindex: device.ifindex, name: &device.name, shape, side, purpose, mode };
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
            let (shape, made_qdisc) = (attached.shape(), attached.made_qdisc);
            match self.hook(&attached.device, shape, side, Purpose::Packets, made_qdisc) {
                Ok(hook) => attached.packets.push(hook),
                Err(error) => self.notice(
                    Severity::Warning,
                    "packet_view_failed",
                    format!("show packets of {}: {error}", attached.device.name),
                ),
            }
        }
    }

    fn detach(&mut self, attached: Attached, exists: bool) {
        self.forget_pod_link(attached.device.ifindex, attached.shape());
        for hook in attached.packets.into_iter().chain(attached.hooks) {
            hook::detach(&mut self.programs, hook);
        }
        if attached.made_qdisc && exists {
            self.remove_qdisc_if_unused(attached.device.ifindex);
        }
    }

    fn forget_pod_link(&mut self, ifindex: u32, shape: Shape) {
        if shape == Shape::PodLink
            && let Err(error) = self.maps.pod_links.remove(&ifindex)
        {
            tracing::debug!(%error, ifindex, "a link to a pod was not in the map");
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
        self.pending.clear();
        if let Some(socket) = &mut self.socket {
            socket.detach();
        }
        for (_, attached) in std::mem::take(&mut self.attached) {
            self.detach(attached, true);
        }
        self.publish();
    }

    fn notice(&self, severity: Severity, code: &'static str, message: String) {
        self.shared.side.notify(Notice { severity, code, message });
    }

    fn publish(&self) {
        let options = &self.options;
        let attached = self.attached.values().map(|a| a.status(options));
        let failed = self.failed.values().map(|f| f.status(options));
        // What has failed is tried again and is still shown as failed.
        let waiting = self.pending.iter().filter(|p| !self.failed.contains_key(&p.device.ifindex));
        let waiting = waiting.map(|p| p.status(options));
        let mut interfaces: Vec<_> = attached.chain(failed).chain(waiting).collect();
        interfaces.sort_by_key(|i| i.ifindex);
        let mut state = lock(&self.shared.state);
        state.interfaces = interfaces;
        state.socket_plane = self.socket.as_ref().map(SocketPlane::status);
    }
}

/// What an interface looks like to the programs.
pub(super) fn shape(device: &Device, why: ChosenBy) -> Shape {
    match why {
        ChosenBy::PodLink => Shape::PodLink,
        _ => Shape::Own(device.link),
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
