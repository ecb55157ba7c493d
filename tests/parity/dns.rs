//! DNS at the gateway, asked by a guest: zones, and questions for others, which a server on the host answers.
//! Reference 3.5 and 4.6.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use hickory_proto::op::Message;

use crate::case::{Case, Net, On, Table};
use crate::web::{ADD_ZONE, REMOVE_RECORD, REMOVE_ZONE, SERVED, post};
use crate::wire::SILENCE;
use testkit::dns::{
    A, AAAA, CAA, CNAME, HTTPS, MX, NS, PTR, SOA, SRV, Server, TXT, ask_tcp, ask_udp, is_truncated, question,
    try_ask_udp,
};
use testkit::net::{GATEWAY, Host};

/// The row of what the original's newest checks.
const CHECKS: &str = "`/services/dns/add`";
const AT: SocketAddr = SocketAddr::new(IpAddr::V4(GATEWAY), 53);

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("dns");
    zones(&mut table);
    upstream(&mut table);
    messages(&mut table);
    table.done()
}

/// A guest, and a server on its host that knows what `test.` holds.
fn net(on: &On) -> (Net, Server) {
    let host = Host::new("nameserver 127.0.0.1\n");
    let server = Server::start(&host, "127.0.0.1");
    (on.net_on(host, SERVED), server)
}

/// The code and the answers, sorted, with their data and without their TTL.
fn shown(answer: &[u8]) -> String {
    let Ok(message) = Message::from_vec(answer) else {
        return format!("unreadable: {}", answer.escape_ascii());
    };
    let mut answers: Vec<_> = message
        .answers
        .iter()
        .map(|record| format!("{} {} {}", record.name, record.record_type(), record.data))
        .collect();
    answers.sort();
    let code = message.metadata.response_code;
    if answers.is_empty() { format!("{code:?}") } else { format!("{code:?} {}", answers.join(", ")) }
}

fn ask(net: &Net, name: &str, kind: u16) -> String {
    shown(&ask_udp(&net.guest, AT, &question(name, kind, None)))
}

/// A question to a new daemon.
fn asked(name: &'static str, kind: u16) -> impl Fn(&On) -> String + Send + Sync + 'static {
    move |on| {
        let (net, _server) = net(on);
        ask(&net, name, kind)
    }
}

fn zones(table: &mut Table) {
    for (name, seen) in [
        ("gateway.containers.internal", "NoError gateway.containers.internal. A 192.168.127.1"),
        ("host.containers.internal", "NoError host.containers.internal. A 192.168.127.254"),
        ("gateway.docker.internal", "NoError gateway.docker.internal. A 192.168.127.1"),
        ("host.docker.internal", "NoError host.docker.internal. A 192.168.127.254"),
        ("other.containers.internal", "NXDomain"),
    ] {
        table.same(format!("9.28 9.31 A {name}"), seen, asked(name, A));
    }
    table.differs(
        "10.63 A HOST.containers.internal",
        "names",
        "NoError HOST.containers.internal. A 192.168.127.254",
        "NXDomain",
        asked("HOST.containers.internal", A),
    );
    table.same("10.61 AAAA host.containers.internal", "NoError", asked("host.containers.internal", AAAA));
    table.differs(
        "MX host.containers.internal",
        "a zone's name, type other than A",
        "NoError",
        "NXDomain",
        asked("host.containers.internal", MX),
    );
    table.differs(
        "the zone's own name goes to the host's servers",
        "questions for others",
        "Refused",
        "NXDomain",
        asked("containers.internal", A),
    );
    table.same(
        "9.29 a zone is added, and the newest record wins",
        "NoError test.dynamic.internal. A 192.168.127.251; NoError test.dynamic.internal. A 192.168.127.253",
        |on| {
            let (net, _server) = net(on);
            let zone = |ip: &str| {
                format!(r#"{{"Name":"dynamic.internal.","Records":[{{"Name":"test","IP":"{ip}"}}]}}"#)
            };
            let mut seen = Vec::new();
            for ip in ["192.168.127.251", "192.168.127.253"] {
                post(&net.daemon, ADD_ZONE, &zone(ip));
                seen.push(ask(&net, "test.dynamic.internal", A));
            }
            seen.join("; ")
        },
    );
    table.same("9.30 zones keep their order, a default takes what is left", "NoError any.dynamic.testing. A 192.168.127.2; NoError *.dynamic.testing. A 192.168.127.2; NoError b.a.dynamic.testing. A 192.168.127.2; NoError host.testing. A 192.168.127.3; NoError r12x.testing. A 192.168.127.4; NoError later.testing. A 192.168.127.5; NXDomain", |on| {
        let (net, _server) = net(on);
        for zone in [
            r#"{"Name":"dynamic.testing.","DefaultIP":"192.168.127.2"}"#,
            r#"{"Name":"testing.","Records":[{"Name":"host","IP":"192.168.127.3"},{"Regexp":"^r[0-9]+","IP":"192.168.127.4"}]}"#,
            r#"{"Name":"testing.","Records":[{"Name":"later","IP":"192.168.127.5"}]}"#,
        ] {
            post(&net.daemon, ADD_ZONE, zone);
        }
        let names = ["any.dynamic.testing", "*.dynamic.testing", "b.a.dynamic.testing", "host.testing", "r12x.testing", "later.testing", "none.testing"];
        names.map(|name| ask(&net, name, A)).join("; ")
    });
    table.differs(
        "10.76 a zone without a name takes every name",
        CHECKS,
        "NoError a.test. A 192.0.2.1; 400 zone name is required; NoError a.test. A 192.0.2.1; NoError host.containers.internal. A 192.168.127.254",
        "NoError a.test. A 192.0.2.1; 200; NXDomain; NoError host.containers.internal. A 192.168.127.254",
        |on| {
            let (net, _server) = net(on);
            let before = ask(&net, "a.test", A);
            let added = post(&net.daemon, ADD_ZONE, "{}");
            format!(
                "{before}; {added}; {}; {}",
                ask(&net, "a.test", A),
                ask(&net, "host.containers.internal", A)
            )
        },
    );
    table.differs(
        "zones and records are removed",
        "`/services/dns/remove`, `/services/dns/remove/record`",
        "200; NoError b.gone.testing. A 192.168.127.3; 200; NoError a.test. A 192.0.2.1",
        "404 404 page not found; NoError b.gone.testing. A 192.168.127.2; 404 404 page not found; NXDomain",
        |on| {
            let (net, _server) = net(on);
            for body in [
                r#"{"Name":"gone.testing.","Records":[{"Name":"b","IP":"192.168.127.2"}],"DefaultIP":"192.168.127.3"}"#,
                r#"{"Name":"test.","Records":[{"Name":"b","IP":"192.168.127.2"}]}"#,
            ] {
                post(&net.daemon, ADD_ZONE, body);
            }
            let record = post(&net.daemon, REMOVE_RECORD, r#"{"Name":"gone.testing.","Records":[{"Name":"B"}]}"#);
            let default = ask(&net, "b.gone.testing", A);
            let zone = post(&net.daemon, REMOVE_ZONE, r#"{"Name":"TEST."}"#);
            format!("{record}; {default}; {zone}; {}", ask(&net, "a.test", A))
        },
    );
    table.same("a zone without the final dot is never asked", "NoError a.test. A 192.0.2.1", |on| {
        let (net, _server) = net(on);
        post(&net.daemon, ADD_ZONE, r#"{"Name":"test","DefaultIP":"192.168.127.2"}"#);
        ask(&net, "a.test", A)
    });
}

fn upstream(table: &mut Table) {
    for (rows, name, kind, seen) in [
        ("9.18 9.20 9.27", "a.test", A, "NoError a.test. A 192.0.2.1"),
        ("", "many.test", A, "NoError many.test. A 192.0.2.2, many.test. A 192.0.2.3"),
        ("", "aaaa.test", A, "NoError"),
        ("", "both.test", A, "NoError both.test. A 192.0.2.4"),
        ("", "nothing.test", A, "NXDomain"),
        ("9.27", "mx.test", MX, "NoError mx.test. MX 10 a.test., mx.test. MX 20 b.test."),
        ("9.27", "test", NS, "NoError test. NS a.test."),
        ("9.27", "_http._tcp.test", SRV, "NoError _http._tcp.test. SRV 1 2 8080 a.test."),
        ("9.27", "alias.test", CNAME, "NoError alias.test. CNAME a.test."),
        ("", "a.test", AAAA, "NoError"),
    ] {
        table.same(format!("{rows} {name} of type {kind}").trim(), seen, asked(name, kind));
    }
    table.same("9.19 9.27 texts, told in one piece each", "onetwo", |on| {
        let (net, _server) = net(on);
        let answer = ask_udp(&net.guest, AT, &question("txt.test", TXT, None));
        let message = Message::from_vec(&answer).unwrap();
        let texts: Vec<_> =
            message.answers.iter().map(|record| record.data.to_string().replace([' ', '"'], "")).collect();
        texts.join("; ")
    });
    table.same("9.19 many texts, over TCP", "60 answers", |on| {
        let (net, _server) = net(on);
        let answers = ask_tcp(&net.guest, AT, &[question("big.test", TXT, None)]);
        format!("{} answers", Message::from_vec(&answers[0]).unwrap().answers.len())
    });
    let whole = "questions for others";
    for (rows, row, name, kind, ours, original) in [
        ("", whole, "a.test", CNAME, "NoError", "NoError a.test. CNAME a.test."),
        ("10.61", "AAAA", "aaaa.test", AAAA, "NoError aaaa.test. AAAA 2001:db8::1", "NoError"),
        (
            "10.61",
            whole,
            "1.2.0.192.in-addr.arpa",
            PTR,
            "NoError 1.2.0.192.in-addr.arpa. PTR a.test.",
            "NoError",
        ),
        ("", whole, "test", SOA, "NoError test. SOA a.test. root.test. 1 2 3 4 5", "NoError"),
        ("", whole, "caa.test", CAA, "NoError caa.test. CAA 0 issue \"ca.example\"", "NoError"),
        ("", whole, "nothing.test", HTTPS, "NXDomain", "NoError"),
        ("", whole, "refused.example", A, "Refused", "NXDomain"),
    ] {
        table.differs(format!("{rows} {name} of type {kind}").trim(), row, ours, original, asked(name, kind));
    }
    table.differs("how long an answer may be kept", whole, "301 s", "0 s", |on| {
        let (net, _server) = net(on);
        let answer = ask_udp(&net.guest, AT, &question("a.test", A, None));
        format!("{} s", Message::from_vec(&answer).unwrap().answers[0].ttl)
    });
    table.differs(
        "10.62 no server answers",
        "no upstream answers",
        "ServFail after about 10 s",
        "NXDomain after about 10 s",
        |on| {
            // Nobody reads what is sent there.
            let net = on.net_on(Host::new("nameserver 203.0.113.66\n"), SERVED);
            let start = Instant::now();
            let seen = ask(&net, "a.test", A);
            let after = start.elapsed();
            let about = if (Duration::from_secs(8)..Duration::from_secs(13)).contains(&after) {
                "about 10 s".to_owned()
            } else {
                format!("{after:.0?}")
            };
            format!("{seen} after {about}")
        },
    );
    table.same("the first server is dead, the second answers", "NoError a.test. A 192.0.2.1", |on| {
        let host = Host::new("nameserver 127.0.0.66\nnameserver 127.0.0.1\n");
        let _server = Server::start(&host, "127.0.0.1");
        ask(&on.net_on(host, SERVED), "a.test", A)
    });
    table.same("a name of the host's file", "NoError printer.office.lan. A 192.0.2.77", |on| {
        let host = Host::new("nameserver 127.0.0.1\n");
        let _server = Server::start(&host, "127.0.0.1");
        host.write("hosts", "127.0.0.1 localhost\n192.0.2.77 printer.office.lan printer\n");
        ask(&on.net_on(host, SERVED), "printer.office.lan", A)
    });
    table.same(
        "another address's port 53 is a flow like any other",
        "NoError caa.test. CAA 0 issue \"ca.example\"",
        |on| {
            let (net, _server) = net(on);
            let at = SocketAddr::from((testkit::net::HOST, 53));
            shown(&ask_udp(&net.guest, at, &question("caa.test", CAA, None)))
        },
    );
}

fn messages(table: &mut Table) {
    table.same("a hundred questions on one TCP connection", "100 answers", |on| {
        let (net, _server) = net(on);
        let questions = vec![question("a.test", A, None); 100];
        let answers = ask_tcp(&net.guest, AT, &questions);
        format!(
            "{} answers",
            answers.iter().filter(|answer| shown(answer).starts_with("NoError a.test. A")).count()
        )
    });
    table.same("an answer that does not fit a datagram is cut", "[true, true]", |on| {
        let (net, _server) = net(on);
        let cut = [None, Some(1232)].map(|edns| {
            let answer = ask_udp(&net.guest, AT, &question("big.test", TXT, edns));
            is_truncated(&answer) && answer.len() <= usize::from(edns.unwrap_or(512))
        });
        format!("{cut:?}")
    });
    table.differs("over TCP with EDNS and 512 bytes", "TCP", "whole", "cut", |on| {
        let (net, _server) = net(on);
        let answer = &ask_tcp(&net.guest, AT, &[question("big.test", TXT, Some(512))])[0];
        if is_truncated(answer) { "cut" } else { "whole" }.to_owned()
    });
    table.differs("whether OPT comes back", "OPT", "comes back", "does not", |on| {
        let (net, _server) = net(on);
        let answer = ask_udp(&net.guest, AT, &question("host.containers.internal", A, Some(1232)));
        if Message::from_vec(&answer).unwrap().edns.is_some() { "comes back" } else { "does not" }.to_owned()
    });
    let plain = || question("host.containers.internal", A, None);
    for (name, at, value, seen) in [
        ("a response", 2, 0x80, "silence"),
        ("another opcode", 2, 0x10, "code 4"),
        ("no question", 5, 0, "code 1"),
        ("two questions", 5, 2, "code 1"),
    ] {
        table.same(format!("{name} as a question"), seen, move |on| {
            let net = on.net([]);
            let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
            let mut message = plain();
            message[at] = value;
            let answer = try_ask_udp(&socket, AT, &message, SILENCE);
            answer.map_or_else(|| "silence".into(), |answer| format!("code {}", answer[3] & 15))
        });
    }
    table.same(
        "a header that is too short",
        "silence, then NoError host.containers.internal. A 192.168.127.254",
        |on| {
            let net = on.net([]);
            let socket = net.guest.udp("0.0.0.0:0".parse().unwrap());
            let silent = try_ask_udp(&socket, AT, &[0x12; 11], SILENCE).is_none();
            format!(
                "{}, then {}",
                if silent { "silence" } else { "an answer" },
                ask(&net, "host.containers.internal", A)
            )
        },
    );
}
