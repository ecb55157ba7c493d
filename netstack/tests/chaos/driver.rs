//! A driver and a guest out of any bytes at all: each byte string is a program of operations on a [`Stack`],
//! and after each the invariants hold. Owns: the operations and the invariants. Read next: `main.rs`, which
//! runs programs of random bytes; `../../fuzz`, which looks for better ones.

use std::collections::{HashMap, VecDeque};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::Duration;

use netstack::tcp::Phase;
use netstack::{
    DnsClient, Event, FlowId, FrameSink, Instant, Mac, NetworkConfig, PortId, Refusal, Stack, UdpFlowId,
};
use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{
    ArpOperation, ArpPacket, ArpRepr, EthernetAddress, EthernetFrame, EthernetProtocol, IpProtocol,
    Ipv4Packet, Ipv4Repr, TcpControl, TcpPacket, TcpRepr, TcpSeqNumber, UdpPacket,
};

// By its path from here: a fuzzer's target has this file alone.
#[path = "../shared/config.rs"]
mod config;

use config::{GATEWAY, GATEWAY_MAC, HOST, config};

const MTU: u16 = 1500;
const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
const GUEST_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
/// Frames that a port's batch holds.
const BATCH: usize = 64;
/// More rounds than that without an end are one that has none.
const ROUNDS: usize = 100_000;

/// What a program came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Summary {
    /// The most TCP flows that were open at once.
    pub(crate) open: usize,
    /// Bytes that arrived from the guest over TCP.
    pub(crate) carried: usize,
    /// Stands for all frames that were sent.
    pub(crate) digest: u64,
}

/// Runs `program` to its end; panics where an invariant does not hold.
pub(crate) fn run(program: &[u8]) -> Summary {
    let mut driver = Driver::new(program);
    while !driver.program.is_empty() {
        driver.step();
        driver.poll_events();
        driver.check();
    }
    driver.finish();
    Summary { open: driver.most, carried: driver.carried, digest: driver.digest.finish() }
}

/// The port's batch: what was sent and not yet looked at.
#[derive(Debug, Default)]
struct Sink {
    frames: VecDeque<(PortId, Vec<u8>)>,
    full: bool,
}

impl FrameSink for Sink {
    fn has_room(&self, _: PortId, _: usize) -> bool {
        !self.full && self.frames.len() < BATCH
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        if !self.has_room(port, len) {
            return None;
        }
        // What is lent may hold anything, so it holds what nobody should send on.
        self.frames.push_back((port, vec![0xa5; len]));
        self.frames.back_mut().map(|(_, frame)| frame.as_mut_slice())
    }
}

/// What the guest knows of a connection, by its own port and the other end's.
#[derive(Clone, Copy, Debug, Default)]
struct Peer {
    next: u32,
    acknowledged: u32,
}

struct Driver<'a> {
    program: &'a [u8],
    stack: Stack,
    sink: Sink,
    now: Instant,
    ports: Vec<PortId>,
    opening: Vec<FlowId>,
    open: Vec<FlowId>,
    udp: Vec<UdpFlowId>,
    clients: Vec<DnsClient>,
    peers: HashMap<(u16, u16), Peer>,
    most: usize,
    carried: usize,
    digest: DefaultHasher,
}

impl<'a> Driver<'a> {
    fn new(program: &'a [u8]) -> Self {
        let now = Instant::from_millis(0);
        let config = NetworkConfig { static_leases: vec![(GUEST, GUEST_MAC)], ..config(MTU) };
        let mut stack = Stack::new(config, 7, now);
        let ports = vec![stack.attach_port(now)];
        Self {
            program,
            stack,
            sink: Sink::default(),
            now,
            ports,
            opening: Vec::new(),
            open: Vec::new(),
            udp: Vec::new(),
            clients: Vec::new(),
            peers: HashMap::new(),
            most: 0,
            carried: 0,
            digest: DefaultHasher::new(),
        }
    }

    fn byte(&mut self) -> u8 {
        let (first, rest) = self.program.split_first().unwrap_or((&0, &[]));
        self.program = rest;
        *first
    }

    fn word(&mut self) -> u16 {
        u16::from_be_bytes([self.byte(), self.byte()])
    }

    fn bytes(&mut self, most: usize) -> Vec<u8> {
        // Mostly few, so that a program has many operations.
        let length = match self.byte() {
            few @ ..=199 => usize::from(few % 64),
            _ => usize::from(self.word()) % (most + 1),
        };
        let (taken, rest) = self.program.split_at(length.min(self.program.len()));
        self.program = rest;
        taken.to_vec()
    }

    /// One of `things`, if there are any.
    fn one<T: Copy>(&mut self, things: impl Fn(&Self) -> &Vec<T>) -> Option<T> {
        let choice = usize::from(self.byte());
        let things = things(self);
        things.get(choice % things.len().max(1)).copied()
    }

    fn step(&mut self) {
        match self.byte() % 16 {
            0 => {
                let frame = self.bytes(1600);
                self.frame(&frame);
            }
            1 => {
                let payload = self.bytes(1600);
                let protocol = [EthernetProtocol::Ipv4, EthernetProtocol::Arp][usize::from(self.byte() % 2)];
                let frame = ethernet(protocol, &payload);
                self.frame(&frame);
            }
            2 => self.packet(IpProtocol::Icmp),
            3 => self.packet(IpProtocol::Udp),
            4..=6 => self.segment(),
            7 => self.answer_opening(),
            8 => self.turn(),
            9 => {
                let step = Duration::from_millis(u64::from(self.word()) * 4);
                self.now += step;
                self.stack.handle_timeout(self.now, &mut self.sink);
                // A time-out that is not over when it has been handled would keep a driver busy.
                let next = self.stack.poll_timeout();
                assert!(
                    self.stack.ready_len() > 0 || next.is_none_or(|next| next > self.now),
                    "{next:?} is due at {:?}",
                    self.now
                );
            }
            10 => self.sink.full = !self.sink.full,
            11 => self.drain(),
            12 => {
                let guest = SocketAddrV4::new(GUEST, self.word());
                if let Ok(flow) = self.stack.tcp_connect(guest, self.now, &mut self.sink) {
                    self.open.push(flow);
                }
            }
            13 => {
                if let Some(flow) = self.one(|driver| &driver.open) {
                    match self.byte() % 3 {
                        0 => {
                            if let Some(flow) = self.stack.flow(flow) {
                                flow.finish();
                            }
                            self.stack.mark_ready(flow);
                        }
                        how => self.release(flow, how == 1),
                    }
                }
            }
            14 => self.answer_udp(),
            _ => self.replug(),
        }
    }

    fn frame(&mut self, frame: &[u8]) {
        let Some(port) = self.one(|driver| &driver.ports) else { return };
        if let Some(datagram) = self.stack.handle_frame(port, frame, self.now, &mut self.sink)
            && datagram.open.is_some()
        {
            self.udp.push(datagram.flow);
        }
    }

    fn poll_events(&mut self) {
        for _ in 0..ROUNDS {
            match self.stack.poll_event() {
                Some(Event::TcpOpen { flow, .. }) => self.opening.push(flow),
                Some(Event::UdpClosed(flow)) => self.udp.retain(|other| *other != flow),
                Some(Event::DnsQuestion { client, .. }) => self.clients.push(client),
                Some(
                    Event::AddressLearned(_)
                    | Event::AddressLost(_)
                    | Event::AddressMoved { .. }
                    | Event::AddressRefused { .. },
                ) => {}
                Some(Event::Echo { echo, .. }) => {
                    let data = echo.message().to_vec();
                    self.stack.echo_reply(&echo.head(), echo.ident(), &data, &mut self.sink);
                    self.stack.echo_unreachable(&echo, &mut self.sink);
                }
                None => return,
            }
        }
        panic!("events without end");
    }

    /// An IPv4 packet of `protocol`, whole or in part, with a payload of the program's.
    fn packet(&mut self, protocol: IpProtocol) {
        let mut payload = self.bytes(1480);
        if protocol == IpProtocol::Udp && payload.len() >= 8 {
            let length = payload.len() as u16;
            // Mostly right, so that there are flows.
            payload[4..6].copy_from_slice(&length.to_be_bytes());
            let choice = self.byte();
            let port = [53, 67, 7, u16::from(choice)][usize::from(choice % 4)];
            payload[2..4].copy_from_slice(&port.to_be_bytes());
            payload[6..8].fill(0);
        }
        let mut packet = self.ipv4(protocol, &payload);
        if self.byte().is_multiple_of(4) {
            let fragment = self.word();
            packet[6..8].copy_from_slice(&fragment.to_be_bytes());
            Ipv4Packet::new_unchecked(&mut packet).fill_checksum();
        }
        self.frame(&ethernet(EthernetProtocol::Ipv4, &packet));
    }

    fn ipv4(&mut self, protocol: IpProtocol, payload: &[u8]) -> Vec<u8> {
        let to = [GATEWAY, HOST, HOST, Ipv4Addr::new(1, 2, 3, 4)][usize::from(self.byte() % 4)];
        ipv4(protocol, to, payload)
    }

    /// A segment that fits a connection that there is, more or less.
    fn segment(&mut self) {
        let choice = self.byte();
        let mut ends: Vec<_> = self.peers.keys().copied().collect();
        ends.sort_unstable();
        let known = ends.get(usize::from(choice) % ends.len().max(1)).copied().filter(|_| choice < 200);
        let (local, remote) = known.unwrap_or_else(|| (40_000 + u16::from(choice % 16), 80));
        let peer = self.peers.get(&(local, remote)).copied().unwrap_or_default();
        let skew = [0, 0, 0, 0, 0, 1, u32::MAX, 1 << 20, 1 << 31][usize::from(self.byte() % 9)];
        let (sequence, acknowledged) = (peer.next.wrapping_add(skew), peer.acknowledged);
        let payload = if self.byte().is_multiple_of(2) { self.bytes(1400) } else { Vec::new() };
        let flags = self.byte();
        let control = [TcpControl::None, TcpControl::Psh, TcpControl::Syn, TcpControl::Fin, TcpControl::Rst];
        let control = if known.is_none() { TcpControl::Syn } else { control[usize::from(flags % 5)] };
        let repr = TcpRepr {
            src_port: local,
            dst_port: remote,
            control,
            seq_number: TcpSeqNumber(sequence as i32),
            ack_number: (known.is_some() && flags < 240).then_some(TcpSeqNumber(acknowledged as i32)),
            window_len: self.word(),
            window_scale: (control == TcpControl::Syn).then_some(flags % 16),
            max_seg_size: (control == TcpControl::Syn && flags >= 16).then(|| u16::from(flags) * 8),
            sack_permitted: flags.is_multiple_of(2),
            sack_ranges: [None; 3],
            timestamp: None,
            payload: &payload,
        };
        let mut bytes = vec![0; repr.buffer_len()];
        let mut segment = TcpPacket::new_unchecked(&mut bytes);
        // Checksums of a local hypervisor's frames are not looked at.
        repr.emit(&mut segment, &GUEST.into(), &HOST.into(), &ChecksumCapabilities::ignored());
        if skew == 0 {
            let counted = payload.len() + usize::from(matches!(control, TcpControl::Syn | TcpControl::Fin));
            let next = Peer { next: sequence.wrapping_add(counted as u32), acknowledged };
            self.peers.insert((local, remote), next);
        }
        let packet = ipv4(IpProtocol::Tcp, HOST, &bytes);
        self.frame(&ethernet(EthernetProtocol::Ipv4, &packet));
    }

    fn answer_opening(&mut self) {
        let Some(flow) = self.opening.pop() else { return };
        let refusal = match self.byte() % 8 {
            0 => Refusal::Reset,
            1 => Refusal::Unreachable,
            2 => Refusal::Silence,
            _ => {
                self.stack.tcp_accept(flow, self.now, &mut self.sink);
                return self.open.push(flow);
            }
        };
        self.stack.tcp_refuse(flow, refusal, self.now, &mut self.sink);
    }

    fn release(&mut self, flow: FlowId, abort: bool) {
        self.open.retain(|other| *other != flow);
        self.opening.retain(|other| *other != flow);
        self.stack.tcp_release(flow, abort);
    }

    /// What a driver does in a turn: bytes, then segments, for each flow that is ready.
    fn turn(&mut self) {
        let (mut take, mut give) = (usize::from(self.word()), usize::from(self.word()));
        for _ in 0..self.stack.ready_len() {
            let Some(id) = self.stack.poll_ready() else { break };
            let Some(flow) = self.stack.flow(id) else { continue };
            match flow.phase() {
                Phase::Connecting => {}
                Phase::Open => {
                    flow.recv(|bytes| {
                        let taken = bytes.len().min(take);
                        take -= taken;
                        self.carried += taken;
                        taken
                    });
                    flow.send(|space| {
                        let given = space.len().min(give);
                        give -= given;
                        space[..given].fill(0x5a);
                        given
                    });
                }
                phase => self.release(id, phase == Phase::Finished && take.is_multiple_of(2)),
            }
            self.stack.flush(id, self.now, &mut self.sink);
        }
    }

    fn answer_udp(&mut self) {
        let payload = self.bytes(4000);
        match self.byte() % 4 {
            0 => {
                if let Some(client) = self.clients.pop() {
                    self.stack.dns_answer(client, &payload, &mut self.sink);
                }
            }
            kind => {
                let Some(flow) = self.one(|driver| &driver.udp) else { return };
                match kind {
                    1 => self.stack.udp_send(flow, &payload, self.now, &mut self.sink),
                    2 => self.stack.udp_refused(flow, &mut self.sink),
                    _ => {
                        self.stack.udp_close(flow);
                        self.udp.retain(|other| *other != flow);
                    }
                }
            }
        }
    }

    /// Ports come and go; one stays.
    fn replug(&mut self) {
        if self.ports.len() > 1 && self.byte().is_multiple_of(2) {
            let port = self.ports.remove(0);
            self.stack.detach_port(port, self.now);
        } else if self.ports.len() < 4 {
            self.ports.push(self.stack.attach_port(self.now));
        }
    }

    /// The batch is written, and there is room again.
    fn drain(&mut self) {
        self.check();
        self.sink.frames.hash(&mut self.digest);
        self.sink.frames.clear();
        for index in 0..self.ports.len() {
            self.stack.handle_room(self.ports[index]);
        }
    }

    /// Looks at what was sent since the last time.
    fn check(&mut self) {
        self.most = self.most.max(self.open.len());
        for (_, bytes) in &self.sink.frames {
            let frame = EthernetFrame::new_checked(bytes).expect("a whole Ethernet header");
            if frame.src_addr().0 != GATEWAY_MAC.0 {
                // From one guest to another: none of the gateway's business.
                continue;
            }
            assert!(bytes.len() <= usize::from(MTU) + 14, "{} bytes at MTU {MTU}", bytes.len());
            match frame.ethertype() {
                EthernetProtocol::Arp => {
                    let packet = ArpPacket::new_checked(frame.payload()).expect("a whole ARP packet");
                    ArpRepr::parse(&packet).expect("an ARP packet with a meaning");
                }
                EthernetProtocol::Ipv4 => check_packet(frame.payload(), &mut self.peers),
                other => panic!("the gateway sent {other}"),
            }
        }
        let (tcp, udp) = self.stack.flows();
        let held = self.open.len() + self.opening.len();
        assert!(held <= tcp, "{held} TCP flows are held, there are {tcp}");
        assert!(self.udp.len() <= udp, "{} UDP flows are held, there are {udp}", self.udp.len());
    }

    /// Whatever happened, the gateway answers.
    fn finish(&mut self) {
        self.sink.full = false;
        self.drain();
        let port = self.stack.attach_port(self.now);
        let request = ArpRepr::EthernetIpv4 {
            operation: ArpOperation::Request,
            source_hardware_addr: EthernetAddress([2, 9, 9, 9, 9, 9]),
            source_protocol_addr: Ipv4Addr::new(192, 168, 127, 99),
            target_hardware_addr: EthernetAddress([0; 6]),
            target_protocol_addr: GATEWAY,
        };
        let mut bytes = vec![0; request.buffer_len()];
        request.emit(&mut ArpPacket::new_unchecked(&mut bytes));
        let mut frame = ethernet(EthernetProtocol::Arp, &bytes);
        frame[6..12].copy_from_slice(&[2, 9, 9, 9, 9, 9]);
        let _ = self.stack.handle_frame(port, &frame, self.now, &mut self.sink);
        let answered =
            self.sink.frames.iter().any(|(to, frame)| *to == port && frame.starts_with(&[2, 9, 9, 9, 9, 9]));
        assert!(answered, "the gateway does not answer any more");
    }
}

/// A packet from the gateway is whole, and its checksums are right: a guest may check them.
fn check_packet(bytes: &[u8], peers: &mut HashMap<(u16, u16), Peer>) {
    let packet = Ipv4Packet::new_checked(bytes).expect("a whole IPv4 packet");
    assert!(packet.verify_checksum(), "IPv4 checksum");
    assert_eq!(usize::from(packet.total_len()), bytes.len());
    if packet.more_frags() || packet.frag_offset() > 0 {
        return;
    }
    let (from, to) = (packet.src_addr(), packet.dst_addr());
    match packet.next_header() {
        IpProtocol::Tcp => {
            let segment = TcpPacket::new_checked(packet.payload()).expect("a whole segment");
            assert!(segment.verify_checksum(&from.into(), &to.into()), "TCP checksum");
            let peer = peers.entry((segment.dst_port(), segment.src_port())).or_default();
            let end = segment.seq_number().0 as u32;
            peer.acknowledged = end.wrapping_add(segment.segment_len() as u32);
        }
        IpProtocol::Udp => {
            let datagram = UdpPacket::new_checked(packet.payload()).expect("a whole datagram");
            assert!(datagram.verify_checksum(&from.into(), &to.into()), "UDP checksum");
        }
        IpProtocol::Icmp => {
            let message =
                smoltcp::wire::Icmpv4Packet::new_checked(packet.payload()).expect("a whole message");
            assert!(message.verify_checksum(), "ICMP checksum");
        }
        other => panic!("the gateway sent {other}"),
    }
}

fn ethernet(protocol: EthernetProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; 14 + payload.len()];
    let mut frame = EthernetFrame::new_unchecked(&mut bytes);
    frame.set_dst_addr(EthernetAddress(GATEWAY_MAC.0));
    frame.set_src_addr(EthernetAddress(GUEST_MAC.0));
    frame.set_ethertype(protocol);
    frame.payload_mut().copy_from_slice(payload);
    bytes
}

fn ipv4(protocol: IpProtocol, to: Ipv4Addr, payload: &[u8]) -> Vec<u8> {
    let repr = Ipv4Repr {
        src_addr: GUEST,
        dst_addr: to,
        next_header: protocol,
        payload_len: payload.len(),
        hop_limit: 64,
    };
    let mut bytes = vec![0; repr.buffer_len() + payload.len()];
    let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
    repr.emit(&mut packet, &ChecksumCapabilities::default());
    packet.payload_mut().copy_from_slice(payload);
    bytes
}
