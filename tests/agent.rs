//! Sockets of a guest on the host by way of the guest's agent: no user, no key. The guest is a Linux stack in
//! a namespace with gvforwarder as its agent, and a server on a unix socket behind that.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::os::fd::OwnedFd;
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::process::{Command, Output, Stdio};
use std::thread::spawn;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use socket2::Socket;
use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::exposed::{Asker, Bench};
use testkit::guest::{self, Guest};
use testkit::guest_agent::{Agent, line, secret_file};
use testkit::net::plug;
use testkit::ns::Namespace;
use testkit::streams;
use testkit::traffic::{check, send_from};
use testkit::uninterrupted;

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(30);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const PORT: u16 = gvproxy::agent::PORT;
/// Of `-agent-secret-file`.
const SECRET: &str = "a secret of 25 characters";
const START: &str = "gvforwarder -agent -agent-allow ";

/// Where the guest's servers listen. A unix socket is found by its path from every network.
struct Services(tempfile::TempDir);

impl Services {
    fn new() -> Self {
        Self(tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap())
    }

    fn path(&self, name: &str) -> String {
        self.0.path().join(name).display().to_string()
    }

    /// Serves each connection on a thread of its own, for as long as the test runs.
    fn serve(&self, name: &str, serve: impl Fn(UnixStream) + Clone + Send + 'static) {
        let listener = UnixListener::bind(self.path(name)).unwrap();
        spawn(move || {
            while let Ok((stream, _)) = listener.accept() {
                let serve = serve.clone();
                spawn(move || serve(stream));
            }
        });
    }
}

/// Sends back what comes, and then the end.
fn echo(mut stream: UnixStream) {
    let mut bytes = [0; 64 << 10];
    while let Ok(read @ 1..) = uninterrupted(|| stream.read(&mut bytes)) {
        if stream.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A daemon that forwards `name.sock` of its directory for each `(name, path)`.
#[track_caller]
fn daemon(forwards: &[(&str, &str)], more: &[&str]) -> Daemon {
    let words = forwards.iter().flat_map(|(name, path)| {
        ["-forward-sock".into(), format!("{{dir}}/{name}.sock"), "-forward-dest".into(), (*path).to_owned()]
    });
    let words: Vec<String> = words.chain(more.iter().map(|word| (*word).to_owned())).collect();
    Daemon::builder().args(words).start()
}

#[track_caller]
fn plug_guest(daemon: &Daemon) -> Guest {
    let guest = Guest::start(plug(daemon), guest::MAC, 1500);
    assert_eq!(guest.dhcp().ip(), GUEST);
    guest
}

/// Everything: the agent goes first.
struct Rig {
    agent: Agent,
    _guest: Guest,
    daemon: Daemon,
    services: Services,
}

impl Rig {
    /// One forward, `a.sock`, to the server `a` of the guest, which is still to be started.
    #[track_caller]
    fn start() -> Self {
        let services = Services::new();
        let path = services.path("a");
        let daemon = daemon(&[("a", &path)], &[]);
        let guest = plug_guest(&daemon);
        let agent = Agent::start(&guest, &["-agent-allow", &path]);
        Self { agent, _guest: guest, daemon, services }
    }

    #[track_caller]
    fn connect(&self) -> UnixStream {
        connect(&self.daemon, "a")
    }
}

#[track_caller]
fn connect(daemon: &Daemon, name: &str) -> UnixStream {
    let stream = UnixStream::connect(daemon.dir().join(name).with_extension("sock")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream.set_write_timeout(Some(PATIENCE)).unwrap();
    stream
}

fn into_socket(stream: UnixStream) -> Socket {
    OwnedFd::from(stream).into()
}

fn exchange(stream: UnixStream, bytes: &[u8]) -> io::Result<Vec<u8>> {
    streams::exchange(&into_socket(stream), bytes)
}

#[track_caller]
fn assert_echo(stream: UnixStream, bytes: &[u8]) {
    streams::assert_echo(&into_socket(stream), bytes);
}

#[track_caller]
fn assert_closed(stream: UnixStream) {
    streams::assert_closed(&into_socket(stream));
}

#[track_caller]
fn wait_for_log(daemon: &Daemon, texts: &[&str]) {
    let found = std::panic::catch_unwind(std::panic::AssertUnwindSafe(|| {
        eventually("a log line", PATIENCE, || {
            let log = daemon.stderr();
            log.lines().any(|line| texts.iter().all(|text| line.contains(text))).then_some(())
        });
    }));
    assert!(found.is_ok(), "no line with {texts:?} in\n{}", daemon.stderr());
}

#[test]
fn bytes_and_half_closes_go_each_way() {
    let rig = Rig::start();
    let socket = rig.daemon.dir().join("a.sock");
    assert_eq!(fs::metadata(socket).unwrap().permissions().mode() & 0o777, 0o600);
    rig.services.serve("a", |mut stream| {
        // The first byte says what to do.
        let mut order = [0];
        if stream.read_exact(&mut order).is_err() {
            return;
        }
        match order[0] {
            b'e' => echo(stream),
            // Its own half first.
            b'f' => {
                stream.write_all(b"that is all").unwrap();
                stream.shutdown(Shutdown::Write).unwrap();
                let mut bytes = Vec::new();
                stream.read_to_end(&mut bytes).unwrap();
                assert_eq!(bytes, b"but not from here");
            }
            _ => panic!("no such order"),
        }
    });
    let mut client = rig.connect();
    client.write_all(b"e").unwrap();
    assert_echo(client, b"hello");
    let mut client = rig.connect();
    client.write_all(b"e").unwrap();
    streams::assert_echo_while_read(&into_socket(client), &vec![7; 3 << 20]);
    let mut client = rig.connect();
    client.write_all(b"f").unwrap();
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"that is all");
    client.write_all(b"but not from here").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // One that only looks, and one that says nothing.
    drop(rig.connect());
    assert_eq!(exchange(rig.connect(), b"").unwrap(), b"");
}

#[test]
fn a_hundred_megabytes_each_way_without_a_copy() {
    const LENGTH: u64 = 100 << 20;
    let rig = Rig::start();
    rig.services.serve("a", |mut stream| {
        let mut order = [0];
        stream.read_exact(&mut order).unwrap();
        if order[0] == b'u' {
            let got = check(&stream).unwrap_or(0);
            stream.write_all(&got.to_be_bytes()).unwrap();
        } else {
            send_from(&stream, 0, LENGTH).unwrap();
        }
    });
    let mut up = rig.connect();
    up.write_all(b"u").unwrap();
    send_from(&up, 0, LENGTH).unwrap();
    up.shutdown(Shutdown::Write).unwrap();
    let mut got = [0; 8];
    up.read_exact(&mut got).unwrap();
    assert_eq!(u64::from_be_bytes(got), LENGTH);
    let mut down = rig.connect();
    down.write_all(b"d").unwrap();
    assert_eq!(check(&down).unwrap(), LENGTH);
    // What splice moves is not counted there: proc_pid_io(5).
    let io = fs::read_to_string(format!("/proc/{}/io", rig.agent.child.id())).unwrap();
    let read = io.lines().find_map(|line| line.strip_prefix("rchar: ")).unwrap();
    assert!(read.parse::<u64>().unwrap() < LENGTH / 10, "the agent copies what it carries: {io}");
}

#[test]
fn an_end_that_breaks_off_breaks_off_the_other() {
    let rig = Rig::start();
    let (told, telling) = std::sync::mpsc::channel();
    rig.services.serve("a", move |mut stream| {
        let mut order = [0];
        stream.read_exact(&mut order).unwrap();
        if order[0] == b'l' {
            // Leaves with something unread.
            stream.read_exact(&mut order).unwrap();
            return;
        }
        let block = vec![0; 1 << 16];
        let error = loop {
            if let Err(error) = stream.write_all(&block) {
                break error;
            }
        };
        told.send(error.kind()).unwrap();
    });
    let mut client = rig.connect();
    client.write_all(b"l").unwrap();
    client.write_all(&vec![1; 200_000]).unwrap();
    assert_closed(client);
    // A client that goes while it is being written to.
    let mut client = rig.connect();
    client.write_all(b"w").unwrap();
    client.read_exact(&mut [0; 100_000]).unwrap();
    drop(client);
    let kind = telling.recv_timeout(PATIENCE).expect("the server is told");
    assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind:?}");
}

#[test]
fn two_hundred_clients_at_once() {
    const COUNT: usize = 200;
    let rig = Rig::start();
    rig.services.serve("a", echo);
    assert_echo(rig.connect(), b"warm");
    let settled = |process: &dyn Fn() -> usize, most: usize| {
        eventually("descriptors are back", PATIENCE, || (process() <= most).then_some(()));
    };
    let before = (rig.daemon.fds(), rig.agent.process().fds());
    streams::assert_echo_of_all((0..COUNT).map(|_| into_socket(rig.connect())).collect());
    settled(&|| rig.daemon.fds(), before.0 + 4);
    // And the pipes that are kept.
    settled(&|| rig.agent.process().fds(), before.1 + 4 + 2 * 16);
}

#[test]
fn one_client_more_than_an_agent_takes_waits_for_a_place() {
    const MOST: usize = 2048;
    let rig = Rig::start();
    rig.services.serve("a", echo);
    let is_served = |client: &mut UnixStream| {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0])
    };
    let mut clients: Vec<UnixStream> = (0..MOST).map(|_| rig.connect()).collect();
    clients.iter_mut().for_each(|client| is_served(client).unwrap());
    let mut late = rig.connect();
    late.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
    assert_eq!(is_served(&mut late).unwrap_err().kind(), io::ErrorKind::WouldBlock);
    clients.iter_mut().for_each(|client| is_served(client).unwrap());
    drop(clients.pop());
    late.set_read_timeout(Some(PATIENCE)).unwrap();
    late.read_exact(&mut [0]).unwrap();
}

#[test]
fn a_client_is_closed_and_told_why() {
    let services = Services::new();
    let (here, gone, barred) = (services.path("here"), services.path("gone"), services.path("barred"));
    let daemon = daemon(&[("here", &here), ("gone", &gone), ("barred", &barred)], &[]);
    let guest = plug_guest(&daemon);
    let _agent = Agent::start(&guest, &["-agent-allow", &here, "-agent-allow", &gone]);
    services.serve("here", echo);
    services.serve("barred", |_| panic!("nobody may get here"));
    for _ in 0..3 {
        assert_closed(connect(&daemon, "gone"));
        assert_closed(connect(&daemon, "barred"));
    }
    let start = |path: &str| format!("{START}{path}");
    wait_for_log(&daemon, &[&start(&gone), "no such file or directory"]);
    wait_for_log(&daemon, &[&start(&barred), "is not allowed: add -agent-allow"]);
    let log = daemon.stderr();
    assert_eq!(log.matches(START).count(), 2, "one line each:\n{log}");
    assert_echo(connect(&daemon, "here"), b"hello");
    // The server comes later.
    services.serve("gone", echo);
    assert_echo(connect(&daemon, "gone"), b"hello");
}

#[test]
fn an_agent_may_come_later_go_and_come_back() {
    let services = Services::new();
    let path = services.path("a");
    let daemon = daemon(&[("a", &path)], &[]);
    let guest = plug_guest(&daemon);
    services.serve("a", echo);
    for _ in 0..20 {
        assert_closed(connect(&daemon, "a"));
    }
    wait_for_log(&daemon, &[START, &path, "the guest refuses the connection"]);
    let log = daemon.stderr();
    assert_eq!(log.matches(START).count(), 1, "one line for all of them:\n{log}");
    for signal in [Signal::KILL, Signal::TERM] {
        let mut agent = Agent::start(&guest, &["-agent-allow", &path]);
        assert_echo(connect(&daemon, "a"), b"hello");
        let mut open = connect(&daemon, "a");
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        agent.end(signal);
        assert_closed(open);
        assert_closed(connect(&daemon, "a"));
    }
}

#[test]
fn early_clients_wait_for_the_guest() {
    let services = Services::new();
    let path = services.path("a");
    let daemon = daemon(&[("a", &path)], &[]);
    services.serve("a", echo);
    let waiting: Vec<_> = (0..5)
        .map(|number: u8| {
            let client = connect(&daemon, "a");
            spawn(move || exchange(client, &[number; 50_000]))
        })
        .collect();
    // One that does not wait to the end.
    drop(connect(&daemon, "a"));
    let guest = plug_guest(&daemon);
    // Its system answers before its agent does: that is no reason to send anybody away who waited for it.
    let refused = Instant::now();
    eventually("a while", PATIENCE, || (refused.elapsed() > Duration::from_secs(2)).then_some(()));
    let _agent = Agent::start(&guest, &["-agent-allow", &path]);
    for (number, client) in waiting.into_iter().enumerate() {
        let got = client.join().unwrap().unwrap_or_else(|error| panic!("client {number}: {error}"));
        assert!(got == [number as u8; 50_000], "client {number} gets {} bytes", got.len());
    }
    assert!(!daemon.stderr().contains(START), "{}", daemon.stderr());
}

/// What somebody else at the agent's port may do to the daemon.
#[test]
fn hostile_agents_cost_their_client_and_nobody_else() {
    let services = Services::new();
    let path = services.path("a");
    let daemon = daemon(&[("a", &path)], &["-agent-port", "8460"]);
    let guest = plug_guest(&daemon);
    let listener = guest.listen(SocketAddr::from((GUEST, 8460)));
    let next = |client: &UnixStream| {
        let stream = testkit::traffic::accept(&listener);
        let mut line = vec![0; path.len() + 1];
        (&stream).read_exact(&mut line).unwrap();
        assert_eq!(line, format!("{path}\n").into_bytes());
        // Nothing of the client's comes before the agent has agreed.
        (&mut &*client).write_all(b"early").unwrap();
        stream
    };
    let before = daemon.rss_kb();
    for answer in [
        &b"SSH-2.0-OpenSSH_9.2\r\n"[..],
        b"ok\n",
        b"\n",
        b"\xff\x00\x1b[31m\n",
        b"ERR \x1b[31mred\n",
        b"",
        b"OK",
    ] {
        let client = connect(&daemon, "a");
        let mut agent = next(&client);
        agent.write_all(answer).unwrap();
        drop(agent);
        assert_closed(client);
    }
    // A line without an end: it is not read to its end either.
    for _ in 0..20 {
        let client = connect(&daemon, "a");
        let mut agent = next(&client);
        let block = vec![b'x'; 1 << 20];
        let sent = (0..64).try_for_each(|_| agent.write_all(&block));
        assert!(sent.is_err(), "the daemon takes an endless line");
        assert_closed(client);
    }
    // None at all, and half of one.
    let silent: Vec<_> = (0..50)
        .map(|number| {
            let client = connect(&daemon, "a");
            let mut agent = next(&client);
            agent.write_all(if number % 2 == 0 { b"" } else { b"O" }).unwrap();
            (client, agent)
        })
        .collect();
    // Somebody else is served meanwhile, byte by byte, and what comes with the answer is the client's.
    let mut client = connect(&daemon, "a");
    let mut agent = next(&client);
    for byte in b"OK\nwelcome" {
        agent.write_all(&[*byte]).unwrap();
    }
    let mut bytes = [0; 7];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"welcome");
    agent.read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(&bytes[..5], b"early");
    let started = Instant::now();
    for (client, _agent) in &silent {
        assert_closed(client.try_clone().unwrap());
    }
    assert!(started.elapsed() < Duration::from_secs(15), "silence lasts {:?}", started.elapsed());
    let grown = daemon.rss_kb().saturating_sub(before);
    assert!(grown < 20 << 10, "{grown} KiB more");
    let log = daemon.stderr();
    assert!(log.matches("gvforwarder -agent").count() <= 3 && !log.contains('\x1b'), "{log}");
    let start = format!("gvforwarder -agent -agent-port 8460 -agent-allow {path}");
    wait_for_log(&daemon, &[&start, r"SSH-2.0-OpenSSH_9.2"]);
}

#[test]
fn a_shared_secret_at_both_ends_is_no_hindrance() {
    let services = Services::new();
    services.serve("a", echo);
    let (path, secret) = (services.path("a"), secret_file(services.path("secret"), SECRET));
    let other_file = secret_file(services.path("same"), &format!("{SECRET}\n"));
    let daemon = daemon(&[("a", &path)], &["-agent-secret-file", &other_file]);
    let guest = plug_guest(&daemon);
    let _agent = Agent::start(&guest, &["-agent-allow", &path, "-agent-secret-file", &secret]);
    streams::assert_echo_while_read(&into_socket(connect(&daemon, "a")), &vec![7; 3 << 20]);
    streams::assert_echo_of_all((0..50).map(|_| into_socket(connect(&daemon, "a"))).collect());
}

#[test]
fn a_secret_that_one_end_lacks_is_missed_at_once() {
    let services = Services::new();
    let path = services.path("a");
    let (told, reached) = std::sync::mpsc::channel();
    services.serve("a", move |_| told.send(()).unwrap());
    let (ours, other) = (
        secret_file(services.path("ours"), SECRET),
        secret_file(services.path("other"), "another one's secret"),
    );
    let with = |secret: Option<&String>| secret.map(|file| ["-agent-secret-file".to_owned(), file.clone()]);
    let doubt = Some("refused who does not prove to be the host");
    for (of_host, of_agent, says, agent_says) in [
        (Some(&ours), Some(&other), "the agent has another secret", doubt),
        (None, Some(&ours), "no proof of the secret: gvproxy needs this agent's -agent-secret-file", doubt),
        (Some(&ours), None, "this agent has no secret to prove: add -agent-secret-file", None),
    ] {
        let words: Vec<String> = with(of_host).into_iter().flatten().collect();
        let daemon = daemon(&[("a", &path)], &words.iter().map(String::as_str).collect::<Vec<_>>());
        let guest = plug_guest(&daemon);
        let words = with(of_agent).into_iter().flatten().chain(["-agent-allow".to_owned(), path.clone()]);
        let agent =
            Agent::start(&guest, &words.collect::<Vec<_>>().iter().map(String::as_str).collect::<Vec<_>>());
        let started = Instant::now();
        for _ in 0..10 {
            let mut client = connect(&daemon, "a");
            // It may be closed already.
            let _ = client.write_all(b"early");
            assert_closed(client);
        }
        assert!(started.elapsed() < Duration::from_secs(5), "it takes {:?}", started.elapsed());
        let start = of_host
            .map_or("gvforwarder -agent -agent-allow", |_| "gvforwarder -agent -agent-secret-file FILE");
        wait_for_log(&daemon, &[says, start]);
        if let Some(says) = agent_says {
            eventually("a warning of the agent", PATIENCE, || agent.stderr().contains(says).then_some(()));
            assert!(agent.stderr().matches(says).count() <= 5, "{}", agent.stderr());
        }
        for log in [daemon.stderr(), agent.stderr()] {
            assert!(!log.contains(SECRET) && !log.contains("another one's"), "{log}");
        }
        assert!(reached.try_recv().is_err(), "{of_host:?} {of_agent:?}: the service has a client");
    }
}

/// Somebody between the two hears everything, and can use none of it.
#[test]
fn recorded_and_reflected_proofs_are_good_for_nothing() {
    let services = Services::new();
    let (told, reached) = std::sync::mpsc::channel();
    services.serve("a", move |stream| {
        told.send(()).unwrap();
        echo(stream);
    });
    let (path, secret) = (services.path("a"), secret_file(services.path("secret"), SECRET));
    let daemon = daemon(&[("a", &path)], &["-agent-port", "8462", "-agent-secret-file", &secret]);
    let guest = plug_guest(&daemon);
    let words = ["-agent-allow", &path, "-agent-port", "8463", "-agent-from", "127.0.0.1"];
    let agent = Agent::start(&guest, &[&words[..], &["-agent-secret-file", &secret]].concat());
    let to_agent = || {
        let stream = guest.connect((Ipv4Addr::LOCALHOST, 8463).into()).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream
    };
    let say = |mut to: &TcpStream, text: &str| text.bytes().for_each(|byte| to.write_all(&[byte]).unwrap());
    let listener = guest.listen(SocketAddr::from((GUEST, 8462)));
    // A client that has said something already, and what the daemon says to the agent about it.
    let next = || {
        let mut client = connect(&daemon, "a");
        client.write_all(b"early").unwrap();
        (client, testkit::traffic::accept(&listener))
    };

    let (mut client, host) = next();
    let to = to_agent();
    let asked = line(&host);
    say(&to, &asked);
    let proof = line(&to);
    say(&host, &proof);
    let proved = line(&host);
    say(&to, &proved);
    assert_eq!(line(&to), "OK\n");
    say(&host, "OK\nwelcome");
    let mut bytes = [0; 7];
    client.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"welcome");
    (&host).read_exact(&mut bytes[..5]).unwrap();
    assert_eq!(&bytes[..5], b"early");
    reached.recv_timeout(PATIENCE).unwrap();
    drop((client, host, to));
    for (text, begin) in [(&asked, "PROVE "), (&proof, "PROOF "), (&proved, "PROOF ")] {
        assert!(text.starts_with(begin) && !text.contains(SECRET), "{text}");
    }
    assert!(proved.ends_with(&format!(" {path}\n")), "{proved}");

    // To the host: what an agent said before, the host's own words, and what whoever has no secret can say.
    let nonce = |challenge: &str| challenge["PROVE ".len()..].trim().to_owned();
    let mac = proved["PROOF ".len()..].split(' ').next().unwrap();
    type Impostor<'a> = &'a dyn Fn(&str) -> String;
    let impostors: [Impostor; 8] = [
        &|_| proof.clone(),
        &|asked| asked.to_owned(),
        &|asked| format!("PROOF {0} {0}{0}\n", nonce(asked)),
        &|asked| format!("PROOF {} {mac}\n", nonce(asked)),
        &|_| "OK\n".into(),
        &|_| "OK\nOK\nwelcome".into(),
        &|_| format!("{}OK\n", proof),
        &|asked| format!("ERR {asked:?} is not allowed: add -agent-allow\n"),
    ];
    for (number, impostor) in impostors.iter().enumerate() {
        let (client, mut host) = next();
        let said = impostor(&line(&host));
        // It may be closed behind the first line.
        let _ = said.bytes().try_for_each(|byte| (&host).write_all(&[byte]));
        let mut heard = Vec::new();
        let _ = host.read_to_end(&mut heard);
        assert!(heard.is_empty(), "impostor {number} hears {:?}", String::from_utf8_lossy(&heard));
        assert_closed(client);
    }
    wait_for_log(&daemon, &["the agent has another secret"]);

    // To the agent: what the host said before, the agent's own words, also of another connection, and a proof
    // with another line.
    type Host<'a> = &'a dyn Fn(&str) -> String;
    let another = |agent: &str| {
        let other = to_agent();
        say(&other, &format!("PROVE {}\n", &agent["PROOF ".len()..][..32]));
        line(&other)
    };
    let hosts: [Host; 5] = [
        &|_| proved.clone(),
        &|agent| format!("PROOF {} {path}\n", agent.trim().rsplit(' ').next().unwrap()),
        &|agent| format!("PROOF {} {path}\n", another(agent).trim().rsplit(' ').next().unwrap()),
        &|_| format!("{path}\n"),
        &|_| format!("PROVE {}\n", "0".repeat(32)),
    ];
    for host in hosts {
        let mut to = to_agent();
        say(&to, &asked);
        say(&to, &host(&line(&to)));
        let mut answer = String::new();
        let _ = to.read_to_string(&mut answer);
        assert_eq!(
            answer,
            "ERR a wrong proof of the secret: gvproxy needs this agent's -agent-secret-file\n"
        );
    }
    for first in [format!("{path}\n"), proved.clone(), "PROVE 0\n".into()] {
        let mut to = to_agent();
        say(&to, &first);
        let mut answer = String::new();
        let _ = to.read_to_string(&mut answer);
        assert!(answer.starts_with("ERR no proof of the secret"), "{answer}");
    }
    assert!(agent.stderr().contains("refused who does not prove to be the host"), "{}", agent.stderr());
    // Nobody holds a place for longer by half a proof.
    let silent = Instant::now();
    let mut to = to_agent();
    say(&to, &asked);
    line(&to);
    let mut answer = String::new();
    let _ = to.read_to_string(&mut answer);
    assert!(answer.starts_with("ERR no answer") && (8..20).contains(&silent.elapsed().as_secs()), "{answer}");
    assert!(reached.try_recv().is_err(), "the service has a client");
}

/// Who is not the host gets nothing, and who is gets no more than the list.
#[test]
fn the_agent_takes_connections_from_the_gateway_only() {
    let bench = Bench::start();
    let services = Services::new();
    services.serve("a", echo);
    let path = services.path("a");
    let agent = Agent::start(&bench.guest, &["-agent-allow", &path]);
    for address in [GUEST, Ipv4Addr::LOCALHOST] {
        let mut bytes = Vec::new();
        // The reset may be there before the connect returns.
        let Ok(mut stream) = bench.guest.connect((address, PORT).into()) else { continue };
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let _ = stream.write_all(format!("{path}\n").as_bytes());
        let _ = stream.read_to_end(&mut bytes);
        assert!(bytes.is_empty(), "{address} is answered: {bytes:?}");
    }
    eventually("a warning", PATIENCE, || agent.stderr().contains("that is not the host's").then_some(()));

    // An exposed port of the host is a connection of the gateway.
    let port = testkit::free_port();
    bench
        .expose_as(Asker::Operator, "tcp", &format!("127.0.0.1:{port}"), &format!("{GUEST}:{PORT}"))
        .unwrap();
    let ask = |bytes: &[u8], close: bool| {
        let mut stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.write_all(bytes).unwrap();
        if close {
            stream.shutdown(Shutdown::Write).unwrap();
        }
        let mut answer = Vec::new();
        let _ = stream.read_to_end(&mut answer);
        String::from_utf8_lossy(&answer).into_owned()
    };
    assert_eq!(ask(format!("{path}\nhello").as_bytes(), true), "OK\nhello");
    for (line, answer) in [
        (format!("{path} \n"), "ERR"),
        (format!("{path}/\n"), "ERR"),
        (format!("{}/../a\n", services.0.path().join("x").display()), "ERR"),
        ("\n".into(), "ERR \"\" is not allowed"),
        ("\x1b\0\n".into(), "ERR \"\\x1b\\x00\" is not allowed"),
        ("x".repeat(256), "ERR the line is too long"),
    ] {
        let got = ask(line.as_bytes(), false);
        assert!(
            got.starts_with(answer) && got.ends_with('\n') && got.lines().count() == 1,
            "{line:?}: {got:?}"
        );
    }
    assert_eq!(ask(path.as_bytes(), true), "", "a line without an end");
    let silent = Instant::now();
    assert!(ask(path.as_bytes(), false).starts_with("ERR no answer"));
    assert!((8..20).contains(&silent.elapsed().as_secs()), "after {:?}", silent.elapsed());
    assert_eq!(ask(format!("{path}\nhello").as_bytes(), true), "OK\nhello");
}

#[test]
fn another_gateway_and_port_may_be_named() {
    let services = Services::new();
    services.serve("a", echo);
    let path = services.path("a");
    let daemon = daemon(&[("a", &path)], &["-agent-port", "8461"]);
    let guest = plug_guest(&daemon);
    let words = ["-agent-allow", &path, "-agent-port", "8461", "-agent-from"];
    let mut agent = Agent::start(&guest, &[&words[..], &["192.168.127.77"]].concat());
    assert_closed(connect(&daemon, "a"));
    agent.end(Signal::TERM);
    // Not by way of the default route.
    guest.run(["ip", "route", "del", "default"]);
    let _agent = Agent::start(&guest, &[&words[..], &["192.168.127.1"]].concat());
    assert_echo(connect(&daemon, "a"), b"hello");
}

#[test]
fn beside_the_tap_of_the_same_program() {
    let services = Services::new();
    services.serve("a", echo);
    let path = services.path("a");
    let args = ["-listen", "unix://{dir}/net.sock", "-forward-sock", "{dir}/a.sock", "-forward-dest", &path];
    let daemon = Daemon::builder().without_qemu().args(args).spawn();
    let socket = daemon.dir().join("net.sock");
    eventually("the daemon's socket", PATIENCE, || UnixStream::connect(&socket).ok());
    let ns = Namespace::new();
    let resolv_conf = services.path("resolv.conf");
    fs::write(&resolv_conf, "").unwrap();
    ns.run(["mount", "--bind", &resolv_conf, "/etc/resolv.conf"]);
    let early = connect(&daemon, "a");
    let url = format!("unix://{}", socket.display());
    let mut agent = Agent::spawn(&ns, &["-agent-allow", &path, "-url", &url]);
    assert_echo(early, b"hello");
    assert_echo(connect(&daemon, "a"), b"again");
    assert!(ns.run(["ip", "-4", "addr"]).contains("192.168.127.2/24"));
    agent.end(Signal::TERM);
    assert!(!ns.run(["ip", "link"]).contains("tap0"), "the tap goes with the program");
}

/// Runs it to its end on this machine: only for what ends before it does anything.
fn run(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_gvforwarder"))
        .args(args)
        .stdin(Stdio::null())
        .output()
        .expect("gvforwarder")
}

#[test]
fn an_agent_that_serves_nothing_does_not_start() {
    for (args, text) in [
        (&["-agent"][..], "add what the host may reach, as in -agent-allow /run/podman/podman.sock"),
        (&["-agent", "-agent-allow", "relative"], "an absolute path is needed"),
        (&["-agent-allow", "/run/a"], "-agent-allow is of no use without -agent"),
        (&["-agent", "-agent-allow", "/a", "-agent-from", "x"], "not an IPv4 address"),
        (&["-agent", "-agent-allow", "/a", "-agent-secret-file", "/dev/null"], "not a regular file"),
    ] {
        let output = run(args);
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.code() == Some(1) && stderr.contains(text), "{args:?}: {stderr}");
    }
    // A port that somebody has.
    let ns = Namespace::new();
    let _taken = ns.listen((Ipv4Addr::LOCALHOST, PORT).into());
    let mut agent = Agent::spawn(&ns, &["-agent-allow", "/run/a"]);
    let status = eventually("its end", PATIENCE, || agent.child.try_wait().unwrap());
    let text = agent.stderr();
    assert!(
        status.code() == Some(1) && text.contains("cannot listen for the host on TCP port 846"),
        "{text}"
    );
}

#[test]
fn a_path_is_checked_before_anything_is_made() {
    for (dest, text) in [
        ("run/podman.sock", "not an absolute path, which it is without -forward-user"),
        ("/a\nb", "not a plain path"),
        (&format!("/{}", "x".repeat(107)), "longer than 107 bytes"),
    ] {
        let mut daemon = Daemon::builder()
            .without_qemu()
            .args(["-forward-sock", "{dir}/a.sock", "-forward-dest", dest])
            .spawn();
        let status = daemon.wait(PATIENCE).expect("it ends");
        let log = daemon.stderr();
        assert!(status.code() == Some(1) && log.contains(text), "{dest}: {log}");
        assert!(!Path::new(&daemon.dir().join("a.sock")).exists());
    }
}
