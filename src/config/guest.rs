//! What guests may do. Owns: nothing. May not: judge. Read next: `../forward/policy.rs`,
//! `../engine/connecting.rs`.

use std::net::IpAddr;
use std::time::Duration;

/// What guests may listen on at the host. By default whatever the system lets the daemon have: `podman run -p
/// 80:80` is usual where the system gives port 80 to everybody, as macOS does.
#[derive(Clone, Debug, Default, Eq, PartialEq)]
pub struct GuestPolicy {
    /// The lowest port.
    pub lowest_port: u16,
    /// The addresses; empty stands for all.
    pub addresses: Vec<IpAddr>,
    /// Whether unix sockets too, at any path and with any key file that the daemon can read.
    pub all_protocols: bool,
}

/// How many connects of guests to the host may be under way, and for how long; no limit where there is
/// nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct ConnectLimits {
    /// How many may be under way. A guest's SYN beyond is not answered: it comes again.
    pub max: Option<usize>,
    /// How long one may take; then it is refused.
    pub timeout: Option<Duration>,
}
