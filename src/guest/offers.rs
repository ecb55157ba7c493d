//! Sockets that are made in this guest, and whose clients are for the host. They are there for as long as the
//! host has connections here that wait for a client.
//!
//! Owns: the sockets and their files, and which client goes to which of the host's connections. May not: make
//! what the guest does not offer.
//! Read next: `agent.rs`, whose connections these are; `crate::agent`, what is said on them.

use rustix::fd::AsFd;
use std::collections::HashMap;
use std::io;
use std::os::unix::ffi::OsStrExt as _;
use std::pin::pin;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use anyhow::{Context as _, Result};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::sync::{Notify, oneshot};
use tokio::time::{Instant, MissedTickBehavior, interval, sleep, sleep_until};

use crate::addr::ListenAddress;
use crate::agent::{CLIENT, SIGN_EVERY, SIGN_LIMIT};
use crate::listen::{self, Bound};
use crate::supervise::ACCEPT_PAUSE;
use crate::sys::sockets::set_user_timeout;
use crate::sys::stream::Stream;
use crate::sys::watched::Watched;
use crate::text::quote;

/// How long a socket stays after the host's last connection got a client: the host opens the next one then.
const GRACE: Duration = Duration::from_secs(5);

/// What may be made, and what is.
#[derive(Debug)]
pub(super) struct Offers {
    sources: Vec<ListenAddress>,
    made: Mutex<HashMap<Vec<u8>, Arc<Offer>>>,
}

/// A socket's clients and the host's connections.
#[derive(Debug)]
struct Offer {
    state: Mutex<State>,
    changed: Notify,
}

#[derive(Debug)]
struct State {
    /// The host's connections that have no client yet.
    waiting: Vec<(u64, oneshot::Sender<Stream>)>,
    next: u64,
    /// The last connection that waited was given up without a client.
    is_left: bool,
    /// When a connection that waited last got a client.
    given: Instant,
}

/// What a socket is to do next.
enum Next {
    Accept,
    /// Clients stay in the backlog.
    Stay(Instant),
    End,
}

impl Offers {
    pub(super) fn new(sources: Vec<ListenAddress>) -> Arc<Self> {
        Arc::new(Self { sources, made: Mutex::default() })
    }

    /// Joins those that wait for a client of the socket at `path`, or takes the place of all of them where it
    /// is the `only` one. The socket is made if it is not there.
    ///
    /// # Errors
    /// It is not offered, or cannot be made, as one line.
    pub(super) fn wait_at(self: &Arc<Self>, path: &[u8], only: bool) -> Result<Waiting, Unoffered> {
        let is_asked =
            |source: &&ListenAddress| source.path().is_some_and(|own| own.as_os_str().as_bytes() == path);
        let source = self.sources.iter().find(is_asked).ok_or(Unoffered::Never)?;
        let mut made = self.made();
        if let Some(offer) = made.get(path) {
            if only {
                // Their connections end by that. A client would be given to a daemon that was killed.
                offer.state().waiting.clear();
            }
            return Ok(Waiting::new(offer));
        }
        let bound = listen::bind(source).and_then(|bound| {
            let Bound { file, socket, .. } = bound;
            let listener = Watched::new(socket.into(), Interest::READABLE).context("cannot watch it")?;
            Ok((listener, file))
        });
        let (listener, file) = bound.map_err(|error| Unoffered::Now(format!("{error:#}")))?;
        tracing::info!(path = quote(path), "agent: socket made for the host");
        let state = State { waiting: Vec::new(), next: 0, is_left: false, given: Instant::now() };
        let offer = Arc::new(Offer { state: Mutex::new(state), changed: Notify::new() });
        let waiting = Waiting::new(&offer);
        made.insert(path.to_vec(), Arc::clone(&offer));
        drop(made);
        let (offers, path) = (Arc::clone(self), path.to_vec());
        tokio::spawn(async move {
            // The file is removed while the listener is open.
            let listener = listener;
            let file = file;
            offer.run(&listener, || offers.end(&path, &offer)).await;
            if let Some(file) = file {
                file.remove().await;
            }
            tracing::info!(path = quote(&path), "agent: socket removed, the host has left it");
        });
        Ok(waiting)
    }

    /// Whether the offer is over, and then nobody can join it any more.
    fn end(&self, path: &[u8], offer: &Offer) -> bool {
        let mut made = self.made();
        let is_over = matches!(offer.state().next_step(), Next::End);
        if is_over {
            made.remove(path);
        }
        is_over
    }

    fn made(&self) -> MutexGuard<'_, HashMap<Vec<u8>, Arc<Offer>>> {
        self.made.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why the host cannot have a socket.
pub(super) enum Unoffered {
    /// The guest does not offer it.
    Never,
    /// It cannot be made.
    Now(String),
}

impl State {
    fn next_step(&self) -> Next {
        let until = self.given + GRACE;
        if !self.waiting.is_empty() {
            Next::Accept
        } else if self.is_left || until <= Instant::now() {
            Next::End
        } else {
            Next::Stay(until)
        }
    }
}

impl Offer {
    /// Gives clients away until `is_over` agrees that it is over.
    async fn run(&self, listener: &Watched, is_over: impl Fn() -> bool) {
        let mut held = None;
        loop {
            let mut changed = pin!(self.changed.notified());
            changed.as_mut().enable();
            held = held.and_then(|client| self.give(client));
            let next_step = self.state().next_step();
            match next_step {
                Next::End if is_over() => return,
                Next::End => {}
                Next::Stay(until) => tokio::select! {
                    () = changed => {}
                    () = sleep_until(until) => {}
                },
                Next::Accept => tokio::select! {
                    () = changed => {}
                    accepted = listen::accept(listener) => match accepted {
                        Ok((client, _)) => held = self.give(client),
                        Err(error) => {
                            tracing::debug!(%error, "agent: cannot accept, trying again");
                            sleep(ACCEPT_PAUSE).await;
                        }
                    },
                },
            }
        }
    }

    /// Gives a client to a connection; without one it comes back.
    fn give(&self, mut client: Stream) -> Option<Stream> {
        let mut state = self.state();
        while let Some((_, to)) = state.waiting.pop() {
            match to.send(client) {
                Ok(()) => {
                    state.given = Instant::now();
                    return None;
                }
                Err(back) => client = back,
            }
        }
        Some(client)
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// One of the host's connections that has no client yet.
#[derive(Debug)]
pub(super) struct Waiting {
    offer: Arc<Offer>,
    number: u64,
    client: oneshot::Receiver<Stream>,
}

impl Waiting {
    fn new(offer: &Arc<Offer>) -> Self {
        let (to, client) = oneshot::channel();
        let mut state = offer.state();
        let number = state.next;
        state.next += 1;
        state.is_left = false;
        state.waiting.push((number, to));
        offer.changed.notify_waiters();
        Self { offer: Arc::clone(offer), number, client }
    }

    /// Waits for a client, and says so on `host`, the connection.
    ///
    /// # Errors
    /// The connection ended, or the host said something.
    pub(super) async fn client<S>(mut self, host: &mut S) -> io::Result<Stream>
    where
        S: AsyncRead + AsyncWrite + AsFd + Unpin,
    {
        let limit = |time| {
            // vsock has none, and tells when the other side is gone.
            set_user_timeout(host.as_fd(), time);
        };
        limit(Some(SIGN_LIMIT));
        let mut signs = interval(SIGN_EVERY);
        signs.set_missed_tick_behavior(MissedTickBehavior::Delay);
        signs.reset();
        let client = loop {
            tokio::select! {
                client = &mut self.client => break client.map_err(|_| io::ErrorKind::ConnectionAborted)?,
                heard = host.read_u8() => {
                    heard?;
                    return Err(io::Error::other("the host spoke before there was a client"));
                }
                _ = signs.tick() => host.write_all(b"\n").await?,
            }
        };
        // A client, or a host's socket, may take nothing for as long as it wants.
        set_user_timeout(host.as_fd(), None);
        host.write_all(&[CLIENT, b"\n"].concat()).await?;
        Ok(client)
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        let mut state = self.offer.state();
        let before = state.waiting.len();
        state.waiting.retain(|(number, _)| *number != self.number);
        state.is_left |= state.waiting.is_empty() && before > 0;
        self.offer.changed.notify_waiters();
    }
}
