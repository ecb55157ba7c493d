//! Ports that come and go under load: nothing of them stays.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::io::{Read, Write};
use std::net::TcpStream;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use testkit::exposed::{Asker, Bench};
use testkit::udp::UdpSocket;
use testkit::uninterrupted;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

const CYCLES: usize = 1000;
const PATIENCE: Duration = Duration::from_secs(10);

fn threads(bench: &Bench) -> usize {
    std::fs::read_dir(format!("/proc/{}/task", bench.daemon.pid())).unwrap().count()
}

#[test]
fn nothing_stays_of_a_thousand_ports() {
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let service = bench.guest.udp("0.0.0.0:80".parse().unwrap());
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    let (steady, port, path) = (free_port(), free_port(), bench.dir().join("s"));
    let (steady_local, local, socket) = (format!(":{steady}"), format!(":{port}"), path.to_str().unwrap());
    bench.expose("tcp", &steady_local, "192.168.127.2:80");

    // One connection goes on all the time; its bytes have to arrive in order.
    let mut client = TcpStream::connect(("127.0.0.1", steady)).unwrap();
    let (mut guest, _) = listener.accept().unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let (over, echoed) = (AtomicBool::new(false), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let sent = scope.spawn(|| {
            let mut buffer = [0; 16 << 10];
            while let Ok(read @ 1..) = uninterrupted(|| guest.read(&mut buffer)) {
                guest.write_all(&buffer[..read]).unwrap();
            }
        });
        let load = scope.spawn(|| {
            let (mut next, mut buffer) = (0_u8, [0; 8 << 10]);
            while !over.load(Ordering::Relaxed) {
                next = next.wrapping_add(1);
                client.write_all(&[next; 8 << 10]).unwrap();
                client.read_exact(&mut buffer).unwrap();
                assert!(buffer.iter().all(|byte| *byte == next));
                echoed.fetch_add(1, Ordering::Relaxed);
            }
            client.shutdown(std::net::Shutdown::Write).unwrap();
        });
        // The guest closes whatever else comes.
        let closing = scope.spawn(|| {
            while let Ok((stream, _)) = listener.accept() {
                drop(stream);
                if over.load(Ordering::Relaxed) {
                    break;
                }
            }
        });
        let held = || (bench.daemon.fds(), threads(&bench));
        let before = held();
        let stranger = UdpSocket::bind("127.0.0.1:0").unwrap();
        for cycle in 0..CYCLES {
            bench.expose("tcp", &local, "192.168.127.2:80");
            bench.expose("udp", &local, "192.168.127.2:80");
            bench.expose("unix", socket, "tcp://192.168.127.2:80");
            // Some are used, and some are taken away from under a client.
            if cycle % 10 == 0 {
                stranger.send_to(b"x", ("127.0.0.1", port)).unwrap();
                service.recv(&mut [0; 9]).unwrap();
                let mut one = TcpStream::connect(("127.0.0.1", port)).unwrap();
                one.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(uninterrupted(|| one.read(&mut [0])).unwrap(), 0, "the guest closes");
            }
            if cycle % 7 == 0 {
                stranger.send_to(b"", ("127.0.0.1", port)).unwrap();
                drop(std::os::unix::net::UnixStream::connect(&path).unwrap());
                drop(TcpStream::connect(("127.0.0.1", port)).unwrap());
            }
            bench.unexpose("unix", socket);
            bench.unexpose("udp", &local);
            bench.unexpose("tcp", &local);
        }
        drop(stranger);
        assert_eq!(bench.all(Asker::Operator).matches("local").count(), 1);
        let mut last = (0, 0);
        let patience = Duration::from_secs(20);
        eventually("descriptors and threads as before", patience, || {
            let now = held();
            if now != last {
                eprintln!("descriptors, threads: {now:?}, before {before:?}");
                last = now;
            }
            (now.0 <= before.0 && now.1 <= before.1).then_some(())
        });
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err());
        assert!(UdpSocket::bind(("0.0.0.0", port)).is_ok(), "the port is free");
        over.store(true, Ordering::Relaxed);
        load.join().unwrap();
        drop(TcpStream::connect(("127.0.0.1", steady)).unwrap());
        closing.join().unwrap();
        sent.join().unwrap();
    });
    assert!(echoed.load(Ordering::Relaxed) > 10, "the load went on: {echoed:?}");
}

/// More connections than there are ports to dial from, within the minute for which the guest, which closes
/// first, remembers each.
#[test]
fn connections_do_not_wait_for_a_port_that_comes_again() {
    const CONNECTIONS: usize = 120_000;
    const CLIENTS: usize = 4;
    let bench = Bench::start();
    let listener = bench.guest.listen("0.0.0.0:80".parse().unwrap());
    let port = free_port();
    bench.expose("tcp", &format!(":{port}"), "192.168.127.2:80");
    std::thread::scope(|scope| {
        scope.spawn(|| (0..CONNECTIONS).for_each(|_| drop(listener.accept().unwrap())));
        let client = || {
            let mut slowest = Duration::ZERO;
            for _ in 0..CONNECTIONS / CLIENTS {
                let start = std::time::Instant::now();
                let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
                stream.set_read_timeout(Some(PATIENCE)).unwrap();
                assert_eq!(uninterrupted(|| stream.read(&mut [0])).unwrap(), 0, "the guest closes");
                slowest = slowest.max(start.elapsed());
            }
            slowest
        };
        let start = std::time::Instant::now();
        let clients = [(); CLIENTS].map(|()| scope.spawn(client));
        let slowest = clients.map(|client| client.join().unwrap()).into_iter().max().unwrap();
        eprintln!("{CONNECTIONS} connections in {:?}, the slowest {slowest:?}", start.elapsed());
        assert!(slowest < Duration::from_millis(500), "{slowest:?} for one connection");
    });
}
