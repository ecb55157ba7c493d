//! Where the frames go: a URL, and the connection it leads to. Owns: the connection, and the program of a
//! `stdio:` URL.
//! May not: look into frames. Read next: `relay.rs`, which the connection is for.

use rustix::fd::OwnedFd;
use std::ffi::{OsStr, OsString};
use std::io::{self, Write};
use std::net::ToSocketAddrs;
use std::os::unix::ffi::OsStrExt;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

use anyhow::{Result, anyhow, bail, ensure};
use socket2::{Domain, SockAddr, Socket, Type};
use tokio::runtime;
use tokio::time::timeout;

use crate::addr::{Url, unescape};
use crate::config::Token;
use crate::dial::refuse_self;
use crate::text::reason;
use crate::vsock;

/// How long frames are held back behind the request. COMPAT(gvproxy): the original loses what comes before
/// its server has handed the connection over, down to a single byte, behind which no length is right any
/// more; and it does not say when it has.
const TAKE_OVER: Duration = Duration::from_millis(100);
/// How long a host may take to accept a connection.
const CONNECT: Duration = Duration::from_secs(10);

/// A URL that was understood.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Endpoint {
    /// Always asks for `/connect`.
    Unix(PathBuf),
    /// Asks for nothing where the path is empty: a bare link.
    Vsock {
        cid: u32,
        port: u32,
        path: String,
    },
    Tcp {
        authority: String,
        path: String,
    },
    /// A program that speaks frames on its standard input and output.
    Stdio {
        program: PathBuf,
        args: Vec<OsString>,
    },
}

/// An open link: length-prefixed frames both ways, without waiting.
#[derive(Debug)]
pub(super) struct Connection {
    pub(super) from_host: OwnedFd,
    pub(super) to_host: OwnedFd,
    /// Ends with the connection.
    program: Option<Program>,
}

impl Endpoint {
    pub(super) fn parse(text: &OsStr) -> Result<Self> {
        let url = Url::parse(text)?;
        let authority = url.authority_text()?.to_owned();
        let path = url.path.to_str().unwrap_or_default().to_owned();
        // It becomes a part of a request's first line.
        let plain = || ensure_plain(&path);
        match url.scheme.as_str() {
            "unix" => Ok(Self::Unix(url.into_socket_path()?)),
            "vsock" => {
                let number = |text: &str| text.parse::<u32>().ok();
                let (cid, port) = authority
                    .split_once(':')
                    .and_then(|(cid, port)| Some((number(cid)?, number(port)?)))
                    .ok_or_else(|| anyhow!("two numbers are needed, as in vsock://2:1024/connect"))?;
                plain()?;
                Ok(Self::Vsock { cid, port, path })
            }
            "tcp" => {
                let port = authority.rsplit_once(':').and_then(|(_, port)| port.parse::<u16>().ok());
                ensure!(port.is_some(), "a port is needed, as in tcp://192.0.2.1:8080/connect");
                plain()?;
                let path = if path.is_empty() { "/connect".into() } else { path };
                Ok(Self::Tcp { authority, path })
            }
            "stdio" => {
                ensure!(
                    authority.is_empty() && !path.is_empty(),
                    "an absolute path is needed, as in stdio:/bin/x"
                );
                Ok(Self::Stdio { program: url.path.into(), args: args(text)? })
            }
            _ => bail!("unexpected scheme: vsock, unix, tcp and stdio are known"),
        }
    }

    /// Opens the link, with `token` in the request for it. Takes up to 10 s. To be called from a thread of a
    /// tokio runtime that may block.
    pub(super) fn dial(&self, token: Option<&Token>) -> Result<Connection> {
        let (socket, request) = match self {
            Self::Unix(path) => {
                let address = SockAddr::unix(path)?;
                (connect(Domain::UNIX, &[address])?, request("", "/connect", token))
            }
            Self::Vsock { cid, port, path } => {
                (connect_vsock(*cid, *port).map_err(said)?, request("", path, token))
            }
            Self::Tcp { authority, path } => {
                let addresses: Vec<SockAddr> =
                    authority.to_socket_addrs().map_err(said)?.map(SockAddr::from).collect();
                let socket = connect(Domain::IPV4, &addresses)?;
                socket.set_tcp_nodelay(true)?;
                (socket, request(authority, path, token))
            }
            Self::Stdio { program, args } => return spawn(program, args),
        };
        if !request.is_empty() {
            (&socket).write_all(request.as_bytes()).map_err(said)?;
            std::thread::sleep(TAKE_OVER);
        }
        socket.set_nonblocking(true)?;
        let to_host = socket.try_clone()?.into();
        Ok(Connection { from_host: socket.into(), to_host, program: None })
    }
}

/// The upgrade. No answer comes: frames follow at once. Nothing is asked for without a path.
fn request(host: &str, path: &str, token: Option<&Token>) -> String {
    if path.is_empty() {
        return String::new();
    }
    let (version, token) = (env!("CARGO_PKG_VERSION"), Token::header(token));
    format!(
        "POST {path} HTTP/1.1\r\nHost: {host}\r\nUser-Agent: gvforwarder/{version}\r\n{token}Content-Length: 0\r\n\r\n"
    )
}

fn ensure_plain(path: &str) -> Result<()> {
    ensure!(!path.contains(|c: char| c.is_control() || c == ' '), "no blanks in the path");
    Ok(())
}

/// The first of `addresses` that answers.
fn connect(domain: Domain, addresses: &[SockAddr]) -> Result<Socket> {
    let mut failure = anyhow!("no address");
    for address in addresses {
        let domain = if address.is_ipv6() { Domain::IPV6 } else { domain };
        let socket = Socket::new(domain, Type::STREAM, None)?;
        match socket.connect_timeout(address, CONNECT).and_then(|()| refuse_self(socket)) {
            Ok(socket) => return Ok(socket),
            Err(error) => failure = said(error),
        }
    }
    Err(failure)
}

fn connect_vsock(cid: u32, port: u32) -> io::Result<Socket> {
    // A runtime of its own: this thread may outlive the program's.
    let runtime = runtime::Builder::new_current_thread().enable_all().build()?;
    let connected = runtime.block_on(async { timeout(CONNECT, vsock::connect(cid, port)).await });
    let late = |_| io::Error::new(io::ErrorKind::TimedOut, "connection timed out");
    let socket = Socket::from(connected.map_err(late)??);
    socket.set_nonblocking(false)?;
    Ok(socket)
}

fn said(error: io::Error) -> anyhow::Error {
    anyhow!("{}", reason(&error))
}

/// The query of a `stdio:` URL as flags: `a=1&b` is `-a=1 -b=`.
fn args(url: &OsStr) -> Result<Vec<OsString>> {
    let bytes = url.as_bytes().split(|&b| b == b'#').next().unwrap_or_default();
    let Some(at) = bytes.iter().position(|&b| b == b'?') else { return Ok(Vec::new()) };
    let pairs = bytes.get(at + 1..).unwrap_or_default().split(|&b| b == b'&').filter(|pair| !pair.is_empty());
    let text = |part: &[u8]| {
        let spaced: Vec<u8> = part.iter().map(|&b| if b == b'+' { b' ' } else { b }).collect();
        unescape(&spaced).map_err(|bad| anyhow!("invalid URL escape {}", crate::text::quote(bad)))
    };
    pairs
        .map(|pair| {
            let mut halves = pair.splitn(2, |&b| b == b'=');
            let mut arg = OsString::from("-");
            arg.push(text(halves.next().unwrap_or_default())?);
            arg.push("=");
            arg.push(text(halves.next().unwrap_or_default())?);
            Ok(arg)
        })
        .collect()
}

/// A program of a `stdio:` URL. Dropping it ends it.
#[derive(Debug)]
struct Program(Child);

fn spawn(program: &PathBuf, args: &[OsString]) -> Result<Connection> {
    let mut child = Command::new(program)
        .args(args)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .map_err(|error| anyhow!("{}: {}", program.display(), reason(&error)))?;
    let (Some(to_host), Some(from_host)) = (child.stdin.take(), child.stdout.take()) else {
        bail!("{}: no pipes", program.display());
    };
    let connection = Connection {
        from_host: OwnedFd::from(from_host),
        to_host: OwnedFd::from(to_host),
        program: Some(Program(child)),
    };
    for end in [&connection.from_host, &connection.to_host] {
        rustix::io::ioctl_fionbio(end, true)?;
    }
    Ok(connection)
}

impl Connection {
    /// A link over a stream that is open already.
    #[cfg(test)]
    pub(super) fn of(stream: std::os::unix::net::UnixStream) -> Self {
        stream.set_nonblocking(true).unwrap();
        Self { from_host: stream.try_clone().unwrap().into(), to_host: stream.into(), program: None }
    }

    /// The ends for reading and for writing, and what has to be kept until both are done with.
    pub(super) fn into_parts(self) -> (OwnedFd, OwnedFd, impl Send + Sized + use<>) {
        (self.from_host, self.to_host, self.program)
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, String> {
        Endpoint::parse(url.as_ref()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn urls() {
        let vsock = |cid, port, path: &str| Endpoint::Vsock { cid, port, path: path.into() };
        let tcp =
            |authority: &str, path: &str| Endpoint::Tcp { authority: authority.into(), path: path.into() };
        for (url, endpoint) in [
            ("vsock://2:1024/connect", vsock(2, 1024, "/connect")),
            ("vsock://2:4294967295", vsock(2, u32::MAX, "")),
            ("unix:///run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("unix:/run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("tcp://host:80", tcp("host:80", "/connect")),
            ("tcp://[::1]:80/other", tcp("[::1]:80", "/other")),
            ("stdio:/bin/x", Endpoint::Stdio { program: "/bin/x".into(), args: vec![] }),
            (
                "stdio:/mnt/c/a%20b.exe?listen-stdio=accept&ssh-port=-1&log=a+b%26",
                Endpoint::Stdio {
                    program: "/mnt/c/a b.exe".into(),
                    args: vec!["-listen-stdio=accept".into(), "-ssh-port=-1".into(), "-log=a b&".into()],
                },
            ),
        ] {
            assert_eq!(parse(url), Ok(endpoint), "{url}");
        }
        for (url, error) in [
            ("/run/x.sock", "unexpected scheme"),
            ("http://x", "unexpected scheme"),
            ("vsock://:1024", "two numbers"),
            ("vsock://2/connect", "two numbers"),
            ("vsock://2:99999999999", "two numbers"),
            ("unix://rel.sock", "must be absolute"),
            ("tcp://host", "a port is needed"),
            ("stdio:x?a=b", "an absolute path"),
            ("stdio:/x?a=%zz", "invalid URL escape"),
            ("vsock://2:1/a%0d%0ab", "no blanks"),
        ] {
            let text = parse(url).unwrap_err();
            assert!(text.contains(error), "{url}: {text}");
        }
    }

    #[test]
    fn the_request_is_what_the_original_understands() {
        let text = request("", "/connect", None);
        assert!(
            text.starts_with("POST /connect HTTP/1.1\r\nHost: \r\n") && text.ends_with("\r\n\r\n"),
            "{text}"
        );
        assert_eq!(request("", "", None), "");
    }

    #[test]
    fn tcp_asks_for_the_link_by_the_hosts_name() {
        use std::io::Read;
        let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
        let authority = listener.local_addr().unwrap().to_string();
        let connection = parse(&format!("tcp://{authority}")).unwrap().dial(None).unwrap();
        let (mut stream, _) = listener.accept().unwrap();
        drop(connection);
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        assert!(text.starts_with(&format!("POST /connect HTTP/1.1\r\nHost: {authority}\r\n")), "{text}");
        drop((stream, listener));
        assert_eq!(
            parse(&format!("tcp://{authority}")).unwrap().dial(None).unwrap_err().to_string(),
            "connection refused"
        );
    }

    #[test]
    fn a_program_is_a_link_and_ends_with_it() {
        let endpoint = parse("stdio:/bin/cat").unwrap();
        let connection = endpoint.dial(None).unwrap();
        let pid = connection.program.as_ref().unwrap().0.id();
        rustix::io::write(&connection.to_host, b"\x01\x00x").unwrap();
        let mut bytes = [0; 8];
        let mut fds = [rustix::event::PollFd::new(&connection.from_host, rustix::event::PollFlags::IN)];
        rustix::event::poll(&mut fds, None).unwrap();
        assert_eq!(rustix::io::read(&connection.from_host, &mut bytes).unwrap(), 3);
        drop(connection);
        assert!(!std::path::Path::new(&format!("/proc/{pid}")).exists());
        assert!(
            parse("stdio:/nonexistent").unwrap().dial(None).unwrap_err().to_string().contains("no such file")
        );
    }
}
