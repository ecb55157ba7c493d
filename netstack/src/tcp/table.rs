//! The bookkeeping of the flow table: flows by id and by ends, which of them have something to do, and which
//! make room. May not: look into a segment. Read next: `open.rs`, how flows come into it; `segment.rs`, what
//! finds them there.

use core::net::{Ipv4Addr, SocketAddr};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use slotmap::SlotMap;
use smoltcp::wire::TcpSeqNumber;

use super::blocked::Blocked;
use super::flow::Reset;
use super::memory::{self, Held};
use super::replay::ReplayBudget;
use super::sequence::InitialSequence;
use super::socket::Interface;
use super::window::WindowBudget;
use super::{Budgets, Flow, FlowId, MAX_FLOWS, MAX_OPENING, MAX_ORPHANS, Phase, Table};
use crate::counters::Ports;
use crate::ends::Ends;
use crate::ipv4::Route;
use crate::keys::Keys;
use crate::limit::Limit;
use crate::link::most_frequent;
use crate::timer::Timers;
use crate::turns::Turns;
use crate::{ByPort, DropCounts, DropReason, Guest, Instant, Mac, PortId};

/// When fewer places than this are left, an eighth of the flows of the port that has most ends; at most so
/// often.
const SPARE: usize = MAX_FLOWS / 16;
const SPARE_INTERVAL: Duration = Duration::from_millis(100);
/// Sockets kept for new flows: with two pages each, half a megabyte.
const POOL: usize = 64;

impl Table {
    pub(crate) fn new(mtu: u16, gateway_mac: Mac, keys: &Keys, now: Instant) -> Self {
        Self {
            interface: Interface::new(usize::from(mtu), TcpSeqNumber(0), now),
            initial: InitialSequence(keys.sequence),
            mtu,
            gateway_mac,
            flows: SlotMap::with_key(),
            keys: HashMap::with_hasher(FixedState::with_seed(keys.tables)),
            surplus: Limit::new(SPARE_INTERVAL, 1, now),
            deep: VecDeque::new(),
            held: 0,
            max_opening: MAX_OPENING,
            ready: Turns::default(),
            orphans: VecDeque::new(),
            blocked: Blocked::default(),
            crowded: None,
            littered: VecDeque::new(),
            idle: VecDeque::new(),
            timers: Timers::new(),
            questions: Timers::new(),
            budgets: ByPort::default(),
            pool: Vec::new(),
            ports: Ports::new(keys.tcp_ports),
            scratch: Vec::new(),
            rewritten: Vec::new(),
        }
    }

    pub(crate) fn attach(&mut self, port: PortId, now: Instant) {
        let (window, replay) = (WindowBudget::new(now), ReplayBudget::new(now));
        self.budgets
            .insert(port, Budgets { window, replay, held: Held::default(), opening: VecDeque::new() });
    }

    /// Ends the flows of a port that is gone. Their drivers see [`Phase::Aborted`].
    pub(crate) fn detach(&mut self, port: PortId) {
        self.budgets.remove(port);
        self.cut_off(|flow| flow.route.port == port);
        self.ready.tidy();
        self.blocked.forget(port);
    }

    /// The guest with this address is behind `port` now: where it was before nobody is reached any more.
    pub(crate) fn forget_guest(&mut self, guest: Ipv4Addr, port: PortId) {
        self.cut_off(|flow| {
            flow.guest.ip() == guest && flow.route != Route::NOWHERE && flow.route.port != port
        });
    }

    fn cut_off(&mut self, is_gone: impl Fn(&Flow) -> bool) {
        let gone: Vec<FlowId> =
            self.flows.iter().filter(|(_, flow)| is_gone(flow)).map(|(id, _)| id).collect();
        for id in gone {
            self.give_up(id);
        }
    }

    /// Nothing reaches the flow's guest any more.
    fn give_up(&mut self, id: FlowId) {
        self.uncharge(id);
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.cut_off();
        // The guest may come back, and call another connection by the same name.
        let ends = Ends { guest: flow.guest, remote: flow.remote };
        if self.keys.get(&ends) == Some(&id) {
            self.keys.remove(&ends);
        }
        self.mark_ready(id);
    }

    pub(crate) fn limit_opening(&mut self, max: usize) {
        self.max_opening = max;
    }

    /// The guest behind `port` opens one more.
    pub(super) fn begin_opening(&mut self, port: PortId, id: FlowId, drops: &mut DropCounts) {
        let Some(budgets) = self.budgets.get_mut(port) else { return };
        budgets.opening.push_back(id);
        if budgets.opening.len() <= 2 * self.max_opening {
            return;
        }
        let flows = &self.flows;
        budgets.opening.retain(|id| flows.get(*id).is_some_and(Flow::is_opening));
        let excess = budgets.opening.len().saturating_sub(self.max_opening);
        if excess > self.max_opening / 2 {
            let oldest: Vec<FlowId> = budgets.opening.drain(..excess).collect();
            for id in oldest {
                drops.count(DropReason::Flows);
                self.give_up(id);
            }
        }
    }

    /// The guest with this address has another hardware address, behind the same port.
    pub(crate) fn readdress(&mut self, guest: Ipv4Addr, route: Route) {
        for flow in self.flows.values_mut() {
            if flow.guest.ip() == guest && flow.route.port == route.port {
                flow.route = route;
            }
        }
    }

    pub(crate) fn len(&self) -> usize {
        self.flows.len()
    }

    #[inline]
    pub(crate) fn get_mut(&mut self, id: FlowId) -> Option<&mut Flow> {
        let flow = self.flows.get_mut(id)?;
        if memory::may_have_pressure(self.held)
            && let Some(budget) = self.budgets.get(flow.route.port)
        {
            flow.pressure = budget.held.pressure(self.held);
        }
        Some(flow)
    }

    /// The guest's end, and the port that it is behind.
    pub(crate) fn guest(&self, id: FlowId) -> Option<Guest> {
        let flow = self.flows.get(id)?;
        let SocketAddr::V4(guest) = flow.guest else { return None };
        Some(Guest { address: *guest.ip(), port: flow.route.port, mac: flow.route.to })
    }

    /// The next flow that has something to do.
    #[inline]
    pub(crate) fn poll_ready(&mut self) -> Option<FlowId> {
        loop {
            let id = self.ready.pop()?;
            if let Some(flow) = self.flows.get_mut(id) {
                flow.queued = false;
                return Some(id);
            }
        }
    }

    /// How many those are, about; none where it is 0.
    pub(crate) fn ready_len(&self) -> usize {
        self.ready.len() + usize::from(self.blocked.is_waking())
    }

    pub(crate) fn mark_ready(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            queue(&mut self.ready, id, flow);
        }
    }

    /// The port may have room again.
    pub(crate) fn handle_room(&mut self, port: PortId) {
        self.blocked.note_room(port);
        self.wake();
    }

    #[inline]
    pub(super) fn wake(&mut self) {
        if !self.blocked.is_waking() {
            return;
        }
        self.blocked.wake(|id| {
            if let Some(flow) = self.flows.get_mut(id) {
                flow.blocked = false;
                queue(&mut self.ready, id, flow);
            }
        });
    }

    /// The driver is done with the flow. What is queued is still sent, and behind it the FIN or RST that is
    /// owed. What the guest goes on to send is answered with a RST.
    pub(crate) fn release(&mut self, id: FlowId, abort: bool, drops: &mut DropCounts) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.released = true;
        let waits = flow.waits_for_guest();
        match abort {
            true => flow.reset = Reset::Asked,
            false if waits => {
                flow.finish();
                flow.leave();
            }
            false => {}
        }
        if flow.phase() == Phase::Open {
            self.bound_orphans(id, drops);
        }
        self.mark_ready(id);
    }

    /// One more flow waits that nobody hears any more. Of too many, the oldest of the port that has most are
    /// reset.
    fn bound_orphans(&mut self, id: FlowId, drops: &mut DropCounts) {
        self.orphans.push_back(id);
        if self.orphans.len() <= MAX_ORPHANS {
            return;
        }
        let flows = &mut self.flows;
        self.orphans.retain(|id| flows.get(*id).is_some_and(|flow| flow.phase() == Phase::Open));
        if self.orphans.len() <= MAX_ORPHANS {
            return;
        }
        let ports = self.orphans.iter().filter_map(|id| flows.get(*id)).map(|flow| flow.route.port);
        let most = most_frequent(ports.collect());
        let mut surplus = MAX_ORPHANS / 8;
        self.orphans.retain(|id| {
            let Some(flow) = flows.get_mut(*id) else { return false };
            let goes = surplus > 0 && Some(flow.route.port) == most;
            if goes {
                surplus -= 1;
                drops.count(DropReason::Flows);
                flow.abort();
                queue(&mut self.ready, *id, flow);
            }
            !goes
        });
    }

    /// Whether there is a place for one more flow. When few are left, flows of the port that has most end:
    /// first those that nobody waits for any more, then those whose guests have been silent for the longest.
    pub(super) fn ensure_place(&mut self, now: Instant, drops: &mut DropCounts) -> Result<(), DropReason> {
        if self.flows.len() + SPARE >= MAX_FLOWS && self.surplus.allows(now) {
            let most = most_frequent(self.flows.values().map(|flow| flow.route.port).collect());
            let of_most = self.flows.iter().filter(|(_, flow)| Some(flow.route.port) == most);
            let not_over = of_most.filter(|(_, flow)| flow.released || flow.phase() != Phase::Aborted);
            let mut idle: Vec<_> =
                not_over.map(|(id, flow)| (!flow.released, flow.keepalive.heard(), id)).collect();
            let surplus = idle.len() / 8;
            if surplus > 0 {
                idle.select_nth_unstable(surplus);
            }
            for (is_driven, _, id) in idle.into_iter().take(surplus) {
                drops.count(DropReason::Flows);
                match self.flows.get_mut(id).filter(|_| is_driven) {
                    Some(flow) => {
                        flow.abort();
                        queue(&mut self.ready, id, flow);
                    }
                    None => self.end(id),
                }
            }
        }
        if self.flows.len() < MAX_FLOWS { Ok(()) } else { Err(DropReason::Flows) }
    }

    pub(super) fn insert(&mut self, flow: Flow) -> FlowId {
        let ends = Ends { guest: flow.guest, remote: flow.remote };
        let id = self.flows.insert(flow);
        self.keys.insert(ends, id);
        let flows = &self.flows;
        self.timers.shed(flows.len(), |id, at| flows.get(id).is_some_and(|flow| flow.armed == Some(at)));
        self.questions
            .shed(flows.len(), |id, at| flows.get(id).is_some_and(|flow| flow.asked_at == Some(at)));
        id
    }

    /// Removes a flow that is over, and keeps its socket for the next one.
    pub(super) fn end(&mut self, id: FlowId) {
        let Some(flow) = self.remove(id) else { return };
        if let Some(socket) = flow.into_pool()
            && self.pool.len() < POOL
        {
            self.pool.push(socket);
        }
    }

    /// Gives back what the flow is charged with, while its route still tells to which port.
    pub(super) fn uncharge(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let (charged, port) = (core::mem::take(&mut flow.charged), flow.route.port);
        self.held -= charged;
        if let Some(budget) = self.budgets.get_mut(port) {
            budget.held.forget(charged, &self.flows);
        }
    }

    #[inline(always)]
    pub(super) fn remove(&mut self, id: FlowId) -> Option<Flow> {
        self.uncharge(id);
        let flow = self.flows.get(id)?;
        if flow.deep {
            self.deep.retain(|(_, deep)| *deep != id);
        }
        let ends = Ends { guest: flow.guest, remote: flow.remote };
        if self.keys.get(&ends) == Some(&id) {
            self.keys.remove(&ends);
        }
        if self.flows.len() == 1 {
            debug_assert_eq!(self.held, 0, "nothing holds what is charged");
            debug_assert!(self.budgets.values().all(|budget| budget.held.is_nothing()));
            // So that nothing wakes a daemon that has nothing to do.
            self.timers.clear();
            self.questions.clear();
        }
        self.flows.remove(id)
    }
}

/// Puts the flow into the list of those that have something to do, once.
#[inline(always)]
pub(super) fn queue(ready: &mut Turns<FlowId>, id: FlowId, flow: &mut Flow) {
    if !core::mem::replace(&mut flow.queued, true) {
        ready.push(flow.route.port, id);
    }
}
