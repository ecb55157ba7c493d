//! Looks at every frame that the stack sends. Owns: what must hold of each, whatever the test is about.

use std::collections::BTreeMap;
use std::hash::{DefaultHasher, Hasher as _};
use std::net::SocketAddrV4;

use netstack::{Mac, PortId};
use smoltcp::wire::{
    EthernetFrame, EthernetProtocol, IpAddress, IpProtocol, Ipv4Packet, TcpPacket, TcpSeqNumber, UdpPacket,
};

use crate::network::GATEWAY_MAC;

/// A guest's socket, and the one that it talks to.
pub(crate) type Pair = (SocketAddrV4, SocketAddrV4);

/// What two ends of a connection have promised each other.
#[derive(Clone, Copy, Debug, Default)]
struct Windows {
    guest_scale: Option<u8>,
    stack_scale: Option<u8>,
    /// The sequence number up to which the guest may send, and what was acknowledged to it.
    edge: Option<(TcpSeqNumber, TcpSeqNumber)>,
    /// The sequence number up to which the stack may send, and what was acknowledged to it.
    guest_edge: Option<(TcpSeqNumber, TcpSeqNumber)>,
}

#[derive(Debug)]
pub(crate) struct Checker {
    mtu: usize,
    connections: BTreeMap<Pair, Windows>,
    hasher: DefaultHasher,
    pub(crate) frames: u64,
    pub(crate) resets: u64,
    /// How often a window's edge moved back.
    pub(crate) retractions: u64,
}

impl Checker {
    pub(crate) fn new(mtu: u16) -> Self {
        Self {
            mtu: usize::from(mtu),
            connections: BTreeMap::new(),
            hasher: DefaultHasher::new(),
            frames: 0,
            resets: 0,
            retractions: 0,
        }
    }

    /// Stands for everything that was sent.
    pub(crate) fn digest(&self) -> u64 {
        self.hasher.finish()
    }

    /// How much the guest may send without an answer, for each connection.
    pub(crate) fn offered(&self) -> impl Iterator<Item = (Pair, usize)> + '_ {
        self.connections.iter().filter_map(|(pair, windows)| {
            let (edge, ack) = windows.edge?;
            Some((*pair, if edge > ack { edge - ack } else { 0 }))
        })
    }

    /// A frame that reached the stack.
    pub(crate) fn see_from_guest(&mut self, frame: &[u8]) {
        let Some((ip, payload)) = ipv4(frame) else { return };
        let Ok(segment) = TcpPacket::new_checked(payload) else { return };
        let pair = (
            SocketAddrV4::new(ip.src_addr(), segment.src_port()),
            SocketAddrV4::new(ip.dst_addr(), segment.dst_port()),
        );
        let windows = self.connections.entry(pair).or_default();
        if segment.syn() {
            windows.guest_scale = scale(&segment);
            windows.guest_edge = None;
        }
        if segment.ack() {
            let scaled = !segment.syn() && windows.stack_scale.is_some();
            let shift = if scaled { windows.guest_scale.unwrap_or(0) } else { 0 };
            let ack = segment.ack_number();
            let edge = ack + (usize::from(segment.window_len()) << shift);
            let (before, acked) = windows.guest_edge.unwrap_or((edge, ack));
            windows.guest_edge = Some((before.max(edge), acked.max(ack)));
        }
        if segment.rst() {
            windows.edge = None;
        }
    }

    /// A frame that the stack sends.
    pub(crate) fn see_from_stack(&mut self, port: PortId, frame: &[u8]) {
        self.frames += 1;
        self.hasher.write_u32(port.0);
        self.hasher.write(frame);
        let ethernet = EthernetFrame::new_checked(frame).expect("a whole Ethernet header");
        if Mac(ethernet.src_addr().0) != GATEWAY_MAC {
            return; // switched
        }
        assert!(frame.len() <= 14 + self.mtu, "a frame of {} bytes", frame.len());
        let Some((ip, payload)) = ipv4(frame) else { return };
        assert!(ip.verify_checksum(), "IPv4 checksum of {ip}");
        assert_eq!(frame.len(), 14 + usize::from(ip.total_len()), "{ip}");
        if ip.more_frags() || ip.frag_offset() != 0 {
            return;
        }
        let (from, to) = (IpAddress::Ipv4(ip.src_addr()), IpAddress::Ipv4(ip.dst_addr()));
        match ip.next_header() {
            IpProtocol::Udp => {
                let datagram = UdpPacket::new_checked(payload).expect("a whole datagram");
                assert!(datagram.verify_checksum(&from, &to), "UDP checksum");
            }
            IpProtocol::Tcp => {
                let segment = TcpPacket::new_checked(payload).expect("a whole segment");
                assert!(segment.verify_checksum(&from, &to), "TCP checksum of {segment}");
                let pair = (
                    SocketAddrV4::new(ip.dst_addr(), segment.dst_port()),
                    SocketAddrV4::new(ip.src_addr(), segment.src_port()),
                );
                self.segment(pair, &segment);
            }
            _ => {}
        }
    }

    fn segment(&mut self, pair: Pair, segment: &TcpPacket<&[u8]>) {
        if segment.rst() {
            self.resets += 1;
            self.connections.remove(&pair);
            return;
        }
        let windows = self.connections.entry(pair).or_default();
        if segment.syn() {
            windows.stack_scale = scale(segment);
            windows.edge = None;
        }
        if segment.ack() {
            let scaled = !segment.syn() && windows.guest_scale.is_some();
            let shift = if scaled { windows.stack_scale.unwrap_or(0) } else { 0 };
            let ack = segment.ack_number();
            let edge = ack + (usize::from(segment.window_len()) << shift);
            if let Some((before, ack_before)) = windows.edge {
                self.retractions += u64::from(edge < before);
                // RFC 7323 2.4 lets the edge move back by what the scaled field cannot say.
                assert!(edge + (1 << shift) > before, "{pair:?}: the window shrinks by {}", before - edge);
                assert!(ack >= ack_before, "{pair:?}: acknowledges less");
            }
            windows.edge = Some((edge, ack));
        }
        if let Some((edge, acked)) = windows.guest_edge.filter(|_| !segment.payload().is_empty()) {
            let end = segment.seq_number() + segment.payload().len();
            // A probe of a closed window is one byte past it, and a scaled field may leave as much unsaid.
            // smoltcp repeats a whole first segment though a part of it would do.
            let first = segment.seq_number() <= acked;
            let unsaid = 1 << windows.guest_scale.unwrap_or(0);
            assert!(first || end <= edge + unsaid, "{pair:?}: {} bytes past the guest's window", end - edge);
        }
    }
}

fn ipv4(frame: &[u8]) -> Option<(Ipv4Packet<&[u8]>, &[u8])> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    let packet = Ipv4Packet::new_checked(frame.get(14..)?).ok()?;
    let payload = frame.get(14 + usize::from(packet.header_len())..14 + usize::from(packet.total_len()))?;
    Some((packet, payload))
}

fn scale(segment: &TcpPacket<&[u8]>) -> Option<u8> {
    segment.options_summary().ok()?.window_scale
}
