//! Where the HTTP API listens. Owns: what the URLs of `-listen` and `-services` mean. May not: listen.
//! Read next: `url.rs`; `../api/listener.rs`, which listens.

use std::ffi::OsStr;
use std::fmt;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::host_port::Shown;
use super::url::Url;
use crate::text::quote;

/// A place on the host for an HTTP server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Endpoint {
    /// A unix stream socket.
    Unix(PathBuf),
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
}

impl Endpoint {
    /// Reads the URL of flag `-flag`.
    ///
    /// # Errors
    /// It is no URL, or not of a place that can be listened on.
    pub fn parse(flag: &str, typed: &OsStr) -> Result<Self> {
        Self::of(typed).with_context(|| format!("invalid value {} for -{flag}", quote(typed.as_bytes())))
    }

    /// The file that it makes.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Unix(path) => Some(path),
            Self::Tcp { .. } | Self::Vsock { .. } => None,
        }
    }

    fn of(typed: &OsStr) -> Result<Self> {
        let url = Url::parse(typed)?;
        match url.scheme.as_str() {
            "unix" => Ok(Self::Unix(url.into_socket_path()?)),
            "tcp" => tcp(&url).map(|(host, port)| Self::Tcp { host, port }),
            "vsock" => vsock(&url).map(|(cid, port)| Self::Vsock { cid, port }),
            _ => bail!("unexpected scheme"),
        }
    }
}

impl fmt::Display for Endpoint {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp { host, port } => write!(f, "tcp://{}", Shown(host, *port)),
            Self::Vsock { cid: Some(cid), port } => write!(f, "vsock://{cid}:{port}"),
            Self::Vsock { cid: None, port } => write!(f, "vsock://:{port}"),
        }
    }
}

/// The host without brackets, and the port, of a `tcp://` URL.
pub(super) fn tcp(url: &Url) -> Result<(String, u16)> {
    let (host, port) = split_port(url.authority_text()?)?;
    let port = port.parse().with_context(|| format!("invalid port {}", quote(port)))?;
    Ok((host.to_owned(), port))
}

/// The context, if one is named, and the port, of a `vsock://` URL.
pub(super) fn vsock(url: &Url) -> Result<(Option<u32>, u32)> {
    let number = |text: &str| text.parse().with_context(|| format!("invalid number {}", quote(text)));
    let (cid, port) = split_port(url.authority_text()?)?;
    let cid = Some(cid).filter(|cid| !cid.is_empty()).map(number).transpose()?;
    Ok((cid, number(port)?))
}

/// `host:port` and `[host]:port`, without the brackets.
fn split_port(authority: &str) -> Result<(&str, &str)> {
    let Some((host, port)) = authority.rsplit_once(':') else { bail!("missing port in address") };
    let host = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')).unwrap_or(host);
    let bracketed = authority.starts_with('[');
    ensure!(!host.contains(['[', ']']) && host.contains(':') <= bracketed, "invalid address");
    Ok((host, port))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(url: &str) -> Result<Endpoint, String> {
        Endpoint::parse("listen", url.as_ref()).map_err(|error| format!("{error:#}"))
    }

    #[test]
    fn urls_and_back() {
        let tcp = |host: &str, port| Endpoint::Tcp { host: host.into(), port };
        for (url, endpoint) in [
            ("unix:///run/x.sock", Endpoint::Unix("/run/x.sock".into())),
            ("tcp://:8080", tcp("", 8080)),
            ("tcp://127.0.0.1:0", tcp("127.0.0.1", 0)),
            ("tcp://[::1]:80", tcp("::1", 80)),
            ("tcp://localhost:1", tcp("localhost", 1)),
            ("vsock://:1024", Endpoint::Vsock { cid: None, port: 1024 }),
            ("vsock://2:1024", Endpoint::Vsock { cid: Some(2), port: 1024 }),
        ] {
            assert_eq!(parse(url).as_ref(), Ok(&endpoint));
            assert_eq!(endpoint.to_string(), url);
        }
        assert_eq!(parse("tcp://:8080/path"), Ok(tcp("", 8080)));
    }

    #[test]
    fn what_is_refused() {
        for (url, why) in [
            ("/run/x.sock", "unexpected scheme"),
            ("unixpacket:///run/x", "unexpected scheme"),
            ("unix://x", "must be absolute"),
            ("tcp://127.0.0.1", "missing port in address"),
            ("tcp://::1:80", "invalid address"),
            ("tcp://:65536", "invalid port \"65536\""),
            ("tcp://:http", "invalid port \"http\""),
            ("vsock://x:1", "invalid number \"x\""),
            ("vsock://2", "missing port in address"),
        ] {
            let error = parse(url).unwrap_err();
            assert!(error.starts_with("invalid value \"") && error.contains(why), "{url}: {error}");
        }
    }
}
