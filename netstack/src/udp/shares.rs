//! Who has how many flows, and in which order they were used: a flood costs whoever makes it.
//!
//! Owns: one list for each owner, threaded through the flows. May not: close a flow. Read next: `mod.rs`.

use core::net::{IpAddr, SocketAddr};
use std::collections::HashMap;

use foldhash::fast::FixedState;
use slotmap::SlotMap;

use super::{Flow, MAX_FLOWS, UdpFlowId};
use crate::PortId;

slotmap::new_key_type! {
    struct ShareId;
}

type Flows = SlotMap<UdpFlowId, Flow>;

/// Whose a flow is.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
pub(super) enum Owner {
    /// It was opened by the guest at this port.
    Guest(PortId),
    /// It was opened from outside, to this socket of a guest.
    Exposed(SocketAddr),
}

impl Owner {
    fn group(self) -> Group {
        match self {
            Self::Guest(port) => Group::Guest(port),
            Self::Exposed(socket) => Group::Exposed(socket.ip()),
        }
    }
}

/// Owners that count as one towards others: a guest may have thousands of sockets exposed.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
enum Group {
    Guest(PortId),
    Exposed(IpAddr),
}

impl Group {
    fn kind(self) -> usize {
        match self {
            Self::Guest(_) => 0,
            Self::Exposed(_) => 1,
        }
    }
}

/// A flow's place in its owner's list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Place {
    share: ShareId,
    newer: Option<UdpFlowId>,
    older: Option<UdpFlowId>,
}

#[derive(Debug)]
struct Share {
    owner: Owner,
    len: usize,
    newest: Option<UdpFlowId>,
    oldest: Option<UdpFlowId>,
}

/// The shares of all owners: of each kind [`MAX_FLOWS`] together.
#[derive(Debug)]
pub(super) struct Shares {
    shares: SlotMap<ShareId, Share>,
    by_owner: HashMap<Owner, ShareId, FixedState>,
    /// Owners and flows of each group.
    groups: HashMap<Group, Count, FixedState>,
    /// Groups and flows of each kind.
    count: [Count; 2],
    /// Flows of each kind at most.
    max: [usize; 2],
}

#[derive(Clone, Copy, Debug, Default)]
struct Count {
    members: usize,
    flows: usize,
}

impl Count {
    /// Whether a member with so many flows has its fair part of them, or more.
    fn is_fair(self, flows: usize) -> bool {
        flows * self.members >= self.flows
    }
}

impl Shares {
    pub(super) fn new(seed: u64) -> Self {
        let by_owner = HashMap::with_hasher(FixedState::with_seed(seed));
        let groups = HashMap::with_hasher(FixedState::with_seed(seed));
        let (count, max) = ([Count::default(); 2], [MAX_FLOWS; 2]);
        Self { shares: SlotMap::with_key(), by_owner, groups, count, max }
    }

    /// Of guests' flows there are no more than this.
    pub(super) fn limit(&mut self, max: usize) {
        self.max[Group::Guest(PortId(0)).kind()] = max.clamp(1, MAX_FLOWS);
    }

    /// The flow that has to make room for one more of `owner`, if any. It is the least recently used one of
    /// the owner that has most, in the group that has most.
    pub(super) fn surplus(&self, owner: Owner) -> Option<UdpFlowId> {
        let own = owner.group();
        let count = self.count[own.kind()];
        if count.flows < self.max[own.kind()] {
            return None;
        }
        // The usual case needs no search: whoever floods has a fair part already.
        let own_group = self.groups.get(&own).filter(|group| count.is_fair(group.flows));
        let (group, count) = own_group.map(|count| (own, *count)).or_else(|| {
            let alike = self.groups.iter().filter(|(group, _)| group.kind() == own.kind());
            alike.max_by_key(|(_, count)| count.flows).map(|(group, count)| (*group, *count))
        })?;
        let share = self.by_owner.get(&owner).and_then(|id| self.shares.get(*id));
        let share = share.filter(|share| group == own && count.is_fair(share.len)).or_else(|| {
            let of_group = self.shares.values().filter(|share| share.owner.group() == group);
            of_group.max_by_key(|share| share.len)
        });
        share?.oldest
    }

    /// A new flow, used now.
    pub(super) fn insert(&mut self, flows: &mut Flows, id: UdpFlowId, owner: Owner) {
        let count = &mut self.count[owner.group().kind()];
        count.flows += 1;
        let group = self.groups.entry(owner.group()).or_default();
        count.members += usize::from(group.flows == 0);
        group.flows += 1;
        let share = *self.by_owner.entry(owner).or_insert_with(|| {
            group.members += 1;
            self.shares.insert(Share { owner, len: 0, newest: None, oldest: None })
        });
        if let Some(share) = self.shares.get_mut(share) {
            share.len += 1;
        }
        self.link_newest(flows, id, share);
    }

    /// The flow is used.
    pub(super) fn touch(&mut self, flows: &mut Flows, id: UdpFlowId) {
        let Some(Place { share, newer: Some(_), .. }) = flows.get(id).map(|flow| flow.place) else { return };
        self.unlink(flows, id);
        self.link_newest(flows, id, share);
    }

    /// The flow ends.
    pub(super) fn remove(&mut self, flows: &mut Flows, id: UdpFlowId) {
        let Some(Place { share: at, .. }) = flows.get(id).map(|flow| flow.place) else { return };
        self.unlink(flows, id);
        let Some(share) = self.shares.get_mut(at) else { return };
        let (owner, group) = (share.owner, share.owner.group());
        let count = &mut self.count[group.kind()];
        count.flows -= 1;
        share.len -= 1;
        let is_last = share.len == 0;
        if let Some(of_group) = self.groups.get_mut(&group) {
            of_group.flows -= 1;
            of_group.members -= usize::from(is_last);
            if of_group.flows == 0 {
                count.members -= 1;
                self.groups.remove(&group);
            }
        }
        if is_last {
            self.by_owner.remove(&owner);
            self.shares.remove(at);
        }
    }

    fn link_newest(&mut self, flows: &mut Flows, id: UdpFlowId, at: ShareId) {
        let Some(share) = self.shares.get_mut(at) else { return };
        let older = share.newest.replace(id);
        if let Some(flow) = flows.get_mut(id) {
            flow.place = Place { share: at, newer: None, older };
        }
        match older.and_then(|older| flows.get_mut(older)) {
            Some(older) => older.place.newer = Some(id),
            None => share.oldest = Some(id),
        }
    }

    fn unlink(&mut self, flows: &mut Flows, id: UdpFlowId) {
        let Some(Place { share, newer, older }) = flows.get(id).map(|flow| flow.place) else { return };
        let Some(share) = self.shares.get_mut(share) else { return };
        match older.and_then(|older| flows.get_mut(older)) {
            Some(flow) => flow.place.newer = newer,
            None => share.oldest = newer,
        }
        match newer.and_then(|newer| flows.get_mut(newer)) {
            Some(flow) => flow.place.older = older,
            None => share.newest = older,
        }
    }
}
