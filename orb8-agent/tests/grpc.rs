//! The whole agent in one process, with a scripted kernel side, through its gRPC service.

mod agent_support;

use agent_support::{TestAgent, drained, local, query};
use orb8_agent::testing::{count, start, udp};
use orb8_proto::v1::{GetStatusRequest, QueryFlowsRequest};

#[tokio::test]
async fn a_counted_flow_is_answered_exactly() {
    let agent = TestAgent::start().await;
    agent.script.tell([
        start(udp(1), 5_000),
        count(udp(1), 3, 300, 9_000),
        drained(10_000, 3, 300),
    ]);
    agent.wait_for_flows(1).await;
    let answer = query(&agent, QueryFlowsRequest::default()).await.unwrap();
    let flow = &answer.flows[0];
    assert_eq!((flow.packets, flow.bytes), (3, 300));
    assert_eq!(flow.src_ip, local().to_string());
    assert_eq!(flow.interface, "eth0");
    let status = agent.client().await.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.healthy, "{}", status.health_message);
    let ledger = status.packet_ledger.unwrap();
    assert_eq!(ledger.state, "balanced");
    assert_eq!(ledger.reported.unwrap().packets, 3);
    agent.stop().await;
}
