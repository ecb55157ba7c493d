//! What the console tells, and the window of `quit.rs`. Owns: tokio's handlers.

use std::io;

use tokio::signal::windows::{
    CtrlBreak, CtrlC, CtrlClose, CtrlLogoff, CtrlShutdown, ctrl_break, ctrl_c, ctrl_close, ctrl_logoff,
    ctrl_shutdown,
};

use super::quit::QuitThread;

#[derive(Debug)]
pub(crate) struct Quit {
    ctrl_c: CtrlC,
    ctrl_break: CtrlBreak,
    close: CtrlClose,
    logoff: CtrlLogoff,
    shutdown: CtrlShutdown,
    thread: QuitThread,
}

impl Quit {
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self {
            ctrl_c: ctrl_c()?,
            ctrl_break: ctrl_break()?,
            close: ctrl_close()?,
            logoff: ctrl_logoff()?,
            shutdown: ctrl_shutdown()?,
            thread: QuitThread::start()?,
        })
    }

    #[expect(clippy::unnecessary_wraps, reason = "the face of those that have none")]
    pub(crate) fn thread_id(&self) -> Option<u32> {
        Some(self.thread.id())
    }

    pub(crate) async fn asked(&mut self) -> &'static str {
        tokio::select! {
            () = self.thread.asked() => "window closed",
            _ = self.ctrl_c.recv() => "interrupt",
            _ = self.ctrl_break.recv() => "break",
            _ = self.close.recv() => "console closed",
            _ = self.logoff.recv() => "logoff",
            _ = self.shutdown.recv() => "shutdown",
        }
    }
}

/// There is none.
#[derive(Debug)]
pub(crate) struct Hangup;

impl Hangup {
    #[expect(clippy::unnecessary_wraps, reason = "the face of those that have it")]
    pub(crate) fn new() -> io::Result<Self> {
        Ok(Self)
    }

    #[expect(clippy::unnecessary_wraps, reason = "likewise")]
    pub(crate) fn unless_ignored() -> io::Result<Self> {
        Ok(Self)
    }

    pub(crate) async fn recv(&mut self) {
        std::future::pending().await
    }
}
