//! DHCP and TCP spoken by hand, for what a Linux client would not say. Read next: `network.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use dhcproto::v4::borrowed::Message;
use etherparse::{TcpHeader, TcpOptionElement, TransportSlice};

use crate::case::On;
use crate::wire::PATIENCE;
use testkit::daemon::Daemon;
use testkit::frames::{
    ACK, BROADCAST, GATEWAY_MAC, IP, IPV4, MAC, RST, TCP, UDP, Wire, ether, ipv4, read_arp, read_ipv4,
    read_transport, syn, tcp, udp,
};

/// How long a DHCP answer is waited for.
const ANSWER: Duration = Duration::from_secs(2);

/// A daemon and a machine that is nothing but frames; the machine hangs up first.
pub(crate) fn start<const N: usize>(on: &On, args: [&str; N]) -> (Daemon, Wire) {
    let daemon = on.daemon().args(args).start();
    let mut wire = Wire::plug(&daemon);
    // Its address becomes known, so that nobody has to ask for it.
    assert!(wire.is_alive(), "the gateway");
    (daemon, wire)
}

/// A message of a DHCP client.
#[derive(Clone, Debug)]
pub(crate) struct Dhcp {
    kind: u8,
    mac: [u8; 6],
    wanted: Option<Ipv4Addr>,
    /// The source of the packet, which is the client's address too.
    pub(crate) from: Ipv4Addr,
    /// Its destination.
    pub(crate) at: Ipv4Addr,
}

/// What a DHCP server says.
#[derive(Clone, Debug)]
pub(crate) struct Reply {
    /// The packet's destination, of Ethernet and IP.
    pub(crate) to: String,
    pub(crate) address: Ipv4Addr,
    pub(crate) options: Vec<(u8, Vec<u8>)>,
}

impl Dhcp {
    fn new(kind: u8, mac: [u8; 6]) -> Self {
        Self { kind, mac, wanted: None, from: Ipv4Addr::UNSPECIFIED, at: Ipv4Addr::BROADCAST }
    }

    pub(crate) fn discover(mac: [u8; 6]) -> Self {
        Self::new(1, mac)
    }

    pub(crate) fn request(mac: [u8; 6], wanted: Ipv4Addr) -> Self {
        Self { wanted: Some(wanted), ..Self::new(3, mac) }
    }

    pub(crate) fn release(mac: [u8; 6], own: Ipv4Addr) -> Self {
        Self { from: own, at: testkit::net::GATEWAY, ..Self::new(7, mac) }
    }

    pub(crate) fn inform(mac: [u8; 6], own: Ipv4Addr) -> Self {
        Self { from: own, ..Self::new(8, mac) }
    }

    pub(crate) fn send(&self, wire: &mut Wire) {
        let mut message = vec![0; 240];
        message[..8].copy_from_slice(&[1, 1, 6, 0, self.kind, 1, 2, self.mac[5]]);
        if !self.from.is_unspecified() {
            message[12..16].copy_from_slice(&self.from.octets());
        }
        message[28..34].copy_from_slice(&self.mac);
        message[236..240].copy_from_slice(&[99, 130, 83, 99]);
        message.extend([53, 1, self.kind, 61, 3, 0, 7, 8, 55, 5, 1, 3, 6, 26, 119]);
        if let Some(wanted) = self.wanted.filter(|_| self.from.is_unspecified()) {
            message.extend([50, 4]);
            message.extend(wanted.octets());
        }
        message.push(255);
        let to = if self.at.is_broadcast() { BROADCAST } else { GATEWAY_MAC };
        wire.send(&ether(to, self.mac, IPV4, &ipv4(UDP, self.from, self.at, &udp(68, 67, &message))));
    }

    pub(crate) fn ask(&self, wire: &mut Wire) -> Option<Reply> {
        self.send(wire);
        let id = u32::from_be_bytes([self.kind, 1, 2, self.mac[5]]);
        let is_answer = |message: Message<'_>| message.xid() == id && message.chaddr() == self.mac;
        let frame = wire.receive(ANSWER, |frame| dhcp_reply(frame).is_some_and(is_answer))?;
        let (message, destination) = (dhcp_reply(&frame)?, read_ipv4(&frame)?.destination_addr());
        let options = message.opts().map(|option| (option.code().into(), option.data().to_vec()));
        let to = format!("{:02x?} {destination}", &frame[..6]);
        Some(Reply { to, address: message.yiaddr(), options: options.collect() })
    }

    /// The address that a client gets who asks as all do.
    pub(crate) fn lease(mac: [u8; 6], wire: &mut Wire) -> String {
        let Some(offer) = Self::discover(mac).ask(wire) else { return "nothing".to_owned() };
        Self::request(mac, offer.address)
            .ask(wire)
            .map_or_else(|| "nothing".to_owned(), |reply| reply.address.to_string())
    }
}

impl Reply {
    /// The address, and the options that are asked for, in the order of the message.
    pub(crate) fn shown(&self, wanted: impl Fn(u8) -> bool) -> String {
        let options = self.options.iter().filter(|(code, _)| wanted(*code));
        let options: Vec<_> = options
            .map(|(code, value)| match code {
                119 => format!("119={:?}", String::from_utf8_lossy(value)),
                _ => format!("{code}={}", value.iter().map(u8::to_string).collect::<Vec<_>>().join(".")),
            })
            .collect();
        format!("{} {}", self.address, options.join(" ")).trim_end().to_owned()
    }
}

/// The message of a DHCP server in `frame`, about a hardware address of Ethernet.
pub(crate) fn dhcp_reply(frame: &[u8]) -> Option<Message<'_>> {
    match read_transport(frame)? {
        TransportSlice::Udp(datagram) if datagram.source_port() == 67 => {
            Message::new(datagram.payload()).ok().filter(|message| message.hlen() == 6)
        }
        _ => None,
    }
}

/// The hardware address that whoever has `ip` answers with.
pub(crate) fn hardware_address(wire: &Wire, patience: Duration, ip: Ipv4Addr) -> Option<[u8; 6]> {
    let answer = |frame: &[u8]| read_arp(frame).filter(|message| message.sender_ipv4_addr() == ip);
    let frame = wire.receive(patience, |frame| answer(frame).is_some())?;
    answer(&frame).map(|message| message.sender_mac)
}

/// A client's end of a TCP connection, of one packet at a time; checksums are left out.
#[derive(Debug)]
pub(crate) struct Tcp {
    to: (Ipv4Addr, u16),
    port: u16,
    next: u32,
    /// What the other end has to have acknowledged.
    other: u32,
}

impl Tcp {
    pub(crate) fn new(ip: Ipv4Addr, port: u16) -> Self {
        Self { to: (ip, port), port: 40_000, next: 1000, other: 0 }
    }

    fn put(&self, wire: &mut Wire, segment: &[u8]) {
        wire.send(&ether(GATEWAY_MAC, MAC, IPV4, &ipv4(TCP, IP, self.to.0, segment)));
    }

    /// The answer to a SYN.
    fn answer(&mut self, wire: &mut Wire, options: &[u8]) -> Option<TcpHeader> {
        self.put(wire, &syn(self.port, self.to.1, self.next, options));
        self.next += 1;
        let ports = (self.to.1, self.port);
        let answer = |frame: &[u8]| match read_transport(frame)? {
            TransportSlice::Tcp(segment) => Some(segment.to_header()),
            _ => None,
        };
        let is_ours = |header: TcpHeader| (header.source_port, header.destination_port) == ports;
        let frame = wire.receive(PATIENCE / 5, |frame| answer(frame).is_some_and(is_ours))?;
        let header = answer(&frame)?;
        self.other = header.sequence_number.wrapping_add(1);
        Some(header)
    }

    /// Sends a SYN and says how it was answered; acknowledges nothing.
    pub(crate) fn open(&mut self, wire: &mut Wire) -> String {
        match self.answer(wire, &[2, 4, 5, 0xb4]) {
            None => "silence".to_owned(),
            Some(TcpHeader { rst: true, .. }) => "RST".to_owned(),
            Some(TcpHeader { syn: true, ack: true, .. }) => "SYN-ACK".to_owned(),
            Some(header) => format!("{header:?}"),
        }
    }

    /// The options of the SYN-ACK, where the SYN has every usual one.
    pub(crate) fn offered(&mut self, wire: &mut Wire) -> String {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        let Some(header) = self.answer(wire, &options) else { return "silence".to_owned() };
        let options = header.options_iterator().filter_map(|option| {
            Some(match option {
                Ok(TcpOptionElement::Noop) => return None,
                Ok(TcpOptionElement::MaximumSegmentSize(mss)) => format!("MSS {mss}"),
                Ok(TcpOptionElement::WindowScale(_)) => "window scale".to_owned(),
                Ok(TcpOptionElement::SelectiveAcknowledgementPermitted) => "SACK".to_owned(),
                Ok(TcpOptionElement::Timestamp(..)) => "timestamps".to_owned(),
                other => format!("{other:?}"),
            })
        });
        let mut shown: Vec<_> = options.collect();
        shown.sort();
        shown.join(", ")
    }

    /// Acknowledges, with data.
    pub(crate) fn send(&mut self, wire: &mut Wire, data: &[u8]) {
        self.put(wire, &tcp(self.port, self.to.1, self.next, self.other, ACK, data));
        self.next = self.next.wrapping_add(u32::try_from(data.len()).unwrap());
    }

    pub(crate) fn reset(&mut self, wire: &mut Wire) {
        self.put(wire, &tcp(self.port, self.to.1, self.next, self.other, RST | ACK, &[]));
    }
}
