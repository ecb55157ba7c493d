//! One network with an attacker and a victim. Owns: the network, its driver, the time, and what each of the
//! two may see. Read next: `attacker.rs`, what is tried; `victim.rs`, what has to work.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use netstack::tcp::Phase;
use netstack::{DropReason, Event, FlowId, FrameSink, Instant, PortId, Refusal, Stack};

use crate::attacker::Attacker;
use crate::config::{GATEWAY_MAC, config};
use crate::random::Random;
use crate::victim::{self, Victim};

/// The victim's, as it is the first.
pub(crate) const ADDRESS: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const MTU: u16 = 1500;
/// Frames of the attacker's between two looks at the victim.
const BETWEEN: u64 = 50;
/// Connections of the attacker's that the host leaves undecided.
const MAX_PENDING: usize = 100;
/// Turns of the driver's in a row of which nothing came.
/// Frames on the way: what flows may send at once is less.
const MOST_WAITING: usize = 200_000;
const IDLE: usize = 3;
/// A turn takes so much from an attacker's flow, and gives it.
const TURN: usize = 3000;

/// What came to pass, so that a run shows that it had something to find.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Tally {
    frames: u64,
    /// Of the attacker's.
    leases: u64,
    connections: u64,
    bytes: u64,
    datagrams: u64,
    refused: u64,
    /// Times that the victim found all as it should be.
    looks: u64,
    /// Stands for all frames that were sent.
    digest: u64,
}

impl Tally {
    pub(crate) fn add(&mut self, other: &Self) {
        self.frames += other.frames;
        self.leases += other.leases;
        self.connections += other.connections;
        self.bytes += other.bytes;
        self.datagrams += other.datagrams;
        self.refused += other.refused;
        self.looks += other.looks;
        self.digest ^= other.digest;
    }

    pub(crate) fn assert_that_it_shows_much(&self) {
        let parts = [self.leases, self.connections, self.datagrams, self.refused];
        assert!(parts.iter().all(|part| *part > self.frames / 1000), "{self:?} shows little");
        assert!(self.bytes > self.frames && self.looks > self.frames / 100, "{self:?} shows little");
    }
}

/// What is sent, in order.
#[derive(Debug, Default)]
struct Sink {
    frames: VecDeque<(PortId, Vec<u8>)>,
    /// It takes nothing.
    stuck: Option<PortId>,
}

impl FrameSink for Sink {
    fn has_room(&self, port: PortId, _: usize) -> bool {
        self.stuck != Some(port)
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        if !self.has_room(port, len) {
            return None;
        }
        // What is lent may hold anything.
        self.frames.push_back((port, vec![0xa5; len]));
        self.frames.back_mut().map(|(_, frame)| frame.as_mut_slice())
    }
}

#[derive(Debug)]
pub(crate) struct Round {
    random: Random,
    stack: Stack,
    sink: Sink,
    now: Instant,
    /// The attacker's and the victim's links.
    attacking: PortId,
    working: Option<PortId>,
    attacker: Attacker,
    victim: Victim,
    /// Connections of the attacker's that wait for the host.
    pending: VecDeque<FlowId>,
    /// What the host says back to the victim's.
    echoes: HashMap<FlowId, Vec<u8>>,
    tally: Tally,
    digest: DefaultHasher,
}

impl Round {
    pub(crate) fn new(seed: u64) -> Self {
        let now = Instant::from_millis(0);
        let mut stack = Stack::new(config(MTU), seed.into(), now);
        let attacking = stack.attach_port(now);
        let mut round = Self {
            random: Random::new(seed),
            stack,
            sink: Sink::default(),
            now,
            attacking,
            working: None,
            attacker: Attacker::default(),
            victim: Victim::default(),
            pending: VecDeque::new(),
            echoes: HashMap::new(),
            tally: Tally::default(),
            digest: DefaultHasher::new(),
        };
        round.working = Some(round.stack.attach_port(now));
        let discover = round.victim.discover();
        round.say(discover);
        let request = round.victim.request();
        round.say(request);
        round.victim.assert_leased();
        assert_eq!(round.victim.address, Some(ADDRESS));
        // From then on it can be asked whether it is there.
        let question = round.victim.ask_for_gateway();
        round.say(question);
        round
    }

    pub(crate) fn run(mut self, frames: u64) -> Tally {
        for number in 1..=frames {
            self.attack();
            self.pass_time();
            if number % BETWEEN == 0 {
                self.look();
            }
        }
        self.tally.leases = self.attacker.leases;
        self.tally.refused = self.stack.drops().of(DropReason::Claimed);
        self.tally.digest = self.digest.finish();
        self.tally
    }

    fn attack(&mut self) {
        if self.random.once_in(2000) {
            self.stack.detach_port(self.attacking, self.now);
            self.attacking = self.stack.attach_port(self.now);
            let hello = self.attacker.begin_anew();
            self.give(self.attacking, &hello);
            self.settle();
        }
        if self.random.once_in(200) {
            self.sink.stuck = self.sink.stuck.is_none().then_some(self.attacking);
            self.stack.handle_room(self.attacking);
        }
        if self.random.once_in(100)
            && let Some(flow) = self.pending.pop_front()
        {
            self.decide(flow);
        }
        let frame = self.attacker.speak(&mut self.random);
        self.give(self.attacking, &frame);
        self.settle();
    }

    /// Mostly moments; seconds now and then, and a minute once in a while.
    fn pass_time(&mut self) {
        let millis = match self.random.below(1000) {
            0 => self.random.below(60_000),
            1..=5 => self.random.below(2000),
            6..=200 => self.random.below(20),
            _ => 0,
        };
        if millis > 0 {
            self.wait(millis);
        }
    }

    fn wait(&mut self, millis: usize) {
        self.now += Duration::from_millis(millis as u64);
        while self.stack.poll_timeout().is_some_and(|due| due <= self.now) {
            let before = self.stack.poll_timeout();
            self.stack.handle_timeout(self.now, &mut self.sink);
            let is_handled = self.stack.ready_len() > 0 || self.stack.poll_timeout() != before;
            assert!(is_handled, "{before:?} stays due at {:?}", self.now);
            self.settle();
        }
    }

    /// The victim does what it is there for.
    fn look(&mut self) {
        if self.random.once_in(50) {
            return self.lose_the_victims_link();
        }
        if self.random.once_in(4) {
            let request = self.victim.request();
            self.say(request);
            self.victim.assert_leased();
        }
        let question = self.victim.ask_for_gateway();
        self.say(question);
        self.victim.assert_gateway();
        let ping = self.victim.ping();
        self.say(ping);
        self.victim.assert_pinged();
        let (parts, payload) = self.victim.datagram();
        parts.into_iter().for_each(|part| self.say(part));
        self.victim.assert_answered(&payload);
        let (question, message) = self.victim.question();
        self.say(question);
        self.victim.assert_told(&message);
        self.use_tcp();
        self.dial_the_victim();
        self.tally.looks += 1;
    }

    fn use_tcp(&mut self) {
        if self.random.once_in(8)
            && let Some(reset) = self.victim.reset()
        {
            self.say(reset);
        }
        if !self.victim.is_connected() {
            let syn = self.victim.send(b"");
            self.say(syn);
            self.victim.assert_connected();
        }
        let bytes = self.random.bytes(1400);
        let segment = self.victim.send(&bytes);
        self.say(segment);
        self.victim.assert_echoed(&bytes);
    }

    fn dial_the_victim(&mut self) {
        let to = SocketAddrV4::new(ADDRESS, victim::LISTENS);
        let flow = self.stack.tcp_connect(to, self.now, &mut self.sink).expect("a flow");
        self.settle();
        assert_eq!(self.victim.syns(), 1, "what was dialled is somebody else");
        assert!(self.stack.flow(flow).is_none(), "it is refused, and goes on");
    }

    /// For less than the five minutes after which who is silent loses what another one wants.
    fn lose_the_victims_link(&mut self) {
        let Some(port) = self.working.take() else { return };
        self.stack.detach_port(port, self.now);
        self.settle();
        for _ in 0..self.random.below(100) {
            self.attack();
        }
        let millis = self.random.below(100_000);
        self.wait(millis);
        for _ in 0..self.random.below(100) {
            self.attack();
        }
        self.working = Some(self.stack.attach_port(self.now));
        self.victim.begin();
        let question = self.victim.ask_for_gateway();
        self.say(question);
        self.victim.assert_gateway();
    }

    /// The victim says something, and is heard.
    fn say(&mut self, frame: Vec<u8>) {
        let port = self.working.expect("the victim's link");
        self.give(port, &frame);
        self.settle();
    }

    fn give(&mut self, port: PortId, frame: &[u8]) {
        self.tally.frames += 1;
        let Some(datagram) = self.stack.handle_frame(port, frame, self.now, &mut self.sink) else { return };
        let (flow, payload) = (datagram.flow, datagram.payload.to_vec());
        self.tally.datagrams += 1;
        if Some(port) == self.working || self.random.once_in(2) {
            self.stack.udp_send(flow, &payload, self.now, &mut self.sink);
        } else if self.random.once_in(4) {
            self.stack.udp_refused(flow, &mut self.sink);
        }
    }

    /// Until there is nothing more to do for the driver, and nothing on the way.
    fn settle(&mut self) {
        let mut idle = 0;
        while idle < IDLE {
            while let Some(event) = self.stack.poll_event() {
                self.answer(event);
            }
            for _ in 0..self.stack.ready_len() {
                let Some(flow) = self.stack.poll_ready() else { break };
                self.carry(flow);
            }
            idle += 1;
            let waiting = self.sink.frames.len();
            assert!(waiting < MOST_WAITING, "it sends without end: {:x?}", self.sink.frames.back());
            if let Some((port, frame)) = self.sink.frames.pop_front() {
                (port, &frame).hash(&mut self.digest);
                self.deliver(port, &frame);
                idle = 0;
            }
        }
    }

    fn answer(&mut self, event: Event) {
        match event {
            Event::TcpOpen { flow, .. } => {
                let guest = self.stack.tcp_guest(flow).expect("its guest");
                if Some(guest.port) == self.working {
                    self.echoes.insert(flow, Vec::new());
                    self.stack.tcp_accept(flow, self.now, &mut self.sink);
                } else if self.random.once_in(4) && self.pending.len() < MAX_PENDING {
                    self.pending.push_back(flow);
                } else {
                    self.decide(flow);
                }
            }
            Event::DnsQuestion { client, message } => self.stack.dns_answer(client, &message, &mut self.sink),
            Event::Echo { echo, .. } => {
                let data = echo.message().to_vec();
                self.stack.echo_reply(&echo.head(), echo.ident(), &data, &mut self.sink);
            }
            Event::UdpClosed(_)
            | Event::AddressLearned(_)
            | Event::AddressLost(_)
            | Event::AddressMoved { .. }
            | Event::AddressRefused { .. } => {}
        }
    }

    /// Whether the host connects for the attacker.
    fn decide(&mut self, flow: FlowId) {
        let refusals = [Refusal::Reset, Refusal::Unreachable, Refusal::Silence];
        match self.random.below(9) {
            number @ 0..3 => self.stack.tcp_refuse(flow, refusals[number], self.now, &mut self.sink),
            _ => {
                self.tally.connections += 1;
                self.stack.tcp_accept(flow, self.now, &mut self.sink);
            }
        }
    }

    /// What a driver does for a flow that is ready.
    fn carry(&mut self, id: FlowId) {
        let echo = self.echoes.get_mut(&id);
        let lot = self.random.below(64);
        let Some(flow) = self.stack.flow(id) else { return };
        match flow.phase() {
            Phase::Connecting => {}
            Phase::Open => match echo {
                Some(echo) => {
                    flow.recv(|bytes| {
                        echo.extend_from_slice(bytes);
                        bytes.len()
                    });
                    flow.send(|space| {
                        let given = space.len().min(echo.len());
                        space[..given].copy_from_slice(&echo[..given]);
                        echo.drain(..given);
                        given
                    });
                }
                None => {
                    if lot > 8 {
                        flow.recv(|bytes| {
                            let taken = bytes.len().min(TURN);
                            self.tally.bytes += taken as u64;
                            taken
                        });
                    }
                    if lot.is_multiple_of(2) {
                        let mut given = 0;
                        flow.send(|space| {
                            let more = space.len().min(TURN - given);
                            given += more;
                            space[..more].fill(0x5a);
                            more
                        });
                    }
                    if lot == 1 {
                        flow.finish();
                    }
                }
            },
            phase => {
                self.echoes.remove(&id);
                self.stack.tcp_release(id, phase == Phase::Aborted);
            }
        }
        self.stack.flush(id, self.now, &mut self.sink);
    }

    fn deliver(&mut self, port: PortId, frame: &[u8]) {
        if Some(port) == self.working {
            if let Some(answer) = self.victim.receive(frame) {
                self.give(port, &answer);
            }
        } else if port == self.attacking {
            if self.working.is_some() {
                // What it began in the victim's absence may still be sent to it by that name.
                let is_gateways = frame[6..12] == GATEWAY_MAC.0;
                assert!(is_gateways || frame[..6] != victim::MAC.0, "the victim's: {frame:x?}");
                // A DHCP server answers whoever asks, at the address that it says to have.
                let is_dhcp = frame[23] == 17 && frame[34..36] == [0, 67];
                // So does the end of what the attacker began in that absence.
                let is_reset = frame[23] == 6 && frame[47] & 4 != 0;
                let is_one = frame[0] & 1 == 0 && frame[12..14] == [8, 0] && !is_dhcp && !is_reset;
                assert!(!is_one || frame[30..34] != ADDRESS.octets(), "for the victim: {frame:x?}");
                assert!(!is_dhcp || frame[58..62] != ADDRESS.octets(), "the victim's lease: {frame:x?}");
            }
            self.attacker.receive(frame, &mut self.random);
        }
    }
}
