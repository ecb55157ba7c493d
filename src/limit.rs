//! How much a server has at work for others at a time: connections, questions. It makes room for what is new
//! by ending what has been idle longest, of whoever has most, so that neither what is kept open nor what a
//! greedy client opens keeps anybody out.
//!
//! Owns: who has how many slots, and since when each is idle. May not: touch a socket; whoever has a slot
//! gives it up when told to.
//! Read next: `api/connection.rs`, which does.

use std::cmp::Reverse;
use std::collections::{BTreeSet, HashMap};
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// At most so many slots of owners `K`: guests, or whatever is to have its share. What a call costs grows
/// with the owners, not with their slots.
#[derive(Debug)]
pub struct Limit<K> {
    max: usize,
    grace: Duration,
    table: Arc<Mutex<Table<K>>>,
}

#[derive(Debug)]
struct Table<K> {
    next: u64,
    entries: HashMap<u64, Entry<K>>,
    /// An owner without any slot has none.
    shares: HashMap<K, Share>,
}

/// One owner's places.
#[derive(Debug, Default)]
struct Share {
    /// The one that is idle first is the first.
    open: BTreeSet<(State, u64)>,
    /// How many more were told to close, and have not yet.
    closing: usize,
}

#[derive(Debug)]
struct Entry<K> {
    owner: K,
    state: State,
    close: Arc<Notify>,
}

#[derive(Clone, Copy, Debug, Eq, Ord, PartialEq, PartialOrd)]
enum State {
    /// From then on; later than now while a request may still arrive.
    Idle(Instant),
    Busy,
}

impl<K: Copy + Eq + Hash> Limit<K> {
    /// `max` slots, and as many more that were told to close and have not yet, of which no owner has so many
    /// that another finds no room. One is idle when `grace` has passed since it was given, or since a part of
    /// a request came.
    pub fn new(max: usize, grace: Duration) -> Self {
        let table = Table { next: 0, entries: HashMap::new(), shares: HashMap::new() };
        Self { max, grace, table: Arc::new(Mutex::new(table)) }
    }

    /// A slot of `owner`, for which another may be told to close. `None` where none is idle, and nobody has
    /// more than `owner`; or where too many of `owner` were told to close and have not yet.
    pub fn admit(&self, owner: K) -> Option<Slot<K>> {
        let now = Instant::now();
        let mut table = lock(&self.table);
        let closing = table.shares.get(&owner).map_or(0, |share| share.closing);
        if table.entries.len() >= self.max.saturating_mul(2) || closing * (table.shares.len() + 1) > self.max
        {
            return None;
        }
        if table.shares.values().map(|share| share.open.len()).sum::<usize>() >= self.max {
            let victim = table.idle(Some(owner), now).or_else(|| table.of_the_greediest(owner))?;
            table.tell_to_close(victim);
        }
        let (id, state, close) = (table.next, State::Idle(now + self.grace), Arc::new(Notify::new()));
        table.next += 1;
        table.entries.insert(id, Entry { owner, state, close: Arc::clone(&close) });
        table.shares.entry(owner).or_default().open.insert((state, id));
        Some(Slot { id, grace: self.grace, close, table: Arc::clone(&self.table) })
    }

    /// Tells what has been idle longest to close, as descriptors have run out. Whether there is such a slot.
    pub fn shed(&self) -> bool {
        let mut table = lock(&self.table);
        let victim = table.idle(None, Instant::now());
        victim.inspect(|&id| table.tell_to_close(id)).is_some()
    }
}

impl<K: Copy + Eq + Hash> Table<K> {
    /// What has been idle longest of whoever has most and anything idle; of those who have as many the
    /// newcomer.
    fn idle(&self, newcomer: Option<K>, now: Instant) -> Option<u64> {
        let first = self.shares.iter().filter_map(|(owner, Share { open, .. })| {
            let first = open.first().filter(|(state, _)| *state <= State::Idle(now))?;
            Some(((open.len(), Some(*owner) == newcomer, Reverse(*first)), first.1))
        });
        first.max().map(|(_, id)| id)
    }

    /// What would be idle first of whoever has most, if that is more than the newcomer will have.
    fn of_the_greediest(&self, newcomer: K) -> Option<u64> {
        let own = self.shares.get(&newcomer).map_or(0, |share| share.open.len());
        let open = self.shares.values().map(|share| &share.open);
        let most = open.max_by_key(|open| (open.len(), Reverse(open.first())))?;
        most.first().filter(|_| most.len() > own + 1).map(|(_, id)| *id)
    }

    fn tell_to_close(&mut self, id: u64) {
        let Some((entry, share)) = self.find(id) else { return };
        if share.open.remove(&(entry.state, id)) {
            share.closing += 1;
            entry.close.notify_one();
        }
    }

    fn set(&mut self, id: u64, state: State) {
        let Some((entry, share)) = self.find(id) else { return };
        if share.open.remove(&(entry.state, id)) {
            share.open.insert((state, id));
            entry.state = state;
        }
    }

    fn remove(&mut self, id: u64) {
        let Some((entry, share)) = self.find(id) else { return };
        let was_open = share.open.remove(&(entry.state, id));
        share.closing -= usize::from(!was_open);
        if share.open.is_empty() && share.closing == 0 {
            let owner = entry.owner;
            self.shares.remove(&owner);
        }
        self.entries.remove(&id);
    }

    fn find(&mut self, id: u64) -> Option<(&mut Entry<K>, &mut Share)> {
        let entry = self.entries.get_mut(&id)?;
        let share = self.shares.get_mut(&entry.owner)?;
        Some((entry, share))
    }
}

/// One slot, until it is dropped.
#[derive(Debug)]
pub struct Slot<K: Copy + Eq + Hash> {
    id: u64,
    grace: Duration,
    close: Arc<Notify>,
    table: Arc<Mutex<Table<K>>>,
}

impl<K: Copy + Eq + Hash> Slot<K> {
    /// A part of a request has come.
    pub fn set_receiving(&self) {
        self.set(State::Idle(Instant::now() + self.grace));
    }

    /// All of it has come, and it is at work.
    pub fn set_busy(&self) {
        self.set(State::Busy);
    }

    /// It is answered: the connection waits for its client.
    pub fn set_idle(&self) {
        self.set(State::Idle(Instant::now()));
    }

    /// Waits until the slot is wanted for another. It says so once.
    pub async fn told_to_close(&self) {
        self.close.notified().await;
    }

    /// What `work` gives; `None` if the slot is wanted before it is done.
    pub async fn hold<F: Future>(&self, work: F) -> Option<F::Output> {
        tokio::select! {
            biased;
            done = work => Some(done),
            () = self.told_to_close() => None,
        }
    }

    fn set(&self, state: State) {
        lock(&self.table).set(self.id, state);
    }
}

impl<K: Copy + Eq + Hash> Drop for Slot<K> {
    fn drop(&mut self) {
        lock(&self.table).remove(self.id);
    }
}

fn lock<K>(table: &Mutex<Table<K>>) -> MutexGuard<'_, Table<K>> {
    table.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    const GRACE: Duration = Duration::from_secs(2);

    fn told(connection: &Slot<char>) -> bool {
        pin!(connection.told_to_close()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_longest_makes_room() {
        let limit = Limit::new(3, GRACE);
        let connections = [(); 3].map(|()| limit.admit('a').unwrap());
        for index in [1, 0, 2] {
            connections[index].set_busy();
            pass(Duration::from_millis(1)).await;
            connections[index].set_idle();
        }
        connections[0].set_busy();
        let new = limit.admit('a').unwrap();
        assert_eq!(connections.each_ref().map(told), [false, true, false]);
        new.set_busy();
        let _newer = limit.admit('a').unwrap();
        assert_eq!(connections.each_ref().map(told), [false, false, true]);
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_one_has_a_moment_for_its_request() {
        let limit = Limit::new(1, GRACE);
        let first = limit.admit('a').unwrap();
        assert!(limit.admit('a').is_none() && !told(&first));
        pass(GRACE).await;
        assert!(limit.admit('a').is_some() && told(&first));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_makes_room_for_others() {
        let limit = Limit::new(4, GRACE);
        let other = limit.admit('b').unwrap();
        other.set_idle();
        pass(Duration::from_millis(1)).await;
        let greedy = [(); 3].map(|()| limit.admit('a').unwrap());
        let _second = limit.admit('b').unwrap();
        assert!(told(&other), "what is idle goes first, whoever has it");
        let _third = limit.admit('c').unwrap();
        assert_eq!(greedy.each_ref().map(told), [true, false, false], "then what is at work of the greedy");
        assert!(limit.admit('a').is_none(), "who may not push out those who have no more");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_close_are_bounded_too() {
        let limit = Limit::new(2, GRACE);
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(limit.admit('a').unwrap());
            open.last().unwrap().set_idle();
        }
        assert!(limit.admit('a').is_none());
        drop(open);
        assert!(limit.admit('a').is_some() && !limit.shed(), "a new one is not idle");
    }

    #[tokio::test(start_paused = true)]
    async fn those_that_do_not_close_keep_nobody_else_out() {
        let limit = Limit::new(8, Duration::ZERO);
        let greedy: Vec<_> = std::iter::from_fn(|| limit.admit('a')).take(99).collect();
        assert_eq!(greedy.len(), 13, "8, and those of them that close");
        let more: Vec<_> = std::iter::from_fn(|| limit.admit('b')).take(99).collect();
        assert_eq!(lock(&limit.table).entries.len(), 16);
        assert_eq!(more.len(), 3, "as long as there is room at all");
        drop(greedy);
        assert!(limit.admit('a').is_some());
    }

    #[tokio::test(start_paused = true)]
    async fn the_oldest_of_whoever_has_most_makes_room() {
        let limit = Limit::new(4, Duration::ZERO);
        let slots = ['b', 'a', 'a', 'a'].map(|owner| limit.admit(owner).unwrap());
        let newer = limit.admit('b').unwrap();
        assert_eq!(slots.each_ref().map(told), [false, true, false, false]);
        let third = limit.admit('b').unwrap();
        assert_eq!(slots.each_ref().map(told), [true, false, false, false], "of as many its own");
        let kept = lock(&limit.table).shares.values().map(|share| share.open.len()).sum::<usize>();
        assert_eq!(kept, 4);
        drop((slots, newer, third));
        let table = lock(&limit.table);
        assert!(table.shares.is_empty() && table.entries.is_empty(), "{table:?}");
    }

    /// A guest that goes on connecting must not cost more the more it has.
    #[tokio::test(start_paused = true)]
    async fn what_a_call_costs_does_not_grow_with_the_places() {
        let cost = |max: usize| {
            let limit = Limit::new(max, GRACE);
            let held: Vec<_> = (0..max).map(|_| limit.admit('a').unwrap()).collect();
            let start = std::time::Instant::now();
            assert!((0..4000).all(|_| limit.admit('a').is_none()));
            for _ in 0..4000 {
                held[max / 2].set_busy();
                held[max / 2].set_receiving();
            }
            start.elapsed()
        };
        let (few, many) = (cost(16), cost(4096));
        assert!(many < few * 20, "{few:?} with 16 slots, {many:?} with 4096");
    }

    #[tokio::test]
    async fn work_ends_when_its_place_is_wanted() {
        let limit = Limit::new(1, Duration::ZERO);
        assert_eq!(limit.admit('a').unwrap().hold(async { 7 }).await, Some(7));
        let first = limit.admit('a').unwrap();
        let _second = limit.admit('b').unwrap();
        assert_eq!(first.hold(std::future::pending::<()>()).await, None);
    }
}
