//! Packets and the sizes that guests take. A guest may be told of a larger MTU than it then uses. So it is
//! sent nothing larger than it has shown to take: within a TCP connection by its MSS (`tcp/window.rs`), else
//! by packets of its own.
//!
//! Owns: what a frame shows about its sender, and what becomes of a frame between guests that is too long for
//! its receiver. May not: remember anything (`switch.rs` does). Read next: `ipv4.rs`, which cuts packets.

use smoltcp::wire::{Icmpv4Message, IpProtocol, Ipv4Packet};

use crate::ether::{self, EtherType};
use crate::ipv4::{self, Route};
use crate::{DropReason, FrameSink, NetworkConfig, PortId, icmp, nat};

/// How many bytes of IP packet the sender of this frame takes: an interface takes what it sends. 0 if the
/// frame says nothing of it. TCP may come in segments that were never cut, and other types may have had a
/// header added.
pub(crate) fn shown(header: &ether::Header, payload: &[u8]) -> usize {
    match protocol(header, payload) {
        None | Some(IpProtocol::Tcp) => 0,
        Some(_) => payload.len(),
    }
}

/// Gives a frame between guests to port `to`, where IP packets of `mtu` bytes are taken. `back` is the way to
/// the sender.
///
/// A longer frame of TCP goes whole: its sender knows the receiver's MSS. An IPv4 packet that may be cut goes
/// in fragments. Nothing else goes, and the sender of an IPv4 packet hears so (RFC 1191), from the gateway's
/// address, since the switch has none.
pub(crate) fn forward(
    config: &NetworkConfig,
    sink: &mut impl FrameSink,
    back: Route,
    to: PortId,
    mtu: u16,
    frame: &[u8],
) -> Result<(), DropReason> {
    let (header, payload) = ether::parse(frame).ok_or(DropReason::ShortFrame)?;
    if !sink.has_room_for_guests(to, frame.len()) {
        return Err(DropReason::PortFull);
    }
    let enforced = config.assumed_mtu < config.mtu;
    if !enforced || payload.len() <= usize::from(mtu) || protocol(&header, payload) == Some(IpProtocol::Tcp) {
        sink.frame(to, frame.len()).ok_or(DropReason::PortFull)?.copy_from_slice(frame);
        return Ok(());
    }
    if header.ether_type != Some(EtherType::Ipv4) {
        return Err(DropReason::TooLong);
    }
    let packet = Ipv4Packet::new_checked(payload).map_err(|_| DropReason::Ipv4)?;
    if !packet.dont_frag() || packet.total_len() <= mtu {
        return ipv4::forward(sink, Route { port: to, from: header.from, to: header.to }, &packet, mtu);
    }
    if !header.to.is_group() && may_be_reported(&packet) {
        let (from, to) = (config.gateway, packet.src_addr());
        icmp::send_too_long(sink, back, from, to, mtu, payload, config.assumed_mtu)?;
    }
    Err(DropReason::TooLong)
}

/// Whether an ICMP error may be about `packet` (RFC 1122 3.2.2).
pub(crate) fn may_be_reported(packet: &Ipv4Packet<&[u8]>) -> bool {
    let is_error = packet.next_header() == IpProtocol::Icmp
        && packet.payload().first().is_none_or(|kind| {
            !matches!(Icmpv4Message::from(*kind), Icmpv4Message::EchoRequest | Icmpv4Message::EchoReply)
        });
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    let is_one = |ip: core::net::Ipv4Addr| !nat::is_martian(ip) && !ip.is_multicast() && !ip.is_broadcast();
    packet.frag_offset() == 0 && !is_error && is_one(from) && is_one(to)
}

/// The protocol that an IP packet says it carries.
fn protocol(header: &ether::Header, payload: &[u8]) -> Option<IpProtocol> {
    let at = match header.ether_type? {
        EtherType::Ipv4 => 9,
        EtherType::Ipv6 => 6,
        EtherType::Arp => return None,
    };
    payload.get(at).map(|protocol| IpProtocol::from(*protocol))
}

#[cfg(test)]
mod tests {
    use core::net::Ipv4Addr;

    use proptest::prelude::*;

    use super::*;
    use crate::ipv4::Reassembly;
    use crate::{DropCounts, Instant, Mac, Subnet};

    const TO: PortId = PortId(1);
    const BACK: Route = Route { port: PortId(0), from: Mac([2; 6]), to: Mac([4; 6]) };

    #[derive(Default)]
    struct Sink(Vec<(PortId, Vec<u8>)>);

    impl FrameSink for Sink {
        fn has_room(&self, _: PortId, _: usize) -> bool {
            true
        }

        fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
            self.0.push((port, vec![0xa5; len]));
            self.0.last_mut().map(|(_, frame)| frame.as_mut_slice())
        }
    }

    fn config() -> NetworkConfig {
        let gateway = Ipv4Addr::new(192, 168, 127, 1);
        NetworkConfig { mtu: 65_520, ..NetworkConfig::new(Subnet::new(gateway, 24), gateway, BACK.from) }
    }

    fn frame(ether_type: [u8; 2], payload: &[u8]) -> Vec<u8> {
        [&[6; 6][..], &BACK.to.0, &ether_type, payload].concat()
    }

    proptest! {
        #[test]
        fn fragments_make_the_packet_again(
            words in 5_u8..=15,
            options in prop::collection::vec(any::<u8>(), 40),
            payload in prop::collection::vec(any::<u8>(), 0..5000),
            padding in 0_usize..20,
            mtu in 68_u16..2000,
        ) {
            let header_len = usize::from(words) * 4;
            let mut bytes = vec![0; header_len];
            bytes[20..].copy_from_slice(&options[..header_len - 20]);
            bytes.extend_from_slice(&payload);
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
            packet.set_version(4);
            packet.set_header_len(header_len as u8);
            packet.set_total_len((header_len + payload.len()) as u16);
            packet.set_next_header(IpProtocol::Udp);
            bytes.extend(vec![7; padding]);
            let mut sink = Sink::default();
            let whole = frame([8, 0], &bytes);
            prop_assert_eq!(forward(&config(), &mut sink, BACK, TO, mtu, &whole), Ok(()));
            let (mut table, mut done) = (Reassembly::new(1), None);
            for (port, frame) in &sink.0 {
                prop_assert!(*port == TO && frame.len() <= 14 + usize::from(mtu));
                prop_assert_eq!(&frame[..14], &whole[..14]);
                let packet = Ipv4Packet::new_checked(&frame[14..]).unwrap();
                prop_assert!(sink.0.len() == 1 || packet.verify_checksum());
                prop_assert!(done.is_none());
                done = match sink.0.len() {
                    1 => Some(packet.payload().to_vec()),
                    _ => {
                        let whole = table.add(TO, &packet, Instant::ZERO, &mut DropCounts::default());
                        whole.unwrap().map(|whole| whole[20..].to_vec())
                    }
                };
            }
            prop_assert_eq!(done, Some(payload));
        }

        #[test]
        fn nothing_longer_arrives_but_tcp(
            ether_type in prop::sample::select(vec![[8, 0], [8, 6], [0x86, 0xdd], [0x88, 0xb5]]),
            first in prop::collection::vec(any::<u8>(), 0..80),
            length in 0_usize..70_000,
            is_plain in any::<bool>(),
            mtu in 68_u16..2000,
        ) {
            let mut payload = first;
            payload.resize(length, 1);
            if is_plain && length > 20 {
                payload[0] = 0x45;
                payload[2..4].copy_from_slice(&(length as u16).to_be_bytes());
            }
            let whole = frame(ether_type, &payload);
            let mut sink = Sink::default();
            let result = forward(&config(), &mut sink, BACK, TO, mtu, &whole);
            let (header, payload) = ether::parse(&whole).unwrap();
            let is_tcp = protocol(&header, payload) == Some(IpProtocol::Tcp);
            for (port, frame) in &sink.0 {
                let limit = if *port == TO { mtu } else { 1500 };
                prop_assert!(frame.len() <= 14 + usize::from(limit) || (is_tcp && frame == &whole));
            }
            let arrived = sink.0.iter().any(|(port, _)| *port == TO);
            prop_assert_eq!(arrived, result.is_ok());
        }
    }
}
