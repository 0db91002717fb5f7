//! The server as a test holds it: its objects, its switches, its port.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::watch;
use tokio::task::JoinHandle;

use super::count::{Counts, Requests};
use super::fault::{Failure, Faults};
use super::serve::{Acceptor, Shared, serve};
use super::store::{Resource, Store};
use super::tls;
use super::token::Tokens;
use crate::netns::Netns;
use crate::scratch::Scratch;
use crate::wait::wait_until;

/// How long the server may take to open or close its port.
const DEADLINE: Duration = Duration::from_secs(10);

/// A running API server.
#[derive(Debug)]
pub struct ApiServer {
    shared: Arc<Shared>,
    runtime: Option<Runtime>,
    netns: Option<Netns>,
    address: SocketAddr,
    acceptor: Acceptor,
    accepting: Mutex<Option<JoinHandle<()>>>,
    ca_pem: String,
    folder: Scratch,
}

impl ApiServer {
    /// A server on a free port of 127.0.0.1 in this process's own namespace.
    ///
    /// # Panics
    /// If it cannot listen.
    #[must_use]
    pub fn local() -> Self {
        Self::start(None, IpAddr::from([127, 0, 0, 1]))
    }

    /// A server on a free port of an address inside a namespace.
    ///
    /// # Panics
    /// If it cannot listen.
    #[must_use]
    pub fn inside(netns: &Netns, address: IpAddr) -> Self {
        Self::start(Some(netns.clone()), address)
    }

    fn start(netns: Option<Netns>, address: IpAddr) -> Self {
        let identity = tls::identity(&[address]).expect("keys and certificates can be made");
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(1)
            .thread_name("api-double")
            .enable_all()
            .build()
            .expect("a runtime of one thread");
        let listener = bind(netns.as_ref(), SocketAddr::new(address, 0));
        let address = listener.local_addr().expect("a bound socket has an address");
        let shared = Arc::new(Shared {
            store: Arc::new(Store::default()),
            faults: Arc::new(Faults::default()),
            tokens: Tokens::default(),
            counts: Counts::default(),
            cut: watch::Sender::new(0),
            bookmarks: watch::Sender::new(0),
        });
        let server = Self {
            shared,
            runtime: Some(runtime),
            netns,
            address,
            acceptor: Acceptor(identity.acceptor),
            accepting: Mutex::new(None),
            ca_pem: identity.ca_pem,
            folder: Scratch::folder("api"),
        };
        server.accept(listener);
        server
    }

    /// Where it listens.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// `https://<address>:<port>`
    #[must_use]
    pub fn url(&self) -> String {
        format!("https://{}", self.address)
    }

    /// The certificate authority, as PEM.
    #[must_use]
    pub fn ca_pem(&self) -> &str {
        &self.ca_pem
    }

    /// The bearer token that is good for a client now; any name without a dot will do, and counts
    /// are kept by it.
    #[must_use]
    pub fn token(&self, client: &str) -> String {
        self.shared.tokens.of(client)
    }

    /// From now on the tokens that a client has are refused, and its watches have ended; what is
    /// written for it afterwards has a new one.
    pub fn revoke(&self, client: &str) {
        self.shared.tokens.revoke(client);
        self.cut();
    }

    /// Writes a kubeconfig for a client, which lives as long as the server.
    ///
    /// # Panics
    /// If it cannot be written.
    #[must_use]
    pub fn kubeconfig(&self, client: &str) -> PathBuf {
        let ca = self.write("ca.crt", &self.ca_pem);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": client,
            "clusters": [{ "name": "double",
                "cluster": { "server": self.url(), "certificate-authority": ca } }],
            "users": [{ "name": client, "user": { "token": self.token(client) } }],
            "contexts": [{ "name": client,
                "context": { "cluster": "double", "user": client } }],
        });
        // JSON is YAML, too.
        self.write(&format!("{client}.kubeconfig"), &config.to_string())
    }

    /// Writes the files of a ServiceAccount's mount (`token`, `ca.crt`, `namespace`) for a client.
    ///
    /// # Panics
    /// If they cannot be written.
    #[must_use]
    pub fn service_account(&self, client: &str) -> PathBuf {
        let folder = self.folder.path().join(client);
        std::fs::create_dir_all(&folder).expect("a folder of our own");
        for (name, text) in [
            ("token", &self.token(client)),
            ("ca.crt", &self.ca_pem),
            ("namespace", &"default".to_owned()),
        ] {
            self.write(&format!("{client}/{name}"), text);
        }
        folder
    }

    /// At once, as a kubelet replaces what is mounted into a pod.
    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        let part = file.with_extension("part");
        let written = std::fs::write(&part, text).and_then(|()| std::fs::rename(&part, &file));
        written.unwrap_or_else(|error| panic!("{}: {error}", file.display()));
        file
    }

    /// Its objects.
    #[must_use]
    pub fn store(&self) -> &Store {
        &self.shared.store
    }

    /// Adds or replaces an object; its resource version.
    pub fn put(&self, object: Value) -> u64 {
        self.shared.store.put(object)
    }

    /// Deletes an object at once; its last resource version.
    pub fn delete(&self, plural: &str, namespace: &str, name: &str) -> u64 {
        self.shared.store.remove(plural, (namespace, name), None)
    }

    /// Changes an object.
    ///
    /// # Panics
    /// If it is not there.
    pub fn change(
        &self,
        plural: &str,
        namespace: &str,
        name: &str,
        change: impl FnOnce(&mut Value),
    ) -> u64 {
        let object = self.shared.store.get(plural, namespace, name);
        let mut object = object.unwrap_or_else(|| panic!("no {plural} {namespace}/{name}"));
        change(&mut object);
        self.put(object)
    }

    /// Puts every object of a recorded list (`kind: PodList`, ...) into the store.
    ///
    /// # Panics
    /// If it is no list of a known kind.
    pub fn load_list(&self, list: &Value) {
        let kind = list["kind"].as_str().and_then(|kind| kind.strip_suffix("List"));
        let kind = kind.expect("a recorded list names its kind");
        for item in list["items"].as_array().expect("a list has items") {
            let mut object = item.clone();
            object["kind"] = json!(kind);
            self.put(object);
        }
    }

    /// Does what a recorded watch event tells; bookmarks become bookmarks. The server numbers its
    /// versions itself.
    ///
    /// # Panics
    /// If the event is not of a known kind.
    pub fn replay(&self, event: &Value) {
        let object = &event["object"];
        match event["type"].as_str() {
            Some("ADDED" | "MODIFIED") => {
                self.put(object.clone());
            }
            Some("DELETED") => {
                let kind = object["kind"].as_str().unwrap_or_default();
                let resource = Resource::of_kind(kind).expect("an object of a known kind");
                let word = |key: &str| object["metadata"][key].as_str().unwrap_or_default();
                let place = (word("namespace"), word("name"));
                self.shared.store.remove(resource.plural, place, Some(object.clone()));
            }
            Some("BOOKMARK") => self.bookmark(),
            other => panic!("a recorded event of type {other:?}"),
        }
    }

    /// How it misbehaves.
    #[must_use]
    pub fn faults(&self) -> &Faults {
        &self.shared.faults
    }

    /// Every request fails so until [`Self::heal`].
    pub fn fail(&self, failure: Failure) {
        self.shared.faults.switches().failing = Some((failure, None));
    }

    /// Nobody may list or watch a resource.
    ///
    /// # Panics
    /// If there is none of the name.
    pub fn forbid(&self, plural: &str) {
        let resource = Resource::find(plural).expect("a known resource");
        self.shared.faults.switches().forbidden.insert(resource.plural);
        self.cut();
    }

    /// All switches off; a closed port stays closed.
    pub fn heal(&self) {
        *self.shared.faults.switches() = super::fault::Switches::default();
    }

    /// Requests and open watches stop getting answers, and connections stay open.
    pub fn stall(&self) {
        self.shared.faults.switches().stalled = true;
    }

    /// Each answer comes this much later.
    pub fn slow(&self, delay: Duration) {
        self.shared.faults.switches().delay = delay;
    }

    /// Forgets history: the next watch from before now gets 410 Gone.
    pub fn compact(&self) {
        self.shared.store.compact();
    }

    /// All watches that want bookmarks get one.
    pub fn bookmark(&self) {
        self.shared.bookmarks.send_modify(|count| *count += 1);
    }

    /// Cuts all connections without a word.
    pub fn cut(&self) {
        self.shared.cut.send_modify(|count| *count += 1);
    }

    /// Nobody listens any longer and all connections are cut.
    ///
    /// # Panics
    /// If the port does not close in time.
    pub fn close_port(&self) {
        let accepting = self.accepting().take();
        if let Some(task) = accepting {
            task.abort();
            wait_until(DEADLINE, "the port to close", || task.is_finished());
        }
        self.cut();
    }

    /// Listens again, on the same port.
    ///
    /// # Panics
    /// If the port is taken.
    pub fn open_port(&self) {
        let listener = bind(self.netns.as_ref(), self.address);
        self.accept(listener);
    }

    /// Requests of a client for a resource; an empty name stands for all.
    #[must_use]
    pub fn requests(&self, client: &str, plural: &str) -> Requests {
        self.shared.counts.of(client, plural)
    }

    fn accepting(&self) -> std::sync::MutexGuard<'_, Option<JoinHandle<()>>> {
        self.accepting.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn accept(&self, listener: TcpListener) {
        let runtime = self.runtime.as_ref().expect("the runtime runs as long as the server");
        listener.set_nonblocking(true).expect("a socket can be non-blocking");
        let _inside = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).expect("a listening socket");
        let (shared, acceptor) = (Arc::clone(&self.shared), self.acceptor.clone());
        let task = runtime.spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let (shared, acceptor) = (Arc::clone(&shared), acceptor.clone());
                tokio::spawn(serve(shared, acceptor, stream));
            }
        });
        *self.accepting() = Some(task);
    }
}

impl Drop for ApiServer {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

fn bind(netns: Option<&Netns>, address: SocketAddr) -> TcpListener {
    let listen = || TcpListener::bind(address);
    let result = netns.map_or_else(listen, |netns| netns.enter(listen));
    result.unwrap_or_else(|error| panic!("listening on {address}: {error}"))
}
