//! ARP (RFC 826): answers for the gateway's addresses, and asks for the guests' for connections that start
//! here. Owns: the neighbour table and who waits for an answer. Read next: `lib.rs`, which dials.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::HashMap;

use foldhash::fast::FixedState;
use smoltcp::wire::{ArpHardware, ArpOperation, ArpPacket, EthernetProtocol};

use crate::ether::{self, EtherType};
use crate::link::most_frequent;
use crate::{DropReason, FlowId, FrameSink, Guest, Instant, Mac, PortId, UdpFlowId};

/// Bytes of an ARP packet for Ethernet and IPv4.
const PACKET_LEN: usize = 28;
/// How long an answer is believed.
const REACHABLE: Duration = Duration::from_secs(60);
/// How long an entry is believed before it is asked for again while it is used (RFC 1122 2.3.2.1). A card
/// that was replaced may not speak by itself.
const UNDOUBTED: Duration = Duration::from_secs(5);
/// Time between two requests, and how many there are.
const RETRY: Duration = Duration::from_secs(1);
const TRIES: u8 = 3;
/// Neighbours remembered at most, since a guest can invent them. The oldest of the port that has most makes
/// room.
const MAX_NEIGHBOURS: usize = 1024;
/// Addresses being resolved at a time. Whoever has one answers at once, so the one that has been asked for
/// the longest makes room.
const MAX_RESOLVING: usize = 256;
/// Flows that wait for one address at most. One that ended meanwhile is still among them.
const MAX_WAITING: usize = 16 << 10;

/// What an ARP packet says.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Message {
    pub(crate) operation: ArpOperation,
    pub(crate) sender: (Ipv4Addr, Mac),
    pub(crate) target: Ipv4Addr,
}

pub(crate) fn parse(payload: &[u8]) -> Result<Message, DropReason> {
    let packet = ArpPacket::new_checked(payload).map_err(|_| DropReason::Arp)?;
    if packet.hardware_type() != ArpHardware::Ethernet
        || packet.protocol_type() != EthernetProtocol::Ipv4
        || packet.hardware_len() != 6
        || packet.protocol_len() != 4
    {
        return Err(DropReason::Arp);
    }
    let ip = |octets: &[u8]| <[u8; 4]>::try_from(octets).map(Ipv4Addr::from).map_err(|_| DropReason::Arp);
    let mac = <[u8; 6]>::try_from(packet.source_hardware_addr()).map_err(|_| DropReason::Arp)?;
    Ok(Message {
        operation: packet.operation(),
        sender: (ip(packet.source_protocol_addr())?, Mac(mac)),
        target: ip(packet.target_protocol_addr())?,
    })
}

/// Sends one ARP packet. A request goes to everybody on the port, a reply to its target.
pub(crate) fn send(
    sink: &mut impl FrameSink,
    port: PortId,
    operation: ArpOperation,
    sender: (Ipv4Addr, Mac),
    target: (Ipv4Addr, Mac),
) -> Result<(), DropReason> {
    let frame = sink.frame(port, ether::HEADER_LEN + PACKET_LEN).ok_or(DropReason::PortFull)?;
    let to = if operation == ArpOperation::Request { Mac::BROADCAST } else { target.1 };
    let mut packet = ArpPacket::new_unchecked(ether::emit(frame, sender.1, to, EtherType::Arp));
    packet.set_hardware_type(ArpHardware::Ethernet);
    packet.set_protocol_type(EthernetProtocol::Ipv4);
    packet.set_hardware_len(6);
    packet.set_protocol_len(4);
    packet.set_operation(operation);
    packet.set_source_hardware_addr(&sender.1.0);
    packet.set_source_protocol_addr(&sender.0.octets());
    packet.set_target_hardware_addr(&if operation == ArpOperation::Request { [0; 6] } else { target.1.0 });
    packet.set_target_protocol_addr(&target.0.octets());
    Ok(())
}

/// A flow that waits for its guest's hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Waiter {
    pub(crate) flow: WaitingFlow,
    /// It is for this machine, and for no other that has its address.
    pub(crate) only: Option<Guest>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum WaitingFlow {
    Tcp(FlowId),
    Udp(UdpFlowId),
}

/// What [`Neighbours::resolve`] found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Resolved {
    Known {
        mac: Mac,
        port: PortId,
        ask: bool,
    },
    /// [`Neighbours::learn`] or [`Neighbours::handle_timeout`] will name the flow. `ask`: send a request now.
    Pending {
        ask: bool,
    },
    /// Too many addresses are being resolved, or too many flows wait for this one.
    Refused,
}

#[derive(Debug)]
pub(crate) struct Neighbours {
    known: HashMap<Ipv4Addr, Neighbour, FixedState>,
    /// When one behind the port had another hardware address last.
    moved: HashMap<PortId, Instant, FixedState>,
    resolving: Vec<Resolution>,
}

#[derive(Debug)]
struct Neighbour {
    mac: Mac,
    port: PortId,
    until: Instant,
    /// When it answered, or was asked again.
    asked: Instant,
}

#[derive(Debug)]
struct Resolution {
    ip: Ipv4Addr,
    waiting: Vec<Waiter>,
    tries: u8,
    since: Instant,
    next: Instant,
}

/// What is due in the neighbour table.
#[derive(Debug)]
pub(crate) enum Due {
    /// Ask for this address again.
    Ask(Ipv4Addr),
    /// Nobody answered; these flows cannot be.
    Failed(Vec<Waiter>),
}

impl Neighbours {
    pub(crate) fn new(seed: u64) -> Self {
        let hasher = || FixedState::with_seed(seed);
        Self {
            known: HashMap::with_hasher(hasher()),
            moved: HashMap::with_hasher(hasher()),
            resolving: Vec::new(),
        }
    }

    /// Whether a neighbour has another hardware address behind the same port: its card may have been
    /// replaced. Said once in [`RETRY`] for each port, since all flows have to be looked at then. A flow that
    /// misses it goes on when its guest speaks.
    pub(crate) fn has_moved(&mut self, ip: Ipv4Addr, mac: Mac, port: PortId, now: Instant) -> bool {
        let is_news = self.known.get(&ip).is_some_and(|known| known.port == port && known.mac != mac);
        if !is_news || self.moved.get(&port).is_some_and(|at| now < *at + RETRY) {
            return false;
        }
        self.moved.insert(port, now);
        true
    }

    /// Remembers who has `ip`, and names the flows that waited for it.
    pub(crate) fn learn(&mut self, ip: Ipv4Addr, mac: Mac, port: PortId, now: Instant) -> Vec<Waiter> {
        if self.known.len() >= MAX_NEIGHBOURS && !self.known.contains_key(&ip) {
            self.known.retain(|_, neighbour| neighbour.until > now);
        }
        if self.known.len() >= MAX_NEIGHBOURS && !self.known.contains_key(&ip) {
            let most = most_frequent(self.known.values().map(|neighbour| neighbour.port).collect());
            let of_most = self.known.iter().filter(|(_, neighbour)| Some(neighbour.port) == most);
            let oldest = of_most.min_by_key(|(ip, neighbour)| (neighbour.until, **ip)).map(|(ip, _)| *ip);
            oldest.map(|oldest| self.known.remove(&oldest));
        }
        self.known.insert(ip, Neighbour { mac, port, until: now + REACHABLE, asked: now });
        let Some(at) = self.resolving.iter().position(|resolution| resolution.ip == ip) else {
            return Vec::new();
        };
        self.resolving.swap_remove(at).waiting
    }

    /// The flows that wait for the address that has been asked for the longest, if that has to make room for
    /// `ip`. They wait no more.
    pub(crate) fn make_room(&mut self, ip: Ipv4Addr, now: Instant) -> Vec<Waiter> {
        let is_known = || self.known.get(&ip).is_some_and(|neighbour| neighbour.until > now);
        let is_asked = || self.resolving.iter().any(|resolution| resolution.ip == ip);
        if self.resolving.len() < MAX_RESOLVING || is_known() || is_asked() {
            return Vec::new();
        }
        let asked = self.resolving.iter().enumerate();
        let longest = asked.min_by_key(|(_, resolution)| resolution.since).map(|(at, _)| at);
        longest.map_or(Vec::new(), |at| self.resolving.swap_remove(at).waiting)
    }

    pub(crate) fn resolve(&mut self, ip: Ipv4Addr, flow: Waiter, now: Instant) -> Resolved {
        if let Some(neighbour) = self.known.get_mut(&ip).filter(|neighbour| neighbour.until > now) {
            let ask = now >= neighbour.asked + UNDOUBTED;
            if ask {
                neighbour.asked = now;
            }
            return Resolved::Known { mac: neighbour.mac, port: neighbour.port, ask };
        }
        if let Some(resolution) = self.resolving.iter_mut().find(|resolution| resolution.ip == ip) {
            if resolution.waiting.len() >= MAX_WAITING {
                return Resolved::Refused;
            }
            resolution.waiting.push(flow);
            return Resolved::Pending { ask: false };
        }
        if self.resolving.len() >= MAX_RESOLVING {
            return Resolved::Refused;
        }
        self.resolving.push(Resolution { ip, waiting: vec![flow], tries: 1, since: now, next: now + RETRY });
        Resolved::Pending { ask: true }
    }

    /// Forgets who has `ip`.
    pub(crate) fn forget(&mut self, ip: Ipv4Addr) {
        self.known.remove(&ip);
    }

    /// Forgets who was behind `port`.
    pub(crate) fn detach(&mut self, port: PortId) {
        self.known.retain(|_, neighbour| neighbour.port != port);
        self.moved.remove(&port);
    }

    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        self.resolving.iter().map(|resolution| resolution.next).min()
    }

    /// One thing that is due, until there is none.
    pub(crate) fn handle_timeout(&mut self, now: Instant) -> Option<Due> {
        let at = self.resolving.iter().position(|resolution| resolution.next <= now)?;
        let resolution = self.resolving.get_mut(at)?;
        if resolution.tries >= TRIES {
            return Some(Due::Failed(self.resolving.swap_remove(at).waiting));
        }
        resolution.tries += 1;
        resolution.next = now + RETRY;
        Some(Due::Ask(resolution.ip))
    }
}

#[cfg(test)]
mod tests {
    use slotmap::Key as _;

    use super::*;

    const PORT: PortId = PortId(0);
    const MAC: Mac = Mac([2, 0, 0, 0, 0, 1]);

    fn waiter() -> Waiter {
        Waiter { flow: WaitingFlow::Tcp(FlowId::null()), only: None }
    }

    fn ip(number: usize) -> Ipv4Addr {
        Ipv4Addr::from_bits(0x0a00_0000 + number as u32)
    }

    #[test]
    fn addresses_that_nobody_has_are_given_up_and_leave_room() {
        let (mut table, waiter) = (Neighbours::new(1), waiter());
        let mut now = Instant::ZERO;
        table.learn(ip(0), MAC, PORT, now);
        for number in 1..=MAX_RESOLVING {
            assert_eq!(table.resolve(ip(number), waiter, now), Resolved::Pending { ask: true });
        }
        let one_more = ip(MAX_RESOLVING + 1);
        assert_eq!(table.resolve(one_more, waiter, now), Resolved::Refused);
        assert_eq!(table.resolve(ip(1), waiter, now), Resolved::Pending { ask: false });
        assert!(
            matches!(table.resolve(ip(0), waiter, now), Resolved::Known { .. }),
            "who is known is reached"
        );
        assert_eq!(table.learn(ip(2), MAC, PORT, now), [waiter]);
        assert_eq!(table.resolve(one_more, waiter, now), Resolved::Pending { ask: true });
        let mut given_up = 0;
        for _ in 0..TRIES {
            now += RETRY;
            while let Some(due) = table.handle_timeout(now) {
                given_up += usize::from(matches!(due, Due::Failed(_)));
            }
        }
        assert_eq!((given_up, table.poll_timeout()), (MAX_RESOLVING, None));
    }

    #[test]
    fn so_many_wait_for_an_address() {
        let (mut table, waiter) = (Neighbours::new(1), waiter());
        for number in 0..MAX_WAITING {
            let asked = table.resolve(ip(1), waiter, Instant::ZERO);
            assert_eq!(asked, Resolved::Pending { ask: number == 0 });
        }
        assert_eq!(table.resolve(ip(1), waiter, Instant::ZERO), Resolved::Refused);
        assert_eq!(table.resolve(ip(2), waiter, Instant::ZERO), Resolved::Pending { ask: true }, "another's");
        assert_eq!(table.learn(ip(1), MAC, PORT, Instant::ZERO).len(), MAX_WAITING);
    }

    #[test]
    fn the_oldest_neighbour_of_the_port_that_has_most_makes_room() {
        let (mut table, waiter, victim) = (Neighbours::new(1), waiter(), Ipv4Addr::new(10, 9, 9, 9));
        let at = |number: usize| Instant::from_micros(number as u64);
        table.learn(victim, MAC, PortId(1), at(0));
        for number in 1..3 * MAX_NEIGHBOURS {
            table.learn(ip(number), MAC, PORT, at(number));
        }
        assert_eq!(table.known.len(), MAX_NEIGHBOURS);
        let now = at(3 * MAX_NEIGHBOURS);
        let [oldest, newest] = [ip(2 * MAX_NEIGHBOURS), ip(3 * MAX_NEIGHBOURS - 1)];
        for remembered in [victim, newest] {
            assert!(matches!(table.resolve(remembered, waiter, now), Resolved::Known { .. }));
        }
        // One that is not remembered is found all the same.
        assert_eq!(table.resolve(oldest, waiter, now), Resolved::Pending { ask: true });
        assert_eq!(table.learn(oldest, MAC, PORT, now), [waiter]);
    }

    #[test]
    fn the_address_that_is_asked_for_the_longest_makes_room() {
        let (mut table, waiter) = (Neighbours::new(1), waiter());
        let at = |number: usize| Instant::from_micros(number as u64);
        let mut given_up = Vec::new();
        for number in 0..=MAX_RESOLVING {
            given_up.extend(table.make_room(ip(number), at(number)));
            assert_eq!(table.resolve(ip(number), waiter, at(number)), Resolved::Pending { ask: true });
        }
        assert_eq!(given_up, [waiter]);
        assert!(table.resolving.iter().all(|resolution| resolution.ip != ip(0)), "the first");
        // For one that is known or asked for already nobody has to go.
        assert!(table.make_room(ip(1), at(1000)).is_empty());
        table.learn(ip(MAX_RESOLVING), MAC, PORT, at(1000));
        table.resolve(ip(MAX_RESOLVING + 1), waiter, at(1000));
        assert!(table.make_room(ip(MAX_RESOLVING), at(1000)).is_empty());
    }
}
