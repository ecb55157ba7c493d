//! The HTTP API: what the daemon shows and does for programs on the host, and for guests at the gateway's
//! port 80.
//!
//! A request becomes one call of [`Handle`] or [`Registry`]; each endpoint is a file. Bytes of guests pass
//! through here only where an endpoint takes its connection over (`tunnel`, `connect`): those two answer with
//! raw bytes instead of HTTP.
//!
//! Owns: who may ask for what. May not: keep state of the network. Read next: `listener.rs`, `connection.rs`.

mod cam;
mod connect;
mod connection;
mod decode;
mod dns;
mod expose;
mod leases;
mod listener;
mod origin;
mod path;
mod qmp;
mod reply;
mod stats;
mod tunnel;
mod unexpose;

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use hyper::body::{Body as _, Incoming};
use hyper::header::{AUTHORIZATION, HOST};
use hyper::{Method, Request, StatusCode, Version};
use netstack::{Guest, Mac, PortId};
use socket2::SockRef;

use crate::budget::{Budget, Part};
use crate::config::Token;
use crate::engine::Handle;
use crate::forward::Connector;
use crate::forward::registry::{Asker, Registry};
use crate::limit::{Limit, Slot};
use crate::link::Framing;
use crate::logging::Limited;
use crate::permits::Owners;
use crate::relay::Relays;
use crate::sys::descriptor_share;
use crate::sys::stream::{StdStream, Stream};
use crate::vm::status::StatusTable;

use connection::Unsent;
use dns::Change;
pub use listener::{ApiListener, Role};
use origin::Names;
use reply::{Refusal, Reply};
use tunnel::Tunnel;

/// Connections of guests at the gateway's port. Guests keep theirs open: podman's makes one for each port.
const MAX_GATEWAY_CONNECTIONS: usize = 1024;
/// Lists of all exposed ports that a guest has asked for and not read. Each is up to half a megabyte.
const MAX_UNREAD: u32 = 16;
/// Bytes of a target that is answered with another one.
const MAX_TARGET: usize = 4 << 10;
/// What waits at a guest's connection, in bytes: the system holds it, for each.
const GATEWAY_BUFFER: usize = 16 << 10;
/// All connections to one place may take at most this part of the descriptors.
const SHARE: usize = 8;
/// How long a request may take to arrive, from the connection's begin or from its head on, before the
/// connection counts as idle.
const GRACE: Duration = Duration::from_secs(2);

/// What answers; one for all endpoints.
#[derive(Debug)]
pub struct Api {
    handle: Handle,
    registry: Registry,
    connect_framing: Framing,
    statuses: StatusTable,
    /// Of those that lead to one port of a guest each, so that a service that hangs keeps nobody from
    /// another.
    tunnels: Owners<SocketAddrV4>,
    gateway: Limit<Peer>,
    unread: Budget,
    /// Changes of what guests have exposed, under way.
    changes: Budget,
    token: Option<Token>,
    /// Whether guests have to send it.
    token_at_gateway: bool,
    failed_dials: Limited,
    relays: Arc<Relays>,
}

/// Who is at the other end of a connection, and so what there is to ask for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Scope {
    /// `-listen`: everything.
    Control,
    /// `-services`: everything but `/connect`.
    Services,
    /// The gateway's port 80.
    Gateway(Guest),
    /// A virtual machine that connected to a vsock endpoint of the host: to bring its network, and for
    /// nothing else.
    Machine {
        /// Whether it is `-listen`.
        control: bool,
    },
}

/// Whose share a connection is of: a guest's at the gateway, by its port; a machine's by its vsock context; 0
/// for processes of the host.
#[derive(Clone, Copy, Debug, Eq, Hash, PartialEq)]
struct Peer(u32);

/// One connection's client.
#[derive(Debug)]
struct Client {
    scope: Scope,
    /// Only those get here who may use the daemon: a unix socket has its mode.
    is_private: bool,
    slot: Slot<Peer>,
    /// Where browsers can reach the endpoint: what it may be called.
    names: Option<Arc<Names>>,
    unsent: Unsent,
}

/// What becomes of a request.
enum Answer {
    Reply(Reply),
    TakeOver(TakeOver),
}

/// An endpoint that goes on with the connection's raw bytes.
enum TakeOver {
    Tunnel(Tunnel),
    Connect,
}

impl Api {
    /// Answers by `connector`, `registry` and `statuses`; clients of `/connect` speak `connect_framing`.
    pub fn new(
        connector: Arc<Connector>,
        registry: Registry,
        connect_framing: Framing,
        statuses: StatusTable,
    ) -> Self {
        Self {
            handle: connector.engine.clone(),
            relays: Arc::clone(&connector.relays),
            registry,
            connect_framing,
            statuses,
            tunnels: Owners::new(connector.permits.clone()),
            gateway: limit(MAX_GATEWAY_CONNECTIONS),
            unread: Budget::new(MAX_UNREAD),
            changes: Budget::new(1),
            token: None,
            token_at_gateway: false,
            failed_dials: Limited::new(10, Duration::from_secs(60)),
        }
    }

    /// Answers clients over TCP and vsock, and guests where `at_gateway`, only if they send `token`.
    pub fn ask_for(&mut self, token: Token, at_gateway: bool) {
        self.token = Some(token);
        self.token_at_gateway = at_gateway;
    }

    /// Serves a connection that `guest` made to the gateway's port.
    pub async fn serve_guest(self: Arc<Self>, guest: Guest, stream: StdStream) {
        let (Some(slot), Ok(stream)) = (self.gateway.admit(Peer(guest.port.0)), Stream::from_std(stream))
        else {
            return tracing::debug!(guest = %guest.address, "too many requests at the gateway");
        };
        // It is more then, not wrong.
        let _ = SockRef::from(&stream).set_send_buffer_size(GATEWAY_BUFFER);
        let scope = Scope::Gateway(guest);
        let names = Some(Arc::default());
        let client = Client { scope, is_private: false, names, slot, unsent: Unsent::default() };
        connection::serve(self, stream, client).await;
    }

    /// Whether the client has the token, where it needs one (RFC 6750, 2.1).
    fn ensure_token(&self, client: &Client, request: &Request<Incoming>) -> Result<(), Refusal> {
        let asked = client.scope.sends_token(client.is_private, self.token_at_gateway);
        let Some(token) = self.token.as_ref().filter(|_| asked) else { return Ok(()) };
        let mut sent = request.headers().get_all(AUTHORIZATION).iter();
        let sent = sent.next().filter(|_| sent.next().is_none()).and_then(|value| bearer(value.as_bytes()));
        match sent.is_some_and(|sent| token.is(sent)) {
            true => Ok(()),
            false => Err(Refusal::new(StatusCode::UNAUTHORIZED, "401 Unauthorized")),
        }
    }

    /// Waits until no other change of the guest's is under way: one of each is before the operator's.
    async fn change_of(&self, client: &Client) -> Option<Part> {
        let guest = client.scope.asker().guest()?;
        Some(self.changes.part(guest.port, 1).await)
    }

    async fn answer(&self, client: &Client, request: Request<Incoming>) -> Answer {
        if let Scope::Gateway(guest) = client.scope {
            self.handle.turn_of(guest.port).await;
        }
        match self.try_answer(client, request).await {
            Ok(answer) => answer,
            Err(refusal) => Answer::Reply(refusal.into()),
        }
    }

    async fn try_answer(&self, client: &Client, request: Request<Incoming>) -> Result<Answer, Refusal> {
        ensure_short(&request)?;
        ensure_one_host(&request)?;
        self.ensure_token(client, &request)?;
        if let Some(names) = &client.names {
            names.ensure_own(&request)?;
        }
        if request.uri().path() == "*" {
            return match *request.method() {
                Method::OPTIONS => Ok(Answer::Reply(reply::done())),
                _ => Err(Refusal::bad_request("400 Bad Request")),
            };
        }
        let path = path::decode(request.uri().path()).filter(|path| path.starts_with('/'));
        let path = path.ok_or_else(|| Refusal::bad_request("400 Bad Request"))?;
        if request.method() == Method::CONNECT {
            return Err(Refusal::not_found());
        }
        let cleaned = path::clean(&path);
        if cleaned != path {
            ensure_short_target(&request)?;
            let location = path::encode(&cleaned, request.uri().query());
            return Ok(Answer::Reply(reply::redirect(request.method(), &location)));
        }
        if !client.scope.serves(&path) {
            return Err(Refusal::not_found());
        }
        let reply = match path.as_str() {
            "/services/forwarder/all" => {
                if let Scope::Gateway(guest) = client.scope {
                    client.unsent.hold(self.unread.part(guest.port, 1).await);
                }
                reply::json(&self.registry.seen_by(client.scope.asker()))
            }
            "/services/forwarder/expose" => expose::answer(self, client, request).await,
            "/services/forwarder/unexpose" => unexpose::answer(self, client, request).await,
            "/services/dhcp/leases" | "/leases" => leases::answer(self).await,
            "/services/dns/all" => dns::answer_all(self).await,
            "/services/dns/add" => dns::answer_change(self, client, request, Change::Add).await,
            "/services/dns/remove" => dns::answer_change(self, client, request, Change::Remove).await,
            "/services/dns/remove/record" => {
                dns::answer_change(self, client, request, Change::RemoveRecords).await
            }
            "/stats" => stats::answer(self).await,
            "/qmp" => qmp::answer(self),
            "/cam" => cam::answer(self).await,
            "/tunnel" => {
                ensure_no_body(&request)?;
                return Tunnel::new(self, request.uri().query()).map(TakeOver::Tunnel).map(Answer::TakeOver);
            }
            "/connect" => {
                ensure_no_body(&request)?;
                return Ok(Answer::TakeOver(TakeOver::Connect));
            }
            _ => Err(Refusal::not_found()),
        };
        reply.map(Answer::Reply)
    }
}

impl TakeOver {
    /// Goes on with `stream`, of which `early` was read already. What carries raw bytes has no `slot` among
    /// the API's connections any more.
    async fn run(self, api: &Api, slot: Slot<Peer>, stream: Stream, early: Bytes) {
        match self {
            Self::Tunnel(tunnel) => {
                drop(slot);
                tunnel.run(api, stream, early).await;
            }
            Self::Connect => connect::run(api, slot, stream, early).await,
        }
    }
}

impl Scope {
    fn serves(self, path: &str) -> bool {
        match self {
            Self::Control => true,
            Self::Services => path != "/connect",
            Self::Gateway(..) => matches!(
                path,
                "/services/forwarder/all" | "/services/forwarder/expose" | "/services/forwarder/unexpose"
            ),
            Self::Machine { control } => control && path == "/connect",
        }
    }

    /// Whether a client has to send the token, if there is one.
    fn sends_token(self, is_private: bool, at_gateway: bool) -> bool {
        match self {
            Self::Control | Self::Services => !is_private,
            Self::Gateway(..) => at_gateway,
            // It gets nothing but its network.
            Self::Machine { .. } => false,
        }
    }

    fn asker(self) -> Asker {
        match self {
            Self::Control | Self::Services => Asker::Operator,
            Self::Gateway(guest) => Asker::Guest(guest),
            // It is in no network yet.
            Self::Machine { .. } => {
                let (address, port) = (Ipv4Addr::UNSPECIFIED, PortId(u32::MAX));
                Asker::Guest(Guest { address, port, mac: Mac([0; 6]) })
            }
        }
    }
}

/// RFC 6585 section 5. What reads the head stops only somewhere beyond its limit.
fn ensure_short(request: &Request<Incoming>) -> Result<(), Refusal> {
    let lines =
        request.headers().iter().map(|(name, value)| name.as_str().len() + value.len() + ": \r\n".len());
    let target = request.uri().path_and_query().map_or(0, |target| target.as_str().len());
    let len = target + lines.sum::<usize>();
    match len <= connection::MAX_HEAD {
        true => Ok(()),
        false => Err(Refusal::new(StatusCode::REQUEST_HEADER_FIELDS_TOO_LARGE, "")),
    }
}

/// Where to go instead is told twice, once as HTML.
fn ensure_short_target(request: &Request<Incoming>) -> Result<(), Refusal> {
    match request.uri().path_and_query().is_none_or(|target| target.as_str().len() <= MAX_TARGET) {
        true => Ok(()),
        false => Err(Refusal::new(StatusCode::URI_TOO_LONG, "414 URI Too Long")),
    }
}

/// RFC 9112 section 3.2. An empty one is fine: gvforwarder sends that.
fn ensure_one_host(request: &Request<Incoming>) -> Result<(), Refusal> {
    match request.headers().get_all(HOST).iter().count() {
        0 if request.version() >= Version::HTTP_11 => {
            Err(Refusal::bad_request("400 Bad Request: missing required Host header"))
        }
        0 | 1 => Ok(()),
        _ => Err(Refusal::bad_request("400 Bad Request")),
    }
}

/// The token in an `Authorization` header.
fn bearer(value: &[u8]) -> Option<&[u8]> {
    let (scheme, token) = value.split_at_checked("Bearer ".len())?;
    scheme.eq_ignore_ascii_case(b"Bearer ").then(|| token.trim_ascii())
}

/// What follows such a request is no body, but what the connection carries from then on.
fn ensure_no_body(request: &Request<Incoming>) -> Result<(), Refusal> {
    match request.body().is_end_stream() {
        true => Ok(()),
        false => Err(Refusal::bad_request("a request for a raw connection has no body")),
    }
}

/// `max` connections, or fewer where descriptors are few.
fn limit(max: usize) -> Limit<Peer> {
    Limit::new(descriptor_share(SHARE, max), GRACE)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_in_headers() {
        for (value, token) in [
            ("Bearer abc", Some("abc")),
            ("bearer  abc ", Some("abc")),
            ("Bearer", None),
            ("Basic abc", None),
            ("Bearerabc", None),
            ("", None),
        ] {
            assert_eq!(bearer(value.as_bytes()), token.map(str::as_bytes), "{value:?}");
        }
    }

    #[test]
    fn who_may_ask_for_what() {
        let (address, port) = (Ipv4Addr::new(192, 168, 127, 2), PortId(7));
        let asker = Guest { address, port, mac: Mac([2; 6]) };
        let guest = Scope::Gateway(asker);
        let machine = Scope::Machine { control: true };
        for (path, scopes) in [
            ("/connect", [true, false, false, true]),
            ("/tunnel", [true, true, false, false]),
            ("/services/forwarder/expose", [true, true, true, false]),
            ("/services/forwarder/all", [true, true, true, false]),
            ("/services/dns/add", [true, true, false, false]),
            ("/services/dns/remove", [true, true, false, false]),
            ("/services/dns/remove/record", [true, true, false, false]),
            ("/leases", [true, true, false, false]),
            ("/qmp", [true, true, false, false]),
        ] {
            let served = [Scope::Control, Scope::Services, guest, machine].map(|scope| scope.serves(path));
            assert_eq!(served, scopes, "{path}");
        }
        assert!(!Scope::Machine { control: false }.serves("/connect"));
        for (scope, is_private, at_gateway, sends) in [
            (Scope::Control, true, true, false),
            (Scope::Control, false, false, true),
            (Scope::Services, true, true, false),
            (Scope::Services, false, false, true),
            (guest, false, true, true),
            (guest, false, false, false),
            (machine, false, true, false),
        ] {
            assert_eq!(scope.sends_token(is_private, at_gateway), sends, "{scope:?}");
        }
        assert_eq!(guest.asker(), Asker::Guest(asker));
    }
}
