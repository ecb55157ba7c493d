//! A Linux guest gets its lease from the gateway with a real DHCP client, and sees the gateway.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, reason = "a test fails by panic")]

use std::net::Ipv4Addr;

use testkit::daemon::{Daemon, is_peer};
use testkit::guest::{Guest, NIC};
use testkit::net::{BLACK_HOLE, ELSEWHERE, GATEWAY, HOST, Host, Net, plug};

testkit::agent_in_a_namespace!();

#[test]
fn is_the_reserved_address_with_every_option() {
    let net = Net::start();
    let lease = &net.lease;
    assert_eq!(lease.ip(), Ipv4Addr::new(192, 168, 127, 2));
    let expected = [
        ("subnet", "255.255.255.0"),
        ("router", "192.168.127.1"),
        ("dns", "192.168.127.1"),
        ("serverid", "192.168.127.1"),
        // COMPAT(gvproxy): more than the original's, since nobody asked for any.
        ("mtu", if is_peer() { "1500" } else { "65520" }),
        ("lease", "3600"),
    ];
    for (option, value) in expected {
        assert_eq!(lease.option(option), value, "{option} of {lease:?}");
    }
    // A renewal gets the same.
    assert_eq!(net.guest.dhcp().ip(), lease.ip());
}

#[test]
fn carries_the_search_domains_of_the_host() {
    let host = Host::new("search office.lan example.org\nnameserver 127.0.0.1\n");
    let net = Net::with(host, Daemon::builder(), 1500);
    assert_eq!(net.lease.option("search"), "office.lan example.org");
}

#[test]
fn follows_the_flags() {
    let flags = ["-mtu", "4000", "-subnet", "10.9.0.0/20", "-gatewayIP", "10.9.0.5", "-deviceIP", "10.9.0.7"];
    let net = Net::with(Host::new("nameserver 127.0.0.1\n"), Daemon::builder().args(flags), 1500);
    let lease = &net.lease;
    assert_eq!(lease.ip(), Ipv4Addr::new(10, 9, 0, 7));
    for (option, value) in [("router", "10.9.0.5"), ("dns", "10.9.0.5"), ("mtu", "4000"), ("mask", "20")] {
        assert_eq!(lease.option(option), value, "{option} of {lease:?}");
    }
    assert!(net.guest.ping(Ipv4Addr::new(10, 9, 0, 5), 3000), "the gateway, with packets of the larger MTU");
}

#[test]
fn offers_the_mtu_that_was_asked_for() {
    for mtu in ["1500", "576", "65520"] {
        let net = Net::with(Host::new("nameserver 127.0.0.1\n"), Daemon::builder().args(["-mtu", mtu]), 1500);
        assert_eq!(net.lease.option("mtu"), mtu);
    }
}

#[test]
fn another_guest_gets_another_address() {
    let daemon = Daemon::builder().start();
    let guest = Guest::start(plug(&daemon), "52:54:00:12:34:56", 1500);
    assert_eq!(guest.dhcp().ip(), Ipv4Addr::new(192, 168, 127, 3), "the first address is reserved");
}

#[test]
fn the_gateway_answers_pings_of_every_size() {
    let net = Net::start();
    for length in [0, 56, 1472, 1473, 8000, 60000] {
        assert!(net.guest.ping(GATEWAY, length), "{length} bytes");
    }
}

#[test]
fn the_host_alias_answers_pings() {
    let net = Net::start();
    assert!(net.guest.ping(HOST, 56));
}

#[test]
fn the_host_pings_for_the_guest() {
    let net = Net::start();
    for length in [0, 56, 8000] {
        assert!(net.guest.ping(ELSEWHERE, length), "{length} bytes");
    }
    assert!(!net.guest.ping(BLACK_HOLE, 56));
}

#[test]
fn the_gateway_is_who_arp_says() {
    let net = Net::start();
    assert!(net.guest.ping(GATEWAY, 56));
    assert!(net.guest.connect((HOST, 1).into()).is_err());
    let neighbours = net.guest.run(["ip", "-4", "neigh", "show", "dev", NIC]);
    for address in [GATEWAY, HOST] {
        let line = neighbours.lines().find(|line| line.starts_with(&format!("{address} ")));
        // The guest's default route leads to the gateway; the alias is on the guest's own link.
        assert!(line.is_some_and(|line| line.contains("5a:94:ef:e4:0c:dd")), "{address} in {neighbours}");
    }
    assert!(net.guest.connect(([192, 168, 127, 9], 1).into()).is_err(), "nobody has that address");
}
