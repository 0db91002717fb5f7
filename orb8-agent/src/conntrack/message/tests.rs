//! Tests of the parser, on a recorded message and on messages made at random.

use proptest::prelude::*;

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let length = u16::try_from(4 + value.len()).unwrap();
    let mut bytes = [length.to_ne_bytes(), kind.to_ne_bytes()].concat();
    bytes.extend_from_slice(value);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

fn nested(kind: u16, parts: &[Vec<u8>]) -> Vec<u8> {
    attribute(kind | 0x8000, &parts.concat())
}

fn tuple_bytes(kind: u16, tuple: &Tuple) -> Vec<u8> {
    let address = |at: u16, ip: IpAddr| match ip {
        IpAddr::V4(ip) => attribute(at, &ip.octets()),
        IpAddr::V6(ip) => attribute(at + 2, &ip.octets()),
    };
    let addresses = [address(1, tuple.src.ip()), address(2, tuple.dst.ip())];
    let protocol = [
        attribute(1, &[tuple.protocol]),
        attribute(2, &tuple.src.port().to_be_bytes()),
        attribute(3, &tuple.dst.port().to_be_bytes()),
    ];
    nested(kind, &[nested(1, &addresses), nested(2, &protocol)])
}

fn message_bytes(kind: u16, body: &[u8]) -> Vec<u8> {
    let length = u32::try_from(HEADER + body.len()).unwrap();
    let mut bytes = length.to_ne_bytes().to_vec();
    bytes.extend_from_slice(&kind.to_ne_bytes());
    bytes.resize(HEADER, 0);
    bytes.extend_from_slice(body);
    bytes.resize(aligned(bytes.len()), 0);
    bytes
}

/// As the kernel writes it, with attributes that we pass over in between.
fn connection_bytes(kind: u16, connection: &Connection) -> Vec<u8> {
    let mut parts = vec![
        vec![2, 0, 0, 0],
        tuple_bytes(1, &connection.original),
        attribute(3, &[0, 0, 1, 0x8e]),
        tuple_bytes(2, &connection.reply),
        nested(4, &[nested(1, &[attribute(1, &[3])])]),
        attribute(12, &connection.id.to_be_bytes()),
    ];
    if connection.zone != 0 {
        parts.push(attribute(18, &connection.zone.to_be_bytes()));
    }
    message_bytes(kind, &parts.concat())
}

fn address() -> impl Strategy<Value = (IpAddr, IpAddr)> {
    prop_oneof![
        any::<(Ipv4Addr, Ipv4Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
        any::<(Ipv6Addr, Ipv6Addr)>().prop_map(|(a, b)| (a.into(), b.into())),
    ]
}

fn any_tuple() -> impl Strategy<Value = Tuple> {
    (address(), any::<(u8, u16, u16)>()).prop_map(|((src, dst), (protocol, from, to))| Tuple {
        protocol,
        src: SocketAddr::new(src, from),
        dst: SocketAddr::new(dst, to),
    })
}

fn any_connection() -> impl Strategy<Value = Connection> {
    (any_tuple(), any_tuple(), any::<(u32, u16)>())
        .prop_map(|(original, reply, (id, zone))| Connection { original, reply, id, zone })
}

fn read(bytes: &[u8]) -> Vec<Result<Message, Malformed>> {
    messages(bytes).collect()
}

#[test]
fn a_recorded_connection_to_a_service_is_read() {
    // From Linux 6.18: 10.244.1.3:41234 asked 10.96.0.10:80 by TCP, 10.244.1.4:8080 answers.
    let recorded = [
        "c400000000010006000000000000000002000000340001801400018008000100",
        "0af40103080002000a60000a1c000280050001000600000006000200a1120000",
        "06000300005000003400028014000180080001000af40104080002000af40103",
        "1c0002800500010006000000060002001f90000006000300a112000008000c00",
        "2255311108000300000001a80800070000000078300004802c00018005000100",
        "01000000050002000a0000000500030000000000060004000300000006000500",
        "00000000",
    ];
    let byte = |pair: &[u8]| u8::from_str_radix(std::str::from_utf8(pair).unwrap(), 16).unwrap();
    let bytes: Vec<u8> = recorded.concat().as_bytes().chunks(2).map(byte).collect();
    let [Ok(Message::New(found))] = read(&bytes)[..] else { panic!("{:?}", read(&bytes)) };
    let tuple = |src: &str, dst: &str| Tuple {
        protocol: 6,
        src: src.parse().unwrap(),
        dst: dst.parse().unwrap(),
    };
    assert_eq!(found.original, tuple("10.244.1.3:41234", "10.96.0.10:80"));
    assert_eq!(found.reply, tuple("10.244.1.4:8080", "10.244.1.3:41234"));
    assert!(found.is_translated());
    assert_eq!((found.id, found.zone), (0x2255_3111, 0));
}

#[test]
fn the_end_of_a_dump_a_refusal_and_foreign_messages_are_told_apart() {
    let error = |number: i32| number.to_ne_bytes();
    for (kind, body, expected) in [
        (NLMSG_DONE, error(0), Ok(Message::Done)),
        (NLMSG_DONE, error(-16), Ok(Message::Refused(16))),
        (NLMSG_ERROR, error(-1), Ok(Message::Refused(1))),
        (CT_NEW | 3, error(0), Ok(Message::Other)),
        (1, error(0), Ok(Message::Other)),
        (CT_NEW, error(0), Err(Malformed)),
    ] {
        assert_eq!(read(&message_bytes(kind, &body)), [expected], "{kind}");
    }
    assert_eq!(read(&[]), []);
    assert_eq!(read(&[0; 16]), [Err(Malformed)], "a length that leads nowhere ends it");
}

#[test]
fn what_has_no_ports_has_port_0() {
    let ping = Tuple {
        protocol: 1,
        src: "10.0.0.1:0".parse().unwrap(),
        dst: "10.0.0.2:0".parse().unwrap(),
    };
    let addresses = nested(1, &[attribute(1, &[10, 0, 0, 1]), attribute(2, &[10, 0, 0, 2])]);
    // Identifier, type and code of ICMP.
    let echo = [attribute(1, &[1]), attribute(4, &[7, 7]), attribute(5, &[8]), attribute(6, &[0])];
    let bytes = [addresses, nested(2, &echo)].concat();
    assert_eq!(super::tuple(&bytes), Some(ping));
}

#[test]
fn a_request_is_the_one_that_the_kernel_takes() {
    let request = dump_request();
    assert_eq!(
        split_message(&request).map(|(kind, body, rest)| (kind, body.len(), rest.len())),
        Some((CT_GET, GENERIC, 0))
    );
}

proptest! {
    #[test]
    fn what_the_kernel_writes_is_read(
        sent in proptest::collection::vec((any::<bool>(), any_connection()), 0..5)
    ) {
        let mut bytes = Vec::new();
        for (new, connection) in &sent {
            bytes.extend(connection_bytes(if *new { CT_NEW } else { CT_DELETE }, connection));
        }
        let expected: Vec<_> = sent.iter().map(|(new, connection)| {
            Ok(if *new { Message::New(*connection) } else { Message::Destroy(*connection) })
        }).collect();
        prop_assert_eq!(read(&bytes), expected);
    }

    #[test]
    fn a_message_that_is_cut_short_is_malformed(connection in any_connection(), cut in 1..100_usize) {
        let whole = connection_bytes(CT_NEW, &connection);
        let mut bytes = whole[..whole.len().saturating_sub(cut)].to_vec();
        let expected: &[_] = if bytes.is_empty() { &[] } else { &[Err(Malformed)] };
        prop_assert_eq!(&read(&bytes), expected);
        // Even if its own length says that this is all, its attributes do not fit.
        if bytes.len() >= HEADER {
            let length = u32::try_from(bytes.len()).unwrap();
            bytes[..4].copy_from_slice(&length.to_ne_bytes());
            for message in read(&bytes) {
                let fits = |it: &Connection| it.original == connection.original;
                prop_assert!(message.is_err() || matches!(message, Ok(Message::New(it)) if fits(&it)));
            }
        }
    }

    #[test]
    fn any_bytes_are_taken(bytes in proptest::collection::vec(any::<u8>(), 0..400)) {
        let found = read(&bytes);
        let first_bad = found.iter().position(|it| it == &Err(Malformed));
        // A malformed header ends the datagram; a malformed body only its own message.
        prop_assert!(found.len() <= bytes.len().div_ceil(HEADER));
        prop_assert!(bytes.is_empty() || !found.is_empty());
        prop_assert!(bytes.len() >= HEADER || first_bad == (!bytes.is_empty()).then_some(0));
    }

    #[test]
    fn a_changed_byte_makes_at_most_its_own_message_malformed(
        connection in any_connection(), at in HEADER..200, value in any::<u8>()
    ) {
        let one = connection_bytes(CT_NEW, &connection);
        let mut bytes = [one.as_slice(), &one].concat();
        bytes[HEADER + at % (one.len() - HEADER)] = value;
        let found = read(&bytes);
        prop_assert_eq!(found.len(), 2);
        prop_assert_eq!(found[1], Ok(Message::New(connection)));
    }
}
