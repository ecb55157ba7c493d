//! Loss of what is sent to a guest: what was lost, what is sent again, how much may be under way. Owns: the scoreboard, the
//! timers of RFC 8985 and 6298, the congestion window. May not: hold bytes, or send. Read next: `replay.rs`, how it is sent again.
//!
//! A local hypervisor loses nothing: until the first loss
//! there is no congestion window, and a segment or an acknowledgement costs a comparison and a timestamp.

use std::collections::VecDeque;

use smoltcp::time::{Duration, Instant};
use smoltcp::wire::{TcpPacket, TcpSeqNumber};

/// Runs at most; a guest that tells of more is believed to have received less.
const MAX_RUNS: usize = 2048;
/// Segments under way at most: as many are made when one is repeated.
const MAX_FLIGHT: usize = 4096;
/// Of a guest that did not name its own (RFC 9293 3.7.1), and the smallest that smoltcp takes for true, in bytes.
const DEFAULT_MSS: usize = 536;
const MIN_MSS: usize = 48;
/// Before a round trip was measured (RFC 6298 2.1).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// What the timeout is longer than a round trip, at least: a guest delays an acknowledgement for 40 ms, and Linux waits as long.
const MIN_MARGIN: Duration = Duration::from_millis(200);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// What a probe (RFC 8985 7.2) waits beside two round trips: a guest's processor may be busy elsewhere.
const PROBE_MARGIN: Duration = Duration::from_millis(10);
/// A round trip of this length is no hypervisor's socket: there is something between that may be slower than this side.
const LONG: Duration = Duration::from_millis(20);
/// The window on such a way, in bytes (RFC 6928).
const FIRST_WINDOW: usize = 14_600;
/// Slow start ends when a round trip takes an eighth longer than the shortest, within these bounds, and the window is as large as
/// this, in bytes (RFC 9406).
const LOW_WINDOW: usize = 16 * 1460;
const MIN_RISE: Duration = Duration::from_millis(4);
const MAX_RISE: Duration = Duration::from_millis(16);
/// Segments acknowledged out of order that say that one before them is lost (RFC 6675 DupThresh).
const DUP_THRESH: usize = 3;
/// A round trip that loses more than one byte in this many, and more than two segments, has met a full queue. What a bad
/// link loses at random is less, and needs no slowing down.
const TOLERATED: usize = 50;
/// The window's least, and where exponential growth ends at least, in segments (RFC 6928).
const MIN_SEGMENTS: usize = 4;
const MIN_THRESHOLD: usize = 10;
/// Beyond the threshold the window grows by one byte in this many that arrive.
const GROWTH: usize = 16;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Sent,
    /// Sent more than once.
    Resent,
    /// The guest has it, but not all before it.
    Sacked,
    /// To be sent again.
    Lost,
}

/// Sequence numbers that were sent at the same time, from the end of the run before.
#[derive(Clone, Copy, Debug)]
struct Run {
    end: TcpSeqNumber,
    at: Instant,
    state: State,
}

/// What the window was before it was cut, and what might show that it need not have been.
#[derive(Clone, Copy, Debug)]
struct Cut {
    before: Option<usize>,
    lost: usize,
    tolerated: usize,
}

/// The round trips that were measured (RFC 6298).
#[derive(Clone, Copy, Debug)]
struct RoundTrip {
    smoothed: Duration,
    variation: Duration,
    least: Duration,
    latest: Duration,
}

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

/// What was sent and is not acknowledged.
#[derive(Debug)]
pub(crate) struct Recovery {
    runs: VecDeque<Run>,
    /// Where the first run begins, and where the last ends; `None` before the SYN was sent.
    edges: Option<(TcpSeqNumber, TcpSeqNumber)>,
    /// When the SYN was sent, if that was once and nothing came after it.
    opened: Option<Instant>,
    /// The longest segment so far, in bytes.
    mss: usize,
    /// A window of this many bytes is none.
    capacity: usize,
    /// RFC 7323 shift of the guest's window field.
    shift: u8,
    /// The guest acknowledges selectively.
    selective: bool,
    /// The window field that the guest sent last.
    offered: u16,
    /// The largest that smoltcp is given.
    most: u16,
    /// The one that smoltcp was given.
    field: Option<u16>,
    /// Where the last probe of a closed window ends.
    probe_end: Option<TcpSeqNumber>,
    /// Some run is not [`State::Sent`].
    marked: bool,
    round_trip: Option<RoundTrip>,
    /// Of what has arrived, what was sent last: when, and up to where (RFC 8985 6.2).
    newest: Option<(Instant, TcpSeqNumber)>,
    /// The same of what was sent more than once. It may have been the first copy that arrived, so this says nothing of others.
    newest_again: Option<(Instant, TcpSeqNumber)>,
    /// Up to where anything has arrived.
    highest: Option<TcpSeqNumber>,
    /// Quarters of a round trip by which segments overtake each other, or 0.
    reordering: u32,
    /// When to look for losses again.
    look_at: Option<Instant>,
    /// When the timer was started, how often it went off since, and whether a probe was sent.
    started: Instant,
    timeouts: u32,
    probed: bool,
    room_at_port: bool,
    duplicates: usize,
    /// The congestion window, if there is one, and where it stops growing fast.
    window: Option<usize>,
    threshold: usize,
    /// What has arrived since the last replay, in bytes: as much may be sent again.
    credit: usize,
    /// Where the current round trip ends, and what was under way at its start and was lost since, in bytes.
    round_end: Option<TcpSeqNumber>,
    round_least: Option<Duration>,
    round_flight: usize,
    round_lost: usize,
    cut: Option<Cut>,
    /// The window before the timeout, and up to where what was sent before it goes.
    timed_out: Option<(Option<usize>, TcpSeqNumber)>,
    replay: Option<Replay>,
    /// When the next replay may be.
    replay_at: Option<Instant>,
}

/// smoltcp repeats what it has.
#[derive(Clone, Copy, Debug)]
struct Replay {
    /// Bytes that may still be sent again.
    left: usize,
    /// Up to where it has repeated.
    end: Option<TcpSeqNumber>,
    /// The last acknowledgement that was held back.
    held_back: Option<TcpSeqNumber>,
}

impl Recovery {
    /// `capacity` is the most that may be under way to a guest that is not [near](Self::is_near), in bytes.
    pub(super) fn new(capacity: usize) -> Self {
        Self {
            runs: VecDeque::new(),
            edges: None,
            opened: None,
            mss: DEFAULT_MSS,
            capacity,
            shift: 0,
            selective: false,
            offered: 0,
            most: u16::MAX,
            field: None,
            probe_end: None,
            marked: false,
            round_trip: None,
            newest: None,
            newest_again: None,
            highest: None,
            reordering: 0,
            look_at: None,
            started: Instant::ZERO,
            timeouts: 0,
            probed: false,
            room_at_port: true,
            duplicates: 0,
            window: None,
            threshold: usize::MAX,
            credit: 0,
            round_end: None,
            round_least: None,
            round_flight: 0,
            round_lost: 0,
            cut: None,
            timed_out: None,
            replay: None,
            replay_at: None,
        }
    }

    /// The guest's SYN or SYN-ACK.
    pub(super) fn handle_syn<T: AsRef<[u8]> + ?Sized>(&mut self, syn: &TcpPacket<&T>) {
        let Ok(options) = syn.options_summary() else { return };
        self.shift = options.window_scale.unwrap_or(0).min(14);
        let mss = options.max_segment_size.map_or(DEFAULT_MSS, usize::from).max(MIN_MSS);
        self.mss = mss.min(DEFAULT_MSS);
        let most = (mss * MAX_FLIGHT) >> self.shift;
        self.most = u16::try_from(most).unwrap_or(u16::MAX);
        self.selective = options.sack_permitted;
    }

    /// Whether the guest knows of selective acknowledgements (RFC 2018).
    pub(super) fn is_selective(&self) -> bool {
        self.selective
    }

    /// A segment leaves that the guest has to acknowledge.
    pub(super) fn note_sent(&mut self, segment: &TcpPacket<&mut [u8]>, now: Instant) {
        let (seq, len) = (segment.seq_number(), segment.segment_len());
        if segment.syn() {
            self.opened = if self.edges.is_none() { Some(now) } else { None };
            self.edges = Some((seq + 1, seq + 1));
            return;
        }
        self.opened = None;
        let Some((una, next)) = self.edges else { return };
        let end = seq + len;
        self.mss = self.mss.max(len - usize::from(segment.fin()));
        if end <= una {
            return;
        }
        // A probe of a closed window is not sent yet, for smoltcp: its timer is another one.
        if self.field == Some(0) {
            self.probe_end = Some(end);
            return;
        }
        if self.runs.is_empty() {
            self.started = now;
        }
        if seq < next {
            self.mark(seq, end.min(next), |run| {
                // Of what was not lost, the first copy comes first.
                if run.state == State::Lost {
                    (run.state, run.at) = (State::Resent, now);
                }
            });
            self.started = now;
        }
        if end > next {
            let full = self.runs.len() >= MAX_RUNS;
            match self.runs.back_mut() {
                Some(last) if last.state == State::Sent && (last.at == now || full) => last.end = end,
                _ => self.runs.push_back(Run { end, at: now, state: State::Sent }),
            }
            self.edges = Some((una, end));
        }
    }

    /// What the guest acknowledges. `is_old`: it sent all of the segment's bytes before, and they were acknowledged.
    pub(super) fn handle_ack(&mut self, segment: &TcpPacket<&[u8]>, is_old: bool, now: Instant) -> Verdict {
        let Some((una, next)) = self.edges.filter(|_| segment.ack() && !segment.rst()) else {
            return Verdict::Pass;
        };
        let ack = segment.ack_number();
        let is_quiet = self.runs.is_empty() && self.window.is_none() && self.opened.is_none();
        if is_quiet && ack == una && una == next && !is_old && !segment.syn() {
            // As with every segment of a guest that only sends.
            self.offered = segment.window_len();
            self.field = Some(self.offered.min(self.most));
            return if self.offered > self.most { Verdict::Limit(self.most) } else { Verdict::Pass };
        }
        if ack < una || ack > next {
            // smoltcp takes nothing of it, its window neither, if it is not for a probe.
            if ack > next && self.probe_end.is_some_and(|end| ack <= end) {
                self.runs.clear();
                self.settle();
                self.edges = Some((ack, ack));
                self.offered = segment.window_len();
                self.field = Some(self.offered);
            }
            return Verdict::Pass;
        }
        if let Some(at) = self.opened.take() {
            self.measure(now - at);
            if now - at >= LONG {
                self.window = Some(FIRST_WINDOW);
            }
        }
        if segment.syn() {
            // Not scaled, on a SYN (RFC 7323 2.2).
            self.offered = segment.window_len().div_ceil(1 << self.shift);
            return Verdict::Pass;
        }
        let is_update = segment.window_len() != self.offered;
        let edge = una + self.room();
        self.offered = segment.window_len();
        let bare = segment.payload().is_empty() && !segment.fin();
        let before = self.window.map(|_| self.under_way());
        let mut arrived = ack - una;
        if ack > una {
            self.acknowledge(ack, now);
        }
        if usize::from(segment.header_len()) > smoltcp::wire::TCP_HEADER_LEN && !self.runs.is_empty() {
            arrived += self.selectively(segment, now);
        }
        if !self.selective {
            self.count_duplicates(ack > una, bare && !is_old && !is_update, next);
        }
        if arrived > 0 {
            self.credit = if self.marked && self.lost() > 0 { self.credit + arrived } else { arrived };
            self.grow(arrived, before);
        }
        if next > edge && ack + self.room() > edge {
            self.send_refused(edge, now);
        }
        if self.marked {
            self.merge();
            self.detect(now);
        }
        if self.runs.is_empty() {
            self.settle();
        }
        self.turn_round();
        let field = self.limited();
        let repeated = ack == una && self.field == Some(field) && (is_old || (bare && next != una));
        self.field = Some(field);
        match (repeated, field == self.offered) {
            (true, _) => Verdict::Known,
            (false, true) => Verdict::Pass,
            (false, false) => Verdict::Limit(field),
        }
    }

    /// The guest's window, in bytes from the first that is not acknowledged, and one unit for what a scaled field cannot say
    /// (RFC 7323 2.4) or a FIN, which needs no room.
    fn room(&self) -> usize {
        (usize::from(self.offered) + 1) << self.shift
    }

    /// Whether the guest took back some of what it had offered, and may refuse what has been sent (RFC 9293 3.8.6).
    fn is_shrunk(&self) -> bool {
        self.edges.is_some_and(|(una, next)| next - una > self.room())
    }

    /// The sequence number for a segment without data that was to have `seq`: one that the guest's window has, or the guest would
    /// not read it.
    pub(super) fn acceptable(&self, seq: TcpSeqNumber) -> TcpSeqNumber {
        match self.edges.filter(|_| self.is_shrunk()) {
            Some((una, _)) => seq.min(una + (usize::from(self.offered) << self.shift)),
            None => seq,
        }
    }

    /// The window field that lets smoltcp send what the guest's window and the congestion window leave.
    fn limited(&self) -> u16 {
        let Some((una, next)) = self.edges else { return self.offered };
        let flight = next - una;
        let units = match self.window {
            Some(window) => {
                // Whole segments, as far as the field can say so, but not nothing: that is a closed window.
                let fresh = window.saturating_sub(self.under_way() + self.lost()) / self.mss * self.mss;
                ((flight + fresh) >> self.shift).max(1).min(usize::from(self.offered))
            }
            None => usize::from(self.offered),
        };
        // Never less than what has been sent, as far as the field can say so: smoltcp could not repeat that. And not closed before that
        // has arrived: smoltcp would give up its retransmission timer.
        let units = units.min(usize::from(self.most));
        let sent = if flight == 0 { 0 } else { (flight >> self.shift).max(1) };
        u16::try_from(units.max(sent)).unwrap_or(u16::MAX)
    }

    /// The window, which ended at `edge`, goes further: what was sent past that, and has had the time to arrive, was refused.
    fn send_refused(&mut self, edge: TcpSeqNumber, now: Instant) {
        let (Some((_, next)), Some(trip)) = (self.edges, self.round_trip) else { return };
        self.mark(edge, next, |run| {
            if matches!(run.state, State::Sent | State::Resent) && run.at + trip.smoothed <= now {
                run.state = State::Lost;
            }
        });
        // No network lost it. There is room for so much.
        self.credit = self.credit.max(self.room());
        (self.started, self.timeouts, self.probed) = (now, 0, false);
    }

    /// All before `ack` has arrived.
    fn acknowledge(&mut self, ack: TcpSeqNumber, now: Instant) {
        let mut fresh: Option<Instant> = None;
        while let Some((start, next)) = self.edges.filter(|(start, _)| *start < ack) {
            let Some(run) = self.runs.front().copied() else { break };
            let end = run.end.min(ack);
            self.arrive(start, Run { end, ..run }, now, &mut fresh);
            if run.end <= ack {
                self.runs.pop_front();
            }
            self.edges = Some((end, next));
        }
        self.highest = Some(self.highest.map_or(ack, |highest| highest.max(ack)));
        (self.started, self.timeouts, self.probed, self.duplicates) = (now, 0, false, 0);
        if let Some(at) = fresh {
            self.measure(now - at);
        }
        if self.timed_out.is_some_and(|(_, until)| ack >= until) {
            self.timed_out = None;
        }
    }

    /// What the guest has beyond the first gap (RFC 2018), and what it had twice (RFC 2883). Says how many bytes are new.
    fn selectively(&mut self, segment: &TcpPacket<&[u8]>, now: Instant) -> usize {
        let Ok(options) = segment.options_summary() else { return 0 };
        let mut arrived = 0;
        let mut fresh = None;
        // Believing less is safe.
        if self.runs.len() + 8 > MAX_RUNS {
            return 0;
        }
        for (number, (left, right)) in options.sack_ranges.into_iter().flatten().enumerate() {
            let (left, right) = (TcpSeqNumber(left as i32), TcpSeqNumber(right as i32));
            let Some((una, next)) = self.edges else { break };
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
            self.mark(left, right, |run| {
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
            self.measure(now - at);
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
                if let Some((window, _)) = self.timed_out.take() {
                    self.undo_timeout(window);
                }
            }
            State::Resent => {
                // Sooner than a second copy can: this is the first.
                if self.round_trip.is_some_and(|trip| now - run.at < trip.least.max(trip.smoothed / 2)) {
                    self.was_not_lost(len);
                    return;
                }
            }
            State::Sent => {
                *fresh = Some(fresh.map_or(run.at, |at| at.max(run.at)));
                if self.highest.is_some_and(|highest| run.end < highest) {
                    self.reordering = self.reordering.max(1);
                }
            }
        }
        let newest = if run.state == State::Resent { &mut self.newest_again } else { &mut self.newest };
        if newest.is_none_or(|newest| newest < (run.at, run.end)) {
            *newest = Some((run.at, run.end));
            if let Some(trip) = self.round_trip.as_mut().filter(|_| run.state != State::Resent) {
                trip.latest = now - run.at;
            }
        }
        self.highest = Some(self.highest.map_or(run.end, |highest| highest.max(run.end)));
    }

    /// What was taken for lost was only late.
    fn was_not_lost(&mut self, len: usize) {
        self.reordering = (self.reordering + 1).min(16);
        self.round_lost = self.round_lost.saturating_sub(len);
        if let Some(cut) = &mut self.cut {
            cut.lost = cut.lost.saturating_sub(len);
            if cut.lost <= cut.tolerated {
                self.window = cut.before;
                self.cut = None;
            }
        }
    }

    fn undo_timeout(&mut self, window: Option<usize>) {
        self.window = window;
        for run in self.runs.iter_mut().filter(|run| run.state == State::Lost) {
            run.state = State::Sent;
        }
    }

    /// A guest that does not acknowledge selectively (RFC 6582).
    fn count_duplicates(&mut self, progress: bool, duplicate: bool, next: TcpSeqNumber) {
        // Before a window that was taken back a duplicate answers a probe.
        let Some((una, _)) = self.edges.filter(|_| !self.runs.is_empty() && !self.is_shrunk()) else {
            return;
        };
        let partial = progress && self.highest.is_some_and(|highest| una < highest);
        if duplicate && !progress {
            self.duplicates += 1;
        }
        if partial || self.duplicates == DUP_THRESH {
            if self.duplicates == DUP_THRESH {
                self.highest = Some(next);
                self.duplicates += 1;
            }
            let end = (una + self.mss).min(next);
            self.mark(una, end, |run| run.state = State::Lost);
            self.lose(end - una);
        }
    }

    fn measure(&mut self, sample: Duration) {
        let sample = sample.max(Duration::from_micros(1));
        self.round_least = Some(self.round_least.map_or(sample, |least| least.min(sample)));
        let Some(trip) = &mut self.round_trip else {
            self.round_trip =
                Some(RoundTrip { smoothed: sample, variation: sample / 2, least: sample, latest: sample });
            return;
        };
        let difference = trip.smoothed.max(sample) - trip.smoothed.min(sample);
        trip.variation = (trip.variation * 3 + difference) / 4;
        trip.smoothed = (trip.smoothed * 7 + sample) / 8;
        trip.least = trip.least.min(sample);
    }

    /// Looks for what must have arrived before what did (RFC 8985 6.2).
    fn detect(&mut self, now: Instant) {
        self.look_at = None;
        let (Some(trip), Some((una, _))) = (self.round_trip, self.edges) else { return };
        let (newest, newest_again) = (self.newest, self.newest_again);
        let wait = trip.latest + self.patience(trip);
        let (mut start, mut lost) = (una, 0);
        self.marked = false;
        for run in &mut self.runs {
            let is_before = |at: Option<(Instant, TcpSeqNumber)>| at.is_some_and(|at| (run.at, run.end) < at);
            let overtaken = match run.state {
                State::Sent => is_before(newest),
                State::Resent => is_before(newest) || is_before(newest_again),
                State::Sacked | State::Lost => false,
            };
            if overtaken {
                if run.at + wait <= now {
                    run.state = State::Lost;
                    lost += run.end - start;
                } else {
                    self.look_at =
                        Some(self.look_at.map_or(run.at + wait, |at: Instant| at.min(run.at + wait)));
                }
            }
            self.marked |= run.state != State::Sent;
            start = run.end;
        }
        if lost > 0 {
            self.lose(lost);
        }
    }

    /// How late a segment may be.
    fn patience(&self, trip: RoundTrip) -> Duration {
        let quarter = trip.least / 4;
        if self.reordering > 0 {
            return (quarter * self.reordering).min(trip.smoothed);
        }
        let sacked = self.sum(State::Sacked);
        let recovering = self.runs.iter().any(|run| matches!(run.state, State::Lost | State::Resent));
        if recovering || sacked >= DUP_THRESH * self.mss { Duration::ZERO } else { quarter }
    }

    fn lose(&mut self, len: usize) {
        self.marked = true;
        self.round_lost += len;
        let flight = self.edges.map_or(0, |(una, next)| next - una);
        let tolerated = (self.round_flight.max(flight) / TOLERATED).max(2 * self.mss);
        if self.round_lost > tolerated && self.cut.is_none() {
            let window = self.window.map_or(flight, |window| window.min(flight));
            self.cut = Some(Cut { before: self.window, lost: self.round_lost, tolerated });
            self.set_window(window / 10 * 7);
        } else if let Some(cut) = &mut self.cut {
            cut.lost += len;
        }
    }

    /// Cuts the window (RFC 9438: to 0.7).
    fn set_window(&mut self, window: usize) {
        self.threshold = window.max(MIN_THRESHOLD * self.mss);
        self.window = Some(window.max(MIN_SEGMENTS * self.mss));
    }

    /// `before` is what was under way when the window had to be looked at.
    fn grow(&mut self, arrived: usize, before: Option<usize>) {
        let (Some(window), Some(before)) = (self.window, before) else { return };
        if before + 2 * self.mss < window {
            return;
        }
        let window = window + if window < self.threshold { arrived } else { arrived / GROWTH };
        self.window = (window < self.capacity).then_some(window);
    }

    fn turn_round(&mut self) {
        let Some((una, next)) = self.edges else { return };
        if self.round_end.is_none_or(|end| una >= end) {
            let rises = |trip: RoundTrip| {
                self.round_least
                    .is_some_and(|least| least > trip.least + (trip.least / 8).clamp(MIN_RISE, MAX_RISE))
            };
            if let Some(window) =
                self.window.filter(|window| *window >= LOW_WINDOW && self.round_trip.is_some_and(rises))
            {
                self.threshold = self.threshold.min(window);
            }
            self.round_least = None;
            self.round_end = Some(next);
            self.round_flight = next - una;
            self.round_lost = 0;
            self.cut = None;
        }
    }

    /// Everything is acknowledged.
    fn settle(&mut self) {
        self.marked = false;
        self.look_at = None;
        self.timed_out = None;
        (self.newest, self.newest_again) = (None, None);
    }

    /// Whether everything is acknowledged.
    pub(super) fn is_idle(&self) -> bool {
        self.runs.is_empty()
    }

    /// When to call [`Self::handle_timeout`].
    pub(super) fn due(&self) -> Option<Instant> {
        if self.runs.is_empty() || !self.room_at_port {
            return None;
        }
        let at = self.started + self.wait();
        Some(self.look_at.map_or(at, |look_at| look_at.min(at)))
    }

    /// Whether the timer stands still for want of room.
    pub(super) fn is_waiting_for_room(&self) -> bool {
        !self.room_at_port && !self.runs.is_empty()
    }

    /// From the timer's start.
    fn wait(&self) -> Duration {
        let wait = match self.round_trip {
            Some(trip) if self.may_probe() => return trip.smoothed * 2 + PROBE_MARGIN,
            Some(trip) => trip.smoothed + (trip.variation * 4).max(MIN_MARGIN),
            None => FIRST_TIMEOUT,
        };
        (wait * (1 << self.timeouts.min(10))).min(MAX_TIMEOUT)
    }

    /// Whether a probe would find out sooner than a timeout. Alone a segment's acknowledgement may be delayed.
    fn may_probe(&self) -> bool {
        let flight = self.edges.map_or(0, |(una, next)| next - una);
        !self.probed && self.timeouts == 0 && flight > self.mss && !self.is_shrunk()
    }

    /// Says whether the guest can get anything, or its port takes nothing. It has all the time from when it can.
    pub(super) fn set_room(&mut self, room: bool, now: Instant) {
        if room && !self.room_at_port {
            self.started = now;
        }
        self.room_at_port = room;
    }

    /// Does what is due.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let Some((una, next)) = self.edges.filter(|_| !self.runs.is_empty()) else { return };
        if self.look_at.is_some_and(|at| at <= now) {
            self.detect(now);
        }
        if self.started + self.wait() > now {
            return;
        }
        self.started = now;
        self.marked = true;
        if self.round_trip.is_some() && self.may_probe() {
            self.probed = true;
            // The last that the guest is not known to have.
            let Some(last) = self.runs.iter().rposition(|run| run.state != State::Sacked) else { return };
            let start =
                last.checked_sub(1).and_then(|before| self.runs.get(before)).map_or(una, |run| run.end);
            let end = self.runs.get(last).map_or(next, |run| run.end);
            self.mark(end - (end - start).min(self.mss), end, |run| run.state = State::Lost);
            self.credit = self.credit.max(self.mss);
            return;
        }
        self.timeouts += 1;
        // What comes first and was not acknowledged the guest has thrown away, and maybe the rest (RFC 2018 8).
        let reneged = self.runs.front().is_some_and(|run| run.state == State::Sacked);
        for run in self.runs.iter_mut().filter(|run| reneged || run.state != State::Sacked) {
            run.state = State::Lost;
        }
        self.credit = self.mss;
        if self.offered == 0 {
            // This probes the window, and no network is full.
            return;
        }
        if self.timed_out.is_none() {
            self.timed_out = Some((self.window, next));
            self.set_window((next - una) / 10 * 7);
        }
        self.window = Some(self.mss);
    }

    /// Whether something is to be sent again, and may be.
    pub(super) fn wants_replay(&self) -> bool {
        if !self.marked || !self.room_at_port || self.allowance() == 0 {
            return false;
        }
        let Some((mut start, next)) = self.edges else { return false };
        let first = self.runs.iter().find(|run| {
            let is_lost = run.state == State::Lost;
            if !is_lost {
                start = run.end;
            }
            is_lost
        });
        first.is_some() && self.fits(start, (start + self.mss).min(next))
    }

    /// Whether the guest takes what is between two sequence numbers, or it is to say whether it does.
    fn fits(&self, left: TcpSeqNumber, right: TcpSeqNumber) -> bool {
        self.edges.is_some_and(|(una, _)| left <= una || right <= una + self.room())
    }

    /// Bytes that may be sent again: what the window leaves, and no more than has arrived but for one segment (RFC 6937).
    fn allowance(&self) -> usize {
        let room = self.window.map_or(usize::MAX, |window| window.saturating_sub(self.under_way()));
        room.min(self.credit + self.mss)
    }

    /// When everything may be repeated; `reserve` says when so many segments may be.
    pub(super) fn replay_at(&mut self, reserve: impl FnOnce(usize) -> Instant) -> Instant {
        let flight = self.edges.map_or(0, |(una, next)| next - una);
        *self.replay_at.get_or_insert_with(|| reserve(flight.div_ceil(self.mss)))
    }

    /// smoltcp begins to repeat. Says up to which sequence number it has to.
    pub(super) fn begin_replay(&mut self) -> Option<TcpSeqNumber> {
        let (_, next) = self.edges?;
        self.replay_at = None;
        self.replay = Some(Replay { left: self.allowance(), end: None, held_back: None });
        self.credit = 0;
        Some(next)
    }

    pub(super) fn is_replaying(&self) -> bool {
        self.replay.is_some()
    }

    /// Whether smoltcp has more to repeat before `end`.
    pub(super) fn is_replaying_before(&self, end: TcpSeqNumber) -> bool {
        self.replay.is_some_and(|replay| replay.end.is_none_or(|at| at < end))
    }

    /// Whether a repeated segment leaves, if there is room for it. If not, the acknowledgement that it carries does not either.
    pub(super) fn admits(&mut self, segment: &TcpPacket<&mut [u8]>, room: bool) -> bool {
        let (seq, len) = (segment.seq_number(), segment.segment_len());
        let Some(mut replay) = self.replay else { return true };
        let wanted = room && replay.left > 0 && self.has_lost(seq, seq + len) && self.fits(seq, seq + len);
        if wanted {
            replay.left = replay.left.saturating_sub(len);
        } else {
            replay.held_back = Some(segment.ack_number());
            // smoltcp may put new bytes behind the last that it repeats, and takes them for sent.
            if let Some((una, next)) = self.edges.filter(|(_, next)| seq + len > *next) {
                self.runs.push_back(Run { end: seq + len, at: self.started, state: State::Lost });
                self.edges = Some((una, next.max(seq + len)));
                self.marked = true;
            }
        }
        replay.end = Some(seq + len);
        self.replay = Some(replay);
        wanted
    }

    /// Says what the last acknowledgement was that was held back.
    pub(super) fn end_replay(&mut self) -> Option<TcpSeqNumber> {
        self.replay.take()?.held_back
    }

    fn has_lost(&self, left: TcpSeqNumber, right: TcpSeqNumber) -> bool {
        let Some((una, next)) = self.edges else { return true };
        let first = self.runs.partition_point(|run| run.end <= left);
        let mut start =
            first.checked_sub(1).and_then(|before| self.runs.get(before)).map_or(una, |run| run.end);
        for run in self.runs.range(first..) {
            if start >= right {
                return false;
            }
            if run.state == State::Lost {
                return true;
            }
            start = run.end;
        }
        right > next
    }

    fn under_way(&self) -> usize {
        self.sum(State::Sent) + self.sum(State::Resent)
    }

    fn lost(&self) -> usize {
        self.sum(State::Lost)
    }

    fn sum(&self, state: State) -> usize {
        let Some((mut start, _)) = self.edges else { return 0 };
        let mut sum = 0;
        for run in &self.runs {
            if run.state == state {
                sum += run.end - start;
            }
            start = run.end;
        }
        sum
    }

    /// Applies `change` to the runs between two sequence numbers, which may split one at each. With too many runs already it is applied
    /// to all that they touch.
    fn mark(&mut self, left: TcpSeqNumber, right: TcpSeqNumber, mut change: impl FnMut(&mut Run)) {
        self.split(left);
        self.split(right);
        let first = self.runs.partition_point(|run| run.end <= left);
        let behind = (self.runs.partition_point(|run| run.end < right) + 1).min(self.runs.len());
        for run in self.runs.range_mut(first..behind.max(first)) {
            change(run);
        }
        self.marked = true;
    }

    /// Lets a run begin at `at`, if there may be one more.
    fn split(&mut self, at: TcpSeqNumber) {
        let number = self.runs.partition_point(|run| run.end <= at);
        let before = number.checked_sub(1).and_then(|before| self.runs.get(before)).map(|run| run.end);
        let start = before.or_else(|| self.edges.map(|(una, _)| una));
        if let Some(run) = self.runs.get(number).copied()
            && start.is_some_and(|start| start < at)
            && self.runs.len() < MAX_RUNS
        {
            self.runs.insert(number, Run { end: at, ..run });
        }
    }

    /// Makes one run of those that the guest has.
    fn merge(&mut self) {
        let mut kept = 0;
        for number in 1..self.runs.len() {
            let run = self.runs[number];
            if run.state == State::Sacked && self.runs[kept].state == State::Sacked {
                self.runs[kept].end = run.end;
            } else {
                kept += 1;
                self.runs[kept] = run;
            }
        }
        self.runs.truncate(kept + 1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_guest_that_takes_byte_for_byte_makes_no_more_runs() {
        let mut recovery = Recovery::new(512 << 10);
        let mut bytes = [0; 21];
        let mut segment = TcpPacket::new_unchecked(&mut bytes[..]);
        segment.set_header_len(20);
        segment.set_seq_number(TcpSeqNumber(-1000));
        segment.set_syn(true);
        recovery.note_sent(&segment, Instant::ZERO);
        segment.set_syn(false);
        for number in 0..2 * MAX_RUNS {
            segment.set_seq_number(TcpSeqNumber(-999) + number);
            recovery.note_sent(&segment, Instant::from_micros(number as i64));
        }
        assert_eq!((recovery.runs.len(), recovery.under_way()), (MAX_RUNS, 2 * MAX_RUNS));
    }
}
