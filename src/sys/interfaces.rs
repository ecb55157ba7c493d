//! The network interfaces of a guest, which one of ours inside sets up. Owns: one way to the system. Read
//! next: `guest/tap.rs`.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use super::os;

/// The system's interfaces.
#[derive(Debug)]
pub struct Interfaces(os::interfaces::Interfaces);

/// What there is to know of an interface.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number here.
    pub index: u32,
    /// Its hardware address.
    pub mac: Option<[u8; 6]>,
    /// In bytes.
    pub mtu: Option<u32>,
    /// What somebody has noted about it.
    pub alias: Option<String>,
    /// It is switched on.
    pub is_up: bool,
    /// A tap has it while somebody carries its frames.
    pub has_carrier: bool,
}

impl Interfaces {
    /// A way to ask for them.
    ///
    /// # Errors
    /// The system gives none; `Unsupported` elsewhere than on Linux.
    pub fn open() -> io::Result<Self> {
        os::interfaces::Interfaces::open().map(Self)
    }

    /// The interface `name`, if there is one.
    ///
    /// # Errors
    /// The system does not tell.
    pub fn link(&self, name: &str) -> io::Result<Option<Link>> {
        self.0.link(name)
    }

    /// Gives it this hardware address.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_mac(&self, index: u32, mac: [u8; 6]) -> io::Result<()> {
        self.0.set_mac(index, mac)
    }

    /// Gives it this MTU, in bytes.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_mtu(&self, index: u32, mtu: u32) -> io::Result<()> {
        self.0.set_mtu(index, mtu)
    }

    /// Notes this about it.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_alias(&self, index: u32, alias: String) -> io::Result<()> {
        self.0.set_alias(index, alias)
    }

    /// Switches it on or off.
    ///
    /// # Errors
    /// The system refuses.
    pub fn set_up(&self, index: u32, up: bool) -> io::Result<()> {
        self.0.set_up(index, up)
    }

    /// Adds an address and the route to its subnet; one that is there stays.
    ///
    /// # Errors
    /// The system refuses.
    pub fn add_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.0.add_address(index, address, prefix)
    }

    /// Removes an address, and with it the routes that need it.
    ///
    /// # Errors
    /// The system refuses, or it is not there.
    pub fn remove_address(&self, index: u32, address: Ipv4Addr, prefix: u8) -> io::Result<()> {
        self.0.remove_address(index, address, prefix)
    }

    /// Adds a default route in front of any other, which is used again when this one is gone with its
    /// interface.
    ///
    /// # Errors
    /// The system refuses.
    pub fn add_default_route(&self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        self.0.add_default_route(index, router)
    }

    /// Removes what [`Self::add_default_route`] has added.
    ///
    /// # Errors
    /// The system refuses, or it is not there.
    pub fn remove_default_route(&self, index: u32, router: Ipv4Addr) -> io::Result<()> {
        self.0.remove_default_route(index, router)
    }
}

/// Opens the tap `name`, which is made if there is none, and goes with the last descriptor then. Reads and
/// writes do not wait; each is one frame.
///
/// # Errors
/// The system refuses; `Unsupported` elsewhere than on Linux.
pub fn open_tap(name: &str) -> io::Result<File> {
    os::interfaces::open_tap(name)
}
