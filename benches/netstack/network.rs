//! The driver in small: what `src/engine` does with a [`Stack`] in one turn, without descriptors. Owns: the
//! stack, the batch, the clock. May not: copy a byte, which in the daemon the kernel does. Read next:
//! `guest.rs`, the other side.

use std::hint::black_box;
use std::net::Ipv4Addr;
use std::time::Duration;

use netstack::tcp::{Flow, Phase};
use netstack::{Event, FlowId, FrameSink, Instant, Mac, NetworkConfig, PortId, Stack, Subnet, UdpFlowId};

pub(crate) const GATEWAY_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
/// As the daemon's: bytes that a batch holds, and those at which it is written within a turn.
const BATCH: usize = 512 << 10;
const EARLY_WRITE: usize = 64 << 10;
/// Batches written in one turn at most; the memory is not touched before it is used.
const BATCHES: usize = 64;
const SEED: u128 = 7;

/// The virtual network and what drives it.
pub(crate) struct Network {
    stack: Stack,
    port: PortId,
    now: Instant,
    step: Duration,
    batch: Batch,
    /// Whether the host's programs send back as many bytes as they read.
    pub(crate) echoes: bool,
    /// What the guest sends in the next turn.
    pub(crate) input: Frames,
    /// Flows for which the host's programs write in the next turn, and how many bytes each.
    pub(crate) readable: Vec<FlowId>,
    pub(crate) host_writes: usize,
    /// Datagrams that come for the guest in the next turn, all of this size.
    pub(crate) datagrams: (Vec<UdpFlowId>, usize),
    /// In the order in which they were opened.
    pub(crate) opened: Vec<FlowId>,
    pub(crate) opened_udp: Vec<UdpFlowId>,
    /// Bytes that reached the host.
    pub(crate) received: usize,
}

impl Network {
    /// `step` is what a turn takes.
    pub(crate) fn new(mtu: u16, step: Duration) -> Self {
        let gateway = Ipv4Addr::new(192, 168, 127, 1);
        let config = NetworkConfig {
            mtu,
            assumed_mtu: mtu,
            gateway_virtual_ips: vec![Ipv4Addr::new(192, 168, 127, 254)],
            nat: vec![(Ipv4Addr::new(192, 168, 127, 254).into(), Ipv4Addr::LOCALHOST.into())],
            ..NetworkConfig::new(Subnet::new(gateway, 24), gateway, GATEWAY_MAC)
        };
        let mut stack = Stack::new(config, SEED, Instant::ZERO);
        let port = stack.attach_port(Instant::ZERO);
        Self {
            stack,
            port,
            now: Instant::ZERO,
            step,
            batch: Batch { buffer: vec![0; BATCH * BATCHES], written: 0, end: 0 },
            echoes: false,
            input: Frames::default(),
            readable: Vec::new(),
            host_writes: 0,
            datagrams: (Vec::new(), 0),
            opened: Vec::new(),
            opened_udp: Vec::new(),
            received: 0,
        }
    }

    pub(crate) fn stack(&self) -> &Stack {
        &self.stack
    }

    /// What the stack sent in the last turn.
    pub(crate) fn output(&self) -> impl Iterator<Item = &[u8]> {
        self.batch.frames()
    }

    /// One turn of the driver. All that is measured happens here.
    pub(crate) fn turn(&mut self) {
        self.now += self.step;
        let (now, batch) = (self.now, &mut self.batch);
        (batch.written, batch.end) = (0, 0);
        self.stack.handle_timeout(now, batch);
        for frame in self.input.iter() {
            if let Some(datagram) = self.stack.handle_frame(self.port, frame, now, batch) {
                self.received += datagram.payload.len();
                if datagram.open.is_some() {
                    self.opened_udp.push(datagram.flow);
                }
            }
        }
        self.events();
        for id in self.readable.drain(..) {
            if let Some(flow) = self.stack.flow(id) {
                write(flow, self.host_writes);
            }
            self.stack.mark_ready(id);
        }
        for _ in 0..self.stack.ready_len() {
            let Some(flow) = self.stack.poll_ready() else { break };
            self.move_bytes(flow);
            self.stack.flush(flow, now, &mut self.batch);
            self.write(EARLY_WRITE);
        }
        // What is more than a flow's turn. The daemon would look at its links in between.
        while let Some(flow) = self.stack.poll_ready() {
            self.stack.flush(flow, now, &mut self.batch);
            self.write(EARLY_WRITE);
        }
        let (flows, len) = &self.datagrams;
        for flow in flows {
            self.stack.udp_send(*flow, &DATAGRAM[..*len], now, &mut self.batch);
        }
        self.events();
        while let Some(memory) = self.stack.poll_idle_memory(now) {
            black_box(memory);
        }
        self.write(1);
        black_box(self.stack.poll_timeout());
    }

    fn events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            if let Event::TcpOpen { flow, .. } = event {
                self.opened.push(flow);
                self.stack.tcp_accept(flow, self.now, &mut self.batch);
            }
        }
    }

    fn move_bytes(&mut self, id: FlowId) {
        let Some(flow) = self.stack.flow(id) else { return };
        if flow.phase() == Phase::Connecting {
            return;
        }
        let mut received = 0;
        if flow.can_recv() {
            flow.recv(|bytes| {
                received += bytes.len();
                bytes.len()
            });
        }
        if self.echoes && received > 0 {
            write(flow, received);
        }
        if flow.recv_finished() && !flow.finished() {
            flow.finish();
            self.stack.tcp_release(id, false);
        }
        self.received += received;
    }

    /// Counts what is in the batch as written, if it is at least this many bytes.
    fn write(&mut self, least: usize) {
        if self.batch.end - self.batch.written >= least {
            self.batch.written = self.batch.end;
            self.stack.handle_room(self.port);
        }
    }
}

/// What `src/host/tcp.rs` does for a descriptor that has `bytes` bytes.
fn write(flow: &mut Flow, bytes: usize) {
    let mut left = bytes;
    if flow.can_send() && !flow.finished() {
        flow.send(|space| {
            let filled = space.len().min(left);
            left -= filled;
            filled
        });
    }
}

const DATAGRAM: [u8; 2048] = [0; 2048];

/// The daemon's batch buffer, but that what has been written stays to be looked at.
struct Batch {
    buffer: Vec<u8>,
    written: usize,
    end: usize,
}

/// Bytes of the length in front of each frame.
const PREFIX: usize = 4;

impl Batch {
    fn frames(&self) -> impl Iterator<Item = &[u8]> {
        let mut bytes = &self.buffer[..self.end];
        std::iter::from_fn(move || {
            let (prefix, rest) = bytes.split_first_chunk::<PREFIX>()?;
            let (frame, rest) = rest.split_at(u32::from_be_bytes(*prefix) as usize);
            bytes = rest;
            Some(frame)
        })
    }
}

impl FrameSink for Batch {
    fn has_room(&self, _: PortId, len: usize) -> bool {
        BATCH - (self.end - self.written) >= PREFIX + len
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        if !self.has_room(port, len) {
            return None;
        }
        let space = self.buffer.get_mut(self.end..self.end + PREFIX + len)?;
        self.end += PREFIX + len;
        let (prefix, frame) = space.split_at_mut(PREFIX);
        prefix.copy_from_slice(&(len as u32).to_be_bytes());
        Some(frame)
    }
}

/// Frames one after the other.
#[derive(Debug, Default)]
pub(crate) struct Frames {
    bytes: Vec<u8>,
    ends: Vec<usize>,
}

impl Frames {
    pub(crate) fn clear(&mut self) {
        self.bytes.clear();
        self.ends.clear();
    }

    /// Adds a frame of `len` zeroed bytes and lends them to be written.
    pub(crate) fn add(&mut self, len: usize) -> &mut [u8] {
        let start = self.bytes.len();
        self.bytes.resize(start + len, 0);
        self.ends.push(start + len);
        &mut self.bytes[start..]
    }

    /// The frame added last.
    pub(crate) fn last(&mut self) -> &mut [u8] {
        let start = self.ends.iter().rev().nth(1).copied().unwrap_or(0);
        &mut self.bytes[start..]
    }

    fn iter(&self) -> impl Iterator<Item = &[u8]> {
        let starts = std::iter::once(0).chain(self.ends.iter().copied());
        starts.zip(&self.ends).map(|(start, end)| &self.bytes[start..*end])
    }
}
