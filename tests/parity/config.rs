//! The file of `-config`: what is wrong with one, which of file and flags counts, and that what stands in it
//! is what a guest sees. Reference 1.5, 1.6 and 1.11. Read next: `process.rs`.

use std::fs;
use std::io::ErrorKind;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use etherparse::TransportSlice;

use crate::case::{Case, On, Table};
use crate::packets::{Dhcp, hardware_address};
use crate::process::{Place, READY, Run};
use crate::web::{ALL, PATIENCE, ZONES, shown};
use testkit::dns::{A, question};
use testkit::frames::{IPV4, MAC, UDP, Wire, arp, ether, ipv4, read_transport, udp};
use testkit::http::{Answer, exchange, request};
use testkit::net::{BLACK_HOLE, HOST};
use testkit::{eventually, free_port};

const QEMU: &str = "interfaces: {qemu: \"unix://@/q\"}\n";

/// The row of what limits the connects of guests.
const LIMITS: &str = "`stack.tcpMaxInFlight`, `stack.tcpConnectTimeout`";

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("config");
    mistakes(&mut table);
    differences(&mut table);
    running(&mut table);
    levels(&mut table);
    defaults(&mut table);
    networks(&mut table);
    captures(&mut table);
    table.done()
}

/// Starts with the file `yaml`, in which `@` stands for the directory as it does in `line`.
fn start<'a>(place: &'a Place, yaml: &str, line: &str) -> Run<'a> {
    fs::write(place.path("config.yaml"), yaml.replace('@', place.at())).unwrap();
    place.start(&format!("-config @/config.yaml {line}"))
}

/// Runs until it ends or serves.
fn runs(on: &On, yaml: &str, line: &str) -> String {
    let place = Place::new(on);
    let mut run = start(&place, yaml, &format!("{READY} {line}"));
    run.waits_with("ready").map_or_else(|end| end, |()| "runs".to_owned())
}

/// The file, the command line behind it, and texts that the last line has.
fn mistakes(table: &mut Table) {
    const PARSE: &str = "failed to parse configuration: ";
    for (rows, yaml, line, texts) in [
        ("10.20", "stack:\n  mtu: \"1400\"\n", "", &[PARSE, "line 2:"][..]),
        ("10.20", "stack:\n  mtu: abc\n", "", &[PARSE, "line 2:"]),
        ("10.20", "stack:\n  mtu: [1400]\n", "", &[PARSE, "line 2:"]),
        ("10.20", "\nstack: [1]\n", "", &[PARSE, "line 2:"]),
        ("10.20", "listen: foo\n", "", &[PARSE, "line 1:"]),
        ("10.20", "foo\n", "", &[PARSE, "line 1:"]),
        ("10.20", "stack:\n  debug: maybe\n", "", &[PARSE, "line 2:"]),
        ("10.20", "stack:\n  mtu: 1400\n  mtu: 1400\n", "", &[PARSE, "line 3:", "mtu"]),
        ("10.20", "stack:\n\tmtu: 1400\n", "", &[PARSE, "line 2:"]),
        ("10.20", "stack: {mtu: 1400\n", "", &[PARSE, "line "]),
        ("10.20", "log-level: *nobody\n", "", &[PARSE]),
        ("", "stack:\n  dns:\n  - records:\n    - ip: nowhere\n", "", &["nowhere"]),
        ("", "stack:\n  dns:\n  - records:\n    - regexp: \"(\"\n", "", &["error parsing regexp"]),
        ("", "stack:\n  subnet: 10\n", "", &["failed to parse subnet: ", "no '/'"]),
        ("", "stack:\n  subnet: 10.0.0.0/30\n", "", &["subnet too small"]),
        ("", "stack:\n  gatewayIP: x\n", "", &["invalid IP address: x"]),
        ("", "stack:\n  deviceIP: 1.2.3.4\n", "", &["IP (1.2.3.4) not in subnet (192.168.127.0/24)"]),
        ("", "stack:\n  hostIP: 192.168.127.255\n", "", &["must not be broadcast address: 192.168.127.255"]),
        ("", "stack:\n  hostIP: 192.168.127.1\n", "", &["IP addresses need to be distinct"]),
        ("", "interfaces:\n  qemu: unix://@/file\n", "", &["\"@/file\" already exists"]),
        ("", "interfaces: {qemu: \":x\"}\n", "", &["invalid value for qemu listen address: "]),
        (
            "9.10",
            "forwards:\n- identity: /none\n",
            "",
            &["identity file \"/none\" can't be loaded: stat /none: "],
        ),
        ("", "log-file: @/none/log\n", "", &["unable to open log file @/none/log"]),
        ("", "", "-notification tcp://x", &["notification listen address must be unix:// address"]),
        // The file's addresses count before the flags'.
        ("", "stack:\n  subnet: 10.0.0.0/30\n", "-subnet 10.0.0.0/24", &["subnet too small"]),
        ("", "stack:\n  gatewayIP: x\n", "-gatewayIP 192.168.127.9", &["invalid IP address: x"]),
        ("", "stack:\n  deviceIP: x\n", "-deviceIP 192.168.127.9", &["invalid IP address: x"]),
        ("", "stack:\n  hostIP: x\n", "-hostIP 192.168.127.9", &["invalid IP address: x"]),
        // The flags' count where the file says nothing, or an empty text.
        ("", "stack:\n  subnet: \"\"\n", "-subnet 10.0.0.0/30", &["subnet too small"]),
        ("", "stack:\n", "-gatewayIP x", &["invalid IP address: x"]),
        // The flags come before the file in everything else.
        ("", "interfaces: {qemu: \"unix://@/q\"}\n", "-listen-qemu unix://@/file", &["already exists"]),
        ("", "log-file: @/log\n", "-log-file @/none/log", &["unable to open log file @/none/log"]),
        // Sockets of the command line come behind those of the file.
        (
            "",
            "forwards:\n- {socket: @/s, dest: /d, user: u, identity: /none}\n",
            "-forward-sock @/t -forward-dest /d -forward-user u -forward-identity @/also-none",
            &["identity file \"/none\""],
        ),
        (
            "",
            "forwards:\n- {socket: @/s, dest: /d, user: u, identity: @/key}\n",
            "-forward-sock @/t -forward-dest /d -forward-user u -forward-identity /none",
            &["identity file \"/none\""],
        ),
    ] {
        let seen = format!("exit 1, fatal: … {}", texts.join(" … "));
        table.same(format!("{rows} {yaml:?} {line}").trim(), seen, move |on| {
            let place = Place::new(on);
            let end = start(&place, yaml, line).outcome();
            // The file itself is what the case has made.
            let end = end.replace("; leaves config.yaml", "");
            match end.split_once(": ") {
                Some((kind, message)) if texts.iter().all(|text| message.contains(text)) => {
                    format!("{kind}: … {}", texts.join(" … "))
                }
                _ => end,
            }
        });
    }
    for (name, order) in [("little", u16::to_le_bytes as fn(u16) -> [u8; 2]), ("big", u16::to_be_bytes)] {
        let name = format!("a file in UTF-16 with a byte order mark, {name} end first");
        table.same(name, "it is read", move |on| {
            let place = Place::new(on);
            let text = "\u{feff}stack:\r\n  subnet: 10\r\n".encode_utf16();
            fs::write(place.path("config.yaml"), text.flat_map(order).collect::<Vec<u8>>()).unwrap();
            let end = place.start("-config @/config.yaml").outcome();
            if end.contains("failed to parse subnet: ") { "it is read".to_owned() } else { end }
        });
    }
    table.same(
        "10.20 a file that is not there",
        "exit 1, fatal: failed to read config file: open /none/c: no such file or directory",
        |on| crate::process::ends(on, "-config /none/c"),
    );
}

/// Where ours says no, or says what it does not do.
fn differences(table: &mut Table) {
    let none = "addresses that are none, a host name in `stack.forwards` or `stack.nat`";
    for (rows, row, yaml, ours, original) in [
        (
            "9.10",
            "`-forward-sock` and `-forward-dest` without a user and a key anywhere",
            "forwards:\n- socket: @/s\n",
            "exit 1, fatal: @/config.yaml line 2: forwards[0]: invalid value \"\" for flag -forward-dest: not an absolute path, which it is without -forward-user",
            "exit 1, fatal: identity file \"\" can't be loaded: stat : no such file or directory",
        ),
        (
            "10.23",
            none,
            "stack: {forwards: {\"127.0.0.1:0\": \"name:22\"}}\n",
            "exit 1, fatal: @/config.yaml line 1: stack.forwards.127.0.0.1:0: invalid remote addr: \"name\" is not an IPv4 address",
            "exit 2, panic",
        ),
        (
            "10.23",
            none,
            "stack: {nat: {name: 127.0.0.1}}\n",
            "exit 1, fatal: @/config.yaml line 1: stack.nat.name: invalid IPv4 address: \"name\"",
            "exit 2, panic",
        ),
        (
            "10.23",
            none,
            "stack: {nat: {192.168.127.254: name}}\n",
            "exit 1, fatal: @/config.yaml line 1: stack.nat.192.168.127.254: invalid IPv4 address: \"name\"",
            "exit 2, panic",
        ),
        (
            "",
            "a static lease outside the subnet, a search domain that is none",
            "stack: {dhcpStaticLeases: {10.0.0.1: \"5a:94:ef:e4:0c:ee\"}}\n",
            "exit 1, fatal: @/config.yaml line 1: stack.dhcpStaticLeases.10.0.0.1: 10.0.0.1 is not in the subnet",
            "runs",
        ),
        (
            "",
            "`stack.gatewayMacAddress` that is none",
            "stack: {gatewayMacAddress: zz}\n",
            "exit 1, fatal: @/config.yaml line 1: stack.gatewayMacAddress: address \"zz\": invalid MAC address",
            "exit 0, error: gvproxy exiting: cannot create tap endpoint: address zz: invalid MAC address",
        ),
        (
            "",
            "`mtu: 1.5`",
            "stack: {mtu: 1.5}\n",
            "exit 1, fatal: failed to parse configuration: @/config.yaml: line 1: stack.mtu: invalid type: expected an integer",
            "runs",
        ),
        (
            "",
            "a second document",
            "stack: {mtu: 1400}\n---\nstack: {mtu: 1500}\n",
            "exit 1, fatal: failed to parse configuration: @/config.yaml: line 3: only single YAML document expected but multiple found",
            "runs",
        ),
        (
            "",
            "a text in quotes where a boolean belongs",
            "stack: {debug: \"false\"}\n",
            "runs",
            "exit 1, fatal: failed to parse configuration: yaml: unmarshal errors:\\n  line 1: cannot unmarshal !!str `false` into bool",
        ),
    ] {
        table.differs(format!("{rows} {yaml:?}").trim(), row, ours, original, move |on| {
            runs(on, yaml, "").replace("; leaves config.yaml", "")
        });
    }
    for (yaml, why) in [
        ("stack: {tcpMaxInFlight: -1}\n", "stack.tcpMaxInFlight: -1 is negative"),
        (
            "stack: {tcpConnectTimeout: 30}\n",
            "stack.tcpConnectTimeout: invalid duration \"30\": want 30s, 1m30s or 500ms",
        ),
    ] {
        table.differs(
            format!("{yaml:?}"),
            LIMITS,
            format!("exit 1, fatal: @/config.yaml line 1: {why}"),
            "runs",
            move |on| runs(on, yaml, "").replace("; leaves config.yaml", ""),
        );
    }
    table.differs(
        "two connects in flight, half a second each",
        LIMITS,
        "refused after 0.5 s; the third is connected after a second",
        "waits; the third is connected at once",
        connects_in_flight,
    );
    table.differs(
        "\"\" -ssh-port=2222 warns",
        "`-ssh-port=N` beside `-config`",
        "\"CLI argument \\\"-ssh-port\\\" is unavailable with config file. You need to add \\\"127.0.0.1:2222: 192.168.127.2:22\\\" entry into .stack.forwards",
        "nothing",
        |on| warning(on, "", "-ssh-port=2222"),
    );
    table.same("-ssh-port N beside -config warns", "\"CLI argument \\\"-ssh-port\\\" is unavailable with config file. You need to add \\\"127.0.0.1:2222: 192.168.127.2:22\\\" entry into .stack.forwards", |on| warning(on, "", "-ssh-port 2222"));
}

/// What a guest sees of two connects to where nobody answers, and of a third one that the host's own port
/// would answer.
fn connects_in_flight(on: &On) -> String {
    let file = tempfile::NamedTempFile::new().unwrap();
    let yaml = "stack: {tcpMaxInFlight: 2, tcpConnectTimeout: 500ms, nat: {192.168.127.254: 127.0.0.1}}\n";
    fs::write(&file, yaml).unwrap();
    let net = on.net(["-config", file.path().to_str().unwrap()]);
    let listener = net.host.listen("127.0.0.1:0".parse().unwrap());
    let held = [1, 2].map(|port| {
        let socket = net.guest.tcp();
        socket.set_nonblocking(true).unwrap();
        let _ = socket.connect(&SocketAddr::from((BLACK_HOLE, port)).into());
        socket
    });
    let start = Instant::now();
    // Its first SYN finds no room, the one that comes after a second does.
    let third = net.guest.connect((HOST, listener.local_addr().unwrap().port()).into());
    let after = start.elapsed();
    let errors = held.map(|socket| socket.take_error().unwrap().map(|error| error.kind()));
    let refused = errors == [Some(ErrorKind::ConnectionRefused); 2];
    let third = match third {
        Ok(_) if after < Duration::from_millis(500) => "connected at once".to_owned(),
        Ok(_) if after < Duration::from_millis(2500) => "connected after a second".to_owned(),
        other => format!("{other:?} after {after:?}"),
    };
    format!("{}; the third is {third}", if refused { "refused after 0.5 s" } else { "waits" })
}

/// The first warning of a run that serves.
fn warning(on: &On, yaml: &str, line: &str) -> String {
    let place = Place::new(on);
    let mut run = start(&place, yaml, &format!("{READY} {line}"));
    if let Err(end) = run.waits_with("ready") {
        return end;
    }
    let log = run.whole_log();
    let line = log.lines().find_map(|line| line.split_once(" level=warning msg="));
    // The original forgets to say in which file.
    line.map_or("nothing", |(_, message)| message.split(" in \\\"").next().unwrap()).to_owned()
}

/// What runs: the file, the command line behind it; files that are made, the last of them the VM's socket,
/// and files that are not.
fn running(table: &mut Table) {
    for (rows, yaml, line, made, not_made) in [
        ("9.5", "", "-listen-qemu unix://@/q", &["q"][..], &[][..]),
        ("", "# nothing\n", "-listen-qemu unix://@/q", &["q"], &[]),
        ("", "---\nstack: ~\ninterfaces:\nforwards: []\n", "-listen-qemu unix://@/q", &["q"], &[]),
        ("9.6", QEMU, "", &["q"], &[]),
        ("", QEMU, "-listen-qemu=", &["q"], &[]),
        ("", QEMU, "-listen-qemu unix://@/r", &["r"], &["q"]),
        (
            "10.21",
            "Stack: 7\nbogus: {a: [1]}\ninterfaces: {qemu: \"unix://@/q\", other: 1}\n",
            "",
            &["q"],
            &[],
        ),
        ("", "interfaces: &a {qemu: \"unix:@/q\"}\nsame: *a\n", "", &["q"], &[]),
        ("", "interfaces: {qemu: \"unix:///%2f@/q?x#y\"}\n", "", &["q"], &[]),
        ("", "pid-file: @/pid\ninterfaces: {qemu: \"unix://@/q\"}\n", "", &["pid", "q"], &[]),
        (
            "",
            "pid-file: @/pid\ninterfaces: {qemu: \"unix://@/q\"}\n",
            "-pid-file @/mine",
            &["mine", "q"],
            &["pid"],
        ),
        ("", "log-file: @/log\ninterfaces: {qemu: \"unix://@/q\"}\n", "", &["log", "q"], &[]),
        (
            "",
            "log-file: @/log\ninterfaces: {qemu: \"unix://@/q\"}\n",
            "-log-file @/mine",
            &["mine", "q"],
            &["log"],
        ),
        (
            "9.6",
            "listen: [\"unix://@/a\", \"unix://@/b\"]\nservices: unix://@/s\ninterfaces: {qemu: \"unix://@/q\"}\n",
            "",
            &["a", "b", "s", "q"],
            &[],
        ),
        (
            "",
            "listen: [\"unix://@/a\", \"unix://@/b\"]\ninterfaces: {qemu: \"unix://@/q\"}\n",
            "-listen unix://@/mine",
            &["mine", "q"],
            &["a", "b"],
        ),
        ("", "interfaces: {bess: \"unixpacket://@/q\", vfkit: \"unixgram://@/v\"}\n", "", &["v", "q"], &[]),
        (
            "",
            "stack: {subnet: 10.0.0.0/24}\ninterfaces: {qemu: \"unix://@/q\"}\n",
            "-subnet nonsense",
            &["q"],
            &[],
        ),
        (
            "",
            "stack: {gatewayIP: 192.168.127.9}\ninterfaces: {qemu: \"unix://@/q\"}\n",
            "-gatewayIP x",
            &["q"],
            &[],
        ),
        ("", "stack: {mtu: 0x5dc, debug: off}\ninterfaces: {qemu: \"unix://@/q\"}\n", "", &["q"], &[]),
        ("", "stack: {mtu: 1400.0, debug: No}\ninterfaces: {qemu: \"unix://@/q\"}\n", "", &["q"], &[]),
        ("", "stack: {mtu: 02700}\ninterfaces: {qemu: \"unix://@/q\"}\n", "", &["q"], &[]),
    ] {
        let seen = format!("makes {}, not {}", made.join(" "), not_made.join(" "));
        table.same(format!("{rows} {yaml:?} {line}").trim(), seen, move |on| {
            let place = Place::new(on);
            let mut run = start(&place, yaml, line);
            for name in made {
                if let Err(end) = run.waits_with(name) {
                    return end;
                }
            }
            let absent: Vec<_> = not_made.iter().copied().filter(|name| !place.path(name).exists()).collect();
            format!("makes {}, not {}", made.join(" "), absent.join(" "))
        });
    }
    table.same("9.13 interfaces.stdio", "ends with its machine: exit 0", |on| {
        let place = Place::new(on);
        let mut run = start(&place, "interfaces: {stdio: accept}\n", "");
        // Its input is /dev/null, which has an end.
        format!("ends with its machine: exit {}", run.end())
    });
}

fn levels(table: &mut Table) {
    for (rows, level, line, debug, info) in [
        ("", "", "", false, true),
        ("", "info", "", false, true),
        ("9.11", "Debug", "-log-file @/log", true, true),
        ("", "warn", "", false, false),
        ("", "WARNING", "", false, false),
        ("", "panic", "", false, false),
        ("9.11", "error", "-debug -log-file @/log", true, true),
        ("10.22", "chatty", "", false, true),
    ] {
        let fallback = if level == "chatty" { "; falls back to info" } else { "" };
        let seen = format!("debug {debug}, info {info}{fallback}");
        table.same(format!("{rows} log-level: {level} {line}").trim(), seen, move |on| {
            let place = Place::new(on);
            let mut run = start(&place, &format!("log-level: {level}\n{QEMU}"), line);
            if let Err(end) = run.waits_with("q") {
                return end;
            }
            let stderr = run.whole_log();
            let log = fs::read_to_string(place.path("log")).unwrap_or(stderr);
            let text = r#"level=warning msg="bad log level \"chatty\", falling back to \"info\"""#;
            let fallback = if log.contains(text) { "; falls back to info" } else { "" };
            format!(
                "debug {}, info {}{fallback}",
                log.contains(" level=debug "),
                log.contains(" level=info ")
            )
        });
    }
}

/// What the API at `socket` says.
fn ask(socket: &Path, path: &str) -> String {
    let stream = eventually("the API", PATIENCE, || UnixStream::connect(socket).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    shown(&Answer::of(&exchange(stream, &request("GET", path, ""))))
}

/// Leases, zones and forwards of a daemon with that file.
fn state(on: &On, yaml: &str, line: &str) -> String {
    let place = Place::new(on);
    let mut run = start(&place, yaml, &format!("{READY} -listen unix://@/api {line}"));
    if let Err(end) = run.waits_with("ready") {
        return end;
    }
    let api = place.path("api");
    format!("leases {}; zones {}; forwards {}", ask(&api, "/leases"), ask(&api, ZONES), ask(&api, ALL))
}

/// What there is without an entry for it, and with one.
fn defaults(table: &mut Table) {
    let gateway = r#"leases 200 {"192.168.127.1":"5a:94:ef:e4:0c:dd"}; zones 200 null; forwards 200 []"#;
    table.same("9.5 the network of an empty file", gateway, |on| state(on, "", ""));
    let zone = |name: &str| {
        format!(
            r#"{{"Name":"{name}","Records":[{{"Name":"gateway","IP":"192.168.127.1"}},{{"Name":"host","IP":"192.168.127.254"}}],"DefaultIP":""}}"#
        )
    };
    let zones = format!("[{},{}]", zone("containers.internal."), zone("docker.internal."));
    let seen = format!(
        r#"leases 200 {{"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.2":"5a:94:ef:e4:0c:ee"}}; zones 200 {zones}; forwards 200 []"#
    );
    table.same("9.3 what is the default without a file, written into one", seen, |on| {
        let records = "records: [{name: gateway, ip: 192.168.127.1}, {name: host, ip: 192.168.127.254}]";
        let yaml = format!(
            "stack:\n  mtu: 1500\n  subnet: 192.168.127.0/24\n  gatewayMacAddress: \"5a:94:ef:e4:0c:dd\"\n  dns:\n  \
             - {{name: containers.internal., {records}}}\n  - {{name: docker.internal., {records}}}\n  \
             dhcpStaticLeases: {{192.168.127.2: \"5a:94:ef:e4:0c:ee\"}}\n"
        );
        state(on, &yaml, "")
    });
    table.same(
        "9.7 a subnet and an address without quotes",
        r#"leases 200 {"10.0.0.1":"10:11:11:11:11:00"}; zones 200 null; forwards 200 []"#,
        |on| state(on, "stack:\n  subnet: 10.0.0.0/16\n  gatewayMacAddress: 10:11:11:11:11:00\n", ""),
    );
    table.same(
        "9.8 static leases, and none beside them",
        r#"leases 200 {"192.168.127.1":"5a:94:ef:e4:0c:dd","192.168.127.9":"02:00:00:00:00:09"}; zones 200 null; forwards 200 []"#,
        |on| state(on, "stack: {dhcpStaticLeases: {192.168.127.9: \"02:00:00:00:00:09\"}}\n", ""),
    );
    table.same("9.9 forwards, and none beside them", "\"local\":\"127.0.0.1:ONE\",\"remote\":\"192.168.127.2:22\",\"protocol\":\"tcp\"; \"local\":\"127.0.0.1:TWO\",\"remote\":\"192.168.127.2:53\",\"protocol\":\"udp\"", |on| {
        let ports = [(); 2].map(|()| free_port());
        let [one, two] = ports;
        let yaml = format!(
            "stack: {{forwards: {{\"127.0.0.1:{one}\": \"192.168.127.2:22\", \"udp:127.0.0.1:{two}\": \"192.168.127.2:53\"}}}}\n"
        );
        let seen = state(on, &yaml, "");
        let all = seen.split("forwards ").nth(1).unwrap_or(&seen).replace(&one.to_string(), "ONE").replace(&two.to_string(), "TWO");
        let mut entries: Vec<_> = all.split("},{").map(|entry| entry.trim_matches(['[', ']', '{', '}', ' ', '2', '0'])).collect();
        entries.sort_unstable();
        entries.join("; ")
    });
}

/// The whole of a file, as a guest sees it.
fn networks(table: &mut Table) {
    let seen = "given 10.1.0.77, mask [255, 255, 0, 0], router [10, 1, 0, 7], server [10, 1, 0, 7], mtu [11, 184], \
                search \\x01a\\x07example\\x00\\x01b\\x07example\\x00; another 10.1.0.1; ARP 10.1.0.7 02:00:00:00:00:01, \
                10.1.0.60 02:00:00:00:00:01, 10.1.0.9 nobody; api 10.1.0.50, node-12 10.1.0.51, anything 10.1.0.52; the port: made";
    table.same("a network as it is described, with the MTU of the flag", seen, |on| {
        let (place, port) = (Place::new(on), free_port());
        let yaml = format!(
            "interfaces: {{qemu: \"unix://@/q\"}}\nstack:\n  mtu: 4000\n  subnet: 10.1.0.0/16\n  gatewayIP: 10.1.0.7\n  \
             deviceIP: 10.1.0.8\n  hostIP: 10.1.0.9\n  gatewayMacAddress: 02-00-00-00-00-01\n  dns:\n  - name: crc.testing.\n    \
             records:\n    - {{name: api, ip: 10.1.0.50}}\n    - {{regexp: \"node-[0-9]+\", ip: 10.1.0.51}}\n    \
             defaultIP: 10.1.0.52\n  dnsSearchDomains: [a.example, b.example]\n  forwards: {{\"127.0.0.1:{port}\": \
             \"10.1.0.8:22\"}}\n  gatewayVirtualIPs: [10.1.0.60]\n  dhcpStaticLeases: {{10.1.0.77: \"5a:94:ef:e4:0c:ee\"}}\n"
        );
        let mut run = start(&place, &yaml, "-mtu 3000");
        if let Err(end) = run.waits_with("q") {
            return end;
        }
        let mut wire = Wire::plug_into(&place.path("q"));
        let offer = Dhcp::discover(MAC).ask(&mut wire).expect("an offer");
        let option = |code: u8| {
            let found = offer.options.iter().find(|(kind, _)| *kind == code);
            found.map_or(&[][..], |(_, value)| value)
        };
        let mut text = format!(
            "given {}, mask {:?}, router {:?}, server {:?}, mtu {:?}, search {}",
            offer.address,
            option(1),
            option(3),
            option(6),
            option(26),
            option(119).escape_ascii()
        );
        let other = Dhcp::discover([2, 0, 0, 0, 0, 5]).ask(&mut wire).expect("an offer");
        text += &format!("; another {}; ARP ", other.address);
        let [me, gateway, virtual_ip, host] = [99, 7, 60, 9].map(|last| Ipv4Addr::new(10, 1, 0, last));
        let answers = [gateway, virtual_ip, host].map(|ip| {
            wire.send(&arp(1, MAC, me, [0; 6], ip));
            let patience = if ip == host { crate::wire::SILENCE } else { PATIENCE };
            let mac = hardware_address(&wire, patience, ip);
            format!("{ip} {}", mac.map_or_else(|| "nobody".to_owned(), |mac| netstack::Mac(mac).to_string()))
        });
        text += &answers.join(", ");
        let names = ["api", "node-12", "anything"].map(|name| {
            let question = question(&format!("{name}.crc.testing"), A, None);
            let packet = ipv4(UDP, me, gateway, &udp(5353, 53, &question));
            wire.send(&ether([2, 0, 0, 0, 0, 1], MAC, IPV4, &packet));
            // The address ends the message.
            let address = |frame: &[u8]| match read_transport(frame)? {
                TransportSlice::Udp(datagram) if datagram.source_port() == 53 => {
                    datagram.payload().last_chunk().copied()
                }
                _ => None,
            };
            let answer = wire.receive(PATIENCE, |frame| address(frame).is_some());
            let answer = answer.and_then(|frame| address(&frame)).map(Ipv4Addr::from_octets);
            format!("{name} {}", answer.map_or_else(|| "silence".to_owned(), |ip| ip.to_string()))
        });
        let port = std::net::TcpStream::connect(("127.0.0.1", port)).map_or("refused", |_| "made");
        text + &format!("; {}; the port: {port}", names.join(", "))
    });
    table.differs(
        "10.24 a static lease for a hardware address in capitals",
        "hardware addresses",
        "192.168.127.77",
        "192.168.127.2",
        |on| leased(on, "stack: {dhcpStaticLeases: {192.168.127.77: \"5A:94:EF:E4:0C:EE\"}}\n"),
    );
    table.same("a static lease", "192.168.127.77", |on| {
        leased(on, "stack: {dhcpStaticLeases: {192.168.127.77: \"5a:94:ef:e4:0c:ee\"}}\n")
    });
    table.same("without a static lease the first address is free", "192.168.127.2", |on| leased(on, ""));
}

/// The address of the usual machine.
fn leased(on: &On, yaml: &str) -> String {
    let place = Place::new(on);
    let mut run = start(&place, &format!("{QEMU}{yaml}"), "");
    if let Err(end) = run.waits_with("q") {
        return end;
    }
    Dhcp::lease(MAC, &mut Wire::plug_into(&place.path("q")))
}

/// The type of the link in the head of a capture, which is there before any machine is.
fn captures(table: &mut Table) {
    let kind = |place: &Place, name: &str| {
        let path = place.path(name);
        let head =
            eventually("the head", PATIENCE, || fs::read(&path).ok().filter(|bytes| bytes.len() >= 24));
        format!("link type {}", u32::from_le_bytes(*head[20..].first_chunk().unwrap()))
    };
    table.differs("9.12 -debug -pcap", "`-pcap`", "link type 1", "link type 101", move |on| {
        let place = Place::new(on);
        let mut run = place.start(&format!("-ssh-port -1 -debug -pcap @/c {READY}"));
        run.waits_with("ready").map_or_else(|end| end, |()| kind(&place, "c"))
    });
    table.differs("stack.capture-file", "`-pcap`", "link type 1", "link type 101", move |on| {
        let place = Place::new(on);
        let mut run = start(&place, "stack: {capture-file: \"@/c\"}\n", READY);
        run.waits_with("ready").map_or_else(|end| end, |()| kind(&place, "c"))
    });
    table.differs("10.74 -pcap beside -config", "`-pcap` beside `-config`", "made", "not made", |on| {
        let place = Place::new(on);
        let mut run = start(&place, "", &format!("-pcap @/c {READY}"));
        let made = |place: &Place| if place.path("c").exists() { "made" } else { "not made" }.to_owned();
        run.waits_with("ready").map_or_else(|end| end, |()| made(&place))
    });
    table.differs("a capture where there is no directory", "a capture file that cannot be made", "exit 1, error: gvproxy exiting: cannot create capture file: open @/none/c: no such file or directory", "exit 0, error: gvproxy exiting: cannot create capture file: open @/none/c: no such file or directory", |on| {
        crate::process::ends(on, "-ssh-port -1 -pcap @/none/c")
    });
}
