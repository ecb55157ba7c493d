//! What is at work for others at a time, each of which costs memory and descriptors of the host. Whoever comes last
//! has a place: the oldest of whoever has most makes room, so that those whose answers never come keep nobody out.
//!
//! Owns: how many there are. May not: know what is done. Read next: `daemon.rs`, which admits questions of guests.

use std::collections::{BTreeMap, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::sync::oneshot;

/// At most so many places, of owners `K`.
#[derive(Debug)]
pub struct InFlight<K> {
    max: usize,
    table: Arc<Mutex<Table<K>>>,
}

#[derive(Debug)]
struct Table<K> {
    next: u64,
    len: usize,
    /// By age; an owner without a place has no entry. A sender that is dropped ends its work.
    owners: HashMap<K, BTreeMap<u64, oneshot::Sender<()>>>,
}

impl<K: Copy + Eq + Hash> InFlight<K> {
    /// `max` places.
    pub fn new(max: usize) -> Self {
        Self { max, table: Arc::new(Mutex::new(Table { next: 0, len: 0, owners: HashMap::new() })) }
    }

    /// A place of `owner`.
    pub fn admit(&self, owner: K) -> Place<K> {
        let mut table = lock(&self.table);
        if table.len >= self.max {
            let most = table.owners.iter().max_by_key(|(of, places)| (places.len(), **of == owner));
            let oldest = most.and_then(|(of, places)| Some((*of, *places.first_key_value()?.0)));
            oldest.inspect(|(of, number)| table.remove(of, *number));
        }
        let (number, (sender, ended)) = (table.next, oneshot::channel());
        table.next += 1;
        table.len += 1;
        table.owners.entry(owner).or_default().insert(number, sender);
        Place { owner, number, ended, table: Arc::clone(&self.table) }
    }
}

impl<K: Eq + Hash> Table<K> {
    fn remove(&mut self, owner: &K, number: u64) {
        let Some(places) = self.owners.get_mut(owner) else { return };
        self.len -= usize::from(places.remove(&number).is_some());
        if places.is_empty() {
            self.owners.remove(owner);
        }
    }
}

/// One place, until it is dropped.
#[derive(Debug)]
pub struct Place<K: Eq + Hash> {
    owner: K,
    number: u64,
    ended: oneshot::Receiver<()>,
    table: Arc<Mutex<Table<K>>>,
}

impl<K: Eq + Hash> Place<K> {
    /// What `work` gives; `None` if the place is wanted before it is done.
    pub async fn hold<F: Future>(mut self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = work => Some(done),
            _ = &mut self.ended => None,
        }
    }
}

impl<K: Eq + Hash> Drop for Place<K> {
    fn drop(&mut self) {
        lock(&self.table).remove(&self.owner, self.number);
    }
}

fn lock<K>(table: &Mutex<Table<K>>) -> MutexGuard<'_, Table<K>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn has_ended(place: &mut Place<char>) -> bool {
        place.ended.try_recv() == Err(oneshot::error::TryRecvError::Closed)
    }

    #[test]
    fn the_oldest_of_whoever_has_most_makes_room() {
        let in_flight = InFlight::new(4);
        let mut places = ['b', 'a', 'a', 'a'].map(|owner| in_flight.admit(owner));
        let _newer = in_flight.admit('b');
        assert_eq!(places.each_mut().map(has_ended), [false, true, false, false]);
        let _third = in_flight.admit('b');
        assert_eq!(places.each_mut().map(has_ended), [true, true, false, false], "of as many its own");
        drop(places);
        assert_eq!(lock(&in_flight.table).len, 2);
        let more = [(); 9].map(|()| in_flight.admit('c'));
        assert_eq!(lock(&in_flight.table).len, 4);
        drop((more, _newer, _third));
        assert!(lock(&in_flight.table).len == 0 && lock(&in_flight.table).owners.is_empty());
    }

    #[tokio::test]
    async fn work_ends_when_its_place_is_wanted() {
        let in_flight = InFlight::new(1);
        assert_eq!(in_flight.admit('a').hold(async { 7 }).await, Some(7));
        let first = in_flight.admit('a').hold(std::future::pending::<()>());
        let _second = in_flight.admit('b');
        assert_eq!(first.await, None);
    }
}
