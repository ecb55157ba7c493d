//! Who may speak as whom. A port is an identity: what a guest says of itself it says for its port, and no
//! other port may say it. Behind one port a guest may have as many addresses as it likes, and change them.
//!
//! A free address becomes that of the machine that speaks with it first, by its hardware address, as if it
//! were leased to it. Its owner gets it at once, wherever it is, and so does the holder of a lease or a
//! reservation for it. Anybody else gets the use of it when its user is asked and says nothing for a second,
//! so that what moved is found where it went, and owns it after [`SETTLED`]. If the other port said nothing
//! at all in that time, the rest of its addresses are found at the new port at once.
//!
//! Owns: which port uses which IPv4 address, whose it is, and who else wants it. May not: look into a frame,
//! know of leases.
//! Read next: `switch.rs`, which port has which hardware address; `lib.rs`, `Stack::admit`, which asks both
//! of every frame.

use core::fmt;
use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;

use crate::dhcp::Use;
use crate::link::most_frequent;
use crate::{Instant, Mac, PortId};

/// How long who uses an address has to answer; and where nobody could be asked, to say something.
const PATIENCE: Duration = Duration::from_secs(1);
const LONG_PATIENCE: Duration = Duration::from_secs(10);
/// How often it is asked meanwhile: one frame may be lost.
const QUESTIONS: u32 = 4;
/// Longer than a machine asks whether an address is free (RFC 5227 2.1.1, 2.3).
const PROBING: Duration = Duration::from_secs(10);
/// Who has used an address for so long owns it.
pub(crate) const SETTLED: Duration = Duration::from_secs(300);
/// How long an address stays that of a machine that is gone.
const ABSENCE: Duration = Duration::from_secs(3600);
/// Addresses of one port at most: the one that it has had for the longest makes room.
const MAX_ADDRESSES: usize = 256;
/// Who uses more has no claim to any that it does not use.
pub(crate) const CROWD: usize = 8;
/// So many addresses of one that is gone are kept.
const MAX_KEPT: usize = 64;
/// Addresses kept of machines that are gone; the oldest of the port that has most makes room.
const MAX_ABSENT: usize = 1024;
/// Addresses that one port may want of others at a time; so it has others asked 16 times in a second at most.
const MAX_CONFLICTS: usize = 4;

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
    /// It has it now, and nobody had, or this port.
    Taken(Option<PortId>),
    /// It is another's: of this port, if that uses it. `ask` says to ask there now.
    Refused { holder: Option<PortId>, ask: bool },
}

#[derive(Debug)]
pub(crate) struct Guard {
    claims: HashMap<Ipv4Addr, Claim, FixedState>,
    /// What each port claimed, in that order; it may have lost some.
    ports: HashMap<PortId, VecDeque<Ipv4Addr>, FixedState>,
    /// What those had who are gone, and behind which port, in the order of that; some may be used by now.
    absent: VecDeque<(PortId, Ipv4Addr)>,
    conflicts: Conflicts,
    /// Ports that lost an address and said nothing at all after they were asked for it; to whom, and when.
    /// Such a port may have spoken by now.
    silent: HashMap<PortId, (PortId, Instant), FixedState>,
    /// Changes whenever what was found before may hold no more.
    epoch: u64,
}

#[derive(Clone, Copy, Debug)]
struct Claim {
    /// Where it is used. Nowhere, when that is gone.
    port: Option<PortId>,
    /// Which hardware address was last found to use it.
    mac: Mac,
    /// Whose it is, if nobody else has used it for long.
    owner: Mac,
    /// Since when it is used there.
    since: Instant,
    /// When it was last used, since somebody else began to want it; or when its user went.
    seen: Instant,
}

impl Claim {
    /// Whose it is by now.
    fn owner(&self, now: Instant) -> Option<Mac> {
        match self.port {
            Some(_) if now >= self.since + SETTLED => Some(self.mac),
            None if now >= self.seen + ABSENCE => None,
            _ => Some(self.owner),
        }
    }
}

impl Guard {
    pub(crate) fn new(seed: u64) -> Self {
        let hasher = || FixedState::with_seed(seed);
        Self {
            claims: HashMap::with_hasher(hasher()),
            ports: HashMap::with_hasher(hasher()),
            absent: VecDeque::new(),
            conflicts: Conflicts(Vec::new()),
            silent: HashMap::with_hasher(hasher()),
            epoch: 1,
        }
    }

    /// What [`Claimed::Held`] said holds as long as this stays the same.
    pub(crate) fn epoch(&self) -> u64 {
        self.epoch
    }

    /// A guest behind `port` speaks as `ip`, from `mac`. `home_of` says where a hardware address is at home.
    pub(crate) fn claim(
        &mut self,
        ip: Ipv4Addr,
        (port, mac): (PortId, Mac),
        title: Title,
        home_of: impl Fn(Mac) -> Option<PortId>,
        now: Instant,
    ) -> Claimed {
        let Some(claim) = self.claims.get_mut(&ip) else {
            if title == Title::Anothers {
                return Claimed::Refused { holder: None, ask: false };
            }
            self.give(ip, port, Claim { port: Some(port), mac, owner: mac, since: now, seen: now });
            return Claimed::Taken(None);
        };
        if claim.port == Some(port) {
            (claim.mac, claim.seen) = (mac, now);
            return Claimed::Held;
        }
        let (from, owner) = (claim.port, claim.owner(now));
        let owner = match title {
            Title::Own => mac,
            Title::Anothers => return Claimed::Refused { holder: from, ask: false },
            Title::Open if owner.and_then(home_of) == Some(port) => mac,
            Title::Open if from.is_none() => owner.unwrap_or(mac),
            Title::Open => {
                let ask = self.conflicts.begin(Address::Ip(ip), (port, mac), PATIENCE, now);
                // From now on its use is noted.
                self.epoch += u64::from(ask);
                return Claimed::Refused { holder: from, ask };
            }
        };
        self.give(ip, port, Claim { port: Some(port), mac, owner, since: now, seen: now });
        Claimed::Taken(from)
    }

    /// `mac` behind `by` wants an address of another one, which can be asked or not. Says whether to ask that
    /// one now.
    pub(crate) fn want(&mut self, mac: Mac, by: PortId, can_be_asked: bool, now: Instant) -> bool {
        let patience = if can_be_asked { PATIENCE } else { LONG_PATIENCE };
        self.conflicts.begin(Address::Hardware(mac), (by, mac), patience, now)
    }

    /// The next conflict that has something to do, until there is none.
    pub(crate) fn poll_conflict(&mut self, now: Instant) -> Option<Due> {
        self.conflicts.poll(now)
    }

    /// When [`Self::poll_conflict`] has the next one.
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.conflicts.0.iter().map(|conflict| conflict.next).min()
    }

    /// Whether another one has the address, and said nothing since the conflict began.
    pub(crate) fn is_lost(&self, ip: Ipv4Addr, conflict: &Conflict) -> bool {
        let claim = self.claims.get(&ip).filter(|claim| claim.seen < conflict.since);
        claim.and_then(|claim| claim.port).is_some_and(|from| from != conflict.by)
    }

    /// Gives the address to `mac` behind `by`, from whoever has it: that port comes back.
    pub(crate) fn take(&mut self, ip: Ipv4Addr, (by, mac): (PortId, Mac), now: Instant) -> Option<PortId> {
        let claim = *self.claims.get(&ip)?;
        let from = claim.port?;
        let owner = if self.count(from) > CROWD { Some(mac) } else { claim.owner(now) };
        let owner = owner.unwrap_or(mac);
        self.give(ip, by, Claim { port: Some(by), mac, owner, since: now, seen: now });
        Some(from)
    }

    /// `from` was asked, said nothing at all since then, and lost something to `by`.
    pub(crate) fn note_silent(&mut self, from: PortId, by: PortId, since: Instant) {
        self.silent.insert(from, (by, since));
    }

    /// Since when `from` has said nothing to what `by` wanted, if it has said nothing ever after.
    pub(crate) fn silent_since(&self, from: PortId, by: PortId) -> Option<Instant> {
        self.silent.get(&from).filter(|(to, _)| *to == by).map(|(_, since)| *since)
    }

    /// The port that speaks as `ip`.
    pub(crate) fn holder(&self, ip: Ipv4Addr) -> Option<PortId> {
        self.user(ip).map(|(port, _)| port)
    }

    /// The port that speaks as `ip`, and the hardware address that did last.
    pub(crate) fn user(&self, ip: Ipv4Addr) -> Option<(PortId, Mac)> {
        self.claims.get(&ip).and_then(|claim| Some((claim.port?, claim.mac)))
    }

    /// Who has begun to speak as `ip` so lately that it may still ask whether that is free.
    pub(crate) fn newcomer(&self, ip: Ipv4Addr, now: Instant) -> Option<(PortId, Mac)> {
        let claim = self.claims.get(&ip).filter(|claim| now < claim.since + PROBING)?;
        Some((claim.port?, claim.mac))
    }

    /// Whose `ip` is, with a lease or without.
    pub(crate) fn owner(&self, ip: Ipv4Addr, now: Instant) -> Option<Mac> {
        self.claims.get(&ip).and_then(|claim| claim.owner(now))
    }

    /// What somebody else than who is behind `port` has of `ip`.
    pub(crate) fn use_of(
        &self,
        ip: Ipv4Addr,
        port: PortId,
        home_of: impl Fn(Mac) -> Option<PortId>,
        now: Instant,
    ) -> Use {
        let Some(claim) = self.claims.get(&ip) else { return Use::None };
        let Some(owner) = claim.owner(now) else { return Use::None };
        match (home_of(owner), claim.port) {
            (Some(home), _) if home == port => Use::None,
            (Some(home), _) => Use::By(self.count(home)),
            (None, Some(user)) if user != port => Use::By(self.count(user)),
            (None, _) => Use::Kept,
        }
    }

    /// What `mac` behind `port` speaks as.
    pub(crate) fn addresses(&self, port: PortId, mac: Mac) -> impl Iterator<Item = Ipv4Addr> + '_ {
        let own = move |claim: &Claim| claim.port == Some(port) && claim.mac == mac;
        let all = self.ports.get(&port).into_iter().flatten().copied();
        all.filter(move |ip| self.claims.get(ip).is_some_and(own))
    }

    /// How many addresses the port speaks as.
    pub(crate) fn count(&self, port: PortId) -> usize {
        let all = self.ports.get(&port).into_iter().flatten();
        all.filter(|ip| self.holder(**ip) == Some(port)).count()
    }

    pub(crate) fn detach(&mut self, port: PortId, now: Instant) {
        self.conflicts.0.retain(|conflict| conflict.by != port);
        self.silent.retain(|from, (by, _)| ![*from, *by].contains(&port));
        let mut kept = 0;
        for ip in self.ports.remove(&port).into_iter().flatten() {
            let Some(claim) = self.claims.get_mut(&ip).filter(|claim| claim.port == Some(port)) else {
                continue;
            };
            claim.owner = claim.owner(now).unwrap_or(claim.mac);
            (claim.port, claim.seen) = (None, now);
            kept += 1;
            match kept <= MAX_KEPT {
                true => {
                    self.absent.retain(|(_, other)| *other != ip);
                    self.absent.push_back((port, ip));
                }
                false => drop(self.claims.remove(&ip)),
            }
        }
        while self.absent.len() > MAX_ABSENT {
            let most = most_frequent(self.absent.iter().map(|(port, _)| *port).collect());
            let oldest = self.absent.iter().position(|(port, _)| Some(*port) == most);
            let Some((_, ip)) = oldest.and_then(|at| self.absent.remove(at)) else { break };
            if self.claims.get(&ip).is_some_and(|claim| claim.port.is_none()) {
                self.claims.remove(&ip);
            }
        }
    }

    fn give(&mut self, ip: Ipv4Addr, port: PortId, claim: Claim) {
        self.epoch += 1;
        self.claims.insert(ip, claim);
        let order = self.ports.entry(port).or_default();
        if order.contains(&ip) {
            return;
        }
        order.push_back(ip);
        let oldest = if order.len() > MAX_ADDRESSES { order.pop_front() } else { None };
        if let Some(oldest) = oldest
            && self.holder(oldest) == Some(port)
        {
            self.claims.remove(&oldest);
        }
    }
}

/// Address conflicts (RFC 5227): what ports want of others.
#[derive(Debug)]
struct Conflicts(Vec<Conflict>);

/// One of them.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Conflict {
    pub(crate) address: Address,
    pub(crate) by: PortId,
    /// Who wants it.
    pub(crate) mac: Mac,
    /// Whoever has it and was not heard since then has it no more.
    pub(crate) since: Instant,
    /// When whoever has it is asked again, or has had its time.
    next: Instant,
    until: Instant,
}

/// What there is to do about a conflict.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Due {
    /// Whoever has the address is asked again: the question before or its answer may have been lost.
    Ask(Conflict),
    /// Its time is over: see [`Guard::is_lost`].
    Settle(Conflict),
}

impl Conflicts {
    /// Whether it is a new one.
    fn begin(
        &mut self,
        address: Address,
        (by, mac): (PortId, Mac),
        patience: Duration,
        now: Instant,
    ) -> bool {
        let mut own = self.0.iter().filter(|conflict| conflict.by == by);
        let is_new = own.clone().count() < MAX_CONFLICTS && own.all(|conflict| conflict.address != address);
        if is_new {
            let next = now + patience / QUESTIONS;
            self.0.push(Conflict { address, by, mac, since: now, next, until: now + patience });
        }
        is_new
    }

    fn poll(&mut self, now: Instant) -> Option<Due> {
        let at = self.0.iter().position(|conflict| conflict.next <= now)?;
        let conflict = self.0.get_mut(at)?;
        if conflict.until <= now {
            return Some(Due::Settle(self.0.swap_remove(at)));
        }
        conflict.next = (now + (conflict.until - conflict.since) / QUESTIONS).min(conflict.until);
        Some(Due::Ask(*conflict))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const IP: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 9);
    const A: PortId = PortId(0);
    const B: PortId = PortId(1);
    const C: PortId = PortId(2);

    fn at(milliseconds: u64) -> Instant {
        Instant::from_millis(milliseconds)
    }

    /// Each port has one machine.
    fn mac(port: PortId) -> Mac {
        Mac([2, 0, 0, 0, 0, port.0 as u8])
    }

    fn port_of(mac: Mac) -> Option<PortId> {
        Some(PortId(mac.0[5].into()))
    }

    fn claim(guard: &mut Guard, ip: Ipv4Addr, port: PortId, title: Title, now: Instant) -> Claimed {
        guard.claim(ip, (port, mac(port)), title, port_of, now)
    }

    /// Who loses which address.
    fn settle(guard: &mut Guard, now: Instant) -> Vec<(Address, Option<PortId>)> {
        let mut all = Vec::new();
        while let Some(due) = guard.poll_conflict(now) {
            let Due::Settle(conflict) = due else { continue };
            let Address::Ip(ip) = conflict.address else { panic!("{conflict:?}") };
            let from = guard.is_lost(ip, &conflict).then(|| guard.take(ip, (conflict.by, conflict.mac), now));
            all.push((conflict.address, from.flatten()));
        }
        all
    }

    fn refused(holder: PortId, ask: bool) -> Claimed {
        Claimed::Refused { holder: Some(holder), ask }
    }

    fn lost(from: Option<PortId>) -> Vec<(Address, Option<PortId>)> {
        vec![(Address::Ip(IP), from)]
    }

    #[test]
    fn who_speaks_keeps_an_address_and_who_is_silent_loses_its_use() {
        let mut guard = Guard::new(1);
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(0)), Claimed::Taken(None));
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(1)), Claimed::Held);
        let epoch = guard.epoch();
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(5000)), refused(A, true));
        assert_ne!(guard.epoch(), epoch, "what it says from now on counts");
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(5500)), refused(A, false));
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(5600)), Claimed::Held);
        assert_eq!(settle(&mut guard, at(5999)), []);
        assert_eq!(settle(&mut guard, at(6000)), lost(None), "it was heard");
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(6000)), refused(A, true));
        assert_eq!(guard.poll_timeout(), Some(at(6250)));
        assert!(matches!(guard.poll_conflict(at(6250)), Some(Due::Ask(_))), "once more");
        assert!(guard.poll_conflict(at(6250)).is_none());
        assert_eq!(settle(&mut guard, at(7000)), lost(Some(A)));
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(7100)), Claimed::Held);
        assert_eq!(claim(&mut guard, IP, C, Title::Open, at(7200)), refused(B, true));
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(7300)), Claimed::Taken(Some(B)), "it is its own");
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(7300)), Claimed::Held);
    }

    #[test]
    fn use_makes_an_owner() {
        let mut guard = Guard::new(1);
        claim(&mut guard, IP, A, Title::Open, at(0));
        claim(&mut guard, IP, B, Title::Open, at(0));
        assert_eq!(settle(&mut guard, at(1000)), lost(None), "it spoke at that very moment");
        claim(&mut guard, IP, B, Title::Open, at(2000));
        assert_eq!(settle(&mut guard, at(3000)), lost(Some(A)));
        let settled = at(3000) + SETTLED;
        assert_eq!((guard.owner(IP, at(4000)), guard.owner(IP, settled)), (Some(mac(A)), Some(mac(B))));
        assert_eq!(claim(&mut guard, IP, A, Title::Open, settled), refused(B, true));
    }

    #[test]
    fn who_is_gone_has_it_back() {
        let mut guard = Guard::new(1);
        claim(&mut guard, IP, A, Title::Open, at(0));
        guard.detach(A, at(0));
        assert_eq!((guard.holder(IP), guard.owner(IP, at(0))), (None, Some(mac(A))));
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(1000)), Claimed::Taken(None), "nobody uses it");
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(2000)), Claimed::Taken(Some(B)));
        guard.detach(A, at(2000));
        let late = at(2000) + ABSENCE;
        assert_eq!(guard.owner(IP, late), None);
        claim(&mut guard, IP, B, Title::Open, late);
        assert_eq!(claim(&mut guard, IP, A, Title::Open, late), refused(B, true));
        for port in 3..3000 {
            let ip = Ipv4Addr::from_bits(0x0a00_0000 + port);
            claim(&mut guard, ip, PortId(port), Title::Open, at(0));
            guard.detach(PortId(port), at(0));
        }
        assert!(guard.claims.len() <= MAX_ABSENT + 1 && guard.absent.len() <= MAX_ABSENT);
    }

    #[test]
    fn whoever_goes_with_many_leaves_what_others_had() {
        let mut guard = Guard::new(1);
        claim(&mut guard, IP, A, Title::Open, at(0));
        guard.detach(A, at(0));
        for number in 0..100 * MAX_KEPT as u32 {
            let port = PortId(2 + number / MAX_KEPT as u32);
            claim(&mut guard, Ipv4Addr::from_bits(0x0a00_0000 + number), port, Title::Open, at(0));
            if number as usize % MAX_KEPT == MAX_KEPT - 1 {
                guard.detach(port, at(0));
            }
        }
        assert_eq!((guard.absent.len(), guard.owner(IP, at(1))), (MAX_ABSENT, Some(mac(A))));
    }

    #[test]
    fn of_one_that_is_gone_so_many_are_kept() {
        let mut guard = Guard::new(1);
        let ip = |number: usize| Ipv4Addr::from_bits(0x0a00_0000 + number as u32);
        for number in 0..=MAX_KEPT {
            claim(&mut guard, ip(number), A, Title::Open, at(0));
        }
        guard.detach(A, at(0));
        let kept = (0..=MAX_KEPT).filter(|number| guard.owner(ip(*number), at(1)) == Some(mac(A)));
        assert!(kept.eq(0..MAX_KEPT));
    }

    #[test]
    fn a_title_decides() {
        let mut guard = Guard::new(1);
        let nobody = Claimed::Refused { holder: None, ask: false };
        assert_eq!(claim(&mut guard, IP, B, Title::Anothers, at(0)), nobody);
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(0)), Claimed::Taken(None));
        assert_eq!(claim(&mut guard, IP, A, Title::Own, at(0)), Claimed::Taken(Some(B)));
        for time in [0, 10_000, 20_000] {
            assert_eq!(claim(&mut guard, IP, B, Title::Anothers, at(time)), refused(A, false));
        }
        guard.detach(A, at(20_000));
        assert_eq!(guard.holder(IP), None);
        assert_eq!(claim(&mut guard, IP, B, Title::Open, at(20_000)), Claimed::Taken(None));
    }

    #[test]
    fn a_port_has_so_many_and_no_more() {
        let mut guard = Guard::new(1);
        let ip = |number: usize| Ipv4Addr::from_bits(0x0a00_0000 + number as u32);
        assert_eq!(claim(&mut guard, IP, A, Title::Open, at(0)), Claimed::Taken(None));
        for number in 0..3 * MAX_ADDRESSES {
            assert_eq!(claim(&mut guard, ip(number), B, Title::Open, at(0)), Claimed::Taken(None));
        }
        assert_eq!((guard.count(B), guard.addresses(B, mac(B)).count()), (MAX_ADDRESSES, MAX_ADDRESSES));
        assert_eq!((guard.claims.len(), guard.holder(IP)), (MAX_ADDRESSES + 1, Some(A)));
        let asked = (0..3 * MAX_ADDRESSES)
            .filter(|number| claim(&mut guard, ip(*number), A, Title::Open, at(1)) == refused(B, true))
            .count();
        assert_eq!((asked, guard.conflicts.0.len()), (MAX_CONFLICTS, MAX_CONFLICTS));
        // Who has claimed everything owns nothing that it does not use.
        settle(&mut guard, at(1001));
        let taken = ip(3 * MAX_ADDRESSES - MAX_ADDRESSES);
        assert_eq!(guard.owner(taken, at(1001)), Some(mac(A)));
    }
}
