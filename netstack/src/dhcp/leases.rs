//! Who has which address.
//! Owns: the lease table; it never gives one address to two clients at a time. May not: know of messages.
//!
//! An address that was given out keeps its entry, so that its last client gets it again. When no unused
//! address is left, others get one whose time is over. When there is none of those, a port with few addresses
//! gets one of the port with most.

use core::net::{IpAddr, Ipv4Addr};
use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::{Asker, LEASE_TIME, Owner, Use};
use crate::guard::CROWD;
use crate::{Mac, NetworkConfig, PortId};

/// How long an offer stands; short, so that made-up clients that only ask exhaust the pool for no longer.
pub(super) const OFFER_TIME: Duration = Duration::from_secs(60);
/// How long an address is left alone after a client found it in use.
pub(super) const DECLINE_TIME: Duration = Duration::from_secs(600);
/// Entries of the table, however large the subnet is: a guest can make up clients.
pub(super) const MAX_LEASES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered,
    /// Offered, though it is of a port that has too many.
    Awarded,
    Bound,
    /// In use by someone unknown; has no client.
    Declined,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    client: Mac,
    /// Whom it counts for, also when that is gone.
    port: PortId,
    state: State,
    /// From then on another client may have the address.
    until: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Leases {
    subnet_mask: Ipv4Addr,
    /// Addresses of hosts; empty where the subnet has none.
    pool: RangeInclusive<u32>,
    /// Reservations; theirs for ever, and not in the table.
    fixed: Vec<(Ipv4Addr, Mac)>,
    /// Never given to a client without a reservation.
    reserved: BTreeSet<Ipv4Addr>,
    table: BTreeMap<Ipv4Addr, Lease>,
    /// Names an entry of `table` whose client is the key.
    by_client: BTreeMap<Mac, Ipv4Addr>,
    /// Every address of the pool below it is reserved or in the table.
    first_unused: u32,
}

impl Leases {
    pub(super) fn new(config: &NetworkConfig) -> Self {
        let (network, broadcast) = (config.subnet.network().to_bits(), config.subnet.broadcast().to_bits());
        let pool = network.saturating_add(1)..=broadcast.saturating_sub(1);
        let nat = config.nat.iter().filter_map(|(from, _)| match from {
            IpAddr::V4(address) => Some(*address),
            IpAddr::V6(_) => None,
        });
        let reserved = [config.gateway]
            .into_iter()
            .chain(config.gateway_virtual_ips.iter().copied())
            .chain(nat)
            .chain(config.static_leases.iter().map(|(address, _)| *address))
            .collect();
        Self {
            subnet_mask: config.subnet.mask(),
            first_unused: *pool.start(),
            pool,
            fixed: config.static_leases.clone(),
            reserved,
            table: BTreeMap::new(),
            by_client: BTreeMap::new(),
        }
    }

    /// Whether this is an address of the subnet.
    pub(super) fn has(&self, address: Ipv4Addr) -> bool {
        self.pool.contains(&address.to_bits())
    }

    pub(super) fn subnet_mask(&self) -> Ipv4Addr {
        self.subnet_mask
    }

    /// The addresses that clients have at `now`, and the reservations.
    pub(super) fn iter(&self, now: Duration) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        let bound =
            self.table.iter().filter(move |(_, lease)| lease.state == State::Bound && now < lease.until);
        self.fixed.iter().copied().chain(bound.map(|(address, lease)| (*address, lease.client)))
    }

    /// Whose the address is at `now`.
    pub(super) fn owner(&self, address: Ipv4Addr, now: Duration) -> Option<Owner> {
        if let Some((_, client)) = self.fixed.iter().find(|(fixed, _)| *fixed == address) {
            return Some(Owner { client: *client, port: None, is_reserved: true, is_offer: false });
        }
        let lease = self.table.get(&address).filter(|lease| now < lease.until)?;
        let (client, port) = (lease.client, Some(lease.port));
        let is_offer = match lease.state {
            State::Offered | State::Awarded => true,
            State::Bound => false,
            State::Declined => return None,
        };
        Some(Owner { client, port, is_reserved: false, is_offer })
    }

    /// The address to offer. In this order: the client's own; the one that it asks for, if that is free; the
    /// lowest unused one; the one that has been free for the longest (RFC 2131 4.3.1); one of the port that
    /// has most.
    pub(super) fn offer(
        &mut self,
        client: Mac,
        wish: Option<Ipv4Addr>,
        asker: &Asker<'_>,
        now: Duration,
    ) -> Option<Ipv4Addr> {
        if let Some(address) = self.fixed_address(client) {
            return Some(address);
        }
        let (port, until) = (asker.port, now + OFFER_TIME);
        self.forget_taken(client, asker, now);
        if let Some((address, lease)) = self.lease_mut(client) {
            lease.port = asker.leases_to(client, lease.port);
            match lease.state {
                State::Bound if now < lease.until => {}
                State::Awarded => lease.until = until,
                _ => (lease.state, lease.until) = (State::Offered, until),
            }
            return Some(address);
        }
        let free = wish.filter(|wish| self.is_free(*wish, asker, now)).or_else(|| self.pick(asker, now));
        let state = if free.is_some() { State::Offered } else { State::Awarded };
        let address = free.or_else(|| self.share(asker, now)).or_else(|| self.reclaim(asker, now))?;
        self.assign(address, Lease { client, port, state, until });
        Some(address)
    }

    /// Gives the client the address that it asks for, or refuses. A client that is not known here may have
    /// any free address (it knows it from before the daemon's start), unless it speaks of an offer.
    pub(super) fn bind(
        &mut self,
        client: Mac,
        wanted: Ipv4Addr,
        of_offer: bool,
        asker: &Asker<'_>,
        now: Duration,
    ) -> bool {
        let bound = Lease { client, port: asker.port, state: State::Bound, until: now + LEASE_TIME };
        if let Some(address) = self.fixed_address(client) {
            return address == wanted;
        }
        self.forget_taken(client, asker, now);
        if let Some((address, lease)) = self.lease_mut(client) {
            if address == wanted {
                *lease = Lease { port: asker.leases_to(client, lease.port), ..bound };
            }
            return address == wanted;
        }
        let granted = !of_offer && self.is_free(wanted, asker, now);
        if granted {
            self.assign(wanted, bound);
        }
        granted
    }

    /// The client took another server's offer.
    pub(super) fn withdraw(&mut self, client: Mac, asker: &Asker<'_>, now: Duration) {
        if let Some((_, lease)) = self.lease_mut(client)
            && matches!(lease.state, State::Offered | State::Awarded)
            && asker.may_end(client, lease.port)
        {
            lease.until = now;
        }
    }

    /// The client needs its address no more.
    pub(super) fn release(&mut self, client: Mac, address: Ipv4Addr, asker: &Asker<'_>, now: Duration) {
        if let Some((own, lease)) = self.lease_mut(client)
            && own == address
            && asker.may_end(client, lease.port)
        {
            lease.until = now;
        }
    }

    /// The client is no more.
    pub(super) fn end(&mut self, client: Mac, now: Duration) {
        if let Some((_, lease)) = self.lease_mut(client) {
            lease.until = lease.until.min(now);
        }
    }

    /// The client found that another host uses its address. A reservation stays one.
    pub(super) fn decline(&mut self, client: Mac, address: Ipv4Addr, asker: &Asker<'_>, now: Duration) {
        if let Some((own, lease)) = self.lease_mut(client)
            && own == address
            && asker.may_end(client, lease.port)
        {
            (lease.state, lease.until) = (State::Declined, now + DECLINE_TIME);
            self.by_client.remove(&client);
        }
    }

    fn fixed_address(&self, client: Mac) -> Option<Ipv4Addr> {
        self.fixed.iter().find(|(_, mac)| *mac == client).map(|(address, _)| *address)
    }

    fn lease_mut(&mut self, client: Mac) -> Option<(Ipv4Addr, &mut Lease)> {
        let address = *self.by_client.get(&client)?;
        Some((address, self.table.get_mut(&address)?))
    }

    /// An offer, or a lease whose time is over, is forgotten if somebody else has the address by now.
    fn forget_taken(&mut self, client: Mac, asker: &Asker<'_>, now: Duration) {
        let is_firm = |lease: &Lease| lease.state != State::Offered && now < lease.until;
        let lost = self.lease_mut(client).filter(|(_, lease)| !is_firm(lease)).map(|(address, _)| address);
        if let Some(address) = lost.filter(|address| !asker.is_free(*address)) {
            self.by_client.remove(&client);
            self.table.remove(&address);
            self.first_unused = self.first_unused.min(address.to_bits());
        }
    }

    fn is_free(&self, address: Ipv4Addr, asker: &Asker<'_>, now: Duration) -> bool {
        self.has(address)
            && !self.reserved.contains(&address)
            && asker.is_free(address)
            && match self.table.get(&address) {
                Some(lease) => lease.until <= now,
                None => self.table.len() < MAX_LEASES,
            }
    }

    fn pick(&mut self, asker: &Asker<'_>, now: Duration) -> Option<Ipv4Addr> {
        let mut skipped = false;
        if self.table.len() < MAX_LEASES {
            let mut candidate = self.first_unused;
            while self.pool.contains(&candidate) {
                let address = Ipv4Addr::from_bits(candidate);
                let is_unused = !self.reserved.contains(&address) && !self.table.contains_key(&address);
                if is_unused && asker.is_free(address) {
                    return Some(address);
                }
                skipped |= is_unused;
                candidate += 1;
                if !skipped {
                    self.first_unused = candidate;
                }
            }
        }
        let expired = self.table.iter().filter(|(_, lease)| lease.until <= now);
        let expired = expired.filter(|(address, _)| asker.is_free(**address));
        expired.min_by_key(|(_, lease)| lease.until).map(|(address, _)| *address)
    }

    /// Leases that count for the port.
    fn count(&self, port: PortId) -> usize {
        self.table.values().filter(|lease| lease.port == port).count()
    }

    /// An address of the port that has most, if the asker's has fewer. Its offers go first, then what was not
    /// renewed for the longest. A lease of a machine goes only to a port that has none, or next to none.
    /// Ports that are gone count as one.
    fn share(&self, asker: &Asker<'_>, now: Duration) -> Option<Ipv4Addr> {
        let of = |lease: &Lease| Some(lease.port).filter(|port| (asker.is_there)(*port));
        let mut counts = BTreeMap::new();
        for lease in self.table.values() {
            *counts.entry(of(lease)).or_insert(0_usize) += 1;
        }
        let own = counts.get(&Some(asker.port)).copied().unwrap_or(0);
        let more = counts.into_iter().filter(|(_, count)| *count > own + 1);
        let (greedy, count) = more.max_by_key(|(_, count)| *count)?;
        let gives_all = own == 0 || count > CROWD * (own + 1);
        let is_firm = |lease: &Lease| lease.state == State::Bound && now < lease.until;
        let of_greedy =
            self.table.iter().filter(|(_, lease)| of(lease) == greedy && (gives_all || !is_firm(lease)));
        of_greedy.min_by_key(|(_, lease)| (is_firm(lease), lease.until)).map(|(address, _)| *address)
    }

    /// An address that is leased to nobody. It is taken from whoever uses many more without a lease than are
    /// used behind the asker's port. If nothing is used there, it is one that is kept for a machine that is
    /// gone.
    fn reclaim(&self, asker: &Asker<'_>, now: Duration) -> Option<Ipv4Addr> {
        let own = self.count(asker.port).max(asker.count);
        let is_leased = |address| self.table.get(&address).is_some_and(|lease| now < lease.until);
        let free = self.pool.clone().map(Ipv4Addr::from_bits).take(MAX_LEASES);
        let free = free.filter(|address| !self.reserved.contains(address) && !is_leased(*address));
        let crowd = |address: &Ipv4Addr| match (asker.use_of)(*address) {
            Use::By(crowd) if crowd > CROWD && crowd > own + 1 => crowd,
            Use::Kept if own == 0 => 1,
            Use::None | Use::Kept | Use::By(_) => 0,
        };
        free.map(|address| (crowd(&address), address))
            .filter(|(crowd, _)| *crowd > 0)
            .max_by_key(|(crowd, _)| *crowd)
            .map(|(_, address)| address)
    }

    /// `address` is free.
    fn assign(&mut self, address: Ipv4Addr, lease: Lease) {
        if let Some(old) = self.table.insert(address, lease)
            && old.state != State::Declined
        {
            self.by_client.remove(&old.client);
        }
        self.by_client.insert(lease.client, address);
    }
}

#[cfg(test)]
mod tests;
