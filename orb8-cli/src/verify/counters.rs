//! The kernel's own counters as text: `/proc/PID/net/{dev,snmp,netstat,snmp6}`, and what one of them
//! grew by between two readings that took time.
//!
//! Pure: nothing here opens a file.

use std::collections::BTreeMap;

/// Protocol counters by name, as `Ip.InReceives`, `IpExt.InOctets` or `Ip6InReceives`.
pub type Stack = BTreeMap<String, u64>;

/// One direction of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Side {
    /// Packets; super-packets count once where the driver counts what the kernel hands over.
    pub packets: u64,
    /// Bytes with the link header.
    pub bytes: u64,
    /// Errors and drops: some drivers count such packets, some do not.
    pub faulty: u64,
}

/// Counters of an interface.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Device {
    /// Received.
    pub rx: Side,
    /// Sent.
    pub tx: Side,
}

/// Reads `/proc/PID/net/dev`; lines that are none of an interface are left out.
#[must_use]
pub fn devices(text: &str) -> BTreeMap<String, Device> {
    let device = |line: &str| {
        let (name, counters) = line.split_once(':')?;
        let parsed = counters.split_ascii_whitespace().map(|word| word.parse().ok());
        let column: Vec<u64> = parsed.collect::<Option<_>>()?;
        let side = |at: usize| {
            let faulty = column.get(at + 2)?.saturating_add(*column.get(at + 3)?);
            Some(Side { bytes: *column.get(at)?, packets: *column.get(at + 1)?, faulty })
        };
        Some((name.trim().to_owned(), Device { rx: side(0)?, tx: side(8)? }))
    };
    text.lines().filter_map(device).collect()
}

/// Adds the counters of `/proc/PID/net/snmp` or `netstat`: pairs of lines, names and values.
pub fn add_pairs(text: &str, stack: &mut Stack) {
    let lines: Vec<&str> = text.lines().collect();
    for pair in lines.chunks_exact(2) {
        let (Some((group, names)), Some((of, values))) =
            (pair[0].split_once(": "), pair[1].split_once(": "))
        else {
            continue;
        };
        if group != of {
            continue;
        }
        for (name, value) in names.split(' ').zip(values.split(' ')) {
            // Some are no counters and may be negative (Tcp.MaxConn); nobody asks for those.
            if let Ok(value) = value.parse() {
                stack.insert(format!("{group}.{name}"), value);
            }
        }
    }
}

/// Adds the counters of `/proc/PID/net/snmp6`: a name and a value on each line.
pub fn add_lines(text: &str, stack: &mut Stack) {
    for line in text.lines() {
        let mut words = line.split_ascii_whitespace();
        if let (Some(name), Some(value)) = (words.next(), words.next())
            && let Ok(value) = value.parse()
        {
            stack.insert(name.to_owned(), value);
        }
    }
}

/// What is known of a number: not less than the one, not more than the other.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Between {
    /// The least that it can be.
    pub low: u64,
    /// The most that it can be.
    pub high: u64,
}

impl Between {
    /// A number that is known.
    #[must_use]
    pub const fn exactly(value: u64) -> Self {
        Self { low: value, high: value }
    }

    /// What a counter grew by, read just before and just after a moment, twice; none if it was set back
    /// meanwhile, after which nobody knows.
    #[must_use]
    pub fn grown(start: [u64; 2], end: [u64; 2]) -> Option<Self> {
        let only_grows = start.iter().chain(&end).is_sorted();
        only_grows.then(|| Self::rise(start, end))
    }

    /// What a figure rose by that is made of several counters, so that a reading may be lower than the
    /// one before it; not less than 0.
    #[must_use]
    pub fn rise([a, b]: [u64; 2], [c, d]: [u64; 2]) -> Self {
        Self { low: c.min(d).saturating_sub(a.max(b)), high: c.max(d).saturating_sub(a.min(b)) }
    }

    /// Both together.
    #[must_use]
    pub const fn plus(self, other: Self) -> Self {
        Self { low: self.low.saturating_add(other.low), high: self.high.saturating_add(other.high) }
    }

    /// It may be more by so much.
    #[must_use]
    pub const fn or_more(self, by: u64) -> Self {
        Self { low: self.low, high: self.high.saturating_add(by) }
    }

    /// It may be less by so much.
    #[must_use]
    pub const fn or_less(self, by: u64) -> Self {
        Self { low: self.low.saturating_sub(by), high: self.high }
    }

    /// The middle, for people.
    #[must_use]
    pub const fn middle(self) -> u64 {
        self.low + (self.high - self.low) / 2
    }

    /// How much is not known.
    #[must_use]
    pub const fn width(self) -> u64 {
        self.high - self.low
    }

    /// By how much this is certainly more (or, negative, less) than another; 0 if they can be equal.
    #[must_use]
    pub fn beyond(self, other: Self) -> i64 {
        let signed = |value: u64| i64::try_from(value).unwrap_or(i64::MAX);
        if self.low > other.high {
            signed(self.low - other.high)
        } else {
            -signed(other.low.saturating_sub(self.high))
        }
    }
}

/// Packets and bytes, as far as they are known.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Bounds {
    /// Packets.
    pub packets: Between,
    /// IP bytes; none if the kernel does not tell them.
    pub bytes: Option<Between>,
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    const DEV: &str = "\
Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       2    0    0    0     0          0         0      100       2    0    0    0     0       0          0
  eth0:    9000      10    1    2    0     0          0         0     5000       7    3    4    0     0       0          0
broken: 1 2 x
";

    #[test]
    fn interfaces_are_read_by_their_columns() {
        let found = devices(DEV);
        assert_eq!(found.keys().collect::<Vec<_>>(), ["eth0", "lo"]);
        let rx = Side { packets: 10, bytes: 9000, faulty: 3 };
        let tx = Side { packets: 7, bytes: 5000, faulty: 7 };
        assert_eq!(found["eth0"], Device { rx, tx });
    }

    #[test]
    fn protocol_counters_are_read_by_their_names() {
        let mut stack = Stack::new();
        add_pairs(
            "Ip: Forwarding InReceives\nIp: 1 42\nTcp: MaxConn InSegs\nTcp: -1 7\n",
            &mut stack,
        );
        add_pairs("Ip: Odd\nTcp: 1\nalone", &mut stack);
        add_lines("Ip6InReceives \t 9\nIp6Odd x\n", &mut stack);
        let expected =
            [("Ip.Forwarding", 1), ("Ip.InReceives", 42), ("Ip6InReceives", 9), ("Tcp.InSegs", 7)];
        let expected = expected.map(|(name, value)| (name.to_owned(), value));
        assert_eq!(stack, Stack::from(expected));
    }

    #[test]
    fn what_readings_leave_open_is_no_difference() {
        let kernel = Between::grown([100, 103], [150, 154]).expect("it only grows");
        assert_eq!(kernel, Between { low: 47, high: 54 });
        for (ours, beyond) in [(47, 0), (54, 0), (50, 0), (46, -1), (60, 6)] {
            assert_eq!(Between::exactly(ours).beyond(kernel), beyond, "{ours}");
        }
    }

    proptest! {
        #[test]
        fn whatever_the_text_nothing_panics(text in ".*") {
            let mut stack = Stack::new();
            drop(devices(&text));
            add_pairs(&text, &mut stack);
            add_lines(&text, &mut stack);
        }

        /// A counter only grows: what it grew by between two moments lies within what the readings
        /// around these moments say.
        #[test]
        fn the_truth_lies_within_the_readings(steps in prop::array::uniform6(0_u64..1 << 40)) {
            let mut sums = [0; 6];
            let mut sum = 0;
            for (at, step) in sums.iter_mut().zip(steps) {
                sum += step;
                *at = sum;
            }
            let [before, start, after, before_end, end, after_end] = sums;
            let grown = Between::grown([before, after], [before_end, after_end]);
            let grown = grown.expect("it only grows");
            prop_assert_eq!(Between::exactly(end - start).beyond(grown), 0);
        }

        /// A counter that was set back says nothing; whatever the readings, the least is not more than
        /// the most.
        #[test]
        fn counters_that_shrink_are_no_growth(
            start in prop::array::uniform2(0_u64..8),
            end in prop::array::uniform2(0_u64..8),
        ) {
            let only_grows = start[0] <= start[1] && start[1] <= end[0] && end[0] <= end[1];
            let (grown, rise) = (Between::grown(start, end), Between::rise(start, end));
            prop_assert_eq!(grown, only_grows.then_some(rise));
            prop_assert!(rise.low <= rise.high, "{:?}", rise);
            prop_assert_eq!(rise.width(), rise.high - rise.low);
            prop_assert!((rise.low..=rise.high).contains(&rise.middle()));
        }
    }
}
