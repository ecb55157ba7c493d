//! Ports of the host that lead to guests, as they are asked for. Owns: nothing. May not: bind. Read next:
//! `../forward/registry.rs`.

use std::fmt;

use serde::{Deserialize, Serialize};

use crate::addr::{Local, remote_address};

/// What is listened on at the host. The names in JSON are the original's.
#[derive(Clone, Copy, Debug, Default, Deserialize, Eq, Hash, PartialEq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Protocol {
    /// A TCP port.
    #[default]
    Tcp,
    /// A UDP port.
    Udp,
    /// A stream socket of any kind: a path, or what else `-forward-sock` takes.
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

/// A port or socket to expose, and one that is, as `/services/forwarder/all` shows it.
#[derive(Clone, Debug, Eq, PartialEq, Serialize)]
pub struct Exposed {
    /// Where the host listens, in the words of who asked.
    pub local: String,
    /// Where it leads. It has an address: `:8080` has been completed by the API.
    pub remote: String,
    /// What is listened on.
    pub protocol: Protocol,
}

impl Exposed {
    /// Whether the words for a TCP or UDP port mean something, before anything is bound.
    ///
    /// # Errors
    /// What is wrong with them.
    pub(super) fn check(&self) -> Result<(), String> {
        Local::parse(&self.local, self.protocol.as_str()).map_err(|why| self.bad_local(why))?;
        remote_address(&self.remote).map(drop)
    }

    /// What is wrong with `local`. In the original the name of the call stands before only one of the two.
    pub(crate) fn bad_local(&self, why: String) -> String {
        if self.protocol == Protocol::Tcp { format!("listen tcp: {why}") } else { why }
    }
}
