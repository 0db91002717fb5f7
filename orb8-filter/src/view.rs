//! What a filter asks of a flow. Whoever keeps flows implements this over its own rows; nothing here
//! copies, and nothing may allocate.
//!
//! Text that lives as long as the row is lent out; what may change under a lock while the row lives
//! (owner, labels, zone, containers) is asked through a closure, so that the lock is held only for the
//! comparison. An empty text means: not known, or there is none.

use std::collections::HashMap;
use std::net::IpAddr;
use std::sync::Arc;

/// One of the two ends of a flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// The sender of the packets.
    Source,
    /// Their receiver.
    Destination,
}

/// A flow, as a filter sees it.
pub trait FlowView {
    /// One end of it.
    type End<'a>: EndView
    where
        Self: 'a;

    /// Who is at an end.
    fn end(&self, end: End) -> Self::End<'_>;
    /// The address of an end.
    fn address(&self, end: End) -> Option<IpAddr>;
    /// The port of an end; none for protocols without ports and for later fragments.
    fn port(&self, end: End) -> Option<u16>;
    /// The IP protocol number.
    fn protocol(&self) -> Option<u8>;
    /// The name of the interface it was counted at.
    fn interface(&self) -> &str;
    /// As `NetworkFlow.direction`.
    fn direction(&self) -> &str;
    /// As `NetworkFlow.scope`.
    fn scope(&self) -> &str;
    /// As `NetworkFlow.state`.
    fn state(&self) -> &str;
    /// As `NetworkFlow.plane`.
    fn plane(&self) -> &str;
    /// As `NetworkFlow.supplement`.
    fn supplement(&self) -> bool;
    /// Namespace and name of the Service that was asked for.
    fn service(&self) -> Option<(&str, &str)>;
    /// As `ServiceUse.verdict`.
    fn verdict(&self) -> &str;
    /// Namespace and name of the pod that owns the flow, both empty if none does.
    fn owner(&self) -> (&str, &str);
}

/// One end of a flow, as a filter sees it.
pub trait EndView {
    /// As `Endpoint.kind`.
    fn kind(&self) -> &str;
    /// As `Endpoint.attribution`.
    fn attribution(&self) -> &str;
    /// Namespace of the pod or Service.
    fn namespace(&self) -> &str;
    /// Name of the pod.
    fn pod(&self) -> &str;
    /// Name of the Service, if the end is one.
    fn service(&self) -> &str;
    /// Name of the node that it is on, or is.
    fn node(&self) -> &str;
    /// The container's id as its runtime writes it.
    fn container_id(&self) -> &str;
    /// Name (comm) of the process.
    fn comm(&self) -> &str;
    /// Path of the cgroup below the cgroup2 mount.
    fn cgroup(&self) -> &str;
    /// Asks with kind and name of the top owner; false, without asking, if it is not known.
    fn workload(&self, ask: impl FnOnce(&str, &str) -> bool) -> bool;
    /// Asks with the container's name; false, without asking, if it is not known.
    fn container(&self, ask: impl FnOnce(&str) -> bool) -> bool;
    /// Asks with the node's zone; false, without asking, if it is not known.
    fn zone(&self, ask: impl FnOnce(&str) -> bool) -> bool;
    /// Asks with the pod's labels, [`Unlabelled`] if it has none; false, without asking, if they are
    /// not known.
    fn labels(&self, ask: impl FnOnce(&dyn LabelView) -> bool) -> bool;
}

/// Labels of one pod.
pub trait LabelView {
    /// The value of a label, if the pod has it.
    fn get(&self, key: &str) -> Option<&str>;
}

/// Of a pod that is known to have no labels: to it `!app` and `app!=web` apply.
#[derive(Clone, Copy, Debug)]
pub struct Unlabelled;

impl LabelView for Unlabelled {
    fn get(&self, _key: &str) -> Option<&str> {
        None
    }
}

impl LabelView for HashMap<String, String> {
    fn get(&self, key: &str) -> Option<&str> {
        HashMap::get(self, key).map(String::as_str)
    }
}

/// Sorted by key.
impl LabelView for Arc<[(Arc<str>, Arc<str>)]> {
    fn get(&self, key: &str) -> Option<&str> {
        let index = self.binary_search_by(|(name, _)| (**name).cmp(key)).ok()?;
        Some(&self[index].1)
    }
}
