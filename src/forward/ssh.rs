//! Clients that are led to unix sockets of guests over SSH. Owns: who has waited in vain. May not: know how
//! SSH works (`crate::ssh`).
//! Read next: `crate::ssh::Tunnel`.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use tokio::sync::watch;
use tracing::debug;

use super::GUEST_PATIENCE;
use super::clients::{self, ClientLog, Source, has_left};
use crate::addr::{Dest, SshDest};
use crate::dial::Dial;
use crate::permits::Permits;
use crate::ssh::{OpenError, Penalties, Target, Tunnel};
use crate::sys::stream::Stream;

/// Serves the clients of `source` until `shutdown` turns true or its sender is gone.
///
/// # Errors
/// There is no key, or the listener cannot be handed to the runtime.
pub async fn run<D: Dial>(
    source: impl Into<Source>,
    to: SshDest,
    dialer: Arc<D>,
    penalties: Arc<Penalties>,
    permits: &Permits,
    shutdown: watch::Receiver<bool>,
) -> Result<()> {
    let dest = Dest::Ssh(to.clone());
    let source = source.into();
    let log = ClientLog::new(source.name(), &dest);
    let route = Arc::new(SshRoute::new(to, dialer, penalties, log)?);
    let serve = |client, permit| {
        let route = Arc::clone(&route);
        async move {
            route.serve(client).await;
            drop(permit);
        }
    };
    clients::serve(source, &dest, permits, shutdown, serve).await
}

/// Leads clients to one socket behind one login.
///
/// Each has its own connections: forwards differ in who logs in, and a busy one must not slow another.
#[derive(Debug)]
struct SshRoute<D> {
    tunnel: Tunnel<D>,
    path: String,
    log: ClientLog,
}

impl<D: Dial> SshRoute<D> {
    /// Does nothing yet.
    fn new(to: SshDest, dialer: Arc<D>, penalties: Arc<Penalties>, log: ClientLog) -> Result<Self> {
        let (target, path) = target(to)?;
        Ok(Self { tunnel: Tunnel::new(target, dialer, penalties), path, log })
    }

    /// Carries one client, which waits for the guest for a bounded time; its socket is closed at any end.
    async fn serve(&self, client: Stream) {
        let dest = &self.path;
        match self.tunnel.open(dest, GUEST_PATIENCE, || !has_left(&client)).await {
            Ok(channel) => {
                if let Err(error) = channel.relay(client).await {
                    debug!(%error, dest, "forward: client failed");
                }
            }
            // The tunnel has said so already, once for all clients.
            Err(error @ (OpenError::Connect(_) | OpenError::Unwanted)) => {
                debug!(%error, dest, "forward: client turned away");
            }
            Err(error) => self.log.turned_away(&error.to_string(), None),
        }
    }
}

/// Who logs in where, and the path of the socket there.
///
/// # Errors
/// There is no key.
pub(crate) fn target(to: SshDest) -> Result<(Target, String)> {
    let SshDest { sshd, user, path, key, passphrase, password, secure } = to;
    let known_hosts = std::env::home_dir().filter(|_| secure).map(|home| home.join(".ssh/known_hosts"));
    let key = key.context("no private key for SSH")?;
    Ok((Target { passphrase, password, known_hosts, ..Target::new(sshd, user, key) }, path))
}
