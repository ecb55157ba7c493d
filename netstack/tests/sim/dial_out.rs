//! A guest dials: what it sees is what the driver found.

use std::time::Duration;

use netstack::Refusal;
use smoltcp::socket::tcp::State;
use smoltcp::wire::{Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, IpProtocol, Ipv4Packet, TcpPacket};

use crate::frames::{packet, payloads};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Answer, GATEWAY, Outcome, Sim, guest_ip, outside};
use crate::raw::{ACK, RST, Raw, SYN};
use std::net::SocketAddrV4;

fn raw_guest(sim: &mut Sim) -> Raw {
    let port = sim.plug_raw(Quality::CLEAN);
    Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80))
}

#[test]
fn accepted() {
    let mut sim = Sim::new(1);
    let port = sim.plug(Quality::CLEAN);
    let (up, down) = (pattern(1, 5000), pattern(2, 7000));
    let answer = down.clone();
    sim.serve = Box::new(move |_| End::new(answer.clone()));
    let connection = sim.guest(port).connect(outside(80), End::new(up.clone()));
    sim.run_until("all is over", Duration::from_secs(5), |sim| {
        sim.stack.flows() == (0, 0) && sim.guest(port).end(connection).eof
    });
    assert_eq!(sim.asked.opened.len(), 1);
    let (_, host) = sim.hosts.pop_first().unwrap();
    assert_eq!(host.outcome, Some(Outcome::Done));
    assert_eq!(host.end.got, up);
    assert_eq!(sim.guest(port).end(connection).got, down);
    assert_eq!(sim.checker.resets, 0);
}

#[test]
fn refused_by_reset() {
    let mut sim = Sim::new(2);
    let port = sim.plug(Quality::CLEAN);
    sim.answer = Answer::Refuse(Refusal::Reset);
    let connection = sim.guest(port).connect(outside(80), End::new(Vec::new()));
    sim.run_until("the guest hears of it", Duration::from_secs(1), |sim| {
        sim.guest(port).end(connection).reset
    });
    assert_eq!(sim.stack.flows(), (0, 0));
    assert_eq!(sim.checker.resets, 1);
    sim.run_for(Duration::from_secs(60));
    assert_eq!(sim.asked.opened.len(), 1, "a guest that was refused does not try again");
}

#[test]
fn refused_as_unreachable() {
    let mut sim = Sim::new(3);
    let mut guest = raw_guest(&mut sim);
    sim.answer = Answer::Refuse(Refusal::Unreachable);
    guest.send(&mut sim, SYN, &[]);
    let frames = sim.received(guest.port);
    let [frame] = &frames[..] else { panic!("one message, not {frames:?}") };
    let ip = packet(frame).unwrap();
    assert_eq!((ip.src_addr(), ip.dst_addr(), ip.next_header()), (GATEWAY, guest_ip(2), IpProtocol::Icmp));
    let message = Icmpv4Packet::new_checked(ip.payload()).unwrap();
    assert!(message.verify_checksum());
    assert_eq!(message.msg_type(), Icmpv4Message::DstUnreachable);
    assert_eq!(Icmpv4DstUnreachable::from(message.msg_code()), Icmpv4DstUnreachable::HostUnreachable);
    let quoted = Ipv4Packet::new_unchecked(message.data());
    assert_eq!((quoted.src_addr(), quoted.dst_addr()), (guest_ip(2), *guest.to.ip()));
    let quoted = TcpPacket::new_unchecked(&message.data()[20..]);
    assert_eq!((quoted.src_port(), quoted.dst_port()), (guest.from.port(), 80));
    assert_eq!(quoted.seq_number().0, 1000);
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn refused_in_silence() {
    let mut sim = Sim::new(4);
    let port = sim.plug(Quality::CLEAN);
    sim.answer = Answer::Refuse(Refusal::Silence);
    let connection = sim.guest(port).connect(outside(80), End::new(Vec::new()));
    sim.run_for(Duration::from_secs(10));
    assert_eq!(sim.guest(port).state(connection), State::SynSent);
    assert!(sim.asked.opened.len() > 2, "each SYN is a new attempt");
    assert_eq!(sim.stack.flows(), (0, 0));
    assert_eq!(sim.stack.poll_timeout(), None);
}

#[test]
fn a_syn_sent_again_while_held_opens_nothing_more() {
    let mut sim = Sim::new(5);
    let port = sim.plug(Quality::CLEAN);
    sim.answer = Answer::Nothing;
    let connection = sim.guest(port).connect(outside(80), End::new(Vec::new()));
    sim.run_for(Duration::from_secs(9));
    assert_eq!(sim.asked.opened.len(), 1);
    assert_eq!(sim.stack.flows(), (1, 0));
    assert_eq!(payloads(&sim.ports[port].inbox, IpProtocol::Tcp).len(), 0);
    let (flow, target) = sim.asked.opened[0];
    sim.accept(flow, target);
    sim.run_until("the connection ends", Duration::from_secs(5), |sim| {
        sim.guest(port).end(connection).eof && sim.stack.flows() == (0, 0)
    });
}

#[test]
fn a_reset_while_held_ends_the_flow() {
    let mut sim = Sim::new(6);
    let mut guest = raw_guest(&mut sim);
    sim.answer = Answer::Nothing;
    guest.send(&mut sim, SYN, &[]);
    sim.settle();
    assert_eq!(sim.stack.flows(), (1, 0));
    guest.send(&mut sim, RST, &[]);
    sim.settle();
    assert_eq!(sim.stack.flows(), (0, 0));
    // An answer that comes too late is nothing.
    let (flow, _) = sim.asked.opened[0];
    sim.stack.tcp_accept(flow, sim.now, &mut sim.batches);
    sim.stack.tcp_refuse(flow, Refusal::Reset, sim.now, &mut sim.batches);
    assert!(guest.receive(&mut sim).is_empty());
}

#[test]
fn a_reset_after_the_syn_ack_ends_the_flow() {
    let mut sim = Sim::new(7);
    let mut guest = raw_guest(&mut sim);
    guest.send(&mut sim, SYN, &[]);
    let received = guest.receive(&mut sim);
    assert_eq!(received[0].flags, SYN | ACK);
    guest.send(&mut sim, RST, &[]);
    sim.settle();
    assert_eq!(sim.stack.flows(), (0, 0));
    assert_eq!(sim.hosts.pop_first().unwrap().1.outcome, Some(Outcome::Aborted));
    // The same port again is a new connection.
    guest.seq += 100_000;
    guest.open(&mut sim);
    assert_eq!(sim.asked.opened.len(), 2);
}

#[test]
fn a_guest_that_never_completes_the_handshake_is_given_up() {
    let mut sim = Sim::new(8);
    let mut guest = raw_guest(&mut sim);
    guest.send(&mut sim, SYN, &[]);
    assert_eq!(guest.receive(&mut sim)[0].flags, SYN | ACK);
    sim.run_until("the flow is gone", Duration::from_secs(1000), |sim| sim.stack.flows() == (0, 0));
    assert_eq!(sim.hosts.pop_first().unwrap().1.outcome, Some(Outcome::Aborted));
    assert_eq!(sim.stack.poll_timeout(), None);
}

#[test]
fn a_segment_of_no_connection_is_answered_by_a_reset() {
    let mut sim = Sim::new(9);
    let mut guest = raw_guest(&mut sim);
    guest.ack += 77;
    guest.send(&mut sim, ACK, b"hello");
    let received = guest.receive(&mut sim);
    let [reset] = &received[..] else { panic!("one RST, not {received:?}") };
    assert_eq!((reset.flags & RST, reset.seq.0), (RST, 77));
    guest.send(&mut sim, RST, &[]);
    assert!(guest.receive(&mut sim).is_empty(), "a RST is never answered");
    assert_eq!(sim.stack.flows(), (0, 0));
}
