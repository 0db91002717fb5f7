//! The client against scripted agents: who answered, who did not and why, and what becomes of it.

#[allow(dead_code, reason = "shared with tests that use more of it")]
#[path = "support/fake_agent.rs"]
mod fake_agent;

use std::io::{Read as _, Write as _};
use std::time::Duration;

use fake_agent::{End, FakeAgent, Script};
use futures_util::StreamExt;
use orb8_proto::v1::{
    AgentStatus, AnswerContext, Event, FlowEvent, Loss, NetworkFlow, NodeStatus, Notice,
    QueryFlowsRequest, QueryFlowsResponse, StreamEventsRequest, event, flow_event,
};
use orb8_query::stream::StreamItem;
use orb8_query::{Client, ErrorKind};
use orb8_util::net::HostPort;
use tonic::Status;

const ENOUGH: Duration = Duration::from_secs(30);

fn client(addresses: &[String], timeout: Duration) -> Client {
    let addresses: Vec<HostPort> =
        addresses.iter().map(|address| address.parse().expect("HOST:PORT")).collect();
    Client::new(&addresses, timeout)
}

fn node(name: &str, flows: &[u64]) -> Script {
    let flow = |bytes: &u64| NetworkFlow {
        node_name: name.to_owned(),
        bytes: *bytes,
        ..NetworkFlow::default()
    };
    Script {
        flows: Ok(QueryFlowsResponse {
            flows: flows.iter().map(flow).collect(),
            nodes: vec![NodeStatus {
                node_name: name.to_owned(),
                state: "ok".to_owned(),
                complete: true,
                message: String::new(),
            }],
            matched: flows.len() as u64,
            context: Some(AnswerContext { flows_held: 9, ..AnswerContext::default() }),
            loss: Vec::new(),
        }),
        status: Ok(AgentStatus { node_name: name.to_owned(), ..AgentStatus::default() }),
        ..Script::default()
    }
}

/// An address at which nothing listens: the port was free a moment ago.
fn closed_port() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    listener.local_addr().expect("a bound listener").to_string()
}

#[tokio::test]
async fn answers_of_all_agents_become_one_sorted_and_limited() {
    let a = FakeAgent::start(node("a", &[5, 1]));
    let b = FakeAgent::start(node("b", &[4, 3]));
    let request = QueryFlowsRequest { limit: 3, ..QueryFlowsRequest::default() };
    let answer = client(&[b.address(), a.address()], ENOUGH).query_flows(&request).await;
    let bytes: Vec<u64> = answer.flows.iter().map(|flow| flow.bytes).collect();
    assert_eq!(bytes, [5, 4, 3]);
    assert_eq!(answer.matched, 4);
    let names: Vec<&str> = answer.nodes.iter().map(|node| node.node_name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(answer.contexts.len(), 2);
    assert!(answer.is_complete());
    assert_eq!(a.asked().flows, [request]);
}

#[tokio::test]
async fn an_agent_that_is_listed_twice_is_asked_once() {
    let agent = FakeAgent::start(node("a", &[1]));
    let client = client(&[agent.address(), agent.address()], ENOUGH);
    assert_eq!(client.query_flows(&QueryFlowsRequest::default()).await.flows.len(), 1);
    assert_eq!(agent.asked().flows.len(), 1);
}

#[tokio::test]
async fn a_missing_agent_leaves_the_others_answer_and_is_named() {
    let agent = FakeAgent::start(node("a", &[1]));
    let gone = closed_port();
    let client = client(&[agent.address(), gone.clone()], ENOUGH);
    let answer = client.query_flows(&QueryFlowsRequest::default()).await;
    assert_eq!(answer.flows.len(), 1);
    assert!(!answer.is_complete());
    let missing = answer.nodes.iter().find(|node| node.node_name == gone).unwrap();
    assert_eq!(missing.state, "unreachable");
    assert!(!missing.complete);
    assert_eq!(missing.message, format!("cannot reach the agent at {gone}: connection refused"));
}

#[tokio::test]
async fn loss_and_partial_nodes_make_an_answer_incomplete() {
    let lossy = |change: fn(&mut QueryFlowsResponse)| {
        let mut script = node("a", &[1]);
        change(script.flows.as_mut().expect("a response"));
        script
    };
    for script in [
        lossy(|response| {
            let stage = "ring".to_owned();
            response.loss = vec![Loss { stage, events: 1, ..Loss::default() }];
        }),
        lossy(|response| response.nodes[0].complete = false),
        lossy(|response| response.nodes[0].state = "partial".to_owned()),
    ] {
        let agent = FakeAgent::start(script);
        let client = client(&[agent.address()], ENOUGH);
        assert!(!client.query_flows(&QueryFlowsRequest::default()).await.is_complete());
    }
}

/// The kind and sentence of the error of a lone agent.
async fn error_of(address: &str, timeout: Duration) -> (ErrorKind, String) {
    let client = client(&[address.to_owned()], timeout);
    let answer = client.query_flows(&QueryFlowsRequest::default()).await;
    let error = answer.errors.first().expect("an error");
    (error.kind, error.to_string().replace(address, "AGENT"))
}

#[tokio::test]
async fn failures_are_told_apart() {
    for (status, kind, sentence) in [
        (
            Status::invalid_argument("limit 9 is above the maximum, 5"),
            ErrorKind::BadRequest,
            "the agent at AGENT refuses the request: limit 9 is above the maximum, 5",
        ),
        (
            Status::internal("the flow table is gone"),
            ErrorKind::Failed,
            "the agent at AGENT failed: the flow table is gone",
        ),
        (
            Status::unavailable("starting"),
            ErrorKind::Unreachable,
            "cannot reach the agent at AGENT: starting",
        ),
        (
            Status::unimplemented(""),
            ErrorKind::NotOrb8,
            "what listens at AGENT does not answer as an orb8 agent: it does not serve orb8.v1.OrbitAgentService",
        ),
        (
            Status::resource_exhausted(""),
            ErrorKind::Failed,
            "the agent at AGENT failed: ResourceExhausted without a message",
        ),
    ] {
        let agent = FakeAgent::start(Script { flows: Err(status), ..Script::default() });
        assert_eq!(error_of(&agent.address(), ENOUGH).await, (kind, sentence.to_owned()));
    }
}

#[tokio::test]
async fn an_agent_that_is_silent_times_out() {
    let agent = FakeAgent::start(Script { silent: true, ..Script::default() });
    assert_eq!(
        error_of(&agent.address(), Duration::from_millis(200)).await,
        (ErrorKind::Timeout, "the agent at AGENT did not answer within 200ms".to_owned())
    );
}

#[tokio::test]
async fn a_host_that_does_not_exist_is_unreachable() {
    // Reserved for names that must not exist.
    let (kind, sentence) = error_of("nowhere.invalid:9090", ENOUGH).await;
    assert_eq!(kind, ErrorKind::Unreachable);
    assert!(sentence.starts_with("cannot reach the agent at AGENT: "), "{sentence}");
}

/// Serves one connection by hand: reads something, says `answer`, and waits for the other side to
/// hang up if it is to `wait`.
fn serve_by_hand(answer: &'static [u8], wait: bool) -> (String, std::thread::JoinHandle<()>) {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").expect("a free port");
    let address = listener.local_addr().expect("a bound listener").to_string();
    let server = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().expect("a connection");
        let mut request = [0; 16];
        stream.read_exact(&mut request).expect("a request");
        stream.write_all(answer).expect("an answer");
        if wait {
            // A reset is as good an end as a regular one.
            drop(std::io::copy(&mut stream, &mut std::io::sink()));
        }
    });
    (address, server)
}

#[tokio::test]
async fn a_web_server_is_not_taken_for_an_agent() {
    let (address, server) =
        serve_by_hand(b"HTTP/1.1 400 Bad Request\r\nContent-Length: 0\r\n\r\n", true);
    let (kind, sentence) = error_of(&address, ENOUGH).await;
    server.join().unwrap();
    assert_eq!(kind, ErrorKind::NotOrb8, "{sentence}");
    assert!(
        sentence.starts_with(
            "what listens at AGENT does not answer as an orb8 agent: it does not speak gRPC ("
        ),
        "{sentence}"
    );
}

#[tokio::test]
async fn a_connection_that_breaks_before_the_answer_is_told() {
    let (address, server) = serve_by_hand(b"", false);
    let (kind, sentence) = error_of(&address, ENOUGH).await;
    server.join().unwrap();
    assert_eq!(kind, ErrorKind::Broken, "{sentence}");
    assert!(sentence.starts_with("the connection to the agent at AGENT broke: "), "{sentence}");
}

#[tokio::test]
async fn statuses_come_by_node_with_the_missing_named() {
    let (a, b) = (FakeAgent::start(node("a", &[])), FakeAgent::start(node("b", &[])));
    let answer = client(&[b.address(), closed_port(), a.address()], ENOUGH).status().await;
    let names: Vec<&str> = answer.agents.iter().map(|agent| agent.node_name.as_str()).collect();
    assert_eq!(names, ["a", "b"]);
    assert_eq!(answer.nodes.len(), 3);
    assert_eq!(answer.errors.len(), 1);
}

fn event(node: &str, time_ns: i64) -> Event {
    Event {
        node_name: node.to_owned(),
        time_ns,
        payload: Some(event::Payload::Flow(FlowEvent {
            r#type: flow_event::Type::Start.into(),
            flow: Some(NetworkFlow::default()),
        })),
    }
}

#[tokio::test]
async fn streams_of_all_agents_arrive_and_each_end_is_told() {
    let notice =
        Event { payload: Some(event::Payload::Notice(Notice::default())), ..event("b", 3) };
    let a = FakeAgent::start(Script {
        events: vec![event("a", 1), event("a", 2)],
        end: End::Close,
        ..Script::default()
    });
    let b = FakeAgent::start(Script {
        events: vec![notice],
        end: End::Fail(Status::internal("out of order")),
        ..Script::default()
    });
    let gone = closed_port();
    let client = client(&[a.address(), b.address(), gone.clone()], ENOUGH);
    let (stream, errors) = client.stream(&StreamEventsRequest::default()).await;
    assert_eq!(errors.len(), 1);
    assert_eq!(errors[0].address.to_string(), gone);
    let items: Vec<StreamItem> = stream.collect().await;
    let times: Vec<i64> = items
        .iter()
        .filter_map(|item| match item {
            StreamItem::Event(event) if event.node_name == "a" => Some(event.time_ns),
            _ => None,
        })
        .collect();
    assert_eq!(times, [1, 2], "one agent's events keep their order");
    let mut ends: Vec<ErrorKind> = items
        .iter()
        .filter_map(|item| match item {
            StreamItem::Ended(error) => Some(error.kind),
            StreamItem::Event(_) => None,
        })
        .collect();
    ends.sort_by_key(|kind| *kind != ErrorKind::Ended);
    assert_eq!(ends, [ErrorKind::Ended, ErrorKind::Failed]);
    assert_eq!(items.len(), 5);
}

#[tokio::test]
async fn an_agent_that_says_that_it_stops_ends_the_stream_with_its_words() {
    let end = End::Fail(Status::unavailable("the agent is stopping"));
    let agent = FakeAgent::start(Script { end, ..Script::default() });
    let client = client(&[agent.address()], ENOUGH);
    let (mut stream, _) = client.stream(&StreamEventsRequest::default()).await;
    let Some(StreamItem::Ended(error)) = stream.next().await else { panic!("no end") };
    assert_eq!((error.kind, error.cause.as_str()), (ErrorKind::Ended, "the agent is stopping"));
}

#[tokio::test]
async fn an_agent_that_dies_under_a_stream_ends_it_with_a_reason() {
    let agent = FakeAgent::start(Script { events: vec![event("a", 1)], ..Script::default() });
    let client = client(&[agent.address()], ENOUGH);
    let (mut stream, errors) = client.stream(&StreamEventsRequest::default()).await;
    assert!(errors.is_empty());
    assert!(matches!(stream.next().await, Some(StreamItem::Event(_))));
    drop(agent);
    let Some(StreamItem::Ended(error)) = stream.next().await else { panic!("no end") };
    assert_eq!(error.state(), "unreachable", "{error}");
    assert_eq!(stream.next().await, None);
}
