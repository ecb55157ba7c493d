//! A guest that follows a script: it makes and reads segments, keeps the numbers right, and acknowledges what
//! a Linux guest would. Owns: the guest's end of each connection. Read next: `scenario.rs`.

use std::net::Ipv4Addr;

use netstack::Mac;
use smoltcp::wire::{
    EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber,
    UdpPacket,
};

use crate::network::{Frames, GATEWAY_MAC, Network};

const GUEST_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const REMOTE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);
const ETHERNET: usize = 14;
const IPV4: usize = 20;
const TCP: usize = 20;
const UDP: usize = 8;
/// The guest's port of connection 0; connection 1 has the next.
const FIRST_PORT: u16 = 10_000;
/// What the guest offers: 1 MiB.
const SHIFT: u8 = 7;
const WINDOW: u16 = (1 << 20 >> SHIFT) as u16;
/// A segment for every so many is acknowledged (RFC 9293 3.8.6.3).
const ACK_EVERY: usize = 2;

pub(crate) const FIN: u8 = 1;
pub(crate) const SYN: u8 = 2;
pub(crate) const ACK: u8 = 16;

/// The guest's end of a connection.
#[derive(Clone, Copy, Debug)]
struct Connection {
    /// Of the next segment.
    seq: TcpSeqNumber,
    /// What is expected next.
    ack: TcpSeqNumber,
    /// Up to where data may be sent.
    edge: TcpSeqNumber,
    shift: u8,
    unacknowledged: usize,
}

/// The guest.
pub(crate) struct Guest {
    mtu: usize,
    connections: Vec<Connection>,
    /// Acknowledgements owed, as connection and number.
    owed: Vec<(usize, TcpSeqNumber)>,
    /// Whether data is acknowledged by segments of their own.
    pub(crate) acknowledges: bool,
    /// Frames and bytes of data that have reached the guest.
    pub(crate) frames: usize,
    pub(crate) received: usize,
}

impl Guest {
    pub(crate) fn new(mtu: u16) -> Self {
        Self {
            mtu: usize::from(mtu),
            connections: Vec::new(),
            owed: Vec::new(),
            acknowledges: true,
            frames: 0,
            received: 0,
        }
    }

    /// Bytes of data in a full segment.
    pub(crate) fn mss(&self) -> usize {
        self.mtu - IPV4 - TCP
    }

    /// Starts a connection with this number; what was there under it is forgotten.
    pub(crate) fn open(&mut self, frames: &mut Frames, number: usize) {
        let connection = Connection {
            seq: TcpSeqNumber(1000),
            ack: TcpSeqNumber(0),
            edge: TcpSeqNumber(0),
            shift: 0,
            unacknowledged: 0,
        };
        match self.connections.get_mut(number) {
            Some(old) => *old = connection,
            None => {
                assert_eq!(number, self.connections.len());
                self.connections.push(connection);
            }
        }
        self.send(frames, number, SYN, 0);
    }

    /// Sends one segment.
    pub(crate) fn send(&mut self, frames: &mut Frames, number: usize, flags: u8, data: usize) {
        let ack = self.connections[number].ack;
        self.send_acknowledging(frames, number, flags, data, ack);
    }

    /// Sends a segment of data as full as the offered window lets it be, if it lets any.
    pub(crate) fn send_data(&mut self, frames: &mut Frames, number: usize) {
        let Connection { seq, edge, .. } = self.connections[number];
        let room = if edge > seq { edge - seq } else { 0 };
        if room > 0 {
            self.send(frames, number, ACK, self.mss().min(room));
        }
    }

    /// Sends the acknowledgements that are owed.
    pub(crate) fn send_owed(&mut self, frames: &mut Frames) {
        let mut owed = std::mem::take(&mut self.owed);
        for (number, ack) in owed.drain(..) {
            self.send_acknowledging(frames, number, ACK, 0, ack);
        }
        self.owed = owed;
    }

    /// Reads what the network sent in its last turn.
    pub(crate) fn receive(&mut self, network: &Network) {
        self.owed.clear();
        for frame in network.output() {
            self.frames += 1;
            let packet = Ipv4Packet::new_unchecked(&frame[ETHERNET..]);
            match packet.next_header() {
                IpProtocol::Tcp => self.receive_segment(&TcpPacket::new_unchecked(packet.payload())),
                IpProtocol::Udp => {
                    self.received += UdpPacket::new_unchecked(packet.payload()).payload().len();
                }
                other => panic!("unexpected {other}"),
            }
        }
    }

    fn receive_segment(&mut self, segment: &TcpPacket<&[u8]>) {
        assert!(!segment.rst(), "connection reset");
        let number = usize::from(segment.dst_port() - FIRST_PORT);
        let connection = &mut self.connections[number];
        if segment.syn() {
            connection.shift = segment.options_summary().unwrap().window_scale.unwrap();
            connection.ack = segment.seq_number();
        }
        assert_eq!(segment.seq_number(), connection.ack, "connection {number}: lost or repeated");
        let shift = if segment.syn() { 0 } else { connection.shift };
        connection.edge = segment.ack_number() + (usize::from(segment.window_len()) << shift);
        connection.ack = segment.seq_number() + segment.segment_len();
        let data = segment.payload().len();
        self.received += data;
        if data > 0 && self.acknowledges {
            connection.unacknowledged += 1;
            if connection.unacknowledged == ACK_EVERY {
                connection.unacknowledged = 0;
                self.owed.push((number, connection.ack));
            }
        }
    }

    fn send_acknowledging(
        &mut self,
        frames: &mut Frames,
        number: usize,
        flags: u8,
        data: usize,
        ack: TcpSeqNumber,
    ) {
        let connection = &mut self.connections[number];
        let options: &[u8] = if flags & SYN == 0 {
            &[]
        } else {
            let [high, low] = ((self.mtu - IPV4 - TCP) as u16).to_be_bytes();
            &[2, 4, high, low, 4, 2, 1, 1, 1, 3, 3, SHIFT]
        };
        let header = TCP + options.len();
        let payload = ip_frame(frames, REMOTE, IpProtocol::Tcp, header + data);
        payload[TCP..header].copy_from_slice(options);
        let mut segment = TcpPacket::new_unchecked(payload);
        segment.set_src_port(FIRST_PORT + number as u16);
        segment.set_dst_port(80);
        segment.set_seq_number(connection.seq);
        segment.set_ack_number(ack);
        segment.set_header_len(header as u8);
        segment.set_syn(flags & SYN != 0);
        segment.set_fin(flags & FIN != 0);
        segment.set_ack(flags & ACK != 0);
        segment.set_psh(data > 0);
        segment.set_window_len(if flags & SYN != 0 { u16::MAX } else { WINDOW });
        connection.seq += data + usize::from(flags & (SYN | FIN) != 0);
    }
}

/// Adds a UDP datagram of `data` bytes, from the flow with this number.
pub(crate) fn send_datagram(frames: &mut Frames, number: usize, data: usize) {
    let payload = ip_frame(frames, REMOTE, IpProtocol::Udp, UDP + data);
    let len = payload.len() as u16;
    let mut datagram = UdpPacket::new_unchecked(payload);
    datagram.set_src_port(FIRST_PORT + number as u16);
    datagram.set_dst_port(9);
    datagram.set_len(len);
}

/// Adds one of the frames that the network has no use for; `number` chooses which.
pub(crate) fn send_useless(frames: &mut Frames, number: usize) {
    match number % 4 {
        // For a guest that is not there.
        0 => {
            send_datagram(frames, 0, 64);
            frames.last()[..6].copy_from_slice(&[0x5a, 0x94, 0xef, 1, 2, 3]);
        }
        // A neighbour solicitation's frame.
        1 => {
            ethernet(frames, EthernetAddress([0x33, 0x33, 0, 0, 0, 1]), EthernetProtocol::Ipv6, 86);
        }
        // An address that may not be on a wire.
        2 => {
            ip_frame(frames, Ipv4Addr::new(127, 0, 0, 1), IpProtocol::Tcp, TCP);
        }
        // A multicast announcement.
        _ => {
            ip_frame(frames, Ipv4Addr::new(224, 0, 0, 251), IpProtocol::Udp, UDP + 200);
        }
    }
}

fn ip_frame(frames: &mut Frames, to: Ipv4Addr, protocol: IpProtocol, len: usize) -> &mut [u8] {
    let payload =
        ethernet(frames, EthernetAddress(GATEWAY_MAC.0), EthernetProtocol::Ipv4, ETHERNET + IPV4 + len);
    let mut packet = Ipv4Packet::new_unchecked(&mut *payload);
    packet.set_version(4);
    packet.set_header_len(IPV4 as u8);
    packet.set_total_len((IPV4 + len) as u16);
    packet.set_hop_limit(64);
    packet.set_next_header(protocol);
    packet.set_src_addr(GUEST);
    packet.set_dst_addr(to);
    &mut payload[IPV4..]
}

/// Adds a frame of `len` bytes and lends what follows its header.
fn ethernet(frames: &mut Frames, to: EthernetAddress, protocol: EthernetProtocol, len: usize) -> &mut [u8] {
    let bytes = frames.add(len);
    let mut frame = EthernetFrame::new_unchecked(&mut *bytes);
    frame.set_src_addr(EthernetAddress(GUEST_MAC.0));
    frame.set_dst_addr(to);
    frame.set_ethertype(protocol);
    &mut bytes[ETHERNET..]
}
