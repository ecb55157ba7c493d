//! What a flow has to send, once in each turn of the driver: recover, emit, arm. Owns: how much of it is a
//! turn. May not: know why the flow is ready. Read next: `replay.rs`, what is sent again; `device.rs`, the
//! way out; `timers.rs`.

use super::ack::{acknowledge, keep_alive};
use super::blocked::Blocked;
use super::flow::Stage;
use super::memory::Pressure;
use super::timers::FlowTimer;
use super::{Budgets, Flow, FlowId, Table};
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

/// What becomes of a flow in its turn.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Step {
    /// It sends what it has.
    Send,
    /// There is nothing to do.
    Rest,
    /// It goes: its driver knows that it is over.
    End,
    /// It is reset, and its driver is told.
    Abort,
}

impl Flow {
    /// Whether the flow may have something to send.
    #[inline(always)]
    fn live_step(&mut self, now: Instant) -> Step {
        if self.is_lingering(now) {
            Step::Rest
        } else if matches!(self.stage, Stage::Live(..)) && !self.is_cut_off() {
            Step::Send
        } else if self.released {
            Step::End
        } else {
            Step::Rest
        }
    }

    /// Whether the flow goes on. One whose other end was reset, or has left, ends when its guest has
    /// everything, or has had its time.
    #[inline(always)]
    fn ending_step(&mut self, now: Instant, sink: &mut impl FrameSink) -> Step {
        if !self.is_ending() {
            return Step::Send;
        }
        let room = self.has_room(sink);
        if self.patience(room, now).is_none_or(|until| until > now) {
            self.reset_when_settled(now);
            return Step::Send;
        }
        // What the guest says later is answered with a RST. One that comes now would be for a connection that
        // it may still accept.
        if self.released && self.has_delivered() { Step::End } else { Step::Abort }
    }

    /// Asks a silent guest whether it still knows of the connection (RFC 9293 3.8.4), if it is time; or gives
    /// it up.
    #[inline(always)]
    fn ask_step(
        &mut self,
        id: FlowId,
        blocked: &mut Blocked,
        seen: impl FnOnce(Mac) -> Option<Instant>,
        now: Instant,
        sink: &mut impl FrameSink,
    ) -> Step {
        if !self.keepalive.is_silent(now) || !self.is_due(FlowTimer::KeepAlive, now) {
            return Step::Send;
        }
        if !self.has_room(sink) {
            self.block(id, blocked, false);
        } else if self.keepalive.ask(seen(self.route.to), now) {
            return Step::Abort;
        } else {
            keep_alive(sink, self);
        }
        Step::Send
    }
}

impl Budgets {
    /// Takes note of what the flow's rings hold, and so how freely it may fill them and how much its guest is
    /// offered. `all` is what the rings of all ports hold.
    #[inline(always)]
    fn account(&mut self, id: FlowId, flow: &mut Flow, all: &mut usize, now: Instant) {
        if core::mem::take(&mut flow.has_moved) {
            self.held.note(id, flow, all, now);
        }
        flow.pressure = self.held.pressure(*all);
        self.window.share(&mut flow.window, flow.pressure, now);
    }
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
        let Some(flow) = self.flows.get_mut(id) else { return };
        let mut step = flow.live_step(now);
        if step == Step::Send {
            step = flow.ask_step(id, &mut self.blocked, seen, now, sink);
        }
        if step == Step::Send {
            if let Some(budget) = self.budgets.get_mut(flow.route.port) {
                budget.account(id, flow, &mut self.held, now);
                if flow.pressure != Pressure::Low {
                    if flow.is_littered() {
                        self.littered.push_back((id, 0));
                    }
                    if budget.held.is_too_much() {
                        self.crowded = Some(flow.route.port);
                    }
                }
            }
            step = flow.ending_step(now, sink);
        }
        match step {
            Step::Send => {}
            Step::Rest => return,
            Step::End => return self.end(id),
            Step::Abort => return self.abort(id),
        }
        self.recover(id, now, sink);
        if let Some(sent) = self.emit(id, now, sink) {
            self.arm(id, &sent, now);
        }
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
