//! Whose sockets there are: proc_pid_net(5), proc_pid_fd(5). Owns: nothing.

use std::fs;
use std::path::Path;

use crate::sys::owner::Owner;

/// `TCP_LISTEN`.
const LISTEN: &str = "0A";

pub(crate) fn of_port(udp: bool, port: u16) -> Option<String> {
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

pub(crate) fn is_bound(path: &Path) -> bool {
    let Ok(table) = fs::read("/proc/net/unix") else { return true };
    String::from_utf8_lossy(&table).lines().any(|line| bound(line, path).is_some())
}

pub(crate) fn of_socket(path: &Path, own: u32) -> Vec<Owner> {
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

/// Whether one of the process's threads has this name.
pub(crate) fn has_thread(pid: u32, name: &str) -> bool {
    let threads = fs::read_dir(format!("/proc/{pid}/task")).into_iter().flatten().flatten();
    let names = threads.filter_map(|thread| fs::read(thread.path().join("comm")).ok());
    names.into_iter().any(|found| found.trim_ascii() == name.as_bytes())
}

#[cfg(test)]
mod tests {
    use crate::sys::owner::*;

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
