//! The hot loop. One thread owns the virtual network, its links and the host sockets of its flows, and is the only
//! reader of the clock.
//!
//! A turn: read each link once and give its frames to the stack; act on what the stack asks for; for each flow that was
//! touched move bytes between its rings and its descriptor and let it send; write the batches. Then look what else became ready.
//! Nothing here locks, and nothing allocates or makes a system call for a single packet of a TCP flow.
//!
//! Owns: [`Stack`] and every descriptor that carries a guest's bytes. May not: wait for anything but `poll`.
//! Read next: `tcp.rs`, `udp.rs`, `forwards.rs`, `links.rs`; `netstack/src/lib.rs`.

mod command;
mod forwards;
mod links;
mod readout;
mod tcp;
mod udp;
mod wait;

use std::collections::VecDeque;
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use anyhow::Context as _;
use mio::event::Event as Readiness;
use mio::net::UnixListener;
use mio::{Events, Interest, Poll, Token, Waker};
use netstack::{Event, FlowId, Instant, NetworkConfig, Stack, Target, UdpFlowId};
use slab::Slab;
use slotmap::SecondaryMap;
use tokio::sync::mpsc;

pub use command::{Handle, Request};
pub use forwards::{ForwardId, Listener};
pub use readout::Counters;

use crate::host::udp::{HostUdp, Outbox};
use crate::link::{FrameTooLong, Progress};
use crate::listen::RemoveOnDrop;
use crate::logging::Limited;
use crate::sys::memory::discard;
use crate::sys::udp::Inbox;
use command::{CHANNEL, Command};
use forwards::Forwards;
use links::{Batches, Link};
use tcp::Connection;
use wait::Waits;

/// Readiness events taken from the system at once.
const EVENTS: usize = 1024;
/// A batch of this many bytes is written before the turn's end, so that the guest can start on it.
const EARLY_WRITE: usize = 64 << 10;
/// How long accepting pauses when there are no more descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// What a token stands for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Waker,
    QemuListener,
    Link,
    Forward(ForwardId),
    Tcp(FlowId),
    Udp(UdpFlowId),
}

/// Where the hypervisor connects. The file goes first, while the socket is open.
#[derive(Debug)]
struct QemuListener {
    _file: RemoveOnDrop,
    listener: UnixListener,
    token: Token,
}

/// Frames one way, without the framing's own bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Traffic {
    /// How many.
    pub frames: u64,
    /// How long together.
    pub bytes: u64,
}

impl Traffic {
    fn count(&mut self, len: usize) {
        self.frames += 1;
        self.bytes += len as u64;
    }
}

/// Why the loop ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum End {
    /// Somebody asked for it.
    Stopped,
    /// The virtual machine closed its link.
    LinkClosed,
}

/// The engine; see the module's head.
#[derive(Debug)]
pub struct Engine {
    poll: Poll,
    waits: Waits,
    started: Clock,
    now: Instant,
    stack: Stack,
    batches: Batches,
    sources: Slab<Source>,
    qemu: Option<QemuListener>,
    links: Vec<Link>,
    /// Bytes that the turn read and wrote, of links and descriptors.
    carried: usize,
    received: Traffic,
    mtu: u16,
    forwards: Forwards,
    tcp: SecondaryMap<FlowId, Connection>,
    udp: SecondaryMap<UdpFlowId, HostUdp>,
    udp_ready: VecDeque<UdpFlowId>,
    /// Those that wait for room at their port.
    udp_waiting: Vec<UdpFlowId>,
    /// The datagrams read last, and those to be sent together.
    inbox: Inbox,
    outbox: Outbox,
    commands: mpsc::Receiver<Command>,
    requests: mpsc::Sender<Request>,
    end: Option<End>,
    no_descriptors: Limited,
}

impl Engine {
    /// An engine without links and forwards, the way to command it, and what it asks for.
    ///
    /// # Errors
    /// The system has no event queue to give.
    pub fn new(network: NetworkConfig, seed: u64) -> io::Result<(Self, Handle, mpsc::Receiver<Request>)> {
        let poll = Poll::new()?;
        let mut sources = Slab::new();
        let waker = Arc::new(Waker::new(poll.registry(), Token(sources.insert(Source::Waker)))?);
        let (commands, command_receiver) = mpsc::channel(CHANNEL);
        let (requests, request_receiver) = mpsc::channel(CHANNEL);
        let mtu = network.mtu;
        let engine = Self {
            poll,
            waits: Waits::default(),
            started: Clock::now(),
            now: Instant::ZERO,
            stack: Stack::new(network, seed, Instant::ZERO),
            batches: Batches::default(),
            sources,
            qemu: None,
            links: Vec::new(),
            carried: 0,
            received: Traffic::default(),
            mtu,
            forwards: Forwards::default(),
            tcp: SecondaryMap::new(),
            udp: SecondaryMap::new(),
            udp_ready: VecDeque::new(),
            udp_waiting: Vec::new(),
            inbox: Inbox::new(),
            outbox: Outbox::new(),
            commands: command_receiver,
            requests,
            end: None,
            no_descriptors: Limited::new(1, Duration::from_secs(60)),
        };
        Ok((engine, Handle { commands, waker }, request_receiver))
    }

    /// Takes one hypervisor from `listener`, and ends when that one leaves.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn listen_qemu(
        &mut self,
        listener: std::os::unix::net::UnixListener,
        file: RemoveOnDrop,
    ) -> io::Result<()> {
        listener.set_nonblocking(true)?;
        let mut listener = UnixListener::from_std(listener);
        let token = Token(self.sources.insert(Source::QemuListener));
        self.poll.registry().register(&mut listener, token, Interest::READABLE)?;
        self.qemu = Some(QemuListener { _file: file, listener, token });
        Ok(())
    }

    /// Runs until the end.
    ///
    /// # Errors
    /// The event queue failed, or the hypervisor's stream can no longer be followed.
    pub fn run(mut self) -> anyhow::Result<End> {
        let mut events = Events::with_capacity(EVENTS);
        loop {
            let (timeout, carried) = (self.timeout(), std::mem::take(&mut self.carried));
            self.waits
                .wait(&mut self.poll, &mut events, timeout, carried)
                .context("cannot wait for events")?;
            let elapsed = i64::try_from(self.started.elapsed().as_micros()).unwrap_or(i64::MAX);
            self.now = Instant::from_micros(elapsed);
            for event in &events {
                self.handle_event(event)?;
            }
            self.turn()?;
            if let Some(end) = self.end {
                return Ok(end);
            }
        }
    }

    /// How long to sleep: not at all while there is something to do.
    fn timeout(&self) -> Option<Duration> {
        let busy = self.stack.ready_len() > 0
            || !self.udp_ready.is_empty()
            || self.links.iter().any(|link| link.readable)
            || self.forwards.is_busy();
        if busy {
            return Some(Duration::ZERO);
        }
        let next = [self.stack.poll_timeout(), self.forwards.again].into_iter().flatten().min()?;
        Some(if next > self.now { (next - self.now).into() } else { Duration::ZERO })
    }

    fn handle_event(&mut self, event: &Readiness) -> anyhow::Result<()> {
        let Token(token) = event.token();
        match self.sources.get(token) {
            Some(Source::Tcp(flow)) => {
                let flow = *flow;
                self.handle_tcp_event(flow, event);
            }
            Some(Source::Udp(flow)) => {
                let flow = *flow;
                self.queue_udp(flow);
            }
            Some(Source::Link) => {
                if let Some(link) = self.links.iter_mut().find(|link| link.token.0 == token) {
                    link.ended |= event.is_read_closed();
                    link.readable |= event.is_readable() || event.is_error() || link.ended;
                    if event.is_writable() {
                        link.handle_room(self.poll.registry())?;
                    }
                }
            }
            Some(Source::Forward(id)) => self.forwards.handle_readable(*id),
            Some(Source::QemuListener) => self.accept_qemu().context("cannot accept the virtual machine")?,
            Some(Source::Waker) => self.handle_commands(),
            None => {}
        }
        Ok(())
    }

    fn turn(&mut self) -> anyhow::Result<()> {
        self.stack.handle_timeout(self.now, &mut self.batches);
        self.read_links()?;
        self.serve_forwards();
        self.handle_stack_events();
        // Flows that become ready meanwhile have their turn after the links had theirs.
        for _ in 0..self.stack.ready_len() {
            let Some(flow) = self.stack.poll_ready() else { break };
            self.serve_flow(flow);
            self.write_links(EARLY_WRITE)?;
        }
        for _ in 0..self.udp_ready.len() {
            let Some(flow) = self.udp_ready.pop_front() else { break };
            self.serve_udp(flow);
            self.write_links(EARLY_WRITE)?;
        }
        self.handle_stack_events();
        while let Some(memory) = self.stack.poll_idle_memory(self.now) {
            discard(memory);
        }
        self.write_links(1)
    }

    fn read_links(&mut self) -> anyhow::Result<()> {
        for index in 0..self.links.len() {
            let Some(link) = self.links.get_mut(index).filter(|link| link.readable) else { continue };
            let progress =
                link.reader.fill(&mut link.stream).context("cannot read from the virtual machine")?;
            // The end may stand behind a short read, and has been announced already.
            link.readable = progress == Progress::More || link.ended;
            self.carried += link.reader.len();
            let mid_frame =
                self.handle_frames(index).context("cannot follow the virtual machine's stream")?;
            if progress == Progress::Closed {
                anyhow::ensure!(!mid_frame, "the virtual machine left in the middle of a frame");
                self.end = Some(End::LinkClosed);
            }
        }
        Ok(())
    }

    /// Gives the stack every whole frame that was read. Whether the rest of one is missing.
    fn handle_frames(&mut self, index: usize) -> Result<bool, FrameTooLong> {
        while let Some(link) = self.links.get_mut(index) {
            let port = link.port;
            let Some(frame) = link.reader.next_frame()? else {
                let mid_frame = link.reader.is_mid_frame();
                self.flush_udp();
                return Ok(mid_frame);
            };
            self.received.count(frame.len());
            let Some(datagram) = self.stack.handle_frame(port, frame, self.now, &mut self.batches) else {
                continue;
            };
            let (flow, payload, opens) = (datagram.flow, datagram.payload, datagram.open.is_some());
            let sent = if self.outbox.takes(flow, payload.len()) {
                None
            } else {
                udp::send(&mut self.outbox, &mut self.udp)
            };
            self.outbox.push(flow, payload);
            let registry = self.poll.registry();
            udp::open(&datagram, &mut self.udp, &mut self.sources, registry, &mut self.no_descriptors);
            self.handle_udp_sent(sent);
            if opens {
                // What made room for the new flow is closed before the next one opens.
                self.handle_stack_events();
            }
        }
        Ok(false)
    }

    /// Writes the batches that hold at least `least` bytes.
    fn write_links(&mut self, least: usize) -> anyhow::Result<()> {
        for link in &mut self.links {
            let Some(batch) = self.batches.get_mut(link.port).filter(|batch| batch.len() >= least) else {
                continue;
            };
            self.carried += batch.len();
            match link.write(batch, self.poll.registry()) {
                Ok(Progress::More | Progress::Blocked) => {
                    if batch.has_much_room() {
                        self.stack.handle_room(link.port);
                        self.udp_ready.extend(self.udp_waiting.drain(..));
                        self.forwards.handle_room();
                    }
                }
                Ok(Progress::Closed) => self.end = Some(End::LinkClosed),
                // Reading tells the same, and what the guest sent before it left.
                Err(error) if is_gone(&error) => {
                    batch.clear();
                    (link.readable, link.ended) = (true, true);
                }
                Err(error) => return Err(error).context("cannot write to the virtual machine"),
            }
        }
        Ok(())
    }

    fn accept_qemu(&mut self) -> io::Result<()> {
        let Some(qemu) = self.qemu.as_mut().filter(|_| self.links.is_empty()) else { return Ok(()) };
        let stream = match qemu.listener.accept() {
            Ok((stream, _)) => stream,
            Err(error) if is_later(&error) => return Ok(()),
            Err(error) => return Err(error),
        };
        // One hypervisor in a run. Whoever else connects is refused, and yet the socket stays open: see `RemoveOnDrop`.
        self.poll.registry().deregister(&mut qemu.listener)?;
        self.sources.try_remove(qemu.token.0);
        while qemu.listener.accept().is_ok() {}
        rustix::net::shutdown(&qemu.listener, rustix::net::Shutdown::Both)?;
        let token = Token(self.sources.insert(Source::Link));
        let port = self.stack.attach_port(self.now);
        self.batches.attach(port);
        self.links.push(Link::new(port, token, stream, self.mtu, self.poll.registry())?);
        tracing::info!(%port, "virtual machine connected");
        Ok(())
    }

    fn handle_stack_events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::TcpOpen { flow, target: Target::Host(address) } => self.connect_host(flow, address),
                Event::TcpOpen { flow, target: Target::Gateway(port) } => self.connect_gateway(flow, port),
                Event::UdpClosed(flow) => self.close_udp(flow),
                Event::DnsQuestion { client, message } => {
                    // A full channel loses the question, as a busy server would; the guest asks again.
                    let _ = self.requests.try_send(Request::DnsQuestion { client, message });
                }
            }
        }
    }

    fn handle_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Connect { to, reply } => self.connect_guest(to, reply),
                Command::DnsQuery { message, reply } => {
                    let mut answer = Vec::new();
                    let verdict = self.stack.dns_query(&message, netstack::dns::Transport::Tcp, &mut answer);
                    let _ = reply.send((verdict, answer));
                }
                Command::DnsAnswer { client, message } => {
                    self.stack.dns_answer(client, &message, &mut self.batches);
                }
                Command::Stop => self.end = Some(End::Stopped),
                Command::Read(readout) => self.read_out(readout),
                Command::Forward(command) => self.handle_forward_command(command),
            }
        }
    }

    /// Forgets a descriptor that is about to be closed.
    fn forget(&mut self, token: Token) {
        self.sources.try_remove(token.0);
    }
}

/// Whether the other end is simply gone.
fn is_gone(error: &io::Error) -> bool {
    matches!(error.kind(), io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset)
}

/// Whether there is nothing wrong but the moment.
fn is_later(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
    )
}
