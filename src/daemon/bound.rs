//! Everything that a run needs, bound, and nothing running yet: a failure leaves nothing behind, and clients
//! that come early wait.
//! Owns: the order in which sockets are made and taken over. May not: serve anybody. Read next: `running.rs`;
//! `../listen.rs`, `../succession.rs`.

use std::net::SocketAddrV4;
use std::path::Path;
use std::sync::Arc;

use anyhow::{Context, Result};

use crate::addr::ListenAddress;
use crate::api::{Api, ApiListener, Role};
use crate::config::{Config, LinkConfig};
use crate::engine::{Engine, Handle};
use crate::forward::loops::OwnSockets;
use crate::forward::registry::Registry;
use crate::forward::{Connector, Forward};
use crate::host::icmp;
use crate::hypervisor::{HypervisorListener, Presence, Terms, connect_framing};
use crate::listen::{RemoveOnDrop, TcpAddress, at_start};
use crate::logging::frames::FrameLog;
use crate::notify::Notifier;
use crate::pcap::Capture;
use crate::permits::Permits;
use crate::pidfile::PidFile;
use crate::preflight;
use crate::relay::Relays;
use crate::reverse::Reverse;
use crate::ssh::Penalties;
use crate::succession::{Paths, Predecessors};
use crate::vm::status::StatusTable;
use crate::vm::{Environment, Machine, QemuLink};

/// Everything bound, nothing running.
pub(super) struct Bound {
    pub(super) engine: Engine,
    pub(super) handle: Handle,
    pub(super) registry: Registry,
    pub(super) connector: Arc<Connector>,
    pub(super) api: Api,
    pub(super) statuses: StatusTable,
    pub(super) terms: Arc<Terms>,
    pub(super) reverse: Vec<Reverse>,
    pub(super) forwards: Vec<Forward>,
    pub(super) apis: Vec<ApiListener>,
    pub(super) links: Vec<Link>,
    pub(super) machines: Vec<Machine>,
    pub(super) paths: Paths,
    /// Whether guests can come, or somebody can be served, by what has no path.
    pub(super) has_other_ways: bool,
    pub(super) goes_on: GoesOn,
    pub(super) keep_device: bool,
    pub(super) exit_with_vm: bool,
}

/// When the run is over because of a link.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum GoesOn {
    /// When the first one ends.
    No,
    /// When the last way in is gone.
    WithAnother,
    /// Never: `/connect` stays a way in, or QMP.
    Always,
}

impl Bound {
    /// Binds all of it, and writes the pid file before the first socket that has a path. `takes_over`: other
    /// gvproxies' sockets for clients too, by which those end.
    ///
    /// # Errors
    /// One of them is not to be had; then nothing is left of the others, and the pid file is as it was.
    pub(super) fn bind(
        config: Config,
        notifier: Option<Notifier>,
        takes_over: bool,
    ) -> Result<(Self, Option<PidFile>)> {
        let terms = Arc::new(Terms {
            keep_running: config.keep_running || !config.machines.is_empty(),
            mtu: config.network.mtu,
            vpnkit_macs: config.vpnkit_macs.clone(),
            notifier,
            present: Presence::default(),
        });
        let (mut engine, connector) = network(&config, &terms)?;
        let registry = Registry::new(Arc::clone(&connector), config.guest_policy.clone());
        for forward in config.port_forwards.clone() {
            registry.configure(&mut engine, forward).context("cannot add network services")?;
        }
        let reverse =
            config.reverse.iter().map(|reverse| Reverse::new(reverse, &connector)).collect::<Result<_>>()?;
        let Sockets { pid_file, forwards, apis, links, machines } =
            Sockets::bind(&config, &terms, takes_over)?;
        let own = forwards.iter().filter_map(Forward::tcp_address);
        let own = own.chain(apis.iter().filter_map(ApiListener::tcp_address));
        engine.keep_from_guests(own.chain(links.iter().filter_map(Link::tcp_address)).collect());
        let pid_file = pid_file.map(PidFile::keep).transpose()?;

        let taken = forwards.iter().map(Forward::file).chain(apis.iter().map(ApiListener::file));
        let (taken, kept) = (taken.collect::<Vec<_>>(), links.iter().map(Link::file).collect::<Vec<_>>());
        let has_other_ways = !machines.is_empty() || taken.iter().chain(&kept).any(Option::is_none);
        let made = |files: Vec<Option<&RemoveOnDrop>>| {
            files.into_iter().flatten().map(|file| file.made().clone()).collect()
        };
        let paths = Paths { taken: made(taken), kept: made(kept) };

        let goes_on = match terms.keep_running {
            false => GoesOn::No,
            true if config.listen.is_empty() && config.machines.is_empty() => GoesOn::WithAnother,
            true => GoesOn::Always,
        };
        let statuses = StatusTable::default();
        let framing = connect_framing(&config.links);
        let mut api = Api::new(Arc::clone(&connector), registry.clone(), framing, statuses.clone());
        if let Some(token) = config.api_token {
            api.ask_for(token, config.api_token_gateway);
        }
        let bound = Self {
            handle: connector.engine.clone(),
            engine,
            registry,
            connector,
            api,
            statuses,
            terms,
            reverse,
            forwards,
            apis,
            links,
            machines,
            paths,
            has_other_ways,
            goes_on,
            keep_device: config.keep_device,
            exit_with_vm: config.exit_with_vm,
        };
        Ok((bound, pid_file))
    }
}

/// The virtual network, and what connects from the host into it.
fn network(config: &Config, terms: &Terms) -> Result<(Engine, Arc<Connector>)> {
    let seed = crate::sys::random_seed().context("cannot get randomness")?;
    let relays = Arc::new(Relays::default());
    let known = relays.max_descriptors() + config.forwards.len() + config.port_forwards.len();
    let permits = Permits::new(known + icmp::max_sessions());
    let (mut engine, handle) =
        Engine::new(config.network.clone(), seed, permits.clone()).context("cannot start the network")?;
    engine.limit_connects(config.connects);
    if let Some(notifier) = &terms.notifier {
        engine.notify(notifier.clone());
    }
    let capture = config.capture.as_deref().map(Capture::create).transpose()?;
    engine.tap(capture, config.frame_log.map(FrameLog::new), config.network.gateway_mac);
    let connector = Arc::new(Connector {
        engine: handle.clone(),
        subnet: config.network.subnet,
        gateway: config.network.gateway,
        login: config.login_ip(),
        penalties: Arc::new(Penalties::new(handle.links_attached())),
        agent: SocketAddrV4::new(config.device_ip, config.agent_port),
        agent_secret: config.agent_secret.clone(),
        permits,
        relays,
        own: OwnSockets::default(),
    });
    Ok((engine, connector))
}

/// The sockets, and the pid file that is older than those with a path.
struct Sockets {
    forwards: Vec<Forward>,
    apis: Vec<ApiListener>,
    pid_file: Option<PidFile>,
    links: Vec<Link>,
    machines: Vec<Machine>,
}

impl Sockets {
    fn bind(config: &Config, terms: &Terms, takes_over: bool) -> Result<Self> {
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
        let before = Predecessors::at(wanted.iter().filter(|_| takes_over).filter_map(ListenAddress::path));
        if !before.is_empty() {
            wanted.iter().try_for_each(preflight::ensure_to_be_made)?;
        }
        // Whoever finds a socket finds it there.
        let pid_file = config.pid_file.as_deref().map(PidFile::create).transpose()?;
        // Of two that are started at once for one machine and would both take over, one gets no further.
        let early = (!before.is_empty()).then(|| bind_links(config, terms)).transpose()?;
        for forward in files {
            forward.source.path().map_or(Ok(()), |path| before.make_way(path))?;
            forwards.push(bind_forward(forward)?);
        }
        for (endpoint, role) in api_files {
            endpoint.path().map_or(Ok(()), |path| before.make_way(path))?;
            apis.push(bind_api((endpoint, role))?);
        }
        // The last, so that whoever waits for one finds the rest there.
        let (links, machines) = match early {
            Some(bound) => bound,
            None => bind_links(config, terms)?,
        };
        Ok(Self { forwards, apis, pid_file, links, machines })
    }
}

fn bind_links(config: &Config, terms: &Terms) -> Result<(Vec<Link>, Vec<Machine>)> {
    let bind = || {
        let links = config.links.iter().map(|link| at_start(|| Link::bind(link)));
        let links = links.collect::<Result<Vec<_>>>()?;
        let machines =
            config.machines.iter().map(|machine| at_start(|| Machine::bind(machine, &config.links)));
        Ok((links, machines.collect::<Result<Vec<_>>>()?))
    };
    bind().inspect_err(|_: &anyhow::Error| terms.tell_failure())
}

/// A way in for hypervisors.
pub(super) enum Link {
    Qemu(QemuLink),
    Other(HypervisorListener),
}

impl Link {
    fn bind(config: &LinkConfig) -> Result<Self> {
        match config {
            LinkConfig::Qemu(ListenAddress::Unix { path, .. }) => QemuLink::bind(path).map(Self::Qemu),
            other => HypervisorListener::bind(other).map(Self::Other),
        }
    }

    fn file(&self) -> Option<&RemoveOnDrop> {
        match self {
            Self::Qemu(link) => link.file(),
            Self::Other(listener) => listener.file(),
        }
    }

    fn tcp_address(&self) -> Option<TcpAddress> {
        match self {
            Self::Qemu(_) => None,
            Self::Other(listener) => listener.tcp_address(),
        }
    }

    pub(super) async fn serve(self, with: Environment) -> Result<()> {
        match self {
            Self::Qemu(link) => link.serve(with).await,
            Self::Other(listener) => tokio::select! {
                ended = listener.serve(with.engine.clone(), Arc::clone(&with.terms)) => ended,
                () = with.stopped() => Ok(()),
            },
        }
    }
}
