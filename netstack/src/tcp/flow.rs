//! One TCP connection between a guest and this side. Owns: its socket and its limits. May not: know what the
//! other end is. Read next: `socket.rs`; `table.rs`, which finds the flow of a segment.

use core::net::SocketAddr;
use core::ops::Range;
use core::time::Duration;

use smoltcp::wire::{TcpPacket, TcpSeqNumber};

use super::FlowId;
use super::blocked::Blocked;
use super::device::OneCall;
use super::keepalive::Keepalive;
use super::memory::Pressure;
use super::recovery::Recovery;
use super::socket::{ACK_DELAY, Interface, RINGS, RX_RING, Socket, State, TX_RING};
use super::window::WindowLimit;
use crate::buffer::IdleMemory;
use crate::ipv4::Route;
use crate::{FrameSink, Instant, ether};

/// Bytes that every flow may write to its ring before that is empty again. More is for
/// [`MAX_DEEP`](super::MAX_DEEP) flows. An empty ring is written from its start, so this is also what it
/// takes of memory.
pub(super) const SHALLOW: usize = 256 << 10;
/// Bytes in the ring to a guest that is not near, or not known to be. How near it is shows when it has taken
/// of a full ring. More would meet a queue on the way.
const STEADY: usize = 512 << 10;
/// Longer than it takes to acknowledge the guest's FIN, shorter than smoltcp's TIME-WAIT of 10 s.
const LINGER: Duration = Duration::from_secs(1);
/// A guest that acknowledges nothing for this long has lost the connection (RFC 1122 4.2.3.5: at least 100
/// s).
const GIVE_UP: Duration = Duration::from_secs(900);
/// The same for a SYN-ACK: whoever sent that SYN may never have wanted a connection.
const GIVE_UP_SYN: Duration = Duration::from_secs(60);
/// A flow that moved nothing for this long gives back the memory of its rings, if it moved anything before.
const IDLE: Duration = Duration::from_millis(200);
/// A flow that moved no more than this leaves its socket to another: a page or two of each ring.
const POOL_BYTES: usize = 4096;
/// How long a guest may take nothing of what was sent to it before a reset.
const RESET_LIMIT: Duration = Duration::from_secs(60);
/// How long it may take to close its half when the other end has left.
const FIN_LIMIT: Duration = Duration::from_secs(60);
/// A reset waits this long behind data that is acknowledged: a guest's program that is still in connect(2)
/// would lose the data.
const RESET_PAUSE: Duration = Duration::from_millis(10);
/// Bytes of memory that a ring has no use for before it gives them back, where memory is scarce.
const DRAINED: usize = 64 << 10;

/// How far a flow is, as its driver sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Phase {
    /// Not connected yet. Nothing can be read or written.
    Connecting,
    /// Connected: at least one direction is open, or has bytes to be read or acknowledged.
    Open,
    /// Both directions ended in order. Release it.
    Finished,
    /// The guest refused, aborted or never answered. Abort the other end, then release it.
    Aborted,
}

/// Why a flow that the driver dialled was aborted.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Abort {
    /// There is no such guest, or no way to it, or its link is gone.
    Unreachable,
    /// It refused with a RST or ICMP port unreachable, or was given up.
    Reset,
    /// It did not answer.
    Silence,
}

/// How far a RST is that comes behind what the guest has still to acknowledge.
#[derive(Clone, Copy, Debug)]
pub(super) enum Reset {
    No,
    Asked,
    /// Until then at most, if the guest acknowledges no more than this.
    Waiting(Instant, usize),
    /// Everything is acknowledged, and it is sent then.
    Settled(Instant),
}

/// What is waited for when the other end has left: that the guest acknowledges more than it has
/// `acknowledged`, or closes its half if it has everything (`None`).
#[derive(Clone, Copy, Debug)]
struct Orphan {
    until: Instant,
    acknowledged: Option<usize>,
}

/// Where the flow's state is kept.
#[derive(Debug)]
pub(super) enum Stage {
    /// The guest's SYN, an IP packet without data, while the driver connects the other end.
    ///
    /// Operations: accept, refuse, retransmitted SYN (ignored), RST (aborts).
    /// Caveats: smoltcp does not know of the flow, so thousands of unanswered SYNs cost a hundred bytes each.
    Held(Box<[u8]>),
    /// The driver dials, and the guest's hardware address is not known yet.
    ///
    /// Operations: resolved, unresolved.
    Resolving,
    /// smoltcp has the connection.
    ///
    /// Operations: everything else.
    /// Caveats: a guest's RST and an exhausted time limit look the same, CLOSED.
    Live(Socket),
    /// Over without ever having been live.
    Dead,
}

/// A TCP connection, at its place in the [calling order](crate#calling-order).
#[derive(Debug)]
pub struct Flow {
    pub(super) guest: SocketAddr,
    pub(super) remote: SocketAddr,
    pub(super) route: Route,
    pub(super) stage: Stage,
    pub(super) window: WindowLimit,
    pub(super) recovery: Recovery,
    /// In the ready list.
    pub(super) queued: bool,
    /// In the list of flows that wait for room at their port.
    pub(super) blocked: bool,
    /// The driver is done with it; it goes when smoltcp is.
    pub(super) released: bool,
    /// The earliest timer that is in the heap.
    pub(super) armed: Option<Instant>,
    /// The last time the guest acknowledged something, while something was unacknowledged.
    pub(super) progress: Option<Instant>,
    /// Bytes moved since the rings' memory was given back, and when the last of them was.
    moved: usize,
    moved_at: Instant,
    /// Bytes written to the ring to the guest since it was empty, and in all; and bytes taken from the other
    /// ring, in all.
    filled: usize,
    sent: usize,
    taken: usize,
    /// Something came into its rings, or left them, since the last flush.
    pub(super) has_moved: bool,
    /// When that was last seen.
    pub(super) stirred_at: Instant,
    /// Bytes of the ring to the guest that have been written since its memory was given back.
    written: usize,
    /// What its driver left in the ring from the guest.
    unread: usize,
    /// How much had been taken of what came from the guest when that ring gave its memory back.
    given_back: usize,
    /// It may use all of the ring to the guest.
    pub(super) deep: bool,
    /// How freely it may, as of its port.
    pub(super) pressure: Pressure,
    /// What its port was charged for.
    pub(super) charged: usize,
    /// In the list of those that hold something.
    pub(super) is_listed: bool,
    /// One past the last byte that the guest sent, in order or not.
    guest_sent: Option<TcpSeqNumber>,
    /// Our half is closed.
    finished: bool,
    /// A RST ended it before both halves were closed, or the guest was given up, or its link is gone.
    aborted: bool,
    /// The SYN to the guest was sent again before its time.
    pub(super) dialled_again: bool,
    /// Bytes of the longest IP packet that the way to the guest takes (RFC 1191), if that is less than the
    /// two ends named.
    pub(super) path_mtu: Option<u16>,
    pub(super) keepalive: Keepalive,
    /// When that is looked at.
    pub(super) asked_at: Option<Instant>,
    /// When smoltcp wants to be asked again, as it said last.
    pub(super) socket_due: Option<Instant>,
    /// Nothing reaches its guest any more.
    cut_off: bool,
    /// The guest had closed its half before that.
    closed_before: bool,
    /// How far the guest's RST is, where the other end was reset.
    pub(super) reset: Reset,
    /// The other end has left.
    orphan: Option<Orphan>,
    /// When it came to TIME-WAIT.
    time_wait: Option<Instant>,
}

impl Flow {
    pub(super) fn new(guest: SocketAddr, remote: SocketAddr, route: Route, stage: Stage) -> Self {
        Self {
            guest,
            remote,
            route,
            stage,
            window: WindowLimit::new(RX_RING),
            recovery: Recovery::new(STEADY),
            queued: false,
            blocked: false,
            released: false,
            armed: None,
            progress: None,
            moved: 0,
            moved_at: Instant::ZERO,
            filled: 0,
            sent: 0,
            taken: 0,
            has_moved: false,
            stirred_at: Instant::ZERO,
            written: 0,
            unread: 0,
            given_back: 0,
            deep: false,
            pressure: Pressure::Low,
            charged: 0,
            is_listed: false,
            guest_sent: None,
            finished: false,
            aborted: false,
            dialled_again: false,
            path_mtu: None,
            keepalive: Keepalive::new(),
            asked_at: None,
            socket_due: None,
            cut_off: false,
            closed_before: false,
            reset: Reset::No,
            orphan: None,
            time_wait: None,
        }
    }

    /// The guest's end.
    pub fn guest(&self) -> SocketAddr {
        self.guest
    }

    /// The other end, by the address that the guest knows.
    pub fn remote(&self) -> SocketAddr {
        self.remote
    }

    /// How far it is.
    pub fn phase(&self) -> Phase {
        match &self.stage {
            Stage::Held(_) | Stage::Resolving => Phase::Connecting,
            Stage::Dead => Phase::Aborted,
            Stage::Live(socket) => match socket.state() {
                state if state.is_time_wait() => Phase::Finished,
                state if state.is_synchronized() => Phase::Open,
                state if !state.is_closed() => Phase::Connecting,
                _ if self.finished && !self.aborted => Phase::Finished,
                _ => Phase::Aborted,
            },
        }
    }

    /// Why it is [`Phase::Aborted`].
    pub fn abort_reason(&self) -> Abort {
        match self.stage {
            _ if self.is_cut_off() => Abort::Unreachable,
            _ if self.aborted => Abort::Reset,
            Stage::Dead => Abort::Unreachable,
            _ => Abort::Silence,
        }
    }

    /// Lends what the guest sent, in order, until there is no more or `take` takes less than it was lent.
    /// `take` says how many bytes it took.
    pub fn recv(&mut self, mut take: impl FnMut(&[u8]) -> usize) {
        let (mut moved, mut unread) = (0, 0);
        while let Some(socket) = self.socket_mut().filter(|socket| socket.can_recv()) {
            let all = socket.recv(|bytes| {
                let taken = take(bytes).min(bytes.len());
                moved += taken;
                (taken, taken == bytes.len())
            });
            unread = socket.recv_queue();
            if all != Some(true) {
                break;
            }
        }
        self.unread = unread;
        self.moved += moved;
        self.has_moved |= moved > 0;
        self.taken = self.taken.wrapping_add(moved);
    }

    /// Lends room for bytes to the guest, until it is full or `fill` fills less than it was lent.
    /// `fill` says how many bytes it filled.
    pub fn send(&mut self, mut fill: impl FnMut(&mut [u8]) -> usize) {
        while let room @ 1.. = self.send_room() {
            let Some(socket) = self.socket_mut() else { break };
            let was_empty = socket.send_queue() == 0;
            let sent = socket.send(|space| {
                let len = space.len().min(room);
                let filled = space.get_mut(..len).map_or(0, &mut fill).min(len);
                (filled, (filled, filled == len))
            });
            let Some((moved, all)) = sent else { break };
            self.filled = if was_empty { moved } else { self.filled + moved };
            self.moved += moved;
            self.has_moved = true;
            self.sent = self.sent.wrapping_add(moved);
            if !all {
                break;
            }
        }
    }

    /// Bytes that the guest has acknowledged.
    fn acknowledged(&self) -> usize {
        self.sent.wrapping_sub(self.socket().map_or(0, Socket::send_queue))
    }

    /// What changes when the guest takes something, or something of the guest's is taken.
    pub fn progress(&self) -> usize {
        self.acknowledged().wrapping_add(self.taken)
    }

    /// Bytes that may be written to the ring to the guest.
    fn send_room(&self) -> usize {
        let Some(socket) = self.socket().filter(|socket| socket.can_send()) else { return 0 };
        let allowance = self.pressure.allowance();
        match socket.send_queue() {
            0 => allowance,
            _ if !self.deep || self.pressure != Pressure::Low => allowance.saturating_sub(self.filled),
            held if self.filled - held >= STEADY && self.recovery.is_near() => TX_RING - held,
            held => STEADY.saturating_sub(held),
        }
    }

    /// Bytes of memory that its rings take: what has been written to them since they gave it back. smoltcp
    /// goes round the ring from the guest.
    #[inline]
    pub(super) fn note_held(&mut self) -> usize {
        self.written = self.filled.min(TX_RING).max(self.written);
        self.received() + self.written
    }

    /// Of that, the ring from the guest.
    #[inline]
    fn received(&self) -> usize {
        self.taken.wrapping_add(self.unread).wrapping_sub(self.given_back).min(RX_RING)
    }

    /// Whether the ring from the guest takes much more memory than what is in it.
    pub(super) fn is_littered(&self) -> bool {
        let queue = self.socket().map_or(0, Socket::recv_queue);
        self.received() >= queue + DRAINED
    }

    /// The memory of that ring that holds nothing: neither bytes, nor what came out of order, nor what may
    /// come. In two parts, since it is a ring.
    pub(super) fn litter(&mut self) -> [Range<usize>; 2] {
        let is_in_order = self.is_in_order();
        let ahead = self.window.offered().max(self.window.ahead(self.guest_sent));
        let Some(socket) = self.socket_mut() else { return [0..0, 0..0] };
        let (len, queue) = (RX_RING, socket.recv_queue());
        let start = match socket.recv_position() {
            Some(start) => start,
            None if is_in_order => return [0..len, 0..0],
            None => return [0..0, 0..0],
        };
        match start + queue + ahead {
            end if end <= len => [end..len, 0..start],
            end if end < start + len => [end - len..start, 0..0],
            _ => [0..0, 0..0],
        }
    }

    /// Memory of that ring, which is given back.
    pub(super) fn littered_memory(&mut self, range: Range<usize>) -> Option<IdleMemory<'_>> {
        self.socket_mut()?.idle_memory(0, range)
    }

    /// Whether all that the guest sent came in order, as far as is known. What did not is in the ring, though
    /// the ring is empty.
    fn is_in_order(&self) -> bool {
        self.guest_sent.is_none_or(|end| self.window.acknowledged().is_some_and(|ack| ack >= end))
    }

    /// The ring from the guest gives back the memory that holds nothing.
    pub(super) fn forget_received(&mut self) {
        self.given_back = self.taken;
    }

    /// So do both.
    pub(super) fn forget_written(&mut self) {
        self.forget_received();
        (self.written, self.filled) = (0, 0);
    }

    /// What the guest sent is not wanted any more.
    pub(super) fn discard(&mut self) {
        self.recv(<[u8]>::len);
    }

    /// Whether it has written what every flow may, and goes on only when the guest has taken it all.
    pub(super) fn wants_depth(&self) -> bool {
        !self.deep && self.filled >= SHALLOW
    }

    /// Whether there are bytes from the guest to be read.
    pub fn can_recv(&self) -> bool {
        self.socket().is_some_and(Socket::can_recv)
    }

    /// Whether there is room for bytes to the guest.
    pub fn can_send(&self) -> bool {
        self.send_room() > 0
    }

    /// Whether the guest closed its half, and everything before that has been read. Also of a flow that was
    /// aborted after that.
    pub fn recv_finished(&self) -> bool {
        self.socket().is_some_and(|socket| {
            let closed = match socket.state() {
                state if state.is_closed() => self.closed_before || self.finished && !self.aborted,
                state => state.has_received_fin(),
            };
            closed && !socket.can_recv()
        })
    }

    /// Closes our half, once everything written has been sent.
    pub fn finish(&mut self) {
        self.finished = true;
        if let Some(socket) = self.socket_mut() {
            socket.close();
        }
    }

    /// Whether [`finish`](Self::finish) was called.
    pub fn finished(&self) -> bool {
        self.finished
    }

    pub(super) fn socket(&self) -> Option<&Socket> {
        match &self.stage {
            Stage::Live(socket) => Some(socket),
            Stage::Held(_) | Stage::Resolving | Stage::Dead => None,
        }
    }

    fn socket_mut(&mut self) -> Option<&mut Socket> {
        match &mut self.stage {
            Stage::Live(socket) => Some(socket),
            Stage::Held(_) | Stage::Resolving | Stage::Dead => None,
        }
    }

    /// The state of a live flow.
    #[inline]
    pub(super) fn state(&self) -> Option<State> {
        self.socket().map(Socket::state)
    }

    /// What one call into smoltcp takes of a live flow: the device, and its socket.
    pub(super) fn device<'a, S>(
        &'a mut self,
        packet: Option<&'a [u8]>,
        sink: &'a mut S,
        mtu: usize,
        now: Instant,
        scratch: &'a mut Vec<u8>,
    ) -> Option<(OneCall<'a, S>, &'a mut Socket)> {
        let Stage::Live(socket) = &mut self.stage else { return None };
        let (route, window, recovery) = (self.route, &mut self.window, &mut self.recovery);
        let device = OneCall { packet, sink, route, mtu, window, recovery, now, scratch };
        Some((device, socket))
    }

    /// Makes the flow live as the listener that the held SYN is then given to.
    pub(super) fn listen(&mut self, mut socket: Socket) {
        let listens = socket.listen(self.remote);
        self.stage = if listens { Stage::Live(socket) } else { Stage::Dead };
    }

    /// Makes the flow live as one that dials the guest.
    pub(super) fn connect(&mut self, mut socket: Socket, interface: &mut Interface) {
        let connects = socket.connect(interface, self.guest, self.remote);
        self.stage = if connects { Stage::Live(socket) } else { Stage::Dead };
    }

    /// The flow's socket, if another flow may have it: this one ended in order, and little was written to its
    /// rings.
    #[inline(always)]
    pub(super) fn into_pool(self) -> Option<Socket> {
        let in_order = self.phase() == Phase::Finished && self.moved <= POOL_BYTES;
        match self.stage {
            Stage::Live(socket) if in_order => Some(socket),
            _ => None,
        }
    }

    /// Ends the flow with a RST, which leaves with the next flush. What the guest sent can still be read.
    pub(super) fn abort(&mut self) {
        self.aborted = true;
        match self.socket_mut() {
            Some(socket) => {
                let closed = socket.state().has_received_fin();
                socket.abort();
                self.closed_before |= closed;
            }
            None => self.stage = Stage::Dead,
        }
    }

    /// The other end has left, and hears nothing of what the guest sends. It may still have something to
    /// deliver. A released flow is forgotten if the guest has everything and does not close its half within a
    /// minute (Linux's `tcp_fin_timeout`). A flow whose guest takes nothing more for a quarter of an hour is
    /// [`Phase::Aborted`].
    pub fn leave(&mut self) {
        self.orphan.get_or_insert(Orphan { until: Instant::ZERO, acknowledged: Some(usize::MAX) });
    }

    /// Whether it waits for the guest: to take something, or to close its half.
    pub(super) fn waits_for_guest(&self) -> bool {
        let is_about_to_end = || {
            self.finished
                && self.recv_finished()
                && self.socket().is_none_or(|socket| socket.send_queue() == 0)
        };
        self.phase() == Phase::Open && !is_about_to_end()
    }

    /// Whether the guest has everything, and only its end is missing.
    pub(super) fn has_delivered(&self) -> bool {
        self.state().is_some_and(State::is_fin_wait_2)
    }

    /// Whether its other end was reset, or has left.
    pub(super) fn is_ending(&self) -> bool {
        self.orphan.is_some() || !matches!(self.reset, Reset::No)
    }

    /// Until when a guest is waited for whose other end has left. Without room it is the port that delivers
    /// nothing.
    pub(super) fn patience(&mut self, room: bool, now: Instant) -> Option<Instant> {
        let Orphan { until, acknowledged: before } = self.orphan.filter(|_| self.phase() == Phase::Open)?;
        let acknowledged = (!self.has_delivered()).then(|| self.acknowledged());
        if acknowledged == before && (until > now || room || acknowledged.is_none()) {
            return Some(until);
        }
        let until = now + if acknowledged.is_none() { FIN_LIMIT } else { GIVE_UP };
        self.orphan = Some(Orphan { until, acknowledged });
        Some(until)
    }

    /// Ends the flow of a guest that nothing reaches any more.
    pub(super) fn cut_off(&mut self) {
        match self.stage {
            Stage::Live(..) => self.abort(),
            _ => self.stage = Stage::Dead,
        }
        self.route = Route::NOWHERE;
        self.cut_off = true;
    }

    /// Whether the guest, which has dialled, is not yet connected.
    pub(super) fn is_opening(&self) -> bool {
        match self.stage {
            Stage::Held(_) => true,
            Stage::Live(..) => self.phase() == Phase::Connecting,
            Stage::Resolving | Stage::Dead => false,
        }
    }

    /// Whether nothing reaches its guest any more.
    pub(super) fn is_cut_off(&self) -> bool {
        self.cut_off
    }

    /// When the guest's time is over to take what it is owed, if the other end has left or was reset.
    pub(super) fn ends_at(&self) -> Option<Instant> {
        match (self.reset, self.orphan) {
            (Reset::Waiting(at, _) | Reset::Settled(at), _) if !self.aborted => Some(at),
            (_, Some(orphan)) if self.phase() == Phase::Open => Some(orphan.until),
            _ => None,
        }
    }

    /// Ends a flow that is to be reset, once the guest has acknowledged everything. What it sends meanwhile
    /// is for nobody, and is taken so that it gets on with reading.
    pub(super) fn reset_when_settled(&mut self, now: Instant) {
        if self.released && self.orphan.is_some() && self.can_recv() && matches!(self.reset, Reset::No) {
            self.reset = Reset::Asked;
        }
        let acknowledged = self.acknowledged();
        let at = match self.reset {
            Reset::No => return,
            Reset::Settled(until) => until,
            Reset::Waiting(until, before) if before == acknowledged => until,
            Reset::Asked | Reset::Waiting(..) => now + RESET_LIMIT,
        };
        self.recv(<[u8]>::len);
        let is_settled = self
            .socket()
            .is_none_or(|socket| !socket.state().awaits_ack_of_fin() && socket.send_queue() == 0);
        self.reset = match self.reset {
            Reset::Settled(_) => Reset::Settled(at),
            _ if is_settled && self.filled == 0 => Reset::Settled(now),
            _ if is_settled => Reset::Settled(now + RESET_PAUSE),
            _ => Reset::Waiting(at, acknowledged),
        };
        match self.reset {
            Reset::Waiting(at, _) | Reset::Settled(at) if at > now => {}
            _ => self.abort(),
        }
    }

    /// Whether smoltcp has nothing more to send for it.
    pub(super) fn is_over(&self, now: Instant) -> bool {
        match self.socket() {
            // Sooner than that it owes the acknowledgement of the guest's FIN.
            Some(socket) if socket.state().is_time_wait() => {
                self.socket_due.is_none_or(|at| at > now + ACK_DELAY)
            }
            Some(socket) => socket.state().is_closed() && !socket.owes_reset(),
            None => matches!(self.stage, Stage::Dead),
        }
    }

    /// Ends the flow without a RST: the guest knows of no connection.
    pub(super) fn refuse(&mut self, by_guest: bool) {
        self.aborted = by_guest;
        self.stage = Stage::Dead;
    }

    /// Takes note of what a segment led to; `rst` says that it was a RST.
    pub(super) fn after_segment(&mut self, before: State, rst: bool) {
        let Some(socket) = self.socket_mut() else { return };
        let state = socket.state();
        if state.is_listen() {
            // By a RST in SYN-RECEIVED. smoltcp would take the next SYN, which is another connection.
            self.stage = Stage::Dead;
        } else if state.is_closed() {
            if rst && !before.has_ended() {
                self.aborted = true;
                self.closed_before = before.has_received_fin();
            }
        } else if !state.is_syn_sent() {
            socket.end_connect_limit();
        }
    }

    /// Whether it is in TIME-WAIT with bytes that the driver has not read. smoltcp would throw them away when
    /// that ends, and is not told of the time any more.
    pub(super) fn is_lingering(&mut self, now: Instant) -> bool {
        let unread = self.socket().is_some_and(|socket| socket.state().is_time_wait() && socket.can_recv());
        unread && now > *self.time_wait.get_or_insert(now) + LINGER
    }

    /// Whether `segment` only says once more that our FIN, and nothing else, is unacknowledged. By the third
    /// of those smoltcp would retransmit data at once, find none, and never send the FIN again.
    pub(super) fn is_repeated_ack(&self, segment: &TcpPacket<&[u8]>) -> bool {
        let fin_sent = self
            .socket()
            .is_some_and(|socket| socket.state().awaits_ack_of_fin() && socket.send_queue() == 0);
        let bare = segment.ack()
            && !segment.syn()
            && !segment.fin()
            && !segment.rst()
            && segment.payload().is_empty();
        fin_sent && bare && self.window.is_repeated(segment.seq_number(), segment.ack_number())
    }

    /// Whether the guest has acknowledged nothing for too long. Without room it is the port that makes no
    /// progress, as while the virtual machine is paused.
    pub(super) fn is_given_up(&mut self, has_room: bool, now: Instant) -> bool {
        let Some(limit) = self.give_up_after().filter(|_| has_room) else {
            self.progress = None;
            return false;
        };
        now > *self.progress.get_or_insert(now) + limit
    }

    /// How long to wait for the acknowledgement that is missing, if one is.
    fn give_up_after(&self) -> Option<Duration> {
        let socket = self.socket()?;
        match socket.state() {
            state if state.is_syn_received() => Some(GIVE_UP_SYN),
            state if state.awaits_ack_of_fin() => Some(GIVE_UP),
            state if state.is_closed() => None,
            _ => (socket.send_queue() > 0).then_some(GIVE_UP),
        }
    }

    /// When to ask a silent guest whether it still knows of the connection, if nothing else would find out.
    pub(super) fn keep_alive_at(&self) -> Option<Instant> {
        let socket = self.socket()?;
        let state = socket.state();
        let is_open = state.is_synchronized() && !state.is_time_wait() && !state.awaits_ack_of_fin();
        (is_open && socket.send_queue() == 0).then(|| self.keepalive.at())
    }

    /// Whether the guest should hear that there is room, and smoltcp will not say so.
    pub(super) fn wants_window_update(&self) -> bool {
        self.socket().is_some_and(|socket| {
            socket.state().receives_text() && self.window.wants_update(socket.recv_queue())
        })
    }

    /// Whether its port has room for its longest frame.
    #[inline(always)]
    pub(super) fn has_room(&self, sink: &impl FrameSink) -> bool {
        sink.has_room(self.route.port, ether::HEADER_LEN + self.window.packet())
    }

    /// When to ask the guest whether it takes anything again, if there is anything to send. smoltcp would
    /// ask, but its timer gets longer each time that it repeats something.
    pub(super) fn persist_at(&self) -> Option<Instant> {
        let at = self.recovery.persist_at()?;
        self.socket().is_some_and(|socket| socket.send_queue() > 0).then_some(at)
    }

    /// Whether smoltcp can be made to repeat what was sent.
    pub(super) fn can_replay(&self) -> bool {
        self.state().is_some_and(State::may_retransmit)
    }

    /// Waits for room at its port, which has some or none.
    pub(super) fn block(&mut self, id: FlowId, blocked: &mut Blocked, room: bool) {
        if !core::mem::replace(&mut self.blocked, true) {
            blocked.push(self.route.port, id, room);
        }
    }

    /// Takes note of a segment with data that ends before `end`, at `now`.
    pub(super) fn note_data(&mut self, end: TcpSeqNumber, now: Instant) {
        self.guest_sent = Some(self.guest_sent.map_or(end, |before| before.max(end)));
        self.has_moved = true;
        self.moved_at = now;
    }

    /// Takes note of bytes that are on their way to the guest.
    pub(super) fn note_sending(&mut self, now: Instant) {
        if self.socket().is_some_and(|socket| socket.send_queue() > 0) {
            self.moved_at = now;
        }
    }

    /// When its rings will have been empty for long enough to give their memory back, if they are empty and
    /// hold any.
    pub(super) fn idle_at(&self) -> Option<Instant> {
        let socket = self.socket()?;
        let empty = socket.recv_queue() == 0 && socket.send_queue() == 0;
        (self.moved > 0 && empty && self.is_in_order()).then(|| self.moved_at + IDLE)
    }

    /// The memory of the ring with this number, of a flow that is idle. The last one ends the idleness.
    pub(super) fn idle_memory(&mut self, ring: usize) -> Option<IdleMemory<'_>> {
        if ring + 1 == RINGS {
            self.moved = 0;
        }
        self.socket_mut()?.idle_memory(ring, 0..usize::MAX)
    }
}
