//! What ICMP says of segments to guests (RFC 5927). May not: end a connection that is open. Read next:
//! `../icmp.rs`, how a report is read; `recovery/mod.rs`, what is sent again.

use super::socket::State;
use super::{Table, window};
use crate::ends::Ends;
use crate::icmp::{Fault, Report};
use crate::ipv4::Route;
use crate::{DropReason, Instant};

/// Bytes of the longest packet on a way that is said to take less, as with Linux (net.ipv4.route.min_pmtu).
/// Nobody may have everything cut to pieces (RFC 5927 7.2).
const MIN_PATH_MTU: u16 = 552;
/// What ways take that do not say how much (RFC 1191 7).
const PLATEAUS: [u16; 7] = [32_000, 17_914, 8166, 4352, 2002, 1492, 1006];

impl Table {
    /// A segment to a guest did not arrive. A report that is not about a segment under way is ignored (RFC
    /// 5927 4.1).
    ///
    /// A connection that is being opened ends by it, as with most systems. One that is open never does (RFC
    /// 5927 5.2). It learns how long its segments may be.
    pub(crate) fn handle_report(
        &mut self,
        route: Route,
        report: &Report,
        now: Instant,
    ) -> Result<(), DropReason> {
        let ends = Ends { guest: report.guest, remote: report.remote };
        let id = self.keys.get(&ends).copied().ok_or(DropReason::Icmp)?;
        let flow = self.flows.get_mut(id).ok_or(DropReason::Icmp)?;
        if flow.route != route {
            return Err(DropReason::OtherPort);
        }
        let state = flow.state();
        if !flow.recovery.is_under_way(report.seq) {
            return Err(DropReason::Icmp);
        }
        match report.fault {
            Fault::TooLong(next_hop) if state.is_some_and(State::is_synchronized) => {
                let len = usize::from(report.len).min(flow.window.packet());
                // Of a router that does not say, the next plateau (RFC 1191 5 and 7).
                let plateau = || PLATEAUS.into_iter().find(|mtu| usize::from(*mtu) < len);
                let mtu = if next_hop == 0 { plateau().unwrap_or(0) } else { next_hop }.max(MIN_PATH_MTU);
                if usize::from(mtu) >= len {
                    return Err(DropReason::Icmp);
                }
                flow.path_mtu = Some(mtu);
                flow.window.limit_packet(mtu);
                flow.recovery.handle_path(usize::from(mtu) - window::HEADERS, now);
            }
            Fault::Refused | Fault::Unreachable if state.is_some_and(State::is_syn_sent) => {
                flow.refuse(report.fault == Fault::Refused);
            }
            _ => return Ok(()),
        }
        self.mark_ready(id);
        Ok(())
    }
}
