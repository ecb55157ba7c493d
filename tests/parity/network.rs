//! The virtual network as a guest sees it: leases, ARP, pings, TCP and UDP. Reference 3. Read next:
//! `packets.rs`.

use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpStream};
use std::time::Duration;

use etherparse::TransportSlice;
use etherparse::icmpv4::{TYPE_DEST_UNREACH, TYPE_ECHO_REPLY};
use socket2::SockRef;

use crate::case::{Case, Net, On, Table};
use crate::packets::{Tcp, hardware_address, start};
use crate::web::{SERVED, raw};
use crate::wire::{PATIENCE, SILENCE};
use testkit::frames::{
    GATEWAY_MAC, ICMP, IP, IPV4, MAC, UDP, Wire, arp, echo_request, ether, ipv4, is_echo_reply, read_ipv4,
    read_transport, udp,
};
use testkit::guest::{Guest, MAC as MAC_TEXT};
use testkit::http::request;
use testkit::net::{BLACK_HOLE, ELSEWHERE, GATEWAY, HOST, Host, UNREACHABLE, plug};
use testkit::traffic::{accept, impatient};
use testkit::uninterrupted;

/// How long a thing is waited for that the original does not do.
const IN_VAIN: Duration = Duration::from_secs(3);

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("network");
    addresses(&mut table);
    arp_and_echo(&mut table);
    tcp(&mut table);
    udp_flows(&mut table);
    table.done()
}

fn addresses(table: &mut Table) {
    for (rows, flags, seen) in [
        ("9.1 9.2", "", ["192.168.127.1", "192.168.127.2", "192.168.127.254"]),
        ("9.1", "-subnet 10.10.0.0/16", ["10.10.0.1", "10.10.0.2", "10.10.255.254"]),
        ("9.1", "-subnet 172.16.16.16/12", ["172.16.0.1", "172.16.0.2", "172.31.255.254"]),
        ("", "-subnet 10.0.0.0/29", ["10.0.0.1", "10.0.0.2", "10.0.0.6"]),
        ("", "-gatewayIP 192.168.127.9", ["192.168.127.9", "192.168.127.2", "192.168.127.254"]),
        (
            "",
            "-subnet 10.9.0.0/20 -gatewayIP 10.9.0.5 -deviceIP 10.9.0.7 -hostIP 10.9.0.3",
            ["10.9.0.5", "10.9.0.7", "10.9.0.3"],
        ),
    ] {
        let seen = seen.join(", ");
        table.same(format!("{rows} addresses with {flags:?}").trim(), seen, move |on| {
            let daemon = on.daemon().args(SERVED).args(flags.split_whitespace()).start();
            let ask = |path| raw(&daemon, request("GET", path, "")).json();
            let (leases, zones) = (ask("/leases"), ask("/services/dns/all"));
            let of = |mac: &str| {
                let mut pairs = leases.as_object().unwrap().iter();
                pairs.find(|(_, owner)| *owner == mac).map_or("none", |(ip, _)| ip).to_owned()
            };
            let records = &zones[0]["Records"];
            assert_eq!(records[0]["IP"], of("5a:94:ef:e4:0c:dd"), "the name of the gateway");
            format!(
                "{}, {}, {}",
                of("5a:94:ef:e4:0c:dd"),
                of("5a:94:ef:e4:0c:ee"),
                records[1]["IP"].as_str().unwrap()
            )
        });
    }
}

fn arp_and_echo(table: &mut Table) {
    table.same("who answers ARP", "192.168.127.1 the gateway, 192.168.127.254 the gateway, 192.168.127.2 nobody, 192.168.127.77 nobody, 8.8.8.8 nobody, 192.168.127.255 nobody", |on| {
        let (_daemon, mut wire) = start(on, []);
        let asked = ["192.168.127.1", "192.168.127.254", "192.168.127.2", "192.168.127.77", "8.8.8.8", "192.168.127.255"];
        let answers = asked.map(|text| {
            let ip: Ipv4Addr = text.parse().unwrap();
            wire.send(&arp(1, MAC, IP, [0; 6], ip));
            let by = match hardware_address(&wire, SILENCE, ip) {
                None => "nobody",
                Some(GATEWAY_MAC) => "the gateway",
                Some(_) => "?",
            };
            format!("{text} {by}")
        });
        answers.join(", ")
    });
    table.same("9.25 pings: of itself, of the gateway", "[true, true, true, true]", |on| {
        let net = on.net([]);
        let own = net.guest.ping(IP, 56);
        format!(
            "{:?}",
            [
                own,
                net.guest.ping(GATEWAY, 56),
                net.guest.ping(GATEWAY, 1473),
                net.guest.ping(GATEWAY, 60_000)
            ]
        )
    });
    table.differs(
        "10.55 a ping of the host's alias",
        "ping of 192.168.127.254",
        "192.168.127.254",
        "127.0.0.1",
        |on| ping(on, HOST),
    );
    table.same("9.39 a ping of an address that the host reaches", "198.51.100.1", |on| ping(on, ELSEWHERE));
    table.differs(
        "a ping of an address that the host has no way to",
        "ping of an address that the host has no way to",
        "unreachable, says 192.168.127.1",
        "nobody",
        |on| ping(on, UNREACHABLE),
    );
    table.same("9.39 a ping of an address that nobody has", "nobody", |on| ping(on, BLACK_HOLE));
    table.differs(
        "a ping of the gateway, seen from the host",
        "ping of the gateway",
        "1 answers",
        "2 answers",
        |on| {
            // A host that has the gateway's address answers as well.
            let host = Host::new("nameserver 127.0.0.1\n");
            host.run(["ip", "addr", "add", "192.168.127.1/32", "dev", "lo"]);
            let daemon = on.daemon().through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            assert!(wire.is_alive());
            wire.send(&ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, GATEWAY, &echo_request(7))));
            let count =
                (0..2).filter(|_| wire.receive(SILENCE, |frame| is_echo_reply(frame, 7)).is_some()).count();
            format!("{count} answers")
        },
    );
    table.same("10.56 a ping with a bad checksum", "nobody", |on| {
        let (_daemon, mut wire) = start(on, []);
        let mut request = echo_request(7);
        request[2] ^= 0xff;
        wire.send(&ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, GATEWAY, &request)));
        let reply = |frame: &[u8]| icmp(frame).is_some_and(|[kind, _]| kind == TYPE_ECHO_REPLY);
        wire.receive(SILENCE, reply).map_or("nobody", |_| "answered").to_owned()
    });
    table.same("a packet of a protocol that nobody speaks", "ICMP 3 2 from 192.168.127.254", |on| {
        let (_daemon, mut wire) = start(on, []);
        assert!(wire.is_alive());
        wire.send(&ether(GATEWAY_MAC, MAC, IPV4, &ipv4(47, IP, HOST, &[0; 20])));
        let Some(error) = wire.receive(SILENCE, is_unreachable) else { return "silence".into() };
        let [kind, code] = icmp(&error).unwrap();
        format!("ICMP {kind} {code} from {}", read_ipv4(&error).unwrap().source_addr())
    });
    table.same("a packet with a source outside the subnet", "reaches nobody", |on| {
        let host = Host::new("nameserver 127.0.0.1\n");
        let service = host.udp("127.0.0.1:0".parse().unwrap());
        service.set_read_timeout(Some(SILENCE)).unwrap();
        let port = service.local_addr().unwrap().port();
        let daemon = on.daemon().through(host.prefix()).start();
        let mut wire = Wire::plug(&daemon);
        assert!(wire.is_alive());
        wire.send(&ether(
            GATEWAY_MAC,
            MAC,
            IPV4,
            &ipv4(UDP, Ipv4Addr::new(10, 1, 1, 1), HOST, &udp(9, port, b"x")),
        ));
        if service.recv(&mut [0; 16]).is_ok() { "reaches the host" } else { "reaches nobody" }.to_owned()
    });
}

/// Who answers a ping of the guest's.
fn ping(on: &On, to: Ipv4Addr) -> String {
    let host = Host::new("nameserver 127.0.0.1\n");
    let daemon = on.daemon().through(host.prefix()).start();
    echo(&mut Wire::plug(&daemon), to)
}

/// Who answers one ping of `to`.
fn echo(wire: &mut Wire, to: Ipv4Addr) -> String {
    assert!(wire.is_alive());
    wire.send(&ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, to, &echo_request(7))));
    let answer = |frame: &[u8]| is_unreachable(frame) || is_echo_reply(frame, 7);
    let Some(answer) = wire.receive(Duration::from_secs(2), answer) else { return "nobody".into() };
    let from = read_ipv4(&answer).unwrap().source_addr();
    if is_unreachable(&answer) { format!("unreachable, says {from}") } else { from.to_string() }
}

/// Type and code of the ICMP message in `frame`.
fn icmp(frame: &[u8]) -> Option<[u8; 2]> {
    match read_transport(frame)? {
        TransportSlice::Icmpv4(message) => Some([message.type_u8(), message.code_u8()]),
        _ => None,
    }
}

fn is_unreachable(frame: &[u8]) -> bool {
    icmp(frame).is_some_and(|[kind, _]| kind == TYPE_DEST_UNREACH)
}

/// A connection from the guest to a service on the host's loopback: the guest's end and the host's.
fn pair(net: &Net) -> (TcpStream, TcpStream) {
    let listener = net.host.listen("127.0.0.1:0".parse().unwrap());
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let guest = net.guest.connect(to).expect("a connection to the host");
    (impatient(guest), accept(&listener))
}

/// How a connect of the guest ends, and whether at once.
fn connects(net: &Net, to: SocketAddr) -> String {
    let start = std::time::Instant::now();
    let socket = net.guest.tcp();
    let made = socket.connect_timeout(&to.into(), IN_VAIN);
    let after = if start.elapsed() < Duration::from_secs(2) { "at once" } else { "late" };
    match made {
        Ok(()) => "connected".to_owned(),
        Err(error) => format!("{:?} {after}", error.kind()),
    }
}

fn tcp(table: &mut Table) {
    for first_is_guest in [true, false] {
        let who = if first_is_guest { "the guest" } else { "the host" };
        table.same(
            format!("{who} closes its half, the other half lives"),
            "question, then 1048576 bytes",
            move |on| {
                let net = on.net([]);
                let (guest, host) = pair(&net);
                let (mut first, mut second) = if first_is_guest { (guest, host) } else { (host, guest) };
                first.write_all(b"question").unwrap();
                first.shutdown(Shutdown::Write).unwrap();
                let mut text = String::new();
                second.read_to_string(&mut text).unwrap();
                second.write_all(&[7; 1 << 20]).unwrap();
                drop(second);
                let mut rest = Vec::new();
                first.read_to_end(&mut rest).unwrap();
                format!("{text}, then {} bytes", rest.len())
            },
        );
        table.differs(format!("{who} resets a connection"), "RST", "ConnectionReset", "end", move |on| {
            let net = on.net([]);
            let (guest, host) = pair(&net);
            let (aborter, mut other) = if first_is_guest { (guest, host) } else { (host, guest) };
            // Both ways are open.
            for byte in 0..2 {
                let (mut from, mut to) = if byte == 0 { (&aborter, &other) } else { (&other, &aborter) };
                from.write_all(&[byte]).unwrap();
                to.read_exact(&mut [0]).unwrap();
            }
            SockRef::from(&aborter).set_linger(Some(Duration::ZERO)).unwrap();
            drop(aborter);
            match uninterrupted(|| other.read(&mut [0; 16])) {
                Ok(0) => "end".to_owned(),
                Ok(1..) => "bytes".to_owned(),
                Err(error) => format!("{:?}", error.kind()),
            }
        });
    }
    table.same(
        "9.31 the host's loopback by its alias, and other addresses by themselves",
        "connected; connected; ConnectionRefused at once",
        |on| {
            let net = on.net([]);
            let there = net.host.listen((ELSEWHERE, 0).into());
            let port = there.local_addr().unwrap().port();
            let loopback = net.host.listen("127.0.0.1:0".parse().unwrap());
            let at = loopback.local_addr().unwrap().port();
            [
                connects(&net, (ELSEWHERE, port).into()),
                connects(&net, (HOST, at).into()),
                connects(&net, (HOST, port).into()),
            ]
            .join("; ")
        },
    );
    table.same("a port that nobody listens on", "ConnectionRefused at once", |on| {
        connects(&on.net([]), (HOST, 9).into())
    });
    table.differs(
        "a network that the host has no way to",
        "failed connects",
        "HostUnreachable at once",
        "ConnectionRefused at once",
        |on| connects(&on.net([]), (UNREACHABLE, 80).into()),
    );
    table.differs(
        "10.52 a port of the gateway that it does not use",
        "TCP to the gateway on an unused port",
        "ConnectionRefused at once",
        "connected",
        |on| {
            let host = Host::new("nameserver 127.0.0.1\n");
            host.run(["ip", "addr", "add", "192.168.127.1/32", "dev", "lo"]);
            let net = on.net_on(host, []);
            let _listener = net.host.listen("192.168.127.1:8888".parse().unwrap());
            connects(&net, (GATEWAY, 8888).into())
        },
    );
    table.differs(
        "an address of the subnet that nobody has",
        "addresses inside the subnet that nobody has",
        "RST",
        "SYN-ACK",
        |on| {
            let host = Host::new("nameserver 127.0.0.1\n");
            host.run(["ip", "addr", "add", "192.168.127.77/32", "dev", "lo"]);
            let _listener = host.listen("192.168.127.77:8888".parse().unwrap());
            let daemon = on.daemon().through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            assert!(wire.is_alive());
            Tcp::new(Ipv4Addr::new(192, 168, 127, 77), 8888).open(&mut wire)
        },
    );
    table.same("10.54 a loopback address as destination", "silence", |on| {
        let host = Host::new("nameserver 127.0.0.1\n");
        let listener = host.listen("127.0.0.1:0".parse().unwrap());
        let daemon = on.daemon().through(host.prefix()).start();
        let mut wire = Wire::plug(&daemon);
        assert!(wire.is_alive());
        Tcp::new(Ipv4Addr::LOCALHOST, listener.local_addr().unwrap().port()).open(&mut wire)
    });
    table.same(
        "10.57 segments with wrong checksums, one of 29000 bytes",
        "SYN-ACK; 29000 bytes reach the host",
        |on| {
            let host = Host::new("nameserver 127.0.0.1\n");
            let listener = host.listen("127.0.0.1:0".parse().unwrap());
            let daemon = on.daemon().through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            assert!(wire.is_alive());
            let mut tcp = Tcp::new(HOST, listener.local_addr().unwrap().port());
            let opened = tcp.open(&mut wire);
            tcp.send(&mut wire, &[7; 29_000]);
            let mut stream = accept(&listener);
            let mut bytes = vec![0; 29_000];
            let whole = stream.read_exact(&mut bytes).is_ok() && bytes == [7; 29_000];
            format!("{opened}; {} bytes reach the host", if whole { 29_000 } else { 0 })
        },
    );
    table.differs(
        "what a SYN-ACK offers",
        "TCP timestamps",
        "MSS 1460, SACK, window scale",
        "MSS 1460, SACK, timestamps, window scale",
        |on| {
            let host = Host::new("nameserver 127.0.0.1\n");
            let listener = host.listen("127.0.0.1:0".parse().unwrap());
            let daemon = on.daemon().args(["-mtu", "1500"]).through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            assert!(wire.is_alive());
            Tcp::new(HOST, listener.local_addr().unwrap().port()).offered(&mut wire)
        },
    );
    table.differs(
        "10.58 ten SYNs to a black hole, and another connection",
        "connects in flight",
        "connected",
        "TimedOut late",
        |on| {
            let net = on.net([]);
            let listener = net.host.listen("127.0.0.1:0".parse().unwrap());
            let held: Vec<_> = (0..10)
                .map(|n| {
                    let socket = net.guest.tcp();
                    socket.set_nonblocking(true).unwrap();
                    let _ = socket.connect(&SocketAddr::from((BLACK_HOLE, 1000 + n)).into());
                    socket
                })
                .collect();
            let seen = connects(&net, (HOST, listener.local_addr().unwrap().port()).into());
            drop(held);
            seen
        },
    );
    table.differs(
        "10.59 a guest that gives up while it is connected",
        "a guest that resets while it is connected",
        "SYN-ACK; the host's connection is closed",
        "SYN-ACK; the host's connection is left open",
        |on| {
            let host = Host::new("nameserver 127.0.0.1\n");
            let listener = host.listen("127.0.0.1:0".parse().unwrap());
            let daemon = on.daemon().through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            assert!(wire.is_alive());
            let mut tcp = Tcp::new(HOST, listener.local_addr().unwrap().port());
            let opened = tcp.open(&mut wire);
            let mut stream = accept(&listener);
            tcp.reset(&mut wire);
            stream.set_read_timeout(Some(IN_VAIN)).unwrap();
            let end = match uninterrupted(|| stream.read(&mut [0; 4])) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => "is left open",
                _ => "is closed",
            };
            format!("{opened}; the host's connection {end}")
        },
    );
    for (name, flags) in
        [("without a flag", &[][..]), ("10.73 with -ec2-metadata-access", &["-ec2-metadata-access"])]
    {
        let drive = move |on: &On| {
            let host = Host::new("nameserver 127.0.0.1\n");
            host.run(["ip", "addr", "add", "169.254.169.254/32", "dev", "lo"]);
            let daemon = on.daemon().args(flags).through(host.prefix()).start();
            let guest = Guest::start(plug(&daemon), MAC_TEXT, 1500);
            guest.configure("192.168.127.2/24", Some("192.168.127.1"));
            let net = Net { guest, daemon, host };
            let service = net.host.udp("169.254.169.254:0".parse().unwrap());
            service.set_read_timeout(Some(SILENCE)).unwrap();
            let _listener = net.host.listen("169.254.169.254:80".parse().unwrap());
            net.guest.udp("0.0.0.0:0".parse().unwrap()).send_to(b"?", service.local_addr().unwrap()).unwrap();
            let heard = service.recv(&mut [0; 4]).is_ok();
            format!("{}, UDP {heard}", connects(&net, "169.254.169.254:80".parse().unwrap()))
        };
        let off = "ConnectionRefused at once, UDP false";
        match flags {
            [] => table.same("the metadata address", off, drive),
            _ => table.differs(name, "`-ec2-metadata-access`", "connected, UDP true", off, drive),
        }
    }
    table.same("a connection to the ssh port before the guest is there", "made, then closed", |on| {
        let host = Host::new("nameserver 127.0.0.1\n");
        let port = testkit::free_port();
        let _daemon = on.daemon().args(["-ssh-port", &port.to_string()]).through(host.prefix()).start();
        let mut early = impatient(host.connect(([127, 0, 0, 1], port).into()).expect("the ssh port"));
        match uninterrupted(|| early.read(&mut [0; 16])) {
            Ok(1..) => "made, then answered",
            Err(error) if error.kind() == ErrorKind::WouldBlock => "made, then nothing",
            _ => "made, then closed",
        }
        .to_owned()
    });
}

fn udp_flows(table: &mut Table) {
    table.same(
        "datagrams of every size there and back",
        "[true, true, true, true, true], 1 port on the host",
        |on| {
            let net = on.net([]);
            let service = net.host.udp("127.0.0.1:0".parse().unwrap());
            let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
            for socket in [&service, &client] {
                socket.set_read_timeout(Some(PATIENCE)).unwrap();
            }
            let to = (HOST, service.local_addr().unwrap().port());
            let mut buffer = vec![0; 65_536];
            let mut ports = std::collections::BTreeSet::new();
            let sizes = [1, 1472, 1473, 9000, 65_507].map(|length| {
                let payload = vec![length as u8; length];
                client.send_to(&payload, to).unwrap();
                let (got, from) = service.recv_from(&mut buffer).expect("a datagram");
                ports.insert(from);
                let there = buffer[..got] == payload;
                service.send_to(&payload, from).unwrap();
                let (back, who) = client.recv_from(&mut buffer).expect("an answer");
                there && buffer[..back] == payload && who == to.into()
            });
            format!("{sizes:?}, {} port on the host", ports.len())
        },
    );
    table.same("answers of strangers stay outside", "friend", |on| {
        let net = on.net([]);
        let service = net.host.udp("127.0.0.1:0".parse().unwrap());
        let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
        for socket in [&service, &client] {
            socket.set_read_timeout(Some(PATIENCE)).unwrap();
        }
        client.send_to(b"hello", (HOST, service.local_addr().unwrap().port())).unwrap();
        let mut buffer = [0; 16];
        let (_, from) = service.recv_from(&mut buffer).unwrap();
        net.host.udp("127.0.0.1:0".parse().unwrap()).send_to(b"stranger", from).unwrap();
        service.send_to(b"friend", from).unwrap();
        let length = client.recv(&mut buffer).unwrap();
        String::from_utf8_lossy(&buffer[..length]).into_owned()
    });
    table.differs(
        "10.60 an empty datagram",
        "zero-length datagrams",
        "there true, back true, the flow lives true",
        "there false, back false, the flow lives false",
        |on| {
            let net = on.net([]);
            let service = net.host.udp("127.0.0.1:0".parse().unwrap());
            service.set_read_timeout(Some(PATIENCE)).unwrap();
            let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
            let to = (HOST, service.local_addr().unwrap().port());
            client.send_to(b"first", to).unwrap();
            let mut buffer = [0; 16];
            let (_, from) = service.recv_from(&mut buffer).expect("the first");
            client.send_to(b"", to).unwrap();
            service.set_read_timeout(Some(SILENCE)).unwrap();
            let there = service.recv(&mut buffer).is_ok();
            client.set_read_timeout(Some(SILENCE)).unwrap();
            service.send_to(b"", from).unwrap();
            let back = client.recv(&mut buffer).is_ok();
            service.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"last", to).unwrap();
            let (_, again) = service.recv_from(&mut buffer).expect("the last");
            format!("there {there}, back {back}, the flow lives {}", again == from)
        },
    );
    for (row, name, to) in [("", "the host", HOST), ("10.53", "the gateway", GATEWAY)] {
        table.differs(
            format!("{row} a UDP port of {name} that nobody has").trim(),
            "UDP to a closed port",
            "ConnectionRefused",
            "silence",
            move |on| {
                let net = on.net([]);
                let client = net.guest.udp("0.0.0.0:0".parse().unwrap());
                client.connect((to, 9)).unwrap();
                client.set_read_timeout(Some(SILENCE)).unwrap();
                let mut seen = "silence".to_owned();
                for _ in 0..3 {
                    let error = match client.send(b"anyone?") {
                        Ok(_) => client.recv(&mut [0; 16]).expect_err("nobody there"),
                        Err(error) => error,
                    };
                    if error.kind() != ErrorKind::WouldBlock {
                        seen = format!("{:?}", error.kind());
                    }
                }
                seen
            },
        );
    }
    table.same(
        "9.33 a UDP port of the guest, exposed and taken back",
        "200; from 192.168.127.1; answer; 200",
        |on| {
            let net = on.net(SERVED);
            let service = net.guest.udp("0.0.0.0:53".parse().unwrap());
            service.set_read_timeout(Some(PATIENCE)).unwrap();
            let wish = r#"{"local":":1053","remote":"192.168.127.2:53","protocol":"udp"}"#;
            let exposed = crate::web::post(&net.daemon, crate::web::EXPOSE, wish);
            let client = net.host.udp("127.0.0.1:0".parse().unwrap());
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.send_to(b"question", "127.0.0.1:1053").unwrap();
            let mut buffer = [0; 16];
            let (_, from) = service.recv_from(&mut buffer).expect("the question");
            service.send_to(b"answer", from).unwrap();
            let length = client.recv(&mut buffer).expect("the answer");
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let taken = crate::web::post(&net.daemon, crate::web::UNEXPOSE, wish);
            format!("{exposed}; from {}; {answer}; {taken}", from.ip())
        },
    );
    table.differs(
        "an empty datagram to an exposed port",
        "datagrams to an exposed port",
        "carried",
        "lost",
        |on| {
            let net = on.net(SERVED);
            let service = net.guest.udp("0.0.0.0:53".parse().unwrap());
            service.set_read_timeout(Some(SILENCE)).unwrap();
            let wish = r#"{"local":":1053","remote":"192.168.127.2:53","protocol":"udp"}"#;
            crate::web::post(&net.daemon, crate::web::EXPOSE, wish);
            net.host.udp("127.0.0.1:0".parse().unwrap()).send_to(b"", "127.0.0.1:1053").unwrap();
            if service.recv(&mut [0; 4]).is_ok() { "carried" } else { "lost" }.to_owned()
        },
    );
}
