//! How connections end: half by half, by abort, by silence; and that nothing stays behind.

use std::net::SocketAddrV4;
use std::time::Duration;

use netstack::DropReason;
use netstack::tcp::{Abort, Phase};
use smoltcp::socket::tcp::State;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Outcome, Sim, guest_ip, outside};
use crate::raw::{ACK, FIN, RST, Raw, SYN};

const SECOND: Duration = Duration::from_secs(1);

fn raw_guest(sim: &mut Sim) -> Raw {
    let port = sim.plug_raw(Quality::CLEAN);
    Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80))
}

#[test]
fn the_guest_closes_its_half_first() {
    let mut sim = Sim::new(31);
    let port = sim.plug(Quality::CLEAN.delay(Duration::from_millis(10)));
    sim.serve = Box::new(|_| End::open(Vec::new()));
    let connection = sim.guest(port).connect(outside(80), End::new(pattern(1, 300_000)));
    sim.run_until("the host sees the end", SECOND * 5, |sim| sim.hosts.values().any(|host| host.end.eof));
    let flow = sim.host_flows()[0];
    assert!(sim.host(flow).end.got == pattern(1, 300_000));
    sim.run_for(SECOND * 100);
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
    assert!(!sim.guest(port).end(connection).eof);
    // The other half works as long as it is needed.
    sim.host(flow).end.out = pattern(2, 300_000);
    sim.host(flow).end.closes = true;
    sim.wake(flow);
    sim.run_until("the guest sees the end", SECOND * 5, |sim| sim.guest(port).end(connection).eof);
    assert!(sim.guest(port).end(connection).got == pattern(2, 300_000));
    sim.run_until("the flow is gone", SECOND, |sim| sim.stack.flows() == (0, 0));
    assert_eq!(sim.host(flow).outcome, Some(Outcome::Done));
}

#[test]
fn the_host_closes_its_half_first() {
    let mut sim = Sim::new(32);
    let port = sim.plug(Quality::CLEAN.delay(Duration::from_millis(10)));
    sim.serve = Box::new(|_| End::new(pattern(2, 300_000)));
    let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
    sim.run_until("the guest sees the end", SECOND * 5, |sim| sim.guest(port).end(connection).eof);
    sim.run_for(SECOND * 100);
    let flow = sim.host_flows()[0];
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Open);
    sim.guest(port).end(connection).out = pattern(1, 300_000);
    sim.guest(port).end(connection).closes = true;
    sim.run_until("the flow is gone", SECOND * 5, |sim| sim.stack.flows() == (0, 0));
    assert!(sim.host(flow).end.got == pattern(1, 300_000));
    assert_eq!(sim.host(flow).outcome, Some(Outcome::Done));
}

#[test]
fn the_host_aborts() {
    let mut sim = Sim::new(33);
    let port = sim.plug(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(pattern(2, 100_000)));
    let connection = sim.guest(port).connect(outside(80), End::open(pattern(1, 100_000)));
    sim.run_until("data flows", SECOND, |sim| sim.guest(port).end(connection).got.len() > 10_000);
    let flow = sim.host_flows()[0];
    sim.abort(flow);
    sim.run_until("the guest hears of it", SECOND, |sim| sim.guest(port).state(connection) == State::Closed);
    assert!(sim.guest(port).end(connection).reset);
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn what_the_host_sent_before_its_reset_is_delivered() {
    // Whether its half is closed or not, over a link that is slow or loses.
    for (closes, quality) in [
        (false, Quality::CLEAN),
        (true, Quality::CLEAN),
        (true, Quality::CLEAN.delay(Duration::from_millis(30))),
        (false, Quality::CLEAN.loss(50)),
    ] {
        let mut sim = Sim::new(133);
        let port = sim.plug(quality);
        sim.serve = Box::new(move |_| End { closes, ..End::open(pattern(2, 200_000)) });
        let connection = sim.guest(port).connect(outside(80), End::open(pattern(1, 3_000_000)));
        sim.run_until("the host has sent all", SECOND * 5, |sim| {
            sim.hosts.values().any(|host| host.end.left().is_empty())
        });
        let flow = sim.host_flows()[0];
        sim.abort(flow);
        sim.run_until("the flow is gone", SECOND * 20, |sim| sim.stack.flows() == (0, 0));
        sim.settle();
        let end = sim.guest(port).end(connection);
        assert!(end.got == pattern(2, 200_000), "{} bytes, closes: {closes}", end.got.len());
        assert!(end.reset || closes && end.eof);
    }
}

#[test]
fn a_guest_that_does_not_read_delays_a_reset_for_a_minute_at_most() {
    let mut sim = Sim::new(233);
    let port = sim.plug(Quality::CLEAN);
    sim.guest(port).ring = 8 << 10;
    sim.serve = Box::new(|_| End::open(pattern(2, 100_000)));
    let connection = sim.guest(port).connect(outside(80), End::open(pattern(1, 100_000)).stalled());
    sim.run_for(SECOND);
    let flow = sim.host_flows()[0];
    sim.abort(flow);
    sim.run_for(SECOND * 58);
    assert_eq!(sim.stack.flows().0, 1);
    // It has got rid of what it had to say, to nobody.
    assert!(sim.guest(port).end(connection).left().is_empty());
    sim.run_for(SECOND * 3);
    assert_eq!(sim.stack.flows(), (0, 0));
    assert_eq!(sim.guest(port).state(connection), State::Closed);
}

/// A host's end with all of its bytes in the ring, whose program then leaves.
fn leaves_after(sim: &mut Sim, bytes: usize) {
    sim.run_until("the host has sent all", SECOND * 5, |sim| {
        sim.hosts.values().any(|host| host.end.sent == bytes)
    });
    let flow = sim.host_flows()[0];
    sim.leave(flow);
}

#[test]
fn what_is_left_of_a_host_that_left_ends_in_a_minute() {
    for quality in [Quality::CLEAN, Quality::CLEAN.delay(Duration::from_millis(30)), Quality::CLEAN.loss(50)]
    {
        let mut sim = Sim::new(333);
        let port = sim.plug(quality);
        sim.serve = Box::new(|_| End::open(pattern(2, 200_000)));
        let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
        leaves_after(&mut sim, 200_000);
        sim.run_for(SECOND * 58);
        let end = sim.guest(port).end(connection);
        assert!(end.got == pattern(2, 200_000) && end.eof && !end.reset, "{} bytes", end.got.len());
        assert_eq!(sim.stack.flows().0, 1, "the guest may still close its half");
        sim.run_for(SECOND * 12);
        assert_eq!(sim.stack.flows(), (0, 0));
        // A service that hangs finds it as it was, and is told when it answers.
        assert_eq!(sim.guest(port).state(connection), State::CloseWait);
        sim.guest(port).end(connection).out = pattern(1, 100);
        sim.run_for(SECOND);
        assert_eq!(sim.guest(port).state(connection), State::Closed);
    }
}

/// So often the host leaves a guest that does not close its half; so many of those flows are kept.
fn leaves_five_thousand(sim: &mut Sim, port: usize) {
    for round in 0..50 {
        for _ in 0..100 {
            let _ = sim.guest(port).connect(outside(81 + round), End::open(Vec::new()));
        }
        sim.settle();
        let held: Vec<_> =
            sim.host_flows().into_iter().filter(|flow| sim.host(*flow).outcome.is_none()).collect();
        held.into_iter().for_each(|flow| sim.leave(flow));
        sim.settle();
    }
    let (flows, _) = sim.stack.flows();
    assert!((3000..=4096).contains(&flows), "{flows} flows");
}

#[test]
fn what_hosts_left_is_bounded() {
    let mut sim = Sim::new(338);
    let port = sim.plug(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(Vec::new()));
    leaves_five_thousand(&mut sim, port);
}

#[test]
fn ends_that_a_guest_never_acknowledges_are_bounded() {
    let mut sim = Sim::new(341);
    let port = sim.plug_raw(Quality::CLEAN);
    sim.serve = Box::new(|_| End::new(Vec::new()));
    for number in 0..5000 {
        let from = SocketAddrV4::new(guest_ip(2), 20_000 + number);
        let mut guest = Raw::new(port, from, outside(80));
        guest.send(&mut sim, SYN, &[]);
        step(&mut sim, &mut guest);
        guest.send(&mut sim, ACK | FIN, &[]);
        step(&mut sim, &mut guest);
    }
    assert!(
        sim.hosts.values().all(|host| host.outcome == Some(Outcome::Done)),
        "they end on the host's side"
    );
    let (flows, _) = sim.stack.flows();
    assert!((3000..=4096).contains(&flows), "{flows} flows");
}

#[test]
fn what_hosts_left_of_one_guest_makes_room_by_its_own() {
    let mut sim = Sim::new(339);
    let (slow, greedy) = (sim.plug(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.serve = Box::new(|_| End::open(pattern(2, 1000)));
    let connection = sim.guest(slow).connect(outside(80), End::open(Vec::new()));
    leaves_after(&mut sim, 1000);
    sim.serve = Box::new(|_| End::open(Vec::new()));
    leaves_five_thousand(&mut sim, greedy);
    assert_eq!(sim.guest(slow).state(connection), State::CloseWait, "the first of all, and another's");
    assert!(sim.stack.drops().of(DropReason::Flows) >= 512);
    sim.guest(slow).end(connection).closes = true;
    sim.settle();
    let end = sim.guest(slow).end(connection);
    assert!(end.got == pattern(2, 1000) && !end.reset);
}

#[test]
fn a_guest_that_ends_after_a_host_that_left_ends_in_order() {
    let mut sim = Sim::new(334);
    let port = sim.plug(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(pattern(2, 1000)));
    let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
    leaves_after(&mut sim, 1000);
    sim.run_for(SECOND * 30);
    sim.guest(port).end(connection).closes = true;
    sim.run_until("the flow is gone", SECOND, |sim| sim.stack.flows() == (0, 0));
    assert!(!sim.guest(port).end(connection).reset);
}

#[test]
fn what_a_guest_tells_a_host_that_left_is_reset() {
    let mut sim = Sim::new(335);
    let port = sim.plug(Quality::CLEAN.delay(Duration::from_millis(10)));
    sim.serve = Box::new(|_| End::open(pattern(2, 200_000)));
    let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
    leaves_after(&mut sim, 200_000);
    // It speaks before it has heard everything, and hears the rest.
    sim.guest(port).end(connection).out = pattern(1, 100);
    sim.run_until("the flow is gone", SECOND * 2, |sim| sim.stack.flows() == (0, 0));
    sim.settle();
    let end = sim.guest(port).end(connection);
    assert!(end.got == pattern(2, 200_000) && end.eof, "{} bytes", end.got.len());
    assert_eq!(sim.guest(port).state(connection), State::Closed, "by the reset: its half was open");
}

#[test]
fn a_guest_that_takes_nothing_keeps_what_a_host_left_for_a_while() {
    let mut sim = Sim::new(336);
    let port = sim.plug(Quality::CLEAN);
    sim.guest(port).ring = 8 << 10;
    sim.serve = Box::new(|_| End::open(pattern(2, 40_000)));
    let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()).stalled());
    leaves_after(&mut sim, 40_000);
    sim.run_for(SECOND * 800);
    // It begins to take something, and has its time anew.
    let took = sim.guest(port).end(connection).got.len();
    sim.guest(port).end(connection).reads = true;
    sim.run_until("more", SECOND, |sim| sim.guest(port).end(connection).got.len() > took);
    sim.guest(port).end(connection).reads = false;
    sim.run_for(SECOND * 800);
    assert_eq!(sim.stack.flows().0, 1);
    sim.run_for(SECOND * 110);
    assert_eq!(sim.stack.flows(), (0, 0));
    assert_eq!(sim.guest(port).state(connection), State::Closed);
}

/// Whether it is reset at once, or since the guest says something that nobody hears.
#[test]
fn a_guest_that_reads_slowly_has_its_time_for_what_came_before_a_reset() {
    for speaks in [false, true] {
        let mut sim = Sim::new(433);
        let port = sim.plug(Quality::CLEAN);
        sim.guest(port).ring = 8 << 10;
        sim.serve = Box::new(|_| End::open(pattern(2, 100_000)));
        let out = if speaks { pattern(1, 100) } else { Vec::new() };
        let connection = sim.guest(port).connect(outside(80), End::open(out).stalled());
        sim.run_until("the host has sent all", SECOND * 5, |sim| {
            sim.hosts.values().any(|host| host.end.sent == 100_000)
        });
        let flow = sim.host_flows()[0];
        if speaks {
            sim.leave(flow)
        } else {
            sim.abort(flow)
        }
        for _ in 0..4 {
            sim.run_for(SECOND * 40);
            let took = sim.guest(port).end(connection).got.len();
            sim.guest(port).end(connection).reads = true;
            sim.run_until("more", SECOND * 2, |sim| sim.guest(port).end(connection).got.len() > took);
            sim.guest(port).end(connection).reads = false;
        }
        sim.guest(port).end(connection).reads = true;
        sim.run_for(SECOND * 100);
        let end = sim.guest(port).end(connection);
        assert!(end.got == pattern(2, 100_000), "{} bytes, speaks: {speaks}", end.got.len());
        assert_eq!(sim.stack.flows(), (0, 0));
    }
}

#[test]
fn what_the_guest_sent_before_its_reset_or_its_end_is_delivered() {
    for (flags, unplugged) in [(ACK, false), (ACK | FIN, false), (ACK, true), (ACK | FIN, true)] {
        let mut sim = Sim::new(134);
        let mut guest = raw_guest(&mut sim);
        sim.serve = Box::new(|_| End::open(Vec::new()));
        guest.open(&mut sim);
        guest.send(&mut sim, flags, b"hello");
        if unplugged {
            sim.unplug(guest.port);
        } else {
            guest.send(&mut sim, RST, &[]);
        }
        sim.settle();
        let (_, host) = sim.hosts.pop_first().unwrap();
        assert_eq!((host.end.got.as_slice(), host.end.eof), (&b"hello"[..], flags & FIN != 0));
        assert_eq!(host.outcome, Some(Outcome::Aborted));
        let why = if unplugged { Abort::Unreachable } else { Abort::Reset };
        assert_eq!(host.abort, Some(why));
        assert_eq!(sim.stack.flows(), (0, 0));
    }
}

#[test]
fn the_guest_aborts() {
    for finished in [false, true] {
        let mut sim = Sim::new(34);
        let port = sim.plug(Quality::CLEAN);
        // Whether or not this half is closed already, a RST is not an end in order.
        sim.serve = Box::new(move |_| End { closes: finished, ..End::new(pattern(2, 100_000)) });
        let connection = sim.guest(port).connect(outside(80), End::open(pattern(1, 100_000)));
        sim.run_until("data flows", SECOND, |sim| sim.guest(port).end(connection).got.len() == 100_000);
        sim.settle();
        sim.guest(port).socket(connection).abort();
        sim.run_until("the flow is gone", SECOND, |sim| sim.stack.flows() == (0, 0));
        let (_, host) = sim.hosts.pop_first().unwrap();
        assert_eq!(host.outcome, Some(Outcome::Aborted), "finished: {finished}");
    }
}

#[test]
fn a_reset_after_both_ends_is_no_abort() {
    // TIME-WAIT with bytes that the host has not read.
    let mut sim = Sim::new(35);
    let mut guest = raw_guest(&mut sim);
    sim.serve = Box::new(|_| End::new(Vec::new()).stalled());
    guest.send(&mut sim, SYN, &[]);
    guest.receive(&mut sim);
    guest.send(&mut sim, ACK, b"hello");
    guest.receive(&mut sim);
    guest.send(&mut sim, ACK | FIN, &[]);
    guest.receive(&mut sim);
    guest.send(&mut sim, RST, &[]);
    sim.settle();
    let flow = sim.host_flows()[0];
    assert_eq!(sim.stack.flow(flow).unwrap().phase(), Phase::Finished);
    sim.host(flow).end.reads = true;
    sim.wake(flow);
    sim.settle();
    assert_eq!(sim.host(flow).end.got, b"hello");
    assert_eq!(sim.host(flow).outcome, Some(Outcome::Done));
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn what_was_sent_before_the_end_is_kept_for_a_slow_host() {
    for host_first in [true, false] {
        let mut sim = Sim::new(36);
        let port = sim.plug(Quality::CLEAN);
        let closes = host_first;
        sim.serve = Box::new(move |_| End { closes, ..End::new(Vec::new()).stalled() });
        let connection = sim.guest(port).connect(outside(80), End::new(pattern(1, 100_000)));
        sim.run_until("the guest has sent all", SECOND * 5, |sim| {
            let expected = if host_first { State::TimeWait } else { State::FinWait2 };
            let state = sim.guest(port).state(connection);
            state == expected || state == State::Closed
        });
        sim.run_for(SECOND * 60);
        let flow = sim.host_flows()[0];
        sim.host(flow).end.closes = true;
        sim.wake(flow);
        sim.run_for(SECOND * 60);
        sim.host(flow).end.reads = true;
        sim.wake(flow);
        sim.run_until("the flow is gone", SECOND, |sim| sim.stack.flows() == (0, 0));
        assert_eq!(sim.host(flow).end.got.len(), 100_000, "host first: {host_first}");
        assert_eq!(sim.host(flow).outcome, Some(Outcome::Done));
    }
}

#[test]
fn a_guest_that_vanishes_is_given_up() {
    // Without an answer to data, and without one to a FIN.
    for out in [pattern(1, 1000), Vec::new()] {
        let mut sim = Sim::new(37);
        let mut guest = raw_guest(&mut sim);
        sim.serve = Box::new(move |_| End::new(out.clone()));
        guest.open(&mut sim);
        sim.run_until("the flow is gone", Duration::from_secs(1100), |sim| sim.stack.flows() == (0, 0));
        assert_eq!(sim.hosts.pop_first().unwrap().1.outcome, Some(Outcome::Aborted));
        assert!(sim.now.as_millis() > 100_000, "RFC 1122 4.2.3.5 asks for 100 s");
        assert!(sim.wakeups < 200, "{} wakeups", sim.wakeups);
    }
}

#[test]
fn a_guest_that_restarts_is_reset_and_dials_again() {
    let mut sim = Sim::new(38);
    let mut guest = raw_guest(&mut sim);
    sim.serve = Box::new(|_| End::open(Vec::new()));
    guest.open(&mut sim);
    let mut again = Raw { seq: guest.seq + 1_000_000, ..guest.clone() };
    again.send(&mut sim, SYN, &[]);
    let received = again.receive(&mut sim);
    assert_eq!(received[0].flags, ACK, "a challenge (RFC 5961 4.2)");
    again.seq = received[0].ack;
    again.send(&mut sim, RST, &[]);
    sim.settle();
    assert_eq!(sim.stack.flows(), (0, 0));
    again.seq += 2_000_000;
    again.open(&mut sim);
    assert_eq!(sim.hosts.len(), 2);
}

#[test]
fn ten_thousand_connections_over_a_hundred_ports() {
    let mut sim = Sim::new(39);
    let port = sim.plug_raw(Quality::CLEAN.delay(Duration::from_micros(20)));
    sim.serve = Box::new(|_| End::new(b"answer".to_vec()));
    for number in 0..10_000_u32 {
        let from = SocketAddrV4::new(guest_ip(2), 30_000 + (number % 100) as u16);
        let mut guest = Raw::new(port, from, outside(80));
        guest.seq += number as usize * 70_000;
        guest.send(&mut sim, SYN, &[]);
        step(&mut sim, &mut guest);
        // The guest ends first, or the host does.
        if number % 2 == 0 {
            guest.send(&mut sim, ACK | FIN, b"question");
            step(&mut sim, &mut guest);
            guest.send(&mut sim, ACK, &[]);
        } else {
            guest.send(&mut sim, ACK, b"question");
            step(&mut sim, &mut guest);
            guest.send(&mut sim, ACK | FIN, &[]);
        }
        step(&mut sim, &mut guest);
        assert_eq!(sim.stack.flows(), (0, 0), "connection {number}");
        let (_, host) = sim.hosts.pop_first().unwrap();
        assert_eq!(host.outcome, Some(Outcome::Done), "connection {number}");
        assert_eq!(host.end.got, b"question", "connection {number}");
    }
    assert_eq!(sim.checker.resets, 0);
    assert_eq!(sim.asked.opened.len(), 10_000);
}

fn step(sim: &mut Sim, guest: &mut Raw) {
    sim.run_for(Duration::from_micros(1500));
    guest.take(sim);
}

#[test]
fn a_guest_that_ended_first_and_takes_nothing_is_given_up() {
    let mut sim = Sim::new(339);
    let port = sim.plug(Quality::CLEAN);
    sim.guest(port).ring = 8 << 10;
    sim.serve = Box::new(|_| End::open(pattern(2, 40_000)));
    let connection = sim.guest(port).connect(outside(80), End::new(Vec::new()).stalled());
    leaves_after(&mut sim, 40_000);
    sim.run_for(SECOND * 1000);
    assert_eq!(sim.stack.flows(), (0, 0));
    assert_eq!(sim.guest(port).state(connection), State::Closed);
}
