//! What goes on in spite of failures: how long it pauses, that the same failure is told once, and the
//! accepting of clients.
//! Owns: nothing. May not: log, or know what a client is.

use std::convert::Infallible;
use std::future::Future;
use std::io;
use std::pin::pin;
use std::time::Duration;

use tokio::task::JoinSet;
use tokio::time::sleep;

/// How long a listener accepts nobody after the process ran out of descriptors: its clients wait in the
/// backlog.
pub const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Takes clients by `accept`, `None` for one that is not to be served, and makes what `serve` returns a task
/// of `clients`. While there are `max` of them others wait in the backlog. `serve` is told how many there are
/// already; `failed` says how long to pause.
///
/// What `accept` returns is polled until it is done, or all of this is dropped.
pub async fn accept_clients<C, A, S>(
    clients: &mut JoinSet<()>,
    max: usize,
    mut accept: impl FnMut() -> A,
    mut serve: impl FnMut(C, usize) -> Option<S>,
    mut failed: impl FnMut(io::Error) -> Duration,
) -> Infallible
where
    A: Future<Output = io::Result<Option<C>>>,
    S: Future<Output = ()> + Send + 'static,
{
    loop {
        let mut accepting = pin!(accept());
        let accepted = loop {
            tokio::select! {
                Some(_) = clients.join_next() => {}
                accepted = &mut accepting, if clients.len() < max => break accepted,
            }
        };
        match accepted {
            Ok(Some(client)) => {
                if let Some(served) = serve(client, clients.len()) {
                    clients.spawn(served);
                }
            }
            Ok(None) => {}
            Err(error) => sleep(failed(error)).await,
        }
    }
}

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

    #[tokio::test(start_paused = true)]
    async fn clients_are_accepted_while_there_is_room_and_after_failures() {
        let (sender, coming) = tokio::sync::mpsc::unbounded_channel();
        for client in [Ok(Some(0)), Ok(None), Err(io::ErrorKind::Other.into()), Ok(Some(1)), Ok(Some(2))] {
            sender.send(client).unwrap();
        }
        let coming = tokio::sync::Mutex::new(coming);
        let (leave, left) = tokio::sync::watch::channel(false);
        let (mut clients, mut served, mut failures) = (JoinSet::new(), Vec::new(), 0);
        let accept = || async { coming.lock().await.recv().await.unwrap() };
        let serve = |client, others| {
            served.push((client, others));
            let mut left = left.clone();
            Some(async move { drop(left.wait_for(|left| *left).await) })
        };
        let failed = |_| {
            failures += 1;
            ACCEPT_PAUSE
        };
        let accepting = async {
            tokio::select! {
                never = accept_clients(&mut clients, 2, accept, serve, failed) => match never {},
                () = async {
                    sleep(ACCEPT_PAUSE * 2).await;
                    assert_eq!(coming.lock().await.len(), 1, "two are served, the third waits");
                    leave.send(true).unwrap();
                    sleep(ACCEPT_PAUSE).await;
                } => {}
            }
        };
        accepting.await;
        assert_eq!((&served[..2], failures), (&[(0, 0), (1, 1)][..], 1));
        assert!(matches!(served[2..], [(2, 0 | 1)]), "{served:?}");
    }

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
