//! The way to the API server: where it is, how a request fails, and what a failure means.
//!
//! Transport, TLS and credentials are kube's, which looks for a new token once a minute; when they are
//! refused, they are read anew at once. Requests go out one by one and are not repeated here: who asks
//! decides when to ask again, knows `Retry-After` and counts. Nothing here knows what the answers mean.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::BodyExt;
use hyper_util::client::legacy::Client as HttpClient;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ClientBuilder, ConfigExt};
use kube::config::{KubeConfigOptions, Kubeconfig, KubeconfigError};
use kube::{Client, Config};
use tower::{BoxError, ServiceExt};

use super::connector::{CONNECT, Connector};
use crate::host::HostFacts;

/// An answer must begin within this.
const ANSWER: Duration = Duration::from_secs(30);

/// Refused credentials are read again at most this often: each time costs a TLS handshake, and a run
/// of a credential plugin.
const RENEW_REST: Duration = Duration::from_secs(10);

/// An answer's end must come within this after its beginning.
const WHOLE: Duration = Duration::from_secs(60);

/// The largest answer that is read; a page of 250 pods has a few MB.
const MAX_ANSWER: usize = 128 << 20;

/// The largest error text that is kept.
const MAX_MESSAGE: usize = 512;

/// Why there is no way to the API server.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// A kubeconfig cannot be used.
    #[error(
        "kubeconfig {path} cannot be used ({source}), give one with a reachable current context"
    )]
    Kubeconfig {
        /// Its path.
        path: String,
        /// Why.
        source: Box<KubeconfigError>,
    },
    /// No kubeconfig, and this is no pod.
    #[error(
        "no KUBECONFIG is set and this is no pod with a service account ({0}), set one of both up"
    )]
    NotInCluster(#[from] kube::config::InClusterError),
    /// The client cannot be made.
    #[error(
        "the client for {server} cannot be made ({source}), check the certificates and credentials in its configuration"
    )]
    Client {
        /// URL of the API server.
        server: String,
        /// Why.
        source: Box<kube::Error>,
    },
}

/// A client and where it goes; clones are the same one.
#[derive(Clone)]
pub struct Connection {
    access: Arc<Access>,
    /// URL of the API server.
    pub server: String,
}

/// The client, and what it is made of.
struct Access {
    kubeconfig: String,
    facts: Arc<HostFacts>,
    current: Mutex<Numbered>,
    /// When another client was made last. Held while one is: a credential plugin that never ends keeps
    /// one thread at most.
    making: Arc<tokio::sync::Mutex<Option<Instant>>>,
    /// Why there is none, as it was told last.
    told: Mutex<String>,
}

/// A client, and how many were there before it.
#[derive(Clone)]
struct Numbered {
    number: u64,
    client: Client,
}

impl std::fmt::Debug for Connection {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Connection").field("server", &self.server).finish_non_exhaustive()
    }
}

/// Reads where the API server is; asks it nothing. `kubeconfig` may be several paths with colons
/// between; empty: the pod's own service account. Sockets of the connections to come are noted in
/// `facts` as the agent's own; those through a proxy are not.
///
/// # Errors
/// The configuration is missing or cannot be used.
pub async fn connect(kubeconfig: &str, facts: &Arc<HostFacts>) -> Result<Connection, ConnectError> {
    let (client, server) = make(kubeconfig, facts).await?;
    let access = Access {
        kubeconfig: kubeconfig.to_owned(),
        facts: Arc::clone(facts),
        current: Mutex::new(Numbered { number: 0, client }),
        making: Arc::default(),
        told: Mutex::default(),
    };
    Ok(Connection { access: Arc::new(access), server })
}

/// A client of what the files say now, and the URL of its server.
async fn make(kubeconfig: &str, facts: &Arc<HostFacts>) -> Result<(Client, String), ConnectError> {
    let mut config = if kubeconfig.is_empty() {
        Config::incluster()?
    } else {
        read_kubeconfig(kubeconfig).await.map_err(|source| ConnectError::Kubeconfig {
            path: kubeconfig.to_owned(),
            source: Box::new(source),
        })?
    };
    // For a proxy; else the connector has its own.
    config.connect_timeout = Some(CONNECT);
    config.write_timeout = Some(ANSWER);
    // kube would repeat what was answered with 429 or 503 up to 15 times, unseen and uncounted.
    config.default_retry = false;
    let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
    match client(config, facts) {
        Ok(client) => Ok((client, server)),
        Err(source) => Err(ConnectError::Client { server, source: Box::new(source) }),
    }
}

/// kube's own client, but with our connector, since kube has no setting for what that does.
fn client(config: Config, facts: &Arc<HostFacts>) -> kube::Result<Client> {
    // kube says itself what it can do with a proxy.
    if config.proxy_url.is_some() {
        return Client::try_from(config);
    }
    let tls = config.rustls_https_connector_with_connector(Connector::new(Arc::clone(facts)))?;
    let http = HttpClient::builder(TokioExecutor::new()).build::<_, Body>(tls);
    let http = http.map_err(BoxError::from);
    let builder = ClientBuilder::new(http, config.default_namespace.clone())
        .with_layer(&config.extra_headers_layer()?);
    Ok(match config.auth_layer()? {
        Some(auth) => builder.with_layer(&auth).with_layer(&config.base_uri_layer()).build(),
        None => builder.with_layer(&config.base_uri_layer()).build(),
    })
}

async fn read_kubeconfig(paths: &str) -> Result<Config, KubeconfigError> {
    let mut merged = Kubeconfig::default();
    for path in paths.split(':').filter(|path| !path.is_empty()) {
        merged = merged.merge(Kubeconfig::read_from(Path::new(path))?)?;
    }
    Config::from_custom_kubeconfig(merged, &KubeConfigOptions::default()).await
}

/// Why a request has no answer that is of use.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AskError {
    /// The API server refuses it by its access rules.
    #[error("{0}")]
    Forbidden(String),
    /// It does not know who asks: a token that has expired is refused until its file, or the
    /// kubeconfig, has a new one.
    #[error("{0}")]
    Unauthorized(String),
    /// The resource version or the page is too old.
    #[error("{0}")]
    Gone(String),
    /// The API server answers with another error.
    #[error("HTTP {status}: {message}")]
    Refused {
        /// The HTTP status.
        status: u16,
        /// What it says.
        message: String,
        /// It asks to wait this long.
        retry_after: Option<Duration>,
    },
    /// No connection, or it broke.
    #[error("{0}")]
    Broken(String),
    /// No answer in time.
    #[error("no answer within {} s", .0.as_secs())]
    Slow(Duration),
    /// The answer cannot be read.
    #[error("the answer cannot be read: {0}")]
    Unreadable(String),
}

impl Access {
    fn current(&self) -> MutexGuard<'_, Numbered> {
        self.current.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Tells why refused credentials were not read again, if it is another reason than before.
    fn tell(&self, reason: String) {
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if !reason.is_empty() && *told != reason {
            tracing::warn!(
                reason,
                "The Kubernetes API refuses the credentials. They were not read again."
            );
        }
        *told = reason;
    }

    /// Puts a client in the place of the one with this number, unless another one was faster.
    fn replace(&self, number: u64, client: Client) {
        let mut current = self.current();
        if current.number == number {
            *current = Numbered { number: number + 1, client };
        }
    }
}

impl Connection {
    /// Sends a request and gives back the answer, whose body is still to be read.
    ///
    /// # Errors
    /// The request was not answered with success.
    pub async fn ask(&self, request: Request<Vec<u8>>) -> Result<Response<Body>, AskError> {
        let Numbered { number, client } = self.access.current().clone();
        let sent = client.send(request.map(Body::from));
        let answer = match tokio::time::timeout(ANSWER, sent).await {
            Err(_elapsed) => return Err(AskError::Slow(ANSWER)),
            Ok(Err(kube::Error::Service(error))) => return Err(AskError::Broken(chain(&*error))),
            Ok(Err(error)) => return Err(AskError::Broken(chain(&error))),
            Ok(Ok(answer)) => answer,
        };
        if answer.status().is_success() {
            return Ok(answer);
        }
        let (parts, body) = answer.into_parts();
        // What cannot be read of a refusal does not make it less of one.
        let body = whole(body).await.unwrap_or_default();
        let refused = refusal(parts.status, &parts.headers, &body);
        if matches!(refused, AskError::Unauthorized(_)) {
            self.renew(number).await;
        }
        Err(refused)
    }

    /// Takes up what the files say now, in place of a client whose credentials are refused.
    async fn renew(&self, refused: u64) {
        if self.access.current().number != refused {
            return;
        }
        let Ok(mut making) = Arc::clone(&self.access.making).try_lock_owned() else { return };
        if making.is_some_and(|made| made.elapsed() < RENEW_REST) {
            return;
        }
        *making = Some(Instant::now());
        let (access, runtime) = (Arc::clone(&self.access), tokio::runtime::Handle::current());
        let (done, made) = tokio::sync::oneshot::channel();
        // The runtime's own threads would have to end before the agent can.
        let started = thread::Builder::new().name("credentials".to_owned()).spawn(move || {
            let _making = making;
            // Nobody waits any longer if it took too long.
            drop(done.send(runtime.block_on(make(&access.kubeconfig, &access.facts))));
        });
        if let Err(error) = started {
            return self.access.tell(error.to_string());
        }
        let reason = match tokio::time::timeout(ANSWER, made).await {
            Ok(Ok(Ok((client, server)))) if server == self.server => {
                self.access.replace(refused, client);
                String::new()
            }
            // Another cluster's names are none for what was seen in this one.
            Ok(Ok(Ok((_, server)))) => format!("they are for {server} now, restart the agent"),
            Ok(Ok(Err(error))) => error.to_string(),
            Ok(Err(_panicked)) => "the thread that read them ended early".to_owned(),
            Err(_elapsed) => format!("that takes longer than {} s", ANSWER.as_secs()),
        };
        self.access.tell(reason);
    }

    /// Sends a request and reads the whole answer.
    ///
    /// # Errors
    /// The request was not answered with success, or the answer broke off.
    pub async fn ask_whole(&self, request: Request<Vec<u8>>) -> Result<Vec<u8>, AskError> {
        whole(self.ask(request).await?.into_body()).await
    }
}

async fn whole(body: Body) -> Result<Vec<u8>, AskError> {
    match tokio::time::timeout(WHOLE, collect(body)).await {
        Err(_elapsed) => Err(AskError::Slow(WHOLE)),
        Ok(answer) => answer,
    }
}

async fn collect(mut body: Body) -> Result<Vec<u8>, AskError> {
    let mut bytes = vec![];
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| AskError::Broken(chain(&error)))?;
        let Some(data) = frame.data_ref() else { continue };
        if bytes.len() + data.len() > MAX_ANSWER {
            return Err(AskError::Unreadable(format!("it is larger than {MAX_ANSWER} bytes")));
        }
        bytes.extend_from_slice(data);
    }
    Ok(bytes)
}

/// What an answer without success means.
pub(crate) fn refusal(status: StatusCode, headers: &HeaderMap, body: &[u8]) -> AskError {
    let told: Refusal = serde_json::from_slice(body).unwrap_or_default();
    let text =
        if told.message.is_empty() { String::from_utf8_lossy(body) } else { told.message.into() };
    let message: String = text.trim().chars().take(MAX_MESSAGE).collect();
    match status.as_u16() {
        401 => AskError::Unauthorized(message),
        403 => AskError::Forbidden(message),
        410 => AskError::Gone(message),
        status => {
            let header = headers.get(header::RETRY_AFTER).and_then(|value| value.to_str().ok());
            let seconds = header.and_then(|text| text.trim().parse().ok());
            let seconds = seconds.or(told.details.retry_after_seconds);
            let retry_after = seconds.map(Duration::from_secs);
            AskError::Refused { status, message, retry_after }
        }
    }
}

/// The error of the API, as it stands in a body or in a watch.
#[derive(Debug, Default, serde::Deserialize)]
#[serde(default)]
struct Refusal {
    message: String,
    details: RefusalDetails,
    code: u16,
}

#[derive(Debug, Default, serde::Deserialize)]
#[serde(default, rename_all = "camelCase")]
struct RefusalDetails {
    retry_after_seconds: Option<u64>,
}

/// What an ERROR event of a watch means.
pub(crate) fn refusal_event(object: &str) -> AskError {
    let code = serde_json::from_str::<Refusal>(object).map_or(0, |told| told.code);
    let status = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    refusal(status, &HeaderMap::new(), object.as_bytes())
}

/// An error with its causes, which say more than it does.
fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut cause = error.source();
    while let Some(error) = cause {
        let next = error.to_string();
        if !text.contains(&next) {
            text.push_str(": ");
            text.push_str(&next);
        }
        cause = error.source();
    }
    text.chars().take(MAX_MESSAGE).collect()
}

#[cfg(test)]
mod tests;
