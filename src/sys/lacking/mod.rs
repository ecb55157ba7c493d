//! What a system does that has nothing of its own for it: macOS and Windows. Owns: what the face of `sys`
//! says, as it is done there.

pub(super) mod follow;
pub(super) mod interfaces;
pub(super) mod owner;
pub(super) mod pipe;
pub(super) mod udp;
