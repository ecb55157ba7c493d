//! Numbers that count up for each guest by itself, so that what one guest is sent tells it nothing of others.
//! Owns: the counts, and where the ports of a guest's connections begin. Read next: `tcp/open.rs` and
//! `udp/mod.rs`, which dial guests.

use core::fmt;
use core::net::{IpAddr, SocketAddr};
use core::ops::RangeInclusive;
use std::hash::{Hash as _, Hasher as _};

use siphasher::sip::SipHasher13;

/// Guests whose addresses end alike share one.
const COUNTS: usize = 256;

#[derive(Debug)]
pub(crate) struct Counters([u16; COUNTS]);

impl Counters {
    pub(crate) fn new() -> Self {
        Self([0; COUNTS])
    }

    /// The guest's next number.
    #[inline]
    pub(crate) fn next(&mut self, guest: IpAddr) -> u16 {
        let last = match guest {
            IpAddr::V4(ip) => ip.octets()[3],
            IpAddr::V6(ip) => ip.octets()[15],
        };
        let Some(count) = self.0.get_mut(usize::from(last)) else { return 0 };
        *count = count.wrapping_add(1);
        *count
    }
}

/// The ports of one protocol's connections to guests.
pub(crate) struct Ports {
    secret: SipHasher13,
    counters: Counters,
}

impl fmt::Debug for Ports {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Ports").finish_non_exhaustive()
    }
}

impl Ports {
    pub(crate) fn new(secret: SipHasher13) -> Self {
        Self { secret, counters: Counters::new() }
    }

    /// An end of `local` with a port of `range` for a connection to `guest`, if one is free.
    pub(crate) fn free(
        &mut self,
        guest: SocketAddr,
        local: IpAddr,
        range: RangeInclusive<u16>,
        is_taken: impl Fn(SocketAddr) -> bool,
    ) -> Option<SocketAddr> {
        self.of(guest, local, range).map(|port| SocketAddr::new(local, port)).find(|end| !is_taken(*end))
    }

    /// Each port of `range` once, in the order in which a connection from `local` to `guest` tries them (RFC
    /// 6056 3.3.4).
    fn of(
        &mut self,
        guest: SocketAddr,
        local: IpAddr,
        range: RangeInclusive<u16>,
    ) -> impl Iterator<Item = u16> + '_ {
        let mut hasher = self.secret;
        (guest, local).hash(&mut hasher);
        let (first, count) = (*range.start(), u32::from(range.end() - range.start()) + 1);
        let offset = (hasher.finish() % u64::from(count)) as u32;
        (0..count).map(move |_| {
            let step = u32::from(self.counters.next(guest.ip()));
            first + ((offset + step) % count) as u16
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ports() -> Ports {
        Ports::new(SipHasher13::new_with_keys(1, 2))
    }

    fn guest(last: u8) -> SocketAddr {
        ([192, 168, 127, last], 22).into()
    }

    const GATEWAY: IpAddr = IpAddr::V4(core::net::Ipv4Addr::new(192, 168, 127, 1));

    #[test]
    fn each_guest_has_its_own() {
        let mut all = ports();
        let mut next = |last| all.of(guest(last), GATEWAY, 16_000..=65_535).next().unwrap();
        let first = next(2);
        let others: Vec<u16> = (0..100).map(|_| next(3)).collect();
        assert_eq!(next(2), first + 1, "one after the other, whatever others do");
        assert!(!others.contains(&(first + 1)), "and elsewhere");
        assert!(others.windows(2).all(|pair| pair[1] == pair[0] + 1));
    }

    #[test]
    fn every_port_comes_once() {
        let mut all = ports();
        let mut seen: Vec<u16> = all.of(guest(2), GATEWAY, 49_152..=65_535).collect();
        seen.sort_unstable();
        assert!(seen.iter().copied().eq(49_152..=65_535));
    }
}
