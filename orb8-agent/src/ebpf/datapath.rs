//! The kernel side as the rest of the agent sees it: settings in, `Datapath` out.

use std::any::Any;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::{Duration, Instant};

use globset::{Glob, GlobSet, GlobSetBuilder};
use orb8_common::network::{PacketFilter, Sparing};

use super::chain::ChainPolicy;
use super::kernel::{self, Kernel, KernelOptions, LINGER};
use super::lines::LineTimes;
use super::meter::Meter;
use super::ring::Decode;
use crate::datapath::{
    AttachMode, AttachRoute, Datapath, DatapathSettings, InterfaceStatus, PacketViewCounts,
    PacketWatch, RingGauges, SocketPlaneStatus, StartError, Started,
};
use crate::host::HostFacts;

/// How ring records become events; the features know.
#[derive(Clone, Copy, Debug)]
pub struct Decoders {
    /// Records of the lifecycle ring.
    pub flow: Decode,
    /// Records of the packet ring.
    pub packet: Decode,
}

/// Starts the kernel side.
///
/// # Errors
/// What is missing, and what to do about it.
pub fn start(
    settings: &DatapathSettings,
    facts: Arc<HostFacts>,
    decoders: Decoders,
) -> Result<Started, StartError> {
    let fail = |message: String| StartError { message };
    let options = KernelOptions {
        max_flows: settings.max_flows,
        memory_budget: settings.memory_budget,
        ring_bytes: settings.ring_buffer_bytes,
        route: match settings.attach {
            AttachMode::Auto => None,
            AttachMode::Tcx => Some(AttachRoute::Tcx),
            AttachMode::Clsact => Some(AttachRoute::Clsact),
        },
        planes: settings.planes.clone(),
        interfaces: globs(&settings.interfaces).map_err(|e| fail(e.to_string()))?,
        times: LineTimes {
            drain_interval: settings.drain_interval,
            idle_timeout: settings.flow_timeout,
            linger: LINGER.min(settings.flow_timeout),
        },
        chain: ChainPolicy::default(),
        fault_bytes: 0,
        decode_event: decoders.flow,
        decode_packet: decoders.packet,
    };
    let started = kernel::start(&options, facts).map_err(|e| fail(with_causes(&e)))?;
    let handle = Arc::new_cyclic(|me| TcDatapath {
        me: Weak::clone(me),
        has_interfaces: settings.planes.has_interfaces(),
        kernel: started.kernel,
        views: Mutex::new(Views::default()),
    });
    Ok(Started { sources: started.sources, handle })
}

/// An error with the causes below it that it does not tell itself: what the kernel answered is at
/// the bottom.
fn with_causes(error: &dyn std::error::Error) -> String {
    let mut message = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let said = error.to_string();
        if !message.contains(&said) {
            message = format!("{message}: {said}");
        }
        cause = error.source();
    }
    message
}

fn globs(patterns: &[String]) -> Result<GlobSet, globset::Error> {
    let mut set = GlobSetBuilder::new();
    for pattern in patterns {
        set.add(Glob::new(pattern)?);
    }
    set.build()
}

/// The running kernel side and the packet views that are open.
#[derive(Debug)]
struct TcDatapath {
    me: Weak<Self>,
    has_interfaces: bool,
    kernel: Kernel,
    views: Mutex<Views>,
}

/// The packet views that are open.
#[derive(Debug, Default)]
struct Views {
    open: Vec<View>,
    /// What they ask for together, as the kernel was told last.
    filter: Option<PacketFilter>,
    /// How often that has changed: what was sampled away before was let through by another filter, and
    /// no packet of now stands for it.
    number: u32,
}

impl Views {
    /// What the kernel is to let through for all of them; none if none is open.
    fn together(&mut self) -> Option<PacketFilter> {
        let first = self.open.first().map(|view| view.filter);
        let alike = self.open.iter().all(|view| Some(view.filter) == first);
        let filter = if alike { first } else { Some(PacketFilter::default()) };
        if filter != self.filter {
            (self.filter, self.number) = (filter, self.number.wrapping_add(1));
        }
        filter.map(|filter| PacketFilter { view: self.number, ..filter })
    }
}

/// What one reader of packets asked for.
#[derive(Clone, Copy, Debug)]
struct View {
    number: u64,
    filter: PacketFilter,
    rate: u32,
}

impl TcDatapath {
    fn views(&self) -> MutexGuard<'_, Views> {
        self.views.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Sets the kernel's filter to what all readers together ask for.
    fn apply(&self, views: &mut Views) -> Result<(), StartError> {
        let Some(filter) = views.together() else {
            self.kernel.close_packet_view();
            self.kernel.meter().rings().close_packets();
            return Ok(());
        };
        self.kernel.meter().rings().open_packets();
        let rate = views.open.iter().fold(0u32, |sum, v| sum.saturating_add(v.rate));
        self.kernel
            .open_packet_view(filter, rate)
            .map_err(|e| StartError { message: format!("open the packet view: {e}") })
    }

    fn close(&self, number: u64) {
        let mut views = self.views();
        views.open.retain(|v| v.number != number);
        if let Err(error) = self.apply(&mut views) {
            tracing::warn!(%error, "the packet view could not be narrowed");
        }
    }
}

impl Datapath for TcDatapath {
    fn interfaces(&self) -> Vec<InterfaceStatus> {
        self.kernel.state().interfaces.clone()
    }

    fn socket_plane(&self) -> Option<SocketPlaneStatus> {
        self.kernel.state().socket_plane.clone()
    }

    fn map_bytes(&self) -> u64 {
        self.kernel.map_bytes()
    }

    fn watch_packets(
        &self,
        filter: &PacketFilter,
        rate: u32,
    ) -> Result<Box<dyn PacketWatch>, StartError> {
        if !self.has_interfaces {
            let message = "packets are shown at interfaces, and the agent counts at sockets alone: start it with --capture auto or tc";
            return Err(StartError { message: message.to_owned() });
        }
        let mut views = self.views();
        let number = views.open.iter().map(|v| v.number).max().map_or(0, |n| n + 1);
        let before = self.kernel.packet_view_counts();
        views.open.push(View { number, filter: *filter, rate });
        if let Err(error) = self.apply(&mut views) {
            views.open.pop();
            // The kernel has what it had; the number may move on.
            views.together();
            return Err(error);
        }
        let datapath = Weak::clone(&self.me);
        Ok(Box::new(OpenView { datapath, number, before }))
    }

    fn spare(&self, sparing: Sparing) -> io::Result<()> {
        self.kernel.meter().spare(sparing)
    }

    fn rings(&self) -> Option<Arc<RingGauges>> {
        Some(self.kernel.meter().rings())
    }

    fn packet_view(&self) -> PacketViewCounts {
        self.kernel.packet_view_counts()
    }

    fn program_time(&self) -> Option<Duration> {
        self.kernel.meter().program_time()
    }

    fn keep_statistics(&self) -> io::Result<Box<dyn Any + Send>> {
        Meter::keep_statistics()
    }

    fn stop(&self, deadline: Instant) -> bool {
        self.kernel.stop(deadline)
    }
}

/// Closes its view when it is dropped.
struct OpenView {
    datapath: Weak<TcDatapath>,
    number: u64,
    before: PacketViewCounts,
}

impl OpenView {
    fn now(&self) -> PacketViewCounts {
        self.datapath.upgrade().map_or(self.before, |datapath| datapath.kernel.packet_view_counts())
    }
}

impl PacketWatch for OpenView {
    fn skipped(&self) -> u64 {
        let now = self.now();
        (now.rate_limited - self.before.rate_limited) + (now.ring_full - self.before.ring_full)
    }

    fn sampled(&self) -> u64 {
        // What was sampled away before may have a packet to stand for it since.
        self.now().untold.saturating_sub(self.before.untold)
    }
}

impl Drop for OpenView {
    fn drop(&mut self) {
        if let Some(datapath) = self.datapath.upgrade() {
            datapath.close(self.number);
        }
    }
}

#[cfg(test)]
mod tests {
    use aya::maps::MapError;

    use orb8_common::network::PacketFilter;

    use super::super::load::LoadError;
    use super::{View, Views, with_causes};

    #[test]
    fn packets_of_one_filter_never_stand_for_those_of_another() {
        let of_port = |port| PacketFilter { port: [0, port], ..PacketFilter::default() };
        let view = |number, port| View { number, filter: of_port(port), rate: 1 };
        let mut views = Views::default();
        let mut change = |open: Vec<View>| {
            views.open = open;
            views.together().map(|filter| (filter.port[1], filter.view))
        };
        assert_eq!(change(vec![view(0, 80)]), Some((80, 1)));
        assert_eq!(change(vec![view(0, 80), view(1, 80)]), Some((80, 1)));
        assert_eq!(change(vec![view(0, 80), view(1, 53)]), Some((0, 2)));
        assert_eq!(change(vec![view(1, 53)]), Some((53, 3)));
        assert_eq!(change(Vec::new()), None);
        assert_eq!(change(vec![view(2, 53)]), Some((53, 5)));
    }

    #[test]
    fn what_the_kernel_answered_is_told_once_and_last() {
        let io_error = std::io::Error::from_raw_os_error(libc::EPERM);
        let map = MapError::CreateError { name: "LINES".to_owned(), io_error };
        assert_eq!(
            with_causes(&LoadError::Load(map.into())),
            "load the probes: map error: failed to create map `LINES`: Operation not permitted (os error 1)"
        );
        let only = std::io::Error::from_raw_os_error(libc::EPERM);
        assert_eq!(with_causes(&only), "Operation not permitted (os error 1)");
    }
}
