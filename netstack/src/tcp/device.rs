//! What smoltcp takes for a device: one packet in, the port's batch out. Owns: the last look at an outgoing
//! segment. Read next: `socket.rs`, which calls smoltcp with it.

use smoltcp::phy::{Checksum, Device, DeviceCapabilities, Medium, RxToken, TxToken};
use smoltcp::wire::{IpProtocol, Ipv4Packet, TcpPacket};

use super::recovery::Recovery;
use super::window::WindowLimit;
use crate::FrameSink;
use crate::Instant;
use crate::checksum;
use crate::ether::{self, EtherType};
use crate::ipv4::Route;
use crate::link::NoSink;

/// A device for the length of one call into smoltcp.
pub(super) struct OneCall<'a, S> {
    /// Handed to smoltcp once.
    pub(super) packet: Option<&'a [u8]>,
    pub(super) sink: &'a mut S,
    pub(super) route: Route,
    pub(super) mtu: usize,
    pub(super) window: &'a mut WindowLimit,
    pub(super) recovery: &'a mut Recovery,
    /// The time, whatever smoltcp is told.
    pub(super) now: Instant,
    /// Takes a reply for which the port has no room; it is lost, as on any full link.
    pub(super) scratch: &'a mut Vec<u8>,
}

impl<S> OneCall<'_, S> {
    pub(super) fn capabilities(mtu: usize) -> DeviceCapabilities {
        let mut capabilities = DeviceCapabilities::default();
        capabilities.medium = Medium::Ip;
        capabilities.max_transmission_unit = mtu;
        // A local hypervisor leaves checksums to the receiver, who need not look. Those that are sent are
        // right: smoltcp makes the IPv4 one, and `Tx::consume` the TCP one, after the window has been set.
        capabilities.checksum.ipv4 = Checksum::Tx;
        capabilities.checksum.tcp = Checksum::None;
        capabilities
    }
}

impl<S: FrameSink> OneCall<'_, S> {
    /// Whether the longest frame can be sent.
    pub(super) fn has_room(&self) -> bool {
        self.sink.has_room(self.route.port, ether::HEADER_LEN + self.mtu)
    }

    fn token(&mut self) -> Tx<'_, S> {
        Tx {
            sink: self.sink,
            route: self.route,
            window: self.window,
            recovery: self.recovery,
            now: self.now,
            scratch: self.scratch,
        }
    }
}

impl<'a, S: FrameSink> Device for OneCall<'a, S> {
    type RxToken<'t>
        = Rx<'a>
    where
        Self: 't;
    type TxToken<'t>
        = Tx<'t, S>
    where
        Self: 't;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx<'a>, Tx<'_, S>)> {
        let packet = self.packet.take()?;
        Some((Rx(packet), self.token()))
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Tx<'_, S>> {
        // What is repeated into `scratch` needs no room.
        (self.recovery.is_replaying() || self.has_room()).then(|| self.token())
    }

    fn capabilities(&self) -> DeviceCapabilities {
        Self::capabilities(self.mtu)
    }
}

pub(super) struct Rx<'a>(&'a [u8]);

impl RxToken for Rx<'_> {
    fn consume<R, F: FnOnce(&[u8]) -> R>(self, f: F) -> R {
        f(self.0)
    }
}

pub(super) struct Tx<'a, S> {
    sink: &'a mut S,
    route: Route,
    window: &'a mut WindowLimit,
    recovery: &'a mut Recovery,
    now: Instant,
    scratch: &'a mut Vec<u8>,
}

impl<S: FrameSink> TxToken for Tx<'_, S> {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(mut self, len: usize, f: F) -> R {
        if self.recovery.is_replaying() {
            return self.replay(len, f);
        }
        let Some(frame) = self.sink.frame(self.route.port, ether::HEADER_LEN + len) else {
            self.scratch.resize(len, 0);
            let result = f(self.scratch);
            finish_segment(self.scratch, self.window, self.recovery, self.now);
            return result;
        };
        let packet = ether::emit(frame, self.route.from, self.route.to, EtherType::Ipv4);
        let result = f(packet);
        finish_segment(packet, self.window, self.recovery, self.now);
        result
    }
}

impl<S: FrameSink> Tx<'_, S> {
    /// Lets a repeated segment leave if it is to be sent again.
    fn replay<R, F: FnOnce(&mut [u8]) -> R>(&mut self, len: usize, f: F) -> R {
        self.scratch.resize(len, 0);
        let result = f(self.scratch);
        let room = self.sink.has_room(self.route.port, ether::HEADER_LEN + len);
        let admitted = {
            let mut packet = Ipv4Packet::new_unchecked(&mut self.scratch[..]);
            self.recovery.admits(&TcpPacket::new_unchecked(packet.payload_mut()), room)
        };
        if admitted && let Some(frame) = self.sink.frame(self.route.port, ether::HEADER_LEN + len) {
            let packet = ether::emit(frame, self.route.from, self.route.to, EtherType::Ipv4);
            packet.copy_from_slice(self.scratch);
            finish_segment(packet, self.window, self.recovery, self.now);
        }
        result
    }
}

/// Sets the window that the guest is to see, and then the checksum.
pub(super) fn finish_segment(
    packet: &mut [u8],
    window: &mut WindowLimit,
    recovery: &mut Recovery,
    now: Instant,
) {
    let mut packet = Ipv4Packet::new_unchecked(packet);
    let (source, destination) = (packet.src_addr(), packet.dst_addr());
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    window.apply(&mut segment);
    if segment.segment_len() == 0 {
        segment.set_seq_number(recovery.acceptable(segment.seq_number()));
    } else {
        recovery.note_sent(&segment, now);
    }
    segment.set_checksum(0);
    let checksum = checksum::transport(source, destination, IpProtocol::Tcp, segment.as_ref());
    segment.set_checksum(checksum);
}

/// The device that exists while the interface is made: it has capabilities and nothing else.
pub(super) struct CapabilitiesOnly {
    pub(super) mtu: usize,
}

impl Device for CapabilitiesOnly {
    type RxToken<'t> = Rx<'t>;
    type TxToken<'t> = Never;

    fn receive(&mut self, _: smoltcp::time::Instant) -> Option<(Rx<'_>, Never)> {
        None
    }

    fn transmit(&mut self, _: smoltcp::time::Instant) -> Option<Never> {
        None
    }

    fn capabilities(&self) -> DeviceCapabilities {
        OneCall::<NoSink>::capabilities(self.mtu)
    }
}

/// A token that cannot be had.
pub(super) enum Never {}

impl TxToken for Never {
    fn consume<R, F: FnOnce(&mut [u8]) -> R>(self, _: usize, _: F) -> R {
        match self {}
    }
}
