//! What a virtual network is made of. Owns: the validated description that [`crate::Stack`] is built from.
//! May not: parse text, fill in defaults. Read next: `lib.rs`.

use core::net::{IpAddr, Ipv4Addr};

use crate::dns::Zone;
use crate::{Mac, Subnet};

/// A virtual network, validated: all addresses are inside `subnet` and distinct.
#[derive(Clone, Debug)]
pub struct NetworkConfig {
    /// Largest IP packet, in bytes, that guests are told of by DHCP and that is taken from and sent to them.
    pub mtu: u16,
    /// Largest IP packet, in bytes, that is sent to a guest before it has shown to take larger ones. The same
    /// as `mtu` if every guest is known to take that.
    pub assumed_mtu: u16,
    /// The addresses of guests and the gateway.
    pub subnet: Subnet,
    /// The virtual gateway: ARP, DHCP, DNS.
    pub gateway: Ipv4Addr,
    /// The gateway's hardware address.
    pub gateway_mac: Mac,
    /// More addresses that the gateway answers ARP and echo for.
    pub gateway_virtual_ips: Vec<Ipv4Addr>,
    /// Destinations rewritten on the way out: `(what the guest dials, what the host dials)`.
    pub nat: Vec<(IpAddr, IpAddr)>,
    /// DHCP reservations.
    pub static_leases: Vec<(Ipv4Addr, Mac)>,
    /// DNS zones answered locally, in the order in which they are tried.
    pub zones: Vec<Zone>,
    /// DHCP option 119.
    pub search_domains: Vec<String>,
    /// Whether 169.254.0.0/16 may be reached.
    pub ec2_metadata_access: bool,
}

impl NetworkConfig {
    /// A network with nothing in it but its gateway: packets of 1500 bytes, no reservations and no names.
    pub fn new(subnet: Subnet, gateway: Ipv4Addr, gateway_mac: Mac) -> Self {
        Self {
            mtu: 1500,
            assumed_mtu: 1500,
            subnet,
            gateway,
            gateway_mac,
            gateway_virtual_ips: Vec::new(),
            nat: Vec::new(),
            static_leases: Vec::new(),
            zones: Vec::new(),
            search_domains: Vec::new(),
            ec2_metadata_access: false,
        }
    }
}
