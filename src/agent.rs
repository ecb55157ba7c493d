//! What the host and the guest's agent have in common: one line with the path of a socket, one line as the answer, then raw bytes.
//! Owns: nothing. Read next: `guest/agent.rs`, which serves; `engine/lead.rs`, which asks.

/// Where the agent listens, for TCP and on vsock: a port that only a privileged program may have, so that no other program of the guest
/// can be taken for it.
pub const PORT: u16 = 846;
