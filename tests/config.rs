//! The file of `-config` through the binary: what is wrong with one, which of file and flags counts, and that what stands in it is done.
//!
//! `parity` runs against the original as well: `GVPROXY=/path/to/gvproxy cargo test --test config parity`.
//! `ours` is where COMPAT.md says that we differ; it always runs our own binary.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper fails like the test"
)]

mod support;

use std::fs;
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use support::daemon::{Daemon, binary};
use support::frames::{BROADCAST, IPV4, MAC, UDP, Wire, arp, ether, ipv4, udp};
use support::{dns, eventually, free_port};

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory with the file, a key and a file that is no socket. `@` stands for its path, in the file and on the command line.
struct Bench {
    dir: tempfile::TempDir,
    binary: PathBuf,
}

impl Bench {
    fn new(binary: impl Into<PathBuf>) -> Self {
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        for name in ["key", "file"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        Self { dir, binary: binary.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn place(&self, text: &str) -> String {
        text.replace('@', self.dir.path().to_str().unwrap())
    }

    fn spawn(&self, yaml: &str, line: &str) -> Daemon {
        fs::write(self.path("config.yaml"), self.place(yaml)).unwrap();
        let line = self.place(&format!("-config @/config.yaml {line}"));
        Daemon::builder().binary(&self.binary).without_qemu().args(line.split_whitespace()).spawn()
    }

    /// Runs to its end, which must be exit code 1, and gives the last line of its log.
    #[track_caller]
    fn error(&self, yaml: &str, line: &str) -> String {
        let mut daemon = self.spawn(yaml, line);
        let status = daemon.wait(PATIENCE).unwrap_or_else(|| panic!("{yaml:?} {line}: still running"));
        let log = daemon.stderr().replace(self.dir.path().to_str().unwrap(), "@");
        assert_eq!(status.code(), Some(1), "{yaml:?} {line}: {log}");
        log.lines().last().unwrap_or_default().to_owned()
    }

    /// Runs until it waits for machines; gives the log up to there.
    #[track_caller]
    fn runs(&self, yaml: &str, line: &str, socket: &str) -> (Daemon, String) {
        let mut daemon = self.spawn(yaml, line);
        eventually(&format!("{yaml:?} {line}: {socket}"), PATIENCE, || {
            assert!(daemon.is_running(), "{yaml:?} {line}: {}", daemon.stderr());
            self.path(socket).exists().then_some(())
        });
        let log = daemon.stderr();
        (daemon, log)
    }
}

mod parity {
    use super::*;

    fn bench() -> Bench {
        Bench::new(binary())
    }

    /// The file, the command line behind it, and texts that the only line has to have.
    #[test]
    fn a_mistake_in_the_file_is_one_fatal_line() {
        let bench = bench();
        let parse = "failed to parse configuration: ";
        for (yaml, line, texts) in [
            ("stack:\n  mtu: \"1400\"\n", "", &[parse, "line 2:"][..]),
            ("stack:\n  mtu: abc\n", "", &[parse, "line 2:"]),
            ("stack:\n  mtu: [1400]\n", "", &[parse, "line 2:"]),
            ("\nstack: [1]\n", "", &[parse, "line 2:"]),
            ("listen: foo\n", "", &[parse, "line 1:"]),
            ("foo\n", "", &[parse, "line 1:"]),
            ("stack:\n  debug: maybe\n", "", &[parse, "line 2:"]),
            ("stack:\n  mtu: 1400\n  mtu: 1400\n", "", &[parse, "line 3:", "mtu"]),
            ("stack:\n\tmtu: 1400\n", "", &[parse, "line 2:"]),
            ("stack: {mtu: 1400\n", "", &[parse, "line "]),
            ("log-level: *nobody\n", "", &[parse]),
            ("stack:\n  dns:\n  - records:\n    - ip: nowhere\n", "", &["nowhere"]),
            ("stack:\n  dns:\n  - records:\n    - regexp: \"(\"\n", "", &["error parsing regexp"]),
            ("stack:\n  subnet: 10\n", "", &["failed to parse subnet: ", "no '/'"]),
            ("stack:\n  subnet: 10.0.0.0/30\n", "", &["subnet too small"]),
            ("stack:\n  gatewayIP: x\n", "", &["invalid IP address: x"]),
            ("stack:\n  deviceIP: 1.2.3.4\n", "", &["IP (1.2.3.4) not in subnet (192.168.127.0/24)"]),
            ("stack:\n  hostIP: 192.168.127.255\n", "", &["must not be broadcast address: 192.168.127.255"]),
            ("stack:\n  hostIP: 192.168.127.1\n", "", &["IP addresses need to be distinct"]),
            ("interfaces:\n  qemu: unix://@/file\n", "", &["\\\"@/file\\\" already exists"]),
            ("interfaces: {qemu: \":x\"}\n", "", &["invalid value for qemu listen address: "]),
            (
                "forwards:\n- identity: /none\n",
                "",
                &["identity file \\\"/none\\\" can't be loaded: stat /none: "],
            ),
            ("forwards:\n- socket: @/s\n", "", &["identity file \\\"\\\" can't be loaded: stat "]),
            ("log-file: @/none/log\n", "", &["unable to open log file @/none/log"]),
            ("", "-notification tcp://x", &["notification listen address must be unix:// address"]),
            // The file's addresses count before the flags'.
            ("stack:\n  subnet: 10.0.0.0/30\n", "-subnet 10.0.0.0/24", &["subnet too small"]),
            ("stack:\n  gatewayIP: x\n", "-gatewayIP 192.168.127.9", &["invalid IP address: x"]),
            ("stack:\n  deviceIP: x\n", "-deviceIP 192.168.127.9", &["invalid IP address: x"]),
            ("stack:\n  hostIP: x\n", "-hostIP 192.168.127.9", &["invalid IP address: x"]),
            // The flags' count where the file says nothing, or an empty text.
            ("stack:\n  subnet: \"\"\n", "-subnet 10.0.0.0/30", &["subnet too small"]),
            ("stack:\n", "-gatewayIP x", &["invalid IP address: x"]),
            // The flags come before the file in everything else.
            ("interfaces: {qemu: \"unix://@/q\"}\n", "-listen-qemu unix://@/file", &["already exists"]),
            ("log-file: @/log\n", "-log-file @/none/log", &["unable to open log file @/none/log"]),
            // Sockets of the command line come behind those of the file.
            (
                "forwards:\n- {socket: @/s, dest: /d, user: u, identity: /none}\n",
                "-forward-sock @/t -forward-dest /d -forward-user u -forward-identity @/also-none",
                &["identity file \\\"/none\\\""],
            ),
            (
                "forwards:\n- {socket: @/s, dest: /d, user: u, identity: @/key}\n",
                "-forward-sock @/t -forward-dest /d -forward-user u -forward-identity /none",
                &["identity file \\\"/none\\\""],
            ),
        ] {
            let said = bench.error(yaml, line);
            assert!(said.contains(" level=fatal msg="), "{yaml:?} {line}: {said}");
            for text in texts {
                assert!(said.contains(text), "{yaml:?} {line}: want {text:?}, got {said}");
            }
        }
    }

    #[test]
    fn a_file_that_is_not_there() {
        let bench = bench();
        let mut daemon =
            Daemon::builder().binary(&bench.binary).without_qemu().args(["-config", "/none/c"]).spawn();
        assert_eq!(daemon.wait(PATIENCE).expect("an end").code(), Some(1));
        let text = "msg=\"failed to read config file: open /none/c: no such file or directory\"";
        assert!(daemon.stderr().contains(text), "{}", daemon.stderr());
    }

    /// The file, the command line behind it; the socket that is made, files that are made and files that are not.
    #[test]
    fn what_runs() {
        let qemu = "interfaces: {qemu: \"unix://@/q\"}\n";
        for (yaml, line, made, not_made) in [
            ("", "-listen-qemu unix://@/q", &["q"][..], &[][..]),
            ("# nothing\n", "-listen-qemu unix://@/q", &["q"], &[]),
            ("---\nstack: ~\ninterfaces:\nforwards: []\n", "-listen-qemu unix://@/q", &["q"], &[]),
            (qemu, "", &["q"], &[]),
            (qemu, "-listen-qemu=", &["q"], &[]),
            (qemu, "-listen-qemu unix://@/r", &["r"], &["q"]),
            ("Stack: 7\nbogus: {a: [1]}\ninterfaces: {qemu: \"unix://@/q\", other: 1}\n", "", &["q"], &[]),
            ("interfaces: &a {qemu: \"unix:@/q\"}\nsame: *a\n", "", &["q"], &[]),
            ("interfaces: {qemu: \"unix:///%2f@/q?x#y\"}\n", "", &["q"], &[]),
            (&format!("pid-file: @/pid\n{qemu}"), "", &["pid", "q"], &[]),
            (&format!("pid-file: @/pid\n{qemu}"), "-pid-file @/mine", &["mine", "q"], &["pid"]),
            (&format!("log-file: @/log\n{qemu}"), "", &["log", "q"], &[]),
            (&format!("log-file: @/log\n{qemu}"), "-log-file @/mine", &["mine", "q"], &["log"]),
            (&format!("stack: {{subnet: 10.0.0.0/24}}\n{qemu}"), "-subnet nonsense", &["q"], &[]),
            (&format!("stack: {{gatewayIP: 192.168.127.9}}\n{qemu}"), "-gatewayIP x", &["q"], &[]),
            (&format!("stack: {{mtu: 0x5dc, debug: off}}\n{qemu}"), "", &["q"], &[]),
            (&format!("stack: {{mtu: 1400.0, debug: No}}\n{qemu}"), "", &["q"], &[]),
            (&format!("stack: {{mtu: 02700}}\n{qemu}"), "", &["q"], &[]),
            (&format!("stack: {{tcpMaxInFlight: 128, tcpConnectTimeout: 30s}}\n{qemu}"), "", &["q"], &[]),
        ] {
            let bench = bench();
            let (mut daemon, log) = bench.runs(yaml, line, made.last().unwrap());
            for name in made {
                assert!(bench.path(name).exists(), "{yaml:?} {line}: no {name}: {log}");
            }
            for name in not_made {
                assert!(!bench.path(name).exists(), "{yaml:?} {line}: {name}: {log}");
            }
            daemon.terminate();
        }
    }

    #[test]
    fn the_level_of_the_log() {
        let qemu = "interfaces: {qemu: \"unix://@/q\"}\n";
        for (level, line, debug, info) in [
            ("", "", false, true),
            ("info", "", false, true),
            ("Debug", "-log-file @/log", true, true),
            ("warn", "", false, false),
            ("WARNING", "", false, false),
            ("panic", "", false, false),
            ("error", "-debug -log-file @/log", true, true),
            ("chatty", "", false, true),
        ] {
            let bench = bench();
            let (mut daemon, _) = bench.runs(&format!("log-level: {level}\n{qemu}"), line, "q");
            daemon.terminate();
            let log = fs::read_to_string(bench.path("log")).unwrap_or_else(|_| daemon.stderr());
            assert_eq!(log.contains(" level=debug "), debug, "{level}: {log}");
            assert_eq!(log.contains(" level=info "), info, "{level}: {log}");
            let fallback = r#"level=warning msg="bad log level \"chatty\", falling back to \"info\"""#;
            assert_eq!(log.contains(fallback), level == "chatty", "{level}: {log}");
        }
    }

    #[test]
    fn the_ssh_port_belongs_into_the_file() {
        let bench = bench();
        let port = free_port();
        let (daemon, log) =
            bench.runs("interfaces: {qemu: \"unix://@/q\"}\n", &format!("-ssh-port {port}"), "q");
        let text =
            format!("You need to add \\\"127.0.0.1:{port}: 192.168.127.2:22\\\" entry into .stack.forwards");
        assert!(log.contains(" level=warning ") && log.contains(&text), "{log}");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_err(), "{}", daemon.stderr());
    }

    /// Everything of the file that a guest sees, and nothing of what there is without a file.
    #[test]
    fn a_network_as_it_is_described() {
        let bench = bench();
        let port = free_port();
        let yaml = format!(
            "interfaces: {{qemu: \"unix://@/q\"}}\nstack:\n  mtu: 4000\n  subnet: 10.1.0.0/16\n  gatewayIP: 10.1.0.7\n  \
             deviceIP: 10.1.0.8\n  hostIP: 10.1.0.9\n  gatewayMacAddress: 02-00-00-00-00-01\n  dns:\n  - name: crc.testing.\n    \
             records:\n    - {{name: api, ip: 10.1.0.50}}\n    - {{regexp: \"node-[0-9]+\", ip: 10.1.0.51}}\n    \
             defaultIP: 10.1.0.52\n  dnsSearchDomains: [a.example, b.example]\n  forwards: {{\"127.0.0.1:{port}\": \
             \"10.1.0.8:22\"}}\n  gatewayVirtualIPs: [10.1.0.60]\n  dhcpStaticLeases: {{10.1.0.77: \"5a:94:ef:e4:0c:ee\"}}\n"
        );
        let (daemon, _) = bench.runs(&yaml, "-mtu 3000", "q");
        assert!(TcpStream::connect(("127.0.0.1", port)).is_ok(), "{}", daemon.stderr());
        let mut wire = Wire::plug_into(&bench.path("q"));
        let offer = Offer::ask(&mut wire, MAC);
        let [gateway, leased, me] = [7, 77, 99].map(|last| Ipv4Addr::new(10, 1, 0, last));
        assert_eq!(
            (offer.address, offer.option(3), offer.option(6)),
            (leased, &gateway.octets()[..], &gateway.octets()[..])
        );
        assert_eq!((offer.option(1), offer.option(26)), (&[255, 255, 0, 0][..], &3000_u16.to_be_bytes()[..]));
        assert!(offer.option(119).starts_with(b"\x01a\x07example\0\x01b"), "{:?}", offer.option(119));
        let other = Offer::ask(&mut wire, [2, 0, 0, 0, 0, 5]);
        assert_ne!(other.address, leased);

        let gateway_mac = [2, 0, 0, 0, 0, 1];
        for ip in [gateway, Ipv4Addr::new(10, 1, 0, 60)] {
            wire.send(&arp(1, MAC, me, [0; 6], ip));
            let reply =
                wire.receive(PATIENCE, |frame| frame[12..14] == [8, 6] && frame[28..32] == ip.octets());
            let reply = reply.unwrap_or_else(|| panic!("{ip} does not answer: {}", daemon.stderr()));
            assert_eq!(reply[22..28], gateway_mac);
        }
        for (name, last) in [("api", 50), ("node-12", 51), ("anything", 52)] {
            let question = dns::question(&format!("{name}.crc.testing"), dns::A, None);
            let packet = ipv4(UDP, me, gateway, &udp(5353, 53, &question));
            wire.send(&ether(gateway_mac, MAC, IPV4, &packet));
            let answer = wire.receive(PATIENCE, |frame| {
                frame[12..14] == [8, 0] && frame[23] == UDP && frame[34..36] == 53_u16.to_be_bytes()
            });
            let answer = answer.unwrap_or_else(|| panic!("no answer for {name}: {}", daemon.stderr()));
            assert!(answer.ends_with(&[10, 1, 0, last]), "{name}: {answer:?}");
        }
    }
}

/// What the DHCP server offers.
#[derive(Debug)]
struct Offer {
    address: Ipv4Addr,
    options: Vec<(u8, Vec<u8>)>,
}

impl Offer {
    #[track_caller]
    fn ask(wire: &mut Wire, mac: [u8; 6]) -> Self {
        let mut message = vec![0; 240];
        message[..4].copy_from_slice(&[1, 1, 6, 0]);
        message[4..8].copy_from_slice(&[mac[5]; 4]);
        message[28..34].copy_from_slice(&mac);
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([53, 1, 1, 55, 5, 1, 3, 6, 26, 119, 255]);
        let packet = ipv4(UDP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp(68, 67, &message));
        wire.send(&ether(BROADCAST, mac, IPV4, &packet));
        let reply = wire
            .receive(PATIENCE, |frame| frame.len() > 282 && frame[34..36] == [0, 67] && frame[70..76] == mac)
            .expect("an offer");
        let address = Ipv4Addr::from_octets(reply[58..62].try_into().unwrap());
        let (mut rest, mut options) = (&reply[282..], Vec::new());
        while let [kind, len, tail @ ..] = rest
            && *kind != 255
        {
            let (value, tail) = tail.split_at(usize::from(*len));
            options.push((*kind, value.to_vec()));
            rest = tail;
        }
        Self { address, options }
    }

    #[track_caller]
    fn option(&self, kind: u8) -> &[u8] {
        let found = self.options.iter().find(|(k, _)| *k == kind);
        found.map(|(_, value)| &value[..]).unwrap_or_else(|| panic!("no option {kind}: {self:?}"))
    }
}

mod ours {
    use super::*;

    /// The original panics, goes on without, or says where only for some; each is an error with line and key here.
    #[test]
    fn a_mistake_is_told_with_line_and_key() {
        let bench = Bench::new(OURS);
        let long = format!("stack:\n  dnsSearchDomains: [{}]\n", "a, ".repeat(33));
        for (yaml, line, text) in [
            ("stack:\n  mtu: abc\n", "", "line 2: stack.mtu: "),
            ("stack:\n  mtu: 1.5\n", "", "line 2: stack.mtu: "),
            ("stack:\n  dns:\n  - records: [{}, {ip: [7]}]\n", "", "line 3: stack.dns[0].records[1].ip: "),
            ("stack:\n  mtu: 1\n", "", "@/config.yaml line 2: stack.mtu: mtu is out of range: 1"),
            (
                "stack:\n  subnet: fd00::/64\n",
                "",
                "@/config.yaml line 2: stack.subnet: failed to parse subnet: ",
            ),
            ("stack:\n  hostIP: 1.2.3.4\n", "", "@/config.yaml line 2: stack.hostIP: failed to validate "),
            (
                "interfaces:\n\n  qemu: unix://rel\n",
                "",
                "@/config.yaml line 3: interfaces.qemu: invalid value ",
            ),
            (
                "stack:\n  gatewayMacAddress: zz\n",
                "",
                "line 2: stack.gatewayMacAddress: address \\\"zz\\\": invalid MAC address",
            ),
            (
                "stack:\n  gatewayVirtualIPs:\n  - 10.0.0.1\n  - foo\n",
                "",
                "line 4: stack.gatewayVirtualIPs: invalid IPv4 address: \\\"foo\\\"",
            ),
            (
                "stack:\n  nat:\n    foo: 127.0.0.1\n",
                "",
                "line 3: stack.nat.foo: invalid IPv4 address: \\\"foo\\\"",
            ),
            (
                "stack:\n  nat:\n    10.0.0.1: foo\n",
                "",
                "line 3: stack.nat.10.0.0.1: invalid IPv4 address: \\\"foo\\\"",
            ),
            (
                "stack:\n  dhcpStaticLeases: {foo: \"5a:94:ef:e4:0c:ee\"}\n",
                "",
                "line 2: stack.dhcpStaticLeases.foo: invalid IPv4 address",
            ),
            (
                "stack:\n  dhcpStaticLeases: {192.168.127.9: bar}\n",
                "",
                "stack.dhcpStaticLeases.192.168.127.9: address \\\"bar\\\": invalid MAC address",
            ),
            (
                "stack:\n  dhcpStaticLeases: {10.0.0.1: \"5a:94:ef:e4:0c:ee\"}\n",
                "",
                "10.0.0.1 is not in the subnet",
            ),
            (
                "stack:\n  vpnKitUUIDMacAddresses: {x: y}\n",
                "",
                "line 2: stack.vpnKitUUIDMacAddresses.x: address \\\"y\\\": invalid MAC address",
            ),
            (
                "stack:\n  forwards:\n    127.0.0.1:80: foo:22\n",
                "",
                "line 3: stack.forwards.127.0.0.1:80: invalid remote addr: \\\"foo\\\" is not an IPv4 address",
            ),
            (
                "stack:\n  forwards:\n    foo: 1.2.3.4:22\n",
                "",
                "line 3: stack.forwards.foo: listen tcp: address foo: missing port in address",
            ),
            (
                "stack:\n  forwards:\n    :x: 1.2.3.4:22\n",
                "",
                "line 3: stack.forwards.:x: listen tcp: lookup tcp/x: unknown port",
            ),
            (
                "stack:\n  dnsSearchDomains: [\"a b\"]\n",
                "",
                "line 2: stack.dnsSearchDomains: no domain: \\\"a b\\\"",
            ),
            (&long, "", "line 2: stack.dnsSearchDomains: more than 32"),
            (
                "forwards:\n- socket: tcp://x\n  identity: @/key\n",
                "",
                "line 2: forwards[0]: URI scheme not supported: tcp",
            ),
            (
                "listen:\n- unix://@/a\n- tcp://a\n",
                "",
                "@/config.yaml line 3: listen: invalid value \\\"tcp://a\\\" for -listen: missing port in address",
            ),
            (
                "interfaces:\n  vfkit: unix:///v\n",
                "",
                "@/config.yaml line 2: interfaces.vfkit: vfkit listen address must be unixgram:// address",
            ),
            (
                "\nservices: x\n",
                "",
                "@/config.yaml line 2: services: invalid value \\\"x\\\" for -services: unexpected scheme",
            ),
            ("a: 1\n---\nb: 2\n", "", "line 3: only single YAML document expected"),
        ] {
            let said = bench.error(yaml, line);
            assert!(
                said.contains(" level=fatal ") && said.contains(text),
                "{yaml:?} {line}: want {text:?}, got {said}"
            );
        }
        fs::write(bench.path("config.yaml"), "x".repeat((1 << 20) + 1)).unwrap();
        let path = bench.path("config.yaml").display().to_string();
        let mut daemon = Daemon::builder().binary(OURS).without_qemu().args(["-config", &path]).spawn();
        assert_eq!(daemon.wait(PATIENCE).expect("an end").code(), Some(1));
        assert!(daemon.stderr().contains("larger than 1048576 bytes"), "{}", daemon.stderr());
    }
}
