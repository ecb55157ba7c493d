//! A real machine that boots without a network, and gets one from a daemon that knows its QMP socket and
//! nothing else.
#![allow(clippy::expect_used, clippy::print_stderr, reason = "a test fails by panic")]

use std::fs::{self, File};
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::json;
use testkit::daemon::{Builder, Daemon};
use testkit::qemu::Monitor;
use testkit::vm;
use testkit::vm::{BOOT, http_get, sshd_greets, step};
use testkit::{eventually, free_port, tool};

testkit::agent_in_a_namespace!();

const PING: &str = "/v4.0.0/libpod/_ping";
/// The socket of the podman in the machine.
const PODMAN: &str = "/run/user/1000/podman/podman.sock";
/// How soon a network must be back that was there before.
const BACK: Duration = Duration::from_secs(5);
/// How long sshd may take to greet.
const GREETING: Duration = Duration::from_secs(1);
const PATIENCE: Duration = Duration::from_secs(60);

/// One machine at a time: two of them emulated would measure each other.
static ALONE: Mutex<()> = Mutex::new(());

/// The machine without a network card. Killed when dropped.
struct Machine {
    qemu: Child,
    monitor: Monitor,
    dir: tempfile::TempDir,
    ssh_port: u16,
}

impl Machine {
    #[track_caller]
    fn boot() -> Self {
        Self::boot_in(directory(), free_port())
    }

    /// The same with its sockets in `dir`, and a port of the host for its sshd.
    #[track_caller]
    fn boot_in(dir: tempfile::TempDir, ssh_port: u16) -> Self {
        let qemu = start(dir.path());
        let monitor = Monitor::connect(&dir.path().join("q.test"));
        Self { qemu, monitor, dir, ssh_port }
    }

    /// Kills QEMU and starts another in its place.
    #[track_caller]
    fn kill_and_boot(&mut self) {
        self.qemu.kill().expect("a QEMU that runs");
        self.qemu.wait().expect("its end");
        for file in ["console", "q.test"] {
            fs::remove_file(self.path(file)).expect("what the old one left");
        }
        self.qemu = start(self.dir.path());
        self.monitor = Monitor::connect(&self.path("q.test"));
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// The end of the boot, as the console shows it.
    #[track_caller]
    fn wait_for_login(&self) {
        eventually("a login prompt", BOOT, || {
            String::from_utf8_lossy(&fs::read(self.path("console")).ok()?).contains("login:").then_some(())
        });
    }

    /// A daemon that is told of the machine in this way.
    fn daemon(&self, flag: &str) -> Builder {
        daemon(self.dir.path(), self.ssh_port, flag)
    }

    /// Waits for the machine's sshd, and gives the time that it took.
    #[track_caller]
    fn reached(&self, patience: Duration) -> Duration {
        let start = Instant::now();
        eventually("a greeting of the machine's sshd", patience, || {
            sshd_greets(self.ssh_port, GREETING).then_some(())
        });
        start.elapsed()
    }

    /// Has the machine serve podman's socket to the host.
    #[track_caller]
    fn start_agent(&self) {
        vm::install(self.ssh_port, Path::new(env!("CARGO_BIN_EXE_gvforwarder")));
        self.ssh(&format!("systemd-run --quiet --unit agent /root/gvforwarder -agent -agent-allow {PODMAN}"));
    }

    /// Runs `script` in the machine.
    #[track_caller]
    fn ssh(&self, script: &str) -> String {
        vm::output(vm::ssh_command(self.ssh_port, "root", script))
    }

    fn network(&mut self) -> String {
        let text = self.monitor.execute("human-monitor-command", json!({"command-line": "info network"}));
        text.as_str().expect("a text").to_owned()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
        if std::thread::panicking() {
            for name in ["console", "qemu"] {
                let text = fs::read(self.path(name)).unwrap_or_default();
                eprintln!(
                    "--- {name} ---\n{}",
                    String::from_utf8_lossy(&text[text.len().saturating_sub(2000)..])
                );
            }
        } else {
            vm::assert_unharmed(&self.path("console"));
        }
    }
}

/// QEMU with a machine that has no network card, and its sockets in `dir`: `q` for the daemon, `q.test` for
/// the test.
#[track_caller]
fn start(dir: &Path) -> Child {
    tool("qemu-system-x86_64", "qemu-system-x86");
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let disk = root.join("tests/guest/cache/trixie/root.img");
    assert!(disk.exists(), "this test needs a machine to boot: run `make guest`");
    let qmp = |name: &str| format!("unix:{},server=on,wait=off", dir.join(name).display());
    Command::new(root.join("tests/guest/boot.sh"))
        .arg("-")
        .arg(dir.join("console"))
        .args(["-smp", "2", "-m", "1536", "-device", "virtio-blk-pci,drive=root", "-drive"])
        .arg(format!("file={},format=raw,if=none,id=root,snapshot=on,cache=unsafe", disk.display()))
        .args(["-device", "pcie-root-port,id=hot0,chassis=1", "-qmp", &qmp("q"), "-qmp", &qmp("q.test")])
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(File::create(dir.join("qemu")).expect("a file"))
        .spawn()
        .expect("tests/guest/boot.sh")
}

fn directory() -> tempfile::TempDir {
    tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").expect("a directory")
}

/// A daemon that is told of the QMP socket `q` in `dir` by `flag`, and forwards podman's socket by way of the
/// machine's agent.
fn daemon(dir: &Path, ssh_port: u16, flag: &str) -> Builder {
    let qmp = format!("unix://{}/q", dir.display());
    Daemon::builder().without_qemu().args([flag, &qmp, "-ssh-port", &ssh_port.to_string(), "-debug"]).args([
        "-forward-sock",
        "{dir}/podman.sock",
        "-forward-dest",
        PODMAN,
    ])
}

#[test]
fn a_machine_without_a_network_gets_one_and_keeps_it() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let mut machine = Machine::boot();
    step("boot without a network", || machine.wait_for_login());
    assert_eq!(machine.network(), "");

    let mut daemon = machine.daemon("-qmp").spawn();
    let took = step("a network", || machine.reached(PATIENCE));
    vm::note(&format!("after {took:.1?}"));
    step("lease, names, traffic", || {
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
        let port = listener.local_addr().expect("an address").port();
        let received = std::thread::spawn(move || {
            let mut bytes = Vec::new();
            listener.accept().expect("the machine").0.read_to_end(&mut bytes).expect("its bytes");
            bytes.len()
        });
        let seen = machine.ssh(&format!(
            "ip -4 -brief address show scope global; getent ahostsv4 gateway.containers.internal; \
             head -c 3000000 /dev/zero | bash -c 'cat >/dev/tcp/192.168.127.254/{port}'"
        ));
        assert!(seen.contains("192.168.127.2/24") && seen.contains("192.168.127.1 "), "{seen}");
        assert_eq!(received.join().expect("the bytes"), 3_000_000);
    });
    step("_ping of podman without an agent: closed, and the log says what to start", || {
        let socket = daemon.dir().join("podman.sock");
        assert_eq!(http_get(&socket, PING, PATIENCE).expect("the end"), "");
        let said = format!("gvforwarder -agent -agent-allow {PODMAN}");
        eventually("the log", PATIENCE, || (daemon.stderr().matches(&said).count() == 1).then_some(()));
    });
    step("the agent", || machine.start_agent());
    step("_ping of podman", || ping(&daemon));

    step("stop, cont", || {
        machine.monitor.execute("stop", json!({}));
        machine.monitor.execute("cont", json!({}));
        machine.reached(BACK);
    });

    daemon.signal(Signal::KILL);
    daemon.wait(PATIENCE).expect("its end");
    let start = Instant::now();
    daemon = machine.daemon("-qmp").spawn();
    step("the daemon killed and started again", || machine.reached(PATIENCE));
    let took = start.elapsed();
    vm::note(&format!("back after {took:.1?}"));
    assert!(took < BACK.max(busy()), "{took:?}");
    assert_eq!(machine.network().matches("type=nic").count(), 1);
    step("_ping of podman", || ping(&daemon));

    step("QEMU killed, and another in its place", || {
        machine.kill_and_boot();
        machine.reached(BOOT);
    });
    assert_eq!(machine.network().matches("type=nic").count(), 1);
    step("its agent", || machine.start_agent());
    step("_ping of podman", || ping(&daemon));

    step("the card is taken out at the end of the daemon", || {
        assert!(daemon.terminate().success());
        assert_eq!(machine.network(), "", "{}", daemon.stderr());
        assert!(!daemon.stderr().contains("next reset"), "{}", daemon.stderr());
    });

    // The command line of a manager that knows no other socket.
    let mut daemon = machine.daemon("-listen-qemu").spawn();
    step("-listen-qemu names the QMP socket", || machine.reached(PATIENCE));
    step("_ping of podman", || ping(&daemon));
    step("QMP is free", || {
        Monitor::connect(&machine.path("q")).execute("system_reset", json!({}));
    });
    eventually("the end of the machine's sshd", PATIENCE, || {
        (!sshd_greets(machine.ssh_port, GREETING)).then_some(())
    });
    step("system_reset: the card is there in the next life", || machine.reached(BOOT));
    step("the run ends with its machine", || {
        machine.monitor.execute("quit", json!({}));
        let status = daemon.wait(PATIENCE).expect("the daemon runs on without its machine");
        assert!(status.success(), "{status}");
    });
}

/// QEMU takes over the path that the daemon listens at, as a manager's command lines have it.
#[test]
fn a_machine_that_takes_the_path_over_boots_with_a_network() {
    let _alone = ALONE.lock().unwrap_or_else(PoisonError::into_inner);
    let (dir, ssh_port) = (directory(), free_port());
    let mut daemon = daemon(dir.path(), ssh_port, "-listen-qemu").spawn();
    eventually("our socket", PATIENCE, || dir.path().join("q").exists().then_some(()));
    let mut machine = Machine::boot_in(dir, ssh_port);
    step("boot", || machine.reached(BOOT));
    step("the agent", || machine.start_agent());
    step("_ping of podman", || ping(&daemon));
    machine.monitor.execute("quit", json!({}));
    let status = daemon.wait(PATIENCE).expect("the daemon runs on without its machine");
    assert!(status.success(), "{status}");
}

/// The podman of the machine answers through the forwarded socket.
#[track_caller]
fn ping(daemon: &Daemon) {
    let socket = daemon.dir().join("podman.sock");
    eventually("an answer of podman", PATIENCE, || {
        http_get(&socket, PING, PATIENCE).is_ok_and(|body| body == "OK").then_some(())
    });
}

/// How long an emulated machine may take on a host where others want the processor too.
fn busy() -> Duration {
    let load = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    let load: f64 = load.split(' ').next().and_then(|load| load.parse().ok()).unwrap_or(0.0);
    let processors = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    BACK.mul_f64((load / processors as f64).max(1.0))
}
