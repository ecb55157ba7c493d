//! A socket of the guest by way of its agent. A few connections wait for a client each, so that the next one
//! finds one; another takes the place of each that has its client.
//!
//! Owns: the connections to the agent. May not: know who is behind the host's socket.
//! Read next: `crate::agent`, what is said; `../guest/offers.rs`, the other side.

use std::io;
use std::net::SocketAddrV4;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use thiserror::Error;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{FAREWELL, Host, MAX_CLIENTS, Retry, stopped};
use crate::agent::{
    ACCEPT, ANSWER_TIME, CLIENT, MAX_LINE, ONLY, Question, Refusal, SIGN_EVERY, SIGN_LIMIT, SharedSecret,
    command, next_line,
};
use crate::dial::Dial;
use crate::sys::stream::{self, Stream};
use crate::text::quote;

/// Connections that wait for a client.
const WAITING: usize = 4;
/// The pause after signs of life that come much faster than need be.
const SIGN_PAUSE: Duration = Duration::from_millis(100);
const DIAL_LIMIT: Duration = Duration::from_secs(5);

/// Why a connection does not wait.
#[derive(Debug, Error)]
enum Failure {
    #[error("the guest does not answer: {0}")]
    Unreachable(io::Error),
    #[error("the agent closed the connection without an answer")]
    Left,
    #[error("the agent gave no sign of life within {} s", SIGN_LIMIT.as_secs())]
    Mute,
    #[error(transparent)]
    Agent(#[from] Refusal),
    #[error("no question can be asked: {0}")]
    Unasked(io::Error),
    #[error("the connection to the agent was lost")]
    Lost,
}

/// What became of a connection.
enum Step {
    /// The agent has the socket, and the connection waits.
    Waits(Lines),
    /// It has a client, of which these bytes have come already.
    Client(Stream, Vec<u8>),
    /// It never waited, or since then and not to the end.
    Failed(Failure, Option<Instant>),
    /// It was closed in order.
    Closed,
}

/// Keeps a socket at `path` in the guest whose agent listens at `to`.
pub(super) async fn run(to: SocketAddrV4, path: &str, host: &Arc<Host>, shutdown: watch::Receiver<bool>) {
    let mut steps = JoinSet::new();
    let mut clients = JoinSet::new();
    let mut waiting: usize = 0;
    let mut retry = Retry::default();
    let mut resume = Instant::now();
    let mut stop = pin!(stopped(shutdown.clone()));
    loop {
        // One alone finds out whether the agent is there.
        let wanted = if waiting == 0 { 1 } else { WAITING };
        let pausing = Instant::now() < resume;
        while !pausing && steps.len() < wanted {
            let only = if steps.is_empty() { ONLY } else { b"" };
            let (connector, line) = (Arc::clone(&host.connector), [ACCEPT, only, path.as_bytes()].concat());
            steps.spawn(async move { greet(&*connector, to, line, connector.agent_secret.as_ref()).await });
        }
        let step = tokio::select! {
            () = &mut stop => break,
            Some(step) = steps.join_next() => step,
            Some(_) = clients.join_next() => continue,
            () = sleep_until(resume), if pausing => continue,
        };
        match step {
            Ok(Step::Waits(lines)) => {
                if waiting == 0 && clients.is_empty() {
                    retry.made(path, host);
                }
                waiting += 1;
                steps.spawn(wait(lines, shutdown.clone()));
            }
            Ok(Step::Client(client, early)) => {
                waiting -= 1;
                if clients.len() < MAX_CLIENTS {
                    clients.spawn(serve_client(client, early, Arc::clone(host)));
                } else {
                    host.say("there are too many");
                }
            }
            Ok(Step::Failed(failure, waited)) => {
                if let Some(since) = waited {
                    waiting -= 1;
                    retry.lost(since);
                }
                if retry.is_news(&failure) {
                    say(&failure, to, host.connector.agent_secret.as_ref(), path);
                } else {
                    debug!(%failure, path, "reverse: a connection to the agent failed");
                }
                // Of several that end at once the first one counts.
                if !pausing {
                    let refused = matches!(failure, Failure::Agent(_));
                    resume = Instant::now() + retry.pause(refused);
                }
            }
            Ok(Step::Closed) => waiting -= 1,
            Err(error) => warn!(%error, path, "reverse: a connection failed"),
        }
    }
    let closed = async { while steps.join_next().await.is_some() {} };
    let _ = timeout(FAREWELL, closed).await;
}

/// What there is to do about it.
fn say(failure: &Failure, agent: SocketAddrV4, secret: Option<&SharedSecret>, path: &str) {
    let start = command(agent.port(), secret, "-agent-offer", path);
    match failure {
        Failure::Agent(_) => {
            warn!(%failure, %agent, start, "reverse: no socket in the guest, where this has to run; trying again");
        }
        failure => info!(%failure, %agent, start, "reverse: waiting for the guest, where this has to run"),
    }
}

/// A connection, and what was heard on it and not yet understood.
struct Lines {
    stream: Stream,
    heard: Vec<u8>,
    since: Instant,
}

impl Lines {
    /// The next line, without its end.
    async fn next(&mut self) -> Result<Vec<u8>, Failure> {
        match next_line(&mut self.stream, &mut self.heard).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(Refusal::Garbage(quote(&self.heard)).into()),
            Err(_) => Err(Failure::Left),
        }
    }

    /// Says and hears until the agent agrees.
    async fn ask(&mut self, mut question: Question) -> Result<(), Failure> {
        let mut words = Some(question.first());
        while let Some(said) = words {
            self.stream.write_all(&said).await.map_err(|_| Failure::Left)?;
            words = question.handle_answer(&self.next().await?)?;
        }
        Ok(())
    }
}

/// Has the agent make the socket.
async fn greet<D: Dial>(dialer: &D, to: SocketAddrV4, line: Vec<u8>, secret: Option<&SharedSecret>) -> Step {
    let greeted = async {
        let stream = dialer.dial(&to.into(), DIAL_LIMIT).await.map_err(Failure::Unreachable)?;
        let question = Question::new(line, secret).map_err(Failure::Unasked)?;
        let mut lines = Lines { stream, heard: Vec::with_capacity(MAX_LINE), since: Instant::now() };
        timeout(ANSWER_TIME, lines.ask(question)).await.unwrap_or(Err(Failure::Mute))?;
        Ok(lines)
    };
    greeted.await.map_or_else(|failure| Step::Failed(failure, None), Step::Waits)
}

/// Waits for a client. An agent that ended closes the connection; a guest that vanished says nothing, which
/// is noticed by the signs of life that are missing: a connection on which nobody speaks would otherwise look
/// alive for ever.
async fn wait(mut lines: Lines, shutdown: watch::Receiver<bool>) -> Step {
    let mut stop = pin!(stopped(shutdown));
    let mut signed: Option<Instant> = None;
    loop {
        let line = tokio::select! {
            line = timeout(SIGN_LIMIT, lines.next()) => line,
            () = &mut stop => {
                // Until the agent has closed its side it may not have heard.
                let _ = lines.stream.shutdown().await;
                while lines.stream.read(&mut [0; MAX_LINE]).await.is_ok_and(|read| read > 0) {}
                return Step::Closed;
            }
        };
        let failure = match line {
            Ok(Ok(line)) if line.is_empty() => {
                // One that gives signs without end takes no more than its part of everybody's time.
                if signed.replace(Instant::now()).is_some_and(|before| before.elapsed() < SIGN_EVERY / 10) {
                    sleep(SIGN_PAUSE).await;
                }
                continue;
            }
            Ok(Ok(line)) if line == CLIENT => return Step::Client(lines.stream, lines.heard),
            Ok(Ok(line)) => Refusal::Garbage(quote(&line)).into(),
            Ok(Err(Failure::Left)) => Failure::Lost,
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Mute,
        };
        return Step::Failed(failure, Some(lines.since));
    }
}

/// Joins one client with the host's socket.
async fn serve_client(client: Stream, early: Vec<u8>, host: Arc<Host>) {
    let Some((socket, _place)) = host.connect().await else { return };
    let joined = async {
        let mut socket = stream::watch(socket)?;
        // A new one takes that much at once. One that takes nothing may have answered: what carries the bytes
        // finds out.
        let _ = socket.write_all(&early).await;
        io::Result::Ok((client.into_std()?, socket.into_std()?))
    };
    match joined.await {
        Ok((client, socket)) => {
            let ended = host.connector.relays.carry(client, socket).await;
            debug!(?ended, dest = %host.dest, "reverse: client ended");
        }
        Err(error) => debug!(%error, dest = %host.dest, "reverse: client failed"),
    }
}

#[cfg(test)]
mod tests {
    use tokio::sync::watch;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn signs_without_end_are_heard_slowly() {
        let (near, mut far) = stream::watched_pair();
        let signs = [b'\n'; 100];
        far.write_all(&[&signs[..], CLIENT, b"\n"].concat()).await.unwrap();
        let (_stop, shutdown) = watch::channel(false);
        let start = Instant::now();
        let lines = Lines { stream: near, heard: Vec::new(), since: start };
        assert!(matches!(wait(lines, shutdown).await, Step::Client(..)));
        assert_eq!(start.elapsed(), SIGN_PAUSE * 99);
    }
}
