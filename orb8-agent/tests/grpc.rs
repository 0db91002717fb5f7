//! The whole agent in one process, with a scripted kernel side, through its gRPC service.
#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod agent_support;

use agent_support::{
    DEADLINE, TestAgent, connect, drained, drained_with, local, next, query, settings, word,
};
use orb8_agent::agent::{Agent, AgentError, Parts};
use orb8_agent::capture::View;
use orb8_agent::clock::SystemClock;
use orb8_agent::datapath::StartError;
use orb8_agent::event::{Counters, Event, Notice, Severity};
use orb8_agent::preflight;
use orb8_agent::testing::{ManualClock, Script, ScriptedDatapath, count, flow, start, udp};
use orb8_common::counter;
use orb8_common::network::PacketEvent;
use orb8_proto::v1::{
    Condition, FlowFilter, GetStatusRequest, GetTotalsRequest, PortRange, Ports, QueryFlowsRequest,
    StreamEventsRequest, Strings, condition,
};
use tonic::Code;

fn only(field: condition::Field) -> Option<FlowFilter> {
    Some(FlowFilter { all: vec![Condition { side: 0, negate: false, field: Some(field) }] })
}

#[tokio::test]
async fn a_counted_flow_is_answered_exactly() {
    let agent = TestAgent::start().await;
    agent.script.tell([
        start(udp(1), 5_000),
        count(udp(1), 3, 300, 9_000),
        drained(10_000, 3, 300),
    ]);
    let answer = agent.wait_for_flows(1).await;
    let flow = &answer.flows[0];
    assert_eq!((flow.packets, flow.bytes), (3, 300));
    assert_eq!(flow.src_ip, local().to_string());
    assert_eq!((flow.interface.as_str(), flow.node_name.as_str()), ("eth0", "n1"));
    let status = agent.wait_for_status("a drain", |s| s.packet_ledger.unwrap_seen() == 3).await;
    assert!(status.healthy, "{}", status.health_message);
    let ledger = status.packet_ledger.unwrap();
    assert_eq!(ledger.state, "balanced");
    assert_eq!(ledger.reported.unwrap().packets, 3);
    assert_eq!(status.event_ledger.unwrap().processed, 1);
    agent.stop().await;
}

trait Seen {
    fn unwrap_seen(&self) -> u64;
}

impl Seen for Option<orb8_proto::v1::PacketLedger> {
    fn unwrap_seen(&self) -> u64 {
        self.as_ref().unwrap().seen.unwrap().packets
    }
}

#[tokio::test]
async fn an_empty_answer_says_what_it_was_drawn_from() {
    let agent = TestAgent::start().await;
    agent.script.tell([count(udp(1), 3, 300, 9_000), drained(10_000, 3, 300)]);
    agent.wait_for_status("a drain", |s| s.packet_ledger.unwrap_seen() == 3).await;
    let filter = only(condition::Field::Protocol(Strings { values: vec!["tcp".to_owned()] }));
    let request = QueryFlowsRequest { filter, ..QueryFlowsRequest::default() };
    let answer = query(&agent, request).await.unwrap();
    assert!(answer.flows.is_empty());
    let context = answer.context.unwrap();
    assert_eq!((context.flows_held, context.packets_seen), (1, 3));
    assert_eq!(context.interfaces_attached, 1);
    assert!(answer.nodes[0].complete, "{:?}", answer.nodes);
    agent.stop().await;
}

#[tokio::test]
async fn a_bad_value_is_an_invalid_argument_that_names_it() {
    let agent = TestAgent::start().await;
    let bad = || only(condition::Field::Ip(Strings { values: vec!["10.0.0.0/99".to_owned()] }));
    let request = QueryFlowsRequest { filter: bad(), ..QueryFlowsRequest::default() };
    let error = query(&agent, request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    assert!(error.message().contains("10.0.0.0/99"), "{error}");
    let request = StreamEventsRequest { filter: bad(), ..StreamEventsRequest::default() };
    let error = agent.client().await.stream_events(request).await.unwrap_err();
    assert_eq!(error.code(), Code::InvalidArgument);
    let request = StreamEventsRequest { packet_rate_limit: 1 << 30, ..Default::default() };
    let error = agent.client().await.stream_events(request).await.unwrap_err();
    assert!(error.message().contains("packet_rate_limit 1073741824"), "{error}");
    agent.stop().await;
}

#[tokio::test]
async fn a_stream_tells_start_update_and_end_once_each() {
    let agent = TestAgent::start().await;
    let mut stream = agent.subscribe(StreamEventsRequest::default()).await;
    agent.script.tell([start(udp(1), 5), start(udp(1), 6), count(udp(1), 2, 120, 7)]);
    agent.script.tell([drained(1_000_000_000, 2, 120)]);
    assert_eq!(word(&next(&mut stream).await), "start 1 0p ");
    assert_eq!(word(&next(&mut stream).await), "update 1 2p ");
    agent.script.tell([count(udp(1), 1, 60, 8), Event::Released(udp(1))]);
    assert_eq!(word(&next(&mut stream).await), "end 1 3p idle");
    agent.stop().await;
}

#[tokio::test]
async fn a_stream_filters_in_the_agent() {
    let agent = TestAgent::start().await;
    let port = Ports { ranges: vec![PortRange { first: 7, last: 7 }] };
    let filter = only(condition::Field::Port(port));
    let mut stream =
        agent.subscribe(StreamEventsRequest { filter, ..StreamEventsRequest::default() }).await;
    agent.script.tell((1..100).map(|n| start(udp(n), 5)));
    // The upper half of the number is the source port.
    agent.script.tell([start(udp(7 << 16), 6)]);
    assert_eq!(word(&next(&mut stream).await), "start 100 0p ");
    let status = agent.wait_for_status("the books", |s| s.subscribers[0].delivered == 1).await;
    assert_eq!((status.subscribers[0].offered, status.subscribers[0].filtered), (100, 99));
    agent.stop().await;
}

#[tokio::test]
async fn a_stalled_subscriber_loses_its_own_and_slows_nobody() {
    let agent = TestAgent::with(&["--broadcast-channel-size", "16"], ManualClock::at(1, 0)).await;
    let mut stalled = agent.subscribe(StreamEventsRequest::default()).await;
    let flows = 100_000;
    agent.script.tell((0..flows).map(|n| start(udp(n), 5)));
    agent.script.tell([drained(1, 0, 0)]);
    let status = agent
        .wait_for_status("everything to be processed although nobody reads", |status| {
            status.events_processed == u64::from(flows)
                && status.subscribers[0].offered == u64::from(flows)
        })
        .await;
    let books = &status.subscribers[0];
    assert!(books.lost > 0, "{books:?}");
    assert_eq!(books.offered, books.delivered + books.filtered + books.lost + books.queued);
    // It reads on: all that was lost is told, and with what is delivered it is everything.
    let (mut starts, mut lost) = (0, 0);
    while starts + lost < u64::from(flows) {
        let event = next(&mut stalled).await;
        match event.payload.as_ref().unwrap() {
            orb8_proto::v1::event::Payload::Loss(loss) => {
                assert_eq!(
                    (loss.stage.as_str(), loss.reason.as_str()),
                    ("subscriber", "queue_full")
                );
                lost += loss.events;
            }
            _ => starts += 1,
        }
    }
    assert_eq!(starts + lost, u64::from(flows));
    agent.stop().await;
}

#[tokio::test]
async fn loss_in_the_kernel_makes_the_answer_partial_and_is_streamed() {
    let agent = TestAgent::start().await;
    let mut stream = agent.subscribe(StreamEventsRequest::default()).await;
    let full = counter::LOST + 2 * counter::Lost::FlowTableFull as usize;
    let mut counters = Counters::default();
    counters.0[counter::SEEN_PACKETS] = 9;
    counters.0[counter::SEEN_BYTES] = 900;
    counters.0[full] = 9;
    counters.0[full + 1] = 900;
    agent.script.tell([drained_with(1_000, counters)]);
    assert_eq!(word(&next(&mut stream).await), "loss hook flow_table_full 9p 0e");
    let answer = query(&agent, QueryFlowsRequest::default()).await.unwrap();
    assert!(!answer.nodes[0].complete);
    assert_eq!(answer.loss[0].packets, 9);
    let later = QueryFlowsRequest { start_time_ns: 2_000, ..QueryFlowsRequest::default() };
    let answer = query(&agent, later).await.unwrap();
    assert!(answer.loss.is_empty() && answer.nodes[0].complete, "lost before: {answer:?}");
    agent.stop().await;
}

#[tokio::test]
async fn a_ledger_that_does_not_add_up_is_told_everywhere() {
    let agent = TestAgent::start().await;
    agent.script.tell([count(udp(1), 2, 200, 5), drained(1_000, 3, 300), drained(2_000, 3, 300)]);
    let status = agent.wait_for_status("the red ledger", |status| !status.healthy).await;
    let ledger = status.packet_ledger.unwrap();
    assert_eq!((ledger.state.as_str(), ledger.unexplained_packets), ("unbalanced", 1));
    assert!(status.health_message.contains("1 packets are unexplained"));
    let answer = query(&agent, QueryFlowsRequest::default()).await.unwrap();
    assert!(!answer.nodes[0].complete);
    agent.stop().await;
}

#[tokio::test]
async fn packets_are_told_only_while_somebody_asks() {
    let agent = TestAgent::start().await;
    let mut plain = agent.subscribe(StreamEventsRequest::default()).await;
    let views = || agent.datapath.open_views.load(std::sync::atomic::Ordering::Relaxed);
    assert_eq!(views(), 0);
    let request = StreamEventsRequest { packets: true, ..StreamEventsRequest::default() };
    let mut watching = agent.subscribe(request).await;
    assert_eq!(views(), 1);
    let id = udp(1);
    let packet = PacketEvent { key: id.key, owner: id.owner, packets: 1, ..Default::default() };
    agent.script.tell([Event::Packet(packet), start(id, 5)]);
    assert_eq!(word(&next(&mut watching).await), "packet 53");
    assert_eq!(word(&next(&mut watching).await), "start 1 0p ");
    assert_eq!(word(&next(&mut plain).await), "start 1 0p ");
    drop(watching);
    agent.wait_for_status("the end of the view", |_| views() == 0).await;
    agent.stop().await;
}

#[tokio::test]
async fn own_traffic_is_filtered_and_counted() {
    let agent = TestAgent::with(&["--grpc-listen", "0.0.0.0"], ManualClock::at(1, 0)).await;
    let own = flow(6, (local(), agent.address.port()), ([10, 0, 0, 9].into(), 40_000), true);
    let other = flow(6, ([10, 0, 0, 8].into(), agent.address.port()), (local(), 40_000), false);
    agent.script.tell([start(own, 5), count(own, 4, 400, 5), count(other, 1, 60, 5)]);
    agent.script.tell([drained(1_000, 5, 460)]);
    let status = agent.wait_for_status("a drain", |s| s.packet_ledger.unwrap_seen() == 5).await;
    let ledger = status.packet_ledger.unwrap();
    assert_eq!(ledger.filtered[0].reason, "self_traffic");
    assert_eq!((ledger.filtered[0].packets, ledger.filtered[0].bytes), (4, 400));
    assert_eq!(ledger.state, "balanced");
    assert_eq!(agent.wait_for_flows(1).await.flows[0].src_ip, "10.0.0.8");
    agent.stop().await;
}

#[tokio::test]
async fn a_step_of_the_wall_clock_changes_neither_order_nor_durations() {
    let clock = ManualClock::at(1_000_000_000, 0);
    let agent = TestAgent::with(&[], std::sync::Arc::clone(&clock) as _).await;
    agent.script.tell([count(udp(1), 1, 60, 1_000_000_000), count(udp(2), 1, 60, 1_500_000_000)]);
    clock.step_wall(-500_000_000);
    agent.script.tell([count(udp(1), 1, 60, 2_000_000_000), count(udp(3), 1, 60, 2_500_000_000)]);
    let before = agent.wait_for_flows(3).await;
    clock.step_wall(3_600_000_000_000);
    let after = agent.wait_for_flows(3).await;
    for (earlier, later) in before.flows.iter().zip(&after.flows) {
        assert_eq!(earlier.flow_id, later.flow_id);
        let duration = |flow: &orb8_proto::v1::NetworkFlow| flow.last_seen_ns - flow.first_seen_ns;
        assert_eq!(duration(earlier), duration(later));
        assert_eq!(later.first_seen_ns - earlier.first_seen_ns, 3_600_000_000_000);
    }
    assert_eq!(before.flows[0].last_seen_ns - before.flows[0].first_seen_ns, 1_000_000_000);
    agent.stop().await;
}

#[tokio::test]
async fn a_failing_source_is_told_and_asked_again() {
    let agent = TestAgent::with(&[], SystemClock::shared()).await;
    agent.script.fail("the map is gone");
    let status = agent.wait_for_status("the failure", |status| !status.healthy).await;
    assert!(status.health_message.contains("the map is gone"), "{}", status.health_message);
    assert_eq!(status.notices.last().unwrap().code, "source_failed");
    agent.script.tell([start(udp(1), 5)]);
    let status = agent.wait_for_status("the recovery", |status| status.healthy).await;
    assert_eq!(status.notices.last().unwrap().code, "source_recovered");
    agent.wait_for_flows(1).await;
    agent.stop().await;
}

#[tokio::test]
async fn notices_are_streamed_and_repeated_by_status() {
    let agent = TestAgent::start().await;
    let mut stream = agent.subscribe(StreamEventsRequest::default()).await;
    let notice = Notice {
        severity: Severity::Warning,
        code: "displaced",
        message: "cil_from_netdev runs before us".to_owned(),
    };
    agent.script.tell([Event::Notice(notice)]);
    assert_eq!(word(&next(&mut stream).await), "notice displaced");
    let status = agent.wait_for_status("the notice", |status| !status.notices.is_empty()).await;
    assert_eq!(status.notices[0].message, "cil_from_netdev runs before us");
    agent.stop().await;
}

#[tokio::test]
async fn stopping_tells_the_last_counts_and_the_end_of_every_flow() {
    let agent = TestAgent::start().await;
    let mut stream = agent.subscribe(StreamEventsRequest::default()).await;
    agent.script.tell([start(udp(1), 5)]);
    assert_eq!(word(&next(&mut stream).await), "start 1 0p ");
    agent.script.tell_last([count(udp(1), 7, 700, 9)]);
    let datapath = std::sync::Arc::clone(&agent.datapath);
    let ended = agent.ask_to_stop();
    assert_eq!(word(&next(&mut stream).await), "end 1 7p shutdown");
    assert!(stream.message().await.unwrap().is_none(), "the stream ends in order");
    ended.await.unwrap().unwrap();
    assert!(datapath.stopped.load(std::sync::atomic::Ordering::Relaxed));
}

#[tokio::test]
async fn stopping_does_not_wait_for_a_stalled_subscriber_beyond_the_deadline() {
    let flags = ["--shutdown-timeout-secs", "1"];
    let agent = TestAgent::with(&flags, ManualClock::at(1, 0)).await;
    let _stalled = agent.subscribe(StreamEventsRequest::default()).await;
    agent.script.tell((0..50_000).map(|n| start(udp(n), 5)));
    agent.wait_for_status("all flows", |status| status.active_flows == 50_000).await;
    tokio::time::timeout(DEADLINE, agent.stop()).await.expect("it stops");
}

fn parts(start: orb8_agent::datapath::Start, checks: Vec<preflight::Check>) -> Parts {
    Parts { start, checks, cgroups: View::none(), known: None, clock: SystemClock::shared() }
}

#[tokio::test]
async fn a_second_agent_on_the_port_names_the_port_and_the_first() {
    let agent = TestAgent::start().await;
    let port = agent.address.port().to_string();
    let second = settings_at(&port);
    let never: orb8_agent::datapath::Start = Box::new(|_, _| unreachable!("it must not load"));
    let error = Agent::start(&second, parts(never, Vec::new())).await.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    let text = error.to_string();
    assert!(text.contains(&format!("port {port} at 127.0.0.1 is taken")), "{text}");
    assert!(text.contains("another orb8 agent (node n1, version "), "{text}");
    agent.stop().await;
}

fn settings_at(port: &str) -> orb8_agent::config::Settings {
    let flags = ["orb8-agent", "--grpc-port", port];
    orb8_agent::config::parse(flags).unwrap().settings
}

#[tokio::test]
async fn a_port_taken_by_somebody_else_is_named_alone() {
    let other = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let port = other.local_addr().unwrap().port().to_string();
    let never: orb8_agent::datapath::Start = Box::new(|_, _| unreachable!("it must not load"));
    let error = Agent::start(&settings_at(&port), parts(never, Vec::new())).await.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("is taken: stop what listens there"), "{error}");
}

#[tokio::test]
async fn an_address_that_is_not_ours_is_a_bad_setting() {
    let settings = settings(&["--grpc-listen", "192.0.2.1"]);
    let never: orb8_agent::datapath::Start = Box::new(|_, _| unreachable!("it must not load"));
    let error = Agent::start(&settings, parts(never, Vec::new())).await.unwrap_err();
    assert_eq!(error.exit_code(), 2);
    assert!(error.to_string().contains("192.0.2.1:0"), "{error}");
}

fn refused() -> orb8_agent::datapath::Start {
    Box::new(|_, _| Err(StartError { message: "load the programs: EPERM".to_owned() }))
}

#[tokio::test]
async fn without_strict_a_missing_need_leaves_the_agent_up_and_unhealthy() {
    let (script, _source) = Script::new("script");
    let datapath = ScriptedDatapath::attached("eth0", 2);
    let agent = TestAgent::made_of(&[], SystemClock::shared(), refused(), script, datapath).await;
    let status = agent.client().await.get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert!(!status.healthy);
    assert_eq!(status.health_message, "load the programs: EPERM");
    let answer = query(&agent, QueryFlowsRequest::default()).await.unwrap();
    assert_eq!(answer.context.unwrap().health_message, "load the programs: EPERM");
    assert!(!answer.nodes[0].complete);
    let request = StreamEventsRequest { packets: true, ..StreamEventsRequest::default() };
    let error = agent.client().await.stream_events(request).await.unwrap_err();
    assert_eq!(error.code(), Code::FailedPrecondition);
    assert_eq!(health(agent.address).await, 2, "NOT_SERVING");
    agent.stop().await;
}

#[tokio::test]
async fn with_strict_a_missing_need_ends_the_agent_with_4() {
    let strict = settings(&["--strict"]);
    let error = Agent::start(&strict, parts(refused(), Vec::new())).await.unwrap_err();
    assert_eq!((error.exit_code(), matches!(error, AgentError::Need(_))), (4, true));
    let never: orb8_agent::datapath::Start = Box::new(|_, _| unreachable!("it must not load"));
    let checks = vec![preflight::kernel("4.4.0"), preflight::btf(true)];
    let error = Agent::start(&strict, parts(never, checks)).await.unwrap_err();
    assert!(error.to_string().contains("kernel 4.4.0 is older than 5.10"), "{error}");
    assert_eq!(error.exit_code(), 4);
}

/// The standard health service's answer for the whole server.
async fn health(address: std::net::SocketAddr) -> i32 {
    use tonic_health::pb::health_client::HealthClient;
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{address}")).unwrap();
    let mut client = HealthClient::new(endpoint.connect().await.unwrap());
    let request = tonic_health::pb::HealthCheckRequest { service: String::new() };
    client.check(request).await.unwrap().into_inner().status
}

#[tokio::test]
async fn health_and_reflection_are_served() {
    use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
    use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
    use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;
    let agent = TestAgent::start().await;
    assert_eq!(health(agent.address).await, 1, "SERVING");
    let endpoint = tonic::transport::Endpoint::from_shared(format!("http://{}", agent.address));
    let mut client = ServerReflectionClient::new(endpoint.unwrap().connect().await.unwrap());
    let request = tonic_reflection::pb::v1::ServerReflectionRequest {
        host: String::new(),
        message_request: Some(MessageRequest::ListServices(String::new())),
    };
    let mut answers =
        client.server_reflection_info(tokio_stream::once(request)).await.unwrap().into_inner();
    let answer = answers.message().await.unwrap().unwrap();
    let Some(MessageResponse::ListServicesResponse(list)) = answer.message_response else {
        panic!("{answer:?}");
    };
    let names: Vec<_> = list.service.into_iter().map(|service| service.name).collect();
    for name in ["orb8.v1.OrbitAgentService", "grpc.health.v1.Health"] {
        assert!(names.iter().any(|known| known == name), "{name}: {names:?}");
    }
    drop(answers);
    agent.stop().await;
}

#[tokio::test]
async fn places_for_subscribers_are_bounded() {
    let agent = TestAgent::start().await;
    let mut streams = Vec::new();
    let mut client = connect(agent.address).await;
    for _ in 0..orb8_agent::export::hub::MAX_SUBSCRIBERS {
        streams.push(client.stream_events(StreamEventsRequest::default()).await.unwrap());
    }
    let error = client.stream_events(StreamEventsRequest::default()).await.unwrap_err();
    assert_eq!(error.code(), Code::ResourceExhausted);
    drop(streams);
    agent.wait_for_status("free places", |status| status.subscribers.is_empty()).await;
    agent.stop().await;
}

#[test]
fn those_who_wait_for_totals_leave_threads_to_all_others() {
    const THREADS: usize = 3;
    let runtime = tokio::runtime::Builder::new_current_thread()
        .max_blocking_threads(THREADS)
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        // It has no flow lines that could be read, so those who ask for totals wait long.
        let agent = TestAgent::start().await;
        let mut client = agent.client().await;
        let asking: Vec<_> = (0..2 * THREADS)
            .map(|_| {
                let mut client = client.clone();
                tokio::spawn(async move { client.get_totals(GetTotalsRequest::default()).await })
            })
            .collect();
        let status = tokio::time::timeout(DEADLINE / 4, client.get_status(GetStatusRequest {}));
        status.await.expect("status answers").unwrap();
        // Nobody was refused meanwhile; on a slow machine the first have waited in vain.
        for asked in asking.into_iter().filter(tokio::task::JoinHandle::is_finished) {
            assert_eq!(asked.await.unwrap().unwrap_err().code(), Code::DeadlineExceeded);
        }
    });
    // The others wait on.
    runtime.shutdown_background();
}
