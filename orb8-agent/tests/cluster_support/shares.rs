//! The shares of a status against the rows of an answer: what was counted, by plane, by how its
//! owner was identified, and by whose it is.

use std::collections::BTreeMap;

use orb8_proto::v1::{AgentStatus, NetworkFlow};
use orb8_testbed::flow::Total;

use super::Scene;
use super::rows::ends;

/// Seconds after an agent's start for which no row that has ended is forgotten by default.
const KEPT: u64 = 300;

/// `socket cgroup  local`: what volumes are told by.
type Shares = BTreeMap<String, Total>;

/// How the shares differ from the sums of all rows, unless rows may have been forgotten.
pub fn wrong(scene: &Scene, node: u8) -> Option<String> {
    let before = of_status(&scene.status(node));
    let rows = of_rows(&scene.flows(node));
    let status = scene.status(node);
    let told = of_status(&status);
    if status.uptime_seconds >= KEPT || rows == told {
        return None;
    }
    // The questions are traffic, too: what is counted in between makes another answer.
    let moved = if before == told { "" } else { " (and moved)" };
    Some(format!("shares{moved} {told:#?}, rows {rows:#?}"))
}

fn of_status(status: &AgentStatus) -> Shares {
    let mut all = Shares::new();
    for share in &status.attribution_shares {
        let kind = kind(&share.plane, share.supplement, &share.scope);
        let name = format!("{kind} {} {}", share.attribution, share.reason);
        all.entry(name).or_default().add(share.packets, share.bytes);
    }
    all
}

fn of_rows(rows: &[NetworkFlow]) -> Shares {
    let mut all = Shares::new();
    for row in rows {
        let owner = ends(row).0;
        let kind = kind(&row.plane, row.supplement, &row.scope);
        let name = format!("{kind} {} {}", owner.attribution, owner.reason);
        all.entry(name).or_default().add(row.packets, row.bytes);
    }
    all
}

fn kind(plane: &str, supplement: bool, scope: &str) -> String {
    format!("{plane}{} {scope}", if supplement { " supplement" } else { "" })
}
