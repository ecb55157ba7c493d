//! Paths of unix sockets. Owns: the rules of what one may be. May not: look at the file system.

use std::path::Path;

use anyhow::{Result, ensure};

use crate::text::quote;

/// Longest path of a socket in bytes: Linux's `sun_path` is 108 with the final zero (unix(7)).
pub const PATH_MAX: usize = 107;

/// Whether a guest's socket may have this path, absolute or not: it fits an address, and a line of the
/// agent's protocol.
///
/// # Errors
/// What is wrong with it.
pub(crate) fn ensure_guest_path(path: &[u8]) -> Result<(), String> {
    if path.len() > PATH_MAX {
        return Err(format!("longer than {PATH_MAX} bytes"));
    }
    if String::from_utf8_lossy(path).contains(char::is_control) {
        return Err("not a plain path".into());
    }
    Ok(())
}

/// Whether a socket may be at `path` at all.
///
/// # Errors
/// It is empty, or too long.
pub fn ensure_fits(path: &Path) -> Result<()> {
    let len = path.as_os_str().len();
    ensure!(len > 0, "the path of a unix socket is empty");
    ensure!(
        len <= PATH_MAX,
        "unix socket path {} is too long: {len} bytes, the limit is {PATH_MAX}",
        quote(path.as_os_str().as_encoded_bytes())
    );
    Ok(())
}
