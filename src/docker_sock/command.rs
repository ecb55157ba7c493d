//! The command line of `gvproxy docker-sock` and what it says. Owns: the flags, the words, the exit codes.
//! May not: change files but through [`Installation`]. Read next: `mod.rs`; `../cli/mod.rs`, which reads the
//! flags.

use std::env;
use std::ffi::{OsStr, OsString};
use std::path::{Path, PathBuf};

use anyhow::{Result, bail};

use super::{Found, Installation, Recorded, State, System, ping};
use crate::cli::table::{Flag, Kind, flag, usage};
use crate::cli::{Read, Values, read};
use crate::sys::users::own_id;
use crate::text::quote;

/// The first word of a command line that is for here. No other word in front of or behind flags has a
/// meaning.
pub const WORD: &str = "docker-sock";

const PREFIX: Flag = flag("prefix", Kind::Text(""), "PATH", "Work in this directory tree instead of /");

/// The flags of `install`, bytewise by name.
pub const INSTALL: &[Flag] = &[
    PREFIX,
    flag(
        "socket",
        Kind::Text(""),
        "PATH",
        "Target of the link. The default is the socket of the default podman machine of the user who ran \
         sudo: /run/user/UID/podman/podman-machine-default-api.sock. There is none on macOS",
    ),
];

/// The flags of `status` and `uninstall`.
pub const OTHERS: &[Flag] = &[PREFIX];

/// What to print, and the process's exit code.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// For standard output.
    pub out: String,
    /// For standard error.
    pub err: String,
    /// Of the process.
    pub code: u8,
}

/// The exit codes: 1 and 2 are gvproxy's own.
const FAILED: u8 = 1;
const BAD_USAGE: u8 = 2;
/// Ours, and nobody answers there.
const SILENT: u8 = 3;
/// Nothing of ours, and nothing else.
const NOT_INSTALLED: u8 = 4;
/// What is there is somebody else's.
const TAKEN: u8 = 5;
/// Only the boot file, or one that was changed.
const INCOMPLETE: u8 = 6;

/// Does what a command line asks for, whose second word is [`WORD`].
pub fn run(argv: &[OsString]) -> Output {
    let (program, words) = match argv {
        [program, _, words @ ..] => (program.as_os_str(), words),
        _ => (OsStr::new("gvproxy"), argv),
    };
    let program = format!("{} {WORD}", program.display());
    let (verb, words) = match words {
        [verb, words @ ..] => (verb.to_str().unwrap_or_default(), words),
        [] => ("", words),
    };
    let flags = match verb {
        "install" => INSTALL,
        "status" | "uninstall" => OTHERS,
        _ => {
            let code = if ["-h", "-help", "--help"].contains(&verb) { 0 } else { BAD_USAGE };
            return said(format!("Usage of {program}: install, status or uninstall; each has -h\n"), code);
        }
    };
    let program = format!("{program} {verb}");
    let argv: Vec<OsString> =
        std::iter::once(OsString::from(&program)).chain(words.iter().cloned()).collect();
    let values = match read(&argv, "gvproxy", flags) {
        Read::Values(values) => values,
        Read::Help(text) => return said(text, 0),
        Read::Usage(text) => return said(text, BAD_USAGE),
    };
    if let Some(word) = &values.ignored {
        let word = quote(word.as_encoded_bytes());
        return said(format!("unexpected word {word}\n{}", usage(&program, flags)), BAD_USAGE);
    }
    match done(verb, &values) {
        Ok((out, code)) => Output { out, err: String::new(), code },
        Err(error) => said(format!("gvproxy {WORD} {verb}: {error:#}\n"), FAILED),
    }
}

fn said(err: String, code: u8) -> Output {
    Output { out: String::new(), err, code }
}

fn done(verb: &str, values: &Values) -> Result<(String, u8)> {
    let prefix: OsString = values.get("prefix");
    let prefix = (!prefix.is_empty()).then_some(Path::new(&prefix));
    let installation = Installation::new(System::here()?, prefix);
    match verb {
        "install" => {
            let socket: OsString = values.get("socket");
            let socket = if socket.is_empty() { usual_socket()? } else { socket.into() };
            installation.install(&socket)?;
            Ok((status(&installation, &installation.look()?).0, 0))
        }
        "uninstall" => Ok((removed(&installation, &installation.uninstall()?), 0)),
        _ => Ok(status(&installation, &installation.look()?)),
    }
}

/// That of podman's default machine, of the user behind sudo.
fn usual_socket() -> Result<PathBuf> {
    let asked = env::var("SUDO_UID").ok().and_then(|uid| uid.parse::<u32>().ok());
    let uid = asked.or_else(own_id).unwrap_or(0);
    // On macOS it lies in a directory that has no fixed name; root has no machine.
    if env::consts::OS != "linux" || uid == 0 {
        bail!(
            "which socket? -socket \"$(podman machine inspect --format \
             '{{{{.ConnectionInfo.PodmanSocket.Path}}}}')\""
        );
    }
    Ok(format!("/run/user/{uid}/podman/podman-machine-default-api.sock").into())
}

/// What is there in words, and as the exit code of `status`.
fn status(installation: &Installation, state: &State) -> (String, u8) {
    let (link, file) = (installation.link.display(), installation.file.display());
    let at = match &state.found {
        Found::Nothing => format!("{link} is missing"),
        Found::Link(at) => format!("{link} -> {}", at.display()),
        Found::Socket => format!("{link} is a socket"),
        Found::Other => format!("{link} is no socket"),
    };
    let (whose, code) = match (&state.recorded, &state.found) {
        _ if state.is_ours() => (format!("installed: {file} makes it again after a restart"), 0),
        (Recorded::Changed, _) => (format!("incomplete: {file} is not as gvproxy wrote it"), INCOMPLETE),
        (Recorded::Target(_), Found::Nothing) => {
            (format!("incomplete: {file} makes it at the next start, `install` makes it now"), INCOMPLETE)
        }
        (Recorded::Target(target), _) => (
            format!("taken: gvproxy's link to {target} was replaced by somebody else; {file} is left"),
            TAKEN,
        ),
        (Recorded::Nothing, Found::Nothing) => ("not installed".into(), NOT_INSTALLED),
        (Recorded::Nothing, _) => ("not installed: gvproxy did not make it".into(), TAKEN),
    };
    let mut out = format!("{at}\n{whose}\n");
    if state.found == Found::Nothing {
        return (out, code);
    }
    match ping::ping(&installation.link) {
        Ok(server) => out.push_str(&format!("{server} answers\n")),
        Err(why) => {
            out.push_str(&format!("no answer: {why}\n"));
            return (out, if code == 0 { SILENT } else { code });
        }
    }
    (out, code)
}

/// What `uninstall` did, by what there was before.
fn removed(installation: &Installation, before: &State) -> String {
    let (link, file) = (installation.link.display(), installation.file.display());
    let gone = match &before.recorded {
        Recorded::Nothing => "not installed\n".into(),
        _ if before.is_ours() => format!("removed {link} and {file}\n"),
        _ => format!("removed {file}\n"),
    };
    let left = match before.found {
        Found::Nothing => String::new(),
        _ if before.is_ours() => String::new(),
        _ => format!("{link} stays: gvproxy did not make it\n"),
    };
    gone + &left
}
