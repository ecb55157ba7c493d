//! `/tunnel?ip=A&port=P`: the connection becomes one to a TCP port of a guest. The answer is `OK` and nothing
//! else, before the guest has been dialled; what the client sent behind its request is the first that the
//! guest gets. Read next: `../engine/client.rs`, which dials.

use std::net::SocketAddrV4;
use std::time::{Duration, Instant};

use bytes::Bytes;
use hyper::StatusCode;
use tokio::io::AsyncWriteExt as _;

use super::Api;
use super::path::value;
use super::reply::Refusal;
use crate::engine::{Preface, Rejected};
use crate::permits::Permit;
use crate::relay::discard;
use crate::sys::stream::Stream;
use crate::text::quote;

/// How long the client may take to read the two bytes.
const OK_TIME: Duration = Duration::from_secs(10);

/// A connection that is to lead to a guest.
pub(super) struct Tunnel {
    to: SocketAddrV4,
    permit: Permit,
}

impl Tunnel {
    /// # Errors
    /// The query names no port of a guest, or there are as many clients as descriptors allow.
    pub(super) fn new(api: &Api, query: Option<&str>) -> Result<Self, Refusal> {
        let to = target(query.unwrap_or_default())
            .map_err(|text| Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text))?;
        let permit = api.tunnels.permits(to).try_take().ok_or_else(|| {
            Refusal::new(
                StatusCode::SERVICE_UNAVAILABLE,
                "as many connections as the limit of open files allows",
            )
        })?;
        Ok(Self { to, permit })
    }

    /// Gives the client to the engine, which carries bytes, and the end of each way, until both have ended.
    pub(super) async fn run(self, api: &Api, mut client: Stream, early: Bytes) {
        let Self { to, permit } = self;
        match tokio::time::timeout(OK_TIME, client.write_all(b"OK")).await {
            Ok(Ok(())) => {}
            // The guest is to have what the client sent before it left.
            Ok(Err(error)) => tracing::debug!(%to, %error, "tunnel: the client left before the answer"),
            Err(_) => return,
        }
        let client = match client.into_std() {
            Ok(client) => client,
            Err(error) => return tracing::debug!(%to, %error, "tunnel failed"),
        };
        match api.handle.forward_client(client.into(), permit, to, Preface::Early(early.into())).await {
            Ok(()) => tracing::debug!(%to, "tunnel connected"),
            Err(Rejected { client, why }) => {
                if let Some(suppressed) = api.failed_dials.admit(Instant::now()) {
                    tracing::warn!(%to, error = %why, suppressed, "cannot dial");
                }
                if let Some(client) = client {
                    discard(client);
                }
            }
        }
    }
}

/// The words are those of the original, where it has some.
fn target(query: &str) -> Result<SocketAddrV4, String> {
    let (ip, port) = (value(query, "ip"), value(query, "port"));
    if ip.is_empty() {
        return Err("ip is mandatory".into());
    }
    let wrong = |why: &str| format!("strconv.ParseUint: parsing {}: {why}", quote(&port));
    if port.is_empty() || !port.bytes().all(|byte| byte.is_ascii_digit()) {
        return Err(wrong("invalid syntax"));
    }
    let number = port.parse().map_err(|_| wrong("value out of range"))?;
    // COMPAT(gvproxy): says OK, and then nothing.
    let ip = ip.parse().map_err(|_| format!("invalid IPv4 address {}", quote(&ip)))?;
    Ok(SocketAddrV4::new(ip, number))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn targets() {
        assert_eq!(target("ip=192.168.127.2&port=22"), Ok("192.168.127.2:22".parse().unwrap()));
        for (query, why) in [
            ("", "ip is mandatory"),
            ("ip=&port=1", "ip is mandatory"),
            ("ip=1.2.3.4", r#"strconv.ParseUint: parsing "": invalid syntax"#),
            ("ip=1.2.3.4&port=%2b1", r#"strconv.ParseUint: parsing "+1": invalid syntax"#),
            ("ip=1.2.3.4&port=%22%0a", r#"strconv.ParseUint: parsing "\"\n": invalid syntax"#),
            ("ip=1.2.3.4&port=65536", r#"strconv.ParseUint: parsing "65536": value out of range"#),
            ("ip=guest&port=1", r#"invalid IPv4 address "guest""#),
        ] {
            assert_eq!(target(query), Err(why.into()), "{query}");
        }
    }
}
