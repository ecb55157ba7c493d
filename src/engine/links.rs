//! The attached hypervisors. Owns: their sockets, readers and batches. May not: know what a frame means.
//! Read next: `link/qemu.rs`, the framing.

use std::io;

use mio::net::UnixStream;
use mio::{Interest, Registry, Token};
use netstack::{FrameSink, PortId};
use socket2::SockRef;

use super::Traffic;
use crate::link::{Batch, Progress, Reader};
use crate::sys::udp::{MAX_MESSAGE, MESSAGES};

/// The longest message as frames: its bytes, and the headers of as many datagrams as Linux puts into one.
const MESSAGE_FRAMES: usize = MAX_MESSAGE + 128 * 64;

/// Frames of the greatest length that the socket holds, at least: the hypervisor is to find the next ones when it has emptied its own
/// buffer. A short frame costs nearly as much as a long one, and the system's default is many of those.
const QUEUE: usize = 16;
/// Bytes that it holds at least: Linux's default, where other systems' is a few frames.
const LEAST_QUEUE: usize = 200 << 10;

/// One attached hypervisor.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) port: PortId,
    pub(super) token: Token,
    pub(super) stream: UnixStream,
    pub(super) reader: Reader,
    pub(super) readable: bool,
    /// The socket takes no more. Only then is it watched for room: a unix socket reports that with every read of the other end, each
    /// of which would be a turn for nothing.
    blocked: bool,
    /// The hypervisor has closed its end; what it sent before is still to be read.
    pub(super) ended: bool,
}

impl Link {
    /// Starts to watch `stream`, which carries packets of up to `mtu` bytes.
    pub(super) fn new(
        port: PortId,
        token: Token,
        mut stream: UnixStream,
        mtu: u16,
        registry: &Registry,
    ) -> io::Result<Self> {
        let (socket, wanted) = (SockRef::from(&stream), LEAST_QUEUE.max(QUEUE * usize::from(mtu)));
        if socket.send_buffer_size()? < wanted {
            // The system gives what it allows; with less the link is slower, not wrong.
            socket.set_send_buffer_size(wanted)?;
        }
        registry.register(&mut stream, token, Interest::READABLE)?;
        Ok(Self { port, token, stream, reader: Reader::new(), readable: false, blocked: false, ended: false })
    }

    /// The socket takes bytes again.
    pub(super) fn handle_room(&mut self, registry: &Registry) -> io::Result<()> {
        if self.blocked {
            self.blocked = false;
            registry.reregister(&mut self.stream, self.token, Interest::READABLE)?;
        }
        Ok(())
    }

    /// Writes the batch as far as the socket takes it.
    pub(super) fn write(&mut self, batch: &mut Batch, registry: &Registry) -> io::Result<Progress> {
        if self.blocked {
            return Ok(Progress::Blocked);
        }
        let progress = batch.write_to(&mut self.stream)?;
        if progress == Progress::Blocked {
            self.blocked = true;
            // Room that came meanwhile is reported too.
            registry.reregister(&mut self.stream, self.token, Interest::READABLE | Interest::WRITABLE)?;
        }
        Ok(progress)
    }
}

/// The batches of all links, as the stack sees them.
#[derive(Debug, Default)]
pub(super) struct Batches {
    ports: Vec<(PortId, Batch)>,
    sent: Traffic,
}

impl Batches {
    pub(super) fn attach(&mut self, port: PortId) {
        self.ports.push((port, Batch::new()));
    }

    pub(super) fn get_mut(&mut self, port: PortId) -> Option<&mut Batch> {
        self.ports.iter_mut().find(|(p, _)| *p == port).map(|(_, batch)| batch)
    }

    fn get(&self, port: PortId) -> Option<&Batch> {
        self.ports.iter().find(|(p, _)| *p == port).map(|(_, batch)| batch)
    }

    /// What was put into them since the start.
    pub(super) fn sent(&self) -> Traffic {
        self.sent
    }

    /// Bytes that wait for the port's link.
    pub(super) fn len(&self, port: PortId) -> usize {
        self.get(port).map_or(0, Batch::len)
    }

    /// How many messages of datagrams, whatever they hold, the port has room for.
    pub(super) fn messages(&self, port: PortId) -> usize {
        (1..=MESSAGES).rev().find(|count| self.has_room(port, count * MESSAGE_FRAMES)).unwrap_or(0)
    }
}

impl FrameSink for Batches {
    fn has_room(&self, port: PortId, len: usize) -> bool {
        self.get(port).is_some_and(|batch| batch.has_room(len))
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        let (_, batch) = self.ports.iter_mut().find(|(p, _)| *p == port)?;
        let frame = batch.frame(len)?;
        self.sent.count(len);
        Some(frame)
    }
}
