//! Leases: what the DHCP server gives to whom. Reference 3.3, 3.4 and 3.6. Read next: `packets.rs`.

use std::net::Ipv4Addr;

use crate::case::{Case, Table};
use crate::packets::{Dhcp, dhcp_reply, start};
use crate::wire::SILENCE;
use testkit::frames::{BROADCAST, IP, IPV4, MAC, UDP, Wire, ether, ipv4, udp};
use testkit::guest::{Guest, MAC as MAC_TEXT};
use testkit::net::{Host, plug};

pub(crate) fn cases() -> Vec<Case> {
    let mut table = Table::new("dhcp");
    leases(&mut table);
    table.done()
}

fn leases(table: &mut Table) {
    table.same("9.22 9.23 9.24 a Linux client's lease", "inet 192.168.127.2/24 brd 192.168.127.255; default via 192.168.127.1 dev eth0; subnet 255.255.255.0, router 192.168.127.1, dns 192.168.127.1, serverid 192.168.127.1, mtu 1500, lease 3600, search office.lan example.org", |on| {
        let host = Host::new("search office.lan example.org\nnameserver 127.0.0.1\n");
        let daemon = on.daemon().args(["-mtu", "1500"]).through(host.prefix()).start();
        let guest = Guest::start(plug(&daemon), MAC_TEXT, 1500);
        let lease = guest.dhcp();
        let address = guest.run(["ip", "-4", "-o", "addr", "show", "dev", "eth0"]);
        let address: Vec<_> = address.split_whitespace().skip(2).take(4).collect();
        let route = guest.run(["ip", "route", "show", "default"]);
        let options = ["subnet", "router", "dns", "serverid", "mtu", "lease", "search"];
        let options = options.map(|name| format!("{name} {}", lease.option(name)));
        format!("{}; {}; {}", address.join(" "), route.trim(), options.join(", "))
    });
    table.same("what is offered, in which order", "192.168.127.2 1=255.255.255.0 3=192.168.127.1 6=192.168.127.1 26=5.220 51=0.0.14.16 53=2 54=192.168.127.1 61=0.7.8", |on| {
        let (_daemon, mut wire) = start(on, ["-mtu", "1500"]);
        // Option 119 has a case of its own.
        Dhcp::discover(MAC).ask(&mut wire).map_or_else(|| "nothing".into(), |reply| reply.shown(|code| code != 119))
    });
    table.same("what is acknowledged", "192.168.127.2 51=0.0.14.16 53=5", |on| {
        let (_daemon, mut wire) = start(on, ["-mtu", "1500"]);
        Dhcp::request(MAC, IP)
            .ask(&mut wire)
            .map_or_else(|| "nothing".into(), |reply| reply.shown(|code| code == 53 || code == 51))
    });
    table.differs("option 119 without domains", "option 119 without domains", "left out", "empty", |on| {
        let host = Host::new("nameserver 127.0.0.1\n");
        let daemon = on.daemon().through(host.prefix()).start();
        let mut wire = Wire::plug(&daemon);
        let reply = Dhcp::discover(MAC).ask(&mut wire).expect("an offer");
        match reply.options.iter().find(|(code, _)| *code == 119) {
            None => "left out".to_owned(),
            Some((_, value)) if value.is_empty() => "empty".to_owned(),
            Some((_, value)) => format!("{value:?}"),
        }
    });
    table.same(
        "the search domains of the host",
        "192.168.127.2 119=\"\\u{6}office\\u{3}lan\\0\\u{7}example\\u{3}org\\0\"",
        |on| {
            let host = Host::new("search office.lan example.org\nnameserver 127.0.0.1\n");
            let daemon = on.daemon().through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            Dhcp::discover(MAC).ask(&mut wire).expect("an offer").shown(|code| code == 119)
        },
    );
    let office = "119=\"\\u{6}office\\u{3}lan\\0\"";
    for (name, text, ours, original) in [
        ("a tab behind search", "search\toffice.lan\n", office, "119=\"\""),
        (
            "two search lines",
            "search office.lan\nsearch example.org\n",
            "119=\"\\u{7}example\\u{3}org\\0\"",
            office,
        ),
        ("a domain line", "domain office.lan\n", office, "119=\"\""),
    ] {
        let [ours, original] = [ours, original].map(|option| format!("192.168.127.2 {option}"));
        table.differs(format!("search domains: {name}"), "search domains", ours, original, move |on| {
            let host = Host::new(&format!("{text}nameserver 127.0.0.1\n"));
            let daemon = on.daemon().through(host.prefix()).start();
            let mut wire = Wire::plug(&daemon);
            Dhcp::discover(MAC).ask(&mut wire).expect("an offer").shown(|code| code == 119)
        });
    }
    table.same(
        "replies go to all where the client has no address, and to the client where it has one",
        "[ff, ff, ff, ff, ff, ff] 255.255.255.255, then [5a, 94, ef, e4, 0c, ee] 192.168.127.2",
        |on| {
            let (_daemon, mut wire) = start(on, []);
            let none = Dhcp::request(MAC, IP).ask(&mut wire).expect("an answer");
            let mut renewal = Dhcp::request(MAC, IP);
            renewal.from = IP;
            let one = renewal.ask(&mut wire).expect("an answer");
            format!("{}, then {}", none.to, one.to)
        },
    );
    table.same("a server asked by another address answers all the same", "192.168.127.2 53=5", |on| {
        let (_daemon, mut wire) = start(on, []);
        let mut renewal = Dhcp::request(MAC, IP);
        (renewal.from, renewal.at) = (IP, Ipv4Addr::new(8, 8, 8, 8));
        renewal.ask(&mut wire).map_or_else(|| "nothing".into(), |reply| reply.shown(|code| code == 53))
    });
    table.same("9.15 each machine its address, and the same again", "[\"192.168.127.3\", \"192.168.127.4\", \"192.168.127.3\", \"192.168.127.5\", \"192.168.127.4\"], 192.168.127.2", |on| {
        let (_daemon, mut wire) = start(on, []);
        let machines = [1, 2, 1, 3, 2].map(|n| [2, 0, 0, 0, 0, n]);
        let given = machines.map(|mac| Dhcp::lease(mac, &mut wire));
        let known = Dhcp::lease(MAC, &mut wire);
        format!("{given:?}, {known}")
    });
    table.differs(
        "9.15 an address that was released",
        "leases",
        "[\"192.168.127.3\", \"192.168.127.4\", \"192.168.127.5\"], then 192.168.127.3",
        "[\"192.168.127.3\", \"192.168.127.4\", \"192.168.127.5\"], then 192.168.127.6",
        |on| {
            let (_daemon, mut wire) = start(on, ["-subnet", "192.168.127.0/29"]);
            let machines = [1, 2, 3, 4].map(|n| [2, 0, 0, 0, 0, n]);
            let given = [0, 1, 2].map(|n| Dhcp::lease(machines[n], &mut wire));
            Dhcp::release(machines[0], given[0].parse().unwrap()).send(&mut wire);
            format!("{given:?}, then {}", Dhcp::lease(machines[3], &mut wire))
        },
    );
    table.differs("10.64 a request for another address", "NAK", "0.0.0.0 53=6", "192.168.127.2 53=5", |on| {
        let (_daemon, mut wire) = start(on, []);
        Dhcp::request(MAC, Ipv4Addr::new(192, 168, 127, 77))
            .ask(&mut wire)
            .map_or_else(|| "nothing".into(), |reply| reply.shown(|code| code == 53))
    });
    table.differs("INFORM", "INFORM", "0.0.0.0 53=5", "nothing", |on| {
        let (_daemon, mut wire) = start(on, []);
        Dhcp::inform(MAC, IP)
            .ask(&mut wire)
            .map_or_else(|| "nothing".into(), |reply| reply.shown(|code| code == 53))
    });
    table.differs(
        "10.65 a subnet that is full",
        "gateway, host and broadcast address",
        "10.0.0.3, 10.0.0.4, 10.0.0.5, nothing, nothing, nothing",
        "10.0.0.3, 10.0.0.4, 10.0.0.5, 10.0.0.6, 10.0.0.7, nothing",
        |on| {
            let daemon = on.daemon().args(["-subnet", "10.0.0.0/29"]).start();
            let mut wire = Wire::plug(&daemon);
            let given: Vec<_> = (1..=6).map(|n| Dhcp::lease([2, 0, 0, 0, 0, n], &mut wire)).collect();
            given.join(", ")
        },
    );
    table.same("DHCP messages that are none", "nothing; then 192.168.127.2", |on| {
        let (_daemon, mut wire) = start(on, []);
        for bytes in [&[][..], &[1; 100], &[0xff; 300]] {
            let packet = ipv4(UDP, Ipv4Addr::UNSPECIFIED, Ipv4Addr::BROADCAST, &udp(68, 67, bytes));
            wire.send(&ether(BROADCAST, MAC, IPV4, &packet));
        }
        let silent = wire.receive(SILENCE, |frame| dhcp_reply(frame).is_some()).is_none();
        format!("{}; then {}", if silent { "nothing" } else { "something" }, Dhcp::lease(MAC, &mut wire))
    });
}
