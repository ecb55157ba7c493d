//! `/services/forwarder/expose`: a host port or socket that leads to a guest.
//! Owns: the request's form, shared with `unexpose.rs`. Read next: `crate::forward::registry`.

use bytes::Bytes;
use hyper::body::Incoming;
use hyper::{Request, StatusCode};

use super::decode::Object;
use super::reply::{Refusal, Reply, done, posted};
use super::{Api, Client};
use crate::addr::split_host_port;
use crate::config::{Exposed, Protocol};
use crate::forward::registry::{Asker, ExposeError};

/// What may be exposed: the names in the request, without one it is TCP.
const PROTOCOLS: [Protocol; 4] = [Protocol::Tcp, Protocol::Udp, Protocol::Unix, Protocol::Npipe];

pub(super) async fn answer(api: &Api, client: &Client, request: Request<Incoming>) -> Result<Reply, Refusal> {
    let asker = client.scope.asker();
    let ExposeRequest { local, remote, protocol } =
        ExposeRequest::decode("ExposeRequest", posted(client, request).await?)?;
    let remote = match protocol_of(&protocol) {
        Some(Protocol::Unix | Protocol::Npipe) => remote,
        _ => complete(remote, asker).map_err(Refusal::bad_request)?,
    };
    let protocol = protocol_of(&protocol).ok_or_else(|| {
        Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, format!("unknown protocol {protocol}"))
    })?;
    let _change = api.change_of(client).await;
    api.registry.expose(Exposed { local, remote, protocol }, asker).await?;
    Ok(done())
}

/// What a request names; the fields of `types.ExposeRequest`, and of `types.UnexposeRequest` without a
/// `remote`.
pub(super) struct ExposeRequest {
    pub(super) local: String,
    pub(super) remote: String,
    pub(super) protocol: String,
}

impl ExposeRequest {
    pub(super) fn decode(name: &'static str, body: Bytes) -> Result<Self, Refusal> {
        let mut object = Object::decode(name, &body)?;
        let local = object.text("local")?;
        let remote = if name == "ExposeRequest" { object.text("remote")? } else { String::new() };
        Ok(Self { local, remote, protocol: object.text_of("protocol", "types.TransportProtocol")? })
    }
}

/// `None` for one that there is not.
pub(super) fn protocol_of(name: &str) -> Option<Protocol> {
    match name {
        "" => Some(Protocol::default()),
        name => PROTOCOLS.into_iter().find(|protocol| protocol.as_str() == name),
    }
}

impl From<ExposeError> for Refusal {
    fn from(error: ExposeError) -> Self {
        let status = match error {
            ExposeError::Denied(_) => StatusCode::FORBIDDEN,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        Self::new(status, error.to_string())
    }
}

/// `host:port`, where a guest may leave itself out.
fn complete(remote: String, asker: Asker) -> Result<String, String> {
    if !split_host_port(&remote)?.0.is_empty() {
        return Ok(remote);
    }
    match asker {
        Asker::Guest(guest) => Ok(format!("{}{remote}", guest.address)),
        // COMPAT(gvproxy): says the same to a client of a unix socket, and takes 127.0.0.1 of the guest for
        // one that came by TCP.
        Asker::Operator => Err("address @: missing port in address".into()),
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use netstack::{Guest, Mac, PortId};

    use super::*;

    const GUEST: Asker = Asker::Guest(Guest {
        address: Ipv4Addr::new(192, 168, 127, 2),
        port: PortId(0),
        mac: Mac([2, 0, 0, 0, 0, 2]),
    });

    #[test]
    fn a_guest_may_leave_itself_out() {
        let complete = |remote: &str, asker| complete(remote.to_owned(), asker);
        assert_eq!(complete(":80", GUEST).as_deref(), Ok("192.168.127.2:80"));
        assert_eq!(complete("192.168.127.9:80", GUEST).as_deref(), Ok("192.168.127.9:80"));
        assert_eq!(complete(":80", Asker::Operator), Err("address @: missing port in address".into()));
        for (remote, why) in [
            ("", "missing port in address"),
            ("192.168.127.2", "address 192.168.127.2: missing port in address"),
            ("1.2.3.4:5:6", "address 1.2.3.4:5:6: too many colons in address"),
            ("[::1", "address [::1: missing ']' in address"),
            ("[::1]", "address [::1]: missing port in address"),
        ] {
            assert_eq!(complete(remote, GUEST), Err(why.into()), "{remote}");
        }
    }

    #[test]
    fn protocols_are_spelled_exactly() {
        assert_eq!(protocol_of(""), Some(Protocol::Tcp));
        assert_eq!(protocol_of("npipe"), Some(Protocol::Npipe));
        assert_eq!((protocol_of("TCP"), protocol_of("sctp")), (None, None));
    }
}
