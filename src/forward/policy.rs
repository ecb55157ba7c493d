//! What a guest may expose. It asks through the gateway, as podman does for a container's `-p`, and is not
//! trusted.
//!
//! TCP and UDP only, unless the operator allows unix sockets; leading to itself and nowhere else; at an
//! address and not at a name, which would be a question to the host's resolver. What it may see and remove is
//! what it exposed itself (`registry.rs`).
//!
//! Owns: the rules. May not: know who holds what. Read next: `registry.rs`.

use std::net::{IpAddr, Ipv4Addr};

use crate::addr::{Dest, Host, ListenAddress, Local, SshDest, remote_address};
use crate::config::{Exposed, GuestPolicy, Protocol};

/// Ports that one guest may have exposed at a time. Each is a descriptor; podman exposes every port of a
/// range by itself.
const MAX_PORTS: usize = 4096;

const PLAIN: &str = "a guest may expose plain unix sockets, no other ones";

impl GuestPolicy {
    /// Whether the guest may have that.
    ///
    /// # Errors
    /// What is wrong with it, to be told to the guest.
    pub(super) fn check(&self, guest: Ipv4Addr, wanted: &Exposed) -> Result<(), String> {
        let Exposed { local, remote, protocol } = wanted;
        if !matches!(protocol, Protocol::Tcp | Protocol::Udp) {
            if self.all_protocols {
                return Ok(());
            }
            return Err(format!("a guest may expose tcp and udp ports, not {protocol}"));
        }
        // What cannot be read is refused with the words for everybody.
        if let Ok(remote) = remote_address(remote)
            && *remote.ip() != guest
        {
            return Err(format!("a guest may expose its own ports, and {} is not {guest}", remote.ip()));
        }
        let Ok(local) = Local::parse(local, protocol.as_str()) else { return Ok(()) };
        if local.port < self.lowest_port {
            return Err(format!("a guest may expose ports from {} on, not {}", self.lowest_port, local.port));
        }
        let address = match local.host {
            Host::Any => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            Host::Address(address) => address,
            Host::Name(name) if name == "localhost" => IpAddr::V4(Ipv4Addr::LOCALHOST),
            Host::Name(_) => return Err("a guest may expose ports at an address, not at a name".into()),
        };
        if !self.addresses.is_empty() && !self.addresses.contains(&address) {
            return Err(format!("a guest may not expose ports at {address}"));
        }
        Ok(())
    }

    /// Whether the words for a socket can be read without a look at the host's users and groups, which may be
    /// far away.
    ///
    /// # Errors
    /// What is wrong with them, to be told to the guest.
    pub(super) fn check_names(local: &str) -> Result<(), String> {
        if ListenAddress::has_owner(local.as_ref()) { Err(PLAIN.into()) } else { Ok(()) }
    }

    /// Whether the guest may have that socket: a plain unix socket that leads to itself, by TCP or over SSH.
    ///
    /// # Errors
    /// What is wrong with it, to be told to the guest.
    pub(super) fn check_socket(guest: Ipv4Addr, source: &ListenAddress, dest: &Dest) -> Result<(), String> {
        if !matches!(source, ListenAddress::Unix { mode: 0o600, owner: None, group: None, .. }) {
            return Err(PLAIN.into());
        }
        match dest {
            Dest::Tcp(to) | Dest::Ssh(SshDest { sshd: to, .. }) if to.host.parse() == Ok(guest) => Ok(()),
            _ => Err(format!("a guest may expose what is its own, and {dest} is not {guest}'s")),
        }
    }

    /// Whether a guest that has `count` ports may have one more.
    ///
    /// # Errors
    /// It may not.
    pub(super) fn check_count(&self, count: usize) -> Result<(), String> {
        if count >= MAX_PORTS {
            Err(format!("a guest may expose {MAX_PORTS} ports, no more"))
        } else {
            Ok(())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const GUEST: Ipv4Addr = Ipv4Addr::new(192, 168, 127, 2);

    fn check(policy: &GuestPolicy, protocol: Protocol, local: &str, remote: &str) -> Result<(), String> {
        policy.check(GUEST, &Exposed { local: local.into(), remote: remote.into(), protocol })
    }

    #[test]
    fn what_podman_needs() {
        let policy = GuestPolicy::default();
        for local in
            [":8080", ":80", "0.0.0.0:8080", "127.0.0.1:8080", "[::]:8080", "[::1]:1", "localhost:8080"]
        {
            for protocol in [Protocol::Tcp, Protocol::Udp] {
                assert_eq!(check(&policy, protocol, local, "192.168.127.2:8080"), Ok(()), "{local}");
            }
        }
    }

    #[test]
    fn what_it_does_not() {
        let policy = GuestPolicy::default();
        for (protocol, local, remote, why) in [
            (Protocol::Unix, "/x", "tcp://192.168.127.2:80", "not unix"),
            (Protocol::Unix, "/x", "ssh-tunnel://u@192.168.127.2/x?key=/etc/shadow", "not unix"),
            (Protocol::Npipe, "npipe:////./pipe/x", "tcp://192.168.127.2:80", "not npipe"),
            (Protocol::Tcp, ":8080", "192.168.127.3:80", "192.168.127.3 is not 192.168.127.2"),
            (Protocol::Udp, ":8080", "192.168.127.1:80", "its own ports"),
            (Protocol::Tcp, "intern.example:8080", "192.168.127.2:80", "not at a name"),
        ] {
            let error = check(&policy, protocol, local, remote).unwrap_err();
            assert!(error.contains(why), "{local} {remote}: {error}");
        }
        assert_eq!((policy.check_count(4095).is_ok(), policy.check_count(4096).is_ok()), (true, false));
    }

    #[cfg(unix)]
    #[test]
    fn what_an_operator_may_allow() {
        let policy = GuestPolicy { all_protocols: true, ..GuestPolicy::default() };
        assert_eq!(check(&policy, Protocol::Unix, "/x", "tcp://192.168.127.2:80"), Ok(()));
        assert!(check(&policy, Protocol::Tcp, ":80", "192.168.127.3:80").is_err());
        let socket = |local: &str, remote: &str| {
            GuestPolicy::check_socket(
                GUEST,
                &ListenAddress::parse(local.as_ref()).unwrap(),
                &Dest::parse(remote).unwrap(),
            )
        };
        for remote in ["tcp://192.168.127.2:80", "ssh-tunnel://u@192.168.127.2:22/x?key=/k"] {
            assert_eq!((socket("/x", remote), socket("unix:///x", remote)), (Ok(()), Ok(())), "{remote}");
        }
        for (local, remote) in [
            ("/x", "tcp://192.168.127.3:80"),
            ("/x", "tcp://127.0.0.1:80"),
            ("/x", "ssh-tunnel://u@192.168.127.1/x?key=/k"),
            ("/x", "unix:///var/run/docker.sock"),
            ("/x", "vsock://2:1"),
            ("/x", "agent://192.168.127.2/x"),
            ("tcp://:1", "tcp://192.168.127.2:80"),
            ("@x", "tcp://192.168.127.2:80"),
            ("unix:///x?mode=0666", "tcp://192.168.127.2:80"),
            ("fd://", "tcp://192.168.127.2:80"),
        ] {
            assert!(socket(local, remote).is_err(), "{local} {remote}");
        }
    }

    #[test]
    fn what_an_operator_may_deny() {
        let addresses = vec![IpAddr::V4(Ipv4Addr::LOCALHOST)];
        let policy = GuestPolicy { lowest_port: 1024, addresses, all_protocols: false };
        let at = |local| check(&policy, Protocol::Tcp, local, "192.168.127.2:80");
        assert_eq!(
            (at("127.0.0.1:1024"), at("localhost:8080"), at("[::ffff:127.0.0.1]:8080")),
            (Ok(()), Ok(()), Ok(()))
        );
        for local in ["127.0.0.1:80", "127.0.0.1:0", ":8080", "[::1]:8080", "0.0.0.0:8080"] {
            assert!(at(local).is_err(), "{local}");
        }
    }
}
