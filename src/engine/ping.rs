//! Pings of guests beyond the gateway. Owns: what the guest is told. Read next: `host/icmp.rs`, the sockets.

use std::io;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant as Clock;

use mio::{Interest, Token};
use netstack::Echo;

use super::{Engine, Source};
use crate::host::icmp::{self, PingId, Session};
use crate::sys::icmp::open;
use crate::sys::udp::MESSAGES;

/// Calls that take answers of one session in a turn.
const TURN: usize = 16;

impl Engine {
    /// A guest asks for an echo.
    pub(super) fn handle_echo(&mut self, echo: &Echo, target: IpAddr) {
        // Only IPv4 has a way from here.
        let IpAddr::V4(target) = target else {
            return self.stack.echo_unreachable(echo, &mut self.links.batches);
        };
        let Err(error) = self.ask_host(echo, target) else { return };
        match error.kind() {
            io::ErrorKind::HostUnreachable | io::ErrorKind::NetworkUnreachable => {
                self.stack.echo_unreachable(echo, &mut self.links.batches);
            }
            _ => {
                if let Some(suppressed) = self.no_pings.admit(Clock::now()) {
                    let hint = "Linux gives sockets for it to the groups in net.ipv4.ping_group_range";
                    tracing::warn!(%target, %error, hint, suppressed, "cannot ping for the guest");
                }
            }
        }
    }

    fn ask_host(&mut self, echo: &Echo, target: Ipv4Addr) -> io::Result<()> {
        let now = self.now;
        let mut known = self.pings.find(echo, target);
        if let Some(id) = known
            && self.pings.get_mut(id).is_some_and(|session| session.is_astray(now))
        {
            self.close_ping(id);
            known = None;
        }
        let id = match known {
            Some(id) => id,
            None if self.pings.may_open(echo.port(), now) => self.open_ping(echo, target)?,
            None => return Ok(()),
        };
        let sent = self.pings.get_mut(id).map_or(Ok(()), |session| session.send(echo, now));
        // The next request is to open another.
        sent.inspect_err(|_| self.close_ping(id))
    }

    fn open_ping(&mut self, echo: &Echo, target: Ipv4Addr) -> io::Result<PingId> {
        if let Some(id) = self.pings.surplus() {
            self.close_ping(id);
        }
        let mut socket = open(target)?;
        let entry = self.sources.vacant_entry();
        let token = Token(entry.key());
        self.poll.registry().register(&mut socket, token, Interest::READABLE)?;
        let id = self.pings.insert(Session::new(echo, target, socket, token, self.now), self.now);
        entry.insert(Source::Ping(id));
        Ok(id)
    }

    fn close_ping(&mut self, id: PingId) {
        if let Some(session) = self.pings.remove(id) {
            self.forget(session.token);
        }
    }

    /// A session's socket has something.
    pub(super) fn serve_ping(&mut self, id: PingId) {
        let Some(session) = self.pings.get_mut(id) else { return };
        for _ in 0..TURN {
            match self.inbox.receive(&session.socket, MESSAGES) {
                Ok(()) => {
                    for (number, data) in self.inbox.datagrams().filter_map(icmp::reply) {
                        session.replies.note_reply();
                        self.stack.echo_reply(&session.echo, number, data, &mut self.links.batches);
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return,
                // A pending error stands before what is queued, and is taken by being told.
                Err(_) => {}
            }
        }
        // Brings an event for what is left.
        let _ = self.poll.registry().reregister(&mut session.socket, session.token, Interest::READABLE);
    }

    /// Closes the sessions that have been idle for long enough.
    pub(super) fn expire_pings(&mut self) {
        while let Some(id) = self.pings.expired(self.now) {
            self.close_ping(id);
        }
    }
}
