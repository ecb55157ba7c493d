//! The Internet checksum (RFC 1071) of long packets. Owns: nothing. Read next: `tcp/device.rs` and
//! `udp/mod.rs`, which send them.
//!
//! smoltcp's own adds 16 bits at a time. Each byte to a guest is summed once, and that is most of what this
//! crate does for it.

use core::net::Ipv4Addr;

use smoltcp::wire::IpProtocol;

/// The checksum field of a TCP segment or UDP datagram whose own checksum field is zero.
pub(crate) fn transport(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpProtocol, packet: &[u8]) -> u16 {
    let addresses =
        u64::from(u32::from_ne_bytes(source.octets())) + u64::from(u32::from_ne_bytes(destination.octets()));
    let len = u32::try_from(packet.len()).unwrap_or(u32::MAX).to_be();
    let rest = u64::from(len) + u64::from(u16::from(u8::from(protocol)).to_be());
    !u16::from_be(fold(addresses + rest + sum(packet)))
}

/// The ones' complement sum in the machine's byte order, which RFC 1071 section 2 allows for, unfolded.
fn sum(bytes: &[u8]) -> u64 {
    let mut lanes = [0_u64; 8];
    let (chunks, rest) = bytes.as_chunks::<32>();
    for chunk in chunks {
        for (lane, word) in lanes.iter_mut().zip(chunk.as_chunks::<4>().0) {
            *lane += u64::from(u32::from_ne_bytes(*word));
        }
    }
    let (pairs, odd) = rest.as_chunks::<2>();
    let pairs = pairs.iter().map(|pair| u64::from(u16::from_ne_bytes(*pair)));
    let odd = odd.iter().map(|byte| u64::from(u16::from_ne_bytes([*byte, 0])));
    lanes.into_iter().chain(pairs).chain(odd).sum()
}

fn fold(mut sum: u64) -> u16 {
    while let Some(carry) = core::num::NonZero::new(sum >> 16) {
        sum = (sum & 0xffff) + carry.get();
    }
    sum as u16
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use smoltcp::wire::{IpAddress, TcpPacket};

    use super::*;

    proptest! {
        #[test]
        fn is_what_smoltcp_computes(source: [u8; 4], destination: [u8; 4], bytes in prop::collection::vec(any::<u8>(), 20..200)) {
            check(source.into(), destination.into(), bytes);
        }
    }

    #[test]
    fn long_packets_carry_often() {
        for len in [1459, 65_495] {
            check([255; 4].into(), [255; 4].into(), vec![0xff; len]);
        }
    }

    fn check(source: Ipv4Addr, destination: Ipv4Addr, mut bytes: Vec<u8>) {
        let mut packet = TcpPacket::new_unchecked(&mut bytes);
        packet.fill_checksum(&IpAddress::from(source), &IpAddress::from(destination));
        let expected = packet.checksum();
        packet.set_checksum(0);
        assert_eq!(transport(source, destination, IpProtocol::Tcp, &bytes), expected);
    }
}
