//! One flow's bytes, between its rings and its descriptor. Owns: the descriptor's readiness and which halves
//! are closed.
//! May not: touch the stack. Read next: `engine/tcp.rs`, which calls it; `netstack/src/tcp/flow.rs`, the
//! other side.

use std::io::{self, Read, Write};

use mio::{Interest, Registry, Token};
use netstack::tcp::Flow;

use super::stream::HostStream;
use crate::dial::was_connected;
use crate::relay::{discard, unsettled};
use crate::sys;

/// How a relay stands after its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Outcome {
    /// More will come.
    Going,
    /// The descriptor has failed, but what it received before has not all been read.
    Failing,
    /// Both halves are closed on this side: in order, or as the peer has left, and all it sent has been read.
    Done,
    /// The descriptor failed, as by a reset, and everything it received before has been read.
    Failed,
}

/// The descriptor of one flow. Readiness is edge-triggered: a flag is cleared by the call that found nothing,
/// or less than it asked for.
#[derive(Debug)]
pub(crate) struct HostConnection {
    stream: HostStream,
    is_vsock: bool,
    pub(crate) token: Token,
    /// What the poll looks for: room only once there was none, since most flows never meet that.
    watched: Interest,
    readable: bool,
    writable: bool,
    /// A short read does not mean that there is no more: the end stands behind it, or urgent data, which ends
    /// a read.
    more_behind: bool,
    /// Our half is closed: the guest's is, and everything it sent is written.
    shut: bool,
    /// By a reset, or what else ends a connection both ways. What was received before can still be read, and
    /// then the error, or after a write has been told it, the end.
    failed: bool,
    told: bool,
    /// The peer has closed both ways, or the one that the guest has not: what the guest sends reaches nobody.
    /// TCP tells only of the latter.
    left: bool,
    /// It has been read as far as that.
    cut: bool,
    /// Nothing can be written any more. What the guest sends is read in vain, so that it gets on with
    /// reading.
    lost: bool,
}

impl HostConnection {
    /// Starts to watch `stream`. One that still has to be `connected` is watched for that.
    pub(crate) fn new(
        mut stream: HostStream,
        token: Token,
        connected: bool,
        registry: &Registry,
    ) -> io::Result<Self> {
        let watched = if connected { Interest::READABLE } else { Interest::READABLE | Interest::WRITABLE };
        registry.register(stream.source(), token, sys::with_urgent(watched))?;
        Ok(Self {
            is_vsock: sys::is_vsock(stream.fd()),
            stream,
            token,
            watched,
            readable: false,
            writable: connected,
            more_behind: !sys::TELLS_URGENT,
            shut: false,
            failed: false,
            told: false,
            left: false,
            cut: false,
            lost: false,
        })
    }

    pub(crate) fn stream(&mut self) -> &mut HostStream {
        &mut self.stream
    }

    /// Gives the descriptor back, which is not watched any more.
    pub(crate) fn into_stream(mut self, registry: &Registry) -> io::Result<HostStream> {
        registry.deregister(self.stream.source())?;
        Ok(self.stream)
    }

    /// Takes note of an event.
    pub(crate) fn handle_event(&mut self, event: &mio::event::Event) {
        let is_closed = event.is_write_closed()
            || self.is_vsock && event.is_read_closed() && sys::vsock_hung_up(self.stream.fd());
        self.readable |= event.is_readable() || event.is_read_closed() || event.is_error();
        self.writable |= event.is_writable() || is_closed || event.is_error();
        self.more_behind |= event.is_read_closed() || event.is_error() || event.is_priority();
        self.failed |= event.is_error();
        self.left |= is_closed && !event.is_error();
    }

    /// Whether the connection that was started is there, after `event`: `Ok(false)` means not yet.
    pub(crate) fn is_connected(&mut self, event: &mio::event::Event) -> io::Result<bool> {
        match self.stream.is_connected(event) {
            // It was, and is over already.
            Err(error) if was_connected(&error) => {
                self.told = error.kind() == io::ErrorKind::ConnectionReset;
                Ok(true)
            }
            connected => connected,
        }
    }

    /// Moves what can be moved, both ways, adds its bytes to `moved`, and carries a closed half over.
    pub(crate) fn move_bytes(&mut self, flow: &mut Flow, registry: &Registry, moved: &mut usize) -> Outcome {
        self.read_host(flow, moved);
        self.write_host(flow, moved);
        if self.watch_room(registry).is_err() || self.cut || flow.finished() && (self.failed || self.lost) {
            return Outcome::Failed;
        }
        if self.left {
            flow.leave();
        }
        match self.failed {
            _ if (self.shut || self.left) && flow.finished() => Outcome::Done,
            true => Outcome::Failing,
            false => Outcome::Going,
        }
    }

    /// Writes what is left of a flow that the guest has ended; what the peer sends is read in vain, so that
    /// it gets on with reading. Whether the peer has all of it, or never will.
    pub(crate) fn deliver(&mut self, flow: &mut Flow, registry: &Registry, moved: &mut usize) -> bool {
        discard(self.stream.fd());
        self.write_host(flow, moved);
        if self.failed || self.lost || self.watch_room(registry).is_err() {
            return true;
        }
        !flow.can_recv() && self.unsettled() == 0
    }

    /// Bytes that the peer has still to take, and would lose by a reset.
    pub(crate) fn unsettled(&self) -> usize {
        unsettled(self.stream.fd())
    }

    fn read_host(&mut self, flow: &mut Flow, moved: &mut usize) {
        while self.readable && !self.cut && flow.can_send() && !flow.finished() {
            let mut ended = false;
            flow.send(|space| match self.stream.read(space) {
                Ok(0) => {
                    ended = true;
                    0
                }
                Ok(n) => {
                    *moved += n;
                    self.readable = n == space.len() || self.more_behind;
                    n
                }
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::WouldBlock => self.readable = false,
                        io::ErrorKind::Interrupted => {}
                        _ => self.cut = true,
                    }
                    0
                }
            });
            if ended {
                self.readable = false;
                match self.told {
                    true => self.cut = true,
                    false => flow.finish(),
                }
            }
        }
    }

    fn write_host(&mut self, flow: &mut Flow, moved: &mut usize) {
        while (self.writable || self.lost) && flow.can_recv() {
            if self.lost {
                flow.recv(<[u8]>::len);
                continue;
            }
            flow.recv(|bytes| match self.stream.write(bytes) {
                Ok(n) => {
                    *moved += n;
                    n
                }
                Err(error) => {
                    match error.kind() {
                        io::ErrorKind::WouldBlock => self.writable = false,
                        io::ErrorKind::Interrupted => {}
                        // A peer that only reads no more, or had ended its half before it failed.
                        io::ErrorKind::BrokenPipe => self.lost = true,
                        _ => (self.lost, self.failed, self.told) = (true, true, true),
                    }
                    0
                }
            });
        }
        if !self.shut && flow.recv_finished() {
            self.shut = true;
            // A peer that is gone needs no telling.
            let _ = self.stream.shutdown_write();
        }
    }

    /// Watches for room, if there was none for the first time.
    fn watch_room(&mut self, registry: &Registry) -> io::Result<()> {
        if !self.writable && !self.watched.is_writable() {
            self.watched |= Interest::WRITABLE;
            registry.reregister(self.stream.source(), self.token, sys::with_urgent(self.watched))?;
        }
        Ok(())
    }

    /// Whether there is something that another turn could move.
    pub(crate) fn wants_turn(&self, flow: &Flow) -> bool {
        (self.readable && !self.cut && flow.can_send() && !flow.finished())
            || ((self.writable || self.lost) && flow.can_recv())
    }
}
