//! The HTTP API, on the host and at the gateway.
//!
//! `parity` runs against the original as well: `GVPROXY=/path/to/gvproxy cargo test --test api parity`.
//! `ours` is where COMPAT.md says that we differ; it always runs our own binary.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]
mod support;

use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use support::daemon::{Builder, Daemon};
use support::frames;
use support::http::{Answer, ask, exchange, read_to_end};
use support::net::{GATEWAY, Host, Net};
use support::{eventually, free_port};

/// No answer takes longer, on a slow machine; the daemon itself gives up after 10 s.
const PATIENCE: Duration = Duration::from_secs(30);
const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");

const ALL: &str = "/services/forwarder/all";
const EXPOSE: &str = "/services/forwarder/expose";
const UNEXPOSE: &str = "/services/forwarder/unexpose";
const ZONES: &str = "/services/dns/all";
const ADD_ZONE: &str = "/services/dns/add";
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
fn assert_refused(answer: &Answer, status: u16, text: &str, what: &str) {
    assert_eq!((answer.status, answer.body.as_str()), (status, format!("{text}\n").as_str()), "{what}");
    assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{what}: {answer:?}");
    assert_eq!(answer.header("x-content-type-options"), "nosniff", "{what}: {answer:?}");
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

mod parity {
    use super::*;

    #[test]
    fn what_is_shown_before_anything_happened() {
        let daemon = served().start();
        let leases = r#"{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.2":"5a:94:ef:e4:0c:ee"}"#;
        let records = r#""Records":[{"Name":"gateway","IP":"192.168.127.1"},{"Name":"host","IP":"192.168.127.254"}],"DefaultIP":"""#;
        let zones = format!(
            r#"[{{"Name":"containers.internal.",{records}}},{{"Name":"docker.internal.",{records}}}]"#
        );
        for (path, body) in [
            (ALL, "[]"),
            ("/services/dhcp/leases", leases),
            ("/leases", leases),
            ("/leases?x=%zz", leases),
            ("/%6ceases", leases),
            ("http://somewhere/leases", leases),
            ("/cam", "{}"),
            (ZONES, &zones),
        ] {
            for (method, shown) in [("GET", body), ("DELETE", body), ("HEAD", "")] {
                let answer = ask(connect(&daemon, "services"), method, path, "");
                let newline = if shown.is_empty() { "" } else { "\n" };
                assert_eq!(
                    (answer.status, answer.body.as_str()),
                    (200, format!("{shown}{newline}").as_str()),
                    "{path}"
                );
                assert_eq!(answer.header("content-type"), "text/plain; charset=utf-8", "{path}");
                assert_eq!(answer.header("content-length"), (body.len() + 1).to_string(), "{method} {path}");
            }
        }
    }

    #[test]
    fn the_counters_have_the_originals_keys() {
        let daemon = served().start();
        let stats = get(&daemon, "/stats").json();
        let mut keys = Vec::new();
        paths(&stats, "", &mut keys);
        let known: Vec<_> = include_str!("data/stats.keys").lines().collect();
        assert_eq!(keys, known);
    }

    /// Every number in `tree` by its path, in the order of the text.
    fn paths(tree: &serde_json::Value, prefix: &str, out: &mut Vec<String>) {
        match tree {
            serde_json::Value::Object(fields) => {
                for (name, value) in fields {
                    let dot = if prefix.is_empty() { "" } else { "." };
                    paths(value, &format!("{prefix}{dot}{name}"), out);
                }
            }
            value => {
                assert!(value.is_u64(), "{prefix}: {value}");
                out.push(prefix.to_owned());
            }
        }
    }

    #[test]
    fn what_there_is_not() {
        let daemon = served().start();
        for path in [
            "/",
            "/x",
            "/services/",
            "/services/forwarder/",
            "/services/forwarder/all/",
            "/cam/",
            "/connect/",
        ] {
            assert_refused(&get(&daemon, path), 404, "404 page not found", path);
        }
        let answer = ask(connect(&daemon, "services"), "POST", "/connect", "");
        assert_refused(&answer, 404, "404 page not found", "/connect on -services");
        for path in [EXPOSE, UNEXPOSE, ADD_ZONE] {
            for method in ["GET", "PUT", "DELETE"] {
                let answer = ask(connect(&daemon, "api"), method, path, "{}");
                assert_refused(&answer, 400, "post only", &format!("{method} {path}"));
            }
        }
    }

    #[test]
    fn roundabout_paths_are_redirected() {
        let daemon = served().start();
        for (path, location) in [
            ("//cam", "/cam"),
            ("/a/../cam", "/cam"),
            ("/./cam", "/cam"),
            ("/..", "/"),
            ("//cam?x=1&y=%41", "/cam?x=1&y=%41"),
            ("/services/forwarder/../dns/all", ZONES),
        ] {
            let answer = get(&daemon, path);
            assert_eq!((answer.status, answer.header("location")), (307, location), "{path}: {answer:?}");
            let link = location.replace('&', "&amp;");
            assert_eq!(answer.body, format!("<a href=\"{link}\">Temporary Redirect</a>.\n\n"), "{path}");
        }
        let answer = post(&daemon, &format!("/{EXPOSE}"), "{}");
        assert_eq!((answer.status, answer.header("location"), answer.body.as_str()), (307, EXPOSE, ""));
    }

    #[test]
    fn bodies_that_are_no_wishes() {
        let daemon = served().start();
        let field = |name: &str, kind: &str, field: &str, of: &str| {
            format!("json: cannot unmarshal {kind} into Go struct field {name}.{field} of type {of}")
        };
        for (path, name) in [(EXPOSE, "ExposeRequest"), (UNEXPOSE, "UnexposeRequest"), (ADD_ZONE, "Zone")] {
            for (body, text) in [
                ("", "EOF".to_owned()),
                ("{", "unexpected EOF".to_owned()),
                ("nul", "unexpected EOF".to_owned()),
                ("[]", format!("json: cannot unmarshal array into Go value of type types.{name}")),
                ("1", format!("json: cannot unmarshal number into Go value of type types.{name}")),
                ("\"x\"", format!("json: cannot unmarshal string into Go value of type types.{name}")),
            ] {
                assert_refused(&post(&daemon, path, body), 400, &text, &format!("{path} {body:?}"));
            }
        }
        let protocol = "types.TransportProtocol";
        for (path, body, text) in [
            (EXPOSE, r#"{"local":1}"#, field("ExposeRequest", "number", "local", "string")),
            (EXPOSE, r#"{"local":["a"],"remote":5}"#, field("ExposeRequest", "array", "local", "string")),
            (EXPOSE, r#"{"remote":true}"#, field("ExposeRequest", "bool", "remote", "string")),
            (EXPOSE, r#"{"protocol":{}}"#, field("ExposeRequest", "object", "protocol", protocol)),
            (UNEXPOSE, r#"{"LOCAL":1}"#, field("UnexposeRequest", "number", "LOCAL", "string")),
            (ADD_ZONE, r#"{"Name":1}"#, field("Zone", "number", "Name", "string")),
            (ADD_ZONE, r#"{"Records":"x"}"#, field("Zone", "string", "Records", "[]types.Record")),
            (ADD_ZONE, r#"{"DefaultIP":"1.1.1"}"#, "invalid IP address: 1.1.1".to_owned()),
            (ADD_ZONE, r#"{"Records":[{"IP":"bad"}]}"#, "invalid IP address: bad".to_owned()),
        ] {
            assert_refused(&post(&daemon, path, body), 400, &text, &format!("{path} {body}"));
        }
        for body in ["{'a':1}", r#"{"local":"x",}"#, "\0", "{\"local\":\"a\nb\"}"] {
            assert_eq!(post(&daemon, EXPOSE, body).status, 400, "{body:?}");
        }
    }

    #[test]
    fn what_leads_nowhere_is_not_exposed() {
        let daemon = served().start();
        for (remote, status, text) in [
            ("", 400, "missing port in address"),
            ("192.168.127.2", 400, "address 192.168.127.2: missing port in address"),
            (":8080", 400, "address @: missing port in address"),
            ("1.2.3.4:5:6", 400, "address 1.2.3.4:5:6: too many colons in address"),
        ] {
            let body = format!(r#"{{"local":"127.0.0.1:0","remote":"{remote}"}}"#);
            assert_refused(&post(&daemon, EXPOSE, &body), status, text, remote);
        }
        for body in ["{}", "null", r#"{"local":null,"remote":null,"protocol":null}"#] {
            assert_refused(&post(&daemon, EXPOSE, body), 400, "missing port in address", body);
        }
        let body = r#"{"local":":0","remote":"192.168.127.2:80","protocol":"sctp"}"#;
        assert_refused(&post(&daemon, EXPOSE, body), 500, "unknown protocol sctp", body);
        for body in ["{}", r#"{"local":":1","protocol":"sctp"}"#, r#"{"local":":1","remote":"x"}"#] {
            assert_refused(&post(&daemon, UNEXPOSE, body), 500, "proxy not found", body);
        }
        assert_eq!(get(&daemon, ALL).body, "[]\n");
    }

    #[test]
    fn ports_are_exposed_shown_and_taken_back() {
        let daemon = served().start();
        let [first, second] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        assert_done(
            &post(&daemon, EXPOSE, &format!(r#"{{"LOCAL":"{first}","Remote":"192.168.127.2:80"}} and more"#)),
            "tcp",
        );
        let body =
            format!(r#"{{"x":[{{}}],"local":"{second}","remote":"192.168.127.2:53","protocol":"udp"}}"#);
        assert_done(&post(&daemon, EXPOSE, &body), "udp");
        let entry = |local: &str, port, protocol| {
            format!(r#"{{"local":"{local}","remote":"192.168.127.2:{port}","protocol":"{protocol}"}}"#)
        };
        let mut entries = [entry(&first, 80, "tcp"), entry(&second, 53, "udp")];
        entries.sort();
        assert_eq!(get(&daemon, ALL).body, format!("[{}]\n", entries.join(",")));

        let answer = post(&daemon, EXPOSE, &entry(&first, 81, "tcp"));
        let running = format!("proxy already running for tcp on {first}");
        assert!(answer.status == 500 && answer.body.starts_with(&running), "{answer:?}");

        assert_done(&post(&daemon, UNEXPOSE, &format!(r#"{{"local":"{first}"}}"#)), "tcp");
        assert_refused(
            &post(&daemon, UNEXPOSE, &format!(r#"{{"local":"{first}"}}"#)),
            500,
            "proxy not found",
            "again",
        );
        assert_done(
            &post(&daemon, UNEXPOSE, &entry(&second, 1, "udp")),
            "udp, with a remote that does not matter",
        );
        assert_eq!(get(&daemon, ALL).body, "[]\n");
    }

    #[test]
    fn zones_are_added_and_added_to() {
        let daemon = served().start();
        let before = get(&daemon, ZONES).json().as_array().unwrap().len();
        for (body, zones) in [
            (
                r#"{"Name":"a.","Records":[{"Regexp":"^x$","IP":"1.2.3.4"}],"DefaultIP":"1.1.1.1"}"#,
                r#"{"Name":"a.","Records":[{"Name":"","IP":"1.2.3.4","Regexp":"^x$"}],"DefaultIP":"1.1.1.1"}"#,
            ),
            (
                r#"{"name":"a.","records":[{"name":"z","ip":"4.3.2.1"},{}]}"#,
                r#"{"Name":"a.","Records":[{"Name":"z","IP":"4.3.2.1"},{"Name":"","IP":""},{"Name":"","IP":"1.2.3.4","Regexp":"^x$"}],"DefaultIP":""}"#,
            ),
        ] {
            assert_done(&post(&daemon, ADD_ZONE, body), body);
            let shown = get(&daemon, ZONES).body;
            let start = shown.find(r#"{"Name":"a.""#).unwrap_or_else(|| panic!("{shown}"));
            assert_eq!(&shown[start..], format!("{zones}]\n"));
            assert_eq!(get(&daemon, ZONES).json().as_array().unwrap().len(), before + 1);
        }
        assert_done(&post(&daemon, ADD_ZONE, r#"{"Name":"b."}"#), "no records");
        let shown = get(&daemon, ZONES).body;
        assert!(shown.ends_with("},{\"Name\":\"b.\",\"Records\":null,\"DefaultIP\":\"\"}]\n"), "{shown}");
        for regexp in ["(", "[b", "(?=a)", "\\\\1"] {
            let answer = post(&daemon, ADD_ZONE, &format!(r#"{{"Records":[{{"Regexp":"{regexp}"}}]}}"#));
            let shown = answer.status == 400 && answer.body.starts_with("error parsing regexp: ");
            assert!(shown, "{regexp}: {answer:?}");
        }
    }

    #[test]
    fn requests_that_are_none() {
        let daemon = served().start();
        for (bytes, status) in [
            ("GET /cam HTTP/1.1\r\nConnection: close\r\n\r\n", 400),
            ("GET /cam HTTP/1.1\r\nHost: a\r\nHost: b\r\nConnection: close\r\n\r\n", 400),
            ("GET /cam HTTP/1.1\r\nHost: \r\nbad header\r\n\r\n", 400),
            ("GET /cam HTTP/1.1\r\nHost: x\r\nContent-Length: x\r\n\r\n", 400),
            ("GET /%zz HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
            ("GET cam HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 400),
            ("garbage\r\n\r\n", 400),
            ("GET /cam HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
            ("GET /cam HTTP/1.1\nHost:\nConnection: close\n\n", 200),
            ("GET /cam HTTP/1.0\r\n\r\n", 200),
            ("OPTIONS * HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n", 200),
        ] {
            let answer = Answer::of(&exchange(connect(&daemon, "api"), bytes.as_bytes()));
            assert_eq!(answer.status, status, "{bytes:?}: {answer:?}");
        }
        let head = format!("GET /cam HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(1_100_000));
        assert_eq!(Answer::of(&exchange(connect(&daemon, "api"), head.as_bytes())).status, 431);
        // Over all that the daemon is still there.
        assert_eq!(get(&daemon, "/cam").status, 200);
    }

    #[test]
    fn connections_are_kept_for_the_next_request_and_pipelined() {
        let daemon = served().start();
        let post = "POST /services/forwarder/all HTTP/1.1\r\nHost:\r\nContent-Length: 5\r\n\r\nhello";
        let get = "GET /cam HTTP/1.1\r\nHost: \r\nConnection: close\r\n\r\n";
        let all = exchange(connect(&daemon, "api"), format!("{post}{post}{get}").as_bytes());
        let text = String::from_utf8(all).unwrap();
        assert_eq!(text.matches("HTTP/1.1 200 OK\r\n").count(), 3, "{text}");
        assert!(text.ends_with("\r\n\r\n{}\n"), "{text}");
    }

    #[test]
    fn a_client_that_has_closed_its_half_is_answered() {
        let daemon = served().start();
        let stream = connect(&daemon, "api");
        (&stream).write_all(b"GET /cam HTTP/1.1\r\nHost: x\r\n\r\n").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_eq!(Answer::of(&read_to_end(&stream)).body, "{}\n");
        let stream = connect(&daemon, "api");
        let request = format!("POST {UNEXPOSE} HTTP/1.1\r\nHost: x\r\nContent-Length: 10\r\n\r\n{{\"");
        (&stream).write_all(request.as_bytes()).unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        assert_refused(&Answer::of(&read_to_end(&stream)), 400, "unexpected EOF", "half a body");
    }

    #[test]
    fn chunks_and_continue() {
        let daemon = served().start();
        let head = format!("POST {UNEXPOSE} HTTP/1.1\r\nHost: x\r\nConnection: close\r\n");
        let chunked = format!("{head}Transfer-Encoding: chunked\r\n\r\n2\r\n{{}}\r\n0\r\n\r\n");
        assert_refused(
            &Answer::of(&exchange(connect(&daemon, "api"), chunked.as_bytes())),
            500,
            "proxy not found",
            "chunks",
        );
        let expecting = format!("{head}Expect: 100-continue\r\nContent-Length: 2\r\n\r\n");
        let mut stream = connect(&daemon, "api");
        stream.write_all(expecting.as_bytes()).unwrap();
        let mut go_on = [0; 25];
        stream.read_exact(&mut go_on).unwrap();
        assert_eq!(go_on, *b"HTTP/1.1 100 Continue\r\n\r\n");
        assert_refused(&Answer::of(&exchange(stream, b"{}")), 500, "proxy not found", "continued");
    }

    #[test]
    fn tunnels_that_are_refused() {
        let daemon = served().start();
        let port = |text: &str, why: &str| format!("strconv.ParseUint: parsing {text}: {why}");
        for (query, text) in [
            ("", "ip is mandatory".to_owned()),
            ("?ip=&ip=192.168.127.2&port=1", "ip is mandatory".to_owned()),
            ("?ip=1", port("\"\"", "invalid syntax")),
            ("?ip=192.168.127.2&port=x", port("\"x\"", "invalid syntax")),
            ("?ip=192.168.127.2&port=%2b80", port("\"+80\"", "invalid syntax")),
            ("?ip=192.168.127.2&port=99999", port("\"99999\"", "value out of range")),
        ] {
            assert_refused(&get(&daemon, &format!("/tunnel{query}")), 500, &text, query);
        }
    }

    #[test]
    fn a_tunnel_to_nobody_says_ok_and_ends() {
        let daemon = served().start();
        for (socket, address) in [("api", "8.8.8.8"), ("services", "192.168.127.1")] {
            let answer = ask(connect(&daemon, socket), "GET", &format!("/tunnel?ip={address}&port=1"), "");
            assert_eq!((answer.status, answer.body.as_str()), (0, "OK"), "{address}");
        }
    }

    #[test]
    fn a_tunnel_carries_bytes_and_the_end_of_each_way() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served(), 1500);
        let listener = net.guest.listen("0.0.0.0:7".parse().unwrap());
        for socket in ["api", "services"] {
            let mut client = connect(&net.daemon, socket);
            let request = format!("POST /tunnel?ip={}&port=7 HTTP/1.1\r\nHost: \r\n\r\n", net.lease.ip());
            client.write_all(request.as_bytes()).unwrap();
            let mut ok = [0; 2];
            client.read_exact(&mut ok).unwrap();
            assert_eq!(&ok, b"OK");
            let (mut guest, from) = listener.accept().unwrap();
            guest.set_read_timeout(Some(PATIENCE)).unwrap();
            assert_eq!(from.ip(), GATEWAY);
            client.write_all(b"to the guest").unwrap();
            client.shutdown(Shutdown::Write).unwrap();
            assert_eq!(read_to_end(&guest), b"to the guest");
            guest.write_all(&[7; 1 << 20]).unwrap();
            drop(guest);
            assert_eq!(read_to_end(client).len(), 1 << 20);
        }
    }

    #[test]
    fn the_switch_and_the_counters_know_the_guest() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served(), 1500);
        assert_eq!(get(&net.daemon, "/cam").body, "{\"5a:94:ef:e4:0c:ee\":0}\n");
        let stats = get(&net.daemon, "/stats").json();
        for way in ["BytesSent", "BytesReceived"] {
            assert!(stats[way].as_u64() > Some(300), "{way}: {stats}");
        }
        let leases = get(&net.daemon, "/leases").json();
        assert_eq!(leases[net.lease.ip().to_string()], "5a:94:ef:e4:0c:ee");
    }

    #[test]
    fn a_connection_becomes_a_machines_link() {
        let daemon = served().start();
        // The original loses what comes with the request, so that the question is asked anew.
        eventually("an answer on a link", PATIENCE, || {
            let mut stream = connect_as_machine(&daemon);
            send_frame(&mut stream, Framing::Qemu, &ask_for_gateway());
            answers(&mut stream, Framing::Qemu, Duration::from_millis(500)).then_some(())
        });
    }

    #[test]
    fn without_a_link_for_qemu_frames_have_two_bytes_of_length() {
        let daemon = served().without_qemu().start();
        eventually("an answer on a link", PATIENCE, || {
            let mut stream = connect_as_machine(&daemon);
            send_frame(&mut stream, Framing::Hyperkit, &ask_for_gateway());
            answers(&mut stream, Framing::Hyperkit, Duration::from_millis(500)).then_some(())
        });
        // It leaves, and the daemon goes on.
        eventually("an empty switch", PATIENCE, || (get(&daemon, "/cam").body == "{}\n").then_some(()));
    }

    /// What podman does in a machine for `-p`.
    #[test]
    fn a_guest_exposes_itself() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served(), 1500);
        let ask = |method: &str, path: &str, body: &str| ask(at_gateway(&net), method, path, body);
        for (protocol, local) in [("tcp", ":8080"), ("udp", "127.0.0.1:8080")] {
            let body = format!(r#"{{"local":"{local}","remote":":80","protocol":"{protocol}"}}"#);
            assert_done(&ask("POST", EXPOSE, &body), &body);
            let entry = format!(
                r#"[{{"local":"{local}","remote":"{}:80","protocol":"{protocol}"}}]"#,
                net.lease.ip()
            );
            assert_eq!(ask("GET", ALL, "").body, format!("{entry}\n"));
            assert_eq!(get(&net.daemon, ALL).body, format!("{entry}\n"));
            let body = format!(r#"{{"local":"{local}","protocol":"{protocol}"}}"#);
            assert_done(&ask("POST", UNEXPOSE, &body), &body);
            assert_eq!(ask("GET", ALL, "").body, "[]\n");
        }
        for path in [
            "/",
            "/cam",
            "/leases",
            "/stats",
            ZONES,
            ADD_ZONE,
            "/connect",
            "/tunnel?ip=192.168.127.2&port=22",
        ] {
            assert_refused(&ask("POST", path, ""), 404, "404 page not found", path);
        }
    }
}

/// How long a frame is, on the wire.
#[derive(Clone, Copy)]
enum Framing {
    Qemu,
    Hyperkit,
}

/// gvforwarder's own words.
#[track_caller]
fn connect_as_machine(daemon: &Daemon) -> UnixStream {
    let mut stream = connect(daemon, "api");
    stream.write_all(CONNECT).unwrap();
    stream
}

fn framed(framing: Framing, frame: &[u8]) -> Vec<u8> {
    let length = u16::try_from(frame.len()).unwrap();
    match framing {
        Framing::Qemu => [&u32::from(length).to_be_bytes()[..], frame].concat(),
        Framing::Hyperkit => [&length.to_le_bytes()[..], frame].concat(),
    }
}

fn send_frame(stream: &mut UnixStream, framing: Framing, frame: &[u8]) {
    // It may have been closed, which the answer tells.
    let _ = stream.write_all(&framed(framing, frame));
}

fn ask_for_gateway() -> Vec<u8> {
    frames::arp(1, frames::MAC, frames::IP, [0; 6], GATEWAY)
}

/// Whether the gateway says where it is, as the first that comes.
fn answers(stream: &mut UnixStream, framing: Framing, patience: Duration) -> bool {
    stream.set_read_timeout(Some(patience)).unwrap();
    let mut head = vec![0; framed(framing, &[]).len() + 12];
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
        let frame = framed(Framing::Hyperkit, &ask_for_gateway());
        // The second one is cut, and goes on later.
        let (now, later) = frame.split_at(20);
        stream.write_all(&[CONNECT, frame.as_slice(), now].concat()).unwrap();
        assert!(answers(&mut stream, Framing::Hyperkit, PATIENCE));
        assert_eq!(get(&daemon, "/cam").body, "{\"5a:94:ef:e4:0c:ee\":0}\n");
        let mut rest = vec![0; frame.len() - 14];
        stream.read_exact(&mut rest).unwrap();
        stream.write_all(later).unwrap();
        assert!(answers(&mut stream, Framing::Hyperkit, PATIENCE), "the second answer");
    }

    #[test]
    fn what_is_no_tunnel_is_said_before_the_connection_is_taken_over() {
        let daemon = ours();
        assert_refused(
            &get(&daemon, "/tunnel?ip=name&port=1"),
            500,
            "invalid IPv4 address \"name\"",
            "a name",
        );
        let answer = post(&daemon, "/tunnel?ip=192.168.127.2&port=1", "abc");
        assert_refused(&answer, 400, "a request for a raw connection has no body", "a body");
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
    fn a_body_has_a_limit() {
        let daemon = ours();
        let body = format!(r#"{{"local":"{}"}}"#, "x".repeat(1 << 20));
        let answer = post(&daemon, EXPOSE, &body);
        assert_refused(&answer, 413, "request body too large: the limit is 65536 bytes", "a megabyte");
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
        let first = ours();
        let path = first.dir().join("api").display().to_string();
        let mut second = Daemon::builder().binary(OURS).args(["-listen", &format!("unix://{path}")]).spawn();
        let status = second.wait(PATIENCE).expect("the end of the second daemon");
        assert_eq!(status.code(), Some(1));
        let why = second.stderr();
        assert!(why.contains("cannot listen") && why.contains("already exists and is in use"), "{why}");
        assert_eq!(get(&first, "/cam").status, 200);

        let dir = tempfile::tempdir_in("/tmp").unwrap();
        let dead = dir.path().join("dead");
        drop(std::os::unix::net::UnixListener::bind(&dead).unwrap());
        let url = format!("unix://{}", dead.display());
        let _third = Daemon::builder().binary(OURS).args(["-listen", &url]).start();
        let stream = UnixStream::connect(&dead).unwrap();
        assert_eq!(ask(stream, "GET", "/cam", "").status, 200);
    }

    #[test]
    fn a_guest_has_its_own_and_nothing_more() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served().binary(OURS), 1500);
        let ask = |path: &str, body: &str| ask(at_gateway(&net), "POST", path, body);
        let operators = r#"{"local":"127.0.0.1:8081","remote":"192.168.127.2:22","protocol":"tcp"}"#;
        assert_done(&post(&net.daemon, EXPOSE, operators), operators);
        assert_eq!(ask(ALL, "").body, "[]\n", "the operator's are not shown");
        assert_eq!(ask(UNEXPOSE, operators).status / 100, 5, "nor taken away");
        assert_eq!(get(&net.daemon, ALL).body, format!("[{operators}]\n"));
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
        let long = format!("GET /cam HTTP/1.1\r\nHost: x\r\nX: {}\r\n\r\n", "a".repeat(200_000));
        for (bytes, status) in [
            ("garbage\r\n\r\n", 400),
            ("GET /cam HTTP/1.1\r\nHost: \r\nbad header\r\n\r\n", 400),
            (&long, 431),
        ] {
            let answer = Answer::of(&exchange(connect(&daemon, "api"), bytes.as_bytes()));
            assert_eq!((answer.status, answer.body.as_str()), (status, ""), "{answer:?}");
        }
    }

    #[test]
    fn one_guest_has_few_connections_to_the_gateway() {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), served().binary(OURS), 1500);
        let streams: Vec<_> = (0..40).map(|_| at_gateway(&net)).collect();
        let mut served = 0;
        for mut stream in &streams {
            let _ = stream.write_all(&support::http::request("GET", ALL, ""));
            served += usize::from(Answer::of(&read_to_end(stream)).status == 200);
        }
        assert_eq!(served, 16);
        drop(streams);
        let answer = eventually("room again", PATIENCE, || {
            Some(ask(at_gateway(&net), "GET", ALL, "")).filter(|answer| answer.status == 200)
        });
        assert_eq!(answer.body, "[]\n");
    }

    #[test]
    fn urls_that_cannot_be_listened_on() {
        for (args, text) in [
            (["-listen", "/run/x"], "invalid value \\\"/run/x\\\" for -listen: unexpected scheme"),
            (["-services", "unix://x"], "for -services: the path of a unix URL must be absolute"),
            (["-listen", "tcp://127.0.0.1"], "missing port in address"),
            (["-listen", "unixpacket:///tmp/x"], "unexpected scheme"),
            (
                ["-listen", "unix:///nowhere/x"],
                "cannot listen: listen unix /nowhere/x: bind: no such file or directory",
            ),
        ] {
            let mut daemon = Daemon::builder().binary(OURS).args(args).spawn();
            let status = daemon.wait(PATIENCE).expect("the end of the daemon");
            let why = daemon.stderr();
            assert!(status.code() == Some(1) && why.contains(text), "{args:?}: {status:?} {why}");
        }
    }
}
