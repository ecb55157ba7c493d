//! Frames in the log, a line each: what `-debug` shows of the traffic. Owns: how many lines. May not: keep a frame.
//! Read next: `../engine/capture.rs`, which passes every frame; `../pcap.rs`, where all of them are kept whole.

use std::fmt;
use std::time::{Duration, Instant};

use smoltcp::wire::{EthernetFrame, PrettyPrinter};

use super::Limited;
use crate::config::LoggedFrames;

/// Lines in a [`WINDOW`]: a guest's start is all there, and a transfer fills no disk.
const LINES: u32 = 100;
const WINDOW: Duration = Duration::from_secs(5);

/// Writes frames into the log.
#[derive(Debug)]
pub struct FrameLog(Option<Limited>);

impl FrameLog {
    /// A log with so many of them.
    pub fn new(extent: LoggedFrames) -> Self {
        Self((extent == LoggedFrames::Some).then(|| Limited::new(LINES, WINDOW)))
    }

    /// A frame that came from there.
    pub fn frame(&self, from: &str, frame: &[u8]) {
        let len = frame.len();
        match &self.0 {
            None => tracing::trace!(from, len, frame = %Line(frame), "frame"),
            Some(lines) => {
                if let Some(suppressed) = lines.admit(Instant::now()) {
                    tracing::info!(from, len, frame = %Line(frame), suppressed, "frame");
                }
            }
        }
    }
}

/// A frame's headers.
struct Line<'a>(&'a [u8]);

impl fmt::Display for Line<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let listing = PrettyPrinter::<EthernetFrame<&[u8]>>::new("", &self.0).to_string();
        for (number, line) in listing.lines().enumerate() {
            let separator = if number == 0 { "" } else { ", " };
            // Guests leave checksums to a card that they do not have.
            let line = line.trim_start_matches([' ', '\\']).replace(" (checksum incorrect)", "");
            write!(f, "{separator}{line}")?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;

    fn syn() -> Vec<u8> {
        let ethernet = [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd, 0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee, 8, 0];
        let ip = [0x45, 0, 0, 44, 0, 0, 0x40, 0, 64, 6, 0, 0, 192, 168, 127, 2, 192, 168, 127, 1];
        let tcp = [0x9c, 0x40, 0, 80, 0, 0, 0, 7, 0, 0, 0, 0, 0x60, 2, 0xff, 0xff, 0, 0, 0, 0, 2, 4, 5, 0xb4];
        [&ethernet[..], &ip, &tcp].concat()
    }

    #[test]
    fn a_frame_is_one_line() {
        let line = Line(&syn()).to_string();
        assert_eq!(
            line,
            "EthernetII src=5a-94-ef-e4-0c-ee dst=5a-94-ef-e4-0c-dd type=IPv4, IPv4 src=192.168.127.2 \
             dst=192.168.127.1 proto=TCP, TCP src=40000 dst=80 syn seq=7 win=65535 len=0 mss=1460"
        );
        assert_eq!(Line(&[]).to_string(), "(wire::Error)");
    }

    proptest! {
        #[test]
        fn no_frame_panics(bytes: Vec<u8>, spoilt in prop::collection::vec((12..58_usize, any::<u8>()), 0..6), len in 0..60_usize) {
            let _ = Line(&bytes).to_string();
            let mut frame = syn();
            for (at, byte) in spoilt {
                frame[at.min(57)] = byte;
            }
            frame.truncate(len);
            let line = Line(&frame).to_string();
            prop_assert!(!line.contains('\n'));
        }
    }
}
