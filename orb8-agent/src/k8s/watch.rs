//! Six lists and six watches, kept up for as long as the agent runs.
//!
//! Each resource has a task of its own: list in pages, watch from there, and after a cut watch on
//! from the last version that was heard. Only where the API no longer has that version is listed
//! again. Failures are said in the registry's health; nothing here ever ends the agent.
//!
//! kube's own watcher is not used: it hides bookmarks and requests, begins a list anew when one page
//! fails, and forgets `Retry-After`.

mod decode;
mod pace;

use std::sync::Arc;
use std::time::Duration;

use http::{HeaderValue, Request, header};
use http_body_util::BodyExt;
use kube::client::Body;
use kube::core::Request as Path;
use kube::core::params::{ListParams, WatchParams};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, timeout};

use crate::clock::Clock;
use crate::host::HostFacts;
use crate::k8s::client::{AskError, ConnectError, Connection, connect};
use crate::k8s::registry::{Registry, Seen};
use crate::k8s::status::{Resource, State};
use crate::k8s::{KubernetesSettings, Mode};
use decode::{Lines, Page};
use pace::{Backoff, within};

pub use pace::Pace;

/// A watch that the API server should have ended is given up after this much more.
const OVERDUE: Duration = Duration::from_secs(10);

/// Objects that are read in one go, before other tasks get their turn.
const BATCH: usize = 32;

/// Says that a watch told nothing at all, not even a bookmark.
const SILENT: &str =
    "a whole watch told nothing, as after a restore of the API's store; listing anew";

/// Watches that are refused in a row before all is listed anew: the version itself may be at fault.
const REFUSED_AT_MOST: u32 = 5;

/// What a watch told before it ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Heard {
    Nothing,
    /// An event, or a bookmark at least.
    Something,
    /// The same, and the time that it was asked for ran out: the API server tells everything before
    /// it ends a watch for that. One that shuts down ends it alike and does not.
    Everything,
}

impl Heard {
    /// What an end after so long makes of it, of a watch that was `asked` for so long.
    fn at_end(self, lasted: Duration, asked: Duration) -> Self {
        if self == Self::Something && lasted >= whole_seconds(asked) {
            Self::Everything
        } else {
            self
        }
    }
}

/// The running watchers; dropping it ends them.
#[derive(Debug)]
pub struct Watchers {
    _tasks: JoinSet<()>,
}

impl Watchers {
    /// Starts them on the current tokio runtime. Returns at once, whatever state the API is in.
    #[must_use]
    pub fn start(
        connection: &Connection,
        registry: &Arc<Registry>,
        clock: &Arc<dyn Clock>,
        pace: &Pace,
    ) -> Self {
        registry.health().on(&connection.server);
        let mut tasks = JoinSet::new();
        for resource in Resource::ALL {
            let watcher = Watcher {
                resource,
                connection: connection.clone(),
                registry: Arc::clone(registry),
                clock: Arc::clone(clock),
                pace: pace.clone(),
                backoff: Backoff::default(),
                heard_ns: 0,
            };
            tasks.spawn(watcher.run());
        }
        Self { _tasks: tasks }
    }
}

/// Watchers that could be started.
#[derive(Debug)]
pub struct Prepared {
    connection: Option<Connection>,
}

impl Prepared {
    /// Does as the settings say, and asks the API nothing yet. Where it will not be asked at all, the
    /// registry's health says why. Sockets of the connections to come are noted in `facts`.
    ///
    /// # Errors
    /// Kubernetes is asked for, and there is no way to it.
    pub async fn new(
        settings: &KubernetesSettings,
        registry: &Registry,
        facts: &Arc<HostFacts>,
    ) -> Result<Self, ConnectError> {
        let off = |reason: &str| {
            registry.health().off(reason);
            Ok(Self { connection: None })
        };
        if settings.mode == Mode::Off {
            return off("ORB8_KUBERNETES is off");
        }
        match connect(&settings.kubeconfig, facts).await {
            Ok(connection) => {
                registry.health().on(&connection.server);
                Ok(Self { connection: Some(connection) })
            }
            Err(error) if settings.mode == Mode::On => Err(error),
            Err(error @ ConnectError::NotInCluster(_)) => {
                tracing::info!(reason = %error, "no Kubernetes here");
                off(&error.to_string())
            }
            Err(error) => {
                tracing::warn!(reason = %error, "Kubernetes is not asked");
                off(&error.to_string())
            }
        }
    }

    /// Starts them, unless nobody is to be asked.
    #[must_use]
    pub fn start(self, registry: &Arc<Registry>, clock: &Arc<dyn Clock>) -> Option<Watchers> {
        let connection = self.connection?;
        Some(Watchers::start(&connection, registry, clock, &Pace::default()))
    }
}

struct Watcher {
    resource: Resource,
    connection: Connection,
    registry: Arc<Registry>,
    clock: Arc<dyn Clock>,
    pace: Pace,
    backoff: Backoff,
    /// Everything that happened before this has been told.
    heard_ns: u64,
}

impl Watcher {
    async fn run(mut self) {
        sleep(within(self.pace.first_within)).await;
        loop {
            let version = self.list().await;
            let error = self.watch_from(version).await;
            self.failed(&error);
            sleep(within(self.pace.relist_within)).await;
        }
    }

    /// Lists until it has all pages, and gives back the version that they are of.
    async fn list(&mut self) -> String {
        loop {
            match self.list_once().await {
                Ok(version) => {
                    self.backoff.reset();
                    return version;
                }
                Err(error) => self.wait_after(&error).await,
            }
        }
    }

    /// Lists all pages. A page that fails is asked for again, unless it is gone.
    async fn list_once(&mut self) -> Result<String, AskError> {
        let heard_before_ns = self.heard_ns;
        let begun_ns = self.clock.monotonic_ns();
        let mut next: Option<String> = None;
        self.registry.begin_list(self.resource);
        loop {
            let bytes = match self.ask_page(next.clone()).await {
                Ok(bytes) => bytes,
                Err(AskError::Gone(message)) => return Err(AskError::Gone(message)),
                Err(error) => {
                    self.wait_after(&error).await;
                    continue;
                }
            };
            let page = Page::read(&bytes)?;
            self.hear();
            let seen = self.seen(heard_before_ns);
            for objects in page.objects().chunks(BATCH) {
                for object in objects {
                    if decode::apply(&self.registry, self.resource, object, seen).is_err() {
                        self.registry.reject();
                    }
                }
                tokio::task::yield_now().await;
            }
            next = page.next();
            if next.is_none() {
                let version = page.version().ok_or_else(|| {
                    AskError::Unreadable("the list has no resourceVersion".to_owned())
                })?;
                self.registry.end_list(self.resource, self.seen(heard_before_ns));
                self.heard_ns = begun_ns;
                self.caught_up();
                return Ok(version);
            }
        }
    }

    async fn ask_page(&self, next: Option<String>) -> Result<Vec<u8>, AskError> {
        let params = ListParams {
            limit: Some(self.pace.page),
            continue_token: next,
            ..ListParams::default()
        };
        let request = self.prepared(self.path().list(&params), "List")?;
        self.registry.health().update(self.resource, |status| status.lists += 1);
        self.connection.ask_whole(request).await
    }

    /// Watches from a version on, through cuts, and gives back why that is no longer possible.
    async fn watch_from(&mut self, mut version: String) -> AskError {
        let mut refused = 0;
        loop {
            let begun = Instant::now();
            let error = match self.watch_once(&mut version).await {
                Ok(Heard::Everything) => {
                    self.heard_ns = self.clock.monotonic_ns();
                    continue;
                }
                Ok(Heard::Something) if begun.elapsed() >= self.pace.watch_for => continue,
                Ok(Heard::Nothing) if begun.elapsed() >= self.pace.watch_for => {
                    return AskError::Gone(SILENT.to_owned());
                }
                Ok(_) => AskError::Broken("the watch was ended early".to_owned()),
                Err(error @ (AskError::Gone(_) | AskError::Unreadable(_))) => return error,
                Err(error) => error,
            };
            refused = if matches!(error, AskError::Refused { .. }) { refused + 1 } else { 0 };
            if refused >= REFUSED_AT_MOST {
                return error;
            }
            self.wait_after(&error).await;
        }
    }

    /// One watch, to its end. Moves `version` along.
    async fn watch_once(&mut self, version: &mut String) -> Result<Heard, AskError> {
        let asked = self.pace.watch_for + within(self.pace.watch_for / 4);
        let begun = Instant::now();
        let mut body = self.ask_watch(version, asked).await?;
        let (opened, cut_ns) = (Instant::now(), self.heard_ns);
        let mut is_behind = true;
        let mut lines = Lines::default();
        let mut heard = Heard::Nothing;
        loop {
            let behind = self.pace.catch_up.saturating_sub(opened.elapsed());
            if is_behind && behind.is_zero() {
                is_behind = false;
                self.caught_up();
            }
            let left = (asked + OVERDUE).saturating_sub(opened.elapsed());
            let wait = if is_behind { behind.min(left) } else { left };
            let frame = match timeout(wait, body.frame()).await {
                Err(_elapsed) if is_behind => continue,
                Err(_elapsed) => return Err(AskError::Slow(asked + OVERDUE)),
                Ok(None) => return Ok(heard.at_end(begun.elapsed(), asked)),
                Ok(Some(Err(error))) => return Err(AskError::Broken(error.to_string())),
                Ok(Some(Ok(frame))) => frame,
            };
            let Some(data) = frame.data_ref() else { continue };
            lines.add(data)?;
            while let Some(line) = lines.next() {
                let is_late = opened.elapsed() < self.pace.catch_up;
                let seen = if is_late { self.seen(cut_ns) } else { self.seen(u64::MAX) };
                let told = decode::apply_event(&self.registry, self.resource, line, seen)?;
                if !told.is_empty() {
                    *version = told;
                }
                heard = Heard::Something;
                self.hear();
                self.backoff.reset();
            }
        }
    }

    async fn ask_watch(&self, version: &str, asked: Duration) -> Result<Body, AskError> {
        let seconds = u32::try_from(whole_seconds(asked).as_secs()).unwrap_or(u32::MAX);
        let params =
            WatchParams { timeout: Some(seconds), bookmarks: true, ..WatchParams::default() };
        let mut request = self.prepared(self.path().watch(&params, version), "")?;
        // API servers from 1.37 on compress each event of a watch as a stream of its own.
        let identity = HeaderValue::from_static("identity");
        request.headers_mut().insert(header::ACCEPT_ENCODING, identity);
        self.registry.health().update(self.resource, |status| status.watches += 1);
        Ok(self.connection.ask(request).await?.into_body())
    }

    fn path(&self) -> Path {
        let name = self.resource.name();
        match self.resource.group() {
            "" => Path::new(format!("/api/v1/{name}")),
            group => Path::new(format!("/apis/{group}/v1/{name}")),
        }
    }

    /// The request, for metadata alone where that is all that is of use.
    fn prepared(
        &self,
        request: Result<Request<Vec<u8>>, kube::core::request::Error>,
        list: &str,
    ) -> Result<Request<Vec<u8>>, AskError> {
        let mut request = request.map_err(|error| AskError::Unreadable(error.to_string()))?;
        let json = match self.resource {
            Resource::ReplicaSets | Resource::Jobs => format!(
                "application/json;as=PartialObjectMetadata{list};g=meta.k8s.io;v=v1,application/json"
            ),
            Resource::Pods | Resource::Nodes | Resource::Services | Resource::EndpointSlices => {
                "application/json".to_owned()
            }
        };
        if let Ok(accept) = HeaderValue::from_str(&json) {
            request.headers_mut().insert(header::ACCEPT, accept);
        }
        Ok(request)
    }

    fn seen(&self, since_ns: u64) -> Seen {
        let at_ns = self.clock.monotonic_ns();
        Seen::late(at_ns, since_ns.min(at_ns), self.clock.unix_offset_ns())
    }

    /// The API told something just now.
    fn hear(&mut self) {
        self.heard_ns = self.clock.monotonic_ns();
        let heard_ns = self.heard_ns;
        self.registry.health().update(self.resource, |status| status.last_heard_ns = heard_ns);
    }

    /// Everything that happened until now has been told.
    fn caught_up(&self) {
        self.registry.regain_touch(self.resource);
        let mut was = State::Synced;
        self.registry.health().update(self.resource, |status| {
            was = std::mem::replace(&mut status.state, State::Synced);
            status.reason.clear();
        });
        if was != State::Synced {
            tracing::info!(resource = self.resource.name(), "watching the Kubernetes API");
        }
    }

    fn failed(&self, error: &AskError) {
        let (resource, reason) = (self.resource, self.reason(error));
        self.registry.lose_touch(resource, self.heard_ns);
        let mut is_new = false;
        self.registry.health().update(resource, |status| {
            status.errors += 1;
            is_new = status.reason != reason;
            status.state = match (error, status.state) {
                (AskError::Forbidden(_) | AskError::Unauthorized(_), _) => State::Forbidden,
                (_, State::Synced | State::Stale) => State::Stale,
                (_, State::Forbidden) if status.last_heard_ns > 0 => State::Stale,
                (_, _) => State::Unreachable,
            };
            status.reason.clone_from(&reason);
        });
        if is_new {
            tracing::warn!(
                resource = resource.name(),
                reason,
                "the Kubernetes API does not answer"
            );
        }
    }

    /// What went wrong, and the next step where one is known.
    fn reason(&self, error: &AskError) -> String {
        let (name, group) = (self.resource.name(), self.resource.group());
        match error {
            AskError::Forbidden(message) => format!(
                "{message}; grant list and watch on {name} in API group \"{group}\" to the agent's ClusterRole"
            ),
            AskError::Broken(message) => {
                format!("{message}; is {} reachable from this node?", self.connection.server)
            }
            AskError::Unauthorized(message) => format!(
                "the credentials are refused ({message}); renew the service account's token or the kubeconfig"
            ),
            AskError::Gone(_)
            | AskError::Refused { .. }
            | AskError::Slow(_)
            | AskError::Unreadable(_) => error.to_string(),
        }
    }

    async fn wait_after(&mut self, error: &AskError) {
        self.failed(error);
        let wait = match error {
            AskError::Forbidden(_) => self.pace.forbidden + within(self.pace.forbidden / 4),
            AskError::Refused { retry_after: Some(asked), .. } => {
                (*asked + within(*asked)).max(self.backoff.next(&self.pace))
            }
            AskError::Gone(_)
            | AskError::Unauthorized(_)
            | AskError::Refused { .. }
            | AskError::Broken(_)
            | AskError::Slow(_)
            | AskError::Unreadable(_) => self.backoff.next(&self.pace),
        };
        sleep(wait).await;
    }
}

/// As much of a time as the API can be asked for.
fn whole_seconds(asked: Duration) -> Duration {
    Duration::from_secs(asked.as_secs().max(1))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_watch_has_told_everything_if_it_ended_because_its_time_ran_out() {
        let (asked, early) = (Duration::from_millis(290_700), Duration::from_millis(289_999));
        let whole = Duration::from_secs(290);
        assert_eq!(Heard::Something.at_end(whole, asked), Heard::Everything);
        assert_eq!(Heard::Something.at_end(early, asked), Heard::Something, "a shutdown");
        assert_eq!(Heard::Nothing.at_end(whole, asked), Heard::Nothing);
    }
}
