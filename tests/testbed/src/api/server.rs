//! The server itself: accepts, knows its clients by their tokens, and hands out answers.

use std::net::{IpAddr, SocketAddr, TcpListener};
use std::path::PathBuf;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::runtime::Runtime;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinHandle;
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Content, Reply};
use super::count::{Counts, Requests};
use super::fault::{Failure, Faults};
use super::request::{Query, Shape, Target, shape, target};
use super::store::{Resource, Store};
use super::stream::{self, Watch};
use super::tls;
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

/// What all connections share.
#[derive(Debug)]
struct Shared {
    store: Arc<Store>,
    faults: Arc<Faults>,
    counts: Counts,
    cut: watch::Sender<u64>,
    bookmarks: watch::Sender<u64>,
}

#[derive(Clone)]
struct Acceptor(TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
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

    /// The bearer token of a client; any name will do, and counts are kept by it.
    #[must_use]
    pub fn token(client: &str) -> String {
        format!("token-of-{client}")
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
            "users": [{ "name": client, "user": { "token": Self::token(client) } }],
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
            ("token", Self::token(client)),
            ("ca.crt", self.ca_pem.clone()),
            ("namespace", "default".to_owned()),
        ] {
            std::fs::write(folder.join(name), text).expect("a file of our own");
        }
        folder
    }

    fn write(&self, name: &str, text: &str) -> PathBuf {
        let file = self.folder.path().join(name);
        std::fs::write(&file, text).unwrap_or_else(|error| panic!("{}: {error}", file.display()));
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

/// One connection, until either side ends it or all are cut.
async fn serve(shared: Arc<Shared>, acceptor: Acceptor, stream: tokio::net::TcpStream) {
    let mut cut = shared.cut.subscribe();
    let connection = async {
        let Ok(stream) = acceptor.0.accept(stream).await else { return };
        let service = hyper::service::service_fn(|request| {
            let shared = Arc::clone(&shared);
            async move { answer(&shared, request).await }
        });
        let served = hyper::server::conn::http1::Builder::new()
            .serve_connection(TokioIo::new(stream), service)
            .await;
        // How a connection ends is the client's affair.
        drop(served);
    };
    tokio::select! {
        () = connection => {}
        _cut = cut.changed() => {}
    }
}

/// The connection is to end without an answer.
#[derive(Debug)]
struct Hangup;

impl std::fmt::Display for Hangup {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("no answer is to be given")
    }
}

impl std::error::Error for Hangup {}

async fn answer(shared: &Arc<Shared>, request: Request<Incoming>) -> Result<Reply, Hangup> {
    let target = target(request.uri().path());
    let resource = match &target {
        Target::Collection(resource, _) | Target::Named(resource, ..) => Some(*resource),
        Target::Plain(_) | Target::NoResource | Target::NoPath => None,
    };
    let plural = resource.map_or("", |resource| resource.plural);
    let delay = shared.faults.switches().delay;
    if !delay.is_zero() {
        tokio::time::sleep(delay).await;
    }
    while shared.faults.switches().stalled {
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    let client = match client(&request) {
        Ok(client) => client,
        Err(refusal) => return Ok(*refusal),
    };
    if let Some(failure) = shared.faults.failure(plural) {
        shared.counts.note(&client, plural, |requests| requests.refused += 1);
        return match failure {
            Failure::Hangup => Err(Hangup),
            Failure::TooMany(seconds) => Ok(answer::too_many(seconds)),
            Failure::Status(code) => Ok(answer::failure(code, "InternalError", "told to fail")),
        };
    }
    let header = |name| request.headers().get(name).and_then(|value| value.to_str().ok());
    let Some(shape) = shape(header(header::ACCEPT).unwrap_or_default()) else {
        let message = "only the following media types are accepted: application/json";
        return Ok(answer::failure(406, "NotAcceptable", message));
    };
    let query = match Query::parse(request.uri().query().unwrap_or_default()) {
        Ok(query) => query,
        Err(message) => return Ok(answer::failure(400, "BadRequest", &message)),
    };
    Ok(match target {
        Target::Plain(name) => outer(&name),
        Target::NoPath => answer::plain(StatusCode::NOT_FOUND, "404 page not found"),
        Target::NoResource => {
            let message = "the server could not find the requested resource";
            answer::failure(404, "NotFound", message)
        }
        Target::Named(resource, namespace, name) => {
            shared.counts.note(&client, plural, |requests| requests.gets += 1);
            answer::single(&shared.store, resource, (&namespace, &name), shape)
        }
        Target::Collection(resource, namespace) => {
            collection(shared, &client, resource, namespace, query, shape).await
        }
    })
}

/// Who asks, or why it may not.
fn client(request: &Request<Incoming>) -> Result<String, Box<Reply>> {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else {
        let path = request.uri().path();
        let message = format!("forbidden: User \"system:anonymous\" cannot get path \"{path}\"");
        return Err(Box::new(answer::failure(403, "Forbidden", &message)));
    };
    let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    let client = token.and_then(|token| token.strip_prefix("token-of-"));
    let refusal = || Box::new(answer::failure(401, "Unauthorized", "Unauthorized"));
    client.map(str::to_owned).ok_or_else(refusal)
}

/// What has no resource.
fn outer(name: &str) -> Reply {
    let version = json!({
        "major": "1", "minor": "36", "gitVersion": "v1.36.2", "platform": "linux/amd64",
    });
    match name {
        "version" => answer::text(StatusCode::OK, version.to_string()),
        "api" => answer::text(StatusCode::OK, json!({ "versions": ["v1"] }).to_string()),
        "apis" => answer::text(StatusCode::OK, json!({ "groups": [] }).to_string()),
        _ => answer::plain(StatusCode::OK, "ok"),
    }
}

async fn collection(
    shared: &Arc<Shared>,
    client: &str,
    resource: &'static Resource,
    namespace: Option<String>,
    query: Query,
    shape: Shape,
) -> Reply {
    let plural = resource.plural;
    if shared.faults.switches().forbidden.contains(plural) {
        shared.counts.note(client, plural, |requests| requests.refused += 1);
        let user = format!("system:serviceaccount:orb8:{client}");
        let verb = if query.watch { "watch" } else { "list" };
        return answer::forbidden(&user, verb, resource);
    }
    if !query.watch {
        shared.counts.note(client, plural, |requests| {
            requests.pages += 1;
            requests.lists += u64::from(query.resume.is_none());
        });
        return answer::list(&shared.store, resource, namespace.as_deref(), &query, shape).await;
    }
    if query.initial_events && query.version_match != "NotOlderThan" {
        let message = "ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: \
                       sendInitialEvents requires setting resourceVersionMatch to NotOlderThan";
        return answer::failure(422, "Invalid", message);
    }
    let version = query.resource_version.as_str();
    if !version.is_empty() && version.parse::<u64>().is_err() {
        return answer::invalid_version(version);
    }
    let (out, chunks) = mpsc::channel(stream::QUEUE);
    let watch = Watch {
        store: Arc::clone(&shared.store),
        faults: Arc::clone(&shared.faults),
        resource,
        namespace,
        query,
        shape,
        out,
        bookmarks: shared.bookmarks.subscribe(),
    };
    shared.counts.note(client, plural, |requests| {
        requests.watches += 1;
        requests.open += 1;
    });
    let (shared, client) = (Arc::clone(shared), client.to_owned());
    tokio::spawn(async move {
        watch.run().await;
        shared.counts.note(&client, plural, |requests| requests.open -= 1);
    });
    answer::reply(StatusCode::OK, "application/json", Content::Stream(chunks))
}
