//! What a line says of a frame, whole, spoilt and at random.

use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex};

use dhcproto::Encodable as _;
use dhcproto::v4::{DhcpOption, Message, MessageType};
use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, IpFragOffset, IpNumber, Ipv4Header,
    TcpHeader, TcpOptionElement, UdpHeader,
};
use proptest::prelude::*;
use time::UtcOffset;
use tracing::{Event, Subscriber};
use tracing_subscriber::layer::{Context, Layer, SubscriberExt as _};

use super::*;
use crate::logging::{Format, LINE_MAX, Values};

const GUEST: [u8; 4] = [192, 168, 127, 2];
const GATEWAY: [u8; 4] = [192, 168, 127, 1];
const GUEST_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
const GATEWAY_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];

/// Lines as they are in a log's file.
#[derive(Clone, Default)]
struct Lines(Arc<Mutex<Vec<String>>>);

impl<S: Subscriber> Layer<S> for Lines {
    fn on_event(&self, event: &Event<'_>, _: Context<'_, S>) {
        let mut values = Values::default();
        event.record(&mut values);
        let format = Format { offset: UtcOffset::UTC };
        self.0.lock().unwrap().push(format.line("trace", &values.message, &values.fields));
    }
}

/// The line of `frame`, with its end.
fn line(frame: &[u8]) -> String {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::registry().with(lines.clone());
    tracing::subscriber::with_default(subscriber, || FrameLog::new(LoggedFrames::All).frame("guest", frame));
    let mut lines = lines.0.lock().unwrap();
    assert_eq!(lines.len(), 1, "{lines:?}");
    lines.remove(0)
}

/// What stands in the line of `frame` behind its length. `MACS` are the hardware addresses of guest and
/// gateway.
fn fields(frame: &[u8]) -> String {
    let line = line(frame);
    let (_, fields) = line.split_once(&format!(" msg=frame from=guest len={} ", frame.len())).expect(&line);
    let macs = r#"src_mac="5a:94:ef:e4:0c:ee" dst_mac="5a:94:ef:e4:0c:dd""#;
    fields.trim_end().replace(macs, "MACS")
}

fn ether(ether_type: EtherType, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: GUEST_MAC, destination: GATEWAY_MAC, ether_type };
    [&header.to_bytes()[..], payload].concat()
}

fn arp(operation: ArpOperation) -> Vec<u8> {
    let message = ArpEthIpv4Packet {
        operation,
        sender_mac: GUEST_MAC,
        sender_ipv4: GUEST,
        target_mac: [0; 6],
        target_ipv4: GATEWAY,
    };
    ether(EtherType::ARP, &message.to_bytes())
}

fn ipv4(protocol: IpNumber, payload: &[u8]) -> Vec<u8> {
    let header = Ipv4Header::new(payload.len() as u16, 64, protocol, GUEST, GATEWAY).unwrap();
    ether(EtherType::IPV4, &[&header.to_bytes()[..], payload].concat())
}

fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader::without_ipv4_checksum(from, to, payload.len()).unwrap();
    ipv4(IpNumber::UDP, &[&header.to_bytes()[..], payload].concat())
}

fn syn() -> Vec<u8> {
    let mut header = TcpHeader::new(40000, 80, 7, 65535);
    header.syn = true;
    header.set_options(&[TcpOptionElement::MaximumSegmentSize(1460)]).unwrap();
    ipv4(IpNumber::TCP, &header.to_bytes())
}

/// A message with one question, of id 258.
fn dns(flags: [u8; 2], answers: u8, name: &[&[u8]], qtype: u8) -> Vec<u8> {
    let mut message = vec![1, 2, flags[0], flags[1], 0, 1, 0, answers, 0, 0, 0, 0];
    for label in name {
        message.push(label.len() as u8);
        message.extend(*label);
    }
    message.extend([0, 0, qtype, 0, 1]);
    message
}

fn dhcp(kind: MessageType, yiaddr: [u8; 4], requested: Option<[u8; 4]>) -> Vec<u8> {
    let none = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(7, none, yiaddr.into(), none, none, &GUEST_MAC);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    if let Some(address) = requested {
        message.opts_mut().insert(DhcpOption::RequestedIpAddress(address.into()));
    }
    message.to_vec().unwrap()
}

#[test]
fn a_frame_is_one_line_of_fields() {
    let ips = "src=192.168.127.2 dst=192.168.127.1";
    let udp_ports = |from, to| format!("src=192.168.127.2 sport={from} dst=192.168.127.1 dport={to}");
    let tcp = {
        let mut header = TcpHeader::new(40000, 80, 8, 500);
        (header.psh, header.ack, header.acknowledgment_number) = (true, true, 9);
        ipv4(IpNumber::TCP, &[&header.to_bytes()[..], b"GET"].concat())
    };
    let fragment = {
        let mut header = Ipv4Header::new(8, 64, IpNumber::UDP, GUEST, GATEWAY).unwrap();
        header.identification = 5;
        header.more_fragments = true;
        header.fragment_offset = IpFragOffset::try_new(185).unwrap();
        ether(EtherType::IPV4, &[&header.to_bytes()[..], &[0; 8]].concat())
    };
    let solicitation = {
        let mut packet = vec![0x60, 0, 0, 0, 0, 24, 58, 255];
        packet.extend([[0; 15].as_slice(), &[1], &[0xff; 16], &[135, 0], &[0; 22]].concat());
        ether(EtherType::IPV6, &packet)
    };
    let unreachable = |code, mtu| ipv4(IpNumber::ICMP, &[3, code, 0, 0, 0, 0, mtu, 0, 0x45]);
    let name: &[&[u8]] = &[b"Example", b"org"];
    let hardware = r#"hardware="5a:94:ef:e4:0c:ee""#;
    for (frame, expected) in [
        (arp(ArpOperation::REQUEST), format!("protocol=ARP kind=who-has {ips} {hardware} MACS")),
        (arp(ArpOperation::REPLY), format!("protocol=ARP kind=is-at {ips} {hardware} MACS")),
        (
            syn(),
            format!(
                "protocol=TCP {} flags=SYN seq=7 window=65535 mss=1460 payload=0 MACS",
                udp_ports(40000, 80)
            ),
        ),
        (
            tcp,
            format!(
                "protocol=TCP {} flags=PSH+ACK seq=8 ack=9 window=500 payload=3 MACS",
                udp_ports(40000, 80)
            ),
        ),
        (udp(4000, 5000, b"hello"), format!("protocol=UDP {} payload=5 MACS", udp_ports(4000, 5000))),
        (
            ipv4(IpNumber::ICMP, &[8, 0, 0, 0, 1, 2, 0, 9, b'x']),
            format!("protocol=ICMP kind=echo-request {ips} id=258 seq=9 payload=1 MACS"),
        ),
        (unreachable(3, 0), format!("protocol=ICMP kind=port-unreachable {ips} payload=1 MACS")),
        (unreachable(4, 5), format!("protocol=ICMP kind=fragmentation-needed {ips} mtu=1280 payload=1 MACS")),
        (unreachable(13, 0), format!("protocol=ICMP kind=type-3-code-13 {ips} payload=1 MACS")),
        (
            udp(4000, 53, &dns([1, 0], 0, name, 28)),
            format!(
                "protocol=DNS kind=query {} name=Example.org. qtype=AAAA id=258 payload=29 MACS",
                udp_ports(4000, 53)
            ),
        ),
        (
            udp(53, 4000, &dns([0x81, 0x83], 0, name, 1)),
            format!(
                "protocol=DNS kind=response {} name=Example.org. qtype=A rcode=NXDOMAIN answers=0 id=258 \
                 payload=29 MACS",
                udp_ports(53, 4000)
            ),
        ),
        (
            udp(53, 4000, &[1, 2, 0x81, 0x82, 0, 0, 0, 0, 0, 0, 0, 0]),
            format!(
                "protocol=DNS kind=response {} rcode=SERVFAIL answers=0 id=258 payload=12 MACS",
                udp_ports(53, 4000)
            ),
        ),
        (
            udp(68, 67, &dhcp(MessageType::Request, [0; 4], Some(GUEST))),
            format!(
                "protocol=DHCP kind=request {} address=192.168.127.2 {hardware} payload=250 MACS",
                udp_ports(68, 67)
            ),
        ),
        (
            udp(67, 68, &dhcp(MessageType::Offer, GUEST, None)),
            format!(
                "protocol=DHCP kind=offer {} address=192.168.127.2 {hardware} payload=244 MACS",
                udp_ports(67, 68)
            ),
        ),
        (fragment, format!("protocol=UDP {ips} id=5 fragment=1480+ payload=8 MACS")),
        (ipv4(IpNumber::GRE, &[0; 4]), format!("protocol=GRE {ips} payload=4 MACS")),
        (ipv4(IpNumber(253), &[]), format!("protocol=253 {ips} payload=0 MACS")),
        (
            solicitation,
            "protocol=IPv6-ICMP kind=neighbor-solicitation src=\"::1\" \
             dst=\"ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff\" payload=16 MACS"
                .into(),
        ),
        (ether(EtherType(0x88cc), &[0; 46]), "protocol=0x88cc payload=46 MACS".into()),
        (ether(EtherType(0x8100), &[0, 5, 0x88, 0xcc]), "protocol=0x88cc payload=0 vlan=5 MACS".into()),
    ] {
        assert_eq!(fields(&frame), expected);
    }
}

/// What was read stands there, and then what is wrong with the rest.
#[test]
fn a_spoilt_frame_says_what_is_wrong() {
    let spoilt = |frame: &[u8], at: usize, byte: u8| {
        let mut frame = frame.to_vec();
        frame[at] = byte;
        frame
    };
    let (datagram, arp) = (udp(4000, 53, &dns([1, 0], 0, &[b"x"], 1)), arp(ArpOperation::REQUEST));
    let mut no_hlen = dhcp(MessageType::Discover, [0; 4], None);
    no_hlen[2] = 255;
    for (frame, protocol, error) in [
        (vec![], "", "Not enough data to decode 'Ethernet 2 header'"),
        (syn()[..13].to_vec(), "", "Not enough data to decode 'Ethernet 2 header'"),
        (ether(EtherType::IPV4, &[]), "protocol=IPv4", "Not enough data"),
        (syn()[..30].to_vec(), "protocol=IPv4", "Not enough data"),
        (spoilt(&syn(), 14, 0x44), "protocol=IPv4", "IPv4 Header Error"),
        (spoilt(&syn(), 14, 0x75), "protocol=IPv4", "IP Header Error"),
        (spoilt(&syn(), 16, 0xff), "protocol=TCP", "IP: the packet is cut short, 24 bytes are there"),
        (syn()[..40].to_vec(), "protocol=TCP", "Not enough data to decode 'TCP header'"),
        (spoilt(&syn(), 46, 0x40), "protocol=TCP", "TCP Header Error"),
        (spoilt(&datagram, 38, 1), "protocol=DNS", "UDP: a length of 283 bytes, 27 are there"),
        (spoilt(&datagram, 47, 2), "protocol=DNS", "DNS: not one question that can be read"),
        (spoilt(&datagram, 54, 0xc0), "protocol=DNS", "DNS: not one question that can be read"),
        (udp(53, 4000, &[0; 11]), "protocol=DNS", "DNS: shorter than a header"),
        (udp(68, 67, &[0; 239]), "protocol=DHCP", "DHCP: shorter than a header"),
        (udp(68, 67, &[0; 240]), "protocol=DHCP", "DHCP: no message type"),
        (arp[..41].to_vec(), "protocol=ARP", "Not enough data"),
        (spoilt(&arp, 15, 2), "protocol=ARP kind=who-has", "ARP: "),
        (ipv4(IpNumber::ICMP, &[8, 0, 0, 0]), "protocol=ICMP", "Not enough data to decode 'ICMP packet'"),
    ] {
        let line = fields(&frame);
        let read = line.split(" error=").next().unwrap();
        assert!(read.starts_with(protocol), "{protocol}: {line}");
        assert!(line.split(" error=").nth(1).unwrap_or(&line).contains(error), "{error}: {line}");
    }
    let line = fields(&udp(68, 67, &no_hlen));
    assert!(line.contains(" kind=discover ") && !line.contains(" hardware="), "{line}");
}

/// Whatever is in a name, no control character reaches a terminal, and nothing looks like a field.
#[test]
fn text_of_a_guest_is_escaped() {
    let name: &[&[u8]] = &[b"\x1b[31m", b"a b\"\n", b"\xff\\", b"c.d"];
    let short = line(&udp(4000, 53, &dns([1, 0], 0, name, 1)));
    let expected = r#" name="\\027[31m.a\\032b\"\\010.\\255\\\\.c\\.d." "#;
    assert!(short.contains(expected), "{short}");
    let longest = [0xff_u8; 61];
    let longest: &[&[u8]] = &[&longest, &longest, &longest, &longest];
    let long = line(&udp(4000, 53, &dns([1, 0], 0, longest, 1)));
    assert!(long.len() < LINE_MAX && long.contains(" qtype=A "), "{long}");
}

#[test]
fn frames_without_a_line_are_counted() {
    let lines = Lines::default();
    let subscriber = tracing_subscriber::registry().with(lines.clone());
    tracing::subscriber::with_default(subscriber, || {
        let log = FrameLog(Some(Limited::new(2, Duration::ZERO)));
        log.frame("gateway", &syn());
        let log = FrameLog(Some(Limited::new(0, WINDOW)));
        log.frame("gateway", &syn());
    });
    let lines = lines.0.lock().unwrap();
    let [line] = &lines[..] else { panic!("{lines:?}") };
    assert!(line.contains(" from=gateway ") && line.ends_with(" suppressed=0\n"), "{line}");
}

proptest! {
    #[test]
    fn no_frame_panics(
        kind in 0..8_usize,
        spoilt in prop::collection::vec((12..120_usize, any::<u8>()), 0..6),
        len in 0..400_usize,
        bytes: Vec<u8>,
    ) {
        let mut frame = match kind {
            0 => bytes,
            1 => syn(),
            2 => arp(ArpOperation::REPLY),
            3 => udp(53, 4000, &dns([0x80, 0], 1, &[b"example", b"org"], 1)),
            4 => udp(4000, 53, &bytes),
            5 => udp(67, 68, &dhcp(MessageType::Ack, GUEST, Some(GUEST))),
            6 => ipv4(IpNumber::ICMP, &bytes),
            _ => ether(EtherType::IPV6, &bytes),
        };
        for (at, byte) in spoilt {
            if let Some(place) = frame.get_mut(at) {
                *place = byte;
            }
        }
        frame.truncate(len);
        let line = line(&frame);
        let text = line.strip_suffix('\n').unwrap();
        prop_assert!(!text.contains(char::is_control), "{text:?}");
        prop_assert!(text.len() < LINE_MAX, "{text:?}");
        let start = format!(" msg=frame from=guest len={}", frame.len());
        prop_assert!(text.contains(&start), "{text:?}");
    }
}
