//! Builds what [`Config`] says, runs it, takes it down. Owns: the order of those three, and the control plane's one thread.
//! May not: know what a frame or a flow is. Read next: `engine/mod.rs`.
//!
//! Everything is bound before anything runs, so that a failure leaves nothing behind, and clients that come early wait.

mod requests;

use std::fmt;
use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result, anyhow};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::addr::ListenAddress;
use crate::api::{Api, Listener as ApiListener, Role};
use crate::config::{Config, LinkConfig, Token};
use crate::disk;
use crate::engine::{Counters, Engine, Handle, Traffic};
use crate::forward::loops::OwnSockets;
use crate::forward::registry::Registry;
use crate::forward::{Forward, Ways};
use crate::host::icmp;
use crate::hypervisor::{Listener, Presence, Terms, connect_framing};
use crate::link::Framing;
use crate::listen::{self, RemoveOnDrop, at_start};
use crate::logging::Log;
use crate::logging::frames::FrameLog;
use crate::notify::{Notice, Notifier};
use crate::pcap::Capture;
use crate::pidfile::PidFile;
use crate::places::Places;
use crate::preflight;
use crate::relay::Relays;
use crate::reverse::Reverse;
use crate::ssh::Penalties;
use crate::succession::{Paths, Predecessors};
use crate::sys::UnlessIgnored;
use crate::vm::status::StatusTable;
use crate::vm::{Environment, Machine, QemuLink};

use requests::resolve;

/// How long what is still to be told may hold up the end.
const LAST_NOTICES: Duration = Duration::from_secs(1);
/// How often traffic is summed up in a log at debug level, as the original does.
const COUNTED_EVERY: Duration = Duration::from_secs(5);
/// How long it may take to take cards out of virtual machines.
const LAST_CARDS: Duration = Duration::from_secs(4);
/// What a virtual machine comes by.
const WAYS_IN: &str =
    "-listen-qemu, -listen-vfkit, -listen-bess, -listen-vpnkit, -listen-stdio, -qmp, or -listen for /connect";

/// Why a run ended without a failure.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Exit {
    /// SIGINT or SIGTERM.
    Signal,
    /// The virtual machine closed its end.
    GuestLeft,
    /// Nobody can reach it: its sockets' paths are another process's.
    Replaced,
}

impl fmt::Display for Exit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Signal => "signal caught",
            Self::GuestLeft => "virtual machine left",
            Self::Replaced => "another process has its sockets' paths",
        })
    }
}

/// The thread that may wait, hearing signals. To be had before anything is made that a signal would have to remove.
#[derive(Debug)]
pub struct ControlPlane {
    runtime: tokio::runtime::Runtime,
    signals: Signals,
    /// SIGHUP, where the log is a file, which may have been moved away. Else it is what the system or nohup(1) made of it.
    hangup: Option<(Signal, Log)>,
}

impl ControlPlane {
    /// From now on SIGTERM, and SIGINT unless it was ignored at the start, do not kill the process, but end [`run`](Self::run), and at SIGHUP a
    /// log file is opened again.
    ///
    /// # Errors
    /// The system has no event queue or signal handler to give.
    pub fn new(log: &Log) -> Result<Self> {
        let runtime = tokio::runtime::Builder::new_current_thread()
            .enable_all()
            .build()
            .context("cannot start the runtime")?;
        let hangup = || log.is_file().then(|| signal(SignalKind::hangup())).transpose();
        let (signals, hangup) = runtime
            .block_on(async { Ok::<_, std::io::Error>((Signals::new()?, hangup()?)) })
            .context("cannot watch signals")?;
        Ok(Self { runtime, signals, hangup: hangup.map(|hangup| (hangup, log.clone())) })
    }

    /// Returns when the daemon is done and everything it made is gone.
    ///
    /// # Errors
    /// It could not start, or could not go on.
    pub fn run(self, config: Config) -> Result<Exit> {
        crate::sys::prepare_process();
        let Self { runtime, mut signals, hangup } = self;
        // It goes when everything else is gone.
        let mut pid_file = None;
        let exit = runtime.block_on(async {
            if let Some((mut hangup, log)) = hangup {
                tokio::spawn(async move {
                    while hangup.recv().await.is_some() {
                        log.reopen();
                    }
                });
            }
            let (notifier, delivery) = config.notification.clone().map(Notifier::new).unzip();
            let delivery = delivery.map(|delivery| tokio::spawn(delivery.run()));
            let lacks_way_in = config.lacks_way_in();
            let exit = match unless_ended(&mut signals, || Daemon::bind(config, notifier)).await {
                Ok(Some((daemon, made))) => {
                    pid_file = made;
                    listen::warn_of_unclaimed();
                    if lacks_way_in {
                        tracing::warn!(give = WAYS_IN, "no virtual machine can come: there is no way in");
                    }
                    daemon.serve(signals).await
                }
                Ok(None) => Ok(Exit::Signal),
                Err(error) => Err(error),
            };
            if let Some(delivery) = delivery
                && tokio::time::timeout(LAST_NOTICES, delivery).await.is_err()
            {
                tracing::warn!("notifications were not read in time");
            }
            exit
        });
        // What still waits for a file system or a resolver is left alone.
        runtime.shutdown_background();
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
        &mut self,
        work: impl FnOnce() -> Result<T> + Send + 'static,
    ) -> Result<Option<T>> {
        self.runtime.block_on(unless_ended(&mut self.signals, work))
    }
}

async fn unless_ended<T: Send + 'static>(
    signals: &mut Signals,
    work: impl FnOnce() -> Result<T> + Send + 'static,
) -> Result<Option<T>> {
    let mut working = tokio::task::spawn_blocking(work);
    tokio::select! {
        done = &mut working => done.context("the start failed")?.map(Some),
        // What it made is removed if it ends now, as it does unless it waits.
        () = signals.any() => {
            let _ = tokio::time::timeout(LAST_NOTICES, working).await;
            Ok(None)
        }
    }
}

/// The signals that end the daemon.
#[derive(Debug)]
struct Signals {
    interrupt: UnlessIgnored,
    terminate: Signal,
}

impl Signals {
    fn new() -> std::io::Result<Self> {
        let interrupt = UnlessIgnored::new(SignalKind::interrupt())?;
        Ok(Self { interrupt, terminate: signal(SignalKind::terminate())? })
    }

    async fn any(&mut self) {
        tokio::select! {
            () = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }
}

/// Everything bound, nothing running.
struct Daemon {
    engine: Engine,
    handle: Handle,
    registry: Registry,
    ways: Arc<Ways>,
    forwards: Vec<Forward>,
    reverse: Vec<Reverse>,
    apis: Vec<ApiListener>,
    connect_framing: Framing,
    api_token: Option<Token>,
    api_token_gateway: bool,
    links: Vec<Link>,
    machines: Vec<Machine>,
    terms: Arc<Terms>,
    goes_on: GoesOn,
    paths: Paths,
    has_other_ways: bool,
    keep_device: bool,
    exit_with_vm: bool,
}

/// A way in for hypervisors.
enum Link {
    Qemu(QemuLink),
    Other(Listener),
}

impl Link {
    fn bind(config: &LinkConfig) -> Result<Self> {
        match config {
            LinkConfig::Qemu(ListenAddress::Unix { path, .. }) => QemuLink::bind(path).map(Self::Qemu),
            other => Listener::bind(other).map(Self::Other),
        }
    }

    fn file(&self) -> Option<&RemoveOnDrop> {
        match self {
            Self::Qemu(link) => link.file(),
            Self::Other(listener) => listener.file(),
        }
    }

    async fn serve(self, with: Environment) -> Result<()> {
        match self {
            Self::Qemu(link) => link.serve(with).await,
            Self::Other(listener) => tokio::select! {
                ended = listener.serve(with.engine.clone(), Arc::clone(&with.terms)) => ended,
                () = with.stopped() => Ok(()),
            },
        }
    }
}

impl Daemon {
    fn bind(config: Config, notifier: Option<Notifier>) -> Result<(Self, Option<PidFile>)> {
        let seed = crate::sys::random_seed().context("cannot get randomness")?;
        let (gateway, subnet) = (config.network.gateway_mac, config.network.subnet);
        let (gateway_ip, login) = (config.network.gateway, config.login_ip());
        let terms = Arc::new(Terms {
            keep_running: config.keep_running || !config.machines.is_empty(),
            mtu: config.network.mtu,
            vpnkit_macs: config.vpnkit_macs,
            notifier,
            present: Presence::default(),
        });
        let relays = Arc::new(Relays::default());
        let known = relays.max_descriptors() + config.forwards.len() + config.port_forwards.len();
        let places = Places::new(known + icmp::max_sessions());
        let (mut engine, handle) =
            Engine::new(config.network, seed, places.clone()).context("cannot start the network")?;
        engine.limit_connects(config.connects);
        if let Some(notifier) = &terms.notifier {
            engine.notify(notifier.clone());
        }
        let capture = config.capture.as_deref().map(Capture::create).transpose()?;
        engine.tap(capture, config.frame_log.map(FrameLog::new), gateway);
        let ways = Arc::new(Ways {
            engine: handle.clone(),
            subnet,
            gateway: gateway_ip,
            login,
            penalties: Arc::new(Penalties::new(handle.links_attached())),
            agent: SocketAddrV4::new(config.device_ip, config.agent_port),
            agent_secret: config.agent_secret,
            places,
            relays,
            own: OwnSockets::default(),
        });
        let registry = Registry::new(Arc::clone(&ways), config.guest_policy);
        for forward in config.port_forwards {
            registry.configure(&mut engine, forward).context("cannot add network services")?;
        }
        let bind_links = || {
            let links = config.links.iter().map(|link| at_start(|| Link::bind(link)));
            let links = links.collect::<Result<Vec<_>>>()?;
            let machines =
                config.machines.iter().map(|machine| at_start(|| Machine::bind(machine, &config.links)));
            Ok((links, machines.collect::<Result<Vec<_>>>()?))
        };
        let bind_links = || bind_links().inspect_err(|_: &anyhow::Error| terms.tell_failure());
        let reverse =
            config.reverse.iter().map(|reverse| Reverse::new(reverse, &ways)).collect::<Result<_>>()?;
        let services = config.services.iter().map(|endpoint| (endpoint, Role::Services));
        let endpoints = config.listen.iter().map(|endpoint| (endpoint, Role::Control)).chain(services);
        let (files, others): (Vec<_>, Vec<_>) =
            config.forwards.iter().partition(|forward| forward.source.path().is_some());
        let (api_files, other_apis): (Vec<_>, Vec<_>) =
            endpoints.partition(|(endpoint, _)| endpoint.path().is_some());
        // What can fail is first: what is taken over is not given back.
        let bind_forward = |forward| at_start(|| Forward::bind(forward));
        let mut forwards = others.into_iter().map(bind_forward).collect::<Result<Vec<_>>>()?;
        let bind_api = |(endpoint, role)| at_start(|| ApiListener::bind(endpoint, role));
        let mut apis = other_apis.into_iter().map(bind_api).collect::<Result<Vec<_>>>()?;
        let wanted = api_files.iter().filter_map(|(endpoint, _)| endpoint.path().map(Path::to_owned));
        let wanted =
            wanted.map(ListenAddress::private).chain(files.iter().map(|forward| forward.source.clone()));
        let wanted: Vec<_> = wanted.collect();
        let before = Predecessors::at(wanted.iter().filter_map(ListenAddress::path));
        if !before.is_empty() {
            wanted.iter().try_for_each(preflight::ensure_to_be_made)?;
        }
        // Whoever finds a socket finds it there.
        let pid_file = config.pid_file.as_deref().map(PidFile::create).transpose()?;
        // Of two that are started at once for one machine and would both take over, one gets no further.
        let early = (!before.is_empty()).then(bind_links).transpose()?;
        for forward in files {
            forward.source.path().map_or(Ok(()), |path| before.make_way(path))?;
            forwards.push(bind_forward(forward)?);
        }
        for (endpoint, role) in api_files {
            endpoint.path().map_or(Ok(()), |path| before.make_way(path))?;
            apis.push(bind_api((endpoint, role))?);
        }
        let goes_on = match terms.keep_running {
            false => GoesOn::No,
            true if config.listen.is_empty() && config.machines.is_empty() => GoesOn::WithAnother,
            true => GoesOn::Always,
        };
        let connect_framing = connect_framing(&config.links);
        // The last, so that whoever waits for one finds the rest there.
        let (links, machines) = match early {
            Some(bound) => bound,
            None => bind_links()?,
        };
        let of_links = links.iter().filter_map(|link| match link {
            Link::Other(listener) => listener.tcp_address(),
            Link::Qemu(_) => None,
        });
        let own = forwards.iter().filter_map(Forward::tcp_address);
        let own = own.chain(apis.iter().filter_map(ApiListener::tcp_address)).chain(of_links);
        engine.keep_from_guests(own.collect());
        let pid_file = pid_file.map(PidFile::keep).transpose()?;
        let taken = forwards.iter().map(Forward::file).chain(apis.iter().map(ApiListener::file));
        let (taken, kept) = (taken.collect::<Vec<_>>(), links.iter().map(Link::file).collect::<Vec<_>>());
        let has_other_ways = !machines.is_empty() || taken.iter().chain(&kept).any(Option::is_none);
        let made = |files: Vec<Option<&RemoveOnDrop>>| {
            files.into_iter().flatten().map(|file| file.made().clone()).collect()
        };
        let paths = Paths { taken: made(taken), kept: made(kept) };
        let daemon = Self {
            engine,
            handle,
            registry,
            ways,
            forwards,
            reverse,
            apis,
            connect_framing,
            api_token: config.api_token,
            api_token_gateway: config.api_token_gateway,
            links,
            machines,
            terms,
            goes_on,
            paths,
            has_other_ways,
            keep_device: config.keep_device,
            exit_with_vm: config.exit_with_vm,
        };
        Ok((daemon, pid_file))
    }

    async fn serve(self, mut signals: Signals) -> Result<Exit> {
        let Self { engine, handle, registry, terms, .. } = self;
        let (ended, mut end) = oneshot::channel();
        let thread = thread::Builder::new()
            .name("engine".to_owned())
            .spawn(move || {
                let _ = ended.send(engine.run());
            })
            .context("cannot start the network")?;

        let (stop, stopped) = watch::channel(false);
        let mut forwarding = JoinSet::new();
        for forward in self.forwards {
            forwarding.spawn(forward.run(Arc::clone(&self.ways), stopped.clone()));
        }
        let (leave, left) = watch::channel(false);
        let mut reversing = JoinSet::new();
        for reverse in self.reverse {
            reversing.spawn(reverse.run(left.clone()));
        }
        let statuses = StatusTable::default();
        let places = self.ways.places.clone();
        let mut api = Api::new(self.ways, registry.clone(), self.connect_framing, statuses.clone());
        if let Some(token) = self.api_token {
            api.ask_for(token, self.api_token_gateway);
        }
        let api = Arc::new(api);
        let mut serving = JoinSet::new();
        for listener in self.apis {
            serving.spawn(listener.run(Arc::clone(&api), stopped.clone()));
        }
        let mut linked = JoinSet::new();
        let with = Environment {
            engine: handle.clone(),
            terms: Arc::clone(&terms),
            statuses,
            keep_device: self.keep_device,
            exit_with_vm: self.exit_with_vm,
            stop: stopped.clone(),
        };
        for link in self.links {
            linked.spawn(link.serve(with.clone()));
        }
        let mut followed = JoinSet::new();
        for machine in self.machines {
            followed.spawn(machine.run(with.clone()));
        }
        let mut resolving = tokio::spawn(resolve(handle.clone(), api, places));
        let counting = tracing::enabled!(tracing::Level::DEBUG).then(|| tokio::spawn(count(handle.clone())));
        let mut following = tokio::spawn(registry.clone().follow_guests());
        if let Some(notifier) = &terms.notifier {
            notifier.send(Notice::Ready);
        }

        let exit = tokio::select! {
            result = &mut end => engine_end(result),
            exit = links_end(&mut linked, self.goes_on) => exit,
            exit = machines_end(&mut followed) => exit,
            exit = replaced(self.paths, self.has_other_ways, &handle) => Ok(exit),
            () = signals.any() => Ok(Exit::Signal),
            Some(failure) = forwarding.join_next() => forward_failure(failure),
            Err(error) = &mut following => Err(error).context("the task that ends what guests exposed has ended"),
            Err(error) = &mut resolving => Err(error).context("the task that answers guests has ended"),
        };
        tracing::debug!("stopping");
        disk::process_ends();
        // Guests remove their sockets while the links to them are there.
        let _ = leave.send(true);
        while reversing.join_next().await.is_some() {}
        // Nobody is left to hear it if the engine has ended.
        let _ = stop.send(true);
        registry.close().await;
        // Cards are taken out of machines while their links are still there.
        let leaving = async {
            while followed.join_next().await.is_some() {}
            while linked.join_next().await.is_some() {}
        };
        if tokio::time::timeout(LAST_CARDS, leaving).await.is_err() {
            tracing::warn!("a virtual machine was not detached in time");
        }
        handle.stop().await;
        linked.shutdown().await;
        while let Some(result) = forwarding.join_next().await {
            if let Err(error) = forward_failure(result) {
                tracing::warn!(error = %format_args!("{error:#}"), "forward failed");
            }
        }
        while serving.join_next().await.is_some() {}
        resolving.abort();
        following.abort();
        if let Some(counting) = counting {
            counting.abort();
        }
        if thread.join().is_err() {
            return Err(anyhow!("the network failed"));
        }
        exit
    }
}

fn engine_end(result: Result<std::io::Result<()>, oneshot::error::RecvError>) -> Result<Exit> {
    result.map_err(|_| anyhow!("the network failed"))?.context("cannot wait for events")?;
    Ok(Exit::Signal)
}

/// When the run is over because of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum GoesOn {
    /// When the first one ends.
    No,
    /// When the last way in is gone.
    WithAnother,
    /// Never: `/connect` stays a way in, or QMP.
    Always,
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

/// Waits until neither a virtual machine is attached nor a way in is left, as another process has taken over the paths.
async fn replaced(paths: Paths, has_other_ways: bool, handle: &Handle) -> Exit {
    paths.lost().await;
    if has_other_ways {
        std::future::pending::<()>().await;
    }
    handle.without_links().await;
    Exit::Replaced
}

/// A forward runs as long as the daemon; one that ended by itself has failed.
fn forward_failure(result: Result<Result<()>, tokio::task::JoinError>) -> Result<Exit> {
    result.context("a forward failed")??;
    Ok(Exit::Signal)
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
