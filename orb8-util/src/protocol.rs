//! IP protocol numbers and the words that orb8 uses for them: `tcp udp icmp icmpv6 sctp`; the rest
//! goes by number.

const NAMES: [(u8, &str); 5] =
    [(6, "tcp"), (17, "udp"), (1, "icmp"), (58, "icmpv6"), (132, "sctp")];

/// A text is not a protocol.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("unknown protocol {0:?}, use tcp, udp, icmp, icmpv6, sctp or a number from 0 to 255")]
pub struct ProtocolError(pub String);

/// The word for a protocol number, or the number itself.
#[must_use]
pub fn name(number: u8) -> String {
    NAMES
        .iter()
        .find(|(known, _)| *known == number)
        .map_or_else(|| number.to_string(), |(_, name)| (*name).to_owned())
}

/// The number of a protocol given by word, in any case, or by number.
///
/// # Errors
/// The text and the accepted words.
pub fn number(text: &str) -> Result<u8, ProtocolError> {
    NAMES
        .iter()
        .find(|(_, name)| name.eq_ignore_ascii_case(text))
        .map(|(number, _)| *number)
        .or_else(|| text.bytes().all(|b| b.is_ascii_digit()).then(|| text.parse().ok()).flatten())
        .ok_or_else(|| ProtocolError(text.to_owned()))
}

/// True if packets of this protocol carry ports: TCP, UDP and SCTP.
#[must_use]
pub fn has_ports(number: u8) -> bool {
    matches!(number, 6 | 17 | 132)
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn words_and_numbers_mean_the_same() {
        assert_eq!(number("TCP"), Ok(6));
        assert_eq!(number("icmpv6"), Ok(58));
        assert_eq!(number("58"), Ok(58));
        assert_eq!(name(132), "sctp");
        assert_eq!(name(47), "47");
        for bad in ["", "tpc", "256", "-1", "+6", "6 ", "0x6"] {
            assert_eq!(number(bad), Err(ProtocolError(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn every_number_has_a_name_that_reads_back() {
        for protocol in 0..=u8::MAX {
            assert_eq!(number(&name(protocol)), Ok(protocol));
        }
    }

    proptest! {
        #[test]
        fn no_text_panics(text in ".{0,20}") {
            if let Ok(protocol) = number(&text) {
                prop_assert_eq!(number(&name(protocol)), Ok(protocol));
            }
        }
    }
}
