//! ICMP (RFC 792): echo to the gateway and beyond; messages to guests about what they sent, and from them
//! about what was sent to them.
//!
//! Owns: how messages are written and read. Read next: `lib.rs`, which sends and asks; `tcp/report.rs`, what
//! a report changes.

use core::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use smoltcp::wire::{
    Icmpv4DstUnreachable, Icmpv4Message, Icmpv4Packet, Icmpv4TimeExceeded, IpProtocol, Ipv4Packet,
    TcpSeqNumber, UdpPacket,
};

use crate::ipv4::{self, Header, Route};
use crate::{DropReason, FrameSink, PortId};

/// Bytes of an ICMP header.
const HEADER_LEN: usize = 8;

/// Writes the reply to an echo request into `reply`. The checksum is verified, since ICMP is never offloaded
/// as TCP and UDP are.
pub(crate) fn echo_reply(request: &[u8], reply: &mut Vec<u8>) -> Result<(), DropReason> {
    let packet = Icmpv4Packet::new_checked(request).map_err(|_| DropReason::Icmp)?;
    if packet.msg_type() != Icmpv4Message::EchoRequest || !packet.verify_checksum() {
        return Err(DropReason::Icmp);
    }
    reply.clear();
    reply.extend_from_slice(request);
    let mut packet = Icmpv4Packet::new_unchecked(reply);
    packet.set_msg_type(Icmpv4Message::EchoReply);
    packet.set_msg_code(0);
    packet.fill_checksum();
    Ok(())
}

/// An echo request for an address outside: what it takes to answer it later.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Echo {
    route: Route,
    /// Whole, with its IP header.
    packet: Vec<u8>,
}

impl Echo {
    /// The checksum is verified, as in [`echo_reply`].
    pub(crate) fn new(route: Route, packet: &Ipv4Packet<&[u8]>) -> Result<Self, DropReason> {
        let message = Icmpv4Packet::new_checked(packet.payload()).map_err(|_| DropReason::Icmp)?;
        if message.msg_type() != Icmpv4Message::EchoRequest || !message.verify_checksum() {
            return Err(DropReason::Icmp);
        }
        let len = usize::from(packet.total_len());
        Ok(Self { route, packet: packet.clone().into_inner().get(..len).ok_or(DropReason::Icmp)?.to_vec() })
    }

    /// What it takes to answer, without the data of the request.
    pub fn head(&self) -> Self {
        let end = self.packet.len() - self.message().len().saturating_sub(HEADER_LEN);
        Self { route: self.route, packet: self.packet.get(..end).unwrap_or_default().to_vec() }
    }

    /// The ICMP message as the guest sent it.
    pub fn message(&self) -> &[u8] {
        let header = Ipv4Packet::new_unchecked(self.packet.as_slice()).header_len();
        self.packet.get(usize::from(header)..).unwrap_or_default()
    }

    /// The port of the guest that asks.
    pub fn port(&self) -> PortId {
        self.route.port
    }

    /// The guest that asks.
    pub fn guest(&self) -> Ipv4Addr {
        self.ends().0
    }

    /// The identifier, which tells the guest's askers apart (RFC 792).
    pub fn ident(&self) -> u16 {
        Icmpv4Packet::new_unchecked(self.message()).echo_ident()
    }

    pub(crate) fn route(&self) -> Route {
        self.route
    }

    /// The guest, and whom it asked.
    pub(crate) fn ends(&self) -> (Ipv4Addr, Ipv4Addr) {
        let packet = Ipv4Packet::new_unchecked(self.packet.as_slice());
        (packet.src_addr(), packet.dst_addr())
    }

    pub(crate) fn packet(&self) -> &[u8] {
        &self.packet
    }

    /// The reply that the guest gets, in `reply`, where `data` came back under this number.
    pub(crate) fn reply(&self, number: u16, data: &[u8], reply: &mut Vec<u8>) {
        reply.clear();
        reply.extend_from_slice(self.message().get(..HEADER_LEN).unwrap_or_default());
        reply.extend_from_slice(data);
        let mut packet = Icmpv4Packet::new_unchecked(reply);
        packet.set_msg_type(Icmpv4Message::EchoReply);
        packet.set_msg_code(0);
        packet.set_echo_seq_no(number);
        packet.fill_checksum();
    }
}

/// What a guest, or somebody behind it, says about a packet that was sent to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Report {
    pub(crate) fault: Fault,
    pub(crate) protocol: IpProtocol,
    /// Of the packet: where it came from and where it was to go, with ports.
    pub(crate) remote: SocketAddr,
    pub(crate) guest: SocketAddr,
    /// Its bytes in all, header included.
    pub(crate) len: u16,
    /// Its sequence number, if it was TCP.
    pub(crate) seq: TcpSeqNumber,
}

/// Why a packet did not arrive.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Fault {
    /// The next hop takes so many bytes, and the packet may not be cut. 0 from a router that does not say
    /// (RFC 1191 4).
    TooLong(u16),
    /// Nobody has that port, or that protocol.
    Refused,
    /// There is no way, or none that is allowed.
    Unreachable,
}

/// Whether this is an ICMP message about a packet of the receiver's (RFC 1122 3.2.2).
pub(crate) fn is_report(message: &[u8]) -> bool {
    let kind = message.first().map(|kind| Icmpv4Message::from(*kind));
    matches!(kind, Some(Icmpv4Message::DstUnreachable | Icmpv4Message::TimeExceeded))
}

impl Report {
    /// A message to `to` for which [`is_report`] holds. The checksum is verified, as in [`echo_reply`].
    pub(crate) fn parse(message: &[u8], to: Ipv4Addr) -> Result<Self, DropReason> {
        let message = Icmpv4Packet::new_checked(message).map_err(|_| DropReason::Icmp)?;
        let fault = match (message.msg_type(), message.msg_code()) {
            (Icmpv4Message::DstUnreachable, 2 | 3) => Fault::Refused,
            (Icmpv4Message::DstUnreachable, 4) => {
                let next_hop = message.clone().into_inner().get(6..HEADER_LEN);
                let next_hop = next_hop.and_then(|field| field.try_into().ok()).map(u16::from_be_bytes);
                Fault::TooLong(next_hop.unwrap_or(0))
            }
            (Icmpv4Message::DstUnreachable, _) | (Icmpv4Message::TimeExceeded, 0) => Fault::Unreachable,
            _ => return Err(DropReason::Icmp),
        };
        // What is quoted is a header and at least eight bytes, mostly not the whole packet (RFC 792).
        let quoted = message.data();
        let packet = Ipv4Packet::new_unchecked(quoted);
        if quoted.len() < ipv4::HEADER_LEN || packet.version() != 4 || !message.verify_checksum() {
            return Err(DropReason::Icmp);
        }
        let start = quoted.get(usize::from(packet.header_len())..).and_then(<[u8]>::first_chunk::<8>);
        let &[a, b, c, d, seq @ ..] = start.ok_or(DropReason::Icmp)?;
        if packet.frag_offset() != 0 || packet.src_addr() != to {
            return Err(DropReason::Icmp);
        }
        Ok(Self {
            fault,
            protocol: packet.next_header(),
            remote: SocketAddr::new(packet.src_addr().into(), u16::from_be_bytes([a, b])),
            guest: SocketAddr::new(packet.dst_addr().into(), u16::from_be_bytes([c, d])),
            len: packet.total_len(),
            seq: TcpSeqNumber(i32::from_be_bytes(seq)),
        })
    }
}

/// Tells the guest, from `from`, that what it sent cannot be delivered. `original` is the IP packet. Its
/// header and the eight bytes behind go back (RFC 792).
pub(crate) fn send_unreachable(
    sink: &mut impl FrameSink,
    route: Route,
    from: Ipv4Addr,
    to: Ipv4Addr,
    reason: Icmpv4DstUnreachable,
    original: &[u8],
    mtu: u16,
) -> Result<(), DropReason> {
    let header = Header { source: from, destination: to, protocol: IpProtocol::Icmp };
    let kind = (Icmpv4Message::DstUnreachable, reason.into());
    send_error(sink, route, header, kind, 0, original, mtu)
}

/// Tells the guest that what it sent was to go further than it may, like [`send_unreachable`].
pub(crate) fn send_time_exceeded(
    sink: &mut impl FrameSink,
    route: Route,
    from: Ipv4Addr,
    to: Ipv4Addr,
    original: &[u8],
    mtu: u16,
) -> Result<(), DropReason> {
    let header = Header { source: from, destination: to, protocol: IpProtocol::Icmp };
    let kind = (Icmpv4Message::TimeExceeded, Icmpv4TimeExceeded::TtlExpired.into());
    send_error(sink, route, header, kind, 0, original, mtu)
}

/// Tells the guest that its packet is longer than the `next_hop` bytes that the receiver takes, and may not
/// be cut (RFC 1191). Otherwise as [`send_unreachable`].
pub(crate) fn send_too_long(
    sink: &mut impl FrameSink,
    route: Route,
    from: Ipv4Addr,
    to: Ipv4Addr,
    next_hop: u16,
    original: &[u8],
    mtu: u16,
) -> Result<(), DropReason> {
    let header = Header { source: from, destination: to, protocol: IpProtocol::Icmp };
    let kind = (Icmpv4Message::DstUnreachable, Icmpv4DstUnreachable::FragRequired.into());
    send_error(sink, route, header, kind, next_hop, original, mtu)
}

fn send_error(
    sink: &mut impl FrameSink,
    route: Route,
    header: Header,
    (kind, code): (Icmpv4Message, u8),
    next_hop_mtu: u16,
    original: &[u8],
    mtu: u16,
) -> Result<(), DropReason> {
    let header_len = Ipv4Packet::new_checked(original).map_err(|_| DropReason::Ipv4)?.header_len();
    let quoted = original.get(..usize::from(header_len) + 8).unwrap_or(original);
    let mut message = [0; HEADER_LEN + 60 + 8];
    let message = message.get_mut(..HEADER_LEN + quoted.len()).ok_or(DropReason::Icmp)?;
    if let Some(field) = message.get_mut(6..HEADER_LEN) {
        field.copy_from_slice(&next_hop_mtu.to_be_bytes());
    }
    let mut packet = Icmpv4Packet::new_unchecked(&mut *message);
    packet.set_msg_type(kind);
    packet.set_msg_code(code);
    packet.data_mut().copy_from_slice(quoted);
    packet.fill_checksum();
    ipv4::send(sink, route, header, message, 0, mtu)
}

/// The first bytes of a datagram from `guest` to `remote`, as [`send_unreachable`] quotes them. The datagram
/// itself is not kept.
pub(crate) fn quoted_datagram(guest: SocketAddrV4, remote: SocketAddrV4) -> [u8; ipv4::HEADER_LEN + 8] {
    let mut bytes = [0; ipv4::HEADER_LEN + 8];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes[..]);
    packet.set_version(4);
    packet.set_header_len(ipv4::HEADER_LEN as u8);
    packet.set_total_len((ipv4::HEADER_LEN + 8) as u16);
    packet.set_hop_limit(ipv4::DEFAULT_TTL);
    packet.set_next_header(IpProtocol::Udp);
    packet.set_src_addr(*guest.ip());
    packet.set_dst_addr(*remote.ip());
    packet.fill_checksum();
    let mut datagram = UdpPacket::new_unchecked(packet.payload_mut());
    datagram.set_src_port(guest.port());
    datagram.set_dst_port(remote.port());
    datagram.set_len(8);
    bytes
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn echo() {
        let mut request = vec![8, 0, 0, 0, 1, 2, 0, 9, b'x', b'y'];
        Icmpv4Packet::new_unchecked(&mut request).fill_checksum();
        let mut reply = Vec::new();
        echo_reply(&request, &mut reply).unwrap();
        let packet = Icmpv4Packet::new_checked(&reply).unwrap();
        assert_eq!(
            (packet.msg_type(), packet.echo_ident(), packet.echo_seq_no()),
            (Icmpv4Message::EchoReply, 258, 9)
        );
        assert!(packet.verify_checksum());
        assert_eq!(packet.data(), b"xy");
        request[9] ^= 1;
        assert_eq!(echo_reply(&request, &mut reply), Err(DropReason::Icmp));
        assert_eq!(echo_reply(&request[..7], &mut reply), Err(DropReason::Icmp));
    }
}
