//! A bad link between two QEMU sockets: rate, queue, delay, loss and frames that are held back, drawn from a
//! seed.
//! Owns: two threads, one for each direction. May not: look into a frame. Read next: `relay.rs`, what is
//! plugged in.

use std::cmp::Reverse;
use std::collections::BinaryHeap;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};

/// The longest frame, with a little room.
const MAX_FRAME: usize = 65536 + 64;
/// What a frame costs on the wire beside its bytes: preamble, checksum and gap of Ethernet.
const OVERHEAD: usize = 24;

/// What one direction does to frames, in this order: the queue before the transmitter, loss, delay, being
/// held back.
#[derive(Clone, Copy, Debug)]
pub struct Quality {
    /// Bit/s of the transmitter; `None`: no limit, and then no queue.
    pub rate: Option<u64>,
    /// Frames that wait for the transmitter at most; one more is lost.
    pub queue: usize,
    /// One way.
    pub delay: Duration,
    /// Of 1000 frames.
    pub loss: u64,
    /// Of 1000 frames, those that come 1 to 3 ms late while others overtake them.
    pub late: u64,
}

impl Quality {
    /// 100 Mbit/s with a queue of 500 frames, half of what a Linux tap has.
    pub const CLEAN: Self =
        Self { rate: Some(100_000_000), queue: 500, delay: Duration::ZERO, loss: 0, late: 0 };

    pub fn delay(self, milliseconds: u64) -> Self {
        Self { delay: Duration::from_millis(milliseconds), ..self }
    }

    pub fn loss(self, permille: u64) -> Self {
        Self { loss: permille, ..self }
    }

    pub fn late(self, permille: u64) -> Self {
        Self { late: permille, ..self }
    }
}

/// A running link; it ends when either side does or when it is dropped.
#[derive(Debug)]
pub struct Wire {
    near: UnixStream,
    threads: Vec<JoinHandle<()>>,
}

impl Wire {
    /// Puts the link in front of `near`; what was to be plugged into that is plugged into the returned
    /// socket.
    pub fn before(near: UnixStream, quality: Quality, seed: u64) -> (Self, UnixStream) {
        let (far, end) = UnixStream::pair().expect("a socket pair");
        let mut threads = Vec::new();
        for (from, to, seed) in [(&near, &far, seed), (&far, &near, seed.wrapping_add(1))] {
            let (from, to) = (from.try_clone().unwrap(), to.try_clone().unwrap());
            let direction = Direction::new(quality, seed);
            threads.push(std::thread::spawn(move || {
                let _ = direction.carry(&from, &to);
                let _ = from.shutdown(Shutdown::Both);
                let _ = to.shutdown(Shutdown::Both);
            }));
        }
        (Self { near, threads }, end)
    }
}

impl Drop for Wire {
    fn drop(&mut self) {
        let _ = self.near.shutdown(Shutdown::Both);
        for thread in self.threads.drain(..) {
            let _ = thread.join();
        }
    }
}

#[derive(Debug)]
struct Direction {
    quality: Quality,
    random: u64,
    /// When the transmitter has sent all that it took.
    idle_at: Instant,
    /// Frames on their way: when they arrive, and the order in which they were sent.
    frames: BinaryHeap<Reverse<(Instant, u64, Vec<u8>)>>,
    count: u64,
}

impl Direction {
    fn new(quality: Quality, seed: u64) -> Self {
        let random = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
        Self { quality, random, idle_at: Instant::now(), frames: BinaryHeap::new(), count: 0 }
    }

    /// xorshift64 (Marsaglia 2003), below `bound`.
    fn below(&mut self, bound: u64) -> u64 {
        self.random ^= self.random << 13;
        self.random ^= self.random >> 7;
        self.random ^= self.random << 17;
        (self.random >> 11) % bound
    }

    fn take(&mut self, frame: &[u8], now: Instant) {
        let mut at = now;
        if let Some(rate) = self.quality.rate {
            let nanos = |bytes: usize| Duration::from_nanos(bytes as u64 * 8_000_000_000 / rate);
            let waiting = self.idle_at.saturating_duration_since(now);
            if waiting > nanos(1514 + OVERHEAD) * self.quality.queue as u32 {
                return;
            }
            self.idle_at = now + waiting + nanos(frame.len() + OVERHEAD);
            at = self.idle_at;
        }
        if self.below(1000) < self.quality.loss {
            return;
        }
        at += self.quality.delay;
        if self.below(1000) < self.quality.late {
            at += Duration::from_micros(1000 + self.below(2000));
        }
        self.count += 1;
        self.frames.push(Reverse((at, self.count, frame.to_vec())));
    }

    /// Puts the frames that have arrived behind each other, in QEMU's framing, and says when the next one
    /// will.
    fn arrived(&mut self, batch: &mut Vec<u8>, now: Instant) -> Option<Duration> {
        while let Some(Reverse((at, _, _))) = self.frames.peek() {
            if *at > now {
                return Some(*at - now);
            }
            if let Some(Reverse((_, _, frame))) = self.frames.pop() {
                batch.extend_from_slice(&u32::try_from(frame.len()).unwrap().to_be_bytes());
                batch.extend_from_slice(&frame);
            }
        }
        None
    }

    fn carry(mut self, mut from: &UnixStream, mut to: &UnixStream) -> io::Result<()> {
        let mut buffer = vec![0; 4 * MAX_FRAME];
        let mut filled = 0;
        let mut batch = Vec::new();
        loop {
            batch.clear();
            let wait = self.arrived(&mut batch, Instant::now());
            to.write_all(&batch)?;
            let wait = wait.map(|wait| Timespec {
                tv_sec: wait.as_secs() as i64,
                tv_nsec: i64::from(wait.subsec_nanos()),
            });
            let mut fds = [PollFd::new(&from, PollFlags::IN)];
            match poll(&mut fds, wait.as_ref()) {
                Ok(0) | Err(rustix::io::Errno::INTR) => continue,
                Ok(_) => {}
                Err(error) => return Err(error.into()),
            }
            let read = from.read(&mut buffer[filled..])?;
            if read == 0 {
                return Ok(());
            }
            filled += read;
            let now = Instant::now();
            let mut rest = &buffer[..filled];
            while let Some((length, behind)) = rest.split_first_chunk::<4>() {
                let Some((frame, behind)) = behind.split_at_checked(u32::from_be_bytes(*length) as usize)
                else {
                    break;
                };
                self.take(frame, now);
                rest = behind;
            }
            let left = rest.len();
            buffer.copy_within(filled - left..filled, 0);
            filled = left;
        }
    }
}
