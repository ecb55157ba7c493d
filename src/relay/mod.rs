//! Bytes between two stream descriptors, both directions, moved by the kernel: splice(2) through a pipe that
//! is taken when there is something to move and given back when it is empty.
//!
//! An end is carried over as what it was: a closed half as a closed half, once everything before it has been
//! delivered; a reset as a reset, where the other end is TCP. A side that takes nothing delays nothing but
//! what is for it. Where the kernel cannot splice, or all pipes are in use, a buffer takes the pipe's place.
//!
//! Owns: the descriptors while it runs, the pipes, the counters. May not: look at a byte, know who is at the
//! ends.
//! Read next: `direction.rs`, one direction; `pool.rs`; `crate::sys::pipe`.

mod direction;
mod pool;

#[cfg(test)]
mod tests;

use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use std::future::poll_fn;
use std::io;
use std::pin::Pin;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use rustix::net::{RecvFlags, recv};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::time::{Instant, Sleep, sleep, sleep_until};

use crate::sys::watched::{TELLS_HANG_UP, Watched};
use direction::{Direction, State};
use pool::Pool;

/// How often it is looked whether a peer has taken what a reset, or a close, would take away from it; and how
/// long it may take nothing.
const LOOK: Duration = Duration::from_millis(20);
const SETTLE: Duration = Duration::from_secs(60);
/// How often it is looked whether an end that does not tell is there, as one of vsock that takes nothing.
pub(crate) const VSOCK_LOOK: Duration = Duration::from_secs(1);
/// How long an end may take nothing of what another has sent that has left.
pub(crate) const PATIENCE: Duration = Duration::from_secs(900);

/// Everything that is relayed with the same pipes.
#[derive(Debug)]
pub struct Relays {
    pool: Pool,
    counters: Counters,
}

#[derive(Debug, Default)]
struct Counters {
    open: AtomicUsize,
    spliced: AtomicU64,
    copied: AtomicU64,
}

/// What was relayed, and what that takes now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stats {
    /// Relays that run.
    pub open: usize,
    /// Bytes that the kernel moved, since the start.
    pub spliced: u64,
    /// Bytes that were copied instead.
    pub copied: u64,
    /// Pipes that there are: two descriptors each.
    pub pipes: usize,
    /// Those of them that nobody uses.
    pub spare_pipes: usize,
}

/// How a relay ended.
#[derive(Debug)]
pub struct Ended {
    /// Bytes from the first end that the second one took.
    pub forth: u64,
    /// Bytes the other way.
    pub back: u64,
    /// What went wrong, if it did not end in order.
    pub error: Option<io::Error>,
}

impl Default for Relays {
    /// As many pipes as pay, and not so many that descriptors get scarce.
    fn default() -> Self {
        Self::new(crate::sys::descriptor_share(16, pool::MOST))
    }
}

impl Relays {
    /// Relays that use up to `pipes` pipes at a time. None is made yet.
    pub fn new(pipes: usize) -> Self {
        Self { pool: Pool::new(pipes), counters: Counters::default() }
    }

    /// Descriptors that its pipes take at most.
    pub fn max_descriptors(&self) -> usize {
        2 * self.pool.most()
    }

    /// What was relayed so far.
    pub fn stats(&self) -> Stats {
        let (pipes, spare_pipes) = self.pool.count();
        Stats {
            open: self.counters.open.load(Ordering::Relaxed),
            spliced: self.counters.spliced.load(Ordering::Relaxed),
            copied: self.counters.copied.load(Ordering::Relaxed),
            pipes,
            spare_pipes,
        }
    }

    /// Carries bytes between two connected streams until both directions have ended, and closes them. To be
    /// called in a tokio runtime that has neither of them registered.
    pub async fn carry(&self, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> Ended {
        self.carry_as(first.into(), second.into(), true).await
    }

    /// The same where the other side of `second` would take the end of one half for that of both, as a VMM
    /// that offers vsock at a unix socket does: what it had still to send would be lost. It is told only when
    /// the first stream is closed both ways.
    pub async fn carry_whole(&self, first: impl Into<OwnedFd>, second: impl Into<OwnedFd>) -> Ended {
        self.carry_as(first.into(), second.into(), false).await
    }

    async fn carry_as(&self, first: OwnedFd, second: OwnedFd, halves: bool) -> Ended {
        let mut relay = match Relay::new(self, first, second) {
            Ok(relay) => relay,
            Err(error) => return Ended { forth: 0, back: 0, error: Some(error) },
        };
        relay.ends[1].halves = halves;
        poll_fn(|context| relay.poll(context)).await;
        relay.into_ended()
    }
}

/// One of the two streams.
#[derive(Debug)]
struct End {
    fd: Watched,
    /// How it failed, as by a reset. What it sent before can still be read.
    failed: Option<io::Error>,
    /// Whether its peer can be told that no more comes, and go on sending.
    halves: bool,
    is_vsock: bool,
}

impl End {
    fn new(fd: OwnedFd) -> io::Result<Self> {
        SockRef::from(&fd).set_nonblocking(true)?;
        // Other kinds of streams know nothing of it.
        let _ = SockRef::from(&fd).set_tcp_nodelay(true);
        let fd = Watched::new(fd, Interest::READABLE | Interest::WRITABLE)?;
        let is_vsock = crate::sys::is_vsock(fd.fd());
        Ok(Self { fd, failed: None, halves: true, is_vsock })
    }

    /// As a vsock stream whose buffers are full does not tell by itself.
    fn vsock_hung_up(&self) -> bool {
        self.is_vsock && crate::sys::vsock_hung_up(self.fd.fd())
    }

    /// Makes the close a reset, where it is TCP.
    fn reset_on_close(&self) {
        let _ = SockRef::from(&self.fd.fd()).set_linger(Some(Duration::ZERO));
    }

    /// Whether the other side has closed both ways; see [`Watched::poll_hung_up`].
    fn poll_hung_up(&self, context: &mut Context<'_>) -> bool {
        self.fd.poll_hung_up(context).is_ready() || self.vsock_hung_up()
    }
}

/// Bytes written to the socket that a close, or a reset, would lose: TCP forgets what its peer has not yet
/// taken, other streams deliver at once.
pub(crate) fn unsettled(fd: BorrowedFd<'_>) -> usize {
    let is_tcp = || SockRef::from(&fd).local_addr().is_ok_and(|address| address.as_socket().is_some());
    crate::sys::unsent(fd).filter(|&unsent| unsent > 0 && is_tcp()).unwrap_or(0)
}

/// Reads in vain what is there of a socket that does not block: a close with something unread would be a
/// reset, and who waits for its own write would not get on with reading. Not all of it, of whoever sends on
/// and on.
pub(crate) fn discard(socket: impl AsFd) {
    let mut unread = [0; 16 << 10];
    for _ in 0..64 {
        if !recv(socket.as_fd(), &mut unread, RecvFlags::empty()).is_ok_and(|(_, len)| len > 0) {
            break;
        }
    }
}

/// Waits until a close loses nothing that was written to `socket`, though there may be bytes that nobody
/// reads: with those it would be a reset. Not for ever.
pub(crate) async fn settle(socket: BorrowedFd<'_>) {
    let mut settling = None;
    poll_fn(|context| match unsettled(socket) {
        0 => Poll::Ready(()),
        left => settling.get_or_insert_with(|| Settling::new(left)).poll(context, left),
    })
    .await;
}

#[derive(Debug)]
struct Relay<'a> {
    relays: &'a Relays,
    ends: [End; 2],
    /// Each from the end of the same index to the other.
    directions: [Direction<'a>; 2],
    /// The first end has left, and the other does not take what it had sent.
    left: Option<Left>,
    /// Both directions are over; what was delivered is still to be taken.
    settling: Option<Settling>,
    /// When it is looked again whether an end of vsock that takes nothing is there.
    look: Option<Pin<Box<Sleep>>>,
}

/// The patience with who takes nothing, anew with each byte that it takes.
#[derive(Debug)]
struct Left {
    until: Pin<Box<Sleep>>,
    moved: u64,
}

/// How long until it is looked again whether an end has settled, and until that is given up.
#[derive(Debug)]
struct Settling {
    look: Pin<Box<Sleep>>,
    until: Instant,
    left: usize,
}

impl<'a> Relay<'a> {
    fn new(relays: &'a Relays, first: OwnedFd, second: OwnedFd) -> io::Result<Self> {
        let ends = [End::new(first)?, End::new(second)?];
        relays.counters.open.fetch_add(1, Ordering::Relaxed);
        Ok(Self {
            relays,
            ends,
            directions: [Direction::default(), Direction::default()],
            left: None,
            settling: None,
            look: None,
        })
    }

    fn poll(&mut self, context: &mut Context<'_>) -> Poll<()> {
        let Self { relays, ends: [first, second], directions: [forth, back], left, .. } = self;
        forth.advance(context, relays, first, second);
        back.advance(context, relays, second, first);
        if back.state == State::Done && forth.is_idle() && second.poll_hung_up(context) {
            forth.lose();
        }
        if forth.state == State::Done && back.is_idle() && first.poll_hung_up(context) {
            back.lose();
        }
        // What a service has sent that is done waits for its client for as long as that is there.
        if forth.is_blocked()
            && !back.holds_any()
            && first.poll_hung_up(context)
            && left.get_or_insert_with(|| Left::new(forth.moved)).poll(context, forth.moved).is_ready()
        {
            forth.lose();
            back.lose();
        }
        self.look_again(context);
        let Self { ends: [first, second], directions: [forth, back], .. } = self;
        // The end of what a failed end sent is a reset, which ends the other way too.
        let resets = [
            back.state == State::Done && second.failed.is_some(),
            forth.state == State::Done && first.failed.is_some(),
        ];
        let is_over = |way: &Direction<'_>| matches!(way.state, State::Done | State::Lost);
        if resets == [false; 2] && !self.directions.iter().all(is_over) {
            return Poll::Pending;
        }
        let lost = [self.directions[0].state == State::Lost, self.directions[1].state == State::Lost];
        for ((end, reset), lost) in self.ends.iter().zip(resets).zip(lost) {
            if (reset || lost)
                && end.failed.is_none()
                && let left @ 1.. = unsettled(end.fd.fd())
            {
                ready!(self.settling.get_or_insert_with(|| Settling::new(left)).poll(context, left));
                break;
            }
        }
        for (end, reset) in self.ends.iter().zip(resets) {
            if reset {
                end.reset_on_close();
            }
        }
        Poll::Ready(())
    }

    /// Gives up what an end of vsock takes nothing of that is gone; and comes back to look again while one
    /// takes nothing, or where nobody is woken when the other side of an end has left.
    fn look_again(&mut self, context: &mut Context<'_>) {
        let Self { ends: [first, second], directions: [forth, back], look, .. } = self;
        let mut is_one_blocked = !TELLS_HANG_UP;
        for (way, to) in [(forth, second), (back, first)] {
            if !(to.is_vsock && way.is_blocked()) {
                continue;
            }
            is_one_blocked = true;
            if to.vsock_hung_up() {
                way.lose();
                context.waker().wake_by_ref();
            }
        }
        let again = || Box::pin(sleep(VSOCK_LOOK));
        if is_one_blocked && look.get_or_insert_with(again).as_mut().poll(context).is_ready() {
            *look = None;
            context.waker().wake_by_ref();
        }
    }

    fn into_ended(mut self) -> Ended {
        let [first, second] = &mut self.ends;
        let error = first.failed.take().or_else(|| second.failed.take());
        Ended { forth: self.directions[0].moved, back: self.directions[1].moved, error }
    }
}

impl Left {
    fn new(moved: u64) -> Self {
        Self { until: Box::pin(sleep_until(Instant::now() + PATIENCE)), moved }
    }

    fn poll(&mut self, context: &mut Context<'_>, moved: u64) -> Poll<()> {
        if moved != self.moved {
            *self = Self::new(moved);
        }
        self.until.as_mut().poll(context)
    }
}

impl Settling {
    fn new(left: usize) -> Self {
        let now = Instant::now();
        Self { look: Box::pin(sleep_until(now + LOOK)), until: now + SETTLE, left }
    }

    /// Comes back to look again; ready when for long enough nothing was taken of what is `left`.
    fn poll(&mut self, context: &mut Context<'_>, left: usize) -> Poll<()> {
        if left != self.left {
            (self.until, self.left) = (Instant::now() + SETTLE, left);
        }
        while self.look.as_mut().poll(context).is_ready() {
            let now = Instant::now();
            if now >= self.until {
                return Poll::Ready(());
            }
            self.look.as_mut().reset(now + LOOK);
        }
        Poll::Pending
    }
}

impl Drop for Relay<'_> {
    fn drop(&mut self) {
        self.relays.counters.open.fetch_sub(1, Ordering::Relaxed);
    }
}
