//! Which process has a port of the host, for the message that somebody else's attempt gets. Owns: nothing.
//! May not: be asked often; it looks at every process.

use std::fmt;
use std::path::Path;
use std::thread::sleep;
use std::time::{Duration, Instant};

/// The name of the thread on which a daemon runs in another program.
pub const THREAD: &str = "gvproxy";
/// How often a new socket is looked at.
const LOOK: Duration = Duration::from_millis(20);

/// The name and id of a process that has the port, as far as the system tells us.
pub fn of_port(udp: bool, port: u16) -> Option<String> {
    #[cfg(target_os = "linux")]
    return linux::of_port(udp, port);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (udp, port);
        None
    }
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
        let threads = std::fs::read_dir(format!("/proc/{}/task", self.pid)).into_iter().flatten().flatten();
        let names = threads.filter_map(|thread| std::fs::read(thread.path().join("comm")).ok());
        names.into_iter().any(|name| name.trim_ascii() == THREAD.as_bytes())
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
    #[cfg(target_os = "linux")]
    return linux::is_bound(path);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = path;
        true
    }
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

fn of_socket_but(path: &Path, own: u32) -> Vec<Owner> {
    #[cfg(target_os = "linux")]
    return linux::of_socket(path, own);
    #[cfg(not(target_os = "linux"))]
    {
        let _ = (path, own);
        Vec::new()
    }
}

/// See proc_pid_net(5) and proc_pid_fd(5).
#[cfg(target_os = "linux")]
mod linux {
    use std::fs;
    use std::path::Path;

    use super::Owner;

    /// `TCP_LISTEN`.
    const LISTEN: &str = "0A";

    pub(super) fn of_port(udp: bool, port: u16) -> Option<String> {
        let tables = if udp { ["udp", "udp6"] } else { ["tcp", "tcp6"] };
        let sockets: Vec<String> = tables
            .iter()
            .filter_map(|table| fs::read_to_string(format!("/proc/net/{table}")).ok())
            .flat_map(|table| table.lines().filter_map(|line| socket(line, udp, port)).collect::<Vec<_>>())
            .collect();
        let id = processes_with(&sockets).next()?;
        let name = fs::read_to_string(format!("/proc/{id}/comm")).unwrap_or_default();
        Some(format!("{}, pid {id}", name.trim()))
    }

    pub(super) fn is_bound(path: &Path) -> bool {
        let Ok(table) = fs::read("/proc/net/unix") else { return true };
        String::from_utf8_lossy(&table).lines().any(|line| bound(line, path).is_some())
    }

    pub(super) fn of_socket(path: &Path, own: u32) -> Vec<Owner> {
        let table = fs::read("/proc/net/unix").unwrap_or_default();
        let table = String::from_utf8_lossy(&table);
        let found: Vec<(&str, String)> = table.lines().filter_map(|line| listener(line, path)).collect();
        let sockets: Vec<String> = found.iter().map(|(_, socket)| socket.clone()).collect();
        if sockets.is_empty() {
            return Vec::new();
        }
        // A relative name is one of the process's directory.
        let is_there = |id: &u32| {
            let directory = fs::read_link(format!("/proc/{id}/cwd")).unwrap_or_default();
            let here = found.iter().filter(|(name, _)| directory.join(name) == path);
            has_any(&format!("/proc/{id}/fd"), &here.map(|(_, socket)| socket.clone()).collect::<Vec<_>>())
        };
        processes_with(&sockets).filter(|id| *id != own && is_there(id)).filter_map(owner).collect()
    }

    /// The ids of the processes that have one of the sockets.
    fn processes_with(sockets: &[String]) -> impl Iterator<Item = u32> {
        let processes = fs::read_dir("/proc").into_iter().flatten().flatten();
        let ids = processes.filter_map(|process| process.file_name().to_str()?.parse::<u32>().ok());
        ids.filter(|id| has_any(&format!("/proc/{id}/fd"), sockets))
    }

    fn owner(pid: u32) -> Option<Owner> {
        let program = fs::read_link(format!("/proc/{pid}/exe")).ok()?;
        Some(Owner { program: program.file_name()?.to_string_lossy().into_owned(), pid })
    }

    /// The name of the table's socket, and what its descriptors link to, if it listens at `path`.
    fn listener<'a>(line: &'a str, path: &Path) -> Option<(&'a str, String)> {
        /// `__SO_ACCEPTCON`.
        const LISTENS: &str = "00010000";
        let (name, flags, inode) = bound(line, path)?;
        (flags == LISTENS).then(|| (name, format!("socket:[{inode}]")))
    }

    /// The name, flags and inode of the table's socket, if it was bound to `path`, which may have been given
    /// as a relative one.
    fn bound<'a>(line: &'a str, path: &Path) -> Option<(&'a str, &'a str, &'a str)> {
        let mut rest = line;
        let mut fields = [""; 7];
        for field in &mut fields {
            (*field, rest) = rest.trim_start().split_once(' ')?;
        }
        let [_, _, _, flags, _, _, inode] = fields;
        let name = rest.strip_prefix("./").unwrap_or(rest);
        (!name.is_empty() && path.ends_with(name)).then_some((name, flags, inode))
    }

    /// What the descriptors of the table's socket link to, if it has the port.
    fn socket(line: &str, udp: bool, port: u16) -> Option<String> {
        let mut fields = line.split_whitespace();
        let (_, local) = fields.nth(1)?.rsplit_once(':')?;
        let state = fields.nth(1)?;
        let inode = fields.nth(5)?;
        let has = u16::from_str_radix(local, 16) == Ok(port) && (udp || state == LISTEN);
        has.then(|| format!("socket:[{inode}]"))
    }

    fn has_any(descriptors: &str, sockets: &[String]) -> bool {
        let Ok(descriptors) = fs::read_dir(descriptors) else { return false };
        descriptors
            .flatten()
            .filter_map(|descriptor| fs::read_link(descriptor.path()).ok())
            .any(|link| sockets.iter().any(|socket| link.as_os_str() == socket.as_str()))
    }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;

    #[test]
    fn our_own_socket() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a socket");
        assert!(of_socket_but(&path, 0).is_empty());
        let listener = std::os::unix::net::UnixListener::bind(&path).unwrap();
        let own = std::env::current_exe().unwrap();
        let program = own.file_name().unwrap().to_string_lossy().into_owned();
        assert_eq!(of_socket_but(&path, 0), [Owner { program, pid: std::process::id() }]);
        assert!(of_socket(&path).is_empty(), "nobody else has it");
        let connected = std::os::unix::net::UnixStream::connect(&path).unwrap();
        let (accepted, _) = listener.accept().unwrap();
        drop(listener);
        assert!(of_socket_but(&path, 0).is_empty() && is_bound(&path));
        drop((connected, accepted));
        assert!(!is_bound(&path));
    }

    #[test]
    fn our_own_ports() {
        let listener = std::net::TcpListener::bind("[::1]:0").unwrap();
        let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
        let own = format!(", pid {}", std::process::id());
        let tcp = of_port(false, listener.local_addr().unwrap().port()).unwrap();
        let udp = of_port(true, socket.local_addr().unwrap().port()).unwrap();
        assert!(tcp.ends_with(&own) && udp.ends_with(&own), "{tcp}; {udp}");
        let port = listener.local_addr().unwrap().port();
        drop(listener);
        assert_eq!(of_port(false, port), None);
    }
}
