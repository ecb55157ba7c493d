//! Every link: a Linux stack behind it, how it ends, and frames that are none. Reference 2, and 1.10.
//! Read next: `wire.rs`.

use std::io::{Read, Write};
use std::os::unix::net::{UnixDatagram, UnixStream};
use std::time::Duration;

use rustix::process::Signal;

use crate::case::{Case, On, Table};
use crate::web::{connect, get};
use crate::wire::{PATIENCE, Plug, SILENCE, framed};
use testkit::cable::{Cable, Framing, Kind, datagrams, greet};
use testkit::daemon::Daemon;
use testkit::frames::{BROADCAST, GATEWAY_MAC, ICMP, IP, IPV4, MAC, Wire, arp, echo_request, ether, ipv4};
use testkit::guest::{Guest, MAC as MAC_TEXT};
use testkit::net::{GATEWAY, HOST, Host};
use testkit::traffic::{accept, impatient, transfer};
use testkit::uninterrupted;
use testkit::{eventually, free_port};

const API: [&str; 2] = ["-listen", "unix://{dir}/api"];
const CONNECT: &[u8] =
    b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n";
/// What "at once" means for an end.
const AT_ONCE: Duration = Duration::from_secs(2);
/// Machines beside the first.
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const NOBODY: [u8; 6] = [2, 0, 0, 0, 0, 99];
const MULTICAST: [u8; 6] = [0x33, 0x33, 0, 0, 0, 1];

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("links");
    serving(&mut table);
    ending(&mut table);
    frames(&mut table);
    clients(&mut table);
    switching(&mut table);
    table.done()
}

/// A link of a kind and no other, with the API.
fn daemon(on: &On, kind: Kind) -> Daemon {
    kind.builder().binary(&on.binary).args(API).args(["-mtu", "1500"]).start()
}

/// A guest over HTTP's `/connect`.
fn upgraded(daemon: &Daemon, framing: Framing) -> Cable {
    // The original loses what comes close behind the request, so that the question is asked anew.
    eventually("an answer on a link", 3 * PATIENCE, || {
        let mut stream = connect(daemon, "api");
        stream.write_all(CONNECT).unwrap();
        get(daemon, "/cam");
        let mut plug = Plug::new(Cable::new(stream, framing));
        plug.answered_as(MAC, SILENCE).then(|| plug.into_cable())
    })
}

fn vpnkit(daemon: &Daemon, uuid: &str) -> Plug {
    let path = Kind::Vpnkit.socket(daemon);
    let stream = eventually("the socket", PATIENCE, || UnixStream::connect(&path).ok());
    greet(&stream, uuid).expect("a handshake");
    Plug::new(Cable::new(stream, Framing::Little16))
}

/// A Linux guest on a link: its lease, pings, a connection each way, `bytes` both ways and datagrams.
fn served(on: &On, kind: Option<Kind>, bytes: u64) -> String {
    let host = Host::new("nameserver 127.0.0.1\n");
    let builder = kind.map_or_else(|| Daemon::builder().without_qemu(), Kind::builder);
    let port = free_port();
    let builder = builder.binary(&on.binary).args(API).args(["-mtu", "1500", "-ssh-port", &port.to_string()]);
    let mut daemon = builder.through(host.prefix()).start();
    let cable = match kind {
        Some(Kind::QemuTcp(port)) => {
            let connect = || host.connect(([127, 0, 0, 1], port).into()).ok();
            Cable::new(eventually("the TCP port", PATIENCE, connect), Framing::Big32)
        }
        Some(kind) => kind.plug(&mut daemon),
        None => upgraded(&daemon, Framing::Little16),
    };
    let guest = Guest::start(cable, MAC_TEXT, 1500);
    let lease = guest.dhcp();
    let pings = [0, 56, 1472, 20_000].map(|length| guest.ping(GATEWAY, length));
    let listener = host.listen("127.0.0.1:0".parse().unwrap());
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let inside = impatient(guest.connect(to).expect("a connection to the host"));
    let outside = accept(&listener);
    transfer(&inside, &outside, bytes);
    transfer(&outside, &inside, bytes);
    let listener = guest.listen("0.0.0.0:22".parse().unwrap());
    let outside = impatient(host.connect(([127, 0, 0, 1], port).into()).expect("the ssh port"));
    let inside = accept(&listener);
    let from = inside.peer_addr().unwrap().ip();
    transfer(&outside, &inside, 1 << 20);
    let service = host.udp("127.0.0.1:0".parse().unwrap());
    let client = guest.udp("0.0.0.0:0".parse().unwrap());
    let mut buffer = [0; 16];
    for socket in [&service, &client] {
        socket.set_read_timeout(Some(PATIENCE)).unwrap();
    }
    client.send_to(b"question", (HOST, service.local_addr().unwrap().port())).unwrap();
    let (_, asker) = service.recv_from(&mut buffer).expect("the question");
    service.send_to(b"answer", asker).unwrap();
    let answered = client.recv(&mut buffer).is_ok_and(|length| &buffer[..length] == b"answer");
    format!(
        "{} mtu {}; pings {pings:?}; {bytes} bytes out and in; from the host as {from}; UDP {answered}",
        lease.ip(),
        lease.option("mtu")
    )
}

fn serving(table: &mut Table) {
    let seen = |bytes: u64| {
        format!(
            "192.168.127.2 mtu 1500; pings [true, true, true, true]; {bytes} bytes out and in; from the host as 192.168.127.1; \
             UDP true"
        )
    };
    for (rows, name, kind) in [
        ("9.22 9.25 9.41", "QEMU over a unix socket", Some(Kind::Qemu)),
        ("", "QEMU over TCP", Some(Kind::QemuTcp(1234))),
        ("", "VPNKit", Some(Kind::Vpnkit)),
        ("", "BESS", Some(Kind::Bess)),
        ("", "vfkit with its magic datagram", Some(Kind::Vfkit(true))),
        ("", "vfkit without", Some(Kind::Vfkit(false))),
        ("9.13", "stdio", Some(Kind::Stdio)),
        ("", "/connect", None),
    ] {
        table.same(format!("{rows} {name} serves a Linux guest").trim(), seen(8 << 20), move |on| {
            served(on, kind, 8 << 20)
        });
    }
    for megabytes in [1, 10, 100] {
        let bytes = megabytes * 1_000_000;
        table.same(format!("9.40 vfkit carries {megabytes} MB out and in"), seen(bytes), move |on| {
            served(on, Some(Kind::Vfkit(true)), bytes)
        });
    }
    table.differs(
        "what QEMU's guest is offered without -mtu",
        "MTU without `-mtu`, behind QEMU",
        "65520",
        "1500",
        |on| {
            let daemon = on.daemon().start();
            let guest = Guest::start(testkit::net::plug(&daemon), MAC_TEXT, 1500);
            guest.dhcp().option("mtu").to_owned()
        },
    );
}

/// How a daemon ends, and what it leaves.
fn end(daemon: &mut Daemon, patience: Duration) -> String {
    let Some(status) = daemon.wait(patience) else { return format!("runs after {patience:?}") };
    let left = std::fs::read_dir(daemon.dir()).unwrap();
    let mut left: Vec<_> = left.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    left.sort();
    let code = status.code().map_or_else(|| status.to_string(), |code| format!("exit {code}"));
    if left.is_empty() { code } else { format!("{code}, leaves {}", left.join(" ")) }
}

fn ending(table: &mut Table) {
    for (name, kind) in
        [("QEMU", Kind::Qemu), ("BESS", Kind::Bess), ("vfkit", Kind::Vfkit(true)), ("stdio", Kind::Stdio)]
    {
        table.same(format!("the run ends with its machine: {name}"), "exit 0", move |on| {
            let port = free_port().to_string();
            let builder = kind.builder().binary(&on.binary);
            let mut daemon = builder.args(API).args(["-pid-file", "{dir}/pid", "-ssh-port", &port]).start();
            let mut guest = Guest::start(kind.plug(&mut daemon), MAC_TEXT, 1500);
            guest.dhcp();
            guest.switch_off();
            drop(guest);
            if kind == Kind::Vfkit(true) {
                // A datagram socket has no end: only a frame that has nowhere to go tells.
                let _ = std::net::TcpStream::connect(("127.0.0.1", port.parse().unwrap()));
            }
            end(&mut daemon, PATIENCE)
        });
    }
    let row = "SIGTERM with an idle VM attached";
    for (edge, name, kind) in [
        ("10.68", "QEMU", Some(Kind::Qemu)),
        ("10.68", "BESS", Some(Kind::Bess)),
        ("10.68", "stdio", Some(Kind::Stdio)),
        ("10.69", "VPNKit", Some(Kind::Vpnkit)),
        ("", "vfkit", Some(Kind::Vfkit(true))),
        ("", "/connect", None),
    ] {
        let drive = move |on: &On| {
            let builder = kind.map_or_else(|| Daemon::builder().without_qemu(), Kind::builder);
            let mut daemon = builder.binary(&on.binary).args(API).args(["-pid-file", "{dir}/pid"]).start();
            let cable = match kind {
                Some(kind) => kind.plug(&mut daemon),
                None => upgraded(&daemon, Framing::Little16),
            };
            let mut wire = Wire::over(cable);
            assert!(wire.is_alive(), "the gateway");
            // Meanwhile it has come back to where it waits for the machine.
            get(&daemon, "/cam");
            daemon.signal(Signal::TERM);
            end(&mut daemon, AT_ONCE)
        };
        let name = format!("{edge} SIGTERM with an idle machine: {name}");
        match edge {
            "" => table.same(name.trim(), "exit 0", drive),
            _ => table.differs(name, row, "exit 0", "runs after 2s", drive),
        }
    }
    table.same("10.40 a /connect machine leaves, and the daemon goes on", "true, true, true", |on| {
        let daemon = on.daemon().without_qemu().args(API).start();
        let mut plug = Plug::new(upgraded(&daemon, Framing::Little16));
        let answered = plug.answered();
        let there = get(&daemon, "/cam").contains("\"5a:94:ef:e4:0c:ee\":");
        plug.hang_up();
        eventually("an empty switch", PATIENCE, || (get(&daemon, "/cam") == "200 {}").then_some(()));
        let again = Plug::new(upgraded(&daemon, Framing::Little16)).answered();
        format!("{answered}, {there}, {again}")
    });
    table.same("/connect beside -listen-qemu has QEMU's framing", "true", |on| {
        let daemon = on.daemon().args(API).start();
        Plug::new(upgraded(&daemon, Framing::Big32)).answered().to_string()
    });
    table.differs(
        "/connect beside -listen-qemu in HyperKit's framing",
        "framing of `/connect` beside `-listen-qemu`",
        "true",
        "false",
        |on| {
            let daemon = on.daemon().args(API).start();
            let mut stream = connect(&daemon, "api");
            stream.write_all(CONNECT).unwrap();
            get(&daemon, "/cam");
            let patience = if on.is_ours { PATIENCE } else { SILENCE };
            Plug::new(Cable::new(stream, Framing::Little16)).answered_as(MAC, patience).to_string()
        },
    );
    table.differs(
        "/connect beside -listen-bess",
        "framing of `/connect` beside `-listen-bess` or `-listen-vfkit`",
        "true",
        "false",
        |on| {
            let daemon = daemon(on, Kind::Bess);
            let answered = (0..3).any(|_| {
                let mut stream = connect(&daemon, "api");
                stream.write_all(CONNECT).unwrap();
                Plug::new(Cable::new(stream, Framing::Little16)).answered_as(MAC, SILENCE)
            });
            answered.to_string()
        },
    );
    table.differs(
        "10.41 frames behind a /connect request",
        "bytes behind a `/connect` or `/tunnel` request",
        "answered",
        "lost",
        |on| {
            let daemon = on.daemon().without_qemu().args(API).start();
            let mut stream = connect(&daemon, "api");
            let frame = framed(Framing::Little16, &arp(1, MAC, IP, [0; 6], GATEWAY));
            stream.write_all(&[CONNECT, frame.as_slice()].concat()).unwrap();
            stream.set_read_timeout(Some(if on.is_ours { PATIENCE } else { SILENCE })).unwrap();
            if uninterrupted(|| stream.read(&mut [0; 64])).is_ok_and(|length| length > 0) {
                "answered"
            } else {
                "lost"
            }
            .to_owned()
        },
    );
}

/// What becomes of a daemon after `frames`, and of the machine that sent them.
fn after(on: &On, kind: Kind, frames: &[Vec<u8>]) -> String {
    let mut daemon = daemon(on, kind);
    let mut plug = Plug::new(kind.plug(&mut daemon));
    assert!(plug.answered(), "the gateway");
    for frame in frames {
        plug.send(frame);
    }
    let answered = plug.answered_as(OTHER, if on.is_ours { PATIENCE } else { AT_ONCE });
    if daemon.is_running() && answered {
        return "the gateway answers".to_owned();
    }
    // A hang-up of the machine is the end of a daemon that still serves it.
    match daemon.wait(AT_ONCE) {
        Some(status) => format!("exit {}", status.code().unwrap_or(-1)),
        None => "nobody answers any more".to_owned(),
    }
}

/// A frame to `destination`, cut to `length`.
fn cut(destination: [u8; 6], length: usize) -> Vec<u8> {
    ether(destination, MAC, IPV4, &[0; 64])[..length].to_vec()
}

fn frames(table: &mut Table) {
    let row = "frames shorter than a header";
    let alive = "the gateway answers";
    for (length, destination, name) in
        [(0, GATEWAY_MAC, "nothing"), (6, GATEWAY_MAC, "to the gateway"), (11, BROADCAST, "to all")]
    {
        table.differs(
            format!("10.30 a frame of {length} bytes, {name}, from QEMU"),
            row,
            alive,
            "nobody answers any more",
            move |on| after(on, Kind::Qemu, &[cut(destination, length)]),
        );
    }
    for (length, destination, name) in [(12, GATEWAY_MAC, "to the gateway"), (13, BROADCAST, "to all")] {
        table.differs(
            format!("10.31 a frame of {length} bytes, {name}, from QEMU"),
            row,
            alive,
            "exit 2",
            move |on| after(on, Kind::Qemu, &[cut(destination, length)]),
        );
    }
    table.same("10.31 a frame of 13 bytes to nobody, from QEMU", alive, |on| {
        after(on, Kind::Qemu, &[cut(NOBODY, 13)])
    });
    for (edge, kind, name) in [("10.30", Kind::Bess, "BESS"), ("10.30", Kind::Vfkit(true), "vfkit")] {
        table.differs(
            format!("{edge} a frame of 5 bytes from {name}"),
            row,
            alive,
            "nobody answers any more",
            move |on| after(on, kind, &[cut(GATEWAY_MAC, 5)]),
        );
        table.differs(
            format!("10.31 a frame of 13 bytes to the gateway from {name}"),
            row,
            alive,
            "exit 2",
            move |on| after(on, kind, &[cut(GATEWAY_MAC, 13)]),
        );
    }
    table.same("10.32 frames of a header alone, and packets shorter than they say", alive, |on| {
        let lies = ether(
            GATEWAY_MAC,
            MAC,
            IPV4,
            &[0x45, 0, 5, 220, 0, 0, 0, 0, 64, 17, 0, 0, 192, 168, 127, 2, 192, 168, 127, 1],
        );
        after(on, Kind::Qemu, &[cut(GATEWAY_MAC, 14), cut(BROADCAST, 14), lies])
    });
    table.same("frames of VLANs, of IPv6 and of no protocol at all", alive, |on| {
        let frames = [0x8100, 0x86dd, 0x0000, 0xffff].map(|kind| ether(GATEWAY_MAC, MAC, kind, &[0x60; 64]));
        after(on, Kind::Qemu, &frames)
    });
    table.same("the longest frame, 131072 bytes", alive, |on| {
        after(on, Kind::Qemu, &[ether(GATEWAY_MAC, MAC, IPV4, &[0x45; 131_072 - 14])])
    });
    let row = "a frame length beyond 131072, a peer that leaves inside a frame";
    table.differs("10.33 a frame length of 131073", row, "exit 1", "exit 0", |on| {
        let mut daemon = daemon(on, Kind::Qemu);
        let mut plug = Plug::new(Kind::Qemu.plug(&mut daemon));
        plug.raw(&131_073_u32.to_be_bytes());
        end(&mut daemon, PATIENCE)
    });
    table.differs("10.34 QEMU leaves inside a frame", row, "exit 1", "exit 0", |on| {
        let mut daemon = daemon(on, Kind::Qemu);
        let mut plug = Plug::new(Kind::Qemu.plug(&mut daemon));
        plug.raw(&[0, 0, 0, 60, 1, 2, 3]);
        plug.hang_up();
        end(&mut daemon, PATIENCE)
    });
    table.differs(
        "10.77 a frame of 12 bytes to the gateway over /connect",
        row_of_short(),
        "it goes on; the daemon runs",
        "its link is lost; the daemon runs",
        |on| {
            let mut daemon = on.daemon().without_qemu().args(API).start();
            let mut plug = Plug::new(upgraded(&daemon, Framing::Little16));
            assert!(plug.answered(), "the gateway");
            plug.send(&cut(GATEWAY_MAC, 12));
            let goes_on = plug.answered_as(OTHER, if on.is_ours { PATIENCE } else { AT_ONCE });
            format!(
                "{}; the daemon {}",
                if goes_on { "it goes on" } else { "its link is lost" },
                if daemon.is_running() { "runs" } else { "ends" }
            )
        },
    );
    table.differs(
        "10.78 a datagram of 8 bytes to nobody",
        row_of_short(),
        "one address is learned",
        "two addresses are learned",
        |on| {
            let kind = Kind::Vfkit(true);
            let mut daemon = daemon(on, kind);
            let mut plug = Plug::new(kind.plug(&mut daemon));
            assert!(plug.answered(), "the gateway");
            plug.send(&[&NOBODY[..], &[2, 0xbb]].concat());
            assert!(plug.answered(), "the gateway");
            match get(&daemon, "/cam").matches(':').count() / 6 {
                1 => "one address is learned".to_owned(),
                2 => "two addresses are learned".to_owned(),
                n => format!("{n} addresses: {}", get(&daemon, "/cam")),
            }
        },
    );
}

fn row_of_short() -> &'static str {
    "frames shorter than a header"
}

fn clients(table: &mut Table) {
    for (name, kind) in [("QEMU", Kind::Qemu), ("BESS", Kind::Bess)] {
        table.differs(
            format!("10.35 a second {name}"),
            "a second QEMU",
            "is refused; the first is served",
            "waits in vain; the first is served",
            move |on| {
                let mut daemon = daemon(on, kind);
                let mut first = Plug::new(kind.plug(&mut daemon));
                assert!(first.answered(), "the gateway");
                let path = kind.socket(&daemon);
                let second = match kind {
                    Kind::Qemu => UnixStream::connect(&path).map(|stream| Cable::new(stream, Framing::Big32)),
                    _ => socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::SEQPACKET, None)
                        .and_then(|socket| {
                            socket.connect(&socket2::SockAddr::unix(&path)?)?;
                            Ok(Cable::new(socket, Framing::Message))
                        }),
                };
                let second = match second {
                    Err(_) => "is refused",
                    Ok(cable) => {
                        if Plug::new(cable).answered_as(OTHER, SILENCE) {
                            "is served"
                        } else {
                            "waits in vain"
                        }
                    }
                };
                format!("{second}; the first is {}", if first.answered() { "served" } else { "lost" })
            },
        );
    }
    table.differs(
        "10.36 a second sender of datagrams",
        "datagrams to the vfkit socket from others than its guest",
        "is refused",
        "is heard, and answered at the first",
        |on| {
            let kind = Kind::Vfkit(true);
            let mut daemon = daemon(on, kind);
            let mut first = Plug::new(kind.plug(&mut daemon));
            assert!(first.answered(), "the gateway");
            match datagrams(&kind.socket(&daemon), &daemon.dir().with_file_name("other.sock"), false) {
                Err(_) => "is refused".to_owned(),
                Ok(cable) => {
                    let mut second = Plug::new(cable);
                    second.send(&arp(1, OTHER, IP, [0; 6], GATEWAY));
                    let at_first = first.receive(PATIENCE, |frame| frame.starts_with(&OTHER)).is_some();
                    if at_first { "is heard, and answered at the first" } else { "is not heard" }.to_owned()
                }
            }
        },
    );
    table.differs(
        "10.37 a vfkit that comes again by the same name",
        "a vfkit that comes again by the same name",
        "true, Err(PermissionDenied), runs true",
        "true, Ok(true), runs true",
        |on| {
            let kind = Kind::Vfkit(true);
            let mut daemon = daemon(on, kind);
            let path = kind.socket(&daemon);
            eventually("the socket", PATIENCE, || path.exists().then_some(()));
            let name = daemon.dir().with_file_name("guest.sock");
            let first = Plug::new(datagrams(&path, &name, true).unwrap()).answered();
            let again =
                datagrams(&path, &name, false).map(|cable| Plug::new(cable).answered_as(OTHER, AT_ONCE));
            format!("{first}, {:?}, runs {}", again.map_err(|error| error.kind()), daemon.is_running())
        },
    );
    table.differs(
        "10.38 a vfkit without a name",
        "a first datagram there without a sender's name",
        "the daemon runs",
        "exit 0",
        |on| {
            let kind = Kind::Vfkit(true);
            let mut daemon = daemon(on, kind);
            let path = kind.socket(&daemon);
            let unnamed = UnixDatagram::unbound().unwrap();
            eventually("the socket", PATIENCE, || unnamed.connect(&path).ok());
            unnamed.send(&[0; 60]).unwrap();
            if on.is_ours {
                // The next is taken for the guest.
                assert!(Plug::new(kind.plug(&mut daemon)).answered(), "the gateway");
            }
            match daemon.wait(if on.is_ours { Duration::ZERO } else { PATIENCE }) {
                None => "the daemon runs".to_owned(),
                Some(status) => format!("exit {}", status.code().unwrap_or(-1)),
            }
        },
    );
    table.same("VPNKit tells each client its address", "[01, a0, 0f, ae, 0f, 5a, 94, ef, e4, 0c, ee], then zeros: true; another's is local: true; in capitals: false", |on| {
        let daemon = Kind::Vpnkit.builder().binary(&on.binary).args(["-mtu", "4000"]).start();
        let path = Kind::Vpnkit.socket(&daemon);
        let connect = || eventually("the socket", PATIENCE, || UnixStream::connect(&path).ok());
        let known = greet(&connect(), "c3d68012-0208-11ea-9fd7-f2189899ab08").unwrap();
        let other = greet(&connect(), "00000000-0208-11ea-9fd7-f2189899ab08").unwrap();
        let upper = greet(&connect(), "C3D68012-0208-11EA-9FD7-F2189899AB08").unwrap();
        format!(
            "{:02x?}, then zeros: {}; another's is local: {}; in capitals: {}",
            &known[..11],
            known[11..].iter().all(|byte| *byte == 0),
            other[5] & 3 == 2,
            upper[5..11] == known[5..11],
        )
    });
    table.differs(
        "a VPNKit client that stays silent",
        "a VPNKit client that fails its handshake",
        "is closed after 10 s",
        "stays",
        |on| {
            let daemon = daemon(on, Kind::Vpnkit);
            let path = Kind::Vpnkit.socket(&daemon);
            let mut silent = eventually("the socket", PATIENCE, || UnixStream::connect(&path).ok());
            silent.write_all(b"VMN3T").unwrap();
            silent.set_read_timeout(Some(Duration::from_secs(if on.is_ours { 30 } else { 12 }))).unwrap();
            match uninterrupted(|| silent.read(&mut [0; 64])) {
                Err(error) if error.kind() == std::io::ErrorKind::WouldBlock => "stays",
                Ok(1..) => "is answered",
                _ => "is closed after 10 s",
            }
            .to_owned()
        },
    );
    table.same(
        "10.39 a VPNKit client that says something else",
        "closed true; others are served: true",
        |on| {
            let daemon = daemon(on, Kind::Vpnkit);
            let path = Kind::Vpnkit.socket(&daemon);
            let mut bad = eventually("the socket", PATIENCE, || UnixStream::connect(&path).ok());
            bad.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
            bad.shutdown(std::net::Shutdown::Write).unwrap();
            bad.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut rest = Vec::new();
            let closed = bad.read_to_end(&mut rest).is_ok();
            let served = vpnkit(&daemon, "c3d68012-0208-11ea-9fd7-f2189899ab08").answered();
            format!("closed {closed}; others are served: {served}")
        },
    );
    table.differs("a vfkit's process that ends", "vfkit's process ends", "exit 0", "runs after 2s", |on| {
        let kind = Kind::Vfkit(true);
        let mut daemon = daemon(on, kind);
        let socket = kind.socket(&daemon);
        eventually("the socket", PATIENCE, || socket.exists().then_some(()));
        let process = testkit::ns::Namespace::new();
        let name = daemon.dir().with_file_name("process.sock");
        let theirs =
            process.open(&format!("vfkit {} {}", name.display(), socket.display())).expect("a socket");
        let child = theirs.try_clone().unwrap();
        let mut plug = Plug::new(Cable::new(theirs, Framing::Message));
        assert!(plug.answered(), "the gateway");
        drop(process);
        assert!(plug.answered(), "the gateway, to the child of a process that has ended");
        drop((plug, child));
        end(&mut daemon, if on.is_ours { PATIENCE } else { AT_ONCE })
    });
}

/// A frame from one machine to `destination`, and who of three gets it.
fn who_gets(on: &On, destination: [u8; 6]) -> String {
    let daemon = daemon(on, Kind::Vpnkit);
    let macs = [MAC, OTHER, [2, 0, 0, 0, 0, 10]];
    let mut plugs = macs.map(|mac| {
        let mut plug = vpnkit(&daemon, "c3d68012-0208-11ea-9fd7-f2189899ab08");
        assert!(plug.answered_as(mac, PATIENCE), "the gateway");
        plug
    });
    let frame = ether(destination, MAC, 0x88b5, b"for whom it may concern, forty-six bytes long");
    plugs[0].send(&frame);
    let got = plugs.each_mut().map(|plug| plug.receive(SILENCE, |got| got == frame).is_some());
    let names: Vec<_> =
        ["itself", "the second", "the third"].into_iter().zip(got).filter(|(_, got)| *got).collect();
    if names.is_empty() {
        "nobody".to_owned()
    } else {
        names.iter().map(|(name, _)| *name).collect::<Vec<_>>().join(" and ")
    }
}

fn switching(table: &mut Table) {
    table.same("a frame to another machine reaches", "the second", |on| who_gets(on, OTHER));
    table.same("a frame to all reaches", "the second and the third", |on| who_gets(on, BROADCAST));
    let flood = "unknown unicast and multicast frames";
    table.differs(
        "a frame to an address that nobody has shown reaches",
        flood,
        "the second and the third",
        "nobody",
        |on| who_gets(on, NOBODY),
    );
    table.differs("a multicast frame reaches", flood, "the second and the third", "nobody", |on| {
        who_gets(on, MULTICAST)
    });
    table.differs(
        "a frame to its own sender reaches",
        "a frame that would leave by the port it came from",
        "nobody",
        "itself",
        |on| who_gets(on, MAC),
    );
    table.differs(
        "10.67 two machines with one address",
        "two guests with one hardware address",
        "true, false, true",
        "true, true, true",
        |on| {
            let daemon = daemon(on, Kind::Vpnkit);
            let [mut one, mut two] =
                [(); 2].map(|()| vpnkit(&daemon, "c3d68012-0208-11ea-9fd7-f2189899ab08"));
            let seen = [one.answered(), two.answered_as(MAC, SILENCE), one.answered()];
            seen.map(|answered| answered.to_string()).join(", ")
        },
    );
    table.differs(
        "10.66 a machine that does not read, and another",
        "a guest that does not read",
        "the other is served",
        "the other is stopped",
        |on| {
            let daemon = daemon(on, Kind::Vpnkit);
            let mut other = vpnkit(&daemon, "00000000-0208-11ea-9fd7-f2189899ab08");
            assert!(other.answered_as(OTHER, PATIENCE), "the gateway");
            let mut deaf = vpnkit(&daemon, "c3d68012-0208-11ea-9fd7-f2189899ab08");
            assert!(deaf.answered(), "the gateway");
            // More answers than its socket and any queue hold; some of the questions may find no room any
            // more.
            let echo = ipv4(ICMP, IP, GATEWAY, &echo_request(0));
            let request = framed(Framing::Little16, &ether(GATEWAY_MAC, MAC, IPV4, &echo));
            deaf.flood(&request.repeat(100), 1000);
            let served = other.answered_as(OTHER, if on.is_ours { PATIENCE } else { AT_ONCE });
            if served { "the other is served" } else { "the other is stopped" }.to_owned()
        },
    );
}
