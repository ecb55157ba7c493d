//! How often something may happen. Owns: nothing but when. Read next: `lib.rs`, what it limits.

use core::time::Duration;

use crate::Instant;

/// A burst after a pause, and then one in each interval (RFC 1812 4.3.2.8).
#[derive(Debug)]
pub(crate) struct Limit {
    interval: Duration,
    burst: u32,
    /// Up to when the intervals are given away.
    used: Instant,
}

impl Limit {
    pub(crate) fn new(interval: Duration, burst: u32, now: Instant) -> Self {
        Self { interval, burst, used: now }
    }

    pub(crate) fn allows(&mut self, now: Instant) -> bool {
        let used = self.used.max(now);
        let allowed = used < now + self.interval * self.burst;
        if allowed {
            self.used = used + self.interval;
        }
        allowed
    }
}
