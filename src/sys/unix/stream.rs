//! socketpair(2). Owns: nothing.

use std::io;
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixStream;

use crate::sys::stream::StdStream;

pub(crate) fn pair() -> io::Result<(StdStream, StdStream)> {
    let (a, b) = UnixStream::pair()?;
    a.set_nonblocking(true)?;
    b.set_nonblocking(true)?;
    Ok((OwnedFd::from(a).into(), OwnedFd::from(b).into()))
}
