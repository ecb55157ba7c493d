//! What accepts and greets hypervisors: the sockets that they connect to, and what the end of one means for
//! the run.
//!
//! QEMU, BESS, vfkit and standard input and output stand for the virtual machine that the daemon was started
//! for: without `-keep-running` there is one, and the run ends with it. VPNKit's clients come and go, as
//! those of `/connect` do.
//!
//! Owns: the listening sockets and their files. May not: read a frame. Read next: `vfkit.rs`, `vpnkit.rs`;
//! `engine/attach.rs`.

mod vfkit;
mod vpnkit;

use rustix::fd::OwnedFd;
use std::fmt::Display;
use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use netstack::{Mac, PortId};
use socket2::{SockRef, Socket, Type};
use tokio::io::Interest;
use tokio::task::JoinSet;

use crate::addr::ListenAddress;
use crate::config::LinkConfig;
use crate::engine::{Attachment, Handle};
use crate::limit::Limit;
use crate::link::Framing;
use crate::listen::{self, Bound, RemoveOnDrop, TcpAddress, as_made, unix_socket};
use crate::logging::Limited;
use crate::notify::{Notice, Notifier};
use crate::supervise::ACCEPT_PAUSE;
use crate::sys::stdio;
use crate::sys::watched::Watched;

/// The mode of the sockets that hypervisors connect to.
const MODE: u32 = 0o600;
/// Connections of one listener at a time; more wait in its backlog. Of VPNKit's clients those that say
/// nothing make room.
const MAX_GUESTS: usize = 256;

/// What a client of `/connect` speaks beside `links`: as QEMU if that is what else comes here.
// COMPAT(gvproxy): with -listen-bess or -listen-vfkit the original reads its stream as if it were datagrams,
// of which nobody has any use.
pub fn connect_framing(links: &[LinkConfig]) -> Framing {
    let is_qemu = links.iter().any(|link| matches!(link, LinkConfig::Qemu(_)));
    if is_qemu { Framing::Qemu } else { Framing::Hyperkit }
}

/// What links are told and asked.
#[derive(Clone, Debug)]
pub struct Terms {
    /// Whether the run goes on when a virtual machine leaves, and any number of them is served.
    pub keep_running: bool,
    /// The network's MTU, in bytes.
    pub mtu: u16,
    /// What a VPNKit client with this UUID is told to use.
    pub vpnkit_macs: Vec<(String, Mac)>,
    /// Who is told that the way for hypervisors is blocked.
    pub notifier: Option<Notifier>,
    /// How many are connected.
    pub present: Presence,
}

/// How many links there are through sockets that QEMU connects to.
#[derive(Clone, Debug, Default)]
pub struct Presence(Arc<AtomicUsize>);

impl Presence {
    /// Whether there is any.
    pub fn is_any(&self) -> bool {
        self.0.load(Ordering::Relaxed) > 0
    }

    fn enter(&self) -> Present {
        self.0.fetch_add(1, Ordering::Relaxed);
        Present(self.clone())
    }
}

/// One of them, until this is dropped.
#[derive(Debug)]
struct Present(Presence);

impl Drop for Present {
    fn drop(&mut self) {
        self.0.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl Terms {
    /// A way for hypervisors cannot be had, or takes nobody.
    pub fn tell_failure(&self) {
        if let Some(notifier) = &self.notifier {
            notifier.send(Notice::HypervisorError);
        }
    }
}

/// A way in for hypervisors, bound; who connects waits.
#[derive(Debug)]
pub struct HypervisorListener {
    /// Before the socket, as it must be dropped first.
    file: Option<RemoveOnDrop>,
    endpoint: Endpoint,
}

#[derive(Debug)]
enum Endpoint {
    Accept(Guests, Socket),
    Vfkit(Socket),
    Stdio(OwnedFd, Option<OwnedFd>),
}

/// Who connects to a listening socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Guests {
    Qemu,
    Bess,
    Vpnkit,
}

impl HypervisorListener {
    /// Makes the socket.
    ///
    /// # Errors
    /// It cannot be made; or standard input or output is closed.
    pub fn bind(link: &LinkConfig) -> Result<Self> {
        match link {
            LinkConfig::Qemu(at) => Self::stream(Guests::Qemu, at).context("qemu listen error"),
            LinkConfig::Vpnkit(at) => Self::stream(Guests::Vpnkit, at).context("vpnkit listen error"),
            LinkConfig::Bess(path) => {
                let (socket, file) =
                    unix_socket(path, MODE, Type::SEQPACKET, as_made).context("bess listen error")?;
                tracing::info!(path = %path.display(), "waiting for the virtual machine");
                Ok(Self { file: Some(file), endpoint: Endpoint::Accept(Guests::Bess, socket) })
            }
            LinkConfig::Vfkit(path) => {
                let made = unix_socket(path, MODE, Type::DGRAM, vfkit::prepare);
                let (socket, file) = made.context("vfkit listen error")?;
                tracing::info!(path = %path.display(), "waiting for the virtual machine");
                Ok(Self { file: Some(file), endpoint: Endpoint::Vfkit(socket) })
            }
            LinkConfig::Stdio => {
                let (input, output) = stdio::take()?;
                Ok(Self { file: None, endpoint: Endpoint::Stdio(input, output) })
            }
        }
    }

    fn stream(guests: Guests, at: &ListenAddress) -> Result<Self> {
        let Bound { socket, file, .. } = listen::bind(at)?;
        match at.path() {
            Some(path) => tracing::info!(path = %path.display(), "waiting for the virtual machine"),
            None => {
                let address = socket.local_addr()?.as_socket().map(|address| address.to_string());
                tracing::info!(address, "waiting for the virtual machine");
            }
        }
        Ok(Self { file, endpoint: Endpoint::Accept(guests, socket) })
    }

    /// Where it listens, if that is TCP.
    pub fn tcp_address(&self) -> Option<TcpAddress> {
        match &self.endpoint {
            Endpoint::Accept(_, socket) => TcpAddress::of(SockRef::from(socket)),
            Endpoint::Vfkit(_) | Endpoint::Stdio(..) => None,
        }
    }

    /// The socket's file, if it has one.
    pub fn file(&self) -> Option<&RemoveOnDrop> {
        self.file.as_ref()
    }

    /// The same for whoever removes it, before the listener is dropped.
    pub fn take_file(&mut self) -> Option<RemoveOnDrop> {
        self.file.take()
    }

    /// Waits until somebody connects, who then waits to be accepted.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub async fn wait_readable(&self) -> io::Result<()> {
        if let Endpoint::Accept(_, socket) = &self.endpoint {
            Watched::new(socket.try_clone()?.into(), Interest::READABLE)?.readable().await?;
        }
        Ok(())
    }

    /// Attaches who connects. Returns when the run is over because of it.
    ///
    /// # Errors
    /// The run is over because of a failure.
    pub async fn serve(self, engine: Handle, terms: Arc<Terms>) -> Result<()> {
        // Dropped first.
        let Self { endpoint, file } = self;
        let served = match endpoint {
            Endpoint::Accept(guests, ref socket) => accept(guests, socket, &engine, &terms).await,
            Endpoint::Vfkit(ref socket) => vfkit::serve(socket, &engine, &terms).await,
            Endpoint::Stdio(input, output) => {
                let attached = engine.attach_pair(input, output, Framing::Hyperkit).await;
                let mut attachment = attached.context("cannot attach standard input and output")?;
                let port = attachment.port();
                report_begin(port);
                let ended = attachment.ended().await;
                if terms.keep_running {
                    // Who waits may have others to wait for.
                    report(port, &ended);
                }
                // COMPAT(gvproxy): the end of standard input is a failure to it, as nobody connects there
                // again.
                terms.tell_failure();
                ended
            }
        };
        if let Some(file) = file {
            file.remove().await;
        }
        served
    }
}

/// Waits for the end of one link among others, and says how it ended.
pub(crate) async fn follow(mut attachment: Attachment) {
    let ended = attachment.ended().await;
    report(attachment.port(), &ended);
}

/// Says that a link has begun.
pub(crate) fn report_begin(port: PortId) {
    // Who connects again and again is not to fill the log; nor by what follows.
    static CAME: Limited = Limited::new(10, Duration::from_secs(60));
    if let Some(suppressed) = CAME.admit(Instant::now()) {
        let suppressed = (suppressed > 0).then_some(suppressed);
        tracing::info!(%port, suppressed, "virtual machine connected");
    }
}

/// Says that a link among others could not begin.
pub(crate) fn report_refusal(error: &(dyn Display + Send + Sync)) {
    static REFUSED: Limited = Limited::new(10, Duration::from_secs(60));
    if let Some(suppressed) = REFUSED.admit(Instant::now()) {
        tracing::warn!(%error, suppressed, "cannot attach a virtual machine");
    }
}

/// Says how a link among others ended.
pub(crate) fn report(port: PortId, ended: &Result<()>) {
    static FAILED: Limited = Limited::new(10, Duration::from_secs(60));
    static LEFT: Limited = Limited::new(10, Duration::from_secs(60));
    match ended {
        Ok(()) => {
            if let Some(suppressed) = LEFT.admit(Instant::now()) {
                let suppressed = (suppressed > 0).then_some(suppressed);
                tracing::info!(%port, suppressed, "virtual machine left");
            }
        }
        Err(error) => {
            if let Some(suppressed) = FAILED.admit(Instant::now()) {
                tracing::warn!(%port, error = %format_args!("{error:#}"), suppressed, "link failed");
            }
        }
    }
}

async fn accept(guests: Guests, listener: &Socket, engine: &Handle, terms: &Arc<Terms>) -> Result<()> {
    static AGAIN: Limited = Limited::new(10, Duration::from_secs(60));
    listener.set_nonblocking(true)?;
    let is_single = !terms.keep_running && guests != Guests::Vpnkit;
    let readiness = Watched::new(listener.try_clone()?.into(), Interest::READABLE)?;
    let mut following = JoinSet::new();
    let clients = Limit::new(MAX_GUESTS, Duration::ZERO);
    let mut failing = false;
    loop {
        let accepted = tokio::select! {
            accepted = readiness.async_io(Interest::READABLE, |_| listener.accept()),
                if guests == Guests::Vpnkit || following.len() < MAX_GUESTS => accepted,
            Some(_) = following.join_next() => continue,
        };
        let stream = match accepted {
            Ok((stream, _)) => {
                failing = false;
                stream
            }
            Err(error) => {
                if !std::mem::replace(&mut failing, true) {
                    terms.tell_failure();
                }
                if let Some(suppressed) = AGAIN.admit(Instant::now()) {
                    tracing::warn!(%error, suppressed, "cannot accept a virtual machine, trying again");
                }
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let framing = match guests {
            Guests::Qemu => Framing::Qemu,
            Guests::Bess => Framing::Bess,
            Guests::Vpnkit => {
                match clients.admit(()) {
                    Some(slot) => {
                        following.spawn(vpnkit::serve(stream, slot, engine.clone(), Arc::clone(terms)));
                    }
                    None => report_refusal(&"as many VPNKit clients as may be"),
                }
                continue;
            }
        };
        if is_single {
            refuse_others(listener);
        }
        let present = terms.present.enter();
        match engine.attach(stream, framing).await {
            Ok(mut attachment) => {
                report_begin(attachment.port());
                if is_single {
                    return attachment.ended().await;
                }
                following.spawn(async move {
                    let _present = present;
                    follow(attachment).await;
                });
            }
            Err(error) if is_single => return Err(error).context("cannot attach the virtual machine"),
            Err(error) => report_refusal(&error),
        }
    }
}

/// One hypervisor in a run. Whoever else connects is refused, and yet the socket stays open: see
/// [`RemoveOnDrop`].
fn refuse_others(listener: &Socket) {
    while listener.accept().is_ok() {}
    if let Err(error) = listener.shutdown(std::net::Shutdown::Both) {
        tracing::debug!(%error, "cannot close the listener");
    }
}
