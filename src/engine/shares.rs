//! Whose connections take how many of the process's descriptors: a guest's own, or an exposed port's clients.
//!
//! Who has its share makes room for its newest by what has been idle for long among its own; others notice nothing.
//!
//! Owns: the order in which an owner's connections are looked at. May not: close one. Read next: `places.rs`, what a share is; `tcp.rs`.

use std::collections::{HashMap, VecDeque};
use std::time::Duration;

use netstack::{FlowId, PortId};

use super::forwards::ForwardId;
use crate::places::{Permit, Places};

/// What carried nothing for this long makes room for another where there is none.
pub(super) const IDLE: Duration = Duration::from_secs(10);
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
    places: Places,
    owners: HashMap<Owner, Share>,
}

#[derive(Debug)]
struct Share {
    places: Places,
    /// Its connections in the order in which they are looked at, the next one first; and some that are over.
    order: VecDeque<FlowId>,
}

impl Shares {
    pub(super) fn new(places: Places) -> Self {
        Self { places, owners: HashMap::new() }
    }

    fn share(&mut self, owner: Owner) -> &mut Share {
        let Self { places, owners } = self;
        if !owners.contains_key(&owner) {
            owners.retain(|_, share| share.places.taken() > 0);
        }
        owners.entry(owner).or_insert_with(|| {
            let descriptors = match owner {
                Owner::Guest(_) | Owner::Forward(_) => 1,
                // Both ends of a pair.
                Owner::AtGateway(_) => 2,
            };
            Share { places: places.taking(descriptors).for_strangers(), order: VecDeque::new() }
        })
    }

    /// The place of a new connection, if there is one.
    pub(super) fn try_take(&mut self, owner: Owner) -> Option<Permit> {
        self.share(owner).places.try_take()
    }

    /// A connection that has a place. `is_there` says whether one is not over.
    pub(super) fn add(&mut self, owner: Owner, flow: FlowId, is_there: impl Fn(FlowId) -> bool) {
        let share = self.share(owner);
        share.order.push_back(flow);
        if share.order.len() > 2 * share.places.taken() + LOOKED_AT {
            share.order.retain(|flow| is_there(*flow));
        }
    }

    /// One of the owner's that `is_idle`, by the order in which they came; `None` stands for one that is over.
    pub(super) fn idle(&mut self, owner: Owner, is_idle: impl Fn(FlowId) -> Option<bool>) -> Option<FlowId> {
        let order = &mut self.share(owner).order;
        for _ in 0..LOOKED_AT.min(order.len()) {
            let flow = order.pop_front()?;
            match is_idle(flow) {
                Some(true) => return Some(flow),
                Some(false) => order.push_back(flow),
                None => {}
            }
        }
        None
    }
}
