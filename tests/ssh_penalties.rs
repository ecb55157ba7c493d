//! Logins beside an sshd that holds failures against the address that they come from, as OpenSSH's does since
//! 9.8: who shuts out whom, and for how long. A real sshd serves; what it would hold against whom is counted
//! by a gate in front of it, so that any version will do.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::collections::HashMap;
use std::fs;
use std::io::{self, Read, Write};
use std::net::{IpAddr, Shutdown, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use testkit::daemon::Daemon;
use testkit::guest::{self, Guest};
use testkit::net::{GATEWAY, HOST, plug};
use testkit::sshd;
use testkit::sshd::Sshd;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(30);
/// As in sshd_config(5): what a refused login costs, a connection without one, and for how much nobody is let
/// in.
const AUTH_FAIL: Duration = Duration::from_secs(5);
const NO_AUTH: Duration = Duration::from_secs(1);
const MIN: Duration = Duration::from_secs(15);

/// What is known of one source.
#[derive(Debug, Default)]
struct Source {
    until: Option<Instant>,
    shut: bool,
    accepted: usize,
    refused: usize,
    without: usize,
    dropped: usize,
}

impl Source {
    fn charge(&mut self, cost: Duration) {
        let now = Instant::now();
        let until = self.until.filter(|until| *until > now).unwrap_or(now) + cost;
        self.until = Some(until);
        self.shut |= until - now >= MIN;
    }

    fn may_enter(&mut self) -> bool {
        if self.until.is_none_or(|until| until <= Instant::now()) {
            self.shut = false;
        }
        !self.shut
    }
}

type Sources = Arc<Mutex<HashMap<IpAddr, Source>>>;

/// Stands at the guest's port 22.
struct Gate(Sources);

impl Gate {
    fn open(listener: TcpListener, sshd: &Sshd) -> Self {
        let sources = Sources::default();
        let (kept, to, log) = (Arc::clone(&sources), sshd.addr, sshd.path("log"));
        thread::spawn(move || {
            for client in listener.incoming() {
                let (mut client, log, sources) = (client.unwrap(), log.clone(), Arc::clone(&kept));
                let ip = client.peer_addr().unwrap().ip();
                if !sources.lock().unwrap().entry(ip).or_default().may_enter() {
                    sources.lock().unwrap().get_mut(&ip).unwrap().dropped += 1;
                    // Whoever has gone does not hear it.
                    let _ = client.write_all(b"Not allowed at this time\r\n");
                    continue;
                }
                let Ok(server) = TcpStream::connect(to) else { continue };
                thread::spawn(move || {
                    let port = server.local_addr().unwrap().port();
                    let watch = thread::spawn({
                        let sources = Arc::clone(&sources);
                        move || judge(&log, port, |end| note(&sources, ip, end))
                    });
                    carry(&client, &server);
                    watch.join().unwrap();
                });
            }
        });
        Self(sources)
    }

    fn of<T>(&self, ip: impl Into<IpAddr>, look: impl Fn(&Source) -> T) -> T {
        look(self.0.lock().unwrap().entry(ip.into()).or_default())
    }

    fn shut(&self, ip: impl Into<IpAddr>) {
        self.0.lock().unwrap().entry(ip.into()).or_default().charge(MIN);
    }
}

enum Login {
    Accepted,
    Refused,
    None,
}

fn note(sources: &Sources, ip: IpAddr, end: Login) {
    let mut sources = sources.lock().unwrap();
    let source = sources.get_mut(&ip).unwrap();
    match end {
        Login::Accepted => source.accepted += 1,
        Login::Refused => {
            source.refused += 1;
            source.charge(AUTH_FAIL);
        }
        Login::None => {
            source.without += 1;
            source.charge(NO_AUTH);
        }
    }
}

/// What sshd's log says of the connection from `port`.
fn judge(log: &Path, port: u16, tell: impl FnOnce(Login)) {
    let port = format!(" port {port}");
    let end = eventually("sshd's word about a connection", PATIENCE, || {
        let text = fs::read_to_string(log).unwrap_or_default();
        let of_port = |line: &&str| {
            line.split_once(&port).is_some_and(|(_, rest)| !rest.starts_with(|c: char| c.is_ascii_digit()))
        };
        let lines: Vec<_> = text.lines().filter(of_port).collect();
        let has = |words: &str| lines.iter().any(|line| line.contains(words));
        if has("Accepted publickey") {
            return Some(Login::Accepted);
        }
        let over = has("Connection closed by")
            || has("Connection reset by")
            || has("Disconnected from")
            || has("Received disconnect");
        over.then(|| if has("authenticating user") || has("Failed ") { Login::Refused } else { Login::None })
    });
    tell(end);
}

fn carry(client: &TcpStream, server: &TcpStream) {
    let copy = |mut from: &TcpStream, mut to: &TcpStream| {
        let _ = io::copy(&mut from, &mut to);
        let _ = to.shutdown(Shutdown::Write);
    };
    thread::scope(|scope| {
        scope.spawn(|| copy(client, server));
        copy(server, client);
    });
}

/// A daemon with `-ssh-port` and sockets of the guest, whose port 22 is behind the gate.
struct Bench {
    daemon: Daemon,
    guest: Guest,
    gate: Gate,
    sshd: Sshd,
    runtime: tokio::runtime::Runtime,
    ssh_port: u16,
}

impl Bench {
    /// `identities` are keys of the forwards `0`, `1`, ...
    fn start(identities: &[&str], authorized: bool) -> Self {
        let runtime =
            tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
        let sshd = runtime.block_on(Sshd::new());
        for identity in identities.iter().filter(|identity| **identity != "id") {
            fs::copy(sshd.path("id"), sshd.path(identity)).unwrap();
        }
        if !authorized {
            fs::write(sshd.path("authorized"), "").unwrap();
        }
        let (ssh_port, service) = (free_port(), sshd.path("service.sock").display().to_string());
        let mut args = vec!["-keep-running".to_owned(), "-ssh-port".into(), ssh_port.to_string()];
        for (at, identity) in identities.iter().enumerate() {
            let identity = sshd.path(identity).display().to_string();
            for (flag, value) in [
                ("-forward-sock", format!("{{dir}}/{at}")),
                ("-forward-dest", service.clone()),
                ("-forward-user", sshd.user.clone()),
                ("-forward-identity", identity),
            ] {
                args.extend([flag.to_owned(), value]);
            }
        }
        let daemon = Daemon::builder().args(args).start();
        let (guest, gate) = Self::plug(&daemon, &sshd);
        Self { daemon, guest, gate, sshd, runtime, ssh_port }
    }

    fn plug(daemon: &Daemon, sshd: &Sshd) -> (Guest, Gate) {
        let guest = Guest::start(plug(daemon), guest::MAC, 1500);
        guest.configure("192.168.127.2/24", Some("192.168.127.1"));
        let gate = Gate::open(guest.listen("0.0.0.0:22".parse().unwrap()), sshd);
        (guest, gate)
    }

    fn authorize(&self) {
        fs::copy(self.sshd.path("id.pub"), self.sshd.path("authorized")).unwrap();
    }

    fn socket(&self, at: usize) -> PathBuf {
        self.daemon.dir().join(at.to_string())
    }

    /// Whether a client of the forward `at` is served.
    fn asks(&self, at: usize, patience: Duration) -> bool {
        let mut client = UnixStream::connect(self.socket(at)).unwrap();
        client.set_read_timeout(Some(patience)).unwrap();
        let mut answer = Vec::new();
        let asked = client.write_all(b"Ehello").and_then(|()| client.shutdown(Shutdown::Write));
        asked.and_then(|()| client.read_to_end(&mut answer)).is_ok() && answer == b"hello"
    }

    /// Polls the forward `at` until a client is served, and says how long that took.
    fn polls(&self, at: usize) -> Duration {
        let start = Instant::now();
        eventually("an answer", PATIENCE, || self.asks(at, PATIENCE).then_some(()));
        start.elapsed()
    }

    /// What a client of `-ssh-port` that only looks is told first.
    fn looks(&self) -> String {
        let mut client = TcpStream::connect(("127.0.0.1", self.ssh_port)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let mut first = [0; 4];
        let read = client.read_exact(&mut first);
        read.map(|()| String::from_utf8_lossy(&first).into_owned()).unwrap_or_default()
    }
}

/// As managers of machines poll the port.
#[test]
fn what_others_do_at_the_ssh_port_does_not_shut_the_daemon_out() {
    let bench = Bench::start(&["id"], true);
    let looked = |bench: &Bench| bench.gate.of(GATEWAY, |source| source.without + source.dropped);
    for round in 1..=20 {
        bench.looks();
        eventually("the gate's count", PATIENCE, || (looked(&bench) == round).then_some(()));
    }
    assert_eq!(bench.looks(), "Not ", "the gate does as sshd does");
    let took = bench.polls(0);
    assert!(took < Duration::from_secs(3), "the API is there after {took:?}");
    let seen =
        bench.gate.of(HOST, |source| (source.accepted, source.refused, source.without, source.dropped));
    assert_eq!(seen, (1, 0, 0, 0), "one login, from an address of its own");
}

#[test]
fn a_refused_key_is_tried_again_soon_and_shuts_nobody_out() {
    // Two, as of a machine with a root and a user.
    let bench = Bench::start(&["id", "two"], false);
    let start = Instant::now();
    while start.elapsed() < Duration::from_secs(7) {
        for at in 0..2 {
            assert!(!bench.asks(at, Duration::from_millis(100)), "there is no key");
        }
    }
    assert_eq!(bench.looks(), "SSH-", "others come in");
    bench.authorize();
    let took = [bench.polls(0), bench.polls(1)];
    let (refused, dropped) = bench.gate.of(HOST, |source| (source.refused, source.dropped));
    assert!(took.iter().all(|took| *took < Duration::from_secs(8)), "{took:?} after {refused} refusals");
    assert_eq!(dropped, 0, "nor is the daemon shut out, after {refused} refusals");
    assert!((2..=5).contains(&refused), "{refused} refusals");
    bench.daemon.log_with("the guest refused the key");
}

#[test]
fn another_key_and_another_guest_are_tried_at_once() {
    let mut bench = Bench::start(&["other"], true);
    sshd::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", sshd::text(&bench.sshd.path("new"))]);
    let refuse = |bench: &Bench| {
        fs::copy(bench.sshd.path("new"), bench.sshd.path("other")).unwrap();
        // Until it is closed without another try: the first ones wait for a while.
        eventually("a client that is closed at once", PATIENCE, || {
            let (start, before) = (Instant::now(), bench.gate.of(HOST, |source| source.refused));
            let served = bench.asks(0, PATIENCE);
            assert!(!served);
            let tried = bench.gate.of(HOST, |source| source.refused) > before;
            (!tried && before > 0 && start.elapsed() < Duration::from_millis(200)).then_some(())
        });
    };
    refuse(&bench);
    fs::copy(bench.sshd.path("id"), bench.sshd.path("other")).unwrap();
    let took = bench.polls(0);
    assert!(took < Duration::from_secs(2), "with the right key after {took:?}");

    // The guest that comes next has the key that the one before refused.
    bench.runtime.block_on(async { bench.sshd.stop() });
    bench.runtime.block_on(bench.sshd.start());
    refuse(&bench);
    let keys = ["id.pub", "new.pub"].map(|name| fs::read_to_string(bench.sshd.path(name)).unwrap());
    bench.guest.switch_off();
    eventually("the end of the link", PATIENCE, || {
        bench.daemon.stderr().contains("virtual machine left").then_some(())
    });
    (bench.guest, bench.gate) = Bench::plug(&bench.daemon, &bench.sshd);
    fs::write(bench.sshd.path("authorized"), keys.concat()).unwrap();
    let took = bench.polls(0);
    assert!(took < Duration::from_secs(3), "at the new guest after {took:?}");
}

/// After a success an old refusal turns nobody away, though the login has to wait for its turn.
#[test]
fn what_was_refused_before_a_success_is_forgotten() {
    let bench = Bench::start(&["a", "b", "c", "d"], true);
    fs::write(bench.sshd.path("a"), "no key").unwrap();
    for name in ["b", "c", "d"] {
        fs::remove_file(bench.sshd.path(name)).unwrap();
        sshd::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "", "-f", sshd::text(&bench.sshd.path(name))]);
    }
    assert!(!bench.asks(0, PATIENCE), "there is no key");
    bench.daemon.log_with("clients are turned away until the key file is usable");
    let give_key = |bench: &Bench| fs::copy(bench.sshd.path("id"), bench.sshd.path("a")).unwrap();
    give_key(&bench);
    bench.polls(0);
    // The connection dies without a word, which takes 5 s of silence to suspect, and the key may be another.
    bench.sshd.freeze_sessions();
    let frozen = Instant::now();
    eventually("a silence", PATIENCE, || (frozen.elapsed() > Duration::from_secs(6)).then_some(()));
    give_key(&bench);
    let mut others = Vec::new();
    for at in 1..=3 {
        others.push(UnixStream::connect(bench.socket(at)).unwrap());
        if at < 3 {
            let refused = || bench.gate.of(HOST, |source| source.refused >= at);
            eventually("a refusal", PATIENCE, || refused().then_some(()));
        }
    }
    assert!(bench.asks(0, PATIENCE), "a client is turned away: {}", bench.daemon.stderr());
}

/// RFC 4253, 4.2, allows them.
#[test]
fn lines_before_the_version_are_no_end() {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap();
    let sshd = runtime.block_on(Sshd::new());
    let (user, service, key) = (&sshd.user, sshd.path("service.sock"), sshd.path("id"));
    let url = format!("ssh://{user}@192.168.127.2{}?key={}&secure=0", service.display(), key.display());
    let daemon =
        Daemon::builder().args(["-debug", "-forward-sock", "{dir}/0", "-forward-dest", &url]).start();
    let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
    guest.configure("192.168.127.2/24", Some("192.168.127.1"));
    let listener = guest.listen("0.0.0.0:22".parse().unwrap());
    let mut client = UnixStream::connect(daemon.dir().join("0")).unwrap();
    // The same client is waited for until somebody lets it in.
    let login = |said: &str| {
        let (mut login, _) = listener.accept().unwrap();
        login.write_all(said.as_bytes()).unwrap();
        login
    };
    let end_after = |said: &str| {
        let mut login = login(said);
        login.read_exact(&mut [0; 8]).unwrap();
    };
    end_after("Welcome\r\nto this guest\nSSH-2.0-OpenSSH_9.9\r\n");
    let log = daemon.log_with("ssh: waiting for the guest");
    assert!(!log.contains("hangs up at once"), "{log}");
    end_after("Welcome\r\nto nowhere\r\n");
    daemon.log_with(r#"hangs up at once (\"Welcome\"); likely cause: it may be no sshd"#);
    let lets_in = login("Welcome\r\n");
    thread::scope(|scope| {
        scope.spawn(|| carry(&lets_in, &TcpStream::connect(sshd.addr).unwrap()));
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.write_all(b"Ehello").unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        let mut answer = Vec::new();
        client.read_to_end(&mut answer).unwrap();
        assert_eq!(answer, b"hello");
        lets_in.shutdown(Shutdown::Both).unwrap();
    });
}

#[test]
fn a_daemon_that_is_shut_out_says_so() {
    let bench = Bench::start(&["id"], true);
    bench.gate.shut(HOST);
    let client = UnixStream::connect(bench.socket(0)).unwrap();
    eventually("the reason", PATIENCE, || {
        let log = bench.daemon.stderr();
        let said = |line: &str| {
            line.contains("level=info")
                && line.contains("ssh: waiting for the guest")
                && line.contains("Not allowed at this time")
                && line.contains("PerSourcePenalties")
        };
        log.lines().any(said).then_some(())
    });
    drop(client);
}
