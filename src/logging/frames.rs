//! Frames in the log, a line each: what `-debug` shows of the traffic. Owns: how many lines.
//! May not: keep a frame. Read next: `frames/headers.rs`, which reads one; `../engine/capture.rs`, which
//! passes every frame; `../pcap.rs`, where all of them are kept whole.

mod headers;

use std::time::{Duration, Instant};

use tracing::Level;

use super::Limited;
use crate::config::LoggedFrames;
use headers::Headers;

/// Lines in a [`WINDOW`]: a guest's start is all there, and a transfer fills no disk.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(5);

/// Writes a line of the fields that a frame has.
macro_rules! log {
    ($level:expr, $from:expr, $frame:expr, $suppressed:expr) => {{
        let headers = Headers::of($frame);
        tracing::event!(
            $level,
            from = $from,
            len = $frame.len(),
            protocol = headers.protocol,
            kind = headers.kind,
            src = headers.src,
            sport = headers.sport,
            dst = headers.dst,
            dport = headers.dport,
            flags = headers.flags,
            name = headers.name,
            qtype = headers.qtype,
            rcode = headers.rcode,
            answers = headers.answers,
            address = headers.address,
            hardware = headers.hardware,
            id = headers.id,
            seq = headers.seq,
            ack = headers.ack,
            window = headers.window,
            mss = headers.mss,
            mtu = headers.mtu,
            fragment = headers.fragment,
            payload = headers.payload,
            vlan = headers.vlan,
            src_mac = headers.src_mac,
            dst_mac = headers.dst_mac,
            error = headers.error,
            suppressed = $suppressed,
            "frame"
        );
    }};
}

/// Writes frames into the log.
#[derive(Debug)]
pub struct FrameLog(Option<Limited>);

impl FrameLog {
    /// A log with so many of them.
    pub fn new(extent: LoggedFrames) -> Self {
        Self((extent == LoggedFrames::Some).then(|| Limited::new(LINES, WINDOW)))
    }

    /// A frame that came from there. A frame that gets no line is not read.
    pub fn frame(&self, from: &str, frame: &[u8]) {
        match &self.0 {
            None => log!(Level::TRACE, from, frame, None::<u64>),
            Some(lines) => {
                if let Some(suppressed) = lines.admit(Instant::now()) {
                    log!(Level::INFO, from, frame, suppressed);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
