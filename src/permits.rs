//! How many clients forwards, tunnels and offers have together, how many connections and questions guests,
//! and how many ports are exposed, as each takes descriptors that the process has only so many of.
//!
//! Whoever has many leaves some to others: a socket whose clients all wait for a service that hangs keeps
//! nobody else's out.
//!
//! Owns: the count. May not: touch a socket; whoever has a permit gives it up by dropping it.
//! Read next: `forward/clients.rs`, whose clients wait for permits; `engine/shares.rs`, where what is idle
//! makes room.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};

use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};
use tokio::time::timeout;
use tracing::warn;

use crate::logging::Limited;

/// Descriptors that one client takes: its own, and the one that it is led to.
const PER_CLIENT: usize = 2;
/// Descriptors that clients leave alone, for listeners, links, logs, the runtime: at most these, or a quarter
/// of all.
const RESERVED: usize = 64;
/// No more, however many descriptors there may be: the network has so many flows, and some that are ending.
const MOST: usize = netstack::tcp::MAX_FLOWS / 4 * 3;
/// An owner that has less than so many times what is free may have another.
const GREED: usize = 8;
/// This part of all permits is for owners that have none, or little.
const FIRST: usize = 16;
/// How often who waits looks again though nobody has told it.
const AGAIN: Duration = Duration::from_secs(1);
/// Descriptors that exposed ports leave to clients, at the least.
const SPARE: usize = 2 * PER_CLIENT;
/// The least time between two lines of the log that say that clients wait.
const LOG_INTERVAL: Duration = Duration::from_secs(30);

/// The descriptors for them, as one of their owners sees them: a socket, the tunnels to one port, or who
/// exposes ports.
#[derive(Clone, Debug)]
pub struct Permits {
    free: Arc<Semaphore>,
    /// How many descriptors one permit takes.
    each: usize,
    /// How many of them are not for this owner; but its first.
    leaves: usize,
    has_first: bool,
    freed: Arc<Notify>,
    own: Arc<AtomicUsize>,
    log: Arc<Limited>,
}

/// The permits of many owners of one kind, each known as long as it has one, or waits for one.
#[derive(Debug)]
pub struct Owners<K> {
    like: Permits,
    known: Mutex<HashMap<K, Permits>>,
}

impl<K: Eq + Hash> Owners<K> {
    /// Each has permits as `like`.
    pub fn new(like: Permits) -> Self {
        Self { like, known: Mutex::default() }
    }

    /// Those of one of them.
    pub fn permits(&self, owner: K) -> Permits {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        known.retain(|_, permits| Arc::strong_count(&permits.own) > 1);
        known.entry(owner).or_insert_with(|| self.like.for_another()).clone()
    }
}

/// One permit, until the last copy is dropped.
#[derive(Clone, Debug)]
pub struct Permit(#[allow(dead_code, reason = "it is for its end")] Arc<Taken>);

#[derive(Debug)]
struct Taken {
    permit: Option<OwnedSemaphorePermit>,
    of: Permits,
}

impl Permits {
    /// As many as the process's limit of descriptors allows beside `others`.
    pub fn new(others: usize) -> Self {
        let descriptors = crate::sys::descriptor_limit();
        let reserved = RESERVED.min(descriptors / 4);
        Self::of(descriptors.saturating_sub(reserved + others) / PER_CLIENT * PER_CLIENT)
    }

    fn of(descriptors: usize) -> Self {
        let count = descriptors.clamp(PER_CLIENT, MOST);
        let log = Arc::new(Limited::new(1, LOG_INTERVAL));
        Self {
            free: Arc::new(Semaphore::new(count)),
            each: PER_CLIENT,
            leaves: count / FIRST,
            has_first: true,
            freed: Arc::default(),
            own: Arc::default(),
            log,
        }
    }

    /// The same permits for another owner.
    #[must_use]
    pub fn for_another(&self) -> Self {
        Self { own: Arc::default(), ..self.clone() }
    }

    /// The same descriptors for an owner whose permits take `each` of them.
    #[must_use]
    pub fn taking(&self, each: usize) -> Self {
        Self { each, leaves: self.leaves.max(SPARE), ..self.for_another() }
    }

    /// The same for ports that are exposed. An owner's first has no more right than others.
    #[must_use]
    pub fn for_ports(&self) -> Self {
        Self { has_first: false, ..self.taking(1) }
    }

    /// The same for an owner that is not the operator: a guest, or whoever comes to an exposed port. It
    /// leaves some to the operator's, and more to others of its kind.
    #[must_use]
    pub fn for_strangers(&self) -> Self {
        Self { leaves: 2 * self.leaves, ..self.for_another() }
    }

    /// How many this owner has.
    pub fn taken(&self) -> usize {
        self.own.load(Ordering::Relaxed)
    }

    /// How many descriptors that are.
    pub fn descriptors_taken(&self) -> usize {
        self.taken() * self.each
    }

    /// One, if there is one for this owner.
    pub fn try_take(&self) -> Option<Permit> {
        if !self.may_have_another() {
            return None;
        }
        Arc::clone(&self.free).try_acquire_many_owned(self.descriptors()).ok().map(|permit| self.give(permit))
    }

    /// Waits for one, in turn with other owners, for a client of the socket `name`.
    pub async fn take(&self, name: &str) -> Permit {
        if let Some(permit) = self.try_take() {
            return permit;
        }
        if self.log.admit(Instant::now()).is_some() {
            warn!(
                socket = name,
                clients = self.taken(),
                "forward: as many clients as the limit of open files allows; others wait until one leaves"
            );
        }
        self.wait().await
    }

    /// Waits for one, in turn with other owners.
    pub async fn wait(&self) -> Permit {
        loop {
            let freed = self.freed.notified();
            if self.may_have_another() {
                match Arc::clone(&self.free).acquire_many_owned(self.descriptors()).await {
                    Ok(permit) => return self.give(permit),
                    // Nobody closes it.
                    Err(_) => std::future::pending().await,
                }
            }
            // Looked at again in any case: who waits in turn may have gone, and left what it was given.
            let _ = timeout(AGAIN, freed).await;
        }
    }

    fn may_have_another(&self) -> bool {
        let (taken, free) = (self.taken(), self.free.available_permits());
        let is_first = taken == 0 && self.has_first;
        // Of what is left to others half is for those that have none, and a quarter for those that have
        // little.
        let leaves = match self.descriptors_taken() {
            0 => self.leaves / 2,
            little if little <= self.leaves / 4 => self.leaves - self.leaves / 4,
            _ => self.leaves,
        };
        is_first || free > leaves && taken * self.each < free.saturating_mul(GREED)
    }

    /// Of one permit.
    fn descriptors(&self) -> u32 {
        u32::try_from(self.each).unwrap_or(u32::MAX)
    }

    fn give(&self, permit: OwnedSemaphorePermit) -> Permit {
        self.own.fetch_add(1, Ordering::Relaxed);
        Permit(Arc::new(Taken { permit: Some(permit), of: self.clone() }))
    }
}

impl Drop for Taken {
    fn drop(&mut self) {
        // Who is woken looks at both.
        drop(self.permit.take());
        self.of.own.fetch_sub(1, Ordering::Relaxed);
        self.of.freed.notify_waiters();
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    fn take_all(permits: &Permits) -> Vec<Permit> {
        std::iter::from_fn(|| permits.try_take()).take(1000).collect()
    }

    #[test]
    fn who_takes_all_leaves_some() {
        let tunnels = Permits::of(200);
        let sockets = [(); 3].map(|()| tunnels.for_another());
        let taken = sockets.each_ref().map(take_all);
        let counts = taken.each_ref().map(Vec::len);
        assert!(counts[0] > 80 && counts.iter().all(|count| *count > 0), "{counts:?}");
        let [first, ..] = taken;
        drop(first);
        assert!(sockets[0].taken() == 0 && !take_all(&tunnels).is_empty());
    }

    /// As many as there are, each with a few: one that comes then has a permit.
    #[test]
    fn many_owners_leave_some_to_one_without_any() {
        let permits = Permits::of(200);
        let owners = [(); 40].map(|()| permits.for_another());
        let mut taken = Vec::new();
        for _ in 0..8 {
            taken.extend(owners.iter().filter_map(Permits::try_take));
        }
        assert!(taken.len() > 80, "{}", taken.len());
        let late = [(); 4].map(|()| permits.for_another());
        assert!(late.iter().all(|late| late.try_take().is_some()));
    }

    /// Beside one who has all that he may, who has little may have more.
    #[test]
    fn who_takes_all_leaves_a_few_to_each_other() {
        let permits = Permits::of(12_288).for_strangers();
        let greedy = permits.for_another();
        let _all: Vec<_> = std::iter::from_fn(|| greedy.try_take()).collect();
        let others = [(); 3].map(|()| permits.for_another());
        let few = others.each_ref().map(|other| (0..50).map_while(|_| other.try_take()).collect::<Vec<_>>());
        assert_eq!(few.each_ref().map(Vec::len), [50; 3]);
        assert!(greedy.try_take().is_none());
        assert!(permits.for_another().try_take().is_some(), "who has none");
    }

    #[test]
    fn few_are_all_used() {
        for count in [1, 4] {
            assert_eq!(take_all(&Permits::of(count * PER_CLIENT)).len(), count);
        }
    }

    /// A guest that exposes all it may keeps neither another one, nor the operator, nor clients out.
    #[test]
    fn ports_leave_some_to_clients() {
        for descriptors in [30, 200, 1000] {
            let permits = Permits::of(descriptors);
            let [guest, other, operator] = [
                permits.for_ports().for_strangers(),
                permits.for_ports().for_strangers(),
                permits.for_ports(),
            ];
            let ports = take_all(&guest);
            assert!(ports.len() > descriptors * 2 / 3, "{} of {descriptors}", ports.len());
            let [others, own] = [&other, &operator].map(take_all);
            let clients = [(); 2].map(|()| permits.for_another().try_take());
            assert!(clients.iter().all(Option::is_some), "{descriptors}");
            assert!(!own.is_empty() && (descriptors < 60 || !others.is_empty()), "{descriptors}");
            assert!(guest.try_take().is_none() && operator.try_take().is_none(), "{descriptors}");
        }
    }

    /// Each of many guests has a connection, though one had all that it may.
    #[test]
    fn connections_of_guests_leave_some_to_others() {
        let permits = Permits::of(400);
        let greedy = take_all(&permits.taking(1).for_strangers());
        assert!((300..=350).contains(&greedy.len()), "{}", greedy.len());
        let others: Vec<_> = (0..20).map(|_| take_all(&permits.taking(1).for_strangers())).collect();
        assert!(others.iter().all(|taken| !taken.is_empty()));
        assert!(!take_all(&permits.taking(1)).is_empty() && permits.for_another().try_take().is_some());
    }

    /// Who waits for a permit is the same owner as who asks next: both together have one first.
    #[test]
    fn an_owner_is_known_while_it_waits() {
        let permits = Permits::of(40);
        let owners = Owners::new(permits.for_another());
        let others = take_all(&permits);
        let (first, next) = (owners.permits(1), owners.permits(1));
        assert!(first.try_take().is_some_and(|_place| next.taken() == 1 && next.try_take().is_none()));
        drop((first, next, others));
        assert_eq!(owners.permits(2).taken(), 0);
        assert_eq!(owners.known.lock().unwrap().len(), 1);
    }

    #[tokio::test]
    async fn who_waits_is_woken() {
        let permits = Permits::of(40);
        let other = permits.for_another();
        let mut taken = take_all(&permits);
        let mut waiting = pin!(permits.take("x"));
        assert!(waiting.as_mut().poll(&mut Context::from_waker(Waker::noop())).is_pending());
        let of_another = other.try_take();
        taken.truncate(3);
        let waited = waiting.await;
        assert_eq!((permits.taken(), other.taken(), of_another.is_some()), (4, 1, true));
        drop((waited, taken));
        assert_eq!(permits.taken(), 0);
    }
}
