//! Frames between a tap and a link of any framing. Owns: two threads. May not: look into a frame, or drop
//! one.
//! Read next: `guest.rs`, `cable.rs`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::pipe::{PipeFlags, pipe_with};

use crate::cable::{Cable, Framing};

/// The longest frame of a tap, with a little room.
const MAX_FRAME: usize = 65536 + 64;
/// Bytes gathered before one write; more than a unix socket holds by default.
const BATCH: usize = 256 * 1024 + 4 + MAX_FRAME;

/// How long a daemon may take to take the last frame.
const FAREWELL: Duration = Duration::from_secs(1);

/// A running relay; it ends when either side does or when it is dropped.
#[derive(Debug)]
pub struct Relay {
    cable: Arc<Cable>,
    /// Closed to end the thread that waits for the tap.
    running: Option<OwnedFd>,
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

/// Lets a test hold back what goes to the tap, as a guest that does not empty its receive ring, and see how
/// long it was.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    over: AtomicBool,
    longest: AtomicUsize,
}

impl Relay {
    /// `tap` must be non-blocking.
    pub fn start(tap: File, cable: impl Into<Cable>) -> Self {
        let (gate, mut cable) = (Arc::new(Gate::default()), cable.into());
        // Not for the programs that other tests start: its end is to be heard.
        let (over, running) = pipe_with(PipeFlags::CLOEXEC).unwrap();
        // The descriptors for writing are the first thread's alone, so that its end closes a pipe.
        let output = std::mem::replace(&mut cable.output, File::open("/dev/null").unwrap());
        let (framing, cable) = (cable.framing, Arc::new(cable));
        let (from, to, closing, hung_up) =
            (tap.try_clone().unwrap(), tap, Arc::clone(&gate), Arc::clone(&cable));
        let (reads, both) = (Arc::clone(&cable), Arc::clone(&cable));
        let threads = vec![
            std::thread::spawn(move || {
                let _ = from_tap(&from, &output, framing, &over);
                hung_up.shutdown();
            }),
            std::thread::spawn(move || {
                let _ = to_tap(&to, &reads.input, framing, &closing);
                both.shutdown();
            }),
        ];
        Self { cable, running: Some(running), gate, threads }
    }

    /// Stops taking frames from the socket, or goes on with it.
    pub fn hold(&self, hold: bool) {
        *self.gate.closed.lock().unwrap() = hold;
        self.gate.opened.notify_all();
    }

    /// Bytes of the longest frame to the tap since the last time.
    pub fn longest(&self) -> usize {
        self.gate.longest.swap(0, Ordering::AcqRel)
    }

    /// Hangs up, as a VM that is switched off: behind the frame that is being written, where it is taken.
    pub fn stop(&mut self) {
        self.running = None;
        let start = Instant::now();
        while self.threads.first().is_some_and(|writes| !writes.is_finished()) && start.elapsed() < FAREWELL {
            std::thread::sleep(crate::LOOK_EVERY);
        }
        self.cable.shutdown();
        self.gate.over.store(true, Ordering::Release);
        self.hold(false);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

impl Drop for Relay {
    fn drop(&mut self) {
        self.stop();
    }
}

fn from_tap(mut tap: &File, mut link: &File, framing: Framing, over: &OwnedFd) -> io::Result<()> {
    let prefix = framing.prefix();
    let mut batch = vec![0; BATCH];
    loop {
        let mut filled = 0;
        while batch.len() - filled >= prefix + MAX_FRAME {
            let read = tap.read(&mut batch[filled + prefix..filled + prefix + MAX_FRAME]);
            match (read, framing) {
                (Ok(length), Framing::Big32) => {
                    batch[filled..filled + 4].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
                    filled += 4 + length;
                }
                (Ok(length), Framing::Little16) => {
                    batch[filled..filled + 2].copy_from_slice(&u16::try_from(length).unwrap().to_le_bytes());
                    filled += 2 + length;
                }
                (Ok(length), Framing::Message) => link.write_all(&batch[..length])?,
                (Err(error), _) if error.kind() == io::ErrorKind::WouldBlock => break,
                (Err(error), _) => return Err(error),
            }
        }
        if filled > 0 {
            link.write_all(&batch[..filled])?;
            continue;
        }
        // No interest in the others but their ends, which poll always reports.
        let empty = PollFlags::empty();
        let mut fds = [PollFd::new(&tap, PollFlags::IN), PollFd::new(&link, empty), PollFd::new(over, empty)];
        match poll(&mut fds, None) {
            Ok(_) if fds[1].revents().is_empty() && fds[2].revents().is_empty() => {}
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn to_tap(mut tap: &File, mut link: &File, framing: Framing, gate: &Gate) -> io::Result<()> {
    let mut buffer = vec![0; 2 * BATCH];
    let mut filled = 0;
    loop {
        let read = link.read(&mut buffer[filled..])?;
        drop(gate.opened.wait_while(gate.closed.lock().unwrap(), |closed| *closed).unwrap());
        if read == 0 || gate.over.load(Ordering::Acquire) {
            return Ok(());
        }
        filled += read;
        let mut rest = &buffer[..filled];
        while let Some((length, behind)) = next_length(framing, rest) {
            let Some((frame, behind)) = behind.split_at_checked(length) else {
                break;
            };
            gate.longest.fetch_max(frame.len(), Ordering::AcqRel);
            // A tap that is down refuses frames; so does a wire whose far end is down.
            let _ = tap.write(frame);
            rest = behind;
        }
        let left = rest.len();
        buffer.copy_within(filled - left..filled, 0);
        filled = left;
        assert!(filled < BATCH, "the other side announced a frame that no link carries");
    }
}

/// The length of the next frame, and what follows it.
fn next_length(framing: Framing, bytes: &[u8]) -> Option<(usize, &[u8])> {
    match framing {
        Framing::Big32 => {
            bytes.split_first_chunk().map(|(length, rest)| (u32::from_be_bytes(*length) as usize, rest))
        }
        Framing::Little16 => {
            bytes.split_first_chunk().map(|(length, rest)| (u16::from_le_bytes(*length).into(), rest))
        }
        Framing::Message => (!bytes.is_empty()).then_some((bytes.len(), bytes)),
    }
}
