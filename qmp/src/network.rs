//! A VM's network: the commands that make one, and what QEMU tells of those it has.
//!
//! Owns: [`netdev_stream`], [`virtio_net`], [`Network`].

use qapi::{Any, Dictionary, qmp};

use crate::{Client, ExecuteError};

/// `netdev_add` of a stream that QEMU connects to a listening unix socket: a frame is its length, 4 bytes
/// big-endian, and its bytes.
///
/// QEMU accepts the command before it connects, and says `{}` also where nobody listens: [`Netdev::info`]
/// tells, or the event `NETDEV_STREAM_CONNECTED`. It connects once; when the other end closes, the netdev
/// stays and is dead.
pub fn netdev_stream(id: &str, path: &str) -> qmp::netdev_add {
    let address = qmp::UnixSocketAddress { abstract_: None, tight: None, path: path.to_owned() };
    qmp::netdev_add(qmp::Netdev::stream {
        id: id.to_owned(),
        stream: qmp::NetdevStreamOptions {
            reconnect: None,
            server: Some(false),
            addr: qmp::SocketAddress::unix(address),
        },
    })
}

/// `device_add` of a `virtio-net-pci` card in front of a netdev; `bus` as from [`Client::free_pci_bus`].
pub fn virtio_net(id: &str, netdev: &str, mac: &str, bus: &str) -> qmp::device_add {
    let mut arguments = Dictionary::new();
    arguments.insert("netdev".to_owned(), Any::from(netdev));
    arguments.insert("mac".to_owned(), Any::from(mac));
    qmp::device_add {
        driver: "virtio-net-pci".to_owned(),
        id: Some(id.to_owned()),
        bus: Some(bus.to_owned()),
        arguments,
    }
}

/// The network cards of a VM and what is behind them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Network {
    /// The cards, in QEMU's order.
    pub nics: Vec<Nic>,
    /// Netdevs without a card.
    pub unused: Vec<Netdev>,
}

/// A network card.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Nic {
    /// The device's id; `model.N` for one without.
    pub id: String,
    /// QEMU's name for the device, such as `virtio-net-pci`.
    pub model: String,
    /// Its hardware address, as QEMU writes it.
    pub mac: String,
    /// What it is connected to.
    pub netdev: Option<Netdev>,
}

/// What a network card is connected to.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Netdev {
    /// Its id.
    pub id: String,
    /// `stream`, `socket`, `user`, `tap` and so on.
    pub kind: String,
    /// What QEMU says of it, for people. A stream: empty until it is connected, then the address of the other
    /// end as `unix:PATH` or `tcp:HOST:PORT`; `connection error`, or `error: ` and why, when it could not
    /// connect. When the other end closes, QEMU 7.2 empties it, and QEMU 10 leaves it as it was. A socket
    /// given as a descriptor says `socket: fd=N`.
    pub info: String,
}

impl Network {
    /// Of what `info network` prints. Lines of another form are passed over.
    pub fn parse(text: &str) -> Self {
        let mut network = Self::default();
        for line in text.lines() {
            let Some((id, (kind, info))) = line
                .split_once(": index=")
                .and_then(|(id, rest)| Some((id, rest.split_once(",type=")?.1)))
                .map(|(id, rest)| (id, rest.split_once(',').unwrap_or((rest, ""))))
            else {
                continue;
            };
            if kind == "nic" {
                let field =
                    |name| info.split(',').find_map(|part| part.strip_prefix(name)).unwrap_or_default();
                network.nics.push(Nic {
                    id: id.to_owned(),
                    model: field("model=").to_owned(),
                    mac: field("macaddr=").to_owned(),
                    netdev: None,
                });
                continue;
            }
            let netdev =
                |id: &str| Netdev { id: id.to_owned(), kind: kind.to_owned(), info: info.to_owned() };
            match (id.strip_prefix(" \\ "), network.nics.last_mut()) {
                (Some(id), Some(nic)) => nic.netdev = Some(netdev(id)),
                (Some(_), None) => {}
                (None, _) => network.unused.push(netdev(id)),
            }
        }
        network
    }
}

impl Client {
    /// The cards and netdevs that the VM has now. QMP has no query for it, so this reads what the human
    /// monitor prints, a form that QEMU does not promise to keep.
    pub async fn network(&mut self) -> Result<Network, ExecuteError> {
        let info = qmp::human_monitor_command { cpu_index: None, command_line: "info network".to_owned() };
        Ok(Network::parse(&self.execute(info).await?))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn cards_with_what_is_behind_them() {
        let network = Network::parse(concat!(
            "e1000.0: index=0,type=nic,model=e1000,macaddr=52:54:00:12:34:56\r\n",
            "v2: index=0,type=stream,connection error\r\n",
            "hub 0\r\n \\ hub0port1: v3: index=0,type=hubport\r\n",
            "nic0: index=0,type=nic,model=virtio-net-pci,macaddr=5a:94:ef:e4:0c:ee\r\n",
            " \\ vlan: index=0,type=stream,unix:/run/a: index=1,b\r\n",
        ));
        let netdev =
            |id: &str, kind: &str, info: &str| Netdev { id: id.into(), kind: kind.into(), info: info.into() };
        assert_eq!(network.nics.len(), 2, "{network:?}");
        assert_eq!((network.nics[0].id.as_str(), network.nics[0].model.as_str()), ("e1000.0", "e1000"));
        assert_eq!(network.nics[1].mac, "5a:94:ef:e4:0c:ee");
        assert_eq!(network.nics[1].netdev, Some(netdev("vlan", "stream", "unix:/run/a: index=1,b")));
        assert!(network.unused.contains(&netdev("v2", "stream", "connection error")), "{network:?}");
    }

    #[test]
    fn any_text_is_taken() {
        for text in [
            "",
            "\n\n",
            " \\ v: index=0,type=user",
            "x: index=",
            "x: index=0,type=",
            "x: index=0,type=nic",
            "\\",
        ] {
            Network::parse(text);
        }
        assert_eq!(Network::parse(" \\ v: index=0,type=user"), Network::default());
    }
}
