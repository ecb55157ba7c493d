//! Pings of guests, asked again by the host, which needs no privilege where the system gives sockets for it.
//!
//! What a guest asks one target under one identifier is a session (RFC 5508), with a socket of its own: the
//! system tells the answers of sessions apart, and packets that wait for a neighbour that is not there fill
//! no other session's socket. Nobody waits for an answer. There are so many sessions; then whoever has most
//! loses the one that was used least recently.
//!
//! Owns: the sockets. May not: know what the guest is told. Read next: `engine/ping.rs`, which watches them.

use std::collections::HashMap;
use std::io;
use std::net::Ipv4Addr;
use std::time::Duration;

use etherparse::icmpv4::TYPE_ECHO_REPLY;
use etherparse::{IcmpEchoHeader, Icmpv4Slice, Ipv4HeaderSlice};
use mio::Token;
use mio::net::UdpSocket;
use netstack::{Echo, Instant, PortId};
use slotmap::SlotMap;

use super::reply_watch::ReplyWatch;
use crate::sys::descriptor_share;

/// Sessions at a time, of all guests, and the part of the descriptors that they take at most.
const MAX_SESSIONS: usize = 256;
const SHARE: usize = 16;
/// Sessions that a guest may open in a second: each takes some ten microseconds of everybody's time.
const MAX_OPENED: usize = 1024;
const SECOND: Duration = Duration::from_secs(1);
/// How long an idle session is kept: RFC 5508, REQ-2.
const IDLE: Duration = Duration::from_secs(60);

slotmap::new_key_type! {
    /// Names a session; never used again for another one.
    pub(crate) struct PingId;
}

/// Sessions at a time: each is a descriptor.
pub(crate) fn max_sessions() -> usize {
    descriptor_share(SHARE, MAX_SESSIONS)
}

/// What makes a session.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Key {
    port: PortId,
    guest: Ipv4Addr,
    target: Ipv4Addr,
    ident: u16,
}

#[derive(Debug)]
pub(crate) struct Session {
    key: Key,
    /// The latest request, without its data.
    pub(crate) echo: Echo,
    pub(crate) socket: UdpSocket,
    pub(crate) token: Token,
    used: Instant,
    pub(crate) replies: ReplyWatch,
}

/// What one guest has.
#[derive(Debug)]
struct Share {
    sessions: usize,
    /// Sessions opened since then.
    opened: usize,
    since: Instant,
}

/// All sessions.
#[derive(Debug, Default)]
pub(crate) struct Pings {
    sessions: SlotMap<PingId, Session>,
    shares: HashMap<PortId, Share>,
    /// When a session may have been idle for long enough to go.
    pub(crate) expiry: Option<Instant>,
}

impl Pings {
    /// The session of `echo` with `target`, if there is one.
    pub(crate) fn find(&self, echo: &Echo, target: Ipv4Addr) -> Option<PingId> {
        let key = Key::new(echo, target);
        self.sessions.iter().find(|(_, session)| session.key == key).map(|(id, _)| id)
    }

    /// Whether this guest may open a session now.
    pub(crate) fn may_open(&mut self, port: PortId, now: Instant) -> bool {
        let share = self.shares.entry(port).or_insert(Share { sessions: 0, opened: 0, since: now });
        if now - share.since >= SECOND {
            (share.opened, share.since) = (0, now);
        }
        share.opened += 1;
        share.opened <= MAX_OPENED
    }

    /// The session that has to go so that another may come.
    pub(crate) fn surplus(&self) -> Option<PingId> {
        if self.sessions.len() < max_sessions() {
            return None;
        }
        let (most, _) = self.shares.iter().max_by_key(|(_, share)| share.sessions)?;
        let theirs = self.sessions.iter().filter(|(_, session)| session.key.port == *most);
        theirs.min_by_key(|(_, session)| session.used).map(|(id, _)| id)
    }

    pub(crate) fn insert(&mut self, session: Session, now: Instant) -> PingId {
        if let Some(share) = self.shares.get_mut(&session.key.port) {
            share.sessions += 1;
        }
        self.expiry.get_or_insert_with(|| now + IDLE);
        self.sessions.insert(session)
    }

    pub(crate) fn get_mut(&mut self, id: PingId) -> Option<&mut Session> {
        self.sessions.get_mut(id)
    }

    pub(crate) fn remove(&mut self, id: PingId) -> Option<Session> {
        let session = self.sessions.remove(id)?;
        if let Some(share) = self.shares.get_mut(&session.key.port) {
            share.sessions = share.sessions.saturating_sub(1);
        }
        Some(session)
    }

    /// A session that was idle for long enough; `None` once there is none, and `expiry` is right again.
    pub(crate) fn expired(&mut self, now: Instant) -> Option<PingId> {
        if self.expiry.is_none_or(|at| at > now) {
            return None;
        }
        let oldest = self.sessions.iter().min_by_key(|(_, session)| session.used);
        let oldest = oldest.map(|(id, session)| (id, session.used + IDLE));
        self.expiry = oldest.map(|(_, at)| at);
        self.shares.retain(|_, share| share.sessions > 0 || now - share.since < SECOND);
        oldest.filter(|(_, at)| *at <= now).map(|(id, _)| id)
    }
}

impl Key {
    fn new(echo: &Echo, target: Ipv4Addr) -> Self {
        Self { port: echo.port(), guest: echo.guest(), target, ident: echo.ident() }
    }
}

impl Session {
    pub(crate) fn new(echo: &Echo, target: Ipv4Addr, socket: UdpSocket, token: Token, now: Instant) -> Self {
        let (key, echo) = (Key::new(echo, target), echo.head());
        Self { key, echo, socket, token, used: now, replies: ReplyWatch::new(now) }
    }

    /// Whether nothing comes back, and the host's way to the target is another by now.
    pub(crate) fn is_astray(&mut self, now: Instant) -> bool {
        self.replies.is_astray(now, &self.socket, (self.key.target, 1).into())
    }

    /// Asks the target for an echo, with the number and the data of `echo`. A full socket loses it, as a
    /// network may.
    ///
    /// # Errors
    /// The system's.
    pub(crate) fn send(&mut self, echo: &Echo, now: Instant) -> io::Result<()> {
        (self.used, self.echo) = (now, echo.head());
        // The first error may be an earlier request's, and is taken by being told.
        let sent = self.socket.send(echo.message()).or_else(|_| self.socket.send(echo.message()));
        match sent {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(()),
            sent => sent.map(|_| ()),
        }
    }
}

/// Number and data of `message`, if it is an echo reply (RFC 792). Its identifier is one of the system's.
pub(crate) fn reply(message: &[u8]) -> Option<(u16, &[u8])> {
    // Some systems leave the IPv4 header there, with fields changed. No ICMP type begins as it does.
    let header_len = Ipv4HeaderSlice::from_slice(message).map_or(0, |header| header.slice().len());
    let message = Icmpv4Slice::from_slice(message.get(header_len..)?).ok()?;
    let echo = IcmpEchoHeader::from_bytes(message.bytes5to8());
    (message.type_u8() == TYPE_ECHO_REPLY).then(|| (echo.seq, message.payload()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn replies() {
        let message = [0, 0, 9, 9, 7, 7, 1, 9, b'x', b'y'];
        assert_eq!(reply(&message), Some((265, &b"xy"[..])));
        let packet = [&[0x46; 24][..], &message].concat();
        assert_eq!(reply(&packet), Some((265, &b"xy"[..])));
        let request = [8, 0, 1, 2, 3, 4, 0, 9, b'x'];
        for message in [&request[..], &message[..7], &packet[..26], &[]] {
            assert_eq!(reply(message), None, "{message:?}");
        }
    }
}
