//! Frames between a tap and a stream socket in QEMU's framing: u32 big-endian length, frame. Owns: two threads.
//! May not: look into a frame, or drop one. Read next: `guest.rs`.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;

use rustix::event::{PollFd, PollFlags, poll};

/// The longest frame of a tap, with a little room.
const MAX_FRAME: usize = 65536 + 64;
/// Bytes gathered before one write; more than a unix socket holds by default.
const BATCH: usize = 256 * 1024 + 4 + MAX_FRAME;

/// A running relay; it ends when either side does or when it is dropped.
#[derive(Debug)]
pub(crate) struct Relay {
    socket: UnixStream,
    gate: Arc<Gate>,
    threads: Vec<JoinHandle<()>>,
}

/// Lets a test hold back what goes to the tap, as a guest that does not empty its receive ring, and see how long it was.
#[derive(Debug, Default)]
struct Gate {
    closed: Mutex<bool>,
    opened: Condvar,
    over: AtomicBool,
    longest: AtomicUsize,
}

impl Relay {
    /// `tap` must be non-blocking.
    pub(crate) fn start(tap: File, socket: UnixStream) -> Self {
        let gate = Arc::new(Gate::default());
        let (up, down) =
            ((tap.try_clone().unwrap(), socket.try_clone().unwrap()), (tap, socket.try_clone().unwrap()));
        let closing = Arc::clone(&gate);
        let threads = vec![
            std::thread::spawn(move || {
                let _ = from_tap(&up.0, &up.1);
                let _ = up.1.shutdown(Shutdown::Both);
            }),
            std::thread::spawn(move || {
                let _ = to_tap(&down.0, &down.1, &closing);
                let _ = down.1.shutdown(Shutdown::Both);
            }),
        ];
        Self { socket, gate, threads }
    }

    /// Stops taking frames from the socket, or goes on with it.
    pub(crate) fn hold(&self, hold: bool) {
        *self.gate.closed.lock().unwrap() = hold;
        self.gate.opened.notify_all();
    }

    /// Bytes of the longest frame to the tap since the last time.
    pub(crate) fn longest(&self) -> usize {
        self.gate.longest.swap(0, Ordering::AcqRel)
    }

    /// Hangs up, as a VM that is switched off.
    pub(crate) fn stop(&mut self) {
        let _ = self.socket.shutdown(Shutdown::Both);
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

fn from_tap(mut tap: &File, mut socket: &UnixStream) -> io::Result<()> {
    let mut batch = vec![0; BATCH];
    loop {
        let mut filled = 0;
        while batch.len() - filled >= 4 + MAX_FRAME {
            match tap.read(&mut batch[filled + 4..filled + 4 + MAX_FRAME]) {
                Ok(length) => {
                    batch[filled..filled + 4].copy_from_slice(&u32::try_from(length).unwrap().to_be_bytes());
                    filled += 4 + length;
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => break,
                Err(error) => return Err(error),
            }
        }
        if filled > 0 {
            socket.write_all(&batch[..filled])?;
            continue;
        }
        // No interest in the socket but its end, which poll always reports.
        let mut fds = [PollFd::new(&tap, PollFlags::IN), PollFd::new(&socket, PollFlags::empty())];
        match poll(&mut fds, None) {
            Ok(_) if fds[1].revents().is_empty() => {}
            Ok(_) => return Ok(()),
            Err(rustix::io::Errno::INTR) => {}
            Err(error) => return Err(error.into()),
        }
    }
}

fn to_tap(mut tap: &File, mut socket: &UnixStream, gate: &Gate) -> io::Result<()> {
    let mut buffer = vec![0; 2 * BATCH];
    let mut filled = 0;
    loop {
        let read = socket.read(&mut buffer[filled..])?;
        drop(gate.opened.wait_while(gate.closed.lock().unwrap(), |closed| *closed).unwrap());
        if read == 0 || gate.over.load(Ordering::Acquire) {
            return Ok(());
        }
        filled += read;
        let mut rest = &buffer[..filled];
        while let Some((length, behind)) = rest.split_first_chunk::<4>() {
            let Some((frame, behind)) = behind.split_at_checked(u32::from_be_bytes(*length) as usize) else {
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
