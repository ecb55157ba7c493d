//! What of the lost may be sent again now. Owns: how much leaves at a time, and what the guest takes. May
//! not: make a segment. Read next: `../replay.rs`, which has smoltcp make them.

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::Recovery;
use super::scoreboard::State;

use crate::Instant;

/// smoltcp repeats what it has.
#[derive(Clone, Copy, Debug)]
pub(super) struct Replay {
    /// Bytes that may still be sent again.
    left: usize,
    /// Up to where it has repeated.
    end: Option<TcpSeqNumber>,
    /// The last acknowledgement that was held back.
    held_back: Option<TcpSeqNumber>,
}

impl Recovery {
    /// Whether something is to be sent again, and may be.
    pub(in super::super) fn wants_replay(&self) -> bool {
        let Some(start) = self.board.first_lost().filter(|_| self.room_at_port) else { return false };
        let Some((_, next)) = self.board.edges else { return false };
        self.fits(start, (start + self.mss).min(next)) && self.allowance() > 0
    }

    /// Whether the guest takes what is between two sequence numbers, or it is to say whether it does.
    fn fits(&self, left: TcpSeqNumber, right: TcpSeqNumber) -> bool {
        self.board.edges.is_some_and(|(una, _)| left <= una || right <= una + self.send_window.room())
    }

    /// Bytes that may be sent again: what the window leaves, and no more than has arrived and one segment
    /// (RFC 6937).
    fn allowance(&self) -> usize {
        let window = self.congestion.window;
        let room = window.map_or(usize::MAX, |window| window.saturating_sub(self.board.under_way()));
        room.min(self.credit + self.mss)
    }

    /// The window, which ended at `edge`, goes further. What was sent past that, and has had the time to
    /// arrive, was refused.
    pub(super) fn send_refused(&mut self, edge: TcpSeqNumber, now: Instant) {
        let (Some((_, next)), Some(trip)) = (self.board.edges, self.round_trip) else { return };
        self.board.mark(edge, next, |run| {
            if matches!(run.state, State::Sent | State::Resent) && run.at + trip.smoothed() <= now {
                run.state = State::Lost;
            }
        });
        // No network lost it. There is room for so much.
        self.credit = self.credit.max(self.send_window.room());
        (self.started, self.timeouts, self.probed) = (now, 0, false);
    }

    /// When everything may be repeated; `reserve` says when so many segments may be.
    pub(in super::super) fn replay_at(&mut self, reserve: impl FnOnce(usize) -> Instant) -> Instant {
        let segments = self.board.flight().div_ceil(self.mss);
        *self.replay_at.get_or_insert_with(|| reserve(segments))
    }

    /// smoltcp begins to repeat. Says up to which sequence number it has to.
    pub(in super::super) fn begin_replay(&mut self) -> Option<TcpSeqNumber> {
        let (_, next) = self.board.edges?;
        self.replay_at = None;
        self.replay = Some(Replay { left: self.allowance(), end: None, held_back: None });
        self.credit = 0;
        Some(next)
    }

    pub(in super::super) fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Whether smoltcp has more to repeat before `end`.
    pub(in super::super) fn is_replaying_before(&self, end: TcpSeqNumber) -> bool {
        self.replay.is_some_and(|replay| replay.end.is_none_or(|at| at < end))
    }

    /// Whether a repeated segment leaves, if there is room for it. If it does not, neither does the
    /// acknowledgement that it carries.
    pub(in super::super) fn admits(&mut self, segment: &TcpPacket<&mut [u8]>, room: bool) -> bool {
        let (seq, len) = (segment.seq_number(), segment.segment_len());
        let end = seq + len;
        let Some(mut replay) = self.replay else { return true };
        let wanted = room && replay.left > 0 && self.board.has_lost(seq, end) && self.fits(seq, end);
        if wanted {
            replay.left = replay.left.saturating_sub(len);
        } else {
            replay.held_back = Some(segment.ack_number());
            // smoltcp may put new bytes behind the last that it repeats, and takes them for sent.
            if self.board.edges.is_some_and(|(_, next)| end > next) {
                self.board.extend_lost(end, self.started);
            }
        }
        replay.end = Some(end);
        self.replay = Some(replay);
        wanted
    }

    /// Says what the last acknowledgement was that was held back.
    pub(in super::super) fn end_replay(&mut self) -> Option<TcpSeqNumber> {
        self.replay.take()?.held_back
    }
}
