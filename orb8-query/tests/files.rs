//! Saved files: what is read as a flow, what else may be in them, and what is refused.

use orb8_proto::v1::QueryFlowsRequest;
use orb8_query::file::{self, FileAnswer, FileError};

fn read(text: &str) -> Result<FileAnswer, FileError> {
    file::query(text.as_bytes(), &QueryFlowsRequest::default())
}

#[test]
fn a_recorded_stream_gives_the_latest_state_of_each_flow() {
    let answer = read(concat!(
        r#"{"type":"flow_start","src_ip":"a","dst_ip":"b","node_name":"n","flow_id":7,"bytes":1}"#,
        "\n",
        r#"{"type":"flow_start","src_ip":"a","dst_ip":"b","node_name":"m","flow_id":7,"bytes":2}"#,
        "\n",
        r#"{"type":"notice","severity":"info","code":"x","message":"y"}"#,
        "\n",
        r#"{"type":"packet","src_ip":"a","dst_ip":"b","bytes":60}"#,
        "\n",
        r#"{"type":"a_later_invention"}"#,
        "\n",
        r#"{"type":"flow_end","src_ip":"a","dst_ip":"b","node_name":"n","flow_id":7,"bytes":9}"#,
        "\n",
    ))
    .unwrap();
    let bytes: Vec<u64> = answer.flows.iter().map(|flow| flow.bytes).collect();
    assert_eq!(bytes, [9, 2]);
    assert_eq!((answer.held, answer.matched), (2, 2));
    assert!(answer.loss.is_empty());
}

#[test]
fn losses_in_a_recorded_stream_are_added_up() {
    let line = r#"{"type":"loss","stage":"ring","reason":"full","packets":0,"bytes":0,"events":3}"#;
    let answer = read(&format!("{line}\n{line}\n")).unwrap();
    assert_eq!(answer.loss.len(), 1);
    assert_eq!(answer.loss[0].events, 6);
}

#[test]
fn a_saved_document_brings_its_nodes_and_losses() {
    let answer = read(
        r#"{
          "flows": [{"src_ip": "a", "dst_ip": "b"}],
          "nodes": [{"node_name": "n", "state": "partial", "complete": false, "message": null}],
          "loss": [{"stage": "ring", "reason": "full", "packets": 1, "bytes": 2, "events": 3}]
        }"#,
    )
    .unwrap();
    assert_eq!(answer.flows.len(), 1);
    assert_eq!(answer.nodes[0].state, "partial");
    assert_eq!(answer.loss[0].packets, 1);
}

#[test]
fn keys_that_are_missing_or_new_are_no_obstacle() {
    let answer = read(r#"{"src_ip":"a","dst_ip":"b","tcp":null,"later":[1]}"#).unwrap();
    assert_eq!(answer.flows[0].src_ip, "a");
}

#[test]
fn an_empty_file_is_an_empty_answer() {
    for text in ["", "\n\n"] {
        assert_eq!(read(text).unwrap(), FileAnswer::default());
    }
}

#[test]
fn a_file_that_breaks_off_answers_with_what_precedes() {
    let answer = read("{\"src_ip\":\"a\",\"dst_ip\":\"b\"}\n{\"src_ip\":\"a\",\"ds").unwrap();
    assert_eq!(answer.flows.len(), 1);
    assert_eq!(answer.cut_off_at_line, Some(2));
}

#[test]
fn what_is_no_flow_is_refused_with_its_place() {
    for (text, message) in [
        (
            "{\"src_ip\":\"a\",\"dst_ip\":\"b\"}\nhello\n",
            "line 2 is not JSON: expected value at line 2 column 1; save flows with -o jsonl",
        ),
        (
            "{\"src_ip\":\"a\",\"dst_ip\":\"b\"}\n{\"a\":1}\n",
            "object 2 is not a flow: it has no src_ip and dst_ip; save flows with -o jsonl",
        ),
        ("[1]", "object 1 is not a flow: it is a list, not an object; save flows with -o jsonl"),
        (
            "{\"src_ip\":\"a\",\"dst_ip\":\"b\",\"bytes\":-1}",
            "object 1 is not a flow: invalid value: integer `-1`, expected u64; save flows with -o jsonl",
        ),
        (
            "{\"flows\":3}",
            "object 1 is not a flow: its `flows` is not a list; save flows with -o jsonl",
        ),
    ] {
        assert_eq!(read(text).unwrap_err().to_string(), message, "{text}");
    }
}

#[test]
fn a_reader_that_fails_is_told() {
    struct Broken;
    impl std::io::Read for Broken {
        fn read(&mut self, _: &mut [u8]) -> std::io::Result<usize> {
            Err(std::io::Error::other("the disk is gone"))
        }
    }
    let error = file::query(Broken, &QueryFlowsRequest::default()).unwrap_err();
    assert_eq!(error.to_string(), "cannot read: the disk is gone");
}
