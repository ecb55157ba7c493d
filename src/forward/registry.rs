//! Everything that the host exposes of the guests: which port or socket leads where, who asked for it, and
//! the way to add and remove one while the daemon runs.
//!
//! Owns: the table of exposed ports and sockets. May not: carry bytes (the engine does), speak HTTP (`api`).
//! Read next: `policy.rs`, what a guest may do; `../config/ports.rs`, what is asked for;
//! `engine/forwards.rs`, the listeners.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::ffi::OsString;
use std::io;
use std::net::SocketAddrV4;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Context as _;
use netstack::{Guest, PortId};
use thiserror::Error;
use tokio::sync::{Notify, watch};
use tokio::task::JoinHandle;

use super::{Connector, Forward};
use crate::addr::{Dest, ListenAddress, Local, SshDest, remote_address};
use crate::config::{Exposed, GuestPolicy, Protocol, SocketForward};
use crate::disk;
use crate::engine::{Engine, ForwardId, PortSocket};
use crate::listen::{BindAddress, is_in_use, patiently, resolve, resolve_at_once};
use crate::permits::{Owners, Permit, Permits};
use crate::sys::descriptor_limit;
use crate::sys::named_pipe;
use crate::text::{quote, reason};

/// Who wants to see or change what is exposed.
#[derive(Clone, Copy, Debug, Eq, PartialEq)]
pub enum Asker {
    /// Who started the daemon, or may use its sockets on the host.
    Operator,
    /// A guest, through the gateway. It is not trusted.
    Guest(Guest),
}

impl Asker {
    /// Whose port it is behind, if it is a guest.
    pub fn guest(self) -> Option<Guest> {
        match self {
            Self::Operator => None,
            Self::Guest(guest) => Some(guest),
        }
    }
}

/// Why a port or socket is not exposed, or not removed. The text is the body of the HTTP answer.
#[derive(Debug, Error)]
pub enum ExposeError {
    /// The guest may not do that: 403. All others are 500, as the original's.
    #[error("{0}")]
    Denied(String),
    /// The same `local` leads elsewhere.
    #[error("proxy already running for {0}")]
    Running(String),
    /// `local` cannot be listened on.
    #[error("{0}")]
    Listen(String),
    /// `remote` is nothing to lead to.
    #[error("{0}")]
    Remote(String),
    /// There is no such port or socket.
    #[error("proxy not found")]
    NotFound,
    /// Only Windows has named pipes.
    #[error("named pipes are not supported by this platform")]
    NoPipes,
    /// The daemon is about to end.
    #[error("the daemon is stopping")]
    Stopping,
}

fn key(exposed: &Exposed) -> Key {
    (exposed.local.clone(), exposed.protocol.as_str())
}

fn bad_local(wanted: &Exposed, why: String) -> ExposeError {
    ExposeError::Listen(wanted.bad_local(why))
}

fn cannot_watch(wanted: &Exposed, error: &io::Error) -> ExposeError {
    ExposeError::Listen(format!("listen {} {}: {}", wanted.protocol, wanted.local, reason(error)))
}

/// The table of what is exposed; clones are the same table.
#[derive(Clone, Debug)]
pub struct Registry(Arc<Inner>);

#[derive(Debug)]
struct Inner {
    connector: Arc<Connector>,
    policy: GuestPolicy,
    /// Descriptors for the operator's ports, and for those of each link's guests.
    ports: Permits,
    ports_of_guests: Owners<PortId>,
    table: Mutex<Table>,
    /// A guest has exposed something.
    followed: Notify,
    /// Held by whoever changes something, as the engine's answer has to be waited for. Names are looked up
    /// before. Sockets have one of their own, as a file system may have to be waited for.
    changing: [tokio::sync::Mutex<()>; 2],
}

#[derive(Debug, Default)]
struct Table {
    /// By `local` as bytes, then protocol: the order in which they are shown.
    entries: BTreeMap<Key, Entry>,
    /// Nothing is exposed any more.
    closed: bool,
}

/// Where names of users and groups are, as far as this daemon knows.
const NAMES: &str = "/etc/passwd";

/// How soon a guest finds that a container cannot have the port that another one has.
const CONFLICT: Duration = Duration::from_secs(30);

/// How long what a guest exposed waits for it to come back, and how often it is looked for meanwhile.
const ABSENCE: Duration = Duration::from_secs(60);
const LOOK_AGAIN: Duration = Duration::from_secs(5);

type Key = (String, &'static str);

#[derive(Debug)]
struct Entry {
    exposed: Exposed,
    asker: Asker,
    /// Since when the guest that asked is not there.
    gone: Option<Instant>,
    repeats: Repeats,
    /// Of TCP and UDP.
    address: Option<BindAddress>,
    running: Running,
    /// Of what was not known at the start.
    _permit: Option<Permit>,
}

/// How often a guest exposed again what is its own. podman does for a second container with the same port,
/// which then cannot start, and takes the port back: it is still the first one's. A guest that began anew,
/// behind a new link, exposes again too: then it is the first.
#[derive(Debug, Default)]
struct Repeats {
    count: usize,
    last: Option<Instant>,
}

impl Repeats {
    fn add(&mut self, now: Instant) {
        (self.count, self.last) = (self.count.saturating_add(1), Some(now));
    }

    /// Whether the guest takes back a repeat, and not the port.
    fn take_back(&mut self, now: Instant) -> bool {
        let is_new = self.last.is_some_and(|last| now.saturating_duration_since(last) < CONFLICT);
        let is_repeat = is_new && self.count > 0;
        self.count -= usize::from(is_repeat);
        is_repeat
    }
}

impl Entry {
    /// `asker` exposes the same.
    fn expose_again(&mut self, asker: Asker, now: Instant) {
        if asker == self.asker {
            self.repeats.add(now);
        } else if asker != Asker::Operator && may_change(asker, self) {
            (self.asker, self.repeats) = (asker, Repeats::default());
        }
    }
}

/// What carries it.
#[derive(Debug)]
enum Running {
    Engine(ForwardId),
    Socket { stop: watch::Sender<bool>, task: JoinHandle<anyhow::Result<()>> },
}

impl Registry {
    /// An empty table. Ports will be the engine's, sockets lead where `connector` connects, and guests may do
    /// as `policy` says.
    pub fn new(connector: Arc<Connector>, policy: GuestPolicy) -> Self {
        let (table, followed, changing) = Default::default();
        let ports = connector.permits.for_ports();
        let ports_of_guests = Owners::new(ports.for_strangers());
        Self(Arc::new(Inner { connector, policy, ports, ports_of_guests, table, followed, changing }))
    }

    /// Exposes a TCP or UDP port while the engine does not run yet, for the operator. May wait for a name.
    ///
    /// # Errors
    /// See [`ExposeError`].
    pub fn configure(&self, engine: &mut Engine, wanted: Exposed) -> Result<(), ExposeError> {
        let address = Local::parse(&wanted.local, wanted.protocol.as_str()).and_then(resolve_at_once);
        let address = address.map_err(|why| bad_local(&wanted, why))?;
        if self.0.is_running(&wanted, Asker::Operator)? {
            return Ok(());
        }
        let to = remote_address(&wanted.remote).map_err(ExposeError::Remote)?;
        // At the start nobody else is kept waiting.
        let bound = patiently(|(_, error)| is_in_use(error), || bind(wanted.protocol, address));
        let listener = self.0.told(bound, &wanted, address, Asker::Operator)?;
        let id = engine.forward(listener, to, None).map_err(|error| cannot_watch(&wanted, &error))?;
        self.0.insert(wanted, Asker::Operator, Some(address), Running::Engine(id), None);
        Ok(())
    }

    /// Listens for `wanted`, if nobody does yet.
    ///
    /// It happens, or not, also if the future is dropped.
    ///
    /// # Errors
    /// See [`ExposeError`].
    pub async fn expose(&self, wanted: Exposed, asker: Asker) -> Result<(), ExposeError> {
        let inner = Arc::clone(&self.0);
        let task = tokio::spawn(async move { inner.expose(wanted, asker).await });
        task.await.unwrap_or(Err(ExposeError::Stopping))
    }

    /// Closes what listens at `local`, spelled as it was exposed; for a guest that has just exposed it again,
    /// only when it takes it back as often. Connections through the engine go on, as the original's do; flows
    /// of datagrams and all other connections end, as its do too.
    ///
    /// # Errors
    /// There is none, or it is not the asker's.
    pub async fn unexpose(&self, protocol: Protocol, local: &str, asker: Asker) -> Result<(), ExposeError> {
        let (inner, key) = (Arc::clone(&self.0), (local.to_owned(), protocol.as_str()));
        let task = tokio::spawn(async move { inner.unexpose(protocol, key, asker).await });
        task.await.unwrap_or(Err(ExposeError::Stopping))
    }

    /// Ends what guests exposed that are gone, and not back within a minute. Runs for ever.
    pub async fn follow_guests(self) {
        let inner = &self.0;
        let mut links = inner.connector.engine.links();
        loop {
            let are_gone = inner.look_for_guests().await;
            let again = async {
                match are_gone {
                    true => tokio::time::sleep(LOOK_AGAIN).await,
                    false => std::future::pending().await,
                }
            };
            tokio::select! {
                () = again => {}
                () = inner.followed.notified() => {}
                changed = links.changed() => {
                    // The engine has ended.
                    if changed.is_err() {
                        return;
                    }
                }
            }
        }
    }

    /// Everything that is exposed, in the order of `local`.
    pub fn all(&self) -> Vec<Exposed> {
        self.seen_by(Asker::Operator)
    }

    /// What `asker` may see: a guest only what it exposed itself.
    pub fn seen_by(&self, asker: Asker) -> Vec<Exposed> {
        let table = self.0.table();
        let seen = table.entries.values().filter(|entry| may_change(asker, entry));
        seen.map(|entry| entry.exposed.clone()).collect()
    }

    /// The daemon ends: closes every listener, removes every file, and exposes nothing from now on.
    pub async fn close(&self) {
        let _changing = self.0.changing(Protocol::Tcp).lock().await;
        let entries = {
            let mut table = self.0.table();
            table.closed = true;
            std::mem::take(&mut table.entries)
        };
        // At the same time: each may have to wait for a file system.
        for entry in entries.values() {
            if let Running::Socket { stop, .. } = &entry.running {
                let _ = stop.send(true);
            }
        }
        for (_, entry) in entries {
            self.0.end(entry.running).await;
        }
    }
}

impl Inner {
    fn changing(&self, protocol: Protocol) -> &tokio::sync::Mutex<()> {
        let [ports, sockets] = &self.changing;
        if matches!(protocol, Protocol::Tcp | Protocol::Udp) { ports } else { sockets }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn expose(&self, wanted: Exposed, asker: Asker) -> Result<(), ExposeError> {
        if let Asker::Guest(guest) = asker {
            self.policy.check(guest.address, &wanted).map_err(ExposeError::Denied)?;
        }
        let address = match wanted.protocol {
            Protocol::Tcp | Protocol::Udp => {
                let local = Local::parse(&wanted.local, wanted.protocol.as_str());
                let local = local.map_err(|why| bad_local(&wanted, why))?;
                Some(resolve(local).await.map_err(|why| bad_local(&wanted, why))?)
            }
            Protocol::Unix | Protocol::Npipe => None,
        };
        let _changing = self.changing(wanted.protocol).lock().await;
        if let Some(left) = self.take_left(&key(&wanted), asker).await {
            self.end(left).await;
        }
        if self.is_running(&wanted, asker)? {
            return Ok(());
        }
        let permit = self.permit(&wanted, asker)?;
        let running = match address {
            Some(address) => {
                let to = remote_address(&wanted.remote).map_err(ExposeError::Remote)?;
                let listener = self.told(bind(wanted.protocol, address), &wanted, address, asker)?;
                self.add(&wanted, listener, to, asker).await?
            }
            None if wanted.protocol == Protocol::Npipe && !named_pipe::EXIST => {
                return Err(ExposeError::NoPipes);
            }
            None => self.listen(&wanted, asker).await?,
        };
        let Some(running) = self.insert(wanted, asker, address, running, Some(permit)) else { return Ok(()) };
        self.end(running).await;
        Err(ExposeError::Stopping)
    }

    /// Looks which guests that exposed something are there, and ends what those did who have been away for
    /// long. Whether any is away.
    async fn look_for_guests(&self) -> bool {
        let guests: BTreeSet<Guest> =
            self.table().entries.values().filter_map(|entry| entry.asker.guest()).collect();
        let guests: Vec<Guest> = guests.into_iter().collect();
        if guests.is_empty() {
            return false;
        }
        let found = self.connector.engine.find_guests(guests.clone()).await;
        let found: HashMap<Guest, Option<Guest>> = guests.into_iter().zip(found).collect();
        let (now, mut left, mut are_gone) = (Instant::now(), Vec::new(), false);
        for (key, entry) in &mut self.table().entries {
            match entry.asker.guest().and_then(|guest| found.get(&guest)) {
                // Its asker stays the one that it was: behind a new link a guest may have begun anew.
                Some(Some(_)) => entry.gone = None,
                Some(None) => {
                    let since = *entry.gone.get_or_insert(now);
                    match now.saturating_duration_since(since) >= ABSENCE {
                        true => left.push((entry.exposed.protocol, key.clone())),
                        false => are_gone = true,
                    }
                }
                None => {}
            }
        }
        for (protocol, key) in left {
            let _changing = self.changing(protocol).lock().await;
            let entry = {
                let mut table = self.table();
                let is_left = table.entries.get(&key).is_some_and(|entry| entry.gone.is_some());
                is_left.then(|| table.entries.remove(&key)).flatten()
            };
            if let Some(entry) = entry {
                tracing::debug!(local = key.0, %protocol, "no longer exposed: its guest is gone");
                self.end(entry.running).await;
            }
        }
        are_gone
    }

    /// Of a machine that had the asker's address before and whose link has ended, if that is in the way. One
    /// that is only silent comes back.
    async fn take_left(&self, key: &Key, asker: Asker) -> Option<Running> {
        let asker = asker.guest()?;
        let before = self.table().entries.get(key)?.asker.guest()?;
        if before.address != asker.address || before.is(asker) {
            return None;
        }
        let is_there = self.connector.engine.find_guests(vec![before]).await.iter().any(Option::is_some);
        let left = (!is_there).then(|| self.table().entries.remove(key)).flatten();
        left.map(|entry| entry.running)
    }

    /// Whether that is exposed already.
    fn is_running(&self, wanted: &Exposed, asker: Asker) -> Result<bool, ExposeError> {
        let mut table = self.table();
        if table.closed {
            return Err(ExposeError::Stopping);
        }
        if let Some(entry) = table.entries.get_mut(&key(wanted)) {
            let same = entry.exposed.remote == wanted.remote;
            // Of a socket the original's own tests want to hear it.
            if same && matches!(wanted.protocol, Protocol::Tcp | Protocol::Udp) {
                entry.expose_again(asker, Instant::now());
                return Ok(true);
            }
            let leads = match asker {
                Asker::Operator => format!(": it leads to {}", entry.exposed.remote),
                Asker::Guest(..) => String::new(),
            };
            return Err(ExposeError::Running(format!("{} on {}{leads}", wanted.protocol, wanted.local)));
        }
        if let Asker::Guest(..) = asker {
            let count = table.entries.values().filter(|entry| may_change(asker, entry)).count();
            self.policy.check_count(count).map_err(ExposeError::Denied)?;
        }
        Ok(false)
    }

    /// A descriptor for what is to listen; some are left to clients.
    fn permit(&self, wanted: &Exposed, asker: Asker) -> Result<Permit, ExposeError> {
        let permits = match asker {
            Asker::Operator => self.ports.clone(),
            Asker::Guest(guest) => self.ports_of_guests.permits(guest.port),
        };
        permits.try_take().ok_or_else(|| {
            let Exposed { local, protocol, .. } = wanted;
            let limit = descriptor_limit();
            ExposeError::Listen(format!(
                "listen {protocol} {local}: too many open files: the limit is {limit}, and the rest is for clients; raise it (ulimit -Hn, LimitNOFILE=)"
            ))
        })
    }

    /// A socket of the host that was bound, or why it could not be.
    fn told(
        &self,
        bound: Result<PortSocket, (String, io::Error)>,
        wanted: &Exposed,
        address: BindAddress,
        asker: Asker,
    ) -> Result<PortSocket, ExposeError> {
        let protocol = wanted.protocol;
        let listener = bound.map_err(|(why, error)| {
            let owner = match (error.kind(), asker) {
                (io::ErrorKind::AddrInUse, Asker::Operator) => self.owner(protocol, address),
                // Who else listens on the host is not the guest's business.
                _ => String::new(),
            };
            ExposeError::Listen(format!("listen {protocol} {address}: {why}{owner}"))
        })?;
        if address.port() == 0 {
            let address = match &listener {
                PortSocket::Tcp(listener) => listener.local_addr(),
                PortSocket::Udp(socket) => socket.local_addr(),
            };
            let address = address.ok().map(|address| address.to_string());
            match asker {
                Asker::Operator => {
                    tracing::info!(%protocol, local = wanted.local, address, "port 0: the system chose a port");
                }
                // A guest could fill the log.
                Asker::Guest(..) => tracing::debug!(%protocol, local = wanted.local, address, "any port"),
            }
        }
        Ok(listener)
    }

    /// Whose the port is, for the end of a message.
    fn owner(&self, protocol: Protocol, address: BindAddress) -> String {
        let table = self.table();
        let ours = table.entries.values().find(|entry| {
            entry.exposed.protocol == protocol && entry.address.is_some_and(|other| other.overlaps(address))
        });
        match ours {
            Some(Entry { exposed: Exposed { local, remote, .. }, .. }) => {
                format!(" (by this daemon: {local} leads to {remote})")
            }
            None => crate::sys::owner::by_whom(protocol == Protocol::Udp, address.port()),
        }
    }

    async fn add(
        &self,
        wanted: &Exposed,
        listener: PortSocket,
        to: SocketAddrV4,
        asker: Asker,
    ) -> Result<Running, ExposeError> {
        match self.connector.engine.add_forward(listener, to, asker.guest()).await {
            Ok(id) => Ok(Running::Engine(id)),
            Err(error) if error.kind() == io::ErrorKind::ConnectionAborted => Err(ExposeError::Stopping),
            Err(error) => Err(cannot_watch(wanted, &error)),
        }
    }

    /// A socket whose clients are led by the control plane. A key is read when the first one comes, as in the
    /// original.
    async fn listen(&self, wanted: &Exposed, asker: Asker) -> Result<Running, ExposeError> {
        let dest = Dest::parse(&wanted.remote).map_err(ExposeError::Remote)?;
        if matches!(dest, Dest::Ssh(SshDest { key: None, .. })) {
            return Err(ExposeError::Remote("key not provided for unix-ssh connection".into()));
        }
        let failed = |error| ExposeError::Listen(format!("{error:#}"));
        if let Asker::Guest(..) = asker {
            GuestPolicy::check_names(&wanted.local).map_err(ExposeError::Denied)?;
        }
        // It may look up a user or a group.
        let local = OsString::from(&wanted.local);
        let source = disk::ask(Path::new(NAMES), move || ListenAddress::parse(&local)).await;
        let source = source.map_err(anyhow::Error::from).flatten();
        let source =
            source.with_context(|| format!("invalid local {}", quote(&wanted.local))).map_err(failed)?;
        if let Asker::Guest(guest) = asker {
            GuestPolicy::check_socket(guest.address, &source, &dest).map_err(ExposeError::Denied)?;
        }
        let directory = match &source {
            ListenAddress::Unix { path, .. } => path.clone(),
            _ => PathBuf::new(),
        };
        let listening = disk::ask(&directory, move || Forward::listen(&SocketForward { source, dest })).await;
        let forward = listening.map_err(anyhow::Error::from).flatten().map_err(failed)?;
        let (stop, stopped) = watch::channel(false);
        let task = tokio::spawn(forward.run(Arc::clone(&self.connector), stopped));
        Ok(Running::Socket { stop, task })
    }

    /// Gives `running` back if the daemon is about to end.
    fn insert(
        &self,
        exposed: Exposed,
        asker: Asker,
        address: Option<BindAddress>,
        running: Running,
        permit: Option<Permit>,
    ) -> Option<Running> {
        let mut table = self.table();
        if table.closed {
            return Some(running);
        }
        let Exposed { local, protocol, .. } = &exposed;
        match asker {
            // `remote` may hold a passphrase.
            Asker::Operator => tracing::info!(%protocol, local, "exposed"),
            // A guest could fill the log.
            Asker::Guest(guest) => {
                tracing::debug!(%protocol, local, guest = %guest.address, "exposed");
                self.followed.notify_one();
            }
        }
        let key = key(&exposed);
        table.entries.insert(
            key,
            Entry {
                exposed,
                asker,
                gone: None,
                repeats: Repeats::default(),
                address,
                running,
                _permit: permit,
            },
        );
        None
    }

    async fn unexpose(&self, protocol: Protocol, key: Key, asker: Asker) -> Result<(), ExposeError> {
        let _changing = self.changing(protocol).lock().await;
        let entry = {
            let mut table = self.table();
            // To a guest what is not its own does not exist.
            let entry = table.entries.get_mut(&key).filter(|entry| may_change(asker, entry));
            let entry = entry.ok_or(ExposeError::NotFound)?;
            if asker != Asker::Operator && entry.repeats.take_back(Instant::now()) {
                return Ok(());
            }
            table.entries.remove(&key)
        };
        let Some(entry) = entry else { return Err(ExposeError::NotFound) };
        self.end(entry.running).await;
        tracing::debug!(local = key.0, protocol = key.1, "no longer exposed");
        Ok(())
    }

    /// Returns when the listener is closed and its file is gone.
    async fn end(&self, running: Running) {
        match running {
            Running::Engine(id) => self.connector.engine.remove_forward(id).await,
            Running::Socket { stop, task } => {
                let _ = stop.send(true);
                let _ = task.await;
            }
        }
    }
}

/// A socket of the host.
fn bind(protocol: Protocol, address: BindAddress) -> Result<PortSocket, (String, io::Error)> {
    match protocol {
        Protocol::Udp => address.receive().map(PortSocket::Udp),
        _ => address.listen().map(PortSocket::Tcp),
    }
}

fn may_change(asker: Asker, entry: &Entry) -> bool {
    match (asker, entry.asker) {
        (Asker::Operator, _) => true,
        (Asker::Guest(guest), Asker::Guest(owner)) => guest.is(owner),
        (Asker::Guest(..), Asker::Operator) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_repeat_is_taken_back_at_once_or_never() {
        let (mut repeats, start) = (Repeats::default(), Instant::now());
        assert!(!repeats.take_back(start));
        repeats.add(start);
        repeats.add(start);
        assert!([0, 1, 2].map(|_| repeats.take_back(start)) == [true, true, false]);
        repeats.add(start);
        assert!(!repeats.take_back(start + CONFLICT), "the guest began anew meanwhile");
    }
}
