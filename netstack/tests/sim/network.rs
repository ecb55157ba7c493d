//! The stack, its ports and the host, in virtual time. Owns: the driver's calling order, that of the daemon's
//! `src/engine`.
//! Read next: `checker.rs`, what holds for every frame.

use std::cell::Cell;
use std::collections::{BTreeMap, VecDeque};
use std::net::{IpAddr, Ipv4Addr, SocketAddr, SocketAddrV4};
use std::time::Duration;

use netstack::tcp::{Abort, Phase};
use netstack::{
    Address, DnsClient, Echo, Event, FlowId, FrameSink, Instant, Mac, NetworkConfig, PortId, Refusal, Stack,
    Target, UdpFlowId,
};

use crate::checker::Checker;
pub(crate) use crate::config::{GATEWAY, GATEWAY_MAC, HOST, config};
use crate::guest::{End, Guest};
use crate::link::{Quality, Wire};
use crate::rng::Rng;

/// Somewhere outside.
pub(crate) const OUTSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 7);

/// What a turn of the driver takes.
const TURN: Duration = Duration::from_micros(20);
/// Frames that the driver reads from one port in a turn.
const READ: usize = 64;
/// Times in a row that the stack may want a turn in which it then has nothing to do.
const IDLE_TURNS: u32 = 300;

pub(crate) fn guest_ip(number: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 168, 127, number)
}

pub(crate) fn guest_mac(number: u8) -> Mac {
    Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, number])
}

pub(crate) fn outside(port: u16) -> SocketAddrV4 {
    SocketAddrV4::new(OUTSIDE, port)
}

/// A network that offers more than its guests may take.
pub(crate) fn offering(mtu: u16) -> NetworkConfig {
    NetworkConfig { assumed_mtu: 1500, ..config(mtu) }
}

/// The seed from the environment, or the test's own.
#[expect(clippy::disallowed_methods, reason = "a test may read the environment")]
pub(crate) fn seed(own: u64) -> u64 {
    std::env::var("SIM_SEED").ok().map_or(own, |seed| seed.parse().expect("SIM_SEED is a number"))
}

/// What the driver does about a guest that dials.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Answer {
    Accept,
    Refuse(Refusal),
    /// The test will see to it.
    Nothing,
}

/// The host's end of a flow.
#[derive(Debug)]
pub(crate) struct Host {
    pub(crate) target: Option<Target>,
    pub(crate) end: End,
    /// `None` while the driver still has it.
    pub(crate) outcome: Option<Outcome>,
    /// Why, with [`Outcome::Aborted`].
    pub(crate) abort: Option<Abort>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// Both halves ended in order.
    Done,
    /// The stack said [`Phase::Aborted`].
    Aborted,
    /// The test aborted it.
    Dropped,
}

/// A port, and who is behind it.
pub(crate) struct Port {
    pub(crate) id: PortId,
    pub(crate) to_guest: Wire,
    pub(crate) to_stack: Wire,
    pub(crate) guest: Option<Guest>,
    /// The guest's machine stands still.
    pub(crate) paused: bool,
    /// What reached a port without a guest.
    pub(crate) inbox: Vec<Vec<u8>>,
}

/// What waits for one port's wire.
#[derive(Debug)]
struct Batch {
    port: PortId,
    frames: VecDeque<Vec<u8>>,
    bytes: usize,
    limit: usize,
    /// The wire takes nothing.
    blocked: bool,
}

/// All batches, as the stack sees them.
#[derive(Debug, Default)]
pub(crate) struct Batches {
    all: Vec<Batch>,
    /// How often the stack asked for room: once at least for each segment that it makes, whether it leaves or
    /// not.
    pub(crate) asked: Cell<u64>,
}

impl Batches {
    fn get(&self, port: PortId) -> Option<&Batch> {
        self.all.iter().find(|batch| batch.port == port)
    }

    fn get_mut(&mut self, port: PortId) -> Option<&mut Batch> {
        self.all.iter_mut().find(|batch| batch.port == port)
    }
}

impl FrameSink for Batches {
    fn has_room(&self, port: PortId, len: usize) -> bool {
        self.asked.set(self.asked.get() + 1);
        self.get(port).is_some_and(|batch| batch.bytes + len <= batch.limit)
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        if !self.has_room(port, len) {
            return None;
        }
        let batch = self.get_mut(port)?;
        batch.bytes += len;
        // Whatever was there before, as in a buffer that is used again.
        batch.frames.push_back(vec![0xa5; len]);
        batch.frames.back_mut().map(Vec::as_mut_slice)
    }
}

/// What the stack asked of the host that is not TCP.
#[derive(Debug, Default)]
pub(crate) struct Asked {
    pub(crate) datagrams: Vec<(UdpFlowId, Option<SocketAddr>, Vec<u8>)>,
    pub(crate) closed: Vec<UdpFlowId>,
    pub(crate) questions: Vec<(DnsClient, Vec<u8>)>,
    pub(crate) opened: Vec<(FlowId, Target)>,
    /// Hardware addresses that came (true) and went.
    pub(crate) addresses: Vec<(Mac, bool)>,
    pub(crate) moved: Vec<(Address, PortId, PortId)>,
    pub(crate) refused: Vec<(Address, PortId, Option<PortId>)>,
    pub(crate) echoes: Vec<(Echo, IpAddr)>,
}

/// Everything.
pub(crate) struct Sim {
    pub(crate) seed: u64,
    pub(crate) now: Instant,
    pub(crate) stack: Stack,
    pub(crate) batches: Batches,
    pub(crate) ports: Vec<Port>,
    pub(crate) hosts: BTreeMap<FlowId, Host>,
    pub(crate) answer: Answer,
    /// Ports outside that refuse, whatever `answer` is.
    pub(crate) refusing: Vec<u16>,
    /// The host's end of the next flow that a guest opens; without any, one that echoes nothing and reads
    /// everything.
    pub(crate) serve: Box<dyn FnMut(Target) -> End>,
    pub(crate) asked: Asked,
    pub(crate) checker: Checker,
    /// Turns so far, and those that the stack asked for.
    pub(crate) turns: u64,
    pub(crate) wakeups: u64,
    idle_turns: u32,
    moved: u64,
    mtu: u16,
    rng: Rng,
}

impl Sim {
    pub(crate) fn new(own_seed: u64) -> Self {
        Self::with(own_seed, config(1500))
    }

    pub(crate) fn with(own_seed: u64, config: NetworkConfig) -> Self {
        Self::seeded(seed(own_seed), config)
    }

    pub(crate) fn seeded(seed: u64, config: NetworkConfig) -> Self {
        let mtu = config.mtu;
        Self {
            seed,
            now: Instant::ZERO,
            stack: Stack::new(config, seed.into(), Instant::ZERO),
            batches: Batches::default(),
            ports: Vec::new(),
            hosts: BTreeMap::new(),
            answer: Answer::Accept,
            refusing: Vec::new(),
            serve: Box::new(|_| End::new(Vec::new())),
            asked: Asked::default(),
            checker: Checker::new(mtu),
            turns: 0,
            wakeups: 0,
            idle_turns: 0,
            moved: 0,
            mtu,
            rng: Rng::new(seed),
        }
    }

    /// A port with a guest; the number is the port's place in `ports`. Guest 0 is 192.168.127.2.
    pub(crate) fn plug(&mut self, quality: Quality) -> usize {
        self.plug_mtu(quality, self.mtu)
    }

    /// The same, with a guest whose interface has the MTU `mtu`.
    pub(crate) fn plug_mtu(&mut self, quality: Quality, mtu: u16) -> usize {
        let number = self.plug_raw(quality);
        let host = number as u8 + 2;
        let guest = Guest::new(guest_ip(host), guest_mac(host), mtu, self.rng.draw());
        self.ports[number].guest = Some(guest);
        number
    }

    /// A port without a guest: what reaches it is in its `inbox`.
    pub(crate) fn plug_raw(&mut self, quality: Quality) -> usize {
        let id = self.stack.attach_port(self.now);
        self.batches.all.push(Batch {
            port: id,
            frames: VecDeque::new(),
            bytes: 0,
            limit: 256 << 10,
            blocked: false,
        });
        self.ports.push(Port {
            id,
            to_guest: Wire::new(quality, self.rng.draw()),
            to_stack: Wire::new(quality, self.rng.draw()),
            guest: None,
            paused: false,
            inbox: Vec::new(),
        });
        self.ports.len() - 1
    }

    /// The guest's machine is gone.
    pub(crate) fn unplug(&mut self, port: usize) {
        let id = self.ports[port].id;
        self.stack.detach_port(id, self.now);
        self.batches.all.retain(|batch| batch.port != id);
        self.ports[port].guest = None;
    }

    pub(crate) fn quality(&mut self, port: usize, quality: Quality) {
        self.ports[port].to_guest.quality = quality;
        self.ports[port].to_stack.quality = quality;
    }

    /// Whether the port's wire refuses everything from now on, and how many bytes its batch takes.
    pub(crate) fn block(&mut self, port: usize, blocked: bool) {
        let id = self.ports[port].id;
        self.batches.get_mut(id).unwrap().blocked = blocked;
    }

    pub(crate) fn limit(&mut self, port: usize, bytes: usize) {
        let id = self.ports[port].id;
        self.batches.get_mut(id).unwrap().limit = bytes;
    }

    pub(crate) fn guest(&mut self, port: usize) -> &mut Guest {
        self.ports[port].guest.as_mut().expect("a guest is plugged in")
    }

    /// Gives a frame to the stack at once.
    pub(crate) fn inject(&mut self, port: usize, frame: &[u8]) {
        self.checker.see_from_guest(frame);
        self.moved += 1;
        let id = self.ports[port].id;
        if let Some(datagram) = self.stack.handle_frame(id, frame, self.now, &mut self.batches) {
            self.asked.datagrams.push((datagram.flow, datagram.open, datagram.payload.to_vec()));
        }
    }

    /// What a port without a guest has received.
    pub(crate) fn received(&mut self, port: usize) -> Vec<Vec<u8>> {
        self.settle();
        std::mem::take(&mut self.ports[port].inbox)
    }

    pub(crate) fn dial(&mut self, guest: SocketAddrV4, end: End) -> FlowId {
        let flow =
            self.stack.tcp_connect(guest, self.now, &mut self.batches).expect("the guest can be dialled");
        self.hosts.insert(flow, Host { target: None, end, outcome: None, abort: None });
        flow
    }

    pub(crate) fn host(&mut self, flow: FlowId) -> &mut Host {
        self.hosts.get_mut(&flow).expect("the flow has a host")
    }

    /// The host's ends, in the order in which they were opened.
    pub(crate) fn host_flows(&self) -> Vec<FlowId> {
        self.hosts.keys().copied().collect()
    }

    /// The descriptor became readable or writable.
    pub(crate) fn wake(&mut self, flow: FlowId) {
        self.stack.mark_ready(flow);
    }

    /// The host's program has closed its end, and left.
    pub(crate) fn leave(&mut self, flow: FlowId) {
        self.stack.tcp_release(flow, false);
        self.host(flow).outcome = Some(Outcome::Dropped);
    }

    /// The host's program is gone: RST to the guest.
    pub(crate) fn abort(&mut self, flow: FlowId) {
        self.stack.tcp_release(flow, true);
        self.host(flow).outcome = Some(Outcome::Dropped);
    }

    pub(crate) fn accept(&mut self, flow: FlowId, target: Target) {
        let end = (self.serve)(target);
        self.hosts.insert(flow, Host { target: Some(target), end, outcome: None, abort: None });
        self.stack.tcp_accept(flow, self.now, &mut self.batches);
    }

    /// Runs until `done`; fails after `limit`.
    pub(crate) fn run_until(&mut self, what: &str, limit: Duration, mut done: impl FnMut(&mut Self) -> bool) {
        let end = self.now + limit;
        loop {
            self.turn();
            if done(self) {
                return;
            }
            assert!(self.now < end, "not within {limit:?}: {what}");
            self.advance(end);
        }
    }

    /// Lets `time` pass.
    pub(crate) fn run_for(&mut self, time: Duration) {
        let end = self.now + time;
        while self.now < end {
            self.turn();
            self.advance(end);
        }
        self.turn();
    }

    /// Runs until nothing is under way that needs no timer.
    pub(crate) fn settle(&mut self) {
        self.run_for(Duration::from_millis(20));
    }

    /// To when something is due, but not past `end`.
    fn advance(&mut self, end: Instant) {
        self.now = self.next().unwrap_or(end).clamp(self.now + TURN, end.max(self.now + TURN));
    }

    /// When something is due.
    fn next(&mut self) -> Option<Instant> {
        if self.stack.ready_len() > 0 {
            return Some(self.now);
        }
        let mut next = self.stack.poll_timeout();
        for port in &mut self.ports {
            let guest = port.guest.as_mut().and_then(|guest| guest.poll_at(self.now));
            let (guest, to_guest) = if port.paused { (None, None) } else { (guest, port.to_guest.next()) };
            let blocked =
                self.batches.get(port.id).is_none_or(|batch| batch.frames.is_empty() || batch.blocked);
            let room = if blocked { None } else { Some(self.now) };
            next = [next, guest, to_guest, port.to_stack.next(), room].into_iter().flatten().min();
        }
        next
    }

    /// The driver's turn, and then the guests'.
    pub(crate) fn turn(&mut self) {
        let asked = self.stack.ready_len() > 0 || self.stack.poll_timeout().is_some_and(|at| at <= self.now);
        let before = (self.moved, self.checker.frames);
        self.turns += 1;
        self.stack.handle_timeout(self.now, &mut self.batches);
        for number in 0..self.ports.len() {
            for _ in 0..READ {
                let Some(frame) = self.ports[number].to_stack.pop(self.now) else { break };
                if self.batches.get(self.ports[number].id).is_some() {
                    self.inject(number, &frame);
                }
            }
        }
        self.events();
        for _ in 0..self.stack.ready_len() {
            let Some(flow) = self.stack.poll_ready() else { break };
            self.move_bytes(flow);
            self.stack.flush(flow, self.now, &mut self.batches);
        }
        self.events();
        self.write();
        if asked {
            self.wakeups += 1;
            let idle = before == (self.moved, self.checker.frames);
            self.idle_turns = if idle { self.idle_turns + 1 } else { 0 };
            assert!(self.idle_turns < IDLE_TURNS, "the stack spins");
        }
        for port in self.ports.iter_mut().filter(|port| !port.paused) {
            while let Some(frame) = port.to_guest.pop(self.now) {
                match &mut port.guest {
                    Some(guest) => guest.receive(frame),
                    None => port.inbox.push(frame),
                }
            }
            if let Some(guest) = &mut port.guest {
                for frame in guest.poll(self.now) {
                    port.to_stack.push(frame, self.now);
                }
            }
        }
    }

    fn events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            self.moved += 1;
            match event {
                Event::TcpOpen { flow, target } => {
                    self.asked.opened.push((flow, target));
                    let closed = matches!(target, Target::Host(to) if self.refusing.contains(&to.port()));
                    match if closed { Answer::Refuse(Refusal::Reset) } else { self.answer } {
                        Answer::Accept => self.accept(flow, target),
                        Answer::Refuse(refusal) => {
                            self.stack.tcp_refuse(flow, refusal, self.now, &mut self.batches);
                        }
                        Answer::Nothing => {}
                    }
                }
                Event::UdpClosed(flow) => self.asked.closed.push(flow),
                Event::DnsQuestion { client, message } => self.asked.questions.push((client, message)),
                Event::AddressLearned(mac) => self.asked.addresses.push((mac, true)),
                Event::AddressLost(mac) => self.asked.addresses.push((mac, false)),
                Event::Echo { echo, target } => self.asked.echoes.push((echo, target)),
                Event::AddressMoved { address, from, to } => self.asked.moved.push((address, from, to)),
                Event::AddressRefused { address, port, holder } => {
                    self.asked.refused.push((address, port, holder));
                }
            }
        }
    }

    fn move_bytes(&mut self, id: FlowId) {
        let Some(flow) = self.stack.flow(id) else { return };
        let phase = flow.phase();
        let Some(host) = self.hosts.get_mut(&id).filter(|host| host.outcome.is_none()) else {
            if phase == Phase::Aborted && !self.hosts.contains_key(&id) {
                self.stack.tcp_release(id, false);
            }
            return;
        };
        match phase {
            Phase::Connecting => {}
            Phase::Open | Phase::Finished => {
                let Host { end, .. } = host;
                if end.sent < end.out.len() && !flow.finished() {
                    flow.send(|space| {
                        let left = end.left();
                        let len = left.len().min(space.len());
                        space[..len].copy_from_slice(&left[..len]);
                        end.sent += len;
                        self.moved += len as u64;
                        len
                    });
                }
                if end.closes && end.left().is_empty() && !flow.finished() {
                    flow.finish();
                    self.moved += 1;
                }
                if end.reads {
                    flow.recv(|bytes| {
                        end.got.extend_from_slice(bytes);
                        self.moved += bytes.len() as u64;
                        bytes.len()
                    });
                    end.eof |= flow.recv_finished();
                }
                if end.eof && flow.finished() {
                    host.outcome = Some(Outcome::Done);
                    self.moved += 1;
                    self.stack.tcp_release(id, false);
                }
            }
            Phase::Aborted => {
                flow.recv(|bytes| {
                    host.end.got.extend_from_slice(bytes);
                    bytes.len()
                });
                host.end.eof |= flow.recv_finished();
                host.end.reset = true;
                host.outcome = Some(Outcome::Aborted);
                host.abort = Some(flow.abort_reason());
                self.moved += 1;
                self.stack.tcp_release(id, false);
            }
        }
    }

    fn write(&mut self) {
        for port in &mut self.ports {
            let Some(batch) = self.batches.get_mut(port.id).filter(|batch| !batch.blocked) else { continue };
            if batch.frames.is_empty() {
                continue;
            }
            batch.bytes = 0;
            for frame in batch.frames.drain(..) {
                self.checker.see_from_stack(port.id, &frame);
                port.to_guest.push(frame, self.now);
            }
            self.stack.handle_room(port.id);
        }
    }
}

impl Drop for Sim {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!(
                "SIM_SEED={}, at {}, after {} turns ({} asked for): flows {:?}, timeout {:?}, drops {:?}",
                self.seed,
                self.now,
                self.turns,
                self.wakeups,
                self.stack.flows(),
                self.stack.poll_timeout(),
                self.stack.drops()
            );
            for (flow, host) in &self.hosts {
                let end = &host.end;
                eprintln!(
                    "  host {flow:?} to {:?}: sent {} of {}, got {}, eof {}, reset {}, {:?}",
                    host.target,
                    end.sent,
                    end.out.len(),
                    end.got.len(),
                    end.eof,
                    end.reset,
                    host.outcome
                );
            }
            for guest in self.ports.iter().filter_map(|port| port.guest.as_ref()) {
                for (number, connection) in guest.connections.iter().enumerate() {
                    let end = &connection.end;
                    eprintln!(
                        "  guest {} connection {number}, {}: sent {} of {}, got {}, eof {}, reset {}",
                        guest.ip,
                        guest.state(number),
                        end.sent,
                        end.out.len(),
                        end.got.len(),
                        end.eof,
                        end.reset
                    );
                }
            }
        }
    }
}
