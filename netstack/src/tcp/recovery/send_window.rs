//! The window that a guest offers, and what smoltcp is told of it. Owns: the window field, either way. May
//! not: know what is lost. Read next: `mod.rs`, `Recovery::handle_ack`.

use smoltcp::wire::TcpSeqNumber;

/// Segments under way at most: as many are made when one is repeated.
const MAX_FLIGHT: usize = 4096;

/// The guest's window (RFC 9293 SND.WND), whose left edge is the first byte that is not acknowledged.
#[derive(Debug)]
pub(super) struct SendWindow {
    /// RFC 7323 shift of the field.
    shift: u8,
    /// The field that the guest sent last.
    pub(super) offered: u16,
    /// The largest that smoltcp is given.
    pub(super) most: u16,
    /// The one that smoltcp was given.
    pub(super) told: Option<u16>,
    /// Where the last probe of a closed window ends.
    pub(super) probe_end: Option<TcpSeqNumber>,
}

impl SendWindow {
    pub(super) fn new() -> Self {
        Self { shift: 0, offered: 0, most: u16::MAX, told: None, probe_end: None }
    }

    /// What the guest's SYN says of windows and segments.
    pub(super) fn handle_syn(&mut self, scale: Option<u8>, mss: usize) {
        self.shift = scale.unwrap_or(0).min(14);
        self.most = u16::try_from((mss * MAX_FLIGHT) >> self.shift).unwrap_or(u16::MAX);
    }

    /// The field of a SYN-ACK, which is not scaled (RFC 7323 2.2).
    pub(super) fn offer_unscaled(&mut self, field: u16) {
        self.offered = field.div_ceil(1 << self.shift);
    }

    /// Bytes that were offered, and one unit more: for what a scaled field cannot say (RFC 7323 2.4), or for
    /// a FIN, which needs no room.
    pub(super) fn room(&self) -> usize {
        (usize::from(self.offered) + 1) << self.shift
    }

    /// Bytes that were offered.
    pub(super) fn len(&self) -> usize {
        usize::from(self.offered) << self.shift
    }

    /// The field that lets smoltcp send what is left of this window, and of the congestion window: `fresh`
    /// bytes beyond those that are under way.
    pub(super) fn limited(&self, flight: usize, fresh: Option<usize>) -> u16 {
        let offered = usize::from(self.offered);
        let units = match fresh {
            // As far as the field can say so, but not nothing: that is a closed window.
            Some(fresh) => ((flight + fresh) >> self.shift).max(1).min(offered),
            None => offered,
        };
        // Never less than what has been sent, as far as the field can say so: smoltcp could not repeat that.
        // Not closed before that has arrived: smoltcp would give up its retransmission timer.
        let sent = if flight == 0 { 0 } else { (flight >> self.shift).max(1) };
        u16::try_from(units.min(usize::from(self.most)).max(sent)).unwrap_or(u16::MAX)
    }
}
