//! Flows that open, send, stall, close and abort in any order, on links that lose and mix up.

use std::collections::BTreeMap;
use std::net::SocketAddrV4;
use std::time::Duration;

use netstack::{FlowId, Target};
use smoltcp::socket::tcp::State;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Outcome, Sim, config, guest_ip, outside};
use crate::rng::Rng;

/// One pair of ends, and what may be expected of it.
struct Pair {
    connection: usize,
    /// Where the guest dialled, or the flow that dialled it.
    port: u16,
    flow: Option<FlowId>,
    /// Both ends end in order: every byte has to arrive.
    orderly: bool,
}

fn quality(rng: &mut Rng) -> Quality {
    let lossy = rng.chance(500);
    Quality::CLEAN
        .delay(Duration::from_micros(rng.below(5_000)))
        .loss(if lossy { rng.below(30) } else { 0 })
        .reorder(if lossy { rng.below(50) } else { 0 })
        .duplicate(if lossy { rng.below(20) } else { 0 })
}

fn end(rng: &mut Rng, seed: u64) -> End {
    let len = if rng.chance(300) { 0 } else { rng.below(120_000) as usize };
    End { reads: rng.chance(700), closes: rng.chance(700), ..End::new(pattern(seed, len)) }
}

fn run(seed: u64) {
    let mut sim = Sim::seeded(seed, config(1500));
    let mut rng = Rng::new(sim.seed ^ 0xabcd);
    let wire = quality(&mut rng);
    let port = sim.plug(wire);
    if rng.chance(300) {
        sim.limit(port, 1514 + rng.below(20_000) as usize);
    }
    let mut pairs: Vec<Pair> = Vec::new();
    let mut host_ends: BTreeMap<u16, End> = BTreeMap::new();
    for step in 0..60_u16 {
        match rng.below(10) {
            // The guest dials.
            0 | 1 if pairs.len() < 12 => {
                host_ends.insert(1000 + step, end(&mut rng, u64::from(step) + 1000));
                let ends = host_ends.clone();
                sim.serve = Box::new(move |target| ends[&port_of(target)].clone());
                let orderly = rng.chance(900);
                if !orderly {
                    sim.refusing.push(1000 + step);
                }
                let end = end(&mut rng, u64::from(step));
                let connection = sim.guest(port).connect(outside(1000 + step), end);
                pairs.push(Pair { connection, port: 1000 + step, flow: None, orderly });
                sim.run_for(Duration::from_millis(20));
            }
            // The host dials.
            2 if pairs.len() < 12 => {
                let end_of_guest = end(&mut rng, u64::from(step));
                let connection = sim.guest(port).listen(2000 + step, end_of_guest);
                let host = end(&mut rng, u64::from(step) + 1000);
                let flow = sim.dial(SocketAddrV4::new(guest_ip(2), 2000 + step), host);
                pairs.push(Pair { connection, port: 2000 + step, flow: Some(flow), orderly: true });
            }
            3 => {
                let blocked = rng.chance(500);
                sim.block(port, blocked);
            }
            4 | 5 if !pairs.is_empty() => {
                let at = rng.below(pairs.len() as u64) as usize;
                let reads = rng.chance(500);
                sim.guest(port).end(pairs[at].connection).reads = reads;
            }
            6 | 7 => {
                let flows = sim.host_flows();
                if !flows.is_empty() {
                    let flow = flows[rng.below(flows.len() as u64) as usize];
                    sim.host(flow).end.reads = rng.chance(500);
                    sim.wake(flow);
                }
            }
            // Somebody aborts.
            8 if rng.chance(300) && !pairs.is_empty() => {
                let at = rng.below(pairs.len() as u64) as usize;
                let pair = &mut pairs[at];
                pair.orderly = false;
                if let Some(flow) = pair.flow.filter(|_| rng.chance(500)) {
                    if sim.host(flow).outcome.is_none() {
                        sim.abort(flow);
                    }
                } else {
                    sim.guest(port).socket(pair.connection).abort();
                }
            }
            _ => sim.run_for(Duration::from_micros(rng.below(300_000))),
        }
    }
    // Now everybody reads, and closes when all is written.
    sim.block(port, false);
    for pair in &pairs {
        let end = sim.guest(port).end(pair.connection);
        (end.reads, end.closes) = (true, true);
    }
    for end in host_ends.values_mut() {
        (end.reads, end.closes) = (true, true);
    }
    for flow in sim.host_flows() {
        let end = &mut sim.host(flow).end;
        (end.reads, end.closes) = (true, true);
        sim.wake(flow);
    }
    let ends = host_ends.clone();
    sim.serve = Box::new(move |target| ends[&port_of(target)].clone());
    sim.run_for(Duration::from_secs(300));
    // The guest's smoltcp forgets a FIN that was lost and that three acknowledgements did not cover.
    for pair in &mut pairs {
        let state = sim.guest(port).state(pair.connection);
        if matches!(state, State::FinWait1 | State::Closing | State::LastAck) {
            pair.orderly = false;
            sim.guest(port).socket(pair.connection).abort();
        }
    }
    // A RST that was lost is not sent again, and nobody can know.
    let lost: Vec<u16> = pairs.iter().filter(|pair| !pair.orderly).map(|pair| pair.port).collect();
    for flow in sim.host_flows() {
        let port = match sim.host(flow).target {
            Some(target) => port_of(target),
            None => pairs.iter().find(|pair| pair.flow == Some(flow)).map_or(0, |pair| pair.port),
        };
        if lost.contains(&port) && sim.host(flow).outcome.is_none() {
            sim.abort(flow);
        }
    }
    sim.run_until("everything is gone", Duration::from_secs(1500), |sim| sim.stack.flows() == (0, 0));
    check(&mut sim, port, &pairs);
}

fn port_of(target: Target) -> u16 {
    let Target::Host(to) = target else { panic!("{target:?}") };
    to.port()
}

fn check(sim: &mut Sim, port: usize, pairs: &[Pair]) {
    for pair in pairs {
        let guest = sim.guest(port).end(pair.connection).clone();
        // A SYN that was delayed may have opened another, which the guest then refuses.
        let hosts: Vec<_> = match pair.flow {
            Some(flow) => vec![&sim.hosts[&flow]],
            None => sim.hosts.values().filter(|host| host.target.map(port_of) == Some(pair.port)).collect(),
        };
        for host in &hosts {
            assert!(guest.out.starts_with(&host.end.got), "{}: the host read what nobody wrote", pair.port);
            assert!(host.end.out.starts_with(&guest.got), "{}: the guest read what nobody wrote", pair.port);
            assert!(host.outcome.is_some());
        }
        if pair.orderly {
            let host = hosts.iter().find(|host| host.outcome == Some(Outcome::Done));
            let host = host.unwrap_or_else(|| panic!("{}: ended out of order", pair.port));
            assert!(host.end.got == guest.out && host.end.eof, "{}: the host missed something", pair.port);
            assert!(guest.got == host.end.out && guest.eof, "{}: the guest missed something", pair.port);
        }
    }
    sim.run_for(Duration::from_secs(100));
    assert_eq!((sim.stack.flows(), sim.stack.poll_timeout()), ((0, 0), None));
}

#[test]
fn any_order() {
    let first = crate::network::seed(30_000);
    for seed in first..first + 60 {
        run(seed);
    }
}
