//! Streams: throughput, round trips, connections one after the other. Blocking sockets, a thread for each
//! end, the same for all. May not: know which peer it measures. Read next: `measure.rs`.

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use socket2::Socket;

use crate::measure::{Direction, Sample, Window};
use crate::setup::Setup;
use crate::ssh::Lead;
use testkit::traffic::{accept, impatient};

/// Where a service of the host is for the guest.
pub(crate) fn listen(setup: &Setup) -> (TcpListener, SocketAddr) {
    let listener = setup.services().listen((setup.service, 0).into());
    let port = listener.local_addr().unwrap().port();
    (listener, (setup.to, port).into())
}

/// Gbit/s that arrive, and the daemon's processor seconds for each GB.
pub(crate) fn stream(setup: &Setup, direction: Direction, flows: usize, time: Duration) -> Sample {
    let (listener, to) = listen(setup);
    let pairs = (0..flows).map(|_| {
        let guest = setup.guest.connect(to).expect("a connection");
        (guest.into(), accept(&listener).into())
    });
    carry(setup, pairs.collect(), direction, time)
}

/// The same through a port of the host that is published to the guest, and what part that is of a flow that
/// the guest has opened, just after.
pub(crate) fn port(setup: &Setup, direction: Direction, time: Duration) -> Option<Sample> {
    let published = setup.published?;
    let listener = setup.guest.listen("0.0.0.0:22".parse().unwrap());
    let host = setup.host.connect(published).expect("the published port");
    let guest = accept(&listener);
    let mut sample = carry(setup, vec![(guest.into(), host.into())], direction, time);
    let direct = stream(setup, direction, 1, time);
    sample.0.push(part(&sample, &direct));
    Some(sample)
}

/// The same through `/tunnel` of the API, and what part that is of a published port, just after.
pub(crate) fn tunnel(setup: &Setup, direction: Direction, time: Duration) -> Option<Sample> {
    let listener = setup.guest.listen("0.0.0.0:23".parse().unwrap());
    let mut host = UnixStream::connect(setup.api.as_ref()?).expect("the API's socket");
    host.write_all(b"POST /tunnel?ip=192.168.127.2&port=23 HTTP/1.1\r\nHost: d\r\n\r\n").expect("a request");
    let mut ok = [0; 2];
    host.read_exact(&mut ok).expect("an answer");
    assert_eq!(&ok, b"OK");
    let guest = accept(&listener);
    let mut sample = carry(setup, vec![(guest.into(), host.into())], direction, time);
    let published = port(setup, direction, time)?;
    sample.0.push(part(&sample, &published));
    Some(sample)
}

/// What part of the throughput of `whole` that of `sample` is.
fn part(sample: &Sample, whole: &Sample) -> Option<f64> {
    sample.0[0].zip(whole.0[0]).map(|(part, whole)| part / whole)
}

/// The same through a unix socket of the host that leads over SSH to one of the guest.
pub(crate) fn ssh(setup: &Setup, direction: Direction, time: Duration) -> Option<Sample> {
    let (host, guest) = setup.forward.as_ref()?.connect(Lead::Ssh);
    Some(carry(setup, vec![(guest.into(), host.into())], direction, time))
}

/// The same by the guest's agent, and what part that is of SSH, just after.
pub(crate) fn agent(setup: &Setup, direction: Direction, time: Duration) -> Option<Sample> {
    let (host, guest) = setup.forward.as_ref()?.connect(Lead::Agent);
    let mut sample = carry(setup, vec![(guest.into(), host.into())], direction, time);
    let ssh = ssh(setup, direction, time)?;
    sample.0.push(part(&sample, &ssh));
    Some(sample)
}

/// `pairs` are (guest's end, host's end).
fn carry(setup: &Setup, pairs: Vec<(Socket, Socket)>, direction: Direction, time: Duration) -> Sample {
    let received = AtomicU64::new(0);
    let received = &received;
    let window = thread::scope(|scope| {
        for (guest, host) in &pairs {
            let (mut from, mut to) = direction.order(guest, host);
            scope.spawn(move || {
                let buffer = vec![0x5a; 128 * 1024];
                while from.write_all(&buffer).is_ok() {}
            });
            scope.spawn(move || {
                let mut buffer = vec![0; 256 * 1024];
                while let Ok(read @ 1..) = to.read(&mut buffer) {
                    received.fetch_add(read as u64, Ordering::Relaxed);
                }
            });
        }
        let window = Window::watch(setup, time, &[received]);
        for (guest, host) in &pairs {
            let _ = (guest.shutdown(Shutdown::Both), host.shutdown(Shutdown::Both));
        }
        window
    });
    let bytes = window.counts[0];
    Sample(vec![Some(bytes * 8.0 / 1e9 / window.seconds), window.cpu_per(bytes / 1e9)])
}

/// Microseconds that one byte takes to the host and back.
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
    Sample::percentiles(times)
}

/// Connections per second, one after the other: connect, one byte there, one back, close.
pub(crate) fn connect_rate(setup: &Setup, time: Duration) -> Sample {
    let (listener, to) = listen(setup);
    listener.set_nonblocking(false).unwrap();
    let stop = Arc::new(AtomicBool::new(false));
    let stopping = Arc::clone(&stop);
    let server = thread::spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            if stopping.load(Ordering::Relaxed) {
                break;
            }
            answer(stream);
        }
    });
    let (mut spent, mut done) = (Duration::ZERO, 0);
    while spent < time {
        // The sockets come from another process, so that getting them is no part of the time.
        let sockets = setup.guest.many_tcp();
        let count = sockets.len();
        let start = Instant::now();
        for socket in sockets {
            request(socket, to).expect("a connection that answers");
        }
        spent += start.elapsed();
        done += count;
    }
    stop.store(true, Ordering::Relaxed);
    drop(setup.guest.connect(to));
    let _ = server.join();
    Sample::one(done as f64 / spent.as_secs_f64())
}

/// Connects, sends a byte and waits for one.
pub(crate) fn request(socket: Socket, to: SocketAddr) -> std::io::Result<TcpStream> {
    socket.connect(&to.into())?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"?")?;
    stream.read_exact(&mut [0])?;
    Ok(stream)
}

/// The other end of a request: sends the byte back and waits for the close.
pub(crate) fn answer(mut stream: impl Read + Write) {
    let mut byte = [0];
    let answered = stream.read_exact(&mut byte).and_then(|()| stream.write_all(&byte));
    if answered.is_ok() {
        let _ = stream.read(&mut byte);
    }
}
