//! When flows are to be looked at again. May not: know what is due. Read next: `flush.rs`, which arms, and finds out.

use super::Table;
use crate::Instant;
use crate::timer::earlier;

/// Timers that are looked at in one call.
const DUE_AT_ONCE: usize = 1024;

impl Table {
    pub(crate) fn poll_timeout(&self) -> Option<Instant> {
        earlier(self.timers.next(), self.questions.next())
    }

    /// Marks flows whose timers are due, and those that wait for room where there is some: so many of each, and the rest the next time.
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
}
