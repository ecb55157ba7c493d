//! From a QMP address to a session, however long that takes. Owns: when to try again. May not: give a
//! command.

use std::io;
use std::path::Path;
use std::time::Duration;

use qmp::{Address, Client, ConnectError, Timeouts};
use tokio::time::{Instant, sleep, timeout};

use crate::disk;
use crate::supervise::{Backoff, LastFailure};
use crate::sys::follow::NameWatch;
use crate::sys::peer_pid;

/// How long a socket that has just appeared may refuse: QEMU listens a moment after it has made the file.
const SETTLE: Duration = Duration::from_secs(2);
/// The pause between attempts then, and where nothing tells when there is something new.
const PAUSE: (Duration, Duration) = (Duration::from_millis(20), Duration::from_secs(1));
/// How long to wait in the queue of a monitor that has another client. It is not given up: the attempt is
/// only made anew.
const QUEUE: Duration = Duration::from_secs(60);

/// A session, and with whom.
#[derive(Debug)]
pub(super) struct Session {
    pub(super) client: Client,
    /// QEMU's process, where the socket tells.
    pub(super) pid: Option<u32>,
}

/// Connects once, as [`Client::connect`] does.
pub(super) async fn connect(address: &Address, timeouts: Timeouts) -> Result<Session, ConnectError> {
    let Address::Unix(path) = address else {
        let client = Client::connect(address, timeouts).await?;
        return Ok(Session { client, pid: None });
    };
    let after = timeouts.connect;
    let address = || address.clone();
    let stream = match timeout(after, disk::connect(path)).await {
        Err(_) => return Err(ConnectError::Timeout { address: address(), after }),
        Ok(Err(error)) if error.kind() == io::ErrorKind::WouldBlock => {
            return Err(ConnectError::Queue { address: address() });
        }
        Ok(Err(source)) => return Err(ConnectError::Socket { address: address(), source }),
        Ok(Ok(stream)) => stream,
    };
    let pid = peer_pid(rustix::fd::AsFd::as_fd(&stream));
    match Client::handshake(stream, timeouts).await {
        Ok(client) => Ok(Session { client, pid }),
        Err(source) => Err(ConnectError::Handshake { address: address(), source }),
    }
}

/// Connects as soon as there is a QEMU. Waits without waking where the system tells of new files.
pub(super) async fn wait(address: &Address) -> Session {
    let mut timeouts = Timeouts::default();
    let mut last = LastFailure::default();
    let mut settled = Instant::now() + SETTLE;
    let mut backoff = Backoff::new(PAUSE.0, PAUSE.1);
    loop {
        // Before the attempt, so that nothing that comes after it is missed.
        let watch = match directory_of(address).map(Path::to_owned) {
            Some(directory) => {
                let path = directory.clone();
                disk::ask(&path, move || NameWatch::of_directory(&directory)).await.flatten().ok()
            }
            None => None,
        };
        let error = match connect(address, timeouts).await {
            Ok(session) => return session,
            Err(error) => error,
        };
        let (is_absent, is_busy) = (error.is_absent(), error.is_busy());
        let text = format!("{:#}", anyhow::Error::from(error));
        timeouts.greeting = if is_busy { QUEUE } else { Timeouts::default().greeting };
        if last.is_news(&text) {
            match is_absent {
                true => tracing::info!(qmp = %address, "waiting for the virtual machine"),
                false => tracing::warn!(qmp = %address, error = text, "no QMP session yet"),
            }
        }
        match &watch {
            Some(watch) if is_absent && Instant::now() >= settled => {
                watch.changed().await;
                settled = Instant::now() + SETTLE;
                backoff.reset();
            }
            _ => sleep(backoff.next_pause()).await,
        }
    }
}

fn directory_of(address: &Address) -> Option<&Path> {
    match address {
        Address::Unix(path) => path.parent(),
        Address::Tcp(_) => None,
    }
}
