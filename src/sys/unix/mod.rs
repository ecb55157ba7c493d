//! What Linux and macOS do alike. Owns: what the face of `sys` says, as it is done there.

pub(super) mod files;
pub(super) mod os_str;
pub(super) mod polled;
pub(super) mod signals;
pub(super) mod stdio;
pub(super) mod stream;
pub(super) mod users;
pub(super) mod watched;
