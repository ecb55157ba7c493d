//! When one may log in at an sshd where others have failed. Since 9.8 OpenSSH's sshd holds failures against
//! the address that they come from (`PerSourcePenalties` of sshd_config(5)): 5 s for a login that was
//! refused, 1 s for a connection without one, and nobody is let in from there once 15 s have gathered. All
//! logins of the daemon at one sshd come from one address.
//!
//! Owns: what each sshd is taken to hold against us, and the record of one login. May not: connect.
//! Read next: `connection.rs`, which says what a login has cost; `tunnel.rs` and `offer.rs`, which ask first.

use std::collections::HashMap;
use std::fs;
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::time::{Instant, sleep};

use super::Target;
use crate::disk;
use crate::sys::files::Stamp;

/// What sshd holds against a refused login,
pub(super) const REFUSED: Duration = Duration::from_secs(5);
/// and against a connection that ends without one.
pub(super) const NO_LOGIN: Duration = Duration::from_secs(1);
/// What may gather, in-flight logins counted as refused. sshd shuts out at 15 s.
const LIMIT: Duration = Duration::from_secs(14);
/// The same for a login that was refused before: leaves room for one that was not.
const LIMIT_AGAIN: Duration = Duration::from_secs(9);
/// How often those who wait look whether a key has changed.
const LOOK_EVERY: Duration = Duration::from_millis(50);

/// What each sshd holds against this daemon.
#[derive(Debug, Default)]
pub struct Penalties {
    /// Links of guests that there have been. With a new one comes a new guest, whose sshd knows nothing.
    links: Arc<AtomicUsize>,
    accounts: Mutex<HashMap<String, Account>>,
}

#[derive(Clone, Copy, Debug)]
struct Account {
    /// What is held against us then is nothing.
    until: Instant,
    /// Logins that have not ended yet.
    under_way: u32,
    links: usize,
}

impl Penalties {
    /// `links` counts those that guests came by.
    pub fn new(links: Arc<AtomicUsize>) -> Self {
        Self { links, accounts: Mutex::default() }
    }

    /// Waits until `target` may be logged in at. Drop what is returned when it is known how that ended.
    pub(super) async fn admit<F: Future<Output = Standing>>(
        &self,
        target: &Target,
        standing: impl Fn() -> F,
    ) -> Ticket<'_> {
        loop {
            match self.try_admit(target, standing().await) {
                Ok(ticket) => return ticket,
                Err(wait) => sleep(wait.min(LOOK_EVERY)).await,
            }
        }
    }

    /// Whether [`Self::admit`] would not wait.
    pub(super) fn admits(&self, target: &Target, standing: Standing) -> bool {
        self.try_admit(target, standing).is_ok()
    }

    fn try_admit(&self, target: &Target, standing: Standing) -> Result<Ticket<'_>, Duration> {
        let (now, links) = (Instant::now(), self.links.load(Ordering::Relaxed));
        let sshd = target.addr.to_string();
        let mut accounts = self.accounts();
        accounts.retain(|_, account| account.under_way > 0 || account.until > now);
        let account = accounts.entry(sshd.clone()).or_insert(Account { until: now, under_way: 0, links });
        if account.links != links {
            (account.until, account.links) = (now, links);
        }
        let limit = match standing {
            Standing::Accepted => Duration::MAX,
            Standing::Unknown => LIMIT,
            Standing::Refused => LIMIT_AGAIN,
        };
        let gathered = account.until.saturating_duration_since(now) + REFUSED * (account.under_way + 1);
        if let Some(wait) = gathered.checked_sub(limit).filter(|wait| !wait.is_zero()) {
            return Err(wait);
        }
        account.under_way += 1;
        Ok(Ticket { penalties: self, sshd, cost: Duration::ZERO })
    }

    fn accounts(&self) -> MutexGuard<'_, HashMap<String, Account>> {
        self.accounts.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A login that is under way.
#[derive(Debug)]
pub(super) struct Ticket<'a> {
    penalties: &'a Penalties,
    sshd: String,
    /// What sshd will hold against us if it ended now.
    pub(super) cost: Duration,
}

impl Drop for Ticket<'_> {
    fn drop(&mut self) {
        if let Some(account) = self.penalties.accounts().get_mut(&self.sshd) {
            account.under_way -= 1;
            account.until = account.until.max(Instant::now()) + self.cost;
        }
    }
}

/// What is known of a login before it is tried.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It has not been tried, or something has changed since.
    Unknown,
    /// It went well.
    Accepted,
    /// It was refused.
    Refused,
}

/// How one login went the last time, and with what.
#[derive(Clone, Debug, Default)]
pub struct Record(Option<(With, bool)>);

impl Record {
    /// What to expect of the next try.
    pub(super) async fn standing(&self, target: &Target, penalties: &Penalties) -> Standing {
        let Some((with, accepted)) = &self.0 else { return Standing::Unknown };
        if *with != With::now(target, penalties).await {
            return Standing::Unknown;
        }
        if *accepted { Standing::Accepted } else { Standing::Refused }
    }

    /// Notes how a login went that was tried with `with`.
    pub(super) fn note(&mut self, with: With, accepted: bool) {
        self.0 = Some((with, accepted));
    }
}

/// What decides how a login goes: another guest, key file, or file of known hosts may change the answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct With {
    links: usize,
    files: [Option<Stamp>; 2],
}

impl With {
    pub(super) async fn now(target: &Target, penalties: &Penalties) -> Self {
        let identity = stamp(&target.identity).await;
        let known_hosts = match &target.known_hosts {
            Some(file) => stamp(file).await,
            None => None,
        };
        Self { links: penalties.links.load(Ordering::Relaxed), files: [identity, known_hosts] }
    }
}

/// Nothing of a file that is not there, or whose file system does not answer.
async fn stamp(path: &Path) -> Option<Stamp> {
    let asked = path.to_owned();
    let found = disk::ask_soon(path, move || fs::metadata(asked)).await.flatten().ok()?;
    Some(Stamp::of(&found))
}

#[cfg(test)]
mod tests {
    use std::net::{Ipv4Addr, SocketAddrV4};

    use super::*;

    fn target() -> Target {
        Target::new(SocketAddrV4::new(Ipv4Addr::LOCALHOST, 22), "core", "/nonexistent")
    }

    fn fail(penalties: &Penalties, standing: Standing, cost: Duration) -> Result<(), Duration> {
        penalties.try_admit(&target(), standing).map(|mut ticket| ticket.cost = cost)
    }

    #[tokio::test(start_paused = true)]
    async fn refusals_never_gather_what_sshd_shuts_out_for() {
        let (penalties, start) = (Penalties::default(), Instant::now());
        let mut held = start;
        for round in 0..50 {
            let standing = if round % 7 == 0 { Standing::Unknown } else { Standing::Refused };
            let mut ticket = penalties.admit(&target(), || std::future::ready(standing)).await;
            ticket.cost = REFUSED;
            drop(ticket);
            held = held.max(Instant::now()) + REFUSED;
            assert!(held - Instant::now() < Duration::from_secs(15), "round {round}: {held:?}");
        }
        let took = start.elapsed();
        assert!((230..250).contains(&took.as_secs()), "one in five seconds: {took:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn what_is_under_way_counts_as_refused_until_it_has_ended() {
        let penalties = Penalties::default();
        let one = penalties.try_admit(&target(), Standing::Unknown).unwrap();
        let two = penalties.try_admit(&target(), Standing::Unknown).unwrap();
        assert!(!penalties.admits(&target(), Standing::Unknown));
        assert!(penalties.admits(&target(), Standing::Accepted), "a login that went well need not wait");
        drop(one);
        assert!(penalties.admits(&target(), Standing::Unknown));
        drop(two);
        let mut elsewhere = target();
        elsewhere.addr.port = 23;
        fail(&penalties, Standing::Unknown, REFUSED).unwrap();
        fail(&penalties, Standing::Unknown, REFUSED).unwrap();
        assert!(!penalties.admits(&target(), Standing::Unknown));
        assert!(penalties.admits(&elsewhere, Standing::Refused), "each sshd has its own account");
    }

    #[tokio::test(start_paused = true)]
    async fn a_new_guest_knows_nothing() {
        let links = Arc::new(AtomicUsize::new(0));
        let penalties = Penalties::new(Arc::clone(&links));
        let mut record = Record::default();
        record.note(With::now(&target(), &penalties).await, false);
        assert_eq!(record.standing(&target(), &penalties).await, Standing::Refused);
        while fail(&penalties, Standing::Unknown, REFUSED).is_ok() {}
        links.fetch_add(1, Ordering::Relaxed);
        assert_eq!(record.standing(&target(), &penalties).await, Standing::Unknown);
        fail(&penalties, Standing::Refused, REFUSED).unwrap();
    }

    #[tokio::test]
    async fn a_key_file_that_changed_is_another() {
        let dir = tempfile::tempdir().unwrap();
        let mut target = target();
        target.identity = dir.path().join("id");
        fs::write(&target.identity, "a").unwrap();
        let penalties = Penalties::default();
        let mut record = Record::default();
        record.note(With::now(&target, &penalties).await, false);
        assert_eq!(record.standing(&target, &penalties).await, Standing::Refused);
        fs::write(dir.path().join("new"), "b").unwrap();
        fs::rename(dir.path().join("new"), &target.identity).unwrap();
        assert_eq!(record.standing(&target, &penalties).await, Standing::Unknown);
    }
}
