//! TCP over a link that loses, reorders and delays: the daemon's stack beside Linux's own on the same link.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::io::{Read, Write};
use std::net::{Shutdown, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use socket2::SockRef;
use testkit::daemon::Daemon;
use testkit::guest::{self, Guest};
use testkit::net::{HOST, Host, plug};
use testkit::traffic::{accept, check, send_from};
use testkit::uninterrupted;
use testkit::wire::{Quality, Wire};

testkit::agent_in_a_namespace!();

/// Who ends the guest's connections.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Stack {
    /// Linux, on a tap of its own.
    Linux,
    Ours,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Direction {
    /// From the guest.
    Up,
    Down,
}

/// A guest, the link, and who ends its connections. Fields are dropped in order: the guest hangs up first.
#[derive(Debug)]
struct Setup {
    guest: Guest,
    other: Option<Guest>,
    daemon: Option<Daemon>,
    _wire: Wire,
    host: Option<Host>,
}

impl Setup {
    fn start(stack: Stack, quality: Quality, seed: u64) -> Self {
        let (near, other, daemon, host) = match stack {
            Stack::Linux => {
                let (near, far) = UnixStream::pair().unwrap();
                let other = Guest::start(far, "5a:94:ef:e4:0c:dd", 1500);
                other.configure("192.168.127.254/24", None);
                (near, Some(other), None, None)
            }
            Stack::Ours => {
                let host = Host::new("nameserver 127.0.0.1\n");
                let daemon = Daemon::builder().through(host.prefix()).start();
                (plug(&daemon), None, Some(daemon), Some(host))
            }
        };
        let (wire, end) = Wire::before(near, quality, seed);
        let guest = Guest::start(end, guest::MAC, 1500);
        guest.configure("192.168.127.2/24", None);
        Self { guest, other, daemon, _wire: wire, host }
    }

    /// A connection with Linux's `congestion` control: the guest's end, and the other.
    fn pair(&self, congestion: &str) -> (TcpStream, TcpStream) {
        let listener = match (&self.other, &self.host) {
            (Some(other), _) => other.listen("0.0.0.0:0".parse().unwrap()),
            (None, Some(host)) => host.listen("127.0.0.1:0".parse().unwrap()),
            (None, None) => unreachable!(),
        };
        let address = (HOST, listener.local_addr().unwrap().port()).into();
        let guest =
            testkit::eventually("a connection", Duration::from_secs(20), || self.guest.connect(address).ok());
        let other = accept(&listener);
        for socket in [&guest, &other] {
            SockRef::from(socket).set_tcp_congestion(congestion.as_bytes()).expect("the congestion control");
        }
        (guest, other)
    }
}

/// A stream that runs, and what has arrived.
#[derive(Debug)]
struct Stream {
    ends: [TcpStream; 2],
    received: Arc<AtomicU64>,
    threads: Vec<JoinHandle<()>>,
}

impl Stream {
    fn start((guest, other): (TcpStream, TcpStream), direction: Direction) -> Self {
        let (mut from, mut to) = match direction {
            Direction::Up => (guest.try_clone().unwrap(), other.try_clone().unwrap()),
            Direction::Down => (other.try_clone().unwrap(), guest.try_clone().unwrap()),
        };
        let received = Arc::new(AtomicU64::new(0));
        let count = Arc::clone(&received);
        let threads = vec![
            std::thread::spawn(move || while from.write_all(&[0x5a; 32 * 1024]).is_ok() {}),
            std::thread::spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(read @ 1..) = uninterrupted(|| to.read(&mut buffer)) {
                    count.fetch_add(read as u64, Ordering::Relaxed);
                }
            }),
        ];
        Self { ends: [guest, other], received, threads }
    }

    fn look(&self) -> (u64, Instant) {
        (self.received.load(Ordering::Relaxed), Instant::now())
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        for end in &self.ends {
            let _ = SockRef::from(end).set_linger(Some(Duration::ZERO));
            let _ = end.shutdown(Shutdown::Both);
        }
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

/// How long a stream runs before it is measured: windows have found their size. A stream that random losses
/// slow down is measured for longer, because its rate varies.
const WARM_UP: Duration = Duration::from_millis(1500);

/// Mbit/s that arrive.
fn rate(setup: &Setup, direction: Direction, congestion: &str, time: Duration) -> f64 {
    let stream = Stream::start(setup.pair(congestion), direction);
    std::thread::sleep(WARM_UP);
    let before = stream.look();
    std::thread::sleep(time);
    let after = stream.look();
    (after.0 - before.0) as f64 * 8.0 / 1e6 / (after.1 - before.1).as_secs_f64()
}

/// The median of `runs` at once, each on a link of its own.
fn median(
    stack: Stack,
    quality: Quality,
    direction: Direction,
    congestion: &str,
    runs: u64,
    time: Duration,
) -> f64 {
    let mut rates: Vec<f64> = std::thread::scope(|scope| {
        let run = |number| {
            let setup = Setup::start(stack, quality, 1 + 7 * number);
            rate(&setup, direction, congestion, time)
        };
        let threads: Vec<_> = (0..runs).map(|number| scope.spawn(move || run(number))).collect();
        threads.into_iter().map(|thread| thread.join().unwrap()).collect()
    });
    rates.sort_by(f64::total_cmp);
    rates[rates.len() / 2]
}

/// Both stacks on the same kind of link at the same time, in both directions; ours has to have 0.8 of Linux's
/// rate.
#[track_caller]
fn compare(quality: Quality, runs: u64, time: Duration) {
    let look = |stack, direction| move || median(stack, quality, direction, "cubic", runs, time);
    for direction in [Direction::Up, Direction::Down] {
        let (linux, ours) = std::thread::scope(|scope| {
            let linux = scope.spawn(look(Stack::Linux, direction));
            let ours = scope.spawn(look(Stack::Ours, direction));
            (linux.join().unwrap(), ours.join().unwrap())
        });
        assert!(ours >= 0.8 * linux, "{direction:?}: {ours:.1} Mbit/s, where Linux has {linux:.1}");
    }
}

/// A quarter of the usual rate, so that no processor is the limit where several run at once.
const SLOW: Quality = Quality { rate: Some(25_000_000), ..Quality::CLEAN };

#[test]
fn one_percent_lost() {
    compare(SLOW.loss(10), 7, Duration::from_secs(3));
}

#[test]
fn one_percent_lost_over_50_ms() {
    compare(SLOW.loss(10).delay(25), 7, Duration::from_secs(6));
}

#[test]
fn out_of_order_over_20_ms() {
    compare(SLOW.late(50).delay(10), 3, Duration::from_secs(2));
}

/// Reads a piece whenever `asker` has had an answer.
struct Slow<'a> {
    from: &'a TcpStream,
    asker: &'a TcpStream,
    piece: usize,
}

impl Read for Slow<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        self.asker.write_all(&[1])?;
        self.asker.read_exact(&mut [0])?;
        self.piece = (self.piece + 977) % 20_000;
        uninterrupted(|| self.from.read(&mut buffer[..=self.piece]))
    }
}

/// Where other connections of the guest fill what it may have of the daemon's memory, rings give back what
/// they have no use for while bytes are in them, and others are missing.
#[test]
fn nothing_is_lost_where_memory_is_scarce() {
    /// Of a stream that is checked; and what each of those that nobody reads has at least, of which 64 MiB
    /// are needed.
    const BYTES: u64 = 4 << 20;
    const UNREAD: usize = 256 << 10;
    const PATIENCE: Duration = Duration::from_secs(60);
    let quality = Quality { rate: None, ..Quality::CLEAN }.loss(10).late(50);
    let setup = Setup::start(Stack::Ours, quality, 3);
    let rss = || setup.daemon.as_ref().unwrap().rss_kb();
    let before = rss();
    let unread: Vec<_> = (0..600).map(|_| setup.pair("cubic")).collect();
    for (guest, other) in &unread {
        SockRef::from(guest).set_recv_buffer_size(4096).unwrap();
        other.set_nonblocking(true).unwrap();
    }
    testkit::eventually("much memory", PATIENCE, || {
        for (_, other) in &unread {
            let mut other = other;
            let _ = other.write(&[0x5a; UNREAD]);
        }
        (rss() > before + (72 << 10)).then_some(())
    });
    // Little fits into the daemon's sockets, and who reads waits for the guest's answer before each piece:
    // rings are not empty for long.
    let host = setup.host.as_ref().unwrap();
    host.run(["sh", "-c", "echo 4096 8192 8192 >/proc/sys/net/ipv4/tcp_wmem"]);
    let (echo, asker) = setup.pair("cubic");
    let (guest, other) = setup.pair("cubic");
    for end in [&guest, &other, &asker] {
        SockRef::from(end).set_recv_buffer_size(32 << 10).unwrap();
        end.set_read_timeout(Some(PATIENCE)).unwrap();
        end.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let echo = std::thread::spawn(move || std::io::copy(&mut &echo, &mut &echo));
    std::thread::scope(|scope| {
        for (from, to) in [(&guest, &other), (&other, &guest)] {
            let asker = &asker;
            scope.spawn(move || {
                send_from(from, 0, BYTES).unwrap();
                from.shutdown(Shutdown::Write).unwrap();
            });
            scope.spawn(move || assert_eq!(check(Slow { from: to, asker, piece: 0 }).unwrap(), BYTES));
        }
    });
    drop(asker);
    echo.join().unwrap().unwrap();
}

#[test]
#[ignore = "a table for whoever works on this; it takes minutes"]
fn table() {
    let chosen = |name: &str, value: &str| {
        std::env::var(name).map_or(true, |wanted| wanted.split(',').any(|wanted| wanted == value))
    };
    let clean = Quality::CLEAN;
    let fast = Quality { rate: None, ..clean };
    let rows = [
        ("clean", clean),
        ("25 ms", clean.delay(25)),
        ("50 ms", clean.delay(50)),
        ("1 %", clean.loss(10)),
        ("1 % 25 ms", clean.loss(10).delay(25)),
        ("1 % 50 ms", clean.loss(10).delay(50)),
        ("late", clean.late(50)),
        ("late 25 ms", clean.late(50).delay(25)),
        ("late 1 % 25 ms", clean.loss(10).late(50).delay(25)),
        ("late 1 % 50 ms", clean.loss(10).late(50).delay(50)),
        ("fast 25 ms", fast.delay(25)),
        ("fast 1 %", fast.loss(10)),
        ("fast late", fast.late(50)),
    ];
    for congestion in ["cubic", "bbr"] {
        for (name, quality) in rows {
            for direction in [Direction::Up, Direction::Down] {
                for stack in [Stack::Linux, Stack::Ours] {
                    let texts = [format!("{direction:?}"), format!("{stack:?}")];
                    if chosen("CONTROL", congestion)
                        && chosen("ROWS", name)
                        && chosen("DIRECTION", &texts[0])
                        && chosen("STACKS", &texts[1])
                    {
                        let rate = median(stack, quality, direction, congestion, 3, Duration::from_secs(3));
                        eprintln!("{congestion}, {name}, {}, {}: {rate:.1} Mbit/s", texts[0], texts[1]);
                    }
                }
            }
        }
    }
}
