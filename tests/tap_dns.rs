//! DNS of the gateway, asked by a Linux guest: the zones from here, all else as the host's own resolver says
//! it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::daemon::{Builder, Daemon};
use testkit::dns::{
    A, AAAA, CAA, CNAME, FORMERR, HTTPS, MX, NOERROR, NS, NXDOMAIN, PTR, SERVFAIL, SOA, SRV, Scripted,
    Server, TXT, answer, ask_tcp, ask_udp, code, count, is_about, is_truncated, question, try_ask_udp,
};
use testkit::eventually;
use testkit::http::{Answer, exchange};
use testkit::net::{GATEWAY, Host, Net};
use testkit::traffic::impatient;

testkit::agent_in_a_namespace!();

const GATEWAY_DNS: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(GATEWAY), 53);

fn upstream() -> SocketAddr {
    "127.0.0.1:53".parse().unwrap()
}

fn start() -> (Net, Server) {
    let host = Host::new("nameserver 127.0.0.1\n");
    let server = Server::start(&host, "127.0.0.1");
    (Net::with(host, Daemon::builder(), 1500), server)
}

/// Everything that the upstream has data for, and some that it has none for.
fn questions() -> Vec<Vec<u8>> {
    let names = [
        ("a.test", A),
        ("many.test", A),
        ("aaaa.test", AAAA),
        ("aaaa.test", A),
        ("both.test", A),
        ("both.test", AAAA),
        ("mx.test", MX),
        ("txt.test", TXT),
        ("_http._tcp.test", SRV),
        ("alias.test", CNAME),
        ("caa.test", CAA),
        ("test", NS),
        ("test", SOA),
        ("1.2.0.192.in-addr.arpa", PTR),
        ("a.test", HTTPS),
        ("nothing.test", A),
        ("refused.example", A),
        ("A.TEST", A),
    ];
    let plain = names.iter().map(|&(name, record)| question(name, record, None));
    let edns = names.iter().map(|&(name, record)| question(name, record, Some(1232)));
    plain.chain(edns).collect()
}

#[track_caller]
fn same(question: &[u8], direct: &[u8], through: &[u8]) {
    let show = |message: &[u8]| {
        format!("{} bytes {}", message.len(), message[..message.len().min(120)].escape_ascii())
    };
    assert!(
        direct == through,
        "question {}\ndirect   {}\nthrough  {}",
        show(question),
        show(direct),
        show(through)
    );
}

#[test]
fn answers_over_udp_as_the_upstream_does() {
    let (net, _server) = start();
    for question in questions() {
        let direct = ask_udp(&net.host, upstream(), &question);
        same(&question, &direct, &ask_udp(&net.guest, GATEWAY_DNS, &question));
    }
}

#[test]
fn answers_over_tcp_as_the_upstream_does() {
    let (net, _server) = start();
    let questions = questions();
    for (question, direct) in questions.iter().zip(ask_tcp(&net.host, upstream(), &questions)) {
        let through = ask_tcp(&net.guest, GATEWAY_DNS, std::slice::from_ref(question));
        same(question, &direct, &through[0]);
    }
}

#[test]
fn answers_a_row_of_questions_on_one_tcp_connection() {
    let (net, _server) = start();
    let questions: Vec<_> = (0..100_u16)
        .map(|id| {
            let mut question = question("a.test", A, None);
            question[..2].copy_from_slice(&id.to_be_bytes());
            question
        })
        .collect();
    let answers = ask_tcp(&net.guest, GATEWAY_DNS, &questions);
    let mut ids: Vec<_> = answers.iter().map(|answer| u16::from_be_bytes([answer[0], answer[1]])).collect();
    ids.sort_unstable();
    assert_eq!(ids, (0..100).collect::<Vec<_>>());
    assert!(answers.iter().all(|answer| count(answer) == 1));
}

#[test]
fn an_answer_that_does_not_fit_is_cut_over_udp_and_whole_over_tcp() {
    let (net, _server) = start();
    for edns in [None, Some(512), Some(1232)] {
        let question = question("big.test", TXT, edns);
        let answer = ask_udp(&net.guest, GATEWAY_DNS, &question);
        assert!(is_truncated(&answer), "with EDNS {edns:?}: {}", answer.escape_ascii());
        assert!(
            answer.len() <= usize::from(edns.unwrap_or(512)),
            "{} bytes with EDNS {edns:?}",
            answer.len()
        );
        let direct = ask_tcp(&net.host, upstream(), std::slice::from_ref(&question));
        let through = ask_tcp(&net.guest, GATEWAY_DNS, std::slice::from_ref(&question));
        assert_eq!(count(&through[0]), 60);
        same(&question, &direct[0], &through[0]);
    }
}

#[test]
fn a_large_answer_comes_in_fragments_to_a_client_that_takes_it() {
    let (net, _server) = start();
    // Unbound itself keeps to 1232 bytes unless it is told otherwise, so what is whole there must be whole
    // here.
    let question = question("big.test", TXT, Some(4096));
    let direct = ask_udp(&net.host, upstream(), &question);
    same(&question, &direct, &ask_udp(&net.guest, GATEWAY_DNS, &question));
}

#[test]
fn knows_the_names_of_its_zones() {
    let (net, _server) = start();
    for zone in ["containers.internal", "docker.internal"] {
        for (host, last) in [("gateway", 1), ("host", 254)] {
            let question = question(&format!("{host}.{zone}"), A, None);
            let answers = [
                ask_udp(&net.guest, GATEWAY_DNS, &question),
                ask_tcp(&net.guest, GATEWAY_DNS, &[question])[0].clone(),
            ];
            for answer in answers {
                assert_eq!((code(&answer), count(&answer)), (NOERROR, 1), "{}", answer.escape_ascii());
                assert!(answer.ends_with(&[0, 4, 192, 168, 127, last]), "{}", answer.escape_ascii());
            }
        }
        let answer = ask_udp(&net.guest, GATEWAY_DNS, &question(&format!("no.{zone}"), A, None));
        assert_eq!(code(&answer), NXDOMAIN);
    }
    let answer = ask_udp(&net.guest, GATEWAY_DNS, &question("HOST.Containers.internal", A, None));
    assert_eq!((code(&answer), count(&answer)), (NOERROR, 1), "names are case-insensitive");
    let answer = ask_udp(&net.guest, GATEWAY_DNS, &question("host.containers.internal", AAAA, None));
    assert_eq!(
        (code(&answer), count(&answer)),
        (NOERROR, 0),
        "there is no IPv6 address, and that is no error"
    );
}

#[test]
fn follows_resolv_conf() {
    let host = Host::new("# no resolver yet\n");
    let _server = Server::start(&host, "127.0.0.77");
    let net = Net::with(host, Daemon::builder(), 1500);
    let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
    let question = question("a.test", A, None);
    net.host.write("resolv.conf", "nameserver 127.0.0.77\n");
    let answer = eventually("an answer from the new resolver", Duration::from_secs(15), || {
        let answer = try_ask_udp(&socket, GATEWAY_DNS, &question, Duration::from_millis(500))?;
        (count(&answer) == 1).then_some(answer)
    });
    assert!(answer.ends_with(&[192, 0, 2, 1]), "{}", answer.escape_ascii());
}

#[test]
fn fails_over_to_the_next_resolver() {
    for dead in ["127.0.0.66", "203.0.113.66"] {
        let host = Host::new(&format!("nameserver {dead}\nnameserver 127.0.0.1\n"));
        let _server = Server::start(&host, "127.0.0.1");
        let net = Net::with(host, Daemon::builder(), 1500);
        let question = question("a.test", A, None);
        for answer in [
            ask_udp(&net.guest, GATEWAY_DNS, &question),
            ask_tcp(&net.guest, GATEWAY_DNS, std::slice::from_ref(&question))[0].clone(),
        ] {
            assert_eq!(
                (code(&answer), count(&answer)),
                (NOERROR, 1),
                "with {dead} first: {}",
                answer.escape_ascii()
            );
        }
    }
}

/// As with a VPN: the first resolver alone knows the internal names.
#[test]
fn one_slow_answer_of_the_first_resolver_is_waited_for_and_changes_nothing() {
    let host = Host::new("nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
    let mut slow = Some(Duration::from_millis(2500));
    let _first = Scripted::start(&host, "127.0.0.1", move |question| {
        Some((slow.take().unwrap_or_default(), answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    let _second = Scripted::start(&host, "127.0.0.2", |question| {
        Some((Duration::ZERO, answer(question, NXDOMAIN, None)))
    });
    let net = Net::with(host, Daemon::builder(), 1500);
    let internal =
        |n: u32| ask_udp(&net.guest, GATEWAY_DNS, &question(&format!("host{n}.corp.example"), A, None));
    let right = (0..20).map(internal).filter(|answer| answer.ends_with(&[0, 4, 10, 1, 1, 1])).count();
    assert_eq!(right, 20);
}

/// One that neither has the zone nor asks others, and one that does not know EDNS.
#[test]
fn a_resolver_that_cannot_answer_leaves_it_to_the_next() {
    for (what, rcode, recursion) in [("lame", NOERROR, 0), ("without EDNS", FORMERR, 0x80)] {
        let host = Host::new("nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
        let _first = Scripted::start(&host, "127.0.0.1", move |question| {
            let mut message = answer(question, rcode, None);
            message[3] = recursion | rcode;
            Some((Duration::ZERO, message))
        });
        let _second = Scripted::start(&host, "127.0.0.2", |question| {
            Some((Duration::ZERO, answer(question, NOERROR, Some([10, 1, 1, 1]))))
        });
        let net = Net::with(host, Daemon::builder(), 1500);
        for edns in [None, Some(1232)] {
            let message = ask_udp(&net.guest, GATEWAY_DNS, &question("some.example", A, edns));
            assert_eq!((code(&message), count(&message)), (NOERROR, 1), "{what}, {edns:?}");
        }
    }
}

#[test]
fn a_question_may_be_as_large_as_datagrams_of_dns_are() {
    let host = Host::new("nameserver 127.0.0.1\n");
    let larger_came = Arc::new(AtomicBool::new(false));
    let came = Arc::clone(&larger_came);
    let _server = Scripted::start(&host, "127.0.0.1", move |question| {
        came.fetch_or(is_about(question, "larger"), Ordering::Relaxed);
        Some((Duration::ZERO, answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    let net = Net::with(host, Daemon::builder(), 1500);
    let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
    // RFC 7830: an option that fills up.
    let padded = |name: &str, length: usize| {
        let mut message = question(name, A, Some(4096));
        let room = u16::try_from(length - message.len()).unwrap();
        let end = message.len() - 2;
        message[end..].copy_from_slice(&room.to_be_bytes());
        message.extend([0, 12]);
        message.extend((room - 4).to_be_bytes());
        message.resize(length, 0);
        message
    };
    socket.send_to(&padded("larger.example", 4097), GATEWAY_DNS).unwrap();
    let answer = try_ask_udp(&socket, GATEWAY_DNS, &padded("large.example", 4096), Duration::from_secs(10))
        .expect("an answer");
    assert_eq!((code(&answer), count(&answer)), (NOERROR, 1));
    assert!(!larger_came.load(Ordering::Relaxed));
}

#[test]
fn names_that_nobody_answers_for_keep_no_other_waiting() {
    let host = Host::new("nameserver 127.0.0.1\n");
    let _server = Scripted::start(&host, "127.0.0.1", |question| {
        let living = !is_about(question, "dark");
        living.then(|| (Duration::from_millis(20), answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    let net = Net::with(host, Daemon::builder(), 1500);
    let (dark, living) =
        (net.guest.udp("0.0.0.0:0".parse().unwrap()), net.guest.udp("0.0.0.0:0".parse().unwrap()));
    let mut asked = 0;
    let mut ask_dark = |count: u32| {
        for _ in 0..count {
            asked += 1;
            dark.send_to(&question(&format!("dark{asked}.example"), A, None), GATEWAY_DNS).unwrap();
        }
    };
    let mut answered = 0;
    // More than may be on their way, by and by: the host's resolver has room for some hundreds at once.
    for round in 0..20 {
        ask_dark(if round == 0 { 600 } else { 250 });
        let question = question(&format!("living{round}.example"), A, None);
        let answer = try_ask_udp(&living, GATEWAY_DNS, &question, Duration::from_secs(1));
        answered += u32::from(answer.is_some_and(|answer| (code(&answer), count(&answer)) == (NOERROR, 1)));
        // One by TCP beside it.
        if round % 5 == 0 {
            let answer = ask_tcp(&net.guest, GATEWAY_DNS, std::slice::from_ref(&question));
            assert_eq!((code(&answer[0]), count(&answer[0])), (NOERROR, 1), "over TCP");
        }
    }
    assert_eq!(answered, 20);
    // Those that made room are told.
    dark.set_nonblocking(true).unwrap();
    let mut answer = [0; 512];
    let length = dark.recv(&mut answer).expect("an answer about a dark name");
    assert_eq!((code(&answer[..length]), count(&answer[..length])), (SERVFAIL, 0));
}

#[test]
fn a_resolver_whose_tcp_is_silent_answers_a_question_over_tcp_all_the_same() {
    let host = Host::new("nameserver 127.0.0.1\n");
    let _udp = Scripted::start(&host, "127.0.0.1", |question| {
        Some((Duration::ZERO, answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    // Connections to it come to be, and nobody reads them.
    let _silent = host.listen(upstream());
    let net = Net::with(host, Daemon::builder(), 1500);
    let answers = ask_tcp(&net.guest, GATEWAY_DNS, &[question("a.test", A, None)]);
    assert_eq!((code(&answers[0]), count(&answers[0])), (NOERROR, 1));
}

#[test]
fn connections_that_are_kept_open_keep_no_new_one_out() {
    let (net, _server) = start();
    let asked = question("a.test", A, None);
    let framed = [&u16::try_from(asked.len()).unwrap().to_be_bytes()[..], &asked].concat();
    let ask = |stream: &mut TcpStream| {
        stream.write_all(&framed)?;
        let mut answer = [0; 2];
        stream.read_exact(&mut answer)?;
        let mut answer = vec![0; u16::from_be_bytes(answer).into()];
        stream.read_exact(&mut answer).map(|()| count(&answer))
    };
    let mut held: Vec<TcpStream> = Vec::new();
    for _ in 0..300 {
        held.push(impatient(net.guest.connect(GATEWAY_DNS).expect("a connection")));
    }
    let answered = held.iter_mut().filter_map(|stream| ask(stream).ok()).filter(|&count| count == 1).count();
    assert_eq!(answered, 300, "of those open at once");
    let mut answered = 0;
    for _ in 0..1000 {
        let mut stream = impatient(net.guest.connect(GATEWAY_DNS).expect("a connection"));
        answered += usize::from(ask(&mut stream).is_ok_and(|count| count == 1));
        held.push(stream);
    }
    assert_eq!(answered, 1000, "of those opened while others are kept");
}

/// A file system that hangs: nothing but questions for others waits for it, and these not for long.
#[test]
fn files_that_cannot_be_read_hold_up_nothing() {
    for (file, from_the_start) in
        [("resolv.conf", false), ("hosts", false), ("resolv.conf", true), ("hosts", true)]
    {
        let host = Host::new("nameserver 127.0.0.1\n");
        let _server = Scripted::start(&host, "127.0.0.1", |question| {
            Some((Duration::ZERO, answer(question, NOERROR, Some([10, 1, 1, 1]))))
        });
        if from_the_start {
            host.clog(file);
        }
        let mut net = Net::with(host, Daemon::builder(), 1500);
        let foreign = question("a.example", A, None);
        if !from_the_start {
            assert_eq!(count(&ask_udp(&net.guest, GATEWAY_DNS, &foreign)), 1);
            net.host.clog(file);
        }
        let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
        let mut slowest = Duration::ZERO;
        let start = Instant::now();
        // Longer than a file is taken to be what it was.
        while start.elapsed() < Duration::from_millis(1500) {
            socket.send_to(&foreign, GATEWAY_DNS).unwrap();
            let begin = Instant::now();
            let zone = ask_udp(&net.guest, GATEWAY_DNS, &question("gateway.containers.internal", A, None));
            assert_eq!((code(&zone), count(&zone)), (NOERROR, 1));
            assert!(net.guest.ping(GATEWAY, 56));
            let stream = impatient(net.guest.connect(SocketAddr::from((GATEWAY, 80))).unwrap());
            let request =
                b"GET /services/forwarder/all HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\n\r\n";
            assert_eq!(Answer::of(&exchange(stream, request)).status, 200);
            slowest = slowest.max(begin.elapsed());
        }
        assert!(slowest < Duration::from_millis(500), "{file}: {slowest:?}");
        let answer = ask_udp(&net.guest, GATEWAY_DNS, &foreign);
        assert_eq!(
            (code(&answer), count(&answer)),
            (NOERROR, 1),
            "{file}: what was known of it is still true"
        );
        net.daemon.signal(Signal::TERM);
        assert!(net.daemon.wait(Duration::from_secs(5)).is_some(), "{file}: the daemon ends");
    }
}

#[test]
fn knows_the_names_of_the_hosts_file() {
    let host = Host::new("nameserver 127.0.0.1\n");
    let _server = Server::start(&host, "127.0.0.1");
    host.write("hosts", "127.0.0.1 localhost\n192.0.2.77 printer.office.lan printer\n");
    let net = Net::with(host, Daemon::builder(), 1500);
    let answer = ask_udp(&net.guest, GATEWAY_DNS, &question("printer.office.lan", A, None));
    assert_eq!((code(&answer), count(&answer)), (NOERROR, 1), "{}", answer.escape_ascii());
    assert!(answer.ends_with(&[0, 4, 192, 0, 2, 77]), "{}", answer.escape_ascii());
}

#[test]
fn answers_1000_questions_at_once() {
    let (net, _server) = start();
    let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
    socket.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let mut missing: std::collections::BTreeSet<u16> = (0..1000).collect();
    // A client asks again for what was lost in a full queue, as every resolver does.
    for _ in 0..5 {
        for chunk in missing.iter().copied().collect::<Vec<_>>().chunks(100) {
            for id in chunk {
                let mut question = question("a.test", A, None);
                question[..2].copy_from_slice(&id.to_be_bytes());
                socket.send_to(&question, GATEWAY_DNS).unwrap();
            }
            let mut answer = [0; 512];
            for _ in chunk {
                let Ok(length) = socket.recv(&mut answer) else { break };
                assert_eq!((code(&answer[..length]), count(&answer[..length])), (NOERROR, 1));
                missing.remove(&u16::from_be_bytes([answer[0], answer[1]]));
            }
        }
    }
    assert!(missing.is_empty(), "{} questions were never answered", missing.len());
}

#[test]
fn a_burst_of_questions_is_answered_where_descriptors_are_few() {
    burst(150, Daemon::builder().descriptors(256));
}

/// More than the host would ask at once; nobody asks again.
#[test]
fn a_burst_of_2000_questions_is_answered() {
    burst(2000, Daemon::builder());
}

/// So many questions of a guest about names that take a while.
fn burst(questions: u16, builder: Builder) {
    let host = Host::new("nameserver 127.0.0.1\n");
    let _server = Scripted::start(&host, "127.0.0.1", |question| {
        Some((Duration::from_millis(300), answer(question, NOERROR, Some([10, 1, 1, 1]))))
    });
    let net = Net::with(host, builder, 1500);
    // What one socket has room for.
    let ids = (0..questions).collect::<Vec<_>>();
    let asked = ids.chunks(50).map(|ids| {
        let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
        socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        for id in ids {
            let mut question = question(&format!("name{id}.example"), A, None);
            question[..2].copy_from_slice(&id.to_be_bytes());
            socket.send_to(&question, GATEWAY_DNS).unwrap();
        }
        (socket, ids)
    });
    let mut answered = 0;
    for (socket, ids) in asked.collect::<Vec<_>>() {
        let mut missing: std::collections::BTreeSet<u16> = ids.iter().copied().collect();
        while !missing.is_empty() {
            let mut answer = [0; 512];
            let length = socket
                .recv(&mut answer)
                .unwrap_or_else(|error| panic!("{error} after {answered} answers; missing: {missing:?}"));
            assert_eq!((code(&answer[..length]), count(&answer[..length])), (NOERROR, 1), "after {answered}");
            answered += u32::from(missing.remove(&u16::from_be_bytes([answer[0], answer[1]])));
        }
    }
}

#[test]
fn garbage_costs_only_the_connection_that_it_came_on() {
    let (net, _server) = start();
    let good = question("a.test", A, None);
    let framed =
        |message: &[u8]| [&u16::try_from(message.len()).unwrap().to_be_bytes()[..], message].concat();
    let garbage: [Vec<u8>; 6] = [
        vec![0, 0],
        vec![0xff; 3],
        framed(&[0; 11]),
        framed(&[0xff; 512]),
        // A name that points at itself.
        framed(&[0x12, 0x34, 1, 0, 0, 1, 0, 0, 0, 0, 0, 0, 0xc0, 12, 0, 1, 0, 1]),
        framed(&good[..good.len() - 3]),
    ];
    let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
    let mut held = Vec::new();
    for bytes in &garbage {
        let mut stream = impatient(net.guest.connect(GATEWAY_DNS).expect("a connection to the DNS server"));
        stream.write_all(bytes).unwrap();
        held.push(stream);
        socket.send_to(bytes, GATEWAY_DNS).unwrap();
        socket.send_to(bytes.get(2..).unwrap_or_default(), GATEWAY_DNS).unwrap();
        for answer in [
            ask_udp(&net.guest, GATEWAY_DNS, &good),
            ask_tcp(&net.guest, GATEWAY_DNS, std::slice::from_ref(&good))[0].clone(),
        ] {
            assert_eq!((code(&answer), count(&answer)), (NOERROR, 1), "after {}", bytes.escape_ascii());
        }
    }
    // Silence on a connection is ended by the server, sooner or later.
    for mut stream in held {
        let mut rest = Vec::new();
        stream.read_to_end(&mut rest).expect("an end, not silence");
    }
}
