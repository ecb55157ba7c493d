//! The command lines of machine managers that this machine cannot run, and what they do around them: wait for
//! files, connect at once, kill without a word, start again in what is left. A Linux stack stands for the
//! machine; podman itself is in `podman_machine.rs`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use rustix::process::Signal;
use testkit::cable::{Cable, datagrams};
use testkit::daemon::{Daemon, binary};
use testkit::guest::{Guest, MAC};
use testkit::net::{HOST, Host};
use testkit::ns::Namespace;
use testkit::traffic::{accept, transfer};
use testkit::{eventually, tool};

testkit::agent_in_a_namespace!();

/// For how long podman waits for the machine's socket, at least.
const PATIENCE: Duration = Duration::from_secs(15);
/// For how long it waits for the pid file.
const PID: Duration = Duration::from_secs(2);
/// How soon the ssh port has to take a connection.
const CONNECT: Duration = Duration::from_millis(10);
const SSH_PORT: u16 = 2222;

/// Who starts the daemon.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Provider {
    /// podman 5 on Linux.
    Qemu,
    /// podman 4 on Linux, which gives the daemon's socket and QEMU's monitor the same path.
    Qemu4,
    /// podman on macOS: vfkit, or krunkit with its greeting.
    Apple { greets: bool },
    /// podman on Windows; the guest links itself to `-listen`. A unix socket stands for Hyper-V's.
    HyperV,
}

/// A host with what a manager keeps from one start to the next.
struct Manager {
    provider: Provider,
    host: Host,
    files: tempfile::TempDir,
}

impl Manager {
    fn new(provider: Provider) -> Self {
        // macOS keeps these files in "Application Support".
        let files = tempfile::Builder::new().prefix("a manager's ").tempdir_in("/tmp").unwrap();
        let manager = Self { provider, host: Host::new("nameserver 127.0.0.1\n"), files };
        let keygen = Command::new(tool("ssh-keygen", "openssh-client"))
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(manager.file("key"))
            .status();
        assert!(keygen.unwrap().success());
        manager
    }

    fn file(&self, name: &str) -> PathBuf {
        self.files.path().join(name)
    }

    /// The socket that the machine is linked to.
    fn link(&self) -> PathBuf {
        self.file(if self.provider == Provider::Qemu4 { "qmp_m.sock" } else { "m-gvproxy.sock" })
    }

    /// The words after the program's name, in podman's order.
    fn args(&self) -> Vec<String> {
        let text = |name| self.file(name).display().to_string();
        let link = self.link().display().to_string();
        let listen = match self.provider {
            Provider::Qemu | Provider::Qemu4 => ["-listen-qemu".to_owned(), format!("unix://{link}")],
            Provider::Apple { .. } => ["-listen-vfkit".to_owned(), format!("unixgram://{link}")],
            Provider::HyperV => ["-listen".to_owned(), format!("unix://{link}")],
        };
        let forward = [
            ["-forward-sock".to_owned(), text("m-api.sock")],
            ["-forward-dest".to_owned(), "/run/user/1000/podman/podman.sock".to_owned()],
            ["-forward-user".to_owned(), "core".to_owned()],
            ["-forward-identity".to_owned(), text("key")],
        ];
        let (mtu, port) =
            (["-mtu".to_owned(), "1500".to_owned()], ["-ssh-port".to_owned(), SSH_PORT.to_string()]);
        let (pid, log) =
            (["-pid-file".to_owned(), text("gvproxy.pid")], ["-log-file".to_owned(), text("gvproxy.log")]);
        let mut words = match self.provider {
            Provider::Qemu4 => [&[listen, pid, port][..], &forward].concat(),
            Provider::HyperV => [&[listen, mtu, port][..], &forward, &[pid, log]].concat(),
            _ => [&[mtu, port, listen][..], &forward, &[pid, log]].concat(),
        }
        .concat();
        if self.provider == Provider::Qemu4 {
            words.push("--debug".to_owned());
        }
        words
    }

    /// Starts the daemon as the manager does, and waits for what it waits for.
    #[track_caller]
    fn start(&self) -> Daemon {
        if self.removes_link() {
            let _ = fs::remove_file(self.link());
        }
        let mut daemon =
            Daemon::builder().without_qemu().args(self.args()).through(self.host.prefix()).spawn();
        eventually("the machine's socket", PATIENCE, || {
            assert!(daemon.is_running(), "the daemon has ended: {}", daemon.stderr());
            fs::metadata(self.link()).is_ok_and(|file| file.file_type().is_socket()).then_some(())
        });
        let pid = eventually("the pid file", PID, || {
            fs::read_to_string(self.file("gvproxy.pid"))
                .ok()?
                .parse::<u32>()
                .ok()
                .filter(|pid| *pid == daemon.pid())
        });
        assert_eq!(pid, daemon.pid());
        // An old file says nothing: where podman leaves it there it connects until somebody answers.
        eventually("the ssh port takes a connection", PATIENCE, || match self.ssh() {
            Ok(_) => Some(()),
            Err(error) if self.removes_link() => panic!("the ssh port does not take a connection: {error}"),
            Err(_) => None,
        });
        let made = || fs::metadata(self.file("m-api.sock")).ok();
        let socket = eventually("the forward's socket", PATIENCE, made);
        assert_eq!(socket.permissions().mode() & 0o777, 0o600);
        daemon
    }

    /// Whether it removes the machine's socket before it starts the daemon.
    fn removes_link(&self) -> bool {
        !matches!(self.provider, Provider::Qemu4 | Provider::HyperV)
    }

    /// The machine's end of its link.
    #[track_caller]
    fn cable(&self) -> Cable {
        match self.provider {
            Provider::Apple { greets } => datagrams(&self.link(), &self.file("vfkit.sock"), greets).unwrap(),
            _ => eventually("a connection", PATIENCE, || UnixStream::connect(self.link()).ok()).into(),
        }
    }

    /// A connection to the ssh port, made at once whether there is a machine or not.
    fn ssh(&self) -> std::io::Result<TcpStream> {
        let socket = self.host.tcp();
        let at = SocketAddr::from((Ipv4Addr::LOCALHOST, SSH_PORT));
        socket.connect_timeout(&at.into(), CONNECT)?;
        Ok(socket.into())
    }

    /// Both ways to the machine's sshd, whose place `sshd` takes, and the machine's way to the host.
    #[track_caller]
    fn uses(&self, machine: &Namespace, sshd: &TcpListener) {
        let mut client = self.ssh().expect("a connection to the ssh port");
        client.write_all(b"SSH-test").unwrap();
        transfer(&client, &greeted(sshd, b"SSH-test"), 1 << 20);
        let _client = UnixStream::connect(self.file("m-api.sock")).unwrap();
        greeted(sshd, b"SSH-2.0-");
        talks(machine, &self.host);
    }

    /// Kills it as podman does, which leaves everything that it made.
    #[track_caller]
    fn kill(&self, mut daemon: Daemon) {
        daemon.signal(Signal::KILL);
        daemon.wait(PATIENCE).expect("the end of a killed process");
        for name in ["gvproxy.pid", "m-api.sock"] {
            assert!(self.file(name).exists(), "{name} is there after a kill");
        }
    }

    /// What the daemon made is gone.
    #[track_caller]
    fn assert_tidy(&self) {
        let mut left: Vec<_> =
            fs::read_dir(self.files.path()).unwrap().map(|file| file.unwrap().file_name()).collect();
        left.retain(|name| !["key", "key.pub", "gvproxy.log", "vfkit.sock"].iter().any(|kept| name == kept));
        if self.provider == Provider::Qemu4 {
            left.retain(|name| name != "qmp_m.sock");
        }
        assert!(left.is_empty(), "{left:?}");
    }
}

/// The next connection that begins with these bytes. One that was made before there was a machine may come in
/// front of it.
#[track_caller]
fn greeted(sshd: &TcpListener, greeting: &[u8; 8]) -> TcpStream {
    loop {
        let (mut stream, mut seen) = (accept(sshd), [0; 8]);
        if stream.read_exact(&mut seen).is_ok() && seen == *greeting {
            return stream;
        }
    }
}

/// Bytes from the machine to the host's loopback and back.
#[track_caller]
fn talks(machine: &Namespace, host: &Namespace) {
    let listener = host.listen("127.0.0.1:0".parse().unwrap());
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let inside = eventually("a connection to the host", PATIENCE, || machine.connect(to).ok());
    let outside = accept(&listener);
    transfer(&inside, &outside, 1 << 20);
    transfer(&outside, &inside, 1 << 20);
}

/// Starts machines one after the other: the first two are killed with their daemons, the last one leaves.
#[track_caller]
fn lives(provider: Provider) {
    let manager = Manager::new(provider);
    for round in 0..3 {
        let mut daemon = manager.start();
        let mut guest = Guest::start(manager.cable(), MAC, 1500);
        // QEMU's monitor, which takes the path over.
        let monitor = (provider == Provider::Qemu4).then(|| {
            fs::remove_file(manager.link()).unwrap();
            UnixListener::bind(manager.link()).unwrap()
        });
        let lease = guest.dhcp();
        assert_eq!(lease.ip(), Ipv4Addr::new(192, 168, 127, 2));
        if provider != Provider::Qemu4 {
            assert_eq!(lease.option("mtu"), "1500");
        }
        let sshd = guest.listen("0.0.0.0:22".parse().unwrap());
        manager.uses(&guest, &sshd);
        if round < 2 {
            manager.kill(daemon);
            guest.switch_off();
            if round == 0 {
                // podman does so, unless it is killed itself.
                fs::remove_file(manager.file("gvproxy.pid")).unwrap();
            }
            continue;
        }
        guest.switch_off();
        if matches!(provider, Provider::Apple { .. }) {
            // This process, which has the other end, goes on; vfkit's would end. So it takes a frame that
            // finds nobody.
            let _ = manager.host.connect((Ipv4Addr::LOCALHOST, SSH_PORT).into());
        }
        let status = daemon.wait(PATIENCE).expect("the daemon ends with its machine");
        assert!(status.success(), "{status}");
        manager.assert_tidy();
        if monitor.is_some() {
            UnixStream::connect(manager.link()).expect("the monitor's socket is not the daemon's to remove");
        }
    }
}

#[test]
fn podman_5_with_qemu() {
    lives(Provider::Qemu);
}

#[test]
fn podman_4_with_qemu() {
    lives(Provider::Qemu4);
}

#[test]
fn podman_with_vfkit() {
    lives(Provider::Apple { greets: false });
}

#[test]
fn podman_with_krunkit() {
    lives(Provider::Apple { greets: true });
}

/// gvforwarder in a guest. Ends with the guard.
struct Forwarder(Child, PathBuf);

impl Forwarder {
    fn start(guest: &Namespace, args: &[&str], log: PathBuf) -> Self {
        let stderr = File::create(&log).unwrap();
        let program = env!("CARGO_BIN_EXE_gvforwarder");
        Self(guest.command(program).args(args).stdin(Stdio::null()).stderr(stderr).spawn().unwrap(), log)
    }

    fn kill(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        self.kill();
        if std::thread::panicking() {
            eprintln!(
                "--- stderr of gvforwarder ---\n{}---",
                fs::read_to_string(&self.1).unwrap_or_default()
            );
        }
    }
}

#[test]
fn podman_with_hyper_v() {
    let manager = Manager::new(Provider::HyperV);
    let mut daemon = manager.start();
    let guest = Namespace::new();
    let vsock0 = |words: &[&str]| {
        assert!(guest.command("ip").args(words).status().unwrap().success(), "ip {words:?}");
    };
    // What NetworkManager makes of its settings for vsock0.
    vsock0(&["tuntap", "add", "vsock0", "mode", "tap"]);
    vsock0(&["link", "set", "vsock0", "address", MAC, "up"]);
    vsock0(&["addr", "add", "192.168.127.2/24", "dev", "vsock0"]);
    let url = format!("unix://{}", manager.link().display());
    let args = ["-preexisting", "-iface", "vsock0", "-url", &url];
    let mut forwarder = Forwarder::start(&guest, &args, manager.file("gvforwarder.log"));
    let sshd = guest.listen("0.0.0.0:22".parse().unwrap());
    for _ in 0..2 {
        talks(&guest, &manager.host);
        manager.uses(&guest, &sshd);
        manager.kill(daemon);
        daemon = manager.start();
    }
    talks(&guest, &manager.host);
    // The guest's link is not the daemon's own: it goes on, and is ended when the machine is.
    forwarder.kill();
    eventually("the end of the link", PATIENCE, || {
        fs::read_to_string(manager.file("gvproxy.log")).unwrap().contains("machine left").then_some(())
    });
    assert!(daemon.is_running());
    assert!(daemon.terminate().success());
    fs::remove_file(manager.file("gvforwarder.log")).unwrap();
    manager.assert_tidy();
}

#[test]
fn podman_with_wsl() {
    // The guest and the daemon share a machine here; the daemon is the guest's child.
    let (guest, dir) = (Namespace::new(), tempfile::tempdir().unwrap());
    let resolv_conf = dir.path().join("resolv.conf");
    fs::write(&resolv_conf, "nameserver 127.0.0.1\n").unwrap();
    guest.run(["mount", "--bind", &resolv_conf.display().to_string(), "/etc/resolv.conf"]);
    let url = format!("stdio:{}?listen-stdio=accept&ssh-port=-1", binary().display());
    let args = ["-iface", "podman-usermode", "-stop-if-exist", "ignore", "-url", &url];
    for _ in 0..2 {
        let mut forwarder = Forwarder::start(&guest, &args, dir.path().join("gvforwarder.log"));
        eventually("an address", PATIENCE, || {
            let addresses = guest.output(["ip", "-4", "addr", "show", "podman-usermode"]).stdout;
            String::from_utf8_lossy(&addresses).contains("inet 192.168.127.2/24").then_some(())
        });
        talks(&guest, &guest);
        // podman looks for the words that it has started in the list of processes.
        let words = fs::read_to_string(format!("/proc/{}/cmdline", forwarder.0.id())).unwrap();
        let expected = [&[env!("CARGO_BIN_EXE_gvforwarder")], &args[..]].concat().join("\0");
        assert_eq!(words.trim_end_matches('\0'), expected);
        let daemons = children(forwarder.0.id());
        assert_eq!(daemons.len(), 1, "{daemons:?}");
        forwarder.kill();
        eventually("the end of the daemon without its guest", PATIENCE, || {
            daemons.iter().all(|daemon| !is_running(*daemon)).then_some(())
        });
        let links = guest.run(["ip", "link"]);
        assert!(!links.contains("podman-usermode"), "{links}");
    }
}

/// The processes whose parent that is.
fn children(parent: u32) -> Vec<u32> {
    let processes = fs::read_dir("/proc").unwrap().flatten();
    let ids = processes.filter_map(|entry| entry.file_name().to_str()?.parse().ok());
    ids.filter(|id| stat(*id).is_some_and(|(_, of)| of == parent)).collect()
}

/// Whether it runs: one that has ended may wait for its new parent to notice.
fn is_running(id: u32) -> bool {
    stat(id).is_some_and(|(state, _)| state != "Z")
}

/// A process's state and its parent.
fn stat(id: u32) -> Option<(String, u32)> {
    let text = fs::read_to_string(Path::new("/proc").join(id.to_string()).join("stat")).ok()?;
    let mut fields = text.rsplit_once(')')?.1.split_whitespace();
    Some((fields.next()?.to_owned(), fields.next()?.parse().ok()?))
}
