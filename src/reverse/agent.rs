//! A socket of the guest by way of its agent. A few connections wait for a client each, so that the next one finds one; another takes the
//! place of each that has its client.
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
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::{FAREWELL, Host, MAX_CLIENTS, Retry, stopped};
use crate::agent::{ACCEPT, CLIENT, ONLY, PORT, SIGN_LIMIT, next_line};
use crate::dial::{Dial, stream};
use crate::text::{quote, shown};

/// Connections that wait for a client.
const WAITING: usize = 4;
const DIAL_LIMIT: Duration = Duration::from_secs(5);
/// How long an agent that accepted may take to answer.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Bytes of a line of the agent's, with its end, and of what may come with it.
const MAX_LINE: usize = 256;

/// Why a connection does not wait.
#[derive(Debug, Error)]
enum Failure {
    #[error("the guest does not answer: {0}")]
    Unreachable(io::Error),
    #[error("the agent closed the connection without an answer")]
    Left,
    #[error("the agent gave no sign of life within {} s", SIGN_LIMIT.as_secs())]
    Mute,
    #[error("no agent's answer: {0}")]
    Garbage(String),
    #[error("the agent says {0}")]
    Said(String),
    #[error("the connection to the agent was lost")]
    Lost,
}

/// What became of a connection.
enum Step {
    /// The agent has the socket, and the connection waits.
    Waits(Lines),
    /// It has a client, of which these bytes have come already.
    Client(UnixStream, Vec<u8>),
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
            let (ways, line) = (Arc::clone(&host.ways), [ACCEPT, only, path.as_bytes(), b"\n"].concat());
            steps.spawn(async move { greet(&*ways, to, &line).await });
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
                    clients.spawn(lead(client, early, Arc::clone(host)));
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
                    say(&failure, to, path);
                } else {
                    debug!(%failure, path, "reverse: a connection to the agent failed");
                }
                // Of several that end at once the first one counts.
                if !pausing {
                    let refused = matches!(failure, Failure::Said(_) | Failure::Garbage(_));
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
fn say(failure: &Failure, agent: SocketAddrV4, path: &str) {
    let port = match agent.port() {
        PORT => String::new(),
        port => format!(" -agent-port {port}"),
    };
    let start = format_args!("gvforwarder -agent{port} -agent-offer {}", shown(path));
    match failure {
        Failure::Said(_) | Failure::Garbage(_) => {
            warn!(%failure, %agent, %start, "reverse: no socket in the guest, where this has to run; trying again");
        }
        failure => info!(%failure, %agent, %start, "reverse: waiting for the guest, where this has to run"),
    }
}

/// A connection, and what was heard on it and not yet understood.
struct Lines {
    stream: UnixStream,
    heard: Vec<u8>,
    since: Instant,
}

impl Lines {
    /// The next line, without its end.
    async fn next(&mut self) -> Result<Vec<u8>, Failure> {
        match next_line(&mut self.stream, &mut self.heard, MAX_LINE).await {
            Ok(Some(line)) => Ok(line),
            Ok(None) => Err(Failure::Garbage(quote(&self.heard))),
            Err(_) => Err(Failure::Left),
        }
    }
}

/// Has the agent make the socket.
async fn greet<D: Dial>(dialer: &D, to: SocketAddrV4, line: &[u8]) -> Step {
    let failed = |failure| Step::Failed(failure, None);
    let mut stream = match dialer.dial(&to.into(), DIAL_LIMIT).await {
        Ok(stream) => stream,
        Err(error) => return failed(Failure::Unreachable(error)),
    };
    if stream.write_all(line).await.is_err() {
        return failed(Failure::Left);
    }
    let mut lines = Lines { stream, heard: Vec::with_capacity(MAX_LINE), since: Instant::now() };
    match timeout(ANSWER_LIMIT, lines.next()).await {
        Ok(Ok(line)) if line == b"OK" => Step::Waits(lines),
        Ok(Ok(line)) => failed(match line.strip_prefix(b"ERR ") {
            Some(words) => Failure::Said(quote(words)),
            None => Failure::Garbage(quote(&line)),
        }),
        Ok(Err(failure)) => failed(failure),
        Err(_) => failed(Failure::Mute),
    }
}

/// Waits for a client. An agent that ended closes the connection; a guest that vanished says nothing, which is noticed by the signs of life
/// that are missing: a connection on which nobody speaks would otherwise look alive for ever.
async fn wait(mut lines: Lines, shutdown: watch::Receiver<bool>) -> Step {
    let mut stop = pin!(stopped(shutdown));
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
            Ok(Ok(line)) if line.is_empty() => continue,
            Ok(Ok(line)) if line == CLIENT => return Step::Client(lines.stream, lines.heard),
            Ok(Ok(line)) => Failure::Garbage(quote(&line)),
            Ok(Err(Failure::Left)) => Failure::Lost,
            Ok(Err(failure)) => failure,
            Err(_) => Failure::Mute,
        };
        return Step::Failed(failure, Some(lines.since));
    }
}

/// Leads one client to the host's socket.
async fn lead(client: UnixStream, early: Vec<u8>, host: Arc<Host>) {
    let Some((socket, _place)) = host.connect().await else { return };
    let joined = async {
        let mut socket = stream(socket)?;
        // A new one takes that much at once. One that takes nothing may have answered: what carries the bytes finds out.
        let _ = socket.write_all(&early).await;
        io::Result::Ok((client.into_std()?, socket.into_std()?))
    };
    match joined.await {
        Ok((client, socket)) => {
            let ended = host.ways.relays.carry(client, socket).await;
            debug!(?ended, dest = %host.dest, "reverse: client ended");
        }
        Err(error) => debug!(%error, dest = %host.dest, "reverse: client failed"),
    }
}
