//! What Linux and macOS do alike. Owns: what the face of `sys` says, as it is done there.

pub(super) mod event_log;
pub(super) mod files;
pub(super) mod icmp;
pub(super) mod memory;
pub(super) mod named_pipe;
pub(super) mod names;
pub(super) mod os_str;
pub(super) mod polled;
pub(super) mod process;
pub(super) mod signals;
pub(super) mod sockets;
pub(super) mod stdio;
pub(super) mod stream;
pub(super) mod users;
pub(super) mod watched;
