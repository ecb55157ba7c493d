//! UDP (RFC 768). Owns: the flow table, with one entry for each pair of guest and remote socket, bounded. May
//! not: open a socket on the host (the driver does, told by [`Datagram::open`]). Read next: `shares.rs`, who
//! makes room in a full table; `../lib.rs`.

mod shares;

use core::net::{IpAddr, Ipv4Addr, SocketAddr};
use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use slotmap::SlotMap;
use smoltcp::wire::{IpProtocol, Ipv4Packet, UdpPacket};

use crate::checksum;
use crate::counters::{Counters, Ports};
use crate::ends::Ends;
use crate::ether::{self, EtherType};
use crate::icmp::{Fault, Report};
use crate::ipv4::{self, Header, Route};
use crate::keys::Keys;
use crate::timer::Timers;
use crate::{DropCounts, DropReason, FrameSink, Instant, PortId};
use shares::{Owner, Place, Shares};

slotmap::new_key_type! {
    /// Names a UDP flow; never used again for another one.
    pub struct UdpFlowId;
}

/// Bytes of a UDP header.
pub(crate) const HEADER_LEN: usize = 8;
/// Flows at most that guests open, each a socket on the host; and as many that are opened to guests.
pub const MAX_FLOWS: usize = 4096;
/// A flow without a datagram for this long is over: two minutes at least (RFC 4787 4.3, REQ-5), except for
/// well-known ports.
const IDLE: Duration = Duration::from_secs(120);
/// The same where one question has one answer: DNS and NTP.
const IDLE_SHORT: Duration = Duration::from_secs(15);

/// Ports of the gateway that flows to guests come from.
const EPHEMERAL: RangeInclusive<u16> = 49_152..=u16::MAX;
/// Datagrams of one flow, and bytes of all, that wait for their guest's hardware address. What is more is
/// lost; RFC 1122 2.3.2.2 asks for one.
const MAX_HELD: usize = 8;
const MAX_HELD_BYTES: usize = 1 << 20;

/// A datagram from a guest, for the host socket of its flow.
#[derive(Debug)]
pub struct Datagram<'a> {
    /// The flow.
    pub flow: UdpFlowId,
    /// Where the flow leads, if this is its first datagram.
    pub open: Option<SocketAddr>,
    /// What was sent; may be empty.
    pub payload: &'a [u8],
}

#[derive(Debug)]
struct Flow {
    guest: SocketAddr,
    remote: SocketAddr,
    route: Route,
    /// While the route is [`Route::NOWHERE`].
    held: Vec<Vec<u8>>,
    used: Instant,
    armed: Option<Instant>,
    place: Place,
}

/// The flow table.
#[derive(Debug)]
pub(crate) struct Table {
    flows: SlotMap<UdpFlowId, Flow>,
    keys: HashMap<Ends, UdpFlowId, FixedState>,
    shares: Shares,
    timers: Timers<UdpFlowId>,
    closed: VecDeque<UdpFlowId>,
    /// Bytes held in all flows.
    held: usize,
    ports: Ports,
    /// Of packets.
    idents: Counters,
    scratch: Vec<u8>,
}

impl Table {
    pub(crate) fn new(keys: &Keys) -> Self {
        Self {
            flows: SlotMap::with_key(),
            keys: HashMap::with_hasher(FixedState::with_seed(keys.tables)),
            shares: Shares::new(keys.tables),
            timers: Timers::new(),
            closed: VecDeque::new(),
            held: 0,
            ports: Ports::new(keys.udp_ports),
            idents: Counters::new(),
            scratch: Vec::new(),
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

    /// The flow from `guest` to `remote`, used now. A flow belongs to its port.
    pub(crate) fn find(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        route: Route,
        now: Instant,
    ) -> Result<Option<UdpFlowId>, DropReason> {
        let Some(&id) = self.keys.get(&Ends { guest, remote }) else { return Ok(None) };
        let Some(flow) = self.flows.get_mut(id) else { return Ok(None) };
        if flow.route.port != route.port {
            return Err(DropReason::OtherPort);
        }
        flow.route = route;
        self.touch(id, now);
        Ok(Some(id))
    }

    /// See [`Stack::limit_udp`](crate::Stack::limit_udp).
    pub(crate) fn limit(&mut self, max: usize) {
        self.shares.limit(max);
    }

    /// A new flow of a guest's, for which another makes room if there are too many.
    pub(crate) fn open(
        &mut self,
        guest: SocketAddr,
        remote: SocketAddr,
        route: Route,
        now: Instant,
        drops: &mut DropCounts,
    ) -> UdpFlowId {
        self.insert((guest, remote), route, Owner::Guest(route.port), now, drops)
    }

    fn insert(
        &mut self,
        (guest, remote): (SocketAddr, SocketAddr),
        route: Route,
        owner: Owner,
        now: Instant,
        drops: &mut DropCounts,
    ) -> UdpFlowId {
        if let Some(surplus) = self.shares.surplus(owner) {
            drops.count(DropReason::UdpFlows);
            self.close(surplus);
            self.closed.push_back(surplus);
        }
        let id = self.flows.insert(Flow {
            guest,
            remote,
            route,
            held: Vec::new(),
            used: now,
            armed: None,
            place: Place::default(),
        });
        self.keys.insert(Ends { guest, remote }, id);
        self.shares.insert(&mut self.flows, id, owner);
        self.arm(id);
        let flows = &self.flows;
        self.timers.shed(flows.len(), |id, at| flows.get(id).is_some_and(|flow| flow.armed == Some(at)));
        id
    }

    /// A new flow from a port of `local` to `guest`, whose route will be told by [`Self::resolved`].
    pub(crate) fn dial(
        &mut self,
        guest: SocketAddr,
        local: IpAddr,
        now: Instant,
        drops: &mut DropCounts,
    ) -> Option<UdpFlowId> {
        let keys = &self.keys;
        let remote =
            self.ports.free(guest, local, EPHEMERAL, |remote| keys.contains_key(&Ends { guest, remote }))?;
        Some(self.insert((guest, remote), Route::NOWHERE, Owner::Exposed(guest), now, drops))
    }

    /// The guest of a dialled flow has been found, or not. If not, the flow ends. The datagrams that waited
    /// come back to be sent.
    pub(crate) fn resolved(&mut self, id: UdpFlowId, route: Option<Route>) -> Vec<Vec<u8>> {
        let Some(flow) = self.flows.get_mut(id) else { return Vec::new() };
        let Some(route) = route else {
            self.close(id);
            self.closed.push_back(id);
            return Vec::new();
        };
        flow.route = route;
        let held = core::mem::take(&mut flow.held);
        self.held -= held.iter().map(Vec::len).sum::<usize>();
        held
    }

    /// Forgets the flow.
    pub(crate) fn close(&mut self, id: UdpFlowId) {
        self.shares.remove(&mut self.flows, id);
        if let Some(flow) = self.flows.remove(id) {
            self.keys.remove(&Ends { guest: flow.guest, remote: flow.remote });
            self.held -= flow.held.iter().map(Vec::len).sum::<usize>();
        }
    }

    /// A datagram to a guest did not arrive. The flow ends if nobody takes its datagrams: whoever sends more
    /// hears that as well. It does not end because there is no way at the moment (RFC 1122 3.2.2.1).
    pub(crate) fn handle_report(&mut self, route: Route, report: &Report) -> Result<(), DropReason> {
        let id = self
            .keys
            .get(&Ends { guest: report.guest, remote: report.remote })
            .copied()
            .ok_or(DropReason::Icmp)?;
        if self.ends(id).is_none_or(|(_, _, known)| known != route) {
            return Err(DropReason::OtherPort);
        }
        if report.fault == Fault::Refused {
            self.close(id);
            self.closed.push_back(id);
        }
        Ok(())
    }

    /// Ends the flows of a port that is gone.
    pub(crate) fn detach(&mut self, port: PortId) {
        self.end(|flow| flow.route.port == port);
    }

    /// The guest with this address is behind `port` now: where it was before nobody is reached any more.
    pub(crate) fn forget_guest(&mut self, guest: Ipv4Addr, port: PortId) {
        self.end(|flow| flow.guest.ip() == guest && flow.route != Route::NOWHERE && flow.route.port != port);
    }

    fn end(&mut self, is_gone: impl Fn(&Flow) -> bool) {
        let gone: Vec<UdpFlowId> =
            self.flows.iter().filter(|(_, flow)| is_gone(flow)).map(|(id, _)| id).collect();
        for id in gone {
            self.close(id);
            self.closed.push_back(id);
        }
    }

    /// A flow that ended by itself, so that the driver closes its socket.
    pub(crate) fn poll_closed(&mut self) -> Option<UdpFlowId> {
        self.closed.pop_front()
    }

    /// The two ends, and the way to the guest.
    pub(crate) fn ends(&self, id: UdpFlowId) -> Option<(SocketAddr, SocketAddr, Route)> {
        self.flows.get(id).map(|flow| (flow.guest, flow.remote, flow.route))
    }

    /// Sends one datagram from the flow's remote end to its guest.
    pub(crate) fn send(
        &mut self,
        id: UdpFlowId,
        payload: &[u8],
        mtu: u16,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let (guest, remote, route) = self.ends(id).ok_or(DropReason::Udp)?;
        self.touch(id, now);
        if route == Route::NOWHERE {
            return self.hold(id, payload);
        }
        self.send_between(route, remote, guest, payload, mtu, sink)
    }

    fn hold(&mut self, id: UdpFlowId, payload: &[u8]) -> Result<(), DropReason> {
        let flow = self.flows.get_mut(id).ok_or(DropReason::Udp)?;
        if flow.held.len() >= MAX_HELD || self.held + payload.len() > MAX_HELD_BYTES {
            return Err(DropReason::PortFull);
        }
        self.held += payload.len();
        flow.held.push(payload.to_vec());
        Ok(())
    }

    /// Sends one datagram that belongs to no flow.
    pub(crate) fn send_between(
        &mut self,
        route: Route,
        from: SocketAddr,
        to: SocketAddr,
        payload: &[u8],
        mtu: u16,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let (SocketAddr::V4(source), SocketAddr::V4(destination)) = (from, to) else {
            return Err(DropReason::Udp);
        };
        let header =
            Header { source: *source.ip(), destination: *destination.ip(), protocol: IpProtocol::Udp };
        let len = HEADER_LEN + payload.len();
        let ident = self.idents.next(to.ip());
        if ipv4::HEADER_LEN + len > usize::from(u16::MAX) {
            return Err(DropReason::Udp);
        }
        if ipv4::HEADER_LEN + len > usize::from(mtu) {
            let mut datagram = core::mem::take(&mut self.scratch);
            datagram.resize(len, 0);
            emit(&mut datagram, from, to, payload);
            let sent = ipv4::send(sink, route, header, &datagram, ident, mtu);
            self.scratch = datagram;
            return sent;
        }
        let frame =
            sink.frame(route.port, ether::HEADER_LEN + ipv4::HEADER_LEN + len).ok_or(DropReason::PortFull)?;
        let mut packet = Ipv4Packet::new_unchecked(ether::emit(frame, route.from, route.to, EtherType::Ipv4));
        ipv4::emit_header(&mut packet, header, len, ident);
        packet.fill_checksum();
        emit(packet.payload_mut(), from, to, payload);
        Ok(())
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.timers.next()
    }

    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        while let Some((deadline, id)) = self.timers.pop_due(now) {
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.armed != Some(deadline) {
                continue;
            }
            flow.armed = None;
            if flow.expires() <= now {
                self.close(id);
                self.closed.push_back(id);
            } else {
                self.arm(id);
            }
        }
    }

    fn arm(&mut self, id: UdpFlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            let expires = flow.expires();
            self.timers.arm(id, expires, &mut flow.armed);
        }
    }

    fn touch(&mut self, id: UdpFlowId, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.used = now;
        self.shares.touch(&mut self.flows, id);
    }
}

impl Flow {
    fn expires(&self) -> Instant {
        self.used + if matches!(self.remote.port(), 53 | 123) { IDLE_SHORT } else { IDLE }
    }
}

/// Bytes of the IP packet that a datagram with this payload makes.
pub(crate) fn packet_len(payload: &[u8]) -> usize {
    ipv4::HEADER_LEN + HEADER_LEN + payload.len()
}

/// Writes a whole datagram, header and checksum included, to `buffer`, which is exactly long enough.
fn emit(buffer: &mut [u8], from: SocketAddr, to: SocketAddr, payload: &[u8]) {
    let len = buffer.len();
    let mut datagram = UdpPacket::new_unchecked(buffer);
    datagram.set_src_port(from.port());
    datagram.set_dst_port(to.port());
    datagram.set_len(u16::try_from(len).unwrap_or(u16::MAX));
    datagram.payload_mut().copy_from_slice(payload);
    datagram.set_checksum(0);
    if let (IpAddr::V4(from), IpAddr::V4(to)) = (from.ip(), to.ip()) {
        // A checksum of zero says that there is none; it is sent as its complement (RFC 768).
        let checksum = checksum::transport(from, to, IpProtocol::Udp, datagram.as_ref());
        datagram.set_checksum(if checksum == 0 { u16::MAX } else { checksum });
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::Mac;
    use crate::link::NoSink;

    const ROUTE: Route = Route { port: PortId(0), from: Mac([2; 6]), to: Mac([4; 6]) };

    fn guest(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 2], port))
    }

    fn remote(port: u16) -> SocketAddr {
        SocketAddr::from(([10, 0, 0, 9], port))
    }

    #[test]
    fn a_dialled_flow_holds_what_it_may() {
        let mut table = Table::new(&Keys::new(1));
        let send =
            |table: &mut Table, id, len| table.send(id, &vec![1; len], 1500, Instant::ZERO, &mut NoSink);
        let dial = |table: &mut Table| {
            table.dial(guest(9), [10, 0, 0, 1].into(), Instant::ZERO, &mut DropCounts::default()).unwrap()
        };
        let (first, second) = (dial(&mut table), dial(&mut table));
        assert_ne!(table.ends(first).unwrap().1, table.ends(second).unwrap().1);
        for _ in 0..MAX_HELD {
            assert_eq!(send(&mut table, first, 7), Ok(()));
        }
        assert_eq!(send(&mut table, first, 7), Err(DropReason::PortFull));
        assert_eq!(table.resolved(first, Some(ROUTE)), vec![vec![1; 7]; MAX_HELD]);
        assert_eq!(table.ends(first).unwrap().2, ROUTE);
        // All flows together have a bound too, and give back what they held.
        let many: Vec<_> = (0..MAX_HELD_BYTES / 60_000 + 1).map(|_| dial(&mut table)).collect();
        assert_eq!(many.iter().filter(|id| send(&mut table, **id, 60_000).is_ok()).count(), many.len() - 1);
        for id in many {
            assert_eq!(table.resolved(id, None), Vec::<Vec<u8>>::new());
            assert_eq!(table.poll_closed(), Some(id));
        }
        assert_eq!((table.held, table.len()), (0, 2));
    }

    #[test]
    fn the_least_recently_used_makes_room() {
        let mut table = Table::new(&Keys::new(1));
        let now = Instant::ZERO;
        let ids: Vec<_> = (0..MAX_FLOWS as u16)
            .map(|port| table.open(guest(port + 1), remote(9), ROUTE, now, &mut DropCounts::default()))
            .collect();
        assert_eq!(table.find(guest(1), remote(9), ROUTE, now), Ok(Some(ids[0])));
        table.open(guest(60_000), remote(9), ROUTE, now, &mut DropCounts::default());
        assert_eq!(table.poll_closed(), Some(ids[1]));
        assert_eq!(table.poll_closed(), None);
        assert_eq!(table.len(), MAX_FLOWS);
        table.close(ids[4]);
        table.open(guest(60_001), remote(9), ROUTE, now, &mut DropCounts::default());
        assert_eq!(table.poll_closed(), None);
    }

    #[test]
    fn a_flood_costs_who_makes_it() {
        let (mut table, mut drops) = (Table::new(&Keys::new(1)), DropCounts::default());
        let now = Instant::ZERO;
        let other = Route { port: PortId(1), ..ROUTE };
        let quiet = table.open(guest(1), remote(1), other, now, &mut drops);
        let dialled = table.dial(guest(7), [10, 0, 0, 1].into(), now, &mut drops).unwrap();
        for port in 0..2 * MAX_FLOWS as u16 {
            table.open(guest(port + 1), remote(9), ROUTE, now, &mut drops);
            table.dial(guest(8), [10, 0, 0, 1].into(), now, &mut drops).unwrap();
        }
        assert_eq!(table.len(), 2 * MAX_FLOWS);
        let closed: Vec<_> = core::iter::from_fn(|| table.poll_closed()).collect();
        assert!(!closed.contains(&quiet) && !closed.contains(&dialled), "{closed:?}");
        assert_eq!(drops.of(DropReason::UdpFlows), closed.len() as u64);
        // The other one gets its part of the full table, from who has more.
        for port in 2..100 {
            table.open(guest(port), remote(1), other, now, &mut drops);
        }
        assert_eq!(table.find(guest(1), remote(1), other, now), Ok(Some(quiet)));
        assert_eq!(table.len(), 2 * MAX_FLOWS);
        // An owner without flows is forgotten.
        table.detach(PortId(1));
        assert_eq!(table.len(), 2 * MAX_FLOWS - 99);
    }

    /// Thousands of sockets with one client each are one guest's.
    #[test]
    fn what_many_sockets_of_a_guest_have_is_that_guests() {
        let (mut table, mut drops) = (Table::new(&Keys::new(1)), DropCounts::default());
        let now = Instant::ZERO;
        let host = IpAddr::from([10, 0, 0, 1]);
        let victim = SocketAddr::from(([192, 168, 127, 3], 53));
        let clients: Vec<_> = (0..50).map(|_| table.dial(victim, host, now, &mut drops).unwrap()).collect();
        let popular: Vec<_> = (0..20).map(|_| table.dial(guest(9), host, now, &mut drops).unwrap()).collect();
        for port in 0..2 * MAX_FLOWS as u16 {
            table.dial(guest(1000 + port), host, now, &mut drops).unwrap();
        }
        assert_eq!(table.len(), MAX_FLOWS);
        let closed: Vec<_> = core::iter::from_fn(|| table.poll_closed()).collect();
        assert!(clients.iter().all(|client| !closed.contains(client)), "{closed:?}");
        // Within the guest it is the one with most.
        assert_eq!(closed[..19], popular[..19]);
        assert!(!closed.contains(&popular[19]));
    }

    #[test]
    fn idle_flows_end() {
        let mut table = Table::new(&Keys::new(1));
        let long = table.open(guest(1), remote(9), ROUTE, Instant::ZERO, &mut DropCounts::default());
        let short = table.open(guest(1), remote(53), ROUTE, Instant::ZERO, &mut DropCounts::default());
        table.handle_timeout(Instant::from_secs(15));
        assert_eq!(table.poll_closed(), Some(short));
        assert_eq!(table.find(guest(1), remote(9), ROUTE, Instant::from_secs(60)), Ok(Some(long)));
        table.handle_timeout(Instant::from_secs(120));
        assert_eq!(table.poll_closed(), None);
        assert_eq!(table.poll_timeout(), Some(Instant::from_secs(180)));
        table.handle_timeout(Instant::from_secs(180));
        assert_eq!(table.poll_closed(), Some(long));
        assert_eq!((table.len(), table.poll_timeout()), (0, None));
    }
}
