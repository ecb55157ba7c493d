//! The virtual machines of `-qmp`. Owns: which hardware address each gets. May not: connect. Read next:
//! `../vm/mod.rs`.

use std::ffi::OsStr;

use anyhow::{Context, Result, bail, ensure};
use netstack::Mac;

use super::asked::Asked;
use super::{DEVICE_MAC, GATEWAY_MAC};
use crate::addr::{Url, ensure_fits, hash};
use crate::text::quote;

/// A virtual machine that is given a network card by QMP, and followed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct MachineConfig {
    /// Its QMP socket.
    pub qmp: qmp::Address,
    /// The card's hardware address.
    pub mac: Mac,
}

impl MachineConfig {
    pub(super) fn resolve(asked: &Asked) -> Result<Vec<Self>> {
        let mut machines: Vec<Self> = Vec::new();
        for (index, typed) in asked.args.qmp.iter().enumerate() {
            let place = |error| asked.place_item("qmp", index, error);
            let qmp = address(typed).map_err(place)?;
            if machines.iter().any(|machine| machine.qmp == qmp) {
                return Err(place(anyhow::anyhow!("{qmp} is given twice")));
            }
            let mac = mac(&qmp, &machines);
            machines.push(Self { qmp, mac });
        }
        Ok(machines)
    }
}

fn address(typed: &OsStr) -> Result<qmp::Address> {
    let invalid = || "invalid value for qmp address";
    let url = Url::parse(typed).with_context(invalid)?;
    match url.scheme.as_str() {
        "unix" => {
            let path = url.into_socket_path().with_context(invalid)?;
            ensure_fits(&path).with_context(invalid)?;
            Ok(qmp::Address::Unix(path))
        }
        "tcp" => {
            let (host, port) = url.into_host_and_port().with_context(invalid)?;
            ensure!(!host.is_empty() && port != 0, "invalid value for qmp address: no host or port");
            Ok(qmp::Address::Tcp(format!("{host}:{port}")))
        }
        _ => bail!("invalid value for qmp address: unexpected scheme in {}", quote(typed.as_encoded_bytes())),
    }
}

/// That of machine managers' machines for the first. The others' is locally administered, depends on nothing
/// but the socket, so that a machine keeps it, and is nobody else's.
fn mac(qmp: &qmp::Address, others: &[MachineConfig]) -> Mac {
    if others.is_empty() {
        return DEVICE_MAC;
    }
    let mut hash = hash(&qmp.to_string());
    loop {
        let [_, a, b, c] = hash.to_be_bytes();
        let mac = Mac([0x5a, 0x94, 0xef, a, b, c]);
        if mac != GATEWAY_MAC && others.iter().all(|other| other.mac != mac) {
            return mac;
        }
        hash = hash.wrapping_add(1);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_machine_has_an_address_of_its_own_that_stays() {
        let unix = |path: &str| qmp::Address::Unix(path.into());
        let first = MachineConfig { qmp: unix("/a"), mac: mac(&unix("/a"), &[]) };
        assert_eq!(first.mac, DEVICE_MAC);
        let second = mac(&unix("/b"), std::slice::from_ref(&first));
        assert_eq!(
            second,
            mac(&unix("/b"), &[first.clone(), MachineConfig { qmp: unix("/c"), mac: first.mac }])
        );
        assert_ne!(second, DEVICE_MAC);
        // Locally administered, and no group's.
        assert_eq!(second.0[0] & 3, 2);
        let taken = MachineConfig { qmp: unix("/d"), mac: second };
        assert_ne!(mac(&unix("/b"), &[first, taken]), second);
    }

    #[test]
    fn addresses() {
        let parsed = |typed: &str| address(typed.as_ref()).map_err(|error| format!("{error:#}"));
        assert_eq!(parsed("unix:///run/q").unwrap(), qmp::Address::Unix("/run/q".into()));
        assert_eq!(parsed("tcp://[::1]:4444").unwrap(), qmp::Address::Tcp("[::1]:4444".into()));
        for typed in
            ["unix://run/q", "unix:q", "/run/q", "tcp://:4444", "tcp://h:0", "tcp://h", "vsock://2:1"]
        {
            let error = parsed(typed).unwrap_err();
            assert!(error.starts_with("invalid value for qmp address: "), "{typed}: {error}");
        }
    }
}
