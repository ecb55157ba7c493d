//! Files of /etc. Owns: nothing.

use std::io;
use std::path::PathBuf;

#[expect(clippy::unnecessary_wraps, reason = "the face of the one that has none")]
pub(crate) fn resolv_conf() -> Option<PathBuf> {
    Some("/etc/resolv.conf".into())
}

pub(crate) fn resolvers() -> io::Result<String> {
    Err(io::ErrorKind::Unsupported.into())
}

pub(crate) fn hosts() -> PathBuf {
    "/etc/hosts".into()
}
