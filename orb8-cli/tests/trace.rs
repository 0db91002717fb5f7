//! `orb8 trace network` as people and programs see it.

mod support;

use insta::assert_snapshot;
use orb8_cli::args::{Cli, TraceVerb, TraceWord, Verb};
use orb8_cli::error::Exit;
use orb8_cli::network::args::TraceArgs;
use orb8_cli::network::explain;
use orb8_proto::v1::event::Payload;
use orb8_proto::v1::{AnswerContext, Event, Loss, QueryFlowsResponse};
use support::fake_agent::{End, FakeAgent, Script};
use support::{NOW, Run, orb8, orb8_until, sample};
use tonic::Status;

fn agent(events: Vec<Event>, end: End) -> FakeAgent {
    FakeAgent::start(Script { events, end, ..Script::default() })
}

/// Watches the sample events until the last of them, a line that says `last`.
fn trace_until(last: &str, words: &[&str]) -> Run {
    let words: Vec<&str> = ["trace", "network"].iter().chain(words).copied().collect();
    orb8_until(&words, &[&agent(sample::events(NOW), End::Open)], last)
}

fn trace(words: &[&str]) -> Run {
    trace_until("flow_end", words)
}

#[test]
fn table_has_a_line_an_event_and_tells_notices_on_stderr() {
    assert_snapshot!(trace_until(" end ", &[]).page());
}

#[test]
fn wide_adds_columns() {
    assert_snapshot!(trace_until(" end ", &["-o", "wide"]).page());
}

#[test]
fn json_is_one_object_a_line_with_type_and_the_keys_at_top_level() {
    let run = trace(&["-o", "json"]);
    assert_snapshot!("json", run.page());
    assert_eq!(trace(&["-o", "jsonl"]).out, run.out);
}

#[test]
fn yaml_is_one_document_an_event() {
    assert_snapshot!("yaml", trace(&["-o", "yaml", "--fields", "src_ip,state,tcp_flags"]).page());
}

#[test]
fn csv_has_the_columns_of_events() {
    assert_snapshot!("csv", trace(&["-o", "csv"]).page());
}

#[test]
fn fields_choose_columns_and_keys() {
    let run = trace_until(" end ", &["--fields", "time,event,src,bytes,tcp_flags"]);
    assert_snapshot!("fields_table", run.page());
    assert_snapshot!("fields_json", trace(&["-o", "json", "--fields", "src_ip,bytes"]).page());
}

#[test]
fn the_subscription_carries_filter_interval_and_packets() {
    let agent = agent(Vec::new(), End::Close);
    let words = "trace network --protocol icmp --packets --rate-limit 50 --interval 2s";
    let words: Vec<&str> = words.split(' ').collect();
    orb8(&words, &[&agent], b"");
    let asked = agent.asked().streams.remove(0);
    assert_eq!(asked.update_interval_ms, 2000);
    assert!(asked.packets);
    assert_eq!(asked.packet_rate_limit, 50);
    assert_eq!(asked.filter.unwrap().all.len(), 2, "the second leaves out what passes the node");
}

#[test]
fn loss_is_told_as_it_happens_and_summed_up_and_exits_with_3() {
    let lost = |events| Loss {
        stage: "subscriber".to_owned(),
        reason: "queue_full".to_owned(),
        events,
        ..Loss::default()
    };
    let events = vec![
        sample::event(NOW, Payload::Loss(lost(5))),
        sample::event(NOW, Payload::Loss(lost(1))),
        sample::event(NOW, Payload::Loss(sample::loss())),
    ];
    let run = |words: &[&str]| {
        let words: Vec<&str> = ["trace", "network"].iter().chain(words).copied().collect();
        orb8_until(&words, &[&agent(events.clone(), End::Open)], "flow_table_full")
    };
    assert_snapshot!("loss_table", run(&[]).page());
    assert_snapshot!("loss_json", run(&["-o", "json"]).page());
    assert_eq!(run(&["--allow-partial"]).exit, Exit::Done);
}

#[test]
fn packets_that_no_packet_stands_for_yet_are_told_as_sampled_beside_the_sum_of_weights() {
    let packets = sample::events(NOW).into_iter();
    let mut events: Vec<Event> =
        packets.filter(|event| matches!(event.payload, Some(Payload::Packet(_)))).collect();
    let sampled = |packets| Loss {
        stage: "packet_view".to_owned(),
        reason: "sampled".to_owned(),
        packets,
        ..Loss::default()
    };
    events.extend([3, 4].map(|packets| sample::event(NOW, Payload::Loss(sampled(packets)))));
    let run = |words: &[&str]| {
        let words: Vec<&str> =
            ["trace", "network", "--packets"].iter().chain(words).copied().collect();
        orb8_until(&words, &[&agent(events.clone(), End::Open)], "4 packets at packet_view")
    };
    assert_snapshot!("sampled_table", run(&[]).page());
    let json = orb8_until(
        &["trace", "network", "--packets", "-o", "json"],
        &[&agent(events.clone(), End::Open)],
        r#""reason":"sampled","packets":4"#,
    );
    assert_snapshot!("sampled_json", json.page());
    assert_eq!(run(&["--allow-partial"]).exit, Exit::Done);
}

#[test]
fn an_agent_that_ends_its_stream_is_told_and_exits_with_3() {
    let stopping = || agent(Vec::new(), End::Close);
    assert_snapshot!("ended_table", orb8(&["trace", "network"], &[&stopping()], b"").page());
    let run = orb8(&["trace", "network", "-o", "json"], &[&stopping()], b"");
    assert_snapshot!("ended_json", run.page().replace(&NOW.to_string(), "NOW"));
    let failing = agent(Vec::new(), End::Fail(Status::internal("out of order")));
    assert_snapshot!("failed_table", orb8(&["trace", "network"], &[&failing], b"").page());
}

#[test]
fn a_missing_agent_is_named_while_the_others_are_watched() {
    let silent = FakeAgent::start(Script { silent: true, ..Script::default() });
    let well = agent(sample::events(NOW), End::Open);
    let words = "trace network --timeout 2s -o csv --fields type,node_name";
    let words: Vec<&str> = words.split(' ').collect();
    assert_snapshot!(orb8_until(&words, &[&silent, &well], "flow_end").page());
}

#[test]
fn a_duration_ends_a_quiet_trace() {
    let flows = Ok(sample::response(NOW));
    let quiet = FakeAgent::start(Script { flows, ..Script::default() });
    for verb in ["trace network", "flows --follow"] {
        let words: Vec<&str> = verb.split(' ').chain(["--duration", "50ms"]).collect();
        let run = orb8(&words, &[&quiet], b"");
        assert_eq!(
            run.err,
            "note: 0 flows started, 0 ended, 0 updates; nothing lost\n\
             note: nothing went by on node-a: no packets seen on 1 interface meanwhile\n"
        );
        assert_eq!(run.exit, Exit::Done);
    }
}

fn seeing(change: impl FnOnce(&mut AnswerContext)) -> FakeAgent {
    let mut response = sample::response(NOW);
    change(response.context.as_mut().expect("a context"));
    FakeAgent::start(Script { flows: Ok(response), ..Script::default() })
}

#[test]
fn a_blind_agent_is_told_and_exits_with_3() {
    let words = ["trace", "network", "--duration", "50ms"];
    let unattached = || {
        seeing(|context| {
            context.interfaces_attached = 0;
            context.health_message = "CAP_BPF is missing".to_owned();
        })
    };
    assert_snapshot!("blind_table", orb8(&words, &[&unattached()], b"").page());
    let run = orb8(&[&words[..], &["-o", "json"]].concat(), &[&unattached()], b"");
    assert_snapshot!("blind_json", run.page());
    let run = orb8(&[&words[..], &["--allow-partial"]].concat(), &[&unattached()], b"");
    assert_eq!(run.exit, Exit::Done);
    let ill = seeing(|context| context.health_message = "eth1 cannot be attached".to_owned());
    assert_snapshot!("blind_ill", orb8(&words, &[&ill], b"").page());
}

#[test]
fn an_agent_that_counts_at_sockets_is_not_blind() {
    let words = ["trace", "network", "--duration", "50ms"];
    let at_sockets = seeing(|context| {
        context.interfaces_attached = 0;
        context.socket_plane = "attached".to_owned();
    });
    let run = orb8(&words, &[&at_sockets], b"");
    let quiet = "note: nothing went by on node-a: no packets seen at sockets meanwhile\n";
    assert!(run.err.ends_with(quiet), "{}", run.err);
    assert_eq!(run.exit, Exit::Done);
    let attaching = seeing(|context| {
        context.interfaces_attached = 0;
        context.interfaces_attaching = 2;
    });
    let run = orb8(&words, &[&attaching], b"");
    assert!(run.err.contains("the agent is still attaching"), "{}", run.err);
    assert_eq!(run.exit, Exit::Partial);
}

/// An agent that sees traffic, and knows of names what the context says.
fn knowing(kubernetes: &str, unmatched: &[(&str, &str)], near: &[&str]) -> FakeAgent {
    let mut told = sample::knowing(NOW, kubernetes, unmatched);
    for name in &mut told.unmatched {
        name.suggestions = near.iter().map(ToString::to_string).collect();
    }
    let response = QueryFlowsResponse { context: Some(told), ..sample::response(NOW) };
    FakeAgent::start(Script {
        flows: Ok(response),
        events: sample::events(NOW),
        ..Script::default()
    })
}

#[test]
fn a_name_that_nobody_has_is_told_at_the_start_of_a_watch() {
    /// An event of the sample.
    const NOTICE: &str = "no longer first on eth0";
    let no_pod = [("pod", "shop/wbe")];
    let mut said = String::new();
    for (line, agents) in [
        (
            "trace network --pod shop/wbe",
            vec![knowing("synced", &no_pod, &["shop/web", "shop/webd"])],
        ),
        ("flows -f --pod shop/wbe", vec![knowing("synced", &no_pod, &["shop/web"])]),
        ("flows -f --last 5 --pod shop/wbe", vec![knowing("synced", &no_pod, &[])]),
        ("trace network -n shpo", vec![knowing("synced", &[("namespace", "shpo")], &["shop"])]),
        ("trace network --pod shop/wbe", vec![knowing("connecting", &no_pod, &[])]),
        ("trace network --to-pod shop/wbe", vec![knowing("off", &no_pod, &[])]),
        ("flows -f --service cart", vec![knowing("stale", &[], &[])]),
        ("trace network --port 1", vec![knowing("stale", &[], &[])]),
        (
            "trace network --pod shop/wbe -o jsonl",
            vec![knowing("synced", &no_pod, &[]), knowing("synced", &[], &[])],
        ),
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let run = orb8_until(&words, &agents.iter().collect::<Vec<_>>(), NOTICE);
        assert_eq!(run.exit, Exit::Done, "{}", run.err);
        // What precedes the events, and the sum where those are all on stdout.
        let is_later = |line: &&str| line.contains(NOTICE) || line.contains("started");
        let first: Vec<&str> = run.err.lines().take_while(|line| !is_later(line)).collect();
        assert!(run.err.lines().count() > first.len(), "{}", run.err);
        said += &format!("$ orb8 {line}\n{}\n\n", first.join("\n"));
    }
    assert_snapshot!(said);
}

#[test]
fn a_quiet_watch_does_not_say_twice_what_was_said_at_its_start() {
    let mut response = sample::response(NOW);
    response.context = Some(sample::knowing(NOW, "stale", &[("pod", "shop/wbe")]));
    let agent = FakeAgent::start(Script { flows: Ok(response), ..Script::default() });
    for verb in ["trace network", "flows -f", "flows -f --last 5"] {
        let words = verb.split(' ').chain(["--pod", "shop/wbe", "--duration", "50ms"]);
        let run = orb8(&words.collect::<Vec<_>>(), &[&agent], b"");
        assert_eq!(
            run.err,
            "note: no pod named wbe* in namespace shop is known (Kubernetes API stale)\n\
             note: node-a may not know all names: its Kubernetes API is stale; `orb8 status` has \
             the reason\n\
             note: 0 flows started, 0 ended, 0 updates; nothing lost\n\
             note: nothing went by on node-a: no packets seen on 1 interface meanwhile\n",
            "{verb}"
        );
    }
}

#[test]
fn a_quiet_watch_tells_of_names_what_has_changed_since_its_start() {
    let args = trace_args(&["--pod", "shop/wbe"]);
    let quiet = |before: AnswerContext, now: AnswerContext| {
        let [before, now] = [before, now].map(|context| ("node-a".to_owned(), context));
        explain::quiet(&[before], &[now], &args.filter).split_off(1)
    };
    let no_pod = [("pod", "shop/wbe")];
    let knowing = |kubernetes, unmatched: &[_]| sample::knowing(NOW, kubernetes, unmatched);
    let gone = "no pod named wbe* in namespace shop is known (Kubernetes API synced)";
    assert_eq!(quiet(knowing("synced", &[]), knowing("synced", &no_pod)), [gone]);
    assert_eq!(quiet(knowing("connecting", &no_pod), knowing("synced", &no_pod)), [gone]);
    assert_eq!(quiet(knowing("synced", &no_pod), knowing("synced", &[])), [""; 0]);
    let lost = quiet(knowing("synced", &[]), knowing("stale", &[]));
    assert!(lost.len() == 1 && lost[0].contains("its Kubernetes API is stale"), "{lost:?}");
}

#[test]
fn a_recorded_watch_stays_partial_when_it_is_read() {
    let silent = FakeAgent::start(Script { silent: true, ..Script::default() });
    let blind = seeing(|context| context.interfaces_attached = 0);
    let stopping = agent(sample::events(NOW), End::Close);
    let well = agent(sample::events(NOW), End::Open);
    let watch = ["trace", "network", "-o", "jsonl", "--timeout", "2s", "--duration", "100ms"];
    for (agents, partial) in [
        (vec![&silent, &well], true),
        (vec![&blind], true),
        (vec![&stopping], true),
        (vec![&well], false),
    ] {
        let saved = orb8(&watch, &agents, b"");
        let read = orb8(&["flows", "--file", "-"], &[], saved.out.as_bytes());
        let exit = if partial { Exit::Partial } else { Exit::Done };
        assert_eq!((saved.exit, read.exit), (exit, exit), "{}{}", saved.out, read.err);
    }
}

#[test]
fn an_agent_that_cannot_say_what_it_sees_is_not_complete() {
    let flows = Err(Status::internal("the flow table is gone"));
    let agent =
        FakeAgent::start(Script { flows, events: sample::events(NOW), ..Script::default() });
    let words = ["trace", "network", "-o", "csv", "--fields", "type"];
    let run = orb8_until(&words, &[&agent], "flow_end");
    assert!(run.err.contains("the flow table is gone"), "{}", run.err);
    assert_eq!(run.exit, Exit::Partial);
}

fn trace_args(words: &[&str]) -> TraceArgs {
    let cli =
        Cli::read(["orb8", "trace", "network"].iter().chain(words)).expect("words of a trace");
    let Verb::Trace(TraceWord { verb: TraceVerb::Network(args), .. }) = cli.verb else {
        panic!("{words:?} is no trace");
    };
    *args
}

#[test]
fn a_quiet_watch_tells_packets_that_went_by_from_none() {
    let told = |words: &[&str], seen: u64| {
        let args = trace_args(words);
        let before = ("node-a".to_owned(), sample::context(NOW));
        let mut now = before.clone();
        now.1.packets_seen += seen;
        explain::quiet(&[before], &[now], &args.filter).join("")
    };
    let why = "nothing went by on node-a: ";
    assert_eq!(told(&[], 0), format!("{why}no packets seen on 1 interface meanwhile"));
    assert_eq!(
        told(&[], 7),
        format!("{why}7 packets seen meanwhile, but no flow told yet; watch for longer")
    );
    assert_eq!(
        told(&["--port", "443"], 7),
        format!("{why}7 packets seen meanwhile, none told matches --port 443")
    );
}

#[test]
fn a_stream_that_never_pauses_still_ends() {
    // More events than one poll takes, so that the end must be looked for between them.
    let events = sample::events(NOW).into_iter().cycle().take(50_000).collect();
    let busy = agent(events, End::Open);
    let words = ["trace", "network", "-o", "csv", "--fields", "type", "--duration", "1ms"];
    assert_eq!(orb8(&words, &[&busy], b"").exit, Exit::Done);
}

#[test]
fn a_start_that_is_told_before_it_is_counted_shows_no_numbers() {
    let mut events = sample::events(NOW);
    events.truncate(1);
    if let Some(Payload::Flow(told)) = &mut events[0].payload {
        let flow = told.flow.as_mut().unwrap();
        (flow.packets, flow.bytes) = (0, 0);
    }
    let words = ["trace", "network", "--fields", "event,packets,bytes,rate"];
    let run = orb8_until(&words, &[&agent(events, End::Open)], "start");
    assert_eq!(
        run.out.lines().last().unwrap().split_whitespace().collect::<Vec<_>>(),
        ["start", "-", "-", "-"]
    );
}
