//! A network for one measured program: a host, a guest, and the program between them. Owns: how each program
//! is started and what of the guest's network it needs configured. May not: measure. Read next: `measure.rs`.

use std::fmt::{self, Display, Formatter};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use crate::forwarder::Dest;
use crate::peer::Kind;
use crate::ssh::Forward;
use testkit::cable::Kind as Link;
use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::guest::{self, Guest, Lease, NIC};
use testkit::net::{HOST, Host, plug};
use testkit::ns::Namespace;
use testkit::process::Process;

const PATIENCE: Duration = Duration::from_secs(10);
/// The port on the host that leads to port 22 of the guest.
const PUBLISHED: u16 = 2222;
/// The guest and the gateway of the programs whose network is QEMU's.
const USER_GUEST: &str = "10.0.2.15";
const USER_GATEWAY: Ipv4Addr = Ipv4Addr::new(10, 0, 2, 2);

/// What a program is started with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    /// Asked for by flag; without one the guest takes what the program offers by DHCP, as under a machine
    /// manager.
    pub(crate) mtu: Option<u16>,
    /// Whether a unix socket of the host leads to an sshd in the guest.
    pub(crate) ssh: bool,
    /// Whether another one leads to an agent there.
    pub(crate) agent: bool,
    /// Whether services run in a second guest on the same switch instead of on the host.
    pub(crate) pair: bool,
    /// No guest and no network at all: a forwarder from a unix socket of the host to a server there.
    pub(crate) sockets: Option<Dest>,
}

impl Shape {
    pub(crate) const fn mtu(mtu: u16) -> Self {
        Self { mtu: Some(mtu), ssh: false, agent: false, pair: false, sockets: None }
    }

    pub(crate) const fn ssh(mtu: Option<u16>) -> Self {
        Self { mtu, ssh: true, agent: false, pair: false, sockets: None }
    }

    /// Both ways.
    pub(crate) const fn agent(mtu: Option<u16>) -> Self {
        Self { agent: true, ..Self::ssh(mtu) }
    }

    pub(crate) const fn pair(mtu: u16) -> Self {
        Self { mtu: Some(mtu), ssh: false, agent: false, pair: true, sockets: None }
    }

    pub(crate) const fn sockets(dest: Dest) -> Self {
        Self { mtu: None, ssh: false, agent: false, pair: false, sockets: Some(dest) }
    }

    /// Whether such a network can be had of `kind`.
    pub(crate) fn suits(self, kind: &Kind) -> bool {
        let network = self.sockets.is_none();
        match kind {
            Kind::Ours(_) => true,
            Kind::Original(_) => network && !self.agent,
            Kind::TwoTaps => network && !self.ssh,
            Kind::Passt(_) | Kind::Slirp(_) => network && !self.ssh && !self.pair,
            Kind::Socat(_, 65536..) | Kind::Splice(_) => !network && self.sockets != Some(Dest::Crowded),
            Kind::Socat(..) | Kind::SocketProxy(..) | Kind::Direct => !network,
        }
    }
}

impl Display for Shape {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        if let Some(dest) = self.sockets {
            return dest.fmt(f);
        }
        match self.mtu {
            Some(mtu) => write!(f, "MTU {mtu}")?,
            None => f.write_str("default MTU")?,
        }
        f.write_str(if self.ssh { " and SSH" } else { "" })?;
        f.write_str(if self.agent { " and an agent" } else { "" })?;
        f.write_str(if self.pair { ", two guests" } else { "" })
    }
}

/// A host, a guest, and what is between them. Fields are dropped in order: the guest hangs up first.
#[derive(Debug)]
pub(crate) struct Setup {
    pub(crate) forward: Option<Forward>,
    pub(crate) guest: Client,
    /// What the guest was offered, if it asked.
    pub(crate) lease: Option<Lease>,
    /// The host's address as the guest sees it: services on the host's loopback are there.
    pub(crate) to: Ipv4Addr,
    /// Where services on the host listen.
    pub(crate) service: Ipv4Addr,
    /// Where the host finds port 22 of the guest, if it is published.
    pub(crate) published: Option<SocketAddr>,
    /// The socket of the daemon's API, if it has one.
    pub(crate) api: Option<PathBuf>,
    /// What is between them.
    pub(crate) process: Option<Process>,
    /// Its resident memory when the guest was attached and nothing had happened yet.
    pub(crate) idle_kb: Option<u64>,
    between: Between,
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
    Daemon(Daemon),
    Peer(Child),
    Guest(Guest),
    /// The daemon of two guests, and the second of them.
    Switch(Guest, Daemon),
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
    pub(crate) fn start(kind: &Kind, shape: Shape) -> Self {
        let host = Host::new("nameserver 127.0.0.1\n");
        // passt takes after the interface with the default route.
        host.run(["ip", "route", "add", "default", "via", "203.0.113.2", "dev", "hole"]);
        let mtu = shape.mtu.unwrap_or(1500);
        let mut setup = match kind {
            Kind::Ours(binary) | Kind::Original(binary) if shape.pair => Self::two_guests(host, binary, mtu),
            Kind::Ours(binary) | Kind::Original(binary) => Self::gvproxy(host, binary, shape),
            Kind::Passt(binary) => Self::passt(host, binary, mtu),
            Kind::Slirp(binary) => Self::slirp(host, binary, mtu),
            Kind::TwoTaps => Self::two_taps(host, mtu),
            kind => panic!("{} has no guest", kind.name()),
        };
        setup.idle_kb = setup.process.map(Process::rss_kb);
        let listener = setup.services().listen((setup.service, 0).into());
        let to = SocketAddr::new(setup.to.into(), listener.local_addr().unwrap().port());
        eventually("a first connection", PATIENCE, || setup.guest.connect(to).ok());
        if let Some(forward) = &mut setup.forward {
            forward.bring_up(&setup.guest);
        }
        setup
    }

    fn new(host: Host, guest: Client, to: Ipv4Addr, between: Between) -> Self {
        let (process, published) = match &between {
            Between::Daemon(daemon) => {
                (Some(Process(daemon.pid())), Some((Ipv4Addr::LOCALHOST, PUBLISHED).into()))
            }
            // Debian 12's passt accepts on a published port (-t) and then sends this guest nothing.
            Between::Peer(child) => (Some(Process(child.id())), None),
            Between::Guest(_) => (None, None),
            Between::Switch(_, daemon) => (Some(Process(daemon.pid())), None),
        };
        // A service in a guest has that one's address.
        let service = match between {
            Between::Daemon(_) | Between::Peer(_) => Ipv4Addr::LOCALHOST,
            Between::Guest(_) | Between::Switch(..) => to,
        };
        Self {
            forward: None,
            guest,
            lease: None,
            to,
            service,
            published,
            api: None,
            process,
            idle_kb: None,
            between,
            host,
        }
    }

    fn gvproxy(host: Host, binary: &Path, shape: Shape) -> Self {
        let mut builder = Daemon::builder().binary(binary).args(["-ssh-port", &PUBLISHED.to_string()]);
        builder = builder.args(["-listen", "unix://{dir}/api.sock"]);
        if let Some(mtu) = shape.mtu {
            builder = builder.args(["-mtu", &mtu.to_string()]);
        }
        let forwarder = shape.agent.then(|| binary.with_file_name("gvforwarder"));
        let forward = shape.ssh.then(|| Forward::new(forwarder));
        if let Some(forward) = &forward {
            builder = builder.args(forward.flags());
        }
        let daemon = builder.through(host.prefix()).start();
        let guest = Guest::start(plug(&daemon), guest::MAC, shape.mtu.unwrap_or(1500));
        let lease = if shape.mtu.is_none() {
            Some(guest.dhcp())
        } else {
            guest.configure("192.168.127.2/24", Some("192.168.127.1"));
            None
        };
        let api = Some(daemon.dir().join("api.sock"));
        Self { forward, lease, api, ..Self::new(host, Client::Tap(guest), HOST, Between::Daemon(daemon)) }
    }

    /// On VPNKit's socket, where the original serves several guests too.
    fn two_guests(host: Host, binary: &Path, mtu: u16) -> Self {
        let builder = Link::Vpnkit.builder().binary(binary).args(["-mtu", &mtu.to_string()]);
        let mut daemon = builder.through(host.prefix()).start();
        let mut guest = |mac, address| {
            let guest = Guest::start(Link::Vpnkit.plug(&mut daemon), mac, mtu);
            guest.configure(address, Some("192.168.127.1"));
            guest
        };
        let other = guest("5a:94:ef:e4:0c:ef", "192.168.127.3/24");
        let guest = guest(guest::MAC, "192.168.127.2/24");
        let to = Ipv4Addr::new(192, 168, 127, 3);
        Self::new(host, Client::Tap(guest), to, Between::Switch(other, daemon))
    }

    fn passt(host: Host, binary: &Path, mtu: u16) -> Self {
        let socket = host.dir().join("passt.sock");
        let mut command = host.command(binary);
        command.args(["-f", "-4", "-a", USER_GUEST, "-n", "24", "-g", &USER_GATEWAY.to_string()]);
        command.args(["-m", &mtu.to_string(), "-t", "none", "-u", "none", "-s"]).arg(&socket);
        let between = Between::Peer(quiet(&mut command));
        let link = eventually("passt's socket", PATIENCE, || UnixStream::connect(&socket).ok());
        let guest = Guest::start(link, guest::MAC, mtu);
        guest.configure(&format!("{USER_GUEST}/24"), Some(&USER_GATEWAY.to_string()));
        Self::new(host, Client::Tap(guest), USER_GATEWAY, between)
    }

    fn slirp(host: Host, binary: &Path, mtu: u16) -> Self {
        let guest = Namespace::inside(&host);
        let path = |kind: &str| format!("/proc/{}/ns/{kind}", guest.pid());
        let mut command = host.command(binary);
        command.args(["--configure", "--disable-dns", "--mtu", &mtu.to_string(), "--netns-type=path"]);
        command.arg(format!("--userns-path={}", path("user"))).arg(path("net")).arg(NIC);
        let between = Between::Peer(quiet(&mut command));
        eventually("slirp4netns's interface", PATIENCE, || {
            let addresses = guest.output(["ip", "-br", "addr", "show", "dev", NIC]).stdout;
            String::from_utf8_lossy(&addresses).contains("10.0.2").then_some(())
        });
        guest.run(["ip", "link", "set", NIC, "txqueuelen", "1000"]);
        Self::new(host, Client::Bare(guest), USER_GATEWAY, between)
    }

    fn two_taps(host: Host, mtu: u16) -> Self {
        let (near, far) = UnixStream::pair().expect("a socket pair");
        let other = Guest::start(far, "5a:94:ef:e4:0c:dd", mtu);
        other.configure("10.0.3.1/24", None);
        let guest = Guest::start(near, guest::MAC, mtu);
        guest.configure("10.0.3.2/24", None);
        Self::new(host, Client::Tap(guest), Ipv4Addr::new(10, 0, 3, 1), Between::Guest(other))
    }

    /// The network in which the services of the measurements run.
    pub(crate) fn services(&self) -> &Namespace {
        match &self.between {
            Between::Guest(other) | Between::Switch(other, _) => other,
            Between::Daemon(_) | Between::Peer(_) => &self.host,
        }
    }
}

fn quiet(command: &mut Command) -> Child {
    command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null()).spawn().expect("a peer")
}
