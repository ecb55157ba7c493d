//! The guest's agent: unix sockets of this guest served to the host, and sockets made here whose clients are
//! for the host. What is said on a connection is in `crate::agent`.
//!
//! Owns: the listeners, who may connect, and to what. May not: serve a path that is not on its lists, or
//! another than the host.
//! Read next: `offers.rs`; `crate::relay`, which carries the bytes; `../engine/client.rs` and
//! `../reverse/agent.rs`, the other side.

use rustix::fd::OwnedFd;
use std::fs;
use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::os::unix::ffi::OsStrExt as _;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow};
use socket2::{SockRef, Socket, TcpKeepalive};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt as _, Interest};
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::offers::{Offers, Unoffered, Waiting};
use crate::addr::ListenAddress;
use crate::agent::{ACCEPT, MAX_LINE, ONLY, SharedSecret, next_line, secret, with_end};
use crate::disk;
use crate::listen;
use crate::logging::Limited;
use crate::relay::Relays;
use crate::supervise::{ACCEPT_PAUSE, accept_clients};
use crate::sys::sockets::{VMADDR_CID_HOST, vsock_address};
use crate::sys::stream::Stream;
use crate::sys::watched::Watched;
use crate::text::{quote, reason};

/// Connections at a time; more wait in the backlog.
const MAX_CLIENTS: usize = 2048;
/// How long the line may take to arrive, with the proof if there is to be one, and a socket to accept.
const PATIENCE: Duration = Duration::from_secs(10);
/// How often a socket with a full backlog is tried.
const CONNECT_PAUSE: Duration = Duration::from_millis(10);
/// A host that vanished is noticed though nobody writes.
const KEEPALIVE: Duration = Duration::from_secs(60);
const LOG_WINDOW: Duration = Duration::from_secs(30);

/// What an agent is to do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// The paths that are served, exactly as they are asked for.
    pub(super) allow: Vec<Vec<u8>>,
    /// The sockets that are made when the host asks for them, all of them unix sockets.
    pub(super) offer: Vec<ListenAddress>,
    /// Of TCP, and of vsock.
    pub(super) port: u16,
    /// Whose TCP connections are taken, if not those of the default route's gateway.
    pub(super) from: Option<Ipv4Addr>,
    /// What the host proves itself by, but on vsock, where its address cannot be another's.
    pub(super) secret: Option<SharedSecret>,
}

/// A guest's agent, listening.
#[derive(Debug)]
pub struct Agent {
    tcp: Watched,
    vsock: Option<Watched>,
    server: Arc<Server>,
}

#[derive(Debug)]
struct Server {
    settings: Settings,
    offers: Arc<Offers>,
    relays: Relays,
    refusals: Limited,
}

impl Agent {
    /// Listens on vsock, where there is one, and for TCP on all addresses. To be called in a tokio runtime.
    ///
    /// # Errors
    /// The TCP port cannot be had.
    pub fn bind(settings: Settings) -> Result<Self> {
        let port = settings.port;
        let tcp = listen::tcp_v4(port).and_then(watched).map_err(|error| {
            let hint = match error.kind() {
                io::ErrorKind::PermissionDenied => {
                    ": a port below 1024 is for root; -agent-port N takes another, here and at the host"
                }
                _ => "",
            };
            anyhow!("cannot listen for the host on TCP port {port}: {}{hint}", reason(&error))
        })?;
        let vsock = match Path::new("/dev/vsock").exists() {
            true => listen::vsock(None, port.into()).and_then(watched),
            false => Err(io::ErrorKind::NotFound.into()),
        };
        let on_vsock = vsock.as_ref().map_or_else(reason, |_| "listening".into());
        let paths = settings.allow.iter().map(quote).collect::<Vec<_>>().join(" ");
        let offers = settings.offer.iter().map(ListenAddress::to_string).collect::<Vec<_>>().join(" ");
        tracing::info!(port, vsock = on_vsock, paths, offers, "agent: listening");
        let offers = Offers::new(settings.offer.clone());
        let refusals = Limited::new(5, LOG_WINDOW);
        let server = Server { settings, offers, relays: Relays::default(), refusals };
        Ok(Self { tcp, vsock: vsock.ok(), server: Arc::new(server) })
    }

    /// Serves the host.
    pub async fn run(&self) -> std::convert::Infallible {
        let failures = Limited::new(1, Duration::from_secs(60));
        let serve = |client, _| {
            let server = Arc::clone(&self.server);
            Some(async move { server.serve(client).await })
        };
        let failed = |error| {
            if let Some(suppressed) = failures.admit(Instant::now()) {
                tracing::warn!(%error, suppressed, "agent: cannot accept, trying again");
            }
            ACCEPT_PAUSE
        };
        accept_clients(&mut JoinSet::new(), MAX_CLIENTS, || self.accept(), serve, failed).await
    }

    /// The next connection, if it is the host's.
    async fn accept(&self) -> io::Result<Option<Client>> {
        let vsock = async {
            match &self.vsock {
                Some(listener) => listen::accept(listener).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            accepted = listen::accept(&self.tcp) => {
                let (stream, from) = accepted?;
                if from.as_socket().is_some_and(|from| self.server.is_host(from.ip())) {
                    return Ok(Some(Client { stream, is_known: false }));
                }
                self.server.refuse(&from.as_socket());
                let _ = stream.set_zero_linger();
            }
            accepted = vsock => {
                let (stream, from) = accepted?;
                let cid = vsock_address(&from).map(|(cid, _)| cid);
                if cid == Some(VMADDR_CID_HOST) {
                    return Ok(Some(Client { stream, is_known: true }));
                }
                self.server.refuse(&cid);
            }
        }
        Ok(None)
    }
}

fn watched(listener: impl Into<OwnedFd>) -> io::Result<Watched> {
    let socket = Socket::from(listener.into());
    socket.set_nonblocking(true)?;
    Watched::new(socket.into(), Interest::READABLE)
}

/// A connection from the host.
struct Client {
    stream: Stream,
    /// Its address tells, so that it has nothing to prove.
    is_known: bool,
}

impl Server {
    fn is_host(&self, from: IpAddr) -> bool {
        let host = self.settings.from.or_else(|| gateway(&fs::read_to_string("/proc/net/route").ok()?));
        host.is_some_and(|host| from == IpAddr::V4(host))
    }

    /// Anybody in the guest's networks can cause this line.
    fn refuse(&self, from: &dyn std::fmt::Debug) {
        if let Some(suppressed) = self.refusals.admit(Instant::now()) {
            tracing::warn!(?from, suppressed, "agent: refused a connection that is not the host's");
        }
    }

    async fn serve(&self, client: Client) {
        let Client { mut stream, is_known } = client;
        // It is slower without, not wrong; and only TCP has them.
        let _ = stream.set_nodelay(true);
        let _ = SockRef::from(&stream).set_tcp_keepalive(&TcpKeepalive::new().with_time(KEEPALIVE));
        let opened = self.greet(&mut stream, is_known || self.settings.secret.is_none()).await;
        match opened.and_then(|near| Ok((stream.into_std()?, near.into_std()?))) {
            Ok((stream, socket)) => {
                let ended = self.relays.carry(stream, socket).await;
                tracing::debug!(?ended, "agent: connection ended");
            }
            Err(error) => tracing::debug!(%error, "agent: connection failed"),
        }
    }

    /// Hears what is asked for, and answers. A socket that is made for the host has a client then. The host
    /// has to prove that it is the host unless it is known already.
    async fn greet(&self, host: &mut Stream, is_known: bool) -> io::Result<Stream> {
        let opened = match timeout(PATIENCE, self.open(host, is_known)).await {
            Ok(opened) => opened?,
            Err(_) => Err("no answer from the socket, or no line, within 10 s".to_owned()),
        };
        match opened {
            Ok(Opened::Socket(mut socket, early)) => {
                host.write_all(b"OK\n").await?;
                // A new socket takes that much at once. One that takes nothing may have answered: what
                // carries the bytes finds out.
                let _ = socket.write_all(&early).await;
                Ok(socket)
            }
            Ok(Opened::Offer(waiting)) => {
                host.write_all(b"OK\n").await?;
                waiting.client(host).await
            }
            Err(why) => {
                host.write_all(format!("ERR {why}\n").as_bytes()).await?;
                host.shutdown().await?;
                Err(io::Error::other(why))
            }
        }
    }

    /// What was asked for, and what came behind the line; or why it cannot be had.
    async fn open<S>(&self, host: &mut S, is_known: bool) -> io::Result<Result<Opened, String>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let mut early = Vec::with_capacity(MAX_LINE);
        let bytes = match self.read_request(host, &mut early, is_known).await? {
            Ok(bytes) => bytes,
            Err(why) => return Ok(Err(why)),
        };
        if let Some(path) = bytes.strip_prefix(ACCEPT) {
            let rest = path.strip_prefix(ONLY);
            let (path, only) = (rest.unwrap_or(path), rest.is_some());
            return Ok(match self.offers.wait_at(path, only) {
                Ok(waiting) => Ok(Opened::Offer(waiting)),
                Err(Unoffered::Never) => Err(self.bar(path, "offered", "-agent-offer")),
                Err(Unoffered::Now(why)) => Err(why),
            });
        }
        if !self.settings.allow.contains(&bytes) {
            return Ok(Err(self.bar(&bytes, "allowed", "-agent-allow")));
        }
        let shown = quote(&bytes);
        let path = Path::new(std::ffi::OsStr::from_bytes(&bytes));
        loop {
            match disk::connect(path).await {
                Ok(socket) => return Ok(Ok(Opened::Socket(socket, early))),
                // Its backlog is full.
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => sleep(CONNECT_PAUSE).await,
                Err(error) => return Ok(Err(format!("{shown}: {}", reason(&error)))),
            }
        }
    }

    /// The line of a host that is known, or has proved itself; or why there is none.
    async fn read_request<S>(
        &self,
        host: &mut S,
        early: &mut Vec<u8>,
        is_known: bool,
    ) -> io::Result<Result<Vec<u8>, String>>
    where
        S: AsyncRead + AsyncWrite + Unpin,
    {
        let Some(line) = next_line(host, early).await? else {
            return Ok(Err("the line is too long".into()));
        };
        let proof = match &self.settings.secret {
            Some(secret) => secret.prove(&line)?,
            None if secret::is_challenge(&line) => {
                return Ok(Err("this agent has no secret to prove: add -agent-secret-file".into()));
            }
            None => None,
        };
        let Some(proof) = proof else {
            return Ok(if is_known { Ok(line) } else { Err(self.doubt("no proof")) });
        };
        host.write_all(&with_end(&proof.line())).await?;
        // A host whose secret is another one leaves when it has heard this one's proof.
        let said = next_line(host, early).await.inspect_err(|_| drop(self.doubt("no proof")))?;
        let line = said.as_deref().and_then(|said| proof.check(said));
        Ok(line.map(<[u8]>::to_vec).ok_or_else(|| self.doubt("a wrong proof")))
    }

    /// What is said to a host that does not prove itself.
    fn doubt(&self, gave: &str) -> String {
        if let Some(suppressed) = self.refusals.admit(Instant::now()) {
            tracing::warn!(
                gave,
                suppressed,
                "agent: refused who does not prove to be the host; -agent-secret-file has to be the same at both ends"
            );
        }
        format!("{gave} of the secret: gvproxy needs this agent's -agent-secret-file")
    }

    /// What is said of a path that is on no list.
    fn bar(&self, path: &[u8], what: &str, flag: &str) -> String {
        let shown = quote(path);
        if let Some(suppressed) = self.refusals.admit(Instant::now()) {
            tracing::warn!(
                path = shown,
                suppressed,
                "agent: refused a path that is not {what}; {flag} adds one"
            );
        }
        format!("{shown} is not {what}: add {flag}")
    }
}

/// What the host asked for.
enum Opened {
    /// A connection, and what is for it already.
    Socket(Stream, Vec<u8>),
    /// A client of a socket, which is still to come.
    Offer(Waiting),
}

/// The gateway of the default route that is used first, from the text of /proc/net/route (proc_pid_net(5)).
fn gateway(routes: &str) -> Option<Ipv4Addr> {
    let hex = |text: &str| u32::from_str_radix(text, 16).ok();
    let gateways = routes.lines().filter_map(|line| {
        let fields: Vec<&str> = line.split_whitespace().collect();
        let [_, "00000000", gateway, _, _, _, metric, "00000000", ..] = fields.as_slice() else {
            return None;
        };
        // In the order of bytes that they have in a packet.
        let gateway = Ipv4Addr::from(hex(gateway)?.to_ne_bytes());
        Some((metric.parse::<u32>().ok()?, gateway)).filter(|(_, gateway)| !gateway.is_unspecified())
    });
    gateways.min_by_key(|(metric, _)| *metric).map(|(_, gateway)| gateway)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_gateway_is_that_of_the_first_default_route() {
        let of = |lines: &[(&str, Ipv4Addr, u32)]| {
            let line = |(to, via, metric): &(&str, Ipv4Addr, u32)| {
                let via = u32::from_ne_bytes(via.octets());
                format!("eth0\t{to}\t{via:08X}\t0003\t0\t0\t{metric}\t00000000\t0\t0\t0\n")
            };
            let head =
                "Iface\tDestination\tGateway \tFlags\tRefCnt\tUse\tMetric\tMask\t\tMTU\tWindow\tIRTT\n";
            gateway(&(head.to_owned() + &lines.iter().map(line).collect::<String>()))
        };
        let (ours, other, none) =
            (Ipv4Addr::new(192, 168, 127, 1), Ipv4Addr::new(10, 0, 2, 2), Ipv4Addr::UNSPECIFIED);
        assert_eq!(of(&[]), None);
        assert_eq!(of(&[("007FA8C0", other, 0), ("00000000", ours, 100)]), Some(ours));
        assert_eq!(of(&[("00000000", other, 600), ("00000000", ours, 100)]), Some(ours));
        assert_eq!(of(&[("00000000", none, 0)]), None);
        assert_eq!(gateway("nonsense\n\n00000000 00000000"), None);
    }
}
