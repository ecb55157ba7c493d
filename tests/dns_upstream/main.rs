//! Questions to the host's resolvers, through the library, over loopback. The resolver is Debian's unbound;
//! where one has to misbehave it is a few lines here.
//!
//! Every address in 127.0.0.0/8 is this machine's own, so servers of one test share a port and differ in the
//! address.
#![expect(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by a panic")]

mod servers;

use std::net::Ipv4Addr;
use std::path::Path;
use std::time::{Duration, Instant};

use gvproxy::host::dns::Upstream;
use hickory_proto::op::{Edns, Message, MessageType, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, Name, RData, RecordType};
use netstack::dns::Transport::{self, Tcp, Udp};
use tempfile::TempDir;

use std::sync::atomic::Ordering::Relaxed;

use servers::{
    Broken, Unbound, answering, ask_directly, cut, give, refuse, serve_broken_tcp, serve_slowly, serve_udp,
    silent,
};

/// What a test asks about, with the two files that it writes.
struct Host {
    dir: TempDir,
    upstream: Upstream,
}

impl Host {
    fn new(port: u16, resolv_conf: &str) -> Self {
        let dir = TempDir::new().unwrap();
        let host = Self {
            upstream: Upstream::new(Some(dir.path().join("resolv.conf")), dir.path().join("hosts"))
                .with_port(port),
            dir,
        };
        std::fs::write(host.resolv_conf(), resolv_conf).unwrap();
        host
    }

    fn resolv_conf(&self) -> std::path::PathBuf {
        self.dir.path().join("resolv.conf")
    }

    async fn ask(&self, message: &Message, transport: Transport) -> Message {
        let answer = self.upstream.ask(&message.to_vec().unwrap().into(), transport).await.unwrap();
        Message::from_vec(&answer).unwrap()
    }

    /// The code and the addresses that a UDP client gets.
    async fn resolve(&self, name: &str) -> (ResponseCode, Vec<Ipv4Addr>) {
        let answer = self.ask(&query(name, RecordType::A), Udp).await;
        (answer.metadata.response_code, addresses(&answer))
    }

    /// Asks until the answer is the expected one.
    async fn eventually(&self, name: &str, expected: (ResponseCode, Vec<Ipv4Addr>)) {
        let start = Instant::now();
        loop {
            let found = self.resolve(name).await;
            if found == expected {
                return;
            }
            assert!(start.elapsed() < Duration::from_secs(10), "{name}: {found:?} instead of {expected:?}");
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    }
}

fn query(name: &str, qtype: RecordType) -> Message {
    let mut message = Message::new(0x4711, MessageType::Query, OpCode::Query);
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), qtype));
    message
}

fn with_edns(mut message: Message, payload: u16, dnssec_ok: bool) -> Message {
    let mut edns = Edns::new();
    edns.set_max_payload(payload).set_dnssec_ok(dnssec_ok);
    message.set_edns(edns);
    message
}

fn addresses(message: &Message) -> Vec<Ipv4Addr> {
    let address = |data: &RData| match data {
        RData::A(address) => Some(address.0),
        _ => None,
    };
    message.answers.iter().filter_map(|record| address(&record.data)).collect()
}

fn ok(last: u8) -> (ResponseCode, Vec<Ipv4Addr>) {
    (ResponseCode::NoError, vec![Ipv4Addr::new(10, 9, 8, last)])
}

fn servfail() -> (ResponseCode, Vec<Ipv4Addr>) {
    (ResponseCode::ServFail, vec![])
}

#[tokio::test]
async fn answers_are_the_resolvers_own_byte_for_byte() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let host = Host::new(unbound.port, "nameserver 127.0.0.1\n");
    let named = [
        ("a.test.", RecordType::A),
        ("A.tEsT.", RecordType::A),
        ("a.test.", RecordType::AAAA),
        ("alias.test.", RecordType::A),
        ("alias.test.", RecordType::CNAME),
        ("test.", RecordType::MX),
        ("test.", RecordType::NS),
        ("test.", RecordType::SOA),
        ("test.", RecordType::CAA),
        ("test.", RecordType::HTTPS),
        ("test.", RecordType::ANY),
        ("_http._tcp.test.", RecordType::SRV),
        ("long.test.", RecordType::TXT),
        ("huge.test.", RecordType::TXT),
        ("forty.test.", RecordType::A),
        ("8.9.10.in-addr.arpa.", RecordType::PTR),
        ("1.8.9.10.in-addr.arpa.", RecordType::PTR),
        ("a.test.", RecordType::DS),
        ("a.test.", RecordType::TLSA),
        ("private.test.", RecordType::Unknown(65_280)),
        ("absent.test.", RecordType::A),
        ("absent.test.", RecordType::MX),
        ("refused.example.", RecordType::A),
    ];
    let mut asked: Vec<Message> = named.map(|(name, qtype)| query(name, qtype)).into();
    let mut chaos = query("version.bind.", RecordType::TXT);
    chaos.queries[0].query_class = DNSClass::CH;
    asked.push(chaos);
    let mut compared = 0;
    for plain in asked {
        for message in [
            plain.clone(),
            with_edns(plain.clone(), 512, false),
            with_edns(plain.clone(), 1232, true),
            with_edns(plain, 4096, false),
        ] {
            for transport in [Udp, Tcp] {
                let bytes = message.to_vec().unwrap();
                let direct = ask_directly(unbound.addresses[0], &bytes, transport).await;
                let forwarded = host.upstream.ask(&bytes.into(), transport).await.unwrap();
                let text = || format!("{}", Message::from_vec(&forwarded).unwrap());
                assert_eq!(forwarded, direct, "{message} over {transport:?}: {}", text());
                compared += 1;
            }
        }
    }
    assert_eq!(compared, 24 * 4 * 2);
}

#[tokio::test]
async fn a_truncated_answer_is_whole_over_tcp() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let host = Host::new(unbound.port, "nameserver 127.0.0.1\n");
    let answer = host.ask(&query("forty.test.", RecordType::A), Udp).await;
    assert!(answer.metadata.truncation, "{answer}");
    let answer = host.ask(&query("forty.test.", RecordType::A), Tcp).await;
    assert!(!answer.metadata.truncation, "{answer}");
    assert_eq!(addresses(&answer).len(), 40);
    let answer = host.ask(&with_edns(query("forty.test.", RecordType::A), 1232, false), Udp).await;
    assert_eq!((answer.metadata.truncation, addresses(&answer).len()), (false, 40), "{answer}");
}

#[tokio::test]
async fn an_answer_too_long_for_the_client_is_truncated_here() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let bytes = query("forty.test.", RecordType::A).to_vec().unwrap();
    let long = ask_directly(unbound.addresses[0], &bytes, Tcp).await;
    let [server] = servers::addresses([Ipv4Addr::LOCALHOST]);
    let _careless = serve_udp(server, move |query| vec![[&query[..2], &long[2..]].concat()]);
    let host = Host::new(server.port(), "nameserver 127.0.0.1\n");
    let answer = host.ask(&query("forty.test.", RecordType::A), Udp).await;
    assert!(answer.metadata.truncation && answer.metadata.authoritative, "{answer}");
    assert_eq!((answer.answers.len(), &answer.queries), (0, &query("forty.test.", RecordType::A).queries));
    assert!(answer.to_vec().unwrap().len() <= 512);
    // Over TCP nobody answers, and UDP has to do.
    let answer = host.ask(&query("forty.test.", RecordType::A), Tcp).await;
    assert_eq!((answer.metadata.truncation, addresses(&answer).len()), (false, 40), "{answer}");
}

#[tokio::test]
async fn a_first_server_that_is_not_there_costs_a_moment_and_later_nothing() {
    let unbound = Unbound::start(&[Ipv4Addr::new(127, 0, 0, 2)]);
    let host = Host::new(unbound.port, "nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
    let start = Instant::now();
    for transport in [Udp, Tcp] {
        assert_eq!(addresses(&host.ask(&query("a.test.", RecordType::A), transport).await).len(), 1);
    }
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    let start = Instant::now();
    for _ in 0..20 {
        assert_eq!(host.resolve("a.test.").await, ok(1));
    }
    assert!(start.elapsed() < Duration::from_millis(1400), "{:?}", start.elapsed());
    let _first = answering((Ipv4Addr::LOCALHOST, unbound.port).into(), 7);
    assert_eq!(host.resolve("a.test.").await, ok(7), "as soon as it is there");
}

#[tokio::test]
async fn a_dead_first_server_is_waited_for_twice() {
    let unbound = Unbound::start(&[Ipv4Addr::new(127, 0, 0, 2)]);
    let first = (Ipv4Addr::LOCALHOST, unbound.port).into();
    let hole = silent(first);
    let host =
        Host::new(unbound.port, "nameserver 127.0.0.1\nnameserver 127.0.0.2\noptions timeout:1 attempts:1\n");
    for _ in 0..2 {
        let start = Instant::now();
        assert_eq!(host.resolve("a.test.").await, ok(1));
        let elapsed = start.elapsed();
        assert!((900..1900).contains(&elapsed.as_millis()), "as long as the library waits: {elapsed:?}");
    }
    let start = Instant::now();
    for _ in 0..10 {
        assert_eq!(host.resolve("a.test.").await, ok(1));
    }
    assert!(start.elapsed() < Duration::from_secs(3), "{:?}", start.elapsed());
    hole.stop().await;
    let _first = answering(first, 7);
    assert_eq!(host.resolve("a.test.").await, ok(7), "its answer still counts first");
}

/// What may happen to one question: whatever it is, that question has the first server's answer if it comes
/// in time, and the ones after it have in any case.
#[tokio::test]
async fn one_failure_of_the_first_server_changes_nothing_for_the_next_question() {
    const LATE: Duration = Duration::from_millis(800);
    type Failure = fn(&[u8]) -> Vec<(Duration, Vec<u8>)>;
    type Case = (&'static str, u16, (ResponseCode, Vec<Ipv4Addr>), Failure);
    let failures: [Case; 7] = [
        ("late", 1, ok(7), |asked| vec![(LATE, give(asked, 7))]),
        ("lost, and sent again", 1, ok(7), |_| vec![]),
        ("lost twice", 2, ok(8), |_| vec![]),
        ("SERVFAIL", 1, ok(8), |asked| vec![(Duration::ZERO, refuse(asked, 2))]),
        ("late SERVFAIL", 1, ok(7), |asked| vec![(LATE, refuse(asked, 2))]),
        ("truncated", 1, (ResponseCode::NoError, vec![]), |asked| vec![(Duration::ZERO, cut(asked))]),
        ("late NXDOMAIN", 1, ok(7), |asked| vec![(LATE, refuse(asked, 3))]),
    ];
    for (name, times, expected, failure) in failures {
        let [first, second] = servers::addresses([Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)]);
        let _second = answering(second, 8);
        let mut left = times;
        let _first = serve_slowly(first, move |asked| {
            if left == 0 {
                return vec![(Duration::ZERO, give(asked, 7))];
            }
            left -= 1;
            failure(asked)
        });
        let host = Host::new(first.port(), "nameserver 127.0.0.1\nnameserver 127.0.0.2\noptions timeout:1\n");
        assert_eq!(host.resolve("a.test.").await, expected, "{name}");
        for _ in 0..10 {
            assert_eq!(host.resolve("a.test.").await, ok(7), "after {name}");
        }
    }
}

#[tokio::test]
async fn a_resolver_that_starts_again_fails_no_question() {
    let [first, second] = servers::addresses([Ipv4Addr::LOCALHOST, Ipv4Addr::new(127, 0, 0, 2)]);
    let _denying = serve_udp(second, |asked| vec![refuse(asked, 3)]);
    for conf in ["nameserver 127.0.0.1\nnameserver 127.0.0.2\n", "nameserver 127.0.0.1\n"] {
        let host = Host::new(first.port(), conf);
        let mut running = answering(first, 7);
        for _ in 0..3 {
            assert_eq!(host.resolve("a.test.").await, ok(7));
            running.stop().await;
            let restarted = async {
                tokio::time::sleep(Duration::from_millis(600)).await;
                answering(first, 7)
            };
            let (found, restarted) = tokio::join!(host.resolve("a.test."), restarted);
            assert_eq!(found, ok(7), "{conf}");
            running = restarted;
        }
        running.stop().await;
    }
}

#[tokio::test]
async fn a_late_answer_counts_after_the_next_attempt() {
    let [server] = servers::addresses([Ipv4Addr::LOCALHOST]);
    let seen = std::sync::Arc::new(std::sync::atomic::AtomicUsize::new(0));
    let counted = std::sync::Arc::clone(&seen);
    let _server = serve_slowly(server, move |asked| match counted.fetch_add(1, Relaxed) {
        0 => vec![(Duration::from_millis(1500), give(asked, 7))],
        _ => vec![],
    });
    let host = Host::new(server.port(), "nameserver 127.0.0.1\noptions timeout:1 attempts:3\n");
    let start = Instant::now();
    assert_eq!(host.resolve("a.test.").await, ok(7));
    assert!(start.elapsed() < Duration::from_millis(1990), "{:?}", start.elapsed());
    seen.store(1, Relaxed);
    assert_eq!(host.resolve("a.test.").await, servfail());
    assert_eq!(seen.load(Relaxed), 1 + 3, "attempts");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
}

#[tokio::test]
async fn rotate_takes_servers_in_turn() {
    let all = [1, 2, 3].map(|last| Ipv4Addr::new(127, 0, 0, last));
    let addresses = servers::addresses(all);
    let _servers = [7, 8, 9].map(|which| answering(addresses[which as usize - 7], which));
    let conf = "nameserver 127.0.0.1\nnameserver 127.0.0.2\nnameserver 127.0.0.3\n";
    let host = Host::new(addresses[0].port(), &format!("{conf}options rotate\n"));
    for which in [7, 8, 9, 7, 8] {
        assert_eq!(host.resolve("a.test.").await, ok(which));
    }
}

#[tokio::test]
async fn use_vc_asks_over_tcp_alone() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let second = Ipv4Addr::new(127, 0, 0, 2);
    let _udp_alone = answering((second, unbound.port).into(), 8);
    let host = Host::new(unbound.port, "nameserver 127.0.0.2\nnameserver 127.0.0.1\noptions use-vc\n");
    assert_eq!(host.resolve("a.test.").await, ok(1));
    let answer = host.ask(&query("forty.test.", RecordType::A), Udp).await;
    assert!(answer.metadata.truncation && answer.answers.is_empty(), "too long for the client: {answer}");
    let answer = host.ask(&with_edns(query("forty.test.", RecordType::A), 1232, false), Udp).await;
    assert_eq!(addresses(&answer).len(), 40);
}

#[tokio::test]
async fn where_tcp_is_broken_udp_answers() {
    let [server] = servers::addresses([Ipv4Addr::LOCALHOST]);
    let _udp = answering(server, 7);
    let host = Host::new(server.port(), "nameserver 127.0.0.1\n");
    let refused = host.ask(&query("a.test.", RecordType::A), Tcp).await;
    assert_eq!(addresses(&refused).len(), 1, "refused");
    for broken in [Broken::Closes, Broken::Resets, Broken::Silent, Broken::Partial, Broken::NeverAccepts] {
        let tcp = serve_broken_tcp(server, broken);
        let start = Instant::now();
        let answer = host.ask(&query("a.test.", RecordType::A), Tcp).await;
        assert_eq!(addresses(&answer), ok(7).1, "{broken:?}");
        assert!(start.elapsed() < Duration::from_secs(3), "{broken:?}: {:?}", start.elapsed());
        tcp.stop().await;
    }
}

#[tokio::test]
async fn a_truncated_answer_over_udp_is_asked_for_again_over_tcp() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let front = Ipv4Addr::new(127, 0, 0, 2);
    let server = (front, unbound.port).into();
    let _udp = serve_udp(server, |asked| vec![cut(asked)]);
    // The first connection is lost, the second reaches the resolver.
    let _tcp = servers::relay_second_connection(server, unbound.addresses[0]);
    let host = Host::new(unbound.port, "nameserver 127.0.0.2\n");
    let answer = host.ask(&query("forty.test.", RecordType::A), Tcp).await;
    assert_eq!((answer.metadata.truncation, addresses(&answer).len()), (false, 40), "{answer}");
}

#[tokio::test]
async fn a_refusal_is_believed_when_all_refuse() {
    let unbound = Unbound::start(&[Ipv4Addr::new(127, 0, 0, 2)]);
    for code in [2, 4, 5] {
        let refusing =
            serve_udp((Ipv4Addr::LOCALHOST, unbound.port).into(), move |query| vec![refuse(query, code)]);
        let host = Host::new(unbound.port, "nameserver 127.0.0.1\nnameserver 127.0.0.2\n");
        assert_eq!(host.resolve("a.test.").await, ok(1), "rcode {code}");
        std::fs::write(host.resolv_conf(), "nameserver 127.0.0.1\n").unwrap();
        host.eventually("a.test.", (ResponseCode::from_low(code), vec![])).await;
        refusing.stop().await;
    }
}

#[tokio::test]
async fn forged_answers_are_passed_over() {
    let [server] = servers::addresses([Ipv4Addr::LOCALHOST]);
    let _server = serve_udp(server, |asked| {
        let wrong_id = [&[!asked[0], asked[1]], &refuse(asked, 3)[2..]].concat();
        let other = query("b.test.", RecordType::A).to_vec().unwrap();
        let wrong_name = [&asked[..2], &refuse(&other, 3)[2..]].concat();
        vec![wrong_id, wrong_name, asked.to_vec(), vec![0; 3], vec![], refuse(asked, 5)]
    });
    let host = Host::new(server.port(), "nameserver 127.0.0.1\n");
    assert_eq!(host.resolve("a.test.").await, (ResponseCode::Refused, vec![]));
}

#[tokio::test]
async fn ids_and_ports_are_new_for_every_question() {
    let [server] = servers::addresses([Ipv4Addr::LOCALHOST]);
    let (sender, seen) = std::sync::mpsc::channel();
    let _server = servers::serve_udp_from(server, move |asked, from| {
        sender.send(([asked[0], asked[1]], from.port())).unwrap();
        vec![refuse(asked, 3)]
    });
    let host = Host::new(server.port(), "nameserver 127.0.0.1\n");
    for _ in 0..32 {
        assert_eq!(host.resolve("a.test.").await.0, ResponseCode::NXDomain);
    }
    let (mut ids, mut ports): (Vec<_>, Vec<_>) = seen.try_iter().unzip();
    ids.sort_unstable();
    ids.dedup();
    ports.sort_unstable();
    ports.dedup();
    assert!(ids.len() >= 30 && ports.len() >= 16, "ids {ids:?}, ports {ports:?}");
}

#[tokio::test]
async fn the_resolvers_are_followed() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let second = Unbound::start_on((Ipv4Addr::new(127, 0, 0, 2), unbound.port).into(), 2);
    let host = Host::new(unbound.port, "nameserver 127.0.0.1\n");
    let path = host.resolv_conf();
    assert_eq!(host.resolve("which.test.").await, ok(1));

    // In place, the same length.
    std::fs::write(&path, "nameserver 127.0.0.2\n").unwrap();
    host.eventually("which.test.", ok(2)).await;

    // Replaced.
    let new = host.dir.path().join("new");
    std::fs::write(&new, "nameserver 127.0.0.1\n").unwrap();
    std::fs::rename(&new, &path).unwrap();
    host.eventually("which.test.", ok(1)).await;

    // A link to nowhere, then to a file, then to a file that appears.
    let target = host.dir.path().join("run/stub.conf");
    std::fs::remove_file(&path).unwrap();
    std::os::unix::fs::symlink(Path::new("run/stub.conf"), &path).unwrap();
    drop(unbound);
    host.eventually("which.test.", servfail()).await;
    std::fs::create_dir(host.dir.path().join("run")).unwrap();
    std::fs::write(&target, "nameserver 127.0.0.2\n").unwrap();
    host.eventually("which.test.", ok(2)).await;

    // Empty, then gone.
    std::fs::write(&target, "").unwrap();
    host.eventually("which.test.", servfail()).await;
    std::fs::write(&target, "nameserver 127.0.0.2\n").unwrap();
    host.eventually("which.test.", ok(2)).await;
    std::fs::remove_file(&target).unwrap();
    host.eventually("which.test.", servfail()).await;
    drop(second);
}

#[tokio::test]
async fn a_file_that_is_empty_while_it_is_rewritten_fails_no_question() {
    let unbound = Unbound::start(&[Ipv4Addr::new(127, 0, 0, 2)]);
    let host = Host::new(unbound.port, "");
    let asked = async {
        let start = Instant::now();
        (host.resolve("a.test.").await, start.elapsed())
    };
    // Written once the question has found the file empty, and waits.
    let written = async { std::fs::write(host.resolv_conf(), "nameserver 127.0.0.2\n").unwrap() };
    let ((found, elapsed), ()) = tokio::join!(biased; asked, written);
    assert_eq!(found, ok(1), "after {elapsed:?}");
}

/// VPN clients take the resolvers away before they put others there.
#[tokio::test]
async fn resolvers_that_are_away_for_a_moment_stay_known() {
    let unbound = Unbound::start(&[Ipv4Addr::new(127, 0, 0, 2)]);
    let host = Host::new(unbound.port, "nameserver 127.0.0.2\n");
    assert_eq!(host.resolve("a.test.").await, ok(1));
    for text in [Some("# nothing yet\n"), None] {
        match text {
            Some(text) => std::fs::write(host.resolv_conf(), text).unwrap(),
            None => std::fs::remove_file(host.resolv_conf()).unwrap(),
        }
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(1500) {
            assert_eq!(host.resolve("a.test.").await, ok(1), "{text:?}, after {:?}", start.elapsed());
        }
        std::fs::write(host.resolv_conf(), "nameserver 127.0.0.2\n").unwrap();
    }
}

#[tokio::test]
async fn without_a_resolver_the_answer_is_a_quick_servfail() {
    let [server] = servers::addresses([Ipv4Addr::new(127, 0, 0, 2)]);
    let host = Host::new(server.port(), "");
    std::fs::remove_file(host.resolv_conf()).unwrap();
    let start = Instant::now();
    for transport in [Udp, Tcp] {
        let asked = with_edns(query("a.test.", RecordType::A), 1232, false);
        let answer = host.ask(&asked, transport).await;
        assert_eq!((answer.metadata.response_code, answer.metadata.id), (ResponseCode::ServFail, 0x4711));
        assert_eq!((&answer.queries, answer.edns.is_some()), (&asked.queries, true));
    }
    // Each may have met a resolver that starts again; from then on there is none.
    assert!(start.elapsed() < Duration::from_secs(5), "{:?}", start.elapsed());
    let start = Instant::now();
    assert_eq!(host.resolve("a.test.").await, servfail());
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
    let _server = serve_udp(server, |asked| vec![refuse(asked, 3)]);
    std::fs::write(host.resolv_conf(), "nameserver 127.0.0.2\n").unwrap();
    assert_eq!(host.resolve("a.test.").await.0, ResponseCode::NXDomain, "at once");
}

#[tokio::test]
async fn names_of_the_hosts_file_are_answered_from_it() {
    let unbound = Unbound::start(&[Ipv4Addr::LOCALHOST]);
    let host = Host::new(unbound.port, "nameserver 127.0.0.1\n");
    assert_eq!(host.resolve("a.test.").await, ok(1));
    let hosts = host.dir.path().join("hosts");
    std::fs::write(&hosts, "10.9.8.77 A.test a-alias.test\n10.9.8.78 a.test\n::1 six.test\n").unwrap();
    host.eventually("a-alias.test.", ok(77)).await;
    let both = vec![Ipv4Addr::new(10, 9, 8, 77), Ipv4Addr::new(10, 9, 8, 78)];
    assert_eq!(host.resolve("a.TEST.").await, (ResponseCode::NoError, both));
    assert_eq!(host.resolve("six.test.").await, (ResponseCode::NoError, vec![]));
    let answer = host.ask(&query("a.test.", RecordType::AAAA), Udp).await;
    assert_eq!((answer.metadata.response_code, answer.answers.len()), (ResponseCode::NoError, 0));
    let answer = host.ask(&query("alias.test.", RecordType::CNAME), Udp).await;
    assert_eq!(answer.answers.len(), 1, "other types are the resolver's: {answer}");
    std::fs::remove_file(&hosts).unwrap();
    host.eventually("a.test.", ok(1)).await;
}

#[tokio::test]
async fn what_is_no_query_is_not_asked() {
    let host = Host::new(9, "nameserver 127.0.0.1\n");
    let mut message = query("a.test.", RecordType::A).to_vec().unwrap();
    assert_eq!(host.upstream.ask(&message[..7].to_vec().into(), Udp).await, None);
    message[5] = 2;
    let answer = host.upstream.ask(&message.clone().into(), Udp).await.unwrap();
    assert_eq!((answer.len(), answer[3]), (12, 1), "FORMERR: {answer:?}");
    message[2] |= 0x80;
    assert_eq!(host.upstream.ask(&message.into(), Udp).await, None);
}
