//! Where hypervisors connect. Owns: what `-listen-qemu` and its like mean. May not: bind. Read next:
//! `hypervisor/mod.rs`.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};

use super::asked::Asked;
use super::{MachineConfig, PathCheck, Wanted};
use crate::addr::{ListenAddress, Url};
use crate::text::quote;

/// A way for a hypervisor to connect.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum LinkConfig {
    /// QEMU connects to a stream socket.
    Qemu(ListenAddress),
    /// HyperKit connects to a stream socket, and is told its MTU and hardware address.
    Vpnkit(ListenAddress),
    /// A `SOCK_SEQPACKET` socket.
    Bess(PathBuf),
    /// A datagram socket.
    Vfkit(PathBuf),
    /// Standard input and output.
    Stdio,
}

impl LinkConfig {
    /// The socket's file, if it has one.
    pub fn path(&self) -> Option<&Path> {
        match self {
            Self::Qemu(at) | Self::Vpnkit(at) => at.path(),
            Self::Bess(path) | Self::Vfkit(path) => Some(path),
            Self::Stdio => None,
        }
    }

    /// The links that were asked for, in the order in which they are bound. A socket of one of `machines`'
    /// QEMU is none.
    pub(super) fn resolve(
        asked: &Asked,
        machines: &[MachineConfig],
        check: PathCheck<'_>,
    ) -> Result<Vec<Self>> {
        let raw = &asked.args;
        let given = |typed: &OsStr| !typed.is_empty();
        let mut links = Vec::new();
        for (flag, typed, parse) in [
            ("listen-vpnkit", &raw.listen_vpnkit, vpnkit as fn(&OsStr, PathCheck<'_>) -> Result<Self>),
            ("listen-qemu", &raw.listen_qemu, qemu),
            ("listen-bess", &raw.listen_bess, bess),
            ("listen-vfkit", &raw.listen_vfkit, vfkit),
            ("listen-stdio", &raw.listen_stdio, |_, _| Ok(Self::Stdio)),
        ] {
            let is_machine = *flag == *"listen-qemu" && machines.iter().any(|machine| is_of(machine, typed));
            if given(typed) && !is_machine {
                links.push(parse(typed, check).map_err(|error| asked.place(flag, error))?);
            }
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
}

/// Whether the URL is that of the machine's QMP socket.
fn is_of(machine: &MachineConfig, typed: &OsStr) -> bool {
    let path = Url::parse(typed).ok().filter(|url| url.scheme == "unix").map(|url| url.path.into());
    path.is_some_and(|path| machine.qmp == qmp::Address::Unix(path))
}

fn vpnkit(typed: &OsStr, check: PathCheck<'_>) -> Result<LinkConfig> {
    stream_address("vpnkit", typed, check).map(LinkConfig::Vpnkit)
}

fn qemu(typed: &OsStr, check: PathCheck<'_>) -> Result<LinkConfig> {
    stream_address("qemu", typed, check).map(LinkConfig::Qemu)
}

fn bess(typed: &OsStr, check: PathCheck<'_>) -> Result<LinkConfig> {
    path("bess", "unixpacket", typed, check).map(LinkConfig::Bess)
}

fn vfkit(typed: &OsStr, check: PathCheck<'_>) -> Result<LinkConfig> {
    path("vfkit", "unixgram", typed, check).map(LinkConfig::Vfkit)
}

fn stream_address(name: &str, typed: &OsStr, check: PathCheck<'_>) -> Result<ListenAddress> {
    let url = Url::parse(typed).with_context(|| format!("invalid value for {name} listen address"))?;
    let invalid = || format!("invalid value for {name} listen address");
    match url.scheme.as_str() {
        "unix" => {
            let path = url.into_socket_path().with_context(invalid)?;
            check(if name == "qemu" { Wanted::QemuLink(&path) } else { Wanted::Link(&path) })?;
            Ok(ListenAddress::private(path))
        }
        "tcp" => {
            let host = url.authority().with_context(invalid)?.bare_host().to_owned();
            let (_, port) = url.into_host_and_port().with_context(invalid)?;
            Ok(ListenAddress::Tcp { host, port })
        }
        _ => bail!("{name} listen error: unexpected scheme in {}", quote(typed.as_encoded_bytes())),
    }
}

fn path(name: &str, scheme: &str, typed: &OsStr, check: PathCheck<'_>) -> Result<PathBuf> {
    let invalid = || format!("invalid value for {name} listen address");
    let url = Url::parse(typed).with_context(invalid)?;
    ensure!(url.scheme == scheme, "{name} listen address must be {scheme}:// address");
    let path = url.into_socket_path().with_context(invalid)?;
    check(Wanted::Link(&path))?;
    Ok(path)
}
