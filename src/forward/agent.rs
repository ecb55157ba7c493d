//! Unix sockets on the host that lead to unix sockets in the guest by way of its agent, without a user and a key.
//!
//! As over SSH, the socket is there before the guest is, and a client that connects early waits for the guest, for a bounded time. One
//! that the guest has no agent for is closed, and the log says what to start.
//!
//! Owns: the listener, its file, the clients that wait. May not: carry bytes (the engine does, from the client's descriptor).
//! Read next: `../engine/agent.rs`; `unix.rs`, the same over SSH; `../guest/agent.rs`, the agent.

use std::io::Read as _;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use super::unix::{Bound, PATIENCE, Quiet, has_left};
use crate::config::AgentForward as Wanted;
use crate::engine::{Handle, Refused};
use crate::text::quote;

/// The pause after a guest that was not there; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// A guest that is there answers a client within this time.
const PRESENT: Duration = Duration::from_millis(500);
/// How long a guest that a client has waited for may take from its first answer to its agent's start.
const BOOT: Duration = Duration::from_secs(30);

/// A host socket, bound, whose clients reach a socket in the guest.
#[derive(Debug)]
pub struct AgentForward {
    bound: Bound,
    way: Way,
}

/// Where clients are led.
#[derive(Debug)]
struct Way {
    to: SocketAddrV4,
    dest: String,
    log: Quiet,
}

impl AgentForward {
    /// Binds the socket with mode 0600, in place of a stale one; clients may connect from now on. `agent` is where the guest's agent
    /// listens in the virtual network.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn bind(wanted: &Wanted, agent: SocketAddrV4) -> Result<Self> {
        let way = Way { to: agent, dest: wanted.dest.clone(), log: Quiet::default() };
        Ok(Self { bound: Bound::bind(wanted.socket.clone())?, way })
    }

    /// Serves clients until `shutdown` turns true or its sender is gone; then drops those that wait and removes the socket.
    ///
    /// # Errors
    /// The listener cannot be handed to the runtime.
    pub async fn run(self, engine: Handle, shutdown: watch::Receiver<bool>) -> Result<()> {
        let Self { bound, way } = self;
        let way = Arc::new(way);
        info!(socket = %bound.socket.display(), dest = way.dest, "forward: listening, for clients of the guest's agent");
        let serve = |client| {
            let (way, engine) = (Arc::clone(&way), engine.clone());
            async move { way.serve(client, &engine).await }
        };
        bound.serve(shutdown, &way.log, serve).await
    }
}

impl Way {
    /// Waits for the guest, and leads the client there.
    async fn serve(&self, mut client: UnixStream, engine: &Handle) {
        let deadline = Instant::now() + PATIENCE;
        let mut pause = FIRST_PAUSE;
        // Whether the guest was waited for, and since when it has refused.
        let (mut waited, mut booting) = (false, None);
        loop {
            let asked = Instant::now();
            let led = match client.into_std() {
                Ok(client) => engine.lead(client, self.to, &self.dest).await,
                Err(error) => return debug!(%error, "forward: client failed"),
            };
            let Err(turned) = led else { return debug!(dest = self.dest, "forward: client connected") };
            waited |= asked.elapsed() > PRESENT;
            let again = match &turned.why {
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
                self.say(&turned.why);
                return turned.client.map_or((), close);
            }
            debug!(reason = %turned.why, dest = self.dest, "forward: waiting for the guest");
            let Some(Ok(back)) = turned.client.map(UnixStream::from_std) else { return };
            client = back;
            sleep(pause).await;
            pause = (pause * 2).min(LAST_PAUSE);
            if has_left(&client) {
                return debug!(dest = self.dest, "forward: client left before the guest answered");
            }
        }
    }

    /// Why clients are closed: once for all of them for a while.
    fn say(&self, reason: &Refused) {
        let Self { to, dest, .. } = self;
        match reason {
            reason if !self.log.may_say() => debug!(%reason, dest, "forward: client turned away"),
            Refused::Unreachable => warn!(%reason, dest, "forward: client turned away"),
            reason => {
                let port = match to.port() {
                    crate::agent::PORT => String::new(),
                    port => format!(" -agent-port {port}"),
                };
                let start = format_args!("gvforwarder -agent{port} -agent-allow {}", shown(dest));
                warn!(%reason, agent = %to, %start, "forward: client turned away; this has to run in the guest");
            }
        }
    }
}

/// Closes so that the client reads an end: with something unread it would be a reset.
fn close(mut client: std::os::unix::net::UnixStream) {
    let mut unread = [0; 4096];
    // It is non-blocking. Whoever sends on and on may well be reset.
    for _ in 0..64 {
        if !client.read(&mut unread).is_ok_and(|len| len > 0) {
            break;
        }
    }
}

/// A path as a shell takes it, where that is simple.
fn shown(path: &str) -> String {
    let is_plain = |b: u8| b.is_ascii_alphanumeric() || b"/._-+:@".contains(&b);
    if path.bytes().all(is_plain) { path.to_owned() } else { quote(path) }
}
