//! What goes on in spite of failures: how long it pauses, and that the same failure is told once.
//! Owns: nothing. May not: sleep or log.

use std::time::Duration;

/// How long a listener accepts nobody after the process ran out of descriptors: its clients wait in the
/// backlog.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// The pause before another attempt. It doubles with each, up to the last.
#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    last: Duration,
    pause: Duration,
}

impl Backoff {
    /// From `first` to `last`.
    pub const fn new(first: Duration, last: Duration) -> Self {
        Self { first, last, pause: first }
    }

    /// How long to pause before the next attempt.
    pub fn pause(&self) -> Duration {
        self.pause
    }

    /// The same, after which the next pause is longer.
    pub fn next_pause(&mut self) -> Duration {
        let pause = self.pause;
        self.pause = (pause * 2).min(self.last);
        pause
    }

    /// An attempt went well.
    pub fn reset(&mut self) {
        self.pause = self.first;
    }
}

/// The failure that was told last.
#[derive(Clone, Debug, Default)]
pub struct LastFailure(String);

impl LastFailure {
    /// Whether this is another one.
    pub fn is_news(&mut self, failure: &str) -> bool {
        let is_news = failure != self.0;
        if is_news {
            failure.clone_into(&mut self.0);
        }
        is_news
    }

    /// An attempt went well: the next failure is news.
    pub fn forget(&mut self) {
        self.0.clear();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_double_up_to_the_last() {
        let mut backoff = Backoff::new(Duration::from_millis(100), Duration::from_secs(1));
        let pauses: Vec<_> = (0..6).map(|_| backoff.next_pause().as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1000, 1000]);
        backoff.reset();
        assert_eq!(backoff.pause(), Duration::from_millis(100));
    }

    #[test]
    fn the_same_failure_is_told_once() {
        let mut last = LastFailure::default();
        let told: Vec<_> = ["a", "a", "b", "a"].map(|failure| last.is_news(failure)).into();
        assert_eq!(told, [true, false, true, true]);
        last.forget();
        assert!(last.is_news("a"));
    }
}
