//! Whose rings get more memory, and whose give some back. May not: give it back itself, which takes a system
//! call. Read next: `memory.rs`, the sums.

use core::ops::Range;
use core::time::Duration;

use super::table::queue;
use super::timers::FlowTimer;
use super::{Flow, FlowId, MAX_DEEP, Table, socket};
use crate::buffer::IdleMemory;
use crate::{Instant, PortId};

/// A flow that uses all of its ring to the guest, and has moved nothing for this long, makes room for
/// another.
const DEEP_IDLE: Duration = Duration::from_secs(1);

impl Table {
    /// Lets the flow use all of its ring to the guest, if there is memory. Beyond [`MAX_DEEP`] such flows the
    /// next of them makes room, if it stands still or its port has more of them.
    pub(super) fn deepen(&mut self, id: FlowId, now: Instant) {
        let Some(port) = self.flows.get(id).map(|flow| flow.route.port) else { return };
        if !self.budgets.get(port).is_some_and(|budget| budget.held.has_depth(self.held)) {
            return;
        }
        if self.deep.len() >= MAX_DEEP
            && let Some((owner, next)) = self.deep.pop_front()
        {
            let count = |port| self.deep.iter().filter(|(owner, _)| *owner == port).count();
            let has_more = count(owner) > count(port);
            if let Some(other) = self.flows.get_mut(next) {
                if !has_more && now < other.stirred_at + DEEP_IDLE {
                    return self.deep.push_back((owner, next));
                }
                other.deep = false;
            }
        }
        if let Some(flow) = self.flows.get_mut(id) {
            self.deep.push_back((port, id));
            flow.deep = true;
            queue(&mut self.ready, id, flow);
        }
    }

    /// Ends a flow that holds memory which others of its port need. What it holds is lost to both ends, and
    /// both are told.
    pub(super) fn make_room(&mut self, port: PortId, now: Instant) {
        let Some(budget) = self.budgets.get_mut(port) else { return };
        let Some(id) = budget.held.surplus(&mut self.flows, now) else { return };
        if let Some(flow) = self.flows.get_mut(id) {
            flow.abort();
            flow.discard();
            self.mark_ready(id);
        }
    }

    /// The next ring that is empty and has been for a while.
    pub(crate) fn poll_idle_memory(&mut self, now: Instant) -> Option<IdleMemory<'_>> {
        while let Some((id, part)) = self.littered.pop_front() {
            let littered = self.flows.get_mut(id).filter(|flow| flow.is_littered());
            let parts = littered.map_or([0..0, 0..0], Flow::litter);
            if let Some(range) = parts.get(part).cloned().filter(|_| !parts.iter().all(Range::is_empty)) {
                let flow = self.flows.get_mut(id)?;
                if part == 0 {
                    self.littered.push_front((id, 1));
                } else {
                    flow.forget_received();
                    if let Some(budget) = self.budgets.get_mut(flow.route.port) {
                        budget.held.note(id, flow, &mut self.held, now);
                    }
                }
                return flow.littered_memory(range);
            }
        }
        loop {
            let (id, ring) = self.idle.pop_front()?;
            if self.flows.get(id).is_some_and(|flow| flow.is_due(FlowTimer::Idle, now)) {
                let flow = self.flows.get_mut(id)?;
                if ring + 1 < socket::RINGS {
                    self.idle.push_front((id, ring + 1));
                } else if core::mem::take(&mut flow.deep) {
                    self.deep.retain(|(_, deep)| *deep != id);
                }
                if ring + 1 == socket::RINGS
                    && let Some(budget) = self.budgets.get_mut(flow.route.port)
                {
                    flow.forget_written();
                    budget.held.note(id, flow, &mut self.held, now);
                }
                return flow.idle_memory(ring);
            }
        }
    }

    /// Whether [`poll_idle_memory`](Self::poll_idle_memory) may have something.
    pub(crate) fn has_idle_memory(&self) -> bool {
        !(self.littered.is_empty() && self.idle.is_empty())
    }
}
