//! Ports and the way out through them. Owns: the contract between [`crate::Stack`] and the driver's batch buffers.
//! May not: know what a port is made of. Read next: `switch.rs`.

use core::fmt;

/// One attachment to the virtual network; never used again after it is detached.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// The driver's batch buffers: one for each port, written in place.
///
/// A port that cannot take more says so through [`has_room`](Self::has_room), and whoever has more to send waits until the
/// driver calls [`crate::Stack::handle_room`]. That is the only form of backpressure.
pub trait FrameSink {
    /// Whether a frame of `len` bytes, Ethernet header included, can be added now.
    fn has_room(&self, port: PortId, len: usize) -> bool;

    /// Whether a frame of `len` bytes from another guest can be added now. It leaves room to the gateway, whom nobody else can answer for.
    fn has_room_for_guests(&self, port: PortId, len: usize) -> bool {
        self.has_room(port, len)
    }

    /// Adds a frame of exactly `len` bytes and lends its bytes (whatever they hold) to be written; `None` if there is no room.
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
