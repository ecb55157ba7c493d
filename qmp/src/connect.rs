//! From an address to a session, once or until it works.
//!
//! Owns: connecting sockets, the pauses between attempts. Read next: `client.rs`.

use std::io;
use std::path::Path;
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tokio::net::{TcpStream, lookup_host};
use tokio::time::{Instant, sleep, timeout};

use crate::{Address, Client, ConnectError, HandshakeError, Timeouts};

/// The pause after the first attempt, and the longest: each is twice the one before.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));

impl Client {
    /// Connects once. Takes no longer than the three time-outs together.
    pub async fn connect(address: &Address, timeouts: Timeouts) -> Result<Self, ConnectError> {
        let after = timeouts.connect;
        let connected = match address {
            Address::Unix(path) => match connect_unix(path) {
                Ok(stream) => Ok(Self::handshake(stream, timeouts).await),
                Err(source) => Err(source),
            },
            Address::Tcp(target) => match timeout(after, connect_tcp(target)).await {
                Ok(Ok(stream)) => Ok(Self::handshake(stream, timeouts).await),
                Ok(Err(source)) => Err(source),
                Err(_) => return Err(ConnectError::Timeout { address: address.clone(), after }),
            },
        };
        match connected {
            Ok(session) => {
                session.map_err(|source| ConnectError::Handshake { address: address.clone(), source })
            }
            // A unix socket whose backlog is full says so at once. QEMU's holds one or two.
            Err(source) if source.kind() == io::ErrorKind::WouldBlock => {
                Err(ConnectError::Queue { address: address.clone() })
            }
            Err(source) => Err(ConnectError::Socket { address: address.clone(), source }),
        }
    }

    /// Connects as soon as it works: to a QEMU that is not there yet, or again after one ended. Tries until
    /// `within` is over (`None`: for ever), and gives up at once only on what will not change by itself: a
    /// path that may not be opened, a server that speaks something else. `Err` is the last attempt's.
    pub async fn connect_within(
        address: &Address,
        timeouts: Timeouts,
        within: Option<Duration>,
    ) -> Result<Self, ConnectError> {
        let begin = Instant::now();
        let mut pause = PAUSE.0;
        let mut last = None;
        loop {
            let left = within.map(|within| within.saturating_sub(begin.elapsed()));
            let attempt = timeout(left.unwrap_or(Duration::MAX), Self::connect(address, timeouts));
            match attempt.await {
                Ok(Err(error)) if error.is_transient() => {
                    tracing::debug!(%address, %error, "QMP not yet");
                    last = Some(error);
                }
                Ok(result) => return result,
                Err(_) => {}
            }
            let left = within.map_or(Duration::MAX, |within| within.saturating_sub(begin.elapsed()));
            if left.is_zero() {
                let after = begin.elapsed();
                return Err(last.unwrap_or_else(|| ConnectError::Timeout { address: address.clone(), after }));
            }
            sleep(pause.min(left)).await;
            pause = (pause * 2).min(PAUSE.1);
        }
    }
}

/// Connects to the unix socket at `path`. It never waits: a full backlog refuses at once. What the runtime
/// has for TCP reads, writes and watches streams of every family, also where it has nothing for unix sockets.
fn connect_unix(path: &Path) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    socket.connect(&SockAddr::unix(path)?)?;
    TcpStream::from_std(socket.into())
}

/// Connects to the first address of `target` that answers. A connect to a port of the host's own on which
/// nobody listens may be given that very port as its source, and meets itself: that is a refusal, and leaves
/// the port free for QEMU.
async fn connect_tcp(target: &str) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in lookup_host(target).await? {
        match TcpStream::connect(address).await {
            Ok(stream) if stream.local_addr().ok() == stream.peer_addr().ok() => {
                stream.set_zero_linger()?;
                failure = io::ErrorKind::ConnectionRefused.into();
            }
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

impl ConnectError {
    /// The handshake's error, when it came that far.
    pub fn handshake(&self) -> Option<&HandshakeError> {
        match self {
            Self::Handshake { source, .. } => Some(source),
            _ => None,
        }
    }
}
