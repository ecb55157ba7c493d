//! What acknowledgements say of losses: RACK (RFC 8985), and duplicate acknowledgements of a guest without
//! selective ones (RFC 6582). Owns: what is remembered of arrivals. May not: send. Read next:
//! `scoreboard.rs`, where the result is.

use core::time::Duration;

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::Recovery;
use super::round_trip::RoundTrip;
use super::scoreboard::{Run, State};

use crate::Instant;

/// Segments acknowledged out of order that say that one before them is lost (RFC 6675 DupThresh).
const DUP_THRESH: usize = 3;
/// Runs that one segment's ranges may add.
const MORE_RUNS: usize = 8;

/// What has arrived.
#[derive(Debug, Default)]
pub(super) struct Arrivals {
    /// Of that, what was sent last: when, and up to where (RFC 8985 6.2).
    newest: Option<(Instant, TcpSeqNumber)>,
    /// The same of what was sent more than once. The first copy may have arrived, so this says nothing of
    /// others.
    newest_again: Option<(Instant, TcpSeqNumber)>,
    /// Up to where anything has.
    highest: Option<TcpSeqNumber>,
    /// Quarters of a round trip by which segments overtake each other, or 0.
    reordering: u32,
    /// When to look for losses again.
    pub(super) look_at: Option<Instant>,
    /// Acknowledgements that said nothing new, in a row.
    duplicates: usize,
}

impl Arrivals {
    /// Everything is acknowledged.
    pub(super) fn settle(&mut self) {
        self.look_at = None;
        (self.newest, self.newest_again) = (None, None);
    }
}

impl Recovery {
    /// All before `ack` has arrived.
    pub(super) fn acknowledge(&mut self, ack: TcpSeqNumber, now: Instant) {
        let mut fresh: Option<Instant> = None;
        while let Some((start, run)) = self.board.pop(ack) {
            self.arrive(start, run, now, &mut fresh);
        }
        let highest = &mut self.arrivals.highest;
        *highest = Some(highest.map_or(ack, |highest| highest.max(ack)));
        self.arrivals.duplicates = 0;
        (self.started, self.timeouts, self.probed) = (now, 0, false);
        if let Some(at) = fresh {
            self.measure(now.micros_since(at));
        }
        self.congestion.acknowledge(ack);
    }

    /// What the guest has beyond the first gap (RFC 2018), and what it had twice (RFC 2883). Says how many
    /// bytes are new.
    pub(super) fn acknowledge_ranges(&mut self, segment: &TcpPacket<&[u8]>, now: Instant) -> usize {
        let Ok(options) = segment.options_summary() else { return 0 };
        let mut arrived = 0;
        let mut fresh = None;
        // Believing less is safe.
        if !self.board.has_space(MORE_RUNS) {
            return 0;
        }
        for (number, (left, right)) in options.sack_ranges.into_iter().flatten().enumerate() {
            let (left, right) = (TcpSeqNumber(left as i32), TcpSeqNumber(right as i32));
            let Some((una, next)) = self.board.edges else { break };
            if right <= left || right > next {
                continue;
            }
            if left < una {
                if number == 0 && right <= una && una - left < self.capacity {
                    self.was_not_lost(right - left);
                }
                continue;
            }
            let mut news = Vec::new();
            let mut start = left;
            self.board.mark(left, right, |run| {
                if run.state != State::Sacked {
                    news.push((start, *run));
                    run.state = State::Sacked;
                }
                start = run.end;
            });
            for (start, run) in news {
                arrived += run.end - start;
                self.arrive(start, run, now, &mut fresh);
            }
        }
        if let Some(at) = fresh {
            self.measure(now.micros_since(at));
        }
        arrived
    }

    /// `run`, from `start`, has arrived. `fresh` is when the last was sent of those that were sent once.
    fn arrive(&mut self, start: TcpSeqNumber, run: Run, now: Instant, fresh: &mut Option<Instant>) {
        let len = run.end - start;
        match run.state {
            State::Sacked => return,
            State::Lost => {
                self.was_not_lost(len);
                if self.congestion.undo_timeout() {
                    for run in self.board.runs.iter_mut().filter(|run| run.state == State::Lost) {
                        run.state = State::Sent;
                    }
                }
            }
            State::Resent => {
                // Sooner than a second copy can: this is the first.
                if self.round_trip.is_some_and(|trip| now - run.at < trip.least().max(trip.smoothed() / 2)) {
                    self.was_not_lost(len);
                    return;
                }
            }
            State::Sent => {
                *fresh = Some(fresh.map_or(run.at, |at| at.max(run.at)));
                if self.arrivals.highest.is_some_and(|highest| run.end < highest) {
                    self.arrivals.reordering = self.arrivals.reordering.max(1);
                }
            }
        }
        let arrivals = &mut self.arrivals;
        let newest = match run.state {
            State::Resent => &mut arrivals.newest_again,
            State::Sent | State::Sacked | State::Lost => &mut arrivals.newest,
        };
        if newest.is_none_or(|newest| newest < (run.at, run.end)) {
            *newest = Some((run.at, run.end));
            if let Some(trip) = self.round_trip.as_mut().filter(|_| run.state != State::Resent) {
                trip.set_latest(now.micros_since(run.at));
            }
        }
        arrivals.highest = Some(arrivals.highest.map_or(run.end, |highest| highest.max(run.end)));
    }

    /// What was taken for lost was only late.
    fn was_not_lost(&mut self, len: usize) {
        self.arrivals.reordering = (self.arrivals.reordering + 1).min(16);
        self.congestion.was_not_lost(len);
    }

    /// A round trip took `sample` microseconds.
    pub(super) fn measure(&mut self, sample: u64) {
        let sample = sample.max(1);
        self.congestion.note_round_trip(sample);
        match &mut self.round_trip {
            Some(trip) => trip.add(sample),
            None => self.round_trip = Some(RoundTrip::new(sample)),
        }
    }

    /// A guest without selective acknowledgements (RFC 6582). `next` is where what was sent ended before this
    /// acknowledgement.
    pub(super) fn count_duplicates(&mut self, progress: bool, duplicate: bool, next: TcpSeqNumber) {
        // Before a window that was taken back a duplicate answers a probe.
        let is_open = !self.board.is_empty() && !self.is_shrunk();
        let Some((una, _)) = self.board.edges.filter(|_| is_open) else { return };
        let arrivals = &mut self.arrivals;
        let partial = progress && arrivals.highest.is_some_and(|highest| una < highest);
        if duplicate && !progress {
            arrivals.duplicates += 1;
        }
        if partial || arrivals.duplicates == DUP_THRESH {
            if arrivals.duplicates == DUP_THRESH {
                arrivals.highest = Some(next);
                arrivals.duplicates += 1;
            }
            let end = (una + self.mss).min(next);
            self.board.mark(una, end, |run| run.state = State::Lost);
            self.congestion.lose(end - una, self.board.flight(), self.mss);
        }
    }

    /// Looks for what must have arrived before what did (RFC 8985 6.2).
    pub(super) fn detect(&mut self, now: Instant) {
        self.arrivals.look_at = None;
        let (Some(trip), Some((una, _))) = (self.round_trip, self.board.edges) else { return };
        let wait = trip.latest() + self.patience(trip);
        let (arrivals, board) = (&mut self.arrivals, &mut self.board);
        let (mut start, mut lost) = (una, 0);
        board.marked = false;
        for run in &mut board.runs {
            let is_before = |at: Option<(Instant, TcpSeqNumber)>| at.is_some_and(|at| (run.at, run.end) < at);
            let overtaken = match run.state {
                State::Sent => is_before(arrivals.newest),
                State::Resent => is_before(arrivals.newest) || is_before(arrivals.newest_again),
                State::Sacked | State::Lost => false,
            };
            if overtaken {
                let late = run.at + wait;
                if late <= now {
                    run.state = State::Lost;
                    lost += run.end - start;
                } else {
                    arrivals.look_at = Some(arrivals.look_at.map_or(late, |at| at.min(late)));
                }
            }
            board.marked |= run.state != State::Sent;
            start = run.end;
        }
        if lost > 0 {
            self.congestion.lose(lost, self.board.flight(), self.mss);
        }
    }

    /// How late a segment may be.
    fn patience(&self, trip: RoundTrip) -> Duration {
        let quarter = trip.least() / 4;
        if self.arrivals.reordering > 0 {
            return (quarter * self.arrivals.reordering).min(trip.smoothed());
        }
        let sacked = self.board.sacked();
        let recovering = self.board.runs.iter().any(|run| matches!(run.state, State::Lost | State::Resent));
        if recovering || sacked >= DUP_THRESH * self.mss { Duration::ZERO } else { quarter }
    }
}
