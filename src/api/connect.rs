//! `/connect`: the connection becomes a virtual machine's link. There is no answer at all: frames follow in both directions at once,
//! those that came right behind the request among them. Read next: `crate::engine::Handle::attach`.

use std::io;
use std::os::fd::OwnedFd;
use std::sync::Arc;

use bytes::Bytes;
use tokio::sync::OwnedSemaphorePermit;

use super::listener::Stream;
use super::reply::Refusal;
use super::{Api, busy};

/// A connection that is to become a link.
pub(super) struct Attachment(OwnedSemaphorePermit);

impl Attachment {
    /// # Errors
    /// There are too many connections that were taken over.
    pub(super) fn new(api: &Api) -> Result<Self, Refusal> {
        Arc::clone(&api.taken_over).try_acquire_owned().map(Self).map_err(|_| busy())
    }

    /// Waits for the link's end; that of the daemon ends it too.
    pub(super) async fn run(self, api: &Api, stream: Stream, early: Bytes) {
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
        drop(self.0);
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
