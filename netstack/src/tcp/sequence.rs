//! The sequence number that a connection begins with (RFC 9293 3.4.1, RFC 6528). Owns: the key. May not: read
//! a clock. Read next: `flow.rs`, which begins connections.
//!
//! It grows with the time for the same two ends: a guest that still has the connection before in TIME-WAIT
//! knows by that that a new one comes. For other ends it is elsewhere, and nobody learns from one where the
//! others are.

use core::net::{IpAddr, SocketAddr};
use std::hash::{Hash, Hasher};

use siphasher::sip::SipHasher13;
use smoltcp::wire::TcpSeqNumber;

use crate::Instant;

/// Microseconds in which the number grows by one.
const TICK: u64 = 4;

/// Gives first sequence numbers to connections.
pub(super) struct InitialSequence(pub(super) SipHasher13);

impl InitialSequence {
    /// The number for a connection between these two that begins now.
    pub(super) fn number(&self, guest: SocketAddr, remote: SocketAddr, now: Instant) -> TcpSeqNumber {
        let ports = u32::from(guest.port()) << 16 | u32::from(remote.port());
        let hash = match (guest.ip(), remote.ip()) {
            (IpAddr::V4(guest), IpAddr::V4(remote)) => {
                let mut ends = [0; 12];
                for (at, part) in ends.chunks_exact_mut(4).zip([guest.to_bits(), remote.to_bits(), ports]) {
                    at.copy_from_slice(&part.to_le_bytes());
                }
                self.0.hash(&ends)
            }
            (guest, remote) => {
                let mut hasher = self.0;
                (guest, remote, ports).hash(&mut hasher);
                hasher.finish()
            }
        };
        TcpSeqNumber(hash.wrapping_add(now.as_micros() / TICK) as i32)
    }
}

/// The seed of an interface whose first connection begins with `number`. smoltcp draws the number from a
/// generator that starts at the seed, and before it the identifier of a packet. The generator's steps can be
/// taken back.
pub(super) fn seed(number: TcpSeqNumber) -> u64 {
    // Of a state below 2^61 the bits above the lowest 29 are drawn. The lowest are free, but that no
    // identifier is zero.
    let before = (0..).map(|free: u64| step_back((u64::from(number.0 as u32) << 29) | free)).find(|state| {
        let drawn = (*state >> (29 - (*state >> 61))) as u32;
        (drawn ^ (drawn >> 16)) as u16 != 0
    });
    step_back(before.unwrap_or_default())
}

/// smoltcp's generator goes from a state to `state * 0xbb2efcec3c39611d + 0x7590ef39`.
fn step_back(state: u64) -> u64 {
    const INVERSE: u64 = 0x4eab_3c1d_3452_6935;
    state.wrapping_sub(0x7590_ef39).wrapping_mul(INVERSE)
}

#[cfg(test)]
mod tests {
    use core::time::Duration;

    use smoltcp::wire::{Ipv4Packet, TcpPacket};

    use super::*;
    use crate::ipv4::Route;
    use crate::link::FrameSink;
    use crate::tcp::device::OneCall;
    use crate::tcp::recovery::Recovery;
    use crate::tcp::socket::{Interface, Socket};
    use crate::tcp::window::WindowLimit;
    use crate::{Mac, PortId};

    /// Keeps the last frame.
    #[derive(Default)]
    struct Last(Vec<u8>);

    impl FrameSink for Last {
        fn has_room(&self, _: PortId, _: usize) -> bool {
            true
        }

        fn frame(&mut self, _: PortId, len: usize) -> Option<&mut [u8]> {
            self.0 = vec![0; len];
            Some(&mut self.0)
        }
    }

    /// The first number of a connection that `socket` dials with an interface for `number`.
    fn dialled(socket: &mut Socket, number: TcpSeqNumber) -> TcpSeqNumber {
        let (now, mut sink) = (Instant::ZERO, Last::default());
        let (mut window, mut recovery, mut scratch) = (WindowLimit::new(0), Recovery::new(0), Vec::new());
        let mut device = OneCall {
            packet: None,
            sink: &mut sink,
            route: Route { port: PortId(0), from: Mac([2; 6]), to: Mac([4; 6]) },
            mtu: 1500,
            window: &mut window,
            recovery: &mut recovery,
            now,
            scratch: &mut scratch,
        };
        let mut interface = Interface::new(1500, number, now);
        let end = |last, port| SocketAddr::from(([10, 0, 0, last], port));
        assert!(socket.connect(&mut interface, end(2, 22), end(1, 16_000)));
        assert!(interface.send(&mut device, socket, now));
        let packet = Ipv4Packet::new_checked(&sink.0[14..]).unwrap();
        TcpPacket::new_checked(packet.payload()).unwrap().seq_number()
    }

    #[test]
    fn a_connection_begins_with_the_number() {
        let mut socket = Socket::new();
        for number in [0, 1, -1, i32::MAX, i32::MIN].into_iter().map(TcpSeqNumber) {
            assert_eq!(dialled(&mut socket, number), number);
        }
        // Among so many are some for which the lowest bits have to differ.
        for step in 0..300_000_i32 {
            let number = TcpSeqNumber(step.wrapping_mul(0x9e37_79b9_u32 as i32));
            assert_eq!(dialled(&mut socket, number), number);
        }
    }

    #[test]
    fn the_same_ends_count_up_and_others_are_elsewhere() {
        let numbers = InitialSequence(SipHasher13::new_with_keys(1, 2));
        let (guest, remote) = ("10.0.0.2:22".parse().unwrap(), "10.0.0.1:16000".parse().unwrap());
        let at = |remote, now| numbers.number(guest, remote, now);
        let (start, later) = (Instant::from_secs(5), Instant::from_secs(5) + Duration::from_millis(500));
        assert_eq!(at(remote, later) - at(remote, start), 125_000);
        let mut all: Vec<i32> =
            (0..1000).map(|port| at(SocketAddr::new(remote.ip(), port), start).0 >> 16).collect();
        all.sort_unstable();
        all.dedup();
        assert!(all.len() > 950, "{} of 1000 differ in their upper halves", all.len());
        let other = InitialSequence(SipHasher13::new_with_keys(1, 3));
        assert_ne!(other.number(guest, remote, start), at(remote, start));
    }
}
