//! Frames for people to see, through the binary: a capture, read by tcpdump while the daemon runs and after
//! it; and lines of the log.
#![expect(clippy::unwrap_used, clippy::expect_used, reason = "a test's helper fails like the test")]

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use testkit::cable::Kind;
use testkit::daemon::Daemon;
use testkit::frames::{
    GATEWAY_MAC, ICMP, IP, IPV4, MAC, Wire, arp, echo_request, ether, ipv4, is_echo_reply,
};
use testkit::net::GATEWAY;
use testkit::{eventually, tool};

testkit::agent_in_a_namespace!();

const PATIENCE: Duration = Duration::from_secs(10);

/// The packets of a capture, a line each: link header, addresses, protocol.
fn dump(file: &Path) -> Result<Vec<String>, String> {
    let output = Command::new(tool("tcpdump", "tcpdump"))
        .args(["-e", "-n", "-t", "-r"])
        .arg(file)
        .output()
        .expect("tcpdump");
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    if !output.status.success() || error.contains("truncated") {
        return Err(error);
    }
    assert!(error.contains("link-type EN10MB (Ethernet), snapshot length 131072"), "{error}");
    Ok(String::from_utf8_lossy(&output.stdout).lines().map(str::to_owned).collect())
}

fn ping(number: u16) -> Vec<u8> {
    ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, GATEWAY, &echo_request(number)))
}

const OURS: &str = env!("CARGO_BIN_EXE_gvproxy");

#[test]
fn every_frame_is_there_once_and_while_the_daemon_runs() {
    // More than the link's socket holds at once, and some over each of the others.
    every_frame_is_there_once(Kind::Qemu, 5000);
    for kind in [Kind::Vpnkit, Kind::Bess, Kind::Vfkit(true), Kind::Stdio] {
        every_frame_is_there_once(kind, 300);
    }
}

fn every_frame_is_there_once(kind: Kind, pings: u16) {
    let mut daemon = kind.builder().binary(OURS).args(["-pcap", "{dir}/c.pcap"]).spawn();
    let mut wire = Wire::over(kind.plug(&mut daemon));
    let file = daemon.dir().join("c.pcap");
    let head = eventually("a file", PATIENCE, || dump(&file).ok());
    assert!(head.is_empty(), "a head without packets: {head:#?}");

    wire.send(&arp(1, MAC, IP, [0; 6], GATEWAY));
    let lines = eventually("question and answer in the file", PATIENCE, || {
        dump(&file).ok().filter(|lines| lines.len() == 2)
    });
    assert!(lines[0].contains("5a:94:ef:e4:0c:ee > ff:ff:ff:ff:ff:ff, ethertype ARP"), "{lines:#?}");
    assert!(lines[1].contains("192.168.127.1 is-at 5a:94:ef:e4:0c:dd"), "{lines:#?}");

    for number in 0..pings {
        wire.send(&ping(number));
        if number % 100 == 99 {
            let answered = wire.receive(PATIENCE, |frame| is_echo_reply(frame, number));
            assert!(answered.is_some(), "{kind:?}: ping {number}");
        }
    }
    assert!(daemon.terminate().success());
    let lines = dump(&file).unwrap();
    let of = |text: &str| lines.iter().filter(|line| line.contains(text)).count();
    let pings = usize::from(pings);
    let found = (of("ICMP echo request"), of("ICMP echo reply"), lines.len());
    assert_eq!(found, (pings, pings, 2 * pings + 2), "{kind:?}");
}

#[test]
fn a_frame_from_guest_to_guest_is_there_once() {
    const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
    let mut daemon = Daemon::builder().binary(OURS).args(["-keep-running", "-pcap", "{dir}/c.pcap"]).start();
    let (mut one, mut other) = (Wire::plug(&daemon), Wire::plug(&daemon));
    let ip = Ipv4Addr::new(192, 168, 127, 9);
    // What is broadcast reaches the gateway and the other guest.
    other.send(&arp(1, OTHER, ip, [0; 6], IP));
    assert!(one.receive(PATIENCE, |frame| frame[6..12] == OTHER).is_some());
    one.send(&ether(OTHER, MAC, IPV4, &ipv4(ICMP, IP, ip, &echo_request(1))));
    assert!(other.receive(PATIENCE, |frame| frame[6..12] == MAC).is_some());
    assert!(daemon.terminate().success());
    let lines = dump(&daemon.dir().join("c.pcap")).unwrap();
    assert_eq!(lines.len(), 2, "{lines:#?}");
}

#[test]
fn the_file_of_the_configuration_names_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let (config, file) = (dir.path().join("config.yaml"), dir.path().join("c.pcap"));
    std::fs::write(&config, format!("stack:\n  capture-file: {}\n", file.display())).unwrap();
    for flag in [None, Some(dir.path().join("flag.pcap"))] {
        let mut args = vec!["-config".into(), config.clone().into_os_string()];
        args.extend(flag.iter().flat_map(|file| ["-pcap".into(), file.into()]));
        let mut daemon = Daemon::builder().binary(OURS).args(args).start();
        let mut wire = Wire::plug(&daemon);
        wire.send(&ping(1));
        assert!(wire.receive(PATIENCE, |frame| is_echo_reply(frame, 1)).is_some());
        assert!(daemon.terminate().success());
        assert_eq!(dump(flag.as_ref().unwrap_or(&file)).unwrap().len(), 2);
        assert_eq!(std::fs::remove_file(&file).is_ok(), flag.is_none(), "only one of the two is made");
    }
}

#[test]
fn a_capture_that_cannot_be_written_is_said_at_the_start() {
    let mut daemon = Daemon::builder().binary(OURS).args(["-pcap", "/nonexistent/c.pcap"]).spawn();
    assert_eq!(daemon.wait(PATIENCE).expect("an end").code(), Some(1));
    let text = "cannot create capture file: open /nonexistent/c.pcap: no such file or directory";
    assert!(daemon.stderr().contains(text), "{}", daemon.stderr());
}

/// Lines of the log about frames.
fn logged(daemon: &Daemon) -> Vec<String> {
    daemon.stderr().lines().filter(|line| line.contains(" msg=frame ")).map(str::to_owned).collect()
}

#[test]
fn debug_logs_frames_but_no_flood_of_them() {
    let mut daemon = Daemon::builder().binary(OURS).args(["-debug"]).start();
    let mut wire = Wire::plug(&daemon);
    wire.send(&arp(1, MAC, IP, [0; 6], GATEWAY));
    let lines = eventually("question and answer", PATIENCE, || {
        let lines = logged(&daemon);
        (lines.len() == 2).then_some(lines)
    });
    let [asked, answered] = &lines[..] else { unreachable!() };
    let expected = "level=info msg=frame from=guest len=42 protocol=ARP kind=who-has src=192.168.127.2 \
                    dst=192.168.127.1 hardware=\"5a:94:ef:e4:0c:ee\" src_mac=\"5a:94:ef:e4:0c:ee\" \
                    dst_mac=\"ff:ff:ff:ff:ff:ff\" suppressed=0";
    assert!(asked.ends_with(expected), "{asked}");
    let expected = " from=gateway len=42 protocol=ARP kind=is-at src=192.168.127.1 dst=192.168.127.2 ";
    assert!(answered.contains(expected), "{answered}");
    let start = Instant::now();
    for _ in 0..2000 {
        wire.send(&ping(1));
    }
    assert!(wire.is_alive());
    // What passed is summed up.
    eventually("the counters", PATIENCE, || daemon.stderr().contains("received_frames=20").then_some(()));
    assert!(daemon.terminate().success());
    let (lines, windows) = (logged(&daemon), 2 + start.elapsed().as_secs() as usize / 5);
    assert!(lines.len() >= 100 && lines.len() <= 100 * windows, "{} lines in {windows} windows", lines.len());
    assert!(
        lines.iter().any(
            |line| line.contains(" protocol=ICMP kind=echo-request src=192.168.127.2 dst=192.168.127.1 ")
        ),
        "{lines:#?}"
    );
}

#[test]
fn the_file_says_how_many_frames_are_logged() {
    const PINGS: usize = 300;
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    for (yaml, level, count) in [
        ("log-level: info\n", "", 0..=0),
        ("stack: {debug: true}\n", "info", 100..=300),
        ("log-level: trace\n", "trace", 2 * PINGS..=2 * PINGS),
    ] {
        std::fs::write(&config, yaml).unwrap();
        let args = ["-config", config.to_str().unwrap()];
        let mut daemon = Daemon::builder().binary(OURS).args(args).start();
        let mut wire = Wire::plug(&daemon);
        for _ in 0..PINGS {
            wire.send(&ping(1));
            let answered = wire.receive(PATIENCE, |frame| is_echo_reply(frame, 1));
            assert!(answered.is_some(), "{yaml}");
        }
        assert!(daemon.terminate().success());
        let lines = logged(&daemon);
        assert!(count.contains(&lines.len()), "{yaml}: {} lines", lines.len());
        assert!(lines.iter().all(|line| line.contains(&format!(" level={level} "))), "{lines:#?}");
    }
}
