//! This side dials a guest.

use std::net::SocketAddrV4;
use std::time::Duration;

use netstack::tcp::{Abort, Phase};
use netstack::{ConnectError, FlowId};
use smoltcp::wire::{ArpOperation, ArpPacket};

use crate::frames::{arp, ethernet};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, Outcome, Sim, guest_ip, guest_mac, outside};
use crate::raw::{ACK, RST, Raw, SYN};
use smoltcp::wire::EthernetProtocol;

const SECOND: Duration = Duration::from_secs(1);

fn ssh() -> SocketAddrV4 {
    SocketAddrV4::new(guest_ip(2), 22)
}

/// A port without a guest, whose address the stack knows.
fn known_guest(sim: &mut Sim) -> usize {
    let port = sim.plug_raw(Quality::CLEAN);
    let announcement = arp(ArpOperation::Reply, (guest_ip(2), guest_mac(2)), (GATEWAY, GATEWAY_MAC));
    sim.inject(port, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Arp, &announcement));
    port
}

fn outcome(sim: &mut Sim, flow: FlowId) -> Option<Outcome> {
    sim.host(flow).outcome
}

#[test]
fn an_address_that_nobody_has_is_given_up_after_three_questions() {
    let mut sim = Sim::new(61);
    let port = sim.plug_raw(Quality::CLEAN);
    let flow = sim.dial(ssh(), End::open(Vec::new()));
    let other = sim.dial(SocketAddrV4::new(guest_ip(2), 23), End::open(Vec::new()));
    sim.run_until("both fail", SECOND * 10, |sim| sim.stack.flows() == (0, 0));
    assert_eq!(
        (outcome(&mut sim, flow), outcome(&mut sim, other)),
        (Some(Outcome::Aborted), Some(Outcome::Aborted))
    );
    assert_eq!(sim.host(flow).abort, Some(Abort::Unreachable));
    assert!((2_900..3_200).contains(&sim.now.as_millis()), "gave up at {}", sim.now);
    let frames = sim.received(port);
    assert_eq!(frames.len(), 3);
    for frame in frames {
        assert_eq!(frame[..6], [0xff; 6]);
        let question = ArpPacket::new_checked(&frame[14..]).unwrap();
        assert_eq!(question.operation(), ArpOperation::Request);
        assert_eq!(question.target_protocol_addr(), guest_ip(2).octets());
        assert_eq!(question.source_protocol_addr(), GATEWAY.octets());
        assert_eq!(question.source_hardware_addr(), GATEWAY_MAC.0);
    }
    assert_eq!(sim.stack.poll_timeout(), None);
}

#[test]
fn a_lost_question_is_asked_again() {
    let mut sim = Sim::new(62);
    let port = sim.plug(Quality::CLEAN.loss(1000));
    sim.guest(port).listen(22, End::open(b"hello".to_vec()));
    let flow = sim.dial(ssh(), End::open(Vec::new()));
    sim.run_for(Duration::from_millis(1500));
    sim.quality(port, Quality::CLEAN);
    sim.run_until("greeted", SECOND * 5, |sim| sim.host(flow).end.got == b"hello");
}

#[test]
fn refused_by_the_guest() {
    let mut sim = Sim::new(63);
    let port = sim.plug(Quality::CLEAN);
    let flow = sim.dial(ssh(), End::open(Vec::new()));
    sim.run_until("refused", SECOND, |sim| sim.stack.flows() == (0, 0));
    assert_eq!(outcome(&mut sim, flow), Some(Outcome::Aborted));
    assert_eq!(sim.host(flow).abort, Some(Abort::Reset));
    assert!(sim.guest(port).connections.is_empty());
}

#[test]
fn a_guest_that_never_answers_is_given_up_after_ten_seconds() {
    let mut sim = Sim::new(64);
    let port = known_guest(&mut sim);
    let flow = sim.dial(ssh(), End::open(Vec::new()));
    sim.run_until("given up", SECOND * 60, |sim| sim.stack.flows() == (0, 0));
    assert_eq!(outcome(&mut sim, flow), Some(Outcome::Aborted));
    assert_eq!(sim.host(flow).abort, Some(Abort::Silence));
    assert!((9_000..12_000).contains(&sim.now.as_millis()), "gave up at {}", sim.now);
    let frames = sim.received(port);
    assert!((3..10).contains(&frames.len()), "{} segments", frames.len());
}

#[test]
fn a_wrong_answer_does_not_take_the_limit_away() {
    let mut sim = Sim::new(65);
    let port = known_guest(&mut sim);
    let flow = sim.dial(ssh(), End::open(Vec::new()));
    sim.settle();
    let source = sim.stack.flow(flow).unwrap().remote().port();
    let mut guest = Raw::new(port, ssh(), SocketAddrV4::new(GATEWAY, source));
    assert_eq!(guest.take(&mut sim)[0].flags, SYN);
    guest.ack += 12_345;
    guest.send(&mut sim, SYN | ACK, &[]);
    assert_eq!(guest.receive(&mut sim)[0].flags & RST, RST);
    sim.run_until("given up", SECOND * 20, |sim| sim.stack.flows() == (0, 0));
    assert_eq!(outcome(&mut sim, flow), Some(Outcome::Aborted));
}

#[test]
fn idle_for_an_hour() {
    let mut sim = Sim::new(66);
    let port = sim.plug(Quality::CLEAN);
    let connection = sim.guest(port).listen(22, End::open(b"hello".to_vec()));
    let flow = sim.dial(ssh(), End::open(b"hello yourself".to_vec()));
    sim.run_until("greeted", SECOND, |sim| sim.guest(port).end(connection).got == b"hello yourself");
    // The timers of what is done with.
    sim.run_for(SECOND * 5);
    let wakeups = sim.wakeups;
    sim.run_for(SECOND * 3600);
    assert!(sim.wakeups - wakeups <= 60, "{} wakeups in an hour", sim.wakeups - wakeups);
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
    // And it still works.
    sim.host(flow).end.out.extend_from_slice(b"still there?");
    sim.wake(flow);
    sim.run_until("it arrives", SECOND, |sim| sim.guest(port).end(connection).got.ends_with(b"there?"));
    assert_eq!(sim.host(flow).end.got, b"hello");
}

#[test]
fn addresses_outside_are_not_dialled() {
    let mut sim = Sim::new(67);
    sim.plug_raw(Quality::CLEAN);
    for to in [outside(22), SocketAddrV4::new(GATEWAY, 22)] {
        let refused = sim.stack.tcp_connect(to, sim.now, &mut sim.batches);
        assert_eq!(refused, Err(ConnectError::NoRoute));
    }
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn too_many_addresses_at_once() {
    let mut sim = Sim::new(68);
    sim.plug_raw(Quality::CLEAN);
    let flows: Vec<FlowId> = (0..300)
        .map(|number| {
            let to = SocketAddrV4::new(guest_ip(2 + (number % 250) as u8), number);
            sim.dial(to, End::open(Vec::new()))
        })
        .collect();
    sim.run_until("all fail", SECOND * 10, |sim| sim.stack.flows() == (0, 0));
    assert!(flows.iter().all(|flow| sim.hosts[flow].outcome == Some(Outcome::Aborted)));
}

#[test]
fn a_guest_that_reads_again_after_a_while() {
    let mut sim = Sim::new(69);
    let port = sim.plug(Quality::CLEAN);
    let connection = sim.guest(port).listen(22, End::open(Vec::new()).stalled());
    let flow = sim.dial(ssh(), End::new(pattern(1, 2 << 20)));
    sim.run_for(SECOND * 120);
    let taken = sim.host(flow).end.sent;
    assert!(taken < 1 << 20, "the guest's window is shut, and yet {taken} bytes were taken");
    let wakeups = sim.wakeups;
    sim.run_for(SECOND * 120);
    assert!(sim.wakeups - wakeups < 60, "{} wakeups in two minutes", sim.wakeups - wakeups);
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
    sim.guest(port).end(connection).reads = true;
    sim.guest(port).end(connection).closes = true;
    let started = sim.now;
    sim.run_until("all is read", SECOND * 10, |sim| sim.guest(port).end(connection).eof);
    assert!((sim.now - started).as_millis() < 1000, "took {:?}", sim.now - started);
    assert!(sim.guest(port).end(connection).got == pattern(1, 2 << 20));
    sim.run_until("the flow is gone", SECOND, |sim| sim.stack.flows() == (0, 0));
    assert_eq!(outcome(&mut sim, flow), Some(Outcome::Done));
}

#[test]
fn a_guest_whose_window_stays_shut_is_not_given_up_while_it_answers() {
    let mut sim = Sim::new(70);
    let port = sim.plug(Quality::CLEAN);
    sim.guest(port).listen(22, End::open(Vec::new()).stalled());
    let flow = sim.dial(ssh(), End::open(pattern(1, 2 << 20)));
    sim.run_for(SECOND * 3000);
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
}
