//! Named pipes, which clients on Windows connect to where others have unix sockets. Owns: what the system
//! makes for one. Read next: `../forward/clients.rs`, which leads their clients.

use std::io;

use super::os;
use super::stream::Stream;

/// Whether the system has them.
pub const EXIST: bool = os::named_pipe::EXIST;

/// A named pipe that is there: clients may connect from now on. It goes when this is dropped.
#[derive(Debug)]
pub struct PipeListener(os::named_pipe::PipeListener);

impl PipeListener {
    /// Makes the pipe `\\.\pipe\NAME` for this process's own user, SYSTEM and administrators, of this
    /// machine.
    ///
    /// # Errors
    /// It is another's (`AddrInUse`), or the system has none (`Unsupported`).
    pub fn bind(name: &str) -> io::Result<Self> {
        os::named_pipe::PipeListener::bind(name).map(Self)
    }

    /// Has clients come in, in a tokio runtime: from now on some may always connect, however many do.
    ///
    /// # Errors
    /// The runtime cannot watch it.
    pub fn listen(self) -> io::Result<PipeClients> {
        self.0.listen().map(PipeClients)
    }
}

/// The clients of a named pipe.
#[derive(Debug)]
pub struct PipeClients(os::named_pipe::PipeClients);

impl PipeClients {
    /// Waits until a client is there, and takes nothing.
    pub async fn ready(&self) {
        self.0.ready().await;
    }

    /// Takes a client, as a stream: its messages are bytes, and an empty one is the end of its sending,
    /// either way. `None` where there is none.
    ///
    /// # Errors
    /// The system's.
    pub fn accept(&self) -> io::Result<Option<Stream>> {
        self.0.accept()
    }
}
