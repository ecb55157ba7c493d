//! A guest whose frames are wrong costs itself its answer, and nobody anything else.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::net::Ipv4Addr;
use std::time::Duration;

use etherparse::checksum::Sum16BitWords;
use proptest::prelude::*;
use proptest::strategy::ValueTree;
use proptest::test_runner::{Config, RngAlgorithm, TestRng, TestRunner};
use testkit::daemon::{self, Daemon};
use testkit::frames::{
    ACK, ARP, BROADCAST, GATEWAY_MAC, ICMP, IP, IPV4, MAC, SYN, TCP, UDP, Wire, arp, echo_request, ether,
    fragment, ipv4, read_arp, syn, tcp, udp,
};
use testkit::net::{BLACK_HOLE, GATEWAY, HOST, Host};

testkit::agent_in_a_namespace!();

/// The longest frame that the length word may announce.
const LONGEST: u32 = 131_072;
/// What the daemon may hold after a flood of anything. KiB.
const BOUND: u64 = 64 * 1024;

/// A daemon on a host of its own, since a wrong frame may well be a right one to somewhere, and a guest.
fn start() -> (Wire, Daemon, Host) {
    let host = Host::new("nameserver 127.0.0.1\n");
    let daemon = Daemon::builder().args(["-pid-file", "{dir}/pid"]).through(host.prefix()).start();
    (Wire::plug(&daemon), daemon, host)
}

fn to_gateway(packet: &[u8]) -> Vec<u8> {
    ether(GATEWAY_MAC, MAC, IPV4, packet)
}

fn to_host(protocol: u8, payload: &[u8]) -> Vec<u8> {
    to_gateway(&ipv4(protocol, IP, HOST, payload))
}

/// `bytes` with those at `at` replaced, and the IPv4 header's checksum made right again.
fn spoil(frame: &[u8], at: usize, by: &[u8]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    frame[at..at + by.len()].copy_from_slice(by);
    if frame[12..14] == IPV4.to_be_bytes() && at < 34 && frame.len() >= 34 {
        frame[24..26].fill(0);
        let sum = Sum16BitWords::new().add_slice(&frame[14..34]).ones_complement();
        frame[24..26].copy_from_slice(&sum.to_ne_bytes());
    }
    frame
}

/// One sound frame of every kind that the gateway reads.
fn sound() -> Vec<(&'static str, Vec<u8>)> {
    let discover = {
        let mut message = vec![0; 240];
        message[..4].copy_from_slice(&[1, 1, 6, 0]);
        message[28..34].copy_from_slice(&MAC);
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        [message, vec![53, 1, 1, 55, 3, 1, 3, 6, 255]].concat()
    };
    let question = testkit::dns::question("host.containers.internal", testkit::dns::A, Some(1232));
    let dhcp = ipv4(UDP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp(68, 67, &discover));
    let syn = syn(40000, 9, 1, &[2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7]);
    vec![
        ("ARP", arp(1, MAC, IP, [0; 6], GATEWAY)),
        ("echo", to_gateway(&ipv4(ICMP, IP, GATEWAY, &echo_request(0)))),
        (
            "unreachable",
            to_gateway(&ipv4(
                ICMP,
                IP,
                HOST,
                &[&[3, 3, 0, 0, 0, 0, 0, 0][..], &ipv4(UDP, HOST, IP, &udp(9, 9, b"x"))].concat(),
            )),
        ),
        ("DHCP", ether(BROADCAST, MAC, IPV4, &dhcp)),
        ("DNS", to_gateway(&ipv4(UDP, IP, GATEWAY, &udp(40000, 53, &question)))),
        ("UDP", to_host(UDP, &udp(40000, 9, b"discarded"))),
        ("SYN", to_host(TCP, &syn)),
        ("segment", to_host(TCP, &tcp(40001, 9, 1, 1, ACK, b"stray"))),
        ("fragment", to_gateway(&fragment(UDP, IP, HOST, 7, 0, true, &udp(40000, 9, &[0; 16])))),
    ]
}

#[test]
fn frames_cut_short_anywhere() {
    let (mut wire, _daemon, _host) = start();
    for (name, frame) in sound() {
        for destination in [GATEWAY_MAC, BROADCAST, [2, 0, 0, 0, 0, 9]] {
            for length in 0..=frame.len() {
                let mut cut = frame[..length].to_vec();
                let known = length.min(6);
                cut[..known].copy_from_slice(&destination[..known]);
                wire.send(&cut);
            }
            assert!(wire.is_alive(), "after {name} cut short to {destination:02x?}");
        }
    }
}

#[test]
fn frames_that_lie_about_their_lengths() {
    let (mut wire, _daemon, _host) = start();
    // Where the fields are that say how long something is, and all the lies of one byte about each.
    let fields: &[(&str, &str, usize)] = &[
        ("ARP", "hardware address length", 18),
        ("ARP", "protocol address length", 19),
        ("ARP", "hardware type", 15),
        ("echo", "version and header length", 14),
        ("echo", "total length, high", 16),
        ("echo", "total length, low", 17),
        ("unreachable", "inner version and header length", 42),
        ("unreachable", "inner total length", 45),
        ("DHCP", "version and header length", 14),
        ("DHCP", "UDP length, high", 38),
        ("DHCP", "UDP length, low", 39),
        ("DHCP", "hardware address length", 44),
        ("DHCP", "length of option 53", 283),
        ("DHCP", "length of option 55", 286),
        ("DNS", "UDP length, low", 39),
        ("DNS", "questions", 47),
        ("DNS", "additional records", 53),
        ("DNS", "length of the first label", 54),
        ("DNS", "length of the second label", 59),
        ("UDP", "total length, low", 17),
        ("UDP", "UDP length, high", 38),
        ("UDP", "UDP length, low", 39),
        ("SYN", "version and header length", 14),
        ("SYN", "total length, low", 17),
        ("SYN", "data offset", 46),
        ("SYN", "length of the first option", 55),
        ("SYN", "length of the second option", 59),
        ("SYN", "length of the third option", 61),
        ("segment", "data offset", 46),
        ("segment", "flags", 47),
        ("fragment", "flags and offset, high", 20),
        ("fragment", "offset, low", 21),
    ];
    let sound = sound();
    for &(kind, field, at) in fields {
        let (_, frame) = sound.iter().find(|(name, _)| *name == kind).unwrap();
        let lies: Vec<_> = (0..=255).map(|value| spoil(frame, at, &[value])).collect();
        wire.send_all(lies.iter().map(Vec::as_slice));
        assert!(wire.is_alive(), "after lies about the {field} of {kind}");
    }
}

#[test]
fn fragments_that_make_no_packet() {
    let (mut wire, daemon, _host) = start();
    let piece =
        |id, offset, more, payload: &[u8]| to_gateway(&fragment(UDP, IP, HOST, id, offset, more, payload));
    let head = |length: u16| [&[0, 9, 0, 9][..], &length.to_be_bytes(), &[0; 2 + 24]].concat();
    let cases: Vec<(&str, Vec<Vec<u8>>)> = vec![
        ("teardrop", vec![piece(1, 0, true, &head(60)), piece(1, 3, false, &[1; 4])]),
        (
            "overlap from before",
            vec![piece(2, 0, true, &head(72)), piece(2, 2, true, &[1; 32]), piece(2, 6, false, &[2; 24])],
        ),
        (
            "the same twice",
            vec![piece(3, 0, true, &head(40)), piece(3, 0, true, &head(40)), piece(3, 4, false, &[1; 8])],
        ),
        (
            "two ends",
            vec![piece(4, 8, false, &[1; 8]), piece(4, 4, false, &[1; 8]), piece(4, 0, true, &head(40))],
        ),
        (
            "data behind the end",
            vec![piece(5, 4, false, &[1; 8]), piece(5, 9, true, &[1; 8]), piece(5, 0, true, &head(40))],
        ),
        (
            "past 65535",
            vec![
                piece(6, 8189, true, &[1; 64]),
                piece(6, 8191, false, &[1; 1400]),
                piece(6, 0, true, &head(65535)),
            ],
        ),
        (
            "nothing inside",
            vec![
                piece(7, 0, true, &[]),
                piece(7, 0, false, &[]),
                piece(7, 1, true, &[]),
                piece(7, 8191, false, &[]),
            ],
        ),
        ("no multiple of 8", vec![piece(8, 0, true, &[0; 13]), piece(8, 2, false, &[0; 5])]),
        ("a header in two", vec![piece(9, 1, false, &[0; 8]), piece(9, 0, true, &[0, 9, 0, 9, 0, 16, 0, 0])]),
        (
            "of the gateway's own echo",
            (0..9).map(|n| to_gateway(&fragment(ICMP, IP, GATEWAY, 10, n * 4, n != 3, &[8; 40]))).collect(),
        ),
    ];
    for (name, frames) in &cases {
        wire.send_all(frames.iter().map(Vec::as_slice));
        wire.send_all(frames.iter().rev().map(Vec::as_slice));
        assert!(wire.is_alive(), "after fragments: {name}");
    }
    // Packets that never become whole must not gather.
    for id in 0..=u16::MAX {
        wire.send(&piece(id, 100, true, &[0; 1400]));
    }
    assert!(wire.is_alive());
    let rss = daemon.rss_kb();
    assert!(rss < BOUND, "{rss} KiB after 65536 unfinished packets");
}

#[test]
fn floods_are_bounded() {
    let (mut wire, mut daemon, _host) = start();
    let mac = |n: u32| [&[0x02, 0x77][..], &n.to_be_bytes()].concat().try_into().unwrap();
    let port = |n: u32| n as u16;
    type Flood<'a> = (&'a str, u32, &'a dyn Fn(u32) -> Vec<u8>);
    let floods: [Flood<'_>; 7] = [
        ("source addresses", 100_000, &|n| ether(GATEWAY_MAC, mac(n), IPV4, &[])),
        ("ARP senders", 100_000, &|n| arp(1, mac(n), Ipv4Addr::from_bits(0xc0a8_7f00 | n), [0; 6], GATEWAY)),
        ("DHCP clients", 2_000, &|n| spoil(&sound()[3].1, 70, &mac(n))),
        ("SYNs into a black hole", 10_000, &|n| {
            to_gateway(&ipv4(TCP, IP, BLACK_HOLE, &tcp(port(n), 80, n, 0, SYN, &[])))
        }),
        ("SYNs that are refused", 10_000, &|n| to_host(TCP, &tcp(port(n), 9, n, 0, SYN, &[]))),
        ("UDP flows", 10_000, &|n| to_host(UDP, &udp(port(n), 9, b"x"))),
        ("DNS questions", 10_000, &|n| {
            to_gateway(&ipv4(
                UDP,
                IP,
                GATEWAY,
                &udp(port(n), 53, &testkit::dns::question("a.test", testkit::dns::A, None)),
            ))
        }),
    ];
    for (name, count, frame) in floods {
        for start in (0..count).step_by(500) {
            let frames: Vec<_> = (start..start + 500).map(frame).collect();
            wire.send_all(frames.iter().map(Vec::as_slice));
        }
        assert!(wire.is_alive(), "after a flood of {name}");
        let rss = daemon.rss_kb();
        assert!(rss < BOUND, "{rss} KiB after a flood of {name}");
    }
    let lines = daemon.stderr().lines().count();
    assert!(lines < 1000, "{lines} lines of log that a guest caused");
    assert!(daemon.terminate().success());
}

#[test]
fn random_frames() {
    const CASES: usize = 10_000;
    const BATCH: usize = 100;
    let (mut wire, mut daemon, _host) = start();
    let seed =
        std::env::var("SEED").map_or_else(|_| rand_seed(), |text| text.parse().expect("SEED is a number"));
    let mut bytes = [0; 32];
    bytes[..8].copy_from_slice(&u64::to_le_bytes(seed));
    let rng = TestRng::from_seed(RngAlgorithm::ChaCha, &bytes);
    let mut runner = TestRunner::new_with_rng(Config::default(), rng);

    let noise = prop::collection::vec(any::<u8>(), 0..1600);
    let addressed =
        (prop::collection::vec(any::<u8>(), 0..1600), prop::sample::select(vec![IPV4, ARP, 0x86dd, 0x8100]))
            .prop_map(|(payload, kind)| ether(GATEWAY_MAC, MAC, kind, &payload));
    let kinds: Vec<_> = sound().into_iter().map(|(_, frame)| frame).collect();
    let spoilt = (
        prop::sample::select(kinds),
        prop::collection::vec((any::<prop::sample::Index>(), any::<u8>()), 1..6),
    )
        .prop_map(|(mut frame, changes)| {
            for (index, value) in changes {
                let at = index.index(frame.len());
                frame[at] = value;
            }
            frame
        });
    let frames = prop_oneof![1 => noise, 2 => addressed, 4 => spoilt];
    for batch in 0..CASES / BATCH {
        let batch_frames: Vec<_> =
            (0..BATCH).map(|_| frames.new_tree(&mut runner).expect("a frame").current()).collect();
        wire.send_all(batch_frames.iter().map(Vec::as_slice));
        if !wire.is_alive() {
            let end = daemon.wait(Duration::from_secs(1));
            panic!(
                "SEED={seed}: dead after batch {batch}, ended with {end:?}; of its frames {}",
                culprit(&batch_frames)
            );
        }
    }
    assert!(daemon.terminate().success(), "SEED={seed}");
}

/// The first of `frames` that a new daemon does not survive.
fn culprit(frames: &[Vec<u8>]) -> String {
    let (mut wire, _daemon, _host) = start();
    for frame in frames {
        wire.send(frame);
        if !wire.is_alive() {
            return format!("this one alone is enough: {}", frame.escape_ascii());
        }
    }
    "only all together are enough".to_owned()
}

/// A seed that differs from run to run.
fn rand_seed() -> u64 {
    std::hash::BuildHasher::hash_one(&std::hash::RandomState::new(), 0)
}

/// The daemon's end after bad framing: soon, not as if all were well, with a line that says why, and clean.
#[track_caller]
fn ends_badly(mut daemon: Daemon) {
    let status = daemon.wait(Duration::from_secs(2)).expect("the end of the daemon");
    let stderr = daemon.stderr();
    // The original always exits with 0.
    assert!(daemon::is_peer() || status.code() == Some(1), "{status:?}\n{stderr}");
    assert!(stderr.lines().any(|line| line.contains("level=error")), "{stderr}");
    assert_eq!(std::fs::read_dir(daemon.dir()).unwrap().count(), 0, "something is left behind");
}

#[test]
fn the_longest_frame_passes_and_a_longer_one_ends_the_link() {
    let (mut wire, daemon, _host) = start();
    let mut frame = to_gateway(&[0x45; LONGEST as usize - 14]);
    wire.send(&frame);
    assert!(wire.is_alive());
    frame.push(0);
    // The daemon may hang up before it has read all of it.
    let _ = wire.raw(&[&(LONGEST + 1).to_be_bytes()[..], &frame].concat());
    ends_badly(daemon);
}

#[test]
fn absurd_lengths_end_the_link() {
    for length in [LONGEST + 1, 1 << 24, i32::MAX as u32, 1 << 31, u32::MAX] {
        let (mut wire, daemon, _host) = start();
        wire.raw(&length.to_be_bytes()).unwrap();
        ends_badly(daemon);
    }
}

#[test]
fn a_hang_up_in_the_middle_of_a_frame_is_an_error() {
    let frame = arp(1, MAC, IP, [0; 6], GATEWAY);
    let bytes = [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat();
    for cut in [1, 3, 4, 5, 20, bytes.len() - 1] {
        let (mut wire, daemon, _host) = start();
        assert!(wire.is_alive());
        wire.raw(&bytes[..cut]).unwrap();
        wire.unplug();
        ends_badly(daemon);
    }
}

#[test]
fn a_length_word_in_pieces_is_one() {
    let (mut wire, _daemon, _host) = start();
    let frame = arp(1, MAC, IP, [0; 6], GATEWAY);
    for byte in [&u32::try_from(frame.len()).unwrap().to_be_bytes()[..], &frame].concat() {
        wire.raw(&[byte]).unwrap();
    }
    assert!(wire.receive(Duration::from_secs(5), |frame| read_arp(frame).is_some()).is_some());
}
