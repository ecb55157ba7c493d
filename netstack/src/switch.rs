//! The learning switch. Owns: which port has which hardware address, when it was last seen, and the largest packet that it has shown to
//! take. May not: look past the Ethernet header. Read next: `lib.rs`, `Stack::handle_frame`; `mtu.rs`, what a frame shows.

use std::collections::HashMap;

use foldhash::fast::FixedState;
use smoltcp::time::Instant;

use crate::{Mac, PortId};

/// Addresses remembered at most; a guest can invent them.
const MAX_ADDRESSES: usize = 4096;

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
    /// It is where it was, or the table is full.
    Nothing,
    /// It was not known anywhere.
    New,
    /// It was behind this port.
    Moved(PortId),
}

#[derive(Debug)]
pub(crate) struct Switch {
    ports: Vec<PortId>,
    next_port: u32,
    addresses: HashMap<Mac, Entry, FixedState>,
    assumed_mtu: u16,
}

#[derive(Debug)]
struct Entry {
    port: PortId,
    mtu: u16,
    /// When a frame came from it.
    seen: Instant,
}

impl Switch {
    /// `assumed_mtu` is what every guest takes.
    pub(crate) fn new(assumed_mtu: u16, seed: u64) -> Self {
        let addresses = HashMap::with_hasher(FixedState::with_seed(seed));
        Self { ports: Vec::new(), next_port: 0, addresses, assumed_mtu }
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
        let lost = self.addresses.extract_if(|_, entry| entry.port == port);
        let mut lost: Vec<Mac> = lost.map(|(mac, _)| mac).collect();
        lost.sort_unstable();
        lost.into_iter()
    }

    pub(crate) fn ports(&self) -> &[PortId] {
        &self.ports
    }

    /// Remembers that `source` is behind `port`. A full table learns nothing more: frames to the rest are flooded.
    pub(crate) fn learn(&mut self, source: Mac, port: PortId, now: Instant) -> Learned {
        let mtu = self.assumed_mtu;
        let has_room = self.addresses.len() < MAX_ADDRESSES;
        match self.addresses.get_mut(&source) {
            Some(known) if known.port == port => {
                known.seen = now;
                Learned::Nothing
            }
            Some(known) => Learned::Moved(std::mem::replace(known, Entry { port, mtu, seen: now }).port),
            None if has_room => {
                self.addresses.insert(source, Entry { port, mtu, seen: now });
                Learned::New
            }
            None => Learned::Nothing,
        }
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
        assert_eq!(switch.learn(A, one, Instant::ZERO), Learned::New);
        assert_eq!(switch.destination(A), Destination::Port(one, 1500));
        assert_eq!(switch.learn(A, two, Instant::ZERO), Learned::Moved(one));
        assert_eq!(switch.learn(A, two, Instant::ZERO), Learned::Nothing);
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
        switch.learn(A, two, Instant::ZERO);
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
    fn is_bounded() {
        let mut switch = Switch::new(1500, 1);
        let port = switch.attach();
        for i in 0..=MAX_ADDRESSES as u32 {
            let [a, b, c, d] = i.to_be_bytes();
            let learned = switch.learn(Mac([2, 0, a, b, c, d]), port, Instant::ZERO);
            assert_eq!(learned == Learned::New, i < MAX_ADDRESSES as u32);
        }
        assert_eq!(switch.addresses().count(), MAX_ADDRESSES);
    }
}
