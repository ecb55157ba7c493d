//! How much guests may have under way on the control plane, each port for itself: whoever has it all waits
//! for his own.
//! Owns: the sums. May not: know what it is. Read next: `host/dns/stream.rs`, whose questions and answers it
//! bounds in bytes.

use std::collections::HashMap;
use std::sync::{Arc, Mutex, PoisonError};

use netstack::PortId;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

/// So much for each port.
#[derive(Debug)]
pub struct Budget {
    each: u32,
    /// Of those that have some of it, or wait for it.
    ports: Mutex<HashMap<PortId, Arc<Semaphore>>>,
}

/// A part of it, until it is dropped.
#[derive(Debug)]
pub struct Part(#[allow(dead_code, reason = "it is for its end")] Option<OwnedSemaphorePermit>);

impl Budget {
    /// `each` for each port.
    pub fn new(each: u32) -> Self {
        Self { each, ports: Mutex::default() }
    }

    /// Waits for `amount` of the port's; for all of it where it has less.
    pub async fn part(&self, port: PortId, amount: usize) -> Part {
        let amount = u32::try_from(amount).unwrap_or(u32::MAX).min(self.each);
        // It is never closed.
        Part(self.of(port).acquire_many_owned(amount).await.ok())
    }

    fn of(&self, port: PortId) -> Arc<Semaphore> {
        let mut ports = self.ports.lock().unwrap_or_else(PoisonError::into_inner);
        ports.retain(|_, budget| Arc::strong_count(budget) > 1);
        let all = usize::try_from(self.each).unwrap_or(usize::MAX);
        Arc::clone(ports.entry(port).or_insert_with(|| Arc::new(Semaphore::new(all))))
    }
}

#[cfg(test)]
mod tests {
    use std::future::Future as _;
    use std::pin::pin;
    use std::task::{Context, Waker};

    use super::*;

    #[tokio::test]
    async fn whoever_has_it_all_waits_and_nobody_else() {
        let budget = Budget::new(10);
        let (greedy, other) = (PortId(1), PortId(2));
        let first = budget.part(greedy, 6).await;
        let _second = budget.part(greedy, 4).await;
        let mut third = pin!(budget.part(greedy, 5));
        let mut context = Context::from_waker(Waker::noop());
        assert!(third.as_mut().poll(&mut context).is_pending());
        drop(budget.part(other, 1000).await);
        drop(first);
        assert!(third.as_mut().poll(&mut context).is_ready());
        assert_eq!(budget.ports.lock().unwrap().len(), 2);
        drop(budget.part(greedy, 0).await);
        assert_eq!(budget.ports.lock().unwrap().len(), 1, "nobody has any of the other's");
    }
}
