//! Unix sockets on the host that lead to unix sockets in the guest.
//!
//! The socket is there before the guest is; a client that connects early waits for the guest, for a bounded time, and is
//! then closed. Clients are served at the same time: one that waits, or lags, does not delay another.
//!
//! Owns: the listener, its file, its clients. May not: know how SSH works (`crate::ssh`).
//! Read next: `crate::ssh::Tunnel`.

use std::net::SocketAddrV4;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::task::{Context as TaskContext, Poll, Waker};
use std::time::Duration;

use anyhow::Context;
use tokio::io::Interest;
use tokio::net::{UnixListener, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep};
use tracing::{debug, info, warn};

use crate::config::SshForward;
use crate::dial::Dial;
use crate::listen::{self, RemoveOnDrop};
use crate::ssh::{self, OpenError, Target, Tunnel};

/// The socket may be used by its owner only.
const MODE: u32 = 0o600;
/// Clients of one forward at a time; more wait in the listener's backlog.
const MAX_CLIENTS: usize = 1024;
/// How long a client waits for the guest.
// COMPAT(gvproxy): the original tries for about 235 s from its start, and then ends as a whole; here each client waits
// this long from its arrival, is closed, and the daemon goes on.
pub(super) const PATIENCE: Duration = Duration::from_secs(240);
/// The pause after the process ran out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);
/// The least time between two log lines of the same kind, as clients can cause them.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// A host socket, bound; clients may connect.
#[derive(Debug)]
pub(super) struct Bound {
    /// Before the listener, as it must be dropped first.
    file: RemoveOnDrop,
    listener: std::os::unix::net::UnixListener,
    pub(super) socket: PathBuf,
}

impl Bound {
    /// With mode 0600, in place of a stale one.
    pub(super) fn bind(socket: PathBuf) -> anyhow::Result<Self> {
        let (listener, file) = listen::unix_listener(&socket, MODE)?;
        listener.set_nonblocking(true).with_context(|| format!("cannot listen on {}", socket.display()))?;
        Ok(Self { file, listener, socket })
    }

    /// Gives each client to `serve` until `shutdown` turns true or its sender is gone; then drops them and removes the socket.
    pub(super) async fn serve<F: Future<Output = ()> + Send + 'static>(
        self,
        mut shutdown: watch::Receiver<bool>,
        log: &Quiet,
        serve: impl Fn(UnixStream) -> F,
    ) -> anyhow::Result<()> {
        let Self { file: guard, listener, socket } = self;
        let listener = UnixListener::from_std(listener)
            .with_context(|| format!("cannot listen on {}", socket.display()))?;
        // Dropped before the listener, also when this future is.
        let file = guard;
        let mut clients = JoinSet::new();
        let mut stopped = pin!(async move {
            // An error says that nobody is left to signal.
            let _ = shutdown.wait_for(|stop| *stop).await;
        });
        loop {
            tokio::select! {
                () = &mut stopped => break,
                Some(_) = clients.join_next() => {},
                accepted = listener.accept(), if clients.len() < MAX_CLIENTS => match accepted {
                    Ok((client, _)) => {
                        clients.spawn(serve(client));
                    },
                    Err(error) => {
                        if log.may_say() {
                            warn!(socket = %socket.display(), %error, "forward: cannot accept, trying again");
                        }
                        sleep(ACCEPT_PAUSE).await;
                    },
                },
            }
        }
        clients.shutdown().await;
        drop(file);
        debug!(socket = %socket.display(), "forward: closed");
        Ok(())
    }
}

/// A host socket, bound, whose clients reach a socket in the guest.
#[derive(Debug)]
pub struct UnixForward {
    bound: Bound,
    dest: String,
    target: Target,
}

impl UnixForward {
    /// Binds the socket with mode 0600, in place of a stale one; clients may connect from now on.
    /// `guest` is where the guest's sshd listens in the virtual network.
    ///
    /// # Errors
    /// The identity is not a usable private key, or the socket cannot be bound.
    pub fn bind(forward: &SshForward, guest: SocketAddrV4) -> anyhow::Result<Self> {
        ssh::load_key(&forward.identity, None)?;
        let SshForward { socket, dest, user, identity } = forward.clone();
        Self::listen(socket, dest, Target::new(guest, user, identity))
    }

    /// The same, but for the key, which is first looked at when a client comes.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn listen(socket: PathBuf, dest: String, target: Target) -> anyhow::Result<Self> {
        Ok(Self { bound: Bound::bind(socket)?, dest, target })
    }

    /// Serves clients until `shutdown` turns true or its sender is gone; then drops them and removes the socket.
    ///
    /// Each forward has its own connections: forwards differ in who logs in, and a busy one must not slow another.
    ///
    /// # Errors
    /// The listener cannot be handed to the runtime.
    pub async fn run<D: Dial>(self, dialer: Arc<D>, shutdown: watch::Receiver<bool>) -> anyhow::Result<()> {
        let Self { bound, dest, target } = self;
        let tunnel = Arc::new(Tunnel::new(target, dialer));
        let dest: Arc<str> = dest.into();
        let log = Arc::new(Quiet::default());
        info!(socket = %bound.socket.display(), %dest, "forward: listening");
        let serve = |client| serve(client, Arc::clone(&tunnel), Arc::clone(&dest), Arc::clone(&log));
        bound.serve(shutdown, &log, serve).await
    }
}

/// Carries one client; its socket is closed at any end.
async fn serve<D: Dial>(client: UnixStream, tunnel: Arc<Tunnel<D>>, dest: Arc<str>, log: Arc<Quiet>) {
    match tunnel.open(&dest, PATIENCE, || !has_left(&client)).await {
        Ok(channel) => {
            if let Err(error) = channel.relay(client).await {
                debug!(%error, %dest, "forward: client failed");
            }
        }
        // The tunnel has said so already, once for all clients.
        Err(error @ (OpenError::Connect(_) | OpenError::Unwanted)) => {
            debug!(%error, %dest, "forward: client turned away")
        }
        Err(error) if log.may_say() => warn!(%error, %dest, "forward: client turned away"),
        Err(error) => debug!(%error, %dest, "forward: client turned away"),
    }
}

/// Whether the client has closed both ways, as far as the runtime has heard. Takes nothing from the socket.
pub(super) fn has_left(client: &UnixStream) -> bool {
    let ready = pin!(client.ready(Interest::READABLE | Interest::WRITABLE));
    matches!(ready.poll(&mut TaskContext::from_waker(Waker::noop())), Poll::Ready(Ok(ready)) if ready.is_write_closed())
}

/// Keeps a line that clients can cause from filling the log.
#[derive(Debug, Default)]
pub(super) struct Quiet(std::sync::Mutex<Option<Instant>>);

impl Quiet {
    pub(super) fn may_say(&self) -> bool {
        let mut last = self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let may = last.is_none_or(|at| at.elapsed() >= LOG_INTERVAL);
        if may {
            *last = Some(Instant::now());
        }
        may
    }
}
