//! A guest that is nothing but frames: what a test sends, byte for byte, and what comes back.
//! Owns: one end of a link, the builders of well-formed packets, for a test to spoil, and the readers of
//! answers.
//! May not: keep state of any protocol. Read next: `tests/bad_frames.rs`.

use std::io::{Read, Write};
use std::net::Ipv4Addr;
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::mpsc::{Receiver, channel};
use std::time::{Duration, Instant};

use etherparse::{
    ArpEthIpv4Packet, ArpOperation, EtherType, Ethernet2Header, Ethernet2Slice, IcmpEchoHeader, Icmpv4Header,
    Icmpv4Type, IpFragOffset, IpNumber, Ipv4Header, Ipv4HeaderSlice, NetSlice, SlicedPacket, TcpHeader,
    TransportSlice, UdpHeader,
};

use crate::cable::{Cable, Framing};
use crate::daemon::Daemon;
use crate::net::{self, GATEWAY};

pub const BROADCAST: [u8; 6] = [0xff; 6];
pub const GATEWAY_MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd];
pub const MAC: [u8; 6] = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee];
pub const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

pub const IPV4: u16 = 0x0800;
pub const ARP: u16 = 0x0806;

pub const ICMP: u8 = 1;
pub const TCP: u8 = 6;
pub const UDP: u8 = 17;

pub const SYN: u8 = 2;
pub const RST: u8 = 4;
pub const ACK: u8 = 16;

/// The identifier of every echo request.
const ECHO_ID: u16 = 0x0909;

/// A plug in the daemon's QEMU socket, or in another link.
#[derive(Debug)]
pub struct Wire {
    cable: Cable,
    frames: Receiver<Vec<u8>>,
    asked: u16,
}

impl Wire {
    #[track_caller]
    pub fn plug(daemon: &Daemon) -> Self {
        Self::over(net::plug(daemon))
    }

    /// A plug in another QEMU socket than the one that [`Daemon`] made.
    #[track_caller]
    pub fn plug_into(socket: &Path) -> Self {
        Self::over(crate::eventually("a connection to the QEMU socket", Duration::from_secs(5), || {
            UnixStream::connect(socket).ok()
        }))
    }

    /// Frames over whatever link.
    pub fn over(cable: impl Into<Cable>) -> Self {
        let cable = cable.into();
        let (mut reader, framing) = (cable.input.try_clone().unwrap(), cable.framing);
        let (sender, frames) = channel();
        // A guest that always empties its card, so that the daemon never waits for the test.
        std::thread::spawn(move || {
            while let Ok(frame) = read_frame(&mut reader, framing) {
                if sender.send(frame).is_err() {
                    break;
                }
            }
        });
        Self { cable, frames, asked: 0 }
    }

    /// Bytes as they are, without a length before them.
    pub fn raw(&mut self, bytes: &[u8]) -> std::io::Result<()> {
        self.cable.output.write_all(bytes)
    }

    /// One frame.
    #[track_caller]
    pub fn send(&mut self, frame: &[u8]) {
        self.send_all([frame]);
    }

    /// Many frames in one write.
    #[track_caller]
    pub fn send_all<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) {
        self.try_send_all(frames).unwrap_or_else(|error| panic!("the daemon hung up: {error}"));
    }

    fn try_send_all<'a>(&mut self, frames: impl IntoIterator<Item = &'a [u8]>) -> std::io::Result<()> {
        let mut bytes = Vec::new();
        for frame in frames {
            match self.cable.framing {
                Framing::Big32 => bytes.extend(u32::try_from(frame.len()).unwrap().to_be_bytes()),
                Framing::Little16 => bytes.extend(u16::try_from(frame.len()).unwrap().to_le_bytes()),
                Framing::Message => {
                    self.raw(frame)?;
                    continue;
                }
            }
            bytes.extend(frame);
        }
        self.raw(&bytes)
    }

    /// The next frame for which `wanted` is true; others are passed over.
    pub fn receive(&self, patience: Duration, wanted: impl Fn(&[u8]) -> bool) -> Option<Vec<u8>> {
        let deadline = Instant::now() + patience;
        loop {
            let frame = self.frames.recv_timeout(deadline.saturating_duration_since(Instant::now())).ok()?;
            if wanted(&frame) {
                return Some(frame);
            }
        }
    }

    /// Whether the gateway still answers: to an ARP request and to an echo request that nobody sent before.
    pub fn is_alive(&mut self) -> bool {
        // After a flood an answer may be lost in a full batch, so that it is asked for again.
        (0..10).any(|_| self.answers(Duration::from_millis(500)))
    }

    fn answers(&mut self, patience: Duration) -> bool {
        self.asked += 1;
        let [high, low] = self.asked.to_be_bytes();
        // A hardware address of its own makes the answer one to this very question.
        let mac = [0x02, 0xaa, 0xaa, 0xaa, high, low];
        let number = self.asked;
        let echo = ether(GATEWAY_MAC, MAC, IPV4, &ipv4(ICMP, IP, GATEWAY, &echo_request(number)));
        let request = arp(1, mac, IP, [0; 6], GATEWAY);
        // The last request restores whom the gateway takes this guest for.
        let restore = arp(1, MAC, IP, [0; 6], GATEWAY);
        let resolved = |frame: &[u8]| frame.starts_with(&mac) && read_arp(frame).is_some();
        self.try_send_all([&request[..], &restore, &echo]).is_ok()
            && self.receive(patience, resolved).is_some()
            && self.receive(patience, |frame| is_echo_reply(frame, number)).is_some()
    }

    /// Hangs up.
    pub fn unplug(&self) {
        self.cable.shutdown();
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        self.unplug();
    }
}

/// The next frame; an error at the link's end.
fn read_frame(reader: &mut std::fs::File, framing: Framing) -> std::io::Result<Vec<u8>> {
    let mut length = [0; 4];
    let len = match framing {
        Framing::Big32 => {
            reader.read_exact(&mut length)?;
            u32::from_be_bytes(length) as usize
        }
        Framing::Little16 => {
            reader.read_exact(&mut length[..2])?;
            usize::from(u16::from_le_bytes([length[0], length[1]]))
        }
        Framing::Message => {
            let mut message = vec![0; 1 << 17];
            let len = reader.read(&mut message)?;
            message.truncate(len);
            return if len == 0 { Err(std::io::ErrorKind::UnexpectedEof.into()) } else { Ok(message) };
        }
    };
    let mut frame = vec![0; len];
    reader.read_exact(&mut frame)?;
    Ok(frame)
}

pub fn ether(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
    let header = Ethernet2Header { source: from, destination: to, ether_type: EtherType(kind) };
    [&header.to_bytes()[..], payload].concat()
}

/// A whole ARP frame, broadcast.
pub fn arp(operation: u16, mac: [u8; 6], ip: Ipv4Addr, target: [u8; 6], asked: Ipv4Addr) -> Vec<u8> {
    let message = ArpEthIpv4Packet {
        operation: ArpOperation(operation),
        sender_mac: mac,
        sender_ipv4: ip.octets(),
        target_mac: target,
        target_ipv4: asked.octets(),
    };
    ether(BROADCAST, mac, ARP, &message.to_bytes())
}

/// An IPv4 packet.
pub fn ipv4(protocol: u8, from: Ipv4Addr, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    fragment(protocol, from, to, 0, 0, false, payload)
}

/// One fragment of an IPv4 packet. `offset` counts 8-byte units.
pub fn fragment(
    protocol: u8,
    from: Ipv4Addr,
    to: Ipv4Addr,
    id: u16,
    offset: u16,
    more: bool,
    payload: &[u8],
) -> Vec<u8> {
    let mut header = Ipv4Header {
        // A test may ask for more than there can be.
        total_len: u16::try_from(Ipv4Header::MIN_LEN + payload.len()).unwrap_or(u16::MAX),
        identification: id,
        more_fragments: more,
        fragment_offset: IpFragOffset::try_new(offset).unwrap(),
        time_to_live: 64,
        protocol: IpNumber(protocol),
        source: from.octets(),
        destination: to.octets(),
        ..Ipv4Header::default()
    };
    header.header_checksum = header.calc_header_checksum();
    [&header.to_bytes()[..], payload].concat()
}

/// A UDP datagram without a checksum, which IPv4 allows.
pub fn udp(from: u16, to: u16, payload: &[u8]) -> Vec<u8> {
    let header = UdpHeader::without_ipv4_checksum(from, to, payload.len()).unwrap();
    [&header.to_bytes()[..], payload].concat()
}

/// A TCP segment. Its checksum is left out: frames of a local hypervisor come without.
pub fn tcp(from: u16, to: u16, sequence: u32, acknowledged: u32, flags: u8, payload: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(from, to, sequence, u16::MAX);
    header.acknowledgment_number = acknowledged;
    [header.syn, header.rst, header.ack] = [SYN, RST, ACK].map(|flag| flags & flag != 0);
    [&header.to_bytes()[..], payload].concat()
}

/// A SYN with `options`, as many bytes as make whole words.
pub fn syn(from: u16, to: u16, sequence: u32, options: &[u8]) -> Vec<u8> {
    let mut header = TcpHeader::new(from, to, sequence, u16::MAX);
    header.syn = true;
    header.set_options_raw(options).unwrap();
    header.to_bytes().to_vec()
}

/// An echo request; the answer is known by its number.
pub fn echo_request(number: u16) -> Vec<u8> {
    let echo = Icmpv4Type::EchoRequest(IcmpEchoHeader { id: ECHO_ID, seq: number });
    [&Icmpv4Header::with_checksum(echo, b"ping").to_bytes()[..], b"ping"].concat()
}

/// Whether `frame` answers [`echo_request`].
pub fn is_echo_reply(frame: &[u8], number: u16) -> bool {
    let expected = Icmpv4Type::EchoReply(IcmpEchoHeader { id: ECHO_ID, seq: number });
    matches!(read_transport(frame), Some(TransportSlice::Icmpv4(message)) if message.icmp_type() == expected)
}

/// The ARP message in `frame`.
pub fn read_arp(frame: &[u8]) -> Option<ArpEthIpv4Packet> {
    match SlicedPacket::from_ethernet(frame).ok()?.net? {
        NetSlice::Arp(message) => message.to_packet().try_eth_ipv4().ok(),
        _ => None,
    }
}

/// The header of the IPv4 packet in `frame`, whatever it holds.
pub fn read_ipv4(frame: &[u8]) -> Option<Ipv4HeaderSlice<'_>> {
    let frame = Ethernet2Slice::from_slice_without_fcs(frame).ok()?;
    let is_ipv4 = frame.ether_type() == EtherType::IPV4;
    is_ipv4.then(|| Ipv4HeaderSlice::from_slice(frame.payload_slice()).ok())?
}

/// The segment, datagram or message in `frame`, if that is sound and no fragment.
pub fn read_transport(frame: &[u8]) -> Option<TransportSlice<'_>> {
    SlicedPacket::from_ethernet(frame).ok()?.transport
}
