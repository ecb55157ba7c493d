//! A guest that means harm. Owns: what it says next, and what it remembers of what it heard, so that it can
//! go on with what it began. May not: know of the network's insides, or of the victim more than its
//! addresses. Read next: `victim.rs`.

use std::collections::VecDeque;
use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Flags, Message, MessageType, Opcode};
use dhcproto::{Decodable, Decoder, Encodable};
use netstack::Mac;
use smoltcp::wire::{
    ArpOperation, EthernetProtocol, Icmpv4Packet, IpProtocol, TcpControl, TcpPacket, TcpRepr,
    TcpTimestampRepr,
};

use crate::config::{GATEWAY, GATEWAY_MAC, HOST};
use crate::frames::{arp, echo_request, ethernet, fragment, ipv4, packet, udp};
use crate::random::Random;
use crate::round::ADDRESS;
use crate::segments::{PLAIN, number, tcp};
use crate::victim;

pub(crate) const MAC: Mac = Mac([0x5a, 0x94, 0xef, 0, 0, 4]);
/// What it remembers of each kind; the oldest is forgotten.
const MAX_REMEMBERED: usize = 32;

/// One of its connections, or of somebody else's.
#[derive(Clone, Copy, Debug)]
struct Connection {
    own: SocketAddrV4,
    peer: SocketAddrV4,
    next: u32,
    received: u32,
    /// The start of a hole that it left.
    hole: u32,
}

#[derive(Debug, Default)]
pub(crate) struct Attacker {
    /// By DHCP.
    pub(crate) leased: Option<Ipv4Addr>,
    connections: VecDeque<Connection>,
    offers: VecDeque<Ipv4Addr>,
    /// Datagrams of which a part has been sent.
    begun: VecDeque<(Ipv4Addr, Ipv4Addr, IpProtocol, u16, Vec<u8>)>,
    /// What it says before anything else.
    queued: VecDeque<Vec<u8>>,
    pub(crate) leases: u64,
}

fn remember<T>(list: &mut VecDeque<T>, thing: T) {
    if list.len() == MAX_REMEMBERED {
        list.pop_front();
    }
    list.push_back(thing);
}

impl Attacker {
    /// Its next frame.
    pub(crate) fn speak(&mut self, random: &mut Random) -> Vec<u8> {
        if let Some(frame) = self.queued.pop_front() {
            return frame;
        }
        let mut frame = match random.below(32) {
            0..=4 => self.arp(random),
            5..=9 => self.dhcp(random),
            10..=19 => self.segment(random),
            20..=22 => self.part(random),
            23 => self.begin(random),
            24..=26 => self.datagram(random),
            27 => self.report(random),
            28 => self.ping(random),
            29 => other(random),
            30 => self.announce_many(random),
            _ => random.bytes(200),
        };
        if random.once_in(16) {
            spoil(random, &mut frame);
        }
        frame
    }

    /// What came to it, which it may go on with.
    pub(crate) fn receive(&mut self, frame: &[u8], random: &mut Random) {
        if frame[12..14] == [8, 6] && frame.len() >= 42 && frame[20..22] == [0, 1] && random.once_in(2) {
            let octets = |at: usize| Ipv4Addr::from([frame[at], frame[at + 1], frame[at + 2], frame[at + 3]]);
            let mac = random.one(&[MAC, MAC, victim::MAC, Mac([0x5a, 0x94, 0xef, 0, 0, 5])]);
            let asker = Mac(frame[22..28].try_into().expect("six"));
            let reply = arp(ArpOperation::Reply, (octets(38), mac), (octets(28), asker));
            remember(&mut self.queued, ethernet(MAC, asker, EthernetProtocol::Arp, &reply));
        }
        let Some(packet) = packet(frame) else { return };
        match packet.next_header() {
            IpProtocol::Udp if packet.payload().starts_with(&[0, 67]) => {
                let Ok(message) = Message::decode(&mut Decoder::new(&packet.payload()[8..])) else { return };
                match message.opts().msg_type() {
                    Some(MessageType::Ack) if !message.yiaddr().is_unspecified() => {
                        self.leases += 1;
                        self.leased = Some(message.yiaddr());
                    }
                    Some(MessageType::Offer) => remember(&mut self.offers, message.yiaddr()),
                    _ => {}
                }
            }
            IpProtocol::Tcp => {
                let Ok(segment) = TcpPacket::new_checked(packet.payload()) else { return };
                let own = SocketAddrV4::new(packet.dst_addr(), segment.dst_port());
                let peer = SocketAddrV4::new(packet.src_addr(), segment.src_port());
                let end = (segment.seq_number().0 as u32).wrapping_add(segment.segment_len() as u32);
                let known = self.connections.iter_mut().find(|one| (one.own, one.peer) == (own, peer));
                if let Some(connection) = known {
                    connection.received = end;
                } else if segment.syn() {
                    // Somebody dials it.
                    let next = random.next() as u32;
                    let connection =
                        Connection { own, peer, next: next.wrapping_add(1), received: end, hole: next };
                    remember(&mut self.connections, connection);
                    let (control, ack_number) =
                        (random.one(&[TcpControl::Syn, TcpControl::Rst]), Some(number(end)));
                    let answer =
                        tcp(own, peer, TcpRepr { control, seq_number: number(next), ack_number, ..PLAIN });
                    let answer = ipv4(*own.ip(), *peer.ip(), IpProtocol::Tcp, &answer);
                    remember(&mut self.queued, ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &answer));
                }
            }
            _ => {}
        }
    }

    /// Its link is a new one, on which it speaks as itself first: as whom a link begins to speak it is
    /// (SECURITY.md).
    pub(crate) fn begin_anew(&mut self) -> Vec<u8> {
        self.queued.clear();
        let own = (Ipv4Addr::UNSPECIFIED, MAC);
        let probe = arp(ArpOperation::Request, own, (Ipv4Addr::new(192, 168, 127, 4), Mac([0; 6])));
        ethernet(MAC, Mac::BROADCAST, EthernetProtocol::Arp, &probe)
    }

    /// Mostly its own; or the victim's, the gateway's, nobody's.
    fn address(&self, random: &mut Random) -> Ipv4Addr {
        let own = self.leased.unwrap_or(Ipv4Addr::new(192, 168, 127, 4));
        match random.below(24) {
            0..=9 => own,
            10..=12 => ADDRESS,
            13 => GATEWAY,
            14 => HOST,
            15..=17 => Ipv4Addr::new(192, 168, 127, random.next() as u8),
            18 => Ipv4Addr::UNSPECIFIED,
            19 => Ipv4Addr::BROADCAST,
            20 => Ipv4Addr::new(127, 0, 0, 1),
            21 => Ipv4Addr::new(10, 0, 0, random.next() as u8 % 4),
            22 => Ipv4Addr::new(224, 0, 0, random.next() as u8 % 4),
            _ => Ipv4Addr::from(random.next() as u32),
        }
    }

    fn mac(random: &mut Random) -> Mac {
        match random.below(20) {
            0..=13 => MAC,
            14..=15 => victim::MAC,
            16 => Mac([0x5a, 0x94, 0xef, 0, 1, random.next() as u8]),
            17 => GATEWAY_MAC,
            18 => random.one(&[Mac([0; 6]), Mac::BROADCAST, Mac([1, 0, 0x5e, 0, 0, 1])]),
            _ => Mac([0x5a, 0x94, 0xef, 0, 0, random.next() as u8]),
        }
    }

    fn destination(random: &mut Random) -> Mac {
        match random.below(16) {
            0..=8 => GATEWAY_MAC,
            9..=11 => victim::MAC,
            12..=13 => Mac::BROADCAST,
            14 => Mac([0x33, 0x33, 0, 0, 0, 1]),
            _ => Self::mac(random),
        }
    }

    fn ethernet(random: &mut Random, protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
        ethernet(Self::mac(random), Self::destination(random), protocol, payload)
    }

    fn packet(&self, random: &mut Random, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let (from, to) = (self.address(random), self.address(random));
        let mut packet = ipv4(from, to, protocol, payload);
        if random.once_in(16) {
            packet[8] = random.next() as u8 % 3;
        }
        Self::ethernet(random, EthernetProtocol::Ipv4, &packet)
    }

    fn arp(&mut self, random: &mut Random) -> Vec<u8> {
        let operation = random.one(&[ArpOperation::Request, ArpOperation::Reply]);
        let sender = (self.address(random), Self::mac(random));
        let target = if random.once_in(3) { sender } else { (self.address(random), Self::mac(random)) };
        let to = Self::destination(random);
        ethernet(
            if random.once_in(4) { MAC } else { sender.1 },
            to,
            EthernetProtocol::Arp,
            &arp(operation, sender, target),
        )
    }

    /// Addresses in a row, each of a machine of its own.
    fn announce_many(&mut self, random: &mut Random) -> Vec<u8> {
        let start = random.next() as u8;
        for number in 0..random.below(MAX_REMEMBERED) as u8 {
            let (last, mac) = (start.wrapping_add(number), Mac([0x5a, 0x94, 0xef, 0, 2, number]));
            let address = (Ipv4Addr::new(192, 168, 127, last), mac);
            let message = arp(ArpOperation::Request, address, address);
            remember(&mut self.queued, ethernet(mac, Mac::BROADCAST, EthernetProtocol::Arp, &message));
        }
        self.ping(random)
    }

    fn dhcp(&mut self, random: &mut Random) -> Vec<u8> {
        let kinds = [
            MessageType::Discover,
            MessageType::Discover,
            MessageType::Request,
            MessageType::Request,
            MessageType::Request,
            MessageType::Decline,
            MessageType::Release,
            MessageType::Inform,
        ];
        let (kind, zero) = (random.one(&kinds), Ipv4Addr::UNSPECIFIED);
        let client = if random.once_in(3) { Self::mac(random) } else { MAC };
        let wish = match self.offers.pop_front() {
            Some(offered) if !random.once_in(4) => offered,
            _ => self.address(random),
        };
        let is_renewal = random.once_in(4) || matches!(kind, MessageType::Release | MessageType::Inform);
        let own = if is_renewal { wish } else { zero };
        let mut message = Message::new_with_id(random.next() as u32 % 4, own, zero, zero, zero, &client.0);
        message.set_opcode(Opcode::BootRequest);
        if random.once_in(8) {
            message.set_flags(Flags::default().set_broadcast());
        }
        if random.once_in(32) {
            message.set_giaddr(self.address(random));
        }
        let options = message.opts_mut();
        options.insert(DhcpOption::MessageType(kind));
        if !is_renewal {
            options.insert(DhcpOption::RequestedIpAddress(wish));
        }
        if random.once_in(2) {
            options.insert(DhcpOption::ServerIdentifier(if random.once_in(8) { HOST } else { GATEWAY }));
        }
        if random.once_in(6) {
            let name = if random.once_in(2) { [&[1], &victim::MAC.0[..]].concat() } else { random.bytes(12) };
            options.insert(DhcpOption::ClientIdentifier(name));
        }
        let message = message.to_vec().expect("a message");
        let ports = if random.once_in(16) { (67, 68) } else { (68, 67) };
        let to = if random.once_in(4) { GATEWAY } else { Ipv4Addr::BROADCAST };
        let sent = udp(SocketAddrV4::new(own, ports.0), SocketAddrV4::new(to, ports.1), &message);
        let sent = ipv4(own, to, IpProtocol::Udp, &sent);
        let from = if random.once_in(8) { Self::mac(random) } else { client };
        let destination = if random.once_in(8) { Self::destination(random) } else { Mac::BROADCAST };
        ethernet(from, destination, EthernetProtocol::Ipv4, &sent)
    }

    /// Of a connection that there is, more or less; or the first of one.
    fn segment(&mut self, random: &mut Random) -> Vec<u8> {
        let count = self.connections.len();
        if count == 0 || random.once_in(8) {
            let from = if random.once_in(4) { self.address(random) } else { self.leased.unwrap_or(ADDRESS) };
            let own =
                SocketAddrV4::new(from, random.one(&[10_000, 40_000, 50_000]) + random.below(64) as u16);
            let to = if random.once_in(4) { self.address(random) } else { HOST };
            let peer = SocketAddrV4::new(to, random.one(&[80, 80, 80, 53, 22, 1234]));
            let next = random.next() as u32;
            let syn = TcpRepr {
                control: TcpControl::Syn,
                seq_number: number(next),
                window_len: random.one(&[0, 1, 60_000]),
                window_scale: random.one(&[None, Some(0), Some(7), Some(14), Some(200)]),
                max_seg_size: random.one(&[None, Some(0), Some(1), Some(88), Some(1460), Some(65_535)]),
                sack_permitted: random.once_in(2),
                ..PLAIN
            };
            let next = next.wrapping_add(1);
            remember(&mut self.connections, Connection { own, peer, next, received: 0, hole: next });
            let packet = ipv4(from, to, IpProtocol::Tcp, &tcp(own, peer, syn));
            return ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &packet);
        }
        let chosen = random.below(count);
        let skew = random.one(&[0, 0, 0, 0, 0, 0, 1, 1000, 3000, u32::MAX, 1 << 20, 1 << 31]);
        let payload = if random.once_in(2) { random.bytes(1400) } else { Vec::new() };
        let control = match random.below(40) {
            0 => TcpControl::Syn,
            1 => TcpControl::Fin,
            2 => TcpControl::Rst,
            3..=9 => TcpControl::Psh,
            _ => TcpControl::None,
        };
        let behind = random.one(&[0, 0, 0, 0, 0, 1, 2000, u32::MAX]);
        let Connection { own, peer, next, received, hole } = self.connections[chosen];
        let sequence = if random.once_in(8) { hole } else { next.wrapping_add(skew) };
        let edge = |random: &mut Random| received.wrapping_add(random.below(4000) as u32);
        let sack = |random: &mut Random| random.once_in(8).then(|| (edge(random), edge(random)));
        let repr = TcpRepr {
            control,
            seq_number: number(sequence),
            ack_number: (!random.once_in(16)).then(|| number(received.wrapping_sub(behind))),
            window_len: random.one(&[60_000, 60_000, 60_000, 0, 1, 500]),
            sack_ranges: [sack(random), sack(random), sack(random)],
            timestamp: random.once_in(16).then(|| TcpTimestampRepr { tsval: random.next() as u32, tsecr: 0 }),
            payload: &payload,
            ..PLAIN
        };
        if skew == 0 {
            let counted = payload.len() + usize::from(matches!(control, TcpControl::Syn | TcpControl::Fin));
            self.connections[chosen].next = next.wrapping_add(counted as u32);
        } else if skew <= 3000 {
            self.connections[chosen].hole = next;
        }
        let packet = ipv4(*own.ip(), *peer.ip(), IpProtocol::Tcp, &tcp(own, peer, repr));
        match random.once_in(16) {
            true => Self::ethernet(random, EthernetProtocol::Ipv4, &packet),
            false => ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &packet),
        }
    }

    /// A datagram that it begins to send in parts, sometimes with the victim's next identification.
    fn begin(&mut self, random: &mut Random) -> Vec<u8> {
        let (from, to) = (self.address(random), if random.once_in(2) { HOST } else { self.address(random) });
        let ends = (SocketAddrV4::new(from, 6000), SocketAddrV4::new(to, random.one(&[9000, 53, 67])));
        let (protocol, payload) = match random.below(4) {
            0 => (IpProtocol::Icmp, echo_request(2, 1, &random.bytes(3000))),
            1 => (IpProtocol::Tcp, tcp(ends.0, ends.1, TcpRepr { control: TcpControl::Syn, ..PLAIN })),
            _ => (IpProtocol::Udp, udp(ends.0, ends.1, &random.bytes(4000))),
        };
        remember(&mut self.begun, (from, to, protocol, random.next() as u16 % 64, payload));
        self.part(random)
    }

    /// One part of a datagram, whole, again, over another one, or beyond its end.
    fn part(&mut self, random: &mut Random) -> Vec<u8> {
        let count = self.begun.len();
        if count == 0 {
            return self.ping(random);
        }
        let (from, to, protocol, ident, payload) = &self.begun[random.below(count)];
        let units = payload.len() / 8 + 1;
        let start = (random.below(units.min(4)) * random.one(&[0, 1, 1, units / 2]) * 8).min(payload.len());
        let rest = payload.len() - start;
        let end = if random.once_in(2) {
            payload.len()
        } else {
            start + (random.below(rest / 8 + 1) * 8).max(rest.min(8))
        };
        let end = end.min(payload.len()).min(start + 1480);
        let mut part = fragment(*from, *to, *protocol, *ident, start..end, payload);
        if random.once_in(32) {
            part[6..8].copy_from_slice(&(random.next() as u16).to_be_bytes());
        }
        match random.once_in(8) {
            true => Self::ethernet(random, EthernetProtocol::Ipv4, &part),
            false => ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &part),
        }
    }

    fn datagram(&mut self, random: &mut Random) -> Vec<u8> {
        let (from, to) = (self.address(random), self.address(random));
        let (source, target) =
            (random.one(&[67, 53, 68, 5000, 5353, 7000]), random.one(&[53, 67, 68, 9000, 5000, 5353, 7]));
        let to = if random.once_in(2) { random.one(&[HOST, GATEWAY]) } else { to };
        let payload = random.bytes(300);
        let sent = udp(SocketAddrV4::new(from, source), SocketAddrV4::new(to, target), &payload);
        let sent = ipv4(from, to, IpProtocol::Udp, &sent);
        match random.once_in(2) {
            true => Self::ethernet(random, EthernetProtocol::Ipv4, &sent),
            false => ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &sent),
        }
    }

    /// An ICMP error about a packet of somebody's.
    fn report(&mut self, random: &mut Random) -> Vec<u8> {
        let from = random.one(&[HOST, GATEWAY]);
        let to = if random.once_in(3) { self.address(random) } else { ADDRESS };
        let ports = (random.one(&[80, 9000, 53]), 10_000 + random.below(64) as u16);
        let ends = (SocketAddrV4::new(from, ports.0), SocketAddrV4::new(to, ports.1));
        let quoted = match random.once_in(2) {
            true => ipv4(from, to, IpProtocol::Tcp, &tcp(ends.0, ends.1, PLAIN)),
            false => ipv4(from, to, IpProtocol::Udp, &udp(ends.0, ends.1, b"quoted")),
        };
        let mut message = echo_request(0, random.one(&[0, 68, 552, 1400]), &quoted);
        (message[0], message[1]) = (random.one(&[3, 3, 3, 4, 5, 11, 12]), random.next() as u8 % 5);
        Icmpv4Packet::new_unchecked(&mut message).fill_checksum();
        self.packet(random, IpProtocol::Icmp, &message)
    }

    fn ping(&mut self, random: &mut Random) -> Vec<u8> {
        let message = echo_request(3, 4, &random.bytes(100));
        self.packet(random, IpProtocol::Icmp, &message)
    }
}

/// IPv6 with a router advertisement or redirect, VLANs, link-local protocols.
fn other(random: &mut Random) -> Vec<u8> {
    let mut payload = random.bytes(120);
    let types = [0x86dd, 0x86dd, 0x8100, 0x88cc, 0x0027, 0x8808, 0x888e, 0x88a8];
    let protocol = EthernetProtocol::from(random.one(&types));
    if payload.len() > 50 {
        payload[0] = 0x60;
        payload[6] = random.one(&[58, 17, 0]);
        payload[40] = random.one(&[134, 135, 136, 137]);
    }
    Attacker::ethernet(random, protocol, &payload)
}

/// Some of it is otherwise, or there is less or more of it.
fn spoil(random: &mut Random, frame: &mut Vec<u8>) {
    match random.below(4) {
        0 => frame.truncate(random.below(frame.len() + 1)),
        1 => frame.extend(random.bytes(64)),
        _ => {
            for _ in 0..random.below(4) {
                if !frame.is_empty() {
                    let at = random.below(frame.len().min(80));
                    frame[at] = random.next() as u8;
                }
            }
        }
    }
}
