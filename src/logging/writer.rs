//! The thread that writes the log, so that nobody else waits for a pipe or a disk. Owns: the lines on their
//! way, the file.
//! May not: grow, or hold up the end of the process. Read next: `../logging.rs`, which makes the lines.
//!
//! What finds no room, or cannot be written, is lost and counted; a line says how much once one can be
//! written again, a second later at most. Of a file that takes nothing standard error hears, once each time.

use std::fs::File;
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use super::Format;
use crate::disk;
use crate::sys::stdio::{wait_for, wait_for_stderr};
use crate::text::reason;

/// Bytes of lines that wait for the target; as many again may be on their way to it.
const ROOM: usize = 1 << 20;
/// Whole lines up to so many bytes are one system call, so that a pipe does not mix them with another
/// process's (`PIPE_BUF`).
const TOGETHER: usize = 4096;
/// A target that took nothing for so long is not waited for at the end.
const PATIENCE: Duration = Duration::from_secs(1);
/// How often a target that refused a line is tried again while there is nothing else to write.
const RETRY: Duration = Duration::from_secs(1);
/// What a writer holds on to while there is nothing to write, in bytes.
const KEPT: usize = 64 << 10;

/// Where lines go.
#[derive(Debug)]
enum Target {
    Stderr,
    File(File),
}

impl Target {
    /// Some of `bytes`, at least one. Waits for room also where the descriptor does not.
    fn write(&self, bytes: &[u8]) -> io::Result<usize> {
        loop {
            let written = match self {
                Self::Stderr => io::stderr().write(bytes),
                Self::File(file) => (&*file).write(bytes),
            };
            match written {
                Ok(0) => return Err(io::ErrorKind::WriteZero.into()),
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                // Another process that has it may have made it so (open(2), O_NONBLOCK).
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => self.wait()?,
                written => return written,
            }
        }
    }

    fn wait(&self) -> io::Result<()> {
        match self {
            Self::Stderr => wait_for_stderr(),
            Self::File(file) => wait_for(file),
        }
    }
}

/// Takes lines for one target. Clones share it.
#[derive(Clone, Debug)]
pub(super) struct Writer(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    state: Mutex<State>,
    /// There is something to do for the thread.
    work: Condvar,
    /// The thread took a step.
    step: Condvar,
    /// The file that is opened again when asked to.
    path: Option<PathBuf>,
}

#[derive(Debug, Default)]
struct State {
    lines: Vec<u8>,
    /// Lines that found no room since `lines` was last taken.
    lost: u64,
    /// The file is to be opened again.
    reopen: bool,
    /// Since when the thread waits for the target.
    since: Option<Instant>,
}

impl State {
    fn is_empty(&self) -> bool {
        self.lines.is_empty() && self.lost == 0 && !self.reopen
    }
}

impl Writer {
    /// Standard error.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn stderr(format: Format) -> io::Result<Self> {
        Self::spawn(Target::Stderr, None, format, None)
    }

    /// The file at `path`, emptied now. `stderr` hears of it when it takes nothing.
    ///
    /// # Errors
    /// It cannot be made or emptied; or the system has no thread to give.
    pub(super) fn file(path: &Path, format: Format, stderr: Self) -> io::Result<Self> {
        let file = disk::append(path)?;
        // What is no regular file has no length.
        if file.metadata()?.is_file() {
            file.set_len(0)?;
        }
        Self::spawn(Target::File(file), Some(path.to_owned()), format, Some(stderr))
    }

    fn spawn(
        target: Target,
        path: Option<PathBuf>,
        format: Format,
        stderr: Option<Self>,
    ) -> io::Result<Self> {
        let (state, work, step) = Default::default();
        let shared = Arc::new(Shared { state, work, step, path });
        let (own, lost, why, torn) = (Arc::clone(&shared), 0, None, false);
        let thread = Thread { shared: own, target, format, stderr, lost, why, torn };
        thread::Builder::new().name("log".to_owned()).spawn(move || thread.run())?;
        Ok(Self(shared))
    }

    /// Has `line` written, or lost. Never waits for the target.
    pub(super) fn write(&self, line: &str) {
        let mut state = self.0.state();
        // Behind a lost one there is none until that is told.
        if state.lost > 0 || state.lines.len() + line.len() > ROOM {
            state.lost += 1;
        } else {
            state.lines.extend_from_slice(line.as_bytes());
        }
        drop(state);
        self.0.work.notify_one();
    }

    /// Has the file opened again, by its name.
    pub(super) fn reopen(&self) {
        self.0.state().reopen = true;
        self.0.work.notify_one();
    }

    /// Returns when everything is written, or lost, or the target takes nothing.
    pub(super) fn flush(&self) {
        let start = Instant::now();
        let mut state = self.0.state();
        while state.since.is_some() || !state.is_empty() {
            let left = PATIENCE.saturating_sub(state.since.unwrap_or(start).min(start).elapsed());
            if left.is_zero() {
                return;
            }
            let waited = self.0.step.wait_timeout(state, left);
            (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// What the thread has.
struct Thread {
    shared: Arc<Shared>,
    target: Target,
    format: Format,
    /// Where to tell that a file takes nothing.
    stderr: Option<Writer>,
    /// Lines that are lost and not yet told of, and why the last one could not be written.
    lost: u64,
    why: Option<String>,
    /// The last that was written is a part of a line.
    torn: bool,
}

impl Thread {
    /// It ends with the process.
    fn run(mut self) {
        let mut lines = Vec::new();
        loop {
            let (refused, reopen) = self.next(&mut lines);
            if reopen {
                self.reopen();
            }
            for piece in pieces(&lines) {
                self.write(piece);
            }
            self.lost += refused;
            self.tell();
        }
    }

    /// Waits for something to do: lines, how many found no room behind them, and whether to open the file
    /// again. Where lines are lost and that is not told yet, it waits no longer than [`RETRY`].
    fn next(&self, lines: &mut Vec<u8>) -> (u64, bool) {
        lines.clear();
        lines.shrink_to(KEPT);
        let mut state = self.shared.state();
        state.since = None;
        self.shared.step.notify_all();
        let wait = if self.lost > 0 { RETRY } else { Duration::MAX };
        let waited = self.shared.work.wait_timeout_while(state, wait, |state| state.is_empty());
        (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        std::mem::swap(&mut state.lines, lines);
        state.since = Some(Instant::now());
        (std::mem::take(&mut state.lost), std::mem::take(&mut state.reopen))
    }

    /// Writes whole lines, or counts them.
    fn write(&mut self, lines: &[u8]) {
        self.tell();
        let written = if self.lost == 0 { self.put(lines) } else { Ok(()) };
        if let Err(error) = &written {
            self.refused(error);
        }
        if self.lost > 0 || written.is_err() {
            self.lost += lines.iter().filter(|byte| **byte == b'\n').count() as u64;
        }
    }

    /// The target takes nothing.
    fn refused(&mut self, error: &io::Error) {
        self.why = Some(reason(error));
        if let (0, Some(stderr), Some(path)) = (self.lost, &self.stderr, &self.shared.path) {
            let fields = [("path", path.display().to_string()), ("reason", reason(error))];
            stderr.write(&self.format.line("error", "the log file takes nothing, lines are lost", &fields));
        }
    }

    /// Tells of lost lines, if there are any and the target takes it.
    fn tell(&mut self) {
        if self.lost == 0 {
            return;
        }
        let mut fields = vec![("lines", self.lost.to_string())];
        fields.extend(self.why.clone().map(|why| ("reason", why)));
        let line = self.format.line("warning", "lines of the log are lost", &fields);
        match self.put(line.as_bytes()) {
            Ok(()) => (self.lost, self.why) = (0, None),
            Err(error) => self.why = Some(reason(&error)),
        }
    }

    fn put(&mut self, lines: &[u8]) -> io::Result<()> {
        let end = if self.torn { &b"\n"[..] } else { b"" };
        for part in [end, lines] {
            let mut rest = part;
            while !rest.is_empty() {
                self.shared.state().since = Some(Instant::now());
                let written = self.target.write(rest)?;
                rest = rest.get(written..).unwrap_or_default();
                self.torn = !rest.is_empty();
                self.shared.step.notify_all();
            }
        }
        Ok(())
    }

    fn reopen(&mut self) {
        let Some(path) = &self.shared.path else { return };
        match disk::append(path) {
            Ok(file) => {
                (self.target, self.torn) = (Target::File(file), false);
                tracing::info!("log file opened again");
            }
            Err(error) => {
                let (path, reason) = (path.display(), reason(&error));
                tracing::error!(%path, reason, "cannot open the log file again");
            }
        }
    }
}

/// `lines` in pieces of whole lines, each as long as fits, and one line at least.
fn pieces(lines: &[u8]) -> impl Iterator<Item = &[u8]> {
    let mut rest = lines;
    std::iter::from_fn(move || {
        let end = |bytes: &[u8]| bytes.iter().rposition(|byte| *byte == b'\n');
        let first = || rest.iter().position(|byte| *byte == b'\n');
        let end = match rest.get(..TOGETHER) {
            Some(start) => end(start).or_else(first)?,
            None => rest.len().checked_sub(1)?,
        };
        let (piece, behind) = rest.split_at(end + 1);
        rest = behind;
        Some(piece)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pieces_are_whole_lines_of_a_page() {
        let lengths = [10, 4000, 85, 1, 5000, 4096, 7];
        let lines: Vec<u8> =
            lengths.iter().flat_map(|len| [vec![b'x'; len - 1], vec![b'\n']].concat()).collect();
        let found: Vec<usize> = pieces(&lines).map(<[u8]>::len).collect();
        assert_eq!(found, [4096, 5000, 4096, 7]);
        assert_eq!(pieces(&lines).flatten().copied().collect::<Vec<_>>(), lines);
        assert_eq!(pieces(b"").count(), 0);
    }
}
