//! A guest that means harm, beside one that works: what it tries costs the other nothing. Each attack is made
//! on the binary, with frames by hand; the victim is a Linux stack. `make attack` runs these alone.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpStream};
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use etherparse::TransportSlice;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use socket2::SockRef;
use testkit::cable::{Cable, Framing};
use testkit::daemon::Daemon;
use testkit::dns::{A, NOERROR, Scripted, answer, is_about, question, try_ask_udp};
use testkit::frames::{
    ACK, BROADCAST, GATEWAY_MAC, ICMP, IPV4, SYN, TCP, UDP, Wire, arp, echo_request, ether, fragment, ipv4,
    is_echo_reply, read_arp, read_ipv4, read_transport, tcp, udp,
};
use testkit::guest::Guest;
use testkit::http::{ask, ask_and_keep};
use testkit::net::{GATEWAY, HOST, Host};
use testkit::traffic::{accept, impatient, transfer};
use testkit::uninterrupted;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

/// The victim is the machine that the network was made for, with the address of its reservation.
const VICTIM: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const VICTIM_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
const THIEF: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 66);
const THIEF_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 6, 6, 6];
/// A third one, where there is one.
const OTHER_MAC: [u8; 6] = [2, 7, 7, 7, 7, 7];
const PATIENCE: Duration = Duration::from_secs(10);
/// What the test waits for something that must not come.
const SILENCE: Duration = Duration::from_millis(300);

/// Two guests of one daemon.
struct Network {
    victim: Guest,
    thief: Wire,
    daemon: Daemon,
    host: Host,
    ssh_port: u16,
}

impl Network {
    fn start() -> Self {
        Self::of(Daemon::builder())
    }

    fn of(builder: testkit::daemon::Builder) -> Self {
        let (host, ssh_port) = (Host::new("nameserver 127.0.0.1\n"), free_port());
        let port = ssh_port.to_string();
        let args = ["-keep-running", "-ssh-port", &port, "-listen", "unix://{dir}/api"];
        let daemon = builder.args(args).through(host.prefix()).start();
        let victim = Guest::start(testkit::net::plug(&daemon), testkit::guest::MAC, 1500);
        assert_eq!(victim.dhcp().ip(), VICTIM);
        let mut network = Self { thief: Wire::plug(&daemon), victim, daemon, host, ssh_port };
        network.thief.send(&arp(1, THIEF_MAC, THIEF, [0; 6], GATEWAY));
        assert!(network.thief_hears(|frame| read_arp(frame).is_some(), PATIENCE), "the gateway");
        network
    }

    fn thief_hears(&self, wanted: impl Fn(&[u8]) -> bool, patience: Duration) -> bool {
        self.thief.receive(patience, |frame| frame.len() >= 42 && wanted(frame)).is_some()
    }

    /// The victim's services and ways out work, and what the host opens to it reaches it.
    #[track_caller]
    fn assert_victim_works(&self, service: &std::net::TcpListener) {
        assert!(self.victim.ping(GATEWAY, 56), "the gateway");
        let outside = impatient(self.host.connect(([127, 0, 0, 1], self.ssh_port).into()).expect("the port"));
        let inside = accept(service);
        transfer(&outside, &inside, 1 << 20);
        transfer(&inside, &outside, 1 << 20);
        let listener = self.host.listen("127.0.0.1:0".parse().unwrap());
        let to = (HOST, listener.local_addr().unwrap().port()).into();
        let inside = impatient(self.victim.connect(to).expect("the host"));
        transfer(&inside, &accept(&listener), 1 << 20);
    }

    fn api(&self, method: &str, path: &str, body: &str) -> testkit::http::Answer {
        let socket = self.daemon.dir().join("api");
        let stream = eventually("the API", PATIENCE, || UnixStream::connect(&socket).ok());
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(stream, method, path, body)
    }
}

/// Whether `frame` has an IPv4 packet of one of the `protocols`, sound or not.
fn holds(frame: &[u8], protocols: &[u8]) -> bool {
    read_ipv4(frame).is_some_and(|header| protocols.contains(&header.protocol().0))
}

/// What a guest says of an address: in a request, in an answer to the gateway, and in one to the victim.
fn claims(ip: Ipv4Addr, mac: [u8; 6]) -> [Vec<u8>; 3] {
    let answer = |to: [u8; 6], ip_of: Ipv4Addr| {
        let mut frame = arp(2, mac, ip, to, ip_of);
        frame[..6].copy_from_slice(&to);
        frame
    };
    [arp(1, mac, ip, [0; 6], ip), answer(GATEWAY_MAC, GATEWAY), answer(VICTIM_MAC, VICTIM)]
}

#[test]
fn forwards_lead_to_whom_they_are_for() {
    let mut network = Network::start();
    let service = network.victim.listen("0.0.0.0:22".parse().unwrap());
    network.assert_victim_works(&service);
    for mac in [THIEF_MAC, VICTIM_MAC] {
        for frame in claims(VICTIM, mac) {
            let mut forged = frame;
            // With its own address in front, and with the victim's.
            forged[6..12].copy_from_slice(&THIEF_MAC);
            network.thief.send(&forged);
            forged[6..12].copy_from_slice(&mac);
            network.thief.send(&forged);
        }
        network.assert_victim_works(&service);
    }
    let is_segment = |frame: &[u8]| holds(frame, &[TCP]);
    assert!(!network.thief_hears(is_segment, SILENCE), "the thief is dialled");
    let log = network.daemon.log_with("a machine speaks as another one");
    assert_eq!(log.matches("a machine speaks as another one").count(), 1, "{log}");
}

#[test]
fn the_gateways_api_knows_who_asks() {
    let mut network = Network::start();
    let to = (GATEWAY, 80).into();
    let port = free_port();
    let wish = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:22","protocol":"tcp"}}"#);
    let expose = |stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        ask(stream, "POST", "/services/forwarder/expose", &wish)
    };
    assert_eq!(expose(network.victim.connect(to).expect("the gateway")).status, 200);
    // A SYN as the victim, from either hardware address; and the flow's key is free for the victim itself.
    for mac in [THIEF_MAC, VICTIM_MAC] {
        let syn = ipv4(TCP, VICTIM, GATEWAY, &tcp(50_000, 80, 1, 0, SYN, &[]));
        network.thief.send(&ether(GATEWAY_MAC, mac, IPV4, &syn));
        let ack = ipv4(TCP, VICTIM, GATEWAY, &tcp(50_000, 80, 2, 1, ACK, b"GET / HTTP/1.1\r\n\r\n"));
        network.thief.send(&ether(GATEWAY_MAC, mac, IPV4, &ack));
    }
    let is_answer = |frame: &[u8]| holds(frame, &[TCP]);
    assert!(!network.thief_hears(is_answer, SILENCE), "an answer to the thief");
    let stats = network.api("GET", "/stats", "").json();
    assert_eq!(stats["TCP"]["CurrentConnected"], 0, "{stats}");
}

#[test]
fn nobody_answers_in_the_gateways_name() {
    let mut network = Network::start();
    let heard = network.victim.udp("0.0.0.0:5353".parse().unwrap());
    heard.set_read_timeout(Some(SILENCE)).unwrap();
    let datagram = |from: Ipv4Addr, port: u16, to: u16| {
        ether(VICTIM_MAC, THIEF_MAC, IPV4, &ipv4(UDP, from, VICTIM, &udp(port, to, b"an answer")))
    };
    network.thief.send(&datagram(THIEF, 53, 5353));
    let mut bytes = [0; 64];
    let (_, from) = heard.recv_from(&mut bytes).expect("what a guest says as itself arrives");
    assert_eq!(from.ip(), THIEF);
    for from in [GATEWAY, HOST, VICTIM, Ipv4Addr::new(127, 0, 0, 1)] {
        for (source, to) in [(53, 5353), (67, 5353)] {
            network.thief.send(&datagram(from, source, to));
        }
    }
    network.thief.send(&datagram(THIEF, 67, 5353));
    assert!(heard.recv_from(&mut bytes).is_err(), "a forged datagram");
    // Whom the victim takes for the gateway, and as what a frame with a tag of no VLAN comes in.
    for ip in [GATEWAY, HOST] {
        for mut frame in claims(ip, THIEF_MAC) {
            network.thief.send(&frame);
            frame.splice(12..12, [0x81, 0, 0, 0]);
            network.thief.send(&frame);
        }
    }
    assert!(network.victim.ping(GATEWAY, 56));
    let neighbours = network.victim.run(["ip", "neigh"]);
    assert!(!neighbours.contains("06:06:06"), "{neighbours}");
}

/// A DHCP message without an address, from this hardware address, about that client.
fn dhcp(kind: u8, from: [u8; 6], client: [u8; 6], own: Ipv4Addr) -> Vec<u8> {
    let mut message = vec![0; 240];
    message[..4].copy_from_slice(&[1, 1, 6, 0]);
    message[12..16].copy_from_slice(&own.octets());
    message[28..34].copy_from_slice(&client);
    message[236..240].copy_from_slice(&[99, 130, 83, 99]);
    message.extend([53, 1, kind]);
    if kind == 4 {
        message.extend([50, 4]);
        message.extend(own.octets());
    }
    message.push(255);
    let sent = ipv4(UDP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp(68, 67, &message));
    ether(BROADCAST, from, IPV4, &sent)
}

#[test]
fn leases_are_of_whom_they_were_given_to() {
    const RELEASE: u8 = 7;
    const DECLINE: u8 = 4;
    let mut network = Network::start();
    let other = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:03", 1500);
    let ip = other.dhcp().ip();
    let mac = [0x5a, 0x94, 0xef, 0, 0, 3];
    for kind in [RELEASE, DECLINE] {
        for from in [THIEF_MAC, mac] {
            network.thief.send(&dhcp(kind, from, mac, ip));
        }
    }
    // Everything that there is, twice.
    for number in 0..600_u16 {
        let [high, low] = number.to_be_bytes();
        network.thief.send(&dhcp(1, THIEF_MAC, [2, 6, 6, 6, high, low], Ipv4Addr::UNSPECIFIED));
    }
    let leases = network.api("GET", "/services/dhcp/leases", "").json();
    assert_eq!(leases[ip.to_string()], "5a:94:ef:00:00:03", "{leases}");
    let late = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:04", 1500);
    let lease = late.dhcp().ip();
    assert!(lease != ip && late.ping(GATEWAY, 56), "{lease}");
    assert!(other.ping(GATEWAY, 56) && other.dhcp().ip() == ip);
}

#[test]
fn what_is_for_one_guest_reaches_no_other() {
    let mut network = Network::start();
    for number in 0..20_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let mac = [2, 6, 6, b, c, d];
        network.thief.send(&ether(GATEWAY_MAC, mac, 0x88b5, b"somebody new"));
    }
    let late = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:04", 1500);
    let ip = late.dhcp().ip();
    assert!(network.victim.ping(ip, 56));
    // What came to everybody until then.
    let own = ipv4(ICMP, THIEF, GATEWAY, &echo_request(7));
    network.thief.send(&ether(GATEWAY_MAC, THIEF_MAC, IPV4, &own));
    let is_own = |frame: &[u8]| frame.starts_with(&THIEF_MAC) && is_echo_reply(frame, 7);
    assert!(network.thief_hears(is_own, PATIENCE), "the gateway's answer");
    let listener = late.listen("0.0.0.0:80".parse().unwrap());
    let inside = impatient(network.victim.connect((ip, 80).into()).expect("the other guest"));
    let outside = accept(&listener);
    transfer(&inside, &outside, 1 << 20);
    transfer(&outside, &inside, 1 << 20);
    let is_copy = |frame: &[u8]| holds(frame, &[TCP]);
    assert!(!network.thief_hears(is_copy, SILENCE), "frames of others reach the thief");
}

/// The longest of many round trips of the victim's to the gateway while the thief sends `frames` again and
/// again, and how many had none.
fn waits(network: &mut Network, frames: &[Vec<u8>]) -> (Duration, usize) {
    let mut wire = Wire::plug(&network.daemon);
    let (ip, mac) = (Ipv4Addr::new(192, 168, 127, 77), OTHER_MAC);
    wire.send(&arp(1, mac, ip, [0; 6], GATEWAY));
    let over = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let thief = &mut network.thief;
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for some in frames.chunks(500) {
                    thief.send_all(some.iter().map(Vec::as_slice));
                }
            }
        });
        let (mut longest, mut lost) = (Duration::ZERO, 0);
        for number in 0..300_u16 {
            let start = Instant::now();
            wire.send(&ether(GATEWAY_MAC, mac, IPV4, &ipv4(ICMP, ip, GATEWAY, &echo_request(number))));
            match wire.receive(PATIENCE, |frame| is_echo_reply(frame, number)) {
                Some(_) => longest = longest.max(start.elapsed()),
                None => lost += 1,
            }
        }
        over.store(true, Ordering::Relaxed);
        (longest, lost)
    })
}

#[test]
fn a_flood_of_any_kind_leaves_others_their_time() {
    /// Two processors carry the flood, the daemon and the test; without a bound it was seconds.
    const BOUND: Duration = Duration::from_millis(150);
    let mut network = Network::start();
    let listener = network.host.listen("127.0.0.1:0".parse().unwrap());
    let (open, closed) = (listener.local_addr().unwrap().port(), free_port());
    let ports = || 1025..=u16::MAX;
    let to_host = |protocol: u8, payload: &[u8]| {
        ether(GATEWAY_MAC, THIEF_MAC, IPV4, &ipv4(protocol, THIEF, HOST, payload))
    };
    let syns = |port: u16| ports().map(|from| to_host(TCP, &tcp(from, port, 1, 0, SYN, &[]))).collect();
    let floods: [(&str, Vec<Vec<u8>>); 6] = [
        ("SYNs to a service", syns(open)),
        ("SYNs to a closed port", syns(closed)),
        ("flows of datagrams", ports().map(|from| to_host(UDP, &udp(from, 9, b"x"))).collect()),
        (
            "questions to everybody",
            vec![arp(1, THIEF_MAC, THIEF, [0; 6], Ipv4Addr::new(192, 168, 127, 200)); 1000],
        ),
        ("frames for the other one", vec![ether(OTHER_MAC, THIEF_MAC, 0x88b5, &[]); 1000]),
        (
            "fragments",
            (0..1000)
                .map(|id| {
                    ether(GATEWAY_MAC, THIEF_MAC, IPV4, &fragment(UDP, THIEF, HOST, id, 0, true, &[0; 64]))
                })
                .collect(),
        ),
    ];
    for (what, frames) in floods {
        let (longest, lost) = waits(&mut network, &frames);
        let fds = network.daemon.fds();
        eprintln!("{what}: at most {longest:?}, {lost} of 300 lost, {fds} descriptors");
        assert!(longest < BOUND && lost == 0, "{what}: {longest:?}, {lost} lost");
        // Connects of one guest that are under way, and flows of one guest's datagrams.
        assert!(fds < 6000, "{what}: {fds} descriptors");
    }
}

/// The one in the middle, and the one that 99 of 100 are shorter than.
fn middle_and_last(waits: &mut [Duration]) -> (Duration, Duration) {
    waits.sort_unstable();
    (waits[waits.len() / 2], waits[waits.len() * 99 / 100])
}

/// Connections on which a guest sends a byte each, again and again: each of them costs the daemon a write.
#[test]
fn thousands_of_busy_connections_take_nobodys_turn() {
    const CONNECTIONS: u16 = 3000;
    /// It was 80 ms and more, and grew with the connections.
    const BOUND: Duration = Duration::from_millis(25);
    let mut network = Network::start();
    let [sink, echo] = [(); 2].map(|()| network.host.listen("127.0.0.1:0".parse().unwrap()));
    let [to_sink, to_echo] = [&sink, &echo].map(|listener| listener.local_addr().unwrap().port());
    let to_host = |segment: &[u8]| ether(GATEWAY_MAC, THIEF_MAC, IPV4, &ipv4(TCP, THIEF, HOST, segment));
    let ports = 10_000..10_000 + CONNECTIONS;
    let accepted = std::thread::spawn(move || {
        (0..CONNECTIONS).map(|_| sink.accept().expect("a connection").0).collect::<Vec<_>>()
    });
    // The host's first sequence number of each.
    let mut numbers = Vec::new();
    for port in ports.clone() {
        network.thief.send(&to_host(&tcp(port, to_sink, 1, 0, SYN, &[])));
        let number = |frame: &[u8]| match read_transport(frame)? {
            TransportSlice::Tcp(segment) if segment.destination_port() == port && segment.syn() => {
                Some(segment.sequence_number().wrapping_add(1))
            }
            _ => None,
        };
        let answer = network.thief.receive(PATIENCE, |frame| number(frame).is_some()).expect("a SYN-ACK");
        let number = number(&answer).unwrap();
        network.thief.send(&to_host(&tcp(port, to_sink, 2, number, ACK, &[])));
        numbers.push(number);
    }
    let held = accepted.join().unwrap();

    let client = impatient(network.victim.connect((HOST, to_echo).into()).expect("the host"));
    let mut server = accept(&echo);
    std::thread::spawn(move || std::io::copy(&mut server.try_clone().unwrap(), &mut server));
    client.set_nodelay(true).unwrap();
    let over = AtomicBool::new(false);
    let mut waits: Vec<Duration> = std::thread::scope(|scope| {
        let thief = &mut network.thief;
        scope.spawn(|| {
            for round in 2.. {
                let segment =
                    |(port, number): (u16, &u32)| to_host(&tcp(port, to_sink, round, *number, ACK, b"x"));
                let frames: Vec<_> = ports.clone().zip(&numbers).map(segment).collect();
                for some in frames.chunks(100) {
                    if over.load(Ordering::Relaxed) {
                        return;
                    }
                    thief.send_all(some.iter().map(Vec::as_slice));
                }
            }
        });
        let begin = Instant::now();
        let waits = std::iter::from_fn(|| {
            let start = Instant::now();
            (&client).write_all(b"x").unwrap();
            (&client).read_exact(&mut [0]).unwrap();
            (begin.elapsed() < Duration::from_secs(3)).then(|| start.elapsed())
        });
        let waits = waits.collect();
        over.store(true, Ordering::Relaxed);
        waits
    });
    let (middle, last) = middle_and_last(&mut waits);
    eprintln!("{CONNECTIONS} busy connections: a byte there and back takes {middle:?}, at p99 {last:?}");
    assert!(middle < BOUND, "{middle:?}, at p99 {last:?}");
    drop(held);
}

/// What the daemon's other thread does for a guest: requests to the gateway, and questions by TCP, on
/// hundreds of connections as fast as their answers come.
#[test]
fn what_a_guest_asks_without_end_keeps_nobody_waiting() {
    /// In the middle it was 40 ms and more, and grew with the connections.
    const BOUND: Duration = Duration::from_millis(20);
    let network = Network::start();
    let _server = Scripted::start(&network.host, "127.0.0.1", |question| {
        Some((Duration::ZERO, answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    let greedy = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:07", 1500);
    greedy.dhcp();
    let request = b"GET /services/forwarder/all HTTP/1.1\r\nHost: gateway\r\n\r\n".repeat(16);
    let asked = question("greedy.example", A, None);
    let by_tcp = [&u16::try_from(asked.len()).unwrap().to_be_bytes(), &asked[..]].concat().repeat(32);
    for (what, port, words) in [("requests", 80, request), ("questions", 53, by_tcp)] {
        let connect = || {
            let stream = greedy.connect((GATEWAY, port).into()).expect("the gateway");
            stream.set_nonblocking(true).unwrap();
            stream
        };
        let mut streams: Vec<TcpStream> = (0..600).map(|_| connect()).collect();
        let over = AtomicBool::new(false);
        let waits = std::thread::scope(|scope| {
            let flood = scope.spawn(|| {
                let (mut answers, mut buffer) = (0, vec![0; 64 << 10]);
                streams.iter_mut().for_each(|stream| drop(stream.write(&words)));
                while !over.load(Ordering::Relaxed) {
                    let mut polled: Vec<_> =
                        streams.iter().map(|stream| PollFd::new(stream, PollFlags::IN)).collect();
                    poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 100_000_000 })).unwrap();
                    let ready: Vec<bool> = polled.iter().map(|one| !one.revents().is_empty()).collect();
                    for (stream, _) in streams.iter_mut().zip(ready).filter(|(_, ready)| *ready) {
                        match uninterrupted(|| stream.read(&mut buffer)) {
                            Ok(read @ 1..) => answers += read,
                            // It may ask so much on one connection.
                            _ => *stream = connect(),
                        }
                        let _ = stream.write(&words);
                    }
                }
                answers
            });
            let socket = network.victim.udp("0.0.0.0:0".parse().unwrap());
            let begin = Instant::now();
            let mut waits = [Vec::new(), Vec::new()];
            for number in 0.. {
                if begin.elapsed() > Duration::from_secs(5) {
                    break;
                }
                let [operator, name] = &mut waits;
                let start = Instant::now();
                assert_eq!(network.api("GET", "/stats", "").status, 200);
                operator.push(start.elapsed());
                let (start, asked) = (Instant::now(), question(&format!("living{number}.example"), A, None));
                try_ask_udp(&socket, (GATEWAY, 53).into(), &asked, PATIENCE).expect("an answer");
                name.push(start.elapsed());
            }
            over.store(true, Ordering::Relaxed);
            let answers = flood.join().unwrap();
            eprintln!("{what}: {answers} bytes of answers");
            assert!(answers > 100_000, "it is answered, too");
            waits
        });
        for (whose, mut waits) in ["the operator's request", "another's name"].into_iter().zip(waits) {
            let (middle, last) = middle_and_last(&mut waits);
            eprintln!("{what}: {whose} takes {middle:?}, at p99 {last:?}, of {}", waits.len());
            assert!(middle < BOUND, "{what}: {whose} takes {middle:?}, at p99 {last:?}");
        }
    }
}

#[test]
fn no_guest_reaches_what_is_for_the_operator() {
    let host = Host::new("nameserver 127.0.0.1\n");
    host.run(["ip", "addr", "add", "198.51.100.7/32", "dev", "lo"]);
    let [api, services, all, link, forward, other] = [(); 6].map(|()| free_port());
    let [api_url, services_url, all_url, link_url, forward_url] = [
        format!("tcp://127.0.0.1:{api}"),
        format!("tcp://127.0.0.1:{services}"),
        format!("tcp://0.0.0.0:{all}"),
        format!("tcp://127.0.0.1:{link}"),
        format!("tcp://127.0.0.1:{forward}"),
    ];
    let args = ["-listen", &api_url, "-listen", &all_url, "-services", &services_url];
    let sockets =
        ["-listen-vpnkit", &link_url, "-forward-sock", &forward_url, "-forward-dest", "unix:///nowhere"];
    let daemon =
        Daemon::builder().without_qemu().args(args).args(sockets).args(["-listen", "unix://{dir}/api"]);
    let daemon = daemon.through(host.prefix()).start();
    let mut stream = eventually("the API", PATIENCE, || UnixStream::connect(daemon.dir().join("api")).ok());
    stream.write_all(b"POST /connect HTTP/1.1\r\nHost: \r\n\r\n").unwrap();
    let guest = Guest::start(Cable::new(stream, Framing::Little16), testkit::guest::MAC, 1500);
    guest.dhcp();
    let _service = host.listen(([127, 0, 0, 1], other).into());
    assert!(guest.connect((HOST, other).into()).is_ok(), "a service of the host");
    for (what, port) in
        [("-listen", api), ("-services", services), ("a link", link), ("a forward", forward), ("all", all)]
    {
        assert!(host.connect(([127, 0, 0, 1], port).into()).is_ok(), "{what} is there");
        let refused = guest.connect((HOST, port).into()).expect_err(what);
        assert_eq!(refused.kind(), std::io::ErrorKind::ConnectionRefused, "{what}");
    }
    for to in [Ipv4Addr::new(198, 51, 100, 7), HOST] {
        assert!(guest.connect((to, all).into()).is_err(), "{to}");
    }
}

#[test]
fn pages_of_others_bring_no_machine_and_open_nothing() {
    let host = Host::new("nameserver 127.0.0.1\n");
    let port = free_port();
    let url = format!("tcp://127.0.0.1:{port}");
    let daemon = Daemon::builder().without_qemu().args(["-listen", &url]).through(host.prefix()).start();
    let ask = |path: &str, site: &str| {
        let connect = || host.connect(([127, 0, 0, 1], port).into()).ok();
        let mut stream = impatient(eventually("the API", PATIENCE, connect));
        stream.set_read_timeout(Some(SILENCE)).unwrap();
        let site = if site.is_empty() { String::new() } else { format!("Sec-Fetch-Site: {site}\r\n") };
        write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n{site}\r\n").unwrap();
        let mut answer = [0; 12];
        stream
            .read_exact(&mut answer)
            .map_or(String::new(), |()| String::from_utf8_lossy(&answer).into_owned())
    };
    for path in ["/connect", "/tunnel?ip=192.168.127.2&port=22", "/services/forwarder/all"] {
        for site in ["cross-site", "same-site"] {
            assert_eq!(ask(path, site), "HTTP/1.1 403", "{path} from {site}");
        }
    }
    for site in ["", "none", "same-origin"] {
        assert_eq!(ask("/services/forwarder/all", site), "HTTP/1.1 200", "{site}");
    }
    // Who connects again and again does not fill the log.
    let shown = |text: &str| daemon.stderr().matches(text).count();
    for _ in 0..100 {
        let mut stream = host.connect(([127, 0, 0, 1], port).into()).expect("the API");
        stream.write_all(b"GET /connect HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    }
    eventually("links that end", PATIENCE, || (shown("virtual machine left") >= 10).then_some(()));
    assert_eq!(ask("/services/forwarder/all", ""), "HTTP/1.1 200");
    let log = daemon.stderr();
    assert!(log.matches("virtual machine").count() <= 20, "{log}");
}

/// A local process that sends descriptors to the socket of vfkit.
#[test]
fn descriptors_that_are_sent_along_are_closed() {
    use rustix::net::{SendAncillaryBuffer, SendAncillaryMessage, SendFlags, sendmsg_addr};
    use std::os::fd::AsFd;
    let daemon = Daemon::builder()
        .without_qemu()
        .args(["-listen-vfkit", "unixgram://{dir}/v", "-keep-running"])
        .start();
    let path = daemon.dir().join("v");
    eventually("the socket", PATIENCE, || path.exists().then_some(()));
    let before = daemon.fds();
    let (socket, null) =
        (std::os::unix::net::UnixDatagram::unbound().unwrap(), std::fs::File::open("/dev/null").unwrap());
    let to = rustix::net::SocketAddrUnix::new(daemon.dir().join("v")).unwrap();
    for _ in 0..50 {
        let mut space = [std::mem::MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(4))];
        let mut control = SendAncillaryBuffer::new(&mut space);
        let some = [null.as_fd(); 4];
        assert!(control.push(SendAncillaryMessage::ScmRights(&some)));
        let bytes = [std::io::IoSlice::new(b"a datagram")];
        sendmsg_addr(&socket, &to, &bytes, &mut control, SendFlags::empty()).unwrap();
    }
    eventually("all is read", PATIENCE, || daemon.stderr().contains("cannot answer who sends").then_some(()));
    let named = std::os::unix::net::UnixDatagram::bind(daemon.dir().join("w")).unwrap();
    named.send_to(b"VFKT", daemon.dir().join("v")).unwrap();
    eventually("the machine", PATIENCE, || {
        daemon.stderr().contains("virtual machine connected").then_some(())
    });
    // The machine's link and its process.
    let after = daemon.fds();
    assert!(after <= before + 4, "{before} descriptors before, {after} after");
}

/// A user of the host who may write where root's daemon is told to.
#[test]
fn nobody_leads_root_to_another_file() {
    const NOBODY: u32 = 65_534;
    let dir = tempfile::tempdir().unwrap();
    let (precious, link) = (dir.path().join("precious"), dir.path().join("link"));
    for flag in ["-pid-file", "-log-file", "-pcap"] {
        std::fs::write(&precious, "precious").unwrap();
        for (target, what) in [(precious.clone(), "what is there"), (dir.path().join("new"), "what is not")] {
            std::os::unix::fs::symlink(&target, &link).unwrap();
            std::os::unix::fs::lchown(&link, Some(NOBODY), Some(NOBODY)).unwrap();
            let mut daemon = Daemon::builder().args([flag, link.to_str().unwrap()]).spawn();
            let status = daemon.wait(PATIENCE).expect("the end of the daemon");
            assert_eq!(status.code(), Some(1), "{flag}, {what}: {}", daemon.stderr());
            assert!(daemon.stderr().contains("a link of another user's, 65534"), "{}", daemon.stderr());
            assert!(!dir.path().join("new").exists(), "{flag}");
            std::fs::remove_file(&link).unwrap();
        }
        assert_eq!(std::fs::read_to_string(&precious).unwrap(), "precious", "{flag}");
        // A link of one's own is followed, as /dev/stderr is one.
        std::os::unix::fs::symlink(&precious, &link).unwrap();
        let mut daemon = Daemon::builder().args([flag, link.to_str().unwrap()]).start();
        assert!(daemon.terminate().success(), "{flag}: {}", daemon.stderr());
        let _ = std::fs::remove_file(&link);
    }
    let capture = dir.path().join("capture");
    let _daemon = Daemon::builder().args(["-pcap", capture.to_str().unwrap()]).start();
    let mode = std::os::unix::fs::PermissionsExt::mode(&capture.metadata().unwrap().permissions());
    assert_eq!(mode & 0o777, 0o600);
}

/// What a guest exposed is for itself: not for who has its address while it is gone, and not for ever.
#[test]
fn what_a_guest_exposed_leads_to_nobody_else() {
    let mut network = Network::start();
    let service = network.victim.listen("0.0.0.0:22".parse().unwrap());
    let (tcp_port, udp_port) = (free_port(), free_port());
    for (port, protocol) in [(tcp_port, "tcp"), (udp_port, "udp")] {
        let stream = network.victim.connect((GATEWAY, 80).into()).expect("the gateway");
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let wish =
            format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:22","protocol":"{protocol}"}}"#);
        assert_eq!(ask(stream, "POST", "/services/forwarder/expose", &wish).status, 200);
    }
    let at = ([127, 0, 0, 1], tcp_port).into();
    let led_to_victim = |network: &Network| {
        let outside = impatient(network.host.connect(at).expect("the port"));
        transfer(&outside, &accept(&service), 1 << 20);
    };
    led_to_victim(&network);
    // While its link is down another one has its address: clients are reset, and of them the other one sees
    // nothing.
    network.victim.switch_off();
    network.daemon.log_with("machine left");
    let knocks = |network: &Network| {
        if let Ok(client) = network.host.connect(at) {
            let mut client = impatient(client);
            let _ = client.write_all(b"a secret");
            let ended = uninterrupted(|| client.read(&mut [0]));
            assert!(!matches!(ended, Ok(1..)), "{ended:?}");
        }
        let socket = network.host.udp("127.0.0.1:0".parse().unwrap());
        socket.send_to(b"a secret", ("127.0.0.1", udp_port)).unwrap();
    };
    network.thief.send(&arp(1, THIEF_MAC, VICTIM, [0; 6], GATEWAY));
    assert!(network.thief_hears(|frame| read_arp(frame).is_some(), PATIENCE), "nobody else has it");
    knocks(&network);
    let is_led = |frame: &[u8]| holds(frame, &[TCP, UDP]);
    assert!(!network.thief_hears(is_led, SILENCE), "the other one is led to");
    // It comes back, and says nothing by itself.
    network.victim.replug(testkit::net::plug(&network.daemon));
    assert!(network.victim.ping(GATEWAY, 56), "it has its address again");
    led_to_victim(&network);
    // Gone for good, with its ports.
    network.victim.switch_off();
    let exposed = || {
        let all = network.api("GET", "/services/forwarder/all", "").json();
        let of_guests = all.as_array().unwrap().iter().filter(|one| {
            [tcp_port, udp_port].iter().any(|port| one["local"] == format!("127.0.0.1:{port}"))
        });
        of_guests.count()
    };
    assert_eq!(exposed(), 2);
    eventually("the end of what it exposed", Duration::from_secs(90), || (exposed() == 0).then_some(()));
    assert!(network.host.connect(at).is_err(), "the port is closed");
}

/// Silence for a moment costs it its address, for as long as it is silent, and not what it exposed.
#[test]
fn a_guest_that_was_silent_for_a_moment_keeps_what_it_exposed() {
    let network = Network::start();
    let by_hand = |mac: &str| {
        let guest = Guest::start(testkit::net::plug(&network.daemon), mac, 1500);
        guest.configure("192.168.127.50/24", Some("192.168.127.1"));
        guest
    };
    let port = free_port();
    let wish = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.50:22","protocol":"tcp"}}"#);
    let expose = |guest: &Guest| {
        let stream = impatient(guest.connect((GATEWAY, 80).into()).expect("the gateway"));
        ask(stream, "POST", "/services/forwarder/expose", &wish).status
    };
    let leads_to = |service: &std::net::TcpListener| {
        let outside = impatient(network.host.connect(([127, 0, 0, 1], port).into()).expect("the port"));
        transfer(&outside, &accept(service), 1 << 20);
    };
    let mut owner = by_hand("5a:94:ef:00:00:05");
    let service = owner.listen("0.0.0.0:22".parse().unwrap());
    assert_eq!(expose(&owner), 200);
    owner.hold(true);
    let other = by_hand("5a:94:ef:00:00:06");
    eventually("its address", PATIENCE, || other.ping(GATEWAY, 56).then_some(()));
    expose(&other);
    owner.hold(false);
    eventually("its address again", PATIENCE, || owner.ping(GATEWAY, 56).then_some(()));
    leads_to(&service);
    // Nobody else has it for as long as that one is there; then whoever has its address.
    owner.switch_off();
    eventually("its address", PATIENCE, || other.ping(GATEWAY, 56).then_some(()));
    assert_eq!(expose(&other), 200);
    leads_to(&other.listen("0.0.0.0:22".parse().unwrap()));
}

/// More clients of a port for datagrams than there may be: who made room for others is served again when he
/// asks.
#[test]
fn clients_that_made_room_are_served_again() {
    let network = Network::start();
    let (service, port) = (network.victim.udp("0.0.0.0:7".parse().unwrap()), free_port());
    let wish = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:7","protocol":"udp"}}"#);
    assert_eq!(network.api("POST", "/services/forwarder/expose", &wish).status, 200);
    std::thread::spawn(move || {
        let mut bytes = [0; 64];
        while let Ok((length, from)) = service.recv_from(&mut bytes) {
            let _ = service.send_to(&bytes[..length], from);
        }
    });
    let client = || {
        let socket = network.host.udp("127.0.0.1:0".parse().unwrap());
        socket.connect(("127.0.0.1", port)).unwrap();
        socket.set_read_timeout(Some(Duration::from_secs(1))).unwrap();
        socket
    };
    let is_served = |socket: &testkit::udp::UdpSocket| {
        (0..5).any(|_| socket.send(b"x").is_ok() && socket.recv(&mut [0; 8]).is_ok())
    };
    let first: Vec<_> = (0..10).map(|_| client()).collect();
    assert!(first.iter().all(is_served), "the first ones");
    let others: Vec<_> = (0..4200).map(|_| client()).collect();
    // Many at a time, so that one makes room and another takes its place in the same turn.
    for crowd in others.chunks(100) {
        crowd.iter().for_each(|socket| drop(socket.send(b"x")));
        assert!(crowd.iter().all(is_served), "the others");
    }
    let again = first.iter().filter(|socket| is_served(socket)).count();
    assert_eq!(again, first.len(), "of the first ones");
}

/// Connections that carry nothing: a guest's to the host and to the gateway, and clients of an exposed port.
#[test]
fn idle_connections_leave_descriptors_to_others() {
    const LIMIT: usize = 512;
    let network = Network::of(Daemon::builder().descriptors(LIMIT));
    let service = network.victim.listen("0.0.0.0:22".parse().unwrap());
    network.assert_victim_works(&service);
    let listener = network.host.listen("127.0.0.1:0".parse().unwrap());
    let greedy = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:07", 1500);
    greedy.dhcp();
    let held_by = |connect: &dyn Fn() -> std::io::Result<TcpStream>| -> Vec<TcpStream> {
        (0..LIMIT).map_while(|_| connect().ok()).collect()
    };
    let assert_others_work = |network: &Network, what: &str| {
        network.assert_victim_works(&service);
        assert_eq!(network.api("GET", "/stats", "").status, 200, "{what}");
        let fds = network.daemon.fds();
        assert!(fds < LIMIT, "{what}: {fds} descriptors");
    };
    // Its own flows.
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let held = held_by(&|| greedy.connect(to));
    eprintln!("to the host: {} connections, {} descriptors", held.len(), network.daemon.fds());
    assert!((100..LIMIT).contains(&held.len()), "{}", held.len());
    assert_others_work(&network, "connections to the host");
    // What is idle makes room for what is new, of its own.
    let another = || greedy.connect(to).ok();
    let mut new = impatient(eventually("room", 2 * PATIENCE, another));
    new.write_all(b"x").unwrap();
    let first = &mut impatient(held.into_iter().next().unwrap());
    let ended = uninterrupted(|| first.read(&mut [0]));
    assert!(ended.is_err(), "the one that was idle for the longest ends: {ended:?}");
    assert_others_work(&network, "what is new");
    // To the gateway, which answers names and exposes ports there.
    let held = held_by(&|| greedy.connect((GATEWAY, 80).into()));
    eprintln!("to the gateway: {} connections, {} descriptors", held.len(), network.daemon.fds());
    assert_others_work(&network, "connections to the gateway");
    // Clients of the operator's port for the victim, while the greedy one has what it has; and others than
    // those of that port.
    let at = ([127, 0, 0, 1], network.ssh_port).into();
    let waiting: Vec<TcpStream> =
        (0..LIMIT).map(|_| network.host.connect(at).expect("the backlog")).collect();
    assert_eq!(network.api("GET", "/stats", "").status, 200);
    assert!(network.daemon.fds() < LIMIT, "{}", network.daemon.fds());
    let port = free_port();
    let wish = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:23","protocol":"tcp"}}"#);
    assert_eq!(network.api("POST", "/services/forwarder/expose", &wish).status, 200);
    let other = network.victim.listen("0.0.0.0:23".parse().unwrap());
    let outside = impatient(network.host.connect(([127, 0, 0, 1], port).into()).expect("the port"));
    transfer(&outside, &accept(&other), 1 << 20);
    assert!(network.victim.ping(GATEWAY, 56));
    drop((held, waiting));
    let log = network.daemon.stderr();
    assert!(!log.contains("cannot accept"), "{log}");
}

/// Connections of which neither end takes anything: what is on its way waits in the daemon's memory.
#[test]
fn what_nobody_takes_holds_little_memory() {
    const CONNECTIONS: usize = 1000;
    /// Bytes of a socket's.
    const BUFFER: usize = 64 << 10;
    /// In KiB: 64 MiB, and 160 KiB of each connection, as neither end reads; without a bound it was 489 to
    /// 590 KiB for each.
    const MOST: u64 = (64 << 10) + CONNECTIONS as u64 * 160 + (16 << 10);
    let network = Network::start();
    let service = network.victim.listen("0.0.0.0:22".parse().unwrap());
    network.assert_victim_works(&service);
    let before = network.daemon.rss_kb();
    let greedy = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:07", 1500);
    greedy.dhcp();
    let listener = network.host.listen("127.0.0.1:0".parse().unwrap());
    let to = (HOST, listener.local_addr().unwrap().port()).into();
    let mut ends = Vec::new();
    for _ in 0..CONNECTIONS {
        ends.push(greedy.connect(to).expect("the host"));
        ends.push(accept(&listener));
    }
    for end in &ends {
        end.set_nonblocking(true).unwrap();
        // The system has one bound on the memory of all sockets (`tcp_mem`). Beyond it connections stand
        // still for as long as its timers last.
        SockRef::from(end).set_recv_buffer_size(BUFFER).unwrap();
        SockRef::from(end).set_send_buffer_size(BUFFER).unwrap();
    }
    let (mut most, mut quiet) = (0, 0);
    // Each byte says at which place of its stream it is.
    let pattern: Vec<u8> = (0..=250).cycle().take(BUFFER + 251).collect();
    let mut sent = vec![0; ends.len()];
    eventually("nothing more is taken", Duration::from_secs(60), || {
        let mut taken = 0;
        for (mut end, sent) in ends.iter().zip(&mut sent) {
            let written = end.write(&pattern[*sent % 251..][..BUFFER]).unwrap_or(0);
            *sent += written;
            taken += usize::from(written > 0);
        }
        most = most.max(network.daemon.rss_kb());
        quiet = if taken == 0 { quiet + 1 } else { 0 };
        (quiet == 20).then_some(())
    });
    eprintln!("{CONNECTIONS} connections: {before} KiB before, {most} KiB at most");
    assert!(most < before + MOST, "{most} KiB, {before} before");
    network.assert_victim_works(&service);
    // Connections go on, if slowly, and lose nothing.
    let mut first = ends.split_off(2 * CONNECTIONS - 2);
    let (inside, outside) = (impatient(first.remove(0)), impatient(first.remove(0)));
    for end in [&inside, &outside] {
        end.set_nonblocking(false).unwrap();
    }
    for (from, to) in [(&outside, &inside), (&inside, &outside)] {
        from.shutdown(std::net::Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        { to }.read_to_end(&mut rest).unwrap();
        assert!(!rest.is_empty());
        let wrong =
            rest.iter().zip(pattern[..251].iter().cycle()).position(|(byte, expected)| byte != expected);
        assert_eq!(wrong, None, "of {}", rest.len());
    }
    // What was given to it comes back when it is gone.
    drop((ends, greedy));
    eventually("its memory", Duration::from_secs(60), || {
        (network.daemon.rss_kb() < before + (32 << 10)).then_some(())
    });
}

/// What a guest has under way on the daemon's other thread: bodies that come byte by byte, and large answers
/// that it does not read.
#[test]
fn what_a_guest_leaves_half_done_holds_little_memory() {
    /// In KiB. It was 0.6 to 2.4 GB, which stayed.
    const MOST: u64 = 160 << 10;
    const CONNECTIONS: usize = 600;
    let network = Network::start();
    let _server = Scripted::start(&network.host, "127.0.0.1", |question| {
        let mut large = answer(question, NOERROR, None);
        large.resize(60_000, 0);
        Some((Duration::ZERO, large))
    });
    let greedy = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:07", 1500);
    greedy.dhcp();
    let connect = |port| {
        let stream = greedy.connect((GATEWAY, port).into()).expect("the gateway");
        stream.set_nonblocking(true).unwrap();
        stream.set_nodelay(true).unwrap();
        stream
    };
    let before = network.daemon.rss_kb();
    let mut most = before;
    let bodies: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(80)).collect();
    let head = "POST /services/forwarder/expose HTTP/1.1\r\nHost: gateway\r\nContent-Length: 60000\r\n\r\n";
    bodies.iter().for_each(|mut stream| stream.write_all(head.as_bytes()).unwrap());
    let begin = Instant::now();
    let mut bytes = 0;
    while begin.elapsed() < Duration::from_secs(6) {
        bytes += bodies.iter().filter(|stream| { *stream }.write(b" ").is_ok()).count();
        most = most.max(network.daemon.rss_kb());
    }
    drop(bodies);
    let asked = question("large.example", A, None);
    let by_tcp = [&u16::try_from(asked.len()).unwrap().to_be_bytes(), &asked[..]].concat().repeat(32);
    let questions: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(53)).collect();
    questions.iter().for_each(|mut stream| stream.write_all(&by_tcp).unwrap());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(6) {
        most = most.max(network.daemon.rss_kb());
        let socket = network.victim.udp("0.0.0.0:0".parse().unwrap());
        try_ask_udp(&socket, (GATEWAY, 53).into(), &asked, PATIENCE).expect("another's answer");
    }
    eprintln!("{before} KiB before, {most} KiB at most, {bytes} bytes of bodies");
    assert!(bytes > 10 * CONNECTIONS && most < before + MOST, "{most} KiB, {before} before");
    drop((questions, greedy));
    eventually("its memory", Duration::from_secs(60), || {
        (network.daemon.rss_kb() < before + (32 << 10)).then_some(())
    });
}

/// Answers at the gateway that a guest does not read: short ones to one request behind the other, and long
/// ones.
#[test]
fn answers_that_a_guest_does_not_read_hold_little_memory() {
    /// In KiB: rings, which have a bound of their own, and little else. It was 385 MB.
    const MOST: u64 = 220 << 10;
    const PORTS: u16 = 4000;
    const CONNECTIONS: usize = 900;
    let network = Network::start();
    let greedy = Guest::start(testkit::net::plug(&network.daemon), "5a:94:ef:00:00:07", 1500);
    let address = greedy.dhcp().ip();
    let connect = |guest: &Guest| impatient(guest.connect((GATEWAY, 80).into()).expect("the gateway"));
    let exposes = connect(&greedy);
    let expose = |port: u16| {
        let wish = format!(r#"{{"local":"127.0.0.1:{port}","remote":"{address}:22","protocol":"udp"}}"#);
        assert_eq!(ask_and_keep(&exposes, "POST", "/services/forwarder/expose", &wish).status, 200);
    };
    (20_000..20_000 + PORTS).for_each(expose);
    let before = network.daemon.rss_kb();
    let mut most = before;

    let mut behind = connect(&greedy);
    behind.set_nonblocking(true).unwrap();
    let requests = "OPTIONS * HTTP/1.1\r\nHost: gateway\r\n\r\n".repeat(500);
    let (begin, mut sent) = (Instant::now(), 0);
    while begin.elapsed() < Duration::from_secs(4) {
        sent += behind.write(requests.as_bytes()).unwrap_or(0);
        most = most.max(network.daemon.rss_kb());
    }
    let after_short = most;

    let lists: Vec<TcpStream> = (0..CONNECTIONS).map(|_| connect(&greedy)).collect();
    let list = "GET /services/forwarder/all HTTP/1.1\r\nHost: gateway\r\n\r\n";
    lists.iter().for_each(|mut stream| stream.write_all(list.as_bytes()).unwrap());
    let begin = Instant::now();
    while begin.elapsed() < Duration::from_secs(4) {
        let answer = ask(connect(&network.victim), "GET", "/services/forwarder/all", "");
        assert_eq!((answer.status, answer.body.trim()), (200, "[]"), "another's");
        most = most.max(network.daemon.rss_kb());
    }
    expose(19_999);
    // An answer of six times the request's length.
    let target = format!("GET //?{} HTTP/1.1\r\nHost: gateway\r\n\r\n", "&".repeat(60_000));
    drop(lists);
    let lists: Vec<TcpStream> = (0..300).map(|_| connect(&greedy)).collect();
    lists.iter().for_each(|mut stream| stream.write_all(target.as_bytes()).unwrap());
    lists.iter().for_each(|mut stream| {
        let mut start = [0; 12];
        stream.read_exact(&mut start).unwrap();
        assert_eq!(start, *b"HTTP/1.1 414");
    });
    most = most.max(network.daemon.rss_kb());
    eprintln!("{before} KiB before, {after_short} after {sent} bytes of requests, {most} at most");
    assert!(sent > 10_000 && most < before + MOST, "{after_short}, {most} KiB, {before} before");
    // Who reads has what he asked for, in turn.
    drop(lists);
    let list = ask_and_keep(&exposes, "GET", "/services/forwarder/all", "").json();
    assert_eq!(list.as_array().map(Vec::len), Some(usize::from(PORTS) + 1));
}

/// Questions that nobody answers, as many as a guest can send.
#[test]
fn questions_of_one_guest_leave_others_their_answers() {
    let mut network = Network::start();
    let _server = Scripted::start(&network.host, "127.0.0.1", |question| {
        let living = !is_about(question, "dark");
        living.then(|| (Duration::ZERO, answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    let flood: Vec<Vec<u8>> = (0..20_000_u16)
        .map(|number| {
            let asked = udp(1025 + number, 53, &question(&format!("dark{number}.example"), A, None));
            ether(GATEWAY_MAC, THIEF_MAC, IPV4, &ipv4(UDP, THIEF, GATEWAY, &asked))
        })
        .collect();
    let over = AtomicBool::new(false);
    let before = network.daemon.rss_kb();
    let Network { victim, thief, .. } = &mut network;
    let answered = std::thread::scope(|scope| {
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                for some in flood.chunks(500) {
                    thief.send_all(some.iter().map(Vec::as_slice));
                }
            }
        });
        let socket = victim.udp("0.0.0.0:0".parse().unwrap());
        let is_answered = |number: &u16| {
            let asked = question(&format!("living{number}.example"), A, None);
            try_ask_udp(&socket, (GATEWAY, 53).into(), &asked, Duration::from_secs(2)).is_some()
        };
        let answered = (0..50).filter(is_answered).count();
        // What waits, and what is given up for it.
        let begin = Instant::now();
        let more = (50..).take_while(|_| begin.elapsed() < Duration::from_secs(10)).filter(is_answered);
        let _more = more.count();
        over.store(true, Ordering::Relaxed);
        answered
    });
    let most = network.daemon.rss_kb();
    eprintln!("{answered} of 50 answered, {before} KiB before, {most} KiB then");
    assert!(answered >= 48, "{answered} of 50 answered");
    // Each question waits for half a minute, and each attempt of it took memory where there was some.
    eventually("its memory", Duration::from_secs(100), || {
        (network.daemon.rss_kb() < before + (8 << 10)).then_some(())
    });
}
