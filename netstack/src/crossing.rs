//! What no guest may say to another: only the gateway gives out addresses, and only the gateway is a router.
//! Owns: nothing. May not: know who has which address (`guard.rs` does). Read next: `lib.rs`,
//! `Stack::switch_frame`.

use smoltcp::wire::IpProtocol::{self, HopByHop, Icmp, Icmpv6, IpSecAh, Ipv6Frag, Ipv6Opts, Ipv6Route, Udp};

use crate::dhcp;

/// Ports of DHCP's clients, and of DHCPv6's servers and clients (RFC 8415, 7.2).
const DHCP_CLIENT: u16 = 68;
const DHCPV6_SERVER: u16 = 547;
const DHCPV6_CLIENT: u16 = 546;
/// Types of ICMP (RFC 792, RFC 1256).
const ICMP_REDIRECT: u8 = 5;
const ICMP_ROUTER: u8 = 9;
/// The mobility header (RFC 6275, 6.1).
const MOBILITY: IpProtocol = IpProtocol::Unknown(135);

/// Whether a frame may go from guest to guest. DHCP, router advertisements and redirects (RFC 6105) pass in
/// no form that a guest's system would read.
pub(crate) fn may_cross(frame: &[u8]) -> bool {
    let Some((kind, payload)) = frame.get(12..).and_then(|rest| rest.split_first_chunk::<2>()) else {
        return false;
    };
    // What bridges say to each other, they keep (IEEE 802.1D, 7.12.6).
    if matches!(frame, [0x01, 0x80, 0xc2, 0, 0, 0..=0x0f, ..]) {
        return false;
    }
    match (u16::from_be_bytes(*kind), payload) {
        (0x0800, packet) => ipv4_may_cross(packet),
        (0x86dd, packet) => ipv6_may_cross(packet),
        // A priority tag is not looked at by who has no VLANs.
        (0x8100 | 0x88a8 | 0x9100, [high, low, ..]) => u16::from_be_bytes([*high, *low]) & 0xfff != 0,
        (0x8100 | 0x88a8 | 0x9100, _) => false,
        (0..=1535, [0xaa, 0xaa, 3, 0, 0, 0, ..]) => false,
        _ => true,
    }
}

fn ipv4_may_cross(packet: &[u8]) -> bool {
    let [version, _, _, _, _, _, high, low, _, protocol, ..] = packet else { return false };
    let is_first = u16::from_be_bytes([*high, *low]) & 0x1fff == 0;
    let payload = packet.get(usize::from(version & 0xf) * 4..).unwrap_or_default();
    match IpProtocol::from(*protocol) {
        Udp => !is_first || udp_may_cross(payload, dhcp::SERVER_PORT, DHCP_CLIENT),
        Icmp => !is_first || !matches!(payload, [] | [ICMP_REDIRECT | ICMP_ROUTER, ..]),
        _ => true,
    }
}

/// RFC 7113: what cannot be seen whole does not pass, nor does neighbour discovery in fragments (RFC 6980).
fn ipv6_may_cross(packet: &[u8]) -> bool {
    let (Some(next), Some(mut rest)) = (packet.get(6), packet.get(40..)) else { return false };
    let mut next = IpProtocol::from(*next);
    let mut is_fragment = false;
    loop {
        let len = match (next, rest) {
            (Udp, payload) => return udp_may_cross(payload, DHCPV6_SERVER, DHCPV6_CLIENT),
            (Icmpv6, [kind, ..]) => {
                return !(matches!(kind, 134 | 137) || is_fragment && matches!(kind, 133..=137));
            }
            (Icmpv6, []) => return false,
            (Ipv6Frag, [_, _, high, low, ..]) => {
                if u16::from_be_bytes([*high, *low]) & !7 != 0 {
                    return true;
                }
                is_fragment = true;
                8
            }
            (IpSecAh, [_, len, ..]) => (usize::from(*len) + 2) * 4,
            (HopByHop | Ipv6Route | Ipv6Opts | MOBILITY, [_, len, ..]) => (usize::from(*len) + 1) * 8,
            (Ipv6Frag | IpSecAh | HopByHop | Ipv6Route | Ipv6Opts | MOBILITY, _) => return false,
            _ => return true,
        };
        let (Some(following), Some(behind)) = (rest.first(), rest.get(len..)) else { return false };
        (next, rest) = (IpProtocol::from(*following), behind);
    }
}

/// Not what comes from a server's port, and nothing to a client's.
fn udp_may_cross(datagram: &[u8], server: u16, client: u16) -> bool {
    let [from_high, from_low, to_high, to_low, ..] = datagram else { return false };
    let (from, to) = (u16::from_be_bytes([*from_high, *from_low]), u16::from_be_bytes([*to_high, *to_low]));
    from != server && to != client
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOP_BY_HOP: u8 = 0;
    const UDP: u8 = 17;
    const FRAGMENT: u8 = 44;
    const AUTHENTICATION: u8 = 51;
    const ICMPV6: u8 = 58;
    const DESTINATION: u8 = 60;

    #[test]
    fn the_gateways_part_is_no_guests() {
        let frame = |kind: u16, payload: &[u8]| [&[0; 12][..], &kind.to_be_bytes(), payload].concat();
        let v4 = |offset: u8, payload: &[u8]| {
            let header = [0x45, 0, 0, 60, 0, 0, 0, offset, 64, UDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2];
            frame(0x0800, &[&header[..], payload].concat())
        };
        let icmp = |kind: u8| {
            let mut frame = v4(0, &[kind, 0, 0, 0]);
            frame[23] = 1;
            frame
        };
        let v6 = |next: u8, payload: &[u8]| {
            let mut header = [0; 40];
            (header[0], header[6]) = (0x60, next);
            frame(0x86dd, &[&header[..], payload].concat())
        };
        let (server, client) = ([0, 67, 0, 9, 0, 8, 0, 0], [0, 9, 0, 68, 0, 8, 0, 0]);
        let (server6, client6) = ([2, 35, 0, 9, 0, 8, 0, 0], [0, 9, 2, 34, 0, 8, 0, 0]);
        let fragment = |next, offset: u8| [next, 0, 0, offset, 0, 0, 0, 1];
        for stopped in [
            v4(0, &server),
            v4(0, &client),
            v4(0, &[0, 9]),
            icmp(5),
            icmp(9),
            [&[0x01, 0x80, 0xc2, 0, 0, 0][..], &[0; 6], &[0, 38, 0x42, 0x42, 3]].concat(),
            v6(UDP, &server6),
            v6(UDP, &client6),
            v6(ICMPV6, &[134, 0]),
            v6(ICMPV6, &[137, 0]),
            v6(ICMPV6, &[]),
            v6(DESTINATION, &[&[ICMPV6, 0, 1, 4, 0, 0, 0, 0, 134][..]].concat()),
            v6(HOP_BY_HOP, &[&[FRAGMENT, 0, 1, 4, 0, 0, 0, 0][..], &fragment(ICMPV6, 1), &[136]].concat()),
            v6(FRAGMENT, &[&fragment(DESTINATION, 1)[..], &[ICMPV6, 9]].concat()),
            v6(AUTHENTICATION, &[ICMPV6]),
            frame(0x8100, &[0xe0, 0, 8, 0]),
            frame(0x8100, &[0]),
            frame(100, &[0xaa, 0xaa, 3, 0, 0, 0, 8, 6]),
            vec![0; 13],
        ] {
            assert!(!may_cross(&stopped), "{stopped:?}");
        }
        for passed in [
            v4(0, &[0, 68, 0, 67, 0, 8, 0, 0]),
            v4(5, &server),
            icmp(8),
            icmp(3),
            v6(UDP, &[2, 34, 2, 35, 0, 8, 0, 0]),
            v6(ICMPV6, &[135, 0]),
            v6(ICMPV6, &[128, 0]),
            v6(FRAGMENT, &[&fragment(ICMPV6, 1)[..], &[128]].concat()),
            v6(FRAGMENT, &[&fragment(ICMPV6, 8)[..], &[134]].concat()),
            v6(6, &[0; 20]),
            frame(0x8100, &[0xe0, 5, 8, 0]),
            frame(0x0806, &[]),
            frame(0x8035, &[]),
            frame(38, &[0x42, 0x42, 3]),
        ] {
            assert!(may_cross(&passed), "{passed:?}");
        }
    }
}
