//! What a capture sees: each frame once, as it came from a guest, or as the gateway sent it. Owns: nothing.
//! May not: change a frame, or wait. Read next: `../pcap.rs`, the file.
//!
//! Without a capture a frame from a guest costs one look at an `Option`, and frames to guests cost one for each write.

use std::time::SystemTime;

use netstack::Mac;

use super::Engine;
use crate::link::Batch;
use crate::pcap::Capture;

/// A capture, and the address by which it knows the gateway's own frames.
#[derive(Debug)]
pub(super) struct Tap {
    capture: Capture,
    gateway: Mac,
}

impl Engine {
    /// Has every frame captured from now on.
    pub fn capture(&mut self, capture: Capture, gateway: Mac) {
        self.tap = Some(Tap { capture, gateway });
    }
}

impl Tap {
    /// A frame that came from a guest.
    pub(super) fn received(&mut self, frame: &[u8]) {
        self.capture.frame(frame, SystemTime::now());
    }

    /// What is about to be written to a guest. Frames of other guests were seen when they came.
    pub(super) fn sent(&mut self, batch: &mut Batch) {
        let now = SystemTime::now();
        for frame in batch.unseen().filter(|frame| frame.get(6..12) == Some(&self.gateway.0)) {
            self.capture.frame(frame, now);
        }
    }

    /// The end of a turn.
    pub(super) fn hand_over(&mut self) {
        self.capture.hand_over();
    }
}
