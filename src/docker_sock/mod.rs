//! `gvproxy docker-sock`: /var/run/docker.sock as a link to a machine's socket, for clients that look nowhere
//! else.
//! Owns: that link, and the boot file by which the system makes it again after a restart.
//! May not: replace or remove what is not ours. Read next: `command.rs`, what is said; `tmpfiles.rs`,
//! `launchd.rs`.
//!
//! The boot file is also the record of where our link leads: it is written before the link and removed after
//! it. A link that leads elsewhere, or has no record, is somebody else's, and what an interrupted run left is
//! finished by the next.

pub mod command;
pub mod launchd;
pub mod manual;
mod ping;
pub mod tmpfiles;

use std::fs::{self, OpenOptions};
use std::io::{self, ErrorKind, Write};
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, bail, ensure};

use crate::sys::files::{is_socket, set_mode, set_new_mode, symlink};
use crate::text::{quote, reason};

/// The boot file's mode: launchd refuses one that others may write, everybody may ask for the status.
const MODE: u32 = 0o644;

/// How a kind of system makes a link when it boots.
#[derive(Clone, Copy, Debug)]
pub struct System {
    /// Where Docker's clients look.
    pub link: &'static str,
    /// The boot file.
    pub file: &'static str,
    /// The boot file's text for a link that leads to a path. The link is made only where there is nothing.
    pub text: fn(&str) -> String,
    /// Where the link leads, if a text is exactly what `text` writes.
    pub target: fn(&str) -> Option<String>,
}

impl System {
    /// The system that runs this program.
    ///
    /// # Errors
    /// It has no way that we know.
    pub fn here() -> Result<&'static Self> {
        match std::env::consts::OS {
            "linux" => Ok(&tmpfiles::SYSTEM),
            "macos" => Ok(&launchd::SYSTEM),
            other => bail!("{other} is not supported: only Linux and macOS are"),
        }
    }
}

/// The link and the boot file of one system, or of a directory tree that is to become one.
#[derive(Clone, Debug)]
pub struct Installation {
    system: &'static System,
    link: PathBuf,
    file: PathBuf,
    /// A tree has no directories but those that somebody makes.
    is_tree: bool,
}

/// What the boot file says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Recorded {
    /// There is none.
    Nothing,
    /// Our link leads there.
    Target(String),
    /// Not what we write.
    Changed,
}

/// What is where Docker's clients look.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Found {
    /// Nothing.
    Nothing,
    /// A link, and where it leads.
    Link(PathBuf),
    /// A socket: a daemon's, living or dead.
    Socket,
    /// A file, a directory or the like.
    Other,
}

/// Both at one moment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct State {
    /// Of the boot file.
    pub recorded: Recorded,
    /// Of the link.
    pub found: Found,
}

impl State {
    /// Whether the link is the one that is on record.
    pub fn is_ours(&self) -> bool {
        match (&self.recorded, &self.found) {
            (Recorded::Target(target), Found::Link(at)) => at.as_os_str() == target.as_str(),
            _ => false,
        }
    }
}

impl Installation {
    /// In the directory `prefix` instead of `/`, if there is one.
    pub fn new(system: &'static System, prefix: Option<&Path>) -> Self {
        let root = prefix.unwrap_or_else(|| Path::new("/"));
        let below = |path: &str| root.join(path.trim_start_matches('/'));
        Self { system, link: below(system.link), file: below(system.file), is_tree: prefix.is_some() }
    }

    /// # Errors
    /// The system does not let us look.
    pub fn look(&self) -> Result<State> {
        Ok(State { recorded: self.recorded()?, found: self.found()? })
    }

    /// Makes the link lead to the socket `target`, now and after every restart; gives what there was before.
    ///
    /// # Errors
    /// Something that is not ours is in the way, `target` cannot be meant, or the system refuses.
    pub fn install(&self, target: &Path) -> Result<State> {
        let target = self.checked(target)?;
        let before = self.look()?;
        let is_recorded = before.recorded == Recorded::Target(target.into());
        if before.recorded == Recorded::Changed {
            bail!("{} is not as gvproxy wrote it: remove it if it is not needed", self.file.display());
        }
        if !before.is_ours() && before.found != Found::Nothing {
            bail!(self.refusal(&before.found));
        }
        self.remove(&self.unfinished())?;
        if before.is_ours() && is_recorded {
            return Ok(before);
        }
        if !is_recorded {
            self.write(target)?;
            // Gone before the record says otherwise: an interrupted run never leaves a link that looks like
            // another's.
            if before.is_ours() {
                self.remove(&self.link).inspect_err(|_| drop(fs::remove_file(self.unfinished())))?;
            }
            fs::rename(self.unfinished(), &self.file)
                .map_err(|error| failed("rename to", &self.file, &error))?;
        }
        // Fails where somebody made a file meanwhile, as a rename would not.
        self.parents(&self.link).and_then(|()| symlink(target.as_ref(), &self.link)).map_err(|error| {
            let _ = fs::remove_file(&self.file);
            failed("link", &self.link, &error)
        })?;
        Ok(before)
    }

    /// Removes the link if it is ours, and the boot file; gives what there was before.
    ///
    /// # Errors
    /// The boot file is not as we wrote it, or the system refuses.
    pub fn uninstall(&self) -> Result<State> {
        let before = self.look()?;
        if before.recorded == Recorded::Changed {
            bail!(
                "{} is not as gvproxy wrote it, and stays: remove it, and {} if that is no daemon's",
                self.file.display(),
                self.link.display()
            );
        }
        self.remove(&self.unfinished())?;
        if before.is_ours() {
            self.remove(&self.link)?;
        }
        if before.recorded != Recorded::Nothing {
            self.remove(&self.file)?;
        }
        Ok(before)
    }

    /// `target` as a text that both kinds of boot files can hold.
    fn checked<'a>(&self, target: &'a Path) -> Result<&'a str> {
        let shown = || quote(target.as_os_str().as_encoded_bytes());
        let text = target.to_str().filter(|text| !text.contains(char::is_control));
        let Some(text) = text else { bail!("-socket {}: a boot file cannot hold this name", shown()) };
        ensure!(target.is_absolute(), "-socket {}: not an absolute path", shown());
        ensure!(
            resolved(target) != resolved(&self.link),
            "-socket {}: the link would lead to itself",
            shown()
        );
        match fs::metadata(target) {
            Ok(found) => ensure!(is_socket(&found), "-socket {}: not a socket", shown()),
            // A machine that does not run yet, or a directory that only its user may read.
            Err(error) if matches!(error.kind(), ErrorKind::NotFound | ErrorKind::PermissionDenied) => {}
            Err(error) => bail!("-socket {}: {}", shown(), reason(&error)),
        }
        Ok(text)
    }

    fn recorded(&self) -> Result<Recorded> {
        match fs::symlink_metadata(&self.file) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Recorded::Nothing),
            Err(error) => return Err(failed("stat", &self.file, &error)),
            Ok(found) if !found.is_file() => return Ok(Recorded::Changed),
            Ok(_) => {}
        }
        let text = fs::read(&self.file).map_err(|error| failed("read", &self.file, &error))?;
        let target = String::from_utf8(text).ok().and_then(|text| (self.system.target)(&text));
        Ok(target.map_or(Recorded::Changed, Recorded::Target))
    }

    fn found(&self) -> Result<Found> {
        let found = match fs::symlink_metadata(&self.link) {
            Err(error) if error.kind() == ErrorKind::NotFound => return Ok(Found::Nothing),
            Err(error) => return Err(failed("stat", &self.link, &error)),
            Ok(found) => found,
        };
        if found.is_symlink() {
            let at = fs::read_link(&self.link).map_err(|error| failed("readlink", &self.link, &error))?;
            return Ok(Found::Link(at));
        }
        Ok(if is_socket(&found) { Found::Socket } else { Found::Other })
    }

    /// Why `found` is not replaced, and what whoever wants it replaced can do.
    fn refusal(&self, found: &Found) -> String {
        let link = self.link.display();
        match found {
            Found::Link(at) => format!(
                "{link} is a link that gvproxy did not make, to {}: remove it if it is not needed",
                at.display()
            ),
            Found::Socket => match ping::ping(&self.link) {
                Ok(server) => {
                    format!("{link} is a daemon's socket, and {server} answers: stop and disable it first")
                }
                Err(why) => format!(
                    "{link} is a daemon's socket, though nobody answers ({why}): if that daemon is not to come back, \
                     disable it (systemctl disable --now docker.socket docker.service) and remove the socket"
                ),
            },
            Found::Other | Found::Nothing => {
                format!("{link} is a file that gvproxy did not make: remove it if it is not needed")
            }
        }
    }

    /// Writes a boot file that has its name yet to get, so that it appears whole or not at all.
    fn write(&self, target: &str) -> Result<()> {
        let new = self.unfinished();
        let written = self.parents(&self.file).and_then(|()| {
            let mut options = OpenOptions::new();
            set_new_mode(options.write(true).create_new(true), MODE);
            let mut file = options.open(&new)?;
            // Whatever the umask.
            set_mode(&file, MODE)?;
            file.write_all((self.system.text)(target).as_bytes())?;
            file.sync_all()
        });
        written.map_err(|error| {
            let _ = fs::remove_file(&new);
            match error.kind() {
                ErrorKind::NotFound => anyhow!(
                    "write {}: there is no such directory, so this system would not make the link again after a restart",
                    self.file.display()
                ),
                _ => failed("write", &self.file, &error),
            }
        })
    }

    /// Where a boot file is written. It is none by its name, so that what an interrupted run left has no
    /// effect.
    fn unfinished(&self) -> PathBuf {
        self.file.with_extension("new")
    }

    fn parents(&self, path: &Path) -> io::Result<()> {
        path.parent().filter(|_| self.is_tree).map_or(Ok(()), fs::create_dir_all)
    }

    fn remove(&self, path: &Path) -> Result<()> {
        match fs::remove_file(path) {
            Err(error) if error.kind() != ErrorKind::NotFound => Err(failed("remove", path, &error)),
            _ => Ok(()),
        }
    }
}

/// With the links of its directory followed, but not its own.
fn resolved(path: &Path) -> PathBuf {
    let directory = path.parent().and_then(|directory| directory.canonicalize().ok());
    match (directory, path.file_name()) {
        (Some(directory), Some(name)) => directory.join(name),
        _ => path.to_owned(),
    }
}

fn failed(call: &str, path: &Path, error: &io::Error) -> anyhow::Error {
    let root = match error.kind() {
        ErrorKind::PermissionDenied => ": this needs root, as with sudo",
        _ => "",
    };
    anyhow!("{call} {}: {}{root}", path.display(), reason(error))
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
