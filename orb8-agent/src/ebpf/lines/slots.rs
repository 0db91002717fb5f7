//! What is known of each line of the table from drain to drain: what was told of it, what was found
//! in this drain, and how far it is on its way out of use.

/// A line on our side.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Slot {
    /// Bytes told so far; wraps, as the line's own counter does.
    told_bytes: u64,
    /// Bytes found in this drain: of the line, and of the CPUs' caches.
    bytes: u64,
    told_packets: u32,
    packets: u32,
    /// Tick of the last packet found.
    pub(super) last_seen: u32,
    pub(super) state: State,
}

/// How far a line is on its way. Each step but the first waits until the one before is through.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// In the list of free lines, or not yet seen with a flow.
    #[default]
    Free,
    /// Has a flow, of which nothing was told yet.
    New,
    /// Has a flow.
    Used,
    /// No program finds it in the index any more; those that had found it may still run.
    Unlisted,
    /// These have ended. What the CPUs' caches hold for it is taken away.
    Emptied,
    /// No cache holds anything for it; those programs that moved counts out of a cache may still
    /// run. When they have ended, the line is free.
    Leaving,
}

/// Packets that may be on their way from the caches to a line at once: what a cached line holds, on
/// 512 CPUs. Anything else that seems to be less than before is a counter that has wrapped.
const PACKETS_ON_THE_WAY: u32 = 512 << 17;
/// The same in bytes.
const BYTES_ON_THE_WAY: u64 = 512 << 31;

/// What is new on a line.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct More {
    pub(super) packets: u32,
    pub(super) bytes: u64,
}

impl Slot {
    /// Begins a drain with what stands on the line itself.
    pub(super) fn found(&mut self, packets: u32, bytes: u64, last_seen: u32) {
        self.packets = packets;
        self.bytes = bytes;
        self.last_seen = last_seen;
    }

    /// Adds what a cache holds for the line.
    pub(super) fn add(&mut self, packets: u32, bytes: u64, last_seen: u32) {
        self.packets = self.packets.wrapping_add(packets);
        self.bytes = self.bytes.wrapping_add(bytes);
        if last_seen.wrapping_sub(self.last_seen).cast_signed() > 0 {
            self.last_seen = last_seen;
        }
    }

    /// What was found beyond what was told; it is told now. Counts that were on their way from a
    /// cache to the line when both were read are found in the next drain, so a total never falls.
    pub(super) fn tell(&mut self) -> Option<More> {
        let (packets, bytes) = (self.packets, self.bytes);
        let more = More {
            packets: match self.told_packets.wrapping_sub(packets) {
                0..=PACKETS_ON_THE_WAY => 0,
                _ => packets.wrapping_sub(self.told_packets),
            },
            bytes: match self.told_bytes.wrapping_sub(bytes) {
                0..=BYTES_ON_THE_WAY => 0,
                _ => bytes.wrapping_sub(self.told_bytes),
            },
        };
        self.told_packets = self.told_packets.wrapping_add(more.packets);
        self.told_bytes = self.told_bytes.wrapping_add(more.bytes);
        (more.packets != 0 || more.bytes != 0).then_some(more)
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn counts_on_their_way_to_the_line_are_told_once_and_later() {
        let mut slot = Slot::default();
        slot.found(10, 1000, 5);
        slot.add(4, 400, 6);
        assert_eq!(slot.tell(), Some(More { packets: 14, bytes: 1400 }));
        // The line was read before the four were added to it, the cache after they had left it.
        slot.found(10, 1000, 5);
        assert_eq!(slot.tell(), None);
        slot.found(15, 1500, 7);
        assert_eq!(slot.tell(), Some(More { packets: 1, bytes: 100 }));
    }

    #[test]
    fn more_than_half_of_what_a_counter_holds_is_told_after_a_long_stall() {
        let mut slot = Slot::default();
        slot.found(3_000_000_000, 200_000_000_000, 0);
        let more = More { packets: 3_000_000_000, bytes: 200_000_000_000 };
        assert_eq!(slot.tell(), Some(more));
        slot.found(100, 200_000_000_100, 0);
        assert_eq!(slot.tell(), Some(More { packets: 1_294_967_396, bytes: 100 }));
    }

    #[test]
    fn the_last_packet_is_the_latest_of_line_and_caches_also_where_ticks_wrap() {
        let mut slot = Slot::default();
        slot.found(1, 60, u32::MAX - 1);
        slot.add(1, 60, 3);
        slot.add(1, 60, u32::MAX);
        assert_eq!(slot.last_seen, 3);
    }

    proptest! {
        #[test]
        fn what_is_told_adds_up_to_what_was_counted(
            steps in prop::collection::vec((0u32..1 << 20, 0u64..1 << 40, 0u32..4), 1..50),
            start in any::<(u32, u64)>(),
        ) {
            let (mut packets, mut bytes) = start;
            let mut slot = Slot { told_packets: packets, told_bytes: bytes, ..Slot::default() };
            let (mut told_packets, mut told_bytes) = start;
            for (more_packets, more_bytes, hidden) in steps {
                packets = packets.wrapping_add(more_packets);
                bytes = bytes.wrapping_add(more_bytes);
                // Some of it is under way in this drain.
                slot.found(packets.wrapping_sub(hidden), bytes, 0);
                if let Some(more) = slot.tell() {
                    told_packets = told_packets.wrapping_add(more.packets);
                    told_bytes = told_bytes.wrapping_add(more.bytes);
                }
                let missing = packets.wrapping_sub(told_packets);
                prop_assert!(missing <= hidden, "{missing} are missing");
            }
            slot.found(packets, bytes, 0);
            if let Some(more) = slot.tell() {
                told_packets = told_packets.wrapping_add(more.packets);
                told_bytes = told_bytes.wrapping_add(more.bytes);
            }
            prop_assert_eq!((told_packets, told_bytes), (packets, bytes));
        }
    }
}
