//! The programs that are compared, each between a host and a guest of its own. Owns: how each is started and what of
//! the guest's network it needs configured. May not: measure. Read next: `load.rs`.

use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::support::daemon::Daemon;
use crate::support::eventually;
use crate::support::guest::{self, Guest, NIC};
use crate::support::net::{HOST, Host, plug};
use crate::support::ns::Namespace;
use crate::support::process::Process;

const PATIENCE: Duration = Duration::from_secs(10);
/// The port on the host that leads to port 22 of the guest.
const PUBLISHED: u16 = 2222;

/// A program that gives a guest its network.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// gvproxy of this tree.
    Ours(PathBuf),
    /// gvproxy that GVPROXY names.
    Original(PathBuf),
    Passt(PathBuf),
    Slirp(PathBuf),
    /// The guest's frames go to a tap on the host: what the load, both kernels and two relays cost by themselves.
    TwoTaps,
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours",
            Self::Original(_) => "original",
            Self::Passt(_) => "passt",
            Self::Slirp(_) => "slirp4netns",
            Self::TwoTaps => "two taps",
        }
    }

    /// What the program says it is, in a line.
    pub(crate) fn version(&self) -> String {
        let (path, flag) = match self {
            Self::Ours(path) | Self::Original(path) => (path, "-version"),
            Self::Passt(path) | Self::Slirp(path) => (path, "--version"),
            Self::TwoTaps => return "no daemon: two relays, back to back".to_owned(),
        };
        let output = Command::new(path).arg(flag).output();
        let text = output.map_or_else(|error| error.to_string().into_bytes(), |output| output.stdout);
        let line = String::from_utf8_lossy(&text).lines().next().unwrap_or("says nothing").to_owned();
        // Debian's passt does not know its own version.
        let package = Command::new("dpkg-query").args(["-W", "-f", "${Version}", self.name()]).output();
        match package {
            Ok(output) if output.status.success() => {
                format!("{line}, Debian package {}", String::from_utf8_lossy(&output.stdout))
            }
            _ => line,
        }
    }
}

/// The peers on this machine, and the names of those that are not, with what would bring them.
pub(crate) fn find(our: &Path) -> (Vec<Kind>, Vec<(&'static str, &'static str)>) {
    let (mut found, mut missing) = (vec![Kind::Ours(our.to_owned())], Vec::new());
    match std::env::var_os("GVPROXY") {
        Some(path) => found.push(Kind::Original(path.into())),
        None => missing.push(("original", "set GVPROXY=/path/to/gvproxy")),
    }
    match program("passt") {
        Some(path) => found.push(Kind::Passt(path)),
        None => missing.push(("passt", "apt install passt")),
    }
    match program("slirp4netns") {
        Some(path) => found.push(Kind::Slirp(path)),
        None => missing.push(("slirp4netns", "apt install slirp4netns")),
    }
    found.push(Kind::TwoTaps);
    (found, missing)
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}

/// A host, a guest, and what is between them. Fields are dropped in order: the guest hangs up first.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) guest: Client,
    /// The host's address as the guest sees it: services on the host's loopback are there.
    pub(crate) to: Ipv4Addr,
    /// Where services on the host listen.
    pub(crate) service: Ipv4Addr,
    /// Where the host finds port 22 of the guest, if it is published.
    pub(crate) published: Option<SocketAddr>,
    /// What is between them.
    pub(crate) process: Option<Process>,
    /// Its resident memory when the guest was attached and nothing had happened yet.
    pub(crate) idle_kb: Option<u64>,
    _between: Between,
    pub(crate) host: Host,
}

/// The guest, with the card of this project's tests or with one that a peer brought.
#[derive(Debug)]
pub(crate) enum Client {
    Tap(Guest),
    Bare(Namespace),
}

impl Deref for Client {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        match self {
            Self::Tap(guest) => guest,
            Self::Bare(ns) => ns,
        }
    }
}

/// What has to be ended with a [`Setup`].
#[derive(Debug)]
enum Between {
    Daemon(#[expect(dead_code, reason = "held to be dropped")] Daemon),
    Peer(Child),
    Guest(Guest),
}

impl Drop for Between {
    fn drop(&mut self) {
        if let Self::Peer(child) = self {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

impl Setup {
    pub(crate) fn start(kind: &Kind, mtu: u16) -> Self {
        let host = Host::new("nameserver 127.0.0.1\n");
        // passt takes after the interface with the default route.
        host.run(["ip", "route", "add", "default", "via", "203.0.113.2", "dev", "hole"]);
        let mut setup = match kind {
            Kind::Ours(binary) | Kind::Original(binary) => Self::gvproxy(host, binary, mtu),
            Kind::Passt(binary) => Self::passt(host, binary, mtu),
            Kind::Slirp(binary) => Self::slirp(host, binary, mtu),
            Kind::TwoTaps => Self::two_taps(host, mtu),
        };
        setup.idle_kb = setup.process.map(Process::rss_kb);
        let listener = setup.services().listen((setup.service, 0).into());
        let to = SocketAddr::new(setup.to.into(), listener.local_addr().unwrap().port());
        eventually("a first connection", PATIENCE, || setup.guest.connect(to).ok());
        setup
    }

    fn gvproxy(host: Host, binary: &Path, mtu: u16) -> Self {
        let (mtu_text, port) = (mtu.to_string(), PUBLISHED.to_string());
        let builder = Daemon::builder().binary(binary).args(["-mtu", &mtu_text, "-ssh-port", &port]);
        let daemon = builder.through(host.prefix()).start();
        let guest = Guest::start(plug(&daemon), guest::MAC, mtu);
        guest.configure("192.168.127.2/24", Some("192.168.127.1"));
        Self {
            guest: Client::Tap(guest),
            to: HOST,
            service: Ipv4Addr::LOCALHOST,
            published: Some((Ipv4Addr::LOCALHOST, PUBLISHED).into()),
            process: Some(Process(daemon.pid())),
            idle_kb: None,
            _between: Between::Daemon(daemon),
            host,
        }
    }

    fn passt(host: Host, binary: &Path, mtu: u16) -> Self {
        let socket = host.dir().join("passt.sock");
        let child = quiet(host.command(binary).args(["-f", "-4", "-s"]).arg(&socket).args([
            "-a",
            "10.0.2.15",
            "-n",
            "24",
            "-g",
            "10.0.2.2",
            "-m",
            &mtu.to_string(),
            "-t",
            "none",
            "-u",
            "none",
        ]));
        let process = Process(child.id());
        let between = Between::Peer(child);
        let link = eventually("passt's socket", PATIENCE, || UnixStream::connect(&socket).ok());
        let guest = Guest::start(link, guest::MAC, mtu);
        guest.configure("10.0.2.15/24", Some("10.0.2.2"));
        Self {
            guest: Client::Tap(guest),
            to: Ipv4Addr::new(10, 0, 2, 2),
            service: Ipv4Addr::LOCALHOST,
            // Debian 12's build accepts on a published port (-t) and then sends this guest nothing.
            published: None,
            process: Some(process),
            idle_kb: None,
            _between: between,
            host,
        }
    }

    fn slirp(host: Host, binary: &Path, mtu: u16) -> Self {
        let guest = Namespace::inside(&host);
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", guest.pid());
        let child = quiet(
            host.command(binary)
                .args(["--configure", "--disable-dns", "--mtu", &mtu.to_string(), "--netns-type=path"])
                .arg(format!("--userns-path={}", path("user")))
                .arg(path("net"))
                .arg(NIC),
        );
        let process = Process(child.id());
        let between = Between::Peer(child);
        eventually("slirp4netns's interface", PATIENCE, || {
            guest
                .output(["ip", "-br", "addr", "show", "dev", NIC])
                .stdout
                .windows(6)
                .any(|w| w == b"10.0.2")
                .then_some(())
        });
        guest.run(["ip", "link", "set", NIC, "txqueuelen", "1000"]);
        Self {
            guest: Client::Bare(guest),
            to: Ipv4Addr::new(10, 0, 2, 2),
            service: Ipv4Addr::LOCALHOST,
            published: None,
            process: Some(process),
            idle_kb: None,
            _between: between,
            host,
        }
    }

    fn two_taps(host: Host, mtu: u16) -> Self {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let other = Guest::start(far, "5a:94:ef:e4:0c:dd", mtu);
        other.configure("10.0.3.1/24", None);
        let guest = Guest::start(near, guest::MAC, mtu);
        guest.configure("10.0.3.2/24", None);
        // The far end of the cable is the host here.
        let host_ip = Ipv4Addr::new(10, 0, 3, 1);
        Self {
            guest: Client::Tap(guest),
            to: host_ip,
            service: host_ip,
            published: None,
            process: None,
            idle_kb: None,
            _between: Between::Guest(other),
            host,
        }
    }

    /// The network in which the services of the measurements run.
    pub(crate) fn services(&self) -> &Namespace {
        match &self._between {
            Between::Guest(other) => other,
            Between::Daemon(_) | Between::Peer(_) => &self.host,
        }
    }
}

fn quiet(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a peer")
}
