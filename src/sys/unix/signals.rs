//! signal(7). Owns: tokio's handlers.
// UNSAFETY: rustix leaves signal handlers to libc.
#![expect(unsafe_code, reason = "sigaction")]

use std::io;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// `None` is one that was ignored at the start.
type Heard = Option<Signal>;

#[derive(Debug)]
pub(crate) struct Quit {
    interrupt: Heard,
    terminate: Signal,
}

impl Quit {
    pub(crate) fn new() -> io::Result<Self> {
        let interrupt = unless_ignored(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    #[expect(clippy::unused_self, reason = "the face of the one that has it")]
    pub(crate) fn thread_id(&self) -> Option<u32> {
        None
    }

    pub(crate) async fn asked(&mut self) -> &'static str {
        tokio::select! {
            () = recv(&mut self.interrupt) => "interrupt",
            _ = self.terminate.recv() => "terminated",
        }
    }
}

#[derive(Debug)]
pub(crate) struct Hangup(Heard);

impl Hangup {
    pub(crate) fn new() -> io::Result<Self> {
        signal(SignalKind::hangup()).map(Some).map(Self)
    }

    pub(crate) fn unless_ignored() -> io::Result<Self> {
        unless_ignored(SignalKind::hangup()).map(Self)
    }

    pub(crate) async fn recv(&mut self) {
        recv(&mut self.0).await;
    }
}

fn unless_ignored(kind: SignalKind) -> io::Result<Heard> {
    (!is_ignored(kind)).then(|| signal(kind)).transpose()
}

async fn recv(heard: &mut Heard) {
    match heard {
        Some(signal) => drop(signal.recv().await),
        None => std::future::pending().await,
    }
}

fn is_ignored(signal: SignalKind) -> bool {
    let mut action = std::mem::MaybeUninit::<libc::sigaction>::zeroed();
    // SAFETY: the call only asks, and writes one action to where it is told; all zeros are one, too, where it
    // fails.
    let action = unsafe {
        libc::sigaction(signal.as_raw_value(), std::ptr::null(), action.as_mut_ptr());
        action.assume_init()
    };
    action.sa_sigaction == libc::SIG_IGN
}
