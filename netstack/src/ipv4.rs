//! IPv4 (RFC 791): headers out, fragments in and out. Owns: datagrams that are not complete yet.
//! May not: decide about addresses (`nat.rs`). Read next: `lib.rs`, `Stack::switch_frame`, which takes
//! packets apart; `mtu.rs`, what is cut.

use core::net::Ipv4Addr;
use core::time::Duration;
use std::collections::HashMap;
use std::ops::Range;

use foldhash::fast::FixedState;
use smoltcp::wire::{IpProtocol, Ipv4Packet};

use crate::ether::{self, EtherType};
use crate::link::most_frequent;
use crate::{DropCounts, DropReason, FrameSink, Instant, Mac, PortId};

/// Bytes of a header without options; this stack sends no others.
pub(crate) const HEADER_LEN: usize = 20;
/// RFC 1700.
pub(crate) const DEFAULT_TTL: u8 = 64;
/// How long an incomplete datagram is kept. RFC 1122 3.3.2 asks for 60 to 120 s; Linux and the original take
/// 30.
const REASSEMBLY_TIMEOUT: Duration = Duration::from_secs(30);
/// Incomplete datagrams kept at most, of 64 KiB at most each. The oldest of the port that has most makes
/// room.
const MAX_INCOMPLETE: usize = 64;
/// Pieces of one datagram that are not yet joined, at most.
const MAX_PIECES: usize = 64;

/// Who sends what to whom: what a header is made of.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Header {
    pub(crate) source: Ipv4Addr,
    pub(crate) destination: Ipv4Addr,
    pub(crate) protocol: IpProtocol,
}

/// The way to a guest: through which port, from and to which hardware address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Route {
    pub(crate) port: PortId,
    pub(crate) from: Mac,
    pub(crate) to: Mac,
}

impl Route {
    /// The route of a flow whose guest has not been found yet; nothing is sent along it.
    pub(crate) const NOWHERE: Self = Self { port: PortId::NOWHERE, from: Mac([0; 6]), to: Mac([0; 6]) };
}

/// Sends one datagram, in fragments if it is larger than `mtu`, in bytes of IP packet.
///
/// All or nothing: if there is no room for every fragment nothing is sent, and the result is
/// [`DropReason::PortFull`].
pub(crate) fn send(
    sink: &mut impl FrameSink,
    route: Route,
    header: Header,
    payload: &[u8],
    ident: u16,
    mtu: u16,
) -> Result<(), DropReason> {
    let max = usize::from(mtu).saturating_sub(HEADER_LEN).max(8);
    let step = if payload.len() <= max { max } else { max & !7 };
    let pieces = payload.len().div_ceil(step).max(1);
    if !sink.has_room(route.port, pieces * (ether::HEADER_LEN + HEADER_LEN + step.min(payload.len()))) {
        return Err(DropReason::PortFull);
    }
    let mut offset = 0;
    loop {
        let left = payload.get(offset..).unwrap_or_default();
        let (piece, rest) = left.split_at_checked(step).unwrap_or((left, &[]));
        let len = ether::HEADER_LEN + HEADER_LEN + piece.len();
        let frame = sink.frame(route.port, len).ok_or(DropReason::PortFull)?;
        let packet = ether::emit(frame, route.from, route.to, EtherType::Ipv4);
        let mut packet = Ipv4Packet::new_unchecked(packet);
        emit_header(&mut packet, header, piece.len(), ident);
        if pieces > 1 {
            packet.set_frag_offset(u16::try_from(offset).map_err(|_| DropReason::Ipv4)?);
            packet.set_more_frags(!rest.is_empty());
        }
        packet.fill_checksum();
        packet.payload_mut().copy_from_slice(piece);
        offset += piece.len();
        if rest.is_empty() {
            return Ok(());
        }
    }
}

/// The source of the packet that `payload` begins with, if it can be one of IPv4.
#[inline]
pub(crate) fn source(payload: &[u8]) -> Option<Ipv4Addr> {
    match payload.first_chunk::<HEADER_LEN>()? {
        [version, _, _, _, _, _, _, _, _, _, _, _, a, b, c, d, ..] if version >> 4 == 4 => {
            Some(Ipv4Addr::new(*a, *b, *c, *d))
        }
        _ => None,
    }
}

/// Forwards a packet between guests, in fragments if it is larger than `mtu`; all or nothing, as [`send`].
/// What surrounds it in its frame stays behind.
pub(crate) fn forward(
    sink: &mut impl FrameSink,
    route: Route,
    packet: &Ipv4Packet<&[u8]>,
    mtu: u16,
) -> Result<(), DropReason> {
    let header_len = usize::from(packet.header_len());
    let header = packet.clone().into_inner().get(..header_len).ok_or(DropReason::Ipv4)?;
    let (payload, start, more) = (packet.payload(), usize::from(packet.frag_offset()), packet.more_frags());
    if header_len + start + payload.len() > usize::from(u16::MAX) {
        return Err(DropReason::Fragment);
    }
    let max = usize::from(mtu).saturating_sub(header_len).max(8);
    let step = if payload.len() <= max { max } else { max & !7 };
    let pieces = payload.len().div_ceil(step).max(1);
    if !sink.has_room(route.port, pieces * (ether::HEADER_LEN + header_len + step.min(payload.len()))) {
        return Err(DropReason::PortFull);
    }
    for number in 0..pieces {
        let left = payload.get(number * step..).unwrap_or_default();
        let piece = left.get(..step).unwrap_or(left);
        let len = header_len + piece.len();
        let frame = sink.frame(route.port, ether::HEADER_LEN + len).ok_or(DropReason::PortFull)?;
        let bytes = ether::emit(frame, route.from, route.to, EtherType::Ipv4);
        let (space, rest) = bytes.split_at_mut_checked(header_len).ok_or(DropReason::Ipv4)?;
        space.copy_from_slice(header);
        if number > 0 {
            blank_options(space);
        }
        rest.copy_from_slice(piece);
        let mut fragment = Ipv4Packet::new_unchecked(bytes);
        fragment.set_total_len(u16::try_from(len).map_err(|_| DropReason::Ipv4)?);
        let offset = u16::try_from(start + number * step).map_err(|_| DropReason::Ipv4)?;
        fragment.set_frag_offset(offset);
        fragment.set_more_frags(more || number + 1 < pieces);
        fragment.fill_checksum();
    }
    Ok(())
}

/// Makes padding of the options that only a first fragment carries (RFC 791 3.1, copied flag).
fn blank_options(header: &mut [u8]) {
    const END: u8 = 0;
    const NO_OPERATION: u8 = 1;
    const COPIED: u8 = 0x80;
    let mut options = header.get_mut(HEADER_LEN..).unwrap_or_default();
    while let [kind, ..] = *options {
        let len = match (kind, options.get(1)) {
            (END, _) => return,
            (NO_OPERATION, _) => 1,
            (_, len) => len.map_or(1, |len| usize::from(*len).max(2)),
        };
        let Some((option, rest)) = options.split_at_mut_checked(len) else { return };
        if kind & COPIED == 0 {
            option.fill(NO_OPERATION);
        }
        options = rest;
    }
}

pub(crate) fn emit_header<T: AsRef<[u8]> + AsMut<[u8]>>(
    packet: &mut Ipv4Packet<T>,
    header: Header,
    payload: usize,
    ident: u16,
) {
    packet.set_version(4);
    packet.set_header_len(HEADER_LEN as u8);
    packet.set_dscp(0);
    packet.set_ecn(0);
    packet.set_total_len(u16::try_from(HEADER_LEN + payload).unwrap_or(u16::MAX));
    packet.set_ident(ident);
    packet.clear_flags();
    packet.set_frag_offset(0);
    packet.set_hop_limit(DEFAULT_TTL);
    packet.set_next_header(header.protocol);
    packet.set_src_addr(header.source);
    packet.set_dst_addr(header.destination);
}

/// Puts fragments together again. A fragment that comes again is ignored. One that overlaps another and
/// differs from it ends the whole datagram: no honest sender makes one (RFC 5722 says so for IPv6), and
/// dishonest ones use the ambiguity.
#[derive(Debug)]
pub(crate) struct Reassembly {
    incomplete: HashMap<Key, Incomplete, FixedState>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Key {
    port: PortId,
    source: Ipv4Addr,
    destination: Ipv4Addr,
    protocol: u8,
    ident: u16,
}

#[derive(Debug)]
struct Incomplete {
    /// A header without options and then the payload, as far as it is there.
    packet: Vec<u8>,
    /// What is there of the payload: disjoint, not touching, in order.
    have: Vec<Range<usize>>,
    /// Length of the payload, once the last fragment came.
    total: Option<usize>,
    expires: Instant,
}

impl Reassembly {
    pub(crate) fn new(seed: u64) -> Self {
        Self { incomplete: HashMap::with_hasher(FixedState::with_seed(seed)) }
    }

    /// Takes one fragment; the whole datagram when this was the last piece missing.
    pub(crate) fn add(
        &mut self,
        port: PortId,
        fragment: &Ipv4Packet<&[u8]>,
        now: Instant,
        drops: &mut DropCounts,
    ) -> Result<Option<Vec<u8>>, DropReason> {
        self.incomplete.retain(|_, datagram| datagram.expires > now);
        let key = Key {
            port,
            source: fragment.src_addr(),
            destination: fragment.dst_addr(),
            protocol: fragment.next_header().into(),
            ident: fragment.ident(),
        };
        if !self.incomplete.contains_key(&key) {
            if self.incomplete.len() >= MAX_INCOMPLETE {
                let most = most_frequent(self.incomplete.keys().map(|key| key.port).collect());
                let of_most = self.incomplete.iter().filter(|(key, _)| Some(key.port) == most);
                let oldest = of_most.min_by_key(|(_, datagram)| datagram.expires).map(|(key, _)| *key);
                if let Some(key) = oldest {
                    drops.count(DropReason::Fragment);
                    self.incomplete.remove(&key);
                }
            }
            let header = Header {
                source: fragment.src_addr(),
                destination: fragment.dst_addr(),
                protocol: fragment.next_header(),
            };
            let mut packet = vec![0; HEADER_LEN];
            emit_header(&mut Ipv4Packet::new_unchecked(&mut packet), header, 0, fragment.ident());
            let expires = now + REASSEMBLY_TIMEOUT;
            self.incomplete.insert(key, Incomplete { packet, have: Vec::new(), total: None, expires });
        }
        let Some(datagram) = self.incomplete.get_mut(&key) else { return Err(DropReason::Fragment) };
        if datagram.add(fragment).is_err() {
            self.incomplete.remove(&key);
            return Err(DropReason::Fragment);
        }
        if !datagram.is_complete() {
            return Ok(None);
        }
        let mut packet = self.incomplete.remove(&key).map(|datagram| datagram.packet).unwrap_or_default();
        let len = u16::try_from(packet.len()).map_err(|_| DropReason::Fragment)?;
        Ipv4Packet::new_unchecked(&mut packet).set_total_len(len);
        Ok(Some(packet))
    }
}

impl Incomplete {
    fn add(&mut self, fragment: &Ipv4Packet<&[u8]>) -> Result<(), DropReason> {
        let start = usize::from(fragment.frag_offset());
        let end = start + fragment.payload().len();
        let last = !fragment.more_frags();
        if start == end
            || HEADER_LEN + end > usize::from(u16::MAX)
            || (!last && !(end - start).is_multiple_of(8))
            || self.total.is_some_and(|total| end > total || (last && end != total))
            || (last && self.have.last().is_some_and(|range| range.end > end))
        {
            return Err(DropReason::Fragment);
        }
        let at = self.have.partition_point(|range| range.end <= start);
        if let Some(range) = self.have.get(at).filter(|range| range.start < end) {
            let is_known = range.start <= start && end <= range.end && (!last || self.total == Some(end));
            let known = self.packet.get(HEADER_LEN + start..HEADER_LEN + end).filter(|_| is_known);
            return if known == Some(fragment.payload()) { Ok(()) } else { Err(DropReason::Fragment) };
        }
        if last {
            self.total = Some(end);
        }
        if self.packet.len() < HEADER_LEN + end {
            self.packet.resize(HEADER_LEN + end, 0);
        }
        if let Some(space) = self.packet.get_mut(HEADER_LEN + start..HEADER_LEN + end) {
            space.copy_from_slice(fragment.payload());
        }
        self.have.insert(at, start..end);
        self.have.dedup_by(|next, range| {
            let touch = range.end == next.start;
            if touch {
                range.end = next.end;
            }
            touch
        });
        if self.have.len() > MAX_PIECES { Err(DropReason::Fragment) } else { Ok(()) }
    }

    fn is_complete(&self) -> bool {
        self.total.is_some_and(|total| matches!(self.have.as_slice(), [range] if *range == (0..total)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragment(offset: usize, payload: &[u8], more: bool) -> Vec<u8> {
        let header = Header {
            source: Ipv4Addr::new(10, 0, 0, 2),
            destination: Ipv4Addr::new(10, 0, 0, 1),
            protocol: IpProtocol::Udp,
        };
        let mut bytes = vec![0; HEADER_LEN + payload.len()];
        let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
        emit_header(&mut packet, header, payload.len(), 7);
        packet.set_frag_offset(offset as u16);
        packet.set_more_frags(more);
        packet.payload_mut().copy_from_slice(payload);
        bytes
    }

    fn add(table: &mut Reassembly, bytes: &[u8], ms: u64) -> Result<Option<Vec<u8>>, DropReason> {
        let packet = Ipv4Packet::new_checked(bytes).unwrap();
        table.add(PortId(0), &packet, Instant::from_millis(ms), &mut DropCounts::default())
    }

    #[test]
    fn what_one_port_leaves_incomplete_makes_room_by_its_own() {
        let (mut table, mut drops) = (Reassembly::new(1), DropCounts::default());
        let mut add_of = |port, ident: u16, offset, more, ms| {
            let mut bytes = fragment(offset, &[7; 16], more);
            let mut packet = Ipv4Packet::new_unchecked(&mut bytes);
            packet.set_ident(ident);
            let packet = Ipv4Packet::new_checked(&bytes[..]).unwrap();
            table.add(PortId(port), &packet, Instant::from_millis(ms), &mut drops)
        };
        assert!(add_of(1, 1, 0, true, 0).unwrap().is_none());
        for ident in 0..1000 {
            assert!(add_of(2, ident, 0, true, 1 + u64::from(ident)).unwrap().is_none());
        }
        assert!(add_of(1, 1, 16, false, 2000).unwrap().is_some(), "the oldest of all, and another's");
        assert!(add_of(2, 0, 16, false, 2000).unwrap().is_none(), "it made room");
        assert!(add_of(2, 999, 16, false, 2000).unwrap().is_some());
        assert_eq!(drops.of(DropReason::Fragment), 1001 - MAX_INCOMPLETE as u64);
    }

    #[test]
    fn a_datagram_in_too_many_pieces_is_none() {
        let mut table = Reassembly::new(1);
        for piece in 0..MAX_PIECES {
            assert_eq!(add(&mut table, &fragment(16 * piece, &[7; 8], true), 0), Ok(None));
        }
        let one_more = fragment(16 * MAX_PIECES, &[7; 8], true);
        assert_eq!(add(&mut table, &one_more, 0), Err(DropReason::Fragment));
        assert!(table.incomplete.is_empty());
    }

    #[test]
    fn any_order_gives_the_datagram() {
        let payload: Vec<u8> = (0..40).collect();
        for order in [[0, 1, 2], [2, 1, 0], [1, 2, 0]] {
            let mut table = Reassembly::new(1);
            let pieces = [
                fragment(0, &payload[..16], true),
                fragment(16, &payload[16..32], true),
                fragment(32, &payload[32..], false),
            ];
            let mut done = None;
            for i in order {
                assert_eq!(done, None);
                done = add(&mut table, &pieces[i], 0).unwrap();
            }
            let done = done.unwrap();
            let packet = Ipv4Packet::new_checked(&done[..]).unwrap();
            assert_eq!(packet.payload(), payload);
            assert!(table.incomplete.is_empty());
        }
    }

    #[test]
    fn what_comes_again_is_ignored() {
        let payload: Vec<u8> = (0..48).collect();
        let piece = |from: usize, to: usize| fragment(from, &payload[from..to], to < 48);
        // The last one completes it; before that each comes once more at every place after its first.
        for order in
            [&[0, 0, 1, 2], &[0, 1, 0, 2], &[0, 1, 1, 2], &[2, 2, 1, 0], &[2, 1, 2, 0], &[1, 0, 1, 2]]
        {
            let mut table = Reassembly::new(1);
            let pieces = [piece(0, 16), piece(16, 32), piece(32, 48)];
            let mut done = None;
            for i in order {
                assert_eq!(done, None);
                done = add(&mut table, &pieces[*i], 0).unwrap();
            }
            assert_eq!(done.unwrap()[HEADER_LEN..], payload, "{order:?}");
        }
        // Cut another way by another router, as long as it brings nothing new.
        let mut table = Reassembly::new(1);
        assert_eq!(add(&mut table, &piece(0, 32), 0), Ok(None));
        assert_eq!(add(&mut table, &piece(8, 24), 0), Ok(None));
        assert_eq!(add(&mut table, &piece(32, 48), 0).unwrap().unwrap()[HEADER_LEN..], payload);
    }

    #[test]
    fn overlap_oversize_and_contradiction_end_the_datagram() {
        let first = fragment(0, &[1; 16], true);
        for second in [
            fragment(8, &[2; 16], true),
            fragment(8, &[1; 16], true),
            fragment(0, &[2; 16], true),
            fragment(8, &[1; 8], false),
            fragment(8, &[2; 4], false),
            fragment(16, &[2; 9], true),
            fragment(65528, &[2; 16], false),
        ] {
            let mut table = Reassembly::new(1);
            assert_eq!(add(&mut table, &first, 0), Ok(None));
            assert_eq!(add(&mut table, &second, 0), Err(DropReason::Fragment));
            assert!(table.incomplete.is_empty());
        }
    }

    #[test]
    fn is_bounded_in_time_and_number() {
        let mut table = Reassembly::new(1);
        for ident in 0..200_u16 {
            let mut bytes = fragment(0, &[1; 16], true);
            Ipv4Packet::new_unchecked(&mut bytes).set_ident(ident);
            add(&mut table, &bytes, u64::from(ident)).unwrap();
        }
        assert_eq!(table.incomplete.len(), MAX_INCOMPLETE);
        add(&mut table, &fragment(0, &[1; 16], true), 60_000).unwrap();
        assert_eq!(table.incomplete.len(), 1);
    }
}
