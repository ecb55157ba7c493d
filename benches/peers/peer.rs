//! The programs that are compared. Owns: where they are, and their versions. May not: start one.
//! Read next: `setup.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// What socat moves at once unless it is told.
const SOCAT_DEFAULT: usize = 8192;
/// What our own relay has.
const SMALL_PIPE: usize = 256 << 10;

/// A program that gives a guest its network, or that leads clients of a socket to another one.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// gvproxy of this tree.
    Ours(PathBuf),
    /// gvproxy that GVPROXY names.
    Original(PathBuf),
    Passt(PathBuf),
    Slirp(PathBuf),
    /// The guest's frames go to a tap on the host: what the load, both kernels and two relays cost by
    /// themselves.
    TwoTaps,
    /// With this many bytes at a time.
    Socat(PathBuf, usize),
    /// systemd-socket-proxyd, and systemd-socket-activate, which starts it.
    SocketProxy(PathBuf, PathBuf),
    /// Blocking splice(2) through pipes of so many bytes: what the kernel gives a forwarder.
    Splice(usize),
    /// Clients connect to the server itself.
    Direct,
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours",
            Self::Original(_) => "original",
            Self::Passt(_) => "passt",
            Self::Slirp(_) => "slirp4netns",
            Self::TwoTaps => "two taps",
            Self::Socat(_, SOCAT_DEFAULT) => "socat",
            Self::Socat(..) => "socat -b 65536",
            Self::SocketProxy(..) => "socket-proxyd",
            Self::Splice(SMALL_PIPE) => "splice, 256 KiB",
            Self::Splice(_) => "splice, 1 MiB",
            Self::Direct => "no forwarder",
        }
    }

    /// What the program says it is, in a line.
    pub(crate) fn version(&self) -> String {
        let (path, flag) = match self {
            Self::Ours(path) | Self::Original(path) => (path, "-version"),
            Self::Passt(path) | Self::Slirp(path) => (path, "--version"),
            Self::TwoTaps => return "no daemon: two relays, back to back".to_owned(),
            Self::Socat(path, _) => (path, "-V"),
            Self::SocketProxy(_, path) => (path, "--version"),
            Self::Splice(_) => {
                return "two threads and two pipes for each client, splice(2) that blocks".to_owned();
            }
            Self::Direct => return "clients of the server itself".to_owned(),
        };
        let output = Command::new(path).arg(flag).output();
        let text = output.map_or_else(|error| error.to_string().into_bytes(), |output| output.stdout);
        let text = String::from_utf8_lossy(&text);
        let says_version = |line: &&str| !line.starts_with("socat by");
        let line = text.lines().find(says_version).unwrap_or("says nothing").to_owned();
        // Debian's passt does not know its own version.
        let package = Command::new("dpkg-query").args(["-W", "-f", "${Version}", self.name()]).output();
        match package {
            Ok(output) if output.status.success() => {
                format!("{line}, Debian package {}", String::from_utf8_lossy(&output.stdout))
            }
            _ => line,
        }
    }
}

/// The peers on this machine, and the names of those that are not, with what would bring them.
pub(crate) fn find(our: &Path) -> (Vec<Kind>, Vec<(&'static str, &'static str)>) {
    let (mut found, mut missing) = (vec![Kind::Ours(our.to_owned())], Vec::new());
    match std::env::var_os("GVPROXY") {
        Some(path) => found.push(Kind::Original(path.into())),
        None => missing.push(("original", "set GVPROXY=/path/to/gvproxy")),
    }
    match program("passt") {
        Some(path) => found.push(Kind::Passt(path)),
        None => missing.push(("passt", "apt install passt")),
    }
    match program("slirp4netns") {
        Some(path) => found.push(Kind::Slirp(path)),
        None => missing.push(("slirp4netns", "apt install slirp4netns")),
    }
    found.push(Kind::TwoTaps);
    match program("socat") {
        Some(path) => found.extend([SOCAT_DEFAULT, 65536].map(|block| Kind::Socat(path.clone(), block))),
        None => missing.push(("socat", "apt install socat")),
    }
    let proxy = Path::new("/lib/systemd/systemd-socket-proxyd");
    match program("systemd-socket-activate").filter(|_| proxy.exists()) {
        Some(activate) => found.push(Kind::SocketProxy(activate, proxy.to_owned())),
        None => missing.push(("socket-proxyd", "apt install systemd")),
    }
    found.extend([Kind::Splice(SMALL_PIPE), Kind::Splice(1 << 20), Kind::Direct]);
    (found, missing)
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}
