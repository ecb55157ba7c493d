//! How much may be under way to a guest, for the sake of what lies between. Owns: the congestion window. May
//! not: know what is under way, or lost. Read next: `mod.rs`, which does.
//!
//! A local hypervisor loses nothing. There is no window until the handshake says that the guest is far away,
//! or something is lost that a bad link does not explain. A window that has grown to what may be under way is
//! none any more.

use core::time::Duration;

use smoltcp::wire::TcpSeqNumber;

use super::round_trip::RoundTrip;

/// A round trip of this length is no hypervisor's socket: something that may be slower than this side lies
/// between.
const LONG: Duration = Duration::from_millis(20);
/// The window on such a way, in bytes (RFC 6928).
const FIRST_WINDOW: usize = 14_600;
/// Slow start ends when a round trip takes an eighth longer than the shortest, within these bounds, and the
/// window has at least this many bytes (RFC 9406).
const LOW_WINDOW: usize = 16 * 1460;
const MIN_RISE: Duration = Duration::from_millis(4);
const MAX_RISE: Duration = Duration::from_millis(16);
/// A round trip that loses more than one byte in this many, and more than two segments, has met a full queue.
/// A bad link loses less at random, and needs no slowing down.
const TOLERATED: usize = 50;
/// The window's least, and where exponential growth ends at least, in segments (RFC 6928).
const MIN_SEGMENTS: usize = 4;
const MIN_THRESHOLD: usize = 10;
/// Beyond the threshold the window grows by one byte in this many that arrive.
const GROWTH: usize = 16;

/// What the window was before it was cut, and what might show that it need not have been.
#[derive(Clone, Copy, Debug)]
struct Cut {
    before: Option<usize>,
    lost: usize,
    tolerated: usize,
}

/// The round trip that is being looked at.
#[derive(Clone, Copy, Debug, Default)]
struct Round {
    /// Where it ends.
    end: Option<TcpSeqNumber>,
    least: Option<u64>,
    /// What was under way at its start and was lost since, in bytes.
    flight: usize,
    lost: usize,
}

/// The congestion window, if there is one, in bytes.
#[derive(Debug)]
pub(super) struct Congestion {
    pub(super) window: Option<usize>,
    /// Where it stops growing fast.
    threshold: usize,
    /// A window of this many bytes is none.
    capacity: usize,
    round: Round,
    cut: Option<Cut>,
    /// The window before the timeout, and up to where what was sent before it goes.
    timed_out: Option<(Option<usize>, TcpSeqNumber)>,
}

impl Congestion {
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            window: None,
            threshold: usize::MAX,
            capacity,
            round: Round::default(),
            cut: None,
            timed_out: None,
        }
    }

    /// The handshake took this long.
    pub(super) fn open(&mut self, round_trip: Duration) {
        if round_trip >= LONG {
            self.window = Some(FIRST_WINDOW);
        }
    }

    /// Whether there is no window, and a round trip says that there need not be.
    pub(super) fn is_near(&self, trip: RoundTrip) -> bool {
        self.window.is_none() && trip.smoothed() < LONG
    }

    /// A round trip took `sample` microseconds.
    pub(super) fn note_round_trip(&mut self, sample: u64) {
        self.round.least = Some(self.round.least.map_or(sample, |least| least.min(sample)));
    }

    /// So many bytes of all that is under way, `flight`, were lost.
    pub(super) fn lose(&mut self, len: usize, flight: usize, mss: usize) {
        self.round.lost += len;
        let tolerated = (self.round.flight.max(flight) / TOLERATED).max(2 * mss);
        if self.round.lost > tolerated && self.cut.is_none() {
            let window = self.window.map_or(flight, |window| window.min(flight));
            self.cut = Some(Cut { before: self.window, lost: self.round.lost, tolerated });
            self.set_window(window / 10 * 7, mss);
        } else if let Some(cut) = &mut self.cut {
            cut.lost += len;
        }
    }

    /// Bytes that were taken for lost were only late.
    pub(super) fn was_not_lost(&mut self, len: usize) {
        self.round.lost = self.round.lost.saturating_sub(len);
        if let Some(cut) = &mut self.cut {
            cut.lost = cut.lost.saturating_sub(len);
            if cut.lost <= cut.tolerated {
                self.window = cut.before;
                self.cut = None;
            }
        }
    }

    /// All that is under way, `flight`, is taken for lost. It ends at `next`.
    pub(super) fn handle_timeout(&mut self, flight: usize, next: TcpSeqNumber, mss: usize) {
        if self.timed_out.is_none() {
            self.timed_out = Some((self.window, next));
            self.set_window(flight / 10 * 7, mss);
        }
        self.window = Some(mss);
    }

    /// The timeout was for nothing. Says whether there was one.
    pub(super) fn undo_timeout(&mut self) -> bool {
        let before = self.timed_out.take();
        if let Some((window, _)) = before {
            self.window = window;
        }
        before.is_some()
    }

    /// All before `ack` has arrived.
    pub(super) fn acknowledge(&mut self, ack: TcpSeqNumber) {
        if self.timed_out.is_some_and(|(_, until)| ack >= until) {
            self.timed_out = None;
        }
    }

    /// Everything is acknowledged.
    pub(super) fn settle(&mut self) {
        self.timed_out = None;
    }

    /// Cuts the window (RFC 9438: to 0.7).
    fn set_window(&mut self, window: usize, mss: usize) {
        self.threshold = window.max(MIN_THRESHOLD * mss);
        self.window = Some(window.max(MIN_SEGMENTS * mss));
    }

    /// So many bytes have arrived. `before` is what was under way when the window had to be looked at.
    pub(super) fn grow(&mut self, arrived: usize, before: Option<usize>, mss: usize) {
        let (Some(window), Some(before)) = (self.window, before) else { return };
        if before + 2 * mss < window {
            return;
        }
        let window = window + if window < self.threshold { arrived } else { arrived / GROWTH };
        self.window = (window < self.capacity).then_some(window);
    }

    /// Begins another round trip, if this one is over.
    pub(super) fn turn_round(&mut self, una: TcpSeqNumber, next: TcpSeqNumber, trip: Option<RoundTrip>) {
        if self.round.end.is_some_and(|end| una < end) {
            return;
        }
        let rises = |trip: RoundTrip| {
            let rise = (trip.least() / 8).clamp(MIN_RISE, MAX_RISE);
            self.round.least.is_some_and(|least| Duration::from_micros(least) > trip.least() + rise)
        };
        if let Some(window) = self.window.filter(|window| *window >= LOW_WINDOW && trip.is_some_and(rises)) {
            self.threshold = self.threshold.min(window);
        }
        self.round = Round { end: Some(next), least: None, flight: next - una, lost: 0 };
        self.cut = None;
    }
}
