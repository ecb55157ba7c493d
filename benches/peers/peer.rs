//! The programs that are compared. Owns: where they are, and their versions. May not: start one.
//! Read next: `setup.rs`.

use std::path::{Path, PathBuf};
use std::process::Command;

/// A program that gives a guest its network.
#[derive(Clone, Debug)]
pub(crate) enum Kind {
    /// gvproxy of this tree.
    Ours(PathBuf),
    /// gvproxy that GVPROXY names.
    Original(PathBuf),
    Passt(PathBuf),
    Slirp(PathBuf),
    /// The guest's frames go to a tap on the host: what the load, both kernels and two relays cost by themselves.
    TwoTaps,
}

impl Kind {
    pub(crate) fn name(&self) -> &'static str {
        match self {
            Self::Ours(_) => "ours",
            Self::Original(_) => "original",
            Self::Passt(_) => "passt",
            Self::Slirp(_) => "slirp4netns",
            Self::TwoTaps => "two taps",
        }
    }

    /// What the program says it is, in a line.
    pub(crate) fn version(&self) -> String {
        let (path, flag) = match self {
            Self::Ours(path) | Self::Original(path) => (path, "-version"),
            Self::Passt(path) | Self::Slirp(path) => (path, "--version"),
            Self::TwoTaps => return "no daemon: two relays, back to back".to_owned(),
        };
        let output = Command::new(path).arg(flag).output();
        let text = output.map_or_else(|error| error.to_string().into_bytes(), |output| output.stdout);
        let line = String::from_utf8_lossy(&text).lines().next().unwrap_or("says nothing").to_owned();
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
    (found, missing)
}

fn program(name: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    std::env::split_paths(&path).map(|directory| directory.join(name)).find(|file| file.is_file())
}
