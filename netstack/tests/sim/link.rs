//! One direction of a cable. Owns: delay, loss, reordering, duplicates and the bounded queue.

use std::collections::BTreeMap;
use std::time::Duration;

use netstack::Instant;

use crate::rng::Rng;

/// How a wire treats frames.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Quality {
    pub(crate) delay: Duration,
    /// Of 1000 frames.
    pub(crate) loss: u64,
    /// Of 1000 frames, those that come up to four delays (and no less than 2 ms) late, so that others
    /// overtake them.
    pub(crate) reorder: u64,
    /// Of 1000 frames.
    pub(crate) duplicate: u64,
    /// Frames on the way at most, or, with a rate, before the transmitter; what is more is lost.
    pub(crate) queue: usize,
    /// Bit/s of the transmitter, or 0: no limit.
    pub(crate) rate: u64,
    /// What a frame that is reordered is late by, at least and at most; if that is 0, up to four delays.
    pub(crate) late: (Duration, Duration),
}

impl Quality {
    pub(crate) const CLEAN: Self = Self {
        delay: Duration::from_micros(100),
        loss: 0,
        reorder: 0,
        duplicate: 0,
        queue: usize::MAX,
        rate: 0,
        late: (Duration::ZERO, Duration::ZERO),
    };

    pub(crate) fn delay(self, delay: Duration) -> Self {
        Self { delay, ..self }
    }

    pub(crate) fn loss(self, permille: u64) -> Self {
        Self { loss: permille, ..self }
    }

    pub(crate) fn reorder(self, permille: u64) -> Self {
        Self { reorder: permille, ..self }
    }

    pub(crate) fn duplicate(self, permille: u64) -> Self {
        Self { duplicate: permille, ..self }
    }

    pub(crate) fn queue(self, frames: usize) -> Self {
        Self { queue: frames, ..self }
    }

    pub(crate) fn rate(self, rate: u64) -> Self {
        Self { rate, ..self }
    }

    pub(crate) fn late(self, least: Duration, most: Duration) -> Self {
        Self { late: (least, most), ..self }
    }
}

/// Frames on their way.
#[derive(Debug)]
pub(crate) struct Wire {
    pub(crate) quality: Quality,
    /// Frames that the quality took.
    pub(crate) lost: u64,
    rng: Rng,
    frames: BTreeMap<(Instant, u64), Vec<u8>>,
    count: u64,
    /// When the transmitter has sent all that it took.
    idle_at: Instant,
}

impl Wire {
    pub(crate) fn new(quality: Quality, seed: u64) -> Self {
        Self {
            quality,
            lost: 0,
            rng: Rng::new(seed),
            frames: BTreeMap::new(),
            count: 0,
            idle_at: Instant::ZERO,
        }
    }

    pub(crate) fn push(&mut self, frame: Vec<u8>, now: Instant) {
        let waiting = self.idle_at.max(now) - now;
        let full = match self.quality.rate {
            0 => self.frames.len() >= self.quality.queue,
            _ => waiting > self.transmission(1514) * (self.quality.queue.min(1 << 20) as u32),
        };
        if !full {
            self.idle_at = now + waiting + self.transmission(frame.len());
        }
        if full || self.rng.chance(self.quality.loss) {
            self.lost += 1;
            return;
        }
        if self.rng.chance(self.quality.duplicate) {
            self.schedule(frame.clone(), now);
        }
        self.schedule(frame, now);
    }

    /// What the transmitter takes for a frame, with preamble, checksum and gap of Ethernet.
    fn transmission(&self, len: usize) -> Duration {
        let bits = (len as u64 + 24) * 8;
        Duration::from_micros((bits * 1_000_000).checked_div(self.quality.rate).unwrap_or(0))
    }

    fn schedule(&mut self, frame: Vec<u8>, now: Instant) {
        let mut at = self.idle_at.max(now) + self.quality.delay;
        if self.rng.chance(self.quality.reorder) {
            let (least, most) = match self.quality.late {
                (_, Duration::ZERO) => (0, (self.quality.delay.as_micros() as u64 * 4).max(2_000)),
                (least, most) => (least.as_micros() as u64, most.as_micros() as u64),
            };
            at += Duration::from_micros(least + self.rng.below(most - least));
        }
        self.count += 1;
        self.frames.insert((at, self.count), frame);
    }

    pub(crate) fn pop(&mut self, now: Instant) -> Option<Vec<u8>> {
        self.next().filter(|at| *at <= now)?;
        self.frames.pop_first().map(|(_, frame)| frame)
    }

    pub(crate) fn next(&self) -> Option<Instant> {
        self.frames.first_key_value().map(|((at, _), _)| *at)
    }
}
