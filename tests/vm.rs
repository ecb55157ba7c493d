//! What a user does with the daemon and a real machine: log in, drive its podman through the forwarded
//! sockets with podman's and docker's own programs, restart it, switch it off.
#![allow(clippy::expect_used, reason = "a test fails by panic")]

use std::fs;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use testkit::eventually;
use testkit::vm::{BOOT, Client, Noise, Vm, http_get, image, install, note, step};

testkit::agent_in_a_namespace!();

const PING: &str = "/v4.0.0/libpod/_ping";
const IMAGE: &str = "localhost/busybox:test";
/// How soon a socket must work again once the machine's sshd answers.
const RECOVERY: Duration = Duration::from_secs(2);
/// How long an emulated podman may take to start and answer.
const ANSWER: Duration = Duration::from_secs(30);

#[test]
fn the_host_drives_the_podman_of_a_machine() {
    let mut vm = Vm::off();
    step("boot", || vm.power_on());
    step("ssh, addresses and names", || {
        assert_eq!(vm.ssh("root", "id -un"), "root");
        let seen = vm.ssh(
            "core",
            "id -un; hostname; ip -4 -brief address show scope global; ip -o link; \
             getent ahostsv4 gateway.containers.internal; getent ahostsv4 host.containers.internal",
        );
        assert!(seen.starts_with("core\nguest\n"), "{seen}");
        for part in ["192.168.127.2/24", "\n192.168.127.1 ", "\n192.168.127.254 ", " mtu 65520 "] {
            assert!(seen.contains(part), "no {part:?} in {seen}");
        }
    });
    // Nothing is said on these two until the end, minutes later.
    let mut idle_login = vm.ssh_talk("core", "cat");
    let idle_stream = echo(&vm);
    for (socket, rootless) in [("podman.sock", "true"), ("podman-root.sock", "false")] {
        step(&format!("{socket}: _ping and info"), || {
            let path = vm.socket(socket);
            assert_eq!(fs::metadata(&path).expect("a socket").permissions().mode() & 0o777, 0o600);
            assert_eq!(http_get(&path, PING, ANSWER).expect("an answer"), "OK");
            let podman = Client::podman(vm.url(socket));
            let info = podman.run(&["info", "--format", "{{.Host.Hostname}} {{.Host.Security.Rootless}}"]);
            assert_eq!(info, format!("guest {rootless}"));
        });
    }
    let podman = Client::podman(vm.url("podman.sock"));
    drive(&podman);
    pods(&podman);
    drive(&Client::docker(vm.url("podman.sock")));
    step("gvforwarder over vsock", || {
        for program in [env!("CARGO_BIN_EXE_gvproxy"), env!("CARGO_BIN_EXE_gvforwarder")] {
            install(vm.ssh_port, Path::new(program));
        }
        let seen = vm.ssh("root", VSOCK);
        let expected =
            "out hello\nname 192.168.127.254\nin hello\nagain hello\nAPI HTTP/1.1 200 OK\nleft lo\n";
        assert_eq!(seen, expected.trim_end());
    });
    step("connections that were idle all the time", || {
        idle_login.say("still there?\n");
        idle_login.hear("still there?\n");
        idle_login.finish();
        assert_echoes(idle_stream, ANSWER);
    });
}

/// Both programs inside the machine, by way of vsock's loopback: nothing but a machine has vsock everywhere.
/// The daemon is killed in between.
const VSOCK: &str = r#"
exec 2>/root/vsock.log
trap 'test $? = 0 || cat /root/vsock.log; kill $(jobs -p); ip netns del g' EXIT
set -eu
modprobe vsock_loopback
modprobe tun
ip netns add g
mkdir -p /etc/netns/g
echo >/etc/netns/g/resolv.conf
daemon() { ./gvproxy -listen vsock://:1024 -ssh-port -1 >&2 & pid=$!; }
within() { ip netns exec g "$@"; }
until_works() { for _ in $(seq 300); do "$@" && return; sleep 0.1; done; echo "never: $*"; return 1; }
echoes() { [ "$(echo hello | timeout 5 "$@")" = hello ]; }
serve() { "$@" EXEC:cat >&2 & }
daemon
serve socat TCP-LISTEN:7000,bind=127.0.0.1,fork,reuseaddr
serve ip netns exec g socat TCP-LISTEN:80,fork,reuseaddr
ip netns exec g ./gvforwarder -url vsock://1:1024/connect >&2 &
forwarder=$!
until_works echoes ip netns exec g socat -t5 - TCP:192.168.127.254:7000
echo out hello
echo name "$(within dig +short host.containers.internal @192.168.127.1)"
wish='{"local":"127.0.0.1:7100","remote":"192.168.127.2:80"}'
printf 'POST /services/forwarder/expose HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: %d\r\n\r\n%s' "${#wish}" "$wish" |
    socat -t5 - VSOCK-CONNECT:1:1024 >&2
until_works echoes socat -t5 - TCP:127.0.0.1:7100
echo in hello
kill -9 $pid
daemon
until_works echoes ip netns exec g socat -t5 - TCP:192.168.127.254:7000
echo again hello
echo API "$(printf 'GET /leases HTTP/1.1\r\nHost: d\r\nConnection: close\r\n\r\n' | socat -t5 - VSOCK-CONNECT:1:1024 | head -n 1 | tr -d '\r')"
kill $forwarder
wait $forwarder
echo left $(within ip -br link | awk '{ print $1 }')
"#;

/// A container's whole life as a user sees it.
fn drive(client: &Client) {
    let step = |what: &str, work: &mut dyn FnMut()| step(&format!("{}: {what}", client.name()), work);
    let run = |args: &[&str]| client.run(args);
    let tar = image().display().to_string();
    let files = tempfile::tempdir().expect("a temporary directory");

    step("load an image", &mut || {
        assert!(run(&["load", "-i", &tar]).contains(IMAGE));
        assert!(run(&["images"]).contains("localhost/busybox"));
    });
    step("run", &mut || {
        assert_eq!(run(&["run", "--rm", "--network", "none", IMAGE, "echo", "hello"]), "hello");
    });
    step("run -i", &mut || {
        let mut talk = client.talk(&["run", "-i", "--rm", "--network", "none", IMAGE, "cat"]);
        talk.say("first\n");
        talk.hear("first\n");
        talk.finish();
    });
    step("run -d", &mut || {
        // Prints what is written to the pipe, for as long as it runs.
        let script = "mkfifo /tmp/in; while :; do cat /tmp/in; done";
        let id = run(&["run", "-d", "--name", "work", "--network", "none", IMAGE, "sh", "-c", script]);
        assert_eq!(id.len(), 64, "{id}");
        let name = run(&["ps", "--format", "{{.Names}} {{.Image}}"]);
        assert_eq!(name, format!("work {IMAGE}"));
    });
    step("exec", &mut || {
        assert_eq!(run(&["exec", "work", "hostname"]), run(&["ps", "--format", "{{.ID}}"]));
    });
    step("exec -i, both ways", &mut || {
        let mut talk = client.talk(&["exec", "-i", "work", "cat"]);
        for line in ["one\n", "two\n"] {
            talk.say(line);
            talk.hear(line);
        }
        talk.finish();
    });
    step("logs -f", &mut || {
        run(&["exec", "work", "sh", "-c", "echo before >/tmp/in"]);
        let mut logs = client.talk(&["logs", "-f", "work"]);
        logs.hear("before\n");
        run(&["exec", "work", "sh", "-c", "echo after >/tmp/in"]);
        logs.hear("after\n");
    });
    step("attach", &mut || {
        run(&["run", "-d", "-i", "--name", "talk", "--network", "none", IMAGE, "cat"]);
        let mut attach = client.talk(&["attach", "--sig-proxy=false", "talk"]);
        for line in ["here\n", "there\n"] {
            attach.say(line);
            attach.hear(line);
        }
        // The end of the stream reaches the container's `cat`, whose end comes back.
        attach.finish();
    });
    step("cp, 20 MiB in and out", &mut || {
        let (there, back) = (files.path().join("there"), files.path().join("back"));
        let mut bytes = vec![0; 20 << 20];
        Noise::default().fill(&mut bytes);
        fs::write(&there, &bytes).expect("a file");
        run(&["cp", &there.display().to_string(), "work:/tmp/file"]);
        assert_eq!(run(&["exec", "work", "stat", "-c", "%s", "/tmp/file"]), bytes.len().to_string());
        run(&["cp", "work:/tmp/file", &back.display().to_string()]);
        assert!(fs::read(&back).expect("the copy") == bytes, "the copy differs");
    });
    step("rm, rmi", &mut || {
        run(&["kill", "work"]);
        run(&["rm", "-f", "work", "talk"]);
        run(&["rmi", IMAGE]);
        assert_eq!(run(&["ps", "-a", "-q"]), "");
        assert_eq!(run(&["images", "-q", IMAGE]), "");
    });
}

/// What podman has and docker has not.
fn pods(podman: &Client) {
    step("podman: a pod", || {
        podman.run(&["load", "-i", &image().display().to_string()]);
        podman.run(&["pod", "create", "--name", "pod", "--network", "none"]);
        podman.run(&["run", "-d", "--pod", "pod", "--name", "member", IMAGE, "sleep", "1000"]);
        assert_eq!(podman.run(&["pod", "ps", "--format", "{{.Name}} {{.Status}}"]), "pod Running");
        podman.run(&["pod", "rm", "-f", "-t", "0", "pod"]);
        assert_eq!(podman.run(&["ps", "-a", "-q"]), "");
    });
}

#[test]
fn sockets_outlive_the_sshd_and_the_boots_of_a_machine() {
    let mut vm = Vm::off();
    let early = vm.socket("podman.sock");
    eventually("a socket that listens", ANSWER, || UnixStream::connect(&early).ok());
    let early = std::thread::spawn(move || http_get(&early, PING, BOOT));
    step("boot", || vm.power_on());
    step("a client from before the boot is not left waiting", || {
        eventually("its end", ANSWER, || early.is_finished().then_some(()));
        let answer = early.join().expect("a thread").expect("an answer, or a clean close");
        assert!(["OK", ""].contains(&answer.as_str()), "{answer}");
    });
    step("a first connection", || assert_echoes(echo(&vm), ANSWER));
    ping(&vm);

    step("systemctl restart ssh", || vm.ssh("root", "systemctl restart ssh"));
    recover(&mut vm);

    step("every sshd killed, and a new one 2 s later", || {
        vm.ssh_later("systemctl stop ssh; pkill -KILL sshd; sleep 2; systemctl start ssh");
        vm.wait_for_no_sshd();
    });
    recover(&mut vm);

    step("systemctl reboot", || {
        vm.ssh_later("systemctl reboot");
        vm.wait_for_no_sshd();
    });
    recover(&mut vm);
    ping(&vm);

    // As after a crash: the machine says goodbye to nobody.
    step("reset", || {
        vm.ssh_later("sync; echo b >/proc/sysrq-trigger");
        vm.wait_for_no_sshd();
    });
    recover(&mut vm);
    ping(&vm);

    step("power off: the daemon ends with its machine, and leaves nothing behind", || {
        vm.ssh_later("systemctl poweroff");
        assert!(vm.wait_for_power_off().success(), "QEMU failed");
        let status = vm.daemon.wait(Duration::from_secs(5)).expect("the daemon runs on without its machine");
        assert!(status.success(), "{status}");
        let left: Vec<_> = fs::read_dir(vm.daemon.dir()).expect("a directory").flatten().collect();
        assert!(left.is_empty(), "{left:?}");
    });
}

/// The first connection after sshd's greeting works within [`RECOVERY`]; on a host too busy for that, not
/// much later than OpenSSH's own client, which logs in at the same moment.
#[track_caller]
fn recover(vm: &mut Vm) {
    step("sshd answers again", || vm.wait_for_sshd());
    let vm = &*vm;
    let start = Instant::now();
    let (took, login) = step("the next connection works", || {
        std::thread::scope(|scope| {
            let login = scope.spawn(|| {
                vm.ssh("core", "true");
                start.elapsed()
            });
            assert_echoes(echo(vm), ANSWER);
            (start.elapsed(), login.join().expect("a login"))
        })
    });
    assert!(took < RECOVERY.max(login + RECOVERY / 2), "after {took:?}; a login took {login:?}");
    note(&format!("after {took:.1?}, beside a login after {login:.1?}"));
}

/// Both podmans answer; under emulation they take longer to start than the network does.
#[track_caller]
fn ping(vm: &Vm) {
    for socket in ["podman.sock", "podman-root.sock"] {
        step(&format!("{socket} answers"), || {
            eventually("an answer of podman", ANSWER, || {
                http_get(&vm.socket(socket), PING, ANSWER).is_ok_and(|body| body == "OK").then_some(())
            });
        });
    }
}

/// A new connection to the machine's echo service.
#[track_caller]
fn echo(vm: &Vm) -> UnixStream {
    UnixStream::connect(vm.socket("echo.sock")).expect("a connection")
}

/// The connection carries a word both ways, and the end of the stream.
#[track_caller]
fn assert_echoes(mut stream: UnixStream, patience: Duration) {
    stream.set_read_timeout(Some(patience)).expect("a timeout");
    stream.write_all(b"still there?").expect("a write");
    stream.shutdown(std::net::Shutdown::Write).expect("a half-close");
    let mut answer = String::new();
    let end = stream.read_to_string(&mut answer);
    assert!(end.is_ok() && answer == "still there?", "{end:?}, {answer:?}");
}
