//! The resolvers of a lease in `/etc/resolv.conf`. What was there before stands in the file that takes its
//! place, behind marks that make it comments, so that it comes back whatever ends this process. A link is
//! followed, as others look at where it leads; where nobody may write there, a file takes the link's place.
//! Owns: the file's text until it is dropped. May not: touch a file that a resolver service writes, or make
//! one there. Read next: `tap.rs`.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::net::Ipv4Addr;
use std::os::unix::ffi::OsStrExt as _;
use std::os::unix::fs::{FileExt as _, symlink};
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::disk::files;
use crate::text::reason;

const RESOLV_CONF: &str = "/etc/resolv.conf";
/// Bytes of one at most, and how long its file system may take.
const MAX_LEN: u64 = 1 << 20;
const PATIENCE: Duration = Duration::from_secs(2);
/// Where services such as systemd-resolved keep the file to which /etc/resolv.conf leads then.
const OF_SERVICES: [&str; 2] = ["/run", "/var/run"];
/// Where packages keep files for it, which are nobody's to change: systemd has one.
const OF_PACKAGES: &str = "/usr";
/// The first line of what is written here, up to the interface's name,
const HEAD: &[u8] = b"# written by gvforwarder for ";
/// and behind it. A line of what was here before starts with one of the marks.
const TAIL: &[u8] = b", which puts back what was here:\n";
const LINE: &[u8] = b"#|";
/// The last line, where it has no end.
const UNENDED: &[u8] = b"#/";
/// Where a link led.
const LINK: &[u8] = b"#>";
/// Nothing was there.
const NOTHING: &[u8] = b"#-\n";
/// Beside the file, and renamed to its name.
const NEW: &str = ".resolv.conf.gvforwarder";

/// What was there before.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Before {
    Nothing,
    Text(Vec<u8>),
    Link(PathBuf),
}

/// What was written, and what was there before.
#[derive(Debug)]
pub(super) struct Resolvers {
    path: PathBuf,
    before: Before,
    written: Vec<u8>,
}

impl Resolvers {
    /// Has the system ask `servers`, those of `interface`. `None` if there are none, or if it cannot be done,
    /// which the log says.
    pub(super) fn set(interface: &str, servers: &[Ipv4Addr], search: &[String]) -> Option<Self> {
        if servers.is_empty() {
            return None;
        }
        match Self::write(Path::new(RESOLV_CONF), interface, servers, search) {
            Ok(resolvers) => resolvers,
            Err(error) => {
                tracing::warn!(path = RESOLV_CONF, reason = reason(&error), "cannot set the resolvers");
                None
            }
        }
    }

    /// Puts back what one that was killed has left, unless `is_alive` says that the interface it was for is
    /// in use.
    pub(super) fn recover(is_alive: impl Fn(&str) -> bool) {
        recover(Path::new(RESOLV_CONF), is_alive);
    }

    fn write(
        path: &Path,
        interface: &str,
        servers: &[Ipv4Addr],
        search: &[String],
    ) -> io::Result<Option<Self>> {
        let link = match fs::read_link(path) {
            Ok(link) => Some(link),
            Err(error) if matches!(error.kind(), io::ErrorKind::InvalidInput | io::ErrorKind::NotFound) => {
                None
            }
            Err(error) => return Err(error),
        };
        let before = match link {
            Some(link) if is_of_service(path) => {
                tracing::warn!(link = %link.display(), ?servers, "another service writes the resolvers: they stay as they are");
                return Ok(None);
            }
            Some(link) if !is_writable(path) => Before::Link(link),
            _ => match read(path) {
                Ok(text) => parse(&text).map_or(Before::Text(text), |(_, before)| before),
                Err(error) if error.kind() == io::ErrorKind::NotFound => Before::Nothing,
                Err(error) => return Err(error),
            },
        };
        let written = checked(compose(interface, &before, servers, search))?;
        match &before {
            Before::Link(_) if path.is_symlink() => {
                let new = path.with_file_name(NEW);
                let _ = fs::remove_file(&new);
                fs::write(&new, &written).and_then(|()| fs::rename(&new, path)).inspect_err(|_| {
                    let _ = fs::remove_file(&new);
                })?;
            }
            _ => overwrite(path, &written).inspect_err(|_| {
                if let Before::Text(text) = &before {
                    let _ = overwrite(path, text);
                }
            })?,
        }
        Ok(Some(Self { path: path.to_owned(), before, written }))
    }
}

impl Drop for Resolvers {
    fn drop(&mut self) {
        let result = match read(&self.path) {
            Ok(text) if text == self.written => put_back(&self.path, &self.before),
            // Somebody has written it since.
            Ok(_) => Ok(()),
            Err(error) => Err(error),
        };
        say(&self.path, result);
    }
}

fn recover(path: &Path, is_alive: impl Fn(&str) -> bool) {
    if path.is_symlink() && is_of_service(path) {
        return;
    }
    if let Some((interface, before)) = read(path).ok().as_deref().and_then(parse)
        && !is_alive(&interface)
    {
        tracing::info!(path = %path.display(), interface, "restoring the resolvers that a killed gvforwarder replaced");
        say(path, put_back(path, &before));
    }
}

fn say(path: &Path, result: io::Result<()>) {
    if let Err(error) = result {
        tracing::warn!(path = %path.display(), reason = reason(&error), "cannot put the resolvers back");
    }
}

fn put_back(path: &Path, before: &Before) -> io::Result<()> {
    match before {
        // Somebody has put one there since.
        Before::Nothing | Before::Link(_) if path.is_symlink() => Ok(()),
        Before::Nothing => fs::remove_file(path),
        Before::Text(text) => overwrite(path, text),
        Before::Link(link) => {
            let new = path.with_file_name(NEW);
            let _ = fs::remove_file(&new);
            symlink(link, &new)?;
            fs::rename(&new, path)
        }
    }
}

/// In place, as the file may be a mount of its own; what is there is cut off last, so that there is never
/// nothing.
fn overwrite(path: &Path, text: &[u8]) -> io::Result<()> {
    // Where a link leads a file is somebody else's to make.
    let file = File::options().write(true).create(!path.is_symlink()).truncate(false).open(path)?;
    file.write_all_at(text, 0)?;
    file.set_len(text.len() as u64)
}

/// Whether the link at `path` leads to where services write, though nothing may be there yet.
fn is_of_service(path: &Path) -> bool {
    let end = end(path);
    OF_SERVICES.iter().any(|services| end.starts_with(services))
}

/// Whether the link at `path` leads to a file that may be changed.
fn is_writable(path: &Path) -> bool {
    let is_file = path.metadata().is_ok_and(|found| found.is_file());
    is_file && !end(path).starts_with(OF_PACKAGES) && File::options().write(true).open(path).is_ok()
}

/// Where the link at `path` leads in the end, though nothing may be there.
fn end(path: &Path) -> PathBuf {
    let (mut at, mut followed) = (PathBuf::new(), 0);
    let parts =
        |path: &Path| path.components().map(|part| part.as_os_str().to_owned()).rev().collect::<Vec<_>>();
    let mut rest = parts(path);
    while let Some(part) = rest.pop() {
        if part == ".." {
            at.pop();
            continue;
        }
        // The root begins anew.
        let next = at.join(part);
        match fs::read_link(&next) {
            // As many as the system follows.
            Ok(link) if followed < 40 => {
                followed += 1;
                rest.extend(parts(&link));
            }
            _ => at = next,
        }
    }
    at
}

fn compose(interface: &str, before: &Before, servers: &[Ipv4Addr], search: &[String]) -> Vec<u8> {
    let mut text = [HEAD, interface.as_bytes(), TAIL].concat();
    match before {
        Before::Nothing => text.extend(NOTHING),
        Before::Link(link) => text.extend([LINK, link.as_os_str().as_bytes(), b"\n"].concat()),
        Before::Text(old) => {
            for line in old.split_inclusive(|byte| *byte == b'\n') {
                if line.ends_with(b"\n") {
                    text.extend([LINE, line].concat());
                } else {
                    text.extend([UNENDED, line, b"\n"].concat());
                }
            }
        }
    }
    // A vector takes everything.
    if !search.is_empty() {
        let _ = writeln!(text, "search {}", search.join(" "));
    }
    for server in servers {
        let _ = writeln!(text, "nameserver {server}");
    }
    text
}

/// What [`compose`] was given, if it made `text`, and nobody has added anything.
fn parse(text: &[u8]) -> Option<(String, Before)> {
    let rest = text.strip_prefix(HEAD)?;
    let name = rest.iter().position(|byte| *byte == b',')?;
    let (interface, rest) = rest.split_at_checked(name)?;
    let rest = rest.strip_prefix(TAIL)?;
    let (mut old, mut special) = (Vec::new(), None);
    for line in rest.split_inclusive(|byte| *byte == b'\n') {
        if let Some(line) = line.strip_prefix(LINE) {
            old.extend(line);
        } else if let Some(line) = line.strip_prefix(UNENDED) {
            old.extend(line.strip_suffix(b"\n")?);
        } else if let Some(link) = line.strip_prefix(LINK) {
            special = Some(Before::Link(OsStr::from_bytes(link.strip_suffix(b"\n")?).into()));
        } else if line == NOTHING {
            special = Some(Before::Nothing);
        } else if !(line.starts_with(b"nameserver ") || line.starts_with(b"search ")) {
            return None;
        }
    }
    let interface = String::from_utf8(interface.to_vec()).ok()?;
    Some((interface, special.unwrap_or(Before::Text(old))))
}

/// What stands there, unless it is no file or does not answer: nobody waits for a FIFO, or for a file system
/// that has gone.
fn read(path: &Path) -> io::Result<Vec<u8>> {
    checked(files::read_within(path, MAX_LEN + 1, PATIENCE)?)
}

/// A text that can be read again: of a longer one only a part would come back.
fn checked(text: Vec<u8>) -> io::Result<Vec<u8>> {
    match text.len() as u64 > MAX_LEN {
        true => Err(io::Error::new(io::ErrorKind::FileTooLarge, format!("larger than {MAX_LEN} bytes"))),
        false => Ok(text),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SERVER: [Ipv4Addr; 1] = [Ipv4Addr::new(192, 168, 127, 1)];
    const ASKS: &[u8] = b"search a.example b\nnameserver 192.168.127.1\n";

    fn write(path: &Path) -> Option<Resolvers> {
        Resolvers::write(path, "tap0", &SERVER, &["a.example".into(), "b".into()]).unwrap()
    }

    /// Everything that stands in the directory.
    fn content(dir: &Path) -> Vec<(PathBuf, Option<PathBuf>, Option<Vec<u8>>)> {
        let paths = fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path());
        let mut content: Vec<_> =
            paths.map(|path| (path.clone(), fs::read_link(&path).ok(), fs::read(&path).ok())).collect();
        content.sort();
        content
    }

    /// What a directory may be like before; `conf` is the file.
    type Prepare = fn(&Path);
    const CASES: [(&str, Prepare); 7] = [
        ("nothing", |_| {}),
        ("empty", |dir| fs::write(dir.join("conf"), "").unwrap()),
        ("a text", |dir| fs::write(dir.join("conf"), "nameserver 192.0.2.1\n").unwrap()),
        ("no end", |dir| fs::write(dir.join("conf"), b"#|a\n\nnameserver 192.0.2.1\xff\r").unwrap()),
        ("a longer text", |dir| fs::write(dir.join("conf"), "options edns0\n".repeat(1000)).unwrap()),
        ("a link", |dir| {
            fs::write(dir.join("file"), "nameserver 192.0.2.1\n").unwrap();
            symlink("file", dir.join("conf")).unwrap();
        }),
        ("a dangling link", |dir| symlink("../nowhere/x y", dir.join("conf")).unwrap()),
    ];

    #[test]
    fn what_was_there_comes_back() {
        for (name, prepare) in CASES {
            let dir = tempfile::tempdir().unwrap();
            prepare(dir.path());
            let (before, path) = (content(dir.path()), dir.path().join("conf"));
            let resolvers = write(&path);
            assert!(fs::read(&path).unwrap().ends_with(ASKS), "{name}");
            // Others look at where it leads.
            assert_eq!(fs::read_link(&path).is_ok(), name == "a link", "{name}");
            drop(resolvers);
            assert_eq!(content(dir.path()), before, "{name}");
        }
    }

    #[test]
    fn what_was_there_comes_back_after_any_number_of_kills() {
        for (name, prepare) in CASES {
            let dir = tempfile::tempdir().unwrap();
            prepare(dir.path());
            let (before, path) = (content(dir.path()), dir.path().join("conf"));
            for _ in 0..3 {
                std::mem::forget(write(&path));
            }
            recover(&path, |interface| interface == "tap0");
            assert!(fs::read(&path).unwrap().ends_with(ASKS), "{name}: another one is at work");
            drop(write(&path));
            assert_eq!(content(dir.path()), before, "{name}: at its end");
            std::mem::forget(write(&path));
            recover(&path, |_| false);
            assert_eq!(content(dir.path()), before, "{name}: at the start");
            recover(&path, |_| false);
            assert_eq!(content(dir.path()), before, "{name}: there is nothing to do");
        }
    }

    #[test]
    fn what_is_too_large_to_come_back_stays() {
        for lines in [60_000, 100_000] {
            let dir = tempfile::tempdir().unwrap();
            let path = dir.path().join("conf");
            fs::write(&path, "options edns0\n".repeat(lines)).unwrap();
            let before = content(dir.path());
            match Resolvers::write(&path, "tap0", &SERVER, &[]) {
                Ok(resolvers) => assert!(lines == 60_000 && resolvers.is_some()),
                Err(error) => assert_eq!((lines, error.kind()), (100_000, io::ErrorKind::FileTooLarge)),
            }
            assert!(content(dir.path()) == before, "{lines}");
        }
        let (dir, text) = (tempfile::tempdir().unwrap(), "x\n".repeat(MAX_LEN as usize / 2));
        let path = dir.path().join("conf");
        fs::write(&path, &text).unwrap();
        assert!(Resolvers::write(&path, "tap0", &SERVER, &[]).is_err(), "with what marks its lines it is");
        assert!(fs::read_to_string(&path).unwrap() == text);
    }

    #[test]
    fn what_somebody_else_wrote_stays() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("file");
        for added in [false, true] {
            let resolvers = write(&path);
            let mut text = if added { fs::read(&path).unwrap() } else { Vec::new() };
            text.extend(b"options edns0\n");
            fs::write(&path, &text).unwrap();
            drop(resolvers);
            assert_eq!(fs::read(&path).unwrap(), text);
            recover(&path, |_| false);
            assert_eq!(fs::read(&path).unwrap(), text);
            drop(write(&path));
            assert_eq!(fs::read(&path).unwrap(), text);
            fs::remove_file(&path).unwrap();
        }
    }

    #[test]
    fn links_to_services() {
        let dir = tempfile::tempdir().unwrap();
        let link = dir.path().join("conf");
        symlink("/run/nosuchservice", dir.path().join("sub")).unwrap();
        let up = "../".repeat(20);
        for (to, service) in [
            ("/run/nosuchservice/resolv.conf", true),
            ("/var/run/nosuchservice/resolv.conf", true),
            (&format!("{up}run/nosuchservice/stub-resolv.conf"), true),
            ("sub/resolv.conf", true),
            ("/running/resolv.conf", false),
            ("conf", false),
            // Of a package, and no file.
            ("/usr/bin/env", false),
            ("/dev/null", false),
        ] {
            symlink(to, &link).unwrap();
            assert_eq!(is_of_service(&link), service, "{to}");
            assert!(!is_writable(&link), "{to}");
            fs::remove_file(&link).unwrap();
        }
    }
}
