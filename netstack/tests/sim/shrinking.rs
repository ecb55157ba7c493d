//! Guests that take back what they offered, or close the window and say only once that it is open again.

use std::net::SocketAddrV4;
use std::time::Duration;

use smoltcp::wire::TcpSeqNumber;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Sim, guest_ip, outside};
use crate::raw::{ACK, Raw, Received, SYN};

/// In units of the windows below, which are 128 bytes: room for everything that the tests send.
const OPEN: u16 = 1000;
const LEN: usize = 20_000;

/// A host that has `len` bytes for the guest and never more. The guest, made by hand, offers nothing yet.
fn start(seed: u64, selective: bool, far: bool, len: usize) -> (Sim, Raw) {
    let mut sim = Sim::new(seed);
    let port = sim.plug_raw(Quality::CLEAN);
    let mut guest = Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80));
    if selective {
        guest.options.extend([4, 2, 1, 1]);
    }
    let bytes = pattern(1, len);
    sim.serve = Box::new(move |_| End::open(bytes.clone()));
    guest.window = 0;
    guest.send(&mut sim, SYN, &[]);
    // A guest that is far away has a congestion window from the start.
    sim.run_for(if far { Duration::from_millis(50) } else { Duration::from_micros(500) });
    guest.take(&mut sim);
    guest.send(&mut sim, ACK, &[]);
    (sim, guest)
}

/// What came, of which the guest takes what is in order, as far as `limit`.
fn receive(sim: &mut Sim, guest: &mut Raw, limit: TcpSeqNumber) -> Vec<Received> {
    let ack = guest.ack;
    let received = guest.take(sim);
    guest.ack = ack;
    for segment in &received {
        let end = segment.seq + segment.payload.len();
        if segment.seq <= guest.ack && guest.ack < end && guest.ack < limit {
            guest.ack = end.min(limit);
        }
    }
    received
}

/// The same for `time`, and it acknowledges that.
fn take(sim: &mut Sim, guest: &mut Raw, limit: TcpSeqNumber, time: Duration) -> Vec<Received> {
    let mut all = Vec::new();
    let end = sim.now + time;
    while sim.now < end {
        sim.run_for(Duration::from_millis(1));
        let received = receive(sim, guest, limit);
        if received.iter().any(|segment| !segment.payload.is_empty()) {
            guest.send(sim, ACK, &[]);
        }
        all.extend(received);
    }
    all
}

/// How long it takes until everything before `end` is there.
#[track_caller]
fn finish(sim: &mut Sim, guest: &mut Raw, end: TcpSeqNumber) -> Duration {
    let start = sim.now;
    for _ in 0..100_000 {
        take(sim, guest, end, Duration::from_millis(1));
        if guest.ack == end {
            return sim.now - start;
        }
    }
    panic!("{} bytes are missing after {:?}", end - guest.ack, sim.now - start);
}

/// Everything is under way, and the guest has acknowledged `taken` bytes of it as it closes its window.
fn shrunk(seed: u64, (selective, far, taken): Case) -> (Sim, Raw, TcpSeqNumber) {
    let len = if far { 14_000 } else { LEN };
    let (mut sim, mut guest) = start(seed, selective, far, len);
    let first = guest.ack;
    guest.window = OPEN;
    guest.send(&mut sim, ACK, &[]);
    sim.run_for(Duration::from_micros(500));
    let end = first + len;
    receive(&mut sim, &mut guest, end);
    assert_eq!(guest.ack, end, "all is under way");
    guest.ack = first + taken;
    guest.window = 0;
    guest.send(&mut sim, ACK, &[]);
    (sim, guest, end)
}

/// Whether it acknowledges selectively, is far away, and what it takes before it closes its window, in bytes.
type Case = (bool, bool, usize);
const CASES: [Case; 9] = [
    (true, false, 0),
    (true, false, 1000),
    (true, false, 1460),
    (false, false, 0),
    (false, false, 1000),
    (false, false, 1460),
    (true, true, 0),
    (true, true, 1000),
    (false, true, 1000),
];

#[test]
fn a_window_that_opens_again_is_used_at_once() {
    for case in CASES {
        for closed in [5, 50, 300, 1500, 5000, 100_000] {
            let (mut sim, mut guest, end) = shrunk(91, case);
            let limit = guest.ack;
            take(&mut sim, &mut guest, limit, Duration::from_millis(closed));
            guest.window = OPEN;
            guest.send(&mut sim, ACK, &[]);
            let took = finish(&mut sim, &mut guest, end);
            // What has had no time to arrive may still, and is waited for.
            let limit = if case.1 && closed <= 50 { 500 } else { 20 };
            assert!(
                took <= Duration::from_millis(limit),
                "{took:?} after an update in {closed} ms, {case:?}"
            );
        }
    }
}

#[test]
fn what_arrived_though_the_window_was_closed_is_not_sent_again() {
    for selective in [true, false] {
        let (mut sim, mut guest, end) = shrunk(92, (selective, false, 0));
        sim.run_for(Duration::from_millis(5));
        guest.ack = end;
        guest.window = OPEN;
        guest.send(&mut sim, ACK, &[]);
        sim.run_for(Duration::from_secs(5));
        let received = guest.take(&mut sim);
        assert!(received.iter().all(|segment| segment.payload.is_empty()), "{received:?}");
    }
}

#[test]
fn a_lost_update_is_asked_for() {
    for case in CASES {
        let (mut sim, mut guest, end) = shrunk(93, case);
        let limit = guest.ack;
        // Probes are answered, and the window stays closed.
        let probes = take(&mut sim, &mut guest, limit, Duration::from_secs(30));
        let probes = probes.iter().filter(|segment| !segment.payload.is_empty());
        let (count, bytes) =
            probes.fold((0, 0), |(count, bytes), probe| (count + 1, bytes + probe.payload.len()));
        assert!((4..=20).contains(&count) && bytes <= 20 * 1460, "{count} probes, {bytes} bytes, {case:?}");
        // It opens, and only the answer to the next one says so.
        guest.window = OPEN;
        let took = finish(&mut sim, &mut guest, end);
        assert!(took <= Duration::from_secs(40), "{took:?}, {case:?}");
    }
}

#[test]
fn a_smaller_window_is_filled() {
    for case in CASES {
        let (mut sim, mut guest, end) = shrunk(94, case);
        // Of all that is under way it takes 2 KiB, and then the rest of a segment at a time.
        guest.window = 16;
        guest.send(&mut sim, ACK, &[]);
        let took = finish(&mut sim, &mut guest, end);
        assert!(took <= Duration::from_millis(400), "{took:?}, {case:?}");
    }
}

/// Everything that was sent is acknowledged, the window is closed, and there is more.
fn full(seed: u64, selective: bool) -> (Sim, Raw, TcpSeqNumber) {
    let (mut sim, mut guest) = start(seed, selective, false, LEN);
    let first = guest.ack;
    guest.window = 40;
    guest.send(&mut sim, ACK, &[]);
    sim.settle();
    receive(&mut sim, &mut guest, first + LEN);
    assert_eq!(guest.ack, first + 40 * 128_usize);
    guest.window = 0;
    guest.send(&mut sim, ACK, &[]);
    (sim, guest, first + LEN)
}

#[test]
fn a_full_guest_is_asked_until_it_answers() {
    for selective in [true, false] {
        let (mut sim, mut guest, end) = full(95, selective);
        // Neither the first probes nor the update arrive.
        sim.run_for(Duration::from_secs(10));
        let probes = guest.clone().take(&mut sim);
        assert!((2..=8).contains(&probes.len()), "{} probes", probes.len());
        guest.window = OPEN;
        let took = finish(&mut sim, &mut guest, end);
        assert!(took <= Duration::from_secs(20), "{took:?}");
    }
}

#[test]
fn a_full_guest_that_says_so_is_served_at_once() {
    for selective in [true, false] {
        for closed in [5, 1500, 20_000] {
            let (mut sim, mut guest, end) = full(96, selective);
            let limit = guest.ack;
            take(&mut sim, &mut guest, limit, Duration::from_millis(closed));
            guest.window = OPEN;
            guest.send(&mut sim, ACK, &[]);
            let took = finish(&mut sim, &mut guest, end);
            assert!(took <= Duration::from_millis(10), "{took:?} after {closed} ms");
        }
    }
}

#[test]
fn a_guest_that_takes_nothing_is_acknowledged_where_it_looks() {
    let (mut sim, mut guest, _) = shrunk(97, (true, false, 1000));
    for _ in 0..10 {
        guest.send(&mut sim, ACK, &pattern(2, 1000));
        sim.run_for(Duration::from_millis(5));
    }
    let next = guest.seq;
    // Once more, as if the acknowledgement had been lost.
    guest.seq = TcpSeqNumber(next.0 - 1000);
    guest.send(&mut sim, ACK, &pattern(2, 1000));
    sim.run_for(Duration::from_millis(5));
    let ack = guest.ack;
    let answers = guest.take(&mut sim);
    assert!(answers.iter().any(|answer| answer.ack == next), "{answers:?}");
    assert!(answers.iter().all(|answer| answer.seq <= ack || !answer.payload.is_empty()), "{answers:?}");
}

#[test]
fn a_full_guest_is_asked_soon_though_much_was_lost_before() {
    let (mut sim, mut guest) = start(98, true, false, 10 * LEN);
    let first = guest.ack;
    let end = first + 10 * LEN;
    guest.window = 100;
    // Of each window the first segment is lost.
    for _ in 0..8 {
        guest.send(&mut sim, ACK, &[]);
        sim.run_for(Duration::from_millis(5));
        guest.clone().take(&mut sim);
        let next = guest.ack + usize::from(guest.window) * 128;
        guest.sacks = Some((guest.ack + 1460_usize, next));
        guest.send(&mut sim, ACK, &[]);
        sim.run_for(Duration::from_millis(5));
        let again = guest.clone().take(&mut sim);
        assert!(again.iter().any(|segment| segment.seq == guest.ack), "{again:?}");
        (guest.ack, guest.sacks) = (next, None);
    }
    guest.window = 0;
    guest.send(&mut sim, ACK, &[]);
    let limit = guest.ack;
    let probes = take(&mut sim, &mut guest, limit, Duration::from_secs(5));
    let probes = probes.iter().filter(|segment| !segment.payload.is_empty()).count();
    assert!((2..=6).contains(&probes), "{probes} probes in five seconds");
    guest.window = OPEN;
    let took = finish(&mut sim, &mut guest, end);
    assert!(took <= Duration::from_secs(10), "{took:?}");
}
