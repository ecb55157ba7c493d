//! From guest to guest.

use std::net::SocketAddrV4;
use std::time::Duration;

use netstack::{DropReason, Mac};
use smoltcp::wire::{EthernetProtocol, IpProtocol};

use crate::frames::{ethernet, ipv4};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{GATEWAY_MAC, Sim, guest_ip, guest_mac};

fn frame(from: Mac, to: Mac) -> Vec<u8> {
    let packet = ipv4(guest_ip(from.0[5]), guest_ip(3), IpProtocol::from(253), b"for a guest");
    ethernet(from, to, EthernetProtocol::Ipv4, &packet)
}

fn received(sim: &mut Sim) -> Vec<usize> {
    sim.settle();
    sim.ports.iter_mut().map(|port| std::mem::take(&mut port.inbox).len()).collect()
}

#[test]
fn unicast_flood_and_broadcast() {
    let mut sim = Sim::new(101);
    for _ in 0..3 {
        sim.plug_raw(Quality::CLEAN);
    }
    let (a, b, c) = (guest_mac(2), guest_mac(3), guest_mac(4));
    sim.inject(0, &frame(a, b));
    assert_eq!(received(&mut sim), [0, 1, 1], "an unknown address is flooded");
    sim.inject(1, &frame(b, a));
    assert_eq!(received(&mut sim), [1, 0, 0], "a known one is not");
    sim.inject(0, &frame(a, b));
    assert_eq!(received(&mut sim), [0, 1, 0]);
    sim.inject(2, &frame(c, Mac::BROADCAST));
    assert_eq!(received(&mut sim), [1, 1, 0]);
    sim.inject(2, &frame(c, Mac([1, 0, 0x5e, 0, 0, 1])));
    assert_eq!(received(&mut sim), [1, 1, 0], "multicast is for all");
    let mut addresses: Vec<_> = sim.stack.addresses().collect();
    addresses.sort();
    assert_eq!(addresses, [(a, sim.ports[0].id), (b, sim.ports[1].id), (c, sim.ports[2].id)]);
    assert_eq!(sim.asked.addresses, [(a, true), (b, true), (c, true)]);
    // The gateway's own address stays its own.
    sim.inject(1, &frame(GATEWAY_MAC, a));
    assert_eq!(received(&mut sim), [0, 0, 0]);
    assert_eq!(sim.stack.drops().of(DropReason::BadSource), 1);
    sim.asked.addresses.clear();
    let port = sim.ports[2].id;
    sim.stack.detach_port(port, sim.now);
    sim.settle();
    assert_eq!(sim.asked.addresses, [(c, false)]);
}

#[test]
fn a_full_port_loses_frames_and_only_its_own() {
    let mut sim = Sim::new(102);
    for _ in 0..3 {
        sim.plug_raw(Quality::CLEAN);
    }
    sim.limit(1, 100);
    for _ in 0..5 {
        sim.inject(0, &frame(guest_mac(2), Mac::BROADCAST));
    }
    assert_eq!(received(&mut sim), [0, 2, 5]);
    assert_eq!(sim.stack.drops().of(DropReason::PortFull), 3);
}

#[test]
fn a_connection_between_guests() {
    let mut sim = Sim::new(103);
    let quality = Quality::CLEAN.delay(Duration::from_millis(1)).loss(2);
    let (one, other) = (sim.plug(quality), sim.plug(quality));
    let server = sim.guest(other).listen(80, End::new(pattern(2, 200_000)));
    let client = sim.guest(one).connect(SocketAddrV4::new(guest_ip(3), 80), End::new(pattern(1, 200_000)));
    sim.run_until("all is read", Duration::from_secs(300), |sim| {
        sim.guest(one).end(client).eof && sim.guest(other).end(server).eof
    });
    assert!(sim.guest(one).end(client).got == pattern(2, 200_000));
    assert!(sim.guest(other).end(server).got == pattern(1, 200_000));
    assert_eq!((sim.stack.flows(), sim.asked.opened.len()), ((0, 0), 0));
}
