//! Clients and servers of forwarded sockets, of whatever family. Owns: a server's socket and its file.
//! May not: know how the daemon carries them. Read next: `tests/sockets.rs`.

use std::io::{self, Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::thread::{JoinHandle, scope, spawn};
use std::time::Duration;

use socket2::{Domain, SockAddr, Socket, Type};

use crate::uninterrupted;

/// Longest silence that an end puts up with.
pub const PATIENCE: Duration = Duration::from_secs(30);

/// A client, with an error instead of endless silence.
pub fn connect(to: &SockAddr) -> io::Result<Socket> {
    let socket = Socket::new(to.domain(), Type::STREAM, None)?;
    // Linux lets a connect to a unix socket wait for this long too.
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.set_write_timeout(Some(PATIENCE))?;
    uninterrupted(|| socket.connect(to))?;
    Ok(socket)
}

/// The address of a unix socket's file.
#[track_caller]
pub fn at(path: impl AsRef<Path>) -> SockAddr {
    SockAddr::unix(path).expect("a path that is no longer than a socket's may be")
}

/// Sends, ends its half, and reads to the end.
pub fn exchange(socket: &Socket, bytes: &[u8]) -> io::Result<Vec<u8>> {
    let mut socket = socket;
    socket.write_all(bytes)?;
    socket.shutdown(Shutdown::Write)?;
    let mut got = Vec::new();
    socket.read_to_end(&mut got)?;
    Ok(got)
}

/// The server at the other end sends back what comes.
#[track_caller]
pub fn assert_echo(socket: &Socket, bytes: &[u8]) {
    match exchange(socket, bytes) {
        Ok(got) => assert!(got == bytes, "{} of {} bytes come back", got.len(), bytes.len()),
        Err(error) => panic!("no echo: {error}"),
    }
}

/// The same for more than fits anywhere, read and written at once.
#[track_caller]
pub fn assert_echo_while_read(socket: &Socket, bytes: &[u8]) {
    let mut got = Vec::new();
    scope(|scope| {
        scope.spawn(|| {
            let mut to = socket;
            to.write_all(bytes).unwrap();
            to.shutdown(Shutdown::Write).unwrap();
        });
        let mut from = socket;
        from.read_to_end(&mut got).unwrap();
    });
    assert!(got == bytes, "{} of {} bytes come back", got.len(), bytes.len());
}

/// All of them are through to a server that echoes before the first one goes.
#[track_caller]
pub fn assert_echo_of_all(clients: Vec<Socket>) {
    let numbered = clients.into_iter().enumerate().map(|(number, mut client)| {
        spawn(move || {
            let bytes = number.to_be_bytes();
            client.write_all(&bytes).unwrap();
            let mut back = [0; 8];
            client.read_exact(&mut back).unwrap_or_else(|error| panic!("client {number}: {error}"));
            assert_eq!(back, bytes);
            client
        })
    });
    let threads: Vec<_> = numbered.collect();
    let clients: Vec<_> = threads.into_iter().map(|client| client.join().unwrap()).collect();
    for client in clients {
        assert_echo(&client, &[3; 1000]);
    }
}

/// The client is closed without a byte.
#[track_caller]
pub fn assert_closed(mut socket: &Socket) {
    let mut bytes = Vec::new();
    let end = socket.read_to_end(&mut bytes);
    let closed = end.as_ref().map_or_else(|error| error.kind() == io::ErrorKind::ConnectionReset, |_| true);
    assert!(closed && bytes.is_empty(), "{end:?} after {bytes:?}");
}

/// Sends back what comes, and then the end.
pub fn echo(mut stream: UnixStream) {
    let mut bytes = [0; 64 << 10];
    while let Ok(read @ 1..) = uninterrupted(|| stream.read(&mut bytes)) {
        if stream.write_all(&bytes[..read]).is_err() {
            return;
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// A server on a unix socket, each connection on a thread of its own. Gone with the guard; its connections go
/// on.
#[derive(Debug)]
pub struct Server {
    path: PathBuf,
    listener: UnixListener,
    accepting: Option<JoinHandle<()>>,
}

impl Server {
    #[track_caller]
    pub fn start(path: impl AsRef<Path>, serve: impl Fn(UnixStream) + Clone + Send + 'static) -> Self {
        let path = path.as_ref().to_owned();
        // The standard library's own listener has a backlog of 128.
        let socket = Socket::new(Domain::UNIX, Type::STREAM, None).expect("a socket");
        socket.bind(&at(&path)).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        socket.listen(4096).expect("it listens");
        let listener = UnixListener::from(socket);
        let incoming = listener.try_clone().expect("a descriptor");
        let accepting = spawn(move || {
            while let Ok((stream, _)) = incoming.accept() {
                let serve = serve.clone();
                spawn(move || serve(stream));
            }
        });
        Self { path, listener, accepting: Some(accepting) }
    }

    #[track_caller]
    pub fn echo(path: impl AsRef<Path>) -> Self {
        Self::start(path, echo)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        // Ends the wait for the next client.
        let _ = socket2::SockRef::from(&self.listener).shutdown(Shutdown::Both);
        if let Some(accepting) = self.accepting.take() {
            let _ = accepting.join();
        }
        let _ = std::fs::remove_file(&self.path);
    }
}
