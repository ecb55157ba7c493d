//! Taps are Linux's. Owns: nothing.

use std::fs::File;
use std::io;
use std::net::Ipv4Addr;

use crate::sys::interfaces::Link;

/// None can be had.
#[derive(Debug)]
pub(crate) enum Interfaces {}

impl Interfaces {
    pub(crate) fn open() -> io::Result<Self> {
        Err(unsupported())
    }

    pub(crate) fn link(&self, _name: &str) -> io::Result<Option<Link>> {
        match *self {}
    }

    pub(crate) fn set_mac(&self, _index: u32, _mac: [u8; 6]) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn set_mtu(&self, _index: u32, _mtu: u32) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn set_alias(&self, _index: u32, _alias: String) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn set_up(&self, _index: u32, _up: bool) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn add_address(&self, _index: u32, _address: Ipv4Addr, _prefix: u8) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn remove_address(&self, _index: u32, _address: Ipv4Addr, _prefix: u8) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn add_default_route(&self, _index: u32, _router: Ipv4Addr) -> io::Result<()> {
        match *self {}
    }

    pub(crate) fn remove_default_route(&self, _index: u32, _router: Ipv4Addr) -> io::Result<()> {
        match *self {}
    }
}

pub(crate) fn open_tap(_name: &str) -> io::Result<File> {
    Err(unsupported())
}

fn unsupported() -> io::Error {
    io::Error::new(io::ErrorKind::Unsupported, "this needs a tap, which only Linux has: run it in the guest")
}
