//! How the control plane reaches a service inside the virtual network.
//! Owns: the trait between the two. May not: know the engine, or who dials. Read next: `ssh`, its main user.

use std::future::Future;
use std::io;
use std::net::SocketAddrV4;
use std::time::Duration;

use tokio::net::UnixStream;

/// Opens TCP streams into the virtual network.
pub trait Dial: Send + Sync + 'static {
    /// Connects to `remote` within `limit`; the stream carries half-close both ways.
    ///
    /// # Errors
    /// What the peer or the network answered: refused, unreachable, or timed out.
    fn dial(
        &self,
        remote: SocketAddrV4,
        limit: Duration,
    ) -> impl Future<Output = io::Result<UnixStream>> + Send;
}
