//! A guest with a real TCP/IP stack: Linux in a namespace, its network card a tap whose frames go to a link.
//! Owns: the namespace, the tap and the relay. Read next: `relay.rs`, `net.rs`.

use std::collections::HashMap;
use std::fs::{File, Permissions};
use std::net::{Ipv4Addr, SocketAddr};
use std::ops::Deref;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use socket2::Socket;

use crate::cable::Cable;
use crate::ns::Namespace;
use crate::relay::Relay;
use crate::tool;
use crate::udp::UdpSocket;

/// The hardware address that the daemon reserves the first address for.
pub const MAC: &str = "5a:94:ef:e4:0c:ee";
/// The name of the guest's network card.
pub const NIC: &str = "eth0";

/// What a DHCP client has to do with a lease: configure the interface, and say what it was given.
const SCRIPT: &str = r#"#!/bin/sh
case "$1" in
bound|renew)
    ip addr flush dev "$interface"
    ip link set "$interface" mtu "${OWN_MTU:-${mtu:-1500}}"
    ip addr add "$ip/$mask" broadcast + dev "$interface"
    [ -z "$router" ] || ip route replace default via "${router%% *}"
    env >"$LEASE.new" && mv "$LEASE.new" "$LEASE" ;;
esac
"#;

/// A running guest. It dereferences to its [`Namespace`], for its sockets and commands.
#[derive(Debug)]
pub struct Guest {
    ns: Namespace,
    tap: File,
    relay: Relay,
    dir: tempfile::TempDir,
}

/// What the DHCP client was given, by udhcpc's names.
#[derive(Debug)]
pub struct Lease(HashMap<String, String>);

impl Lease {
    /// An option, or an empty text.
    pub fn option(&self, name: &str) -> &str {
        self.0.get(name).map_or("", String::as_str)
    }

    pub fn ip(&self) -> Ipv4Addr {
        self.option("ip").parse().unwrap_or_else(|error| panic!("{error} in {self:?}"))
    }
}

impl Guest {
    /// A guest whose network card is plugged into `link` and has no address yet.
    #[track_caller]
    pub fn start(link: impl Into<Cable>, mac: &str, mtu: u16) -> Self {
        Self::plug(Namespace::new(), link, mac, mtu)
    }

    /// Gives the network `ns` a card that is plugged into `link`.
    #[track_caller]
    pub fn plug(ns: Namespace, link: impl Into<Cable>, mac: &str, mtu: u16) -> Self {
        let tap = ns.open(&format!("tap {NIC}")).unwrap_or_else(|error| {
            panic!("{error}: a test guest needs /dev/net/tun, readable and writable (modprobe tun)")
        });
        let mtu = mtu.to_string();
        ns.run(["ip", "link", "set", NIC, "address", mac, "mtu", &mtu, "txqueuelen", "1000", "up"]);
        let tap = File::from(tap);
        let relay = Relay::start(tap.try_clone().expect("a descriptor"), link);
        Self { ns, tap, relay, dir: tempfile::tempdir().expect("a temporary directory") }
    }

    /// Configures the interface by hand.
    #[track_caller]
    pub fn configure(&self, address: &str, router: Option<&str>) {
        self.ns.run(["ip", "addr", "add", address, "dev", NIC]);
        if let Some(router) = router {
            self.ns.run(["ip", "route", "replace", "default", "via", router]);
        }
    }

    /// Asks for a lease with a real DHCP client, which configures the interface with what it gets.
    #[track_caller]
    pub fn dhcp(&self) -> Lease {
        self.dhcp_with("")
    }

    /// The same, and the interface gets the MTU `own`, whatever is offered.
    #[track_caller]
    pub fn dhcp_keeping(&self, own: u16) -> Lease {
        self.dhcp_with(&own.to_string())
    }

    #[track_caller]
    fn dhcp_with(&self, own_mtu: &str) -> Lease {
        let (script, lease) = (self.dir.path().join("script"), self.dir.path().join("lease"));
        std::fs::write(&script, SCRIPT).unwrap();
        std::fs::set_permissions(&script, Permissions::from_mode(0o755)).unwrap();
        let output = self
            .command(tool("udhcpc", "udhcpc"))
            .args(["-i", NIC, "-f", "-q", "-n", "-t", "5", "-T", "2", "-O", "mtu", "-O", "search", "-s"])
            .arg(&script)
            .env_clear()
            .env("PATH", "/usr/sbin:/usr/bin:/sbin:/bin")
            .env("LEASE", &lease)
            .env("OWN_MTU", own_mtu)
            .output()
            .expect("udhcpc");
        let text = std::fs::read_to_string(&lease)
            .unwrap_or_else(|_| panic!("no lease: {}", String::from_utf8_lossy(&output.stderr)));
        let options = text.lines().filter_map(|line| line.split_once('='));
        Lease(options.map(|(name, value)| (name.to_owned(), value.to_owned())).collect())
    }

    /// Whether `to` answers one echo request with all that was in it: `length` bytes.
    #[track_caller]
    pub fn ping(&self, to: Ipv4Addr, length: usize) -> bool {
        let socket = UdpSocket::from(Socket::from(self.open("ping").expect("an echo socket")));
        socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
        // Type 8, and what the kernel fills in: checksum, identifier. The sequence number is 1.
        let mut request = vec![8, 0, 0, 0, 0, 0, 0, 1];
        request.extend((0..length).map(|i| i as u8));
        socket.send_to(&request, SocketAddr::from((to, 0))).unwrap();
        let mut answer = vec![0; 65536];
        let Ok((got, from)) = socket.recv_from(&mut answer) else { return false };
        assert_eq!(from.ip(), to, "the answer comes from who was asked");
        assert_eq!(answer[0], 0, "an echo reply");
        answer[8..got] == request[8..]
    }

    /// Bytes of the longest frame that came since the last time.
    pub fn longest_frame(&self) -> usize {
        self.relay.longest()
    }

    /// Stops taking frames from the daemon, or goes on with it: see [`Relay::hold`].
    pub fn hold(&self, hold: bool) {
        self.relay.hold(hold);
    }

    /// Puts the card, configured as it is, on another link.
    pub fn replug(&mut self, link: impl Into<Cable>) {
        self.relay = Relay::start(self.tap.try_clone().expect("a descriptor"), link);
    }

    /// Pulls the plug.
    pub fn switch_off(&mut self) {
        self.relay.stop();
    }
}

impl Deref for Guest {
    type Target = Namespace;

    fn deref(&self) -> &Namespace {
        &self.ns
    }
}
