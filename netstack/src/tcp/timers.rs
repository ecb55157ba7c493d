//! When flows are to be looked at again. May not: do what is due. Read next: `flush.rs`, which does.

use core::time::Duration;

use super::flush::Sent;
use super::table::queue;
use super::{Flow, FlowId, Table};
use crate::Instant;
use crate::timer::earlier;

/// Timers that are looked at in one call.
const DUE_AT_ONCE: usize = 1024;
/// When to look again at a flow that is due and yet sends nothing.
const RETRY: Duration = Duration::from_millis(10);

/// What a flow waits for with a deadline: [`Flow::deadline`] says when each fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum FlowTimer {
    /// The other end has left or was reset. The guest has had its time to acknowledge, or to close its half.
    End,
    /// The rings have been empty for a while, and give their memory back.
    Idle,
    /// Something is taken for lost (RFC 8985), or everything is (RFC 6298).
    Loss,
    /// A closed window is probed (RFC 9293 3.8.6.1).
    Persist,
    /// A silent guest is asked whether it still knows of the connection (RFC 9293 3.8.4).
    KeepAlive,
    /// smoltcp's: a delayed acknowledgement (RFC 9293 3.8.6.3), a SYN once more, the end of TIME-WAIT.
    Socket,
}

impl Flow {
    /// When the timer fires, if it runs.
    #[inline(always)]
    pub(super) fn deadline(&self, timer: FlowTimer) -> Option<Instant> {
        match timer {
            FlowTimer::End => self.ends_at(),
            FlowTimer::Idle => self.idle_at(),
            FlowTimer::Loss => self.recovery.due(),
            FlowTimer::Persist => self.persist_at(),
            FlowTimer::KeepAlive => self.keep_alive_at(),
            FlowTimer::Socket => self.socket_due,
        }
    }

    /// Whether the timer has fired.
    #[inline(always)]
    pub(super) fn is_due(&self, timer: FlowTimer, now: Instant) -> bool {
        self.deadline(timer).is_some_and(|at| at <= now)
    }
}

impl Table {
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        earlier(self.timers.next(), self.questions.next())
    }

    /// Marks flows whose timers are due, and those that wait for room where there is some: so many of each,
    /// and the rest the next time.
    pub(crate) fn handle_timeout(&mut self, now: Instant) {
        self.wake();
        if self.poll_timeout().is_none_or(|at| at > now) {
            return;
        }
        for _ in 0..DUE_AT_ONCE {
            let Some((deadline, id)) = self.timers.pop_due(now) else { break };
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.armed == Some(deadline) {
                flow.armed = None;
                self.mark_ready(id);
            }
        }
        for _ in 0..DUE_AT_ONCE {
            let Some((deadline, id)) = self.questions.pop_due(now) else { break };
            let Some(flow) = self.flows.get_mut(id) else { continue };
            if flow.asked_at == Some(deadline) {
                flow.asked_at = None;
                self.mark_ready(id);
            }
        }
    }

    /// Has the flow looked at again when the first of its timers fires. What only waits for room at its port
    /// is looked at when there is some.
    #[inline(always)]
    pub(super) fn arm(&mut self, id: FlowId, sent: &Sent, now: Instant) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        flow.recovery.set_room(sent.has_room, now);
        if flow.recovery.is_waiting_for_room() {
            flow.block(id, &mut self.blocked, false);
        }
        if let Some(at) = flow.deadline(FlowTimer::End) {
            self.timers.arm(id, at, &mut flow.armed);
        }
        match flow.deadline(FlowTimer::Idle) {
            Some(at) if at > now => self.timers.arm(id, at, &mut flow.armed),
            Some(_) => self.idle.push_back((id, 0)),
            None => {}
        }
        if let Some(at) = flow.deadline(FlowTimer::Loss) {
            self.timers.arm(id, at, &mut flow.armed);
        }
        match flow.deadline(FlowTimer::Persist) {
            Some(at) if sent.has_room => self.timers.arm(id, at.max(now + RETRY), &mut flow.armed),
            Some(_) => flow.block(id, &mut self.blocked, false),
            None => {}
        }
        // A question that is due found no room, and waits for it already.
        if flow.asked_at.is_none()
            && let Some(at) = flow.deadline(FlowTimer::KeepAlive).filter(|at| *at > now)
        {
            self.questions.arm(id, at, &mut flow.asked_at);
        }
        match flow.deadline(FlowTimer::Socket) {
            None => {}
            Some(at) if at > now => self.timers.arm(id, at, &mut flow.armed),
            Some(_) if sent.is_turn_over => queue(&mut self.ready, id, flow),
            Some(_) if sent.has_room => self.timers.arm(id, now + RETRY, &mut flow.armed),
            Some(_) => flow.block(id, &mut self.blocked, false),
        }
    }
}
