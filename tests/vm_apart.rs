//! Two real machines on one daemon, which keeps guests apart: what they may do nevertheless, as podman,
//! bridges and nested networks do it, and a machine that comes back on another link.
#![allow(clippy::expect_used, reason = "a test fails by panic")]

use std::ffi::OsString;
use std::fs::File;
use std::io::Read;
use std::net::{Ipv4Addr, TcpListener};
use std::os::unix::net::UnixStream;
use std::time::Duration;

use rustix::process::Signal;
use serde_json::json;
use testkit::daemon::Daemon;
use testkit::http::ask;
use testkit::vm::{BOOT, Neighbour, Vm, image, output, ssh_command, sshd_greets, step};
use testkit::{eventually, free_port};

testkit::agent_in_a_namespace!();

/// The hardware address of the second machine; the first one's has a reservation.
const MAC: &str = "5a:94:ef:e4:0c:77";
/// How long an emulated machine may take for what needs a moment.
const PATIENCE: Duration = Duration::from_secs(60);

#[test]
fn what_guests_may_do_who_are_kept_apart() {
    let port = free_port();
    let words = ["-keep-running", "-listen", "unix://{dir}/api"].map(OsString::from);
    let mut one = Vm::with(free_port(), words);
    let two = step("boot of two machines", || {
        let two = Neighbour::power_on(&one.daemon, MAC);
        one.power_on();
        two
    });
    let address = step("the second one's address", || address_of(&one.daemon, MAC));
    expose(&one.daemon, port, &format!("{address}:22"));
    reached(port);
    let second = |script: &str| output(ssh_command(port, "root", script));

    step("they talk to each other", || {
        second(
            "systemd-run --quiet --unit sink socat -u TCP-LISTEN:7000,reuseaddr OPEN:/root/got,creat,trunc",
        );
        let sent = one.ssh(
            "root",
            &format!(
                "ping -q -c 3 -W 5 {address} >&2 && head -c 5000000 /dev/urandom >sent && \
                 socat -u OPEN:sent TCP:{address}:7000,retry=50,interval=0.1 && sha256sum <sent"
            ),
        );
        eventually("the same bytes", PATIENCE, || (second("sha256sum </root/got") == sent).then_some(()));
        second("ping -q -c 3 -W 5 192.168.127.2 >&2");
    });

    step("a port that podman publishes, for the host and for the neighbour", || {
        let mut load = ssh_command(one.ssh_port, "root", "podman load --quiet");
        let loaded = load.stdin(File::open(image()).expect("an image")).output().expect("ssh");
        assert!(loaded.status.success(), "{loaded:?}");
        one.ssh(
            "root",
            "podman run --detach --name web -p 8080:80 localhost/busybox:test httpd -f -h /www >&2",
        );
        let web = free_port();
        expose(&one.daemon, web, "192.168.127.2:8080");
        assert_eq!(second("curl --silent --retry 9 --retry-connrefused http://192.168.127.2:8080/"), PAGE);
        let stream = std::net::TcpStream::connect((Ipv4Addr::LOCALHOST, web)).expect("the host's port");
        let answer = ask(stream, "GET", "/", "");
        assert_eq!(answer.body.trim_end().as_bytes(), PAGE.as_bytes());
    });

    step("a second hardware address, bridged, with a lease of its own", || {
        let inner = one.ssh("root", BRIDGED);
        let inner = inner.lines().last().unwrap_or_default();
        assert!(inner.starts_with("192.168.127."), "{inner:?}");
        assert_ne!(inner, address);
        assert_eq!(bytes_of(&one, "inner"), SENT);
        second(&format!("ping -q -c 3 -W 5 {inner} >&2"));
    });

    step("a network of its own behind proxy ARP", || {
        one.ssh("root", PROXIED);
        assert_eq!(bytes_of(&one, "nested"), SENT);
        second(&format!("ping -q -c 3 -W 5 {NESTED} >&2"));
    });

    let moved = step("a machine comes back on another link, while the old one hangs on", || {
        two.signal(Signal::STOP);
        let moved = Neighbour::power_on(&one.daemon, MAC);
        reached(port);
        moved
    });
    step("and has its network", || {
        assert_eq!(address_of(&one.daemon, MAC), address);
        one.ssh("root", &format!("ping -q -c 3 -W 5 {address} >&2"));
        drop(two);
        assert_eq!(second("ping -q -c 3 -W 5 192.168.127.2 >&2; id -un"), "root");
    });
    drop(moved);
    step("the first one noticed nothing", || assert_eq!(one.ssh("root", "id -un"), "root"));
}

/// What httpd of the image serves.
const PAGE: &str = "hello from a container";
/// What a namespace sends the host.
const SENT: usize = 300_000;
/// An address that nobody leases.
const NESTED: &str = "192.168.127.177";

/// A namespace with a card of another hardware address on the machine's own; prints the address that it
/// leased.
const BRIDGED: &str = r#"
set -eu
card=$(ip -o route show default | sed 's/.* dev \([^ ]*\).*/\1/')
ip netns add inner
ip link add link "$card" name inner0 type macvlan mode bridge
ip link set inner0 netns inner
cat >lease <<'END'
#!/bin/sh
[ "$1" = bound ] || exit 0
ip address add "$ip/$mask" dev "$interface"
ip route add default via "$router"
END
chmod 755 lease
ip -n inner link set lo up
ip -n inner link set inner0 up
ip netns exec inner busybox udhcpc -i inner0 -n -q -f -t 10 -s /root/lease >&2
ip -n inner -4 -o address show dev inner0 | sed 's/.* inet \([^/]*\).*/\1/'
"#;

/// A namespace whose address of the network the machine answers for.
const PROXIED: &str = r#"
set -eu
card=$(ip -o route show default | sed 's/.* dev \([^ ]*\).*/\1/')
ip netns add nested
ip link add out type veth peer name in netns nested
ip link set out up
ip -n nested link set lo up
ip -n nested link set in up
ip -n nested address add 192.168.127.177/24 dev in
ip -n nested route add default via 192.168.127.1
ip route add 192.168.127.177 dev out
sysctl -q net.ipv4.ip_forward=1 "net.ipv4.conf.$card.proxy_arp=1" net.ipv4.conf.out.proxy_arp=1
"#;

/// How many bytes came to a port of the host of those that a namespace of the machine sent there.
#[track_caller]
fn bytes_of(vm: &Vm, namespace: &str) -> usize {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port");
    let port = listener.local_addr().expect("an address").port();
    let received = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        listener.accept().expect("the machine").0.read_to_end(&mut bytes).map(|_| bytes.len())
    });
    vm.ssh(
        "root",
        &format!(
            "head -c {SENT} /dev/zero | ip netns exec {namespace} socat -u - TCP:192.168.127.254:{port},connect-timeout=20"
        ),
    );
    received.join().expect("the listener").expect("its bytes")
}

#[track_caller]
fn address_of(daemon: &Daemon, mac: &str) -> String {
    eventually("a lease", BOOT, || {
        let answer = ask(api(daemon), "GET", "/services/dhcp/leases", "").json();
        let leases = answer.as_object().expect("an object");
        leases.iter().find(|(_, owner)| *owner == mac).map(|(address, _)| address.clone())
    })
}

#[track_caller]
fn expose(daemon: &Daemon, port: u16, remote: &str) {
    let wish = json!({"local": format!("127.0.0.1:{port}"), "remote": remote}).to_string();
    let answer = ask(api(daemon), "POST", "/services/forwarder/expose", &wish);
    assert_eq!(answer.status, 200, "{answer:?}");
}

#[track_caller]
fn api(daemon: &Daemon) -> UnixStream {
    UnixStream::connect(daemon.dir().join("api")).expect("the API")
}

#[track_caller]
fn reached(port: u16) {
    eventually("a greeting of the machine's sshd", BOOT, || {
        sshd_greets(port, Duration::from_secs(5)).then_some(())
    });
}
