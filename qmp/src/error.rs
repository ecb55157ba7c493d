//! What can go wrong, one enum for each operation.
//!
//! Owns: the errors. What QEMU itself said is always a [`Refusal`], with its class and its text.

use std::io;
use std::time::Duration;

use qapi::ErrorClass;

use crate::{Address, Event};

/// QEMU's own answer to a command that it did not carry out.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{desc}")]
pub struct Refusal {
    /// QEMU's class; one that is not known counts as `GenericError`, as the protocol asks for.
    pub class: ErrorClass,
    /// QEMU's text, for people.
    pub desc: String,
}

/// Why a connection ended. Once one of these came, the socket is closed and each further operation gives
/// [`Lost::Closed`].
#[derive(Debug, thiserror::Error)]
pub enum Lost {
    /// The other end closed: QEMU ended, or let the client go.
    #[error("the QMP connection is closed")]
    Closed,
    /// The socket failed.
    #[error("the QMP socket failed")]
    Io(#[source] io::Error),
    /// A line longer than [`MAX_LINE`](crate::MAX_LINE).
    #[error("a QMP message is longer than {} bytes", crate::MAX_LINE)]
    TooLong,
    /// What came is no QMP message; how it begins.
    #[error("not a QMP message: {0:?}")]
    Garbage(String),
    /// A QMP message where it has no place: a second greeting, a reply to nothing.
    #[error("a QMP message out of turn: {0}")]
    OutOfTurn(&'static str),
}

/// Why a stream could not be made into a [`Client`](crate::Client).
#[derive(Debug, thiserror::Error)]
pub enum HandshakeError {
    /// No greeting in this time. A QMP socket serves one client at a time and lets others connect and wait; a
    /// server that speaks only when spoken to, such as HTTP, looks the same.
    #[error("no QMP greeting within {after:?}: another client has the monitor, or it is none")]
    Busy {
        /// How long it was waited for.
        after: Duration,
    },
    /// The other end speaks, but not QMP.
    #[error("no QMP greeting")]
    NotQmp(#[source] Lost),
    /// The connection ended before the greeting.
    #[error("no QMP greeting")]
    Lost(#[source] Lost),
    /// The greeting came, but `qmp_capabilities` failed.
    #[error("QMP capabilities could not be agreed")]
    Capabilities(#[source] ExecuteError),
}

/// Why there is no connection.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The socket could not be connected.
    #[error("connect to {address}")]
    Socket {
        /// To where.
        address: Address,
        /// Why.
        source: io::Error,
    },
    /// The socket did not connect in this time, or, when it was to be tried until it is served, it never was.
    #[error("connect to {address}: no answer within {after:?}")]
    Timeout {
        /// To where.
        address: Address,
        /// How long it was waited for.
        after: Duration,
    },
    /// As many clients as the socket's backlog takes wait for the monitor already.
    #[error("connect to {address}: other clients wait for the monitor already")]
    Queue {
        /// To where.
        address: Address,
    },
    /// The socket connected, and then no QMP session came of it.
    #[error("connect to {address}")]
    Handshake {
        /// To where.
        address: Address,
        /// Why.
        source: HandshakeError,
    },
}

impl ConnectError {
    /// Nobody serves the address: there is no such socket, or it is left over.
    pub fn is_absent(&self) -> bool {
        matches!(self, Self::Socket { source, .. }
            if matches!(source.kind(), io::ErrorKind::NotFound | io::ErrorKind::ConnectionRefused))
    }

    /// Somebody listens, but has another client (or is no QMP server and silent).
    pub fn is_busy(&self) -> bool {
        matches!(self, Self::Queue { .. } | Self::Handshake { source: HandshakeError::Busy { .. }, .. })
    }

    /// Trying again later may help: absent, busy, slow, or gone while it was greeted.
    pub fn is_transient(&self) -> bool {
        self.is_absent()
            || self.is_busy()
            || matches!(
                self,
                Self::Timeout { .. }
                    | Self::Handshake {
                        source: HandshakeError::Lost(_)
                            | HandshakeError::Capabilities(
                                ExecuteError::Lost { .. } | ExecuteError::Timeout { .. }
                            ),
                        ..
                    }
            )
    }
}

/// Why a command has no result.
#[derive(Debug, thiserror::Error)]
pub enum ExecuteError {
    /// QEMU said no.
    #[error("{command}: QEMU says {} ({:?})", refusal.desc, refusal.class)]
    Refused {
        /// Which command.
        command: &'static str,
        /// What QEMU said.
        refusal: Refusal,
    },
    /// No reply in this time. QEMU may still carry the command out; a late reply is dropped, and the
    /// connection stays usable.
    #[error("{command}: no reply within {after:?}")]
    Timeout {
        /// Which command.
        command: &'static str,
        /// How long it was waited for.
        after: Duration,
    },
    /// The reply is not what the command's type says, as from a QEMU that is newer than the types. The
    /// command was carried out.
    #[error("{command}: a reply of another shape")]
    Reply {
        /// Which command.
        command: &'static str,
        /// What does not fit.
        source: serde_json::Error,
    },
    /// The arguments are no JSON. Nothing was sent.
    #[error("{command}: arguments that cannot be written")]
    Arguments {
        /// Which command.
        command: &'static str,
        /// What cannot be written.
        source: serde_json::Error,
    },
    /// The connection ended before the reply.
    #[error("{command}")]
    Lost {
        /// Which command.
        command: &'static str,
        /// How it ended.
        source: Lost,
    },
}

impl ExecuteError {
    /// What QEMU said, when it was QEMU who said no.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Self::Refused { refusal, .. } => Some(refusal),
            _ => None,
        }
    }
}

/// Why an awaited event did not come.
#[derive(Debug, thiserror::Error)]
pub enum WaitError {
    /// Not in this time. Others that came meanwhile are kept for [`next_event`](crate::Client::next_event).
    #[error("no such event within {0:?}")]
    Timeout(Duration),
    /// The connection ended first.
    #[error("waiting for an event")]
    Lost(#[from] Lost),
}

/// Why a device is still there.
#[derive(Debug, thiserror::Error)]
pub enum UnplugError {
    /// `device_del` failed.
    #[error("unplug {device}")]
    Execute {
        /// Which device.
        device: String,
        /// Why.
        source: ExecuteError,
    },
    /// The guest refuses to let the device go; QEMU's event.
    #[error("unplug {device}: the guest refuses ({})", event.name)]
    Guest {
        /// Which device.
        device: String,
        /// What QEMU reported.
        event: Event,
    },
    /// The guest was asked and does nothing: no system runs in it, or it is stopped. The device goes with the
    /// next reset.
    #[error("unplug {device}: no answer from the guest within {after:?}")]
    NoAnswer {
        /// Which device.
        device: String,
        /// How long it was waited for.
        after: Duration,
    },
    /// The connection ended first.
    #[error("unplug {device}")]
    Lost {
        /// Which device.
        device: String,
        /// How it ended.
        source: Lost,
    },
}

/// Why there is no place for another PCI device.
#[derive(Debug, thiserror::Error)]
pub enum SlotError {
    /// Every place is taken or takes no device while the VM runs; each with the reason.
    #[error(
        "no free slot for a hot-plugged PCI device ({}): start QEMU with one more `-device pcie-root-port,id=NAME,chassis=N`",
        if .0.is_empty() { "no pcie-root-port with an id".to_owned() } else { .0.join(", ") }
    )]
    NoneFree(Vec<String>),
    /// QEMU could not be asked.
    #[error("look for a free PCI slot")]
    Execute(#[from] ExecuteError),
}
