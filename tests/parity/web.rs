//! A daemon with its API, asked over its sockets and from inside. Read next: `api.rs`.

use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use crate::case::{Net, On};
use testkit::daemon::Daemon;
use testkit::eventually;
use testkit::http::{Answer, exchange, request};
use testkit::net::GATEWAY;

/// No answer takes longer, on a slow machine; the daemon itself gives up after 10 s.
pub(crate) const PATIENCE: Duration = Duration::from_secs(30);

pub(crate) const ALL: &str = "/services/forwarder/all";
pub(crate) const EXPOSE: &str = "/services/forwarder/expose";
pub(crate) const UNEXPOSE: &str = "/services/forwarder/unexpose";
pub(crate) const ZONES: &str = "/services/dns/all";
pub(crate) const NOT_FOUND: &str = "404 404 page not found";
pub(crate) const ADD_ZONE: &str = "/services/dns/add";
pub(crate) const REMOVE_ZONE: &str = "/services/dns/remove";
pub(crate) const REMOVE_RECORD: &str = "/services/dns/remove/record";

/// The flags of both kinds of endpoint.
pub(crate) const SERVED: [&str; 4] = ["-listen", "unix://{dir}/api", "-services", "unix://{dir}/services"];

/// A daemon that serves and has no machine.
pub(crate) fn served(on: &On) -> Daemon {
    on.daemon().args(SERVED).start()
}

pub(crate) fn connect(daemon: &Daemon, socket: &str) -> UnixStream {
    let path = daemon.dir().join(socket);
    let stream = eventually(socket, PATIENCE, || UnixStream::connect(&path).ok());
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// Sends `bytes` to the `-listen` endpoint; what comes back until it closes.
pub(crate) fn raw(daemon: &Daemon, bytes: impl AsRef<[u8]>) -> Answer {
    Answer::of(&exchange(connect(daemon, "api"), bytes.as_ref()))
}

pub(crate) fn ask(stream: impl Read + Write, method: &str, path: &str, body: &str) -> String {
    shown(&Answer::of(&exchange(stream, &request(method, path, body))))
}

pub(crate) fn get(daemon: &Daemon, path: &str) -> String {
    ask(connect(daemon, "api"), "GET", path, "")
}

pub(crate) fn post(daemon: &Daemon, path: &str, body: &str) -> String {
    ask(connect(daemon, "api"), "POST", path, body)
}

/// A connection of the guest to the API at the gateway.
pub(crate) fn at_gateway(net: &Net) -> TcpStream {
    let stream = net.guest.connect(SocketAddr::from((GATEWAY, 80))).expect("a connection to the gateway");
    stream.set_read_timeout(Some(PATIENCE)).unwrap();
    stream
}

/// The status and the body; headers only where they are not those that every such answer has.
pub(crate) fn shown(answer: &Answer) -> String {
    let mut text = format!("{} {}", answer.status, answer.body.trim_end_matches('\n')).trim_end().to_owned();
    let usual = match answer.status {
        0 => true,
        200 if answer.body.is_empty() => {
            answer.header("content-type").is_empty() && answer.header("content-length") == "0"
        }
        200 => answer.header("content-type") == "text/plain; charset=utf-8" && answer.body.ends_with('\n'),
        _ => {
            answer.header("content-type") == "text/plain; charset=utf-8"
                && answer.header("x-content-type-options") == "nosniff"
                && answer.body.ends_with('\n')
        }
    };
    if !usual {
        text += &format!(" with {:?}", answer.headers);
    }
    text
}
