//! VPNKit's handshake: HyperKit says who it is, and is told its MTU and hardware address. Owns: nothing. May
//! not: read a frame.
//! Read next: `mod.rs`.

use rustix::fd::{BorrowedFd, OwnedFd};
use rustix::net::{RecvFlags, SendFlags, recv, send};
use std::io;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, bail};
use netstack::Mac;
use socket2::Socket;
use tokio::io::Interest;
use tokio::time::timeout;

use super::{Terms, follow, report_begin};
use crate::engine::Handle;
use crate::limit::Slot;
use crate::link::Framing;
use crate::logging::Limited;
use crate::sys::watched::Watched;

/// Bytes of the greeting, `VMN3T`, a version and a commit, which is answered with itself.
const GREETING: usize = 49;
/// Bytes of the command: its number, a UUID as text, an address that nobody reads.
const COMMAND: usize = 41;
/// Where in it the UUID is.
const UUID: std::ops::Range<usize> = 1..37;
/// Bytes of the answer to that.
const ANSWER: usize = 258;
/// How long a client may take for all of it.
const PATIENCE: Duration = Duration::from_secs(10);
/// Bytes of an Ethernet header.
const ETHERNET: u16 = 14;
/// Refusals in the log.
static REFUSED: Limited = Limited::new(10, Duration::from_secs(60));

/// Serves one client to its end, or until its `slot` is wanted before it has greeted.
pub(super) async fn serve(stream: Socket, slot: Slot<()>, engine: Handle, terms: Arc<Terms>) {
    let attached = match slot.hold(timeout(PATIENCE, greet(stream, &slot, &terms))).await {
        Some(Ok(Ok(stream))) => {
            slot.set_busy();
            engine.attach(stream, Framing::Hyperkit).await.context("cannot attach")
        }
        Some(Ok(Err(error))) => Err(error),
        Some(Err(_)) => Err(anyhow!("no handshake within {PATIENCE:?}")),
        None => Err(anyhow!("no handshake, and others wait")),
    };
    match attached {
        Ok(attachment) => {
            report_begin(attachment.port());
            follow(attachment).await;
        }
        Err(error) => {
            if let Some(suppressed) = REFUSED.admit(Instant::now()) {
                tracing::warn!(error = %format_args!("{error:#}"), suppressed, "VPNKit client refused");
            }
        }
    }
}

async fn greet(stream: Socket, slot: &Slot<()>, terms: &Terms) -> Result<OwnedFd> {
    stream.set_nonblocking(true)?;
    let stream = Watched::new(stream.into(), Interest::READABLE | Interest::WRITABLE)?;
    let mut greeting = [0; GREETING];
    read_exact(&stream, &mut greeting, slot).await.context("cannot read VPNKit's greeting")?;
    write_all(&stream, &greeting).await.context("cannot answer VPNKit's greeting")?;
    let mut command = [0; COMMAND];
    read_exact(&stream, &mut command, slot).await.context("cannot read VPNKit's command")?;
    let uuid = command.get(UUID).unwrap_or_default();
    let known = terms.vpnkit_macs.iter().find(|(known, _)| known.as_bytes() == uuid);
    let mac = match known {
        Some((_, mac)) => *mac,
        None => random_mac()?,
    };
    write_all(&stream, &answer(terms.mtu, mac)).await.context("cannot answer VPNKit's command")?;
    Ok(stream.into_inner()?)
}

fn answer(mtu: u16, mac: Mac) -> [u8; ANSWER] {
    let mut answer = [0; ANSWER];
    let fields = [1]
        .into_iter()
        .chain(mtu.to_le_bytes())
        .chain(mtu.saturating_add(ETHERNET).to_le_bytes())
        .chain(mac.0);
    for (byte, field) in answer.iter_mut().zip(fields) {
        *byte = field;
    }
    answer
}

/// A locally administered address of one machine.
fn random_mac() -> Result<Mac> {
    let [first, rest @ ..] = crate::sys::random_seed().context("cannot get randomness")?.to_ne_bytes();
    let [a, b, c, d, e, ..] = rest;
    Ok(Mac([(first | 2) & !1, a, b, c, d, e]))
}

/// Fills the buffer. Each part that comes keeps the client's `slot` before those of clients that say
/// nothing.
async fn read_exact(stream: &Watched, mut buffer: &mut [u8], slot: &Slot<()>) -> Result<()> {
    while !buffer.is_empty() {
        let read = |stream: BorrowedFd<'_>| Ok(recv(stream, &mut *buffer, RecvFlags::empty())?.1);
        let read = stream.async_io(Interest::READABLE, read).await?;
        if read == 0 {
            bail!("the client left");
        }
        slot.set_receiving();
        buffer = buffer.split_at_mut_checked(read).unwrap_or_default().1;
    }
    Ok(())
}

async fn write_all(stream: &Watched, mut bytes: &[u8]) -> io::Result<()> {
    while !bytes.is_empty() {
        let write = |stream: BorrowedFd<'_>| Ok(send(stream, bytes, SendFlags::empty())?);
        let written = stream.async_io(Interest::WRITABLE, write).await?;
        bytes = bytes.get(written..).unwrap_or_default();
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_answer_is_the_originals() {
        let answer = answer(1500, Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]));
        let start = [1, 0xdc, 0x05, 0xea, 0x05, 0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee, 0];
        assert_eq!(answer[..12], start);
        assert!(answer[12..].iter().all(|byte| *byte == 0));
    }

    #[test]
    fn an_invented_address_is_one_machines_and_local() {
        for _ in 0..100 {
            assert_eq!(random_mac().unwrap().0[0] & 3, 2);
        }
    }
}
