//! Who has which address.
//! Owns: the lease table; it never gives one address to two clients at a time. May not: know of messages.
//!
//! An address that was given out keeps its entry, so that its last client gets it again; an entry past its
//! time is free for others once no unused address is left.

use core::net::{IpAddr, Ipv4Addr};
use core::ops::RangeInclusive;
use core::time::Duration;
use std::collections::{BTreeMap, BTreeSet};

use super::LEASE_TIME;
use crate::{Mac, NetworkConfig};

/// How long an offer stands; short, so that made-up clients that only ask exhaust the pool for no longer.
pub(super) const OFFER_TIME: Duration = Duration::from_secs(60);
/// How long an address is left alone after a client found it in use.
pub(super) const DECLINE_TIME: Duration = Duration::from_secs(600);
/// Entries of the table, however large the subnet is: a guest can make up clients.
pub(super) const MAX_LEASES: usize = 4096;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum State {
    Offered,
    Bound,
    /// In use by someone unknown; has no client.
    Declined,
}

#[derive(Clone, Copy, Debug)]
struct Lease {
    client: Mac,
    state: State,
    /// From then on another client may have the address.
    until: Duration,
}

#[derive(Clone, Debug)]
pub(super) struct Leases {
    mask: u32,
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
        let (subnet, prefix_len) = config.subnet;
        let mask = u32::MAX.checked_shl(32 - u32::from(prefix_len.min(32))).unwrap_or(0);
        let network = subnet.to_bits() & mask;
        let broadcast = network | !mask;
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
            mask,
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
        self.mask.into()
    }

    /// The addresses that clients have at `now`, and the reservations.
    pub(super) fn iter(&self, now: Duration) -> impl Iterator<Item = (Ipv4Addr, Mac)> {
        let bound =
            self.table.iter().filter(move |(_, lease)| lease.state == State::Bound && now < lease.until);
        self.fixed.iter().copied().chain(bound.map(|(address, lease)| (*address, lease.client)))
    }

    /// The address to offer: the client's own, else the one it wishes for if that is free, else the lowest
    /// unused one, else the one that has been free for the longest (RFC 2131 section 4.3.1).
    pub(super) fn offer(&mut self, client: Mac, wish: Option<Ipv4Addr>, now: Duration) -> Option<Ipv4Addr> {
        if let Some(address) = self.fixed_address(client) {
            return Some(address);
        }
        if let Some((address, lease)) = self.lease_mut(client) {
            if lease.state != State::Bound || lease.until <= now {
                (lease.state, lease.until) = (State::Offered, now + OFFER_TIME);
            }
            return Some(address);
        }
        let address = wish.filter(|wish| self.is_free(*wish, now)).or_else(|| self.pick(now))?;
        self.assign(address, Lease { client, state: State::Offered, until: now + OFFER_TIME });
        Some(address)
    }

    /// Gives the client the address that it asks for, or refuses. A client that is not known here may have
    /// any free address (it knows it from before the daemon's start), unless it speaks of an offer.
    pub(super) fn bind(&mut self, client: Mac, wanted: Ipv4Addr, of_offer: bool, now: Duration) -> bool {
        let bound = Lease { client, state: State::Bound, until: now + LEASE_TIME };
        if let Some(address) = self.fixed_address(client) {
            return address == wanted;
        }
        if let Some((address, lease)) = self.lease_mut(client) {
            if address == wanted {
                *lease = bound;
            }
            return address == wanted;
        }
        let granted = !of_offer && self.is_free(wanted, now);
        if granted {
            self.assign(wanted, bound);
        }
        granted
    }

    /// The client took another server's offer.
    pub(super) fn withdraw(&mut self, client: Mac, now: Duration) {
        if let Some((_, lease)) = self.lease_mut(client)
            && lease.state == State::Offered
        {
            lease.until = now;
        }
    }

    /// The client needs its address no more.
    pub(super) fn release(&mut self, client: Mac, address: Ipv4Addr, now: Duration) {
        if let Some((own, lease)) = self.lease_mut(client)
            && own == address
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
    pub(super) fn decline(&mut self, client: Mac, address: Ipv4Addr, now: Duration) {
        if let Some((own, lease)) = self.lease_mut(client)
            && own == address
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

    fn is_free(&self, address: Ipv4Addr, now: Duration) -> bool {
        self.has(address)
            && !self.reserved.contains(&address)
            && match self.table.get(&address) {
                Some(lease) => lease.until <= now,
                None => self.table.len() < MAX_LEASES,
            }
    }

    fn pick(&mut self, now: Duration) -> Option<Ipv4Addr> {
        if self.table.len() < MAX_LEASES {
            while self.pool.contains(&self.first_unused) {
                let address = Ipv4Addr::from_bits(self.first_unused);
                if !self.reserved.contains(&address) && !self.table.contains_key(&address) {
                    return Some(address);
                }
                self.first_unused += 1;
            }
        }
        let expired = self.table.iter().filter(|(_, lease)| lease.until <= now);
        expired.min_by_key(|(_, lease)| lease.until).map(|(address, _)| *address)
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
