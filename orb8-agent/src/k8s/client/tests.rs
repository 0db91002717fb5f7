//! The recorded refusals of a real API server, and what is made of them.

use std::path::PathBuf;

use http::HeaderName;

use super::*;

/// A recorded answer: its status, headers and body.
fn recorded(name: &str, kind: &str) -> (StatusCode, HeaderMap, Vec<u8>) {
    let folder = PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/kubernetes/errors");
    let read = |file: String| std::fs::read(folder.join(file)).expect("it was recorded");
    let head = String::from_utf8(read(format!("{name}.headers"))).expect("headers are text");
    let mut lines = head.lines();
    let status = lines.next().and_then(|line| line.split(' ').nth(1)).expect("a status line");
    let mut headers = HeaderMap::new();
    for (key, value) in lines.filter_map(|line| line.split_once(": ")) {
        let key = HeaderName::from_bytes(key.as_bytes()).expect("a header's name");
        headers.insert(key, value.parse().expect("a header's value"));
    }
    (status.parse().expect("a status"), headers, read(format!("{name}.{kind}")))
}

fn refused(name: &str, kind: &str) -> AskError {
    let (status, headers, body) = recorded(name, kind);
    refusal(status, &headers, &body)
}

#[test]
fn recorded_refusals_mean_what_they_say() {
    for name in ["401-bad-token", "401-watch-bad-token"] {
        assert_eq!(refused(name, "json"), AskError::Unauthorized("Unauthorized".to_owned()));
    }
    for (name, told) in [
        ("403-anonymous", "system:anonymous"),
        ("403-list-nodes", "cannot list resource \"nodes\" in API group \"\" at the cluster scope"),
        ("403-watch-services", "cannot watch resource \"services\""),
    ] {
        let AskError::Forbidden(message) = refused(name, "json") else { panic!("{name}") };
        assert!(message.contains(told), "{name}: {message}");
    }
    for name in ["410-list-exact-version", "410-list-expired-continue"] {
        assert!(matches!(refused(name, "json"), AskError::Gone(_)), "{name}");
    }
    for (name, kind, code, after) in [
        ("404-unknown-group", "txt", 404, None),
        ("429-list-pods", "txt", 429, Some(1)),
        ("429-eviction", "json", 429, None),
        ("500-resource-version", "json", 500, None),
        ("504-list-future-version", "json", 504, Some(1)),
    ] {
        let AskError::Refused { status, message, retry_after } = refused(name, kind) else {
            panic!("{name}")
        };
        assert_eq!((status, retry_after), (code, after.map(Duration::from_secs)), "{name}");
        assert!(!message.is_empty() && message.len() <= MAX_MESSAGE, "{name}");
    }
}

#[test]
fn a_watch_that_is_too_old_is_answered_with_success_and_an_event() {
    for name in ["410-watch-expired", "410-watch-expired-nodes"] {
        let (status, _, body) = recorded(name, "ndjson");
        assert!(status.is_success());
        let event: serde_json::Value = serde_json::from_slice(&body).expect("one event");
        assert_eq!(event["type"], "ERROR");
        let AskError::Gone(message) = refusal_event(&event["object"].to_string()) else {
            panic!("{name}")
        };
        assert!(message.starts_with("too old resource version"), "{message}");
    }
}

#[test]
fn a_refusal_without_words_is_one_all_the_same() {
    let error = refusal(StatusCode::SERVICE_UNAVAILABLE, &HeaderMap::new(), b"\xff\xfe");
    assert!(matches!(error, AskError::Refused { status: 503, retry_after: None, .. }));
    assert!(matches!(refusal_event("{}"), AskError::Refused { status: 500, .. }));
}
