//! The command line: Go's `flag` grammar in front of clap. Owns: what was typed, as [`RawArgs`].
//! May not: judge what the values mean, touch files or globals. Read next: `table.rs`, then `config.rs`; `guest/settings.rs`.

mod grammar;
pub mod literal;
pub mod pages;
pub mod table;

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::text::quote;

use grammar::End;
use table::{FLAGS, Flag, Kind};

/// Exactly what was typed, with the defaults of the flags that were not. An empty text means "not given".
#[derive(Clone, Debug, PartialEq, Eq)]
#[expect(missing_docs, reason = "named after the flags, which table.rs documents")]
pub struct RawArgs {
    pub agent_port: i64,
    pub agent_secret_file: Option<OsString>,
    pub api_token_file: Option<OsString>,
    pub api_token_gateway: bool,
    pub config: OsString,
    pub debug: bool,
    pub device_ip: OsString,
    pub ec2_metadata_access: bool,
    pub exit_with_vm: bool,
    pub forward_dest: Vec<OsString>,
    pub forward_identity: Vec<OsString>,
    pub forward_sock: Vec<OsString>,
    pub forward_user: Vec<OsString>,
    pub gateway_expose_all_protocols: bool,
    pub gateway_ip: OsString,
    pub host_ip: OsString,
    pub keep_running: bool,
    pub listen_bess: OsString,
    pub listen: Vec<OsString>,
    pub listen_qemu: OsString,
    pub listen_stdio: OsString,
    pub listen_unixgram: OsString,
    pub listen_vfkit: OsString,
    pub listen_vpnkit: OsString,
    pub log_file: OsString,
    pub mtu: i64,
    pub notification: OsString,
    pub pcap: OsString,
    pub pid_file: OsString,
    pub qmp: Vec<OsString>,
    pub qmp_keep_device: bool,
    pub qmp_status: bool,
    pub reverse_dest: Vec<OsString>,
    pub reverse_sock: Vec<OsString>,
    pub services: OsString,
    pub ssh_port: i64,
    /// Whether `ssh_port` was typed.
    pub ssh_port_given: bool,
    pub subnet: OsString,
    pub version: bool,
    /// The word at which the flags ended; it and what follows has no meaning.
    pub ignored: Option<OsString>,
}

/// What a command line asks for.
#[derive(Debug)]
pub enum Parsed {
    /// To run.
    Run(Box<RawArgs>),
    /// To print the usage on standard error and to succeed.
    Help(String),
    /// Nothing that can be done: what to print on standard error before exiting with 2.
    Usage(String),
}

/// Reads a whole argv, the program's name first.
pub fn parse(argv: &[OsString]) -> Parsed {
    match read(argv, "gvproxy", FLAGS) {
        Read::Values(values) => Parsed::Run(Box::new(RawArgs::from_values(&values))),
        Read::Help(text) => Parsed::Help(text),
        Read::Usage(text) => Parsed::Usage(text),
    }
}

/// What a command line with any table of flags says.
#[derive(Debug)]
pub(crate) enum Read {
    /// The flags' values.
    Values(Values),
    /// As [`Parsed::Help`].
    Help(String),
    /// As [`Parsed::Usage`].
    Usage(String),
}

/// Reads a whole argv, the program's name first, which is `name` if there is none.
pub(crate) fn read(argv: &[OsString], name: &'static str, flags: &'static [Flag]) -> Read {
    let (program, words) = match argv {
        [program, words @ ..] => (program.as_os_str(), words),
        [] => (OsStr::new(name), argv),
    };
    let usage = || table::usage(&program.to_string_lossy(), flags);
    let lexed = grammar::lex(words, flags);
    // clap has the first word: Go reads from left to right, so a bad value comes before whatever ended the reading.
    let matches = match command(name, flags).try_get_matches_from(&lexed.items) {
        Ok(matches) => matches,
        Err(error) => return Read::Usage(format!("{}\n{}", reason(&error), usage())),
    };
    match lexed.end {
        End::Flags(ignored) => Read::Values(Values { matches, flags, ignored }),
        End::Help => Read::Help(usage()),
        End::Error(text) => Read::Usage(format!("{text}\n{}", usage())),
    }
}

/// The parsers below word the whole message; clap wraps it as the source of its own.
fn reason(error: &clap::Error) -> String {
    std::error::Error::source(error).map_or_else(|| error.to_string(), ToString::to_string)
}

fn command(name: &'static str, flags: &[Flag]) -> Command {
    Command::new(name)
        .no_binary_name(true)
        .disable_help_flag(true)
        .disable_version_flag(true)
        .args(flags.iter().map(arg))
}

fn arg(flag: &Flag) -> Arg {
    let name = flag.name;
    let arg = Arg::new(name).long(name).action(ArgAction::Set).overrides_with(name);
    match flag.kind {
        Kind::Bool => arg.value_parser(move |text: &str| {
            literal::boolean(text)
                .map_err(|e| format!("invalid boolean value {} for -{name}: {e}", quote(text)))
        }),
        Kind::Int(_) => arg.value_parser(move |text: &str| {
            literal::int(text).map_err(|e| format!("invalid value {} for flag -{name}: {e}", quote(text)))
        }),
        Kind::Text(_) => arg.value_parser(value_parser!(OsString)),
        Kind::List => {
            Arg::new(name).long(name).action(ArgAction::Append).value_parser(value_parser!(OsString))
        }
    }
}

/// The values of the flags, by name: what was given, else the default.
#[derive(Debug)]
pub(crate) struct Values {
    matches: ArgMatches,
    flags: &'static [Flag],
    /// The word at which the flags ended.
    pub(crate) ignored: Option<OsString>,
}

impl Values {
    fn default(&self, name: &str) -> Option<Kind> {
        self.flags.iter().find(|flag| flag.name == name).map(|flag| flag.kind)
    }

    /// Whether the flag was typed.
    pub(crate) fn is_given(&self, name: &str) -> bool {
        self.matches.contains_id(name)
    }

    pub(crate) fn boolean(&self, name: &str) -> bool {
        self.matches.get_one::<bool>(name).copied().unwrap_or(false)
    }

    pub(crate) fn int(&self, name: &str) -> i64 {
        match (self.matches.get_one::<i64>(name), self.default(name)) {
            (Some(&value), _) | (None, Some(Kind::Int(value))) => value,
            (None, _) => 0,
        }
    }

    pub(crate) fn text(&self, name: &str) -> OsString {
        match (self.matches.get_one::<OsString>(name), self.default(name)) {
            (Some(value), _) => value.clone(),
            (None, Some(Kind::Text(value))) => value.into(),
            (None, _) => OsString::new(),
        }
    }

    /// Also where it is empty.
    pub(crate) fn given(&self, name: &str) -> Option<OsString> {
        self.matches.get_one(name).cloned()
    }

    pub(crate) fn list(&self, name: &str) -> Vec<OsString> {
        self.matches.get_many::<OsString>(name).into_iter().flatten().cloned().collect()
    }
}

impl RawArgs {
    fn from_values(values: &Values) -> Self {
        let boolean = |name: &str| values.boolean(name);
        let int = |name: &str| values.int(name);
        let text = |name: &str| values.text(name);
        let list = |name: &str| values.list(name);
        Self {
            agent_port: int("agent-port"),
            agent_secret_file: values.given("agent-secret-file"),
            api_token_file: values.given("api-token-file"),
            api_token_gateway: boolean("api-token-gateway"),
            config: text("config"),
            debug: boolean("debug"),
            device_ip: text("deviceIP"),
            ec2_metadata_access: boolean("ec2-metadata-access"),
            exit_with_vm: boolean("exit-with-vm"),
            forward_dest: list("forward-dest"),
            forward_identity: list("forward-identity"),
            forward_sock: list("forward-sock"),
            forward_user: list("forward-user"),
            gateway_expose_all_protocols: boolean("gateway-expose-all-protocols"),
            gateway_ip: text("gatewayIP"),
            host_ip: text("hostIP"),
            keep_running: boolean("keep-running"),
            listen_bess: text("listen-bess"),
            listen: list("listen"),
            listen_qemu: text("listen-qemu"),
            listen_stdio: text("listen-stdio"),
            listen_unixgram: text("listen-unixgram"),
            listen_vfkit: text("listen-vfkit"),
            listen_vpnkit: text("listen-vpnkit"),
            log_file: text("log-file"),
            mtu: int("mtu"),
            notification: text("notification"),
            pcap: text("pcap"),
            pid_file: text("pid-file"),
            qmp: list("qmp"),
            qmp_keep_device: boolean("qmp-keep-device"),
            qmp_status: boolean("qmp-status"),
            reverse_dest: list("reverse-dest"),
            reverse_sock: list("reverse-sock"),
            services: text("services"),
            ssh_port: int("ssh-port"),
            ssh_port_given: values.matches.contains_id("ssh-port"),
            subnet: text("subnet"),
            version: boolean("version"),
            ignored: values.ignored.clone(),
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;
    use std::os::unix::ffi::OsStringExt;

    use super::*;

    fn argv(line: &str) -> Vec<OsString> {
        std::iter::once("gvproxy").chain(line.split_whitespace()).map(Into::into).collect()
    }

    fn run(line: &str) -> RawArgs {
        match parse(&argv(line)) {
            Parsed::Run(raw) => *raw,
            other => panic!("{line}: {other:?}"),
        }
    }

    fn refused(line: &str) -> String {
        match parse(&argv(line)) {
            Parsed::Usage(text) => text.lines().next().unwrap_or_default().into(),
            other => panic!("{line}: {other:?}"),
        }
    }

    #[test]
    fn the_table_makes_a_sound_clap_command() {
        command("gvproxy", FLAGS).debug_assert();
    }

    #[test]
    fn defaults() {
        let raw = run("");
        assert_eq!((raw.mtu, raw.ssh_port, raw.debug, raw.version), (0, 2222, false, false));
        assert_eq!(raw.subnet, "192.168.127.0/24");
        assert_eq!((raw.pid_file, raw.forward_sock), ("".into(), vec![]));
        assert_eq!(raw.ignored, None);
    }

    #[test]
    fn the_last_wins_and_lists_accumulate() {
        let raw =
            run("-mtu 1 -mtu=0x5dc -debug -debug=f -subnet a --subnet b -forward-sock a -forward-sock=b");
        assert_eq!((raw.mtu, raw.debug, raw.subnet), (1500, false, "b".into()));
        assert_eq!(raw.forward_sock, ["a", "b"]);
    }

    #[test]
    fn an_empty_value_is_a_value() {
        let raw = run("-subnet= -forward-sock=");
        assert_eq!((raw.subnet, raw.forward_sock), ("".into(), vec!["".into()]));
    }

    #[test]
    fn the_first_mistake_counts() {
        assert_eq!(refused("-mtu abc -nosuch"), r#"invalid value "abc" for flag -mtu: parse error"#);
        assert_eq!(refused("-nosuch -mtu abc"), "flag provided but not defined: -nosuch");
        assert_eq!(refused("-mtu x -h"), r#"invalid value "x" for flag -mtu: parse error"#);
        assert_eq!(refused("-mtu x -mtu 1"), r#"invalid value "x" for flag -mtu: parse error"#);
        assert_eq!(refused("-debug=maybe"), r#"invalid boolean value "maybe" for -debug: parse error"#);
        assert_eq!(refused("-mtu="), r#"invalid value "" for flag -mtu: parse error"#);
        assert_eq!(
            refused("-mtu 99999999999999999999"),
            r#"invalid value "99999999999999999999" for flag -mtu: value out of range"#
        );
        assert!(matches!(parse(&argv("-h -mtu x")), Parsed::Help(_)));
    }

    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let path = OsString::from_vec(b"/\xff".to_vec());
        let Parsed::Run(raw) = parse(&["gvproxy".into(), "-pid-file".into(), path.clone()]) else {
            panic!("a path may be any bytes");
        };
        assert_eq!(raw.pid_file, path);
        let bad = OsString::from_vec(b"-mtu=\xff".to_vec());
        assert!(matches!(parse(&["gvproxy".into(), bad]), Parsed::Usage(_)));
    }

    proptest! {
        #[test]
        fn no_argv_panics(words: Vec<Vec<u8>>) {
            let words: Vec<OsString> = words.into_iter().map(OsString::from_vec).collect();
            let _ = parse(&words);
        }

        #[test]
        fn nor_one_made_of_our_flags(words in prop::collection::vec("(--?(mtu|debug|subnet|forward-sock|version|h)(=[-a-z0-9]{0,3})?)|[-a-z0-9=]{0,4}", 0..8)) {
            let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
            let _ = parse(&words);
        }
    }
}
