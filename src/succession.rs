//! Paths of sockets that go from one gvproxy to the next. A manager that was killed leaves its gvproxy
//! behind, and starts the next one with the same paths: that one takes them, and the one that has lost its
//! last way in ends. Of a path that is only removed the log tells.
//!
//! Owns: no socket. May not: take a path from another program, or connect to a socket that is a virtual
//! machine's. Read next: `daemon.rs`.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fs;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, anyhow};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::sleep;

use crate::cli::{self, Parsed};
use crate::config::Asked;
use crate::disk;
use crate::listen::{Made, remove};
use crate::sys::files::FileId;
use crate::sys::follow::NameWatch;
use crate::sys::os_str::from_bytes;
use crate::sys::owner::{self, Owner};
use crate::sys::peer_pid;
use crate::text::reason;

/// How often to look where the system does not tell when.
const LOOK: Duration = Duration::from_secs(1);
/// How long a process may take to listen at a socket that it has made.
const SETTLE: Duration = Duration::from_millis(500);

/// The sockets of other gvproxies at paths that are wanted.
#[derive(Debug)]
pub struct Predecessors(Vec<(Made, u32)>);

impl Predecessors {
    /// Those at `paths`, now. What comes later was started beside us, and is not taken from.
    pub fn at<'a>(paths: impl Iterator<Item = &'a Path>) -> Self {
        Self(paths.filter_map(of_gvproxy).collect())
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Removes the one at `path`, if there is one and it is still there, for a socket that is about to be
    /// made.
    ///
    /// # Errors
    /// The system refuses.
    pub fn make_way(&self, path: &Path) -> Result<()> {
        for (Made { path, file }, pid) in self.0.iter().filter(|(made, _)| made.path == path) {
            tracing::warn!(path = %path.display(), pid, "taking over the socket of another gvproxy");
            remove(path, *file)
                .map_err(|error| anyhow!("listen unix {}: unlink: {}", path.display(), reason(&error)))?;
        }
        Ok(())
    }
}

/// The socket for clients at `path`, if it is another gvproxy's, and the id of that process.
pub(crate) fn of_gvproxy(path: &Path) -> Option<(Made, u32)> {
    let found = FileId::at(path).ok()?;
    let owners = owner::of_socket(&std::path::absolute(path).ok()?);
    // One that systemd passed is systemd's as well.
    if owners.is_empty() || !owners.iter().all(|owner| owner.is_gvproxy() && is_for_clients(owner.pid, found))
    {
        return None;
    }
    // Others may have had the path before. This one listens there now, and takes clients that leave at once
    // for what they are.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(&SockAddr::unix(path).ok()?).ok()?;
    let pid = peer_pid(rustix::fd::AsFd::as_fd(&socket))?;
    owners.iter().any(|owner| owner.pid == pid).then(|| (Made { path: path.to_owned(), file: found }, pid))
}

/// Whether the gvproxy was told to serve clients at `file`. Whoever connects to one of its other sockets is
/// its virtual machine.
fn is_for_clients(pid: u32, file: FileId) -> bool {
    let Ok(words) = fs::read(format!("/proc/{pid}/cmdline")) else { return false };
    let words = words.strip_suffix(b"\0").unwrap_or(&words).split(|byte| *byte == 0);
    let argv: Vec<OsString> = words.map(|word| from_bytes(word.to_vec())).collect();
    let Parsed::Run(mut args) = cli::parse(&argv) else { return false };
    // Relative paths are relative to this.
    let directory = PathBuf::from(format!("/proc/{pid}/cwd"));
    if !args.config.is_empty() {
        let config = directory.join(&args.config);
        // What is no file gave its content once.
        if !config.is_file() {
            return false;
        }
        args.config = config.into();
    }
    let Ok(asked) = Asked::new(*args) else { return false };
    let is_it = |path: PathBuf| FileId::at(&directory.join(path)).is_ok_and(|at| at == file);
    asked.sockets().into_iter().any(is_it)
}

/// The paths by which a daemon is reached.
#[derive(Debug)]
pub struct Paths {
    /// Those that the next gvproxy takes.
    pub taken: Vec<Made>,
    /// Those of virtual machines, which it finds removed or cannot have.
    pub kept: Vec<Made>,
}

/// What there is at the path of a socket.
enum Found {
    Ours,
    Nothing,
    Anothers(Vec<Owner>),
}

/// What may change: our files, and those that are missing, where somebody may be about to make another.
#[derive(Debug, Default, PartialEq, Eq)]
struct Names {
    files: Vec<PathBuf>,
    missing: Vec<PathBuf>,
}

impl Paths {
    /// Says of each path once that another process has it, or that it is gone. Returns when one was lost to
    /// another, and none is left.
    pub async fn lost(&self) {
        let mut lost = vec![false; self.taken.len()];
        let (mut watched, mut watch) = (Names::default(), None);
        let mut told = BTreeSet::new();
        loop {
            let mut names = self.look(&mut lost).await;
            told.retain(|path| names.missing.contains(path));
            if names.missing.iter().any(|path| !told.contains(path)) {
                // Whoever removed it may be about to make another.
                sleep(LOOK).await;
                names = self.look(&mut lost).await;
                for path in &names.missing {
                    if told.insert(path.clone()) {
                        tracing::warn!(path = %path.display(), "the socket's file was removed: no client can connect until gvproxy is started again");
                    }
                }
            }
            if lost.contains(&true) && names.files.is_empty() {
                return;
            }
            if watch.is_none() || names != watched {
                watch = names.watch().await;
                watched = names;
                // Something may have happened before it was watched.
                if watch.is_some() {
                    continue;
                }
            }
            match &watch {
                Some(watch) => watch.changed().await,
                None => sleep(LOOK).await,
            }
        }
    }

    /// What there is to be watched now; marks in `lost` which paths are another's.
    async fn look(&self, lost: &mut [bool]) -> Names {
        let mut names = Names::default();
        for (made, lost) in self.taken.iter().zip(lost).filter(|(_, lost)| !**lost) {
            match found(made).await {
                Found::Ours => names.files.push(made.path.clone()),
                Found::Nothing => names.missing.push(made.path.clone()),
                Found::Anothers(owners) => {
                    *lost = true;
                    let by: Vec<_> = owners.iter().map(ToString::to_string).collect();
                    tracing::warn!(path = %made.path.display(), by = by.join("; "), "another process has taken over the socket's path");
                }
            }
        }
        for made in &self.kept {
            if matches!(found(made).await, Found::Ours) {
                names.files.push(made.path.clone());
            }
        }
        names
    }
}

/// Where the file system does not answer nobody has taken anything.
async fn found(made: &Made) -> Found {
    let Made { path, file } = made.clone();
    let look = move || match FileId::at(&path) {
        Ok(found) if found == file => Found::Ours,
        Ok(_) => Found::Anothers(owner::of_new_socket(&path, SETTLE)),
        Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::NotADirectory) => {
            Found::Nothing
        }
        // Who may not look knows nothing of it.
        Err(_) => Found::Ours,
    };
    disk::ask(made.path(), look).await.unwrap_or(Found::Ours)
}

impl Names {
    /// `None` where not all can be watched.
    async fn watch(&self) -> Option<Arc<NameWatch>> {
        let watch = Arc::new(NameWatch::new().ok()?);
        let files =
            self.files.iter().map(|path| (path.as_path(), NameWatch::add_file as fn(&NameWatch, &Path) -> _));
        let directories = self.missing.iter().filter_map(|path| path.parent());
        let directories = directories.map(|path| (path, NameWatch::add_directory as _));
        for (path, add) in files.chain(directories) {
            let (watch, name) = (Arc::clone(&watch), path.to_owned());
            if let Err(error) = disk::ask(path, move || add(&watch, &name)).await.flatten() {
                tracing::debug!(path = %path.display(), %error, "cannot watch a socket's path");
                return None;
            }
        }
        Some(watch)
    }
}
