//! How many connections a server has at a time. It makes room for a new one by closing the one that has been idle longest, of whoever
//! has most, so that neither what is kept open nor what a greedy client opens keeps anybody out.
//!
//! Owns: who is connected, and since when each connection waits for its client. May not: touch a socket; whoever serves a connection
//! closes it when told to. Read next: `api/connection.rs`, which does.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a request may take to arrive, from the connection's begin or from its head on, before the connection counts as idle.
const GRACE: Duration = Duration::from_secs(2);

/// At most so many connections of owners `K`: guests, or whatever is to have its share.
#[derive(Debug)]
pub struct ConnectionLimit<K> {
    max: usize,
    table: Arc<Mutex<Table<K>>>,
}

#[derive(Debug)]
struct Table<K> {
    next: u64,
    entries: HashMap<u64, Entry<K>>,
}

#[derive(Debug)]
struct Entry<K> {
    owner: K,
    /// When it was idle first; later than now while a request may still arrive, `None` while one is at work.
    idle_at: Option<Instant>,
    /// It was told to close, and counts no more.
    closing: bool,
    close: Arc<Notify>,
}

impl<K: Clone + Eq + Hash> ConnectionLimit<K> {
    /// `max` connections, and as many more that were told to close and have not yet.
    pub fn new(max: usize) -> Self {
        let table = Table { next: 0, entries: HashMap::new() };
        Self { max, table: Arc::new(Mutex::new(table)) }
    }

    /// A place for a new connection of `owner`, for which another may be told to close. `None` where none is idle, and nobody has more
    /// than `owner`.
    pub fn admit(&self, owner: K) -> Option<Admitted<K>> {
        let now = Instant::now();
        let mut table = lock(&self.table);
        if table.entries.len() >= self.max.saturating_mul(2) {
            return None;
        }
        if table.open().count() >= self.max {
            let victim = table.victim(Some(&owner), now)?;
            table.tell_to_close(victim);
        }
        let (id, close) = (table.next, Arc::new(Notify::new()));
        table.next += 1;
        let entry = Entry { owner, idle_at: Some(now + GRACE), closing: false, close: Arc::clone(&close) };
        table.entries.insert(id, entry);
        Some(Admitted { id, close, table: Arc::clone(&self.table) })
    }

    /// Tells the connection that has been idle longest to close, as descriptors have run out. Whether there is one.
    pub fn shed(&self) -> bool {
        let mut table = lock(&self.table);
        let victim = table.victim(None, Instant::now());
        victim.inspect(|&id| table.tell_to_close(id)).is_some()
    }
}

impl<K: Clone + Eq + Hash> Table<K> {
    fn open(&self) -> impl Iterator<Item = (u64, &Entry<K>)> {
        self.entries.iter().filter(|(_, entry)| !entry.closing).map(|(&id, entry)| (id, entry))
    }

    /// Who has to make room for a connection of `newcomer`: what is idle of whoever has most, then what is idle at all, then what is at
    /// work of whoever has more than the newcomer.
    fn victim(&self, newcomer: Option<&K>, now: Instant) -> Option<u64> {
        let mut counts = HashMap::new();
        for (_, entry) in self.open() {
            *counts.entry(&entry.owner).or_insert(0usize) += 1;
        }
        let own = newcomer.and_then(|owner| counts.get(owner)).copied().unwrap_or(0);
        let most = counts.values().copied().max()?;
        let is_idle = |entry: &Entry<K>| entry.idle_at.is_some_and(|at| at <= now);
        let has_most = |entry: &Entry<K>| counts.get(&entry.owner) == Some(&most);
        let oldest = |passes: &dyn Fn(&Entry<K>) -> bool| {
            let passing = self.open().filter(|(_, entry)| passes(entry));
            passing.min_by_key(|(id, entry)| (entry.idle_at.is_none(), entry.idle_at, *id)).map(|(id, _)| id)
        };
        oldest(&|entry| has_most(entry) && is_idle(entry))
            .or_else(|| oldest(&is_idle))
            .or_else(|| oldest(&|entry| newcomer.is_some() && most > own + 1 && has_most(entry)))
    }

    fn tell_to_close(&mut self, id: u64) {
        if let Some(entry) = self.entries.get_mut(&id) {
            entry.closing = true;
            entry.close.notify_one();
        }
    }
}

/// The place of one connection, for as long as it is served.
#[derive(Debug)]
pub struct Admitted<K> {
    id: u64,
    close: Arc<Notify>,
    table: Arc<Mutex<Table<K>>>,
}

impl<K> Admitted<K> {
    /// A part of a request has come.
    pub fn set_receiving(&self) {
        self.set(Some(Instant::now() + GRACE));
    }

    /// All of it has come, and it is at work.
    pub fn set_busy(&self) {
        self.set(None);
    }

    /// It is answered: the connection waits for its client.
    pub fn set_idle(&self) {
        self.set(Some(Instant::now()));
    }

    /// Waits until the connection has to close to make room for another. It says so once.
    pub async fn told_to_close(&self) {
        self.close.notified().await;
    }

    fn set(&self, idle_at: Option<Instant>) {
        if let Some(entry) = lock(&self.table).entries.get_mut(&self.id) {
            entry.idle_at = idle_at;
        }
    }
}

impl<K> Drop for Admitted<K> {
    fn drop(&mut self) {
        lock(&self.table).entries.remove(&self.id);
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

    fn told(connection: &Admitted<char>) -> bool {
        pin!(connection.told_to_close()).poll(&mut Context::from_waker(Waker::noop())).is_ready()
    }

    async fn pass(time: Duration) {
        tokio::time::advance(time).await;
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_idle_longest_makes_room() {
        let limit = ConnectionLimit::new(3);
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
        let limit = ConnectionLimit::new(1);
        let first = limit.admit('a').unwrap();
        assert!(limit.admit('a').is_none() && !told(&first));
        pass(GRACE).await;
        assert!(limit.admit('a').is_some() && told(&first));
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_has_most_makes_room_for_others() {
        let limit = ConnectionLimit::new(4);
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
        let limit = ConnectionLimit::new(2);
        let mut open = Vec::new();
        for _ in 0..4 {
            open.push(limit.admit('a').unwrap());
            open.last().unwrap().set_idle();
        }
        assert!(limit.admit('a').is_none());
        drop(open);
        assert!(limit.admit('a').is_some() && !limit.shed(), "a new one is not idle");
    }
}
