//! Who may reach what, and as which address. Owns: the policy, all of it. May not: keep state of a flow.
//! Read next: `lib.rs`, which asks here once per flow, in `Stack::handle_segment` and
//! `Stack::handle_datagram`.

use core::net::{IpAddr, Ipv4Addr, SocketAddr};

use crate::{NetworkConfig, Subnet};

/// What the guest reaches at an address it dialled.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Target {
    /// A socket on, or reachable from, the host.
    Host(SocketAddr),
    /// The gateway itself, on this port.
    Gateway(u16),
}

/// What policy says to a new flow.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Verdict {
    Allow(Target),
    /// The guest is told at once.
    Refuse,
    /// No answer at all.
    Drop,
}

#[derive(Debug)]
pub(crate) struct Nat {
    gateway: Ipv4Addr,
    subnet: Subnet,
    rewrites: Vec<(IpAddr, IpAddr)>,
    link_local: bool,
}

impl Nat {
    pub(crate) fn new(config: &NetworkConfig) -> Self {
        Self {
            gateway: config.gateway,
            subnet: config.subnet,
            rewrites: config.nat.clone(),
            link_local: config.ec2_metadata_access,
        }
    }

    /// What a flow to `remote` may reach.
    pub(crate) fn decide(&self, remote: SocketAddr) -> Verdict {
        let IpAddr::V4(ip) = remote.ip() else { return Verdict::Drop };
        if is_martian(ip) || ip.is_multicast() || ip.is_broadcast() || remote.port() == 0 {
            return Verdict::Drop;
        }
        if ip == self.gateway {
            return Verdict::Allow(Target::Gateway(remote.port()));
        }
        if let Some((_, to)) = self.rewrites.iter().find(|(from, _)| *from == remote.ip()) {
            return Verdict::Allow(Target::Host(SocketAddr::new(*to, remote.port())));
        }
        if ip.is_link_local() && !self.link_local {
            return Verdict::Refuse;
        }
        if self.subnet.contains(ip) {
            return Verdict::Refuse; // another guest is reached through the switch, nobody else is there
        }
        Verdict::Allow(Target::Host(remote))
    }
}

/// Whether `ip` may not appear on the wire: an address of "this" network or of loopback (RFC 1122 3.2.1.3),
/// or of class E other than broadcast.
pub(crate) fn is_martian(ip: Ipv4Addr) -> bool {
    let [first, ..] = ip.octets();
    first == 0 || first == 127 || (first >= 240 && !ip.is_broadcast())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn nat(link_local: bool) -> Nat {
        let host = Ipv4Addr::new(192, 168, 127, 254);
        Nat {
            gateway: Ipv4Addr::new(192, 168, 127, 1),
            subnet: Subnet::new(Ipv4Addr::new(192, 168, 127, 0), 24),
            rewrites: vec![(host.into(), Ipv4Addr::LOCALHOST.into())],
            link_local,
        }
    }

    #[test]
    fn decisions() {
        let decide = |to: &str| nat(false).decide(to.parse().unwrap());
        let host = |to: &str| Verdict::Allow(Target::Host(to.parse().unwrap()));
        assert_eq!(decide("192.168.127.254:80"), host("127.0.0.1:80"));
        assert_eq!(decide("192.168.127.1:53"), Verdict::Allow(Target::Gateway(53)));
        assert_eq!(decide("192.0.2.7:443"), host("192.0.2.7:443"));
        assert_eq!(decide("127.0.0.1:80"), Verdict::Drop);
        assert_eq!(decide("0.0.0.0:80"), Verdict::Drop);
        assert_eq!(decide("224.0.0.251:5353"), Verdict::Drop);
        assert_eq!(decide("255.255.255.255:9"), Verdict::Drop);
        assert_eq!(decide("192.168.127.255:9"), Verdict::Refuse);
        assert_eq!(decide("169.254.169.254:80"), Verdict::Refuse);
        assert_eq!(nat(true).decide("169.254.169.254:80".parse().unwrap()), host("169.254.169.254:80"));
    }
}
