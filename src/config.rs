//! What the daemon was asked to do, validated. Owns: the merged and checked configuration.
//! May not: open for writing, bind, or change anything. Read next: `daemon.rs`, which builds what stands
//! here.

mod addresses;
mod asked;
mod file;
mod forwards;
mod guest;
pub mod keys;
mod links;
mod machines;
mod ports;
mod reverse;
mod search;
mod stack;
mod token;

use std::ffi::{OsStr, OsString};
use std::net::{IpAddr, Ipv4Addr};
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use netstack::dns::{Record, Zone};
use netstack::{Mac, NetworkConfig};

use crate::addr::{ListenAddress, SSH_PORT, Url};
use crate::agent::SharedSecret;
use crate::cli::RawArgs;
use crate::text::{quote, reason};

use addresses::Addresses;
use stack::Settings;

pub use asked::{Asked, LoggedFrames};
pub use forwards::SocketForward;
pub use guest::{ConnectLimits, GuestPolicy};
pub use links::LinkConfig;
pub use machines::MachineConfig;
pub use ports::{Exposed, Protocol};
pub use reverse::Reverse;
pub use token::Token;
pub(crate) use token::WANTED as TOKEN_WANTED;

/// The hardware address whose guest always gets [`Config::device_ip`]; machine managers give it to their VM.
pub const DEVICE_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]);
/// The hardware address of the gateway.
pub const GATEWAY_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
/// The UUID with which machine managers' HyperKit asks for [`DEVICE_MAC`].
const VPNKIT_UUID: &str = "c3d68012-0208-11ea-9fd7-f2189899ab08";
/// Where the host's search domains stand.
pub const RESOLV_CONF: &str = "/etc/resolv.conf";

/// In bytes, where no MTU was asked for: what every guest takes.
const DEFAULT_MTU: u16 = 1500;
/// What a guest behind QEMU is offered then, as passt does: the most that Linux takes on a virtio card, and
/// QEMU in a frame of its stream.
const QEMU_MTU: u16 = 65_520;
/// In bytes; every IPv4 host takes packets of this size (RFC 791, 3.2).
const MIN_MTU: u16 = 68;
/// The zones in which the gateway and the host have names.
const ZONES: [&str; 2] = ["containers.internal.", "docker.internal."];

/// Everything that one run of the daemon does.
#[derive(Clone, Debug)]
pub struct Config {
    /// Removed at the end; holds the process id in decimal without a newline.
    pub pid_file: Option<PathBuf>,
    /// The socket that is told what happens; see `notify.rs`.
    pub notification: Option<PathBuf>,
    /// Where its frames are captured.
    pub capture: Option<PathBuf>,
    /// The virtual network.
    pub network: NetworkConfig,
    /// The address that the guest's DHCP lease for [`DEVICE_MAC`] gives it, and that forwards go to.
    pub device_ip: Ipv4Addr,
    /// Where hypervisors connect, in the order in which that is made.
    pub links: Vec<LinkConfig>,
    /// Whether the run goes on when a virtual machine leaves, and any number of them is served.
    pub keep_running: bool,
    /// The virtual machines that are given a network card and followed.
    pub machines: Vec<MachineConfig>,
    /// Whether the run ends when the last of them has ended.
    pub exit_with_vm: bool,
    /// Whether the card stays when the run ends.
    pub keep_device: bool,
    /// Whether nothing is to be run: what there is of them is to be shown.
    pub show_machines: bool,
    /// What a VPNKit client with this UUID is told to use.
    pub vpnkit_macs: Vec<(String, Mac)>,
    /// Where the HTTP API is served, `/connect` with it.
    pub listen: Vec<ListenAddress>,
    /// Where it is served without.
    pub services: Option<ListenAddress>,
    /// What clients of the API have to send over TCP.
    pub api_token: Option<Token>,
    /// Whether guests have to send it too.
    pub api_token_gateway: bool,
    /// What limits the connects of guests to the host.
    pub connects: ConnectLimits,
    /// Which frames are written into the log, if any.
    pub frame_log: Option<LoggedFrames>,
    /// What guests may expose at the host.
    pub guest_policy: GuestPolicy,
    /// Host ports into the guest, the ssh port among them.
    pub port_forwards: Vec<Exposed>,
    /// Host sockets, and where they lead.
    pub forwards: Vec<SocketForward>,
    /// Sockets in guests, and where on the host they lead.
    pub reverse: Vec<Reverse>,
    /// The TCP port at which the guest's agent listens.
    pub agent_port: u16,
    /// What every agent has to have too.
    pub agent_secret: Option<SharedSecret>,
}

impl Config {
    /// The address that guests' sshds see the daemon's own logins come from: the first other one of the
    /// gateway's in the subnet that no guest is meant to have, or else the gateway's.
    pub fn login_ip(&self) -> Ipv4Addr {
        let NetworkConfig { gateway, subnet, static_leases, .. } = &self.network;
        let is_free = |ip: &Ipv4Addr| {
            subnet.contains(*ip)
                && *ip != self.device_ip
                && static_leases.iter().all(|(lease, _)| lease != ip)
        };
        let others = &self.network.gateway_virtual_ips;
        others.iter().copied().find(is_free).unwrap_or(*gateway)
    }

    /// Whether guests are meant to be in its network, and none can come.
    pub fn lacks_way_in(&self) -> bool {
        let needs_none = self.only_leads_elsewhere() && self.port_forwards.is_empty();
        !self.has_way_in() && !needs_none
    }

    fn has_way_in(&self) -> bool {
        !(self.links.is_empty() && self.machines.is_empty() && self.listen.is_empty())
    }

    /// Whether there are sockets, and each leads to another place than a guest.
    fn only_leads_elsewhere(&self) -> bool {
        let dests = self.forwards.iter().map(|forward| &forward.dest);
        let mut dests = dests.chain(self.reverse.iter().map(|reverse| &reverse.socket)).peekable();
        dests.peek().is_some() && dests.all(|dest| !dest.is_guests(self.network.subnet))
    }

    /// Fills in the defaults and checks what was asked for; `resolv_conf` is where search domains come from,
    /// and `check` says whether a socket's path is to be had.
    ///
    /// # Errors
    /// The first mistake, in the original's order and mostly in its words, as one line (`{:#}`).
    pub fn resolve(asked: &Asked, resolv_conf: &Path, check: PathCheck<'_>) -> Result<Self> {
        let raw = &asked.args;
        let text = |value: &OsStr| value.to_string_lossy().into_owned();
        let addresses = Addresses::resolve(
            &text(&raw.subnet),
            &text(&raw.gateway_ip),
            &text(&raw.device_ip),
            &text(&raw.host_ip),
        )
        .map_err(|(flag, error)| asked.place(flag, error))?;
        let mtu_asked = mtu(raw.mtu).map_err(|error| asked.place("mtu", error))?;
        let machines = MachineConfig::resolve(asked)?;
        ensure!(
            !raw.qmp_status || !machines.is_empty(),
            "-qmp-status shows what is behind -qmp: there is none"
        );
        let links = LinkConfig::resolve(asked, &machines, check)?;
        let notification = notification_socket(asked).map_err(|error| asked.place("notification", error))?;
        let settings = settings(asked, &addresses, resolv_conf)?;
        let Addresses { subnet, gateway, device, .. } = addresses;
        let agent_port = u16::try_from(raw.agent_port).ok().filter(|&port| port > 0);
        let agent_port = agent_port.context("agent-port value must be between 1 and 65535")?;
        let agent_secret = SharedSecret::find(raw.agent_secret_file.as_deref())
            .map_err(|error| asked.place("agent-secret-file", error))?;
        let mut forwards = forwards::of_file(asked, device, check)?;
        forwards.extend(forwards::typed(raw, device, check)?);
        let mut reverse = reverse::of_file(asked, device)?;
        reverse.extend(reverse::typed(raw, device)?);
        let (listen, services) = apis(asked)?;
        let apis = listen.iter().chain(&services).filter_map(ListenAddress::path);
        let sources = forwards.iter().filter_map(|forward| forward.source.path());
        ensure_distinct(links.iter().filter_map(LinkConfig::path).chain(sources).chain(apis))?;
        let only_qemu = links.iter().all(|link| matches!(link, LinkConfig::Qemu(_)));
        let is_qemu = only_qemu && !(links.is_empty() && machines.is_empty());
        let offered = if is_qemu { QEMU_MTU } else { DEFAULT_MTU };
        let network = NetworkConfig {
            mtu: mtu_asked.unwrap_or(offered),
            assumed_mtu: mtu_asked.unwrap_or(DEFAULT_MTU),
            subnet,
            gateway,
            gateway_mac: settings.gateway_mac.unwrap_or(GATEWAY_MAC),
            gateway_virtual_ips: settings.gateway_virtual_ips,
            nat: settings.nat,
            static_leases: settings.static_leases,
            zones: settings.zones,
            search_domains: settings.search_domains,
            ec2_metadata_access: raw.ec2_metadata_access,
        };
        let path = |text: &OsString| Some(text).filter(|path| !path.is_empty()).map(PathBuf::from);
        let (pid_file, capture) = (path(&raw.pid_file), path(&raw.pcap));
        let mut config = Self {
            pid_file,
            notification,
            capture,
            network,
            device_ip: device,
            links,
            keep_running: raw.keep_running,
            machines,
            exit_with_vm: raw.exit_with_vm,
            keep_device: raw.qmp_keep_device,
            show_machines: raw.qmp_status,
            vpnkit_macs: settings.vpnkit_macs,
            listen,
            services,
            api_token: Token::resolve(asked)?,
            api_token_gateway: raw.api_token_gateway,
            connects: settings.connects,
            frame_log: asked.frame_log(),
            guest_policy: stack::guest_policy(asked)?,
            port_forwards: settings.port_forwards,
            forwards,
            reverse,
            agent_port,
            agent_secret,
        };
        let asks_for_network = raw.typed.contains(&"ssh-port") || asked.stack().is_some();
        if !config.has_way_in() && config.only_leads_elsewhere() && !asks_for_network {
            // Nobody will ever answer there, and another process of this kind would want it too.
            config.port_forwards.clear();
        }
        Ok(config)
    }
}

/// What the network is made of: the file's, or else the flags' and the defaults.
fn settings(asked: &Asked, addresses: &Addresses, resolv_conf: &Path) -> Result<Settings> {
    let &Addresses { subnet, gateway, device, host } = addresses;
    let mut settings = match asked.stack() {
        Some(stack) => Settings::new(asked, stack, subnet)?,
        None => Settings {
            static_leases: vec![(device, DEVICE_MAC)],
            zones: zones(gateway, host),
            search_domains: search_domains(resolv_conf),
            port_forwards: ssh_port(asked.args.ssh_port, device)?,
            vpnkit_macs: vec![(VPNKIT_UUID.to_owned(), DEVICE_MAC)],
            ..Settings::default()
        },
    };
    if settings.nat.is_empty() {
        settings.nat.push((host.into(), IpAddr::V4(Ipv4Addr::LOCALHOST)));
    }
    if settings.gateway_virtual_ips.is_empty() {
        settings.gateway_virtual_ips.push(host);
    }
    Ok(settings)
}

/// Where the API is served: those of `-listen`, and that of `-services`.
fn apis(asked: &Asked) -> Result<(Vec<ListenAddress>, Option<ListenAddress>)> {
    let RawArgs { listen, services, .. } = &asked.args;
    let address = |flag, index, url| {
        ListenAddress::parse_url(flag, url).map_err(|error| asked.place_item(flag, index, error))
    };
    let listen = listen.iter().enumerate().map(|(index, url)| address("listen", index, url));
    let listen = listen.collect::<Result<_>>()?;
    let services = Some(services).filter(|url| !url.is_empty());
    Ok((listen, services.map(|url| address("services", 0, url)).transpose()?))
}

/// A path at which a socket is to be made.
#[derive(Clone, Copy, Debug)]
pub enum Wanted<'a> {
    /// A link's of that kind.
    Link(&'a Path),
    /// A link's that may be the QMP socket of a machine as well.
    QemuLink(&'a Path),
    /// A forward's.
    Forward(&'a Path),
}

/// Says whether a path is to be had. Asked where the original looks, so that of several mistakes the same is
/// told.
pub type PathCheck<'a> = &'a dyn Fn(Wanted<'_>) -> Result<()>;

/// `None` for 0, which stands for "not asked for".
fn mtu(typed: i64) -> Result<Option<u16>> {
    if typed == 0 {
        return Ok(None);
    }
    // COMPAT(gvproxy): the original starts with more than 65535, which its DHCP then cannot express.
    let mtu = u16::try_from(typed).ok().filter(|&mtu| mtu >= MIN_MTU);
    let mtu = mtu.with_context(|| format!("mtu is out of range: {typed}, want {MIN_MTU} to {}", u16::MAX))?;
    Ok(Some(mtu))
}

fn notification_socket(asked: &Asked) -> Result<Option<PathBuf>> {
    let typed = &asked.args.notification;
    if typed.is_empty() {
        return Ok(None);
    }
    // In the file it is a path.
    if asked.is_of_file("notification") && !typed.as_encoded_bytes().starts_with(b"unix:") {
        return Ok(Some(typed.into()));
    }
    let url = Url::parse(typed).context("invalid value for notification listen address")?;
    ensure!(url.scheme == "unix", "notification listen address must be unix:// address");
    Ok(Some(url.into_socket_path().context("invalid value for notification listen address")?))
}

fn ssh_port(typed: i64, device: Ipv4Addr) -> Result<Vec<Exposed>> {
    if typed == -1 {
        return Ok(Vec::new());
    }
    let port = u16::try_from(typed).ok().filter(|&port| port >= 1024);
    let port = port.context("ssh-port value must be between 1024 and 65535")?;
    let (local, remote) = (format!("127.0.0.1:{port}"), format!("{device}:{SSH_PORT}"));
    Ok(vec![Exposed { local, remote, protocol: Protocol::Tcp }])
}

fn ensure_distinct<'a>(sockets: impl Iterator<Item = &'a Path>) -> Result<()> {
    let mut seen = std::collections::HashSet::new();
    for path in sockets {
        if !seen.insert(path) {
            bail!("unix socket path {} is given twice", quote(path.as_os_str().as_encoded_bytes()));
        }
    }
    Ok(())
}

fn zones(gateway: Ipv4Addr, host: Ipv4Addr) -> Vec<Zone> {
    let record = |name: &str, ip| Record { name: name.into(), ip: Some(ip), regexp: None };
    let zone = |name: &str| Zone {
        name: name.into(),
        records: vec![record("gateway", gateway), record("host", host)],
        default_ip: None,
        protected: true,
    };
    ZONES.map(zone).into()
}

fn search_domains(resolv_conf: &Path) -> Vec<String> {
    search::domains(resolv_conf).unwrap_or_else(|error| {
        tracing::warn!(path = %resolv_conf.display(), reason = reason(&error), "cannot read search domains");
        Vec::new()
    })
}

#[cfg(test)]
#[cfg(unix)]
mod tests;
