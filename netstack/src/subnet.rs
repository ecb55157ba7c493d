//! IPv4 subnets. Owns: which addresses are in one.

use core::fmt;
use core::net::Ipv4Addr;

/// A network: addresses that begin with the same bits (RFC 4632).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Subnet {
    network: u32,
    mask: u32,
}

impl Subnet {
    /// The one that `address` is in, with a prefix of so many bits; more than 32 are 32.
    pub const fn new(address: Ipv4Addr, prefix: u8) -> Self {
        let length = if prefix > 32 { 32 } else { prefix as u32 };
        let mask = match u32::MAX.checked_shl(32 - length) {
            Some(mask) => mask,
            None => 0,
        };
        Self { network: address.to_bits() & mask, mask }
    }

    /// Whether the address begins with its bits: of the network and of broadcasts too.
    #[inline]
    pub const fn contains(self, address: Ipv4Addr) -> bool {
        address.to_bits() & self.mask == self.network
    }

    /// The first address, which no host has.
    pub const fn network(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network)
    }

    /// The last one, which stands for all hosts.
    pub const fn broadcast(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.network | !self.mask)
    }

    /// The bits that all addresses have in common, as DHCP's option 1 tells them.
    pub const fn mask(self) -> Ipv4Addr {
        Ipv4Addr::from_bits(self.mask)
    }

    /// How many bits that are.
    pub const fn prefix(self) -> u8 {
        self.mask.leading_ones() as u8
    }
}

impl fmt::Display for Subnet {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.network(), self.prefix())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_prefix_of_any_length() {
        let eight = Ipv4Addr::new(10, 0, 0, 8);
        assert!(Subnet::new(Ipv4Addr::new(10, 0, 0, 0), 0).contains(Ipv4Addr::new(1, 2, 3, 4)));
        assert!(Subnet::new(eight, 29).contains(Ipv4Addr::new(10, 0, 0, 15)));
        assert!(!Subnet::new(eight, 29).contains(Ipv4Addr::new(10, 0, 0, 16)));
        assert!(
            Subnet::new(eight, 32).contains(eight)
                && !Subnet::new(eight, 32).contains(Ipv4Addr::new(10, 0, 0, 9))
        );
        assert_eq!(Subnet::new(eight, 40), Subnet::new(eight, 32));
    }

    #[test]
    fn ends_and_text() {
        let subnet = Subnet::new(Ipv4Addr::new(10, 1, 2, 12), 29);
        assert_eq!(subnet.to_string(), "10.1.2.8/29");
        assert_eq!([subnet.network(), subnet.broadcast()], [8, 15].map(|last| Ipv4Addr::new(10, 1, 2, last)));
        assert_eq!((subnet.mask(), subnet.prefix()), (Ipv4Addr::new(255, 255, 255, 248), 29));
        assert_eq!(Subnet::new(Ipv4Addr::UNSPECIFIED, 0).to_string(), "0.0.0.0/0");
    }
}
