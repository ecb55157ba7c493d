//! A port that takes nothing: its flows wait, nothing is lost, nobody else notices, and nothing spins.

use std::time::Duration;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Outcome, Sim, outside};
use smoltcp::socket::tcp::State;

const SECOND: Duration = Duration::from_secs(1);
const LEN: usize = 1 << 20;

fn download(sim: &mut Sim, port: usize) -> usize {
    sim.guest(port).connect(outside(80), End::new(Vec::new()))
}

#[test]
fn a_small_batch_delivers_everything() {
    for limit in [1514, 3 * 1514, 10_000] {
        let mut sim = Sim::new(71);
        let port = sim.plug(Quality::CLEAN);
        sim.limit(port, limit);
        sim.serve = Box::new(|_| End::new(pattern(2, LEN)));
        let connections: Vec<usize> = (0..3).map(|_| download(&mut sim, port)).collect();
        sim.run_until("all is read", SECOND * 30, |sim| {
            connections.iter().all(|connection| sim.guest(port).end(*connection).eof)
        });
        for connection in connections {
            assert!(sim.guest(port).end(connection).got == pattern(2, LEN));
        }
        sim.run_until("all are gone", SECOND * 5, |sim| sim.stack.flows() == (0, 0));
    }
}

/// More than are woken at a time.
#[test]
fn hundreds_that_wait_for_room_all_go_on() {
    const EACH: usize = 32 << 10;
    for limit in [1514, 100_000] {
        let mut sim = Sim::new(79);
        let port = sim.plug(Quality::CLEAN);
        sim.limit(port, limit);
        sim.serve = Box::new(|_| End::new(pattern(2, EACH)));
        let connections: Vec<usize> = (0..700).map(|_| download(&mut sim, port)).collect();
        sim.run_for(Duration::from_millis(5));
        sim.block(port, true);
        sim.run_for(SECOND);
        sim.block(port, false);
        sim.run_until("all is read", SECOND * 60, |sim| {
            connections.iter().all(|connection| sim.guest(port).end(*connection).eof)
        });
        for connection in connections {
            assert!(sim.guest(port).end(connection).got == pattern(2, EACH));
        }
        sim.run_until("all are gone", SECOND * 5, |sim| sim.stack.flows() == (0, 0));
    }
}

#[test]
fn a_blocked_port_waits_without_a_spin_and_goes_on() {
    let mut sim = Sim::new(72);
    let (port, other) = (sim.plug(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.serve = Box::new(|_| End::new(pattern(2, 4 * LEN)));
    let connection = download(&mut sim, port);
    sim.run_until("data flows", SECOND, |sim| sim.guest(port).end(connection).got.len() > LEN);
    sim.block(port, true);
    sim.run_for(SECOND);
    let (turns, wakeups) = (sim.turns, sim.wakeups);
    sim.run_for(SECOND * 100);
    // The retransmission timer may look now and then.
    assert!(
        sim.wakeups - wakeups < 100,
        "{} wakeups in 100 s, {} turns",
        sim.wakeups - wakeups,
        sim.turns - turns
    );
    let got = sim.guest(port).end(connection).got.len();
    // Another port and its flows are as fast as ever.
    let elsewhere = download(&mut sim, other);
    let started = sim.now;
    sim.run_until("the other guest is served", SECOND, |sim| sim.guest(other).end(elsewhere).eof);
    assert!((sim.now - started).as_millis() < 500);
    assert_eq!(sim.guest(port).end(connection).got.len(), got);
    sim.block(port, false);
    sim.run_until("all is read", SECOND * 10, |sim| sim.guest(port).end(connection).eof);
    assert!(sim.guest(port).end(connection).got == pattern(2, 4 * LEN));
    sim.run_until("all are gone", SECOND * 5, |sim| sim.stack.flows() == (0, 0));
}

/// Bytes to and from a guest in 200 ms, and the driver's turns, beside another guest that has stopped
/// reading, or that is idle.
fn busy_beside(stalled: bool) -> ([usize; 2], u64) {
    let mut sim = Sim::new(78);
    let (busy, other) = (sim.plug(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.serve = Box::new(|_| End::new(pattern(2, 256 * LEN)));
    if stalled {
        for _ in 0..8 {
            sim.guest(other).connect(outside(80), End::new(pattern(1, 4 * LEN)));
        }
        sim.run_for(Duration::from_millis(10));
        sim.block(other, true);
        sim.run_for(SECOND);
    }
    let before = sim.turns;
    let connection = sim.guest(busy).connect(outside(81), End::new(pattern(1, 256 * LEN)));
    sim.run_for(SECOND / 5);
    let down = sim.guest(busy).end(connection).got.len();
    let up = sim.hosts.values().map(|host| host.end.got.len()).next_back().unwrap();
    ([down, up], sim.turns - before)
}

#[test]
fn a_stalled_guest_costs_only_itself() {
    let (alone, turns_alone) = busy_beside(false);
    let (beside, turns_beside) = busy_beside(true);
    for (alone, beside) in alone.into_iter().zip(beside) {
        assert!(alone > 8 * LEN, "the guest that is measured is busy: {alone} bytes");
        assert!(beside * 10 >= alone * 9, "{beside} bytes beside a stalled guest, {alone} without");
    }
    assert!(turns_beside * 10 <= turns_alone * 11, "{turns_beside} turns, {turns_alone} without");
}

#[test]
fn few_flows_fill_their_rings() {
    let mut sim = Sim::new(79);
    let port = sim.plug(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(pattern(2, 4 * LEN)));
    let connections: Vec<usize> = (0..70).map(|_| download(&mut sim, port)).collect();
    read_a_while(&mut sim, port, &connections);
    sim.run_for(SECOND);
    let got: Vec<usize> =
        connections.iter().map(|connection| sim.guest(port).end(*connection).got.len()).collect();
    let held: Vec<usize> = sim.hosts.values().zip(got).map(|(host, got)| host.end.sent - got).collect();
    let beyond = |bytes: usize| held.iter().filter(|held| **held > bytes).count();
    assert!((1..=64).contains(&beyond(LEN)) && beyond(LEN / 2) <= 64, "{held:?} bytes are held");
}

/// Has these connections of a guest read so much, and no more.
fn read_a_while(sim: &mut Sim, port: usize, connections: &[usize]) {
    sim.run_until("all are under way", SECOND * 10, |sim| {
        let guest = sim.guest(port);
        connections.iter().fold(true, |all, connection| {
            let end = guest.end(*connection);
            end.reads = end.got.len() < LEN;
            all && !end.reads
        })
    });
}

#[test]
fn flows_that_one_guest_does_not_read_leave_another_its_depth() {
    for pause in [SECOND / 10, SECOND * 2] {
        let mut sim = Sim::new(80);
        let (greedy, victim) = (sim.plug(Quality::CLEAN), sim.plug(Quality::CLEAN));
        sim.serve = Box::new(|_| End::open(pattern(2, 4 * LEN)));
        let many: Vec<usize> = (0..70).map(|_| download(&mut sim, greedy)).collect();
        read_a_while(&mut sim, greedy, &many);
        sim.run_for(pause);
        let before = sim.host_flows();
        let connection = download(&mut sim, victim);
        read_a_while(&mut sim, victim, &[connection]);
        sim.run_for(SECOND);
        let got = sim.guest(victim).end(connection).got.len();
        let new: Vec<_> = sim.host_flows().into_iter().filter(|flow| !before.contains(flow)).collect();
        let held = sim.host(new[0]).end.sent - got;
        assert!(held > LEN, "{held} bytes are held, {pause:?} later");
    }
}

#[test]
fn uploads_go_on_when_a_blocked_port_has_room_again() {
    let mut sim = Sim::new(73);
    let port = sim.plug(Quality::CLEAN);
    let connection = sim.guest(port).connect(outside(80), End::new(pattern(1, 4 * LEN)));
    sim.run_until("data flows", SECOND, |sim| sim.hosts.values().any(|host| host.end.got.len() > LEN));
    sim.block(port, true);
    sim.run_for(SECOND * 30);
    sim.block(port, false);
    sim.run_until("all is read", SECOND * 30, |sim| sim.hosts.values().all(|host| host.end.eof));
    sim.run_until("all are gone", SECOND * 5, |sim| sim.stack.flows() == (0, 0));
    let (_, host) = sim.hosts.pop_first().unwrap();
    assert!(host.end.got == pattern(1, 4 * LEN));
    assert!(sim.guest(port).end(connection).eof);
}

#[test]
fn an_abort_waits_for_room() {
    let mut sim = Sim::new(74);
    let port = sim.plug(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(pattern(2, LEN)));
    let connection = download(&mut sim, port);
    sim.run_until("data flows", SECOND, |sim| sim.guest(port).end(connection).got.len() > 10_000);
    sim.block(port, true);
    sim.run_for(SECOND);
    let flow = sim.host_flows()[0];
    sim.abort(flow);
    sim.run_for(SECOND * 10);
    assert_eq!(sim.stack.flows(), (1, 0));
    sim.block(port, false);
    sim.run_until("the guest hears of it", SECOND, |sim| sim.guest(port).state(connection) == State::Closed);
    assert_eq!(sim.stack.flows(), (0, 0));
}

#[test]
fn a_port_that_is_full_for_an_hour_costs_nothing_and_loses_nothing() {
    // As while the virtual machine is paused.
    let mut sim = Sim::new(77);
    let port = sim.plug(Quality::CLEAN);
    sim.serve = Box::new(|_| End::open(pattern(2, LEN)));
    let connection = download(&mut sim, port);
    sim.run_for(Duration::from_micros(600));
    sim.limit(port, 0);
    sim.run_for(SECOND * 10);
    let wakeups = sim.wakeups;
    sim.run_for(SECOND * 3600);
    assert!(sim.wakeups - wakeups < 100, "{} wakeups in an hour", sim.wakeups - wakeups);
    sim.limit(port, 256 << 10);
    let id = sim.ports[port].id;
    sim.stack.handle_room(id);
    sim.run_until("all is read", SECOND * 60, |sim| sim.guest(port).end(connection).got.len() == LEN);
    assert!(sim.guest(port).end(connection).got == pattern(2, LEN));
}

#[test]
fn a_flow_that_waits_for_room_and_is_replaced() {
    // The list of waiting flows must not name the new flow by the old one's slot.
    let mut sim = Sim::new(75);
    let (port, other) = (sim.plug(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.serve = Box::new(|_| End::open(pattern(2, LEN)));
    for _ in 0..8 {
        download(&mut sim, port);
    }
    sim.run_for(Duration::from_millis(1));
    sim.block(port, true);
    sim.run_for(SECOND);
    sim.unplug(port);
    sim.run_for(SECOND);
    assert_eq!(sim.stack.flows(), (0, 0));
    assert!(sim.hosts.values().all(|host| host.outcome == Some(Outcome::Aborted)));
    sim.hosts.clear();
    let connections: Vec<usize> = (0..8).map(|_| download(&mut sim, other)).collect();
    sim.run_until("all arrives", SECOND * 10, |sim| {
        connections.iter().all(|connection| sim.guest(other).end(*connection).got.len() == LEN)
    });
    sim.run_for(SECOND * 5);
    assert!(sim.stack.poll_timeout().is_none_or(|at| at > sim.now + SECOND * 60), "but keep-alives");
}

#[test]
fn a_port_that_is_gone_takes_its_flows_along() {
    let mut sim = Sim::new(76);
    let (port, other) = (sim.plug(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.serve = Box::new(|_| End::open(pattern(2, 1000)));
    sim.guest(port).connect(outside(80), End::open(pattern(1, 1000)));
    let stays = sim.guest(other).connect(outside(80), End::open(pattern(1, 1000)));
    sim.guest(port).listen(22, End::open(Vec::new()));
    let ssh = std::net::SocketAddrV4::new(crate::network::guest_ip(2), 22);
    sim.dial(ssh, End::open(Vec::new()));
    sim.run_for(SECOND);
    assert_eq!(sim.stack.flows(), (3, 0));
    sim.unplug(port);
    sim.run_for(SECOND);
    assert_eq!(sim.stack.flows(), (1, 0));
    assert_eq!(sim.hosts.values().filter(|host| host.outcome == Some(Outcome::Aborted)).count(), 2);
    assert_eq!(sim.guest(other).end(stays).got, pattern(2, 1000));
    // What was there is forgotten: a new port may bring the same guest.
    let again = sim.plug_raw(Quality::CLEAN);
    sim.dial(ssh, End::open(Vec::new()));
    let frames = sim.received(again);
    assert_eq!(frames.len(), 1, "the address is asked for again");
}
