//! What the pages say of gvforwarder beside its flags. Owns: that text. Read next: `settings.rs`;
//! `../cli/pages.rs`.

use super::settings::FLAGS;
use crate::cli::manual::{GRAMMAR, TZ};
use crate::cli::pages::Program;

/// Its page.
pub const GVFORWARDER: Program = Program {
    name: "gvforwarder",
    summary: "network of a guest without a network card, and its sockets for the host",
    synopsis: &[("gvforwarder", "[FLAG...]")],
    description: &[
        "`gvforwarder` runs in a guest. It makes a tap interface, and carries the interface's frames to a \
         `-listen` endpoint of gvproxy on the host. It leases an address there by DHCP, and sets up the \
         interface, the default route and the resolvers. For this it runs as root or with CAP_NET_ADMIN. \
         SIGTERM makes it undo everything.",
        "With `-agent` it is the guest's agent: it serves sockets of the guest to the host, and sockets of \
         the host in the guest, without SSH. It makes no tap then, unless `-url` is given.",
        GRAMMAR,
    ],
    commands: &[],
    flags: FLAGS,
    statuses: &[
        ("0", "After SIGTERM, SIGINT or SIGHUP, or because an interface of `-stop-if-exist` exists."),
        ("1", "A failure at the start."),
        ("2", "A usage error."),
    ],
    environment: &[("GVISOR_API_TOKEN", "The token of the host's gvproxy, without `-api-token-file`."), TZ],
    files: &[
        ("/dev/net/tun", "Makes the tap."),
        ("/dev/vsock", "vsock, for `-url vsock://` and for the agent."),
        (
            "/etc/resolv.conf",
            "Has the resolvers of the lease while gvforwarder runs, and its former content afterwards.",
        ),
    ],
    examples: &[
        (
            "The network of a guest over vsock. On the host, and then as root in the guest:",
            "gvproxy -listen vsock://:1024\ngvforwarder",
        ),
        (
            "podman's socket of the guest for the host. As root in the guest:",
            "gvforwarder -agent -agent-allow /run/podman/podman.sock",
        ),
    ],
    see_also: &["gvproxy(1)", "vsock(7)", "resolv.conf(5)"],
};
