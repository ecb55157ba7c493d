//! The network as it is unless it is told otherwise, at one MTU.
#![allow(dead_code, reason = "each test uses some of it")]

use std::net::Ipv4Addr;

use netstack::{Mac, NetworkConfig, Subnet};

pub(crate) const GATEWAY: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 1);
pub(crate) const GATEWAY_MAC: Mac = Mac([0x5a, 0x94, 0xef, 0xe4, 0x0c, 0xdd]);
/// The gateway's other address, which stands for the host's loopback.
pub(crate) const HOST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 254);

pub(crate) fn config(mtu: u16) -> NetworkConfig {
    NetworkConfig {
        mtu,
        assumed_mtu: mtu,
        gateway_virtual_ips: vec![HOST],
        nat: vec![(HOST.into(), Ipv4Addr::LOCALHOST.into())],
        ..NetworkConfig::new(Subnet::new(Ipv4Addr::new(192, 168, 127, 0), 24), GATEWAY, GATEWAY_MAC)
    }
}
