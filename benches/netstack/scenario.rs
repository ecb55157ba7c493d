//! What is measured. Owns: the list of scenarios, and what the guest does in each turn of one. Read next:
//! `network.rs`.
//!
//! An item is what a scenario's cost is stated for: a full segment of data, a request with its answer, a
//! connection from SYN to the last acknowledgement, a datagram, a dropped frame.

use std::fmt;
use std::time::Duration;

use crate::guest::{self, ACK, FIN, Guest};
use crate::network::Network;

/// Frames that come in one turn: about what one read of a link brings. Of more flows the next ones have their
/// turn next.
const FRAMES: usize = 64;
const LARGE_FRAMES: usize = 4;
/// From this MTU on frames are large.
const LARGE: u16 = 9000;
/// Connections opened, and closed, in one turn.
const OPENED: usize = 16;
/// Turns from a connection's SYN until nobody remembers it.
const LIFE: usize = 4;
/// Bytes that a flow is offered however many there are, but for what is rounded away.
const LEAST_WINDOW: usize = 28 << 10;
/// SYNs given to the network at once while connections are opened beforehand.
const SYNS: usize = 64;
/// Turns before anything is measured, at least, and how often each flow had its turn: every table and buffer
/// has its size then.
const WARM_UP: usize = 64;
const ROUNDS: usize = 4;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    /// Full segments from the guest, read at once; acknowledgements to it.
    ToHost,
    /// Full segments to the guest, of which it acknowledges every second.
    ToGuest,
    /// A byte from the guest and a byte back.
    Request,
    /// SYN, SYN-ACK, ACK, FINs, the last acknowledgement.
    OpenClose,
    /// Datagrams of so many bytes.
    UdpToHost(usize),
    UdpToGuest(usize),
    /// Frames that are for nobody.
    Drop,
}

/// One thing to measure.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Scenario {
    kind: Kind,
    mtu: u16,
    /// Flows that take part.
    flows: usize,
    /// Open TCP connections that do not.
    idle: usize,
}

impl Scenario {
    pub(crate) fn all() -> impl Iterator<Item = Self> {
        const FLOWS: [usize; 4] = [1, 8, 64, 1024];
        // The fewer are quicker to open under valgrind.
        const IDLE: [usize; 2] = [1000, 10_000];
        let mut all = Vec::new();
        let mut add = |kind, mtu, flows, idle| all.push(Self { kind, mtu, flows, idle });
        for mtu in [1500, 65_520] {
            for kind in [Kind::ToHost, Kind::ToGuest] {
                FLOWS.iter().for_each(|flows| add(kind, mtu, *flows, 0));
                IDLE.iter().for_each(|idle| add(kind, mtu, 1, *idle));
            }
        }
        FLOWS.iter().for_each(|flows| add(Kind::Request, 1500, *flows, 0));
        IDLE.iter().for_each(|idle| add(Kind::Request, 1500, 1, *idle));
        add(Kind::OpenClose, 1500, OPENED, 0);
        IDLE.iter().for_each(|idle| add(Kind::OpenClose, 1500, OPENED, *idle));
        for bytes in [64, 1400] {
            for kind in [Kind::UdpToHost(bytes), Kind::UdpToGuest(bytes)] {
                FLOWS.iter().for_each(|flows| add(kind, 1500, *flows, 0));
            }
        }
        add(Kind::Drop, 1500, 1, 0);
        all.into_iter()
    }

    /// Items in one turn.
    pub(crate) fn items(&self) -> usize {
        match self.kind {
            Kind::ToHost | Kind::ToGuest => self.active() * self.segments(),
            Kind::Request => self.active(),
            Kind::OpenClose => OPENED,
            Kind::UdpToHost(_) | Kind::UdpToGuest(_) | Kind::Drop => FRAMES,
        }
    }

    fn is_large(&self) -> bool {
        self.mtu >= LARGE
    }

    fn frames(&self) -> usize {
        if self.is_large() { LARGE_FRAMES } else { FRAMES }
    }

    /// Flows that have something to do in one turn.
    fn active(&self) -> usize {
        self.flows.min(self.frames())
    }

    /// Segments of data for each of them.
    fn segments(&self) -> usize {
        self.frames() / self.active()
    }

    /// Both take about 20 Gbit/s.
    fn turn(&self) -> Duration {
        Duration::from_micros(if self.is_large() { 100 } else { 50 })
    }
}

impl fmt::Display for Scenario {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = match self.kind {
            Kind::ToHost => "to_host",
            Kind::ToGuest => "to_guest",
            Kind::Request => "request",
            Kind::OpenClose => "open_close",
            Kind::UdpToHost(_) => "udp_to_host",
            Kind::UdpToGuest(_) => "udp_to_guest",
            Kind::Drop => "drop",
        };
        write!(f, "{name}")?;
        match self.kind {
            Kind::ToHost | Kind::ToGuest => write!(f, "/{}/{}", self.mtu, self.flows)?,
            Kind::Request => write!(f, "/{}", self.flows)?,
            Kind::UdpToHost(bytes) | Kind::UdpToGuest(bytes) => write!(f, "/{bytes}/{}", self.flows)?,
            Kind::OpenClose | Kind::Drop => {}
        }
        if self.idle > 0 { write!(f, "+{}", self.idle) } else { Ok(()) }
    }
}

/// A scenario on its way.
pub(crate) struct Running {
    scenario: Scenario,
    network: Network,
    guest: Guest,
    turns: usize,
    bytes_per_turn: usize,
}

impl Running {
    /// Opens what is to be open, and warms up.
    pub(crate) fn new(scenario: &Scenario) -> Self {
        let mut running = Self {
            scenario: *scenario,
            network: Network::new(scenario.mtu, scenario.turn()),
            guest: Guest::new(scenario.mtu),
            turns: 0,
            bytes_per_turn: 0,
        };
        running.open();
        let half = (ROUNDS * scenario.flows / scenario.active()).max(WARM_UP) / 2;
        let moved = [(); 2].map(|()| {
            for _ in 0..half {
                running.prepare();
                running.turn();
            }
            running.network.received + running.guest.received
        });
        running.bytes_per_turn = (moved[1] - moved[0]) / half;
        running.check();
        running
    }

    /// Bytes of data that one turn moves.
    pub(crate) fn bytes_per_turn(&self) -> usize {
        self.bytes_per_turn
    }

    /// The guest reads what the last turn sent and makes the next turn's frames.
    pub(crate) fn prepare(&mut self) {
        let Self { scenario, network, guest, turns, .. } = self;
        guest.receive(network);
        network.input.clear();
        let frames = &mut network.input;
        let active = (0..scenario.active()).map(|n| (*turns * scenario.active() + n) % scenario.flows);
        match scenario.kind {
            Kind::ToHost => {
                for number in active {
                    (0..scenario.segments()).for_each(|_| guest.send_data(frames, number));
                }
            }
            Kind::ToGuest => {
                guest.send_owed(frames);
                network.readable.extend(active.map(|number| network.opened[number]));
            }
            Kind::Request => active.for_each(|number| guest.send(frames, number, ACK, 1)),
            Kind::OpenClose => {
                let (turn, first) = (*turns, scenario.idle);
                let group = |age: usize| {
                    let first = first + (turn + LIFE - age) % LIFE * OPENED;
                    (first..first + OPENED).filter(move |_| turn >= age)
                };
                group(3).for_each(|number| guest.send(frames, number, ACK, 0));
                group(2).for_each(|number| guest.send(frames, number, ACK | FIN, 0));
                group(1).for_each(|number| guest.send(frames, number, ACK, 0));
                group(0).for_each(|number| guest.open(frames, number));
            }
            Kind::UdpToHost(bytes) => {
                active.cycle().take(FRAMES).for_each(|number| guest::send_datagram(frames, number, bytes));
            }
            Kind::UdpToGuest(bytes) => {
                let flows = active.cycle().take(FRAMES).map(|number| network.opened_udp[number]);
                network.datagrams = (flows.collect(), bytes);
            }
            Kind::Drop => (0..FRAMES).for_each(|number| guest::send_useless(frames, number)),
        }
        self.turns += 1;
    }

    /// What is measured.
    pub(crate) fn turn(&mut self) {
        self.network.turn();
    }

    fn open(&mut self) {
        let Self { scenario, network, guest, .. } = self;
        let connections = match scenario.kind {
            Kind::ToHost | Kind::ToGuest | Kind::Request => scenario.flows + scenario.idle,
            Kind::OpenClose => scenario.idle,
            Kind::UdpToHost(_) | Kind::UdpToGuest(_) | Kind::Drop => 0,
        };
        let numbers: Vec<usize> = (0..connections).collect();
        for numbers in numbers.chunks(SYNS) {
            network.input.clear();
            numbers.iter().for_each(|number| guest.open(&mut network.input, *number));
            network.turn();
            guest.receive(network);
            network.input.clear();
            numbers.iter().for_each(|number| guest.send(&mut network.input, *number, ACK, 0));
            network.turn();
            guest.receive(network);
        }
        assert_eq!((network.opened.len(), network.stack().flows().0), (connections, connections));
        network.input.clear();
        match scenario.kind {
            Kind::ToGuest => network.host_writes = scenario.segments() * guest.mss(),
            Kind::Request => {
                network.echoes = true;
                guest.acknowledges = false;
            }
            Kind::UdpToGuest(_) => {
                (0..scenario.flows).for_each(|number| guest::send_datagram(&mut network.input, number, 1));
                network.turn();
                assert_eq!(network.opened_udp.len(), scenario.flows);
            }
            Kind::ToHost | Kind::OpenClose | Kind::UdpToHost(_) | Kind::Drop => {}
        }
    }

    /// Whether what happened is what the scenario is about.
    pub(crate) fn check(&self) {
        let (scenario, stack) = (&self.scenario, self.network.stack());
        let (items, moved) = (scenario.items(), self.bytes_per_turn);
        let drops = if scenario.kind == Kind::Drop { items * self.turns } else { 0 };
        assert_eq!(stack.drops().total() as usize, drops, "{scenario}: {:?}", stack.drops());
        let (flows, bytes) = match scenario.kind {
            // With many flows the offered window is less than a full segment.
            Kind::ToHost if scenario.is_large() && scenario.flows >= FRAMES => {
                (scenario.flows, moved.max(items * LEAST_WINDOW))
            }
            Kind::ToHost | Kind::ToGuest => (scenario.flows, items * self.guest.mss()),
            Kind::Request => (scenario.flows, items * 2),
            Kind::OpenClose => (OPENED * (LIFE - 1), 0),
            Kind::UdpToHost(bytes) | Kind::UdpToGuest(bytes) => (0, items * bytes),
            Kind::Drop => (0, 0),
        };
        assert_eq!((stack.flows().0, moved), (flows + scenario.idle, bytes), "{scenario}");
    }
}
