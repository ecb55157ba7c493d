//! The hot loop. One thread owns the virtual network, its links and the host sockets of its flows, and is the
//! only reader of the clock.
//!
//! A turn: read each link once and give its frames to the stack; act on what the stack asks for; for each
//! flow that was touched move bytes between its rings and its descriptor and let it send; write the batches.
//! Then look what else became ready. Nothing here locks, and nothing allocates or makes a system call for a
//! single packet of a TCP flow.
//!
//! Owns: [`Stack`] and every descriptor that carries a guest's bytes. May not: wait for anything but `poll`.
//! Read next: `tcp.rs`, `udp.rs`, `forwards.rs`, `links.rs`; `netstack/src/lib.rs`.

mod attach;
mod capture;
mod client;
mod command;
mod connecting;
mod ending;
mod forwards;
mod links;
mod own;
mod ping;
mod readout;
mod requests;
mod shares;
mod slice;
mod tcp;
mod udp;
mod wait;

use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant as Clock};

use mio::event::Event as Readiness;
use mio::{Events, Poll, Token, Waker};
use netstack::{Event, FlowId, Instant, NetworkConfig, PortId, Stack, Target, UdpFlowId};
use slab::Slab;
use tokio::sync::mpsc;

pub use attach::Attachment;
pub use client::{Preface, Refused, Rejected};
pub use command::Handle;
pub use forwards::{ForwardId, PortSocket};
pub use readout::Counters;
pub use requests::Request;

use crate::config::ConnectLimits;
use crate::host::icmp::{PingId, Pings};
use crate::listen::TcpAddress;
use crate::logging::Limited;
use crate::notify::{Notice, Notifier};
use crate::permits::Permits;
use crate::sys::descriptor_limit;
use crate::sys::memory::discard;
use crate::sys::udp::Inbox;
use command::{COMMANDS, Command};
use connecting::Connecting;
use forwards::Forwards;
use links::Links;
use own::OwnListeners;
use requests::Requests;
use slice::Slice;
use tcp::TcpHosts;
use udp::UdpHosts;
use wait::Waits;

/// Readiness events taken from the system at once.
const EVENTS: usize = 1024;
/// A batch of this many bytes is written before the turn's end, so that the guest can start on it.
const EARLY_WRITE: usize = 64 << 10;
/// How long the end waits for who has not yet taken what guests sent.
const LAST_DELIVERY: Duration = Duration::from_millis(500);
/// Connects of one guest that are under way take this part of the descriptors, at least and at most so many;
/// and as much again for a moment.
const OPENING_SHARE: usize = 16;
const LEAST_OPENING: usize = 16;
const MOST_OPENING: usize = 512;

/// UDP flows of guests are no more than this part of the descriptors.
const UDP_SHARE: usize = 4;

/// What a token stands for.
#[derive(Clone, Copy, Debug)]
enum Source {
    Waker,
    Link(PortId),
    Forward(ForwardId),
    Tcp(FlowId),
    Udp(UdpFlowId),
    Ping(PingId),
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

/// The engine; see the module's head.
#[derive(Debug)]
pub struct Engine {
    poll: Poll,
    waits: Waits,
    started: Clock,
    now: Instant,
    stack: Stack,
    sources: Slab<Source>,
    /// Bytes that the turn read and wrote, of links and descriptors.
    carried: usize,
    links: Links,
    tcp: TcpHosts,
    udp: UdpHosts,
    pings: Pings,
    forwards: Forwards,
    /// The datagrams that were read last.
    inbox: Inbox,
    commands: mpsc::Receiver<Command>,
    requests: Arc<Requests>,
    notifier: Option<Notifier>,
    stopped: bool,
    no_pings: Limited,
    moved: Limited,
    /// Lines about machines that speak as others.
    refused: Limited,
}

impl Engine {
    /// An engine without links and forwards, and the way to it. Connections take `permits`.
    ///
    /// # Errors
    /// The system has no event queue to give.
    pub fn new(network: NetworkConfig, seed: u128, permits: Permits) -> io::Result<(Self, Handle)> {
        let poll = Poll::new()?;
        let mut sources = Slab::new();
        let waker = Arc::new(Waker::new(poll.registry(), Token(sources.insert(Source::Waker)))?);
        let (commands, command_receiver) = mpsc::channel(COMMANDS);
        let requests = Arc::<Requests>::default();
        let (links, count) = Links::new(network.mtu);
        let mut stack = Stack::new(network, seed, Instant::ZERO);
        stack.limit_udp(descriptor_limit() / UDP_SHARE);
        stack.limit_opening((descriptor_limit() / OPENING_SHARE).clamp(LEAST_OPENING, MOST_OPENING));
        let engine = Self {
            poll,
            waits: Waits::default(),
            started: Clock::now(),
            now: Instant::ZERO,
            stack,
            sources,
            carried: 0,
            links,
            tcp: TcpHosts::new(permits),
            udp: UdpHosts::new(),
            pings: Pings::default(),
            forwards: Forwards::default(),
            inbox: Inbox::new(),
            commands: command_receiver,
            requests: Arc::clone(&requests),
            notifier: None,
            stopped: false,
            no_pings: Limited::new(1, Duration::from_secs(60)),
            moved: Limited::new(1, Duration::from_secs(60)),
            refused: Limited::new(1, Duration::from_secs(60)),
        };
        Ok((engine, Handle { commands, waker, requests, links: count, attached: Arc::default() }))
    }

    /// Tells `notifier` of machines that come and go.
    pub fn notify(&mut self, notifier: Notifier) {
        self.notifier = Some(notifier);
    }

    /// Limits the connects of guests to the host.
    pub fn limit_connects(&mut self, limits: ConnectLimits) {
        self.tcp.connecting = Connecting::new(limits);
    }

    /// Keeps guests from what listens at these addresses of the host.
    pub fn keep_from_guests(&mut self, listeners: Vec<TcpAddress>) {
        self.tcp.own = OwnListeners::new(listeners);
    }

    /// Runs until somebody asks for the end.
    ///
    /// # Errors
    /// The event queue failed.
    pub fn run(mut self) -> io::Result<()> {
        let mut events = Events::with_capacity(EVENTS);
        let mut ended = Ok(());
        while !self.stopped && ended.is_ok() {
            ended = self.round(&mut events, None);
        }
        self.detach_all();
        ended.and_then(|()| self.deliver_rest(&mut events))
    }

    /// Waits for events, for `limit` at most, and does what there is to do.
    fn round(&mut self, events: &mut Events, limit: Option<Duration>) -> io::Result<()> {
        let timeout = self.timeout().into_iter().chain(limit).min();
        self.waits.wait(&mut self.poll, events, timeout, std::mem::take(&mut self.carried))?;
        let elapsed = u64::try_from(self.started.elapsed().as_micros()).unwrap_or(u64::MAX);
        self.now = Instant::from_micros(elapsed);
        for event in &*events {
            self.handle_event(event);
        }
        self.turn();
        Ok(())
    }

    /// Lets the other ends take what guests sent before the end, and resets them behind it. Whose part is
    /// still here then gets the reset at once, and does not take what it has for the whole.
    fn deliver_rest(&mut self, events: &mut Events) -> io::Result<()> {
        let until = self.now + LAST_DELIVERY;
        while self.now < until && !self.tcp.connections.is_empty() {
            self.round(events, Some(until - self.now))?;
        }
        for (id, connection) in &mut self.tcp.connections {
            if self.stack.flow(id).is_some_and(|flow| flow.can_recv()) {
                connection.host.stream().reset_on_close();
            }
        }
        Ok(())
    }

    /// Whoever is still there goes with the network.
    fn detach_all(&mut self) {
        for link in std::mem::take(&mut self.links.all) {
            self.stack.detach_port(link.port, self.now);
        }
        self.handle_stack_events();
    }

    /// How long to sleep: not at all while there is something to do.
    fn timeout(&self) -> Option<Duration> {
        let busy = self.stack.ready_len() > 0
            || !self.udp.ready.is_empty()
            || self.stack.has_idle_memory()
            || self.links.is_busy()
            || self.forwards.is_busy();
        if busy {
            return Some(Duration::ZERO);
        }
        let others = [
            self.forwards.again,
            self.forwards.full_until,
            self.pings.expiry,
            self.links.next_retry(),
            self.tcp.next_deadline(),
        ];
        let next = others.into_iter().chain([self.stack.poll_timeout()]).flatten().min()?;
        Some(next - self.now)
    }

    fn handle_event(&mut self, event: &Readiness) {
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
            Some(Source::Ping(id)) => {
                let id = *id;
                self.serve_ping(id);
            }
            Some(Source::Link(port)) => {
                let port = *port;
                self.handle_link_event(port, event);
            }
            Some(Source::Forward(id)) => self.forwards.handle_readable(*id),
            Some(Source::Waker) => self.handle_commands(),
            None => {}
        }
    }

    fn turn(&mut self) {
        self.stack.handle_timeout(self.now, &mut self.links.batches);
        self.read_links();
        self.serve_forwards();
        self.end_greetings();
        self.expire_pings();
        self.end_connects();
        self.serve_endings();
        self.handle_stack_events();
        // Flows that become ready meanwhile have their turn after the links had theirs.
        let slice = Slice::new(self.links.len());
        for _ in 0..self.stack.ready_len() {
            let Some(flow) = self.stack.poll_ready() else { break };
            self.serve_flow(flow);
            self.write_links(EARLY_WRITE);
            if slice.is_over() {
                break;
            }
        }
        let slice = Slice::new(self.links.len());
        for _ in 0..self.udp.ready.len() {
            let Some(flow) = self.udp.ready.pop() else { break };
            self.serve_udp(flow);
            self.write_links(EARLY_WRITE);
            if slice.is_over() {
                break;
            }
        }
        self.handle_stack_events();
        let slice = Slice::new(self.links.len());
        while let Some(memory) = self.stack.poll_idle_memory(self.now) {
            discard(memory);
            if slice.is_over() {
                break;
            }
        }
        self.write_links(1);
        self.detach_links();
        if let Some(tap) = &mut self.links.tap {
            tap.hand_over();
        }
    }

    fn handle_stack_events(&mut self) {
        while let Some(event) = self.stack.poll_event() {
            match event {
                Event::TcpOpen { flow, target: Target::Host(address) } => self.connect_host(flow, address),
                Event::TcpOpen { flow, target: Target::Gateway(port) } => self.connect_gateway(flow, port),
                Event::UdpClosed(flow) => self.close_udp(flow),
                Event::DnsQuestion { client, message } => {
                    // One too many is lost: the guest asks again, where a failure would be the end of it.
                    let _ = self.requests.ask(Request::DnsQuestion { client, message });
                }
                Event::Echo { echo, target } => self.handle_echo(&echo, target),
                Event::AddressLearned(mac) => self.tell(Notice::ConnectionEstablished(mac)),
                Event::AddressLost(mac) => self.tell(Notice::ConnectionClosed(mac)),
                Event::AddressMoved { address, from, to } => {
                    if let Some(suppressed) = self.moved.admit(Clock::now()) {
                        tracing::info!(%address, %from, %to, suppressed, "address moved to another port");
                    }
                }
                Event::AddressRefused { address, port, holder } => {
                    if let Some(suppressed) = self.refused.admit(Clock::now()) {
                        let holder = holder.map(|holder| holder.to_string());
                        tracing::warn!(%address, %port, holder, suppressed, "a machine speaks as another one");
                    }
                }
            }
        }
    }

    fn tell(&self, notice: Notice) {
        if let Some(notifier) = &self.notifier {
            notifier.send(notice);
        }
    }

    fn handle_commands(&mut self) {
        while let Ok(command) = self.commands.try_recv() {
            match command {
                Command::Connect { from, to, reply } => self.connect_guest(from, to, reply),
                Command::ForwardClient(request) => self.forward_client(request),
                Command::DnsQuery { message, reply } => {
                    let mut answer = Vec::new();
                    let verdict = self.stack.dns_query(&message, netstack::dns::Transport::Tcp, &mut answer);
                    let _ = reply.send((verdict, answer));
                }
                Command::DnsAnswer { client, message } => {
                    self.stack.dns_answer(client, &message, &mut self.links.batches);
                }
                Command::Stop => self.stopped = true,
                Command::Read(readout) => self.read_out(readout),
                Command::Forward(command) => self.handle_forward_command(command),
                Command::Attach { link, reply } => {
                    let _ = reply.send(self.attach(link));
                }
                Command::EndLease(client) => self.stack.end_lease(client, self.now),
                Command::Detach(port) => self.detach(port),
            }
        }
    }

    /// Forgets a descriptor that is about to be closed.
    fn forget(&mut self, token: Token) {
        self.sources.try_remove(token.0);
    }
}
