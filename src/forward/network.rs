//! Clients that are led into the virtual network: to a TCP port of a guest, or by way of its agent to a unix
//! socket there, without a user and a key.
//!
//! As over SSH, a client that connects before the guest is there waits for it, for a bounded time. One that
//! the guest has no agent for is closed, and the log says what to start.
//!
//! Owns: the clients that wait. May not: carry bytes (the engine does, from the client's descriptor).
//! Read next: `../engine/client.rs`; `../guest/agent.rs`, the agent.

use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::time::{Instant, sleep};
use tracing::debug;

use super::clients::{ClientLog, has_left};
use crate::agent::{self, Question, SharedSecret};
use crate::engine::{Handle, Preface, Refused};
use crate::permits::Permit;
use crate::relay::discard;
use crate::supervise::Backoff;
use crate::sys::stream::{self, Stream};

/// The pause after a guest that was not there; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A guest that is there answers a client within this time.
const PRESENT: Duration = Duration::from_millis(500);
/// How long a guest that a client has waited for may take from its first answer to its service's start.
const BOOT: Duration = Duration::from_secs(30);

/// Where in the virtual network clients are led.
#[derive(Debug)]
pub(super) struct NetworkRoute {
    engine: Handle,
    to: SocketAddrV4,
    /// Of the socket, where `to` is an agent.
    path: Option<String>,
    /// The agent has to have it too.
    secret: Option<SharedSecret>,
    log: ClientLog,
}

impl NetworkRoute {
    pub(super) fn new(engine: Handle, to: SocketAddrV4, log: ClientLog) -> Self {
        Self { engine, to, path: None, secret: None, log }
    }

    /// To a socket behind the agent at `to`.
    pub(super) fn by_agent(self, path: String, secret: Option<SharedSecret>) -> Self {
        Self { path: Some(path), secret, ..self }
    }

    /// Waits for the guest for up to `patience`, and leads the client there.
    pub(super) async fn serve(&self, mut client: Stream, permit: Permit, patience: Duration) {
        let (to, path) = (self.to, self.path.as_deref());
        let arrival = Instant::now();
        let deadline = arrival + patience;
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        // Whether the guest was waited for, and since when it has refused.
        let (mut waited, mut booting) = (false, None);
        loop {
            let asked = Instant::now();
            let connected = match client.into_std().and_then(|client| Ok((client, self.preface()?))) {
                Ok((client, preface)) => {
                    let connecting = self.engine.forward_client(client.into(), permit.clone(), to, preface);
                    self.log.while_waiting(connecting).await
                }
                Err(error) => return debug!(%error, "forward: client failed"),
            };
            let Err(rejected) = connected else { return debug!(%to, path, "forward: client connected") };
            waited |= asked.elapsed() > PRESENT;
            let again = match &rejected.why {
                Refused::Unreachable | Refused::Silence => {
                    waited = true;
                    booting = None;
                    Instant::now() < deadline
                }
                Refused::Reset | Refused::Left if waited => {
                    Instant::now() < deadline.min(*booting.get_or_insert_with(Instant::now) + BOOT)
                }
                _ => false,
            };
            if !again {
                self.say(&rejected.why);
                return rejected.client.as_ref().map_or((), discard);
            }
            self.log.waits(arrival.elapsed(), &rejected.why.to_string());
            let Some(Ok(back)) = rejected.client.map(stream::watch) else { return };
            client = back;
            sleep(backoff.next_pause()).await;
            if has_left(&client) {
                return debug!(%to, path, "forward: client left before the guest answered");
            }
        }
    }

    /// What the agent is asked, or nothing.
    fn preface(&self) -> io::Result<Preface> {
        Ok(match &self.path {
            Some(path) => Preface::Asked(Question::new(path.clone().into_bytes(), self.secret.as_ref())?),
            None => Preface::Early(Vec::new()),
        })
    }

    /// Why a client is closed.
    fn say(&self, reason: &Refused) {
        let path = self.path.as_ref().filter(|_| *reason != Refused::Unreachable);
        let start =
            path.map(|path| agent::command(self.to.port(), self.secret.as_ref(), "-agent-allow", path));
        self.log.turned_away(&reason.to_string(), start.as_deref());
    }
}
