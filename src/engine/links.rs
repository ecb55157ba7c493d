//! The attached hypervisors. Owns: their sockets, readers and batches. May not: know what a frame means.
//! Read next: `link/qemu.rs`, the framing.

use std::io;

use mio::Token;
use mio::net::UnixStream;
use netstack::{FrameSink, PortId};

use crate::link::{Batch, Progress, Reader};

/// One attached hypervisor.
#[derive(Debug)]
pub(super) struct Link {
    pub(super) port: PortId,
    pub(super) token: Token,
    pub(super) stream: UnixStream,
    pub(super) reader: Reader,
    pub(super) readable: bool,
    pub(super) writable: bool,
    /// The hypervisor has closed its end; what it sent before is still to be read.
    pub(super) ended: bool,
}

impl Link {
    pub(super) fn new(port: PortId, token: Token, stream: UnixStream) -> Self {
        Self { port, token, stream, reader: Reader::new(), readable: false, writable: true, ended: false }
    }

    /// Writes the batch as far as the socket takes it.
    pub(super) fn write(&mut self, batch: &mut Batch) -> io::Result<Progress> {
        if !self.writable {
            return Ok(Progress::Blocked);
        }
        let progress = batch.write_to(&mut self.stream)?;
        self.writable = progress != Progress::Blocked;
        Ok(progress)
    }
}

/// The batches of all links, as the stack sees them.
#[derive(Debug, Default)]
pub(super) struct Batches(Vec<(PortId, Batch)>);

impl Batches {
    pub(super) fn attach(&mut self, port: PortId) {
        self.0.push((port, Batch::new()));
    }

    pub(super) fn get_mut(&mut self, port: PortId) -> Option<&mut Batch> {
        self.0.iter_mut().find(|(p, _)| *p == port).map(|(_, batch)| batch)
    }
}

impl FrameSink for Batches {
    fn has_room(&self, port: PortId, len: usize) -> bool {
        self.0.iter().find(|(p, _)| *p == port).is_some_and(|(_, batch)| batch.has_room(len))
    }

    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]> {
        self.get_mut(port)?.frame(len)
    }
}
