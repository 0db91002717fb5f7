//! Addresses that are the cluster's, whoever has them now: pod ranges of nodes, the Service range.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// The API server takes no Service range with more than 20 bits for hosts.
const MAX_SERVICE_BITS: u8 = 20;

/// Sorted intervals that do not touch, as numbers with the family in front.
#[derive(Debug, Default)]
pub(super) struct Ranges {
    intervals: Vec<((bool, u128), (bool, u128))>,
}

impl Ranges {
    pub(super) fn of(networks: impl Iterator<Item = IpNet>) -> Self {
        let mut sorted: Vec<_> = networks
            .map(|network| (number(network.network()), number(network.broadcast())))
            .collect();
        sorted.sort_unstable();
        let mut intervals: Vec<((bool, u128), (bool, u128))> = vec![];
        for (first, last) in sorted {
            match intervals.last_mut() {
                Some((_, end)) if first <= *end => *end = last.max(*end),
                Some(_) | None => intervals.push((first, last)),
            }
        }
        Self { intervals }
    }

    pub(super) fn contains(&self, address: IpAddr) -> bool {
        let wanted = number(address);
        let before = self.intervals.partition_point(|(first, _)| *first <= wanted);
        before > 0 && wanted <= self.intervals[before - 1].1
    }
}

/// The smallest networks, one a family, that hold all `addresses`: each lies in the range that
/// Services get addresses from. None where it would be wider than such a range can be, as it is
/// with several ranges.
pub(super) fn hull(addresses: impl Iterator<Item = IpAddr>) -> impl Iterator<Item = IpNet> {
    let mut ends: [Option<(u128, u128)>; 2] = [None; 2];
    for (is_v6, value) in addresses.map(number) {
        let (low, high) = ends[usize::from(is_v6)].unwrap_or((value, value));
        ends[usize::from(is_v6)] = Some((low.min(value), high.max(value)));
    }
    let [v4, v6] = ends.map(|ends| {
        let (low, high) = ends?;
        let bits = u8::try_from(u128::BITS - (low ^ high).leading_zeros()).ok()?;
        (bits <= MAX_SERVICE_BITS).then_some((low, bits))
    });
    let v4 = v4.and_then(|(low, bits)| {
        let address = u32::try_from(low).ok()?.into();
        Ipv4Net::new(address, 32 - bits).ok().map(IpNet::V4)
    });
    let v6 = v6.and_then(|(low, bits)| Ipv6Net::new(low.into(), 128 - bits).ok().map(IpNet::V6));
    v4.into_iter().chain(v6)
}

fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u32::from(v4).into()),
        IpAddr::V6(v6) => (true, v6.into()),
    }
}
