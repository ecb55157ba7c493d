//! Connects of guests to the host that are under way, where the configuration limits them. Owns: how many
//! there are, and until when each may take. May not: connect. Read next: `tcp.rs`, which does.

use std::collections::BTreeSet;

use netstack::{FlowId, Instant};
use slotmap::SecondaryMap;

use crate::config::ConnectLimits;

/// The connects under way, if anything limits them.
#[derive(Debug, Default)]
pub(super) struct Connecting {
    limits: ConnectLimits,
    flows: SecondaryMap<FlowId, Option<Instant>>,
    deadlines: BTreeSet<(Instant, FlowId)>,
}

impl Connecting {
    pub(super) fn new(limits: ConnectLimits) -> Self {
        Self { limits, ..Self::default() }
    }

    pub(super) fn has_room(&self) -> bool {
        self.limits.max.is_none_or(|max| self.flows.len() < max)
    }

    pub(super) fn begin(&mut self, flow: FlowId, now: Instant) {
        if self.limits == ConnectLimits::default() {
            return;
        }
        let deadline = self.limits.timeout.map(|timeout| now + timeout);
        self.flows.insert(flow, deadline);
        self.deadlines.extend(deadline.map(|at| (at, flow)));
    }

    /// It is connected, has failed, or is wanted no more.
    pub(super) fn end(&mut self, flow: FlowId) {
        if let Some(Some(deadline)) = self.flows.remove(flow) {
            self.deadlines.remove(&(deadline, flow));
        }
    }

    /// When the next one has taken too long.
    pub(super) fn next(&self) -> Option<Instant> {
        self.deadlines.first().map(|(at, _)| *at)
    }

    /// One that has taken too long.
    pub(super) fn overdue(&self, now: Instant) -> Option<FlowId> {
        self.deadlines.first().filter(|(at, _)| *at <= now).map(|(_, flow)| *flow)
    }
}
