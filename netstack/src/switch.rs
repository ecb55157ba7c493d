//! The learning switch. Owns: of each hardware address the port, when it was last seen, the largest packet
//! that it has shown to take, and the IPv4 address that it may speak as. May not: look past the Ethernet
//! header.
//! Read next: `guard.rs`, who may have what; `lib.rs`, `Stack::handle_frame`; `mtu.rs`, what a frame shows.

use core::net::Ipv4Addr;
use std::collections::{HashMap, HashSet, VecDeque};

use foldhash::fast::FixedState;

use crate::guard::SETTLED;
use crate::link::most_frequent;
use crate::{Instant, Mac, PortId};

/// Addresses of gone ports that are known for a while, in all and of one port. The oldest of the port that
/// has most makes room.
const MAX_KEPT: usize = 1024;
const KEPT_OF_PORT: usize = 8;
/// No port.
const GONE: PortId = PortId(u32::MAX);
/// Addresses remembered of a port, since a guest can invent them. The one that was learned first makes room;
/// that of the port's first frame never does.
const MAX_ADDRESSES: usize = 256;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To this port only, whose guest has shown to take IP packets of this many bytes.
    Port(PortId, u16),
    /// To every port but the sender's: broadcast, multicast, or an address not yet seen.
    Flood,
}

/// What a frame's source address told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Learned {
    /// It is where it was.
    Known,
    /// It was not known anywhere. For it the port's oldest was forgotten, where it had too many.
    New(Option<Mac>),
    /// It was behind this port, and its own guest is here.
    Moved(PortId),
    /// It is behind this port; it may have moved.
    Elsewhere(PortId),
}

#[derive(Debug)]
pub(crate) struct Switch {
    ports: Vec<PortId>,
    next_port: u32,
    /// Several machines have spoken.
    is_shared: bool,
    addresses: HashMap<Mac, Entry, FixedState>,
    /// What was behind ports that are gone, each once: in the order of that, and to be found.
    kept: VecDeque<(PortId, Mac)>,
    is_kept: HashSet<Mac, FixedState>,
    /// What is behind each port.
    sources: HashMap<PortId, Sources, FixedState>,
    assumed_mtu: u16,
}

#[derive(Debug)]
struct Entry {
    port: PortId,
    /// The port that had it first. It may have the address back until that has been elsewhere for
    /// [`SETTLED`].
    first: PortId,
    mtu: u16,
    /// Since when it is there, and when a frame came from it.
    since: Instant,
    seen: Instant,
    /// What it was last found to speak as, and in which epoch of the guard.
    speaks_as: (Ipv4Addr, u64),
}

#[derive(Debug, Default)]
struct Sources {
    /// That of the first frame: the guest's own.
    own: Option<Mac>,
    /// All, as they came; some may be elsewhere by now.
    order: VecDeque<Mac>,
}

impl Switch {
    /// `assumed_mtu` is what every guest takes.
    pub(crate) fn new(assumed_mtu: u16, seed: u64) -> Self {
        let hasher = || FixedState::with_seed(seed);
        let (addresses, sources) = (HashMap::with_hasher(hasher()), HashMap::with_hasher(hasher()));
        let (kept, is_kept) = (VecDeque::new(), HashSet::with_hasher(hasher()));
        let ports = Vec::new();
        Self { ports, next_port: 0, is_shared: false, addresses, kept, is_kept, sources, assumed_mtu }
    }

    pub(crate) fn attach(&mut self) -> PortId {
        let port = PortId(self.next_port);
        self.next_port += 1;
        self.ports.push(port);
        port
    }

    /// What comes back are the addresses that were behind `port`, in order.
    pub(crate) fn detach(&mut self, port: PortId) -> impl Iterator<Item = Mac> + use<> {
        self.ports.retain(|p| *p != port);
        let sources = self.sources.remove(&port).unwrap_or_default();
        let of_port = sources.own.into_iter().chain(sources.order.into_iter().rev());
        let of_port = of_port.filter(|mac| self.addresses.get(mac).is_some_and(|entry| entry.port == port));
        for mac in of_port.take(KEPT_OF_PORT) {
            if !self.is_kept.insert(mac) {
                self.kept.retain(|(_, kept)| *kept != mac);
            }
            self.kept.push_back((port, mac));
            if self.kept.len() > MAX_KEPT {
                let most = most_frequent(self.kept.iter().map(|(port, _)| *port).collect());
                let oldest = self.kept.iter().position(|(port, _)| Some(*port) == most);
                if let Some((_, oldest)) = oldest.and_then(|at| self.kept.remove(at)) {
                    self.is_kept.remove(&oldest);
                }
            }
        }
        let lost = self.addresses.extract_if(|_, entry| entry.port == port);
        let mut lost: Vec<Mac> = lost.map(|(mac, _)| mac).collect();
        lost.sort_unstable();
        lost.into_iter()
    }

    pub(crate) fn ports(&self) -> &[PortId] {
        &self.ports
    }

    /// Whether several machines have spoken at a time, each behind a port of its own.
    pub(crate) fn is_shared(&self) -> bool {
        self.is_shared
    }

    /// Whether `source` is known behind `port`, and as one that may speak as `ip` in that epoch of the guard.
    /// An unspecified `ip` asks for the first alone.
    #[inline]
    pub(crate) fn is_admitted(
        &mut self,
        source: Mac,
        port: PortId,
        ip: Ipv4Addr,
        epoch: u64,
        now: Instant,
    ) -> bool {
        let Some(known) = self.addresses.get_mut(&source).filter(|known| known.port == port) else {
            return false;
        };
        known.seen = now;
        known.speaks_as == (ip, epoch) || ip.is_unspecified()
    }

    /// Remembers that `source` is behind `port`, unless it is another's.
    pub(crate) fn learn(&mut self, source: Mac, port: PortId, now: Instant) -> Learned {
        if let Some(known) = self.addresses.get_mut(&source).filter(|known| known.port == port) {
            known.seen = now;
            return Learned::Known;
        }
        let own = self.sources.get(&port).and_then(|sources| sources.own);
        let is_own = own.is_none_or(|own| own == source);
        let Some(known) = self.addresses.get(&source) else {
            // A machine that comes back begins a link. One that only speaks as a machine that is gone has the
            // use of its address, no more.
            let first = if is_own || !self.is_kept.contains(&source) { port } else { GONE };
            return Learned::New(self.put(source, port, first, now));
        };
        let holder = known.port;
        let first = if now < known.since + SETTLED { known.first } else { holder };
        let is_holders_own = self.sources.get(&holder).is_some_and(|sources| sources.own == Some(source));
        match (is_own, is_holders_own) {
            (true, false) => {}
            _ if first == port => {}
            _ => return Learned::Elsewhere(holder),
        }
        self.put(source, port, port, now);
        Learned::Moved(holder)
    }

    /// `source`, which was elsewhere, is behind `port` now.
    pub(crate) fn take(&mut self, source: Mac, port: PortId, now: Instant) {
        let first = self.addresses.get(&source).map_or(port, |known| known.first);
        self.put(source, port, first, now);
    }

    /// What comes back had to make room.
    fn put(&mut self, source: Mac, port: PortId, first: PortId, now: Instant) -> Option<Mac> {
        let speaks_as = (Ipv4Addr::UNSPECIFIED, 0);
        let (since, seen, mtu) = (now, now, self.assumed_mtu);
        self.addresses.insert(source, Entry { port, first, mtu, since, seen, speaks_as });
        let sources = self.sources.entry(port).or_default();
        if sources.own.is_none() {
            sources.own = Some(source);
            let others = self.sources.iter().filter(|(other, _)| **other != port);
            self.is_shared |= others.filter_map(|(_, sources)| sources.own).any(|own| own != source);
        }
        let sources = self.sources.entry(port).or_default();
        if sources.order.contains(&source) {
            return None;
        }
        sources.order.push_back(source);
        if sources.order.len() <= MAX_ADDRESSES {
            return None;
        }
        let mut oldest = sources.order.pop_front()?;
        if Some(oldest) == sources.own {
            sources.order.push_back(oldest);
            oldest = sources.order.pop_front()?;
        }
        let is_lost = oldest != source && self.addresses.get(&oldest).is_some_and(|entry| entry.port == port);
        is_lost.then(|| self.addresses.remove(&oldest)).flatten().map(|_| oldest)
    }

    /// `source`, which is known, may speak as `ip` while the guard's epoch is this.
    pub(crate) fn may_speak_as(&mut self, source: Mac, ip: Ipv4Addr, epoch: u64) {
        if let Some(entry) = self.addresses.get_mut(&source) {
            entry.speaks_as = (ip, epoch);
        }
    }

    /// The port that `mac` is behind.
    pub(crate) fn port_of(&self, mac: Mac) -> Option<PortId> {
        self.addresses.get(&mac).map(|entry| entry.port)
    }

    /// The port that `mac` is at home behind: it is there, and was before it was anywhere else, or for long.
    pub(crate) fn home_of(&self, mac: Mac, now: Instant) -> Option<PortId> {
        let entry = self.addresses.get(&mac)?;
        (entry.first == entry.port || now >= entry.since + SETTLED).then_some(entry.port)
    }

    /// `source`, which is known, has shown to take IP packets of `len` bytes.
    pub(crate) fn shown(&mut self, source: Mac, len: usize) {
        if let Some(entry) = self.addresses.get_mut(&source) {
            entry.mtu = entry.mtu.max(u16::try_from(len).unwrap_or(u16::MAX));
        }
    }

    /// The machine behind `source` may be another one from now on.
    pub(crate) fn forget_shown(&mut self, source: Mac) {
        if let Some(entry) = self.addresses.get_mut(&source) {
            entry.mtu = self.assumed_mtu;
        }
    }

    /// The largest IP packet, in bytes, that `to` has shown to take.
    pub(crate) fn mtu(&self, to: Mac) -> u16 {
        self.addresses.get(&to).map_or(self.assumed_mtu, |entry| entry.mtu)
    }

    /// When the last frame came from `source`.
    pub(crate) fn seen(&self, source: Mac) -> Option<Instant> {
        self.addresses.get(&source).map(|entry| entry.seen)
    }

    /// When the last frame came from what is behind `port`.
    pub(crate) fn heard(&self, port: PortId) -> Option<Instant> {
        let all = self.sources.get(&port).into_iter().flat_map(|sources| &sources.order);
        let all = all.filter_map(|mac| self.addresses.get(mac)).filter(|entry| entry.port == port);
        all.map(|entry| entry.seen).max()
    }

    pub(crate) fn destination(&self, to: Mac) -> Destination {
        if to.is_group() {
            return Destination::Flood;
        }
        self.addresses.get(&to).map_or(Destination::Flood, |entry| Destination::Port(entry.port, entry.mtu))
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Mac, PortId)> + '_ {
        self.addresses.iter().map(|(mac, entry)| (*mac, entry.port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn learns_moves_and_forgets() {
        let mut switch = Switch::new(1500, 1);
        let (one, two) = (switch.attach(), switch.attach());
        assert_eq!(switch.destination(A), Destination::Flood);
        assert_eq!(switch.learn(A, one, Instant::ZERO), Learned::New(None));
        assert_eq!(switch.destination(A), Destination::Port(one, 1500));
        assert_eq!(switch.learn(A, two, Instant::from_millis(1)), Learned::Elsewhere(one));
        switch.take(A, two, Instant::ZERO);
        assert_eq!(switch.learn(A, two, Instant::ZERO), Learned::Known);
        assert_eq!(switch.destination(A), Destination::Port(two, 1500));
        assert_eq!(switch.detach(two).collect::<Vec<_>>(), [A]);
        assert_eq!(switch.destination(A), Destination::Flood);
        assert_eq!(switch.ports(), [one]);
    }

    #[test]
    fn what_was_shown_belongs_to_one_machine_at_one_port() {
        let mut switch = Switch::new(1500, 1);
        let (one, two) = (switch.attach(), switch.attach());
        switch.shown(A, 9000);
        assert_eq!(switch.mtu(A), 1500, "nobody is known by that address");
        switch.learn(A, one, Instant::ZERO);
        switch.shown(A, 9000);
        switch.shown(A, 4000);
        switch.learn(A, one, Instant::ZERO);
        assert_eq!((switch.mtu(A), switch.destination(A)), (9000, Destination::Port(one, 9000)));
        switch.take(A, two, Instant::ZERO);
        assert_eq!(switch.mtu(A), 1500, "it came to another port");
        switch.shown(A, 100_000);
        assert_eq!(switch.mtu(A), u16::MAX);
        switch.forget_shown(A);
        assert_eq!(switch.mtu(A), 1500);
        switch.shown(A, 9000);
        assert_eq!(switch.detach(two).count(), 1);
        switch.learn(A, one, Instant::ZERO);
        assert_eq!(switch.mtu(A), 1500, "the port went");
    }

    #[test]
    fn a_port_has_so_many_and_its_own_among_them() {
        let mut switch = Switch::new(1500, 1);
        let (port, other) = (switch.attach(), switch.attach());
        let victim = Mac([4; 6]);
        assert_eq!(switch.learn(victim, other, Instant::ZERO), Learned::New(None));
        let mac = |i: u32| {
            let [a, b, c, d] = i.to_be_bytes();
            Mac([2, 0, a, b, c, d])
        };
        for i in 0..3 * MAX_ADDRESSES as u32 {
            let Learned::New(lost) = switch.learn(mac(i), port, Instant::ZERO) else { panic!("{i}") };
            assert_eq!(lost.is_some(), i >= MAX_ADDRESSES as u32, "{i}");
        }
        assert_eq!(switch.addresses().count(), MAX_ADDRESSES + 1);
        assert_eq!((switch.port_of(mac(0)), switch.port_of(victim)), (Some(port), Some(other)));
    }

    #[test]
    fn who_had_an_address_first_is_at_home_there() {
        let mut switch = Switch::new(1500, 1);
        let [one, two, three] = [(); 3].map(|()| switch.attach());
        let [a, b, c] = [1, 2, 3].map(|last| Mac([2, 0, 0, 0, 0, last]));
        let now = Instant::ZERO;
        assert_eq!(switch.learn(a, one, now), Learned::New(None));
        assert_eq!(switch.learn(b, two, now), Learned::New(None));
        assert_eq!(switch.learn(a, two, now), Learned::Elsewhere(one));
        assert_eq!(switch.learn(c, two, now), Learned::New(None));
        assert_eq!(switch.learn(c, one, now), Learned::Elsewhere(two));
        assert_eq!(switch.learn(c, three, now), Learned::Moved(two), "it is the own of this one");
        assert_eq!(switch.learn(c, two, now), Learned::Elsewhere(three));
        let again = switch.attach();
        assert_eq!(switch.learn(a, again, now), Learned::Elsewhere(one), "it moved, or is a second one");
        switch.take(a, again, now);
        assert_eq!((switch.port_of(a), switch.home_of(a, now)), (Some(again), None));
        assert_eq!(switch.home_of(a, now + SETTLED), Some(again));
        assert_eq!(switch.learn(a, one, now), Learned::Moved(again), "it was here before");
        assert_eq!(switch.home_of(a, now), Some(one));
        // It is gone: who speaks as it is not at home with it, but where its link is made anew.
        assert_eq!(switch.detach(one).collect::<Vec<_>>(), [a]);
        assert_eq!(switch.learn(a, two, now), Learned::New(None));
        assert_eq!((switch.port_of(a), switch.home_of(a, now)), (Some(two), None));
        let back = switch.attach();
        assert_eq!(switch.learn(a, back, now), Learned::Moved(two));
        assert_eq!(switch.home_of(a, now), Some(back));
        // One whose link is made anew all the time takes the place of no other.
        let mut gone = |high: u8, low: u8| {
            let port = switch.attach();
            for last in 0..2 * KEPT_OF_PORT as u8 {
                switch.learn(Mac([4, 0, 0, high, low, last]), port, now);
            }
            assert_eq!(switch.detach(port).count(), 2 * KEPT_OF_PORT);
        };
        (0..=u8::MAX).for_each(|_| gone(0, 0));
        (0..=u8::MAX).for_each(|low| gone(1, low));
        assert_eq!((switch.kept.len(), switch.is_kept.len()), (MAX_KEPT, MAX_KEPT));
        assert_eq!(switch.detach(back).collect::<Vec<_>>(), [a]);
        (0..=u8::MAX).for_each(|_| {
            let port = switch.attach();
            switch.learn(b, port, now);
            drop(switch.detach(port));
        });
        assert!(switch.is_kept.contains(&a) && switch.kept.len() == MAX_KEPT);
        // Nor do several hundred links of many machines each.
        (0..=u8::MAX).for_each(|low| {
            let port = switch.attach();
            for last in 0..2 * KEPT_OF_PORT as u8 {
                switch.learn(Mac([4, 0, 0, 2, low, last]), port, now);
            }
            drop(switch.detach(port));
        });
        assert!(switch.is_kept.contains(&a) && switch.kept.len() == MAX_KEPT);
    }
}
