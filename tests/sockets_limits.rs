//! Forwards from a socket of the host to another, without a network: ends that come, go, vanish and stall,
//! and more clients than there are descriptors for.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener};
use std::os::fd::OwnedFd;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, mpsc};
use std::thread::{JoinHandle, spawn};
use std::time::{Duration, Instant};

use socket2::{Domain, SockAddr, Socket, Type};
use testkit::daemon::{Builder, Daemon};
use testkit::guest::{self, Guest};
use testkit::net::plug;
use testkit::streams::{PATIENCE, Server, assert_closed, assert_echo, at, connect, echo, exchange};
use testkit::traffic::{check, send_from};
use testkit::uninterrupted;
use testkit::{eventually, free_port, raise_descriptor_limit};

testkit::agent_in_a_namespace!();

/// Descriptors that may stay: pipes that the relay keeps for the next.
const KEPT: usize = 2 * 2 * 4;
/// What a daemon says of a client that it sends away.
const TURNED_AWAY: &str = "client turned away";

/// Where clients connect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Family {
    Unix,
    Tcp,
}

const FAMILIES: [Family; 2] = [Family::Unix, Family::Tcp];

/// A daemon that forwards a socket of one family to a path of the test's.
struct Rig {
    daemon: Daemon,
    address: SockAddr,
    dir: tempfile::TempDir,
}

impl Rig {
    fn start(family: Family) -> Self {
        Self::with(family, |dest| dest, |builder| builder)
    }

    /// `dest` may take another place than the path's URL.
    fn with(
        family: Family,
        dest: impl FnOnce(String) -> String,
        more: impl FnOnce(Builder) -> Builder,
    ) -> Self {
        raise_descriptor_limit();
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        let source = match family {
            Family::Unix => dir.path().join("source").display().to_string(),
            Family::Tcp => "tcp://127.0.0.1:0".to_owned(),
        };
        let dest = dest(format!("unix://{}/dest", dir.path().display()));
        let builder = Daemon::builder().without_qemu();
        let words = ["-forward-sock", &source, "-forward-dest", &dest];
        let mut daemon = more(builder.args(words)).spawn();
        let address = match family {
            Family::Unix => at(&source),
            Family::Tcp => SocketAddr::from((Ipv4Addr::LOCALHOST, daemon.tcp_port("127.0.0.1"))).into(),
        };
        eventually("the forward listens", PATIENCE, || {
            assert!(daemon.is_running(), "the daemon has ended");
            daemon.stderr().contains("forward: listening").then_some(())
        });
        Self { daemon, address, dir }
    }

    fn dest(&self) -> PathBuf {
        self.dir.path().join("dest")
    }

    #[track_caller]
    fn connect(&self) -> Socket {
        connect(&self.address).unwrap()
    }

    /// Whatever was opened since then is closed again.
    #[track_caller]
    fn assert_descriptors_back(&self, before: usize) {
        let mut now = 0;
        let back = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
            eventually("descriptors are back", PATIENCE, || {
                now = self.daemon.fds();
                (now <= before + KEPT).then_some(())
            });
        }));
        assert!(back.is_ok(), "{now} descriptors, {before} before");
    }

    fn count_in_log(&self, text: &str) -> usize {
        self.daemon.stderr().matches(text).count()
    }
}

/// Writes `bytes` as the first client of a server does, and reads as many back.
fn through(mut socket: &Socket, bytes: &[u8]) -> io::Result<()> {
    socket.write_all(bytes)?;
    let mut back = vec![0; bytes.len()];
    socket.read_exact(&mut back)?;
    if back == bytes { Ok(()) } else { Err(io::Error::other("other bytes come back")) }
}

fn all<T>(threads: Vec<JoinHandle<T>>) -> Vec<T> {
    threads
        .into_iter()
        .map(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
        .collect()
}

#[test]
fn what_is_missing_at_start_may_come_go_and_come_back() {
    for family in FAMILIES {
        let rig = Rig::start(family);
        let before = rig.daemon.fds();
        // The first time there is nothing, then a socket that nobody listens on any more.
        for round in 0..3 {
            let waiting: Vec<_> = (0..20)
                .map(|number| {
                    let client = rig.connect();
                    spawn(move || exchange(&client, &vec![number; 50_000]))
                })
                .collect();
            // Some do not wait to the end.
            for _ in 0..5 {
                drop(rig.connect());
            }
            // All of them wait, and are not merely not looked at yet.
            eventually("clients that wait", PATIENCE, || (rig.daemon.fds() >= before + 20).then_some(()));
            let _ = std::fs::remove_file(rig.dest());
            let server = Server::echo(rig.dest());
            for (number, got) in all(waiting).into_iter().enumerate() {
                let got = got.unwrap_or_else(|error| panic!("{family:?} {round}: client {number}: {error}"));
                assert!(got == vec![number as u8; 50_000], "{family:?}: client {number}: {}", got.len());
            }
            assert_echo(&rig.connect(), b"and on");
            drop(server);
            drop(UnixListener::bind(rig.dest()).unwrap());
        }
        rig.assert_descriptors_back(before);
        assert_eq!(rig.count_in_log(TURNED_AWAY), 0, "{}", rig.daemon.stderr());
    }
}

#[test]
fn nobody_waits_for_ever() {
    let rig = Rig::start(Family::Unix);
    let before = rig.daemon.fds();
    let start = Instant::now();
    let waiting: Vec<_> = (0..5)
        .map(|_| {
            let client = rig.connect();
            client.set_read_timeout(Some(2 * PATIENCE)).unwrap();
            spawn(move || assert_closed(&client))
        })
        .collect();
    all(waiting);
    let waited = start.elapsed();
    assert!((25..45).contains(&waited.as_secs()), "{waited:?}");
    let log = rig.daemon.log_with(TURNED_AWAY);
    assert_eq!((rig.count_in_log("clients wait"), rig.count_in_log(TURNED_AWAY)), (1, 1), "{log}");
    let line = log.lines().find(|line| line.contains(TURNED_AWAY)).unwrap();
    assert!(line.contains("no such file or directory") && line.contains("/dest"), "{line}");
    assert!(line.contains("/source"), "whose clients: {line}");
    rig.assert_descriptors_back(before);
}

/// Its first client would be its second one, and so on.
#[test]
fn a_socket_that_leads_back_to_itself_has_no_clients() {
    let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let port = free_port();
    let tcp = format!("tcp://127.0.0.1:{port}");
    std::os::unix::fs::symlink(path("itself"), path("link")).unwrap();
    let pairs = [
        (path("itself"), format!("unix://{}", path("link"))),
        (path("first"), format!("unix://{}", path("second"))),
        (path("second"), format!("unix://{}", path("third"))),
        (path("third"), tcp.clone()),
        (tcp, format!("unix://{}", path("first"))),
        (path("vmm"), format!("unix://{}?port=7", path("vmm"))),
        // One after the other is none.
        (path("alias"), format!("unix://{}", path("name"))),
        (path("name"), format!("unix://{}", path("echo"))),
    ];
    let words = pairs.iter().flat_map(|(from, to)| ["-forward-sock", from, "-forward-dest", to]);
    let daemon = Daemon::builder().without_qemu().args(words).spawn();
    eventually("all listen", PATIENCE, || {
        (daemon.stderr().matches("forward: listening").count() == pairs.len()).then_some(())
    });
    let (before, _server) = (daemon.fds(), Server::echo(path("echo")));
    for name in ["itself", "first", "third", "vmm"] {
        let start = Instant::now();
        let clients: Vec<_> = (0..10).map(|_| connect(&at(path(name))).unwrap()).collect();
        clients.iter().for_each(assert_closed);
        assert!(start.elapsed() < Duration::from_secs(5), "{name}: {:?}", start.elapsed());
    }
    for name in ["itself", "vmm"] {
        let said = format!(
            r#"client turned away" reason="it leads back to this very socket" socket="unix://{}""#,
            path(name)
        );
        daemon.log_with(&said);
    }
    eventually("descriptors are back", PATIENCE, || (daemon.fds() <= before + KEPT).then_some(()));
    let cpu = daemon.cpu_seconds();
    let start = Instant::now();
    eventually("two seconds", PATIENCE, || (start.elapsed() > Duration::from_secs(2)).then_some(()));
    let busy = daemon.cpu_seconds() - cpu;
    assert!(busy < 0.1, "{busy} s of processor time when all have gone");
    assert_echo(&connect(&at(path("alias"))).unwrap(), b"by way of another");
    // It leads elsewhere now.
    std::fs::remove_file(path("link")).unwrap();
    std::os::unix::fs::symlink(path("echo"), path("link")).unwrap();
    assert_echo(&connect(&at(path("itself"))).unwrap(), b"and on");
}

#[test]
fn ten_thousand_one_after_the_other() {
    for (family, count) in [(Family::Unix, 10_000), (Family::Tcp, 2_000)] {
        let rig = Rig::start(family);
        let _server = Server::echo(rig.dest());
        for _ in 0..100 {
            assert_echo(&rig.connect(), b"warm");
        }
        let (before, memory) = (rig.daemon.fds(), rig.daemon.rss_kb());
        for number in 0_usize..count {
            let got = exchange(&rig.connect(), &number.to_be_bytes());
            let got = got.unwrap_or_else(|error| panic!("{family:?}: client {number}: {error}"));
            assert_eq!(got, number.to_be_bytes());
        }
        rig.assert_descriptors_back(before);
        let grown = rig.daemon.rss_kb().saturating_sub(memory);
        assert!(grown < 4 << 10, "{grown} KiB more after {count} clients");
    }
}

#[test]
fn a_half_is_closed_alone_in_either_order() {
    for family in FAMILIES {
        let rig = Rig::start(family);
        let _server = Server::start(rig.dest(), |mut stream| {
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            let mut bytes = Vec::new();
            if order[0] == b's' {
                stream.write_all(b"that is all").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                stream.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes.len(), 300_000, "what follows the server's end");
            } else {
                stream.read_to_end(&mut bytes).unwrap();
                stream.write_all(&bytes).unwrap();
            }
        });
        // The client's half first: what it gets is sent when its end has come.
        let mut client = rig.connect();
        client.write_all(b"c").unwrap();
        let big = vec![7; 300_000];
        let got = exchange(&client, &big).unwrap();
        assert!(got == big, "{family:?}: {} bytes", got.len());
        // The server's half first.
        let mut client = rig.connect();
        client.write_all(b"s").unwrap();
        let mut bytes = Vec::new();
        client.read_to_end(&mut bytes).unwrap();
        assert_eq!(bytes, b"that is all", "{family:?}");
        client.write_all(&big).unwrap();
        client.shutdown(Shutdown::Write).unwrap();
        // Nothing at all.
        drop(rig.connect());
    }
}

/// Ends that go in the middle of it take their other end along, and nobody else.
#[test]
fn who_vanishes_is_missed() {
    for family in FAMILIES {
        let rig = Rig::start(family);
        let (told, telling) = mpsc::channel();
        let _server = Server::start(rig.dest(), move |mut stream| {
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            let end = match order[0] {
                b'd' => send_from(&stream, 0, u64::MAX / 2).err().map(|error| error.kind()),
                b'u' => {
                    let mut bytes = vec![0; 1 << 16];
                    loop {
                        match uninterrupted(|| stream.read(&mut bytes)) {
                            Ok(0) => break None,
                            Ok(_) => {}
                            Err(error) => break Some(error.kind()),
                        }
                    }
                }
                // Leaves with something unread.
                b'l' => return stream.read_exact(&mut order).unwrap(),
                _ => return echo(stream),
            };
            told.send((order[0], end)).unwrap();
        });
        let end = |order: u8| {
            let told = telling.recv_timeout(PATIENCE);
            let (of, end) = told.unwrap_or_else(|_| panic!("{family:?}: the server is not told of {order}"));
            assert_eq!(of, order);
            end
        };
        let bystander = rig.connect();
        (&bystander).write_all(b"e").unwrap();
        through(&bystander, b"before").unwrap();
        let before = rig.daemon.fds();
        let is_broken = |kind| matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset);

        // A process that is killed while it reads, and one that writes.
        let run = |order: &[u8], program: &[&str]| {
            let mut socket = rig.connect();
            socket.write_all(order).unwrap();
            let (input, output) = match order {
                b"d" => (Stdio::from(OwnedFd::from(socket)), Stdio::null()),
                _ => (Stdio::null(), Stdio::from(OwnedFd::from(socket))),
            };
            let mut child =
                Command::new(program[0]).args(&program[1..]).stdin(input).stdout(output).spawn().unwrap();
            let moved = |child: u32| {
                let io = std::fs::read_to_string(format!("/proc/{child}/io")).unwrap();
                let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
                read.parse::<u64>().unwrap()
            };
            eventually("megabytes on their way", PATIENCE, || (moved(child.id()) > 10 << 20).then_some(()));
            child.kill().unwrap();
            child.wait().unwrap();
        };
        run(b"d", &["cat"]);
        let kind = end(b'd').expect("an endless stream breaks");
        assert!(is_broken(kind), "{family:?}: {kind:?}");
        run(b"u", &["cat", "/dev/zero"]);
        end(b'u');

        // One that closes with something unread; of TCP that is a reset. Then one that asks for it.
        for linger in [false, true] {
            let mut client = rig.connect();
            client.write_all(b"d").unwrap();
            client.read_exact(&mut [0; 100_000]).unwrap();
            if linger {
                client.set_linger(Some(Duration::ZERO)).unwrap();
            }
            drop(client);
            let kind = end(b'd').expect("an endless stream breaks");
            assert!(is_broken(kind), "{family:?}: {kind:?}");
        }

        // The server.
        let mut client = rig.connect();
        client.write_all(b"l").unwrap();
        let _ = client.write_all(&vec![1; 200_000]);
        assert_closed(&client);

        through(&bystander, b"after").unwrap();
        rig.assert_descriptors_back(before);
    }
}

/// A reset arrives as one, on either side, where both are TCP.
#[test]
fn a_reset_is_carried() {
    let listener = TcpListener::bind("127.0.0.1:0").unwrap();
    let dest = format!("tcp://{}", listener.local_addr().unwrap());
    let rig = Rig::with(Family::Tcp, |_| dest, |builder| builder);
    let pair = || {
        let client = rig.connect();
        (&client).write_all(b"x").unwrap();
        let (server, _) = listener.accept().unwrap();
        server.set_read_timeout(Some(PATIENCE)).unwrap();
        let server = Socket::from(server);
        (&server).read_exact(&mut [0]).unwrap();
        (client, server)
    };
    let reset = |socket: Socket| socket.set_linger(Some(Duration::ZERO)).unwrap();
    let assert_reset = |mut socket: &Socket| {
        let end = uninterrupted(|| socket.read(&mut [0; 16]));
        assert!(
            end.as_ref().is_err_and(|error| error.kind() == io::ErrorKind::ConnectionReset),
            "a reset arrives as {end:?}"
        );
    };
    let (client, server) = pair();
    reset(client);
    assert_reset(&server);
    let (client, server) = pair();
    reset(server);
    assert_reset(&client);
}

/// Those who do not take what they get cost themselves, and no more memory than sockets and pipes have.
#[test]
fn who_stalls_delays_nobody_else() {
    const LENGTH: u64 = 20 << 20;
    for family in FAMILIES {
        let rig = Rig::start(family);
        let (hold, held) = UnixStream::pair().unwrap();
        let held = Arc::new(held);
        let _server = Server::start(rig.dest(), move |mut stream| {
            let mut order = [0];
            stream.read_exact(&mut order).unwrap();
            match order[0] {
                // Does not read, until it may go.
                b'n' => drop((&*held).read(&mut order)),
                b'd' => drop(send_from(&stream, 0, LENGTH)),
                _ => drop(send_from(&stream, 0, u64::MAX / 2)),
            }
        });
        let before = rig.daemon.rss_kb();
        let order = |byte: u8| {
            let mut client = rig.connect();
            client.write_all(&[byte]).unwrap();
            client
        };
        // They are sent to without an end, and send without one; more of them than the relay has pipes.
        let stalled: Vec<Socket> = (0..150).map(|_| order(b'e')).collect();
        let writing: Vec<Socket> = (0..150).map(|_| order(b'n')).collect();
        for mut client in &writing {
            client.set_nonblocking(true).unwrap();
            while client.write(&[0; 1 << 16]).is_ok() {}
        }
        eventually("a first byte for each", PATIENCE, || {
            let mut byte = [std::mem::MaybeUninit::uninit()];
            stalled.iter().all(|client| client.peek(&mut byte).is_ok()).then_some(())
        });
        let start = Instant::now();
        let served = (0..4).map(|_| {
            let client = order(b'd');
            spawn(move || check(&client).unwrap())
        });
        for got in all(served.collect()) {
            assert_eq!(got, LENGTH, "{family:?}");
        }
        let took = start.elapsed();
        assert!(took < Duration::from_secs(10), "{family:?}: others take {took:?}");
        let grown = rig.daemon.rss_kb().saturating_sub(before);
        assert!(grown < 64 << 10, "{family:?}: {grown} KiB more for 300 that stall");
        let descriptors = rig.daemon.fds();
        drop((stalled, writing, hold));
        eventually("they are gone", PATIENCE, || (rig.daemon.fds() < descriptors - 500).then_some(()));
    }
}

#[test]
fn a_thousand_at_once() {
    const COUNT: usize = 1_000;
    for family in FAMILIES {
        let rig = Rig::start(family);
        let _server = Server::echo(rig.dest());
        assert_echo(&rig.connect(), b"warm");
        let before = rig.daemon.fds();
        let clients: Vec<Socket> = (0..COUNT).map(|_| rig.connect()).collect();
        for (number, mut client) in clients.iter().enumerate() {
            client.write_all(&number.to_be_bytes()).unwrap();
        }
        // Each is through to the server before the first one goes.
        for (number, mut client) in clients.iter().enumerate() {
            let mut back = [0; 8];
            client
                .read_exact(&mut back)
                .unwrap_or_else(|error| panic!("{family:?}: client {number}: {error}"));
            assert_eq!(back, number.to_be_bytes());
        }
        for client in &clients {
            assert_echo(client, &[3; 1000]);
        }
        drop(clients);
        // And the pipes that are kept.
        eventually("descriptors are back", PATIENCE, || (rig.daemon.fds() <= before + 2 * 16).then_some(()));
    }
}

/// Nobody is ready to take clients at the other end: they wait without costing much, and are all served once
/// somebody is.
#[test]
fn a_server_that_takes_nobody_for_a_while() {
    const COUNT: usize = 500;
    let rig = Rig::start(Family::Unix);
    let idle = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    idle.bind(&at(rig.dest())).unwrap();
    idle.listen(1).unwrap();
    let clients: Vec<Socket> = (0..COUNT).map(|_| rig.connect()).collect();
    eventually("all are waiting", PATIENCE, || (rig.daemon.fds() >= COUNT).then_some(()));
    let (cpu, start) = (rig.daemon.cpu_seconds(), Instant::now());
    eventually("two seconds", PATIENCE, || (start.elapsed() > Duration::from_secs(2)).then_some(()));
    let busy = rig.daemon.cpu_seconds() - cpu;
    assert!(busy < 0.4, "{busy} s of processor time in two seconds for {COUNT} that wait");
    spawn(move || {
        while let Ok((stream, _)) = idle.accept() {
            let stream = OwnedFd::from(stream).into();
            spawn(move || echo(stream));
        }
    });
    for client in &clients {
        assert_echo(client, b"hello");
    }
}

#[test]
fn the_end_does_not_wait_for_clients() {
    for family in FAMILIES {
        let mut rig = Rig::start(family);
        let missing: Vec<Socket> = (0..20).map(|_| rig.connect()).collect();
        eventually("clients that wait", PATIENCE, || (rig.daemon.fds() > 20).then_some(()));
        drop(missing);
        let (hold, held) = UnixStream::pair().unwrap();
        let held = Arc::new(held);
        let _server = Server::start(rig.dest(), move |_stream| drop((&*held).read(&mut [0])));
        let stalled: Vec<Socket> = (0..20).map(|_| rig.connect()).collect();
        for mut client in &stalled {
            client.set_nonblocking(true).unwrap();
            while client.write(&[0; 1 << 16]).is_ok() {}
            client.set_nonblocking(false).unwrap();
        }
        let idle: Vec<Socket> = (0..20).map(|_| rig.connect()).collect();
        let start = Instant::now();
        assert!(rig.daemon.terminate().success());
        assert!(start.elapsed() < Duration::from_secs(2), "{family:?}: the end takes {:?}", start.elapsed());
        for client in stalled.iter().chain(&idle) {
            assert_closed(client);
        }
        assert!(connect(&rig.address).is_err());
        drop(hold);
    }
}

/// Accept pauses also where each socket has only a few clients.
#[test]
fn more_sockets_and_clients_than_descriptors() {
    const SOCKETS: usize = 60;
    const EACH: usize = 4;
    let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    let dest = format!("unix://{}", path("dest"));
    let words = (0..SOCKETS).flat_map(|number| {
        ["-forward-sock".to_owned(), path(&number.to_string()), "-forward-dest".to_owned(), dest.clone()]
    });
    let mut daemon = Daemon::builder().without_qemu().args(words).descriptors(256).spawn();
    eventually("all listen", PATIENCE, || {
        assert!(daemon.is_running(), "the daemon has ended");
        (daemon.stderr().matches("forward: listening").count() == SOCKETS).then_some(())
    });
    let _server = Server::echo(path("dest"));
    let before = daemon.fds();
    let clients: Vec<Socket> = (0..SOCKETS * EACH)
        .map(|number| connect(&at(path(&(number % SOCKETS).to_string()))).unwrap())
        .collect();
    eventually("accept pauses", PATIENCE, || daemon.stderr().contains("limit of open files").then_some(()));
    // Each leaves as soon as it is served.
    for (number, client) in clients.into_iter().enumerate() {
        let got = exchange(&client, b"hello").unwrap_or_else(|error| panic!("client {number}: {error}"));
        assert_eq!(got, b"hello", "client {number}");
    }
    eventually("descriptors are back", PATIENCE, || (daemon.fds() <= before + 2 * KEPT).then_some(()));
    let log = daemon.stderr();
    assert_eq!(log.matches("limit of open files").count(), 1, "one line: {log}");
    assert!(!log.contains("cannot accept") && !log.contains("Too many open files"), "{log}");
}

/// What a daemon says when accept pauses.
const FULL: &str = "limit of open files";

/// Accept pauses: who is too many waits in the backlog, and is served when somebody leaves. Behind `rig` is
/// an echo.
#[track_caller]
fn assert_served_in_turns(rig: &Rig, limit: usize) {
    const COUNT: usize = 400;
    assert_echo(&rig.connect(), b"warm");
    let before = rig.daemon.fds();
    for _ in 0..2 {
        let leave = Arc::new(AtomicBool::new(false));
        let (served, serving) = mpsc::channel();
        let clients: Vec<_> = (0..COUNT)
            .map(|number| {
                let (client, served, leave) = (rig.connect(), served.clone(), Arc::clone(&leave));
                spawn(move || {
                    through(&client, &number.to_be_bytes())?;
                    served.send(()).unwrap();
                    while !leave.load(Ordering::Acquire) {
                        std::thread::park();
                    }
                    exchange(&client, &number.to_be_bytes())
                })
            })
            .collect();
        // Those who are served keep their place.
        for number in 0..64 {
            let told = serving.recv_timeout(PATIENCE);
            assert!(told.is_ok(), "{number} of {COUNT} are served");
        }
        eventually("the line that says why", PATIENCE, || (rig.count_in_log(FULL) > 0).then_some(()));
        let (cpu, start) = (rig.daemon.cpu_seconds(), Instant::now());
        eventually("a second", PATIENCE, || (start.elapsed() > Duration::from_secs(1)).then_some(()));
        let busy = rig.daemon.cpu_seconds() - cpu;
        assert!(busy < 0.3, "{busy} s of processor time while nobody leaves");
        let open = rig.daemon.fds();
        assert!((64..limit).contains(&open), "{open} descriptors");
        let more = serving.try_iter().count();
        assert!(more < COUNT - 64, "all are served: {limit} descriptors are no limit");
        // They leave, and the next ones too as soon as they are served.
        leave.store(true, Ordering::Release);
        for client in &clients {
            client.thread().unpark();
        }
        for (number, got) in all(clients).into_iter().enumerate() {
            let got = got.unwrap_or_else(|error| panic!("client {number}: {error}"));
            assert_eq!(got, number.to_be_bytes(), "client {number}");
        }
        rig.assert_descriptors_back(before);
    }
    let log = rig.daemon.log_with(FULL);
    assert_eq!(rig.count_in_log(FULL), 1, "one line: {log}");
    assert!(!log.contains("cannot accept") && rig.count_in_log(TURNED_AWAY) == 0, "{log}");
}

#[test]
fn more_clients_than_descriptors() {
    const LIMIT: usize = 256;
    let rig = Rig::with(Family::Unix, |dest| dest, |builder| builder.descriptors(LIMIT));
    let server = Server::echo(rig.dest());
    assert_served_in_turns(&rig, LIMIT);
    drop(server);

    // As many as there are places are not too many.
    let log = rig.daemon.log_with(" clients=");
    let places = log.split(" clients=").nth(1).and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    let rig = Rig::with(Family::Unix, |dest| dest, |builder| builder.descriptors(LIMIT));
    let _server = Server::echo(rig.dest());
    let mut clients: Vec<Socket> = (0..places.expect("a number of clients")).map(|_| rig.connect()).collect();
    for client in &clients {
        through(client, b"hello").unwrap();
    }
    let full = rig.daemon.fds();
    drop(clients.pop());
    eventually("a place is free", PATIENCE, || (rig.daemon.fds() < full).then_some(()));
    through(&rig.connect(), b"hello").unwrap();
    assert_eq!(rig.count_in_log(FULL), 0, "{}", rig.daemon.stderr());
}

/// Clients that are led to a guest are the engine's; they count as long as they are there.
#[test]
fn more_clients_of_a_guest_than_descriptors() {
    const LIMIT: usize = 256;
    let address = SocketAddr::from(([192, 168, 127, 2], 7000));
    let listen = ["-listen-qemu", "unix://{dir}/qemu.sock"];
    let more = |builder: Builder| builder.args(listen).descriptors(LIMIT);
    let rig = Rig::with(Family::Unix, |_| format!("tcp://{address}"), more);
    let guest = Guest::start(plug(&rig.daemon), guest::MAC, 1500);
    guest.dhcp();
    let listener = guest.listen(address);
    spawn(move || {
        while let Ok((stream, _)) = listener.accept() {
            spawn(move || echo(OwnedFd::from(stream).into()));
        }
    });
    assert_served_in_turns(&rig, LIMIT);
}

/// A daemon with two sockets, of a service in a guest that hangs and of an echo beside it.
struct Beside {
    daemon: Daemon,
    hung: TcpListener,
    /// Of the host, to either.
    sockets: [SockAddr; 2],
    _guest: Guest,
    dir: tempfile::TempDir,
}

impl Beside {
    /// A tunnel to a port of the guest, unless it is refused.
    fn tunnel(&self, port: u16) -> Option<Socket> {
        let mut socket = connect(&at(self.dir.path().join("api"))).unwrap();
        write!(socket, "POST /tunnel?ip=192.168.127.2&port={port} HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
        let mut answer = [0; 2];
        socket.read_exact(&mut answer).unwrap();
        (&answer == b"OK").then_some(socket)
    }

    fn start() -> Self {
        raise_descriptor_limit();
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        let paths = ["hung", "echo"].map(|name| dir.path().join(name).display().to_string());
        let [hung, echoes] = [7000, 7001].map(|port| SocketAddr::from(([192, 168, 127, 2], port)));
        let daemon = Daemon::builder()
            .descriptors(256)
            .args(["-forward-sock", &paths[0], "-forward-dest", &format!("tcp://{hung}")])
            .args(["-forward-sock", &paths[1], "-forward-dest", &format!("tcp://{echoes}")])
            .args(["-listen", &format!("unix://{}", dir.path().join("api").display())])
            .start();
        let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
        guest.dhcp();
        let (hung, listener) = (guest.listen(hung), guest.listen(echoes));
        spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                spawn(move || echo(OwnedFd::from(stream).into()));
            }
        });
        let beside = Self { daemon, hung, sockets: paths.map(at), _guest: guest, dir };
        beside.assert_echo("at first");
        beside
    }

    #[track_caller]
    fn assert_echo(&self, when: &str) {
        let got = exchange(&connect(&self.sockets[1]).unwrap(), b"hello");
        assert_eq!(got.unwrap_or_else(|error| panic!("{when}: {error}")), b"hello", "{when}");
    }
}

/// As of programs that poll with a limit of their own.
#[test]
fn clients_that_left_keep_no_place() {
    const POLLS: u32 = 400;
    let beside = Beside::start();
    let before = beside.daemon.fds();
    for number in 0..POLLS {
        let client = connect(&beside.sockets[0]).unwrap();
        (&client).write_all(&number.to_be_bytes()).unwrap();
        if number % 2 == 1 {
            client.shutdown(Shutdown::Write).unwrap();
        }
    }
    eventually("descriptors are back", PATIENCE, || (beside.daemon.fds() <= before + KEPT).then_some(()));
    beside.assert_echo("while the other hangs");
    // The service gets all of them when it goes on, and the end of each.
    let mut seen: Vec<u32> = (0..POLLS)
        .map(|_| {
            let (mut stream, mut bytes) = (beside.hung.accept().unwrap().0, Vec::new());
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            stream.read_to_end(&mut bytes).unwrap();
            u32::from_be_bytes(bytes.try_into().unwrap())
        })
        .collect();
    seen.sort_unstable();
    assert!(seen.iter().copied().eq(0..POLLS), "{seen:?}");
}

#[test]
fn clients_that_wait_leave_places_to_other_sockets() {
    let beside = Beside::start();
    let _waiting: Vec<Socket> = (0..400).map(|_| connect(&beside.sockets[0]).unwrap()).collect();
    eventually("accept pauses", PATIENCE, || beside.daemon.stderr().contains(FULL).then_some(()));
    let hung: Vec<Socket> = std::iter::from_fn(|| beside.tunnel(7000)).take(400).collect();
    assert!((1..100).contains(&hung.len()), "{} tunnels to the one that hangs", hung.len());
    for _ in 0..20 {
        beside.assert_echo("while clients of the other wait");
        let tunnel = beside.tunnel(7001).expect("a tunnel to another port");
        assert_eq!(exchange(&tunnel, b"hello").unwrap(), b"hello");
    }
}
