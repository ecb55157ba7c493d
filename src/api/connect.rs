//! `/connect`: the connection becomes a virtual machine's link. There is no answer at all: frames follow in both directions at once,
//! those that came right behind the request among them. Read next: `crate::engine::Handle::attach`.

use std::io;
use std::os::fd::OwnedFd;

use bytes::Bytes;

use super::Api;
use super::listener::Stream;

/// Makes the connection a link and waits for its end; that of the daemon ends it too.
pub(super) async fn run(api: &Api, stream: Stream, early: Bytes) {
    let attached = match stream.into_fd() {
        Ok(stream) => api.handle.attach_after(stream, api.connect_framing, early.into()).await,
        Err(error) => Err(error),
    };
    match attached {
        Ok(mut link) => {
            tracing::info!(port = %link.port(), "virtual machine connected");
            match link.ended().await {
                Ok(()) => tracing::info!(port = %link.port(), "virtual machine left"),
                Err(error) => {
                    tracing::warn!(port = %link.port(), error = %format_args!("{error:#}"), "virtual machine lost")
                }
            }
        }
        Err(error) => tracing::warn!(%error, "cannot attach a virtual machine"),
    }
}

impl Stream {
    /// The descriptor, which the runtime forgets.
    pub(super) fn into_fd(self) -> io::Result<OwnedFd> {
        match self {
            Self::Unix(stream) => Ok(stream.into_std()?.into()),
            Self::Tcp(stream) => Ok(stream.into_std()?.into()),
            Self::Vsock(stream) => Ok(stream.into()),
        }
    }
}
