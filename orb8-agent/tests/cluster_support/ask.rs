//! Questions to an agent from inside its node's namespace, over gRPC.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use orb8_proto::v1::event::Payload;
use orb8_proto::v1::orbit_agent_service_client::OrbitAgentServiceClient;
use orb8_proto::v1::{
    AgentStatus, Condition, Event, FlowFilter, GetStatusRequest, NetworkFlow, PacketEvent,
    StreamEventsRequest,
};
use orb8_testbed::agent::LISTEN;
use orb8_testbed::netns::Netns;
use tonic::transport::{Channel, Endpoint};

use super::rows::ends;

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
    latest: Arc<Mutex<HashMap<u64, Latest>>>,
}

/// What was told of a flow.
#[derive(Clone, Debug)]
pub struct Latest {
    pub flow: NetworkFlow,
    /// When the pods of its owner and of the other end were named first, Unix nanoseconds; 0 if
    /// they were not.
    pub named_ns: [i64; 2],
    /// Each word on who its ends are, from the first to the latest.
    pub said: Vec<NetworkFlow>,
}

impl Trace {
    /// Follows until the agent ends; subscribed when this returns.
    pub fn follow(netns: &Netns) -> Self {
        let latest: Arc<Mutex<HashMap<u64, Latest>>> = Arc::default();
        let sink = Arc::clone(&latest);
        let request = StreamEventsRequest { update_interval_ms: 200, ..Default::default() };
        follow(netns, request, move |event| {
            if let Some(Payload::Flow(told)) = event.payload
                && let Some(flow) = told.flow
            {
                note(&mut held(&sink), flow, event.time_ns);
            }
        });
        Self { latest }
    }

    /// The latest word on every flow.
    pub fn flows(&self) -> Vec<NetworkFlow> {
        held(&self.latest).values().map(|latest| latest.flow.clone()).collect()
    }

    /// Every word on who the ends of a flow are that another one replaced, with the latest one.
    pub fn replaced(&self) -> Vec<(NetworkFlow, NetworkFlow)> {
        let all = held(&self.latest);
        let pairs = all
            .values()
            .flat_map(|latest| latest.said.iter().map(|said| (said.clone(), latest.flow.clone())));
        pairs.collect()
    }

    /// Every word on who the ends of a flow are, those that were replaced included.
    pub fn said(&self) -> Vec<NetworkFlow> {
        held(&self.latest).values().flat_map(|latest| latest.said.iter().cloned()).collect()
    }

    /// The latest word on a flow that fits.
    pub fn find(&self, fits: impl Fn(&NetworkFlow) -> bool) -> Option<Latest> {
        held(&self.latest).values().find(|latest| fits(&latest.flow)).cloned()
    }
}

/// Follows the packets that match until the agent ends; subscribed when this returns.
pub fn packets(netns: &Netns, condition: Condition) -> Arc<Mutex<Vec<PacketEvent>>> {
    let told: Arc<Mutex<Vec<PacketEvent>>> = Arc::default();
    let sink = Arc::clone(&told);
    let request = StreamEventsRequest {
        filter: Some(FlowFilter { all: vec![condition] }),
        packets: true,
        packet_rate_limit: 100_000,
        ..Default::default()
    };
    follow(netns, request, move |event| {
        if let Some(Payload::Packet(packet)) = event.payload {
            held(&sink).push(packet);
        }
    });
    told
}

/// Hands over what an agent tells until it ends; subscribed when this returns.
fn follow(
    netns: &Netns,
    request: StreamEventsRequest,
    mut take: impl FnMut(Event) + Send + 'static,
) {
    let netns = netns.clone();
    let (subscribed, ready) = std::sync::mpsc::sync_channel(1);
    std::thread::spawn(move || {
        netns.enter(|| {
            runtime().block_on(async {
                let stream = client().await.stream_events(request).await;
                let mut stream = stream.expect("a stream").into_inner();
                subscribed.send(()).expect("somebody waits for it");
                while let Ok(Some(event)) = stream.message().await {
                    take(event);
                }
            });
        });
    });
    ready.recv().expect("the stream begins");
}

fn held<T>(lock: &Mutex<T>) -> MutexGuard<'_, T> {
    lock.lock().unwrap_or_else(PoisonError::into_inner)
}

fn note(all: &mut HashMap<u64, Latest>, flow: NetworkFlow, time_ns: i64) {
    let (before, mut said) = all
        .remove(&flow.flow_id)
        .map_or_else(Default::default, |latest| (latest.named_ns, latest.said));
    let (owner, peer) = ends(&flow);
    let mut named_ns: [i64; 2] = before;
    for (end, named_ns) in [owner, peer].iter().zip(&mut named_ns) {
        if *named_ns == 0 && !end.pod.is_empty() {
            *named_ns = time_ns;
        }
    }
    let same =
        |last: &NetworkFlow| (&last.source, &last.destination) == (&flow.source, &flow.destination);
    if !said.last().is_some_and(same) {
        said.push(flow.clone());
    }
    all.insert(flow.flow_id, Latest { flow, named_ns, said });
}
