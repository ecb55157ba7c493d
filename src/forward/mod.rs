//! Forwards: from a socket on the host to a guest, or to whatever else the host's system connects to.
//!
//! A client goes over SSH, through the virtual network, or straight from descriptor to descriptor. The socket
//! is there before the other end is; a client that comes early waits for it, for a bounded time, and is then
//! closed.
//!
//! Owns: which route a [`Dest`] takes. May not: know frames or the virtual network's inside; it dials.
//! Read next: `clients.rs`, where they are accepted; `ssh.rs`, `network.rs`, `direct.rs`, the routes;
//! `registry.rs`, what is exposed.

pub mod clients;
mod direct;
pub mod loops;
mod network;
pub mod policy;
pub mod registry;
pub mod ssh;

use rustix::fd::OwnedFd;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use netstack::Subnet;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::addr::{Dest, HostPort, SshDest};
use crate::agent::SharedSecret;
use crate::config::SocketForward;
use crate::dial::{self, Dial};
use crate::engine::Handle;
use crate::listen::{RemoveOnDrop, TcpAddress};
use crate::permits::{Permit, Permits};
use crate::relay::Relays;
use crate::ssh::{Penalties, load_key};
use crate::sys::stream::{self, Stream};

use clients::ClientLog;
pub use clients::Source;
use direct::{Direct, DirectRoute};
use loops::OwnSockets;
use network::NetworkRoute;

/// How long a client waits for a guest.
// COMPAT(gvproxy): the original tries for about 235 s from its start, and then ends as a whole; here each
// client waits this long from its arrival, is closed, and the daemon goes on.
pub const GUEST_PATIENCE: Duration = Duration::from_secs(240);
/// How long a client waits for what the host's system connects to.
const HOST_PATIENCE: Duration = Duration::from_secs(30);

/// Connects to whatever a [`Dest`] names: what all forwards have in common.
#[derive(Debug)]
pub struct Connector {
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
    pub agent_secret: Option<SharedSecret>,
    /// What carries bytes between two descriptors.
    pub relays: Arc<Relays>,
    /// How many clients there may be.
    pub permits: Permits,
    /// Which sockets lead to one another.
    pub own: OwnSockets,
}

impl Connector {
    /// The agent of the guest at this address and port; without one, those of the configuration.
    pub fn agent(&self, guest: Option<Ipv4Addr>, port: Option<u16>) -> SocketAddrV4 {
        let (ip, own) = (*self.agent.ip(), self.agent.port());
        SocketAddrV4::new(guest.unwrap_or(ip), port.unwrap_or(own))
    }

    fn resolve(&self, dest: Dest) -> Resolved {
        match dest {
            Dest::Ssh(to) => Resolved::Ssh(to),
            Dest::Agent { guest, port, path } => Resolved::Agent(self.agent(guest, port), path),
            Dest::Tcp(to) => match to.within(self.subnet) {
                Some(guest) => Resolved::Guest(guest),
                None => Resolved::Direct(Direct::Tcp(to)),
            },
            Dest::Vsock { cid, port } => Resolved::Direct(Direct::Vsock { cid, port }),
            Dest::HybridVsock { socket, port } => Resolved::Direct(Direct::HybridVsock { socket, port }),
            Dest::Unix(path) => Resolved::Direct(Direct::Unix(path)),
        }
    }

    /// Connects once, where no guest has to be asked for a unix socket.
    ///
    /// # Errors
    /// What the system, or the virtual network, answers.
    pub async fn connect(&self, dest: &Dest) -> io::Result<OwnedFd> {
        match self.resolve(dest.clone()) {
            Resolved::Guest(to) => {
                Ok(self.engine.dial(self.gateway, to, HOST_PATIENCE).await?.into_std()?.into())
            }
            Resolved::Direct(to) => to.connect(None).await,
            Resolved::Ssh(_) | Resolved::Agent(..) => Err(io::ErrorKind::Unsupported.into()),
        }
    }

    async fn dial_from(&self, from: Ipv4Addr, to: &HostPort, limit: Duration) -> io::Result<Stream> {
        if let Some(guest) = to.within(self.subnet) {
            return self.engine.dial(from, guest, limit).await;
        }
        let socket = timeout(limit, dial::connect(to)).await??;
        let socket = socket.into_std()?.into();
        clients::tune(&socket);
        stream::watch(socket)
    }
}

impl Dial for Connector {
    async fn dial(&self, to: &HostPort, limit: Duration) -> io::Result<Stream> {
        self.dial_from(self.gateway, to, limit).await
    }
}

/// How sshds are reached.
#[derive(Clone, Debug)]
pub(crate) struct Logins(pub(crate) Arc<Connector>);

impl Dial for Logins {
    async fn dial(&self, to: &HostPort, limit: Duration) -> io::Result<Stream> {
        self.0.dial_from(self.0.login, to, limit).await
    }
}

/// A host socket, bound: clients may connect from now on.
#[derive(Debug)]
pub struct Forward {
    source: Source,
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
        Ok(Self { source: Source::bind(&forward.source)?, dest: forward.dest.clone() })
    }

    /// Where it listens, if that is TCP.
    pub fn tcp_address(&self) -> Option<TcpAddress> {
        TcpAddress::of((&self.source.socket()?.socket).into())
    }

    /// The socket's file, if it has one.
    pub fn file(&self) -> Option<&RemoveOnDrop> {
        self.source.socket()?.file.as_ref()
    }

    /// Serves clients until `shutdown` turns true or its sender is gone; then drops those that are not the
    /// engine's, and removes the socket.
    ///
    /// # Errors
    /// The listener cannot be handed to the runtime.
    pub async fn run(self, connector: Arc<Connector>, shutdown: watch::Receiver<bool>) -> Result<()> {
        let Self { source, dest } = self;
        let log = ClientLog::new(source.name(), &dest);
        let to_guest = |to, log| NetworkRoute::new(connector.engine.clone(), to, log);
        let route = match connector.resolve(dest.clone()) {
            Resolved::Ssh(to) => {
                let penalties = Arc::clone(&connector.penalties);
                let dialer = Arc::new(Logins(Arc::clone(&connector)));
                return ssh::run(source, to, dialer, penalties, &connector.permits, shutdown).await;
            }
            Resolved::Agent(at, path) => {
                Route::Network(to_guest(at, log).by_agent(path, connector.agent_secret.clone()))
            }
            Resolved::Guest(to) => Route::Network(to_guest(to, log)),
            Resolved::Direct(to) => {
                let (own, relays) = (connector.own.add(source.socket()), Arc::clone(&connector.relays));
                Route::Direct(DirectRoute::new(to, own, relays, log))
            }
        };
        let route = Arc::new(route);
        let serve = |client, permit| {
            let route = Arc::clone(&route);
            async move { route.serve(client, permit).await }
        };
        clients::serve(source, &dest, &connector.permits, shutdown, serve).await
    }
}

/// What a [`Dest`] is, as this network's guests and this host have it.
enum Resolved {
    Ssh(SshDest),
    /// A guest's agent, and the path that it is asked for.
    Agent(SocketAddrV4, String),
    Guest(SocketAddrV4),
    Direct(Direct),
}

/// How clients get to a [`Dest`] that is not behind SSH.
#[derive(Debug)]
enum Route {
    Network(NetworkRoute),
    Direct(DirectRoute),
}

impl Route {
    async fn serve(&self, client: Stream, permit: Permit) {
        match self {
            Self::Network(route) => route.serve(client, permit, GUEST_PATIENCE).await,
            Self::Direct(route) => {
                route.serve(client, HOST_PATIENCE).await;
                drop(permit);
            }
        }
    }
}
