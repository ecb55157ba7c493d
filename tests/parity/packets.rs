//! DHCP and TCP spoken by hand, for what a Linux client would not say. Read next: `network.rs`.

use std::net::Ipv4Addr;
use std::time::Duration;

use crate::case::On;
use crate::wire::PATIENCE;
use testkit::daemon::Daemon;
use testkit::frames::{
    ACK, BROADCAST, GATEWAY_MAC, IP, IPV4, MAC, SYN, TCP, UDP, Wire, ether, ipv4, tcp, udp,
};

/// How long a DHCP answer is waited for.
const ANSWER: Duration = Duration::from_secs(2);
const RST: u8 = 4;

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
        let (mac, id) = (self.mac, [self.kind, 1, 2, self.mac[5]]);
        let frame = wire.receive(ANSWER, |frame| {
            frame.len() > 282
                && frame[23] == UDP
                && frame[34..36] == [0, 67]
                && frame[70..76] == mac
                && frame[46..50] == id
        })?;
        let (mut rest, mut options) = (&frame[282..], Vec::new());
        while let [code, length, tail @ ..] = rest
            && *code != 255
        {
            let (value, tail) = tail.split_at_checked(usize::from(*length))?;
            options.push((*code, value.to_vec()));
            rest = tail;
        }
        let to = format!("{:02x?} {}.{}.{}.{}", &frame[..6], frame[30], frame[31], frame[32], frame[33]);
        Some(Reply { to, address: Ipv4Addr::new(frame[58], frame[59], frame[60], frame[61]), options })
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
    fn answer(&mut self, wire: &mut Wire, options: &[u8]) -> Option<Vec<u8>> {
        let mut syn = tcp(self.port, self.to.1, self.next, 0, SYN, options);
        syn[12] = u8::try_from((20 + options.len()) / 4 * 16).unwrap();
        self.put(wire, &syn);
        self.next += 1;
        let ports = [self.to.1.to_be_bytes(), self.port.to_be_bytes()].concat();
        let frame = wire
            .receive(PATIENCE / 5, |frame| frame.len() >= 54 && frame[23] == TCP && frame[34..38] == ports)?;
        let sequence = u32::from_be_bytes(frame[38..42].try_into().unwrap());
        self.other = sequence.wrapping_add(1);
        Some(frame[34..].to_vec())
    }

    /// Sends a SYN and says how it was answered; acknowledges nothing.
    pub(crate) fn open(&mut self, wire: &mut Wire) -> String {
        match self.answer(wire, &[2, 4, 5, 0xb4]).map(|segment| segment[13] & (SYN | ACK | RST)) {
            None => "silence".to_owned(),
            Some(flags) if flags == SYN | ACK => "SYN-ACK".to_owned(),
            Some(flags) if flags & RST != 0 => "RST".to_owned(),
            Some(flags) => format!("flags {flags}"),
        }
    }

    /// The options of the SYN-ACK, where the SYN has every usual one.
    pub(crate) fn offered(&mut self, wire: &mut Wire) -> String {
        let options = [2, 4, 5, 0xb4, 4, 2, 8, 10, 0, 0, 0, 1, 0, 0, 0, 0, 1, 3, 3, 7];
        let Some(segment) = self.answer(wire, &options) else { return "silence".to_owned() };
        let end = usize::from(segment[12] >> 4) * 4;
        let (mut rest, mut shown) = (&segment[20..end], Vec::new());
        while let [kind, tail @ ..] = rest {
            match (kind, tail) {
                (0 | 1, _) => rest = tail,
                (_, [length, _, ..]) if *length >= 2 => {
                    let value = &rest[2..usize::from(*length)];
                    shown.push(match kind {
                        2 => format!("MSS {}", u16::from_be_bytes([value[0], value[1]])),
                        3 => "window scale".to_owned(),
                        4 => "SACK".to_owned(),
                        8 => "timestamps".to_owned(),
                        other => format!("option {other}"),
                    });
                    rest = &rest[usize::from(*length)..];
                }
                (_, [2, ..]) => {
                    shown.push(if *kind == 4 { "SACK".to_owned() } else { format!("option {kind}") });
                    rest = &rest[2..];
                }
                _ => break,
            }
        }
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
