//! A real Linux machine behind the daemon under test. Owns: one QEMU process, and what the host's
//! command-line programs need to reach the machine. May not: keep anything that the machine writes.
//! Read next: `tests/guest/build.sh`, which makes the machine, and `tests/guest/boot.sh`, which starts it.

use std::ffi::OsString;
use std::fs::File;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

use crate::daemon::Daemon;
use crate::{eventually, free_port, tool, workspace};

/// From power on to a login; an emulated machine on an idle host takes 12 s.
pub const BOOT: Duration = Duration::from_secs(180);
/// One command: a machine under emulation is slow, and the host may be busy.
const COMMAND: Duration = Duration::from_secs(300);

/// One machine at a time: two of them emulated would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

pub fn cache() -> PathBuf {
    workspace().join("tests/guest/cache")
}

/// The private key that the machine's users core and root accept.
pub fn identity() -> PathBuf {
    cache().join("id_ed25519")
}

/// A container image in a tar file: `localhost/busybox:test`.
pub fn image() -> PathBuf {
    cache().join("busybox.tar")
}

/// Says on the terminal what a long test is at, and how long each step took.
pub fn step<T>(what: &str, work: impl FnOnce() -> T) -> T {
    let start = Instant::now();
    let done = work();
    note(&format!("{what} ({:.1} s)", start.elapsed().as_secs_f64()));
    done
}

/// Says something on the terminal, past the harness, which would keep it until the end.
pub fn note(what: &str) {
    let _ = writeln!(std::io::stderr(), "    vm: {what}");
}

/// The daemon with one machine on its QEMU socket; both end with it.
#[derive(Debug)]
pub struct Vm {
    /// What [`Self::power_on`] starts: takes more arguments of QEMU, and variables of boot.sh.
    pub boot: Command,
    qemu: Option<Child>,
    files: tempfile::TempDir,
    pub daemon: Daemon,
    pub ssh_port: u16,
    _alone: MutexGuard<'static, ()>,
}

/// One more machine on a daemon's QEMU socket; ends with this.
#[derive(Debug)]
pub struct Neighbour {
    qemu: Child,
    files: tempfile::TempDir,
}

impl Neighbour {
    /// Starts it with this hardware address.
    #[track_caller]
    pub fn power_on(daemon: &Daemon, mac: &str) -> Self {
        let files = tempfile::tempdir().expect("a temporary directory");
        let mut boot = boot(daemon, files.path());
        Self { qemu: start(boot.env("MAC", mac), files.path()), files }
    }

    /// Sends its QEMU a signal.
    #[track_caller]
    pub fn signal(&self, signal: Signal) {
        kill_process(Pid::from_child(&self.qemu), signal).expect("a QEMU that runs");
    }
}

impl Drop for Neighbour {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        end(self.files.path());
    }
}

/// What starts a machine on the daemon's QEMU socket that has its console in `files`.
fn boot(daemon: &Daemon, files: &Path) -> Command {
    let mut boot = Command::new(workspace().join("tests/guest/boot.sh"));
    boot.arg(daemon.qemu_socket()).arg(files.join("console"));
    boot
}

#[track_caller]
fn start(boot: &mut Command, files: &Path) -> Child {
    let log = File::create(files.join("qemu")).expect("a file for QEMU's stderr");
    boot.stdin(Stdio::null()).stdout(Stdio::null()).stderr(log).spawn().expect("tests/guest/boot.sh")
}

/// What a machine left in `files`: is shown where the test failed, and looked at where it did not.
#[track_caller]
fn end(files: &Path) {
    if !std::thread::panicking() {
        return assert_unharmed(&files.join("console"));
    }
    for name in ["console", "qemu"] {
        let text = std::fs::read(files.join(name)).unwrap_or_default();
        let tail = text.len().saturating_sub(4000);
        eprintln!("--- {name} ---\n{}", String::from_utf8_lossy(&text[tail..]));
    }
}

/// Which sockets of the machine the daemon brings to the host: name on the host, user, path in the machine.
const FORWARDS: [(&str, &str, &str); 3] = [
    ("podman.sock", "core", "/run/user/1000/podman/podman.sock"),
    ("podman-root.sock", "root", "/run/podman/podman.sock"),
    ("echo.sock", "core", "/run/echo.sock"),
];

impl Vm {
    /// The daemon with every forward of this file, and no machine yet.
    #[track_caller]
    pub fn off() -> Self {
        let mut args = Vec::new();
        for (socket, user, dest) in FORWARDS {
            let words = ["-forward-sock", socket, "-forward-dest", dest, "-forward-user", user];
            args.extend(words.map(OsString::from));
            args.extend(["-forward-identity".into(), identity().into()]);
        }
        Self::with(free_port(), args)
    }

    /// The daemon with this port for the machine's sshd and these arguments, and no machine yet.
    #[track_caller]
    pub fn with(ssh_port: u16, args: impl IntoIterator<Item = OsString>) -> Self {
        tool("qemu-system-x86_64", "qemu-system-x86");
        assert!(cache().join("trixie/stamp").exists(), "this test needs a machine to boot: run `make guest`");
        let alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
        let daemon = Daemon::builder()
            .args(["-ssh-port", &ssh_port.to_string(), "-pid-file", "gvproxy.pid"])
            .args(args)
            .start();
        let files = tempfile::tempdir().expect("a temporary directory");
        let boot = boot(&daemon, files.path());
        Self { boot, qemu: None, files, daemon, ssh_port, _alone: alone }
    }

    /// Starts the machine and waits for its sshd.
    #[track_caller]
    pub fn power_on(&mut self) {
        self.qemu = Some(start(&mut self.boot, self.files.path()));
        self.wait_for_sshd();
    }

    /// Waits until sshd greets on the forwarded port.
    #[track_caller]
    pub fn wait_for_sshd(&mut self) {
        eventually("a greeting of the machine's sshd", BOOT, || {
            let qemu = self.qemu.as_mut().expect("a machine that was started");
            assert_eq!(qemu.try_wait().expect("wait"), None, "QEMU has ended");
            // sshd shuts out whoever leaves too often without a login, as who has no patience with a busy
            // host would.
            sshd_greets(self.ssh_port, Duration::from_secs(5)).then_some(())
        });
    }

    /// Waits until sshd does not greet any more.
    #[track_caller]
    pub fn wait_for_no_sshd(&self) {
        // One that only takes its time on a busy host is still there.
        let limit = Duration::from_secs(5);
        eventually("the end of the machine's sshd", BOOT, || {
            // sshd shuts out whoever connects too often without a login.
            std::thread::sleep(Duration::from_millis(500));
            (!sshd_greets(self.ssh_port, limit)).then_some(())
        });
    }

    /// A host socket of the daemon, by its name in FORWARDS.
    pub fn socket(&self, name: &str) -> PathBuf {
        self.daemon.dir().join(name)
    }

    /// The same as podman and docker want it.
    pub fn url(&self, name: &str) -> String {
        format!("unix://{}", self.socket(name).display())
    }

    /// Runs `script` in the machine through the ssh port and gives what it printed.
    #[track_caller]
    pub fn ssh(&self, user: &str, script: &str) -> String {
        output(self.ssh_command(user, script))
    }

    /// Has `script` run as root in the machine once this login is over, which it may make impossible.
    #[track_caller]
    pub fn ssh_later(&self, script: &str) {
        self.ssh("root", &format!("systemd-run --quiet --no-block sh -c 'sleep 1; {script}'"));
    }

    /// Starts `script` in the machine through the ssh port.
    #[track_caller]
    pub fn ssh_talk(&self, user: &str, script: &str) -> Talk {
        Talk::start(self.ssh_command(user, script), format!("ssh {user} {script}"))
    }

    #[track_caller]
    fn ssh_command(&self, user: &str, script: &str) -> Command {
        ssh_command(self.ssh_port, user, script)
    }

    /// Waits for the end of QEMU, whose machine has been told to power off.
    #[track_caller]
    pub fn wait_for_power_off(&mut self) -> ExitStatus {
        let qemu = self.qemu.as_mut().expect("a machine that was started");
        eventually("the end of QEMU", BOOT, || qemu.try_wait().expect("wait"))
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        if let Some(qemu) = &mut self.qemu {
            // Already ended is as good.
            let _ = kill_process(Pid::from_child(qemu), Signal::KILL);
            let _ = qemu.wait();
        }
        end(self.files.path());
    }
}

/// Fails where the machine's kernel panicked: it starts again, but for one reason only, which is QEMU's
/// (`tests/guest/boot.sh`).
#[track_caller]
pub fn assert_unharmed(console: &Path) {
    let said = std::fs::read(console).unwrap_or_default();
    let said = String::from_utf8_lossy(&said);
    assert!(!said.contains("Kernel panic") || said.contains("Oops: int3"), "{said}");
}

/// Copies a program of the host into root's home, without what only a debugger reads, and with the libraries
/// that it was linked with: the machine's may be older.
#[track_caller]
pub fn install(port: u16, program: &Path) {
    const LIBRARIES: &str = "/usr/local/lib/of-the-host";
    let name = program.file_name().expect("a name").to_string_lossy();
    let files = tempfile::tempdir().expect("a directory");
    let (own, archive) = (files.path().join(&*name), files.path().join("archive"));
    let mut strip = limited("strip", "binutils");
    strip.arg("-o").args([&own, program]);
    output(strip);
    let mut ldd = limited("ldd", "libc-bin");
    ldd.arg(program);
    let linked = output(ldd);
    let libraries: Vec<_> = linked.split_whitespace().filter(|word| word.starts_with('/')).collect();
    let is_loader = |path: &&&str| path.rsplit('/').next().is_some_and(|name| name.starts_with("ld-"));
    let loader = libraries.iter().find(is_loader).expect("a loader").rsplit('/').next().expect("its name");
    let mut patchelf = limited("patchelf", "patchelf");
    patchelf.args(["--set-interpreter", &format!("{LIBRARIES}/{loader}"), "--set-rpath", LIBRARIES]);
    patchelf.arg(&own);
    output(patchelf);
    let mut tar = limited("tar", "tar");
    tar.args(["-chf", &archive.to_string_lossy(), "--transform", "s,.*/,,", "--absolute-names"]);
    tar.args(&libraries).arg(&own);
    output(tar);

    let script = format!("mkdir -p {LIBRARIES} && tar -xf - -C {LIBRARIES} && mv {LIBRARIES}/{name} .");
    let mut ssh = ssh_command(port, "root", &script);
    let copied = ssh.stdin(File::open(archive).expect("the archive")).status().expect("ssh");
    assert!(copied.success(), "{name} into the machine: {copied}");
}

/// Runs `script` in the machine whose sshd is behind `port` of the host.
#[track_caller]
pub fn ssh_command(port: u16, user: &str, script: &str) -> Command {
    let mut ssh = limited("ssh", "openssh-client");
    ssh.arg("-i").arg(identity()).args(["-p", &port.to_string()]);
    for option in
        ["BatchMode=yes", "StrictHostKeyChecking=no", "UserKnownHostsFile=/dev/null", "LogLevel=ERROR"]
    {
        ssh.args(["-o", option]);
    }
    ssh.args([&format!("{user}@127.0.0.1"), script]);
    ssh
}

/// Whether an sshd answers on this port of the host, in this time.
pub fn sshd_greets(port: u16, limit: Duration) -> bool {
    let address = SocketAddr::from((Ipv4Addr::LOCALHOST, port));
    let greeting = TcpStream::connect_timeout(&address, limit).and_then(|mut stream| {
        let mut greeting = [0; 8];
        stream.set_read_timeout(Some(limit))?;
        stream.read_exact(&mut greeting).map(|()| greeting)
    });
    let greets = greeting.is_ok_and(|greeting| &greeting == b"SSH-2.0-");
    if !greets {
        // A refusal comes at once, and a machine that boots has better to do than to refuse all the time.
        std::thread::sleep(Duration::from_millis(50));
    }
    greets
}

/// The body of the answer to a GET on a unix socket: empty where the socket was closed without an answer.
pub fn http_get(socket: &Path, path: &str, patience: Duration) -> std::io::Result<String> {
    let mut stream = UnixStream::connect(socket)?;
    stream.set_read_timeout(Some(patience))?;
    stream.write_all(format!("GET {path} HTTP/1.0\r\nHost: d\r\n\r\n").as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer.split_once("\r\n\r\n").map_or_else(String::new, |(_, body)| body.to_owned()))
}

/// A program that ends by itself: a test that hangs must fail instead.
#[track_caller]
fn limited(program: &str, package: &str) -> Command {
    limited_to(COMMAND, program, package)
}

#[track_caller]
fn limited_to(limit: Duration, program: &str, package: &str) -> Command {
    let mut command = Command::new("timeout");
    command.args(["--kill-after=5", &limit.as_secs().to_string()]).arg(tool(program, package));
    command
}

/// Runs a command that must succeed, and gives what it wrote to stdout.
#[track_caller]
pub fn output(command: Command) -> String {
    String::from_utf8_lossy(&output_bytes(command)).trim_end().to_owned()
}

#[track_caller]
fn output_bytes(mut command: Command) -> Vec<u8> {
    let output = command.stdin(Stdio::null()).output().expect("timeout, of coreutils");
    let shown = |bytes: &[u8]| String::from_utf8_lossy(&bytes[..bytes.len().min(4000)]).into_owned();
    let (stdout, stderr) = (shown(&output.stdout), shown(&output.stderr));
    assert!(output.status.success(), "{command:?}: {}\n{stdout}{stderr}", output.status);
    output.stdout
}

/// A container program of the host that talks to the machine's podman at a URL.
#[derive(Debug)]
pub struct Client {
    program: Program,
    url: String,
    limit: Duration,
    /// Neither the settings nor the known hosts of whoever runs the test. podman has to have `.ssh` in it.
    home: tempfile::TempDir,
}

#[derive(Debug)]
enum Program {
    /// `podman --url URL`
    Podman,
    /// `docker --host URL`
    Docker,
}

impl Client {
    pub fn podman(url: impl Into<String>) -> Self {
        Self::new(Program::Podman, url.into())
    }

    pub fn docker(url: impl Into<String>) -> Self {
        Self::new(Program::Docker, url.into())
    }

    fn new(program: Program, url: String) -> Self {
        let home = tempfile::tempdir().expect("a temporary directory");
        Self { program, url, limit: COMMAND, home }
    }

    /// Gives each of its commands as long.
    pub fn limit(self, limit: Duration) -> Self {
        Self { limit, ..self }
    }

    pub fn name(&self) -> &'static str {
        match self.program {
            Program::Podman => "podman",
            Program::Docker => "docker",
        }
    }

    #[track_caller]
    fn command(&self, args: &[&str]) -> Command {
        let mut command = match self.program {
            Program::Podman => limited_to(self.limit, "podman", "podman"),
            Program::Docker => limited_to(self.limit, "docker", "docker-cli (docker.io before Debian 13)"),
        };
        command.env("HOME", self.home.path());
        match self.program {
            Program::Podman => command.env("CONTAINER_SSHKEY", identity()).args(["--url", &self.url]),
            Program::Docker => command.env_remove("DOCKER_CONFIG").args(["--host", &self.url]),
        };
        command.args(args);
        command
    }

    /// Runs it to its end, which must be a success, and gives what it printed.
    #[track_caller]
    pub fn run(&self, args: &[&str]) -> String {
        output(self.command(args))
    }

    /// The same for an output that is no text.
    #[track_caller]
    pub fn run_for_bytes(&self, args: &[&str]) -> Vec<u8> {
        output_bytes(self.command(args))
    }

    /// Starts it, to talk with it.
    #[track_caller]
    pub fn talk(&self, args: &[&str]) -> Talk {
        Talk::start(self.command(args), format!("{} {}", self.name(), args.join(" ")))
    }
}

/// A running program with both its standard streams in the test's hands. Ends it when dropped.
#[derive(Debug)]
pub struct Talk {
    what: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: ChildStdout,
}

impl Talk {
    #[track_caller]
    fn start(mut command: Command, what: String) -> Self {
        command.stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("timeout, of coreutils");
        let stdin = child.stdin.take();
        let stdout = child.stdout.take().expect("a pipe");
        Self { what, child, stdin, stdout }
    }

    /// Writes to its stdin.
    #[track_caller]
    pub fn say(&mut self, text: &str) {
        self.stdin.as_mut().expect("an open stdin").write_all(text.as_bytes()).expect("stdin");
    }

    /// Reads exactly `text` from its stdout; the limit of the command is the limit of the wait.
    #[track_caller]
    pub fn hear(&mut self, text: &str) {
        let mut heard = Vec::new();
        let _ = self.stdout.by_ref().take(text.len() as u64).read_to_end(&mut heard);
        assert_eq!(String::from_utf8_lossy(&heard), text, "stdout of {}", self.what);
    }

    /// Closes its stdin, upon which it must end well and without another word.
    #[track_caller]
    pub fn finish(mut self) {
        drop(self.stdin.take());
        let mut rest = String::new();
        self.stdout.read_to_string(&mut rest).expect("stdout");
        assert_eq!(rest, "", "stdout of {} at its end", self.what);
        let status = self.child.wait().expect("wait");
        assert!(status.success(), "{}: {status}", self.what);
    }
}

impl Drop for Talk {
    fn drop(&mut self) {
        // `timeout` hands SIGTERM on to the program; both are gone already after `finish`.
        if self.child.try_wait().expect("wait").is_none() {
            let _ = kill_process(Pid::from_child(&self.child), Signal::TERM);
            let _ = self.child.wait();
        }
    }
}

/// Bytes without a pattern, the same in every run.
#[derive(Debug)]
pub struct Noise(u64);

impl Default for Noise {
    fn default() -> Self {
        Self(0x9e37_79b9_7f4a_7c15)
    }
}

impl Noise {
    /// The next ones; a length that 8 does not divide wastes some.
    pub fn fill(&mut self, bytes: &mut [u8]) {
        for word in bytes.chunks_mut(8) {
            self.0 ^= self.0 << 13;
            self.0 ^= self.0 >> 7;
            self.0 ^= self.0 << 17;
            word.copy_from_slice(&self.0.to_le_bytes()[..word.len()]);
        }
    }
}
