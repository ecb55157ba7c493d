//! UDP through the gateway, whole and in fragments.

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use netstack::{ConnectError, DropReason, UdpFlowId, udp};
use smoltcp::wire::{
    ArpOperation, EthernetProtocol, Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpProtocol,
    Ipv4Packet, UdpPacket,
};

use crate::frames::{arp, ethernet, fragment, ipv4, packet, udp as datagram};
use crate::guest::pattern;
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, HOST, OUTSIDE, Sim, guest_ip, guest_mac, outside};
use crate::rng::Rng;

/// The most that fits an IPv4 packet.
const LONGEST: usize = 65_507;

fn from(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(guest_ip(2), port)
}

fn send(sim: &mut Sim, source: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) {
    let packet = ipv4(*source.ip(), *to.ip(), IpProtocol::Udp, &datagram(source, to, payload));
    sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet));
}

/// The parts of a datagram at most `step` bytes long.
fn parts(source: SocketAddrV4, to: SocketAddrV4, ident: u16, payload: &[u8], step: usize) -> Vec<Vec<u8>> {
    let whole = datagram(source, to, payload);
    (0..whole.len())
        .step_by(step)
        .map(|start| {
            let range = start..(start + step).min(whole.len());
            let packet = fragment(*source.ip(), *to.ip(), IpProtocol::Udp, ident, range, &whole);
            ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet)
        })
        .collect()
}

/// The datagrams that reached the guest, put together again: source, destination, payload.
fn received(sim: &mut Sim) -> Vec<(SocketAddrV4, SocketAddrV4, Vec<u8>)> {
    let mut whole = Vec::new();
    let mut pieces: Vec<u8> = Vec::new();
    for frame in sim.received(0) {
        let Some(ip) = packet(&frame).filter(|ip| ip.next_header() == IpProtocol::Udp) else { continue };
        assert_eq!(usize::from(ip.frag_offset()), pieces.len(), "fragments come in order");
        pieces.extend_from_slice(ip.payload());
        if ip.more_frags() {
            continue;
        }
        let bytes = std::mem::take(&mut pieces);
        let udp = UdpPacket::new_checked(&bytes[..]).unwrap();
        assert!(udp.verify_checksum(&ip.src_addr().into(), &ip.dst_addr().into()));
        whole.push((
            SocketAddrV4::new(ip.src_addr(), udp.src_port()),
            SocketAddrV4::new(ip.dst_addr(), udp.dst_port()),
            udp.payload().to_vec(),
        ));
    }
    whole
}

fn new_sim(seed: u64) -> Sim {
    let mut sim = Sim::new(seed);
    sim.plug_raw(Quality::CLEAN);
    sim
}

fn only_flow(sim: &mut Sim) -> UdpFlowId {
    let [(flow, Some(_), _)] = &sim.asked.datagrams[..] else { panic!("{:?}", sim.asked.datagrams) };
    *flow
}

#[test]
fn both_ways() {
    let mut sim = new_sim(81);
    send(&mut sim, from(5000), outside(9), b"one");
    send(&mut sim, from(5000), outside(9), b"");
    send(&mut sim, from(5001), SocketAddrV4::new(HOST, 9), b"three");
    let asked = std::mem::take(&mut sim.asked.datagrams);
    let [(first, open, one), (again, None, two), (other, to_host, three)] = &asked[..] else {
        panic!("{asked:?}")
    };
    assert_eq!((first, &one[..], &two[..], &three[..]), (again, &b"one"[..], &b""[..], &b"three"[..]));
    assert_eq!(*open, Some(SocketAddr::from((OUTSIDE, 9))));
    assert_eq!(*to_host, Some(SocketAddr::from((Ipv4Addr::LOCALHOST, 9))));
    assert_ne!(first, other);
    sim.stack.udp_send(*first, b"answer", sim.now, &mut sim.batches);
    sim.stack.udp_send(*first, b"", sim.now, &mut sim.batches);
    sim.stack.udp_send(*other, b"from the host", sim.now, &mut sim.batches);
    let expected = [
        (outside(9), from(5000), b"answer".to_vec()),
        (outside(9), from(5000), Vec::new()),
        (SocketAddrV4::new(HOST, 9), from(5001), b"from the host".to_vec()),
    ];
    assert_eq!(received(&mut sim), expected);
    assert_eq!(sim.stack.flows(), (0, 2));
}

#[test]
fn fragments_both_ways() {
    let mut sim = new_sim(82);
    let mut rng = Rng::new(sim.seed);
    for (number, len) in [1473, 1500, 8000, 40_000, LONGEST].into_iter().enumerate() {
        let payload = pattern(len as u64, len);
        let mut frames = parts(from(5000), outside(9), number as u16, &payload, 1480);
        // In any order.
        for at in (1..frames.len()).rev() {
            frames.swap(at, rng.below(at as u64 + 1) as usize);
        }
        for frame in frames {
            sim.inject(0, &frame);
        }
        let (flow, _, got) = sim.asked.datagrams.pop().expect("the datagram");
        assert!(got == payload, "{len} bytes");
        assert!(sim.asked.datagrams.is_empty());
        sim.stack.udp_send(flow, &payload, sim.now, &mut sim.batches);
        let received = received(&mut sim);
        assert_eq!(received.len(), 1);
        assert!(received[0].2 == payload, "{len} bytes back");
    }
    assert_eq!((sim.stack.flows(), sim.stack.drops().total()), ((0, 1), 0));
}

#[test]
fn too_long_for_a_packet() {
    let mut sim = new_sim(83);
    send(&mut sim, from(5000), outside(9), b"x");
    let flow = only_flow(&mut sim);
    sim.stack.udp_send(flow, &vec![0; LONGEST + 1], sim.now, &mut sim.batches);
    assert!(received(&mut sim).is_empty());
    assert_eq!(sim.stack.drops().of(DropReason::Udp), 1);
}

#[test]
fn bad_fragments_are_counted_and_forgotten() {
    let mut sim = new_sim(84);
    let payload = pattern(1, 4000);
    let frames = parts(from(5000), outside(9), 7, &payload, 1480);
    // One that overlaps takes the whole datagram with it.
    let overlap = {
        let whole = datagram(from(5000), outside(9), &payload);
        let packet = fragment(guest_ip(2), OUTSIDE, IpProtocol::Udp, 7, 1472..2952, &whole);
        ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet)
    };
    sim.inject(0, &frames[0]);
    sim.inject(0, &overlap);
    assert_eq!(sim.stack.drops().of(DropReason::Fragment), 1);
    sim.inject(0, &frames[1]);
    sim.inject(0, &frames[2]);
    assert!(sim.asked.datagrams.is_empty());
    // What never completes is kept for a while only.
    sim.run_for(Duration::from_secs(40));
    sim.inject(0, &frames[0]);
    assert!(sim.asked.datagrams.is_empty());
    // Thousands of first parts cost a bounded number of places, and the newest has one.
    for ident in 100..5000 {
        sim.inject(0, &parts(from(5000), outside(9), ident, &payload, 1480)[0]);
    }
    for frame in &parts(from(5000), outside(9), 4999, &payload, 1480)[1..] {
        sim.inject(0, frame);
    }
    assert_eq!(sim.asked.datagrams.len(), 1);
}

#[test]
fn idle_flows_end() {
    let mut sim = new_sim(85);
    send(&mut sim, from(5000), outside(9), b"x");
    send(&mut sim, from(5000), outside(53), b"x");
    let flows: Vec<UdpFlowId> = sim.asked.datagrams.iter().map(|(flow, ..)| *flow).collect();
    sim.run_for(Duration::from_secs(60));
    assert_eq!(sim.asked.closed, [flows[1]]);
    // An answer keeps it as well as a question does.
    sim.stack.udp_send(flows[0], b"y", sim.now, &mut sim.batches);
    sim.run_for(Duration::from_secs(119));
    assert_eq!(sim.stack.flows(), (0, 1));
    sim.run_for(Duration::from_secs(2));
    assert_eq!(sim.asked.closed, [flows[1], flows[0]]);
    assert_eq!((sim.stack.flows(), sim.stack.poll_timeout()), ((0, 0), None));
    assert!(sim.wakeups < 10, "{} wakeups", sim.wakeups);
    // Late answers go nowhere.
    sim.received(0);
    sim.stack.udp_send(flows[0], b"late", sim.now, &mut sim.batches);
    assert!(received(&mut sim).is_empty());
}

#[test]
fn the_least_recently_used_flow_makes_room() {
    let mut sim = new_sim(86);
    for number in 0..udp::MAX_FLOWS as u16 {
        send(&mut sim, from(10_000 + number), outside(9), b"x");
    }
    let first = sim.asked.datagrams[0].0;
    let second = sim.asked.datagrams[1].0;
    send(&mut sim, from(10_000), outside(9), b"again");
    send(&mut sim, from(9), outside(9), b"one more");
    sim.settle();
    assert_eq!(sim.asked.closed, [second]);
    assert_eq!(sim.stack.flows(), (0, udp::MAX_FLOWS));
    sim.stack.udp_send(first, b"still there", sim.now, &mut sim.batches);
    assert_eq!(received(&mut sim).len(), 1);
    sim.run_for(Duration::from_secs(200));
    assert_eq!((sim.stack.flows(), sim.stack.poll_timeout()), ((0, 0), None));
    assert_eq!(sim.asked.closed.len(), udp::MAX_FLOWS + 1);
}

#[test]
fn a_refusal_reaches_the_guest() {
    let mut sim = new_sim(87);
    send(&mut sim, from(5000), outside(9), b"anybody?");
    let flow = only_flow(&mut sim);
    sim.stack.udp_refused(flow, &mut sim.batches);
    let frames = sim.received(0);
    let [frame] = &frames[..] else { panic!("{frames:?}") };
    let ip = packet(frame).unwrap();
    assert_eq!((ip.src_addr(), ip.dst_addr(), ip.next_header()), (OUTSIDE, guest_ip(2), IpProtocol::Icmp));
    let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    assert!(message.verify_checksum());
    assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
    assert_eq!(Icmpv4DstUnreachable::from(message.msg_code()), Icmpv4DstUnreachable::PortUnreachable);
    let quoted = Ipv4Packet::new_unchecked(message.data());
    assert!(quoted.verify_checksum());
    assert_eq!((quoted.src_addr(), quoted.dst_addr()), (guest_ip(2), OUTSIDE));
    assert_eq!(quoted.next_header(), IpProtocol::Udp);
    let quoted = UdpPacket::new_unchecked(&message.data()[20..]);
    assert_eq!((quoted.src_port(), quoted.dst_port()), (5000, 9));
}

#[test]
fn what_may_not_be_reached() {
    let mut sim = new_sim(88);
    for to in [
        "127.0.0.1:9",
        "0.0.0.0:9",
        "240.0.0.1:9",
        "224.0.0.251:5353",
        "169.254.169.254:80",
        "192.168.127.9:9",
    ] {
        send(&mut sim, from(5000), to.parse().unwrap(), b"x");
    }
    assert_eq!(sim.asked.datagrams.len(), 0);
    assert_eq!(sim.stack.drops().total(), 6);
    assert!(sim.received(0).is_empty());
    // A closed port of the gateway says so.
    send(&mut sim, from(5000), SocketAddrV4::new(GATEWAY, 9), b"x");
    let frames = sim.received(0);
    let ip = packet(&frames[0]).unwrap();
    assert_eq!((frames.len(), ip.src_addr(), ip.next_header()), (1, GATEWAY, IpProtocol::Icmp));
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn a_port_that_is_gone_ends_its_flows() {
    let mut sim = new_sim(89);
    send(&mut sim, from(5000), outside(9), b"x");
    let flow = only_flow(&mut sim);
    sim.unplug(0);
    sim.run_for(Duration::from_secs(1));
    assert_eq!(sim.asked.closed, [flow]);
    assert_eq!(sim.stack.flows(), (0, 0));
    sim.stack.udp_send(flow, b"late", sim.now, &mut sim.batches);
    sim.stack.udp_refused(flow, &mut sim.batches);
    sim.stack.udp_close(flow);
}

#[test]
fn a_flow_that_starts_here_waits_for_its_guest() {
    let mut sim = new_sim(90);
    let guest = from(53);
    let flow = sim.stack.udp_connect(guest, sim.now, &mut sim.batches).unwrap();
    let other = sim.stack.udp_connect(guest, sim.now, &mut sim.batches).unwrap();
    sim.stack.udp_send(flow, b"one", sim.now, &mut sim.batches);
    sim.stack.udp_send(flow, b"", sim.now, &mut sim.batches);
    sim.stack.udp_send(other, b"another client", sim.now, &mut sim.batches);
    assert_eq!((received(&mut sim), sim.stack.udp_port(flow)), (Vec::new(), None));
    let announcement = arp(ArpOperation::Reply, (guest_ip(2), guest_mac(2)), (GATEWAY, GATEWAY_MAC));
    sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Arp, &announcement));
    let got = received(&mut sim);
    let [(first, to, one), (again, _, empty), (second, _, two)] = &got[..] else { panic!("{got:?}") };
    assert_eq!((&one[..], &empty[..], &two[..]), (&b"one"[..], &b""[..], &b"another client"[..]));
    assert_eq!((*first.ip(), to, first, sim.stack.udp_port(flow).is_some()), (GATEWAY, &guest, again, true));
    assert_ne!(first, second, "each client has a port of its own");

    // Answers find their client's flow, and nothing else is opened.
    send(&mut sim, guest, *second, b"for the other");
    send(&mut sim, guest, *first, b"for the first");
    let asked = std::mem::take(&mut sim.asked.datagrams);
    assert_eq!(asked, [(other, None, b"for the other".to_vec()), (flow, None, b"for the first".to_vec())]);
    // The guest is known now: what comes later does not wait.
    let third = sim.stack.udp_connect(guest, sim.now, &mut sim.batches).unwrap();
    sim.stack.udp_send(third, b"at once", sim.now, &mut sim.batches);
    assert_eq!(received(&mut sim).len(), 1);
    sim.run_until("all are idle", Duration::from_secs(130), |sim| sim.stack.flows() == (0, 0));
    assert_eq!(sim.asked.closed.len(), 3);
}

#[test]
fn a_flow_to_nobody_ends() {
    let mut sim = new_sim(91);
    let flow = sim.stack.udp_connect(from(53), sim.now, &mut sim.batches).unwrap();
    sim.stack.udp_send(flow, b"lost", sim.now, &mut sim.batches);
    sim.run_until("nobody answers", Duration::from_secs(5), |sim| sim.stack.flows() == (0, 0));
    assert_eq!(sim.asked.closed, [flow]);
    for nobody in [outside(53), SocketAddrV4::new(GATEWAY, 53)] {
        let error = sim.stack.udp_connect(nobody, sim.now, &mut sim.batches).unwrap_err();
        assert_eq!(error, ConnectError::NoRoute);
    }
}
