//! Which connections have clients that read slower than the guest sends: others on them wait once much is to
//! come.
//!
//! Owns: how many there are, and when there was one last. May not: end anybody (`backlog.rs`).
//! Read next: `tunnel.rs`, which leads new clients to other connections.

use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::Instant;

/// A client that lagged for so long is no matter of a moment.
const LONG: Duration = Duration::from_secs(1);
/// For how long its connection is avoided afterwards: when one makes room there, others that take as little
/// fill it again.
const AFTERWARDS: Duration = Duration::from_secs(10);

/// Those of one connection.
#[derive(Debug, Default)]
pub(super) struct Laggards {
    count: AtomicUsize,
    /// When one that lagged for long did not any more, or was closed.
    last: Mutex<Option<Instant>>,
}

/// One of them, until it is dropped.
pub(super) struct Lagging<'a> {
    of: &'a Laggards,
    since: Instant,
}

impl Laggards {
    /// Whether there is one just now.
    pub(super) fn any(&self) -> bool {
        self.count.load(Ordering::Relaxed) > 0
    }

    /// Whether there is one, or was one that lagged for long a short while ago.
    pub(super) fn any_lately(&self) -> bool {
        let last = *self.last.lock().unwrap_or_else(PoisonError::into_inner);
        self.any() || last.is_some_and(|last| last.elapsed() < AFTERWARDS)
    }

    /// One more.
    pub(super) fn one(&self) -> Lagging<'_> {
        self.count.fetch_add(1, Ordering::Relaxed);
        Lagging { of: self, since: Instant::now() }
    }
}

impl Drop for Lagging<'_> {
    fn drop(&mut self) {
        if self.since.elapsed() >= LONG {
            *self.of.last.lock().unwrap_or_else(PoisonError::into_inner) = Some(Instant::now());
        }
        self.of.count.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use tokio::time::advance;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn who_lagged_for_long_counts_for_a_while() {
        let laggards = Laggards::default();
        drop(laggards.one());
        assert!(!laggards.any_lately(), "a moment is nothing");
        let one = laggards.one();
        advance(LONG).await;
        drop(one);
        assert!(!laggards.any() && laggards.any_lately());
        advance(AFTERWARDS).await;
        assert!(!laggards.any_lately());
    }
}
