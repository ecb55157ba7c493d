//! Connected stream sockets of any family: all of them are read, written, shut down and watched by the same
//! calls, on every system. So what a library has for TCP stands for all; only a socket's addresses are to be
//! asked of the descriptor.
//! Owns: how a pair of them is made. Read next: `dial.rs`.

use std::io;

use rustix::fd::OwnedFd;

use super::os;

/// One that the control plane reads and writes.
pub type Stream = tokio::net::TcpStream;

/// One that nobody watches.
pub type StdStream = std::net::TcpStream;

/// One that the engine watches.
pub type PollStream = mio::net::TcpStream;

/// Has the runtime watch a connected stream socket.
///
/// # Errors
/// It cannot.
pub fn watch(socket: OwnedFd) -> io::Result<Stream> {
    let socket = StdStream::from(socket);
    socket.set_nonblocking(true)?;
    Stream::from_std(socket)
}

/// Waits until there may be news of it, and says whether the other side has closed both ways, or one of them
/// where the other was closed here. It takes the note of there being room from the runtime: whoever writes
/// tries first.
pub async fn look_for_end(stream: &Stream) -> bool {
    os::stream::look_for_end(stream).await
}

/// Two that are connected to one another, and do not block. No other process can be at either end.
///
/// # Errors
/// The system's.
pub fn pair() -> io::Result<(StdStream, StdStream)> {
    os::stream::pair()
}

/// Such a pair that blocks.
#[cfg(test)]
pub(crate) fn blocking_pair() -> (StdStream, StdStream) {
    let (a, b) = pair().unwrap();
    for end in [&a, &b] {
        end.set_nonblocking(false).unwrap();
    }
    (a, b)
}

/// Such a pair that the runtime watches.
#[cfg(test)]
pub(crate) fn watched_pair() -> (Stream, Stream) {
    let (a, b) = pair().unwrap();
    (Stream::from_std(a).unwrap(), Stream::from_std(b).unwrap())
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};
    use std::net::Shutdown;

    use super::*;

    #[test]
    fn either_end_hears_the_other_and_its_end() {
        let (mut a, mut b) = blocking_pair();
        let mut heard = [0; 5];
        a.write_all(b"hello").unwrap();
        b.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"hello");
        b.write_all(b"there").unwrap();
        b.shutdown(Shutdown::Write).unwrap();
        let mut rest = Vec::new();
        a.read_to_end(&mut rest).unwrap();
        assert_eq!(rest, b"there");
        a.write_all(b"still").unwrap();
        b.read_exact(&mut heard).unwrap();
        assert_eq!(&heard, b"still");
    }
}
