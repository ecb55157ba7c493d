//! Segments whose data the stack has already, and which are the only ones to acknowledge something or to open
//! the window.

use std::net::SocketAddrV4;
use std::time::Duration;

use smoltcp::wire::TcpSeqNumber;

use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Sim, guest_ip, outside};
use crate::raw::{ACK, FIN, Raw, Received};

/// What is sent again.
#[derive(Clone, Copy, Debug)]
enum Old {
    Data,
    DataAndEnd,
    /// An acknowledgement that was overtaken by data.
    Nothing,
}

const ALL: [(bool, Old); 6] = [
    (true, Old::Data),
    (true, Old::DataAndEnd),
    (true, Old::Nothing),
    (false, Old::Data),
    (false, Old::DataAndEnd),
    (false, Old::Nothing),
];

/// A guest with window `window` (in units of 128 bytes) that has sent some, and a host that then sends `len`
/// bytes.
fn start(seed: u64, (selective, old): (bool, Old), window: u16, len: usize) -> (Sim, Raw, TcpSeqNumber) {
    let mut sim = Sim::new(seed);
    let port = sim.plug_raw(Quality::CLEAN);
    let mut guest = Raw::new(port, SocketAddrV4::new(guest_ip(2), 40_000), outside(80));
    if selective {
        guest.options.extend([4, 2, 1, 1]);
    }
    sim.serve = Box::new(move |_| End::open(Vec::new()));
    guest.window = window;
    guest.open(&mut sim);
    let first = guest.seq;
    guest.send(&mut sim, if matches!(old, Old::DataAndEnd) { ACK | FIN } else { ACK }, &[7; 1000]);
    sim.settle();
    guest.take(&mut sim);
    let [flow] = sim.host_flows()[..] else { panic!("one flow") };
    sim.host(flow).end.out = pattern(1, len);
    sim.wake(flow);
    (sim, guest, first)
}

/// Sends the old segment, which says what `guest` says now.
fn again(sim: &mut Sim, guest: &mut Raw, first: TcpSeqNumber, old: Old) {
    let next = guest.seq;
    guest.seq = first;
    match old {
        Old::Data => guest.send(sim, ACK, &[7; 1000]),
        Old::DataAndEnd => guest.send(sim, ACK | FIN, &[7; 1000]),
        Old::Nothing => guest.send(sim, ACK, &[]),
    }
    guest.seq = next;
}

fn data(received: &[Received]) -> usize {
    received.iter().map(|segment| segment.payload.len()).sum()
}

#[test]
fn an_acknowledgement_with_old_data_counts() {
    for case in ALL {
        let (mut sim, mut guest, first) = start(101, case, 1000, 4000);
        sim.run_for(Duration::from_millis(5));
        assert_eq!(data(&guest.take(&mut sim)), 4000, "{case:?}");
        again(&mut sim, &mut guest, first, case.1);
        sim.run_for(Duration::from_millis(5));
        let answers = guest.take(&mut sim);
        let answered = answers.iter().any(|answer| answer.ack == guest.seq);
        assert!(answered || matches!(case.1, Old::Nothing), "{case:?}: {answers:?}");
        sim.run_for(Duration::from_secs(10));
        let received = guest.take(&mut sim);
        assert_eq!(data(&received), 0, "{case:?}: sent again");
    }
}

#[test]
fn a_window_that_opens_with_old_data_is_used() {
    for case in ALL {
        let (mut sim, mut guest, first) = start(102, case, 0, 4000);
        sim.run_for(Duration::from_millis(5));
        assert!(data(&guest.clone().take(&mut sim)) <= 1, "{case:?}: before a closed window");
        guest.window = 1000;
        again(&mut sim, &mut guest, first, case.1);
        sim.run_for(Duration::from_millis(5));
        let received = guest.take(&mut sim);
        assert!(data(&received) >= 4000, "{case:?}: {} bytes", data(&received));
    }
}
