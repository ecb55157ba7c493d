//! Guests that speak as others, and guests that may seem to.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable, Decoder, Encodable};
use netstack::{Address, DropReason, Mac, NetworkConfig};
use smoltcp::wire::{ArpOperation, EthernetProtocol, IpProtocol};

use crate::frames::{arp, echo_request, ethernet, ipv4, packet, payloads, udp};
use crate::guest::{End, pattern};
use crate::link::Quality;
use crate::network::{Answer, GATEWAY, GATEWAY_MAC, HOST, Sim, config, guest_ip, guest_mac, outside};

const EVERYBODY: Mac = Mac::BROADCAST;

/// `ports` without guests, and a reservation of .9 for the machine with that number.
fn sim(seed: u64, ports: usize) -> Sim {
    let mut sim =
        Sim::with(seed, NetworkConfig { static_leases: vec![(guest_ip(9), guest_mac(9))], ..config(1500) });
    for _ in 0..ports {
        sim.plug_raw(Quality::CLEAN);
    }
    sim
}

/// It says from behind `port` that `ip` is at `mac`, to everybody.
fn announce(sim: &mut Sim, port: usize, ip: Ipv4Addr, mac: Mac) {
    let message = arp(ArpOperation::Request, (ip, mac), (ip, Mac([0; 6])));
    sim.inject(port, &ethernet(mac, EVERYBODY, EthernetProtocol::Arp, &message));
    sim.settle();
}

fn ping(sim: &mut Sim, port: usize, from: (Ipv4Addr, Mac), to: (Ipv4Addr, Mac)) {
    let sent = ipv4(from.0, to.0, IpProtocol::Icmp, &echo_request(1, 1, b"x"));
    sim.inject(port, &ethernet(from.1, to.1, EthernetProtocol::Ipv4, &sent));
    sim.settle();
}

/// Whether the gateway answers a ping of this guest's, at its port.
fn is_answered(sim: &mut Sim, port: usize, ip: Ipv4Addr, mac: Mac) -> bool {
    sim.received(port);
    ping(sim, port, (ip, mac), (GATEWAY, GATEWAY_MAC));
    !payloads(&sim.received(port), IpProtocol::Icmp).is_empty()
}

/// The gateway asks for the holder of an address, which answers for `mac`.
fn answer_arp(sim: &mut Sim, port: usize, ip: Ipv4Addr, mac: Mac) -> bool {
    let asked =
        sim.received(port).iter().any(|frame| frame[12..14] == [8, 6] && frame[38..42] == ip.octets());
    if asked {
        let message = arp(ArpOperation::Reply, (ip, mac), (GATEWAY, GATEWAY_MAC));
        sim.inject(port, &ethernet(mac, GATEWAY_MAC, EthernetProtocol::Arp, &message));
        sim.settle();
    }
    asked
}

fn drops(sim: &Sim, reason: DropReason) -> u64 {
    sim.stack.drops().of(reason)
}

#[test]
fn nobody_takes_an_address_whose_guest_answers() {
    let mut sim = sim(901, 2);
    let (victim, thief) = ((guest_ip(3), guest_mac(3)), (guest_ip(4), guest_mac(4)));
    announce(&mut sim, 0, victim.0, victim.1);
    announce(&mut sim, 1, thief.0, thief.1);
    sim.received(0);
    for _ in 0..20 {
        announce(&mut sim, 1, victim.0, thief.1);
        assert!(!is_answered(&mut sim, 1, victim.0, thief.1), "as the victim");
        let from_thief = |frame: &Vec<u8>| frame[6..12] == thief.1.0 || frame[12..14] == [8, 0];
        assert!(!sim.ports[0].inbox.iter().any(from_thief), "the forged frames reach nobody");
        answer_arp(&mut sim, 0, victim.0, victim.1);
        sim.run_for(Duration::from_millis(700));
    }
    assert!(is_answered(&mut sim, 0, victim.0, victim.1));
    assert!(is_answered(&mut sim, 1, thief.0, thief.1), "it still has its own");
    assert!(sim.asked.moved.is_empty(), "{:?}", sim.asked.moved);
    let (port, holder) = (sim.ports[1].id, sim.ports[0].id);
    assert_eq!(sim.asked.refused[0], (Address::Ip(victim.0), port, Some(holder)));
    // What the host opens to that address goes to its guest.
    let flow = sim.stack.tcp_connect(SocketAddrV4::new(victim.0, 22), sim.now, &mut sim.batches).unwrap();
    announce(&mut sim, 1, victim.0, thief.1);
    assert_eq!(payloads(&sim.received(0), IpProtocol::Tcp).len(), 1);
    assert!(payloads(&sim.received(1), IpProtocol::Tcp).is_empty());
    sim.stack.tcp_release(flow, true);
}

/// A frame may be lost: the one that asks it, or its answer.
#[test]
fn who_misses_a_question_is_asked_again() {
    let (victim, thief) = ((guest_ip(3), guest_mac(3)), (guest_ip(4), guest_mac(4)));
    for wanted in [(victim.0, thief.1), (thief.0, victim.1)] {
        let mut sim = sim(925, 2);
        announce(&mut sim, 0, victim.0, victim.1);
        announce(&mut sim, 1, thief.0, thief.1);
        sim.run_for(Duration::from_secs(1));
        announce(&mut sim, 1, wanted.0, wanted.1);
        assert!(!sim.received(0).is_empty(), "a question, which it misses");
        sim.run_for(Duration::from_millis(700));
        assert!(answer_arp(&mut sim, 0, victim.0, victim.1), "another one");
        sim.run_for(Duration::from_secs(2));
        assert!(sim.asked.moved.is_empty(), "{:?}", sim.asked.moved);
    }
}

#[test]
fn a_guests_own_hardware_address_is_nobody_elses() {
    let mut sim = sim(902, 3);
    let victim = (guest_ip(3), guest_mac(3));
    announce(&mut sim, 0, victim.0, victim.1);
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    for _ in 0..10 {
        sim.received(0);
        ping(&mut sim, 1, victim, (GATEWAY, GATEWAY_MAC));
        announce(&mut sim, 1, guest_ip(4), victim.1);
        answer_arp(&mut sim, 0, victim.0, victim.1);
        sim.run_for(Duration::from_secs(2));
    }
    assert_eq!(drops(&sim, DropReason::Claimed), 20);
    // While the victim stands still another may have taken over, and has not: it has its own back at once.
    ping(&mut sim, 1, victim, (GATEWAY, GATEWAY_MAC));
    sim.run_for(Duration::from_secs(2));
    assert!(is_answered(&mut sim, 1, guest_ip(4), victim.1));
    assert!(is_answered(&mut sim, 0, victim.0, victim.1));
    assert!(!is_answered(&mut sim, 1, guest_ip(4), victim.1));
    (0..3).for_each(|port| drop(sim.received(port)));
    sim.inject(2, &ethernet(guest_mac(5), victim.1, EthernetProtocol::from(0x88b5), b"for the victim"));
    sim.settle();
    assert_eq!((sim.received(0).len(), sim.received(1).len()), (1, 0));
    // In ARP too, with a frame of the thief's own.
    let forged = arp(ArpOperation::Reply, (guest_ip(7), victim.1), (guest_ip(5), guest_mac(5)));
    sim.inject(1, &ethernet(guest_mac(4), guest_mac(5), EthernetProtocol::Arp, &forged));
    sim.settle();
    assert!(sim.received(2).is_empty());
}

#[test]
fn the_gateways_part_is_the_gateways() {
    let mut sim = sim(903, 2);
    let (victim, thief) = ((guest_ip(3), guest_mac(3)), (guest_ip(4), guest_mac(4)));
    announce(&mut sim, 0, victim.0, victim.1);
    announce(&mut sim, 1, thief.0, thief.1);
    sim.received(0);
    for address in [GATEWAY, HOST] {
        announce(&mut sim, 1, address, thief.1);
        let reply = arp(ArpOperation::Reply, (address, thief.1), victim);
        sim.inject(1, &ethernet(thief.1, victim.1, EthernetProtocol::Arp, &reply));
        for port in [53, 9] {
            let (from, to) = (SocketAddrV4::new(address, port), SocketAddrV4::new(victim.0, 5353));
            let sent = ipv4(address, victim.0, IpProtocol::Udp, &udp(from, to, b"an answer"));
            sim.inject(1, &ethernet(thief.1, victim.1, EthernetProtocol::Ipv4, &sent));
        }
    }
    let reply = arp(ArpOperation::Reply, (guest_ip(8), GATEWAY_MAC), victim);
    sim.inject(1, &ethernet(thief.1, victim.1, EthernetProtocol::Arp, &reply));
    for (from, to) in [(67, 68), (67, 9), (9, 68)] {
        let (from, to) = (SocketAddrV4::new(thief.0, from), SocketAddrV4::new(Ipv4Addr::BROADCAST, to));
        let sent = ipv4(thief.0, *to.ip(), IpProtocol::Udp, &udp(from, to, b"an offer"));
        sim.inject(1, &ethernet(thief.1, EVERYBODY, EthernetProtocol::Ipv4, &sent));
        sim.inject(1, &ethernet(thief.1, victim.1, EthernetProtocol::Ipv4, &sent));
    }
    sim.settle();
    assert!(sim.received(0).is_empty());
    assert_eq!((drops(&sim, DropReason::GatewaysPart), drops(&sim, DropReason::Claimed)), (6, 5));
}

#[test]
fn a_reserved_address_waits_for_its_machine() {
    let mut sim = sim(904, 2);
    announce(&mut sim, 0, guest_ip(3), guest_mac(3));
    announce(&mut sim, 1, guest_ip(9), guest_mac(4));
    assert!(!is_answered(&mut sim, 1, guest_ip(9), guest_mac(4)));
    let (port, refused) = (sim.ports[1].id, sim.asked.refused.clone());
    assert_eq!(refused[0], (Address::Ip(guest_ip(9)), port, None));
    // The thief speaks as its machine before that comes, which has both at once when it does.
    assert!(is_answered(&mut sim, 1, guest_ip(9), guest_mac(9)));
    let late = sim.plug_raw(Quality::CLEAN);
    assert!(is_answered(&mut sim, late, guest_ip(9), guest_mac(9)));
    assert!(!is_answered(&mut sim, 1, guest_ip(9), guest_mac(9)));
    assert!(is_answered(&mut sim, late, guest_ip(9), guest_mac(9)));
    // A machine that is alone may have been given it by hand.
    let mut alone = self::sim(905, 1);
    assert!(is_answered(&mut alone, 0, guest_ip(9), guest_mac(4)));
}

#[test]
fn what_moves_is_found_where_it_went() {
    let mut sim = sim(906, 2);
    let machine = (guest_ip(3), guest_mac(3));
    announce(&mut sim, 0, machine.0, machine.1);
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    // Its link is made anew, and the old one has not ended.
    let new = sim.plug_raw(Quality::CLEAN);
    assert!(!is_answered(&mut sim, new, machine.0, machine.1));
    sim.run_for(Duration::from_millis(1100));
    let answered = (0..3).any(|_| {
        let answered = is_answered(&mut sim, new, machine.0, machine.1);
        sim.run_for(Duration::from_millis(1100));
        answered
    });
    assert!(answered, "{:?}", sim.asked.refused);
    let (old, at) = (sim.ports[0].id, sim.ports[new].id);
    let moved = [(Address::Hardware(machine.1), old, at), (Address::Ip(machine.0), old, at)];
    assert_eq!(sim.asked.moved, moved);
    // An address that a guest hands on to another, which tells everybody, as keepalived does.
    announce(&mut sim, 1, guest_ip(50), guest_mac(4));
    for _ in 0..3 {
        announce(&mut sim, new, guest_ip(50), machine.1);
        sim.run_for(Duration::from_millis(600));
    }
    assert!(is_answered(&mut sim, new, guest_ip(50), machine.1));
    assert!(is_answered(&mut sim, 1, guest_ip(50), guest_mac(4)), "who had it first has it back at once");
}

/// Nested machines move with theirs: who has said nothing when asked for one of them is not asked for each of
/// the others.
#[test]
fn what_moves_is_found_with_all_that_is_behind_it() {
    let mut sim = sim(929, 2);
    let nested: Vec<(Ipv4Addr, Mac)> = (20..60).map(|number| (guest_ip(number), guest_mac(number))).collect();
    for (ip, mac) in &nested {
        announce(&mut sim, 0, *ip, *mac);
    }
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    sim.run_for(Duration::from_secs(1));
    // The new link begins with the last of them, and its old one has not ended.
    let new = sim.plug_raw(Quality::CLEAN);
    for (ip, mac) in nested.iter().rev() {
        announce(&mut sim, new, *ip, *mac);
    }
    sim.run_for(Duration::from_millis(1100));
    for (ip, mac) in &nested {
        assert!(is_answered(&mut sim, new, *ip, *mac), "{ip}");
    }
    let [others @ .., _own] = &nested[..] else { panic!("{nested:?}") };
    for (ip, mac) in others {
        assert!(is_answered(&mut sim, 0, *ip, *mac), "{ip} is back at once");
        assert!(!is_answered(&mut sim, new, *ip, *mac), "{ip}");
    }
}

#[test]
fn who_says_anything_is_asked_for_each_of_its_addresses() {
    let mut sim = sim(930, 2);
    for number in [3, 20, 21] {
        announce(&mut sim, 0, guest_ip(number), guest_mac(number));
    }
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    sim.run_for(Duration::from_secs(1));
    announce(&mut sim, 1, guest_ip(20), guest_mac(4));
    assert!(is_answered(&mut sim, 0, guest_ip(3), guest_mac(3)));
    sim.run_for(Duration::from_millis(1100));
    assert!(is_answered(&mut sim, 1, guest_ip(20), guest_mac(4)), "it said nothing as that");
    assert!(!is_answered(&mut sim, 1, guest_ip(21), guest_mac(4)));
    sim.run_for(Duration::from_millis(1100));
    assert!(
        is_answered(&mut sim, 1, guest_ip(21), guest_mac(4)),
        "nor as that, and now it said nothing at all"
    );
    // It speaks again, and is asked again.
    assert!(is_answered(&mut sim, 0, guest_ip(20), guest_mac(20)), "its own");
    assert!(!is_answered(&mut sim, 1, guest_ip(3), guest_mac(4)));
}

#[test]
fn behind_one_port_everybody_may_be_anybody() {
    let mut sim = sim(907, 2);
    announce(&mut sim, 0, guest_ip(3), guest_mac(3));
    // A bridge's member, a card that was replaced, a namespace behind proxy ARP, one that takes over within
    // the guest.
    for (ip, mac) in [(13, 13), (3, 14), (15, 3), (13, 3), (3, 3)] {
        assert!(is_answered(&mut sim, 0, guest_ip(ip), guest_mac(mac)), "{ip} at {mac}");
    }
    // Networks of the guests' own, led from one to the other.
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    sim.received(1);
    ping(&mut sim, 0, (Ipv4Addr::new(10, 244, 0, 5), guest_mac(3)), (guest_ip(4), guest_mac(4)));
    assert_eq!(payloads(&sim.received(1), IpProtocol::Icmp).len(), 1);
    for forged in [Ipv4Addr::LOCALHOST, Ipv4Addr::new(169, 254, 169, 254), Ipv4Addr::new(224, 0, 0, 1)] {
        ping(&mut sim, 0, (forged, guest_mac(3)), (guest_ip(4), guest_mac(4)));
    }
    assert!(sim.received(1).is_empty());
    assert!(sim.asked.moved.is_empty() && sim.asked.refused.is_empty());
}

#[test]
fn invented_addresses_cost_their_own_port() {
    let mut sim = sim(908, 2);
    announce(&mut sim, 1, guest_ip(3), guest_mac(3));
    for number in 0..20_000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let ip = Ipv4Addr::new(192, 168, 127, 4 + (number % 250) as u8);
        let message = arp(ArpOperation::Request, (ip, Mac([6, 6, 6, b, c, d])), (ip, Mac([0; 6])));
        sim.inject(0, &ethernet(Mac([6, 6, 6, b, c, d]), EVERYBODY, EthernetProtocol::Arp, &message));
        if number % 1000 == 0 {
            sim.settle();
        }
    }
    sim.settle();
    assert_eq!(sim.stack.addresses().filter(|(_, port)| *port == sim.ports[0].id).count(), 256);
    assert!(is_answered(&mut sim, 1, guest_ip(3), guest_mac(3)));
    // A newcomer is learned, so that what is for it reaches nobody else.
    let new = sim.plug_raw(Quality::CLEAN);
    let address = lease(&mut sim, new, 77).expect("an address");
    assert!(is_answered(&mut sim, new, address, guest_mac(77)), "{address}");
    sim.received(0);
    ping(&mut sim, 1, (guest_ip(3), guest_mac(3)), (address, guest_mac(77)));
    assert_eq!((sim.received(0).len(), sim.received(new).len()), (0, 1));
}

fn dhcp(
    sim: &mut Sim,
    port: usize,
    source: Mac,
    kind: MessageType,
    client: Mac,
    options: &[DhcpOption],
) -> Option<Message> {
    let zero = Ipv4Addr::UNSPECIFIED;
    let mut message = Message::new_with_id(77, zero, zero, zero, zero, &client.0);
    message.set_opcode(Opcode::BootRequest);
    message.opts_mut().insert(DhcpOption::MessageType(kind));
    for option in options {
        if let (MessageType::Release, DhcpOption::RequestedIpAddress(address)) = (kind, option) {
            message.set_ciaddr(*address);
        } else {
            message.opts_mut().insert(option.clone());
        }
    }
    let (from, to) = (SocketAddrV4::new(zero, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
    let sent = ipv4(zero, *to.ip(), IpProtocol::Udp, &udp(from, to, &message.to_vec().unwrap()));
    sim.received(port);
    sim.inject(port, &ethernet(source, EVERYBODY, EthernetProtocol::Ipv4, &sent));
    sim.settle();
    let frames = sim.received(port);
    let answer = frames.iter().find(|frame| {
        packet(frame)
            .is_some_and(|packet| packet.next_header() == IpProtocol::Udp && frame[34..36] == [0, 67])
    })?;
    Message::decode(&mut Decoder::new(&answer[42..])).ok()
}

/// The address that the machine with this number gets.
fn lease(sim: &mut Sim, port: usize, number: u8) -> Option<Ipv4Addr> {
    let mac = guest_mac(number);
    let offer = dhcp(sim, port, mac, MessageType::Discover, mac, &[])?;
    let wish = [DhcpOption::RequestedIpAddress(offer.yiaddr()), DhcpOption::ServerIdentifier(GATEWAY)];
    let ack = dhcp(sim, port, mac, MessageType::Request, mac, &wish)?;
    (ack.opts().msg_type() == Some(MessageType::Ack)).then(|| ack.yiaddr())
}

#[test]
fn nobody_asks_in_anothers_name() {
    let mut sim = sim(909, 2);
    let address = lease(&mut sim, 0, 3).unwrap();
    let own = lease(&mut sim, 1, 4).unwrap();
    assert_ne!(address, own);
    let wish = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(GATEWAY)];
    for kind in [MessageType::Release, MessageType::Decline, MessageType::Request, MessageType::Discover] {
        for source in [guest_mac(3), guest_mac(4)] {
            assert!(dhcp(&mut sim, 1, source, kind, guest_mac(3), &wish).is_none(), "{kind:?}");
        }
    }
    assert!(sim.stack.leases(sim.now).any(|lease| lease == (address, guest_mac(3))));
    // Nor does it get the address in its own name, by DHCP or without.
    let reply = dhcp(&mut sim, 1, guest_mac(4), MessageType::Request, guest_mac(4), &wish[..1]).unwrap();
    assert_eq!(reply.opts().msg_type(), Some(MessageType::Nak));
    sim.run_for(Duration::from_secs(3));
    announce(&mut sim, 1, address, guest_mac(4));
    assert!(!is_answered(&mut sim, 1, address, guest_mac(4)), "leased, though never used");
    assert!(is_answered(&mut sim, 0, address, guest_mac(3)));
    // What is behind the same port has its own, whoever asks for it.
    let bridged = dhcp(&mut sim, 0, guest_mac(3), MessageType::Discover, guest_mac(30), &[]);
    assert_eq!(bridged.unwrap().opts().msg_type(), Some(MessageType::Offer));
}

#[test]
fn a_pool_that_one_has_emptied_has_one_for_the_next() {
    let mut sim = sim(910, 2);
    for number in 0..1000_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let mac = Mac([6, 6, 6, b, c, d]);
        if let Some(offer) = dhcp(&mut sim, 0, mac, MessageType::Discover, mac, &[]) {
            let wish =
                [DhcpOption::RequestedIpAddress(offer.yiaddr()), DhcpOption::ServerIdentifier(GATEWAY)];
            dhcp(&mut sim, 0, mac, MessageType::Request, mac, &wish);
            announce(&mut sim, 0, offer.yiaddr(), mac);
        }
    }
    let address = lease(&mut sim, 1, 3).expect("an address");
    assert!(is_answered(&mut sim, 1, address, guest_mac(3)));
}

#[test]
fn connections_end_where_an_address_has_gone() {
    let mut sim = sim(911, 1);
    let quality = Quality::CLEAN;
    let thief = sim.plug_raw(quality);
    sim.answer = Answer::Accept;
    // The thief has the address first, and a flow by the name that the victim's is to have.
    let victim = sim.plug(quality);
    let ip = guest_ip(victim as u8 + 2);
    assert!(is_answered(&mut sim, thief, ip, Mac([6; 6])));
    let (from, to) = (SocketAddrV4::new(ip, 5353), outside(53));
    let sent = ipv4(ip, *to.ip(), IpProtocol::Udp, &udp(from, to, b"x"));
    sim.inject(thief, &ethernet(Mac([6; 6]), GATEWAY_MAC, EthernetProtocol::Ipv4, &sent));
    sim.settle();
    assert_eq!(sim.stack.flows().1, 1);
    let connection = sim.guest(victim).connect(outside(80), End::new(pattern(1, 1000)));
    sim.run_until("the victim is served", Duration::from_secs(20), |sim| {
        sim.guest(victim).end(connection).eof
    });
    assert_eq!(sim.stack.flows().1, 0);
}

#[test]
fn who_empties_the_pool_gets_no_address_that_somebody_has_by_hand() {
    let mut sim = sim(912, 2);
    announce(&mut sim, 1, guest_ip(77), guest_mac(77));
    for number in 0..600_u32 {
        let [_, b, c, d] = number.to_be_bytes();
        let mac = Mac([6, 6, 6, b, c, d]);
        if let Some(offer) = dhcp(&mut sim, 0, mac, MessageType::Discover, mac, &[]) {
            assert_ne!(offer.yiaddr(), guest_ip(77));
            let wish =
                [DhcpOption::RequestedIpAddress(offer.yiaddr()), DhcpOption::ServerIdentifier(GATEWAY)];
            dhcp(&mut sim, 0, mac, MessageType::Request, mac, &wish);
        }
    }
    assert!(is_answered(&mut sim, 1, guest_ip(77), guest_mac(77)));
}

#[test]
fn what_is_behind_another_guest_is_asked_too() {
    let mut sim = sim(913, 2);
    announce(&mut sim, 0, guest_ip(3), guest_mac(3));
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    // A bridged machine, which has nothing to say.
    announce(&mut sim, 0, guest_ip(30), guest_mac(30));
    for _ in 0..10 {
        sim.received(0);
        ping(&mut sim, 1, (guest_ip(4), guest_mac(30)), (GATEWAY, GATEWAY_MAC));
        answer_arp(&mut sim, 0, guest_ip(30), guest_mac(30));
        sim.run_for(Duration::from_millis(700));
    }
    assert!(sim.asked.moved.is_empty(), "{:?}", sim.asked.moved);
    assert!(is_answered(&mut sim, 0, guest_ip(30), guest_mac(30)));
}

#[test]
fn nobody_disturbs_who_looks_whether_its_address_is_free() {
    let mut sim = sim(914, 2);
    let address = lease(&mut sim, 0, 3).unwrap();
    sim.received(0);
    let probe = arp(ArpOperation::Request, (Ipv4Addr::UNSPECIFIED, guest_mac(4)), (address, Mac([0; 6])));
    sim.inject(1, &ethernet(guest_mac(4), EVERYBODY, EthernetProtocol::Arp, &probe));
    sim.settle();
    assert!(sim.received(0).is_empty(), "its own probe would seem to be in conflict");
    let answers = sim.received(1);
    assert!(
        answers.iter().any(|frame| frame[20..22] == [0, 2] && frame[22..28] == guest_mac(3).0),
        "who asks hears who has it: {answers:?}"
    );
    let own = arp(ArpOperation::Request, (Ipv4Addr::UNSPECIFIED, guest_mac(3)), (address, Mac([0; 6])));
    sim.inject(0, &ethernet(guest_mac(3), EVERYBODY, EthernetProtocol::Arp, &own));
    sim.settle();
    assert!(sim.received(0).is_empty(), "nobody has it but itself");
}

/// The one behind `port` takes every address that it is given, in as many names.
fn empty_the_pool(sim: &mut Sim, port: usize) -> Vec<Ipv4Addr> {
    let all = (0..400_u32).filter_map(|number| {
        let [_, b, c, d] = number.to_be_bytes();
        let mac = Mac([6, 6, 6, b, c, d]);
        let offer = dhcp(sim, port, mac, MessageType::Discover, mac, &[])?;
        let wish = [DhcpOption::RequestedIpAddress(offer.yiaddr()), DhcpOption::ServerIdentifier(GATEWAY)];
        let reply = dhcp(sim, port, mac, MessageType::Request, mac, &wish)?;
        (reply.opts().msg_type() == Some(MessageType::Ack)).then(|| reply.yiaddr())
    });
    all.collect()
}

fn kind(reply: Option<Message>) -> Option<MessageType> {
    reply.and_then(|reply| reply.opts().msg_type())
}

#[test]
fn a_silent_guests_address_is_used_by_another_but_not_leased_to_it() {
    let mut sim = sim(915, 2);
    let (victim, thief) = ((guest_ip(3), guest_mac(3)), guest_mac(4));
    announce(&mut sim, 0, victim.0, victim.1);
    announce(&mut sim, 1, guest_ip(4), thief);
    announce(&mut sim, 1, victim.0, thief);
    sim.run_for(Duration::from_secs(2));
    assert!(is_answered(&mut sim, 1, victim.0, thief), "it may have moved");
    let wish = [DhcpOption::RequestedIpAddress(victim.0)];
    assert_eq!(kind(dhcp(&mut sim, 1, thief, MessageType::Request, thief, &wish)), Some(MessageType::Nak));
    let offer = dhcp(&mut sim, 1, thief, MessageType::Discover, thief, &wish).unwrap();
    assert_ne!(offer.yiaddr(), victim.0);
    assert!(empty_the_pool(&mut sim, 1).iter().all(|given| *given != victim.0));
    assert!(is_answered(&mut sim, 0, victim.0, victim.1), "its owner has it back at once");
    assert!(!is_answered(&mut sim, 1, victim.0, thief));
}

#[test]
fn an_offer_ends_where_somebody_has_the_address_by_hand() {
    let mut sim = sim(916, 2);
    let thief = guest_mac(4);
    let offer = dhcp(&mut sim, 1, thief, MessageType::Discover, thief, &[]).unwrap();
    let address = offer.yiaddr();
    // It stands for a minute, so that nobody comes between.
    announce(&mut sim, 0, address, guest_mac(3));
    assert!(!is_answered(&mut sim, 0, address, guest_mac(3)));
    sim.run_for(Duration::from_secs(61));
    announce(&mut sim, 0, address, guest_mac(3));
    let wish = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(GATEWAY)];
    assert_eq!(kind(dhcp(&mut sim, 1, thief, MessageType::Request, thief, &wish)), Some(MessageType::Nak));
    let again = dhcp(&mut sim, 1, thief, MessageType::Discover, thief, &[]).unwrap();
    assert_ne!(again.yiaddr(), address);
    assert!(is_answered(&mut sim, 0, address, guest_mac(3)));
    // So with a lease that has run out.
    let leased = lease(&mut sim, 1, 4).unwrap();
    sim.run_for(Duration::from_secs(3700));
    announce(&mut sim, 0, leased, guest_mac(3));
    let wish = [DhcpOption::RequestedIpAddress(leased)];
    assert_eq!(kind(dhcp(&mut sim, 1, thief, MessageType::Request, thief, &wish)), Some(MessageType::Nak));
}

#[test]
fn many_addresses_by_hand_behind_one_guest_stay_there() {
    let mut sim = sim(917, 2);
    for number in 3..15 {
        announce(&mut sim, 0, guest_ip(number), guest_mac(number));
    }
    let given = empty_the_pool(&mut sim, 1);
    assert!(given.len() > 200, "{given:?}");
    for number in 3..15 {
        assert!(!given.contains(&guest_ip(number)), "{number}");
        assert!(is_answered(&mut sim, 0, guest_ip(number), guest_mac(number)));
    }
    // One who has none yet gets one all the same.
    let new = sim.plug_raw(Quality::CLEAN);
    let address = lease(&mut sim, new, 99).expect("an address");
    assert!(!(3..15).any(|number| address == guest_ip(number)), "{address}");
}

#[test]
fn a_lease_outlives_its_link() {
    let mut sim = sim(918, 2);
    let address = lease(&mut sim, 0, 3).unwrap();
    let by_hand = guest_ip(200);
    announce(&mut sim, 0, by_hand, guest_mac(3));
    announce(&mut sim, 1, guest_ip(201), guest_mac(4));
    sim.unplug(0);
    let release = [DhcpOption::RequestedIpAddress(address), DhcpOption::ServerIdentifier(GATEWAY)];
    for kind in [MessageType::Release, MessageType::Decline] {
        assert!(dhcp(&mut sim, 1, guest_mac(4), kind, guest_mac(3), &release).is_none());
    }
    assert!(sim.stack.leases(sim.now).any(|lease| lease == (address, guest_mac(3))));
    let given = empty_the_pool(&mut sim, 1);
    assert!(!given.contains(&address) && !given.contains(&by_hand), "{given:?}");
    // Nobody uses it for now.
    assert!(is_answered(&mut sim, 1, by_hand, guest_mac(4)));
    let back = sim.plug_raw(Quality::CLEAN);
    assert_eq!(lease(&mut sim, back, 3), Some(address));
    assert!(is_answered(&mut sim, back, address, guest_mac(3)));
    assert!(is_answered(&mut sim, back, by_hand, guest_mac(3)));
    assert!(!is_answered(&mut sim, 1, by_hand, guest_mac(4)));
}

#[test]
fn who_asks_whether_an_address_is_free_is_before_who_asks_later() {
    let mut sim = sim(919, 2);
    let ip = guest_ip(60);
    let probe = |mac: Mac| arp(ArpOperation::Request, (Ipv4Addr::UNSPECIFIED, mac), (ip, Mac([0; 6])));
    sim.inject(0, &ethernet(guest_mac(3), EVERYBODY, EthernetProtocol::Arp, &probe(guest_mac(3))));
    sim.settle();
    announce(&mut sim, 1, ip, guest_mac(4));
    assert!(!sim.received(0).iter().any(|frame| frame[6..12] == guest_mac(4).0), "no conflict for the first");
    assert!(is_answered(&mut sim, 0, ip, guest_mac(3)));
    assert!(!is_answered(&mut sim, 1, ip, guest_mac(4)));
}

#[test]
fn a_machine_by_hand_at_the_reserved_address_may_have_its_link_made_anew() {
    let mut sim = sim(920, 1);
    assert!(is_answered(&mut sim, 0, guest_ip(9), guest_mac(4)));
    // The old link ends later, or never.
    let new = sim.plug_raw(Quality::CLEAN);
    let answered = (0..5).any(|_| {
        let answered = is_answered(&mut sim, new, guest_ip(9), guest_mac(4));
        sim.run_for(Duration::from_millis(1000));
        answered
    });
    assert!(answered, "{:?}", sim.asked.refused);
    sim.unplug(0);
    assert!(is_answered(&mut sim, new, guest_ip(9), guest_mac(4)));
    // And again, with the old one gone at once; and beside another guest.
    sim.unplug(new);
    let third = sim.plug_raw(Quality::CLEAN);
    assert!(is_answered(&mut sim, third, guest_ip(9), guest_mac(4)));
    let other = sim.plug_raw(Quality::CLEAN);
    announce(&mut sim, other, guest_ip(10), guest_mac(10));
    sim.unplug(third);
    let fourth = sim.plug_raw(Quality::CLEAN);
    assert!(is_answered(&mut sim, fourth, guest_ip(9), guest_mac(4)));
    // The one that it is reserved for has it when it comes.
    let rightful = sim.plug_raw(Quality::CLEAN);
    assert!(is_answered(&mut sim, rightful, guest_ip(9), guest_mac(9)));
    assert!(!is_answered(&mut sim, fourth, guest_ip(9), guest_mac(4)));
}

#[test]
fn who_believes_to_have_what_is_anothers_is_told() {
    let mut sim = sim(921, 2);
    let address = lease(&mut sim, 0, 3).unwrap();
    // It was resumed, and had the address before the daemon's start: RENEWING is sent to the server,
    // REBINDING to everybody.
    let late = guest_mac(4);
    for to in [(GATEWAY, GATEWAY_MAC), (Ipv4Addr::BROADCAST, EVERYBODY)] {
        let zero = Ipv4Addr::UNSPECIFIED;
        let mut message = Message::new_with_id(78, address, zero, zero, zero, &late.0);
        message.set_opcode(Opcode::BootRequest);
        message.opts_mut().insert(DhcpOption::MessageType(MessageType::Request));
        let (from, server) = (SocketAddrV4::new(address, 68), SocketAddrV4::new(to.0, 67));
        let sent = ipv4(address, to.0, IpProtocol::Udp, &udp(from, server, &message.to_vec().unwrap()));
        sim.received(1);
        sim.inject(1, &ethernet(late, to.1, EthernetProtocol::Ipv4, &sent));
        let answers = sim.received(1);
        let reply = answers.iter().find(|frame| frame.len() > 42 && frame[34..36] == [0, 67]);
        let reply = reply.and_then(|frame| Message::decode(&mut Decoder::new(&frame[42..])).ok());
        assert_eq!(kind(reply), Some(MessageType::Nak), "{to:?}");
    }
    assert!(is_answered(&mut sim, 0, address, guest_mac(3)));
    assert_ne!(lease(&mut sim, 1, 4), Some(address));
}

#[test]
fn a_takeover_that_is_told_for_a_second_is_enough() {
    let mut sim = sim(922, 3);
    let service = guest_ip(50);
    for (port, number) in [(0, 3), (1, 4), (2, 5)] {
        announce(&mut sim, port, guest_ip(number), guest_mac(number));
    }
    announce(&mut sim, 0, service, guest_mac(3));
    sim.received(2);
    for _ in 0..5 {
        announce(&mut sim, 1, service, guest_mac(4));
        sim.run_for(Duration::from_millis(180));
    }
    sim.run_for(Duration::from_secs(1));
    let told = sim.received(2).into_iter().any(|frame| {
        frame[12..14] == [8, 6] && frame[22..28] == guest_mac(4).0 && frame[28..32] == service.octets()
    });
    assert!(told, "the others hear of it, who did not hear its own announcements");
    // It is there without a further word of its own, for what the host opens too.
    sim.received(1);
    let flow = sim.stack.tcp_connect(SocketAddrV4::new(service, 22), sim.now, &mut sim.batches).unwrap();
    answer_arp(&mut sim, 1, service, guest_mac(4));
    assert_eq!(payloads(&sim.received(1), IpProtocol::Tcp).len(), 1);
    sim.stack.tcp_release(flow, true);
}

#[test]
fn what_one_wants_of_others_costs_them_a_few_questions() {
    let mut sim = sim(923, 2);
    for number in 3..253 {
        announce(&mut sim, 0, guest_ip(number), guest_mac(number));
    }
    sim.received(0);
    let second = sim.now + Duration::from_millis(999);
    for _ in 0..20 {
        for number in 3..253 {
            let message =
                arp(ArpOperation::Request, (guest_ip(number), guest_mac(254)), (GATEWAY, Mac([0; 6])));
            sim.inject(1, &ethernet(guest_mac(254), GATEWAY_MAC, EthernetProtocol::Arp, &message));
        }
        sim.settle();
    }
    sim.run_for(second - sim.now);
    assert_eq!(sim.received(0).len(), 16);
}

/// One that has many addresses is asked by a few of them whether it is still there, and by which does not
/// matter.
#[test]
fn a_machine_with_many_addresses_is_asked_by_a_few() {
    let mut sim = sim(942, 3);
    let (many, other) = (guest_mac(3), guest_mac(2));
    for number in 3..53 {
        announce(&mut sim, 0, guest_ip(number), many);
    }
    announce(&mut sim, 2, guest_ip(2), other);
    announce(&mut sim, 1, guest_ip(60), guest_mac(60));
    (0..3).for_each(|port| drop(sim.received(port)));
    announce(&mut sim, 1, guest_ip(60), many);
    let asked = sim.received(0);
    assert_eq!(asked.len(), 4, "{asked:02x?}");
    assert!(sim.received(2).is_empty(), "nobody else");
    let last: [u8; 4] = asked[3][38..42].try_into().unwrap();
    let answer = arp(ArpOperation::Reply, (last.into(), many), (GATEWAY, GATEWAY_MAC));
    sim.inject(0, &ethernet(many, GATEWAY_MAC, EthernetProtocol::Arp, &answer));
    sim.run_for(Duration::from_secs(12));
    assert!(sim.asked.moved.is_empty(), "{:?}", sim.asked.moved);
}

/// It has the use of an address, by hand or leased, of a machine that is gone or silent: that makes it no
/// owner of a lease.
#[test]
fn use_makes_no_lease() {
    for is_leased in [false, true] {
        for in_its_name in [false, true] {
            for is_up in [false, true] {
                let mut sim = sim(924, 2);
                let (victim, thief) = (guest_mac(3), guest_mac(4));
                let ip = if is_leased { lease(&mut sim, 0, 3).unwrap() } else { guest_ip(60) };
                assert!(is_answered(&mut sim, 0, ip, victim));
                announce(&mut sim, 1, guest_ip(4), thief);
                let mut port = 0;
                if !is_up {
                    sim.unplug(0);
                    port = sim.plug_raw(Quality::CLEAN);
                }
                let source = if in_its_name { victim } else { thief };
                for _ in 0..3 {
                    ping(&mut sim, 1, (ip, source), (GATEWAY, GATEWAY_MAC));
                    announce(&mut sim, 1, ip, source);
                    sim.run_for(Duration::from_millis(1100));
                }
                let what = [DhcpOption::RequestedIpAddress(ip)];
                let own = [what[0].clone(), DhcpOption::ServerIdentifier(GATEWAY)];
                for client in [victim, thief, guest_mac(44)] {
                    for kind in [MessageType::Release, MessageType::Decline] {
                        dhcp(&mut sim, 1, source, kind, client, &own);
                        dhcp(&mut sim, 1, source, MessageType::Request, victim, &what);
                        dhcp(&mut sim, 1, source, kind, client, &own);
                    }
                    for wish in [&what[..], &own[..]] {
                        dhcp(&mut sim, 1, source, MessageType::Discover, client, wish);
                        dhcp(&mut sim, 1, source, MessageType::Request, client, wish);
                    }
                }
                let case = format!("leased {is_leased}, in its name {in_its_name}, its link up {is_up}");
                let leases: Vec<_> = sim.stack.leases(sim.now).filter(|(leased, _)| *leased == ip).collect();
                assert!(leases.iter().all(|(_, client)| *client == victim), "{case}: {leases:?}");
                assert!(is_answered(&mut sim, port, ip, victim), "{case}");
                assert!(!is_answered(&mut sim, 1, ip, thief), "{case}");
                assert!(!is_answered(&mut sim, 1, ip, victim), "{case}");
            }
        }
    }
}

#[test]
fn a_lease_in_another_name_than_its_frames_is_its_ports() {
    let mut sim = sim(925, 2);
    // A bridge that puts its own address into the frames of those behind it.
    let (bridge, behind) = (guest_mac(3), guest_mac(33));
    let offer = dhcp(&mut sim, 0, bridge, MessageType::Discover, behind, &[]).unwrap();
    let ip = offer.yiaddr();
    let wish = [DhcpOption::RequestedIpAddress(ip), DhcpOption::ServerIdentifier(GATEWAY)];
    assert_eq!(kind(dhcp(&mut sim, 0, bridge, MessageType::Request, behind, &wish)), Some(MessageType::Ack));
    assert!(is_answered(&mut sim, 0, ip, bridge));
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    for _ in 0..5 {
        ping(&mut sim, 1, (ip, behind), (GATEWAY, GATEWAY_MAC));
        announce(&mut sim, 1, ip, behind);
        answer_arp(&mut sim, 0, ip, bridge);
        sim.run_for(Duration::from_millis(700));
    }
    assert!(is_answered(&mut sim, 0, ip, bridge));
    assert!(!is_answered(&mut sim, 1, ip, behind));
}

#[test]
fn machines_that_came_and_went_leave_addresses_to_the_next() {
    let mut sim = sim(926, 1);
    let working = lease(&mut sim, 0, 3).unwrap();
    let second = lease(&mut sim, 0, 4).unwrap();
    announce(&mut sim, 0, guest_ip(77), guest_mac(77));
    for number in 0..400_u32 {
        let port = sim.plug_raw(Quality::CLEAN);
        let [_, b, c, d] = number.to_be_bytes();
        let mac = Mac([6, 6, 6, b, c, d]);
        let offer = dhcp(&mut sim, port, mac, MessageType::Discover, mac, &[]).expect("an offer");
        let wish = [DhcpOption::RequestedIpAddress(offer.yiaddr()), DhcpOption::ServerIdentifier(GATEWAY)];
        let reply = dhcp(&mut sim, port, mac, MessageType::Request, mac, &wish);
        assert_eq!(kind(reply), Some(MessageType::Ack), "{number}");
        assert!(![working, second, guest_ip(77)].contains(&offer.yiaddr()), "{number}");
        sim.unplug(port);
    }
    assert!(is_answered(&mut sim, 0, working, guest_mac(3)));
    assert!(is_answered(&mut sim, 0, second, guest_mac(4)));
}

/// VRRP's address of its own, a nested machine, a bond's: what spoke first behind a link may go on elsewhere
/// while that link is there.
#[test]
fn what_a_link_began_with_may_go_on_elsewhere() {
    let mut sim = sim(927, 2);
    let (service, virtual_mac) = (guest_ip(50), Mac([0, 0, 0x5e, 0, 1, 1]));
    announce(&mut sim, 0, service, virtual_mac);
    announce(&mut sim, 0, guest_ip(3), guest_mac(3));
    announce(&mut sim, 1, guest_ip(4), guest_mac(4));
    for _ in 0..4 {
        announce(&mut sim, 1, service, virtual_mac);
        sim.run_for(Duration::from_millis(700));
    }
    assert!(is_answered(&mut sim, 1, service, virtual_mac));
    assert!(is_answered(&mut sim, 0, service, virtual_mac), "and back");
}

#[test]
fn the_memory_of_who_is_gone_is_not_flooded() {
    let mut sim = sim(928, 1);
    announce(&mut sim, 0, guest_ip(60), guest_mac(3));
    sim.unplug(0);
    for _ in 0..300 {
        let port = sim.plug_raw(Quality::CLEAN);
        for number in 100..108 {
            announce(&mut sim, port, guest_ip(number), guest_mac(5));
        }
        sim.unplug(port);
    }
    let thief = sim.plug_raw(Quality::CLEAN);
    announce(&mut sim, thief, guest_ip(60), guest_mac(4));
    let back = sim.plug_raw(Quality::CLEAN);
    assert!(is_answered(&mut sim, back, guest_ip(60), guest_mac(3)));
}
