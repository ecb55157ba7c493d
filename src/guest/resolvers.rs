//! The resolvers of a lease in `/etc/resolv.conf`. Owns: the file's text, which is put back when it is dropped.
//! May not: touch a file that a resolver service writes. Read next: `tap.rs`.

use std::fmt::Write as _;
use std::fs;
use std::io;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use crate::text::reason;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Where services such as systemd-resolved keep the file to which /etc/resolv.conf leads then.
const OF_SERVICES: &str = "/run";

/// What was written, and what was there before.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    before: Option<Vec<u8>>,
    written: String,
}

impl Resolvers {
    /// Has the system ask `servers`. `None` if there are none, or if it cannot be done, which the log says.
    pub(super) fn set(servers: &[Ipv4Addr], search: &[String]) -> Option<Self> {
        if servers.is_empty() {
            return None;
        }
        match Self::write(Path::new(RESOLV_CONF), servers, search) {
            Ok(resolvers) => resolvers,
            Err(error) => {
                tracing::warn!(path = RESOLV_CONF, reason = reason(&error), "cannot set the resolvers");
                None
            }
        }
    }

    fn write(path: &Path, servers: &[Ipv4Addr], search: &[String]) -> io::Result<Option<Self>> {
        // Through links, as under WSL: others look at where they lead.
        let path = fs::canonicalize(path).unwrap_or_else(|_| path.to_owned());
        if path.starts_with(OF_SERVICES) {
            tracing::warn!(path = %path.display(), ?servers, "another service writes the resolvers: they stay as they are");
            return Ok(None);
        }
        let before = match fs::read(&path) {
            Ok(text) => Some(text),
            Err(error) if error.kind() == io::ErrorKind::NotFound => None,
            Err(error) => return Err(error),
        };
        let mut written = String::from("# written by gvforwarder, which puts back what was here\n");
        if !search.is_empty() {
            let _ = writeln!(written, "search {}", search.join(" "));
        }
        for server in servers {
            let _ = writeln!(written, "nameserver {server}");
        }
        // In place: the file may be a mount of its own.
        fs::write(&path, &written)?;
        Ok(Some(Self { path, before, written }))
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        let result = match fs::read(&self.path) {
            Ok(text) if text == self.written.as_bytes() => match &self.before {
                Some(before) => fs::write(&self.path, before),
                None => fs::remove_file(&self.path),
            },
            // Somebody has written it since.
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        if let Err(error) = result {
            tracing::warn!(path = %self.path.display(), reason = reason(&error), "cannot put the resolvers back");
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: [Ipv4Addr; 1] = [Ipv4Addr::new(192, 168, 127, 1)];

    #[test]
    fn what_was_there_comes_back() {
        let dir = tempfile::tempdir().unwrap();
        let (file, link) = (dir.path().join("file"), dir.path().join("link"));
        fs::write(&file, "nameserver 192.0.2.1\n").unwrap();
        std::os::unix::fs::symlink("file", &link).unwrap();
        let resolvers = Resolvers::write(&link, &SERVER, &["a.example".into(), "b".into()]).unwrap();
        let text = fs::read_to_string(&file).unwrap();
        assert!(text.ends_with("search a.example b\nnameserver 192.168.127.1\n"), "{text}");
        drop(resolvers);
        assert_eq!(fs::read_to_string(&file).unwrap(), "nameserver 192.0.2.1\n");
        assert!(link.is_symlink());
    }

    #[test]
    fn what_somebody_else_wrote_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        let resolvers = Resolvers::write(&path, &SERVER, &[]).unwrap();
        fs::write(&path, "mine").unwrap();
        drop(resolvers);
        assert_eq!(fs::read_to_string(&path).unwrap(), "mine");
    }

    #[test]
    fn a_file_that_was_not_there_goes() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        drop(Resolvers::write(&path, &SERVER, &[]).unwrap());
        assert!(!path.exists());
    }
}
