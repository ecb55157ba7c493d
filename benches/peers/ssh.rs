//! Unix sockets of the host that lead to a unix socket of the guest: over SSH, and by the guest's agent.
//! Owns: an sshd in the guest's network with its keys, the agent there, and the service behind both, which
//! sees the file system that this process sees.
//! Read next: `tcp.rs`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::clients::Door;
use crate::measure::Sample;
use crate::tcp::answer;
use testkit::ns::Namespace;
use testkit::process::Process;
use testkit::{eventually, tool};

/// The name of user 1, as whom sshd runs: root in a namespace of one user cannot become another one, which
/// sshd insists on.
const USER: &str = "daemon";
/// A daemon that found no sshd waits a while before it looks again.
const FIRST: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

/// How the guest is reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Lead {
    Ssh,
    Agent,
}

impl Lead {
    /// The host's socket.
    fn entry(self) -> &'static str {
        match self {
            Self::Ssh => "forward",
            Self::Agent => "agent",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Forward {
    service: UnixListener,
    /// gvforwarder, if there is to be an agent.
    forwarder: Option<PathBuf>,
    /// sshd, and the agent.
    children: Vec<Child>,
    dir: TempDir,
}

impl Forward {
    /// Keys and the service. sshd and the agent wait for the guest.
    pub(crate) fn new(forwarder: Option<PathBuf>) -> Self {
        let dir = tempfile::Builder::new().prefix("gvb").tempdir().expect("a temporary directory");
        for key in ["host", "id"] {
            let mut keygen = Command::new(tool("ssh-keygen", "openssh-client"));
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join(key));
            assert!(keygen.status().expect("ssh-keygen").success(), "ssh-keygen failed");
        }
        let service = UnixListener::bind(dir.path().join("service")).expect("the service's socket");
        Self { service, forwarder, children: Vec::new(), dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What makes gvproxy forward to it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let path = |name| self.path(name).display().to_string();
        let mut flags = vec![
            ("-forward-sock", path(Lead::Ssh.entry())),
            ("-forward-dest", path("service")),
            ("-forward-user", USER.to_owned()),
            ("-forward-identity", path("id")),
        ];
        if self.forwarder.is_some() {
            flags.push(("-forward-sock", path(Lead::Agent.entry())));
            flags.push(("-forward-dest", format!("agent://{}", path("service"))));
        }
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Starts sshd and the agent in the guest and waits until the forwards carry bytes.
    pub(crate) fn bring_up(&mut self, guest: &Namespace) {
        let dir = self.dir.path().to_owned();
        let path = |name: &str| dir.join(name).display().to_string();
        let config = format!(
            "ListenAddress 0.0.0.0:22\nHostKey {}\nAuthorizedKeysFile {}\nUsePAM no\nStrictModes no\n\
             PidFile none\nPasswordAuthentication no\nMaxStartups 100\n",
            path("host"),
            path("id.pub"),
        );
        fs::write(self.path("config"), config).expect("sshd's configuration");
        guest.run(["sh", "-c", "echo 0 >/proc/sys/net/ipv4/ip_unprivileged_port_start"]);
        let log = File::create(self.path("log")).expect("sshd's log");
        // Its sessions end with it, as processes of a namespace whose first process it is.
        let mut sshd = guest.command(tool("unshare", "util-linux"));
        sshd.args(["--user", "--map-user=1", "--map-group=1", "--pid", "--fork", "--kill-child", "--"]);
        sshd.arg(tool("sshd", "openssh-server")).args(["-D", "-e", "-f", &path("config")]);
        self.children
            .push(sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("sshd"));
        eventually("a first connection over SSH", FIRST, || self.pair(Lead::Ssh, Duration::from_secs(5)));
        if let Some(forwarder) = &self.forwarder {
            let log = File::create(self.path("agent-log")).expect("the agent's log");
            let mut agent = guest.command(forwarder);
            agent.args(["-agent", "-agent-allow", &path("service")]).stdin(Stdio::null()).stderr(log);
            self.children.push(agent.spawn().expect("gvforwarder"));
            eventually("a first connection by the agent", FIRST, || {
                self.pair(Lead::Agent, Duration::from_secs(5))
            });
        }
    }

    /// A connection through the forward: the host's end and the guest's, between which a byte has gone each
    /// way.
    pub(crate) fn connect(&self, lead: Lead) -> (UnixStream, UnixStream) {
        self.pair(lead, PATIENCE).expect("a connection into the guest")
    }

    /// Calls `measure` with what clients of the agent's way need.
    pub(crate) fn with_door<T>(&self, process: Option<Process>, measure: impl FnOnce(Door<'_>) -> T) -> T {
        let address = |name| SockAddr::unix(self.path(name)).unwrap();
        let (entry, server) = (address(Lead::Agent.entry()), address("service"));
        let socket = || Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        self.service.set_nonblocking(false).unwrap();
        measure(Door {
            socket: &socket,
            connect: &|client| client.connect(&entry),
            listener: &self.service.try_clone().unwrap().into(),
            disturb: &|| drop(socket().connect(&server)),
            process,
        })
    }

    fn pair(&self, lead: Lead, patience: Duration) -> Option<(UnixStream, UnixStream)> {
        let mut host = UnixStream::connect(self.path(lead.entry())).ok()?;
        host.write_all(b"?").ok()?;
        self.service.set_nonblocking(true).unwrap();
        let start = Instant::now();
        while start.elapsed() < patience {
            let Ok((mut guest, _)) = self.service.accept() else {
                thread::sleep(Duration::from_millis(1));
                continue;
            };
            // A connection of an earlier attempt may come late; its other end is gone.
            for end in [&host, &guest] {
                end.set_nonblocking(false).unwrap();
                end.set_read_timeout(Some(patience)).unwrap();
            }
            let answered = guest.read_exact(&mut [0]).and_then(|()| guest.write_all(b"!"));
            if answered.is_ok() && host.read_exact(&mut [0]).is_ok() {
                return Some((host, guest));
            }
        }
        None
    }

    /// Microseconds from connect to the answer of one byte to one byte, while the SSH connection is there.
    pub(crate) fn connect_time(&self, lead: Lead, time: Duration) -> Sample {
        let service = self.service.try_clone().unwrap();
        service.set_nonblocking(false).unwrap();
        let stop = Arc::new(AtomicBool::new(false));
        let stopping = Arc::clone(&stop);
        let server = thread::spawn(move || {
            while let Ok((stream, _)) = service.accept() {
                if stopping.load(Ordering::Relaxed) {
                    break;
                }
                answer(stream);
            }
        });
        let times = self.connect_times(lead, time);
        stop.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(self.path("service")));
        let _ = server.join();
        Sample::percentiles(times)
    }

    fn connect_times(&self, lead: Lead, time: Duration) -> Vec<Duration> {
        let forward = self.path(lead.entry());
        let attempt = |path: &Path| {
            let start = Instant::now();
            let mut stream = UnixStream::connect(path)?;
            stream.set_read_timeout(Some(PATIENCE))?;
            stream.write_all(b"?")?;
            stream.read_exact(&mut [0])?;
            Ok::<_, std::io::Error>(start.elapsed())
        };
        let (start, mut times) = (Instant::now(), Vec::new());
        while start.elapsed() < time {
            times.push(attempt(&forward).expect("an answer from the guest"));
        }
        times
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        for child in &mut self.children {
            let _ = child.kill();
            let _ = child.wait();
        }
        if thread::panicking() {
            for log in ["log", "agent-log"] {
                eprintln!("--- {log}\n{}---", fs::read_to_string(self.path(log)).unwrap_or_default());
            }
        }
    }
}
