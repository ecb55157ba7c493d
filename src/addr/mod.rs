//! Addresses as they are typed: where to listen, where to connect to.
//!
//! Owns: their types, and the one reading of each. May not: bind, connect, or know who asks. Read next:
//! `url.rs`, `listen.rs`, `dest.rs`.

mod dest;
mod hash;
mod host_port;
mod listen;
mod local;
mod mac;
mod remote;
mod secret;
mod unix;
mod url;

pub use dest::{Dest, SshDest};
pub(crate) use dest::{PORT_DIGITS, SSH_PORT, parse_port};
pub(crate) use hash::hash;
pub use host_port::HostPort;
pub(crate) use host_port::Shown;
pub use listen::{Inherited, ListenAddress};
pub(crate) use local::{Host, Local, split_host_port};
pub(crate) use mac::mac;
pub(crate) use remote::remote_address;
pub use secret::Secret;
pub(crate) use unix::ensure_guest_path;
pub use unix::{PATH_MAX, ensure_fits};
pub(crate) use url::{Url, unescape};
