//! How much memory the rings of one port's flows take, and those of all: mostly what guests do not take, and
//! what nobody takes of theirs. When it is much, each flow may add little. When it is too much, the flow of
//! the same port that has not moved for the longest makes room.
//!
//! Owns: the sums, and the order of the flows that hold something. May not: end a flow. Read next: `flow.rs`,
//! what one holds; `reclaim.rs`, what becomes of it.

use core::time::Duration;
use std::collections::VecDeque;

use slotmap::SlotMap;

use super::flow::SHALLOW;
use super::{Flow, FlowId};

use crate::Instant;

type Flows = SlotMap<FlowId, Flow>;

/// Bytes in all the rings of a port from which on its flows add little, and in those of all ports.
const MUCH: usize = 64 << 20;
const MUCH_OF_ALL: usize = 256 << 20;
/// From so many on they add less.
const VERY_MUCH: usize = 2 * MUCH;
/// From so many on what moved nothing for a while makes room.
const TOO_MUCH: usize = 8 * MUCH;
const WHILE: Duration = Duration::from_secs(60);
/// What a flow holds is counted in so many bytes.
const UNIT: usize = 16 << 10;
/// Flows looked at for one that takes more.
const LOOKED_AT: usize = 16;

/// What the flows of a port hold.
#[derive(Debug, Default)]
pub(super) struct Held {
    bytes: usize,
    /// Those that hold something, the one that began first in front; and some that do not any more.
    order: VecDeque<FlowId>,
}

/// How freely flows may fill their rings.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Pressure {
    /// As much as helps.
    Low,
    /// A little.
    High,
    /// Enough to go on.
    Critical,
}

/// Whether some port's flows may not have what helps, where `all` ports take so much.
#[inline]
pub(super) fn may_have_pressure(all: usize) -> bool {
    all >= MUCH
}

impl Pressure {
    /// Bytes that a flow may write to the ring to its guest before that is empty again.
    pub(super) fn allowance(self) -> usize {
        match self {
            Self::Low => SHALLOW,
            Self::High => 64 << 10,
            Self::Critical => 16 << 10,
        }
    }
}

impl Held {
    /// Takes note of what the flow holds now; `all` is the sum of all ports.
    #[inline]
    pub(super) fn note(&mut self, id: FlowId, flow: &mut Flow, all: &mut usize, now: Instant) {
        flow.stirred_at = now;
        let held = flow.note_held() / UNIT * UNIT;
        if held != flow.charged {
            self.charge(id, flow, held, all);
        }
    }

    fn charge(&mut self, id: FlowId, flow: &mut Flow, held: usize, all: &mut usize) {
        let before = core::mem::replace(&mut flow.charged, held);
        self.bytes = self.bytes + held - before;
        *all = *all + held - before;
        if !flow.is_listed {
            flow.is_listed = true;
            self.order.push_back(id);
        }
    }

    /// Whether its flows may use all of their rings, where `all` ports take so much. If others do not read, a
    /// port may still have the rings of two flows.
    pub(super) fn has_depth(&self, all: usize) -> bool {
        all < MUCH / 2 || self.bytes < MUCH / 16
    }

    /// How freely its flows may hold more.
    #[inline]
    pub(super) fn pressure(&self, all: usize) -> Pressure {
        if !may_have_pressure(all) {
            return Pressure::Low;
        }
        match self.bytes {
            VERY_MUCH.. => Pressure::Critical,
            MUCH.. => Pressure::High,
            bytes if all >= MUCH_OF_ALL && bytes >= MUCH / 8 => Pressure::High,
            _ => Pressure::Low,
        }
    }

    /// A flow holds what it was charged with no more; `flows` are still there.
    pub(super) fn forget(&mut self, charged: usize, flows: &Flows) {
        self.bytes -= charged;
        if self.order.len() > 2 * flows.len() + LOOKED_AT {
            self.order.retain(|id| flows.contains_key(*id));
        }
    }

    /// Whether nothing is charged.
    pub(super) fn is_nothing(&self) -> bool {
        self.bytes == 0
    }

    /// Whether something has to go.
    pub(super) fn is_too_much(&self) -> bool {
        self.bytes >= TOO_MUCH
    }

    /// What has to go, if it is there.
    pub(super) fn surplus(&mut self, flows: &mut Flows, now: Instant) -> Option<FlowId> {
        for _ in 0..LOOKED_AT.min(self.order.len()) {
            let id = self.order.pop_front()?;
            match flows.get_mut(id) {
                Some(flow) if flow.charged == 0 => flow.is_listed = false,
                Some(flow) if now >= flow.stirred_at + WHILE => {
                    flow.is_listed = false;
                    return Some(id);
                }
                Some(_) => self.order.push_back(id),
                None => {}
            }
        }
        None
    }
}

#[cfg(test)]
mod tests {
    use std::net::SocketAddr;

    use super::super::flow::Stage;
    use super::*;
    use crate::ipv4::Route;

    fn flow(port: u16) -> Flow {
        let address = SocketAddr::from(([192, 168, 127, 2], port));
        Flow::new(address, address, Route::NOWHERE, Stage::Dead)
    }

    #[test]
    fn what_does_not_move_makes_room() {
        let (mut held, mut all, mut flows) = (Held::default(), 0, Flows::with_key());
        let ids: Vec<FlowId> = (0..130).map(|port| flows.insert(flow(port))).collect();
        let note = |held: &mut Held, all: &mut usize, flow: &mut Flow, bytes: usize| {
            // As a flow that lives would say.
            (held.bytes, *all, flow.charged) =
                (held.bytes + bytes - flow.charged, *all + bytes - flow.charged, bytes);
        };
        for (number, id) in ids.iter().enumerate() {
            held.order.push_back(*id);
            let flow = flows.get_mut(*id).unwrap();
            flow.is_listed = true;
            note(&mut held, &mut all, flow, 4 << 20);
            let pressure = held.pressure(all);
            let expected = match number + 1 {
                ..16 => Pressure::Low,
                16..32 => Pressure::High,
                _ => Pressure::Critical,
            };
            assert_eq!(pressure, expected, "{number}");
        }
        assert!(held.is_too_much() && may_have_pressure(all));
        assert_eq!(held.surplus(&mut flows, Instant::ZERO), None, "all have just moved");
        // One of those that are looked at holds nothing any more.
        note(&mut held, &mut all, flows.get_mut(ids[16]).unwrap(), 0);
        assert_eq!(held.surplus(&mut flows, Instant::ZERO + WHILE), Some(ids[17]));
        assert!(!flows[ids[16]].is_listed && !flows[ids[17]].is_listed);
        for id in ids {
            let charged = flows.remove(id).unwrap().charged;
            all -= charged;
            held.forget(charged, &flows);
        }
        assert_eq!((held.bytes, all), (0, 0));
        assert!(held.order.len() <= LOOKED_AT, "{}", held.order.len());
        // A port is not the less free for what others hold, but where it holds some itself.
        assert_eq!(held.pressure(MUCH_OF_ALL), Pressure::Low);
    }
}
