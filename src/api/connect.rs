//! `/connect`: the connection becomes a virtual machine's link. There is no answer at all: frames follow in
//! both directions at once, those that came right behind the request among them. Read next:
//! `crate::engine::Handle::attach`.

use std::io;
use std::time::Duration;

use bytes::Bytes;
use tokio::io::AsyncReadExt as _;
use tokio::time::timeout;

use super::{Api, Peer};
use crate::hypervisor::{report, report_begin, report_refusal};
use crate::limit::Slot;
use crate::link::Framing;
use crate::sys::stream::Stream;

/// How long a client may take to show its framing. A guest's first frame follows its link at once.
const FRAMING_TIME: Duration = Duration::from_secs(10);

/// Makes the connection a link and waits for its end; that of the daemon ends it too. `slot` is its own
/// until it is a link.
pub(super) async fn run(api: &Api, slot: Slot<Peer>, mut stream: Stream, early: Bytes) {
    let mut early = Vec::from(early);
    slot.set_idle();
    let framing = tokio::select! {
        framing = framing(api.connect_framing, &mut stream, &mut early) => framing,
        () = slot.told_to_close() => return,
    };
    drop(slot);
    let attached = match framing.and_then(|framing| Ok((stream.into_std()?, framing))) {
        Ok((stream, framing)) => api.handle.attach_after(stream, framing, early).await,
        Err(error) => Err(error),
    };
    match attached {
        Ok(mut link) => {
            let port = link.port();
            report_begin(port);
            report(port, &link.ended().await);
        }
        Err(error) => report_refusal(&error),
    }
}

/// What the client speaks: `expected`, or where that is QEMU's and the client shows otherwise, HyperKit's, as
/// gvforwarder does. The first bytes tell: those of QEMU's length are zero, HyperKit's are a length. What was
/// read for it is added to `early`.
async fn framing(expected: Framing, stream: &mut Stream, early: &mut Vec<u8>) -> io::Result<Framing> {
    if expected != Framing::Qemu {
        return Ok(expected);
    }
    let first = async {
        while early.len() < 2 && stream.read_buf(early).await? > 0 {}
        Ok(if matches!(early[..], [0, 0, ..] | [] | [_]) { Framing::Qemu } else { Framing::Hyperkit })
    };
    timeout(FRAMING_TIME, first).await.unwrap_or(Ok(expected))
}
