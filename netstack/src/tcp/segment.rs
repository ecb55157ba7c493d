//! What a guest's segment leads to (RFC 9293 3.10.7). Owns: what smoltcp gets to see of it. May not: send
//! data. Read next: `recovery/mod.rs`, what it acknowledges; `flush.rs`, what is sent then.

use core::net::SocketAddr;

use smoltcp::phy::ChecksumCapabilities;
use smoltcp::wire::{Ipv4Packet, TcpPacket, TcpRepr, TcpSeqNumber};

use super::ack::{acknowledge, acknowledge_duplicate};
use super::flow::Stage;
use super::recovery::Verdict;
use super::socket::State;
use super::table::queue;
use super::{Flow, FlowId, Phase, Segment, Table};
use crate::ends::Ends;
use crate::ipv4::Route;
use crate::{DropReason, FrameSink, Instant};

/// A guest's segment, in its packet.
struct Arrival<'a> {
    packet: &'a [u8],
    segment: TcpPacket<&'a [u8]>,
    ends: Ends,
    /// One past its last byte of data.
    end: TcpSeqNumber,
    has_data: bool,
}

impl<'a> Arrival<'a> {
    #[inline(always)]
    fn new(packet: &Ipv4Packet<&'a [u8]>, segment: TcpPacket<&'a [u8]>) -> Self {
        let guest = SocketAddr::new(packet.src_addr().into(), segment.src_port());
        let remote = SocketAddr::new(packet.dst_addr().into(), segment.dst_port());
        let len = segment.payload().len();
        Self {
            packet: packet.clone().into_inner(),
            end: segment.seq_number() + len,
            has_data: len > 0,
            ends: Ends { guest, remote },
            segment,
        }
    }

    /// Whether it asks for a connection.
    fn opens(&self) -> bool {
        self.segment.syn() && !self.segment.ack() && !self.segment.rst()
    }
}

/// Whom a segment is for.
enum Admitted {
    /// A connection that there is.
    Flow(FlowId),
    /// A connection that there may be.
    New,
    Nobody,
}

/// Whether a segment says something that its guest has not said before.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Freshness {
    New,
    /// All of its sequence numbers are acknowledged, as those of a keep-alive are, which asks for an answer.
    Old,
    /// So is data that the guest can be told to have sent twice (RFC 2883).
    Duplicate,
}

/// What is known of a segment before smoltcp has it.
struct Before {
    state: State,
    freshness: Freshness,
    verdict: Verdict,
}

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
        let arrival = Arrival::new(packet, segment);
        match self.admit(route, &arrival, now)? {
            Admitted::New => {
                return Ok(Segment::Syn { guest: arrival.ends.guest, remote: arrival.ends.remote });
            }
            Admitted::Nobody => self.reply_reset(route, packet, now, sink),
            Admitted::Flow(id) => {
                if let Some(before) = self.before(id, &arrival, now, sink)? {
                    self.feed(id, &arrival, &before, now, sink);
                    self.after(id, &arrival, &before, now, sink);
                }
            }
        }
        Ok(Segment::Done)
    }

    /// The state is CLOSED (RFC 9293 3.10.7.1): a SYN may begin a connection, anything else is answered with
    /// a RST. In TIME-WAIT a SYN may begin another one (RFC 9293 3.6.1). Only the flow's own port speaks for
    /// its guest.
    #[inline(always)]
    fn admit(&mut self, route: Route, arrival: &Arrival<'_>, now: Instant) -> Result<Admitted, DropReason> {
        let Some(&id) = self.keys.get(&arrival.ends) else {
            return Ok(if arrival.opens() { Admitted::New } else { Admitted::Nobody });
        };
        let Some(flow) = self.flows.get_mut(id) else { return Err(DropReason::Tcp) };
        if flow.route.port != route.port {
            return Err(DropReason::OtherPort);
        }
        if arrival.opens() && matches!(flow.phase(), Phase::Finished | Phase::Aborted) {
            // The old one ends without its name.
            self.keys.remove(&arrival.ends);
            return Ok(Admitted::New);
        }
        flow.route = route;
        flow.keepalive.note_segment(now);
        Ok(Admitted::Flow(id))
    }

    /// The sequence number is checked first (RFC 9293 3.10.7.4), and what the segment acknowledges is taken
    /// note of. The result is `None` if there is nothing in it for smoltcp.
    #[inline(always)]
    fn before(
        &mut self,
        id: FlowId,
        arrival: &Arrival<'_>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Result<Option<Before>, DropReason> {
        let Some(flow) = self.flows.get_mut(id) else { return Ok(None) };
        let segment = &arrival.segment;
        if flow.is_repeated_ack(segment) {
            return Ok(None);
        }
        let state = match &flow.stage {
            Stage::Live(socket) => socket.state(),
            Stage::Held(_) if segment.rst() => {
                flow.stage = Stage::Dead;
                queue(&mut self.ready, id, flow);
                return Ok(None);
            }
            Stage::Held(_) | Stage::Resolving | Stage::Dead => return Ok(None),
        };
        if state.is_syn_sent()
            && segment.syn()
            && let Some(syn) = parse(segment, arrival.ends)
        {
            flow.window.handle_syn(&syn, self.mtu);
            flow.recovery.handle_syn(&syn);
        }
        // A guest that knows nothing of the connection answers with a RST (RFC 5961 4.2). smoltcp would say
        // nothing.
        if segment.syn() && !segment.ack() && state.is_synchronized() {
            acknowledge(sink, flow);
            return Ok(None);
        }
        let is_open = state.is_synchronized() || state.is_syn_received();
        let is_past_ring = is_open && arrival.has_data && flow.window.is_past_ring(arrival.end);
        if is_past_ring || (segment.fin() && flow.window.is_past(arrival.end)) {
            return Err(DropReason::Tcp);
        }
        if arrival.has_data
            && let Some(budget) = self.budgets.get_mut(flow.route.port)
        {
            budget.window.count(&mut flow.window, flow.pressure, now);
        }
        let freshness = if is_open { freshness(flow, arrival) } else { Freshness::New };
        let verdict = flow.recovery.handle_ack(segment, freshness != Freshness::New, now);
        if verdict == Verdict::Known && freshness != Freshness::Old {
            flow.progress = None;
            if freshness == Freshness::Duplicate {
                acknowledge_duplicate(sink, flow, segment.seq_number(), arrival.end);
            }
            queue(&mut self.ready, id, flow);
            return Ok(None);
        }
        Ok(Some(Before { state, freshness, verdict }))
    }

    /// smoltcp gets the segment, with the window that it is to know of. An old one is moved to where smoltcp
    /// reads its acknowledgement and its window, without data; unless it says nothing at all, and is for
    /// smoltcp to answer.
    #[inline(always)]
    fn feed(
        &mut self,
        id: FlowId,
        arrival: &Arrival<'_>,
        before: &Before,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let field = match before.verdict {
            Verdict::Limit(field) => field,
            Verdict::Pass | Verdict::Known => arrival.segment.window_len(),
        };
        let packet = match (before.verdict, before.freshness) {
            (Verdict::Known, _) | (Verdict::Pass, Freshness::New) => arrival.packet,
            (_, freshness) => {
                let seq = flow.window.acceptable().filter(|_| freshness != Freshness::New);
                rewrite(&mut self.rewritten, arrival.packet, field, seq);
                &self.rewritten
            }
        };
        let called = flow.device(Some(packet), sink, usize::from(self.mtu), now, &mut self.scratch);
        let Some((mut device, socket)) = called else { return };
        self.interface.receive(&mut device, socket, now);
        if before.state.is_fin_wait_1() && field == 0 && flow.has_delivered() {
            self.open_at_end(id, arrival, now, sink);
        }
    }

    /// A segment that is not acceptable is answered with an acknowledgement (RFC 9293 3.10.7.4), which
    /// smoltcp did not see the need for. In SYN-SENT an unacceptable acknowledgement tells of an old
    /// connection (RFC 9293 3.5.1).
    #[inline(always)]
    fn after(
        &mut self,
        id: FlowId,
        arrival: &Arrival<'_>,
        before: &Before,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        let segment = &arrival.segment;
        if before.state.is_syn_sent() && segment.ack() && !segment.syn() && !segment.rst() {
            return self.dial_again(id, now, sink);
        }
        let Some(flow) = self.flows.get_mut(id) else { return };
        match before.freshness {
            Freshness::Duplicate => acknowledge_duplicate(sink, flow, segment.seq_number(), arrival.end),
            Freshness::Old if before.verdict != Verdict::Known && (arrival.has_data || segment.fin()) => {
                acknowledge(sink, flow);
            }
            Freshness::Old | Freshness::New => {}
        }
        if segment.ack() {
            flow.progress = None;
        }
        if arrival.has_data {
            flow.note_data(arrival.end, now);
        }
        flow.after_segment(before.state, segment.rst());
        queue(&mut self.ready, id, flow);
    }

    /// The guest has acknowledged everything and the end, with a window that is shut. smoltcp's timer for
    /// such a window would go on, and send nothing without end: it has to see one that is open, which changes
    /// nothing else.
    fn open_at_end(&mut self, id: FlowId, arrival: &Arrival<'_>, now: Instant, sink: &mut impl FrameSink) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(seq) = flow.window.acceptable() else { return };
        rewrite(&mut self.rewritten, arrival.packet, 1, Some(seq));
        let called = flow.device(Some(&self.rewritten), sink, usize::from(self.mtu), now, &mut self.scratch);
        if let Some((mut device, socket)) = called {
            self.interface.receive(&mut device, socket, now);
        }
    }
}

/// How fresh a segment of a connection is that is open, or about to be.
#[inline(always)]
fn freshness(flow: &Flow, arrival: &Arrival<'_>) -> Freshness {
    let segment = &arrival.segment;
    let start = segment.seq_number();
    let is_acknowledged =
        flow.window.acknowledged().is_some_and(|ack| start < ack && start + segment.segment_len() <= ack);
    if !is_acknowledged || !segment.ack() || segment.syn() || segment.rst() {
        Freshness::New
    } else if flow.recovery.is_selective() && arrival.has_data && !segment.fin() {
        Freshness::Duplicate
    } else {
        Freshness::Old
    }
}

/// What smoltcp makes of a guest's segment, whatever its checksum.
pub(super) fn parse<'a>(segment: &TcpPacket<&'a [u8]>, ends: Ends) -> Option<TcpRepr<'a>> {
    let (from, to) = (ends.guest.ip().into(), ends.remote.ip().into());
    TcpRepr::parse(segment, &from, &to, &ChecksumCapabilities::ignored()).ok()
}

/// Copies a guest's segment with another window field. With a sequence number it has that and no data:
/// smoltcp answers a segment of which it has all the data, but reads neither what that acknowledges nor its
/// window.
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
