//! Streams to unix sockets in the guest, over SSH, and from those that it offers in the guest ([`Offer`]).
//!
//! A [`Tunnel`] leads to one login on one guest. It keeps a few authenticated connections and gives each
//! client a `direct-streamlocal@openssh.com` channel (OpenSSH's PROTOCOL, section 2.4) on one of them.
//!
//! Why a few connections and not one: russh credits a channel's window when data arrives, not when it is
//! consumed, so the only way to hold back a fast guest from a slow client is to stop reading the connection,
//! and with it every channel on it. A client therefore gets a connection to itself while fewer than
//! [`MAX_CONNECTIONS`] are busy, not counting those that wait for a slow one; above that clients share, and
//! what they have not taken may be so much together (`backlog.rs`) before they wait for each other.
//!
//! Owns: keys, connections, channels, when to try again, and how often (`penalties.rs`). May not: listen on
//! the host.
//! Read next: `tunnel.rs`, then `connection.rs` and `channel.rs`; `offer.rs`. `crate::forward::ssh` and
//! `crate::reverse` use it.

mod backlog;
mod channel;
mod chunk;
mod connection;
mod key;
mod lagging;
mod offer;
mod penalties;
mod tunnel;

use std::path::PathBuf;

use crate::addr::{HostPort, Secret};

pub use self::channel::Channel;
pub use self::connection::{ConnectError, Exchanges};
pub use self::key::load as load_key;
pub use self::offer::{Arrival, Offer, OfferError};
pub use self::penalties::{Penalties, Record};
pub use self::tunnel::{MAX_CONNECTIONS, MAX_LOGINS, OpenError, Tunnel};

/// Who to log in as, where, and with which key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Target {
    /// The guest's sshd.
    pub addr: HostPort,
    /// The guest's user.
    pub user: String,
    /// The private key's file, read at each connect so that a changed key is picked up.
    pub identity: PathBuf,
    /// What the key is protected with.
    pub passphrase: Option<Secret>,
    /// What is tried where the guest does not take the key.
    pub password: Option<Secret>,
    /// The file with the host's keys of guests, where they are to be checked; see sshd(8). A guest that is
    /// not in it is trusted.
    pub known_hosts: Option<PathBuf>,
}

impl Target {
    /// One that is logged in to with an unprotected key, whatever the guest's own key is.
    pub fn new(addr: impl Into<HostPort>, user: impl Into<String>, identity: impl Into<PathBuf>) -> Self {
        let (user, identity) = (user.into(), identity.into());
        Self { addr: addr.into(), user, identity, passphrase: None, password: None, known_hosts: None }
    }
}
