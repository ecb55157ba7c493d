//! Notifications through the binary: what is told while a link or the daemon ends, which the original may be
//! too late for. What it tells as well is in `parity`.

use std::io::Write;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use testkit::cable::{Cable, Kind};
use testkit::daemon::Daemon;
use testkit::frames::{IP, MAC, Wire, arp};
use testkit::net::GATEWAY;
use testkit::notices::Listener;

testkit::agent_in_a_namespace!();

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");
const PATIENCE: Duration = Duration::from_secs(10);
const READY: &str = "{\"notification_type\":\"ready\"}\n";
const HYPERVISOR_ERROR: &str = "{\"notification_type\":\"hypervisor_error\"}\n";

fn message(kind: &str, mac: [u8; 6]) -> String {
    let mac = mac.map(|octet| format!("{octet:02x}")).join(":");
    format!("{{\"notification_type\":\"{kind}\",\"mac_address\":\"{mac}\"}}\n")
}

fn hello(mac: [u8; 6]) -> Vec<u8> {
    arp(1, mac, IP, [0; 6], GATEWAY)
}

const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];

fn invented(i: u16) -> [u8; 6] {
    let [high, low] = i.to_be_bytes();
    [2, 0, 0, 1, high, low]
}

/// Two machines behind one link.
fn comes_and_goes(cable: Cable, listener: &Listener) {
    let mut wire = Wire::over(cable);
    wire.send_all([&hello(MAC)[..], &hello(OTHER)]);
    assert_eq!(listener.next("the first"), message("connection_established", MAC));
    assert_eq!(listener.next("the second"), message("connection_established", OTHER));
    drop(wire);
    let mut left = [listener.next("one that left"), listener.next("another that left")];
    left.sort();
    assert_eq!(left, [OTHER, MAC].map(|mac| message("connection_closed", mac)));
}

/// Where COMPAT.md says that we differ.
mod ours {
    use super::*;

    /// The links that the run ends with.
    #[test]
    fn every_link_tells_who_came_and_who_left() {
        for kind in [Kind::Qemu, Kind::Bess, Kind::Vfkit(true), Kind::Stdio] {
            let listener = Listener::new();
            let mut daemon = kind.builder().binary(OURS).args(["-notification", &listener.url]).spawn();
            assert_eq!(listener.next("ready"), READY);
            let mut wire = Wire::over(kind.plug(&mut daemon));
            wire.send(&hello(MAC));
            assert_eq!(listener.next("who came"), message("connection_established", MAC), "{kind:?}");
            if matches!(kind, Kind::Vfkit(_)) {
                // The end of a datagram socket is silent.
                assert!(daemon.terminate().success());
            } else {
                drop(wire);
            }
            assert_eq!(listener.next("who left"), message("connection_closed", MAC), "{kind:?}");
            if kind == Kind::Stdio {
                assert_eq!(listener.next("the end of the input"), HYPERVISOR_ERROR);
            }
        }
    }

    fn start(listener: &Listener) -> Daemon {
        let daemon = Daemon::builder().binary(OURS).args(["-notification", &listener.url]).start();
        assert_eq!(listener.next("ready"), READY);
        daemon
    }

    /// The original ends before it has told, more often than not.
    #[test]
    fn who_leaves_is_told_of_although_the_daemon_ends() {
        for by_signal in [false, true] {
            let listener = Listener::new();
            let mut daemon = start(&listener);
            let mut wire = Wire::plug(&daemon);
            wire.send_all([&hello(MAC)[..], &hello(OTHER)]);
            for mac in [MAC, OTHER] {
                assert_eq!(listener.next("one that came"), message("connection_established", mac));
            }
            if by_signal {
                assert!(daemon.terminate().success());
            } else {
                wire.unplug();
                assert!(daemon.wait(PATIENCE).expect("an end").success());
            }
            for mac in [OTHER, MAC] {
                assert_eq!(listener.next("one that left"), message("connection_closed", mac));
            }
        }
    }

    #[test]
    fn links_through_the_api_tell_too() {
        let listener = Listener::new();
        let args = ["-notification", &listener.url, "-listen", "unix://{dir}/api.sock"];
        let daemon = Daemon::builder().binary(OURS).args(args).start();
        assert_eq!(listener.next("ready"), READY);
        for _ in 0..2 {
            let mut stream = UnixStream::connect(daemon.dir().join("api.sock")).unwrap();
            stream.write_all(b"POST /connect HTTP/1.1\r\nHost: \r\nContent-Length: 0\r\n\r\n").unwrap();
            // Beside QEMU's socket it speaks as that does.
            comes_and_goes(stream.into(), &listener);
        }
    }

    /// The original tells, or ends before it has.
    #[test]
    fn a_socket_that_cannot_be_had_is_the_hypervisors_error() {
        for link in [
            "-listen-qemu=unix:///nonexistent/s",
            "-listen-vpnkit=unix:///nonexistent/s",
            "-listen-bess=unixpacket:///nonexistent/s",
            "-listen-vfkit=unixgram:///nonexistent/s",
        ] {
            let listener = Listener::new();
            let mut daemon = Daemon::builder()
                .binary(OURS)
                .without_qemu()
                .args(["-notification", &listener.url, link])
                .spawn();
            assert_eq!(daemon.wait(PATIENCE).expect("an end").code(), Some(1), "{link}");
            assert_eq!(listener.next("the error"), HYPERVISOR_ERROR, "{link}");
        }
    }

    #[test]
    fn what_cannot_be_told_is_logged_a_few_times() {
        let dir = tempfile::tempdir().unwrap();
        let url = format!("unix://{}/absent", dir.path().display());
        let mut daemon = Daemon::builder().binary(OURS).args(["-notification", &url]).start();
        let mut wire = Wire::plug(&daemon);
        for i in 0..1000 {
            wire.send(&hello(invented(i)));
        }
        assert!(wire.is_alive());
        assert!(daemon.terminate().success());
        let log = daemon.stderr();
        let lines = log.lines().filter(|line| line.contains("send notification")).count();
        assert!((1..=10).contains(&lines), "{lines} lines\n{log}");
        assert!(log.contains("reason=\"no such file or directory\""), "{log}");
    }
}
