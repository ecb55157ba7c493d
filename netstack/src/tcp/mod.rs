//! TCP (RFC 9293). Owns: the flow table. May not: open a connection on the host (that is the driver's, asked by
//! [`crate::Event::TcpOpen`]). Read next: `flow.rs`, what one flow is; `window.rs`, what a guest is offered.
//!
//! A guest's SYN is held until the driver has connected the other end, so that what the guest sees is what happened:
//! connected, refused, unreachable, or silence.

mod blocked;
mod device;
mod flow;
mod keepalive;
mod memory;
mod recovery;
mod replay;
mod sequence;
mod socket;
mod window;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::ops::{Range, RangeInclusive};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use slotmap::SlotMap;
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpControl, TcpOption, TcpPacket, TcpRepr, TcpSeqNumber};

pub use flow::{Abort, Flow, Phase};
pub(crate) use window::WindowBudget;

use crate::buffer::IdleMemory;
use crate::by_port::ByPort;
use crate::counters::Ports;
use crate::ends::Ends;
use crate::ether::{self, EtherType};
use crate::icmp::{Fault, Report};
use crate::ipv4::{self, Route};
use crate::keys::Keys;
use crate::limit::Limit;
use crate::link::most_frequent;
use crate::timer::{Timers, earlier};
use crate::turns::Turns;
use crate::{DropCounts, DropReason, FrameSink, Guest, Instant, Mac, PortId};
use blocked::Blocked;
use device::OneCall;
use flow::{Reset, Stage};
use memory::{Held, Plenty};
use recovery::Verdict;
use replay::ReplayBudget;
use sequence::InitialSequence;
use socket::{Interface, Socket, State};

slotmap::new_key_type! {
    /// Names a TCP flow; never used again for another one.
    pub struct FlowId;
}

/// Flows at most. Beyond, a SYN is dropped, and the guest will send it again.
pub const MAX_FLOWS: usize = 65_536;
/// When there is no more place than this, an eighth of the flows ends of the port that has most, at most so often.
const SPARE: usize = MAX_FLOWS / 16;
const SPARE_INTERVAL: Duration = Duration::from_millis(100);
/// Released flows that wait for their guests, at most, whether to take something or to acknowledge the end: as Linux bounds them
/// (`tcp_max_orphans`).
const MAX_ORPHANS: usize = 4096;
/// Flows of a port that its guests are opening, unless the driver says less: see [`Table::limit_opening`].
const MAX_OPENING: usize = 512;
/// Flows that use all of their rings, of all ports: 128 MiB. One that has moved nothing for so long makes room.
const MAX_DEEP: usize = 64;
const DEEP_IDLE: Duration = Duration::from_secs(1);
/// What one flow sends before another's turn: bytes, and at least these segments, since few long ones cost as much as many short ones.
const TURN: usize = 128 << 10;
const TURN_SEGMENTS: usize = 8;
/// A guest that acknowledges nothing for this long has lost the connection (RFC 1122 4.2.3.5: at least 100 s).
const GIVE_UP: Duration = Duration::from_secs(900);
/// The same for a SYN-ACK: whoever sent that SYN may never have wanted a connection.
const GIVE_UP_SYN: Duration = Duration::from_secs(60);
/// Bytes of the longest packet on a way that is said to take less than this, as Linux (net.ipv4.route.min_pmtu) has it: nobody may have
/// everything cut to pieces (RFC 5927 7.2).
const MIN_PATH_MTU: u16 = 552;
/// What ways take that do not say how much (RFC 1191 7).
const PLATEAUS: [u16; 7] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006];
/// Timers that are looked at in one call.
const DUE_AT_ONCE: usize = 1024;
/// When to look again at a flow that is due and yet sends nothing.
const RETRY: Duration = Duration::from_millis(10);

/// Sockets kept for new flows: with two pages each, half a megabyte.
const POOL: usize = 64;

/// How the other end could not be had, and so what the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RST, as from a closed port.
    Reset,
    /// ICMP host unreachable.
    Unreachable,
    /// Nothing, as from a host that does not answer.
    Silence,
}

/// What a segment led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Done,
    /// A SYN for no flow; the policy decides and [`Table::hold`] keeps it.
    Syn {
        guest: SocketAddr,
        remote: SocketAddr,
    },
}

/// What the flows of one port share.
struct Budgets {
    window: WindowBudget,
    replay: ReplayBudget,
    held: Held,
    /// Those that its guests are opening, the oldest first; and some that are open, or over.
    opening: VecDeque<FlowId>,
}

/// The flow table.
pub(crate) struct Table {
    interface: Interface,
    initial: InitialSequence,
    mtu: u16,
    gateway_mac: Mac,
    flows: SlotMap<FlowId, Flow>,
    keys: HashMap<Ends, FlowId, FixedState>,
    /// How often flows end for others to have a place.
    surplus: Limit,
    /// Those that are deep, and of which port.
    deep: VecDeque<(PortId, FlowId)>,
    /// Bytes that rings hold.
    held: usize,
    /// How many of a port may be opening, about.
    max_opening: usize,
    ready: Turns<FlowId>,
    /// Released flows that wait for their guest, the oldest first; and some that are over.
    orphans: VecDeque<FlowId>,
    blocked: Blocked,
    /// A port whose flows hold too much.
    crowded: Option<PortId>,
    /// Flows that are to give back what the ring from their guest has no use for, since memory is scarce, and the next part of it.
    littered: VecDeque<(FlowId, usize)>,
    /// Flows whose rings are idle, and the next ring of each.
    idle: VecDeque<(FlowId, usize)>,
    timers: Timers<FlowId>,
    /// When silent guests are asked: apart, since a flow has one such time for long, and the others come and go before it.
    questions: Timers<FlowId>,
    budgets: ByPort<Budgets>,
    /// Sockets of flows that ended, for new ones.
    pool: Vec<Socket>,
    ports: Ports,
    scratch: Vec<u8>,
    /// A guest's segment as smoltcp is to see it.
    rewritten: Vec<u8>,
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}

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
    fn begin_opening(&mut self, port: PortId, id: FlowId, drops: &mut DropCounts) {
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
        if memory::may_be_scarce(self.held)
            && let Some(budget) = self.budgets.get(flow.route.port)
        {
            flow.plenty = budget.held.plenty(self.held);
        }
        Some(flow)
    }

    /// The guest's end, and the port that it is behind.
    pub(crate) fn guest(&self, id: FlowId) -> Option<Guest> {
        let flow = self.flows.get(id)?;
        let SocketAddr::V4(guest) = flow.guest else { return None };
        Some(Guest { address: *guest.ip(), port: flow.route.port, mac: flow.route.to })
    }

    /// Takes one segment: a whole, unfragmented IP packet from `route.to` at `route.port`.
    pub(crate) fn handle_segment(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Segment, DropReason> {
        let segment = TcpPacket::new_checked(packet.payload()).map_err(|_| DropReason::Tcp)?;
        let guest = SocketAddr::new(packet.src_addr().into(), segment.src_port());
        let remote = SocketAddr::new(packet.dst_addr().into(), segment.dst_port());
        let Some(&id) = self.keys.get(&Ends { guest, remote }) else {
            if segment.syn() && !segment.ack() && !segment.rst() {
                return Ok(Segment::Syn { guest, remote });
            }
            self.reply_reset(route, packet, now, sink);
            return Ok(Segment::Done);
        };
        let Some(mut flow) = self.flows.get_mut(id) else { return Err(DropReason::Tcp) };
        if flow.route.port != route.port {
            return Err(DropReason::OtherPort);
        }
        let is_opening = segment.syn() && !segment.ack() && !segment.rst();
        if is_opening && matches!(flow.phase(), Phase::Finished | Phase::Aborted) {
            // Another connection of the same name; the old one ends without it.
            self.keys.remove(&Ends { guest, remote });
            return Ok(Segment::Syn { guest, remote });
        }
        flow.route = route;
        flow.keepalive.hear(now);
        if flow.is_repeated_ack(&segment) {
            return Ok(Segment::Done);
        }
        let (has_data, end) = (!segment.payload().is_empty(), segment.seq_number() + segment.payload().len());
        let before;
        let is_duplicate;
        let mut is_old;
        match &mut flow.stage {
            Stage::Held(_) => {
                if segment.rst() {
                    flow.stage = Stage::Dead;
                    self.mark_ready(id);
                }
                return Ok(Segment::Done);
            }
            Stage::Resolving | Stage::Dead => return Ok(Segment::Done),
            Stage::Live(socket) => {
                before = socket.state();
                if before.is_syn_sent()
                    && segment.syn()
                    && let Some(syn) = parse(&segment, guest, remote)
                {
                    flow.window.handle_syn(&syn, self.mtu);
                    flow.recovery.handle_syn(&syn);
                }
                if segment.syn() && !segment.ack() && before.is_synchronized() {
                    challenge(sink, flow);
                    return Ok(Segment::Done);
                }
                let is_open = before.is_synchronized() || before.is_syn_received();
                if (is_open && has_data && flow.window.is_past_ring(end))
                    || (segment.fin() && flow.window.is_past(end))
                {
                    return Err(DropReason::Tcp);
                }
                if has_data && let Some(budget) = self.budgets.get_mut(route.port) {
                    budget.window.count(&mut flow.window, flow.plenty, now);
                }
                // As a keep-alive is, which asks for an answer.
                is_old = (flow.window.acknowledged().filter(|ack| segment.seq_number() < *ack))
                    .is_some_and(|ack| segment.seq_number() + segment.segment_len() <= ack)
                    && is_open
                    && segment.ack()
                    && !segment.syn()
                    && !segment.rst();
                is_duplicate = flow.recovery.is_selective() && has_data && !segment.fin() && is_old;
                let mut bytes = packet.clone().into_inner();
                let mut field = segment.window_len();
                match flow.recovery.handle_ack(&segment, is_old, now) {
                    Verdict::Known if is_duplicate || !is_old => {
                        flow.progress = None;
                        if is_duplicate {
                            send_duplicate(sink, flow, segment.seq_number(), end);
                        }
                        self.mark_ready(id);
                        return Ok(Segment::Done);
                    }
                    Verdict::Known => is_old = false,
                    Verdict::Pass if !is_old => {}
                    verdict => {
                        if let Verdict::Limit(limit) = verdict {
                            field = limit;
                        }
                        let seq = flow.window.acceptable().filter(|_| is_old);
                        rewrite(&mut self.rewritten, bytes, field, seq);
                        bytes = &self.rewritten;
                    }
                }
                let called = flow.device(Some(bytes), sink, usize::from(self.mtu), now, &mut self.scratch);
                let Some((mut device, socket)) = called else { return Ok(Segment::Done) };
                self.interface.receive(&mut device, socket, now);
                if before.is_fin_wait_1() && field == 0 && flow.has_delivered() {
                    self.open_at_end(id, packet, now, sink);
                    let Some(again) = self.flows.get_mut(id) else { return Ok(Segment::Done) };
                    flow = again;
                }
                if before.is_syn_sent() && segment.ack() && !segment.syn() && !segment.rst() {
                    self.dial_again(id, now, sink);
                    return Ok(Segment::Done);
                }
            }
        }
        if is_duplicate {
            send_duplicate(sink, flow, segment.seq_number(), end);
        } else if is_old && (has_data || segment.fin()) {
            challenge(sink, flow);
        }
        if segment.ack() {
            flow.progress = None;
        }
        if has_data {
            flow.note_data(end, now);
        }
        flow.after_segment(before, segment.rst());
        self.mark_ready(id);
        Ok(Segment::Done)
    }

    /// The guest has acknowledged everything and the end, with a window that is shut. smoltcp's timer for such a window would go on, and send
    /// nothing without end: it has to see one that is open, which changes nothing else.
    fn open_at_end(
        &mut self,
        id: FlowId,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(seq) = flow.window.acceptable() else { return };
        rewrite(&mut self.rewritten, packet.clone().into_inner(), 1, Some(seq));
        let called = flow.device(Some(&self.rewritten), sink, usize::from(self.mtu), now, &mut self.scratch);
        if let Some((mut device, socket)) = called {
            self.interface.receive(&mut device, socket, now);
        }
    }

    /// A segment to a guest did not arrive. What is no error of a segment that is under way is nobody's business (RFC 5927 4.1).
    ///
    /// A connection that is being opened ends by it, as with most systems; one that is open never does (RFC 5927 5.2), and learns how
    /// long its segments may be.
    pub(crate) fn handle_report(
        &mut self,
        route: Route,
        report: &Report,
        now: Instant,
    ) -> Result<(), DropReason> {
        let ends = Ends { guest: report.guest, remote: report.remote };
        let id = self.keys.get(&ends).copied().ok_or(DropReason::Icmp)?;
        let flow = self.flows.get_mut(id).ok_or(DropReason::Icmp)?;
        if flow.route != route {
            return Err(DropReason::OtherPort);
        }
        let state = flow.state();
        if !flow.recovery.is_under_way(report.seq) {
            return Err(DropReason::Icmp);
        }
        match report.fault {
            Fault::TooLong(next_hop) if state.is_some_and(State::is_synchronized) => {
                let len = usize::from(report.len).min(flow.window.packet());
                // Of a router that does not say, the next plateau (RFC 1191 5 and 7).
                let plateau = || PLATEAUS.into_iter().find(|mtu| usize::from(*mtu) < len);
                let mtu = if next_hop == 0 { plateau().unwrap_or(0) } else { next_hop }.max(MIN_PATH_MTU);
                if usize::from(mtu) >= len {
                    return Err(DropReason::Icmp);
                }
                flow.path_mtu = Some(mtu);
                flow.window.limit_packet(mtu);
                flow.recovery.handle_path(usize::from(mtu) - window::HEADERS, now);
            }
            Fault::Refused | Fault::Unreachable if state.is_some_and(State::is_syn_sent) => {
                flow.refuse(report.fault == Fault::Refused);
            }
            _ => return Ok(()),
        }
        self.mark_ready(id);
        Ok(())
    }

    /// Keeps a SYN until the driver has connected the other end.
    pub(crate) fn hold(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        (guest, remote): (SocketAddr, SocketAddr),
        now: Instant,
        drops: &mut DropCounts,
    ) -> Result<FlowId, DropReason> {
        self.ensure_place(now, drops)?;
        let segment = TcpPacket::new_checked(packet.payload()).map_err(|_| DropReason::Tcp)?;
        // What smoltcp would not take later is refused now, before anything is opened for it.
        let parsed = parse(&segment, guest, remote).filter(|syn| syn.control == TcpControl::Syn);
        let parsed = parsed.ok_or(DropReason::Tcp)?;
        let len = usize::from(packet.header_len()) + usize::from(segment.header_len());
        let mut syn: Box<[u8]> = packet.clone().into_inner().get(..len).ok_or(DropReason::Tcp)?.into();
        Ipv4Packet::new_unchecked(&mut syn[..])
            .set_total_len(u16::try_from(len).map_err(|_| DropReason::Tcp)?);
        let mut flow = Flow::new(guest, remote, route, Stage::Held(syn));
        flow.keepalive.hear(now);
        flow.window.handle_syn(&parsed, self.mtu);
        flow.recovery.handle_syn(&parsed);
        let id = self.insert(flow);
        self.begin_opening(route.port, id, drops);
        Ok(id)
    }

    /// The driver has connected the other end: the guest gets its SYN-ACK.
    pub(crate) fn accept(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Stage::Held(syn) = core::mem::replace(&mut flow.stage, Stage::Dead) else { return };
        flow.listen(self.pool.pop().unwrap_or_else(Socket::new));
        let number = self.initial.number(flow.guest, flow.remote, now);
        let called = flow.device(Some(&syn), sink, usize::from(self.mtu), now, &mut self.scratch);
        let Some((mut device, socket)) = called else { return };
        let before = socket.state();
        Interface::new(usize::from(self.mtu), number, now).receive(&mut device, socket, now);
        flow.after_segment(before, false);
        self.mark_ready(id);
    }

    /// The driver could not connect the other end. Returns the SYN for an ICMP message, where that is the answer.
    pub(crate) fn refuse(
        &mut self,
        id: FlowId,
        refusal: Refusal,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Option<(Route, Box<[u8]>)> {
        let flow = self.remove(id)?;
        let Stage::Held(syn) = flow.stage else { return None };
        match refusal {
            Refusal::Reset => {
                self.reply_reset(flow.route, &Ipv4Packet::new_unchecked(&syn), now, sink);
                None
            }
            Refusal::Unreachable => Some((flow.route, syn)),
            Refusal::Silence => None,
        }
    }

    /// Answers a segment with a RST, as for a closed port.
    pub(crate) fn reply_reset(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let mut device = OneCall {
            packet: Some(packet.clone().into_inner()),
            sink,
            route,
            mtu: usize::from(self.mtu),
            window: &mut window::WindowLimit::new(0),
            recovery: &mut recovery::Recovery::new(0),
            now,
            scratch: &mut self.scratch,
        };
        self.interface.reset(&mut device, now);
    }

    /// A flow from `local` (a free port is chosen) to a guest. It starts when [`Table::resolved`] says where the guest is.
    pub(crate) fn dial(
        &mut self,
        guest: SocketAddr,
        local: IpAddr,
        now: Instant,
        drops: &mut DropCounts,
    ) -> Result<FlowId, DropReason> {
        self.ensure_place(now, drops)?;
        let keys = &self.keys;
        let is_taken = |remote| keys.contains_key(&Ends { guest, remote });
        let remote = self.ports.free(guest, local, EPHEMERAL, is_taken).ok_or(DropReason::Flows)?;
        let mut flow = Flow::new(guest, remote, Route::NOWHERE, Stage::Resolving);
        flow.keepalive.hear(now);
        Ok(self.insert(flow))
    }

    /// Whether there is a place for one more flow. Where few are left, those end of the port that has most whose guests have been silent for
    /// the longest, before others those that nobody waits for any more.
    fn ensure_place(&mut self, now: Instant, drops: &mut DropCounts) -> Result<(), DropReason> {
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

    /// A dialled flow's guest has been found, or not.
    pub(crate) fn resolved(&mut self, id: FlowId, neighbour: Option<(Mac, PortId)>, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if !matches!(flow.stage, Stage::Resolving) {
            return;
        }
        match neighbour {
            Some((to, port)) => {
                flow.route = Route { port, from: self.gateway_mac, to };
                let number = self.initial.number(flow.guest, flow.remote, now);
                let mut interface = Interface::new(usize::from(self.mtu), number, now);
                flow.connect(self.pool.pop().unwrap_or_else(Socket::new), &mut interface);
            }
            None => flow.stage = Stage::Dead,
        }
        self.mark_ready(id);
    }

    /// The guest answered a SYN as somebody who has another connection between the same ends, open or in TIME-WAIT; by now it has a RST
    /// for that (RFC 9293 3.5.1). The SYN is sent again, once, without waiting for its timer.
    fn dial_again(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) {
        let is_first = |flow: &mut Flow| !core::mem::replace(&mut flow.dialled_again, true);
        if self.flows.get_mut(id).is_some_and(is_first) {
            self.hurry(id, now, sink);
        }
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
    fn wake(&mut self) {
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

    /// Sends what the flow has to send, up to its turn, and arms its timer. `seen` says when the machine with an address last sent a frame.
    pub(crate) fn flush(
        &mut self,
        id: FlowId,
        seen: impl FnOnce(Mac) -> Option<Instant>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        if let Some(port) = self.crowded.take() {
            self.make_room(port, now);
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.is_lingering(now) {
            return;
        }
        if !matches!(flow.stage, Stage::Live(..)) || flow.is_cut_off() {
            if flow.released {
                self.end(id);
            }
            return;
        }
        if flow.keepalive.is_silent(now) && flow.keep_alive_at().is_some_and(|at| at <= now) {
            if !sink.has_room(flow.route.port, ether::HEADER_LEN + flow.window.packet()) {
                flow.block(id, &mut self.blocked, false);
            } else if flow.keepalive.ask(seen(flow.route.to), now) {
                flow.abort();
                return self.mark_ready(id);
            } else {
                keep_alive(sink, flow);
            }
        }
        if let Some(budget) = self.budgets.get_mut(flow.route.port) {
            if core::mem::take(&mut flow.has_moved) {
                budget.held.note(id, flow, &mut self.held, now);
            }
            flow.plenty = budget.held.plenty(self.held);
            if flow.plenty != Plenty::Ample {
                if flow.is_littered() {
                    self.littered.push_back((id, 0));
                }
                if budget.held.is_too_much() {
                    self.crowded = Some(flow.route.port);
                }
            }
            budget.window.share(&mut flow.window, flow.plenty, now);
        }
        let mut ends_at = None;
        if flow.is_ending() {
            let room = sink.has_room(flow.route.port, ether::HEADER_LEN + flow.window.packet());
            let patience = flow.patience(room, now);
            if patience.is_some_and(|until| until <= now) {
                // What the guest says later is answered with a RST. One that comes now would be for a connection that it may still accept.
                if flow.released && flow.has_delivered() {
                    return self.end(id);
                }
                flow.abort();
                return self.mark_ready(id);
            }
            ends_at = flow.reset_when_settled(now).or(patience);
        }
        let mtu = flow.window.packet();
        if !flow.recovery.is_idle() {
            flow.recovery.set_room(sink.has_room(flow.route.port, ether::HEADER_LEN + mtu), now);
            if flow.recovery.due().is_some_and(|at| at <= now) {
                flow.recovery.handle_timeout(now);
            }
            if flow.recovery.wants_replay() && flow.can_replay() {
                self.replay(id, now, sink);
            }
        } else if flow.persist_at().is_some_and(|at| at <= now) {
            self.hurry(id, now, sink);
        }
        let Some(mut flow) = self.flows.get_mut(id) else { return };
        if flow.wants_depth() {
            self.deepen(id, now);
            let Some(again) = self.flows.get_mut(id) else { return };
            flow = again;
        }
        let mut own = None;
        let interface = self.interface.for_path(flow.path_mtu, &mut own, now);
        let called = flow.device(None, sink, mtu, now, &mut self.scratch);
        let Some((mut device, socket)) = called else { return };
        let mut segments = (TURN / mtu).max(TURN_SEGMENTS);
        let had_ended = socket.state().has_ended();
        // Without room smoltcp would forget a fast retransmission that it cannot send, and wait for ever.
        while segments > 0 && device.has_room() && interface.send(&mut device, socket, now) {
            segments -= 1;
        }
        let due = interface.due(socket, now);
        let timed_out = !had_ended && socket.state().has_ended();
        let mut room = sink.has_room(flow.route.port, ether::HEADER_LEN + mtu);
        if let Some(held) = flow.wants_window_update() {
            if room && let Some((seq, ack, window)) = flow.window.update(held) {
                send_update(sink, flow, seq, ack, window, None);
                room = sink.has_room(flow.route.port, ether::HEADER_LEN + mtu);
            } else {
                flow.block(id, &mut self.blocked, room);
            }
        }
        if flow.released && flow.is_over(due, now) {
            self.end(id);
            return;
        }
        if timed_out {
            // The driver does not know yet.
            return self.mark_ready(id);
        }
        // Without room it is the port that makes no progress, as while the virtual machine is paused.
        if let Some(limit) = flow.give_up_after().filter(|_| room) {
            let since = *flow.progress.get_or_insert(now);
            if now > since + limit {
                flow.abort();
                return self.mark_ready(id);
            }
        } else {
            flow.progress = None;
        }
        flow.note_sending(now);
        if let Some(at) = ends_at {
            self.timers.arm(id, at, &mut flow.armed);
        }
        if let Some(at) = flow.idle_at() {
            if at > now {
                self.timers.arm(id, at, &mut flow.armed);
            } else {
                self.idle.push_back((id, 0));
            }
        }
        flow.recovery.set_room(room, now);
        match flow.recovery.due() {
            Some(at) => self.timers.arm(id, at, &mut flow.armed),
            None if flow.recovery.is_waiting_for_room() => flow.block(id, &mut self.blocked, room),
            None => match flow.persist_at() {
                Some(_) if !room => flow.block(id, &mut self.blocked, false),
                Some(at) => self.timers.arm(id, at.max(now + RETRY), &mut flow.armed),
                None => {}
            },
        }
        if flow.asked_at.is_none()
            && let Some(at) = flow.keep_alive_at().filter(|at| *at > now)
        {
            // One that is due found no room: `handle_room` goes on.
            self.questions.arm(id, at, &mut flow.asked_at);
        }
        match due {
            None => {}
            Some(at) if at > now => self.timers.arm(id, at, &mut flow.armed),
            Some(_) if segments == 0 => self.mark_ready(id),
            // `handle_room` goes on.
            Some(_) if !room => flow.block(id, &mut self.blocked, false),
            Some(_) => self.timers.arm(id, now + RETRY, &mut flow.armed),
        }
    }

    /// Lets the flow use all of its ring to the guest, if there is memory. Of those that do the next one makes room, if it stands still or is
    /// of a port that has more of them.
    fn deepen(&mut self, id: FlowId, now: Instant) {
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

    /// Ends what holds memory that others of its port need. What it holds is lost to both ends, who are told.
    fn make_room(&mut self, port: PortId, now: Instant) {
        let Some(budget) = self.budgets.get_mut(port) else { return };
        let Some(id) = budget.held.surplus(&mut self.flows, now) else { return };
        if let Some(flow) = self.flows.get_mut(id) {
            flow.abort();
            flow.discard();
            self.mark_ready(id);
        }
    }

    /// The driver is done with the flow. What is queued is still sent, and a FIN or RST that is owed behind it; what the guest goes on to
    /// send is answered with a RST.
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

    /// If with this one too many flows wait that nobody hears any more, the oldest are reset of the port that has most of them.
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
            if self.flows.get(id).and_then(Flow::idle_at).is_some_and(|at| at <= now) {
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

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        earlier(self.timers.next(), self.questions.next())
    }

    /// Marks flows whose timers are due, and those that wait for room where there is some: so many of each, and the rest the next time.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.wake();
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        for _ in 0..DUE_AT_ONCE {
            let Some((deadline, id)) = self.timers.pop_due(now) else { break };
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.armed == Some(deadline) {
                flow.armed = None;
                self.mark_ready(id);
            }
        }
        for _ in 0..DUE_AT_ONCE {
            let Some((deadline, id)) = self.questions.pop_due(now) else { break };
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.asked_at == Some(deadline) {
                flow.asked_at = None;
                self.mark_ready(id);
            }
        }
    }

    fn insert(&mut self, flow: Flow) -> FlowId {
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
    fn end(&mut self, id: FlowId) {
        let pooled = self.remove(id).and_then(Flow::into_pool);
        if self.pool.len() < POOL {
            self.pool.extend(pooled);
        }
    }

    /// Gives back what the flow is charged with, while its route still tells to which port.
    fn uncharge(&mut self, id: FlowId) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let (charged, port) = (core::mem::take(&mut flow.charged), flow.route.port);
        self.held -= charged;
        if let Some(budget) = self.budgets.get_mut(port) {
            budget.held.forget(charged, &self.flows);
        }
    }

    fn remove(&mut self, id: FlowId) -> Option<Flow> {
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

/// What smoltcp makes of a segment, whatever its checksum.
fn parse<'a>(segment: &TcpPacket<&'a [u8]>, from: SocketAddr, to: SocketAddr) -> Option<TcpRepr<'a>> {
    TcpRepr::parse(segment, &from.ip().into(), &to.ip().into(), &ChecksumCapabilities::ignored()).ok()
}

/// Puts the flow into the list of those that have something to do, once.
fn queue(ready: &mut Turns<FlowId>, id: FlowId, flow: &mut Flow) {
    if !core::mem::replace(&mut flow.queued, true) {
        ready.push(flow.route.port, id);
    }
}

/// Asks the flow's guest whether it still knows of the flow: a byte that it has is to be acknowledged again.
fn keep_alive(sink: &mut impl FrameSink, flow: &mut Flow) {
    let held = flow.socket().map_or(0, Socket::recv_queue);
    if let Some((seq, ack, window)) = flow.window.update(held) {
        send_update(sink, flow, seq - 1, ack, window, None);
    }
}

/// The ports that this side dials from, as the original's.
const EPHEMERAL: RangeInclusive<u16> = 16_000..=u16::MAX;

/// Copies a guest's segment with another window field. With a sequence number, it has that and no data: smoltcp answers a segment of
/// which it has all the data, but reads neither what that acknowledges nor its window.
fn rewrite(copy: &mut Vec<u8>, packet: &[u8], field: u16, seq: Option<TcpSeqNumber>) {
    copy.clear();
    copy.extend_from_slice(packet);
    let mut packet = Ipv4Packet::new_unchecked(&mut copy[..]);
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    segment.set_window_len(field);
    if let Some(seq) = seq {
        segment.set_seq_number(seq);
        segment.set_fin(false);
        let header_len = segment.header_len();
        let len = u16::from(packet.header_len()) + u16::from(header_len);
        packet.set_total_len(len);
        copy.truncate(usize::from(len));
    }
}

/// Answers a SYN for a connection that there is: a guest that knows nothing of it answers with a RST (RFC 5961 4.2). smoltcp would
/// say nothing.
fn challenge(sink: &mut impl FrameSink, flow: &mut Flow) {
    let held = flow.socket().map_or(0, Socket::recv_queue);
    if let Some((seq, ack, window)) = flow.window.update(held) {
        send_update(sink, flow, seq, ack, window, None);
    }
}

/// Tells the guest that it sent the bytes from `start` to `end` twice.
fn send_duplicate(sink: &mut impl FrameSink, flow: &mut Flow, start: TcpSeqNumber, end: TcpSeqNumber) {
    let held = flow.socket().map_or(0, Socket::recv_queue);
    if let Some((seq, ack, window)) = flow.window.update(held) {
        send_update(sink, flow, seq, ack, window, Some((start, end)));
    }
}

/// Sends a bare acknowledgement that tells the guest of a larger window, or of what it has sent twice (RFC 2883): by that Linux
/// knows that nothing was lost, and goes on as fast as before.
fn send_update(
    sink: &mut impl FrameSink,
    flow: &Flow,
    seq: TcpSeqNumber,
    ack: TcpSeqNumber,
    window: u16,
    duplicate: Option<(TcpSeqNumber, TcpSeqNumber)>,
) {
    let (SocketAddr::V4(guest), SocketAddr::V4(remote)) = (flow.guest, flow.remote) else { return };
    let ranges = duplicate
        .map(|(left, right)| TcpOption::SackRange([Some((left.0 as u32, right.0 as u32)), None, None]));
    let header_len = smoltcp::wire::TCP_HEADER_LEN
        + ranges.as_ref().map_or(0, |ranges| ranges.buffer_len().next_multiple_of(4));
    let len = ether::HEADER_LEN + ipv4::HEADER_LEN + header_len;
    let Some(frame) = sink.frame(flow.route.port, len) else { return };
    let mut packet =
        Ipv4Packet::new_unchecked(ether::emit(frame, flow.route.from, flow.route.to, EtherType::Ipv4));
    let header = ipv4::Header { source: *remote.ip(), destination: *guest.ip(), protocol: IpProtocol::Tcp };
    ipv4::emit_header(&mut packet, header, header_len, 0);
    packet.fill_checksum();
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    segment.set_src_port(remote.port());
    segment.set_dst_port(guest.port());
    segment.set_seq_number(flow.recovery.acceptable(seq));
    segment.set_ack_number(ack);
    segment.clear_flags();
    segment.set_header_len(header_len as u8);
    segment.set_ack(true);
    segment.set_window_len(window);
    segment.set_urgent_at(0);
    if let Some(ranges) = ranges {
        TcpOption::EndOfList.emit(ranges.emit(segment.options_mut()));
    }
    segment.fill_checksum(&(*remote.ip()).into(), &(*guest.ip()).into());
}
