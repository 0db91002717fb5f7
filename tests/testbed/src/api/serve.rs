//! Connections and what each request gets.

use std::sync::Arc;
use std::time::Duration;

use http::{Request, StatusCode, header};
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;
use serde_json::json;
use tokio::sync::{mpsc, watch};
use tokio_rustls::TlsAcceptor;

use super::answer::{self, Content, Reply};
use super::count::Counts;
use super::fault::{Failure, Faults};
use super::request::{Query, Shape, Target, shape, target};
use super::store::{Resource, Store};
use super::stream::{self, Watch};
use super::token::Tokens;

/// What all connections share.
#[derive(Debug)]
pub(super) struct Shared {
    pub(super) store: Arc<Store>,
    pub(super) faults: Arc<Faults>,
    pub(super) tokens: Tokens,
    pub(super) counts: Counts,
    pub(super) cut: watch::Sender<u64>,
    pub(super) bookmarks: watch::Sender<u64>,
}

#[derive(Clone)]
pub(super) struct Acceptor(pub(super) TlsAcceptor);

impl std::fmt::Debug for Acceptor {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Acceptor")
    }
}

/// One connection, until either side ends it or all are cut.
pub(super) async fn serve(shared: Arc<Shared>, acceptor: Acceptor, stream: tokio::net::TcpStream) {
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
    let client = match client(&shared.tokens, &request) {
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
fn client(tokens: &Tokens, request: &Request<Incoming>) -> Result<String, Box<Reply>> {
    let Some(value) = request.headers().get(header::AUTHORIZATION) else {
        let path = request.uri().path();
        let message = format!("forbidden: User \"system:anonymous\" cannot get path \"{path}\"");
        return Err(Box::new(answer::failure(403, "Forbidden", &message)));
    };
    let token = value.to_str().ok().and_then(|text| text.strip_prefix("Bearer "));
    let refusal = || Box::new(answer::failure(401, "Unauthorized", "Unauthorized"));
    token.and_then(|token| tokens.client(token)).ok_or_else(refusal)
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
