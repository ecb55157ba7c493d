//! The command line and the process: grammar, texts, exit codes, and what is left behind. Reference 1.2 to
//! 1.10.
//! Read next: `process.rs`.

use std::fs;
use std::net::{TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;

use rustix::process::Signal;

use crate::case::{Case, On, Table};
use crate::process::{Place, ends, ends_with, runs};
use testkit::free_port;
use testkit::net::Host;

/// Flags that the original does not have, or not yet, as the usage text names them.
const OURS: [&str; 13] = [
    "agent-port int",
    "agent-secret-file string",
    "api-token-file string",
    "api-token-gateway",
    "exit-with-vm",
    "gateway-expose-all-protocols",
    "keep-running",
    "listen-unixgram string",
    "qmp value",
    "qmp-keep-device",
    "qmp-status",
    "reverse-dest value",
    "reverse-sock value",
];
const SSH_PORT: &str = "ssh-port value must be between 1024 and 65535";
const UNEQUAL: &str = "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified \
                       together, the same number of times, or not at all";
/// What goes with a `-forward-sock`.
const FORWARD: &str = "-forward-dest /d -forward-user u -forward-identity @/key";

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("cli");
    grammar(&mut table);
    configuration(&mut table);
    sockets(&mut table);
    process(&mut table);
    table.done()
}

/// The first line, and whether the usage follows.
fn refusal(on: &On, line: &str) -> String {
    let place = Place::new(on);
    let mut run = place.start(line);
    let code = run.end();
    let stderr = run.stderr();
    let mut lines = stderr.lines();
    let first = lines.next().unwrap_or_default().to_owned();
    let usage = lines.next() == Some(&format!("Usage of {}:", on.binary.display()));
    format!("exit {code}, {first}, usage {usage}{}{}", run.stdout(), run.left())
}

fn grammar(table: &mut Table) {
    for (line, text) in [
        ("-x", "flag provided but not defined: -x"),
        ("--x=1", "flag provided but not defined: -x"),
        ("-Debug", "flag provided but not defined: -Debug"),
        ("-ssh 2222", "flag provided but not defined: -ssh"),
        ("-debug -x", "flag provided but not defined: -x"),
        ("-mtu", "flag needs an argument: -mtu"),
        ("-pid-file", "flag needs an argument: -pid-file"),
        ("-forward-sock", "flag needs an argument: -forward-sock"),
        ("---mtu", "bad flag syntax: ---mtu"),
        ("-=x", "bad flag syntax: -=x"),
        ("-mtu abc", r#"invalid value "abc" for flag -mtu: parse error"#),
        ("-mtu=", r#"invalid value "" for flag -mtu: parse error"#),
        ("-mtu 1__5", r#"invalid value "1__5" for flag -mtu: parse error"#),
        ("-mtu 09", r#"invalid value "09" for flag -mtu: parse error"#),
        ("-mtu 0x", r#"invalid value "0x" for flag -mtu: parse error"#),
        ("-mtu é", r#"invalid value "é" for flag -mtu: parse error"#),
        (
            "-ssh-port 99999999999999999999",
            r#"invalid value "99999999999999999999" for flag -ssh-port: value out of range"#,
        ),
        ("-debug=maybe", r#"invalid boolean value "maybe" for -debug: parse error"#),
        ("-debug=", r#"invalid boolean value "" for -debug: parse error"#),
        ("-version=2", r#"invalid boolean value "2" for -version: parse error"#),
        ("-mtu abc -x", r#"invalid value "abc" for flag -mtu: parse error"#),
        ("-mtu abc -mtu 1", r#"invalid value "abc" for flag -mtu: parse error"#),
        ("-x -h", "flag provided but not defined: -x"),
        ("-version -x", "flag provided but not defined: -x"),
    ] {
        table
            .same(format!("10.1 {line}"), format!("exit 2, {text}, usage true"), move |on| refusal(on, line));
    }

    let flags = "config string, debug, deviceIP string, ec2-metadata-access, forward-dest value, \
        forward-identity value, forward-sock value, forward-user value, gatewayIP string, hostIP string, \
        listen value, listen-bess string, listen-qemu string, listen-stdio string, listen-vfkit string, \
        listen-vpnkit string, log-file string, mtu int, notification string, pcap string, pid-file string, \
        services string, ssh-port int, subnet string, version";
    for line in ["-h", "-help", "--help", "--h", "-h=1", "-debug -h -x", "-h -mtu abc"] {
        let seen = format!("exit 0, {flags}; 2222), \"192.168.127.0/24\"); on stdout \"\"");
        table.same(format!("usage: {line}"), seen, move |on| {
            let place = Place::new(on);
            let mut run = place.start(line);
            let code = run.end();
            let stderr = run.stderr();
            let names = stderr.lines().filter_map(|line| line.strip_prefix("  -"));
            let texts = stderr.lines().filter(|line| line.starts_with("    \t"));
            // What the original does not have is shown by cases of its own.
            let (names, texts): (Vec<_>, Vec<_>) =
                names.zip(texts).filter(|(name, _)| !OURS.contains(name)).unzip();
            let defaults: Vec<_> = texts
                .iter()
                .filter_map(|text| text.split_once(" (default "))
                .map(|(_, value)| value)
                .collect();
            format!(
                "exit {code}, {}; {}; on stdout {:?}",
                names.join(", "),
                defaults.join(", "),
                run.stdout()
            )
        });
    }
    table.differs(
        "-keep-running",
        "`-keep-running`",
        format!("exit 1, fatal: {SSH_PORT}, usage false"),
        "exit 2, flag provided but not defined: -keep-running, usage true",
        |on| {
            let seen = refusal(on, "-keep-running -ssh-port 80");
            if on.is_ours {
                seen.replacen(&seen[8..seen.find(SSH_PORT).unwrap()], "fatal: ", 1).replace('"', "")
            } else {
                seen
            }
        },
    );

    for line in ["-version", "--version", "-version=true -mtu 5", "-version -pcap x", "-debug -version junk"]
    {
        let seen = "exit 0, one line gvproxy version v, and on stderr \"\"";
        table.same(format!("version: {line}"), seen, move |on| {
            let place = Place::new(on);
            let mut run = place.start(line);
            let code = run.end();
            let lines = run.stdout();
            let one = if lines.lines().count() == 1 { "one line" } else { &lines };
            let text = lines.get(..17).unwrap_or(&lines);
            format!("exit {code}, {one} {text}, and on stderr {:?}", run.stderr())
        });
    }

    // That a value was read, and how, shows in whether the port is refused.
    for (row, line) in [
        ("10.3", "-ssh-port 80"),
        ("10.3", "-ssh-port 0"),
        ("10.3", "-ssh-port -2"),
        ("10.3", "-ssh-port 65536"),
        ("", "--ssh-port 80"),
        ("", "-ssh-port=80"),
        ("", "--ssh-port=80"),
        ("", "-ssh-port 0x50"),
        ("", "-ssh-port 0b101_0000"),
        ("", "-ssh-port 0o120"),
        ("", "-ssh-port 01777"),
        ("", "-ssh-port 1_0"),
        ("", "-ssh-port +80"),
        ("", "-ssh-port 2222 -ssh-port 80"),
        ("", "-mtu 0x5dc -ssh-port 80"),
        ("", "-debug=T -debug=f -ssh-port 80"),
        ("", "-version=false -ssh-port 80"),
        ("", "-pid-file= -log-file= -pcap= -config= -notification= -ssh-port 80"),
        ("10.2", "-ssh-port 80 junk -x"),
        ("10.2", "-ssh-port 80 - -x"),
        ("10.2", "-ssh-port 80 -- -x"),
        ("10.2", "-ssh-port 80 -ec2-metadata-access false -x"),
    ] {
        let name = format!("{row} {line}");
        table.same(name.trim(), format!("exit 1, fatal: {SSH_PORT}"), move |on| ends(on, line));
    }
    table.same("10.3 -ssh-port -1", "runs", |on| runs(on, "-ssh-port -1"));
    for line in [
        "-listen-qemu tcp://127.0.0.1:0",
        "-debug -listen-qemu unix://@/q",
        "-listen-bess unixpacket://@/b",
        "--listen-qemu=unix://@/q --mtu=4000 --debug",
        "-pid-file -debug",
    ] {
        table.same(format!("9.4 {line}"), "runs", move |on| runs(on, &format!("-ssh-port -1 {line}")));
    }
}

fn configuration(table: &mut Table) {
    for (row, line, text) in [
        (
            "10.7",
            "-subnet 10.0.0.0/30",
            "failed to identify usable gateway IP address in subnet: subnet too small",
        ),
        (
            "10.7",
            "-subnet 10.0.0.0/30 -gatewayIP 10.0.0.1",
            "failed to identify usable device IP address in subnet: subnet too small",
        ),
        (
            "10.7",
            "-subnet 10.0.0.0/30 -gatewayIP 10.0.0.1 -deviceIP 10.0.0.2",
            "failed to identify usable host IP address in subnet: subnet too small",
        ),
        ("", "-subnet 10.0.0.0", "failed to parse subnet: "),
        ("", "-subnet=", "failed to parse subnet: "),
        ("", "-subnet 10.0.0.0/33", "prefix length out of range"),
        ("", "-subnet 10.0.0/24", "failed to parse subnet: "),
        ("", "-subnet x/24", "unable to parse IP"),
        ("", "-gatewayIP x", "failed to validate configuration IPs: invalid IP address: x"),
        ("10.9", "-gatewayIP 1.2.3.4", "IP (1.2.3.4) not in subnet (192.168.127.0/24)"),
        ("10.9", "-deviceIP 1.2.3.4", "IP (1.2.3.4) not in subnet (192.168.127.0/24)"),
        ("", "-hostIP 192.168.127.0", "IP must not be address of subnet: 192.168.127.0"),
        ("", "-hostIP 192.168.127.255", "IP must not be broadcast address: 192.168.127.255"),
        (
            "10.9",
            "-hostIP 192.168.127.1",
            "failed to validate configuration IPs: IP addresses need to be distinct",
        ),
        ("", "-subnet 10.0.0.0/24 -hostIP 192.168.127.9", "IP (192.168.127.9) not in subnet (10.0.0.0/24)"),
        ("10.10", "-listen-qemu unix://@/file", "\"@/file\" already exists"),
        ("", "-listen-qemu unix:@/file", "\"@/file\" already exists"),
        ("9.16", "-listen-qemu unix://@/%66ile?x", "\"@/file\" already exists"),
        ("10.10", "-listen-qemu unix://@/live", "\"@/live\" already exists"),
        ("10.10", "-listen-bess unixpacket://@/file", "\"@/file\" already exists"),
        ("10.10", "-listen-vfkit unixgram://@/file", "\"@/file\" already exists"),
        ("", "-listen-bess unix://@/b", "bess listen address must be unixpacket:// address"),
        ("", "-listen-vfkit unix://@/b", "vfkit listen address must be unixgram:// address"),
        ("", "-listen-qemu unix://@/%zz", "parse \"unix://@/%zz\": invalid URL escape \"%zz\""),
        (
            "",
            "-listen-qemu :x",
            "invalid value for qemu listen address: parse \":x\": missing protocol scheme",
        ),
        (
            "",
            "-listen-qemu unix://@/q -listen-vpnkit unix://@/v",
            "cannot use qemu and vpnkit protocol at the same time",
        ),
        (
            "",
            "-listen-bess unixpacket://@/b -listen-vpnkit unix://@/v",
            "cannot use bess and vpnkit protocol at the same time",
        ),
        (
            "",
            "-listen-qemu unix://@/q -listen-bess unixpacket://@/b",
            "cannot use qemu and bess protocol at the same time",
        ),
        ("10.25", "-forward-sock @/s", UNEQUAL),
        (
            "10.25",
            "-forward-sock @/s -forward-dest /d -forward-user u -forward-identity @/key -forward-user v",
            UNEQUAL,
        ),
        (
            "10.26",
            "-forward-sock @/s -forward-dest /d -forward-user u -forward-identity @/none",
            "identity file \"@/none\" can't be loaded: stat @/none: no such file or directory",
        ),
        ("", "-subnet 10.0.0.0/30 -ssh-port 80", "subnet too small"),
        ("", "-listen-qemu unix://@/file -ssh-port 80", "already exists"),
        ("", "-ssh-port 80 -forward-sock @/s", SSH_PORT),
        ("10.18", "-log-file @/none/log", "unable to open log file @/none/log"),
    ] {
        let name = format!("{row} {line}");
        let seen = format!("exit 1, fatal: …{text}");
        table.same(name.trim(), seen, move |on| shortened(&ends_with(on, line, text), text));
    }
    table.same("10.7 the smallest subnet", "runs", |on| runs(on, "-ssh-port -1 -subnet 10.0.0.0/29"));

    let mtu = "`-mtu` outside 68..65535";
    table.differs(
        "10.5 -mtu -5",
        mtu,
        "exit 1, fatal: mtu is out of range: -5, want 68 to 65535",
        "exit 0, error: gvproxy exiting: mtu is out of range",
        |on| ends(on, "-ssh-port -1 -mtu -5"),
    );
    table.differs(
        "10.6 -mtu 70000",
        mtu,
        "exit 1, fatal: mtu is out of range: 70000, want 68 to 65535",
        "runs",
        |on| runs(on, "-ssh-port -1 -mtu 70000"),
    );
    table.differs(
        "10.8 9.1 -subnet fc00::fff/64",
        "IPv6 `-subnet`",
        "exit 1, fatal: failed to parse subnet: \"fc00::fff/64\": an IPv6 subnet is not supported yet",
        "exit 2, panic",
        |on| ends(on, "-ssh-port -1 -subnet fc00::fff/64"),
    );
    table.differs("-subnet 192.168.127.1/24", "`-subnet 192.168.127.1/24`", "runs", "exit 1, fatal: failed to validate configuration IPs: IP must not be address of subnet: 192.168.127.1", |on| runs(on, "-ssh-port -1 -subnet 192.168.127.1/24"));
    table.differs(
        "10.26 an identity that is no key",
        "identity that is no private key",
        "exit 1, error: gvproxy exiting: @/nokey is not a usable ssh private key: Could not read key",
        "runs",
        |on| {
            runs(
                on,
                "-ssh-port -1 -forward-sock @/s -forward-dest /d -forward-user u -forward-identity @/nokey",
            )
        },
    );
}

/// The words before `text` cut, which differ where a system's or Go's come first.
fn shortened(seen: &str, text: &str) -> String {
    match (seen.split_once(": "), seen.find(text)) {
        (Some((kind, _)), Some(at)) => format!("{kind}: …{}", &seen[at..]),
        _ => seen.to_owned(),
    }
}

fn sockets(table: &mut Table) {
    let dead = "socket of a dead predecessor at the flag of a VM's socket";
    for flag in ["-listen-qemu unix", "-listen-bess unixpacket", "-listen-vfkit unixgram"] {
        table.differs(
            format!("10.10 {flag}://@/dead"),
            dead,
            "runs",
            "exit 1, fatal: \"@/dead\" already exists",
            move |on| {
                let place = Place::new(on);
                let mut run = place.start(&format!("-ssh-port -1 {flag}://@/dead -services unix://@/served"));
                run.waits_with("served").map_or_else(|end| end, |()| "runs".to_owned())
            },
        );
    }
    let served = "a dead socket at `-listen`, `-services`";
    let vpnkit = "`-listen-qemu tcp://HOST` without a port, `-listen-vpnkit` with a path that is no socket or is in use";
    for (flag, row, kind, what) in [
        ("-listen unix", served, "error: gvproxy exiting: cannot listen: ", "cannot listen"),
        ("-services unix", served, "error: gvproxy exiting: cannot listen: ", "cannot listen"),
        ("-listen-vpnkit unix", vpnkit, "fatal: ", "vpnkit listen error"),
    ] {
        for (name, row, end) in [
            ("dead", if row == vpnkit { dead } else { row }, "runs".to_owned()),
            ("live", row, format!("exit 1, {kind}\"@/live\" already exists and is in use")),
            ("file", row, format!("exit 1, {kind}\"@/file\" already exists")),
        ] {
            let original = format!(
                "exit 0, error: gvproxy exiting: {what}: listen unix @/{name}: bind: address already in use"
            );
            table.differs(format!("10.11 {flag}://@/{name}"), row, end, original, move |on| {
                let seen = runs(on, &format!("-ssh-port -1 {flag}://@/{name}"));
                // Whoever has it is this test.
                seen.split_once(" (by ").map_or_else(|| seen.clone(), |(text, _)| text.to_owned())
            });
        }
    }
    let refused = "socket path over 107 bytes or given twice, wrong scheme";
    table.differs(
        "10.12 the same -listen twice",
        refused,
        "exit 1, fatal: unix socket path \"@/a\" is given twice",
        "exit 0, error: gvproxy exiting: cannot listen: listen unix @/a: bind: address already in use",
        |on| ends(on, "-ssh-port -1 -listen unix://@/a -listen unix://@/a"),
    );
    for (flag, scheme, kind, what) in [
        ("-listen", "unix", "error: gvproxy exiting: cannot listen: ", "cannot listen"),
        ("-services", "unix", "error: gvproxy exiting: cannot listen: ", "cannot listen"),
        ("-listen-qemu", "unix", "fatal: ", "qemu listen error"),
        ("-listen-vpnkit", "unix", "fatal: ", "vpnkit listen error"),
        ("-listen-bess", "unixpacket", "fatal: ", "bess listen error"),
        ("-listen-vfkit", "unixgram", "fatal: ", "vfkit listen error"),
    ] {
        let long = "x".repeat(108);
        table.differs(
            format!("10.13 {flag} with a long path"),
            refused,
            format!("exit 1, {kind}unix socket path \"/LONG\" is too long: 109 bytes, the limit is 107"),
            format!("exit 0, error: gvproxy exiting: {what}: listen {scheme} /LONG: bind: invalid argument"),
            move |on| ends(on, &format!("-ssh-port -1 {flag} {scheme}:///{long}")).replace(&long, "LONG"),
        );
        let end = format!(
            "error: gvproxy exiting: {what}: listen {scheme} @/none/s: bind: no such file or directory"
        );
        table.differs(
            format!("10.14 {flag} where there is no directory"),
            "a failure while running, or a pid file that cannot be made",
            format!("exit 1, {end}"),
            format!("exit 0, {end}"),
            move |on| ends(on, &format!("-ssh-port -1 {flag} {scheme}://@/none/s")),
        );
        for url in ["unix://rel", "unix:rel", "unix://host@/s"].into_iter().filter(|_| scheme == "unix") {
            let value = match flag {
                "-listen" | "-services" => format!("invalid value \"{url}\" for {flag}"),
                _ => format!("invalid value for {} listen address", &flag[8..]),
            };
            table.differs(
                format!("10.15 {flag} {url}"),
                "`unix://relative`, `unix:relative`, `unix://host/path`",
                format!("exit 1, fatal: {value}: the path of a unix URL must be absolute, as in unix:///run/x.sock"),
                "runs",
                move |on| runs(on, &format!("-ssh-port -1 {flag} {url}")),
            );
        }
    }
    table.differs(
        "-listen-qemu without a scheme",
        refused,
        "exit 1, fatal: qemu listen error: unexpected scheme in \"@/q\"",
        "exit 0, error: gvproxy exiting: qemu listen error: unexpected scheme",
        |on| ends(on, "-ssh-port -1 -listen-qemu @/q"),
    );
    table.differs(
        "-listen unixpacket",
        "`-listen unixpacket://`",
        "exit 1, fatal: invalid value \"unixpacket://@/q\" for -listen: unexpected scheme",
        "runs",
        |on| runs(on, "-ssh-port -1 -listen unixpacket://@/q"),
    );
    table.differs(
        "-listen-qemu unixpacket",
        "`-listen-qemu` and `-listen-vpnkit` with `vsock:` or `unixpacket:`",
        "exit 1, fatal: qemu listen error: unexpected scheme in \"unixpacket://@/q\"",
        "runs",
        |on| runs(on, "-ssh-port -1 -listen-qemu unixpacket://@/q"),
    );
    table.same("a blank in a path", "made", |on| {
        let place = Place::new(on);
        let mut run = place.start("-ssh-port -1 -listen-qemu unix://@/a%20b.sock");
        run.waits_with("a b.sock").map_or_else(|end| end, |()| "made".to_owned())
    });

    table.differs(
        "10.27 -forward-sock on a file",
        "`-forward-sock` where there is a file",
        "exit 1, fatal: \"@/file\" already exists",
        "runs",
        |on| runs(on, &format!("-ssh-port -1 -forward-sock @/file {FORWARD}")),
    );
    table.same("10.27 -forward-sock on a dead socket", "runs", |on| {
        runs(on, &format!("-ssh-port -1 -forward-sock @/dead {FORWARD}"))
    });
    table.differs(
        "10.28 -forward-sock tcp://",
        refused,
        "exit 1, fatal: invalid value \"tcp://x\" for flag -forward-sock: missing port in address",
        "exit 0, error: gvproxy exiting: URI scheme not supported: tcp",
        |on| ends(on, &format!("-ssh-port -1 -forward-sock tcp://x {FORWARD}")),
    );
    table.differs(
        "the mode of sockets",
        "the socket's mode",
        "q 600, v 600, f 600",
        "q 755, v 755, f 600",
        |on| {
            let place = Place::new(on);
            let mut run = place.start(&format!(
                "-ssh-port -1 -listen-qemu unix://@/q -listen-vfkit unixgram://@/v -forward-sock @/f {FORWARD}"
            ));
            for socket in ["q", "v", "f"] {
                if let Err(end) = run.waits_with(socket) {
                    return end;
                }
            }
            let modes = ["q", "v", "f"].map(|name| {
                let mode = fs::metadata(place.path(name)).unwrap().permissions().mode();
                format!("{name} {:o}", mode & 0o777)
            });
            modes.join(", ")
        },
    );
}

fn process(table: &mut Table) {
    table.differs("10.4 the ssh port is taken", "a failure while running, or a pid file that cannot be made", "exit 1, error: gvproxy exiting: cannot add network services: listen tcp 127.0.0.1:PORT: bind: address already in use (by …)", "exit 0, error: gvproxy exiting: cannot add network services: listen tcp 127.0.0.1:PORT: bind: address already in use", |on| {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port().to_string();
        let line = format!("-ssh-port {port} -pid-file @/pid -listen-qemu unix://@/q -forward-sock @/s {FORWARD}");
        let end = ends(on, &line).replace(&port, "PORT");
        end.split_once(" (by ").map_or_else(|| end.clone(), |(text, _)| format!("{text} (by …)"))
    });
    table.differs(
        "10.16 a pid file that cannot be made",
        "a failure while running, or a pid file that cannot be made",
        "exit 1, error: failed to create pidfile: open @/none/pid: no such file or directory",
        "exit 0, error: failed to create pidfile: open @/none/pid: no such file or directory",
        |on| ends(on, "-ssh-port -1 -pid-file @/none/pid"),
    );
    table.same(
        "10.17 a stale pid file is replaced, without a newline, and removed",
        "its own: true, exit 0; removes pid",
        |on| {
            let place = Place::new(on);
            fs::write(place.path("pid"), "99999999 and more").unwrap();
            let mut run = place.start("-ssh-port -1 -pid-file @/pid -listen-qemu unix:@/q");
            if let Err(end) = run.waits_with("q") {
                return end;
            }
            let own = fs::read_to_string(place.path("pid")).unwrap() == run.pid().to_string();
            run.signal(Signal::TERM);
            format!("its own: {own}, exit {}{}", run.end(), run.left())
        },
    );
    for (name, signal) in [("SIGTERM", Signal::TERM), ("SIGINT", Signal::INT)] {
        table.same(format!("{name} ends it, says so and leaves nothing"), "exit 0, said: true", move |on| {
            let place = Place::new(on);
            let mut run = place.start("-ssh-port -1 -pid-file @/pid -listen-qemu unix:@/q -listen unix://@/api -services unix://@/serv");
            if let Err(end) = run.waits_with("q") {
                return end;
            }
            run.signal(signal);
            let code = run.end();
            let said = run.stderr().contains("msg=\"gvproxy exiting: signal caught\"");
            format!("exit {code}, said: {said}{}", run.left())
        });
    }
    table.differs(
        "the end by a signal is logged as",
        "end by a signal",
        "info msg=\"gvproxy exiting: signal caught\"",
        "error msg=\"gvproxy exiting: signal caught\"",
        |on| {
            let place = Place::new(on);
            let mut run = place.start("-ssh-port -1 -listen-qemu unix:@/q");
            if let Err(end) = run.waits_with("q") {
                return end;
            }
            run.signal(Signal::TERM);
            run.end();
            let stderr = run.stderr();
            let line = stderr.lines().find(|line| line.contains("signal caught")).unwrap_or("nothing");
            line.split_once(" level=").map_or("nothing", |(_, rest)| rest).to_owned()
        },
    );
    table.same("10.70 SIGHUP kills it and leaves its files", "signal 1; leaves pid; leaves q", |on| {
        let place = Place::new(on);
        let mut run = place.start("-ssh-port -1 -pid-file @/pid -listen-qemu unix:@/q");
        if let Err(end) = run.waits_with("q") {
            return end;
        }
        run.signal(Signal::HUP);
        format!("signal {}{}", -run.end(), run.left())
    });
    table.same(
        "a line of log has the time, the level, the message",
        "time=\"0000-00-00T00:00:00Z\" level=fatal msg=\"ssh-port value must be between 0000 and 00000\"",
        |on| {
            let place = Place::new(on);
            let mut run = place.start("-ssh-port 80");
            run.end();
            let line = run.stderr();
            line.trim_end().chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect()
        },
    );
    table.same(
        "10.19 the log file is emptied and has the lines",
        "exit 1, 1 line: fatal msg=\"ssh-port value must be between 1024 and 65535\"",
        |on| {
            let place = Place::new(on);
            fs::write(place.path("log"), "old\n".repeat(100)).unwrap();
            let mut run = place.start("-log-file @/log -ssh-port 80");
            let code = run.end();
            let log = fs::read_to_string(place.path("log")).unwrap();
            let message = log.split_once(" level=").map_or("", |(_, rest)| rest);
            format!("exit {code}, {} line: {}", log.lines().count(), message.trim_end())
        },
    );
    table.same("a log that cannot be written is no crash", "exit 1", |on| {
        format!("exit {}", Place::new(on).start("-log-file /dev/full -ssh-port 80").end())
    });
    table.differs(
        "with a log file, on standard error",
        "start errors with `-log-file`",
        "the error too",
        "nothing",
        |on| {
            let place = Place::new(on);
            let mut run = place.start("-log-file @/log -ssh-port 80");
            run.end();
            if run.stderr().contains(SSH_PORT) { "the error too" } else { "nothing" }.to_owned()
        },
    );
    table.differs(
        "10.2 words after the flags",
        "words after the flags end",
        "\"the flags end at this word: it and what follows is ignored\" word=junk",
        "nothing",
        |on| {
            let place = Place::new(on);
            let mut run = place.start("-ssh-port 80 junk -listen x");
            run.end();
            let stderr = run.stderr();
            let warning = stderr.lines().find(|line| line.contains(" level=warning "));
            warning.and_then(|line| line.split_once(" msg=")).map_or("nothing", |(_, text)| text).to_owned()
        },
    );
    table.same("9.2 the ssh port before any machine", "Ok(()), elsewhere false", |on| {
        let host = Host::new("nameserver 127.0.0.1\n");
        let port = free_port();
        let place = Place::new(on).through(host.prefix());
        let mut run = place.start(&format!("-ssh-port {port} -listen-qemu unix:@/q"));
        if let Err(end) = run.waits_with("q") {
            return end;
        }
        let made = host.connect(([127, 0, 0, 1], port).into()).map(drop);
        let outside = TcpStream::connect(("127.0.0.1", port)).is_ok();
        format!("{made:?}, elsewhere {outside}")
    });
}
