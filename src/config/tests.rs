use std::ffi::OsString;
use std::fs;
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::net::UnixListener;

use netstack::Subnet;
use tempfile::TempDir;

use crate::addr::{Dest, HostPort, ListenAddress, SshDest};
use crate::cli::{self, Parsed};

use super::*;
use crate::link::Framing;

/// A directory with a key, and the configuration that a command line in it means.
struct Bench {
    dir: TempDir,
}

impl Bench {
    fn new() -> Self {
        let dir = tempfile::tempdir().unwrap();
        fs::write(dir.path().join("key"), "").unwrap();
        fs::write(dir.path().join("resolv.conf"), "search a.example b.example\n").unwrap();
        Self { dir }
    }

    /// `@` in `line` stands for the directory, and `(at)` for itself.
    fn resolve(&self, line: &str) -> Result<Config, String> {
        let line = line.replace('@', self.dir.path().to_str().unwrap()).replace("(at)", "@");
        let argv: Vec<OsString> =
            std::iter::once("gvproxy").chain(line.split_whitespace()).map(Into::into).collect();
        let Parsed::Run(raw) = cli::parse(&argv) else { panic!("{line}") };
        let asked = Asked::new(*raw).map_err(|error| format!("{error:#}"))?;
        Config::resolve(&asked, &self.dir.path().join("resolv.conf"), &crate::preflight::ensure_to_be_had)
            .map_err(|error| format!("{error:#}"))
    }

    /// The same with a file.
    fn resolve_file(&self, yaml: &str, line: &str) -> Result<Config, String> {
        let yaml = yaml.replace('@', self.dir.path().to_str().unwrap()).replace("(at)", "@");
        fs::write(self.dir.path().join("c.yaml"), yaml).unwrap();
        self.resolve(&format!("-config @/c.yaml {line}"))
    }

    fn error(&self, line: &str) -> String {
        let error = self.resolve(line).unwrap_err();
        assert!(!error.contains('\n'), "{error}");
        error.replace(self.dir.path().to_str().unwrap(), "@")
    }
}

#[test]
fn defaults() {
    let config = Bench::new().resolve("").unwrap();
    let [gateway, device, host] = [1, 2, 254].map(|last| Ipv4Addr::new(192, 168, 127, last));
    assert_eq!((config.pid_file, config.links, config.forwards), (None, vec![], vec![]));
    assert!(!config.keep_running);
    assert_eq!(config.device_ip, device);
    let (local, remote) = ("127.0.0.1:2222".into(), "192.168.127.2:22".into());
    assert_eq!(config.port_forwards, [Exposed { protocol: Protocol::Tcp, local, remote }]);

    let network = config.network;
    assert_eq!((network.mtu, network.assumed_mtu), (1500, 1500));
    assert_eq!(network.subnet, Subnet::new(Ipv4Addr::new(192, 168, 127, 0), 24));
    assert_eq!((network.gateway, network.gateway_mac.to_string()), (gateway, "5a:94:ef:e4:0c:dd".into()));
    assert_eq!(network.gateway_virtual_ips, [host]);
    assert_eq!(network.nat, [(host.into(), Ipv4Addr::LOCALHOST.into())]);
    assert_eq!(network.static_leases, [(device, "5a:94:ef:e4:0c:ee".parse().unwrap())]);
    assert_eq!(network.search_domains, ["a.example", "b.example"]);
    assert!(!network.ec2_metadata_access);
    let zones: Vec<_> = network.zones.iter().map(|zone| zone.name.as_str()).collect();
    assert_eq!(zones, ["containers.internal.", "docker.internal."]);
    for zone in &network.zones {
        let records: Vec<_> = zone.records.iter().map(|record| (record.name.as_str(), record.ip)).collect();
        assert_eq!(records, [("gateway", Some(gateway)), ("host", Some(host))]);
        assert!(zone.protected);
    }
}

#[test]
fn everything_typed() {
    let bench = Bench::new();
    let config = bench
        .resolve(
            "-mtu 4000 -ssh-port -1 -subnet 10.0.0.0/16 -gatewayIP 10.0.9.1 -hostIP 10.0.9.9 -pid-file @/pid \
             -listen-qemu unix:@/qemu.sock -ec2-metadata-access \
             -forward-user root -forward-user core -forward-sock @/a -forward-sock unix://@/b%20c \
             -forward-identity @/key -forward-identity @/key -forward-dest /run/a -forward-dest /run/b",
        )
        .unwrap();
    let path = |name: &str| bench.dir.path().join(name);
    assert_eq!(config.pid_file, Some(path("pid")));
    assert_eq!(config.links, [LinkConfig::Qemu(ListenAddress::private(path("qemu.sock")))]);
    assert_eq!((config.network.mtu, config.network.gateway), (4000, Ipv4Addr::new(10, 0, 9, 1)));
    assert_eq!((config.device_ip, config.port_forwards), (Ipv4Addr::new(10, 0, 0, 2), vec![]));
    assert!(config.network.ec2_metadata_access);
    let forward = |socket, dest: &str, user: &str| SocketForward {
        source: ListenAddress::parse(path(socket).as_os_str()).unwrap(),
        dest: Dest::Ssh(SshDest {
            sshd: HostPort { host: "10.0.0.2".into(), port: 22 },
            user: user.into(),
            path: dest.into(),
            key: Some(path("key")),
            passphrase: None,
            password: None,
            secure: false,
        }),
    };
    assert_eq!(config.forwards, [forward("a", "/run/a", "root"), forward("b c", "/run/b", "core")]);
}

#[test]
fn the_mtu_that_nobody_asked_for() {
    let bench = Bench::new();
    for (line, mtu, assumed) in [
        ("", 1500, 1500),
        ("-listen-qemu unix:@/q", 65_520, 1500),
        ("-listen-qemu unix:@/q -mtu 0", 65_520, 1500),
        ("-listen-qemu unix:@/q -mtu 1500", 1500, 1500),
        ("-listen-qemu unix:@/q -mtu 9000", 9000, 9000),
        ("-mtu 9000 -listen-qemu unix:@/q -mtu 65520", 65_520, 65_520),
    ] {
        let network = bench.resolve(line).unwrap().network;
        assert_eq!((network.mtu, network.assumed_mtu), (mtu, assumed), "{line}");
    }
}

#[test]
fn mistakes() {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("file"), "").unwrap();
    let long = "x".repeat(108);
    let forward = "-forward-dest /d -forward-user u -forward-identity";
    for (line, error) in [
        ("-mtu -5", "mtu is out of range: -5, want 68 to 65535"),
        ("-mtu 67", "mtu is out of range: 67, want 68 to 65535"),
        ("-mtu 65536", "mtu is out of range: 65536, want 68 to 65535"),
        ("-ssh-port 0", "ssh-port value must be between 1024 and 65535"),
        ("-ssh-port 1023", "ssh-port value must be between 1024 and 65535"),
        ("-ssh-port -2", "ssh-port value must be between 1024 and 65535"),
        ("-ssh-port 65536", "ssh-port value must be between 1024 and 65535"),
        ("-subnet fd00::/64", r#"failed to parse subnet: "fd00::/64": an IPv6 subnet is not supported yet"#),
        (
            "-gatewayIP 1.2.3.4",
            "failed to validate configuration IPs: IP (1.2.3.4) not in subnet (192.168.127.0/24)",
        ),
        ("-listen-qemu unix://@/file", r#""@/file" already exists"#),
        ("-listen-qemu @/q", r#"qemu listen error: unexpected scheme in "@/q""#),
        (
            "-listen-qemu unix://q",
            "invalid value for qemu listen address: \
             the path of a unix URL must be absolute, as in unix:///run/x.sock",
        ),
        (
            "-listen-qemu unix:///%zz",
            r#"invalid value for qemu listen address: parse "unix:///%zz": invalid URL escape "%zz""#,
        ),
        (
            "-forward-sock @/a",
            "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified together, \
             the same number of times, or not at all",
        ),
        (
            "-forward-sock @/a -forward-dest /d -forward-user u",
            "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified together, \
             the same number of times, or not at all",
        ),
        (
            "-forward-sock @/a -forward-dest /d -forward-sock @/b",
            "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified together, \
             the same number of times, or not at all",
        ),
        (
            "-forward-sock @/a -forward-dest run/x",
            r#"invalid value "run/x" for flag -forward-dest: not an absolute path, which it is without -forward-user"#,
        ),
        (
            "-forward-sock tcp://x -forward-dest /d",
            r#"invalid value "tcp://x" for flag -forward-sock: missing port in address"#,
        ),
        ("-agent-port 0", "agent-port value must be between 1 and 65535"),
        (
            &format!("-forward-sock @/a {forward} @/none"),
            r#"identity file "@/none" can't be loaded: stat @/none: no such file or directory"#,
        ),
        (
            &format!("-forward-sock @/a {forward} @"),
            r#"identity file "@" can't be loaded: read @: is a directory"#,
        ),
        (&format!("-forward-sock @/file {forward} @/key"), r#""@/file" already exists"#),
        (
            &format!("-forward-sock npipe:////./pipe/x {forward} @/key"),
            "invalid value \"npipe:////./pipe/x\" for flag -forward-sock: URI scheme not supported: npipe; \
             there are unix, tcp, vsock, fd, and a plain path",
        ),
        (&format!("-forward-sock= {forward} @/key"), "the path of a unix socket is empty"),
        (
            &format!("-forward-sock @/a {forward} @/key -forward-sock @/a {forward} @/key"),
            r#"unix socket path "@/a" is given twice"#,
        ),
        (
            &format!("-listen-qemu unix://@/a -forward-sock @/a {forward} @/key"),
            r#"unix socket path "@/a" is given twice"#,
        ),
        (
            &format!("-listen-qemu unix:///{long}"),
            &format!("unix socket path \"/{long}\" is too long: 109 bytes, the limit is 107"),
        ),
    ] {
        assert_eq!(bench.error(line), error, "{line}");
    }
}

#[test]
fn a_live_socket_is_a_mistake_and_a_dead_one_is_not() {
    let bench = Bench::new();
    let listener = UnixListener::bind(bench.dir.path().join("q")).unwrap();
    assert_eq!(bench.error("-listen-qemu unix://@/q"), r#""@/q" already exists and is in use"#);
    drop(listener);
    bench.resolve("-listen-qemu unix://@/q").unwrap();
}

#[test]
fn a_key_that_cannot_be_read_is_said_at_the_start() {
    // Nobody reads this one, not even root.
    let unreadable = "/proc/sys/net/ipv4/route/flush";
    let line = format!("-forward-sock @/a -forward-dest /d -forward-user u -forward-identity {unreadable}");
    let error = Bench::new().error(&line);
    let expected =
        format!("identity file {unreadable:?} can't be loaded: open {unreadable}: permission denied");
    assert_eq!(error, expected);
}

#[test]
fn no_resolv_conf_is_no_mistake() {
    let bench = Bench::new();
    fs::remove_file(bench.dir.path().join("resolv.conf")).unwrap();
    assert!(bench.resolve("").unwrap().network.search_domains.is_empty());
}

#[test]
fn links_in_the_order_in_which_they_are_made() {
    let bench = Bench::new();
    let path = |name: &str| bench.dir.path().join(name);
    let config = bench
        .resolve(
            "-listen-stdio accept -listen-vfkit unixgram:@/vfkit -listen-qemu tcp://[::1]:1234 -keep-running",
        )
        .unwrap();
    let qemu = LinkConfig::Qemu(ListenAddress::Tcp { host: "::1".into(), port: 1234 });
    assert_eq!(config.links, [qemu, LinkConfig::Vfkit(path("vfkit")), LinkConfig::Stdio]);
    assert!(config.keep_running);
    assert_eq!(config.network.mtu, 1500, "not every guest is behind QEMU");
    let config = bench.resolve("-listen-unixgram unixgram://@/libkrun").unwrap();
    assert_eq!(config.links, [LinkConfig::Vfkit(path("libkrun"))]);
    let file = "interfaces: {vfkit: \"unixgram://@/v\"}\n";
    let config = bench.resolve_file(file, "-listen-unixgram unixgram://@/libkrun").unwrap();
    assert_eq!(config.links, [LinkConfig::Vfkit(path("libkrun"))]);
    let config = bench.resolve("-listen-bess unixpacket://@/bess -listen-vfkit=").unwrap();
    assert_eq!(config.links, [LinkConfig::Bess(path("bess"))]);
    let config = bench.resolve("-listen-vpnkit unix:///@/vpnkit").unwrap();
    assert!(matches!(&config.links[..], [LinkConfig::Vpnkit(ListenAddress::Unix { .. })]));
    for (line, framing) in [
        ("", Framing::Hyperkit),
        ("-listen-qemu tcp://:1", Framing::Qemu),
        ("-listen-vfkit unixgram:@/v", Framing::Hyperkit),
    ] {
        let links = bench.resolve(line).unwrap().links;
        assert_eq!(crate::hypervisor::connect_framing(&links), framing, "{line}");
    }
}

#[test]
fn links_that_cannot_be_made() {
    let bench = Bench::new();
    fs::write(bench.dir.path().join("file"), "").unwrap();
    for (line, error) in [
        ("-listen-vfkit unix://@/v", "vfkit listen address must be unixgram:// address"),
        ("-listen-unixgram unix://@/v", "vfkit listen address must be unixgram:// address"),
        (
            "-listen-unixgram unixgram://@/v -listen-vfkit unixgram://@/w",
            "-listen-unixgram and -listen-vfkit are the same: give one",
        ),
        ("-listen-bess unixgram://@/b", "bess listen address must be unixpacket:// address"),
        ("-listen-vfkit unixgram://@/file", r#""@/file" already exists"#),
        ("-listen-bess unixpacket://@/file", r#""@/file" already exists"#),
        ("-listen-vpnkit unix://@/file", r#""@/file" already exists"#),
        ("-listen-vpnkit @/v", r#"vpnkit listen error: unexpected scheme in "@/v""#),
        ("-listen-qemu vsock://:1", r#"qemu listen error: unexpected scheme in "vsock://:1""#),
        ("-listen-qemu tcp://a", r#"invalid value for qemu listen address: no port in "a""#),
        ("-listen-bess :x", r#"invalid value for bess listen address: parse ":x": missing protocol scheme"#),
        (
            "-listen-qemu unix:@/q -listen-vpnkit unix:@/v",
            "cannot use qemu and vpnkit protocol at the same time",
        ),
        (
            "-listen-bess unixpacket:@/b -listen-vpnkit unix:@/v",
            "cannot use bess and vpnkit protocol at the same time",
        ),
        (
            "-listen-bess unixpacket:@/b -listen-qemu unix:@/q",
            "cannot use qemu and bess protocol at the same time",
        ),
        ("-listen-qemu unix:@/q -listen-vfkit unixgram:@/q", r#"unix socket path "@/q" is given twice"#),
    ] {
        assert_eq!(bench.error(line), error, "{line}");
    }
}

#[test]
fn with_a_file_there_is_what_it_says_and_nothing_else() {
    let config = Bench::new().resolve_file("", "").unwrap();
    let host = Ipv4Addr::new(192, 168, 127, 254);
    let network = config.network;
    assert_eq!(config.port_forwards, []);
    assert!(
        network.zones.is_empty() && network.search_domains.is_empty() && network.static_leases.is_empty()
    );
    assert_eq!((network.gateway_mac, network.gateway_virtual_ips), (GATEWAY_MAC, vec![host]));
    assert_eq!(network.nat, [(host.into(), Ipv4Addr::LOCALHOST.into())]);
}

/// The file that the original comes with says what is so without one.
#[test]
fn the_original_example_is_the_default() {
    let bench = Bench::new();
    let zone = |name: &str| {
        format!(
            "    - name: {name}\n      protected: true\n      records:\n        - {{name: gateway, ip: 192.168.127.1}}\n        \
             - {{name: host, ip: 192.168.127.254}}\n"
        )
    };
    let yaml = format!(
        "log-level: info\nstack:\n    mtu: 1500\n    subnet: 192.168.127.0/24\n    gatewayIP: 192.168.127.1\n    \
         deviceIP: 192.168.127.2\n    hostIP: 192.168.127.254\n    gatewayMacAddress: 5A-94-EF-E4-0C-DD\n    dns:\n{}{}    \
         dnsSearchDomains: [a.example, b.example.]\n    forwards:\n        127.0.0.1:2222: 192.168.127.2:22\n    nat:\n        \
         192.168.127.254: 127.0.0.1\n    gatewayVirtualIPs:\n        - 192.168.127.254\n    dhcpStaticLeases:\n        \
         192.168.127.2: 5a94.efe4.0cee\n    vpnKitUUIDMacAddresses:\n        \
         c3d68012-0208-11ea-9fd7-f2189899ab08: 5a:94:ef:e4:0c:ee\n",
        zone("containers.internal."),
        zone("docker.internal.")
    );
    let with = bench.resolve_file(&yaml, "").unwrap();
    let without = bench.resolve("-mtu 1500").unwrap();
    assert_eq!(format!("{with:#?}"), format!("{without:#?}"));
}

#[test]
fn flags_and_file_are_one() {
    let bench = Bench::new();
    let path = |name: &str| Some(bench.dir.path().join(name));
    let yaml = "pid-file: @/pid\nnotification: @/n\nec2-metadata-access: true\ninterfaces: {qemu: \"unix://@/q\"}\n\
                listen: [\"unix://@/l\", \"tcp://:8080\"]\nservices: unix://@/v\nforwards: [{socket: @/s, dest: /d, user: u, identity: @/key}]\n\
                stack: {mtu: 4000, subnet: 10.0.0.0/16, capture-file: @/c, forwards: {\":2222\": \"10.0.0.2:22\", \"udp:[::]:5353\": \"10.0.0.2:53\"}}\n";
    let config = bench.resolve_file(yaml, "-subnet 10.9.0.0/16").unwrap();
    assert_eq!((config.pid_file, config.notification, config.capture), (path("pid"), path("n"), path("c")));
    let qemu = |name: &str| vec![LinkConfig::Qemu(ListenAddress::private(path(name).unwrap()))];
    assert_eq!((config.links, config.network.mtu, config.network.assumed_mtu), (qemu("q"), 4000, 4000));
    assert_eq!((config.device_ip, config.forwards.len()), (Ipv4Addr::new(10, 0, 0, 2), 1));
    let forward = |protocol, local: &str, remote: &str| Exposed {
        protocol,
        local: local.into(),
        remote: remote.into(),
    };
    let ports =
        [forward(Protocol::Tcp, ":2222", "10.0.0.2:22"), forward(Protocol::Udp, "[::]:5353", "10.0.0.2:53")];
    assert_eq!(config.port_forwards, ports);
    let endpoint = |name: &str| ListenAddress::private(path(name).unwrap());
    assert_eq!(config.listen, [endpoint("l"), ListenAddress::Tcp { host: String::new(), port: 8080 }]);
    assert_eq!(config.services, Some(endpoint("v")));
    assert!(config.network.ec2_metadata_access);

    let line = "-pid-file @/pid2 -notification unix://@/n2 -listen-qemu unix://@/q2 -mtu 3000 -pcap @/c2 -ssh-port 3 \
                -listen unix://@/l2 -services unix://@/v2 \
                -forward-sock @/s2 -forward-dest /e -forward-user v -forward-identity @/key";
    let config = bench.resolve_file(yaml, line).unwrap();
    assert_eq!(
        (config.pid_file, config.notification, config.capture),
        (path("pid2"), path("n2"), path("c2"))
    );
    assert_eq!((config.links, config.network.mtu), (qemu("q2"), 3000));
    assert_eq!((config.listen, config.services), (vec![endpoint("l2")], Some(endpoint("v2"))));
    let dests: Vec<_> = config.forwards.iter().map(|forward| forward.dest.to_string()).collect();
    assert_eq!(dests, ["ssh://u@10.0.0.2:22/d", "ssh://v@10.0.0.2:22/e"]);
    assert_eq!(config.port_forwards.len(), 2);

    for (yaml, notification) in [
        ("notification: unix://@/n\n", path("n")),
        ("notification: n\n", Some("n".into())),
        ("notification: \"\"\n", None),
        ("stack: {ec2MetadataAccess: yes}\n", None),
    ] {
        let config = bench.resolve_file(yaml, "").unwrap();
        assert_eq!(
            (config.notification, config.network.ec2_metadata_access),
            (notification, yaml.contains("ec2"))
        );
    }
}

/// Also with a line of a flag.
#[test]
fn frames_in_the_log() {
    let bench = Bench::new();
    for (yaml, line, extent) in [
        ("", "", None),
        ("", "-debug", Some(LoggedFrames::Some)),
        ("log-level: debug\n", "", Some(LoggedFrames::Some)),
        ("log-level: trace\n", "", Some(LoggedFrames::All)),
        ("log-level: chatty\n", "", None),
        ("stack: {debug: true}\n", "", Some(LoggedFrames::Some)),
        ("stack: {debug: true}\nlog-level: trace\n", "", Some(LoggedFrames::All)),
        ("stack: {debug: false}\nlog-level: warn\n", "", None),
    ] {
        assert_eq!(bench.resolve_file(yaml, line).unwrap().frame_log, extent, "{yaml:?} {line}");
    }
    assert_eq!(bench.resolve("-debug").unwrap().frame_log, Some(LoggedFrames::Some));
}

#[test]
fn what_guests_may() {
    let bench = Bench::new();
    let policy = |yaml: &str| bench.resolve_file(yaml, "").unwrap().guest_policy;
    for yaml in ["", "guest:\n", "guest: {}\n", "guest: {exposeAddresses: ~, exposePrivilegedPorts: true}\n"]
    {
        assert_eq!(policy(yaml), GuestPolicy::default(), "{yaml:?}");
    }
    let denied = policy("guest:\n  exposeAddresses: [127.0.0.1, \"::1\"]\n  exposePrivilegedPorts: no\n");
    let addresses = vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()];
    assert_eq!(denied, GuestPolicy { lowest_port: 1024, addresses, all_protocols: false });
    for (yaml, line, all) in [
        ("", "-gateway-expose-all-protocols", true),
        ("gateway-expose-all-protocols: true\n", "", true),
        ("gateway-expose-all-protocols: false\n", "", false),
    ] {
        assert_eq!(
            bench.resolve_file(yaml, line).unwrap().guest_policy.all_protocols,
            all,
            "{yaml:?} {line}"
        );
    }
    for (yaml, error) in [
        (
            "guest: {exposeAddresses: [localhost]}\n",
            "line 1: guest.exposeAddresses: invalid IP address: \"localhost\"",
        ),
        ("guest:\n  exposeAddresses: []\n", "line 2: guest.exposeAddresses: no address at all"),
        ("guest:\n  exposePrivilegedPorts: maybe\n", "line 2: guest.exposePrivilegedPorts: "),
        ("guest:\n  exposeAdresses: [127.0.0.1]\n", "line 2: guest.exposeAdresses: "),
    ] {
        let said = bench.resolve_file(yaml, "").unwrap_err();
        assert!(said.contains(error), "{yaml:?}: want {error:?}, got {said}");
    }
}

/// Its paths are those of a machine that nobody has.
#[test]
fn the_docs_file_is_one() {
    let bench = Bench::new();
    let (_, rest) = include_str!("../../docs/config.md").split_once("```yaml\n").unwrap();
    let (yaml, _) = rest.split_once("```").unwrap();
    let yaml = yaml.replace("/run/vm/", "@/").replace("/home/me/.ssh/machine", "@/key");
    for name in ["token", "secret"] {
        let file = bench.dir.path().join(name);
        fs::write(&file, "0123456789abcdef0123456789abcdef").unwrap();
        fs::set_permissions(&file, fs::Permissions::from_mode(0o600)).unwrap();
    }
    let config = bench.resolve_file(&yaml, "").unwrap();
    let ways = (config.listen.len(), config.links.len(), config.port_forwards.len(), config.forwards.len());
    assert_eq!(ways, (1, 1, 2, 1));
    assert!(config.services.is_some() && config.capture.is_some() && config.notification.is_some());
    assert!(config.api_token.is_some() && config.agent_secret.is_some());
    assert_eq!((config.guest_policy.lowest_port, config.guest_policy.addresses.len()), (1024, 2));
    assert_eq!((config.network.zones.len(), config.network.search_domains.len()), (3, 1));
}

#[test]
fn sockets_without_user_and_key_go_by_way_of_the_agent() {
    let bench = Bench::new();
    let config = bench.resolve(
        "-forward-sock @/a -forward-dest /run/a -forward-sock @/b -forward-dest /run/b -agent-port 8460",
    );
    let config = config.unwrap();
    let forward = |name: &str, dest: &str| SocketForward {
        source: ListenAddress::parse(bench.dir.path().join(name).as_os_str()).unwrap(),
        dest: Dest::parse(&format!("agent://{dest}")).unwrap(),
    };
    assert_eq!(config.forwards, [forward("a", "/run/a"), forward("b", "/run/b")]);
    assert_eq!((config.port_forwards.len(), config.agent_port), (1, 8460));
}

#[test]
fn the_agents_secret_is_a_file() {
    let bench = Bench::new();
    let said = bench.resolve_file("\nagent-secret-file: @/none\n", "").unwrap_err();
    assert!(
        said.contains("line 2: agent-secret-file: agent secret file") && said.contains("no such file"),
        "{said}"
    );
    for said in [bench.resolve("-agent-secret-file="), bench.resolve_file("agent-secret-file: \"\"\n", "")] {
        let said = said.unwrap_err();
        assert!(said.contains("agent-secret-file is empty: it names a file, or is left out"), "{said}");
    }
}

#[test]
fn ways_in_by_url() {
    let bench = Bench::new();
    let dests = |line: &str| -> Result<Vec<String>, String> {
        let config = bench.resolve(line)?;
        Ok(config.forwards.iter().map(|forward| forward.dest.to_string()).collect())
    };
    for (line, expected) in [
        ("-forward-sock @/a -forward-dest unix:///x", &["unix:///x"][..]),
        (
            "-forward-sock @/a -forward-dest vsock://3:1 -forward-sock @/b -forward-dest /run/b",
            &["vsock://3:1", "agent:///run/b"],
        ),
        ("-forward-sock @/a -forward-dest ssh://u(at)h/x?key=@/key", &["ssh://u@h:22/x"]),
        (
            "-forward-sock @/a -forward-dest ssh://u(at)h/x -forward-sock @/b -forward-dest /y -forward-user v \
             -forward-identity @/key -forward-identity @/key",
            &["ssh://u@h:22/x", "ssh://v@192.168.127.2:22/y"],
        ),
    ] {
        assert_eq!(dests(line).unwrap(), expected, "{line}");
    }
    for (line, why) in [
        ("-forward-dest ssh://u(at)h/x", "no key: add ?key=/file to it, or -forward-identity /file"),
        (
            "-forward-dest ssh://u(at)h/x?key=@/none",
            "can't be loaded: stat @/none: no such file or directory",
        ),
        ("-forward-dest ssh://u(at)h/x?key=@/key -forward-identity @/key", "belongs to no forward"),
        ("-forward-dest unix:///x -forward-identity @/key", "belongs to no forward"),
        ("-forward-dest unix:///x -forward-user u", "must all be specified together"),
        ("-forward-dest http://x", r#"invalid value "http://x" for flag -forward-dest: "#),
    ] {
        let error = bench.error(&format!("-forward-sock @/a {line}"));
        assert!(error.contains(why), "{line}: {error}");
    }
}

#[test]
fn the_files_forwards_are_those_of_the_flags() {
    let bench = Bench::new();
    let yaml = "forwards:\n- {socket: @/a, dest: /run/a}\n- {socket: @/b, dest: \"unix:///b?port=5\"}\n\
                - {socket: @/c, dest: \"ssh://u(at)h:1/c\", identity: @/key}\n";
    let config = bench.resolve_file(yaml, "").unwrap();
    let dests: Vec<_> = config.forwards.iter().map(|forward| forward.dest.to_string()).collect();
    assert_eq!(dests, ["agent:///run/a", "unix:///b?port=5", "ssh://u@h:1/c"]);
    for (yaml, why) in [
        ("- {socket: @/a, dest: \"unix:///x\", user: u}", "it is a URL, which brings its user along"),
        ("- {socket: @/a, dest: \"unix:///x\", identity: @/key}", "no key is needed there"),
        ("- {socket: @/a, dest: \"udp://h:1\"}", "not implemented: udp"),
    ] {
        let error = bench.resolve_file(&format!("forwards:\n{yaml}\n"), "").unwrap_err();
        assert!(error.contains("line 2: forwards[0]") && error.contains(why), "{yaml}: {error}");
    }
}

#[test]
fn without_a_link_and_a_guest_there_is_no_default_port() {
    let bench = Bench::new();
    for (line, ports) in [
        ("-forward-sock @/a -forward-dest unix:///x", 0),
        ("-forward-sock @/a -forward-dest unix:///x -ssh-port 2223", 1),
        ("-forward-sock @/a -forward-dest unix:///x -listen unix://@/l", 1),
        ("-forward-sock @/a -forward-dest unix:///x -listen-qemu unix://@/q", 1),
        ("-forward-sock @/a -forward-dest tcp://192.168.127.2:80", 1),
        ("-forward-sock @/a -forward-dest tcp://10.0.0.2:80", 0),
        ("-forward-sock @/a -forward-dest /run/x", 1),
        ("", 1),
    ] {
        assert_eq!(bench.resolve(line).unwrap().port_forwards.len(), ports, "{line}");
    }
}
