//! The clients of a host socket: they are accepted as long as there are descriptors to serve them with, and
//! served at the same time, so that one that waits, or lags, does not delay another.
//!
//! Owns: the listeners, their files, how many clients there are. May not: know where they are led.
//! Read next: `mod.rs`, which leads them.

use rustix::fd::{AsFd as _, BorrowedFd, OwnedFd};
use std::future::Future;
use std::io;
use std::pin::pin;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use rustix::net::{RecvFlags, recv};
use socket2::{SockRef, TcpKeepalive};
use tokio::io::Interest;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::timeout;
use tracing::{debug, info, warn};

use crate::addr::{Dest, ListenAddress};
use crate::listen::{self, Bound, RemoveOnDrop, failed_to_bind, has_client};
use crate::logging::Limited;
use crate::permits::{Permit, Permits};
use crate::supervise::{ACCEPT_PAUSE, accept_clients};
use crate::sys::named_pipe::{PipeClients, PipeListener};
use crate::sys::sockets::DONTWAIT;
use crate::sys::stream::{self, Stream};
use crate::sys::watched::Watched;
use crate::sys::{is_vsock, vsock_hung_up};
use crate::text::reason;

/// Clients of one socket at a time; more wait in its backlog.
const MAX_CLIENTS: usize = 4096;
/// The least time between two log lines of the same kind, as clients can cause them.
const LOG_INTERVAL: Duration = Duration::from_secs(30);
/// After this time the log says that clients wait.
const LONG: Duration = Duration::from_secs(1);
/// A peer that vanished is noticed though nobody writes, where it is TCP.
const KEEPALIVE: Duration = Duration::from_secs(60);

/// A place where clients may connect from now on.
#[derive(Debug)]
pub enum Source {
    /// A listening stream socket of any family.
    Socket(Bound),
    /// A named pipe of Windows, and its URL.
    Pipe(PipeListener, String),
}

impl From<Bound> for Source {
    fn from(bound: Bound) -> Self {
        Self::Socket(bound)
    }
}

impl Source {
    /// Listens where `at` says.
    ///
    /// # Errors
    /// As [`listen::bind`]; or the pipe is another's.
    pub fn bind(at: &ListenAddress) -> Result<Self> {
        let ListenAddress::Pipe(name) = at else { return listen::bind(at).map(Self::Socket) };
        let failed = |error: io::Error| failed_to_bind(format!("listen {at}: {}", reason(&error)), &error);
        PipeListener::bind(name).map_err(failed).map(|pipe| Self::Pipe(pipe, at.to_string()))
    }

    /// The socket.
    pub(super) fn socket(&self) -> Option<&Bound> {
        match self {
            Self::Socket(bound) => Some(bound),
            Self::Pipe(..) => None,
        }
    }

    /// A URL for the log.
    pub(super) fn name(&self) -> &str {
        match self {
            Self::Socket(bound) => &bound.name,
            Self::Pipe(_, name) => name,
        }
    }
}

/// Something that clients connect to.
pub trait Listener: Send + Sync + 'static {
    /// One connection.
    type Client: Send;

    /// Waits until a client is there, and takes nothing.
    fn ready(&self) -> impl Future<Output = io::Result<()>> + Send;

    /// Takes it; `None` where it has left.
    fn accept(&self) -> io::Result<Option<Self::Client>>;

    /// Removes what it made, and listens no more.
    fn close(self) -> impl Future<Output = ()> + Send;
}

/// A listening stream socket of any family.
#[derive(Debug)]
struct ListeningSocket {
    /// Before the socket, as it must be dropped first.
    file: Option<RemoveOnDrop>,
    socket: Watched,
}

impl ListeningSocket {
    /// To be called in a tokio runtime.
    fn new(bound: Bound) -> Result<Self> {
        let Bound { socket, file, name, .. } = bound;
        let socket = Watched::new(socket.into(), Interest::READABLE)
            .with_context(|| format!("cannot listen on {name}"))?;
        Ok(Self { file, socket })
    }
}

impl Listener for ListeningSocket {
    type Client = Stream;

    async fn ready(&self) -> io::Result<()> {
        let waits = |socket: BorrowedFd<'_>| match has_client(socket)? {
            true => Ok(()),
            false => Err(io::ErrorKind::WouldBlock.into()),
        };
        self.socket.async_io(Interest::READABLE, waits).await
    }

    fn accept(&self) -> io::Result<Option<Stream>> {
        let accepted = self.socket.try_io(Interest::READABLE, |socket| SockRef::from(&socket).accept());
        match accepted {
            Ok((client, _)) => {
                let client = client.into();
                tune(&client);
                stream::watch(client).map(Some)
            }
            // There is nothing wrong but the moment.
            Err(error)
                if matches!(
                    error.kind(),
                    io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                ) =>
            {
                Ok(None)
            }
            Err(error) => Err(error),
        }
    }

    async fn close(mut self) {
        if let Some(file) = self.file.take() {
            file.remove().await;
        }
    }
}

impl Listener for PipeClients {
    type Client = Stream;

    async fn ready(&self) -> io::Result<()> {
        Self::ready(self).await;
        Ok(())
    }

    fn accept(&self) -> io::Result<Option<Stream>> {
        Self::accept(self)
    }

    async fn close(self) {}
}

/// A socket without these is slower, not wrong; only TCP has them.
pub(super) fn tune(socket: &OwnedFd) {
    let socket = SockRef::from(socket);
    if socket.set_tcp_nodelay(true).is_ok() {
        let _ = socket.set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
    }
}

/// Gives each client of `source` to `serve`, with the permit that it has for as long as it is served, until
/// `shutdown` turns true or its sender is gone; then drops them, and removes the socket.
///
/// # Errors
/// The listener cannot be handed to the runtime.
pub(super) async fn serve<F: Future<Output = ()> + Send + 'static>(
    source: Source,
    dest: &Dest,
    permits: &Permits,
    shutdown: watch::Receiver<bool>,
    serve: impl Fn(Stream, Permit) -> F,
) -> Result<()> {
    let (name, permits) = (source.name().to_owned(), permits.for_another());
    let listening = || info!(socket = name, %dest, "forward: listening");
    match source {
        Source::Socket(bound) => {
            let listener = ListeningSocket::new(bound)?;
            listening();
            accept(listener, &name, &permits, shutdown, serve).await;
        }
        Source::Pipe(pipe, _) => {
            let listener = pipe.listen().with_context(|| format!("cannot listen on {name}"))?;
            listening();
            accept(listener, &name, &permits, shutdown, serve).await;
        }
    }
    Ok(())
}

async fn accept<L: Listener, F: Future<Output = ()> + Send + 'static>(
    listener: L,
    name: &str,
    permits: &Permits,
    mut shutdown: watch::Receiver<bool>,
    serve: impl Fn(L::Client, Permit) -> F,
) {
    let (failing, full) = (Limited::new(1, LOG_INTERVAL), Limited::new(1, LOG_INTERVAL));
    let mut clients = JoinSet::new();
    let accept = || async {
        let ready = listener.ready().await;
        // Whoever has no permit yet costs no descriptor: it waits in the backlog.
        let permit = permits.take(name).await;
        Ok(ready.and_then(|()| listener.accept())?.map(|client| (client, permit)))
    };
    let serve = |(client, permit), others| {
        if others + 1 == MAX_CLIENTS && full.admit(Instant::now()).is_some() {
            warn!(
                socket = name,
                clients = MAX_CLIENTS,
                "forward: as many clients as one socket may have; others wait until one leaves"
            );
        }
        Some(serve(client, permit))
    };
    let failed = |error| {
        if failing.admit(Instant::now()).is_some() {
            warn!(socket = name, %error, "forward: cannot accept, trying again");
        }
        ACCEPT_PAUSE
    };
    tokio::select! {
        never = accept_clients(&mut clients, MAX_CLIENTS, accept, serve, failed) => match never {},
        // An error says that nobody is left to signal.
        _ = shutdown.wait_for(|stop| *stop) => {}
    }
    clients.shutdown().await;
    listener.close().await;
    debug!(socket = name, "forward: closed");
}

/// Whether the client has closed both ways, as far as the runtime has heard or vsock tells, and has said
/// nothing. Takes nothing from the socket.
pub(super) fn has_left(client: &Stream) -> bool {
    let ready = pin!(client.ready(Interest::READABLE | Interest::WRITABLE));
    let ready = ready.poll(&mut TaskContext::from_waker(Waker::noop()));
    let is_closed = matches!(ready, Poll::Ready(Ok(ready)) if ready.is_write_closed());
    (is_closed || is_vsock(client.as_fd()) && vsock_hung_up(client.as_fd()))
        && !matches!(recv(client, &mut [0; 1], RecvFlags::PEEK | DONTWAIT), Ok((_, 1..)))
}

/// What the log says of the clients of one socket: of each kind a line in a while, as clients can cause them.
#[derive(Debug)]
pub(super) struct ClientLog {
    socket: String,
    dest: String,
    waiting: Limited,
    turned_away: Limited,
}

impl ClientLog {
    /// Of those that connect to `socket`, and are to be led to `dest`.
    pub(super) fn new(socket: &str, dest: &Dest) -> Self {
        let [waiting, turned_away] = [(); 2].map(|()| Limited::new(1, LOG_INTERVAL));
        Self { socket: socket.to_owned(), dest: dest.to_string(), waiting, turned_away }
    }

    pub(super) fn dest(&self) -> &str {
        &self.dest
    }

    /// Does `work` for a client, and says so where that takes long.
    pub(super) async fn while_waiting<T>(&self, work: impl Future<Output = T>) -> T {
        let mut work = pin!(work);
        if let Ok(done) = timeout(LONG, work.as_mut()).await {
            return done;
        }
        self.waits(LONG, "no answer yet");
        work.await
    }

    /// A client has `waited` so long for the other end.
    pub(super) fn waits(&self, waited: Duration, reason: &str) {
        let Self { socket, dest, .. } = self;
        if waited >= LONG && self.waiting.admit(Instant::now()).is_some() {
            info!(reason, socket, dest, "forward: clients wait");
        } else {
            debug!(reason, socket, dest, "forward: a client waits");
        }
    }

    /// A client is closed; what to `start` in the guest, so that the next is not.
    pub(super) fn turned_away(&self, reason: &str, start: Option<&str>) {
        let Self { socket, dest, .. } = self;
        match (self.turned_away.admit(Instant::now()), start) {
            (None, _) => debug!(reason, socket, dest, "forward: client turned away"),
            (Some(_), None) => warn!(reason, socket, dest, "forward: client turned away"),
            (Some(_), Some(start)) => {
                warn!(
                    reason,
                    socket, dest, start, "forward: client turned away; this has to run in the guest"
                );
            }
        }
    }
}
