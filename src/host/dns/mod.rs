//! Questions that the zones do not answer: the host's `/etc/hosts`, then the host's resolvers.
//! Owns: what is known of the two files and of the resolvers. May not: read a message further than its
//! question, change one (but its id), or cache answers; bound how many questions there are. Read next:
//! `race.rs`, one question to all servers; `stream.rs`, DNS over TCP with the guest.
//!
//! Nothing here runs but while a question is on its way; the files are looked at when one comes.

mod exchange;
mod followed;
mod health;
mod hosts_file;
mod race;
mod resolv_conf;
mod stream;

use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use bytes::Bytes;
use netstack::dns::message::{NotAQuery, TYPE_A, TYPE_AAAA, write_rejection};
use netstack::dns::{Query, Rcode, Transport};
use tokio::time::{Instant, sleep};

use exchange::Question;
use followed::{Followed, Source};
use health::Health;
use hosts_file::HostsFile;
use race::Race;
use resolv_conf::ResolvConf;

use crate::sys::names;
pub use stream::serve_stream;

/// The longest that a question may take over all servers and attempts; clients gave up before.
const ASK_TIME: Duration = Duration::from_secs(30);
/// How long the resolvers stay known when the file has none any more: VPN clients leave it empty, or away,
/// for a moment.
const KEEP_TIME: Duration = Duration::from_secs(5);
/// A file without servers is read again so often, and that far apart, before that is believed when none were
/// known.
const REREADS: usize = 5;
const REREAD_INTERVAL: Duration = Duration::from_millis(10);

/// The host's view of names.
#[derive(Debug)]
pub struct Upstream {
    resolv_conf: Followed<ResolvConf>,
    hosts: Followed<HostsFile>,
    port: u16,
    known: Mutex<Known>,
    health: Health,
    questions: AtomicUsize,
}

/// The last `resolv.conf` with servers, and since when there are none in it.
#[derive(Debug, Default)]
struct Known {
    conf: Option<Arc<ResolvConf>>,
    lost: Option<Instant>,
}

impl Upstream {
    /// Follows the two files, which need not exist; without `resolv_conf` it asks the system for resolvers.
    /// Reads nothing yet.
    pub fn new(resolv_conf: Option<PathBuf>, hosts: PathBuf) -> Self {
        let resolvers = resolv_conf.map_or(Source::System(names::resolvers), Source::File);
        Self {
            resolv_conf: Followed::new(resolvers, ResolvConf::parse),
            hosts: Followed::new(Source::File(hosts), HostsFile::parse),
            port: 53,
            known: Mutex::default(),
            health: Health::default(),
            questions: AtomicUsize::new(0),
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
    /// The servers of `resolv.conf` are asked in its order, each question anew; a refusal (SERVFAIL, NOTIMP,
    /// REFUSED) is only believed when every server refuses.
    pub async fn ask(&self, message: &Bytes, transport: Transport) -> Option<Vec<u8>> {
        let mut out = Vec::new();
        let query = match Query::parse(message) {
            Ok(query) => query,
            Err(NotAQuery::Ignored) => return None,
            Err(NotAQuery::Rejected(rcode)) => {
                write_rejection(message, rcode, &mut out);
                return Some(out);
            }
        };
        if let Some(addresses) = self.in_hosts_file(&query).await {
            query.write_reply(Rcode::NoError, &addresses, transport, &mut out);
            return Some(out);
        }
        match self.ask_servers(message, transport).await {
            Some(answer) if answer.len() <= query.reply_limit(transport) => out = answer,
            Some(answer) => query.write_truncated(&answer, &mut out),
            None => query.write_reply(Rcode::ServFail, &[], transport, &mut out),
        }
        Some(out)
    }

    /// The answer for a name that the hosts file has, which is empty for AAAA: the guest has no IPv6 path.
    async fn in_hosts_file(&self, query: &Query<'_>) -> Option<Vec<Ipv4Addr>> {
        if !matches!(query.qtype(), TYPE_A | TYPE_AAAA) {
            return None;
        }
        let hosts = self.hosts.current().await;
        let addresses = hosts.find(&query.name())?;
        Some(if query.wants_a() { addresses.to_vec() } else { Vec::new() })
    }

    async fn ask_servers(&self, message: &Bytes, transport: Transport) -> Option<Vec<u8>> {
        let conf = self.resolvers().await;
        let mut servers = conf.servers.clone();
        servers.iter_mut().for_each(|server| server.set_port(self.port));
        if servers.is_empty() {
            // As resolv.conf(5) has it.
            servers.push((Ipv4Addr::LOCALHOST, self.port).into());
        }
        if conf.rotate {
            let first = self.questions.fetch_add(1, Ordering::Relaxed) % servers.len();
            servers.rotate_left(first);
        }
        let question = Question {
            message: message.clone(),
            transport,
            use_tcp: conf.use_vc,
            timeout: conf.timeout,
            attempts: conf.attempts,
            hedge: conf.timeout / 5,
            others: servers.len() > 1,
        };
        let limit = ASK_TIME.min(conf.timeout * conf.attempts);
        Race::new(question, &servers, &self.health, limit).run().await
    }

    /// The resolvers as they stand in `resolv.conf`.
    async fn resolvers(&self) -> Arc<ResolvConf> {
        let mut conf = self.resolv_conf.current().await;
        for _ in 0..REREADS {
            if let Some(known) = self.known(&conf) {
                return known;
            }
            sleep(REREAD_INTERVAL).await;
            conf = self.resolv_conf.reread().await;
        }
        conf
    }

    /// `conf`, or what stood there a moment ago if there are no servers in it.
    fn known(&self, conf: &Arc<ResolvConf>) -> Option<Arc<ResolvConf>> {
        let mut known = self.known.lock().unwrap_or_else(PoisonError::into_inner);
        if !conf.servers.is_empty() {
            *known = Known { conf: Some(Arc::clone(conf)), lost: None };
        } else if known.lost.get_or_insert_with(Instant::now).elapsed() >= KEEP_TIME {
            known.conf = None;
        }
        known.conf.clone()
    }
}
