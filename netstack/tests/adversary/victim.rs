//! A guest as they are: it has one address by DHCP, answers who asks for it, and uses the gateway. Owns: what
//! it says, what it has to hear and may not.
//! May not: know of the network's insides. Read next: `round.rs`, which has it do things.

use std::net::{Ipv4Addr, SocketAddrV4};

use dhcproto::v4::{DhcpOption, Message, MessageType, Opcode};
use dhcproto::{Decodable, Decoder, Encodable};
use netstack::Mac;
use smoltcp::wire::{
    ArpOperation, ArpPacket, EthernetProtocol, Icmpv4Message, Icmpv4Packet, IpProtocol, TcpControl,
    TcpPacket, TcpRepr, UdpPacket,
};

use crate::config::{GATEWAY, GATEWAY_MAC, HOST};
use crate::frames::{arp, echo_request, ethernet, fragment, ipv4, packet, udp};
use crate::segments::{PLAIN, number, tcp};

pub(crate) const MAC: Mac = Mac([0x5a, 0x94, 0xef, 0, 0, 3]);
/// It has a connection to here, a flow to there, and listens here.
const SERVICE: SocketAddrV4 = SocketAddrV4::new(HOST, 80);
const DATAGRAMS: SocketAddrV4 = SocketAddrV4::new(HOST, 9000);
const OWN_DATAGRAMS: u16 = 5000;
pub(crate) const LISTENS: u16 = 22;
const RESOLVER: SocketAddrV4 = SocketAddrV4::new(GATEWAY, 53);
const OWN_QUESTIONS: u16 = 5353;

/// A connection of its own, which nobody else may end.
#[derive(Clone, Copy, Debug)]
struct Connection {
    local: u16,
    next: u32,
    received: Option<u32>,
}

#[derive(Debug, Default)]
pub(crate) struct Victim {
    pub(crate) address: Option<Ipv4Addr>,
    connection: Option<Connection>,
    last_port: u16,
    ident: u16,
    /// What came, and has not been looked at.
    heard: Heard,
}

#[derive(Debug, Default)]
struct Heard {
    gateway: bool,
    dhcp: Vec<Message>,
    echo: Vec<u16>,
    /// Of the connection.
    bytes: Vec<u8>,
    datagrams: Vec<(u16, Vec<u8>)>,
    syns: usize,
}

impl Victim {
    fn own(&self) -> Ipv4Addr {
        self.address.unwrap_or(Ipv4Addr::UNSPECIFIED)
    }

    /// To the gateway.
    fn packet(&self, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
        ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &ipv4(self.own(), to, protocol, payload))
    }

    fn dhcp(&mut self, kind: MessageType, options: &[DhcpOption]) -> Vec<u8> {
        let zero = Ipv4Addr::UNSPECIFIED;
        self.ident = self.ident.wrapping_add(1);
        let mut message = Message::new_with_id(self.ident.into(), zero, zero, zero, zero, &MAC.0);
        message.set_opcode(Opcode::BootRequest);
        message.opts_mut().insert(DhcpOption::MessageType(kind));
        for option in options {
            message.opts_mut().insert(option.clone());
        }
        let (from, to) = (SocketAddrV4::new(zero, 68), SocketAddrV4::new(Ipv4Addr::BROADCAST, 67));
        let sent =
            ipv4(zero, *to.ip(), IpProtocol::Udp, &udp(from, to, &message.to_vec().expect("a message")));
        ethernet(MAC, Mac::BROADCAST, EthernetProtocol::Ipv4, &sent)
    }

    /// Asks for an address.
    pub(crate) fn discover(&mut self) -> Vec<u8> {
        self.dhcp(MessageType::Discover, &[])
    }

    /// Takes what it was offered; or, where it has an address, wants it confirmed.
    pub(crate) fn request(&mut self) -> Vec<u8> {
        let offer = self.heard.dhcp.pop().map(|offer| offer.yiaddr());
        let mut options = vec![DhcpOption::RequestedIpAddress(offer.or(self.address).expect("an offer"))];
        if offer.is_some() {
            options.push(DhcpOption::ServerIdentifier(GATEWAY));
        }
        self.dhcp(MessageType::Request, &options)
    }

    /// The address is its own, and the same as ever.
    pub(crate) fn assert_leased(&mut self) {
        let ack = self.heard.dhcp.pop().expect("an answer to a DHCPREQUEST");
        assert_eq!(ack.opts().msg_type(), Some(MessageType::Ack), "{ack}");
        let address = *self.address.get_or_insert_with(|| ack.yiaddr());
        assert_eq!(ack.yiaddr(), address);
    }

    /// It is on a new link.
    pub(crate) fn begin(&mut self) {
        self.connection = None;
    }

    pub(crate) fn ask_for_gateway(&mut self) -> Vec<u8> {
        self.heard.gateway = false;
        let target = (GATEWAY, Mac([0; 6]));
        ethernet(
            MAC,
            Mac::BROADCAST,
            EthernetProtocol::Arp,
            &arp(ArpOperation::Request, (self.own(), MAC), target),
        )
    }

    pub(crate) fn assert_gateway(&self) {
        assert!(self.heard.gateway, "the gateway does not answer ARP");
    }

    pub(crate) fn ping(&mut self) -> Vec<u8> {
        self.ident = self.ident.wrapping_add(1);
        self.packet(GATEWAY, IpProtocol::Icmp, &echo_request(1, self.ident, b"are you there"))
    }

    pub(crate) fn assert_pinged(&mut self) {
        assert_eq!(core::mem::take(&mut self.heard.echo), [self.ident], "replies of the gateway");
    }

    /// A datagram in two fragments, and its payload.
    pub(crate) fn datagram(&mut self) -> ([Vec<u8>; 2], Vec<u8>) {
        self.ident = self.ident.wrapping_add(1);
        let payload = [&self.ident.to_be_bytes()[..], &[0x77; 1398]].concat();
        let whole = udp(SocketAddrV4::new(self.own(), OWN_DATAGRAMS), DATAGRAMS, &payload);
        let part = |range: std::ops::Range<usize>| {
            let part = fragment(self.own(), HOST, IpProtocol::Udp, self.ident, range, &whole);
            ethernet(MAC, GATEWAY_MAC, EthernetProtocol::Ipv4, &part)
        };
        ([part(0..800), part(800..whole.len())], payload)
    }

    pub(crate) fn assert_answered(&mut self, payload: &[u8]) {
        let heard = core::mem::take(&mut self.heard.datagrams);
        assert!(heard == [(DATAGRAMS.port(), payload.to_vec())], "{heard:?}");
    }

    /// A question that the host is to answer: by an echo of it, here.
    pub(crate) fn question(&mut self) -> (Vec<u8>, Vec<u8>) {
        self.ident = self.ident.wrapping_add(1);
        let head = [&self.ident.to_be_bytes()[..], &[1, 0, 0, 1, 0, 0, 0, 0, 0, 0]].concat();
        let message = [&head[..], b"\x04name\x07example\x00\x00\x01\x00\x01"].concat();
        let asked = udp(SocketAddrV4::new(self.own(), OWN_QUESTIONS), RESOLVER, &message);
        (self.packet(GATEWAY, IpProtocol::Udp, &asked), message)
    }

    pub(crate) fn assert_told(&mut self, message: &[u8]) {
        let heard = core::mem::take(&mut self.heard.datagrams);
        assert!(heard == [(RESOLVER.port(), message.to_vec())], "{heard:?}");
    }

    /// A segment with these bytes of its connection, or the first of a new one.
    pub(crate) fn send(&mut self, bytes: &[u8]) -> Vec<u8> {
        let own = self.own();
        let Some(connection) = &mut self.connection else {
            self.last_port = 10_000 + (self.last_port + 1) % 10_000;
            let start = u32::from(self.last_port) << 16;
            let syn = TcpRepr { control: TcpControl::Syn, seq_number: number(start), ..PLAIN };
            let segment = tcp(SocketAddrV4::new(own, self.last_port), SERVICE, syn);
            self.connection =
                Some(Connection { local: self.last_port, next: start.wrapping_add(1), received: None });
            return self.packet(HOST, IpProtocol::Tcp, &segment);
        };
        let repr = TcpRepr {
            seq_number: number(connection.next),
            ack_number: connection.received.map(number),
            payload: bytes,
            ..PLAIN
        };
        let segment = tcp(SocketAddrV4::new(own, connection.local), SERVICE, repr);
        connection.next = connection.next.wrapping_add(bytes.len() as u32);
        self.packet(HOST, IpProtocol::Tcp, &segment)
    }

    /// Ends its connection by a reset.
    pub(crate) fn reset(&mut self) -> Option<Vec<u8>> {
        let connection = self.connection.take()?;
        let reset = TcpRepr {
            control: TcpControl::Rst,
            seq_number: number(connection.next),
            ack_number: connection.received.map(number),
            ..PLAIN
        };
        let segment = tcp(SocketAddrV4::new(self.own(), connection.local), SERVICE, reset);
        Some(self.packet(HOST, IpProtocol::Tcp, &segment))
    }

    pub(crate) fn is_connected(&self) -> bool {
        self.connection.is_some()
    }

    pub(crate) fn assert_connected(&self) {
        let connection = self.connection.expect("a connection");
        assert!(connection.received.is_some(), "its SYN is not answered");
    }

    pub(crate) fn assert_echoed(&mut self, bytes: &[u8]) {
        let heard = core::mem::take(&mut self.heard.bytes);
        assert!(heard == bytes, "{} bytes came back of {}: {heard:x?}", heard.len(), bytes.len());
    }

    /// How often somebody dialled it.
    pub(crate) fn syns(&mut self) -> usize {
        core::mem::take(&mut self.heard.syns)
    }

    /// A frame came; what it says to that.
    pub(crate) fn receive(&mut self, frame: &[u8]) -> Option<Vec<u8>> {
        let (to, from) = (&frame[..6], &frame[6..12]);
        assert_ne!(from, MAC.0, "somebody speaks as it: {frame:x?}");
        let is_gateways = from == GATEWAY_MAC.0;
        assert!(!is_gateways || to == MAC.0 || to == [0xff; 6], "another's: {frame:x?}");
        match &frame[12..14] {
            [8, 6] => self.receive_arp(frame, is_gateways),
            [8, 0] => self.receive_packet(frame, is_gateways),
            _ => {
                assert!(!is_gateways, "the gateway speaks of other things: {frame:x?}");
                None
            }
        }
    }

    fn receive_arp(&mut self, frame: &[u8], is_gateways: bool) -> Option<Vec<u8>> {
        let Ok(message) = ArpPacket::new_checked(&frame[14..]) else {
            assert!(!is_gateways, "{frame:x?}");
            return None;
        };
        if message.protocol_len() != 4 || message.hardware_len() != 6 {
            return None;
        }
        let octets = |bytes: &[u8]| Ipv4Addr::from(<[u8; 4]>::try_from(bytes).expect("four"));
        let (sender, target) =
            (octets(message.source_protocol_addr()), octets(message.target_protocol_addr()));
        let mac = message.source_hardware_addr();
        assert_ne!(mac, MAC.0, "{frame:x?}");
        assert!(Some(sender) != self.address, "somebody says to have its address: {frame:x?}");
        if [GATEWAY, HOST].contains(&sender) {
            assert!(is_gateways && mac == GATEWAY_MAC.0, "somebody says to be the gateway: {frame:x?}");
            self.heard.gateway |= message.operation() == ArpOperation::Reply;
        }
        let is_asked = message.operation() == ArpOperation::Request && Some(target) == self.address;
        is_asked.then(|| {
            let asker = Mac(mac.try_into().expect("six"));
            let reply = arp(ArpOperation::Reply, (self.own(), MAC), (sender, asker));
            ethernet(MAC, asker, EthernetProtocol::Arp, &reply)
        })
    }

    fn receive_packet(&mut self, frame: &[u8], is_gateways: bool) -> Option<Vec<u8>> {
        let Some(packet) = packet(frame) else {
            assert!(!is_gateways, "{frame:x?}");
            return None;
        };
        let (from, to) = (packet.src_addr(), packet.dst_addr());
        assert!(Some(from) != self.address, "somebody speaks as its address: {frame:x?}");
        assert!(
            is_gateways || ![GATEWAY, HOST].contains(&from),
            "somebody speaks as the gateway: {frame:x?}"
        );
        if !is_gateways {
            let is_dhcp = packet.next_header() == IpProtocol::Udp && packet.payload().starts_with(&[0, 67]);
            assert!(!is_dhcp || packet.frag_offset() > 0, "somebody speaks as the DHCP server: {frame:x?}");
            return None;
        }
        match packet.next_header() {
            IpProtocol::Udp => {
                let datagram = UdpPacket::new_checked(packet.payload()).expect("a datagram");
                assert!(datagram.verify_checksum(&from.into(), &to.into()), "{frame:x?}");
                let payload = datagram.payload();
                match datagram.src_port() {
                    67 => {
                        let message = Message::decode(&mut Decoder::new(payload)).expect("a DHCP message");
                        let is_own = message.chaddr() == MAC.0 && message.xid() == u32::from(self.ident);
                        // What was broadcast to somebody else.
                        if is_own {
                            self.heard.dhcp.push(message);
                        }
                    }
                    port => {
                        assert!([OWN_DATAGRAMS, OWN_QUESTIONS].contains(&datagram.dst_port()), "{frame:x?}");
                        self.heard.datagrams.push((port, payload.to_vec()));
                    }
                }
                None
            }
            IpProtocol::Icmp => {
                let message = Icmpv4Packet::new_checked(packet.payload()).expect("a message");
                assert_eq!(message.msg_type(), Icmpv4Message::EchoReply, "{frame:x?}");
                self.heard.echo.push(message.echo_seq_no());
                None
            }
            IpProtocol::Tcp => {
                let segment = TcpPacket::new_checked(packet.payload()).expect("a segment");
                assert!(segment.verify_checksum(&from.into(), &to.into()), "{frame:x?}");
                self.receive_segment(from, &segment)
            }
            other => panic!("{other}"),
        }
    }

    fn receive_segment(&mut self, from: Ipv4Addr, segment: &TcpPacket<&[u8]>) -> Option<Vec<u8>> {
        let sequence = segment.seq_number().0 as u32;
        if segment.dst_port() == LISTENS {
            self.heard.syns += usize::from(segment.syn());
            let acknowledged = Some(number(sequence.wrapping_add(1)));
            let reset = TcpRepr { control: TcpControl::Rst, ack_number: acknowledged, ..PLAIN };
            let peer = SocketAddrV4::new(from, segment.src_port());
            let reset = tcp(SocketAddrV4::new(self.own(), LISTENS), peer, reset);
            return segment.syn().then(|| self.packet(from, IpProtocol::Tcp, &reset));
        }
        assert_eq!(
            SocketAddrV4::new(from, segment.src_port()),
            SERVICE,
            "of a connection that is not its own"
        );
        // What is on its way for one that it has just ended.
        let connection =
            self.connection.as_mut().filter(|connection| connection.local == segment.dst_port())?;
        assert!(!segment.rst() && !segment.fin(), "somebody ends its connection");
        let Some(received) = &mut connection.received else {
            assert!(segment.syn());
            connection.received = Some(sequence.wrapping_add(1));
            return Some(self.send(b""));
        };
        if segment.payload().is_empty() && sequence == *received {
            return None;
        }
        if sequence == *received {
            *received = received.wrapping_add(segment.payload().len() as u32);
            self.heard.bytes.extend_from_slice(segment.payload());
        }
        Some(self.send(b""))
    }
}
