//! The learning switch. Owns: which port has which hardware address. May not: look past the Ethernet header.
//! Read next: `lib.rs`, `Stack::handle_frame`.

use std::collections::HashMap;

use foldhash::fast::FixedState;

use crate::{Mac, PortId};

/// Addresses remembered at most; a guest can invent them.
const MAX_ADDRESSES: usize = 4096;

/// Where a frame goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Destination {
    /// To this port only.
    Port(PortId),
    /// To every port but the sender's: broadcast, multicast, or an address not yet seen.
    Flood,
}

#[derive(Debug)]
pub(crate) struct Switch {
    ports: Vec<PortId>,
    next_port: u32,
    addresses: HashMap<Mac, PortId, FixedState>,
}

impl Switch {
    pub(crate) fn new(seed: u64) -> Self {
        Self { ports: Vec::new(), next_port: 0, addresses: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    pub(crate) fn attach(&mut self) -> PortId {
        let port = PortId(self.next_port);
        self.next_port += 1;
        self.ports.push(port);
        port
    }

    pub(crate) fn detach(&mut self, port: PortId) {
        self.ports.retain(|p| *p != port);
        self.addresses.retain(|_, p| *p != port);
    }

    pub(crate) fn ports(&self) -> &[PortId] {
        &self.ports
    }

    /// Remembers that `source` is behind `port`. A full table learns nothing more: frames to the rest are flooded.
    pub(crate) fn learn(&mut self, source: Mac, port: PortId) {
        if let Some(known) = self.addresses.get_mut(&source) {
            *known = port;
        } else if self.addresses.len() < MAX_ADDRESSES {
            self.addresses.insert(source, port);
        }
    }

    pub(crate) fn destination(&self, to: Mac) -> Destination {
        if to.is_group() {
            return Destination::Flood;
        }
        self.addresses.get(&to).map_or(Destination::Flood, |port| Destination::Port(*port))
    }

    pub(crate) fn addresses(&self) -> impl Iterator<Item = (Mac, PortId)> + '_ {
        self.addresses.iter().map(|(mac, port)| (*mac, *port))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const A: Mac = Mac([2, 0, 0, 0, 0, 1]);

    #[test]
    fn learns_moves_and_forgets() {
        let mut switch = Switch::new(1);
        let (one, two) = (switch.attach(), switch.attach());
        assert_eq!(switch.destination(A), Destination::Flood);
        switch.learn(A, one);
        assert_eq!(switch.destination(A), Destination::Port(one));
        switch.learn(A, two);
        assert_eq!(switch.destination(A), Destination::Port(two));
        switch.detach(two);
        assert_eq!(switch.destination(A), Destination::Flood);
        assert_eq!(switch.ports(), [one]);
    }

    #[test]
    fn is_bounded() {
        let mut switch = Switch::new(1);
        let port = switch.attach();
        for i in 0..=MAX_ADDRESSES as u32 {
            let [a, b, c, d] = i.to_be_bytes();
            switch.learn(Mac([2, 0, a, b, c, d]), port);
        }
        assert_eq!(switch.addresses().count(), MAX_ADDRESSES);
    }
}
