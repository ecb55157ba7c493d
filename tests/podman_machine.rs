//! What `podman machine` does with the daemon: it starts it, waits for it, talks to the machine through it,
//! ends it, and starts it again. Today's, and that of Debian 12, each with the QEMU that it knows. And what
//! the podman in the machine does: it has it expose the ports of containers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

use testkit::eventually;
use testkit::machine::{Suite, User};
use testkit::net::ELSEWHERE;
use testkit::udp::UdpSocket;
use testkit::vm::{image, step};

testkit::agent_in_a_namespace!();

/// How long an emulated machine may take for what is a moment's work.
const PATIENCE: Duration = Duration::from_secs(30);
const IMAGE: &str = "localhost/busybox:test";
/// What the system calls its process.
const QEMU: &str = "qemu-system-x86";
/// What a gvproxy leaves that was killed.
const OF_A_KILLED_ONE: [&str; 3] = ["m-gvproxy.sock", "m-api.sock", "gvproxy.pid"];
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn podman_machine_of_today() {
    let user = User::new(Suite::Trixie);
    user.host().run(["ip", "addr", "add", &format!("{ELSEWHERE}/32"), "dev", "lo"]);
    let podman = |args: &[&str]| user.podman(args);
    init(&user, "--image");
    step("start", || podman(&["machine", "start", "m"]));
    let api = api_socket(&user, "m-api.sock");
    what_it_started(&user, "gvproxy.pid");
    load(&user);
    uses(&user);
    step("the API's socket", || assert_eq!(rootless(&user, &["--url", &api]), "true"));
    ports(&user, "m");
    ports(&user, "m-root");
    stop_under_clients(&user, &api);

    step("set --rootful, start beside a gvproxy left over", || {
        podman(&["machine", "set", "--rootful", "m"]);
        user.leave_a_gvproxy();
        let api = user.path("run/podman/m-api.sock");
        eventually("its socket", PATIENCE, || UnixStream::connect(&api).ok());
        // podman removes the virtual machine's, and no other.
        podman(&["machine", "start", "m"])
    });
    one_gvproxy(&user);
    uses(&user);
    step("the API's socket", || assert_eq!(rootless(&user, &["--url", &api]), "false"));
    step("kill -9 gvproxy, stop", || {
        user.kill("gvproxy");
        // It stops the machine all the same.
        let said = user.podman_fails(&["machine", "stop", "m"]);
        assert!(said.contains("gvproxy") && said.contains("process does not exist"), "{said}");
    });
    nothing_left(&user, &OF_A_KILLED_ONE);
    step("rm -f", || podman(&["machine", "rm", "-f", "m"]));
}

#[test]
fn what_was_killed_is_started_again() {
    let user = User::new(Suite::Trixie);
    let start = || user.podman(&["machine", "start", "m"]);
    let is_there = |name: &str| user.processes().iter().any(|other| other == name);
    init(&user, "--image");
    step("kill -9 podman in the middle of start, and QEMU if it is there; start", || {
        let mut killed = user.spawn("podman", &["machine", "start", "m"]);
        eventually("a gvproxy", PATIENCE, || is_there("gvproxy").then_some(()));
        user.kill("podman");
        killed.wait().expect("the end of podman");
        if is_there(QEMU) {
            user.kill(QEMU);
        }
        start()
    });
    one_gvproxy(&user);
    login(&user);
    step("kill -9 QEMU: gvproxy ends by itself; start", || {
        user.kill(QEMU);
        eventually("the end of gvproxy", PATIENCE, || (!is_there("gvproxy")).then_some(()));
        start()
    });
    login(&user);
    step("kill -9 both, rm -f", || {
        user.kill("gvproxy");
        user.kill(QEMU);
        user.podman(&["machine", "rm", "-f", "m"])
    });
    nothing_left(&user, &OF_A_KILLED_ONE);
}

/// podman 4.3 names the same path to gvproxy, for the virtual machine, and to QEMU, for QMP.
#[test]
fn podman_machine_of_debian_12() {
    let user = User::new(Suite::Bookworm);
    let podman = |args: &[&str]| user.podman(args);
    init(&user, "--image-path");
    step("start", || podman(&["machine", "start", "m"]));
    let api = api_socket(&user, "podman.sock");
    what_it_started(&user, "m_proxy.pid");
    load(&user);
    uses(&user);
    step("the API's socket", || assert_eq!(rootless(&user, &["--url", &api]), "true"));
    step("stop", || podman(&["machine", "stop", "m"]));
    // podman kills who made it.
    nothing_left(&user, &["podman.sock"]);
}

fn init(user: &User, image: &str) {
    let disk = user.disk().display().to_string();
    step("init", || {
        // Without a time zone it asks a program that there may not be.
        let size = ["--cpus", "2", "--memory", "1536", "--disk-size", "10", "--timezone", "Etc/UTC"];
        user.podman(&[&["machine", "init", image, &disk], &size[..], &["m"]].concat());
    });
}

fn what_it_started(user: &User, pid_file: &str) {
    step("what it started", || {
        assert!(user.processes().iter().any(|name| name == "gvproxy"), "{:?}", user.processes());
        let mut files = user.sockets_and_pid_files();
        files.retain(|file| file.ends_with(pid_file));
        let pid = fs::read_to_string(user.path(&files[0])).unwrap();
        assert!(pid.parse::<u32>().is_ok(), "{pid:?} is not read by podman");
        assert!(user.podman(&["machine", "ls"]).contains("Currently running"));
    });
}

fn load(user: &User) {
    // The names of podman's connections to the machine's users.
    for connection in ["m", "m-root"] {
        let image = image().display().to_string();
        step("load an image", || user.podman(&["--connection", connection, "load", "-i", &image]));
    }
}

/// The one left over has ended, the next one runs.
fn one_gvproxy(user: &User) {
    let count = || user.processes().iter().filter(|name| *name == "gvproxy").count();
    eventually("one gvproxy", PATIENCE, || (count() == 1).then_some(()));
}

/// With a stream of the API's open, and a login: both see the end.
fn stop_under_clients(user: &User, api: &str) {
    let mut events = UnixStream::connect(api.trim_start_matches("unix://")).expect("a connection");
    events.set_read_timeout(Some(PATIENCE * 4)).unwrap();
    events.write_all(b"GET /v4.0.0/libpod/events HTTP/1.1\r\nHost: d\r\n\r\n").unwrap();
    let mut head = [0; 15];
    events.read_exact(&mut head).expect("an answer");
    assert_eq!(&head, b"HTTP/1.1 200 OK");
    let mut login = user.spawn("podman", &["machine", "ssh", "m", "sleep 1000"]);
    eventually("the login", PATIENCE, || user.processes().contains(&"ssh".to_owned()).then_some(()));
    step("stop, with clients", || user.podman(&["machine", "stop", "m"]));
    nothing_left(user, &[]);
    // Reset or not, it is over.
    let _ = events.read_to_end(&mut Vec::new());
    login.wait().expect("the end of the login");
}

/// The socket on the host that leads to podman in the machine, as podman's URL.
#[track_caller]
fn api_socket(user: &User, name: &str) -> String {
    let files = user.sockets_and_pid_files();
    let socket = files.iter().find(|file| file.rsplit('/').next() == Some(name));
    let socket = socket.unwrap_or_else(|| panic!("no {name} among {files:?}"));
    format!("unix://{}", user.path(socket.trim_start_matches("./")).display())
}

/// A login and a container.
fn uses(user: &User) {
    login(user);
    step("--remote run", || {
        let words = ["--remote", "run", "--rm", "--network", "none", IMAGE, "echo", "hello"];
        assert_eq!(user.podman(&words), "hello");
    });
}

fn login(user: &User) {
    step("ssh", || {
        let seen = user.podman(&["machine", "ssh", "m", "id -un; ip -4 -brief address show scope global"]);
        assert!(seen.starts_with("core\n") && seen.contains("192.168.127.2/24"), "{seen}");
    });
}

/// Whether the podman that those arguments lead to runs without root.
#[track_caller]
fn rootless(user: &User, way: &[&str]) -> String {
    user.podman(&[way, &["info", "--format", "{{.Host.Security.Rootless}}"]].concat())
}

/// A container's `-p` in every form: reached from the host while it is there, refused after it.
fn ports(user: &User, connection: &str) {
    let way = ["--connection", connection];
    let podman = |args: &[&str]| user.podman(&[&way, args].concat());
    let step = |what: &str, work: &mut dyn FnMut()| step(&format!("{connection}: {what}"), work);
    let (everywhere, here, datagrams) = (8080, 8081, 8082);
    step("run -p", &mut || {
        // The machine's socat, as busybox has nothing that answers datagrams.
        let serve = "/usr/bin/socat UDP4-RECVFROM:7,fork EXEC:/bin/cat & exec httpd -f -p 80 -h /www";
        let places = ["-p", "8080:80", "-p", "127.0.0.1:8081:80", "-p", "8082:7/udp"];
        let socat = ["-v", "/usr:/usr:ro", "-v", "/usr/lib:/lib:ro", "-v", "/usr/lib64:/lib64:ro"];
        podman(&[&["run", "-d", "--name", "web"][..], &places, &socat, &[IMAGE, "sh", "-c", serve]].concat());
    });
    step("reached from the host", &mut || {
        for (address, port) in [(LOCALHOST, everywhere), (ELSEWHERE, everywhere), (LOCALHOST, here)] {
            assert_eq!(page(user, (address, port).into()), "hello from a container\n", "{address}:{port}");
        }
        assert_refused(user, (ELSEWHERE, here).into());
        let socket = user.host().udp((LOCALHOST, 0).into());
        eventually("an answer to a datagram", PATIENCE, || {
            answers(&socket, (LOCALHOST, datagrams).into()).ok().filter(|answer| answer == b"echo")
        });
    });
    step("run -p with a port that is in use", &mut || {
        let _taken = user.host().listen((LOCALHOST, 8084).into());
        let words = ["run", "-d", "--name", "late", "-p", "8083:80", "-p", "8084:80", IMAGE, "httpd"];
        let said = user.podman_fails(&[&way[..], &words].concat());
        assert!(said.contains("8084") && said.contains("address already in use"), "{said}");
        // What it had been given before is taken back, and others' ports are left alone.
        assert_refused(user, (LOCALHOST, 8083).into());
        assert_eq!(page(user, (LOCALHOST, everywhere).into()), "hello from a container\n");
        podman(&["rm", "-f", "-t", "0", "late"]);
    });
    step("rm: refused", &mut || {
        podman(&["rm", "-f", "-t", "0", "web"]);
        for port in [everywhere, here, 8083] {
            assert_refused(user, (LOCALHOST, port).into());
        }
        let socket = user.host().udp((LOCALHOST, 0).into());
        let error = answers(&socket, (LOCALHOST, datagrams).into()).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::ConnectionRefused);
    });
}

/// What a web server there shows.
#[track_caller]
fn page(user: &User, at: SocketAddr) -> String {
    let get = |mut stream: TcpStream| {
        stream.set_read_timeout(Some(PATIENCE))?;
        stream.write_all(b"GET / HTTP/1.0\r\n\r\n")?;
        let mut answer = String::new();
        stream.read_to_string(&mut answer)?;
        std::io::Result::Ok(answer)
    };
    // The port is there before the server in the container is.
    let answer = eventually(&format!("a page at {at}"), PATIENCE, || {
        let stream = user.host().connect(at).unwrap_or_else(|error| panic!("{at}: {error}"));
        get(stream).ok().filter(|answer| !answer.is_empty())
    });
    answer.split_once("\r\n\r\n").expect("a head").1.to_owned()
}

#[track_caller]
fn assert_refused(user: &User, at: SocketAddr) {
    let error = user.host().connect(at).expect_err("a connection");
    assert_eq!(error.kind(), ErrorKind::ConnectionRefused, "{at}: {error}");
}

/// The answer to a datagram.
fn answers(socket: &UdpSocket, at: SocketAddr) -> std::io::Result<Vec<u8>> {
    socket.set_read_timeout(Some(Duration::from_secs(2)))?;
    socket.connect(at)?;
    socket.send(b"echo")?;
    let mut buffer = [0; 16];
    let length = socket.recv(&mut buffer)?;
    Ok(buffer[..length].to_vec())
}

/// Neither a process of the machine's, nor a pid file, nor a socket, but for `stay`, of which who made them
/// was killed.
#[track_caller]
fn nothing_left(user: &User, stay: &[&str]) {
    step("nothing is left", || {
        let start = Instant::now();
        loop {
            let mut left = [user.processes(), user.sockets_and_pid_files()].concat();
            left.retain(|name| !stay.contains(&name.rsplit('/').next().unwrap_or(name)));
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{left:?}");
        }
    });
}
