//! Sockets on the host that the API is served on. Owns: the listeners, their files, how many clients there
//! are at a time.
//! May not: read from a client. Read next: `connection.rs`.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use socket2::SockRef;
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::net::{TcpListener, TcpStream, UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio_vsock::{VMADDR_CID_HOST, VsockListener, VsockStream};

use super::connection::Unsent;
use super::origin::Names;
use super::{Api, Client, Peer, Scope, connection, limit};
use crate::addr::ListenAddress;
use crate::listen::{self, Bound, RemoveOnDrop, TcpAddress, failed_to_bind};
use crate::logging::Limited;
use crate::supervise::{ACCEPT_PAUSE, accept_clients};
use crate::text::reason;

/// Clients of one listener at a time, without those that were taken over. When as many requests are at work
/// the next one is closed.
const MAX_CLIENTS: usize = 4096;
/// The pause after the process ran out of descriptors, where one is about to be free.
const CLOSE_PAUSE: Duration = Duration::from_millis(5);
/// A process on this machine, by way of vsock's loopback (vsock(7)).
const VMADDR_CID_LOCAL: u32 = 1;

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
    socket: Socket,
    at: ListenAddress,
    role: Role,
}

#[derive(Debug)]
enum Socket {
    Unix(UnixListener),
    Tcp(TcpListener, Arc<Names>),
    Vsock(VsockListener),
}

impl ApiListener {
    /// Binds `at`: a unix socket with mode 0600, in place of a dead one.
    ///
    /// # Errors
    /// It cannot be bound.
    pub fn bind(at: &ListenAddress, role: Role) -> Result<Self> {
        let (socket, file) = Socket::bind(at).context("cannot listen")?;
        match role {
            Role::Control => tracing::info!(url = %at, "listening"),
            Role::Services => tracing::info!(url = %at, "enabling services API. Listening"),
        }
        Ok(Self { file, socket, at: at.clone(), role })
    }

    /// Where it listens, if that is TCP.
    pub fn tcp_address(&self) -> Option<TcpAddress> {
        match &self.socket {
            Socket::Tcp(listener, _) => TcpAddress::of(SockRef::from(listener)),
            Socket::Unix(_) | Socket::Vsock(_) => None,
        }
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
        let (socket, at) = (&self.socket, &self.at);
        let accept = || async { socket.accept(self.role).await.map(Some) };
        let serve = |(stream, scope, peer), _| {
            // Never waited for here: others are behind.
            let Some(slot) = limit.admit(peer) else {
                if let Some(suppressed) = refusals.admit(Instant::now()) {
                    tracing::warn!(url = %at, suppressed, "too many clients, closed one");
                }
                return None;
            };
            let (names, is_private) = (socket.names(), socket.is_private());
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
}

impl Socket {
    fn bind(at: &ListenAddress) -> Result<(Self, Option<RemoveOnDrop>)> {
        let failed =
            |error: io::Error| failed_to_bind(format!("listen {at}: bind: {}", reason(&error)), &error);
        match at {
            ListenAddress::Unix { .. } => {
                let Bound { socket, file, .. } = listen::bind(at)?;
                Ok((Self::Unix(UnixListener::from_std(socket.into()).map_err(failed)?), file))
            }
            ListenAddress::Tcp { host, .. } => {
                let listener = listen::bind(at)?.socket.into();
                let names = Arc::new(Names { listened: Some(host.clone()) });
                Ok((Self::Tcp(TcpListener::from_std(listener).map_err(failed)?, names), None))
            }
            ListenAddress::Vsock { cid, port } => {
                Ok((Self::Vsock(listen::vsock(*cid, *port).map_err(failed)?), None))
            }
            ListenAddress::Abstract(_) | ListenAddress::Inherited(_) => {
                bail!("listen {at}: the API is served at unix, tcp and vsock URLs")
            }
        }
    }

    fn names(&self) -> Option<Arc<Names>> {
        match self {
            Self::Tcp(_, names) => Some(Arc::clone(names)),
            Self::Unix(_) | Self::Vsock(_) => None,
        }
    }

    /// Whether it has a mode. Every user of this machine reaches the others.
    fn is_private(&self) -> bool {
        match self {
            Self::Unix(_) => true,
            Self::Tcp(..) | Self::Vsock(_) => false,
        }
    }

    async fn accept(&self, role: Role) -> io::Result<(Stream, Scope, Peer)> {
        let scope = role.scope();
        Ok(match self {
            Self::Unix(listener) => (Stream::Unix(listener.accept().await?.0), scope, Peer(0)),
            Self::Tcp(listener, _) => {
                let (stream, _) = listener.accept().await?;
                // It is slower without, not wrong.
                let _ = stream.set_nodelay(true);
                (Stream::Tcp(stream), scope, Peer(0))
            }
            Self::Vsock(listener) => {
                let (stream, peer) = listener.accept().await?;
                let (scope, peer) = of_vsock(peer.cid(), role);
                (Stream::Vsock(stream), scope, peer)
            }
        })
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

/// A connection to the API.
#[derive(Debug)]
pub(super) enum Stream {
    Unix(UnixStream),
    Tcp(TcpStream),
    Vsock(VsockStream),
}

/// Calls the same method of whatever stream it is.
macro_rules! either {
    ($self:ident, $method:ident, $context:ident $(, $argument:expr)*) => {
        match $self.get_mut() {
            Stream::Unix(stream) => Pin::new(stream).$method($context $(, $argument)*),
            Stream::Tcp(stream) => Pin::new(stream).$method($context $(, $argument)*),
            Stream::Vsock(stream) => Pin::new(stream).$method($context $(, $argument)*),
        }
    };
}

impl AsyncRead for Stream {
    fn poll_read(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        either!(self, poll_read, context, buffer)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(
        self: Pin<&mut Self>,
        context: &mut TaskContext<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        either!(self, poll_write, context, bytes)
    }

    fn poll_flush(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_flush, context)
    }

    fn poll_shutdown(self: Pin<&mut Self>, context: &mut TaskContext<'_>) -> Poll<io::Result<()>> {
        either!(self, poll_shutdown, context)
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
