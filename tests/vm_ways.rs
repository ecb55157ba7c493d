//! Every way into a machine, side by side: podman's API by each of them for podman, docker and curl, and an
//! image whose bytes are compared. One machine; one daemon with its network and all forwards, one without a
//! network, and one inside, where alone vsock is to be had everywhere. `ARCHIVE_MB` is the image's size,
//! `WAYS="ssh hybrid"` picks some of the ways (`make ways`).
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

#[path = "ends/scenes.rs"]
#[allow(dead_code, reason = "the rest is for `ends.rs`")]
mod scenes;
#[path = "ends/table.rs"]
mod table;
#[path = "ends/vsock.rs"]
mod vsock;
#[path = "ends/way.rs"]
#[allow(dead_code, reason = "the rest is for `ends.rs`")]
mod way;

use std::fs::File;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::thread;
use std::time::{Duration, Instant};

use testkit::archive::Archive;
use testkit::daemon::Daemon;
use testkit::strace::{CALLS, Calls};
use testkit::uninterrupted;
use testkit::vm::{Client, Vm, identity, install, output, step};
use testkit::{eventually, free_port, tool};

testkit::agent_in_a_namespace!();

const PODMAN: &str = "/run/podman/podman.sock";
const GUEST: &str = "192.168.127.2";
/// Of the API in the machine: on vsock, on TCP, and behind the daemon in the machine.
const VSOCK: u16 = 1024;
const TCP: u16 = 2375;
const INSIDE: u16 = 1025;
/// The same behind a daemon that systemd starts for the first client.
const ACTIVATED: u16 = 1026;
/// MiB of the image, where nobody says more.
const ARCHIVE_MB: usize = 16;
const START: Duration = Duration::from_secs(10);
/// Longest wait for a stream's next bytes.
const LIMIT: Duration = Duration::from_secs(60);

/// Run in the machine as root, with both programs in the working directory.
const SERVE: &str = r#"
set -eu
mount -o noatime,discard /dev/disk/by-label/scratch /var/lib/containers
install -d -m 1777 /var/lib/containers/tmp
mount --bind /var/lib/containers/tmp /tmp
mount --bind /var/lib/containers/tmp /var/tmp
modprobe vsock_loopback
serve() { unit=$1; shift; systemd-run --quiet --unit "$unit" "$@"; }
serve agent "$PWD/gvforwarder" -agent -agent-allow /run/podman/podman.sock -agent-allow /run/up.sock -agent-allow /run/down.sock
serve up socat -u -b 65536 UNIX-LISTEN:/run/up.sock,fork OPEN:/dev/null
serve down socat -u -b 65536 OPEN:/dev/zero UNIX-LISTEN:/run/down.sock,fork
serve api-tcp podman system service --time 0 tcp://0.0.0.0:2375
# podman's own unit has no vsock: Go makes no listener of such a descriptor.
serve api-vsock --socket-property ListenStream=vsock::1024 /lib/systemd/systemd-socket-proxyd /run/podman/podman.sock
serve inside "$PWD/gvproxy" -forward-sock vsock://:1025 -forward-dest vsock://1:1024 -forward-sock /run/echo-vsock.sock -forward-dest vsock://1:1027
serve echo-vsock socat VSOCK-LISTEN:1027,fork EXEC:cat
serve activated --socket-property ListenStream=vsock::1026 "$PWD/gvproxy" -forward-sock fd:// -forward-dest unix:///run/podman/podman.sock
# A guest that refuses a client has given its answer.
for port in 2375 846; do until ss -tlnH "sport = :$port" | grep -q .; do sleep 0.1; done; done
for port in 1025 1027; do until ss -lH -f vsock | grep -q ":$port "; do sleep 0.1; done; done
"#;

/// Clients on vsock of a guest's service that hangs, who leave: ends when the daemon has closed their
/// descriptors.
const LEAVE: &str = r#"
set -eu
dir=$(mktemp -d)
serve() { unit=hung-$1; shift; systemd-run --quiet --collect --unit "$unit" "$@"; }
ip netns add hung
serve gvproxy "$PWD/gvproxy" -listen "unix://$dir/api" -ssh-port -1 -pid-file "$dir/pid" -forward-sock vsock://:1035 -forward-dest tcp://192.168.127.2:80
until [ -S "$dir/api" ]; do sleep 0.1; done
serve guest ip netns exec hung "$PWD/gvforwarder" -url "unix://$dir/api"
until ip -n hung -4 address | grep -q 192.168.127.2; do sleep 0.1; done
serve service ip netns exec hung socat TCP-LISTEN:80,fork EXEC:"sleep infinity"
until ip netns exec hung ss -ltnH "sport = :80" | grep -q .; do sleep 0.1; done
count() { set -- /proc/"$(cat "$dir/pid")"/fd/*; echo $#; }
before=$(count)
for client in 1 2 3 4 5 6 7 8; do
    serve client$client sh -c "{ head -c 100000 /dev/zero; sleep infinity; } | socat -u - VSOCK-CONNECT:1:1035"
done
until [ "$(count)" = $((before + 8)) ]; do sleep 0.1; done
systemctl stop "hung-client*"
until [ "$(count)" = "$before" ]; do sleep 0.1; done
systemctl stop "hung-*"
ip netns del hung
"#;

/// The same for a daemon under strace: vsock with each kind of socket on either side, an echo behind each,
/// and how many bytes came back.
const TRACE: &str = r#"
set -eu
cd /run
serve() { unit=$1; shift; systemd-run --quiet --unit "$unit" "$@"; }
serve echo-unix socat UNIX-LISTEN:/run/echo-unix.sock,fork EXEC:cat
serve echo-tcp socat TCP-LISTEN:1034,bind=127.0.0.1,fork EXEC:cat
serve traced strace -f -s0 -e "trace=$CALLS" -o /run/traced.trace /root/gvproxy -pid-file /run/traced.pid \
    -forward-sock /run/traced.sock -forward-dest vsock://1:1027 -forward-sock tcp://127.0.0.1:1033 -forward-dest vsock://1:1027 \
    -forward-sock vsock://:1030 -forward-dest unix:///run/echo-unix.sock -forward-sock vsock://:1031 -forward-dest tcp://127.0.0.1:1034 \
    -forward-sock vsock://:1032 -forward-dest vsock://1:1027
until ss -lH -f vsock | grep -q ":1032 "; do sleep 0.1; done
# One writes while the other reads: socat's own write to vsock may block, and then it reads no more.
export BYTES
echo 'head -c "$BYTES" /dev/zero & head -c "$BYTES" | wc -c >&2' >client
for to in UNIX:traced.sock TCP:127.0.0.1:1033 VSOCK-CONNECT:1:1030 VSOCK-CONNECT:1:1031 VSOCK-CONNECT:1:1032; do
    timeout 60 socat "$to" EXEC:"sh client",nofork 2>&1
done
pid=$(cat traced.pid)
kill "$pid"
until ! systemctl --quiet is-active traced; do sleep 0.1; done
echo "$pid"
cat traced.trace
"#;

#[test]
fn podman_by_every_way_into_a_machine() {
    let megabytes = std::env::var("ARCHIVE_MB").map_or(ARCHIVE_MB, |mb| mb.parse().expect("ARCHIVE_MB"));
    let archive = step(&format!("an image of {megabytes} MiB"), || Archive::write(megabytes));
    let rig = Rig::start(megabytes);
    let picked = std::env::var("WAYS").unwrap_or_default();
    let picked: Vec<_> = picked.split_whitespace().collect();
    let ways = rig.ways();
    for word in &picked {
        assert!(ways.iter().any(|way| way.name == *word), "WAYS: no way {word} in {ways:#?}");
    }
    // An emulated machine takes 3 to 10 MiB a second.
    let limit = Duration::from_secs(300 + megabytes as u64);
    for way in ways.iter().filter(|way| picked.is_empty() || picked.contains(&way.name)) {
        drive(way, &archive, limit);
    }
    step("the agent on vsock; half-closed inside", || rig.by_hand());
    step("ends over vsock", || rig.ends());
    step("clients on vsock who leave a service that hangs", || {
        rig.vm.ssh("root", LEAVE);
    });
    step("vsock under strace", || rig.trace());
    step("the agent beside SSH", || rig.measure());
    step("all ways at once", || {
        thread::scope(|scope| {
            for way in ways.iter().filter(|way| way.is_socket()) {
                for _ in 0..3 {
                    scope.spawn(|| way.ping());
                }
            }
        });
    });
}

/// The rule for ends (`ends.rs`) where vsock is on one side or both.
#[test]
#[ignore = "the host has no loopback of vsock: `podman_by_every_way_into_a_machine` runs it in the machine"]
fn ends_over_vsock() {
    let rounds = std::env::var("ROUNDS").map_or(table::ROUNDS, |rounds| rounds.parse().expect("a number"));
    table::assert_kept(vsock::Rig::start("/root/gvproxy", "/root/identity").ways(), rounds);
}

/// A machine with all that leads into it.
struct Rig {
    alone: Daemon,
    vm: Vm,
    vsock: VsockDevice,
    tcp: u16,
    _scratch: tempfile::NamedTempFile,
}

impl Rig {
    #[track_caller]
    fn start(megabytes: usize) -> Self {
        let vsock = VsockDevice::start();
        let (ssh_port, tcp) = (free_port(), free_port());
        let key = identity().display().to_string();
        let hybrid = |port: u16| format!("unix://{}?port={port}", vsock.socket().display());
        let host_ssh = format!("ssh://root@127.0.0.1:{ssh_port}{PODMAN}");

        let mut args = Vec::new();
        for (socket, dest) in [
            ("ssh", PODMAN.to_owned()),
            ("ssh-guest", format!("ssh://root@{GUEST}:22{PODMAN}?key={key}&secure=false")),
            ("ssh-host", host_ssh.clone()),
            ("tcp", format!("tcp://{GUEST}:{TCP}")),
            ("agent", format!("agent://{PODMAN}")),
            ("agent-at", format!("agent://{GUEST}:{}{PODMAN}", gvproxy::agent::PORT)),
            ("hybrid", hybrid(VSOCK)),
            ("inside", hybrid(INSIDE)),
            ("activated", hybrid(ACTIVATED)),
            ("chain", "unix://{dir}/agent.sock".to_owned()),
            ("up-agent", "agent:///run/up.sock".to_owned()),
            ("up-ssh", format!("ssh://root@{GUEST}:22/run/up.sock?key={key}&secure=false")),
            ("down-agent", "agent:///run/down.sock".to_owned()),
            ("down-ssh", format!("ssh://root@{GUEST}:22/run/down.sock?key={key}&secure=false")),
        ] {
            args.extend([
                "-forward-sock".into(),
                format!("{{dir}}/{socket}.sock"),
                "-forward-dest".into(),
                dest,
            ]);
        }
        // For `ssh` and `ssh-host`: the others need none, or have one.
        args.extend(
            ["-forward-user", "root", "-forward-identity", &key, "-forward-identity", &key].map(Into::into),
        );
        let mut vm = Vm::with(ssh_port, args.into_iter().map(Into::into));

        let alone = Daemon::builder()
            .without_qemu()
            .args(["-forward-sock", "{dir}/hybrid.sock", "-forward-dest", &hybrid(VSOCK)])
            .args(["-forward-sock", "{dir}/ssh.sock", "-forward-dest", &format!("{host_ssh}?key={key}")])
            .args(["-forward-sock", "{dir}/chain.sock", "-forward-dest", &vm.url("tcp.sock")])
            .args(["-forward-sock", &format!("tcp://127.0.0.1:{tcp}"), "-forward-dest", &hybrid(VSOCK)])
            .start();

        // An image is there three times while it is loaded, and more than once its size does not fit the
        // machine's own disk.
        let scratch = tempfile::NamedTempFile::new().expect("a file");
        scratch.as_file().set_len((4 * megabytes as u64 + 1024) << 20).expect("a file of that length");
        let mut mke2fs = Command::new(tool("mke2fs", "e2fsprogs"));
        mke2fs.args(["-q", "-F", "-t", "ext4", "-L", "scratch", "-m", "0", "-O", "^has_journal"]);
        mke2fs.arg(scratch.path());
        output(mke2fs);
        let drive = format!(
            "file={},if=none,id=scratch,format=raw,cache=unsafe,discard=unmap",
            scratch.path().display()
        );
        vm.boot.env("VSOCK", vsock.control());
        // Debian 13's kernel puts more than 32 KiB of vsock into several descriptors; vhost-device-vsock 0.3
        // takes one, and drops the rest.
        vm.boot.env("GUEST", "bookworm");
        vm.boot.args(["-drive", &drive, "-device", "virtio-blk-pci,drive=scratch"]);
        step("boot", || vm.power_on());
        step("the API on vsock and TCP, the agent, a daemon inside", || {
            for program in [env!("CARGO_BIN_EXE_gvproxy"), env!("CARGO_BIN_EXE_gvforwarder")] {
                install(vm.ssh_port, Path::new(program));
            }
            vm.ssh("root", SERVE);
        });
        Self { alone, vm, vsock, tcp, _scratch: scratch }
    }

    /// What no way of the daemon uses: the agent on vsock, for hosts that connect to it themselves; and the
    /// system's vsock with a half-close, which a VMM does not pass on.
    #[track_caller]
    fn by_hand(&self) {
        let mut stream = BufReader::new(UnixStream::connect(self.vsock.socket()).expect("the device"));
        stream.get_ref().set_read_timeout(Some(START)).expect("a timeout");
        for (say, hear) in [
            (format!("CONNECT {}\n", gvproxy::agent::PORT), "OK "),
            (format!("{PODMAN}\n"), "OK\n"),
            ("GET /v4.0.0/libpod/_ping HTTP/1.0\r\n\r\n".into(), "HTTP/1.0 200 OK\r\n"),
        ] {
            stream.get_mut().write_all(say.as_bytes()).expect("the device");
            let mut line = String::new();
            stream.read_line(&mut line).expect("an answer");
            assert!(line.starts_with(hear), "{say:?}: {line:?}");
        }
        let echoed = self.vm.ssh("root", "echo hello | timeout 20 socat -t20 - UNIX:/run/echo-vsock.sock");
        assert_eq!(echoed, "hello");
    }

    /// This program's own test of it, in the machine; which is slow, and so plays few rounds unless `ROUNDS`
    /// says more.
    #[track_caller]
    fn ends(&self) {
        let program = std::env::current_exe().expect("this program");
        install(self.vm.ssh_port, &program);
        let name = program.file_name().expect("a name").to_string_lossy();
        let key = std::fs::read_to_string(identity()).expect("the key");
        let script = format!(
            "umask 077; echo '{key}' >identity
            ROUNDS={} exec ./{name} --ignored --exact ends_over_vsock --nocapture 2>&1",
            std::env::var("ROUNDS").as_deref().unwrap_or("40"),
        );
        let said = self.vm.ssh("root", &script);
        assert!(said.contains("test result: ok. 1 passed"), "{said}");
        eprintln!("{said}");
    }

    /// Vsock beside each kind of socket: `sockets_rate` does the other pairs, on the host, which has no
    /// vsock.
    #[track_caller]
    fn trace(&self) {
        const BYTES: u64 = 4 << 20;
        let said = self.vm.ssh("root", &format!("CALLS={CALLS} BYTES={BYTES}\n{TRACE}"));
        let mut lines = said.splitn(7, '\n');
        let echoed: Vec<_> = lines.by_ref().take(5).collect();
        assert_eq!(echoed, [BYTES.to_string().as_str(); 5], "{said}");
        let (pid, trace) = (lines.next().expect("a number"), lines.next().expect("a trace"));
        let calls = Calls::read(trace, pid.parse().expect("a number")).unwrap_or_else(|| panic!("{trace}"));
        calls.assert_spliced(5 * 2 * BYTES);
    }

    /// Prints what the agent carries beside what SSH does, whose cryptography the machine's processor pays
    /// for, in turns.
    #[track_caller]
    fn measure(&self) {
        for direction in ["up", "down"] {
            let mut rates = [const { Vec::new() }; 2];
            for _ in 0..3 {
                for (way, rates) in ["agent", "ssh"].iter().zip(&mut rates) {
                    let socket = self.vm.daemon.dir().join(format!("{direction}-{way}.sock"));
                    rates.push(megabytes_per_second(&socket, direction == "up"));
                }
            }
            let [agent, ssh] = rates.map(|mut rates| {
                rates.sort_by(f64::total_cmp);
                rates[1]
            });
            eprintln!("    vm: {direction}: agent {agent:.0} MB/s, ssh {ssh:.0} MB/s, {:.1}", agent / ssh);
            assert!(agent > ssh, "{direction}: {agent} {ssh}");
        }
    }

    /// Where each way begins.
    fn ways(&self) -> Vec<Way> {
        let [ours, alone] = [&self.vm.daemon, &self.alone]
            .map(|daemon| move |socket: &str| format!("unix://{}/{socket}.sock", daemon.dir().display()));
        let at = |scheme: &str, port: u16| format!("{scheme}127.0.0.1:{port}");
        // A name, whether an image takes it, whether the machine is told of the end of a client's input.
        [
            ("ssh", true, true, ours("ssh")),
            ("ssh-guest", true, true, ours("ssh-guest")),
            ("ssh-host", true, true, ours("ssh-host")),
            ("tcp", true, true, ours("tcp")),
            ("agent", true, true, ours("agent")),
            ("agent-at", false, true, ours("agent-at")),
            ("hybrid", true, false, ours("hybrid")),
            ("vsock", true, false, ours("inside")),
            ("activated", false, false, ours("activated")),
            ("chain", true, true, ours("chain")),
            ("alone-hybrid", true, false, alone("hybrid")),
            ("alone-chain", true, true, alone("chain")),
            ("alone-ssh", false, true, alone("ssh")),
            ("alone-tcp", false, false, at("tcp://", self.tcp)),
            // Beside them: podman's own way, through the port of the machine's sshd.
            ("podman-ssh", true, true, at("ssh://root@", self.vm.ssh_port) + PODMAN),
        ]
        .map(|(name, thorough, halves, url)| Way { name, thorough, halves, url })
        .into()
    }
}

impl Drop for Rig {
    fn drop(&mut self) {
        if thread::panicking() {
            eprintln!("--- {} ---\n{}", self.vsock.log().display(), self.vsock.said());
        }
    }
}

/// One way into the machine.
#[derive(Debug)]
struct Way {
    name: &'static str,
    /// Whether an image takes it.
    thorough: bool,
    /// Whether the machine is told of the end of a client's input: not by a VMM that offers vsock at a unix
    /// socket.
    halves: bool,
    url: String,
}

impl Way {
    /// Something that docker and curl can use too.
    fn is_socket(&self) -> bool {
        !self.url.starts_with("ssh://")
    }

    #[track_caller]
    fn ping(&self) {
        let mut curl = Command::new(tool("curl", "curl"));
        curl.args(["--silent", "--show-error", "--fail", "--max-time", "60"]);
        let at = match self.url.split_once("://") {
            Some(("unix", path)) => {
                curl.args(["--unix-socket", path]);
                "d"
            }
            Some((_, place)) => place,
            None => "",
        };
        curl.arg(format!("http://{at}/v4.0.0/libpod/_ping"));
        assert_eq!(output(curl), "OK", "{}", self.name);
    }
}

/// What a stream carries once it is under way.
#[track_caller]
fn megabytes_per_second(socket: &Path, up: bool) -> f64 {
    const WARM: usize = 8 << 20;
    const WINDOW: Duration = Duration::from_secs(2);
    let mut stream = UnixStream::connect(socket).expect("the daemon's socket");
    stream.set_read_timeout(Some(LIMIT)).expect("a timeout");
    stream.set_write_timeout(Some(LIMIT)).expect("a timeout");
    let mut buffer = vec![0; 256 << 10];
    let mut some = || {
        let moved = if up { stream.write(&buffer) } else { uninterrupted(|| stream.read(&mut buffer)) };
        let moved = moved.unwrap_or_else(|error| panic!("{}: {error}", socket.display()));
        assert_ne!(moved, 0, "{}", socket.display());
        moved
    };
    let mut warm = 0;
    while warm < WARM {
        warm += some();
    }
    let (start, mut moved) = (Instant::now(), 0);
    while start.elapsed() < WINDOW {
        moved += some();
    }
    moved as f64 / 1e6 / start.elapsed().as_secs_f64()
}

/// What a user does by one way, with the bytes compared at both ends.
fn drive(way: &Way, archive: &Archive, limit: Duration) {
    let step = |what: &str, work: &mut dyn FnMut()| step(&format!("{}: {what}", way.name), work);
    let podman = Client::podman(&way.url).limit(limit);
    let docker = if way.is_socket() {
        Client::docker(&way.url).limit(limit)
    } else {
        Client::podman(&way.url).limit(limit)
    };
    if way.is_socket() {
        step("curl", &mut || way.ping());
    }
    step(&format!("{} version, podman info", docker.name()), &mut || {
        assert_eq!(docker.run(&["version", "--format", "{{.Server.Os}}"]), "linux");
        assert_eq!(podman.run(&["info", "--format", "{{.Host.Hostname}}"]), "guest");
    });
    if !way.thorough {
        return;
    }
    step("podman load", &mut || {
        let path = archive.path().display().to_string();
        assert!(podman.run(&["load", "-i", &path]).contains(Archive::NAME));
    });
    let run = ["run", "--rm", "--network", "none", Archive::NAME];
    step(&format!("{} run, what the machine has", docker.name()), &mut || {
        let sum = docker.run(&[&run[..], &["sha256sum", "/data"]].concat());
        assert_eq!(sum.split(' ').next(), Some(archive.sha256.as_str()));
    });
    step("podman run, what comes back", &mut || {
        let length = archive.first.len().to_string();
        let first = podman.run_for_bytes(&[&run[..], &["head", "-c", &length, "/data"]].concat());
        assert!(first == archive.first, "{} bytes, or others", first.len());
    });
    step("run -d, exec, attach, rm, rmi", &mut || {
        podman.run(&["run", "-d", "-i", "--name", "talk", "--network", "none", Archive::NAME, "cat"]);
        assert_eq!(podman.run(&["exec", "talk", "echo", "hello"]), "hello");
        let mut attach = podman.talk(&["attach", "--sig-proxy=false", "talk"]);
        attach.say("there\n");
        attach.hear("there\n");
        // The end of the stream reaches the container's `cat`, whose end comes back.
        if way.halves {
            attach.finish();
        }
        podman.run(&["rm", "-f", "-t", "0", "talk"]);
        docker.run(&["rmi", Archive::NAME]);
    });
}

/// vhost-device-vsock, which serves the machine's vsock and leads from a unix socket to its ports.
struct VsockDevice {
    child: Child,
    dir: tempfile::TempDir,
}

impl VsockDevice {
    #[track_caller]
    fn start() -> Self {
        const NAME: &str = "vhost-device-vsock";
        let built = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/guest/cache/bin").join(NAME);
        let program = if built.exists() { built } else { tool(NAME, "tests/install.sh test") };
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").expect("a directory");
        let at = |name: &str| dir.path().join(name).display().to_string();
        let child = Command::new(program)
            .args(["--vm", &format!("guest-cid=3,socket={},uds-path={}", at("control"), at("vm.sock"))])
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(File::create(at("log")).expect("a file"))
            .spawn()
            .expect(NAME);
        let mut device = Self { child, dir };
        eventually("the device's sockets", START, || {
            let ended = device.child.try_wait().expect("wait");
            assert!(ended.is_none(), "{NAME}: {ended:?}: {}", device.said());
            device.control().exists().then_some(())
        });
        device
    }

    /// QEMU's end.
    fn control(&self) -> PathBuf {
        self.dir.path().join("control")
    }

    /// Takes `CONNECT port`.
    fn socket(&self) -> PathBuf {
        self.dir.path().join("vm.sock")
    }

    fn log(&self) -> PathBuf {
        self.dir.path().join("log")
    }

    fn said(&self) -> String {
        std::fs::read_to_string(self.log()).unwrap_or_default()
    }
}

impl Drop for VsockDevice {
    fn drop(&mut self) {
        // Already ended is as good.
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
