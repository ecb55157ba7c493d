//! The command line through the binary: grammar, texts, exit codes, and what is left behind.
//!
//! What the original has as well is in `parity`; this is what only ours does.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper fails like the test"
)]

use std::fs;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// No run here takes longer, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");

/// A directory to run in, with a key and a file that is no socket. `@` in a command line stands for its path.
struct Bench {
    dir: tempfile::TempDir,
    binary: String,
}

/// What a run said and how it ended; `@` stands for the directory again.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new(binary: impl Into<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["key", "file"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        Self { dir, binary: binary.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `key` a private key that a daemon takes.
    fn make_key(&self) {
        fs::remove_file(self.path("key")).unwrap();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.path("key"))
            .status()
            .expect("ssh-keygen, from Debian's openssh-client (tests/install.sh test)");
        assert!(made.success());
    }

    fn at(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn start(&self, line: &str) -> Daemon {
        let mut command = Command::new(&self.binary);
        command
            .args(line.replace('@', self.at()).split_whitespace())
            .current_dir(self.dir.path())
            .env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Daemon::of(command.spawn().unwrap())
    }

    fn run(&self, line: &str) -> Ran {
        let output = self.start(line).end(line);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(self.at(), "@");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs `line`, which must fail with `code`, leave nothing behind, and say `text` in its only line of
    /// log.
    fn fails(&self, line: &str, code: i32, text: &str) {
        let before = self.files();
        let ran = self.run(line);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{line}: {ran:#?}");
        let lines: Vec<_> = ran.stderr.lines().filter(|line| !line.contains(" level=info ")).collect();
        assert!(matches!(lines[..], [only] if only.contains(text)), "{line}: want {text:?}, got {ran:#?}");
        assert_eq!(self.files(), before, "{line} leaves something behind");
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// A running daemon; dropping kills it.
struct Daemon {
    pid: Pid,
    output: mpsc::Receiver<Output>,
    ended: bool,
}

impl Daemon {
    fn of(child: Child) -> Self {
        let pid = Pid::from_child(&child);
        let (send, output) = mpsc::channel();
        thread::spawn(move || send.send(child.wait_with_output().unwrap()));
        Self { pid, output, ended: false }
    }

    fn end(mut self, what: &str) -> Output {
        let output = self.output.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: still running"));
        self.ended = true;
        output
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits until `done`, for as long as the daemon lives.
    fn eventually(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            if let Ok(output) = self.output.try_recv() {
                self.ended = true;
                panic!("{what}: the daemon ended: {output:#?}");
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

mod ours {
    use super::*;

    #[test]
    fn a_bad_configuration_is_one_line_and_exit_1() {
        let bench = Bench::new(OURS);
        let _live = UnixListener::bind(bench.path("live")).unwrap();
        let long = "x".repeat(108);
        let forward = "-forward-dest /d -forward-user u -forward-identity @/key";
        for (line, text) in [
            ("-mtu 65536", "mtu is out of range: 65536"),
            (&format!("-forward-sock /{long} {forward}"), "is too long: 109 bytes, the limit is 107"),
            (&format!("-qmp unix:///{long}"), "is too long: 109 bytes, the limit is 107"),
            (&format!("-forward-sock @/live {forward}"), r#"\"@/live\" already exists and is in use"#),
            (&format!("-forward-sock @/s {forward} -forward-sock @/s {forward}"), "given twice"),
            ("-forward-sock @/s -forward-dest d", "not an absolute path, which it is without -forward-user"),
            ("-agent-port 65536", "agent-port value must be between 1 and 65535"),
            (
                "-forward-sock @/s -forward-dest /d -forward-user u -forward-identity @",
                r#"identity file \"@\" can't be loaded: read @: is a directory"#,
            ),
            (
                "-forward-sock @/s -forward-dest /d -forward-user u -forward-identity /dev/null",
                r#"identity file \"/dev/null\" can't be loaded: /dev/null is not a regular file"#,
            ),
            ("-pid-file @", "level=error msg=\"failed to create pidfile: open @: is a directory\""),
        ] {
            bench.fails(line, 1, text);
        }
        assert_eq!(fs::read(bench.path("file")).unwrap(), b"file");
    }

    #[test]
    fn times_carry_the_local_offset() {
        let bench = Bench::new(OURS);
        let output = Command::new(OURS).args(["-ssh-port", "80"]).env("TZ", "XYZ-2").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("+02:00\" level=fatal"), "{stderr}");
        assert!(bench.run("-ssh-port 80").stderr.contains("Z\" level=fatal"));
    }

    #[test]
    fn the_socket_of_a_dead_predecessor_is_replaced() {
        let bench = Bench::new(OURS);
        bench.make_key();
        for name in ["q", "s"] {
            drop(UnixListener::bind(bench.path(name)).unwrap());
        }
        let mut daemon = bench.start(
            "-ssh-port -1 -listen-qemu unix://@/q \
             -forward-sock @/s -forward-dest /d -forward-user u -forward-identity @/key",
        );
        let mut vm = None;
        daemon.eventually("a new socket for the VM", || {
            vm = UnixStream::connect(bench.path("q")).ok();
            vm.is_some()
        });
        daemon.eventually("a new socket for clients", || UnixStream::connect(bench.path("s")).is_ok());
        daemon.signal(Signal::TERM);
        let output = daemon.end("after the signal, with an idle VM");
        assert_eq!(output.status.code(), Some(0), "{output:#?}");
        assert!(!bench.path("q").exists() && !bench.path("s").exists(), "{:?}", bench.files());
    }
}
