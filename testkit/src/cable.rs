//! The guest's end of a link, whatever its framing. Owns: the descriptors. Read next: `relay.rs`, which moves
//! frames over it.

use std::fs::File;
use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use crate::daemon::{Builder, Daemon, is_peer};
use crate::eventually;

/// How long a daemon's socket may take to be there.
const START: Duration = Duration::from_secs(10);

/// How frames are told apart.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Framing {
    /// A 32-bit big-endian length before each.
    Big32,
    /// A 16-bit little-endian length before each.
    Little16,
    /// A message each.
    Message,
}

impl Framing {
    /// Bytes of the length.
    pub fn prefix(self) -> usize {
        match self {
            Self::Big32 => 4,
            Self::Little16 => 2,
            Self::Message => 0,
        }
    }
}

/// One end of a link.
#[derive(Debug)]
pub struct Cable {
    pub input: File,
    pub output: File,
    pub framing: Framing,
    /// A name that the end has, to be removed with it.
    name: Option<PathBuf>,
}

impl Cable {
    pub fn new(socket: impl Into<OwnedFd>, framing: Framing) -> Self {
        let input = File::from(socket.into());
        Self { output: input.try_clone().unwrap(), input, framing, name: None }
    }

    /// The descriptor alone; its name stays.
    pub fn into_socket(mut self) -> OwnedFd {
        self.name = None;
        self.output.try_clone().expect("a descriptor").into()
    }

    /// Ends what waits for input, and hangs up where that can be told.
    pub fn shutdown(&self) {
        let _ = SockRef::from(&self.input).shutdown(Shutdown::Both);
    }
}

impl Drop for Cable {
    fn drop(&mut self) {
        if let Some(name) = &self.name {
            let _ = std::fs::remove_file(name);
        }
    }
}

impl From<UnixStream> for Cable {
    fn from(stream: UnixStream) -> Self {
        Self::new(stream, Framing::Big32)
    }
}

/// The links that the daemon has.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Qemu,
    QemuTcp(u16),
    Vpnkit,
    Bess,
    /// With the magic datagram or without.
    Vfkit(bool),
    Stdio,
    /// `/connect` of a daemon whose API is at `api.sock`.
    Connect,
}

impl Kind {
    /// A daemon with such a link and no other.
    pub fn builder(self) -> Builder {
        let builder = Daemon::builder().without_qemu();
        match self {
            Self::Stdio => builder.args(["-listen-stdio", "accept"]).with_pipes(),
            _ => builder.args(self.args()),
        }
    }

    /// The flag, as one word.
    pub fn args(self) -> Vec<String> {
        vec![match self {
            Self::Qemu => "-listen-qemu=unix://{dir}/qemu.sock".to_owned(),
            Self::QemuTcp(port) => format!("-listen-qemu=tcp://127.0.0.1:{port}"),
            Self::Vpnkit => "-listen-vpnkit=unix://{dir}/vpnkit.sock".to_owned(),
            Self::Bess => "-listen-bess=unixpacket://{dir}/bess.sock".to_owned(),
            Self::Vfkit(_) => "-listen-vfkit=unixgram://{dir}/vfkit.sock".to_owned(),
            Self::Stdio => "-listen-stdio=accept".to_owned(),
            Self::Connect => "-listen=unix://{dir}/api.sock".to_owned(),
        }]
    }

    /// The file of its socket.
    pub fn socket(self, daemon: &Daemon) -> PathBuf {
        let file = match self {
            Self::Qemu => "qemu.sock",
            Self::Vpnkit => "vpnkit.sock",
            Self::Bess => "bess.sock",
            Self::Vfkit(_) => "vfkit.sock",
            Self::Connect => "api.sock",
            Self::QemuTcp(_) | Self::Stdio => panic!("{self:?} has no file"),
        };
        daemon.dir().join(file)
    }

    /// A guest's end.
    #[track_caller]
    pub fn plug(self, daemon: &mut Daemon) -> Cable {
        let what = format!("a connection to {self:?}");
        match self {
            Self::Qemu => {
                let path = self.socket(daemon);
                eventually(&what, START, || UnixStream::connect(&path).ok()).into()
            }
            Self::QemuTcp(_) => panic!("the port is one of the daemon's own network"),
            Self::Vpnkit => {
                let path = self.socket(daemon);
                let stream = eventually(&what, START, || UnixStream::connect(&path).ok());
                let answer = greet(&stream, "c3d68012-0208-11ea-9fd7-f2189899ab08").expect("a handshake");
                assert_eq!(answer[5..11], [0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee], "{answer:02x?}");
                Cable::new(stream, Framing::Little16)
            }
            Self::Connect => {
                let path = self.socket(daemon);
                let mut stream = eventually(&what, START, || UnixStream::connect(&path).ok());
                stream.write_all(b"POST /connect HTTP/1.1\r\nHost: d\r\n\r\n").expect("a request");
                // COMPAT(gvproxy): the original loses what comes before it has taken the connection over.
                if is_peer() {
                    std::thread::sleep(Duration::from_millis(100));
                }
                Cable::new(stream, Framing::Little16)
            }
            Self::Bess => {
                let address = SockAddr::unix(self.socket(daemon)).unwrap();
                let connect = || {
                    let socket = Socket::new(Domain::UNIX, Type::SEQPACKET, None).unwrap();
                    socket.connect(&address).is_ok().then_some(socket)
                };
                Cable::new(eventually(&what, START, connect), Framing::Message)
            }
            Self::Vfkit(magic) => {
                // Another name for each: the one before may still be about to go.
                static PLUGGED: AtomicUsize = AtomicUsize::new(0);
                let name = format!("guest{}.sock", PLUGGED.fetch_add(1, Ordering::Relaxed));
                let (path, name) = (self.socket(daemon), daemon.dir().with_file_name(name));
                eventually(&what, START, || datagrams(&path, &name, magic).ok())
            }
            Self::Stdio => {
                let (input, output) = daemon.take_pipes();
                Cable { input: input.into(), output: output.into(), framing: Framing::Little16, name: None }
            }
        }
    }
}

/// A datagram socket called `name` that speaks to `path`, if somebody is there.
pub fn datagrams(path: &Path, name: &Path, magic: bool) -> io::Result<Cable> {
    let _ = std::fs::remove_file(name);
    let socket = Socket::new(Domain::UNIX, Type::DGRAM, None)?;
    socket.bind(&SockAddr::unix(name)?)?;
    socket.connect(&SockAddr::unix(path)?)?;
    let _ = socket.set_send_buffer_size(1 << 20);
    let _ = socket.set_recv_buffer_size(4 << 20);
    if magic {
        socket.send(b"VFKT")?;
    }
    let mut cable = Cable::new(socket, Framing::Message);
    cable.name = Some(name.to_owned());
    Ok(cable)
}

/// VPNKit's handshake as a client with that UUID: the daemon's last answer.
pub fn greet(mut stream: &UnixStream, uuid: &str) -> io::Result<Vec<u8>> {
    stream.set_read_timeout(Some(START))?;
    let greeting: Vec<u8> = (0..49).collect();
    stream.write_all(&greeting)?;
    let mut echo = vec![0; greeting.len()];
    stream.read_exact(&mut echo)?;
    assert_eq!(echo, greeting, "the greeting comes back");
    stream.write_all(&[&[1], uuid.as_bytes(), &[0; 4]].concat())?;
    let mut answer = vec![0; 258];
    stream.read_exact(&mut answer)?;
    stream.set_read_timeout(None)?;
    Ok(answer)
}
