//! Flows that end on one side before the other has had everything: what was received is delivered first, then
//! the reset, as Linux lets a receiver read what came before one (RFC 9293 3.10.7.4 would drop it). Owns: how
//! long that may take, and how often it is looked at. Read next: `tcp.rs`.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::time::Duration;

use netstack::{FlowId, Instant};

use super::Engine;

/// How long an end may take nothing: it does not keep a flow for ever.
const LIMIT: Duration = Duration::from_secs(60);
/// The pause before a flow is looked at again: no event tells that a peer's system has everything. It doubles
/// up to the last.
const FIRST_LOOK: Duration = Duration::from_millis(1);
const LAST_LOOK: Duration = Duration::from_secs(1);

/// How far that is.
#[derive(Debug)]
pub(super) struct Ending {
    until: Instant,
    next: Instant,
    pause: Duration,
    /// What both ends had taken when it was last looked at.
    progress: usize,
}

/// When flows are to be looked at again.
pub(super) type Looks = BinaryHeap<Reverse<(Instant, FlowId)>>;

impl Engine {
    /// Has the flow served again, in a while; `false` once it has had its time.
    pub(super) fn look_again(&mut self, flow: FlowId) -> bool {
        let Some(connection) = self.tcp.connections.get_mut(flow) else { return false };
        let now = self.now;
        let ending = connection.ending.get_or_insert_with(|| Ending {
            until: now + LIMIT,
            next: now,
            pause: FIRST_LOOK,
            progress: 0,
        });
        if ending.next <= now {
            let taken = self.stack.flow(flow).map_or(0, |flow| flow.progress());
            let progress = taken.wrapping_sub(connection.host.unsettled());
            if progress != ending.progress {
                (ending.until, ending.progress) = (now + LIMIT, progress);
            }
            ending.next = now + ending.pause;
            ending.pause = (ending.pause * 2).min(LAST_LOOK);
            self.tcp.looks.push(Reverse((ending.next, flow)));
        }
        now < ending.until
    }

    pub(super) fn serve_endings(&mut self) {
        while let Some(Reverse((at, flow))) = self.tcp.looks.peek().copied() {
            if at > self.now {
                return;
            }
            self.tcp.looks.pop();
            self.stack.mark_ready(flow);
        }
    }
}
