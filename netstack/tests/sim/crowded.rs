//! A guest that takes all there is of something, beside one that wants a little.

use std::net::SocketAddrV4;
use std::time::Duration;

use netstack::{DropReason, tcp};
use smoltcp::socket::tcp::State;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Answer, Sim, guest_ip, outside};
use crate::raw::{ACK, RST, Raw, SYN};

const SECOND: Duration = Duration::from_secs(1);

/// So many SYNs of one port, to which the host says nothing; no two are alike.
fn flood(sim: &mut Sim, port: usize, numbers: std::ops::Range<u32>) {
    for number in numbers {
        let from = SocketAddrV4::new(guest_ip(2), 20_000 + (number % 40_000) as u16);
        let mut guest = Raw::new(port, from, outside(1000 + (number / 40_000) as u16));
        guest.send(sim, SYN, &[]);
    }
}

#[test]
fn a_full_table_makes_room_by_the_idle_ones_of_who_has_most() {
    let mut sim = Sim::new(940);
    let (greedy, victim) = (sim.plug_raw(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.stack.limit_opening(1 << 20);
    sim.serve = Box::new(|_| End::open(pattern(2, 1000)));
    let old = sim.guest(victim).connect(outside(80), End::open(Vec::new()));
    sim.settle();
    let [mut idle, mut busy] = [1, 2].map(|port| {
        let mut connection = Raw::new(greedy, SocketAddrV4::new(guest_ip(2), port), outside(80));
        connection.open(&mut sim);
        connection.receive(&mut sim);
        connection
    });
    sim.answer = Answer::Nothing;
    for number in 0..80 {
        flood(&mut sim, greedy, 1000 * number..1000 * (number + 1));
        busy.send(&mut sim, ACK, b"x");
        sim.run_for(SECOND / 10);
        busy.take(&mut sim);
    }
    // More at once than may be.
    flood(&mut sim, greedy, 80_000..100_000);
    assert_eq!(sim.stack.flows().0, tcp::MAX_FLOWS);
    assert!(sim.stack.drops().of(DropReason::Flows) > 10_000);
    assert!(idle.take(&mut sim).iter().any(|segment| segment.flags & RST != 0), "its oldest is told");
    assert!(busy.take(&mut sim).iter().all(|segment| segment.flags & RST == 0), "and none that goes on");
    sim.answer = Answer::Accept;
    let new = sim.guest(victim).connect(outside(80), End::open(Vec::new()));
    sim.run_until("the other guest is connected", SECOND * 3, |sim| {
        sim.guest(victim).end(new).got == pattern(2, 1000)
    });
    assert_eq!(sim.guest(victim).state(old), State::Established, "longer idle than all of them");
}

#[test]
fn opens_beyond_so_many_are_given_up_and_counted() {
    let mut sim = Sim::new(941);
    let (greedy, victim) = (sim.plug_raw(Quality::CLEAN), sim.plug(Quality::CLEAN));
    sim.answer = Answer::Nothing;
    sim.serve = Box::new(|_| End::open(Vec::new()));
    let waiting = sim.guest(victim).connect(outside(80), End::open(Vec::new()));
    sim.settle();
    let (first, target) = sim.asked.opened[0];
    flood(&mut sim, greedy, 0..10_000);
    sim.settle();
    let (flows, _) = sim.stack.flows();
    assert!((512..=1025).contains(&flows), "{flows} flows");
    assert_eq!(sim.stack.drops().of(DropReason::Flows) as usize, 10_001 - flows);
    sim.accept(first, target);
    sim.settle();
    assert_eq!(sim.guest(victim).state(waiting), State::Established, "the first of all, and another's");
}
