//! Ways from the host to guests, and whatever else a host socket can lead to.
//!
//! A forward is a socket on the host and the way its clients are led: over SSH, through the virtual network,
//! or straight from descriptor to descriptor. The socket is there before the other end is; a client that
//! comes early waits for it, for a bounded time, and is then closed.
//!
//! Owns: which way a [`Dest`] is. May not: know frames or the virtual network's inside; it dials.
//! Read next: `clients.rs`, where they are accepted; `ssh.rs`, `network.rs`, `direct.rs`, the ways;
//! `registry.rs`, what is exposed.

pub mod clients;
mod direct;
pub mod loops;
mod network;
pub mod policy;
pub mod registry;
pub mod ssh;

use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::OwnedFd;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use netstack::Subnet;
use tokio::net::UnixStream;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::addr::{Dest, HostPort, SshDest};
use crate::agent::Secret;
use crate::config::SocketForward;
use crate::dial::{self, Dial, stream};
use crate::engine::Handle;
use crate::listen::{self, Bound, RemoveOnDrop, TcpAddress};
use crate::permits::{Permit, Permits};
use crate::relay::Relays;
use crate::ssh::{Penalties, load_key};

use clients::ClientLog;
use direct::{Direct, DirectWay};
use loops::OwnSockets;
use network::NetworkWay;

/// How long a client waits for a guest.
// COMPAT(gvproxy): the original tries for about 235 s from its start, and then ends as a whole; here each
// client waits this long from its arrival, is closed, and the daemon goes on.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(240);
/// How long a client waits for what the host's system connects to.
const HOST_PATIENCE: Duration = Duration::from_secs(30);

/// What all forwards have in common.
#[derive(Debug)]
pub struct Ways {
    /// Of the virtual network.
    pub engine: Handle,
    /// Whose addresses are guests'.
    pub subnet: Subnet,
    /// Whom guests see as their clients,
    pub gateway: Ipv4Addr,
    /// and whom their sshds see when the daemon itself logs in: not the same where there is another address
    /// of the gateway's, as sshd (since 9.8) shuts out an address for whatever anybody does from there.
    pub login: Ipv4Addr,
    /// What sshds hold against that address.
    pub penalties: Arc<Penalties>,
    /// Where the guest's agent listens.
    pub agent: SocketAddrV4,
    /// What every agent has to have too.
    pub agent_secret: Option<Secret>,
    /// What carries bytes between two descriptors.
    pub relays: Arc<Relays>,
    /// How many clients there may be.
    pub permits: Permits,
    /// Which sockets lead to one another.
    pub own: OwnSockets,
}

impl Ways {
    /// The agent of the guest at this address and port; without one, those of the configuration.
    pub fn agent(&self, guest: Option<Ipv4Addr>, port: Option<u16>) -> SocketAddrV4 {
        let (ip, own) = (*self.agent.ip(), self.agent.port());
        SocketAddrV4::new(guest.unwrap_or(ip), port.unwrap_or(own))
    }

    /// Connects once, where no guest has to be asked for a unix socket.
    ///
    /// # Errors
    /// What the system, or the virtual network, answers.
    pub async fn connect(&self, dest: &Dest) -> io::Result<OwnedFd> {
        let to = match dest.clone() {
            Dest::Tcp(place) if place.within(self.subnet).is_some() => {
                return Ok(self.dial(&place, HOST_PATIENCE).await?.into_std()?.into());
            }
            Dest::Tcp(place) => Direct::Tcp(place),
            Dest::Vsock { cid, port } => Direct::Vsock { cid, port },
            Dest::HybridVsock { socket, port } => Direct::HybridVsock { socket, port },
            Dest::Unix(path) => Direct::Unix(path),
            Dest::Ssh(_) | Dest::Agent { .. } => return Err(io::ErrorKind::Unsupported.into()),
        };
        to.connect(None).await
    }

    async fn dial_from(&self, from: Ipv4Addr, place: &HostPort, limit: Duration) -> io::Result<UnixStream> {
        if let Some(guest) = place.within(self.subnet) {
            return self.engine.dial(from, guest, limit).await;
        }
        let socket = timeout(limit, dial::connect(place)).await??;
        let socket = socket.into_std()?.into();
        clients::tune(&socket);
        stream(socket)
    }
}

impl Dial for Ways {
    async fn dial(&self, place: &HostPort, limit: Duration) -> io::Result<UnixStream> {
        self.dial_from(self.gateway, place, limit).await
    }
}

/// How sshds are reached.
#[derive(Clone, Debug)]
pub(crate) struct Logins(pub(crate) Arc<Ways>);

impl Dial for Logins {
    async fn dial(&self, place: &HostPort, limit: Duration) -> io::Result<UnixStream> {
        self.0.dial_from(self.0.login, place, limit).await
    }
}

/// A host socket, bound: clients may connect from now on.
#[derive(Debug)]
pub struct Forward {
    bound: Bound,
    dest: Dest,
}

impl Forward {
    /// Binds the socket.
    ///
    /// # Errors
    /// The identity is not a usable private key, or the socket cannot be bound.
    pub fn bind(forward: &SocketForward) -> Result<Self> {
        if let Dest::Ssh(SshDest { key: Some(key), passphrase, .. }) = &forward.dest {
            load_key(key, passphrase.as_ref())?;
        }
        Self::listen(forward)
    }

    /// The same, but for the key, which is first looked at when a client comes.
    ///
    /// # Errors
    /// The socket cannot be bound.
    pub fn listen(forward: &SocketForward) -> Result<Self> {
        Ok(Self { bound: listen::bind(&forward.source)?, dest: forward.dest.clone() })
    }

    /// Where it listens, if that is TCP.
    pub fn tcp_address(&self) -> Option<TcpAddress> {
        TcpAddress::of((&self.bound.socket).into())
    }

    /// The socket's file, if it has one.
    pub fn file(&self) -> Option<&RemoveOnDrop> {
        self.bound.file.as_ref()
    }

    /// Serves clients until `shutdown` turns true or its sender is gone; then drops those that are not the
    /// engine's, and removes the socket.
    ///
    /// # Errors
    /// The listener cannot be handed to the runtime.
    pub async fn run(self, ways: Arc<Ways>, shutdown: watch::Receiver<bool>) -> Result<()> {
        let Self { bound, dest } = self;
        let log = ClientLog::new(&bound.name, &dest);
        let direct =
            |to, log| Route::Direct(DirectWay::new(to, ways.own.add(&bound), Arc::clone(&ways.relays), log));
        let way = match dest.clone() {
            Dest::Ssh(to) => {
                let (dialer, penalties) = (Arc::new(Logins(Arc::clone(&ways))), Arc::clone(&ways.penalties));
                return ssh::run(bound, to, dialer, penalties, &ways.permits, shutdown).await;
            }
            Dest::Agent { guest, port, path } => {
                let way = NetworkWay::new(ways.engine.clone(), ways.agent(guest, port), log);
                Route::Network(way.by_agent(path, ways.agent_secret.clone()))
            }
            Dest::Tcp(place) => match place.within(ways.subnet) {
                Some(guest) => Route::Network(NetworkWay::new(ways.engine.clone(), guest, log)),
                None => direct(Direct::Tcp(place), log),
            },
            Dest::Vsock { cid, port } => direct(Direct::Vsock { cid, port }, log),
            Dest::HybridVsock { socket, port } => direct(Direct::HybridVsock { socket, port }, log),
            Dest::Unix(path) => direct(Direct::Unix(path), log),
        };
        let way = Arc::new(way);
        let serve = |client, place| {
            let way = Arc::clone(&way);
            async move { way.serve(client, place).await }
        };
        clients::serve(bound, &dest, &ways.permits, shutdown, serve).await
    }
}

/// How clients get to a [`Dest`] that is not behind SSH.
#[derive(Debug)]
enum Route {
    Network(NetworkWay),
    Direct(DirectWay),
}

impl Route {
    async fn serve(&self, client: UnixStream, place: Permit) {
        match self {
            Self::Network(way) => way.serve(client, place, GUEST_PATIENCE).await,
            Self::Direct(way) => {
                way.serve(client, HOST_PATIENCE).await;
                drop(place);
            }
        }
    }
}
