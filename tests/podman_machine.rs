//! What `podman machine` does with the daemon: it starts it, waits for it, talks to the machine through it, ends it, and starts it again.
//! And what the podman in the machine does: it has it expose the ports of containers.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

#[path = "support/machine.rs"]
mod machine;
mod support;
#[path = "support/vm.rs"]
mod vm;

use std::fs;
use std::io::{ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream, UdpSocket};
use std::time::{Duration, Instant};

use machine::User;
use support::eventually;
use support::net::ELSEWHERE;
use vm::{image, step};

/// How long an emulated machine may take for what is a moment's work.
const PATIENCE: Duration = Duration::from_secs(30);
const IMAGE: &str = "localhost/busybox:test";
const LOCALHOST: Ipv4Addr = Ipv4Addr::LOCALHOST;

#[test]
fn podman_machine_and_the_ports_of_its_containers() {
    let user = User::new();
    user.host().run(["ip", "addr", "add", &format!("{ELSEWHERE}/32"), "dev", "lo"]);
    let disk = user.disk().display().to_string();
    let podman = |args: &[&str]| user.podman(args);
    step("init", || {
        // Without a time zone it asks a program that there may not be.
        let size = ["--cpus", "2", "--memory", "1536", "--disk-size", "10", "--timezone", "Etc/UTC"];
        podman(&[&["machine", "init", "--image-path", &disk], &size[..], &["m"]].concat());
    });
    step("start", || podman(&["machine", "start", "m"]));
    let api = api_socket(&user);
    step("what it started", || {
        assert!(user.processes().iter().any(|name| name == "gvproxy"), "{:?}", user.processes());
        let mut files = user.sockets_and_pid_files();
        files.retain(|file| file.ends_with("m_proxy.pid"));
        let pid = fs::read_to_string(user.path(&files[0])).unwrap();
        assert!(pid.parse::<u32>().is_ok(), "{pid:?} is not read by podman");
        assert!(podman(&["machine", "ls"]).contains("Currently running"));
    });
    // The names of podman's connections to the machine's users.
    for connection in ["m", "m-root"] {
        let image = image().display().to_string();
        step("load an image", || podman(&["--connection", connection, "load", "-i", &image]));
    }
    uses(&user);
    step("the API's socket", || assert_eq!(rootless(&user, &["--url", &api]), "true"));
    ports(&user, "m");
    ports(&user, "m-root");
    step("stop", || podman(&["machine", "stop", "m"]));
    nothing_left(&user);

    step("set --rootful, start again", || {
        podman(&["machine", "set", "--rootful", "m"]);
        podman(&["machine", "start", "m"])
    });
    uses(&user);
    step("the API's socket", || assert_eq!(rootless(&user, &["--url", &api]), "false"));
    // Stops it first.
    step("rm -f", || podman(&["machine", "rm", "-f", "m"]));
    nothing_left(&user);
}

/// The socket on the host that leads to podman in the machine, as podman's URL.
#[track_caller]
fn api_socket(user: &User) -> String {
    let files = user.sockets_and_pid_files();
    let socket = files.iter().find(|file| file.ends_with("/podman.sock"));
    let socket = socket.unwrap_or_else(|| panic!("no podman.sock among {files:?}"));
    format!("unix://{}", user.path(socket.trim_start_matches("./")).display())
}

/// A login and a container.
fn uses(user: &User) {
    step("ssh", || {
        let seen = user.podman(&["machine", "ssh", "m", "id -un; ip -4 -brief address show scope global"]);
        assert!(seen.starts_with("core\n") && seen.contains("192.168.127.2/24"), "{seen}");
    });
    step("--remote run", || {
        let words = ["--remote", "run", "--rm", "--network", "none", IMAGE, "echo", "hello"];
        assert_eq!(user.podman(&words), "hello");
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

/// Neither a process of the machine's, nor a pid file, nor a socket but the API's, which podman leaves by killing who made it.
#[track_caller]
fn nothing_left(user: &User) {
    step("nothing is left", || {
        let start = Instant::now();
        loop {
            let mut left = [user.processes(), user.sockets_and_pid_files()].concat();
            left.retain(|name| !name.ends_with("/podman.sock"));
            if left.is_empty() {
                return;
            }
            assert!(start.elapsed() < PATIENCE, "{left:?}");
        }
    });
}
