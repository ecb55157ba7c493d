//! Pipes for those who have something to move. Owns: how many there are. Read next: `direction.rs`.

use std::sync::{Mutex, MutexGuard, PoisonError};

use crate::sys::pipe::Pipe;

/// Pipes at a time. With [`SIZE`] half of what Linux lets a user without privileges have in pipes (pipe(7),
/// `pipe-user-pages-soft`).
pub(super) const MOST: usize = 128;
/// Bytes that one may hold: a stream socket's buffer.
pub(super) const SIZE: usize = 256 << 10;

/// Pipes that are kept although nobody uses them. Those whose receiver keeps up use one for a turn.
const SPARE: usize = 16;

#[derive(Debug)]
pub(super) struct Pool {
    most: usize,
    pipes: Mutex<Pipes>,
}

#[derive(Debug, Default)]
struct Pipes {
    spare: Vec<Pipe>,
    /// Spare and lent ones.
    all: usize,
}

impl Pool {
    pub(super) fn new(most: usize) -> Self {
        Self { most, pipes: Mutex::default() }
    }

    /// All, and those of them that are not lent.
    pub(super) fn count(&self) -> (usize, usize) {
        let pipes = self.pipes();
        (pipes.all, pipes.spare.len())
    }

    /// Pipes at a time.
    pub(super) fn most(&self) -> usize {
        self.most
    }

    /// An empty pipe, if one is to be had.
    pub(super) fn lend(&self) -> Option<PooledPipe<'_>> {
        let mut pipes = self.pipes();
        let pipe = match pipes.spare.pop() {
            Some(pipe) => pipe,
            None if pipes.all < self.most => {
                let pipe = Pipe::new(SIZE).ok()?;
                pipes.all += 1;
                pipe
            }
            None => return None,
        };
        Some(PooledPipe { pipe: Some(pipe), pool: self })
    }

    fn pipes(&self) -> MutexGuard<'_, Pipes> {
        self.pipes.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A pipe that is given back when this is dropped, or closed if it holds bytes that nobody wants.
#[derive(Debug)]
pub(super) struct PooledPipe<'a> {
    pipe: Option<Pipe>,
    pool: &'a Pool,
}

impl PooledPipe<'_> {
    /// Always there.
    pub(super) fn pipe(&mut self) -> Option<&mut Pipe> {
        self.pipe.as_mut()
    }
}

impl Drop for PooledPipe<'_> {
    fn drop(&mut self) {
        let mut pipes = self.pool.pipes();
        match self.pipe.take() {
            Some(pipe) if pipe.held() == 0 && pipes.spare.len() < SPARE => pipes.spare.push(pipe),
            _ => pipes.all -= 1,
        }
    }
}
