//! Whose connections take how many of the process's descriptors: a guest's own, or an exposed port's clients.
//!
//! Who has its share makes room for its newest by what has been idle for long among its own; where it has
//! little, by what has been so of whoever has most.
//!
//! Owns: the order in which an owner's connections are looked at. May not: close one. Read next:
//! `permits.rs`, what a share is; `tcp.rs`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use netstack::{FlowId, Instant, PortId};

use super::forwards::ForwardId;
use crate::permits::{Permit, Permits};

/// What carried nothing for this long makes room for another where there is none.
const IDLE: Duration = Duration::from_secs(10);
/// Connections looked at for one that is new.
const LOOKED_AT: usize = 64;

/// Who is charged for a connection.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Owner {
    /// A guest that dialled the host, or a client of what it exposed.
    Guest(PortId),
    /// A guest that dialled the gateway.
    AtGateway(PortId),
    /// A client of a port that the operator exposed.
    Forward(ForwardId),
}

/// All owners.
#[derive(Debug)]
pub(super) struct Shares {
    permits: Permits,
    owners: HashMap<Owner, Share>,
}

#[derive(Debug)]
struct Share {
    permits: Permits,
    /// Its connections in the order in which they are looked at, the next one first; and some that are over.
    order: VecDeque<FlowId>,
}

impl Shares {
    pub(super) fn new(permits: Permits) -> Self {
        Self { permits, owners: HashMap::new() }
    }

    fn share(&mut self, owner: Owner) -> &mut Share {
        let Self { permits, owners } = self;
        if !owners.contains_key(&owner) {
            owners.retain(|_, share| share.permits.taken() > 0);
        }
        owners.entry(owner).or_insert_with(|| {
            let descriptors = match owner {
                Owner::Guest(_) | Owner::Forward(_) => 1,
                // Both ends of a pair.
                Owner::AtGateway(_) => 2,
            };
            Share { permits: permits.taking(descriptors).for_strangers(), order: VecDeque::new() }
        })
    }

    /// The permit of a new connection, if there is one.
    pub(super) fn try_take(&mut self, owner: Owner) -> Option<Permit> {
        self.share(owner).permits.try_take()
    }

    /// A connection that has a permit. `is_there` says whether one is not over.
    pub(super) fn add(&mut self, owner: Owner, flow: FlowId, is_there: impl Fn(FlowId) -> bool) {
        let share = self.share(owner);
        share.order.push_back(flow);
        if share.order.len() > 2 * share.permits.taken() + LOOKED_AT {
            share.order.retain(|flow| is_there(*flow));
        }
    }

    /// Who has most descriptors, if that is more than twice what the owner has.
    pub(super) fn greediest(&mut self, owner: Owner) -> Option<Owner> {
        let own = self.share(owner).permits.descriptors_taken();
        let all = self.owners.iter().map(|(owner, share)| (share.permits.descriptors_taken(), *owner));
        all.max_by_key(|(taken, _)| *taken).filter(|(taken, _)| *taken > 2 * own).map(|(_, owner)| owner)
    }

    /// The one of the owner's that has been idle for the longest `now`, and for [`IDLE`], of those that are
    /// looked at in turn. `used` says when that one was used, if it is not over.
    pub(super) fn idle(
        &mut self,
        owner: Owner,
        now: Instant,
        used: impl Fn(FlowId) -> Option<Instant>,
    ) -> Option<FlowId> {
        let order = &mut self.share(owner).order;
        let mut first: Option<(Instant, FlowId)> = None;
        for _ in 0..LOOKED_AT.min(order.len()) {
            let flow = order.pop_front()?;
            let Some(used) = used(flow) else { continue };
            if used + IDLE <= now && first.is_none_or(|(before, _)| used < before) {
                order.extend(first.replace((used, flow)).map(|(_, flow)| flow));
            } else {
                order.push_back(flow);
            }
        }
        first.map(|(_, flow)| flow)
    }
}

#[cfg(test)]
mod tests {
    use slotmap::{Key as _, KeyData};

    use super::*;

    #[test]
    fn what_has_been_idle_for_the_longest_makes_room() {
        let owner = Owner::Guest(PortId(0));
        let mut shares = Shares::new(Permits::new(0));
        // When each was used, in seconds; that of 0 is over.
        let used = [3, 0, 50, 1, 48, 2];
        let flows: Vec<_> =
            (1..).map(|id| FlowId::from(KeyData::from_ffi(1 << 32 | id))).take(used.len()).collect();
        let mut there: HashMap<_, _> = flows.iter().zip(used).filter(|(_, used)| *used > 0).collect();
        assert!(flows.iter().all(|flow| !flow.is_null()));
        flows.iter().for_each(|flow| shares.add(owner, *flow, |_| true));
        let mut gone = Vec::new();
        while let Some(flow) = shares
            .idle(owner, Instant::from_secs(59), |flow| there.get(&flow).copied().map(Instant::from_secs))
        {
            gone.extend(there.remove(&flow));
        }
        assert_eq!(gone, [1, 2, 3, 48]);
    }
}
