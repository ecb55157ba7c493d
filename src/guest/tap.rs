//! The guest's interface: a tap and what is set up on it. Owns: the tap, its addresses and routes, the resolvers of the lease; all of it goes when
//! it is dropped. May not: move frames. Read next: `netlink.rs`.

use std::fs::File;
use std::io;
use std::os::fd::AsFd;

use anyhow::{Context, Result, anyhow};
use netlink_packet_route::link::LinkAttribute;
use tun_rs::{DeviceBuilder, Layer};

use super::dhcp::Lease;
use super::netlink::Netlink;
use super::resolvers::Resolvers;
use super::settings::{Mac, Settings};
use crate::text::reason;

/// A tap that is open. A persistent one of somebody else's is used as it is, and stays.
#[derive(Debug)]
pub(super) struct Tap {
    frames: File,
    netlink: Netlink,
    index: u32,
    mac: Mac,
    was_up: bool,
    is_ours: bool,
    lease: Option<Lease>,
    resolvers: Option<Resolvers>,
}

impl Tap {
    /// Opens the tap, and unless somebody else configures it gives it its hardware address and switches it on.
    pub(super) fn open(settings: &Settings) -> Result<Self> {
        let name = &settings.interface;
        let netlink = Netlink::open().map_err(said)?;
        let before = netlink.link(name).map_err(said)?;
        let frames = frames(name).map_err(said).with_context(|| format!("tap {name}"))?;
        let link = netlink.link(name).map_err(said)?.ok_or_else(|| anyhow!("tap {name} is gone"))?;
        let is_ours = !settings.preexisting;
        let mac = settings.mac.filter(|_| is_ours);
        if is_ours {
            if let Some(mac) = mac.filter(|mac| link.mac != Some(*mac)) {
                netlink
                    .set_link(link.index, vec![LinkAttribute::Address(mac.to_vec())])
                    .map_err(|error| anyhow!("cannot set mac address: {}", reason(&error)))?;
            }
            netlink
                .set_up(link.index, true)
                .map_err(|error| anyhow!("cannot switch {name} on: {}", reason(&error)))?;
        }
        let mac = mac.or(link.mac).ok_or_else(|| anyhow!("{name} has no hardware address"))?;
        let was_up = before.is_some_and(|link| link.is_up);
        Ok(Self { frames, netlink, index: link.index, mac, was_up, is_ours, lease: None, resolvers: None })
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
        if let Some(mtu) = lease.mtu.map(|mtu| mtu.min(mtu_limit.unwrap_or(u16::MAX))) {
            let set = self.netlink.set_link(self.index, vec![LinkAttribute::Mtu(mtu.into())]);
            set.map_err(|error| anyhow!("cannot set the MTU {mtu}: {}", reason(&error)))?;
        }
        let added = self.netlink.add_address(self.index, lease.address, lease.prefix);
        added.map_err(|error| anyhow!("cannot add the address {}: {}", lease.address, reason(&error)))?;
        if let Some(router) = lease.router {
            let added = self.netlink.add_default_route(self.index, router);
            added.map_err(|error| anyhow!("cannot add the route by {router}: {}", reason(&error)))?;
        }
        // The ones of before are restored first.
        self.resolvers = None;
        self.resolvers = Resolvers::set(&lease.dns, &lease.search);
        self.lease = Some(lease);
        Ok(())
    }

    /// Takes down what [`Self::configure`] has set up.
    pub(super) fn deconfigure(&mut self) {
        self.resolvers = None;
        if let Some(lease) = self.lease.take()
            && let Err(error) = self.netlink.remove_address(self.index, lease.address, lease.prefix)
        {
            tracing::debug!(reason = reason(&error), "the address is gone already");
        }
    }
}

impl Drop for Tap {
    fn drop(&mut self) {
        self.deconfigure();
        if self.is_ours && !self.was_up {
            // Of a persistent one; another is about to go.
            let _ = self.netlink.set_up(self.index, false);
        }
    }
}

fn said(error: io::Error) -> anyhow::Error {
    anyhow!("{}", reason(&error))
}

/// Opens the tap `name`, which is made if there is none, and goes with the last descriptor then.
fn frames(name: &str) -> io::Result<File> {
    let device = DeviceBuilder::new().name(name).layer(Layer::L2).inherit_enable_state().build_sync()?;
    device.set_nonblocking(true)?;
    Ok(File::from(device.as_fd().try_clone_to_owned()?))
}
