//! The words for a forward of a socket, which are the same as flags, in the file, and in the API; and what a
//! VMM at the other end may say. The other ends are of the host, and there is no virtual network.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::fs;
use std::io::{Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;

use serde_json::json;
use socket2::SockAddr;
use testkit::daemon::{Builder, Daemon};
use testkit::http::{Answer, ask};
use testkit::streams::{PATIENCE, Server, assert_closed, assert_echo, at, connect, echo};
use testkit::uninterrupted;
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

/// What is behind the forwards: an echo at a unix socket, and one at the port 7 of a machine whose VMM is at
/// another.
struct Ends {
    _servers: [Server; 2],
    dir: tempfile::TempDir,
}

impl Ends {
    fn start() -> Self {
        let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
        let servers = [Server::echo(dir.path().join("echo")), Server::start(dir.path().join("vmm"), vmm)];
        Self { _servers: servers, dir }
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    /// `@/` in `line` is the directory.
    fn daemon(&self, line: &str) -> Builder {
        let line = self.fill(line);
        Daemon::builder().without_qemu().args(line.split_whitespace())
    }

    fn fill(&self, text: &str) -> String {
        text.replace("@/", &format!("{}/", self.dir.path().display()))
    }
}

/// What a client of a VMM's port says in one go.
static SAID: [u8; 50_000] = [7; 50_000];
/// How soon a VMM takes notice of a closed half.
const NOTICE: Duration = Duration::from_millis(200);

/// Says `OK` to port 7, with the first bytes of the guest right behind it, and closes to all others. As VMMs
/// do it takes the end of one half for that of both: the guest's answer comes after it, and is lost.
fn vmm(mut client: UnixStream) {
    let mut line = Vec::new();
    while !line.ends_with(b"\n") {
        let mut byte = [0];
        if client.read_exact(&mut byte).is_err() {
            return;
        }
        line.extend(byte);
    }
    if line != b"CONNECT 7\n" || client.write_all(b"OK 1073741824\nmotd\n").is_err() {
        return;
    }
    let mut said = vec![0; SAID.len()];
    if client.read_exact(&mut said).is_err() {
        return;
    }
    client.set_read_timeout(Some(NOTICE)).unwrap();
    if uninterrupted(|| client.read(&mut [0])).is_err() && client.write_all(&said).is_ok() {
        client.set_read_timeout(None).unwrap();
        // Until the client has gone for good.
        let _ = uninterrupted(|| client.read(&mut [0]));
    }
}

#[track_caller]
fn assert_served(daemon: &mut Daemon, address: &SockAddr) {
    let socket = eventually("a place to connect to", PATIENCE, || {
        assert!(daemon.is_running(), "the daemon has ended: {}", daemon.stderr());
        connect(address).ok()
    });
    assert_echo(&socket, b"hello");
}

fn post(ends: &Ends, endpoint: &str, body: &serde_json::Value) -> Answer {
    let api = eventually("the API", PATIENCE, || UnixStream::connect(ends.path("api")).ok());
    ask(api, "POST", &format!("/services/forwarder/{endpoint}"), &body.to_string())
}

#[test]
fn the_file_has_the_words_of_the_flags() {
    let ends = Ends::start();
    let yaml = "forwards:\n- {socket: 'unix://@/a?mode=0640', dest: 'unix://@/echo'}\n- {socket: @/b, dest: 'unix://@/a'}\n";
    fs::write(ends.path("c.yaml"), ends.fill(yaml)).unwrap();
    let mut daemon = ends.daemon("-config @/c.yaml -forward-sock @/c -forward-dest unix://@/b").spawn();
    for name in ["a", "b", "c"] {
        assert_served(&mut daemon, &at(ends.path(name)));
    }
    assert_eq!(fs::metadata(ends.path("a")).unwrap().mode() & 0o777, 0o640);
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
    assert!(["a", "b", "c"].iter().all(|name| !ends.path(name).exists()), "a socket was left");
}

#[test]
fn the_api_has_the_words_of_the_flags() {
    let ends = Ends::start();
    let mut daemon = ends.daemon("-ssh-port -1 -listen unix://@/api").spawn();
    let port = free_port();
    let wishes = [
        (ends.fill("@/a"), ends.fill("unix://@/echo"), at(ends.path("a"))),
        (ends.fill("unix://@/b?mode=0660"), ends.fill("unix://@/echo"), at(ends.path("b"))),
        (
            format!("tcp://127.0.0.1:{port}"),
            ends.fill("unix://@/a"),
            SocketAddr::from(([127, 0, 0, 1], port)).into(),
        ),
    ];
    for (local, remote, address) in &wishes {
        let body = json!({"protocol": "unix", "local": local, "remote": remote});
        let answer = post(&ends, "expose", &body);
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{body}");
        let again = post(&ends, "expose", &body);
        let is_refused = again.status == 500 && again.body.contains("proxy already running");
        assert!(is_refused, "{body}: {} {}", again.status, again.body);
        assert_served(&mut daemon, address);
    }
    assert_eq!(fs::metadata(ends.path("b")).unwrap().mode() & 0o777, 0o660);
    for (local, _, address) in &wishes {
        let answer = post(&ends, "unexpose", &json!({"protocol": "unix", "local": local}));
        assert_eq!((answer.status, answer.body.as_str()), (200, ""), "{local}");
        assert!(connect(address).is_err(), "{local} is still there");
    }
    for (local, remote, why) in [
        ("unix://@/c?mod=0660", "unix://@/echo", "unknown parameter \"mod\""),
        ("@/c", "unix://@/echo?prot=1", "unknown query \"prot=1\""),
        ("@/c", "ssh://core@127.0.0.1/run/x", "key not provided for unix-ssh connection"),
        ("fd://", "unix://@/echo", "systemd has passed no socket"),
        ("@/echo", "unix://@/echo", "already exists and is in use"),
    ] {
        let (local, remote) = (ends.fill(local), ends.fill(remote));
        let answer = post(&ends, "expose", &json!({"protocol": "unix", "local": local, "remote": remote}));
        assert!(
            answer.status == 500 && answer.body.contains(why),
            "{local}: want {why}, got {}",
            answer.body
        );
    }
    let stats = ask(UnixStream::connect(ends.path("api")).unwrap(), "GET", "/stats", "").json();
    // Both ways of the first two, and of the third once more by way of the first.
    assert_eq!(stats["Relay"]["BytesSpliced"], 40, "{}", stats["Relay"]);
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
}

#[test]
fn a_vmm_is_told_the_port_and_only_the_guest_is_heard() {
    let ends = Ends::start();
    let line = "-forward-sock @/a -forward-dest unix://@/vmm?port=7 -forward-sock @/b -forward-dest unix://@/vmm?port=8";
    let daemon = ends.daemon(line).spawn();
    eventually("the second socket", PATIENCE, || ends.path("b").exists().then_some(()));
    let client = eventually("the socket", PATIENCE, || connect(&at(ends.path("a"))).ok());
    let mut heard = [0; 5];
    // The guest speaks first.
    (&client).read_exact(&mut heard).unwrap();
    assert_eq!(&heard, b"motd\n");
    let idle = daemon.fds();
    // As docker does where there is no input.
    (&client).write_all(&SAID).unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    let mut heard = [0; SAID.len()];
    (&client).read_exact(&mut heard).unwrap();
    assert!(heard == SAID, "the guest says something else");
    drop(client);
    eventually("the end of the client", PATIENCE, || (daemon.fds() < idle).then_some(()));
    // Nobody is at the other port: the client waits for it, and may leave.
    drop(connect(&at(ends.path("b"))).unwrap());
    eventually("an end of the wait", PATIENCE, || (daemon.fds() <= idle).then_some(()));
}

#[test]
fn a_client_that_has_waited_in_vain_is_closed_and_told_of_once() {
    let ends = Ends::start();
    // A VMM that is none: it says something else.
    let _server = Server::start(ends.path("http"), |mut client: UnixStream| {
        let _ = client.write_all(b"HTTP/1.1 400 Bad Request\r\n\r\n");
        echo(client);
    });
    let daemon = ends.daemon("-forward-sock @/a -forward-dest unix://@/http?port=7").spawn();
    for _ in 0..5 {
        let client = eventually("the socket", PATIENCE, || connect(&at(ends.path("a"))).ok());
        assert_closed(&client);
    }
    let log = daemon.log_with("no VMM's answer");
    assert_eq!(log.matches("no VMM's answer").count(), 1, "{log}");
}

#[test]
fn any_number_of_daemons_without_a_network_run_beside_each_other() {
    let ends = Ends::start();
    let mut daemons: Vec<_> = (0..4)
        .map(|n| ends.daemon(&format!("-forward-sock @/s{n} -forward-dest unix://@/echo")).spawn())
        .collect();
    for (n, daemon) in daemons.iter_mut().enumerate() {
        assert_served(daemon, &at(ends.path(&format!("s{n}"))));
    }
}
