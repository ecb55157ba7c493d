//! What Linux and macOS do alike. Owns: what the face of `sys` says, as it is done there.

pub(super) mod stream;
pub(super) mod watched;
