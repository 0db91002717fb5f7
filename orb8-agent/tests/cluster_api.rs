//! The API server of the testbed, asked by a real client: what the tests of identity stand on.

use std::time::Duration;

use futures_util::{Stream, StreamExt as _};
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::{Api, ListParams, WatchEvent, WatchParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use orb8_testbed::api::fault::Failure;
use orb8_testbed::api::object::{self, Owner};
use orb8_testbed::api::pod::{Pod as PodObject, Stage};
use orb8_testbed::api::{ApiServer, count::Requests};

/// How long an answer may take.
const DEADLINE: Duration = Duration::from_secs(30);

async fn client(server: &ApiServer, name: &str) -> Client {
    let file = server.kubeconfig(name);
    let kubeconfig = Kubeconfig::read_from(file).expect("a kubeconfig");
    let options = KubeConfigOptions::default();
    let config = Config::from_custom_kubeconfig(kubeconfig, &options).await.expect("a config");
    Client::try_from(config).expect("a client")
}

fn with_pods(count: usize) -> ApiServer {
    let server = ApiServer::local();
    for number in 0..count {
        let node = if number % 2 == 0 { "node1" } else { "node2" };
        let pod = PodObject::new("shop", &format!("web-{number}"), node);
        server.put(pod.object(Stage::Running));
    }
    server
}

type Event<T> = kube::Result<WatchEvent<T>>;

async fn next<T>(stream: &mut (impl Stream<Item = Event<T>> + Unpin)) -> Option<Event<T>> {
    tokio::time::timeout(DEADLINE, stream.next()).await.expect("an event or an end in time")
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("expected a Status, not {other:?}"),
    }
}

#[tokio::test]
async fn a_list_comes_in_pages_of_one_moment() {
    let server = with_pods(5);
    let pods: Api<Pod> = Api::all(client(&server, "pager").await);
    let first = pods.list(&ListParams::default().limit(2)).await.expect("a page");
    assert_eq!((first.items.len(), first.metadata.remaining_item_count), (2, Some(3)));
    server.delete("pods", "shop", "web-4");
    let token = first.metadata.continue_.expect("more pages");
    let page = ListParams::default().limit(2).continue_token(&token);
    let second = pods.list(&page).await.expect("a page");
    assert_eq!(second.metadata.resource_version, first.metadata.resource_version);
    let token = second.metadata.continue_.expect("more pages");
    let last = pods.list(&ListParams::default().limit(2).continue_token(&token)).await.expect("it");
    assert_eq!(last.items.len(), 1, "the deleted pod belongs to the moment of the first page");
    assert_eq!(last.metadata.continue_, None);
    server.compact();
    assert_eq!(code(pods.list(&page).await), 410);
    let counted = server.requests("pager", "pods");
    assert_eq!((counted.lists, counted.pages), (1, 4));
}

#[tokio::test]
async fn a_watch_tells_changes_in_order_through_its_selector() {
    let server = with_pods(2);
    let pods: Api<Pod> = Api::all(client(&server, "watcher").await);
    let selector = "spec.nodeName=node1";
    let list = pods.list(&ListParams::default().fields(selector)).await.expect("a list");
    assert_eq!(list.items.len(), 1);
    let version = list.metadata.resource_version.expect("a version");
    let stream = pods.watch(&WatchParams::default().fields(selector), &version).await;
    let mut stream = stream.expect("a watch").boxed();
    let mut pod = PodObject::new("shop", "late", "node1");
    for stage in [Stage::Created, Stage::Bound, Stage::Running] {
        pod.ips = vec![[10, 244, 1, 7].into()];
        server.put(pod.object(stage));
    }
    server.delete("pods", "shop", "late");
    server.bookmark();
    let mut told = Vec::new();
    while told.len() < 4 {
        told.push(match next(&mut stream).await.expect("the watch is open").expect("an event") {
            WatchEvent::Added(pod) => format!("added {}", pod.metadata.name.unwrap_or_default()),
            WatchEvent::Modified(pod) => {
                format!("modified {}", pod.status.and_then(|s| s.pod_ip).unwrap_or_default())
            }
            WatchEvent::Deleted(pod) => {
                format!("deleted {}", pod.metadata.name.unwrap_or_default())
            }
            WatchEvent::Bookmark(_) => "bookmark".to_owned(),
            WatchEvent::Error(status) => format!("error {}", status.code),
        });
    }
    assert_eq!(told, ["added late", "modified 10.244.1.7", "deleted late", "bookmark"]);
}

#[tokio::test]
async fn a_watch_from_a_compacted_version_is_gone_and_a_cut_one_ends() {
    let server = with_pods(1);
    let nodes: Api<Node> = Api::all(client(&server, "late").await);
    let list = nodes.list(&ListParams::default()).await.expect("a list");
    let version = list.metadata.resource_version.expect("a version");
    server.put(object::node("node1", &[[172, 30, 0, 11].into()], &["10.244.1.0/24".into()], "a"));
    let params = WatchParams::default();
    let mut open = nodes.watch(&params, &version).await.expect("a watch").boxed();
    assert!(matches!(next(&mut open).await, Some(Ok(WatchEvent::Added(_)))));
    server.compact();
    server.cut();
    match next(&mut open).await {
        None | Some(Err(_)) => {}
        other => panic!("a cut watch tells {other:?}"),
    }
    let mut again = nodes.watch(&params, &version).await.expect("a watch").boxed();
    match next(&mut again).await {
        Some(Ok(WatchEvent::Error(status))) => assert_eq!(status.code, 410),
        other => panic!("expected 410, not {other:?}"),
    }
    assert_eq!(server.requests("late", "nodes").watches, 2);
}

#[tokio::test]
async fn metadata_alone_is_served_on_request() {
    let server = ApiServer::local();
    let deployment = Owner::new("Deployment", "web");
    let set = object::owned("ReplicaSet", "shop", "web-1", &object::uid(), Some(&deployment));
    server.put(set);
    let sets: Api<ReplicaSet> = Api::all(client(&server, "owners").await);
    let list = sets.list_metadata(&ListParams::default()).await.expect("a list");
    let owners = list.items[0].metadata.owner_references.as_ref().expect("an owner");
    assert_eq!(owners[0].name, "web");
    let version = list.metadata.resource_version.expect("a version");
    let mut stream =
        sets.watch_metadata(&WatchParams::default(), &version).await.expect("a watch").boxed();
    server.put(object::owned("ReplicaSet", "shop", "web-2", &object::uid(), Some(&deployment)));
    match next(&mut stream).await {
        Some(Ok(WatchEvent::Added(set))) => assert_eq!(set.metadata.name.as_deref(), Some("web-2")),
        other => panic!("expected the new set, not {other:?}"),
    }
}

#[tokio::test]
async fn every_failure_can_be_switched_on_and_off() {
    let server = with_pods(1);
    let pods: Api<Pod> = Api::all(client(&server, "sufferer").await);
    let params = ListParams::default();
    let list = || pods.list(&params);
    server.forbid("pods");
    assert_eq!(code(list().await), 403);
    server.heal();
    server.fail(Failure::Status(500));
    assert_eq!(code(list().await), 500);
    // The client itself waits as long as it is told to, and asks again.
    server.faults().switches().failing = Some((Failure::TooMany(1), Some(1)));
    assert_eq!(list().await.expect("the second request is served").items.len(), 1);
    assert_eq!(server.requests("sufferer", "pods").refused, 3);
    server.heal();
    server.close_port();
    assert!(list().await.is_err(), "nobody listens");
    server.open_port();
    assert_eq!(list().await.expect("all is well again").items.len(), 1);
    server.stall();
    let silent = tokio::time::timeout(Duration::from_millis(200), list()).await;
    assert!(silent.is_err(), "a stalled server says nothing");
    server.heal();
    assert_eq!(list().await.expect("all is well again").items.len(), 1);
    assert_eq!(server.requests("nobody", ""), Requests::default());
}
