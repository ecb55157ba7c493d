//! The card in the machine: put there, found again, taken away.
//!
//! Owns: what is ours in a machine, told by ids that depend on the link's socket alone. May not: leave a
//! netdev without a card behind. Each call may be dropped at any point: whoever comes next, [`detach`] for
//! one, sets right what is there by then.

use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use netstack::Mac;
use qmp::qapi::qmp::{netdev_del, qom_get, set_link};
use qmp::{Client, ExecuteError, Netdev, Network, Nic, UnplugError, netdev_stream, virtio_net};
use tokio::time::{Instant, timeout};

use super::status::Device;
use crate::addr::hash;
use crate::hypervisor::Presence;
use crate::sys::owner::is_bound;

/// What ids of ours begin with.
const NIC: &str = "gvproxy-nic-";
const NETDEV: &str = "gvproxy-net-";
/// How long QEMU may take to connect to our socket.
const CONNECT: Duration = Duration::from_secs(5);
/// How often to look meanwhile, if no event comes.
const LOOK: Duration = Duration::from_millis(250);
/// How long a guest may take to let go of a card: Linux needs a fraction of a second, an emulated one a few.
const UNPLUG: Duration = Duration::from_secs(4);
/// How long it may take at the end of the run, and all of the end.
const LAST_UNPLUG: Duration = Duration::from_millis(1500);
const DETACH: Duration = Duration::from_millis(2500);

/// The card that a machine is to have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Card {
    nic: String,
    netdev: String,
    pub(super) mac: Mac,
    /// The socket that its netdev leads to.
    path: PathBuf,
}

impl Card {
    pub(super) fn new(mac: Mac, path: PathBuf) -> Self {
        let tag = format!("{:08x}", hash(&path.to_string_lossy()));
        Self { nic: format!("{NIC}{tag}"), netdev: format!("{NETDEV}{tag}"), mac, path }
    }

    /// Whether QEMU's netdev of this name is ours.
    pub(super) fn is_netdev(&self, id: Option<&str>) -> bool {
        id == Some(&self.netdev)
    }

    /// Whether it leads to our socket, by what QEMU says.
    fn leads_here(&self, netdev: &Netdev) -> bool {
        target(netdev).is_some_and(|path| Path::new(path) == self.path)
    }

    /// Whether somebody made it for this machine's network, and it leads nowhere any more. `dead` says that
    /// here it cannot.
    fn is_left_over(&self, nic: &Nic, dead: bool) -> bool {
        let goes_elsewhere = || {
            nic.netdev.as_ref().is_some_and(|netdev| {
                target(netdev).is_some() && !(dead && self.leads_here(netdev)) || netdev.kind != "stream"
            })
        };
        nic.id == self.nic || (nic.mac == self.mac.to_string() && !goes_elsewhere())
    }

    fn device(&self, nic: String, netdev: String) -> Device {
        Device {
            id: nic,
            mac: self.mac.to_string(),
            bus: None,
            slot: None,
            netdev,
            socket: self.path.display().to_string(),
            link: true,
        }
    }
}

/// What the machine has. Of a stream whose other end is gone QEMU 10 still says where it led: of a gvproxy's
/// it says nothing here. Whoever made another one may name its socket as we cannot see it: relative, or in
/// another namespace.
pub(super) async fn network(client: &mut Client) -> Result<Network, ExecuteError> {
    let mut network = client.network().await?;
    let behind = network.nics.iter_mut().filter_map(|nic| nic.netdev.as_mut());
    for netdev in behind.chain(&mut network.unused) {
        let is_ours = netdev.id.starts_with(NETDEV);
        if is_ours && target(netdev).is_some_and(|path| !is_bound(Path::new(path))) {
            netdev.info.clear();
        }
    }
    Ok(network)
}

/// Where a stream leads as long as it is connected.
fn target(netdev: &Netdev) -> Option<&str> {
    netdev.info.strip_prefix("unix:").filter(|_| netdev.kind == "stream")
}

/// The machine's device that a gvproxy put there, whichever it was.
pub(super) fn find_any(network: &Network) -> Option<Device> {
    network.nics.iter().find_map(|nic| {
        let netdev = nic.netdev.as_ref()?;
        netdev.id.starts_with(NETDEV).then(|| Device {
            id: nic.id.clone(),
            mac: nic.mac.clone(),
            bus: None,
            slot: None,
            netdev: netdev.id.clone(),
            socket: target(netdev).unwrap_or_default().to_owned(),
            link: target(netdev).is_some(),
        })
    })
}

/// Sees to it that the machine has the card, and says which device it is: one that is connected here already,
/// whoever made it, or a new one in place of what an earlier daemon left. `present` tells whether anybody is
/// connected here.
pub(super) async fn ensure(client: &mut Client, card: &Card, present: &Presence) -> Result<Device> {
    let network = network(client).await?;
    // QEMU may not have noticed that whoever listened here before is gone.
    let dead = !present.is_any();
    let connected = network.nics.iter().find_map(|nic| {
        let netdev = nic.netdev.as_ref().filter(|netdev| !dead && card.leads_here(netdev))?;
        Some(card.device(nic.id.clone(), netdev.id.clone()))
    });
    let mut device = match connected {
        Some(device) => {
            // Somebody may have switched it off, as a daemon does that ends.
            if device.id == card.nic {
                client.execute(set_link { name: device.id.clone(), up: true }).await?;
            }
            device
        }
        None => {
            take_away(client, card, &network, dead).await?;
            add(client, card).await?
        }
    };
    (device.bus, device.slot) = place(client, &device.id).await;
    Ok(device)
}

/// Removes what an earlier daemon left behind.
async fn take_away(client: &mut Client, card: &Card, network: &Network, dead: bool) -> Result<()> {
    for nic in network.nics.iter().filter(|nic| card.is_left_over(nic, dead)) {
        let _ = client.execute(set_link { name: nic.id.clone(), up: false }).await;
        if !nic.id.starts_with(NIC) {
            tracing::warn!(
                device = nic.id,
                "another card with this address is not connected: its link is set down"
            );
            continue;
        }
        match client.unplug(&nic.id, UNPLUG).await {
            Ok(()) => tracing::debug!(device = nic.id, "unplugged a network card that was left behind"),
            Err(error) if is_absent(&error) => {}
            Err(error) => return Err(error).context("the network card of before is still there"),
        }
        if let Some(netdev) = nic.netdev.as_ref().filter(|netdev| netdev.id.starts_with(NETDEV)) {
            remove_netdev(client, &netdev.id).await;
        }
    }
    for netdev in network.unused.iter().filter(|netdev| netdev.id == card.netdev) {
        remove_netdev(client, &netdev.id).await;
    }
    Ok(())
}

fn is_absent(error: &UnplugError) -> bool {
    use qmp::qapi::ErrorClass;
    matches!(error, UnplugError::Execute { source, .. }
        if source.refusal().is_some_and(|refusal| refusal.class == ErrorClass::DeviceNotFound))
}

async fn add(client: &mut Client, card: &Card) -> Result<Device> {
    let path = card.path.to_str();
    let path = path.ok_or_else(|| anyhow!("the path {} is no text", card.path.display()))?;
    let bus = client.free_pci_bus().await?;
    client
        .execute(netdev_stream(&card.netdev, path))
        .await
        .context("cannot add a netdev (QEMU 7.2 or later)")?;
    let plugged = async {
        connected(client, card).await?;
        client.execute(virtio_net(&card.nic, &card.netdev, &card.mac.to_string(), &bus)).await?;
        Ok(card.device(card.nic.clone(), card.netdev.clone()))
    };
    let plugged: Result<Device> = plugged.await;
    // A command without a reply may be carried out yet. Firmware takes no card out, so one that comes late is
    // to be found connected.
    if plugged.as_ref().is_err_and(|error| !is_silence(error)) {
        let _ = client.unplug(&card.nic, LAST_UNPLUG).await;
        remove_netdev(client, &card.netdev).await;
    }
    plugged
}

/// Whether a command had no reply in its time: what QEMU has done is not known, until another session asks.
pub(super) fn is_silence(error: &anyhow::Error) -> bool {
    error.chain().any(|cause| matches!(cause.downcast_ref(), Some(ExecuteError::Timeout { .. })))
}

/// Waits until QEMU has connected the netdev.
async fn connected(client: &mut Client, card: &Card) -> Result<()> {
    let begin = Instant::now();
    loop {
        let network = network(client).await?;
        let netdev = network.unused.iter().find(|netdev| netdev.id == card.netdev);
        let netdev = netdev.ok_or_else(|| anyhow!("the netdev {} is gone", card.netdev))?;
        if card.leads_here(netdev) {
            return Ok(());
        }
        if netdev.info.contains("error") || begin.elapsed() > CONNECT {
            let why = if netdev.info.is_empty() { "no connection" } else { &netdev.info };
            bail!("QEMU cannot connect to {}: {why}", card.path.display());
        }
        let about_it = |event: &qmp::Event| {
            event.name == "NETDEV_STREAM_CONNECTED" && card.is_netdev(event.data["netdev-id"].as_str())
        };
        if let Err(qmp::WaitError::Lost(lost)) = client.wait_event(about_it, LOOK).await {
            return Err(lost.into());
        }
    }
}

async fn remove_netdev(client: &mut Client, id: &str) {
    if let Err(error) = client.execute(netdev_del { id: id.to_owned() }).await {
        tracing::debug!(netdev = id, %error, "cannot remove netdev");
    }
}

/// The bus and the slot of a device, as far as QEMU tells.
async fn place(client: &mut Client, id: &str) -> (Option<String>, Option<String>) {
    let get =
        |property: &str| qom_get { path: format!("/machine/peripheral/{id}"), property: property.to_owned() };
    let bus = client.execute(get("parent_bus")).await.ok();
    let bus = bus.and_then(|bus| Some(bus.as_str()?.rsplit('/').next()?.to_owned()));
    let devfn = client.execute(get("addr")).await.ok().and_then(|devfn| devfn.as_u64());
    (bus, devfn.map(|devfn| format!("{:02x}.{}", devfn >> 3, devfn & 7)))
}

/// Takes the card out of the machine, within [`DETACH`]. A guest that does not answer keeps it, dead, until
/// its next reset.
pub(super) async fn detach(client: &mut Client, card: &Card) {
    let work = async {
        let _ = client.execute(set_link { name: card.nic.clone(), up: false }).await;
        match client.unplug(&card.nic, LAST_UNPLUG).await {
            Ok(()) => tracing::info!(device = card.nic, "network card taken out"),
            Err(error) if is_absent(&error) => {}
            Err(error @ (UnplugError::Execute { .. } | UnplugError::Lost { .. })) => {
                tracing::debug!(device = card.nic, %error, "cannot take the network card out");
            }
            Err(error) => {
                let error = format!("{:#}", anyhow::Error::from(error));
                tracing::warn!(
                    device = card.nic,
                    error,
                    "the network card goes with the machine's next reset"
                );
            }
        }
        remove_netdev(client, &card.netdev).await;
    };
    if timeout(DETACH, work).await.is_err() {
        tracing::warn!(device = card.nic, "no answer from QEMU: the network card stays");
    }
}

/// Whether the device is gone; if it was our card, its netdev goes too.
pub(super) async fn was_taken_out(client: &mut Client, card: &Card, device: &str) -> bool {
    match network(client).await {
        Ok(network) if network.nics.iter().all(|nic| nic.id != device) => {
            if network.unused.iter().any(|netdev| netdev.id == card.netdev) {
                remove_netdev(client, &card.netdev).await;
            }
            true
        }
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const PATH: &str = "/run/q.gvproxy";

    fn card() -> Card {
        Card::new(Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xee]), PATH.into())
    }

    fn nic(id: &str, mac: &str, netdev: Option<(&str, &str)>) -> Nic {
        let netdev =
            netdev.map(|(kind, info)| Netdev { id: "n".into(), kind: kind.into(), info: info.into() });
        Nic { id: id.into(), model: "virtio-net-pci".into(), mac: mac.into(), netdev }
    }

    #[test]
    fn what_is_left_over() {
        let (card, mac) = (card(), "5a:94:ef:e4:0c:ee");
        let here = format!("unix:{PATH}");
        for (left, dead, nic) in [
            (true, false, nic(&card.nic, mac, None)),
            (true, false, nic(&card.nic, mac, Some(("stream", "")))),
            (true, true, nic(&card.nic, mac, Some(("stream", &here)))),
            (true, false, nic("other", mac, Some(("stream", "")))),
            (true, false, nic("other", mac, Some(("stream", "connection error")))),
            (true, true, nic("other", mac, Some(("stream", &here)))),
            (false, false, nic("other", mac, Some(("stream", "unix:/run/other")))),
            (false, true, nic("gvproxy-nic-1", mac, Some(("stream", "unix:/run/other")))),
            (false, false, nic("other", mac, Some(("user", "")))),
            (false, false, nic("other", "5a:94:ef:00:00:01", Some(("stream", "")))),
        ] {
            assert_eq!(card.is_left_over(&nic, dead), left, "{nic:?}");
        }
    }

    #[test]
    fn ids_depend_on_the_socket() {
        let other = Card::new(card().mac, "/run/r.gvproxy".into());
        assert!(card().nic.starts_with(NIC) && card().nic != other.nic && card().netdev != other.netdev);
        assert_eq!(card(), card());
    }
}
