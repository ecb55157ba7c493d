//! Points in time. Owns: nothing. May not: read a clock. Read next: `timer.rs`, what is due at one.

use core::fmt;
use core::ops::{Add, AddAssign, Sub};
use core::time::Duration;

/// A point in time, told by the caller: microseconds since a start that is the same for all calls of one
/// [`Stack`](crate::Stack).
///
/// A sum or a difference that cannot be told is the last or the first point that can.
///
/// ```
/// use std::time::Duration;
///
/// use netstack::Instant;
///
/// let now = Instant::from_millis(1500);
/// assert_eq!(now + Duration::from_micros(250), Instant::from_micros(1_500_250));
/// assert_eq!(now - Instant::from_secs(1), Duration::from_millis(500));
/// assert_eq!(Instant::from_secs(1) - now, Duration::ZERO);
/// assert_eq!(now.to_string(), "1.500s");
/// ```
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Instant {
    micros: u64,
}

impl Instant {
    /// The start.
    pub const ZERO: Self = Self::from_micros(0);

    /// So many microseconds after the start.
    #[inline]
    pub const fn from_micros(micros: u64) -> Self {
        Self { micros }
    }

    /// So many milliseconds after the start.
    pub const fn from_millis(millis: u64) -> Self {
        Self::from_micros(millis.saturating_mul(1000))
    }

    /// So many seconds after the start.
    pub const fn from_secs(secs: u64) -> Self {
        Self::from_micros(secs.saturating_mul(1_000_000))
    }

    /// Microseconds since the start.
    #[inline]
    pub const fn as_micros(self) -> u64 {
        self.micros
    }

    /// Whole milliseconds since the start.
    pub const fn as_millis(self) -> u64 {
        self.micros / 1000
    }

    /// So many microseconds later: what costs a division as a [`Duration`].
    #[inline]
    pub(crate) const fn after_micros(self, micros: u64) -> Self {
        Self::from_micros(self.micros.saturating_add(micros))
    }

    /// Microseconds since `earlier`, 0 if that is later.
    #[inline]
    pub(crate) const fn micros_since(self, earlier: Self) -> u64 {
        self.micros.saturating_sub(earlier.micros)
    }

    /// The same for smoltcp.
    #[inline]
    pub(crate) fn to_smoltcp(self) -> smoltcp::time::Instant {
        smoltcp::time::Instant::from_micros_const(self.micros.cast_signed())
    }

    /// One of smoltcp's, which tells none before the start.
    #[inline]
    pub(crate) fn from_smoltcp(at: smoltcp::time::Instant) -> Self {
        Self::from_micros(at.total_micros().cast_unsigned())
    }
}

/// Whole microseconds.
#[inline]
pub(crate) const fn micros(duration: Duration) -> u64 {
    duration.as_secs().saturating_mul(1_000_000).saturating_add(duration.subsec_micros() as u64)
}

impl Add<Duration> for Instant {
    type Output = Self;

    /// What is less than a microsecond of `duration` is left out.
    #[inline]
    fn add(self, duration: Duration) -> Self {
        Self::from_micros(self.micros.saturating_add(micros(duration)))
    }
}

impl AddAssign<Duration> for Instant {
    #[inline]
    fn add_assign(&mut self, duration: Duration) {
        *self = *self + duration;
    }
}

impl Sub<Duration> for Instant {
    type Output = Self;

    /// What is less than a microsecond of `duration` is left out.
    #[inline]
    fn sub(self, duration: Duration) -> Self {
        Self::from_micros(self.micros.saturating_sub(micros(duration)))
    }
}

impl Sub for Instant {
    type Output = Duration;

    /// The time since `earlier`.
    #[inline]
    fn sub(self, earlier: Self) -> Duration {
        Duration::from_micros(self.micros.saturating_sub(earlier.micros))
    }
}

impl fmt::Display for Instant {
    /// Seconds since the start, to the millisecond.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{:03}s", self.micros / 1_000_000, self.micros / 1000 % 1000)
    }
}
