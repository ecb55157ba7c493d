//! What captures and the log see: each frame once, as it came from a guest, or as the gateway sent it. Owns:
//! nothing.
//! May not: change a frame, or wait. Read next: `../pcap.rs`, the file; `../logging/frames.rs`.
//!
//! Without them a frame from a guest costs one look at an `Option`, and frames to guests cost one for each
//! write.

use std::time::SystemTime;

use netstack::Mac;

use super::Engine;
use crate::link::Batch;
use crate::logging::frames::FrameLog;
use crate::pcap::Capture;

/// Who looks, and the address by which the gateway's own frames are known.
#[derive(Debug)]
pub(super) struct Tap {
    capture: Option<Capture>,
    log: Option<FrameLog>,
    gateway: Mac,
}

impl Engine {
    /// Shows every frame from now on to whoever is there; `gateway` is the gateway's address.
    pub fn tap(&mut self, capture: Option<Capture>, log: Option<FrameLog>, gateway: Mac) {
        if capture.is_some() || log.is_some() {
            self.links.tap = Some(Tap { capture, log, gateway });
        }
    }
}

impl Tap {
    /// A frame that came from a guest.
    pub(super) fn received(&mut self, frame: &[u8]) {
        self.show("guest", frame, SystemTime::now());
    }

    /// What is about to be written to a guest. Frames of other guests were seen when they came.
    pub(super) fn sent(&mut self, batch: &mut Batch) {
        let (gateway, now) = (self.gateway.0, SystemTime::now());
        for frame in batch.unseen().filter(|frame| frame.get(6..12) == Some(&gateway)) {
            self.show("gateway", frame, now);
        }
    }

    fn show(&mut self, from: &str, frame: &[u8], time: SystemTime) {
        if let Some(capture) = &mut self.capture {
            capture.frame(frame, time);
        }
        if let Some(log) = &self.log {
            log.frame(from, frame);
        }
    }

    /// The end of a turn.
    pub(super) fn hand_over(&mut self) {
        if let Some(capture) = &mut self.capture {
            capture.hand_over();
        }
    }
}
