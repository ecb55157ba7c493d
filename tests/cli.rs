//! The command line through the binary: grammar, texts, exit codes, and what is left behind.
//!
//! `parity` runs against the original as well: `GVPROXY=/path/to/gvproxy cargo test --test cli parity`.
//! `ours` is where COMPAT.md says that we differ; it always runs our own binary.
#![expect(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    reason = "a test's helper fails like the test"
)]

use std::fs;
use std::net::TcpListener;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::mpsc;
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};

/// No run here takes longer, on a slow machine.
const PATIENCE: Duration = Duration::from_secs(30);

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");

fn under_test() -> String {
    std::env::var("GVPROXY").unwrap_or_else(|_| OURS.into())
}

/// A directory to run in, with a key and a file that is no socket. `@` in a command line stands for its path.
struct Bench {
    dir: tempfile::TempDir,
    binary: String,
}

/// What a run said and how it ended; `@` stands for the directory again.
#[derive(Debug)]
struct Ran {
    code: Option<i32>,
    stdout: String,
    stderr: String,
}

impl Bench {
    fn new(binary: impl Into<String>) -> Self {
        let dir = tempfile::tempdir().unwrap();
        for name in ["key", "file"] {
            fs::write(dir.path().join(name), name).unwrap();
        }
        Self { dir, binary: binary.into() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// Makes `key` a private key that a daemon takes.
    fn make_key(&self) {
        fs::remove_file(self.path("key")).unwrap();
        let made = Command::new("ssh-keygen")
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(self.path("key"))
            .status()
            .expect("ssh-keygen, from Debian's openssh-client (tests/install.sh test)");
        assert!(made.success());
    }

    fn at(&self) -> &str {
        self.dir.path().to_str().unwrap()
    }

    fn start(&self, line: &str) -> Daemon {
        let mut command = Command::new(&self.binary);
        command
            .args(line.replace('@', self.at()).split_whitespace())
            .current_dir(self.dir.path())
            .env("TZ", "UTC");
        command.stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped());
        Daemon::of(command.spawn().unwrap())
    }

    fn run(&self, line: &str) -> Ran {
        let output = self.start(line).end(line);
        let text = |bytes: Vec<u8>| String::from_utf8(bytes).unwrap().replace(self.at(), "@");
        Ran { code: output.status.code(), stdout: text(output.stdout), stderr: text(output.stderr) }
    }

    /// Runs `line`, which must fail with `code`, leave nothing behind, and say `text` in its only line of log.
    fn fails(&self, line: &str, code: i32, text: &str) {
        let before = self.files();
        let ran = self.run(line);
        assert_eq!((ran.code, ran.stdout.as_str()), (Some(code), ""), "{line}: {ran:#?}");
        let lines: Vec<_> = ran.stderr.lines().filter(|line| !line.contains(" level=info ")).collect();
        assert!(matches!(lines[..], [only] if only.contains(text)), "{line}: want {text:?}, got {ran:#?}");
        assert_eq!(self.files(), before, "{line} leaves something behind");
    }

    fn files(&self) -> Vec<PathBuf> {
        let mut files: Vec<_> =
            fs::read_dir(self.dir.path()).unwrap().map(|entry| entry.unwrap().path()).collect();
        files.sort();
        files
    }
}

/// A running daemon; dropping kills it.
struct Daemon {
    pid: Pid,
    output: mpsc::Receiver<Output>,
    ended: bool,
}

impl Daemon {
    fn of(child: Child) -> Self {
        let pid = Pid::from_child(&child);
        let (send, output) = mpsc::channel();
        thread::spawn(move || send.send(child.wait_with_output().unwrap()));
        Self { pid, output, ended: false }
    }

    fn end(mut self, what: &str) -> Output {
        let output = self.output.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("{what}: still running"));
        self.ended = true;
        output
    }

    fn signal(&self, signal: Signal) {
        kill_process(self.pid, signal).unwrap();
    }

    /// Waits until `done`, for as long as the daemon lives.
    fn eventually(&mut self, what: &str, mut done: impl FnMut() -> bool) {
        let start = Instant::now();
        while !done() {
            if let Ok(output) = self.output.try_recv() {
                self.ended = true;
                panic!("{what}: the daemon ended: {output:#?}");
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
            thread::sleep(Duration::from_millis(10));
        }
    }
}

impl Drop for Daemon {
    fn drop(&mut self) {
        if !self.ended {
            let _ = kill_process(self.pid, Signal::KILL);
        }
    }
}

const SSH_PORT: &str = "ssh-port value must be between 1024 and 65535";
const UNEQUAL: &str = "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified \
                       together, the same number of times, or not at all";

mod parity {
    use super::*;

    #[test]
    fn a_bad_command_line_is_one_line_and_the_usage() {
        let bench = Bench::new(under_test());
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
            let ran = bench.run(line);
            let mut lines = ran.stderr.lines();
            assert_eq!((ran.code, ran.stdout.as_str(), lines.next()), (Some(2), "", Some(text)), "{line}");
            let usage = format!("Usage of {}:", bench.binary);
            assert_eq!(lines.next(), Some(usage.as_str()), "{line}: {ran:#?}");
        }
    }

    #[test]
    fn the_usage_names_every_flag_with_its_type() {
        let bench = Bench::new(under_test());
        let expected = "config string, debug, deviceIP string, ec2-metadata-access, forward-dest value, \
            forward-identity value, forward-sock value, forward-user value, gatewayIP string, hostIP string, \
            listen value, listen-bess string, listen-qemu string, listen-stdio string, listen-vfkit string, \
            listen-vpnkit string, log-file string, mtu int, notification string, pcap string, pid-file string, \
            services string, ssh-port int, subnet string, version";
        for line in ["-h", "-help", "--help", "--h", "-h=1", "-debug -h -x", "-h -mtu abc"] {
            let ran = bench.run(line);
            assert_eq!((ran.code, ran.stdout.as_str()), (Some(0), ""), "{line}");
            let flags: Vec<_> = ran.stderr.lines().filter_map(|line| line.strip_prefix("  -")).collect();
            // COMPAT(gvproxy): a flag that the original does not have.
            let flags: Vec<_> = flags.into_iter().filter(|flag| *flag != "keep-running").collect();
            assert_eq!(flags.join(", "), expected, "{line}");
            let texts: Vec<_> = ran.stderr.lines().filter(|line| line.starts_with("    \t")).collect();
            assert!((0..=1).contains(&(texts.len() - flags.len())), "{line}: {ran:#?}");
            let defaults: Vec<_> =
                texts.iter().filter_map(|text| text.split_once(" (default ")).map(|(_, d)| d).collect();
            assert!(defaults.ends_with(&["2222)", "\"192.168.127.0/24\")"]), "{defaults:?}");
        }
    }

    #[test]
    fn the_version_is_all_that_is_on_standard_output() {
        let bench = Bench::new(under_test());
        for line in
            ["-version", "--version", "-version=true -mtu 5", "-version -pcap x", "-debug -version junk"]
        {
            let ran = bench.run(line);
            assert_eq!((ran.code, ran.stderr.as_str()), (Some(0), ""), "{line}");
            assert!(ran.stdout.starts_with("gvproxy version v"), "{line}: {ran:#?}");
            assert_eq!(ran.stdout.lines().count(), 1, "{line}: {ran:#?}");
        }
    }

    /// That a value was read, and how, shows in whether the port is refused.
    #[test]
    fn values_are_go_literals_and_reading_stops_where_gos_does() {
        let bench = Bench::new(under_test());
        for line in [
            "-ssh-port 80",
            "--ssh-port 80",
            "-ssh-port=80",
            "--ssh-port=80",
            "-ssh-port 0",
            "-ssh-port -2",
            "-ssh-port 65536",
            "-ssh-port 0x50",
            "-ssh-port 0b101_0000",
            "-ssh-port 0o120",
            "-ssh-port 01777",
            "-ssh-port 1_0",
            "-ssh-port +80",
            "-ssh-port 2222 -ssh-port 80",
            "-mtu 0x5dc -ssh-port 80",
            "-debug=T -debug=f -ssh-port 80",
            "-version=false -ssh-port 80",
            "-pid-file= -log-file= -pcap= -config= -ssh-port 80",
        ] {
            bench.fails(line, 1, &format!("level=fatal msg=\"{SSH_PORT}\""));
        }
        for line in [
            "-ssh-port 80 junk -x",
            "-ssh-port 80 - -x",
            "-ssh-port 80 -- -x",
            "-ssh-port 80 -ec2-metadata-access false -x",
        ] {
            let ran = bench.run(line);
            assert_eq!(ran.code, Some(1), "{line}: {ran:#?}");
            assert!(ran.stderr.ends_with(&format!("level=fatal msg=\"{SSH_PORT}\"\n")), "{line}: {ran:#?}");
        }
    }

    #[test]
    fn a_bad_configuration_is_one_fatal_line() {
        let bench = Bench::new(under_test());
        let _live = UnixListener::bind(bench.path("live")).unwrap();
        let forward = "-forward-sock @/s -forward-dest /d -forward-user u";
        for (line, text) in [
            (
                "-subnet 10.0.0.0/30",
                "failed to identify usable gateway IP address in subnet: subnet too small",
            ),
            (
                "-subnet 10.0.0.0/30 -gatewayIP 10.0.0.1",
                "failed to identify usable device IP address in subnet: subnet too small",
            ),
            (
                "-subnet 10.0.0.0/30 -gatewayIP 10.0.0.1 -deviceIP 10.0.0.2",
                "failed to identify usable host IP address in subnet: subnet too small",
            ),
            ("-subnet 10.0.0.0", "failed to parse subnet: "),
            ("-subnet=", "failed to parse subnet: "),
            ("-subnet 10.0.0.0/33", "prefix length out of range"),
            ("-subnet 10.0.0/24", "failed to parse subnet: "),
            ("-subnet x/24", "unable to parse IP"),
            ("-gatewayIP x", "failed to validate configuration IPs: invalid IP address: x"),
            ("-deviceIP 1.2.3.4", "IP (1.2.3.4) not in subnet (192.168.127.0/24)"),
            ("-hostIP 192.168.127.0", "IP must not be address of subnet: 192.168.127.0"),
            ("-hostIP 192.168.127.255", "IP must not be broadcast address: 192.168.127.255"),
            (
                "-hostIP 192.168.127.1",
                "failed to validate configuration IPs: IP addresses need to be distinct",
            ),
            ("-subnet 10.0.0.0/24 -hostIP 192.168.127.9", "IP (192.168.127.9) not in subnet (10.0.0.0/24)"),
            ("-listen-qemu unix://@/file", r#"\"@/file\" already exists"#),
            ("-listen-qemu unix:@/file", r#"\"@/file\" already exists"#),
            ("-listen-qemu unix://@/%66ile?x", r#"\"@/file\" already exists"#),
            ("-listen-qemu unix://@/live", r#"\"@/live\" already exists"#),
            ("-listen-qemu unix://@/%zz", r#"parse \"unix://@/%zz\": invalid URL escape \"%zz\""#),
            (
                "-listen-qemu :x",
                r#"invalid value for qemu listen address: parse \":x\": missing protocol scheme"#,
            ),
            ("-forward-sock @/s", UNEQUAL),
            (&format!("{forward} -forward-identity @/key -forward-user v"), UNEQUAL),
            (
                &format!("{forward} -forward-identity @/none"),
                r#"identity file \"@/none\" can't be loaded: stat @/none: no such file or directory"#,
            ),
            ("-subnet 10.0.0.0/30 -ssh-port 80", "subnet too small"),
            ("-listen-qemu unix://@/file -ssh-port 80", "already exists"),
            ("-ssh-port 80 -forward-sock @/s", SSH_PORT),
            ("-log-file @/none/log", "unable to open log file @/none/log"),
        ] {
            bench.fails(line, 1, text);
        }
    }

    #[test]
    fn a_line_of_log_has_the_time_the_level_and_the_message() {
        let bench = Bench::new(under_test());
        let ran = bench.run("-ssh-port 80");
        let rest = ran.stderr.strip_prefix("time=\"20").unwrap_or_else(|| panic!("{ran:#?}"));
        let (time, rest) = rest.split_at("26-11-22T05:28:02Z".len());
        assert_eq!(rest, format!("\" level=fatal msg=\"{SSH_PORT}\"\n"));
        let shape: String = time.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
        assert_eq!(shape, "00-00-00T00:00:00Z");
    }

    #[test]
    fn the_log_file_is_emptied_and_then_has_the_lines() {
        let bench = Bench::new(under_test());
        fs::write(bench.path("log"), "old\n".repeat(100)).unwrap();
        let ran = bench.run("-log-file @/log -ssh-port 80");
        let log = fs::read_to_string(bench.path("log")).unwrap();
        assert_eq!(ran.code, Some(1), "{ran:#?}");
        assert!(
            log.ends_with(&format!(" level=fatal msg=\"{SSH_PORT}\"\n")) && log.lines().count() == 1,
            "{log}"
        );
    }

    #[test]
    fn a_log_that_cannot_be_written_is_no_crash() {
        let ran = Bench::new(under_test()).run("-log-file /dev/full -ssh-port 80");
        assert_eq!(ran.code, Some(1), "{ran:#?}");
    }

    #[test]
    fn a_signal_ends_it_and_leaves_nothing() {
        for signal in [Signal::TERM, Signal::INT] {
            let bench = Bench::new(under_test());
            let before = bench.files();
            fs::write(bench.path("pid"), "99999999 and more").unwrap();
            let mut daemon = bench.start("-ssh-port -1 -pid-file @/pid -listen-qemu unix:@/q");
            daemon.eventually("the socket", || bench.path("q").exists());
            let pid = fs::read_to_string(bench.path("pid")).unwrap();
            assert_eq!(pid, daemon.pid.to_string());
            daemon.signal(signal);
            let output = daemon.end("after the signal");
            assert_eq!(output.status.code(), Some(0), "{output:#?}");
            let stderr = String::from_utf8(output.stderr).unwrap();
            assert!(stderr.contains("msg=\"gvproxy exiting: signal caught\""), "{stderr}");
            assert_eq!(bench.files(), before);
        }
    }
}

mod ours {
    use super::*;

    #[test]
    fn a_bad_configuration_is_one_line_and_exit_1() {
        let bench = Bench::new(OURS);
        let _live = UnixListener::bind(bench.path("live")).unwrap();
        let long = "x".repeat(108);
        let forward = "-forward-dest /d -forward-user u -forward-identity @/key";
        for (line, text) in [
            ("-mtu -5", "mtu is out of range: -5"),
            ("-mtu 65536", "mtu is out of range: 65536"),
            ("-subnet fd00::/64", "an IPv6 subnet is not supported yet"),
            (
                "-listen-qemu unix://rel.sock",
                "the path of a unix URL must be absolute, as in unix:///run/x.sock",
            ),
            ("-listen-qemu unix:rel.sock", "the path of a unix URL must be absolute"),
            ("-listen-qemu unix://tmp/rel.sock", "the path of a unix URL must be absolute"),
            ("-listen-qemu @/q", "qemu listen error: unexpected scheme"),
            (&format!("-listen-qemu unix:///{long}"), "is too long: 109 bytes, the limit is 107"),
            (&format!("-forward-sock /{long} {forward}"), "is too long: 109 bytes, the limit is 107"),
            (&format!("-forward-sock @/file {forward}"), r#"\"@/file\" already exists"#),
            (&format!("-forward-sock @/live {forward}"), r#"\"@/live\" already exists and is in use"#),
            (&format!("-forward-sock tcp://x {forward}"), "URI scheme not supported: tcp"),
            (&format!("-forward-sock @/s {forward} -forward-sock @/s {forward}"), "given twice"),
            (
                "-forward-sock @/s -forward-dest /d -forward-user u -forward-identity @",
                r#"identity file \"@\" can't be loaded: read @: is a directory"#,
            ),
            (
                "-forward-sock @/s -forward-dest /d -forward-user u -forward-identity /dev/null",
                r#"identity file \"/dev/null\" can't be loaded: /dev/null is not a regular file"#,
            ),
            (
                "-pid-file @/none/pid",
                "level=error msg=\"failed to create pidfile: open @/none/pid: no such file or directory\"",
            ),
            ("-pid-file @", "level=error msg=\"failed to create pidfile: open @: is a directory\""),
        ] {
            bench.fails(line, 1, text);
        }
        assert_eq!(fs::read(bench.path("file")).unwrap(), b"file");
    }

    #[test]
    fn with_a_log_file_a_failure_is_on_standard_error_as_well() {
        let bench = Bench::new(OURS);
        let ran = bench.run("-log-file @/log -ssh-port 80");
        assert_eq!(ran.stderr, fs::read_to_string(bench.path("log")).unwrap(), "{ran:#?}");
        assert!(ran.stderr.contains(SSH_PORT), "{ran:#?}");
    }

    #[test]
    fn words_behind_the_flags_are_warned_of() {
        let ran = Bench::new(OURS).run("-ssh-port 80 junk -listen x");
        let [warning, _fatal] = ran.stderr.lines().collect::<Vec<_>>()[..] else { panic!("{ran:#?}") };
        assert!(warning.contains("level=warning") && warning.ends_with(" word=junk"), "{warning}");
    }

    #[test]
    fn times_carry_the_local_offset() {
        let bench = Bench::new(OURS);
        let output = Command::new(OURS).args(["-ssh-port", "80"]).env("TZ", "XYZ-2").output().unwrap();
        let stderr = String::from_utf8(output.stderr).unwrap();
        assert!(stderr.contains("+02:00\" level=fatal"), "{stderr}");
        assert!(bench.run("-ssh-port 80").stderr.contains("Z\" level=fatal"));
    }

    #[test]
    fn a_port_in_use_is_one_line_and_nothing_stays() {
        let taken = TcpListener::bind("127.0.0.1:0").unwrap();
        let port = taken.local_addr().unwrap().port();
        let bench = Bench::new(OURS);
        let line = format!(
            "-ssh-port {port} -pid-file @/pid -listen-qemu unix://@/q \
             -forward-sock @/s -forward-dest /d -forward-user u -forward-identity @/key"
        );
        bench.fails(&line, 1, "address already in use");
    }

    #[test]
    fn the_socket_of_a_dead_predecessor_is_replaced() {
        let bench = Bench::new(OURS);
        bench.make_key();
        for name in ["q", "s"] {
            drop(UnixListener::bind(bench.path(name)).unwrap());
        }
        let mut daemon = bench.start(
            "-ssh-port -1 -listen-qemu unix://@/q \
             -forward-sock @/s -forward-dest /d -forward-user u -forward-identity @/key",
        );
        let mut vm = None;
        daemon.eventually("a new socket for the VM", || {
            vm = UnixStream::connect(bench.path("q")).ok();
            vm.is_some()
        });
        UnixStream::connect(bench.path("s")).unwrap();
        daemon.signal(Signal::TERM);
        let output = daemon.end("after the signal, with an idle VM");
        assert_eq!(output.status.code(), Some(0), "{output:#?}");
        assert!(!bench.path("q").exists() && !bench.path("s").exists(), "{:?}", bench.files());
    }

    #[test]
    fn the_readme_has_the_table_of_flags() {
        let table = gvproxy::cli::table::markdown(gvproxy::cli::table::FLAGS);
        let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("README.md");
        let readme = fs::read_to_string(path).unwrap_or_default();
        assert!(readme.contains(&table), "README.md wants this table:\n{table}");
    }
}
