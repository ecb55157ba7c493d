//! Who may speak as whom. A port is an identity: what a guest says of itself, it says for its port, and no other port may say it. Behind
//! one port a guest may have as many addresses as it likes, and change them.
//!
//! An address that is free belongs to the port that speaks with it first. Who has a lease or a reservation for it, or had it before all
//! others, gets it at once. Another port gets it when the one that has it is asked and says nothing for [`PATIENCE`]: so that what moved
//! from one link or one guest to another is found there, and nobody takes what is in use.
//!
//! Owns: which port has which IPv4 address, and who else wants an address. May not: look into a frame, know of leases.
//! Read next: `switch.rs`, which port has which hardware address; `lib.rs`, `Stack::admit`, which asks both of every frame.

use core::fmt;
use core::net::Ipv4Addr;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use smoltcp::time::{Duration, Instant};

use crate::{Mac, PortId};

/// How long the holder of an address has to answer.
const PATIENCE: Duration = Duration::from_secs(1);
/// Addresses of one port at most: the one that it has had for the longest makes room.
const MAX_ADDRESSES: usize = 256;
/// Addresses that one port may want of others at a time.
const MAX_CONTESTS: usize = 16;

/// What a port wants.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Address {
    /// A hardware address.
    Hardware(Mac),
    /// An IPv4 address.
    Ip(Ipv4Addr),
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Hardware(mac) => mac.fmt(f),
            Self::Ip(ip) => ip.fmt(f),
        }
    }
}

/// What leases and reservations say to a port's use of an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Title {
    /// It is that of a guest behind the port.
    Own,
    /// It is that of a guest elsewhere, or of one that is still to come.
    Anothers,
    /// Nothing.
    Open,
}

/// What became of a claim.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Claimed {
    /// The port has the address.
    Held,
    /// It has it now, and this one had it.
    TakenFrom(PortId),
    /// It is another's: of this port, if that uses it. `ask` says to ask there now.
    Refused { holder: Option<PortId>, ask: bool },
}

#[derive(Debug)]
pub(crate) struct Guard {
    claims: HashMap<Ipv4Addr, Claim, FixedState>,
    /// What each port claimed, in that order; it may have lost some.
    ports: HashMap<PortId, VecDeque<Ipv4Addr>, FixedState>,
    pub(crate) contests: Contests,
    /// Changes whenever what was found before may hold no more.
    epoch: u32,
}

#[derive(Debug)]
struct Claim {
    port: PortId,
    /// Which hardware address was last found to use it.
    mac: Mac,
    /// Who had it before all others, and may have it back.
    first: PortId,
    /// When it was last used, since somebody else began to want it.
    seen: Instant,
}

impl Guard {
    pub(crate) fn new(seed: u64) -> Self {
        let hasher = || FixedState::with_seed(seed);
        Self {
            claims: HashMap::with_hasher(hasher()),
            ports: HashMap::with_hasher(hasher()),
            contests: Contests(HashMap::with_hasher(hasher())),
            epoch: 0,
        }
    }

    /// What [`Claimed::Held`] said holds as long as this stays the same.
    pub(crate) fn epoch(&self) -> u32 {
        self.epoch
    }

    /// A guest behind `port` speaks as `ip`, from `mac`.
    pub(crate) fn claim(
        &mut self,
        ip: Ipv4Addr,
        (port, mac): (PortId, Mac),
        title: Title,
        now: Instant,
    ) -> Claimed {
        let Some(claim) = self.claims.get_mut(&ip) else {
            if title == Title::Anothers {
                return Claimed::Refused { holder: None, ask: false };
            }
            self.give(ip, Claim { port, mac, first: port, seen: now });
            return Claimed::Held;
        };
        if claim.port == port {
            (claim.mac, claim.seen) = (mac, now);
            return Claimed::Held;
        }
        let holder = claim.port;
        let refused = |ask| Claimed::Refused { holder: Some(holder), ask };
        let first = match title {
            Title::Own => port,
            Title::Anothers => return refused(false),
            Title::Open if claim.first == port => port,
            Title::Open => match self.contests.judge(Address::Ip(ip), port, claim.seen, now) {
                Contest::Won => claim.first,
                Contest::Open => return refused(false),
                Contest::Begun => {
                    // From now on its use is noted.
                    self.epoch = self.epoch.wrapping_add(1);
                    return refused(true);
                }
            },
        };
        self.give(ip, Claim { port, mac, first, seen: now });
        Claimed::TakenFrom(holder)
    }

    /// The port that speaks as `ip`.
    pub(crate) fn holder(&self, ip: Ipv4Addr) -> Option<PortId> {
        self.claims.get(&ip).map(|claim| claim.port)
    }

    /// What `mac` behind `port` speaks as.
    pub(crate) fn addresses(&self, port: PortId, mac: Mac) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let own = move |ip: &Ipv4Addr| {
            self.claims.get(ip).is_some_and(|claim| claim.port == port && claim.mac == mac)
        };
        self.ports.get(&port).into_iter().flatten().copied().filter(own)
    }

    /// How many addresses the port has, or has lost, that speaks as `ip`, if that is another than `port`.
    pub(crate) fn crowd(&self, ip: Ipv4Addr, port: PortId) -> usize {
        let holder = self.holder(ip).filter(|holder| *holder != port);
        holder.and_then(|holder| self.ports.get(&holder)).map_or(0, VecDeque::len)
    }

    pub(crate) fn detach(&mut self, port: PortId) {
        self.ports.remove(&port);
        self.contests.0.remove(&port);
        self.claims.retain(|_, claim| claim.port != port);
        for claim in self.claims.values_mut().filter(|claim| claim.first == port) {
            claim.first = claim.port;
        }
    }

    fn give(&mut self, ip: Ipv4Addr, claim: Claim) {
        let order = self.ports.entry(claim.port).or_default();
        order.push_back(ip);
        let oldest = if order.len() > MAX_ADDRESSES { order.pop_front() } else { None };
        if let Some(oldest) = oldest
            && oldest != ip
            && self.claims.get(&oldest).is_some_and(|lost| lost.port == claim.port)
        {
            self.claims.remove(&oldest);
        }
        if self.claims.insert(ip, claim).is_some() || oldest.is_some() {
            self.epoch = self.epoch.wrapping_add(1);
        }
    }
}

/// Addresses that ports want of others.
#[derive(Debug)]
pub(crate) struct Contests(HashMap<PortId, VecDeque<(Address, Instant)>, FixedState>);

/// How one stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Contest {
    /// The holder is to be asked now.
    Begun,
    /// The holder was asked, and has time to answer.
    Open,
    /// The holder said nothing.
    Won,
}

impl Contests {
    /// The port `by` speaks with `address`, whose holder was last heard with it at `seen`.
    pub(crate) fn judge(&mut self, address: Address, by: PortId, seen: Instant, now: Instant) -> Contest {
        let wanted = self.0.entry(by).or_default();
        let Some(at) = wanted.iter().position(|(wanted, _)| *wanted == address) else {
            if wanted.len() >= MAX_CONTESTS {
                wanted.pop_front();
            }
            wanted.push_back((address, now));
            return Contest::Begun;
        };
        match wanted.get_mut(at) {
            Some((_, since)) if now < *since + PATIENCE => Contest::Open,
            Some((_, since)) if seen >= *since => {
                *since = now;
                Contest::Begun
            }
            _ => {
                wanted.remove(at);
                Contest::Won
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 9);
    const MAC: Mac = Mac([2; 6]);
    const A: PortId = PortId(0);
    const B: PortId = PortId(1);
    const C: PortId = PortId(2);

    fn at(milliseconds: i64) -> Instant {
        Instant::from_millis(milliseconds)
    }

    fn refused(holder: PortId, ask: bool) -> Claimed {
        Claimed::Refused { holder: Some(holder), ask }
    }

    #[test]
    fn who_speaks_keeps_an_address_and_who_is_silent_loses_it() {
        let mut guard = Guard::new(1);
        assert_eq!(guard.claim(IP, (A, MAC), Title::Open, at(0)), Claimed::Held);
        let epoch = guard.epoch();
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(5000)), refused(A, true));
        assert_ne!(guard.epoch(), epoch, "what it says from now on counts");
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(5500)), refused(A, false));
        assert_eq!(guard.claim(IP, (A, MAC), Title::Open, at(5600)), Claimed::Held);
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(6000)), refused(A, true), "it was heard");
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(6999)), refused(A, false));
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(7000)), Claimed::TakenFrom(A));
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(7100)), Claimed::Held);
        assert_eq!(guard.claim(IP, (C, MAC), Title::Open, at(7200)), refused(B, true));
        assert_eq!(
            guard.claim(IP, (A, MAC), Title::Open, at(7300)),
            Claimed::TakenFrom(B),
            "it had it first"
        );
    }

    #[test]
    fn a_title_decides() {
        let mut guard = Guard::new(1);
        assert_eq!(
            guard.claim(IP, (B, MAC), Title::Anothers, at(0)),
            Claimed::Refused { holder: None, ask: false }
        );
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(0)), Claimed::Held);
        assert_eq!(guard.claim(IP, (A, MAC), Title::Own, at(0)), Claimed::TakenFrom(B));
        for time in [0, 10_000, 20_000] {
            assert_eq!(guard.claim(IP, (B, MAC), Title::Anothers, at(time)), refused(A, false));
        }
        guard.detach(A);
        assert_eq!(guard.holder(IP), None);
        assert_eq!(guard.claim(IP, (B, MAC), Title::Open, at(0)), Claimed::Held);
    }

    #[test]
    fn a_port_has_so_many_and_no_more() {
        let mut guard = Guard::new(1);
        let ip = |number: usize| Ipv4Addr::from_bits(0x0a00_0000 + number as u32);
        assert_eq!(guard.claim(IP, (A, MAC), Title::Open, at(0)), Claimed::Held);
        for number in 0..3 * MAX_ADDRESSES {
            assert_eq!(guard.claim(ip(number), (B, MAC), Title::Open, at(0)), Claimed::Held);
        }
        assert_eq!(guard.addresses(B, MAC).count(), MAX_ADDRESSES);
        assert_eq!((guard.claims.len(), guard.holder(IP)), (MAX_ADDRESSES + 1, Some(A)));
        for number in 0..3 * MAX_ADDRESSES {
            let _ = guard.claim(ip(number), (A, MAC), Title::Open, at(0));
        }
        assert!(guard.contests.0.values().all(|wanted| wanted.len() <= MAX_CONTESTS));
    }
}
