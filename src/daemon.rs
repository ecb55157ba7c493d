//! Runs what [`Config`] says, from the first socket to the last. Owns: the control plane's one thread, and
//! what ends a run.
//! May not: know what a frame or a flow is; touch what belongs to the process, but for the signals that it
//! was told to hear.
//! Read next: `daemon/bound.rs`, `daemon/running.rs`; `daemon/embedded.rs`, the library's face;
//! `engine/mod.rs`.

mod bound;
mod embedded;
mod requests;
mod running;

use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result};
use tokio::runtime::{self, Runtime};
use tokio::sync::watch;

use crate::config::Config;
use crate::disk;
use crate::listen;
use crate::logging::Log;
use crate::notify::Notifier;
use crate::sys::signals::{Hangup, Quit};

use bound::Bound;

pub use embedded::{Builder, Daemon, Handle};

/// How long what is still to be told may hold up the end.
const LAST_NOTICES: Duration = Duration::from_secs(1);

/// What a virtual machine comes by.
const WAYS_IN: &str =
    "-listen-qemu, -listen-vfkit, -listen-bess, -listen-vpnkit, -listen-stdio, -qmp, or -listen for /connect";

/// Why a run ended without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// It was to end: by [`Handle::shutdown`]; in the program `gvproxy` by SIGINT or SIGTERM.
    Stopped,
    /// The virtual machine left that it was started for: that of `-listen-qemu` or its like without
    /// `-keep-running`, or the last one of `-qmp` with `-exit-with-vm`. The end of a link that was given to
    /// [`Handle::attach`] ends no run.
    GuestLeft,
    /// Nobody can reach it, as its sockets' paths are another process's. Never where there is a [`Handle`].
    Replaced,
}

/// The thread that may wait. To be had before anything is made that a signal would have to remove.
#[derive(Debug)]
pub struct ControlPlane {
    runtime: Runtime,
    stop: Stop,
}

impl ControlPlane {
    /// Hears no signal.
    ///
    /// # Errors
    /// The system has no event queue to give.
    pub fn new() -> Result<Self> {
        let runtime = runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        Ok(Self { runtime, stop: Stop::default() })
    }

    /// From now on SIGTERM, and SIGINT unless it was ignored at the start, do not kill the process, but end
    /// [`run`](Self::run). At SIGHUP a log file is opened again, which may have been moved away; without one
    /// it is what the system or nohup(1) made of it.
    ///
    /// # Errors
    /// The system has no signal handler to give.
    pub fn catch_signals(&self, log: &Log) -> Result<()> {
        let _entered = self.runtime.enter();
        let hangup = || log.is_file().then(Hangup::new).transpose();
        let heard = Quit::new().and_then(|quit| Ok((quit, hangup()?)));
        let (mut quit, hangup) = heard.context("cannot watch signals")?;
        let stop = self.stop.clone();
        self.runtime.spawn(async move {
            quit.asked().await;
            stop.ask();
        });
        if let Some(mut hangup) = hangup {
            let log = log.clone();
            self.runtime.spawn(async move {
                loop {
                    hangup.recv().await;
                    log.reopen();
                }
            });
        }
        Ok(())
    }

    /// Returns when the daemon is done and everything it made is gone.
    ///
    /// # Errors
    /// It could not start, or could not go on.
    pub fn run(self, config: Config) -> Result<Exit> {
        self.run_in(Process::Own, config)
    }

    fn run_in(self, process: Process, config: Config) -> Result<Exit> {
        let Self { runtime, stop } = self;
        let is_own = matches!(process, Process::Own);
        // It goes when everything else is gone.
        let mut pid_file = None;
        let exit = runtime.block_on(async {
            let (notifier, delivery) = config.notification.clone().map(Notifier::new).unzip();
            let delivery = delivery.map(|delivery| tokio::spawn(delivery.run()));
            let lacks_way_in = config.lacks_way_in();
            let exit = match unless_ended(&stop, move || Bound::bind(config, notifier, is_own)).await {
                Ok(Some((bound, made))) => {
                    pid_file = made;
                    serve(bound, process, lacks_way_in, &stop).await
                }
                Ok(None) => Ok(Exit::Stopped),
                Err(error) => Err(error),
            };
            if let Some(delivery) = delivery
                && tokio::time::timeout(LAST_NOTICES, delivery).await.is_err()
            {
                tracing::warn!("notifications were not read in time");
            }
            exit
        });
        // What still waits for a file system or a resolver is left alone; where the process goes on, not at
        // once.
        runtime.shutdown_timeout(if is_own { Duration::ZERO } else { LAST_NOTICES });
        drop(pid_file);
        exit
    }

    /// Ends without a run, whatever still waits.
    pub fn leave(self) {
        self.runtime.shutdown_background();
    }

    /// Does `work`, which may have to wait for a file system; `None` if the process is to end first.
    ///
    /// # Errors
    /// Those of `work`.
    pub fn unless_ended<T: Send + 'static>(
        &self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        self.runtime.block_on(unless_ended(&self.stop, work))
    }
}

/// Whose process it is.
enum Process {
    /// The program's, `gvproxy`.
    Own,
    /// Another program's, which is told when everything is bound.
    Anothers(mpsc::Sender<Handle>),
}

async fn serve(bound: Bound, process: Process, lacks_way_in: bool, stop: &Stop) -> Result<Exit> {
    let is_own = matches!(process, Process::Own);
    let mut bound = bound;
    // By its handle a daemon in another program has another way in.
    bound.has_other_ways |= !is_own;
    if is_own {
        listen::warn_of_unclaimed();
        if lacks_way_in {
            tracing::warn!(give = WAYS_IN, "no virtual machine can come: there is no way in");
        }
    }
    let handle = Handle::new(&bound, stop.clone());
    let mut running = bound.start()?;
    if let Process::Anothers(ready) = process {
        let _ = ready.send(handle);
    }
    let exit = running.ended(stop).await;
    tracing::debug!("stopping");
    if is_own {
        disk::process_ends();
    }
    running.drain().await.and(exit)
}

async fn unless_ended<T: Send + 'static>(
    stop: &Stop,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<Option<T>> {
    let mut working = tokio::task::spawn_blocking(work);
    tokio::select! {
        done = &mut working => done.context("the start failed")?.map(Some),
        // What it made is removed if it ends now, as it does unless it waits.
        () = stop.asked() => {
            let _ = tokio::time::timeout(LAST_NOTICES, working).await;
            Ok(None)
        }
    }
}

/// That a run is to end. Clones are of the same run.
#[derive(Clone, Debug, Default)]
struct Stop(watch::Sender<bool>);

impl Stop {
    fn ask(&self) {
        self.0.send_replace(true);
    }

    async fn asked(&self) {
        let _ = self.0.subscribe().wait_for(|asked| *asked).await;
    }
}
