//! The load, the same for all: blocking sockets, a thread for each end. Owns: what is measured and when.
//! May not: know which peer it measures. Read next: `table.rs`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::peer::Setup;
use crate::support::traffic::{accept, impatient};

/// How long a stream runs before it is measured: windows have grown by then.
const WARM_UP: Duration = Duration::from_millis(500);
/// Flows that are open and silent.
const IDLE_FLOWS: usize = 500;
/// Payload of a datagram.
const DATAGRAM: usize = 1400;

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Direction {
    GuestToHost,
    HostToGuest,
}

/// What one measurement gives: a figure, and a second one for the row's companion, such as processor time.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) main: f64,
    pub(crate) beside: Option<f64>,
}

impl Sample {
    pub(crate) fn one(main: f64) -> Self {
        Self { main, beside: None }
    }
}

/// Where a service of the host is for the guest.
fn listen(setup: &Setup) -> (TcpListener, SocketAddr) {
    let listener = setup.services().listen((setup.service, 0).into());
    let port = listener.local_addr().unwrap().port();
    (listener, (setup.to, port).into())
}

/// Gbit/s that arrive, and the daemon's processor seconds for each GB.
pub(crate) fn stream(setup: &Setup, direction: Direction, flows: usize, time: Duration) -> Sample {
    let (listener, to) = listen(setup);
    let pairs = (0..flows).map(|_| {
        let guest = setup.guest.connect(to).expect("a connection");
        (guest, accept(&listener))
    });
    carry(setup, pairs.collect(), direction, time)
}

/// The same through a port of the host that is published to the guest. In is to the guest.
pub(crate) fn port(setup: &Setup, direction: Direction, time: Duration) -> Option<Sample> {
    let published = setup.published?;
    let listener = setup.guest.listen("0.0.0.0:22".parse().unwrap());
    let host = setup.host.connect(published).expect("the published port");
    let guest = accept(&listener);
    Some(carry(setup, vec![(guest, host)], direction, time))
}

/// `pairs` are (guest's end, host's end).
fn carry(setup: &Setup, pairs: Vec<(TcpStream, TcpStream)>, direction: Direction, time: Duration) -> Sample {
    let received = Arc::new(AtomicU64::new(0));
    let mut threads = Vec::new();
    for (guest, host) in &pairs {
        let (from, to) = match direction {
            Direction::GuestToHost => (guest, host),
            Direction::HostToGuest => (host, guest),
        };
        let (mut from, mut to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
        let received = Arc::clone(&received);
        threads.push(thread::spawn(move || {
            let buffer = vec![0x5a; 128 * 1024];
            while from.write_all(&buffer).is_ok() {}
        }));
        threads.push(thread::spawn(move || {
            let mut buffer = vec![0; 256 * 1024];
            while let Ok(read @ 1..) = to.read(&mut buffer) {
                received.fetch_add(read as u64, Ordering::Relaxed);
            }
        }));
    }
    thread::sleep(WARM_UP);
    let look = || {
        (received.load(Ordering::Relaxed), setup.process.map(|process| process.cpu_seconds()), Instant::now())
    };
    let before = look();
    thread::sleep(time);
    let after = look();
    for (guest, host) in &pairs {
        let _ = (guest.shutdown(Shutdown::Both), host.shutdown(Shutdown::Both));
    }
    for thread in threads {
        let _ = thread.join();
    }
    let bytes = (after.0 - before.0) as f64;
    let cpu = before.1.zip(after.1).map(|(before, after)| (after - before) / (bytes / 1e9));
    Sample {
        main: bytes * 8.0 / 1e9 / (after.2 - before.2).as_secs_f64(),
        beside: cpu.filter(|_| bytes > 0.0),
    }
}

/// Mbit/s of datagrams that arrive when the guest sends as fast as it can, and the processor seconds for each GB.
pub(crate) fn udp(setup: &Setup, time: Duration) -> Sample {
    let service = setup.services().udp((setup.service, 0).into());
    service.set_read_timeout(Some(Duration::from_millis(100))).unwrap();
    let to = SocketAddr::new(setup.to.into(), service.local_addr().unwrap().port());
    let guest = setup.guest.udp("0.0.0.0:0".parse().unwrap());
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let sender = thread::spawn(move || {
        while !stopping.load(Ordering::Relaxed) {
            let _ = guest.send_to(&[0x5a; DATAGRAM], to);
        }
    });
    let cpu = || setup.process.map(|process| process.cpu_seconds());
    let (start, before, mut bytes) = (Instant::now(), cpu(), 0);
    let mut buffer = [0; 2048];
    while start.elapsed() < time {
        bytes += service.recv(&mut buffer).unwrap_or(0);
    }
    let (elapsed, after) = (start.elapsed(), cpu());
    stop.store(true, Ordering::Relaxed);
    let _ = sender.join();
    let bytes = bytes as f64;
    let cpu = before.zip(after).map(|(before, after)| (after - before) / (bytes / 1e9));
    Sample { main: bytes * 8.0 / 1e6 / elapsed.as_secs_f64(), beside: cpu.filter(|_| bytes > 0.0) }
}

/// Microseconds that one byte takes to the host and back: the median, and the 99th percentile.
pub(crate) fn round_trip(setup: &Setup, time: Duration) -> Sample {
    let (listener, to) = listen(setup);
    let mut guest = impatient(setup.guest.connect(to).expect("a connection"));
    let mut host = accept(&listener);
    guest.set_nodelay(true).unwrap();
    host.set_nodelay(true).unwrap();
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1) = host.read(&mut byte) {
            if host.write_all(&byte).is_err() {
                break;
            }
        }
    });
    let (start, mut times, mut byte) = (Instant::now(), Vec::new(), [0]);
    while start.elapsed() < time {
        let sent = Instant::now();
        guest.write_all(&byte).expect("a request");
        guest.read_exact(&mut byte).expect("an answer");
        times.push(sent.elapsed());
    }
    drop(guest);
    let _ = echo.join();
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e6;
    Sample { main: at(0.5), beside: Some(at(0.99)) }
}

/// Connections per second, one after the other: connect, one byte there, one back, close.
pub(crate) fn connect_rate(setup: &Setup, time: Duration) -> Sample {
    let (listener, to) = listen(setup);
    listener.set_nonblocking(false).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let server = thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            if stopping.load(Ordering::Relaxed) {
                break;
            }
            let mut byte = [0];
            let _ = stream
                .read_exact(&mut byte)
                .and_then(|()| stream.write_all(&byte))
                .and_then(|()| stream.read(&mut byte));
        }
    });
    let (mut spent, mut done) = (Duration::ZERO, 0);
    while spent < time {
        // The sockets come from another process, so that getting them is no part of the time.
        let sockets = setup.guest.many_tcp();
        let count = sockets.len();
        let start = Instant::now();
        for socket in sockets {
            socket.connect(&to.into()).expect("a connection");
            let mut stream = TcpStream::from(socket);
            stream.write_all(b"?").expect("a request");
            stream.read_exact(&mut [0]).expect("an answer");
        }
        spent += start.elapsed();
        done += count;
    }
    stop.store(true, Ordering::Relaxed);
    drop(setup.guest.connect(to));
    let _ = server.join();
    Sample::one(f64::from(u32::try_from(done).unwrap()) / spent.as_secs_f64())
}

/// KiB of resident memory for each flow that is open, has carried a byte each way, and is silent.
pub(crate) fn idle_flow(setup: &Setup) -> Option<Sample> {
    let process = setup.process?;
    let (listener, to) = listen(setup);
    let mut held = Vec::new();
    let mut before = 0;
    for number in 0..=IDLE_FLOWS {
        let mut guest = impatient(setup.guest.connect(to).expect("a connection"));
        let mut host = accept(&listener);
        guest.write_all(b"?").expect("a request");
        host.read_exact(&mut [0]).expect("a request");
        host.write_all(b"!").expect("an answer");
        guest.read_exact(&mut [0]).expect("an answer");
        held.push((guest, host));
        if number == 0 {
            before = process.rss_kb();
        }
    }
    Some(Sample::one(process.rss_kb().saturating_sub(before) as f64 / IDLE_FLOWS as f64))
}
