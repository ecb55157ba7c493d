//! Where a PCI device can be put into a running VM, and how it is taken out again.
//!
//! Owns: [`Client::free_pci_bus`], [`Client::unplug`]. Asks the object model (QOM), since `query-pci` does
//! not show what is behind a port until the guest's firmware has numbered the buses, and since QEMU 7.2
//! accepts a second device on a port where no guest finds it.

use std::time::Duration;

use qapi::{Any, Command, ErrorClass, qmp};
use tokio::time::{Instant, timeout};

use crate::{Client, ExecuteError, SlotError, UnplugError};

/// Devices with room for one device each, on a bus that has the device's own id.
const PORTS: [&str; 3] = ["pcie-root-port", "xio3130-downstream", "ioh3420"];
/// More ports than this are not looked at.
const MAX_PORTS: usize = 64;
/// A conventional PCI bus has 32 slots.
const SLOTS: usize = 32;
const PERIPHERAL: &str = "/machine/peripheral";

impl Client {
    /// The bus to name in `device_add` for one more PCI device: a PCIe port that is empty (q35, virt; only
    /// those with an id have a name), else the root bus where it takes devices (i440fx's `pci.0`). Some
    /// commands for each port, which together have the time of one.
    pub async fn free_pci_bus(&mut self) -> Result<String, SlotError> {
        let after = self.timeouts().command;
        timeout(after, self.look_for_bus())
            .await
            .unwrap_or(Err(SlotError::Execute(ExecuteError::Timeout { command: qmp::qom_list::NAME, after })))
    }

    async fn look_for_bus(&mut self) -> Result<String, SlotError> {
        let mut reasons = Vec::new();
        let mut ports: Vec<_> = children(&self.properties(PERIPHERAL).await?)
            .filter(|(_, kind)| PORTS.contains(kind))
            .map(|(id, _)| id.to_owned())
            .collect();
        ports.sort_unstable();
        for id in ports.into_iter().take(MAX_PORTS) {
            match self.port_obstacle(&id).await? {
                None => return Ok(id),
                Some(reason) => reasons.push(format!("{id} {reason}")),
            }
        }
        for (bridge, _) in
            children(&self.properties("/machine").await?).filter(|(_, kind)| is_host_bridge(kind))
        {
            let bridge = format!("/machine/{bridge}");
            for (bus, kind) in children(&self.properties(&bridge).await?) {
                match (kind, self.root_takes_devices(&format!("{bridge}/{bus}"), kind).await?) {
                    ("PCI", true) if self.root_slots_used().await? < SLOTS => return Ok(bus.to_owned()),
                    ("PCI", true) => reasons.push(format!("{bus} is full")),
                    ("PCI" | "PCIE", _) => reasons.push(format!("{bus} takes no device while the VM runs")),
                    _ => {}
                }
            }
        }
        Err(SlotError::NoneFree(reasons))
    }

    /// Takes a device out: asks the guest (`device_del`) and waits until it has let go. Without a system in
    /// the guest that answers, [`UnplugError::NoAnswer`] is what comes, and the device goes with the next
    /// reset; asking again is fine.
    pub async fn unplug(&mut self, device: &str, within: Duration) -> Result<(), UnplugError> {
        let begin = Instant::now();
        let asked = self.mark_events();
        let deleting = self.execute_within(qmp::device_del { id: device.to_owned() }, within).await;
        if let Err(source) = deleting
            && !source.refusal().is_some_and(|refusal| refusal.desc.contains("in the process of unplug"))
        {
            return Err(UnplugError::Execute { device: device.to_owned(), source });
        }
        let about_it = |event: &crate::Event| {
            matches!(event.name.as_str(), "DEVICE_DELETED" | "DEVICE_UNPLUG_GUEST_ERROR")
                && event.data.get("device").and_then(Any::as_str) == Some(device)
        };
        let left = within.saturating_sub(begin.elapsed());
        match timeout(left, self.event_since(asked, about_it)).await {
            Ok(Ok(event)) if event.name == "DEVICE_DELETED" => Ok(()),
            Ok(Ok(event)) => Err(UnplugError::Guest { device: device.to_owned(), event }),
            Ok(Err(source)) => Err(UnplugError::Lost { device: device.to_owned(), source }),
            Err(_) => Err(UnplugError::NoAnswer { device: device.to_owned(), after: within }),
        }
    }

    /// Why a port takes no device; `None` when it does.
    async fn port_obstacle(&mut self, id: &str) -> Result<Option<String>, ExecuteError> {
        let port = format!("{PERIPHERAL}/{id}");
        let bus = format!("{port}/{id}");
        if self.property(&port, "hotplug").await? == Some(Any::Bool(false))
            || !self.takes_devices(&bus, "PCIE").await?
        {
            return Ok(Some("takes no device while the VM runs".to_owned()));
        }
        let properties = self.properties(&bus).await?;
        let taken = properties.iter().find(|property| property.name.starts_with("child["));
        Ok(taken.map(|property| format!("holds a {}", inner(&property.type_, "link").unwrap_or("device"))))
    }

    /// Whether somebody handles devices that come to a bus while the VM runs.
    async fn takes_devices(&mut self, bus: &str, kind: &str) -> Result<bool, ExecuteError> {
        if !matches!(kind, "PCI" | "PCIE") {
            return Ok(false);
        }
        Ok(self.hotplug_handler(bus).await?.is_some())
    }

    /// The same of a root bus. QEMU 10 names a handler there whether it takes devices or not: that of PCIe
    /// never does, that of i440fx as its property says.
    async fn root_takes_devices(&mut self, bus: &str, kind: &str) -> Result<bool, ExecuteError> {
        if kind != "PCI" {
            return Ok(false);
        }
        let Some(handler) = self.hotplug_handler(bus).await? else { return Ok(false) };
        Ok(self.property(&handler, "acpi-root-pci-hotplug").await? != Some(Any::Bool(false)))
    }

    async fn hotplug_handler(&mut self, bus: &str) -> Result<Option<String>, ExecuteError> {
        let handler = self.property(bus, "hotplug-handler").await?;
        Ok(handler.as_ref().and_then(Any::as_str).filter(|path| !path.is_empty()).map(str::to_owned))
    }

    async fn root_slots_used(&mut self) -> Result<usize, ExecuteError> {
        let buses = self.execute(qmp::query_pci {}).await?;
        Ok(slots_used(&buses))
    }

    async fn properties(&mut self, path: &str) -> Result<Vec<qmp::ObjectPropertyInfo>, ExecuteError> {
        absent(self.execute(qmp::qom_list { path: path.to_owned() }).await).map(Option::unwrap_or_default)
    }

    async fn property(&mut self, path: &str, property: &str) -> Result<Option<Any>, ExecuteError> {
        let get = qmp::qom_get { path: path.to_owned(), property: property.to_owned() };
        absent(self.execute(get).await)
    }
}

/// What QEMU refuses to show is not there: it went meanwhile, or this QEMU knows it not.
fn absent<T>(result: Result<T, ExecuteError>) -> Result<Option<T>, ExecuteError> {
    match result {
        Ok(value) => Ok(Some(value)),
        Err(error) => match error.refusal().map(|refusal| &refusal.class) {
            Some(ErrorClass::DeviceNotFound | ErrorClass::GenericError) => Ok(None),
            _ => Err(error),
        },
    }
}

/// Names and types of what a QOM object contains.
fn children(properties: &[qmp::ObjectPropertyInfo]) -> impl Iterator<Item = (&str, &str)> {
    properties.iter().filter_map(|property| Some((property.name.as_str(), inner(&property.type_, "child")?)))
}

/// `x` of `child<x>`.
fn inner<'a>(kind: &'a str, of: &str) -> Option<&'a str> {
    kind.strip_prefix(of)?.strip_prefix('<')?.strip_suffix('>')
}

fn is_host_bridge(kind: &str) -> bool {
    kind.ends_with("-pcihost") || kind.ends_with("-host-bridge")
}

/// How many slots of the first bus hold a device, of one function or more.
fn slots_used(buses: &[qmp::PciInfo]) -> usize {
    let Some(root) = buses.first() else { return 0 };
    let mut slots: Vec<_> = root.devices.iter().map(|device| device.slot).collect();
    slots.sort_unstable();
    slots.dedup();
    slots.len()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn types_of_the_object_model() {
        assert_eq!(inner("child<PCIE>", "child"), Some("PCIE"));
        for other in ["link<PCIE>", "child", "child<", "child<PCIE", "string", ""] {
            assert_eq!(inner(other, "child"), None, "{other}");
        }
        assert!(is_host_bridge("i440FX-pcihost") && is_host_bridge("q35-pcihost") && !is_host_bridge("mch"));
    }

    #[test]
    fn functions_of_one_slot_count_once() {
        let device = |slot, function| {
            json!({"bus": 0, "slot": slot, "function": function, "qdev_id": "", "irq_pin": 0, "regions": [],
                   "class_info": {"class": 1536}, "id": {"device": 1, "vendor": 2}})
        };
        let buses = json!([{"bus": 0, "devices": [device(0, 0), device(1, 0), device(1, 1), device(31, 0)]}]);
        let buses: Vec<qmp::PciInfo> = serde_json::from_value(buses).unwrap();
        assert_eq!(slots_used(&buses), 3);
        assert_eq!(slots_used(&[]), 0);
    }
}
