//! What happens to packets on the way: a shorter link or no way behind the guest, a guest that takes a
//! datagram no more, a packet that may go no further than the gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use testkit::exposed::{Bench, GUEST};
use testkit::guest::NIC;
use testkit::net::{ELSEWHERE, HOST, Net};
use testkit::ns::Namespace;
use testkit::uninterrupted;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(20);
/// Somebody behind the guest.
const BEHIND: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 9);

/// A network behind the guest, which forwards to it over a link that takes `mtu` bytes; there one may believe
/// that 1500 can come.
fn behind(guest: &Namespace, mtu: u16) -> Namespace {
    let behind = Namespace::inside(guest);
    let (mtu, pid) = (mtu.to_string(), behind.pid().to_string());
    guest
        .run(["ip", "link", "add", "way", "mtu", &mtu, "type", "veth", "peer", "name", "way", "netns", &pid]);
    guest.run(["ip", "link", "set", "way", "up"]);
    behind.run(["ip", "link", "set", "way", "mtu", "1500", "up"]);
    behind.run(["ip", "addr", "add", &format!("{BEHIND}/32"), "dev", "way"]);
    behind.run(["ip", "route", "add", &GUEST.to_string(), "dev", "way"]);
    behind.run(["ip", "route", "add", "default", "via", &GUEST.to_string()]);
    guest.run(["ip", "route", "add", &BEHIND.to_string(), "dev", "way"]);
    for setting in ["ip_forward", &format!("conf/{NIC}/proxy_arp")] {
        guest.run(["sh", "-c", &format!("echo 1 >/proc/sys/net/ipv4/{setting}")]);
    }
    behind
}

#[test]
fn data_passes_a_shorter_link_behind_the_guest() {
    const LENGTH: usize = 3 << 20;
    let bench = Bench::start();
    let behind = behind(&bench.guest, 1280);
    let listener = behind.listen((BEHIND, 80).into());
    let port = free_port();
    bench.expose("tcp", &format!(":{port}"), &format!("{BEHIND}:80"));
    for round in 0..2 {
        let start = Instant::now();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_write_timeout(Some(PATIENCE)).unwrap();
        let (mut server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let received = std::thread::scope(|scope| {
            let received = scope.spawn(move || {
                let mut bytes = Vec::new();
                let ended = server.read_to_end(&mut bytes);
                (bytes, ended.err())
            });
            client.write_all(&vec![7; LENGTH]).unwrap();
            client.shutdown(std::net::Shutdown::Write).unwrap();
            received.join().unwrap()
        });
        assert_eq!((received.0.len(), received.1.map(|error| error.kind())), (LENGTH, None), "round {round}");
        assert!(received.0.iter().all(|byte| *byte == 7));
        assert!(start.elapsed() < Duration::from_secs(5), "took {:?}", start.elapsed());
    }
}

#[test]
fn a_connection_that_cannot_go_on_behind_the_guest_fails_at_once() {
    let bench = Bench::start();
    let nowhere = "192.168.127.10";
    let port = free_port();
    bench.expose("tcp", &format!(":{port}"), &format!("{nowhere}:80"));
    let attempt = || {
        let start = Instant::now();
        let mut client = TcpStream::connect(("127.0.0.1", port)).unwrap();
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        let ended = uninterrupted(|| client.read(&mut [0])).map_err(|error| error.kind());
        assert!(!matches!(ended, Err(ErrorKind::WouldBlock)) && ended != Ok(1), "{ended:?}");
        start.elapsed()
    };
    // For the gateway to know whose it is, it is the guest's for a moment.
    bench.guest.run(["ip", "addr", "add", &format!("{nowhere}/24"), "dev", NIC]);
    attempt();
    bench.guest.run(["ip", "addr", "del", &format!("{nowhere}/24"), "dev", NIC]);
    bench.guest.run(["ip", "route", "add", "unreachable", nowhere]);
    bench.guest.run(["sh", "-c", "echo 1 >/proc/sys/net/ipv4/ip_forward"]);
    let took = attempt();
    assert!(took < Duration::from_secs(1), "failed after {took:?}");
}

#[test]
fn an_answer_that_no_guest_takes_is_refused() {
    let net = Net::start();
    let service = net.host.udp("127.0.0.1:0".parse().unwrap());
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
    client.send_to(b"question", (HOST, service.local_addr().unwrap().port())).unwrap();
    let (_, from) = service.recv_from(&mut [0; 99]).unwrap();
    drop(client);
    service.connect(from).unwrap();
    eventually("the service hears that nobody listens", PATIENCE, || match service.send(b"answer") {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => Some(()),
        Err(error) => panic!("{error}"),
        Ok(_) => None,
    });
}

#[test]
fn the_gateway_is_the_first_hop() {
    let net = Net::start();
    let listener = net.host.listen((ELSEWHERE, 0).into());
    let to: SocketAddr = listener.local_addr().unwrap();
    let connect = |ttl: u32| {
        let socket = net.guest.tcp();
        socket.set_ttl_v4(ttl).unwrap();
        socket.connect_timeout(&to.into(), PATIENCE).map_err(|error| error.kind())
    };
    assert_eq!(connect(1), Err(ErrorKind::HostUnreachable), "time exceeded");
    assert_eq!(connect(2), Ok(()));
    // Who is inside the network is no hop away.
    let (_listener, to) = net.listen();
    let socket = net.guest.tcp();
    socket.set_ttl_v4(1).unwrap();
    socket.connect_timeout(&to.into(), PATIENCE).unwrap();
}
