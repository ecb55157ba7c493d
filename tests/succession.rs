//! A gvproxy that was left over from a run before, and the next one with the same paths, as a machine manager
//! that was killed and started again makes them; and who else has a path.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::fs;
use std::io::Write as _;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use rustix::net::sockopt::socket_peercred;
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, SockAddr, Socket, Type};
use testkit::daemon::{Builder, Daemon, binary, is_peer};
use testkit::ns::Namespace;
use testkit::{eventually, free_port, tool};

testkit::agent_in_a_namespace!();

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");
const PATIENCE: Duration = Duration::from_secs(10);
/// What a user of the host finds a machine by.
const TAKEN: [&str; 3] = ["api", "forward", "services"];

/// What a machine manager names to each gvproxy of one machine.
struct Machine(tempfile::TempDir);

impl Machine {
    fn new() -> Self {
        let machine = Self(tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap());
        let keygen = Command::new(tool("ssh-keygen", "openssh-client"))
            .args(["-q", "-t", "ed25519", "-N", "", "-f"])
            .arg(machine.path("key"))
            .status();
        assert!(keygen.unwrap().success());
        fs::remove_file(machine.path("key.pub")).unwrap();
        machine
    }

    fn path(&self, name: &str) -> PathBuf {
        self.0.path().join(name)
    }

    fn gvproxy(&self, program: impl Into<PathBuf>) -> Builder {
        let words = "-listen-qemu unix://@/qemu -listen unix://@/api -services unix://@/services -pid-file @/pid \
            -forward-sock @/forward -forward-dest /run/podman.sock -forward-user root -forward-identity @/key";
        let words = words.replace("@/", &format!("{}/", self.0.path().display()));
        let words: Vec<_> = words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
        Daemon::builder().without_qemu().binary(program).args(words)
    }

    /// Starts one, and waits until all of its sockets are its own.
    #[track_caller]
    fn start(&self, builder: Builder) -> Daemon {
        let mut daemon = builder.spawn();
        for name in ["qemu", "api", "forward", "services"] {
            eventually(&format!("its socket {name}"), PATIENCE, || {
                assert!(daemon.is_running(), "it has ended: {}", daemon.stderr());
                let is_its = match name {
                    // Whoever connects there is its virtual machine; and the one before may have left a file.
                    "qemu" if is_peer() => self.path(name).exists(),
                    "qemu" => daemon.stderr().contains("waiting for the virtual machine"),
                    _ => self.owner(name) == Some(daemon.pid()),
                };
                is_its.then_some(())
            });
        }
        daemon
    }

    /// Who listens there.
    fn owner(&self, name: &str) -> Option<u32> {
        let stream = UnixStream::connect(self.path(name)).ok()?;
        Some(socket_peercred(&stream).unwrap().pid.as_raw_pid().cast_unsigned())
    }

    fn names(&self) -> Vec<String> {
        let entries = fs::read_dir(self.0.path()).unwrap();
        let mut names: Vec<_> =
            entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
        names.sort();
        names
    }

    /// What is wrong with the last one's files, which the end of the one before may not have touched.
    #[track_caller]
    fn assert_all_of(&self, daemon: &Daemon) {
        for name in TAKEN {
            assert_eq!(self.owner(name), Some(daemon.pid()), "{name}");
        }
        assert_eq!(fs::read_to_string(self.path("pid")).unwrap(), daemon.pid().to_string());
        assert_eq!(self.names(), ["api", "forward", "key", "pid", "qemu", "services"]);
    }
}

#[track_caller]
fn assert_told(daemon: &Daemon, path: &PathBuf, what: &str, pid: impl std::fmt::Display) {
    let is_it = |line: &&str| {
        line.contains(what) && line.contains(&path.display().to_string()) && line.contains(&pid.to_string())
    };
    let count = || daemon.stderr().lines().filter(is_it).count();
    // A line of the log is written behind what it tells.
    eventually(&format!("{what:?} of {path:?}, with {pid}"), PATIENCE, || (count() > 0).then_some(()));
    assert_eq!(count(), 1, "want {what:?} of {path:?} once, with {pid}: {}", daemon.stderr());
}

const TAKING: &str = "taking over the socket of another gvproxy";
const LOST: &str = "another process has taken over the socket's path";
const REMOVED: &str = "the socket's file was removed";

#[test]
fn what_a_gvproxy_left_over_has_is_taken_over_and_it_ends() {
    let machine = Machine::new();
    // With GVPROXY=/path the one left over is of another make.
    let mut before = machine.start(machine.gvproxy(binary()));
    // podman removes this one, and no other.
    fs::remove_file(machine.path("qemu")).unwrap();
    let mut next = machine.start(machine.gvproxy(OURS));
    for name in TAKEN {
        assert_told(&next, &machine.path(name), TAKING, before.pid());
    }
    if !is_peer() {
        let status = before.wait(PATIENCE).expect("the end of the one before");
        assert!(status.success(), "{status}: {}", before.stderr());
        for name in TAKEN {
            assert_told(&before, &machine.path(name), LOST, next.pid());
        }
    }
    machine.assert_all_of(&next);
    assert!(next.terminate().success());
    assert_eq!(machine.names(), ["key"]);
}

#[test]
fn it_ends_when_its_virtual_machine_has_left() {
    for words in [&[][..], &["-keep-running"]] {
        let machine = Machine::new();
        let mut before = machine.start(machine.gvproxy(OURS).args(words));
        let vm = UnixStream::connect(machine.path("qemu")).unwrap();
        eventually("the machine", PATIENCE, || {
            before.stderr().contains("virtual machine connected").then_some(())
        });
        fs::remove_file(machine.path("qemu")).unwrap();
        let next = machine.start(machine.gvproxy(OURS));
        eventually("its word on each path", PATIENCE, || {
            (before.stderr().matches(LOST).count() == TAKEN.len()).then_some(())
        });
        // Its machine has its network as before.
        assert_eq!(before.wait(Duration::from_millis(300)), None, "{}", before.stderr());
        drop(vm);
        let status = before.wait(PATIENCE).expect("its end with its virtual machine");
        assert!(status.success(), "{status}: {}", before.stderr());
        machine.assert_all_of(&next);
    }
}

#[test]
fn it_goes_on_while_it_has_a_way_in() {
    let machine = Machine::new();
    let mut before = machine.start(machine.gvproxy(OURS).args(["-keep-running"]));
    let words = ["-listen".to_owned(), format!("unix://{}", machine.path("api").display())];
    let next = Daemon::builder().binary(OURS).args(words).start();
    eventually("its word", PATIENCE, || before.stderr().contains(LOST).then_some(()));
    eventually("the next one's API", PATIENCE, || (machine.owner("api") == Some(next.pid())).then_some(()));
    assert_eq!(before.wait(Duration::from_millis(300)), None, "{}", before.stderr());
    assert_eq!(machine.owner("forward"), Some(before.pid()));
    let _vm = UnixStream::connect(machine.path("qemu")).unwrap();
    eventually("a machine of its own", PATIENCE, || {
        before.stderr().contains("virtual machine connected").then_some(())
    });
}

#[test]
fn a_virtual_machines_socket_is_not_taken_and_then_nothing_is() {
    let machine = Machine::new();
    let mut before = machine.start(machine.gvproxy(OURS));
    let mut next = machine.gvproxy(OURS).spawn();
    let status = next.wait(PATIENCE).expect("an end");
    let want = format!("qemu\\\" already exists and is in use (by gvproxy, pid {})", before.pid());
    assert!(status.code() == Some(1) && next.stderr().contains(&want), "{status}: {}", next.stderr());
    for name in TAKEN {
        assert_eq!(machine.owner(name), Some(before.pid()), "{name}");
    }
    assert!(before.terminate().success(), "{}", before.stderr());
}

/// As a supervisor does at once. What was killed has its sockets and ports until its system is done with it.
#[test]
fn one_that_is_killed_or_told_to_end_is_followed_at_once() {
    let machine = Machine::new();
    let port = free_port();
    let (ssh_port, listen) = (port.to_string(), format!("tcp://127.0.0.1:{}", free_port()));
    let gvproxy = || machine.gvproxy(OURS).args(["-ssh-port", &ssh_port, "-listen", &listen]);
    let mut before = machine.start(gvproxy());
    for round in 0..40 {
        let signal = if round % 4 == 0 { Signal::TERM } else { Signal::KILL };
        kill_process(Pid::from_raw(before.pid().cast_signed()).unwrap(), signal).unwrap();
        let next = machine.start(gvproxy());
        before.wait(PATIENCE).expect("the end of the one before");
        machine.assert_all_of(&next);
        before = next;
    }
    assert!(before.terminate().success());
    assert_eq!(machine.names(), ["key"]);
}

#[test]
fn of_two_at_once_one_has_everything() {
    for round in 0..10 {
        let machine = Machine::new();
        let left_over = (round % 2 == 0).then(|| machine.start(machine.gvproxy(OURS)));
        let _ = fs::remove_file(machine.path("qemu"));
        let mut both = [(); 2].map(|()| machine.gvproxy(OURS).spawn());
        let ended =
            eventually("the end of one", PATIENCE, || both.iter_mut().position(|one| !one.is_running()));
        let [first, second] = &mut both;
        let (winner, loser) = if ended == 0 { (second, first) } else { (first, second) };
        let why = loser.stderr();
        assert!(why.contains("in use"), "round {round}: {why}");
        for name in TAKEN {
            eventually(&format!("round {round}: {name} of the other one"), PATIENCE, || {
                assert!(winner.is_running(), "{}{why}", winner.stderr());
                (machine.owner(name) == Some(winner.pid())).then_some(())
            });
        }
        assert!(machine.path("qemu").exists());
        assert_eq!(
            fs::read_to_string(machine.path("pid")).unwrap(),
            winner.pid().to_string(),
            "round {round}"
        );
        if let Some(mut left_over) = left_over {
            left_over.wait(PATIENCE).expect("the end of the one left over");
        }
        assert!(winner.is_running(), "{}", winner.stderr());
    }
}

#[test]
fn what_another_program_has_stays_with_it() {
    let machine = Machine::new();
    for name in TAKEN {
        let listener = UnixListener::bind(machine.path(name)).unwrap();
        let mut daemon = machine.gvproxy(OURS).spawn();
        let status = daemon.wait(PATIENCE).expect("an end");
        let log = daemon.stderr();
        let (want, pid) = (format!("{name}\\\" already exists and is in use (by "), std::process::id());
        assert!(status.code() == Some(1), "{status}: {log}");
        assert!(log.contains(&want) && log.contains(&format!(", pid {pid})")), "{log}");
        listener.set_nonblocking(true).unwrap();
        assert!(listener.accept().is_err(), "whoever listens there has seen a connection");
        fs::remove_file(machine.path(name)).unwrap();
    }
}

/// Whoever listens at the virtual machine's path may be QEMU, and is asked: one that says a little at a time,
/// and one that takes nobody.
#[test]
fn one_that_is_no_qemu_is_not_waited_for() {
    let machine = Machine::new();
    let path = machine.path("qemu");
    let start = || {
        let start = Instant::now();
        fails(&mut machine.gvproxy(OURS).spawn(), "qemu\\\" already exists and is in use (by ");
        assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
    };
    let listener = UnixListener::bind(&path).unwrap();
    let drips = std::thread::spawn(move || {
        let (mut stream, _) = listener.accept().unwrap();
        while stream.write_all(b" ").is_ok() {
            std::thread::sleep(Duration::from_millis(200));
        }
    });
    start();
    drips.join().unwrap();
    fs::remove_file(&path).unwrap();
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::unix(&path).unwrap()).unwrap();
    socket.listen(0).unwrap();
    let _full = UnixStream::connect(&path).unwrap();
    start();
}

#[test]
fn what_a_gvproxy_has_that_cannot_be_seen_stays_with_it() {
    let machine = Machine::new();
    let mut before = machine.start(machine.gvproxy(OURS));
    fs::remove_file(machine.path("qemu")).unwrap();
    // As a user who may not look at other users' processes.
    let unshare = tool("unshare", "util-linux").display().to_string();
    let blind = "mount -t tmpfs none /proc && exec \"$@\"";
    let words = [&unshare, "--user", "--map-root-user", "--mount", "sh", "-c", blind, "sh"];
    let mut next = machine.gvproxy(OURS).through(words).spawn();
    let status = next.wait(PATIENCE).expect("an end");
    let log = next.stderr();
    assert!(status.code() == Some(1) && log.contains("already exists and is in use"), "{status}: {log}");
    for name in TAKEN {
        assert_eq!(machine.owner(name), Some(before.pid()), "{name}");
    }
    assert!(before.terminate().success(), "{}", before.stderr());
}

#[test]
fn a_path_that_is_only_removed_ends_nothing() {
    let machine = Machine::new();
    let mut daemon = machine.start(machine.gvproxy(OURS));
    for name in ["qemu", "api", "forward", "services"] {
        fs::remove_file(machine.path(name)).unwrap();
    }
    assert_eq!(daemon.wait(Duration::from_millis(300)), None, "{}", daemon.stderr());
    assert!(!daemon.stderr().contains(LOST), "{}", daemon.stderr());
    for name in TAKEN {
        assert_told(&daemon, &machine.path(name), REMOVED, "");
    }
    // Whoever binds them later has taken them.
    let _others = TAKEN.map(|name| UnixListener::bind(machine.path(name)).unwrap());
    let status = daemon.wait(PATIENCE).expect("its end");
    assert!(status.success(), "{status}: {}", daemon.stderr());
    assert_eq!(machine.names(), ["api", "forward", "key", "services"]);
}

/// Starts one in the machine's directory with `words`, in which `@` stands for it.
fn spawn(machine: &Machine, words: &str) -> Daemon {
    let words = words.replace('@', &machine.0.path().display().to_string());
    let words: Vec<_> = words.split(' ').filter(|word| !word.is_empty()).map(str::to_owned).collect();
    let directory = machine.0.path().display().to_string();
    Daemon::builder().without_qemu().binary(OURS).through(["env", "-C", &directory]).args(words).spawn()
}

#[track_caller]
fn fails(daemon: &mut Daemon, why: &str) {
    let status = daemon.wait(PATIENCE).expect("an end");
    assert!(status.code() == Some(1) && daemon.stderr().contains(why), "{status}: {}", daemon.stderr());
}

#[test]
fn a_start_that_fails_takes_nothing() {
    let machine = Machine::new();
    let [port, ssh] = [free_port(), free_port()];
    let flags = "-listen unix://@/api -pid-file @/pid";
    let abstract_socket =
        format!("-forward-dest unix:///none -forward-sock @gvproxy-test-{}", std::process::id());
    for what in [format!("-services tcp://127.0.0.1:{port}"), format!("-ssh-port {ssh}"), abstract_socket] {
        let words = format!("{} {what}", flags.replace('@', &machine.0.path().display().to_string()));
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let start = || Daemon::builder().without_qemu().binary(OURS).args(&words).spawn();
        let mut before = start();
        eventually("its API", PATIENCE, || (machine.owner("api") == Some(before.pid())).then_some(()));
        for _ in 0..2 {
            fails(&mut start(), "address already in use");
            assert_eq!(machine.owner("api"), Some(before.pid()), "{what}");
            assert_eq!(fs::read_to_string(machine.path("pid")).unwrap(), before.pid().to_string(), "{what}");
        }
        assert!(before.is_running() && !before.stderr().contains(LOST), "{}", before.stderr());
        assert!(before.terminate().success());
        assert_eq!(machine.names(), ["key"]);
    }
    // What the next one wants besides is another program's, or cannot be made.
    let mut before = spawn(&machine, flags);
    eventually("its API", PATIENCE, || (machine.owner("api") == Some(before.pid())).then_some(()));
    let _other = UnixListener::bind(machine.path("other")).unwrap();
    for (more, why) in [
        ("-services unix://@/other", "other\\\" already exists and is in use"),
        ("-services unix://@/none/s", ": bind: no such file or directory"),
        ("-services unix:///proc/s", ": bind: "),
        ("-pid-file @/none/pid", "failed to create pidfile: open "),
    ] {
        fails(&mut spawn(&machine, &format!("{flags} {more}")), why);
        assert_eq!(machine.owner("api"), Some(before.pid()), "{more}");
        assert_eq!(fs::read_to_string(machine.path("pid")).unwrap(), before.pid().to_string(), "{more}");
    }
    assert!(before.is_running() && !before.stderr().contains(LOST), "{}", before.stderr());
}

/// Whoever connects there is the machine.
#[test]
fn a_virtual_machines_socket_is_not_touched_for_another_purpose() {
    let machine = Machine::new();
    let config = format!("interfaces: {{qemu: \"unix://{}\"}}\n", machine.path("qemu").display());
    fs::write(machine.path("config"), config).unwrap();
    for words in
        ["-listen-qemu unix://@/qemu", "-listen-qemu unix://@/qemu -keep-running", "-config @/config"]
    {
        let mut before = spawn(&machine, words);
        eventually("its socket", PATIENCE, || machine.path("qemu").exists().then_some(()));
        for next in [
            "-listen unix://@/qemu",
            "-services unix://@/qemu",
            "-forward-sock @/qemu -forward-dest unix:///none",
            "-forward-sock qemu -forward-dest unix:///none",
        ] {
            fails(&mut spawn(&machine, next), "qemu\\\" already exists and is in use (by gvproxy, pid ");
            assert!(before.is_running() && machine.path("qemu").exists(), "{next}: {}", before.stderr());
        }
        assert!(!before.stderr().contains("connected"), "{}", before.stderr());
        let _vm = UnixStream::connect(machine.path("qemu")).unwrap();
        eventually("the machine", PATIENCE, || {
            before.stderr().contains("virtual machine connected").then_some(())
        });
        assert!(before.terminate().success());
    }
}

/// Without a flag that tells, and where the system tells nothing of names.
#[test]
fn what_is_asked_for_in_other_words_is_taken_over_too() {
    let machine = Machine::new();
    // One of the same name elsewhere has nothing to do with it.
    let elsewhere = Machine::new();
    let _bystander = spawn(&elsewhere, "-forward-sock words -forward-dest unix:///none");
    eventually("its socket", PATIENCE, || elsewhere.path("words").exists().then_some(()));
    let config = format!("listen: [\"unix://{}\"]\n", machine.path("words").display());
    fs::write(machine.path("config"), config).unwrap();
    let ns = Namespace::new();
    ns.run(["sh", "-c", "echo 0 >/proc/sys/user/max_inotify_watches"]);
    let blind = ns.prefix();
    let relative = "-forward-sock words -forward-dest unix:///none";
    for (what, words, prefix) in [
        ("a file", "-config @/config", &[][..]),
        ("no watches", "-listen unix://@/words", &blind),
        ("a relative path", relative, &[]),
    ] {
        let directory = machine.0.path().display().to_string();
        let words = words.replace('@', &directory);
        let words: Vec<_> = words.split(' ').map(str::to_owned).collect();
        let prefix: Vec<_> =
            prefix.iter().cloned().chain(["env".to_owned(), "-C".to_owned(), directory]).collect();
        let start = || Daemon::builder().without_qemu().binary(OURS).through(&prefix).args(&words).spawn();
        let mut before = start();
        eventually("its socket", PATIENCE, || (machine.owner("words") == Some(before.pid())).then_some(()));
        let mut next = start();
        eventually("the next one's", PATIENCE, || (machine.owner("words") == Some(next.pid())).then_some(()));
        let status =
            before.wait(PATIENCE).unwrap_or_else(|| panic!("{what}: it goes on: {}", before.stderr()));
        assert!(status.success(), "{what}: {status}: {}", before.stderr());
        assert_told(&before, &machine.path("words"), LOST, next.pid());
        assert!(next.terminate().success());
        assert!(!machine.path("words").exists(), "{what}");
    }
}
