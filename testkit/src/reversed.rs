//! A daemon that reverses a socket: in the guest, a namespace whose port 22 leads to a real sshd, or with
//! gvforwarder's agent in it. Unix sockets are found by their path from every network, so that both ends are
//! in one directory.
//! Owns: all that runs. Read next: `tests/reverse.rs`.

use std::io::{self, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use rustix::process::Signal;

use crate::daemon::Daemon;
use crate::eventually;
use crate::guest::{self, Guest};
use crate::guest_agent::Agent;
use crate::net::plug;
use crate::sshd::Sshd;
use crate::streams::{self, Server, at, exchange};
use crate::traffic::lead;

pub const PATIENCE: Duration = Duration::from_secs(30);
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
/// What the log says once the guest has its socket.
pub const MADE: &str = "the guest has a socket that leads here";

/// How the socket gets into the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Way {
    Agent,
    Ssh,
}

/// An sshd and the thread that its service needs.
#[derive(Debug)]
pub struct Login {
    pub sshd: Sshd,
    pub runtime: tokio::runtime::Runtime,
}

impl Login {
    pub fn new(options: &'static str) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sshd = runtime.block_on(async {
            let mut sshd = Sshd::prepare().await;
            sshd.options = options;
            sshd.start().await;
            sshd
        });
        Self { sshd, runtime }
    }
}

/// Where both ends are.
#[derive(Debug)]
pub struct Files(tempfile::TempDir);

impl Files {
    pub fn new() -> Self {
        Self(tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap())
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    /// The socket in the guest.
    pub fn guest(&self) -> String {
        self.path("g").display().to_string()
    }

    /// The socket on the host.
    pub fn host(&self) -> String {
        self.path("h").display().to_string()
    }
}

/// Everything. Who asks goes before who is asked.
#[derive(Debug)]
pub struct Rig {
    pub daemon: Daemon,
    pub agent: Option<Agent>,
    pub guest: Guest,
    pub login: Option<Login>,
    pub files: Files,
}

impl Rig {
    /// One whose guest has its socket.
    #[track_caller]
    pub fn start(way: Way) -> Self {
        let rig = Self::with(way, Files::new(), "");
        rig.wait_for_log(&[MADE]);
        rig
    }

    /// One in the making; `options` are for sshd.
    #[track_caller]
    pub fn with(way: Way, files: Files, options: &'static str) -> Self {
        let login = (way == Way::Ssh).then(|| Login::new(options));
        let daemon = start_daemon(&files, login.as_ref());
        let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
        assert_eq!(guest.dhcp().ip(), GUEST);
        if let Some(login) = &login {
            lead(guest.listen("0.0.0.0:22".parse().unwrap()), login.sshd.addr);
        }
        let agent = login.is_none().then(|| Agent::start(&guest, &["-agent-offer", &files.guest()]));
        Self { daemon, agent, guest, login, files }
    }

    /// A server at the host's end.
    #[track_caller]
    pub fn serve(&self, serve: impl Fn(UnixStream) + Clone + Send + 'static) -> Server {
        Server::start(self.files.host(), serve)
    }

    /// A client in the guest.
    #[track_caller]
    pub fn connect(&self) -> UnixStream {
        try_connect(&self.files).unwrap_or_else(|error| panic!("no connection: {error}"))
    }

    #[track_caller]
    pub fn assert_echo(&self, bytes: &[u8]) {
        streams::assert_echo(&self.connect().into_socket(), bytes);
    }

    /// Echo of more than fits anywhere, read and written at once.
    #[track_caller]
    pub fn assert_echo_after(&self, bytes: &[u8]) {
        let mut client = self.connect();
        client.write_all(b"e").unwrap();
        streams::assert_echo_while_read(&client.into_socket(), bytes);
    }

    /// Until it is served again.
    #[track_caller]
    pub fn echo_comes(&self) {
        eventually("an echo", PATIENCE, || {
            let client = try_connect(&self.files).ok()?;
            exchange(&client.into_socket(), b"hello").ok().filter(|answer| answer == b"hello")
        });
    }

    #[track_caller]
    pub fn wait_for_log(&self, texts: &[&str]) {
        wait_for_log(&self.daemon, texts);
    }

    pub fn restart_guest(&mut self, signal: Signal) {
        match (&mut self.agent, &mut self.login) {
            (Some(agent), _) => {
                agent.end(signal);
                *agent = Agent::start(&self.guest, &["-agent-offer", &self.files.guest()]);
            }
            (None, Some(Login { sshd, runtime })) => {
                sshd.stop();
                runtime.block_on(sshd.start());
            }
            (None, None) => unreachable!(),
        }
    }
}

pub trait IntoSocket {
    fn into_socket(self) -> socket2::Socket;
}

impl IntoSocket for UnixStream {
    fn into_socket(self) -> socket2::Socket {
        std::os::fd::OwnedFd::from(self).into()
    }
}

pub fn try_connect(files: &Files) -> io::Result<UnixStream> {
    let socket = streams::connect(&at(files.guest()))?;
    Ok(std::os::fd::OwnedFd::from(socket).into())
}

#[track_caller]
pub fn start_daemon(files: &Files, login: Option<&Login>) -> Daemon {
    let (guest, host) = (files.guest(), files.host());
    let mut words = vec!["-debug", "-reverse-sock", &guest, "-reverse-dest", &host];
    let key = login.map(|login| login.sshd.path("id").display().to_string());
    if let (Some(login), Some(key)) = (login, &key) {
        words.extend(["-forward-user", &login.sshd.user, "-forward-identity", key]);
    }
    Daemon::builder().args(words).start()
}

#[track_caller]
pub fn wait_for_log(daemon: &Daemon, texts: &[&str]) {
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("a log line", PATIENCE, || {
            let log = daemon.stderr();
            log.lines().any(|line| texts.iter().all(|text| line.contains(text))).then_some(())
        });
    }));
    assert!(found.is_ok(), "no line with {texts:?}");
}

/// Lines of the log that are no debugging.
pub fn said(daemon: &Daemon, text: &str) -> usize {
    let log = daemon.stderr();
    log.lines().filter(|line| line.contains(text) && !line.contains("level=debug")).count()
}

/// The client is closed without a byte.
#[track_caller]
pub fn assert_closed(client: UnixStream) {
    streams::assert_closed(&client.into_socket());
}
