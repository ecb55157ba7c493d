//! How connections begin: a guest's SYN is held until the driver has connected the other end, or a guest is
//! dialled. May not: decide who may connect (`../nat.rs`). Read next: `segment.rs`, what comes after the SYN.

use core::net::{IpAddr, SocketAddr};
use core::ops::RangeInclusive;

use smoltcp::wire::{Ipv4Packet, TcpControl, TcpPacket};

use super::device::OneCall;
use super::flow::Stage;
use super::recovery::Recovery;
use super::segment::parse;
use super::socket::{Interface, Socket};
use super::window::WindowLimit;
use super::{Flow, FlowId, Refusal, Table};
use crate::ends::Ends;
use crate::ipv4::Route;
use crate::{DropCounts, DropReason, FrameSink, Instant, Mac, PortId};

/// The ports that this side dials from, as the original's.
const EPHEMERAL: RangeInclusive<u16> = 16_000..=u16::MAX;

impl Table {
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
        let parsed = parse(&segment, Ends { guest, remote }).filter(|syn| syn.control == TcpControl::Syn);
        let parsed = parsed.ok_or(DropReason::Tcp)?;
        let len = usize::from(packet.header_len()) + usize::from(segment.header_len());
        let mut syn: Box<[u8]> = packet.clone().into_inner().get(..len).ok_or(DropReason::Tcp)?.into();
        Ipv4Packet::new_unchecked(&mut syn[..])
            .set_total_len(u16::try_from(len).map_err(|_| DropReason::Tcp)?);
        let mut flow = Flow::new(guest, remote, route, Stage::Held(syn));
        flow.keepalive.note_segment(now);
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

    /// The driver could not connect the other end. Returns the SYN if an ICMP message about it is the answer.
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
            window: &mut WindowLimit::new(0),
            recovery: &mut Recovery::new(0),
            now,
            scratch: &mut self.scratch,
        };
        self.interface.reset(&mut device, now);
    }

    /// A flow from a free port of `local` to a guest. It starts when [`Table::resolved`] says where the guest
    /// is.
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
        flow.keepalive.note_segment(now);
        Ok(self.insert(flow))
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

    /// The guest answered a SYN as one that has another connection between the same ends, open or in
    /// TIME-WAIT. By now it has a RST for that (RFC 9293 3.5.1). The SYN is sent again, once, without waiting
    /// for its timer.
    pub(super) fn dial_again(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) {
        let is_first = |flow: &mut Flow| !core::mem::replace(&mut flow.dialled_again, true);
        if self.flows.get_mut(id).is_some_and(is_first) {
            self.hurry(id, now, sink);
        }
    }
}
