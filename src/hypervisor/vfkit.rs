//! vfkit's datagram socket, to which libkrun's launchers speak as well: the first datagram says who the
//! virtual machine is, and from then on the socket is connected to that one.
//!
//! Connected, because then the kernel queues as much as the buffers hold (else ten datagrams, unix(7)), tells
//! when there is room again, and looks no path up for each frame. It also refuses everybody else.
//!
//! Owns: whom the socket is connected to. May not: read a frame. Read next: `../sys/datagram.rs`,
//! `../link/datagram.rs`.

use rustix::fd::{AsFd, OwnedFd};
use std::io;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use rustix::io::Errno;
use rustix::net::{SocketAddrAny, connect, connect_unspec, recv};
use socket2::{Domain, Socket, Type};
use tokio::io::Interest;
use tokio::time::sleep;

use super::{Terms, report, report_begin};
use crate::engine::Handle;
use crate::link::Framing;
use crate::logging::Limited;
use crate::supervise::Backoff;
use crate::sys::datagram::{Sender, pass_senders, peek};
use crate::sys::sockets::DONTWAIT;
use crate::sys::watched::Watched;

/// The datagram with which vfkit greets; other launchers begin with a frame.
const MAGIC: [u8; 4] = *b"VFKT";
/// Bytes that the socket holds each way, as the original's: the system gives what it allows.
const SEND_BUFFER: usize = 1 << 20;
const RECEIVE_BUFFER: usize = 4 << 20;
/// How long until it is looked again whether somebody has a machine's socket whose process has ended: at
/// first, and at most.
const LOOK: (Duration, Duration) = (Duration::from_millis(10), Duration::from_secs(5));
/// How often it is looked whether a machine is there whose process the system does not tell of.
const LOOK_UNTOLD: Duration = Duration::from_secs(1);
/// The least time between two log lines about those whom nobody can answer.
const REFUSED_LOG: Duration = Duration::from_secs(30);

/// Before it has a name: what was sent earlier does not say by whom.
pub(super) fn prepare(socket: &Socket) {
    let _ = socket.set_send_buffer_size(SEND_BUFFER);
    let _ = socket.set_recv_buffer_size(RECEIVE_BUFFER);
    pass_senders(socket.as_fd(), true);
}

/// Attaches one virtual machine after the other. Returns when the run is over because of one.
///
/// # Errors
/// The run is over because of a failure.
pub(super) async fn serve(socket: &Socket, engine: &Handle, terms: &Terms) -> Result<()> {
    socket.set_nonblocking(true)?;
    loop {
        let (guest, process) =
            first(socket).await.inspect_err(|_| terms.tell_failure()).context("vfkit accept error")?;
        pass_senders(socket.as_fd(), false);
        let attached = engine.attach(socket.try_clone()?, Framing::Vfkit).await;
        let mut attachment = attached.context("cannot attach the virtual machine")?;
        let port = attachment.port();
        report_begin(port);
        let ended = tokio::select! {
            ended = attachment.ended() => ended,
            () = gone(socket, &guest, process) => Ok(()),
        };
        if !terms.keep_running {
            return ended;
        }
        report(port, &ended);
        attachment.detach().await;
        pass_senders(socket.as_fd(), true);
        // What was on its way ends here as well.
        connect_unspec(socket).context("cannot disconnect from the virtual machine")?;
    }
}

/// Waits for a virtual machine and connects to it: its name, and its process where the system tells.
async fn first(socket: &Socket) -> io::Result<(SocketAddrAny, Option<OwnedFd>)> {
    let readiness = Watched::new(socket.try_clone()?.into(), Interest::READABLE)?;
    let refused = Limited::new(1, REFUSED_LOG);
    loop {
        let sender = readiness.async_io(Interest::READABLE, |_| peek(socket.as_fd())).await?;
        let Sender { address, process, start } = sender;
        let connected = match &address {
            Some(address) => connect(socket, address).map_err(io::Error::from),
            None => Err(io::Error::new(io::ErrorKind::AddrNotAvailable, "its socket has no name")),
        };
        if start == MAGIC || connected.is_err() {
            let _ = recv(socket, &mut [0; 4], DONTWAIT);
        }
        match (address, connected) {
            (Some(address), Ok(())) => return Ok((address, process)),
            (_, Err(error)) => {
                if let Some(suppressed) = refused.admit(Instant::now()) {
                    tracing::warn!(%error, suppressed, "cannot answer who sends to the vfkit socket");
                }
            }
            (None, Ok(())) => {}
        }
    }
}

/// Waits until the virtual machine's process has ended, and nobody else has its name or its socket, as a
/// child may: the socket itself tells only who sends. Where the system does not tell of the process, its
/// socket has to be closed, and still to have its name; else the next frame to it tells.
async fn gone(socket: &Socket, guest: &SocketAddrAny, process: Option<OwnedFd>) {
    match process.and_then(|process| Watched::new(process, Interest::READABLE).ok()) {
        Some(process) if process.readable().await.is_ok() => {
            let mut backoff = Backoff::new(LOOK.0, LOOK.1);
            while connect(socket, guest).is_ok() {
                sleep(backoff.next_pause()).await;
            }
        }
        _ => {
            while !is_closed(guest) {
                sleep(LOOK_UNTOLD).await;
            }
        }
    }
}

/// Whether the socket with this name is there, and closed. Asked by a socket of its own: macOS takes the old
/// peer away before it looks for the new one.
fn is_closed(name: &SocketAddrAny) -> bool {
    Socket::new(Domain::UNIX, Type::DGRAM, None)
        .is_ok_and(|own| connect(own, name) == Err(Errno::CONNREFUSED))
}
