//! What one link, or what is ready, may take of a turn before others have theirs: time, since frames of a few
//! bytes may cost much.
//! Owns: the clock of one slice. Read next: `links.rs`, `mod.rs`, which stop where one is over.

use std::time::{Duration, Instant};

/// Of the loop's time, where there are other links; and where there are none, so that only what is ready
/// waits.
const SHARED: Duration = Duration::from_micros(50);
const ALONE: Duration = Duration::from_millis(1);
/// The clock is looked at once in so many steps.
const STEPS: u32 = 8;

/// A part of a turn.
#[derive(Debug)]
pub(super) struct Slice {
    since: Instant,
    length: Duration,
    steps: u32,
}

impl Slice {
    /// One of a loop with so many links.
    pub(super) fn new(links: usize) -> Self {
        Self { since: Instant::now(), length: if links > 1 { SHARED } else { ALONE }, steps: 0 }
    }

    /// Whether it is over, after a step that costs little.
    #[inline]
    pub(super) fn step(&mut self) -> bool {
        self.steps += 1;
        self.steps.is_multiple_of(STEPS) && self.is_over()
    }

    /// The same after one that may have cost much.
    pub(super) fn is_over(&self) -> bool {
        self.since.elapsed() >= self.length
    }
}
