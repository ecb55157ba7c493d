//! The other way round: unix sockets in guests that lead to sockets of the host, such as an ssh-agent or a
//! build cache.
//!
//! The host asks for the socket, over SSH or by way of the guest's agent, for as long as it runs, and again
//! when the guest has started again; at the end the socket is removed. A client finds the host's socket
//! there, or is closed, as where nobody listens.
//!
//! Owns: when to ask again, how many clients there are. May not: decide what a guest lets be made.
//! Read next: `ssh.rs` and `agent.rs`, the two routes; `crate::forward`, the usual way round.

mod agent;
mod ssh;

use rustix::fd::OwnedFd;
use std::fmt::Display;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail};
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};
use tracing::{debug, info, warn};

use crate::addr::{Dest, SshDest};
use crate::config::Reverse as Wanted;
use crate::forward::{Connector, ssh::target};
use crate::logging::Limited;
use crate::permits::{Permit, Permits};
use crate::ssh::load_key;
use crate::supervise::LastFailure;
use crate::text::reason;

/// Clients of one socket at a time.
const MAX_CLIENTS: usize = 1024;
/// How long the host's socket may take to accept.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// The pause where it has more clients than it takes at once.
const BUSY_PAUSE: Duration = Duration::from_millis(2);
/// How long the guest may take to remove the socket at the end.
const FAREWELL: Duration = Duration::from_secs(1);
/// The pause after a guest that was not there; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
const LAST_PAUSE: Duration = Duration::from_secs(2);
/// The same after one that refused: sshd (since 9.8) shuts out an address that fails often.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
const LAST_REFUSED_PAUSE: Duration = Duration::from_secs(30);
/// A guest that kept the socket for as long is asked again at once.
const STEADY: Duration = Duration::from_secs(5);
/// Lines of one kind in the log, as guests can cause them.
const LOG_WINDOW: Duration = Duration::from_secs(30);

/// A socket that is to be in a guest.
#[derive(Debug)]
pub struct Reverse {
    socket: GuestSocket,
    host: Arc<Host>,
}

/// Where it is to be.
#[derive(Debug)]
enum GuestSocket {
    Ssh(crate::ssh::Target, String),
    Agent(SocketAddrV4, String),
}

impl Reverse {
    /// Does nothing yet.
    ///
    /// # Errors
    /// The identity is not a usable private key.
    pub fn new(wanted: &Wanted, connector: &Arc<Connector>) -> Result<Self> {
        let socket = match wanted.socket.clone() {
            Dest::Ssh(to) => {
                if let SshDest { key: Some(key), passphrase, .. } = &to {
                    load_key(key, passphrase.as_ref())?;
                }
                let (target, path) = target(to)?;
                GuestSocket::Ssh(target, path)
            }
            Dest::Agent { guest, port, path } => GuestSocket::Agent(connector.agent(guest, port), path),
            other => bail!("{other} is no socket in a guest"),
        };
        let host = Host {
            connector: Arc::clone(connector),
            permits: connector.permits.for_another(),
            dest: wanted.dest.clone(),
            log: Limited::new(1, LOG_WINDOW),
        };
        Ok(Self { socket, host: Arc::new(host) })
    }

    /// Keeps the socket in the guest until `shutdown` turns true or its sender is gone; then drops its
    /// clients, and removes it if the guest is quick about it.
    pub async fn run(self, shutdown: watch::Receiver<bool>) {
        let Self { socket, host } = self;
        match socket {
            GuestSocket::Ssh(target, path) => ssh::run(&target, &path, &host, shutdown).await,
            GuestSocket::Agent(to, path) => agent::run(to, &path, &host, shutdown).await,
        }
    }
}

/// The host's socket.
#[derive(Debug)]
struct Host {
    connector: Arc<Connector>,
    permits: Permits,
    dest: Dest,
    log: Limited,
}

impl Host {
    /// Connects for one client, which has a permit among the forwards' clients for as long as the second
    /// value lives; `None` if it is to be closed, and the log has been told.
    async fn connect(&self) -> Option<(OwnedFd, Permit)> {
        let Some(permit) = self.permits.try_take() else {
            self.say("there are as many clients as the limit of open files allows");
            return None;
        };
        let connected = timeout(CONNECT_LIMIT, async {
            loop {
                match self.connector.connect(&self.dest).await {
                    // Its backlog is full.
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(BUSY_PAUSE).await,
                    connected => return connected,
                }
            }
        });
        let connected = connected.await;
        match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
            Ok(socket) => Some((socket, permit)),
            Err(error) => {
                self.say(&reason(&error));
                None
            }
        }
    }

    /// Why clients are closed: once for all of them for a while.
    fn say(&self, reason: &str) {
        let dest = &self.dest;
        match self.log.admit(std::time::Instant::now()) {
            Some(suppressed) => {
                warn!(%dest, reason, suppressed, "reverse: a client of the guest turned away")
            }
            None => debug!(%dest, reason, "reverse: a client of the guest turned away"),
        }
    }
}

/// When the guest is asked again, and what is new about its answer.
#[derive(Debug)]
struct Retry {
    pause: Duration,
    last: LastFailure,
    log: Limited,
}

impl Default for Retry {
    fn default() -> Self {
        Self { pause: Duration::ZERO, last: LastFailure::default(), log: Limited::new(5, LOG_WINDOW) }
    }
}

impl Retry {
    /// The socket is there.
    fn made(&mut self, path: &str, host: &Host) {
        self.last.forget();
        let dest = &host.dest;
        match self.log.admit(std::time::Instant::now()) {
            Some(_) => info!(path, %dest, "reverse: the guest has a socket that leads here"),
            None => debug!(path, %dest, "reverse: the guest has a socket that leads here"),
        }
    }

    /// The socket was there `since` then, and is no more.
    fn lost(&mut self, since: Instant) {
        if since.elapsed() >= STEADY {
            self.pause = Duration::ZERO;
        }
    }

    /// Whether there is anything new in this failure.
    fn is_news(&mut self, failure: &impl Display) -> bool {
        self.last.is_news(&failure.to_string()) && self.log.admit(std::time::Instant::now()).is_some()
    }

    /// The next pause: after a refusal, or else after a guest that is not there or has left.
    fn pause(&mut self, refused: bool) -> Duration {
        let (first, last) = match refused {
            true => (REFUSED_PAUSE, LAST_REFUSED_PAUSE),
            false => (FIRST_PAUSE, LAST_PAUSE),
        };
        self.pause = (self.pause * 2).clamp(first, last);
        self.pause
    }
}

/// Waits until the end is asked for, or nobody is left to ask.
async fn stopped(mut shutdown: watch::Receiver<bool>) {
    let _ = shutdown.wait_for(|stop| *stop).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pauses_grow_and_end_with_a_steady_guest() {
        let mut retry = Retry::default();
        let pauses: Vec<_> = (0..7).map(|_| retry.pause(false).as_millis()).collect();
        assert_eq!(pauses, [100, 200, 400, 800, 1600, 2000, 2000]);
        assert_eq!(retry.pause(true), Duration::from_secs(4));
        let pauses: Vec<_> = (0..4).map(|_| retry.pause(true).as_secs()).collect();
        assert_eq!(pauses, [8, 16, 30, 30]);
        let Some(before) = Instant::now().checked_sub(STEADY) else { return };
        retry.lost(Instant::now());
        assert_eq!(retry.pause(false), LAST_PAUSE);
        retry.lost(before);
        assert_eq!(retry.pause(false), FIRST_PAUSE);
    }

    #[test]
    fn the_same_failure_is_news_once() {
        let mut retry = Retry::default();
        let news = ["a", "a", "b", "b", "a"].map(|text| retry.is_news(&text));
        assert_eq!(news, [true, false, true, false, true]);
        // However many there are.
        assert!((0..100).filter(|number| retry.is_news(number)).count() < 5);
    }
}
