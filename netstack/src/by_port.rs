//! What each port has. Owns: where it is. May not: know what it is.

use crate::PortId;

/// Values in the order of their ports: as few as there are links, and most often one.
#[derive(Debug)]
pub struct ByPort<V>(Vec<(PortId, V)>);

impl<V> Default for ByPort<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> ByPort<V> {
    #[inline]
    fn index(&self, port: PortId) -> Option<usize> {
        match self.0.as_slice() {
            [(only, _)] => (*only == port).then_some(0),
            all => all.binary_search_by_key(&port, |(port, _)| *port).ok(),
        }
    }

    /// The port's.
    #[inline]
    pub fn get(&self, port: PortId) -> Option<&V> {
        self.0.get(self.index(port)?).map(|(_, value)| value)
    }

    /// The same, to be changed.
    #[inline]
    pub fn get_mut(&mut self, port: PortId) -> Option<&mut V> {
        let index = self.index(port)?;
        self.0.get_mut(index).map(|(_, value)| value)
    }

    /// What it had before goes.
    pub fn insert(&mut self, port: PortId, value: V) {
        self.remove(port);
        let index = self.0.partition_point(|(other, _)| *other < port);
        self.0.insert(index, (port, value));
    }

    /// It has nothing any more.
    pub fn remove(&mut self, port: PortId) {
        self.0.retain(|(other, _)| *other != port);
    }

    /// What ports have, in their order.
    pub fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
    }

    /// The same, to be changed.
    #[inline]
    pub fn values_mut(&mut self) -> impl Iterator<Item = &mut V> {
        self.0.iter_mut().map(|(_, value)| value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_port_has_its_own() {
        let mut all = ByPort::default();
        for (number, &port) in [5, 2, 9, 2].iter().enumerate() {
            all.insert(PortId(port), number);
            assert_eq!(all.get(PortId(port)), Some(&number));
        }
        assert_eq!(all.values().collect::<Vec<_>>(), [&3, &0, &2]);
        assert_eq!(
            [2, 3, 5, 9].map(|port| all.get_mut(PortId(port)).copied()),
            [Some(3), None, Some(0), Some(2)]
        );
        [5, 9, 7].into_iter().for_each(|port| all.remove(PortId(port)));
        assert_eq!([2, 9].map(|port| all.get_mut(PortId(port)).is_some()), [true, false]);
        all.remove(PortId(2));
        assert_eq!(all.get(PortId(2)), None);
    }
}
