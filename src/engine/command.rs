//! What the control plane asks of the engine. Owns: the bounded channel's types. May not: do anything itself.
//! Read next: `mod.rs`, which serves commands; `requests.rs`, the other way.

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::sync::atomic::AtomicUsize;
use std::time::Duration;

use bytes::Bytes;
use mio::Waker;
use netstack::{DnsClient, Mac, PortId, dns};
use tokio::sync::{mpsc, oneshot, watch};

use super::attach::NewLink;
use super::client::ConnectRequest;
use super::forwards::ForwardCommand;
use super::readout::Readout;
use super::requests::{Request, Requests};

use crate::sys::stream::{StdStream, Stream};

/// Commands that may be under way at once.
pub(super) const COMMANDS: usize = 512;

/// What the control plane asks of the engine.
#[derive(Debug)]
pub(super) enum Command {
    /// Connects to a guest from an address of the gateway's; the stream is one end of a socket pair.
    Connect { from: Ipv4Addr, to: SocketAddrV4, reply: oneshot::Sender<io::Result<StdStream>> },
    /// Leads a client to a socket in a guest.
    ForwardClient(ConnectRequest),
    /// Asks the gateway's own zones.
    DnsQuery { message: Bytes, reply: oneshot::Sender<(dns::Verdict, Vec<u8>)> },
    /// Answers [`Request::DnsQuestion`].
    DnsAnswer { client: DnsClient, message: Vec<u8> },
    /// Ends the run.
    Stop,
    /// Shows what the engine knows, or changes its zones.
    Read(Readout),
    /// Adds or removes a forward.
    Forward(ForwardCommand),
    /// A virtual machine is there; the reply is its port.
    Attach { link: NewLink, reply: oneshot::Sender<io::Result<PortId>> },
    /// A virtual machine is no more.
    EndLease(Mac),
    /// A virtual machine is gone, though its link does not say so.
    Detach(PortId),
}

/// The engine, as the control plane sees it.
#[derive(Clone, Debug)]
pub struct Handle {
    pub(super) commands: mpsc::Sender<Command>,
    pub(super) waker: Arc<Waker>,
    pub(super) requests: Arc<Requests>,
    /// How many there are.
    pub(super) links: watch::Receiver<usize>,
    /// How many there have been.
    pub(super) attached: Arc<AtomicUsize>,
}

impl Handle {
    /// Sends the answer to [`Request::DnsQuestion`].
    pub async fn dns_answer(&self, client: DnsClient, message: Vec<u8>) {
        self.send(Command::DnsAnswer { client, message }).await;
    }

    /// What the gateway's zones say to a message that came by TCP, and the reply if there is one.
    pub async fn dns_query(&self, message: Bytes) -> (dns::Verdict, Vec<u8>) {
        let (reply, answer) = oneshot::channel();
        self.send(Command::DnsQuery { message, reply }).await;
        answer.await.unwrap_or((dns::Verdict::Drop, Vec::new()))
    }

    /// The client with this hardware address needs its address no more; it gets it again as long as nobody
    /// else does.
    pub async fn end_lease(&self, client: Mac) {
        self.send(Command::EndLease(client)).await;
    }

    /// What guests ask next. To be asked for by one task alone, which does all it is about or leaves it to a
    /// task of its own.
    pub async fn next_request(&self) -> Request {
        self.requests.next().await
    }

    /// Waits until the control plane's next piece of work for guests is one of `port`'s.
    pub async fn turn_of(&self, port: PortId) {
        self.requests.turn_of(port).await;
    }

    /// How many virtual machines are attached, and when that changes.
    pub fn links(&self) -> watch::Receiver<usize> {
        self.links.clone()
    }

    /// Waits until no virtual machine is attached.
    pub async fn without_links(&self) {
        let mut links = self.links();
        // An engine that has ended has none.
        let _ = links.wait_for(|links| *links == 0).await;
    }

    /// Counts the links that have been attached so far.
    pub fn links_attached(&self) -> Arc<AtomicUsize> {
        Arc::clone(&self.attached)
    }

    /// Ends the run.
    pub async fn stop(&self) {
        self.send(Command::Stop).await;
    }

    /// An engine that has ended hears nothing, and whoever waits for a reply sees that the sender is gone.
    pub(super) async fn send(&self, command: Command) {
        if self.commands.send(command).await.is_ok()
            && let Err(error) = self.waker.wake()
        {
            tracing::error!(%error, "cannot wake the engine");
        }
    }

    /// Connects from an address of the gateway's to a TCP port of a guest, within `limit`; the stream is one
    /// end of a socket pair, and carries half-close both ways.
    ///
    /// # Errors
    /// What the guest or the network answered: refused, unreachable, or timed out.
    pub async fn dial(&self, from: Ipv4Addr, to: SocketAddrV4, limit: Duration) -> io::Result<Stream> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Connect { from, to, reply }).await;
        match tokio::time::timeout(limit, answer).await {
            Ok(Ok(Ok(stream))) => Stream::from_std(stream),
            Ok(Ok(Err(error))) => Err(error),
            Ok(Err(_)) => Err(io::Error::new(io::ErrorKind::ConnectionAborted, "the network is down")),
            Err(_) => Err(io::ErrorKind::TimedOut.into()),
        }
    }
}
