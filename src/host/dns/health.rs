//! Which servers are known to be dead. Owns: since when each is silent. May not: change the order of servers:
//! that is `resolv.conf`'s for every question. Read next: `race.rs`, which waits less for the dead.

use std::net::SocketAddr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, timeout};

use super::exchange::{self, Question};

/// A question that a server owes the answer to is forgotten after this time, if it was the only one.
const FORGET: Duration = Duration::from_secs(60);

/// Servers that left questions unanswered since they answered last. No longer than the list of servers.
#[derive(Clone, Debug, Default)]
pub(super) struct Health(Arc<Mutex<Vec<Silence>>>);

#[derive(Debug)]
struct Silence {
    server: SocketAddr,
    /// When the first of these questions was asked.
    since: Instant,
    /// Another was asked after the first had been given up, and given up too.
    dead: bool,
    probed: bool,
}

impl Health {
    /// Forgets all but `servers`.
    pub(super) fn retain(&self, servers: &[SocketAddr]) {
        self.lock().retain(|silence| servers.contains(&silence.server));
    }

    /// Whether two questions in a row had no answer. One may be slow, lost, or about a name that nobody
    /// answers for.
    pub(super) fn is_dead(&self, server: SocketAddr) -> bool {
        self.lock().iter().any(|silence| silence.server == server && silence.dead)
    }

    /// It answered, whatever.
    pub(super) fn heard(&self, server: SocketAddr) {
        self.lock().retain(|silence| silence.server != server);
    }

    /// A question asked at `asked` was given up after `patience`.
    pub(super) fn missed(&self, server: SocketAddr, asked: Instant, patience: Duration) {
        let mut silences = self.lock();
        match silences.iter_mut().find(|silence| silence.server == server) {
            None => silences.push(Silence { server, since: asked, dead: false, probed: false }),
            Some(silence) if silence.dead || asked < silence.since + patience => {}
            Some(silence) if asked > silence.since + FORGET => silence.since = asked,
            Some(silence) => {
                silence.dead = true;
                tracing::debug!(%server, "resolver is dead");
            }
        }
    }

    /// Goes on waiting for a dead server, whose answer was too late for the client; for one question at a
    /// time.
    pub(super) fn probe(&self, server: SocketAddr, question: &Arc<Question>) {
        let unprobed = self
            .lock()
            .iter_mut()
            .any(|silence| silence.server == server && !std::mem::replace(&mut silence.probed, true));
        if !unprobed {
            return;
        }
        let (health, question) = (self.clone(), Arc::clone(question));
        tokio::spawn(async move {
            match timeout(question.timeout, exchange::ask(server, &question)).await {
                Ok(Ok(_)) => health.heard(server),
                _ => health
                    .lock()
                    .iter_mut()
                    .filter(|silence| silence.server == server)
                    .for_each(|silence| silence.probed = false),
            }
        });
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Silence>> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn dead_is_who_owes_two_answers_in_a_row() {
        let health = Health::default();
        let server: SocketAddr = "127.0.0.1:53".parse().unwrap();
        let patience = Duration::from_secs(4);
        let start = Instant::now();
        for asked in [0, 1, 3] {
            health.missed(server, start + Duration::from_secs(asked), patience);
            assert!(!health.is_dead(server), "at the same time as the first");
        }
        health.missed(server, start + patience, patience);
        assert!(health.is_dead(server));
        health.heard(server);
        assert!(!health.is_dead(server));
        health.missed(server, start, patience);
        health.missed(server, start + FORGET * 2, patience);
        assert!(!health.is_dead(server), "the first was long ago");
        health.missed(server, start + FORGET * 2 + patience, patience);
        assert!(health.is_dead(server));
        health.retain(&[]);
        assert!(!health.is_dead(server));
    }
}
