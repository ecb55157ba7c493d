//! The guest's interface: a tap and what is set up on it. Owns: the tap, its addresses and routes, the
//! resolvers of the lease; all of it goes when it is dropped. What a persistent tap was like before is noted
//! in its alias, so that the next one here can put it back after a kill.
//! May not: move frames. Read next: `sys/interfaces.rs`.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use anyhow::{Context, Result, anyhow};

use super::dhcp::Lease;
use super::resolvers::Resolvers;
use super::settings::{Mac, Settings};
use crate::sys::interfaces::{Interfaces, Link, open_tap};
use crate::text::reason;

/// A tap that is open. A persistent one of somebody else's is used as it is, and stays.
#[derive(Debug)]
pub(super) struct Tap {
    frames: File,
    interfaces: Interfaces,
    index: u32,
    name: String,
    mac: Mac,
    /// Of a tap that was there before, and is ours to configure.
    before: Option<Before>,
    lease: Option<Lease>,
    resolvers: Option<Resolvers>,
}

impl Tap {
    /// Opens the tap, and unless somebody else configures it gives it its hardware address and switches it
    /// on.
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        let name = &settings.interface;
        let interfaces = Interfaces::open().map_err(said)?;
        let before = interfaces.link(name).map_err(said)?.filter(|_| !settings.preexisting).map(Before::of);
        let frames = open_tap(name).map_err(said).with_context(|| format!("tap {name}"))?;
        let link = interfaces.link(name).map_err(said)?.ok_or_else(|| anyhow!("tap {name} is gone"))?;
        let is_ours = !settings.preexisting;
        let mac = settings.mac.filter(|_| is_ours).or(link.mac);
        let mac = mac.ok_or_else(|| anyhow!("{name} has no hardware address"))?;
        let (index, name) = (link.index, name.clone());
        // From here on it puts back what was there, whatever fails.
        let tap = Self { frames, interfaces, index, name, mac, before, lease: None, resolvers: None };
        if let Some(before) = &tap.before {
            note(&tap.interfaces, index, before, None);
        }
        if is_ours {
            if link.mac != Some(mac) {
                let set = tap.interfaces.set_mac(index, mac);
                set.map_err(|error| anyhow!("cannot set mac address: {}", reason(&error)))?;
            }
            let set = tap.interfaces.set_up(index, true);
            set.map_err(|error| anyhow!("cannot switch {} on: {}", tap.name, reason(&error)))?;
        }
        Ok(tap)
    }

    /// Where its frames come and go, without waiting.
    pub(super) fn frames(&self) -> io::Result<File> {
        self.frames.try_clone()
    }

    pub(super) fn mac(&self) -> Mac {
        self.mac
    }

    /// Sets up what `lease` says, in place of the lease before.
    pub(super) fn configure(&mut self, lease: Lease, mtu_limit: Option<u16>) -> Result<()> {
        if self.lease.as_ref().is_some_and(|old| (old.address, old.prefix) != (lease.address, lease.prefix)) {
            self.deconfigure();
        }
        if let Some(before) = &self.before {
            note(&self.interfaces, self.index, before, Some(&lease));
        }
        if let Some(mtu) = lease.mtu.map(|mtu| mtu.min(mtu_limit.unwrap_or(u16::MAX))) {
            let set = self.interfaces.set_mtu(self.index, mtu.into());
            set.map_err(|error| anyhow!("cannot set the MTU {mtu}: {}", reason(&error)))?;
        }
        let added = self.interfaces.add_address(self.index, lease.address, lease.prefix);
        added.map_err(|error| anyhow!("cannot add the address {}: {}", lease.address, reason(&error)))?;
        if let Some(router) = lease.router {
            let added = self.interfaces.add_default_route(self.index, router);
            added.map_err(|error| anyhow!("cannot add the route by {router}: {}", reason(&error)))?;
        }
        // The ones of before are restored first.
        self.resolvers = None;
        self.resolvers = Resolvers::set(&self.name, &lease.dns, &lease.search);
        self.lease = Some(lease);
        Ok(())
    }

    /// Takes down what [`Self::configure`] has set up.
    pub(super) fn deconfigure(&mut self) {
        self.resolvers = None;
        if let Some(lease) = self.lease.take() {
            remove(&self.interfaces, self.index, lease.router, lease.address, lease.prefix);
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.deconfigure();
        if let Some(before) = &self.before {
            before.put_back(&self.interfaces, self.index);
        }
    }
}

/// Puts back what one that was killed has left here, where nobody is at work. To be called before anything is
/// changed.
pub(super) fn recover(settings: &Settings) {
    let Ok(interfaces) = Interfaces::open() else { return };
    let link = |name: &str| interfaces.link(name).ok().flatten();
    Resolvers::recover(|interface| link(interface).is_some_and(|link| link.has_carrier));
    if let Some(link) = link(&settings.interface).filter(|link| !link.has_carrier)
        && let Some((before, lease)) = link.alias.as_deref().and_then(Before::noted)
    {
        tracing::info!(interface = settings.interface, "puts back what one that was killed has changed");
        if let Some((address, prefix, router)) = lease {
            remove(&interfaces, link.index, router, address, prefix);
        }
        before.put_back(&interfaces, link.index);
    }
}

/// What a persistent tap was like.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Before {
    mac: Option<Mac>,
    mtu: Option<u32>,
    is_up: bool,
    alias: String,
}

/// An address, its prefix length and the router that were set up.
type SetUp = (Ipv4Addr, u8, Option<Ipv4Addr>);

/// The first word of a note. What follows are words of their own, the alias of before last: it may have
/// blanks.
const NOTE: &str = "gvforwarder";

impl Before {
    fn of(link: Link) -> Self {
        let Link { mac, mtu, alias, is_up, .. } = link;
        Self { mac, mtu, is_up, alias: alias.unwrap_or_default() }
    }

    /// As [`note`] has noted it, with what was set up.
    fn noted(alias: &str) -> Option<(Self, Option<SetUp>)> {
        let mut words = alias.splitn(8, ' ');
        if words.next()? != NOTE {
            return None;
        }
        let mut word = || words.next();
        let (mac, mtu, up) = (word()?.parse::<netstack::Mac>().ok(), word()?.parse().ok(), word()?);
        let (address, prefix, router) = (word()?.parse().ok(), word()?.parse().ok(), word()?.parse().ok());
        let before = Self { mac: mac.map(|mac| mac.0), mtu, is_up: up == "up", alias: word()?.to_owned() };
        Some((before, address.zip(prefix).map(|(address, prefix)| (address, prefix, router))))
    }

    /// Each for itself: what cannot be put back does not keep the rest from it.
    fn put_back(&self, interfaces: &Interfaces, index: u32) {
        let failed = |what: &str, result: io::Result<()>| {
            if let Err(error) = result {
                tracing::warn!(reason = reason(&error), "cannot restore the interface's {what}");
            }
        };
        if !self.is_up {
            failed("state", interfaces.set_up(index, false));
        }
        if let Some(mac) = self.mac {
            failed("hardware address", interfaces.set_mac(index, mac));
        }
        if let Some(mtu) = self.mtu {
            failed("MTU", interfaces.set_mtu(index, mtu));
        }
        failed("alias", interfaces.set_alias(index, self.alias.clone()));
    }
}

/// Has the interface's alias say what it was like before, and what is about to be set up.
fn note(interfaces: &Interfaces, index: u32, before: &Before, lease: Option<&Lease>) {
    let none = || "-".to_owned();
    let mac = before.mac.map_or_else(none, |mac| netstack::Mac(mac).to_string());
    let mtu = before.mtu.map_or_else(none, |mtu| mtu.to_string());
    let up = if before.is_up { "up" } else { "down" };
    let address = lease.map_or_else(none, |lease| lease.address.to_string());
    let prefix = lease.map_or_else(none, |lease| lease.prefix.to_string());
    let router = lease.and_then(|lease| lease.router).map_or_else(none, |router| router.to_string());
    let alias = format!("{NOTE} {mac} {mtu} {up} {address} {prefix} {router} {}", before.alias);
    if let Err(error) = interfaces.set_alias(index, alias) {
        tracing::warn!(reason = reason(&error), "cannot record the interface's former state in its alias");
    }
}

/// Removes what a lease has set up; what is gone already is no failure.
fn remove(interfaces: &Interfaces, index: u32, router: Option<Ipv4Addr>, address: Ipv4Addr, prefix: u8) {
    if let Some(Err(error)) = router.map(|router| interfaces.remove_default_route(index, router)) {
        tracing::debug!(reason = reason(&error), "the route is gone already");
    }
    if let Err(error) = interfaces.remove_address(index, address, prefix) {
        tracing::debug!(reason = reason(&error), "the address is gone already");
    }
}

fn said(error: io::Error) -> anyhow::Error {
    anyhow!("{}", reason(&error))
}
