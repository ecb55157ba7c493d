//! What the host exposes of guests, wished for by the operator and by a guest. Reference 4.4, 4.5, 5.1 and
//! 5.2.
//! Read next: `web.rs`; `ssh.rs` for what goes over SSH.

use std::io::{Read, Write};
use std::net::{TcpListener, TcpStream};
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Duration;

use crate::case::{Case, On, Table};
use crate::web::{
    ADD_ZONE, ALL, EXPOSE, NOT_FOUND, PATIENCE, SERVED, UNEXPOSE, ZONES, ask, at_gateway, get, post, served,
};
use testkit::daemon::Daemon;
use testkit::free_port;
use testkit::http::{ask_and_keep, read_to_end};
use testkit::net::Host;
use testkit::traffic::{accept, impatient};
use testkit::uninterrupted;

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("forwards");
    exposing(&mut table);
    gateway(&mut table);
    table.done()
}

/// Exposes, and lists what there is.
fn exposed(on: &On, body: &str) -> String {
    let daemon = served(on);
    format!("{}; {}", post(&daemon, EXPOSE, body), get(&daemon, ALL))
}

fn exposing(table: &mut Table) {
    for (row, remote, seen) in [
        ("10.46", "", "400 missing port in address"),
        ("", "192.168.127.2", "400 address 192.168.127.2: missing port in address"),
        ("", ":8080", "400 address @: missing port in address"),
        ("", "1.2.3.4:5:6", "400 address 1.2.3.4:5:6: too many colons in address"),
        ("", "192.168.127.2:abc", "500 strconv.ParseUint: parsing \"abc\": invalid syntax"),
        ("", "[::1]:80", "500 invalid remote addr"),
        ("", "192.168.127.2:99999", "500 strconv.ParseUint: parsing \"99999\": value out of range"),
    ] {
        table.same(
            format!("{row} expose to remote {remote:?}").trim(),
            format!("{seen}; 200 []"),
            move |on| exposed(on, &format!(r#"{{"local":"127.0.0.1:0","remote":"{remote}"}}"#)),
        );
    }
    let row = "`remote` without an IPv4 address";
    table.differs(
        "10.47 expose to remote \"name:80\"",
        row,
        "500 invalid remote addr: \"name\" is not an IPv4 address; 200 []",
        "0; 200 []",
        |on| exposed(on, r#"{"local":"127.0.0.1:0","remote":"name:80"}"#),
    );
    for body in ["{}", "null", r#"{"local":null,"remote":null,"protocol":null}"#] {
        table.same(format!("10.46 expose {body}"), "400 missing port in address; 200 []", move |on| {
            exposed(on, body)
        });
    }
    let to = |local: &str, protocol: &str| {
        format!(r#"{{"local":"{local}","remote":"192.168.127.2:80","protocol":"{protocol}"}}"#)
    };
    for (local, protocol, seen) in [
        (":0", "sctp", "500 unknown protocol sctp; 200 []"),
        (":0", "TCP", "500 unknown protocol TCP; 200 []"),
        ("9090", "tcp", "500 listen tcp: address 9090: missing port in address; 200 []"),
        ("127.0.0.1:99999", "tcp", "500 listen tcp: address 99999: invalid port; 200 []"),
        ("192.0.2.1:80", "tcp", "500 listen tcp 192.0.2.1:80: bind: cannot assign requested address; 200 []"),
        ("192.0.2.1:80", "udp", "500 listen udp 192.0.2.1:80: bind: cannot assign requested address; 200 []"),
    ] {
        let body = to(local, protocol);
        table.same(format!("expose {protocol} {local}"), seen, move |on| exposed(on, &body));
    }
    table.differs(
        "expose tcp :http",
        "`local` with a service's name, as `:http`",
        "500 listen tcp: lookup tcp/http: unknown port; 200 []",
        "200; 200 [{\"local\":\"127.0.0.1:http\",\"remote\":\"192.168.127.2:80\",\"protocol\":\"tcp\"}]",
        {
            let body = to("127.0.0.1:http", "tcp");
            move |on| exposed(on, &body)
        },
    );
    for local in ["", ":0", "127.0.0.1:0", "[::1]:0", "localhost:0"] {
        for protocol in ["tcp", "udp"] {
            let body = to(local, protocol);
            table.same(
                format!("10.48 expose {protocol} {local:?}"),
                format!("200; 200 [{body}]"),
                move |on| exposed(on, &body),
            );
        }
    }
    table.same("expose npipe", "500 named pipes are not supported by this platform; 200 []", |on| {
        exposed(on, r#"{"local":"npipe:////./pipe/x","remote":"tcp://192.168.127.2:80","protocol":"npipe"}"#)
    });
    for (remote, seen) in [
        ("tcp://192.168.127.2", "500 strconv.ParseUint: parsing \"\": invalid syntax"),
        ("udp://192.168.127.2:1", "500 remote protocol for unix forwarder is not implemented: udp"),
        ("ssh-tunnel://u@192.168.127.2/x", "500 key not provided for unix-ssh connection"),
        ("ssh-tunnel://u@192.168.127.2?key=/k", "500 remote uri must contain a path to a socket file"),
        ("ssh-tunnel://u@192.168.127.2/?key=/k", "500 remote uri must contain a path to a socket file"),
        (
            "192.168.127.2:80",
            "500 failed to parse remote uri :192.168.127.2:80 : parse \"192.168.127.2:80\": first path segment in URL cannot contain colon",
        ),
    ] {
        table.same(format!("expose unix to {remote}"), seen, move |on| {
            let daemon = served(on);
            let local = daemon.dir().join("s").display().to_string();
            post(&daemon, EXPOSE, &format!(r#"{{"local":"{local}","remote":"{remote}","protocol":"unix"}}"#))
        });
    }
    for body in ["{}", r#"{"local":":1","protocol":"sctp"}"#, r#"{"local":":1","remote":"x"}"#, "null"] {
        table.same(format!("10.50 unexpose {body}"), "500 proxy not found", move |on| {
            post(&served(on), UNEXPOSE, body)
        });
    }
    table.same("10.50 unexpose by another spelling", "500 proxy not found; 500 proxy not found; 200", |on| {
        let (daemon, port) = (served(on), free_port());
        post(&daemon, EXPOSE, &format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:80"}}"#));
        let one = post(&daemon, UNEXPOSE, &format!(r#"{{"local":"localhost:{port}"}}"#));
        let protocol =
            post(&daemon, UNEXPOSE, &format!(r#"{{"local":"127.0.0.1:{port}","protocol":"udp"}}"#));
        format!(
            "{one}; {protocol}; {}",
            post(&daemon, UNEXPOSE, &format!(r#"{{"local":"127.0.0.1:{port}"}}"#))
        )
    });
    table.same("ports are exposed, shown and taken back", "200; 200; 200 [{\"local\":\"FIRST\",\"remote\":\"192.168.127.2:80\",\"protocol\":\"tcp\"},{\"local\":\"SECOND\",\"remote\":\"192.168.127.2:53\",\"protocol\":\"udp\"}]; 200; 500 proxy not found; 200; 200 []", |on| {
        let daemon = served(on);
        let [first, second] = [(); 2].map(|()| format!("127.0.0.1:{}", free_port()));
        let mut seen = [
            post(&daemon, EXPOSE, &format!(r#"{{"LOCAL":"{first}","Remote":"192.168.127.2:80"}} and more"#)),
            post(&daemon, EXPOSE, &format!(r#"{{"x":[{{}}],"local":"{second}","remote":"192.168.127.2:53","protocol":"udp"}}"#)),
            get(&daemon, ALL),
            post(&daemon, UNEXPOSE, &format!(r#"{{"local":"{first}"}}"#)),
            post(&daemon, UNEXPOSE, &format!(r#"{{"local":"{first}"}}"#)),
            post(&daemon, UNEXPOSE, &format!(r#"{{"local":"{second}","remote":"any","protocol":"udp"}}"#)),
            get(&daemon, ALL),
        ];
        // Sorted by the text, which is by the ports that were free.
        if first > second {
            seen[2] = seen[2].replace(['[', ']'], "");
            let (one, other) = seen[2][4..].split_once("},").unwrap_or(("", ""));
            seen[2] = format!("200 [{other},{one}}}]");
        }
        seen.join("; ").replace(&first, "FIRST").replace(&second, "SECOND")
    });
    table.differs(
        "10.45 expose what is exposed, to the same",
        "expose of what is exposed",
        "200; 200",
        "200; 500 proxy already running for tcp on 127.0.0.1:PORT",
        |on| twice(on, "192.168.127.2:80"),
    );
    table.differs(
        "10.45 expose what is exposed, to another",
        "expose of what is exposed",
        "200; 500 proxy already running for tcp on 127.0.0.1:PORT: it leads to 192.168.127.2:80",
        "200; 500 proxy already running for tcp on 127.0.0.1:PORT",
        |on| twice(on, "192.168.127.2:81"),
    );
    table.differs(
        "expose a port that another program has",
        "expose of a port in use",
        "500 listen tcp 127.0.0.1:PORT: bind: address already in use (by …)",
        "500 listen tcp 127.0.0.1:PORT: bind: address already in use",
        |on| {
            let taken = TcpListener::bind("127.0.0.1:0").unwrap();
            let port = taken.local_addr().unwrap().port().to_string();
            let seen = post(
                &served(on),
                EXPOSE,
                &format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:80"}}"#),
            );
            let seen = seen.replace(&port, "PORT");
            seen.split_once(" (by ").map_or_else(|| seen.clone(), |(text, _)| format!("{text} (by …)"))
        },
    );
    table.differs(
        "10.49 expose unix where there is a file",
        "a unix socket where there is a file",
        "500 \"@/file\" already exists, connects: false; the file is there",
        "200, connects: true; the file is gone",
        |on| {
            let daemon = served(on);
            let file = daemon.dir().join("file");
            std::fs::write(&file, "precious").unwrap();
            over(&daemon, "file")
                + if std::fs::read(&file).is_ok() { "; the file is there" } else { "; the file is gone" }
        },
    );
    table.same("10.49 expose unix where there is a dead socket", "200, connects: true", |on| {
        let daemon = served(on);
        drop(UnixListener::bind(daemon.dir().join("dead")).unwrap());
        over(&daemon, "dead")
    });
    table.differs(
        "10.80 a remote without a host, from a TCP endpoint",
        "`remote` without a host, from a `tcp://` endpoint",
        "400 address @: missing port in address; 200 []",
        "200; 200 [{\"local\":\"127.0.0.1:0\",\"remote\":\"127.0.0.1:80\",\"protocol\":\"tcp\"}]",
        |on| {
            let port = free_port();
            let _daemon = on.daemon().args(["-listen", &format!("tcp://127.0.0.1:{port}")]).start();
            let ask = |method, path, body: &str| {
                ask(impatient(TcpStream::connect(("127.0.0.1", port)).unwrap()), method, path, body)
            };
            format!(
                "{}; {}",
                ask("POST", EXPOSE, r#"{"local":"127.0.0.1:0","remote":":80"}"#),
                ask("GET", ALL, "")
            )
            .replace(&port.to_string(), "PORT")
        },
    );
}

fn twice(on: &On, remote: &str) -> String {
    let (daemon, port) = (served(on), free_port());
    let one =
        post(&daemon, EXPOSE, &format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:80"}}"#));
    let two = post(&daemon, EXPOSE, &format!(r#"{{"local":"127.0.0.1:{port}","remote":"{remote}"}}"#));
    format!("{one}; {two}").replace(&port.to_string(), "PORT")
}

/// Exposes a unix socket at `name`, and whether somebody answers there.
fn over(daemon: &Daemon, name: &str) -> String {
    let path = daemon.dir().join(name);
    let at = path.display().to_string();
    let seen = post(
        daemon,
        EXPOSE,
        &format!(r#"{{"local":"{at}","remote":"tcp://192.168.127.2:80","protocol":"unix"}}"#),
    );
    let seen = seen.replace(&daemon.dir().display().to_string(), "@");
    format!("{seen}, connects: {}", UnixStream::connect(&path).is_ok())
}

fn gateway(table: &mut Table) {
    for path in [
        "/",
        "/cam",
        "/leases",
        "/stats",
        ZONES,
        ADD_ZONE,
        "/connect",
        "/tunnel?ip=192.168.127.2&port=22",
        "/services/forwarder/",
    ] {
        table.same(format!("at the gateway: POST {path}"), NOT_FOUND, move |on| {
            let net = on.net([]);
            ask(at_gateway(&net), "POST", path, "")
        });
    }
    for (protocol, local) in [("tcp", ":8080"), ("udp", "127.0.0.1:8080")] {
        // What podman does in a machine for `-p`, on a host of its own.
        let entry =
            format!(r#"200 [{{"local":"{local}","remote":"192.168.127.2:80","protocol":"{protocol}"}}]"#);
        let seen = format!("200; {entry}; {entry}; 200; 200 []");
        table.same(format!("9.35 a guest exposes itself, {protocol} {local}"), seen, move |on| {
            let net = on.net(SERVED);
            let ask = |method, path, body: &str| ask(at_gateway(&net), method, path, body);
            let wish = format!(r#"{{"local":"{local}","remote":":80","protocol":"{protocol}"}}"#);
            let seen = [
                ask("POST", EXPOSE, &wish),
                ask("GET", ALL, ""),
                get(&net.daemon, ALL),
                ask("POST", UNEXPOSE, &format!(r#"{{"local":"{local}","protocol":"{protocol}"}}"#)),
                ask("GET", ALL, ""),
            ];
            seen.join("; ")
        });
    }
    table.differs(
        "a guest looks at the operator's ports",
        "a guest at the gateway: `/services/forwarder/all`",
        "200 []",
        "200 [{\"local\":\"127.0.0.1:8081\",\"remote\":\"192.168.127.2:22\",\"protocol\":\"tcp\"}]",
        |on| {
            let net = on.net(SERVED);
            post(&net.daemon, EXPOSE, r#"{"local":"127.0.0.1:8081","remote":"192.168.127.2:22"}"#);
            ask(at_gateway(&net), "GET", ALL, "")
        },
    );
    table.differs(
        "a guest takes the operator's port away",
        "a guest at the gateway: `unexpose`",
        "500 proxy not found",
        "200",
        |on| {
            let net = on.net(SERVED);
            post(&net.daemon, EXPOSE, r#"{"local":"127.0.0.1:8081","remote":"192.168.127.2:22"}"#);
            ask(at_gateway(&net), "POST", UNEXPOSE, r#"{"local":"127.0.0.1:8081"}"#)
        },
    );
    table.differs(
        "9.37 10.49 a guest exposes a unix socket over a file of the host",
        "what a guest may expose, through the gateway",
        "403 a guest may expose tcp and udp ports, not unix; the file is there",
        "200; the file is gone",
        |on| {
            let net = on.net(SERVED);
            let file = net.daemon.dir().join("file");
            std::fs::write(&file, "precious").unwrap();
            let wish = format!(
                r#"{{"local":"{}","remote":"tcp://192.168.127.2:80","protocol":"unix"}}"#,
                file.display()
            );
            let seen = ask(at_gateway(&net), "POST", EXPOSE, &wish)
                .replace(&net.daemon.dir().display().to_string(), "@");
            format!(
                "{seen}; {}",
                if std::fs::read(&file).is_ok() { "the file is there" } else { "the file is gone" }
            )
        },
    );
    table.same(
        "a port is exposed and taken back by eight clients at once",
        "answers of 200 and 500; at the end []; the port is free: true",
        |on| {
            let daemon = served(on);
            let port = free_port();
            let body = format!(r#"{{"local":"127.0.0.1:{port}","remote":"192.168.127.2:80"}}"#);
            let (path, body) = (daemon.dir().join("services"), &body);
            let statuses = std::thread::scope(|scope| {
                let clients: Vec<_> = (0..8)
                    .map(|_| {
                        let path = &path;
                        scope.spawn(move || {
                            let stream = UnixStream::connect(path).unwrap();
                            stream.set_read_timeout(Some(PATIENCE)).unwrap();
                            let asked = [EXPOSE, UNEXPOSE].repeat(50).into_iter();
                            asked
                                .map(|path| ask_and_keep(&stream, "POST", path, body).status)
                                .collect::<Vec<_>>()
                        })
                    })
                    .collect();
                let statuses = clients.into_iter().flat_map(|client| client.join().unwrap());
                statuses.collect::<std::collections::BTreeSet<_>>()
            });
            post(&daemon, UNEXPOSE, body);
            let statuses: Vec<_> = statuses.iter().map(u16::to_string).collect();
            format!(
                "answers of {}; at the end {}; the port is free: {}",
                statuses.join(" and "),
                get(&daemon, ALL).trim_start_matches("200 "),
                TcpListener::bind(("127.0.0.1", port)).is_ok()
            )
        },
    );
    table.same(
        "one port at two addresses of the host leads to two ports of the guest",
        "200; 200; 127.0.0.1: one, 127.0.0.2: two",
        |on| {
            let net = on.net(SERVED);
            let mut seen = Vec::new();
            let mut answers = Vec::new();
            for (address, port, word) in [("127.0.0.1", 81, "one"), ("127.0.0.2", 82, "two")] {
                let body = format!(r#"{{"local":"{address}:9091","remote":"192.168.127.2:{port}"}}"#);
                seen.push(ask(at_gateway(&net), "POST", EXPOSE, &body));
                let listener = net.guest.listen(([0, 0, 0, 0], port).into());
                let client = impatient(net.host.connect(format!("{address}:9091").parse().unwrap()).unwrap());
                accept(&listener).write_all(word.as_bytes()).unwrap();
                answers.push(format!("{address}: {}", String::from_utf8(read_to_end(client)).unwrap()));
            }
            format!("{}; {}", seen.join("; "), answers.join(", "))
        },
    );
    table.same(
        "500 ports of each protocol are published by one container",
        "1000 of 1000; taken back 1000",
        |on| {
            let net = on.net(SERVED);
            let done = [EXPOSE, UNEXPOSE].map(|path| {
                let ports = (20_000..20_500).flat_map(|port| [("tcp", port), ("udp", port)]);
                let statuses = ports.map(|(protocol, port)| {
                    let body = format!(
                        r#"{{"local":":{port}","remote":"192.168.127.2:{port}","protocol":"{protocol}"}}"#
                    );
                    ask_and_keep(at_gateway(&net), "POST", path, &body).status
                });
                statuses.filter(|&status| status == 200).count()
            });
            format!("{} of 1000; taken back {}", done[0], done[1])
        },
    );
    table.same(
        "a guest exposes a unix socket, where that is allowed",
        "200; hello; 500 proxy already running for unix on @/s; 200; the socket is there: false",
        |on| {
            let [listen, api, services, path] = SERVED;
            let net = match on.is_ours {
                true => on.net([listen, api, services, path, "-gateway-expose-all-protocols"]),
                false => on.net(SERVED),
            };
            let listener = net.guest.listen("0.0.0.0:80".parse().unwrap());
            let path = net.daemon.dir().join("s");
            let body = format!(
                r#"{{"protocol":"unix","local":"{}","remote":"tcp://192.168.127.2:80"}}"#,
                path.display()
            );
            let mut seen = vec![ask(at_gateway(&net), "POST", EXPOSE, &body)];
            let client = UnixStream::connect(&path).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut guest = accept(&listener);
            guest.write_all(b"hello").unwrap();
            drop(guest);
            seen.push(String::from_utf8(read_to_end(client)).unwrap());
            seen.push(ask(at_gateway(&net), "POST", EXPOSE, &body));
            seen.push(ask(at_gateway(&net), "POST", UNEXPOSE, &body));
            seen.push(format!("the socket is there: {}", path.exists()));
            seen.join("; ").replace(net.daemon.dir().to_str().unwrap(), "@")
        },
    );
    table.differs(
        "a guest exposes another guest",
        "what a guest may expose, through the gateway",
        "403 a guest may expose its own ports, and 192.168.127.3 is not 192.168.127.2",
        "200",
        |on| {
            let net = on.net(SERVED);
            ask(at_gateway(&net), "POST", EXPOSE, r#"{"local":":8080","remote":"192.168.127.3:80"}"#)
        },
    );
    let (both, v4, v6) = ("127.0.0.1 ::1 198.51.100.1", "127.0.0.1", "::1");
    for (local, by) in [
        (":9090", both),
        ("0.0.0.0:9090", both),
        ("[::]:9090", both),
        ("127.0.0.1:9090", v4),
        ("localhost:9090", v4),
        ("[::1]:9090", v6),
        ("198.51.100.1:9090", "198.51.100.1"),
    ] {
        table.same(format!("expose tcp {local} is reached by"), format!("200, {by}"), move |on| {
            let host = Host::new("nameserver 127.0.0.1\n");
            host.run([
                "sh",
                "-c",
                "cd /proc/sys/net/ipv6/conf && echo 0 >all/disable_ipv6 && echo 0 >lo/disable_ipv6",
            ]);
            host.run(["sh", "-c", "ip addr replace ::1/128 dev lo"]);
            let daemon = on.daemon().args(SERVED).through(host.prefix()).start();
            let wish = format!(r#"{{"local":"{local}","remote":"192.168.127.2:80"}}"#);
            let exposed = post(&daemon, EXPOSE, &wish);
            let connects = |to: &&str| {
                host.output(["bash", "-c", &format!("exec 3<>/dev/tcp/{to}/9090")]).status.success()
            };
            let by: Vec<_> = ["127.0.0.1", "::1", "198.51.100.1"].into_iter().filter(connects).collect();
            format!("{exposed}, {}", by.join(" "))
        });
    }
    for (row, protocol, local) in
        [("9.32", "tcp", "127.0.0.1:9090"), ("9.32", "tcp", ":9090"), ("9.32", "tcp", "0.0.0.0:9090")]
    {
        let name = format!("{row} expose {protocol} {local}, use it, unexpose it");
        table.same(name, "200; from 192.168.127.1; 200; Err(ConnectionRefused); still here", move |on| {
            let net = on.net(SERVED);
            let listener = net.guest.listen("0.0.0.0:80".parse().unwrap());
            let mut seen = vec![post(
                &net.daemon,
                EXPOSE,
                &format!(r#"{{"local":"{local}","remote":"192.168.127.2:80"}}"#),
            )];
            let client = impatient(net.host.connect(([127, 0, 0, 1], 9090).into()).expect("the port"));
            let mut guest = accept(&listener);
            let from = guest.peer_addr().unwrap().ip();
            seen.push(format!("from {from}"));
            seen.push(post(&net.daemon, UNEXPOSE, &format!(r#"{{"local":"{local}"}}"#)));
            let kind =
                net.host.connect(([127, 0, 0, 1], 9090).into()).map(drop).map_err(|error| error.kind());
            seen.push(format!("{kind:?}"));
            guest.write_all(b"still here").unwrap();
            drop(guest);
            seen.push(String::from_utf8(read_to_end(client)).unwrap());
            seen.join("; ")
        });
    }
    table.same("10.51 a TCP connection outlives its port", "200; still here", |on| {
        let net = on.net(SERVED);
        let listener = net.guest.listen("0.0.0.0:80".parse().unwrap());
        post(&net.daemon, EXPOSE, r#"{"local":":9090","remote":"192.168.127.2:80"}"#);
        let client = impatient(net.host.connect(([127, 0, 0, 1], 9090).into()).expect("the port"));
        let mut guest = accept(&listener);
        let taken = post(&net.daemon, UNEXPOSE, r#"{"local":":9090"}"#);
        guest.write_all(b"still here").unwrap();
        drop(guest);
        format!("{taken}; {}", String::from_utf8(read_to_end(client)).unwrap())
    });
    table.same(
        "10.51 a UDP flow ends with its port",
        "from 192.168.127.1: question, answer; 200; a late answer: false",
        |on| {
            let net = on.net(SERVED);
            let service = net.guest.udp("0.0.0.0:53".parse().unwrap());
            service.set_read_timeout(Some(PATIENCE)).unwrap();
            let client = net.host.udp("127.0.0.1:0".parse().unwrap());
            client.set_read_timeout(Some(Duration::from_millis(500))).unwrap();
            post(
                &net.daemon,
                EXPOSE,
                r#"{"local":"127.0.0.1:9053","remote":"192.168.127.2:53","protocol":"udp"}"#,
            );
            client.send_to(b"question", "127.0.0.1:9053").unwrap();
            let mut buffer = [0; 16];
            let (length, from) = service.recv_from(&mut buffer).expect("the question");
            let question = String::from_utf8_lossy(&buffer[..length]).into_owned();
            service.send_to(b"answer", from).unwrap();
            let length = client.recv(&mut buffer).expect("the answer");
            let answer = String::from_utf8_lossy(&buffer[..length]).into_owned();
            let taken = post(&net.daemon, UNEXPOSE, r#"{"local":"127.0.0.1:9053","protocol":"udp"}"#);
            service.send_to(b"late", from).unwrap();
            let late = client.recv(&mut buffer).is_ok();
            format!("from {}: {question}, {answer}; {taken}; a late answer: {late}", from.ip())
        },
    );
    table.same(
        "9.37 expose unix to TCP, use it, unexpose it with a remote",
        "200; hello; 200; false",
        |on| {
            let net = on.net(SERVED);
            let listener = net.guest.listen("0.0.0.0:80".parse().unwrap());
            let path = net.daemon.dir().join("s");
            let body = format!(
                r#"{{"local":"{}","remote":"tcp://192.168.127.2:80","protocol":"unix"}}"#,
                path.display()
            );
            let mut seen = vec![post(&net.daemon, EXPOSE, &body)];
            let client = UnixStream::connect(&path).unwrap();
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut guest = accept(&listener);
            guest.write_all(b"hello").unwrap();
            drop(guest);
            seen.push(String::from_utf8(read_to_end(client)).unwrap());
            seen.push(post(&net.daemon, UNEXPOSE, &body));
            seen.push(format!("{}", path.exists()));
            seen.join("; ")
        },
    );
    table.differs(
        "a connection that the guest refuses",
        "a connection that the guest refuses, or nobody answers",
        "Err(ConnectionReset)",
        "Ok(0)",
        |on| {
            let net = on.net(SERVED);
            post(&net.daemon, EXPOSE, r#"{"local":":9090","remote":"192.168.127.2:9"}"#);
            // The end may be there before the connect returns.
            let client = net.host.connect(([127, 0, 0, 1], 9090).into());
            let end = client.map(impatient).and_then(|mut client| uninterrupted(|| client.read(&mut [0; 4])));
            format!("{:?}", end.map_err(|error| error.kind()))
        },
    );
}
