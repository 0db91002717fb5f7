//! Questions to an agent from inside its node's namespace, over gRPC.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use orb8_proto::v1::event::Payload;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{AgentStatus, GetStatusRequest, StreamEventsRequest};
use orb8_testbed::agent::LISTEN;
use orb8_testbed::netns::Netns;
use tonic::transport::{Channel, Endpoint};

use super::rows::line;

/// Calls an agent from inside its namespace.
pub fn ask<T: Send>(
    netns: &Netns,
    call: impl AsyncFnOnce(OrbitAgentServiceClient<Channel>) -> T + Send,
) -> T {
    netns.enter(|| {
        let runtime = runtime();
        runtime.block_on(async { call(client().await).await })
    })
}

pub fn status(netns: &Netns) -> AgentStatus {
    ask(netns, async |mut client| {
        client.get_status(GetStatusRequest {}).await.expect("a status").into_inner()
    })
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .expect("a runtime of one thread")
}

async fn client() -> OrbitAgentServiceClient<Channel> {
    let endpoint = Endpoint::from_shared(format!("http://{LISTEN}")).expect("an address");
    let channel = endpoint.connect().await.expect("the agent listens");
    OrbitAgentServiceClient::new(channel).max_decoding_message_size(usize::MAX)
}

/// The live trace of one agent: the latest word on each flow.
pub struct Trace {
    lines: Arc<Mutex<HashMap<u64, String>>>,
}

impl Trace {
    /// Follows until the agent ends; subscribed when this returns.
    pub fn follow(netns: &Netns) -> Self {
        let lines: Arc<Mutex<HashMap<u64, String>>> = Arc::default();
        let sink = Arc::clone(&lines);
        let netns = netns.clone();
        let (subscribed, ready) = std::sync::mpsc::sync_channel(1);
        std::thread::spawn(move || {
            netns.enter(|| {
                runtime().block_on(async {
                    let request =
                        StreamEventsRequest { update_interval_ms: 200, ..Default::default() };
                    let stream = client().await.stream_events(request).await;
                    let mut stream = stream.expect("a stream").into_inner();
                    subscribed.send(()).expect("somebody waits for it");
                    while let Ok(Some(event)) = stream.message().await {
                        if let Some(Payload::Flow(event)) = event.payload
                            && let Some(flow) = event.flow
                        {
                            let mut lines = sink.lock().unwrap_or_else(PoisonError::into_inner);
                            lines.insert(flow.flow_id, line(&flow));
                        }
                    }
                });
            });
        });
        ready.recv().expect("the stream begins");
        Self { lines }
    }

    /// The latest line of every flow.
    pub fn lines(&self) -> Vec<String> {
        let lines = self.lines.lock().unwrap_or_else(PoisonError::into_inner);
        lines.values().cloned().collect()
    }
}
