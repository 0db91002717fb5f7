//! Addresses as people type and read them: `10.0.0.1:80`, `[fd00::1]:80`, prefixes, port ranges.

use std::fmt;
use std::net::{IpAddr, Ipv6Addr};
use std::str::FromStr;

use ipnet::IpNet;

/// An address with a port, IPv6 in brackets; the address alone where there is no port.
#[must_use]
pub fn endpoint(address: &str, port: Option<u32>) -> String {
    match port {
        None => address.to_owned(),
        Some(port) if address.contains(':') => format!("[{address}]:{port}"),
        Some(port) => format!("{address}:{port}"),
    }
}

/// A text is not an address or prefix.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not an address or prefix, give one such as 10.0.0.1, 10.0.0.0/8 or fd00::/8")]
pub struct PrefixError(pub String);

/// Reads an address (a prefix of full length) or a prefix. Bits behind the prefix length are
/// ignored: `10.1.2.3/8` is `10.0.0.0/8`.
///
/// # Errors
/// The text and the accepted forms.
pub fn prefix(text: &str) -> Result<IpNet, PrefixError> {
    let error = || PrefixError(text.to_owned());
    if text.contains('/') {
        return text.parse::<IpNet>().map(|net| net.trunc()).map_err(|_unsaid| error());
    }
    text.parse::<IpAddr>().map(IpNet::from).map_err(|_unsaid| error())
}

/// A text is not a port or range of ports.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0:?} is not a port or range, give one such as 443 or 8000-8100, at most 65535")]
pub struct PortError(pub String);

/// Reads `443` or `8000-8100` as a first and last port, both included.
///
/// # Errors
/// The text and the accepted forms, also if the first is above the last.
pub fn port_range(text: &str) -> Result<(u16, u16), PortError> {
    let error = || PortError(text.to_owned());
    let port = |text: &str| {
        let digits = !text.is_empty() && text.bytes().all(|b| b.is_ascii_digit());
        digits.then(|| text.parse::<u16>().ok()).flatten().ok_or_else(error)
    };
    let (first, last) = match text.split_once('-') {
        Some((first, last)) => (port(first)?, port(last)?),
        None => (port(text)?, port(text)?),
    };
    if first > last { Err(error()) } else { Ok((first, last)) }
}

/// A host, by name or address, and a port.
#[derive(Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct HostPort {
    /// A DNS name or an address, IPv6 without brackets.
    pub host: String,
    /// The port, never 0.
    pub port: u16,
}

/// A text is not HOST:PORT.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum HostPortError {
    /// A URL was given.
    #[error("{0:?} is a URL, give HOST:PORT without a scheme or path, such as 127.0.0.1:9090")]
    Url(String),
    /// The port is missing digits, 0 or too large.
    #[error("{0:?} has no valid port, give one from 1 to 65535, such as 127.0.0.1:9090")]
    Port(String),
    /// Anything else.
    #[error("{0:?} is not HOST:PORT, give one such as 127.0.0.1:9090, node-a:9090 or [::1]:9090")]
    Malformed(String),
}

impl HostPort {
    /// Reads `host:port`, `[v6]:port`, or either without a port, which is then `default_port`.
    ///
    /// # Errors
    /// What is wrong with `text` and which forms are accepted.
    pub fn parse(text: &str, default_port: u16) -> Result<Self, HostPortError> {
        let malformed = || HostPortError::Malformed(text.to_owned());
        if text.contains('/') {
            return Err(HostPortError::Url(text.to_owned()));
        }
        if text.parse::<Ipv6Addr>().is_ok() {
            return Ok(Self { host: text.to_owned(), port: default_port });
        }
        let (host, port) = if let Some(bracketed) = text.strip_prefix('[') {
            let (host, rest) = bracketed.split_once(']').ok_or_else(malformed)?;
            host.parse::<Ipv6Addr>().map_err(|_unsaid| malformed())?;
            match rest.strip_prefix(':') {
                Some(port) => (host, Some(port)),
                None if rest.is_empty() => (host, None),
                None => return Err(malformed()),
            }
        } else {
            match text.split_once(':') {
                Some((host, port)) => (host, Some(port)),
                None => (text, None),
            }
        };
        let name = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '-' | '_');
        if host.is_empty() || !(host.contains(':') || host.chars().all(name)) {
            return Err(malformed());
        }
        let port = match port {
            None => default_port,
            Some(port) => match port_range(port) {
                Ok((first, last)) if first == last && first != 0 => first,
                _ => return Err(HostPortError::Port(text.to_owned())),
            },
        };
        Ok(Self { host: host.to_owned(), port })
    }
}

impl fmt::Display for HostPort {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&endpoint(&self.host, Some(self.port.into())))
    }
}

impl FromStr for HostPort {
    type Err = HostPortError;

    /// As [`HostPort::parse`] with the agent's port, 9090.
    fn from_str(text: &str) -> Result<Self, HostPortError> {
        Self::parse(text, 9090)
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    #[test]
    fn ipv6_is_bracketed_where_a_port_follows() {
        assert_eq!(endpoint("10.0.0.1", Some(80)), "10.0.0.1:80");
        assert_eq!(endpoint("fd00::1", Some(80)), "[fd00::1]:80");
        assert_eq!(endpoint("fd00::1", None), "fd00::1");
    }

    #[test]
    fn an_address_is_a_prefix_of_full_length() {
        assert_eq!(prefix("10.1.2.3").unwrap().to_string(), "10.1.2.3/32");
        assert_eq!(prefix("10.1.2.3/8").unwrap().to_string(), "10.0.0.0/8");
        assert_eq!(prefix("fd00::1").unwrap().to_string(), "fd00::1/128");
        for bad in ["", "10.0.0", "10.0.0.0/33", "fd00::/129", "host", "10.0.0.1:80", "10.0.0.1/"] {
            assert_eq!(prefix(bad), Err(PrefixError(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn ports_are_single_or_a_rising_range() {
        assert_eq!(port_range("443"), Ok((443, 443)));
        assert_eq!(port_range("8000-8100"), Ok((8000, 8100)));
        assert_eq!(port_range("0-65535"), Ok((0, 65535)));
        for bad in ["", "-", "1-", "-1", "65536", "2-1", "80,443", "+80", "http", "1-2-3"] {
            assert_eq!(port_range(bad), Err(PortError(bad.to_owned())), "{bad}");
        }
    }

    #[test]
    fn hosts_are_names_or_addresses_with_a_port() {
        for (text, expected) in [
            ("127.0.0.1:9090", "127.0.0.1:9090"),
            ("127.0.0.1", "127.0.0.1:9090"),
            ("node-a.example:1", "node-a.example:1"),
            ("localhost", "localhost:9090"),
            ("[::1]:9091", "[::1]:9091"),
            ("[::1]", "[::1]:9090"),
            ("::1", "[::1]:9090"),
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap().to_string(), expected, "{text}");
        }
    }

    #[test]
    fn what_is_no_host_and_port_is_refused_with_the_reason() {
        for (text, message) in [
            (
                "http://127.0.0.1:9090",
                "\"http://127.0.0.1:9090\" is a URL, give HOST:PORT without a scheme or path, such as 127.0.0.1:9090",
            ),
            (
                "node:0",
                "\"node:0\" has no valid port, give one from 1 to 65535, such as 127.0.0.1:9090",
            ),
            (
                "node:",
                "\"node:\" has no valid port, give one from 1 to 65535, such as 127.0.0.1:9090",
            ),
            (
                "",
                "\"\" is not HOST:PORT, give one such as 127.0.0.1:9090, node-a:9090 or [::1]:9090",
            ),
            (
                "[::1",
                "\"[::1\" is not HOST:PORT, give one such as 127.0.0.1:9090, node-a:9090 or [::1]:9090",
            ),
            (
                "a b:1",
                "\"a b:1\" is not HOST:PORT, give one such as 127.0.0.1:9090, node-a:9090 or [::1]:9090",
            ),
        ] {
            assert_eq!(text.parse::<HostPort>().unwrap_err().to_string(), message, "{text}");
        }
    }

    proptest! {
        #[test]
        fn endpoints_read_back_as_socket_addresses(address: IpAddr, port: u16) {
            let text = endpoint(&address.to_string(), Some(port.into()));
            prop_assert_eq!(text.parse::<std::net::SocketAddr>().unwrap(), (address, port).into());
        }

        #[test]
        fn written_hosts_read_back(address: IpAddr, port in 1u16..) {
            let host = HostPort { host: address.to_string(), port };
            prop_assert_eq!(host.to_string().parse::<HostPort>(), Ok(host));
        }

        #[test]
        fn a_prefix_contains_the_address_it_was_made_of(address: IpAddr, length in 0u8..=32) {
            let text = format!("{address}/{length}");
            prop_assert!(prefix(&text).unwrap().contains(&address));
        }

        #[test]
        fn ranges_read_back(a: u16, b: u16) {
            let (first, last) = (a.min(b), a.max(b));
            prop_assert_eq!(port_range(&format!("{first}-{last}")), Ok((first, last)));
        }

        #[test]
        fn no_text_panics(text in ".{0,40}", closer in "[\\[\\]0-9a-f:./-]{0,30}") {
            for text in [text, closer] {
                drop(prefix(&text));
                drop(port_range(&text));
                drop(text.parse::<HostPort>());
            }
        }
    }
}
