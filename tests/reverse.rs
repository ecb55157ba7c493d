//! Sockets of guests that lead to the host: what passes through them, and what happens when one end goes,
//! over SSH and by way of gvforwarder's agent.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::fs;
use std::io::{self, Read, Write};
use std::net::{Shutdown, SocketAddr};
use std::os::unix::fs::{FileTypeExt, PermissionsExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::thread::spawn;
use std::time::{Duration, Instant};

use rustix::process::Signal;
use testkit::daemon::Daemon;
use testkit::guest::{self, Guest};
use testkit::guest_agent::{Agent, line, secret_file};
use testkit::net::plug;
use testkit::reversed::{
    Files, GUEST, IntoSocket, MADE, PATIENCE, Rig, Way, assert_closed, said, start_daemon, wait_for_log,
};
use testkit::sshd;
use testkit::streams::{self, Server, echo, exchange};
use testkit::traffic::{accept, check, send_from};
use testkit::{eventually, tool};

testkit::agent_in_a_namespace!();

/// A function of a [`Way`] as a test of each.
macro_rules! both_ways {
    ($($name:ident,)*) => {
        mod by_agent { $(#[test] fn $name() { super::$name(super::Way::Agent); })* }
        mod over_ssh { $(#[test] fn $name() { super::$name(super::Way::Ssh); })* }
    };
}

both_ways![
    an_ssh_agent_of_the_host_serves_the_guest,
    bytes_and_half_closes_go_each_way,
    a_hundred_megabytes_each_way,
    two_hundred_clients_at_once,
    one_client_more_than_a_socket_takes_is_closed,
    an_end_that_breaks_off_breaks_off_the_other,
    the_hosts_socket_may_come_later_and_go,
    a_daemon_that_was_killed_starts_again,
    a_guest_that_went_comes_back,
    what_is_there_already,
    what_the_guest_does_not_let_be_made,
    an_orderly_end_leaves_no_socket,
];

/// A key pair, and an ssh-agent with it.
struct KeyAgent {
    child: Child,
    key: PathBuf,
}

impl KeyAgent {
    fn start(files: &Files) -> Self {
        let key = files.path("key");
        sshd::run(
            "ssh-keygen",
            &["-q", "-t", "ed25519", "-N", "", "-C", "of the host", "-f", sshd::text(&key)],
        );
        let mut command = Command::new(tool("ssh-agent", "openssh-client"));
        let child = command.args(["-D", "-a", &files.host()]).stdout(Stdio::null()).spawn().unwrap();
        eventually("the ssh-agent", PATIENCE, || UnixStream::connect(files.host()).ok());
        let agent = Self { child, key };
        let mut add = Command::new(tool("ssh-add", "openssh-client"));
        let added =
            add.args(["-q", sshd::text(&agent.key)]).env("SSH_AUTH_SOCK", files.host()).output().unwrap();
        assert!(added.status.success(), "{added:?}");
        agent
    }
}

impl Drop for KeyAgent {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn an_ssh_agent_of_the_host_serves_the_guest(way: Way) {
    let rig = Rig::start(way);
    let mode = fs::metadata(rig.files.guest()).unwrap().permissions().mode();
    assert_eq!(mode & 0o777, 0o600);
    let agent = KeyAgent::start(&rig.files);
    let ask = |args: &[&str]| -> Output {
        let mut command = rig.guest.command(tool("ssh-add", "openssh-client"));
        command.args(args).env("SSH_AUTH_SOCK", rig.files.guest()).stdin(Stdio::null()).output().unwrap()
    };
    let listed = ask(&["-l"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("of the host (ED25519)"), "{listed:?}");
    // It signs with the key, which never was in the guest.
    let public = agent.key.with_extension("pub");
    let tested = ask(&["-T", sshd::text(&public)]);
    assert!(tested.status.success(), "{tested:?}");
    let removed = ask(&["-D"]);
    assert!(removed.status.success(), "{removed:?}");
    let listed = ask(&["-l"]);
    assert!(String::from_utf8_lossy(&listed.stdout).contains("no identities"), "{listed:?}");
}

/// Reads one byte that says what to do.
fn order(stream: &mut UnixStream) -> u8 {
    let mut order = [0];
    stream.read_exact(&mut order).map_or(0, |()| order[0])
}

fn bytes_and_half_closes_go_each_way(way: Way) {
    let rig = Rig::start(way);
    let _server = rig.serve(|mut stream| match order(&mut stream) {
        b'e' => echo(stream),
        // Its own half first.
        b'f' => {
            stream.write_all(b"that is all").unwrap();
            stream.shutdown(Shutdown::Write).unwrap();
            let mut bytes = Vec::new();
            stream.read_to_end(&mut bytes).unwrap();
            assert_eq!(bytes, b"but not from here");
        }
        _ => {}
    });
    rig.assert_echo_after(b"hello");
    rig.assert_echo_after(&vec![7; 3 << 20]);
    let mut client = rig.connect();
    client.write_all(b"f").unwrap();
    let mut bytes = Vec::new();
    client.read_to_end(&mut bytes).unwrap();
    assert_eq!(bytes, b"that is all");
    client.write_all(b"but not from here").unwrap();
    client.shutdown(Shutdown::Write).unwrap();
    // One that only looks, and one that says nothing.
    drop(rig.connect());
    assert_eq!(exchange(&rig.connect().into_socket(), b"").unwrap(), b"");
    rig.assert_echo_after(b"again");
}

fn a_hundred_megabytes_each_way(way: Way) {
    const LENGTH: u64 = 100 << 20;
    let rig = Rig::start(way);
    let _server = rig.serve(|mut stream| {
        if order(&mut stream) == b'u' {
            let got = check(&stream).unwrap_or(0);
            stream.write_all(&got.to_be_bytes()).unwrap();
        } else {
            send_from(&stream, 0, LENGTH).unwrap();
        }
    });
    let (mut up, mut down) = (rig.connect(), rig.connect());
    let upload = spawn(move || {
        up.write_all(b"u").unwrap();
        send_from(&up, 0, LENGTH).unwrap();
        up.shutdown(Shutdown::Write).unwrap();
        let mut got = [0; 8];
        up.read_exact(&mut got).unwrap();
        u64::from_be_bytes(got)
    });
    down.write_all(b"d").unwrap();
    assert_eq!(check(&down).unwrap(), LENGTH);
    assert_eq!(upload.join().unwrap(), LENGTH);
}

fn two_hundred_clients_at_once(way: Way) {
    const COUNT: usize = 200;
    let rig = Rig::start(way);
    let _server = rig.serve(echo);
    rig.assert_echo(b"warm");
    let before = rig.daemon.fds();
    streams::assert_echo_of_all((0..COUNT).map(|_| rig.connect().into_socket()).collect());
    // And the pipes that are kept.
    eventually("descriptors are back", PATIENCE, || (rig.daemon.fds() <= before + 4 + 2 * 16).then_some(()));
    rig.assert_echo(b"more");
}

fn one_client_more_than_a_socket_takes_is_closed(way: Way) {
    const MOST: usize = 1024;
    let rig = Rig::start(way);
    let _server = rig.serve(echo);
    let is_served = |client: &mut UnixStream| {
        client.write_all(b"x").unwrap();
        client.read_exact(&mut [0]).unwrap();
    };
    let mut clients: Vec<UnixStream> = (0..MOST).map(|_| rig.connect()).collect();
    clients.iter_mut().for_each(is_served);
    assert_closed(rig.connect());
    rig.wait_for_log(&["there are too many"]);
    clients.iter_mut().for_each(is_served);
    drop(clients.pop());
    rig.echo_comes();
}

fn an_end_that_breaks_off_breaks_off_the_other(way: Way) {
    let rig = Rig::start(way);
    let (told, telling) = std::sync::mpsc::channel();
    let _server = rig.serve(move |mut stream| {
        if order(&mut stream) == b'l' {
            // Leaves with something unread.
            order(&mut stream);
            return;
        }
        let block = vec![0; 1 << 16];
        let error = loop {
            if let Err(error) = stream.write_all(&block) {
                break error;
            }
        };
        told.send(error.kind()).unwrap();
    });
    let mut client = rig.connect();
    client.write_all(b"l").unwrap();
    let _ = client.write_all(&vec![1; 200_000]);
    assert_closed(client);
    // A client that goes while it is being written to.
    let mut client = rig.connect();
    client.write_all(b"w").unwrap();
    client.read_exact(&mut [0; 100_000]).unwrap();
    drop(client);
    let kind = telling.recv_timeout(PATIENCE).expect("the server is told");
    assert!(matches!(kind, io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset), "{kind:?}");
}

fn the_hosts_socket_may_come_later_and_go(way: Way) {
    let rig = Rig::start(way);
    for _ in 0..10 {
        assert_closed(rig.connect());
    }
    rig.wait_for_log(&["a client of the guest turned away", "no such file or directory"]);
    let server = rig.serve(echo);
    for _ in 0..3 {
        rig.assert_echo(b"hello");
    }
    drop(server);
    assert_closed(rig.connect());
    let _server = rig.serve(echo);
    rig.assert_echo(b"hello");
    assert_eq!(said(&rig.daemon, "turned away"), 1, "one line for all of them");
}

fn a_daemon_that_was_killed_starts_again(way: Way) {
    let mut rig = Rig::start(way);
    let _server = rig.serve(echo);
    for _ in 0..2 {
        let mut open = rig.connect();
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        rig.daemon.signal(Signal::KILL);
        assert!(rig.daemon.wait(PATIENCE).is_some());
        rig.daemon = start_daemon(&rig.files, rig.login.as_ref());
        rig.guest.replug(plug(&rig.daemon));
        rig.wait_for_log(&[MADE]);
        // Not even a client that comes at once is given to the daemon that is gone.
        for _ in 0..20 {
            rig.assert_echo(b"hello");
        }
    }
}

fn a_guest_that_went_comes_back(way: Way) {
    let mut rig = Rig::start(way);
    let _server = rig.serve(echo);
    for signal in [Signal::KILL, Signal::TERM] {
        let mut open = rig.connect();
        open.write_all(b"x").unwrap();
        open.read_exact(&mut [0]).unwrap();
        rig.restart_guest(signal);
        assert_closed(open);
        rig.echo_comes();
    }
    // The link as well.
    rig.guest.switch_off();
    eventually("the end of the daemon", PATIENCE, || rig.daemon.wait(Duration::ZERO));
}

fn what_is_there_already(way: Way) {
    let files = Files::new();
    let guest = files.guest();
    let squatter = UnixListener::bind(&guest).unwrap();
    let rig = Rig::with(way, files, "");
    let _server = rig.serve(echo);
    let no_socket = if way == Way::Agent { "the agent says" } else { "no socket in the guest" };
    rig.wait_for_log(&[no_socket, "trying again"]);
    // It has tried more than once, and told of it once.
    rig.wait_for_log(&[
        "level=debug",
        if way == Way::Agent { "in use" } else { "still no socket in the guest" },
    ]);
    assert_eq!(said(&rig.daemon, "trying again"), 1);
    squatter.set_nonblocking(true).unwrap();
    assert!(fs::metadata(&guest).unwrap().file_type().is_socket());
    // What it leaves behind is a dead socket.
    drop(squatter);
    rig.wait_for_log(&[MADE]);
    rig.assert_echo(b"hello");

    let Rig { mut daemon, agent, guest: _guest, login, files } = rig;
    assert!(daemon.terminate().success());
    drop((daemon, agent, login));
    eventually("the socket goes", PATIENCE, || (!Path::new(&guest).exists()).then_some(()));
    fs::write(&guest, "mine").unwrap();
    let rig = Rig::with(way, files, "");
    let text = if way == Way::Agent { "already exists" } else { "a file in the guest that is no socket" };
    rig.wait_for_log(&[text]);
    drop(rig.daemon);
    assert_eq!(fs::read(&guest).unwrap(), b"mine");
}

fn what_the_guest_does_not_let_be_made(way: Way) {
    let files = Files::new();
    if way == Way::Ssh {
        let rig = Rig::with(way, files, "AllowStreamLocalForwarding no");
        rig.wait_for_log(&["the guest's sshd refuses it", "AllowStreamLocalForwarding"]);
        rig.wait_for_log(&["still no socket in the guest"]);
        assert_eq!(said(&rig.daemon, "the guest's sshd refuses it"), 1);
        return assert!(!Path::new(&rig.files.guest()).exists());
    }
    let daemon = start_daemon(&files, None);
    let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
    assert_eq!(guest.dhcp().ip(), GUEST);
    wait_for_log(&daemon, &["waiting for the guest", "gvforwarder -agent -agent-offer", &files.guest()]);
    let other = files.path("other").display().to_string();
    let agent = Agent::start(&guest, &["-agent-offer", &other, "-agent-allow", &files.guest()]);
    wait_for_log(&daemon, &["is not offered: add -agent-offer", "gvforwarder -agent -agent-offer"]);
    eventually("a warning of the agent", PATIENCE, || {
        agent.stderr().contains("refused a path that is not offered").then_some(())
    });
    assert!(!Path::new(&files.guest()).exists() && !Path::new(&other).exists());
}

fn an_orderly_end_leaves_no_socket(way: Way) {
    let mut rig = Rig::start(way);
    let _server = rig.serve(echo);
    let mut open = rig.connect();
    open.write_all(b"x").unwrap();
    open.read_exact(&mut [0]).unwrap();
    let started = Instant::now();
    assert!(rig.daemon.terminate().success());
    assert!(started.elapsed() < Duration::from_secs(2), "it takes {:?}", started.elapsed());
    eventually("the socket goes", PATIENCE, || (!Path::new(&rig.files.guest()).exists()).then_some(()));
    assert_closed(open);
}

/// A daemon that proves itself by this secret to the guest's agent, as its file says, or one without a
/// secret.
fn daemon_with(files: &Files, secret: Option<&str>) -> (Daemon, Guest) {
    let secret =
        secret.map(|text| format!("agent-secret-file: {}\n", secret_file(files.path("of-host"), text)));
    let yaml = format!(
        "{}reverse:\n- {{socket: \"agent://{}\", dest: {}}}\n",
        secret.unwrap_or_default(),
        files.guest(),
        files.host()
    );
    let config = files.path("config.yaml");
    fs::write(&config, yaml).unwrap();
    let daemon = Daemon::builder().args(["-debug", "-config", config.to_str().unwrap()]).start();
    let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
    assert_eq!(guest.dhcp().ip(), GUEST);
    (daemon, guest)
}

#[test]
fn a_socket_is_made_for_a_host_with_the_same_secret_only() {
    const OURS: &str = "a secret of 25 characters";
    let doubt = Some("refused who does not prove to be the host");
    for (of_host, of_agent, says, agent_says) in [
        (Some(OURS), Some(OURS), MADE, None),
        (Some(OURS), Some("another one's secret"), "the agent has another secret", doubt),
        (None, Some(OURS), "no proof of the secret: gvproxy needs this agent's -agent-secret-file", doubt),
        (Some(OURS), None, "this agent has no secret to prove: add -agent-secret-file", None),
    ] {
        let files = Files::new();
        let (daemon, guest) = daemon_with(&files, of_host);
        let mut words = vec!["-agent-offer".to_owned(), files.guest()];
        if let Some(text) = of_agent {
            words.extend(["-agent-secret-file".to_owned(), secret_file(files.path("of-agent"), text)]);
        }
        let agent = Agent::start(&guest, &words.iter().map(String::as_str).collect::<Vec<_>>());
        wait_for_log(&daemon, &[says]);
        if let Some(says) = agent_says {
            eventually("a warning of the agent", PATIENCE, || agent.stderr().contains(says).then_some(()));
        }
        if says == MADE {
            let _server = Server::echo(files.host());
            for _ in 0..10 {
                streams::assert_echo(&streams::connect(&streams::at(files.guest())).unwrap(), b"hello");
            }
        } else {
            wait_for_log(&daemon, &["trying again"]);
            assert!(!Path::new(&files.guest()).exists(), "{of_host:?} {of_agent:?}");
        }
    }
}

#[test]
fn an_agent_that_does_not_prove_itself_gets_no_socket_of_the_hosts() {
    let files = Files::new();
    let (told, reached) = std::sync::mpsc::channel();
    let _server = Server::start(files.host(), move |_| told.send(()).unwrap());
    let (daemon, guest) = daemon_with(&files, Some("a secret of 25 characters"));
    let listener = guest.listen(SocketAddr::from((GUEST, gvproxy::agent::PORT)));
    let mirror = |nonce: &str| format!("PROOF {nonce} {nonce}{nonce}\n");
    for proof in [|_: &str| String::new(), mirror] {
        let mut host = accept(&listener);
        let asked = line(&host);
        let nonce = asked.strip_prefix("PROVE ").unwrap_or_else(|| panic!("{asked}")).trim();
        host.write_all(format!("{}OK\nCLIENT\nhello", proof(nonce)).as_bytes()).unwrap();
        let mut heard = Vec::new();
        let _ = host.read_to_end(&mut heard);
        assert!(heard.is_empty(), "it hears {:?}", String::from_utf8_lossy(&heard));
    }
    wait_for_log(
        &daemon,
        &["the agent does not prove that it has the secret", "gvforwarder -agent -agent-secret-file"],
    );
    wait_for_log(&daemon, &["the agent has another secret"]);
    assert!(reached.try_recv().is_err(), "the host's socket has a client");
}
