//! Ports of the host that lead to guests, added and removed while the loop runs.
//!
//! A stream's client becomes a TCP flow, which outlives the listener. A port for datagrams has one socket and
//! a flow for each of its clients, whose number and idle time are the stack's to bound; they end with the
//! port.
//!
//! Owns: the listeners, and which client has which flow. May not: decide who may have one
//! (`forward/registry.rs`).
//! Read next: `tcp.rs`, `udp.rs`.

use std::collections::HashMap;
use std::io;
use std::net::SocketAddrV4;
use std::sync::Arc;
use std::time::Instant as Clock;

use mio::net::{TcpListener, UdpSocket};
use mio::{Interest, Token};
use netstack::{Guest, Instant, PortId, Turns, UdpFlowId};
use slotmap::SlotMap;
use tokio::sync::oneshot;

use super::command::Command;
use super::shares::Owner;
use super::slice::Slice;
use super::udp::TURN;
use super::{EARLY_WRITE, Engine, Handle, Source};
use crate::host::stream::HostStream;
use crate::host::udp::HostUdp;
use crate::listen::has_client;
use crate::supervise::ACCEPT_PAUSE;
use crate::sys::udp::{Client, MESSAGES, ignore_refusals, receive_uncut, tell_asked};

/// Connections taken from one listener in a turn.
const ACCEPT_TURN: usize = 64;

slotmap::new_key_type! {
    /// Names a forward; never used again for another one.
    pub struct ForwardId;
}

/// A bound socket whose clients are to reach a guest.
#[derive(Debug)]
pub enum PortSocket {
    /// A TCP port.
    Tcp(std::net::TcpListener),
    /// A UDP port.
    Udp(std::net::UdpSocket),
}

#[derive(Debug)]
enum Socket {
    Tcp(TcpListener),
    Udp(Arc<UdpSocket>),
}

#[derive(Debug)]
struct PortForward {
    socket: Socket,
    token: Token,
    remote: SocketAddrV4,
    /// The guest that exposed it, and whom alone it leads to.
    of: Option<Guest>,
    /// In one of the lists of those that may have something.
    queued: bool,
    /// A client that asks two addresses of the host has two flows.
    clients: HashMap<Client, UdpFlowId>,
    /// The flow of the datagram that came last: its port is where the next ones go.
    latest: Option<UdpFlowId>,
}

/// All forwards.
#[derive(Debug, Default)]
pub(super) struct Forwards {
    table: SlotMap<ForwardId, PortForward>,
    /// Those that may have a client, or datagrams: of the guest that exposed them, or the operator's.
    accepting: Turns<ForwardId, Option<PortId>>,
    receiving: Turns<ForwardId, Option<PortId>>,
    /// Those with datagrams that wait for room at their guest's port.
    waiting: HashMap<PortId, Vec<ForwardId>>,
    /// When to try to accept again, after there were no descriptors.
    pub(super) again: Option<Instant>,
    /// Those whose clients have their share of the descriptors, and when to look again.
    full: Vec<ForwardId>,
    pub(super) full_until: Option<Instant>,
}

impl Forwards {
    /// Whether there is something to do at once.
    pub(super) fn is_busy(&self) -> bool {
        !self.receiving.is_empty() || (self.again.is_none() && !self.accepting.is_empty())
    }

    /// The forward's socket has something.
    pub(super) fn handle_readable(&mut self, id: ForwardId) {
        let Some(forward) = self.table.get_mut(id).filter(|forward| !forward.queued) else { return };
        forward.queued = true;
        self.queue(id);
    }

    /// Puts it behind the others of its owner.
    fn queue(&mut self, id: ForwardId) {
        let Some(forward) = self.table.get(id) else { return };
        let owner = forward.of.map(|guest| guest.port);
        match forward.socket {
            Socket::Tcp(_) => self.accepting.push(owner, id),
            Socket::Udp(_) => self.receiving.push(owner, id),
        }
    }

    /// The port has room, or is gone.
    pub(super) fn handle_room(&mut self, port: PortId) {
        for id in self.waiting.remove(&port).into_iter().flatten() {
            self.queue(id);
        }
    }

    /// A port is gone.
    pub(super) fn tidy(&mut self) {
        self.accepting.tidy();
        self.receiving.tidy();
    }

    fn rest(&mut self, id: ForwardId) {
        if let Some(forward) = self.table.get_mut(id) {
            forward.queued = false;
        }
    }
}

impl Engine {
    /// Leads the clients of `listener` to `remote` in the virtual network, and to that guest alone, if there
    /// is one.
    ///
    /// # Errors
    /// The socket cannot be watched.
    pub fn forward(
        &mut self,
        listener: PortSocket,
        remote: SocketAddrV4,
        of: Option<Guest>,
    ) -> io::Result<ForwardId> {
        let token = self.sources.vacant_key();
        let (token, registry) = (Token(token), self.poll.registry());
        let socket = match listener {
            PortSocket::Tcp(listener) => {
                listener.set_nonblocking(true)?;
                let mut listener = TcpListener::from_std(listener);
                registry.register(&mut listener, token, Interest::READABLE)?;
                Socket::Tcp(listener)
            }
            PortSocket::Udp(socket) => {
                socket.set_nonblocking(true)?;
                let mut socket = UdpSocket::from_std(socket);
                receive_uncut(&socket);
                ignore_refusals(&socket);
                if socket.local_addr().is_ok_and(|address| address.ip().is_unspecified()) {
                    tell_asked(&socket);
                }
                registry.register(&mut socket, token, Interest::READABLE)?;
                Socket::Udp(Arc::new(socket))
            }
        };
        let (clients, latest) = (HashMap::new(), None);
        let forward = PortForward { socket, token, remote, of, queued: false, clients, latest };
        let id = self.forwards.table.insert(forward);
        self.sources.insert(Source::Forward(id));
        Ok(id)
    }

    /// Closes the forward's socket. Connections go on; flows of datagrams end.
    fn remove_forward(&mut self, id: ForwardId) {
        let Some(forward) = self.forwards.table.remove(id) else { return };
        self.forget(forward.token);
        for flow in forward.clients.into_values() {
            self.udp.sockets.remove(&flow);
            self.stack.udp_close(flow);
        }
    }

    /// Takes what the forwards' sockets have.
    pub(super) fn serve_forwards(&mut self) {
        let slice = Slice::new(self.links.len());
        for _ in 0..self.forwards.receiving.len() {
            let Some(id) = self.forwards.receiving.pop() else { break };
            self.receive_forward(id);
            if slice.is_over() {
                break;
            }
        }
        if self.forwards.full_until.is_some_and(|at| at <= self.now) {
            self.forwards.full_until = None;
            std::mem::take(&mut self.forwards.full).into_iter().for_each(|id| self.forwards.queue(id));
        }
        if self.forwards.again.is_some_and(|at| at > self.now) {
            return;
        }
        self.forwards.again = None;
        let slice = Slice::new(self.links.len());
        for _ in 0..self.forwards.accepting.len() {
            let Some(id) = self.forwards.accepting.pop() else { break };
            if let Err(error) = self.accept_forward(id) {
                if let Some(suppressed) = self.tcp.no_descriptors.admit(Clock::now()) {
                    tracing::warn!(%error, suppressed, "cannot accept connections, trying again");
                }
                self.forwards.queue(id);
                self.forwards.again = Some(self.now + ACCEPT_PAUSE);
                return;
            }
            if slice.is_over() {
                break;
            }
        }
    }

    fn accept_forward(&mut self, id: ForwardId) -> io::Result<()> {
        for _ in 0..ACCEPT_TURN {
            let Some(forward) = self.forwards.table.get(id) else { return Ok(()) };
            let Socket::Tcp(listener) = &forward.socket else { return Ok(()) };
            // Nothing makes room for nobody.
            if !has_client(listener)? {
                self.forwards.rest(id);
                return Ok(());
            }
            let owner = forward.of.map_or(Owner::Forward(id), |guest| Owner::Guest(guest.port));
            let Some(charge) = self.take_permit(owner) else {
                // They wait in the backlog.
                self.forwards.full.push(id);
                self.forwards.full_until.get_or_insert_with(|| self.now + ACCEPT_PAUSE);
                return Ok(());
            };
            let Some(forward) = self.forwards.table.get(id) else { return Ok(()) };
            let accepted = match &forward.socket {
                Socket::Tcp(listener) => listener.accept().map(|(stream, _)| HostStream::accepted(stream)),
                Socket::Udp(_) => return Ok(()),
            };
            match accepted {
                Ok(stream) => {
                    let (remote, of) = (forward.remote, forward.of);
                    self.forward_stream(stream, remote, of, Some(charge));
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    self.forwards.rest(id);
                    return Ok(());
                }
                // There is nothing wrong but the moment.
                Err(error)
                    if matches!(
                        error.kind(),
                        io::ErrorKind::Interrupted | io::ErrorKind::ConnectionAborted
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        self.forwards.queue(id);
        Ok(())
    }

    fn receive_forward(&mut self, id: ForwardId) {
        let Some(forward) = self.forwards.table.get_mut(id) else { return };
        let Socket::Udp(socket) = &forward.socket else { return };
        let mut taken = 0;
        while taken < TURN {
            let port = forward.latest.and_then(|flow| self.stack.udp_port(flow));
            if taken > 0 && port.is_some_and(|port| self.links.batches.len(port) >= EARLY_WRITE) {
                break;
            }
            let room = port.map_or(MESSAGES, |port| self.links.batches.messages(port));
            if let (0, Some(port)) = (room, port) {
                // The kernel keeps the rest, and drops what it cannot, until the port has room.
                self.forwards.waiting.entry(port).or_default().push(id);
                return;
            }
            match self.inbox.receive_from(socket, room) {
                Ok(()) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                    forward.queued = false;
                    return;
                }
                // A pending error stands before what is queued, and is taken by being told.
                Err(_) => taken += 1,
            }
            for (client, datagrams) in self.inbox.messages() {
                taken += 1;
                let Some(client) = client else { continue };
                let known = forward.clients.get(&client).copied();
                let (remote, of) = (forward.remote, forward.of);
                let opened = || self.stack.udp_connect_to(remote, of, self.now, &mut self.links.batches);
                let flow = match known.map_or_else(opened, Ok) {
                    Ok(flow) => flow,
                    Err(error) => {
                        tracing::trace!(remote = %forward.remote, %error, "datagrams not forwarded");
                        continue;
                    }
                };
                if known.is_none() {
                    tracing::debug!(client = %client.address, remote = %forward.remote, "forwarding datagrams");
                    self.udp.sockets.insert(flow, HostUdp::shared(socket, forward.token, client));
                    forward.clients.insert(client, flow);
                }
                forward.latest = Some(flow);
                for datagram in datagrams {
                    self.stack.udp_send(flow, datagram, self.now, &mut self.links.batches);
                }
            }
        }
        self.forwards.queue(id);
    }

    /// The flow of one client has ended.
    pub(super) fn forget_client(&mut self, token: Token, client: Client, flow: UdpFlowId) {
        if let Some(Source::Forward(id)) = self.sources.get(token.0)
            && let Some(forward) = self.forwards.table.get_mut(*id)
            && forward.clients.get(&client) == Some(&flow)
        {
            forward.clients.remove(&client);
        }
    }
}

/// What the control plane asks of the forwards.
#[derive(Debug)]
pub(super) enum ForwardCommand {
    Add {
        listener: PortSocket,
        remote: SocketAddrV4,
        of: Option<Guest>,
        reply: oneshot::Sender<io::Result<ForwardId>>,
    },
    Remove {
        id: ForwardId,
        reply: oneshot::Sender<()>,
    },
}

impl Engine {
    pub(super) fn handle_forward_command(&mut self, command: ForwardCommand) {
        match command {
            ForwardCommand::Add { listener, remote, of, reply } => {
                let added = self.forward(listener, remote, of);
                let id = added.as_ref().ok().copied();
                // Nobody is left to remove it.
                if let (Err(_), Some(id)) = (reply.send(added), id) {
                    self.remove_forward(id);
                }
            }
            ForwardCommand::Remove { id, reply } => {
                self.remove_forward(id);
                let _ = reply.send(());
            }
        }
    }
}

impl Handle {
    /// Leads the clients of `listener` to `remote` in the virtual network, and to that guest alone, if there
    /// is one.
    ///
    /// # Errors
    /// The socket cannot be watched, or the engine has ended (`ConnectionAborted`).
    pub async fn add_forward(
        &self,
        listener: PortSocket,
        remote: SocketAddrV4,
        of: Option<Guest>,
    ) -> io::Result<ForwardId> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Forward(ForwardCommand::Add { listener, remote, of, reply })).await;
        answer.await.unwrap_or_else(|_| Err(io::ErrorKind::ConnectionAborted.into()))
    }

    /// Closes a forward; when it returns the socket is closed. Connections go on, flows of datagrams end.
    pub async fn remove_forward(&self, id: ForwardId) {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Forward(ForwardCommand::Remove { id, reply })).await;
        // An engine that has ended has closed everything.
        let _ = answer.await;
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netstack::Mac;

    use super::*;

    fn forward(of: Option<Guest>) -> PortForward {
        let socket = UdpSocket::bind((Ipv4Addr::LOCALHOST, 0).into()).unwrap();
        PortForward {
            socket: Socket::Udp(Arc::new(socket)),
            token: Token(0),
            remote: SocketAddrV4::new(Ipv4Addr::LOCALHOST, 9),
            of,
            queued: false,
            clients: HashMap::new(),
            latest: None,
        }
    }

    #[test]
    fn what_a_guest_exposed_waits_behind_one_of_the_operators() {
        let guest = Guest { address: Ipv4Addr::LOCALHOST, port: PortId(1), mac: Mac([2, 0, 0, 0, 0, 1]) };
        let mut forwards = Forwards::default();
        let ids = [Some(guest), Some(guest), Some(guest), None].map(|of| forwards.table.insert(forward(of)));
        for id in ids.into_iter().chain(ids) {
            forwards.handle_readable(id);
        }
        let order: Vec<_> = std::iter::from_fn(|| forwards.receiving.pop()).collect();
        assert_eq!(order, [ids[0], ids[3], ids[1], ids[2]]);
    }
}
