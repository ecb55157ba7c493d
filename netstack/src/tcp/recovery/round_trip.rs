//! How long an answer takes, and so how long to wait for one. Owns: the estimates of RFC 6298. May not: know
//! what is waited for. Read next: `mod.rs`, which has the timer.

use core::time::Duration;

/// Before a round trip was measured (RFC 6298 2.1).
const FIRST_TIMEOUT: Duration = Duration::from_secs(1);
/// By how much the timeout is longer than a round trip, at least: a guest delays an acknowledgement for 40
/// ms, and Linux waits as long.
const MIN_MARGIN: Duration = Duration::from_millis(200);
const MAX_TIMEOUT: Duration = Duration::from_secs(60);
/// What a probe (RFC 8985 7.2) waits beside two round trips: a guest's processor may be busy elsewhere.
const PROBE_MARGIN: Duration = Duration::from_millis(10);

/// The round trips that were measured.
#[derive(Clone, Copy, Debug)]
pub(super) struct RoundTrip {
    pub(super) smoothed: Duration,
    variation: Duration,
    pub(super) least: Duration,
    /// Of what has arrived, what was sent last.
    pub(super) latest: Duration,
}

impl RoundTrip {
    pub(super) fn new(sample: Duration) -> Self {
        Self { smoothed: sample, variation: sample / 2, least: sample, latest: sample }
    }

    pub(super) fn add(&mut self, sample: Duration) {
        let difference = self.smoothed.max(sample) - self.smoothed.min(sample);
        self.variation = (self.variation * 3 + difference) / 4;
        self.smoothed = (self.smoothed * 7 + sample) / 8;
        self.least = self.least.min(sample);
    }

    /// How long to wait before a probe.
    pub(super) fn probe_timeout(&self) -> Duration {
        self.smoothed * 2 + PROBE_MARGIN
    }

    /// How long to wait for an acknowledgement, after so many timeouts.
    pub(super) fn timeout(trip: Option<&Self>, timeouts: u32) -> Duration {
        let wait = trip.map_or(FIRST_TIMEOUT, |trip| trip.smoothed + (trip.variation * 4).max(MIN_MARGIN));
        (wait * (1 << timeouts.min(10))).min(MAX_TIMEOUT)
    }
}
