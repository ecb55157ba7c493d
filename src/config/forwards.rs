//! Sockets that are forwarded: what `-forward-sock` and its like mean together, and `forwards` of the file.
//! Owns: which user and key belong to which of them. May not: bind. Read next: `../addr/listen.rs`,
//! `../addr/dest.rs`.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io;
use std::net::Ipv4Addr;
use std::path::Path;

use anyhow::{Context, Result, anyhow, ensure};

use super::asked::Asked;
use super::file::{self, Text};
use super::{PathCheck, Wanted};
use crate::addr::{Dest, ListenAddress, SshDest};
use crate::cli::RawArgs;
use crate::text::{quote, reason};

/// A host socket, and where its clients are led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SocketForward {
    /// What is listened on.
    pub source: ListenAddress,
    /// Where it leads.
    pub dest: Dest,
}

const UNEQUAL: &str = "--forward-sock, --forward-dest, --forward-user, and --forward-identity must all be specified \
                       together, the same number of times, or not at all";

/// The file's.
pub(super) fn of_file(asked: &Asked, device: Ipv4Addr, check: PathCheck<'_>) -> Result<Vec<SocketForward>> {
    let mut forwards = Vec::new();
    let Some(file) = asked.file() else { return Ok(forwards) };
    for (index, entry) in file.forwards.iter().enumerate() {
        let file::Forward { socket, dest, user, identity } = &entry.value;
        let text = |text: &Text| OsString::from(text.as_ref().map_or("", |text| text.value.as_str()));
        let given = |given: &Text| Some(text(given)).filter(|text| !text.is_empty());
        let (socket, dest) = (text(socket), text(dest));
        let forward = SocketForward::new(&socket, &dest, given(user), given(identity), device, check);
        forwards.push(
            forward.map_err(|e| asked.wrong(entry.referenced.line(), &format!("forwards[{index}]"), e))?,
        );
    }
    Ok(forwards)
}

/// The flags', which belong together by index: users and keys to those forwards that are in need of one.
pub(super) fn typed(raw: &RawArgs, device: Ipv4Addr, check: PathCheck<'_>) -> Result<Vec<SocketForward>> {
    let RawArgs { forward_sock, forward_dest, forward_user, forward_identity, .. } = raw;
    if forward_sock.is_empty() && forward_dest.is_empty() && !raw.reverse_sock.is_empty() {
        // User and key are for those.
        return Ok(Vec::new());
    }
    ensure!(forward_sock.len() == forward_dest.len(), UNEQUAL);
    let urls = forward_dest.iter().filter(|dest| is_url(dest)).count();
    let plain = forward_dest.len() - urls;
    // COMPAT(gvproxy): has no URLs, and refuses what gives neither a user nor a key.
    let by_agent = forward_user.is_empty() && (urls > 0 || forward_identity.is_empty());
    ensure!(by_agent || forward_user.len() == plain, UNEQUAL);
    ensure!(by_agent || urls > 0 || forward_identity.len() == plain, UNEQUAL);
    let (mut users, mut identities) = (forward_user.iter().cloned(), forward_identity.iter().cloned());
    let mut forwards = Vec::new();
    for (sock, dest) in forward_sock.iter().zip(forward_dest) {
        let (user, needs_key) = match is_url(dest) {
            true => (None, matches!(parse(dest)?, Dest::Ssh(SshDest { key: None, .. }))),
            false => (users.next(), !by_agent),
        };
        let identity = if needs_key { identities.next() } else { None };
        forwards.push(SocketForward::new(sock, dest, user, identity, device, check)?);
    }
    if let Some(identity) = identities.next() {
        return Err(anyhow!(
            "-forward-identity {} belongs to no forward: each has a key, or needs none",
            quote(identity.as_encoded_bytes())
        ));
    }
    Ok(forwards)
}

impl SocketForward {
    fn new(
        socket: &OsStr,
        dest: &OsStr,
        user: Option<OsString>,
        identity: Option<OsString>,
        device: Ipv4Addr,
        check: PathCheck<'_>,
    ) -> Result<Self> {
        let dest = match (is_url(dest), user, identity) {
            (true, None, identity) => with_key(parse(dest)?, identity, dest)?,
            (true, Some(_), _) => return Err(wrong(dest)("it is a URL, which brings its user along")),
            (false, None, None) => {
                let path = dest.to_str().ok_or_else(|| wrong(dest)("not UTF-8"))?;
                Dest::of_agent(path).map_err(|why| wrong(dest)(&why))?
            }
            (false, user, identity) => {
                let utf8 = |flag: &str, value: &OsStr| {
                    let text = value.to_str().map(str::to_owned);
                    text.with_context(|| {
                        format!(
                            "invalid value {} for flag -{flag}: not UTF-8",
                            quote(value.as_encoded_bytes())
                        )
                    })
                };
                let (path, user) =
                    (utf8("forward-dest", dest)?, utf8("forward-user", &user.unwrap_or_default())?);
                let ssh = SshDest::of_guest(device, user, path);
                with_key(Dest::Ssh(ssh), Some(identity.unwrap_or_default()), &OsString::new())?
            }
        };
        let source = ListenAddress::parse(socket).with_context(|| {
            format!("invalid value {} for flag -forward-sock", quote(socket.as_encoded_bytes()))
        })?;
        if let Some(path) = source.path() {
            check(Wanted::Forward(path))?;
        }
        Ok(Self { source, dest })
    }
}

/// With the key that was given apart from the URL; one that SSH needs is to be there.
fn with_key(dest: Dest, identity: Option<OsString>, typed: &OsStr) -> Result<Dest> {
    match (dest, identity) {
        (Dest::Ssh(SshDest { key: Some(_), .. }), Some(_)) => {
            Err(wrong(typed)("it has a key of its own already"))
        }
        (Dest::Ssh(ssh), identity) => {
            let key = identity.or_else(|| ssh.key.map(Into::into));
            let key =
                key.ok_or_else(|| wrong(typed)("no key: add ?key=/file to it, or -forward-identity /file"))?;
            ensure_readable(Path::new(&key)).map_err(|why| {
                anyhow!("identity file {} can't be loaded: {why}", quote(key.as_encoded_bytes()))
            })?;
            Ok(Dest::Ssh(SshDest { key: Some(key.into()), ..ssh }))
        }
        (_, Some(_)) => Err(wrong(typed)("no key is needed there")),
        (dest, None) => Ok(dest),
    }
}

pub(super) fn is_url(dest: &OsStr) -> bool {
    dest.as_encoded_bytes().windows(3).any(|three| three == b"://")
}

fn parse(dest: &OsStr) -> Result<Dest> {
    let text = dest.to_str().ok_or_else(|| wrong(dest)("not UTF-8"))?;
    Dest::parse(text).map_err(|why| wrong(dest)(&why))
}

fn wrong(dest: &OsStr) -> impl Fn(&str) -> anyhow::Error {
    move |why| anyhow!("invalid value {} for flag -forward-dest: {why}", quote(dest.as_encoded_bytes()))
}

/// Opens a regular file; a pipe is left alone, its content can be read only once.
pub(super) fn ensure_readable(path: &Path) -> Result<(), String> {
    let failed = |call: &str, error: io::Error| format!("{call} {}: {}", path.display(), reason(&error));
    let found = fs::metadata(path).map_err(|error| failed("stat", error))?;
    if found.is_dir() {
        return Err(failed("read", io::ErrorKind::IsADirectory.into()));
    }
    if !found.is_file() {
        // A pipe gives its key once, and would be waited for.
        return Err(format!("{} is not a regular file", path.display()));
    }
    File::open(path).map_err(|error| failed("open", error))?;
    Ok(())
}
