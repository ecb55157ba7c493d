//! The daemon's sockets on a host whose ports, addresses and routes are not what a daemon would like.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use testkit::cable::Kind;
use testkit::daemon::{Daemon, binary};
use testkit::exposed::{Bench, GUEST};
use testkit::guest::{self, Guest};
use testkit::net::{BLACK_HOLE, ELSEWHERE, HOST, Host, Net, plug};
use testkit::ns::Namespace;
use testkit::streams::{Server, assert_echo_while_read, at, connect};
use testkit::traffic::{accept, impatient, transfer};
use testkit::udp::UdpSocket;
use testkit::{eventually, tool};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(5);

/// The one port that connects of a [`narrow`] network come from.
const PORT: u16 = 40_000;

/// Leaves a network so few ports that a connect to the first of them, where nobody listens, is given that
/// very port.
fn narrow(ns: &Namespace, ports: u16) {
    let range = format!("echo {PORT} {} >/proc/sys/net/ipv4/ip_local_port_range", PORT + ports - 1);
    ns.run(["sh", "-c", &range]);
}

fn narrow_host(ports: u16) -> Host {
    let host = Host::new("nameserver 127.0.0.1\n");
    narrow(&host, ports);
    host
}

/// A service at [`PORT`] as most are made, which TIME-WAIT keeps out too.
fn serve(ns: &Namespace) -> std::io::Result<TcpListener> {
    let socket = ns.tcp();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

/// Waits until somebody there has called connect(2) for TCP: `ActiveOpens` of RFC 4022.
#[track_caller]
fn attempted(ns: &Namespace) {
    eventually("an attempt to connect", PATIENCE, || {
        let counters = ns.run(["grep", "Tcp:", "/proc/net/snmp"]);
        let opens = counters.lines().nth(1)?.split(' ').nth(5)?;
        (opens != "0").then_some(())
    });
}

#[test]
fn a_connect_of_a_guest_does_not_meet_itself() {
    const TRIES: usize = 25;
    let net = Net::with(narrow_host(1), Daemon::builder(), 1500);
    for address in [HOST, ELSEWHERE] {
        let (mut refused, mut free) = (0, 0);
        for _ in 0..TRIES {
            let connected = net.guest.connect((address, PORT).into());
            refused +=
                usize::from(connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
            free += usize::from(serve(&net.host).is_ok());
        }
        assert_eq!((refused, free), (TRIES, TRIES), "{address}: refused, and the port free for a service");
    }
    let listener = serve(&net.host).unwrap();
    narrow(&net.host, 2);
    net.guest.connect((HOST, PORT).into()).expect("a service is reached");
    listener.accept().unwrap();
}

#[test]
fn a_forward_waits_for_its_service_and_not_for_itself() {
    let host = narrow_host(1);
    let dest = format!("tcp://127.0.0.1:{PORT}");
    let forward = ["-forward-sock", "{dir}/sock", "-forward-dest", &dest];
    let daemon = Daemon::builder().through(host.prefix()).args(forward).start();
    let mut client = UnixStream::connect(daemon.dir().join("sock")).unwrap();
    client.write_all(b"question").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    attempted(&host);
    let listener = eventually("the service's port", PATIENCE, || serve(&host).ok());
    narrow(&host, 2);
    let (mut service, _) = listener.accept().unwrap();
    let mut question = [0; 8];
    service.read_exact(&mut question).unwrap();
    service.write_all(b"answer").unwrap();
    drop(service);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!((&question, answer.as_str()), (b"question", "answer"));
}

#[test]
fn a_qmp_session_is_not_with_itself() {
    let host = narrow_host(1);
    let qmp = format!("tcp://127.0.0.1:{PORT}");
    let _daemon = Daemon::builder().through(host.prefix()).args(["-qmp", &qmp]).start();
    attempted(&host);
    let listener = eventually("QEMU's port", PATIENCE, || serve(&host).ok());
    narrow(&host, 2);
    let (mut qemu, _) = listener.accept().unwrap();
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    let version = r#"{"qemu": {"micro": 0, "minor": 2, "major": 9}, "package": ""}"#;
    writeln!(qemu, r#"{{"QMP": {{"version": {version}, "capabilities": []}}}}"#).unwrap();
    let mut line = String::new();
    BufReader::new(qemu).read_line(&mut line).unwrap();
    assert!(line.contains("qmp_capabilities"), "{line}");
}

#[test]
fn a_daemon_that_is_asked_for_its_machines_is_not_the_asker() {
    let host = narrow_host(1);
    let listen = format!("tcp://127.0.0.1:{PORT}");
    let args = ["-qmp", "unix:///nowhere", "-listen", &listen, "-qmp-status"];
    let asked = host.command(binary()).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("Connection refused"), "{said}");
}

#[test]
fn a_guests_gvforwarder_does_not_connect_to_itself() {
    let host = narrow_host(1);
    let mut child = host
        .command(env!("CARGO_BIN_EXE_gvforwarder"))
        .args(["-url", &format!("tcp://127.0.0.1:{PORT}/connect")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("reason") && log.read_line(&mut line).unwrap() > 0 {}
    let _ = child.kill();
    child.wait().unwrap();
    assert!(line.contains("connection refused"), "{line}");
}

#[test]
fn a_datagram_of_a_guest_does_not_come_back_by_itself() {
    const TRIES: usize = 25;
    let net = Net::with(narrow_host(2), Daemon::builder(), 1500);
    let mut refused = 0;
    for _ in 0..TRIES {
        let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
        client.set_read_timeout(Some(PATIENCE / 10)).unwrap();
        client.connect((HOST, PORT)).unwrap();
        client.send(b"anyone?").unwrap();
        let heard = client.recv(&mut [0; 16]);
        refused += usize::from(heard.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
    }
    assert_eq!(refused, TRIES);
}

/// One way of a guest to a service that is at `::1` alone, and then at 127.0.0.1 too.
#[test]
fn a_service_of_ipv6_alone_is_reached() {
    let host = Host::new("nameserver 127.0.0.1\n");
    with_ipv6(&host);
    let net = Net::with(host, Daemon::builder(), 1500);

    let listener = net.host.listen("[::1]:0".parse().unwrap());
    let port = listener.local_addr().unwrap().port();
    let reached = (0..25).filter(|_| net.guest.connect((HOST, port).into()).is_ok()).count();
    assert_eq!(reached, 25, "TCP");
    let both = net.host.listen((Ipv4Addr::LOCALHOST, port).into());
    net.guest.connect((HOST, port).into()).expect("a connection");
    both.set_nonblocking(true).unwrap();
    eventually("127.0.0.1 is asked first", PATIENCE, || both.accept().ok());

    let service = net.host.udp("[::1]:0".parse().unwrap());
    let port = service.local_addr().unwrap().port();
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    client.connect((HOST, port)).unwrap();
    for number in 0..25_u8 {
        client.send(&[number]).unwrap();
        let mut buffer = [0; 16];
        let (length, from) =
            service.recv_from(&mut buffer).unwrap_or_else(|error| panic!("{number}: {error}"));
        service.send_to(&buffer[..length], from).unwrap();
        assert_eq!((client.recv(&mut buffer).unwrap(), buffer[0]), (1, number));
    }
    // It moves to the other address, and a flow that was refused finds it.
    drop(service);
    let service = net.host.udp((Ipv4Addr::LOCALHOST, port).into());
    service.set_read_timeout(Some(PATIENCE / 50)).unwrap();
    eventually("the service at its other address", PATIENCE, || {
        // An error is what was said of the datagram before.
        let _ = client.send(b"again");
        service.recv(&mut [0; 16]).ok()
    });
}

/// IPv6 on the loopback interface.
fn with_ipv6(host: &Host) {
    host.run([
        "sh",
        "-c",
        "echo 0 >/proc/sys/net/ipv6/conf/all/disable_ipv6; ip -6 addr show dev lo | grep -q ::1",
    ]);
}

#[test]
fn an_exposed_port_answers_from_the_address_that_was_asked() {
    const ADDRESSES: [&str; 4] = ["10.9.8.1", "10.9.8.2", "fd00::1", "fd00::2"];
    let host = Host::new("nameserver 127.0.0.1\n");
    with_ipv6(&host);
    for address in ADDRESSES {
        host.run(["ip", "addr", "add", address, "dev", "lo", "noprefixroute"]);
    }
    let bench = Bench::of(Daemon::builder().through(host.prefix()));
    let service = bench.guest.udp((GUEST, 7).into());
    service.set_read_timeout(Some(PATIENCE)).unwrap();
    for (local, by) in
        [(":7000", &ADDRESSES[..]), ("0.0.0.0:7001", &ADDRESSES), ("10.9.8.2:7002", &ADDRESSES[1..2])]
    {
        bench.expose("udp", local, "192.168.127.2:7");
        let port: u16 = local.rsplit(':').next().unwrap().parse().unwrap();
        let (mut right, mut asked) = (0, 0);
        for address in by {
            let own = ADDRESSES[ADDRESSES.iter().position(|other| other == address).unwrap() ^ 1];
            let (address, own): (IpAddr, IpAddr) = (address.parse().unwrap(), own.parse().unwrap());
            // Connected, as most clients: what comes from elsewhere is not for them.
            let client = host.udp((own, 0).into());
            client.set_read_timeout(Some(PATIENCE / 10)).unwrap();
            client.connect((address, port)).unwrap();
            for burst in [1, 1, 20] {
                asked += burst;
                client.send(b"?").unwrap();
                let (_, from) = service.recv_from(&mut [0; 16]).unwrap();
                for _ in 0..burst {
                    service.send_to(&[7; 100], from).unwrap();
                }
                right += (0..burst).take_while(|_| client.recv(&mut [0; 200]).is_ok()).count();
            }
        }
        assert_eq!(right, asked, "answers of {local} that arrive");
    }
    // One client that asks by two addresses has an answer of each, also when an address has gone.
    let client = host.udp("10.9.8.1:0".parse().unwrap());
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    let mut flows = Vec::new();
    for address in &ADDRESSES[..2] {
        client.send_to(b"?", (*address, 7000)).unwrap();
        flows.push(service.recv_from(&mut [0; 16]).unwrap().1);
    }
    let answered = || {
        for flow in &flows {
            service.send_to(b"!", *flow).unwrap();
        }
        [(); 2].map(|()| client.recv_from(&mut [0; 16]).unwrap().1.ip().to_string())
    };
    assert_eq!(answered(), ADDRESSES[..2]);
    host.run(["ip", "addr", "del", "10.9.8.2/32", "dev", "lo"]);
    assert_eq!(answered(), [ADDRESSES[0]; 2]);
}

#[test]
fn a_flow_follows_the_route() {
    let host = Host::new("nameserver 127.0.0.1\n");
    // Two ways to the same service, by two addresses of the host's own; it answers to the second alone, as if
    // the first led nowhere.
    for address in ["10.9.8.1/32", "10.9.8.2/32"] {
        host.run(["ip", "addr", "add", address, "dev", "lo"]);
    }
    let lead = |source: &str| {
        let to = ELSEWHERE.to_string();
        host.run(["ip", "route", "replace", "local", &to, "dev", "lo", "table", "local", "src", source]);
    };
    lead("10.9.8.1");
    let service = host.udp((ELSEWHERE, 0).into());
    let port = service.local_addr().unwrap().port();
    let other = host.udp("127.0.0.1:0".parse().unwrap());
    let other_port = other.local_addr().unwrap().port();
    for socket in [&service, &other] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    let daemon = Daemon::builder().through(host.prefix()).start();
    let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
    guest.dhcp();
    let client = |to: SocketAddr| {
        let client = guest.udp("0.0.0.0:0".parse().unwrap());
        client.set_read_timeout(Some(PATIENCE / 50)).unwrap();
        client.connect(to).unwrap();
        client
    };
    let (moved, unmoved) = (client((ELSEWHERE, port).into()), client((HOST, other_port).into()));
    let heard_from = |service: &UdpSocket, client: &UdpSocket| {
        client.send(b"?").unwrap();
        service.recv_from(&mut [0; 16]).unwrap().1
    };
    assert_eq!(heard_from(&service, &moved).ip().to_string(), "10.9.8.1");
    let before = heard_from(&other, &unmoved);
    lead("10.9.8.2");
    let start = std::time::Instant::now();
    eventually("an answer by the other way", PATIENCE, || {
        let from = heard_from(&service, &moved);
        assert_eq!(heard_from(&other, &unmoved), before, "a flow whose way is as it was");
        if from.ip().to_string() == "10.9.8.2" {
            service.send_to(b"!", from).unwrap();
        }
        moved.recv(&mut [0; 16]).ok()
    });
    assert!(start.elapsed() < PATIENCE / 2, "only after {:?}", start.elapsed());
}

/// Asks `targets` for an echo, each in turn of these sockets, and waits for nothing.
fn ask_all(guest: &Guest, sockets: usize, targets: impl Iterator<Item = Ipv4Addr>) {
    let sockets: Vec<_> = (0..sockets)
        .map(|_| UdpSocket::from(socket2::Socket::from(guest.open("ping").expect("an echo socket"))))
        .collect();
    for (target, socket) in targets.zip(sockets.iter().cycle()) {
        // The guest's own queue may be full.
        let _ = socket.send_to(&[8, 0, 0, 0, 0, 0, 0, 1], (target, 0));
    }
}

#[test]
fn pings_of_the_dead_do_not_cost_the_living() {
    const PINGS: usize = 20;
    let net = Net::start();
    // What 79 a second are in the time that the original gives an answer.
    ask_all(&net.guest, 2, (0..400_u32).map(|n| Ipv4Addr::from(u32::from(BLACK_HOLE) - 7 + n / 2)));
    let answered = (0..PINGS).filter(|_| net.guest.ping(ELSEWHERE, 56)).count();
    assert_eq!(answered, PINGS);
}

#[test]
fn a_flood_of_pings_costs_its_sender_alone() {
    const PINGS: usize = 20;
    let host = Host::new("nameserver 127.0.0.1\n");
    host.run(["ip", "route", "add", "10.0.0.0/16", "dev", "hole"]);
    let daemon = Daemon::builder().args(["-keep-running"]).through(host.prefix()).start();
    let guests = [guest::MAC, "5a:94:ef:e4:0c:02"].map(|mac| Guest::start(plug(&daemon), mac, 1500));
    let [flooder, other] = &guests;
    for guest in &guests {
        guest.dhcp();
    }
    assert!(other.ping(ELSEWHERE, 56));
    let (idle, rss) = (daemon.fds(), daemon.rss_kb());
    let flood = || ask_all(flooder, 4, (0..1 << 16).map(|n| Ipv4Addr::from((10 << 24) + n)));
    flood();
    let answered = std::thread::scope(|scope| {
        scope.spawn(flood);
        (0..PINGS).filter(|_| other.ping(ELSEWHERE, 56)).count()
    });
    assert_eq!(answered, PINGS);
    let (fds, rss) = (daemon.fds() - idle, daemon.rss_kb() - rss);
    assert!(fds <= 256 && rss < 16 << 10, "{fds} descriptors and {rss} KiB more");
}

#[test]
fn what_a_filter_withholds_is_done_without() {
    const CALLS: &str = "splice,recvmmsg,sendmmsg,pidfd_open,inotify_init1,mlock,madvise,getrandom,statx";
    for error in ["EPERM", "ENOSYS"] {
        let host = Host::new("nameserver 127.0.0.1\n");
        let trace = host.dir().join("trace");
        let socket = host.dir().join("echo");
        let _server = Server::echo(&socket);
        let strace = tool("strace", "strace").display().to_string();
        let (traced, injected) = (format!("trace={CALLS}"), format!("inject={CALLS}:error={error}"));
        let mut prefix = host.prefix();
        let words =
            [&strace, "-D", "-f", "-qq", "-o", trace.to_str().unwrap(), "-e", &traced, "-e", &injected, "--"];
        prefix.extend(words.map(str::to_owned));
        let forward =
            ["-forward-sock", "{dir}/sock", "-forward-dest", &format!("unix://{}", socket.display())];
        let mut daemon = Kind::Vfkit(true).builder().args(forward).through(prefix).start();
        let guest = Guest::start(Kind::Vfkit(true).plug(&mut daemon), guest::MAC, 1500);
        guest.dhcp();

        let service = host.udp("127.0.0.1:0".parse().unwrap());
        service.set_read_timeout(Some(PATIENCE)).unwrap();
        let client = guest.udp("0.0.0.0:0".parse().unwrap());
        client.set_read_timeout(Some(PATIENCE)).unwrap();
        client.connect((HOST, service.local_addr().unwrap().port())).unwrap();
        for number in 0..20_u8 {
            client.send(&[number]).unwrap();
            let mut buffer = [0; 16];
            let (length, from) = service.recv_from(&mut buffer).unwrap();
            service.send_to(&buffer[..length], from).unwrap();
            let heard = client.recv(&mut buffer);
            assert!(heard.is_ok() && buffer[0] == number, "{error}: answer {number}: {heard:?}");
        }
        assert!(guest.ping(ELSEWHERE, 56), "{error}: a ping");
        let listener = host.listen("127.0.0.1:0".parse().unwrap());
        let stream = guest.connect((HOST, listener.local_addr().unwrap().port()).into()).unwrap();
        transfer(&impatient(stream), &accept(&listener), 1 << 20);
        let client = connect(&at(daemon.dir().join("sock"))).unwrap();
        assert_echo_while_read(&client, &vec![7; 1 << 20]);

        let trace = std::fs::read_to_string(trace).unwrap();
        for call in ["splice", "recvmmsg", "sendmmsg"] {
            let line = trace.lines().find(|line| line.contains(&format!("{call}(")));
            assert!(line.is_some_and(|line| line.contains("(INJECTED)")), "{error}: {call}: {line:?}");
        }
    }
}
