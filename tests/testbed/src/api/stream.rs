//! Watches: what changed since a version, then what changes, as one JSON object a line.

use std::sync::Arc;
use std::time::Duration;

use hyper::body::Bytes;
use serde_json::json;
use tokio::sync::mpsc;
use tokio::time::Instant;

use super::answer::{status_object, whole};
use super::fault::Faults;
use super::request::{Query, Shape};
use super::store::{Change, Compacted, Happened, Object, Resource, Store};

/// Events on their way to one client; a slower one makes its watch wait.
pub(super) const QUEUE: usize = 256;
/// Time between two bookmarks, as the real server has it.
const BOOKMARK: Duration = Duration::from_secs(60);
/// How often a stalled watch looks whether it may go on.
const LOOK: Duration = Duration::from_millis(20);

/// One watch.
pub(super) struct Watch {
    pub(super) store: Arc<Store>,
    pub(super) faults: Arc<Faults>,
    pub(super) resource: &'static Resource,
    pub(super) namespace: Option<String>,
    pub(super) query: Query,
    pub(super) shape: Shape,
    pub(super) out: mpsc::Sender<Bytes>,
    /// Tells when all watches are to send a bookmark.
    pub(super) bookmarks: tokio::sync::watch::Receiver<u64>,
}

/// The client is gone, or the watch has come to its end.
struct Ended;

impl Watch {
    /// Runs until the client is gone or the time is over.
    pub(super) async fn run(mut self) {
        // Without a time of its own, a watch lasts as long as the server's longest.
        let end = Instant::now() + self.query.timeout.unwrap_or(Duration::from_secs(3600));
        let Ok(mut at) = self.begin().await else { return };
        let mut moved = self.store.moved();
        let mut next_bookmark = Instant::now() + BOOKMARK;
        let (mut owed, mut over) = (false, false);
        loop {
            moved.borrow_and_update();
            self.wait_while_stalled().await;
            match self.store.since(self.resource, at) {
                Err(Compacted(oldest)) => return drop(self.too_old(at, oldest).await),
                Ok((changes, version)) => {
                    if self.tell(&changes).await.is_err() {
                        return;
                    }
                    at = version;
                }
            }
            // A bookmark says that all before it was told, so it comes after that.
            if std::mem::take(&mut owed) && self.bookmark(at, false).await.is_err() || over {
                return;
            }
            tokio::select! {
                changed = moved.changed() => if changed.is_err() { return },
                () = self.out.closed() => return,
                // The last word is a bookmark, so that the next watch starts here.
                () = tokio::time::sleep_until(end) => (owed, over) = (true, true),
                () = tokio::time::sleep_until(next_bookmark) => {
                    owed = true;
                    next_bookmark = Instant::now() + BOOKMARK;
                }
                asked = self.bookmarks.changed() => {
                    if asked.is_err() { return }
                    owed = true;
                }
            }
        }
    }

    /// Sends what stands before the changes; the version from which these are to be told.
    async fn begin(&mut self) -> Result<u64, Ended> {
        self.bookmarks.borrow_and_update();
        let from = self.query.resource_version.clone();
        if !self.query.initial_events
            && let Ok(version @ 1..) = from.parse::<u64>()
        {
            return Ok(version);
        }
        let snapshot = self.store.list(self.resource);
        for object in snapshot.objects.iter() {
            if self.query.wants(self.namespace.as_deref(), object) {
                self.event("ADDED", object).await?;
            }
        }
        if self.query.initial_events {
            self.bookmark(snapshot.version, true).await?;
        }
        Ok(snapshot.version)
    }

    async fn wait_while_stalled(&self) {
        while self.faults.switches().stalled {
            tokio::time::sleep(LOOK).await;
        }
    }

    /// Tells changes as they look through the selector: what begins to match is new, what ends to
    /// match is gone.
    async fn tell(&self, changes: &[Change]) -> Result<(), Ended> {
        let wants = |object: &Object| self.query.wants(self.namespace.as_deref(), object);
        for change in changes {
            let before = change.before.as_ref().is_some_and(|object| wants(object));
            let after = change.happened != Happened::Deleted && wants(&change.object);
            let word = match (before, after) {
                (false, false) => continue,
                (false, true) => "ADDED",
                (true, true) => "MODIFIED",
                (true, false) => "DELETED",
            };
            self.event(word, &change.object).await?;
        }
        Ok(())
    }

    async fn event(&self, word: &str, object: &Object) -> Result<(), Ended> {
        let object = whole(self.resource, object, self.shape);
        self.line(format!("{{\"type\":\"{word}\",\"object\":{object}}}\n")).await
    }

    async fn bookmark(&self, version: u64, initial_end: bool) -> Result<(), Ended> {
        if !self.query.bookmarks {
            return Ok(());
        }
        let (kind, api_version) = match self.shape {
            Shape::Full => (self.resource.kind, self.resource.api_version()),
            Shape::Metadata => ("PartialObjectMetadata", "meta.k8s.io/v1".to_owned()),
        };
        let mut metadata = json!({ "resourceVersion": version.to_string() });
        if initial_end {
            metadata["annotations"] = json!({ "k8s.io/initial-events-end": "true" });
        }
        let mut object = json!({ "kind": kind, "apiVersion": api_version, "metadata": metadata });
        if kind == "Pod" {
            object["spec"] = json!({ "containers": null });
            object["status"] = json!({});
        }
        self.line(format!("{}\n", json!({ "type": "BOOKMARK", "object": object }))).await
    }

    async fn too_old(&self, asked: u64, oldest: u64) -> Result<(), Ended> {
        let message = format!("too old resource version: {asked} ({oldest})");
        let status = status_object(410, "Expired", &message);
        self.line(format!("{}\n", json!({ "type": "ERROR", "object": status }))).await
    }

    async fn line(&self, text: String) -> Result<(), Ended> {
        self.out.send(Bytes::from(text)).await.map_err(|_closed| Ended)
    }
}
