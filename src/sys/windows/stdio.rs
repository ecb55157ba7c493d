//! Standard input and output are pipes or files, which cannot be watched: threads carry what passes there to
//! and from a socket. Owns: those threads.

use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::net::Shutdown;
use std::os::windows::io::OwnedSocket;
use std::thread;

use crate::sys::stream::{StdStream, pair};

/// Bytes carried at once.
const PIECE: usize = 64 << 10;

pub(crate) fn take() -> io::Result<(OwnedSocket, Option<OwnedSocket>)> {
    let (near, far) = pair()?;
    far.set_nonblocking(false)?;
    let (to_far, from_far) = (far.try_clone()?, far);
    thread::Builder::new().name("standard input".to_owned()).spawn(|| carry_in(to_far))?;
    thread::Builder::new().name("standard output".to_owned()).spawn(|| carry_out(from_far))?;
    Ok((near.into(), None))
}

/// Until the end of either: that of standard input ends the link's sending.
fn carry_in(mut to: StdStream) {
    let (mut input, mut piece) = (io::stdin().lock(), vec![0; PIECE]);
    loop {
        match input.read(&mut piece) {
            Ok(len @ 1..) if to.write_all(piece.get(..len).unwrap_or_default()).is_ok() => {}
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            _ => break,
        }
    }
    let _ = to.shutdown(Shutdown::Write);
}

fn carry_out(mut from: StdStream) {
    let (mut output, mut piece) = (io::stdout().lock(), vec![0; PIECE]);
    while let Ok(len @ 1..) = from.read(&mut piece) {
        if output.write_all(piece.get(..len).unwrap_or_default()).and_then(|()| output.flush()).is_err() {
            break;
        }
    }
    // The link hears that nobody takes its frames.
    let _ = from.shutdown(Shutdown::Both);
}

/// Handles of standard error and of files wait by themselves.
#[expect(clippy::unnecessary_wraps, reason = "the face of those that may not")]
pub(crate) fn wait_for_stderr() -> io::Result<()> {
    Ok(())
}

#[expect(clippy::unnecessary_wraps, reason = "likewise")]
pub(crate) fn wait_for(_file: &File) -> io::Result<()> {
    Ok(())
}
