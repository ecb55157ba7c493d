//! What the pages say of the daemon beside its flags. Owns: that text. Read next: `pages.rs`;
//! `../docker_sock/manual.rs`, `../guest/manual.rs`, the other programs.

use super::pages::Program;
use super::table::FLAGS;

/// How every program's flags are written.
pub(crate) const GRAMMAR: &str = "A flag is written with one dash or two, and its value after a space or \
                                  an equals sign. A flag without a value, such as `-debug`, takes one only \
                                  after an equals sign: `-debug=false`.";

/// What logs depend on.
pub(crate) const TZ: (&str, &str) = ("TZ", "The time zone of the log.");

/// The daemon.
pub const GVPROXY: Program = Program {
    name: "gvproxy",
    summary: "network of a virtual machine in user space, and its sockets on the host",
    synopsis: &[("gvproxy", "[FLAG...]"), ("gvproxy docker-sock", "install|status|uninstall [FLAG...]")],
    description: &[
        "`gvproxy` takes the Ethernet frames of a virtual machine from its hypervisor, and is the network \
         behind them: DHCP, DNS, and TCP, UDP and pings to wherever the host can reach. It makes ports and \
         sockets of the virtual machine available on the host, and sockets of the host in the virtual \
         machine. It needs no privilege.",
        "`gvproxy` stays in the foreground until it gets SIGTERM or SIGINT, or until the virtual machine \
         disconnects, which `-keep-running` changes. With `-log-file`, SIGHUP makes it close the log and \
         open it again.",
        GRAMMAR,
    ],
    commands: &[("docker-sock", "Keep /var/run/docker.sock as a link to a machine's socket")],
    flags: FLAGS,
    statuses: &[
        ("0", "After SIGTERM or SIGINT, or when the virtual machine has disconnected."),
        ("1", "A failure, at the start or later."),
        ("2", "A usage error."),
        ("3", "Of `-qmp-status` only: a virtual machine has no network card that is connected."),
    ],
    environment: &[
        ("GVISOR_API_TOKEN", "The token of the HTTP API, without `-api-token-file`. `-qmp-status` sends it."),
        ("HOME", "The directory of `.ssh/known_hosts`. Without it, the home directory of the user database."),
        (
            "LISTEN_PID, LISTEN_FDS, LISTEN_FDNAMES",
            "The sockets that systemd passes, for `-forward-sock fd://`: see sd_listen_fds(3).",
        ),
        (
            "XDG_RUNTIME_DIR, TMPDIR",
            "The directory of the socket that a network card of `-qmp` connects to, if the directory of \
             the QMP socket is not writable. The first of the two that is set counts, else it is `/tmp`.",
        ),
        TZ,
    ],
    files: &[
        (
            "/etc/resolv.conf",
            "The resolvers that DNS questions of guests are forwarded to, and the search domains.",
        ),
        ("/etc/hosts", "Names that are answered before the resolvers are asked."),
        (
            "~/.ssh/known_hosts",
            "The keys that sshds at addresses other than loopback are to have, for `-forward-dest ssh://`.",
        ),
        ("SOCKET.gvproxy", "Beside the SOCKET of `-qmp`: the socket that its network card connects to."),
    ],
    examples: &[
        (
            "A network for a virtual machine, with the HTTP API on a socket:",
            "mkdir -m 700 /tmp/vm\n\
             gvproxy -listen-qemu unix:///tmp/vm/qemu.sock -listen unix:///tmp/vm/api.sock &",
        ),
        (
            "That virtual machine, in another terminal. It gets the address 192.168.127.2 by DHCP:",
            "qemu-system-x86_64 -m 1G -nographic -drive file=disk.qcow2,if=virtio \\\n  \
             -netdev stream,id=vlan,addr.type=unix,addr.path=/tmp/vm/qemu.sock \\\n  \
             -device virtio-net-pci,netdev=vlan,mac=5a:94:ef:e4:0c:ee",
        ),
        (
            "Port 80 of that virtual machine as port 8080 of the host:",
            "curl --unix-socket /tmp/vm/api.sock http://d/services/forwarder/expose \\\n  \
             -d '{\"local\":\"127.0.0.1:8080\",\"remote\":\"192.168.127.2:80\",\"protocol\":\"tcp\"}'",
        ),
        (
            "Docker's socket of a machine that has an sshd at port 2222 of the host, without a network of \
             its own:",
            "gvproxy -forward-sock /tmp/vm/docker.sock -forward-identity ~/.ssh/machine \\\n  \
             -forward-dest ssh://core@127.0.0.1:2222/var/run/docker.sock &\n\
             DOCKER_HOST=unix:///tmp/vm/docker.sock docker ps",
        ),
    ],
    see_also: &[
        "gvproxy-docker-sock(1)",
        "gvforwarder(1)",
        "podman-machine(1)",
        "qemu-system-x86_64(1)",
        "ssh(1)",
        "systemd.socket(5)",
        "resolv.conf(5)",
    ],
};
