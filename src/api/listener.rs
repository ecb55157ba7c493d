//! Sockets on the host that the API is served on. Owns: the listeners, their files, how many clients there
//! are at a time.
//! May not: read from a client. Read next: `connection.rs`.

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinSet;

use super::connection::Unsent;
use super::origin::Names;
use super::{Api, Client, Peer, Scope, connection, limit};
use crate::addr::ListenAddress;
use crate::listen::{self, Bound, RemoveOnDrop, TcpAddress};
use crate::logging::Limited;
use crate::supervise::{ACCEPT_PAUSE, accept_clients};
use crate::sys::sockets::{VMADDR_CID_HOST, VMADDR_CID_LOCAL, vsock_address};
use crate::sys::stream::Stream;
use crate::sys::watched::Watched;

/// Clients of one listener at a time, without those that were taken over. When as many requests are at work
/// the next one is closed.
const MAX_CLIENTS: usize = 4096;
/// The pause after the process ran out of descriptors, where one is about to be free.
const CLOSE_PAUSE: Duration = Duration::from_millis(5);

/// Which flag a listener is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    /// `-listen`.
    Control,
    /// `-services`.
    Services,
}

impl Role {
    fn scope(self) -> Scope {
        match self {
            Self::Control => Scope::Control,
            Self::Services => Scope::Services,
        }
    }
}

/// A socket of the API, bound; clients may connect from now on.
#[derive(Debug)]
pub struct ApiListener {
    /// Before the socket, as it must be dropped first.
    file: Option<RemoveOnDrop>,
    socket: Watched,
    at: ListenAddress,
    /// What requests may call it, where anybody's page may send one.
    names: Option<Arc<Names>>,
    role: Role,
}

impl ApiListener {
    /// Binds `at`: a unix socket with mode 0600, in place of a dead one.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn bind(at: &ListenAddress, role: Role) -> Result<Self> {
        if matches!(at, ListenAddress::Abstract(_) | ListenAddress::Pipe(_) | ListenAddress::Inherited(_)) {
            bail!("cannot listen: listen {at}: the API is served at unix, tcp and vsock URLs");
        }
        let Bound { socket, file, .. } = listen::bind(at).context("cannot listen")?;
        let socket = Watched::new(socket.into(), Interest::READABLE)
            .with_context(|| format!("cannot listen on {at}"))?;
        let names = match at {
            ListenAddress::Tcp { host, .. } => Some(Arc::new(Names { listened: Some(host.clone()) })),
            _ => None,
        };
        match role {
            Role::Control => tracing::info!(url = %at, "listening"),
            Role::Services => tracing::info!(url = %at, "enabling services API. Listening"),
        }
        Ok(Self { file, socket, at: at.clone(), names, role })
    }

    /// Where it listens, if that is TCP.
    pub fn tcp_address(&self) -> Option<TcpAddress> {
        TcpAddress::of(SockRef::from(&self.socket.fd()))
    }

    /// The socket's file, if it has one.
    pub fn file(&self) -> Option<&RemoveOnDrop> {
        self.file.as_ref()
    }

    /// Serves clients until `stopped` turns true or its sender is gone; then drops them and removes the
    /// socket.
    pub async fn run(mut self, api: Arc<Api>, mut stopped: watch::Receiver<bool>) {
        let mut clients = JoinSet::new();
        let failures = Limited::new(1, Duration::from_secs(60));
        let refusals = Limited::new(1, Duration::from_secs(60));
        let limit = limit(MAX_CLIENTS);
        let at = &self.at;
        let accept = || async { self.accept().await.map(Some) };
        let serve = |(stream, scope, peer), _| {
            // Never waited for here: others are behind.
            let Some(slot) = limit.admit(peer) else {
                if let Some(suppressed) = refusals.admit(Instant::now()) {
                    tracing::warn!(url = %at, suppressed, "too many clients, closed one");
                }
                return None;
            };
            // It has a mode. Every user of this machine reaches the others.
            let is_private = matches!(at, ListenAddress::Unix { .. });
            let names = self.names.clone();
            let client = Client { scope, is_private, slot, names, unsent: Unsent::default() };
            Some(connection::serve(Arc::clone(&api), stream, client))
        };
        let failed = |error| {
            if let Some(suppressed) = failures.admit(Instant::now()) {
                tracing::warn!(url = %at, %error, suppressed, "cannot accept clients, trying again");
            }
            if limit.shed() { CLOSE_PAUSE } else { ACCEPT_PAUSE }
        };
        // The limit closes whom it has no slot for: none is left to the backlog.
        let accepting = accept_clients(&mut clients, usize::MAX, accept, serve, failed);
        tokio::select! {
            never = accepting => match never {},
            // An error says that nobody is left to signal.
            _ = stopped.wait_for(|stop| *stop) => {}
        }
        clients.shutdown().await;
        if let Some(file) = self.file.take() {
            file.remove().await;
        }
    }

    async fn accept(&self) -> io::Result<(Stream, Scope, Peer)> {
        let (stream, from) = listen::accept(&self.socket).await?;
        // Of other kinds than TCP it is not known; and it is slower without, not wrong.
        let _ = stream.set_nodelay(true);
        let (scope, peer) = match vsock_address(&from) {
            Some((cid, _)) => of_vsock(cid, self.role),
            None => (self.role.scope(), Peer(0)),
        };
        Ok((stream, scope, peer))
    }
}

/// What the context `cid` may ask for, and whose share it has: a process of this machine as over TCP, a
/// virtual machine its network.
fn of_vsock(cid: u32, role: Role) -> (Scope, Peer) {
    match cid {
        VMADDR_CID_HOST | VMADDR_CID_LOCAL => (role.scope(), Peer(0)),
        cid => (Scope::Machine { control: role == Role::Control }, Peer(cid)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// As vsock's loopback leads every user of this machine here.
    #[test]
    fn who_sends_the_token_over_vsock() {
        for (cid, control, services) in [
            (VMADDR_CID_LOCAL, Scope::Control, Scope::Services),
            (VMADDR_CID_HOST, Scope::Control, Scope::Services),
            (3, Scope::Machine { control: true }, Scope::Machine { control: false }),
        ] {
            for (role, expected) in [(Role::Control, control), (Role::Services, services)] {
                let (scope, _) = of_vsock(cid, role);
                assert_eq!(scope, expected, "{cid}");
                assert_eq!(scope.sends_token(false, false), cid != 3, "{cid}");
            }
        }
    }
}
