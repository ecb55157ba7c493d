//! Acknowledgements without data that smoltcp would not send. May not: change a flow, but for what its guest
//! is offered by them. Read next: `window.rs`, what that is.

use core::net::SocketAddr;

use smoltcp::wire::{IpProtocol, Ipv4Packet, TCP_HEADER_LEN, TcpOption, TcpPacket, TcpSeqNumber};

use super::Flow;
use super::socket::Socket;
use crate::FrameSink;
use crate::ether::{self, EtherType};
use crate::ipv4;

/// Acknowledges what came, with the window that the ring from the guest has room for.
pub(super) fn acknowledge(sink: &mut impl FrameSink, flow: &mut Flow) {
    send(sink, flow, 0, None);
}

/// Asks the flow's guest whether it still knows of the flow (RFC 9293 3.8.4): a byte that it has is to be
/// acknowledged again.
pub(super) fn keep_alive(sink: &mut impl FrameSink, flow: &mut Flow) {
    send(sink, flow, 1, None);
}

/// Tells the guest that it sent the bytes from `start` to `end` twice (RFC 2883). By that Linux knows that
/// nothing was lost, and goes on as fast as before.
pub(super) fn acknowledge_duplicate(
    sink: &mut impl FrameSink,
    flow: &mut Flow,
    start: TcpSeqNumber,
    end: TcpSeqNumber,
) {
    send(sink, flow, 0, Some((start, end)));
}

/// `back`: how far the sequence number lies before the next one.
fn send(
    sink: &mut impl FrameSink,
    flow: &mut Flow,
    back: usize,
    duplicate: Option<(TcpSeqNumber, TcpSeqNumber)>,
) {
    let (SocketAddr::V4(guest), SocketAddr::V4(remote)) = (flow.guest, flow.remote) else { return };
    let held = flow.socket().map_or(0, Socket::recv_queue);
    let Some((seq, ack, window)) = flow.window.update(held) else { return };
    let ranges = duplicate
        .map(|(left, right)| TcpOption::SackRange([Some((left.0 as u32, right.0 as u32)), None, None]));
    let header_len =
        TCP_HEADER_LEN + ranges.as_ref().map_or(0, |ranges| ranges.buffer_len().next_multiple_of(4));
    let len = ether::HEADER_LEN + ipv4::HEADER_LEN + header_len;
    let Some(frame) = sink.frame(flow.route.port, len) else { return };
    let mut packet =
        Ipv4Packet::new_unchecked(ether::emit(frame, flow.route.from, flow.route.to, EtherType::Ipv4));
    let header = ipv4::Header { source: *remote.ip(), destination: *guest.ip(), protocol: IpProtocol::Tcp };
    ipv4::emit_header(&mut packet, header, header_len, 0);
    packet.fill_checksum();
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    segment.set_src_port(remote.port());
    segment.set_dst_port(guest.port());
    segment.set_seq_number(flow.recovery.acceptable(seq - back));
    segment.set_ack_number(ack);
    segment.clear_flags();
    segment.set_header_len(header_len as u8);
    segment.set_ack(true);
    segment.set_window_len(window);
    segment.set_urgent_at(0);
    if let Some(ranges) = ranges {
        TcpOption::EndOfList.emit(ranges.emit(segment.options_mut()));
    }
    segment.fill_checksum(&(*remote.ip()).into(), &(*guest.ip()).into());
}
