//! What a flow has to send, once in each turn of the driver. Owns: how much of it is a turn. May not: know why the flow is
//! ready. Read next: `replay.rs`, what is sent again; `device.rs`, the way out.

use core::time::Duration;

use super::ack::{acknowledge, keep_alive};
use super::flow::Stage;
use super::memory::Plenty;
use super::{FlowId, Table};
use crate::{FrameSink, Instant, Mac, ether};

/// What one flow sends before another's turn: bytes, and at least these segments, since few long ones cost as much as many short ones.
const TURN: usize = 128 << 10;
const TURN_SEGMENTS: usize = 8;
/// When to look again at a flow that is due and yet sends nothing.
const RETRY: Duration = Duration::from_millis(10);

impl Table {
    /// Sends what the flow has to send, up to its turn, and arms its timer. `seen` says when the machine with an address last sent a frame.
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
        if flow.is_lingering(now) {
            return;
        }
        if !matches!(flow.stage, Stage::Live(..)) || flow.is_cut_off() {
            if flow.released {
                self.end(id);
            }
            return;
        }
        if flow.keepalive.is_silent(now) && flow.keep_alive_at().is_some_and(|at| at <= now) {
            if !sink.has_room(flow.route.port, ether::HEADER_LEN + flow.window.packet()) {
                flow.block(id, &mut self.blocked, false);
            } else if flow.keepalive.ask(seen(flow.route.to), now) {
                flow.abort();
                return self.mark_ready(id);
            } else {
                keep_alive(sink, flow);
            }
        }
        if let Some(budget) = self.budgets.get_mut(flow.route.port) {
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
        let mut ends_at = None;
        if flow.is_ending() {
            let room = sink.has_room(flow.route.port, ether::HEADER_LEN + flow.window.packet());
            let patience = flow.patience(room, now);
            if patience.is_some_and(|until| until <= now) {
                // What the guest says later is answered with a RST. One that comes now would be for a connection that it may still accept.
                if flow.released && flow.has_delivered() {
                    return self.end(id);
                }
                flow.abort();
                return self.mark_ready(id);
            }
            ends_at = flow.reset_when_settled(now).or(patience);
        }
        let mtu = flow.window.packet();
        if !flow.recovery.is_idle() {
            flow.recovery.set_room(sink.has_room(flow.route.port, ether::HEADER_LEN + mtu), now);
            if flow.recovery.due().is_some_and(|at| at <= now) {
                flow.recovery.handle_timeout(now);
            }
            if flow.recovery.wants_replay() && flow.can_replay() {
                self.replay(id, now, sink);
            }
        } else if flow.persist_at().is_some_and(|at| at <= now) {
            self.hurry(id, now, sink);
        }
        let Some(mut flow) = self.flows.get_mut(id) else { return };
        if flow.wants_depth() {
            self.deepen(id, now);
            let Some(again) = self.flows.get_mut(id) else { return };
            flow = again;
        }
        let mut own = None;
        let interface = self.interface.for_path(flow.path_mtu, &mut own, now);
        let called = flow.device(None, sink, mtu, now, &mut self.scratch);
        let Some((mut device, socket)) = called else { return };
        let mut segments = (TURN / mtu).max(TURN_SEGMENTS);
        let had_ended = socket.state().has_ended();
        // Without room smoltcp would forget a fast retransmission that it cannot send, and wait for ever.
        while segments > 0 && device.has_room() && interface.send(&mut device, socket, now) {
            segments -= 1;
        }
        let due = interface.due(socket, now);
        let timed_out = !had_ended && socket.state().has_ended();
        let mut room = sink.has_room(flow.route.port, ether::HEADER_LEN + mtu);
        if flow.wants_window_update().is_some() {
            if room {
                acknowledge(sink, flow);
                room = sink.has_room(flow.route.port, ether::HEADER_LEN + mtu);
            } else {
                flow.block(id, &mut self.blocked, room);
            }
        }
        if flow.released && flow.is_over(due, now) {
            self.end(id);
            return;
        }
        if timed_out {
            // The driver does not know yet.
            return self.mark_ready(id);
        }
        // Without room it is the port that makes no progress, as while the virtual machine is paused.
        if let Some(limit) = flow.give_up_after().filter(|_| room) {
            let since = *flow.progress.get_or_insert(now);
            if now > since + limit {
                flow.abort();
                return self.mark_ready(id);
            }
        } else {
            flow.progress = None;
        }
        flow.note_sending(now);
        if let Some(at) = ends_at {
            self.timers.arm(id, at, &mut flow.armed);
        }
        if let Some(at) = flow.idle_at() {
            if at > now {
                self.timers.arm(id, at, &mut flow.armed);
            } else {
                self.idle.push_back((id, 0));
            }
        }
        flow.recovery.set_room(room, now);
        match flow.recovery.due() {
            Some(at) => self.timers.arm(id, at, &mut flow.armed),
            None if flow.recovery.is_waiting_for_room() => flow.block(id, &mut self.blocked, room),
            None => match flow.persist_at() {
                Some(_) if !room => flow.block(id, &mut self.blocked, false),
                Some(at) => self.timers.arm(id, at.max(now + RETRY), &mut flow.armed),
                None => {}
            },
        }
        if flow.asked_at.is_none()
            && let Some(at) = flow.keep_alive_at().filter(|at| *at > now)
        {
            // One that is due found no room: `handle_room` goes on.
            self.questions.arm(id, at, &mut flow.asked_at);
        }
        match due {
            None => {}
            Some(at) if at > now => self.timers.arm(id, at, &mut flow.armed),
            Some(_) if segments == 0 => self.mark_ready(id),
            // `handle_room` goes on.
            Some(_) if !room => flow.block(id, &mut self.blocked, false),
            Some(_) => self.timers.arm(id, now + RETRY, &mut flow.armed),
        }
    }
}
