//! What a forwarder between two sockets of the host does with one client after another. Blocking sockets, a
//! thread for each end, the same for all. May not: know which forwarder it measures. Read next:
//! `forwarder.rs`; `measure.rs`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::forwarder::Forwarder;
use crate::measure::{Sample, Window};
use crate::tcp::answer;

/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(10);

/// What a row measures.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum What {
    /// Bulk transfer, written so many bytes at a time.
    Stream(Way, usize),
    RoundTrip,
    ConnectRate,
    /// So many clients that stay until all have been served.
    AtOnce(usize),
    /// A client every 10 ms.
    InTurn,
}

/// Which way the bytes go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Way {
    /// From the client to the server.
    Forth,
    Back,
}

/// Gbit/s that arrive, and the forwarder's processor seconds for each GB. The sender writes `block` bytes at
/// a time.
pub(crate) fn stream(forwarder: &Forwarder, way: Way, block: usize, time: Duration) -> Sample {
    let (client, server) = forwarder.pair();
    let (mut from, mut to) = match way {
        Way::Forth => (&client, &server),
        Way::Back => (&server, &client),
    };
    let received = AtomicU64::new(0);
    let received = &received;
    let window = thread::scope(|scope| {
        scope.spawn(move || {
            let buffer = vec![0x5a; block];
            while from.write_all(&buffer).is_ok() {}
        });
        scope.spawn(move || {
            let mut buffer = vec![0; 256 << 10];
            while let Ok(read @ 1..) = to.read(&mut buffer) {
                received.fetch_add(read as u64, Ordering::Relaxed);
            }
        });
        let window = Window::watch_cpu(|| forwarder.cpu_seconds(), time, &[received]);
        for end in [&client, &server] {
            let _ = end.shutdown(Shutdown::Both);
        }
        window
    });
    let bytes = window.counts[0];
    Sample(vec![Some(bytes * 8.0 / 1e9 / window.seconds), window.cpu_per(bytes / 1e9)])
}

/// Microseconds that one byte takes to the server and back, and processor time of the forwarder for each.
pub(crate) fn round_trip(forwarder: &Forwarder, time: Duration) -> Sample {
    let (mut client, mut server) = forwarder.pair();
    let echo = thread::spawn(move || {
        let mut byte = [0];
        while let Ok(1) = server.read(&mut byte) {
            if server.write_all(&byte).is_err() {
                break;
            }
        }
    });
    let (start, mut times, mut byte) = (Instant::now(), Vec::new(), [0]);
    let before = forwarder.cpu_seconds();
    while start.elapsed() < time {
        let sent = Instant::now();
        client.write_all(&byte).expect("a request");
        client.read_exact(&mut byte).expect("an answer");
        times.push(sent.elapsed());
    }
    let cpu = cpu_of_each(forwarder, before, times.len());
    drop(client);
    let _ = echo.join();
    let mut sample = Sample::percentiles(times);
    sample.0.push(cpu);
    sample
}

/// Microseconds of processor time since it was `before` seconds.
fn cpu_of_each(forwarder: &Forwarder, before: Option<f64>, count: usize) -> Option<f64> {
    let spent = forwarder.cpu_seconds()? - before?;
    Some(spent * 1e6 / count as f64)
}

/// Connections per second, one after the other: connect, one byte there, one back, close; and what one takes.
pub(crate) fn connect_rate(forwarder: &Forwarder, time: Duration) -> Sample {
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            while let Ok((server, _)) = forwarder.listener.accept() {
                if stop.load(Ordering::Relaxed) {
                    break;
                }
                answer(server);
            }
        });
        let one = || {
            let mut client = forwarder.socket(&forwarder.entry);
            client.set_read_timeout(Some(PATIENCE))?;
            let start = Instant::now();
            client.connect(&forwarder.entry)?;
            client.write_all(b"?")?;
            client.read_exact(&mut [0])?;
            drop(client);
            Ok::<_, io::Error>(start.elapsed())
        };
        let (start, mut times) = (Instant::now(), Vec::new());
        let before = forwarder.cpu_seconds();
        let failed = loop {
            match one() {
                Ok(took) => times.push(took),
                Err(error) => break Some(error),
            }
            if start.elapsed() >= time {
                break None;
            }
        };
        stop.store(true, Ordering::Relaxed);
        forwarder.disturb();
        if let Some(error) = failed {
            panic!("no answer: {error}");
        }
        let rate = times.len() as f64 / times.iter().sum::<Duration>().as_secs_f64();
        let cpu = cpu_of_each(forwarder, before, times.len());
        let mut sample = Sample::percentiles(times);
        sample.0.insert(0, Some(rate));
        sample.0.push(cpu);
        sample
    })
}
