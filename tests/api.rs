//! The HTTP API, on the host and at the gateway.
//!
//! What the original has as well is in `parity`; this is what only ours does.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use testkit::daemon::{Builder, Daemon};
use testkit::frames;
use testkit::guest::Guest;
use testkit::http::{Answer, ask, ask_and_keep, exchange, read_to_end};
use testkit::net::{GATEWAY, Host, Net, plug};
use testkit::uninterrupted;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

/// No answer takes longer, on a slow machine; the daemon itself gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(30);
const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");

const ALL: &str = "/services/forwarder/all";
const EXPOSE: &str = "/services/forwarder/expose";
const CONNECT: &[u8] =
    b"POST /connect HTTP/1.1\r\nHost: \r\nUser-Agent: Go-http-client/1.1\r\nContent-Length: 0\r\n\r\n";

/// A daemon with both kinds of endpoint.
fn served() -> Builder {
    Daemon::builder().args(["-listen", "unix://{dir}/api", "-services", "unix://{dir}/services"])
}

fn ours() -> Daemon {
    served().binary(OURS).start()
}

#[track_caller]
fn connect(daemon: &Daemon, socket: &str) -> UnixStream {
    let path = daemon.dir().join(socket);
    let stream =
        eventually(&format!("a connection to {socket}"), PATIENCE, || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

#[track_caller]
fn get(daemon: &Daemon, path: &str) -> Answer {
    ask(connect(daemon, "api"), "GET", path, "")
}

#[track_caller]
fn post(daemon: &Daemon, path: &str, body: &str) -> Answer {
    ask(connect(daemon, "api"), "POST", path, body)
}

#[track_caller]
fn assert_done(answer: &Answer, what: &str) {
    assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{what}: {answer:?}");
    assert_eq!(
        (answer.header("content-length"), answer.header("content-type")),
        ("0", ""),
        "{what}: {answer:?}"
    );
}

#[track_caller]
fn assert_refused(answer: &Answer, status: u16, text: &str, what: &str) {
    assert_eq!((answer.status, answer.body.as_str()), (status, format!("{text}\n").as_str()), "{what}");
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{what}: {answer:?}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}: {answer:?}");
}

/// A frame with its length, as HyperKit puts it.
fn framed(frame: &[u8]) -> Vec<u8> {
    [&u16::try_from(frame.len()).unwrap().to_le_bytes()[..], frame].concat()
}

fn ask_for_gateway() -> Vec<u8> {
    frames::arp(1, frames::MAC, frames::IP, [0; 6], GATEWAY)
}

/// Whether the gateway says where it is, as the first that comes.
fn answers(stream: &mut UnixStream) -> bool {
    let mut head = [0; 14];
    let expected = [&frames::MAC[..], &frames::GATEWAY_MAC].concat();
    stream.read_exact(&mut head).is_ok() && head.ends_with(&expected)
}

#[track_caller]
fn at_gateway(net: &Net) -> TcpStream {
    let stream = net.guest.connect(SocketAddr::from((GATEWAY, 80))).expect("a connection to the gateway");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

mod ours {
    use std::os::unix::fs::PermissionsExt;

    use super::*;

    #[test]
    fn the_sockets_are_private_and_go_with_the_daemon() {
        let mut daemon = ours();
        for socket in ["api", "services"] {
            let mode = std::fs::metadata(daemon.dir().join(socket)).unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600, "{socket}");
        }
        let kept = connect(&daemon, "api");
        assert!(daemon.terminate().success());
        assert_eq!(std::fs::read_dir(daemon.dir()).unwrap().count(), 0);
        assert_eq!(read_to_end(kept), b"");
    }

    #[test]
    fn what_is_sent_behind_a_tunnel_request_arrives() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served().binary(OURS), 1500);
        let listener = net.guest.listen("0.0.0.0:7".parse().unwrap());
        let early = "x".repeat(20_000);
        for before in ["", "GET /nothing HTTP/1.1\r\nHost: \r\n\r\n"] {
            let client = connect(&net.daemon, "api");
            let request = format!(
                "{before}POST /tunnel?ip={}&port=7 HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n{early}",
                net.lease.ip()
            );
            (&client).write_all(request.as_bytes()).unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            let (guest, _) = listener.accept().unwrap();
            guest.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(read_to_end(&guest), early.as_bytes());
            drop(guest);
            let answer = String::from_utf8(read_to_end(&client)).unwrap();
            assert!(
                answer.ends_with("OK") && (before.is_empty() || answer.contains("404 page not found\nOK")),
                "{answer}"
            );
        }
    }

    #[test]
    fn frames_that_are_sent_behind_a_connect_request_arrive() {
        let daemon = served().without_qemu().binary(OURS).start();
        let mut stream = connect(&daemon, "api");
        let frame = framed(&ask_for_gateway());
        // The second one is cut, and goes on later.
        let (now, later) = frame.split_at(20);
        stream.write_all(&[CONNECT, frame.as_slice(), now].concat()).unwrap();
        assert!(answers(&mut stream));
        assert_eq!(get(&daemon, "/cam").body, "{\"5a:94:ef:e4:0c:ee\":0}\n");
        let mut rest = vec![0; frame.len() - 14];
        stream.read_exact(&mut rest).unwrap();
        stream.write_all(later).unwrap();
        assert!(answers(&mut stream), "the second answer");
    }

    #[test]
    fn web_pages_are_refused_over_tcp() {
        let port = free_port();
        let mut daemon =
            Daemon::builder().binary(OURS).args(["-listen", &format!("tcp://127.0.0.1:{port}")]).start();
        let ask = |headers: &str| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = format!("GET /cam HTTP/1.1\r\nConnection: close\r\n{headers}\r\n\r\n");
            Answer::of(&exchange(stream, request.as_bytes()))
        };
        let own = format!("127.0.0.1:{port}");
        for headers in [
            "Host: ",
            "Host: localhost",
            &format!("Host: {own}"),
            &format!("Host: {own}\r\nOrigin: http://{own}"),
        ] {
            assert_eq!((ask(headers).status, ask(headers).body.as_str()), (200, "{}\n"), "{headers}");
        }
        let foreign = format!("host \"evil.example:{port}\" is not served here");
        assert_refused(&ask(&format!("Host: evil.example:{port}")), 403, &foreign, "a foreign name");
        let page = "pages of \"http://evil.example\" may not ask here";
        assert_refused(
            &ask(&format!("Host: {own}\r\nOrigin: http://evil.example")),
            403,
            page,
            "a foreign page",
        );
        assert!(daemon.is_running());
    }

    #[test]
    fn idle_and_slow_clients_are_closed() {
        let daemon = ours();
        let slow = [
            "".to_owned(),
            "GET /cam HTTP/1.1\r\n".to_owned(),
            "GET /cam HTTP/1.1\r\nHost: \r\n\r\n".to_owned(),
            format!("POST {EXPOSE} HTTP/1.1\r\nHost: \r\nContent-Length: 10\r\n\r\n{{"),
        ];
        let clients = slow.map(|text| {
            let mut stream = connect(&daemon, "api");
            stream.write_all(text.as_bytes()).unwrap();
            stream
        });
        let ends = clients.map(|stream| Answer::of(&read_to_end(stream)).status);
        assert_eq!(ends, [0, 0, 200, 400]);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_live_one_is_not() {
        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let live = dir.path().join("live");
        let _listener = std::os::unix::net::UnixListener::bind(&live).unwrap();
        let url = format!("unix://{}", live.display());
        let mut daemon = Daemon::builder().binary(OURS).args(["-listen", &url]).spawn();
        let status = daemon.wait(PATIENCE).expect("the end of the daemon");
        assert_eq!(status.code(), Some(1));
        let why = daemon.stderr();
        assert!(why.contains("cannot listen") && why.contains("already exists and is in use"), "{why}");

        let dead = dir.path().join("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let url = format!("unix://{}", dead.display());
        let _third = Daemon::builder().binary(OURS).args(["-listen", &url]).start();
        let stream = UnixStream::connect(&dead).unwrap();
        assert_eq!(ask(stream, "GET", "/cam", "").status, 200);
    }

    #[test]
    fn what_the_operator_denies_guests() {
        let dir = tempfile::tempdir().unwrap();
        let config = dir.path().join("config.yaml");
        std::fs::write(
            &config,
            "guest:\n  exposeAddresses: [127.0.0.1, \"::1\"]\n  exposePrivilegedPorts: false\n",
        )
        .unwrap();
        let builder = served().binary(OURS).args(["-config", config.to_str().unwrap()]);
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), builder, 1500);
        let expose = |local: &str| {
            let body = format!(r#"{{"local":"{local}","remote":":80","protocol":"tcp"}}"#);
            ask(at_gateway(&net), "POST", EXPOSE, &body)
        };
        for local in ["127.0.0.1:8080", "localhost:8081"] {
            assert_done(&expose(local), local);
        }
        for (local, why) in [
            (":8082", "a guest may not expose ports at 0.0.0.0"),
            ("0.0.0.0:8082", "a guest may not expose ports at 0.0.0.0"),
            ("127.0.0.2:8082", "a guest may not expose ports at 127.0.0.2"),
            ("127.0.0.1:1023", "a guest may expose ports from 1024 on, not 1023"),
        ] {
            assert_refused(&expose(local), 403, why, local);
        }
        // Who started the daemon may.
        let body = format!(r#"{{"local":":8082","remote":"{}:80","protocol":"tcp"}}"#, net.lease.ip());
        assert_done(&post(&net.daemon, EXPOSE, &body), &body);
    }

    #[test]
    fn there_is_no_profiler_and_no_redirection() {
        let daemon = served().binary(OURS).args(["-debug"]).start();
        for path in [
            "/debug/pprof/",
            "/debug/pprof/cmdline",
            "/debug/pprof/profile",
            "/services",
            "/services/forwarder",
            "/services/dns",
            "/services/dhcp",
        ] {
            assert_refused(&get(&daemon, path), 404, "404 page not found", path);
        }
    }

    #[test]
    fn what_is_no_request_is_answered_without_words() {
        let daemon = ours();
        let [long, longer] = [66_000, 200_000]
            .map(|len| format!("GET /cam HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(len)));
        // With the two before them a hundred, and one more.
        let [most, more] = [98, 99].map(|lines| {
            format!("GET /cam HTTP/1.1\r\nHost: x\r\nConnection: close\r\n{}\r\n", "X: y\r\n".repeat(lines))
        });
        let ask = |bytes: &str| Answer::of(&exchange(connect(&daemon, "api"), bytes.as_bytes()));
        assert_eq!(ask(&most).status, 200);
        for (bytes, status) in [
            (&more[..], 431),
            ("garbage\r\n\r\n", 400),
            ("GET /cam HTTP/1.1\r\nHost: \r\nbad header\r\n\r\n", 400),
            (&long, 431),
            (&longer, 431),
        ] {
            let answer = ask(bytes);
            assert_eq!((answer.status, answer.body.trim_end()), (status, ""), "{answer:?}");
        }
    }

    #[test]
    fn a_refusal_repeats_only_so_much() {
        let daemon = ours();
        let body =
            format!(r#"{{"local":":1","remote":"192.168.127.2:1","protocol":"{}"}}"#, "ä".repeat(20_000));
        let answer = ask(connect(&daemon, "api"), "POST", "/services/forwarder/expose", &body);
        assert_eq!((answer.status, answer.body.len()), (500, 4096), "{answer:?}");
        let target = format!("//?{}", "&".repeat(5000));
        assert_eq!(ask(connect(&daemon, "api"), "GET", &target, "").status, 414);
        assert_eq!(ask(connect(&daemon, "api"), "GET", "//cam?&", "").status, 307);
    }

    #[test]
    fn what_is_kept_open_keeps_nobody_out_at_the_gateway() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served().binary(OURS), 1500);
        // More than there are places, each of them half a request.
        let half: Vec<_> = (0..1100)
            .map(|_| {
                let mut stream = at_gateway(&net);
                stream.write_all(b"POST /services/forwarder/expose HTTP/1.1\r\nHost: x\r\n").unwrap();
                stream
            })
            .collect();
        // What just came may still be completed, which takes 2 s at most.
        let start = Instant::now();
        let answer = eventually("a place", Duration::from_secs(4), || {
            Some(ask_and_keep(&at_gateway(&net), "GET", ALL, "")).filter(|answer| answer.status == 200)
        });
        assert_eq!(answer.body, "[]\n", "after {:?}", start.elapsed());
        drop(half);
    }

    /// Two guests of one daemon, on a host.
    #[track_caller]
    fn two_guests() -> (Host, Daemon, [Guest; 2]) {
        let host = Host::new("nameserver 127.0.0.1\n");
        let daemon = served().args(["-keep-running"]).binary(OURS).through(host.prefix()).start();
        let guests = ["5a:94:ef:00:00:01", "5a:94:ef:00:00:02"].map(|mac| {
            let guest = Guest::start(plug(&daemon), mac, 1500);
            guest.dhcp();
            guest
        });
        (host, daemon, guests)
    }

    #[test]
    fn one_guest_keeps_no_other_out_of_the_gateway() {
        let (_host, _daemon, [greedy, other]) = two_guests();
        let gateway = SocketAddr::from((GATEWAY, 80));
        let held: Vec<_> = (0..1030).map(|_| greedy.connect(gateway)).collect();
        let stream = other.connect(gateway).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let start = Instant::now();
        let answer = ask(&stream, "GET", ALL, "");
        let after = start.elapsed();
        assert!(
            answer.status == 200 && after < Duration::from_secs(1),
            "{answer:?} after {after:?}, beside {}",
            held.len()
        );
    }

    /// A connection that is told to close may end its request, for 2 s.
    #[test]
    fn one_guests_endless_requests_keep_no_other_out_of_the_gateway() {
        let (_host, _daemon, [greedy, other]) = two_guests();
        let gateway = SocketAddr::from((GATEWAY, 80));
        let half = || {
            let mut stream = greedy.connect(gateway).unwrap();
            stream
                .write_all(
                    b"POST /services/forwarder/expose HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\n\r\n",
                )
                .unwrap();
            stream
        };
        let mut held: Vec<_> = (0..1030).map(|_| half()).collect();
        let (last, grace) = (Instant::now(), Duration::from_secs(2));
        eventually("all are idle", 2 * grace, || (last.elapsed() > grace).then_some(()));
        held.extend((0..1100).map(|_| half()));
        let stream = other.connect(gateway).unwrap();
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let start = Instant::now();
        let answer = ask(&stream, "GET", ALL, "");
        let after = start.elapsed();
        assert!(
            answer.status == 200 && after < Duration::from_secs(1),
            "{answer:?} after {after:?}, beside {}",
            held.len()
        );
    }

    #[test]
    fn idle_clients_on_the_host_keep_nobody_out() {
        let daemon = served().binary(OURS).descriptors(256).start();
        let mut idle = Vec::new();
        for number in 0..400 {
            let stream = connect(&daemon, "api");
            let start = Instant::now();
            let answer = ask_and_keep(&stream, "GET", "/cam", "");
            let after = start.elapsed();
            assert!(
                answer.status == 200 && after < Duration::from_secs(2),
                "{number}: {answer:?} after {after:?}"
            );
            idle.push(stream);
        }
        // Whoever was closed read an end, and no reset.
        let mut first = &idle[0];
        assert_eq!(uninterrupted(|| first.read(&mut [0; 16])).unwrap(), 0);
    }

    /// Not that it waits, and everybody behind it: of those who are let in some are idle 2 s later.
    #[test]
    fn a_client_too_many_is_closed_at_once() {
        let daemon = served().binary(OURS).descriptors(256).start();
        // An eighth of the descriptors.
        let held: Vec<_> = (0..32).map(|_| connect(&daemon, "api")).collect();
        let mut next = connect(&daemon, "api");
        let start = Instant::now();
        assert_eq!(uninterrupted(|| next.read(&mut [0])).unwrap(), 0);
        assert!(start.elapsed() < Duration::from_secs(1), "after {:?}", start.elapsed());
        let answer = eventually("a place", Duration::from_secs(4), || {
            Some(ask_and_keep(&connect(&daemon, "api"), "GET", "/cam", ""))
                .filter(|answer| answer.status == 200)
        });
        assert_eq!(answer.status, 200, "beside {}", held.len());
        assert_eq!(daemon.stderr().matches("too many clients").count(), 1, "{}", daemon.stderr());
    }

    #[test]
    fn a_token_is_asked_for_over_tcp() {
        const TOKEN: &str = "0123456789abcdef0123456789ABCDEF";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, format!("{TOKEN}\n")).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let port = free_port();
        let url = format!("tcp://127.0.0.1:{port}");
        let builder = || served().binary(OURS).args(["-debug", "-listen", &url]);
        let with_file = || builder().args(["-api-token-file", file.to_str().unwrap()]);
        let with_variable = builder().env("GVISOR_API_TOKEN", TOKEN);
        let over_tcp = |headers: &str| {
            let stream = TcpStream::connect(("127.0.0.1", port)).unwrap();
            stream.set_read_timeout(Some(PATIENCE)).unwrap();
            let request = format!("GET /cam HTTP/1.1\r\nConnection: close\r\nHost: \r\n{headers}\r\n");
            Answer::of(&exchange(stream, request.as_bytes()))
        };
        for builder in [with_file(), with_variable] {
            let daemon = builder.start();
            for headers in [
                "".to_owned(),
                format!("Authorization: {TOKEN}\r\n"),
                format!("Authorization: Basic {TOKEN}\r\n"),
                format!("Authorization: Bearer {}\r\n", &TOKEN[1..]),
                format!("Authorization: Bearer {}\r\n", TOKEN.to_lowercase()),
                format!("Authorization: Bearer {TOKEN}\r\nAuthorization: Bearer x\r\n"),
            ] {
                let answer = over_tcp(&headers);
                assert_refused(&answer, 401, "401 Unauthorized", &headers);
                assert_eq!(answer.header("www-authenticate"), "Bearer");
            }
            assert_eq!(over_tcp(&format!("Authorization: Bearer {TOKEN}\r\n")).body, "{}\n");
            // A unix socket has its mode.
            assert_eq!(get(&daemon, "/cam").status, 200);
            let log = daemon.stderr();
            assert!(!log.contains(TOKEN), "{log}");
        }
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o644)).unwrap();
        let mut open = with_file().spawn();
        assert_eq!(open.wait(PATIENCE).expect("the end of the daemon").code(), Some(1));
        assert!(open.stderr().contains("its mode is 0644, want 0600"), "{}", open.stderr());
        let mut none = builder().args(["-api-token-gateway"]).spawn();
        assert_eq!(none.wait(PATIENCE).expect("the end of the daemon").code(), Some(1));
        // A script's variable that is not set.
        let mut empty = builder().args(["-api-token-file="]).spawn();
        assert_eq!(empty.wait(PATIENCE).expect("the end of the daemon").code(), Some(1));
        assert!(empty.stderr().contains("api-token-file is empty"), "{}", empty.stderr());
    }

    /// `-qmp-status` is given the token as the daemon is.
    #[test]
    fn a_daemon_with_a_token_tells_its_machines() {
        const TOKEN: &str = "0123456789abcdef0123456789ABCDEF";
        let dir = tempfile::tempdir().unwrap();
        let file = dir.path().join("token");
        std::fs::write(&file, TOKEN).unwrap();
        std::fs::set_permissions(&file, std::fs::Permissions::from_mode(0o600)).unwrap();
        let (url, qmp) =
            (format!("tcp://127.0.0.1:{}", free_port()), format!("unix://{}/qmp", dir.path().display()));
        let machine = ["-listen", &url, "-qmp", &qmp];
        let file = ["-api-token-file", file.to_str().unwrap()];
        let _daemon = served().binary(OURS).args(machine).args(file).start();
        let show = |args: &[&str], variable: Option<&str>| {
            let mut command = std::process::Command::new(testkit::daemon::binary());
            command.args(machine).args(args).arg("-qmp-status");
            let output = command.envs(variable.map(|token| ("GVISOR_API_TOKEN", token))).output().unwrap();
            String::from_utf8([output.stdout, output.stderr].concat()).unwrap()
        };
        let told = format!("{qmp}: no name, no QEMU yet\n  no network card of gvproxy");
        for (args, variable) in [(&file[..], None), (&[], Some(TOKEN)), (&file, Some("no token"))] {
            let said = show(args, variable);
            assert!(said.starts_with(&told), "{args:?} {variable:?}: {said}");
        }
        for variable in [None, Some("another-token-of-32-characters-----")] {
            let said = show(&[], variable);
            assert!(said.contains("401 Unauthorized; it wants its token, from -api-token-file"), "{said}");
        }
    }

    #[test]
    fn guests_send_the_token_where_that_is_asked() {
        const TOKEN: &str = "0123456789abcdef0123456789ABCDEF";
        for (args, without) in [(&["-api-token-gateway"][..], 401), (&[], 200)] {
            let builder = served().binary(OURS).env("GVISOR_API_TOKEN", TOKEN).args(args);
            let net = Net::with(Host::new("nameserver 127.0.0.1\n"), builder, 1500);
            assert_eq!(ask(at_gateway(&net), "GET", ALL, "").status, without, "{args:?}");
            let request = format!(
                "GET {ALL} HTTP/1.1\r\nConnection: close\r\nHost: \r\nAuthorization: bearer {TOKEN}\r\n\r\n"
            );
            let answer = Answer::of(&exchange(at_gateway(&net), request.as_bytes()));
            assert_eq!((answer.status, answer.body.as_str()), (200, "[]\n"), "{args:?}");
        }
    }

    #[test]
    fn urls_that_cannot_be_listened_on() {
        for (args, text) in [
            (["-listen", "/run/x"], "invalid value \\\"/run/x\\\" for -listen: unexpected scheme"),
            (["-listen", "tcp://127.0.0.1"], "missing port in address"),
        ] {
            let mut daemon = Daemon::builder().binary(OURS).args(args).spawn();
            let status = daemon.wait(PATIENCE).expect("the end of the daemon");
            let why = daemon.stderr();
            assert!(status.code() == Some(1) && why.contains(text), "{args:?}: {status:?} {why}");
        }
    }
}
