//! A virtual network as a state machine: frames in, frames out. It has no sockets, clock, threads or
//! environment. The shell around it is the daemon's `src/engine`.
//!
//! Owns: ports and switch, ARP, ICMP, DHCP, DNS zones, TCP and UDP flows, and the policy (`nat.rs`).
//! May not: do I/O, read a clock, draw randomness. The same inputs give the same outputs.
//! Read next: [`Stack`], then `tcp/mod.rs`.
//!
//! # Calling order
//!
//! The driver has a [`Stack`], a clock, the links of guests, and a [`FrameSink`] with a batch buffer for each
//! link. `now` is its clock's time, and never goes back. A turn of the driver is:
//!
//! 1. Give the time to [`Stack::handle_timeout`], and each frame that was read to [`Stack::handle_frame`]. A
//!    UDP [`Datagram`] for the host may come back, to be sent at once.
//! 2. Take events from [`Stack::poll_event`] until `None`. Answer each at once or later: [`Event::TcpOpen`]
//!    with [`Stack::tcp_accept`] or [`Stack::tcp_refuse`], [`Event::DnsQuestion`] with [`Stack::dns_answer`].
//! 3. Take TCP flows from [`Stack::poll_ready`] until `None`. For each, move bytes between its rings and the
//!    host's socket ([`tcp::Flow::recv`], [`tcp::Flow::send`]), then [`Stack::flush`] it, in any case. When
//!    both ends are through with it, [`Stack::tcp_release`] it.
//! 4. Write the batches. Tell [`Stack::handle_room`] of each port whose batch has room again: a sink without
//!    room makes the flow wait, not the caller.
//! 5. Give the memory from [`Stack::poll_idle_memory`] back to the system, until `None`.
//! 6. Sleep until a descriptor is ready, but not past [`Stack::poll_timeout`].
//!
//! # Example
//!
//! A guest asks who has the gateway's address, and the gateway answers:
//!
//! ```
//! use std::net::Ipv4Addr;
//!
//! use netstack::{Event, FrameSink, Instant, Mac, NetworkConfig, PortId, Stack, Subnet};
//!
//! /// What guests are sent, in order.
//! #[derive(Default)]
//! struct Sent(Vec<(PortId, Vec<u8>)>);
//!
//! impl FrameSink for Sent {
//!     fn has_room(&self, _: PortId, _: usize) -> bool {
//!         true
//!     }
//!
//!     fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
//!         self.0.push((port, vec![0; len]));
//!         self.0.last_mut().map(|(_, frame)| frame.as_mut_slice())
//!     }
//! }
//!
//! let gateway = Ipv4Addr::new(192, 168, 127, 1);
//! let mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
//! let config = NetworkConfig::new(Subnet::new(gateway, 24), gateway, mac);
//! // Whoever knows the seed can guess the network's numbers: take it from the system's random numbers.
//! let (mut stack, now) = (Stack::new(config, 1, Instant::ZERO), Instant::ZERO);
//! let port = stack.attach_port(now);
//!
//! let mut question = [0xff; 42]; // to everybody,
//! question[6..12].copy_from_slice(&[2, 0, 0, 0, 0, 7]); // from this hardware address,
//! question[12..22].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4, 0, 1]); // an ARP request (RFC 826)
//! question[22..28].copy_from_slice(&[2, 0, 0, 0, 0, 7]);
//! question[28..32].copy_from_slice(&[192, 168, 127, 7]); // of this address
//! question[38..42].copy_from_slice(&gateway.octets()); // for that one.
//! let mut sent = Sent::default();
//! stack.handle_frame(port, &question, now, &mut sent);
//!
//! let answer = sent.0.iter().find(|(to, frame)| *to == port && frame[12..14] == [8, 6] && frame[21] == 2);
//! let (_, answer) = answer.expect("an ARP reply");
//! assert_eq!(answer[22..28], mac.0);
//! assert_eq!(answer[28..32], gateway.octets());
//!
//! assert_eq!(stack.poll_event(), Some(Event::AddressLearned(Mac([2, 0, 0, 0, 0, 7]))));
//! assert_eq!(stack.poll_event(), None);
//! assert_eq!(stack.poll_ready(), None); // No TCP flow has something to do,
//! assert_eq!(stack.poll_timeout(), None); // and nothing is due.
//! ```
#![forbid(unsafe_code)]

mod arp;
mod buffer;
mod by_port;
mod checksum;
mod config;
mod counters;
mod crossing;
pub mod dhcp;
pub mod dns;
mod drop;
mod ends;
pub mod ether;
mod guard;
mod icmp;
mod instant;
mod ipv4;
mod keys;
mod limit;
mod link;
mod mtu;
mod nat;
mod subnet;
mod switch;
pub mod tcp;
mod timer;
mod turns;
pub mod udp;

use core::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use core::time::Duration;
use std::collections::{HashMap, VecDeque};
use std::ops::Range;

use foldhash::fast::FixedState;
use smoltcp::wire::{ArpOperation, Icmpv4DstUnreachable, IpProtocol, Ipv4Packet, UdpPacket};

pub use buffer::IdleMemory;
pub use by_port::ByPort;
pub use config::NetworkConfig;
pub use drop::{DropCounts, DropReason};
pub use ether::{Mac, ParseMacError};
pub use guard::Address;
pub use icmp::Echo;
pub use instant::Instant;
pub use link::{FrameSink, Guest, PortId};
pub use nat::Target;
pub use subnet::Subnet;
pub use tcp::{FlowId, Refusal};
pub use turns::Turns;
pub use udp::{Datagram, UdpFlowId};

use arp::{Due, Neighbours, Resolved, Waiter, WaitingFlow};
use ether::EtherType;
use guard::{Claimed, Conflict, Guard, Title};
use ipv4::{Header, Reassembly, Route};
use keys::Keys;
use limit::Limit;
use nat::{Nat, Verdict};
use switch::{Destination, Learned, Switch};
use tcp::Segment;
use timer::earlier;

const DNS_PORT: u16 = 53;
const ECHO_PORT: u16 = 7;
/// By how many of its addresses a machine is asked whether it is still there.
const MAX_ASKED: usize = 4;
/// Where clouds tell a machine who it is: no guest tells another.
const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
/// The gateway's HTTP server, which the driver serves.
pub const HTTP_PORT: u16 = 80;

/// The example of README.md is tried with the others.
#[cfg(doctest)]
#[doc = include_str!("../README.md")]
struct Readme;

/// Something the driver has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// A guest dials: connect to `target` and answer with [`Stack::tcp_accept`] or [`Stack::tcp_refuse`].
    TcpOpen {
        /// The new flow.
        flow: FlowId,
        /// What it wants to reach.
        target: Target,
    },
    /// The flow is over: close its socket.
    UdpClosed(UdpFlowId),
    /// The first frame with this source address came.
    AddressLearned(Mac),
    /// The port that had this address is gone.
    AddressLost(Mac),
    /// A guest has come from one port to another.
    AddressMoved {
        /// What it speaks as.
        address: Address,
        /// Where it was.
        from: PortId,
        /// Where it is.
        to: PortId,
    },
    /// A guest speaks as another one that is there, or is to come: two may have been given one address. Of
    /// several in a row the first is told.
    AddressRefused {
        /// What it would speak as.
        address: Address,
        /// Where it is.
        port: PortId,
        /// Where the one is that has it, if it is there.
        holder: Option<PortId>,
    },
    /// An echo request for an address outside. Answer with [`Stack::echo_reply`] or
    /// [`Stack::echo_unreachable`], or not at all.
    Echo {
        /// The request.
        echo: Echo,
        /// Where it leads.
        target: IpAddr,
    },
    /// A question for the host's resolvers: answer with [`Stack::dns_answer`].
    DnsQuestion {
        /// Who asked.
        client: DnsClient,
        /// The message as it came.
        message: Vec<u8>,
    },
}

/// Who asked the gateway's DNS server by UDP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct DnsClient {
    port: PortId,
    mac: Mac,
    address: SocketAddr,
}

impl DnsClient {
    /// The port that it is behind: unlike its address it cannot be forged.
    pub fn port(&self) -> PortId {
        self.port
    }
}

/// The virtual network.
///
/// The [calling order](crate#calling-order) is the crate's. Methods are of four kinds:
///
/// - *Input*: [`handle_frame`](Self::handle_frame), [`handle_timeout`](Self::handle_timeout),
///   [`handle_room`](Self::handle_room).
/// - *Output*: [`poll_event`](Self::poll_event), [`poll_ready`](Self::poll_ready),
///   [`poll_idle_memory`](Self::poll_idle_memory), [`poll_timeout`](Self::poll_timeout).
/// - *Answers* to events: [`tcp_accept`](Self::tcp_accept), [`tcp_refuse`](Self::tcp_refuse),
///   [`dns_answer`](Self::dns_answer), [`echo_reply`](Self::echo_reply).
/// - *Commands*: the rest.
#[derive(Debug)]
pub struct Stack {
    config: NetworkConfig,
    switch: Switch,
    guard: Guard,
    neighbours: Neighbours,
    reassembly: Reassembly,
    /// The datagram that [`Datagram::payload`] borrows from, if it came in fragments.
    assembled: Vec<u8>,
    nat: Nat,
    dhcp: dhcp::DhcpServer,
    zones: dns::Zones,
    tcp: tcp::Table,
    udp: udp::Table,
    events: VecDeque<Event>,
    limits: HashMap<PortId, Limits, FixedState>,
    drops: DropCounts,
    scratch: Vec<u8>,
}

/// A connection into the virtual network could not be started.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ConnectError {
    /// Too many flows, or too many addresses being resolved.
    #[error("too many connections")]
    Busy,
    /// The address is not in the virtual network.
    #[error("no route to host")]
    NoRoute,
}

/// What a port may have others do.
#[derive(Debug)]
struct Limits {
    /// Packets of its that are answered with ICMP time exceeded.
    exceeded: Limit,
    /// Frames that go to every other port.
    flooded: Limit,
}

impl Limits {
    fn new(now: Instant) -> Self {
        Self {
            exceeded: Limit::new(Duration::from_millis(10), 50, now),
            flooded: Limit::new(Duration::from_millis(1), 512, now),
        }
    }
}

/// Where in which buffer a datagram's payload is.
struct Place {
    flow: UdpFlowId,
    open: Option<SocketAddr>,
    assembled: bool,
    range: Range<usize>,
}

impl Stack {
    /// `seed` is for sequence numbers and hash tables, and has to be unpredictable for the guest.
    pub fn new(config: NetworkConfig, seed: u128, now: Instant) -> Self {
        let keys = Keys::new(seed);
        Self {
            switch: Switch::new(config.assumed_mtu, keys.tables),
            guard: Guard::new(keys.tables),
            neighbours: Neighbours::new(keys.tables),
            reassembly: Reassembly::new(keys.tables),
            assembled: Vec::new(),
            nat: Nat::new(&config),
            dhcp: dhcp::DhcpServer::new(&config),
            zones: dns::Zones::new(config.zones.clone()),
            tcp: tcp::Table::new(config.mtu, config.gateway_mac, &keys, now),
            udp: udp::Table::new(&keys),
            events: VecDeque::new(),
            limits: HashMap::with_hasher(FixedState::with_seed(keys.tables)),
            drops: DropCounts::default(),
            scratch: Vec::new(),
            config,
        }
    }

    /// A new port.
    pub fn attach_port(&mut self, now: Instant) -> PortId {
        let port = self.switch.attach();
        self.tcp.attach(port, now);
        self.limits.insert(port, Limits::new(now));
        port
    }

    /// The port is gone. Its flows end and its hardware addresses are forgotten. Leases stay, and some of the
    /// addresses that its machines spoke as are kept for them.
    pub fn detach_port(&mut self, port: PortId, now: Instant) {
        self.events.extend(self.switch.detach(port).map(Event::AddressLost));
        self.guard.detach(port, now);
        self.neighbours.detach(port);
        self.tcp.detach(port);
        self.udp.detach(port);
        self.limits.remove(&port);
    }

    /// Takes one frame from a port, without FCS. A UDP datagram for the host comes back to be sent at once.
    pub fn handle_frame<'a>(
        &'a mut self,
        port: PortId,
        frame: &'a [u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Option<Datagram<'a>> {
        match self.switch_frame(port, frame, now, sink) {
            Ok(None) => None,
            Ok(Some(Place { flow, open, assembled, range })) => {
                let buffer = if assembled { self.assembled.as_slice() } else { frame };
                buffer.get(range).map(|payload| Datagram { flow, open, payload })
            }
            Err(reason) => {
                self.drops.count(reason);
                None
            }
        }
    }

    /// Bounds how many connects of a port's guests may be under way, about. Beyond twice as many the oldest
    /// are given up.
    pub fn limit_opening(&mut self, max: usize) {
        self.tcp.limit_opening(max);
    }

    /// Whether [`poll_event`](Self::poll_event) has something.
    #[inline]
    pub fn has_events(&self) -> bool {
        !self.events.is_empty()
    }

    /// The time is `now`: sends what is due.
    pub fn handle_timeout(&mut self, now: Instant, sink: &mut impl FrameSink) {
        self.tcp.handle_timeout(now);
        self.udp.handle_timeout(now);
        while let Some(due) = self.neighbours.handle_timeout(now) {
            match due {
                Due::Ask(ip) => self.ask_for(ip, sink),
                Due::Failed(flows) => flows.into_iter().for_each(|flow| self.resolved(flow, None, now, sink)),
            }
        }
        while let Some(due) = self.guard.poll_conflict(now) {
            match due {
                guard::Due::Ask(conflict) => self.ask_about(conflict.address, sink),
                guard::Due::Settle(conflict) => self.settle(&conflict, now, sink),
            }
        }
    }

    /// The port's batch has room again.
    pub fn handle_room(&mut self, port: PortId) {
        self.tcp.handle_room(port);
    }

    /// The next thing to do, until `None`.
    pub fn poll_event(&mut self) -> Option<Event> {
        self.events.pop_front().or_else(|| self.udp.poll_closed().map(Event::UdpClosed))
    }

    /// The next TCP flow whose state, data or room may have changed, until `None`. [`flush`](Self::flush) it
    /// in any case.
    #[inline]
    pub fn poll_ready(&mut self) -> Option<FlowId> {
        self.tcp.poll_ready()
    }

    /// How many flows [`poll_ready`](Self::poll_ready) has, about; none where it is 0.
    pub fn ready_len(&self) -> usize {
        self.tcp.ready_len()
    }

    /// Memory of a ring that has been empty for a while, until `None`: to be given back to the system.
    pub fn poll_idle_memory(&mut self, now: Instant) -> Option<IdleMemory<'_>> {
        self.tcp.poll_idle_memory(now)
    }

    /// Whether [`poll_idle_memory`](Self::poll_idle_memory) may have some.
    pub fn has_idle_memory(&self) -> bool {
        self.tcp.has_idle_memory()
    }

    /// When to call [`handle_timeout`](Self::handle_timeout), if at all.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let flows = earlier(self.tcp.poll_timeout(), self.udp.poll_timeout());
        earlier(flows, earlier(self.neighbours.poll_timeout(), self.guard.poll_timeout()))
    }

    /// Guests open `max` UDP flows at a time, [`udp::MAX_FLOWS`] at most.
    pub fn limit_udp(&mut self, max: usize) {
        self.udp.limit(max);
    }

    /// A TCP flow.
    #[inline]
    pub fn flow(&mut self, flow: FlowId) -> Option<&mut tcp::Flow> {
        self.tcp.get_mut(flow)
    }

    /// Whose a TCP flow is, if its guest has been found.
    pub fn tcp_guest(&self, flow: FlowId) -> Option<Guest> {
        self.tcp.guest(flow)
    }

    /// Where that guest is now, if it is there: its port, or the one that its machine came back to.
    pub fn find_guest(&self, guest: Guest) -> Option<Guest> {
        match self.switch.ports().contains(&guest.port) {
            true => Some(guest),
            false => {
                let (port, mac) = self.guard.user(guest.address)?;
                Some(Guest { port, mac, ..guest }).filter(|found| found.is(guest))
            }
        }
    }

    /// Has the flow named by [`poll_ready`](Self::poll_ready) again.
    pub fn mark_ready(&mut self, flow: FlowId) {
        self.tcp.mark_ready(flow);
    }

    /// Sends what the flow has to send, up to a turn's worth.
    pub fn flush(&mut self, flow: FlowId, now: Instant, sink: &mut impl FrameSink) {
        self.tcp.flush(flow, |guest| self.switch.seen(guest), now, sink);
    }

    /// The other end is connected: the guest hears of it.
    pub fn tcp_accept(&mut self, flow: FlowId, now: Instant, sink: &mut impl FrameSink) {
        self.tcp.accept(flow, now, sink);
    }

    /// The other end cannot be had. The flow is gone.
    pub fn tcp_refuse(&mut self, flow: FlowId, refusal: Refusal, now: Instant, sink: &mut impl FrameSink) {
        let Some((route, syn)) = self.tcp.refuse(flow, refusal, now, sink) else { return };
        let guest = Ipv4Packet::new_unchecked(&syn[..]).src_addr();
        let reason = Icmpv4DstUnreachable::HostUnreachable;
        self.send_unreachable(route, self.config.gateway, guest, reason, &syn, sink);
    }

    /// Dials a guest as the gateway. The flow is ready when it is connected, or when it failed.
    pub fn tcp_connect(
        &mut self,
        guest: SocketAddrV4,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<FlowId, ConnectError> {
        self.tcp_connect_from(self.config.gateway, guest, now, sink)
    }

    /// The same from `local`, which has to be an address of the gateway's.
    pub fn tcp_connect_from(
        &mut self,
        local: Ipv4Addr,
        guest: SocketAddrV4,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<FlowId, ConnectError> {
        self.dial_tcp(local, guest, None, now, sink)
    }

    /// As [`tcp_connect`](Self::tcp_connect), but for `only` one machine, if given: another one that has its
    /// address sees nothing of it.
    pub fn tcp_connect_to(
        &mut self,
        guest: SocketAddrV4,
        only: Option<Guest>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<FlowId, ConnectError> {
        self.dial_tcp(self.config.gateway, guest, only, now, sink)
    }

    fn dial_tcp(
        &mut self,
        local: Ipv4Addr,
        guest: SocketAddrV4,
        only: Option<Guest>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<FlowId, ConnectError> {
        self.ensure_guest(*guest.ip())?;
        let dialled = self.tcp.dial(SocketAddr::V4(guest), IpAddr::V4(local), now, &mut self.drops);
        let flow = dialled.map_err(|reason| self.busy(reason))?;
        self.resolve(*guest.ip(), Waiter { flow: WaitingFlow::Tcp(flow), only }, now, sink);
        Ok(flow)
    }

    /// The driver is done with the flow. What is owed to the guest is still sent. With `abort` a RST follows.
    /// Else it is as after close(2): a FIN follows, and a RST answers what the guest goes on to send. A flow
    /// that does not end within a minute is forgotten.
    pub fn tcp_release(&mut self, flow: FlowId, abort: bool) {
        self.tcp.release(flow, abort, &mut self.drops);
    }

    /// A flow from the gateway to a guest, for datagrams of somebody outside. [`Event::UdpClosed`] tells its
    /// end: nobody answered for the guest, or nobody has its port, or it was idle, or it made room for
    /// another.
    pub fn udp_connect(
        &mut self,
        guest: SocketAddrV4,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<UdpFlowId, ConnectError> {
        self.udp_connect_to(guest, None, now, sink)
    }

    /// The same, as [`tcp_connect_to`](Self::tcp_connect_to).
    pub fn udp_connect_to(
        &mut self,
        guest: SocketAddrV4,
        only: Option<Guest>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<UdpFlowId, ConnectError> {
        self.ensure_guest(*guest.ip())?;
        let flow = self
            .udp
            .dial(SocketAddr::V4(guest), IpAddr::V4(self.config.gateway), now, &mut self.drops)
            .ok_or(ConnectError::Busy)?;
        self.resolve(*guest.ip(), Waiter { flow: WaitingFlow::Udp(flow), only }, now, sink);
        Ok(flow)
    }

    /// A datagram came back for the flow. Lost if the port has no room, as on any full link.
    pub fn udp_send(&mut self, flow: UdpFlowId, payload: &[u8], now: Instant, sink: &mut impl FrameSink) {
        let Some((_, _, route)) = self.udp.ends(flow) else { return };
        let mtu = self.mtu_to(route.to, udp::packet_len(payload));
        if let Err(reason) = self.udp.send(flow, payload, mtu, now, sink) {
            self.drops.count(reason);
        }
    }

    /// The port that the flow's guest is behind, once that is known.
    pub fn udp_port(&self, flow: UdpFlowId) -> Option<PortId> {
        self.udp
            .ends(flow)
            .map(|(_, _, route)| route)
            .filter(|route| *route != Route::NOWHERE)
            .map(|route| route.port)
    }

    /// The host heard that nobody listens at the flow's remote end; so does the guest.
    pub fn udp_refused(&mut self, flow: UdpFlowId, sink: &mut impl FrameSink) {
        let Some((SocketAddr::V4(guest), SocketAddr::V4(remote), route)) = self.udp.ends(flow) else {
            return;
        };
        let quoted = icmp::quoted_datagram(guest, remote);
        let from = *remote.ip();
        self.send_unreachable(route, from, *guest.ip(), Icmpv4DstUnreachable::PortUnreachable, &quoted, sink);
    }

    /// The driver closed the flow's socket.
    pub fn udp_close(&mut self, flow: UdpFlowId) {
        self.udp.close(flow);
    }

    /// The answer to an [`Event::DnsQuestion`].
    pub fn dns_answer(&mut self, client: DnsClient, message: &[u8], sink: &mut impl FrameSink) {
        let route = Route { port: client.port, from: self.config.gateway_mac, to: client.mac };
        let from = SocketAddr::new(self.config.gateway.into(), DNS_PORT);
        let mtu = self.mtu_to(client.mac, udp::packet_len(message));
        if let Err(reason) = self.udp.send_between(route, from, client.address, message, mtu, sink) {
            self.drops.count(reason);
        }
    }

    /// `data` came back for an [`Event::Echo`], or for a later one of the same guest, target and identifier.
    /// It is what follows the header of the reply; `number` is the sequence number in that.
    pub fn echo_reply(&mut self, echo: &Echo, number: u16, data: &[u8], sink: &mut impl FrameSink) {
        let (guest, remote) = echo.ends();
        let mut reply = core::mem::take(&mut self.scratch);
        echo.reply(number, data, &mut reply);
        let header = Header { source: remote, destination: guest, protocol: IpProtocol::Icmp };
        let mtu = self.mtu_to(echo.route().to, ipv4::HEADER_LEN + reply.len());
        let ident = Ipv4Packet::new_unchecked(echo.packet()).ident();
        if let Err(reason) = ipv4::send(sink, echo.route(), header, &reply, ident, mtu) {
            self.drops.count(reason);
        }
        self.scratch = reply;
    }

    /// The host has no way to whom an [`Event::Echo`] asks.
    pub fn echo_unreachable(&mut self, echo: &Echo, sink: &mut impl FrameSink) {
        let ((guest, _), reason) = (echo.ends(), Icmpv4DstUnreachable::HostUnreachable);
        self.send_unreachable(echo.route(), self.config.gateway, guest, reason, echo.packet(), sink);
    }

    /// What the gateway's own zones say to a DNS message; the reply, if any, is in `out`.
    pub fn dns_query(&self, message: &[u8], transport: dns::Transport, out: &mut Vec<u8>) -> dns::Verdict {
        self.zones.handle_query(message, transport, out)
    }

    /// The gateway's own zones, in the order in which they are tried.
    pub fn zones(&self) -> impl Iterator<Item = &dns::Zone> {
        self.zones.iter()
    }

    /// Changes the gateway's own zones: see [`dns::Zones::change`].
    ///
    /// # Errors
    /// The zone is protected, or there is nothing to remove.
    pub fn change_zones(&mut self, change: dns::ZoneChange) -> Result<(), dns::ZoneError> {
        self.zones.change(change)
    }

    /// The DHCP server's leases and reservations.
    pub fn leases(&self, now: Instant) -> impl Iterator<Item = (Ipv4Addr, Mac)> + '_ {
        self.dhcp.leases(since_start(now))
    }

    /// The guest with this hardware address is no more: its lease ends. A reservation stays.
    pub fn end_lease(&mut self, client: Mac, now: Instant) {
        self.dhcp.end_lease(client, since_start(now));
    }

    /// Which port has which hardware address.
    pub fn addresses(&self) -> impl Iterator<Item = (Mac, PortId)> + '_ {
        self.switch.addresses()
    }

    /// What was dropped, and why.
    pub fn drops(&self) -> &DropCounts {
        &self.drops
    }

    /// TCP and UDP flows there are.
    pub fn flows(&self) -> (usize, usize) {
        (self.tcp.len(), self.udp.len())
    }

    fn switch_frame(
        &mut self,
        port: PortId,
        frame: &[u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Place>, DropReason> {
        let (header, payload) = ether::parse(frame).ok_or(DropReason::ShortFrame)?;
        if header.from.is_group() || header.from == self.config.gateway_mac {
            return Err(DropReason::BadSource);
        }
        if let Err(reason) = self.admit(port, &header, payload, now, sink) {
            if reason == DropReason::Claimed {
                self.note_refused(port, &header, payload, now, sink);
            }
            return Err(reason);
        }
        if payload.len() > usize::from(self.config.assumed_mtu) {
            self.switch.shown(header.from, mtu::shown(&header, payload));
        }
        let route = Route { port, from: self.config.gateway_mac, to: header.from };
        if header.to != self.config.gateway_mac {
            match self.switch.destination(header.to) {
                Destination::Port(to, _) if to == port => return Err(DropReason::NoPort),
                Destination::Port(..) if !crossing::may_cross(frame) => return Err(DropReason::GatewaysPart),
                Destination::Port(to, mtu) => {
                    return mtu::forward(&self.config, sink, route, to, mtu, frame).map(|()| None);
                }
                Destination::Flood if self.switch.ports().len() == 1 => {}
                // The gateway itself may be told, and is below.
                Destination::Flood if !crossing::may_cross(frame) => {
                    self.drops.count(DropReason::GatewaysPart)
                }
                Destination::Flood
                    if !self.limits.get_mut(&port).is_some_and(|limits| limits.flooded.allows(now)) =>
                {
                    self.drops.count(DropReason::Storm);
                }
                Destination::Flood => {
                    let mtu = self.config.assumed_mtu;
                    for to in self.switch.ports().iter().filter(|to| **to != port) {
                        if let Err(reason) = mtu::forward(&self.config, sink, route, *to, mtu, frame) {
                            self.drops.count(reason);
                        }
                    }
                }
            }
            if !header.to.is_group() {
                return if self.switch.ports().len() > 1 { Ok(None) } else { Err(DropReason::NoPort) };
            }
        }
        match header.ether_type {
            Some(EtherType::Arp) => self.handle_arp(route, payload, now, sink).map(|()| None),
            Some(EtherType::Ipv4) => {
                let packet = Ipv4Packet::new_checked(payload).map_err(|_| DropReason::Ipv4)?;
                if packet.version() != 4 {
                    return Err(DropReason::Ipv4);
                }
                // RFC 1122 3.3.6: what came to everybody is for everybody.
                let to = packet.dst_addr();
                if header.to.is_group() && !to.is_multicast() && !to.is_broadcast() {
                    return Err(DropReason::Martian);
                }
                if packet.hop_limit() <= 1 && self.is_beyond(to) {
                    return self.expire(route, &packet, now, sink).map(|()| None);
                }
                if !packet.more_frags() && packet.frag_offset() == 0 {
                    let place = self.handle_packet(route, &packet, now, sink)?;
                    return Ok(place.map(|place| place.shifted(ether::HEADER_LEN)));
                }
                let Some(whole) = self.reassembly.add(port, &packet, now, &mut self.drops)? else {
                    return Ok(None);
                };
                let packet = Ipv4Packet::new_checked(&whole[..]).map_err(|_| DropReason::Ipv4)?;
                let place = self.handle_packet(route, &packet, now, sink)?;
                self.assembled = whole;
                Ok(place.map(|place| Place { assembled: true, ..place }))
            }
            Some(EtherType::Ipv6) | None => Err(DropReason::EtherType),
        }
    }

    /// Whether the sender of a frame is who it says that it is: see `guard.rs`.
    #[inline]
    fn admit(
        &mut self,
        port: PortId,
        header: &ether::Header,
        payload: &[u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let ip = match header.ether_type {
            Some(EtherType::Ipv4) => ipv4::source(payload).ok_or(DropReason::Ipv4)?,
            Some(EtherType::Arp) => {
                return self.admit_news(port, header, Ipv4Addr::UNSPECIFIED, payload, now, sink);
            }
            Some(EtherType::Ipv6) | None => Ipv4Addr::UNSPECIFIED,
        };
        match self.switch.is_admitted(header.from, port, ip, self.guard.epoch(), now) {
            true => Ok(()),
            false => self.admit_news(port, header, ip, payload, now, sink),
        }
    }

    /// A frame of which the switch did not know that its sender may say so.
    #[inline(never)]
    fn admit_news(
        &mut self,
        port: PortId,
        header: &ether::Header,
        mut ip: Ipv4Addr,
        payload: &[u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let learned = self.switch.learn(header.from, port, now);
        self.admit_hardware(header.from, port, learned, now, sink)?;
        if header.ether_type == Some(EtherType::Arp) {
            let message = arp::parse(payload)?;
            let (sender, mac) = message.sender;
            let is_anothers = self.switch.port_of(mac).is_some_and(|holder| holder != port);
            if self.is_gateway(sender) || mac == self.config.gateway_mac || is_anothers {
                return Err(DropReason::Claimed);
            }
            ip = if sender.is_unspecified() { self.probed(port, &message, now, sink)? } else { sender };
        }
        // Who has none yet asks for one, or whether it is free; and others than IPv4's are nobody's.
        if ip.is_unspecified() {
            return Ok(());
        }
        self.admit_ip(ip, header.from, port, now, sink)
    }

    /// A frame from an address that may not have been known behind the port.
    fn admit_hardware(
        &mut self,
        mac: Mac,
        port: PortId,
        learned: Learned,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let address = Address::Hardware(mac);
        let from = match learned {
            Learned::Known => return Ok(()),
            Learned::New(forgotten) => {
                self.events.extend(forgotten.map(Event::AddressLost));
                self.events.push_back(Event::AddressLearned(mac));
                return Ok(());
            }
            Learned::Moved(from) => from,
            Learned::Elsewhere(holder) if self.is_silent(holder, port) => {
                self.switch.take(mac, port, now);
                holder
            }
            Learned::Elsewhere(holder) => {
                let can_be_asked = self.guard.addresses(holder, mac).next().is_some();
                if self.guard.want(mac, port, can_be_asked, now) {
                    self.ask_about(address, sink);
                }
                self.refuse(address, port, Some(holder));
                return Err(DropReason::Claimed);
            }
        };
        self.events.push_back(Event::AddressMoved { address, from, to: port });
        Ok(())
    }

    /// A packet that says that it comes from `ip`.
    fn admit_ip(
        &mut self,
        ip: Ipv4Addr,
        mac: Mac,
        port: PortId,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let is_gateways = self.is_gateway(ip)
            || ip == METADATA
            || self.config.nat.iter().any(|(address, _)| *address == IpAddr::V4(ip));
        if is_gateways || nat::is_martian(ip) || ip.is_multicast() || ip.is_broadcast() {
            return Err(DropReason::Martian);
        }
        // Of other networks' addresses, which guests lead to one another, nobody here is the owner.
        if !self.config.subnet.contains(ip) {
            return Ok(());
        }
        let title = self.title(ip, port, now);
        let holder = self.guard.holder(ip).filter(|holder| *holder != port && title == Title::Open);
        if holder.is_some_and(|holder| self.is_silent(holder, port)) {
            self.take_ip(ip, (port, mac), now, sink);
        }
        let switch = &self.switch;
        match self.guard.claim(ip, (port, mac), title, |mac| switch.home_of(mac, now), now) {
            Claimed::Held => {}
            Claimed::Taken(from) => self.moved(ip, from, port),
            Claimed::Refused { holder, ask } => {
                if ask {
                    self.ask_about(Address::Ip(ip), sink);
                }
                self.refuse(Address::Ip(ip), port, holder);
                return Err(DropReason::Claimed);
            }
        }
        self.switch.may_speak_as(mac, ip, self.guard.epoch());
        Ok(())
    }

    /// Asks whoever has an address that another one wants.
    fn ask_about(&mut self, address: Address, sink: &mut impl FrameSink) {
        match address {
            Address::Hardware(mac) => {
                let Some(holder) = self.switch.port_of(mac) else { return };
                let asked: Vec<Ipv4Addr> = self.guard.addresses(holder, mac).take(MAX_ASKED).collect();
                asked.into_iter().for_each(|ip| self.ask_port(ip, holder, sink));
            }
            Address::Ip(ip) => {
                if let Some(holder) = self.guard.holder(ip) {
                    self.ask_port(ip, holder, sink);
                }
            }
        }
    }

    /// Another port than before has `ip`: nothing leads to the old one any more.
    fn moved(&mut self, ip: Ipv4Addr, from: Option<PortId>, to: PortId) {
        if self.switch.ports().len() > 1 {
            self.neighbours.forget(ip);
            // All flows are looked at: not for each address that is new.
            if from.is_some() {
                self.tcp.forget_guest(ip, to);
                self.udp.forget_guest(ip, to);
            }
        }
        self.events.extend(from.map(|from| Event::AddressMoved { address: Address::Ip(ip), from, to }));
    }

    /// Who had an address that another one wants has had its time: if it said nothing, the other has it.
    fn settle(&mut self, conflict: &Conflict, now: Instant, sink: &mut impl FrameSink) {
        let Conflict { address, by, mac, .. } = *conflict;
        match address {
            Address::Hardware(_) => {
                let unheard = |holder: &PortId| {
                    *holder != by && self.switch.seen(mac).is_some_and(|seen| seen < conflict.since)
                };
                let Some(from) = self.switch.port_of(mac).filter(unheard) else { return };
                self.switch.take(mac, by, now);
                self.events.push_back(Event::AddressMoved { address, from, to: by });
                self.note_silence(from, conflict);
            }
            Address::Ip(ip) if self.title(ip, by, now) == Title::Anothers => {}
            Address::Ip(ip) => {
                if !self.guard.is_lost(ip, conflict) {
                    return;
                }
                if let Some(from) = self.take_ip(ip, (by, mac), now, sink) {
                    self.note_silence(from, conflict);
                }
            }
        }
    }

    /// Gives the address to `mac` behind `by`, from whoever has it: that port comes back.
    fn take_ip(
        &mut self,
        ip: Ipv4Addr,
        (by, mac): (PortId, Mac),
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Option<PortId> {
        let from = self.guard.take(ip, (by, mac), now)?;
        self.moved(ip, Some(from), by);
        // Whoever has it told others so at once, who did not hear it.
        let others = self.switch.ports().iter().copied();
        let others: Vec<PortId> = others.filter(|port| ![by, from].contains(port)).collect();
        for port in others {
            let told = arp::send(sink, port, ArpOperation::Request, (ip, mac), (ip, Mac::BROADCAST));
            if let Err(reason) = told {
                self.drops.count(reason);
            }
        }
        Some(from)
    }

    /// Who lost the conflict may have said nothing of anything else either.
    fn note_silence(&mut self, from: PortId, conflict: &Conflict) {
        if self.switch.heard(from).is_none_or(|heard| heard < conflict.since) {
            self.guard.note_silent(from, conflict.by, conflict.since);
        }
    }

    /// Whether `from` was asked for an address that `by` has now, and has said nothing at all since: it is
    /// gone, with all that it had.
    fn is_silent(&self, from: PortId, by: PortId) -> bool {
        let since = self.guard.silent_since(from, by);
        since.is_some_and(|since| self.switch.heard(from).is_none_or(|heard| heard < since))
    }

    /// Somebody without an address asks whether one is free (RFC 5227 2.1). Says the address that it speaks
    /// as by that, if any.
    fn probed(
        &mut self,
        port: PortId,
        message: &arp::Message,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Ipv4Addr, DropReason> {
        let ip = message.target;
        // It is another's. The one that is about to use it would take a second one who asks for a conflict,
        // and answers nobody yet.
        let leased = self.dhcp.owner(ip, since_start(now)).map(|owner| owner.client);
        let leased = leased.filter(|_| self.title(ip, port, now) == Title::Anothers);
        let newcomer = self.guard.newcomer(ip, now).filter(|(holder, _)| *holder != port);
        if let Some(owner) = leased.or_else(|| newcomer.map(|(_, mac)| mac)) {
            arp::send(sink, port, ArpOperation::Reply, (ip, owner), message.sender)?;
            return Err(DropReason::Claimed);
        }
        // If nobody has it, nobody is to say so from now on.
        let is_free = message.operation == ArpOperation::Request
            && self.guard.owner(ip, now).is_none()
            && self.config.subnet.contains(ip)
            && !self.is_gateway(ip);
        Ok(if is_free { ip } else { Ipv4Addr::UNSPECIFIED })
    }

    /// Of what comes from another's address only the DHCP server hears: the sender believes to have the
    /// address, and has to hear that it has not.
    fn note_refused(
        &mut self,
        port: PortId,
        header: &ether::Header,
        payload: &[u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let Ok(packet) = Ipv4Packet::new_checked(payload) else { return };
        let is_here = header.ether_type == Some(EtherType::Ipv4)
            && self.switch.port_of(header.from) == Some(port)
            && (self.is_gateway(packet.dst_addr()) || packet.dst_addr().is_broadcast());
        let is_whole = !packet.more_frags() && packet.frag_offset() == 0;
        if !is_here || !is_whole || packet.next_header() != IpProtocol::Udp {
            return;
        }
        let Ok(datagram) = UdpPacket::new_checked(packet.payload()) else { return };
        if datagram.dst_port() == dhcp::SERVER_PORT {
            let route = Route { port, from: self.config.gateway_mac, to: header.from };
            let source = SocketAddrV4::new(packet.src_addr(), datagram.src_port());
            // The frame is counted as refused, whatever comes of it.
            let _ = self.handle_dhcp(route, source, datagram.payload(), now, sink);
        }
    }

    /// What reservations, leases and offers say about `ip` behind `port`. The reserved address of a machine
    /// that is not there may have been given by hand to one that was alone then. A machine that leases it
    /// from behind another port, which is still there, may have moved, or somebody speaks in its name.
    fn title(&self, ip: Ipv4Addr, port: PortId, now: Instant) -> Title {
        let Some(owner) = self.dhcp.owner(ip, since_start(now)) else { return Title::Open };
        let is_free = self.guard.owner(ip, now).is_none();
        let leased_to = owner.port.filter(|leased| self.switch.ports().contains(leased));
        match (self.switch.home_of(owner.client, now), self.switch.port_of(owner.client)) {
            _ if owner.is_offer && !is_free => Title::Open,
            (Some(home), _) if home == port && leased_to.is_none_or(|leased| leased == port) => Title::Own,
            (_, Some(user)) if user == port => Title::Open,
            (_, Some(_)) => Title::Anothers,
            _ if leased_to == Some(port) => Title::Own,
            _ if leased_to.is_some() => Title::Anothers,
            _ if owner.is_reserved && self.switch.is_shared() && is_free => Title::Anothers,
            _ => Title::Open,
        }
    }

    fn refuse(&mut self, address: Address, port: PortId, holder: Option<PortId>) {
        if !matches!(self.events.back(), Some(Event::AddressRefused { .. })) {
            self.events.push_back(Event::AddressRefused { address, port, holder });
        }
    }

    fn handle_arp(
        &mut self,
        route: Route,
        payload: &[u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let message = arp::parse(payload)?;
        let (ip, mac) = message.sender;
        if mac == route.to && !self.is_gateway(ip) && self.config.subnet.contains(ip) && !mac.is_group() {
            if self.neighbours.has_moved(ip, mac, route.port, now) {
                self.tcp.readdress(ip, route);
                self.udp.readdress(ip, route);
            }
            for flow in self.neighbours.learn(ip, mac, route.port, now) {
                self.resolved(flow, Some((mac, route.port)), now, sink);
            }
        }
        if message.operation == ArpOperation::Request && self.is_gateway(message.target) {
            let sender = (message.target, self.config.gateway_mac);
            arp::send(sink, route.port, ArpOperation::Reply, sender, message.sender)?;
        }
        Ok(())
    }

    /// Takes a whole IP packet. A range that comes back is one of the packet.
    fn handle_packet(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Place>, DropReason> {
        let (source, destination) = (packet.src_addr(), packet.dst_addr());
        // A guest speaks from the subnet; before it has an address, from none. To the DHCP server it may
        // speak from an address of another network, and hears that it needs another (RFC 2131 4.3.2). Routers
        // behind a guest have addresses of their own.
        let is_guest = self.config.subnet.contains(source);
        let is_expected = is_guest || source.is_unspecified() || self.is_from_elsewhere(packet);
        if nat::is_martian(destination) || !is_expected {
            return Err(DropReason::Martian);
        }
        match packet.next_header() {
            IpProtocol::Udp => self.handle_datagram(route, packet, now, sink),
            _ if source.is_unspecified() => Err(DropReason::Martian),
            IpProtocol::Tcp => self.handle_segment(route, packet, now, sink).map(|()| None),
            IpProtocol::Icmp if icmp::is_report(packet.payload()) => self
                .handle_report(route, icmp::Report::parse(packet.payload(), destination)?, now)
                .map(|()| None),
            IpProtocol::Icmp => {
                let from = match destination {
                    to if self.is_gateway(to) => to,
                    Ipv4Addr::BROADCAST => self.config.gateway,
                    _ => return self.ask_outside(route, packet).map(|()| None),
                };
                icmp::echo_reply(packet.payload(), &mut self.scratch)?;
                let header = Header { source: from, destination: source, protocol: IpProtocol::Icmp };
                let mtu = self.mtu_to(route.to, ipv4::HEADER_LEN + self.scratch.len());
                ipv4::send(sink, route, header, &self.scratch, packet.ident(), mtu)?;
                Ok(None)
            }
            _ => {
                if !destination.is_multicast() && !destination.is_broadcast() {
                    let original = packet.clone().into_inner();
                    let reason = Icmpv4DstUnreachable::ProtoUnreachable;
                    self.send_unreachable(route, destination, source, reason, original, sink);
                }
                Err(DropReason::Protocol)
            }
        }
    }

    /// What was sent to a guest did not arrive. Only who is on the way to that guest may say so, and only of
    /// what is on its way.
    fn handle_report(&mut self, route: Route, report: icmp::Report, now: Instant) -> Result<(), DropReason> {
        match report.protocol {
            IpProtocol::Tcp => self.tcp.handle_report(route, &report, now),
            IpProtocol::Udp => self.udp.handle_report(route, &report),
            _ => Err(DropReason::Icmp),
        }
    }

    /// An echo request for neither the gateway nor a guest. ICMP has no ports, so the policy is asked about
    /// the port of echo (RFC 862).
    fn ask_outside(&mut self, route: Route, packet: &Ipv4Packet<&[u8]>) -> Result<(), DropReason> {
        match self.nat.decide(SocketAddr::new(packet.dst_addr().into(), ECHO_PORT)) {
            Verdict::Allow(Target::Host(target)) => {
                let echo = Echo::new(route, packet)?;
                self.events.push_back(Event::Echo { echo, target: target.ip() });
                Ok(())
            }
            _ => Err(DropReason::Policy),
        }
    }

    fn handle_segment(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let Segment::Syn { guest, remote } = self.tcp.handle_segment(route, packet, now, sink)? else {
            return Ok(());
        };
        match self.nat.decide(remote) {
            Verdict::Allow(Target::Gateway(port)) if !matches!(port, DNS_PORT | HTTP_PORT) => {
                self.tcp.reply_reset(route, packet, now, sink);
                Ok(())
            }
            Verdict::Allow(target) => {
                let flow = self.tcp.hold(route, packet, (guest, remote), now, &mut self.drops)?;
                self.events.push_back(Event::TcpOpen { flow, target });
                Ok(())
            }
            Verdict::Refuse => {
                self.tcp.reply_reset(route, packet, now, sink);
                Err(DropReason::Policy)
            }
            Verdict::Drop => Err(DropReason::Policy),
        }
    }

    fn handle_datagram(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Place>, DropReason> {
        let datagram = UdpPacket::new_checked(packet.payload()).map_err(|_| DropReason::Udp)?;
        let guest = SocketAddr::new(packet.src_addr().into(), datagram.src_port());
        let remote = SocketAddr::new(packet.dst_addr().into(), datagram.dst_port());
        if remote.port() == dhcp::SERVER_PORT {
            return self
                .handle_dhcp(
                    route,
                    SocketAddrV4::new(packet.src_addr(), datagram.src_port()),
                    datagram.payload(),
                    now,
                    sink,
                )
                .map(|()| None);
        }
        if packet.src_addr().is_unspecified() || guest.port() == 0 {
            return Err(DropReason::Martian);
        }
        let start = usize::from(packet.header_len()) + udp::HEADER_LEN;
        let range = start..start + datagram.payload().len();
        if let Some(flow) = self.udp.find(guest, remote, route, now)? {
            return Ok(Some(Place { flow, open: None, assembled: false, range }));
        }
        match self.nat.decide(remote) {
            Verdict::Allow(Target::Gateway(DNS_PORT)) => {
                self.handle_dns(route, guest, datagram.payload(), sink).map(|()| None)
            }
            Verdict::Allow(Target::Gateway(_)) => {
                let original = packet.clone().into_inner();
                let reason = Icmpv4DstUnreachable::PortUnreachable;
                self.send_unreachable(route, packet.dst_addr(), packet.src_addr(), reason, original, sink);
                Err(DropReason::Policy)
            }
            Verdict::Allow(Target::Host(target)) => {
                let flow = self.udp.open(guest, remote, route, now, &mut self.drops);
                Ok(Some(Place { flow, open: Some(target), assembled: false, range }))
            }
            Verdict::Refuse | Verdict::Drop => Err(DropReason::Policy),
        }
    }

    fn handle_dns(
        &mut self,
        route: Route,
        guest: SocketAddr,
        message: &[u8],
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let client = DnsClient { port: route.port, mac: route.to, address: guest };
        let mut reply = core::mem::take(&mut self.scratch);
        let verdict = self.zones.handle_query(message, dns::Transport::Udp, &mut reply);
        if verdict == dns::Verdict::Reply {
            self.dns_answer(client, &reply, sink);
        }
        self.scratch = reply;
        match verdict {
            dns::Verdict::Reply => Ok(()),
            // Of those that wait there may be many.
            dns::Verdict::Forward if message.len() > dns::MAX_QUESTION => Err(DropReason::Dns),
            dns::Verdict::Forward => {
                self.events.push_back(Event::DnsQuestion { client, message: message.to_vec() });
                Ok(())
            }
            dns::Verdict::Drop => Err(DropReason::Dns),
        }
    }

    fn handle_dhcp(
        &mut self,
        route: Route,
        source: SocketAddrV4,
        message: &[u8],
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        if source.ip().is_unspecified() {
            // Who has no address yet may have booted another system than before.
            self.switch.forget_shown(route.to);
        }
        let mut out = core::mem::take(&mut self.scratch);
        let (switch, guard) = (&self.switch, &self.guard);
        let asker = dhcp::Asker {
            port: route.port,
            source,
            count: guard.count(route.port),
            port_of: &|client| switch.port_of(client),
            home_of: &|client| switch.home_of(client, now),
            is_there: &|port| switch.ports().contains(&port),
            use_of: &|ip| guard.use_of(ip, route.port, |mac| switch.home_of(mac, now), now),
        };
        let reply = self.dhcp.handle_message(message, &asker, since_start(now), &mut out);
        let sent = match reply {
            Ok(reply) => {
                let to = if reply.destination.ip().is_broadcast() { Mac::BROADCAST } else { route.to };
                let from = SocketAddr::new(self.config.gateway.into(), dhcp::SERVER_PORT);
                let to_address = SocketAddr::V4(reply.destination);
                let mtu = self.mtu_to(to, udp::packet_len(&out));
                self.udp.send_between(Route { to, ..route }, from, to_address, &out, mtu, sink)
            }
            Err(reason) => {
                tracing::debug!(%reason, mac = %route.to, "DHCP message not answered");
                Err(DropReason::Dhcp)
            }
        };
        self.scratch = out;
        sent
    }

    /// The largest IP packet for the guest at `to`, in bytes, where one of `len` bytes is wanted.
    fn mtu_to(&self, to: Mac, len: usize) -> u16 {
        let assumed = self.config.assumed_mtu;
        if len <= usize::from(assumed) { assumed } else { self.switch.mtu(to).min(self.config.mtu) }
    }

    /// A packet that has come as far as it may: its sender hears so from the gateway (RFC 1812 5.3.1).
    fn expire(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<(), DropReason> {
        let (from, to) = (self.config.gateway, packet.src_addr());
        let is_reported = self.is_guest(to) && mtu::may_be_reported(packet);
        if is_reported && self.limits.get_mut(&route.port).is_some_and(|limits| limits.exceeded.allows(now)) {
            let original = packet.clone().into_inner();
            icmp::send_time_exceeded(sink, route, from, to, original, self.config.assumed_mtu)?;
        }
        Err(DropReason::HopLimit)
    }

    fn is_guest(&self, ip: Ipv4Addr) -> bool {
        self.config.subnet.contains(ip) && !self.is_gateway(ip)
    }

    /// Whether packets to `ip` are forwarded.
    fn is_beyond(&self, ip: Ipv4Addr) -> bool {
        !self.config.subnet.contains(ip) && !self.is_gateway(ip) && !ip.is_multicast() && !ip.is_broadcast()
    }

    /// Whether this may come from an address of another network: something for the DHCP server, or about a
    /// packet to a guest.
    fn is_from_elsewhere(&self, packet: &Ipv4Packet<&[u8]>) -> bool {
        let is_taken = match packet.next_header() {
            IpProtocol::Udp => UdpPacket::new_checked(packet.payload())
                .is_ok_and(|datagram| datagram.dst_port() == dhcp::SERVER_PORT),
            IpProtocol::Icmp => icmp::is_report(packet.payload()),
            _ => false,
        };
        let source = packet.src_addr();
        is_taken && self.is_beyond(source) && !nat::is_martian(source)
    }

    fn is_gateway(&self, ip: Ipv4Addr) -> bool {
        ip == self.config.gateway || self.config.gateway_virtual_ips.contains(&ip)
    }

    fn busy(&mut self, reason: DropReason) -> ConnectError {
        self.drops.count(reason);
        ConnectError::Busy
    }

    /// Whether connections may start here for `ip`: it can be a guest's.
    fn ensure_guest(&self, ip: Ipv4Addr) -> Result<(), ConnectError> {
        let is_guest = self.config.subnet.contains(ip) && ip != self.config.gateway;
        if is_guest { Ok(()) } else { Err(ConnectError::NoRoute) }
    }

    /// Finds out who has `ip`, for `waiter`.
    fn resolve(&mut self, ip: Ipv4Addr, waiter: Waiter, now: Instant, sink: &mut impl FrameSink) {
        for surplus in self.neighbours.make_room(ip, now) {
            self.drops.count(DropReason::Resolving);
            self.resolved(surplus, None, now, sink);
        }
        match self.neighbours.resolve(ip, waiter, now) {
            Resolved::Known { mac, port, ask } => {
                if ask {
                    self.ask_for(ip, sink);
                }
                self.resolved(waiter, Some((mac, port)), now, sink);
            }
            Resolved::Pending { ask: false } => {}
            Resolved::Pending { ask: true } => self.ask_for(ip, sink),
            Resolved::Refused => {
                self.drops.count(DropReason::Resolving);
                self.resolved(waiter, None, now, sink);
            }
        }
    }

    /// The guest of a flow that started here has been found, or not.
    fn resolved(
        &mut self,
        waiter: Waiter,
        neighbour: Option<(Mac, PortId)>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let is_meant = |(mac, port): &(Mac, PortId)| {
            waiter.only.is_none_or(|guest| guest.is(Guest { mac: *mac, port: *port, ..guest }))
        };
        let neighbour = neighbour.filter(is_meant);
        match waiter.flow {
            WaitingFlow::Tcp(flow) => self.tcp.resolved(flow, neighbour, now),
            WaitingFlow::Udp(flow) => {
                let route = neighbour.map(|(to, port)| Route { port, from: self.config.gateway_mac, to });
                for datagram in self.udp.resolved(flow, route) {
                    self.udp_send(flow, &datagram, now, sink);
                }
            }
        }
    }

    /// Asks every port who has `ip`: [`find_guest`](Self::find_guest) knows who answers from then on.
    pub fn ask_for(&mut self, ip: Ipv4Addr, sink: &mut impl FrameSink) {
        for number in 0..self.switch.ports().len() {
            if let Some(port) = self.switch.ports().get(number) {
                self.ask_port(ip, *port, sink);
            }
        }
    }

    fn ask_port(&mut self, ip: Ipv4Addr, port: PortId, sink: &mut impl FrameSink) {
        let sender = (self.config.gateway, self.config.gateway_mac);
        if let Err(reason) = arp::send(sink, port, ArpOperation::Request, sender, (ip, Mac::BROADCAST)) {
            self.drops.count(reason);
        }
    }

    fn send_unreachable(
        &mut self,
        route: Route,
        from: Ipv4Addr,
        to: Ipv4Addr,
        reason: Icmpv4DstUnreachable,
        original: &[u8],
        sink: &mut impl FrameSink,
    ) {
        let mtu = self.config.assumed_mtu;
        if let Err(reason) = icmp::send_unreachable(sink, route, from, to, reason, original, mtu) {
            self.drops.count(reason);
        }
    }
}

impl Place {
    fn shifted(self, by: usize) -> Self {
        Self { range: self.range.start + by..self.range.end + by, ..self }
    }
}

fn since_start(now: Instant) -> Duration {
    now - Instant::ZERO
}
