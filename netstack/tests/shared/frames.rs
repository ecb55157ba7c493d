//! Frames made by hand, and their parts.
#![allow(dead_code, reason = "each test uses some of it")]

use std::net::{Ipv4Addr, SocketAddrV4};

use netstack::Mac;
use smoltcp::wire::{
    ArpHardware, ArpOperation, ArpPacket, EthernetAddress, EthernetFrame, EthernetProtocol, Icmpv4Message,
    Icmpv4Packet, IpProtocol, Ipv4Packet, UdpPacket,
};

pub(crate) fn ethernet(from: Mac, to: Mac, protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_src_addr(EthernetAddress(from.0));
    frame.set_dst_addr(EthernetAddress(to.0));
    frame.set_ethertype(protocol);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

pub(crate) fn ipv4(from: Ipv4Addr, to: Ipv4Addr, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
    fragment(from, to, protocol, 0, 0..payload.len(), payload)
}

/// The part `range` of `payload`.
pub(crate) fn fragment(
    from: Ipv4Addr,
    to: Ipv4Addr,
    protocol: IpProtocol,
    ident: u16,
    range: std::ops::Range<usize>,
    payload: &[u8],
) -> Vec<u8> {
    let mut bytes = vec![0; 20 + range.len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    packet.set_version(4);
    packet.set_header_len(20);
    packet.set_total_len(20 + range.len() as u16);
    packet.set_ident(ident);
    packet.set_hop_limit(64);
    packet.set_next_header(protocol);
    packet.set_src_addr(from);
    packet.set_dst_addr(to);
    packet.set_frag_offset(range.start as u16);
    packet.set_more_frags(range.end < payload.len());
    packet.payload_mut().copy_from_slice(&payload[range]);
    packet.fill_checksum();
    bytes
}

pub(crate) fn udp(from: SocketAddrV4, to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 + payload.len()];
    let mut datagram = UdpPacket::new_unchecked(&mut bytes);
    datagram.set_src_port(from.port());
    datagram.set_dst_port(to.port());
    datagram.set_len(8 + payload.len() as u16);
    datagram.payload_mut().copy_from_slice(payload);
    datagram.fill_checksum(&(*from.ip()).into(), &(*to.ip()).into());
    bytes
}

pub(crate) fn echo_request(ident: u16, sequence: u16, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 8 + payload.len()];
    let mut message = Icmpv4Packet::new_unchecked(&mut bytes);
    message.set_msg_type(Icmpv4Message::EchoRequest);
    message.set_msg_code(0);
    message.set_echo_ident(ident);
    message.set_echo_seq_no(sequence);
    message.data_mut().copy_from_slice(payload);
    message.fill_checksum();
    bytes
}

pub(crate) fn arp(operation: ArpOperation, sender: (Ipv4Addr, Mac), target: (Ipv4Addr, Mac)) -> Vec<u8> {
    let mut bytes = vec![0; 28];
    let mut packet = ArpPacket::new_unchecked(&mut bytes);
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_protocol_type(EthernetProtocol::Ipv4);
    packet.set_hardware_len(6);
    packet.set_protocol_len(4);
    packet.set_operation(operation);
    packet.set_source_hardware_addr(&sender.1.0);
    packet.set_source_protocol_addr(&sender.0.octets());
    packet.set_target_hardware_addr(&target.1.0);
    packet.set_target_protocol_addr(&target.0.octets());
    bytes
}

/// The IPv4 packet in a frame, if that is what it holds.
pub(crate) fn packet(frame: &[u8]) -> Option<Ipv4Packet<&[u8]>> {
    let ethernet = EthernetFrame::new_checked(frame).ok()?;
    if ethernet.ethertype() != EthernetProtocol::Ipv4 {
        return None;
    }
    Ipv4Packet::new_checked(&frame[14..]).ok()
}

/// The payload of the frames that hold packets of `protocol`.
pub(crate) fn payloads(frames: &[Vec<u8>], protocol: IpProtocol) -> Vec<Vec<u8>> {
    let packets = frames.iter().filter_map(|frame| packet(frame));
    packets
        .filter(|packet| packet.next_header() == protocol)
        .map(|packet| packet.payload().to_vec())
        .collect()
}
