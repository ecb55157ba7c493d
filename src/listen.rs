//! Sockets that the daemon listens on. Unix sockets are made private, a dead predecessor's is replaced, all are removed at the end.
//! Owns: the files of its sockets, through [`RemoveOnDrop`]. May not: remove what is not a socket, or not its own.

use std::fs::{self, Metadata, Permissions};
use std::io;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, ToSocketAddrs};
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};
use socket2::{Domain, SockAddr, Socket, Type};

use crate::text::{quote, reason};

/// Longest path of a socket in bytes: Linux's `sun_path` is 108 with the final zero (unix(7)).
pub const PATH_MAX: usize = 107;

/// Clients that may wait to be accepted; the kernel lowers it to `net.core.somaxconn`.
const BACKLOG: i32 = 4096;

/// Removes a socket's file, if it is still the one that was made.
///
/// To be dropped while the listener is open: the open socket holds on to its inode, so that no other file can have
/// the same number.
#[derive(Debug)]
pub struct RemoveOnDrop {
    path: PathBuf,
    file: FileId,
}

impl RemoveOnDrop {
    /// Whether the file that was made still has its name.
    pub fn is_there(&self) -> bool {
        fs::symlink_metadata(&self.path).is_ok_and(|found| FileId::of(&found) == self.file)
    }
}

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        if let Err(error) = remove(&self.path, self.file) {
            tracing::warn!(path = %self.path.display(), reason = reason(&error), "cannot remove socket");
        }
    }
}

/// Listens on a new socket at `path` with the permissions `mode`, in place of a socket that nobody listens on.
///
/// The mode is set before anyone can connect, and the process's umask is left alone.
///
/// # Errors
/// `path` is too long, or something else than a dead socket is there, or the system refuses.
pub fn unix_listener(path: &Path, mode: u32) -> Result<(UnixListener, RemoveOnDrop)> {
    let (socket, file) = unix_socket(path, mode, Type::STREAM)?;
    Ok((socket.into(), file))
}

/// The same for a socket of any `kind`; one for datagrams is bound, as it cannot listen.
///
/// # Errors
/// As [`unix_listener`].
pub fn unix_socket(path: &Path, mode: u32, kind: Type) -> Result<(Socket, RemoveOnDrop)> {
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
    let socket = Socket::new(Domain::UNIX, kind, None).map_err(failed("socket"))?;
    // Linux gives the file the mode of the socket's own inode. Where a system does not, the check below sets it;
    // a socket that is bound and does not listen yet refuses everyone.
    let _ = rustix::fs::fchmod(&socket, rustix::fs::Mode::from_raw_mode(mode));
    socket.bind(&address(path)?).map_err(failed("bind"))?;
    let made = fs::symlink_metadata(path).map_err(failed("stat"))?;
    let guard = RemoveOnDrop { path: path.to_owned(), file: FileId::of(&made) };
    if made.permissions().mode() & 0o777 != mode {
        fs::set_permissions(path, Permissions::from_mode(mode)).map_err(failed("chmod"))?;
    }
    if kind != Type::DGRAM {
        socket.listen(BACKLOG).map_err(failed("listen"))?;
    }
    Ok((socket, guard))
}

/// Listens on a TCP port. Without a host, or with one that stands for every address, both IPv4 and IPv6 arrive.
///
/// # Errors
/// The name has no address, or the system refuses.
pub fn tcp_listener(host: &str, port: u16) -> Result<Socket> {
    let failed = |call: &'static str| {
        move |error: io::Error| anyhow!("listen tcp {host}:{port}: {call}: {}", reason(&error))
    };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let any = host.is_empty() || host.parse::<IpAddr>().is_ok_and(|ip| ip.is_unspecified());
    let listen = |address: SocketAddr| {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
        if address.is_ipv6() {
            socket.set_only_v6(!any)?;
        }
        socket.set_reuse_address(true)?;
        socket.bind(&address.into())?;
        socket.listen(BACKLOG)?;
        Ok(socket)
    };
    if any {
        // A host without IPv6 has no such address.
        return listen((Ipv6Addr::UNSPECIFIED, port).into())
            .or_else(|_: io::Error| listen((Ipv4Addr::UNSPECIFIED, port).into()))
            .map_err(failed("bind"));
    }
    let mut addresses: Vec<_> = (host, port).to_socket_addrs().map_err(failed("lookup"))?.collect();
    addresses.sort_by_key(SocketAddr::is_ipv6);
    let address = addresses.first().ok_or_else(|| anyhow!("listen tcp {host}:{port}: no such host"))?;
    listen(*address).map_err(failed("bind"))
}

/// Whether [`unix_listener`] would find nothing at `path`, or a dead socket. Changes nothing.
///
/// # Errors
/// As [`unix_listener`].
pub fn ensure_vacant(path: &Path) -> Result<()> {
    stale_socket(path).map(drop)
}

fn address(path: &Path) -> Result<SockAddr> {
    let len = path.as_os_str().len();
    ensure!(len > 0, "the path of a unix socket is empty");
    ensure!(
        len <= PATH_MAX,
        "unix socket path {} is too long: {len} bytes, the limit is {PATH_MAX}",
        shown(path)
    );
    SockAddr::unix(path).with_context(|| format!("unix socket path {}", shown(path)))
}

fn shown(path: &Path) -> String {
    quote(path.as_os_str().as_encoded_bytes())
}

/// The socket at `path` that no process has any more.
fn stale_socket(path: &Path) -> Result<Option<FileId>> {
    let address = address(path)?;
    // What else is wrong with the path is for `bind` to say.
    let Ok(found) = fs::symlink_metadata(path) else { return Ok(None) };
    ensure!(found.file_type().is_socket(), "{} already exists", shown(path));
    // A datagram socket cannot connect to a stream socket, and the error tells whether there is one: a real
    // connection would be taken for the VM, and its end for the VM's.
    let probe = Socket::new(Domain::UNIX, Type::DGRAM, None).and_then(|socket| socket.connect(&address));
    match probe {
        Err(error) if error.kind() == io::ErrorKind::ConnectionRefused => Ok(Some(FileId::of(&found))),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
            bail!("{} already exists: permission denied", shown(path))
        }
        _ => bail!("{} already exists and is in use", shown(path)),
    }
}

/// Removes `path` if it is `file`; that it is gone or another is no error.
fn remove(path: &Path, file: FileId) -> io::Result<()> {
    let result = fs::symlink_metadata(path).and_then(|found| match FileId::of(&found) == file {
        true => fs::remove_file(path),
        false => Ok(()),
    });
    match result {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        other => other,
    }
}

/// Which file it is, whatever its name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct FileId {
    device: u64,
    inode: u64,
}

impl FileId {
    fn of(metadata: &Metadata) -> Self {
        Self { device: metadata.dev(), inode: metadata.ino() }
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::{UnixDatagram, UnixStream};

    use super::*;

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
            assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, mode);
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
