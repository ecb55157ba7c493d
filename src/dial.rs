//! How the control plane reaches a TCP port, in the virtual network or elsewhere.
//! Owns: the trait between who wants a stream and who knows the way; connecting over the host's own network.
//! May not: know the engine, or who dials.
//! Read next: `ssh`, its main user; `forward/mod.rs`, the daemon's way.

use rustix::fd::AsFd;
use std::future::Future;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::RecvFlags;
use socket2::{Domain, SockRef, Socket, Type};
use tokio::net::TcpStream;

use crate::addr::HostPort;
use crate::sys::is_under_way;
use crate::sys::sockets::READ_TELLS_REFUSAL;
use crate::sys::stream::Stream;

/// Opens TCP streams.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `to` within `limit`; the stream carries half-close both ways.
    ///
    /// # Errors
    /// What the peer or the network answered: refused, unreachable, or timed out.
    fn dial(&self, to: &HostPort, limit: Duration) -> impl Future<Output = io::Result<Stream>> + Send;
}

/// Connects over the host's own network, to the first address of `to` that answers.
///
/// # Errors
/// The last address's, or the resolver's.
pub async fn connect(to: &HostPort) -> io::Result<TcpStream> {
    let mut failure = io::Error::from(io::ErrorKind::NotFound);
    for address in tokio::net::lookup_host((to.host.as_str(), to.port)).await? {
        match connect_to(address).await.and_then(refuse_self) {
            Ok(stream) => return Ok(stream),
            Err(error) => failure = error,
        }
    }
    Err(failure)
}

async fn connect_to(address: SocketAddr) -> io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    match socket.connect(&address.into()) {
        Err(error) if !is_under_way(&error) => return Err(error),
        _ => {}
    }
    let stream = TcpStream::from_std(socket.into())?;
    stream.writable().await?;
    connected(stream)
}

/// What became of a connect. A peer that has reset the connection already said something before, perhaps: the
/// error is left to whoever reads.
fn connected(stream: TcpStream) -> io::Result<TcpStream> {
    if !READ_TELLS_REFUSAL && let Some(error) = stream.take_error()? {
        return Err(error);
    }
    match stream.peer_addr() {
        Ok(_) => return Ok(stream),
        Err(error) if error.kind() == io::ErrorKind::NotConnected => {}
        Err(error) => return Err(error),
    }
    match rustix::net::recv(&stream, &mut [0; 1], RecvFlags::PEEK).map_err(io::Error::from) {
        Err(error) if !was_connected(&error) => Err(error),
        _ => Ok(stream),
    }
}

/// Whether a connect that failed so had a peer, who has reset the connection already. What it said before can
/// still be read.
pub(crate) fn was_connected(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe)
}

/// Refuses a connected TCP socket whose other end is itself; a socket of another family has no such address.
/// A connect to an address of the host may be given the very port that it asks for as its source, if nobody
/// listens there, and then meets itself: a simultaneous open (RFC 9293, section 3.5). The port is free at
/// once for whoever is to listen, where an orderly close would leave it in TIME-WAIT.
///
/// # Errors
/// `ConnectionRefused`.
pub fn refuse_self<S: AsFd>(stream: S) -> io::Result<S> {
    let fd = stream.as_fd();
    let socket = SockRef::from(&fd);
    // One that has no peer any more had another.
    if let (Ok(local), Ok(peer)) = (socket.local_addr(), socket.peer_addr())
        && local.as_socket().is_some_and(|local| peer.as_socket() == Some(local))
    {
        let _ = socket.set_linger(Some(Duration::ZERO));
        return Err(Errno::CONNREFUSED.into());
    }
    Ok(stream)
}

/// Where a socket is bound that is to be connected to `to`: any address and port of its family.
pub(crate) fn any_like(to: SocketAddr) -> SocketAddr {
    match to {
        SocketAddr::V4(_) => (Ipv4Addr::UNSPECIFIED, 0).into(),
        SocketAddr::V6(_) => (Ipv6Addr::UNSPECIFIED, 0).into(),
    }
}

#[cfg(test)]
mod tests {
    use std::io::Write as _;
    use std::net::TcpListener;

    use tokio::io::AsyncReadExt as _;
    use tokio::net::TcpStream;

    use crate::sys::stream::pair;

    use super::{Domain, Duration, SockRef, Socket, Type, connect_to, connected, io, refuse_self};

    /// What it said comes first, and then the reset, not an end: a part is not to look like the whole.
    #[cfg(unix)]
    #[tokio::test]
    async fn a_peer_that_has_reset_the_connection_already_is_heard() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.set_nonblocking(true).unwrap();
        // In progress.
        let _ = socket.connect(&listener.local_addr().unwrap().into());
        let (mut peer, _) = listener.accept().unwrap();
        peer.write_all(b"hello").unwrap();
        SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
        drop(peer);
        let mut stream = connected(TcpStream::from_std(socket.into()).unwrap()).unwrap();
        let mut heard = Vec::new();
        let end = stream.read_to_end(&mut heard).await.map_err(|error| error.kind());
        assert_eq!((&heard[..], end), (&b"hello"[..], Err(io::ErrorKind::ConnectionReset)));
    }

    #[tokio::test]
    async fn a_peer_that_refuses_is_told_of() {
        let to = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
        let refused = connect_to(to).await.map_err(|error| error.kind());
        assert_eq!(refused.err(), Some(io::ErrorKind::ConnectionRefused));
    }

    #[test]
    fn who_has_another_at_the_other_end_is_left_alone() {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        refuse_self(std::net::TcpStream::connect(listener.local_addr().unwrap()).unwrap()).unwrap();
        // Neither end has an address and a port, as those of vsock have not.
        refuse_self(pair().unwrap().0).unwrap();
    }
}
