//! Every link carries a Linux guest; several guests share one daemon, and what happens to one is its own
//! affair.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use socket2::SockRef;
use testkit::cable::{Cable, Framing, Kind, datagrams, greet};
use testkit::daemon::{Daemon, is_peer};
use testkit::eventually;
use testkit::guest::{Guest, MAC};
use testkit::net::{GATEWAY, HOST, Host};
use testkit::traffic::{accept, impatient, transfer};
use testkit::uninterrupted;

testkit::agent_in_a_namespace!();

/// The links that a machine manager starts a daemon with, each alone.
const SINGLE: [Kind; 5] = [Kind::Qemu, Kind::Bess, Kind::Vfkit(true), Kind::Vfkit(false), Kind::Stdio];
/// What "at once" means.
const AT_ONCE: Duration = Duration::from_secs(2);

fn host() -> Host {
    Host::new("nameserver 127.0.0.1\n")
}

/// The hardware address of guest `n`.
fn mac(n: u8) -> String {
    format!("5a:94:ef:00:00:{n:02x}")
}

/// A guest with a lease, its addresses numbered from 0.
#[track_caller]
fn guest(cable: impl Into<Cable>, n: u8) -> (Guest, Ipv4Addr) {
    let guest = Guest::start(cable, &mac(n), 1500);
    let ip = guest.dhcp().ip();
    (guest, ip)
}

/// Bytes between a guest and the host, both ways and at once.
#[track_caller]
fn talks(guest: &Guest, host: &Host, length: u64) {
    let listener = host.listen("127.0.0.1:0".parse().unwrap());
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let inside = impatient(guest.connect(to).expect("a connection to the host"));
    let outside = accept(&listener);
    let (one, other) = (inside.try_clone().unwrap(), outside.try_clone().unwrap());
    let down = std::thread::spawn(move || transfer(&other, &one, length));
    transfer(&inside, &outside, length);
    down.join().expect("bytes from the host");
}

/// Bytes from one guest to another.
#[track_caller]
fn between(from: &Guest, to: &Guest, ip: Ipv4Addr, length: u64) -> Duration {
    let listener = to.listen((ip, 0).into());
    let address = listener.local_addr().unwrap();
    let near = impatient(from.connect(address).expect("a connection to another guest"));
    let far = accept(&listener);
    let start = Instant::now();
    transfer(&near, &far, length);
    start.elapsed()
}

/// A guest of a link of this kind, and everything that one does.
#[track_caller]
fn serves(kind: Kind) {
    let host = host();
    let mut daemon = kind.builder().through(host.prefix()).start();
    let cable = match kind {
        Kind::QemuTcp(port) => {
            let connect = || host.connect(([127, 0, 0, 1], port).into()).ok();
            Cable::new(eventually("the TCP port", AT_ONCE, connect), Framing::Big32)
        }
        kind => kind.plug(&mut daemon),
    };
    let guest = Guest::start(cable, MAC, 1500);
    let lease = guest.dhcp();
    assert_eq!(lease.ip(), Ipv4Addr::new(192, 168, 127, 2));
    if !matches!(kind, Kind::Qemu | Kind::QemuTcp(_)) {
        assert_eq!(lease.option("mtu"), "1500", "{kind:?}");
    }
    for length in [0, 1472, 20_000] {
        assert!(guest.ping(GATEWAY, length), "{length} bytes over {kind:?}");
    }
    talks(&guest, &host, 32 << 20);
    let service = host.udp("127.0.0.1:0".parse().unwrap());
    service.set_read_timeout(Some(AT_ONCE)).unwrap();
    let client = guest.udp("0.0.0.0:0".parse().unwrap());
    client.set_read_timeout(Some(AT_ONCE)).unwrap();
    let mut buffer = [0; 16];
    client.send_to(b"question", (HOST, service.local_addr().unwrap().port())).unwrap();
    let (length, from) = service.recv_from(&mut buffer).expect("the question");
    assert_eq!(&buffer[..length], b"question");
    service.send_to(b"answer", from).unwrap();
    let length = client.recv(&mut buffer).expect("the answer");
    assert_eq!(&buffer[..length], b"answer");
}

#[test]
fn qemu_serves_a_guest() {
    serves(Kind::Qemu);
}

#[test]
fn qemu_over_tcp_serves_a_guest() {
    serves(Kind::QemuTcp(1234));
}

#[test]
fn vpnkit_serves_a_guest() {
    serves(Kind::Vpnkit);
}

#[test]
fn bess_serves_a_guest() {
    serves(Kind::Bess);
}

#[test]
fn vfkit_serves_a_guest() {
    serves(Kind::Vfkit(true));
}

#[test]
fn vfkit_without_the_magic_serves_a_guest() {
    serves(Kind::Vfkit(false));
}

#[test]
fn stdio_serves_a_guest() {
    serves(Kind::Stdio);
}

#[test]
fn connect_serves_a_guest() {
    serves(Kind::Connect);
}

#[test]
fn the_run_ends_with_its_guest() {
    for kind in SINGLE {
        let port = testkit::free_port().to_string();
        let mut daemon = kind.builder().args(["-pid-file", "{dir}/pid", "-ssh-port", &port]).start();
        let (mut guest, _) = guest(kind.plug(&mut daemon), 0);
        guest.switch_off();
        drop(guest);
        if matches!(kind, Kind::Vfkit(_)) {
            // A datagram socket has no end, and the process is this one: only a frame that has nowhere to go
            // tells.
            let _ = TcpStream::connect(("127.0.0.1", port.parse().unwrap()));
        }
        let status = daemon.wait(AT_ONCE).unwrap_or_else(|| panic!("still running without {kind:?}"));
        assert!(status.success(), "{kind:?}: {status:?}");
        let left: Vec<_> = std::fs::read_dir(daemon.dir()).unwrap().collect();
        assert!(left.is_empty(), "{kind:?}: {left:?}");
    }
}

#[test]
fn the_run_goes_on_while_there_is_a_way_in() {
    let (host, kind) = (host(), Kind::Stdio);
    for more in [&Kind::Connect.args()[..], &[]] {
        let builder = kind.builder().args(["-keep-running"]).args(more).through(host.prefix());
        let mut daemon = builder.spawn();
        let (mut only, _) = guest(kind.plug(&mut daemon), 1);
        only.switch_off();
        drop(only);
        if more.is_empty() {
            let status = daemon.wait(AT_ONCE).expect("nobody can come any more");
            assert!(status.success(), "{status:?}");
        } else {
            eventually("the end of the link", AT_ONCE, || daemon.stderr().contains("left").then_some(()));
            let (other, _) = guest(Kind::Connect.plug(&mut daemon), 2);
            talks(&other, &host, 1 << 20);
            assert!(daemon.is_running());
        }
    }
}

#[test]
fn the_run_ends_with_vfkits_process() {
    let mut daemon = Kind::Vfkit(true).builder().start();
    let socket = Kind::Vfkit(true).socket(&daemon);
    eventually("the socket", AT_ONCE, || socket.exists().then_some(()));
    // The end of the process is noticed though nothing is sent to it: a socket for datagrams says nothing.
    let process = testkit::ns::Namespace::new();
    let name = daemon.dir().with_file_name("other.sock");
    let theirs = process.open(&format!("vfkit {} {}", name.display(), socket.display())).expect("a socket");
    eventually("the guest", AT_ONCE, || daemon.stderr().contains("connected").then_some(()));
    drop(theirs);
    assert!(daemon.is_running());
    drop(process);
    assert!(daemon.wait(AT_ONCE).expect("the end of the daemon").success());
}

/// As where /tmp is swept of what nobody has touched for days.
#[test]
fn a_vfkit_whose_socket_loses_its_name_goes_on() {
    let mut daemon = Kind::Vfkit(true).builder().start();
    let socket = Kind::Vfkit(true).socket(&daemon);
    eventually("the socket", AT_ONCE, || socket.exists().then_some(()));
    let process = testkit::ns::Namespace::new();
    let name = daemon.dir().with_file_name("other.sock");
    let _theirs = process.open(&format!("vfkit {} {}", name.display(), socket.display())).expect("a socket");
    eventually("the guest", AT_ONCE, || daemon.stderr().contains("connected").then_some(()));
    std::fs::remove_file(&name).unwrap();
    assert!(daemon.wait(AT_ONCE).is_none(), "{}", daemon.stderr());
}

#[test]
fn two_guests_on_one_daemon_reach_each_other() {
    // VPNKit's clients come and go in any case.
    for (kind, flags) in [(Kind::Qemu, &["-keep-running"][..]), (Kind::Vpnkit, &[])] {
        let host = host();
        let mut daemon = kind.builder().args(flags).through(host.prefix()).start();
        let ((one, first), (two, second)) =
            (guest(kind.plug(&mut daemon), 1), guest(kind.plug(&mut daemon), 2));
        assert_ne!(first, second);
        for length in [56, 1472, 20_000] {
            // The first packet that is longer than what the other has shown to take may only say so.
            let pings = |from: &Guest, to| (0..3).any(|_| from.ping(to, length));
            assert!(pings(&one, second) && pings(&two, first), "{length} bytes over {kind:?}");
        }
        between(&one, &two, second, 64 << 20);
        between(&two, &one, first, 64 << 20);
        talks(&one, &host, 8 << 20);
        talks(&two, &host, 8 << 20);
        drop((one, two));
        if kind == Kind::Vpnkit {
            let (again, ip) = guest(kind.plug(&mut daemon), 1);
            assert_eq!(ip, first, "the lease outlives the link");
            talks(&again, &host, 1 << 20);
        }
        assert!(daemon.is_running());
    }
}

#[test]
fn links_of_every_kind_at_once() {
    let host = host();
    let kinds = [Kind::Qemu, Kind::Vfkit(true), Kind::Stdio];
    let builder = kinds.iter().fold(Daemon::builder().without_qemu(), |b, kind| b.args(kind.args()));
    let mut daemon = builder.args(["-keep-running"]).with_pipes().through(host.prefix()).start();
    let guests: Vec<_> = (1..).zip(kinds).map(|(n, kind)| guest(kind.plug(&mut daemon), n)).collect();
    for (from, _) in &guests {
        talks(from, &host, 4 << 20);
        for (to, ip) in guests.iter().filter(|(to, _)| !std::ptr::eq(to, from)) {
            between(from, to, *ip, 16 << 20);
        }
    }
}

#[test]
fn a_guest_that_stalls_costs_only_itself() {
    let host = host();
    let mut daemon = Kind::Qemu.builder().args(["-keep-running"]).through(host.prefix()).start();
    let mut plug = || Kind::Qemu.plug(&mut daemon);
    let ((one, _), (two, ip), (stalled, far)) = (guest(plug(), 1), guest(plug(), 2), guest(plug(), 3));
    let alone = between(&one, &two, ip, 32 << 20);
    let listener = stalled.listen((far, 0).into());
    let mut towards = one.connect(listener.local_addr().unwrap()).expect("before it stalls");
    // Frames for the one that takes none, from a guest and from the host.
    let service = host.listen("127.0.0.1:0".parse().unwrap());
    let inside = stalled.connect((HOST, service.local_addr().unwrap().port()).into()).unwrap();
    let mut outside = accept(&service);
    stalled.hold(true);
    for stream in [&towards, &outside] {
        stream.set_write_timeout(Some(Duration::from_millis(300))).unwrap();
    }
    while towards.write(&[0; 65_536]).is_ok() {}
    while outside.write(&[0; 65_536]).is_ok() {}
    let beside = between(&one, &two, ip, 32 << 20);
    talks(&one, &host, 8 << 20);
    assert!(beside < 4 * alone + Duration::from_millis(300), "{alone:?} alone, {beside:?} beside");
    let busy = daemon.cpu_seconds();
    // A window of time to measure in.
    std::thread::sleep(Duration::from_secs(1));
    let busy = daemon.cpu_seconds() - busy;
    assert!(busy < 0.1, "{busy} s of processor time in 1 s in which nobody moves");
    stalled.hold(false);
    drop((towards, outside, inside));
    talks(&stalled, &host, 1 << 20);
}

#[test]
fn a_guest_that_dies_costs_only_itself() {
    let host = host();
    let mut daemon = Kind::Qemu.builder().args(["-keep-running"]).through(host.prefix()).start();
    let mut plug = || Kind::Qemu.plug(&mut daemon);
    let ((one, _), (two, ip), (mut dies, gone)) = (guest(plug(), 1), guest(plug(), 2), guest(plug(), 3));
    let service = host.listen("127.0.0.1:0".parse().unwrap());
    let _inside = dies.connect((HOST, service.local_addr().unwrap().port()).into()).unwrap();
    let mut outside = accept(&service);
    let fds = daemon.fds();
    std::thread::scope(|scope| {
        let works = scope.spawn(|| between(&one, &two, ip, 64 << 20));
        dies.switch_off();
        works.join().expect("the others' transfer");
    });
    let end = uninterrupted(|| outside.read(&mut [0; 16]));
    assert!(!matches!(end, Ok(1..)), "{end:?}");
    eventually("the link and its flow are closed", AT_ONCE, || (daemon.fds() <= fds - 2).then_some(()));
    assert!(!one.ping(gone, 56), "nobody has its address");
    talks(&one, &host, 1 << 20);
    // And one that sends what are no frames.
    let mut nonsense = UnixStream::connect(daemon.qemu_socket()).unwrap();
    nonsense.write_all(&[0xff; 64]).unwrap();
    nonsense.set_read_timeout(Some(AT_ONCE)).unwrap();
    assert_eq!(uninterrupted(|| nonsense.read(&mut [0; 16])).expect("it is shown out"), 0);
    talks(&two, &host, 1 << 20);
    assert!(daemon.is_running());
}

#[test]
fn a_guest_that_reconnects_keeps_lease_and_forwards() {
    for kind in [Kind::Qemu, Kind::Vfkit(true), Kind::Bess] {
        let (host, port) = (host(), testkit::free_port().to_string());
        let builder = kind.builder().args(["-keep-running", "-ssh-port", &port]);
        let mut daemon = builder.through(host.prefix()).start();
        let mut guest = Guest::start(kind.plug(&mut daemon), MAC, 1500);
        let lease = guest.dhcp();
        let listener = guest.listen("0.0.0.0:22".parse().unwrap());
        let at = ([127, 0, 0, 1], port.parse().unwrap()).into();
        for round in 0..3 {
            let outside = impatient(host.connect(at).expect("the forwarded port"));
            transfer(&outside, &accept(&listener), 1 << 20);
            guest.switch_off();
            // What is sent to the old end says that it is gone.
            let late = if kind == Kind::Vfkit(true) { host.connect(at).ok() } else { None };
            let left = || (daemon.stderr().matches("machine left").count() > round).then_some(());
            eventually("the end of the link", Duration::from_secs(10), left);
            // Its address, its routes and its listener are as they were.
            guest.replug(kind.plug(&mut daemon));
            assert!(guest.ping(GATEWAY, 56), "{kind:?}, round {round}");
            if let Some(late) = late {
                // It ends with the old link or reaches the guest by the new one.
                listener.set_nonblocking(true).unwrap();
                late.set_nonblocking(true).unwrap();
                let ended = || match uninterrupted(|| (&late).read(&mut [0])) {
                    Err(error) if error.kind() == io::ErrorKind::WouldBlock => None,
                    ended => Some(ended),
                };
                let settled = || ended().map(drop).or_else(|| listener.accept().ok().map(drop));
                eventually("the late connection's end", Duration::from_secs(10), settled);
            }
        }
        talks(&guest, &host, 1 << 20);
        assert_eq!(guest.dhcp().ip(), lease.ip());
    }
}

#[test]
fn vpnkit_tells_each_client_its_address() {
    let daemon = Kind::Vpnkit.builder().args(["-mtu", "4000"]).start();
    let path = Kind::Vpnkit.socket(&daemon);
    let connect = || eventually("the socket", AT_ONCE, || UnixStream::connect(&path).ok());
    let known = greet(&connect(), "c3d68012-0208-11ea-9fd7-f2189899ab08").unwrap();
    assert_eq!(known[..11], [1, 0xa0, 0x0f, 0xae, 0x0f, 0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
    assert!(known[11..].iter().all(|byte| *byte == 0), "{known:02x?}");
    let macs: Vec<_> = (0..8)
        .map(|_| {
            let answer = greet(&connect(), "00000000-0208-11ea-9fd7-f2189899ab08").unwrap();
            assert_eq!(answer[5] & 3, 2, "a local address of one machine: {answer:02x?}");
            answer[5..11].to_vec()
        })
        .collect();
    assert!(macs.iter().any(|mac| *mac != macs[0]), "{macs:02x?}");
}

#[test]
fn a_vpnkit_client_that_does_not_greet_costs_only_itself() {
    let host = host();
    let mut daemon = Kind::Vpnkit.builder().through(host.prefix()).start();
    let (guest, _) = guest(Kind::Vpnkit.plug(&mut daemon), 1);
    let path = Kind::Vpnkit.socket(&daemon);
    let silent = UnixStream::connect(&path).unwrap();
    let mut short = UnixStream::connect(&path).unwrap();
    short.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(short);
    talks(&guest, &host, 1 << 20);
    let (other, _) = self::guest(Kind::Vpnkit.plug(&mut daemon), 2);
    talks(&other, &host, 1 << 20);
    drop(silent);
}

#[test]
fn vpnkit_clients_that_do_not_greet_keep_nobody_out() {
    let mut daemon = Kind::Vpnkit.builder().start();
    let (guest, address) = guest(Kind::Vpnkit.plug(&mut daemon), 1);
    let path = Kind::Vpnkit.socket(&daemon);
    // More than a listener has places.
    let mut silent: Vec<_> = (0..300).map(|_| UnixStream::connect(&path).unwrap()).collect();
    // One that takes its time, while others come that say nothing.
    let mut slow = UnixStream::connect(&path).unwrap();
    slow.set_read_timeout(Some(AT_ONCE)).unwrap();
    let parts = [(&[0; 10][..], 0), (&[0; 39], 49), (&[0; 10], 0), (&[0; 31], 258)];
    for (said, answer) in parts {
        silent.extend((0..100).map(|_| UnixStream::connect(&path).unwrap()));
        // Whoever is answered has come behind them.
        greet(&UnixStream::connect(&path).unwrap(), "00000000-0208-11ea-9fd7-f2189899ab08").unwrap();
        slow.write_all(said).expect("it may still speak");
        slow.read_exact(&mut vec![0; answer]).expect("its answer");
    }
    let started = Instant::now();
    let (other, _) = self::guest(Kind::Vpnkit.plug(&mut daemon), 2);
    assert!(started.elapsed() < Duration::from_secs(5), "{:?}", started.elapsed());
    assert!(other.ping(address, 56), "who was there is there");
    drop((silent, guest));
}

#[test]
fn a_link_too_many_is_closed_and_the_others_stay() {
    const MOST: usize = 256;
    let daemon = Daemon::builder().without_qemu().args(["-listen", "unix://{dir}/api"]).start();
    let connect = || {
        let path = daemon.dir().join("api");
        let mut stream = eventually("the API", AT_ONCE, || UnixStream::connect(&path).ok());
        stream.write_all(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n").unwrap();
        stream
    };
    let (guest, _) = guest(Cable::new(connect(), Framing::Little16), 1);
    let links: Vec<_> = (0..MOST).map(|_| connect()).collect();
    links.iter().for_each(|link| link.set_nonblocking(true).unwrap());
    // Frames to everybody come before.
    let has_ended = |mut link: &UnixStream| loop {
        match uninterrupted(|| link.read(&mut [0; 4096])) {
            Ok(0) => return true,
            Ok(_) => {}
            Err(_) => return false,
        }
    };
    let mut ended = 0;
    eventually("one that is closed", Duration::from_secs(10), || {
        ended = links.iter().filter(|link| has_ended(link)).count();
        (ended > 0).then_some(())
    });
    assert!(ended == 1 && guest.ping(GATEWAY, 56), "{ended}");
    assert!(daemon.log_with("cannot attach").contains("256 virtual machines are connected already"));
}

#[test]
fn vfkit_listens_to_its_guest_alone() {
    let host = host();
    let kind = Kind::Vfkit(true);
    let mut daemon = kind.builder().through(host.prefix()).start();
    // Whom nobody can answer is not taken for the guest.
    let socket = kind.socket(&daemon);
    let unnamed = UnixDatagram::unbound().unwrap();
    eventually("the socket", AT_ONCE, || unnamed.connect(&socket).ok());
    unnamed.send(&[0; 60]).unwrap();
    let cable = kind.plug(&mut daemon);
    let raw = cable.output.try_clone().unwrap();
    let (guest, _) = guest(cable, 1);
    talks(&guest, &host, 1 << 20);
    if !is_peer() {
        // COMPAT(gvproxy): the original takes frames from anybody.
        let name = daemon.dir().with_file_name("other.sock");
        assert!(datagrams(&socket, &name, false).is_err(), "a second guest is refused");
    }
    // Datagrams that are no frames.
    for length in [0, 1, 5, 6, 13, 14] {
        SockRef::from(&raw).send(&vec![0xff; length]).expect("a datagram");
    }
    talks(&guest, &host, 1 << 20);
}

#[test]
fn sixty_four_guests_at_once() {
    const GUESTS: u8 = 64;
    let host = host();
    let mut daemon = Kind::Qemu.builder().args(["-keep-running"]).through(host.prefix()).start();
    let mut guests: Vec<_> = (0..GUESTS).map(|n| guest(Kind::Qemu.plug(&mut daemon), n)).collect();
    let addresses: std::collections::HashSet<_> = guests.iter().map(|(_, ip)| *ip).collect();
    assert_eq!(addresses.len(), guests.len());
    let round = guests.iter().zip(guests.iter().cycle().skip(1));
    for (from, to) in round.clone() {
        assert!(from.0.ping(to.1, 56), "{} from {}", to.1, from.1);
    }
    // Each with the next and with the host, and eight of them at a time.
    let round: Vec<_> = round.collect();
    for some in round.chunks(8) {
        std::thread::scope(|scope| {
            for (from, to) in some {
                scope.spawn(|| between(&from.0, &to.0, to.1, 2 << 20));
                scope.spawn(|| talks(&from.0, &host, 1 << 20));
            }
        });
    }
    // A read buffer and a batch each, of which a guest that has moved megabytes has touched all.
    let rss = daemon.rss_kb();
    assert!(rss < 16 * 1024 + u64::from(GUESTS) * 1280, "{rss} KiB with {GUESTS} guests");
    guests.truncate(1);
    let (first, _) = &guests[0];
    eventually("the others' memory is given back", Duration::from_secs(10), || {
        (daemon.rss_kb() < 24 * 1024).then_some(())
    });
    talks(first, &host, 4 << 20);
}

#[test]
fn two_guests_with_one_hardware_address_cost_only_themselves() {
    let host = host();
    let mut daemon = Kind::Qemu.builder().args(["-keep-running"]).through(host.prefix()).start();
    let mut plug = || Kind::Qemu.plug(&mut daemon);
    let ((one, _), (two, ip)) = (guest(plug(), 1), guest(plug(), 2));
    let ((twin, shared), other) = (guest(plug(), 3), Guest::start(plug(), &mac(3), 1500));
    other.configure(&format!("{shared}/24"), Some(&GATEWAY.to_string()));
    let alone = between(&one, &two, ip, 32 << 20);
    // Both speak all the time: the address stays with who had it first.
    let over = AtomicBool::new(false);
    let beside = std::thread::scope(|scope| {
        for guest in [&twin, &other] {
            let over = &over;
            scope.spawn(move || {
                let socket = guest.udp("0.0.0.0:0".parse().unwrap());
                while !over.load(Ordering::Relaxed) {
                    for to in [GATEWAY, ip] {
                        let _ = socket.send_to(&[0; 1000], (to, 9));
                    }
                    std::thread::sleep(Duration::from_micros(200));
                }
            });
        }
        let beside = between(&one, &two, ip, 32 << 20);
        talks(&one, &host, 8 << 20);
        talks(&twin, &host, 8 << 20);
        between(&one, &twin, shared, 8 << 20);
        over.store(true, Ordering::Relaxed);
        beside
    });
    assert!(beside < 4 * alone + Duration::from_millis(300), "{alone:?} alone, {beside:?} beside twins");
    let log = daemon.log_with("a machine speaks as another one");
    assert_eq!(log.matches("a machine speaks as another one").count(), 1, "{log}");
    assert!(log.lines().count() < 40, "the log is bounded:\n{log}");
    // Where that one leaves, the other is there.
    drop(twin);
    eventually("the twin is found", AT_ONCE, || other.ping(GATEWAY, 56).then_some(()));
    talks(&other, &host, 1 << 20);
    between(&one, &other, shared, 1 << 20);
}
