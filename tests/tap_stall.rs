//! Whoever does not read, read slowly or goes away costs itself and nobody else, in rate, memory or processor
//! time.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{ErrorKind, Read, Write};
use std::net::{Shutdown, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use testkit::eventually;
use testkit::net::{HOST, Net};
use testkit::traffic::{accept, check, impatient, send_from, transfer};
use testkit::uninterrupted;

testkit::agent_in_a_namespace!();

/// What the daemon may hold for one flow in one direction, with what both kernels hold on the way.
const IN_FLIGHT: u64 = 32 << 20;
/// What a daemon may hold when all that was is over. KiB.
const RESTING: u64 = 16 * 1024;
/// What the link's two buffers hold once large frames have been through them. KiB.
const LINK: u64 = 1024;

#[track_caller]
fn pair(net: &Net) -> (TcpStream, TcpStream) {
    let (listener, address) = net.listen();
    let guest = net.guest.connect(address).expect("a connection to the host");
    (impatient(guest), accept(&listener))
}

/// Writes until nothing more is taken, and says how much was.
fn fill(mut stream: &TcpStream) -> u64 {
    stream.set_write_timeout(Some(Duration::from_millis(500))).unwrap();
    let mut filled = 0;
    let written = send_from(Counting(&mut stream, &mut filled), 0, u64::MAX / 2);
    assert!(matches!(&written, Err(error) if error.kind() == ErrorKind::WouldBlock), "{written:?}");
    stream.set_write_timeout(Some(Duration::from_secs(30))).unwrap();
    filled
}

/// A writer that stops at [`IN_FLIGHT`] and counts each byte, those of a write that ended early as well.
struct Counting<'a, W>(W, &'a mut u64);

impl<W: Write> Write for Counting<'_, W> {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        assert!(
            *self.1 < IN_FLIGHT,
            "more than {IN_FLIGHT} bytes were taken for a reader that does not read"
        );
        let written = self.0.write(bytes)?;
        *self.1 += written as u64;
        Ok(written)
    }

    fn flush(&mut self) -> std::io::Result<()> {
        self.0.flush()
    }
}

/// How long a transfer through a new connection takes, from the host to the guest and back.
fn round(net: &Net) -> Duration {
    let (guest, host) = pair(net);
    let start = Instant::now();
    transfer(&host, &guest, 8 << 20);
    transfer(&guest, &host, 8 << 20);
    start.elapsed()
}

#[test]
fn a_program_that_does_not_read_stalls_only_its_own_flow() {
    let net = Net::start();
    let alone = round(&net);
    for reader_is_guest in [true, false] {
        let flows: Vec<_> = (0..8)
            .map(|_| {
                let (guest, host) = pair(&net);
                let (reader, writer) = if reader_is_guest { (guest, host) } else { (host, guest) };
                let filled = fill(&writer);
                (reader, writer, filled)
            })
            .collect();
        let beside = round(&net);
        assert!(
            beside < 4 * alone + Duration::from_millis(200),
            "{alone:?} alone, {beside:?} beside stalled flows"
        );
        let busy = net.daemon.cpu_seconds();
        // A window of time to measure in: a stalled flow must not keep the daemon busy.
        std::thread::sleep(Duration::from_secs(1));
        let busy = net.daemon.cpu_seconds() - busy;
        assert!(busy < 0.1, "{busy} s of processor time in 1 s in which nobody moves");
        for (reader, writer, filled) in flows {
            writer.shutdown(Shutdown::Write).unwrap();
            assert_eq!(check(&reader).expect("all that was taken, in order"), filled);
        }
    }
}

#[test]
fn datagrams_for_a_guest_that_does_not_empty_its_card_cost_nothing() {
    let net = Net::start();
    let service = net.host.udp("127.0.0.1:0".parse().unwrap());
    let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
    for socket in [&service, &client] {
        socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    }
    let to = (HOST, service.local_addr().unwrap().port());
    let mut buffer = [0; 2048];
    client.send_to(b"?", to).unwrap();
    let (_, from) = service.recv_from(&mut buffer).expect("the first datagram");
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        net.guest.hold(true);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let _ = service.send_to(&[1; 1400], from);
            }
        });
        // What is on the way settles; then a window to measure in.
        std::thread::sleep(Duration::from_millis(500));
        let busy = net.daemon.cpu_seconds();
        std::thread::sleep(Duration::from_secs(1));
        let busy = net.daemon.cpu_seconds() - busy;
        over.store(true, Ordering::Relaxed);
        net.guest.hold(false);
        assert!(busy < 0.1, "{busy} s of processor time in 1 s before a full card");
    });
    eventually("an answer after all that", Duration::from_secs(10), || {
        client.send_to(b"!", to).unwrap();
        let answered = service.recv_from(&mut buffer).ok().filter(|(length, _)| *length == 1)?;
        service.send_to(b"*", answered.1).unwrap();
        while let Ok((length, _)) = client.recv_from(&mut buffer) {
            if length == 1 {
                return Some(());
            }
        }
        None
    });
}

#[test]
fn a_guest_that_does_not_empty_its_card_stops_and_goes_on() {
    const LENGTH: u64 = 32 << 20;
    let net = Net::start();
    let pairs: Vec<_> = (0..4).map(|_| pair(&net)).collect();
    std::thread::scope(|scope| {
        net.guest.hold(true);
        let transfers: Vec<_> =
            pairs.iter().map(|(guest, host)| scope.spawn(|| transfer(host, guest, LENGTH))).collect();
        // What is on the way settles; then a window to measure in.
        std::thread::sleep(Duration::from_millis(300));
        let (busy, sleeps) = (net.daemon.cpu_seconds(), net.daemon.sleeps());
        std::thread::sleep(Duration::from_secs(1));
        let (busy, sleeps) = (net.daemon.cpu_seconds() - busy, net.daemon.sleeps() - sleeps);
        let rss = net.daemon.rss_kb();
        net.guest.hold(false);
        assert!(busy < 0.1, "{busy} s of processor time in 1 s before a full card");
        assert!(sleeps < 100, "{sleeps} wakeups in 1 s before a full card");
        assert!(rss < 2 * RESTING, "{rss} KiB before a full card");
        for transfer in transfers {
            transfer.join().unwrap();
        }
    });
}

#[test]
fn a_card_that_starts_and_stops_loses_nothing() {
    let net = Net::start();
    let (guest, host) = pair(&net);
    std::thread::scope(|scope| {
        let down = scope.spawn(|| transfer(&host, &guest, 64 << 20));
        while !down.is_finished() {
            net.guest.hold(true);
            std::thread::sleep(Duration::from_millis(5));
            net.guest.hold(false);
            std::thread::sleep(Duration::from_millis(5));
        }
        down.join().unwrap();
    });
}

#[test]
fn a_slow_reader_gets_every_byte() {
    const LENGTH: u64 = 4 << 20;
    let net = Net::start();
    for reader_is_guest in [true, false] {
        let (guest, host) = pair(&net);
        let (reader, mut writer) = if reader_is_guest { (guest, host) } else { (host, guest) };
        let sending = std::thread::spawn(move || send_from(&mut writer, 0, LENGTH));
        struct Slow(TcpStream);
        impl Read for Slow {
            fn read(&mut self, space: &mut [u8]) -> std::io::Result<usize> {
                std::thread::yield_now();
                let most = space.len().min(777);
                uninterrupted(|| self.0.read(&mut space[..most]))
            }
        }
        assert_eq!(check(Slow(reader)).unwrap(), LENGTH);
        sending.join().unwrap().unwrap();
    }
}

#[test]
fn gives_back_the_memory_of_what_is_over() {
    let net = Net::start();
    let (fds, idle) = (net.daemon.fds(), net.daemon.rss_kb());
    let (guest, host) = pair(&net);
    transfer(&guest, &host, 256 << 20);
    transfer(&host, &guest, 256 << 20);
    let mut pairs: Vec<_> = (0..500).map(|_| pair(&net)).collect();
    for (guest, host) in &mut pairs {
        let mut buffer = [0; 16 * 1024];
        guest.write_all(&buffer).unwrap();
        host.read_exact(&mut buffer).unwrap();
        host.write_all(&buffer).unwrap();
        guest.read_exact(&mut buffer).unwrap();
    }
    // 8 KiB for a flow that holds nothing, and what the allocator keeps beside them.
    let open = eventually("500 open flows give back what they held", Duration::from_secs(10), || {
        Some(net.daemon.rss_kb()).filter(|rss| *rss < RESTING + 500 * 16)
    });
    drop((guest, host, pairs));
    let over = eventually("the memory of 500 closed flows is given back", Duration::from_secs(10), || {
        let (fds_now, rss) = (net.daemon.fds(), net.daemon.rss_kb());
        (fds_now <= fds && rss <= RESTING).then_some(rss)
    });
    eprintln!("resident KiB: {idle} idle, {open} with 500 flows open, {over} after");
}

#[test]
fn an_open_flow_gives_back_what_it_held() {
    const FLOWS: u64 = 16;
    let net = Net::start();
    let idle = net.daemon.rss_kb();
    for reader_is_guest in [true, false] {
        let flows: Vec<_> = (0..FLOWS)
            .map(|_| {
                let (guest, host) = pair(&net);
                let (mut reader, writer) = if reader_is_guest { (guest, host) } else { (host, guest) };
                let filled = fill(&writer);
                let mut left = filled;
                let mut buffer = vec![0; 1 << 20];
                while left > 0 {
                    left -= uninterrupted(|| reader.read(&mut buffer)).unwrap() as u64;
                }
                (reader, writer)
            })
            .collect();
        let rss = eventually("open flows that were full give it back", Duration::from_secs(10), || {
            Some(net.daemon.rss_kb()).filter(|rss| *rss < idle + LINK + FLOWS * 64)
        });
        eprintln!("resident KiB: {idle} idle, {rss} with {FLOWS} open flows that were full");
        drop(flows);
    }
}
