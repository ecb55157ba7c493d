//! The whole of a test network: a host of its own, the daemon on it, and a guest behind the daemon. The host
//! is a namespace too, so that a test can have the host's port 53, its routes and its black holes for itself.
//! Read next: `guest.rs`, `daemon.rs`.

use std::fs::File;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::daemon::{Builder, Daemon};
use crate::guest::{self, Guest, Lease};
use crate::ns::Namespace;

/// The virtual gateway.
pub const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
/// The host's 127.0.0.1, as the guest sees it.
pub const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);
/// Another address of the host: what a guest reaches without translation.
pub const ELSEWHERE: Ipv4Addr = Ipv4Addr::new(198, 51, 100, 1);
/// A network in which nobody answers.
pub const BLACK_HOLE: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 9);
/// A network that the host has no way to.
pub const UNREACHABLE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 9);

/// A host: `lo` with [`ELSEWHERE`] on it, an interface that swallows [`BLACK_HOLE`], and the resolvers of
/// `resolv_conf`.
#[derive(Debug)]
pub struct Host {
    ns: Namespace,
    /// The far end of the black hole: open, never read.
    _hole: File,
    dir: tempfile::TempDir,
}

impl Host {
    #[track_caller]
    pub fn new(resolv_conf: &str) -> Self {
        let ns = Namespace::new();
        let hole = File::from(ns.open("tap hole").expect("a tap: is /dev/net/tun there?"));
        ns.run(["ip", "link", "set", "hole", "arp", "off", "up"]);
        ns.run(["ip", "addr", "add", "203.0.113.1/24", "dev", "hole"]);
        ns.run(["ip", "addr", "add", &format!("{ELSEWHERE}/32"), "dev", "lo"]);
        ns.run(["ip", "route", "add", "unreachable", &format!("{UNREACHABLE}/24").replace(".9/", ".0/")]);
        let host = Self { ns, _hole: hole, dir: tempfile::tempdir().expect("a temporary directory") };
        for (file, text) in [("resolv.conf", resolv_conf), ("hosts", "127.0.0.1 localhost\n")] {
            host.write(file, text);
            let from = host.file(file);
            host.ns.run(["mount", "--bind", &from, &format!("/etc/{file}")]);
        }
        host
    }

    /// A directory for the files of programs on this host.
    pub fn dir(&self) -> &Path {
        self.dir.path()
    }

    /// Replaces the text of /etc/`file` on this host: `resolv.conf` or `hosts`.
    pub fn write(&self, file: &str, text: &str) {
        std::fs::write(self.file(file), text).expect("a file of the host");
    }

    /// Puts a FIFO that nobody writes in the place of /etc/`file`.
    #[track_caller]
    pub fn clog(&self, file: &str) {
        let fifo = self.file(&format!("{file}.fifo"));
        self.ns.run(["mkfifo", &fifo]);
        self.ns.run(["mount", "--bind", &fifo, &format!("/etc/{file}")]);
    }

    fn file(&self, name: &str) -> String {
        self.dir.path().join(name).display().to_string()
    }
}

impl std::ops::Deref for Host {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.ns
    }
}

/// A daemon on a [`Host`] with a configured [`Guest`]. Fields are dropped in order: the guest hangs up first.
#[derive(Debug)]
pub struct Net {
    pub guest: Guest,
    pub daemon: Daemon,
    pub host: Host,
    pub lease: Lease,
}

impl Net {
    /// The network with the defaults of a machine manager.
    #[track_caller]
    pub fn start() -> Self {
        Self::with(Host::new("nameserver 127.0.0.1\n"), Daemon::builder(), 1500)
    }

    /// A daemon as `builder` says on `host`, and a guest that has its lease.
    #[track_caller]
    pub fn with(host: Host, builder: Builder, mtu: u16) -> Self {
        let daemon = builder.through(host.prefix()).start();
        let guest = Guest::start(plug(&daemon), guest::MAC, mtu);
        let lease = guest.dhcp();
        Self { guest, daemon, host, lease }
    }

    /// A listener on the host's loopback, and where the guest finds it.
    #[track_caller]
    pub fn listen(&self) -> (std::net::TcpListener, SocketAddr) {
        let listener = self.host.listen("127.0.0.1:0".parse().unwrap());
        let port = listener.local_addr().unwrap().port();
        (listener, (HOST, port).into())
    }
}

/// The daemon's side of a network cable.
#[track_caller]
pub fn plug(daemon: &Daemon) -> UnixStream {
    // The socket's file is there a moment before anyone listens on it.
    crate::eventually("a connection to the QEMU socket", Duration::from_secs(5), || {
        UnixStream::connect(daemon.qemu_socket()).ok()
    })
}
