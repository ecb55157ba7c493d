//! Gives a running QEMU a network card whose other end is a unix socket, by QMP, shows what QEMU knows of it,
//! and removes its netdev again.
//!
//!     gvproxy -listen-qemu unix:///tmp/vm/qemu.sock &
//!     qemu-system-x86_64 -M q35 -device pcie-root-port,id=hot0,chassis=1 -display none \
//!       -qmp unix:/tmp/vm/qmp.sock,server=on,wait=off &
//!     cargo run --example attach_by_qmp -- unix:///tmp/vm/qmp.sock /tmp/vm/qemu.sock
//!
//! A q35 has a free slot for a card only behind a port such as `hot0`. `gvproxy -qmp` does all of this by
//! itself, and again after a restart of either.
#![allow(clippy::print_stdout, reason = "it shows what QEMU says")]

use anyhow::{Result, bail};
use qmp::{Client, Timeouts, netdev_stream, virtio_net};

const NETDEV: &str = "example-net";
const CARD: &str = "example-nic";

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let [qmp, socket] = arguments.as_slice() else { bail!("usage: attach_by_qmp QMP-URL SOCKET") };
    let mut client = Client::connect(&qmp.parse()?, Timeouts::default()).await?;
    let version = &client.version().qemu;
    println!("QEMU {}.{}.{}", version.major, version.minor, version.micro);

    // A slot that the guest's firmware and system look at, also while they run.
    let bus = client.free_pci_bus().await?;
    println!("a free slot: {bus}");
    client.execute(netdev_stream(NETDEV, socket)).await?;
    client.execute(virtio_net(CARD, NETDEV, "5a:94:ef:e4:0c:ee", &bus)).await?;
    println!("{:#?}", client.network().await?);

    // The card stays: a guest is asked to let one go (`Client::unplug`), and none runs here that could.
    client.execute(qmp::qapi::qmp::netdev_del { id: NETDEV.into() }).await?;
    println!("its end on the host is closed");
    Ok(())
}
