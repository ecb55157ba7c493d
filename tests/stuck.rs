//! Places that take nothing more, or do not answer: a pipe, a FIFO, a full disk, a file system that froze.
//! The network goes on beside each, the API answers, and the daemon ends in time; what is lost of the log is
//! counted.
//!
//! All but what only we have runs against the original too; it stands still at most of them.
#![expect(clippy::unwrap_used, clippy::print_stderr, reason = "a test's helper fails like the test")]

use std::fs::{self, File};
use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::time::{Duration, Instant};

use rustix::io::Errno;
use rustix::pipe::{fcntl_setpipe_size, pipe};
use rustix::process::Signal;
use testkit::daemon::{Builder, Daemon};
use testkit::eventually;
use testkit::frames::{
    GATEWAY_MAC, ICMP, IP, IPV4, MAC, Wire, arp, echo_request, ether, ipv4, is_echo_reply,
};
use testkit::fuse::{Fuse, Mood};
use testkit::guest_agent::Agent;
use testkit::http::ask;
use testkit::net::GATEWAY;
use testkit::ns::Namespace;

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(10);
/// The longest that a guest or a client of the API may wait.
const PROMPT: Duration = Duration::from_secs(1);
/// The longest end.
const END: Duration = Duration::from_secs(4);
/// Every frame is a line, about 200 bytes.
const TALKATIVE: &str = "log-level: trace\nstack: {debug: true}\n";

/// Places that the test makes fail.
struct Bench {
    dir: tempfile::TempDir,
    ns: Namespace,
    fuse: Fuse,
}

impl Bench {
    fn new() -> Self {
        let (dir, ns) = (tempfile::tempdir().unwrap(), Namespace::new());
        for name in ["fuse", "tmpfs"] {
            fs::create_dir(dir.path().join(name)).unwrap();
        }
        fs::write(dir.path().join("config"), TALKATIVE).unwrap();
        let fuse = Fuse::mount(&ns, &dir.path().join("fuse"));
        let bench = Self { dir, ns, fuse };
        bench.run("mount -t tmpfs -o size=64k tmpfs @/tmpfs");
        bench
    }

    /// Runs a shell's line beside the daemon; `@` in it is the directory.
    #[track_caller]
    fn run(&self, line: &str) -> String {
        self.ns.run(["sh", "-c", &line.replace('@', &self.dir.path().to_string_lossy())])
    }

    /// A daemon with an API.
    fn daemon(&self, args: &[&str]) -> Builder {
        let at = self.dir.path().to_string_lossy();
        Daemon::builder()
            .through(self.ns.prefix())
            .args(["-listen", "unix://{dir}/api"])
            .args(args.iter().map(|arg| arg.replace('@', &at)))
    }
}

/// A guest whom the gateway knows.
fn plug(daemon: &Daemon) -> Wire {
    let mut wire = Wire::plug(daemon);
    wire.send(&arp(1, MAC, IP, [0; 6], GATEWAY));
    ping(&mut wire, 0);
    wire
}

/// The longest round trips of a guest to the gateway, and of requests of the API.
#[derive(Clone, Copy, Debug, Default)]
struct Waits {
    engine: Duration,
    control: Duration,
}

fn ping(wire: &mut Wire, number: u16) -> Duration {
    let start = Instant::now();
    wire.send(&ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, GATEWAY, &echo_request(number))));
    assert!(
        wire.receive(PATIENCE, |frame| is_echo_reply(frame, number)).is_some(),
        "the engine: no answer to ping {number} in {PATIENCE:?}"
    );
    start.elapsed()
}

fn stats(daemon: &Daemon) -> Duration {
    let start = Instant::now();
    let stream = UnixStream::connect(daemon.dir().join("api")).unwrap();
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    assert_eq!(ask(stream, "GET", "/stats", "").status, 200);
    start.elapsed()
}

/// Traffic, with some requests in between.
fn talk(daemon: &Daemon, wire: &mut Wire, pings: u16) -> Waits {
    let mut waits = Waits::default();
    for number in 0..pings {
        waits.engine = waits.engine.max(ping(wire, number));
        if number % 100 == 99 {
            waits.control = waits.control.max(stats(daemon));
        }
    }
    waits
}

#[track_caller]
fn prompt(what: &str, waits: Waits) {
    eprintln!("{what}: {waits:?}");
    assert!(waits.engine < PROMPT && waits.control < PROMPT, "{what}: {waits:?}");
}

#[track_caller]
fn ends(what: &str, daemon: &mut Daemon) {
    let start = Instant::now();
    let status = daemon.terminate();
    let took = start.elapsed();
    eprintln!("{what}: ended after {took:?}");
    assert!(status.success() && took < END, "{what}: {status} after {took:?}");
}

/// How many lines a log says are lost, and how many are about frames.
fn counted(log: &str) -> (usize, usize) {
    let lost = log
        .lines()
        .filter_map(|line| line.split_once("msg=\"lines of the log are lost\" lines=")?.1.split(' ').next());
    (
        lost.map(|lines| lines.parse::<usize>().unwrap()).sum(),
        log.lines().filter(|line| line.contains(" msg=frame ")).count(),
    )
}

#[test]
fn a_log_that_takes_nothing_holds_nobody_up() {
    let bench = Bench::new();
    bench.run("mkfifo @/fifo && dd if=/dev/zero of=@/tmpfs/full bs=1k count=1M 2>@/null || true");
    for (what, file, mood) in [
        ("a pipe that nobody reads", None, Mood::Answers),
        ("a FIFO that nobody reads", Some("fifo"), Mood::Answers),
        ("a full disk", Some("tmpfs/log"), Mood::Answers),
        ("a disk that fails", Some("fuse/log"), Mood::RefusesWrites(Errno::IO)),
        ("a quota that is used up", Some("fuse/log"), Mood::RefusesWrites(Errno::DQUOT)),
        ("a disk that was made read-only", Some("fuse/log"), Mood::RefusesWrites(Errno::ROFS)),
        ("a frozen disk", Some("fuse/log"), Mood::Frozen),
    ] {
        let mut args = vec!["-config=@/config".to_owned()];
        args.extend(file.map(|file| format!("-log-file=@/{file}")));
        let args: Vec<_> = args.iter().map(String::as_str).collect();
        let (_reader, writer) = pipe().unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut daemon = bench.daemon(&args).stderr(writer).start();
        let mut wire = plug(&daemon);
        bench.fuse.set(mood);
        prompt(what, talk(&daemon, &mut wire, 1000));
        ends(what, &mut daemon);
        bench.fuse.set(Mood::Answers);
    }
}

/// A frame from a machine that was not there before, which is told of.
fn hello(number: u8) -> Vec<u8> {
    arp(1, [2, 0, 0, 0, 1, number], IP, [0; 6], GATEWAY)
}

#[test]
fn a_file_system_that_stands_still_holds_nobody_up() {
    let bench = Bench::new();
    bench.run("mkfifo @/fifo");
    for (what, args) in [
        ("a capture on a frozen disk", &["-pcap=@/fuse/c"][..]),
        ("a capture on a full disk", &["-pcap=@/tmpfs/c"]),
        ("a capture into a FIFO that nobody reads", &["-pcap=@/fifo"]),
        ("a pid file", &["-pid-file=@/fuse/pid"]),
        ("a socket", &["-services=unix://@/fuse/s"]),
        ("notifications", &["-notification=unix://@/fuse/n"]),
        (
            "all of them",
            &["-pcap=@/fuse/c", "-pid-file=@/fuse/pid", "-services=unix://@/fuse/s", "-log-file=@/fuse/log"],
        ),
    ] {
        let mut daemon = bench.daemon(args).start();
        let mut wire = plug(&daemon);
        bench.fuse.set(Mood::Frozen);
        for number in 0..20 {
            wire.send(&hello(number));
        }
        prompt(what, talk(&daemon, &mut wire, 1000));
        ends(what, &mut daemon);
        bench.fuse.set(Mood::Answers);
    }
}

/// Where COMPAT.md says that we differ.
mod ours {
    use super::*;

    const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");
    /// Two lines each: more than a pipe and the daemon hold.
    const PINGS: u16 = 6000;

    /// What is lost is counted and told of between the lines that are there, in order; and the last ones come
    /// out.
    #[track_caller]
    fn assert_told(what: &str, log: &str) {
        let (lost, frames) = counted(log);
        let told = log.lines().filter(|line| line.contains("lines of the log are lost")).count();
        eprintln!("{what}: {frames} frames logged, {lost} lines lost, told of {told} times");
        let all = 2 * usize::from(PINGS) + 4;
        assert!(lost > 0 && frames + lost >= all && frames < all, "{what}: {frames} and {lost} of {all}");
        let whole = |line: &&str| line.starts_with("time=\"") && line.contains(" level=");
        let torn: Vec<_> = log.lines().filter(|line| !whole(line)).collect();
        assert!(torn.len() <= 1, "{what}: {torn:#?}");
        assert!(log.contains("gvproxy exiting: signal caught"), "{what}: the last line");
    }

    #[test]
    fn lines_that_are_lost_are_counted_and_told_of() {
        let bench = Bench::new();
        let (reader, writer) = pipe().unwrap();
        let mut daemon = bench.daemon(&["-config=@/config"]).binary(OURS).stderr(writer).start();
        let mut wire = Wire::plug(&daemon);
        prompt("a pipe", talk(&daemon, &mut wire, PINGS));
        let reading = std::thread::spawn(move || {
            let mut log = String::new();
            File::from(reader).read_to_string(&mut log).unwrap();
            log
        });
        assert!(daemon.terminate().success());
        drop(daemon);
        assert_told("a pipe", &reading.join().unwrap());
    }

    #[test]
    fn a_disk_that_has_room_again_hears_what_is_lost() {
        let bench = Bench::new();
        for (what, file, mood, mend) in [
            ("a full disk", "tmpfs/log", Mood::Answers, "mount -o remount,size=16m @/tmpfs"),
            ("a disk that fails", "fuse/log", Mood::RefusesWrites(Errno::IO), "true"),
            ("a frozen disk", "fuse/log", Mood::Frozen, "true"),
        ] {
            let file = format!("-log-file=@/{file}");
            let mut daemon = bench.daemon(&["-config=@/config", &file]).binary(OURS).start();
            let mut wire = plug(&daemon);
            bench.fuse.set(mood);
            prompt(what, talk(&daemon, &mut wire, PINGS - 1));
            bench.fuse.set(Mood::Answers);
            bench.run(mend);
            let log = || bench.fuse.read("log").unwrap_or_else(|| bench.run("cat @/tmpfs/log"));
            // There need not be a next line.
            eventually(what, PATIENCE, || log().contains("lines of the log are lost").then_some(()));
            ends(what, &mut daemon);
            assert_told(what, &log());
            let complaints = daemon.stderr().matches("the log file takes nothing, lines are lost").count();
            assert_eq!(complaints, usize::from(mood != Mood::Frozen), "{what}: {}", daemon.stderr());
            bench.run("rm -f @/fuse/log");
        }
    }

    /// Sockets that come and go while the daemon runs, and clients that are led there.
    #[test]
    fn sockets_on_a_frozen_disk_cost_whoever_asks_for_them() {
        let bench = Bench::new();
        let forward = ["-forward-sock", "{dir}/to-frozen", "-forward-dest", "unix://@/fuse/x"];
        let mut daemon = bench.daemon(&forward).binary(OURS).start();
        let mut wire = Wire::plug(&daemon);
        let (at, socket) = (bench.dir.path().to_string_lossy().into_owned(), daemon.dir().join("api"));
        let post = move |path: &'static str, local: &str| {
            let body = format!(
                r#"{{"local":"{}","remote":"tcp://127.0.0.1:9","protocol":"unix"}}"#,
                local.replace('@', &at)
            );
            let stream = UnixStream::connect(&socket).unwrap();
            std::thread::spawn(move || {
                let start = Instant::now();
                let answer = ask(stream, "POST", &format!("/services/forwarder/{path}"), &body);
                (answer.status, answer.body, start.elapsed())
            })
        };
        assert_eq!(post("expose", "@/fuse/first").join().unwrap().0, 200);
        bench.fuse.set(Mood::Frozen);
        let _clients: Vec<_> =
            (0..10).map(|_| UnixStream::connect(daemon.dir().join("to-frozen")).unwrap()).collect();
        let (gone, refused) = (post("unexpose", "@/fuse/first"), post("expose", "@/fuse/second"));
        prompt("sockets", talk(&daemon, &mut wire, 500));
        let (gone, refused) = (gone.join().unwrap(), refused.join().unwrap());
        eprintln!("unexposed: {gone:?}; exposed: {refused:?}");
        assert_eq!((gone.0, refused.0), (200, 500));
        assert!(refused.1.contains("the file system does not answer"), "{refused:?}");
        assert_eq!(post("expose", "@/elsewhere").join().unwrap().0, 200);
        prompt("sockets", talk(&daemon, &mut wire, 100));
        ends("sockets", &mut daemon);
    }

    /// A file system that was slow to answer once is waited for at the end as any other.
    #[test]
    fn what_stood_still_once_is_given_its_time_at_the_end() {
        let bench = Bench::new();
        let flags = ["-pid-file=@/fuse/pid", "-listen-qemu=unix://@/fuse/q"];
        let mut daemon = bench.daemon(&flags).without_qemu().binary(OURS).spawn();
        eventually("its sockets", PATIENCE, || bench.fuse.read("q").map(drop));
        let at = bench.dir.path().to_string_lossy().into_owned();
        let body = format!(r#"{{"local":"{at}/fuse/s","remote":"tcp://127.0.0.1:9","protocol":"unix"}}"#);
        let post = |path: &str| {
            let stream = UnixStream::connect(daemon.dir().join("api")).unwrap();
            ask(stream, "POST", &format!("/services/forwarder/{path}"), &body).status
        };
        assert_eq!(post("expose"), 200);
        bench.fuse.set(Mood::Frozen);
        assert_eq!(post("unexpose"), 200);
        let what = "cannot remove socket";
        eventually(what, PATIENCE, || daemon.stderr().contains(what).then_some(()));
        bench.fuse.set(Mood::Answers);
        eventually("the socket's end", PATIENCE, || bench.fuse.read("s").is_none().then_some(()));
        bench.fuse.set(Mood::Frozen);
        daemon.signal(Signal::TERM);
        assert_eq!(daemon.wait(Duration::from_millis(300)), None, "{}", daemon.stderr());
        bench.fuse.set(Mood::Answers);
        assert!(daemon.wait(END).unwrap().success());
        let told = daemon.stderr().matches("cannot remove").count();
        assert!(told == 1 && bench.fuse.read("pid").is_none(), "{}", daemon.stderr());
    }

    /// Of one socket's name something happens, while another is on a file system that stands still.
    #[test]
    fn a_socket_on_a_frozen_disk_is_not_waited_for_when_another_changes() {
        let bench = Bench::new();
        let mut daemon = bench.daemon(&["-services=unix://@/fuse/s"]).binary(OURS).start();
        let mut wire = plug(&daemon);
        let chmod = |mode| {
            let socket = daemon.dir().join("api");
            fs::set_permissions(&socket, std::os::unix::fs::PermissionsExt::from_mode(mode)).unwrap();
        };
        bench.fuse.set(Mood::Frozen);
        for mode in [0o660, 0o600, 0o660] {
            chmod(mode);
            prompt("sockets", talk(&daemon, &mut wire, 200));
        }
        ends("sockets", &mut daemon);
    }

    /// The users' names are files too, or another machine's.
    #[test]
    fn a_users_name_that_is_not_found_holds_nobody_up() {
        let bench = Bench::new();
        bench.run("cp /etc/passwd @/fuse/passwd && mount --bind @/fuse/passwd /etc/passwd");
        let mut daemon = bench.daemon(&[]).binary(OURS).start();
        let mut wire = plug(&daemon);
        let (socket, local) = (daemon.dir().join("api"), daemon.dir().join("s"));
        bench.fuse.set(Mood::Frozen);
        let body = format!(
            r#"{{"local":"unix://{}?owner=somebody","remote":"tcp://127.0.0.1:9","protocol":"unix"}}"#,
            local.display()
        );
        let stream = UnixStream::connect(&socket).unwrap();
        let asking = std::thread::spawn(move || ask(stream, "POST", "/services/forwarder/expose", &body));
        prompt("a user's name", talk(&daemon, &mut wire, 1000));
        let answer = asking.join().unwrap();
        assert!(
            answer.status == 500 && answer.body.contains("the file system does not answer"),
            "{answer:?}"
        );
        ends("a user's name", &mut daemon);
    }

    #[test]
    fn a_signal_ends_a_start_that_waits() {
        let bench = Bench::new();
        bench.fuse.set(Mood::Frozen);
        for arg in ["-pid-file=@/fuse/pid", "-pcap=@/fuse/c"] {
            let mut daemon = bench.daemon(&[arg]).binary(OURS).spawn();
            eventually("a start", PATIENCE, || daemon.stderr().contains("gvproxy version").then_some(()));
            ends(arg, &mut daemon);
        }
    }

    /// The other program has the same log.
    #[test]
    fn gvforwarder_goes_on_beside_a_pipe_that_nobody_reads() {
        let (ns, dir) = (Namespace::new(), tempfile::tempdir().unwrap());
        let path = dir.path().join("s").display().to_string();
        let listener = UnixListener::bind(&path).unwrap();
        std::thread::spawn(move || {
            listener.incoming().for_each(|client| drop(client.unwrap().write_all(b"hi")))
        });
        let (_reader, writer) = pipe().unwrap();
        fcntl_setpipe_size(&writer, 4096).unwrap();
        let mut agent = Agent::spawn_to(&ns, &["-agent-allow", &path, "-agent-from", "127.0.0.1"], writer);
        let at = (Ipv4Addr::LOCALHOST, gvproxy::agent::PORT).into();
        eventually("the agent", PATIENCE, || ns.connect(at).ok());
        // Each is a line.
        let mut longest = Duration::ZERO;
        for number in 0..300 {
            let start = Instant::now();
            let mut host = ns.connect(at).unwrap();
            host.set_read_timeout(Some(PATIENCE)).unwrap();
            writeln!(host, "{path}").unwrap();
            let mut heard = String::new();
            let read = host.read_to_string(&mut heard);
            assert!(read.is_ok() && heard == "OK\nhi", "connection {number}: {read:?}, {heard:?}");
            longest = longest.max(start.elapsed());
        }
        let start = Instant::now();
        agent.end(Signal::TERM);
        let end = start.elapsed();
        eprintln!("gvforwarder: {longest:?}, ended after {end:?}");
        assert!(longest < PROMPT && end < END, "{longest:?}, {end:?}");
    }

    /// As logrotate does with `copytruncate`, and with `create` and a signal after it.
    #[test]
    fn a_log_file_can_be_shortened_and_moved_away() {
        const RUNS: [(&str, &[&str]); 2] = [
            ("at a terminal", &["env", "--default-signal=HUP"]),
            ("with nohup", &["env", "--ignore-signal=HUP"]),
        ];
        for (what, prefix) in RUNS {
            let mut daemon = Daemon::builder()
                .binary(OURS)
                .through(prefix)
                .args(["-debug", "-log-file", "{dir}/log"])
                .start();
            let (log, moved) = (daemon.dir().join("log"), daemon.dir().join("log.1"));
            let mut wire = Wire::plug(&daemon);
            let has = |file: &Path, text: &str| {
                eventually(text, PATIENCE, || fs::read_to_string(file).ok().filter(|log| log.contains(text)))
            };
            ping(&mut wire, 1);
            has(&log, " msg=frame ");
            File::options().write(true).open(&log).unwrap().set_len(0).unwrap();
            ping(&mut wire, 2);
            let text = has(&log, " msg=frame ");
            assert!(text.starts_with("time=\""), "{what}: {text:?}");
            for _ in 0..2 {
                fs::rename(&log, &moved).unwrap();
                daemon.signal(Signal::HUP);
                has(&log, "log file opened again");
                let before = fs::read_to_string(&moved).unwrap();
                ping(&mut wire, 3);
                has(&log, " msg=frame ");
                assert_eq!(fs::read_to_string(&moved).unwrap(), before, "{what}");
            }
            // Nowhere to go: the file that is open stays.
            fs::remove_file(&moved).unwrap();
            fs::rename(&log, &moved).unwrap();
            fs::create_dir(&log).unwrap();
            daemon.signal(Signal::HUP);
            let text = has(&moved, "cannot open the log file again");
            assert_eq!(text.matches("log file opened again").count(), 1, "{what}: {text}");
            assert!(daemon.terminate().success(), "{what}");
            has(&moved, "gvproxy exiting: signal caught");
        }
    }

    /// Without a log file SIGHUP is not ours: it kills (`parity::cli`), or was ignored before us.
    #[test]
    fn nohup_holds_without_a_log_file() {
        let mut daemon = Daemon::builder().binary(OURS).through(["env", "--ignore-signal=HUP"]).start();
        let mut wire = Wire::plug(&daemon);
        daemon.signal(Signal::HUP);
        assert!(wire.is_alive() && daemon.is_running());
    }
}
