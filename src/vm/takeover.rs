//! `-listen-qemu` where the path is, or becomes, that of a QMP socket.
//!
//! A manager may name the same path to both programs. If QEMU is first, a QMP greeting is there. If we are,
//! QEMU unlinks our socket and binds its own; then it matters whether a link has come in: podman machine
//! hands QEMU a connection that it made before, and needs the QMP socket for itself.
//!
//! Owns: the path until the first link. May not: touch it after that, or keep the QMP session. Read next:
//! `attach.rs`.

use std::io::{self, Read as _};
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use qmp::{Address as QmpAddress, SlotError};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::time::sleep;

use super::attach::{self, Card};
use super::session::{self, Session};
use super::status::{Connection, Entry};
use super::{Environment, VmChange, bind_beside};
use crate::addr::ListenAddress;
use crate::config::{DEVICE_MAC, LinkConfig};
use crate::disk;
use crate::hypervisor::{HypervisorListener, Presence, Terms};
use crate::listen::{Made, RemoveOnDrop, ensure_vacant};
use crate::supervise::{Backoff, LastFailure};
use crate::sys::follow::NameWatch;
use crate::sys::owner;

/// How long a QEMU that starts may take to greet, and anything else.
const GREETING: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(1));
/// How often to try a server whose backlog is full.
const LOOK: Duration = Duration::from_millis(20);
/// How long a socket that is new may have no owner.
const SETTLE: Duration = Duration::from_secs(2);
/// The pause before a machine is tried again, which doubles.
const PAUSE: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
/// A greeting is shorter.
const MAX_GREETING: usize = 4096;

/// Whether a QMP server is behind the socket at `path`.
pub fn serves_qmp(path: &Path) -> bool {
    let Owner::Other { is_qemu } = Owner::of(path) else { return false };
    greeting(path, if is_qemu { GREETING.0 } else { GREETING.1 }).is_ok_and(|line| {
        serde_json::from_slice(&line).is_ok_and(|greeting: serde_json::Value| greeting.get("QMP").is_some())
    })
}

/// The line with which the server at `path` begins; all of it has to come within `limit`.
fn greeting(path: &Path, limit: Duration) -> io::Result<Vec<u8>> {
    let until = Instant::now() + limit;
    let mut socket = Socket::new(Domain::UNIX, Type::STREAM, None)?;
    socket.set_nonblocking(true)?;
    // Its backlog may be full for a moment.
    while let Err(error) = socket.connect(&SockAddr::unix(path)?) {
        if error.kind() != io::ErrorKind::WouldBlock || Instant::now() >= until {
            return Err(error);
        }
        std::thread::sleep(LOOK);
    }
    socket.set_nonblocking(false)?;
    let (mut line, mut part) = (Vec::new(), [0; MAX_GREETING]);
    while line.len() < MAX_GREETING && !line.contains(&b'\n') {
        let left = until.saturating_duration_since(Instant::now());
        if left.is_zero() {
            return Err(io::ErrorKind::TimedOut.into());
        }
        socket.set_read_timeout(Some(left))?;
        match socket.read(&mut part)? {
            0 => break,
            read => line.extend(part.iter().take(read)),
        }
    }
    Ok(line)
}

/// Whose a listening socket is. Another gvproxy's may not be connected to: it would take that for its virtual
/// machine, and the end of it for the machine's. Nor may one that nobody has whom we can see.
enum Owner {
    Unknown,
    Gvproxy,
    Other { is_qemu: bool },
}

impl Owner {
    fn of(path: &Path) -> Self {
        Self::among(&owner::of_socket(path))
    }

    fn among(owners: &[owner::Owner]) -> Self {
        match owners.is_empty() {
            true => Self::Unknown,
            false if owners.iter().any(|owner| owner.is_gvproxy() || owner.embeds_gvproxy()) => Self::Gvproxy,
            false => Self::Other { is_qemu: owners.iter().any(|owner| owner.program.starts_with("qemu")) },
        }
    }

    /// Of a socket that has just been bound and may not listen yet.
    async fn of_new(path: &Path) -> Self {
        let name = path.to_owned();
        let owners = disk::ask(path, move || owner::of_new_socket(&name, SETTLE)).await;
        owners.map_or(Self::Unknown, |owners| Self::among(&owners))
    }
}

/// The way in of `-listen-qemu unix://`, or the QMP socket that is there in its place.
#[derive(Debug)]
pub struct QemuLink {
    path: PathBuf,
    /// `None` where QEMU serves the path.
    listener: Option<HypervisorListener>,
}

impl QemuLink {
    /// Makes the socket, unless there is a QMP server.
    ///
    /// # Errors
    /// It cannot be made.
    pub fn bind(path: &Path) -> Result<Self> {
        let listener =
            match HypervisorListener::bind(&LinkConfig::Qemu(ListenAddress::private(path.to_owned()))) {
                Err(_) if ensure_vacant(path).is_err() && serves_qmp(path) => None,
                listener => Some(listener?),
            };
        Ok(Self { path: path.to_owned(), listener })
    }

    /// The socket's file, if it is ours.
    pub fn file(&self) -> Option<&RemoveOnDrop> {
        self.listener.as_ref()?.file()
    }

    /// Serves who connects, or attaches who took the path over. Returns when the run is over because of it.
    ///
    /// # Errors
    /// The run is over because of a failure.
    pub async fn serve(self, with: Environment) -> Result<()> {
        let Self { path, listener } = self;
        let qmp = QmpAddress::Unix(path.clone());
        if let Some(mut listener) = listener {
            let is_taken = tokio::select! {
                // What came in before QEMU took the path over is the machine's link.
                biased;
                () = with.stopped() => return Ok(()),
                wait_readable = listener.wait_readable() => wait_readable.context("cannot watch the listener").map(|()| false)?,
                () = taken_over(&listener, &path) => true,
            };
            if !is_taken {
                return tokio::select! {
                    ended = listener.serve(with.engine.clone(), Arc::clone(&with.terms)) => ended,
                    () = with.stopped() => Ok(()),
                };
            }
            if let Some(file) = listener.take_file() {
                file.remove().await;
            }
            tracing::info!(path = %path.display(), "another socket is here now: a QMP socket, if it greets");
        }
        let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
        let mut last = LastFailure::default();
        loop {
            let error = match serve_found(&qmp, &with).await {
                Ok(()) if !with.terms.keep_running || *with.stop.borrow() => return Ok(()),
                Ok(()) => {
                    backoff.reset();
                    continue;
                }
                Err(error) => error,
            };
            with.terms.tell_failure();
            if !with.terms.keep_running && has_no_room(&error) {
                return Err(error);
            }
            let text = format!("{error:#}");
            if last.is_news(&text) {
                tracing::error!(error = text, "not attached yet");
            }
            tokio::select! {
                () = sleep(backoff.next_pause()) => {}
                () = with.stopped() => return Ok(()),
            }
        }
    }
}

/// Whether it is the machine's own shape that is in the way, which no other attempt will find changed.
fn has_no_room(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(SlotError::NoneFree(_))))
}

/// Waits until the socket of somebody who may be connected to is in the place of the listener's own.
async fn taken_over(listener: &HypervisorListener, path: &Path) {
    let Some(file) = listener.file().map(RemoveOnDrop::made) else { return std::future::pending().await };
    replaced(file, path).await;
    let (mut backoff, mut is_told) = (Backoff::new(PAUSE.0, PAUSE.1), false);
    loop {
        let why = match Owner::of_new(path).await {
            Owner::Other { .. } => return,
            Owner::Gvproxy => "another gvproxy has it now",
            Owner::Unknown => {
                "nobody can be seen who serves what is there now; -qmp attaches to it nevertheless"
            }
        };
        if !is_told {
            tracing::warn!(path = %path.display(), why, "no virtual machine can connect here any more");
            is_told = true;
        }
        sleep(backoff.next_pause()).await;
    }
}

/// Waits until the file that was made at `path` is gone, and another is there.
async fn replaced(file: &Made, path: &Path) {
    // What does not answer is not replaced either.
    let is_there = async || {
        let file = file.clone();
        disk::ask(path, move || file.is_there()).await.unwrap_or(true)
    };
    let name = path.to_owned();
    let watch = disk::ask(path, move || NameWatch::of_file(&name)).await.flatten();
    while is_there().await {
        match &watch {
            Ok(watch) => watch.changed().await,
            Err(_) => sleep(PAUSE.0).await,
        }
    }
    loop {
        let name = path.to_owned();
        let look = move || {
            // Before the look, so that nothing that comes after it is missed.
            let watch = name.parent().map(NameWatch::of_directory);
            (watch, name.exists())
        };
        match disk::ask(path, look).await {
            Ok((_, true)) => return,
            Ok((Some(Ok(watch)), false)) => watch.changed().await,
            _ => sleep(PAUSE.0).await,
        }
    }
}

/// Attaches the machine of a QMP socket that is there, lets the session go, and serves the link to its end.
async fn serve_found(qmp: &QmpAddress, with: &Environment) -> Result<()> {
    let session = tokio::select! {
        session = session::wait(qmp) => session,
        () = with.stopped() => return Ok(()),
    };
    let directory = if let QmpAddress::Unix(path) = qmp { path.clone() } else { PathBuf::new() };
    let to = qmp.clone();
    let (path, listener) = disk::ask(&directory, move || bind_beside(&to)).await??;
    let mut listener = listener.context("no socket for the link")?;
    let file = listener.take_file();
    let card = Card::new(DEVICE_MAC, path);
    let entry = with.statuses.enter(qmp);
    // One link: the run, or this machine's part of it, ends with it.
    let terms = Terms { keep_running: false, present: Presence::default(), ..(*with.terms).clone() };
    let with = Environment { terms: Arc::new(terms), ..with.clone() };
    let serving = listener.serve(with.engine.clone(), Arc::clone(&with.terms));
    tokio::pin!(serving);
    // Dropped before the listener.
    let file = file;
    let served = serve_attached(qmp, session, &card, &entry, &with, serving.as_mut()).await;
    if let Some(file) = file {
        file.remove().await;
    }
    served
}

/// The same with a socket for the link, which is being served by `serving`.
async fn serve_attached(
    qmp: &QmpAddress,
    mut session: Session,
    card: &Card,
    entry: &Entry,
    with: &Environment,
    mut serving: Pin<&mut impl Future<Output = Result<()>>>,
) -> Result<()> {
    loop {
        let attached = {
            let attaching = attach_once(&mut session, card, entry, with);
            tokio::pin!(attaching);
            tokio::select! {
                // That the link ended is not why it failed.
                ended = &mut serving => tokio::select! {
                    attached = &mut attaching => return attached.and(ended),
                    () = with.stopped() => None,
                },
                attached = &mut attaching => Some(attached),
                () = with.stopped() => None,
            }
        };
        match attached {
            None => {
                with.leave(qmp, card, Some(session)).await;
                return Ok(());
            }
            // The card may have come after all. It is looked for in another session, and its link stays.
            Some(Err(error)) if attach::is_silence(&error) => {
                tracing::warn!(%qmp, error = format!("{error:#}"), "the QMP session failed");
                drop(session);
                session = tokio::select! {
                    ended = &mut serving => return ended,
                    session = session::wait(qmp) => session,
                    () = with.stopped() => {
                        with.leave(qmp, card, None).await;
                        return Ok(());
                    }
                };
            }
            Some(attached) => {
                attached.with_context(|| format!("cannot attach the virtual machine of {qmp}"))?;
                break;
            }
        }
    }
    drop(session);
    entry.change(|status| status.connection = Connection::LetGo);
    tokio::select! {
        ended = &mut serving => ended,
        () = with.stopped() => {
            with.leave(qmp, card, None).await;
            Ok(())
        }
    }
}

async fn attach_once(session: &mut Session, card: &Card, entry: &Entry, with: &Environment) -> Result<()> {
    let mut status = entry.read();
    status.connection = Connection::Connected;
    status.learn(session).await;
    entry.change(|entry| *entry = status);
    let device = attach::ensure(&mut session.client, card, &with.terms.present).await?;
    let (bus, slot) = (&device.bus, &device.slot);
    tracing::info!(device = device.id, mac = device.mac, bus, slot, "virtual machine attached");
    with.tell(VmChange::Attached, card);
    entry.change(|status| status.device = Some(device));
    Ok(())
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::io::Write as _;
    use std::os::unix::net::UnixListener;

    use super::*;

    #[test]
    fn who_greets_without_end_is_no_qmp_server() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("socket");
        let listener = UnixListener::bind(&path).unwrap();
        let talker = std::thread::spawn(move || {
            let mut stream = listener.accept().unwrap().0;
            while stream.write_all(&[b'x'; 1024]).is_ok() {}
        });
        let line = greeting(&path, Duration::from_secs(10)).unwrap();
        assert!((MAX_GREETING..2 * MAX_GREETING).contains(&line.len()), "{}", line.len());
        talker.join().unwrap();
    }
}
