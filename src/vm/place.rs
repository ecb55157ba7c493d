//! Where the socket is that a machine's link is to connect to. Owns: the choice of its path. May not: make
//! it.
//!
//! The path depends on the QMP socket alone, so that the next daemon finds what this one left behind.

use std::ffi::OsString;
use std::path::{Path, PathBuf};

use anyhow::{Result, ensure};

use crate::addr::{PATH_MAX, hash};
use crate::sys::files::may_make_in;

/// Behind the name of the QMP socket.
const SUFFIX: &str = ".gvproxy";

/// Beside the QMP socket; in the runtime directory where that cannot be, or where the QMP socket is no file.
pub(super) fn of_link(qmp: &qmp::Address) -> Result<PathBuf> {
    if let qmp::Address::Unix(path) = qmp {
        let mut name = OsString::from(path);
        name.push(SUFFIX);
        if name.len() <= PATH_MAX && path.parent().is_some_and(is_writable) {
            return Ok(name.into());
        }
    }
    let runtime = std::env::var_os("XDG_RUNTIME_DIR").map(PathBuf::from);
    let runtime = runtime.filter(|directory| directory.is_absolute() && is_writable(directory));
    let directory = runtime.unwrap_or_else(std::env::temp_dir);
    let path = directory.join(format!("gvproxy-{:08x}.sock", hash(&qmp.to_string())));
    ensure!(path.is_absolute(), "the directory of temporary files is no absolute path");
    Ok(path)
}

fn is_writable(directory: &Path) -> bool {
    may_make_in(directory).is_ok()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn beside_the_qmp_socket_where_that_can_be() {
        let dir = tempfile::tempdir().unwrap();
        let qmp = |path: &Path| qmp::Address::Unix(path.into());
        let beside = of_link(&qmp(&dir.path().join("q"))).unwrap();
        assert_eq!(beside, dir.path().join("q.gvproxy"));
        let tcp = qmp::Address::Tcp("127.0.0.1:4444".into());
        let elsewhere = [qmp(Path::new("/none/q")), qmp(&dir.path().join("x".repeat(90))), tcp];
        for address in elsewhere {
            let path = of_link(&address).unwrap();
            let name = path.file_name().unwrap().to_string_lossy().into_owned();
            assert!(name.starts_with("gvproxy-") && name.ends_with(".sock"), "{address}: {path:?}");
            assert_eq!(of_link(&address).unwrap(), path);
        }
    }
}
