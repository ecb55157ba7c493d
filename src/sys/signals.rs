//! What tells the program to end, or to open its log again. Owns: the handlers.

use std::io;

use super::os;

/// What asks for an orderly end: SIGTERM, and SIGINT unless it was ignored at the start, which is the
/// parent's word, as nohup(1) and a shell give it. On Windows: Ctrl-C, the console's or the session's end, a
/// window's `WM_CLOSE`, a thread's `WM_QUIT`.
#[derive(Debug)]
pub struct Quit(os::signals::Quit);

impl Quit {
    /// From now on these do not kill the process. To be had in a tokio runtime.
    ///
    /// # Errors
    /// The system has no signal handler to give.
    pub fn new() -> io::Result<Self> {
        os::signals::Quit::new().map(Self)
    }

    /// The thread that ends the program when it is told to by `WM_QUIT`; `None` but on Windows.
    pub fn thread_id(&self) -> Option<u32> {
        self.0.thread_id()
    }

    /// Waits for one of them, and says which.
    pub async fn asked(&mut self) -> &'static str {
        self.0.asked().await
    }
}

/// SIGHUP; there is none on Windows.
#[derive(Debug)]
pub struct Hangup(os::signals::Hangup);

impl Hangup {
    /// From now on it does not kill the process. To be had in a tokio runtime.
    ///
    /// # Errors
    /// The system has no signal handler to give.
    pub fn new() -> io::Result<Self> {
        os::signals::Hangup::new().map(Self)
    }

    /// The same unless it was ignored at the start.
    ///
    /// # Errors
    /// As [`Self::new`].
    pub fn unless_ignored() -> io::Result<Self> {
        os::signals::Hangup::unless_ignored().map(Self)
    }

    /// Waits for it.
    pub async fn recv(&mut self) {
        self.0.recv().await;
    }
}
