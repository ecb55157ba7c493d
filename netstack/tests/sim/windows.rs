//! What a guest is offered: never taken back, together within the budget, and open again as soon as the host
//! reads.

use std::net::SocketAddrV4;
use std::time::Duration;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Sim, guest_ip, offering, outside};
use crate::raw::{ACK, FIN, Raw};

/// Bytes on their way from one guest at MTU 1500, as `tcp/window.rs` has it, and the least for one flow.
const BUDGET: usize = 1500 * 700;
const MIN_SHARE: usize = 32 << 10;

fn raw_guest(sim: &mut Sim) -> Raw {
    let port = sim.plug_raw(Quality::CLEAN);
    Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80))
}

/// `count` guests' connections that send for ever; the sum of what they were offered, at its largest once all
/// are busy.
fn offered(sim: &mut Sim, port: usize, count: u16) -> usize {
    for number in 0..count {
        sim.guest(port).connect(outside(1000 + number), End::new(pattern(1, 6 << 20)));
    }
    // Until every flow has used up what it was offered when it was alone.
    let long = 1 << 20;
    sim.run_until("all are under way", Duration::from_secs(60), |sim| {
        sim.hosts.len() == usize::from(count) && sim.hosts.values().all(|host| host.end.got.len() > long)
    });
    let mut most = 0;
    for _ in 0..200 {
        sim.turn();
        sim.now += Duration::from_micros(100);
        most = most.max(sim.checker.offered().map(|(_, bytes)| bytes).sum());
    }
    assert!(sim.hosts.values().all(|host| host.end.got.len() < 5 << 20), "they are busy all the time");
    most
}

#[test]
fn busy_flows_share_the_budget() {
    for count in [4, 8, 16] {
        let mut sim = Sim::new(51);
        let port = sim.plug(Quality::CLEAN.delay(Duration::from_millis(1)));
        let most = offered(&mut sim, port, count);
        assert!(most <= BUDGET + BUDGET / 20, "{count} flows are offered {most} bytes");
        assert!(most >= BUDGET / 2, "{count} flows are offered {most} bytes only");
    }
}

#[test]
fn the_budget_follows_the_guests_own_mtu() {
    for (mtu, budget) in [(1500, BUDGET), (65_520, 4 << 20)] {
        let mut sim = Sim::with(58, offering(65_520));
        let port = sim.plug_mtu(Quality::CLEAN.delay(Duration::from_millis(20)), mtu);
        sim.guest(port).ring = 1 << 20;
        let most = offered(&mut sim, port, 8);
        assert!(most <= budget + budget / 20, "{most} bytes are offered at MTU {mtu}");
        assert!(most >= budget / 2, "{most} bytes only are offered at MTU {mtu}");
    }
}

#[test]
fn every_flow_gets_the_least_share() {
    let mut sim = Sim::new(52);
    let port = sim.plug(Quality::CLEAN.delay(Duration::from_millis(5)));
    let count = 64;
    for number in 0..count {
        sim.guest(port).connect(outside(1000 + number), End::new(pattern(1, 768 << 10)));
    }
    sim.run_for(Duration::from_millis(60));
    let offered: Vec<usize> = sim.checker.offered().map(|(_, bytes)| bytes).collect();
    assert!(sim.hosts.values().all(|host| !host.end.eof), "all are busy");
    assert_eq!(offered.len(), usize::from(count));
    assert!(offered.iter().all(|bytes| *bytes >= MIN_SHARE / 2), "{offered:?}");
    let sum: usize = offered.iter().sum();
    assert!(sum <= usize::from(count) * (MIN_SHARE + 32), "{sum}: {offered:?}");
}

#[test]
fn without_window_scaling() {
    for count in [1, 16_u16] {
        let mut sim = Sim::new(53);
        sim.serve = Box::new(|_| End::open(Vec::new()));
        let port = sim.plug_raw(Quality::CLEAN);
        let mut guests: Vec<Raw> = (0..count)
            .map(|number| {
                let from = SocketAddrV4::new(guest_ip(2), 40_000 + number);
                Raw { options: vec![2, 4, 0x05, 0xb4], ..Raw::new(port, from, outside(80)) }
            })
            .collect();
        for guest in &mut guests {
            let answer = guest.open(&mut sim);
            assert_eq!((answer.scale, answer.window), (None, 65_535));
        }
        let mut sent = 0;
        for round in 0..50 {
            for guest in &mut guests {
                guest.send(&mut sim, ACK, &pattern(round, 1460));
            }
            sent += 1460;
            sim.settle();
            for guest in &mut guests {
                let received = guest.take(&mut sim);
                let last = received.last().expect("an acknowledgement");
                assert_eq!(last.ack, guest.seq);
                assert!(usize::from(last.window) >= MIN_SHARE, "{} of {count}: {last:?}", guest.from);
                assert_eq!(received.len(), 1, "one acknowledgement is enough: {received:?}");
            }
        }
        assert!(sim.hosts.values().all(|host| host.end.got.len() == sent));
    }
}

#[test]
fn a_slow_host_stalls_the_guest_no_longer_than_it_is_slow() {
    // Alone, and after others made its share small.
    for others in [0, 3, 12_u16] {
        let mut sim = Sim::new(54);
        let delay = Duration::from_millis(1);
        let port = sim.plug(Quality::CLEAN.delay(delay));
        sim.serve = Box::new(|_| End::new(Vec::new()).stalled());
        for number in 0..=others {
            sim.guest(port).connect(outside(1000 + number), End::new(pattern(1, 3 << 20)));
        }
        sim.run_for(Duration::from_secs(5));
        let flows = sim.host_flows();
        assert_eq!(flows.len(), usize::from(others) + 1);
        for round in 0..4 {
            for flow in &flows {
                sim.host(*flow).end.reads = true;
                sim.wake(*flow);
            }
            sim.turn();
            let read: Vec<usize> = flows.iter().map(|flow| sim.host(*flow).end.got.len()).collect();
            let started = sim.now;
            sim.run_until("all flow again", delay * 4, |sim| {
                flows.iter().zip(&read).all(|(flow, read)| sim.host(*flow).end.got.len() > *read)
            });
            let took = sim.now - started;
            assert!(took <= delay * 3, "round {round}: stalled for {took:?}");
            for flow in &flows {
                sim.host(*flow).end.reads = false;
            }
            sim.run_for(Duration::from_millis(300));
        }
    }
}

#[test]
fn a_host_that_reads_little_by_little_opens_the_window_by_and_by() {
    let mut sim = Sim::new(55);
    let mut guest = raw_guest(&mut sim);
    sim.serve = Box::new(|_| End::new(Vec::new()).stalled());
    guest.open(&mut sim);
    let edge = fill(&mut sim, &mut guest);
    assert!(edge >= 256 << 10, "the ring took {edge}");
    let (sent, flow) = (sim.checker.frames, sim.host_flows()[0]);
    let mut read = 0;
    while read < edge {
        sim.stack.flow(flow).unwrap().recv(|bytes| bytes.len().min(1000 - read % 1000));
        read += 1000;
        sim.wake(flow);
        sim.turn();
        sim.now += Duration::from_micros(50);
    }
    let updates = sim.checker.frames - sent;
    assert!((1..=40).contains(&updates), "{updates} window updates");
    let offered: usize = sim.checker.offered().map(|(_, bytes)| bytes).sum();
    assert!(offered >= 256 << 10, "and then {offered} bytes are offered");
}

/// Sends as much as is offered; how much was taken.
fn fill(sim: &mut Sim, guest: &mut Raw) -> usize {
    let mut sent = 0;
    loop {
        let offered: usize = sim.checker.offered().map(|(_, bytes)| bytes).sum();
        if offered == 0 {
            return sent;
        }
        for _ in 0..offered / 1460 {
            guest.send(sim, ACK, &pattern(1, 1460));
        }
        guest.send(sim, ACK, &pattern(1, offered % 1460));
        sent += offered;
        sim.settle();
        guest.take(sim);
    }
}

#[test]
fn all_that_was_offered_is_taken() {
    // Segments of any size up to the very edge, so that the scaled window field is never exact.
    let mut sim = Sim::new(56);
    let mut guest = raw_guest(&mut sim);
    sim.serve = Box::new(|_| End::new(Vec::new()).stalled());
    guest.open(&mut sim);
    let first = guest.seq;
    let mut all = Vec::new();
    for round in 0_u64..5000 {
        sim.run_for(Duration::from_millis(5));
        guest.take(&mut sim);
        let offered: usize = sim.checker.offered().map(|(_, bytes)| bytes).sum();
        if offered == 0 {
            break;
        }
        let len = offered.min(1 + (round as usize * 37) % 1460);
        let bytes = pattern(round, len);
        // The last one brings the end.
        guest.send(&mut sim, if len == offered { ACK | FIN } else { ACK }, &bytes);
        all.extend_from_slice(&bytes);
        if len == offered {
            break;
        }
    }
    sim.settle();
    guest.take(&mut sim);
    let flow = sim.host_flows()[0];
    sim.host(flow).end.reads = true;
    sim.wake(flow);
    sim.settle();
    assert_eq!(guest.seq - first, all.len() + 1);
    assert!(sim.host(flow).end.got == all, "{} of {} bytes", sim.host(flow).end.got.len(), all.len());
    assert!(sim.host(flow).end.eof);
}

#[test]
fn an_end_past_the_window_is_not_believed() {
    let mut sim = Sim::new(57);
    let mut guest = raw_guest(&mut sim);
    sim.serve = Box::new(|_| End::new(Vec::new()).stalled());
    guest.open(&mut sim);
    let sent = fill(&mut sim, &mut guest);
    let flow = sim.host_flows()[0];
    // Room for half a segment, and one that ends past it.
    sim.host(flow).end.reads = true;
    sim.wake(flow);
    sim.settle();
    sim.host(flow).end.reads = false;
    sim.settle();
    guest.take(&mut sim);
    let offered: usize = sim.checker.offered().map(|(_, bytes)| bytes).sum();
    let start = guest.seq;
    let tail = pattern(9, 1000);
    let rest = offered - 500;
    for at in (0..rest).step_by(1000) {
        guest.send(&mut sim, ACK, &vec![7; 1000.min(rest - at)]);
    }
    let last = guest.clone();
    guest.send(&mut sim, ACK | FIN, &tail);
    guest.receive(&mut sim);
    sim.host(flow).end.reads = true;
    sim.wake(flow);
    sim.settle();
    // Sent again, now that there is room.
    let mut again = Raw { ack: guest.ack, ..last };
    again.send(&mut sim, ACK | FIN, &tail);
    sim.settle();
    assert_eq!(again.seq - start, rest + 1001);
    let end = &sim.host(flow).end;
    assert!(end.eof);
    assert_eq!(end.got.len(), sent + rest + 1000);
    assert!(end.got.ends_with(&tail));
}
