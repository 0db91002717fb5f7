//! The agent's port: taken before anything else is started, so that a second agent never loads a
//! program.

use std::io;
use std::net::SocketAddr;
use std::time::Duration;

use orb8_proto::v1::GetStatusRequest;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use tokio::net::TcpListener;
use tonic::transport::Endpoint;

use super::AgentError;

/// How long another agent on our port has to answer before it is called unknown.
const PROBE_TIMEOUT: Duration = Duration::from_millis(500);

/// Listens, or says who does.
pub(super) async fn listen(address: SocketAddr) -> Result<TcpListener, AgentError> {
    match TcpListener::bind(address).await {
        Ok(listener) => Ok(listener),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            let by = who_listens(address).await.unwrap_or_default();
            Err(AgentError::PortTaken { address, by })
        }
        Err(source) => Err(AgentError::Listen { address, source }),
    }
}

/// Names the agent that answers there, if one does.
async fn who_listens(address: SocketAddr) -> Option<String> {
    let mut reachable = address;
    if address.ip().is_unspecified() {
        let loopback = if address.is_ipv6() { "::1" } else { "127.0.0.1" };
        reachable.set_ip(loopback.parse().ok()?);
    }
    let ask = async {
        let endpoint = Endpoint::from_shared(format!("http://{reachable}")).ok()?;
        let mut client = OrbitAgentServiceClient::new(endpoint.connect().await.ok()?);
        let status = client.get_status(GetStatusRequest {}).await.ok()?.into_inner();
        Some(format!(
            " by another orb8 agent (node {}, version {})",
            status.node_name, status.version
        ))
    };
    tokio::time::timeout(PROBE_TIMEOUT, ask).await.ok().flatten()
}
