//! One client's stream through an SSH connection.
//! Owns: the copying between a host socket and a channel. May not: reconnect; a channel dies with its
//! connection.

use rustix::fd::AsFd as _;
use std::future::Future;
use std::io::{self, IoSlice};
use std::mem;
use std::pin::pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::task::{Context, Poll, Waker};
use std::time::Duration;

use bytes::{Buf as _, Bytes};
use russh::client::Msg;
use russh::{ChannelMsg, ChannelReadHalf, ChannelWriteHalf};
use rustix::net::{Shutdown, shutdown};
use socket2::SockRef;
use tokio::io::Interest;
use tokio::time::{sleep, timeout};

use super::backlog::Share;
use super::chunk::Chunks;
use super::lagging::Laggards;
use super::tunnel::Lease;
use crate::relay::{PATIENCE, VSOCK_LOOK, settle};
use crate::sys::stream::{Stream, look_for_end};
use crate::sys::{is_vsock, unsent, vsock_hung_up};

/// How long it may take to close a channel whose both ways have ended.
const CLOSE_TIME: Duration = Duration::from_secs(5);
/// How often it is looked whether a client that lags has taken something: its socket tells only when it has
/// taken much.
const LAG_LOOK: Duration = Duration::from_secs(1);
/// Packets written to the client at once.
const BATCH: usize = 16;

/// An open channel to a unix socket in the guest.
#[derive(Debug)]
pub struct Channel {
    channel: russh::Channel<Msg>,
    share: Share,
    lease: Lease,
}

impl Channel {
    pub(super) fn new((channel, share): (russh::Channel<Msg>, Share), lease: Lease) -> Self {
        Self { channel, share, lease }
    }

    /// Closes a channel that nobody came to use.
    pub(super) async fn close(self) {
        let Self { channel, share, lease } = self;
        let (from_guest, to_guest) = channel.split();
        abort(from_guest, share, &to_guest, &lease).await;
    }

    /// Carries bytes and half-close both ways until both sides are done or one of them fails.
    ///
    /// # Errors
    /// The client's socket failed; the channel is closed then, as it is at any other end.
    pub async fn relay(self, client: Stream) -> io::Result<()> {
        let Self { channel, share, lease } = self;
        let (mut from_guest, to_guest) = channel.split();

        // What the client has still to say is for the guest, also when it takes nothing any more.
        let (sending, lost) = (AtomicBool::new(true), AtomicBool::new(false));
        // Everything that the guest had to say is written, and its close is to come.
        let ended = AtomicBool::new(false);
        let sent = AtomicUsize::new(0);
        let result = {
            let mut up = pin!(client_to_guest(&client, &to_guest, &share, &lease.connection().chunks, &sent));
            let mut down = pin!(async {
                let laggards = &lease.connection().laggards;
                let end = guest_to_client(&mut from_guest, &client, &ended, &share, laggards).await;
                if end.is_err() && sending.load(Ordering::Relaxed) {
                    lost.store(true, Ordering::Relaxed);
                    closed(&mut from_guest, Some(&share)).await;
                }
                end
            });
            let mut alive = pin!(lease.connection().keep_alive());
            let mut leaves = pin!(hung_up(&client));
            let (mut left, mut stands_still) = (false, pin!(stands_still(&sending, &sent)));
            loop {
                tokio::select! {
                    result = &mut down => match result {
                        // By now everything that the guest had to say is written to the client.
                        Ok(()) => break None,
                        Err(error) => break Some(Err(error)),
                    },
                    result = &mut up, if sending.load(Ordering::Relaxed) => match result {
                        Ok(()) if left || lost.load(Ordering::Relaxed) => break Some(Ok(())),
                        Ok(()) => sending.store(false, Ordering::Relaxed),
                        Err(error) => break Some(Err(error)),
                    },
                    () = &mut leaves, if !left => {
                        left = true;
                        if !sending.load(Ordering::Relaxed) && !ended.load(Ordering::Relaxed) {
                            break Some(Ok(()));
                        }
                    },
                    () = &mut stands_still, if left => break Some(Ok(())),
                    () = share.given_up() => break Some(Err(io::ErrorKind::TimedOut.into())),
                    () = &mut alive => return Ok(()),
                }
            }
        };
        let Some(result) = result else {
            settle(client.as_fd()).await;
            return Ok(());
        };
        abort(from_guest, share, &to_guest, &lease).await;
        result
    }
}

/// Closes the channel before the guest does.
async fn abort(
    mut from_guest: ChannelReadHalf,
    share: Share,
    to_guest: &ChannelWriteHalf<Msg>,
    lease: &Lease,
) {
    // Nobody has what still comes, which is read in vain; and who is gone waits for nothing.
    drop(share);
    let closing = lease.connection().note_abort();
    // Its sshd may have something for a service that hangs, which would be lost with the connection. Nobody
    // reads what the guest still sends, and the connection does not wait for that.
    tokio::spawn(async move {
        let _ = timeout(PATIENCE, closed(&mut from_guest, None)).await;
        drop(closing);
    });
    // Fails only when the connection has ended, and the channel with it.
    let _ = to_guest.close().await;
}

/// The bytes that a message counts.
fn length(message: &ChannelMsg) -> usize {
    match message {
        ChannelMsg::Data { data } | ChannelMsg::ExtendedData { data, .. } => data.len(),
        ChannelMsg::ExitSignal { error_message, lang_tag, .. } => error_message.len() + lang_tag.len(),
        _ => 0,
    }
}

/// Reads in vain until the guest closes the channel; what comes is taken from `share` where it still counts.
async fn closed(from_guest: &mut ChannelReadHalf, share: Option<&Share>) {
    loop {
        match from_guest.wait().await {
            Some(ChannelMsg::Close) | None => return,
            Some(message) => share.iter().for_each(|share| share.took(1, length(&message))),
        }
    }
}

/// Waits until the client has closed both ways, or one of them where the other was closed here.
async fn hung_up(client: &Stream) {
    let is_vsock = is_vsock(client.as_fd());
    loop {
        let look = look_for_end(client);
        let has_ended = match is_vsock {
            // Of that comes no event where the buffers are full.
            true => timeout(VSOCK_LOOK, look).await.unwrap_or(false),
            false => look.await,
        };
        if has_ended || is_vsock && vsock_hung_up(client.as_fd()) {
            return;
        }
    }
}

/// Waits until the guest has taken nothing for long; or for its close where it has everything.
async fn stands_still(sending: &AtomicBool, sent: &AtomicUsize) {
    loop {
        let before = sent.load(Ordering::Relaxed);
        sleep(if sending.load(Ordering::Relaxed) { PATIENCE } else { CLOSE_TIME }).await;
        if sent.load(Ordering::Relaxed) == before {
            return;
        }
    }
}

/// Carries what the client sends, and the end of that.
async fn client_to_guest(
    client: &Stream,
    guest: &ChannelWriteHalf<Msg>,
    share: &Share,
    chunks: &Chunks,
    sent: &AtomicUsize,
) -> io::Result<()> {
    let mut has_asked = false;
    loop {
        // The buffer is taken when there is something for it: an idle client holds none.
        client.ready(Interest::READABLE).await?;
        let mut chunk = chunks.take();
        match client.try_read_buf(&mut chunk.bytes) {
            Ok(1..) => {}
            Ok(0) => {
                let _ = guest.eof().await;
                return Ok(());
            }
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => continue,
            Err(error) => return Err(error),
        }
        if !mem::replace(&mut has_asked, true) {
            share.asked();
        }
        // Waits for the guest's window. It fails when the connection has ended, which the other direction
        // reports.
        if guest.data_bytes(Bytes::from_owner(chunk)).await.is_err() {
            return Ok(());
        }
        sent.fetch_add(1, Ordering::Relaxed);
    }
}

async fn guest_to_client(
    guest: &mut ChannelReadHalf,
    client: &Stream,
    ended: &AtomicBool,
    share: &Share,
    laggards: &Laggards,
) -> io::Result<()> {
    let mut batch = Batch { packets: Vec::new(), bytes: 0, share };
    loop {
        let mut end = None;
        let mut next = guest.wait().await;
        loop {
            match next {
                Some(ChannelMsg::Data { data }) => batch.push(data),
                Some(ChannelMsg::Eof) => end = Some(End::Eof),
                Some(ChannelMsg::Close) | None => end = Some(End::Close),
                // A unix socket has no second stream, no exit status, and its window is russh's business.
                Some(message) => share.took(1, length(&message)),
            }
            if end.is_some() || batch.packets.len() >= BATCH {
                break;
            }
            next = match try_wait(guest) {
                Poll::Ready(message) => message,
                Poll::Pending => break,
            };
        }
        write_all(client, &mut batch.packets, share, laggards).await?;
        batch.clear();
        match end {
            None => {}
            // One that is gone needs no telling; what it sent before is read.
            Some(End::Eof) => {
                ended.store(true, Ordering::Relaxed);
                let _ = shutdown(client, Shutdown::Write);
            }
            Some(End::Close) => return Ok(()),
        }
    }
}

enum End {
    Eof,
    Close,
}

/// The next message if it is there.
fn try_wait(guest: &mut ChannelReadHalf) -> Poll<Option<ChannelMsg>> {
    pin!(guest.wait()).poll(&mut Context::from_waker(Waker::noop()))
}

/// Packets on their way to the client; they count until it has them, or it is given up.
struct Batch<'a> {
    packets: Vec<Bytes>,
    bytes: usize,
    share: &'a Share,
}

impl Batch<'_> {
    fn push(&mut self, data: Bytes) {
        self.bytes += data.len();
        self.packets.push(data);
    }

    fn clear(&mut self) {
        if !self.packets.is_empty() {
            self.share.took(self.packets.len(), mem::take(&mut self.bytes));
            self.packets.clear();
        }
    }
}

impl Drop for Batch<'_> {
    fn drop(&mut self) {
        self.clear();
    }
}

/// Writes `batch`; counts the client as lagging for as long as it does not take what there is.
async fn write_all(
    client: &Stream,
    batch: &mut [Bytes],
    share: &Share,
    laggards: &Laggards,
) -> io::Result<()> {
    let mut first = 0;
    let (mut lag, mut has_written) = (None, false);
    while first < batch.len() {
        let slices: Vec<IoSlice<'_>> = batch[first..].iter().map(|data| IoSlice::new(data)).collect();
        let write = || SockRef::from(client).send_vectored(&slices);
        let written = match write() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => {
                if lag.is_none() {
                    if !has_written {
                        share.socket_is_full();
                    }
                    lag = Some(laggards.one());
                }
                let left = unsent(client.as_fd());
                let Ok(written) = timeout(LAG_LOOK, client.async_io(Interest::WRITABLE, write)).await else {
                    if unsent(client.as_fd()) < left {
                        share.took(0, 0);
                    }
                    continue;
                };
                written
            }
            written => written,
        };
        match written {
            Ok(mut written) => {
                has_written = true;
                if lag.is_some() {
                    // Slow is not still.
                    share.took(0, 0);
                }
                while let Some(data) = batch.get_mut(first).filter(|data| data.len() <= written) {
                    written -= data.len();
                    data.clear();
                    first += 1;
                }
                if let Some(data) = batch.get_mut(first) {
                    data.advance(written);
                }
            }
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) => return Err(error),
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::io::Read as _;

    use tokio::time::Instant;

    use super::*;
    use crate::ssh::backlog::{Backlog, MAX_BACKLOG};
    use crate::sys::stream::blocking_pair;

    const PACKET: usize = 32 << 10;

    /// Its socket has room only when most of its buffer is read, which takes longer than others wait for one
    /// that takes nothing.
    #[cfg(unix)]
    #[tokio::test(start_paused = true)]
    async fn one_that_reads_slowly_is_not_given_up() {
        let (near, mut far) = blocking_pair();
        near.set_nonblocking(true).unwrap();
        let (near, backlog, laggards) =
            (Stream::from_std(near).unwrap(), Backlog::large(), Laggards::default());
        backlog.enter(1);
        let share = backlog.share(1);
        let packets = MAX_BACKLOG / PACKET;
        let mut batch = vec![Bytes::from(vec![0; PACKET]); packets];
        let fill = async {
            for _ in 0..=packets {
                backlog.add(1, PACKET).await;
            }
        };
        let start = Instant::now();
        let read = async {
            while start.elapsed() < Duration::from_secs(40) {
                sleep(Duration::from_secs(1)).await;
                far.read_exact(&mut [0; 10 << 10]).unwrap();
            }
        };
        let _waiting = backlog.waiting();
        tokio::select! {
            () = fill => panic!("there is no room"),
            written = write_all(&near, &mut batch, &share, &laggards) => panic!("written: {written:?}"),
            () = share.given_up() => panic!("given up after {:?}", start.elapsed()),
            () = read => {}
        }
    }
}
