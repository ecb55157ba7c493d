//! Keep-alives (RFC 9293 3.8.4): whether a silent guest still knows of a connection. Owns: when it is asked,
//! and when it is given up. May not: send. Read next: `flush.rs`, `Flow::ask_step`.
//!
//! A guest that was reset answers with a RST. A guest that answers nothing is given up soon if it was seen to
//! run meanwhile. A machine that stands still keeps its connections if it goes on within two hours. One whose
//! host slept keeps them always.

use core::time::Duration;

use crate::Instant;

/// A guest is asked when it has been silent for so long.
const IDLE: Duration = Duration::from_secs(120);
/// And asked again after so long.
const INTERVAL: Duration = Duration::from_secs(15);
/// Flows that would be asked within this time of each other are asked together, so that many idle ones cost
/// few wakeups.
const SLOT: Duration = Duration::from_secs(5);
/// Questions that a guest may leave unanswered while it sends other frames.
const MAX_IGNORED: u16 = 5;
/// Questions in all: two hours, after which RFC 1122 4.2.3.6 would have begun to ask.
const MAX_ASKED: u16 = 480;

/// What was asked of one guest about one flow since it was last heard of there.
#[derive(Debug)]
pub(super) struct Keepalive {
    heard: Instant,
    last: Instant,
    asked: u16,
    ignored: u16,
}

impl Keepalive {
    pub(super) fn new() -> Self {
        Self { heard: Instant::ZERO, last: Instant::ZERO, asked: 0, ignored: 0 }
    }

    /// A segment of the flow came, or it begins.
    pub(super) fn note_segment(&mut self, now: Instant) {
        self.heard = now;
        (self.asked, self.ignored) = (0, 0);
    }

    /// When the last segment came, or the flow began.
    pub(super) fn heard(&self) -> Instant {
        self.heard
    }

    /// Whether the guest has been silent for long.
    pub(super) fn is_silent(&self, now: Instant) -> bool {
        now >= self.heard + IDLE
    }

    /// When to ask.
    pub(super) fn at(&self) -> Instant {
        let at = if self.asked == 0 { self.heard + IDLE } else { self.last + INTERVAL };
        Instant::from_micros(at.as_micros().next_multiple_of(SLOT.as_micros() as u64))
    }

    /// The guest is asked now. Says whether it is given up instead. `seen` is when it last sent anything at
    /// all.
    pub(super) fn ask(&mut self, seen: Option<Instant>, now: Instant) -> bool {
        if self.asked > 0 && seen.is_some_and(|seen| seen > self.last) {
            self.ignored += 1;
        }
        self.asked += 1;
        self.last = now;
        self.ignored >= MAX_IGNORED || self.asked > MAX_ASKED
    }
}
