//! Ethernet II: hardware addresses and the 14-byte header.
//! Owns: nothing. Read next: `switch.rs`, which decides where a frame goes.

use core::{fmt, str::FromStr};

/// Bytes of an Ethernet II header; no preamble, no FCS, no VLAN tag.
pub const HEADER_LEN: usize = 14;

/// A hardware address; its text form is `5a:94:ef:e4:0c:ee`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Mac(pub [u8; 6]);

impl Mac {
    /// `ff:ff:ff:ff:ff:ff`.
    pub const BROADCAST: Self = Self([0xff; 6]);

    /// Whether the group bit is set: broadcast or multicast.
    pub fn is_group(&self) -> bool {
        let [first, ..] = self.0;
        first & 1 == 1
    }
}

impl fmt::Display for Mac {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let [a, b, c, d, e, g] = self.0;
        write!(f, "{a:02x}:{b:02x}:{c:02x}:{d:02x}:{e:02x}:{g:02x}")
    }
}

/// The text was not six colon-separated octets in hexadecimal.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("invalid MAC address")]
pub struct ParseMacError;

impl FromStr for Mac {
    type Err = ParseMacError;

    /// Six pairs of hexadecimal digits, separated by colons or dashes; either case.
    fn from_str(text: &str) -> Result<Self, ParseMacError> {
        let mut octets = [0; 6];
        let mut parts = text.split([':', '-']);
        for octet in &mut octets {
            let part = parts.next().ok_or(ParseMacError)?;
            if part.len() != 2 || !part.bytes().all(|b| b.is_ascii_hexdigit()) {
                return Err(ParseMacError);
            }
            *octet = u8::from_str_radix(part, 16).map_err(|_| ParseMacError)?;
        }
        if parts.next().is_some() {
            return Err(ParseMacError);
        }
        Ok(Self(octets))
    }
}

/// What follows the header, as far as this network knows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum EtherType {
    Ipv4,
    Arp,
    Ipv6,
}

impl EtherType {
    const fn octets(self) -> [u8; 2] {
        match self {
            Self::Ipv4 => [0x08, 0x00],
            Self::Arp => [0x08, 0x06],
            Self::Ipv6 => [0x86, 0xdd],
        }
    }

    const fn parse(octets: [u8; 2]) -> Option<Self> {
        match octets {
            [0x08, 0x00] => Some(Self::Ipv4),
            [0x08, 0x06] => Some(Self::Arp),
            [0x86, 0xdd] => Some(Self::Ipv6),
            _ => None,
        }
    }
}

/// The parts of a header.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) to: Mac,
    pub(crate) from: Mac,
    /// `None` for a type that this network does not know.
    pub(crate) ether_type: Option<EtherType>,
}

/// Header and payload of a frame; `None` if it is shorter than a header.
pub(crate) fn parse(frame: &[u8]) -> Option<(Header, &[u8])> {
    let (header, payload) = frame.split_first_chunk::<HEADER_LEN>()?;
    let [t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5, y0, y1] = *header;
    let (to, from) = (Mac([t0, t1, t2, t3, t4, t5]), Mac([f0, f1, f2, f3, f4, f5]));
    Some((Header { to, from, ether_type: EtherType::parse([y0, y1]) }, payload))
}

/// Writes a header to the front of `frame`, which is long enough for one, and lends what follows.
pub(crate) fn emit(frame: &mut [u8], from: Mac, to: Mac, ether_type: EtherType) -> &mut [u8] {
    let Some((header, payload)) = frame.split_first_chunk_mut::<HEADER_LEN>() else { return &mut [] };
    let (Mac([t0, t1, t2, t3, t4, t5]), Mac([f0, f1, f2, f3, f4, f5])) = (to, from);
    let [y0, y1] = ether_type.octets();
    *header = [t0, t1, t2, t3, t4, t5, f0, f1, f2, f3, f4, f5, y0, y1];
    payload
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn text_forms() {
        let mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
        assert_eq!(mac.to_string(), "5a:94:ef:e4:0c:ee");
        assert_eq!("5A-94-EF-E4-0C-EE".parse(), Ok(mac));
        for bad in ["", "5a:94:ef:e4:0c", "5a:94:ef:e4:0c:ee:00", "5a:94:ef:e4:0c:+e", "5a94.efe4.0cee"] {
            assert_eq!(bad.parse::<Mac>(), Err(ParseMacError), "{bad}");
        }
    }

    #[test]
    fn header_round_trip() {
        let (from, to) = (Mac([2, 0, 0, 0, 0, 1]), Mac::BROADCAST);
        let mut frame = [0; HEADER_LEN + 2];
        for ether_type in [EtherType::Ipv4, EtherType::Arp, EtherType::Ipv6] {
            emit(&mut frame, from, to, ether_type).copy_from_slice(&[1, 2]);
            let (header, payload) = parse(&frame).unwrap();
            assert_eq!((header.from, header.to, header.ether_type), (from, to, Some(ether_type)));
            assert_eq!(payload, [1, 2]);
        }
        assert!(parse(&frame[..13]).is_none());
    }
}
