//! The examples do what their heads say. Owns: nothing. May not: test more than that.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helper fails like the test")]

use std::ffi::OsStr;
use std::path::PathBuf;
use std::process::Command;

use testkit::daemon::Daemon;
use testkit::free_port;
use testkit::qemu::{Q35, Qemu};

testkit::agent_in_a_namespace!();

/// What an example says. They are built with all tests, or by `cargo build --examples`.
#[track_caller]
fn run<S: AsRef<OsStr>>(example: &str, arguments: &[S]) -> String {
    let tests = std::env::current_exe().expect("a path");
    let examples: PathBuf = tests.ancestors().nth(2).expect("the profile's directory").join("examples");
    let output = Command::new(examples.join(example)).args(arguments).output().expect(example);
    assert!(output.status.success(), "{example}: {output:#?}");
    String::from_utf8(output.stdout).unwrap()
}

#[test]
fn virtual_network() {
    let said = run::<&str>("virtual_network", &[]);
    for line in [
        "192.168.127.11 asks for the gateway:\n  to port 1: an ARP request of 42 bytes\n  to port 0: an ARP reply of 42 bytes",
        "who answers:\n  to port 0: an ARP request of 42 bytes\n  to port 1: an ARP reply of 42 bytes",
        "  the driver is to connect to 192.0.2.80:80, and says that nobody is there\n  to port 0: a TCP segment",
        "  02:00:00:00:00:01 is gone\n",
    ] {
        assert!(said.contains(line), "{line:?} is not in\n{said}");
    }
}

#[test]
fn embedded_daemon() {
    let said = run::<&str>("embedded_daemon", &[]);
    assert!(said.starts_with("192.168.127.2 reads from 192.168.127.254:"), "{said}");
    assert!(said.ends_with(": hello, guest\nthe network is gone\n"), "{said}");
}

#[test]
fn forward_socket() {
    let said = run::<&str>("forward_socket", &[]);
    assert_eq!(said, "answer: you asked \"who is there?\"\nthe socket is gone\n");
}

#[test]
fn expose_port() {
    let api = tempfile::tempdir().unwrap();
    let api = api.path().join("api");
    let daemon = Daemon::builder().args(["-listen", &format!("unix://{}", api.display())]).start();
    let local = format!("127.0.0.1:{}", free_port());
    let said = run("expose_port", &[api.to_str().unwrap(), &local, "192.168.127.2:80"]);
    assert!(said.contains(&format!("\"local\":\"{local}\"")), "{said}");
    assert!(said.ends_with("taken back\n"), "{said}");
    drop(daemon);
}

#[test]
fn attach_by_qmp() {
    let directory = tempfile::Builder::new().prefix("gv").tempdir_in("/tmp").unwrap();
    let (qmp, socket) = (directory.path().join("q"), directory.path().join("s"));
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    let _qemu = Qemu::start(&qmp, Q35);
    let said = run("attach_by_qmp", &[format!("unix://{}", qmp.display()), socket.display().to_string()]);
    assert!(said.contains("example-nic") && said.ends_with("is closed\n"), "{said}");
}
