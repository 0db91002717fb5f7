//! Addresses that are the cluster's, whoever has them now: pod ranges of nodes, the Service range.

use std::net::IpAddr;

use ipnet::{IpNet, Ipv4Net, Ipv6Net};

/// Bits for hosts that a range has at most, IPv4 and IPv6: the API server takes no larger one for
/// Services.
pub(super) const MAX_SERVICE_BITS: [u8; 2] = [20, 20];

/// The same for pods that get addresses from elsewhere than their node's range.
pub(super) const MAX_POD_BITS: [u8; 2] = [24, 80];

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

/// The smallest networks, one a family, that hold all `addresses`: each lies in the range that they
/// were given from. None where it would be wider than such a range can be.
pub(super) fn hull(
    addresses: impl Iterator<Item = IpAddr>,
    max_bits: [u8; 2],
) -> impl Iterator<Item = IpNet> {
    let mut ends: [Option<(u128, u128)>; 2] = [None; 2];
    for (is_v6, value) in addresses.map(number) {
        let (low, high) = ends[usize::from(is_v6)].unwrap_or((value, value));
        ends[usize::from(is_v6)] = Some((low.min(value), high.max(value)));
    }
    let network = |family: usize| {
        let (low, high) = ends[family]?;
        let bits = u8::try_from(u128::BITS - (low ^ high).leading_zeros()).ok()?;
        (bits <= max_bits[family]).then_some((low, bits))
    };
    let (v4, v6) = (network(0), network(1));
    let v4 = v4.and_then(|(low, bits)| {
        let address = u32::try_from(low).ok()?.into();
        Ipv4Net::new(address, 32 - bits).ok().map(|net| IpNet::V4(net.trunc()))
    });
    let v6 = v6.and_then(|(low, bits)| {
        Ipv6Net::new(low.into(), 128 - bits).ok().map(|net| IpNet::V6(net.trunc()))
    });
    v4.into_iter().chain(v6)
}

/// The least and the greatest address of each family: their hull is that of all.
pub(super) fn extremes(addresses: impl Iterator<Item = IpAddr>) -> Vec<IpAddr> {
    let (v4, v6): (Vec<IpAddr>, Vec<IpAddr>) = addresses.partition(IpAddr::is_ipv4);
    let ends = |family: &[IpAddr]| {
        let ends = [family.iter().min().copied(), family.iter().max().copied()];
        ends.into_iter().flatten().collect::<Vec<_>>()
    };
    [ends(&v4), ends(&v6)].concat()
}

fn number(address: IpAddr) -> (bool, u128) {
    match address {
        IpAddr::V4(v4) => (false, u32::from(v4).into()),
        IpAddr::V6(v6) => (true, v6.into()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ranges(texts: &[&str]) -> Ranges {
        Ranges::of(texts.iter().map(|text| text.parse().expect("it is a network")))
    }

    #[test]
    fn an_address_is_found_in_the_ranges_that_hold_it_and_in_no_others() {
        let ranges = ranges(&["10.1.0.0/24", "10.0.0.0/23", "10.0.1.128/25", "fd00::/64"]);
        for (address, wanted) in [
            ("10.0.0.0", true),
            ("10.0.1.255", true),
            ("10.0.2.0", false),
            ("10.1.0.77", true),
            ("9.255.255.255", false),
            ("fd00::7", true),
            ("fd01::", false),
            ("::a00:1", false),
        ] {
            let address = address.parse().expect("it is an address");
            assert_eq!(ranges.contains(address), wanted, "{address}");
        }
    }

    #[test]
    fn a_hull_holds_its_addresses_unless_it_would_be_too_wide() {
        let of = |texts: &[&str]| {
            let parsed = texts.iter().map(|text| text.parse().expect("it is an address"));
            hull(parsed, MAX_SERVICE_BITS).map(|net| net.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(of(&["10.96.0.1"]), ["10.96.0.1/32"]);
        assert_eq!(of(&["10.96.0.1", "10.96.0.10", "fd00::1"]), ["10.96.0.0/28", "fd00::1/128"]);
        assert_eq!(of(&["10.96.0.1", "172.20.0.1"]), Vec::<String>::new());
        assert_eq!(of(&[]), Vec::<String>::new());
    }
}
