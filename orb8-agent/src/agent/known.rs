//! Starts what identities are made of: the cgroup index, connection tracking, the watchers.

use std::sync::Arc;

use tracing::warn;

use super::AgentError;
use crate::cgroup::{self, Cgroups, Memberships, PodOf};
use crate::clock::Clock;
use crate::config::Settings;
use crate::conntrack::{self, Bounds, Tracking, Translations};
use crate::host::HostFacts;
use crate::k8s::identity::Knowledge;
use crate::k8s::registry::Registry;
use crate::k8s::status::State;
use crate::k8s::watch::{Prepared, Watchers};

/// What was started; it ends when this is dropped.
#[derive(Debug)]
pub(super) struct Running {
    /// Asks the API, when it is time.
    pub(super) watchers: Option<Prepared>,
    /// What they know.
    pub(super) known: Knowledge,
    /// Asks for what is in cgroups.
    pub(super) memberships: Memberships,
    /// What keeps it current.
    pub(super) keepers: Keepers,
}

/// What keeps knowledge current for as long as it is held.
#[derive(Debug, Default)]
pub(super) struct Keepers {
    _tracking: Option<Tracking>,
    pub(super) watchers: Option<Watchers>,
}

/// Starts everything but the watchers: what they send is to be seen, and known as our own. Nothing
/// here waits for the API or the kernel.
pub(super) async fn start(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    facts: &Arc<HostFacts>,
) -> Result<Running, AgentError> {
    let registry = Registry::shared(&settings.node_name, settings.max_pod_cache);
    let watchers = Prepared::new(&settings.kubernetes(), &registry, facts).await?;
    let memberships = memberships(settings, clock, &registry);
    let tracking = conntrack::start(Bounds::default(), &settings.proc_root, Arc::clone(clock));
    let tracking = tracking
        .inspect_err(|error| {
            warn!(%error, "Connection tracking cannot be read; Services are known by address alone.");
        })
        .ok();
    let translations = tracking.as_ref().map(|it| it.translations().clone());
    let known = Knowledge {
        kubernetes: registry.status().state != State::Off,
        registry,
        facts: Arc::clone(facts),
        cgroups: memberships.cgroups().clone(),
        translations: translations.unwrap_or_else(|| Translations::empty(0)),
    };
    let keepers = Keepers { _tracking: tracking, watchers: None };
    Ok(Running { watchers: Some(watchers), known, memberships, keepers })
}

/// What is known already, kept current by somebody else.
pub(super) fn given(known: Knowledge) -> Running {
    let memberships = Memberships::unanswered(known.cgroups.clone());
    Running { watchers: None, known, memberships, keepers: Keepers::default() }
}

fn memberships(
    settings: &Settings,
    clock: &Arc<dyn Clock>,
    registry: &Arc<Registry>,
) -> Memberships {
    let roots =
        cgroup::Roots { proc: settings.proc_root.clone(), cgroup: settings.cgroup_root.clone() };
    let registry = Arc::clone(registry);
    let pods: PodOf = Arc::new(move |uid| registry.pod_of_cgroup(uid));
    cgroup::start(&roots, Arc::clone(clock), pods).unwrap_or_else(|error| {
        warn!(%error, "The cgroup thread could not be started; flows carry no cgroup path.");
        Memberships::unanswered(Cgroups::default())
    })
}
