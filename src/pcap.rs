//! Capture of a network's frames into a file: classic pcap, Ethernet, microseconds, whole frames.
//!
//! The engine collects records in memory; a thread writes them, so that a slow disk delays no frame. What it
//! cannot keep up with is left out and counted. Each write ends with a whole record, once a turn of the
//! engine: the file can be read while it grows.
//!
//! Owns: the file and its thread. May not: wait in the engine, but for the last records at the end, and a
//! second at most. Read next: `engine/capture.rs`.

use std::fs::File;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, SyncSender, TrySendError, sync_channel};
use std::thread;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use anyhow::{Context, Result, anyhow};

use crate::disk;
use crate::link::MAX_FRAME;
use crate::text::reason;

/// Bytes of records that are handed over together, at most but for the last one.
const CHUNK: usize = 256 << 10;
/// Chunks that wait for the disk.
const CHUNKS: usize = 32;
/// How long the last records may take at the end.
const LAST: Duration = Duration::from_secs(1);
/// Bytes of a record before its frame.
const RECORD: usize = 16;
/// LINKTYPE_ETHERNET (draft-ietf-opsawg-pcaplinktype).
const ETHERNET: u32 = 1;

/// The file's head in the machine's own byte order, which its magic number tells (draft-ietf-opsawg-pcap).
fn file_header() -> Vec<u8> {
    let snapshot = u32::try_from(MAX_FRAME).unwrap_or(u32::MAX);
    let version = [2_u16, 4].map(u16::to_ne_bytes).concat();
    let rest = [0, 0, snapshot, ETHERNET].map(u32::to_ne_bytes).concat();
    [&0xa1b2_c3d4_u32.to_ne_bytes()[..], &version, &rest].concat()
}

/// A capture that runs until it is dropped.
#[derive(Debug)]
pub struct Capture {
    chunk: Vec<u8>,
    /// `None` once the file takes nothing more.
    chunks: Option<SyncSender<Vec<u8>>>,
    /// Chunks that are written, to be filled again.
    written: Receiver<Vec<u8>>,
    path: PathBuf,
    left_out: u64,
}

impl Capture {
    /// A new file at `path`, in place of what was there, with its head written.
    ///
    /// # Errors
    /// It cannot be made or written.
    pub fn create(path: &Path) -> Result<Self> {
        let failed = |error: io::Error| {
            anyhow!("cannot create capture file: open {}: {}", path.display(), reason(&error))
        };
        let mut file = disk::create_private(path).map_err(failed)?;
        file.write_all(&file_header()).map_err(failed)?;
        let (chunks, receiver) = sync_channel(CHUNKS);
        let (sender, written) = sync_channel(CHUNKS);
        let name = path.to_owned();
        thread::Builder::new()
            .name("pcap".to_owned())
            .spawn(move || write(file, &name, &receiver, &sender))
            .context("cannot start the capture")?;
        let path = path.to_owned();
        Ok(Self { chunk: Vec::new(), chunks: Some(chunks), written, path, left_out: 0 })
    }

    /// Adds a frame that passed at `time`.
    pub fn frame(&mut self, frame: &[u8], time: SystemTime) {
        if self.chunk.len() + RECORD + frame.len() > CHUNK {
            self.hand_over();
            if self.chunk.len() + RECORD + frame.len() > CHUNK {
                self.left_out += u64::from(self.chunks.is_some());
                return;
            }
        }
        // Before 1970 there were no such frames, after 2106 the format has no seconds.
        let time = time.duration_since(UNIX_EPOCH).unwrap_or(Duration::ZERO);
        let seconds = u32::try_from(time.as_secs()).unwrap_or(u32::MAX);
        let len = u32::try_from(frame.len()).unwrap_or(u32::MAX);
        for word in [seconds, time.subsec_micros(), len, len] {
            self.chunk.extend(word.to_ne_bytes());
        }
        self.chunk.extend(frame);
    }

    /// Has what was added written, as soon as the disk takes it.
    pub fn hand_over(&mut self) {
        let Some(chunks) = self.chunks.as_ref().filter(|_| !self.chunk.is_empty()) else { return };
        match chunks.try_send(std::mem::take(&mut self.chunk)) {
            Ok(()) => {
                self.chunk = self.written.try_recv().unwrap_or_default();
                self.chunk.clear();
            }
            Err(TrySendError::Full(chunk)) => self.chunk = chunk,
            Err(TrySendError::Disconnected(_)) => self.chunks = None,
        }
    }
}

impl Drop for Capture {
    fn drop(&mut self) {
        // The last ones are worth a wait.
        let deadline = Instant::now() + LAST;
        let left = || deadline.saturating_duration_since(Instant::now());
        self.hand_over();
        while !self.chunk.is_empty() && self.chunks.is_some() && self.written.recv_timeout(left()).is_ok() {
            self.hand_over();
        }
        let mut is_late = !self.chunk.is_empty() && self.chunks.take().is_some();
        self.chunks = None;
        while !is_late {
            match self.written.recv_timeout(left()) {
                Ok(_) => {}
                Err(RecvTimeoutError::Disconnected) => break,
                Err(RecvTimeoutError::Timeout) => is_late = true,
            }
        }
        let path = self.path.display();
        if is_late {
            tracing::warn!(%path, "the last frames were not captured in time");
        }
        if self.left_out > 0 {
            tracing::warn!(%path, frames = self.left_out, "frames came faster than they could be captured");
        }
    }
}

/// The writer's thread. It ends with the capture, or when the file takes nothing more.
fn write(mut file: File, path: &Path, chunks: &Receiver<Vec<u8>>, written: &SyncSender<Vec<u8>>) {
    for chunk in chunks {
        if let Err(error) = file.write_all(&chunk) {
            tracing::error!(path = %path.display(), reason = reason(&error), "cannot write the capture: it ends here");
            return;
        }
        let _ = written.try_send(chunk);
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    /// Seconds, microseconds and frame of each record.
    fn records(file: &[u8]) -> Vec<(u32, u32, Vec<u8>)> {
        let word = |at: usize| u32::from_ne_bytes(file[at..at + 4].try_into().unwrap());
        assert_eq!((word(0), word(16), word(20)), (0xa1b2_c3d4, 131_072, 1));
        let (mut at, mut records) = (24, Vec::new());
        while at < file.len() {
            let len = word(at + 8) as usize;
            assert_eq!(word(at + 12) as usize, len);
            records.push((word(at), word(at + 4), file[at + RECORD..at + RECORD + len].to_vec()));
            at += RECORD + len;
        }
        records
    }

    #[test]
    fn frames_are_records_in_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        fs::write(&path, "old\n".repeat(1000)).unwrap();
        let mut capture = Capture::create(&path).unwrap();
        let time = UNIX_EPOCH + Duration::new(1_795_000_000, 123_456_789);
        let frames = [vec![], vec![7; 60], vec![8; MAX_FRAME], vec![9; 1514]];
        for (i, frame) in frames.iter().enumerate() {
            capture.frame(frame, time + Duration::from_secs(i as u64));
            capture.hand_over();
        }
        drop(capture);
        let expected: Vec<_> = (1_795_000_000..).zip(frames).map(|(s, frame)| (s, 123_456, frame)).collect();
        assert_eq!(records(&fs::read(&path).unwrap()), expected);
    }

    #[test]
    fn a_disk_that_stands_still_costs_frames_and_no_time() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("c");
        let mut capture = Capture::create(&path).unwrap();
        // Nobody takes from this channel while it lives.
        let (chunks, stuck) = sync_channel(CHUNKS);
        let disk = capture.chunks.replace(chunks);
        let many = 2 * (CHUNKS + 1) * CHUNK / 1500;
        for _ in 0..many {
            capture.frame(&[1; 1500], UNIX_EPOCH);
        }
        let (left_out, kept) = (capture.left_out, capture.chunk.capacity() + CHUNKS * CHUNK);
        assert!(
            left_out > 0 && kept <= (CHUNKS + 2) * CHUNK,
            "{left_out} of {many} left out, {kept} bytes kept"
        );
        // It moves again.
        let last = std::mem::take(&mut capture.chunk);
        capture.chunks = disk;
        for chunk in stuck.try_iter().chain([last]) {
            // Waits for the real disk, so that the next frame finds room whatever the disk's pace.
            capture.chunks.as_ref().unwrap().send(chunk).unwrap();
        }
        capture.frame(&[2; 1500], UNIX_EPOCH);
        drop(capture);
        let records = records(&fs::read(&path).unwrap());
        assert_eq!(records.len() as u64 + left_out, many as u64 + 1);
        assert_eq!(records.last().unwrap().2, [2; 1500]);
    }

    #[cfg(unix)]
    #[test]
    fn a_full_disk_ends_the_capture() {
        let error = Capture::create(Path::new("/dev/full")).unwrap_err().to_string();
        assert_eq!(error, "cannot create capture file: open /dev/full: no space left on device");
        let mut capture = Capture::create(Path::new("/dev/null")).unwrap();
        let (chunks, gone) = sync_channel(1);
        capture.chunks = Some(chunks);
        drop(gone);
        for _ in 0..1000 {
            capture.frame(&[1; 1500], UNIX_EPOCH);
        }
        capture.hand_over();
        assert!(capture.chunks.is_none() && capture.chunk.capacity() <= 2 * CHUNK);
    }
}
