//! Names, marks and filters on names, as people see them.

mod support;

use insta::assert_snapshot;
use orb8_cli::error::Exit;
use orb8_proto::v1::condition::Field;
use orb8_proto::v1::{AnswerContext, QueryFlowsResponse};
use support::fake_agent::{FakeAgent, Script};
use support::{NOW, Run, cluster, orb8, sample};

fn agent() -> FakeAgent {
    let flows = cluster::flows(NOW);
    answering(QueryFlowsResponse {
        matched: flows.len() as u64,
        flows,
        nodes: vec![sample::node("node-a")],
        context: Some(sample::context(NOW)),
        ..QueryFlowsResponse::default()
    })
}

fn answering(response: QueryFlowsResponse) -> FakeAgent {
    FakeAgent::start(Script { flows: Ok(response), ..Script::default() })
}

fn flows(words: &[&str]) -> Run {
    let words: Vec<&str> = ["flows"].iter().chain(words).copied().collect();
    orb8(&words, &[&agent()], b"")
}

#[test]
fn each_kind_of_end_is_named_and_marks_are_explained() {
    assert_snapshot!(flows(&[]).page());
}

#[test]
fn wide_says_how_each_end_was_identified() {
    let fields = "src,dst,src_addr,dst_addr,attribution,workload,node,zone,container,service,\
                  backend,service.verdict,plane";
    assert_snapshot!(flows(&["--fields", fields]).page());
    let wide = flows(&["-o", "wide"]).out;
    for column in ["ATTRIBUTION", "WORKLOAD", "ZONE", "SERVICE", "BACKEND", "VERDICT", "PLANE"] {
        assert!(wide.lines().next().unwrap().contains(column), "{column}: {wide}");
    }
}

#[test]
fn json_has_both_ends_and_the_service() {
    let agent = answering(QueryFlowsResponse {
        flows: cluster::through_service(NOW)[..1].to_vec(),
        matched: 1,
        ..QueryFlowsResponse::default()
    });
    assert_snapshot!(orb8(&["flows", "-o", "json"], &[&agent], b"").page());
}

#[test]
fn owners_go_beside_the_filter_and_other_names_into_it() {
    let agent = agent();
    let line = "flows -n shop,bank --namespace kube-system --pod shop/web --to-pod cart --labels \
                -l app=web,tier!=db --not --from-namespace bank --workload Deployment/web \
                --service cart --node node-a --zone west --container nginx --kind pod --plane socket \
                --attribution cgroup,interface --verdict ok --no-supplement";
    let words: Vec<&str> = line.split_whitespace().collect();
    let run = orb8(&words, &[&agent], b"");
    assert_eq!(run.exit, Exit::Done, "{}", run.err);
    let request = agent.asked().flows.remove(0);
    assert_eq!(request.namespaces, ["shop", "bank", "kube-system"]);
    assert_eq!(request.pod_names, ["shop/web"]);
    assert!(request.labels);
    let conditions = request.filter.unwrap().all;
    let side_of = |want: fn(&Field) -> bool| {
        let found = conditions.iter().find(|condition| condition.field.as_ref().is_some_and(want));
        found.map(|condition| (condition.side, condition.negate))
    };
    assert_eq!(side_of(|field| matches!(field, Field::Pod(_))), Some((2, false)));
    assert_eq!(side_of(|field| matches!(field, Field::Namespace(_))), Some((1, true)));
    assert_eq!(side_of(|field| *field == Field::Supplement(false)), Some((0, false)));
    assert_eq!(side_of(|field| matches!(field, Field::Scope(_))), Some((0, true)));
    assert_eq!(conditions.len(), 14);
}

#[test]
fn scopes_that_are_asked_for_are_not_hidden() {
    for (words, hidden) in [
        (&["flows"][..], true),
        (&["flows", "--all-scopes"], false),
        (&["flows", "--scope", "tunnel"], false),
        (&["flows", "--not", "--scope", "local"], false),
    ] {
        let agent = agent();
        assert_eq!(orb8(words, &[&agent], b"").exit, Exit::Done);
        let filter = agent.asked().flows.remove(0).filter;
        let conditions = filter.map_or(Vec::new(), |filter| filter.all);
        let hides = conditions.iter().any(|condition| {
            let values = match &condition.field {
                Some(Field::Scope(list)) => list.values.join(" "),
                _ => String::new(),
            };
            condition.negate && values == "forwarded tunnel"
        });
        assert_eq!(hides, hidden, "{words:?}");
    }
}

#[test]
fn all_namespaces_overrules_namespace() {
    let agent = agent();
    assert_eq!(orb8(&["flows", "-n", "shop", "-A"], &[&agent], b"").exit, Exit::Done);
    assert!(agent.asked().flows.remove(0).namespaces.is_empty());
}

#[test]
fn names_that_cannot_be_are_usage_errors() {
    let mut pages = String::new();
    for line in [
        "flows -n ",
        "flows --pod /web",
        "flows -l app>3",
        "flows --workload a/b/c/d",
        "flows --service shop/",
        "flows --kind host",
        "flows --plane xdp",
        "flows --attribution guess",
        "flows --verdict fine",
        "flows --not -n shop",
        "flows --supplement --no-supplement",
        "flows --namspace shop",
    ] {
        let words: Vec<&str> = line.split(' ').collect();
        let run = orb8(&words, &[], b"");
        assert_eq!((run.exit, run.out.as_str()), (Exit::Usage, ""), "{line}: {}", run.err);
        pages += &format!("$ orb8 {line}\n{}\n", run.err);
    }
    assert_snapshot!(pages);
}

#[test]
fn saved_flows_are_filtered_by_the_same_names() {
    let saved = flows(&["-o", "jsonl"]).out;
    let read = |words: &[&str]| {
        let words: Vec<&str> = ["flows", "--file", "-"].iter().chain(words).copied().collect();
        orb8(&words, &[], saved.as_bytes())
    };
    assert_eq!(read(&["-o", "jsonl"]).out, saved);
    let ports = |words: &[&str]| {
        let words = [words, &["-o", "csv", "--no-headers", "--fields", "flow_id"]].concat();
        let run = read(&words);
        assert_eq!(run.exit, Exit::Done, "{}", run.err);
        let mut found: Vec<u64> = run.out.lines().map(|line| line.parse().unwrap()).collect();
        found.sort_unstable();
        found
    };
    assert_eq!(ports(&["--from-pod", "web", "--service", "cart"]), [1, 5]);
    assert_eq!(ports(&["--pod", "shop/cart"]), [3, 4]);
    assert_eq!(ports(&["-l", "app=web", "--kind", "service"]), [1, 2, 5]);
    assert_eq!(ports(&["--attribution", "masqueraded,address_reused"]), [8, 9]);
    assert_eq!(ports(&["--supplement"]), [7]);
    assert_eq!(ports(&["--verdict", "no_endpoints"]), [5]);
    assert_eq!(ports(&["-n", "shop", "--not", "--kind", "pod,service"]), [0_u64; 0]);
    assert_eq!(ports(&["--not", "--kind", "pod"]), [11]);
}

/// What is said when agents answer with no flows and these contexts.
fn empty(words: &[&str], contexts: &[AnswerContext]) -> String {
    let agents: Vec<FakeAgent> = contexts
        .iter()
        .enumerate()
        .map(|(index, context)| {
            let nodes = vec![sample::node(&format!("node-{}", index + 1))];
            let context = Some(context.clone());
            answering(QueryFlowsResponse { nodes, context, ..QueryFlowsResponse::default() })
        })
        .collect();
    let words: Vec<&str> = ["flows"].iter().chain(words).copied().collect();
    let run = orb8(&words, &agents.iter().collect::<Vec<_>>(), b"");
    assert_eq!((run.out.as_str(), run.exit), ("", Exit::Done));
    format!("$ orb8 {}\n{}\n", words.join(" "), run.err)
}

fn knowing(kubernetes: &str, unmatched: &[(&str, &str)]) -> AnswerContext {
    sample::knowing(NOW, kubernetes, unmatched)
}

#[test]
fn a_name_that_nobody_has_is_told() {
    let no_pod = [("pod", "shop/web")];
    let said = [
        empty(&["--pod", "shop/web"], &[knowing("synced", &no_pod)]),
        empty(&["-n", "shpo"], &[knowing("synced", &[("namespace", "shpo")])]),
        empty(
            &["--service", "cart", "-l", "app=web"],
            &[knowing("synced", &[("service", "cart"), ("selector", "app=web")])],
        ),
        empty(&["--pod", "shop/web"], &[knowing("connecting", &no_pod)]),
        empty(&["--pod", "shop/web"], &[knowing("off", &no_pod)]),
        empty(&["--to-pod", "web"], &[knowing("stale", &[])]),
        empty(&["--pod", "shop/web"], &[knowing("synced", &no_pod), knowing("synced", &[])]),
        empty(&["--port", "1"], &[knowing("off", &[])]),
    ];
    assert_snapshot!(said.concat());
}

#[test]
fn names_that_come_near_are_offered_once_and_few_of_them() {
    let near = |names: &[&str]| {
        let mut context = knowing("synced", &[("namespace", "shpo")]);
        context.unmatched[0].suggestions = names.iter().map(ToString::to_string).collect();
        context
    };
    let said = |agents: &[AnswerContext]| {
        let told = empty(&["-n", "shpo"], agents);
        let line = told.lines().find(|line| line.contains("no namespace")).unwrap().to_owned();
        line.strip_prefix("note: no namespace named shpo is known (Kubernetes API synced)")
            .unwrap()
            .to_owned()
    };
    assert_eq!(said(&[near(&[])]), "");
    assert_eq!(said(&[near(&["shop"])]), "; did you mean shop?");
    assert_eq!(said(&[near(&["shop"]), near(&["shop"])]), "; did you mean shop?");
    assert_eq!(said(&[near(&["a", "b"]), near(&["b", "c", "d"])]), "; did you mean a, b or c?");
}

#[test]
fn flows_that_are_hidden_for_their_scope_are_counted() {
    let agent = |flows: usize, hidden: u64| {
        let mut response = sample::response(NOW);
        response.flows.truncate(flows);
        response.matched = flows as u64;
        response.context.as_mut().unwrap().of_other_scopes = hidden;
        answering(response)
    };
    let said = |words: &[&str], agents: &[&FakeAgent]| {
        orb8(&[&["flows"], words].concat(), agents, b"").err
    };
    let note = "hidden; show what passes with --all-scopes\n";
    assert_eq!(said(&[], &[&agent(5, 0)]), "");
    assert_eq!(said(&[], &[&agent(5, 1)]), format!("note: 1 flow that passes the node is {note}"));
    assert_eq!(
        said(&["-o", "json"], &[&agent(5, 3), &agent(5, 4)]),
        format!("note: 7 flows that pass the node are {note}")
    );
    assert_eq!(said(&["--scope", "local"], &[&agent(5, 3)]), "", "it was asked for");
    assert_eq!(
        said(&["--port", "1"], &[&agent(0, 2)]),
        format!(
            "note: no flows on node-a: 5 flows held, none matches --port 1; 2 flows that pass the \
             node are {note}"
        )
    );
}

#[test]
fn one_name_of_several_that_nobody_has_is_told_beside_the_answer() {
    let flows = cluster::flows(NOW);
    let agent = answering(QueryFlowsResponse {
        matched: flows.len() as u64,
        flows,
        nodes: vec![sample::node("node-a")],
        context: Some(knowing("synced", &[("pod", "wbe")])),
        ..QueryFlowsResponse::default()
    });
    let run = orb8(&["flows", "--pod", "web,wbe", "-o", "csv"], &[&agent], b"");
    assert_eq!(run.err, "note: no pod named wbe* is known (Kubernetes API synced)\n");
}

fn talks(words: &[&str]) -> Run {
    flows(&[&["--conversations"], words].concat())
}

#[test]
fn conversations_fold_both_directions_ends_and_nodes() {
    assert_snapshot!("conversations_table", talks(&[]).page());
    assert_snapshot!("conversations_wide", talks(&["-o", "wide"]).page());
    let agent = answering(QueryFlowsResponse {
        flows: cluster::through_service(NOW),
        matched: 4,
        nodes: vec![sample::node("node-a")],
        ..QueryFlowsResponse::default()
    });
    let words = ["flows", "--conversations", "-o", "json"];
    assert_snapshot!("conversations_json", orb8(&words, &[&agent], b"").page());
    let chosen = ["--fields", "a.endpoint.pod,b.ip,port,a_to_b,records,nodes"];
    for format in ["table", "jsonl", "yaml", "csv"] {
        let words = [&["flows", "--conversations", "-o", format], &chosen[..]].concat();
        let run = orb8(&words, &[&agent], b"");
        assert_snapshot!(format!("conversations_{format}_fields"), run.page());
    }
    let all = talks(&["-o", "csv"]);
    let widths: Vec<usize> = csv::ReaderBuilder::new()
        .has_headers(false)
        .from_reader(all.out.as_bytes())
        .records()
        .map(|record| record.unwrap().len())
        .collect();
    assert!(widths.len() > 5 && widths[0] > 80, "{widths:?}");
}

#[test]
fn conversations_say_what_they_are_folded_from_and_cannot_be_followed() {
    let agent = answering(QueryFlowsResponse {
        flows: cluster::through_service(NOW),
        matched: 9,
        nodes: vec![sample::node("node-a")],
        loss: vec![sample::loss()],
        ..QueryFlowsResponse::default()
    });
    let run = orb8(&["flows", "--conversations", "--no-headers"], &[&agent], b"");
    assert_eq!(run.out.lines().count(), 1, "{}", run.out);
    assert!(run.err.contains("note: 4 of 9 matching flows folded; ask for more with --limit\n"));
    assert_eq!(run.exit, Exit::Partial, "something was lost");
    let saved = orb8(&["flows", "-o", "jsonl"], &[&agent], b"").out;
    let words = ["flows", "--conversations", "--no-headers", "--file", "-"];
    assert_eq!(orb8(&words, &[], saved.as_bytes()).out, run.out);
    for words in [["-f", "--conversations"], ["--conversations", "--fields=nothing"]] {
        assert_eq!(talks(&words).exit, Exit::Usage, "{words:?}");
    }
}
