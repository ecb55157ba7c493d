//! gvforwarder in a guest: its interface comes from the link, traffic flows, everything goes at the end. The
//! host's end is a daemon and its `/connect`.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::fs;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::daemon::{Daemon, is_peer};
use testkit::net::{GATEWAY, HOST, Host};
use testkit::ns::Namespace;
use testkit::traffic::{accept, impatient, transfer};
use testkit::{dns, eventually, free_port, http, tool};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(20);
const NAMESERVER: &str = "nameserver 192.0.2.53\n";

fn binary() -> &'static str {
    env!("CARGO_BIN_EXE_gvforwarder")
}

/// Runs it to its end on this machine, which it must not change: only for what ends before it does anything.
fn run(args: &[&str]) -> Output {
    Command::new(binary()).args(args).stdin(Stdio::null()).output().expect("gvforwarder")
}

/// The guest's machine: a network with nothing but `lo`, a resolv.conf of its own, and gvforwarder.
struct Forwarder {
    child: Child,
    ns: Namespace,
    dir: tempfile::TempDir,
}

impl Forwarder {
    fn start(args: &[&str]) -> Self {
        Self::start_after(args, |_| {})
    }

    fn start_after(args: &[&str], prepare: impl FnOnce(&Namespace)) -> Self {
        Self::start_program_after(binary(), args, prepare)
    }

    /// A program that turns into gvforwarder.
    fn start_program(program: &str, args: &[&str]) -> Self {
        Self::start_program_after(program, args, |_| {})
    }

    fn start_program_after(program: &str, args: &[&str], prepare: impl FnOnce(&Namespace)) -> Self {
        let (ns, dir) = (Namespace::new(), tempfile::tempdir().unwrap());
        let resolv_conf = dir.path().join("resolv.conf");
        fs::write(&resolv_conf, NAMESERVER).unwrap();
        ns.run(["mount", "--bind", &resolv_conf.display().to_string(), "/etc/resolv.conf"]);
        prepare(&ns);
        let stderr = fs::File::create(dir.path().join("stderr")).unwrap();
        let child =
            ns.command(program).args(args).stdin(Stdio::null()).stderr(stderr).spawn().expect("nsenter");
        Self { child, ns, dir }
    }

    /// Kills it, so that nothing is put back by itself, and starts it again.
    fn restart(&mut self, args: &[&str]) {
        self.end(Signal::KILL);
        self.start_again(args);
    }

    fn start_again(&mut self, args: &[&str]) {
        let stderr = fs::File::options().append(true).open(self.dir.path().join("stderr")).unwrap();
        let mut command = self.ns.command(binary());
        self.child = command.args(args).stdin(Stdio::null()).stderr(stderr).spawn().expect("nsenter");
    }

    fn stderr(&self) -> String {
        fs::read_to_string(self.dir.path().join("stderr")).unwrap()
    }

    fn resolv_conf(&self) -> String {
        fs::read_to_string(self.dir.path().join("resolv.conf")).unwrap()
    }

    fn ip(&self, words: &[&str]) -> String {
        let output = self.ns.command("ip").args(words).output().unwrap();
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    #[track_caller]
    fn wait_for(&self, what: &str, words: &[&str], text: &str) {
        let mut seen = String::new();
        let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually(what, PATIENCE, || {
                seen = self.ip(words);
                seen.contains(text).then_some(())
            });
        }));
        assert!(found.is_ok(), "{what}: {words:?} says\n{seen}\n{}", self.stderr());
    }

    #[track_caller]
    fn wait_for_lease(&self) {
        self.wait_for("an address", &["-4", "addr", "show"], "inet 192.168.127.2/24");
        self.wait_for("a route", &["route"], "default via 192.168.127.1 dev tap0");
    }

    #[track_caller]
    fn end(&mut self, signal: Signal) -> ExitStatus {
        kill_process(Pid::from_child(&self.child), signal).unwrap();
        eventually("the end of gvforwarder", PATIENCE, || self.child.try_wait().unwrap())
    }

    #[track_caller]
    fn assert_nothing_left(&self) {
        let (links, routes) = (self.ip(&["link"]), self.ip(&["route"]));
        assert!(!links.contains("tap0") && routes.is_empty(), "{links}{routes}");
        assert_eq!(self.resolv_conf(), NAMESERVER);
    }

    /// A connection to the host's loopback that carries `length` bytes each way.
    #[track_caller]
    fn exchange(&self, host: &Host, length: u64) {
        let listener = host.listen("127.0.0.1:0".parse().unwrap());
        let to = (HOST, listener.local_addr().unwrap().port()).into();
        let guest = eventually("a connection to the host", PATIENCE, || self.ns.connect(to).ok());
        let (guest, host) = (impatient(guest), accept(&listener));
        transfer(&guest, &host, length);
        transfer(&host, &guest, length);
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("--- stderr of gvforwarder ---\n{}---", self.stderr());
        }
    }
}

/// The host's end: a daemon whose `/connect` is the only way in.
struct Peer {
    daemon: Daemon,
    socket: PathBuf,
}

impl Peer {
    fn start(socket: &Path, host: &Host, args: &[&str]) -> Self {
        let listen = format!("unix://{}", socket.display());
        let daemon = Daemon::builder().without_qemu().args(["-listen", &listen]).args(args);
        Self { daemon: daemon.through(host.prefix()).start(), socket: socket.to_owned() }
    }

    /// Kills the daemon, and with it the link. Its socket stays, as after any such end.
    fn kill(mut self) {
        self.daemon.signal(Signal::KILL);
        self.daemon.wait(PATIENCE).expect("the daemon ends");
        if is_peer() {
            // COMPAT(gvproxy): the original refuses to start where it has died.
            fs::remove_file(&self.socket).unwrap();
        }
    }

    /// Leads `port` of the host's loopback to `guest`.
    #[track_caller]
    fn expose(&self, port: u16, guest: &str) {
        let wish = format!(r#"{{"local":"127.0.0.1:{port}","remote":"{guest}","protocol":"tcp"}}"#);
        let stream = eventually("the API's socket", PATIENCE, || UnixStream::connect(&self.socket).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = http::ask(stream, "POST", "/services/forwarder/expose", &wish);
        assert_eq!(answer.status, 200, "{answer:?}");
    }
}

fn assert_upgrade(stream: &mut impl BufRead) {
    let mut head = Vec::new();
    while !head.ends_with(b"\r\n\r\n") {
        assert!(stream.read_until(b'\n', &mut head).unwrap() > 0, "the link ends inside the request");
    }
    let head = String::from_utf8(head).unwrap();
    assert!(head.starts_with("POST /connect HTTP/1.1\r\nHost: \r\n"), "{head}");
}

fn unix_url(socket: &Path) -> String {
    format!("unix://{}", socket.display())
}

fn host() -> Host {
    Host::new("search office.lan\nnameserver 127.0.0.1\n")
}

#[test]
fn the_interface_has_everything_and_goes_at_the_end() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &["-mtu", "4000"]);
    let mut forwarder = Forwarder::start(&["-url", &format!("unix://{}", socket.display())]);
    forwarder.wait_for_lease();
    let link = forwarder.ip(&["link", "show", "tap0"]);
    assert!(link.contains("mtu 4000") && link.contains("link/ether 5a:94:ef:e4:0c:ee"), "{link}");
    let resolv_conf = forwarder.resolv_conf();
    assert!(resolv_conf.ends_with("search office.lan\nnameserver 192.168.127.1\n"), "{resolv_conf}");
    forwarder.exchange(&host, 20 << 20);
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    forwarder.assert_nothing_left();
}

/// Where QEMU's machines come too, `/connect` takes either framing: the first bytes tell.
#[test]
fn a_daemon_with_a_socket_for_qemu_takes_it() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let listen = unix_url(&socket);
    // COMPAT(gvproxy): there it speaks QEMU's alone.
    let builder = Daemon::builder().binary(env!("CARGO_BIN_EXE_gvproxy"));
    let daemon = builder.args(["-listen", &listen]).through(host.prefix()).start();
    // It takes no place from others while it says nothing.
    let _silent: Vec<_> = (0..3).map(|_| silent(&socket)).collect();
    let mut forwarder = Forwarder::start(&["-url", &listen]);
    forwarder.wait_for_lease();
    forwarder.exchange(&host, 20 << 20);
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    assert!(!daemon.stderr().contains("level=warning"), "{}", daemon.stderr());
    forwarder.assert_nothing_left();
}

/// A client of `/connect` without a frame.
fn silent(socket: &Path) -> UnixStream {
    let mut stream = UnixStream::connect(socket).unwrap();
    stream.write_all(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n").unwrap();
    stream
}

#[test]
fn every_signal_to_end_is_one() {
    for signal in [Signal::INT, Signal::HUP] {
        let (dir, host) = (tempfile::tempdir().unwrap(), host());
        let socket = dir.path().join("net.sock");
        let _peer = Peer::start(&socket, &host, &["-mtu", "4000"]);
        let url = format!("unix://{}", socket.display());
        // Whoever runs the tests may have them ignored.
        let args = ["--default-signal=HUP,INT", binary(), "-url", &url, "-mtu", "1400"];
        let mut forwarder = Forwarder::start_program("env", &args);
        forwarder.wait_for_lease();
        let link = forwarder.ip(&["link", "show", "tap0"]);
        assert!(link.contains("mtu 1400"), "-mtu is the limit: {link}");
        assert_eq!(forwarder.end(signal).code(), Some(0), "{}", forwarder.stderr());
        forwarder.assert_nothing_left();
    }
}

/// As under nohup(1), and in the background of a script.
#[test]
fn a_signal_that_was_ignored_at_the_start_stays_so() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &[]);
    let args = ["-c", r#"trap '' HUP INT; exec "$@""#, "sh", binary(), "-url"];
    let mut forwarder = Forwarder::start_program("sh", &[&args[..], &[&unix_url(&socket)]].concat());
    forwarder.wait_for_lease();
    for signal in [Signal::HUP, Signal::INT] {
        kill_process(Pid::from_child(&forwarder.child), signal).unwrap();
    }
    // A signal that ends it does so before traffic that was begun later has passed.
    forwarder.exchange(&host, 1 << 20);
    assert!(forwarder.child.try_wait().unwrap().is_none(), "{}", forwarder.stderr());
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    assert!(forwarder.stderr().contains("gvforwarder exiting: terminated"), "{}", forwarder.stderr());
    forwarder.assert_nothing_left();
}

#[test]
fn everything_flows_both_ways() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let _dns = dns::Server::start(&host, "127.0.0.1");
    let socket = dir.path().join("net.sock");
    let peer = Peer::start(&socket, &host, &[]);
    let mut forwarder = Forwarder::start(&["-url", &format!("unix://{}", socket.display())]);
    forwarder.wait_for_lease();
    for (name, address) in [("a.test", "192.0.2.1"), ("host.containers.internal", "192.168.127.254")] {
        let seen = forwarder.ns.run(["getent", "ahostsv4", name]);
        assert!(seen.starts_with(address), "{name}: {seen}");
    }
    forwarder.exchange(&host, 64 << 20);
    let (listener, port) = (forwarder.ns.listen("0.0.0.0:80".parse().unwrap()), free_port());
    peer.expose(port, "192.168.127.2:80");
    for _ in 0..3 {
        let outside = impatient(host.connect(([127, 0, 0, 1], port).into()).expect("the exposed port"));
        let inside = accept(&listener);
        assert_eq!(inside.peer_addr().unwrap().ip(), GATEWAY, "the guest sees the gateway");
        transfer(&outside, &inside, 16 << 20);
        transfer(&inside, &outside, 16 << 20);
    }
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    forwarder.assert_nothing_left();
}

#[test]
fn traffic_resumes_when_the_host_is_back() {
    /// A pause of 4 s at most, and what a busy machine takes.
    const BACK: Duration = Duration::from_secs(8);
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    // The host may come after the guest.
    let mut forwarder = Forwarder::start(&["-url", &format!("unix://{}", socket.display())]);
    eventually("a try", PATIENCE, || forwarder.stderr().contains("cannot connect to host").then_some(()));
    let (mut listener, port) = (None, free_port());
    for round in 0..3 {
        let peer = Peer::start(&socket, &host, &[]);
        let start = Instant::now();
        if round == 0 {
            forwarder.wait_for_lease();
        }
        forwarder.exchange(&host, 1 << 20);
        let took = start.elapsed();
        assert!(took < BACK, "{took:?} in round {round}\n{}", forwarder.stderr());
        let listener = listener.get_or_insert_with(|| forwarder.ns.listen("0.0.0.0:80".parse().unwrap()));
        peer.expose(port, "192.168.127.2:80");
        let outside = impatient(host.connect(([127, 0, 0, 1], port).into()).expect("the exposed port"));
        transfer(&outside, &accept(listener), 1 << 20);
        peer.kill();
        let links = forwarder.ip(&["-4", "addr", "show", "tap0"]);
        assert!(links.contains("192.168.127.2/24"), "the interface stays: {links}");
    }
    let told = forwarder.stderr().matches("cannot connect to host").count();
    assert!(told <= 5, "the same reason is told once:\n{}", forwarder.stderr());
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    forwarder.assert_nothing_left();
}

#[test]
fn leaves_the_way_out_that_was_there() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &[]);
    let url = format!("unix://{}", socket.display());
    let mut forwarder = Forwarder::start_after(&["-url", &url], |ns| {
        ns.run(["ip", "link", "add", "wlan0", "type", "veth", "peer", "name", "wlan1"]);
        ns.run(["ip", "link", "set", "wlan1", "up"]);
        ns.run(["ip", "addr", "add", "192.0.2.2/24", "dev", "wlan0"]);
        ns.run(["ip", "link", "set", "wlan0", "up"]);
        ns.run(["ip", "route", "add", "default", "via", "192.0.2.1"]);
    });
    forwarder.wait_for_lease();
    let way = forwarder.ip(&["route", "get", "198.51.100.1"]);
    assert!(way.contains("via 192.168.127.1 dev tap0"), "{way}");
    forwarder.end(Signal::TERM);
    let way = forwarder.ip(&["route", "get", "198.51.100.1"]);
    assert!(way.contains("via 192.0.2.1 dev wlan0"), "{way}");
}

#[test]
fn a_persistent_tap_stays_without_the_address() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &[]);
    let url = format!("unix://{}", socket.display());
    let mut forwarder = Forwarder::start_after(&["-url", &url, "-mac", "5a-94-ef-e4-0c-ee"], |ns| {
        ns.run(["ip", "tuntap", "add", "tap0", "mode", "tap"]);
    });
    forwarder.wait_for_lease();
    forwarder.end(Signal::TERM);
    let (link, routes) = (forwarder.ip(&["addr", "show", "tap0"]), forwarder.ip(&["route"]));
    assert!(link.contains("state DOWN") && !link.contains("inet") && routes.is_empty(), "{link}{routes}");
}

/// What is to be as before: the addresses, the routes, and what can be set of the link.
fn state(forwarder: &Forwarder) -> String {
    let link: serde_json::Value =
        serde_json::from_str(&forwarder.ip(&["-j", "link", "show", "tap0"])).unwrap();
    let parts = ["address", "mtu", "ifalias"].map(|key| link[0][key].to_string()).join(" ");
    let is_up = link[0]["flags"].as_array().unwrap().iter().any(|flag| flag == "UP");
    let addresses = forwarder.ip(&["-4", "-o", "addr", "show", "tap0"]);
    format!("{parts} up {is_up}\n{addresses}{}", forwarder.ip(&["route"]))
}

#[test]
fn a_persistent_tap_is_as_before_after_a_kill_and_an_end() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let mut peer = Some(Peer::start(&socket, &host, &["-mtu", "4000"]));
    let url = unix_url(&socket);
    let mut before = String::new();
    let mut forwarder = Forwarder::start_after(&["-url", &url], |ns| {
        ns.run(["ip", "tuntap", "add", "tap0", "mode", "tap"]);
        ns.run(["ip", "link", "set", "tap0", "address", "02:00:00:00:00:07", "mtu", "1400"]);
        ns.run(["ip", "link", "set", "tap0", "alias", "of the  admin ", "up"]);
        ns.run(["ip", "addr", "add", "192.0.2.2/24", "dev", "tap0"]);
        before = ns.run(["ip", "-4", "-o", "addr", "show", "tap0"]);
    });
    for (round, host_is_there) in [true, false].into_iter().enumerate() {
        forwarder.wait_for_lease();
        let during = state(&forwarder);
        assert!(during.contains(r#""5a:94:ef:e4:0c:ee" 4000 "gvforwarder "#), "{during}");
        if !host_is_there {
            peer.take().unwrap().kill();
        }
        forwarder.restart(&["-url", &url]);
        // What the killed one has left looks like a lease.
        eventually("the new one's work", PATIENCE, || {
            let done = forwarder.stderr().matches("puts back what one that was killed").count();
            (done > round).then_some(())
        });
        match host_is_there {
            true => forwarder.wait_for_lease(),
            false => forwarder.wait_for("the address to go", &["-4", "-o", "addr", "show", "tap0"], &before),
        }
        assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
        let route = "192.0.2.0/24 dev tap0 proto kernel scope link src 192.0.2.2 linkdown \n";
        let expected = format!("\"02:00:00:00:00:07\" 1400 \"of the  admin \" up true\n{before}{route}");
        assert_eq!(state(&forwarder), expected, "{}", forwarder.stderr());
        assert_eq!(forwarder.resolv_conf(), NAMESERVER);
        if host_is_there {
            forwarder.start_again(&["-url", &url]);
        }
    }
}

/// Whatever call fails while it is opened.
#[test]
fn a_persistent_tap_that_could_not_be_set_up_at_first_is_as_before() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &[]);
    let (url, trace) = (unix_url(&socket), dir.path().join("trace"));
    // One that asks what is there, the note of it, the hardware address, and the state.
    for call in 3..=6 {
        let inject = format!("inject=sendto:error=ENOBUFS:when={call}");
        let strace = ["-D", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e", "trace=sendto", "-e", &inject];
        let args = [&strace[..], &["--", binary(), "-url", &url, "-stop-if-exist="]].concat();
        let strace = tool("strace", "strace").display().to_string();
        let mut forwarder = Forwarder::start_program_after(&strace, &args, |ns| {
            ns.run(["ip", "tuntap", "add", "tap0", "mode", "tap"]);
            ns.run(["ip", "link", "set", "tap0", "address", "02:00:00:00:00:07", "mtu", "1400"]);
            ns.run(["ip", "link", "set", "tap0", "alias", "of the  admin "]);
        });
        forwarder.wait_for_lease();
        let injected = fs::read_to_string(&trace).unwrap();
        assert!(injected.contains("(INJECTED)"), "{injected}");
        assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
        let expected = "\"02:00:00:00:00:07\" 1400 \"of the  admin \" up false\n";
        assert_eq!(state(&forwarder), expected, "call {call}: {}", forwarder.stderr());
    }
}

#[test]
fn the_resolvers_are_as_before_after_a_kill_and_an_end() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &[]);
    let url = unix_url(&socket);
    // Of systemd-resolved before it is up, of Debian's resolvconf, and of nobody.
    for (link, ours) in [
        ("../run/systemd/resolve/stub-resolv.conf", false),
        ("resolvconf/resolv.conf", false),
        ("none/resolv.conf", true),
    ] {
        let etc = dir.path().join(link.replace('/', "-"));
        fs::create_dir(&etc).unwrap();
        let path = etc.join("resolv.conf");
        std::os::unix::fs::symlink("/run/resolvconf", etc.join("resolvconf")).unwrap();
        std::os::unix::fs::symlink(link, &path).unwrap();
        let mut forwarder = Forwarder::start_after(&["-url", &url], |ns| {
            ns.run(["mount", "--bind", &etc.display().to_string(), "/etc"]);
            ns.run(["mount", "-t", "tmpfs", "tmpfs", "/run"]);
            ns.run(["mkdir", "-p", "/run/systemd/resolve", "/run/resolvconf"]);
        });
        let during = |forwarder: &Forwarder| {
            forwarder.wait_for_lease();
            let told = "another service writes the resolvers";
            match ours {
                true => eventually("the resolvers", PATIENCE, || {
                    let text = fs::read_to_string(&path).unwrap_or_default();
                    text.ends_with("nameserver 192.168.127.1\n").then_some(())
                }),
                false => eventually("a word", PATIENCE, || forwarder.stderr().contains(told).then_some(())),
            }
        };
        during(&forwarder);
        forwarder.restart(&["-url", &url]);
        during(&forwarder);
        assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
        assert_eq!(fs::read_link(&path).unwrap(), Path::new(link));
        assert_eq!(forwarder.ns.run(["find", "/run", "-type", "f"]), "", "{link} is written through");
        assert_eq!(fs::read_dir(&etc).unwrap().count(), 2, "{link}: something is left");
    }
}

/// As under WSL, whose distributions share one, and whose podman keeps a copy that it puts back.
#[test]
fn a_file_that_the_resolvers_link_leads_to_is_written_in_place() {
    const LINK: &str = "../mnt/wsl/resolv.conf";
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let peer = Peer::start(&socket, &host, &[]);
    let url = unix_url(&socket);
    let [etc, mnt] = ["etc", "mnt"].map(|name| dir.path().join(name));
    fs::create_dir_all(mnt.join("wsl")).unwrap();
    fs::create_dir(&etc).unwrap();
    let (path, file, copy) =
        (etc.join("resolv.conf"), mnt.join("wsl/resolv.conf"), mnt.join("wsl/resolv.orig"));
    std::os::unix::fs::symlink(LINK, &path).unwrap();
    fs::write(&file, NAMESERVER).unwrap();
    let mut forwarder = Forwarder::start_after(&["-url", &url], |ns| {
        ns.run(["mount", "--bind", &etc.display().to_string(), "/etc"]);
        ns.run(["mount", "--bind", &mnt.display().to_string(), "/mnt"]);
    });
    let text = || fs::read_to_string(&file).unwrap();
    let during = |forwarder: &Forwarder| {
        forwarder.wait_for_lease();
        eventually("the resolvers", PATIENCE, || {
            text().ends_with("nameserver 192.168.127.1\n").then_some(())
        });
        assert_eq!(forwarder.ns.run(["cat", "/etc/resolv.conf"]), text());
    };
    let is_link = || fs::read_link(&path).is_ok_and(|link| link == Path::new(LINK));
    during(&forwarder);
    forwarder.restart(&["-url", &url]);
    during(&forwarder);
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    assert!(is_link() && text() == NAMESERVER, "{}", text());
    // The copy takes the file's place while it runs.
    fs::write(&copy, NAMESERVER).unwrap();
    forwarder.start_again(&["-url", &url]);
    during(&forwarder);
    fs::rename(&copy, &file).unwrap();
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    assert!(is_link() && text() == NAMESERVER, "{}", text());
    // It is gone by the end.
    forwarder.start_again(&["-url", &url]);
    during(&forwarder);
    fs::remove_file(&file).unwrap();
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    assert!(is_link() && !file.exists());
    // After a kill the next one puts it back, though the host is gone.
    fs::write(&file, NAMESERVER).unwrap();
    forwarder.start_again(&["-url", &url]);
    during(&forwarder);
    peer.kill();
    forwarder.restart(&["-url", &url]);
    eventually("what was there", PATIENCE, || (text() == NAMESERVER).then_some(()));
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    assert!(is_link() && text() == NAMESERVER, "{}", text());
    let left = fs::read_dir(&etc).unwrap().chain(fs::read_dir(mnt.join("wsl")).unwrap()).count();
    assert_eq!(left, 2, "something is left");
}

#[test]
fn a_file_of_resolvers_is_as_before_after_kills() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let peer = Peer::start(&socket, &host, &[]);
    let url = unix_url(&socket);
    let mut forwarder = Forwarder::start(&["-url", &url]);
    for _ in 0..2 {
        forwarder.wait_for_lease();
        eventually("the resolvers", PATIENCE, || forwarder.resolv_conf().ends_with("127.1\n").then_some(()));
        forwarder.restart(&["-url", &url]);
    }
    // Though the host is gone meanwhile.
    forwarder.wait_for_lease();
    peer.kill();
    forwarder.restart(&["-url", &url]);
    eventually("what was there", PATIENCE, || (forwarder.resolv_conf() == NAMESERVER).then_some(()));
    assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
    forwarder.assert_nothing_left();
}

#[test]
fn a_preexisting_interface_is_left_to_its_owner() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let peer = Peer::start(&socket, &host, &[]);
    let url = format!("unix://{}", socket.display());
    let mut forwarder = Forwarder::start_after(&["-preexisting", "-iface", "vsock0", "-url", &url], |ns| {
        ns.run(["ip", "tuntap", "add", "vsock0", "mode", "tap"]);
        ns.run(["ip", "link", "set", "vsock0", "address", "5a:94:ef:e4:0c:ee", "up"]);
        ns.run(["ip", "addr", "add", "192.168.127.2/24", "dev", "vsock0"]);
    });
    forwarder.exchange(&host, 1 << 20);
    // Its owner learns from the carrier that the link is away.
    peer.kill();
    forwarder.wait_for("no carrier", &["link", "show", "vsock0"], "NO-CARRIER");
    let _peer = Peer::start(&socket, &host, &[]);
    forwarder.exchange(&host, 1 << 20);
    forwarder.end(Signal::TERM);
    let link = forwarder.ip(&["addr", "show", "vsock0"]);
    assert!(link.contains("192.168.127.2/24") && link.contains(",UP"), "{link}");
    assert_eq!(forwarder.resolv_conf(), NAMESERVER);
    assert!(forwarder.ip(&["route"]).lines().all(|route| !route.contains("default")));
}

#[test]
fn the_link_may_be_a_program() {
    let (dir, host) = (tempfile::tempdir().unwrap(), host());
    let socket = dir.path().join("net.sock");
    let _peer = Peer::start(&socket, &host, &[]);
    // A program that speaks frames on its standard input and output, as `gvproxy -listen-stdio`.
    let program = dir.path().join("link");
    let script = format!(
        "#!/bin/sh\necho \"$@\" >{0}/args; echo $$ >{0}/pid\nexec {2} {0}/link.py {1}\n",
        dir.path().display(),
        socket.display(),
        tool("python3", "python3").display()
    );
    fs::write(dir.path().join("link.py"), LINK).unwrap();
    fs::write(&program, script).unwrap();
    fs::set_permissions(&program, std::os::unix::fs::PermissionsExt::from_mode(0o755)).unwrap();
    let url = format!("stdio:{}?listen-stdio=accept&ssh-port=-1", program.display());
    let mut forwarder = Forwarder::start(&["-url", &url, "-stop-if-exist", "ignore"]);
    forwarder.wait_for_lease();
    forwarder.exchange(&host, 1 << 20);
    assert_eq!(fs::read_to_string(dir.path().join("args")).unwrap(), "-listen-stdio=accept -ssh-port=-1\n");
    let pid = fs::read_to_string(dir.path().join("pid")).unwrap();
    forwarder.end(Signal::TERM);
    assert!(!Path::new("/proc").join(pid.trim()).exists(), "the program ends with the link");
}

/// Standard input and output to and from a socket, with the request in front.
const LINK: &str = r#"
import os, socket, sys, threading
s = socket.socket(socket.AF_UNIX)
s.connect(sys.argv[1])
s.sendall(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n")
def up():
    while data := os.read(0, 65536):
        s.sendall(data)
threading.Thread(target=up, daemon=True).start()
while data := s.recv(65536):
    os.write(1, data)
"#;

#[test]
fn other_interfaces_leave_nothing_to_do() {
    let output = run(&["-stop-if-exist", "nosuch,lo", "-url", "nonsense"]);
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(0), "{text}");
    assert!(text.contains("interface lo prevented this program to run"), "{text}");
}

#[test]
fn flags_that_cannot_be_meant_are_told_at_once() {
    for (args, code, text) in [
        (&["-nosuch"][..], 2, "flag provided but not defined: -nosuch\nUsage of "),
        (&["-mtu", "x"], 2, r#"invalid value "x" for flag -mtu: parse error"#),
        (&["-h"], 0, "(default \"vsock://2:1024/connect\")\n  -version\n"),
        (&["-stop-if-exist=", "-url", "http://x"], 1, "unexpected scheme"),
        (&["-stop-if-exist=", "-mac", "zz"], 1, "not a hardware address"),
        (&["-stop-if-exist=", "-iface", "much-too-long-name"], 1, "not the name of an interface"),
    ] {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(code), "{args:?}: {stderr}");
        assert!(stderr.contains(text), "{args:?}: {stderr}");
    }
    let output = run(&["--version"]);
    assert!(output.stdout.starts_with(b"gvforwarder version v") && output.status.success(), "{output:?}");
}

#[test]
fn the_token_is_sent_and_its_lack_is_told() {
    const TOKEN: &str = "0123456789abcdef0123456789ABCDEF";
    const URL: &str = "tcp://127.0.0.1:1024";
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("token");
    fs::write(&file, TOKEN).unwrap();
    fs::set_permissions(&file, std::os::unix::fs::PermissionsExt::from_mode(0o600)).unwrap();
    let flag = ["-api-token-file", file.to_str().unwrap()];
    let variable = format!("GVISOR_API_TOKEN={TOKEN}");
    for (variable, flag, is_right) in [
        ("GVISOR_API_TOKEN=", &flag[..], true),
        (&variable, &[], true),
        ("GVISOR_API_TOKEN=", &[], false),
        ("GVISOR_API_TOKEN=another-token-of-32-characters-----", &[], false),
    ] {
        let mut daemon = None;
        let args = [&[variable, binary(), "-url", URL], flag].concat();
        // The host's end is in the guest's own network, where nothing but this link is.
        let mut forwarder = Forwarder::start_program_after("env", &args, |ns| {
            let host = Daemon::builder().binary(env!("CARGO_BIN_EXE_gvproxy")).without_qemu();
            let host = host.args(["-listen", URL, "-api-token-file", file.to_str().unwrap()]);
            daemon = Some(host.through(ns.prefix()).start());
        });
        match is_right {
            true => forwarder.wait_for_lease(),
            false => eventually("the reason", PATIENCE, || {
                let told = "the host refuses the link: HTTP/1.1 401 Unauthorized; it wants its token, from \
                            -api-token-file or GVISOR_API_TOKEN";
                forwarder.stderr().contains(told).then_some(())
            }),
        }
        assert_eq!(forwarder.end(Signal::TERM).code(), Some(0), "{}", forwarder.stderr());
        assert!(!forwarder.stderr().contains(TOKEN), "{}", forwarder.stderr());
    }
}

#[test]
fn a_refusal_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let socket = dir.path().join("net.sock");
    let listener = UnixListener::bind(&socket).unwrap();
    let forwarder = Forwarder::start(&["-url", &format!("unix://{}", socket.display())]);
    let answer = std::thread::spawn(move || {
        let (mut stream, _): (UnixStream, _) = listener.accept().unwrap();
        assert_upgrade(&mut BufReader::new(stream.try_clone().unwrap()));
        stream.write_all(b"HTTP/1.1 404 Not Found\r\n\r\n").unwrap();
    });
    eventually("the reason", PATIENCE, || {
        forwarder.stderr().contains("the host refuses the link: HTTP/1.1 404 Not Found").then_some(())
    });
    answer.join().unwrap();
}
