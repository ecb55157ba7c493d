//! Exposed ports and sockets, from the API through the daemon to a Linux guest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use rustix::process::{Pid, Resource, Rlimit, prlimit};
use testkit::daemon::Daemon;
use testkit::exposed::{Asker, Bench, GUEST, Refused};
use testkit::net::{GATEWAY, plug};
use testkit::sshd;
use testkit::streams::{self, Server, assert_echo, at};
use testkit::traffic::lead;
use testkit::udp::UdpSocket;
use testkit::uninterrupted;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(10);

fn accept(listener: &TcpListener) -> TcpStream {
    let (stream, from) = listener.accept().unwrap();
    assert_eq!(from.ip(), GATEWAY, "the guest sees the gateway");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[track_caller]
fn connect(to: (&str, u16)) -> TcpStream {
    let stream = TcpStream::connect(to).unwrap_or_else(|error| panic!("{to:?}: {error}"));
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// A word each way.
#[track_caller]
fn talk(mut one: impl Read + Write, mut other: impl Read + Write) {
    let mut buffer = [0; 4];
    one.write_all(b"ping").unwrap();
    other.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"ping");
    other.write_all(b"pong").unwrap();
    one.read_exact(&mut buffer).unwrap();
    assert_eq!(&buffer, b"pong");
}

/// Every way to write where to listen, and by which addresses of the host that is reached.
#[track_caller]
fn bind_forms(port: u16) -> [(String, &'static [&'static str]); 6] {
    assert!(
        UdpSocket::bind(("::1", 0)).is_ok(),
        "this test needs ::1 on the host: sysctl net.ipv6.conf.lo.disable_ipv6=0"
    );
    [
        (format!(":{port}"), &["127.0.0.1", "::1"]),
        (format!("0.0.0.0:{port}"), &["127.0.0.1", "::1"]),
        (format!("[::]:{port}"), &["127.0.0.1", "::1"]),
        (format!("127.0.0.1:{port}"), &["127.0.0.1"]),
        (format!("localhost:{port}"), &["127.0.0.1"]),
        (format!("[::1]:{port}"), &["::1"]),
    ]
}

#[test]
fn tcp_in_every_form() {
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let port = free_port();
    for (local, by) in bind_forms(port) {
        bench.expose("tcp", &local, "192.168.127.2:80");
        for &address in by {
            let client = connect((address, port));
            talk(&client, &accept(&listener));
        }
        bench.unexpose("tcp", &local);
        let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::ConnectionRefused, "{local}");
    }
}

#[test]
fn a_connection_outlives_its_port() {
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let port = free_port();
    let local = format!(":{port}");
    bench.expose("tcp", &local, "192.168.127.2:80");
    let first = connect(("127.0.0.1", port));
    let guest = accept(&listener);
    talk(&first, &guest);
    bench.unexpose("tcp", &local);
    talk(&first, &guest);
    // The port is free though a connection of it is open.
    bench.expose("tcp", &local, "192.168.127.2:80");
    talk(&connect(("127.0.0.1", port)), &accept(&listener));
    talk(&first, &guest);
}

#[test]
fn what_the_guest_refuses_is_reset() {
    let bench = Bench::start();
    // Nobody listens; nobody has the address; the address is not in the network.
    for remote in ["192.168.127.2:81", "192.168.127.77:80", "192.0.2.1:80", "192.168.127.1:80"] {
        let port = free_port();
        bench.expose("tcp", &format!("127.0.0.1:{port}"), remote);
        // The end may be there before the connect returns.
        let end = TcpStream::connect(("127.0.0.1", port)).and_then(|mut client| {
            client.set_read_timeout(Some(PATIENCE))?;
            uninterrupted(|| client.read(&mut [0]))
        });
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "{remote}");
    }
}

/// It is only the start that waits for one that may be about to end.
#[test]
fn a_socket_that_is_in_use_is_refused_at_once() {
    let bench = Bench::start();
    let path = bench.dir().join("s").display().to_string();
    let another = bench.dir().join("t");
    let _held = std::os::unix::net::UnixListener::bind(&another).unwrap();
    bench.expose("unix", &path, "tcp://192.168.127.2:80");
    for local in [format!("unix://{path}"), another.display().to_string()] {
        let start = std::time::Instant::now();
        let refused = bench.expose_as(Asker::Operator, "unix", &local, "tcp://192.168.127.2:80").unwrap_err();
        assert!(refused.text.contains("in use"), "{local}: {refused:?}");
        assert!(start.elapsed() < Duration::from_millis(500), "{local}: {:?}", start.elapsed());
    }
}

#[test]
fn a_port_serves_on_after_the_process_was_out_of_descriptors() {
    const CLIENTS: usize = 24;
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let port = free_port();
    bench.expose("tcp", &format!("127.0.0.1:{port}"), "192.168.127.2:80");
    let pid = Pid::from_raw(bench.daemon.pid().cast_signed()).unwrap();
    let limit = bench.daemon.fds() as u64 + 4;
    let limit = Rlimit { current: Some(limit), maximum: Some(limit) };
    prlimit(Some(pid), Resource::Nofile, limit).expect("a limit for a process of ours");
    // The kernel takes all of them; the daemon only as many as it has descriptors for.
    let clients: Vec<_> = (0..CLIENTS).map(|_| connect(("127.0.0.1", port))).collect();
    listener.set_nonblocking(true).unwrap();
    let next = || listener.accept().ok().map(|(stream, _)| stream);
    let mut waiting = Vec::new();
    while waiting.len() < 3 {
        waiting.push(eventually("the first connections", PATIENCE, next));
    }
    // A window of time to measure in: no descriptor is coming.
    let busy = bench.daemon.cpu_seconds();
    std::thread::sleep(Duration::from_secs(1));
    let busy = bench.daemon.cpu_seconds() - busy;
    assert!(busy < 0.1, "{busy} s of processor time in 1 s without descriptors");
    waiting.extend(std::iter::from_fn(next));
    assert!(waiting.len() < CLIENTS / 2, "{} connections under the limit", waiting.len());
    // Each one that ends makes room for the next.
    for client in clients {
        let guest = match waiting.is_empty() {
            true => eventually("the next connection", PATIENCE, next),
            false => waiting.remove(0),
        };
        guest.set_nonblocking(false).unwrap();
        guest.set_read_timeout(Some(PATIENCE)).unwrap();
        talk(&client, &guest);
    }
    let warnings = bench.daemon.stderr().matches("descriptors").count();
    assert!(warnings <= 2, "{}", bench.daemon.stderr());
}

/// Each listens by a descriptor. Who exposes without an end leaves some to others: clients of a forward, the
/// API.
#[test]
fn ports_leave_descriptors_to_clients() {
    for limit in [64, 256] {
        let builder = Daemon::builder().descriptors(limit);
        let forward = ["-forward-sock", "{dir}/forward", "-forward-dest", "unix://{dir}/echo"];
        let bench = Bench::of(builder.args(forward));
        let _server = Server::echo(bench.dir().join("echo"));
        let forward = at(bench.dir().join("forward"));
        for asker in [Asker::Guest(GUEST), Asker::Operator] {
            let mut exposed = Vec::new();
            let refused = loop {
                let local = format!("127.0.0.1:{}", free_port());
                match bench.expose_as(asker, "tcp", &local, "192.168.127.2:80") {
                    Ok(()) => exposed.push(local),
                    Err(refused) if refused.text.contains("address already in use") => {}
                    Err(refused) => break refused,
                }
            };
            assert!(refused.text.contains("too many open files: the limit is"), "{asker:?}: {refused}");
            // Each takes one, and a few are left.
            let few = if limit == 64 { 2 } else { 8 };
            assert!(exposed.len() >= few, "{asker:?}: {} of {limit}", exposed.len());
            for _ in 0..10 {
                let start = std::time::Instant::now();
                assert_echo(&streams::connect(&forward).unwrap(), b"hello");
                bench.all(Asker::Operator);
                assert!(start.elapsed() < Duration::from_secs(1), "{asker:?}: {:?}", start.elapsed());
            }
            // What one gives back may be had again.
            bench.unexpose("tcp", &exposed[0]);
            bench.expose_as(asker, "tcp", &exposed[0], "192.168.127.2:80").unwrap();
        }
        let log = bench.daemon.stderr();
        assert!(!log.contains("cannot accept"), "{log}");
    }
}

fn client(to: (&str, u16)) -> UdpSocket {
    let any: SocketAddr = if to.0.contains(':') { "[::1]:0" } else { "127.0.0.1:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any).unwrap();
    socket.connect(to).unwrap();
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// One datagram there and one back; where the guest saw it come from.
#[track_caller]
fn echo(client: &UdpSocket, service: &UdpSocket, payload: &[u8]) -> SocketAddr {
    let mut buffer = vec![0; 65_536];
    client.send(payload).unwrap();
    let (len, from) = service.recv_from(&mut buffer).unwrap();
    assert!(buffer[..len] == *payload, "{len} of {} bytes", payload.len());
    assert_eq!(from.ip(), GATEWAY, "the guest sees the gateway");
    service.send_to(&buffer[..len], from).unwrap();
    let len = client.recv(&mut buffer).unwrap();
    assert!(buffer[..len] == *payload, "{len} of {} bytes back", payload.len());
    from
}

fn service(bench: &Bench, port: u16) -> UdpSocket {
    let socket = bench.guest.udp((Ipv4Addr::UNSPECIFIED, port).into());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

#[test]
fn udp_in_every_form() {
    let bench = Bench::start();
    let service = service(&bench, 53);
    let port = free_port();
    for (local, by) in bind_forms(port) {
        bench.expose("udp", &local, "192.168.127.2:53");
        for &address in by {
            let one = client((address, port));
            let first = echo(&one, &service, b"hello");
            for len in [0, 1, 1472, 1473, 9000, 60_000] {
                assert_eq!(echo(&one, &service, &vec![7; len]), first, "one client is one flow");
            }
            assert_ne!(echo(&client((address, port)), &service, b"another"), first);
        }
        bench.unexpose("udp", &local);
    }
}

#[test]
fn answers_find_their_client() {
    const CLIENTS: usize = 200;
    let bench = Bench::start();
    let service = service(&bench, 53);
    let port = free_port();
    let local = format!("127.0.0.1:{port}");
    bench.expose("udp", &local, "192.168.127.2:53");
    let clients: Vec<UdpSocket> = (0..CLIENTS).map(|_| client(("127.0.0.1", port))).collect();
    for (number, client) in clients.iter().enumerate() {
        client.send(&number.to_be_bytes()).unwrap();
    }
    let mut asked = Vec::new();
    let mut buffer = [0; 8];
    for _ in 0..CLIENTS {
        let (_, from) = service.recv_from(&mut buffer).unwrap();
        asked.push((from, buffer));
    }
    for (from, number) in asked.iter().rev() {
        // Several at once, so that they are sent together.
        for _ in 0..3 {
            service.send_to(number, from).unwrap();
        }
    }
    for (number, client) in clients.iter().enumerate() {
        for _ in 0..3 {
            client.recv(&mut buffer).unwrap();
            assert_eq!(usize::from_be_bytes(buffer), number);
        }
    }
    // A port that is gone takes its flows with it: what the guest still says reaches nobody.
    bench.unexpose("udp", &local);
    service.send_to(b"too late", asked[0].0).unwrap();
    bench.expose("udp", &local, "192.168.127.2:53");
    let again = echo(&clients[0], &service, b"again");
    assert!(asked.iter().all(|(from, _)| *from != again), "a flow of its own");
}

#[test]
fn a_guest_that_is_not_there_yet_gets_the_first_datagrams() {
    let bench = Bench::start();
    bench.guest.run(["ip", "addr", "flush", "dev", "eth0"]);
    let port = free_port();
    bench.expose("udp", &format!("127.0.0.1:{port}"), "192.168.127.9:53");
    let client = client(("127.0.0.1", port));
    let service = service(&bench, 53);
    client.send(b"early").unwrap();
    // It is asked for three times, a second apart.
    bench.guest.run(["ip", "addr", "add", "192.168.127.9/24", "dev", "eth0"]);
    let mut buffer = [0; 16];
    assert_eq!(service.recv(&mut buffer).unwrap(), 5);
}

#[test]
fn unix_to_tcp() {
    let mut bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let path = bench.dir().join("s");
    let local = path.to_str().unwrap();
    bench.expose("unix", local, "tcp://192.168.127.2:80");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let one = UnixStream::connect(&path).unwrap();
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    let guest = accept(&listener);
    talk(&one, &guest);
    bench.unexpose("unix", local);
    assert!(!path.exists());
    talk(&one, &guest);
    // A dead socket is replaced, a file is not.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    bench.expose("unix", local, "tcp://192.168.127.2:80");
    talk(UnixStream::connect(&path).unwrap(), accept(&listener));
    let file = bench.dir().join("file");
    std::fs::write(&file, "precious").unwrap();
    let why = bench.refusal("unix", file.to_str().unwrap(), "tcp://192.168.127.2:80");
    assert!(why.ends_with("already exists"), "{why}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let why = bench.refusal("unix", local, "tcp://192.168.127.2:81");
    assert_eq!(why, format!("proxy already running for unix on {local}: it leads to tcp://192.168.127.2:80"));
    let why = bench.refusal("npipe", "npipe:////./pipe/x", "tcp://192.168.127.2:80");
    assert_eq!(why, "named pipes are not supported by this platform");
    // The end of all.
    assert!(bench.daemon.terminate().success());
    assert!(!path.exists());
}

/// For the service behind an sshd.
fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().unwrap()
}

/// The guest's port 22 is the sshd that listens on the loopback interface.
fn lead_to_sshd(bench: &Bench, sshd: &sshd::Sshd) {
    lead(bench.guest.listen("0.0.0.0:22".parse().unwrap()), sshd.addr);
}

/// What the echo service behind the unix socket `path` answers; nothing where the way to it fails.
fn ask_echo(path: &Path) -> Vec<u8> {
    let mut client = UnixStream::connect(path).unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    // One that is turned away may be closed already.
    let _ = client.write_all(b"Ehello").and_then(|()| client.shutdown(std::net::Shutdown::Write));
    let mut answer = Vec::new();
    match client.read_to_end(&mut answer) {
        Err(error) if error.kind() == ErrorKind::WouldBlock => panic!("no end: {answer:?}"),
        _ => answer,
    }
}

#[test]
fn a_guest_exposes_over_ssh_where_that_is_allowed() {
    let runtime = runtime();
    let sshd = runtime.block_on(sshd::Sshd::new());
    let guest = Asker::Guest(GUEST);
    for (args, answer) in [(&["-gateway-expose-all-protocols"][..], Some(&b"hello"[..])), (&[], None)] {
        let bench = Bench::with(args);
        lead_to_sshd(&bench, &sshd);
        let path = bench.dir().join("s");
        let remote = format!(
            "ssh-tunnel://{}@192.168.127.2:22{}?key={}",
            sshd.user,
            sshd.path("service.sock").display(),
            sshd.path("id").display()
        );
        let exposed = bench.expose_as(guest, "unix", path.to_str().unwrap(), &remote);
        assert_eq!(exposed.is_ok().then(|| ask_echo(&path)).as_deref(), answer, "{exposed:?}");
        let elsewhere = bench.expose_as(guest, "unix", path.to_str().unwrap(), "tcp://192.168.127.3:80");
        assert!(elsewhere.is_err(), "{args:?}");
    }
}

/// As a guest may name any file for a key where it may expose over SSH.
#[test]
fn no_file_that_is_named_as_a_key_fills_the_memory() {
    let bench = Bench::with(&["-gateway-expose-all-protocols"]);
    let (guest, path) = (Asker::Guest(GUEST), bench.dir().join("s"));
    let local = path.to_str().unwrap();
    let (long, fifo) = (bench.dir().join("long"), bench.dir().join("fifo"));
    // Holes, which read as zeros.
    std::fs::File::create(&long).unwrap().set_len(512 << 20).unwrap();
    sshd::run("mkfifo", &[sshd::text(&fifo)]);
    for (key, why) in [
        (&*long, "longer than 1048576 bytes"),
        (Path::new("/dev/zero"), "not a regular file"),
        (&fifo, "not a regular file"),
        (bench.dir(), "not a regular file"),
    ] {
        let remote = format!("ssh-tunnel://core@192.168.127.2/run/x?key={}", key.display());
        bench.expose_as(guest, "unix", local, &remote).unwrap();
        assert_eq!(ask_echo(&path), b"", "{}", key.display());
        bench.unexpose_as(guest, "unix", local).unwrap();
        let peak = bench.daemon.peak_rss_kb();
        assert!(peak < 200 << 10, "{peak} KiB for {}", key.display());
        let log = bench.daemon.log_with(&format!("cannot read the ssh identity {}", key.display()));
        assert!(log.contains(why), "{log}");
    }
}

/// It would be a question to the directory of users, which may be another machine.
#[test]
fn no_name_is_looked_up_for_a_guest() {
    let bench = Bench::with(&["-gateway-expose-all-protocols"]);
    for query in ["owner=no-such-user", "group=no-such-group", "mode=0600&owner=no-such-user"] {
        let local = format!("unix://{}?{query}", bench.dir().join("s").display());
        let refused = bench.expose_as(Asker::Guest(GUEST), "unix", &local, "tcp://192.168.127.2:80");
        let refused = format!("{refused:?}");
        assert!(refused.contains("a guest may expose plain unix sockets"), "{query}: {refused}");
    }
}

#[test]
fn a_secure_tunnel_goes_to_the_known_guest_only() {
    let home = tempfile::tempdir().unwrap();
    let bench = Bench::of(Daemon::builder().env("HOME", home.path()));
    let runtime = runtime();
    let sshd = runtime.block_on(sshd::Sshd::new());
    lead_to_sshd(&bench, &sshd);
    let path = bench.dir().join("s");
    let remote = |secure: &str| {
        let (user, service, key) = (&sshd.user, sshd.path("service.sock"), sshd.path("id"));
        format!(
            "ssh-tunnel://{user}@192.168.127.2{}?key={}&secure={secure}",
            service.display(),
            key.display()
        )
    };
    let key = |name| std::fs::read_to_string(sshd.path(name)).unwrap();
    std::fs::create_dir(home.path().join(".ssh")).unwrap();
    for (known, secure, answer) in [
        ("".to_owned(), "true", &b"hello"[..]),
        (format!("192.168.127.9 {}192.168.127.2 {}", key("id.pub"), key("host.pub")), "true", b"hello"),
        (format!("192.168.127.2 {}", key("id.pub")), "true", b""),
        (format!("192.168.127.2 {}", key("id.pub")), "false", b"hello"),
    ] {
        std::fs::write(home.path().join(".ssh/known_hosts"), &known).unwrap();
        bench.expose("unix", path.to_str().unwrap(), &remote(secure));
        assert_eq!(
            ask_echo(&path),
            answer,
            "secure={secure}, known hosts:\n{known}{}",
            bench.daemon.stderr()
        );
        bench.unexpose("unix", path.to_str().unwrap());
    }
    let log = bench.daemon.log_with("key is not the one");
    assert_eq!(log.matches("key is not the one").count(), 1, "{log}");
}

#[test]
fn a_tunnel_may_log_in_with_a_password() {
    let (bench, runtime) = (Bench::start(), runtime());
    let sshd = runtime.block_on(sshd::Sshd::with_password("tester", "s@cret"));
    lead_to_sshd(&bench, &sshd);
    let (path, service, key) = (bench.dir().join("s"), sshd.path("service.sock"), sshd.path("id"));
    for (login, answer) in [("tester:s%40cret", &b"hello"[..]), ("tester:secret", b"")] {
        let remote = format!("ssh-tunnel://{login}@192.168.127.2{}?key={}", service.display(), key.display());
        bench.expose("unix", path.to_str().unwrap(), &remote);
        assert_eq!(ask_echo(&path), answer, "{login}: {}", bench.daemon.stderr());
        bench.unexpose("unix", path.to_str().unwrap());
    }
    let log = bench.daemon.stderr();
    assert!(!log.contains("cret"), "a password in the log: {log}");
}

#[test]
fn unix_over_ssh() {
    let (bench, runtime) = (Bench::start(), runtime());
    let sshd = runtime.block_on(sshd::Sshd::new());
    lead_to_sshd(&bench, &sshd);
    let locked = sshd.path("locked");
    sshd::run("ssh-keygen", &["-q", "-t", "ed25519", "-N", "sec ret", "-f", sshd::text(&locked)]);
    let keys =
        [sshd.path("id.pub"), sshd.path("locked.pub")].map(|key| std::fs::read_to_string(key).unwrap());
    std::fs::write(sshd.path("authorized"), keys.concat()).unwrap();

    let path = bench.dir().join("s");
    let local = path.to_str().unwrap();
    let remote = |host: &str, query: &str| {
        format!("ssh-tunnel://{}@{host}{}?key={query}", sshd.user, sshd.path("service.sock").display())
    };
    let id = sshd.path("id").display().to_string();
    for (host, query, answer) in [
        ("192.168.127.2", id.clone(), &b"hello"[..]),
        ("192.168.127.2:22", format!("{}&passphrase=sec+ret", locked.display()), b"hello"),
        ("192.168.127.2", format!("{}&passphrase=wrong", locked.display()), b""),
        // The key is not looked at before a client comes.
        ("192.168.127.2", "/nonexistent".into(), b""),
    ] {
        bench.expose("unix", local, &remote(host, &query));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ask_echo(&path), answer, "{query}");
        bench.unexpose("unix", local);
        assert!(!path.exists(), "{query}");
    }
    let why = bench.refusal("unix", local, &remote("", &id));
    assert_eq!(why, "invalid remote addr: no host in \"\"");
}

#[test]
fn a_conflict_says_whose_the_port_is() {
    let bench = Bench::start();
    let port = free_port();
    let local = format!("127.0.0.1:{port}");
    bench.expose("tcp", &local, "192.168.127.2:80");
    bench.expose("tcp", &local, "192.168.127.2:80");
    bench.expose("udp", &local, "192.168.127.2:80");
    let why = bench.refusal("tcp", &local, "192.168.127.2:81");
    assert_eq!(why, format!("proxy already running for tcp on {local}: it leads to 192.168.127.2:80"));
    let why = bench.refusal("tcp", &format!(":{port}"), "192.168.127.2:80");
    assert_eq!(
        why,
        format!(
            "listen tcp :{port}: bind: address already in use (by this daemon: {local} leads to 192.168.127.2:80)"
        )
    );
    let exposed =
        |protocol| format!(r#"{{"local":"{local}","remote":"192.168.127.2:80","protocol":"{protocol}"}}"#);
    assert_eq!(bench.all(Asker::Operator), format!("[{},{}]", exposed("tcp"), exposed("udp")));

    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let why = bench.refusal("tcp", &taken.to_string(), "192.168.127.2:80");
    assert!(why.starts_with(&format!("listen tcp {taken}: bind: address already in use (by ")), "{why}");
    assert!(why.ends_with(&format!(", pid {})", std::process::id())), "{why}");
    let missing = bench.unexpose_as(Asker::Operator, "tcp", &taken.to_string()).unwrap_err();
    assert_eq!(missing, Refused { status: 500, text: "proxy not found".into() });
}

/// podman exposes a second container's `-p 8080:80` too, cannot start it, and takes the port back: it is
/// still the first one's.
#[test]
fn a_container_that_cannot_start_does_not_take_anothers_port_away() {
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let (guest, port) = (Asker::Guest(GUEST), free_port());
    let local = format!(":{port}");
    for _ in 0..2 {
        bench.expose_as(guest, "tcp", &local, "192.168.127.2:80").unwrap();
    }
    bench.unexpose_as(guest, "tcp", &local).unwrap();
    talk(&connect(("127.0.0.1", port)), &accept(&listener));
    bench.unexpose_as(guest, "tcp", &local).unwrap();
    let refused = TcpStream::connect(("127.0.0.1", port)).unwrap_err();
    assert_eq!(refused.kind(), ErrorKind::ConnectionRefused);
    assert!(bench.unexpose_as(guest, "tcp", &local).is_err(), "it is gone");
    // Who may use the daemon's sockets has the last word.
    for asker in [guest, guest, Asker::Operator] {
        bench.expose_as(asker, "tcp", &local, "192.168.127.2:80").unwrap();
    }
    bench.unexpose("tcp", &local);
    assert_eq!(bench.all(Asker::Operator), "[]");
}

/// The virtual machine is killed while the port is exposed, so that nobody takes it back, and boots again.
#[test]
fn a_guest_that_began_anew_takes_its_port_back() {
    let mut bench = Bench::with(&["-keep-running"]);
    let (guest, port) = (Asker::Guest(GUEST), free_port());
    let local = format!(":{port}");
    let expose = |bench: &Bench, asker| bench.expose_as(asker, "tcp", &local, "192.168.127.2:80").unwrap();
    let is_open_after_unexpose = |bench: &Bench| {
        bench.unexpose_as(guest, "tcp", &local).unwrap();
        TcpStream::connect(("127.0.0.1", port)).is_ok()
    };
    expose(&bench, guest);
    for boot in 0..2 {
        bench.guest.switch_off();
        let left = || (bench.daemon.stderr().matches("machine left").count() > boot).then_some(());
        eventually("the end of the link", PATIENCE, left);
        bench.guest.replug(plug(&bench.daemon));
        assert!(bench.guest.ping(GATEWAY, 56));
        if boot == 1 {
            // A second container with the port of the first, before and after the boot.
            for _ in 0..2 {
                expose(&bench, guest);
            }
            assert!(is_open_after_unexpose(&bench), "it is the first one's");
        } else {
            expose(&bench, guest);
        }
        // Containers that live for a moment.
        for run in 0..2 {
            assert!(!is_open_after_unexpose(&bench), "boot {boot}, run {run}");
            expose(&bench, guest);
        }
    }
    // What the operator asks for is no container.
    expose(&bench, Asker::Operator);
    assert!(!is_open_after_unexpose(&bench), "the guest asked once");
}

#[test]
fn a_guest_has_its_own_ports_only() {
    let ssh = free_port();
    let bench = Bench::with(&["-ssh-port", &ssh.to_string()]);
    let other = Ipv4Addr::new(192, 168, 127, 3);
    bench.guest.run(["ip", "addr", "add", "192.168.127.3/24", "dev", "eth0"]);
    let (guest, other) = (Asker::Guest(GUEST), Asker::Guest(other));
    let (own, operators) = (format!(":{}", free_port()), format!("127.0.0.1:{ssh}"));
    for protocol in ["tcp", "udp"] {
        // Its own address goes without saying.
        bench.expose_as(guest, protocol, &own, ":80").unwrap();
        bench.expose_as(guest, protocol, &own, "192.168.127.2:80").unwrap();
    }
    let listed = |asker| bench.all(asker).matches("local").count();
    assert_eq!((listed(guest), listed(other), listed(Asker::Operator)), (2, 0, 3));
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    talk(connect(("127.0.0.1", own[1..].parse().unwrap())), accept(&listener));

    // Neither another guest's nor the operator's, nor what they lead to.
    for (asker, local) in [(other, &own), (guest, &operators)] {
        let refused = bench.unexpose_as(asker, "tcp", local).unwrap_err();
        assert_eq!(refused, Refused { status: 500, text: "proxy not found".into() });
    }
    let refused = bench.expose_as(other, "tcp", &own, ":80").unwrap_err();
    assert_eq!(refused, Refused { status: 500, text: format!("proxy already running for tcp on {own}") });
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let refused = bench.expose_as(guest, "tcp", &taken.to_string(), ":80").unwrap_err();
    let text = format!("listen tcp {taken}: bind: address already in use");
    assert_eq!(refused, Refused { status: 500, text });

    let file = bench.dir().join("file");
    std::fs::write(&file, "precious").unwrap();
    for remote in ["tcp://192.168.127.2:80", "ssh-tunnel://u@192.168.127.2/x?key=/etc/passwd"] {
        let refused = bench.expose_as(guest, "unix", file.to_str().unwrap(), remote).unwrap_err();
        assert_eq!(refused.status, 403, "{refused}");
    }
    assert!(file.exists());
    for remote in ["192.168.127.3:80", "192.168.127.1:80"] {
        let refused = bench.expose_as(guest, "tcp", ":0", remote).unwrap_err();
        assert_eq!(refused.status, 403, "{refused}");
    }
    // As often as it has exposed them.
    for protocol in ["tcp", "udp", "tcp", "udp"] {
        bench.unexpose_as(guest, protocol, &own).unwrap();
    }
    assert_eq!(listed(Asker::Operator), 1);
}
