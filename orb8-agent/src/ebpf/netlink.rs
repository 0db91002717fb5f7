//! rtnetlink requests as plain functions, for threads that may wait; and a watcher that tells when
//! interfaces, addresses or default routes have changed.

use std::io;
use std::net::IpAddr;
use std::pin::Pin;

use futures_util::{Stream, StreamExt as _};
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{InfoKind, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage};
use netlink_packet_route::route::{RouteAttribute, RouteMessage, RouteType};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use rtnetlink::{Handle, MulticastGroup};
use tokio::runtime::{Builder, Runtime};

use crate::datapath::LinkKind;

/// A network device.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Device {
    /// Its number in this network namespace.
    pub ifindex: u32,
    /// Its present name.
    pub name: String,
    /// How its link header is stripped.
    pub link: LinkKind,
    /// Loopback.
    pub loopback: bool,
    /// Bridge or veth: carries other hosts' or pods' packets, not an uplink by itself.
    pub internal: bool,
    /// Behind it is hardware: its counters may be older than its place in this namespace.
    pub hardware: bool,
    /// Packets and link-layer bytes received and sent so far.
    pub carried: Carried,
}

/// What a device's own counters say.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Carried {
    /// Packets received.
    pub rx_packets: u64,
    /// Link-layer bytes received.
    pub rx_bytes: u64,
    /// Packets sent.
    pub tx_packets: u64,
    /// Link-layer bytes sent.
    pub tx_bytes: u64,
}

/// A classifier on a clsact hook.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Filter {
    /// True on the ingress hook, false on egress.
    pub ingress: bool,
    /// Lower runs first.
    pub priority: u16,
    /// EtherType it applies to, network byte order, as the kernel packs it.
    pub protocol: u16,
    /// Its number at this priority.
    pub handle: u32,
    /// The name of a BPF filter.
    pub name: Option<String>,
}

/// A request failed.
#[derive(Debug, thiserror::Error)]
pub enum NetlinkError {
    /// No socket or no runtime.
    #[error("open a netlink socket: {0}")]
    Open(#[from] io::Error),
    /// The kernel refused.
    #[error("ask the kernel for {what}: {source}")]
    Request {
        /// What was asked for.
        what: &'static str,
        /// What it said.
        source: rtnetlink::Error,
    },
}

/// A netlink socket of the thread's network namespace.
pub struct Netlink {
    runtime: Runtime,
    handle: Handle,
}

impl Netlink {
    /// Opens a socket.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn open() -> Result<Self, NetlinkError> {
        let runtime = Builder::new_current_thread().enable_io().build()?;
        let guard = runtime.enter();
        let (connection, handle, _) = rtnetlink::new_connection()?;
        drop(guard);
        runtime.spawn(connection);
        Ok(Self { runtime, handle })
    }

    fn all<T, M>(
        &self,
        what: &'static str,
        replies: impl Stream<Item = Result<M, rtnetlink::Error>>,
        of: impl Fn(M) -> Option<T>,
    ) -> Result<Vec<T>, NetlinkError> {
        self.runtime.block_on(async {
            let mut found = Vec::new();
            let mut replies = std::pin::pin!(replies);
            while let Some(reply) = replies.next().await {
                found.extend(of(reply.map_err(|source| NetlinkError::Request { what, source })?));
            }
            Ok(found)
        })
    }

    /// All devices.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn devices(&self) -> Result<Vec<Device>, NetlinkError> {
        self.all("devices", self.handle.link().get().execute(), |m| device(&m))
    }

    /// What one device has carried, `None` if it has gone.
    #[must_use]
    pub fn carried(&self, ifindex: u32) -> Option<Carried> {
        let replies = self.handle.link().get().match_index(ifindex).execute();
        let found = self.all("a device", replies, |m| device(&m)).ok()?;
        found.into_iter().next().map(|device| device.carried)
    }

    /// Every address and the device that has it; global ones are marked.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&self) -> Result<Vec<(u32, IpAddr, bool)>, NetlinkError> {
        self.all("addresses", self.handle.address().get().execute(), |m| {
            let global = m.header.scope == AddressScope::Universe;
            let (mut local, mut address) = (None, None);
            for attribute in m.attributes {
                match attribute {
                    AddressAttribute::Local(ip) => local = Some(ip),
                    AddressAttribute::Address(ip) => address = Some(ip),
                    _ => {}
                }
            }
            // On point-to-point links `Address` is the peer's.
            local.or(address).map(|ip| (m.header.index, ip, global))
        })
    }

    /// Devices that a default route leads to.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn default_route_devices(&self) -> Result<Vec<u32>, NetlinkError> {
        let mut found = Vec::new();
        for family in [AddressFamily::Inet, AddressFamily::Inet6] {
            let mut ask = RouteMessage::default();
            ask.header.address_family = family;
            let replies = self.handle.route().get(ask).execute();
            let lists = self.all("routes", replies, |m| Some(default_route(&m)))?;
            found.extend(lists.into_iter().flatten());
        }
        found.sort_unstable();
        found.dedup();
        Ok(found)
    }

    /// The kind of the qdisc at a device's ingress hook: `clsact`, `ingress`, or none.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn ingress_qdisc(&self, ifindex: u32) -> Result<Option<String>, NetlinkError> {
        let replies = self.handle.qdisc().get().execute();
        let kinds = self.all("qdiscs", replies, |m| {
            let at_ingress = m.header.parent == TcHandle::INGRESS;
            let kind = m.attributes.iter().find_map(|attribute| match attribute {
                TcAttribute::Kind(kind) => Some(kind.clone()),
                _ => None,
            });
            kind.filter(|_| at_ingress && m.header.index == index(ifindex))
        })?;
        Ok(kinds.into_iter().next())
    }

    /// The filters on one device's clsact hooks.
    ///
    /// # Errors
    /// What the kernel says; a device without clsact has none.
    pub fn filters(&self, ifindex: u32) -> Result<Vec<Filter>, NetlinkError> {
        let mut found = Vec::new();
        for ingress in [true, false] {
            let handle = self.handle.clone();
            let ask = handle.traffic_filter(index(ifindex)).get();
            let ask = if ingress { ask.ingress() } else { ask.egress() };
            let list = self.all("filters", ask.execute(), |m| filter(&m, ingress));
            match list {
                Ok(list) => found.extend(list),
                // The device has gone, or has no such hook.
                Err(NetlinkError::Request { .. }) => {}
                Err(other) => return Err(other),
            }
        }
        Ok(found)
    }

    /// Removes one filter.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_filter(&self, ifindex: u32, filter: &Filter) -> Result<(), NetlinkError> {
        let mut message = TcMessage::with_index(index(ifindex));
        let minor = if filter.ingress { TcHandle::MIN_INGRESS } else { TcHandle::MIN_EGRESS };
        message.header.parent = TcHandle { major: 0xffff, minor };
        message.header.handle = filter.handle.into();
        message.header.info = (u32::from(filter.priority) << 16) | u32::from(filter.protocol);
        message.attributes.push(TcAttribute::Kind("bpf".to_owned()));
        self.acknowledged("remove a filter", RouteNetlinkMessage::DelTrafficFilter(message))
    }

    /// Removes a device's clsact qdisc with everything on it.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn delete_clsact(&self, ifindex: u32) -> Result<(), NetlinkError> {
        let mut message = TcMessage::with_index(index(ifindex));
        message.header.parent = TcHandle { major: 0xffff, minor: 0xfff1 };
        message.header.handle = TcHandle { major: 0xffff, minor: 0 };
        message.attributes.push(TcAttribute::Kind("clsact".to_owned()));
        self.acknowledged("remove clsact", RouteNetlinkMessage::DelQueueDiscipline(message))
    }

    fn acknowledged(
        &self,
        what: &'static str,
        message: RouteNetlinkMessage,
    ) -> Result<(), NetlinkError> {
        use rtnetlink::packet_core::{NLM_F_ACK, NLM_F_REQUEST};
        let mut request = NetlinkMessage::from(message);
        request.header.flags = NLM_F_REQUEST | NLM_F_ACK;
        let mut handle = self.handle.clone();
        self.runtime.block_on(async {
            let mut replies =
                handle.request(request).map_err(|source| NetlinkError::Request { what, source })?;
            while let Some(reply) = replies.next().await {
                if let NetlinkPayload::Error(e) = reply.payload
                    && e.code.is_some()
                {
                    let source = rtnetlink::Error::NetlinkError(e);
                    return Err(NetlinkError::Request { what, source });
                }
            }
            Ok(())
        })
    }
}

fn index(ifindex: u32) -> i32 {
    i32::try_from(ifindex).unwrap_or(i32::MAX)
}

fn device(message: &LinkMessage) -> Option<Device> {
    let mut device = Device {
        ifindex: message.header.index,
        name: String::new(),
        link: link_kind(message.header.link_layer_type),
        loopback: message.header.link_layer_type == LinkLayerType::Loopback,
        internal: false,
        hardware: false,
        carried: Carried::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::LinkInfo(infos) => {
                device.internal = infos
                    .iter()
                    .any(|info| matches!(info, LinkInfo::Kind(InfoKind::Veth | InfoKind::Bridge)));
            }
            LinkAttribute::ParentDevName(_) => device.hardware = true,
            LinkAttribute::Stats64(stats) => {
                device.carried = Carried {
                    rx_packets: stats.rx_packets,
                    rx_bytes: stats.rx_bytes,
                    tx_packets: stats.tx_packets,
                    tx_bytes: stats.tx_bytes,
                };
            }
            _ => {}
        }
    }
    (!device.name.is_empty()).then_some(device)
}

fn link_kind(layer: LinkLayerType) -> LinkKind {
    match layer {
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkKind::Ethernet,
        LinkLayerType::None | LinkLayerType::Rawip => LinkKind::Raw,
        _ => LinkKind::Other,
    }
}

/// The devices of a default route, none if the route is another.
fn default_route(message: &RouteMessage) -> Vec<u32> {
    let header = &message.header;
    if header.destination_prefix_length != 0 || header.kind != RouteType::Unicast {
        return Vec::new();
    }
    let mut devices = Vec::new();
    for attribute in &message.attributes {
        match attribute {
            RouteAttribute::Oif(ifindex) => devices.push(*ifindex),
            RouteAttribute::MultiPath(hops) => {
                devices.extend(hops.iter().map(|hop| hop.interface_index));
            }
            _ => {}
        }
    }
    devices
}

fn filter(message: &TcMessage, ingress: bool) -> Option<Filter> {
    let mut name = None;
    for attribute in &message.attributes {
        if let TcAttribute::Options(options) = attribute {
            name = name.or(options.iter().find_map(|option| match option {
                TcOption::Bpf(TcFilterBpfOption::ProgName(name)) => Some(name.clone()),
                _ => None,
            }));
        }
    }
    let handle = u32::from(message.header.handle);
    // Each priority has a heading of its own, without a handle.
    (handle != 0).then(|| Filter {
        ingress,
        priority: u16::try_from(message.header.info >> 16).unwrap_or(u16::MAX),
        protocol: u16::try_from(message.header.info & 0xffff).unwrap_or(0),
        handle,
        name,
    })
}

/// Starts a thread that calls `changed` whenever interfaces, addresses or default routes may have
/// changed, also when the kernel had to drop messages; until it returns false.
///
/// # Errors
/// What opening the socket or starting the thread says.
pub fn watch(changed: impl Fn() -> bool + Send + 'static) -> io::Result<()> {
    let runtime = Builder::new_current_thread().enable_io().build()?;
    let mut messages = subscribe(&runtime)?;
    std::thread::Builder::new().name("interfaces".to_owned()).stack_size(256 * 1024).spawn(
        move || {
            while runtime.block_on(forward(&mut messages, &changed)) {
                // The socket broke: whatever happened meanwhile is found by a new listing.
                messages = loop {
                    std::thread::sleep(REOPEN);
                    match subscribe(&runtime) {
                        Ok(messages) => break messages,
                        Err(error) => tracing::warn!(%error, "interfaces cannot be watched"),
                    }
                };
                if !changed() {
                    return;
                }
            }
        },
    )?;
    Ok(())
}

/// Time until a broken socket is opened anew.
const REOPEN: std::time::Duration = std::time::Duration::from_secs(1);

type Messages = Pin<Box<dyn Stream<Item = NetlinkPayload<RouteNetlinkMessage>> + Send>>;

fn subscribe(runtime: &Runtime) -> io::Result<Messages> {
    let groups = [
        MulticastGroup::Link,
        MulticastGroup::Ipv4Ifaddr,
        MulticastGroup::Ipv6Ifaddr,
        MulticastGroup::Ipv4Route,
        MulticastGroup::Ipv6Route,
    ];
    let _guard = runtime.enter();
    let (connection, _, messages) = rtnetlink::new_multicast_connection(&groups)?;
    runtime.spawn(connection);
    Ok(Box::pin(messages.map(|(message, _)| message.payload)))
}

/// Tells changes until the messages end (true) or nobody wants to know (false).
async fn forward(messages: &mut Messages, changed: &impl Fn() -> bool) -> bool {
    while let Some(payload) = messages.next().await {
        if concerns(&payload) && !changed() {
            return false;
        }
    }
    true
}

/// Whether a message can change which interfaces are uplinks.
fn concerns(payload: &NetlinkPayload<RouteNetlinkMessage>) -> bool {
    match payload {
        NetlinkPayload::InnerMessage(
            RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
        ) => route.header.destination_prefix_length == 0,
        _ => true,
    }
}
