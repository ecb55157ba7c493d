//! Waiting for what becomes ready. Owns: when the loop sleeps, and when it stays awake for a moment. May not:
//! act on events.
//! Read next: `mod.rs`, the turn.
//!
//! Waking a processor costs more than a small frame does, and who exchanges those waits for each. So while
//! turns carry little, when the wait before was short, the loop asks again for a moment (as KVM does before
//! it halts, and Linux with `net.core.busy_poll`), and lets whoever else is ready run in between. One such
//! wait in vain, and the next one is asleep.

use std::io;
use std::time::{Duration, Instant};

use mio::{Events, Poll};

/// How long to stay awake: a few of the wakeups that an answer takes on its way.
const AWAKE: Duration = Duration::from_micros(50);
/// Bytes of a turn that carries little, as an average of the last ones. Where there is more, it is batches
/// that count, and processors have other work.
const LITTLE: usize = 4096;

/// What the waits so far say of the next one.
#[derive(Debug, Default)]
pub(super) struct Waits {
    last_was_short: bool,
    /// What a turn carries, in bytes: each weighs an eighth of what is left by those after it.
    average: usize,
}

impl Waits {
    /// Waits for `events`, for `timeout` at most, after a turn that read and wrote `bytes`.
    ///
    /// # Errors
    /// The event queue's.
    pub(super) fn wait(
        &mut self,
        poll: &mut Poll,
        events: &mut Events,
        timeout: Option<Duration>,
        bytes: usize,
    ) -> io::Result<()> {
        self.average = (self.average * 7 + bytes) / 8;
        if timeout == Some(Duration::ZERO) {
            return poll_once(poll, events, timeout);
        }
        let start = Instant::now();
        let awake = timeout.map_or(AWAKE, |timeout| timeout.min(AWAKE));
        if self.last_was_short && self.average <= LITTLE {
            loop {
                poll_once(poll, events, Some(Duration::ZERO))?;
                if !events.is_empty() {
                    return Ok(());
                }
                if start.elapsed() >= awake {
                    break;
                }
                std::thread::yield_now();
            }
        }
        poll_once(poll, events, timeout.map(|timeout| timeout.saturating_sub(start.elapsed())))?;
        self.last_was_short = start.elapsed() < AWAKE;
        Ok(())
    }
}

/// Asks once. A signal is no event.
fn poll_once(poll: &mut Poll, events: &mut Events, timeout: Option<Duration>) -> io::Result<()> {
    match poll.poll(events, timeout) {
        Err(error) if error.kind() == io::ErrorKind::Interrupted => {
            events.clear();
            Ok(())
        }
        result => result,
    }
}

#[cfg(test)]
mod tests {
    use mio::{Token, Waker};

    use super::*;

    #[test]
    fn awake_only_while_events_come_soon_after_little_was_carried() {
        let (mut poll, mut events) = (Poll::new().unwrap(), Events::with_capacity(8));
        let waker = Waker::new(poll.registry(), Token(0)).unwrap();
        let mut waits = Waits { last_was_short: true, average: 0 };
        let mut wait = |waits: &mut Waits, bytes| {
            waits.wait(&mut poll, &mut events, Some(Duration::from_millis(20)), bytes).unwrap();
            events.iter().count()
        };
        for bytes in [0, LITTLE, LITTLE * 9] {
            waker.wake().unwrap();
            assert_eq!(wait(&mut waits, bytes), 1, "an event that is there, after {bytes} bytes");
        }
        assert!(waits.average > LITTLE, "{waits:?}");
        assert_eq!(wait(&mut waits, 0), 0);
        assert!(!waits.last_was_short, "after 20 ms without one");
        assert_eq!(wait(&mut waits, 0), 0);
    }
}
