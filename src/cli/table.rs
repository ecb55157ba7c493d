//! The flags. Owns: the one table that parsing, the usage text and the pages are made from.
//! May not: parse. Read next: `grammar.rs`, which reads argv by it.

use std::ffi::OsString;

use super::Values;

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
    /// What manual pages call the value, such as `FILE`; empty for [`Kind::Bool`].
    pub value: &'static str,
    /// One line for the usage text: sentences without the last stop.
    pub help: &'static str,
    /// Its key in the file of `-config`, such as `stack.mtu`; empty if there is none.
    pub key: &'static str,
}

/// A flag that has no key.
pub(crate) const fn flag(name: &'static str, kind: Kind, value: &'static str, help: &'static str) -> Flag {
    Flag { name, kind, value, help, key: "" }
}

/// Defines flags, each in one place: as a field of a struct of what was typed, and as an entry of `FLAGS`,
/// from which the field is filled. The field's type is that of the flag's [`Kind`].
macro_rules! flags {
    ($(#[$meta:meta])* pub struct $Args:ident { $($field:ident: $type:ty = $flag:expr,)* }) => {
        $(#[$meta])*
        #[derive(Clone, Debug, PartialEq, Eq)]
        #[expect(missing_docs, reason = "named after the flags, which have their help")]
        pub struct $Args {
            $(pub $field: $type,)*
            /// The names of the flags that were typed.
            pub typed: Vec<&'static str>,
            /// The word at which the flags ended; it and what follows has no meaning.
            pub ignored: Option<OsString>,
        }

        /// Every flag, in the order of the usage text: bytewise by name.
        pub const FLAGS: &[Flag] = &[$($flag,)*];

        impl $Args {
            /// From what was read by [`FLAGS`].
            pub(super) fn new(values: Values) -> Self {
                Self { $($field: values.get($flag.name),)* typed: values.typed(), ignored: values.ignored }
            }
        }
    };
}
pub(crate) use flags;

flags! {
    /// Exactly what was typed, with the defaults of the flags that were not. An empty text means "not given".
    pub struct RawArgs {
        agent_port: i64 = flag(
            "agent-port", Kind::Int(crate::agent::PORT as i64), "PORT",
            "TCP and vsock port of the guest's agent, which is gvforwarder -agent",
        ),
        agent_secret_file: Option<OsString> = flag(
            "agent-secret-file", Kind::Text(""), "FILE",
            "File of mode 0600 with a secret of 16 to 4096 bytes. Give the same secret to the agents of \
             the guests. Host and agent then prove to each other that they have it",
        ).key("agent-secret-file"),
        api_token_file: Option<OsString> = flag(
            "api-token-file", Kind::Text(""), "FILE",
            "File of mode 0600 with a token of 32 to 256 characters. Clients of -listen and -services \
             have to send it over tcp:// and vsock://. Over vsock://, a virtual machine needs none for \
             /connect. Without this flag, the token is the value of GVISOR_API_TOKEN",
        ).key("api-token-file"),
        api_token_gateway: bool = flag(
            "api-token-gateway", Kind::Bool, "",
            "Require the token from guests too, at the API of the gateway",
        ).key("api-token-gateway"),
        config: OsString = flag(
            "config", Kind::Text(""), "FILE",
            "YAML configuration file. Flags take precedence over the file, but not over its stack.subnet, \
             stack.gatewayIP, stack.deviceIP and stack.hostIP",
        ),
        debug: bool = flag(
            "debug", Kind::Bool, "",
            "Log at debug level, and log the first hundred frames of every five seconds",
        ),
        device_ip: OsString = flag(
            "deviceIP", Kind::Text(""), "ADDRESS",
            "IPv4 address of the virtual machine. The default is the second of the subnet",
        ).key("stack.deviceIP"),
        ec2_metadata_access: bool = flag(
            "ec2-metadata-access", Kind::Bool, "",
            "Let guests reach 169.254.0.0/16, where clouds have their metadata and time services",
        ).key("ec2-metadata-access"),
        exit_with_vm: bool = flag(
            "exit-with-vm", Kind::Bool, "",
            "End when the last virtual machine of -qmp has ended",
        ).key("exit-with-vm"),
        forward_dest: Vec<OsString> = flag(
            "forward-dest", Kind::List, "PATH|URL",
            "Target of a forward. The Nth -forward-dest is the target of the Nth -forward-sock. It is a \
             path in the guest, or a URL: ssh://, tcp://, vsock://, unix:// or agent://",
        ),
        forward_identity: Vec<OsString> = flag(
            "forward-identity", Kind::List, "FILE",
            "Private key for SSH. The Nth -forward-identity belongs to the Nth -forward-dest that needs a \
             key: a path with a -forward-user, or an ssh:// URL without ?key=",
        ),
        forward_sock: Vec<OsString> = flag(
            "forward-sock", Kind::List, "PATH|URL",
            "Socket to make on the host. It is a path, the name of an abstract socket, written @NAME, or \
             a URL: unix://, tcp://, vsock:// or fd://",
        ),
        forward_user: Vec<OsString> = flag(
            "forward-user", Kind::List, "USER",
            "User for SSH. The Nth -forward-user belongs to the Nth -forward-dest that is a path. Without \
             any -forward-user, paths are reached by the guest's agent",
        ),
        gateway_expose_all_protocols: bool = flag(
            "gateway-expose-all-protocols", Kind::Bool, "",
            "Let guests expose unix sockets too, by the API of the gateway. Such a socket leads to the \
             guest itself, over TCP or SSH. The guest may name any path on the host, and any key file",
        ).key("gateway-expose-all-protocols"),
        gateway_ip: OsString = flag(
            "gatewayIP", Kind::Text(""), "ADDRESS",
            "IPv4 address of the gateway. The default is the first of the subnet",
        ).key("stack.gatewayIP"),
        host_ip: OsString = flag(
            "hostIP", Kind::Text(""), "ADDRESS",
            "IPv4 address at which guests reach the host's 127.0.0.1. The default is the last of the \
             subnet",
        ).key("stack.hostIP"),
        keep_running: bool = flag(
            "keep-running", Kind::Bool, "",
            "Serve any number of virtual machines, and keep running when one leaves. Without it, gvproxy \
             serves one, and ends with it",
        ),
        listen: Vec<OsString> = flag(
            "listen", Kind::List, "URL",
            "Serve the HTTP API with /connect at this unix://, tcp:// or vsock:// URL",
        ).key("listen"),
        listen_bess: OsString = flag(
            "listen-bess", Kind::Text(""), "URL",
            "unixpacket:// URL of the socket that BESS, the Berkeley Extensible Software Switch, connects \
             to",
        ).key("interfaces.bess"),
        listen_qemu: OsString = flag(
            "listen-qemu", Kind::Text(""), "URL",
            "unix:// or tcp:// URL of the socket that QEMU connects to",
        ).key("interfaces.qemu"),
        listen_stdio: OsString = flag(
            "listen-stdio", Kind::Text(""), "TEXT",
            "Exchange frames on standard input and output. The value may be any text that is not empty",
        ).key("interfaces.stdio"),
        listen_unixgram: OsString = flag(
            "listen-unixgram", Kind::Text(""), "URL",
            "Another name of -listen-vfkit, for libkrun and other programs that speak vfkit's protocol",
        ),
        listen_vfkit: OsString = flag(
            "listen-vfkit", Kind::Text(""), "URL",
            "unixgram:// URL of the socket that vfkit or krunkit connects to",
        ).key("interfaces.vfkit"),
        listen_vpnkit: OsString = flag(
            "listen-vpnkit", Kind::Text(""), "URL",
            "unix:// or tcp:// URL of the socket that HyperKit connects to, with VPNKit's protocol",
        ).key("interfaces.vpnkit"),
        log_file: OsString = flag(
            "log-file", Kind::Text(""), "FILE",
            "Write the log to this file instead of standard error. The file is emptied at the start",
        ).key("log-file"),
        mtu: i64 = flag(
            "mtu", Kind::Int(0), "BYTES",
            "Largest IP packet, 68 to 65535, which DHCP offers as the MTU. 0 stands for 65520 if only \
             QEMU can connect, else for 1500. With 0, a guest gets packets over 1500 once it has shown \
             that it takes them",
        ).key("stack.mtu"),
        notification: OsString = flag(
            "notification", Kind::Text(""), "URL",
            "unix:// URL of a socket that network events are sent to",
        ).key("notification"),
        pcap: OsString = flag(
            "pcap", Kind::Text(""), "FILE",
            "Write all frames to this capture file, for Wireshark, tshark or tcpdump",
        ).key("stack.capture-file"),
        pid_file: OsString = flag(
            "pid-file", Kind::Text(""), "FILE",
            "Write the process ID to this file, and remove the file at the end",
        ).key("pid-file"),
        qmp: Vec<OsString> = flag(
            "qmp", Kind::List, "URL",
            "unix:// or tcp:// URL of the QMP socket of a QEMU, which may be started later. Gives that \
             virtual machine a network card, and follows its state",
        ).key("qmp"),
        qmp_keep_device: bool = flag(
            "qmp-keep-device", Kind::Bool, "",
            "Leave the network card of -qmp in the virtual machine at the end",
        ).key("qmp-keep-device"),
        qmp_status: bool = flag(
            "qmp-status", Kind::Bool, "",
            "Print the state of the virtual machines of -qmp, change nothing, and exit",
        ),
        reverse_dest: Vec<OsString> = flag(
            "reverse-dest", Kind::List, "PATH|URL",
            "Target of a reverse forward. The Nth -reverse-dest is the target of the Nth -reverse-sock. \
             It is a path on the host, or a URL: tcp://, vsock:// or unix://",
        ),
        reverse_sock: Vec<OsString> = flag(
            "reverse-sock", Kind::List, "PATH|URL",
            "Socket to make in the guest. It is a path, or a URL: ssh://USER@HOST:PORT/PATH?key=/FILE or \
             agent:///PATH. A path is made over SSH with the first -forward-user and -forward-identity. \
             Without both of these it is made by the guest's agent",
        ),
        services: OsString = flag(
            "services", Kind::Text(""), "URL",
            "Serve the HTTP API without /connect at this unix://, tcp:// or vsock:// URL",
        ).key("services"),
        ssh_port: i64 = flag(
            "ssh-port", Kind::Int(2222), "PORT",
            "Port on 127.0.0.1 that leads to the guest's port 22, 1024 to 65535; -1 for none",
        ),
        subnet: OsString = flag(
            "subnet", Kind::Text("192.168.127.0/24"), "CIDR",
            "IPv4 subnet of the network, /29 or larger",
        ).key("stack.subnet"),
        version: bool = flag("version", Kind::Bool, "", "Print the version and exit"),
    }
}

impl Flag {
    pub(crate) const fn key(self, key: &'static str) -> Self {
        Self { key, ..self }
    }

    /// Whether the value may be the path of a file.
    pub(crate) fn is_path(&self) -> bool {
        self.value.contains("FILE") || self.value.contains("PATH")
    }

    /// The first sentence of its help.
    pub(crate) fn summary(&self) -> &'static str {
        self.help.split(". ").next().unwrap_or(self.help)
    }

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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_sorted_and_distinct() {
        assert!(FLAGS.is_sorted_by(|a, b| a.name < b.name), "{FLAGS:#?}");
    }

    #[test]
    fn a_value_has_a_name() {
        for flag in FLAGS {
            assert_eq!(flag.value.is_empty(), flag.kind == Kind::Bool, "{flag:?}");
        }
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
