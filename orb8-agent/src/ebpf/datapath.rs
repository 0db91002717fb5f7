//! The kernel side as the rest of the agent sees it: settings in, `Datapath` out.

use std::any::Any;
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
    /// How often one was opened after none was: what was sampled away before belongs to no view of
    /// now.
    number: u32,
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
    fn apply(&self, views: &Views) -> Result<(), StartError> {
        let Some(first) = views.open.first() else {
            self.kernel.close_packet_view();
            return Ok(());
        };
        let alike = views.open.iter().all(|v| v.filter == first.filter);
        let filter = if alike { first.filter } else { PacketFilter::default() };
        let filter = PacketFilter { view: views.number, ..filter };
        let rate = views.open.iter().fold(0u32, |sum, v| sum.saturating_add(v.rate));
        self.kernel
            .open_packet_view(filter, rate)
            .map_err(|e| StartError { message: format!("open the packet view: {e}") })
    }

    fn close(&self, number: u64) {
        let mut views = self.views();
        views.open.retain(|v| v.number != number);
        if let Err(error) = self.apply(&views) {
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
        if views.open.is_empty() {
            views.number = views.number.wrapping_add(1);
        }
        views.open.push(View { number, filter: *filter, rate });
        if let Err(error) = self.apply(&views) {
            views.open.pop();
            return Err(error);
        }
        let datapath = Weak::clone(&self.me);
        Ok(Box::new(OpenView { datapath, number, before }))
    }

    fn spare(&self, sparing: Sparing) {
        self.kernel.meter().spare(sparing);
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

    fn keep_statistics(&self) -> Option<Box<dyn Any + Send>> {
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

impl PacketWatch for OpenView {
    fn skipped(&self) -> u64 {
        let Some(datapath) = self.datapath.upgrade() else { return 0 };
        let now = datapath.kernel.packet_view_counts();
        (now.rate_limited - self.before.rate_limited) + (now.ring_full - self.before.ring_full)
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

    use super::super::load::LoadError;
    use super::with_causes;

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
