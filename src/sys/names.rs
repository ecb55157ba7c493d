//! What the host knows of names: its resolvers, and its file of hosts. Owns: nothing. May not: ask a
//! resolver. Read next: `../host/dns/mod.rs`.

use std::io;
use std::path::PathBuf;

use super::os;

/// Where the resolvers stand, as resolv.conf(5) has it; `None` where they stand in no file.
pub fn resolv_conf() -> Option<PathBuf> {
    os::names::resolv_conf()
}

/// The resolvers in the words of resolv.conf(5), where they stand in no file. The system may take its time.
///
/// # Errors
/// The system does not tell.
pub fn resolvers() -> io::Result<String> {
    os::names::resolvers()
}

/// The file of hosts, as hosts(5) has it.
pub fn hosts() -> PathBuf {
    os::names::hosts()
}
