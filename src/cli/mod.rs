//! The command line: Go's `flag` grammar in front of clap. Owns: what was typed, as [`RawArgs`]. May not:
//! judge what the values mean, touch files or globals. Read next: `table.rs`, then `config.rs`;
//! `guest/settings.rs`.

mod grammar;
pub mod literal;
pub mod manual;
pub mod pages;
pub mod table;

use std::ffi::{OsStr, OsString};

use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};

use crate::text::quote;

use grammar::End;
pub use table::RawArgs;
use table::{FLAGS, Flag, Kind};

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
        Read::Values(values) => Parsed::Run(Box::new(RawArgs::new(values))),
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
    // clap has the first word: Go reads from left to right, so a bad value comes before whatever ended the
    // reading.
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
    /// The value of the flag `name`, whose kind has values of this type.
    pub(crate) fn get<T: Value>(&self, name: &str) -> T {
        T::of(self, name)
    }

    /// The names of the flags that were typed.
    pub(crate) fn typed(&self) -> Vec<&'static str> {
        let names = self.flags.iter().map(|flag| flag.name);
        names.filter(|name| self.matches.contains_id(name)).collect()
    }

    fn default(&self, name: &str) -> Option<Kind> {
        self.flags.iter().find(|flag| flag.name == name).map(|flag| flag.kind)
    }
}

/// A type that values of flags have.
pub(crate) trait Value {
    fn of(values: &Values, name: &str) -> Self;
}

impl Value for bool {
    fn of(values: &Values, name: &str) -> Self {
        values.matches.get_one(name).copied().unwrap_or(false)
    }
}

impl Value for i64 {
    fn of(values: &Values, name: &str) -> Self {
        match (values.matches.get_one(name), values.default(name)) {
            (Some(&value), _) | (None, Some(Kind::Int(value))) => value,
            (None, _) => 0,
        }
    }
}

impl Value for OsString {
    fn of(values: &Values, name: &str) -> Self {
        match (values.matches.get_one::<Self>(name), values.default(name)) {
            (Some(value), _) => value.clone(),
            (None, Some(Kind::Text(value))) => value.into(),
            (None, _) => Self::new(),
        }
    }
}

/// `None` if the flag was not typed: an empty value is `Some`.
impl Value for Option<OsString> {
    fn of(values: &Values, name: &str) -> Self {
        values.matches.get_one(name).cloned()
    }
}

impl Value for Vec<OsString> {
    fn of(values: &Values, name: &str) -> Self {
        values.matches.get_many(name).into_iter().flatten().cloned().collect()
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::sys::os_str::from_bytes;

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

    #[cfg(unix)]
    #[test]
    fn bytes_that_are_no_text_stay_as_they_are() {
        let path = from_bytes(b"/\xff".to_vec());
        let Parsed::Run(raw) = parse(&["gvproxy".into(), "-pid-file".into(), path.clone()]) else {
            panic!("a path may be any bytes");
        };
        assert_eq!(raw.pid_file, path);
        let bad = from_bytes(b"-mtu=\xff".to_vec());
        assert!(matches!(parse(&["gvproxy".into(), bad]), Parsed::Usage(_)));
    }

    proptest! {
        #[test]
        fn no_argv_panics(words: Vec<Vec<u8>>) {
            let words: Vec<OsString> = words.into_iter().map(from_bytes).collect();
            let _ = parse(&words);
        }

        #[test]
        fn nor_one_made_of_our_flags(words in prop::collection::vec("(--?(mtu|debug|subnet|forward-sock|version|h)(=[-a-z0-9]{0,3})?)|[-a-z0-9=]{0,4}", 0..8)) {
            let words: Vec<OsString> = words.into_iter().map(Into::into).collect();
            let _ = parse(&words);
        }
    }
}
