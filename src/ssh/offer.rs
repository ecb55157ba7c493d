//! A unix socket in the guest whose clients come to the host: `streamlocal-forward@openssh.com` (OpenSSH's
//! PROTOCOL, section 2.4).
//!
//! sshd makes the socket and never removes it, neither when the forward is cancelled nor when the connection
//! ends, and does not replace what is there unless `StreamLocalBindUnlink` is set. So a dead one is removed
//! by a command in the guest, before and after.
//!
//! Owns: a connection of its own, and the socket's file in the guest. May not: connect again, know where
//! clients are led.
//! Read next: `connection.rs`; `crate::reverse::ssh`, which uses it.

use std::pin::pin;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use russh::{ChannelMsg, ChannelOpenFailure, Disconnect};
use thiserror::Error;
use tokio::sync::mpsc;
use tokio::time::timeout;
use tracing::debug;

use super::backlog::Backlog;
use super::connection::{Connection, Exchanges, Opened};
use super::penalties::With;
use super::tunnel::Lease;
use super::{Channel, ConnectError, Penalties, Record, Target};
use crate::dial::Dial;
use crate::text::quote;

/// How long the guest may take for one thing that it is asked.
const ANSWER_LIMIT: Duration = Duration::from_secs(10);
/// Clients that have come and are not yet looked at; more are refused.
const BACKLOG: usize = 1024;

/// Removes a socket that nobody listens on, and says by its status what stands in the way of a new one.
/// `/proc/net/unix` lists every socket that is bound (proc_pid_net(5)); the path is what its line ends with.
/// Those that were accepted have it too, but are connected, which is state 03; type 0002 are datagrams. To be
/// run by any shell: it has no single quote in it.
const REMOVE: &str = r#"p=$1; d=${p%/*}
[ -d "${d:-/}" ] || exit 11
if [ -e "$p" ] || [ -L "$p" ]; then
  [ -S "$p" ] && ! [ -L "$p" ] || exit 12
  if [ -r /proc/net/unix ]; then
    while IFS= read -r line; do case "$line" in *" 01 "*" $p" | *" 0002 "*" $p") exit 13;; esac; done </proc/net/unix
  fi
  rm -f -- "$p" || exit 14
  exit 0
fi
[ -w "${d:-/}" ] || exit 14
exit 15"#;

/// Why there is no socket.
#[derive(Clone, Debug, Error)]
pub enum OfferError {
    /// No connection to the guest.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// It ended, or does not answer.
    #[error("the connection to the guest was lost")]
    Lost,
    /// Somebody has the socket.
    #[error("another program of the guest listens there")]
    InUse,
    /// What is there is no socket.
    #[error("there is a file in the guest that is no socket")]
    NoSocket,
    /// Nor is there a place for one.
    #[error("its directory is not there")]
    NoDirectory,
    /// The user may not write there.
    #[error("the user may not make or remove a file there")]
    NotWritable,
    /// It has no unix sockets to forward.
    #[error("the guest's sshd does not know how to forward unix sockets")]
    Incapable,
    /// There is nothing in the way that could be seen.
    #[error("the guest's sshd refuses it")]
    Refused,
    /// There may be a dead socket, which could not be looked at.
    #[error("the guest's sshd refuses it, and cannot be asked why: {0}")]
    Unexplained(String),
}

/// A socket in the guest, and the connection that keeps it.
#[derive(Debug)]
pub struct Offer {
    connection: Arc<Connection>,
    path: String,
    opened: mpsc::Receiver<Opened>,
}

impl Offer {
    /// Logs in at `target`, as soon as its sshd may be asked (again), and has it listen at `path`. A socket
    /// that nobody listens on is replaced.
    ///
    /// # Errors
    /// The guest is not there or refuses the key, or `path` cannot be had; see [`OfferError`].
    pub async fn make<D: Dial>(
        dialer: &D,
        penalties: &Penalties,
        target: &Target,
        record: &mut Record,
        exchanges: &Arc<Exchanges>,
        path: &str,
    ) -> Result<Self, OfferError> {
        let (to, opened) = mpsc::channel(BACKLOG);
        let known = &*record;
        let mut ticket = penalties.admit(target, || known.standing(target, penalties)).await;
        let with = With::now(target, penalties).await;
        let made =
            Connection::connect(dialer, target, Backlog::large(), exchanges, Some(to), &mut ticket).await;
        drop(ticket);
        if let Some(accepted) = ConnectError::verdict(&made) {
            record.note(with, accepted);
        }
        let connection = made?;
        let offer = Self { connection: Arc::new(connection), path: path.to_owned(), opened };
        if !offer.ask().await? {
            offer.make_room().await?;
            if !offer.ask().await? {
                return Err(OfferError::Refused);
            }
        }
        Ok(offer)
    }

    /// Whether sshd listens now.
    async fn ask(&self) -> Result<bool, OfferError> {
        match timeout(ANSWER_LIMIT, self.connection.handle().streamlocal_forward(&self.path)).await {
            Ok(Ok(())) => Ok(true),
            Ok(Err(russh::Error::RequestDenied)) => Ok(false),
            Ok(Err(_)) | Err(_) => Err(OfferError::Lost),
        }
    }

    /// Removes a dead socket, or says what is in the way.
    async fn make_room(&self) -> Result<(), OfferError> {
        // A daemon that was killed says no good-bye: its session in the guest lives on and listens, until it
        // sends something and is told that nobody is there. This connection makes it send something.
        match timeout(ANSWER_LIMIT, self.connection.open(&self.path)).await {
            Ok(Ok((channel, _share))) => {
                let _ = channel.close().await;
                return Err(OfferError::InUse);
            }
            Ok(Err(russh::Error::ChannelOpenFailure(ChannelOpenFailure::UnknownChannelType))) => {
                return Err(OfferError::Incapable);
            }
            Ok(Err(russh::Error::ChannelOpenFailure(_))) => {}
            Ok(Err(_)) | Err(_) => return Err(OfferError::Lost),
        }
        match timeout(ANSWER_LIMIT, self.remove()).await {
            Ok(Ok(0)) => Ok(()),
            Ok(Ok(11)) => Err(OfferError::NoDirectory),
            Ok(Ok(12)) => Err(OfferError::NoSocket),
            Ok(Ok(13)) => Err(OfferError::InUse),
            Ok(Ok(14)) => Err(OfferError::NotWritable),
            Ok(Ok(15)) => Err(OfferError::Refused),
            Ok(Ok(status)) => Err(OfferError::Unexplained(format!("a command ended with status {status}"))),
            Ok(Err(error)) => Err(OfferError::Unexplained(error)),
            Err(_) => Err(OfferError::Unexplained("a command does not end".into())),
        }
    }

    /// Runs [`REMOVE`] in the guest; its status, or why there is none.
    async fn remove(&self) -> Result<u32, String> {
        let failed = |error: russh::Error| error.to_string();
        let mut channel = self.connection.handle().channel_open_session().await.map_err(failed)?;
        let _share = self.connection.share(&channel);
        let path = self.path.replace('\'', r"'\''");
        channel.exec(true, format!("sh -c '{REMOVE}' sh '{path}'")).await.map_err(failed)?;
        let (mut status, mut words) = (None, Vec::new());
        while let Some(message) = channel.wait().await {
            match message {
                ChannelMsg::ExitStatus { exit_status } => status = Some(exit_status),
                ChannelMsg::Failure => return Err("it runs no commands for this user".into()),
                ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } if words.len() < 256 => {
                    words.extend_from_slice(data.get(..256).unwrap_or(&data));
                }
                _ => {}
            }
        }
        if !words.is_empty() {
            debug!(words = quote(&words), "ssh: output of the guest's shell");
        }
        status.ok_or_else(|| "a command ended without a status".into())
    }

    /// Gives each client to `take`, until the connection ends or the guest is found gone.
    pub async fn serve(&mut self, mut take: impl FnMut(Arrival)) {
        let mut alive = pin!(self.connection.keep_alive());
        loop {
            let opened = tokio::select! {
                opened = self.opened.recv() => opened,
                () = &mut alive => return,
            };
            let Some(opened) = opened else { return };
            if opened.path == self.path {
                take(Arrival { opened, connection: Arc::clone(&self.connection) });
            }
        }
    }

    /// Has sshd listen no more, and removes the socket.
    pub async fn withdraw(self) {
        let Self { connection, path, .. } = &self;
        let cancelled = connection.handle().cancel_streamlocal_forward(path).await;
        let removed = self.remove().await;
        debug!(?cancelled, ?removed, path, "ssh: socket removed");
        let _ = connection.handle().disconnect(Disconnect::ByApplication, "", "").await;
    }
}

impl Drop for Offer {
    fn drop(&mut self) {
        self.connection.kill();
    }
}

/// A client of the guest's socket. Dropping it sends it away.
#[derive(Debug)]
pub struct Arrival {
    opened: Opened,
    connection: Arc<Connection>,
}

impl Arrival {
    /// Lets it in.
    pub async fn accept(self) -> Channel {
        let Self { opened: Opened { channel, reply, .. }, connection } = self;
        let share = connection.share(&channel);
        reply.accept().await;
        Channel::new((channel, share), Lease::of(&connection))
    }

    /// Sends it away, as nobody listens on the host.
    pub async fn refuse(self) {
        self.opened.reply.reject(ChannelOpenFailure::ConnectFailed).await;
    }

    /// Clients that are let in, on the same connection.
    pub fn served(&self) -> usize {
        self.connection.channels.load(Ordering::Relaxed)
    }
}
