//! Ports and the way out through them. Owns: the contract between [`crate::Stack`] and the driver's batch
//! buffers.
//! May not: know what a port is made of. Read next: `switch.rs`.

use core::fmt;
use core::net::Ipv4Addr;

use crate::Mac;

/// One attachment to the virtual network; never used again after it is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

impl PortId {
    /// No attachment's: of what has not found its port, or has lost it.
    pub const NOWHERE: Self = Self(u32::MAX);
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The port that is there most often; of several the one that was attached first.
pub(crate) fn most_frequent(mut ports: Vec<PortId>) -> Option<PortId> {
    ports.sort_unstable();
    ports.chunk_by(PortId::eq).rev().max_by_key(|those| those.len()).and_then(|those| those.first().copied())
}

/// The driver's batch buffers: one for each port, written in place.
///
/// A port that cannot take more says so by [`has_room`](Self::has_room). Whoever has more to send waits until
/// the driver calls [`crate::Stack::handle_room`]. That is the only form of backpressure.
pub trait FrameSink {
    /// Whether a frame of `len` bytes, Ethernet header included, can be added now.
    fn has_room(&self, port: PortId, len: usize) -> bool;

    /// Whether a frame of `len` bytes from another guest can be added now. It leaves room for the gateway's
    /// own frames, which nobody else can send.
    fn has_room_for_guests(&self, port: PortId, len: usize) -> bool {
        self.has_room(port, len)
    }

    /// Adds a frame of exactly `len` bytes and lends its bytes, whatever they hold, to be written. `None` if
    /// there is no room.
    fn frame(&mut self, port: PortId, len: usize) -> Option<&mut [u8]>;
}

/// Where nothing can be sent.
pub(crate) struct NoSink;

impl FrameSink for NoSink {
    fn has_room(&self, _: PortId, _: usize) -> bool {
        false
    }

    fn frame(&mut self, _: PortId, _: usize) -> Option<&mut [u8]> {
        None
    }
}

/// A machine in the network, by one of its addresses. Others may come to have that.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Guest {
    /// What it speaks as.
    pub address: Ipv4Addr,
    /// The port that it is behind.
    pub port: PortId,
    /// Its hardware address.
    pub mac: Mac,
}

impl Guest {
    /// Whether `other` is the same machine at the same address: behind the same port, or come back with its
    /// hardware address.
    pub fn is(self, other: Self) -> bool {
        self.address == other.address && (self.port == other.port || self.mac == other.mac)
    }
}
