//! Which of the daemon's own sockets lead to one another. Where one leads back to itself, each client would
//! make the next, until there is no descriptor left.
//!
//! What a socket leads to is seen when it is connected to, so that it counts by whatever name it was found: a
//! link, a name of the host, any of its addresses. A way by another process is not seen, nor one from a TCP
//! socket that was passed to the daemon: that may be of another network namespace, with the same addresses.
//! There the number of permits is the bound.
//!
//! Owns: the table. May not: connect. Read next: `direct.rs`, which asks before and after.

use rustix::fd::{AsFd as _, BorrowedFd};
use std::collections::BTreeMap;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use socket2::{SockAddr, SockRef};

use crate::listen::{Bound, TcpAddress};
use crate::sys::peer_pid;
use crate::sys::sockets::{VMADDR_CID_LOCAL, vsock_address};

/// How long a socket that leads back to itself is not tried again: the attempt that shows it is its next
/// client.
const AGAIN: Duration = Duration::from_secs(1);

/// The sockets whose clients the host's system connects elsewhere. Clones are the same table.
#[derive(Clone, Debug, Default)]
pub struct OwnSockets(Arc<Mutex<Table>>);

#[derive(Debug, Default)]
struct Table {
    next: u64,
    sockets: BTreeMap<u64, Listening>,
}

#[derive(Debug)]
struct Listening {
    at: Option<SockAddr>,
    tcp: Option<TcpAddress>,
    /// The process that has listened first, of a unix socket. Two may have bound one relative name.
    pid: Option<u32>,
    /// See [`Bound::inherited`].
    inherited: bool,
    leads_to: Option<u64>,
    looped: Option<Instant>,
}

/// One of them, until it is dropped.
#[derive(Debug)]
pub(super) struct OwnSocket {
    id: u64,
    table: OwnSockets,
}

/// What a client is told of a way back; of a kind that is not tried again for it.
fn leads_back() -> io::Error {
    io::Error::new(io::ErrorKind::InvalidData, "it leads back to this very socket")
}

impl OwnSockets {
    /// Adds one that listens, if it is a socket at all: nothing here connects to a named pipe.
    pub(super) fn add(&self, bound: Option<&Bound>) -> OwnSocket {
        let socket = bound.map(|bound| &bound.socket);
        let at = socket.and_then(|socket| socket.local_addr().ok());
        let pid = socket.and_then(|socket| peer_pid(socket.as_fd()));
        let tcp = socket.and_then(|socket| TcpAddress::of(SockRef::from(socket)));
        let inherited = bound.is_some_and(|bound| bound.inherited);
        let mut table = self.lock();
        let id = table.next;
        table.next += 1;
        table.sockets.insert(id, Listening { at, tcp, pid, inherited, leads_to: None, looped: None });
        OwnSocket { id, table: self.clone() }
    }

    fn lock(&self) -> MutexGuard<'_, Table> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Table {
    /// The one that `other` is connected to.
    fn find(&self, other: BorrowedFd<'_>) -> Option<u64> {
        let (socket, pid) = (SockRef::from(&other), peer_pid(other));
        let (local, peer) = (socket.local_addr().ok()?, socket.peer_addr().ok()?);
        let is_known = |own: &Listening| own.pid == pid && (pid.is_some() || !own.inherited);
        let is_it = |own: &Listening| is_known(own) && own.is_at(&local, &peer);
        self.sockets.iter().find(|(_, own)| is_it(own)).map(|(id, _)| *id)
    }

    /// Whether clients of the one, or of one that it leads to, come to the other.
    fn reaches(&self, from: Option<u64>, to: u64) -> bool {
        let way = std::iter::successors(from, |id| self.sockets.get(id)?.leads_to);
        // Others may lead in a circle, which is no longer than this.
        way.take(self.sockets.len()).any(|id| id == to)
    }
}

impl Listening {
    /// Whether it is at the other end of a socket from `local` to `peer`.
    fn is_at(&self, local: &SockAddr, peer: &SockAddr) -> bool {
        if let (Some(at), Some(local), Some(peer)) = (self.tcp, local.as_socket(), peer.as_socket()) {
            return at.takes(local.ip(), peer);
        }
        let Some(at) = &self.at else { return false };
        if let (Some((_, at)), Some((cid, port))) = (vsock_address(at), vsock_address(peer)) {
            return at == port && cid == VMADDR_CID_LOCAL;
        }
        at == peer
    }
}

impl OwnSocket {
    /// Whether it may lead somewhere else, for all that is known.
    ///
    /// # Errors
    /// It has just led back to itself.
    pub(super) fn may_connect(&self) -> io::Result<()> {
        let looped = self.table.lock().sockets.get(&self.id).and_then(|own| own.looped);
        if looped.is_some_and(|at| at.elapsed() < AGAIN) { Err(leads_back()) } else { Ok(()) }
    }

    /// Notes that it leads nowhere for now.
    pub(super) fn failed(&self) {
        if let Some(own) = self.table.lock().sockets.get_mut(&self.id) {
            own.leads_to = None;
        }
    }

    /// Notes what its client was connected to.
    ///
    /// # Errors
    /// That is itself, or leads here by way of others.
    pub(super) fn connected(&self, other: BorrowedFd<'_>) -> io::Result<()> {
        let mut table = self.table.lock();
        let next = table.find(other);
        let is_loop = table.reaches(next, self.id);
        let Some(own) = table.sockets.get_mut(&self.id) else { return Ok(()) };
        own.leads_to = next;
        own.looped = is_loop.then(Instant::now);
        if is_loop { Err(leads_back()) } else { Ok(()) }
    }
}

impl Drop for OwnSocket {
    fn drop(&mut self) {
        self.table.lock().sockets.remove(&self.id);
    }
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};

    use socket2::{Domain, Socket, Type};

    use super::*;

    const LEADS_ON: Option<io::ErrorKind> = None;
    const LEADS_BACK: Option<io::ErrorKind> = Some(io::ErrorKind::InvalidData);

    fn told(result: io::Result<()>) -> Option<io::ErrorKind> {
        result.err().map(|error| error.kind())
    }

    fn bound(socket: Socket) -> Bound {
        Bound { file: None, socket, name: String::new(), inherited: false }
    }

    fn listening(address: impl Into<SocketAddr>) -> Bound {
        let address = address.into();
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.bind(&address.into()).unwrap();
        socket.listen(9).unwrap();
        bound(socket)
    }

    fn to(address: &SockAddr) -> Socket {
        let socket = Socket::new(address.domain(), Type::STREAM, None).unwrap();
        socket.connect(address).unwrap();
        socket
    }

    #[cfg(unix)]
    fn unix(path: &std::path::Path) -> Bound {
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::unix(path).unwrap()).unwrap();
        socket.listen(9).unwrap();
        bound(socket)
    }

    #[cfg(unix)]
    #[test]
    fn by_any_name() {
        let dir = tempfile::tempdir().unwrap();
        let [path, link] = ["socket", "link"].map(|name| dir.path().join(name));
        std::os::unix::fs::symlink(&path, &link).unwrap();
        let (table, socket) = (OwnSockets::default(), unix(&path));
        let own = table.add(Some(&socket));
        assert_eq!(told(own.may_connect()), LEADS_ON);
        for path in [&path, &link] {
            assert_eq!(told(own.connected(to(&SockAddr::unix(path).unwrap()).as_fd())), LEADS_BACK);
            assert_eq!(told(own.may_connect()), LEADS_BACK);
        }
        let other = dir.path().join("other");
        let _other = unix(&other);
        assert_eq!(told(own.connected(to(&SockAddr::unix(&other).unwrap()).as_fd())), LEADS_ON);
        assert_eq!(told(own.may_connect()), LEADS_ON);
    }

    #[cfg(unix)]
    #[test]
    fn by_any_address() {
        let wide = listening((Ipv6Addr::UNSPECIFIED, 0));
        let port = wide.socket.local_addr().unwrap().as_socket().unwrap().port();
        let own = OwnSockets::default().add(Some(&wide));
        for address in [
            SocketAddr::from((Ipv4Addr::LOCALHOST, port)),
            (Ipv4Addr::new(127, 0, 0, 7), port).into(),
            (Ipv6Addr::LOCALHOST, port).into(),
        ] {
            assert_eq!(told(own.connected(to(&address.into()).as_fd())), LEADS_BACK, "{address}");
        }
        let narrow = listening((Ipv4Addr::LOCALHOST, 0));
        let port = narrow.socket.local_addr().unwrap().as_socket().unwrap().port();
        let own = OwnSockets::default().add(Some(&narrow));
        assert_eq!(told(own.connected(to(&narrow.socket.local_addr().unwrap()).as_fd())), LEADS_BACK);
        // Another's: the same port of another address.
        let other = listening((Ipv4Addr::new(127, 0, 0, 7), port));
        assert_eq!(told(own.connected(to(&other.socket.local_addr().unwrap()).as_fd())), LEADS_ON);
    }

    #[test]
    fn by_way_of_others() {
        let table = OwnSockets::default();
        let sockets = [(); 3].map(|()| listening((Ipv4Addr::LOCALHOST, 0)));
        let own = sockets.each_ref().map(|socket| table.add(Some(socket)));
        let connect = |from: usize, other: usize| {
            told(own[from].connected(to(&sockets[other].socket.local_addr().unwrap()).as_fd()))
        };
        assert_eq!((connect(0, 1), connect(1, 2)), (LEADS_ON, LEADS_ON));
        assert_eq!(connect(2, 0), LEADS_BACK);
        // A way into a circle is none.
        assert_eq!((connect(2, 1), connect(0, 1)), (LEADS_BACK, LEADS_ON));
        let [first, second, third] = own;
        drop(second);
        let leads = |from: &OwnSocket, other: usize| {
            told(from.connected(to(&sockets[other].socket.local_addr().unwrap()).as_fd()))
        };
        assert_eq!((leads(&first, 2), leads(&third, 1)), (LEADS_ON, LEADS_ON));
        assert_eq!(leads(&third, 0), LEADS_BACK);
    }

    #[test]
    fn what_may_be_another_networks_is_not_judged() {
        let inherited = Bound { inherited: true, ..listening((Ipv4Addr::LOCALHOST, 0)) };
        let own = OwnSockets::default().add(Some(&inherited));
        assert_eq!(told(own.connected(to(&inherited.socket.local_addr().unwrap()).as_fd())), LEADS_ON);
    }

    #[test]
    fn where_it_led_once_is_forgotten() {
        let table = OwnSockets::default();
        let sockets = [(); 2].map(|()| listening((Ipv4Addr::LOCALHOST, 0)));
        let [first, second] = sockets.each_ref().map(|socket| table.add(Some(socket)));
        let at = |index: usize| to(&sockets[index].socket.local_addr().unwrap());
        assert_eq!(told(first.connected(at(1).as_fd())), LEADS_ON);
        first.failed();
        assert_eq!(told(second.connected(at(0).as_fd())), LEADS_ON);
    }
}
