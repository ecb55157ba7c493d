//! What the control plane may see of the engine, and the zones that it may change. Owns: nothing; it copies.
//! May not: be on the way of a frame. Read next: `api/`, which shows it.

use std::net::Ipv4Addr;

use netstack::dns::{Zone, ZoneChange, ZoneError};
use netstack::{DropCounts, Guest, Mac, PortId};
use tokio::sync::oneshot;

use super::command::{Command, Handle};
use super::{Engine, Traffic};

/// A question about the engine's tables, and where the answer goes.
#[derive(Debug)]
pub(super) enum Readout {
    Leases(oneshot::Sender<Vec<(Ipv4Addr, Mac)>>),
    Addresses(oneshot::Sender<Vec<(Mac, PortId)>>),
    Counters(oneshot::Sender<Counters>),
    FindGuests(Vec<Guest>, oneshot::Sender<Vec<Option<Guest>>>),
    Zones(oneshot::Sender<Vec<Zone>>),
    ChangeZones(ZoneChange, oneshot::Sender<Result<(), ZoneError>>),
}

/// What was counted since the start.
#[derive(Clone, Debug, Default)]
pub struct Counters {
    /// From guests.
    pub received: Traffic,
    /// To guests.
    pub sent: Traffic,
    /// Frames, or what was in them, that went no further.
    pub drops: DropCounts,
    /// TCP flows there are now.
    pub tcp_flows: u64,
    /// UDP flows there are now.
    pub udp_flows: u64,
}

impl Engine {
    /// Answers; whoever asked may be gone.
    pub(super) fn read_out(&mut self, readout: Readout) {
        match readout {
            Readout::Leases(reply) => drop(reply.send(self.stack.leases(self.now).collect())),
            Readout::Addresses(reply) => drop(reply.send(self.stack.addresses().collect())),
            Readout::Counters(reply) => drop(reply.send(self.counters())),
            Readout::FindGuests(guests, reply) => {
                drop(reply.send(guests.into_iter().map(|guest| self.find_guest(guest)).collect()));
            }
            Readout::Zones(reply) => drop(reply.send(self.stack.zones().cloned().collect())),
            Readout::ChangeZones(change, reply) => drop(reply.send(self.stack.change_zones(change))),
        }
    }

    /// Where it is; if nowhere it is asked for, so that one that came back and says nothing is found the next
    /// time.
    fn find_guest(&mut self, guest: Guest) -> Option<Guest> {
        let found = self.stack.find_guest(guest);
        if found.is_none() {
            self.stack.ask_for(guest.address, &mut self.links.batches);
        }
        found
    }

    fn counters(&self) -> Counters {
        let (tcp_flows, udp_flows) = self.stack.flows();
        Counters {
            received: self.links.received,
            sent: self.links.batches.sent(),
            drops: self.stack.drops().clone(),
            tcp_flows: tcp_flows as u64,
            udp_flows: udp_flows as u64,
        }
    }
}

/// An engine that has ended has nothing in its tables.
impl Handle {
    /// The DHCP server's leases and reservations, the gateway's own among them.
    pub async fn leases(&self) -> Vec<(Ipv4Addr, Mac)> {
        self.read(Readout::Leases).await
    }

    /// Which port has which hardware address.
    pub async fn addresses(&self) -> Vec<(Mac, PortId)> {
        self.read(Readout::Addresses).await
    }

    /// Where each of the guests is, by its port or one that it came back to. One that is not found has been
    /// asked for when this returns.
    pub async fn find_guests(&self, guests: Vec<Guest>) -> Vec<Option<Guest>> {
        self.ask(|reply| Readout::FindGuests(guests, reply)).await.unwrap_or_default()
    }

    /// What was counted so far.
    pub async fn counters(&self) -> Counters {
        self.read(Readout::Counters).await
    }

    /// The gateway's zones, in the order in which they are tried.
    pub async fn zones(&self) -> Vec<Zone> {
        self.read(Readout::Zones).await
    }

    /// Changes the gateway's zones: see [`netstack::dns::Zones::change`]. It is done when this returns.
    ///
    /// # Errors
    /// The zone is protected, or there is nothing to remove.
    pub async fn change_zones(&self, change: ZoneChange) -> Result<(), ZoneError> {
        self.ask(|reply| Readout::ChangeZones(change, reply)).await.unwrap_or(Ok(()))
    }

    async fn read<T: Default>(&self, readout: impl FnOnce(oneshot::Sender<T>) -> Readout) -> T {
        self.ask(readout).await.unwrap_or_default()
    }

    async fn ask<T>(&self, readout: impl FnOnce(oneshot::Sender<T>) -> Readout) -> Option<T> {
        let (reply, answer) = oneshot::channel();
        self.send(Command::Read(readout(reply))).await;
        answer.await.ok()
    }
}
