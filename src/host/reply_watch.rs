//! Whether a flow of datagrams is answered. A connected socket keeps the source address that it was given,
//! also when the host's way to the other end changes, as a VPN comes up: what it sends is lost then, and
//! whoever sends it is not told.
//! Owns: nothing. Read next: `udp.rs` and `icmp.rs`, which look before they send.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::time::Duration;

use mio::net::UdpSocket;
use netstack::Instant;

use crate::dial::any_like;

/// How long nothing comes back before the way is looked up again.
const SILENCE: Duration = Duration::from_secs(1);

/// Whether something came back lately.
#[derive(Debug)]
pub(crate) struct ReplyWatch {
    has_reply: bool,
    since: Instant,
}

impl ReplyWatch {
    pub(crate) fn new(now: Instant) -> Self {
        Self { has_reply: true, since: now }
    }

    /// Something came back.
    pub(crate) fn note_reply(&mut self) {
        self.has_reply = true;
    }

    /// Whether nothing came back for a while, and a new socket to `to` would have another source address than
    /// `socket` has. Where something does come back the flow is left alone, since of several ways each socket
    /// may be given another.
    pub(crate) fn is_astray(&mut self, now: Instant, socket: &UdpSocket, to: SocketAddr) -> bool {
        if now - self.since < SILENCE {
            return false;
        }
        self.since = now;
        if std::mem::replace(&mut self.has_reply, false) {
            return false;
        }
        let own = socket.local_addr().map(|own| own.ip());
        matches!((own, source_to(to)), (Ok(own), Ok(source)) if own != source)
    }
}

/// The address that a new socket to `to` would have.
fn source_to(to: SocketAddr) -> io::Result<IpAddr> {
    let socket = UdpSocket::bind(any_like(to))?;
    socket.connect(to)?;
    Ok(socket.local_addr()?.ip())
}
