//! One session with one QEMU.
//!
//! Owns: [`Client`]: the socket, what is half read or half written, the events that nobody took yet.
//! Everything happens in the caller's own calls: there is no task behind it, so dropping it closes the socket
//! at once.
//! May not: wait without a bound, but in [`Client::next_event`]. Read next: `wire.rs`.

use std::collections::VecDeque;
use std::fmt;
use std::io;
use std::time::Duration;

use bytes::BytesMut;
use qapi::{Any, Command, Execute, qmp};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::task::consume_budget;
use tokio::time::timeout;

use crate::wire::{Lines, Message};
use crate::{Event, ExecuteError, HandshakeError, Lost, MAX_LINE, WaitError};

/// How much is read at once, in bytes.
const READ: usize = 16 * 1024;

/// How long each step may take.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timeouts {
    /// Until the socket is connected.
    pub connect: Duration,
    /// From there to QEMU's greeting.
    pub greeting: Duration,
    /// From a command to its reply.
    pub command: Duration,
}

impl Default for Timeouts {
    /// 5 s to connect, 5 s to the greeting; 10 s to a reply, since QEMU's main loop may be busy with a disk.
    fn default() -> Self {
        Self {
            connect: Duration::from_secs(5),
            greeting: Duration::from_secs(5),
            command: Duration::from_secs(10),
        }
    }
}

/// A byte stream to a QMP server.
pub(crate) trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

/// A session: typed commands, one after the other, and events.
///
/// Every call may be dropped before it is done, in a `select!` for instance: nothing that was read is lost,
/// what was sent in part is completed by the next command, and the reply that nobody waits for is dropped
/// when it comes.
///
/// Events are read from the socket by whatever call runs. The client keeps those that no call returned, in
/// order, 1 MiB of them; beyond that the oldest go, and [`lost_events`](Self::lost_events) counts them. While
/// no call runs nothing is read, so let [`next_event`](Self::next_event) run whenever there is nothing else
/// to do: it is also what notices that QEMU ended.
pub struct Client {
    /// `None` once the connection is lost.
    stream: Option<Box<dyn Stream>>,
    lines: Lines,
    /// Sent in part, by a command that was dropped.
    unsent: BytesMut,
    events: VecDeque<Kept>,
    /// The sum of their sizes.
    events_size: usize,
    /// How many were ever kept: the number of the next.
    kept: u64,
    lost_events: u64,
    next_id: u64,
    timeouts: Timeouts,
    version: qmp::VersionInfo,
}

/// An event that nobody took yet.
struct Kept {
    event: Event,
    /// Length of its line.
    size: usize,
    number: u64,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("version", &self.version.qemu)
            .field("connected", &self.is_connected())
            .field("events", &self.events.len())
            .finish_non_exhaustive()
    }
}

impl Client {
    /// Takes over a connected stream: waits for the greeting and leaves capabilities negotiation, with none
    /// enabled.
    pub async fn handshake<S>(stream: S, timeouts: Timeouts) -> Result<Self, HandshakeError>
    where
        S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    {
        let mut client = Self {
            stream: Some(Box::new(stream)),
            lines: Lines::default(),
            unsent: BytesMut::new(),
            events: VecDeque::new(),
            events_size: 0,
            kept: 0,
            lost_events: 0,
            next_id: 0,
            timeouts,
            version: qmp::VersionInfo {
                package: String::new(),
                qemu: qmp::VersionTriple { major: 0, minor: 0, micro: 0 },
            },
        };
        client.version = match timeout(timeouts.greeting, client.receive()).await {
            Err(_) => return Err(HandshakeError::Busy { after: timeouts.greeting }),
            Ok(Ok((Message::Greeting(greeting), _))) => greeting.version,
            Ok(Ok(_)) => return Err(HandshakeError::NotQmp(Lost::OutOfTurn("no greeting"))),
            Ok(Err(lost @ (Lost::Closed | Lost::Io(_)))) => return Err(HandshakeError::Lost(lost)),
            Ok(Err(lost)) => return Err(HandshakeError::NotQmp(lost)),
        };
        client.execute(qmp::qmp_capabilities { enable: None }).await.map_err(HandshakeError::Capabilities)?;
        tracing::debug!(version = ?client.version.qemu, "QMP session");
        Ok(client)
    }

    /// What the greeting said of QEMU's version.
    pub fn version(&self) -> &qmp::VersionInfo {
        &self.version
    }

    /// How long each step may take.
    pub fn timeouts(&self) -> Timeouts {
        self.timeouts
    }

    /// Whether the connection still stands, as far as the last call saw.
    pub fn is_connected(&self) -> bool {
        self.stream.is_some()
    }

    /// How many events were dropped because nobody took them.
    pub fn lost_events(&self) -> u64 {
        self.lost_events
    }

    /// Runs a command of [`qapi::qmp`], or any type that implements [`qapi::Command`], within
    /// [`Timeouts::command`].
    pub async fn execute<C: Command>(&mut self, command: C) -> Result<C::Ok, ExecuteError> {
        self.execute_within(command, self.timeouts.command).await
    }

    /// Runs a command within its own time.
    pub async fn execute_within<C: Command>(
        &mut self,
        command: C,
        within: Duration,
    ) -> Result<C::Ok, ExecuteError> {
        let id = self.next_id;
        let line = serde_json::to_vec(&Execute::with_id(command, id))
            .map_err(|source| ExecuteError::Arguments { command: C::NAME, source })?;
        let result = match timeout(within, self.exchange(id, &line)).await {
            Err(_) => return Err(ExecuteError::Timeout { command: C::NAME, after: within }),
            Ok(Err(source)) => return Err(ExecuteError::Lost { command: C::NAME, source }),
            Ok(Ok(result)) => result,
        };
        let value = result.map_err(|refusal| ExecuteError::Refused { command: C::NAME, refusal })?;
        serde_json::from_value(value).map_err(|source| ExecuteError::Reply { command: C::NAME, source })
    }

    /// The next event, however long it takes: the oldest of those that are kept, or the next to come. `Err`
    /// is the end of the stream: [`Lost::Closed`] when QEMU ended, which events such as `SHUTDOWN` may have
    /// announced.
    pub async fn next_event(&mut self) -> Result<Event, Lost> {
        consume_budget().await;
        match self.take(0) {
            Some(event) => Ok(event),
            None => self.receive_event().await.map(|(event, _)| event),
        }
    }

    /// The first event that `wanted` says yes to, of those that are kept or come within this time. The others
    /// are kept.
    pub async fn wait_event(
        &mut self,
        wanted: impl FnMut(&Event) -> bool,
        within: Duration,
    ) -> Result<Event, WaitError> {
        match timeout(within, self.event_since(0, wanted)).await {
            Ok(result) => Ok(result?),
            Err(_) => Err(WaitError::Timeout(within)),
        }
    }

    /// What [`event_since`](Self::event_since) takes to pass over the events that came before now.
    pub(crate) fn mark_events(&self) -> u64 {
        self.kept
    }

    /// The first event from that mark on that is wanted, without a bound.
    pub(crate) async fn event_since(
        &mut self,
        mark: u64,
        mut wanted: impl FnMut(&Event) -> bool,
    ) -> Result<Event, Lost> {
        let at = self.events.iter().position(|kept| kept.number >= mark && wanted(&kept.event));
        if let Some(event) = at.and_then(|at| self.take(at)) {
            return Ok(event);
        }
        loop {
            let (event, size) = self.receive_event().await?;
            if wanted(&event) {
                return Ok(event);
            }
            self.keep(event, size);
        }
    }

    fn take(&mut self, at: usize) -> Option<Event> {
        let kept = self.events.remove(at)?;
        self.events_size -= kept.size;
        Some(kept.event)
    }

    /// Sends a command and waits for its reply.
    async fn exchange(&mut self, id: u64, line: &[u8]) -> Result<Result<Any, crate::Refusal>, Lost> {
        // First, so that no more than one command ever waits here.
        self.send().await?;
        self.next_id += 1;
        self.unsent.extend_from_slice(line);
        self.unsent.extend_from_slice(b"\n");
        self.send().await?;
        loop {
            match self.receive().await? {
                (Message::Event(event), size) => self.keep(event, size),
                // Without a number QEMU could not read the command, which can only be this one.
                (Message::Reply { id: replied, result }, _)
                    if replied.is_none_or(|replied| replied == id) =>
                {
                    return Ok(result);
                }
                (other, _) => self.expect_late(&other)?,
            }
        }
    }

    async fn receive_event(&mut self) -> Result<(Event, usize), Lost> {
        loop {
            match self.receive().await? {
                (Message::Event(event), size) => return Ok((event, size)),
                (other, _) => self.expect_late(&other)?,
            }
        }
    }

    /// Passes over the reply to a command that nobody waits for any more; anything else ends the connection.
    fn expect_late(&mut self, message: &Message) -> Result<(), Lost> {
        let what = match message {
            Message::Reply { id, .. } if id.is_none_or(|id| id < self.next_id) => return Ok(()),
            Message::Reply { .. } => "a reply to no command",
            Message::Greeting(_) => "a second greeting",
            Message::Event(_) => "an event",
        };
        Err(self.lose(Lost::OutOfTurn(what)))
    }

    fn keep(&mut self, event: Event, size: usize) {
        self.events.push_back(Kept { event, size, number: self.kept });
        self.kept += 1;
        self.events_size += size;
        while self.events_size > MAX_LINE && self.take(0).is_some() {
            self.lost_events += 1;
        }
    }

    /// Writes what waits. Where it is dropped half-way, the next call goes on from there.
    async fn send(&mut self) -> Result<(), Lost> {
        let stream = self.stream.as_mut().ok_or(Lost::Closed)?;
        while !self.unsent.is_empty() {
            match stream.write_buf(&mut self.unsent).await {
                // What the other end said before it closed is still to be read; reading finds the end.
                Err(error) if is_closed(&error) => self.unsent.clear(),
                Err(error) => return Err(self.lose(Lost::Io(error))),
                Ok(0) => self.unsent.clear(),
                Ok(_) => {}
            }
        }
        Ok(())
    }

    /// The next message and the length of its line.
    async fn receive(&mut self) -> Result<(Message, usize), Lost> {
        loop {
            // A peer that talks without end keeps nobody else of the caller's thread waiting: what was read
            // at once is many messages.
            consume_budget().await;
            let stream = self.stream.as_mut().ok_or(Lost::Closed)?;
            match self.lines.next_line() {
                Ok(Some(line)) => {
                    return match Message::read(&line) {
                        Ok(message) => Ok((message, line.len())),
                        Err(lost) => Err(self.lose(lost)),
                    };
                }
                Ok(None) => {}
                Err(lost) => return Err(self.lose(lost)),
            }
            self.lines.buffer.reserve(READ);
            match stream.read_buf(&mut self.lines.buffer).await {
                Ok(0) => return Err(self.lose(Lost::Closed)),
                Ok(_) => {}
                Err(error) if is_closed(&error) => return Err(self.lose(Lost::Closed)),
                Err(error) => return Err(self.lose(Lost::Io(error))),
            }
        }
    }

    /// Closes the socket.
    fn lose(&mut self, lost: Lost) -> Lost {
        self.stream = None;
        lost
    }
}

/// A process that ended with unread bytes resets its sockets; to a client that is an end like any other.
fn is_closed(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionAborted
    )
}
