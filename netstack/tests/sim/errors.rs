//! ICMP errors from guests, and from routers and hosts behind them, about what was sent to a guest.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use netstack::FlowId;
use netstack::tcp::{Abort, Phase};
use smoltcp::wire::{
    ArpOperation, EthernetProtocol, Icmpv4Message, Icmpv4Packet, IpProtocol, TcpPacket, TcpSeqNumber,
};

use crate::frames::{arp, ethernet, ipv4, packet, payloads, udp};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, Outcome, Sim, guest_ip, guest_mac, outside};
use crate::raw::{ACK, Raw, SYN};

const UNREACHABLE: Icmpv4Message = Icmpv4Message::DstUnreachable;
/// An address of a router behind the guest.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 88, 0, 1);

fn service(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(guest_ip(2), port)
}

/// Ports without guests, of which the stack knows the addresses 2, 3 and so on.
fn plug(sim: &mut Sim, ports: u8) {
    for number in 0..ports {
        let (port, own) = (sim.plug_raw(Quality::CLEAN), number + 2);
        let announcement = arp(ArpOperation::Reply, (guest_ip(own), guest_mac(own)), (GATEWAY, GATEWAY_MAC));
        sim.inject(port, &ethernet(guest_mac(own), GATEWAY_MAC, EthernetProtocol::Arp, &announcement));
    }
}

/// What `from` says about a packet that was sent to a guest: the guest behind `port` passes it on.
fn report(
    sim: &mut Sim,
    port: usize,
    from: Ipv4Addr,
    (kind, code, next_hop): (Icmpv4Message, u8, u16),
    sent: &[u8],
) {
    let quoted = &sent[14..14 + 28];
    let mut message = vec![0; 8 + quoted.len()];
    message[6..8].copy_from_slice(&next_hop.to_be_bytes());
    message[8..].copy_from_slice(quoted);
    let mut icmp = Icmpv4Packet::new_unchecked(&mut message);
    icmp.set_msg_type(kind);
    icmp.set_msg_code(code);
    icmp.fill_checksum();
    let to = packet(sent).unwrap().src_addr();
    let whole = ipv4(from, to, IpProtocol::Icmp, &message);
    sim.inject(port, &ethernet(guest_mac(port as u8 + 2), GATEWAY_MAC, EthernetProtocol::Ipv4, &whole));
}

/// Dials the guest behind port 0. The flow, and the frame with the SYN.
fn dial(sim: &mut Sim, port: u16) -> (FlowId, Vec<u8>) {
    let flow = sim.dial(service(port), End::open(Vec::new()));
    let mut frames = sim.received(0);
    assert_eq!(frames.len(), 1, "a SYN");
    (flow, frames.remove(0))
}

/// A guest with an open connection to a host that sends `len` bytes, and the frames of those that it got.
fn upload(sim: &mut Sim, len: usize) -> (Raw, Vec<Vec<u8>>) {
    plug(sim, 2);
    let mut guest = Raw::new(0, service(40_000), outside(80));
    guest.options.extend([4, 2, 1, 1]);
    sim.serve = Box::new(move |_| End::open(pattern(1, len)));
    guest.open(sim);
    let frames = sim.received(0);
    (guest, frames)
}

fn segment(frame: &[u8]) -> (TcpSeqNumber, Vec<u8>) {
    let packet = packet(frame).unwrap();
    let segment = TcpPacket::new_checked(packet.payload()).unwrap();
    (segment.seq_number(), segment.payload().to_vec())
}

fn longest(frames: &[Vec<u8>]) -> usize {
    frames.iter().map(|frame| frame.len() - 14).max().unwrap_or(0)
}

/// What came to the port, without questions whether its guest still has its address: somebody else speaks as
/// it.
fn packets(sim: &mut Sim, port: usize) -> Vec<Vec<u8>> {
    let mut frames = sim.received(port);
    frames.retain(|frame| packet(frame).is_some());
    frames
}

/// A way that takes `mtu` bytes, and a router before it that says `told`: how long it takes until all has
/// arrived, and the longest packet of those that were sent once that was known.
fn cross(seed: u64, len: usize, mtu: usize, told: u16) -> (Duration, usize) {
    let mut sim = Sim::new(seed);
    let (mut guest, mut frames) = upload(&mut sim, len);
    let (start, first) = (sim.now, guest.ack);
    let mut parts: BTreeMap<usize, Vec<u8>> = BTreeMap::new();
    let (mut got, mut last) = (Vec::new(), 0);
    while got.len() < len {
        last = longest(&frames).min(last.max(longest(&frames)));
        for frame in &frames {
            if frame.len() - 14 > mtu {
                report(&mut sim, 0, ROUTER, (UNREACHABLE, 4, told), frame);
            } else {
                let (seq, payload) = segment(frame);
                parts.insert(seq - first, payload);
            }
        }
        while let Some((&at, _)) = parts.first_key_value().filter(|(at, _)| **at <= got.len()) {
            let part = parts.remove(&at).unwrap();
            got.extend_from_slice(part.get(got.len() - at..).unwrap_or_default());
        }
        guest.ack = first + got.len();
        guest.send(&mut sim, ACK, &[]);
        sim.run_for(Duration::from_millis(1));
        frames = std::mem::take(&mut sim.ports[0].inbox);
        frames.retain(|frame| packet(frame).is_some_and(|packet| packet.next_header() == IpProtocol::Tcp));
        assert!(
            sim.now - start < Duration::from_secs(60),
            "{} of {len} bytes in {:?}",
            got.len(),
            sim.now - start
        );
        last = longest(&frames).max(if frames.is_empty() { last } else { 0 });
    }
    assert!(got == pattern(1, len), "what arrived is what was sent");
    (sim.now - start, last)
}

#[test]
fn a_shorter_way_gets_shorter_segments() {
    for (number, len) in [1000, 3000, 100_000, 2_000_000].into_iter().enumerate() {
        let (time, last) = cross(520 + number as u64, len, 1280, 1280);
        assert!(time < Duration::from_millis(1000), "{len} bytes took {time:?}");
        assert!(last <= 1280, "{last} bytes at the end");
    }
}

#[test]
fn a_router_that_does_not_say_what_it_takes() {
    let (time, _) = cross(530, 100_000, 1006, 0);
    assert!(time < Duration::from_millis(1000), "took {time:?}");
}

#[test]
fn nobody_makes_segments_tiny_or_is_believed_without_reason() {
    let mut sim = Sim::new(531);
    let (mut guest, frames) = upload(&mut sim, 200_000);
    let sent = frames.iter().find(|frame| frame.len() == 1514).unwrap().clone();
    let again = |sim: &mut Sim| longest(&packets(sim, 0));
    // About what was never sent, or no longer is under way; from another guest; and what is no news.
    let mut elsewhere = sent.clone();
    elsewhere[14 + 24] ^= 0x40;
    report(&mut sim, 0, ROUTER, (UNREACHABLE, 4, 1280), &elsewhere);
    report(&mut sim, 1, guest_ip(3), (UNREACHABLE, 4, 1280), &sent);
    report(&mut sim, 1, guest_ip(2), (UNREACHABLE, 4, 1280), &sent);
    report(&mut sim, 0, guest_ip(2), (UNREACHABLE, 4, 1500), &sent);
    report(&mut sim, 0, guest_ip(2), (UNREACHABLE, 4, 9000), &sent);
    assert_eq!(again(&mut sim), 0, "nothing is sent again");
    // Errors that are none of the connection's end.
    for code in (0..=15).filter(|code| *code != 4) {
        report(&mut sim, 0, ROUTER, (UNREACHABLE, code, 0), &sent);
    }
    report(&mut sim, 0, ROUTER, (Icmpv4Message::TimeExceeded, 0, 0), &sent);
    let [flow] = sim.host_flows()[..] else { panic!("one flow") };
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
    // Of the least that a way can take not everything is made.
    report(&mut sim, 0, ROUTER, (UNREACHABLE, 4, 68), &sent);
    assert_eq!(again(&mut sim), 552);
    let (seq, payload) = segment(&sent);
    guest.ack = seq + payload.len();
    guest.send(&mut sim, ACK, &[]);
    sim.settle();
    report(&mut sim, 0, ROUTER, (UNREACHABLE, 4, 560), &sent);
    assert!(again(&mut sim) <= 552, "a way does not get longer by an error");
}

#[test]
fn a_connection_that_is_rejected_behind_the_guest_fails_at_once() {
    let mut sim = Sim::new(532);
    plug(&mut sim, 2);
    let exceeded = Icmpv4Message::TimeExceeded;
    let codes = [0, 1, 2, 3, 5, 6, 7, 9, 10, 11, 12, 13].map(|code| (UNREACHABLE, code, 0));
    for (number, error) in codes.into_iter().chain([(exceeded, 0, 0)]).enumerate() {
        let (flow, syn) = dial(&mut sim, 1000 + number as u16);
        // Not by whom it does not concern, nor for another SYN.
        report(&mut sim, 1, guest_ip(3), error, &syn);
        report(&mut sim, 1, guest_ip(2), error, &syn);
        let mut other = syn.clone();
        other[14 + 27] ^= 1;
        report(&mut sim, 0, ROUTER, error, &other);
        sim.settle();
        assert_eq!(sim.host(flow).outcome, None, "{error:?}");
        report(&mut sim, 0, if number % 2 == 0 { ROUTER } else { guest_ip(2) }, error, &syn);
        let sent = payloads(&sim.received(0), IpProtocol::Tcp);
        assert!(sent.is_empty(), "{error:?}: the guest knows of nothing");
        let refused = matches!(error, (UNREACHABLE, 2 | 3, _));
        let abort = if refused { Abort::Reset } else { Abort::Unreachable };
        assert_eq!(
            (sim.host(flow).outcome, sim.host(flow).abort),
            (Some(Outcome::Aborted), Some(abort)),
            "{error:?}"
        );
    }
    assert_eq!(sim.stack.flows(), (0, 0));
    // A fragment's first error, a source quench, and one about reassembly end nothing.
    let (flow, syn) = dial(&mut sim, 99);
    for error in [
        (exceeded, 1, 0),
        (Icmpv4Message::ParamProblem, 0, 0),
        (Icmpv4Message::Unknown(4), 0, 0),
        (UNREACHABLE, 4, 60),
    ] {
        report(&mut sim, 0, ROUTER, error, &syn);
    }
    sim.settle();
    assert_eq!(sim.host(flow).outcome, None);
    let source =
        packet(&syn).map(|packet| TcpPacket::new_checked(packet.payload()).unwrap().src_port()).unwrap();
    let mut guest = Raw::new(0, service(99), SocketAddrV4::new(GATEWAY, source));
    guest.ack = segment(&syn).0 + 1;
    guest.send(&mut sim, SYN | ACK, &[]);
    sim.run_until("open", Duration::from_millis(10), |sim| {
        sim.stack.flow(flow).unwrap().phase() == Phase::Open
    });
}

#[test]
fn a_datagram_that_nobody_takes_ends_its_flow() {
    let mut sim = Sim::new(533);
    plug(&mut sim, 2);
    // Both ways: of somebody outside, and the answer to a guest that has gone.
    let dialled = sim.stack.udp_connect(service(9), sim.now, &mut sim.batches).unwrap();
    let packet = ipv4(guest_ip(2), *outside(9).ip(), IpProtocol::Udp, &udp(service(5000), outside(9), b"x"));
    sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Ipv4, &packet));
    let opened = sim.asked.datagrams[0].0;
    for flow in [dialled, opened] {
        sim.stack.udp_send(flow, b"hello", sim.now, &mut sim.batches);
        let sent = packets(&mut sim, 0).remove(0);
        report(&mut sim, 1, guest_ip(3), (UNREACHABLE, 3, 0), &sent);
        report(&mut sim, 1, guest_ip(2), (UNREACHABLE, 3, 0), &sent);
        report(&mut sim, 0, ROUTER, (UNREACHABLE, 1, 0), &sent);
        report(&mut sim, 0, ROUTER, (Icmpv4Message::TimeExceeded, 0, 0), &sent);
        sim.settle();
        assert!(!sim.asked.closed.contains(&flow), "by another guest, or for a while");
        report(&mut sim, 0, guest_ip(2), (UNREACHABLE, 3, 0), &sent);
        sim.settle();
        assert_eq!(sim.asked.closed.last(), Some(&flow));
        report(&mut sim, 0, guest_ip(2), (UNREACHABLE, 3, 0), &sent);
    }
    assert_eq!(sim.stack.flows(), (0, 0));
    assert!(packets(&mut sim, 0).is_empty(), "errors are not answered");
}
