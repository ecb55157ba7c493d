//! One direction of a relay. Owns: the bytes that are on their way. Read next: `pool.rs`.

use rustix::fd::BorrowedFd;
use std::io;
use std::sync::atomic::Ordering;
use std::task::{Context, Poll, ready};

use rustix::net::{RecvFlags, SendFlags, Shutdown, recv, send, shutdown};
use tokio::io::Interest;

use super::pool::{PooledPipe, SIZE};
use super::{End, Relays};
use crate::sys::pipe::is_unsupported;

/// Bytes moved in a turn: then others have theirs.
const TURN: usize = 1 << 20;
/// Bytes of what takes a pipe's place.
const BUFFER: usize = 64 << 10;

/// How far a direction is.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) enum State {
    /// More may come.
    #[default]
    Open,
    /// No more comes; what is on its way is still to be delivered.
    Ended,
    /// Everything is delivered, the end too.
    Done,
    /// Nobody takes it. What comes is read in vain until the other direction is done, so that its sender can
    /// get on with reading that.
    Lost,
}

#[derive(Debug, Default)]
pub(super) struct Direction<'a> {
    pub(super) state: State,
    /// Bytes that were delivered.
    pub(super) moved: u64,
    held: Held<'a>,
    /// These descriptors cannot be spliced.
    copies: bool,
    /// The receiver had no room when it was last tried.
    blocked: bool,
}

/// What is on its way.
#[derive(Debug, Default)]
enum Held<'a> {
    #[default]
    Nothing,
    Pipe(PooledPipe<'a>),
    Buffer {
        bytes: Box<[u8]>,
        from: usize,
        to: usize,
    },
}

impl<'a> Held<'a> {
    fn is_empty(&mut self) -> bool {
        match self {
            Self::Nothing => true,
            Self::Pipe(loan) => loan.pipe().is_none_or(|pipe| pipe.held() == 0),
            Self::Buffer { from, to, .. } => from == to,
        }
    }

    fn buffer() -> Self {
        Self::Buffer { bytes: vec![0; BUFFER].into_boxed_slice(), from: 0, to: 0 }
    }

    /// Reads once, where nothing is held.
    fn fill(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        match self {
            Self::Nothing => Err(io::ErrorKind::WouldBlock.into()),
            Self::Pipe(loan) => loan.pipe().map_or(Ok(0), |pipe| pipe.fill(fd, SIZE)),
            Self::Buffer { bytes, from, to } => {
                (*from, *to) = (0, 0);
                *to = recv(fd, &mut **bytes, RecvFlags::empty())?.1;
                Ok(*to)
            }
        }
    }

    /// Writes once, where something is held.
    fn drain(&mut self, fd: BorrowedFd<'_>) -> io::Result<usize> {
        match self {
            Self::Nothing => Ok(0),
            Self::Pipe(loan) => loan.pipe().map_or(Ok(0), |pipe| pipe.drain(fd)),
            Self::Buffer { bytes, from, to } => {
                let written = send(fd, bytes.get(*from..*to).unwrap_or_default(), SendFlags::empty())?;
                *from += written;
                Ok(written)
            }
        }
    }

    /// Puts what is in a pipe into a buffer.
    fn copy_out(&mut self) -> io::Result<()> {
        let Self::Pipe(loan) = self else { return Ok(()) };
        let mut bytes = Vec::new();
        while let Some(pipe) = loan.pipe().filter(|pipe| pipe.held() > 0) {
            let start = bytes.len();
            bytes.resize(start + pipe.held(), 0);
            let read = pipe.read(bytes.get_mut(start..).unwrap_or_default())?;
            bytes.truncate(start + read);
            if read == 0 {
                break;
            }
        }
        *self = Self::Buffer { from: 0, to: bytes.len(), bytes: bytes.into_boxed_slice() };
        Ok(())
    }
}

impl<'a> Direction<'a> {
    /// Whether it is open, and nothing is on its way.
    pub(super) fn is_idle(&mut self) -> bool {
        self.state == State::Open && self.held.is_empty()
    }

    /// Whether something is on its way.
    pub(super) fn holds_any(&mut self) -> bool {
        !self.held.is_empty()
    }

    /// Whether that is because the receiver takes nothing.
    pub(super) fn is_blocked(&mut self) -> bool {
        self.blocked && self.holds_any()
    }

    /// The receiver is gone.
    pub(super) fn lose(&mut self) {
        (self.state, self.held) = (State::Lost, Held::Nothing);
    }

    /// Moves what can be moved now, up to a turn's bytes, and arranges to be woken for the rest.
    pub(super) fn advance(
        &mut self,
        context: &mut Context<'_>,
        relays: &'a Relays,
        from: &mut End,
        to: &mut End,
    ) {
        let mut budget = TURN;
        loop {
            let moved = match self.state {
                _ if !self.held.is_empty() => self.poll_drain(context, relays, to),
                State::Open => self.poll_fill(context, relays, from),
                State::Ended => {
                    self.held = Held::Nothing;
                    self.state = State::Done;
                    if from.failed.is_none() && to.halves {
                        // A receiver that is gone needs no telling.
                        let _ = shutdown(to.fd.fd(), Shutdown::Write);
                    }
                    return;
                }
                State::Lost => self.poll_discard(context, from),
                State::Done => return,
            };
            let Poll::Ready(moved) = moved else { break };
            budget = budget.saturating_sub(moved);
            if budget == 0 {
                context.waker().wake_by_ref();
                break;
            }
        }
        if self.held.is_empty() {
            self.held = Held::Nothing;
        }
    }

    fn poll_fill(&mut self, context: &mut Context<'_>, relays: &'a Relays, from: &mut End) -> Poll<usize> {
        loop {
            if let Err(error) = ready!(from.fd.poll_readable(context)) {
                return self.fail(from, error);
            }
            if matches!(self.held, Held::Nothing) {
                let loan = if self.copies { None } else { relays.pool.lend() };
                self.held = loan.map_or_else(Held::buffer, Held::Pipe);
            }
            match from.fd.try_io(Interest::READABLE, |fd| self.held.fill(fd)) {
                Ok(0) => {
                    self.state = State::Ended;
                    return Poll::Ready(0);
                }
                // Counted when it is written.
                Ok(_) => return Poll::Ready(0),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Err(error) if is_unsupported(&error) && !self.copies => {
                    (self.copies, self.held) = (true, Held::Nothing);
                }
                Err(error) => return self.fail(from, error),
            }
        }
    }

    /// The sender has failed: what it sent before has been read.
    fn fail(&mut self, from: &mut End, error: io::Error) -> Poll<usize> {
        from.failed.get_or_insert(error);
        self.state = State::Ended;
        Poll::Ready(0)
    }

    fn poll_drain(&mut self, context: &mut Context<'_>, relays: &Relays, to: &mut End) -> Poll<usize> {
        loop {
            if self.blocked
                && let Err(error) = ready!(to.fd.poll_writable(context))
            {
                return self.refuse(to, error);
            }
            let drained = match self.blocked {
                true => to.fd.try_io(Interest::WRITABLE, |fd| self.held.drain(fd)),
                false => self.held.drain(to.fd.fd()),
            };
            match drained {
                Ok(moved) => {
                    self.blocked = false;
                    self.moved += moved as u64;
                    let counter = match self.held {
                        Held::Buffer { .. } => &relays.counters.copied,
                        _ => &relays.counters.spliced,
                    };
                    counter.fetch_add(moved as u64, Ordering::Relaxed);
                    return Poll::Ready(moved);
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.blocked = true,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(error) if is_unsupported(&error) && !self.copies => {
                    self.copies = true;
                    if let Err(error) = self.held.copy_out() {
                        return self.refuse(to, error);
                    }
                }
                Err(error) => return self.refuse(to, error),
            }
        }
    }

    /// The receiver takes nothing any more. If it failed by that, what it sent before it did can still be
    /// read.
    fn refuse(&mut self, to: &mut End, error: io::Error) -> Poll<usize> {
        if error.kind() != io::ErrorKind::BrokenPipe {
            to.failed.get_or_insert(error);
        }
        self.lose();
        Poll::Ready(0)
    }

    fn poll_discard(&mut self, context: &mut Context<'_>, from: &mut End) -> Poll<usize> {
        let mut bytes = [0; 4 << 10];
        loop {
            if ready!(from.fd.poll_readable(context)).is_err() {
                self.state = State::Done;
                return Poll::Ready(0);
            }
            let read = |fd: BorrowedFd<'_>| Ok(recv(fd, &mut bytes, RecvFlags::empty())?.1);
            match from.fd.try_io(Interest::READABLE, read) {
                Ok(read @ 1..) => return Poll::Ready(read),
                Err(error)
                    if matches!(error.kind(), io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted) => {}
                Ok(_) | Err(_) => {
                    self.state = State::Done;
                    return Poll::Ready(0);
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use rustix::fd::AsFd as _;
    use std::io::{Read as _, Write as _};

    use super::*;
    use crate::sys::stream::pair;

    /// A receiver that cannot be spliced into gets what is in the pipe by way of a buffer.
    #[test]
    fn a_pipe_is_copied_out_whole() {
        if !crate::sys::pipe::SPLICES {
            return;
        }
        let relays = Relays::default();
        let (mut near, far) = pair().unwrap();
        let bytes: Vec<u8> = (0..150_000_u32).map(|i| (i / 7) as u8).collect();
        near.write_all(&bytes).unwrap();
        let mut held = Held::Pipe(relays.pool.lend().unwrap());
        let filled = held.fill(far.as_fd()).unwrap();
        assert!(filled > 0);
        held.copy_out().unwrap();
        let (mut near, far) = pair().unwrap();
        let mut drained = 0;
        while !held.is_empty() {
            drained += held.drain(far.as_fd()).unwrap();
        }
        drop(far);
        let mut got = Vec::new();
        near.read_to_end(&mut got).unwrap();
        assert_eq!((drained, got == bytes[..filled]), (filled, true));
        assert_eq!(relays.stats().pipes, relays.stats().spare_pipes);
    }
}
