//! Notifications: what is told, in which order, and that nobody waits for who does not listen. Reference 6.
//!
//! Not here: what the original tells, or does not, while it ends: that is a race in it. tests/notify.rs has
//! ours.

use std::os::unix::net::UnixListener;
use std::time::{Duration, Instant};

use crate::case::{Case, On, Table};
use crate::wire::{PATIENCE, SILENCE};
use testkit::cable::Kind;
use testkit::daemon::Daemon;
use testkit::frames::{BROADCAST, GATEWAY_MAC, IP, MAC, Wire, arp};
use testkit::net::GATEWAY;
use testkit::notices::Listener;

const READY: &str = r#"{"notification_type":"ready"}"#;
const OTHER: [u8; 6] = [2, 0, 0, 0, 0, 9];
const THIRD: [u8; 6] = [2, 0, 0, 0, 0, 10];

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("notify");
    let told = |kind: &str, mac: &str| format!(r#"{{"notification_type":"{kind}","mac_address":"{mac}"}}"#);
    let came = |mac: &str| told("connection_established", mac);
    let [known, other, third] = ["5a:94:ef:e4:0c:ee", "02:00:00:00:00:09", "02:00:00:00:00:0a"];
    let seen = [READY.to_owned(), came(known), came(other), came(third)].join(" ");
    table.same("9.21 ready, and each machine when it first speaks", seen, |on| {
        let listener = Listener::new();
        let daemon = on.daemon().args(["-notification", &listener.url]).start();
        let mut told = vec![heard(&listener, PATIENCE)];
        let mut wire = Wire::plug(&daemon);
        wire.send(&hello(MAC));
        told.push(heard(&listener, PATIENCE));
        wire.send_all([&hello(MAC)[..], &hello(OTHER), &hello(MAC), &hello(THIRD)]);
        told.extend([heard(&listener, PATIENCE), heard(&listener, PATIENCE)]);
        told.join(" ")
    });
    let seen = [came(known), came(other), told("connection_closed", other), told("connection_closed", known)]
        .join(" ");
    table.same("9.21 a link that ends, and comes again", format!("{READY} {seen} {seen}"), |on| {
        let listener = Listener::new();
        let mut daemon =
            Kind::Vpnkit.builder().binary(&on.binary).args(["-notification", &listener.url]).spawn();
        let mut told = vec![heard(&listener, PATIENCE)];
        for _ in 0..2 {
            let mut wire = Wire::over(Kind::Vpnkit.plug(&mut daemon));
            wire.send_all([&hello(MAC)[..], &hello(OTHER)]);
            told.extend([heard(&listener, PATIENCE), heard(&listener, PATIENCE)]);
            drop(wire);
            let mut left = [heard(&listener, PATIENCE), heard(&listener, PATIENCE)];
            left.sort();
            told.extend(left);
        }
        told.join(" ")
    });
    table.same("a link on which nobody spoke", format!("{READY}, then nothing"), |on| {
        let listener = Listener::new();
        let mut daemon =
            Kind::Vpnkit.builder().binary(&on.binary).args(["-notification", &listener.url]).spawn();
        let first = heard(&listener, PATIENCE);
        drop(Wire::over(Kind::Vpnkit.plug(&mut daemon)));
        format!("{first}, then {}", heard(&listener, SILENCE))
    });
    table.differs(
        "machines with the gateway's address and a group's",
        "a machine with the gateway's or a group address",
        "1 told",
        "3 told",
        |on| {
            let listener = Listener::new();
            let daemon = on.daemon().args(["-notification", &listener.url]).start();
            heard(&listener, PATIENCE);
            let mut wire = Wire::plug(&daemon);
            wire.send_all([&hello(GATEWAY_MAC)[..], &hello(BROADCAST), &hello(MAC)]);
            let told = std::iter::from_fn(|| listener.messages.recv_timeout(SILENCE).ok()).count();
            format!("{told} told")
        },
    );
    for (rows, name) in [("10.71", "absent"), ("10.72", "deaf")] {
        let drive = move |on: &On| unheard(on, name).0;
        table.same(format!("{rows} a socket that is {name} delays nobody"), "the gateway answers", drive);
    }
    table.differs(
        "10.71 how often it is logged that nobody listens",
        "failures to tell",
        "a few times",
        "each time",
        |on| {
            let (_, daemon) = unheard(on, "absent");
            let lines = || daemon.stderr().matches("failed to send notification").count();
            // Both write on for a moment.
            let deadline = Instant::now() + PATIENCE;
            while lines() < (if on.is_ours { 1 } else { 50 }) && Instant::now() < deadline {
                std::thread::yield_now();
            }
            match lines() {
                1..=10 => "a few times".to_owned(),
                50.. => "each time".to_owned(),
                n => format!("{n} times"),
            }
        },
    );
    table.differs(
        "the file's notification as a URL",
        "`notification: unix:///path`",
        READY,
        "nothing",
        |on| from_file(on, "unix://"),
    );
    table.same("the file's notification as a path", READY, |on| from_file(on, ""));
    table.done()
}

/// What is told first where the file names the socket, with `scheme` before it.
fn from_file(on: &On, scheme: &str) -> String {
    let listener = Listener::new();
    let dir = tempfile::tempdir().unwrap();
    let config = dir.path().join("config.yaml");
    let path = listener.url.trim_start_matches("unix://");
    std::fs::write(&config, format!("notification: {scheme}{path}\n")).unwrap();
    let _daemon = on.daemon().args(["-config".as_ref(), config.as_os_str()]).start();
    let patience = if scheme.is_empty() || on.is_ours { PATIENCE } else { SILENCE };
    heard(&listener, patience)
}

/// A daemon whose messages nobody takes, after 300 machines.
fn unheard(on: &On, name: &str) -> (String, Daemon) {
    let dir = tempfile::tempdir().unwrap();
    let _deaf = UnixListener::bind(dir.path().join("deaf")).unwrap();
    let url = format!("unix://{}/{name}", dir.path().display());
    let daemon = on.daemon().args(["-notification", &url]).start();
    let mut wire = Wire::plug(&daemon);
    for n in 0..300_u16 {
        let [high, low] = n.to_be_bytes();
        wire.send(&hello([2, 0, 0, 1, high, low]));
    }
    let alive = if wire.is_alive() { "the gateway answers" } else { "the gateway is silent" };
    (alive.to_owned(), daemon)
}

fn hello(mac: [u8; 6]) -> Vec<u8> {
    arp(1, mac, IP, [0; 6], GATEWAY)
}

/// The next message without the end of its line.
fn heard(listener: &Listener, patience: Duration) -> String {
    match listener.messages.recv_timeout(patience) {
        Ok(text) => text.strip_suffix('\n').map_or_else(|| format!("{text} without an end"), str::to_owned),
        Err(_) => "nothing".to_owned(),
    }
}
