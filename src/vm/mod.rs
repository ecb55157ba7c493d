//! Virtual machines that are known by their QMP socket: a running one is given a network card, and followed
//! for as long as it lives.
//!
//! The card is a `virtio-net-pci` in front of a `stream` netdev that QEMU connects to a socket of ours, where
//! `hypervisor/mod.rs` takes it like any hypervisor's. A QMP socket serves one client: with `-qmp` that is
//! us; a socket that was only found at `-listen-qemu` is let go as soon as the card is there.
//!
//! Owns: the cards and netdevs that it made, by their ids. May not: touch those of others, or a socket
//! through which a link came in before QEMU made it its own. Read next: `life.rs`, then `attach.rs`;
//! `takeover.rs` for `-listen-qemu`; `qmp/src/lib.rs`.

mod attach;
mod life;
mod place;
mod session;
pub mod status;
mod takeover;

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use qmp::Timeouts;
use tokio::sync::watch;
use tokio::time::timeout;

use crate::addr::ListenAddress;
use crate::config::{LinkConfig, MachineConfig};
use crate::engine::Handle;
use crate::hypervisor::{HypervisorListener, Presence, Terms};
use crate::notify::{Notice, VmChange};

use attach::Card;
use session::Session;
use status::StatusTable;
pub use takeover::{QemuLink, serves_qmp};

/// How long a session may take to come about that is only there to take a card out.
const LAST_CONNECT: Duration = Duration::from_secs(1);

/// What everybody here works with.
#[derive(Clone, Debug)]
pub struct Environment {
    /// Where links go.
    pub engine: Handle,
    /// What is said of them.
    pub terms: Arc<Terms>,
    /// Where what is known of the machines stands.
    pub statuses: StatusTable,
    /// Whether a card stays when the run ends.
    pub keep_device: bool,
    /// Whether the run ends with the machines.
    pub exit_with_vm: bool,
    /// True once the run is to end.
    pub stop: watch::Receiver<bool>,
}

impl Environment {
    /// Waits until the run is to end.
    pub async fn stopped(&self) {
        let mut stop = self.stop.clone();
        let _ = stop.wait_for(|stop| *stop).await;
    }

    /// Takes the card out at the end of the run, in a session of its own where there is none, or none any
    /// more.
    async fn leave(&self, qmp: &qmp::Address, card: &Card, session: Option<Session>) {
        if self.keep_device {
            return;
        }
        if let Some(mut session) = session {
            attach::detach(&mut session.client, card).await;
            if session.client.is_connected() {
                return;
            }
        }
        let connecting = timeout(LAST_CONNECT, session::connect(qmp, Timeouts::default()));
        if let Ok(Ok(mut session)) = connecting.await {
            attach::detach(&mut session.client, card).await;
        }
    }

    fn tell(&self, change: VmChange, card: &Card) {
        if let Some(notifier) = &self.terms.notifier {
            notifier.send(Notice::Vm(change, card.mac));
        }
    }
}

/// A machine of `-qmp`, with the socket that it is to connect to bound.
#[derive(Debug)]
pub struct Machine {
    qmp: qmp::Address,
    card: Card,
    /// `None` where that is the socket of `-listen-qemu`.
    listener: Option<HypervisorListener>,
}

impl Machine {
    /// Makes the socket for the machine's link, if none of `links` can be it.
    ///
    /// # Errors
    /// The socket cannot be made: another gvproxy may have this machine.
    pub fn bind(config: &MachineConfig, links: &[LinkConfig]) -> Result<Self> {
        let shared = links.iter().find_map(|link| match link {
            LinkConfig::Qemu(at) => at.path().map(Path::to_owned),
            _ => None,
        });
        let (path, listener) = match shared {
            Some(path) => (path, None),
            None => bind_beside(&config.qmp)?,
        };
        Ok(Self { qmp: config.qmp.clone(), card: Card::new(config.mac, path), listener })
    }

    /// Follows the machine. Returns when it has ended and the run is to end with it, or when the run ends.
    ///
    /// # Errors
    /// The link's socket failed.
    pub async fn run(self, with: Environment) -> Result<()> {
        let Self { qmp, card, listener } = self;
        let entry = with.statuses.enter(&qmp);
        let mut with = with;
        if listener.is_some() {
            with.terms = Arc::new(Terms { present: Presence::default(), ..(*with.terms).clone() });
        }
        let serving = async {
            match listener {
                Some(listener) => listener.serve(with.engine.clone(), Arc::clone(&with.terms)).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            failed = serving => failed,
            () = life::follow(&qmp, &card, &entry, &with) => Ok(()),
        }
    }
}

/// A private socket for the link of the machine that has this QMP socket.
fn bind_beside(qmp: &qmp::Address) -> Result<(PathBuf, Option<HypervisorListener>)> {
    let path = place::of_link(qmp)?;
    let listener = HypervisorListener::bind(&LinkConfig::Qemu(ListenAddress::private(path.clone())));
    Ok((path, Some(listener.with_context(|| format!("cannot make a socket for the machine of {qmp}"))?)))
}
