//! Sockets of guests that lead to the host: where they may be, how they are asked for, and guests that vanish
//! or lie.
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
use std::path::Path;
use std::thread::spawn;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::guest::{self, Guest};
use testkit::guest_agent::Agent;
use testkit::net::plug;
use testkit::reversed::{Files, GUEST, Login, MADE, PATIENCE, Rig, Way, said, start_daemon, wait_for_log};
use testkit::sshd::Sshd;
use testkit::streams::{self, Server, at, echo};
use testkit::traffic::accept;

testkit::agent_in_a_namespace!();

#[test]
fn a_dead_socket_of_an_sshd_that_was_killed_is_replaced() {
    let mut rig = Rig::start(Way::Ssh);
    let _server = rig.serve(echo);
    let Some(Login { sshd, runtime }) = &mut rig.login else { unreachable!() };
    sshd.stop();
    // What sshd leaves behind, whatever ended it.
    assert!(fs::metadata(rig.files.guest()).unwrap().file_type().is_socket());
    eventually("the end of the session", PATIENCE, || {
        let refused =
            UnixStream::connect(rig.files.guest()).err()?.kind() == io::ErrorKind::ConnectionRefused;
        refused.then_some(())
    });
    runtime.block_on(sshd.start());
    rig.echo_comes();
}

#[test]
fn an_agent_that_ends_takes_its_socket_along() {
    let mut rig = Rig::start(Way::Agent);
    let agent = rig.agent.as_mut().unwrap();
    agent.end(Signal::TERM);
    assert!(!Path::new(&rig.files.guest()).exists());
}

#[test]
fn over_ssh_without_a_network_of_its_own() {
    let (files, login) = (Files::new(), Login::new(""));
    let quoted = files.path("it's $HOME; *");
    let Sshd { addr, user, .. } = &login.sshd;
    let path = quoted.display().to_string().replace(' ', "%20").replace('\'', "%27");
    let url = format!("ssh://{user}@{addr}{path}?key={}", login.sshd.path("id").display());
    // A dead one, so that a command has to name it.
    drop(UnixListener::bind(&quoted).unwrap());
    let mut daemon = Daemon::builder()
        .without_qemu()
        .args(["-reverse-sock", &url, "-reverse-dest", &format!("unix://{}", files.host())])
        .spawn();
    wait_for_log(&daemon, &[MADE]);
    let _server = Server::echo(files.host());
    let client = streams::connect(&at(&quoted)).unwrap();
    streams::assert_echo(&client, b"hello");
    assert!(daemon.terminate().success());
    assert!(!quoted.exists());
}

#[test]
fn places_that_there_are_not() {
    let (files, login) = (Files::new(), Login::new(""));
    let Sshd { addr, user, .. } = &login.sshd;
    let key = login.sshd.path("id").display().to_string();
    let missing = files.path("none/g").display().to_string();
    let words = ["-reverse-sock", &format!("ssh://{user}@{addr}{missing}"), "-reverse-dest", &files.host()];
    let daemon = Daemon::builder().without_qemu().args(words).args(["-forward-identity", &key]).spawn();
    wait_for_log(&daemon, &["its directory is not there"]);
    fs::create_dir(files.path("none")).unwrap();
    wait_for_log(&daemon, &[MADE]);
}

/// Both ways at once, from the file; and a TCP port of the host.
#[test]
fn from_the_file() {
    let files = Files::new();
    let server = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let port = server.local_addr().unwrap().port();
    let login = Login::new("");
    let (first, second) = (files.path("g"), files.path("s"));
    let yaml = format!(
        "reverse:\n- socket: agent://{}\n  dest: tcp://127.0.0.1:{port}\n- socket: ssh://{}@{}{}\n  dest: {}\n  identity: {}\n",
        first.display(),
        login.sshd.user,
        login.sshd.addr,
        second.display(),
        files.host(),
        login.sshd.path("id").display(),
    );
    let config = files.path("config.yaml");
    fs::write(&config, yaml).unwrap();
    let daemon = Daemon::builder().args(["-config", config.to_str().unwrap()]).start();
    let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
    assert_eq!(guest.dhcp().ip(), GUEST);
    let _agent = Agent::start(&guest, &["-agent-offer", &format!("unix://{}?mode=0666", first.display())]);
    wait_for_log(&daemon, &[MADE, &first.display().to_string()]);
    wait_for_log(&daemon, &[MADE, &second.display().to_string()]);
    assert_eq!(fs::metadata(&first).unwrap().permissions().mode() & 0o777, 0o666);
    let _server = Server::echo(files.host());
    streams::assert_echo(&streams::connect(&at(&second)).unwrap(), b"over SSH");
    let mut client = streams::connect(&at(&first)).unwrap();
    client.write_all(b"by the agent").unwrap();
    let mut far = accept(&server);
    let mut bytes = [0; 12];
    far.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"by the agent");
    drop(far);
    streams::assert_closed(&client);
}

#[test]
fn what_cannot_be_meant_ends_at_once() {
    for (words, text) in [
        (
            &["-reverse-sock", "/g"][..],
            "-reverse-sock and -reverse-dest belong together: there are 1 and 0 of them",
        ),
        (&["-reverse-sock", "/g", "-reverse-sock", "/i", "-reverse-dest", "/h"], "there are 2 and 1 of them"),
        (&["-reverse-sock", "g", "-reverse-dest", "/h"], "not an absolute path"),
        (&["-reverse-sock", "/g", "-reverse-dest", "agent:///h"], "a socket of the host is needed"),
        (&["-reverse-sock", "unix:///g", "-reverse-dest", "/h"], "not a socket in a guest"),
        (&["-reverse-sock", "ssh://u@127.0.0.1/g", "-reverse-dest", "/h"], "no key"),
    ] {
        let mut daemon = Daemon::builder().without_qemu().args(words).spawn();
        let status = daemon.wait(PATIENCE).expect("it ends");
        let log = daemon.stderr();
        assert!(status.code() == Some(1) && log.contains(text), "{words:?}: {log}");
    }
}

/// A guest, or a daemon, that stands still looks like one that has vanished: nothing comes, and nothing says
/// so.
#[test]
fn who_vanished_is_noticed() {
    let frozen = |rig: &Rig| {
        let (daemon, agent) = (rig.daemon.pid(), rig.agent.as_ref().unwrap().child.id());
        [daemon, agent].map(|pid| Pid::from_raw(i32::try_from(pid).unwrap()).unwrap())
    };
    let other = spawn(move || {
        let rig = Rig::start(Way::Agent);
        let [daemon, _] = frozen(&rig);
        kill_process(daemon, Signal::STOP).unwrap();
        // One of its connections has a client, which is no sign of life.
        let client = rig.connect();
        eventually("the agent gives the host up", 3 * PATIENCE, || {
            (!Path::new(&rig.files.guest()).exists()).then_some(())
        });
        kill_process(daemon, Signal::CONT).unwrap();
        drop(client);
        let _server = rig.serve(echo);
        rig.echo_comes();
    });
    let rig = Rig::start(Way::Agent);
    let [_, agent] = frozen(&rig);
    kill_process(agent, Signal::STOP).unwrap();
    eventually("the daemon gives the agent up", 3 * PATIENCE, || {
        rig.daemon.stderr().contains("no sign of life").then_some(())
    });
    kill_process(agent, Signal::CONT).unwrap();
    let _server = rig.serve(echo);
    rig.echo_comes();
    other.join().unwrap();
}

/// What somebody else at the agent's port may do to the daemon.
#[test]
fn hostile_agents_cost_little() {
    let files = Files::new();
    let daemon = start_daemon(&files, None);
    let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
    assert_eq!(guest.dhcp().ip(), GUEST);
    let listener = guest.listen(SocketAddr::from((GUEST, gvproxy::agent::PORT)));
    let next = || {
        let stream = accept(&listener);
        let mut line = Vec::new();
        while !line.ends_with(b"\n") {
            let mut byte = [0];
            (&stream).read_exact(&mut byte).unwrap();
            line.push(byte[0]);
        }
        let lines = ["", "ONLY "].map(|only| format!("ACCEPT {only}{}\n", files.guest()).into_bytes());
        assert!(lines.contains(&line), "{}", String::from_utf8_lossy(&line));
        stream
    };
    let before = daemon.rss_kb();
    // Accepts and ends: it is not asked without a pause.
    let started = Instant::now();
    let mut asked = 0;
    while started.elapsed() < Duration::from_secs(3) {
        let _ = next().write_all(b"OK\n");
        asked += 1;
    }
    assert!(asked < 30, "asked {asked} times in 3 s");
    for answer in
        [&b"SSH-2.0-OpenSSH_9.2\r\n"[..], b"OK\nCLIENT \n", b"CLIENT\n", b"ERR \x1b[31mred\n", b"\n\n", b""]
    {
        let _ = next().write_all(answer);
    }
    // Lines without an end, empty ones without an end, and clients without an end.
    let _ = next().write_all(&vec![b'x'; 1 << 20]);
    let mut signs = next();
    signs.write_all(b"OK\n").unwrap();
    signs.write_all(&vec![b'\n'; 1 << 20]).unwrap();
    drop(signs);
    for _ in 0..200 {
        let _ = next().write_all(b"OK\nCLIENT\nhello");
    }
    let grown = daemon.rss_kb().saturating_sub(before);
    assert!(grown < 20 << 10, "{grown} KiB more");
    let lines = said(&daemon, "reverse:");
    assert!(lines <= 20 && !daemon.stderr().contains('\x1b'), "{lines} lines:\n{}", daemon.stderr());
    // One that does as it should is served.
    let _server = Server::echo(files.host());
    let mut agent = next();
    agent.write_all(b"OK\n\n\nCLIENT\nhello").unwrap();
    agent.shutdown(Shutdown::Write).unwrap();
    let mut answer = Vec::new();
    agent.read_to_end(&mut answer).unwrap();
    assert_eq!(answer, b"hello");
}
