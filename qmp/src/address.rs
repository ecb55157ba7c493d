//! Where a QMP server listens.
//!
//! Owns: [`Address`] and how it is written. Read next: `connect.rs`.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;

/// The socket of a QMP server, written `unix:///path` (or `unix:path`) and `tcp://host:port`.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Address {
    /// A stream socket in the file system.
    Unix(PathBuf),
    /// A host and port, `host:port` or `[v6]:port`; names are looked up with each connect.
    Tcp(String),
}

/// Text that is no [`Address`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum AddressError {
    /// Neither `unix:` nor `tcp:`.
    #[error("{0:?} begins with neither unix: nor tcp:")]
    Scheme(String),
    /// `unix:` without a path.
    #[error("{0:?} names no path")]
    NoPath(String),
    /// `tcp:` without a host or a port from 1 to 65535.
    #[error("{0:?} is not tcp://host:port")]
    HostPort(String),
}

impl FromStr for Address {
    type Err = AddressError;

    fn from_str(text: &str) -> Result<Self, AddressError> {
        if let Some(path) = text.strip_prefix("unix://").or_else(|| text.strip_prefix("unix:")) {
            if path.is_empty() {
                return Err(AddressError::NoPath(text.to_owned()));
            }
            return Ok(Self::Unix(path.into()));
        }
        let Some(target) = text.strip_prefix("tcp://").or_else(|| text.strip_prefix("tcp:")) else {
            return Err(AddressError::Scheme(text.to_owned()));
        };
        match target.rsplit_once(':') {
            Some((host, port)) if !host.is_empty() && port.parse::<u16>().is_ok_and(|port| port != 0) => {
                Ok(Self::Tcp(target.to_owned()))
            }
            _ => Err(AddressError::HostPort(text.to_owned())),
        }
    }
}

impl fmt::Display for Address {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Unix(path) => write!(f, "unix://{}", path.display()),
            Self::Tcp(target) => write!(f, "tcp://{target}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_and_read_back() {
        for (text, shown) in [
            ("unix:///run/qmp.sock", "unix:///run/qmp.sock"),
            ("unix:/run/qmp.sock", "unix:///run/qmp.sock"),
            ("unix:qmp.sock", "unix://qmp.sock"),
            ("tcp://127.0.0.1:4444", "tcp://127.0.0.1:4444"),
            ("tcp:[::1]:4444", "tcp://[::1]:4444"),
        ] {
            let address: Address = text.parse().unwrap();
            assert_eq!(address.to_string(), shown);
            assert_eq!(shown.parse::<Address>().unwrap(), address);
        }
    }

    #[test]
    fn what_is_wrong_is_named() {
        let error = |text: &str| text.parse::<Address>().unwrap_err();
        assert_eq!(error("/run/qmp.sock"), AddressError::Scheme("/run/qmp.sock".into()));
        assert_eq!(error("unix://"), AddressError::NoPath("unix://".into()));
        for text in ["tcp://", "tcp://host", "tcp://:1", "tcp://host:0", "tcp://host:65536"] {
            assert_eq!(error(text), AddressError::HostPort(text.into()));
        }
    }
}
