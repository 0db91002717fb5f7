//! Connects to the API server, and says beforehand which socket it will be: the agent's own traffic
//! is known by the cookies of its sockets, and the first packet is on its way before a connection is
//! made.
//!
//! Knows TCP and nothing above it.

use std::future::Future;
use std::io;
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use http::Uri;
use hyper_util::rt::TokioIo;
use rustix::net::sockopt;
use tokio::net::{TcpSocket, TcpStream};
use tower::Service;

use crate::host::HostFacts;

/// All addresses of the server together get this much time.
pub(super) const CONNECT: Duration = Duration::from_secs(10);

/// A watch at rest sends nothing: a server that vanished without a word is noticed by the kernel's
/// probes, after `QUIET + PROBES * PROBE_EVERY`.
const QUIET: Duration = Duration::from_secs(5);

/// Time between two probes that are not answered.
const PROBE_EVERY: Duration = Duration::from_secs(3);

/// Probes without an answer before the connection is given up.
const PROBES: u32 = 3;

/// Makes connections whose cookies are among the host's facts before they send anything.
#[derive(Clone, Debug)]
pub(super) struct Connector {
    facts: Arc<HostFacts>,
}

impl Connector {
    /// One that notes its sockets there.
    pub(super) const fn new(facts: Arc<HostFacts>) -> Self {
        Self { facts }
    }

    /// Tries the addresses one after the other, each with its part of the time.
    async fn connect(self, server: Uri) -> io::Result<TokioIo<TcpStream>> {
        let (host, port) = place(&server)?;
        let looked_up = tokio::time::timeout(CONNECT, tokio::net::lookup_host((host, port))).await;
        let Ok(addresses) = looked_up else {
            let text = format!("looking up {host} takes too long");
            return Err(io::Error::new(io::ErrorKind::TimedOut, text));
        };
        let addresses: Vec<_> = addresses?.collect();
        let each = CONNECT / u32::try_from(addresses.len().max(1)).unwrap_or(u32::MAX);
        let mut failed = io::Error::new(io::ErrorKind::NotFound, format!("{host} has no address"));
        for address in addresses {
            match tokio::time::timeout(each, self.connect_to(address)).await {
                Ok(Ok(stream)) => return Ok(TokioIo::new(stream)),
                Ok(Err(error)) => failed = error,
                Err(_elapsed) => {
                    let text = format!("{address} does not answer");
                    failed = io::Error::new(io::ErrorKind::TimedOut, text);
                }
            }
        }
        Err(failed)
    }

    async fn connect_to(&self, address: SocketAddr) -> io::Result<TcpStream> {
        let socket = if address.is_ipv4() { TcpSocket::new_v4()? } else { TcpSocket::new_v6()? };
        match sockopt::socket_cookie(&socket) {
            Ok(cookie) => self.facts.update_sockets(|facts| facts.add_api_cookie(cookie)),
            Err(error) => tracing::debug!(%error, "a connection to the API server has no cookie"),
        }
        sockopt::set_tcp_keepidle(&socket, QUIET)?;
        sockopt::set_tcp_keepintvl(&socket, PROBE_EVERY)?;
        sockopt::set_tcp_keepcnt(&socket, PROBES)?;
        sockopt::set_socket_keepalive(&socket, true)?;
        socket.connect(address).await
    }
}

/// Host and port of a URL.
fn place(server: &Uri) -> io::Result<(&str, u16)> {
    let wrong = || io::Error::new(io::ErrorKind::InvalidInput, format!("{server} has no host"));
    let host = server.host().ok_or_else(wrong)?;
    let default = if server.scheme_str() == Some("http") { 80 } else { 443 };
    // An IPv6 address stands in brackets in a URL and nowhere else.
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    Ok((host, server.port_u16().unwrap_or(default)))
}

impl Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<Self::Response>> + Send>>;

    fn poll_ready(&mut self, _context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, server: Uri) -> Self::Future {
        Box::pin(self.clone().connect(server))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_url_names_host_and_port() {
        let check = |url: &str, expected: Option<(&str, u16)>| {
            let url: Uri = url.parse().unwrap();
            assert_eq!(place(&url).ok(), expected, "{url}");
        };
        check("https://10.96.0.1", Some(("10.96.0.1", 443)));
        check("http://api", Some(("api", 80)));
        check("https://[fd00::1]:6443/path", Some(("fd00::1", 6443)));
        check("/path", None);
    }

    #[tokio::test]
    async fn a_socket_is_known_as_our_own_before_its_first_packet() {
        let facts = HostFacts::shared();
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = |port| format!("https://127.0.0.1:{port}").parse::<Uri>().unwrap();
        let mut connector = Connector::new(Arc::clone(&facts));
        let stream = connector.call(url(listener.local_addr().unwrap().port())).await.unwrap();
        let cookie = sockopt::socket_cookie(stream.inner()).unwrap();
        assert!(facts.snapshot().is_own_cookie(cookie));
        assert!(sockopt::socket_keepalive(stream.inner()).unwrap());
        let address = listener.local_addr().unwrap();
        drop(listener);
        let before = facts.snapshot();
        assert!(connector.call(url(address.port())).await.is_err());
        assert!(!Arc::ptr_eq(&before, &facts.snapshot()), "also a refused one has sent a packet");
    }
}
