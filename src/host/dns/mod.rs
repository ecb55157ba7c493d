//! Questions that the zones do not answer: the host's `/etc/hosts`, then the host's resolvers.
//! Owns: which resolver is asked, for how long, and how many questions are on their way. May not: read a
//! message further than its question, change one (but its id), or cache answers. Read next: `exchange.rs`,
//! one question to one server; `stream.rs`, DNS over TCP with the guest.
//!
//! Nothing here runs but while a question is on its way; the files are looked at when one comes.

mod exchange;
mod followed;
mod hosts_file;
mod resolv_conf;
mod stream;

use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use netstack::dns::message::{NotAQuery, TYPE_A, TYPE_AAAA, write_rejection};
use netstack::dns::{Query, Rcode, Transport};
use tokio::sync::Semaphore;
use tokio::time::{Instant, sleep, timeout};

use followed::Followed;
use hosts_file::HostsFile;
use resolv_conf::ResolvConf;
pub use stream::serve_stream;

/// Questions on their way; each costs a socket. More are answered SERVFAIL.
const MAX_IN_FLIGHT: usize = 256;
/// The longest that a question may take over all servers and attempts; clients gave up before.
const ASK_TIME: Duration = Duration::from_secs(20);
/// How long the first attempt waits for a server while there is another to try.
const IMPATIENCE: Duration = Duration::from_millis(1500);
/// How long a server that failed is asked last.
const PENALTY: Duration = Duration::from_secs(60);
/// A writer of `resolv.conf` may leave it without servers for a moment: so often, and that far apart, it is
/// read again before that is believed.
const REREADS: usize = 5;
const REREAD_INTERVAL: Duration = Duration::from_millis(10);

/// The host's view of names.
#[derive(Debug)]
pub struct Upstream {
    resolv_conf: Followed<ResolvConf>,
    hosts: Followed<HostsFile>,
    port: u16,
    in_flight: Semaphore,
    /// Servers that did not answer, and until when they are asked last. No longer than the list of servers.
    penalties: Mutex<Vec<(SocketAddr, Instant)>>,
}

impl Upstream {
    /// Follows the two files, which need not exist. Reads nothing yet.
    pub fn new(resolv_conf: PathBuf, hosts: PathBuf) -> Self {
        Self {
            resolv_conf: Followed::new(resolv_conf, ResolvConf::parse),
            hosts: Followed::new(hosts, HostsFile::parse),
            port: 53,
            in_flight: Semaphore::new(MAX_IN_FLIGHT),
            penalties: Mutex::default(),
        }
    }

    /// The port of all servers, which `resolv.conf` has no word for: for tests without privileges.
    #[must_use]
    pub fn with_port(mut self, port: u16) -> Self {
        self.port = port;
        self
    }

    /// Answers one query from `/etc/hosts` or else with what a resolver says, byte for byte but the id, and
    /// cut to what the client takes (TC set). The resolver is asked over the client's transport. SERVFAIL
    /// when none answers. `None` for a message that is no query.
    ///
    /// The first of the servers in `resolv.conf` is asked first, except one that failed within the last
    /// minute; a refusal (SERVFAIL, NOTIMP, REFUSED) is only believed when every server refuses.
    pub async fn ask(&self, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(NotAQuery::Ignored) => return None,
            Err(NotAQuery::Rejected(rcode)) => {
                write_rejection(message, rcode, &mut out);
                return Some(out);
            }
        };
        if let Some(addresses) = self.in_hosts_file(&query) {
            query.write_reply(Rcode::NoError, &addresses, transport, &mut out);
            return Some(out);
        }
        match self.ask_servers(&query, message, transport).await {
            Some(answer) if answer.len() <= query.reply_limit(transport) => out = answer,
            Some(answer) => query.write_truncated(&answer, &mut out),
            None => query.write_reply(Rcode::ServFail, &[], transport, &mut out),
        }
        Some(out)
    }

    /// The answer for a name that the hosts file has, which is empty for AAAA: the guest has no IPv6 path.
    fn in_hosts_file(&self, query: &Query<'_>) -> Option<Vec<Ipv4Addr>> {
        if !matches!(query.qtype(), TYPE_A | TYPE_AAAA) {
            return None;
        }
        let hosts = self.hosts.current();
        let addresses = hosts.find(&query.name())?;
        Some(if query.wants_a() { addresses.to_vec() } else { Vec::new() })
    }

    async fn ask_servers(&self, query: &Query<'_>, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let Ok(_permit) = self.in_flight.try_acquire() else {
            tracing::debug!(limit = MAX_IN_FLIGHT, "too many questions on their way");
            return None;
        };
        timeout(ASK_TIME, self.try_servers(query, message, transport)).await.ok().flatten()
    }

    async fn try_servers(&self, query: &Query<'_>, message: &[u8], transport: Transport) -> Option<Vec<u8>> {
        let conf = self.resolvers().await;
        for attempt in 0..conf.attempts {
            let servers = self.in_order(&conf);
            let mut refusal = None;
            for (at, server) in servers.iter().enumerate() {
                let hurry = attempt == 0 && at + 1 < servers.len();
                let patience = if hurry { conf.timeout.min(IMPATIENCE) } else { conf.timeout };
                let result = match timeout(patience, exchange::ask(*server, query, message, transport)).await
                {
                    Ok(result) => result,
                    Err(_) => Err(std::io::ErrorKind::TimedOut.into()),
                };
                self.note(*server, result.is_ok());
                match result {
                    Ok(answer) if exchange::is_refusal(&answer) => refusal = Some(answer),
                    Ok(answer) => return Some(answer),
                    Err(error) => tracing::debug!(%server, %error, "resolver did not answer"),
                }
            }
            if refusal.is_some() {
                return refusal;
            }
        }
        None
    }

    /// The resolvers as they stand in `resolv.conf`; without any the host's own, as resolv.conf(5) has it.
    async fn resolvers(&self) -> ResolvConf {
        let mut conf = self.resolv_conf.current();
        for _ in 0..REREADS {
            if !conf.servers.is_empty() {
                break;
            }
            sleep(REREAD_INTERVAL).await;
            conf = self.resolv_conf.reread();
        }
        let mut conf = ResolvConf::clone(&conf);
        if conf.servers.is_empty() {
            conf.servers.push((Ipv4Addr::LOCALHOST, 0).into());
        }
        conf.servers.iter_mut().for_each(|server| server.set_port(self.port));
        conf
    }

    /// The servers in the order of the file, those that failed lately behind the others.
    fn in_order(&self, conf: &ResolvConf) -> Vec<SocketAddr> {
        let now = Instant::now();
        let mut penalties = self.penalties.lock().unwrap_or_else(PoisonError::into_inner);
        penalties.retain(|(server, until)| now < *until && conf.servers.contains(server));
        let mut servers = conf.servers.clone();
        servers.sort_by_key(|server| penalties.iter().any(|(failed, _)| failed == server));
        servers
    }

    fn note(&self, server: SocketAddr, answered: bool) {
        let mut penalties = self.penalties.lock().unwrap_or_else(PoisonError::into_inner);
        penalties.retain(|(failed, _)| *failed != server);
        if !answered {
            penalties.push((server, Instant::now() + PENALTY));
        }
    }
}
