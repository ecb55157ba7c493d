//! How long an answer takes, and so how long to wait for one. Owns: the estimates of RFC 6298. May not: know
//! what is waited for. Read next: `mod.rs`, which has the timer.

use core::time::Duration;

use crate::instant::micros;

/// Before a round trip was measured (RFC 6298 2.1).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// By how much the timeout is longer than a round trip, at least: a guest delays an acknowledgement for 40
/// ms, and Linux waits as long.
const MIN_MARGIN: Duration = Duration::from_millis(200);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// What a probe (RFC 8985 7.2) waits beside two round trips: a guest's processor may be busy elsewhere.
const PROBE_MARGIN: Duration = Duration::from_millis(10);

/// The round trips that were measured, in microseconds. Each acknowledgement changes them, and arithmetic
/// with std's durations would cost it a carry every time.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    smoothed: u64,
    variation: u64,
    least: u64,
    /// That of what was sent last, of all that has arrived.
    latest: u64,
}

impl RoundTrip {
    /// From the first `sample`, in microseconds.
    pub(super) fn new(sample: u64) -> Self {
        Self { smoothed: sample, variation: sample / 2, least: sample, latest: sample }
    }

    /// Another `sample`, in microseconds.
    #[inline]
    pub(super) fn add(&mut self, sample: u64) {
        self.variation = (self.variation * 3 + self.smoothed.abs_diff(sample)) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        self.least = self.least.min(sample);
    }

    /// What has arrived was sent `sample` microseconds before.
    #[inline]
    pub(super) fn set_latest(&mut self, sample: u64) {
        self.latest = sample;
    }

    #[inline]
    pub(super) fn smoothed(&self) -> Duration {
        Duration::from_micros(self.smoothed)
    }

    #[inline]
    pub(super) fn least(&self) -> Duration {
        Duration::from_micros(self.least)
    }

    /// That of what was sent last, of all that has arrived.
    #[inline]
    pub(super) fn latest(&self) -> Duration {
        Duration::from_micros(self.latest)
    }

    /// How long to wait before a probe, in microseconds.
    #[inline]
    pub(super) fn probe_timeout(&self) -> u64 {
        self.smoothed * 2 + micros(PROBE_MARGIN)
    }

    /// How long to wait for an acknowledgement, after so many timeouts, in microseconds.
    #[inline]
    pub(super) fn timeout(trip: Option<&Self>, timeouts: u32) -> u64 {
        let wait = trip.map_or(const { micros(FIRST_TIMEOUT) }, |trip| {
            trip.smoothed + (trip.variation * 4).max(micros(MIN_MARGIN))
        });
        (wait << timeouts.min(10)).min(micros(MAX_TIMEOUT))
    }
}
