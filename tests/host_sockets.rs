//! The daemon's sockets on a host whose ports, addresses and routes are not what a daemon would like.
#![cfg(target_os = "linux")]
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]
mod support;

use std::io::{BufRead, BufReader, ErrorKind, Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::os::unix::net::UnixStream;
use std::process::Stdio;
use std::time::Duration;

use support::daemon::{Daemon, binary};
use support::eventually;
use support::net::{ELSEWHERE, HOST, Host, Net};
use support::ns::Namespace;

const PATIENCE: Duration = Duration::from_secs(5);

/// The one port that connects of a [`narrow`] network come from.
const PORT: u16 = 40_000;

/// Leaves a network so few ports that a connect to the first of them, where nobody listens, is given that very port.
fn narrow(ns: &Namespace, ports: u16) {
    let range = format!("echo {PORT} {} >/proc/sys/net/ipv4/ip_local_port_range", PORT + ports - 1);
    ns.run(["sh", "-c", &range]);
}

fn narrow_host(ports: u16) -> Host {
    let host = Host::new("nameserver 127.0.0.1\n");
    narrow(&host, ports);
    host
}

/// A service at [`PORT`] as most are made, which TIME-WAIT keeps out too.
fn serve(ns: &Namespace) -> std::io::Result<TcpListener> {
    let socket = ns.tcp();
    socket.bind(&SocketAddr::from((Ipv4Addr::LOCALHOST, PORT)).into())?;
    socket.listen(16)?;
    Ok(socket.into())
}

/// Waits until somebody there has called connect(2) for TCP: `ActiveOpens` of RFC 4022.
#[track_caller]
fn attempted(ns: &Namespace) {
    eventually("an attempt to connect", PATIENCE, || {
        let counters = ns.run(["grep", "Tcp:", "/proc/net/snmp"]);
        let opens = counters.lines().nth(1)?.split(' ').nth(5)?;
        (opens != "0").then_some(())
    });
}

#[test]
fn a_connect_of_a_guest_does_not_meet_itself() {
    const TRIES: usize = 25;
    let net = Net::with(narrow_host(1), Daemon::builder(), 1500);
    for address in [HOST, ELSEWHERE] {
        let (mut refused, mut free) = (0, 0);
        for _ in 0..TRIES {
            let connected = net.guest.connect((address, PORT).into());
            refused +=
                usize::from(connected.is_err_and(|error| error.kind() == ErrorKind::ConnectionRefused));
            free += usize::from(serve(&net.host).is_ok());
        }
        assert_eq!((refused, free), (TRIES, TRIES), "{address}: refused, and the port free for a service");
    }
    let listener = serve(&net.host).unwrap();
    narrow(&net.host, 2);
    net.guest.connect((HOST, PORT).into()).expect("a service is reached");
    listener.accept().unwrap();
}

#[test]
fn a_forward_waits_for_its_service_and_not_for_itself() {
    let host = narrow_host(1);
    let dest = format!("tcp://127.0.0.1:{PORT}");
    let forward = ["-forward-sock", "{dir}/sock", "-forward-dest", &dest];
    let daemon = Daemon::builder().through(host.prefix()).args(forward).start();
    let mut client = UnixStream::connect(daemon.dir().join("sock")).unwrap();
    client.write_all(b"question").unwrap();
    client.set_read_timeout(Some(PATIENCE)).unwrap();
    attempted(&host);
    let listener = eventually("the service's port", PATIENCE, || serve(&host).ok());
    narrow(&host, 2);
    let (mut service, _) = listener.accept().unwrap();
    let mut question = [0; 8];
    service.read_exact(&mut question).unwrap();
    service.write_all(b"answer").unwrap();
    drop(service);
    let mut answer = String::new();
    client.read_to_string(&mut answer).unwrap();
    assert_eq!((&question, answer.as_str()), (b"question", "answer"));
}

#[test]
fn a_qmp_session_is_not_with_itself() {
    let host = narrow_host(1);
    let qmp = format!("tcp://127.0.0.1:{PORT}");
    let _daemon = Daemon::builder().through(host.prefix()).args(["-qmp", &qmp]).start();
    attempted(&host);
    let listener = eventually("QEMU's port", PATIENCE, || serve(&host).ok());
    narrow(&host, 2);
    let (mut qemu, _) = listener.accept().unwrap();
    qemu.set_read_timeout(Some(PATIENCE)).unwrap();
    let version = r#"{"qemu": {"micro": 0, "minor": 2, "major": 9}, "package": ""}"#;
    writeln!(qemu, r#"{{"QMP": {{"version": {version}, "capabilities": []}}}}"#).unwrap();
    let mut line = String::new();
    BufReader::new(qemu).read_line(&mut line).unwrap();
    assert!(line.contains("qmp_capabilities"), "{line}");
}

#[test]
fn a_daemon_that_is_asked_for_its_machines_is_not_the_asker() {
    let host = narrow_host(1);
    let listen = format!("tcp://127.0.0.1:{PORT}");
    let args = ["-qmp", "unix:///nowhere", "-listen", &listen, "-qmp-status"];
    let asked = host.command(binary()).args(args).output().unwrap();
    let said = String::from_utf8_lossy(&asked.stderr);
    assert!(said.contains("Connection refused"), "{said}");
}

#[test]
fn a_guests_gvforwarder_does_not_connect_to_itself() {
    let host = narrow_host(1);
    let mut child = host
        .command(env!("CARGO_BIN_EXE_gvforwarder"))
        .args(["-url", &format!("tcp://127.0.0.1:{PORT}/connect")])
        .stdin(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut log = BufReader::new(child.stderr.take().unwrap());
    let mut line = String::new();
    while !line.contains("reason") && log.read_line(&mut line).unwrap() > 0 {}
    let _ = child.kill();
    child.wait().unwrap();
    assert!(line.contains("connection refused"), "{line}");
}
