//! Exposed ports and sockets, from the registry through the engine to a Linux guest.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]
#[path = "support/sshd.rs"]
#[allow(dead_code, reason = "each test file uses its own part")]
mod sshd;
mod support;

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use gvproxy::forward::registry::{Asker, ExposeError, Exposed, Protocol};
use support::engine::{Bench, GUEST};
use support::net::GATEWAY;
use support::{eventually, free_port};

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

/// The host's loopback addresses: of IPv6 too, where it has that.
fn loopback() -> Vec<&'static str> {
    let all = ["127.0.0.1", "::1"];
    all.into_iter().filter(|address| UdpSocket::bind((*address, 0)).is_ok()).collect()
}

/// Every way to write where to listen, and by which of `addresses` that is reached.
fn bind_forms<'a>(port: u16, addresses: &[&'a str]) -> Vec<(String, Vec<&'a str>)> {
    let forms = [
        (format!(":{port}"), addresses.to_vec()),
        (format!("0.0.0.0:{port}"), addresses.to_vec()),
        (format!("[::]:{port}"), addresses.to_vec()),
        (format!("127.0.0.1:{port}"), vec!["127.0.0.1"]),
        (format!("localhost:{port}"), vec!["127.0.0.1"]),
        (format!("[::1]:{port}"), vec!["::1"]),
    ];
    forms.into_iter().filter(|(_, by)| by.iter().all(|address| addresses.contains(address))).collect()
}

#[test]
fn tcp_in_every_form() {
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let port = free_port();
    for (local, by) in bind_forms(port, &loopback()) {
        bench.expose(Protocol::Tcp, &local, "192.168.127.2:80");
        for address in by {
            let client = connect((address, port));
            talk(&client, &accept(&listener));
        }
        bench.unexpose(Protocol::Tcp, &local);
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
    bench.expose(Protocol::Tcp, &local, "192.168.127.2:80");
    let first = connect(("127.0.0.1", port));
    let guest = accept(&listener);
    talk(&first, &guest);
    bench.unexpose(Protocol::Tcp, &local);
    talk(&first, &guest);
    // The port is free though a connection of it is open.
    bench.expose(Protocol::Tcp, &local, "192.168.127.2:80");
    talk(&connect(("127.0.0.1", port)), &accept(&listener));
    talk(&first, &guest);
}

#[test]
fn what_the_guest_refuses_is_reset() {
    let bench = Bench::start();
    // Nobody listens; nobody has the address; the address is not in the network.
    for remote in ["192.168.127.2:81", "192.168.127.77:80", "192.0.2.1:80", "192.168.127.1:80"] {
        let port = free_port();
        bench.expose(Protocol::Tcp, &format!("127.0.0.1:{port}"), remote);
        let end = connect(("127.0.0.1", port)).read(&mut [0]);
        assert_eq!(end.unwrap_err().kind(), ErrorKind::ConnectionReset, "{remote}");
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
    for (local, by) in bind_forms(port, &loopback()) {
        bench.expose(Protocol::Udp, &local, "192.168.127.2:53");
        for address in by {
            let one = client((address, port));
            let first = echo(&one, &service, b"hello");
            for len in [0, 1, 1472, 1473, 9000, 60_000] {
                assert_eq!(echo(&one, &service, &vec![7; len]), first, "one client is one flow");
            }
            assert_ne!(echo(&client((address, port)), &service, b"another"), first);
        }
        bench.unexpose(Protocol::Udp, &local);
    }
}

#[test]
fn answers_find_their_client() {
    const CLIENTS: usize = 200;
    let bench = Bench::start();
    let service = service(&bench, 53);
    let port = free_port();
    let local = format!("127.0.0.1:{port}");
    bench.expose(Protocol::Udp, &local, "192.168.127.2:53");
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
    bench.unexpose(Protocol::Udp, &local);
    service.send_to(b"too late", asked[0].0).unwrap();
    bench.expose(Protocol::Udp, &local, "192.168.127.2:53");
    let again = echo(&clients[0], &service, b"again");
    assert!(asked.iter().all(|(from, _)| *from != again), "a flow of its own");
}

#[test]
fn a_guest_that_is_not_there_yet_gets_the_first_datagrams() {
    let bench = Bench::start();
    bench.guest.run(["ip", "addr", "flush", "dev", "eth0"]);
    let port = free_port();
    bench.expose(Protocol::Udp, &format!("127.0.0.1:{port}"), "192.168.127.9:53");
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
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let path = bench.dir().join("s");
    let local = path.to_str().unwrap();
    bench.expose(Protocol::Unix, local, "tcp://192.168.127.2:80");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    let one = UnixStream::connect(&path).unwrap();
    one.set_read_timeout(Some(PATIENCE)).unwrap();
    let guest = accept(&listener);
    talk(&one, &guest);
    bench.unexpose(Protocol::Unix, local);
    assert!(!path.exists());
    talk(&one, &guest);
    // A dead socket is replaced, a file is not.
    drop(std::os::unix::net::UnixListener::bind(&path).unwrap());
    bench.expose(Protocol::Unix, local, "tcp://192.168.127.2:80");
    talk(UnixStream::connect(&path).unwrap(), accept(&listener));
    let file = bench.dir().join("file");
    std::fs::write(&file, "precious").unwrap();
    let why = bench.refusal(Protocol::Unix, file.to_str().unwrap(), "tcp://192.168.127.2:80");
    assert!(why.ends_with("already exists"), "{why}");
    assert_eq!(std::fs::read(&file).unwrap(), b"precious");
    let why = bench.refusal(Protocol::Unix, local, "tcp://192.168.127.2:81");
    assert_eq!(why, format!("proxy already running for unix on {local}: it leads to tcp://192.168.127.2:80"));
    let why = bench.refusal(Protocol::Npipe, "npipe:////./pipe/x", "tcp://192.168.127.2:80");
    assert_eq!(why, "named pipes are not supported by this platform");
    // The end of all.
    bench.runtime.block_on(bench.registry.close());
    assert!(!path.exists());
    assert_eq!(bench.refusal(Protocol::Unix, local, "tcp://192.168.127.2:80"), "the daemon is stopping");
}

#[test]
fn unix_over_ssh() {
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    let bench = Bench::start();
    let sshd = bench.runtime.block_on(sshd::Sshd::new());
    // The guest's port 22 is the sshd that listens on the loopback interface.
    let (listener, to) = (bench.guest.listen("0.0.0.0:22".parse().unwrap()), sshd.addr);
    std::thread::spawn(move || {
        while let Ok((guest, _)) = listener.accept() {
            let Ok(host) = TcpStream::connect(to) else { break };
            let ends = (guest.try_clone().unwrap(), host.try_clone().unwrap());
            for (mut from, mut to) in [(guest, host), (ends.1, ends.0)] {
                std::thread::spawn(move || {
                    let _ = std::io::copy(&mut from, &mut to);
                    let _ = to.shutdown(std::net::Shutdown::Write);
                });
            }
        }
    });
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
    let ask = || {
        bench.runtime.block_on(async {
            let mut client = tokio::net::UnixStream::connect(&path).await.unwrap();
            let mut answer = Vec::new();
            client.write_all(b"Ehello").await.unwrap();
            client.shutdown().await.unwrap();
            let _ = tokio::time::timeout(PATIENCE, client.read_to_end(&mut answer)).await.expect("an end");
            answer
        })
    };
    let id = sshd.path("id").display().to_string();
    for (host, query, answer) in [
        ("192.168.127.2", id.clone(), &b"hello"[..]),
        ("192.168.127.2:22", format!("{}&passphrase=sec+ret", locked.display()), b"hello"),
        ("192.168.127.2", format!("{}&passphrase=wrong", locked.display()), b""),
        // The key is not looked at before a client comes.
        ("192.168.127.2", "/nonexistent".into(), b""),
    ] {
        bench.expose(Protocol::Unix, local, &remote(host, &query));
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(ask(), answer, "{query}");
        bench.unexpose(Protocol::Unix, local);
        assert!(!path.exists(), "{query}");
    }
    let why = bench.refusal(Protocol::Unix, local, &remote("guest", &id));
    assert_eq!(why, "invalid remote addr: \"guest\" is not an IPv4 address");
}

#[test]
fn a_conflict_says_whose_the_port_is() {
    let bench = Bench::start();
    let port = free_port();
    let local = format!("127.0.0.1:{port}");
    bench.expose(Protocol::Tcp, &local, "192.168.127.2:80");
    bench.expose(Protocol::Tcp, &local, "192.168.127.2:80");
    bench.expose(Protocol::Udp, &local, "192.168.127.2:80");
    let why = bench.refusal(Protocol::Tcp, &local, "192.168.127.2:81");
    assert_eq!(why, format!("proxy already running for tcp on {local}: it leads to 192.168.127.2:80"));
    let why = bench.refusal(Protocol::Tcp, &format!(":{port}"), "192.168.127.2:80");
    assert_eq!(
        why,
        format!(
            "listen tcp :{port}: bind: address already in use (by this daemon: {local} leads to 192.168.127.2:80)"
        )
    );
    let exposed = |protocol| Exposed { local: local.clone(), remote: "192.168.127.2:80".into(), protocol };
    assert_eq!(bench.registry.all(), [exposed(Protocol::Tcp), exposed(Protocol::Udp)]);

    let other = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = other.local_addr().unwrap();
    let why = bench.refusal(Protocol::Tcp, &taken.to_string(), "192.168.127.2:80");
    assert!(why.starts_with(&format!("listen tcp {taken}: bind: address already in use (by ")), "{why}");
    assert!(why.ends_with(&format!(", pid {})", std::process::id())), "{why}");
    let missing = bench.unexpose_as(Asker::Operator, Protocol::Tcp, &taken.to_string()).unwrap_err();
    assert_eq!(missing.to_string(), "proxy not found");
}

#[test]
fn a_guest_has_its_own_ports_only() {
    let bench = Bench::start();
    let (guest, other) = (Asker::Guest(GUEST), Asker::Guest(Ipv4Addr::new(192, 168, 127, 3)));
    let ports = [free_port(), free_port()].map(|port| format!(":{port}"));
    let [own, operators] = &ports;
    bench.expose(Protocol::Tcp, operators, "192.168.127.2:80");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        bench.expose_as(guest, protocol, own, "192.168.127.2:80").unwrap();
        bench.expose_as(guest, protocol, own, "192.168.127.2:80").unwrap();
    }
    assert_eq!(bench.registry.seen_by(guest).len(), 2);
    assert_eq!((bench.registry.seen_by(other).len(), bench.registry.all().len()), (0, 3));

    // Neither another guest's nor the operator's, nor what they lead to.
    for (asker, local) in [(other, own), (guest, operators)] {
        let error = bench.unexpose_as(asker, Protocol::Tcp, local).unwrap_err();
        assert!(matches!(error, ExposeError::NotFound), "{error}");
    }
    let error = bench.expose_as(other, Protocol::Tcp, own, "192.168.127.3:80").unwrap_err();
    assert_eq!(error.to_string(), format!("proxy already running for tcp on {own}"));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let taken = taken.local_addr().unwrap();
    let error = bench.expose_as(guest, Protocol::Tcp, &taken.to_string(), "192.168.127.2:80").unwrap_err();
    assert_eq!(error.to_string(), format!("listen tcp {taken}: bind: address already in use"));

    let file = bench.dir().join("file");
    std::fs::write(&file, "precious").unwrap();
    for remote in ["tcp://192.168.127.2:80", "ssh-tunnel://u@192.168.127.2/x?key=/etc/passwd"] {
        let local = file.to_str().unwrap();
        let error = bench.expose_as(guest, Protocol::Unix, local, remote).unwrap_err();
        assert!(matches!(error, ExposeError::Denied(_)), "{error}");
    }
    assert!(file.exists());
    let error = bench.expose_as(guest, Protocol::Tcp, ":0", "192.168.127.3:80").unwrap_err();
    assert!(matches!(error, ExposeError::Denied(_)), "{error}");
    for protocol in [Protocol::Tcp, Protocol::Udp] {
        bench.unexpose_as(guest, protocol, own).unwrap();
    }
    eventually("only the operator's is left", PATIENCE, || (bench.registry.all().len() == 1).then_some(()));
}
