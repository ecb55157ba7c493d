//! What the daemon's system calls move while it forwards: all of the payload by splice, none of it through
//! the daemon's memory.
#![allow(
    clippy::unwrap_used,
    clippy::expect_used,
    clippy::panic,
    clippy::print_stderr,
    reason = "a test fails by panic"
)]

use std::net::{Ipv4Addr, Shutdown, SocketAddr};
use std::thread;

use socket2::{Domain, SockAddr, Socket, Type};
use testkit::daemon::Daemon;
use testkit::strace::{CALLS, Calls};
use testkit::streams::{PATIENCE, at, connect};
use testkit::traffic::{check, send_from};
use testkit::{eventually, tool};

testkit::agent_in_a_namespace!();

/// Bytes each way.
const PAYLOAD: u64 = 32 << 20;
/// `PAYLOAD` from one end to the other, and its end.
#[track_caller]
fn carry(from: &Socket, to: &Socket) {
    let received = thread::scope(|scope| {
        scope.spawn(|| {
            send_from(from, 0, PAYLOAD).and_then(|()| from.shutdown(Shutdown::Write)).expect("it is taken")
        });
        check(to)
    });
    assert_eq!(received.expect("it arrives"), PAYLOAD);
}

/// A server's listener, and how the daemon's command line names it.
fn server(domain: Domain, dir: &std::path::Path) -> (Socket, String) {
    let listener = Socket::new(domain, Type::STREAM, None).unwrap();
    let path = dir.join("server");
    let address = match domain {
        Domain::UNIX => at(&path),
        _ => SocketAddr::from((Ipv4Addr::LOCALHOST, 0)).into(),
    };
    listener.bind(&address).unwrap();
    listener.listen(1).unwrap();
    listener.set_read_timeout(Some(PATIENCE)).unwrap();
    let name = match listener.local_addr().unwrap().as_socket() {
        Some(address) => format!("tcp://{address}"),
        None => format!("unix://{}", path.display()),
    };
    (listener, name)
}

/// Carries the payload both ways under strace, and looks at what was called.
#[track_caller]
fn assert_spliced(source: Domain, dest: Domain) {
    let dir = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
    let (listener, dest) = server(dest, dir.path());
    let (entry, trace) = (dir.path().join("entry"), dir.path().join("trace"));
    let listen = match source {
        Domain::UNIX => format!("unix://{}", entry.display()),
        _ => "tcp://127.0.0.1:0".to_owned(),
    };
    // The daemon stays this process's child, which strace is not to come between.
    let strace = [tool("strace", "strace"), "-D".into(), "-f".into(), "-s0".into(), "-e".into()];
    let what = [format!("trace={CALLS}").into(), "-o".into(), trace.clone()];
    let daemon = Daemon::builder().without_qemu().args(["-forward-sock", &listen, "-forward-dest", &dest]);
    let mut daemon = daemon.through(strace.into_iter().chain(what)).spawn();
    let address: SockAddr = match source {
        Domain::UNIX => at(&entry),
        _ => SocketAddr::from((Ipv4Addr::LOCALHOST, daemon.tcp_port("127.0.0.1"))).into(),
    };
    let client = eventually("a place to connect to", PATIENCE, || {
        assert!(daemon.is_running(), "the daemon has ended: {}", daemon.stderr());
        connect(&address).ok()
    });
    let (server, _) = listener.accept().expect("the client comes through");
    server.set_read_timeout(Some(PATIENCE)).unwrap();
    server.set_write_timeout(Some(PATIENCE)).unwrap();
    carry(&client, &server);
    carry(&server, &client);

    let pid = daemon.pid();
    assert!(daemon.terminate().success(), "{}", daemon.stderr());
    let calls = eventually("the end of the trace", PATIENCE, || {
        Calls::read(&std::fs::read_to_string(&trace).unwrap_or_default(), pid)
    });
    calls.assert_spliced(2 * PAYLOAD);
}

#[test]
fn unix_to_unix_is_spliced() {
    assert_spliced(Domain::UNIX, Domain::UNIX);
}

#[test]
fn unix_to_tcp_is_spliced() {
    assert_spliced(Domain::UNIX, Domain::IPV4);
}

#[test]
fn tcp_to_unix_is_spliced() {
    assert_spliced(Domain::IPV4, Domain::UNIX);
}

#[test]
fn tcp_to_tcp_is_spliced() {
    assert_spliced(Domain::IPV4, Domain::IPV4);
}
