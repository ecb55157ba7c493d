//! What each port has. Owns: where it is. May not: know what it is.

use crate::PortId;

/// Values in the order of their ports: as few as there are links, and most often one.
#[derive(Debug)]
pub(crate) struct ByPort<V>(Vec<(PortId, V)>);

impl<V> Default for ByPort<V> {
    fn default() -> Self {
        Self(Vec::new())
    }
}

impl<V> ByPort<V> {
    #[inline]
    pub(crate) fn get_mut(&mut self, port: PortId) -> Option<&mut V> {
        match self.0.as_mut_slice() {
            [(only, value)] => (*only == port).then_some(value),
            all => {
                let index = all.binary_search_by_key(&port, |(port, _)| *port).ok()?;
                all.get_mut(index).map(|(_, value)| value)
            }
        }
    }

    #[inline]
    pub(crate) fn get(&self, port: PortId) -> Option<&V> {
        match self.0.as_slice() {
            [(only, value)] => (*only == port).then_some(value),
            all => {
                let index = all.binary_search_by_key(&port, |(port, _)| *port).ok()?;
                all.get(index).map(|(_, value)| value)
            }
        }
    }

    /// What it had before goes.
    pub(crate) fn insert(&mut self, port: PortId, value: V) {
        self.remove(port);
        let index = self.0.partition_point(|(other, _)| *other < port);
        self.0.insert(index, (port, value));
    }

    pub(crate) fn remove(&mut self, port: PortId) {
        self.0.retain(|(other, _)| *other != port);
    }

    pub(crate) fn values(&self) -> impl Iterator<Item = &V> {
        self.0.iter().map(|(_, value)| value)
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
