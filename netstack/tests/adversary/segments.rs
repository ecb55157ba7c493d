//! TCP segments made by hand.

use std::net::SocketAddrV4;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{TcpControl, TcpPacket, TcpRepr, TcpSeqNumber};

/// What a segment says that says nothing.
pub(crate) const PLAIN: TcpRepr<'static> = TcpRepr {
    src_port: 0,
    dst_port: 0,
    control: TcpControl::None,
    seq_number: TcpSeqNumber(0),
    ack_number: None,
    window_len: 60_000,
    window_scale: None,
    max_seg_size: None,
    sack_permitted: false,
    sack_ranges: [None; 3],
    timestamp: None,
    payload: &[],
};

pub(crate) fn tcp(from: SocketAddrV4, to: SocketAddrV4, repr: TcpRepr<'_>) -> Vec<u8> {
    let repr = TcpRepr { src_port: from.port(), dst_port: to.port(), ..repr };
    let mut bytes = vec![0; repr.buffer_len()];
    let mut segment = TcpPacket::new_unchecked(&mut bytes);
    repr.emit(&mut segment, &(*from.ip()).into(), &(*to.ip()).into(), &ChecksumCapabilities::default());
    bytes
}

pub(crate) fn number(value: u32) -> TcpSeqNumber {
    TcpSeqNumber(value as i32)
}
