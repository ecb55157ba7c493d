//! What the gateway itself answers: ARP, echo, DHCP, DNS; and what it does not.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode, OptionCode};
use dhcproto::{Decodable, Decoder, Encodable};
use hickory_proto::op::{Message as DnsMessage, MessageType as DnsType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{Name, RData, RecordType};
use netstack::dns::{Record, Zone};
use netstack::{DropReason, Event};
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpProtocol,
    Ipv4Packet, UdpPacket,
};

use crate::frames::{arp, echo_request, ethernet, ipv4, packet, payloads, udp};
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, HOST, OUTSIDE, Sim, config, guest_ip, guest_mac};

const BROADCAST: netstack::Mac = netstack::Mac::BROADCAST;

fn new_sim(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.plug_raw(Quality::CLEAN);
    sim
}

fn send_ipv4(sim: &mut Sim, from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) {
    let packet = ipv4(from, to, protocol, payload);
    sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet));
}

/// The UDP payloads that reached the guest from the gateway's `port`, with their frames.
fn answers(sim: &mut Sim, port: u16) -> Vec<(Vec<u8>, Vec<u8>)> {
    let frames = sim.received(0);
    let answers = frames.into_iter().filter_map(|frame| {
        let ip = packet(&frame).filter(|ip| ip.next_header() == IpProtocol::Udp)?;
        assert_eq!(ip.src_addr(), GATEWAY);
        let udp = UdpPacket::new_checked(ip.payload()).unwrap();
        let payload = udp.payload().to_vec();
        (udp.src_port() == port).then_some((frame, payload))
    });
    answers.collect()
}

#[test]
fn arp_for_the_gateways_addresses_only() {
    let mut sim = new_sim(91);
    for ip in [GATEWAY, HOST] {
        let question = arp(ArpOperation::Request, (guest_ip(2), guest_mac(2)), (ip, netstack::Mac([0; 6])));
        sim.inject(0, &ethernet(guest_mac(2), BROADCAST, EthernetProtocol::Arp, &question));
        let frames = sim.received(0);
        let [frame] = &frames[..] else { panic!("{frames:?}") };
        assert_eq!((&frame[..6], &frame[6..12]), (&guest_mac(2).0[..], &GATEWAY_MAC.0[..]));
        let answer = ArpPacket::new_checked(&frame[14..]).unwrap();
        assert_eq!(answer.operation(), ArpOperation::Reply);
        assert_eq!(
            (answer.source_protocol_addr(), answer.source_hardware_addr()),
            (&ip.octets()[..], &GATEWAY_MAC.0[..])
        );
        assert_eq!(answer.target_protocol_addr(), guest_ip(2).octets());
        assert_eq!(answer.target_hardware_addr(), guest_mac(2).0);
    }
    for ip in [guest_ip(9), OUTSIDE] {
        let question = arp(ArpOperation::Request, (guest_ip(2), guest_mac(2)), (ip, netstack::Mac([0; 6])));
        sim.inject(0, &ethernet(guest_mac(2), BROADCAST, EthernetProtocol::Arp, &question));
    }
    assert!(sim.received(0).is_empty());
}

#[test]
fn echo() {
    let mut sim = new_sim(92);
    for (to, len) in [(GATEWAY, 0), (GATEWAY, 56), (HOST, 1472), (GATEWAY, 8000)] {
        let data = vec![7; len];
        let request = echo_request(3, 4, &data);
        // Longer ones come in fragments, and so go the answers.
        for start in (0..request.len()).step_by(1480) {
            let range = start..(start + 1480).min(request.len());
            let part = crate::frames::fragment(guest_ip(2), to, IpProtocol::Icmp, 5, range, &request);
            sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &part));
        }
        let frames = sim.received(0);
        assert!(frames.iter().all(|frame| packet(frame).unwrap().src_addr() == to));
        let answer = payloads(&frames, IpProtocol::Icmp).concat();
        let answer = Icmpv4Packet::new_checked(&answer[..]).unwrap();
        assert!(answer.verify_checksum());
        assert_eq!(answer.msg_type(), Icmpv4Message::EchoReply);
        assert_eq!((answer.echo_ident(), answer.echo_seq_no(), answer.data()), (3, 4, &data[..]));
    }
    assert_eq!(sim.stack.drops().total(), 0);
    let mut bad = echo_request(1, 1, b"x");
    bad[2] ^= 1;
    for to in [GATEWAY, OUTSIDE] {
        send_ipv4(&mut sim, guest_ip(2), to, IpProtocol::Icmp, &bad);
    }
    assert!(sim.received(0).is_empty() && sim.asked.echoes.is_empty());
    assert_eq!(sim.stack.drops().of(DropReason::Icmp), 2);
}

#[test]
fn echo_of_an_address_outside() {
    let mut sim = new_sim(94);
    for to in [OUTSIDE, OUTSIDE, guest_ip(9), Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(224, 0, 0, 1)]
    {
        send_ipv4(&mut sim, guest_ip(2), to, IpProtocol::Icmp, &echo_request(3, 4, b"there?"));
    }
    // Whatever is no request is none of the host's business.
    let mut reply = echo_request(3, 4, b"there?");
    reply[0] = 0;
    Icmpv4Packet::new_unchecked(&mut reply).fill_checksum();
    send_ipv4(&mut sim, guest_ip(2), OUTSIDE, IpProtocol::Icmp, &reply);
    assert!(sim.received(0).is_empty());
    let drops = sim.stack.drops();
    assert_eq!((drops.of(DropReason::Policy), drops.of(DropReason::Icmp)), (3, 1));
    let echoes = std::mem::take(&mut sim.asked.echoes);
    let [(first, target), (second, _)] = &echoes[..] else { panic!("{echoes:?}") };
    assert_eq!((*target, &first.message()[8..]), (OUTSIDE.into(), &b"there?"[..]));

    // More than fits into one packet goes in fragments.
    let data = vec![5; 4000];
    sim.stack.echo_reply(&first.head(), 4, &data, &mut sim.batches);
    let frames = sim.received(0);
    assert_eq!((first.guest(), first.ident()), (guest_ip(2), 3));
    assert!(frames.len() == 3 && frames.iter().all(|frame| packet(frame).unwrap().src_addr() == OUTSIDE));
    let answer = payloads(&frames, IpProtocol::Icmp).concat();
    let answer = Icmpv4Packet::new_checked(&answer[..]).unwrap();
    assert!(answer.verify_checksum());
    assert_eq!(answer.msg_type(), Icmpv4Message::EchoReply);
    assert_eq!((answer.echo_ident(), answer.echo_seq_no(), answer.data()), (3, 4, &data[..]));

    sim.stack.echo_unreachable(second, &mut sim.batches);
    let frames = sim.received(0);
    let message = payloads(&frames, IpProtocol::Icmp).concat();
    let message = Icmpv4Packet::new_checked(&message[..]).unwrap();
    assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
    assert_eq!(Icmpv4DstUnreachable::from(message.msg_code()), Icmpv4DstUnreachable::HostUnreachable);
    assert_eq!(message.data()[20..], echo_request(3, 4, b"there?")[..8]);
}

#[test]
fn a_protocol_that_is_unknown() {
    let mut sim = new_sim(93);
    send_ipv4(&mut sim, guest_ip(2), OUTSIDE, IpProtocol::from(132), b"an SCTP packet");
    let frames = sim.received(0);
    let messages = payloads(&frames, IpProtocol::Icmp);
    let [message] = &messages[..] else { panic!("{messages:?}") };
    let message = Icmpv4Packet::new_checked(&message[..]).unwrap();
    assert!(message.verify_checksum());
    assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
    assert_eq!(Icmpv4DstUnreachable::from(message.msg_code()), Icmpv4DstUnreachable::ProtoUnreachable);
    let quoted = Ipv4Packet::new_unchecked(message.data());
    assert_eq!((quoted.dst_addr(), u8::from(quoted.next_header())), (OUTSIDE, 132));
    assert_eq!(&message.data()[20..], b"an SCTP ");
    // Never about what was sent to many.
    send_ipv4(&mut sim, guest_ip(2), Ipv4Addr::BROADCAST, IpProtocol::from(132), b"an SCTP packet");
    send_ipv4(&mut sim, guest_ip(2), Ipv4Addr::new(224, 0, 0, 1), IpProtocol::Igmp, b"12345678");
    assert!(sim.received(0).is_empty());
    assert_eq!(sim.stack.drops().of(DropReason::Protocol), 3);
}

fn dhcp(kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(77, zero, zero, zero, zero, &guest_mac(2).0);
    message.set_opcode(Opcode::BootRequest);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        message.opts_mut().insert(option.clone());
    }
    message.to_vec().unwrap()
}

fn ask_dhcp(sim: &mut Sim, message: &[u8]) -> Message {
    let (from, to) =
        (SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
    let packet = ipv4(*from.ip(), *to.ip(), IpProtocol::Udp, &udp(from, to, message));
    sim.inject(0, &ethernet(guest_mac(2), BROADCAST, EthernetProtocol::Ipv4, &packet));
    let answers = answers(sim, 67);
    let [(_, answer)] = &answers[..] else { panic!("{answers:?}") };
    Message::decode(&mut Decoder::new(answer)).unwrap()
}

#[test]
fn an_address_by_dhcp() {
    let mut sim = new_sim(94);
    let offer = ask_dhcp(&mut sim, &dhcp(MessageType::Discover, &[]));
    assert_eq!(offer.opts().msg_type(), Some(MessageType::Offer));
    let address = offer.yiaddr();
    assert!(address.octets()[..3] == [192, 168, 127] && address != GATEWAY && address != HOST, "{address}");
    let request = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(GATEWAY)];
    let ack = ask_dhcp(&mut sim, &dhcp(MessageType::Request, &request));
    assert_eq!((ack.opts().msg_type(), ack.yiaddr(), ack.xid()), (Some(MessageType::Ack), address, 77));
    assert_eq!(ack.opts().get(OptionCode::Router), Some(&DhcpOption::Router(vec![GATEWAY])));
    assert_eq!(
        ack.opts().get(OptionCode::DomainNameServer),
        Some(&DhcpOption::DomainNameServer(vec![GATEWAY]))
    );
    assert!(sim.stack.leases(sim.now).any(|lease| lease == (address, guest_mac(2))));
    let wrong = [DhcpOption::RequestedIpAddress(OUTSIDE)];
    let nak = ask_dhcp(&mut sim, &dhcp(MessageType::Request, &wrong));
    assert_eq!(nak.opts().msg_type(), Some(MessageType::Nak));
    assert_eq!(sim.stack.flows(), (0, 0));
}

/// A guest that was in another network, whatever it asks with: told to ask anew (RFC 2131 4.3.2), and then
/// served.
#[test]
fn an_address_of_another_network() {
    let (mut sim, old) = (new_sim(98), Ipv4Addr::new(10, 0, 2, 15));
    let ask = |sim: &mut Sim, from: Ipv4Addr, to: (netstack::Mac, Ipv4Addr), message: &[u8]| {
        let (from, at) = (SocketAddrV4::new(from, 68), SocketAddrV4::new(to.1, 67));
        let sent = ipv4(*from.ip(), to.1, IpProtocol::Udp, &udp(from, at, message));
        sim.inject(0, &ethernet(guest_mac(2), to.0, EthernetProtocol::Ipv4, &sent));
        let answers = answers(sim, 67).into_iter();
        let answers: Vec<_> = answers
            .map(|(frame, answer)| {
                let answer = Message::decode(&mut Decoder::new(&answer)).unwrap();
                // The guest can be reached at none of its addresses.
                assert_eq!(
                    (&frame[..6], packet(&frame).unwrap().dst_addr()),
                    (&BROADCAST.0[..], Ipv4Addr::BROADCAST)
                );
                (answer.opts().msg_type().unwrap(), answer.yiaddr())
            })
            .collect();
        answers
    };
    let of = |kind| {
        let mut message = Message::decode(&mut Decoder::new(&dhcp(kind, &[]))).unwrap();
        message.set_ciaddr(old);
        message.to_vec().unwrap()
    };
    let (everybody, server) = ((BROADCAST, Ipv4Addr::BROADCAST), (GATEWAY_MAC, Ipv4Addr::new(10, 0, 2, 2)));
    let refused = [(MessageType::Nak, Ipv4Addr::UNSPECIFIED)];
    // REBINDING asks everybody, RENEWING the server of then, INIT-REBOOT with option 50 and maybe an address.
    assert_eq!(ask(&mut sim, old, everybody, &of(MessageType::Request)), refused);
    assert_eq!(ask(&mut sim, old, server, &of(MessageType::Request)), refused);
    let reboot = dhcp(MessageType::Request, &[DhcpOption::RequestedIpAddress(old)]);
    assert_eq!(ask(&mut sim, old, everybody, &reboot), refused);
    assert_eq!(ask(&mut sim, Ipv4Addr::UNSPECIFIED, everybody, &reboot), refused);
    let offers = ask(&mut sim, old, everybody, &dhcp(MessageType::Discover, &[]));
    let [(MessageType::Offer, address)] = offers[..] else { panic!("{offers:?}") };
    let wish = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(GATEWAY)];
    let bound = ask(&mut sim, old, everybody, &dhcp(MessageType::Request, &wish));
    assert_eq!(bound, [(MessageType::Ack, address)]);
    // Who has a lease and asks for another's address is refused as well.
    assert_eq!(ask(&mut sim, old, everybody, &of(MessageType::Request)), refused);
    // Nothing else is taken from there, and nothing from what is nobody's address or the gateway's.
    for from in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(224, 0, 0, 5), Ipv4Addr::BROADCAST, GATEWAY, HOST] {
        assert_eq!(ask(&mut sim, from, everybody, &of(MessageType::Request)), []);
    }
    send_ipv4(&mut sim, old, GATEWAY, IpProtocol::Icmp, &echo_request(1, 1, b"x"));
    assert!(sim.received(0).is_empty());
    assert_eq!(sim.stack.drops().of(DropReason::Martian), 6);
}

/// What may go no further than the gateway.
#[test]
fn a_time_to_live_of_one_ends_at_the_gateway() {
    let mut sim = new_sim(99);
    sim.answer = crate::network::Answer::Nothing;
    let send = |sim: &mut Sim,
                to: Ipv4Addr,
                ttl: u8,
                protocol: IpProtocol,
                range: std::ops::Range<usize>,
                all: &[u8]| {
        let mut packet = crate::frames::fragment(guest_ip(2), to, protocol, 5, range, all);
        let mut header = Ipv4Packet::new_unchecked(&mut packet);
        header.set_hop_limit(ttl);
        header.fill_checksum();
        sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet));
        packet
    };
    let at = |ip, port| SocketAddrV4::new(ip, port);
    let mut syn =
        crate::raw::Raw::new(0, at(guest_ip(2), 40_000), at(OUTSIDE, 80)).frame(crate::raw::SYN, &[]);
    syn.drain(..34);
    let datagram = udp(at(guest_ip(2), 4000), at(OUTSIDE, 33_434), &[7; 32]);
    let echo = echo_request(3, 4, &[7; 56]);
    for (protocol, payload) in
        [(IpProtocol::Tcp, &syn), (IpProtocol::Udp, &datagram), (IpProtocol::Icmp, &echo)]
    {
        for ttl in [0, 1] {
            let original = send(&mut sim, OUTSIDE, ttl, protocol, 0..payload.len(), payload);
            let frames = sim.received(0);
            let [frame] = &frames[..] else { panic!("{protocol}: {frames:?}") };
            let answer = packet(frame).unwrap();
            assert_eq!((answer.src_addr(), answer.dst_addr()), (GATEWAY, guest_ip(2)));
            let message = Icmpv4Packet::new_checked(answer.payload()).unwrap();
            assert!(message.verify_checksum());
            assert_eq!((message.msg_type(), message.msg_code()), (Icmpv4Message::TimeExceeded, 0));
            assert_eq!(message.data(), &original[..28]);
        }
        send(&mut sim, OUTSIDE, 2, protocol, 0..payload.len(), payload);
        sim.settle();
    }
    let asked = &sim.asked;
    assert_eq!((asked.opened.len(), asked.datagrams.len(), asked.echoes.len()), (1, 1, 1), "each with 2");
    // Of fragments the first is answered, and neither counts for a whole.
    send(&mut sim, OUTSIDE, 1, IpProtocol::Icmp, 0..32, &echo);
    send(&mut sim, OUTSIDE, 1, IpProtocol::Icmp, 32..64, &echo);
    let errors = payloads(&sim.received(0), IpProtocol::Icmp);
    assert_eq!(errors.iter().filter(|message| message[0] == 11).count(), 1);
    // The gateway's own addresses, other guests', and what is for many need no more.
    for to in [GATEWAY, HOST] {
        send(&mut sim, to, 1, IpProtocol::Icmp, 0..echo.len(), &echo);
        assert_eq!(payloads(&sim.received(0), IpProtocol::Icmp)[0][0], 0, "an echo reply from {to}");
    }
    for to in [guest_ip(9), Ipv4Addr::new(224, 0, 0, 251), Ipv4Addr::BROADCAST] {
        send(&mut sim, to, 1, IpProtocol::Udp, 0..datagram.len(), &datagram);
    }
    // Never about an error, and not more of them than needed.
    let mut error = echo.clone();
    error[0] = 3;
    send(&mut sim, OUTSIDE, 1, IpProtocol::Icmp, 0..error.len(), &error);
    assert!(sim.received(0).is_empty());
    for _ in 0..1000 {
        send(&mut sim, OUTSIDE, 1, IpProtocol::Icmp, 0..echo.len(), &echo);
    }
    assert_eq!(sim.received(0).len(), 50, "a burst");
    sim.run_for(Duration::from_secs(1));
    for _ in 0..1000 {
        send(&mut sim, OUTSIDE, 1, IpProtocol::Icmp, 0..echo.len(), &echo);
    }
    assert_eq!(sim.received(0).len(), 50, "and as much after a pause");
}

fn question(name: &str) -> Vec<u8> {
    let mut message = DnsMessage::new(4711, DnsType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message.to_vec().unwrap()
}

#[test]
fn names_of_a_zone_and_others() {
    let mut config = config(1500);
    config.zones = vec![Zone {
        name: "containers.internal.".into(),
        records: vec![Record { name: "host".into(), ip: Some(HOST), regexp: None }],
        default_ip: None,
        protected: false,
    }];
    let mut sim = Sim::with(95, config);
    sim.plug_raw(Quality::CLEAN);
    let (from, to) = (SocketAddrV4::new(guest_ip(2), 5353), SocketAddrV4::new(GATEWAY, 53));
    let ask = |sim: &mut Sim, name: &str| {
        send_ipv4(sim, *from.ip(), *to.ip(), IpProtocol::Udp, &udp(from, to, &question(name)));
        answers(sim, 53).pop().map(|(_, answer)| DnsMessage::from_vec(&answer).unwrap())
    };
    let answer = ask(&mut sim, "host.containers.internal.").expect("an answer");
    assert_eq!((answer.id, answer.response_code), (4711, ResponseCode::NoError));
    let [record] = &answer.answers[..] else { panic!("{answer}") };
    assert_eq!(record.data, RData::A(HOST.into()));
    let answer = ask(&mut sim, "nobody.containers.internal.").expect("an answer");
    assert_eq!(answer.response_code, ResponseCode::NXDomain);
    assert!(sim.asked.questions.is_empty());
    // Others are the driver's to answer.
    assert!(ask(&mut sim, "example.org.").is_none());
    let (client, message) = sim.asked.questions.pop().expect("a question");
    assert_eq!(message, question("example.org."));
    sim.run_for(Duration::from_secs(3));
    sim.stack.dns_answer(client, b"whatever the resolver said", &mut sim.batches);
    let answers = answers(&mut sim, 53);
    let [(frame, answer)] = &answers[..] else { panic!("{answers:?}") };
    assert_eq!(answer, b"whatever the resolver said");
    let ip = packet(frame).unwrap();
    assert_eq!((ip.dst_addr(), UdpPacket::new_unchecked(ip.payload()).dst_port()), (guest_ip(2), 5353));
    assert_eq!(sim.stack.flows(), (0, 0), "DNS makes no flows");
}

#[test]
fn tcp_to_the_gateway() {
    let mut sim = Sim::new(96);
    let port = sim.plug(Quality::CLEAN);
    let closed = sim.guest(port).connect(SocketAddrV4::new(GATEWAY, 81), crate::guest::End::new(Vec::new()));
    sim.run_until("refused", Duration::from_secs(1), |sim| sim.guest(port).end(closed).reset);
    assert!(sim.asked.opened.is_empty());
    sim.guest(port).connect(SocketAddrV4::new(GATEWAY, 53), crate::guest::End::new(Vec::new()));
    sim.run_until("asked for", Duration::from_secs(1), |sim| !sim.asked.opened.is_empty());
    assert_eq!(sim.asked.opened[0].1, netstack::Target::Gateway(53));
    sim.guest(port).connect(SocketAddrV4::new(GATEWAY, 80), crate::guest::End::new(Vec::new()));
    sim.run_until("asked for", Duration::from_secs(1), |sim| sim.asked.opened.len() > 1);
    let (flow, target) = sim.asked.opened[1];
    assert_eq!(target, netstack::Target::Gateway(netstack::HTTP_PORT));
    let guest = netstack::Guest { address: guest_ip(2), port: sim.ports[port].id, mac: guest_mac(2) };
    assert_eq!(sim.stack.tcp_guest(flow), Some(guest));
}

#[test]
fn bad_frames_are_counted_one_by_one() {
    let mut sim = new_sim(97);
    let good = ethernet(
        guest_mac(2),
        GATEWAY_MAC,
        EthernetProtocol::Ipv4,
        &ipv4(guest_ip(2), GATEWAY, IpProtocol::Icmp, &echo_request(1, 1, b"x")),
    );
    let with = |change: &dyn Fn(&mut Vec<u8>)| {
        let mut frame = good.clone();
        change(&mut frame);
        frame
    };
    let martian = |from: [u8; 4], to: Ipv4Addr| {
        let packet = ipv4(from.into(), to, IpProtocol::Tcp, &[0; 20]);
        ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet)
    };
    let cases = [
        (DropReason::ShortFrame, good[..13].to_vec()),
        (DropReason::ShortFrame, Vec::new()),
        (DropReason::BadSource, with(&|frame| frame[6] |= 1)),
        (DropReason::BadSource, with(&|frame| frame[6..12].copy_from_slice(&GATEWAY_MAC.0))),
        (DropReason::EtherType, with(&|frame| frame[12..14].copy_from_slice(&[0x86, 0xdd]))),
        (DropReason::Arp, with(&|frame| frame[12..14].copy_from_slice(&[0x08, 0x06]))),
        (DropReason::Ipv4, with(&|frame| frame[14] = 0x65)),
        (DropReason::Ipv4, with(&|frame| frame[14] = 0x4f)),
        (DropReason::Ipv4, with(&|frame| frame[16] = 0xff)),
        (DropReason::Ipv4, good[..20].to_vec()),
        (DropReason::Martian, martian([127, 0, 0, 1], OUTSIDE)),
        (DropReason::Martian, martian([224, 0, 0, 1], OUTSIDE)),
        (DropReason::Martian, martian([0, 0, 0, 0], OUTSIDE)),
        (DropReason::Martian, martian([192, 168, 127, 2], Ipv4Addr::LOCALHOST)),
        (DropReason::Tcp, martian([192, 168, 127, 2], OUTSIDE)),
        (DropReason::NoPort, with(&|frame| frame[0..6].copy_from_slice(&guest_mac(9).0))),
    ];
    let count = cases.len() as u64;
    for (reason, frame) in cases {
        let before = sim.stack.drops().of(reason);
        sim.inject(0, &frame);
        assert_eq!(sim.stack.drops().of(reason), before + 1, "{reason:?}: {frame:02x?}");
    }
    assert_eq!(sim.stack.drops().total(), count);
    assert_eq!(sim.stack.flows(), (0, 0));
    assert!(sim.received(0).is_empty());
    assert_eq!(sim.stack.poll_event(), None::<Event>);
    // And a good one is still a good one.
    sim.inject(0, &good);
    assert_eq!(sim.received(0).len(), 1);
}
