//! UDP between a Linux guest and its host through the daemon.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::collections::HashSet;
use std::io::ErrorKind;
use std::net::SocketAddr;
use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::net::{ELSEWHERE, HOST, Host, Net};
use testkit::udp::UdpSocket;

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(5);

/// A socket on the host's loopback, and where the guest finds it.
fn service(net: &Net) -> (UdpSocket, SocketAddr) {
    let socket = net.host.udp("127.0.0.1:0".parse().unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    let port = socket.local_addr().unwrap().port();
    (socket, (HOST, port).into())
}

fn client(net: &Net) -> UdpSocket {
    let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
    socket.set_read_timeout(Some(PATIENCE)).unwrap();
    socket
}

/// Sends one datagram from the guest, answers it with the same on the host, and compares all four.
#[track_caller]
fn echo(client: &UdpSocket, service: &UdpSocket, to: SocketAddr, payload: &[u8]) -> SocketAddr {
    let mut buffer = vec![0; 65536];
    client.send_to(payload, to).unwrap();
    let (length, from) =
        service.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{} bytes: {e}", payload.len()));
    assert!(buffer[..length] == *payload, "{length} of {} bytes reach the host", payload.len());
    service.send_to(&buffer[..length], from).unwrap();
    let (length, answerer) =
        client.recv_from(&mut buffer).unwrap_or_else(|e| panic!("{} bytes: {e}", payload.len()));
    assert_eq!(answerer, to, "the answer comes from who was asked");
    assert!(buffer[..length] == *payload, "{length} of {} bytes come back", payload.len());
    from
}

#[test]
fn echoes_datagrams_of_every_size() {
    let net = Net::start();
    let (service, to) = service(&net);
    let client = client(&net);
    let noise: Vec<u8> = (0..65507_u32).map(|i| ((i * 31) >> 3) as u8).collect();
    // 1472 fills a packet, 1473 is the first to be cut in fragments, 65507 the most that UDP holds.
    for length in [1, 0, 100, 1472, 1473, 2952, 2953, 9000, 30000, 65507] {
        let first = echo(&client, &service, to, &noise[..length]);
        assert_eq!(first, echo(&client, &service, to, &noise[..length]), "a flow keeps its port on the host");
    }
}

#[test]
fn reaches_other_addresses_than_the_loopback() {
    let net = Net::start();
    let service = net.host.udp((ELSEWHERE, 0).into());
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    echo(&client(&net), &service, service.local_addr().unwrap(), b"elsewhere");
}

#[test]
fn answers_of_strangers_stay_outside() {
    let net = Net::start();
    let (service, to) = service(&net);
    let client = client(&net);
    let flow = echo(&client, &service, to, b"hello");
    let stranger = net.host.udp("127.0.0.1:0".parse().unwrap());
    stranger.send_to(b"stranger", flow).unwrap();
    service.send_to(b"friend", flow).unwrap();
    let mut buffer = [0; 16];
    let length = client.recv(&mut buffer).unwrap();
    assert_eq!(&buffer[..length], b"friend");
}

#[test]
fn a_closed_port_is_refused() {
    let net = Net::start();
    let (service, to) = service(&net);
    let client = client(&net);
    drop(service);
    client.connect(to).unwrap();
    client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    // More than once, since a process that another test starts may hold a copy of the service for a moment.
    eventually("the port is refused", PATIENCE, || {
        let error = match client.send(b"anyone?") {
            Ok(_) => client.recv(&mut [0; 16]).expect_err("nobody there"),
            Err(error) => error,
        };
        if error.kind() == ErrorKind::WouldBlock {
            return None;
        }
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{error}");
        Some(())
    });
}

#[test]
fn a_service_that_comes_back_is_found_by_the_same_client() {
    let net = Net::start();
    let (service, to) = service(&net);
    let client = client(&net);
    echo(&client, &service, to, b"before");
    let address = service.local_addr().unwrap();
    drop(service);
    client.send_to(b"into the void", to).unwrap();
    let service = net.host.udp(address);
    service.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    eventually("a datagram at the new service", PATIENCE, || {
        client.send_to(b"again", to).unwrap();
        let mut buffer = [0; 16];
        let (length, _) = service.recv_from(&mut buffer).ok()?;
        (&buffer[..length] == b"again").then_some(())
    });
}

#[test]
fn many_flows_are_kept_apart_and_bounded() {
    const FLOWS: usize = 2000;
    let net = Net::start();
    let (service, to) = service(&net);
    let idle = net.daemon.fds();
    let clients: Vec<_> = (0..FLOWS).map(|_| client(&net)).collect();
    let mut seen = HashSet::new();
    for (number, client) in clients.iter().enumerate() {
        seen.insert(echo(client, &service, to, &number.to_be_bytes()));
    }
    assert_eq!(seen.len(), FLOWS, "each source port is a flow of its own");
    let (fds, rss) = (net.daemon.fds() - idle, net.daemon.rss_kb());
    assert!(fds <= FLOWS, "{fds} descriptors for {FLOWS} flows");
    assert!(rss < 64 * 1024, "{rss} KiB with {FLOWS} flows");
    // The last one still works, and the first either still does or was given up for a newer one.
    echo(clients.last().unwrap(), &service, to, b"last");
    echo(&clients[0], &service, to, b"first");
}

#[test]
fn a_flow_survives_bursts_in_both_directions() {
    const BURST: usize = 64;
    let net = Net::start();
    let (service, to) = service(&net);
    let client = client(&net);
    let flow = echo(&client, &service, to, b"start");
    for round in 0..10 {
        for _ in 0..BURST {
            client.send_to(&[1; 1400], to).unwrap();
            service.send_to(&[2; 1400], flow).unwrap();
        }
        // So many fit in every queue on the way (a receive buffer of 208 KiB holds 92), so all of them are
        // there.
        for number in 0..BURST {
            for (socket, byte) in [(&service, 1), (&client, 2)] {
                let mut buffer = [0; 2048];
                let length = socket.recv(&mut buffer);
                let length = length
                    .unwrap_or_else(|e| panic!("direction {byte}, datagram {number} of burst {round}: {e}"));
                assert_eq!(buffer[..length], [byte; 1400]);
            }
        }
    }
}

#[test]
fn the_metadata_address_is_out_of_reach_unless_it_is_asked_for() {
    for allowed in [false, true] {
        let host = Host::new("nameserver 127.0.0.1\n");
        host.run(["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"]);
        let metadata = host.udp("169.254.169.254:0".parse().unwrap());
        metadata.set_read_timeout(Some(if allowed { PATIENCE } else { Duration::from_millis(300) })).unwrap();
        let listener = host.listen("169.254.169.254:0".parse().unwrap());
        let flags: &[&str] = if allowed { &["-ec2-metadata-access"] } else { &[] };
        let net = Net::with(host, Daemon::builder().args(flags), 1500);

        client(&net).send_to(b"credentials?", metadata.local_addr().unwrap()).unwrap();
        assert_eq!(metadata.recv(&mut [0; 64]).is_ok(), allowed, "UDP");
        let connected = net.guest.connect(listener.local_addr().unwrap());
        match allowed {
            true => assert!(connected.is_ok(), "{connected:?}"),
            false => assert_eq!(connected.expect_err("TCP").kind(), ErrorKind::ConnectionRefused),
        }
    }
}
