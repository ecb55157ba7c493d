//! TCP (RFC 9293). Owns: the flow table. May not: open a connection on the host; the driver does, asked by
//! [`crate::Event::TcpOpen`]. Read next: `flow.rs`, what one flow is; `segment.rs`, what a guest's segment
//! leads to; `flush.rs`, what is sent to guests; `socket.rs`, all that smoltcp is asked.
//!
//! A guest's SYN is held until the driver has connected the other end. So what the guest sees is what
//! happened: connected, refused, unreachable, or silence.

mod ack;
mod blocked;
mod device;
mod flow;
mod flush;
mod keepalive;
mod memory;
mod open;
mod reclaim;
mod recovery;
mod replay;
mod report;
mod segment;
mod sequence;
mod socket;
mod table;
mod timers;
mod window;

use core::net::SocketAddr;
use std::collections::{HashMap, VecDeque};

use foldhash::fast::FixedState;
use slotmap::SlotMap;

pub use flow::{Abort, Flow, Phase};

use crate::counters::Ports;
use crate::ends::Ends;
use crate::limit::Limit;
use crate::timer::Timers;
use crate::turns::Turns;
use crate::{ByPort, Mac, PortId};
use blocked::Blocked;
use memory::Held;
use replay::ReplayBudget;
use sequence::InitialSequence;
use socket::{Interface, Socket};
use window::WindowBudget;

slotmap::new_key_type! {
    /// Names a TCP flow; never used again for another one.
    pub struct FlowId;
}

/// Flows at most. Beyond, a SYN is dropped, and the guest will send it again.
pub const MAX_FLOWS: usize = 65_536;
/// Released flows at most that wait for their guests, to take something or to acknowledge the end. Linux
/// bounds them too (`tcp_max_orphans`).
const MAX_ORPHANS: usize = 4096;
/// Flows of a port that its guests are opening, unless the driver says less: see [`Table::limit_opening`].
const MAX_OPENING: usize = 512;
/// Flows that use all of their rings, of all ports: 128 MiB.
const MAX_DEEP: usize = 64;

/// How the other end could not be had, and so what the guest is told.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// RST, as from a closed port.
    Reset,
    /// ICMP host unreachable.
    Unreachable,
    /// Nothing, as from a host that does not answer.
    Silence,
}

/// What a segment led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Segment {
    Done,
    /// A SYN for no flow; the policy decides and [`Table::hold`] keeps it.
    Syn {
        guest: SocketAddr,
        remote: SocketAddr,
    },
}

/// What the flows of one port share.
struct Budgets {
    window: WindowBudget,
    replay: ReplayBudget,
    held: Held,
    /// Those that its guests are opening, the oldest first; and some that are open, or over.
    opening: VecDeque<FlowId>,
}

/// The flow table.
pub(crate) struct Table {
    interface: Interface,
    initial: InitialSequence,
    mtu: u16,
    gateway_mac: Mac,
    flows: SlotMap<FlowId, Flow>,
    keys: HashMap<Ends, FlowId, FixedState>,
    /// How often flows end for others to have a place.
    surplus: Limit,
    /// Those that are deep, and of which port.
    deep: VecDeque<(PortId, FlowId)>,
    /// Bytes that rings hold.
    held: usize,
    /// How many of a port may be opening, about.
    max_opening: usize,
    ready: Turns<FlowId>,
    /// Released flows that wait for their guest, the oldest first; and some that are over.
    orphans: VecDeque<FlowId>,
    blocked: Blocked,
    /// A port whose flows hold too much.
    crowded: Option<PortId>,
    /// Flows whose ring from the guest is to give memory back, since that is scarce, and the next part of
    /// each ring.
    littered: VecDeque<(FlowId, usize)>,
    /// Flows whose rings are idle, and the next ring of each.
    idle: VecDeque<(FlowId, usize)>,
    timers: Timers<FlowId>,
    /// When silent guests are asked. They are apart from the others, because a flow has one such time for
    /// long, and the others come and go before it.
    questions: Timers<FlowId>,
    budgets: ByPort<Budgets>,
    /// Sockets of flows that ended, for new ones.
    pool: Vec<Socket>,
    ports: Ports,
    scratch: Vec<u8>,
    /// A guest's segment as smoltcp is to see it.
    rewritten: Vec<u8>,
}

impl core::fmt::Debug for Table {
    fn fmt(&self, f: &mut core::fmt::Formatter<'_>) -> core::fmt::Result {
        f.debug_struct("Table").field("flows", &self.flows.len()).finish_non_exhaustive()
    }
}
