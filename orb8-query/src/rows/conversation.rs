//! The JSON form of folded conversations. Written, never read back: the records are what is saved.

use serde::Serialize;

use super::{EndpointRecord, ServiceRecord, finite, known, time};
use crate::network::conversations::{Amount, Conversation, Party};

/// One conversation; `a` is who began it, as far as that is known.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Conversation")]
pub struct ConversationRecord {
    pub protocol: Option<String>,
    pub a: PartyRecord,
    pub b: PartyRecord,
    pub port: Option<u32>,
    pub service: Option<ServiceRecord>,
    pub a_to_b: AmountRecord,
    pub b_to_a: AmountRecord,
    pub supplement: AmountRecord,
    pub first_seen_ns: Option<i64>,
    pub last_seen_ns: Option<i64>,
    pub state: &'static str,
    pub fragment: bool,
    pub records: u64,
    pub nodes: Vec<String>,
}

/// One of the two.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Party")]
pub struct PartyRecord {
    pub ip: Option<String>,
    pub port: Option<u32>,
    pub endpoint: Option<EndpointRecord>,
}

/// What went one way.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[expect(missing_docs, reason = "the fields are those of Amount")]
pub struct AmountRecord {
    pub packets: u64,
    pub bytes: u64,
    pub bytes_per_second: Option<f64>,
    pub packets_per_second: Option<f64>,
}

impl From<&Conversation> for ConversationRecord {
    fn from(talk: &Conversation) -> Self {
        Self {
            protocol: known(&talk.protocol),
            a: (&talk.a).into(),
            b: (&talk.b).into(),
            // The one that was asked for, where a Service stands before who answered.
            port: talk.service.as_ref().map(|service| service.port).or(talk.b.port),
            service: talk.service.as_ref().map(ServiceRecord::from),
            a_to_b: talk.a_to_b.into(),
            b_to_a: talk.b_to_a.into(),
            supplement: talk.supplement.into(),
            first_seen_ns: time(talk.first_seen_ns),
            last_seen_ns: time(talk.last_seen_ns),
            state: if talk.active { "active" } else { "ended" },
            fragment: talk.fragment,
            records: talk.records,
            nodes: talk.nodes.clone(),
        }
    }
}

impl From<&Party> for PartyRecord {
    fn from(party: &Party) -> Self {
        Self {
            ip: known(&party.ip),
            port: party.port,
            endpoint: party.end.as_ref().map(EndpointRecord::from),
        }
    }
}

impl From<Amount> for AmountRecord {
    fn from(amount: Amount) -> Self {
        Self {
            packets: amount.packets,
            bytes: amount.bytes,
            bytes_per_second: finite(amount.bytes_per_second),
            packets_per_second: finite(amount.packets_per_second),
        }
    }
}
