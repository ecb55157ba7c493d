//! Sockets that the daemon listens on. Unix sockets are made private, a dead predecessor's is replaced, all
//! are removed at the end.
//! Owns: the files of its sockets, through [`RemoveOnDrop`]. May not: remove what is not a socket, or not its
//! own.
//! Read next: `addr/listen.rs`, where a forward's socket may be; `listen/inherited.rs`; `succession.rs`.

mod inherited;
mod port;

use rustix::fd::{AsFd, BorrowedFd};
use std::fs::{self, Metadata};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::path::{Path, PathBuf};
use std::thread::sleep;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail, ensure};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};
use thiserror::Error;
use tokio::io::Interest;

use crate::addr::{ListenAddress, PATH_MAX, Shown, ensure_fits};
use crate::disk;
use crate::sys::files::{self, FileId};
use crate::sys::mode::{set_before_bind, set_mode};
use crate::sys::owner::{Owner, by_whom, of_socket};
use crate::sys::sockets::{
    self, PROBE, VMADDR_CID_ANY, abstract_address, claim_port, protocol, to_vsock_address,
};
use crate::sys::stream::{self, Stream};
use crate::sys::users;
use crate::sys::watched::Watched;
use crate::text::{quote, reason};

pub use inherited::{claim, warn_of_unclaimed};
pub(crate) use port::{BindAddress, resolve, resolve_at_once};

/// Whether a client waits for the listening socket to take it.
///
/// # Errors
/// The system cannot tell.
pub fn has_client(socket: impl AsFd) -> io::Result<bool> {
    let mut polled = [PollFd::new(&socket, PollFlags::IN)];
    Ok(poll(&mut polled, Some(&Timespec::default()))? > 0)
}

/// Clients that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// How long a process may take to end that was told to, or killed; and how often it is looked whether it has.
const FAREWELL: Duration = Duration::from_secs(1);
const LOOK: Duration = Duration::from_millis(10);

/// A socket that clients may connect to from now on.
#[derive(Debug)]
pub struct Bound {
    /// Before the socket, as it must be dropped first.
    pub file: Option<RemoveOnDrop>,
    /// Listening, not blocking, closed in children.
    pub socket: Socket,
    /// A URL for the log; the port is the real one.
    pub name: String,
    /// Passed by who started the daemon, who may have made it in another network namespace.
    pub inherited: bool,
}

/// Where a TCP socket listens.
#[derive(Clone, Copy, Debug)]
pub struct TcpAddress {
    at: SocketAddr,
    /// IPv4 does not arrive, where `at` is all of IPv6.
    only_v6: bool,
}

impl TcpAddress {
    /// That of `socket`, if it is one of TCP.
    pub fn of(socket: SockRef<'_>) -> Option<Self> {
        let at = socket.local_addr().ok()?.as_socket()?;
        Some(Self { at, only_v6: socket.only_v6().unwrap_or(false) })
    }

    /// Its port.
    pub fn port(&self) -> u16 {
        self.at.port()
    }

    /// Whether a client on this host that connects from `from` to `to` is one of this socket.
    pub fn takes(&self, from: IpAddr, to: SocketAddr) -> bool {
        let Self { at, only_v6 } = *self;
        let [from, ip] = [from, to.ip()].map(|ip| ip.to_canonical());
        // From an address of this host to another of them the system takes the same, or a loopback's.
        let is_here = ip.is_loopback() || ip == from;
        let takes_all =
            at.ip().is_unspecified() && if ip.is_ipv4() { at.is_ipv4() || !only_v6 } else { at.is_ipv6() };
        at.port() == to.port() && is_here && (takes_all || at.ip().to_canonical() == ip)
    }
}

/// Listens where `source` says.
///
/// # Errors
/// The place is taken, is not to be had on this system or for this user, or systemd has passed no such
/// socket.
pub fn bind(source: &ListenAddress) -> Result<Bound> {
    let failed =
        |error: io::Error| failed_to_bind(format!("listen {source}: bind: {}", reason(&error)), &error);
    let (socket, file) = match source {
        ListenAddress::Unix { path, mode, owner, group } => {
            let access = Access { mode: *mode, owner: *owner, group: *group };
            let (socket, file) = bind_file(path, access, Type::STREAM, as_made)?;
            (socket, Some(file))
        }
        ListenAddress::Abstract(name) => {
            (abstract_address(name).and_then(|at| listen_at(&at)).map_err(failed)?, None)
        }
        ListenAddress::Tcp { host, port } => (tcp_listener(host, *port)?, None),
        ListenAddress::Vsock { cid, port } => (vsock(*cid, *port).map_err(failed)?, None),
        ListenAddress::Inherited(word) => (inherited::take(word)?, None),
        ListenAddress::Pipe(_) => bail!("listen {source}: only clients of a forward come by a named pipe"),
    };
    socket.set_nonblocking(true).with_context(|| format!("listen {source}"))?;
    let name = match (source, socket.local_addr().ok().and_then(|address| address.as_socket())) {
        (ListenAddress::Tcp { host, .. }, Some(address)) => {
            ListenAddress::Tcp { host: host.clone(), port: address.port() }.to_string()
        }
        _ => source.to_string(),
    };
    Ok(Bound { file, socket, name, inherited: matches!(source, ListenAddress::Inherited(_)) })
}

/// Listens at an address without a file.
fn listen_at(address: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(address.domain(), Type::STREAM, protocol(address))?;
    socket.bind(address)?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Listens on a port of AF_VSOCK, in a context or in any: vsock(7).
pub(crate) fn vsock(cid: Option<u32>, port: u32) -> io::Result<Socket> {
    listen_at(&to_vsock_address(cid.unwrap_or(VMADDR_CID_ANY), port)?)
}

/// Waits for the next client of a listening stream socket, and takes it; and who it is.
///
/// # Errors
/// The system's.
pub(crate) async fn accept(listener: &Watched) -> io::Result<(Stream, SockAddr)> {
    let accept = |socket: BorrowedFd<'_>| SockRef::from(&socket).accept();
    let (client, from) = listener.async_io(Interest::READABLE, accept).await?;
    Ok((stream::watch(client.into())?, from))
}

/// Listens on a TCP port of an address, of all of them if it is the unspecified one.
fn listen_tcp(address: SocketAddr, only_v6: bool) -> io::Result<Socket> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    if address.is_ipv6() {
        socket.set_only_v6(only_v6)?;
    }
    claim_port(&socket)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    Ok(socket)
}

/// Listens on a TCP port of every address of IPv4. Not blocking.
pub(crate) fn tcp_v4(port: u16) -> io::Result<std::net::TcpListener> {
    let socket = listen_tcp((Ipv4Addr::UNSPECIFIED, port).into(), false)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

/// What is wanted is another's.
#[derive(Debug, Error)]
#[error("{text}")]
struct InUse {
    text: String,
    /// Whoever has it may be about to end: nobody has the socket of a process that was killed until that is
    /// gone, and a gvproxy may have been told to.
    may_end: bool,
}

/// The error of a call that failed with `error`, which `text` has told.
pub(crate) fn failed_to_bind(text: String, error: &io::Error) -> anyhow::Error {
    match is_in_use(error) {
        true => InUse { text, may_end: true }.into(),
        false => anyhow!(text),
    }
}

/// Binds, again for a while where a process that ends has still what is wanted. Only for the start, as it
/// keeps waiting.
///
/// # Errors
/// Those of `bind`.
pub fn at_start<T>(bind: impl FnMut() -> Result<T>) -> Result<T> {
    let in_use = |error: &anyhow::Error| {
        error.chain().find_map(|cause| cause.downcast_ref::<InUse>()).is_some_and(|in_use| in_use.may_end)
    };
    patiently(in_use, bind)
}

/// The same for any error.
pub(crate) fn patiently<T, E>(
    is_in_use: impl Fn(&E) -> bool,
    mut bind: impl FnMut() -> Result<T, E>,
) -> Result<T, E> {
    let start = Instant::now();
    loop {
        match bind() {
            Err(error) if is_in_use(&error) && start.elapsed() < FAREWELL => sleep(LOOK),
            bound => return bound,
        }
    }
}

/// Whether another socket has the address.
pub(crate) fn is_in_use(error: &io::Error) -> bool {
    error.kind() == io::ErrorKind::AddrInUse
}

/// A socket's file, by the path that it was made at, absolute where the working directory has a name.
#[derive(Clone, Debug)]
pub struct Made {
    pub(crate) path: PathBuf,
    pub(crate) file: FileId,
}

impl Made {
    /// Where it was made.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Whether the file that was made still has its name.
    pub fn is_there(&self) -> bool {
        FileId::at(&self.path).is_ok_and(|found| found == self.file)
    }
}

/// Removes a socket's file, if it is still the one that was made.
///
/// To be dropped while the listener is open: the open socket holds on to its inode, so that no other file can
/// have the same number.
#[derive(Debug)]
pub struct RemoveOnDrop {
    made: Made,
    /// [`Self::remove`] does it.
    is_left: bool,
}

impl RemoveOnDrop {
    /// The file.
    pub fn made(&self) -> &Made {
        &self.made
    }

    /// Removes it without holding up the control plane. While the daemon goes on nobody may drop it instead.
    pub async fn remove(mut self) {
        self.is_left = true;
        let Made { path, file } = self.made.clone();
        tell(self.made.path(), disk::ask_soon(self.made.path(), move || remove(&path, file)).await.flatten());
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if self.is_left {
            return;
        }
        let Made { path, file } = self.made.clone();
        tell(self.made.path(), disk::ask_at_last(move || remove(&path, file)).flatten());
    }
}

/// Tells that a socket could not be removed.
fn tell(path: &Path, removed: io::Result<()>) {
    if let Err(error) = removed {
        tracing::warn!(path = %path.display(), reason = reason(&error), "cannot remove socket");
    }
}

/// A new socket at `path` with the permissions `mode`, in place of a socket that nobody has any more. One of
/// a stream or of packets listens; one for datagrams is bound. `prepare` sets what is to hold for the first
/// who finds it.
///
/// The mode is set before anyone can connect, and the process's umask is left alone.
///
/// # Errors
/// `path` is too long, or something else than a dead socket is there, or the system refuses.
pub fn unix_socket(
    path: &Path,
    mode: u32,
    kind: Type,
    prepare: fn(&Socket),
) -> Result<(Socket, RemoveOnDrop)> {
    bind_file(path, Access { mode, owner: None, group: None }, kind, prepare)
}

/// For [`unix_socket`]: nothing is to be set.
pub fn as_made(_: &Socket) {}

/// Who may connect to a socket with a file.
#[derive(Clone, Copy, Debug)]
struct Access {
    mode: u32,
    owner: Option<u32>,
    group: Option<u32>,
}

fn bind_file(
    path: &Path,
    access: Access,
    kind: Type,
    prepare: fn(&Socket),
) -> Result<(Socket, RemoveOnDrop)> {
    let Access { mode, owner, group } = access;
    let network = if kind == Type::DGRAM {
        "unixgram"
    } else if kind == Type::SEQPACKET {
        "unixpacket"
    } else {
        "unix"
    };
    let stale = stale_socket(path)?;
    let failed = |call: &'static str| {
        move |error: io::Error| anyhow!("listen {network} {}: {call}: {}", path.display(), reason(&error))
    };
    if let Some(stale) = stale {
        remove(path, stale).map_err(failed("unlink"))?;
    }
    let socket = sockets::unix(kind).map_err(failed("socket"))?;
    prepare(&socket);
    // Linux gives the file the mode of the socket's own inode. Where a system does not, the check below sets
    // it; a socket that is bound and does not listen yet refuses everyone.
    set_before_bind(socket.as_fd(), mode);
    socket.bind(&address(path)?).map_err(failed("bind"))?;
    let made = FileId::at(path).map_err(failed("stat"))?;
    let absolute = std::path::absolute(path).unwrap_or_else(|_| path.to_owned());
    let guard = RemoveOnDrop { made: Made { path: absolute, file: made }, is_left: false };
    let found = fs::symlink_metadata(path).map_err(failed("stat"))?;
    if files::mode(&found).is_some_and(|found| found != mode) {
        set_mode(path, mode, made).map_err(failed("chmod"))?;
    }
    if owner.is_some() || group.is_some() {
        files::set_owner(path, owner, group)
            .map_err(failed("chown"))
            .map_err(|error| anyhow!("{error}: it takes root, or a group that the daemon is in"))?;
    }
    if kind != Type::DGRAM {
        socket.listen(BACKLOG).map_err(failed("listen"))?;
    }
    Ok((socket, guard))
}

/// Listens on a TCP port. Without a host, or with one that stands for every address, both IPv4 and IPv6
/// arrive.
///
/// # Errors
/// The name has no address, or the system refuses.
fn tcp_listener(host: &str, port: u16) -> Result<Socket> {
    let shown = Shown(host, port);
    let failed = |call: &'static str| {
        move |error: io::Error| {
            let owner = if is_in_use(&error) { by_whom(false, port) } else { String::new() };
            failed_to_bind(format!("listen tcp {shown}: {call}: {}{owner}", reason(&error)), &error)
        }
    };
    let any = host.is_empty() || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let listen = |address: SocketAddr| listen_tcp(address, !any);
    if any {
        return match listen((Ipv6Addr::UNSPECIFIED, port).into()) {
            // A host without IPv6 has no such address.
            Err(error) if !is_in_use(&error) => listen((Ipv4Addr::UNSPECIFIED, port).into()),
            bound => bound,
        }
        .map_err(failed("bind"));
    }
    let mut addresses: Vec<_> = (host, port).to_socket_addrs().map_err(failed("lookup"))?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let address = addresses.first().ok_or_else(|| anyhow!("listen tcp {shown}: no such host"))?;
    listen(*address).map_err(failed("bind"))
}

/// Whether [`unix_socket`] would find nothing at `path`, or a dead socket. Changes nothing.
///
/// # Errors
/// As [`unix_socket`].
pub fn ensure_vacant(path: &Path) -> Result<()> {
    stale_socket(path).map(drop)
}

/// Whether a socket could be made there, though there is one: makes such a one beside it, which is gone at
/// once.
///
/// # Errors
/// As [`bind`].
pub fn ensure_to_be_made(source: &ListenAddress) -> Result<()> {
    let ListenAddress::Unix { path, mode, owner, group } = source else { return Ok(()) };
    let beside = path.with_file_name(format!(".gvproxy-{}", std::process::id()));
    // Then this name has no room there.
    if beside.as_os_str().len() > PATH_MAX {
        return Ok(());
    }
    let access = Access { mode: *mode, owner: *owner, group: *group };
    let made = bind_file(&beside, access, Type::STREAM, as_made);
    made.map(drop).with_context(|| format!("cannot make a socket beside {}", shown(path)))
}

fn address(path: &Path) -> Result<SockAddr> {
    ensure_fits(path)?;
    SockAddr::unix(path).with_context(|| format!("unix socket path {}", shown(path)))
}

fn shown(path: &Path) -> String {
    quote(path.as_os_str().as_encoded_bytes())
}

/// The socket at `path` that no process has any more.
fn stale_socket(path: &Path) -> Result<Option<FileId>> {
    let address = address(path)?;
    // What else is wrong with the path is for `bind` to say.
    let Ok((found, file)) = fs::symlink_metadata(path).and_then(|found| Ok((found, FileId::at(path)?)))
    else {
        return Ok(None);
    };
    ensure!(files::is_socket(&found), "{} already exists", shown(path));
    // A datagram socket cannot connect to a stream socket, and the error tells whether there is one: a real
    // connection would be taken for the VM, and its end for the VM's.
    let probe = sockets::unix(PROBE).and_then(|socket| socket.connect(&address));
    let (why, may_end) = match probe {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => {
            return Ok(Some(file));
        }
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => (": permission denied", false),
        _ => (" and is in use", true),
    };
    let owners = std::path::absolute(path).map(|path| of_socket(&path)).unwrap_or_default();
    let text = format!("{} already exists{why}{}", shown(path), whose(&owners, &found));
    Err(InUse { text, may_end: may_end && owners.iter().all(Owner::is_gvproxy) }.into())
}

/// Whose a socket is, as far as the system tells, for the end of a message.
fn whose(owners: &[Owner], found: &Metadata) -> String {
    let owners: Vec<_> = owners.iter().map(ToString::to_string).collect();
    match files::owner(found) {
        _ if !owners.is_empty() => format!(" (by {})", owners.join(" and ")),
        Some(uid) if users::effective_id() != Some(uid) => format!(" (it is user {uid}'s)"),
        _ => String::new(),
    }
}

/// Removes `path` if it is `file`; that it is gone or another is no error.
pub(crate) fn remove(path: &Path, file: FileId) -> io::Result<()> {
    let result = FileId::at(path).and_then(|found| match found == file {
        true => fs::remove_file(path),
        false => Ok(()),
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::os::unix::fs::MetadataExt as _;
    use std::os::unix::net::{UnixDatagram, UnixListener, UnixStream};

    use super::*;

    fn unix_listener(path: &Path, mode: u32) -> Result<(Socket, RemoveOnDrop)> {
        unix_socket(path, mode, Type::STREAM, as_made)
    }

    /// The port of a wildcard may be that of another host's service.
    #[test]
    fn another_host_is_another() {
        for (own, only_v6, peer, expected) in [
            ("[::]:80", false, "10.0.0.9:80", false),
            ("0.0.0.0:80", false, "10.0.0.9:80", false),
            ("0.0.0.0:80", false, "10.0.0.2:80", true),
            ("0.0.0.0:80", false, "[::1]:80", false),
            ("[::]:80", false, "[::ffff:10.0.0.2]:80", true),
            ("[::]:80", false, "127.0.0.1:80", true),
            ("[::]:80", true, "127.0.0.1:80", false),
            ("[::]:80", true, "[::1]:80", true),
            ("10.0.0.2:80", false, "10.0.0.2:80", true),
            ("10.0.0.2:80", false, "10.0.0.2:81", false),
        ] {
            let listening = TcpAddress { at: own.parse().unwrap(), only_v6 };
            let from = Ipv4Addr::new(10, 0, 0, 2).into();
            assert_eq!(listening.takes(from, peer.parse().unwrap()), expected, "{own} {only_v6} {peer}");
        }
    }

    fn error(path: &Path) -> String {
        let checked = format!("{:#}", ensure_vacant(path).unwrap_err());
        let bound = format!("{:#}", unix_listener(path, 0o600).unwrap_err());
        assert_eq!(checked, bound);
        bound
    }

    #[test]
    fn a_socket_has_its_mode_and_goes_with_its_guard() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        for mode in [0o600, 0o755, 0o777] {
            let (listener, guard) = unix_listener(&path, mode).unwrap();
            assert_eq!(files::mode(&fs::metadata(&path).unwrap()), Some(mode));
            UnixStream::connect(&path).unwrap();
            listener.accept().unwrap();
            drop(guard);
            assert!(!path.exists());
        }
    }

    #[test]
    fn a_dead_socket_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        drop(UnixListener::bind(&path).unwrap());
        ensure_vacant(&path).unwrap();
        let (_listener, _guard) = unix_listener(&path, 0o600).unwrap();
        UnixStream::connect(&path).unwrap();
    }

    #[test]
    fn a_live_socket_is_left_alone_and_sees_no_connection() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let listener = UnixListener::bind(&path).unwrap();
        assert_eq!(error(&path), format!("{path:?} already exists and is in use"));
        listener.set_nonblocking(true).unwrap();
        assert_eq!(listener.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);

        let datagrams = dir.path().join("d");
        let _bound = UnixDatagram::bind(&datagrams).unwrap();
        assert_eq!(error(&datagrams), format!("{datagrams:?} already exists and is in use"));
    }

    #[test]
    fn what_is_no_socket_stays() {
        let dir = tempfile::tempdir().unwrap();
        let [file, link] = ["file", "link"].map(|name| dir.path().join(name));
        fs::write(&file, "mine").unwrap();
        std::os::unix::fs::symlink("nowhere", &link).unwrap();
        for path in [&file, &link, &dir.path().to_owned()] {
            assert_eq!(error(path), format!("{path:?} already exists"));
        }
        assert_eq!(fs::read(&file).unwrap(), b"mine");
    }

    #[test]
    fn a_guard_leaves_what_took_its_place() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let (_listener, guard) = unix_listener(&path, 0o600).unwrap();
        fs::remove_file(&path).unwrap();
        fs::write(&path, "another's").unwrap();
        drop(guard);
        assert_eq!(fs::read(&path).unwrap(), b"another's");
    }

    fn of(text: &str) -> Bound {
        bind(&ListenAddress::parse(text.as_ref()).unwrap()).unwrap()
    }

    fn refused(text: &str) -> String {
        format!("{:#}", bind(&ListenAddress::parse(text.as_ref()).unwrap()).unwrap_err())
    }

    #[track_caller]
    fn assert_ready(socket: &Socket) {
        assert_eq!(socket.accept().unwrap_err().kind(), io::ErrorKind::WouldBlock);
        assert!(rustix::io::fcntl_getfd(socket).unwrap().contains(rustix::io::FdFlags::CLOEXEC));
    }

    #[test]
    fn a_unix_source_is_made_as_asked() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("s");
        let user = users::effective_id().unwrap();
        let group = rustix::process::getegid().as_raw();
        let url = format!("unix://{}?mode=0660&owner={user}&group={group}", path.display());
        let bound = of(&url);
        assert_ready(&bound.socket);
        assert_eq!(bound.name, url);
        let made = fs::metadata(&path).unwrap();
        assert_eq!((made.mode() & 0o7777, made.uid(), made.gid()), (0o660, user, group));
        assert_eq!(refused(&path.display().to_string()), format!("{path:?} already exists and is in use"));
        drop(bound);
        assert!(!path.exists());
        drop(of(&path.display().to_string()));
    }

    #[test]
    fn an_abstract_source_has_no_file_and_exactly_its_name() {
        let name = format!("gvproxy-test/{}", std::process::id());
        let bound = of(&format!("@{name}"));
        assert_ready(&bound.socket);
        assert_eq!(bound.name, format!("unix:@{name}"));
        let connect = |name: &str| {
            let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
            socket.connect(&abstract_address(name.as_bytes()).unwrap())
        };
        connect(&name).unwrap();
        assert_eq!(connect(&format!("{name}\0")).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
        assert_eq!(
            refused(&format!("unix:@{name}")),
            format!("listen unix:@{name}: bind: address already in use")
        );
        drop(bound);
        assert_eq!(connect(&name).unwrap_err().kind(), io::ErrorKind::ConnectionRefused);
    }

    #[test]
    fn a_tcp_source_tells_its_port() {
        let bound = of("tcp://127.0.0.1:0");
        assert_ready(&bound.socket);
        let address = bound.socket.local_addr().unwrap().as_socket().unwrap();
        assert_eq!(bound.name, format!("tcp://{address}"));
        let why =
            format!("listen tcp {address}: bind: address already in use{}", by_whom(false, address.port()));
        assert_eq!(refused(&bound.name), why);
        let six = of("tcp://[::1]:0");
        assert!(six.name.starts_with("tcp://[::1]:") && !six.name.ends_with(":0"), "{}", six.name);
    }

    #[test]
    fn without_a_host_both_families_arrive_or_neither() {
        let bound = of("tcp://:0");
        let port = bound.socket.local_addr().unwrap().as_socket().unwrap().port();
        assert_eq!(bound.name, format!("tcp://:{port}"));
        for address in [IpAddr::V4(Ipv4Addr::LOCALHOST), IpAddr::V6(Ipv6Addr::LOCALHOST)] {
            std::net::TcpStream::connect((address, port)).unwrap();
        }
        drop(bound);
        // The half of it that another has is not left out.
        let taken = Socket::new(Domain::IPV6, Type::STREAM, None).unwrap();
        taken.set_only_v6(true).unwrap();
        taken.bind(&SocketAddr::from((Ipv6Addr::UNSPECIFIED, 0)).into()).unwrap();
        taken.listen(1).unwrap();
        let port = taken.local_addr().unwrap().as_socket().unwrap().port();
        assert_eq!(
            refused(&format!("tcp://:{port}")),
            format!("listen tcp :{port}: bind: address already in use{}", by_whom(false, port))
        );
    }

    #[test]
    fn the_limit_of_a_path_is_exact() {
        let dir = tempfile::tempdir().unwrap();
        let room = PATH_MAX - dir.path().as_os_str().len() - 1;
        unix_listener(&dir.path().join("x".repeat(room)), 0o600).unwrap();
        let text = error(&dir.path().join("x".repeat(room + 1)));
        assert!(text.ends_with("is too long: 108 bytes, the limit is 107"), "{text}");
        assert_eq!(error(Path::new("")), "the path of a unix socket is empty");
    }

    #[test]
    fn what_the_system_refuses_is_one_line() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("none/s");
        let text = format!("{:#}", unix_listener(&path, 0o600).unwrap_err());
        assert_eq!(text, format!("listen unix {}: bind: no such file or directory", path.display()));
    }
}
