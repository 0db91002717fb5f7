//! What the page of `orb8 status` says of identity: Kubernetes, cgroups, how much is known of whose
//! traffic, the plane of each pod, connection tracking.
//!
//! Makes rows; the page writes them.

use std::collections::BTreeMap;
use std::time::Duration;

use orb8_proto::v1::{
    AgentStatus, AttributionShare, Cgroups, ConnectionTracking, Kubernetes, PodPlane,
    WatchedResource,
};
use orb8_util::duration;

use super::page::{GREEN, RED, YELLOW, lost, verdict};
use crate::output::table::Cell;

/// Headings of [`resources`].
pub(super) const RESOURCES: [&str; 8] =
    ["RESOURCE", "STATE", "OBJECTS", "HEARD", "LISTS", "WATCHES", "ERRORS", "REASON"];
/// Headings of [`shares`].
pub(super) const SHARES: [&str; 6] =
    ["PLANE", "ATTRIBUTION", "REASON", "PACKETS", "BYTES", "SHARE"];
/// Headings of [`planes`].
pub(super) const PLANES: [&str; 3] = ["PLANE", "PODS", "REASON"];
/// Headings of [`pods`].
pub(super) const PODS: [&str; 4] = ["NAMESPACE", "POD", "PLANE", "REASON"];

/// Lines of the summary, each a name and a cell.
pub(super) fn summary(status: &AgentStatus) -> Vec<(&'static str, Cell)> {
    let mut rows = Vec::new();
    if let Some(kubernetes) = &status.kubernetes {
        rows.push(("Kubernetes", self::kubernetes(kubernetes)));
    }
    if let Some(cgroups) = &status.cgroups {
        rows.push(("Cgroups", self::cgroups(cgroups)));
    }
    if let Some(tracking) = &status.connection_tracking {
        rows.push(("Conntrack", self::tracking(tracking)));
    }
    rows
}

fn kubernetes(kubernetes: &Kubernetes) -> Cell {
    let mut text = kubernetes.state.clone();
    if !kubernetes.server.is_empty() {
        text += &format!(" with {}", kubernetes.server);
    }
    if kubernetes.max_pods > 0 {
        text += &format!(
            ", {} pods here, {} in all of at most {}",
            kubernetes.pods_local, kubernetes.pods, kubernetes.max_pods
        );
    }
    if kubernetes.rejected > 0 {
        text += &format!(", {} objects rejected", kubernetes.rejected);
    }
    text += &because(&kubernetes.reason);
    let style = match kubernetes.state.as_str() {
        _ if kubernetes.rejected > 0 => RED,
        "synced" => GREEN,
        "connecting" | "stale" => YELLOW,
        "forbidden" | "unreachable" => RED,
        _ => anstyle::Style::new(),
    };
    Cell::new(text).style(style)
}

fn cgroups(cgroups: &Cgroups) -> Cell {
    let mut text = cgroups.mode.clone();
    if !cgroups.mount.is_empty() {
        text += &format!(" at {}", cgroups.mount);
    }
    if !cgroups.driver.is_empty() {
        text += &format!(", {} driver", cgroups.driver);
    }
    if !cgroups.runtimes.is_empty() {
        text += &format!(", {}", cgroups.runtimes.join(" and "));
    }
    text += &format!(", {} known{}", cgroups.known, because(&cgroups.reason));
    let cell = Cell::new(text);
    if cgroups.reason.is_empty() { cell } else { cell.style(YELLOW) }
}

fn tracking(tracking: &ConnectionTracking) -> Cell {
    let ConnectionTracking { state, reason, entries, max_entries, evicted, overruns } = tracking;
    let mut text =
        format!("{state}, {entries} translated connections held of at most {max_entries}");
    if *evicted > 0 || *overruns > 0 {
        text += &format!(", {evicted} did not fit, overrun {overruns} times");
    }
    text += &because(reason);
    let cell = Cell::new(text);
    match state.as_str() {
        _ if *evicted > 0 || *overruns > 0 => cell.style(YELLOW),
        "ok" => cell,
        _ => cell.style(YELLOW),
    }
}

fn because(reason: &str) -> String {
    if reason.is_empty() { String::new() } else { format!("; {reason}") }
}

/// What is watched, and when the API was last heard.
pub(super) fn resources(resources: &[WatchedResource], now_ns: i64) -> Vec<Vec<Cell>> {
    let heard = |time_ns: i64| match u64::try_from(now_ns.saturating_sub(time_ns)) {
        _ if time_ns == 0 => "never".to_owned(),
        Ok(nanos) => {
            let ago = Duration::from_secs(Duration::from_nanos(nanos).as_secs());
            format!("{} ago", duration::short(ago))
        }
        // A clock that is behind the agent's.
        Err(_) => "0s ago".to_owned(),
    };
    let row = |resource: &WatchedResource| {
        vec![
            Cell::new(&resource.name),
            verdict(&resource.state),
            number(resource.objects),
            Cell::new(heard(resource.last_heard_ns)),
            number(resource.lists),
            number(resource.watches),
            lost(resource.errors),
            Cell::new(&resource.reason),
        ]
    };
    resources.iter().map(row).collect()
}

fn number(count: u64) -> Cell {
    Cell::new(count.to_string())
}

/// True of what counts in owners' totals: neither supplement nor what only passes the node.
fn in_totals(share: &AttributionShare) -> bool {
    !share.supplement && !matches!(share.scope.as_str(), "forwarded" | "tunnel")
}

/// A name that may be another's by now: the API that told it was not heard.
const OUTDATED: &str = "api_not_synced";

/// How much of the bytes in totals is identified, in words, and how much only as the API told last;
/// none without any.
pub(super) fn identified(shares: &[AttributionShare]) -> Option<Cell> {
    let (text, is_all) = how_much(shares)?;
    Some(Cell::new(text).style(if is_all { GREEN } else { YELLOW }))
}

fn how_much(shares: &[AttributionShare]) -> Option<(String, bool)> {
    let sum = |wanted: fn(&AttributionShare) -> bool| {
        let bytes = shares.iter().filter(|share| in_totals(share) && wanted(share));
        bytes.fold(0_u64, |sum, share| sum.saturating_add(share.bytes))
    };
    let all = sum(|_| true);
    let known = sum(|share| share.attribution != "none" && share.reason != OUTDATED);
    let outdated = sum(|share| share.attribution != "none" && share.reason == OUTDATED);
    let mut text = format!("{} of bytes identified", percent(known, all));
    if outdated > 0 {
        text += &format!(", {} more as the API told last", percent(outdated, all));
    }
    (all > 0).then_some((text, known == all))
}

/// Bytes by plane and attribution, most first; those of totals before the others, which have no
/// share.
pub(super) fn shares(shares: &[AttributionShare]) -> Vec<Vec<Cell>> {
    type Kind<'a> = (bool, &'a str, &'a str, &'a str, &'a str);
    let mut sums: BTreeMap<Kind<'_>, (u64, u64)> = BTreeMap::new();
    for share in shares {
        let beside = match (share.supplement, in_totals(share)) {
            (true, _) => "supplement",
            (false, false) => &share.scope,
            (false, true) => "",
        };
        let kind = (!in_totals(share), &*share.plane, &*share.attribution, &*share.reason, beside);
        let (packets, bytes) = sums.entry(kind).or_default();
        *packets = packets.saturating_add(share.packets);
        *bytes = bytes.saturating_add(share.bytes);
    }
    let totals = sums.iter().filter(|((outside, ..), _)| !outside);
    let all = totals.fold(0_u64, |sum, (_, (_, bytes))| sum.saturating_add(*bytes));
    let mut rows: Vec<_> = sums.into_iter().collect();
    rows.sort_by_key(|((outside, ..), (_, bytes))| (*outside, std::cmp::Reverse(*bytes)));
    let row = |((outside, plane, attribution, reason, beside), (packets, bytes)): (Kind<'_>, _)| {
        let plane = if beside.is_empty() { plane.to_owned() } else { format!("{plane} {beside}") };
        let share = if outside { String::new() } else { percent(bytes, all) };
        let word = Cell::new(attribution);
        let is_doubtful = attribution == "none" || reason == OUTDATED;
        let word = if is_doubtful && !outside { word.style(YELLOW) } else { word };
        vec![
            Cell::new(plane),
            word,
            Cell::new(reason),
            number(packets),
            number(bytes),
            Cell::new(share),
        ]
    };
    rows.into_iter().map(row).collect()
}

/// `99.2%`; what is not all is never shown as all, and what is something never as nothing.
fn percent(part: u64, all: u64) -> String {
    let per_mille = u128::from(part) * 1000 / u128::from(all.max(1));
    match per_mille {
        0 if part > 0 => "<0.1%".to_owned(),
        per_mille => format!("{}.{}%", per_mille / 10, per_mille % 10),
    }
}

/// How many pods have their totals from which plane, and why.
pub(super) fn planes(pods: &[PodPlane]) -> Vec<Vec<Cell>> {
    let mut counts: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for pod in pods {
        *counts.entry((&pod.plane, &pod.reason)).or_default() += 1;
    }
    let row = |((plane, reason), count): ((&str, &str), u64)| {
        vec![self::plane(plane), number(count), Cell::new(reason)]
    };
    counts.into_iter().map(row).collect()
}

/// Each pod and its plane, by name.
pub(super) fn pods(pods: &[PodPlane]) -> Vec<Vec<Cell>> {
    let mut sorted: Vec<&PodPlane> = pods.iter().collect();
    sorted.sort_by_key(|pod| (&pod.namespace, &pod.pod));
    let row = |pod: &PodPlane| {
        vec![
            Cell::new(&pod.namespace),
            Cell::new(&pod.pod),
            plane(&pod.plane),
            Cell::new(&pod.reason),
        ]
    };
    sorted.into_iter().map(row).collect()
}

fn plane(plane: &str) -> Cell {
    let cell = Cell::new(plane);
    if plane == "none" { cell.style(YELLOW) } else { cell }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_the_api_told_before_it_fell_silent_is_no_identity() {
        let share = |attribution: &str, reason: &str, bytes| AttributionShare {
            plane: "tc".to_owned(),
            attribution: attribution.to_owned(),
            reason: reason.to_owned(),
            scope: "local".to_owned(),
            packets: 1,
            bytes,
            ..AttributionShare::default()
        };
        let check = |shares: &[AttributionShare], expected: &str| {
            assert_eq!(how_much(shares), Some((expected.to_owned(), false)));
        };
        let (known, none) = (share("address", "", 80), share("none", "pod_unknown", 10));
        let outdated = share("address", "api_not_synced", 10);
        check(&[known.clone(), none.clone()], "88.8% of bytes identified");
        check(
            &[known, none, outdated],
            "80.0% of bytes identified, 10.0% more as the API told last",
        );
    }

    #[test]
    fn a_share_is_never_rounded_to_all_or_to_nothing() {
        for (part, all, expected) in [
            (0, 0, "0.0%"),
            (0, 10, "0.0%"),
            (1, u64::MAX, "<0.1%"),
            (u64::MAX - 1, u64::MAX, "99.9%"),
            (u64::MAX, u64::MAX, "100.0%"),
            (1, 3, "33.3%"),
        ] {
            assert_eq!(percent(part, all), expected, "{part} of {all}");
        }
    }
}
