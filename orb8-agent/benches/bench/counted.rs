//! What a namespace's IP layer counted itself, as packets and IP bytes on a wire: the witness of TCP
//! and of programs that send by themselves.

use std::collections::BTreeMap;
use std::time::Duration;

use orb8_testbed::counters;
use orb8_testbed::netns::Netns;

use crate::bed::wait;
use crate::report::Amount;

/// Headers of IPv4 and of TCP with timestamps: what each segment of a super-packet bears.
const SEGMENT_HEADERS: u64 = 52;

/// How long nothing may pass before a namespace counts as quiet.
const QUIET: Duration = Duration::from_millis(150);

/// The counters at one moment. Both ends of a conversation over loopback are in them, so nothing may
/// be asked of an agent in that namespace between two of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Counted(BTreeMap<String, u64>);

impl Counted {
    /// When nothing passes any more: the kernel tells packets and bytes in different files, and what
    /// was asked of an agent before may still be closing its connection over loopback.
    pub(crate) fn at_rest(netns: &Netns) -> anyhow::Result<Self> {
        let read = || Self(counters::protocols(netns));
        let mut last = read();
        wait("a quiet namespace", || {
            std::thread::sleep(QUIET);
            let now = read();
            let quiet = now == last;
            last = now;
            Ok(quiet)
        })?;
        Ok(last)
    }

    /// Packets and bytes both ways since then. A super-packet counts once in the kernel's packets and
    /// bytes; its segments are those of TCP, or are told with the marks of congestion.
    pub(crate) fn since(&self, earlier: &Self) -> Amount {
        let grown = |names: &[&str]| -> u64 {
            let of = |counters: &Self, name: &&str| counters.0.get(*name).copied().unwrap_or(0);
            names.iter().map(|name| of(self, name) - of(earlier, name)).sum()
        };
        let received =
            grown(&["IpExt.InNoECTPkts", "IpExt.InECT0Pkts", "IpExt.InECT1Pkts", "IpExt.InCEPkts"]);
        let sent = grown(&["Tcp.OutSegs", "Tcp.RetransSegs", "Udp.OutDatagrams", "Icmp.OutMsgs"]);
        let more = received + sent - grown(&["Ip.InReceives", "Ip.OutRequests"]);
        let octets = grown(&["IpExt.InOctets", "IpExt.OutOctets"]);
        Amount { packets: received + sent, bytes: octets + more * SEGMENT_HEADERS }
    }
}
