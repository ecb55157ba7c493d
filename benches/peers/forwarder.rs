//! Programs that lead clients of a unix socket to a server elsewhere on the host. Owns: how each is started,
//! its processes, what they cost; the server's socket. May not: measure. Read next: `sockets.rs`, the
//! measurements; `splice.rs`, the plainest of them.

use std::fmt::{self, Display, Formatter};
use std::fs;
use std::io::{self, Read, Write};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, Stdio};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

use crate::clients::Door;
use crate::peer::Kind;
use crate::splice;
use testkit::eventually;
use testkit::ns::Namespace;
use testkit::process::Process;

const PATIENCE: Duration = Duration::from_secs(10);
/// Clients that may wait to be accepted.
const BACKLOG: i32 = 4096;

/// What kind of socket the server has. Clients have a unix socket.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Dest {
    Unix,
    Tcp,
    /// A unix socket with many clients, which not every way of forwarding is meant for.
    Crowded,
}

impl Display for Dest {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unix | Self::Crowded => "unix to unix",
            Self::Tcp => "unix to tcp",
        })
    }
}

/// A forwarder that runs, and the server's listener behind it.
#[derive(Debug)]
pub(crate) struct Forwarder {
    child: Option<Child>,
    /// The server's, which blocks.
    pub(crate) listener: Socket,
    /// Where clients connect to.
    pub(crate) entry: SockAddr,
    /// Where TCP is; unix sockets are found by their paths from everywhere.
    host: Namespace,
    dir: TempDir,
}

impl Forwarder {
    pub(crate) fn start(kind: &Kind, dest: Dest) -> Self {
        let dir = tempfile::Builder::new().prefix("gvb").tempdir_in("/tmp").expect("a temporary directory");
        let host = Namespace::new();
        // The one that anybody may choose. That of the machine may pace, which makes loopback a matter of
        // timers.
        host.run(["sh", "-c", "echo reno >/proc/sys/net/ipv4/tcp_congestion_control"]);
        let server = dir.path().join("server");
        let listener = match dest {
            Dest::Unix | Dest::Crowded => {
                let listener = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
                listener.bind(&SockAddr::unix(&server).unwrap()).expect("the server's socket");
                listener.listen(BACKLOG).expect("a listener");
                listener
            }
            Dest::Tcp => host.listen((Ipv4Addr::LOCALHOST, 0).into()).into(),
        };
        let address = listener.local_addr().unwrap();
        let place = match address.as_socket() {
            Some(address) => Place::Tcp(address),
            None => Place::Unix(server),
        };
        let socket = dir.path().join("entry");
        let (child, entry) = match kind {
            Kind::Direct => (None, address),
            kind => {
                let log = fs::File::create(dir.path().join("log")).expect("a log");
                let words = words(kind, &socket, &place);
                let mut command = host.command(&words[0]);
                command
                    .args(&words[1..])
                    .current_dir(&dir)
                    .stdin(Stdio::null())
                    .stdout(Stdio::null())
                    .stderr(log);
                let child = command.spawn().unwrap_or_else(|error| panic!("{}: {error}", kind.name()));
                (Some(child), SockAddr::unix(&socket).unwrap())
            }
        };
        let forwarder = Self { child, listener, entry, host, dir };
        let client =
            eventually("the forwarder's socket", PATIENCE, || forwarder.connect(&forwarder.entry).ok());
        forwarder.meet(client);
        forwarder
    }

    /// A socket that can be connected to `address`.
    pub(crate) fn socket(&self, address: &SockAddr) -> Socket {
        match address.domain() {
            Domain::UNIX => Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket"),
            _ => self.host.tcp(),
        }
    }

    /// Calls `measure` with what its clients need.
    pub(crate) fn with_door<T>(&self, measure: impl FnOnce(Door<'_>) -> T) -> T {
        measure(Door {
            socket: &|| self.socket(&self.entry),
            connect: &|client| client.connect(&self.entry),
            listener: &self.listener,
            disturb: &|| self.disturb(),
            process: self.child.as_ref().map(|child| Process(child.id())),
        })
    }

    fn connect(&self, address: &SockAddr) -> io::Result<Socket> {
        let client = self.socket(address);
        client.connect(address)?;
        Ok(client)
    }

    /// Connects to the server itself, to wake it.
    pub(crate) fn disturb(&self) {
        drop(self.connect(&self.listener.local_addr().expect("an address")));
    }

    /// A client and the server's end, between which a byte has gone each way.
    pub(crate) fn pair(&self) -> (Socket, Socket) {
        self.meet(self.connect(&self.entry).expect("a client"))
    }

    fn meet(&self, mut client: Socket) -> (Socket, Socket) {
        let mut exchange = || {
            client.set_read_timeout(Some(PATIENCE))?;
            client.write_all(b"?")?;
            self.listener.set_read_timeout(Some(PATIENCE))?;
            let (mut server, _) = self.listener.accept()?;
            self.listener.set_read_timeout(None)?;
            server.set_read_timeout(Some(PATIENCE))?;
            server.read_exact(&mut [0])?;
            server.write_all(b"!")?;
            client.read_exact(&mut [0])?;
            Ok::<_, io::Error>(server)
        };
        let server = exchange().unwrap_or_else(|error| panic!("{error}; it says: {}", self.log()));
        for end in [&client, &server] {
            end.set_read_timeout(None).unwrap();
        }
        (client, server)
    }

    /// Processor seconds of it and its children so far.
    pub(crate) fn cpu_seconds(&self) -> Option<f64> {
        self.child.as_ref().map(|child| Process(child.id()).family_cpu_seconds())
    }

    fn log(&self) -> String {
        fs::read_to_string(self.dir.path().join("log")).unwrap_or_default()
    }
}

impl Drop for Forwarder {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // What it forked serves clients that are gone by now.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

/// Where the server listens.
#[derive(Debug)]
enum Place {
    Unix(PathBuf),
    Tcp(SocketAddr),
}

/// What leads clients of `socket` to `place`.
fn words(kind: &Kind, socket: &Path, place: &Place) -> Vec<String> {
    let socket = socket.display().to_string();
    let path = |path: &Path| path.display().to_string();
    match kind {
        Kind::Ours(binary) => {
            let words = [&path(binary), "-forward-sock", &socket, "-forward-dest", &place.to_string()];
            words.map(ToOwned::to_owned).into()
        }
        Kind::Splice(size) => splice::words(*size, &socket, &place.to_string()),
        Kind::Socat(socat, block) => {
            let dest = match place {
                Place::Unix(path) => format!("UNIX-CONNECT:{}", path.display()),
                Place::Tcp(address) => format!("TCP:{address}"),
            };
            let source = format!("UNIX-LISTEN:{socket},fork,backlog={BACKLOG}");
            vec![path(socat), "-b".into(), block.to_string(), source, dest]
        }
        Kind::SocketProxy(activate, proxy) => {
            let to = match place {
                Place::Unix(path) => path.display().to_string(),
                Place::Tcp(address) => address.to_string(),
            };
            // As systemd runs its services.
            let mut words = vec!["env".to_owned(), "--ignore-signal=PIPE".to_owned()];
            words.extend([path(activate), format!("--listen={socket}"), path(proxy)]);
            words.extend(["--connections-max=4096".to_owned(), to]);
            words
        }
        kind => panic!("{} leads nobody to a socket", kind.name()),
    }
}

impl Display for Place {
    fn fmt(&self, f: &mut Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(address) => write!(f, "tcp://{address}"),
        }
    }
}
