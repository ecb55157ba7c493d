//! A run: the engine's thread and the control plane's tasks, what makes it end, and how it is taken down.
//! Owns: the tasks, and the order in which they go. May not: bind. Read next: `bound.rs`, what there is to
//! run; `requests.rs`, what guests ask.

use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::sync::{oneshot, watch};
use tokio::task::{JoinError, JoinHandle, JoinSet};
use tokio::time::timeout;

use super::bound::{Bound, GoesOn};
use super::requests::resolve;
use super::{Exit, Stop};
use crate::engine::{Counters, Handle, Traffic};
use crate::forward::registry::Registry;
use crate::notify::Notice;
use crate::succession::Paths;
use crate::vm::Environment;

/// How often traffic is summed up in a log at debug level, as the original does.
const COUNTED_EVERY: Duration = Duration::from_secs(5);
/// How long it may take to take cards out of virtual machines.
const LAST_CARDS: Duration = Duration::from_secs(4);

/// Everything that runs.
pub(super) struct Running {
    engine: thread::JoinHandle<()>,
    engine_end: oneshot::Receiver<std::io::Result<()>>,
    handle: Handle,
    registry: Registry,
    /// Tells reverse forwards to end, while the links to their guests are there.
    leave: watch::Sender<bool>,
    /// Tells everybody else.
    stop: watch::Sender<bool>,
    reversing: JoinSet<()>,
    forwarding: JoinSet<Result<()>>,
    serving: JoinSet<()>,
    linked: JoinSet<Result<()>>,
    followed: JoinSet<Result<()>>,
    resolving: JoinHandle<()>,
    following: JoinHandle<()>,
    counting: Option<JoinHandle<()>>,
    goes_on: GoesOn,
    paths: Paths,
    has_other_ways: bool,
}

impl Bound {
    /// Starts the engine's thread and every task.
    ///
    /// # Errors
    /// The system has no thread to give.
    pub(super) fn start(self) -> Result<Running> {
        let Self { engine, handle, registry, terms, .. } = self;
        let (ended, engine_end) = oneshot::channel();
        let engine = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let _ = ended.send(engine.run());
            })
            .context("cannot start the network")?;

        let (stop, stopped) = watch::channel(false);
        let (leave, left) = watch::channel(false);
        let with = Environment {
            engine: handle.clone(),
            terms: Arc::clone(&terms),
            statuses: self.statuses,
            keep_device: self.keep_device,
            exit_with_vm: self.exit_with_vm,
            stop: stopped.clone(),
        };
        let api = Arc::new(self.api);
        let forwards = self.forwards.into_iter();
        let counting = tracing::enabled!(tracing::Level::DEBUG).then(|| tokio::spawn(count(handle.clone())));
        let running = Running {
            engine,
            engine_end,
            forwarding: forwards
                .map(|forward| forward.run(Arc::clone(&self.connector), stopped.clone()))
                .collect(),
            reversing: self.reverse.into_iter().map(|reverse| reverse.run(left.clone())).collect(),
            serving: self
                .apis
                .into_iter()
                .map(|api_at| api_at.run(Arc::clone(&api), stopped.clone()))
                .collect(),
            linked: self.links.into_iter().map(|link| link.serve(with.clone())).collect(),
            followed: self.machines.into_iter().map(|machine| machine.run(with.clone())).collect(),
            resolving: tokio::spawn(resolve(handle.clone(), api, self.connector.permits.clone())),
            following: tokio::spawn(registry.clone().follow_guests()),
            counting,
            handle,
            registry,
            leave,
            stop,
            goes_on: self.goes_on,
            paths: self.paths,
            has_other_ways: self.has_other_ways,
        };
        if let Some(notifier) = &terms.notifier {
            notifier.send(Notice::Ready);
        }
        Ok(running)
    }
}

impl Running {
    /// Waits until the run is over, and says why.
    ///
    /// # Errors
    /// It cannot go on.
    pub(super) async fn ended(&mut self, stop: &Stop) -> Result<Exit> {
        tokio::select! {
            result = &mut self.engine_end => engine_end(result),
            exit = links_end(&mut self.linked, self.goes_on) => exit,
            exit = machines_end(&mut self.followed) => exit,
            exit = replaced(&self.paths, self.has_other_ways, &self.handle) => Ok(exit),
            () = stop.asked() => Ok(Exit::Stopped),
            Some(failure) = self.forwarding.join_next() => forward_failure(failure).map(|()| Exit::Stopped),
            Err(error) = &mut self.following => Err(error).context("the task that ends what guests exposed has ended"),
            Err(error) = &mut self.resolving => Err(error).context("the task that answers guests has ended"),
        }
    }

    /// Takes everything down, and returns when it is gone.
    ///
    /// # Errors
    /// The engine had failed.
    pub(super) async fn drain(mut self) -> Result<()> {
        // Guests remove their sockets while the links to them are there.
        let _ = self.leave.send(true);
        while self.reversing.join_next().await.is_some() {}
        // Nobody is left to hear it if the engine has ended.
        let _ = self.stop.send(true);
        self.registry.close().await;
        // Cards are taken out of machines while their links are still there.
        let leaving = async {
            while self.followed.join_next().await.is_some() {}
            while self.linked.join_next().await.is_some() {}
        };
        if timeout(LAST_CARDS, leaving).await.is_err() {
            tracing::warn!("a virtual machine was not detached in time");
        }
        self.handle.stop().await;
        self.linked.shutdown().await;
        while let Some(result) = self.forwarding.join_next().await {
            if let Err(error) = forward_failure(result) {
                tracing::warn!(error = %format_args!("{error:#}"), "forward failed");
            }
        }
        while self.serving.join_next().await.is_some() {}
        for task in [Some(self.resolving), Some(self.following), self.counting].into_iter().flatten() {
            task.abort();
        }
        self.engine.join().map_err(|_| anyhow!("the network failed"))
    }
}

fn engine_end(result: Result<std::io::Result<()>, oneshot::error::RecvError>) -> Result<Exit> {
    result.map_err(|_| anyhow!("the network failed"))?.context("cannot wait for events")?;
    Ok(Exit::Stopped)
}

/// Waits until the run is over because of a link, and says how.
async fn links_end(links: &mut JoinSet<Result<()>>, goes_on: GoesOn) -> Result<Exit> {
    while let Some(ended) = links.join_next().await {
        let ended = ended.context("a link failed")?;
        if goes_on == GoesOn::No || (goes_on == GoesOn::WithAnother && links.is_empty()) {
            return ended.map(|()| Exit::GuestLeft);
        }
    }
    std::future::pending().await
}

/// Waits until the last machine has ended with which the run is to end.
async fn machines_end(machines: &mut JoinSet<Result<()>>) -> Result<Exit> {
    while let Some(ended) = machines.join_next().await {
        ended.context("a virtual machine's link failed")??;
        if machines.is_empty() {
            return Ok(Exit::GuestLeft);
        }
    }
    std::future::pending().await
}

/// Waits until neither a virtual machine is attached nor a way in is left, as another process has taken over
/// the paths.
async fn replaced(paths: &Paths, has_other_ways: bool, handle: &Handle) -> Exit {
    paths.lost().await;
    if has_other_ways {
        std::future::pending::<()>().await;
    }
    handle.without_links().await;
    Exit::Replaced
}

/// A forward runs as long as the daemon; one that ended by itself has failed.
fn forward_failure(result: Result<Result<()>, JoinError>) -> Result<()> {
    result.context("a forward failed")?
}

/// Logs what passed, every few seconds in which something did.
async fn count(handle: Handle) {
    let mut every = tokio::time::interval(COUNTED_EVERY);
    let mut before = (Traffic::default(), Traffic::default());
    loop {
        every.tick().await;
        let Counters { received, sent, .. } = handle.counters().await;
        if (received, sent) != before {
            before = (received, sent);
            tracing::debug!(
                sent_frames = sent.frames,
                sent_bytes = sent.bytes,
                received_frames = received.frames,
                received_bytes = received.bytes,
                "traffic of virtual machines"
            );
        }
    }
}
