"""Frames for the kernel tests, made by scapy; one JSON object a line.

Every case says what it must count as. The numbers come from scapy's own fields and from the
length that scapy gives the IP part, never from the product's parser.
"""

import json
import sys

from scapy.all import (
    AH,
    Dot1AD,
    Dot1Q,
    Ether,
    ICMP,
    ICMPv6EchoRequest,
    ICMPv6PacketTooBig,
    IP,
    IPOption_RR,
    IPOption_Timestamp,
    IPv6,
    IPv6ExtHdrDestOpt,
    IPv6ExtHdrFragment,
    IPv6ExtHdrHopByHop,
    IPv6ExtHdrRouting,
    PadN,
    Raw,
    SCTP,
    SCTPChunkData,
    TCP,
    UDP,
    fragment,
    fragment6,
    raw,
)

A4, B4 = "192.0.2.1", "192.0.2.2"
A6, B6 = "2001:db8::1", "2001:db8::2"
LINK = Ether(src="02:00:00:00:00:01", dst="02:00:00:00:00:99")


def out(case):
    sys.stdout.write(json.dumps(case) + "\n")


def final_protocol(packet):
    """The number in the last header that names a next one."""
    protocol, layer = None, packet
    while layer:
        if isinstance(layer, (IP, IPv6, AH)) or "ExtHdr" in type(layer).__name__:
            built = type(packet)(raw(packet))
            match = built.getlayer(type(layer))
            protocol = match.proto if isinstance(match, IP) else match.nh
        else:
            break
        layer = layer.payload
    return protocol


def l4(packet):
    """What tells the flow, from scapy's own view of the packet."""
    protocol = final_protocol(packet)
    if packet.haslayer(ICMP):
        layer = packet[ICMP]
        return {"protocol": 1, "l4": "icmp", "type": layer.type, "code": layer.code}
    if protocol == 58:
        layer = packet[ICMPv6EchoRequest] if packet.haslayer(ICMPv6EchoRequest) else None
        layer = layer or packet[ICMPv6PacketTooBig]
        return {"protocol": 58, "l4": "icmp", "type": layer.type, "code": layer.code}
    for layer in (TCP, UDP, SCTP):
        if packet.haslayer(layer):
            ports = {"sport": packet[layer].sport, "dport": packet[layer].dport}
            return {"protocol": protocol, "l4": "ports", **ports}
    return {"protocol": protocol, "l4": "plain"}


def counted(name, packet, link=LINK, tail=b"", **flow):
    """One packet; `tail` is link-layer padding behind it; `flow` where scapy cannot tell it."""
    ip = packet.copy()
    case = {
        "name": name,
        "src": packet.src,
        "dst": packet.dst,
        "bytes": len(raw(ip)),
        "frame": (raw(link / ip) + tail).hex(),
    }
    case.update(flow or l4(packet))
    out(case)


def rejected(name, reason, frame):
    out({"name": name, "reject": reason, "frame": bytes(frame).hex()})


def as_fragment(protocol):
    return {"protocol": protocol, "l4": "fragment"}


def plain_protocols():
    counted("udp", IP(src=A4, dst=B4) / UDP(sport=1000, dport=2000) / Raw(b"x" * 33))
    counted("udp_without_data", IP(src=A4, dst=B4) / UDP(sport=1001, dport=2000))
    counted("tcp", IP(src=A4, dst=B4) / TCP(sport=1002, dport=80, flags="A") / Raw(b"y" * 7))
    counted(
        "tcp_with_options",
        IP(src=A4, dst=B4)
        / TCP(sport=1003, dport=80, flags="S", options=[("MSS", 1460), ("SAckOK", b""), ("Timestamp", (1, 0))]),
    )
    counted("icmp_echo", IP(src=A4, dst=B4) / ICMP(type=8, id=3) / Raw(b"z" * 56))
    # Without a body, since scapy would copy the ports of a quoted packet.
    counted("icmp_unreachable", IP(src=A4, dst=B4) / ICMP(type=3, code=3) / Raw(b"q" * 28))
    counted("icmp_timestamp", IP(src=A4, dst=B4) / ICMP(type=13))
    counted("sctp", IP(src=A4, dst=B4) / SCTP(sport=1004, dport=36412) / SCTPChunkData(data=b"d" * 16))
    counted("esp", IP(src=A4, dst=B4, proto=50) / Raw(b"e" * 40))
    counted("gre", IP(src=A4, dst=B4, proto=47) / Raw(b"\0\0\x08\0" + b"g" * 20))
    counted("ospf", IP(src=A4, dst="224.0.0.5", proto=89) / Raw(b"o" * 24))
    counted("udplite", IP(src=A4, dst=B4, proto=136) / UDP(sport=1005, dport=5004) / Raw(b"l" * 9))
    counted("udp6", IPv6(src=A6, dst=B6) / UDP(sport=1006, dport=2000) / Raw(b"x" * 33))
    counted("tcp6", IPv6(src=A6, dst=B6) / TCP(sport=1007, dport=80, flags="PA") / Raw(b"y" * 7))
    counted("icmpv6_echo", IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=3) / Raw(b"z" * 8))
    counted("icmpv6_too_big", IPv6(src=A6, dst=B6) / ICMPv6PacketTooBig(code=0, mtu=1280) / Raw(b"p" * 48))
    counted("sctp6", IPv6(src=A6, dst=B6) / SCTP(sport=1008, dport=36412) / SCTPChunkData(data=b"d"))
    counted("ipip", IP(src=A4, dst=B4, proto=4) / Raw(raw(IP(src="10.0.0.1", dst="10.0.0.2") / UDP())))


def ipv4_headers():
    counted(
        "ipv4_record_route",
        IP(src=A4, dst=B4, options=[IPOption_RR(pointer=4, routers=["0.0.0.0"] * 9)])
        / UDP(sport=1100, dport=2000)
        / Raw(b"r" * 5),
    )
    counted(
        "ipv4_timestamp_tcp",
        IP(src=A4, dst=B4, options=[IPOption_Timestamp(length=8, timestamp=1)])
        / TCP(sport=1101, dport=80, flags="A")
        / Raw(b"t" * 100),
    )
    counted(
        "ipv4_options_icmp",
        IP(src=A4, dst=B4, options=[IPOption_RR(pointer=4, routers=["0.0.0.0"] * 3)]) / ICMP(type=8) / Raw(b"i" * 3),
    )
    counted(
        "ethernet_padding_is_not_counted",
        IP(src=A4, dst=B4) / UDP(sport=1102, dport=2000) / Raw(b"p"),
        tail=b"\0" * 17,
    )
    # The reserved ("evil") bit is not a reason to reject.
    counted("ipv4_reserved_flag", IP(src=A4, dst=B4, flags="evil") / UDP(sport=1103, dport=2000))
    counted("ipv4_wrong_checksum", IP(src=A4, dst=B4, chksum=0xBAD) / UDP(sport=1104, dport=2000))
    counted("ipv4_ttl_zero", IP(src=A4, dst=B4, ttl=0) / UDP(sport=1105, dport=2000))


def fragments():
    whole = IP(src=A4, dst=B4, id=9, flags=0) / UDP(sport=1200, dport=2000) / Raw(b"f" * 3000)
    parts = fragment(whole, fragsize=1000)
    first = {"protocol": 17, "l4": "ports", "sport": 1200, "dport": 2000}
    counted("ipv4_first_fragment", parts[0], **first)
    for part in parts[1:]:
        out(
            {
                "name": "ipv4_later_fragment",
                "src": A4,
                "dst": B4,
                "bytes": len(raw(part)),
                "frame": raw(LINK / part).hex(),
                **as_fragment(17),
            }
        )
    # The data of a later fragment looks like a TCP header; nothing may read it as one.
    trap = IP(src=A4, dst=B4, frag=64, proto=6) / Raw(raw(TCP(sport=6666, dport=6667, flags="S")))
    counted("ipv4_fragment_that_looks_like_tcp", trap, **as_fragment(6))
    header = IPv6(src=A6, dst=B6) / IPv6ExtHdrFragment(id=5)
    parts = fragment6(header / UDP(sport=1201, dport=2000) / Raw(b"f" * 3000), 1280)
    for i, part in enumerate(parts):
        kind = as_fragment(17) if i else {"protocol": 17, "l4": "ports", "sport": 1201, "dport": 2000}
        name = "ipv6_later_fragment" if i else "ipv6_first_fragment"
        out(
            {
                "name": name,
                "src": A6,
                "dst": B6,
                "bytes": len(raw(part)),
                "frame": raw(LINK / part).hex(),
                **kind,
            }
        )
    counted("ipv6_atomic_fragment", header / UDP(sport=1202, dport=2000) / Raw(b"a" * 10))
    counted(
        "ipv6_options_before_later_fragment",
        IPv6(src=A6, dst=B6)
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 4)])
        / IPv6ExtHdrFragment(nh=17, offset=8, m=0, id=6)
        / Raw(b"\x11\x22\x33\x44" * 4),
        **as_fragment(17),
    )


def extension_headers():
    pad = [PadN(optdata=b"\0" * 4)]
    counted(
        "ipv6_hop_by_hop",
        IPv6(src=A6, dst=B6) / IPv6ExtHdrHopByHop(options=pad) / UDP(sport=1300, dport=2000) / Raw(b"h"),
    )
    counted(
        "ipv6_three_extension_headers",
        IPv6(src=A6, dst=B6)
        / IPv6ExtHdrHopByHop(options=pad)
        / IPv6ExtHdrRouting(type=2, segleft=1, addresses=["2001:db8::7"])
        / IPv6ExtHdrDestOpt(options=[PadN(optdata=b"\0" * 12)])
        / TCP(sport=1301, dport=80, flags="A")
        / Raw(b"3" * 30),
    )
    counted(
        "ipv6_authentication_header",
        IPv6(src=A6, dst=B6) / AH(nh=17, payloadlen=4, icv=b"\0" * 12) / UDP(sport=1302, dport=2000) / Raw(b"s" * 4),
    )
    counted("ipv6_no_next_header", IPv6(src=A6, dst=B6, nh=59))
    many = IPv6(src=A6, dst=B6)
    for _ in range(12):
        many = many / IPv6ExtHdrDestOpt(options=pad)
    rejected("ipv6_too_many_extension_headers", "too_many_headers", raw(LINK / many / UDP(sport=1, dport=2)))


def vlans():
    inner = IP(src=A4, dst=B4) / UDP(sport=1400, dport=2000) / Raw(b"v" * 20)
    counted("vlan", inner, link=LINK / Dot1Q(vlan=5))
    inner = IP(src=A4, dst=B4) / UDP(sport=1401, dport=2000) / Raw(b"v" * 20)
    counted("qinq", inner, link=LINK / Dot1AD(vlan=7) / Dot1Q(vlan=5))
    inner = IP(src=A4, dst=B4) / TCP(sport=1402, dport=80, flags="A") / Raw(b"v" * 20)
    counted("two_customer_tags", inner, link=LINK / Dot1Q(vlan=7) / Dot1Q(vlan=5))
    inner = IPv6(src=A6, dst=B6) / UDP(sport=1403, dport=2000) / Raw(b"v" * 20)
    counted("vlan6", inner, link=LINK / Dot1Q(vlan=5))
    inner = IPv6(src=A6, dst=B6) / ICMPv6EchoRequest(id=1) / Raw(b"v" * 20)
    counted("qinq6", inner, link=LINK / Dot1AD(vlan=7) / Dot1Q(vlan=5))


def malformed():
    udp = raw(IP(src=A4, dst=B4) / UDP(sport=1500, dport=2000) / Raw(b"m" * 40))
    link = Ether(src=LINK.src, dst=LINK.dst, type=0x0800)
    rejected("ipv4_cut_in_its_header", "truncated", raw(link / Raw(udp[:12])))
    rejected("ipv4_cut_in_its_data", "truncated", raw(link / Raw(udp[:-10])))
    rejected("ipv4_empty", "truncated", raw(link))
    short = IP(src=A4, dst=B4, proto=6) / Raw(raw(TCP(sport=1, dport=2))[:12])
    rejected("tcp_cut_in_its_header", "truncated", raw(LINK / short))
    short = IP(src=A4, dst=B4, proto=17) / Raw(b"\0\1\0\2")
    rejected("udp_cut_in_its_header", "truncated", raw(LINK / short))
    short = IP(src=A4, dst=B4, proto=1) / Raw(b"\x08")
    rejected("icmp_cut_in_its_header", "truncated", raw(LINK / short))
    long = IP(src=A4, dst=B4) / TCP(sport=1, dport=2, dataofs=15)
    rejected("tcp_header_longer_than_its_packet", "truncated", raw(LINK / long))
    long = IP(src=A4, dst=B4) / TCP(sport=1, dport=2, dataofs=3)
    rejected("tcp_header_below_its_minimum", "bad_header", raw(LINK / long))
    rejected("ipv4_header_below_its_minimum", "bad_header", raw(LINK / IP(src=A4, dst=B4, ihl=4) / UDP()))
    rejected("ipv4_length_below_its_header", "bad_header", raw(LINK / IP(src=A4, dst=B4, len=19) / UDP()))
    rejected("ipv4_length_zero", "bad_header", raw(LINK / IP(src=A4, dst=B4, len=0) / UDP()))
    rejected("ipv4_wrong_version", "bad_header", raw(LINK / IP(src=A4, dst=B4, version=5) / UDP()))
    wrong = Ether(src=LINK.src, dst=LINK.dst, type=0x86DD)
    rejected("ipv4_told_as_ipv6", "bad_header", raw(wrong / Raw(udp)))
    udp6 = raw(IPv6(src=A6, dst=B6) / UDP(sport=1501, dport=2000) / Raw(b"m" * 40))
    rejected("ipv6_cut_in_its_header", "truncated", raw(wrong / Raw(udp6[:30])))
    rejected("ipv6_cut_in_its_data", "truncated", raw(wrong / Raw(udp6[:-10])))
    cut = IPv6(src=A6, dst=B6, nh=60) / Raw(b"\x11\0\0\0")
    rejected("ipv6_cut_in_an_extension_header", "truncated", raw(LINK / cut))
    cut = IPv6(src=A6, dst=B6, nh=60) / Raw(b"\x11\xff\x01\x04\0\0\0\0")
    rejected("ipv6_extension_header_longer_than_its_packet", "truncated", raw(LINK / cut))
    rejected("arp", "not_ip", raw(Ether(src=LINK.src, dst=LINK.dst, type=0x0806) / Raw(b"\0\1\x08\0\6\4\0\1" + b"\0" * 20)))
    rejected("lldp", "not_ip", raw(Ether(src=LINK.src, dst=LINK.dst, type=0x88CC) / Raw(b"\0" * 46)))
    rejected("loopback_test", "not_ip", raw(Ether(src=LINK.src, dst=LINK.dst, type=0x9000) / Raw(b"\0" * 46)))


plain_protocols()
ipv4_headers()
fragments()
extension_headers()
vlans()
malformed()
