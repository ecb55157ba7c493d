//! socketpair(2). Owns: nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use tokio::io::Interest;

use crate::sys::stream::{StdStream, Stream};

pub(crate) fn pair() -> io::Result<(StdStream, StdStream)> {
    let (a, b) = UnixStream::pair()?;
    a.set_nonblocking(true)?;
    b.set_nonblocking(true)?;
    Ok((OwnedFd::from(a).into(), OwnedFd::from(b).into()))
}

pub(crate) async fn look_for_end(stream: &Stream) -> bool {
    let has_ended = stream.ready(Interest::WRITABLE).await.map_or(true, |ready| ready.is_write_closed());
    if !has_ended {
        let _ = stream.try_io(Interest::WRITABLE, || Err::<(), _>(io::ErrorKind::WouldBlock.into()));
    }
    has_ended
}
