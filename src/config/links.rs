//! Where hypervisors connect. Owns: what `-listen-qemu` and its like mean. May not: bind. Read next: `link/listener.rs`.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::url::Url;
use crate::cli::RawArgs;
use crate::link::Framing;
use crate::listen;
use crate::text::quote;

/// A way for a hypervisor to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkConfig {
    /// QEMU connects to a stream socket.
    Qemu(Address),
    /// HyperKit connects to a stream socket, and is told its MTU and hardware address.
    Vpnkit(Address),
    /// A `SOCK_SEQPACKET` socket.
    Bess(PathBuf),
    /// A datagram socket.
    Vfkit(PathBuf),
    /// Standard input and output.
    Stdio,
}

/// Where a stream socket listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Address {
    /// A file.
    Unix(PathBuf),
    /// A name or an address, and a port.
    Tcp(String, u16),
}

impl LinkConfig {
    /// The socket's file, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Qemu(Address::Unix(path))
            | Self::Vpnkit(Address::Unix(path))
            | Self::Bess(path)
            | Self::Vfkit(path) => Some(path),
            Self::Qemu(Address::Tcp(..)) | Self::Vpnkit(Address::Tcp(..)) | Self::Stdio => None,
        }
    }

    /// The flags' links, in the order in which they are bound.
    pub(super) fn resolve(raw: &RawArgs) -> Result<Vec<Self>> {
        let given = |typed: &OsStr| !typed.is_empty();
        let mut links = Vec::new();
        if given(&raw.listen_vpnkit) {
            links.push(Self::Vpnkit(stream_address("vpnkit", &raw.listen_vpnkit)?));
        }
        if given(&raw.listen_qemu) {
            links.push(Self::Qemu(stream_address("qemu", &raw.listen_qemu)?));
        }
        if given(&raw.listen_bess) {
            links.push(Self::Bess(path("bess", "unixpacket", &raw.listen_bess)?));
        }
        if given(&raw.listen_vfkit) {
            links.push(Self::Vfkit(path("vfkit", "unixgram", &raw.listen_vfkit)?));
        }
        if given(&raw.listen_stdio) {
            links.push(Self::Stdio);
        }
        for (one, other, names) in [
            (&raw.listen_vpnkit, &raw.listen_qemu, "qemu and vpnkit"),
            (&raw.listen_vpnkit, &raw.listen_bess, "bess and vpnkit"),
            (&raw.listen_qemu, &raw.listen_bess, "qemu and bess"),
        ] {
            ensure!(!(given(one) && given(other)), "cannot use {names} protocol at the same time");
        }
        Ok(links)
    }

    /// What a client of `/connect` speaks: as QEMU if that is what else comes here.
    // COMPAT(gvproxy): with -listen-bess or -listen-vfkit the original reads its stream as if it were datagrams, of which nobody has any
    // use.
    pub fn connect_framing(links: &[Self]) -> Framing {
        let is_qemu = links.iter().any(|link| matches!(link, Self::Qemu(_)));
        if is_qemu { Framing::Qemu } else { Framing::Hyperkit }
    }
}

fn stream_address(name: &str, typed: &OsStr) -> Result<Address> {
    let url = Url::parse(typed).with_context(|| format!("invalid value for {name} listen address"))?;
    let invalid = || format!("invalid value for {name} listen address");
    match url.scheme.as_str() {
        "unix" => {
            let path = url.into_socket_path().with_context(invalid)?;
            listen::ensure_vacant(&path)?;
            Ok(Address::Unix(path))
        }
        "tcp" => url.into_host_and_port().map(|(host, port)| Address::Tcp(host, port)).with_context(invalid),
        _ => bail!("{name} listen error: unexpected scheme in {}", quote(typed.as_bytes())),
    }
}

fn path(name: &str, scheme: &str, typed: &OsStr) -> Result<PathBuf> {
    let invalid = || format!("invalid value for {name} listen address");
    let url = Url::parse(typed).with_context(invalid)?;
    ensure!(url.scheme == scheme, "{name} listen address must be {scheme}:// address");
    let path = url.into_socket_path().with_context(invalid)?;
    listen::ensure_vacant(&path)?;
    Ok(path)
}
