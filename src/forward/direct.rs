//! Clients that are led where the host's own system connects: a unix socket, a TCP port, a machine's vsock.
//! The kernel moves the bytes.
//!
//! Whoever is to be there may come later: a client waits for it, for a bounded time.
//!
//! Owns: the clients that wait. May not: carry bytes (`crate::relay`). Read next: `crate::relay`;
//! `crate::vsock`.

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::io;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use tokio::sync::Mutex;
use tokio::time::{Instant, sleep, timeout, timeout_at};
use tracing::debug;

use super::clients::{ClientLog, has_left, tune};
use super::loops::OwnSocket;
use crate::addr::HostPort;
use crate::dial;
use crate::disk;
use crate::relay::{Relays, discard};
use crate::supervise::Backoff;
use crate::sys::stream::Stream;
use crate::text::reason;
use crate::vsock;

/// The pause after an attempt in vain; it doubles up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LAST_PAUSE: Duration = Duration::from_secs(1);
/// The same where a listener has more clients than it takes at once.
const FIRST_BUSY_PAUSE: Duration = Duration::from_millis(2);
const LAST_BUSY_PAUSE: Duration = Duration::from_millis(200);

/// An end that the host's system connects to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Direct {
    Unix(PathBuf),
    Tcp(HostPort),
    Vsock { cid: u32, port: u32 },
    HybridVsock { socket: PathBuf, port: u32 },
}

impl Direct {
    /// Connects once, for a client of `own`.
    ///
    /// # Errors
    /// The system's, or the VMM's word; or that it leads back to `own`.
    pub(super) async fn connect(&self, own: Option<&OwnSocket>) -> io::Result<OwnedFd> {
        let check = |other: BorrowedFd<'_>| own.map_or(Ok(()), |own| own.connected(other));
        let socket = match self {
            Self::Unix(path) => disk::connect(path).await?.into_std()?.into(),
            Self::Tcp(to) => {
                let socket = dial::connect(to).await?.into_std()?.into();
                tune(&socket);
                socket
            }
            Self::Vsock { cid, port } => vsock::connect(*cid, *port).await?,
            Self::HybridVsock { socket, port } => {
                let vmm = disk::connect(socket).await?;
                check(vmm.as_fd())?;
                return vsock::ask_hybrid(vmm, *port).await;
            }
        };
        check(socket.as_fd())?;
        Ok(socket)
    }
}

/// Leads clients to one such end.
#[derive(Debug)]
pub(super) struct DirectRoute {
    to: Direct,
    own: OwnSocket,
    relays: Arc<Relays>,
    log: ClientLog,
    /// Of those that wait for room in a full backlog one alone asks for it, in the order of their coming.
    turn: Mutex<()>,
}

impl DirectRoute {
    /// For the clients of `own`.
    pub(super) fn new(to: Direct, own: OwnSocket, relays: Arc<Relays>, log: ClientLog) -> Self {
        Self { to, own, relays, log, turn: Mutex::new(()) }
    }

    /// Waits for the other end for up to `patience`, and carries the client.
    pub(super) async fn serve(&self, client: Stream, patience: Duration) {
        let dest = self.log.dest();
        let Some(other) = self.connect(&client, patience).await else {
            return client.into_std().map_or((), discard);
        };
        match client.into_std() {
            Ok(client) => {
                let ended = match self.to {
                    Direct::HybridVsock { .. } => self.relays.carry_whole(client, other).await,
                    _ => self.relays.carry(client, other).await,
                };
                debug!(forth = ended.forth, back = ended.back, error = ?ended.error, dest, "forward: client ended");
            }
            Err(error) => debug!(%error, dest, "forward: client failed"),
        }
    }

    /// `None` when it is given up.
    async fn connect(&self, client: &Stream, patience: Duration) -> Option<OwnedFd> {
        let dest = self.log.dest();
        let arrival = Instant::now();
        let deadline = arrival + patience;
        let mut backoff = Backoff::new(FIRST_PAUSE, LAST_PAUSE);
        let mut busy = Backoff::new(FIRST_BUSY_PAUSE, LAST_BUSY_PAUSE);
        let mut turn = None;
        loop {
            let connected = async {
                self.own.may_connect()?;
                self.to.connect(Some(&self.own)).await
            };
            let connected = self.log.while_waiting(timeout_at(deadline, connected)).await;
            let error = match connected.unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into())) {
                Ok(other) => return Some(other),
                Err(error) => error,
            };
            self.own.failed();
            let is_final =
                matches!(error.kind(), io::ErrorKind::PermissionDenied | io::ErrorKind::InvalidData);
            if is_final || Instant::now() + backoff.pause() > deadline {
                self.log.turned_away(&reason(&error), None);
                return None;
            }
            self.log.waits(arrival.elapsed(), &reason(&error));
            if error.kind() != io::ErrorKind::WouldBlock {
                turn = None;
                sleep(backoff.next_pause()).await;
            } else if turn.is_some() {
                sleep(busy.next_pause()).await;
            } else {
                let mut free = pin!(self.turn.lock());
                while turn.is_none() && Instant::now() < deadline && !has_left(client) {
                    turn = timeout(LAST_PAUSE, free.as_mut()).await.ok();
                }
            }
            if has_left(client) {
                debug!(dest, "forward: client left before anybody answered");
                return None;
            }
        }
    }
}
