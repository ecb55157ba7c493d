//! A network of a test's own: a user, network and mount namespace, made without root. Owns: the namespace,
//! which is gone with the guard. May not: touch the network of the machine. Read next: `guest.rs`, `net.rs`.

use std::ffi::OsStr;
use std::io;
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::fd::OwnedFd;
use std::process::{Child, Command, Output, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use socket2::Socket;

use crate::udp::UdpSocket;
use crate::{agent, tool};

/// Longest that a connect may take before a test counts it as never.
const CONNECT: Duration = Duration::from_secs(10);

/// A namespace with `lo` up and nothing else in it.
#[derive(Debug)]
pub struct Namespace {
    agent: Child,
    channel: Mutex<OwnedFd>,
}

impl Namespace {
    #[track_caller]
    pub fn new() -> Self {
        Self::from(Command::new(tool("unshare", "util-linux")))
    }

    /// A namespace whose user namespace is a child of `parent`'s, so that a program there can enter it.
    #[track_caller]
    pub fn inside(parent: &Self) -> Self {
        Self::from(parent.command(tool("unshare", "util-linux")))
    }

    #[track_caller]
    fn from(mut unshare: Command) -> Self {
        crate::raise_descriptor_limit();
        let (ours, theirs) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
                .expect("a socket pair");
        let agent = unshare
            .args(["--user", "--map-root-user", "--net", "--mount", "--"])
            .arg(std::env::current_exe().expect("a path to this executable"))
            .args(agent::ARGS)
            .env(agent::ROLE, "1")
            .stdin(Stdio::from(theirs))
            .stdout(Stdio::null())
            .spawn()
            .expect("unshare");
        let ns = Self { agent, channel: Mutex::new(ours) };
        ns.open("netns").unwrap_or_else(|error| {
            panic!("no namespace ({error}): are unprivileged user namespaces switched off on this machine?")
        });
        ns.run(["ip", "link", "set", "lo", "up"]);
        // Tests speak IPv4; router solicitations would only be noise on an idle link.
        ns.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv6/conf/all/disable_ipv6 || true"]);
        // Any group may use echo sockets, as on a desktop.
        ns.run(["sh", "-c", "echo 0 0 >/proc/sys/net/ipv4/ping_group_range"]);
        ns
    }

    /// The process that keeps the namespace; `/proc/PID/ns/net` names it.
    pub fn pid(&self) -> u32 {
        self.agent.id()
    }

    /// The words that run a command inside, by `exec`.
    pub fn prefix(&self) -> Vec<String> {
        let nsenter = tool("nsenter", "util-linux").display().to_string();
        [&nsenter, "-t", &self.pid().to_string(), "-U", "-n", "-m", "--preserve-credentials", "--"]
            .map(str::to_owned)
            .into()
    }

    /// A command inside the namespace.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let prefix = self.prefix();
        let mut command = Command::new(&prefix[0]);
        command.args(&prefix[1..]).arg(program);
        command
    }

    /// Runs `words` inside to their end.
    #[track_caller]
    pub fn output<S: AsRef<OsStr>, const N: usize>(&self, words: [S; N]) -> Output {
        let [program, args @ ..] = words.as_slice() else { panic!("no words") };
        self.command(program).args(args).stdin(Stdio::null()).output().expect("nsenter")
    }

    /// Runs `words` inside and gives their stdout; fails the test if they fail.
    #[track_caller]
    pub fn run<S: AsRef<OsStr> + std::fmt::Debug, const N: usize>(&self, words: [S; N]) -> String {
        let shown = format!("{words:?}");
        let output = self.output(words);
        let stdout = String::from_utf8_lossy(&output.stdout).into_owned();
        assert!(
            output.status.success(),
            "{shown}: {}\n{stdout}{}",
            output.status,
            String::from_utf8_lossy(&output.stderr)
        );
        stdout
    }

    /// A descriptor that the agent opens inside: see `agent.rs` for what there is.
    pub fn open(&self, what: &str) -> io::Result<OwnedFd> {
        let mut fds = agent::ask(&self.channel.lock().unwrap(), what)?;
        fds.pop().ok_or_else(|| io::Error::other("no descriptor"))
    }

    /// A TCP socket of this network, neither bound nor connected.
    #[track_caller]
    pub fn tcp(&self) -> Socket {
        self.open("tcp").expect("a TCP socket").into()
    }

    /// Many TCP sockets of this network for one question.
    #[track_caller]
    pub fn many_tcp(&self) -> Vec<Socket> {
        let fds = agent::ask(&self.channel.lock().unwrap(), "tcps").expect("TCP sockets");
        fds.into_iter().map(Socket::from).collect()
    }

    /// A connection from this network.
    #[track_caller]
    pub fn connect(&self, to: SocketAddr) -> io::Result<TcpStream> {
        let socket = self.tcp();
        socket.connect_timeout(&to.into(), CONNECT)?;
        Ok(socket.into())
    }

    /// A listening socket in this network, with a long backlog.
    #[track_caller]
    pub fn listen(&self, at: SocketAddr) -> TcpListener {
        let what = if at.is_ipv4() { "tcp" } else { "tcp6" };
        let socket = Socket::from(self.open(what).expect("a TCP socket"));
        socket.set_reuse_address(true).unwrap();
        socket.bind(&at.into()).unwrap_or_else(|error| panic!("bind {at}: {error}"));
        socket.listen(4096).unwrap();
        socket.into()
    }

    /// A UDP socket bound in this network.
    #[track_caller]
    pub fn udp(&self, at: SocketAddr) -> UdpSocket {
        let what = if at.is_ipv4() { "udp" } else { "udp6" };
        let socket = Socket::from(self.open(what).expect("a UDP socket"));
        // A process that another test starts holds a copy of a socket just closed, until it runs its own
        // program.
        crate::eventually(&format!("{at} is free"), CONNECT, || match socket.bind(&at.into()) {
            Ok(()) => Some(()),
            Err(error) if error.kind() == io::ErrorKind::AddrInUse => None,
            Err(error) => panic!("bind {at}: {error}"),
        });
        socket.into()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = self.agent.kill();
        let _ = self.agent.wait();
    }
}
