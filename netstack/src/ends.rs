//! The two ends of a flow, by which a packet's flow is found. Owns: how they are hashed. Read next:
//! `tcp/table.rs`, `udp/mod.rs`, the tables.

use core::hash::{Hash, Hasher};
use core::net::{SocketAddr, SocketAddrV4};

/// A flow's ends, each as the guest sees it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Ends {
    pub(crate) guest: SocketAddr,
    pub(crate) remote: SocketAddr,
}

impl Hash for Ends {
    /// IPv4's are two words; derived it would be ten writes.
    fn hash<H: Hasher>(&self, state: &mut H) {
        match (self.guest, self.remote) {
            (SocketAddr::V4(guest), SocketAddr::V4(remote)) => {
                state.write_u64(word(guest));
                state.write_u64(word(remote));
            }
            (guest, remote) => (guest, remote).hash(state),
        }
    }
}

fn word(end: SocketAddrV4) -> u64 {
    u64::from(u32::from(*end.ip())) << 16 | u64::from(end.port())
}
