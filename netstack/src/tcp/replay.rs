//! Sending again. smoltcp has the bytes, but repeats only the first segment or all of them. So it is made to
//! repeat all of them into a buffer, and what the guest has lost leaves. Owns: what that may cost. May not:
//! know what is lost. Read next: `recovery/mod.rs`, which does.

use core::time::Duration;

use super::ack::acknowledge;
use super::{FlowId, Table};
use crate::FrameSink;
use crate::Instant;

/// What a repeated segment is charged with: some six times what it costs, so that as much of the time is left
/// for others.
const CHARGE: Duration = Duration::from_micros(2);
/// What may be charged ahead.
const BURST: Duration = Duration::from_millis(10);

/// How much of the time goes to what the guests of one port have lost. A guest can have everything repeated
/// for each segment that it sends. The more is repeated at a time, the more of it is lost and leaves.
#[derive(Debug)]
pub(super) struct ReplayBudget {
    /// Up to when the time is given away.
    used: Instant,
}

impl ReplayBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { used: now }
    }

    /// Says when so many segments may be repeated.
    fn reserve(&mut self, segments: usize, now: Instant) -> Instant {
        let start = self.used.max(now);
        self.used = start + CHARGE * u32::try_from(segments).unwrap_or(u32::MAX);
        (start - BURST).max(now)
    }
}

impl Table {
    /// Has smoltcp do now what it would do when its timer runs out: probe a closed window, or send a SYN
    /// again.
    pub(super) fn hurry(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let mut own = None;
        let interface = self.interface.for_path(flow.path_mtu, &mut own, now);
        let called = flow.device(None, sink, usize::from(self.mtu), now, &mut self.scratch);
        let Some((mut device, socket)) = called else { return };
        interface.send_early(&mut device, socket, now);
    }

    /// Sends again what the guest has lost, or arms a timer for when that may be. smoltcp is told that its
    /// retransmission timer has run out, and so repeats everything. What the guest has, or may still get,
    /// goes no further than `scratch`.
    pub(super) fn replay(&mut self, id: FlowId, now: Instant, sink: &mut impl FrameSink) {
        let Some(flow) = self.flows.get_mut(id) else { return };
        let Some(budgets) = self.budgets.get_mut(flow.route.port) else { return };
        let at = flow.recovery.replay_at(|segments| budgets.replay.reserve(segments, now));
        if at > now {
            return self.timers.arm(id, at, &mut flow.armed);
        }
        let Some(end) = flow.recovery.begin_replay() else { return };
        let mut own = None;
        let interface = self.interface.for_path(flow.path_mtu, &mut own, now);
        let called = flow.device(None, sink, usize::from(self.mtu), now, &mut self.scratch);
        let Some((mut device, socket)) = called else { return };
        interface.rewind(usize::from(self.mtu), socket, now);
        while device.recovery.is_replaying_before(end) && interface.send(&mut device, socket, now) {}
        let held_back = flow.recovery.end_replay();
        if held_back.is_some_and(|ack| flow.window.acknowledged().is_some_and(|last| ack > last)) {
            acknowledge(sink, flow);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_repeated_takes_no_more_than_its_share_of_the_time() {
        let mut now = Instant::from_secs(1);
        let mut budget = ReplayBudget::new(now);
        // After a pause, as many as are lost at a time; but no more than that after a longer one.
        for _ in 0..2 {
            assert_eq!(
                [(); 6].map(|()| budget.reserve(1000, now) - now),
                [0, 0, 0, 0, 0, 0].map(Duration::from_millis)
            );
            assert_eq!([(); 2].map(|()| budget.reserve(1000, now) - now), [2, 4].map(Duration::from_millis));
            now += Duration::from_secs(1000);
        }
        // And without one, what the time is enough for.
        let (start, mut count) = (now, 0);
        while now < start + Duration::from_secs(1) {
            now = budget.reserve(359, now);
            count += 359;
        }
        assert!((490_000..510_000).contains(&count), "{count} segments in a second");
    }
}
