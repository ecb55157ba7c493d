//! The flags. Owns: the one table that parsing, the usage text and the table in docs/cli.md are made from.
//! May not: parse. Read next: `grammar.rs`, which reads argv by it.

/// What a flag's value is, and its default.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Off unless given; a value only with `=`.
    Bool,
    /// The last one wins.
    Int(i64),
    /// The last one wins; empty means "not given".
    Text(&'static str),
    /// Every one counts, in order.
    List,
}

/// One flag of the command line.
#[derive(Clone, Copy, Debug)]
pub struct Flag {
    /// Without dashes; case matters.
    pub name: &'static str,
    /// Type and default.
    pub kind: Kind,
    /// One line for the usage text.
    pub help: &'static str,
}

pub(crate) const fn flag(name: &'static str, kind: Kind, help: &'static str) -> Flag {
    Flag { name, kind, help }
}

/// Every flag, in the order of the usage text: bytewise by name.
pub const FLAGS: &[Flag] = &[
    flag(
        "agent-port",
        Kind::Int(crate::agent::PORT as i64),
        "Port of the guest at which its agent listens: gvforwarder -agent",
    ),
    flag(
        "agent-secret-file",
        Kind::Text(""),
        "File of mode 0600 with a secret of 16 to 4096 bytes that guests' agents have too; each has to prove so to the other",
    ),
    flag(
        "api-token-file",
        Kind::Text(""),
        "File of mode 0600 with a token of 32 to 256 characters that clients of -listen and -services have to send over tcp:// and, but for \
         virtual machines, over vsock://; without it that of the environment's GVISOR_API_TOKEN, if there is one",
    ),
    flag("api-token-gateway", Kind::Bool, "Guests have to send the token too, to the API at the gateway"),
    flag(
        "config",
        Kind::Text(""),
        "YAML file of the network and everything else; its four addresses count before the flags, and the flags before the rest",
    ),
    flag("debug", Kind::Bool, "Log at debug level, and the first frames of every five seconds"),
    flag("deviceIP", Kind::Text(""), "Address of the virtual machine, default is the second of the subnet"),
    flag(
        "ec2-metadata-access",
        Kind::Bool,
        "Let the guest reach 169.254.0.0/16: EC2 metadata and Amazon time",
    ),
    flag("exit-with-vm", Kind::Bool, "End when the last virtual machine of -qmp has ended"),
    flag(
        "forward-dest",
        Kind::List,
        "Where the matching -forward-sock leads: a path in the guest, or a URL, ssh://, tcp://, vsock://, unix:// or agent://",
    ),
    flag("forward-identity", Kind::List, "Private key file for the next -forward-dest over SSH without one"),
    flag(
        "forward-sock",
        Kind::List,
        "Socket of the host to forward: a path of a unix socket, @NAME, or a URL, unix://, tcp://, vsock:// or fd://",
    ),
    flag(
        "forward-user",
        Kind::List,
        "SSH user for the next -forward-dest that is a path; without any user and key it is the agent's",
    ),
    flag(
        "gateway-expose-all-protocols",
        Kind::Bool,
        "Let guests expose unix sockets through the gateway, by TCP or SSH to themselves, at any path and with any key file",
    ),
    flag("gatewayIP", Kind::Text(""), "Address of the gateway, default is the first of the subnet"),
    flag(
        "hostIP",
        Kind::Text(""),
        "Address under which the guest reaches the host's 127.0.0.1, default is the last of the subnet",
    ),
    flag(
        "keep-running",
        Kind::Bool,
        "Serve any number of virtual machines, and go on when one leaves, instead of ending with it",
    ),
    flag(
        "listen",
        Kind::List,
        "URL of a control endpoint, unix://, tcp:// or vsock://: the HTTP API with /connect",
    ),
    flag("listen-bess", Kind::Text(""), "unixpacket:// URL of the socket for a BESS-compatible program"),
    flag("listen-qemu", Kind::Text(""), "unix:// or tcp:// URL of the socket that QEMU connects to"),
    flag("listen-stdio", Kind::Text(""), "Any text: frames on standard input and output"),
    flag(
        "listen-unixgram",
        Kind::Text(""),
        "The same as -listen-vfkit, for libkrun and others that speak it",
    ),
    flag("listen-vfkit", Kind::Text(""), "unixgram:// URL of the socket for a vfkit-compatible program"),
    flag("listen-vpnkit", Kind::Text(""), "unix:// or tcp:// URL of a VPNKit socket for HyperKit"),
    flag("log-file", Kind::Text(""), "Write the log to this file, emptied first, instead of standard error"),
    flag(
        "mtu",
        Kind::Int(0),
        "Largest IP packet in bytes, 68 to 65535, offered by DHCP and used; without it, or 0, a guest behind QEMU is offered \
         65520 and sent what it takes",
    ),
    flag("notification", Kind::Text(""), "unix: URL of a socket that is told about network events"),
    flag(
        "pcap",
        Kind::Text(""),
        "Capture the network's frames into this file, for Wireshark, tshark or tcpdump",
    ),
    flag("pid-file", Kind::Text(""), "Write the process id to this file, removed at the end"),
    flag(
        "qmp",
        Kind::List,
        "unix:// or tcp:// URL of a QEMU's QMP socket, there or yet to come: gives the machine a network card and follows it",
    ),
    flag("qmp-keep-device", Kind::Bool, "Leave the network card in the machine at the end"),
    flag("qmp-status", Kind::Bool, "Print what -qmp finds, change nothing, and exit"),
    flag(
        "reverse-dest",
        Kind::List,
        "Socket of the host that the matching -reverse-sock leads to: a path, or a URL as of -forward-dest",
    ),
    flag(
        "reverse-sock",
        Kind::List,
        "Socket to make in the guest and to lead to the host: a path, over SSH by the first -forward-user and -forward-identity, or \
         without both by way of the guest's agent; ssh://user@host:port/path?key=/file; agent:///path",
    ),
    flag("services", Kind::Text(""), "URL of an endpoint with the HTTP API without /connect"),
    flag(
        "ssh-port",
        Kind::Int(2222),
        "Port on 127.0.0.1 that leads to the guest's port 22, 1024 to 65535; -1 for none",
    ),
    flag("subnet", Kind::Text("192.168.127.0/24"), "The network's IPv4 subnet, /29 or larger"),
    flag("version", Kind::Bool, "Print the version and exit"),
];

impl Flag {
    fn type_name(&self) -> &'static str {
        match self.kind {
            Kind::Bool => "",
            Kind::Int(_) => " int",
            Kind::Text(_) => " string",
            Kind::List => " value",
        }
    }
}

/// The usage text: two lines a flag.
pub fn usage(program: &str, flags: &[Flag]) -> String {
    let mut out = format!("Usage of {program}:\n");
    for flag in flags {
        let default = match flag.kind {
            Kind::Int(n) if n != 0 => format!(" (default {n})"),
            Kind::Text(text) if !text.is_empty() => format!(" (default \"{text}\")"),
            _ => String::new(),
        };
        out.push_str(&format!("  -{}{}\n    \t{}{default}\n", flag.name, flag.type_name(), flag.help));
    }
    out
}

/// The table of a page in docs/.
pub fn markdown(flags: &[Flag]) -> String {
    let mut out = String::from("| flag | default | meaning |\n|---|---|---|\n");
    for flag in flags {
        let default = match flag.kind {
            Kind::Bool => "off".into(),
            Kind::Int(n) => format!("`{n}`"),
            Kind::Text("") => String::new(),
            Kind::Text(text) => format!("`{text}`"),
            Kind::List => "none; may be repeated".into(),
        };
        let value = flag.type_name().replace("value", "string");
        out.push_str(&format!("| `-{}{value}` | {default} | {} |\n", flag.name, flag.help));
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sorted_and_distinct() {
        assert!(FLAGS.is_sorted_by(|a, b| a.name < b.name), "{FLAGS:#?}");
    }

    #[test]
    fn usage_has_two_lines_a_flag() {
        let usage = usage("/bin/gvproxy", FLAGS);
        assert_eq!(usage.lines().count(), 1 + 2 * FLAGS.len());
        assert!(usage.starts_with("Usage of /bin/gvproxy:\n"), "{usage}");
        assert!(usage.contains("\n  -mtu int\n    \t"), "{usage}");
        assert!(usage.contains("-1 for none (default 2222)\n"), "{usage}");
        assert!(usage.contains("(default \"192.168.127.0/24\")\n  -version\n"), "{usage}");
    }
}
