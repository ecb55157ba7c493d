//! Where the daemon listens on the host: for hypervisors, for its API, for the clients of forwards.
//! Owns: what the URLs of `-listen-qemu`, `-listen`, `-services` and `-forward-sock` mean. May not: bind.
//! Read next: `url.rs`; `../listen.rs`, which binds.

use std::ffi::OsStr;
use std::fmt;
use std::io;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, anyhow, bail, ensure};

use super::host_port::Shown;
use super::url::{Url, unescape};
use crate::sys::named_pipe;
use crate::sys::sockets::HYPER_V;
use crate::sys::users::{group_id, user_id};
use crate::text::quote;

/// The mode of a unix socket for which none is asked: whoever may use the daemon's sockets may use the
/// daemon.
const MODE: u32 = 0o600;
/// Longest name of an abstract socket in bytes: a zero precedes it in the 108 bytes of `sun_path` (unix(7)).
const ABSTRACT_MAX: usize = 107;

/// A place on the host where clients connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum ListenAddress {
    /// A unix stream socket with a file.
    Unix {
        /// As it was typed, so that it may be relative.
        path: PathBuf,
        /// Permission bits.
        mode: u32,
        /// The user's id; without one that of the process.
        owner: Option<u32>,
        /// The group's id; without one that of the process.
        group: Option<u32>,
    },
    /// A unix stream socket without a file: the name, without the zero in front. Linux only.
    Abstract(Vec<u8>),
    /// A TCP port of `host`, a name or an address without brackets; empty for every address.
    Tcp {
        /// As it was typed.
        host: String,
        /// 0 for any.
        port: u16,
    },
    /// A port of AF_VSOCK.
    Vsock {
        /// The context that it is bound to; without one the machine's own.
        cid: Option<u32>,
        /// In vsock's own number space.
        port: u32,
    },
    /// A named pipe of Windows: what follows `\\.\pipe\`.
    Pipe(String),
    /// A socket that systemd listens on for us: sd_listen_fds(3).
    Inherited(Inherited),
}

/// Which of the sockets that systemd passed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Inherited {
    /// There is one.
    Only,
    /// The descriptor with this number; the first is 3.
    Number(u32),
    /// The one with this name: `FileDescriptorName=` of systemd.socket(5).
    Name(String),
}

impl ListenAddress {
    /// A socket at `path` for the process's own user.
    pub fn private(path: PathBuf) -> Self {
        Self::Unix { path, mode: MODE, owner: None, group: None }
    }

    /// The file that it makes.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix { path, .. } => Some(path),
            Self::Abstract(_)
            | Self::Tcp { .. }
            | Self::Vsock { .. }
            | Self::Pipe(_)
            | Self::Inherited(_) => None,
        }
    }

    /// Whether [`parse`](Self::parse) would ask for a user or a group, which the system may have to look up.
    pub fn has_owner(typed: &OsStr) -> bool {
        let url = Url::parse(typed).ok().filter(|url| url.scheme == "unix");
        let asked = url.and_then(|url| url.parameters(["mode", "owner", "group"]).ok());
        asked.is_some_and(|[_, owner, group]| owner.is_some() || group.is_some())
    }

    /// Reads the URL of a flag of the API, `-flag`: of a unix socket, a TCP port, or a port of vsock.
    ///
    /// # Errors
    /// It is no URL, or not of a place that the API can be served at.
    pub fn parse_url(flag: &str, typed: &OsStr) -> Result<Self> {
        let read = || {
            let url = Url::parse(typed)?;
            match url.scheme.as_str() {
                "unix" => Ok(Self::private(url.into_socket_path()?)),
                "tcp" => tcp(&url),
                "vsock" => vsock(&url),
                _ => bail!("unexpected scheme"),
            }
        };
        read().with_context(|| format!("invalid value {} for -{flag}", quote(typed.as_encoded_bytes())))
    }

    /// Reads what a forward listens at: a path, `@NAME`, or a URL.
    ///
    /// # Errors
    /// It names no place that can be listened on, or a user or group that is not there.
    pub fn parse(typed: &OsStr) -> Result<Self> {
        let bytes = typed.as_encoded_bytes();
        if let Some(name) = bytes.strip_prefix(b"@") {
            return abstract_name(name);
        }
        // COMPAT(gvproxy): whatever has no `://` in it is a path to it, an abstract socket's URL too.
        let is_url = bytes.windows(3).any(|three| three == b"://") || bytes.starts_with(b"unix:@");
        if let Some(name) = bytes.strip_prefix(br"\\.\pipe\").filter(|_| named_pipe::EXIST) {
            return pipe(name);
        }
        if !is_url {
            return Ok(Self::private(typed.into()));
        }
        let url = Url::parse(typed)?;
        if url.scheme == "unix" {
            return match abstract_part(bytes) {
                Some(name) => {
                    let [] = url.parameters([]).context("an abstract socket has no mode and no owner")?;
                    let name = unescape(name).map_err(|bad| anyhow!("invalid URL escape {}", quote(bad)))?;
                    abstract_name(name.as_encoded_bytes())
                }
                None => unix(url),
            };
        }
        let source = match url.scheme.as_str() {
            "tcp" => tcp(&url)?,
            "vsock" => vsock(&url)?,
            "npipe" if named_pipe::EXIST => {
                let name = url.path.as_encoded_bytes().strip_prefix(b"//./pipe/");
                pipe(name.context("a pipe's URL begins with npipe:////./pipe/")?)?
            }
            scheme if named_pipe::EXIST => {
                bail!("URI scheme not supported: {scheme}; there are npipe, unix, tcp, and a plain path")
            }
            "fd" => inherited(&url).map(Self::Inherited)?,
            scheme => {
                bail!("URI scheme not supported: {scheme}; there are unix, tcp, vsock, fd, and a plain path")
            }
        };
        let [] = url.parameters([])?;
        Ok(source)
    }
}

/// What a URL names as abstract: all behind the `@` of `unix:@NAME` and `unix://@NAME`, which Go's and
/// docker's URLs have.
fn abstract_part(url: &[u8]) -> Option<&[u8]> {
    let rest = url.get("unix:".len()..)?;
    let name = rest.strip_prefix(b"//").unwrap_or(rest).strip_prefix(b"@")?;
    name.split(|&b| matches!(b, b'?' | b'#')).next()
}

fn abstract_name(name: &[u8]) -> Result<ListenAddress> {
    ensure!(!name.is_empty(), "an abstract socket needs a name behind the @");
    ensure!(
        name.len() <= ABSTRACT_MAX,
        "the name is too long: {} bytes, the limit is {ABSTRACT_MAX}",
        name.len()
    );
    Ok(ListenAddress::Abstract(name.to_vec()))
}

/// The longest name of a pipe, in characters.
const PIPE_MAX: usize = 256 - r"\\.\pipe\".len();

fn pipe(name: &[u8]) -> Result<ListenAddress> {
    let name = std::str::from_utf8(name).context("the name of a pipe is not UTF-8")?;
    ensure!(!name.is_empty(), "a pipe needs a name behind the last slash");
    ensure!(!name.contains(['\\', '/']), "the name of a pipe has no slash");
    let len = name.chars().count();
    ensure!(len <= PIPE_MAX, "the name is too long: {len} characters, the limit is {PIPE_MAX}");
    Ok(ListenAddress::Pipe(name.to_owned()))
}

/// The host without brackets, and the port, of a `tcp://` URL.
fn tcp(url: &Url) -> Result<ListenAddress> {
    let (host, port) = host_and_port(url)?;
    let port = port.parse().with_context(|| format!("invalid port {}", quote(port)))?;
    Ok(ListenAddress::Tcp { host: host.to_owned(), port })
}

/// What follows the port in the id of a service that is vsock's (`HV_GUID_VSOCK_TEMPLATE`).
const SERVICE: &str = "-FACB-11E6-BD58-64006A7986D3";

/// The port of a service of Hyper-V's.
fn service(id: &str) -> Result<u32> {
    let wanted = || format!("invalid service {}, want XXXXXXXX{SERVICE}", quote(id));
    let (port, rest) = id.split_at_checked(8).with_context(wanted)?;
    ensure!(rest.eq_ignore_ascii_case(SERVICE), wanted());
    u32::from_str_radix(port, 16).with_context(wanted)
}

/// The context, if one is named, and the port, of a `vsock://` URL.
fn vsock(url: &Url) -> Result<ListenAddress> {
    if HYPER_V {
        return Ok(ListenAddress::Vsock { cid: None, port: service(url.authority_text()?)? });
    }
    let number = |text: &str| text.parse().with_context(|| format!("invalid number {}", quote(text)));
    let (cid, port) = host_and_port(url)?;
    let cid = Some(cid).filter(|cid| !cid.is_empty()).map(number).transpose()?;
    Ok(ListenAddress::Vsock { cid, port: number(port)? })
}

fn host_and_port(url: &Url) -> Result<(&str, &str)> {
    let authority = url.authority()?;
    let port = authority.port.context("missing port in address")?;
    let host = authority.bare_host();
    let is_bracketed = host.len() < authority.host.len();
    ensure!(!authority.has_login && !host.contains(['[', ']']), "invalid address");
    ensure!(is_bracketed || !host.contains(':'), "invalid address");
    Ok((host, port))
}

fn unix(url: Url) -> Result<ListenAddress> {
    let [mode, owner, group] = url.parameters(["mode", "owner", "group"])?;
    let mode = mode.map_or(Ok(MODE), |text| octal(&text))?;
    let owner = owner.map(|text| id("user", "owner", &text, user_id)).transpose()?;
    let group = group.map(|text| id("group", "group", &text, group_id)).transpose()?;
    Ok(ListenAddress::Unix { path: url.into_socket_path()?, mode, owner, group })
}

fn octal(text: &str) -> Result<u32> {
    let is_octal = !text.is_empty() && text.bytes().all(|digit| matches!(digit, b'0'..=b'7'));
    let mode = u32::from_str_radix(text, 8).ok().filter(|&mode| is_octal && mode <= 0o777);
    mode.with_context(|| format!("invalid mode {}: octal digits are wanted, at most 0777", quote(text)))
}

/// A number as it is, else what the system has under this name.
fn id(what: &str, key: &str, text: &str, look: fn(&str) -> io::Result<Option<u32>>) -> Result<u32> {
    ensure!(!text.is_empty(), "{key} is empty: the name or the number of a {what} is wanted");
    // The last id means "leave it" to chown(2).
    if let Some(number) = text.parse().ok().filter(|&number| number != u32::MAX) {
        return Ok(number);
    }
    let found = look(text).with_context(|| format!("cannot look up {what} {}", quote(text)))?;
    found.with_context(|| format!("there is no {what} {} here", quote(text)))
}

fn inherited(url: &Url) -> Result<Inherited> {
    let name = url.authority_text()?;
    ensure!(url.path.is_empty(), "the name of a socket has no slash");
    Ok(match name.parse() {
        _ if name.is_empty() => Inherited::Only,
        Ok(number) => {
            ensure!(number >= 3, "the first descriptor that systemd passes is 3");
            Inherited::Number(number)
        }
        Err(_) => Inherited::Name(name.to_owned()),
    })
}

impl fmt::Display for ListenAddress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix { path, mode, owner, group } => {
                write!(f, "unix://{}", path.display())?;
                let mode = (*mode != MODE).then(|| format!("mode={mode:04o}"));
                let owner = owner.map(|id| format!("owner={id}"));
                let group = group.map(|id| format!("group={id}"));
                for (part, mark) in [mode, owner, group].iter().flatten().zip(["?", "&", "&"]) {
                    write!(f, "{mark}{part}")?;
                }
                Ok(())
            }
            Self::Abstract(name) => write!(f, "unix:@{}", name.escape_ascii()),
            Self::Tcp { host, port } => write!(f, "tcp://{}", Shown(host, *port)),
            Self::Vsock { port, .. } if HYPER_V => write!(f, "vsock://{port:08X}{SERVICE}"),
            Self::Vsock { cid: Some(cid), port } => write!(f, "vsock://{cid}:{port}"),
            Self::Vsock { cid: None, port } => write!(f, "vsock://:{port}"),
            Self::Pipe(name) => write!(f, "npipe:////./pipe/{name}"),
            Self::Inherited(word) => word.fmt(f),
        }
    }
}

impl fmt::Display for Inherited {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Only => write!(f, "fd://"),
            Self::Number(number) => write!(f, "fd://{number}"),
            Self::Name(name) => write!(f, "fd://{name}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(text: &str) -> Result<ListenAddress, String> {
        ListenAddress::parse(text.as_ref()).map_err(|error| format!("{error:#}"))
    }

    fn unix(path: &str, mode: u32, owner: Option<u32>, group: Option<u32>) -> ListenAddress {
        ListenAddress::Unix { path: path.into(), mode, owner, group }
    }

    #[cfg(unix)]
    #[test]
    fn urls_and_back() {
        let tcp = |host: &str, port| ListenAddress::Tcp { host: host.into(), port };
        for (url, source) in [
            ("unix:///run/x.sock", unix("/run/x.sock", 0o600, None, None)),
            ("unix:///run/x.sock?mode=0660", unix("/run/x.sock", 0o660, None, None)),
            ("unix:///run/x.sock?owner=1000&group=7", unix("/run/x.sock", 0o600, Some(1000), Some(7))),
            ("unix:///run/x?mode=0666&owner=0&group=0", unix("/run/x", 0o666, Some(0), Some(0))),
            ("unix:@a name", ListenAddress::Abstract(b"a name".to_vec())),
            ("tcp://:8080", tcp("", 8080)),
            ("tcp://127.0.0.1:0", tcp("127.0.0.1", 0)),
            ("tcp://[::1]:80", tcp("::1", 80)),
            ("tcp://localhost:1", tcp("localhost", 1)),
            ("vsock://:1024", ListenAddress::Vsock { cid: None, port: 1024 }),
            ("vsock://2:1024", ListenAddress::Vsock { cid: Some(2), port: 1024 }),
            ("fd://", ListenAddress::Inherited(Inherited::Only)),
            ("fd://3", ListenAddress::Inherited(Inherited::Number(3))),
            ("fd://podman.socket", ListenAddress::Inherited(Inherited::Name("podman.socket".into()))),
        ] {
            assert_eq!(parse(url).as_ref(), Ok(&source), "{url}");
            assert_eq!(source.to_string(), url);
        }
    }

    #[cfg(unix)]
    #[test]
    fn other_spellings() {
        for (text, source) in [
            ("/run/x.sock", unix("/run/x.sock", 0o600, None, None)),
            ("rel/x.sock", unix("rel/x.sock", 0o600, None, None)),
            ("/a?mode=0666", unix("/a?mode=0666", 0o600, None, None)),
            ("unix:/a", unix("unix:/a", 0o600, None, None)),
            ("unix:///a%20b?mode=640", unix("/a b", 0o640, None, None)),
            ("unix:///a?owner=root&group=root", unix("/a", 0o600, Some(0), Some(0))),
            ("UNIX:///a", unix("/a", 0o600, None, None)),
            ("@x", ListenAddress::Abstract(b"x".to_vec())),
            ("@x/y://z?a", ListenAddress::Abstract(b"x/y://z?a".to_vec())),
            ("unix://@x", ListenAddress::Abstract(b"x".to_vec())),
            ("unix:@a/%00b", ListenAddress::Abstract(b"a/\0b".to_vec())),
        ] {
            assert_eq!(parse(text), Ok(source), "{text}");
        }
        assert_eq!(parse("/a").unwrap().path(), Some(Path::new("/a")));
        assert_eq!(parse("@a").unwrap().path(), None);
    }

    #[cfg(unix)]
    #[test]
    fn what_is_refused() {
        for (text, why) in [
            ("unix://x", "must be absolute"),
            ("unix:///x?mode=0999", "invalid mode \"0999\": octal digits are wanted, at most 0777"),
            ("unix:///x?mode=01777", "invalid mode \"01777\""),
            ("unix:///x?mode=%2B600", "invalid mode \"+600\""),
            ("unix:///x?mode=", "invalid mode \"\""),
            ("unix:///x?mode=77777777777777", "invalid mode"),
            ("unix:///x?owner=no-such-user-here", "there is no user \"no-such-user-here\" here"),
            ("unix:///x?group=no-such-group-here", "there is no group \"no-such-group-here\" here"),
            ("unix:///x?owner=", "owner is empty: the name or the number of a user is wanted"),
            ("unix:///x?owner=4294967295", "there is no user"),
            ("unix:///x?Mode=0600", "unknown parameter \"Mode\": a unix URL takes mode, owner, group here"),
            ("unix:///x?mode=0600&mode=0660", "parameter mode is given twice"),
            ("unix:@x?mode=0600", "an abstract socket has no mode and no owner"),
            ("@", "an abstract socket needs a name behind the @"),
            ("unix:@", "an abstract socket needs a name behind the @"),
            ("unix:@a%zz", "invalid URL escape \"%zz\""),
            ("tcp://127.0.0.1", "missing port in address"),
            ("tcp://:65536", "invalid port \"65536\""),
            ("tcp://:1?mode=0600", "unknown parameter \"mode\": a tcp URL takes nothing here"),
            ("vsock://x:1", "invalid number \"x\""),
            ("fd://2", "the first descriptor that systemd passes is 3"),
            ("fd://a/b", "the name of a socket has no slash"),
            ("ftp://x", "URI scheme not supported: ftp; there are unix, tcp, vsock, fd, and a plain path"),
        ] {
            let error = parse(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
        let (fits, long) = ("x".repeat(107), "x".repeat(108));
        assert!(parse(&format!("@{fits}")).is_ok());
        let error = parse(&format!("@{long}")).unwrap_err();
        assert!(error.contains("the name is too long: 108 bytes, the limit is 107"), "{error}");
    }

    fn parse_url(url: &str) -> Result<ListenAddress, String> {
        ListenAddress::parse_url("listen", url.as_ref()).map_err(|error| format!("{error:#}"))
    }

    #[cfg(unix)]
    #[test]
    fn the_apis_urls_and_back() {
        let tcp = |host: &str, port| ListenAddress::Tcp { host: host.into(), port };
        for (url, endpoint) in [
            ("unix:///run/x.sock", ListenAddress::private("/run/x.sock".into())),
            ("tcp://:8080", tcp("", 8080)),
            ("tcp://127.0.0.1:0", tcp("127.0.0.1", 0)),
            ("tcp://[::1]:80", tcp("::1", 80)),
            ("tcp://localhost:1", tcp("localhost", 1)),
            ("vsock://:1024", ListenAddress::Vsock { cid: None, port: 1024 }),
            ("vsock://2:1024", ListenAddress::Vsock { cid: Some(2), port: 1024 }),
        ] {
            assert_eq!(parse_url(url).as_ref(), Ok(&endpoint));
            assert_eq!(endpoint.to_string(), url);
        }
        assert_eq!(parse_url("tcp://:8080/path"), Ok(tcp("", 8080)));
    }

    #[cfg(unix)]
    #[test]
    fn what_the_api_refuses() {
        for (url, why) in [
            ("/run/x.sock", "unexpected scheme"),
            ("unixpacket:///run/x", "unexpected scheme"),
            ("unix://x", "must be absolute"),
            ("tcp://127.0.0.1", "missing port in address"),
            ("tcp://::1:80", "invalid address"),
            ("tcp://:65536", "invalid port \"65536\""),
            ("tcp://:http", "invalid port \"http\""),
            ("tcp://@127.0.0.1:1", "invalid address"),
            ("tcp://user@127.0.0.1:1", "invalid address"),
            ("vsock://x:1", "invalid number \"x\""),
            ("vsock://2", "missing port in address"),
        ] {
            let error = parse_url(url).unwrap_err();
            assert!(error.starts_with("invalid value \"") && error.contains(why), "{url}: {error}");
        }
    }

    #[test]
    fn services_of_hyper_v() {
        let id = |text: &str| service(text).map_err(|error| error.to_string());
        assert_eq!(id("00000400-FACB-11E6-BD58-64006A7986D3"), Ok(1024));
        assert_eq!(id("ffffffff-facb-11e6-bd58-64006a7986d3"), Ok(u32::MAX));
        for wrong in ["", "1024", "00000400", "00000400-FACB-11E6-BD58-64006A7986D4", "é0000400-FACB"] {
            let why = format!("invalid service {}, want XXXXXXXX{SERVICE}", quote(wrong));
            assert_eq!(id(wrong), Err(why), "{wrong}");
        }
        assert!(service("0000040g-FACB-11E6-BD58-64006A7986D3").is_err());
    }

    #[test]
    fn names_of_pipes() {
        assert_eq!(pipe(b"podman machine").unwrap().to_string(), "npipe:////./pipe/podman machine");
        let longest = "x".repeat(PIPE_MAX);
        assert_eq!(pipe(longest.as_bytes()).unwrap(), ListenAddress::Pipe(longest.clone()));
        for (name, why) in [
            (&b""[..], "a pipe needs a name"),
            (b"a/b", "has no slash"),
            (br"a\b", "has no slash"),
            (b"\xff", "not UTF-8"),
            (format!("{longest}x").as_bytes(), "the limit is 247"),
        ] {
            let error = pipe(name).unwrap_err().to_string();
            assert!(error.contains(why), "{error}");
        }
    }
}
