//! One way between two ends, and how to get onto it. Owns: the sockets of a test. May not: know what is on
//! the way.
//! Read next: `ways.rs` and `vsock.rs`, what there is; `scenes.rs`, what the ends do.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::io::Errno;
use socket2::{SockAddr, Socket, Type};

use super::scenes::Needs;
use testkit::streams::PATIENCE;

/// Bytes that a socket of a test keeps, more or less: filling it is to be quick.
const BUFFER: usize = 64 << 10;

/// One way from a client to a server.
pub(crate) struct Way<'a> {
    pub(crate) name: &'static str,
    connect: Connect<'a>,
    listener: Socket,
    /// What is between the listener and the server; the VMM of a machine.
    greet: fn(&Socket),
    /// Whether a guest has to be dialled for each client.
    pub(crate) dials: bool,
    /// What it cannot carry, and why.
    pub(crate) lacks: &'static [(Needs, &'static str)],
}

impl Way<'_> {
    pub(crate) fn connect(&self) -> io::Result<Socket> {
        (self.connect)()
    }

    pub(crate) fn accept(&self, patience: Duration) -> Option<Socket> {
        let patience = Timespec::try_from(patience).unwrap();
        if poll(&mut [PollFd::new(&self.listener, PollFlags::IN)], Some(&patience)) != Ok(1) {
            return None;
        }
        let (socket, _) = self.listener.accept().ok()?;
        (self.greet)(&socket);
        Some(socket)
    }

    pub(crate) fn lacking(self, lacks: &'static [(Needs, &'static str)]) -> Self {
        Self { lacks, ..self }
    }

    /// To a socket in the guest.
    pub(crate) fn by_ssh(self) -> Self {
        self.lacking(&[(Needs::ServerEnd, "a channel's end is behind what was sent before (RFC 4254 5.3)")])
    }

    pub(crate) fn greeted(self, greet: fn(&Socket)) -> Self {
        Self { greet, ..self }
    }

    pub(crate) fn dialled(self) -> Self {
        Self { dials: true, ..self }
    }
}

pub(crate) type Connect<'a> = Box<dyn Fn() -> io::Result<Socket> + Send + Sync + 'a>;

pub(crate) fn way<'a>(name: &'static str, connect: Connect<'a>, listener: Socket) -> Way<'a> {
    Way { name, connect, listener, greet: |_| {}, dials: false, lacks: &[] }
}

/// A client of an address of the host.
pub(crate) fn dial(to: impl Into<SockAddr>) -> impl Fn() -> io::Result<Socket> + Send + Sync {
    let to = to.into();
    move || {
        let socket = Socket::new(to.domain(), Type::STREAM, None)?;
        shrink(&socket);
        connect(&socket, &to)?;
        Ok(socket)
    }
}

/// Connects without waiting in the call: one that waits over TCP and is woken after the peer's reset fails,
/// and its system throws away what came before. What a connect that failed so has to tell, the first use of
/// the socket tells.
pub(crate) fn connect(socket: &Socket, to: &SockAddr) -> io::Result<()> {
    if to.is_unix() {
        return socket.connect(to);
    }
    socket.set_nonblocking(true)?;
    if let Err(error) = socket.connect(to) {
        if Errno::from_io_error(&error) != Some(Errno::INPROGRESS) {
            return Err(error);
        }
        let patience = Timespec::try_from(PATIENCE).unwrap();
        poll(&mut [PollFd::new(socket, PollFlags::OUT)], Some(&patience))?;
    }
    socket.set_nonblocking(false)
}

pub(crate) fn shrink(socket: &Socket) {
    socket.set_recv_buffer_size(BUFFER).unwrap();
    socket.set_send_buffer_size(BUFFER).unwrap();
}

#[track_caller]
pub(crate) fn listen_at(address: &SockAddr) -> Socket {
    let socket = Socket::new(address.domain(), Type::STREAM, None).unwrap();
    shrink(&socket);
    socket.bind(address).unwrap();
    socket.listen(4096).unwrap();
    socket
}

/// A listener on the host's loopback, and where it is.
pub(crate) fn listen() -> (Socket, SocketAddr) {
    let socket = listen_at(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into());
    let address = socket.local_addr().unwrap().as_socket().unwrap();
    (socket, address)
}

pub(crate) fn loopback(port: u16) -> SocketAddr {
    (Ipv4Addr::LOCALHOST, port).into()
}
