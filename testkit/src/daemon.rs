//! The daemon under test. Owns: one child process and its temporary directory; both end with the guard.
//! May not: end a process that it did not start. Read next: `net.rs`, which puts a guest in front of it.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::Duration;

use rustix::process::{Pid, Signal, kill_process};

use crate::eventually;
use crate::process::Process;
use crate::program;

/// How long a daemon may take until its sockets are there.
const START: Duration = Duration::from_secs(10);
/// How long it may take to end after SIGTERM.
const END: Duration = Duration::from_secs(5);
/// Lines of its log that a failed test shows, of its beginning and of its end.
const SHOWN: usize = 40;

/// The binary under test: `GVPROXY` where it is set, so that the same tests run against the original.
pub fn binary() -> PathBuf {
    std::env::var_os("GVPROXY").map_or_else(|| program("gvproxy"), PathBuf::from)
}

/// Whether the tests run against another program than this project's.
pub fn is_peer() -> bool {
    std::env::var_os("GVPROXY").is_some()
}

/// How to start a [`Daemon`].
#[derive(Debug)]
pub struct Builder {
    binary: PathBuf,
    args: Vec<OsString>,
    env: Vec<(OsString, OsString)>,
    prefix: Vec<OsString>,
    qemu: bool,
    pipes: bool,
    input: Option<OwnedFd>,
    stderr: Option<OwnedFd>,
    descriptors: String,
}

impl Builder {
    /// Arguments after the ones that the guard passes itself. `{dir}` in one stands for [`Daemon::dir`].
    pub fn args<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, args: I) -> Self {
        self.args.extend(args.into_iter().map(|arg| arg.as_ref().to_owned()));
        self
    }

    /// A variable of the daemon's environment.
    pub fn env(mut self, key: impl AsRef<OsStr>, value: impl AsRef<OsStr>) -> Self {
        self.env.push((key.as_ref().to_owned(), value.as_ref().to_owned()));
        self
    }

    /// Another program than [`binary`].
    pub fn binary(mut self, binary: impl Into<PathBuf>) -> Self {
        self.binary = binary.into();
        self
    }

    /// A command that runs the daemon, which it must do by `exec`, so that the process stays the same.
    pub fn through<I: IntoIterator<Item = S>, S: AsRef<OsStr>>(mut self, prefix: I) -> Self {
        self.prefix = prefix.into_iter().map(|word| word.as_ref().to_owned()).collect();
        self
    }

    /// Leaves `-listen-qemu` to [`Self::args`].
    pub fn without_qemu(mut self) -> Self {
        self.qemu = false;
        self
    }

    /// Its standard input and output are for [`Daemon::take_pipes`].
    pub fn with_pipes(mut self) -> Self {
        self.pipes = true;
        self
    }

    /// Its standard input.
    pub fn input(mut self, input: impl Into<OwnedFd>) -> Self {
        self.input = Some(input.into());
        self
    }

    /// Its standard error, which [`Daemon::stderr`] then knows nothing of.
    pub fn stderr(mut self, stderr: impl Into<OwnedFd>) -> Self {
        self.stderr = Some(stderr.into());
        self
    }

    /// How many descriptors it may have, however it asks for more.
    pub fn descriptors(mut self, limit: usize) -> Self {
        self.descriptors = format!("{limit}:{limit}");
        self
    }

    /// Starts the daemon and waits until its QEMU socket is there.
    #[track_caller]
    pub fn start(self) -> Daemon {
        let wait = self.qemu;
        let mut daemon = self.spawn();
        if wait {
            let socket = daemon.qemu_socket();
            let ended = eventually("the QEMU socket", START, || {
                daemon.child.try_wait().expect("wait").map(Some).or_else(|| socket.exists().then_some(None))
            });
            assert!(ended.is_none(), "the daemon ended with {ended:?}");
        }
        daemon
    }

    /// Starts the daemon and waits for nothing.
    #[track_caller]
    pub fn spawn(self) -> Daemon {
        // A unix socket's path has 108 bytes at most, so a long TMPDIR is of no use.
        let temp = std::env::temp_dir();
        let temp = if temp.as_os_str().len() < 60 { temp.as_path() } else { Path::new("/tmp") };
        let root = tempfile::Builder::new().prefix("gv").tempdir_in(temp).expect("a temporary directory");
        let dir = root.path().join("d");
        std::fs::create_dir(&dir).expect("a directory");
        let log = File::create(root.path().join("stderr")).expect("a file for stderr");

        // The soft limit of a login shell, whatever this process gave itself: more is the daemon's to ask
        // for.
        let limit = [
            crate::tool("prlimit", "util-linux").into_os_string(),
            format!("--nofile={}", self.descriptors).into(),
        ];
        // Whoever runs the tests may have it ignored, as in the background of a script, and that is
        // inherited.
        let signals = ["env", "--default-signal=INT"].map(OsString::from);
        let words = signals.into_iter().chain(self.prefix).chain(limit);
        let mut words = words.chain([self.binary.clone().into_os_string()]);
        let mut command = Command::new(words.next().expect("a program"));
        command.args(words);
        if self.qemu {
            command.arg("-listen-qemu").arg(format!("unix://{}/qemu.sock", dir.display()));
        }
        let is_ssh_port =
            |arg: &OsString| arg.to_string_lossy().trim_start_matches('-').starts_with("ssh-port");
        if !self.args.iter().any(is_ssh_port) {
            command.args(["-ssh-port", "-1"]);
        }
        let placed = |arg: OsString| match arg.to_str() {
            Some(text) => text.replace("{dir}", &dir.to_string_lossy()).into(),
            None => arg,
        };
        command.args(self.args.into_iter().map(placed)).envs(self.env).current_dir(&dir);
        let pipe = || if self.pipes { Stdio::piped() } else { Stdio::null() };
        let input = self.input.map_or_else(pipe, Stdio::from);
        let stderr = self.stderr.map_or_else(|| Stdio::from(log), Stdio::from);
        command.stdin(input).stdout(pipe()).stderr(stderr);
        let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", self.binary.display()));
        Daemon { child, dir, root }
    }
}

/// A running daemon. Dropping it ends it; if the test has failed it shows what the daemon had to say.
#[derive(Debug)]
pub struct Daemon {
    child: Child,
    dir: PathBuf,
    root: tempfile::TempDir,
}

impl Daemon {
    /// A daemon with a QEMU socket, without the ssh port unless an argument asks for it.
    pub fn builder() -> Builder {
        Builder {
            binary: binary(),
            args: Vec::new(),
            env: Vec::new(),
            prefix: Vec::new(),
            qemu: true,
            pipes: false,
            input: None,
            stderr: None,
            descriptors: "1024:".to_owned(),
        }
    }

    /// Its working directory: empty but for what the daemon makes there.
    pub fn dir(&self) -> &Path {
        &self.dir
    }

    pub fn qemu_socket(&self) -> PathBuf {
        self.dir.join("qemu.sock")
    }

    /// The other ends of its standard output and input, once.
    #[track_caller]
    pub fn take_pipes(&mut self) -> (OwnedFd, OwnedFd) {
        let (output, input) = (self.child.stdout.take(), self.child.stdin.take());
        (output.expect("its output").into(), input.expect("its input").into())
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What it wrote to stderr so far.
    pub fn stderr(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.root.path().join("stderr")).unwrap_or_default())
            .into_owned()
    }

    /// The same once `text` is there: a line of the log is written behind what it tells.
    #[track_caller]
    pub fn log_with(&self, text: &str) -> String {
        eventually(&format!("{text:?} in the log"), START, || {
            Some(self.stderr()).filter(|log| log.contains(text))
        })
    }

    /// The port of a forward at `tcp://HOST:0`, as the log tells it.
    #[track_caller]
    pub fn tcp_port(&mut self, host: &str) -> u16 {
        let start = format!("tcp://{host}:");
        let number =
            |text: &str| text.split(|c: char| !c.is_ascii_digit()).next().unwrap_or(text).parse().ok();
        eventually("a line that tells the port", START, || {
            assert!(self.is_running(), "the daemon has ended");
            let log = self.stderr();
            // The command line may be in the log too.
            log.split(start.as_str()).skip(1).filter_map(number).find(|port| *port != 0)
        })
    }

    /// Sends `signal` to the daemon itself.
    pub fn signal(&self, signal: Signal) {
        // An error means that it has ended already, which is what a caller finds out by waiting.
        let _ = kill_process(Pid::from_child(&self.child), signal);
    }

    /// SIGTERM, and how it ended.
    #[track_caller]
    pub fn terminate(&mut self) -> ExitStatus {
        self.signal(Signal::TERM);
        self.wait(END).unwrap_or_else(|| panic!("the daemon still runs {END:?} after SIGTERM"))
    }

    /// How it ended, if it does so within `patience`.
    pub fn wait(&mut self, patience: Duration) -> Option<ExitStatus> {
        let deadline = std::time::Instant::now() + patience;
        loop {
            if let Some(status) = self.child.try_wait().expect("wait") {
                return Some(status);
            }
            if std::time::Instant::now() >= deadline {
                return None;
            }
            std::thread::sleep(crate::LOOK_EVERY);
        }
    }

    /// Whether it is still there.
    pub fn is_running(&mut self) -> bool {
        self.child.try_wait().expect("wait").is_none()
    }

    /// Resident memory in KiB.
    pub fn rss_kb(&self) -> u64 {
        self.process().rss_kb()
    }

    /// The most that it was, in KiB.
    pub fn peak_rss_kb(&self) -> u64 {
        self.process().peak_rss_kb()
    }

    /// Processor time of all its threads, user and kernel, in seconds.
    pub fn cpu_seconds(&self) -> f64 {
        self.process().cpu_seconds()
    }

    /// Open descriptors.
    pub fn fds(&self) -> usize {
        self.process().fds()
    }

    /// How often its threads went to sleep so far: what an idle daemon must not add to.
    pub fn sleeps(&self) -> u64 {
        self.process().sleeps()
    }

    fn process(&self) -> Process {
        Process(self.pid())
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        self.signal(Signal::TERM);
        if self.wait(END).is_none() {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
        if std::thread::panicking() {
            let stderr = self.stderr();
            let lines: Vec<_> = stderr.lines().collect();
            let (first, rest) = lines.split_at(lines.len().min(SHOWN));
            let left_out = rest.len().saturating_sub(SHOWN);
            eprintln!("--- stderr of the daemon ---\n{}", first.join("\n"));
            if left_out > 0 {
                eprintln!("--- {left_out} lines left out ---");
            }
            eprintln!("{}\n---", rest[left_out..].join("\n"));
        }
    }
}
