//! Network cards by QMP, with a real QEMU: what is put into a machine, found again, taken out; what is told
//! of the machine; `-listen-qemu` on a path that is QEMU's too. No system runs in these machines; for that
//! see `qmp_vm.rs`, and for a QEMU that misbehaves `qmp_peer.rs`.
#![expect(clippy::unwrap_used, clippy::panic, reason = "a test's helper fails like the test")]

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use rustix::process::Signal;
use serde_json::{Value, json};
use testkit::daemon::{Builder, Daemon, binary};
use testkit::frames::{GATEWAY_MAC, IP, MAC, Wire, arp};
use testkit::http::{Answer, exchange};
use testkit::net::GATEWAY;
use testkit::qemu::{Monitor, PC, Q35, Qemu};
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(20);
const MAC_TEXT: &str = "5a:94:ef:e4:0c:ee";

/// Where machines and the test's own sockets are: a directory that outlives the daemons.
struct Bench {
    dir: tempfile::TempDir,
}

impl Bench {
    fn new() -> Self {
        Self { dir: tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap() }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    fn url(&self, name: &str) -> String {
        format!("unix://{}", self.path(name).display())
    }

    /// A daemon that follows the machine of socket `q`, with its API at `api`.
    fn builder(&self) -> Builder {
        Daemon::builder().without_qemu().args(["-qmp", &self.url("q"), "-listen", &self.url("api"), "-debug"])
    }

    fn qemu(&self, args: &[&str]) -> Qemu {
        Qemu::start(&self.path("q"), args)
    }

    /// What the API says of machines.
    fn machines(&self) -> Option<Value> {
        let stream = UnixStream::connect(self.path("api")).ok()?;
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        let answer = exchange(stream, b"GET /qmp HTTP/1.0\r\nHost: d\r\n\r\n");
        let answer = Answer::of(&answer);
        assert_eq!(answer.status, 200, "{answer:?}");
        Some(answer.json())
    }

    /// The first machine once it is as wanted.
    #[track_caller]
    fn machine_until(&self, what: &str, wanted: impl Fn(&Value) -> bool) -> Value {
        let start = Instant::now();
        loop {
            let machines = self.machines();
            if let Some(machine) = machines.as_ref().and_then(|machines| machines.get(0))
                && wanted(machine)
            {
                return machine.clone();
            }
            assert!(start.elapsed() < PATIENCE, "{what}: not in {machines:?}");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    #[track_caller]
    fn attached(&self) -> Value {
        self.machine_until("an attached machine", |machine| machine["device"]["link"] == true)
    }
}

/// Whether the machine has our card, connected to the socket.
fn has_card(network: &str, socket: &Path) -> bool {
    network.contains(&format!("model=virtio-net-pci,macaddr={MAC_TEXT}"))
        && network.contains(&format!("type=stream,unix:{}\r\n", socket.display()))
}

/// The messages of `-notification`, without `connection_...`.
fn notices(path: &Path) -> Receiver<String> {
    let listener = UnixListener::bind(path).unwrap();
    let (sender, messages) = channel();
    std::thread::spawn(move || {
        for stream in listener.incoming() {
            let mut text = String::new();
            stream.unwrap().read_to_string(&mut text).unwrap();
            if !text.contains("\"connection_") && sender.send(text).is_err() {
                break;
            }
        }
    });
    messages
}

#[track_caller]
fn expect_notice(messages: &Receiver<String>, kind: &str) {
    let text = messages.recv_timeout(PATIENCE).unwrap_or_else(|_| panic!("no {kind}"));
    let wanted = format!("{{\"notification_type\":\"{kind}\",\"mac_address\":\"{MAC_TEXT}\"}}\n");
    assert_eq!(text, wanted);
}

#[test]
fn a_machine_is_given_a_card_in_both_orders_of_starting() {
    for (machine, bus) in [(PC, "pci.0"), (Q35, "hot0")] {
        for daemon_first in [true, false] {
            let bench = Bench::new();
            let socket = bench.path("q.gvproxy");
            let early = daemon_first.then(|| bench.builder().spawn());
            if daemon_first {
                eventually("the link's socket", PATIENCE, || socket.exists().then_some(()));
            }
            let mut qemu = bench.qemu(&[machine, &["-S"]].concat());
            let mut daemon = early.unwrap_or_else(|| bench.builder().spawn());
            let status = bench.attached();
            assert_eq!(status["pid"], qemu.pid(), "{status}");
            assert_eq!(
                (&status["name"], &status["state"]),
                (&json!("empty"), &json!("prelaunch")),
                "{status}"
            );
            assert_eq!((&status["device"]["bus"], &status["device"]["mac"]), (&json!(bus), &json!(MAC_TEXT)));
            let network = qemu.network();
            assert!(has_card(&network, &socket), "{network:?}");
            assert_eq!(
                std::os::unix::fs::PermissionsExt::mode(&socket.metadata().unwrap().permissions()) & 0o777,
                0o600
            );

            // It takes the card out at its end. Nobody in the machine answers, so that the card itself goes
            // with the next reset.
            assert!(daemon.terminate().success());
            assert!(!socket.exists());
            qemu.execute("system_reset", json!({}));
            qemu.network_until("nothing", |network| !network.contains("gvproxy"));
        }
    }
}

#[test]
fn a_card_may_stay() {
    let bench = Bench::new();
    let mut qemu = bench.qemu(&[PC, &["-S"]].concat());
    let mut daemon = bench.builder().args(["-qmp-keep-device"]).spawn();
    bench.attached();
    assert!(daemon.terminate().success());
    let netdev = qemu.wait_event("NETDEV_STREAM_DISCONNECTED")["netdev-id"].take();
    assert!(netdev.as_str().is_some_and(|id| id.starts_with("gvproxy-net-")), "{netdev}");
    let network = qemu.network();
    assert!(network.contains("gvproxy-nic-") && network.contains("gvproxy-net-"), "{network:?}");
}

#[test]
fn what_is_told_of_a_machine() {
    let bench = Bench::new();
    let messages = notices(&bench.path("n"));
    let mut daemon = bench.builder().args(["-notification", &bench.url("n")]).spawn();
    assert_eq!(messages.recv_timeout(PATIENCE).unwrap(), "{\"notification_type\":\"ready\"}\n");
    for killed in [false, true] {
        let mut qemu = bench.qemu(&[Q35, &["-S"]].concat());
        expect_notice(&messages, "vm_attached");
        for (command, notice, state) in [
            ("cont", "vm_resumed", "running"),
            ("stop", "vm_stopped", "paused"),
            ("system_reset", "vm_reset", "paused"),
        ] {
            qemu.execute(command, json!({}));
            expect_notice(&messages, notice);
            bench.machine_until(state, |machine| machine["state"] == state);
            assert_eq!(bench.attached()["connection"], "connected");
        }
        if killed {
            qemu.kill();
        } else {
            assert!(qemu.quit().success());
            expect_notice(&messages, "vm_shutdown");
        }
        expect_notice(&messages, "vm_ended");
        let status = bench.machine_until("waiting", |machine| machine["connection"] == "waiting");
        assert_eq!((&status["device"], &status["pid"]), (&Value::Null, &Value::Null), "{status}");
        assert!(daemon.is_running());
    }
    let log = daemon.log_with("host-qmp-quit");
    assert!(log.contains("virtual machine shut down"), "{log}");
}

#[test]
fn the_run_ends_with_its_machine_where_it_is_to() {
    let bench = Bench::new();
    let qemu = bench.qemu(&[PC, &["-S"]].concat());
    let mut daemon = bench.builder().args(["-exit-with-vm"]).spawn();
    bench.attached();
    assert!(qemu.quit().success());
    let status = daemon.wait(PATIENCE).expect("the daemon runs on without its machine");
    assert!(status.success(), "{status}");
    assert!(!bench.path("q.gvproxy").exists());
}

#[test]
fn a_machine_without_a_free_port_is_told_of() {
    let bench = Bench::new();
    let full =
        ["-M", "q35", "-device", "pcie-root-port,id=hot0,chassis=1", "-device", "virtio-rng-pci,bus=hot0"];
    for (args, why) in [(&full[..2], "pcie.0 takes no device while the VM runs"), (&full, "hot0 holds a ")] {
        let mut qemu = bench.qemu(&[args, &["-S"]].concat());
        let mut daemon = bench.builder().spawn();
        let status = bench.machine_until("a problem", |machine| machine["problem"] != Value::Null);
        let problem = status["problem"].as_str().unwrap();
        assert!(
            problem.starts_with("no free slot for a hot-plugged PCI device (") && problem.contains(why),
            "{problem}"
        );
        assert!(problem.contains("-device pcie-root-port,id=NAME,chassis=N"), "{problem}");
        daemon.log_with("cannot attach the virtual machine");
        assert_eq!(qemu.network(), "");
        assert!(daemon.terminate().success());
    }
}

/// What is left of a daemon that was killed cannot be used again, as QEMU 7.2 connects once. With a system in
/// the machine it is replaced at once: `qmp_vm.rs`.
#[test]
fn what_a_killed_daemon_left_is_replaced() {
    for machine in [PC, Q35] {
        let bench = Bench::new();
        let mut qemu = bench.qemu(&[machine, &["-S"]].concat());
        let mut daemon = bench.builder().spawn();
        bench.attached();
        daemon.signal(Signal::KILL);
        daemon.wait(PATIENCE).expect("its end");
        let mut daemon = bench.builder().spawn();
        let status = bench.machine_until("a problem", |machine| machine["problem"] != Value::Null);
        let problem = status["problem"].as_str().unwrap();
        assert!(problem.starts_with("the network card of before is still there: unplug "), "{problem}");
        qemu.execute("system_reset", json!({}));
        bench.attached();
        let network = qemu.network();
        assert!(has_card(&network, &bench.path("q.gvproxy")), "{network:?}");
        assert_eq!(network.matches("type=").count(), 2, "{network:?}");
        assert!(daemon.terminate().success());
    }
}

#[test]
fn a_card_that_leads_here_already_is_followed_and_left_alone() {
    let bench = Bench::new();
    let link = bench.path("link");
    let builder = || bench.builder().args(["-listen-qemu", &bench.url("link")]);
    let mut daemon = builder().spawn();
    eventually("the link's socket", PATIENCE, || link.exists().then_some(()));
    let netdev = format!("stream,id=own,server=off,addr.type=unix,addr.path={}", link.display());
    let device = format!("virtio-net-pci,id=card,netdev=own,mac={MAC_TEXT}");
    let mut qemu = bench.qemu(&["-M", "q35", "-S", "-netdev", &netdev, "-device", &device]);
    let status = bench.attached();
    assert_eq!((&status["device"]["id"], &status["device"]["netdev"]), (&json!("card"), &json!("own")));
    let before = qemu.network();
    assert!(has_card(&before, &link) && !before.contains("gvproxy-"), "{before:?}");
    assert!(daemon.terminate().success());
    assert_eq!(qemu.wait_event("NETDEV_STREAM_DISCONNECTED"), json!({"netdev-id": "own"}));
    let after = qemu.network();
    assert!(after.contains("card: ") && after.contains("own: "), "{after:?}");
}

#[test]
fn the_socket_of_listen_qemu_serves_for_machines_too() {
    let bench = Bench::new();
    let mut qemu = bench.qemu(&[PC, &["-S"]].concat());
    let mut daemon = bench.builder().args(["-listen-qemu", &bench.url("link")]).spawn();
    bench.attached();
    let network = qemu.network();
    assert!(has_card(&network, &bench.path("link")), "{network:?}");
    assert!(!bench.path("q.gvproxy").exists());
    // Another hypervisor is served beside it, and its end is not that of the run.
    let mut wire = Wire::plug_into(&bench.path("link"));
    wire.send(&arp(1, MAC, IP, [0; 6], GATEWAY));
    wire.receive(PATIENCE, |frame| frame[6..12] == GATEWAY_MAC).expect("an answer");
    drop(wire);
    assert!(qemu.quit().success());
    bench.machine_until("waiting", |machine| machine["connection"] == "waiting");
    assert!(daemon.is_running());
}

#[test]
fn several_machines_have_cards_of_their_own() {
    let bench = Bench::new();
    let _qemus = ["q", "r"].map(|name| Qemu::start(&bench.path(name), &[PC, &["-S"]].concat()));
    let _daemon = bench.builder().args(["-qmp", &bench.url("r")]).spawn();
    let machines = eventually("two cards", PATIENCE, || {
        let machines = bench.machines()?;
        let up = machines.as_array()?.iter().filter(|machine| machine["device"]["link"] == true).count();
        (up == 2).then_some(machines)
    });
    let mut macs: Vec<_> =
        machines.as_array().unwrap().iter().map(|m| m["device"]["mac"].to_string()).collect();
    macs.sort();
    macs.dedup();
    assert!(macs.len() == 2 && macs.iter().any(|mac| mac.contains(MAC_TEXT)), "{macs:?}");
}

#[test]
fn by_tcp_and_by_a_file() {
    let bench = Bench::new();
    let port = free_port();
    let qmp = format!("tcp:127.0.0.1:{port},server=on,wait=off");
    let mut qemu = bench.qemu(&[PC, &["-S", "-qmp", &qmp]].concat());
    let runtime = bench.path("run");
    std::fs::create_dir(&runtime).unwrap();
    let file =
        format!("qmp:\n- tcp://127.0.0.1:{port}\nexit-with-vm: true\nlisten:\n- {}\n", bench.url("api"));
    std::fs::write(bench.path("c.yaml"), file).unwrap();
    let config = bench.path("c.yaml");
    let mut daemon = Daemon::builder()
        .without_qemu()
        .args(["-config", config.to_str().unwrap()])
        .env("XDG_RUNTIME_DIR", &runtime)
        .spawn();
    let status = bench.attached();
    let socket = PathBuf::from(status["device"]["socket"].as_str().unwrap());
    assert_eq!(socket.parent(), Some(runtime.as_path()));
    let network = qemu.network();
    assert!(has_card(&network, &socket), "{network:?}");
    assert!(qemu.quit().success());
    let status = daemon.wait(PATIENCE).expect("the daemon runs on without its machine");
    assert!(status.success(), "{status}");
    assert!(!socket.exists());
}

/// What `-qmp-status` prints, and its exit status.
fn show(args: &[&str]) -> (String, Option<i32>) {
    let output = std::process::Command::new(binary()).args(args).arg("-qmp-status").output().unwrap();
    let text = [output.stdout, output.stderr].concat();
    (String::from_utf8(text).unwrap(), output.status.code())
}

#[test]
fn status_for_people() {
    let bench = Bench::new();
    let (qmp, api) = (bench.url("q"), bench.url("api"));
    let (text, code) = show(&["-qmp", &qmp]);
    assert!(code == Some(1) && text.contains("connect to unix://"), "{code:?}: {text}");
    let qemu = bench.qemu(&[PC, &["-S"]].concat());
    let machine = format!("{qmp}: empty, QEMU {{}}, pid {}, prelaunch\n", qemu.pid());
    let (text, code) = show(&["-qmp", &qmp]);
    assert!(code == Some(3) && text.starts_with(machine.split_once("{}").unwrap().0), "{code:?}: {text}");
    assert!(text.ends_with(", prelaunch\n  no network card of gvproxy\n"), "{text}");
    let mut daemon = bench.builder().args(["-qmp-keep-device"]).spawn();
    bench.attached();
    let (text, code) = show(&["-qmp", &qmp, "-listen", &api]);
    assert_eq!(code, Some(0), "{text}");
    assert!(text.contains("\n  gvproxy-nic-") && text.ends_with(", link up\n"), "{text}");
    let (text, code) = show(&["-qmp", &qmp]);
    assert!(code == Some(1) && text.contains("serves another client"), "{code:?}: {text}");
    let _hung = UnixListener::bind(bench.path("hung")).unwrap();
    let (text, code) = show(&["-qmp", &qmp, "-listen", &bench.url("hung")]);
    assert!(code == Some(1) && text.contains("no answer within 5s"), "{code:?}: {text}");
    daemon.terminate();
    let (text, code) = show(&["-qmp", &qmp]);
    assert!(code == Some(3) && text.ends_with(", link down\n"), "{code:?}: {text}");
}

/// `-listen-qemu` on a path that is that of a QMP socket.
mod same_path {
    use super::*;

    fn builder(bench: &Bench) -> Builder {
        let api = bench.url("api");
        Daemon::builder().without_qemu().args(["-listen-qemu", &bench.url("q"), "-listen", &api, "-debug"])
    }

    #[test]
    fn works_in_both_orders_and_the_session_is_let_go() {
        for machine in [PC, Q35] {
            for daemon_first in [true, false] {
                let bench = Bench::new();
                let early = daemon_first.then(|| builder(&bench).spawn());
                if daemon_first {
                    eventually("our socket", PATIENCE, || bench.path("q").exists().then_some(()));
                }
                let mut qemu = bench.qemu(&[machine, &["-S"]].concat());
                let mut daemon = early.unwrap_or_else(|| builder(&bench).spawn());
                let status = bench.machine_until("let go", |machine| machine["connection"] == "let-go");
                assert_eq!(status["pid"], qemu.pid());
                let network = qemu.network();
                assert!(has_card(&network, &bench.path("q.gvproxy")), "{network:?}");
                // Whoever needs QMP has it.
                let mut monitor = Monitor::connect(&bench.path("q"));
                monitor.execute("cont", json!({}));
                drop(monitor);
                if daemon_first {
                    assert!(qemu.quit().success());
                    let status = daemon.wait(PATIENCE).expect("the daemon runs on without its machine");
                    assert!(status.success(), "{status}");
                } else {
                    assert!(daemon.terminate().success());
                    assert!(bench.path("q").exists(), "the socket is QEMU's");
                    qemu.execute("system_reset", json!({}));
                    qemu.network_until("nothing", |network| !network.contains("gvproxy"));
                }
                assert!(!bench.path("q.gvproxy").exists());
            }
        }
    }

    #[test]
    fn the_next_machine_is_served_too_where_the_run_goes_on() {
        let bench = Bench::new();
        let mut daemon = builder(&bench).args(["-keep-running"]).spawn();
        eventually("our socket", PATIENCE, || bench.path("q").exists().then_some(()));
        for _ in 0..2 {
            let qemu = bench.qemu(&[PC, &["-S"]].concat());
            bench.machine_until("let go", |machine| machine["connection"] == "let-go");
            qemu.kill();
            eventually("its end", PATIENCE, || (bench.machines()? == json!([])).then_some(()));
        }
        assert!(daemon.terminate().success());
    }

    /// As podman machine 4.3.1 does: it connects, hands the descriptor to QEMU, and QEMU binds its QMP at the
    /// same path, for podman alone.
    #[test]
    fn a_path_is_qemus_where_a_link_came_in_before() {
        let bench = Bench::new();
        let mut daemon = builder(&bench).spawn();
        eventually("our socket", PATIENCE, || bench.path("q").exists().then_some(()));
        let mut wire = Wire::plug_into(&bench.path("q"));
        let hello = arp(1, MAC, IP, [0; 6], GATEWAY);
        wire.send(&hello);
        wire.receive(PATIENCE, |frame| frame[6..12] == GATEWAY_MAC).expect("an answer");

        let mut qemu = bench.qemu(&[PC, &["-S"]].concat());
        let mut podman = Monitor::connect(&bench.path("q"));
        podman.execute("query-status", json!({}));
        drop(podman);
        // A client that took the monitor in between would be served before this one.
        let mut podman = Monitor::connect(&bench.path("q"));
        wire.send(&hello);
        wire.receive(PATIENCE, |frame| frame[6..12] == GATEWAY_MAC).expect("an answer");
        assert_eq!(bench.machines(), Some(json!([])));
        assert_eq!(qemu.network(), "");
        podman.execute("query-status", json!({}));
        assert!(daemon.terminate().success());
        assert!(bench.path("q").exists(), "the socket is QEMU's");
        drop(podman);
        Monitor::connect(&bench.path("q"));
    }

    #[test]
    fn a_path_that_somebody_else_serves_is_an_error() {
        let bench = Bench::new();
        let listener = UnixListener::bind(bench.path("q")).unwrap();
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let mut stream = stream.unwrap();
                let _ = stream.write_all(b"{\"hello\": 1}\n");
            }
        });
        let mut daemon = builder(&bench).spawn();
        let status = daemon.wait(PATIENCE).expect("the daemon runs");
        assert_eq!(status.code(), Some(1));
        let text = format!("\\\"{}\\\" already exists and is in use", bench.path("q").display());
        assert!(daemon.stderr().contains(&text), "{}", daemon.stderr());
    }

    /// It would take a connection for its virtual machine, and the end of that for the machine's.
    #[test]
    fn another_gvproxy_is_not_connected_to() {
        let bench = Bench::new();
        let mut first = builder(&bench).spawn();
        eventually("its socket", PATIENCE, || bench.path("q").exists().then_some(()));
        let mut second = Daemon::builder().without_qemu().args(["-listen-qemu", &bench.url("q")]).spawn();
        assert_eq!(second.wait(PATIENCE).expect("its end").code(), Some(1));
        assert!(second.stderr().contains("already exists and is in use"), "{}", second.stderr());
        assert!(first.is_running() && !first.stderr().contains("connected"), "{}", first.stderr());
    }

    /// A daemon that lost its path to another one says so, and serves the machine that has it in the end.
    #[test]
    fn a_path_that_another_gvproxy_takes_over_is_told_of() {
        let bench = Bench::new();
        let mut first = builder(&bench).spawn();
        eventually("its socket", PATIENCE, || bench.path("q").exists().then_some(()));
        std::fs::remove_file(bench.path("q")).unwrap();
        let mut second = Daemon::builder().without_qemu().args(["-listen-qemu", &bench.url("q")]).spawn();
        first.log_with("another gvproxy has it now");
        assert!(second.terminate().success());
        assert!(!second.stderr().contains("connected"), "{}", second.stderr());
        let _qemu = bench.qemu(&[Q35, &["-S"]].concat());
        bench.machine_until("let go", |machine| machine["connection"] == "let-go");
        assert!(first.terminate().success());
    }

    /// With -qmp the session is kept.
    #[test]
    fn a_session_that_is_asked_for_is_kept() {
        let bench = Bench::new();
        let _qemu = bench.qemu(&[PC, &["-S"]].concat());
        let daemon = builder(&bench).args(["-qmp", &bench.url("q")]).spawn();
        let status = bench.attached();
        assert_eq!(status["connection"], "connected");
        let stream = UnixStream::connect(bench.path("q")).unwrap();
        stream.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
        let mut greeting = String::new();
        assert!(BufReader::new(stream).read_line(&mut greeting).is_err(), "{greeting}");
        drop(daemon);
    }
}

#[test]
fn an_attached_machine_costs_nothing_while_nothing_happens() {
    let bench = Bench::new();
    let _qemu = bench.qemu(&[PC, &["-S"]].concat());
    let daemon = bench.builder().spawn();
    bench.attached();
    // What was begun is to end first.
    let quiet = eventually("a second without a wake", PATIENCE, || {
        let before = daemon.sleeps();
        std::thread::sleep(Duration::from_secs(1));
        let woken = daemon.sleeps() - before;
        (woken == 0).then_some(woken)
    });
    assert_eq!(quiet, 0);
}
