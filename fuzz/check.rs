//! What must hold for any bytes whatever that reach the header parser.
//!
//! Shared by the fuzz target, which invents the bytes, and by orb8-common's tests, which replay
//! the seeds.

use orb8_common::parse::{
    ETHERTYPE_IPV4, ETHERTYPE_IPV6, Frame, Link, Parsed, any_form, common_form,
};

/// Bytes in front of the packet that say how it arrived: link, GSO segments, GSO size in two
/// bytes, directly addressable bytes.
pub(crate) const PREFIX: usize = 5;

/// Parses `input` both ways.
///
/// # Panics
/// If a reader panics, if the quick one accepts what the thorough one reads otherwise, or if the
/// datagram is said to be longer than the frame.
pub(crate) fn check(input: &[u8]) {
    let Some((&[link, segments, size_high, size_low, linear], packet)) =
        input.split_first_chunk::<PREFIX>()
    else {
        return;
    };
    let frame = Frame {
        link: match link % 4 {
            0 => Link::Ethernet,
            1 => Link::Raw,
            2 => Link::Other { ethertype: ETHERTYPE_IPV4 },
            _ => Link::Other { ethertype: ETHERTYPE_IPV6 },
        },
        length: u32::try_from(packet.len()).unwrap_or(u32::MAX),
        gso_segs: segments.into(),
        gso_size: u16::from_be_bytes([size_high, size_low]).into(),
    };
    let mut thorough = Parsed::EMPTY;
    let outcome = any_form(&packet, &frame, &mut thorough);
    if outcome.is_ok() {
        assert!(thorough.datagram_bytes <= frame.length, "{thorough:?} in {frame:?}");
        assert!(thorough.packets(&frame) > 0, "{thorough:?} in {frame:?}");
    }
    let addressable = &packet[..packet.len().min(linear.into())];
    if let Some(quick) = common_form(&addressable, &frame) {
        assert_eq!(outcome, Ok(()), "only the quick reader accepts {packet:?} in {frame:?}");
        assert_eq!(quick, thorough, "the readers differ on {packet:?} in {frame:?}");
    }
}
