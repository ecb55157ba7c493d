//! The connections to one guest, and the one task at a time that makes them.
//! Owns: which connection a client gets, and when to try again. May not: touch bytes (`channel.rs`).

use std::fmt;
use std::mem::discriminant;
use std::pin::pin;
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, Weak};
use std::time::Duration;

use russh::ChannelOpenFailure;
use thiserror::Error;
use tokio::sync::{Notify, oneshot};
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info, warn};

use super::backlog::Backlog;
use super::connection::{Connection, Exchanges};
use super::penalties::{Standing, With};
use super::{Channel, ConnectError, Penalties, Record, Target};
use crate::dial::Dial;
use crate::supervise::Backoff;

/// Connections to one guest of which none waits for a slow client, or did a moment ago. Each costs the guest
/// two sshd processes while it is busy. Of those made beside as many less may wait for the clients.
pub const MAX_CONNECTIONS: usize = 8;
/// Connections to one guest at most, with those that do, and those that its sshd has left with too much to
/// close. One that waits for a slow client keeps the others on it waiting as well, since russh gives back a
/// channel's window before the client has read.
pub const MAX_LOGINS: usize = 48;
/// The pause after the first failed attempt; it doubles with each.
const FIRST_PAUSE: Duration = Duration::from_millis(100);
/// The longest pause: a guest that begins to answer is found within this and a handshake.
const MAX_PAUSE: Duration = Duration::from_secs(1);
/// The least pause after a refused key; see `penalties.rs` for the rest of it.
const REFUSED_PAUSE: Duration = Duration::from_secs(1);
/// Refusals in a row before those who wait are sent away: a guest may still be installing its keys.
const REFUSED_TRIES: u32 = 3;
/// A connection silent for longer is not trusted: the guest may have gone without a word.
const STALE_AFTER: Duration = Duration::from_secs(5);
/// How long a stale connection that nobody else uses may take to open a channel. Making a new one is cheaper.
const STALE_OPEN_LIMIT: Duration = Duration::from_secs(1);
/// How long any other may take.
const OPEN_LIMIT: Duration = Duration::from_secs(10);
/// Attempts to open a channel that the guest refuses, and the pause between them.
const OPEN_TRIES: u32 = 3;
const OPEN_PAUSE: Duration = Duration::from_millis(200);
/// Connections that may end, or not answer, under one client while it opens its channel.
const LOST_TRIES: u32 = 5;
/// After the guest turned down one more connection, clients share those there are for this long.
const SHARE_AFTER_FAILURE: Duration = Duration::from_secs(5);
/// A spare connection unused for this long is closed.
const SPARE_IDLE: Duration = Duration::from_secs(30);

/// Why a client gets no channel.
#[derive(Clone, Debug, Error)]
pub enum OpenError {
    /// No connection to the guest.
    #[error(transparent)]
    Connect(#[from] ConnectError),
    /// The guest did not become reachable in time.
    #[error("the guest did not answer in time")]
    TimedOut,
    /// The guest would not open the socket.
    #[error("{}", refused(.0))]
    Refused(ChannelOpenFailure),
    /// Connections ended as fast as they were made.
    #[error("the connection to the guest was lost")]
    Lost,
    /// Others are waited for on each connection.
    #[error("the connections to the guest wait for other clients, which read slowly")]
    Slow,
    /// The client left while it waited.
    #[error("the client left before the guest answered")]
    Unwanted,
}

/// Whether the same answer would come again.
fn is_final(reason: &ChannelOpenFailure) -> bool {
    matches!(reason, ChannelOpenFailure::UnknownChannelType | ChannelOpenFailure::AdministrativelyProhibited)
}

/// What a refusal means, and what to do. OpenSSH answers `ConnectFailed` in any case.
fn refused(reason: &ChannelOpenFailure) -> String {
    const INSTEAD: &str = "or gvforwarder's agent in the guest, and agent:// in place of ssh://";
    match reason {
        ChannelOpenFailure::UnknownChannelType => {
            format!(
                "the guest's sshd cannot forward unix sockets, as Dropbear before 2024; use OpenSSH's, {INSTEAD}"
            )
        }
        ChannelOpenFailure::AdministrativelyProhibited => {
            format!("the guest's sshd may not forward unix sockets; allow it in its configuration, {INSTEAD}")
        }
        reason => format!(
            "the guest cannot open the socket ({reason:?}); is its service running, may the user reach it, and is sshd \
             allowed to (AllowStreamLocalForwarding in sshd_config, restrict in authorized_keys)?"
        ),
    }
}

/// A way into one guest; connections are made when a client wants one.
pub struct Tunnel<D> {
    pool: Arc<Pool<D>>,
}

impl<D> fmt::Debug for Tunnel<D> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Tunnel").field("target", &self.pool.target).finish_non_exhaustive()
    }
}

impl<D: Dial> Tunnel<D> {
    /// A tunnel that logs in at `target`. Does nothing yet.
    pub fn new(target: Target, dialer: Arc<D>, penalties: Arc<Penalties>) -> Self {
        let (state, released) = (Mutex::default(), Arc::default());
        Self {
            pool: Arc::new(Pool { dialer, target, penalties, exchanges: Exchanges::new(), state, released }),
        }
    }

    /// Opens a channel to the unix socket `dest` in the guest, waiting at most `patience` for the guest to
    /// answer. `wanted` is asked after the wait whether the client is still there.
    ///
    /// # Errors
    /// The guest does not answer in time, refuses the key, or has no such socket; or the client left.
    pub async fn open(
        &self,
        dest: &str,
        patience: Duration,
        wanted: impl Fn() -> bool,
    ) -> Result<Channel, OpenError> {
        let arrival = Instant::now();
        let (mut refused, mut lost) = (0, 0);
        loop {
            let lease = self.pool.lease(arrival, arrival + patience).await?;
            if !wanted() {
                return Err(OpenError::Unwanted);
            }
            let connection = Arc::clone(&lease.connection);
            let alone = connection.channels.load(Ordering::Relaxed) == 1;
            let stale = alone && connection.silence() > STALE_AFTER;
            let limit = if stale { STALE_OPEN_LIMIT } else { OPEN_LIMIT };
            let opened = {
                let _waiting = connection.waiting();
                timeout(limit, open_channel(lease, dest.to_owned())).await
            };
            let why = match opened {
                Ok(Ok(channel)) => return Ok(channel),
                Ok(Err(russh::Error::ChannelOpenFailure(reason))) => {
                    refused += 1;
                    if refused == OPEN_TRIES || is_final(&reason) {
                        return Err(OpenError::Refused(reason));
                    }
                    sleep(OPEN_PAUSE).await;
                    continue;
                }
                Ok(Err(error)) => {
                    debug!(%error, "ssh: connection lost");
                    self.pool.discard(&connection);
                    OpenError::Lost
                }
                // A connection that waits for a slow client is alive, and others use it.
                Err(_) if connection.lags() => OpenError::Slow,
                Err(_) => {
                    debug!(?limit, "ssh: no answer to a channel request");
                    connection.pass_over();
                    if connection.is_of_no_use() {
                        self.pool.discard(&connection);
                    }
                    OpenError::TimedOut
                }
            };
            lost += 1;
            if lost == LOST_TRIES {
                return Err(why);
            }
        }
    }
}

impl<D> Drop for Tunnel<D> {
    fn drop(&mut self) {
        let mut state = self.pool.state();
        if let Some(connector) = state.connector.take() {
            connector.abort();
        }
        for spare in state.connections.drain(..) {
            spare.connection.kill();
        }
    }
}

/// Opens a channel in a task of its own: a request that was sent must be seen through, or the guest is left
/// with a channel that nobody closes.
async fn open_channel(lease: Lease, dest: String) -> Result<Channel, russh::Error> {
    let (reply, answer) = oneshot::channel();
    tokio::spawn(async move {
        let opened = lease.connection.open(&dest).await.map(|channel| Channel::new(channel, lease));
        if let Err(Ok(unwanted)) = reply.send(opened) {
            unwanted.close().await;
        }
    });
    answer.await.unwrap_or(Err(russh::Error::Disconnect))
}

struct Pool<D> {
    dialer: Arc<D>,
    target: Target,
    penalties: Arc<Penalties>,
    exchanges: Arc<Exchanges>,
    state: Mutex<State>,
    released: Arc<Released>,
}

#[derive(Default)]
struct State {
    connections: Vec<Spare>,
    /// The task that is connecting, if one is.
    connector: Option<AbortHandle>,
    /// Clients that wait for a connection.
    waiting: usize,
    /// How the last login went.
    record: Record,
    /// Refused keys in a row.
    refused: u32,
    /// Why the last round of attempts was given up, and when.
    verdict: Option<(Instant, ConnectError)>,
    /// When one more connection could not be had.
    full_at: Option<Instant>,
    reaping: bool,
}

/// A connection and when it was last used.
struct Spare {
    connection: Arc<Connection>,
    used: Instant,
}

/// Wakes those who wait whenever a connection is made or given back.
type Released = Notify;

impl<D: Dial> Pool<D> {
    /// A connection to open a channel on; makes one when needed.
    async fn lease(self: &Arc<Self>, arrival: Instant, deadline: Instant) -> Result<Lease, OpenError> {
        let mut waiting = None;
        loop {
            let mut released = pin!(self.released.notified());
            released.as_mut().enable();
            let may_try = self.may_try().await;
            {
                let mut state = self.state();
                if let Some(connection) = state.pick() {
                    self.watch_spares(&mut state);
                    return Ok(Lease { connection, released: Arc::clone(&self.released) });
                }
                if let Some((at, error)) = &state.verdict
                    && (*at >= arrival || state.connector.is_none() && !may_try)
                {
                    return Err(error.clone().into());
                }
                if state.connector.is_none() && state.connections.len() < MAX_LOGINS {
                    state.connector = Some(tokio::spawn(connect(Arc::clone(self))).abort_handle());
                }
                if waiting.is_none() {
                    state.waiting += 1;
                    waiting = Some(Waiting(Arc::clone(self)));
                }
            }
            tokio::select! {
                () = released => {},
                () = sleep_until(deadline) => return Err(OpenError::TimedOut),
            }
        }
    }

    /// Whether a login that was refused may be tried again now.
    async fn may_try(&self) -> bool {
        let is_refused = {
            let state = self.state();
            state.verdict.is_some() && state.connections.is_empty()
        };
        !is_refused || self.penalties.admits(&self.target, self.standing().await)
    }

    async fn standing(&self) -> Standing {
        let record = self.state().record.clone();
        record.standing(&self.target, &self.penalties).await
    }

    /// Closes spare connections after a while, in one task that runs only while there are any.
    fn watch_spares(self: &Arc<Self>, state: &mut State) {
        if state.connections.len() > 1 && !state.reaping {
            state.reaping = true;
            tokio::spawn(reap(Arc::downgrade(self)));
        }
    }
}

impl<D> Pool<D> {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Ends a connection that does not answer, and with it those that would find out the same.
    fn discard(&self, dead: &Arc<Connection>) {
        self.state().connections.retain(|spare| {
            let stale = spare.connection.silence() > STALE_AFTER
                && spare.connection.channels.load(Ordering::Relaxed) == 0;
            let end = stale || Arc::ptr_eq(&spare.connection, dead);
            if end {
                spare.connection.kill();
            }
            !end
        });
    }
}

impl State {
    /// An idle connection, the latest used first; else, when there may be no more, the one with the fewest
    /// clients.
    fn pick(&mut self) -> Option<Arc<Connection>> {
        self.connections.retain(|spare| {
            let idle = spare.connection.is_idle();
            let is_over = idle || spare.connection.is_closed() || spare.connection.is_of_no_use();
            let keep = spare.connection.is_usable() || !is_over;
            if !keep {
                spare.connection.kill();
            }
            keep
        });
        let is_usable = |spare: &Spare| spare.connection.is_usable();
        let lags = |spare: &Spare| spare.connection.lags();
        let at_work = self.connections.iter().filter(|spare| is_usable(spare) && !lags(spare)).count();
        let full = self.connections.len() >= MAX_LOGINS
            || at_work >= MAX_CONNECTIONS
            || self.full_at.is_some_and(|at| at.elapsed() < SHARE_AFTER_FAILURE);
        let is_left_over = self.connections.len() >= MAX_LOGINS && !self.connections.iter().any(is_usable);
        if is_left_over && self.give_one_up() {
            return None;
        }
        let load = |spare: &Spare| (lags(spare), spare.connection.channels.load(Ordering::Relaxed));
        let now = Instant::now();
        let spare = self
            .connections
            .iter_mut()
            .filter(|spare| is_left_over && !spare.connection.is_closed() || is_usable(spare))
            .min_by_key(|spare| (load(spare), now - spare.used))
            .filter(|spare| full || load(spare).1 == 0)?;
        spare.used = now;
        spare.connection.channels.fetch_add(1, Ordering::Relaxed);
        Some(Arc::clone(&spare.connection))
    }

    /// Ends the connection unused longest of those without clients: what its sshd has still to close there is
    /// all that is lost. Whether there was one.
    fn give_one_up(&mut self) -> bool {
        let spares = self.connections.iter().enumerate();
        let unused = spares.filter(|(_, spare)| spare.connection.channels.load(Ordering::Relaxed) == 0);
        let Some((index, _)) = unused.min_by_key(|(_, spare)| spare.used) else { return false };
        self.connections.remove(index).connection.kill();
        true
    }
}

/// A client's claim on a connection.
#[derive(Debug)]
pub(super) struct Lease {
    connection: Arc<Connection>,
    released: Arc<Released>,
}

impl Lease {
    /// On a connection that nobody waits for.
    pub(super) fn of(connection: &Arc<Connection>) -> Self {
        connection.channels.fetch_add(1, Ordering::Relaxed);
        Self { connection: Arc::clone(connection), released: Arc::default() }
    }

    pub(super) fn connection(&self) -> &Arc<Connection> {
        &self.connection
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.connection.channels.fetch_sub(1, Ordering::Relaxed);
        self.released.notify_waiters();
    }
}

/// Counts a client that waits.
struct Waiting<D>(Arc<Pool<D>>);

impl<D> Drop for Waiting<D> {
    fn drop(&mut self) {
        self.0.state().waiting -= 1;
    }
}

/// Tries until there is a connection, or nobody waits any more, or trying is of no use. Runs at most once per
/// pool at a time, and not in a client's task: a client that gives up early must not undo a slow handshake.
async fn connect<D: Dial>(pool: Arc<Pool<D>>) {
    let mut backoff = Backoff::new(FIRST_PAUSE, MAX_PAUSE);
    let mut said = None;
    let (target, penalties) = (&pool.target, &*pool.penalties);
    loop {
        let mut ticket = penalties.admit(target, || pool.standing()).await;
        if pool.state().waiting == 0 {
            break pool.state().connector = None;
        }
        let (started, with) = (Instant::now(), With::now(target, penalties).await);
        let backlog = match pool.state().connections.len() {
            ..MAX_CONNECTIONS => Backlog::large(),
            _ => Backlog::small(),
        };
        let result =
            Connection::connect(&*pool.dialer, target, backlog, &pool.exchanges, None, &mut ticket).await;
        drop(ticket);
        let refused = {
            let mut state = pool.state();
            if let Some(accepted) = ConnectError::verdict(&result) {
                state.record.note(with, accepted);
            }
            match result {
                Ok(connection) => {
                    debug!(addr = %target.addr, user = target.user, took = ?started.elapsed(), "ssh: connected");
                    if state.refused > 0 || said.is_some() {
                        info!(addr = %target.addr, user = target.user, "ssh: the guest answers");
                    }
                    state.refused = 0;
                    (state.verdict, state.full_at) = (None, None);
                    state.connections.push(Spare { connection: Arc::new(connection), used: Instant::now() });
                    break state.connector = None;
                }
                Err(error) => {
                    if state.connections.iter().any(|spare| spare.connection.is_usable()) {
                        debug!(%error, "ssh: no further connection, sharing those there are");
                        state.full_at = Some(Instant::now());
                        break state.connector = None;
                    }
                    let refused = match &error {
                        ConnectError::Key(_) => Some(REFUSED_TRIES),
                        ConnectError::Auth { .. }
                        | ConnectError::MoreWanted { .. }
                        | ConnectError::HostKey(_) => Some(state.refused.saturating_add(1)),
                        ConnectError::Unreachable(_) | ConnectError::Dropped(_) => None,
                    };
                    state.refused = refused.unwrap_or(state.refused);
                    if refused.is_some_and(|refused| refused >= REFUSED_TRIES) {
                        say_verdict(target, &error, state.refused);
                        state.verdict = Some((Instant::now(), error));
                        break state.connector = None;
                    } else if matches!(error, ConnectError::HostKey(_)) || said == Some(discriminant(&error))
                    {
                        debug!(%error, "ssh: no connection");
                    } else {
                        said = Some(discriminant(&error));
                        info!(addr = %target.addr, %error, "ssh: waiting for the guest");
                    }
                    refused.is_some()
                }
            }
        };
        let pause = backoff.next_pause();
        sleep(if refused { REFUSED_PAUSE } else { pause }).await;
    }
    pool.released.notify_waiters();
}

/// Tells what to do, once per row of refusals.
fn say_verdict(target: &Target, error: &ConnectError, refused: u32) {
    let identity = target.identity.display();
    if refused > REFUSED_TRIES {
        debug!(%error, "ssh: still no login");
    } else if matches!(error, ConnectError::Key(_)) {
        warn!(%error, "ssh: cannot log in to the guest; clients are turned away until the key file is usable");
    } else if matches!(error, ConnectError::MoreWanted { .. }) {
        warn!(%error, "ssh: see AuthenticationMethods in the guest's sshd_config; clients are turned away until then");
    } else if matches!(error, ConnectError::HostKey(_)) {
        warn!(%error, addr = %target.addr, "ssh: this may be another machine; clients are turned away until one of the two changes");
    } else {
        warn!(%error, %identity, user = target.user,
            "ssh: add the identity's public key to the user's authorized_keys in the guest; clients are turned away until then");
    }
}

/// Closes connections that stay unused, all but one.
async fn reap<D: Dial>(pool: Weak<Pool<D>>) {
    loop {
        sleep(SPARE_IDLE).await;
        let Some(pool) = pool.upgrade() else { return };
        let mut state = pool.state();
        let mut left = state.connections.len();
        state.connections.retain(|spare| {
            let idle = spare.connection.is_idle();
            let keep = left == 1 || !idle || spare.used.elapsed() < SPARE_IDLE;
            if !keep {
                left -= 1;
                spare.connection.kill();
            }
            keep
        });
        if state.connections.len() <= MAX_CONNECTIONS {
            state.connections.iter().for_each(|spare| spare.connection.enlarge_backlog());
        }
        if left <= 1 {
            state.reaping = false;
            return;
        }
    }
}
