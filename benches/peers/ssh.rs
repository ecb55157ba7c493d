//! A unix socket of the host that leads over SSH to a unix socket of the guest. Owns: an sshd in the guest's network,
//! its keys, and the service behind it, which sees the file system that this process sees. Read next: `tcp.rs`.

use std::fs::{self, File};
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use tempfile::TempDir;

use crate::measure::Sample;
use crate::support::ns::Namespace;
use crate::support::{eventually, tool};
use crate::tcp::answer;

/// The name of user 1, as whom sshd runs: root in a namespace of one user cannot become another one, which sshd insists on.
const USER: &str = "daemon";
/// A daemon that found no sshd waits a while before it looks again.
const FIRST: Duration = Duration::from_secs(60);
const PATIENCE: Duration = Duration::from_secs(10);

#[derive(Debug)]
pub(crate) struct Forward {
    service: UnixListener,
    sshd: Option<Child>,
    dir: TempDir,
}

impl Forward {
    /// Keys and the service. sshd waits for the guest.
    pub(crate) fn new() -> Self {
        let dir = tempfile::Builder::new().prefix("gvb").tempdir().expect("a temporary directory");
        for key in ["host", "id"] {
            let mut keygen = Command::new(tool("ssh-keygen", "openssh-client"));
            keygen.args(["-q", "-t", "ed25519", "-N", "", "-f"]).arg(dir.path().join(key));
            assert!(keygen.status().expect("ssh-keygen").success(), "ssh-keygen failed");
        }
        let service = UnixListener::bind(dir.path().join("service")).expect("the service's socket");
        Self { service, sshd: None, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// What makes gvproxy forward to it.
    pub(crate) fn flags(&self) -> Vec<String> {
        let path = |name| self.path(name).display().to_string();
        let flags = [
            ("-forward-sock", path("forward")),
            ("-forward-dest", path("service")),
            ("-forward-user", USER.to_owned()),
            ("-forward-identity", path("id")),
        ];
        flags.into_iter().flat_map(|(flag, value)| [flag.to_owned(), value]).collect()
    }

    /// Starts sshd in the guest and waits until the forward carries bytes.
    pub(crate) fn bring_up(&mut self, guest: &Namespace) {
        let path = |name| self.path(name).display().to_string();
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
        self.sshd = Some(sshd.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("sshd"));
        eventually("a first connection over SSH", FIRST, || self.pair(Duration::from_secs(5)));
    }

    /// A connection through the forward: the host's end and the guest's, between which a byte has gone each way.
    pub(crate) fn connect(&self) -> (UnixStream, UnixStream) {
        self.pair(PATIENCE).expect("a connection over SSH")
    }

    fn pair(&self, patience: Duration) -> Option<(UnixStream, UnixStream)> {
        let mut host = UnixStream::connect(self.path("forward")).ok()?;
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
    pub(crate) fn connect_time(&self, time: Duration) -> Sample {
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
        let times = self.connect_times(time);
        stop.store(true, Ordering::Relaxed);
        drop(UnixStream::connect(self.path("service")));
        let _ = server.join();
        Sample::percentiles(times)
    }

    fn connect_times(&self, time: Duration) -> Vec<Duration> {
        let forward = self.path("forward");
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
            times.push(attempt(&forward).expect("an answer over SSH"));
        }
        times
    }
}

impl Drop for Forward {
    fn drop(&mut self) {
        if let Some(sshd) = &mut self.sshd {
            let _ = sshd.kill();
            let _ = sshd.wait();
        }
        if thread::panicking() {
            eprintln!("--- sshd's log\n{}---", fs::read_to_string(self.path("log")).unwrap_or_default());
        }
    }
}
