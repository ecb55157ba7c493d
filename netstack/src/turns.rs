//! What waits for its turn, by port or another owner: an owner with thousands of things to do holds up nobody
//! else.
//! Owns: the order. May not: know what it is.

use std::collections::VecDeque;

use crate::PortId;

/// More queues than owners that are there at a time, about: some are of ports that are gone.
const MANY: usize = 512;

/// Queues of owners, of which each gives one in turn.
#[derive(Debug)]
pub struct Turns<T, O = PortId> {
    /// As few as there are links, and looked through for that.
    queues: Vec<(O, VecDeque<T>)>,
    /// Whose turn it is.
    next: usize,
    len: usize,
}

impl<T, O> Default for Turns<T, O> {
    fn default() -> Self {
        Self { queues: Vec::new(), next: 0, len: 0 }
    }
}

impl<T, O: Copy + PartialEq> Turns<T, O> {
    /// Puts it behind the others of its owner.
    #[inline]
    pub fn push(&mut self, owner: O, item: T) {
        self.len += 1;
        match self.queues.as_mut_slice() {
            // Where there is one link all of it costs what one queue does.
            [(only, queue)] if *only == owner => queue.push_back(item),
            _ => self.push_among(owner, item),
        }
    }

    #[inline(never)]
    fn push_among(&mut self, owner: O, item: T) {
        match self.queues.iter_mut().find(|(other, _)| *other == owner) {
            Some((_, queue)) => queue.push_back(item),
            None => {
                if self.queues.len() >= MANY {
                    self.tidy();
                }
                self.queues.push((owner, VecDeque::from([item])));
            }
        }
    }

    /// The first of the next owner that has something.
    #[inline]
    pub fn pop(&mut self) -> Option<T> {
        if self.len == 0 {
            return None;
        }
        self.len -= 1;
        match self.queues.as_mut_slice() {
            [(_, queue)] => queue.pop_front(),
            _ => self.pop_among(),
        }
    }

    #[inline(never)]
    fn pop_among(&mut self) -> Option<T> {
        loop {
            if self.next >= self.queues.len() {
                self.next = 0;
            }
            let (_, queue) = self.queues.get_mut(self.next)?;
            self.next += 1;
            if let Some(item) = queue.pop_front() {
                return Some(item);
            }
        }
    }

    /// The first of one owner.
    pub fn pop_of(&mut self, owner: O) -> Option<T> {
        let (_, queue) = self.queues.iter_mut().find(|(other, _)| *other == owner)?;
        let item = queue.pop_front()?;
        self.len -= 1;
        Some(item)
    }

    /// How many wait, of all owners.
    #[inline]
    pub fn len(&self) -> usize {
        self.len
    }

    /// Whether nothing waits.
    pub fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Forgets the queues that have nothing: those of ports that are gone among them.
    pub fn tidy(&mut self) {
        self.queues.retain(|(_, queue)| !queue.is_empty());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_each_port_in_turn() {
        let (mut turns, few, many) = (Turns::default(), PortId(1), PortId(2));
        (0..1000).for_each(|number| turns.push(many, number));
        turns.push(few, 1000);
        turns.push(few, 1001);
        assert_eq!(turns.len(), 1002);
        let first: Vec<i32> = (0..6).filter_map(|_| turns.pop()).collect();
        assert_eq!(first, [0, 1000, 1, 1001, 2, 3]);
        turns.push(few, 1002);
        assert_eq!([turns.pop(), turns.pop()], [Some(1002), Some(4)]);
        assert_eq!([turns.pop_of(few), turns.pop_of(many)], [None, Some(5)]);
        turns.tidy();
        assert_eq!(turns.queues.len(), 1);
        assert_eq!(core::iter::from_fn(|| turns.pop()).count(), 994);
        turns.tidy();
        assert!(turns.is_empty() && turns.queues.is_empty() && turns.pop().is_none());
        for port in 0..10_000 {
            turns.push(PortId(port), 0);
            turns.pop();
        }
        assert!(turns.queues.len() <= MANY, "{}", turns.queues.len());
    }
}
