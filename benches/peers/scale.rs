//! Many flows at once, many one after the other, and none at all. Owns: the process that holds the host's
//! ends, so that 10,000 flows fit the descriptors of each process. Read next: `tcp.rs`.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::panic::resume_unwind;
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicBool, AtomicU64, AtomicUsize, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::{Domain, Socket, Type};

use crate::measure::{Direction, Sample};
use crate::setup::Setup;
use crate::tcp::{answer, listen, request, stream};
use testkit::ns::Namespace;
use testkit::process::Process;
use testkit::raise_descriptor_limit;

/// Threads that open flows, and threads that accept them.
const THREADS: usize = 8;
/// Longest that opening all flows may take.
const OPENING: Duration = Duration::from_secs(60);
/// Longest that one connection may be silent.
const SILENCE: Duration = Duration::from_secs(10);
/// Between the last flow's opening and a look at the memory.
const REST: Duration = Duration::from_secs(1);
/// Until a guest that was just plugged in has said all it says by itself.
const QUIET: Duration = Duration::from_secs(6);
/// Longest wait for memory and descriptors to stay as they are.
const SETTLING: u32 = 20;

/// Set to the address to listen on in the process that is to hold the host's ends.
const HOLDER: &str = "GVPROXY_BENCH_HOLDER";

/// A process that accepts connections, answers each with a byte, and keeps them.
#[derive(Debug)]
struct Holder {
    child: Child,
    port: u16,
}

impl Holder {
    fn start(ns: &Namespace, at: Ipv4Addr) -> Self {
        let mut command: Command = ns.command(std::env::current_exe().expect("a path to this executable"));
        command.env(HOLDER, at.to_string()).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().expect("a process for the host's ends");
        let mut line = String::new();
        BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
        let port = line.trim().parse().unwrap_or_else(|error| panic!("{error}: {line:?}"));
        Self { child, port }
    }
}

impl Drop for Holder {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Holds connections until stdin ends, if this process was started to do so.
pub(crate) fn hold_if_asked() -> bool {
    let Some(at) = std::env::var(HOLDER).ok().and_then(|text| text.parse::<Ipv4Addr>().ok()) else {
        return false;
    };
    raise_descriptor_limit();
    let listener = Socket::new(Domain::IPV4, Type::STREAM, None).expect("a socket");
    listener.bind(&SocketAddr::from((at, 0)).into()).expect("a port");
    listener.listen(4096).expect("a listener");
    println!("{}", listener.local_addr().unwrap().as_socket_ipv4().unwrap().port());
    for _ in 0..THREADS {
        let listener = listener.try_clone().unwrap();
        thread::spawn(move || {
            let mut held = Vec::new();
            loop {
                let (mut stream, _) = listener.accept().expect("a connection");
                if stream.read_exact(&mut [0]).and_then(|()| stream.write_all(b"!")).is_ok() {
                    held.push(stream);
                }
            }
        });
    }
    let _ = io::stdin().read(&mut [0]);
    true
}

/// Flows that are open and silent.
#[derive(Debug)]
struct Idle {
    flows: Vec<TcpStream>,
    took: Duration,
    _holder: Holder,
}

/// Opens `count` flows at once, with a byte each way. `first` is called when one flow is open.
fn open(setup: &Setup, count: usize, mut first: impl FnMut()) -> Idle {
    let holder = Holder::start(setup.services(), setup.service);
    let to = SocketAddr::from((setup.to, holder.port));
    let mut sockets = Vec::with_capacity(count);
    while sockets.len() <= count {
        sockets.extend(setup.guest.many_tcp());
    }
    for socket in &sockets {
        socket.set_read_timeout(Some(SILENCE)).unwrap();
        socket.set_write_timeout(Some(SILENCE)).unwrap();
    }
    let mut flows = vec![request(sockets.pop().unwrap(), to).expect("a first flow")];
    first();
    sockets.truncate(count);
    let mut shares: Vec<Vec<_>> = (0..THREADS).map(|_| Vec::new()).collect();
    for (number, socket) in sockets.into_iter().enumerate() {
        shares[number % THREADS].push(socket);
    }
    let (start, opened) = (Instant::now(), AtomicUsize::new(0));
    let open = |socket| {
        let flow = request(socket, to);
        let before = opened.fetch_add(1, Ordering::Relaxed);
        assert!(start.elapsed() < OPENING, "{before} of {count} flows are open after {OPENING:?}");
        // A connect that took too long says that it is still in progress.
        flow.unwrap_or_else(|error| {
            panic!("{error} at flow {before} of {count}, silent for {SILENCE:?} at most")
        })
    };
    thread::scope(|scope| {
        let share = |sockets: Vec<Socket>| scope.spawn(|| sockets.into_iter().map(open).collect::<Vec<_>>());
        let threads: Vec<_> = shares.into_iter().map(share).collect();
        for thread in threads {
            match thread.join() {
                Ok(opened) => flows.extend(opened),
                Err(cause) => resume_unwind(cause),
            }
        }
    });
    let took = start.elapsed();
    thread::sleep(REST);
    Idle { flows, took, _holder: holder }
}

/// Flows opened in a second, and KiB of resident memory for each when all are silent.
pub(crate) fn idle_flows(setup: &Setup, count: usize) -> Sample {
    let rss = || setup.process.map(Process::rss_kb);
    let mut before = None;
    let idle = open(setup, count, || before = rss());
    let memory = before.zip(rss()).map(|(before, after)| after.saturating_sub(before) as f64 / count as f64);
    drop(idle.flows);
    Sample(vec![Some(count as f64 / idle.took.as_secs_f64()), memory])
}

/// What is left of one flow's throughput, and what becomes of its processor time, beside `count` silent ones:
/// for each direction, as a part of the mean of before and after.
pub(crate) fn crowd(setup: &Setup, count: usize, time: Duration) -> Sample {
    let busy = || {
        let [up, down] = Direction::BOTH.map(|direction| stream(setup, direction, 1, time).0);
        [up, down].concat()
    };
    let before = busy();
    let idle = open(setup, count, || ());
    let beside = busy();
    drop(idle);
    thread::sleep(REST);
    let after = busy();
    let part = |index: usize| Some(2.0 * beside[index]? / (before[index]? + after[index]?));
    Sample((0..beside.len()).map(part).collect())
}

/// How often in a second the daemon's threads wake while nothing happens.
pub(crate) fn wakeups(setup: &Setup, time: Duration) -> Option<Sample> {
    let process = setup.process?;
    thread::sleep(QUIET);
    let before = process.sleeps();
    thread::sleep(time);
    Some(Sample::one((process.sleeps() - before) as f64 / time.as_secs_f64()))
}

/// Connections that were opened, used and closed; how many failed; how many in a second; KiB of memory and
/// descriptors that the daemon has more than before, when all is quiet again.
pub(crate) fn churn(setup: &Setup, time: Duration) -> Sample {
    for ns in [&*setup.guest, setup.services()] {
        // A client's port is free again after a minute otherwise, which is longer than the ports last.
        ns.run(["sh", "-c", "echo 1024 65535 >/proc/sys/net/ipv4/ip_local_port_range"]);
        ns.run(["sh", "-c", "echo 1000 >/proc/sys/net/ipv4/tcp_max_tw_buckets"]);
    }
    // What the daemon needs for this load at all is there after a second of it.
    connections(setup, Duration::from_secs(1));
    let before = setup.process.map(settled);
    let (done, failed) = connections(setup, time);
    let after = setup.process.map(settled);
    let gained =
        |of: fn((u64, usize)) -> f64| before.zip(after).map(|(before, after)| of(after) - of(before));
    Sample(vec![
        Some(done),
        Some(failed),
        Some(done / time.as_secs_f64()),
        gained(|(memory, _)| memory as f64),
        gained(|(_, descriptors)| descriptors as f64),
    ])
}

/// Connections that were answered, and that were not.
fn connections(setup: &Setup, time: Duration) -> (f64, f64) {
    let (listener, to) = listen(setup);
    let (done, failed, stop) = (AtomicU64::new(0), AtomicU64::new(0), AtomicBool::new(false));
    let start = Instant::now();
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..THREADS {
            scope.spawn(|| {
                while let Ok((stream, _)) = listener.accept() {
                    if stop.load(Ordering::Relaxed) {
                        break;
                    }
                    let _ = stream.set_read_timeout(Some(SILENCE));
                    answer(stream);
                }
            });
            clients.push(scope.spawn(|| {
                for socket in std::iter::repeat_with(|| setup.guest.many_tcp()).flatten() {
                    if start.elapsed() >= time {
                        break;
                    }
                    socket.set_read_timeout(Some(SILENCE)).unwrap();
                    socket.set_write_timeout(Some(SILENCE)).unwrap();
                    let counter = if request(socket, to).is_ok() { &done } else { &failed };
                    counter.fetch_add(1, Ordering::Relaxed);
                }
            }));
        }
        for client in clients {
            let _ = client.join();
        }
        stop.store(true, Ordering::Relaxed);
        for _ in 0..THREADS {
            drop(setup.services().connect(listener.local_addr().unwrap()));
        }
    });
    (done.into_inner() as f64, failed.into_inner() as f64)
}

/// Memory in KiB and descriptors, when they have been the same for three seconds.
fn settled(process: Process) -> (u64, usize) {
    let look = || (process.rss_kb(), process.fds());
    let (mut seen, mut same) = (look(), 0);
    for _ in 0..SETTLING {
        thread::sleep(Duration::from_secs(1));
        let now = look();
        same = if now == seen { same + 1 } else { 0 };
        seen = now;
        if same == 3 {
            break;
        }
    }
    seen
}
