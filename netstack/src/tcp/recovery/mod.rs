//! Loss of what is sent to a guest: what was lost, when it is sent again, how much may be under way. Owns:
//! the timer, and which of the files here hears of a segment. May not: hold bytes, or send. Read next:
//! `scoreboard.rs`, what was sent; `detection.rs`, what is lost; `../replay.rs`, how it is sent again.
//!
//! A local hypervisor loses nothing: a segment or an acknowledgement then costs a comparison and a timestamp.

mod congestion;
mod detection;
mod retransmission;
mod round_trip;
mod scoreboard;
mod send_window;

use smoltcp::wire::{TCP_HEADER_LEN, TcpPacket, TcpRepr, TcpSeqNumber};

use congestion::Congestion;
use detection::Arrivals;
use retransmission::Replay;
use round_trip::RoundTrip;
use scoreboard::{Scoreboard, State};
use send_window::SendWindow;

use crate::Instant;

/// The MSS of a guest that did not name its own (RFC 9293 3.7.1), and the smallest that smoltcp takes for
/// true, in bytes.
const DEFAULT_MSS: usize = 536;
const MIN_MSS: usize = 48;

/// What to do with a segment that the guest sent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// smoltcp takes it.
    Pass,
    /// It is for smoltcp, with this window field.
    Limit(u16),
    /// It says nothing that smoltcp could use.
    Known,
}

/// What was sent to a guest, and what became of it.
#[derive(Debug)]
pub(crate) struct Recovery {
    board: Scoreboard,
    arrivals: Arrivals,
    round_trip: Option<RoundTrip>,
    congestion: Congestion,
    send_window: SendWindow,
    /// When the SYN was sent, if that was once and nothing came after it.
    opened: Option<Instant>,
    /// The longest segment so far, in bytes.
    mss: usize,
    /// A window of this many bytes is none.
    capacity: usize,
    /// The guest acknowledges selectively.
    selective: bool,
    /// When the timer was started, how often it went off since, and whether a probe was sent.
    started: Instant,
    timeouts: u32,
    probed: bool,
    room_at_port: bool,
    /// What has arrived since the last replay, in bytes: as much may be sent again.
    credit: usize,
    replay: Option<Replay>,
    /// When the next replay may be.
    replay_at: Option<Instant>,
}

impl Recovery {
    /// `capacity` is the most that may be under way to a guest that is not [near](Self::is_near), in bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            board: Scoreboard::new(),
            arrivals: Arrivals::default(),
            round_trip: None,
            congestion: Congestion::new(capacity),
            send_window: SendWindow::new(),
            opened: None,
            mss: DEFAULT_MSS,
            capacity,
            selective: false,
            started: Instant::ZERO,
            timeouts: 0,
            probed: false,
            room_at_port: true,
            credit: 0,
            replay: None,
            replay_at: None,
        }
    }

    /// The guest's SYN or SYN-ACK.
    pub(super) fn handle_syn(&mut self, syn: &TcpRepr<'_>) {
        let mss = syn.max_seg_size.map_or(DEFAULT_MSS, usize::from).max(MIN_MSS);
        self.mss = mss.min(DEFAULT_MSS);
        self.send_window.handle_syn(syn.window_scale, mss);
        self.selective = syn.sack_permitted;
    }

    /// Whether the byte, or the SYN, with this sequence number was sent and is not acknowledged.
    pub(super) fn is_under_way(&self, seq: TcpSeqNumber) -> bool {
        self.board.edges.is_some_and(|(una, next)| {
            let first = if self.is_unanswered() { una - 1 } else { una };
            first <= seq && seq < next
        })
    }

    /// Whether a SYN was sent, and the guest has not answered it.
    fn is_unanswered(&self) -> bool {
        self.send_window.told.is_none() && self.board.is_empty()
    }

    /// The way to the guest takes segments of `mss` bytes: what is under way and longer was thrown away.
    pub(super) fn handle_path(&mut self, mss: usize, now: Instant) {
        self.mss = self.mss.min(mss);
        if self.board.is_empty() {
            return;
        }
        for run in self.board.runs.iter_mut().filter(|run| run.state != State::Sacked) {
            run.state = State::Lost;
        }
        self.board.marked = true;
        // No network is full.
        self.credit = self.credit.max(self.send_window.room());
        (self.started, self.timeouts, self.probed) = (now, 0, false);
    }

    /// Whether the guest knows of selective acknowledgements (RFC 2018).
    pub(super) fn is_selective(&self) -> bool {
        self.selective
    }

    /// A segment leaves that the guest has to acknowledge.
    pub(super) fn note_sent(&mut self, segment: &TcpPacket<&mut [u8]>, now: Instant) {
        let (seq, len) = (segment.seq_number(), segment.segment_len());
        if segment.syn() {
            self.opened = if self.board.edges.is_none() { Some(now) } else { None };
            self.board.edges = Some((seq + 1, seq + 1));
            return;
        }
        self.opened = None;
        let Some((una, next)) = self.board.edges else { return };
        let end = seq + len;
        self.mss = self.mss.max(len - usize::from(segment.fin()));
        if end <= una {
            return;
        }
        // A probe of a closed window is not sent yet, for smoltcp.
        if self.send_window.told == Some(0) {
            self.send_window.probe_end = Some(end);
            self.started = now;
            self.timeouts += 1;
            return;
        }
        if self.board.is_empty() {
            (self.started, self.timeouts, self.probed) = (now, 0, false);
        }
        if seq < next {
            self.board.mark(seq, end.min(next), |run| {
                // Of what was not lost, the first copy comes first.
                if run.state == State::Lost {
                    (run.state, run.at) = (State::Resent, now);
                }
            });
            self.started = now;
        }
        if end > next {
            self.board.extend(end, now);
        }
    }

    /// What the guest acknowledges. `is_old`: all sequence numbers of the segment were acknowledged before.
    pub(super) fn handle_ack(&mut self, segment: &TcpPacket<&[u8]>, is_old: bool, now: Instant) -> Verdict {
        let Some((una, next)) = self.board.edges.filter(|_| segment.ack() && !segment.rst()) else {
            return Verdict::Pass;
        };
        let (ack, field) = (segment.ack_number(), segment.window_len());
        let is_quiet = self.board.is_empty() && self.congestion.window.is_none() && self.opened.is_none();
        if is_quiet && ack == una && una == next && !is_old && !segment.syn() {
            // As with every segment of a guest that only sends.
            let most = self.send_window.most;
            (self.send_window.offered, self.send_window.told) = (field, Some(field.min(most)));
            return if field > most { Verdict::Limit(most) } else { Verdict::Pass };
        }
        if ack < una || ack > next {
            // smoltcp takes nothing of it, its window neither, if it is not for a probe.
            if ack > next && self.send_window.probe_end.is_some_and(|end| ack <= end) {
                self.acknowledge_probe(ack, field, now);
            }
            return Verdict::Pass;
        }
        if let Some(at) = self.opened.take() {
            self.measure(now.micros_since(at));
            self.congestion.open(now - at);
        }
        if segment.syn() {
            self.send_window.offer_unscaled(field);
            return Verdict::Pass;
        }
        let is_bare = segment.payload().is_empty() && !segment.fin();
        self.advance(segment, (una, next), is_bare && !is_old, now);
        let told = self.limited();
        let repeated =
            ack == una && self.send_window.told == Some(told) && (is_old || (is_bare && next != una));
        self.send_window.told = Some(told);
        match (repeated, told == field) {
            (true, _) => Verdict::Known,
            (false, true) => Verdict::Pass,
            (false, false) => Verdict::Limit(told),
        }
    }

    /// The probe of a closed window has arrived: smoltcp takes it for sent now.
    fn acknowledge_probe(&mut self, ack: TcpSeqNumber, field: u16, now: Instant) {
        self.board.runs.clear();
        self.settle();
        self.board.edges = Some((ack, ack));
        (self.started, self.timeouts, self.probed) = (now, 0, false);
        (self.send_window.offered, self.send_window.told) = (field, Some(field));
    }

    /// Takes note of what has arrived of all between `una` and `next`, and looks for what is lost.
    /// `may_repeat`: with nothing new in it, the acknowledgement is a duplicate.
    #[inline(always)]
    fn advance(
        &mut self,
        segment: &TcpPacket<&[u8]>,
        (una, next): (TcpSeqNumber, TcpSeqNumber),
        may_repeat: bool,
        now: Instant,
    ) {
        let (ack, field) = (segment.ack_number(), segment.window_len());
        let is_update = field != self.send_window.offered;
        let edge = una + self.send_window.room();
        self.send_window.offered = field;
        let before = self.congestion.window.map(|_| self.board.under_way());
        let mut arrived = ack - una;
        if ack > una {
            self.acknowledge(ack, now);
        }
        if usize::from(segment.header_len()) > TCP_HEADER_LEN && !self.board.is_empty() {
            arrived += self.acknowledge_ranges(segment, now);
        }
        if !self.selective {
            self.count_duplicates(ack > una, may_repeat && !is_update, next);
        }
        if arrived > 0 {
            let recovering = self.board.first_lost().is_some();
            self.credit = if recovering { self.credit + arrived } else { arrived };
            self.congestion.grow(arrived, before, self.mss);
        }
        if next > edge && ack + self.send_window.room() > edge {
            self.send_refused(edge, now);
        }
        if self.board.marked {
            self.board.merge();
            self.detect(now);
        }
        if self.board.is_empty() {
            self.settle();
        }
        if let Some((una, next)) = self.board.edges {
            self.congestion.turn_round(una, next, self.round_trip);
        }
    }

    /// Whether nothing slows down what is sent, so that more may be under way.
    pub(super) fn is_near(&self) -> bool {
        self.round_trip.is_some_and(|trip| self.congestion.is_near(trip))
    }

    /// The window field that lets smoltcp send what the two windows leave beyond what is lost.
    fn limited(&self) -> u16 {
        let fresh = self.congestion.window.map(|window| {
            // Whole segments.
            window.saturating_sub(self.board.flight() - self.board.sacked()) / self.mss * self.mss
        });
        self.send_window.limited(self.board.flight(), fresh)
    }

    /// Whether the guest took back some of what it had offered, and may refuse what has been sent (RFC 9293
    /// 3.8.6).
    fn is_shrunk(&self) -> bool {
        self.board.flight() > self.send_window.room()
    }

    /// The sequence number for a segment without data that was to have `seq`. It lies within the guest's
    /// window, or the guest would not read it.
    pub(super) fn acceptable(&self, seq: TcpSeqNumber) -> TcpSeqNumber {
        match self.board.edges.filter(|_| self.is_shrunk()) {
            Some((una, _)) => seq.min(una + self.send_window.len()),
            None => seq,
        }
    }

    /// Everything is acknowledged.
    fn settle(&mut self) {
        self.board.marked = false;
        self.arrivals.settle();
        self.congestion.settle();
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.board.is_empty()
    }

    /// When to call [`Self::handle_timeout`].
    pub(super) fn due(&self) -> Option<Instant> {
        if self.board.is_empty() || !self.room_at_port {
            return None;
        }
        let at = self.timer();
        Some(self.arrivals.look_at.map_or(at, |look_at| look_at.min(at)))
    }

    /// When to probe a closed window (RFC 9293 3.8.6.1), if that is what keeps back what there is to send.
    pub(super) fn persist_at(&self) -> Option<Instant> {
        let is_closed = self.send_window.told == Some(0) && self.board.is_empty();
        is_closed
            .then(|| self.started.after_micros(RoundTrip::timeout(self.round_trip.as_ref(), self.timeouts)))
    }

    /// Whether the timer stands still for want of room.
    pub(super) fn is_waiting_for_room(&self) -> bool {
        !self.room_at_port && !self.board.is_empty()
    }

    /// When the timer goes off.
    fn timer(&self) -> Instant {
        self.started.after_micros(match &self.round_trip {
            Some(trip) if self.may_probe() => trip.probe_timeout(),
            trip => RoundTrip::timeout(trip.as_ref(), self.timeouts),
        })
    }

    /// Whether a probe would find out sooner than a timeout. The acknowledgement of a segment alone may be
    /// delayed.
    fn may_probe(&self) -> bool {
        !self.probed && self.timeouts == 0 && self.board.flight() > self.mss && !self.is_shrunk()
    }

    /// Takes note of whether the guest can get anything, or its port takes nothing. It has all the time from
    /// when it can.
    pub(super) fn set_room(&mut self, room: bool, now: Instant) {
        if room && !self.room_at_port {
            self.started = now;
        }
        self.room_at_port = room;
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Some((_, next)) = self.board.edges.filter(|_| !self.board.is_empty()) else { return };
        if self.arrivals.look_at.is_some_and(|at| at <= now) {
            self.detect(now);
        }
        if self.timer() > now {
            return;
        }
        let is_probe = self.round_trip.is_some() && self.may_probe();
        self.started = now;
        self.board.marked = true;
        if is_probe {
            self.probed = true;
            let Some((start, end)) = self.board.last_missing() else { return };
            let start = end - (end - start).min(self.mss);
            self.board.mark(start, end, |run| run.state = State::Lost);
            self.credit = self.credit.max(self.mss);
            return;
        }
        self.timeouts += 1;
        // If the guest had what comes first, and has not acknowledged it, it has thrown that away, and maybe
        // the rest (RFC 2018 8).
        let reneged = self.board.runs.front().is_some_and(|run| run.state == State::Sacked);
        for run in self.board.runs.iter_mut().filter(|run| reneged || run.state != State::Sacked) {
            run.state = State::Lost;
        }
        self.credit = self.mss;
        // Before a closed window this probes it, and no network is full.
        if self.send_window.offered != 0 {
            self.congestion.handle_timeout(self.board.flight(), next, self.mss);
        }
    }
}
