//! UDP flows and their sockets. Owns: which socket belongs to which flow. Read next: `host/udp.rs`.

use std::io;
use std::time::Instant as Clock;

use mio::{Interest, Registry, Token};
use netstack::{Datagram, FrameSink as _, UdpFlowId};
use slab::Slab;
use slotmap::SecondaryMap;

use super::{Engine, Source};
use crate::host::udp::{HostUdp, is_refused, is_too_long};
use crate::logging::Limited;

/// Datagrams taken from one socket in a turn.
const TURN: usize = 64;

/// What became of a datagram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Sent {
    /// It is the network's now.
    Yes,
    /// So it is, and an earlier one was refused.
    Refused,
    /// The flow has no socket, or one that is of no use: the next datagram is to open another.
    Failed,
}

/// Sends a guest's datagram from its flow's socket, which is made for the first one.
///
/// A function of the engine's parts, since the datagram borrows from the others.
pub(super) fn send(
    datagram: &Datagram<'_>,
    sockets: &mut SecondaryMap<UdpFlowId, HostUdp>,
    sources: &mut Slab<Source>,
    registry: &Registry,
    no_descriptors: &mut Limited,
) -> Sent {
    if let Some(to) = datagram.open {
        let token = Token(sources.insert(Source::Udp(datagram.flow)));
        let opened = HostUdp::connect(to).and_then(|mut socket| {
            registry.register(&mut socket, token, Interest::READABLE)?;
            Ok(socket)
        });
        match opened {
            Ok(socket) => {
                sockets.insert(datagram.flow, HostUdp { socket, token, queued: false });
            }
            Err(error) => {
                sources.remove(token.0);
                if let Some(suppressed) = no_descriptors.admit(Clock::now()) {
                    tracing::warn!(%to, %error, suppressed, "cannot open a socket for the guest");
                }
            }
        }
    }
    let Some(host) = sockets.get(datagram.flow) else { return Sent::Failed };
    match host.socket.send(datagram.payload) {
        Ok(_) => Sent::Yes,
        Err(error) if is_refused(&error) => {
            // The error is an earlier datagram's; this one has not been sent. What it says then comes with the next.
            let _ = host.socket.send(datagram.payload);
            Sent::Refused
        }
        // A full socket, or a datagram too long for the path, loses the datagram, as a network may.
        Err(error) if error.kind() == io::ErrorKind::WouldBlock || is_too_long(&error) => Sent::Yes,
        Err(_) => Sent::Failed,
    }
}

impl Engine {
    /// The flow's socket has something.
    pub(super) fn queue_udp(&mut self, flow: UdpFlowId) {
        if let Some(host) = self.udp.get_mut(flow)
            && !host.queued
        {
            host.queued = true;
            self.udp_ready.push_back(flow);
        }
    }

    /// One flow's turn: datagrams from its socket to the guest.
    pub(super) fn serve_udp(&mut self, flow: UdpFlowId) {
        let Some(host) = self.udp.get_mut(flow) else { return };
        host.queued = false;
        for _ in 0..TURN {
            if let Some(port) = self.stack.udp_port(flow)
                && !self.batches.has_room(port, usize::from(u16::MAX))
            {
                // The kernel keeps the rest, and drops what it cannot, until the port has room.
                host.queued = true;
                self.udp_waiting.push(flow);
                return;
            }
            match host.socket.recv(&mut self.udp_buffer) {
                Ok(len) => {
                    let payload = self.udp_buffer.get(..len).unwrap_or_default();
                    self.stack.udp_send(flow, payload, self.now, &mut self.batches);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                Err(error) if is_refused(&error) => self.stack.udp_refused(flow, &mut self.batches),
                // A pending error stands before what is queued, and is taken by being told.
                Err(_) => {}
            }
        }
        self.queue_udp(flow);
    }

    pub(super) fn close_udp(&mut self, flow: UdpFlowId) {
        if let Some(host) = self.udp.remove(flow) {
            self.forget(host.token);
        }
    }
}
