//! The DHCP client (RFC 2131, section 4.4): frames in, frames and leases out. Owns: the lease, and when to
//! ask for it again.
//! May not: read the clock, touch the interface. Read next: `message.rs`; `../mod.rs`, which drives it.
//!
//! It sees frames before the system does, so that it needs neither a raw socket nor an interface that has an
//! address.

mod message;
#[cfg(test)]
mod tests;

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use dhcproto::v4::MessageType;

use super::settings::Mac;
use message::{Request, Server};

pub(super) use message::{Lease, message};

/// Longest time between two questions that nobody answers.
const MAX_RETRY: Duration = Duration::from_secs(16);
/// Shortest time between two requests to renew (RFC 2131, section 4.4.5).
const MIN_RENEWAL_RETRY: Duration = Duration::from_secs(60);
/// How often an offer is asked for, or the address of before; then it starts over.
const REQUESTS: u32 = 3;
/// After this many questions without an answer the log says so.
const SILENCE: u32 = 3;
/// How long to wait after a refusal, so that a server that always refuses is not asked all the time.
const AFTER_NAK: Duration = Duration::from_secs(1);

/// What a client wants done.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Event {
    /// A frame for the host.
    Send(Vec<u8>),
    /// A lease, or one that says something else than before.
    Configure(Lease),
    /// The address may not be used any more.
    Deconfigure,
}

/// A client of one interface.
#[derive(Debug)]
pub(super) struct Client {
    mac: Mac,
    xid: u32,
    state: State,
    /// Questions of this state so far.
    asked: u32,
    /// When the next one is due.
    next: Instant,
    held: Option<Held>,
}

/// RFC 2131, figure 5.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    /// INIT and SELECTING.
    Discovering,
    /// An offer was taken.
    Requesting {
        address: Ipv4Addr,
        server: Server,
    },
    /// The link was away: asks for the address of before.
    Rebooting,
    Bound,
    Renewing,
    Rebinding,
}

#[derive(Debug)]
struct Held {
    lease: Lease,
    since: Instant,
}

impl Held {
    fn renew(&self) -> Instant {
        self.since + self.lease.times.renew
    }

    fn rebind(&self) -> Instant {
        self.since + self.lease.times.rebind
    }

    fn end(&self) -> Instant {
        self.since + self.lease.times.end
    }
}

impl Client {
    /// A client without an address. `seed` makes its exchanges its own.
    pub(super) fn new(mac: Mac, seed: u32, now: Instant) -> Self {
        Self { mac, xid: seed, state: State::Discovering, asked: 0, next: now, held: None }
    }

    /// The link is there again: what is behind it may be another network, or one that has forgotten us.
    pub(super) fn restart(&mut self, now: Instant) {
        self.enter(if self.held.is_some() { State::Rebooting } else { State::Discovering }, now);
    }

    /// When [`Self::poll_event`] wants to be called again.
    pub(super) fn deadline(&self) -> Instant {
        self.held.as_ref().map_or(self.next, |held| self.next.min(held.end()))
    }

    /// What is due; to be called until it is `None`.
    pub(super) fn poll_event(&mut self, now: Instant) -> Option<Event> {
        if self.held.take_if(|held| now >= held.end()).is_some() {
            self.enter(State::Discovering, now);
            return Some(Event::Deconfigure);
        }
        if now < self.next {
            return None;
        }
        self.advance(now);
        if self.state == State::Bound {
            return None;
        }
        self.asked += 1;
        self.next = now + self.patience(now);
        if self.asked == SILENCE {
            tracing::warn!(state = ?self.state, "no DHCP server answers");
        }
        tracing::debug!(state = ?self.state, asked = self.asked, "asks for an address");
        message::frame(&self.request(), self.mac, self.xid).map(Event::Send)
    }

    /// A frame from the host.
    pub(super) fn handle_frame(&mut self, frame: &[u8], now: Instant) -> Option<Event> {
        let reply = message::reply(frame, self.mac, self.xid)?;
        match (reply.kind, self.state) {
            (MessageType::Offer, State::Discovering) => {
                let lease = reply.lease?;
                // The exchange goes on under the same number.
                let xid = self.xid;
                self.enter(State::Requesting { address: lease.address, server: lease.server }, now);
                self.xid = xid;
                None
            }
            (MessageType::Ack, State::Discovering | State::Bound) => None,
            (MessageType::Ack, _) => {
                let lease = reply.lease?;
                let renew = now + lease.times.renew;
                let known = self.held.as_ref().is_some_and(|held| held.lease == lease);
                let held = self.held.insert(Held { lease, since: now });
                (self.state, self.asked, self.next) = (State::Bound, 0, renew);
                (!known).then(|| Event::Configure(held.lease.clone()))
            }
            (MessageType::Nak, State::Discovering | State::Bound) => None,
            (MessageType::Nak, _) => {
                let had_one = self.held.take().is_some();
                self.enter(State::Discovering, now + AFTER_NAK);
                had_one.then_some(Event::Deconfigure)
            }
            _ => None,
        }
    }

    fn enter(&mut self, state: State, at: Instant) {
        (self.state, self.asked, self.next) = (state, 0, at);
        self.xid = self.xid.wrapping_add(1);
    }

    /// Into the state in which the next question is asked.
    fn advance(&mut self, now: Instant) {
        match (self.state, &self.held) {
            (State::Requesting { .. } | State::Rebooting, _) if self.asked >= REQUESTS => {
                self.enter(State::Discovering, now);
            }
            (State::Bound | State::Renewing | State::Rebinding | State::Rebooting, None) => {
                self.enter(State::Discovering, now);
            }
            (State::Bound | State::Renewing, Some(held)) if now >= held.rebind() => {
                self.enter(State::Rebinding, now);
            }
            (State::Bound, Some(held)) if now >= held.renew() => self.enter(State::Renewing, now),
            _ => {}
        }
    }

    /// How long to wait for an answer to the question that is asked now.
    fn patience(&self, now: Instant) -> Duration {
        let until = match (self.state, &self.held) {
            (State::Renewing, Some(held)) => held.rebind(),
            (State::Rebinding, Some(held)) => held.end(),
            _ => return Duration::from_secs(1 << (self.asked - 1).min(4)).min(MAX_RETRY),
        };
        let left = until.saturating_duration_since(now);
        (left / 2).max(MIN_RENEWAL_RETRY).min(left)
    }

    fn request(&self) -> Request {
        let own = self.held.as_ref().map(|held| held.lease.address);
        let request = Request {
            kind: MessageType::Request,
            own: Ipv4Addr::UNSPECIFIED,
            requested: None,
            chosen: None,
            to: None,
        };
        match self.state {
            State::Discovering | State::Bound => {
                Request { kind: MessageType::Discover, requested: own, ..request }
            }
            State::Requesting { address, server } => {
                Request { requested: Some(address), chosen: Some(server.address), ..request }
            }
            State::Rebooting => Request { requested: own, ..request },
            State::Renewing => Request {
                own: own.unwrap_or(Ipv4Addr::UNSPECIFIED),
                to: self.held.as_ref().map(|held| held.lease.server),
                ..request
            },
            State::Rebinding => Request { own: own.unwrap_or(Ipv4Addr::UNSPECIFIED), ..request },
        }
    }
}
