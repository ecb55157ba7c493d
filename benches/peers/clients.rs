//! Many clients of one forwarded socket: all at once, and one after the other for a long time. Each sends its
//! number and is to get it back.
//! Owns: the server. May not: know who forwards. Read next: `forwarder.rs`.

use std::io::{self, Read, Write};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Barrier, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::measure::Sample;
use testkit::process::Process;

/// Threads that connect one after the other.
const THREADS: u32 = 16;
/// Of a thread for one client.
const STACK: usize = 64 << 10;
/// Longest wait for an answer.
const PATIENCE: Duration = Duration::from_secs(30);
/// How long descriptors have to stay as they are.
const SAME: Duration = Duration::from_millis(500);
/// Between two connects.
const INTERVAL: Duration = Duration::from_millis(10);

/// A forwarded socket.
#[derive(Clone, Copy)]
#[allow(missing_debug_implementations, reason = "it is made of closures")]
pub(crate) struct Door<'a> {
    /// A socket to be connected, which may come from elsewhere, and what connects it.
    pub(crate) socket: &'a (dyn Fn() -> Socket + Sync),
    pub(crate) connect: &'a (dyn Fn(&Socket) -> io::Result<()> + Sync),
    /// The server's, which blocks, and what connects to that.
    pub(crate) listener: &'a Socket,
    pub(crate) disturb: &'a (dyn Fn() + Sync),
    /// Whose descriptors are counted.
    pub(crate) process: Option<Process>,
}

/// `count` clients at once: each waits for its answer and stays until all have theirs.
pub(crate) fn at_once(door: Door<'_>, count: usize) -> Sample {
    measure(door, || {
        let (start, end) = (Barrier::new(count), Barrier::new(count));
        let results = Mutex::new(Vec::with_capacity(count));
        thread::scope(|scope| {
            for number in 0..count {
                let (start, end, results) = (&start, &end, &results);
                let client = move || {
                    let mut socket = (door.socket)();
                    start.wait();
                    let result = ask(door, &mut socket, number as u64);
                    results.lock().unwrap().push(result);
                    end.wait();
                };
                thread::Builder::new().stack_size(STACK).spawn_scoped(scope, client).expect("a thread");
            }
        });
        results.into_inner().unwrap()
    })
}

/// A client every 10 ms for `time`, each in its own time.
pub(crate) fn in_turn(door: Door<'_>, time: Duration) -> Sample {
    measure(door, || {
        let count = (time.as_secs_f64() / INTERVAL.as_secs_f64()) as u32;
        let results = Mutex::new(Vec::new());
        let start = Instant::now();
        thread::scope(|scope| {
            for first in 0..THREADS {
                let results = &results;
                scope.spawn(move || {
                    for number in (first..count).step_by(THREADS as usize) {
                        thread::sleep((INTERVAL * number).saturating_sub(start.elapsed()));
                        let result = ask(door, &mut (door.socket)(), number.into());
                        results.lock().unwrap().push(result);
                    }
                });
            }
        });
        results.into_inner().unwrap()
    })
}

/// Connects, sends a number, and waits for its complement.
fn ask(door: Door<'_>, socket: &mut Socket, number: u64) -> io::Result<Duration> {
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    let start = Instant::now();
    (door.connect)(socket)?;
    socket.write_all(&number.to_be_bytes())?;
    let mut answer = [0; 8];
    socket.read_exact(&mut answer)?;
    let took = start.elapsed();
    if u64::from_be_bytes(answer) != !number {
        return Err(io::Error::other("another client's answer"));
    }
    Ok(took)
}

/// Failures; p50, p99 and longest in milliseconds; p99 by p50; descriptors gained.
fn measure(door: Door<'_>, load: impl Fn() -> Vec<io::Result<Duration>>) -> Sample {
    let stop = AtomicBool::new(false);
    let (before, results, after) = thread::scope(|scope| {
        scope.spawn(|| serve(door.listener, &stop));
        let fds = || door.process.map(settled);
        // What a forwarder needs at all is there after its first client.
        let first = ask(door, &mut (door.socket)(), 0);
        let (before, results, after) = (fds(), load(), fds());
        stop.store(true, Ordering::Relaxed);
        (door.disturb)();
        first.expect("an answer");
        (before, results, after)
    });
    let failed = results.iter().filter(|result| result.is_err()).count();
    if let Some(Err(error)) = results.iter().find(|result| result.is_err()) {
        eprintln!("{failed} clients failed, one of them: {error}");
    }
    let mut times: Vec<_> = results.into_iter().filter_map(Result::ok).collect();
    assert!(!times.is_empty(), "no client had an answer");
    times.sort_unstable();
    let at = |part: f64| times[((times.len() - 1) as f64 * part) as usize].as_secs_f64() * 1e3;
    let gained = before.zip(after).map(|(before, after)| after as f64 - before as f64);
    Sample(vec![
        Some(failed as f64),
        Some(at(0.5)),
        Some(at(0.99)),
        Some(at(1.0)),
        Some(at(0.99) / at(0.5)),
        gained,
    ])
}

/// Descriptors, when they have been the same for a while.
fn settled(process: Process) -> usize {
    let (mut seen, mut since, start) = (process.fds(), Instant::now(), Instant::now());
    while since.elapsed() < SAME && start.elapsed() < PATIENCE {
        thread::sleep(SAME / 10);
        let now = process.fds();
        if now != seen {
            (seen, since) = (now, Instant::now());
        }
    }
    seen
}

/// Answers clients, each on a thread of its own until it has closed.
fn serve(listener: &Socket, stop: &AtomicBool) {
    while let Ok((mut client, _)) = listener.accept() {
        if stop.load(Ordering::Relaxed) {
            return;
        }
        let answer = move || {
            let mut number = [0; 8];
            let answered = client.read_exact(&mut number).and_then(|()| {
                let answer = !u64::from_be_bytes(number);
                client.write_all(&answer.to_be_bytes())
            });
            if answered.is_ok() {
                let _ = client.read(&mut number);
            }
        };
        thread::Builder::new().stack_size(STACK).spawn(answer).expect("a thread");
    }
}
