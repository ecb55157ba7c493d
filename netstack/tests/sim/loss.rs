//! Links that lose, reorder and delay: as fast as Linux on the same link, or the tests say by how much not.

use std::net::SocketAddrV4;
use std::time::Duration;

use smoltcp::wire::TcpSeqNumber;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Sim, config, guest_ip, outside};
use crate::raw::{ACK, Raw, SYN};

/// What of Linux's rate is asked for.
const SHARE: f64 = 0.8;

/// 100 Mbit/s with a queue of 500 frames, as testkit/src/wire.rs makes it. `delay` is one way, in
/// milliseconds.
fn link(delay: u64) -> Quality {
    Quality::CLEAN
        .rate(100_000_000)
        .queue(500)
        .delay(Duration::from_micros(delay * 1000 + 50))
        .late(Duration::from_millis(1), Duration::from_millis(3))
}

/// Mbit/s to a guest, of the last three quarters of `len` bytes.
fn rate(seed: u64, quality: Quality, len: usize) -> f64 {
    let mut sim = Sim::seeded(seed, config(1500));
    let port = sim.plug(quality);
    // As much as Linux takes.
    sim.guest(port).ring = 4 << 20;
    let bytes = pattern(1, len);
    sim.serve = Box::new(move |_| End::open(bytes.clone()));
    let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
    let mut reach = |part: usize| {
        sim.run_until("all is read", Duration::from_secs(120), |sim| {
            sim.guest(port).end(connection).got.len() >= part
        });
        sim.now
    };
    let (start, end) = (reach(len / 4), reach(len));
    (len - len / 4) as f64 * 8.0 / (end - start).as_micros() as f64
}

/// Fails if the median of five runs is less than [`SHARE`] of `linux`, in Mbit/s: the median of three runs of
/// 4 s between two Linux 6.18 stacks, cubic, on taps, joined by testkit/src/wire.rs (`tests/tap_loss.rs`).
#[track_caller]
fn compare(quality: Quality, linux: f64, len: usize) {
    let mut rates: Vec<f64> = (0..5).map(|seed| rate(seed, quality, len)).collect();
    rates.sort_by(f64::total_cmp);
    assert!(rates[2] >= linux * SHARE, "{rates:.1?} Mbit/s, where Linux has {linux}");
}

const MB: usize = 1_000_000;

#[test]
fn nothing_lost_over_50_ms() {
    compare(link(25), 94.1, 16 * MB);
}

#[test]
fn nothing_lost_over_100_ms() {
    // Linux has 97.5; here the ring to the guest is the limit, 512 KiB in a round trip.
    compare(link(50), 50.0, 16 * MB);
}

#[test]
fn one_percent_lost() {
    compare(link(0).loss(10), 84.8, 10 * MB);
}

#[test]
fn one_percent_lost_over_50_ms() {
    compare(link(25).loss(10), 3.1, 8 * MB);
}

#[test]
fn one_percent_lost_over_100_ms() {
    compare(link(50).loss(10), 1.6, 8 * MB);
}

#[test]
fn out_of_order() {
    compare(link(0).reorder(50), 94.1, 10 * MB);
}

#[test]
fn out_of_order_over_50_ms() {
    compare(link(25).reorder(50), 88.8, 16 * MB);
}

#[test]
fn out_of_order_and_lost_over_50_ms() {
    compare(link(25).reorder(50).loss(10), 3.5, 8 * MB);
}

#[test]
fn out_of_order_and_lost_over_100_ms() {
    compare(link(50).reorder(50).loss(10), 1.9, 8 * MB);
}

#[test]
fn a_tenth_lost_still_arrives() {
    assert!(rate(1, link(5).loss(100), 2 * MB) > 1.0);
}

#[test]
fn a_short_queue_is_not_flooded() {
    let quality = link(5).queue(100);
    let mut sim = Sim::new(81);
    let port = sim.plug(quality);
    sim.guest(port).ring = 4 << 20;
    let bytes = pattern(1, 10 * MB);
    sim.serve = Box::new(move |_| End::open(bytes.clone()));
    let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
    sim.run_until("all is read", Duration::from_secs(20), |sim| {
        sim.guest(port).end(connection).got.len() == 10 * MB
    });
    let (sent, lost) = (sim.checker.frames, sim.ports[port].to_guest.lost);
    assert!(lost * 10 < sent, "{lost} of {sent} frames met a full queue");
}

#[test]
fn a_guest_that_pauses_is_not_slower_afterwards() {
    let time = |pause: bool| {
        let mut sim = Sim::new(82);
        let port = sim.plug(Quality::CLEAN.rate(1_000_000_000));
        let bytes = pattern(1, 8 * MB);
        sim.serve = Box::new(move |_| End::open(bytes.clone()));
        let connection = sim.guest(port).connect(outside(80), End::open(Vec::new()));
        let reach = |sim: &mut Sim, part: usize| {
            sim.run_until("all is read", Duration::from_secs(5), |sim| {
                sim.guest(port).end(connection).got.len() >= part
            });
            sim.now
        };
        reach(&mut sim, 4 * MB);
        if pause {
            sim.ports[port].paused = true;
            sim.run_for(Duration::from_secs(10));
            sim.ports[port].paused = false;
        }
        let start = sim.now;
        reach(&mut sim, 8 * MB) - start
    };
    let (usual, paused) = (time(false), time(true));
    assert!(paused < usual + usual / 2, "{paused:?} after a pause, {usual:?} without");
}

#[test]
fn what_came_twice_is_said_to_have_come_twice() {
    let mut sim = Sim::new(83);
    let port = sim.plug_raw(Quality::CLEAN);
    let mut guest = Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80));
    guest.options.extend([4, 2, 1, 1]);
    sim.serve = Box::new(|_| End::open(Vec::new()));
    guest.open(&mut sim);
    let first = guest.seq;
    guest.send(&mut sim, ACK, &[1; 1000]);
    guest.send(&mut sim, ACK, &[2; 1000]);
    let next = guest.seq;
    guest.receive(&mut sim);
    guest.seq = first;
    guest.send(&mut sim, ACK, &[1; 1000]);
    let answers = guest.receive(&mut sim);
    let twice = (first, first + 1000usize);
    assert!(answers.iter().any(|answer| answer.ack == next && answer.sacked == [twice]), "{answers:?}");
    guest.seq = TcpSeqNumber(next.0);
    guest.send(&mut sim, ACK, &[3; 1000]);
    assert!(guest.receive(&mut sim).iter().all(|answer| answer.sacked.is_empty()));
}

/// A guest that acknowledges selectively, made by hand, of a host that sends `len` bytes as soon as there is
/// a window.
fn raw(sim: &mut Sim, len: usize) -> Raw {
    let port = sim.plug_raw(Quality::CLEAN);
    let mut guest = Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80));
    guest.options.extend([4, 2, 1, 1]);
    let bytes = pattern(1, len);
    sim.serve = Box::new(move |_| End::open(bytes.clone()));
    guest
}

#[test]
fn an_acknowledgement_of_what_was_not_sent_stops_no_recovery() {
    let mut sim = Sim::new(84);
    let mut guest = raw(&mut sim, 0);
    guest.open(&mut sim);
    let honest = guest.clone();
    guest.ack += 5000;
    guest.send(&mut sim, ACK, &[]);
    let [flow] = sim.host_flows()[..] else { panic!("one flow") };
    sim.host(flow).end.out = pattern(1, 4000);
    sim.wake(flow);
    guest = honest;
    sim.run_for(Duration::from_millis(500));
    let received = guest.take(&mut sim);
    let segments = received.iter().filter(|segment| !segment.payload.is_empty()).count();
    assert!(segments > 3, "{segments} segments, none again");
}

#[test]
fn a_window_in_large_units_is_open_over_a_long_way() {
    let mut sim = Sim::new(85);
    let mut guest = raw(&mut sim, 100_000);
    guest.options[7] = 14;
    guest.send(&mut sim, SYN, &[]);
    sim.run_for(Duration::from_millis(50));
    guest.receive(&mut sim);
    guest.window = 100;
    guest.send(&mut sim, ACK, &[]);
    let received = guest.receive(&mut sim);
    let lens: Vec<usize> = received.iter().map(|segment| segment.payload.len()).collect();
    assert!(lens.iter().any(|len| *len > 1000), "{lens:?}");
}

#[test]
fn what_a_guest_threw_away_again_is_sent_again() {
    let mut sim = Sim::new(87);
    let mut guest = raw(&mut sim, 10_000);
    guest.open(&mut sim);
    let first = guest.ack;
    guest.receive(&mut sim);
    let end = guest.ack;
    assert_eq!(end, first + 10_000usize);
    // The first is lost; then only that is taken, and the others are not there any more.
    guest.ack = first;
    guest.sacks = Some((first + 1460usize, end));
    guest.send(&mut sim, ACK, &[]);
    let again = guest.receive(&mut sim);
    assert!(again.iter().any(|segment| segment.seq == first), "{} segments", again.len());
    guest.ack = first + 1460usize;
    guest.sacks = None;
    guest.send(&mut sim, ACK, &[]);
    sim.run_for(Duration::from_millis(600));
    let again = guest.take(&mut sim);
    assert!(again.iter().any(|segment| segment.seq == first + 1460usize), "{} segments", again.len());
}

#[test]
fn a_guest_that_is_dialled_and_then_says_nothing_for_long_is_not_far_away() {
    let mut sim = Sim::new(88);
    let port = sim.plug(Quality::CLEAN);
    let connection = sim.guest(port).listen(22, End::open(Vec::new()));
    let flow = sim.dial(SocketAddrV4::new(guest_ip(2), 22), End::open(Vec::new()));
    sim.run_for(Duration::from_secs(5));
    sim.guest(port).end(connection).out = pattern(1, 100);
    sim.run_for(Duration::from_millis(100));
    assert_eq!(sim.host(flow).end.got.len(), 100);
    sim.quality(port, Quality::CLEAN.loss(1000));
    sim.host(flow).end.out = pattern(2, 4000);
    sim.wake(flow);
    sim.turn();
    sim.quality(port, Quality::CLEAN);
    sim.run_until("what was lost is there", Duration::from_millis(500), |sim| {
        sim.guest(port).end(connection).got.len() == 4000
    });
}

/// Segments that the stack makes for `steps` segments, 100 us apart, of a guest that takes `mss` bytes at a
/// time, and those that leave. Each says of one more segment that it is lost.
fn greedy(mss: u16, steps: usize) -> (u64, u64) {
    let mut sim = Sim::new(89);
    let mut guest = raw(&mut sim, 4 << 20);
    guest.options[2..4].copy_from_slice(&mss.to_be_bytes());
    guest.send(&mut sim, SYN, &[]);
    sim.run_for(Duration::from_micros(500));
    guest.take(&mut sim);
    guest.send(&mut sim, ACK, &[]);
    sim.run_for(Duration::from_millis(5));
    sim.ports[guest.port].inbox.clear();
    let (asked, sent) = (sim.batches.asked.get(), sim.checker.frames);
    for step in 0..steps {
        let start = guest.ack + usize::from(mss) * (2 * step + 1);
        guest.sacks = Some((start, start + usize::from(mss)));
        guest.send(&mut sim, ACK, &[0]);
        sim.run_for(Duration::from_micros(100));
    }
    (sim.batches.asked.get() - asked, sim.checker.frames - sent)
}

#[test]
fn a_guest_that_loses_on_purpose_costs_little() {
    for (mss, steps) in [(48, 2000), (536, 480), (1460, 170)] {
        let (made, left) = greedy(mss, steps);
        let steps = steps as u64;
        assert!(left > steps / 5, "MSS {mss}: {left} segments for {steps}, none again");
        // Half a microsecond's in every one, ahead by 10 ms and by all that is under way, and the usual
        // looks.
        let most = steps * 50 + 5000 + 4096 + steps * 10;
        assert!(made <= most, "MSS {mss}: {made} segments made for {steps}, of which {left} left");
    }
}
