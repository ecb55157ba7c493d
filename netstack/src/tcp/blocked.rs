//! Flows that wait for room at their port. Of thousands a part is woken at a time, and the next part when
//! that has had its turn. So one port's link costs others no more than that.
//! Owns: who waits, and where there is room meanwhile. May not: know how much.

use super::FlowId;
use crate::{PortId, Turns};

/// How many are woken at a time.
const PART: usize = 256;

#[derive(Debug, Default)]
pub(super) struct Blocked {
    flows: Turns<FlowId>,
    /// Ports that had room when it was looked last, and whose flows are not all woken.
    roomy: Vec<PortId>,
}

impl Blocked {
    /// One more flow waits at a port, which has `room` or none. If it has none, the others wait with it until
    /// there is some again.
    pub(super) fn push(&mut self, port: PortId, id: FlowId, room: bool) {
        if !room {
            self.roomy.retain(|roomy| *roomy != port);
        }
        self.flows.push(port, id);
    }

    /// The port has room.
    #[inline]
    pub(super) fn note_room(&mut self, port: PortId) {
        if !self.flows.is_empty() && !self.roomy.contains(&port) {
            self.roomy.push(port);
        }
    }

    /// Takes the next part of those whose port has room.
    pub(super) fn wake(&mut self, mut wake: impl FnMut(FlowId)) {
        let flows = &mut self.flows;
        self.roomy.retain(|port| {
            for _ in 0..PART {
                match flows.pop_of(*port) {
                    Some(id) => wake(id),
                    None => return false,
                }
            }
            true
        });
    }

    /// Whether some are still to be woken.
    #[inline]
    pub(super) fn is_waking(&self) -> bool {
        !self.roomy.is_empty()
    }

    /// The port is gone.
    pub(super) fn forget(&mut self, port: PortId) {
        self.roomy.retain(|roomy| *roomy != port);
        while self.flows.pop_of(port).is_some() {}
        self.flows.tidy();
    }
}

#[cfg(test)]
mod tests {
    use slotmap::SlotMap;

    use super::*;

    const A: PortId = PortId(1);
    const B: PortId = PortId(2);

    fn woken(blocked: &mut Blocked) -> Vec<FlowId> {
        let mut woken = Vec::new();
        blocked.wake(|id| woken.push(id));
        woken
    }

    #[test]
    fn a_part_at_a_time_and_all_of_them() {
        let mut ids = SlotMap::<FlowId, ()>::with_key();
        let ids: Vec<FlowId> = (0..2 * PART + 3).map(|_| ids.insert(())).collect();
        let mut blocked = Blocked::default();
        ids.iter().for_each(|id| blocked.push(A, *id, false));
        blocked.push(B, ids[0], false);
        assert!(woken(&mut blocked).is_empty(), "nobody has room");
        blocked.note_room(A);
        assert_eq!(woken(&mut blocked), ids[..PART]);
        // It turns out that there is none any more.
        blocked.push(A, ids[0], false);
        assert!(!blocked.is_waking() && woken(&mut blocked).is_empty());
        blocked.note_room(A);
        blocked.note_room(B);
        let [second, third] = [woken(&mut blocked), woken(&mut blocked)];
        assert_eq!(second, [&ids[PART..2 * PART], &ids[..1]].concat());
        // One waits for something else: the rest goes on.
        blocked.push(A, ids[7], true);
        assert_eq!(third, [&ids[2 * PART..], &ids[..1]].concat());
        assert!(!blocked.is_waking());
        blocked.note_room(A);
        assert_eq!(woken(&mut blocked), ids[7..8]);
        blocked.note_room(A);
        assert!(!blocked.is_waking(), "nobody waits");
        blocked.push(A, ids[0], false);
        blocked.note_room(A);
        blocked.forget(A);
        assert!(woken(&mut blocked).is_empty() && blocked.flows.is_empty());
    }
}
