//! DNS over TCP with the guest (RFC 7766): two bytes of length, then the message, both ways.
//! Owns: one connection, its time limits and how much of it is on its way. May not: answer; the caller's
//! `resolve` does.

use std::hash::Hash;
use std::io;
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::task::JoinSet;
use tokio::time::{Instant, sleep_until, timeout};

use crate::limit::Slot;

/// How long the first query may take to arrive. The original's 2 s are less than two retransmissions.
const FIRST_TIME: Duration = Duration::from_secs(10);
/// How long a connection without a question on its way stays open.
const IDLE_TIME: Duration = Duration::from_secs(8);
/// How long the client may take to read one answer.
const WRITE_TIME: Duration = Duration::from_secs(10);
/// Queries of one connection.
const MAX_QUERIES: usize = 128;
/// Queries of one connection that are on their way at a time; more are left in the socket.
const MAX_PIPELINED: usize = 32;

/// Answers the queries of one connection until the client is done (its half-close waits for the answers), is
/// silent for too long, has asked 128 times, or breaks the connection, or until its slot is wanted: between
/// questions it is idle. Answers go out in the order in which they come, not in that of the queries (RFC 7766
/// section 6.2.1.1); a message that `resolve` gives `None` for has none. Each query waits for its `turn`,
/// which knows its length, and has what that gives until its answer is written.
pub async fn serve_stream<S, T, R, F, K>(mut stream: S, slot: Slot<K>, turn: impl Fn(usize) -> T, resolve: R)
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: Future<Output: Send + 'static>,
    R: Fn(Vec<u8>) -> F,
    F: Future<Output = Option<Vec<u8>>> + Send + 'static,
    K: Copy + Eq + Hash,
{
    if let Err(error) = serve(&mut stream, &slot, turn, resolve).await {
        tracing::debug!(%error, "DNS connection ended");
    }
}

async fn serve<S, T, R, F, K>(
    stream: &mut S,
    slot: &Slot<K>,
    turn: impl Fn(usize) -> T,
    resolve: R,
) -> io::Result<()>
where
    S: AsyncRead + AsyncWrite + Unpin,
    T: Future<Output: Send + 'static>,
    R: Fn(Vec<u8>) -> F,
    F: Future<Output = Option<Vec<u8>>> + Send + 'static,
    K: Copy + Eq + Hash,
{
    let mut received = Vec::new();
    // The query whose turn it is not yet.
    let mut next = None;
    let mut pending = JoinSet::new();
    let mut queries = 0;
    let mut deadline = Instant::now() + FIRST_TIME;
    let mut client_done = false;
    loop {
        let has_room = pending.len() < MAX_PIPELINED && queries < MAX_QUERIES;
        if next.is_none()
            && has_room
            && let Some(message) = take_message(&mut received)
        {
            queries += 1;
            deadline = Instant::now() + IDLE_TIME;
            slot.set_busy();
            next = Some((Box::pin(turn(message.len())), message));
        }
        let listening = !client_done && has_room && next.is_none();
        let is_idle = pending.is_empty() && next.is_none();
        if !listening && is_idle {
            return stream.shutdown().await;
        }
        let is_its_turn = async {
            match &mut next {
                Some((turn, _)) => turn.await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            given = is_its_turn => if let Some((_, message)) = next.take() {
                let answer = resolve(message);
                pending.spawn(async move { (answer.await, given) });
            },
            read = stream.read_buf(&mut received), if listening => {
                client_done = read? == 0;
                if is_idle {
                    slot.set_receiving();
                }
            }
            Some(answer) = pending.join_next() => {
                if let Ok((Some(answer), _given)) = answer {
                    let len = u16::try_from(answer.len()).map_err(io::Error::other)?;
                    let framed = [&len.to_be_bytes(), answer.as_slice()].concat();
                    timeout(WRITE_TIME, stream.write_all(&framed)).await??;
                }
                deadline = Instant::now() + IDLE_TIME;
                if pending.is_empty() && next.is_none() {
                    slot.set_idle();
                }
            }
            () = slot.told_to_close() => return stream.shutdown().await,
            () = sleep_until(deadline), if is_idle => return stream.shutdown().await,
        }
    }
}

/// The first whole message of what was received.
fn take_message(received: &mut Vec<u8>) -> Option<Vec<u8>> {
    let (len, rest) = received.split_first_chunk()?;
    let message = rest.get(..u16::from_be_bytes(*len).into())?.to_vec();
    received.drain(..len.len() + message.len());
    Some(message)
}

#[cfg(test)]
mod tests;
