//! Two ends of a connection on the loopback interface, in place of socketpair(2). Owns: nothing.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::net::{SendFlags, send};
use socket2::{Domain, Socket, Type};

use super::sockets::claim;
use crate::sys::stream::{StdStream, Stream};

/// How often it is looked whether the other end of a stream is there.
const LOOK: Duration = Duration::from_secs(1);
/// Strangers that may have connected first, one after the other.
const STRANGERS: usize = 64;
/// How long the loopback interface may take for a connection.
const PATIENCE: Timespec = Timespec { tv_sec: 5, tv_nsec: 0 };

/// Any process of this machine may connect to a port: whoever is not the near end is sent away.
pub(crate) fn pair() -> io::Result<(StdStream, StdStream)> {
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    claim(&listener)?;
    listener.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into())?;
    listener.listen(STRANGERS as i32)?;
    listener.set_nonblocking(true)?;
    let at = listener.local_addr()?.as_socket().ok_or(io::ErrorKind::AddrNotAvailable)?;
    let near = StdStream::connect_timeout(&at, LOOK * 5)?;
    let own = near.local_addr()?;
    for _ in 0..STRANGERS {
        if poll(&mut [PollFd::new(&listener, PollFlags::IN)], Some(&PATIENCE))? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let far = match listener.accept() {
            Ok((far, from)) if from.as_socket() == Some(own) => StdStream::from(far),
            _ => continue,
        };
        for end in [&near, &far] {
            end.set_nodelay(true)?;
            end.set_nonblocking(true)?;
        }
        return Ok((near, far));
    }
    Err(io::ErrorKind::ConnectionRefused.into())
}

/// Nobody is told: it is looked at again and again. A send of nothing tells of a reset, and takes nothing.
pub(crate) async fn look_for_end(stream: &Stream) -> bool {
    tokio::time::sleep(LOOK).await;
    is_reset(send(stream, &[], SendFlags::empty()).map_err(io::Error::from).err())
}

/// Whether the other side has closed both ways, as far as such a failure tells.
pub(super) fn is_reset(error: Option<io::Error>) -> bool {
    use io::ErrorKind as Kind;
    error.is_some_and(|error| matches!(error.kind(), Kind::ConnectionReset | Kind::ConnectionAborted))
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeSet;

    use super::*;

    #[test]
    fn many_pairs_and_no_stranger() {
        let mut ports = BTreeSet::new();
        let pairs: Vec<_> = (0..50).map(|_| pair().unwrap()).collect();
        for (near, far) in &pairs {
            assert_eq!(near.local_addr().unwrap(), far.peer_addr().unwrap());
            assert_eq!(far.local_addr().unwrap(), near.peer_addr().unwrap());
            assert!(ports.insert(near.local_addr().unwrap().port()));
            // Nobody listens there any more.
            let stranger = StdStream::connect_timeout(&far.local_addr().unwrap(), LOOK);
            assert!(stranger.is_err(), "{stranger:?}");
        }
    }
}
