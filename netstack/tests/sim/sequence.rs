//! The sequence numbers that connections begin with (RFC 6528), and the same two ends again.

use std::collections::HashMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use smoltcp::wire::{ArpOperation, EthernetProtocol, TcpSeqNumber};

use crate::frames::{arp, ethernet};
use crate::guest::End;
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, Sim, guest_ip, guest_mac, outside};
use crate::raw::{ACK, FIN, RST, Raw, SYN};

fn service() -> SocketAddrV4 {
    SocketAddrV4::new(guest_ip(2), 80)
}

/// A port without a guest, whose address the stack knows.
fn plug(sim: &mut Sim) -> usize {
    let port = sim.plug_raw(Quality::CLEAN);
    announce(sim, port);
    port
}

fn announce(sim: &mut Sim, port: usize) {
    let announcement = arp(ArpOperation::Reply, (guest_ip(2), guest_mac(2)), (GATEWAY, GATEWAY_MAC));
    sim.inject(port, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Arp, &announcement));
}

/// Dials the guest, which answers and closes first. The port, the first sequence number, and the guest in its
/// TIME-WAIT.
fn visit(sim: &mut Sim, port: usize) -> Raw {
    let flow = sim.dial(service(), End::new(Vec::new()));
    sim.turn();
    let source = sim.stack.flow(flow).unwrap().remote().port();
    let mut guest = Raw::new(port, service(), SocketAddrV4::new(GATEWAY, source));
    let exchange = |sim: &mut Sim, guest: &mut Raw| {
        sim.run_for(Duration::from_micros(100));
        guest.take(sim)
    };
    let syn = exchange(sim, &mut guest).remove(0);
    assert_eq!(syn.flags, SYN);
    guest.send(sim, SYN | ACK, &[]);
    guest.send(sim, FIN | ACK, &[]);
    while exchange(sim, &mut guest).iter().all(|segment| segment.flags & FIN == 0) {}
    guest.send(sim, ACK, &[]);
    sim.run_for(Duration::from_micros(100));
    sim.ports[port].inbox.clear();
    guest
}

/// Once around all ports: the guest still has each connection in TIME-WAIT, and takes the new one for its
/// number (RFC 9293 3.10.7.4).
#[test]
fn a_port_that_comes_again_comes_with_a_larger_number() {
    let mut sim = Sim::new(501);
    let port = plug(&mut sim);
    let mut last: HashMap<u16, TcpSeqNumber> = HashMap::new();
    let (mut again, mut smaller) = (0, 0);
    for number in 0..55_000 {
        if number % 1000 == 0 {
            announce(&mut sim, port);
        }
        let guest = visit(&mut sim, port);
        sim.hosts.clear();
        // What the guest expects next is one past our FIN.
        if let Some(before) = last.insert(guest.to.port(), guest.ack) {
            again += 1;
            smaller += usize::from(guest.ack <= before + 2);
        }
    }
    assert_eq!((again, smaller), (55_000 - 49_536, 0), "ports that came again, and with a smaller number");
}

/// A guest that has the connection before, and of which the number says nothing, acknowledges what it has
/// (RFC 9293 3.5.1).
#[test]
fn a_connection_that_the_guest_has_not_forgotten_costs_no_second() {
    let mut sim = Sim::new(502);
    let port = plug(&mut sim);
    let flow = sim.dial(service(), End::open(Vec::new()));
    sim.settle();
    let source = sim.stack.flow(flow).unwrap().remote().port();
    let mut guest = Raw::new(port, service(), SocketAddrV4::new(GATEWAY, source));
    let syn = guest.take(&mut sim).remove(0);
    let fresh = guest.clone();
    for _ in 0..5 {
        guest.ack = syn.seq + 70_000;
        guest.send(&mut sim, ACK, &[]);
    }
    let answers = guest.receive(&mut sim);
    let flags: Vec<u8> = answers.iter().map(|segment| segment.flags).collect();
    assert_eq!(flags, [RST, SYN, RST, RST, RST, RST], "a RST for each, and one SYN");
    assert_eq!((answers[0].seq, answers[1].seq), (syn.seq + 70_000, syn.seq));
    let mut guest = fresh;
    guest.send(&mut sim, SYN | ACK, &[]);
    guest.send(&mut sim, ACK, b"hello");
    sim.run_until("greeted", Duration::from_millis(10), |sim| sim.host(flow).end.got == b"hello");
}

/// What one guest gets says nothing of what another gets, and nothing of the next.
#[test]
fn numbers_of_connections_from_guests_follow_the_clock_for_each_pair_of_ends() {
    let mut sim = Sim::new(503);
    let port = sim.plug_raw(Quality::CLEAN);
    let open = |sim: &mut Sim, from: u16| {
        let mut guest = Raw::new(port, SocketAddrV4::new(guest_ip(2), from), outside(80));
        let number = guest.open(sim).seq;
        guest.send(sim, RST | ACK, &[]);
        sim.settle();
        number
    };
    let (first, at) = (open(&mut sim, 40_000), sim.now);
    let other = open(&mut sim, 40_001);
    sim.run_for(Duration::from_secs(1));
    let (second, elapsed) = (open(&mut sim, 40_000), sim.now - at);
    let ticks = (elapsed.as_micros() / 4) as usize;
    let grown = second.0.wrapping_sub(first.0);
    assert!((grown as usize).abs_diff(ticks) <= 1, "{grown} in {elapsed:?}");
    let apart = other.0.wrapping_sub(first.0);
    assert!(apart.unsigned_abs() > 1 << 16, "{apart} between two pairs of ends");
}
