//! A QEMU that misbehaves, by script: slow, silent, garbage, half and huge lines, refusals, the end at each
//! step. Nothing may hang, and nothing may be left half attached. What the real one does is in `qmp.rs`.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helper fails like the test")]

use std::collections::BTreeMap;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use serde_json::{Value, json};
use testkit::daemon::Daemon;
use testkit::eventually;

testkit::agent_in_a_namespace!();

/// Two time-outs of a command, and the pauses between attempts.
const PATIENCE: Duration = Duration::from_secs(60);

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// QEMU says no.
    Refuse,
    /// The connection ends instead of the reply; the command was carried out, or not.
    Close { done: bool },
    /// Something else comes.
    Garbage,
    /// The reply of another command.
    OutOfTurn,
    /// The reply has another type.
    Shape,
    /// Half of the reply, and the end.
    Half,
    /// A line without an end.
    Huge,
    /// Nothing more comes in this session; the command was carried out, or not.
    Silence { done: bool },
    /// Byte by byte.
    Slow,
}

/// When.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Script {
    /// At this command; `greeting` is before the first one.
    at: &'static str,
    fault: Fault,
    /// Each time, and not only the first.
    always: bool,
}

/// What the machine has.
#[derive(Debug, Default)]
struct Machine {
    /// The socket that each netdev is connected to, for as long as it stands.
    netdevs: BTreeMap<String, UnixStream>,
    paths: BTreeMap<String, String>,
    /// Card, netdev and address.
    cards: BTreeMap<String, (String, String)>,
    faults: usize,
    /// Firmware runs, or nothing: whatever is to be taken out stays.
    has_no_system: bool,
    /// The sessions that there were.
    sessions: Vec<UnixStream>,
}

impl Machine {
    fn is_attached(&self) -> bool {
        self.netdevs.len() == 1
            && self.cards.len() == 1
            && self.cards.values().all(|(netdev, _)| self.netdevs.contains_key(netdev))
    }

    /// Whether a card's netdev is connected to somebody who is still there.
    fn is_linked(&self) -> bool {
        self.is_attached()
            && self.netdevs.values().all(|stream| {
                stream.set_nonblocking(true).unwrap();
                (&mut &*stream).take(1 << 20).read_to_end(&mut Vec::new()).is_err()
            })
    }

    fn is_clean(&self) -> bool {
        self.netdevs.is_empty() && self.cards.is_empty()
    }

    fn network(&self) -> String {
        let netdev = |id: &str| match self.paths.get(id) {
            Some(path) => format!("{id}: index=0,type=stream,unix:{path}\r\n"),
            None => String::new(),
        };
        let mut text = String::new();
        for (id, (behind, mac)) in &self.cards {
            text += &format!(
                "{id}: index=0,type=nic,model=virtio-net-pci,macaddr={mac}\r\n \\ {}",
                netdev(behind)
            );
        }
        let used = |id: &String| self.cards.values().any(|(netdev, _)| netdev == id);
        text + &self.paths.keys().filter(|id| !used(id)).map(|id| netdev(id)).collect::<String>()
    }

    /// Carries a command out: the reply, or QEMU's reason, and the events before it.
    fn execute(&mut self, command: &str, arguments: &Value) -> (Result<Value, &'static str>, Vec<Value>) {
        let text = |field: &str| arguments[field].as_str().unwrap_or_default().to_owned();
        let mut events = Vec::new();
        let result = match command {
            "query-status" => Ok(json!({"status": "running", "running": true, "singlestep": false})),
            "query-name" => Ok(json!({"name": "scripted"})),
            "human-monitor-command" => Ok(json!(self.network())),
            "qom-list" => Ok(match text("path").as_str() {
                "/machine" => json!([{"name": "i440fx", "type": "child<i440FX-pcihost>"}]),
                "/machine/i440fx" => json!([{"name": "pci.0", "type": "child<PCI>"}]),
                _ => json!([]),
            }),
            "qom-get" => Ok(match text("property").as_str() {
                "addr" => json!(24),
                _ => json!("/machine/handler"),
            }),
            "query-pci" => Ok(json!([{"bus": 0, "devices": []}])),
            "netdev_add" => {
                let path = arguments["addr"]["path"].as_str().unwrap_or_default();
                match UnixStream::connect(path) {
                    Ok(stream) => {
                        events.push(
                            json!({"event": "NETDEV_STREAM_CONNECTED", "data": {"netdev-id": text("id"),
                            "addr": {"type": "unix", "path": path}}}),
                        );
                        self.netdevs.insert(text("id"), stream);
                        self.paths.insert(text("id"), path.to_owned());
                        Ok(json!({}))
                    }
                    Err(_) => Err("cannot connect"),
                }
            }
            "device_add" if self.paths.contains_key(&text("netdev")) => {
                self.cards.insert(text("id"), (text("netdev"), text("mac")));
                Ok(json!({}))
            }
            "device_add" => Err("no such netdev"),
            "device_del" if self.has_no_system && self.cards.contains_key(&text("id")) => Ok(json!({})),
            "device_del" if self.cards.remove(&text("id")).is_some() => {
                events.push(json!({"event": "DEVICE_DELETED", "data": {"device": text("id"), "path": "/"}}));
                Ok(json!({}))
            }
            "netdev_del" if self.paths.remove(&text("id")).is_some() => {
                self.netdevs.remove(&text("id"));
                Ok(json!({}))
            }
            "device_del" | "netdev_del" => Err("not found"),
            _ => Ok(json!({})),
        };
        (result, events)
    }
}

/// The scripted QEMU, and the daemon that is to give it a card.
struct Bench {
    dir: tempfile::TempDir,
    machine: Arc<Mutex<Machine>>,
}

impl Bench {
    fn new(script: Option<Script>) -> Self {
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        let machine = Arc::new(Mutex::new(Machine::default()));
        let listener = UnixListener::bind(dir.path().join("q")).unwrap();
        let shared = Arc::clone(&machine);
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let machine = Arc::clone(&shared);
                std::thread::spawn(move || session(stream.unwrap(), &machine, script));
            }
        });
        Self { dir, machine }
    }

    fn path(&self) -> PathBuf {
        self.dir.path().join("q")
    }

    fn daemon(&self) -> Daemon {
        self.daemon_told_by("-qmp")
    }

    fn daemon_told_by(&self, flag: &str) -> Daemon {
        Daemon::builder().without_qemu().args([flag, &format!("unix://{}", self.path().display())]).spawn()
    }

    /// Reports an event.
    fn tell(&self, event: &str) {
        let machine = self.machine.lock().unwrap();
        let _ = writeln!(&mut machine.sessions.last().expect("a session"), "{event}");
    }

    #[track_caller]
    fn machine_until(&self, what: &str, wanted: impl Fn(&Machine) -> bool) {
        eventually(what, PATIENCE, || wanted(&self.machine.lock().unwrap()).then_some(()));
    }
}

/// One session, to its end; what cannot be sent because the daemon left is no error.
fn session(stream: UnixStream, machine: &Mutex<Machine>, script: Option<Script>) {
    let mut out = stream.try_clone().unwrap();
    machine.lock().unwrap().sessions.push(stream.try_clone().unwrap());
    let due = |at: &str| {
        let mut machine = machine.lock().unwrap();
        let due = script.filter(|script| script.at == at && (script.always || machine.faults == 0));
        machine.faults += usize::from(due.is_some());
        due.map(|script| script.fault)
    };
    let version = json!({"qemu": {"major": 7, "minor": 2, "micro": 22}, "package": ""});
    let greeting = json!({"QMP": {"version": version, "capabilities": ["oob"]}});
    if !send(&mut out, &greeting, due("greeting")) {
        return;
    }
    for line in BufReader::new(stream).lines().map_while(Result::ok) {
        let message: Value = serde_json::from_str(&line).unwrap();
        let command = message["execute"].as_str().unwrap();
        let fault = due(command);
        let (mut result, mut events) = (Ok(json!({})), Vec::new());
        match fault {
            Some(Fault::Refuse) => result = Err("not today"),
            Some(Fault::Close { done: false } | Fault::Silence { done: false }) => {}
            _ => (result, events) = machine.lock().unwrap().execute(command, &message["arguments"]),
        }
        for event in events {
            let _ = writeln!(out, "{event}");
        }
        let class = if result == Err("not found") { "DeviceNotFound" } else { "GenericError" };
        let reply = match result {
            Ok(_) if fault == Some(Fault::Shape) => json!({"return": 7, "id": message["id"]}),
            Ok(_) if fault == Some(Fault::OutOfTurn) => json!({"return": {}, "id": 1_000_000}),
            Ok(value) => json!({"return": value, "id": message["id"]}),
            Err(desc) => json!({"error": {"class": class, "desc": desc}, "id": message["id"]}),
        };
        if !send(&mut out, &reply, fault) {
            return;
        }
    }
}

/// Whether the session goes on.
fn send(out: &mut UnixStream, message: &Value, fault: Option<Fault>) -> bool {
    let line = format!("{message}\r\n");
    match fault {
        Some(Fault::Close { .. }) => {
            let _ = out.shutdown(std::net::Shutdown::Both);
            return false;
        }
        Some(Fault::Silence { .. }) => {
            // Until the daemon has enough of it.
            let _ = std::io::copy(&mut &*out, &mut std::io::sink());
            return false;
        }
        Some(Fault::Garbage) => drop(out.write_all(b"HTTP/1.1 400 Bad Request\r\n\xff\xfe\r\n")),
        Some(Fault::Half) => {
            let _ = out.write_all(&line.as_bytes()[..line.len() / 2]);
            let _ = out.shutdown(std::net::Shutdown::Both);
            return false;
        }
        Some(Fault::Huge) => drop(out.write_all(&vec![b'x'; 2 << 20])),
        Some(Fault::Slow) => {
            for byte in line.as_bytes() {
                let _ = out.write_all(&[*byte]);
                std::thread::sleep(Duration::from_millis(2));
            }
        }
        _ => drop(out.write_all(line.as_bytes())),
    }
    true
}

/// Every command that is needed to attach, in the order in which they come.
const NEEDED: [&str; 5] = ["human-monitor-command", "qom-list", "query-pci", "netdev_add", "device_add"];
/// What the daemon can do without.
const SPARE: [&str; 4] = ["query-name", "query-status", "migrate-set-capabilities", "qom-get"];

fn each(scripts: impl IntoIterator<Item = Script>, check: impl Fn(Script) + Sync) {
    std::thread::scope(|scope| {
        let check = &check;
        let running: Vec<_> =
            scripts.into_iter().map(|script| (script, scope.spawn(move || check(script)))).collect();
        for (script, thread) in running {
            assert!(thread.join().is_ok(), "{script:?}");
        }
    });
}

/// After a fault that passes the machine has its card, and loses it at the end.
#[track_caller]
fn recovers(script: Script) {
    let bench = Bench::new(Some(script));
    let mut daemon = bench.daemon();
    bench.machine_until("the fault", |machine| machine.faults > 0);
    if matches!(script.fault, Fault::Silence { .. }) {
        bench.machine_until("another session", |machine| machine.sessions.len() > 1);
    }
    bench.machine_until("an attached machine", Machine::is_attached);
    assert!(daemon.terminate().success());
    let machine = bench.machine.lock().unwrap();
    assert!(machine.is_clean(), "{machine:?}");
}

#[track_caller]
fn says_attached(daemon: &Daemon) {
    eventually("an attached machine in the log", PATIENCE, || {
        daemon.stderr().contains("virtual machine attached").then_some(())
    });
}

fn once(commands: &[&'static str], faults: &[Fault]) -> Vec<Script> {
    let at = |at: &&'static str| faults.iter().map(move |fault| (*at, *fault)).collect::<Vec<_>>();
    commands.iter().flat_map(at).map(|(at, fault)| Script { at, fault, always: false }).collect()
}

#[test]
fn the_end_at_each_step() {
    let faults = [Fault::Close { done: false }, Fault::Close { done: true }, Fault::Half];
    for command in NEEDED.iter().chain(&SPARE).chain(&["greeting", "qmp_capabilities"]) {
        each(once(&[command], &faults), recovers);
    }
}

#[test]
fn nonsense_at_each_step() {
    let faults = [Fault::Garbage, Fault::Huge, Fault::OutOfTurn, Fault::Shape, Fault::Slow];
    for command in NEEDED {
        each(once(&[command], &faults), recovers);
    }
    each(once(&["greeting", "qmp_capabilities"], &[Fault::Garbage, Fault::Huge, Fault::Slow]), recovers);
}

#[test]
fn silence_at_each_step() {
    let faults = [Fault::Silence { done: false }, Fault::Silence { done: true }];
    each(once(&NEEDED, &faults), recovers);
    each(once(&["greeting", "qmp_capabilities"], &faults[..1]), recovers);
}

/// The path of `-listen-qemu` is a QMP socket's: what the daemon was told is the same, and it goes on as
/// patiently.
#[test]
fn silence_at_each_step_to_who_found_the_socket() {
    let faults = [Fault::Silence { done: false }, Fault::Silence { done: true }];
    each(once(&NEEDED, &faults), |script| {
        let bench = Bench::new(Some(script));
        let mut daemon = bench.daemon_told_by("-listen-qemu");
        bench.machine_until("the fault", |machine| machine.faults > 0);
        says_attached(&daemon);
        bench.machine_until("a machine with a link", Machine::is_linked);
        assert!(daemon.terminate().success());
        let machine = bench.machine.lock().unwrap();
        assert!(machine.is_clean(), "{machine:?}");
    });
}

/// The reply comes too late, and no system is there yet that would let go of a card: the one that came is the
/// machine's.
#[test]
fn a_card_that_came_without_a_reply_keeps_its_link() {
    let script = Script { at: "device_add", fault: Fault::Silence { done: true }, always: false };
    std::thread::scope(|scope| {
        for flag in ["-qmp", "-listen-qemu"] {
            scope.spawn(move || {
                let bench = Bench::new(Some(script));
                bench.machine.lock().unwrap().has_no_system = true;
                let daemon = bench.daemon_told_by(flag);
                bench.machine_until("the fault", |machine| machine.faults > 0);
                says_attached(&daemon);
                let machine = bench.machine.lock().unwrap();
                assert!(machine.is_linked(), "{flag}: {machine:?}");
            });
        }
    });
}

#[test]
fn a_refusal_that_passes() {
    each(once(&NEEDED, &[Fault::Refuse]), recovers);
}

#[test]
fn a_refusal_that_stays_leaves_nothing_behind() {
    let scripts = NEEDED.map(|at| Script { at, fault: Fault::Refuse, always: true });
    each(scripts, |script| {
        let bench = Bench::new(Some(script));
        let mut daemon = bench.daemon();
        bench.machine_until("several attempts", |machine| machine.faults > 3);
        bench.machine_until("nothing left", Machine::is_clean);
        let log = daemon.log_with("cannot attach the virtual machine");
        // What is said again and again is logged once.
        assert_eq!(log.matches("cannot attach the virtual machine").count(), 1, "{log}");
        assert!(log.contains(script.at) || script.at.starts_with("qom"), "{log}");
        assert!(daemon.terminate().success());
        assert!(bench.machine.lock().unwrap().is_clean());
    });
}

#[test]
fn a_refusal_of_what_is_not_needed_is_of_no_account() {
    each(SPARE.map(|at| Script { at, fault: Fault::Refuse, always: at != "qom-get" }), recovers);
}

/// The run's end is bounded however QEMU takes it.
#[test]
fn nobody_who_is_silent_holds_up_the_end() {
    for at in ["set_link", "device_del", "netdev_del"] {
        for fault in
            [Fault::Silence { done: false }, Fault::Refuse, Fault::Close { done: false }, Fault::Huge]
        {
            let bench = Bench::new(Some(Script { at, fault, always: true }));
            let mut daemon = bench.daemon();
            bench.machine_until("an attached machine", Machine::is_attached);
            assert!(daemon.terminate().success(), "{at} {fault:?}");
            assert!(!Path::new(&format!("{}.gvproxy", bench.path().display())).exists());
        }
    }
}

#[test]
fn a_link_that_breaks_is_made_anew() {
    let bench = Bench::new(None);
    let _daemon = bench.daemon();
    for _ in 0..3 {
        bench.machine_until("an attached machine", Machine::is_attached);
        let id = {
            let mut machine = bench.machine.lock().unwrap();
            let id = machine.netdevs.keys().next().unwrap().clone();
            machine.netdevs.clear();
            machine.paths.insert(id.clone(), String::new());
            id
        };
        let data = json!({"netdev-id": id});
        bench.tell(&json!({"event": "NETDEV_STREAM_DISCONNECTED", "data": data}).to_string());
    }
    bench.machine_until("an attached machine", Machine::is_attached);
}

#[test]
fn a_card_that_somebody_takes_out_stays_out() {
    let bench = Bench::new(None);
    let mut daemon = bench.daemon();
    bench.machine_until("an attached machine", Machine::is_attached);
    let (id, _) = bench.machine.lock().unwrap().cards.pop_first().unwrap();
    bench.tell(&json!({"event": "DEVICE_DELETED", "data": {"device": id, "path": "/"}}).to_string());
    bench.machine_until("no netdev without its card", Machine::is_clean);
    eventually("a word about it", PATIENCE, || {
        daemon.stderr().contains("took the network card out").then_some(())
    });
    assert!(daemon.terminate().success());
}

#[test]
fn events_of_any_shape_and_number() {
    let bench = Bench::new(None);
    let mut daemon = bench.daemon();
    bench.machine_until("an attached machine", Machine::is_attached);
    for event in [
        json!({"event": "OF_TOMORROW", "data": [1, {"a": null}]}),
        json!({"event": "SHUTDOWN", "data": {"guest": "maybe", "reason": 7}}),
        json!({"event": "SHUTDOWN"}),
        json!({"event": "MIGRATION", "data": {"status": "tea-break"}}),
        json!({"event": "MIGRATION", "data": {"status": "completed"}}),
        json!({"event": "NETDEV_STREAM_DISCONNECTED", "data": {}}),
        json!({"event": "DEVICE_DELETED", "data": 1}),
        json!({"event": "GUEST_PANICKED", "data": {"action": "run"}}),
        json!({"event": "STOP", "timestamp": "now"}),
    ] {
        bench.tell(&event.to_string());
    }
    // As a guest can bring them about.
    for _ in 0..10_000 {
        bench.tell(r#"{"event": "RESET", "data": {"guest": true, "reason": "guest-reset"}}"#);
    }
    assert!(daemon.terminate().success());
    assert!(bench.machine.lock().unwrap().is_clean());
    let log = daemon.stderr();
    assert!(log.contains("virtual machine migrated") && log.lines().count() < 60, "{log}");
}
