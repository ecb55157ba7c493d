//! One authenticated SSH connection.
//! Owns: the russh session, its limits and its end. May not: decide when to connect again (`tunnel.rs`).

use std::borrow::Cow;
use std::fmt;
use std::io;
use std::net::Shutdown;
use std::path::PathBuf;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use russh::client::{self, AuthResult, ChannelOpenHandle, Handle, Msg};
use russh::keys::{
    HashAlg, PrivateKey, PrivateKeyWithHashAlg, PublicKeyOrCertificate, check_known_hosts_path,
};

use russh::{ChannelId, MethodKind, Names, Preferred, cipher, kex};
use rustix::net::{RecvFlags, recv};
use thiserror::Error;
use tokio::io::{AsyncRead, AsyncWrite, BufReader, Interest, ReadBuf};
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, sleep_until, timeout};
use tracing::{debug, info};

use super::backlog::{Backlog, CAPACITY, Share, Waiting};
use super::chunk::Chunks;
use super::lagging::Laggards;
use super::penalties::{NO_LOGIN, REFUSED, Ticket};
use super::{Secret, Target, key};
use crate::addr::HostPort;
use crate::dial::Dial;
use crate::disk;
use crate::sys::stream::{StdStream, Stream};
use crate::text::quote;

/// One attempt to reach port 22. The original allows 5 s; a SYN lost while the guest boots must not outlast
/// its cause, or the first connection after a reboot would wait for the rest of it.
const DIAL_LIMIT: Duration = Duration::from_secs(2);
/// Key exchange and authentication together; a guest under software emulation takes seconds.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
/// Silence with a channel open, after which the guest is asked whether it still lives.
const KEEPALIVE_AFTER: Duration = Duration::from_secs(15);
/// How long it may take to answer that.
const KEEPALIVE_LIMIT: Duration = Duration::from_secs(15);
/// What the guest may send on a channel before it must wait, in bytes. OpenSSH's own 2 MiB costs throughput.
const WINDOW: u32 = 8 << 20;
/// The largest packet that we accept, in bytes; OpenSSH's own size for these channels.
const PACKET: u32 = 32 << 10;
/// Read from the connection at once, in bytes; russh alone would read each packet's length and rest by
/// themselves.
const READ_AHEAD: usize = 256 << 10;
/// Reads from what is there before others have a turn. A packet takes two, and russh passes over the smallest
/// without a pause.
const READS_IN_A_ROW: u32 = 32;
/// Channels that we closed before the guest did. russh keeps a small entry for each as long as the connection
/// lives.
const MAX_ABORTED: usize = 256;
/// Channels that the guest refused: russh keeps half a kilobyte of each as long.
const MAX_REFUSED: usize = 4096;
/// Channels that are being opened at a time; a guest that lags answers none.
const MAX_OPENING: usize = 1024;

/// Keys are exchanged again when the guest wishes: on all its connections together so many times ahead, then
/// once in each interval, in a longer one where each takes 10 to 60 ms of the control plane's one thread
/// instead of 2.
const EXCHANGES_AHEAD: u32 = 8;
const EXCHANGE_EVERY: Duration = Duration::from_millis(500);
const SLOW_EXCHANGE_EVERY: Duration = Duration::from_secs(5);
/// How many intervals one waits at most.
const MAX_WAIT: u32 = 4;
/// Keys as old as this are exchanged without being counted: russh does so by itself after an hour, with those
/// of many connections at once.
const KEYS_OLD: Duration = Duration::from_secs(600);

/// What sshd says instead of its version to an address that it penalizes, quoted,
const NOT_ALLOWED: &str = r#""Not allowed at this time""#;
/// and where too many are logging in.
const STARTUPS: &str = r#""Exceeded MaxStartups""#;

/// Why there is no connection.
#[derive(Clone, Debug, Error)]
pub enum ConnectError {
    /// The key file is of no use. Trying again helps only when the file changes.
    #[error("{0}")]
    Key(String),
    /// The guest's sshd refused the key.
    #[error("the guest refused the key of {user}")]
    Auth {
        /// Who wanted to log in.
        user: String,
    },
    /// It took it, and wants more.
    #[error("the guest took the key of {user}, and wants more: {wanted}")]
    MoreWanted {
        /// Who wanted to log in.
        user: String,
        /// Methods of authentication.
        wanted: String,
    },
    /// The guest has another key than the one that is known.
    #[error("the guest's key is not the one in {}", .0.display())]
    HostKey(PathBuf),
    /// Whoever listens at the guest's port hung up before it said its version; what it said instead, if
    /// anything, quoted.
    #[error("{}", dropped(.0))]
    Dropped(String),
    /// The guest is not there, or not ready.
    #[error("{0}")]
    Unreachable(String),
}

impl ConnectError {
    fn unreachable(error: impl fmt::Display) -> Self {
        Self::Unreachable(error.to_string())
    }

    /// Whether the login was accepted, if that was decided.
    pub(super) fn verdict<T>(result: &Result<T, Self>) -> Option<bool> {
        match result {
            Ok(_) => Some(true),
            Err(Self::Auth { .. } | Self::MoreWanted { .. } | Self::HostKey(_)) => Some(false),
            Err(_) => None,
        }
    }
}

/// What the last words of an sshd that lets nobody in mean.
fn dropped(words: &str) -> String {
    let cause = match words {
        "" => {
            "it still starts, or PerSourcePenalties or MaxStartups in its sshd_config, or a filter of addresses"
        }
        NOT_ALLOWED => {
            "a penalty for failed logins, or for connections without one: PerSourcePenalties in its sshd_config"
        }
        STARTUPS => "too many logins at once: MaxStartups in its sshd_config",
        _ => "it may be no sshd",
    };
    let said = if words.is_empty() { String::new() } else { format!(" ({words})") };
    format!("the guest's sshd hangs up at once{said}; likely cause: {cause}")
}

/// An authenticated connection.
pub(super) struct Connection {
    handle: Handle<Events>,
    transport: Transport,
    life: Arc<Life>,
    /// Channels open or opening. Only `tunnel.rs` writes it, under its lock, or `offer.rs`, which has the
    /// connection for itself.
    pub(super) channels: AtomicUsize,
    /// Channels that we have closed, and the guest has not: its sshd may have something for a service that
    /// hangs.
    closing: AtomicUsize,
    /// Clients that the guest is sending faster than they read.
    pub(super) laggards: Laggards,
    /// For what its clients send.
    pub(super) chunks: Chunks,
    /// What they have still to take.
    backlog: Backlog,
    aborted: AtomicUsize,
    refused: AtomicUsize,
    asking: AtomicBool,
}

impl fmt::Debug for Connection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Connection")
            .field("channels", &self.channels)
            .field("laggards", &self.laggards)
            .field("closed", &self.handle.is_closed())
            .finish_non_exhaustive()
    }
}

/// A channel that is closed by us alone, so far.
#[derive(Debug)]
pub(super) struct Closing(Arc<Connection>);

impl Drop for Closing {
    fn drop(&mut self) {
        self.0.closing.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Connection {
    /// Dials, exchanges keys, and logs in; `ticket` is told what that costs. What clients have not taken is
    /// in `backlog`. Channels that the guest opens go to `opened`; without it, it may open none.
    pub(super) async fn connect<D: Dial>(
        dialer: &D,
        target: &Target,
        backlog: Backlog,
        exchanges: &Arc<Exchanges>,
        opened: Option<mpsc::Sender<Opened>>,
        ticket: &mut Ticket<'_>,
    ) -> Result<Self, ConnectError> {
        let (identity, passphrase) = (target.identity.clone(), target.passphrase.clone());
        let key = disk::ask(&target.identity, move || key::load(&identity, passphrase.as_ref())).await;
        let key = key.map_err(anyhow::Error::from).flatten();
        let key = Arc::new(key.map_err(|error| ConnectError::Key(format!("{error:#}")))?);
        let stream = timeout(DIAL_LIMIT, dialer.dial(&target.addr, DIAL_LIMIT))
            .await
            .map_err(|_| ConnectError::unreachable(io::Error::from(io::ErrorKind::TimedOut)))?
            .map_err(ConnectError::unreachable)?;
        let (stream, transport) = Transport::split(stream).map_err(ConnectError::unreachable)?;

        ticket.cost = NO_LOGIN;

        // Should the limit pass, `transport` is dropped, which ends russh's task as well.
        let life = Arc::new(Life::new());
        let handle = timeout(HANDSHAKE_LIMIT, async {
            let mut words = None;
            let _ = timeout(FIRST_WORDS, read_version(&stream, &mut words)).await;
            let known_hosts = target.known_hosts.clone().map(|file| (file, target.addr.clone()));
            let events = Events {
                life: Arc::clone(&life),
                backlog: backlog.clone(),
                known_hosts,
                exchanges: Arc::clone(exchanges),
                exchanged: None,
                opened,
            };
            let mut handle = client::connect_stream(
                Arc::new(config()),
                Yielding { stream: BufReader::with_capacity(READ_AHEAD, stream), reads: 0 },
                events,
            )
            .await
            .map_err(|error| match (error, &target.known_hosts, words) {
                (russh::Error::UnknownKey, Some(file), _) => ConnectError::HostKey(file.clone()),
                // Behind other errors there was a version after all.
                (russh::Error::Disconnect | russh::Error::IO(_) | russh::Error::Version, _, Some(words)) => {
                    ticket.cost = Duration::ZERO;
                    ConnectError::Dropped(words)
                }
                (error, ..) => ConnectError::unreachable(error),
            })?;
            log_in(&mut handle, target, key, ticket).await?;
            Ok(handle)
        })
        .await
        .map_err(|_| ConnectError::unreachable("the guest's sshd did not finish the handshake in time"))??;
        Ok(Self {
            handle,
            transport,
            life,
            channels: AtomicUsize::new(0),
            closing: AtomicUsize::new(0),
            laggards: Laggards::default(),
            chunks: Chunks::default(),
            backlog,
            aborted: AtomicUsize::new(0),
            refused: AtomicUsize::new(0),
            asking: AtomicBool::new(false),
        })
    }

    /// russh's side of it.
    pub(super) fn handle(&self) -> &Handle<impl client::Handler + use<>> {
        &self.handle
    }

    /// Opens a channel to the unix socket `dest` in the guest.
    pub(super) async fn open(&self, dest: &str) -> Result<(russh::Channel<Msg>, Share), russh::Error> {
        let opening = self.backlog.opening();
        let channel = self.handle.channel_open_direct_streamlocal(dest).await.inspect_err(|error| {
            self.refused.fetch_add(1, Ordering::Relaxed);
            if matches!(error, russh::Error::ChannelOpenFailure(_)) {
                self.life.heard();
            }
        })?;
        drop(opening);
        let share = self.share(&channel);
        Ok((channel, share))
    }

    /// Counts one that waits for [`Self::open`], until what it gives is dropped.
    pub(super) fn waiting(&self) -> Waiting<'_> {
        self.backlog.waiting()
    }

    /// Where what comes on the channel is counted, which is to be had before it is accepted where the guest
    /// opened it.
    pub(super) fn share(&self, channel: &russh::Channel<Msg>) -> Share {
        self.backlog.share(channel.id().into())
    }

    /// Whether new channels may be put on it.
    pub(super) fn is_usable(&self) -> bool {
        !self.handle.is_closed()
            && !self.life.is_passed_over()
            && self.aborted.load(Ordering::Relaxed) < MAX_ABORTED
            && self.refused.load(Ordering::Relaxed) < MAX_REFUSED
            && self.backlog.being_opened() < MAX_OPENING
    }

    /// Whether new clients would wait here for others. One without clients holds nothing of theirs.
    pub(super) fn lags(&self) -> bool {
        self.laggards.any() || self.laggards.any_lately() && self.channels.load(Ordering::Relaxed) > 0
    }

    /// It is beside few others now, and may hold as much as one that was made so.
    pub(super) fn enlarge_backlog(&self) {
        self.backlog.enlarge();
    }

    /// No new channels are put on it until the guest is heard again.
    pub(super) fn pass_over(&self) {
        self.life.passed_over.store(self.life.now(), Ordering::Relaxed);
    }

    /// Whether it is passed over, and has no client that was let in, whose keepalive would end it.
    pub(super) fn is_of_no_use(&self) -> bool {
        self.life.is_passed_over() && self.channels.load(Ordering::Relaxed) <= self.backlog.being_opened()
    }

    /// Whether it has ended.
    pub(super) fn is_closed(&self) -> bool {
        self.handle.is_closed()
    }

    /// How long ago the guest was last heard.
    pub(super) fn silence(&self) -> Duration {
        self.life.silence()
    }

    /// Ends the connection and every channel on it, whatever its task is blocked on.
    pub(super) fn kill(&self) {
        self.transport.shutdown();
    }

    /// Whether nothing would be lost with it.
    pub(super) fn is_idle(&self) -> bool {
        self.channels.load(Ordering::Relaxed) == 0 && self.closing.load(Ordering::Relaxed) == 0
    }

    /// Notes a channel that we close first, until the guest has closed it too.
    pub(super) fn note_abort(self: &Arc<Self>) -> Closing {
        self.aborted.fetch_add(1, Ordering::Relaxed);
        self.closing.fetch_add(1, Ordering::Relaxed);
        Closing(Arc::clone(self))
    }

    /// Watches over the guest's life for as long as it is polled, and ends the connection of a guest that is
    /// gone.
    ///
    /// Each open channel polls one, so an idle connection has no timer. While a client lags nothing is read,
    /// so silence proves nothing.
    pub(super) async fn keep_alive(&self) {
        loop {
            let silence = self.silence();
            if silence < KEEPALIVE_AFTER {
                sleep(KEEPALIVE_AFTER - silence).await;
                continue;
            }
            let Some(_asking) = Asking::begin(&self.asking).filter(|_| !self.laggards.any()) else {
                sleep(KEEPALIVE_AFTER).await;
                continue;
            };
            let asked = Instant::now();
            let answer = timeout(KEEPALIVE_LIMIT, self.handle.send_ping()).await;
            if answer.is_err() && !self.laggards.any() && self.silence() >= asked.elapsed() {
                info!("ssh: the guest does not answer, closing the connection");
                self.kill();
                return;
            }
            self.life.heard();
        }
    }
}

/// Held by the one channel that asks the guest for a sign of life.
struct Asking<'a>(&'a AtomicBool);

impl<'a> Asking<'a> {
    fn begin(asking: &'a AtomicBool) -> Option<Self> {
        (!asking.swap(true, Ordering::Relaxed)).then_some(Self(asking))
    }
}

impl Drop for Asking<'_> {
    fn drop(&mut self) {
        self.0.store(false, Ordering::Relaxed);
    }
}

/// How long to wait for that. A server may wait for the client's version before it gives its own (RFC 4253,
/// 4.2, leaves that open).
const FIRST_WORDS: Duration = Duration::from_millis(500);
/// The longest line that is looked at, in bytes.
const LINE_MAX: usize = 255;

/// Waits for the other end's version, and takes the lines that may come before (RFC 4253, 4.2). Until it is
/// there `words` are the first of them, quoted, without its end: what was said instead.
async fn read_version(stream: &Stream, words: &mut Option<String>) {
    let mut start = [0; LINE_MAX];
    loop {
        let peek = || Ok(recv(stream, &mut start, RecvFlags::PEEK)?.0);
        // A reset is an end as well.
        let length = stream.async_io(Interest::READABLE, peek).await.unwrap_or(0);
        let (said, _) = start.split_at_mut(length);
        if length > 0 && said.iter().zip(b"SSH-").all(|(byte, version)| byte == version) {
            return *words = None;
        }
        let line = said.split(|byte| matches!(byte, b'\r' | b'\n')).next().unwrap_or_default();
        words.get_or_insert_with(|| if line.is_empty() { String::new() } else { quote(line) });
        let end = said.iter().position(|byte| *byte == b'\n');
        let Some(line) = end.and_then(|end| said.get_mut(..=end)) else { return };
        if recv(stream, line, RecvFlags::empty()).is_err() {
            return;
        }
    }
}

/// Logs in with the key, or else the password.
async fn log_in(
    handle: &mut Handle<Events>,
    target: &Target,
    key: Arc<PrivateKey>,
    ticket: &mut Ticket<'_>,
) -> Result<(), ConnectError> {
    ticket.cost = REFUSED;
    let hash = if key.algorithm().is_rsa() { rsa_hash(handle).await? } else { None };
    let key = PrivateKeyWithHashAlg::new(key, hash);
    let mut result =
        handle.authenticate_publickey(&target.user, key).await.map_err(ConnectError::unreachable)?;
    if let (AuthResult::Failure { remaining_methods, .. }, Some(Secret(password))) =
        (&result, &target.password)
        && remaining_methods.contains(&MethodKind::Password)
    {
        let asked = handle.authenticate_password(&target.user, password);
        result = asked.await.map_err(ConnectError::unreachable)?;
    }
    match result {
        AuthResult::Success => {
            ticket.cost = Duration::ZERO;
            Ok(())
        }
        // russh reports a lost connection as a refusal that names no method.
        AuthResult::Failure { remaining_methods, .. } if remaining_methods.is_empty() => {
            Err(ConnectError::unreachable("the guest hung up during authentication"))
        }
        AuthResult::Failure { partial_success: true, remaining_methods } => {
            let wanted = remaining_methods.iter().map(<&str>::from).collect::<Vec<_>>().join(", ");
            Err(ConnectError::MoreWanted { user: target.user.clone(), wanted })
        }
        AuthResult::Failure { .. } => Err(ConnectError::Auth { user: target.user.clone() }),
    }
}

/// How to sign with an RSA key: what the server says it takes, else SHA-512 (RFC 8332); SHA-1 only if it says
/// so.
async fn rsa_hash(handle: &Handle<Events>) -> Result<Option<HashAlg>, ConnectError> {
    let best = handle.best_supported_rsa_hash().await.map_err(ConnectError::unreachable)?;
    Ok(best.unwrap_or(Some(HashAlg::Sha512)))
}

fn config() -> client::Config {
    client::Config {
        window_size: WINDOW,
        maximum_packet_size: PACKET,
        channel_buffer_size: CAPACITY,
        preferred: Preferred {
            // By speed: the wire is a virtual network inside this process. The NIST curves are for guests in
            // FIPS mode. But sshd (since 10.1) warns in the guest's log of each connection whose key exchange
            // a quantum computer could undo. A group of the server's choice may be so large that everything
            // else waits for it.
            kex: Cow::Borrowed(&[
                kex::MLKEM768X25519_SHA256,
                kex::CURVE25519,
                kex::CURVE25519_PRE_RFC_8731,
                kex::ECDH_SHA2_NISTP256,
                kex::ECDH_SHA2_NISTP384,
                kex::ECDH_SHA2_NISTP521,
                kex::DH_G16_SHA512,
                kex::DH_G14_SHA256,
                kex::EXTENSION_SUPPORT_AS_CLIENT,
                kex::EXTENSION_OPENSSH_STRICT_KEX_AS_CLIENT,
            ]),
            cipher: Cow::Borrowed(&[
                cipher::AES_128_GCM,
                cipher::AES_256_GCM,
                cipher::CHACHA20_POLY1305,
                cipher::AES_128_CTR,
                cipher::AES_256_CTR,
            ]),
            ..Preferred::DEFAULT
        },
        ..client::Config::default()
    }
}

/// When the guest was last heard.
struct Life {
    born: Instant,
    /// Milliseconds since `born`,
    heard: AtomicU64,
    /// and when it was passed over.
    passed_over: AtomicU64,
}

impl Life {
    fn new() -> Self {
        Self { born: Instant::now(), heard: AtomicU64::new(0), passed_over: AtomicU64::new(0) }
    }

    fn now(&self) -> u64 {
        u64::try_from(self.born.elapsed().as_millis()).unwrap_or(u64::MAX)
    }

    fn heard(&self) {
        self.heard.store(self.now(), Ordering::Relaxed);
    }

    fn is_passed_over(&self) -> bool {
        self.passed_over.load(Ordering::Relaxed) > self.heard.load(Ordering::Relaxed)
    }

    fn silence(&self) -> Duration {
        self.born.elapsed().saturating_sub(Duration::from_millis(self.heard.load(Ordering::Relaxed)))
    }
}

/// What the connections of one forward have had of key exchanges that the guest wished for: up to when its
/// part is used up. Each takes the thread of all others milliseconds before it is counted.
#[derive(Debug)]
pub struct Exchanges(Mutex<Instant>);

impl Exchanges {
    /// None yet. Clones are the same ones.
    pub fn new() -> Arc<Self> {
        Arc::new(Self(Mutex::new(Instant::now())))
    }

    /// Counts one, and waits where it is beyond the guest's part.
    async fn count(&self, every: Duration) {
        let used_up = {
            let mut used_up = self.0.lock().unwrap_or_else(PoisonError::into_inner);
            let now = Instant::now();
            // Who waited longer would be taken for a guest that is gone, and what one had too much of is not
            // held against the next.
            *used_up = ((*used_up).max(now) + every).min(now + (EXCHANGES_AHEAD + MAX_WAIT) * every);
            *used_up
        };
        if let Some(at) = used_up.checked_sub(EXCHANGES_AHEAD * every) {
            sleep_until(at).await;
        }
    }
}

/// A channel that the guest wants to open for a client of the socket at `path`. Dropping it refuses.
pub(super) struct Opened {
    pub(super) channel: russh::Channel<Msg>,
    pub(super) path: String,
    pub(super) reply: ChannelOpenHandle,
}

impl fmt::Debug for Opened {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Opened").field("path", &self.path).finish_non_exhaustive()
    }
}

/// What russh tells about the connection.
struct Events {
    life: Arc<Life>,
    backlog: Backlog,
    known_hosts: Option<(PathBuf, HostPort)>,
    exchanges: Arc<Exchanges>,
    /// When keys were exchanged last.
    exchanged: Option<Instant>,
    /// Gone with the session, which tells the other end that it has ended.
    opened: Option<mpsc::Sender<Opened>>,
}

impl client::Handler for Events {
    type Error = russh::Error;

    // COMPAT(gvproxy): unless it is asked for the host key is not checked; the connection goes only over the
    // virtual network.
    async fn check_server_key(&mut self, key: &PublicKeyOrCertificate) -> Result<bool, Self::Error> {
        let Some((file, addr)) = &self.known_hosts else { return Ok(true) };
        let PublicKeyOrCertificate::PublicKey { key, .. } = key else { return Ok(false) };
        let (to, key, known) = (addr.clone(), key.clone(), file.clone());
        let check = move || check_known_hosts_path(&to.host, to.port, &key, &known);
        match disk::ask(file, check).await.map_err(russh::keys::Error::from).flatten() {
            Ok(true) => Ok(true),
            Ok(false) => {
                info!(%addr, file = %file.display(), "ssh: the guest's key is not known, and accepted");
                Ok(true)
            }
            Err(error) => {
                debug!(%addr, %error, file = %file.display(), "ssh: the guest's key is not the known one");
                Ok(false)
            }
        }
    }

    async fn kex_done(
        &mut self,
        _: Option<&[u8]>,
        names: &Names,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.life.heard();
        let last = self.exchanged.replace(Instant::now());
        if last.is_some_and(|last| last.elapsed() < KEYS_OLD) {
            let is_slow = [kex::DH_G14_SHA256, kex::DH_G16_SHA512].contains(&names.kex);
            self.exchanges.count(if is_slow { SLOW_EXCHANGE_EVERY } else { EXCHANGE_EVERY }).await;
        }
        Ok(())
    }

    /// Answered elsewhere: whoever takes it may have to connect first. More at once than there is room for
    /// are refused.
    async fn server_channel_open_forwarded_streamlocal(
        &mut self,
        channel: russh::Channel<Msg>,
        path: &str,
        reply: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.life.heard();
        if let Some(opened) = &self.opened {
            let _ = opened.try_send(Opened { channel, path: path.to_owned(), reply });
        }
        Ok(())
    }

    // No other channel of the guest's is ever wanted: left to russh, each would be accepted, and kept for as
    // long as the connection lives.

    async fn server_channel_open_session(
        &mut self,
        _: russh::Channel<Msg>,
        _refused: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_forwarded_tcpip(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _refused: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_tcpip(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _: &str,
        _: u32,
        _refused: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_direct_streamlocal(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _refused: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_agent_forward(
        &mut self,
        _: russh::Channel<Msg>,
        _refused: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn server_channel_open_x11(
        &mut self,
        _: russh::Channel<Msg>,
        _: &str,
        _: u32,
        _refused: ChannelOpenHandle,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        Ok(())
    }

    async fn channel_open_confirmation(
        &mut self,
        channel: ChannelId,
        _: u32,
        _: u32,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.life.heard();
        // Before anything can come on it.
        self.backlog.enter(channel.into());
        Ok(())
    }

    async fn data(
        &mut self,
        channel: ChannelId,
        data: &[u8],
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.life.heard();
        ensure_agreed(data)?;
        self.count(channel, data.len()).await
    }

    async fn extended_data(
        &mut self,
        channel: ChannelId,
        _: u32,
        data: &[u8],
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        ensure_agreed(data)?;
        self.count(channel, data.len()).await
    }

    async fn window_adjusted(
        &mut self,
        channel: ChannelId,
        _: u32,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.life.heard();
        self.count(channel, 0).await
    }

    // What else russh has wait for a client counts too.

    async fn channel_eof(&mut self, channel: ChannelId, _: &mut client::Session) -> Result<(), Self::Error> {
        self.count(channel, 0).await
    }

    async fn channel_success(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.count(channel, 0).await
    }

    async fn channel_failure(
        &mut self,
        channel: ChannelId,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.count(channel, 0).await
    }

    async fn xon_xoff(
        &mut self,
        channel: ChannelId,
        _: bool,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.count(channel, 0).await
    }

    async fn exit_status(
        &mut self,
        channel: ChannelId,
        _: u32,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.count(channel, 0).await
    }

    async fn exit_signal(
        &mut self,
        channel: ChannelId,
        _: russh::Sig,
        _: bool,
        words: &str,
        language: &str,
        _: &mut client::Session,
    ) -> Result<(), Self::Error> {
        self.count(channel, words.len() + language.len()).await
    }

    async fn channel_close(&mut self, _: ChannelId, _: &mut client::Session) -> Result<(), Self::Error> {
        self.life.heard();
        Ok(())
    }

    async fn disconnected(
        &mut self,
        reason: client::DisconnectReason<Self::Error>,
    ) -> Result<(), Self::Error> {
        debug!(?reason, "ssh: connection ended");
        Ok(())
    }
}

impl Events {
    /// Something of so many bytes waits for the channel's client, beside what waits already.
    async fn count(&self, channel: ChannelId, bytes: usize) -> Result<(), russh::Error> {
        self.backlog.add(channel.into(), bytes).await;
        Ok(())
    }
}

/// A packet that is longer than agreed is more than what may wait beside the backlog, and ends the
/// connection.
///
/// # Errors
/// It is longer.
fn ensure_agreed(data: &[u8]) -> Result<(), russh::Error> {
    if data.len() <= PACKET as usize { Ok(()) } else { Err(russh::Error::PacketSize(data.len())) }
}

/// A stream that lets others have a turn however much is there to be read: what is buffered counts as no work
/// in tokio.
#[derive(Debug)]
struct Yielding<S> {
    stream: S,
    reads: u32,
}

impl<S: AsyncRead + Unpin> AsyncRead for Yielding<S> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        if self.reads >= READS_IN_A_ROW {
            self.reads = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        self.reads += 1;
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl<S: AsyncWrite + Unpin> AsyncWrite for Yielding<S> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// A second descriptor of the connection's stream. Shutting it down is the one way to stop a russh session
/// that is blocked on a write or in the middle of a handshake.
struct Transport(StdStream);

impl Transport {
    fn split(stream: Stream) -> io::Result<(Stream, Self)> {
        let stream = stream.into_std()?;
        let second = stream.try_clone()?;
        Ok((Stream::from_std(stream)?, Self(second)))
    }

    fn shutdown(&self) {
        // Fails only when the other side is gone already.
        let _ = self.0.shutdown(Shutdown::Both);
    }
}

impl Drop for Transport {
    fn drop(&mut self) {
        self.shutdown();
    }
}

#[cfg(test)]
mod tests {
    use std::pin::pin;

    use tokio::io::AsyncReadExt as _;

    use super::*;

    #[test]
    fn longer_packets_than_agreed_end_the_connection() {
        assert!(ensure_agreed(&[0; PACKET as usize]).is_ok());
        assert!(matches!(ensure_agreed(&[0; PACKET as usize + 1]), Err(russh::Error::PacketSize(_))));
    }

    #[tokio::test(start_paused = true)]
    async fn who_exchanges_keys_too_often_waits_and_not_for_long() {
        let exchanges = Exchanges::new();
        let start = Instant::now();
        for _ in 0..EXCHANGES_AHEAD {
            exchanges.count(EXCHANGE_EVERY).await;
        }
        assert_eq!(start.elapsed(), Duration::ZERO);
        exchanges.count(EXCHANGE_EVERY).await;
        assert_eq!(start.elapsed(), EXCHANGE_EVERY);
        // All logins of a forward at once.
        let mut logins = tokio::task::JoinSet::new();
        for _ in 0..crate::ssh::MAX_LOGINS {
            let exchanges = Arc::clone(&exchanges);
            logins.spawn(async move { exchanges.count(EXCHANGE_EVERY).await });
        }
        logins.join_all().await;
        assert_eq!(start.elapsed(), (1 + MAX_WAIT) * EXCHANGE_EVERY);
    }

    #[tokio::test]
    async fn others_have_a_turn_however_much_is_there() {
        const THERE: usize = 4 * READS_IN_A_ROW as usize;
        let mut stream = Yielding { stream: [0; THERE].as_slice(), reads: 0 };
        let mut all = pin!(async {
            let mut reads = 0;
            while stream.read(&mut [0]).await.unwrap() > 0 {
                reads += 1;
            }
            reads
        });
        tokio::select! {
            biased;
            reads = &mut all => panic!("{reads} reads without a turn"),
            () = std::future::ready(()) => {}
        }
        assert_eq!(all.await, THERE);
    }
}
