//! The window that a guest is offered. Owns: how the flows of one port share its budget. Read next:
//! `device.rs`, which applies it.
//!
//! What a guest may send without an answer queues in its network interface, and a queue that overflows costs
//! retransmissions: a Linux tap drops past 500 to 1,000 frames. So each port has a budget that its busy flows
//! share. smoltcp offers what the ring has room for. The limit is applied to the segment on its way out. A
//! window once offered is never taken back (RFC 9293 3.8.6), so a smaller share takes effect as the flow uses
//! up what it was offered.

use core::time::Duration;

use smoltcp::wire::{TcpPacket, TcpRepr, TcpSeqNumber};

use super::memory::Pressure;

use crate::Instant;

/// Frames that may be on their way from a guest to a port at a time: measured, see docs/decisions.md. How
/// many bytes that is depends on the size of the guest's frames, whatever it was offered.
const BUDGET_FRAMES: usize = 700;
/// Bytes of the longest packet of a guest that did not name its MSS.
const ASSUMED_PACKET: usize = 1500;
/// Bytes of an IPv4 and a TCP header without options: what an MSS leaves out (RFC 6691).
pub(super) const HEADERS: usize = 40;
/// smoltcp takes no smaller MSS for true, in bytes.
const MIN_MSS: usize = 48;
/// The budget's bounds, in bytes.
const MIN_BUDGET: usize = 256 << 10;
const MAX_BUDGET: usize = 4 << 20;
/// A flow gets at least this much, however many there are, in bytes.
const MIN_SHARE: usize = 32 << 10;
/// Units of the window field that smoltcp would take beyond what a guest is offered: reserved for rounding up
/// what was promised.
const RESERVE: usize = 256;
/// A flow that sent within this time or the one before it is busy.
const EPOCH: Duration = Duration::from_millis(50);

/// Who has been using a port's budget.
#[derive(Debug)]
pub(crate) struct WindowBudget {
    epoch: u32,
    started: Instant,
    busy: usize,
    busy_before: usize,
}

impl WindowBudget {
    pub(crate) fn new(now: Instant) -> Self {
        Self { epoch: 0, started: now, busy: 0, busy_before: 0 }
    }

    /// Counts the flow that `limit` belongs to as busy.
    pub(super) fn count(&mut self, limit: &mut WindowLimit, pressure: Pressure, now: Instant) {
        self.roll(now);
        if limit.epoch != Some(self.epoch) {
            let is_first = limit.epoch.replace(self.epoch).is_none();
            self.busy += 1;
            if is_first {
                // What the answer to it offers is never taken back.
                self.share(limit, pressure, now);
            }
        }
    }

    /// Gives the flow that `limit` belongs to its share, which is all if it never sent something.
    #[inline]
    pub(super) fn share(&mut self, limit: &mut WindowLimit, pressure: Pressure, now: Instant) {
        if pressure != Pressure::Low {
            limit.share = pressure.allowance().min(MIN_SHARE);
        } else if limit.epoch.is_none() {
            limit.share = limit.capacity;
        } else {
            self.roll(now);
            let bytes = (limit.packet * BUDGET_FRAMES).clamp(MIN_BUDGET, MAX_BUDGET);
            limit.share = (bytes / self.busy.max(self.busy_before).max(1)).max(MIN_SHARE);
        }
    }

    fn roll(&mut self, now: Instant) {
        if now > self.started + EPOCH {
            self.busy_before = if now > self.started + EPOCH * 2 { 0 } else { self.busy };
            self.busy = 0;
            self.started = now;
            self.epoch = self.epoch.wrapping_add(1);
        }
    }
}

/// What one flow has offered and may offer.
#[derive(Debug)]
pub(crate) struct WindowLimit {
    /// Bytes that may be in the ring and on their way.
    share: usize,
    /// Size of the ring.
    capacity: usize,
    /// Bytes of the longest IP packet of the flow, either way.
    packet: usize,
    /// RFC 7323 shift of the window field, both sides having offered one.
    shift: u8,
    /// The sequence number up to which the guest may send.
    edge: Option<TcpSeqNumber>,
    /// The sequence number up to which smoltcp takes what is sent.
    accepted: Option<TcpSeqNumber>,
    /// The last segment's acknowledgement, and the sequence number that follows it.
    last: Option<(TcpSeqNumber, TcpSeqNumber)>,
    epoch: Option<u32>,
}

impl WindowLimit {
    pub(crate) fn new(capacity: usize) -> Self {
        let packet = ASSUMED_PACKET;
        Self {
            share: capacity,
            capacity,
            packet,
            shift: 0,
            edge: None,
            accepted: None,
            last: None,
            epoch: None,
        }
    }

    /// The guest's SYN, or SYN-ACK, says whether windows are scaled, and how long its segments are. `mtu` is
    /// what this side said.
    pub(crate) fn handle_syn(&mut self, syn: &TcpRepr<'_>, mtu: u16) {
        let log2 = usize::BITS - self.capacity.leading_zeros();
        self.shift = if syn.window_scale.is_some() { log2.saturating_sub(16) as u8 } else { 0 };
        let named = syn.max_seg_size.filter(|mss| *mss != 0);
        let packet = named.map_or(ASSUMED_PACKET, |mss| usize::from(mss).max(MIN_MSS) + HEADERS);
        self.packet = packet.min(usize::from(mtu));
    }

    /// Bytes of the longest IP packet of the flow: the smaller of what the two ends named.
    pub(super) fn packet(&self) -> usize {
        self.packet
    }

    /// The way to the guest takes no longer packets.
    pub(super) fn limit_packet(&mut self, mtu: u16) {
        self.packet = self.packet.min(usize::from(mtu));
    }

    /// Lowers the window of a segment that smoltcp made to what the share leaves.
    pub(super) fn apply(&mut self, segment: &mut TcpPacket<&mut [u8]>) {
        if segment.rst() || !segment.ack() {
            return;
        }
        let ack = segment.ack_number();
        let next = segment.seq_number() + segment.segment_len();
        self.last = Some((self.last.map_or(next, |(before, _)| before.max(next)), ack));
        let shift = if segment.syn() { 0 } else { self.shift };
        let room = usize::from(segment.window_len()) << shift;
        self.accepted = Some(ack + room);
        let held = self.capacity.min(usize::from(u16::MAX) << shift).saturating_sub(room);
        let window = self.window(ack, held, shift);
        segment.set_window_len(window);
        self.edge = Some(self.promised(ack, usize::from(window) << shift));
    }

    /// Bytes that the guest may send, beyond what is acknowledged to it.
    pub(super) fn offered(&self) -> usize {
        self.ahead(self.edge)
    }

    /// Bytes up to `end`, beyond what is acknowledged to the guest.
    pub(super) fn ahead(&self, end: Option<TcpSeqNumber>) -> usize {
        self.acknowledged().map_or(0, |ack| distance(ack, end))
    }

    /// The last acknowledgement that went out.
    pub(super) fn acknowledged(&self) -> Option<TcpSeqNumber> {
        self.last.map(|(_, ack)| ack)
    }

    /// The window field for a ring with `held` bytes in it.
    fn window(&self, ack: TcpSeqNumber, held: usize, shift: u8) -> u16 {
        let (promised, accepted) = (distance(ack, self.edge), distance(ack, self.accepted));
        let reserve = if shift == 0 { 0 } else { RESERVE << shift };
        let mut field = accepted.saturating_sub(reserve).min(self.share.saturating_sub(held)) >> shift;
        if field << shift < promised {
            // What is promised may end between two multiples. When the reserve is used up, the edge moves
            // back by less than one unit, as RFC 7323 2.4 has it.
            field = (promised >> shift) + usize::from(promised % (1 << shift) != 0);
            field = field.min(accepted >> shift);
        }
        u16::try_from(field).unwrap_or(u16::MAX)
    }

    /// The last sequence number with which smoltcp takes a segment without data.
    pub(super) fn acceptable(&self) -> Option<TcpSeqNumber> {
        let (ack, accepted) = (self.acknowledged()?, self.accepted?);
        Some(if accepted > ack { accepted - 1 } else { ack })
    }

    /// Whether a segment that ends at `end` goes past what smoltcp takes. smoltcp would believe a FIN in it,
    /// and cut the bytes before that.
    pub(super) fn is_past(&self, end: TcpSeqNumber) -> bool {
        self.accepted.is_some_and(|accepted| end > accepted)
    }

    /// Whether a segment that ends at `end` goes past the ring. After its SYN smoltcp believes that it
    /// offered 65,535 units, where it offered as many bytes, and would keep what has no place.
    pub(super) fn is_past_ring(&self, end: TcpSeqNumber) -> bool {
        self.acknowledged().is_some_and(|ack| end > ack + self.capacity)
    }

    fn promised(&self, ack: TcpSeqNumber, window: usize) -> TcpSeqNumber {
        let edge = ack + window;
        self.edge.map_or(edge, |before| before.max(edge))
    }

    /// Whether a segment is no keep-alive, and acknowledges all that was sent but the last sequence number.
    pub(super) fn is_repeated(&self, seq: TcpSeqNumber, ack: TcpSeqNumber) -> bool {
        self.last.is_some_and(|(next, acknowledged)| ack + 1 == next && seq >= acknowledged)
    }

    /// Whether the guest has used up most of what it was offered, and the ring, with `held` bytes in it, has
    /// room again. smoltcp does not know, since it offered more.
    pub(super) fn wants_update(&self, held: usize) -> bool {
        let (Some((_, ack)), Some(_), Some(_)) = (self.last, self.edge, self.accepted) else {
            return false;
        };
        let share = self.share.min(self.capacity);
        let free = share.saturating_sub(held).min(distance(ack, self.accepted));
        free >= share / 2 && distance(ack, self.edge) < free / 2
    }

    /// Sequence and acknowledgement number, and the window field, of a segment that only updates the window.
    pub(super) fn update(&mut self, held: usize) -> Option<(TcpSeqNumber, TcpSeqNumber, u16)> {
        let (seq, ack) = self.last?;
        let window = self.window(ack, held, self.shift);
        self.edge = Some(self.promised(ack, usize::from(window) << self.shift));
        Some((seq, ack, window))
    }
}

/// Bytes from `ack` to `end`, if that is beyond it.
fn distance(ack: TcpSeqNumber, end: Option<TcpSeqNumber>) -> usize {
    end.filter(|end| *end > ack).map_or(0, |end| end - ack)
}
