//! The attached hypervisors. Owns: their descriptors, readers and batches, and what ends them. May not: know
//! what a frame means.
//! Read next: `link/mod.rs`, the framings; `attach.rs`, how a link gets here.

use rustix::fd::BorrowedFd;
use std::io;
use std::time::Duration;

use anyhow::Context as _;
use mio::event::Event as Readiness;
use mio::{Interest, Registry, Token};
use netstack::{ByPort, FrameSink, Instant, PortId, UdpFlowId};
use rustix::io::Errno;
use socket2::SockRef;
use tokio::sync::{oneshot, watch};

use super::attach::NewLink;
use super::capture::Tap;
use super::shares::Owner;
use super::slice::Slice;
use super::{EARLY_WRITE, Engine, Source, Traffic, udp};
use crate::link::{Batch, FrameTooLong, Framing, Progress, Reader};
use crate::sys::polled::Polled;
use crate::sys::udp::{MAX_MESSAGE, MESSAGES};
use crate::sys::unsent;

/// Links at a time. Each may hold a megabyte.
const MAX_LINKS: usize = 256;
/// The longest message as frames: its bytes, and the headers of as many datagrams as Linux puts into one.
const MESSAGE_FRAMES: usize = MAX_MESSAGE + 128 * 64;

/// Frames of the greatest length that the socket holds, at least: the hypervisor is to find the next ones
/// when it has emptied its own buffer. A short frame costs nearly as much as a long one, and the system's
/// default is many of those.
const QUEUE: usize = 16;
/// Bytes that it holds at least: Linux's default, where other systems' is a few frames.
const LEAST_QUEUE: usize = 200 << 10;
/// When to try again where the system had no buffers and will not say when it has.
const STARVED: Duration = Duration::from_millis(1);
/// Bytes of an Ethernet header.
const ETHERNET: usize = 14;

/// One attached hypervisor.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) port: PortId,
    token: Token,
    framing: Framing,
    input: Polled,
    /// Where frames go, if that is not `input`.
    output: Option<Polled>,
    reader: Reader,
    readable: bool,
    /// Of what was read there are frames that have not been given to the stack: its time was over.
    backlog: bool,
    /// The descriptor takes no more. Only then is it watched for room: a unix socket reports that with every
    /// read of the other end, each of which would be a turn for nothing.
    blocked: bool,
    /// When to write again, though nobody says that there is room.
    retry: Option<Instant>,
    /// The hypervisor has closed its end; what it sent before is still to be read.
    ended: bool,
    /// UDP flows that wait for room.
    udp_waiting: Vec<UdpFlowId>,
    /// How the link ended: it is to be detached.
    over: Option<anyhow::Result<()>>,
    told: Option<oneshot::Sender<anyhow::Result<()>>>,
}

/// All of them, and what of them is counted and seen.
#[derive(Debug)]
pub(super) struct Links {
    /// In the order of their ports.
    pub(super) all: Vec<Link>,
    pub(super) batches: Batches,
    /// Tells how many there are.
    count: watch::Sender<usize>,
    /// Frames from hypervisors.
    pub(super) received: Traffic,
    /// The network's, in bytes.
    mtu: u16,
    pub(super) tap: Option<Tap>,
}

impl Links {
    /// None yet, and who hears how many there are.
    pub(super) fn new(mtu: u16) -> (Self, watch::Receiver<usize>) {
        let (count, counted) = watch::channel(0);
        let (batches, received) = (Batches::default(), Traffic::default());
        (Self { all: Vec::new(), batches, count, received, mtu, tap: None }, counted)
    }

    pub(super) fn len(&self) -> usize {
        self.all.len()
    }

    /// Whether one of them has something to be read.
    pub(super) fn is_busy(&self) -> bool {
        self.all.iter().any(|link| link.readable || link.backlog)
    }

    /// When to write again to one whose system had no buffers.
    pub(super) fn next_retry(&self) -> Option<Instant> {
        self.all.iter().filter_map(|link| link.retry).min()
    }

    fn find(&mut self, port: PortId) -> Option<&mut Link> {
        let index = self.all.binary_search_by_key(&port, |link| link.port).ok()?;
        self.all.get_mut(index)
    }
}

impl Link {
    /// Starts to watch the descriptors, which carry packets of up to `mtu` bytes.
    fn new(port: PortId, token: Token, new: NewLink, mtu: u16, registry: &Registry) -> io::Result<Self> {
        let NewLink { input, output, framing, early, over } = new;
        let (mut input, output) = (Polled::new(input)?, output.map(Polled::new).transpose()?);
        tune(output.as_ref().unwrap_or(&input).fd(), mtu);
        let watched = match input.register(registry, token, Interest::READABLE) {
            Ok(()) => true,
            // A file, or /dev/null: always readable, until its end.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => false,
            Err(error) => return Err(error),
        };
        Ok(Self {
            port,
            token,
            framing,
            input,
            output,
            reader: Reader::new(framing, &early),
            readable: !watched || !early.is_empty(),
            backlog: false,
            blocked: false,
            retry: None,
            ended: !watched,
            udp_waiting: Vec::new(),
            over: None,
            told: Some(over),
        })
    }

    fn output(&self) -> &Polled {
        self.output.as_ref().unwrap_or(&self.input)
    }

    fn handle_event(&mut self, event: &Readiness, registry: &Registry) {
        self.ended |= event.is_read_closed();
        self.readable |= event.is_readable() || event.is_error() || self.ended;
        if event.is_writable() || event.is_error() {
            self.handle_room(registry);
        }
    }

    /// The descriptor takes bytes again.
    fn handle_room(&mut self, registry: &Registry) {
        self.retry = None;
        if self.blocked {
            self.blocked = false;
            let watched = self.watch_room(false, registry);
            self.check(watched);
        }
    }

    fn watch_room(&mut self, watch: bool, registry: &Registry) -> io::Result<()> {
        match &mut self.output {
            Some(output) if watch => output.register(registry, self.token, Interest::WRITABLE),
            Some(output) => output.deregister(registry),
            None => {
                let interest =
                    if watch { Interest::READABLE | Interest::WRITABLE } else { Interest::READABLE };
                self.input.reregister(registry, self.token, interest)
            }
        }
    }

    /// Writes the batch as far as the descriptor takes it. Whether somebody may find room in it now.
    fn write(&mut self, batch: &mut Batch, now: Instant, registry: &Registry) -> bool {
        if self.blocked || self.retry.is_some_and(|at| at > now) {
            return false;
        }
        self.retry = None;
        match batch.write_to(self.output()) {
            Ok(Progress::More) => {}
            Ok(Progress::Blocked) => {
                self.blocked = true;
                // Room that came meanwhile is reported too.
                let watched = self.watch_room(true, registry);
                self.check(watched);
            }
            Ok(Progress::Starved) => self.retry = Some(now + STARVED),
            Ok(Progress::Closed) => self.over = Some(Ok(())),
            Err(error) if is_gone(&error) => {
                batch.clear();
                if self.output.is_none() && self.framing != Framing::Vfkit {
                    // Reading tells the same, and what the guest sent before it left.
                    (self.readable, self.ended) = (true, true);
                } else {
                    self.over = Some(Ok(()));
                }
                return false;
            }
            Err(error) => {
                batch.clear();
                self.over = Some(Err(error).context("cannot write to the virtual machine"));
            }
        }
        batch.has_much_room()
    }

    /// A link that cannot be watched is of no use.
    fn check(&mut self, watched: io::Result<()>) {
        if let Err(error) = watched {
            self.over = Some(Err(error).context("cannot watch the virtual machine's link"));
        }
    }
}

/// What a link is better with; without it, it is slower, not wrong.
fn tune(output: BorrowedFd<'_>, mtu: u16) {
    let (socket, wanted) = (SockRef::from(&output), LEAST_QUEUE.max(QUEUE * usize::from(mtu)));
    match socket.local_addr() {
        Ok(address) if address.is_unix() => {
            if socket.send_buffer_size().is_ok_and(|size| size < wanted) {
                let _ = socket.set_send_buffer_size(wanted);
            }
        }
        Ok(address) if address.as_socket().is_some() => {
            let _ = socket.set_tcp_nodelay(true);
            let _ = socket.set_keepalive(true);
        }
        Ok(_) => {}
        Err(_) => crate::sys::grow_pipe(output, wanted),
    }
}

/// Whether the other end is simply gone.
fn is_gone(error: &io::Error) -> bool {
    use io::ErrorKind as Kind;
    matches!(
        error.kind(),
        Kind::BrokenPipe
            | Kind::ConnectionReset
            | Kind::ConnectionAborted
            | Kind::ConnectionRefused
            | Kind::NotConnected
            | Kind::NotFound
    ) || Errno::from_io_error(error) == Some(Errno::DESTADDRREQ)
}

impl Engine {
    /// Attaches a link to a new port.
    pub(super) fn attach(&mut self, new: NewLink) -> io::Result<PortId> {
        if self.links.len() >= MAX_LINKS {
            return Err(io::Error::other(format!("{MAX_LINKS} virtual machines are connected already")));
        }
        let framing = new.framing;
        let longest = ETHERNET + usize::from(self.links.mtu);
        if longest > framing.max_frame() {
            let limit = framing.max_frame() - ETHERNET;
            return Err(io::Error::other(format!("this link carries packets of up to {limit} bytes")));
        }
        let port = self.stack.attach_port(self.now);
        let token = Token(self.sources.insert(Source::Link(port)));
        match Link::new(port, token, new, self.links.mtu, self.poll.registry()) {
            Ok(link) => {
                self.links.batches.attach(port, framing);
                self.links.all.push(link);
                self.links.count.send_replace(self.links.len());
                Ok(port)
            }
            Err(error) => {
                self.forget(token);
                self.stack.detach_port(port, self.now);
                Err(error)
            }
        }
    }

    /// The control plane knows that the hypervisor is gone.
    pub(super) fn detach(&mut self, port: PortId) {
        if let Some(link) = self.links.find(port) {
            link.over.get_or_insert(Ok(()));
        }
    }

    pub(super) fn handle_link_event(&mut self, port: PortId, event: &Readiness) {
        if let Some(link) = self.links.find(port) {
            link.handle_event(event, self.poll.registry());
        }
    }

    /// Lets a UDP flow wait for room at its port.
    pub(super) fn await_room(&mut self, port: PortId, flow: UdpFlowId) {
        if let Some(link) = self.links.find(port) {
            link.udp_waiting.push(flow);
            // Those that are over while they wait are left out, at the latest when they are half of all.
            if link.udp_waiting.len() > 2 * self.udp.sockets.len() {
                link.udp_waiting.retain(|flow| self.udp.sockets.contains_key(flow));
            }
        }
    }

    /// Reads each link that has something once, and gives the stack of it what there is time for.
    pub(super) fn read_links(&mut self) {
        for index in 0..self.links.len() {
            let wants = |link: &&mut Link| (link.readable || link.backlog) && link.over.is_none();
            let Some(link) = self.links.all.get_mut(index).filter(wants) else { continue };
            let mut closed = false;
            if !link.backlog {
                let progress = match link.reader.fill(&link.input) {
                    Ok(progress) => progress,
                    Err(error) => {
                        link.over = Some(Err(error).context("cannot read from the virtual machine"));
                        continue;
                    }
                };
                // The end may stand behind a short read, and has been announced already.
                link.readable = progress == Progress::More || link.ended;
                closed = progress == Progress::Closed;
                self.carried += link.reader.len();
            }
            let followed = self.handle_frames(index);
            if let Some(link) = self.links.all.get_mut(index) {
                match followed {
                    Err(error) => {
                        link.over = Some(Err(error).context("cannot follow the virtual machine's stream"));
                    }
                    Ok(backlog) if !closed => link.backlog = backlog,
                    Ok(_) if link.reader.is_mid_frame() => {
                        let left = anyhow::anyhow!("the virtual machine left in the middle of a frame");
                        link.over = Some(Err(left));
                    }
                    Ok(_) => link.over = Some(Ok(())),
                }
            }
            if self.links.len() > 1 {
                // Frames to other guests.
                self.write_links(EARLY_WRITE);
            }
        }
    }

    /// Gives the stack the whole frames that were read, and does at once what they ask for, until its time is
    /// over: whether there are more.
    fn handle_frames(&mut self, index: usize) -> Result<bool, FrameTooLong> {
        let mut slice = Slice::new(self.links.len());
        let mut is_over = false;
        while let Some(link) = self.links.all.get_mut(index).filter(|_| !is_over) {
            let port = link.port;
            let Some(frame) = link.reader.next_frame()? else { break };
            is_over = slice.step();
            self.links.received.count(frame.len());
            if let Some(tap) = &mut self.links.tap {
                tap.received(frame);
            }
            let Some(datagram) = self.stack.handle_frame(port, frame, self.now, &mut self.links.batches)
            else {
                if self.stack.has_events() {
                    self.handle_stack_events();
                    is_over |= slice.is_over();
                }
                continue;
            };
            let (flow, payload, opens) = (datagram.flow, datagram.payload, datagram.open.is_some());
            let sent = if self.udp.outbox.takes(flow, payload.len()) {
                None
            } else {
                udp::send(&mut self.udp.outbox, &mut self.udp.sockets, self.poll.registry(), self.now)
            };
            self.udp.outbox.push(flow, payload);
            let registry = self.poll.registry();
            let limited = &mut self.tcp.no_descriptors;
            let (shares, mut is_full) = (&mut self.tcp.shares, false);
            let permit = || {
                let permit = shares.try_take(Owner::Guest(port));
                is_full = permit.is_none();
                permit
            };
            udp::open(
                &datagram,
                &mut self.udp.sockets,
                &mut self.sources,
                registry,
                self.now,
                limited,
                permit,
            );
            self.handle_udp_sent(sent);
            if is_full {
                // For the next datagram.
                drop(self.take_permit(Owner::Guest(port)));
            }
            if opens {
                // What made room for the new flow is closed before the next one opens.
                self.handle_stack_events();
                is_over |= slice.is_over();
            }
        }
        self.flush_udp();
        Ok(is_over)
    }

    /// Writes the batches that hold at least `least` bytes.
    pub(super) fn write_links(&mut self, least: usize) {
        for (link, batch) in self.links.all.iter_mut().zip(self.links.batches.ports.values_mut()) {
            batch.count_taken(|| unsent(link.output().fd()).unwrap_or(0));
            if batch.len() < least || link.over.is_some() {
                continue;
            }
            if let Some(tap) = &mut self.links.tap {
                tap.sent(batch);
            }
            let before = batch.len();
            if link.write(batch, self.now, self.poll.registry()) {
                self.stack.handle_room(link.port);
                link.udp_waiting.drain(..).for_each(|flow| self.udp.ready.push(link.port, flow));
                self.forwards.handle_room(link.port);
            }
            self.carried += before.saturating_sub(batch.len());
        }
    }

    /// Detaches the links that are over, and then tells whoever attached them.
    pub(super) fn detach_links(&mut self) {
        while let Some(index) = self.links.all.iter().position(|link| link.over.is_some()) {
            let mut link = self.links.all.remove(index);
            self.links.count.send_replace(self.links.len());
            self.links.batches.ports.remove(link.port);
            // Another descriptor of the same socket may stay open, and would go on to be reported.
            let registry = self.poll.registry();
            let _ = link.input.deregister(registry);
            if link.output.is_some() && link.blocked {
                let _ = link.watch_room(false, registry);
            }
            self.forget(link.token);
            self.forwards.handle_room(link.port);
            self.stack.detach_port(link.port, self.now);
            self.udp.ready.tidy();
            self.forwards.tidy();
            self.handle_stack_events();
            let end = link.told.take().zip(link.over.take());
            // First its descriptors, so that whoever is told finds them given up.
            drop(link);
            if let Some((told, over)) = end {
                let _ = told.send(over);
            }
        }
    }
}

/// The batches of all links, as the stack sees them: in the order of the links, which is that of their ports.
#[derive(Debug, Default)]
pub(super) struct Batches {
    ports: ByPort<Batch>,
    sent: Traffic,
}

impl Batches {
    fn attach(&mut self, port: PortId, framing: Framing) {
        self.ports.insert(port, Batch::new(framing));
    }

    /// What was put into them since the start.
    pub(super) fn sent(&self) -> Traffic {
        self.sent
    }

    /// Bytes that wait for the port's link.
    pub(super) fn len(&self, port: PortId) -> usize {
        self.ports.get(port).map_or(0, Batch::len)
    }

    /// How many messages of datagrams, whatever they hold, the port has room for.
    pub(super) fn messages(&self, port: PortId) -> usize {
        (1..=MESSAGES).rev().find(|count| self.has_room(port, count * MESSAGE_FRAMES)).unwrap_or(0)
    }
}

impl FrameSink for Batches {
    fn has_room(&self, port: PortId, len: usize) -> bool {
        self.ports.get(port).is_some_and(|batch| batch.has_room(len))
    }

    fn has_room_for_guests(&self, port: PortId, len: usize) -> bool {
        self.ports.get(port).is_some_and(|batch| batch.lets_cross(len))
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        let frame = self.ports.get_mut(port)?.frame(len)?;
        self.sent.count(len);
        Some(frame)
    }
}
