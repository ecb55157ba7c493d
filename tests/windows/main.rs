//! The programs for Windows at work, under Wine, in a network of their own that `tests/windows.sh` makes: it
//! shares its loopback interface with the guest's relay, an sshd and the resolver that the tests bring.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

mod pipes;
mod sshproxy;

use std::io::{Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::PathBuf;
use std::time::Duration;

use testkit::cable::{Cable, Framing, Kind};
use testkit::daemon::{Builder, Daemon};
use testkit::dns;
use testkit::guest::{self, Guest, Lease};
use testkit::net::{GATEWAY, HOST};
use testkit::traffic::{accept, answer_each, impatient, transfer};
use testkit::{eventually, free_port, http, uninterrupted};

testkit::agent_in_a_namespace!();

/// What Wine may take for anything.
pub(crate) const PATIENCE: Duration = Duration::from_secs(60);
const MIB: u64 = 1 << 20;
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

/// A program for Windows, as one of this system.
pub(crate) fn program(name: &str) -> PathBuf {
    let programs = std::env::var_os("WINDOWS_PROGRAMS");
    PathBuf::from(programs.expect("this test needs programs for Windows: run `make windows`")).join(name)
}

/// A daemon with `args`.
pub(crate) fn builder<const N: usize>(args: [&str; N]) -> Builder {
    Daemon::builder().without_qemu().binary(program("gvproxy")).args(["-pid-file", "{dir}/pid"]).args(args)
}

/// The port at the end of `before` in the daemon's log.
pub(crate) fn port_behind(daemon: &Daemon, before: &str) -> u16 {
    eventually(&format!("a port behind {before:?}"), PATIENCE, || {
        let log = daemon.stderr();
        let (_, rest) = log.split_once(before)?;
        rest.split(|c: char| !c.is_ascii_digit()).next()?.parse().ok()
    })
}

/// A daemon that QEMU connects to by TCP, its API's port, and a guest that has its lease.
fn network() -> (Guest, Lease, Daemon, u16) {
    let api = free_port();
    let listen = format!("tcp://127.0.0.1:{api}");
    let daemon = builder(["-listen-qemu", "tcp://127.0.0.1:0", "-listen", &listen]).spawn();
    let qemu = port_behind(&daemon, "waiting for the virtual machine\" address=\"127.0.0.1:");
    let link = TcpStream::connect(("127.0.0.1", qemu)).unwrap();
    let guest = Guest::start(Cable::new(link, Framing::Big32), guest::MAC, 1500);
    let lease = guest.dhcp();
    (guest, lease, daemon, api)
}

/// Asks the API.
pub(crate) fn ask(api: u16, path: &str, body: &str) -> http::Answer {
    let stream = impatient(TcpStream::connect(("127.0.0.1", api)).unwrap());
    let length = body.len();
    let request = format!(
        "POST {path} HTTP/1.1\r\nHost: localhost\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    );
    http::Answer::of(&http::exchange(stream, request.as_bytes()))
}

/// Ends it as taskkill and podman do.
#[track_caller]
pub(crate) fn close(mut daemon: Daemon) {
    let file = daemon.dir().join("pid");
    let pid = std::fs::read_to_string(&file).unwrap();
    let closed = std::process::Command::new(program("client")).args(["close", &pid]).status().unwrap();
    assert!(closed.success(), "{closed:?}: no window");
    let ended = daemon.wait(PATIENCE).expect("it ends with its window");
    assert!(ended.success() && !file.exists(), "{ended:?}: {}", daemon.stderr());
    assert!(daemon.stderr().contains("gvproxy exiting: signal caught"), "{}", daemon.stderr());
}

#[test]
fn a_guest_on_qemus_tcp() {
    let (guest, lease, daemon, api) = network();
    assert_eq!((lease.ip(), lease.option("router")), (GUEST, "192.168.127.1"));

    // DNS: its own zone, and the resolvers of Windows' adapters, which Wine takes from resolv.conf.
    let resolver = UdpSocket::bind("127.0.0.1:53").unwrap();
    let answers = std::thread::spawn(move || {
        let mut question = [0; 2000];
        let (len, from) = uninterrupted(|| resolver.recv_from(&mut question)).unwrap();
        let answer = dns::answer(&question[..len], 0, Some([192, 0, 2, 77]));
        resolver.send_to(&answer, from).unwrap();
    });
    let resolvers = SocketAddr::from((GATEWAY, 53));
    let own = dns::ask_udp(&guest, resolvers, &dns::question("host.containers.internal", 1, None));
    assert!(own.ends_with(&HOST.octets()), "{own:?}");
    let asked = dns::ask_udp(&guest, resolvers, &dns::question("windows.example", 1, None));
    assert!(asked.ends_with(&[192, 0, 2, 77]), "{asked:?}\n{}", daemon.stderr());
    answers.join().unwrap();

    // TCP from the guest, both ways, and half closed.
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = SocketAddr::from((HOST, listener.local_addr().unwrap().port()));
    let dialled = impatient(guest.connect(at).unwrap());
    let served = accept(&listener);
    transfer(&dialled, &served, 64 * MIB);
    transfer(&served, &dialled, 64 * MIB);
    drop((dialled, served));

    // 30 at once, and one that nobody takes.
    listener.set_nonblocking(false).unwrap();
    let server = answer_each(listener, 30);
    let mut clients: Vec<_> = (0..30).map(|_| impatient(guest.connect(at).unwrap())).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(&[number as u8]).unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut answer = [0];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(answer, [number as u8]);
    }
    server.join().unwrap().unwrap();
    drop(clients);
    let refused = guest.connect(at).unwrap_err();
    assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused);

    // UDP, and a ping that Windows' own call sends.
    let service = UdpSocket::bind("127.0.0.1:0").unwrap();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    let asks = guest.udp((GUEST, 0).into());
    asks.set_read_timeout(Some(PATIENCE)).unwrap();
    asks.connect((HOST, service.local_addr().unwrap().port())).unwrap();
    let mut bytes = [0; 2000];
    for length in [1, 1400] {
        asks.send(&vec![7; length]).unwrap();
        let (len, from) = service.recv_from(&mut bytes).unwrap();
        assert_eq!(len, length);
        service.send_to(&bytes[..len], from).unwrap();
        assert_eq!(asks.recv(&mut bytes).unwrap(), length);
    }
    assert!(guest.ping(HOST, 56), "{}", daemon.stderr());

    // The host to the guest: TCP and UDP.
    let inside = guest.listen((GUEST, 80).into());
    let free = free_port();
    let tcp = format!(r#"{{"local":"127.0.0.1:{free}","remote":"{GUEST}:80"}}"#);
    let exposed = ask(api, "/services/forwarder/expose", &tcp);
    assert_eq!(exposed.status, 200, "{exposed:?}");
    let dialled = impatient(TcpStream::connect(("127.0.0.1", free)).unwrap());
    let served = accept(&inside);
    transfer(&dialled, &served, 8 * MIB);
    transfer(&served, &dialled, 8 * MIB);
    let udp = format!(r#"{{"local":"127.0.0.1:{free}","remote":"{GUEST}:53","protocol":"udp"}}"#);
    assert_eq!(ask(api, "/services/forwarder/expose", &udp).status, 200);
    let (inside, outside) = (guest.udp((GUEST, 53).into()), UdpSocket::bind("127.0.0.1:0").unwrap());
    for socket in [&inside, &outside] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    for _ in 0..3 {
        // One who asks and leaves is nobody else's failure.
        let left = UdpSocket::bind("127.0.0.1:0").unwrap();
        left.send_to(b"hello", ("127.0.0.1", free)).unwrap();
        let (len, from) = inside.recv_from(&mut bytes).unwrap();
        drop(left);
        inside.send_to(&bytes[..len], from).unwrap();
        outside.send_to(b"still", ("127.0.0.1", free)).unwrap();
        let (len, from) = inside.recv_from(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"still");
        inside.send_to(b"there", from).unwrap();
        let len = outside.recv(&mut bytes).unwrap();
        assert_eq!(&bytes[..len], b"there");
    }
    let unexposed = ask(api, "/services/forwarder/unexpose", &format!(r#"{{"local":"127.0.0.1:{free}"}}"#));
    assert_eq!(unexposed.status, 200, "{unexposed:?}");
    eventually("the port is free", PATIENCE, || TcpStream::connect(("127.0.0.1", free)).err());
    close(daemon);
}

/// As WSL's gvforwarder starts it.
#[test]
fn a_guest_on_standard_input_and_output() {
    let mut daemon = builder(["-listen-stdio", "accept"]).with_pipes().spawn();
    let guest = Guest::start(Kind::Stdio.plug(&mut daemon), guest::MAC, 1500);
    assert_eq!(guest.dhcp().ip(), GUEST);
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let at = SocketAddr::from((HOST, listener.local_addr().unwrap().port()));
    let dialled = impatient(guest.connect(at).unwrap());
    let mut served = accept(&listener);
    transfer(&dialled, &served, 16 * MIB);
    served.write_all(b"bye").unwrap();
    served.shutdown(Shutdown::Write).unwrap();
    let mut said = String::new();
    let mut dialled = dialled;
    uninterrupted(|| dialled.read_to_string(&mut said)).unwrap();
    assert_eq!(said, "bye");
    // The machine leaves, and the run ends with it.
    drop(guest);
    let ended = daemon.wait(PATIENCE).expect("it ends with its machine");
    assert!(ended.success(), "{ended:?}: {}", daemon.stderr());
}

#[test]
fn what_windows_has_not_is_said() {
    for (args, why) in [
        (["-listen-vfkit", "unixgram:///tmp/x"], "vfkit"),
        (["-listen", "npipe:////./pipe/x"], "unexpected scheme"),
        (["-listen-qemu", "unix:///tmp/x"], "this Windows has no unix sockets: a named pipe is npipe:"),
    ] {
        let mut daemon = builder(args).spawn();
        let ended = daemon.wait(PATIENCE).expect("it fails at once");
        assert!(!ended.success() && daemon.stderr().contains(why), "{args:?}: {}", daemon.stderr());
    }
}
