//! The file of `-config` through the binary: what is wrong with one, which of file and flags counts, and that
//! what stands in it is done.
//!
//! What the original has as well is in `parity`; this is what only ours does.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helper fails like the test")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::uninterrupted;

testkit::agent_in_a_namespace!();

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");
const PATIENCE: Duration = Duration::from_secs(10);

/// A directory with the file, a key and a file that is no socket. `@` stands for its path, in the file and on
/// the command line.
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
        self.start(&format!("-config @/config.yaml {line}"))
    }

    fn start(&self, line: &str) -> Daemon {
        let line = self.place(line);
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
}

mod ours {
    use super::*;

    #[test]
    fn a_network_that_nobody_can_come_to_is_told() {
        let bench = Bench::new(OURS);
        let told = "no virtual machine can come";
        for line in ["-forward-sock @/s -forward-dest tcp://192.168.127.2:80", ""] {
            let mut daemon = bench.start(line);
            daemon.log_with(told);
            assert!(daemon.terminate().success(), "{line}: {}", daemon.stderr());
        }
        let dest = UnixListener::bind(bench.path("dest")).unwrap();
        std::thread::spawn(move || dest.accept().unwrap().0.read_exact(&mut [0; 8]));
        for (line, served) in [
            ("-forward-sock @/s -forward-dest unix://@/dest", "s"),
            ("-listen-vfkit unixgram://@/v -services unix://@/s", "s"),
            ("-listen unix://@/api", "api"),
        ] {
            let mut daemon = bench.start(line);
            let mut client =
                eventually("its socket", PATIENCE, || UnixStream::connect(bench.path(served)).ok());
            client.set_read_timeout(Some(PATIENCE)).unwrap();
            client.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
            // It serves, and has told what it had to.
            let _answer_or_end = uninterrupted(|| client.read(&mut [0; 16])).unwrap();
            assert!(daemon.terminate().success(), "{line}: {}", daemon.stderr());
            assert!(!daemon.stderr().contains(told), "{line}: {}", daemon.stderr());
        }
    }

    /// The original panics, goes on without, or says where only for some; each is an error with line and key
    /// here.
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
                "line 2: forwards[0]: invalid value \\\"tcp://x\\\" for flag -forward-sock: missing port",
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
