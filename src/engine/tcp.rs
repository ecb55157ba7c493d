//! TCP flows and their descriptors. Owns: which descriptor belongs to which flow, and the mapping of errors
//! to what the guest is told. Read next: `host/tcp.rs`, which moves the bytes.

use std::cmp::Reverse;
use std::collections::VecDeque;
use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, SocketAddrV4};
use std::time::{Duration, Instant as Clock};

use mio::Token;
use mio::event::Event as Readiness;
use netstack::tcp::{Abort, Phase};
use netstack::{FlowId, Guest, Instant, PortId, Refusal};
use slotmap::SecondaryMap;
use tokio::sync::oneshot;

use super::client::Greeting;
use super::connecting::Connecting;
use super::ending::{Ending, Looks};
use super::own::OwnListeners;
use super::shares::{Owner, Shares};
use super::{Engine, Request, Source};
use crate::host::stream::HostStream;
use crate::host::tcp::{HostConnection, Outcome};
use crate::logging::Limited;
use crate::permits::{Permit, Permits};
use crate::sys::stream::{PollStream, StdStream, pair};
use crate::sys::{descriptor_limit, is_exhausted};

/// Who is charged for a connection's descriptors; nobody, where the control plane bounds them.
pub(super) type Charge = Option<(Owner, Permit)>;

/// The other end of a flow.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) host: HostConnection,
    /// What is missing before bytes can move.
    pub(super) opening: Opening,
    /// One side has ended, and the other has not yet had everything.
    pub(super) ending: Option<Ending>,
    /// It counts until the descriptor is closed.
    pub(super) permit: Option<Permit>,
    /// When it last carried something.
    pub(super) used: Instant,
}

/// The other ends of all flows.
#[derive(Debug)]
pub(super) struct TcpHosts {
    pub(super) connections: SecondaryMap<FlowId, Connection>,
    /// Flows whose agent has been asked, and until when it may answer: in the order of that.
    pub(super) greetings: VecDeque<(Instant, FlowId)>,
    pub(super) connecting: Connecting,
    pub(super) shares: Shares,
    pub(super) own: OwnListeners,
    pub(super) looks: Looks,
    pub(super) no_descriptors: Limited,
}

impl TcpHosts {
    /// None yet; connections are to take `permits`.
    pub(super) fn new(permits: Permits) -> Self {
        Self {
            connections: SecondaryMap::new(),
            greetings: VecDeque::new(),
            connecting: Connecting::default(),
            shares: Shares::new(permits),
            own: OwnListeners::default(),
            looks: Looks::new(),
            no_descriptors: Limited::new(1, Duration::from_secs(60)),
        }
    }

    /// When the first of what waits has waited for long enough: an agent's answer, a connect, a flow that
    /// ends.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let greeting = self.greetings.front().map(|(until, _)| *until);
        let look = self.looks.peek().map(|Reverse((at, _))| *at);
        [greeting, look, self.connecting.next()].into_iter().flatten().min()
    }
}

#[derive(Debug)]
pub(super) enum Opening {
    /// Nothing.
    Done,
    /// The host's side of a flow that a guest dialled, which is connected to this.
    Host(SocketAddr),
    /// The guest's side of a flow that this side dialled; whoever asked for it gets the far end of the pair.
    Guest(Option<(oneshot::Sender<io::Result<StdStream>>, StdStream)>),
    /// The same for a client that comes back if it fails; and perhaps the word of the guest's agent.
    Led(Box<Greeting>),
}

impl Engine {
    /// A guest dialled `to`.
    pub(super) fn connect_host(&mut self, flow: FlowId, to: SocketAddr) {
        tracing::debug!(%to, "guest connects");
        if self.tcp.own.are_at(to) {
            return self.refuse(flow, &io::ErrorKind::ConnectionRefused.into());
        }
        if !self.tcp.connecting.has_room() {
            self.stack.tcp_refuse(flow, Refusal::Silence, self.now, &mut self.links.batches);
            return;
        }
        let Some(charge) = self.charge_guest(flow, Owner::Guest) else {
            return self.refuse(flow, &io::ErrorKind::ConnectionRefused.into());
        };
        match HostStream::connect(to) {
            Ok((stream, false)) => {
                self.tcp.connecting.begin(flow, self.now);
                self.adopt(flow, stream, Opening::Host(to), charge);
            }
            Ok((stream, true)) => self.accept(flow, stream, charge),
            Err(error) => {
                // It may want another.
                drop(charge);
                self.handle_unconnected(flow, to, &error);
            }
        }
    }

    /// The host does not connect to `to`. A service of its own may listen on `::1` alone, and a guest has one
    /// address for both.
    fn handle_unconnected(&mut self, flow: FlowId, to: SocketAddr, error: &io::Error) {
        let is_refused = error.kind() == io::ErrorKind::ConnectionRefused;
        if is_refused && to.ip() == Ipv4Addr::LOCALHOST {
            self.drop_connection(flow);
            return self.connect_host(flow, (Ipv6Addr::LOCALHOST, to.port()).into());
        }
        // A host that has no IPv6 has refused before.
        let has_none =
            matches!(error.kind(), io::ErrorKind::AddrNotAvailable | io::ErrorKind::NetworkUnreachable);
        if has_none && to.ip() == Ipv6Addr::LOCALHOST {
            return self.refuse(flow, &io::ErrorKind::ConnectionRefused.into());
        }
        self.refuse(flow, error);
    }

    /// Refuses what has not connected within the limit.
    pub(super) fn end_connects(&mut self) {
        while let Some(flow) = self.tcp.connecting.overdue(self.now) {
            self.refuse(flow, &io::ErrorKind::ConnectionRefused.into());
        }
    }

    /// A guest dialled the gateway: the control plane serves it, at the far end of a socket pair.
    pub(super) fn connect_gateway(&mut self, flow: FlowId, port: u16) {
        let Some(charge) = self.charge_guest(flow, Owner::AtGateway) else {
            return self.refuse(flow, &io::ErrorKind::ConnectionRefused.into());
        };
        let served = socket_pair().and_then(|(near, far)| {
            let guest = self.stack.tcp_guest(flow).ok_or(io::ErrorKind::ConnectionRefused)?;
            let request = match port {
                netstack::HTTP_PORT => Request::HttpStream { guest, stream: far },
                _ => Request::DnsStream { link: guest.port, stream: far },
            };
            self.requests.ask(request).map_err(|_| io::ErrorKind::ConnectionRefused)?;
            Ok(near)
        });
        match served {
            Ok(near) => self.accept(flow, HostStream::Other(near), charge),
            Err(error) => self.refuse(flow, &error),
        }
    }

    /// The other end of what a guest dialled is there.
    fn accept(&mut self, flow: FlowId, stream: HostStream, charge: Charge) {
        self.adopt(flow, stream, Opening::Done, charge);
        self.stack.tcp_accept(flow, self.now, &mut self.links.batches);
    }

    /// The control plane dials a guest.
    pub(super) fn connect_guest(
        &mut self,
        from: Ipv4Addr,
        to: SocketAddrV4,
        reply: oneshot::Sender<io::Result<StdStream>>,
    ) {
        let dialled = socket_pair().and_then(|(near, far)| {
            let flow = self
                .stack
                .tcp_connect_from(from, to, self.now, &mut self.links.batches)
                .map_err(|error| io::Error::new(io::ErrorKind::HostUnreachable, error))?;
            Ok((near, far, flow))
        });
        match dialled {
            Ok((near, far, flow)) => {
                self.adopt(flow, HostStream::Other(near), Opening::Guest(Some((reply, far))), None);
            }
            Err(error) => {
                let _ = reply.send(Err(error));
            }
        }
    }

    /// A client of a forward dials a guest: the one that exposed it, and nobody else who has its address now.
    pub(super) fn forward_stream(
        &mut self,
        stream: HostStream,
        remote: SocketAddrV4,
        of: Option<Guest>,
        charge: Charge,
    ) {
        match self.stack.tcp_connect_to(remote, of, self.now, &mut self.links.batches) {
            Ok(flow) => {
                tracing::debug!(%remote, "forwarding");
                self.adopt(flow, stream, Opening::Guest(None), charge);
            }
            Err(error) => {
                tracing::debug!(%remote, %error, "cannot forward");
                stream.reset_on_close();
            }
        }
    }

    pub(super) fn handle_tcp_event(&mut self, flow: FlowId, event: &Readiness) {
        let Some(connection) = self.tcp.connections.get_mut(flow) else { return };
        if let Opening::Host(to) = connection.opening {
            match connection.host.is_connected(event) {
                Ok(true) => {
                    connection.opening = Opening::Done;
                    connection.host.handle_event(event);
                    self.tcp.connecting.end(flow);
                    self.stack.tcp_accept(flow, self.now, &mut self.links.batches);
                }
                Ok(false) => {}
                Err(error) => self.handle_unconnected(flow, to, &error),
            }
        } else {
            connection.host.handle_event(event);
            self.stack.mark_ready(flow);
        }
    }

    /// One flow's turn: its bytes, then its segments.
    pub(super) fn serve_flow(&mut self, id: FlowId) {
        self.move_flow(id);
        self.stack.flush(id, self.now, &mut self.links.batches);
    }

    fn move_flow(&mut self, id: FlowId) {
        let (Some(connection), Some(flow)) = (self.tcp.connections.get_mut(id), self.stack.flow(id)) else {
            return;
        };
        match flow.phase() {
            Phase::Connecting => {}
            Phase::Open | Phase::Finished => {
                match &mut connection.opening {
                    Opening::Done | Opening::Host(_) => {}
                    Opening::Guest(waiting) => {
                        if let Some((reply, far)) = waiting.take()
                            && reply.send(Ok(far)).is_err()
                        {
                            return self.close_tcp(id, true);
                        }
                        connection.opening = Opening::Done;
                    }
                    Opening::Led(greeting) => {
                        let (over, begins) = (greeting.advance(flow), !greeting.begun);
                        greeting.begun = true;
                        match over {
                            Some(Ok(())) => connection.opening = Opening::Done,
                            Some(Err(why)) => return self.turn_away(id, why),
                            None if begins => return self.begin_greeting(id),
                            None => return,
                        }
                    }
                }
                let before = self.carried;
                let outcome = connection.host.move_bytes(flow, self.poll.registry(), &mut self.carried);
                if self.carried != before {
                    connection.used = self.now;
                }
                match outcome {
                    outcome @ (Outcome::Going | Outcome::Failing) => {
                        if connection.host.wants_turn(flow) {
                            self.stack.mark_ready(id);
                        }
                        if outcome == Outcome::Failing && !self.look_again(id) {
                            self.close_tcp(id, true);
                        }
                    }
                    Outcome::Done => self.close_tcp(id, false),
                    Outcome::Failed => self.close_tcp(id, true),
                }
            }
            Phase::Aborted => self.end_aborted(id),
        }
    }

    /// The guest has ended the flow, or is gone: what it sent before is delivered, then the reset.
    fn end_aborted(&mut self, id: FlowId) {
        let (Some(connection), Some(flow)) = (self.tcp.connections.get_mut(id), self.stack.flow(id)) else {
            return;
        };
        let has_spoken = flow.can_recv();
        match std::mem::replace(&mut connection.opening, Opening::Done) {
            Opening::Led(mut greeting) => {
                let over = if has_spoken { greeting.advance(flow) } else { None };
                if over != Some(Ok(())) {
                    let why = over.and_then(Result::err);
                    let why = why.unwrap_or_else(|| greeting.aborted(flow.abort_reason()));
                    connection.opening = Opening::Led(greeting);
                    return self.turn_away(id, why);
                }
            }
            Opening::Guest(Some((reply, far))) => {
                let why = || match flow.abort_reason() {
                    Abort::Unreachable => io::ErrorKind::HostUnreachable,
                    Abort::Reset => io::ErrorKind::ConnectionRefused,
                    Abort::Silence => io::ErrorKind::TimedOut,
                };
                let opened = if has_spoken { Ok(far) } else { Err(why().into()) };
                let _ = reply.send(opened);
            }
            Opening::Guest(None) | Opening::Host(_) | Opening::Done => {}
        }
        let delivered = connection.host.deliver(flow, self.poll.registry(), &mut self.carried);
        if delivered || !self.look_again(id) {
            if let Some(connection) = self.tcp.connections.get_mut(id) {
                connection.host.stream().reset_on_close();
            }
            self.close_tcp(id, false);
        }
    }

    /// A permit for what the flow's guest dialled.
    fn charge_guest(&mut self, flow: FlowId, owner: fn(PortId) -> Owner) -> Option<Charge> {
        let guest = self.stack.tcp_guest(flow)?;
        let permit = self.take_permit(owner(guest.port));
        if permit.is_none()
            && let Some(suppressed) = self.tcp.no_descriptors.admit(Clock::now())
        {
            let limit = descriptor_limit();
            tracing::warn!(guest = %guest.address, limit, suppressed, "a guest has its share of open files: its connections are refused");
        }
        permit.map(Some)
    }

    /// A permit for one more connection of the owner's, for which an idle one of its own is reset where it
    /// has its share, or one of whoever has most.
    pub(super) fn take_permit(&mut self, owner: Owner) -> Option<(Owner, Permit)> {
        if let Some(permit) = self.tcp.shares.try_take(owner) {
            return Some((owner, permit));
        }
        let (there, now) = (&self.tcp.connections, self.now);
        let used = |flow| there.get(flow).map(|connection| connection.used);
        let own = self.tcp.shares.idle(owner, now, used);
        let idle = own.or_else(|| {
            let most = self.tcp.shares.greediest(owner)?;
            self.tcp.shares.idle(most, now, used)
        })?;
        tracing::debug!(?owner, "a connection that was idle makes room");
        if let Some(connection) = self.tcp.connections.get_mut(idle) {
            connection.host.stream().reset_on_close();
        }
        self.close_tcp(idle, true);
        self.tcp.shares.try_take(owner).map(|permit| (owner, permit))
    }

    /// Gives the flow its descriptor.
    pub(super) fn adopt(&mut self, flow: FlowId, stream: HostStream, opening: Opening, charge: Charge) {
        let token = Token(self.sources.insert(Source::Tcp(flow)));
        let connected = !matches!(opening, Opening::Host(_));
        match HostConnection::new(stream, token, connected, self.poll.registry()) {
            Ok(host) => {
                let (owner, permit) = charge.unzip();
                let used = self.now;
                self.tcp.connections.insert(flow, Connection { host, opening, ending: None, permit, used });
                if let Some(owner) = owner {
                    let there = &self.tcp.connections;
                    self.tcp.shares.add(owner, flow, |flow| there.contains_key(flow));
                }
            }
            Err(error) => {
                self.forget(token);
                self.refuse(flow, &error);
                self.stack.tcp_release(flow, true);
            }
        }
    }

    /// Tells the guest why it cannot have what it dialled.
    fn refuse(&mut self, flow: FlowId, error: &io::Error) {
        let refusal = match error.kind() {
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => Refusal::Unreachable,
            io::ErrorKind::TimedOut => Refusal::Silence,
            _ if is_exhausted(error) => {
                if let Some(suppressed) = self.tcp.no_descriptors.admit(Clock::now()) {
                    tracing::warn!(%error, suppressed, "cannot open a connection for the guest");
                }
                Refusal::Silence
            }
            _ => Refusal::Reset,
        };
        self.drop_connection(flow);
        self.stack.tcp_refuse(flow, refusal, self.now, &mut self.links.batches);
    }

    fn close_tcp(&mut self, flow: FlowId, abort: bool) {
        self.drop_connection(flow);
        self.stack.tcp_release(flow, abort);
    }

    /// Closes the flow's descriptor, if it has one.
    fn drop_connection(&mut self, flow: FlowId) {
        self.tcp.connecting.end(flow);
        if let Some(connection) = self.tcp.connections.remove(flow) {
            self.forget(connection.host.token);
        }
    }
}

/// A pair of streams: one for the engine, one for the control plane.
fn socket_pair() -> io::Result<(PollStream, StdStream)> {
    let (near, far) = pair()?;
    Ok((PollStream::from_std(near), far))
}
