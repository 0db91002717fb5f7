//! Names of the ICMP and ICMPv6 types that people meet.

/// The common name of an ICMP type (IPv4), without spaces.
#[must_use]
pub fn v4_type(number: u8) -> Option<&'static str> {
    Some(match number {
        0 => "echo-reply",
        3 => "unreachable",
        5 => "redirect",
        8 => "echo-request",
        11 => "time-exceeded",
        12 => "parameter-problem",
        13 => "timestamp-request",
        14 => "timestamp-reply",
        _ => return None,
    })
}

/// The common name of an ICMPv6 type, without spaces.
#[must_use]
pub fn v6_type(number: u8) -> Option<&'static str> {
    Some(match number {
        1 => "unreachable",
        2 => "packet-too-big",
        3 => "time-exceeded",
        4 => "parameter-problem",
        128 => "echo-request",
        129 => "echo-reply",
        130 => "listener-query",
        131 => "listener-report",
        133 => "router-solicitation",
        134 => "router-advertisement",
        135 => "neighbor-solicitation",
        136 => "neighbor-advertisement",
        137 => "redirect",
        143 => "listener-report-v2",
        _ => return None,
    })
}

/// A type and code in one word: `echo-request`, `unreachable:3`, and `42:0` where the type has no
/// common name. The code is left out where it is zero and the type has a name.
#[must_use]
pub fn describe(v6: bool, kind: u32, code: u32) -> String {
    let name = u8::try_from(kind).ok().and_then(if v6 { v6_type } else { v4_type });
    match name {
        Some(name) if code == 0 => name.to_owned(),
        Some(name) => format!("{name}:{code}"),
        None => format!("{kind}:{code}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn common_types_have_names_and_the_rest_numbers() {
        assert_eq!(describe(false, 8, 0), "echo-request");
        assert_eq!(describe(false, 3, 3), "unreachable:3");
        assert_eq!(describe(false, 42, 0), "42:0");
        assert_eq!(describe(true, 128, 0), "echo-request");
        assert_eq!(describe(true, 8, 0), "8:0");
        assert_eq!(describe(true, u32::MAX, 1), "4294967295:1");
    }
}
