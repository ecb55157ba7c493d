//! Descriptors 0, 1 and 2. Owns: nothing.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd, OwnedFd};

use rustix::event::{PollFd, PollFlags, poll};
use rustix::io::Errno;

pub(crate) fn take() -> io::Result<(OwnedFd, Option<OwnedFd>)> {
    let own = |fd: BorrowedFd<'_>, name| {
        let told =
            |error| io::Error::new(io::Error::kind(&error), format!("cannot use standard {name}: {error}"));
        fd.try_clone_to_owned().map_err(told)
    };
    let input = own(io::stdin().as_fd(), "input")?;
    let output = own(io::stdout().as_fd(), "output")?;
    let null = File::options().read(true).write(true).open("/dev/null")?;
    rustix::stdio::dup2_stdin(&null)?;
    rustix::stdio::dup2_stdout(&null)?;
    Ok((input, Some(output)))
}

pub(crate) fn wait_for_stderr() -> io::Result<()> {
    wait(rustix::stdio::stderr())
}

pub(crate) fn wait_for(file: &File) -> io::Result<()> {
    wait(file.as_fd())
}

fn wait(fd: BorrowedFd<'_>) -> io::Result<()> {
    match poll(&mut [PollFd::from_borrowed_fd(fd, PollFlags::OUT)], None) {
        Ok(_) | Err(Errno::INTR) => Ok(()),
        Err(error) => Err(error.into()),
    }
}
