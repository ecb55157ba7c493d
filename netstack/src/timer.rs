//! The one timer structure. Owns: what is due when. May not: read a clock.
//!
//! A deadline that moves later costs nothing: the entry in the heap fires early, and its owner arms it again.
//! So a busy flow, whose retransmission timer moves with every segment, touches the heap about once per
//! timeout.

use core::cmp::Reverse;
use std::collections::BinaryHeap;

use crate::Instant;

/// Entries per owner, and on top, that are left to fall due by themselves.
const LEFTOVERS: usize = 4;
const MIN_LEFTOVERS: usize = 1024;

/// Keys by the time at which they are due.
#[derive(Debug)]
pub(crate) struct Timers<K> {
    heap: BinaryHeap<Reverse<(Instant, K)>>,
}

impl<K: Ord + Copy> Timers<K> {
    pub(crate) fn new() -> Self {
        Self { heap: BinaryHeap::new() }
    }

    /// Makes `key` due at `deadline`, unless it is due by then anyway. `armed` is what the key's owner
    /// remembers of that.
    pub(crate) fn arm(&mut self, key: K, deadline: Instant, armed: &mut Option<Instant>) {
        if armed.is_none_or(|at| deadline < at) {
            *armed = Some(deadline);
            self.heap.push(Reverse((deadline, key)));
        }
    }

    /// The next key that is due, and the deadline that it was armed with. If the owner remembers another one,
    /// the entry is a leftover.
    pub(crate) fn pop_due(&mut self, now: Instant) -> Option<(Instant, K)> {
        let Reverse((deadline, key)) = *self.heap.peek()?;
        if deadline > now {
            return None;
        }
        self.heap.pop();
        Some((deadline, key))
    }

    /// Forgets everything: there are no owners.
    pub(crate) fn clear(&mut self) {
        self.heap.clear();
    }

    /// Throws leftovers away when they outnumber `live` owners by far. `is_armed` says whether an entry is
    /// what its key's owner remembers.
    pub(crate) fn shed(&mut self, live: usize, is_armed: impl Fn(K, Instant) -> bool) {
        if self.heap.len() > LEFTOVERS * live + MIN_LEFTOVERS {
            self.heap.retain(|Reverse((deadline, key))| is_armed(*key, *deadline));
        }
    }

    /// When the next key is due.
    pub(crate) fn next(&self) -> Option<Instant> {
        self.heap.peek().map(|Reverse((deadline, _))| *deadline)
    }
}

/// The earlier of two deadlines, or the one that there is.
pub(crate) fn earlier(one: Option<Instant>, other: Option<Instant>) -> Option<Instant> {
    match (one, other) {
        (Some(one), Some(other)) => Some(one.min(other)),
        (one, other) => one.or(other),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_deadline_that_moves_later_keeps_its_entry() {
        let mut timers = Timers::new();
        let mut armed = None;
        timers.arm(7, Instant::from_millis(10), &mut armed);
        timers.arm(7, Instant::from_millis(20), &mut armed);
        assert_eq!(timers.pop_due(Instant::from_millis(9)), None);
        assert_eq!(timers.pop_due(Instant::from_millis(10)), Some((Instant::from_millis(10), 7)));
        assert_eq!(timers.next(), None);
    }

    #[test]
    fn leftovers_are_bounded() {
        let mut timers = Timers::new();
        for key in 0..10_000_u32 {
            timers.arm(key, Instant::from_millis(10), &mut None);
            timers.shed(1, |known, _| known == key);
            assert!(timers.heap.len() <= LEFTOVERS + MIN_LEFTOVERS);
        }
        assert!(timers.pop_due(Instant::from_millis(10)).is_some());
    }

    #[test]
    fn an_earlier_deadline_comes_first() {
        let mut timers = Timers::new();
        let mut armed = None;
        timers.arm(7, Instant::from_millis(20), &mut armed);
        timers.arm(7, Instant::from_millis(10), &mut armed);
        assert_eq!(timers.next(), Some(Instant::from_millis(10)));
        assert_eq!(armed, Some(Instant::from_millis(10)));
    }
}
