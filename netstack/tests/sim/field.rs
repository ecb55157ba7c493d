//! What users of other user-space networks have reported.

use std::net::SocketAddrV4;
use std::time::Duration;

use smoltcp::wire::{ArpOperation, EthernetProtocol};

use crate::frames::{arp, ethernet};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{GATEWAY, GATEWAY_MAC, Outcome, Sim, guest_ip, guest_mac, outside};
use crate::raw::{ACK, FIN, RST, Raw, SYN};

fn guest(port: u16) -> Raw {
    Raw::new(0, SocketAddrV4::new(guest_ip(2), port), outside(80))
}

fn new_sim(seed: u64, end: End) -> Sim {
    let mut sim = Sim::new(seed);
    sim.plug_raw(Quality::CLEAN);
    sim.serve = Box::new(move |_| end.clone());
    sim
}

/// HAProxy's health checks, as `hping3 -S` makes them: every second one was lost (gvisor-tap-vsock issue
/// 127).
#[test]
fn checks_that_end_with_a_reset_are_all_answered() {
    let mut sim = new_sim(701, End::open(Vec::new()));
    for number in 0..40 {
        // Some from one port, some each from its own.
        let mut guest = guest(if number % 2 == 0 { 1025 } else { 2000 + number });
        guest.send(&mut sim, SYN, &[]);
        let answers = guest.receive(&mut sim);
        assert_eq!(
            answers.iter().map(|answer| answer.flags).collect::<Vec<_>>(),
            [SYN | ACK],
            "check {number}"
        );
        guest.send(&mut sim, RST, &[]);
        sim.settle();
        assert_eq!(sim.stack.flows(), (0, 0));
    }
}

/// A host that does not read, and a guest that asks whether it is still there, or whether it reads again
/// (picotcp issue 107).
#[test]
fn a_closed_window_is_no_reason_not_to_answer() {
    let mut sim = new_sim(702, End::open(Vec::new()).stalled());
    let mut guest = guest(40_000);
    guest.open(&mut sim);
    let mut window = usize::MAX;
    while window > 0 {
        guest.send(&mut sim, ACK, &[7; 1460]);
        for answer in guest.receive(&mut sim) {
            window = usize::from(answer.window) << 4;
            guest.seq = answer.ack;
        }
    }
    let next = guest.seq;
    for (seq, payload) in [(next - 1, &[][..]), (next - 1, &[7][..]), (next, &[7][..])] {
        guest.seq = seq;
        guest.send(&mut sim, ACK, payload);
        let answers = guest.receive(&mut sim);
        let [answer] = &answers[..] else { panic!("{payload:?} at {}: {answers:?}", seq - next.0 as usize) };
        // There may be room for the byte of a probe.
        assert!(answer.ack == next || (seq == next && answer.ack == next + 1), "{answer:?}");
        assert_eq!((answer.flags, answer.window), (ACK, 0));
    }
}

/// Both ends close while neither has heard of it, and with bytes that are not sent yet (smoltcp issues 279,
/// 398).
#[test]
fn both_ends_close_at_a_time() {
    let out = pattern(3, 5000);
    let mut sim = new_sim(703, End::new(out.clone()));
    let mut guest = guest(40_000);
    // The host cannot send all of it.
    guest.window = 2000;
    guest.options.truncate(4);
    guest.open(&mut sim);
    guest.send(&mut sim, ACK | FIN, b"bye");
    let (first, mut got, mut ended) = (guest.ack, Vec::new(), false);
    for _ in 0..20 {
        for segment in guest.receive(&mut sim) {
            if segment.seq == first + got.len() {
                got.extend_from_slice(&segment.payload);
                ended |= segment.flags & FIN != 0;
            }
        }
        guest.send(&mut sim, ACK, &[]);
    }
    assert!(got == out && ended, "{} bytes, {ended}", got.len());
    sim.run_until("gone", Duration::from_secs(20), |sim| sim.stack.flows() == (0, 0));
    let [flow] = sim.host_flows()[..] else { panic!("one flow") };
    assert_eq!((sim.host(flow).outcome, &sim.host(flow).end.got[..]), (Some(Outcome::Done), &b"bye"[..]));
}

/// TCP Fast Open to a host that does not know it: what the SYN carries is sent again.
#[test]
fn data_in_a_syn_comes_again() {
    let mut sim = new_sim(704, End::open(b"hello".to_vec()));
    let mut guest = guest(40_000);
    guest.send(&mut sim, SYN, b"early");
    let answers = guest.receive(&mut sim);
    assert_eq!(answers[0].flags, SYN | ACK);
    // Acknowledged is the SYN, and not what nobody has.
    guest.seq = guest.seq - 5;
    assert_eq!(answers[0].ack, guest.seq);
    guest.send(&mut sim, ACK, b"early");
    sim.settle();
    let [flow] = sim.host_flows()[..] else { panic!("one flow") };
    assert_eq!(sim.host(flow).end.got, b"early");
}

/// The card of a running guest gets another hardware address: its connections go on as soon as it says so,
/// whoever speaks first.
#[test]
fn a_guest_with_another_hardware_address_keeps_its_connections() {
    let mut sim = new_sim(705, End::open(Vec::new()));
    let mut guest = guest(40_000);
    let announce = |sim: &mut Sim, number: u8| {
        let question = arp(ArpOperation::Request, (guest_ip(2), guest_mac(number)), (GATEWAY, guest_mac(0)));
        sim.inject(0, &ethernet(guest_mac(number), GATEWAY_MAC, EthernetProtocol::Arp, &question));
    };
    announce(&mut sim, 2);
    guest.open(&mut sim);
    let [flow] = sim.host_flows()[..] else { panic!("one flow") };
    let udp = sim.stack.udp_connect(SocketAddrV4::new(guest_ip(2), 9), sim.now, &mut sim.batches).unwrap();
    // Another guest's word changes nothing.
    let other = sim.plug_raw(Quality::CLEAN);
    let question = arp(ArpOperation::Request, (guest_ip(2), guest_mac(3)), (GATEWAY, guest_mac(0)));
    sim.inject(other, &ethernet(guest_mac(3), GATEWAY_MAC, EthernetProtocol::Arp, &question));
    sim.received(other);
    announce(&mut sim, 2);
    for number in [2, 7, 8] {
        sim.run_for(Duration::from_secs(2));
        announce(&mut sim, number);
        sim.received(0);
        sim.host(flow).end.out.extend_from_slice(b"news");
        sim.wake(flow);
        sim.stack.udp_send(udp, b"news", sim.now, &mut sim.batches);
        let frames = sim.received(0);
        let told: Vec<_> = frames.iter().map(|frame| frame[..6] == guest_mac(number).0[..]).collect();
        assert_eq!(told, [true, true], "{number}");
        // It answers, with its address of now.
        guest.ack += 4;
        let mut answer = guest.frame(ACK, &[]);
        answer[6..12].copy_from_slice(&guest_mac(number).0);
        sim.inject(0, &answer);
    }
    assert!(sim.received(other).is_empty());
}

/// It says nothing by itself, as one with a fixed address: whoever dials it asks again, beside the SYN.
#[test]
fn a_guest_with_another_hardware_address_that_says_nothing_is_found_soon() {
    let mut sim = new_sim(706, End::open(Vec::new()));
    let answer = |sim: &mut Sim, number: u8| {
        let answer = arp(ArpOperation::Reply, (guest_ip(2), guest_mac(number)), (GATEWAY, GATEWAY_MAC));
        sim.inject(0, &ethernet(guest_mac(number), GATEWAY_MAC, EthernetProtocol::Arp, &answer));
    };
    answer(&mut sim, 2);
    let dial = |sim: &mut Sim| {
        sim.dial(SocketAddrV4::new(guest_ip(2), 22), End::open(Vec::new()));
    };
    let count = |frames: &[Vec<u8>], kind: u16| {
        frames.iter().filter(|frame| frame[12..14] == kind.to_be_bytes()).count()
    };
    dial(&mut sim);
    sim.settle();
    let frames = sim.received(0);
    assert_eq!((count(&frames, 0x806), count(&frames, 0x800)), (0, 1), "it has just answered");
    sim.run_for(Duration::from_secs(6));
    sim.received(0);
    dial(&mut sim);
    sim.settle();
    let frames = sim.received(0);
    assert_eq!((count(&frames, 0x806), count(&frames, 0x800)), (1, 1), "a question beside the SYN");
    answer(&mut sim, 7);
    sim.received(0);
    sim.run_for(Duration::from_millis(1500));
    let again = sim.received(0);
    assert!(
        count(&again, 0x800) >= 1 && again.iter().all(|frame| frame[..6] == guest_mac(7).0),
        "{again:02x?}"
    );
}
