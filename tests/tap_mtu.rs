//! A daemon that was not told of an MTU offers a large one, and Linux guests that make of it what they like:
//! nothing is lost, and no frame is longer than the guest's card would take.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::net::SocketAddr;
use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::free_port;
use testkit::guest::{Guest, MAC, NIC};
use testkit::net::{GATEWAY, HOST, Host, Net, plug};
use testkit::traffic::{accept, impatient, transfer};
use testkit::udp::UdpSocket;

testkit::agent_in_a_namespace!();

const MIB: u64 = 1 << 20;
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;
/// What a card takes that has not been told otherwise, header included.
const USUAL: usize = 1500 + ETHERNET;

/// A network whose guest gives its card the MTU `own`, or what it is offered; and the port that leads to its
/// port 22.
fn start(own: Option<u16>) -> (Net, u16) {
    let port = free_port();
    let host = Host::new("nameserver 127.0.0.1\n");
    let builder = Daemon::builder().args(["-ssh-port", &port.to_string()]);
    let daemon = builder.through(host.prefix()).start();
    let guest = Guest::start(plug(&daemon), MAC, 1500);
    let lease = own.map_or_else(|| guest.dhcp(), |own| guest.dhcp_keeping(own));
    assert_eq!(lease.option("mtu"), "65520", "what is offered");
    let card = guest.run(["ip", "-o", "link", "show", "dev", NIC]);
    assert!(card.contains(&format!(" mtu {} ", own.unwrap_or(65520))), "what the guest makes of it: {card}");
    (Net { guest, daemon, host, lease }, port)
}

fn patient(socket: UdpSocket) -> UdpSocket {
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    socket
}

/// The next datagram is `payload`; where it came from.
#[track_caller]
fn receive(socket: &UdpSocket, payload: &[u8], what: &str) -> SocketAddr {
    let mut buffer = vec![0; 65536];
    let (length, from) = socket.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert!(buffer[..length] == *payload, "{what}: {length} of {} bytes", payload.len());
    from
}

/// Everything that a guest does, on a card of MTU `own`; the longest frames that it got: by TCP, as the first
/// large datagrams, and as large ones after it had sent some.
fn exercise(own: Option<u16>) -> [usize; 3] {
    let (net, port) = start(own);
    let card = usize::from(own.unwrap_or(65520)) + ETHERNET;
    assert!(net.guest.longest_frame() <= USUAL);

    // The guest dials, and is dialled.
    let (listener, address) = net.listen();
    let guest = impatient(net.guest.connect(address).expect("a connection to the host"));
    let host = accept(&listener);
    transfer(&guest, &host, 64 * MIB);
    transfer(&host, &guest, 64 * MIB);
    let listener = net.guest.listen("0.0.0.0:22".parse().unwrap());
    let host = impatient(net.host.connect(([127, 0, 0, 1], port).into()).expect("the published port"));
    let guest = accept(&listener);
    transfer(&host, &guest, 16 * MIB);
    transfer(&guest, &host, 16 * MIB);
    let by_tcp = net.guest.longest_frame();

    let noise: Vec<u8> = (0..60_000_u32).map(|i| ((i * 31) >> 3) as u8).collect();
    let service = patient(net.host.udp("127.0.0.1:0".parse().unwrap()));
    let client = patient(net.guest.udp("0.0.0.0:0".parse().unwrap()));
    let to = SocketAddr::from((HOST, service.local_addr().unwrap().port()));
    client.send_to(b"small", to).unwrap();
    let flow = receive(&service, b"small", "a question");
    for round in 0..20 {
        service.send_to(&noise, flow).unwrap();
        receive(&client, &noise, &format!("answer {round}"));
    }
    let first = net.guest.longest_frame();
    for round in 0..20 {
        client.send_to(&noise, to).unwrap();
        receive(&service, &noise, &format!("large question {round}"));
        service.send_to(&noise, flow).unwrap();
        receive(&client, &noise, &format!("answer {round} to it"));
    }
    for length in [56, 1472, 1473, 8000, 60_000] {
        assert!(net.guest.ping(GATEWAY, length), "ping -s {length}");
    }
    let later = net.guest.longest_frame();
    for longest in [by_tcp, first, later] {
        assert!(longest <= card, "a frame of {longest} bytes to a card that takes {card}");
    }
    [by_tcp, first, later]
}

#[test]
fn a_guest_that_takes_it() {
    let [by_tcp, first, later] = exercise(None);
    assert!(by_tcp > 60_000, "TCP uses {by_tcp} bytes of it");
    assert!(first <= USUAL, "{first} bytes at once before the guest has shown to take as much");
    assert!(later > 60_000, "datagrams use {later} bytes of it");
}

#[test]
fn a_guest_that_ignores_it() {
    assert_eq!(exercise(Some(1500)), [USUAL; 3]);
}

#[test]
fn a_guest_in_between() {
    let [by_tcp, first, later] = exercise(Some(9000));
    assert_eq!((by_tcp, first), (9000 + ETHERNET, USUAL));
    // Fragments hold multiples of eight bytes.
    assert_eq!(later, 8996 + ETHERNET);
}

#[test]
fn a_guest_that_grows_and_shrinks() {
    let (net, _) = start(Some(9000));
    assert!(net.guest.ping(GATEWAY, 8000));
    assert_eq!(net.guest.longest_frame(), 8028 + ETHERNET);
    // Another system boots, and keeps what its card had.
    net.guest.run(["ip", "addr", "flush", "dev", NIC]);
    net.guest.dhcp_keeping(1500);
    assert!(net.guest.ping(GATEWAY, 8000));
    assert_eq!(net.guest.longest_frame(), USUAL);
}
