//! A network that offers more than its guests may take: nobody gets a packet larger than it has shown to
//! take, and nothing is lost.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use netstack::{DropReason, Mac, UdpFlowId};
use smoltcp::wire::{
    EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpProtocol, Ipv4Packet,
};

use crate::frames::{echo_request, ethernet, fragment, ipv4, packet, payloads, udp};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, OUTSIDE, Sim, config, guest_ip, guest_mac, offering, outside};
use crate::raw::{ACK, Raw};

const MIB: usize = 1 << 20;
const OFFERED: u16 = 65_520;
/// Bytes of an IPv4 and a UDP header.
const HEADERS: usize = 28;

/// Two ports without guests, of which the stack knows .2 and .3 by an ARP request each.
fn two_ports(seed: u64, mtu: u16) -> Sim {
    let mut sim = Sim::with(seed, if mtu == OFFERED { offering(mtu) } else { config(mtu) });
    for number in 0..2 {
        sim.plug_raw(Quality::CLEAN);
        let (ip, mac) = (guest_ip(number + 2), guest_mac(number + 2));
        let question =
            crate::frames::arp(smoltcp::wire::ArpOperation::Request, (ip, mac), (GATEWAY, Mac([0; 6])));
        sim.inject(usize::from(number), &ethernet(mac, Mac::BROADCAST, EthernetProtocol::Arp, &question));
    }
    for number in 0..2 {
        sim.received(number);
    }
    sim
}

/// A packet from the guest at port 0.
fn send(sim: &mut Sim, to: Mac, packet: &[u8]) {
    sim.inject(0, &ethernet(guest_mac(2), to, EthernetProtocol::Ipv4, packet));
}

/// A packet with a UDP datagram that makes it `len` bytes long.
fn datagram(from: Ipv4Addr, to: Ipv4Addr, len: usize) -> Vec<u8> {
    let payload = pattern(len as u64, len - HEADERS);
    let (source, destination) = (SocketAddrV4::new(from, 5000), SocketAddrV4::new(to, 9));
    ipv4(from, to, IpProtocol::Udp, &udp(source, destination, &payload))
}

fn with_df(mut bytes: Vec<u8>) -> Vec<u8> {
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    packet.set_dont_frag(true);
    packet.fill_checksum();
    bytes
}

/// Bytes of the IP packets that arrived at a port, and the payload that they make together.
fn arrived(sim: &mut Sim, port: usize) -> (Vec<usize>, Vec<u8>) {
    let (mut sizes, mut payload) = (Vec::new(), Vec::new());
    for frame in sim.received(port) {
        let ip = packet(&frame).expect("an IPv4 packet");
        assert!(ip.verify_checksum() && frame.len() == 14 + usize::from(ip.total_len()), "{ip}");
        assert_eq!(usize::from(ip.frag_offset()), payload.len(), "fragments come in order: {ip}");
        sizes.push(frame.len() - 14);
        payload.extend_from_slice(ip.payload());
    }
    (sizes, payload)
}

/// A datagram of `len` bytes, headers included, that comes back for `flow`: sizes of the packets that the
/// guest gets.
fn answer(sim: &mut Sim, flow: UdpFlowId, len: usize) -> Vec<usize> {
    let payload = pattern(7, len - HEADERS);
    sim.stack.udp_send(flow, &payload, sim.now, &mut sim.batches);
    let (sizes, got) = arrived(sim, 0);
    assert!(got[8..] == payload, "{len} bytes arrive in {sizes:?}");
    sizes
}

#[test]
fn tcp_follows_the_mss_both_ways() {
    // What a guest may have made of 65520; the assertion that none gets more is in `Guest::receive`.
    for mtu in [576, 1500, 9000, OFFERED] {
        let mut sim = Sim::with(111, offering(OFFERED));
        let port = sim.plug_mtu(Quality::CLEAN, mtu);
        let (up, down) = (pattern(1, MIB), pattern(2, MIB));
        let answer = down.clone();
        sim.serve = Box::new(move |_| End::new(answer.clone()));
        let dialled = sim.guest(port).connect(outside(80), End::new(up.clone()));
        let listening = sim.guest(port).listen(22, End::new(up.clone()));
        let flow = sim.dial(SocketAddrV4::new(guest_ip(2), 22), End::new(down.clone()));
        sim.run_until("all is read", Duration::from_secs(30), |sim| {
            let guest = sim.guest(port);
            let all = guest.end(dialled).eof && guest.end(listening).eof;
            all && sim.host(flow).end.eof && sim.hosts.values().all(|host| host.end.eof)
        });
        for connection in [dialled, listening] {
            assert!(sim.guest(port).end(connection).got == down, "MTU {mtu}");
        }
        assert!(sim.hosts.values().all(|host| host.end.got == up), "MTU {mtu}");
        assert_eq!((sim.checker.resets, sim.checker.retractions), (0, 0));
    }
}

#[test]
fn tcp_of_a_small_guest_needs_little_room() {
    let mut sim = Sim::with(112, offering(OFFERED));
    let port = sim.plug_mtu(Quality::CLEAN, 1500);
    sim.limit(port, 1514);
    sim.serve = Box::new(|_| End::new(pattern(2, MIB)));
    let connection = sim.guest(port).connect(outside(80), End::new(Vec::new()));
    sim.run_until("all is read", Duration::from_secs(30), |sim| sim.guest(port).end(connection).eof);
    assert!(sim.guest(port).end(connection).got == pattern(2, MIB));
}

#[test]
fn segments_are_no_longer_than_the_mss_of_that_connection() {
    // One guest, two connections: a container behind a bridge with a small MTU, and the machine itself.
    let mut sim = Sim::with(113, offering(OFFERED));
    let port = sim.plug_raw(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(pattern(3, 200_000)));
    for (number, mss) in [(0, Some(1460)), (1, Some(65_480)), (2, None), (3, Some(100)), (4, Some(65_535))] {
        let from = SocketAddrV4::new(guest_ip(2), 40_000 + number);
        let mut options = vec![1, 3, 3, 7];
        if let Some(mss) = mss {
            options.extend([2, 4]);
            options.extend(u16::to_be_bytes(mss));
        }
        let mut guest = Raw { options, ..Raw::new(port, from, outside(80 + number)) };
        let first = guest.open(&mut sim).seq + 1;
        let mut longest = 0;
        while guest.ack - first < 200_000 {
            let received = guest.receive(&mut sim);
            longest = received.iter().map(|segment| segment.payload.len()).max().unwrap_or(0).max(longest);
            guest.send(&mut sim, ACK, &[]);
        }
        // RFC 9293 3.7.1: 536 where nothing is said. And never more than was offered.
        assert_eq!(longest, usize::from(mss.unwrap_or(536).min(OFFERED - 40)), "{mss:?}");
    }
}

#[test]
fn datagrams_are_cut_until_the_guest_has_shown_more() {
    let mut sim = two_ports(114, OFFERED);
    send(&mut sim, GATEWAY_MAC, &datagram(guest_ip(2), OUTSIDE, 1500));
    let flow = sim.asked.datagrams[0].0;
    assert_eq!(answer(&mut sim, flow, 1500), [1500]);
    assert_eq!(answer(&mut sim, flow, 1501), [1500, 21]);
    // The longest datagram there is.
    assert_eq!(answer(&mut sim, flow, 65_535).len(), 45);
    // Says nothing of the interface: TCP that was never cut, and a frame with a tag in it.
    let tcp = ipv4(guest_ip(2), OUTSIDE, IpProtocol::Tcp, &[0; 9000]);
    send(&mut sim, GATEWAY_MAC, &tcp);
    sim.received(0);
    sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::from(0x8100), &[0; 1504]));
    assert_eq!(answer(&mut sim, flow, 1504), [1500, 24]);
    // A datagram of its own does.
    send(&mut sim, GATEWAY_MAC, &datagram(guest_ip(2), OUTSIDE, 9000));
    assert_eq!(sim.asked.datagrams.last().unwrap().2.len(), 9000 - HEADERS);
    assert_eq!(answer(&mut sim, flow, 9000), [9000]);
    assert_eq!(answer(&mut sim, flow, 9001), [8996, 25]);
    send(&mut sim, GATEWAY_MAC, &datagram(guest_ip(2), OUTSIDE, 65_535));
    assert_eq!(answer(&mut sim, flow, 65_520), [65_520]);
    assert_eq!(answer(&mut sim, flow, 65_535), [65_516, 39], "not more than was offered");
    // It boots again, and may be another system.
    let discover = ipv4(
        Ipv4Addr::UNSPECIFIED,
        Ipv4Addr::BROADCAST,
        IpProtocol::Udp,
        &udp(
            SocketAddrV4::new(Ipv4Addr::UNSPECIFIED, 68),
            SocketAddrV4::new(Ipv4Addr::BROADCAST, 67),
            b"DISCOVER or so",
        ),
    );
    send(&mut sim, Mac::BROADCAST, &discover);
    assert_eq!(sim.received(1).len(), 1, "the broadcast");
    assert_eq!(answer(&mut sim, flow, 9000).len(), 7);
}

#[test]
fn what_the_gateway_says_is_cut_too() {
    let mut sim = two_ports(115, OFFERED);
    let request = echo_request(3, 4, &pattern(1, 8000));
    for start in (0..request.len()).step_by(1480) {
        let range = start..(start + 1480).min(request.len());
        send(&mut sim, GATEWAY_MAC, &fragment(guest_ip(2), GATEWAY, IpProtocol::Icmp, 5, range, &request));
    }
    let (sizes, reply) = arrived(&mut sim, 0);
    assert_eq!((sizes.len(), reply.len(), sizes[0]), (6, request.len(), 1500));
    // One that came in one packet is answered in one.
    send(&mut sim, GATEWAY_MAC, &ipv4(guest_ip(2), GATEWAY, IpProtocol::Icmp, &request));
    assert_eq!(arrived(&mut sim, 0).0, [8028]);
    // A long DNS answer, for a guest that has shown nothing.
    let (from, to) = (SocketAddrV4::new(guest_ip(3), 5353), SocketAddrV4::new(GATEWAY, 53));
    let question = [&[0, 1, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0][..], b"\x01x\x04test\0\0\x01\0\x01"].concat();
    let packet = ipv4(guest_ip(3), GATEWAY, IpProtocol::Udp, &udp(from, to, &question));
    sim.inject(1, &ethernet(guest_mac(3), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet));
    sim.settle();
    let (client, _) = sim.asked.questions.pop().expect("a question");
    sim.stack.dns_answer(client, &pattern(2, 4000), &mut sim.batches);
    let (sizes, answer) = arrived(&mut sim, 1);
    assert_eq!(sizes, [1500, 1500, 1068]);
    assert!(answer[8..] == pattern(2, 4000));
}

#[test]
fn from_guest_to_guest_by_the_smaller() {
    let mut sim = two_ports(116, OFFERED);
    let (ours, theirs) = (guest_ip(2), guest_ip(3));
    // May be cut.
    for len in [1500, 1501, 9000, 65_520] {
        let packet = datagram(ours, theirs, len);
        send(&mut sim, guest_mac(3), &packet);
        let (sizes, payload) = arrived(&mut sim, 1);
        assert!(payload == packet[20..], "{len} bytes arrive in {sizes:?}");
        assert_eq!(sizes.len(), (len - 20).div_ceil(1480));
        assert!(sizes.iter().all(|size| *size <= 1500), "{sizes:?}");
    }
    // So may what is a part already, and some options stay with the first piece.
    let whole = datagram(ours, theirs, 9000);
    let mut middle = fragment(ours, theirs, IpProtocol::Udp, 7, 1480..6480, &whole[20..]);
    middle.splice(20..20, [7, 7, 4, 0, 0, 0, 0, 1, 148, 4, 0, 0]);
    let mut options = Ipv4Packet::new_unchecked(&mut middle);
    options.set_header_len(32);
    options.set_total_len(5032);
    send(&mut sim, guest_mac(3), &middle);
    let frames = sim.received(1);
    let mut at = 1480;
    for (number, frame) in frames.iter().enumerate() {
        let ip = packet(frame).unwrap();
        assert!(ip.verify_checksum() && ip.more_frags() && ip.total_len() <= 1500, "{ip}");
        assert_eq!((usize::from(ip.frag_offset()), ip.ident(), ip.hop_limit()), (at, 7, 64));
        assert!(ip.payload() == &whole[20 + at..20 + at + ip.payload().len()]);
        let record_route: [u8; 7] = if number == 0 { [7, 7, 4, 0, 0, 0, 0] } else { [1; 7] };
        assert_eq!(frame[34..46], [&record_route[..], &[1, 148, 4, 0, 0]].concat());
        at += ip.payload().len();
    }
    assert_eq!((at, frames.len()), (6480, 4));
    // May not be cut: the sender hears of it, from the gateway.
    let packet = with_df(datagram(ours, theirs, 9000));
    send(&mut sim, guest_mac(3), &packet);
    assert!(sim.received(1).is_empty());
    let frames = sim.received(0);
    let messages = payloads(&frames, IpProtocol::Icmp);
    let [message] = &messages[..] else { panic!("{messages:?}") };
    let (ip, message) = (crate::frames::packet(&frames[0]).unwrap(), Icmpv4Packet::new_checked(&message[..]));
    let message = message.unwrap();
    assert_eq!(
        (ip.src_addr(), ip.dst_addr(), message.msg_type()),
        (GATEWAY, ours, Icmpv4Message::DstUnreachable)
    );
    assert_eq!(Icmpv4DstUnreachable::from(message.msg_code()), Icmpv4DstUnreachable::FragRequired);
    assert!(message.verify_checksum());
    // RFC 1191 section 4: the low 16 bits of the header's unused field.
    assert_eq!((message.echo_ident(), message.echo_seq_no()), (0, 1500));
    assert_eq!(message.data(), &packet[..28]);
    assert_eq!(sim.stack.drops().of(DropReason::TooLong), 1);
    // TCP knows from its handshake, through the switch.
    let packet = with_df(ipv4(ours, theirs, IpProtocol::Tcp, &pattern(4, 60_000)));
    send(&mut sim, guest_mac(3), &packet);
    assert_eq!(arrived(&mut sim, 1).0, [60_020]);
    // The receiver shows what it takes.
    let packet = datagram(theirs, OUTSIDE, 9000);
    sim.inject(1, &ethernet(guest_mac(3), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet));
    send(&mut sim, guest_mac(3), &with_df(datagram(ours, theirs, 9000)));
    assert_eq!(arrived(&mut sim, 1).0, [9000]);
    assert!(sim.received(0).is_empty());
    assert_eq!(sim.stack.drops().total(), 1);
}

#[test]
fn what_cannot_be_cut_is_counted() {
    let mut sim = two_ports(117, OFFERED);
    let (ours, theirs) = (guest_ip(2), guest_ip(3));
    let nobody = with_df(datagram(Ipv4Addr::UNSPECIFIED, theirs, 2000));
    let mut part = with_df(fragment(ours, theirs, IpProtocol::Udp, 7, 1480..4480, &[0; 9000]));
    Ipv4Packet::new_unchecked(&mut part).fill_checksum();
    let mut error = echo_request(1, 1, &[0; 2000]);
    error[0] = 3;
    let error = with_df(ipv4(ours, theirs, IpProtocol::Icmp, &error));
    let mut ipv6 = vec![0; 2000];
    ipv6[..7].copy_from_slice(&[0x60, 0, 0, 0, 0x07, 0xa8, 17]);
    let cases = [
        (EthernetProtocol::Ipv4, guest_mac(3), nobody),
        (EthernetProtocol::Ipv4, guest_mac(3), part),
        (EthernetProtocol::Ipv4, guest_mac(3), error),
        (
            EthernetProtocol::Ipv4,
            Mac([1, 0, 0x5e, 0, 0, 1]),
            with_df(datagram(ours, Ipv4Addr::new(224, 0, 0, 1), 2000)),
        ),
        (EthernetProtocol::Ipv6, guest_mac(3), ipv6.clone()),
        (EthernetProtocol::from(0x88b5), guest_mac(3), vec![1; 2000]),
    ];
    for (number, (protocol, to, packet)) in cases.into_iter().enumerate() {
        sim.inject(0, &ethernet(guest_mac(2), to, protocol, &packet));
        assert!(sim.received(1).is_empty(), "case {number}");
        assert!(sim.received(0).is_empty(), "case {number}: no error is due");
        assert_eq!(sim.stack.drops().of(DropReason::TooLong), number as u64 + 1, "case {number}");
    }
    ipv6[6] = 6;
    sim.inject(0, &ethernet(guest_mac(2), guest_mac(3), EthernetProtocol::Ipv6, &ipv6));
    assert_eq!(sim.received(1).len(), 1, "TCP on IPv6");
    // A group gets what can be cut in pieces.
    send(&mut sim, Mac::BROADCAST, &datagram(ours, Ipv4Addr::BROADCAST, 2000));
    assert_eq!(arrived(&mut sim, 1).0, [1500, 520]);
}

#[test]
fn an_mtu_that_was_asked_for_is_believed() {
    let mut sim = two_ports(118, 9000);
    send(&mut sim, GATEWAY_MAC, &datagram(guest_ip(2), OUTSIDE, 100));
    let flow = sim.asked.datagrams[0].0;
    assert_eq!(answer(&mut sim, flow, 9000), [9000]);
    assert_eq!(answer(&mut sim, flow, 9001).len(), 2);
    for len in [1501, 9001, 65_535] {
        send(&mut sim, guest_mac(3), &with_df(datagram(guest_ip(2), guest_ip(3), len)));
        assert_eq!(arrived(&mut sim, 1).0, [len], "the switch looks at nothing");
    }
    assert_eq!(sim.stack.drops().total(), 0);
}

#[test]
fn guests_of_three_sizes_talk_to_each_other() {
    let mut sim = Sim::with(119, offering(OFFERED));
    let sizes = [1500, 9000, OFFERED];
    let ports: Vec<usize> = sizes.iter().map(|mtu| sim.plug_mtu(Quality::CLEAN, *mtu)).collect();
    let mut ends = Vec::new();
    for (number, from) in ports.iter().enumerate() {
        for (other, to) in ports.iter().enumerate().filter(|(other, _)| *other != number) {
            let port = 80 + number as u16;
            let server = sim.guest(*to).listen(port, End::new(pattern(2, MIB / 4)));
            let address = SocketAddrV4::new(guest_ip(other as u8 + 2), port);
            let client = sim.guest(*from).connect(address, End::new(pattern(1, MIB / 4)));
            ends.extend([(*to, server, 1), (*from, client, 2)]);
        }
    }
    sim.run_until("all is read", Duration::from_secs(60), |sim| {
        ends.iter().all(|(port, connection, _)| sim.guest(*port).end(*connection).eof)
    });
    for (port, connection, seed) in ends {
        assert!(sim.guest(port).end(connection).got == pattern(seed, MIB / 4));
    }
}
