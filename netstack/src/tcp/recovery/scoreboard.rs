//! The scoreboard (RFC 6675): when each part of what is under way was sent, and what the guest has of it.
//! Owns: the runs. May not: decide that something is lost. Read next: `detection.rs`, which does.

use std::collections::VecDeque;

use smoltcp::wire::TcpSeqNumber;

use crate::Instant;

/// Runs at most; a guest that tells of more is believed to have received less.
pub(super) const MAX_RUNS: usize = 2048;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum State {
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
pub(super) struct Run {
    pub(super) end: TcpSeqNumber,
    pub(super) at: Instant,
    pub(super) state: State,
}

/// What was sent and is not acknowledged.
#[derive(Debug)]
pub(super) struct Scoreboard {
    pub(super) runs: VecDeque<Run>,
    /// Where the first run begins and the last ends (RFC 9293 SND.UNA, SND.NXT). `None` before the SYN was
    /// sent.
    pub(super) edges: Option<(TcpSeqNumber, TcpSeqNumber)>,
    /// Some run may be other than [`State::Sent`].
    pub(super) marked: bool,
}

impl Scoreboard {
    pub(super) fn new() -> Self {
        Self { runs: VecDeque::new(), edges: None, marked: false }
    }

    pub(super) fn is_empty(&self) -> bool {
        self.runs.is_empty()
    }

    pub(super) fn has_space(&self, runs: usize) -> bool {
        self.runs.len() + runs <= MAX_RUNS
    }

    /// Bytes between the edges.
    pub(super) fn flight(&self) -> usize {
        self.edges.map_or(0, |(una, next)| next - una)
    }

    /// Bytes that may still arrive.
    pub(super) fn under_way(&self) -> usize {
        if !self.marked {
            return self.flight();
        }
        self.sum(|state| matches!(state, State::Sent | State::Resent))
    }

    /// Bytes beyond the first gap that the guest has.
    pub(super) fn sacked(&self) -> usize {
        if self.marked { self.sum(|state| state == State::Sacked) } else { 0 }
    }

    fn sum(&self, counts: impl Fn(State) -> bool) -> usize {
        let Some((mut start, _)) = self.edges else { return 0 };
        let mut sum = 0;
        for run in &self.runs {
            if counts(run.state) {
                sum += run.end - start;
            }
            start = run.end;
        }
        sum
    }

    /// Where the run with this number begins.
    fn start(&self, number: usize) -> Option<TcpSeqNumber> {
        let before = number.checked_sub(1).and_then(|before| self.runs.get(before)).map(|run| run.end);
        before.or_else(|| self.edges.map(|(una, _)| una))
    }

    /// Where the first run that is to be sent again begins.
    pub(super) fn first_lost(&self) -> Option<TcpSeqNumber> {
        if !self.marked {
            return None;
        }
        self.start(self.runs.iter().position(|run| run.state == State::Lost)?)
    }

    /// The last run that the guest is not known to have, from where and up to where.
    pub(super) fn last_missing(&self) -> Option<(TcpSeqNumber, TcpSeqNumber)> {
        let last = self.runs.iter().rposition(|run| run.state != State::Sacked)?;
        Some((self.start(last)?, self.runs.get(last)?.end))
    }

    /// Whether something between two sequence numbers is to be sent again, or was never sent.
    pub(super) fn has_lost(&self, left: TcpSeqNumber, right: TcpSeqNumber) -> bool {
        let Some((una, next)) = self.edges else { return true };
        let first = self.runs.partition_point(|run| run.end <= left);
        let mut start = self.start(first).unwrap_or(una);
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

    /// The bytes up to `end` were sent for the first time.
    pub(super) fn extend(&mut self, end: TcpSeqNumber, now: Instant) {
        let Some((una, _)) = self.edges else { return };
        let full = self.runs.len() >= MAX_RUNS;
        match self.runs.back_mut() {
            Some(last) if last.state == State::Sent && (last.at == now || full) => last.end = end,
            _ => self.runs.push_back(Run { end, at: now, state: State::Sent }),
        }
        self.edges = Some((una, end));
    }

    /// The bytes up to `end` are to be sent, and were not.
    pub(super) fn extend_lost(&mut self, end: TcpSeqNumber, at: Instant) {
        let Some((una, _)) = self.edges else { return };
        self.runs.push_back(Run { end, at, state: State::Lost });
        self.edges = Some((una, end));
        self.marked = true;
    }

    /// Takes the first run away as far as it lies before `ack`. Says where it began, and what it was.
    pub(super) fn pop(&mut self, ack: TcpSeqNumber) -> Option<(TcpSeqNumber, Run)> {
        let (start, next) = self.edges.filter(|(start, _)| *start < ack)?;
        let run = self.runs.front().copied()?;
        let end = run.end.min(ack);
        if run.end <= ack {
            self.runs.pop_front();
        }
        self.edges = Some((end, next));
        Some((start, Run { end, ..run }))
    }

    /// Applies `change` to the runs between two sequence numbers, and splits the first and the last for that.
    /// If there are too many runs already, it is applied to all of each that they touch.
    pub(super) fn mark(&mut self, left: TcpSeqNumber, right: TcpSeqNumber, mut change: impl FnMut(&mut Run)) {
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
        if let Some(run) = self.runs.get(number).copied()
            && self.start(number).is_some_and(|start| start < at)
            && self.has_space(1)
        {
            self.runs.insert(number, Run { end: at, ..run });
        }
    }

    /// Makes one run of those that the guest has.
    pub(super) fn merge(&mut self) {
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
        let first = TcpSeqNumber(-999);
        let mut board = Scoreboard::new();
        board.edges = Some((first, first));
        for number in 0..2 * MAX_RUNS {
            board.extend(first + number + 1usize, Instant::from_micros(number as u64));
        }
        assert_eq!((board.runs.len(), board.under_way()), (MAX_RUNS, 2 * MAX_RUNS));
    }
}
