//! smoltcp's socket and interface: no other file of `tcp/` names them. Owns: what smoltcp is asked and told,
//! in the words of RFC 9293. May not: know of flows. Read next: `device.rs`, what smoltcp sends through;
//! `flow.rs`, whose socket it is.

use core::net::SocketAddr;
use core::ops::Range;
use core::time::Duration;

use smoltcp::iface::{
    self, Config, PollIngressSingleResult, PollResult, SocketHandle, SocketSet, SocketStorage,
};
use smoltcp::socket::tcp;
use smoltcp::wire::{HardwareAddress, IpEndpoint, IpListenEndpoint, TcpSeqNumber};

use super::device::{CapabilitiesOnly, OneCall};
use super::sequence;
use crate::buffer::{IdleMemory, RingMemory};
use crate::{FrameSink, Instant};

/// Bytes of the ring from the guest, and of the ring to it. Anonymous memory: a page costs nothing until it
/// is used. What lies in the second keeps everybody on the way busy at once; a quarter of it costs one flow a
/// third of its speed (docs/performance.md).
pub(super) const RX_RING: usize = 512 << 10;
pub(super) const TX_RING: usize = 2 << 20;
/// The ring from the guest and the ring to it.
pub(super) const RINGS: usize = 2;
/// An answer that comes within this time carries the acknowledgement of what it answers. Not longer: a guest
/// whose small writes wait for it (RFC 896) waits this long.
pub(super) const ACK_DELAY: Duration = Duration::from_millis(1);
/// A connection that the driver dials is given up after this long.
const CONNECT_LIMIT: Duration = Duration::from_secs(10);
/// Longer than smoltcp's retransmission timer ever runs, which is a minute.
const PAST_TIMERS: Duration = Duration::from_secs(100);

/// A connection's state (RFC 9293 3.3.2), by what holds in it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct State(tcp::State);

impl State {
    pub(super) fn is_closed(self) -> bool {
        self.0 == tcp::State::Closed
    }

    pub(super) fn is_listen(self) -> bool {
        self.0 == tcp::State::Listen
    }

    pub(super) fn is_syn_sent(self) -> bool {
        self.0 == tcp::State::SynSent
    }

    pub(super) fn is_syn_received(self) -> bool {
        self.0 == tcp::State::SynReceived
    }

    pub(super) fn is_fin_wait_1(self) -> bool {
        self.0 == tcp::State::FinWait1
    }

    pub(super) fn is_fin_wait_2(self) -> bool {
        self.0 == tcp::State::FinWait2
    }

    pub(super) fn is_time_wait(self) -> bool {
        self.0 == tcp::State::TimeWait
    }

    /// Whether nothing more can come of it: CLOSED or TIME-WAIT.
    pub(super) fn has_ended(self) -> bool {
        self.is_closed() || self.is_time_wait()
    }

    /// Whether both ends know of the connection: ESTABLISHED and the states after it.
    pub(super) fn is_synchronized(self) -> bool {
        use tcp::State::{Closed, Listen, SynReceived, SynSent};
        !matches!(self.0, Closed | Listen | SynSent | SynReceived)
    }

    /// Whether the guest's FIN has come.
    pub(super) fn has_received_fin(self) -> bool {
        use tcp::State::{CloseWait, Closing, LastAck, TimeWait};
        matches!(self.0, CloseWait | Closing | LastAck | TimeWait)
    }

    /// Whether our half is closed, and the guest has not acknowledged our FIN.
    pub(super) fn awaits_ack_of_fin(self) -> bool {
        use tcp::State::{Closing, FinWait1, LastAck};
        matches!(self.0, FinWait1 | Closing | LastAck)
    }

    /// Whether text of a segment is received (RFC 9293 3.10.7.4): the guest's half is open.
    pub(super) fn receives_text(self) -> bool {
        use tcp::State::{Established, FinWait1, FinWait2};
        matches!(self.0, Established | FinWait1 | FinWait2)
    }

    /// Whether data or a FIN of ours may be unacknowledged.
    pub(super) fn may_retransmit(self) -> bool {
        use tcp::State::{CloseWait, Established};
        matches!(self.0, Established | CloseWait) || self.awaits_ack_of_fin()
    }
}

/// A socket with its rings. It is alone in a set, so that finding it there costs nothing however many flows
/// there are.
///
/// A new one costs two mappings and two page faults, a tenth of a short connection: flows that ended leave
/// theirs to others.
#[derive(Debug)]
pub(super) struct Socket {
    set: SocketSet<'static>,
    handle: SocketHandle,
    /// Where the two rings are.
    memory: [RingMemory; RINGS],
}

impl Socket {
    pub(super) fn new() -> Self {
        let ((rx, rx_memory), (tx, tx_memory)) = (RingMemory::new(RX_RING), RingMemory::new(TX_RING));
        let mut set = SocketSet::new(vec![SocketStorage::EMPTY]);
        let handle = set.add(tcp::Socket::new(tcp::SocketBuffer::new(rx), tcp::SocketBuffer::new(tx)));
        Self { set, handle, memory: [rx_memory, tx_memory] }
    }

    #[inline]
    fn get(&self) -> &tcp::Socket<'static> {
        self.set.get(self.handle)
    }

    #[inline]
    fn get_mut(&mut self) -> &mut tcp::Socket<'static> {
        self.set.get_mut(self.handle)
    }

    /// The socket, closed, with its settings as for any flow. What it held is forgotten when it listens or
    /// connects.
    fn prepare(&mut self) -> &mut tcp::Socket<'static> {
        let socket = self.get_mut();
        socket.abort();
        socket.set_timeout(None);
        socket.set_nagle_enabled(false);
        socket.set_ack_delay(Some(ACK_DELAY.into()));
        socket
    }

    /// Passive OPEN: waits for a SYN to `local`. Says whether it does.
    pub(super) fn listen(&mut self, local: SocketAddr) -> bool {
        let local = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        self.prepare().listen(local).is_ok()
    }

    /// Active OPEN, from `local` to `guest`, with the number that `interface` was made for. Says whether that
    /// may be.
    pub(super) fn connect(
        &mut self,
        interface: &mut Interface,
        guest: SocketAddr,
        local: SocketAddr,
    ) -> bool {
        let socket = self.prepare();
        socket.set_timeout(Some(CONNECT_LIMIT.into()));
        // Servers leave RFC 896 on more often than clients do: sshd does for forwarded sockets.
        socket.set_ack_delay(None);
        let to = IpEndpoint::new(guest.ip().into(), guest.port());
        let from = IpListenEndpoint { addr: Some(local.ip().into()), port: local.port() };
        socket.connect(interface.0.context(), to, from).is_ok()
    }

    /// The connection is open: the limit was for connecting, and smoltcp would end an idle connection by it.
    #[inline]
    pub(super) fn end_connect_limit(&mut self) {
        self.get_mut().set_timeout(None);
    }

    #[inline]
    pub(super) fn state(&self) -> State {
        State(self.get().state())
    }

    /// CLOSE: a FIN follows what is queued.
    pub(super) fn close(&mut self) {
        self.get_mut().close();
    }

    /// ABORT: a RST leaves when it is sent next. What the guest sent can still be read.
    pub(super) fn abort(&mut self) {
        self.get_mut().abort();
    }

    /// Whether it is aborted, and the RST has not left yet.
    pub(super) fn owes_reset(&self) -> bool {
        self.state().is_closed() && self.get().remote_endpoint().is_some()
    }

    #[inline]
    pub(super) fn can_recv(&self) -> bool {
        self.get().can_recv()
    }

    /// Bytes from the guest, in order, that have not been read.
    #[inline]
    pub(super) fn recv_queue(&self) -> usize {
        self.get().recv_queue()
    }

    /// Lends the next bytes from the guest, as many as lie together. `take` says how many it took.
    #[inline]
    pub(super) fn recv<R>(&mut self, take: impl FnOnce(&[u8]) -> (usize, R)) -> Option<R> {
        self.get_mut().recv(|bytes| take(bytes)).ok()
    }

    /// Where in its ring the next byte from the guest is, if there is one.
    pub(super) fn recv_position(&mut self) -> Option<usize> {
        let Self { set, handle, memory: [ring, _] } = self;
        let bytes = set.get_mut::<tcp::Socket<'_>>(*handle).peek(1).ok()?;
        (!bytes.is_empty()).then(|| ring.position(bytes))
    }

    #[inline]
    pub(super) fn can_send(&self) -> bool {
        self.get().can_send()
    }

    /// Bytes to the guest that it has not acknowledged.
    #[inline]
    pub(super) fn send_queue(&self) -> usize {
        self.get().send_queue()
    }

    /// Lends room for bytes to the guest, as much as lies together. `fill` says how many it filled.
    #[inline]
    pub(super) fn send<R>(&mut self, fill: impl FnOnce(&mut [u8]) -> (usize, R)) -> Option<R> {
        self.get_mut().send(fill).ok()
    }

    /// Memory of one of its rings, in which there is nothing.
    pub(super) fn idle_memory(&mut self, ring: usize, range: Range<usize>) -> Option<IdleMemory<'_>> {
        self.memory.get_mut(ring)?.idle(range)
    }
}

/// smoltcp's interface. It holds no state of a connection: one serves every flow.
pub(super) struct Interface(iface::Interface);

impl Interface {
    /// An interface with packets of `mtu` bytes at most. A connection that it opens first begins with
    /// `number`.
    pub(super) fn new(mtu: usize, number: TcpSeqNumber, now: Instant) -> Self {
        let mut config = Config::new(HardwareAddress::Ip);
        config.random_seed = sequence::seed(number);
        let mut interface = iface::Interface::new(config, &mut CapabilitiesOnly { mtu }, now.to_smoltcp());
        interface.set_any_ip(true);
        Self(interface)
    }

    /// This one, but where the way to the guest takes less, one that makes no longer packets, in `own`.
    #[inline]
    pub(super) fn for_path<'a>(
        &'a mut self,
        path_mtu: Option<u16>,
        own: &'a mut Option<Self>,
        now: Instant,
    ) -> &'a mut Self {
        match path_mtu {
            None => self,
            Some(mtu) => own.insert(Self::new(usize::from(mtu), TcpSeqNumber(0), now)),
        }
    }

    /// Gives the device's packet to the socket.
    #[inline]
    pub(super) fn receive(
        &mut self,
        device: &mut OneCall<'_, impl FrameSink>,
        socket: &mut Socket,
        now: Instant,
    ) {
        let _: PollIngressSingleResult =
            self.0.poll_ingress_single(now.to_smoltcp(), device, &mut socket.set);
    }

    /// Answers the device's packet, which no socket takes, with a RST (RFC 9293 3.10.7.1).
    pub(super) fn reset(&mut self, device: &mut OneCall<'_, impl FrameSink>, now: Instant) {
        let mut nobody = SocketSet::new(Vec::new());
        let _: PollIngressSingleResult = self.0.poll_ingress_single(now.to_smoltcp(), device, &mut nobody);
    }

    /// Sends one segment, if the socket has one to send. Says whether it had.
    #[inline]
    pub(super) fn send(
        &mut self,
        device: &mut OneCall<'_, impl FrameSink>,
        socket: &mut Socket,
        now: Instant,
    ) -> bool {
        self.0.poll_egress(now.to_smoltcp(), device, &mut socket.set) == PollResult::SocketStateChanged
    }

    /// Sends now what the socket would send when its timer runs out: a probe of a closed window, or a SYN
    /// once more. From then on it waits from there.
    pub(super) fn send_early(
        &mut self,
        device: &mut OneCall<'_, impl FrameSink>,
        socket: &mut Socket,
        now: Instant,
    ) {
        let at = self.due(socket, now).unwrap_or(now);
        if device.has_room() {
            self.send(device, socket, at);
        }
    }

    /// The retransmission timer runs out: the socket goes back to the first byte that is not acknowledged. It
    /// sends nothing yet, and starts its timer when it does.
    pub(super) fn rewind(&mut self, mtu: usize, socket: &mut Socket, now: Instant) {
        // A device that takes nothing.
        let mut nothing = CapabilitiesOnly { mtu };
        let past = (now + PAST_TIMERS).to_smoltcp();
        let _: PollResult = self.0.poll_egress(past, &mut nothing, &mut socket.set);
    }

    /// When the socket wants to send something, if at all.
    #[inline]
    pub(super) fn due(&mut self, socket: &Socket, now: Instant) -> Option<Instant> {
        self.0.poll_at(now.to_smoltcp(), &socket.set).map(Instant::from_smoltcp)
    }
}
