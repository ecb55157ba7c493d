//! What a flow has to send, once in each turn of the driver: recover, emit, arm. Owns: how much of it is a
//! turn. May not: know why the flow is ready. Read next: `replay.rs`, what is sent again; `device.rs`, the
//! way out; `timers.rs`.

use super::ack::{acknowledge, keep_alive};
use super::flow::Stage;
use super::memory::Plenty;
use super::timers::FlowTimer;
use super::{FlowId, Table};
use crate::{FrameSink, Instant, Mac};

/// What one flow sends before another's turn: bytes, and at least these segments, since few long ones cost as
/// much as many short ones.
const TURN: usize = 128 << 10;
const TURN_SEGMENTS: usize = 8;

/// What came of sending.
pub(super) struct Sent {
    /// The flow may have more to send, in another turn.
    pub(super) is_turn_over: bool,
    /// Its port has room for another frame.
    pub(super) has_room: bool,
}

impl Table {
    /// Sends what the flow has to send, up to its turn, and arms its timer. `seen` says when the machine with
    /// an address last sent a frame.
    pub(crate) fn flush(
        &mut self,
        id: FlowId,
        seen: impl FnOnce(Mac) -> Option<Instant>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) {
        if let Some(port) = self.crowded.take() {
            self.make_room(port, now);
        }
        if !self.is_live(id, now) || !self.ask(id, seen, now, sink) {
            return;
        }
        self.account(id, now);
        if !self.is_awaited(id, now, sink) {
            return;
        }
        self.recover(id, now, sink);
        if let Some(sent) = self.emit(id, now, sink) {
            self.arm(id, &sent, now);
        }
    }

    /// Whether the flow may have something to send. If its driver knows that it has not, it goes.
    #[inline(always)]
    fn is_live(&mut self, id: FlowId, now: Instant) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        if flow.is_lingering(now) {
            return false;
        }
        if matches!(flow.stage, Stage::Live(..)) && !flow.is_cut_off() {
            return true;
        }
        if flow.released {
            self.end(id);
        }
        false
    }

    /// Asks a silent guest whether it still knows of the connection (RFC 9293 3.8.4), if it is time. Says
    /// whether the flow goes on; if not, the guest is given up.
    #[inline(always)]
    fn ask(
        &mut self,
        id: FlowId,
        seen: impl FnOnce(Mac) -> Option<Instant>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        if !flow.keepalive.is_silent(now) || !flow.is_due(FlowTimer::KeepAlive, now) {
            return true;
        }
        if !flow.has_room(sink) {
            flow.block(id, &mut self.blocked, false);
        } else if flow.keepalive.ask(seen(flow.route.to), now) {
            self.abort(id);
            return false;
        } else {
            keep_alive(sink, flow);
        }
        true
    }

    /// Takes note of what the flow's rings hold, and so how freely it may fill them and how much its guest is
    /// offered.
    #[inline(always)]
    fn account(&mut self, id: FlowId, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(budget) = self.budgets.get_mut(flow.route.port) else { return };
        if core::mem::take(&mut flow.has_moved) {
            budget.held.note(id, flow, &mut self.held, now);
        }
        flow.plenty = budget.held.plenty(self.held);
        if flow.plenty != Plenty::Ample {
            if flow.is_littered() {
                self.littered.push_back((id, 0));
            }
            if budget.held.is_too_much() {
                self.crowded = Some(flow.route.port);
            }
        }
        budget.window.share(&mut flow.window, flow.plenty, now);
    }

    /// Whether the flow goes on. One whose other end was reset, or has left, ends when its guest has
    /// everything, or has had its time.
    #[inline(always)]
    fn is_awaited(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) -> bool {
        let Some(flow) = self.flows.get_mut(id) else { return false };
        if !flow.is_ending() {
            return true;
        }
        let room = flow.has_room(sink);
        if flow.patience(room, now).is_none_or(|until| until > now) {
            flow.reset_when_settled(now);
            return true;
        }
        // What the guest says later is answered with a RST. One that comes now would be for a connection that
        // it may still accept.
        if flow.released && flow.has_delivered() {
            self.end(id);
        } else {
            self.abort(id);
        }
        false
    }

    /// What the guest has lost is sent again (RFC 6298, RFC 8985), and a closed window is probed (RFC 9293
    /// 3.8.6.1).
    #[inline(always)]
    fn recover(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        if flow.recovery.is_idle() {
            if flow.is_due(FlowTimer::Persist, now) {
                self.hurry(id, now, sink);
            }
            return;
        }
        flow.recovery.set_room(flow.has_room(sink), now);
        if flow.is_due(FlowTimer::Loss, now) {
            flow.recovery.handle_timeout(now);
        }
        if flow.recovery.wants_replay() && flow.can_replay() {
            self.replay(id, now, sink);
        }
    }

    /// smoltcp sends, up to a turn, and the guest hears of room in the ring from it. The result is `None` if
    /// there is nothing to wait for then.
    #[inline(always)]
    fn emit(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) -> Option<Sent> {
        let mut flow = self.flows.get_mut(id)?;
        if flow.wants_depth() {
            self.deepen(id, now);
            flow = self.flows.get_mut(id)?;
        }
        let (mtu, mut own) = (flow.window.packet(), None);
        let interface = self.interface.for_path(flow.path_mtu, &mut own, now);
        let (mut device, socket) = flow.device(None, sink, mtu, now, &mut self.scratch)?;
        let had_ended = socket.state().has_ended();
        let mut segments = (TURN / mtu).max(TURN_SEGMENTS);
        // Without room smoltcp would forget a fast retransmission that it cannot send, and wait for ever.
        while segments > 0 && device.has_room() && interface.send(&mut device, socket, now) {
            segments -= 1;
        }
        let due = interface.due(socket, now);
        let timed_out = !had_ended && socket.state().has_ended();
        flow.socket_due = due;
        let mut has_room = flow.has_room(sink);
        if flow.wants_window_update() {
            if has_room {
                acknowledge(sink, flow);
                has_room = flow.has_room(sink);
            } else {
                flow.block(id, &mut self.blocked, false);
            }
        }
        if flow.released && flow.is_over(now) {
            self.end(id);
            return None;
        }
        if timed_out {
            // The driver does not know yet.
            self.mark_ready(id);
            return None;
        }
        if flow.is_given_up(has_room, now) {
            self.abort(id);
            return None;
        }
        flow.note_sending(now);
        Some(Sent { is_turn_over: segments == 0, has_room })
    }

    /// Resets the flow, in its next turn.
    fn abort(&mut self, id: FlowId) {
        if let Some(flow) = self.flows.get_mut(id) {
            flow.abort();
            self.mark_ready(id);
        }
    }
}
