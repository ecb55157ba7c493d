//! A daemon with a Linux guest behind it and its API in front, for what is exposed of the guest on the host's
//! loopback.
//! Owns: the questions to the API. Read next: `tests/forwards.rs`.

use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::Duration;

use crate::daemon::{Builder, Daemon};
use crate::guest::{self, Guest};
use crate::net::{GATEWAY, plug};

/// The address of the guest.
pub const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);
/// Longest that the API may take.
const PATIENCE: Duration = Duration::from_secs(30);

/// Who asks: through the daemon's socket, or from an address of the guest through the gateway.
#[derive(Clone, Copy, Debug)]
pub enum Asker {
    Operator,
    Guest(Ipv4Addr),
}

/// What else than 200 the API says.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    pub status: u16,
    pub text: String,
}

impl std::fmt::Display for Refused {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.status, self.text)
    }
}

/// A daemon on the test's own host, and a guest with [`GUEST`]. The guest hangs up first.
#[derive(Debug)]
pub struct Bench {
    pub guest: Guest,
    pub daemon: Daemon,
}

impl Bench {
    #[track_caller]
    pub fn start() -> Self {
        Self::with(&[])
    }

    /// With more arguments.
    #[track_caller]
    pub fn with(args: &[&str]) -> Self {
        Self::of(Daemon::builder().args(args))
    }

    /// With a daemon as `builder` says.
    #[track_caller]
    pub fn of(builder: Builder) -> Self {
        let daemon = builder.args(["-listen", "unix://{dir}/api.sock"]).start();
        let guest = Guest::start(plug(&daemon), guest::MAC, 1500);
        assert_eq!(guest.dhcp().ip(), GUEST);
        Self { guest, daemon }
    }

    /// For files of the test.
    pub fn dir(&self) -> &Path {
        self.daemon.dir()
    }

    /// Asks the API; the status and the body.
    #[track_caller]
    pub fn ask(&self, asker: Asker, path: &str, body: &str) -> Result<String, Refused> {
        let method = if body.is_empty() { "GET" } else { "POST" };
        let request = format!(
            "{method} {path} HTTP/1.1\r\nHost: gateway\r\nConnection: close\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        );
        let answer = match asker {
            Asker::Operator => {
                UnixStream::connect(self.dir().join("api.sock")).and_then(|stream| exchange(stream, &request))
            }
            Asker::Guest(from) => {
                let socket = self.guest.tcp();
                socket
                    .bind(&SocketAddr::from((from, 0)).into())
                    .and_then(|()| socket.connect(&SocketAddr::from((GATEWAY, 80)).into()))
                    .and_then(|()| exchange(std::net::TcpStream::from(socket), &request))
            }
        };
        let answer = answer.unwrap_or_else(|error| panic!("{asker:?} {path} {body}: {error}"));
        let (head, body) = answer.split_once("\r\n\r\n").unwrap_or_else(|| panic!("no answer: {answer:?}"));
        let status = head.split(' ').nth(1).and_then(|status| status.parse().ok()).unwrap_or(0);
        let text = body.strip_suffix('\n').unwrap_or(body).to_owned();
        if status == 200 { Ok(text) } else { Err(Refused { status, text }) }
    }

    #[track_caller]
    pub fn expose_as(&self, asker: Asker, protocol: &str, local: &str, remote: &str) -> Result<(), Refused> {
        let wish = format!(r#"{{"local":"{local}","remote":"{remote}","protocol":"{protocol}"}}"#);
        self.ask(asker, "/services/forwarder/expose", &wish).map(drop)
    }

    #[track_caller]
    pub fn unexpose_as(&self, asker: Asker, protocol: &str, local: &str) -> Result<(), Refused> {
        let wish = format!(r#"{{"local":"{local}","protocol":"{protocol}"}}"#);
        self.ask(asker, "/services/forwarder/unexpose", &wish).map(drop)
    }

    #[track_caller]
    pub fn expose(&self, protocol: &str, local: &str, remote: &str) {
        self.expose_as(Asker::Operator, protocol, local, remote)
            .unwrap_or_else(|error| panic!("expose {protocol} {local} for {remote}: {error}"));
    }

    #[track_caller]
    pub fn unexpose(&self, protocol: &str, local: &str) {
        self.unexpose_as(Asker::Operator, protocol, local)
            .unwrap_or_else(|error| panic!("unexpose {protocol} {local}: {error}"));
    }

    /// What the operator is told when that is not exposed.
    #[track_caller]
    pub fn refusal(&self, protocol: &str, local: &str, remote: &str) -> String {
        match self.expose_as(Asker::Operator, protocol, local, remote) {
            Ok(()) => panic!("exposed: {protocol} {local} for {remote}"),
            Err(Refused { status, text }) => {
                assert_eq!(status, 500, "{text}");
                text
            }
        }
    }

    /// The list as it is shown.
    #[track_caller]
    pub fn all(&self, asker: Asker) -> String {
        self.ask(asker, "/services/forwarder/all", "").unwrap_or_else(|error| panic!("{error}"))
    }
}

/// A request, and the answer as text.
fn exchange(mut stream: impl Read + Write + Timed, request: &str) -> io::Result<String> {
    stream.limit(PATIENCE)?;
    stream.write_all(request.as_bytes())?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer)?;
    Ok(answer)
}

trait Timed {
    fn limit(&self, patience: Duration) -> io::Result<()>;
}

impl Timed for UnixStream {
    fn limit(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}

impl Timed for std::net::TcpStream {
    fn limit(&self, patience: Duration) -> io::Result<()> {
        self.set_read_timeout(Some(patience))
    }
}
