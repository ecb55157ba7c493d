//! Paths of sockets that go from one gvproxy to the next. A manager that was killed leaves its gvproxy behind, and starts the next one with
//! the same paths: that one takes them, and the one that has lost its last way in ends.
//!
//! Owns: no socket. May not: take a path from another program, or touch the sockets of virtual machines. Read next: `../daemon.rs`.

use std::path::Path;

use anyhow::{Result, anyhow};
use socket2::{Domain, SockAddr, Socket, Type};

use super::{FileId, Made, remove};
use crate::sys::follow::NameWatch;
use crate::sys::{owner, peer_pid};
use crate::text::reason;

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

    /// Removes the sockets that are still there.
    ///
    /// # Errors
    /// The system refuses.
    pub fn make_way(self) -> Result<()> {
        for (Made { path, file }, pid) in self.0 {
            tracing::warn!(path = %path.display(), pid, "taking over the socket of another gvproxy");
            remove(&path, file)
                .map_err(|error| anyhow!("listen unix {}: unlink: {}", path.display(), reason(&error)))?;
        }
        Ok(())
    }
}

/// The socket at `path`, if it is another gvproxy's, and the id of that process.
pub(super) fn of_gvproxy(path: &Path) -> Option<(Made, u32)> {
    let found = FileId::of(&std::fs::symlink_metadata(path).ok()?);
    let owners = owner::of_socket(&std::path::absolute(path).ok()?);
    // One that systemd passed is systemd's as well.
    if owners.is_empty() || !owners.iter().all(owner::Owner::is_gvproxy) {
        return None;
    }
    // Others may have had the path before. This one listens there now, and takes clients that leave at once for what they are.
    let socket = Socket::new(Domain::UNIX, Type::STREAM, None).ok()?;
    socket.set_nonblocking(true).ok()?;
    socket.connect(&SockAddr::unix(path).ok()?).ok()?;
    let pid = peer_pid(std::os::fd::AsFd::as_fd(&socket))?;
    owners.iter().any(|owner| owner.pid == pid).then(|| (Made { path: path.to_owned(), file: found }, pid))
}

/// The paths by which a daemon is reached.
#[derive(Debug)]
pub struct Paths {
    /// Those that the next gvproxy takes.
    pub taken: Vec<Made>,
    /// Those of virtual machines, which it finds removed or cannot have.
    pub kept: Vec<Made>,
}

impl Paths {
    /// Says of each path once that another process has it. Returns when one was lost so, and none is left.
    pub async fn lost(&self) {
        let Self { taken, kept } = self;
        let all = || taken.iter().chain(kept);
        let watch = match NameWatch::of_files(all().filter(|made| made.is_there()).map(Made::path)) {
            Ok(watch) => watch,
            Err(error) => {
                tracing::debug!(%error, "cannot watch the sockets' paths");
                return std::future::pending().await;
            }
        };
        let mut lost = vec![false; taken.len()];
        // Where paths are vacant somebody may be about to bind them; how many there are, and the watch.
        let mut vacant: (usize, Option<NameWatch>) = (0, None);
        loop {
            let mut missing = Vec::new();
            for (made, lost) in taken.iter().zip(&mut lost).filter(|(made, lost)| !**lost && !made.is_there())
            {
                if !made.path.exists() {
                    missing.extend(made.path.parent());
                    continue;
                }
                *lost = true;
                let by: Vec<_> = owner::of_socket(&made.path).iter().map(ToString::to_string).collect();
                tracing::warn!(path = %made.path.display(), by = by.join("; "), "another process has taken over the socket's path");
            }
            if lost.contains(&true) && !all().any(Made::is_there) {
                return;
            }
            if vacant.0 != missing.len() {
                let is_any = !missing.is_empty();
                vacant =
                    (missing.len(), NameWatch::of_directories(missing.into_iter()).ok().filter(|_| is_any));
                continue;
            }
            match &vacant.1 {
                Some(vacant) => tokio::select! {
                    () = watch.changed() => {}
                    () = vacant.changed() => {}
                },
                None => watch.changed().await,
            }
        }
    }
}
