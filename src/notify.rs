//! Notifications: what happens to the network and its machines, told to the socket of whoever asked.
//!
//! As with the original each message is a connection of its own: one line of JSON, and the end. What cannot
//! be delivered is lost.
//!
//! Owns: the queue. May not: make anybody wait, or try again. Read next: `engine/mod.rs` and `daemon.rs`,
//! which have something to tell.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use netstack::Mac;
use tokio::io::AsyncWriteExt;
use tokio::sync::mpsc;
use tokio::time::timeout;

use crate::disk;
use crate::logging::Limited;
use crate::text::reason;

/// Messages that wait at most, as in the original.
const QUEUE: usize = 100;
/// How long a reader may take for one message. Connecting and a line's worth of room need none of its time.
const PATIENCE: Duration = Duration::from_secs(1);
/// Log lines of a kind in [`LOG_WINDOW`]; a guest can cause messages.
const LOG_BURST: u32 = 5;
const LOG_WINDOW: Duration = Duration::from_secs(60);

/// Something to tell.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// Everything is bound.
    Ready,
    /// The first frame of a machine with this address.
    ConnectionEstablished(Mac),
    /// The link of the machine with this address ended.
    ConnectionClosed(Mac),
    /// The socket for a hypervisor cannot be had, or takes nobody.
    HypervisorError,
    /// What QMP says of the virtual machine that has the network card with this address.
    Vm(VmChange, Mac),
}

/// What happened to a virtual machine that is followed by QMP.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum VmChange {
    /// It has a network card of ours.
    Attached,
    /// It stands still.
    Stopped,
    /// It runs again.
    Resumed,
    /// It begins anew.
    Reset,
    /// It was switched off, by itself or from outside.
    Shutdown,
    /// It goes on somewhere else.
    Migrated,
    /// Its QEMU ended.
    Ended,
}

impl VmChange {
    fn kind(self) -> &'static str {
        match self {
            Self::Attached => "vm_attached",
            Self::Stopped => "vm_stopped",
            Self::Resumed => "vm_resumed",
            Self::Reset => "vm_reset",
            Self::Shutdown => "vm_shutdown",
            Self::Migrated => "vm_migrated",
            Self::Ended => "vm_ended",
        }
    }
}

impl Notice {
    fn line(self) -> String {
        let (kind, mac) = match self {
            Self::Ready => ("ready", None),
            Self::ConnectionEstablished(mac) => ("connection_established", Some(mac)),
            Self::ConnectionClosed(mac) => ("connection_closed", Some(mac)),
            Self::HypervisorError => ("hypervisor_error", None),
            Self::Vm(change, mac) => (change.kind(), Some(mac)),
        };
        let mac = mac.map_or_else(String::new, |mac| format!(",\"mac_address\":\"{mac}\""));
        format!("{{\"notification_type\":\"{kind}\"{mac}}}\n")
    }
}

/// Where to put notices. Clones share the queue.
#[derive(Clone, Debug)]
pub struct Notifier {
    queue: mpsc::Sender<Notice>,
    lost: Arc<Limited>,
}

impl Notifier {
    /// A queue, and the task that tells the socket at `path` what is put there.
    pub fn new(path: PathBuf) -> (Self, Delivery) {
        let (queue, notices) = mpsc::channel(QUEUE);
        let limited = || Limited::new(LOG_BURST, LOG_WINDOW);
        (Self { queue, lost: Arc::new(limited()) }, Delivery { path, notices, failed: limited() })
    }

    /// Never waits: a notice that finds the queue full is lost.
    pub fn send(&self, notice: Notice) {
        if self.queue.try_send(notice).is_err()
            && let Some(suppressed) = self.lost.admit(Instant::now())
        {
            tracing::warn!(?notice, suppressed, "unable to send notification");
        }
    }
}

/// Tells one socket.
#[derive(Debug)]
pub struct Delivery {
    path: PathBuf,
    notices: mpsc::Receiver<Notice>,
    failed: Limited,
}

impl Delivery {
    /// Returns when every [`Notifier`] is gone and what they left is told.
    pub async fn run(mut self) {
        while let Some(notice) = self.notices.recv().await {
            let told = timeout(PATIENCE, self.tell(notice)).await;
            if let Err(error) = told.unwrap_or_else(|late| Err(late.into()))
                && let Some(suppressed) = self.failed.admit(Instant::now())
            {
                let (socket, reason) = (self.path.display(), reason(&error));
                tracing::error!(?notice, %socket, reason, suppressed, "failed to send notification");
            }
        }
    }

    async fn tell(&self, notice: Notice) -> io::Result<()> {
        disk::connect(&self.path).await?.write_all(notice.line().as_bytes()).await
    }
}

#[cfg(test)]
#[cfg(unix)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixListener;

    use super::*;

    const MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);

    #[test]
    fn lines() {
        for (notice, line) in [
            (Notice::Ready, r#"{"notification_type":"ready"}"#),
            (
                Notice::ConnectionEstablished(MAC),
                r#"{"notification_type":"connection_established","mac_address":"5a:94:ef:e4:0c:ee"}"#,
            ),
            (
                Notice::ConnectionClosed(MAC),
                r#"{"notification_type":"connection_closed","mac_address":"5a:94:ef:e4:0c:ee"}"#,
            ),
            (Notice::HypervisorError, r#"{"notification_type":"hypervisor_error"}"#),
            (
                Notice::Vm(VmChange::Reset, MAC),
                r#"{"notification_type":"vm_reset","mac_address":"5a:94:ef:e4:0c:ee"}"#,
            ),
        ] {
            assert_eq!(notice.line(), format!("{line}\n"));
        }
    }

    #[tokio::test]
    async fn each_is_a_connection_and_they_keep_their_order() {
        let dir = tempfile::tempdir().unwrap();
        let listener = UnixListener::bind(dir.path().join("n")).unwrap();
        let (notifier, delivery) = Notifier::new(dir.path().join("n"));
        let notices = [Notice::Ready, Notice::ConnectionEstablished(MAC), Notice::ConnectionClosed(MAC)];
        for notice in notices {
            notifier.send(notice);
        }
        drop(notifier);
        delivery.run().await;
        for notice in notices {
            let mut line = String::new();
            listener.accept().unwrap().0.read_to_string(&mut line).unwrap();
            assert_eq!(line, notice.line());
        }
    }

    /// A full backlog refuses at once, and nobody at all does: neither may hold up what comes later.
    #[tokio::test]
    async fn whoever_does_not_listen_costs_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("n");
        let (notifier, delivery) = Notifier::new(path.clone());
        for _ in 0..2 * QUEUE {
            notifier.send(Notice::Ready);
        }
        drop(notifier);
        delivery.run().await;

        let socket = socket2::Socket::new(socket2::Domain::UNIX, socket2::Type::STREAM, None).unwrap();
        socket.bind(&socket2::SockAddr::unix(&path).unwrap()).unwrap();
        socket.listen(1).unwrap();
        let (notifier, delivery) = Notifier::new(path);
        for _ in 0..QUEUE {
            notifier.send(Notice::Ready);
        }
        drop(notifier);
        let start = Instant::now();
        delivery.run().await;
        assert!(start.elapsed() < PATIENCE * 10, "{:?}", start.elapsed());
    }
}
