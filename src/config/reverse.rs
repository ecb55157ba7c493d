//! Sockets of guests that lead to the host: what `-reverse-sock` and `-reverse-dest` mean together, and
//! `reverse` of the file.
//! Owns: which user and key belong to them. May not: ask for them. Read next: `../addr/dest.rs`;
//! `../reverse/mod.rs`.

use std::ffi::{OsStr, OsString};
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};

use anyhow::{Result, anyhow, ensure};

use super::asked::Asked;
use super::file::{self, Text};
use super::forwards::{ensure_readable, is_url};
use crate::addr::{Dest, SshDest, ensure_guest_path};
use crate::cli::RawArgs;
use crate::text::quote;

/// A socket in a guest, and where its clients are led.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Reverse {
    /// The socket: one of [`Dest::Ssh`] and [`Dest::Agent`].
    pub socket: Dest,
    /// Where it leads: all else.
    pub dest: Dest,
}

/// Who logs in where nothing else is said: the first of `-forward-user` and `-forward-identity`.
#[derive(Clone, Copy)]
struct Login<'a> {
    user: Option<&'a OsStr>,
    identity: Option<&'a OsStr>,
}

impl<'a> Login<'a> {
    fn of(raw: &'a RawArgs) -> Self {
        let first = |list: &'a [OsString]| list.first().map(OsString::as_os_str);
        Self { user: first(&raw.forward_user), identity: first(&raw.forward_identity) }
    }
}

/// The file's.
pub(super) fn of_file(asked: &Asked, device: Ipv4Addr) -> Result<Vec<Reverse>> {
    let mut reverse = Vec::new();
    let Some(file) = asked.file() else { return Ok(reverse) };
    for (index, entry) in file.reverse.iter().enumerate() {
        let file::Reverse { socket, dest, identity } = &entry.value;
        let text = |text: &Text| OsString::from(text.as_ref().map_or("", |text| text.value.as_str()));
        let login = Login::of(&asked.args);
        let (socket, dest, identity) = (text(socket), text(dest), text(identity));
        let login =
            Login { identity: Some(&*identity).filter(|text| !text.is_empty()).or(login.identity), ..login };
        let names = ["socket", "dest"];
        let one = Reverse::new([&socket, &dest], names, login, device);
        reverse.push(one.map_err(|e| asked.wrong(entry.referenced.line(), &format!("reverse[{index}]"), e))?);
    }
    Ok(reverse)
}

/// The flags', which belong together by index.
pub(super) fn typed(raw: &RawArgs, device: Ipv4Addr) -> Result<Vec<Reverse>> {
    let RawArgs { reverse_sock, reverse_dest, .. } = raw;
    ensure!(
        reverse_sock.len() == reverse_dest.len(),
        "-reverse-sock and -reverse-dest belong together: there are {} and {} of them",
        reverse_sock.len(),
        reverse_dest.len()
    );
    let names = ["flag -reverse-sock", "flag -reverse-dest"];
    let pairs = reverse_sock.iter().zip(reverse_dest);
    pairs.map(|(sock, dest)| Reverse::new([sock, dest], names, Login::of(raw), device)).collect()
}

impl Reverse {
    fn new(typed: [&OsStr; 2], names: [&str; 2], login: Login<'_>, device: Ipv4Addr) -> Result<Self> {
        let wrong = |text: &OsStr, name: &str, why: String| {
            anyhow!("invalid value {} for {name}: {why}", quote(text.as_encoded_bytes()))
        };
        let [socket, dest] = typed;
        Ok(Self {
            socket: guest(socket, login, device).map_err(|why| wrong(socket, names[0], why))?,
            dest: host(dest).map_err(|why| wrong(dest, names[1], why))?,
        })
    }
}

/// Where the socket is made.
fn guest(typed: &OsStr, login: Login<'_>, device: Ipv4Addr) -> Result<Dest, String> {
    let text = typed.to_str().ok_or("not UTF-8")?;
    let dest = match (is_url(typed), login) {
        (true, _) => Dest::parse(text)?,
        (false, Login { user: Some(user), identity: Some(_) }) => {
            let user = user.to_str().ok_or("-forward-user is not UTF-8")?.to_owned();
            Dest::Ssh(SshDest::of_guest(device, user, text.to_owned()))
        }
        (false, Login { user: None, identity: None }) => Dest::of_agent(text)?,
        (false, _) => {
            return Err("a user and a key are needed, want ssh://user@host:port/path?key=/file".into());
        }
    };
    let (Dest::Ssh(SshDest { path, .. }) | Dest::Agent { path, .. }) = &dest else {
        return Err("not a socket in a guest: a path, ssh://user@host:port/path, or agent:///path".into());
    };
    if !path.starts_with('/') || path.ends_with('/') {
        return Err("not an absolute path".into());
    }
    ensure_guest_path(path.as_bytes())?;
    let Dest::Ssh(ssh) = dest else { return Ok(dest) };
    let key = ssh.key.or_else(|| login.identity.map(PathBuf::from));
    let key = key.ok_or("no key: add ?key=/file to it, or -forward-identity /file")?;
    ensure_readable(&key).map_err(|why| format!("identity file {} can't be loaded: {why}", key.display()))?;
    Ok(Dest::Ssh(SshDest { key: Some(key), ..ssh }))
}

/// Where its clients are led.
fn host(typed: &OsStr) -> Result<Dest, String> {
    if !is_url(typed) {
        let path = Path::new(typed);
        return match path.is_absolute() {
            true => Ok(Dest::Unix(path.to_owned())),
            false => Err("not an absolute path".into()),
        };
    }
    match Dest::parse(typed.to_str().ok_or("not UTF-8")?)? {
        Dest::Ssh(_) | Dest::Agent { .. } => {
            Err("a socket of the host is needed: a path, or tcp://host:port".into())
        }
        dest => Ok(dest),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const DEVICE: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

    fn read(socket: &str, login: [&str; 2]) -> Result<String, String> {
        let [user, identity] = login.map(|text| Some(OsStr::new(text)).filter(|text| !text.is_empty()));
        guest(socket.as_ref(), Login { user, identity }, DEVICE).map(|dest| dest.to_string())
    }

    #[test]
    fn where_the_socket_is_made() {
        let key = tempfile::NamedTempFile::new().unwrap();
        let key = key.path().to_str().unwrap();
        for (socket, login, dest) in [
            ("/run/a.sock", ["", ""], "agent:///run/a.sock"),
            ("agent:///run/a.sock", ["core", key], "agent:///run/a.sock"),
            ("agent://10.0.2.15:8460/run/a", ["", ""], "agent://10.0.2.15:8460/run/a"),
            ("/run/a.sock", ["core", key], "ssh://core@192.168.127.2:22/run/a.sock"),
            ("ssh://u@127.0.0.1:2222/run/a", ["core", key], "ssh://u@127.0.0.1:2222/run/a"),
            (&format!("ssh://u@10.0.0.1/run/a?key={key}"), ["", ""], "ssh://u@10.0.0.1:22/run/a"),
        ] {
            assert_eq!(read(socket, login).as_deref(), Ok(dest), "{socket}");
        }
        for (socket, login, why) in [
            ("run/a.sock", ["", ""], "not an absolute path"),
            ("run/a.sock", ["core", key], "not an absolute path"),
            ("/run/", ["core", key], "not an absolute path"),
            ("/run/a", ["core", ""], "a user and a key are needed"),
            ("/run/a", ["", key], "a user and a key are needed"),
            ("ssh://u@10.0.0.1/run/a", ["", ""], "no key"),
            ("ssh://u@10.0.0.1/run/a?key=/none", ["", ""], "identity file /none can't be loaded"),
            ("tcp://10.0.0.1:80", ["", ""], "not a socket in a guest"),
            ("unix:///run/a", ["", ""], "not a socket in a guest"),
            ("/run/a\nb", ["", ""], "not a plain path"),
            (&format!("/{}", "x".repeat(107)), ["core", key], "longer than 107 bytes"),
        ] {
            let error = read(socket, login).unwrap_err();
            assert!(error.contains(why), "{socket}: {error}");
        }
    }

    #[cfg(unix)]
    #[test]
    fn where_it_leads() {
        for (typed, dest) in [
            ("/run/user/1000/agent", "unix:///run/user/1000/agent"),
            ("unix:///run/a", "unix:///run/a"),
            ("tcp://127.0.0.1:80", "tcp://127.0.0.1:80"),
            ("vsock://3:1024", "vsock://3:1024"),
        ] {
            assert_eq!(host(typed.as_ref()).map(|dest| dest.to_string()).as_deref(), Ok(dest));
        }
        for (typed, why) in [
            ("agent", "not an absolute path"),
            ("", "not an absolute path"),
            ("agent:///run/a", "a socket of the host is needed"),
            ("ssh://u@h/run/a?key=/k", "a socket of the host is needed"),
            ("tcp://127.0.0.1", "invalid syntax"),
        ] {
            let error = host(typed.as_ref()).unwrap_err();
            assert!(error.contains(why), "{typed}: {error}");
        }
    }
}
