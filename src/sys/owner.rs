//! Which process has a port of the host, for the message that somebody else's attempt gets. Owns: nothing.
//! May not: be asked often; it looks at every process.

use std::fmt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

use super::os;

/// The name of the thread on which a daemon runs in another program.
pub const THREAD: &str = "gvproxy";
/// How often a new socket is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The name and id of a process that has the port, as far as the system tells us.
pub fn of_port(udp: bool, port: u16) -> Option<String> {
    os::owner::of_port(udp, port)
}

/// Who has the port, for the end of a message.
pub fn by_whom(udp: bool, port: u16) -> String {
    of_port(udp, port).map_or_else(|| " (by another process)".into(), |owner| format!(" (by {owner})"))
}

/// A process that has something we want.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Owner {
    /// The name of the program's file, which a process cannot make up as it can its own.
    pub program: String,
    /// Its id.
    pub pid: u32,
}

impl Owner {
    /// Whether it is another gvproxy, of ours or the original; its file may have been replaced or deleted
    /// since.
    pub fn is_gvproxy(&self) -> bool {
        self.program.starts_with("gvproxy")
    }

    /// Whether it is a program of another name in which a daemon of ours runs, which its thread tells.
    pub fn embeds_gvproxy(&self) -> bool {
        os::owner::has_thread(self.pid, THREAD)
    }
}

impl fmt::Display for Owner {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}, pid {}", self.program, self.pid)
    }
}

/// The other processes that have a listening unix socket that was bound to `path`, as far as the system tells
/// us.
pub fn of_socket(path: &Path) -> Vec<Owner> {
    of_socket_but(path, std::process::id())
}

/// Whether there is a unix socket that was bound to `path`, listening or connected, whosever it is; true
/// where the system does not tell. Of another network namespace it tells nothing.
pub fn is_bound(path: &Path) -> bool {
    os::owner::is_bound(path)
}

/// The same of a socket that has just been made, and may not listen yet: it has `settle` for that.
pub fn of_new_socket(path: &Path, settle: Duration) -> Vec<Owner> {
    let start = Instant::now();
    loop {
        let owners = of_socket(path);
        if !owners.is_empty() || start.elapsed() >= settle {
            return owners;
        }
        sleep(LOOK);
    }
}

pub(super) fn of_socket_but(path: &Path, own: u32) -> Vec<Owner> {
    os::owner::of_socket(path, own)
}
