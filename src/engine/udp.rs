//! UDP flows and their sockets. Owns: which socket belongs to which flow. Read next: `host/udp.rs`.

use std::collections::HashMap;
use std::io;
use std::time::Instant as Clock;

use mio::{Registry, Token};
use netstack::{Datagram, Instant, PortId, Turns, UdpFlowId};
use slab::Slab;

use super::{EARLY_WRITE, Engine, Source};
use crate::host::udp::{Far, HostUdp, Outbox, is_refused};
use crate::logging::Limited;
use crate::permits::Permit;
use crate::sys::udp::MESSAGES;

/// Datagrams taken from one socket in a turn, unless they fill a write before.
pub(super) const TURN: usize = 512;

/// The sockets of flows, and of those that have ended and the loop has not heard of it: a slot of the stack's
/// is another's by then.
pub(super) type Sockets = HashMap<UdpFlowId, HostUdp>;

/// The sockets of all flows.
#[derive(Debug)]
pub(super) struct UdpHosts {
    pub(super) sockets: Sockets,
    /// Flows whose socket has something, or whose guest has room again.
    pub(super) ready: Turns<UdpFlowId>,
    /// The datagrams that are to be sent together.
    pub(super) outbox: Outbox,
}

impl UdpHosts {
    pub(super) fn new() -> Self {
        Self { sockets: Sockets::new(), ready: Turns::default(), outbox: Outbox::new() }
    }
}

/// What became of a flow's datagrams.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// They are the network's now.
    Yes,
    /// So they are, and an earlier one was refused.
    Refused,
    /// The flow has no socket, or one that is of no use: the next datagram is to open another.
    Failed,
}

/// Makes the socket of a flow whose first datagram this is, if there is a `permit` for it.
///
/// A function of the engine's parts, since the datagram borrows from the others.
pub(super) fn open(
    datagram: &Datagram<'_>,
    sockets: &mut Sockets,
    sources: &mut Slab<Source>,
    registry: &Registry,
    now: Instant,
    no_descriptors: &mut Limited,
    permit: impl FnOnce() -> Option<Permit>,
) {
    let Some(to) = datagram.open else { return };
    let Some(permit) = permit() else { return };
    let token = Token(sources.insert(Source::Udp(datagram.flow)));
    match HostUdp::connect(to, token, registry, now, permit) {
        Ok(host) => {
            sockets.insert(datagram.flow, host);
        }
        Err(error) => {
            sources.remove(token.0);
            if let Some(suppressed) = no_descriptors.admit(Clock::now()) {
                tracing::warn!(%to, %error, suppressed, "cannot open a socket for the guest");
            }
        }
    }
}

/// Sends the datagrams in `outbox` and empties it. Whose they were, and what became of them.
pub(super) fn send(
    outbox: &mut Outbox,
    sockets: &mut Sockets,
    registry: &Registry,
    now: Instant,
) -> Option<(UdpFlowId, Sent)> {
    let flow = outbox.flow()?;
    let sent = sockets.get_mut(&flow).map_or(Sent::Failed, |host| {
        host.follow_route(registry, now);
        match host.send_first(outbox, registry) {
            Ok(()) => Sent::Yes,
            Err(error) if is_refused(&error) => {
                if !host.ends_refused() {
                    // The error is an earlier datagram's; these have not been sent. What it says then comes
                    // with the next.
                    let _ = host.send(outbox);
                }
                Sent::Refused
            }
            Err(_) => Sent::Failed,
        }
    });
    outbox.clear();
    Some((flow, sent))
}

impl Engine {
    /// The flow's socket has something.
    pub(super) fn queue_udp(&mut self, flow: UdpFlowId) {
        if let Some(host) = self.udp.sockets.get_mut(&flow)
            && !host.queued
        {
            host.queued = true;
            self.udp.ready.push(self.stack.udp_port(flow).unwrap_or(PortId::NOWHERE), flow);
        }
    }

    /// One flow's turn: datagrams from its socket to the guest.
    pub(super) fn serve_udp(&mut self, flow: UdpFlowId) {
        let Some(host) = self.udp.sockets.get_mut(&flow) else { return };
        host.queued = false;
        let port = self.stack.udp_port(flow);
        let mut taken = 0;
        while taken < TURN
            && (taken == 0 || port.is_none_or(|port| self.links.batches.len(port) < EARLY_WRITE))
        {
            let room = port.map_or(MESSAGES, |port| self.links.batches.messages(port));
            if let (0, Some(port)) = (room, port) {
                // The kernel keeps the rest, and drops what it cannot, until the port has room.
                host.queued = true;
                self.await_room(port, flow);
                return;
            }
            match self.inbox.receive(&host.socket, room) {
                Ok(()) => {
                    host.note_reply();
                    for datagram in self.inbox.datagrams() {
                        taken += 1;
                        self.stack.udp_send(flow, datagram, self.now, &mut self.links.batches);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_refused(&error) => {
                    let ends = host.ends_refused();
                    self.stack.udp_refused(flow, &mut self.links.batches);
                    if ends {
                        return self.end_udp(flow);
                    }
                }
                // A pending error stands before what is queued, and is taken by being told.
                Err(_) => taken += 1,
            }
        }
        self.queue_udp(flow);
    }

    /// Sends what waits in the outbox.
    pub(super) fn flush_udp(&mut self) {
        let sent = send(&mut self.udp.outbox, &mut self.udp.sockets, self.poll.registry(), self.now);
        self.handle_udp_sent(sent);
    }

    /// Tells the guest, or forgets the flow, where datagrams did not arrive.
    pub(super) fn handle_udp_sent(&mut self, sent: Option<(UdpFlowId, Sent)>) {
        match sent {
            None | Some((_, Sent::Yes)) => {}
            Some((flow, Sent::Refused)) => {
                self.stack.udp_refused(flow, &mut self.links.batches);
                if self.udp.sockets.get(&flow).is_some_and(HostUdp::ends_refused) {
                    self.end_udp(flow);
                }
            }
            Some((flow, Sent::Failed)) => self.end_udp(flow),
        }
    }

    /// The next datagram is to open another.
    fn end_udp(&mut self, flow: UdpFlowId) {
        self.close_udp(flow);
        self.stack.udp_close(flow);
    }

    pub(super) fn close_udp(&mut self, flow: UdpFlowId) {
        let Some(host) = self.udp.sockets.remove(&flow) else { return };
        match host.far {
            Far::Remote { .. } => self.forget(host.token),
            Far::Client { client, .. } => self.forget_client(host.token, client, flow),
        }
    }
}
