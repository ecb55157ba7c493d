//! Warnings that a guest can cause, kept to a rate. Owns: one count a kind of warning. Read next:
//! `../logging.rs`.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

/// Lets through so many log lines in each window and counts the others.
///
/// ```
/// # use gvproxy::logging::Limited;
/// # use std::time::{Duration, Instant};
/// static MALFORMED: Limited = Limited::new(5, Duration::from_secs(60));
/// if let Some(suppressed) = MALFORMED.admit(Instant::now()) {
///     tracing::warn!(suppressed, "malformed frame");
/// }
/// ```
#[derive(Debug)]
pub struct Limited {
    burst: u32,
    window: Duration,
    state: Mutex<State>,
}

#[derive(Debug)]
struct State {
    /// When the first line of the window was let through.
    since: Option<Instant>,
    admitted: u32,
    suppressed: u64,
}

impl Limited {
    /// At most `burst` lines in a `window`, which starts with its first line.
    pub const fn new(burst: u32, window: Duration) -> Self {
        Self { burst, window, state: Mutex::new(State { since: None, admitted: 0, suppressed: 0 }) }
    }

    /// Whether the line may be written, and how many were left out since the last one that was.
    pub fn admit(&self, now: Instant) -> Option<u64> {
        let mut state = self.state.lock().unwrap_or_else(PoisonError::into_inner);
        if state.since.is_none_or(|since| now.saturating_duration_since(since) >= self.window) {
            state.since = Some(now);
            state.admitted = 0;
        }
        if state.admitted < self.burst {
            state.admitted += 1;
            return Some(std::mem::take(&mut state.suppressed));
        }
        state.suppressed = state.suppressed.saturating_add(1);
        None
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_burst_passes_and_the_rest_is_counted() {
        let window = Duration::from_secs(60);
        let limited = Limited::new(2, window);
        let start = Instant::now();
        let at = |seconds| limited.admit(start + Duration::from_secs(seconds));
        assert_eq!([0, 1, 2, 59].map(at), [Some(0), Some(0), None, None]);
        assert_eq!([60, 61, 62].map(at), [Some(2), Some(0), None]);
        assert_eq!(at(1000), Some(1));
        assert_eq!(at(0), Some(0), "a clock that steps back opens no new window and closes none");
    }
}
