//! TCP between a Linux guest and its host through the daemon: every byte, every kind of end.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use socket2::{SockRef, Socket};
use testkit::net::{BLACK_HOLE, ELSEWHERE, HOST, Net, UNREACHABLE};
use testkit::traffic::{accept, answer_each, impatient, transfer};
use testkit::uninterrupted;
use testkit::{eventually, ns::Namespace};

testkit::agent_in_a_namespace!();

const GIB: u64 = 1 << 30;

/// A connection from the guest to a service on the host's loopback: the guest's end and the host's.
#[track_caller]
fn pair(net: &Net) -> (TcpStream, TcpStream) {
    let (listener, address) = net.listen();
    let guest = net.guest.connect(address).expect("a connection to the host");
    (impatient(guest), accept(&listener))
}

/// Starts a connect and does not wait for it.
#[track_caller]
fn begin(ns: &Namespace, to: SocketAddr) -> Socket {
    let socket = ns.tcp();
    socket.set_nonblocking(true).unwrap();
    match socket.connect(&to.into()) {
        Err(error) if error.raw_os_error() == Some(rustix::io::Errno::INPROGRESS.raw_os_error()) => socket,
        other => panic!("connect {to}: {other:?}"),
    }
}

#[test]
fn carries_a_gib_each_way() {
    // As podman 5 starts it.
    let builder = testkit::daemon::Daemon::builder().args(["-mtu", "1500"]);
    let net = Net::with(testkit::net::Host::new("nameserver 127.0.0.1\n"), builder, 1500);
    let (guest, host) = pair(&net);
    transfer(&guest, &host, GIB);
    // The same connection, now half closed, carries the other direction.
    transfer(&host, &guest, GIB);
}

#[test]
fn carries_both_ways_at_once_at_a_large_mtu() {
    let builder = testkit::daemon::Daemon::builder().args(["-mtu", "65520"]);
    let net = Net::with(testkit::net::Host::new("nameserver 127.0.0.1\n"), builder, 65520);
    assert_eq!(net.lease.option("mtu"), "65520");
    let (guest, host) = pair(&net);
    std::thread::scope(|scope| {
        scope.spawn(|| transfer(&guest, &host, GIB / 4));
        scope.spawn(|| transfer(&host, &guest, GIB / 4));
    });
}

#[test]
fn makes_2000_short_connections() {
    const EACH: usize = 250;
    let net = Net::start();
    std::thread::scope(|scope| {
        for _ in 0..8 {
            scope.spawn(|| {
                let (listener, address) = net.listen();
                let server = answer_each(listener, EACH);
                for number in 0..EACH {
                    let mut stream =
                        impatient(net.guest.connect(address).unwrap_or_else(|e| panic!("{number}: {e}")));
                    let mut answer = [0];
                    stream.write_all(&[number as u8]).unwrap();
                    stream.read_exact(&mut answer).unwrap_or_else(|error| panic!("{number}: {error}"));
                    assert_eq!(answer, [number as u8]);
                    assert_eq!(
                        uninterrupted(|| stream.read(&mut answer)).unwrap(),
                        0,
                        "the server has closed"
                    );
                }
                server.join().unwrap().unwrap();
            });
        }
    });
}

#[test]
fn reaches_other_addresses_than_the_loopback() {
    let net = Net::start();
    let listener = net.host.listen((ELSEWHERE, 0).into());
    let guest = net.guest.connect(listener.local_addr().unwrap()).expect("a connection");
    transfer(&impatient(guest), &accept(&listener), 100_000);
}

#[test]
fn carries_half_closes() {
    let net = Net::start();
    for first_is_guest in [true, false] {
        let (guest, host) = pair(&net);
        let (mut first, mut second) = if first_is_guest { (guest, host) } else { (host, guest) };
        first.write_all(b"question").unwrap();
        first.shutdown(Shutdown::Write).unwrap();
        let mut text = String::new();
        second.read_to_string(&mut text).unwrap();
        assert_eq!(text, "question");
        // The other half lives on, for as long as it likes and for more than any buffer holds.
        transfer(&second, &first, 8 << 20);
    }
}

#[test]
fn carries_resets() {
    let net = Net::start();
    for aborter_is_guest in [true, false] {
        let (guest, host) = pair(&net);
        let (aborter, mut other) = if aborter_is_guest { (guest, host) } else { (host, guest) };
        SockRef::from(&aborter).set_linger(Some(Duration::ZERO)).unwrap();
        drop(aborter);
        let end = uninterrupted(|| other.read(&mut [0; 16]));
        let who = if aborter_is_guest { "guest" } else { "host" };
        assert!(
            matches!(&end, Err(error) if error.kind() == ErrorKind::ConnectionReset),
            "after an abort by the {who} the other side saw {end:?}"
        );
    }
}

#[test]
fn a_reset_after_data_leaves_no_flow_behind() {
    let net = Net::start();
    let before = net.daemon.fds();
    for _ in 0..100 {
        let (guest, mut host) = pair(&net);
        host.write_all(&[1; 100_000]).unwrap();
        SockRef::from(&guest).set_linger(Some(Duration::ZERO)).unwrap();
    }
    eventually("the descriptors of aborted flows are closed", Duration::from_secs(10), || {
        (net.daemon.fds() <= before).then_some(())
    });
}

#[test]
fn refuses_at_once() {
    let net = Net::start();
    let (listener, address) = net.listen();
    drop(listener);
    let start = Instant::now();
    let error = net.guest.connect(address).expect_err("nobody listens there");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "only after {:?}", start.elapsed());
}

#[test]
fn says_when_there_is_no_way() {
    let net = Net::start();
    let start = Instant::now();
    let error = net.guest.connect((UNREACHABLE, 80).into()).expect_err("the host has no route there");
    assert!(matches!(error.kind(), ErrorKind::HostUnreachable | ErrorKind::NetworkUnreachable), "{error}");
    assert!(start.elapsed() < Duration::from_secs(1), "only after {:?}", start.elapsed());
}

#[test]
fn a_black_hole_delays_nobody_else() {
    let net = Net::start();
    let (listener, address) = net.listen();
    let connect = || {
        let start = Instant::now();
        let guest = net.guest.connect(address).expect("a connection to the host");
        drop((guest, accept(&listener)));
        start.elapsed()
    };
    let median = || {
        let mut times: Vec<_> = (0..51).map(|_| connect()).collect();
        times.sort();
        times[times.len() / 2]
    };
    let alone = median();
    let held: Vec<_> = (0..500).map(|port| begin(&net.guest, (BLACK_HOLE, 1000 + port).into())).collect();
    let beside = median();
    assert!(
        beside < 3 * alone + Duration::from_millis(20),
        "{alone:?} alone, {beside:?} beside 500 lost connects"
    );
    for socket in &held {
        assert!(socket.take_error().unwrap().is_none(), "silence until the guest's own time-out");
        assert!(socket.peer_addr().is_err(), "connected to a black hole");
    }
}

#[test]
fn makes_500_connections_at_once() {
    let net = Net::start();
    let (listener, address) = net.listen();
    let sockets: Vec<_> = (0..500).map(|_| begin(&net.guest, address)).collect();
    let mut accepted = Vec::new();
    for _ in &sockets {
        accepted.push(accept(&listener));
    }
    for socket in sockets {
        assert!(socket.take_error().unwrap().is_none());
        eventually("a connect's end", Duration::from_secs(10), || socket.peer_addr().ok());
        socket.set_nonblocking(false).unwrap();
        let mut guest = TcpStream::from(socket);
        guest.write_all(&guest.local_addr().unwrap().port().to_be_bytes()).unwrap();
        guest.shutdown(Shutdown::Write).unwrap();
        accepted.push(guest);
    }
    let mut ports = std::collections::HashSet::new();
    let (hosts, guests) = accepted.split_at(500);
    for mut host in hosts {
        let mut port = [0; 2];
        host.read_exact(&mut port).unwrap();
        ports.insert(u16::from_be_bytes(port));
    }
    assert_eq!(
        ports,
        guests.iter().map(|guest| guest.local_addr().unwrap().port()).collect(),
        "each its own"
    );
}

#[test]
fn holds_more_connections_than_a_soft_limit_of_1024_descriptors() {
    let net = Net::start();
    let (listener, address) = net.listen();
    let mut pairs: Vec<_> =
        (0..1500).map(|_| (impatient(net.guest.connect(address).unwrap()), accept(&listener))).collect();
    for (guest, host) in pairs.iter_mut().rev() {
        guest.write_all(b"?").unwrap();
        host.read_exact(&mut [0]).unwrap();
        host.write_all(b"!").unwrap();
        guest.read_exact(&mut [0]).unwrap();
    }
}

#[test]
fn the_alias_is_only_the_hosts_loopback() {
    let net = Net::start();
    let listener = net.host.listen((ELSEWHERE, 0).into());
    let error = net
        .guest
        .connect((HOST, listener.local_addr().unwrap().port()).into())
        .expect_err("not the loopback");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
}
