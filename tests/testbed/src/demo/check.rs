//! What the demo compares: rows, conversations and events, each with what was sent and who sent it.
//!
//! Only asks and compares; it prints nothing.

use std::collections::HashMap;
use std::net::IpAddr;

use anyhow::{Context as _, bail, ensure};
use serde_json::Value;

use super::{Asker, Told};
use crate::flow::{Flow, L4, TCP, Total, UDP};

/// What a person may read if everything is as it was sent.
///
/// # Errors
/// What is not.
pub(super) fn all(cli: &Asker, told: &[Told], events: &str) -> anyhow::Result<String> {
    let document = cli.json("flows --no-supplement --limit 1000")?;
    let rows = document["flows"].as_array().context("no list of flows in the answer")?;
    let (packets, bytes) = own_rows(rows, told)?;
    let document = cli.json("flows --conversations --no-supplement --limit 1000")?;
    let lines = document["conversations"].as_array().context("no list of conversations")?;
    conversations(lines, told)?;
    let traced = traced(rows, events, told)?;
    for status in cli.statuses()? {
        ensure!(status["healthy"] == true, "an agent is not healthy: {}", status["health_message"]);
        let ledger = &status["packet_ledger"];
        ensure!(ledger["state"] == "balanced", "a packet ledger is not balanced: {ledger}");
    }
    Ok(format!(
        "  {} conversations, {packets} packets and {bytes} bytes from their clients: \
         exactly what was sent,\n  by the right names. Each is one line with both directions among \
         the conversations,\n  and a trace told the same of all {traced} flows of theirs.\n  \
         Packets seen by the probes of both nodes: all accounted for.",
        told.len()
    ))
}

/// The client's own row of each talk has exactly the packets and bytes that were sent, and the
/// right names at both ends. Their sums.
fn own_rows(rows: &[Value], told: &[Told]) -> anyhow::Result<(u64, u64)> {
    let (mut packets, mut bytes) = (0, 0);
    for Told { what, client, dialled, talk, .. } in told {
        let own: Vec<&Value> = rows
            .iter()
            .filter(|row| row["direction"] == "egress" && is(row, &talk.client))
            .filter(|row| end(&row["source"]) == *client)
            .collect();
        let [row] = own.as_slice() else {
            bail!("{what}: {} rows of {client} for {}", own.len(), talk.client);
        };
        ensure!(end(&row["destination"]) == *dialled, "{what}: not {dialled}, but {row}");
        ensure!(amounts_to(row, talk.there), "{what}: {} were sent, not {row}", talk.there);
        packets += talk.there.packets;
        bytes += talk.there.bytes;
    }
    Ok((packets, bytes))
}

/// Each talk is one conversation, whoever saw it, with what went each way, the one that asked and
/// the one that answered.
fn conversations(lines: &[Value], told: &[Told]) -> anyhow::Result<()> {
    for Told { what, client, dialled, answers, talk } in told {
        let (asked, answered) = (place(&talk.client)?.0, place(&talk.server)?.1);
        let of_client: Vec<&Value> = lines
            .iter()
            .filter(|line| line["protocol"] == protocol(&talk.client))
            .filter(|line| [&line["a"], &line["b"]].into_iter().any(|party| at(party, asked)))
            .collect();
        let [line] = of_client.as_slice() else {
            bail!("{what}: {} conversations of {client} for {}", of_client.len(), talk.client);
        };
        let (a, b) = (&line["a"], &line["b"]);
        ensure!(at(a, asked) && at(b, answered), "{what}: {} asked, not as in {line}", talk.client);
        let names = [end(&a["endpoint"]), end(&b["endpoint"])];
        ensure!(names == [*client, *answers], "{what}: {client} and {answers}, not {names:?}");
        let asked_for = service(&line["service"]);
        ensure!((asked_for.as_deref() == Some(*dialled)) == (dialled != answers), "{what}: {line}");
        ensure!(
            amounts_to(&line["a_to_b"], talk.there) && amounts_to(&line["b_to_a"], talk.back),
            "{what}: {} there and {} back were sent, not {line}",
            talk.there,
            talk.back
        );
    }
    Ok(())
}

/// Of each row of the talks, at both ends, the last event told the same names and numbers. How many
/// rows those are.
fn traced(rows: &[Value], events: &str, told: &[Told]) -> anyhow::Result<usize> {
    let mut last = HashMap::new();
    // What follows the last line end is not whole yet.
    for line in events.split_inclusive('\n').filter(|line| line.ends_with('\n')) {
        let event: Value = serde_json::from_str(line).context("an event is not JSON")?;
        if event["type"].as_str().is_some_and(|kind| kind.starts_with("flow_")) {
            last.insert(id(&event), event);
        }
    }
    let mut count = 0;
    for Told { what, talk, .. } in told {
        let seen = [talk.client, talk.client.reply(), talk.server, talk.server.reply()];
        let of_talk: Vec<&Value> =
            rows.iter().filter(|row| seen.iter().any(|flow| is(row, flow))).collect();
        ensure!(of_talk.len() >= 2, "{what}: {} rows", of_talk.len());
        for row in &of_talk {
            let event = last.get(&id(row)).with_context(|| format!("{what}: no event of {row}"))?;
            for key in ["source", "destination", "service", "packets", "bytes"] {
                let [of_row, of_event] = [row, event].map(|told| words(key, &told[key]));
                ensure!(of_row == of_event, "{what}: {key} is {of_row}, a trace told {of_event}");
            }
        }
        count += of_talk.len();
    }
    Ok(count)
}

/// What names a row, also in events.
fn id(row: &Value) -> (String, String) {
    (row["node_name"].to_string(), row["flow_id"].to_string())
}

/// What is to be the same in an answer and in a trace.
fn words(key: &str, value: &Value) -> String {
    match key {
        "source" | "destination" => {
            format!("{} by {} {}", end(value), value["attribution"], value["reason"])
        }
        "service" => service(value).unwrap_or_default(),
        _ => value.to_string(),
    }
}

/// An end in the demo's words.
fn end(end: &Value) -> String {
    let word = |key: &str| end[key].as_str().unwrap_or_default();
    match word("kind") {
        "pod" => format!("pod {}/{}", word("namespace"), word("pod")),
        "service" => format!("service {}/{}", word("namespace"), word("service")),
        kind => kind.to_owned(),
    }
}

/// The Service that was asked for, in the demo's words.
fn service(service: &Value) -> Option<String> {
    let word = |key: &str| service[key].as_str();
    Some(format!("service {}/{}", word("namespace")?, word("name")?))
}

fn amounts_to(told: &Value, sent: Total) -> bool {
    told["packets"] == sent.packets && told["bytes"] == sent.bytes
}

type Place = (IpAddr, u16);

/// Where a flow comes from and goes to.
fn place(flow: &Flow) -> anyhow::Result<(Place, Place)> {
    let L4::Ports { src, dst } = flow.l4 else { bail!("{flow} has no ports") };
    Ok(((flow.src, src), (flow.dst, dst)))
}

fn at(party: &Value, place: Place) -> bool {
    party["ip"] == place.0.to_string() && party["port"] == place.1
}

fn protocol(flow: &Flow) -> &'static str {
    match flow.protocol {
        TCP => "tcp",
        UDP => "udp",
        _ => "",
    }
}

fn is(row: &Value, flow: &Flow) -> bool {
    let L4::Ports { src, dst } = flow.l4 else { return false };
    row["protocol"] == protocol(flow)
        && row["src_ip"] == flow.src.to_string()
        && row["dst_ip"] == flow.dst.to_string()
        && row["src_port"] == src
        && row["dst_port"] == dst
}
