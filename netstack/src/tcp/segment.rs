//! What a guest's segment leads to (RFC 9293 3.10.7). Owns: what smoltcp gets to see of it. May not: send data.
//! Read next: `recovery/mod.rs`, what it acknowledges; `flush.rs`, what is sent then.

use core::net::SocketAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Ipv4Packet, TcpPacket, TcpRepr, TcpSeqNumber};

use super::ack::{challenge, send_duplicate};
use super::flow::Stage;
use super::recovery::Verdict;
use super::{FlowId, Phase, Segment, Table};
use crate::ends::Ends;
use crate::ipv4::Route;
use crate::{DropReason, FrameSink, Instant};

impl Table {
    /// Takes one segment: a whole, unfragmented IP packet from `route.to` at `route.port`.
    pub(crate) fn handle_segment(
        &mut self,
        route: Route,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Segment, DropReason> {
        let segment = TcpPacket::new_checked(packet.payload()).map_err(|_| DropReason::Tcp)?;
        let guest = SocketAddr::new(packet.src_addr().into(), segment.src_port());
        let remote = SocketAddr::new(packet.dst_addr().into(), segment.dst_port());
        let Some(&id) = self.keys.get(&Ends { guest, remote }) else {
            if segment.syn() && !segment.ack() && !segment.rst() {
                return Ok(Segment::Syn { guest, remote });
            }
            self.reply_reset(route, packet, now, sink);
            return Ok(Segment::Done);
        };
        let Some(mut flow) = self.flows.get_mut(id) else { return Err(DropReason::Tcp) };
        if flow.route.port != route.port {
            return Err(DropReason::OtherPort);
        }
        let is_opening = segment.syn() && !segment.ack() && !segment.rst();
        if is_opening && matches!(flow.phase(), Phase::Finished | Phase::Aborted) {
            // Another connection of the same name; the old one ends without it.
            self.keys.remove(&Ends { guest, remote });
            return Ok(Segment::Syn { guest, remote });
        }
        flow.route = route;
        flow.keepalive.hear(now);
        if flow.is_repeated_ack(&segment) {
            return Ok(Segment::Done);
        }
        let (has_data, end) = (!segment.payload().is_empty(), segment.seq_number() + segment.payload().len());
        let before;
        let is_duplicate;
        let mut is_old;
        match &mut flow.stage {
            Stage::Held(_) => {
                if segment.rst() {
                    flow.stage = Stage::Dead;
                    self.mark_ready(id);
                }
                return Ok(Segment::Done);
            }
            Stage::Resolving | Stage::Dead => return Ok(Segment::Done),
            Stage::Live(socket) => {
                before = socket.state();
                if before.is_syn_sent()
                    && segment.syn()
                    && let Some(syn) = parse(&segment, guest, remote)
                {
                    flow.window.handle_syn(&syn, self.mtu);
                    flow.recovery.handle_syn(&syn);
                }
                if segment.syn() && !segment.ack() && before.is_synchronized() {
                    challenge(sink, flow);
                    return Ok(Segment::Done);
                }
                let is_open = before.is_synchronized() || before.is_syn_received();
                if (is_open && has_data && flow.window.is_past_ring(end))
                    || (segment.fin() && flow.window.is_past(end))
                {
                    return Err(DropReason::Tcp);
                }
                if has_data && let Some(budget) = self.budgets.get_mut(route.port) {
                    budget.window.count(&mut flow.window, flow.plenty, now);
                }
                // As a keep-alive is, which asks for an answer.
                is_old = (flow.window.acknowledged().filter(|ack| segment.seq_number() < *ack))
                    .is_some_and(|ack| segment.seq_number() + segment.segment_len() <= ack)
                    && is_open
                    && segment.ack()
                    && !segment.syn()
                    && !segment.rst();
                is_duplicate = flow.recovery.is_selective() && has_data && !segment.fin() && is_old;
                let mut bytes = packet.clone().into_inner();
                let mut field = segment.window_len();
                match flow.recovery.handle_ack(&segment, is_old, now) {
                    Verdict::Known if is_duplicate || !is_old => {
                        flow.progress = None;
                        if is_duplicate {
                            send_duplicate(sink, flow, segment.seq_number(), end);
                        }
                        self.mark_ready(id);
                        return Ok(Segment::Done);
                    }
                    Verdict::Known => is_old = false,
                    Verdict::Pass if !is_old => {}
                    verdict => {
                        if let Verdict::Limit(limit) = verdict {
                            field = limit;
                        }
                        let seq = flow.window.acceptable().filter(|_| is_old);
                        rewrite(&mut self.rewritten, bytes, field, seq);
                        bytes = &self.rewritten;
                    }
                }
                let called = flow.device(Some(bytes), sink, usize::from(self.mtu), now, &mut self.scratch);
                let Some((mut device, socket)) = called else { return Ok(Segment::Done) };
                self.interface.receive(&mut device, socket, now);
                if before.is_fin_wait_1() && field == 0 && flow.has_delivered() {
                    self.open_at_end(id, packet, now, sink);
                    let Some(again) = self.flows.get_mut(id) else { return Ok(Segment::Done) };
                    flow = again;
                }
                if before.is_syn_sent() && segment.ack() && !segment.syn() && !segment.rst() {
                    self.dial_again(id, now, sink);
                    return Ok(Segment::Done);
                }
            }
        }
        if is_duplicate {
            send_duplicate(sink, flow, segment.seq_number(), end);
        } else if is_old && (has_data || segment.fin()) {
            challenge(sink, flow);
        }
        if segment.ack() {
            flow.progress = None;
        }
        if has_data {
            flow.note_data(end, now);
        }
        flow.after_segment(before, segment.rst());
        self.mark_ready(id);
        Ok(Segment::Done)
    }

    /// The guest has acknowledged everything and the end, with a window that is shut. smoltcp's timer for such a window would go on, and send
    /// nothing without end: it has to see one that is open, which changes nothing else.
    fn open_at_end(
        &mut self,
        id: FlowId,
        packet: &Ipv4Packet<&[u8]>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(seq) = flow.window.acceptable() else { return };
        rewrite(&mut self.rewritten, packet.clone().into_inner(), 1, Some(seq));
        let called = flow.device(Some(&self.rewritten), sink, usize::from(self.mtu), now, &mut self.scratch);
        if let Some((mut device, socket)) = called {
            self.interface.receive(&mut device, socket, now);
        }
    }
}

/// What smoltcp makes of a segment, whatever its checksum.
pub(super) fn parse<'a>(
    segment: &TcpPacket<&'a [u8]>,
    from: SocketAddr,
    to: SocketAddr,
) -> Option<TcpRepr<'a>> {
    TcpRepr::parse(segment, &from.ip().into(), &to.ip().into(), &ChecksumCapabilities::ignored()).ok()
}

/// Copies a guest's segment with another window field. With a sequence number, it has that and no data: smoltcp answers a segment of
/// which it has all the data, but reads neither what that acknowledges nor its window.
fn rewrite(copy: &mut Vec<u8>, packet: &[u8], field: u16, seq: Option<TcpSeqNumber>) {
    copy.clear();
    copy.extend_from_slice(packet);
    let mut packet = Ipv4Packet::new_unchecked(&mut copy[..]);
    let mut segment = TcpPacket::new_unchecked(packet.payload_mut());
    segment.set_window_len(field);
    if let Some(seq) = seq {
        segment.set_seq_number(seq);
        segment.set_fin(false);
        let header_len = segment.header_len();
        let len = u16::from(packet.header_len()) + u16::from(header_len);
        packet.set_total_len(len);
        copy.truncate(usize::from(len));
    }
}
