//! rtnetlink requests as plain functions, for threads that may wait. Never decides what to do with
//! the answers.

use std::io;
use std::net::IpAddr;

use futures_util::{Stream, StreamExt as _};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{AddressAttribute, AddressScope};
use netlink_packet_route::link::{
    InfoData, InfoGeneve, InfoKind, InfoVxlan, LinkAttribute, LinkInfo, LinkLayerType, LinkMessage,
};
use netlink_packet_route::tc::{TcAttribute, TcFilterBpfOption, TcHandle, TcMessage, TcOption};
use rtnetlink::Handle;
use rtnetlink::packet_core::{NetlinkMessage, NetlinkPayload};
use tokio::runtime::{Builder, Runtime};

use crate::datapath::LinkKind;

mod routes;
mod watch;

pub use routes::{HardwareAddress, Neighbours, Routes, bits};
pub use watch::{Changed, watch};

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
    /// Bridge: its ports carry the same packets.
    pub bridge: bool,
    /// One end of a pair.
    pub veth: bool,
    /// Id, in this network namespace, of the one that the other end is in, if that is another.
    pub peer_netns: Option<u32>,
    /// ifindex of the bridge that it is a port of.
    pub controller: Option<u32>,
    /// UDP port of the tunnel whose inside it is.
    pub tunnel_port: Option<u16>,
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

/// An address of this host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Address {
    /// The device that has it.
    pub ifindex: u32,
    /// The address.
    pub ip: IpAddr,
    /// Bits that it has in common with its neighbours.
    pub prefix: u8,
    /// Known outside the link.
    pub global: bool,
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

    /// Every address of this host.
    ///
    /// # Errors
    /// What the kernel says.
    pub fn addresses(&self) -> Result<Vec<Address>, NetlinkError> {
        self.all("addresses", self.handle.address().get().execute(), |m| {
            let (ifindex, prefix) = (m.header.index, m.header.prefix_len);
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
            local.or(address).map(|ip| Address { ifindex, ip, prefix, global })
        })
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
        bridge: false,
        veth: false,
        peer_netns: None,
        controller: None,
        tunnel_port: None,
        hardware: false,
        carried: Carried::default(),
    };
    for attribute in &message.attributes {
        match attribute {
            LinkAttribute::IfName(name) => device.name.clone_from(name),
            LinkAttribute::LinkInfo(infos) => {
                let is = |kind: &InfoKind| {
                    infos.iter().any(|info| matches!(info, LinkInfo::Kind(of) if of == kind))
                };
                device.bridge = is(&InfoKind::Bridge);
                device.veth = is(&InfoKind::Veth);
                device.tunnel_port = infos.iter().find_map(tunnel_port);
            }
            // Below zero: the namespace has no id here.
            LinkAttribute::LinkNetNsId(id) => device.peer_netns = u32::try_from(*id).ok(),
            LinkAttribute::Controller(ifindex) => device.controller = Some(*ifindex),
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

fn tunnel_port(info: &LinkInfo) -> Option<u16> {
    match info {
        LinkInfo::Data(InfoData::Vxlan(facts)) => facts.iter().find_map(|fact| match fact {
            InfoVxlan::Port(port) => Some(*port),
            _ => None,
        }),
        LinkInfo::Data(InfoData::Geneve(facts)) => facts.iter().find_map(|fact| match fact {
            InfoGeneve::Port(port) => Some(*port),
            _ => None,
        }),
        _ => None,
    }
}

fn link_kind(layer: LinkLayerType) -> LinkKind {
    match layer {
        LinkLayerType::Ether | LinkLayerType::Loopback => LinkKind::Ethernet,
        LinkLayerType::None | LinkLayerType::Rawip => LinkKind::Raw,
        _ => LinkKind::Other,
    }
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
