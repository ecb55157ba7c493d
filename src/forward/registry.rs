//! Everything that the host exposes of the guests: which port or socket leads where, who asked for it, and the way to add and
//! remove one while the daemon runs.
//!
//! Owns: the table of exposed ports and sockets, and who may change it. May not: carry bytes (the engine does), speak HTTP (`api`).
//! Read next: `local.rs`, what a `local` means; `engine/forwards.rs`, the listeners.

use std::collections::BTreeMap;
use std::fmt;
use std::net::Ipv4Addr;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use serde::{Deserialize, Serialize};
use thiserror::Error;

use crate::engine::Handle;

/// What is listened on at the host. The names in JSON are the original's.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A TCP port.
    #[default]
    Tcp,
    /// A UDP port.
    Udp,
    /// A unix stream socket.
    Unix,
    /// A named pipe of Windows.
    Npipe,
}

impl Protocol {
    /// The name in JSON.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Udp => "udp",
            Self::Unix => "unix",
            Self::Npipe => "npipe",
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// One exposed port or socket, as `/services/forwarder/all` shows it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Exposed {
    /// Where the host listens, in the words of who asked.
    pub local: String,
    /// Where it leads.
    pub remote: String,
    /// What is listened on.
    pub protocol: Protocol,
}

/// Who wants to see or change what is exposed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asker {
    /// Who started the daemon, or may use its sockets on the host.
    Operator,
    /// A guest, through the gateway. It is not trusted.
    Guest(Ipv4Addr),
}

/// Why a port or socket is not exposed, or not removed. The text is the body of the HTTP answer.
#[derive(Debug, Error)]
pub enum ExposeError {
    /// The guest may not do that: 403. All others are 500, as the original's.
    #[error("{0}")]
    Denied(String),
    /// The same `local` leads elsewhere.
    #[error("proxy already running for {protocol} on {local}: it leads to {remote}")]
    Running {
        /// As was asked for.
        protocol: Protocol,
        /// As was asked for.
        local: String,
        /// Where it leads now.
        remote: String,
    },
    /// `local` cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// `remote` is nothing to lead to.
    #[error("{0}")]
    Remote(String),
    /// There is no such port or socket.
    #[error("proxy not found")]
    NotFound,
    /// Only Windows has named pipes.
    #[error("named pipes are not supported by this platform")]
    NoPipes,
    /// The daemon is about to end.
    #[error("the daemon is stopping")]
    Stopping,
}

/// The table of what is exposed; clones are the same table.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    #[expect(dead_code, reason = "the way to the engine's listeners")]
    engine: Handle,
    /// By `local` as bytes, then protocol: the order in which they are shown.
    entries: Mutex<BTreeMap<(String, &'static str), Entry>>,
}

#[derive(Debug)]
struct Entry {
    exposed: Exposed,
    asker: Asker,
}

impl Registry {
    /// An empty table whose listeners will be `engine`'s.
    pub fn new(engine: Handle) -> Self {
        Self(Arc::new(Inner { engine, entries: Mutex::default() }))
    }

    /// Listens at `local` for `remote`, which has an address: `:8080` has been completed by the API. Succeeds if that is so already.
    ///
    /// It happens, or not, also if the future is dropped.
    ///
    /// # Errors
    /// See [`ExposeError`].
    pub async fn expose(
        &self,
        protocol: Protocol,
        local: &str,
        remote: &str,
        asker: Asker,
    ) -> Result<(), ExposeError> {
        if protocol == Protocol::Npipe {
            return Err(ExposeError::NoPipes);
        }
        let mut entries = self.entries();
        let key = (local.to_owned(), protocol.as_str());
        if let Some(entry) = entries.get(&key) {
            if entry.exposed.remote == remote {
                return Ok(());
            }
            let (local, remote) = (local.to_owned(), entry.exposed.remote.clone());
            return Err(ExposeError::Running { protocol, local, remote });
        }
        let exposed = Exposed { local: local.to_owned(), remote: remote.to_owned(), protocol };
        entries.insert(key, Entry { exposed, asker });
        Ok(())
    }

    /// Closes what listens at `local`, spelled as it was exposed. Connections over TCP and unix sockets go on, as the original's do.
    ///
    /// # Errors
    /// There is none, or it is not the asker's.
    pub async fn unexpose(&self, protocol: Protocol, local: &str, asker: Asker) -> Result<(), ExposeError> {
        let key = (local.to_owned(), protocol.as_str());
        let mut entries = self.entries();
        match entries.get(&key) {
            Some(entry) if asker == Asker::Operator || entry.asker == asker => {
                entries.remove(&key);
                Ok(())
            }
            _ => Err(ExposeError::NotFound),
        }
    }

    /// Everything that is exposed, in the order of `local`.
    pub fn all(&self) -> Vec<Exposed> {
        self.seen_by(Asker::Operator)
    }

    /// What `asker` may see: a guest only what it exposed itself.
    pub fn seen_by(&self, asker: Asker) -> Vec<Exposed> {
        self.entries()
            .values()
            .filter(|entry| asker == Asker::Operator || entry.asker == asker)
            .map(|entry| entry.exposed.clone())
            .collect()
    }

    /// The daemon ends: closes every listener, removes every file, and exposes nothing from now on.
    pub async fn close(&self) {
        self.entries().clear();
    }

    fn entries(&self) -> MutexGuard<'_, BTreeMap<(String, &'static str), Entry>> {
        self.0.entries.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
