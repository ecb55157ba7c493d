//! One connection: its requests by hyper, until one of them takes the stream over.
//! Owns: the time and the bytes that a connection may take. May not: know endpoints. Read next: `mod.rs`.
//!
//! An endpoint that takes over answers hyper with an error. hyper then ends the connection without a byte of
//! its own and gives the stream back, with what was read beyond the request: there is one reader of requests,
//! so that no two can differ about one.

use std::fmt;
use std::future::poll_fn;
use std::io;
use std::pin::{Pin, pin};
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll, ready};
use std::time::Duration;

use hyper::Request;
use hyper::body::{Body as _, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _, ReadBuf};
use tokio::time::{Instant, sleep_until, timeout};

use super::{Answer, Api, Client, TakeOver};
use crate::budget::Part;
use crate::relay::discard;
use crate::sys::stream::Stream;

/// Bytes of a request's head, and of what is read with it.
pub(super) const MAX_HEAD: usize = 64 << 10;
/// Lines of a request's head.
const MAX_HEADERS: usize = 100;
/// How long a head may take to arrive, and how long a connection without a request stays open.
const HEAD_TIME: Duration = Duration::from_secs(10);
/// How long after its request an answer may take to be made and read.
const ANSWER_TIME: Duration = Duration::from_secs(60);
/// How long what is in progress may go on when the connection has to make room for another.
const CLOSE_TIME: Duration = Duration::from_secs(2);
/// How long, and for how many bytes, to listen to a client that still sends: it would not see the answer if
/// the stream were closed.
const LINGER: Duration = Duration::from_millis(500);
const LINGER_BYTES: u64 = 1 << 20;

/// Serves `client`'s requests to their end, or until its slot is wanted for another.
pub(super) async fn serve(api: Arc<Api>, stream: Stream, client: Client) {
    let last_request = Mutex::new(Instant::now());
    let taken_over: Mutex<Option<TakeOver>> = Mutex::default();
    let service = service_fn(|request: Request<Incoming>| {
        *lock(&last_request) = Instant::now();
        let (api, client, taken_over) = (&api, &client, &taken_over);
        Box::pin(async move {
            tracing::debug!(method = %request.method(), path = request.uri().path(), scope = ?client.scope, "request");
            match request.body().is_end_stream() {
                true => client.slot.set_busy(),
                false => client.slot.set_receiving(),
            }
            match api.answer(client, request).await {
                Answer::Reply(reply) => {
                    client.slot.set_idle();
                    client.unsent.made();
                    Ok(reply)
                }
                Answer::TakeOver(endpoint) => {
                    *lock(taken_over) = Some(endpoint);
                    Err(TakenOver)
                }
            }
        })
    });
    let mut connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HEAD_TIME)
        .half_close(true)
        .title_case_headers(true)
        .max_buf_size(MAX_HEAD)
        .max_headers(MAX_HEADERS)
        .serve_connection(TokioIo::new(Sending { stream, unsent: &client.unsent }), service);
    let mut close_by = None;
    loop {
        let answer_by = || *lock(&last_request) + ANSWER_TIME;
        let deadline = close_by.map_or_else(answer_by, |at: Instant| at.min(answer_by()));
        let ended = pin!(poll_fn(|context| connection.poll_without_shutdown(context)));
        tokio::select! {
            biased;
            // What the client has sent by now is answered even if its slot is wanted.
            ended = ended => {
                if let Err(error) = ended && lock(&taken_over).is_none() {
                    tracing::debug!(%error, "connection failed");
                }
                break;
            }
            () = client.slot.told_to_close(), if close_by.is_none() => {
                std::pin::Pin::new(&mut connection).graceful_shutdown();
                close_by = Some(Instant::now() + CLOSE_TIME);
            }
            () = sleep_until(deadline) => {
                let now = Instant::now();
                if close_by.is_some_and(|at| at <= now) {
                    break;
                }
                if answer_by() <= now {
                    return;
                }
            }
        }
    }
    let http1::Parts { io, read_buf, .. } = connection.into_parts();
    let stream = io.into_inner().stream;
    let endpoint = lock(&taken_over).take();
    match endpoint {
        Some(endpoint) => endpoint.run(&api, client.slot, stream, read_buf).await,
        None if close_by.is_some() => stream.into_std().map_or((), discard),
        None => linger(stream).await,
    }
}

/// Ends our half, and reads what the client has not yet sent in vain.
async fn linger(mut stream: Stream) {
    let _ = timeout(LINGER, async {
        stream.shutdown().await?;
        tokio::io::copy(&mut stream.take(LINGER_BYTES), &mut tokio::io::sink()).await
    })
    .await;
}

/// An answer that is not all sent. hyper keeps what the client does not read, and reads no further request
/// until then.
#[derive(Debug, Default)]
pub(super) struct Unsent(Mutex<Taken>);

#[derive(Debug, Default)]
struct Taken {
    /// What the answer takes until it is sent.
    part: Option<Part>,
    /// It is hyper's.
    is_made: bool,
}

impl Unsent {
    /// The answer that is being made has `part`.
    pub(super) fn hold(&self, part: Part) {
        *lock(&self.0) = Taken { part: Some(part), is_made: false };
    }

    fn made(&self) {
        lock(&self.0).is_made = true;
    }

    /// Nothing is left to send.
    fn flushed(&self) {
        let mut taken = lock(&self.0);
        if taken.is_made {
            drop(taken.part.take());
        }
    }
}

/// hyper's stream: it flushes when it has nothing left to write.
struct Sending<'a> {
    stream: Stream,
    unsent: &'a Unsent,
}

impl AsyncRead for Sending<'_> {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: &mut ReadBuf<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_read(context, buffer)
    }
}

impl AsyncWrite for Sending<'_> {
    fn poll_write(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        bytes: &[u8],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.stream).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        let flushed = ready!(Pin::new(&mut self.stream).poll_flush(context));
        self.unsent.flushed();
        Poll::Ready(flushed)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.stream).poll_shutdown(context)
    }
}

/// Ends hyper's part.
#[derive(Debug)]
struct TakenOver;

impl fmt::Display for TakenOver {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("the connection carries raw bytes from here on")
    }
}

impl std::error::Error for TakenOver {}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
