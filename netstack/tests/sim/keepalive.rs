//! Connections on which nothing happens: the guest is asked whether it still knows of them.

use std::net::SocketAddrV4;
use std::time::Duration;

use netstack::FlowId;
use netstack::tcp::Phase;
use smoltcp::wire::{ArpOperation, EthernetProtocol, IpProtocol, TcpPacket};

use crate::frames::{arp, ethernet, packet};
use crate::guest::End;
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, Outcome, Sim, guest_ip, guest_mac, outside};
use crate::raw::{ACK, RST, Raw};

const SECOND: Duration = Duration::from_secs(1);

/// A guest made by hand with an open connection.
fn open(seed: u64) -> (Sim, Raw, FlowId) {
    let mut sim = Sim::new(seed);
    sim.serve = Box::new(|_| End::open(b"hello".to_vec()));
    let port = sim.plug_raw(Quality::CLEAN);
    let mut guest = Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80));
    guest.open(&mut sim);
    guest.receive(&mut sim);
    guest.send(&mut sim, ACK, &[]);
    sim.settle();
    let flow = sim.host_flows()[0];
    (sim, guest, flow)
}

/// The guest's machine does something else.
fn show_life(sim: &mut Sim) {
    let question = arp(ArpOperation::Request, (guest_ip(2), guest_mac(2)), (GATEWAY, guest_mac(0)));
    sim.inject(0, &ethernet(guest_mac(2), GATEWAY_MAC, EthernetProtocol::Arp, &question));
}

#[test]
fn a_guest_that_was_reset_loses_its_connections() {
    let (mut sim, mut guest, flow) = open(601);
    let asked = loop {
        sim.run_for(SECOND);
        if let [asked] = &guest.take(&mut sim)[..] {
            break asked.clone();
        }
        assert!(sim.now.as_millis() < 127_000, "not asked within two minutes");
    };
    assert!(sim.now.as_millis() > 119_000, "asked after {}", sim.now);
    // The byte before the next, so that it has to answer.
    assert_eq!((asked.flags, asked.seq + 1, &asked.payload[..]), (ACK, guest.ack, &[][..]));
    assert_eq!(asked.ack, guest.seq);
    guest.send(&mut sim, RST, &[]);
    sim.settle();
    assert_eq!(sim.host(flow).outcome, Some(Outcome::Aborted));
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn a_guest_that_runs_and_does_not_answer_is_given_up_after_three_minutes() {
    let (mut sim, mut guest, flow) = open(602);
    while sim.host(flow).outcome.is_none() {
        sim.run_for(SECOND * 5);
        show_life(&mut sim);
        assert!(sim.now.as_millis() < 205_000, "still there");
    }
    assert!(sim.now.as_millis() > 185_000, "given up after {}", sim.now);
    let sent = guest.receive(&mut sim);
    assert_eq!(sent.iter().filter(|segment| segment.flags == ACK).count(), 5);
    assert_eq!(sent.last().unwrap().flags & RST, RST, "it hears of it");
}

/// As often as it is asked in vain.
#[test]
fn a_machine_that_stands_still_keeps_its_connections() {
    let mut sim = Sim::new(603);
    let port = sim.plug(Quality::CLEAN);
    let connection = sim.guest(port).listen(22, End::open(b"hello".to_vec()));
    let flow = sim.dial(SocketAddrV4::new(guest_ip(2), 22), End::open(b"hello yourself".to_vec()));
    sim.run_until("greeted", SECOND, |sim| sim.guest(port).end(connection).got == b"hello yourself");
    sim.ports[port].paused = true;
    sim.run_for(SECOND * 6000);
    sim.ports[port].paused = false;
    sim.run_for(SECOND * 600);
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
    sim.host(flow).end.out.extend_from_slice(b"still there?");
    sim.wake(flow);
    sim.run_until("it arrives", SECOND, |sim| sim.guest(port).end(connection).got.ends_with(b"there?"));
    // And the time of the daemon itself may jump.
    sim.run_for(SECOND);
    sim.now += SECOND * 100_000;
    sim.run_for(SECOND * 60);
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
}

#[test]
fn a_machine_that_is_never_heard_again_loses_them_after_two_hours() {
    let (mut sim, _, flow) = open(604);
    sim.run_for(SECOND * 7000);
    assert_eq!(sim.host(flow).outcome, None);
    sim.run_for(SECOND * 400);
    assert_eq!(sim.host(flow).outcome, Some(Outcome::Aborted));
}

/// The guest's FIN was lost with it, after ours.
#[test]
fn a_half_closed_connection_ends_too() {
    let (mut sim, mut guest, flow) = open(605);
    sim.host(flow).end.closes = true;
    sim.wake(flow);
    guest.receive(&mut sim);
    guest.send(&mut sim, ACK, &[]);
    sim.run_for(SECOND * 126);
    assert!(!guest.take(&mut sim).is_empty(), "it is asked");
    guest.send(&mut sim, RST, &[]);
    sim.settle();
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn many_idle_connections_cost_few_wakeups() {
    const FLOWS: u16 = 2000;
    let mut sim = Sim::new(606);
    sim.serve = Box::new(|_| End::open(Vec::new()));
    let port = sim.plug_raw(Quality::CLEAN);
    let mut guests: Vec<Raw> = (0..FLOWS)
        .map(|number| Raw::new(port, SocketAddrV4::new(guest_ip(2), 10_000 + number), outside(80)))
        .collect();
    for guest in &mut guests {
        guest.open(&mut sim);
    }
    let (mut asked, mut most, minutes) = (0, 0, 10);
    let wakeups = sim.wakeups;
    for _ in 0..minutes * 60 {
        sim.run_for(SECOND);
        let frames = std::mem::take(&mut sim.ports[port].inbox);
        let tcp =
            frames.iter().filter_map(|frame| packet(frame)).filter(|ip| ip.next_header() == IpProtocol::Tcp);
        let ports: Vec<u16> =
            tcp.map(|ip| TcpPacket::new_checked(ip.payload()).unwrap().dst_port()).collect();
        for to in &ports {
            guests[usize::from(to - 10_000)].send(&mut sim, ACK, &[]);
        }
        (asked, most) = (asked + ports.len(), most.max(ports.len()));
    }
    assert_eq!(sim.stack.flows(), (usize::from(FLOWS), 0));
    let per_flow = asked as f64 / f64::from(FLOWS);
    assert!((3.9..=5.0).contains(&per_flow), "each was asked {per_flow} times in {minutes} minutes");
    // They were opened within 40 s.
    assert!(most < usize::from(FLOWS) / 4, "{most} at once");
    // Of some the stack hears by their answers.
    let wakeups = sim.wakeups - wakeups;
    assert!(wakeups <= 24 * minutes, "{wakeups} wakeups in {minutes} minutes");
}

/// As one that is suspended, whose link is full soon: nothing is done until it goes on.
#[test]
fn a_guest_that_takes_no_frames_costs_nothing_and_is_asked_then() {
    let (mut sim, mut guest, flow) = open(607);
    sim.limit(0, 1600);
    sim.block(0, true);
    let wakeups = sim.wakeups;
    sim.run_for(SECOND * 3600);
    assert!(sim.wakeups - wakeups < 10, "{} wakeups in an hour", sim.wakeups - wakeups);
    assert_eq!((guest.take(&mut sim).len(), sim.host(flow).outcome), (0, None));
    sim.block(0, false);
    sim.run_for(SECOND);
    let asked = guest.take(&mut sim);
    assert!((2..=4).contains(&asked.len()) && asked.iter().all(|segment| segment.flags == ACK), "{asked:?}");
    guest.send(&mut sim, ACK, &[]);
    sim.run_for(SECOND * 130);
    assert_eq!(guest.take(&mut sim).len(), 1, "and as others after that");
    assert_eq!(sim.host(flow).outcome, None);
}
